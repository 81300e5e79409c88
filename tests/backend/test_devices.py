"""Choosing a device, and prediction there: the CPU's numbers, nothing copied in between, errors that say why."""

import sys
import types
from dataclasses import replace

import numpy as np
import pytest

import kqeq
from device_checks import STRICT
from kqeq import backend, devices
from kqeq.backend import CPU, Device, limit_memory, record_transfers
from kqeq.errors import DeviceError, InputError
from kqeq.frames.structures import read_structure
from kqeq.potential.fixed_geometry import FixedGeometry


@pytest.fixture(autouse=True)
def fresh():
    """Forget what was probed and said."""
    devices._probe.cache_clear()
    devices._say_once.cache_clear()
    yield
    devices._probe.cache_clear()
    devices._say_once.cache_clear()


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(devices, "say", lines.append)
    return lines


def assert_equal_predictions(result, expected, relative=1e-9):
    for name, value in vars(expected).items():
        other = getattr(result, name)
        if value is None:
            assert other is None, name
            continue
        if isinstance(value, dict):  # what the data do not determine, with standard deviations
            assert other == pytest.approx(value, rel=relative), name
            continue
        assert isinstance(other, float | np.ndarray), name
        scale = max(np.abs(value).max(initial=0.0), 1e-3)
        np.testing.assert_allclose(other, value, rtol=0, atol=relative * scale, err_msg=name)


# ------------------------------------------------------------------ prediction


def frames(water_systems):
    one, two = water_systems["water2"][0].copy(), water_systems["hydronium"][1].copy()
    one.info = {"external_field": (0.05, 0.0, -0.1)}
    two.info = {"total_charge": 1.0}
    cell = water_systems["water2"][2].copy()
    cell.info = {}
    cell.set_cell([7.0, 7.5, 8.0])
    cell.pbc = True
    slab = cell.copy()
    slab.pbc = (True, True, False)
    return [one, two, cell, slab]


@pytest.mark.parametrize("which", ["water_model", "dipole_model", "short_range_model"])
def test_prediction_on_a_device(which, water_systems, request):
    model = request.getfixturevalue(which)
    for atoms in frames(water_systems):
        if which == "short_range_model":
            atoms.info.pop("external_field", None)
        expected = model.predict(atoms)
        with record_transfers() as moved:
            result = model.predict(atoms, device=STRICT)
        assert_equal_predictions(result, expected)
        assert np.abs(expected.forces).max() > 1e-2
        # forces, strain, charges, dipole, polarizability, electronegativities; before that, positions for neighbours, and
        # from each descriptor the number of neighbours of every atom; charges and their response, for what the data do
        # not determine
        assert len(moved.to_host) <= (14 if atoms.pbc.any() else 10)
        assert max(moved.to_host) <= 8 * 3 * len(atoms) + 72


def test_many_structures_at_once(water_model, water_systems):
    batch = [a for name in ("water1", "water2") for a in water_systems[name][:3]]
    expected = water_model.predict(batch)
    for result, other in zip(water_model.predict(batch, device=STRICT), expected, strict=True):
        assert_equal_predictions(result, other)


@pytest.mark.parametrize("charges", [kqeq.ACKS2(), kqeq.AtomicDipoles(kqeq.QEq())], ids=["acks2", "dipoles"])
def test_other_charge_models(charges, kernel, water_training, water_systems):
    model = kqeq.KQEq(kernel(3.5), kernel(4.0, zeta=2.5), charges, baseline="zbl", max_iterations=2)
    with pytest.warns(kqeq.errors.KQEqWarning):
        model.fit(water_training[:6])
    atoms = frames(water_systems)[0]
    assert_equal_predictions(model.predict(atoms, device=STRICT), model.predict(atoms))


def test_a_short_range_energy_that_sees_the_charges(water_model, water_systems):
    potential = water_model.potential_
    terms = tuple(
        (own, {z: 0.3 * c for z, c in coefficients.items()})
        for own, coefficients in potential.short_range.terms
    )
    weaker = replace(potential.short_range, terms=terms)
    aware = replace(potential, charge_kernel=kqeq.ChargeKernel(order=2), charge_powers=(weaker, weaker))
    for atoms in frames(water_systems):
        structure = read_structure(atoms)
        expected = aware.predict(structure)
        assert abs(expected.energy - potential.predict(structure).energy) > 1e-6
        assert_equal_predictions(aware.predict(structure, device=STRICT), expected)


