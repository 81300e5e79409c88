"""ASE as users use it: relaxations, dynamics, vibrations, NEB, constraints, sockets, workers; charged and in fields."""

import multiprocessing
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.socketio import SocketIOCalculator
from ase.constraints import FixAtoms, FixBondLengths, FixCom
from ase.filters import FrechetCellFilter
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS, FIRE, LBFGS
from ase.vibrations import Infrared, Vibrations
from joblib import Parallel, delayed

import kqeq
from checks import bare
from kqeq import KQEqCalculator, analysis
from kqeq.descriptors.soap.descriptor import SOAPDescriptor
from systems import stored

FIELD = np.array([0.05, 0.03, 0.08])


@pytest.fixture
def ion(ion_frames, ion_model):
    """H3O(+) near its minimum."""
    atoms = bare(next(a for a in ion_frames if a.info["system"] == "hydronium"))
    atoms.calc = KQEqCalculator(ion_model, total_charge=1)
    return atoms


@pytest.fixture
def water(ion_frames, ion_model):
    atoms = bare(next(a for a in ion_frames if a.info["system"] == "water1"))
    atoms.calc = KQEqCalculator(ion_model)
    return atoms


def warm(atoms, temperature=300.0, seed=0):
    spread = np.sqrt(atoms.get_masses() * units.kB * temperature)
    momenta = np.random.default_rng(seed).normal(size=(len(atoms), 3)) * spread[:, None]
    atoms.set_momenta(momenta)


# -------------------------------------------------------------- relaxations


@pytest.mark.parametrize("optimiser", [BFGS, LBFGS])
def test_relaxation_of_an_ion_in_a_field(ion, optimiser):
    ion.calc.external_field = FIELD
    start = ion.get_center_of_mass()
    ion.set_constraint(FixCom())
    with optimiser(ion, logfile=None) as run:
        assert run.run(fmax=0.01, steps=800)  # the ion turns its dipole into the field: a soft mode
    np.testing.assert_allclose(ion.get_center_of_mass(), start, atol=1e-8)
    free = ion.get_forces(apply_constraint=False)
    np.testing.assert_allclose(free.sum(axis=0), FIELD, atol=1e-9)


@pytest.fixture(scope="module")
def alloy_model():
    """Charges and short-range energy of rattled CuAu cells, labelled by ASE's EMT."""
    rng = np.random.default_rng(0)
    train = []
    for _ in range(8):
        atoms = alloy()
        atoms.rattle(0.08, rng=rng)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(scale=0.02, size=(3, 3))), scale_atoms=True)
        train.append(stored(atoms, EMT()))
    kernel = {"r_cut": 4.0, "n_max": 4, "l_max": 3, "n_representatives": 15}
    return kqeq.KQEq(kqeq.SOAPKernel(**kernel), kqeq.SOAPKernel(**kernel)).fit(train)


def alloy():
    atoms = bulk("Cu", "fcc", a=3.85, cubic=True)
    atoms.symbols[:2] = "Au"
    return atoms


def test_cell_relaxation(alloy_model):
    atoms = alloy()
    atoms.rattle(0.05, rng=np.random.default_rng(3))
    atoms.set_cell(atoms.cell * [1.01, 0.99, 1.0], scale_atoms=True)
    atoms.calc = KQEqCalculator(alloy_model)
    with BFGS(FrechetCellFilter(atoms), logfile=None) as run:
        assert run.run(fmax=0.01, steps=200)
    assert np.abs(atoms.get_stress()).max() * atoms.get_volume() < 0.03
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.01
    assert atoms.get_volume() != pytest.approx(alloy().get_volume(), rel=1e-3)


def test_relaxation_with_fixed_atoms(ion):
    ion.rattle(0.05, rng=np.random.default_rng(1))
    start = ion.positions.copy()
    ion.set_constraint(FixAtoms([0, 1]))
    with BFGS(ion, logfile=None) as run:
        assert run.run(fmax=0.01, steps=200)
    np.testing.assert_array_equal(ion.positions[:2], start[:2])
    assert np.abs(ion.positions[2:] - start[2:]).max() > 0.01


# ----------------------------------------------------------------- dynamics


