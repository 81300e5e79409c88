"""The generator of periodic boxes, and the boxes that it made."""

import importlib.util
import sys

import numpy as np
import pytest
from ase import units

from checks import assert_close, central
from kqeq import datasets
from kqeq.frames.labels import read_frame


def load_generator():
    path = datasets.path() / "generate_periodic.py"
    spec = importlib.util.spec_from_file_location("generate_periodic", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate_periodic"] = module
    spec.loader.exec_module(module)
    return module


generator = load_generator()


@pytest.fixture(scope="module")
def boxes():
    if generator.SYSTEM not in datasets.names():
        pytest.skip("water_box.xyz has not been made yet")
    return datasets.load(generator.SYSTEM)


def shaken(seed=1):
    atoms = generator.packing(np.random.default_rng(seed))
    atoms.rattle(0.05, seed=seed)
    return atoms


def test_packing_has_the_density_and_whole_molecules():
    atoms = generator.packing(np.random.default_rng(0))
    assert len(atoms) == 3 * generator.MOLECULES and atoms.pbc.all()
    density = atoms.get_masses().sum() * units._amu * 1e3 / (atoms.get_volume() * 1e-24)
    assert density == pytest.approx(generator.DENSITY)
    assert atoms.get_chemical_symbols() == ["O", "H", "H"] * generator.MOLECULES
    assert generator.intact(atoms)
    oxygens = atoms[::3].get_all_distances(mic=True)
    assert oxygens[np.triu_indices(generator.MOLECULES, 1)].min() > 3.3
    other = generator.packing(np.random.default_rng(1))
    assert np.abs(other.positions[1::3] - atoms.positions[1::3]).max() > 0.5


def test_broken_molecules_and_contacts_are_noticed():
    stretched, touching, lost = shaken(), shaken(), shaken()
    assert generator.intact(stretched)
    stretched.positions[4] += 0.5 * (stretched.positions[4] - stretched.positions[3])
    # a whole molecule beside another, through the boundary of the cell
    touching.positions[6:9] += touching.positions[1] + [0.7, 0.7, 0.0] - touching.positions[6]
    touching.positions[6:9] += touching.cell.array[0]
    lost.positions[0] = np.nan
    assert not any(map(generator.intact, (stretched, touching, lost)))


def test_classical_water_has_the_forces_of_its_energy():
    atoms = shaken()

    def energy(moved):
        moved.calc = generator.ClassicalWater()
        return moved.get_potential_energy()

    atoms.calc = generator.ClassicalWater()
    forces = atoms.get_forces()
    np.testing.assert_allclose(forces.sum(axis=0), 0.0, atol=1e-10)
    h = 1e-5
    for index in [(0, 0), (1, 2), (2, 1), (33, 1), (64, 0)]:
        sides = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[index] += sign * h
            sides.append(energy(moved))
        assert forces[index] == pytest.approx(-(sides[0] - sides[1]) / (2 * h), abs=1e-5)
    assert np.abs(forces).max() > 0.5


def test_dynamics_thermalise_and_depend_on_the_seed_only():
    def end(seed, steps):
        rng = np.random.default_rng(seed)
        return generator.run(shaken(), generator.ClassicalWater(), 300.0, steps, rng, 2 * generator.TIME_STEP)

    first, again, other = end(5, 20), end(5, 20), end(6, 20)
    np.testing.assert_array_equal(first.positions, again.positions)
    assert np.abs(first.positions - other.positions).max() > 1e-2
    assert generator.intact(first) and first.calc is None


class Exploding(generator.ClassicalWater):
    """Pushes one atom away once it has been asked often enough."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def calculate(self, *arguments, **options):
        super().calculate(*arguments, **options)
        self.calls -= 1
        if self.calls < 0:
            self.results["forces"][1] += 300.0


def test_dynamics_that_go_wrong_end_with_a_sound_geometry(capsys):
    start = shaken()
    end = generator.run(start, Exploding(25), 300.0, 60, np.random.default_rng(0))
    assert "went wrong after 30 steps" in capsys.readouterr().out
    assert generator.intact(end)
    assert np.abs(end.positions - start.positions).max() > 0.01
    with pytest.raises(generator.BrokenError, match="within 10 steps"):
        generator.run(start, Exploding(0), 300.0, 60, np.random.default_rng(0))


def test_stages_cover_every_seed():
    assert sum(stage.frames for stage in generator.STAGES[0]) == 200
    assert sum(stage.frames for stage in generator.STAGES[1]) == 30
    assert sum(stage.frames for stage in generator.STAGES[2]) == 70
    first = generator.STAGES[0][0].frames
    assert generator.stage_of(0, first - 1)[0].sampling == "classical"
    assert generator.stage_of(0, first) == (generator.STAGES[0][1], first)
    with pytest.raises(ValueError, match="there is no frame 200"):
        generator.stage_of(0, 200)


def fake_label(atoms):
    atoms.info.update(energy=-5033.0 - 1e-3 * atoms.positions[0, 0], stress=np.arange(6) * 1e-3)
    atoms.arrays.update(forces=0.1 * atoms.positions, charges=np.linspace(-0.6, 0.6, len(atoms)))
    return atoms


@pytest.fixture
def quick(monkeypatch):
    """A generator without reference and without long dynamics."""
    monkeypatch.setattr(generator, "labelled", fake_label)
    monkeypatch.setattr(generator, "CLASSICAL_STEPS", 2)


def test_interrupted_runs_go_on_where_they_stopped(tmp_path, quick):
    whole, parts = tmp_path / "whole.xyz", tmp_path / "parts.xyz"
    assert len(list(generator.generate(whole, 0, 3))) == 3
    assert len(list(generator.generate(parts, 0, 2))) == 2
    # the last frame was being written when the machine went down
    with parts.open("a") as file:
        file.write(whole.read_text()[len(parts.read_text()) :][:500])
    assert len(list(generator.generate(parts, 0, 3))) == 1
    assert parts.read_text() == whole.read_text()
    assert list(generator.generate(parts, 0, 3)) == []


def test_frames_are_read_back_as_written(tmp_path, quick):
    path = tmp_path / "boxes.xyz"
    (atoms,) = generator.generate(path, 0, 1)
    structure, labels = read_frame(atoms)
    assert structure.pbc.all() and structure.total_charge == 0 and not structure.external_field.any()
    assert labels.kinds == ("energy", "forces", "stress")
    np.testing.assert_allclose(labels.forces, 0.1 * atoms.positions, atol=1e-6)
    np.testing.assert_allclose(atoms.get_stress(), np.arange(6) * 1e-3)
    np.testing.assert_allclose(labels.stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]], np.arange(6) * 1e-3)
    info = atoms.info
    assert (info["system"], info["seed"], info["sampling"], info["temperature"]) == (
        "water_box",
        0,
        "classical",
        300,
    )
    oxygens = atoms[::3].get_scaled_positions(wrap=False)
    assert oxygens.min() >= -1e-6 and oxygens.max() <= 1 + 1e-6  # whole molecules, oxygens inside
    assert generator.intact(atoms)


def test_models_need_the_training_frames(tmp_path, quick):
    with pytest.raises(SystemExit, match="0 frames of seed 0 in the file, 200 are needed first"):
        list(generator.generate(tmp_path / "boxes.xyz", 1, 1))


def test_dynamics_that_break_at_once_are_tried_again(tmp_path, quick, monkeypatch, capsys):
    sound, answers = generator.classical, iter([True, False])

    def classical(*arguments):
        if next(answers):
            raise generator.BrokenError("the dynamics went wrong within 10 steps")
        return sound(*arguments)

    monkeypatch.setattr(generator, "classical", classical)
    assert len(list(generator.generate(tmp_path / "boxes.xyz", 0, 1))) == 1
    assert "again from elsewhere" in capsys.readouterr().out


def test_references_that_fail_are_tried_again(tmp_path, quick, monkeypatch):
    answers = iter([None, fake_label])
    monkeypatch.setattr(generator, "labelled", lambda atoms: (f := next(answers)) and f(atoms))
    (atoms,) = generator.generate(tmp_path / "boxes.xyz", 0, 1)
    assert atoms.get_potential_energy() < -5000
    monkeypatch.setattr(generator, "labelled", lambda atoms: None)
    with pytest.raises(SystemExit, match="frame 1 of seed 0 failed 5 times"):
        list(generator.generate(tmp_path / "boxes.xyz", 0, 2))


# -------------------------------------------------------------------------------------------------- the data


def test_boxes_are_complete(boxes):
    """All that the generator aims at: 270 boxes to train and 30 to test."""
    seeds = [atoms.info["seed"] for atoms in boxes]
    aims = {seed: sum(stage.frames for stage in stages) for seed, stages in generator.STAGES.items()}
    assert {seed: seeds.count(seed) for seed in aims} == aims == {0: 200, 1: 30, 2: 70}
    train, test = datasets.split(generator.SYSTEM)
    assert (len(train), len(test)) == (270, 30)
    for atoms in boxes:
        assert atoms.info["method"] == "GFN1-xTB" and atoms.info["total_charge"] == 0
        assert atoms.pbc.all() and len(atoms) == 96 and generator.intact(atoms)
        _, labels = read_frame(atoms)
        assert labels.kinds == ("energy", "forces", "stress")
        assert atoms.get_charges().shape == (96,)


def test_labels_of_boxes_are_plausible(boxes):
    energies = np.array([atoms.get_potential_energy() for atoms in boxes])
    assert -5040 < energies.min() < energies.max() < -5020
    assert np.ptp(energies) > 1.0
    for atoms in boxes:
        forces = atoms.get_forces()
        np.testing.assert_allclose(forces.sum(axis=0), 0.0, atol=1e-4)  # digits of the file
        assert 0.3 < np.sqrt(np.mean(forces**2)) < 2.0
        assert np.abs(atoms.get_stress()).max() < 0.06
        charges = atoms.get_charges()
        assert abs(charges.sum()) < 1e-3
        assert charges[::3].max() < -0.4 and charges[1::3].min() > 0.1


def test_test_boxes_are_at_room_temperature(boxes):
    """Bond lengths of the reference ensemble: mean and spread of a classical oscillator at 300 K."""
    test = [atoms for atoms in boxes if atoms.info["seed"] == 1]
    bonds = np.concatenate(
        [np.linalg.norm(a.positions[k::3] - a.positions[::3], axis=1) for a in test for k in (1, 2)]
    )
    assert 0.94 < bonds.mean() < 1.0
    assert 0.015 < bonds.std() < 0.05


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_labels_are_what_the_generator_computes(boxes):
    pytest.importorskip("tblite")
    for stored in (boxes[0], boxes[-1]):
        again = generator.labelled(generator.bare(stored))
        assert again.info["energy"] == pytest.approx(stored.get_potential_energy(), abs=1e-5)
        np.testing.assert_allclose(again.arrays["forces"], stored.get_forces(), atol=1e-5)
        np.testing.assert_allclose(again.info["stress"], stored.get_stress(), atol=1e-7)
        np.testing.assert_allclose(again.arrays["charges"], stored.get_charges(), atol=2e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_reference_has_the_forces_of_its_energy(boxes):
    pytest.importorskip("tblite")

    stored = boxes[0]
    # all atoms at once: a calculation takes seconds
    direction = np.random.default_rng(0).normal(size=stored.positions.shape)
    direction /= np.linalg.norm(direction)

    def energy(t):
        moved = generator.bare(stored)
        moved.positions += t * direction
        moved.calc = generator.reference()
        return moved.get_potential_energy()

    slope = central(energy, 0.03)  # thousandths of an ångström for an atom
    assert_close(-np.vdot(stored.get_forces(), direction), slope, rtol=1e-3, at_least=0.1)
