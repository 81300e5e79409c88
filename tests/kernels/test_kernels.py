"""Kernel settings, the sparse feature map and its derivatives."""

import pickle

import numpy as np
import pytest
from ase import Atoms
from scipy import sparse
from sklearn.base import clone

from checks import assert_close, position_gradient, strain_gradient
from kqeq.errors import InputError, NotPositiveDefiniteError, NumericsWarning
from kqeq.frames.structures import read_structure
from kqeq.kernels import feature_map as kernels
from kqeq.kernels.feature_map import FeatureMap, SOAPKernel, gram, layout_columns
from kqeq.kernels.representatives import build_feature_map


def molecules():
    """Three small molecules of different elements, none symmetric."""
    water = Atoms("OH2", [[0.0, 0.0, 0.0], [0.96, 0.05, 0.0], [-0.24, 0.93, 0.1]])
    methanol = Atoms(
        "COH4",
        [[0, 0, 0], [1.4, 0.1, 0], [1.7, -0.8, 0.1], [-0.4, 1.0, 0.1], [-0.4, -0.5, 0.9], [-0.3, -0.5, -0.9]],
    )
    ammonia = Atoms("NH3", [[0, 0, 0.1], [0.94, 0, -0.28], [-0.47, 0.81, -0.3], [-0.45, -0.83, -0.26]])
    return [water, methanol, ammonia]


SPECIES = (1, 6, 7, 8)
SETTINGS = {"r_cut": 3.0, "n_max": 3, "l_max": 2, "sigma": 0.5}


@pytest.fixture(scope="module", params=[1, 2, 2.5, 4])
def feature_map(request):
    kernel = SOAPKernel(**SETTINGS, zeta=request.param, n_representatives=3)
    structures = [read_structure(a) for a in molecules()]
    with pytest.warns(UserWarning, match="C 1, N 1, O 2"):
        return build_feature_map(kernel, structures, SPECIES)


def evaluate(feature_map, atoms):
    structure = read_structure(atoms)
    return feature_map.descriptor.evaluate(structure), structure.numbers


def expand(feature_map, atoms, coefficients):
    """The site values f_i of an expansion."""
    near = feature_map.similarities(*evaluate(feature_map, atoms))
    return feature_map.expand(near, len(atoms), coefficients)


def pull_back(feature_map, atoms, coefficients, weights=None):
    """The gradient of Σ_i weights_i f_i through descriptor gradient and adjoint."""
    state, numbers = evaluate(feature_map, atoms)
    near = feature_map.similarities(state, numbers)
    return state.adjoint(feature_map.descriptor_gradient(near, state.values.shape, coefficients, weights))


# ----------------------------------------------------------------- settings


def test_the_settings_are_a_scikit_learn_estimator():
    kernel = SOAPKernel(r_cut=4.5, zeta=3, selection="cur", delta=0.5)
    copy = clone(kernel)
    assert copy is not kernel
    assert copy.get_params() == kernel.get_params()
    assert copy.set_params(zeta=2).zeta == 2
    assert kernel.zeta == 3
    assert SOAPKernel(**kernel.to_dict()).get_params() == kernel.get_params()


def test_defaults_are_valid():
    SOAPKernel().check()
    SOAPKernel(n_max=np.int64(4), n_representatives=np.int32(5), zeta=np.float32(2), r_cut=5).check()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("r_cut", 0.5),
        ("r_cut", np.nan),
        ("r_cut", "4"),
        ("r_cut", None),
        ("n_max", 0),
        ("n_max", 4.7),
        ("l_max", -1),
        ("l_max", 21),
        ("l_max", 2.5),
        ("sigma", 0.0),
        ("sigma", np.inf),
        ("zeta", 0.5),
        ("zeta", np.nan),
        ("zeta", "two"),
        ("zeta", None),
        ("n_representatives", 0),
        ("n_representatives", 3.5),
        ("n_representatives", "many"),
        ("selection", "random"),
        ("delta", 0.0),
        ("delta", -1.0),
        ("delta", np.inf),
        ("delta", "1"),
        ("smooth", "padding"),
        ("smooth", None),
    ],
)
def test_bad_settings_are_named(name, value):
    with pytest.raises(InputError, match=name):
        SOAPKernel(**{name: value}).check()


# ----------------------------------------------------------------- features


