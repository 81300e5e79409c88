"""The door for structures: what is read, what is refused."""

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given
from hypothesis import strategies as st

from kqeq.errors import InputError
from kqeq.frames.structures import MIN_DISTANCE, as_frames, conditions, describe, read_structure
from systems import WATER


def water(**info):
    atoms = WATER.copy()
    atoms.info.update(info)
    return atoms


# ------------------------------------------------------------------ reading


def test_reads_geometry_and_conditions():
    atoms = water(total_charge=-1, external_field=[0.0, 0.1, 0.2])
    atoms.cell, atoms.pbc = [9.0, 8.0, 7.0], [True, False, True]
    s = read_structure(atoms)
    assert len(s) == 3
    assert s.species == (1, 8)
    assert s.numbers.dtype == np.int64
    assert s.positions.dtype == np.float64
    np.testing.assert_array_equal(s.positions, WATER.positions)
    np.testing.assert_array_equal(s.pbc, [True, False, True])
    assert s.periodic
    assert s.volume == pytest.approx(9.0 * 8.0 * 7.0)
    assert s.total_charge == -1.0
    np.testing.assert_array_equal(s.external_field, [0.0, 0.1, 0.2])


def test_nothing_said_means_neutral_open_and_without_field():
    s = read_structure(water())
    assert s.total_charge == 0.0
    assert not s.external_field.any()
    assert not s.periodic
    assert s.volume == 0.0


def test_what_is_read_does_not_follow_later_changes():
    field = np.array([0.0, 0.0, 0.1])
    atoms = water(external_field=field)
    s = read_structure(atoms)
    atoms.positions += 1.0
    atoms.numbers[0] = 7
    field[2] = 9.0
    assert s.species == (1, 8)
    np.testing.assert_array_equal(s.positions, WATER.positions)
    np.testing.assert_array_equal(s.external_field, [0.0, 0.0, 0.1])


def test_under_changes_conditions_only():
    s = read_structure(water())
    t = s.under(2.0, np.array([0.0, 1.0, 0.0]))
    assert (t.total_charge, t.external_field[1]) == (2.0, 1.0)
    assert t.positions is s.positions
    assert s.total_charge == 0.0


def test_describe_names_number_and_formula():
    assert str(describe(WATER)) == "the structure (H2O)"
    assert str(describe(WATER, 12)) == "frame 12 (H2O)"
    assert "no atoms" in str(describe(Atoms()))


# ------------------------------------------------------------------- frames


def test_as_frames_takes_one_a_list_and_a_generator():
    assert as_frames(WATER) == [WATER]
    assert as_frames([WATER, WATER]) == [WATER, WATER]
    assert as_frames(a for a in [WATER]) == [WATER]


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ([], "no frames"),
        ("train.xyz", r"ase\.io\.read"),
        (b"train.xyz", r"ase\.io\.read"),
        (None, "NoneType"),
        (3, "int"),
        ([WATER, "x"], "frame 1 is a str"),
        ([[WATER]], "frame 0 is a list"),
    ],
)
def test_as_frames_refuses_everything_else(frames, text):
    with pytest.raises(InputError, match=text):
        as_frames(frames)


# --------------------------------------------------------------- conditions


@pytest.mark.parametrize("key", ["total_charge", "charge"])
def test_charge_comes_from_info_under_either_name(key):
    assert conditions(water(**{key: 2}))[0] == 2.0


def test_argument_and_info_may_agree():
    assert conditions(water(total_charge=1, charge=1.0), total_charge=np.float64(1.0))[0] == 1.0


@pytest.mark.parametrize(
    ("info", "argument"),
    [
        ({"total_charge": 1, "charge": 0}, None),
        ({"total_charge": 1}, 0),
        ({"charge": -1}, 1),
        ({"total_charge": 0, "charge": 0}, 1),
        ({"total_charge": 0}, 1e-6),
    ],
)
def test_two_sources_that_disagree_about_the_charge_are_an_error(info, argument):
    with pytest.raises(InputError, match=r"two total charges.*make them agree"):
        conditions(water(**info), total_charge=argument)


def test_initial_charges_are_no_source_but_must_not_contradict():
    atoms = water()
    atoms.set_initial_charges([-0.8, 0.4, 0.4])
    assert conditions(atoms)[0] == 0.0
    atoms.set_initial_charges([1.0, 0.0, 0.0])
    assert conditions(atoms, total_charge=1)[0] == 1.0
    with pytest.raises(InputError, match="initial charges that sum to 1 e"):
        conditions(atoms)
    with pytest.raises(InputError, match="initial charges"):
        conditions(atoms, total_charge=-1)


def test_two_fields_that_disagree_are_an_error():
    atoms = water(external_field=[0.0, 0.0, 0.1])
    assert conditions(atoms, external_field=(0, 0, 0.1))[1][2] == 0.1
    with pytest.raises(InputError, match="two external fields"):
        conditions(atoms, external_field=(0, 0, 0.2))
    with pytest.raises(InputError, match="two external fields"):
        conditions(atoms, external_field=(0, 0, 0))


@pytest.mark.parametrize(
    "field", [(0, 0), 0.1, (0, 0, np.nan), (0, np.inf, 0), "abc", (0, 0, "x"), [[0, 0, 0.1]], [(1,), 2, 3]]
)
@pytest.mark.parametrize("place", ["argument", "info"])
def test_a_field_is_three_finite_numbers(field, place):
    atoms = water(external_field=field) if place == "info" else water()
    with pytest.raises(InputError, match="three finite numbers"):
        conditions(atoms, external_field=field if place == "argument" else None)


