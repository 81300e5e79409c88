"""Representatives dropped after a fit: at the loss that was stated, and exactly where labels are linear."""

import numpy as np
import pytest

import kqeq
from conftest import NOISE, small_kernel
from kqeq import KQEq, SOAPKernel
from kqeq.errors import InputError, UnsupportedError
from kqeq.fitting.pruning import prune


@pytest.fixture(scope="module")
def short_range(water_training):
    kernels = [
        SOAPKernel(r_cut=3.0, n_max=4, l_max=3, sigma=0.4, zeta=2, n_representatives=12),
        SOAPKernel(r_cut=4.0, n_max=3, l_max=2, sigma=0.5, zeta=3, n_representatives=8),
    ]
    return KQEq(None, kernels, charges=None, noise=NOISE).fit(water_training)


def loss_of(parameters, u, frames, noise):
    from dataclasses import replace

    from kqeq.fitting.least_squares.solver import sum_frames
    from kqeq.fitting.problem import FitProblem
    from kqeq.fitting.rows.features import TrainingFrame
    from kqeq.frames.labels import read_frames

    training = [
        TrainingFrame(s, replace(labels, dipole=None, stress=None, charges=None), i)
        for i, (s, labels) in enumerate(read_frames(frames))
    ]
    problem = FitProblem(training, parameters, noise, linear=True)
    try:
        return sum_frames(problem, u, "none").loss + 0.5 * u @ u
    finally:
        problem.close()


def test_the_loss_grows_as_promised(short_range, water_training):
    known = short_range.posterior_
    before = loss_of(known.parameters, known.u, water_training, known.noise)
    assert before == pytest.approx(short_range.fit_report_.loss, rel=1e-6)
    found = prune(known.parameters, known.u, known.lower, 0.1 * before)
    assert 0 < found.dropped < 40
    assert 0.0 < found.increase <= 0.1 * before
    after = loss_of(found.parameters, found.u, water_training, known.noise)
    assert after - before == pytest.approx(found.increase, rel=1e-5)
    # it is the minimum: the gradient vanishes, and the factor is that of the smaller problem
    rng = np.random.default_rng(0)
    step = 1e-2 * np.linalg.solve(found.lower.T, rng.normal(size=len(found.u)))
    up, down = (loss_of(found.parameters, found.u + s * step, water_training, known.noise) for s in (1, -1))
    assert up - down == pytest.approx(0.0, abs=1e-6 * after)
    assert 0.5 * (up + down) - after == pytest.approx(0.5 * np.sum((found.lower.T @ step) ** 2), rel=1e-3)


def test_nothing_goes_for_nothing_and_one_of_each_stays(short_range):
    known = short_range.posterior_
    same = prune(known.parameters, known.u, known.lower, 0.0)
    assert same.dropped == 0
    np.testing.assert_allclose(same.u, known.u, atol=1e-6 * np.abs(known.u).max())
    least = prune(known.parameters, known.u, known.lower, np.inf)
    for kernel in least.parameters.short_range.kernels:
        assert {rows.shape[0] for rows in kernel.feature_map.representatives.values()} == {1}


def test_a_model_is_pruned(water_training, tmp_path):
    model = KQEq(small_kernel(3.5), small_kernel(4.0, zeta=4), noise=NOISE).fit(water_training)
    before, atoms = model.evaluate(water_training), water_training[0]
    size, loss = model.posterior_.parameters.size, model.fit_report_.loss
    first = model.predict(atoms, uncertainty=True)
    assert model.prune(0.05) is model
    after = model.evaluate(water_training)
    second = model.predict(atoms, uncertainty=True)
    assert model.posterior_.parameters.size == model.fit_report_.n_parameters < size
    assert loss < model.fit_report_.loss <= 1.05 * loss
    assert "were dropped" in model.fit_report_.notes[-1]
    assert after["forces"].rmse < 1.1 * before["forces"].rmse
    assert second.energy_std > 0.0 and first.energy_std > 0.0
    assert abs(second.energy - first.energy) < 3.0 * np.hypot(first.energy_std, NOISE["energy"] * len(atoms))
    model.save(tmp_path / "small.kqeq", posterior=True)
    loaded = kqeq.load(tmp_path / "small.kqeq")
    np.testing.assert_array_equal(loaded.predict(atoms).forces, second.forces)


def test_what_cannot_be_pruned(water_training, short_range):
    model = KQEq(small_kernel(3.5), short_range=None, targets=["dipole"]).fit(water_training)
    with pytest.raises(UnsupportedError, match="no short-range kernel"):
        model.prune()
    for loss in (0.0, -1.0, 2.0, "a lot", True):
        with pytest.raises(InputError, match="between 0 and 1"):
            short_range.prune(loss)
