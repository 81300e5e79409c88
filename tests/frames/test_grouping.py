"""Frames that belong together, and folds that keep them together."""

import numpy as np
import pytest
from ase import Atoms

import kqeq
from kqeq.errors import InputError
from kqeq.frames.grouping import shuffled_folds


def water(shift=0.0, **info):
    atoms = Atoms("OHH", [[shift, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    atoms.info.update(info)
    return atoms


def test_groups_by_geometry_composition_and_entry():
    frames = [
        water(total_charge=0, run="a"),
        water(total_charge=1, run="b"),
        water(0.01, run="a"),
        Atoms("HHO", [[0.96, 0, 0], [-0.24, 0.93, 0], [0, 0, 0]], info={"run": "b"}),
        Atoms("O", info={"run": "c"}),
    ]
    np.testing.assert_array_equal(kqeq.groups(frames), [0, 0, 1, 2, 3])
    np.testing.assert_array_equal(kqeq.groups(frames, "composition"), [0, 0, 0, 0, 1])
    np.testing.assert_array_equal(kqeq.groups(frames, "run"), [0, 1, 0, 1, 2])
    with pytest.raises(InputError, match=r"frame 0 has no 'trajectory'.*it has total_charge, run"):
        kqeq.groups(frames, "trajectory")


def test_geometry_sees_the_cell_and_not_the_sign_of_zero():
    first, second = water(), water()
    second.positions[0] = -0.0
    np.testing.assert_array_equal(kqeq.groups([first, second]), [0, 0])
    second.cell = [5.0, 5.0, 5.0]
    np.testing.assert_array_equal(kqeq.groups([first, second]), [0, 1])


def test_folds_keep_groups_and_spread_kinds():
    """A file that is sorted by system has every system in every fold."""
    kinds = ["a"] * 16 + ["b"] * 8
    group = np.repeat(np.arange(12), 2)
    folds = shuffled_folds(group, kinds, 4)
    for own in range(12):
        assert len(set(folds[group == own])) == 1
    assert all(list(folds[:16]).count(k) == 4 and list(folds[16:]).count(k) == 2 for k in range(4))
    # another order is another split, the same seed the same one
    np.testing.assert_array_equal(folds, shuffled_folds(group, kinds, 4, seed=0))
    assert (folds != shuffled_folds(group, kinds, 4, seed=1)).any()


@pytest.mark.parametrize("folds", [1, 13, 2.0, True])
def test_impossible_folds_are_refused(folds):
    with pytest.raises(InputError, match=r"12 groups of frames; expected a whole number from 2"):
        shuffled_folds(range(12), ["a"] * 12, folds)