@pytest.mark.parametrize("charge", ["one", np.nan, np.inf, (1, 2), [], object(), 1j])
def test_a_charge_is_one_finite_number(charge):
    with pytest.raises(InputError, match="one finite number"):
        conditions(water(), total_charge=charge)


@given(st.floats(-1e6, 1e6, allow_nan=False), st.tuples(*[st.floats(-10, 10)] * 3))
def test_any_finite_charge_and_field_pass_unchanged(charge, field):
    s = read_structure(water(), total_charge=charge, external_field=field)
    assert s.total_charge == charge
    assert tuple(s.external_field) == field


# --------------------------------------------------------- what is refused


def test_no_atoms_dummies_and_broken_geometry_are_refused():
    with pytest.raises(InputError, match="no atoms"):
        read_structure(Atoms())
    with pytest.raises(InputError, match="outside 1 to 118"):
        read_structure(Atoms("X"))
    broken = water()
    broken.positions[1, 2] = np.nan
    with pytest.raises(InputError, match=r"frame 7 \(H2O\) has positions"):
        read_structure(broken, index=7)


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (np.zeros((3, 3)), "cell vector is zero"),
        (np.diag([5.0, 5.0, 0.0]), "cell vector is zero"),
        (np.ones((3, 3)), "linearly dependent"),
        (np.diag([5.0, np.nan, 5.0]), "NaN or infinite"),
    ],
)
def test_periodic_structures_need_a_cell(cell, text):
    atoms = water()
    atoms.cell, atoms.pbc = cell, True
    with pytest.raises(InputError, match=text):
        read_structure(atoms)


def test_open_directions_need_no_cell_vector():
    atoms = water()
    atoms.cell, atoms.pbc = np.diag([9.0, 9.0, 0.0]), [True, True, False]
    assert read_structure(atoms).volume == 0.0


# ------------------------------------------------------------------ overlap


def pair(vector, *, n_spectators=0, **options):
    """Two atoms ``vector`` apart, and others far away from both that change the search method."""
    grid = 3.0 * np.array(list(np.ndindex(6, 6, 6)), dtype=float)[1 : n_spectators + 1]
    positions = np.vstack([np.zeros(3), vector, grid])
    return Atoms(["H"] * len(positions), positions, **options)


@pytest.mark.parametrize("n_spectators", [0, 200])
def test_atoms_on_top_of_each_other_are_refused(n_spectators):
    just_apart = np.array([0.0, 0.0, MIN_DISTANCE * 1.001])
    read_structure(pair(just_apart, n_spectators=n_spectators))
    for vector in (np.zeros(3), just_apart * 0.99):
        with pytest.raises(InputError, match=r"atoms 0 and 1 are closer than 0\.05"):
            read_structure(pair(vector, n_spectators=n_spectators))


@pytest.mark.parametrize("n_spectators", [0, 200])
@given(data=st.data())
def test_overlap_through_the_periodic_boundary_is_found_wherever_it_is(n_spectators, data):
    """Shift a close pair anywhere and send its atoms to any images: the verdict stays."""
    cell = np.array([[20.0, 0.0, 0.0], [5.0, 19.0, 0.0], [-3.0, 4.0, 21.0]])
    tenths = st.integers(0, 3)
    pbc = data.draw(st.tuples(*[st.booleans()] * 3).filter(any))
    direction = np.array(
        data.draw(st.sampled_from([(1, 1, 0), (1, -1, 0), (1, -1, 1), (0, 0, 1)])), dtype=float
    )
    # half of the pair on each side of a corner of the cell, now and then exactly on it
    centre = np.array(data.draw(st.tuples(tenths, tenths, tenths))) * 0.01
    images = np.array(data.draw(st.tuples(*[st.integers(-2, 2)] * 3))) * np.array(pbc)
    for length, close in ((0.9 * MIN_DISTANCE, True), (1.1 * MIN_DISTANCE, False)):
        vector = length * direction / np.linalg.norm(direction)
        atoms = pair(vector, n_spectators=n_spectators, cell=cell, pbc=pbc)
        atoms.positions += centre - 0.5 * vector
        atoms.positions[1] += images @ cell
        if close:
            with pytest.raises(InputError, match="atoms 0 and 1 are closer"):
                read_structure(atoms)
        else:
            read_structure(atoms)


def test_overlap_across_two_faces_is_found():
    """Neither atom is near the other in the cell; only an image of one meets an image of the other."""
    atoms = Atoms("H2", [[0.001, 9.999, 5.0], [9.999, 0.001, 5.0]], cell=[10.0, 10.0, 10.0], pbc=True)
    with pytest.raises(InputError, match="through the periodic boundary"):
        read_structure(atoms)
    atoms.pbc = [True, False, True]
    read_structure(atoms)


def test_an_atom_on_its_own_image_is_refused():
    cell = np.diag([10.0, 10.0, 0.5 * MIN_DISTANCE])
    with pytest.raises(InputError, match="on top of each other"):
        read_structure(Atoms("H2", [[0.0, 0.0, 0.0], [5.0, 5.0, 0.0]], cell=cell, pbc=True))
    with pytest.raises(InputError, match="on top of each other"):
        read_structure(Atoms("H", cell=cell, pbc=True))
