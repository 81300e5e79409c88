"""Fits on a device: the CPU's parameters, sums that stay there, few transfers."""

import warnings
from unittest.mock import patch

import numpy as np
import pytest

import kqeq
from device_checks import STRICT, assert_same, on_device
from kqeq.backend import CPU, limit_memory, record_transfers, to_numpy
from kqeq.errors import KQEqWarning
from kqeq.fitting.least_squares.equations import NormalEquations, Prior, Sums, push, scaled_condition
from kqeq.fitting.least_squares.solver import sum_frames
from kqeq.fitting.least_squares.turning import FEWEST

NOISE = {"energy": 0.05, "forces": 0.5, "dipole": 0.05}


def fit(frames, device, kernel, charges=None, **options):
    settings = {"noise": NOISE, "max_iterations": 3, **options.pop("settings", {})}
    model = kqeq.KQEq(
        kernel(3.5), kernel(4.0, zeta=4), kqeq.QEq() if charges is None else charges, **settings
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KQEqWarning)  # three iterations do not converge
        return model.fit(frames, device=device, **options)


def assert_same_fit(result, expected, relative=1e-7):
    first, second = expected.posterior_.u, result.posterior_.u
    assert isinstance(second, np.ndarray) and isinstance(result.posterior_.lower, np.ndarray)
    np.testing.assert_allclose(second, first, rtol=0, atol=relative * np.abs(first).max())
    assert result.fit_report_.loss == pytest.approx(expected.fit_report_.loss, rel=1e-9)
    assert len(result.fit_report_.iterations) == len(expected.fit_report_.iterations)


CHARGES = {
    "qeq": lambda: kqeq.QEq(),
    "acks2": lambda: kqeq.ACKS2(),
    "dipoles, learned": lambda: kqeq.AtomicDipoles(
        kqeq.QEq(hardness="learn", width="learn"), polarizability="learn"
    ),
    "environment": lambda: kqeq.ACKS2(hardness="kernel", softness="kernel"),
}


@pytest.mark.parametrize("name", CHARGES)
def test_the_same_parameters(name, kernel, water_training):
    frames = water_training[::2]
    expected = fit(frames, "cpu", kernel, CHARGES[name]())
    assert_same_fit(fit(frames, STRICT, kernel, CHARGES[name]()), expected)
    assert np.abs(expected.posterior_.u).max() > 0.1


