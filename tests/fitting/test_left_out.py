"""Hyperparameters by left-out frames: against fits without those frames, and what the default fit makes of them."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from sklearn.base import clone

import kqeq
from conftest import NOISE, small_kernel
from kqeq import KQEq
from kqeq.backend import linalg
from kqeq.errors import InputError, KQEqWarning, NotPositiveDefiniteError
from kqeq.fitting.evidence import left_out as module
from kqeq.fitting.evidence.evidence import DualEvidence, Evidence
from kqeq.fitting.evidence.left_out import collect, posterior, search, unearned
from kqeq.fitting.minimisation import step_from, steps_without
from kqeq.fitting.problem import FitProblem
from kqeq.fitting.rows.blocks import deviation
from kqeq.fitting.rows.features import TrainingFrame
from kqeq.frames.labels import read_frames


def kernels(count=6):
    return [
        small_kernel(3.5, zeta=4, n_representatives=count),
        small_kernel(2.5, sigma=0.3, n_representatives=count),
    ]


@pytest.fixture(scope="module")
def short_range(water_training):
    """A linear model, its frames as they were fitted, and the problem."""
    model = KQEq(None, kernels(), None, noise=NOISE, targets=["energy", "forces"]).fit(water_training)
    return model, problem_of(model, water_training)


def problem_of(model, frames, skip=()):
    from kqeq.fitting.rows.targets import choose_labels

    settings = model._settings(model.targets)
    pairs = list(read_frames(frames, model._keys(None)))
    chosen = [f for f in choose_labels(pairs, settings)[0] if f.index not in skip]
    return FitProblem(chosen, model.posterior_.parameters, model.posterior_.noise, linear=True)


THETA = {
    "energy": 0.3,
    "forces": -0.4,
    "short_range 1 delta": 0.5,
    "short_range 2 delta": -0.7,
    "short_range spread": 0.2,
}


@pytest.mark.parametrize("kind", ["primal", "dual"])
def test_closed_form_equals_fits_without_the_frame(kind, short_range):
    """Errors and log density of each frame from a fit to all others, at other noises and spreads than accumulated."""
    model, problem = short_range
    if kind == "dual":  # fewer labels than parameters
        problem = FitProblem(
            sorted(problem.frames, key=lambda frame: frame.n_labels)[:2],
            problem.parameters,
            problem.noise,
            linear=True,
        )
    found = collect(problem, np.zeros(model.posterior_.parameters.size))
    assert isinstance(found.evidence, DualEvidence if kind == "dual" else Evidence)
    theta = np.array(list(THETA.values()))
    score = found.evaluate(theta)

    parameters, noise = module.rescale(model.posterior_.parameters, model.posterior_.noise, found, theta)
    moved = FitProblem(problem.frames, parameters, noise, linear=True)
    rows = list(moved.rows(np.zeros(parameters.size), jacobian="full"))
    density, squares, counts = 0.0, {"energy": 0.0, "forces": 0.0}, {"energy": 0, "forces": 0}
    for i, frame in enumerate(moved.frames):
        others = [r for j, r in enumerate(rows) if j != i]
        jacobian = np.concatenate([r[1] for r in others])
        precision = jacobian.T @ jacobian + np.eye(parameters.size)
        u = np.linalg.solve(precision, jacobian.T @ np.concatenate([r[0] for r in others]))
        residual, own = rows[i]
        error = residual - own @ u
        covariance = np.eye(len(error)) + own @ np.linalg.solve(precision, own.T)
        sigmas = np.concatenate(
            [[deviation(frame, "energy", noise)], np.full(3 * len(frame.structure), noise["forces"])]
        )
        density -= 0.5 * (error @ np.linalg.solve(covariance, error) + np.linalg.slogdet(covariance)[1])
        density -= np.log(sigmas).sum() - math.log(len(frame.structure))
        squares["energy"] += (error[0] * sigmas[0] / len(frame.structure)) ** 2
        squares["forces"] += np.sum((error[1:] * sigmas[1:]) ** 2)
        counts["energy"] += 1
        counts["forces"] += 3 * len(frame.structure)
    assert score.density == pytest.approx(density, rel=1e-6)
    for label, square in squares.items():
        assert score.errors[label] == pytest.approx(math.sqrt(square / counts[label]), rel=1e-5)
        assert score.errors[label] > 1e-3
    u = found.parameters(theta)
    jacobian = np.concatenate([r[1] for r in rows])
    expected = np.linalg.solve(
        jacobian.T @ jacobian + np.eye(parameters.size), jacobian.T @ np.concatenate([r[0] for r in rows])
    )
    np.testing.assert_allclose(u, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


def test_rounding_does_not_end_a_search():
    """Columns of energies of several charge states: 1e17 times the prior, and nearly the same."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        shared = rng.normal(size=(60, 1)) * 3e8
        jacobian = shared + rng.normal(size=(60, 30)) * 1e-3
        sums = SimpleNamespace(gram=jacobian.T @ jacobian, rhs=jacobian.T @ (shared[:, 0] * 2.0))
        evidence = SimpleNamespace(
            names=("energy",), kinds={"energy": sums}, scales=lambda theta: np.ones(30)
        )
        try:
            linalg.factorise(sums.gram + np.eye(30))
        except NotPositiveDefiniteError:
            break
    else:
        pytest.fail("no such matrix came up")
    _, u, _ = posterior(evidence, np.zeros(1))
    assert np.abs(jacobian @ u - 2.0 * shared[:, 0]).max() < 1e-6 * np.abs(shared).max()


