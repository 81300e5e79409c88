"""A short-range model of periodic structures from fit to relaxation.

The reference is ASE's effective-medium potential for Al and Ni: cheap, smooth, and with stresses, so that what is
learned can be compared with the truth, for cells that are smaller than the cutoff, triclinic, slabs and wires.
"""

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, fcc111, make_supercell
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import FrechetCellFilter, UnitCellFilter
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

import kqeq
from checks import (
    assert_close,
    assert_forces,
    bare,
    rotation,
    strain_gradient,
)
from kqeq.calculator import PropertyUnavailableError
from kqeq.descriptors.soap.descriptor import SOAPDescriptor
from kqeq.errors import InputError, UnsupportedError
from kqeq.frames.neighbours import find_pairs
from kqeq.frames.structures import read_structure

SMOOTH = ("none", "switch")
R_CUT = 3.6  # Å

STEP = {"none": 1e-4, "switch": 1e-3}
"""Steps of finite differences, Å: short where a pair of atoms that crosses the sharp cutoff would spoil them."""

CLEARANCE = 1.5e-3
"""How far pairs move in finite differences with the short step, Å."""


def labelled(atoms):
    """A frame with the labels of the effective-medium potential."""
    calculator = EMT()
    reference = atoms.copy()
    reference.calc = calculator
    results = {"energy": reference.get_potential_energy(), "forces": reference.get_forces()}
    if atoms.pbc.all():
        results["stress"] = reference.get_stress()
    frame = atoms.copy()
    frame.calc = SinglePointCalculator(frame, **results)
    return frame


def strained(atoms, rng, size=0.04):
    """A copy in a deformed cell."""
    copy = atoms.copy()
    copy.set_cell(atoms.cell.array @ (np.eye(3) + rng.uniform(-size, size, (3, 3))), scale_atoms=True)
    return copy


def alloy(rng, amplitude=0.12):
    """AlNi3 in a cell of four atoms, deformed and with displaced atoms: smaller than the cutoff, triclinic."""
    atoms = bulk("Ni", "fcc", a=3.55, cubic=True)
    atoms.symbols[:1] = "Al"
    atoms = strained(atoms, rng)
    atoms.positions += rng.uniform(-amplitude, amplitude, (4, 3))
    return atoms


def slab(rng, amplitude=0.1):
    """A slab with pbc (T, T, F)."""
    atoms = fcc111("Ni", (1, 1, 3), a=3.55, vacuum=5.0)
    atoms.symbols[-1] = "Al"
    atoms.positions += rng.uniform(-amplitude, amplitude, (3, 3))
    assert atoms.pbc.tolist() == [True, True, False]
    return atoms


def wire(rng):
    """A zigzag wire, periodic along z only, in a cell that is oblique."""
    cell = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.3, 0.2, 4.9]]
    positions = [[0.0, 0.0, 0.1], [0.4, 1.2, 1.6], [-0.2, 0.1, 3.3], [0.9, 1.9, 3.9]]
    atoms = Atoms("NiAlNiNi", positions=positions, cell=cell, pbc=(False, False, True))
    atoms.positions += rng.uniform(-0.1, 0.1, (4, 3))
    return atoms


def outside(atoms):
    """The same structure with atoms in other cells."""
    copy = atoms.copy()
    jumps = np.random.default_rng(8).integers(-2, 3, (len(atoms), 3)) * atoms.pbc
    copy.positions += jumps @ atoms.cell.array
    assert np.abs(copy.positions - atoms.positions).max() > 2.0
    return copy


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(0)
    cells = [labelled(alloy(rng)) for _ in range(24)]
    return {
        "train": cells[:18] + [labelled(slab(rng)) for _ in range(6)],
        "test": cells[18:],
        "slabs": [labelled(slab(rng)) for _ in range(3)],
    }


def short_range(frames, smooth):
    kernel = kqeq.SOAPKernel(r_cut=R_CUT, n_max=5, l_max=4, zeta=2, n_representatives=24, smooth=smooth)
    model = kqeq.KQEq(electronegativity=None, charges=None, short_range=kernel)
    return model.fit(frames)


@pytest.fixture(scope="module")
def models(frames):
    return {smooth: short_range(frames["train"], smooth) for smooth in SMOOTH}


@pytest.fixture(params=SMOOTH)
def model(models, request):
    return models[request.param]


