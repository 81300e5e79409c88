"""Neighbours told apart by period: rows, derivatives, files, and what they are for."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

import kqeq
from kqeq.descriptors.merged import Merged, first_of_period
from kqeq.descriptors.soap import SOAPDescriptor
from kqeq.errors import InputError
from kqeq.frames.structures import read_structure
from kqeq.model.config import model_from_dict

SOAP = SOAPDescriptor(3.0, 4, 3, sigma=0.4, smooth="switch")


def test_first_element_of_every_period():
    numbers = np.array([1, 2, 3, 6, 10, 11, 17, 18, 19, 26, 37, 55, 86, 87, 118])
    assert first_of_period(numbers).tolist() == [1, 1, 3, 3, 3, 11, 11, 11, 19, 19, 37, 55, 55, 87, 87]


def test_rows_do_not_tell_elements_of_a_period_apart():
    one = read_structure(molecule("CH3OH"))
    other = replace(one, numbers=np.where(one.numbers == 8, 9, one.numbers))
    plain = [SOAP.evaluate(own).values for own in (one, other)]
    merged = [Merged(SOAP).evaluate(own) for own in (one, other)]
    assert plain[0].shape == plain[1].shape
    assert np.abs(plain[0] - plain[1]).max() < 1e-12  # blocks of O and of F, in the same places
    np.testing.assert_array_equal(merged[0].values, merged[1].values)
    assert merged[0].values.shape[1] < plain[0].shape[1]
    assert merged[0].species == (1, 6, 8)
    assert merged[1].species == (1, 6, 9)
    ammonia = read_structure(Atoms("NH3", molecule("NH3").positions))
    phosphine = replace(ammonia, numbers=np.where(ammonia.numbers == 7, 15, 1))
    descriptor = Merged(SOAP)
    assert descriptor.block_slices((1, 7)).keys() != descriptor.block_slices((1, 15)).keys()
    assert descriptor.evaluate(phosphine).values.shape == descriptor.evaluate(ammonia).values.shape


def small(**options):
    return kqeq.SOAPKernel(3.0, 3, 2, 0.4, n_representatives=8, **options)


@pytest.fixture(scope="module")
def fitted():
    frames = [a for a in kqeq.datasets.load("water") if a.info["system"] in ("water1", "water2")][::3]
    return frames, kqeq.KQEq(
        [small(), small(neighbours="periods")], [small(), small(neighbours="periods", zeta=3)]
    ).fit(frames, optimize=None)


def test_forces_are_derivatives_of_the_energy(fitted):
    frames, model = fitted
    atoms = frames[-1].copy()
    atoms.info.clear()
    forces, h = model.predict(atoms).forces, 1e-4
    assert np.abs(forces).max() > 0.1
    for i, a in ((0, 0), (1, 2), (2, 1)):
        energies = []
        for step in (h, -h):
            moved = atoms.copy()
            moved.positions[i, a] += step
            energies.append(model.predict(moved).energy)
        assert forces[i, a] == pytest.approx(-(energies[0] - energies[1]) / (2 * h), abs=1e-6)


def test_files_keep_what_neighbours_are_told_apart_by(fitted, tmp_path):
    frames, model = fitted
    path = tmp_path / "merged.kqeq"
    model.save(path, posterior=True)
    again = kqeq.load(path)
    assert [own.neighbours for own in again.short_range] == ["elements", "periods"]
    assert again.predict(frames[0]).energy == model.predict(frames[0]).energy
    assert "neighbours" not in model.short_range[0].to_dict()  # versions that do not know it read such files
    plain = kqeq.KQEq(small(), small()).fit(frames, optimize=None)
    assert plain.predict(frames[0]).energy != model.predict(frames[0]).energy


def test_what_is_learned_next_to_one_element_holds_next_to_another():
    """A merged kernel takes environments with C in the place of N for near, a plain one for unlike."""
    amine, alcohol = (read_structure(molecule(name)) for name in ("CH3CH2NH2", "CH3CH2OH"))

    def likeness(descriptor):
        rows = {own: descriptor.evaluate(own) for own in (amine, alcohol)}
        blocks = [descriptor.block_slices(tuple(state.species)) for state in rows.values()]
        carbon = [state.values[own.numbers == 6][0] for own, state in rows.items()]
        shared = blocks[0].keys() & blocks[1].keys()
        return sum(carbon[0][blocks[0][pair]] @ carbon[1][blocks[1][pair]] for pair in shared)

    assert 0.0 < 1.0 - likeness(Merged(SOAP)) < 0.5 * (1.0 - likeness(SOAP))


def test_settings():
    model = model_from_dict({"short_range": {"neighbours": "periods"}})
    assert isinstance(model.short_range.descriptor(), Merged)
    assert isinstance(small().descriptor(), SOAPDescriptor)
    with pytest.raises(InputError, match="neighbours"):
        small(neighbours="rows").check()
