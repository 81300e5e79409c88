"""Derivatives of SOAP: against dscribe's (open), an explicit cluster (periodic) and finite differences."""

import numpy as np
import pytest
from ase import Atoms
from dscribe.descriptors import SOAP

from kqeq.backend.threads import use_threads
from kqeq.descriptors.soap.descriptor import SOAPDescriptor
from kqeq.errors import InputError
from kqeq.frames.neighbours import Pairs, find_pairs
from kqeq.frames.structures import Structure, read_structure
from systems import SYSTEMS, methanol, slab, triclinic

SMALL = SOAPDescriptor(3.5, 4, 3)


def random_like(array, seed=0):
    return np.random.default_rng(seed).normal(size=array.shape)


def dscribe_derivatives(atoms, descriptor, include=None):
    """Rows p and the dense ∂p/∂r of dscribe, normalised: (N, F), (N, K, 3, F)."""
    reference = SOAP(
        species=sorted({int(z) for z in atoms.numbers}),
        r_cut=descriptor.r_cut,
        n_max=descriptor.n_max,
        l_max=descriptor.l_max,
        sigma=descriptor.sigma,
    )
    d_raw, raw = reference.derivatives(
        atoms, centers=include, attach=True, method="analytical", return_descriptor=True
    )
    norm = np.linalg.norm(raw, axis=1)
    rows = raw / norm[:, None]
    along = np.einsum("ikaf,if->ika", d_raw, rows)
    return rows, (d_raw - along[..., None] * rows[:, None, None, :]) / norm[:, None, None, None]


@pytest.mark.parametrize("settings", [(5.0, 8, 6, 0.5), (4.0, 6, 5, 0.4), (4.0, 4, 3, 0.5)], ids=str)
def test_open_derivatives_equal_dscribe(settings):
    atoms = methanol()
    descriptor = SOAPDescriptor(*settings)
    state = descriptor.evaluate(read_structure(atoms))
    rows, dense = dscribe_derivatives(atoms, descriptor)
    gradient = random_like(rows)
    sites = np.einsum("if,ikaf->kai", gradient, dense)
    scale = np.abs(sites).max()
    assert scale > 0.1
    result = state.site_jacobian(gradient).positions.toarray()
    assert np.abs(result - sites.reshape(result.shape)).max() < 1e-9 * scale
    forces = sites.sum(axis=2)
    assert np.abs(state.adjoint(gradient).positions - forces).max() < 1e-9 * np.abs(forces).max()


def test_periodic_derivatives_equal_explicit_cluster():
    # cut the cell's surroundings out as an open cluster; atom k's images move together
    atoms = triclinic()
    descriptor = SMALL
    state = descriptor.evaluate(read_structure(atoms))
    n = len(atoms)
    repeats = np.array([[i, j, k] for i in range(-2, 3) for j in range(-2, 3) for k in range(-2, 3)])
    shifts = repeats @ atoms.cell.array
    everything = (atoms.positions[None] + shifts[:, None]).reshape(-1, 3)
    owner = np.tile(np.arange(n), len(shifts))
    distance = np.linalg.norm(everything[:, None] - atoms.positions[None], axis=2).min(axis=1)
    home = np.repeat((repeats == 0).all(axis=1), n)
    keep = np.concatenate(
        [np.flatnonzero(home), np.flatnonzero(~home & (distance < descriptor.cutoff + 0.1))]
    )
    cluster = Atoms(atoms.numbers[owner[keep]], positions=everything[keep])
    rows, dense = dscribe_derivatives(cluster, descriptor, include=list(range(n)))
    np.testing.assert_allclose(state.values, rows, atol=1e-10)
    gradient = random_like(rows)
    cluster_forces = np.einsum("if,ikaf->ka", gradient, dense)
    forces = np.zeros((n, 3))
    np.add.at(forces, owner[keep], cluster_forces)
    result = state.adjoint(gradient)
    assert np.abs(forces).max() > 0.1
    assert np.abs(result.positions - forces).max() < 1e-9 * np.abs(forces).max()
    # rigid forces: translation of the whole crystal changes nothing
    np.testing.assert_allclose(result.positions.sum(axis=0), 0, atol=1e-11)
    # strain derivative from the same cluster: d/dε of r → (1 + ε) r is Σ r ⊗ ∂E/∂r
    strain = np.einsum("ka,kb->ab", cluster.positions, cluster_forces)
    assert np.abs(result.strain - strain).max() < 1e-9 * np.abs(strain).max()