def fresh(build, seed=77):
    """A structure that no model was fitted to, without a pair of atoms close to the sharp cutoff."""
    rng = np.random.default_rng(seed)
    sharp = SOAPDescriptor(R_CUT, 5, 4).cutoff
    while True:
        atoms = build(rng)
        lengths = np.linalg.norm(find_pairs(read_structure(atoms), sharp + 1.0).vectors, axis=1)
        if np.abs(lengths - sharp).min() > CLEARANCE:
            return atoms


@pytest.fixture
def cell():
    """A triclinic cell."""
    return fresh(alloy)


def energy_of(model):
    return lambda atoms: model.predict(atoms, properties=["energy"]).energy


# ----------------------------------------------------------------------------------------------------- fit


def test_learns_energies_forces_and_stresses_of_cells_and_slabs(model, frames):
    errors = model.evaluate(frames["test"])
    assert set(errors) == {"energy", "forces", "stress"}
    for kind in errors:
        assert errors[kind].r2 > 0.97, kind
    on_slabs = model.evaluate(frames["slabs"])
    assert set(on_slabs) == {"energy", "forces"}
    assert on_slabs["forces"].r2 > 0.9


def test_report_says_what_was_used(model, frames):
    used = model.fit_report_.used
    assert used["energy"] == used["forces"] == len(frames["train"])
    assert used["stress"] == 18  # slabs have none
    assert "short-range" in model.fit_report_.representatives


def test_stresses_alone_move_the_fit(frames):
    """Stress labels are rows of the fit, not decoration."""
    kernel = kqeq.SOAPKernel(r_cut=R_CUT, n_max=4, l_max=3, zeta=2, n_representatives=16, smooth="switch")
    rmse = {}
    for targets in (("energy",), ("energy", "stress")):
        model = kqeq.KQEq(electronegativity=None, charges=None, short_range=kernel, targets=targets)
        rmse[targets] = model.fit(frames["train"][:18]).evaluate(frames["test"])["stress"].rmse
    assert rmse["energy", "stress"] < 0.7 * rmse[("energy",)]


# -------------------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize("where", [lambda a: a, outside], ids=["wrapped", "unwrapped"])
@pytest.mark.parametrize("smooth", SMOOTH)
def test_forces_and_stress_of_a_triclinic_cell(models, cell, where, smooth):
    model, atoms, h = models[smooth], where(cell), STEP[smooth]
    prediction = model.predict(atoms)
    energy = energy_of(model)
    assert_forces(prediction.forces, energy, atoms, h=h, at_least=1.0)
    np.testing.assert_allclose(prediction.forces.sum(axis=0), 0.0, atol=1e-10)
    expected = strain_gradient(energy, atoms, h=0.5 * h) / atoms.get_volume()
    assert_close(prediction.stress, expected, at_least=0.02)
    np.testing.assert_allclose(expected, expected.T, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("smooth", SMOOTH)
def test_forces_and_stress_of_a_slab(models, smooth):
    model, h = models[smooth], STEP[smooth]
    atoms = fresh(slab)
    prediction = model.predict(atoms)
    assert_forces(prediction.forces, energy_of(model), atoms, h=h, at_least=0.3)
    strain = strain_gradient(energy_of(model), atoms, h=0.5 * h)
    assert_close(prediction.stress * atoms.get_volume(), strain, at_least=0.5)


def test_open_directions_of_the_cell_do_not_matter(model):
    """Energy and forces of a slab know nothing of its third cell vector, whatever it is."""
    atoms = fresh(slab)
    expected = model.predict(atoms)
    for third in ([0.0, 0.0, 40.0], [1.0, -2.0, 3.0], [0.0, 0.0, 0.0]):
        other = atoms.copy()
        other.cell[2] = third
        prediction = model.predict(other)
        assert prediction.energy == pytest.approx(expected.energy, abs=1e-10)
        np.testing.assert_allclose(prediction.forces, expected.forces, atol=1e-10)


@pytest.mark.parametrize("smooth", SMOOTH)
def test_forces_of_a_wire(models, smooth):
    model, atoms = models[smooth], fresh(wire)
    prediction = model.predict(atoms)
    assert_forces(prediction.forces, energy_of(model), atoms, h=STEP[smooth], at_least=0.3)
    assert prediction.stress is None  # the cell has no volume
    atoms.calc = kqeq.KQEqCalculator(model)
    with pytest.raises(PropertyUnavailableError, match="stress needs a cell with a volume"):
        atoms.get_stress()


def test_calculator_s_stress_is_the_voigt_form_of_the_model_s(model, cell):
    cell.calc = kqeq.KQEqCalculator(model)
    # the calculator keeps a list with a skin, whose pairs are summed in another order
    full = model.predict(bare(cell)).stress
    np.testing.assert_allclose(cell.get_stress(voigt=False), full, rtol=0, atol=1e-13)
    order = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]
    np.testing.assert_allclose(cell.get_stress(), [full[index] for index in order], rtol=0, atol=1e-13)


