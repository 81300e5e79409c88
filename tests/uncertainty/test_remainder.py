"""How large the part is that sparse features miss: predictions of frames that are left out."""

from dataclasses import replace

import numpy as np
import pytest

import kqeq
from checks import assert_close, central_difference
from conftest import NOISE, small_kernel
from kqeq import KQEq
from kqeq.fitting.least_squares.solver import minimise
from kqeq.fitting.problem import FitProblem
from kqeq.fitting.rows.blocks import frame_rows
from kqeq.fitting.rows.features import compute_features
from kqeq.fitting.rows.targets import choose_labels
from kqeq.frames.labels import read_frames
from kqeq.frames.structures import read_structure
from kqeq.uncertainty.posterior import Uncertain
from kqeq.uncertainty.remainder import LeftOut, learn_remainder, leave_out, log_density


def dipoles():
    return KQEq(small_kernel(3.5), short_range=None, targets=["dipole"])


def short_range():
    return KQEq(electronegativity=None, charges=None, short_range=small_kernel(4.0, zeta=4), noise=NOISE)


def everything():
    return KQEq(small_kernel(3.5), small_kernel(4.0, zeta=4), noise=NOISE)


def training_frames(model, frames):
    return choose_labels(list(read_frames(frames)), model._settings(model.targets))[0]


@pytest.mark.parametrize("make", [dipoles, short_range])
def test_equals_a_fit_without_the_frame(make, water_training):
    """Models that are linear in their labels: errors and variances of an actual fit to the others."""
    model = make().fit(water_training)
    posterior, frames = model.posterior_, training_frames(model, water_training)
    found = leave_out(posterior, frames)
    per_frame = 3 if make is dipoles else 1
    assert len(found.errors) == per_frame * len(frames)
    for i in (0, 5, 11):
        others = frames[:i] + frames[i + 1 :]
        problem = FitProblem(others, posterior.parameters, posterior.noise, linear=True)
        solution = minimise(problem, np.zeros(problem.size))
        problem.close()
        features = compute_features(frames[i], posterior.parameters)
        residual, rows = frame_rows(
            frames[i], features, posterior.parameters, solution.u, posterior.noise, jacobian="full"
        )
        own = slice(per_frame * i, per_frame * (i + 1))
        assert_close(found.errors[own], residual[:per_frame], rtol=1e-6, at_least=1e-2)
        scaled = np.linalg.solve(solution.lower, rows[:per_frame].T)
        expected = 1.0 + np.einsum("pn,pn->n", scaled, scaled)
        assert_close(found.variances[own], expected, rtol=1e-6, at_least=1.0)


def test_what_is_missed_is_what_uncertainties_add(water_training):
    model = everything().fit(water_training)
    posterior, frames = model.posterior_, training_frames(model, water_training)
    found = leave_out(posterior, frames[:2])
    view = Uncertain(posterior, frames[1].structure)
    scaled = np.linalg.solve(posterior.lower, view.linear_map("energy").rows.T)
    remainder = view.variance("energy") - np.einsum("pn,pn->n", scaled, scaled)
    unit = posterior.noise["energy"] ** 2 * len(frames[1].structure)
    # of each frame one energy and three components of the dipole
    assert found.missed.shape == (8, 2)
    assert_close(found.missed[4].sum() * unit, remainder[0], rtol=1e-8, at_least=1e-6)


def test_gradient():
    rng = np.random.default_rng(0)
    left_out = LeftOut(rng.normal(0.0, 2.0, 30), rng.uniform(1.0, 2.0, 30), rng.exponential(3.0, (30, 2)))
    theta = np.array([0.3, -1.2])
    _, gradient = log_density(left_out, theta)
    for direction in np.eye(2):
        slope = central_difference(lambda t, d=direction: log_density(left_out, theta + t * d)[0], 1e-4)
        assert_close(gradient @ direction, slope, rtol=1e-6, at_least=1e-2)


@pytest.mark.parametrize("factor", [0.02, 1.0, 8.0])
def test_finds_the_factor_that_made_the_errors(factor, water_training, monkeypatch):
    from kqeq.uncertainty import remainder

    model = short_range().fit(water_training)
    rng = np.random.default_rng(1)
    variances, missed = rng.uniform(1.0, 1.5, 3000), rng.exponential(20.0, (3000, 1))
    errors = rng.normal(0.0, np.sqrt(variances + factor * missed[:, 0]))
    monkeypatch.setattr(remainder, "leave_out", lambda *_: LeftOut(errors, variances, missed))
    posterior, line = learn_remainder(model.posterior_, training_frames(model, water_training))
    assert posterior.parameters.kernels["short_range"].remainder == pytest.approx(factor, rel=0.2)
    assert f"short_range {posterior.parameters.kernels['short_range'].remainder:.3g}" in line


def test_uncertainties_follow_the_factor(water_training):
    model = everything().fit(water_training)
    structure = read_structure(water_training[3])
    known = model.posterior_

    def variances(chi, energy):
        parameters = known.parameters.with_remainders({"electronegativity": chi, "short_range": energy})
        view = Uncertain(replace(known, parameters=parameters), structure, forces=True)
        return {kind: view.variance(kind) for kind in ("energy", "dipole", "charges", "forces")}

    none, chi, energy, both = variances(0, 0), variances(1, 0), variances(0, 1), variances(2, 3)
    for kind, bare in none.items():
        expected = bare + 2 * (chi[kind] - bare) + 3 * (energy[kind] - bare)
        assert_close(both[kind], expected, rtol=1e-9, at_least=1e-9)
    assert (chi["dipole"] > none["dipole"]).any()
    np.testing.assert_array_equal(energy["dipole"], none["dipole"])


def test_evidence_learns_it_and_files_keep_it(water_training, tmp_path):
    plain = everything().fit(water_training)
    assert plain.posterior_.parameters.kernels["short_range"].remainder == 1.0
    model = everything().fit(water_training, optimize="evidence")
    parts = model.posterior_.parameters.kernels
    assert parts["short_range"].remainder != 1.0 and parts["electronegativity"].remainder != 1.0
    assert f"relative to the prior: electronegativity {parts['electronegativity'].remainder:.3g}" in str(
        model.fit_report_
    )
    model.save(tmp_path / "model.kqeq", posterior=True)
    loaded = kqeq.load(tmp_path / "model.kqeq")
    atoms = water_training[0]
    first, second = (m.predict(atoms, uncertainty=True) for m in (model, loaded))
    assert second.energy_std == pytest.approx(first.energy_std, rel=1e-12)
    np.testing.assert_allclose(second.forces_std, first.forces_std, rtol=1e-10)
    loaded.update(water_training[:2])
    assert loaded.posterior_.parameters.kernels["short_range"].remainder == parts["short_range"].remainder


def test_selection_sees_the_factor(water_training, water_systems):
    """Conditioning of a chosen frame uses the same covariance as its variance: none becomes negative."""
    model = everything().fit(water_training, optimize="evidence")
    pool = [water_systems[name][i] for name in ("water2", "hydronium") for i in (1, 2, 4)]
    assert sorted(kqeq.select(model, pool, len(pool))) == list(range(len(pool)))
    from kqeq.uncertainty.selection import _candidate, _covariance

    one = _candidate(model.posterior_, read_structure(pool[0]), "energy")
    assert_close(_covariance(one, one), one.variance, rtol=1e-6, at_least=1e-9)
    assert_close(
        one.variance[0],
        Uncertain(replace(model.posterior_, factors={}), one.structure).variance("energy"),
        rtol=1e-6,
        at_least=1e-9,
    )