def test_constant_energy_of_an_ion_in_a_field(ion):
    """The potential energy holds −μ·field: the total is conserved while that term changes by far more."""
    ion.calc.external_field = FIELD
    warm(ion)
    total, work = [], []
    for _ in VelocityVerlet(ion, 0.25 * units.fs).irun(200):
        total.append(ion.get_total_energy())
        work.append(-ion.get_dipole_moment() @ FIELD)
    assert np.ptp(work) > 0.03
    assert np.ptp(total) < 0.1 * np.ptp(work)
    assert np.ptp(np.array(total) - work) > 0.8 * np.ptp(work)
    # momentum grows by charge × field × time
    expected = FIELD * 200 * 0.25 * units.fs
    start = np.random.default_rng(0).normal(size=(4, 3)) * np.sqrt(ion.get_masses() * units.kB * 300)[:, None]
    np.testing.assert_allclose(ion.get_momenta().sum(axis=0) - start.sum(axis=0), expected, rtol=1e-6)


def test_constant_temperature_of_an_ion_in_a_field(ion):
    ion.calc.external_field = FIELD
    ion.set_constraint(FixCom())
    warm(ion)
    dynamics = Langevin(
        ion,
        0.5 * units.fs,
        temperature_K=300,
        friction=0.05 / units.fs,
        fixcm=False,
        rng=np.random.RandomState(2),
    )
    start = ion.get_center_of_mass()
    temperatures = [ion.get_temperature() for _ in dynamics.irun(300)]
    assert 100 < np.mean(temperatures[50:]) < 600
    np.testing.assert_allclose(ion.get_center_of_mass(), start, atol=1e-6)
    assert max(ion.get_distances(0, [1, 2, 3])) < 1.5


def test_rigid_bonds(water):
    water.set_constraint(FixBondLengths([(0, 1), (0, 2), (1, 2)]))
    lengths = water.get_all_distances()
    warm(water)
    total = []
    for _ in VelocityVerlet(water, 1.0 * units.fs).irun(50):
        total.append(water.get_total_energy())
    np.testing.assert_allclose(water.get_all_distances(), lengths, atol=1e-6)


def test_charge_and_field_changed_between_steps(ion, ion_model):
    """A field that is switched on during a dynamics: what it does is what single predictions say."""
    warm(ion)
    dynamics = VelocityVerlet(ion, 0.5 * units.fs)
    for step in range(6):
        field = 0.05 * step * FIELD
        charge = 1 if step < 4 else 0
        ion.calc.set(external_field=field, total_charge=charge)
        dynamics.run(1)
        expected = ion_model.predict(bare(ion), total_charge=charge, external_field=field)
        assert ion.get_potential_energy() == expected.energy
        np.testing.assert_array_equal(ion.get_forces(), expected.forces)


# --------------------------------------------------------------- vibrations


