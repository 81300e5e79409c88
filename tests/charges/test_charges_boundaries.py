"""What every charge model must do in cells and slabs: size laws, vacuum, derivatives of whole models, bad input.

The laws of the Coulomb matrices themselves are tested in test_ewald.py; here charges and dipoles respond.
"""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose

import kqeq
from charge_checks import NO_FIELD, check_forces, check_strain, conditions, electronegativity, geometry
from checks import assert_close, assert_forces, strain_gradient
from kqeq.charges import ACKS2, AtomicDipoles, QEq
from kqeq.constants import COULOMB
from kqeq.errors import InputError

MODELS = {
    "QEq": QEq(),
    "ACKS2": ACKS2(),
    "QEq dipoles": AtomicDipoles(QEq()),
    "ACKS2 dipoles": AtomicDipoles(ACKS2()),
}
EVERY = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def boxed(structure, length):
    """The same atoms in a cubic cell."""
    return replace(structure, cell=length * np.eye(3), pbc=np.ones(3, dtype=bool))


@EVERY
def test_a_neutral_molecule_in_a_growing_box(model):
    """E_box − E_alone → −2πk_e μ²/(3V), μ with all that responds; what remains falls faster."""
    chi, case = electronegativity(), conditions(model, "open")
    alone = model.bind(case.structure).solve(chi, NO_FIELD, 0.0)
    assert np.linalg.norm(alone.dipole) > 0.1
    for length, share in ((10.0, 0.1), (20.0, 0.02)):
        box = model.bind(boxed(case.structure, length)).solve(chi, NO_FIELD, 0.0)
        law = -2.0 * np.pi * COULOMB * alone.dipole @ alone.dipole / (3.0 * length**3)
        assert abs(law) > 1e-5
        assert_allclose(box.energy - alone.energy, law, rtol=share)


@EVERY
def test_a_charged_molecule_in_a_growing_box(model):
    """E_box − E_alone → −1.41865 k_e Q²/L; what remains falls as L^-3."""
    chi, case = electronegativity(), conditions(model, "open", 1.0)
    alone = model.bind(case.structure).solve(chi, NO_FIELD, 1.0)
    rest = []
    for length in (20.0, 40.0):
        box = model.bind(boxed(case.structure, length)).solve(chi, NO_FIELD, 1.0)
        law = -1.418648739740 * COULOMB / length
        rest.append(box.energy - alone.energy - law)
        assert_allclose(box.energy - alone.energy, law, rtol=0.03)
    assert_allclose(rest[0] / rest[1], 8.0, rtol=0.05)


@EVERY
@pytest.mark.parametrize("total_charge", [0.0, 1.0], ids=["neutral", "charged"])
def test_the_vacuum_of_a_slab_does_not_matter(model, total_charge):
    """Whatever its height, and whether the third cell vector stands upright."""
    chi = electronegativity()
    states = []
    for third in ([0.3, -0.2, 14.0], [0.0, 0.0, 25.0], [5.0, 2.0, 60.0]):
        structure = geometry("slab", total_charge=total_charge)
        cell = structure.cell.copy()
        cell[2] = third
        states.append(model.bind(replace(structure, cell=cell)).solve(chi, NO_FIELD, total_charge))
    for state in states[1:]:
        assert_allclose(state.energy, states[0].energy, atol=1e-7)
        assert_allclose(state.charges, states[0].charges, atol=1e-8)
        assert_allclose(state.gradient(), states[0].gradient(), atol=1e-7)
    assert np.abs(states[0].gradient()).max() > 0.05


@EVERY
def test_a_cell_with_growing_vacuum_becomes_a_slab(model):
    """E_slab − E_cell → 2πk_e μ_z²/V: the field between periodic layers, which falls as 1/height."""
    chi = electronegativity()
    structure = geometry("slab")
    flat = structure.cell.copy()
    flat[0, 2] = flat[1, 2] = 0.0  # the normal along z
    rest = []
    for height in (30.0, 60.0):
        flat[2] = [0.0, 0.0, height]
        slab = model.bind(replace(structure, cell=flat.copy())).solve(chi, NO_FIELD, 0.0)
        cell = replace(structure, cell=flat.copy(), pbc=np.ones(3, dtype=bool))
        bulk = model.bind(cell).solve(chi, NO_FIELD, 0.0)
        law = 2.0 * np.pi * COULOMB * slab.dipole[2] ** 2 / abs(np.linalg.det(flat))
        assert law > 2e-4
        rest.append(slab.energy - bulk.energy - law)
        assert abs(rest[-1]) < 0.1 * law
    assert_allclose(rest[0] / rest[1], 4.0, rtol=0.2)  # the dipole's response to that field