def test_one_geometry_under_several_conditions(water_model, water_systems):
    structure = read_structure(frames(water_systems)[0])
    here, there = (
        FixedGeometry.at(water_model.potential_, structure, device=device) for device in (CPU, STRICT)
    )
    for charge in (0.0, 1.0):
        with record_transfers() as moved:
            result = there.under(charge).predict(("energy", "forces", "dipole"))
        assert_equal_predictions(result, here.under(charge).predict(("energy", "forces", "dipole")))
        assert max(moved.to_host) <= 24 * len(structure)


def test_a_small_budget_changes_nothing(water_model, water_systems):
    for atoms in frames(water_systems):
        expected = water_model.predict(atoms)
        with limit_memory(50_000):
            assert_equal_predictions(water_model.predict(atoms, device=STRICT), expected)
            assert_equal_predictions(water_model.predict(atoms), expected)


def test_single_precision_is_close_and_not_the_same(water_model, water_systems):
    atoms = frames(water_systems)[0]
    expected = water_model.predict(atoms)
    for device in ("cpu", STRICT):
        result = water_model.predict(atoms, device=device, precision="float32")
        error = np.abs(result.forces - expected.forces).max()
        assert 0.0 < error < 1e-3
        assert result.energy == pytest.approx(expected.energy, rel=1e-12)
        np.testing.assert_allclose(result.charges, expected.charges, rtol=1e-9)
        assert result.forces.dtype == np.float64


def test_calculator_on_a_device(water_model, water_systems):
    for atoms in frames(water_systems)[:3]:
        values = {}
        for device in ("cpu", STRICT):
            atoms.calc = kqeq.KQEqCalculator(water_model, device=device)
            values[device] = (
                atoms.get_potential_energy(),
                atoms.get_forces(),
                atoms.calc.results.get("stress"),
            )
        assert values[STRICT][0] == pytest.approx(values["cpu"][0], rel=1e-10)
        np.testing.assert_allclose(values[STRICT][1], values["cpu"][1], atol=1e-9)
        if atoms.pbc.any():
            np.testing.assert_allclose(values[STRICT][2], values["cpu"][2], atol=1e-10)


def test_single_precision_in_the_calculator(water_model, water_systems):
    atoms = frames(water_systems)[0]
    atoms.calc = kqeq.KQEqCalculator(water_model, precision="float32")
    assert 0.0 < np.abs(atoms.get_forces() - water_model.predict(atoms).forces).max() < 1e-3


# ------------------------------------------------------------------ choices


def test_wrong_names_are_refused(water_model, water_systems):
    atoms = frames(water_systems)[0]
    with pytest.raises(InputError, match="'gpu'; expected one of 'cpu', 'cuda', 'auto'"):
        water_model.predict(atoms, device="gpu")
    with pytest.raises(InputError, match="'tf32'"):
        water_model.predict(atoms, precision="tf32")
    with pytest.raises(InputError, match="'gpu'"):
        kqeq.KQEqCalculator(water_model, device="gpu")


class CUDARuntimeError(RuntimeError):
    """As CuPy's, which lives in a module of that name."""


CUDARuntimeError.__module__ = "cupy_backends.cuda.api.runtime"


def fake_cupy(monkeypatch, error, driver=13000):
    """A CuPy whose first allocation fails."""

    def empty(*_):
        raise error

    module = types.ModuleType("cupy")
    module.empty = empty
    runtime = types.SimpleNamespace(driverGetVersion=lambda: driver, runtimeGetVersion=lambda: 13000)
    module.cuda = types.SimpleNamespace(runtime=runtime)
    monkeypatch.setitem(sys.modules, "cupy", module)


TROUBLE = {
    "no cupy": (None, 0, "CuPy is not installed"),
    "no libraries": (
        ImportError("Failure finding libcublasLt.so.13\nmore"),
        13000,
        r"libcublasLt.*cupy-cuda13x\[ctk\]",
    ),
    "no driver": (
        CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient"),
        0,
        "no NVIDIA driver",
    ),
    "old driver": (
        CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient"),
        12040,
        r"supports CUDA 12\.4, and the installed CuPy needs 13\.0",
    ),
    "no device": (
        CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected"),
        13000,
        "VISIBLE",
    ),
    "full": (MemoryError("Out of memory allocating 512 bytes"), 13000, "no memory left"),
    "broken": (CUDARuntimeError("cudaErrorUnknown: unknown error"), 13000, "does not work: cudaErrorUnknown"),
}