def test_few_frames_are_evenly_spread(short_range, monkeypatch):
    _, problem = short_range
    monkeypatch.setattr(module, "FEW_LABELS", 60)
    found = collect(problem, np.zeros(problem.size))
    few = found.few()
    assert 0 < len(few.kind) < 0.6 * len(found.kind)
    assert isinstance(few.evidence, DualEvidence)
    assert set(few.owner.tolist()) < set(found.owner.tolist())


def test_search_never_ends_below_its_start(short_range):
    _, problem = short_range
    found = collect(problem, np.zeros(problem.size))
    bounds = [(-1.0, 1.0)] * (found.size - 1) + [(0.0, 0.0)]
    theta, score = search(found, bounds)
    assert score.density > found.evaluate(np.zeros(found.size)).density
    assert np.abs(theta).max() <= 1.0 + 1e-12 and theta[-1] == 0.0


def test_a_kernel_that_adds_nothing_is_dropped(water_training, water_systems):
    twins = [*kernels(8), small_kernel(3.5, zeta=4, n_representatives=8)]
    model = KQEq(None, twins, None, noise=NOISE, targets=["energy", "forces"])
    model.fit(water_training, optimize="left-out")
    assert len(model.potential_.short_range.terms) < 3
    assert "dropped short_range" in str(model.fit_report_)
    atoms = water_systems["water2"][5]
    assert model.predict(atoms, uncertainty=True).forces_std.shape == (6, 3)


def test_columns_without_some_kernels(water_model, water_training):
    model = KQEq(
        [small_kernel(3.0), small_kernel(2.5)],
        kernels(),
        charges=kqeq.QEq(hardness="kernel"),
        noise=NOISE,
        max_iterations=1,
    )
    with pytest.warns(KQEqWarning):
        model.fit(water_training)
    parameters = model.posterior_.parameters
    less, kept = parameters.without(["electronegativity 1", "short_range 2"])
    names = ["electronegativity", "short_range", "hardness 1", "hardness 2"]
    assert list(less.kernels) == names
    assert less.size == len(kept) == parameters.size - 2 * 12
    mark = np.arange(parameters.size)[kept]
    same = {
        "electronegativity": "electronegativity 2",
        "short_range": "short_range 1",
        "hardness 1": "hardness 1",
        "hardness 2": "hardness 2",
    }
    for new, old in same.items():
        columns = parameters.kernels[old].columns
        np.testing.assert_array_equal(mark[less.kernels[new].columns], np.arange(columns.start, columns.stop))
    np.testing.assert_array_equal(
        mark[less.learned.columns],
        np.arange(parameters.learned.columns.start, parameters.learned.columns.stop),
    )
    assert less.kernels["short_range"].feature_map is parameters.kernels["short_range 1"].feature_map


# ------------------------------------------------------------- the default fit


def small(monkeypatch):
    monkeypatch.setattr("kqeq.model.estimator.automatic_short_range", lambda: tuple(kernels(5)), raising=True)
    monkeypatch.setattr(
        "kqeq.fitting.settings.automatic_electronegativity",
        lambda: (small_kernel(3.0, n_representatives=5), small_kernel(2.5, n_representatives=4)),
    )


def test_the_default_searches(water_training, water_systems, monkeypatch, tmp_path):
    small(monkeypatch)
    test = [water_systems[name][i] for name in ("water1", "water2", "hydronium") for i in (1, 2, 4, 5)]
    found = KQEq().fit(water_training)
    plain = KQEq().fit(water_training, optimize=None)
    assert "left-out log density" in str(found.fit_report_)
    assert "left-out" not in str(plain.fit_report_)
    assert found.posterior_.noise["forces"] != plain.posterior_.noise["forces"]
    assert found.evaluate(test)["forces"].rmse < 1.3 * plain.evaluate(test)["forces"].rmse
    assert "meV/Å with charges" in str(found.fit_report_)
    assert clone(found).short_range == "auto"
    found.save(tmp_path / "m.kqeq", posterior=True)
    loaded = kqeq.load(tmp_path / "m.kqeq")
    assert loaded.short_range == loaded.electronegativity == "auto"
    first, second = (m.predict(test[0], uncertainty=True) for m in (found, loaded))
    assert first.energy == second.energy
    assert second.energy_std == pytest.approx(first.energy_std, rel=1e-9)


