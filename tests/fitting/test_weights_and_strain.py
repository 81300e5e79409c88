"""What the tests of single layers let pass: a baseline's strain, weights of frames on the way to evidence and
calibration, and how many idle steps end a fit.  Each of these was planted as a bug once and not noticed.
"""

import dataclasses

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones
from scipy.stats import multivariate_normal

from checks import bare
from conftest import NOISE, small_kernel
from kqeq import KQEq
from kqeq.baselines import ZBL
from kqeq.fitting.baseline_labels import subtract_baseline
from kqeq.fitting.evidence import hyperparameters as ev
from kqeq.fitting.evidence.evidence import DualEvidence, Evidence, _chunk_kinds
from kqeq.fitting.least_squares.solver import LONGEST, _stalled, minimise
from kqeq.fitting.metrics import compare
from kqeq.fitting.problem import FitProblem
from kqeq.fitting.rows.features import TrainingFrame
from kqeq.frames.labels import Labels, read_frames
from kqeq.frames.structures import read_structure
from kqeq.uncertainty.posterior import Uncertain
from kqeq.uncertainty.remainder import leave_out

pytestmark = pytest.mark.filterwarnings("ignore::kqeq.errors.RepresentativesWarning")


# ------------------------------------------------------------------------- strain


def crystal():
    """Two water molecules in a skewed cell, with a short bond in which every baseline acts."""
    atoms = Atoms(
        "OH2OH2",
        [[0, 0, 0], [0.75, 0, 0], [-0.24, 0.93, 0], [2.2, 2.4, 2.1], [2.9, 2.9, 2.2], [1.6, 2.9, 2.5]],
        cell=[[5.0, 0, 0], [0.8, 5.2, 0], [0.3, -0.6, 4.8]],
        pbc=True,
    )
    return atoms


@pytest.mark.filterwarnings("ignore:the fit stopped")
@pytest.mark.parametrize("charges", [True, False])
@pytest.mark.parametrize("baseline", ["zbl:0.8:1.4", "lj"])
def test_stress_is_the_derivative_of_the_total_energy(charges, baseline, water_training):
    """Baseline, charges and short range together, in all nine components."""
    given = LennardJones(sigma=1.5, epsilon=0.05, rc=4.0, smooth=True) if baseline == "lj" else baseline
    own = {} if charges else {"electronegativity": None, "charges": None}
    model = KQEq(
        **{"electronegativity": small_kernel(3.5), "short_range": small_kernel(4.0), **own},
        baseline=given,
        noise=NOISE,
        max_iterations=4,
    ).fit(water_training)
    atoms = crystal()

    def part(strain, name):
        moved = atoms.copy()
        moved.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        return getattr(model.predict(moved, properties=["energy"]), name)

    def derivative(name):
        result, h = np.zeros((3, 3)), 1e-4
        for a in range(3):
            for b in range(3):
                step = np.zeros((3, 3))
                step[a, b] = h
                result[a, b] = (part(step, name) - part(-step, name)) / (2 * h)
        return result / atoms.cell.volume

    total, of_baseline = derivative("energy"), derivative("energy_baseline")
    stress = model.predict(atoms).stress
    assert np.abs(of_baseline).max() > 1e-3
    assert np.abs(total - of_baseline).max() > 1e-3
    np.testing.assert_allclose(stress, 0.5 * (total + total.T), rtol=1e-5, atol=2e-6)


def test_labels_lose_the_baseline_in_every_kind():
    """What is fitted plus the baseline are the labels, with their signs, stress included."""
    baseline = ZBL(inner=0.8, outer=1.4)
    structure = read_structure(crystal())
    energy, gradient, strain = baseline.evaluate(structure)[:3]
    rng = np.random.default_rng(0)
    stress = rng.normal(size=(3, 3))
    labels = Labels(energy=-3.0, forces=rng.normal(size=(6, 3)), stress=stress + stress.T)
    (left,) = (f.labels for f in subtract_baseline([TrainingFrame(structure, labels, 0)], baseline)[0])
    assert np.abs(strain).max() > 0.1
    assert left.energy + energy == pytest.approx(labels.energy)
    np.testing.assert_allclose(left.forces - gradient, labels.forces, atol=1e-12)
    own = 0.5 * (strain + strain.T) / abs(np.linalg.det(structure.cell))
    np.testing.assert_allclose(left.stress + own, labels.stress, atol=1e-12)