def test_compression_means_negative_stress(models):
    atoms = bulk("Ni", "fcc", a=3.6, cubic=True)
    atoms.symbols[0] = "Al"
    atoms.calc = kqeq.KQEqCalculator(models["switch"])
    trace = []
    for a in (3.5, 3.75):
        atoms.set_cell([a, a, a], scale_atoms=True)
        trace.append(atoms.get_stress()[:3].sum())
    assert trace[0] < -0.05 < 0.05 < trace[1]


# --------------------------------------------------------------------------------------------- symmetries


def test_wrapping_and_translation_change_nothing(model, cell):
    expected = model.predict(cell)
    moved = outside(cell)
    moved.positions += [0.3, -1.7, 5.2]
    wrapped = cell.copy()
    wrapped.positions += [0.3, -1.7, 5.2]
    wrapped.wrap()
    assert np.abs(wrapped.positions - cell.positions - [0.3, -1.7, 5.2]).max() > 1.0
    for atoms in (outside(cell), moved, wrapped):
        prediction = model.predict(atoms)
        assert prediction.energy == pytest.approx(expected.energy, abs=1e-10)
        np.testing.assert_allclose(prediction.forces, expected.forces, atol=1e-10)
        np.testing.assert_allclose(prediction.stress, expected.stress, atol=1e-12)


@pytest.mark.parametrize(
    "matrix",
    [
        np.diag([2, 1, 1]),
        np.diag([1, 2, 2]),
        [[1, 1, 0], [0, 1, 0], [-1, 0, 1]],
        [[1, 1, 0], [-1, 1, 0], [0, 1, 1]],
    ],
    ids=["double", "fourfold", "other vectors", "oblique double"],
)
def test_supercells_and_other_cells_of_the_same_crystal(model, cell, matrix):
    """The energy is proportional to the number of cells, forces repeat, the stress stays."""
    one = model.predict(cell)
    crystal = make_supercell(cell, matrix)
    copies = round(abs(np.linalg.det(matrix)))
    assert len(crystal) == copies * len(cell)
    many = model.predict(crystal)
    assert many.energy == pytest.approx(copies * one.energy, abs=1e-9)
    np.testing.assert_allclose(many.stress, one.stress, atol=1e-12)
    # find the atom of the small cell that each atom is an image of
    gaps = crystal.positions[:, None] - cell.positions[None]
    fractional = gaps @ np.linalg.inv(cell.cell.array)
    origin = np.abs(fractional - np.round(fractional)).max(axis=2).argmin(axis=1)
    np.testing.assert_array_equal(np.bincount(origin), copies)
    np.testing.assert_allclose(many.forces, one.forces[origin], atol=1e-9)


@pytest.mark.parametrize("improper", [False, True])
def test_rotations_turn_forces_and_stress(model, cell, improper):
    turn = rotation(3, improper=improper)
    expected = model.predict(cell)
    turned = cell.copy()
    turned.set_cell(cell.cell.array @ turn.T)
    turned.positions = cell.positions @ turn.T
    prediction = model.predict(turned)
    assert prediction.energy == pytest.approx(expected.energy, abs=1e-10)
    assert_close(prediction.forces, expected.forces @ turn.T, rtol=1e-9, at_least=0.5)
    assert_close(prediction.stress, turn @ expected.stress @ turn.T, rtol=1e-9, at_least=0.02)


def test_the_order_of_atoms_does_not_matter(model, cell):
    order = np.array([2, 0, 3, 1])
    expected, prediction = model.predict(cell), model.predict(bare(cell, order=order))
    assert prediction.energy == pytest.approx(expected.energy, abs=1e-10)
    np.testing.assert_allclose(prediction.forces, expected.forces[order], atol=1e-10)


def test_large_cells_tend_to_the_open_molecule(model):
    """Nothing is left of the images once they are out of reach."""
    molecule = Atoms("NiAlNi", positions=[[0, 0, 0], [2.4, 0.2, 0], [1.0, 2.1, 0.3]])
    boxed = molecule.copy()
    boxed.set_cell([25.0, 26.0, 27.0])
    boxed.pbc = True
    alone, inside = model.predict(molecule), model.predict(boxed)
    assert inside.energy == pytest.approx(alone.energy, abs=1e-11)
    np.testing.assert_allclose(inside.forces, alone.forces, atol=1e-11)
    assert alone.stress is None
    # and the stress of an isolated molecule is that of its internal forces alone: the virial
    virial = -molecule.positions.T @ alone.forces
    assert_close(inside.stress * boxed.get_volume(), virial, at_least=0.5)