def test_what_is_given_is_kept(water_training, monkeypatch):
    small(monkeypatch)
    given = KQEq(None, charges=None, noise={"forces": 0.123}).fit(water_training)
    assert given.posterior_.noise["forces"] == 0.123
    assert given.posterior_.noise["energy"] != 1e-3
    explicit = KQEq(None, kernels(), None, noise=NOISE).fit(water_training)
    assert explicit.posterior_.noise["energy"] == NOISE["energy"]
    assert explicit.posterior_.parameters.short_range.deltas == pytest.approx([1.0 / math.sqrt(2.0)] * 2)


def test_short_range_alone_needs_no_second_word(water_training, monkeypatch):
    small(monkeypatch)
    assert KQEq(charges=None).fit(water_training, optimize=None).potential_.electronegativity is None


def test_dipoles_alone(water_training, monkeypatch):
    small(monkeypatch)
    model = KQEq(short_range=None, targets=["dipole"]).fit(water_training)
    assert "left-out errors dipole" in str(model.fit_report_)
    assert model.posterior_.noise["dipole"] != 0.01


def test_interrupted_and_resumed(water_training, monkeypatch, tmp_path):
    small(monkeypatch)
    whole = KQEq().fit(water_training)
    first = KQEq().fit(water_training, resume=tmp_path / "state")
    assert (tmp_path / "state").exists()
    again = KQEq().fit(water_training, resume=tmp_path / "state")
    for model in (first, again):
        np.testing.assert_allclose(model.posterior_.u, whole.posterior_.u, rtol=1e-5, atol=1e-5)


def test_words_that_are_no_choice(water_training):
    with pytest.raises(InputError, match="'auto', 'left-out', 'evidence'"):
        KQEq().fit(water_training, optimize="leftout")
    with pytest.raises(InputError, match="short_range='automatic'"):
        KQEq(short_range="automatic").fit(water_training)


def test_unearned_never_drops_all(short_range):
    model, problem = short_range
    found = collect(problem, np.zeros(problem.size))
    theta = np.zeros(found.size)
    theta[2:4] = math.log(1e-8)  # neither has any effect
    assert len(unearned(found, model.posterior_.parameters, theta)) == 1
    assert isinstance(problem.frames[0], TrainingFrame)


@pytest.mark.parametrize("linear", [True, False])
def test_steps_without_folds_are_those_of_problems_without_them(linear, water_training):
    energy = small_kernel(4.0, zeta=4)
    given = (None, energy, None) if linear else (small_kernel(3.5), energy)
    targets = ["energy", "forces"] if linear else None
    model = KQEq(*given, noise=NOISE, optimize=None, targets=targets).fit(water_training)
    frames = problem_of(model, water_training).frames
    problem = FitProblem(
        frames, model.posterior_.parameters, model.posterior_.noise, linear=linear, budget=10**9
    )
    u = np.zeros(problem.size) if linear else model.posterior_.u
    indices = [frame.index for frame in problem.frames]
    folds = [set(indices[:4]), set(indices[4:9])]
    for fold, step in zip(folds, steps_without(problem, u, folds), strict=True):
        expected = step_from(problem.without(fold), u)
        moved = np.abs(expected - u).max()
        assert moved > 1e-3
        np.testing.assert_allclose(step, expected, atol=1e-6 * moved)
    problem.close()


def _pairs_of_molecules(rng, *, far: bool):
    """Two diatomic molecules whose energy depends on their bonds, and on their distance too if ``far``."""
    from ase.calculators.singlepoint import SinglePointCalculator

    frames = []
    for _ in range(24):
        x = np.cumsum(
            [0.0, 0.75 + rng.normal(0, 0.05), 6.4 + rng.uniform(-0.7, 0.7), 0.75 + rng.normal(0, 0.05)]
        )
        atoms = Atoms("H4", np.column_stack([x, rng.normal(0, 0.05, (4, 2))]))
        forces, energy = np.zeros((4, 3)), 0.0
        springs = [(0, 1, 0.75, 20.0), (2, 3, 0.75, 20.0), *([(1, 2, 5.7, 3.0)] if far else [])]
        for i, j, length, strength in springs:
            between = atoms.positions[j] - atoms.positions[i]
            d = np.linalg.norm(between)
            energy += 0.5 * strength * (d - length) ** 2
            pull = strength * (d - length) * between / d
            forces[i] += pull
            forces[j] -= pull
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        frames.append(atoms)
    return frames