def test_a_turned_fit(kernel, water_training):
    """With as many parameters as are turned, and representatives that are chosen on the device."""
    short = [kernel(r, zeta=4, n_representatives=15) for r in (3.0, 4.0, 5.0)]
    models = []
    for device in ("cpu", STRICT):
        model = kqeq.KQEq(kernel(3.5), short, kqeq.QEq(hardness="learn"), noise=NOISE, max_iterations=4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", KQEqWarning)
            models.append(model.fit(water_training, device=device))
    part = models[0].posterior_.parameters.short_range
    assert part.size > FEWEST
    assert_same_fit(models[1], models[0], 1e-6)
    lower = [model.posterior_.lower for model in models]
    np.testing.assert_allclose(lower[1], lower[0], rtol=0, atol=1e-6 * np.abs(lower[0]).max())


def periodic(frames):
    """A few frames in cells, with made-up stresses."""
    result = []
    rng = np.random.default_rng(0)
    for frame in frames:
        atoms = frame.copy()
        energy, forces = frame.get_potential_energy(), frame.get_forces()
        atoms.set_cell([8.0, 8.5, 9.0])
        atoms.pbc = True
        atoms.info = {"energy": energy, "stress": rng.normal(scale=1e-3, size=6)}
        atoms.arrays["forces"] = forces
        result.append(atoms)
    return result


def test_periodic_frames_with_stress(kernel, water_systems):
    frames = periodic(water_systems["water2"][:3])
    expected = fit(frames, "cpu", kernel)
    assert expected.fit_report_.used["stress"] == 3
    assert_same_fit(fit(frames, STRICT, kernel), expected)


def test_a_small_budget_changes_nothing(kernel, water_training):
    frames = water_training[:3]
    expected = fit(frames, "cpu", kernel)
    with limit_memory(50_000):
        assert_same_fit(fit(frames, STRICT, kernel), expected)


def test_closed_form_and_qr(kernel, water_training):
    frames = water_training[::2]
    options = {"targets": ["dipole"]}
    for solver in ("cholesky", "qr"):
        expected = fit(frames, "cpu", kernel, settings={"solver": solver}, **options)
        result = fit(frames, STRICT, kernel, settings={"solver": solver}, **options)
        assert_same_fit(result, expected)
        assert {i.method for i in result.fit_report_.iterations} == {solver}


def test_evidence(kernel, water_training):
    frames = water_training[::2]
    options = {"targets": ["dipole"], "optimize": "evidence"}
    assert_same_fit(fit(frames, STRICT, kernel, **options), fit(frames, "cpu", kernel, **options), 1e-5)


def test_resuming_elsewhere(kernel, water_training, tmp_path):
    """A checkpoint does not care where it was written."""
    frames = water_training[::3]
    expected = fit(frames, "cpu", kernel)
    path = tmp_path / "checkpoint"
    fit(frames, "cpu", kernel, settings={"max_iterations": 1}, resume=path)
    assert path.exists()
    assert_same_fit(fit(frames, STRICT, kernel, resume=path), expected)


def test_jacobians_stay_on_the_device(kernel, water_training):
    """What comes back from a pass over the frames are its sums."""
    # the choice of representatives, once, has transfers of its own
    with patch("kqeq.kernels.representatives.can_choose", lambda *_: False), record_transfers() as moved:
        model = fit(water_training[:4], STRICT, kernel)
    parameters = model.posterior_.parameters.size
    large = [size for size in moved.to_host if size > 8 * parameters]
    # the factor of the posterior, block by block: of the closed-form start and of the result
    assert 4 * parameters**2 < sum(large) <= 2 * 8 * parameters**2
    assert max(large) <= 8 * parameters**2


# ------------------------------------------------------------------ pieces


class Rows:
    """A linear problem given by its rows."""

    linear = True
    linear_columns = None
    size = 5

    def __init__(self, put):
        rng = np.random.default_rng(1)
        self.blocks = [(put(rng.normal(size=n)), put(rng.normal(size=(n, 5)))) for n in (4, 7, 3)]

    def rows(self, u, *, jacobian):
        for residual, rows in self.blocks:
            yield residual, None if jacobian == "none" else rows


@pytest.mark.parametrize("what", ["none", "full", "triangle"])
def test_sums(what):
    expected, result = (sum_frames(Rows(put), np.zeros(5), what) for put in (np.asarray, on_device))
    assert result.loss == pytest.approx(expected.loss) and isinstance(result.loss, float)
    assert result.n_residuals == expected.n_residuals == 14
    if what == "full":
        assert_same(result.hessian, expected.hessian)
        assert_same(result.rhs, expected.rhs)
    if what == "triangle":
        own, other = to_numpy(result.triangle), np.triu(expected.triangle)
        np.testing.assert_allclose(own.T @ own, other.T @ other, atol=1e-12)
        result.add(sum_frames(Rows(on_device), np.zeros(5), what))
        own = to_numpy(result.triangle)
        np.testing.assert_allclose(own.T @ own, 2.0 * other.T @ other, atol=1e-12)


def test_normal_equations():
    u = np.linspace(-1.0, 1.0, 5)
    prior = Prior(0.1 * u, np.linalg.cholesky(np.diag(np.arange(1.0, 6.0))))
    host, device = (
        NormalEquations(sum_frames(Rows(put), u, "full"), prior, u) for put in (np.asarray, on_device)
    )
    for damping in (0.0, 0.3):
        np.testing.assert_allclose(device.step(damping), host.step(damping), rtol=1e-10)
    assert device.decrement() == pytest.approx(host.decrement(), rel=1e-10)
    assert device.promised(u) == pytest.approx(host.promised(u), rel=1e-10)
    np.testing.assert_allclose(device.lower, host.lower, atol=1e-12)
    own = slice(1, 4)
    np.testing.assert_allclose(device.inverse(own)(u[own]), host.inverse(own)(u[own]), rtol=1e-10)
    assert device.condition == pytest.approx(host.condition, rel=0.5)
    assert isinstance(Sums(None, None, 0.0, 0).loss, float)
    assert push(on_device(np.eye(2)), on_device(np.ones((1, 2)))).shape == (2, 2)


@pytest.mark.parametrize("exponent", [0, 4, 9])
@pytest.mark.parametrize("size", [1, 2, 30])
def test_the_condition_number(size, exponent):
    rng = np.random.default_rng(size)
    q, _ = np.linalg.qr(rng.normal(size=(size, size)))
    matrix = (q * np.logspace(0, -exponent, size)) @ q.T
    matrix = 0.5 * (matrix + matrix.T)
    scale = 1.0 / np.sqrt(np.diagonal(matrix))
    exact = np.linalg.cond(scale[:, None] * matrix * scale, 1)
    lower = np.linalg.cholesky(matrix)
    estimate = scaled_condition(matrix, lower)
    assert 0.2 * exact < estimate < 1.01 * exact
    assert scaled_condition(on_device(matrix), on_device(lower)) == pytest.approx(estimate, rel=1e-6)


@pytest.mark.gpu
def test_a_fit_on_a_gpu(kernel, water_training):
    from kqeq.backend.devices import resolve

    try:
        device = resolve("cuda")
    except kqeq.errors.DeviceError as error:
        pytest.skip(str(error))
    frames = water_training[::2]
    assert_same_fit(fit(frames, device, kernel), fit(frames, CPU, kernel))
