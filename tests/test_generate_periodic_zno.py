"""The generator of ZnO cells with a vacancy, and the cells that it made."""

import importlib.util
import sys

import numpy as np
import pytest
from ase import Atoms, units

from kqeq import datasets
from kqeq.baselines.charged_cells import splitting_parameter
from kqeq.frames.labels import LabelKeys, read_frame

NAME = "zno_vacancy"


def load_generator():
    path = datasets.path() / "generate_periodic_zno.py"
    spec = importlib.util.spec_from_file_location("generate_periodic_zno", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate_periodic_zno"] = module
    spec.loader.exec_module(module)
    return module


generator = load_generator()


@pytest.fixture(scope="module")
def cells():
    if NAME not in datasets.names():
        pytest.skip("zno_vacancy.xyz has not been made yet")
    return datasets.load(NAME)


def test_schedule_is_balanced_from_its_beginning():
    tasks = generator.schedule()
    assert len(set(tasks)) == len(tasks)
    for end in (60, 200, len(tasks)):
        counts = [
            sum(t.charge == q and t.system == generator.VACANCY for t in tasks[:end]) for q in (0, 1, 2)
        ]
        assert max(counts) - min(counts) <= 2
        assert sum(t.system == generator.PRISTINE for t in tasks[:end]) > 0
    for q in generator.CHARGES:
        own = [t for t in tasks if t.system == generator.VACANCY and t.charge == q]
        assert sum(t.frames for t in own if t.seed == 0) == generator.PER_CHARGE
        assert sum(t.frames for t in own if t.seed == 1) >= 10


def test_ideal_cells():
    crystal, vacancy = generator.ideal(generator.PRISTINE), generator.ideal(generator.VACANCY)
    assert vacancy.symbols.formula.count() == {"Zn": 36, "O": 35}
    assert (crystal.symbols == "Zn").sum() == 36
    distances = crystal.get_all_distances(mic=True)
    bonded = (distances > 0) & (distances < 2.2)
    assert (bonded.sum(axis=1) == 4).all()
    lost = vacancy.get_all_distances(mic=True)
    three = ((lost > 0) & (lost < 2.2)).sum(axis=1) == 3
    assert three.sum() == 4 and (vacancy.numbers[three] == 30).all()


def test_modes_have_thermal_widths_and_do_not_drift():
    n, constant, temperature = 5, 3.0, 300.0
    rng = np.random.default_rng(0)
    drift = np.tile(np.eye(3), (n, 1)) / np.sqrt(n)
    hessian = constant * (np.eye(3 * n) - drift @ drift.T)
    found = generator.modes(hessian)
    assert found.vectors.shape == (3 * n, 3 * n - 3)
    samples = np.array([found.sample(temperature, rng) for _ in range(4000)])
    np.testing.assert_allclose(samples.sum(axis=1), 0.0, atol=1e-10)
    expected = units.kB * temperature / constant * (3 * n - 3)
    assert (samples**2).sum(axis=(1, 2)).mean() == pytest.approx(expected, rel=0.05)
    # a direction without restoring force is held by the softest one allowed
    soft = generator.modes(hessian - constant * np.outer(found.vectors[:, 0], found.vectors[:, 0]))
    assert soft.constants.min() == generator.SOFTEST


def test_smooth_displacements_are_smooth_and_of_the_right_size():
    atoms = generator.ideal(generator.VACANCY)
    moved = generator.smooth_displacements(atoms, np.random.default_rng(3))
    size = np.sqrt((moved**2).sum(axis=1).mean())
    assert 0.03 <= size <= 0.1
    np.testing.assert_allclose(moved.mean(axis=0), 0.0, atol=1e-12)
    near = atoms.get_all_distances(mic=True)
    i, j = np.nonzero((near > 0) & (near < 2.2))
    k, m = np.nonzero(near > 5.0)
    alike = [(moved[a] * moved[b]).sum(axis=1).mean() / size**2 for a, b in ((i, j), (k, m))]
    assert alike[0] > 0.3 and abs(alike[1]) < alike[0] / 2


def fake(task_reference, atoms):
    n = len(atoms)
    forces = -0.1 * (atoms.positions - atoms.positions.mean(axis=0))
    charges = np.full(n, task_reference.charge / n)
    return generator.Labels(-5200.0 - atoms.positions[0, 0], forces, 1e-3 * np.arange(6), charges, -0.3)


def test_interrupted_runs_go_on_where_they_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(generator.Reference, "__init__", lambda self, charge: setattr(self, "charge", charge))
    monkeypatch.setattr(generator.Reference, "__call__", fake)
    monkeypatch.setattr(generator, "relaxed", lambda system, charge: labelled_minimum(system, charge))
    monkeypatch.setattr(generator, "force_constants", lambda frames, minimum: 5.0 * np.eye(3 * len(minimum)))
    kinds = [
        next(t for t in generator.schedule() if t.kind == k) for k in ("shaken", "vertical", "reference")
    ]
    monkeypatch.setattr(generator, "schedule", lambda: kinds)
    whole, parts = tmp_path / "whole.xyz", tmp_path / "parts.xyz"
    assert len(list(generator.generate(whole, 3))) == 2 + generator.FRAMES_EACH
    assert len(list(generator.generate(parts, 1))) == 1
    run = generator.generate(parts, 3)
    for _ in range(3):  # up to the second frame of the trajectory
        next(run)
    run.close()
    with parts.open("a") as file:
        file.write(whole.read_text()[len(parts.read_text()) :][:700])
    assert len(list(generator.generate(parts, 3))) == generator.FRAMES_EACH - 2
    assert parts.read_text() == whole.read_text()
    read = generator.complete_frames(whole)
    assert [a.info["seed"] for a in read] == [0, 0] + [1] * generator.FRAMES_EACH
    moved = np.abs(read[-1].positions - read[-2].positions)
    assert 1e-3 < moved.max() < 2.0


def labelled_minimum(system, charge):
    atoms = generator.ideal(system)
    atoms.info.update(system=system, total_charge=charge)
    return atoms


def test_background_makes_energies_of_charged_cells_independent_of_the_splitting():
    pytest.importorskip("tblite")
    madelung, coulomb = 1.41865, units.Hartree * units.Bohr
    reference = generator.Reference(2)
    alone = Atoms("Zn")
    alone.calc = reference.calculator
    isolated = alone.get_potential_energy()
    with_it, without = [], []
    for side in (12.0, 15.0):  # tblite's splitting parameter halves in between
        labels = reference(Atoms("Zn", cell=[side] * 3, pbc=True))
        # what remains after the point charge's own images falls off as the volume
        rest = (labels.energy - isolated + madelung * coulomb * 4 / side) * side**3
        with_it.append(rest)
        without.append(rest - labels.background * side**3)
    assert splitting_parameter(12.0 * np.eye(3)) > 1.5 * splitting_parameter(15.0 * np.eye(3))
    assert abs(with_it[1] - with_it[0]) < 0.1 * abs(without[1] - without[0])
    assert abs(without[1] - without[0]) / side**3 > 0.5  # eV


def test_stress_of_a_charged_cell_is_the_slope_of_its_energy():
    pytest.importorskip("tblite")
    atoms = Atoms("ZnO", positions=[[0, 0, 0], [0.3, 0.2, 1.8]], cell=[7.0, 7.4, 7.8], pbc=True)
    reference = generator.Reference(2)
    reference.calculator.set(accuracy=0.01)
    labels, h = reference(atoms), 1e-3
    sides = []
    for sign in (1, -1):
        strained = atoms.copy()
        strained.set_cell(atoms.cell.array * (1 + sign * h), scale_atoms=True)
        sides.append(reference(strained).energy)
    slope = (sides[0] - sides[1]) / (2 * h) / atoms.get_volume()
    assert labels.stress[:3].sum() == pytest.approx(slope, rel=2e-3)
    # without the background's share it is not
    assert abs(labels.background / atoms.get_volume()) > 0.05 * abs(slope)


def test_cells_are_complete_and_consistent(cells):
    for atoms in cells:
        charge = int(atoms.info["total_charge"])
        frame = read_frame(atoms, LabelKeys(charges="charges"))
        assert frame[0].total_charge == charge
        assert len(atoms) == (72 if atoms.info["system"] == generator.PRISTINE else 71)
        assert np.isfinite(atoms.get_forces()).all() and 0.05 < np.abs(atoms.get_forces()).max() < 12.0
        np.testing.assert_allclose(atoms.get_forces().sum(axis=0), 0.0, atol=1e-3)
        assert atoms.get_charges().sum() == pytest.approx(charge, abs=1e-3)
        assert atoms.info["multiplicity"] == 1 + charge % 2
        assert atoms.info["method"] == generator.METHOD
        assert atoms.info["background"] == pytest.approx(
            generator.background(atoms.cell.array, charge), abs=1e-5
        )
        assert atoms.info["seed"] == int(atoms.info["sampling"] in ("reference", "crossed"))


def test_charge_states_of_one_geometry_differ_in_their_forces(cells):
    groups = {}
    for atoms in cells:
        if atoms.info["sampling"] == "vertical":
            groups.setdefault(int(atoms.info["number"]), []).append(atoms)
    groups = [g for g in groups.values() if len(g) == 3]
    assert groups
    for group in groups:
        first, *_, last = sorted(group, key=lambda a: a.info["total_charge"])
        np.testing.assert_array_equal(first.positions, last.positions)
        assert np.sqrt(np.mean((first.get_forces() - last.get_forces()) ** 2)) > 0.05
        # the electrons leave the neighbourhood of the vacancy: zinc gives most
        gain = last.get_charges() - first.get_charges()
        assert gain[np.argsort(gain)[-4:]].sum() > 0.2
        assert (first.numbers[np.argsort(gain)[-4:]] == 30).all()


def test_set_has_enough_frames_of_every_charge(cells):
    for q in generator.CHARGES:
        own = [a for a in cells if a.info["system"] == generator.VACANCY and a.info["total_charge"] == q]
        assert sum(a.info["seed"] == 0 for a in own) >= 50
        assert sum(a.info["seed"] == 1 for a in own) >= 4
