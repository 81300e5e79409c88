"""The marginal likelihood: against the Gaussian it stands for, its gradients, and the search that uses it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from test_resume import training

from checks import assert_close, central_difference
from conftest import NOISE, small_kernel
from kqeq import KQEq
from kqeq.errors import InputError, ModelFileError
from kqeq.fitting.evidence import hyperparameters as ev
from kqeq.fitting.evidence.evidence import DualEvidence, Evidence, _chunk_kinds
from kqeq.fitting.problem import FitProblem
from kqeq.io.archive import read_archive

pytestmark = pytest.mark.filterwarnings("ignore::kqeq.errors.RepresentativesWarning")


@pytest.fixture
def linearised(water_training, monkeypatch):
    """The linearisations that a fit by evidence meets, with their problems and points."""
    seen = []
    original = ev.collect

    def collect(problem, u):
        result = original(problem, u)
        rows = list(problem.rows(u, jacobian="full"))
        seen.append((problem, u, rows, result))
        return result

    monkeypatch.setattr(ev, "collect", collect)
    return seen


def dipoles():
    return KQEq(small_kernel(3.5), short_range=None, targets=["dipole"])


def everything():
    return KQEq(small_kernel(3.5), small_kernel(4.0, zeta=4), noise=NOISE)


def table(model):
    return [line for line in model.fit_report_.notes if line.startswith("log evidence")]


def values(model):
    return [float(line.split()[2].rstrip(":")) for line in table(model)]


# ------------------------------------------- the number


def test_is_the_density_of_the_labels(water_training, linearised):
    """Dipoles are Gaussian: mean at u = 0, covariance J Jᵀ + σ²."""
    model = dipoles().fit(water_training, optimize="evidence")
    problem, u, rows, evidence = linearised[0]
    assert not u.any()
    sigma = problem.noise["dipole"]
    residual = sigma * np.concatenate([r for r, _ in rows])
    jacobian = sigma * np.vstack([j for _, j in rows])
    covariance = jacobian @ jacobian.T + sigma**2 * np.eye(len(residual))
    expected = multivariate_normal(np.zeros(len(residual)), covariance).logpdf(residual)
    assert evidence.evaluate(np.zeros(evidence.size))[0] == pytest.approx(expected, abs=1e-5)
    assert values(model)[0] == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("make", [dipoles, everything])
def test_gradient(make, water_training, linearised):
    make().fit(water_training, optimize="evidence")
    evidence = linearised[0][-1]
    rng = np.random.default_rng(0)
    theta = rng.normal(0.0, 0.3, evidence.size)
    _, gradient, _ = evidence.evaluate(theta)
    assert evidence.size >= (3 if make is dipoles else 7)
    for direction in np.eye(evidence.size):
        slope = central_difference(lambda t, d=direction: evidence.evaluate(theta + t * d)[0], 1e-3)
        assert_close(gradient @ direction, slope, rtol=1e-5, at_least=1e-2)


def test_few_labels_give_the_same_from_their_own_covariance(water_training, linearised):
    """The covariance of the labels (n × n) and the normal equations (P × P) are two ways to one number."""
    kernel = small_kernel(3.5, n_representatives=1000)
    KQEq(kernel, short_range=None, targets=["dipole"]).fit(water_training, optimize="evidence")
    problem, u, _, dual = linearised[0]
    assert isinstance(dual, DualEvidence)
    assert len(dual.targets) < problem.size
    again = FitProblem(problem.frames, problem.parameters, problem.noise, linear=True)
    sums, constant = _chunk_kinds(again.chunks[0], u)
    again.close()
    primal = Evidence(sums, dual.groups, constant)
    theta = np.random.default_rng(3).normal(0.0, 0.5, dual.size)
    for (a, b), least in zip(
        zip(dual.evaluate(theta), primal.evaluate(theta), strict=True), (1, 0.1, 0.1), strict=True
    ):
        assert_close(a, b, rtol=1e-6, at_least=least)


def test_rescaling_is_the_same_as_accumulating_again(water_training, linearised):
    """The evidence at other noises and spreads, and at the fit with those."""
    dipoles().fit(water_training, optimize="evidence")
    problem, _, _, evidence = linearised[0]
    theta = np.random.default_rng(1).normal(0.0, 0.5, evidence.size)
    parameters, noise = ev.rescale(problem.parameters, problem.noise, evidence, theta)
    other = FitProblem(problem.frames, parameters, noise, linear=True)
    again = ev.collect(other, np.zeros(other.size))
    other.close()
    first, _, u = evidence.evaluate(theta)
    second, _, v = again.evaluate(np.zeros(again.size))
    assert second == pytest.approx(first, rel=1e-9)
    assert_close(v, u, rtol=1e-6, at_least=0.1)


# ------------------------------------------- the search


def test_never_falls_and_ends_at_a_maximum(water_training, linearised):
    model = everything().fit(water_training, optimize="evidence")
    climbed = values(model)
    assert len(climbed) > 1
    assert (np.diff(climbed) > 0).all()
    assert climbed[-1] > climbed[0] + 5.0
    assert model.fit_report_.converged
    posterior = model.posterior_
    assert posterior.noise["forces"] != NOISE["forces"]
    assert posterior.parameters.short_range.deltas[0] != 1.0
    # bounds hold
    for kind in NOISE:
        assert 0.09 * NOISE[kind] <= posterior.noise[kind] <= 31 * NOISE[kind]


def test_finds_the_noise_that_was_added(water_systems):
    """Dipoles of a smooth model plus noise of known size: learned within a quarter of it."""
    frames = [a.copy() for name in ("water1", "water2") for a in water_systems[name]]
    source = dipoles().fit([a for name in ("water1", "water2") for a in water_systems[name]])
    rng = np.random.default_rng(5)
    for atoms in frames:
        atoms.info["dipole"] = source.predict(atoms, properties=["dipole"]).dipole + rng.normal(0.0, 0.04, 3)
    model = dipoles().fit(frames, optimize="evidence")
    assert model.posterior_.noise["dipole"] == pytest.approx(0.04, rel=0.25)


def test_zeta_is_learned_where_features_are_cheap(water_training):
    model = dipoles().fit(water_training, optimize="evidence")
    assert 1.0 <= model.posterior_.parameters.electronegativity.feature_maps[0].zeta <= 8.0
    assert (
        model.potential_.electronegativity.feature_maps[0].zeta
        == model.posterior_.parameters.electronegativity.feature_maps[0].zeta
    )
    assert values(model) == sorted(values(model))


def test_is_deterministic_and_scales_with_the_given_values(water_training, tmp_path):
    first, second = (dipoles().fit(water_training, optimize="evidence") for _ in range(2))
    np.testing.assert_array_equal(first.posterior_.u, second.posterior_.u)
    assert table(first) == table(second)
    plain = dipoles().fit(water_training)
    assert table(plain) == []


def test_another_start_finds_the_same_maximum(water_training):
    """The optimum does not depend on where the search starts, as long as bounds do not bite."""
    first = dipoles().fit(water_training, optimize="evidence")
    other = KQEq(
        small_kernel(3.5, delta=3.0), short_range=None, targets=["dipole"], noise={"dipole": 0.02}
    ).fit(water_training, optimize="evidence")
    assert values(other)[-1] == pytest.approx(values(first)[-1], abs=0.2)


@pytest.mark.parametrize("at", [2, 3, 4])
@pytest.mark.parametrize("make", [dipoles, everything])
def test_an_interrupted_search_continues(make, at, water_training, tmp_path, monkeypatch):
    whole = make().fit(water_training, optimize="evidence")
    path = tmp_path / "checkpoint"
    calls = []
    original = ev.collect

    def collect(problem, u):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return original(problem, u)

    monkeypatch.setattr(ev, "collect", collect)
    with pytest.raises(KeyboardInterrupt):
        make().fit(water_training, optimize="evidence", resume=path)
    assert path.exists()
    resumed = make().fit(water_training, optimize="evidence", resume=path)
    np.testing.assert_array_equal(resumed.posterior_.u, whole.posterior_.u)
    np.testing.assert_array_equal(resumed.posterior_.lower, whole.posterior_.lower)
    assert table(resumed) == table(whole)
    # the search has ended: nothing of it is done again
    before, calls[:] = path.read_bytes(), [1] * at
    again = make().fit(water_training, optimize="evidence", resume=path)
    assert len(calls) == at
    np.testing.assert_array_equal(again.posterior_.u, whole.posterior_.u)
    assert path.read_bytes() == before
    with pytest.raises(ModelFileError, match="another fit"):
        make().fit(water_training[1:], optimize="evidence", resume=path)
    with pytest.raises(ModelFileError):
        make().fit(water_training, resume=path)


SCRIPT = """
import sys, time
sys.path[:0] = {tests!r}
from test_evidence import dipoles
from test_resume import training
from kqeq.fitting.evidence import hyperparameters