def strained(structure, strain, pairs=None):
    """A strained copy, and its pairs from the fixed list of the original."""
    move = np.eye(3) + strain
    new = Structure(structure.numbers, structure.positions @ move.T, structure.cell @ move.T, structure.pbc)
    if pairs is None:
        return new
    return new, Pairs(pairs.cutoff, pairs.indices, pairs.vectors @ move.T)


@pytest.mark.parametrize("make", [triclinic, slab, methanol], ids=lambda f: f.__name__)
def test_virial_by_finite_strain(make):
    structure = read_structure(make())
    state = SMALL.evaluate(structure)
    gradient = random_like(state.values)
    analytic = state.adjoint(gradient).strain
    # a fixed pair list, well inside the cutoff: the sharp cutoff itself has no derivative
    pairs = find_pairs(structure, SMALL.cutoff)
    h = 1e-5
    for a, b in ((0, 0), (1, 1), (2, 0), (0, 2), (1, 2)):
        step = np.zeros((3, 3))
        step[b, a] = h  # r_b += h r_a: row a of the strain derivative is the component of r
        total = [
            float(np.sum(gradient * evaluate_fixed(structure, sign * step, pairs).values)) for sign in (1, -1)
        ]
        numeric = (total[0] - total[1]) / (2 * h)
        assert abs(analytic[a, b] - numeric) < 1e-6 * np.abs(analytic).max()
    assert np.abs(analytic).max() > 0.1


def evaluate_fixed(structure, strain, pairs):
    """Evaluate a strained structure with exactly the pairs that lay within the cutoff before."""
    inside = np.linalg.norm(pairs.vectors, axis=1) <= SMALL.cutoff
    new, moved = strained(structure, strain, pairs)
    lengths = np.linalg.norm(moved.vectors, axis=1)
    assert ((lengths <= SMALL.cutoff) == inside).all(), "a pair crossed the cutoff; choose another geometry"
    return SMALL.evaluate(new, pairs=moved)


def displaced(structure, atom, axis, h):
    positions = structure.positions.copy()
    positions[atom, axis] += h
    return Structure(structure.numbers, positions, structure.cell, structure.pbc)


@pytest.mark.parametrize("make", [methanol, triclinic, SYSTEMS["slab"]], ids=["open", "periodic", "slab"])
def test_site_jacobian_by_finite_differences(make):
    structure = read_structure(make())
    state = SMALL.evaluate(structure)
    gradient = random_like(state.values)
    jacobian = state.site_jacobian(gradient)
    assert jacobian.positions.shape == (3 * len(structure), len(structure))
    assert jacobian.positions.has_canonical_format
    dense = jacobian.positions.toarray()
    h = 1e-4
    for atom, axis in ((0, 0), (1, 2), (len(structure) - 1, 1)):
        plus = SMALL.evaluate(displaced(structure, atom, axis, h)).values
        minus = SMALL.evaluate(displaced(structure, atom, axis, -h)).values
        numeric = np.sum(gradient * (plus - minus), axis=1) / (2 * h)
        assert np.abs(numeric).max() > 0.01
        np.testing.assert_allclose(dense[3 * atom + axis], numeric, atol=2e-6 * np.abs(dense).max())
    both = state.adjoint(gradient)
    np.testing.assert_allclose(dense.sum(axis=1).reshape(-1, 3), both.positions, atol=1e-11)
    np.testing.assert_allclose(jacobian.strain.sum(axis=1).reshape(3, 3), both.strain, atol=1e-11)