@EVERY
@pytest.mark.parametrize("boundary", ["slab", "bulk"])
@pytest.mark.parametrize("check", [check_forces, check_strain], ids=lambda f: f.__name__)
def test_derivatives_of_charged_cells_and_slabs(model, boundary, check):
    check(conditions(model, boundary, 1.0))


# whole models --------------------------------------------------------------------------------------


def salt(rng):
    """Four ions in a distorted, triclinic cell, with labels that keep kernels and charges busy."""
    cell = np.array([[4.0, 0.2, -0.1], [0.3, 4.2, 0.2], [-0.2, 0.4, 4.1]])
    places = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    atoms = Atoms("ClClNaNa", cell=cell, pbc=True)
    atoms.positions = places @ cell + 0.1 * rng.normal(size=(4, 3))
    atoms.info["energy"] = rng.normal()
    forces = rng.normal(size=(4, 3))
    atoms.arrays["forces"] = forces - forces.mean(axis=0)
    atoms.arrays["charges"] = np.array([-0.6, -0.4, 0.3, 0.7])
    return atoms


@EVERY
@pytest.mark.parametrize("slab", [False, True], ids=["bulk", "slab"])
def test_forces_and_stress_of_a_fitted_model(model, slab):
    """Energy of kernels and charges together, against finite differences to 1e-6."""
    rng = np.random.default_rng(3)
    kernel = kqeq.SOAPKernel(r_cut=3.0, n_max=3, l_max=2, n_representatives=4, smooth="switch")
    fitted = kqeq.KQEq(
        kernel,
        kernel,
        charges=model,
        targets=["energy", "forces", "charges"],
        charges_key="charges",
        noise={"energy": 0.5, "forces": 1.0, "charges": 0.05},
    )
    fitted.fit([salt(rng) for _ in range(3)])
    frame = salt(rng)
    atoms = Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=[True, True, not slab])
    if slab:
        atoms.cell[2] = [0.0, 0.0, 14.0]

    def energy(other):
        return fitted.predict(other, properties=["energy"]).energy

    found = fitted.predict(atoms, properties=["energy", "forces", "stress", "charges"])
    assert np.abs(found.charges).max() > 1e-3
    assert_forces(found.forces, energy, atoms, h=2e-3, at_least=0.02)
    strain = strain_gradient(energy, atoms, h=1e-3)
    assert_close(found.stress * atoms.get_volume(), 0.5 * (strain + strain.T), at_least=0.1)


# bad input ----------------------------------------------------------------------------------------


@EVERY
def test_a_slab_whose_vacuum_is_on_a_periodic_axis(model):
    structure = geometry("slab")
    wrong = replace(structure, pbc=np.array([False, True, True]))
    with pytest.raises(InputError, match=r"periodic.*wrong order"):
        model.bind(wrong)


@EVERY
@pytest.mark.parametrize("solver", ["dense", "iterative"])
def test_cells_without_volume_and_nan(model, solver):
    inner = model.inner if isinstance(model, AtomicDipoles) else model
    chosen = inner.set_params(solver=solver) if inner is model else model.set_params(inner__solver=solver)
    try:
        structure = geometry("bulk")
        for cell in (np.diag([5.0, 5.0, 0.0]), np.ones((3, 3))):
            with pytest.raises(InputError, match=r"volume|dependent"):
                chosen.bind(replace(structure, cell=cell))
        broken = structure.positions.copy()
        broken[2, 1] = np.nan
        with pytest.raises(InputError, match=r"atoms \[2\]"):
            chosen.bind(replace(structure, positions=broken))
    finally:
        inner.set_params(solver="auto")