def test_features_reproduce_the_nystrom_kernel(feature_map):
    """ΦΦᵀ = K_NM (K_MM + jitter)⁻¹ K_MN, computed from the rows without the map."""
    zeta = feature_map.zeta
    for atoms in molecules():
        state, numbers = evaluate(feature_map, atoms)
        phi = feature_map.features(state, numbers)
        assert phi.shape == (len(atoms), feature_map.size)
        expected = np.zeros((len(atoms), len(atoms)))
        for z in set(numbers.tolist()):
            rows = feature_map.representatives[z].toarray()
            centres = np.flatnonzero(numbers == z)
            columns = layout_columns(feature_map.descriptor, state.species, feature_map.species)
            full = np.zeros((len(centres), rows.shape[1]))
            full[:, columns] = state.values[centres]
            k_mm = np.maximum(rows @ rows.T, 0.0) ** zeta
            k_mm[np.diag_indices_from(k_mm)] += 1e-10 * np.mean(np.diagonal(k_mm))
            k_nm = np.maximum(full @ rows.T, 0.0) ** zeta
            expected[np.ix_(centres, centres)] = k_nm @ np.linalg.solve(k_mm, k_nm.T)
        assert_close(phi @ phi.T, expected, rtol=1e-7, at_least=0.9)


def test_atoms_see_the_features_of_their_own_element_only(feature_map):
    state, numbers = evaluate(feature_map, molecules()[1])
    phi = feature_map.features(state, numbers)
    for z, columns in feature_map.columns.items():
        assert not phi[numbers != z][:, columns].any()
        if z in numbers:
            assert np.abs(phi[numbers == z][:, columns]).max() > 0.1
    stops = [columns.stop for columns in feature_map.columns.values()]
    assert stops[-1] == feature_map.size


def test_a_representative_has_the_prior_variance_one(feature_map):
    """|Φ|² = k(p, p) = 1 for environments that are representatives: the features miss nothing there."""
    for atoms in molecules():
        state, numbers = evaluate(feature_map, atoms)
        phi = feature_map.features(state, numbers)
        heavy = numbers > 1
        np.testing.assert_allclose(np.sum(phi[heavy] ** 2, axis=1), 1.0, atol=1e-8)
        assert (np.sum(phi**2, axis=1) < 1.0 + 1e-8).all()


def test_coefficients_and_weights_say_the_same(feature_map):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=feature_map.size)
    for atoms in molecules():
        state, numbers = evaluate(feature_map, atoms)
        expected = feature_map.features(state, numbers) @ weights
        values = expand(feature_map, atoms, feature_map.coefficients(weights))
        assert_close(values, expected, rtol=1e-8, at_least=0.05)


def test_absent_elements_cost_nothing_and_change_nothing(feature_map):
    """A row in the layout of its own elements meets the same kernel as in the layout of all."""
    descriptor = feature_map.descriptor
    for atoms in molecules():
        state, numbers = evaluate(feature_map, atoms)
        projected = feature_map.project(state.species)
        assert set(projected) == set(numbers.tolist())
        assert state.values.shape[1] < feature_map.representatives[8].shape[1]
        columns = layout_columns(descriptor, state.species, feature_map.species)
        assert len(set(columns.tolist())) == len(columns)
        for z, directions in projected.items():
            own = state.values[numbers == z]
            full = np.zeros((len(own), feature_map.representatives[z].shape[1]))
            full[:, columns] = own
            np.testing.assert_allclose(
                own @ directions.T, full @ feature_map.representatives[z].toarray().T, atol=1e-14
            )


def test_layout_columns_of_the_whole_are_the_identity():
    descriptor = SOAPKernel(**SETTINGS).descriptor()
    columns = layout_columns(descriptor, SPECIES, SPECIES)
    np.testing.assert_array_equal(columns, np.arange(len(columns)))


def test_gram_of_sparse_rows():
    rows = sparse.random_array((5, 40), density=0.2, rng=np.random.default_rng(0), format="csr")
    np.testing.assert_allclose(gram(rows), (rows @ rows.T).toarray(), atol=1e-15)


# -------------------------------------------------------------- derivatives


@pytest.mark.parametrize("molecule", range(3))
def test_gradient_of_an_expansion(feature_map, molecule):
    """The descriptor gradient, pulled back, is the gradient of Σ_i c_i f_i."""
    rng = np.random.default_rng(1)
    atoms = molecules()[molecule]
    coefficients = feature_map.coefficients(rng.normal(size=feature_map.size))
    weights = rng.normal(size=len(atoms))

    def total(moved, c=weights):
        return c @ expand(feature_map, moved, coefficients)

    pulled = pull_back(feature_map, atoms, coefficients, weights)
    assert_close(pulled.positions, position_gradient(total, atoms), at_least=1e-2)
    assert_close(pulled.strain, strain_gradient(total, atoms), at_least=1e-2)

    unweighted = pull_back(feature_map, atoms, coefficients)
    ones = np.ones(len(atoms))
    assert_close(
        unweighted.positions, position_gradient(lambda a: total(a, ones), atoms), atol=1e-9, at_least=1e-3
    )


