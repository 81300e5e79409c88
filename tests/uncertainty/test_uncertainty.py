"""Standard deviations of predictions: against the exact Gaussian process, finite differences and common sense."""

import numpy as np
import pytest
from ase import Atoms
from scipy.special import erf

from checks import assert_close, central_difference, rotation
from checks import prediction as predicted
from conftest import small_kernel
from kqeq import ACKS2, KQEq, elements, load
from kqeq.constants import COULOMB
from kqeq.errors import UnsupportedError
from kqeq.fitting.fit import CHI_DELTA, CHI_SPREAD
from kqeq.fitting.metrics import compare
from kqeq.fitting.rows.blocks import BLOCKS, Linearisation
from kqeq.fitting.rows.features import TrainingFrame, compute_features
from kqeq.fitting.settings import DEFAULT_NOISE
from kqeq.frames.labels import Labels
from kqeq.frames.structures import read_structure

pytestmark = pytest.mark.filterwarnings("ignore::kqeq.errors.RepresentativesWarning")

STDS = ("energy_std", "forces_std", "charges_std", "dipole_std")


def bare(atoms, **info):
    copy = Atoms(atoms.numbers, atoms.positions)
    copy.info.update(info or {"total_charge": atoms.info.get("total_charge", 0.0)})
    return copy


# ------------------------------------------- the exact Gaussian process


def charge_response(structure):
    """R of plain QEq by explicit inversion."""
    numbers, r = structure.numbers, structure.positions
    sigma = elements.width(numbers)
    distance = np.linalg.norm(r[:, None] - r[None], axis=2) + np.eye(len(r))
    gamma = np.sqrt(sigma[:, None] ** 2 + sigma[None] ** 2)
    matrix = COULOMB * erf(distance / (np.sqrt(2) * gamma)) / distance
    np.fill_diagonal(matrix, elements.hardness(numbers) + COULOMB / (np.sqrt(np.pi) * sigma))
    inverse = np.linalg.inv(matrix)
    a = inverse.sum(axis=1)
    return inverse - np.outer(a, a) / a.sum()


def chi_covariance(descriptor, zeta, first, second):
    """Prior covariance of electronegativities: kernel and offset of the element."""
    rows = [descriptor.evaluate(s).values for s in (first, second)]
    same = first.numbers[:, None] == second.numbers[None, :]
    return same * (CHI_DELTA**2 * (rows[0] @ rows[1].T) ** zeta + CHI_SPREAD**2)


def test_equals_the_exact_gaussian_process_when_all_environments_are_representatives(water_training):
    """var = D** − D*n (Dnn + σ²)⁻¹ Dn*, with D = m K mᵀ the prior covariance of dipoles or charges."""
    kernel = small_kernel(3.5, n_representatives=1000)
    model = KQEq(kernel, short_range=None, targets=["dipole"]).fit(water_training)
    train = [read_structure(atoms) for atoms in water_training]
    atoms = bare(water_training[1])
    atoms.positions += np.random.default_rng(1).normal(0.0, 0.25, atoms.positions.shape)
    new = read_structure(atoms)
    descriptor = kernel.descriptor()

    def covariance(a, b):
        return chi_covariance(descriptor, kernel.zeta, a, b)

    dipole = [s.positions.T @ charge_response(s) for s in train]
    known = np.block(
        [
            [m @ covariance(s, t) @ n.T for t, n in zip(train, dipole, strict=True)]
            for s, m in zip(train, dipole, strict=True)
        ]
    )
    known += DEFAULT_NOISE["dipole"] ** 2 * np.eye(len(known))
    prediction = model.predict(atoms, uncertainty=True)
    response = charge_response(new)
    for std, m in ((prediction.dipole_std, new.positions.T @ response), (prediction.charges_std, response)):
        across = np.hstack([m @ covariance(new, s) @ n.T for s, n in zip(train, dipole, strict=True)])
        exact = m @ covariance(new, new) @ m.T - across @ np.linalg.solve(known, across.T)
        assert_close(std**2, np.diagonal(exact), rtol=1e-5, at_least=1e-5)


def test_the_variance_of_an_energy_is_that_of_the_sum_over_sites(short_range_model, water_training):
    """A short-range energy is a sum over atoms: prior Σ_ij k, less what 6 representatives per element explain."""
    posterior = short_range_model.posterior_
    (part,) = posterior.parameters.short_range.kernels
    atoms = bare(water_training[4])
    structure = read_structure(atoms)
    rows = part.feature_map.descriptor.evaluate(structure).values
    same = structure.numbers[:, None] == structure.numbers[None, :]
    prior = np.sum(same * (rows @ rows.T) ** part.feature_map.zeta)
    features = compute_features(
        TrainingFrame(structure, Labels(energy=0.0), 0), posterior.parameters
    ).short_range
    missed = part.delta**2 * prior - np.sum(features[: part.size] ** 2)
    cov = np.linalg.inv(posterior.lower @ posterior.lower.T)
    std = short_range_model.predict(atoms, properties=["energy"], uncertainty=True).energy_std
    assert missed > 1e-3
    assert std**2 == pytest.approx(features @ cov @ features + missed, rel=1e-8)