@pytest.mark.parametrize("make", [methanol, triclinic], ids=["open", "periodic"])
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("order", ["_pairs_first", "_centre_first"])
def test_feature_gradients_equal_single_adjoints(make, prepared, order, monkeypatch):
    # M adjoints one by one are the definition; tiny chunks make all the seams show
    from kqeq.descriptors.soap.host import features as soap_features

    monkeypatch.setattr(soap_features, "_accumulate", getattr(soap_features, order))
    monkeypatch.setattr(soap_features, "CHUNK_BYTES", 200_000)
    monkeypatch.setattr(soap_features, "DIRECTIONS_BYTES", 100_000)
    structure = read_structure(make())
    state = SMALL.evaluate(structure)
    rng = np.random.default_rng(5)
    m = 37
    centres = np.array([4, 1, 3])
    directions = rng.normal(size=(m, state.values.shape[1]))
    coefficients = rng.normal(size=(len(centres), m))
    given = SMALL.prepare_directions(state.species, directions) if prepared else directions
    result = SMALL.feature_gradients(state, centres, given, coefficients)
    for k in range(m):
        gradient = np.zeros_like(state.values)
        gradient[centres] = coefficients[:, k, None] * directions[k]
        single = state.adjoint(gradient)
        scale = np.abs(single.positions).max()
        assert scale > 0.01
        np.testing.assert_allclose(
            result.positions[:, k].reshape(-1, 3), single.positions, atol=1e-11 * scale
        )
        np.testing.assert_allclose(
            result.strain[:, k].reshape(3, 3), single.strain, atol=1e-11 * np.abs(single.strain).max()
        )


@pytest.mark.parametrize("make", [methanol, triclinic], ids=["open", "periodic"])
@pytest.mark.parametrize("order", ["_pairs_first", "_centre_first"])
def test_gradients_of_every_centre_for_itself(make, order, monkeypatch):
    from kqeq.descriptors.soap.host import features as soap_features

    monkeypatch.setattr(soap_features, "_accumulate", getattr(soap_features, order))
    monkeypatch.setattr(soap_features, "CHUNK_BYTES", 200_000)
    structure = read_structure(make())
    state = SMALL.evaluate(structure)
    rng = np.random.default_rng(6)
    centres = np.array([4, 1, 3])
    directions = rng.normal(size=(11, state.values.shape[1]))
    coefficients = rng.normal(size=(len(centres), 11))
    prepared = SMALL.prepare_directions(state.species, directions)
    found = soap_features.gradients_by_centre(state, centres, prepared, coefficients)
    assert found.shape == (3, 3 * len(structure), 11)
    for own, centre, row in zip(found, centres, coefficients, strict=True):
        expected = SMALL.feature_gradients(state, np.array([centre]), prepared, row[None, :]).positions
        assert np.abs(expected).max() > 0.01
        np.testing.assert_allclose(own, expected, atol=1e-12 * np.abs(expected).max())
    none = soap_features.gradients_by_centre(state, centres[:0], prepared, coefficients[:0])
    assert none.shape == (0, 3 * len(structure), 11)
    with pytest.raises(InputError, match="a row for each centre"):
        soap_features.gradients_by_centre(state, centres, prepared, coefficients[:2])


def test_feature_gradients_by_finite_differences():
    # kernel features f_m = Σ_i (p_i · d_m)^ζ, the use they are made for
    structure = read_structure(methanol())
    state = SMALL.evaluate(structure)
    zeta = 3
    centres = np.flatnonzero(structure.numbers == 1)
    directions = state.values[centres][:3] + 0.01 * random_like(state.values[:3])
    similarity = state.values[centres] @ directions.T
    result = SMALL.feature_gradients(state, centres, directions, zeta * similarity ** (zeta - 1))
    h = 1e-4
    for atom, axis in ((0, 1), (2, 0), (5, 2)):
        values = [
            (
                (SMALL.evaluate(displaced(structure, atom, axis, s * h)).values[centres] @ directions.T)
                ** zeta
            ).sum(0)
            for s in (1, -1)
        ]
        numeric = (values[0] - values[1]) / (2 * h)
        assert np.abs(numeric).max() > 1e-3
        np.testing.assert_allclose(result.positions[3 * atom + axis], numeric, atol=1e-7)