@pytest.mark.parametrize("molecule", range(3))
def test_gradients_of_all_features(feature_map, molecule):
    rng = np.random.default_rng(2)
    atoms = molecules()[molecule]
    weights = rng.normal(size=len(atoms))

    def features(moved):
        return weights @ feature_map.features(*evaluate(feature_map, moved))

    state, numbers = evaluate(feature_map, atoms)
    gradients = feature_map.feature_gradients(state, numbers, weights)
    expected = position_gradient(features, atoms).reshape(3 * len(atoms), -1)
    # L⁻¹ magnifies the rounding of the descriptors where representatives resemble each other
    assert_close(gradients.positions, expected, rtol=2e-6, at_least=1e-2)
    direction = rng.normal(size=feature_map.size)
    strain = strain_gradient(lambda moved: features(moved) @ direction, atoms)
    assert_close((gradients.strain @ direction).reshape(3, 3), strain, rtol=2e-6, at_least=1e-2)


def test_feature_gradients_agree_with_the_adjoint(feature_map):
    rng = np.random.default_rng(3)
    atoms = molecules()[1]
    state, numbers = evaluate(feature_map, atoms)
    weights, w = rng.normal(size=len(atoms)), rng.normal(size=feature_map.size)
    gradients = feature_map.feature_gradients(state, numbers, weights)
    pulled = pull_back(feature_map, atoms, feature_map.coefficients(w), weights)
    assert_close((gradients.positions @ w).reshape(-1, 3), pulled.positions, rtol=1e-8, at_least=1e-2)
    assert_close((gradients.strain @ w).reshape(3, 3), pulled.strain, rtol=1e-8, at_least=1e-2)


# ------------------------------------------------------------- the factor L


def test_nearly_equal_representatives_need_jitter_and_say_so(monkeypatch):
    kernel = np.array([[1.0, 1.0 + 1e-8], [1.0 + 1e-8, 1.0]])  # not quite a covariance
    monkeypatch.setattr(kernels, "gram", lambda _: kernel)
    rows = sparse.csr_array(np.ones((2, 6)))
    descriptor = SOAPKernel(r_cut=3.0, n_max=3, l_max=0).descriptor()
    with pytest.warns(NumericsWarning, match="kernel matrix of O is nearly singular"):
        assert FeatureMap(descriptor, 2.0, {8: rows}, (8,)).lower[8].shape == (2, 2)


def test_rows_that_are_not_numbers_are_refused():
    rows = sparse.csr_array(np.full((2, 6), np.nan))
    descriptor = SOAPKernel(r_cut=3.0, n_max=3, l_max=0).descriptor()
    with pytest.raises(NotPositiveDefiniteError, match="kernel matrix of O"):
        _ = FeatureMap(descriptor, 2.0, {8: rows}, (8,)).lower


def test_caches_stay_small_and_are_not_pickled(feature_map):
    state, numbers = evaluate(feature_map, molecules()[0])
    before = feature_map.features(state, numbers)
    feature_map.feature_gradients(state, numbers, np.ones(3))
    copy = pickle.loads(pickle.dumps(feature_map))
    assert not copy._projected
    np.testing.assert_array_equal(copy.features(state, numbers), before)
    for i in range(200):
        feature_map._projected[(i + 1000,)] = {}
        if len(feature_map._projected) > 64:
            del feature_map._projected[(i + 1000,)]
    feature_map.project((6, 8))
    assert len(feature_map._projected) <= 64
    np.testing.assert_array_equal(feature_map.features(state, numbers), before)


@pytest.mark.parametrize("zeta", [1, 2, 3, 4, 5, 6, 7, 8, 13, 16, 17, 2.5])
def test_powers_of_dot_products(zeta):
    from kqeq.kernels.feature_map import _power, _slope

    dots = np.random.default_rng(0).uniform(0.1, 1.0, (3, 7))
    kept = dots.copy()
    np.testing.assert_allclose(_power(dots, zeta), kept**zeta, rtol=1e-13)
    np.testing.assert_allclose(_slope(dots, zeta), zeta * kept ** (zeta - 1), rtol=1e-13)
    np.testing.assert_array_equal(dots, kept)  # not overwritten
