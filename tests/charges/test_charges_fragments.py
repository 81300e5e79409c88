"""Fragments, reference charges and external potentials: read from a frame, validated, used end to end."""

import io

import numpy as np
import pytest
from ase import Atoms
from ase.io import read, write
from numpy.testing import assert_allclose

from kqeq.calculator import KQEqCalculator
from kqeq.charges import ACKS2, QEq, assign_fragments
from kqeq.errors import InputError
from kqeq.frames.structures import read_structure


def two_waters() -> Atoms:
    return Atoms(
        "OH2OH2",
        [[0, 0, 0], [0.9, 0.3, 0], [-0.9, 0.3, 0], [0, 0, 3], [0.9, 0.3, 3], [-0.9, 0.3, 3.1]],
    )


def test_fragments_are_read_and_renumbered():
    atoms = two_waters()
    atoms.set_array("fragments", np.array([7, 7, 7, 2, 2, 2]))
    atoms.info["fragment_charges"] = [0.0, 1.0]
    structure = read_structure(atoms)
    assert structure.fragments.tolist() == [1, 1, 1, 0, 0, 0]
    assert structure.fragment_charges.tolist() == [0.0, 1.0]
    assert structure.total_charge == 1.0


def test_assigned_fragments_survive_a_file():
    atoms = assign_fragments(two_waters(), [[0, 1, 2], [3, 4, 5]], [1.0, -1.0])
    buffer = io.StringIO()
    write(buffer, atoms, format="extxyz")
    buffer.seek(0)
    structure = read_structure(read(buffer, format="extxyz"))
    assert structure.fragments.tolist() == [0, 0, 0, 1, 1, 1]
    assert_allclose(structure.fragment_charges, [1.0, -1.0])
    chi = np.array([9.0, 5.0, 5.0, 9.0, 5.0, 5.0])
    charges = QEq(fragments=True).bind(structure).solve(chi, np.zeros(3), 0.0).charges
    assert_allclose([charges[:3].sum(), charges[3:].sum()], [1.0, -1.0], atol=1e-12)


def test_one_fragment_in_a_file_has_one_charge():
    atoms = assign_fragments(two_waters(), [range(6)], [-1.0])
    buffer = io.StringIO()
    write(buffer, atoms, format="extxyz")
    buffer.seek(0)
    assert read_structure(read(buffer, format="extxyz")).total_charge == -1.0


def test_rounding_in_files_is_spread():
    atoms = two_waters()
    atoms.info["total_charge"] = 1.0
    atoms.set_array("reference_charges", np.full(6, 0.16667))
    structure = read_structure(atoms)
    assert abs(structure.reference_charges.sum() - 1.0) < 1e-14
    assert_allclose(structure.reference_charges, 1 / 6, atol=1e-5)


def test_another_total_charge_needs_other_fragment_charges():
    structure = read_structure(assign_fragments(two_waters(), [[0, 1, 2], [3, 4, 5]], [1.0, 0.0]))
    assert structure.under(1.0, np.array([0, 0, 0.1])).external_field[2] == 0.1
    with pytest.raises(InputError, match=r"changed from 1 to 0 e.*give new ones that sum to 0 e"):
        structure.under(0.0, np.zeros(3))


@pytest.mark.parametrize(
    ("groups", "charges", "match"),
    [
        ([[0, 1, 2], [2, 3, 4, 5]], [0, 0], "overlap: atom 2 is in fragment 1 and, before, in fragment 0"),
        ([[0, 0, 1, 2], [3, 4, 5]], [0, 0], "overlap: atom 0"),
        ([[0, 1, 2], [3, 4]], [0, 0], r"miss 1 of 6 atoms \(atoms \[5\]\)"),
        ([[0, 1, 2], [3, 4, 5], []], [0, 0, 0], "fragment 2 is empty"),
        ([[0, 1, 2], [3, 4, 6]], [0, 0], r"names the atoms \[6\], but the structure has the atoms 0 to 5"),
        ([[0, 1, 2], [3, 4, 5]], [0], "2 fragments but 1 fragment charges"),
        ([[0, 1, 2], [3, 4, 5]], [0, np.nan], "expected a list of finite numbers"),
    ],
)
def test_wrong_fragments_are_refused(groups, charges, match):
    with pytest.raises(InputError, match=match):
        assign_fragments(two_waters(), groups, charges)


def test_fragment_charges_have_to_sum_to_the_total():
    atoms = two_waters()
    atoms.info["total_charge"] = 1.0
    with pytest.raises(InputError, match=r"fragment charges sum to 0 e.*total_charge.* is 1 e"):
        assign_fragments(atoms, [[0, 1, 2], [3, 4, 5]], [1.0, -1.0])
    good = assign_fragments(two_waters(), [[0, 1, 2], [3, 4, 5]], [1.0, -1.0])
    with pytest.raises(InputError, match="two total charges: the argument total_charge says 1 e, the sum of"):
        read_structure(good, total_charge=1.0)
    atoms.set_array("reference_charges", np.zeros(6))
    with pytest.raises(
        InputError, match=r"two total charges.*the sum of atoms.arrays\[.reference_charges.\] says 0"
    ):
        read_structure(atoms)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda a: a.set_array("fragments", np.array([0, 0, 0, -1, 1, 1])), r"miss 1 atoms.*negative labels"),
        (lambda a: a.set_array("fragments", np.array([0, 0, 0, 0.5, 1, 1])), "one whole number per atom"),
        (lambda a: a.info.update(fragment_charges=[0.0, 0.0]), "which atoms carry them"),
        (lambda a: a.info.update(fragment_charges="many"), "expected a list of finite numbers"),
        (lambda a: a.set_array("reference_charges", np.full(6, np.nan)), "6 finite numbers, one per atom"),
        (lambda a: a.set_array("external_potential", np.full(6, np.inf)), "6 finite numbers, one per atom"),
        (lambda a: a.set_array("external_potential", np.zeros((6, 3))), "6 finite numbers, one per atom"),
    ],
)
def test_wrong_arrays_are_refused(change, match):
    atoms = two_waters()
    change(atoms)
    with pytest.raises(InputError, match=match):
        read_structure(atoms)


def test_models_without_fragments_do_not_mind_them():
    structure = read_structure(assign_fragments(two_waters(), [[0, 1, 2], [3, 4, 5]], [1.0, -1.0]))
    QEq().check(structure)
    assert_allclose(ACKS2(reference_charges="uniform").bind(structure).reference, 0.0, atol=1e-15)


def test_the_calculator_notices_a_changed_potential(water_model, water_systems):
    atoms = water_systems["water2"][0].copy()
    atoms.calc = KQEqCalculator(water_model)
    free = atoms.get_potential_energy()
    potential = np.array([0.3, 0.0, -0.2, 0.1, 0.4, 0.0])
    atoms.set_array("external_potential", potential)
    within = atoms.get_potential_energy()
    # to first order the charges times the potential; they respond, which lowers the energy
    charges = water_model.predict(water_systems["water2"][0]).charges
    assert abs(within - free) > 1e-3
    assert within - free < charges @ potential
    assert_allclose(within - free, charges @ potential, atol=0.1)
    atoms.arrays["external_potential"][:] = 0.0
    assert_allclose(atoms.get_potential_energy(), free, rtol=1e-12)