def test_feature_gradients_of_nothing():
    state = SMALL.evaluate(read_structure(methanol()))
    f = state.values.shape[1]
    none = SMALL.feature_gradients(state, np.zeros(0, int), np.ones((2, f)), np.zeros((0, 2)))
    assert none.positions.shape == (18, 2)
    assert not none.positions.any()
    none = SMALL.feature_gradients(state, np.array([0]), np.ones((0, f)), np.zeros((1, 0)))
    assert none.positions.shape == (18, 0)
    assert none.strain.shape == (9, 0)


def test_isolated_atom_has_no_gradient():
    state = SMALL.evaluate(read_structure(Atoms("He")))
    gradient = random_like(state.values)
    assert not state.adjoint(gradient).positions.any()
    assert not state.adjoint(gradient).strain.any()
    assert not state.site_jacobian(gradient).positions.toarray().any()
    features = SMALL.feature_gradients(state, np.array([0]), gradient, np.ones((1, 1)))
    assert not features.positions.any()


def test_gradient_along_the_row_vanishes():
    # rows have norm one, so their own direction has no derivative
    state = SMALL.evaluate(read_structure(methanol()))
    np.testing.assert_allclose(state.adjoint(state.values).positions, 0, atol=1e-12)
    assert np.abs(state.adjoint(random_like(state.values)).positions).max() > 0.1


def test_gradient_rotates_with_the_structure():
    atoms = methanol()
    state = SMALL.evaluate(read_structure(atoms))
    gradient = random_like(state.values)
    reference = state.adjoint(gradient)
    turned = atoms.copy()
    turned.rotate(40, "x")
    turned.rotate(25, "z")
    angles = np.linalg.lstsq(atoms.positions, turned.positions, rcond=None)[0]
    result = SMALL.evaluate(read_structure(turned)).adjoint(gradient)
    np.testing.assert_allclose(result.positions, reference.positions @ angles, atol=1e-10)
    np.testing.assert_allclose(result.strain, angles.T @ reference.strain @ angles, atol=1e-10)
    # no torque on a molecule: the strain derivative is symmetric for invariant functions
    np.testing.assert_allclose(reference.strain, reference.strain.T, atol=1e-11)


def test_threads_do_not_change_a_bit(monkeypatch):
    from kqeq.descriptors.soap.host import adjoint as soap_adjoint

    monkeypatch.setattr(soap_adjoint, "SMALLEST_THREADED", 0)
    structure = read_structure(triclinic().repeat((2, 2, 1)))
    results = []
    for threads in (1, 2, 3):
        with use_threads(threads):
            state = SMALL.evaluate(structure)
            gradient = random_like(state.values)
            centres = np.flatnonzero(structure.numbers == 8)
            features = SMALL.feature_gradients(state, centres, gradient[:5], gradient[: len(centres), :5])
            adjoint = state.adjoint(gradient)
            results.append((state.values, adjoint.positions, adjoint.strain, features.positions))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert np.array_equal(a, b)


def test_wrong_shapes_are_refused():
    state = SMALL.evaluate(read_structure(methanol()))
    n, f = state.values.shape
    with pytest.raises(InputError, match="shape"):
        state.adjoint(np.zeros((n, f + 1)))
    with pytest.raises(InputError, match="shape"):
        state.site_jacobian(np.zeros((n - 1, f)))
    with pytest.raises(InputError, match="directions"):
        SMALL.feature_gradients(state, np.array([0]), np.zeros((2, f + 1)), np.zeros((1, 2)))
    with pytest.raises(InputError, match="coefficients"):
        SMALL.feature_gradients(state, np.array([0]), np.zeros((2, f)), np.zeros((2, 2)))
    with pytest.raises(InputError, match="centres"):
        SMALL.feature_gradients(state, np.array([n]), np.zeros((2, f)), np.zeros((1, 2)))