@pytest.mark.parametrize("far", [True, False])
def test_a_farther_kernel_is_taken_where_left_out_frames_ask_for_it(far, tmp_path):
    frames = _pairs_of_molecules(np.random.default_rng(0), far=far)
    test = _pairs_of_molecules(np.random.default_rng(1), far=far)
    model = KQEq(None, charges=None).fit(frames, resume=tmp_path / "state")
    cutoffs = [m.descriptor.r_cut for m in model.posterior_.parameters.short_range.feature_maps]
    assert (8.0 in cutoffs) == far
    assert not (far and 5.0 in cutoffs)
    assert ("farther kernel" in str(model.fit_report_)) == far
    spread = np.std([atoms.get_forces() for atoms in test])
    assert spread > 0.5
    assert model.evaluate(test)["forces"].rmse < 0.1 * spread
    again = KQEq(None, charges=None).fit(frames, resume=tmp_path / "state")
    np.testing.assert_array_equal(again.posterior_.u, model.posterior_.u)


def test_frames_in_fields_alone_keep_their_reach(water_training, monkeypatch):
    """No frame tells what an energy without charges needs."""
    small(monkeypatch)
    neutral = [atoms for atoms in water_training if not atoms.info.get("total_charge")]
    frames = [atoms.copy() for atoms in neutral]
    for atoms, source in zip(frames, neutral, strict=True):
        atoms.info["external_field"] = [0.05, 0.0, 0.0]
        atoms.calc = source.calc
    model = KQEq().fit(frames)
    cutoffs = [m.descriptor.r_cut for m in model.posterior_.parameters.short_range.feature_maps]
    assert cutoffs == [3.5, 2.5]


def test_cells_and_large_molecules_keep_their_reach(water_systems):
    from kqeq.fitting.settings import FARTHER_ATOMS, with_reach
    from kqeq.frames.structures import read_structure

    small = read_structure(water_systems["water2"][0])
    large = read_structure(
        Atoms("H" * (FARTHER_ATOMS + 1), np.arange(3.0 * FARTHER_ATOMS + 3.0).reshape(-1, 3))
    )
    cell = read_structure(Atoms("H2", [[0, 0, 0], [0.8, 0, 0]], cell=[9, 9, 9], pbc=True))
    settings = KQEq()._settings(None)
    searching = replace(settings, optimize="left-out")
    assert [k.r_cut for k in with_reach(searching, [small]).short_range] == [8.0, 5.0, 4.0, 2.5]
    for same in (
        with_reach(searching, [small, large]),
        with_reach(searching, [cell]),
        with_reach(replace(settings, optimize=None), [small]),
        with_reach(replace(KQEq(short_range=small_kernel())._settings(None), optimize="left-out"), [small]),
    ):
        assert not same.may_reach and 8.0 not in [k.r_cut for k in same.short_range]


def test_a_label_that_the_energy_alone_loses_is_tried_again(monkeypatch):
    """Charge states of one geometry look like noise to an energy without charges."""
    neutral, charged = (
        kqeq.datasets.split("zno", total_charges=(0,)),
        kqeq.datasets.split("zno_vertical", total_charges=(-1,)),
    )
    train, test = neutral[0] + charged[0], neutral[1] + charged[1]
    soap = kqeq.SOAPKernel(r_cut=4.0, n_max=4, l_max=3, sigma=0.4, zeta=2, n_representatives=48)
    found = {}
    for lost in (module.LOST, math.inf):
        monkeypatch.setattr(module, "LOST", lost)
        model = KQEq(soap, [soap], optimize="left-out").fit(train)
        found[lost] = model.evaluate(test)["energy"].rmse, model.posterior_.noise["energy"]
    (error, noise), (ignored, limit) = found.values()
    assert noise < 0.2 * limit
    assert error < ignored


def test_errors_of_weighted_frames_are_errors_of_labels(water_training):
    """A weight with a noise that is as much larger is the same fit, with the same errors of left-out frames."""
    found = []
    for weight in (1.0, 4.0):
        frames = [atoms.copy() for atoms in water_training]
        for copy, atoms in zip(frames, water_training, strict=True):
            copy.calc, copy.info["weight"] = atoms.calc, weight
        noise = {kind: math.sqrt(weight) * value for kind, value in NOISE.items()}
        model = KQEq(None, kernels(), None, noise=noise, targets=["energy", "forces"]).fit(frames)
        left_out = collect(problem_of(model, frames), np.zeros(model.posterior_.parameters.size))
        found.append(left_out.evaluate(np.zeros(left_out.size)).errors)
    assert min(found[0].values()) > 0.0
    assert found[1] == pytest.approx(found[0], rel=1e-6)