def test_vibrations_and_infrared_agree_with_ase(water, ion_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with BFGS(water, logfile=None) as run:
        assert run.run(fmax=1e-4, steps=300)
    vibrations = Vibrations(water, delta=0.01)
    vibrations.run()
    expected = vibrations.get_frequencies()[6:].real
    ours = analysis.infrared(ion_model, water, relax=False)
    np.testing.assert_allclose(ours.frequencies, expected, atol=2.0)
    assert ours.frequencies.min() > 500
    # ASE's intensities come from differences of the dipole, in (D/Å)²/u
    infrared = Infrared(water, delta=0.01, directions=None, name="ir")
    infrared.run()
    infrared.get_energies()
    np.testing.assert_allclose(ours.intensities, 42.2561 * infrared.intensities[6:], rtol=0.02, atol=0.05)
    assert ours.intensities.max() > 5


def test_nudged_elastic_band(ion, ion_model):
    """H3O(+) turned inside out: a symmetric path over a planar barrier."""
    with BFGS(ion, logfile=None) as run:
        assert run.run(fmax=0.01, steps=200)
    oxygen = int(np.flatnonzero(ion.numbers == 8)[0])
    others = [i for i in range(4) if i != oxygen]
    ion.positions -= ion.positions[others].mean(axis=0)
    normal = np.cross(*(ion.positions[others[1:]] - ion.positions[others[0]]))
    normal /= np.linalg.norm(normal)
    last = ion.copy()
    last.positions -= 2 * np.outer(last.positions @ normal, normal)
    images = [ion.copy() for _ in range(5)] + [last]
    for image in images:
        image.calc = KQEqCalculator(ion_model, total_charge=1)
    neb = NEB(images, climb=False, method="improvedtangent")
    neb.interpolate()
    with FIRE(neb, logfile=None) as run:
        assert run.run(fmax=0.1, steps=300)
    energies = np.array([image.get_potential_energy() for image in images])
    np.testing.assert_allclose(energies, energies[::-1], atol=5e-3)
    assert energies[2] > energies[0] + 0.005


# ---------------------------------------------------- other processes


CLIENT = """
    import sys
    import kqeq
    from ase.calculators.socketio import SocketClient
    from ase.io import read

    model, geometry, name = sys.argv[1:]
    atoms = read(geometry)
    atoms.calc = kqeq.KQEqCalculator(kqeq.load(model), total_charge=1)
    SocketClient(unixsocket=name).run(atoms)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="UNIX sockets")
def test_socket_client_in_another_process(ion, ion_model, tmp_path):
    ion_model.save(tmp_path / "model.kqeq")
    ion.copy().write(tmp_path / "start.xyz")
    name = f"kqeq_test_{os.getpid()}"
    reference = ion.copy()
    reference.calc = KQEqCalculator(ion_model, total_charge=1)
    with BFGS(reference, logfile=None) as run:
        assert run.run(fmax=0.02, steps=100)
    driven = ion.copy()
    with SocketIOCalculator(unixsocket=name, timeout=120) as server:
        command = [sys.executable, "-c", textwrap.dedent(CLIENT)]
        process = subprocess.Popen([*command, tmp_path / "model.kqeq", tmp_path / "start.xyz", name])
        try:
            driven.calc = server
            with BFGS(driven, logfile=None) as run:
                assert run.run(fmax=0.02, steps=100)
            energy = driven.get_potential_energy()
        finally:
            server.close()
            assert process.wait(timeout=60) == 0
    np.testing.assert_allclose(driven.positions, reference.positions, atol=1e-6)
    assert energy == pytest.approx(reference.get_potential_energy(), abs=1e-7)


def evaluate(calculator, atoms):
    atoms = atoms.copy()
    atoms.calc = calculator
    return atoms.get_potential_energy(), atoms.get_forces()


def test_calculators_go_to_workers(ion, water):
    expected = evaluate(ion.calc, ion)
    jobs = [(ion.calc, ion.copy()), (water.calc, water.copy()), (ion.calc, ion.copy())]
    results = Parallel(n_jobs=2)(delayed(evaluate)(*job) for job in jobs)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        results.append(pool.apply(evaluate, jobs[0]))
    for k in (0, 2, 3):
        assert results[k][0] == expected[0]
        np.testing.assert_array_equal(results[k][1], expected[1])
    assert results[1][0] != expected[0]


# --------------------------------------------------- nothing is done twice


@pytest.fixture
def work(monkeypatch):
    """Evaluations of descriptors, factorisations, solutions."""
    from kqeq.charges.equilibrium import Equilibrium

    done = {"descriptors": 0, "bind": 0, "solve": 0}

    def count(owner, method, name):
        original = getattr(owner, method)

        def counted(self, *arguments, **options):
            done[name] += 1
            return original(self, *arguments, **options)

        monkeypatch.setattr(owner, method, counted)

    count(SOAPDescriptor, "evaluate", "descriptors")
    count(kqeq.QEq, "bind", "bind")
    count(Equilibrium, "solve", "solve")
    return done


def test_what_does_not_change_is_not_redone(ion, work):
    one = {"descriptors": 1, "bind": 1}  # both kernels share their descriptor
    ion.get_potential_energy()
    ion.get_dipole_moment()
    assert work == {**one, "solve": 1}
    ion.get_forces()
    ion.get_charges()
    assert work == {**one, "solve": 2}
    # another field, another charge: a solution each
    ion.calc.external_field = FIELD
    ion.get_forces()
    ion.calc.total_charge = 0
    ion.get_forces()
    assert work == {**one, "solve": 4}
    # another geometry: everything
    ion.positions[0, 0] += 0.01
    ion.get_forces()
    assert work == {"descriptors": 2, "bind": 2, "solve": 5}
    # a step of dynamics: once
    VelocityVerlet(ion, 0.5 * units.fs).run(3)
    ion.get_total_energy()
    assert work["descriptors"] == 2 + 3
    # one calculator, two geometries
    before = ion.get_potential_energy()
    moved = ion.copy()
    moved.calc = ion.calc
    moved.positions[1] += 0.02
    assert moved.get_potential_energy() != before
    assert ion.get_potential_energy() == before


def test_site_data_that_changes_is_seen(ion_model, ion_frames):
    """Embedding potentials enter the charge problem: the kept one is not used for another."""
    atoms = bare(next(a for a in ion_frames if a.info["system"] == "water1"))
    atoms.calc = KQEqCalculator(ion_model)
    first = atoms.get_potential_energy()
    atoms.set_array("external_potential", np.array([0.5, 0.0, -0.5]))
    second = atoms.get_potential_energy()
    assert second == ion_model.predict(atoms).energy != first
    atoms.arrays["external_potential"][0] = 1.0
    assert atoms.get_potential_energy() == ion_model.predict(atoms).energy != second