# --------------------------------------------------------------------------------- relaxation and dynamics


@pytest.mark.parametrize("cell_filter", [FrechetCellFilter, UnitCellFilter])
def test_cell_relaxation(models, cell, cell_filter):
    cell.calc = kqeq.KQEqCalculator(models["switch"])
    energy, stress = cell.get_potential_energy(), np.abs(cell.get_stress()).max()
    assert stress > 0.02
    with BFGS(cell_filter(cell), logfile=None) as relaxation:
        assert relaxation.run(fmax=0.005, steps=150)
    assert np.abs(cell.get_forces()).max() < 0.005
    assert np.abs(cell.get_stress()).max() < 3e-3 * stress
    assert cell.get_potential_energy() < energy - 0.1
    # the crystal is where its training data say it is
    truth = cell.copy()
    truth.calc = EMT()
    assert np.abs(truth.get_stress()).max() < 0.01
    with BFGS(cell_filter(truth), logfile=None) as relaxation:
        relaxation.run(fmax=0.005, steps=150)
    assert cell.get_volume() == pytest.approx(truth.get_volume(), rel=0.02)


def test_relaxation_under_pressure(models, cell):
    """The stress of the result balances the pressure."""
    cell.calc = kqeq.KQEqCalculator(models["switch"])
    pressure = 5.0 * units.GPa
    filtered = FrechetCellFilter(cell, scalar_pressure=pressure)
    with BFGS(filtered, logfile=None) as relaxation:
        assert relaxation.run(fmax=0.002, steps=150)
    np.testing.assert_allclose(cell.get_stress(), [-pressure] * 3 + [0.0] * 3, atol=5e-4)


def test_dynamics_conserve_energy(models):
    """The error of velocity Verlet, and no other: a quarter for half the time step."""
    start = alloy(np.random.default_rng(77), amplitude=0.02).repeat((2, 1, 1))
    thermal = np.sqrt(units.kB * 600 / start.get_masses())[:, None]
    start.set_velocities(thermal * np.random.default_rng(1).normal(size=(len(start), 3)))
    spread = []
    for step, count in ((4.0, 50), (2.0, 100)):
        atoms = start.copy()
        atoms.calc = kqeq.KQEqCalculator(models["switch"])
        dynamics = VelocityVerlet(atoms, step * units.fs)
        energies = [atoms.get_total_energy() for _ in dynamics.irun(count)]
        spread.append(np.std(energies))
    assert spread[0] > 1e-5
    assert spread[1] == pytest.approx(spread[0] / 4, rel=0.15)


# ------------------------------------------------------------------------------------------ charges, fields


def test_fields_have_nothing_to_act_on(model, cell):
    cell.info["external_field"] = (0.0, 0.0, 0.1)
    with pytest.raises(InputError, match="no charges for the field to act on"):
        model.predict(cell)


def test_cells_without_volume_are_refused(model, cell):
    flat = cell.copy()
    flat.cell[2] = flat.cell[1]
    with pytest.raises(InputError, match="linearly dependent"):
        model.predict(flat)
    cell.cell[2] = 0.0
    with pytest.raises(InputError, match="cell vector is zero"):
        model.predict(cell)


def test_a_periodic_model_with_charges(frames):
    """The same cells with charge equilibration on top; fields along periodic directions are refused."""
    kernel = kqeq.SOAPKernel(r_cut=3.0, n_max=3, l_max=2, n_representatives=6, smooth="switch")
    model = kqeq.KQEq(electronegativity=kernel, short_range=kernel, noise={"energy": 0.05, "forces": 0.5})
    model.fit(frames["train"][:6])
    atoms = fresh(alloy)
    prediction = model.predict(atoms, properties=["energy", "forces", "stress", "charges", "dipole"])
    assert np.abs(prediction.charges).max() > 1e-3
    assert prediction.charges.sum() == pytest.approx(0.0, abs=1e-10)
    assert prediction.dipole is None  # a periodic cell has none
    h = STEP["switch"]
    assert_forces(prediction.forces, energy_of(model), atoms, h=h, at_least=0.3)
    strain = strain_gradient(energy_of(model), atoms, h=0.5 * h)
    assert_close(prediction.stress * atoms.get_volume(), strain, at_least=0.3)
    atoms.info["external_field"] = (0.0, 0.0, 0.1)
    with pytest.raises(UnsupportedError, match="field"):
        model.predict(atoms)
