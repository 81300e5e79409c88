"""From labelled frames to a potential: against independent solutions, and what a fit says about itself."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from ase import Atoms
from scipy.special import erf

from checks import assert_close
from conftest import NOISE
from kqeq import KQEq, QEq, elements
from kqeq.constants import COULOMB
from kqeq.errors import InputError, KQEqWarning, LabelWarning
from kqeq.fitting.fit import CHI_DELTA, CHI_SPREAD, ENERGY_DELTA, ENERGY_SPREAD
from kqeq.fitting.rows.blocks import frame_rows
from kqeq.fitting.rows.features import FeatureStore, TrainingFrame
from kqeq.fitting.settings import DEFAULT_NOISE
from kqeq.frames.labels import read_frames
from kqeq.frames.structures import read_structure


def relabel(atoms, **labels):
    """A copy with these labels only (and the total charge)."""
    copy = Atoms(atoms.numbers, atoms.positions)
    if "total_charge" in atoms.info:
        copy.info["total_charge"] = atoms.info["total_charge"]
    for name, value in labels.items():
        (copy.arrays if name in ("forces", "hirshfeld") else copy.info)[name] = value
    return copy


def losses(model):
    return [it.loss for it in model.fit_report_.iterations]


# ------------------------------------------- against independent solutions


def gram_matrix(rows, zeta):
    """K_MM with the jitter that the package documents: 1e-10 of the mean diagonal."""
    kernel = (rows @ rows.T) ** zeta
    return kernel + 1e-10 * np.mean(np.diagonal(kernel)) * np.eye(len(rows))


def kernel_rows(feature_map, structure):
    """K_NM of all atoms with all representatives, zero between elements; (N, p)."""
    state = feature_map.descriptor.evaluate(structure)
    projected = feature_map.project(state.species)
    result = np.zeros((len(structure), feature_map.size))
    for z, columns in feature_map.columns.items():
        if z in projected:
            own = structure.numbers == z
            result[own, columns] = (state.values[own] @ projected[z].T) ** feature_map.zeta
    return result


def charge_response(structure):
    """A⁻¹ 1 / c and R by explicit inversion."""
    numbers, r = structure.numbers, structure.positions
    sigma = elements.width(numbers)
    distance = np.linalg.norm(r[:, None] - r[None], axis=2) + np.eye(len(r))
    gamma = np.sqrt(sigma[:, None] ** 2 + sigma[None] ** 2)
    matrix = COULOMB * erf(distance / (np.sqrt(2) * gamma)) / distance
    np.fill_diagonal(matrix, elements.hardness(numbers) + COULOMB / (np.sqrt(np.pi) * sigma))
    inverse = np.linalg.inv(matrix)
    a = inverse.sum(axis=1)
    return a / a.sum(), inverse - np.outer(a, a) / a.sum()


def test_a_fit_to_dipoles_is_the_ridge_solution_in_one_step(dipole_model, water_training):
    """Solved again in kernel coefficients, with dense matrices and explicit inverses:

    minimise Σ|μ − Q rᵀs + rᵀR(χ̄ + K c + 1 d)|²/σ² + cᵀK_MM c/δ² + |d|²/s².
    """
    assert len(dipole_model.fit_report_.iterations) == 1
    assert dipole_model.fit_report_.converged
    assert dipole_model.fit_report_.used == {"dipole": len(water_training)}

    feature_map = dipole_model.potential_.electronegativity.feature_maps[0]
    species = np.array(dipole_model.potential_.species)
    sigma = DEFAULT_NOISE["dipole"]
    design, target = [], []
    for atoms in water_training:
        s = read_structure(atoms)
        fukui, response = charge_response(s)
        one_hot = (s.numbers[:, None] == species[None]).astype(float)
        blocks = np.hstack([kernel_rows(feature_map, s), one_hot])
        design.append(-s.positions.T @ response @ blocks / sigma)
        base = s.total_charge * fukui - response @ elements.electronegativity(s.numbers)
        target.append((atoms.get_dipole_moment() - s.positions.T @ base) / sigma)
    design, target = np.vstack(design), np.concatenate(target)
    p = feature_map.size
    prior = np.zeros((p + len(species),) * 2)
    for z, columns in feature_map.columns.items():
        rows = feature_map.representatives[z].toarray()
        prior[columns, columns] = gram_matrix(rows, feature_map.zeta) / CHI_DELTA**2
    prior[p:, p:] = np.eye(len(species)) / CHI_SPREAD**2
    solution = np.linalg.solve(design.T @ design + prior, design.T @ target)

    residual = target - design @ solution
    loss = 0.5 * residual @ residual + 0.5 * solution @ prior @ solution
    assert dipole_model.fit_report_.loss == pytest.approx(loss, rel=1e-6)
    assert losses(dipole_model)[0] > 2 * loss
    for atoms, expected in zip(water_training, (design @ solution).reshape(-1, 3), strict=True):
        s = read_structure(atoms)
        p_ = dipole_model.potential_.predict(s, ())
        fukui, response = charge_response(s)
        base = s.total_charge * fukui - response @ elements.electronegativity(s.numbers)
        assert_close(p_.dipole, sigma * expected + s.positions.T @ base, rtol=1e-6, at_least=1e-3)
        chi = (
            elements.electronegativity(s.numbers)
            + np.hstack([kernel_rows(feature_map, s), s.numbers[:, None] == species[None]]) @ solution
        )
        assert_close(p_.electronegativity, chi, rtol=1e-5, at_least=1.0)


def test_a_short_range_fit_to_energies_is_ridge_regression(water_training, kernel):
    """Linear as well: one step, equal to Gaussian-process regression with the same kernel written the other way round.

    With y − m ~ N(0, S + Σ²), S = k_sr + k_offsets, the mean at the training points is S (S + Σ²)⁻¹ (y − m).
    """
    frames = [relabel(a, energy=a.get_potential_energy()) for a in water_training]
    model = KQEq(electronegativity=None, charges=None, short_range=kernel(3.5), noise={"energy": 0.01}).fit(
        frames
    )
    assert len(model.fit_report_.iterations) == 1
    feature_map = model.potential_.short_range.feature_maps[0]
    structures = [read_structure(a) for a in frames]
    species = np.array(model.potential_.species)
    counts = np.array([[np.sum(s.numbers == z) for z in species] for s in structures], dtype=float)
    size = counts.sum(axis=1)
    y = np.array([a.info["energy"] for a in frames])
    mean = counts @ np.linalg.lstsq(counts / size[:, None], y / size, rcond=None)[0]

    k_sums = np.array([kernel_rows(feature_map, s).sum(axis=0) for s in structures])
    k_mm = np.zeros((feature_map.size,) * 2)
    for z, columns in feature_map.columns.items():
        k_mm[columns, columns] = gram_matrix(feature_map.representatives[z].toarray(), feature_map.zeta)
    covariance = ENERGY_DELTA**2 * k_sums @ np.linalg.solve(k_mm, k_sums.T)
    covariance += ENERGY_SPREAD**2 * counts @ counts.T
    noise = 0.01 * np.sqrt(size)
    expected = mean + covariance @ np.linalg.solve(covariance + np.diag(noise**2), y - mean)
    predicted = np.array([model.potential_.predict(s, ()).energy for s in structures])
    assert_close(predicted - mean, expected - mean, rtol=1e-5, at_least=0.1)
    assert np.abs(predicted - y).max() > 1e-4


# --------------------------------------------------------------- properties


def test_a_fit_repeated_gives_the_same_model(water_model, water_training):
    again = KQEq(**water_model.get_params(deep=False)).fit(water_training)
    np.testing.assert_array_equal(again.posterior_.u, water_model.posterior_.u)
    np.testing.assert_array_equal(again.posterior_.lower, water_model.posterior_.lower)
    assert again.fit_report_.iterations == water_model.fit_report_.iterations
    assert again.potential_.energy_offsets == water_model.potential_.energy_offsets


def test_the_order_of_frames_matters_only_to_rounding_and_the_choice_of_representatives(
    water_training, kernel
):
    """With all environments as representatives nothing is left to choose."""

    def build(frames):
        with pytest.warns(KQEqWarning, match="fewer distinct environments"):
            return KQEq(kernel(3.0, n_representatives=100), None, targets=["dipole"]).fit(frames)

    first, second = build(water_training), build(water_training[::-1])
    for atoms in water_training[:4]:
        s = read_structure(atoms)
        a, b = (m.potential_.predict(s, ()).charges for m in (first, second))
        assert_close(b, a, rtol=1e-5, at_least=0.05)


@pytest.mark.parametrize("targets", [None, ["energy"], ["energy", "forces"], ["forces", "dipole", "charges"]])
def test_the_loss_never_rises(targets, water_training, kernel):
    model = KQEq(
        kernel(3.5),
        kernel(4.0, zeta=4),
        noise={**NOISE, "charges": 0.1},
        targets=targets,
        charges_key="hirshfeld",
    ).fit(water_training)
    path = losses(model)
    assert len(path) > 1
    assert all(b <= a * (1 + 1e-10) for a, b in pairwise(path))
    assert model.fit_report_.converged
    assert model.fit_report_.loss <= path[-1]
    assert model.fit_report_.loss < 0.5 * path[0]


def test_the_fit_is_at_a_minimum_of_the_loss(water_model, water_training):
    """The loss, recomputed from predictions alone, rises along random directions in parameter space."""
    solution, parameters = water_model.posterior_, water_model.posterior_.parameters
    frames = [
        TrainingFrame(s, replace(labels, stress=None, polarizability=None), i)
        for i, (s, labels) in enumerate(read_frames(water_training))
    ]
    store = FeatureStore(frames, parameters)
    noise = {**DEFAULT_NOISE, **water_model.noise}

    def loss(u):
        total = 0.5 * u @ u
        for i, frame in enumerate(frames):
            residual, _ = frame_rows(frame, store.get(i), parameters, u, noise, jacobian="none")
            total += 0.5 * residual @ residual
        return total

    best = loss(solution.u)
    assert best == pytest.approx(water_model.fit_report_.loss, rel=1e-8)
    rng = np.random.default_rng(0)
    for _ in range(10):
        # one posterior standard deviation away the loss is ½ higher, up to curvature and what convergence left
        direction = np.linalg.solve(solution.lower.T, rng.normal(size=parameters.size))
        direction /= np.linalg.norm(solution.lower.T @ direction)
        assert loss(solution.u + direction) > best
        assert loss(solution.u - direction) > best


# ------------------------------------------------------------------ weights


def test_a_weight_of_two_is_the_frame_twice(water_training, kernel):
    def build(frames, **options):
        return KQEq(kernel(3.0), None, targets=["dipole"]).fit(frames, **options)

    twice = build([*water_training, water_training[-1]])
    weights = [1.0] * (len(water_training) - 1) + [2.0]
    by_argument = build(water_training, sample_weight=weights)
    by_info = build([*water_training[:-1], _weighted(water_training[-1], 2.0)])
    for atoms in water_training:
        s = read_structure(atoms)
        expected = twice.potential_.predict(s, ()).charges
        for model in (by_argument, by_info):
            assert_close(model.potential_.predict(s, ()).charges, expected, rtol=1e-6, at_least=0.05)
    plain = build(water_training)
    s = read_structure(water_training[-1])
    difference = plain.potential_.predict(s, ()).charges - twice.potential_.predict(s, ()).charges
    assert np.abs(difference).max() > 1e-5


def test_a_weight_of_zero_is_no_label(water_training, kernel):
    """The frame still lends environments; its labels, however wrong, do not count."""
    wrong = relabel(water_training[0], dipole=[50.0, 0.0, 0.0])
    frames = [relabel(a, dipole=a.get_dipole_moment()) for a in water_training[1:]]
    model = KQEq(kernel(3.0), None).fit([*frames, _weighted(wrong, 0.0)])
    other = KQEq(kernel(3.0), None).fit([*frames, _weighted(relabel(wrong, dipole=[0.0, 0.0, 0.0]), 0.0)])
    np.testing.assert_array_equal(model.posterior_.u, other.posterior_.u)
    assert model.fit_report_.loss < 1e4


def _weighted(atoms, weight):
    copy = atoms.copy()
    copy.calc = atoms.calc
    copy.info["weight"] = weight
    return copy


# --------------------------------------------------- labels used and ignored


def test_the_report_says_what_was_used_and_ignored(water_model, water_training):
    report = water_model.fit_report_
    n = len(water_training)
    atoms = sum(len(a) for a in water_training)
    assert report.used == {"energy": n, "forces": n, "dipole": n}
    assert set(report.ignored) == {"hirshfeld"}
    assert (report.n_frames, report.n_atoms) == (n, atoms)
    assert report.n_residuals == n + 3 * atoms + 3 * n
    assert report.n_parameters == 2 * (12 + 2)
    assert report.representatives == {"electronegativity": {"H": 6, "O": 6}, "short-range": {"H": 6, "O": 6}}
    text = str(report)
    assert f"energy ({n} frames)" in text
    assert "converged" in text
    assert "H 6, O 6" in text


def test_partition_charges_are_fitted_only_on_request(water_training, kernel):
    options = {"electronegativity": kernel(3.0), "short_range": None, "charges_key": "hirshfeld"}
    ignoring = KQEq(**options).fit(_without(water_training, "energy", "forces"))
    assert "charges" not in ignoring.fit_report_.used
    assert "only on request" in ignoring.fit_report_.ignored["charges"]
    assert "labels ignored: charges" in str(ignoring.fit_report_)
    asked = KQEq(**options, targets=["dipole", "charges"]).fit(water_training)
    assert asked.fit_report_.used == {"dipole": 12, "charges": 12}
    assert set(asked.fit_report_.ignored) == {"energy", "forces"}
    assert len(asked.fit_report_.iterations) == 1
    # at the moment of the fit, too
    override = KQEq(kernel(3.0), None).fit(water_training, targets=("charges",), charges_key="hirshfeld")
    assert override.fit_report_.used == {"charges": 12}
    rms = {}
    for name, model in (("ignoring", ignoring), ("asked", asked), ("override", override)):
        errors = [
            model.potential_.predict(read_structure(a), ()).charges - a.arrays["hirshfeld"]
            for a in water_training
        ]
        rms[name] = np.sqrt(np.mean(np.concatenate(errors) ** 2))
    assert rms["override"] < 0.03 < rms["ignoring"]
    assert rms["override"] < rms["asked"] < rms["ignoring"]


def _without(frames, *names):
    keep = {"energy", "forces", "dipole"} - set(names)
    result = []
    for atoms in frames:
        copy = relabel(atoms, **{name: atoms.calc.results[name] for name in keep})
        copy.arrays["hirshfeld"] = atoms.arrays["hirshfeld"]
        result.append(copy)
    return result


def test_frames_may_carry_different_labels(water_training, kernel):
    names = [("energy",), ("forces",), ("dipole",), ("energy", "dipole")]
    frames = [
        relabel(a, **{n: a.calc.results[n] for n in names[i % 4]}) for i, a in enumerate(water_training)
    ]
    model = KQEq(kernel(3.5), kernel(4.0), noise=NOISE).fit(frames)
    assert model.fit_report_.used == {"energy": 6, "forces": 3, "dipole": 6}
    assert model.fit_report_.converged


def test_polarizabilities_are_left_for_evaluation(water_training, kernel):
    frames = [relabel(a, dipole=a.get_dipole_moment(), polarizability=np.eye(3)) for a in water_training]
    model = KQEq(kernel(3.0), None).fit(frames)
    assert model.fit_report_.used == {"dipole": 12}
    assert "evaluate" in model.fit_report_.ignored["polarizability"]
    assert "polarizability" in model.evaluate(frames)


def test_stress_of_open_systems_is_ignored(water_training, kernel):
    frames = [relabel(a, energy=a.get_potential_energy(), stress=np.zeros(6)) for a in water_training]
    model = KQEq(electronegativity=None, charges=None, short_range=kernel(3.0)).fit(frames)
    assert "periodic in three directions" in model.fit_report_.ignored["stress"]


def test_a_model_without_charges_ignores_dipoles(short_range_model):
    assert short_range_model.fit_report_.used == {"energy": 12, "forces": 12}
    assert "without charges" in short_range_model.fit_report_.ignored["dipole"]
    assert len(short_range_model.fit_report_.iterations) == 1


def test_without_energies_the_short_range_part_is_left_out(water_training, kernel):
    frames = [relabel(a, dipole=a.get_dipole_moment()) for a in water_training]
    model = KQEq(kernel(3.0), kernel(4.0)).fit(frames)
    assert model.potential_.short_range is None
    assert not model.potential_.has_energy
    assert any("short-range part is left out" in note for note in model.fit_report_.notes)
    assert "left out" in str(model.fit_report_)


# ------------------------------------------------- offsets, baseline, fields


def test_element_energies_may_be_given(water_training, kernel):
    e0 = {"H": -13.0, "O": -2045.0, "Xe": 1.0}
    model = KQEq(kernel(3.5), kernel(4.0), e0=e0, noise=NOISE).fit(water_training)
    assert model.potential_.energy_offsets == {1: -13.0, 8: -2045.0}


def test_fitted_element_energies_absorb_the_composition(water_model, water_training):
    """A shift of every energy by a multiple of its composition shifts the offsets and nothing else."""
    shift = {1: 100.0, 8: -3000.0}
    frames = []
    for atoms in water_training:
        energy = atoms.get_potential_energy() + sum(shift[z] for z in atoms.numbers)
        results = atoms.calc.results
        frames.append(relabel(atoms, energy=energy, forces=results["forces"], dipole=results["dipole"]))
    moved = KQEq(**water_model.get_params(deep=False)).fit(frames)
    for atoms in water_training[::4]:
        s = read_structure(atoms)
        a, b = water_model.potential_.predict(s, ()), moved.potential_.predict(s, ())
        assert b.energy - a.energy == pytest.approx(sum(shift[z] for z in atoms.numbers), abs=1e-5)
        assert b.energy_short_range == pytest.approx(a.energy_short_range, abs=1e-5)
        np.testing.assert_allclose(b.charges, a.charges, atol=1e-5)


def test_a_baseline_that_is_exact_leaves_nothing_to_fit(water_training, kernel):
    """Labels that are the baseline and element energies: the kernel part stays at zero."""
    from kqeq.baselines import ZBL

    baseline = ZBL(inner=0.5, outer=1.4)
    frames = []
    for atoms in water_training:
        energy, gradient = baseline.evaluate(read_structure(atoms))[:2]
        offset = sum({1: -10.0, 8: -50.0}[z] for z in atoms.numbers)
        frames.append(relabel(atoms, energy=energy + offset, forces=-gradient))
        assert np.abs(gradient).max() > 0.01
    model = KQEq(electronegativity=None, charges=None, short_range=kernel(3.0), baseline=baseline).fit(frames)
    assert np.abs(model.posterior_.u).max() < 1e-6
    assert model.potential_.energy_offsets == pytest.approx({1: -10.0, 8: -50.0})
    p = model.potential_.predict(read_structure(frames[0]))
    assert p.energy_baseline > 0.01
    assert p.energy == pytest.approx(frames[0].info["energy"])
    np.testing.assert_allclose(p.forces, frames[0].arrays["forces"], atol=1e-6)


def test_fields_enter_the_fit(water_systems, kernel):
    """Labels made by a model in fields are reproduced by a fit that sees those fields, and only then."""
    truth = KQEq(kernel(3.0), None, targets=["dipole"]).fit(water_systems["water1"][:6])
    frames, blind = [], []
    for i, atoms in enumerate(water_systems["water1"][:6]):
        field = np.array([0.3, -0.2, 0.1]) * (-1) ** i
        s = read_structure(atoms).under(0.0, field)
        p = truth.potential_.predict(s, ())
        frame = relabel(atoms, dipole=p.dipole)
        blind.append(frame.copy())
        frame.info["external_field"] = field
        frames.append(frame)
    seeing = KQEq(kernel(3.0), None, noise={"dipole": 1e-4}).fit(frames)
    without = KQEq(kernel(3.0), None, noise={"dipole": 1e-4}).fit(blind)
    assert seeing.evaluate(frames)["dipole"].rmse < 1e-4
    assert without.evaluate(blind)["dipole"].rmse > 1e-3


def test_charge_parameters_given_are_used(water_training, kernel):
    soft = KQEq(kernel(3.0), None, charges=QEq(hardness={"H": 6.0, "O": 5.0}), targets=["dipole"])
    hard = KQEq(kernel(3.0), None, charges=QEq(hardness={"H": 30.0, "O": 30.0}), targets=["dipole"])
    alpha = [
        np.trace(m.fit(water_training).potential_.predict(read_structure(water_training[0])).polarizability)
        for m in (soft, hard)
    ]
    assert alpha[0] > 2 * alpha[1] > 0


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"electronegativity": None}, "charges was given but electronegativity is None"),
        ({"charges": None}, "electronegativity was given but charges is None"),
        ({"electronegativity": None, "charges": None, "short_range": None}, "nothing to fit"),
        ({"noise": {"virial": 1.0}}, "noise for unknown label kind 'virial'"),
        ({"noise": {"energy": 0.0}}, r'noise\["energy"\] is 0\.0: expected a positive'),
        ({"noise": {"forces": -1.0}}, r'noise\["forces"\]'),
        ({"noise": {"forces": np.nan}}, r'noise\["forces"\]'),
        ({"noise": {"forces": "small"}}, r'noise\["forces"\]'),
        ({"noise": [1e-3]}, r"noise=\[0\.001\]\): expected a dict"),
        ({"targets": ["virial"]}, "targets holds 'virial'"),
        ({"targets": ["polarizability"]}, "targets holds 'polarizability'"),
        ({"targets": ["charges"]}, "charges_key="),
        ({"targets": ["energy", "charges"]}, "asks for charges, but no frame .* charges_key="),
        ({"targets": ["stress"]}, "asks for stress, but no frame carries it"),
        ({"e0": {"H": -13.0}}, "e0 lacks O"),
        ({"e0": {"H": -13.0, "Q": 1.0}}, "no element symbols"),
        ({"e0": {"H": -13.0, "O": np.nan}}, r'e0\["O"\] is nan'),
        ({"e0": {"H": -13.0, "O": "deep"}}, r'e0\["O"\]'),
        ({"e0": -13.0}, "e0 is"),
        ({"max_iterations": 0}, "max_iterations"),
        ({"max_iterations": 2.5}, "max_iterations"),
        ({"baseline": "harmonic"}, "unknown baseline"),
        ({"charges": QEq(hardness={"Qq": 1.0})}, "Qq"),
        ({"charges": QEq(width={"O": -1.0})}, "must be positive"),
        ({"charges": QEq(hardness={"O": np.inf})}, "one finite number"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_before_any_work(
    options, text, water_training, kernel, monkeypatch
):
    def work(*_, **__):
        raise AssertionError("representatives were chosen before the settings were checked")

    monkeypatch.setattr("kqeq.fitting.fit.build_feature_map", work)
    model = KQEq(kernel(3.0), kernel(3.5))
    with pytest.raises(InputError, match=text):
        model.set_params(**options).fit(water_training)
    assert not hasattr(model, "potential_")


def test_frames_in_a_field_need_charges(water_training, kernel):
    frames = [relabel(a, energy=a.get_potential_energy()) for a in water_training]
    frames[3].info["external_field"] = [0.0, 0.0, 0.1]
    with pytest.raises(InputError, match=r"frame 3 is in an external field"):
        KQEq(electronegativity=None, charges=None, short_range=kernel(3.0)).fit(frames)


def test_a_fit_that_does_not_converge_warns_and_is_usable(water_training, kernel):
    model = KQEq(kernel(3.5), kernel(4.0), max_iterations=1)
    with pytest.warns(KQEqWarning, match=r"stopped after 1 iterations without converging .* max_iterations"):
        model.fit(water_training)
    assert not model.fit_report_.converged
    assert "NOT CONVERGED" in str(model.fit_report_)
    assert np.isfinite(model.potential_.predict(read_structure(water_training[0])).energy)


def test_a_failed_fit_leaves_the_old_model_alone(water_training, kernel):
    model = KQEq(kernel(3.0), None, targets=["dipole"]).fit(water_training)
    before = model.potential_
    broken = [*water_training, relabel(water_training[0], dipole=[np.nan, 0.0, 0.0])]
    with pytest.raises(InputError):
        model.fit(broken)
    assert model.potential_ is before


def test_fractional_charges_warn_once_per_frame(water_training, kernel):
    frames = [relabel(a, dipole=a.get_dipole_moment()) for a in water_training]
    frames[0].info["total_charge"] = 0.25
    with pytest.warns(LabelWarning, match=r"0\.25 e"):
        KQEq(kernel(3.0), None).fit(frames)