# ------------------------------------------------------------- weights in the evidence


def weighted(frames):
    result = [a.copy() for a in frames]
    for i, (copy, atoms) in enumerate(zip(result, frames, strict=True)):
        copy.calc = atoms.calc
        copy.info["weight"] = (0.25, 1.0, 3.0)[i % 3]
    return result


@pytest.mark.parametrize("representatives", [4, 1000])
def test_the_evidence_of_weighted_frames_is_the_density_of_their_labels(
    representatives, water_training, monkeypatch
):
    """A frame of weight w has labels of variance σ²/w, in the constant as well: from both ways to compute it."""
    seen = []
    original = ev.collect

    def collect(problem, u):
        seen.append((problem, u, list(problem.rows(u, jacobian="full")), original(problem, u)))
        return seen[-1][-1]

    monkeypatch.setattr(ev, "collect", collect)
    kernel = small_kernel(3.5, n_representatives=representatives)
    KQEq(kernel, short_range=None, targets=["dipole"]).fit(weighted(water_training), optimize="evidence")
    problem, u, rows, evidence = seen[0]
    assert isinstance(evidence, DualEvidence if representatives == 1000 else Evidence)
    weights = np.array([frame.labels.weight for frame in problem.frames])
    assert set(weights) == {0.25, 1.0, 3.0}
    sigma = np.repeat(problem.noise["dipole"] / np.sqrt(weights), 3)
    labels = sigma * np.concatenate([r for r, _ in rows])
    jacobian = sigma[:, None] * np.vstack([j for _, j in rows])
    covariance = jacobian @ jacobian.T + np.diag(sigma**2)
    expected = multivariate_normal(np.zeros(len(labels)), covariance).logpdf(labels)
    assert evidence.evaluate(np.zeros(evidence.size))[0] == pytest.approx(expected, abs=1e-5)
    again = FitProblem(problem.frames, problem.parameters, problem.noise, linear=True)
    sums, constants = zip(*(_chunk_kinds(chunk, u) for chunk in again.chunks), strict=True)
    again.close()
    assert len(sums) == 1
    primal = Evidence(sums[0], evidence.groups, constants[0])
    assert primal.evaluate(np.zeros(primal.size))[0] == pytest.approx(expected, rel=1e-6)


# --------------------------------------------------------------------- idle steps


@pytest.mark.parametrize("patience", [1, 3, 4])
def test_as_many_idle_steps_as_patience_says(patience):
    """Losses are those before each step, the last one included: n steps have n + 1 of them."""
    idle = [7.0] * (patience + 1)
    assert _stalled(idle, patience, 0.0)
    assert not _stalled(idle[1:], patience, 0.0)
    assert _stalled([9.0, 8.0, *idle], patience, 0.0)
    assert not _stalled([9.0, *idle[1:]], patience, 0.0)
    falling = [7.0 - 0.5 * i for i in range(patience + 1)]
    assert _stalled(falling, patience, 0.5)
    assert not _stalled(falling, patience, 0.4999)
    assert not _stalled(idle, None, 0.0)