@pytest.mark.parametrize("name", TROUBLE)
def test_a_gpu_that_does_not_work(name, monkeypatch, said, water_model, water_systems):
    error, driver, text = TROUBLE[name]
    if error is None:
        monkeypatch.setitem(sys.modules, "cupy", None)
    else:
        fake_cupy(monkeypatch, error, driver)
    atoms = frames(water_systems)[0]
    with pytest.raises(DeviceError, match=f'(?s)device="cuda" was asked for, but .*{text}'):
        water_model.predict(atoms, device="cuda")
    with pytest.raises(DeviceError, match=text):
        kqeq.KQEqCalculator(water_model, device="cuda")
    expected = water_model.predict(atoms)
    for _ in range(2):
        assert_equal_predictions(water_model.predict(atoms, device="auto"), expected, relative=0.0)
    # once; and nobody without CuPy is told that there is no GPU
    assert len(said) == (0 if name == "no cupy" else 1)
    assert all("\n" not in line for line in said)


def test_a_gpu_that_works_is_used_and_named_once(monkeypatch, said, water_model, water_systems):
    monkeypatch.setattr(backend, "cuda_device", lambda: STRICT)
    monkeypatch.setattr(backend, "cuda_name", lambda: "Pretended GPU")
    atoms = frames(water_systems)[0]
    for device in ("auto", "cuda", "auto"):
        with record_transfers() as moved:
            water_model.predict(atoms, device=device)
        assert moved.to_device
    assert said == ["kqeq computes on Pretended GPU (CUDA)"]
    assert devices.resolve("cpu") is CPU and devices.resolve(STRICT) is STRICT


class Failing(Device):
    """A device whose first use fails."""


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError("Out of memory allocating 8,000,000 bytes"), 'ran out of memory.*solver="iterative"'),
        (
            CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access"),
            "failed: cudaErrorIllegalAddress",
        ),
    ],
    ids=["memory", "illegal"],
)
def test_a_gpu_that_fails_in_the_middle(error, text, monkeypatch, said, water_model, water_systems):
    from kqeq.electrostatics import OpenCoulomb

    atoms = frames(water_systems)[0]
    expected = water_model.predict(atoms)
    original = OpenCoulomb.matrix
    attempts = []

    def matrix(self):
        if not isinstance(self._positions, np.ndarray):
            attempts.append(1)
            raise error
        return original(self)

    monkeypatch.setattr(OpenCoulomb, "matrix", matrix)
    monkeypatch.setattr(backend, "cuda_device", lambda: STRICT)
    monkeypatch.setattr(backend, "cuda_name", lambda: "Pretended GPU")
    with pytest.raises(DeviceError, match=text):
        water_model.predict(atoms, device="cuda")
    assert_equal_predictions(water_model.predict(atoms, device="auto"), expected)
    assert said[-1].startswith("kqeq goes on with the CPU: ")
    del attempts[:]
    atoms.calc = kqeq.KQEqCalculator(water_model, device="auto")
    for _ in range(3):
        atoms.rattle(1e-3)
        atoms.get_forces()
    assert len(attempts) == 1  # not tried again at every step


def test_errors_of_our_own_pass_unchanged():
    def task(_):
        raise InputError("wrong input")

    with pytest.raises(InputError, match="wrong input"):
        devices.run(STRICT, task)
    with pytest.raises(MemoryError):  # the host's own shortage is not the GPU's
        devices.run("cpu", lambda _: (_ for _ in ()).throw(MemoryError()))


# ------------------------------------------------------------------ a real GPU


def needs_gpu():
    try:
        return devices.resolve("cuda")
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.mark.gpu
def test_prediction_on_a_gpu(water_model, water_systems):
    device = needs_gpu()
    for atoms in frames(water_systems):
        assert_equal_predictions(water_model.predict(atoms, device=device), water_model.predict(atoms))
