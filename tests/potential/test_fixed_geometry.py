"""One geometry under several conditions: the same numbers as from scratch, bit for bit."""

import numpy as np
import pytest

import kqeq
from checks import assert_same_prediction, bare
from conftest import NOISE, small_kernel
from kqeq.errors import InputError, UnsupportedError
from kqeq.frames.structures import read_structure
from kqeq.potential.fixed_geometry import FixedGeometry, same_geometry

FIELD = np.array([0.1, -0.05, 0.2])


@pytest.fixture(scope="module", params=["qeq", "acks2", "acks2 with dipoles"])
def model(request, water_training):
    charges = {"qeq": kqeq.QEq(), "acks2": kqeq.ACKS2(), "acks2 with dipoles": kqeq.AtomicDipoles()}
    both = small_kernel(3.5), small_kernel(4.0, zeta=4)
    return kqeq.KQEq(*both, charges=charges[request.param], noise=NOISE).fit(water_training)


def test_conditions_in_any_order_give_the_same_bits(model, water_systems):
    atoms = bare(water_systems["water3"][0])
    geometry = FixedGeometry.at(model.potential_, read_structure(atoms, total_charge=-0.7))
    for charge, field in ((1, None), (0, FIELD), (-1, FIELD), (0, None), (0.3, -FIELD), (-0.7, None)):
        there = geometry.under(charge, np.zeros(3) if field is None else field)
        expected = model.predict(atoms, total_charge=charge, external_field=field)
        assert_same_prediction(there.predict(), expected)
    # only one of them
    assert geometry.under(total_charge=1.0).predict(()).total_charge == 1.0
    np.testing.assert_array_equal(geometry.under(external_field=FIELD).predict(()).external_field, FIELD)
    assert geometry.under(external_field=FIELD).structure.total_charge == -0.7


def test_a_geometry_without_charges(short_range_model, water_systems):
    atoms = bare(water_systems["water1"][0])
    geometry = FixedGeometry.at(short_range_model.potential_, read_structure(atoms))
    assert geometry.system is None
    assert_same_prediction(geometry.predict(), short_range_model.predict(atoms))
    with pytest.raises(InputError, match="no charges for the field"):
        geometry.under(external_field=FIELD)


def test_what_conditions_are_refused(water_model, water_systems):
    dimer = bare(water_systems["water2"][0])
    split = kqeq.charges.assign_fragments(dimer, [[0, 1, 2], [3, 4, 5]], [0, 0])
    geometry = FixedGeometry.at(water_model.potential_, read_structure(split))
    with pytest.raises(InputError, match="total charge was changed"):
        geometry.under(total_charge=1.0)
    dimer.set_cell([9, 9, 9])
    dimer.pbc = True
    geometry = FixedGeometry.at(water_model.potential_, read_structure(dimer))
    with pytest.raises(UnsupportedError):
        geometry.under(external_field=FIELD)


def test_which_structures_share_a_geometry(water_systems):
    atoms = bare(water_systems["water2"][0])
    first = read_structure(atoms)
    assert same_geometry(first, read_structure(atoms, total_charge=1, external_field=FIELD))
    moved = atoms.copy()
    moved.positions[0, 0] += 1e-12
    assert not same_geometry(first, read_structure(moved))
    other = atoms.copy()
    other.numbers[0] = 1
    assert not same_geometry(first, read_structure(other))
    embedded = atoms.copy()
    embedded.set_array("external_potential", np.zeros(6))
    assert not same_geometry(first, read_structure(embedded))
    cell = atoms.copy()
    cell.set_cell([9, 9, 9])
    assert not same_geometry(first, read_structure(cell))