# slow enough to be caught between two steps
original = hyperparameters._write
def slowly(*arguments):
    original(*arguments)
    time.sleep(0.4)
hyperparameters._write = slowly
dipoles().fit(training(), optimize="evidence", resume=sys.argv[1])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.slow
def test_a_killed_search_continues_to_the_same_bits(tmp_path):
    whole = dipoles().fit(training(), optimize="evidence")
    path = tmp_path / "checkpoint"
    code = SCRIPT.format(tests=[str(Path(__file__).parent), str(Path(__file__).parents[1])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, str(path)], env=environment)

    def tried():
        if not path.exists():
            return 0
        return len(read_archive(path, ev.FORMAT, ev.VERSION, "", "")[0]["powers"]["tried"])

    try:
        deadline = time.monotonic() + 120
        while tried() < 2:
            assert child.poll() is None, "the fit ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == -signal.SIGKILL
    resumed = dipoles().fit(training(), optimize="evidence", resume=path)
    np.testing.assert_array_equal(resumed.posterior_.u, whole.posterior_.u)
    assert table(resumed) == table(whole)


def test_a_line_is_reported_for_every_step(water_training, monkeypatch):
    from kqeq.fitting import fit as fitting

    said = []
    monkeypatch.setattr(fitting, "say", said.append)
    model = dipoles().fit(water_training, optimize="evidence")
    assert len(said) > len(table(model))  # powers that turned out worse as well
    assert [line for line in said if line in table(model)] == table(model)


def test_bad_request(water_training):
    with pytest.raises(InputError, match="expected one of 'auto', 'left-out', 'evidence'"):
        dipoles().fit(water_training, optimize="likelihood")
