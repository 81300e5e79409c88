"""Charge models on a device: the same numbers as on the host, and nothing copied while a problem is solved."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

import kqeq
from device_checks import STRICT, assert_same, on_device, stand_in_only
from kqeq.backend import CPU, Device, limit_memory, record_transfers
from kqeq.charges.base import SITE_KINDS, SiteChange
from kqeq.charges.flow import FreeFlow
from kqeq.frames.structures import read_structure

MODELS = {
    "qeq": kqeq.QEq,
    "fragments": lambda **o: kqeq.QEq(fragments=True, **o),
    "acks2": kqeq.ACKS2,
    "acks2, kernel": lambda **o: kqeq.ACKS2(reference_charges="kernel", **o),
    "latent": kqeq.LatentCharges,
    "latent, fragments": lambda **o: kqeq.LatentCharges(fragments=True, **o),
    "latent + dipoles": lambda **o: kqeq.AtomicDipoles(kqeq.LatentCharges(**o)),
    "qeq + dipoles": lambda **o: kqeq.AtomicDipoles(kqeq.QEq(**o)),
    "acks2 + dipoles, undamped": lambda **o: kqeq.AtomicDipoles(kqeq.ACKS2(**o), damping=False),
}


def structure(boundary):
    """Two water molecules, isolated, in a cell or on a surface; with fragments, charges and a field where it may be."""
    first, second = molecule("H2O"), molecule("H2O")
    second.rotate(70, (1, 2, 3))
    second.translate((2.5, 1.2, 0.7))
    atoms = Atoms(first) + second
    atoms.arrays["fragments"] = np.repeat([0, 1], 3)
    atoms.info["fragment_charges"] = [1.0, 0.0]
    atoms.info["total_charge"] = 1.0
    if boundary != "open":
        atoms.set_cell([[6.5, 0.3, 0], [0, 7.0, 0], [0.2, 0, 6.0]])
        atoms.pbc = (True, True, boundary == "bulk")
        atoms.center()
    if boundary != "bulk":
        atoms.info["external_field"] = (0.1, -0.2, 0.3) if boundary == "open" else (0.0, 0.0, 0.3)
    return read_structure(atoms)


def values(model, device, boundary):
    """Everything that system and state compute."""
    frame = structure(boundary)
    atoms = len(frame)
    rng = np.random.default_rng(0)
    put = np.asarray if device is CPU else on_device
    chi, dchi = put(rng.normal(size=atoms) + 5.0), put(rng.normal(size=(atoms, 4)))
    system = model.bind(frame, device=device)
    state = system.solve(chi, frame.external_field, frame.total_charge)
    numbers = {"energy": state.energy, "potential": state.chemical_potential, "hardness": system.hardness()}
    sites = state.site_gradient()
    kinds = [kind for kind in SITE_KINDS if getattr(sites, kind) is not None]
    change = SiteChange(**{kind: 0.1 * rng.normal(size=(atoms, 3)) for kind in kinds}).on(device.like)
    arrays = {
        "charges": state.charges,
        "dipoles": state.atomic_dipoles,
        "dipole": state.dipole,
        "reference": state.reference_gradient(),
        "gradient": state.gradient(),
        "strain": state.strain(),
        "polarizability": system.polarizability(),
        **{kind: getattr(sites, kind) for kind in kinds},
    }
    if not frame.pbc.all():
        arrays["polarizability change"] = system.polarizability_response(change)
    for name, response in {
        "chi": system.respond(dchi),
        "field": system.respond_field(),
        "charge": system.respond_total_charge(),
        "sites": state.respond_sites(change),
    }.items():
        if name == "field" and frame.pbc.all() and isinstance(system.flow, FreeFlow):
            continue  # nothing but zeros
        arrays[f"{name}: charges"] = response.charges
        arrays[f"{name}: dipole"] = response.dipole
        arrays[f"{name}: gradient"] = state.gradient_response(response)
        arrays[f"{name}: strain"] = state.strain_response(response)
    return numbers, arrays


@pytest.mark.parametrize("boundary", ["open", "bulk", "slab"])
@pytest.mark.parametrize("name", MODELS)
def test_the_same_numbers(name, boundary):
    model = MODELS[name]()
    numbers, arrays = values(model, CPU, boundary)
    on_numbers, on_arrays = values(model, STRICT, boundary)
    assert all(isinstance(value, float) for value in on_numbers.values())
    assert on_numbers == pytest.approx(numbers, rel=1e-10)
    for key, expected in arrays.items():
        if expected is None:
            assert on_arrays[key] is None
        else:
            assert_same(on_arrays[key], expected, relative=1e-9, trivial=np.abs(expected).max() < 1e-10)


@pytest.mark.parametrize("boundary", ["open", "bulk", "slab"])
@pytest.mark.parametrize("name", MODELS)
def test_the_same_numbers_without_a_matrix(name, boundary):
    if boundary == "slab" and "undamped" in name:
        pytest.skip("covered by the other boundaries")
    model = MODELS[name](solver="iterative", accuracy=1e-5)
    frame = structure(boundary)
    chi = np.linspace(4.0, 7.0, len(frame))
    states = [
        model.bind(frame, device=device).solve(own, frame.external_field, frame.total_charge)
        for device, own in ((CPU, chi), (STRICT, on_device(chi)))
    ]
    assert states[1].energy == pytest.approx(states[0].energy, rel=1e-9)
    assert_same(states[1].charges, states[0].charges, relative=1e-8)
    assert_same(states[1].gradient(), states[0].gradient(), relative=1e-8)


@pytest.mark.parametrize("solver", ["dense", "iterative"])
@pytest.mark.parametrize("make", [kqeq.QEq, kqeq.ACKS2], ids=["qeq", "acks2"])
def test_nothing_moves_while_a_problem_is_solved(make, solver):
    """In the loop of conjugate gradients two numbers are read in an iteration, and no array."""
    frame = structure("bulk")
    system = make(solver=solver, accuracy=1e-5).bind(frame, device=STRICT)
    linear = on_device(np.linspace(4.0, 7.0, len(frame))[:, None])
    with record_transfers() as moved:
        system.solver.stationary(linear, None)
    assert (moved.to_device, moved.to_host) == ([], [])
    if solver == "dense":
        assert moved.scalars == 0
    else:
        assert 5 < moved.scalars < 2 * 40


def test_chunks_change_nothing():
    expected = values(kqeq.ACKS2(), CPU, "bulk")
    with limit_memory(20_000):
        for device in (CPU, STRICT):
            numbers, arrays = values(kqeq.ACKS2(), device, "bulk")
            assert numbers == pytest.approx(expected[0], rel=1e-10)
            for key in ("gradient", "chi: gradient", "sites: strain"):
                if device is STRICT:
                    assert_same(arrays[key], expected[1][key], relative=1e-9)
                else:
                    np.testing.assert_allclose(arrays[key], expected[1][key], rtol=0, atol=1e-10)


def test_an_instable_problem_is_noticed_on_a_device():
    frame = structure("open")
    for solver in ("dense", "iterative"):
        model = kqeq.QEq(hardness={"H": -14.0, "O": -14.0}, solver=solver)
        with pytest.raises(kqeq.errors.NotPositiveDefiniteError):
            model.bind(frame, device=STRICT).solve(
                on_device(np.ones(len(frame))), frame.external_field, frame.total_charge
            )


@stand_in_only
def test_devices_name_themselves():
    assert (CPU.is_host, STRICT.is_host) == (True, False)
    assert "strict" in repr(STRICT) and isinstance(STRICT, Device)
