"""Labels that contradict each other by a factor are named, and good ones are not."""

import warnings

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

import kqeq
from kqeq.errors import LabelWarning
from kqeq.frames.label_checks import survey
from kqeq.frames.label_work import compare, contradictions
from kqeq.frames.labels import LabelKeys, read_frames
from systems import stored

KCAL = units.kcal / units.mol


def changed(frames, **edit):
    """Frames with some labels changed by functions of the label and the frame."""
    result = []
    for atoms in frames:
        copy = atoms.copy()
        labels = dict(atoms.calc.results)
        for kind, change in edit.items():
            if kind == "field":
                copy.info["external_field"] = change(np.array(atoms.info["external_field"]))
            else:
                labels[kind] = change(labels[kind], atoms)
        copy.calc = SinglePointCalculator(copy, **labels)
        result.append(copy)
    return result


def said(frames):
    return contradictions(list(read_frames(frames)))


@pytest.fixture(scope="module")
def silver():
    return kqeq.datasets.load("ag3")[:40]


@pytest.fixture(scope="module")
def strained():
    """Copper in cells of different shape and volume."""
    rng, frames = np.random.default_rng(0), []
    for _ in range(24):
        atoms = bulk("Cu", cubic=True)
        strain = rng.normal(0, 0.02, (3, 3))
        atoms.set_cell(atoms.cell @ (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.02, (4, 3))
        frames.append(stored(atoms, EMT()))
    return frames


@pytest.mark.parametrize("name", kqeq.datasets.names())
def test_good_labels_are_let_alone(name):
    assert said(kqeq.datasets.load(name)) == []


def test_both_sides_are_equal_for_short_steps(silver, strained):
    found = compare(list(read_frames(silver)))
    assert len(found.forces) >= 10
    assert np.median(found.forces) == pytest.approx(1.0, abs=0.02)
    found = compare(list(read_frames(strained)))
    assert np.median(found.stress) == pytest.approx(1.0, abs=0.1)
    found = compare(list(read_frames(kqeq.datasets.load("fields"))))
    assert np.median(found.field) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("energy", "forces", "words"),
    [
        (1.0, -1.0, "gradients"),
        (1 / units.Hartree, 1.0, "energies were in hartree and forces in eV/Å"),
        (
            1 / units.Hartree,
            units.Bohr / units.Hartree,
            "energies were in hartree and forces in hartree/bohr",
        ),
        (1.0, units.Bohr / units.Hartree, "energies were in eV and forces in hartree/bohr"),
        (1 / KCAL, 1.0, "energies were in kcal/mol and forces in eV/Å"),
        (1 / 3, 1.0, "energies were per atom"),
        (1 / units.Hartree, -units.Bohr / units.Hartree, "forces had the other sign"),
    ],
)
def test_energies_and_forces_in_different_units(silver, energy, forces, words):
    frames = changed(silver, energy=lambda e, _: energy * e, forces=lambda f, _: forces * f)
    (text,) = said(frames)
    assert "energies and forces contradict" in text
    assert words in text


def test_all_in_kcal_is_told_by_the_stiffness():
    frames = kqeq.datasets.load("alkanes")
    frames = changed(frames, energy=lambda e, _: e / KCAL, forces=lambda f, _: f / KCAL)
    (text,) = said(frames)
    assert "kcal/mol" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s, _: -s, "the other sign"),
        (lambda s, _: s / units.GPa, "in GPa"),
        (lambda s, _: -10 * s / units.GPa, "in kbar and it had the other sign"),
        (lambda s, atoms: -s * atoms.get_volume(), "the virial"),
    ],
)
def test_stress_of_another_sign_or_unit(strained, change, words):
    (text,) = said(changed(strained, stress=change))
    assert "stress and energies contradict" in text
    assert words in text


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"field": lambda e: -e}, "fields had the other sign"),
        ({"field": lambda e: e / 51.422}, "fields were in atomic units"),
        ({"dipole": lambda d, _: d / units.Debye}, "dipoles were in debye"),
    ],
)
def test_fields_and_dipoles_of_another_sign_or_unit(edit, words):
    (text,) = said(changed(kqeq.datasets.load("fields"), **edit))
    assert "dipoles, fields and energies contradict" in text
    assert words in text


def test_turned_molecules_are_turned_back(silver):
    from ase.build.rotate import rotation_matrix_from_points

    rng, frames = np.random.default_rng(3), []
    for atoms in silver:
        turn = rotation_matrix_from_points(np.eye(3), np.linalg.qr(rng.normal(size=(3, 3)))[0])
        copy = atoms.copy()
        copy.positions = atoms.positions @ turn.T + rng.normal(0, 3, 3)
        copy.calc = SinglePointCalculator(
            copy, energy=atoms.get_potential_energy(), forces=-atoms.get_forces() @ turn.T
        )
        frames.append(copy)
    (text,) = said(frames)
    assert "gradients" in text


def test_a_few_frames_and_mixed_ones_say_nothing(silver):
    assert said(changed(silver[:4], forces=lambda f, _: -f)) == []
    half = [*changed(silver[:20], forces=lambda f, _: -f), *silver[20:]]
    assert said(half) == []


def test_the_survey_warns(silver):
    with pytest.warns(LabelWarning, match="as if forces were gradients"):
        found = survey(changed(silver, forces=lambda f, _: -f), LabelKeys())
    assert any("gradients" in note for note in found.notes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        survey(silver, LabelKeys())
