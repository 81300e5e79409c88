"""Charges that follow auxiliary ones: exact derivatives, conservation, restarts, products."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.md.verlet import VelocityVerlet
from sklearn.base import clone

import kqeq
from kqeq.calculator import KQEqCalculator
from kqeq.charges.shadow import PRODUCTS, AuxiliaryCharges
from kqeq.charges.solvers import IterativeSolver
from kqeq.errors import InputError, UnsupportedError
from kqeq.fitting.report import FitReport
from kqeq.frames.structures import read_structure
from kqeq.kernels.representatives import build_feature_map
from kqeq.kernels.settings import SOAPKernel
from kqeq.potential import Potential, SiteModel


def box(seed=0):
    """Four water molecules in a periodic cell."""
    rng = np.random.default_rng(seed)
    atoms = Atoms(cell=[6.2, 6.2, 3.1], pbc=True)
    for place in np.ndindex(2, 2, 1):
        one = molecule("H2O")
        one.rotate(rng.uniform(0, 360), rng.normal(size=3))
        one.positions += (np.array(place) + 0.5) * 3.1
        atoms += one
    return atoms


def built(charges, *, sites=False):
    """A model that was not fitted: electronegativities that depend on the environment."""
    structures = [read_structure(box(seed)) for seed in range(1, 4)]
    rng = np.random.default_rng(0)
    kernel = SOAPKernel(r_cut=2.5, n_max=3, l_max=2, sigma=0.4, zeta=2, n_representatives=8, smooth="switch")
    feature_map = build_feature_map(kernel, structures, (1, 8))

    def expansion(scale):
        return {z: scale * rng.normal(size=rows.shape[0]) for z, rows in feature_map.representatives.items()}

    potential = Potential(
        species=(1, 8),
        energy_offsets={1: 0.0, 8: 0.0},
        electronegativity=SiteModel(((feature_map, expansion(0.3)),), {1: 4.5, 8: 8.5}),
        charges=charges,
        short_range=SiteModel(((feature_map, expansion(0.1)),), {1: 0.0, 8: 0.0}),
        baseline=None,
        training_charges=(0.0, 1.0),
        has_energy=True,
        sites={"hardness": SiteModel(((feature_map, expansion(0.02)),), {1: 0.0, 8: 0.0})} if sites else {},
    )
    model = kqeq.KQEq(charges=clone(charges))
    model._set_fitted(potential, FitReport(0, 0, 0, 0, {}, {}, {}, (), True, 0.0, 0.0, ()), None)
    return model


@pytest.fixture(scope="module")
def model():
    return built(kqeq.QEq())


def shadowed(model, atoms, auxiliary=None):
    atoms.calc = KQEqCalculator(model, shadow=True)
    atoms.calc.auxiliary = auxiliary
    return atoms


@pytest.mark.parametrize("sites", [False, True])
@pytest.mark.parametrize("periodic", [True, False])
def test_forces_and_stress_are_derivatives_at_fixed_auxiliary_charges(sites, periodic):
    model = built(kqeq.QEq(), sites=sites)
    rng = np.random.default_rng(1)
    start = box()
    start.pbc = periodic
    start.info["total_charge"] = 1.0
    if not periodic:
        start.info["external_field"] = np.array([0.05, 0.0, -0.1])
    exact = start.copy()
    exact.calc = KQEqCalculator(model)
    away = exact.get_charges() + 0.1 * rng.normal(size=len(start))
    auxiliary = AuxiliaryCharges(away[None, :])

    def energy(positions, cell):
        atoms = start.copy()
        atoms.set_cell(cell)
        atoms.positions = positions
        return shadowed(model, atoms, auxiliary).get_potential_energy()

    atoms = shadowed(model, start.copy(), auxiliary)
    forces = atoms.get_forces()
    assert abs(atoms.get_charges().sum() - 1.0) < 1e-10
    assert np.abs(atoms.get_charges() - away).max() > 0.02  # not at the minimum
    assert np.abs(forces - exact.get_forces()).max() > 1e-3
    x, cell, h = start.positions, start.cell.array, 1e-4
    direction = rng.normal(size=x.shape)
    slope = (energy(x + h * direction, cell) - energy(x - h * direction, cell)) / (2 * h)
    assert abs(slope) > 0.01
    assert -np.sum(forces * direction) == pytest.approx(slope, rel=1e-5)
    if periodic:
        strain = np.array([[0.3, 0.5, 0.0], [0.5, -0.2, 0.1], [0.0, 0.1, 0.4]])
        ends = [np.eye(3) + sign * h * strain for sign in (1, -1)]
        above, below = (energy(x @ end, cell @ end) for end in ends)
        work = np.sum(atoms.get_stress(voigt=False) * strain) * start.get_volume()
        assert work == pytest.approx((above - below) / (2 * h), rel=1e-5)


def test_second_order_close_to_the_energy(model):
    exact = box()
    exact.calc = KQEqCalculator(model)
    charges, energy = exact.get_charges(), exact.get_potential_energy()
    off = np.random.default_rng(2).normal(size=len(charges))
    off -= off.mean()
    errors = [
        shadowed(model, box(), AuxiliaryCharges((charges + scale * off)[None, :])).get_potential_energy()
        - energy
        for scale in (0.02, 0.01)
    ]
    assert abs(errors[1]) > 1e-6
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.02)


def run(model, atoms, steps, dt=0.4):
    """Total energies along a trajectory."""
    energies = []
    for _ in VelocityVerlet(atoms, dt * units.fs).irun(steps):
        energies.append(atoms.get_total_energy())
    return np.array(energies)


def moving(seed=3):
    atoms = box()
    rng = np.random.default_rng(seed)
    atoms.set_momenta(np.sqrt(0.02 * atoms.get_masses())[:, None] * rng.normal(size=(len(atoms), 3)))
    return atoms


def test_conserves_energy_follows_the_minimum_and_needs_few_products(model, monkeypatch):
    count, original = [0], IterativeSolver.product

    def product(self, vector):
        count[0] += 1
        return original(self, vector)

    monkeypatch.setattr(IterativeSolver, "product", product)
    atoms = shadowed(model, moving())
    energies = run(model, atoms, 2)[:-1]  # begins with two solutions, and looks for the spectrum
    count[0] = 0
    energies = np.concatenate([energies, run(model, atoms, 58)])
    assert 0 < count[0] <= 58 * PRODUCTS
    assert PRODUCTS <= 4
    reference = moving()
    reference.calc = KQEqCalculator(model)
    plain = run(model, reference, 60)
    kinetic = atoms.get_kinetic_energy()
    assert kinetic > 0.1
    # fluctuations of velocity Verlet itself, and nothing on top
    assert np.ptp(energies) < 1.2 * np.ptp(plain) + 1e-6
    assert np.ptp(energies) < 0.02 * kinetic
    assert np.abs(atoms.positions - reference.positions).max() < 1e-3
    assert np.abs(atoms.positions - box().positions).max() > 0.05
    assert np.abs(atoms.get_charges() - reference.get_charges()).max() < 1e-3


def test_a_restart_changes_nothing(model):
    whole = shadowed(model, moving())
    run(model, whole, 12)
    half = shadowed(model, moving())
    run(model, half, 6)
    saved = half.calc.auxiliary.history.copy(), half.calc.auxiliary.spectrum
    assert saved[0].shape == (2, len(half))
    again = half.copy()  # positions and velocities
    shadowed(model, again, AuxiliaryCharges(*saved))
    run(model, again, 6)
    np.testing.assert_allclose(again.positions, whole.positions, rtol=0, atol=1e-10)
    np.testing.assert_allclose(again.calc.auxiliary.history, whole.calc.auxiliary.history, rtol=0, atol=1e-9)
    # without the saved state the charges start at the minimum: close, but not the same
    other = shadowed(model, half.copy())
    run(model, other, 6)
    assert np.abs(other.calc.auxiliary.history - whole.calc.auxiliary.history).max() > 1e-8


def test_integration_is_time_reversible(model):
    """Back to where it came from: nothing is damped, and the kernel does not depend on what came before."""
    atoms = shadowed(model, moving())
    run(model, atoms, 4)
    start, begun = atoms.positions.copy(), atoms.calc.auxiliary.history[0]
    run(model, atoms, 20)
    assert np.abs(atoms.positions - start).max() > 0.02
    now = atoms.calc.auxiliary
    assert np.abs(now.history[0] - begun).max() > 1e-3
    # the way back comes from the next point
    ahead = now.after(atoms.calc._geometry.system.solved[0]).history[0]
    back = atoms.copy()
    back.set_momenta(-atoms.get_momenta())
    shadowed(model, back, AuxiliaryCharges(np.stack([now.history[0], ahead]), now.spectrum))
    run(model, back, 20)
    assert np.abs(back.positions - start).max() < 1e-9
    assert np.abs(back.calc.auxiliary.history[0] - begun).max() < 1e-8


def test_another_system_starts_anew(model):
    calculator = KQEqCalculator(model, shadow=True)
    atoms = box()
    calculator.get_potential_energy(atoms)
    smaller = atoms[:3]
    found = calculator.get_property("charges", smaller)
    assert found.shape == (3,)
    assert calculator.auxiliary.history.shape[1] == 3
    jumped = smaller.copy()
    jumped.positions[0] += 2.0
    energy = calculator.get_potential_energy(jumped)
    assert energy == pytest.approx(KQEqCalculator(model).get_potential_energy(jumped), abs=1e-6)


def test_refuses_what_it_cannot():
    with pytest.raises(UnsupportedError, match="ACKS2"):
        KQEqCalculator(built(kqeq.ACKS2()), shadow=True)
    model = built(kqeq.QEq())
    with pytest.raises(InputError, match="shadow is 'yes'"):
        KQEqCalculator(model, shadow="yes")
    with pytest.raises(InputError, match="shadow=True"):
        KQEqCalculator(model).auxiliary = None
    with pytest.raises(InputError, match="AuxiliaryCharges"):
        KQEqCalculator(model, shadow=True).auxiliary = np.zeros(3)