def pair_at(distance, smooth):
    """A small cluster with one more atom at ``distance`` from its first, and the state there."""
    descriptor = SOAPDescriptor(4.0, 6, 5, smooth=smooth)
    positions = np.array([[0.0, 0, 0], [0.6, 0.76, 0], [0.0, 1.5, 0], [0, 0, -distance]])
    return descriptor.evaluate(Structure(np.array([8, 1, 1, 8]), positions))


def test_switch_removes_the_jump_that_plain_dscribe_has():
    gradient = random_like(pair_at(5.0, "none").values)
    for smooth, crossing in (
        ("none", SOAPDescriptor(4.0, 6, 5)),
        ("switch", SOAPDescriptor(4.0, 6, 5, smooth="switch")),
    ):
        before, after = (pair_at(crossing.cutoff + h, smooth) for h in (-1e-7, 1e-7))
        jump = np.linalg.norm(before.values - after.values, axis=1).max()
        force_jump = np.abs(before.adjoint(gradient).positions - after.adjoint(gradient).positions).max()
        if smooth == "none":
            assert 1e-5 < jump < 1e-3
            assert force_jump > 1e-4
        else:
            assert jump < 1e-12
            assert force_jump < 1e-10


def test_switch_is_twice_differentiable_where_it_begins_and_ends():
    tables = SOAPDescriptor(4.0, 6, 5, smooth="switch").tables
    gradient = random_like(pair_at(5.0, "switch").values)

    def slope(distance):
        return pair_at(distance, "switch").adjoint(gradient).positions[3, 2]

    def mismatch(edge, h):
        left = (slope(edge - h) - slope(edge - 3 * h)) / (2 * h)
        right = (slope(edge + 3 * h) - slope(edge + h)) / (2 * h)
        return abs(left - right)

    for edge in (tables.inner, tables.cutoff):
        # a jump of the second derivative would not shrink with h
        assert 0 < mismatch(edge, 1e-3) < 1e-3
        assert mismatch(edge, 1e-4) < 0.2 * mismatch(edge, 1e-3)


def test_switch_derivatives_by_finite_differences():
    # the last atom lies in the switching region of the first
    descriptor = SOAPDescriptor(4.0, 6, 5, smooth="switch")
    tables = descriptor.tables
    distance = 0.4 * tables.inner + 0.6 * tables.cutoff
    state = pair_at(distance, "switch")
    gradient = random_like(state.values)
    h = 1e-4
    numeric = [float(np.sum(gradient * pair_at(distance + s * h, "switch").values)) for s in (1, -1)]
    slope = -(numeric[0] - numeric[1]) / (2 * h)  # the atom lies along −z
    assert abs(slope) > 1e-5
    np.testing.assert_allclose(state.adjoint(gradient).positions[3, 2], slope, rtol=1e-6)
    directions = gradient[:2]
    features = descriptor.feature_gradients(state, np.array([0]), directions, np.ones((1, 2)))
    for m in range(2):
        single = np.zeros_like(gradient)
        single[0] = directions[m]
        np.testing.assert_allclose(
            features.positions[:, m].reshape(-1, 3), state.adjoint(single).positions, atol=1e-13
        )


def test_switch_stays_close_to_dscribe():
    # the deviation that the docstring of SOAPDescriptor states is of this size
    structure = read_structure(triclinic())
    plain, smooth = SOAPDescriptor(4.0, 4, 3), SOAPDescriptor(4.0, 4, 3, smooth="switch")
    assert smooth.cutoff > plain.cutoff
    deviation = np.linalg.norm(plain.evaluate(structure).values - smooth.evaluate(structure).values, axis=1)
    assert 0 < deviation.max() < 1e-4