@pytest.mark.parametrize("which", ["water_model", "short_range_model"])
def test_forces_are_derivatives_of_the_energy_in_their_uncertainty_too(which, request, water_systems):
    """var F_k = ∂²/∂r_k∂r'_k cov(E(r), E(r')), for any first-order change δE = δ Σ q_i(r) g(p_i(r))."""
    model = request.getfixturevalue(which)
    posterior = model.posterior_
    parameters = posterior.parameters
    atoms = bare(water_systems["water2"][5])
    atoms.positions += np.random.default_rng(2).normal(0.0, 0.1, atoms.positions.shape)
    std = model.predict(atoms, uncertainty=True).forces_std
    cov = np.linalg.inv(posterior.lower @ posterior.lower.T)
    sums = [p for p in (parameters.electronegativity, parameters.short_range) if p is not None]
    parts = [p.kernels[0] for p in sums]

    def view(index, t):
        copy = atoms.copy()
        copy.positions[index] += t
        structure = read_structure(copy)
        frame = TrainingFrame(structure, Labels(energy=0.0), 0)
        line = Linearisation(frame, compute_features(frame, parameters), parameters, posterior.u)
        weights = {id(parameters.short_range): np.ones(len(atoms))}
        if parameters.electronegativity is not None:
            weights[id(parameters.electronegativity)] = line.state.electronegativity_gradient()
        rows = BLOCKS["energy"](line, True)[1][0]
        values = [p.feature_map.descriptor.evaluate(structure).values for p in parts]
        return rows, values, [weights[id(p)] for p in sums]

    same = atoms.numbers[:, None] == atoms.numbers[None, :]
    h = 4e-3
    for index in [(0, 0), (1, 2), (4, 1)]:
        nodes = {k: view(index, k * h) for k in (-3, -2, -1, 1, 2, 3)}
        jacobian = central_difference(lambda t, nodes=nodes: nodes[round(t / h)][0], h)
        expected = jacobian @ cov @ jacobian
        for n, part in enumerate(parts):

            def covariance(s, t, n=n, part=part, nodes=nodes):
                a, b = nodes[round(s / h)], nodes[round(t / h)]
                kernel = same * (a[1][n] @ b[1][n].T) ** part.feature_map.zeta
                return part.delta**2 * a[2][n] @ kernel @ b[2][n]

            prior = central_difference(
                lambda s, covariance=covariance: central_difference(lambda t: covariance(s, t), h), h
            )
            kernel_rows = jacobian[part.columns]
            missed = prior - kernel_rows @ kernel_rows
            assert missed > 1e-3 * expected
            expected += missed
        assert std[index] ** 2 == pytest.approx(expected, rel=1e-5)


# ------------------------------------------- common sense


def test_novel_environments_are_uncertain(water_training):
    """A molecule torn far out of shape has few features among the representatives; the remainder must see it."""
    model = KQEq(small_kernel(3.5), small_kernel(4.0, zeta=4)).fit(water_training)
    known = bare(water_training[0])
    novel = known.copy()
    novel.positions[1:] = novel.positions[0] + 1.9 * (novel.positions[1:] - novel.positions[0])
    near, far = (model.predict(a, uncertainty=True) for a in (known, novel))
    assert far.energy_std > 3 * near.energy_std
    assert far.dipole_std.mean() > 3 * near.dipole_std.mean()


def test_more_data_leave_less_uncertainty(water_systems):
    """With the representatives of the larger fit, a subset of its labels cannot determine more."""
    frames = water_systems["water2"]
    kernel = small_kernel(3.5, n_representatives=1000)
    stds = []
    for n in (2, 5, 8):
        model = KQEq(kernel, short_range=None, targets=["dipole"]).fit(frames[:n])
        stds.append(model.predict(bare(frames[9]), uncertainty=True).dipole_std)
    assert (stds[1] < stds[0]).all() and (stds[2] < stds[1]).all()


def test_does_not_depend_on_orientation_and_order(water_model, water_training):
    atoms = bare(water_training[4])
    turned = atoms.copy()
    order = np.random.default_rng(0).permutation(len(atoms))
    turned.positions = turned.positions @ rotation(3).T + [1.0, -2.0, 0.5]
    turned = turned[order]
    first, second = (water_model.predict(a, uncertainty=True) for a in (atoms, turned))
    assert second.energy_std == pytest.approx(first.energy_std, rel=1e-6)
    np.testing.assert_allclose(second.charges_std, first.charges_std[order], rtol=1e-5)
    # components of a vector mix; the sum of their variances does not
    norms = [np.linalg.norm(p.forces_std, axis=1) for p in (first, second)]
    np.testing.assert_allclose(norms[1], norms[0][order], rtol=1e-5)


# ------------------------------------------- on request, stored, reported