class Slope:
    """A residual far from its minimum, along which steps are cut so that each gains next to nothing."""

    size, linear, linear_columns = 1, False, None

    def rows(self, u, *, jacobian):
        yield 1e3 - u, (None if jacobian == "none" else np.ones((1, 1)))


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_a_fit_ends_after_that_many_idle_steps(patience):
    found = minimise(
        Slope(),
        np.zeros(1),
        tolerance=1e-2,
        negligible=0.0,
        step_factor=lambda step: 1e-4,
        patience=patience,
        max_iterations=50,
    )
    assert found.converged
    assert sum(iteration.accepted for iteration in found.iterations[:-1]) == patience
    # the prior's weight is the label's; limits stretch while steps gain what they promise
    reach = sum(min(2.0**k, LONGEST) for k in range(patience))
    assert found.u[0] == pytest.approx(500.0 * 1e-4 * reach, rel=1e-2)


# ------------------------------------------------------ weights in uncertainty and calibration


def test_a_frame_of_weight_four_is_left_out_as_one_of_half_the_noise(water_training):
    """Errors of left-out labels, their variances and what is missed, in units of the noise."""
    model = KQEq(small_kernel(3.0), None, targets=["dipole"]).fit(water_training)
    posterior = model.posterior_
    frames = [
        TrainingFrame(s, dataclasses.replace(labels, energy=None, forces=None), i)
        for i, (s, labels) in enumerate(read_frames(water_training[:2]))
    ]
    half = dataclasses.replace(posterior, noise={**posterior.noise, "dipole": posterior.noise["dipole"] / 2})
    heavy = [dataclasses.replace(f, labels=dataclasses.replace(f.labels, weight=4.0)) for f in frames]
    one, other, plain = leave_out(posterior, heavy), leave_out(half, frames), leave_out(posterior, frames)
    for name in ("errors", "variances", "missed"):
        first, second, third = (getattr(found, name) for found in (one, other, plain))
        np.testing.assert_allclose(first, second, rtol=1e-9, atol=1e-14)
        assert np.abs(first - third).max() > 1e-3 * np.abs(first).max()
    assert (
        len(
            leave_out(
                posterior,
                [dataclasses.replace(f, labels=dataclasses.replace(f.labels, weight=0.0)) for f in frames],
            ).errors
        )
        == 0
    )


def test_calibration_knows_the_weights(water_model, water_training):
    """A label of weight w scatters with σ/√w around the value: heavier frames have to be hit more closely."""
    noise = water_model.posterior_.noise
    widths = []
    for weight in (1.0, 100.0):
        frames = [bare(a) for a in water_training[:4]]
        items = []
        for (structure, labels), atoms in zip(read_frames(water_training[:4]), frames, strict=True):
            prediction = water_model.predict(atoms, total_charge=structure.total_charge, uncertainty=True)
            items.append((structure, dataclasses.replace(labels, weight=weight), prediction))
        found = compare(items, {}, noise)
        expected = []
        for structure, labels, prediction in items:
            z = (labels.energy - prediction.energy) / np.hypot(
                prediction.energy_std, noise["energy"] * np.sqrt(len(structure) / weight)
            )
            expected.append(z**2)
        widths.append((found.calibration["energy"], np.mean(expected)))
    assert widths[0][1] < widths[1][1]
    for calibration, mean in widths:
        assert calibration.mean_z2 == pytest.approx(mean, rel=1e-9)


def test_uncertain_forces_follow_the_factor_of_what_is_missed(water_training):
    """Their variance is linear in κ, with a slope that is not zero."""
    model = KQEq(small_kernel(3.0), small_kernel(3.0), noise=NOISE, max_iterations=60).fit(water_training)
    posterior, structure = model.posterior_, read_structure(bare(water_training[0]))

    def variance(factor):
        parameters = posterior.parameters.with_remainders(
            {"short_range": factor, "electronegativity": factor}
        )
        view = Uncertain(dataclasses.replace(posterior, parameters=parameters), structure, forces=True)
        return view.variance("forces")

    one, two, four = variance(1.0), variance(2.0), variance(4.0)
    assert (two - one).max() > 1e-3 * one.max()
    np.testing.assert_allclose(four - one, 3.0 * (two - one), rtol=1e-6, atol=1e-9 * one.max())