def test_only_on_request(water_model, water_training):
    prediction = water_model.predict(water_training[0])
    assert all(getattr(prediction, name) is None for name in STDS)
    prediction = water_model.predict(water_training[0], properties=["energy"], uncertainty=True)
    assert prediction.forces_std is None
    assert prediction.energy_std > 0
    many = water_model.predict(water_training[:2], uncertainty=True)
    n = len(water_training[1])
    assert many[1].forces_std.shape == (n, 3)
    assert many[1].charges_std.shape == (n,)
    assert many[1].dipole_std.shape == (3,)


def test_models_without_energies_or_charges(dipole_model, short_range_model, water_training):
    prediction = dipole_model.predict(water_training[0], uncertainty=True)
    assert prediction.energy_std is None and prediction.forces_std is None
    assert (prediction.dipole_std > 0).all()
    prediction = short_range_model.predict(water_training[0], uncertainty=True)
    assert prediction.charges_std is None and prediction.dipole_std is None
    assert prediction.energy_std > 0


def test_total_charge_of_a_cluster_is_certain(dipole_model, water_training):
    """Charges are uncertain, their sum is not: R 1 = 0.  A single atom has no freedom at all."""
    lone = Atoms("O", [[0.0, 0, 0]])
    np.testing.assert_allclose(dipole_model.predict(lone, uncertainty=True).charges_std, 0.0, atol=1e-7)


def test_survives_a_file_with_its_posterior(water_model, water_training, tmp_path):
    water_model.save(tmp_path / "full.kqeq", posterior=True)
    water_model.save(tmp_path / "lean.kqeq")
    loaded, lean = load(tmp_path / "full.kqeq"), load(tmp_path / "lean.kqeq")
    first, second = (m.predict(water_training[3], uncertainty=True) for m in (water_model, loaded))
    for name in STDS:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    loaded.save(tmp_path / "again.kqeq", posterior=True)
    assert (
        load(tmp_path / "again.kqeq").predict(water_training[3], uncertainty=True).energy_std
        == first.energy_std
    )
    assert lean.predict(water_training[3]).energy == first.energy
    with pytest.raises(UnsupportedError, match="posterior=True"):
        lean.predict(water_training[3], uncertainty=True)
    with pytest.raises(UnsupportedError, match="posterior=True"):
        lean.evaluate(water_training, calibration=True)


def test_other_charge_models(water_training):
    model = KQEq(small_kernel(3.5), small_kernel(4.0, zeta=4), charges=ACKS2()).fit(water_training)
    prediction = model.predict(water_training[5], uncertainty=True)
    assert prediction.energy_std > 0 and (prediction.forces_std > 0).all()


def test_periodic_cells_have_energies_and_forces_with_uncertainty():
    rng = np.random.default_rng(3)
    frames = []
    for _ in range(4):
        atoms = Atoms("NaCl", [[0.1, 0, 0], [2.8, 0.1, 0]], cell=[5.6, 3.9, 3.9], pbc=True)
        atoms.positions += rng.normal(0.0, 0.1, (2, 3))
        atoms.info["energy"] = float(rng.normal())
        frames.append(atoms)
    model = KQEq(small_kernel(3.0), small_kernel(3.0), noise={"energy": 0.1}).fit(frames)
    prediction = model.predict(frames[0], uncertainty=True)
    assert prediction.dipole_std is None
    assert prediction.energy_std > 0 and (prediction.forces_std > 0).any()


def test_calibration_counts_errors_within_intervals():
    """Errors of 0.5, 1.5 and 3 standard deviations, half of the variance from the noise of the label."""
    structure = read_structure(Atoms("H"))
    sigma = 0.2
    std = np.full(3, sigma)
    error = np.array([0.5, 1.5, 3.0]) * np.sqrt(2) * sigma
    items = [(structure, Labels(dipole=error), predicted(dipole=np.zeros(3), dipole_std=std))]
    result = compare(items, {}, {"dipole": sigma})
    found = result.calibration["dipole"]
    assert (found.within_68, found.within_95, found.n) == (pytest.approx(1 / 3), pytest.approx(2 / 3), 3)
    assert found.mean_z2 == pytest.approx((0.25 + 2.25 + 9.0) / 3)
    assert "calibration" in str(result)
    assert result.to_dict()["dipole"]["calibration"]["mean_z2"] == found.mean_z2
    assert compare(items, {}).calibration == {}


def test_energies_are_calibrated_per_atom(water_model, water_training):
    result = water_model.evaluate(water_training, calibration=True)
    assert set(result.calibration) == {"energy", "forces", "dipole"}
    expected = []
    for atoms in water_training:
        p = water_model.predict(atoms, properties=["energy"], uncertainty=True)
        noise = water_model.posterior_.noise["energy"] * np.sqrt(len(atoms))
        expected.append((p.energy - atoms.get_potential_energy()) ** 2 / (p.energy_std**2 + noise**2))
    assert result.calibration["energy"].mean_z2 == pytest.approx(np.mean(expected), rel=1e-8)
