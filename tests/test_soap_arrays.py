"""The array-namespace twin of SOAP against the compiled kernels, under NumPy and array_api_strict."""

import array_api_strict
import numpy as np
import pytest
from ase import Atoms

from kqeq.descriptors.soap import SOAPDescriptor
from kqeq.descriptors.soap_array_blocks import chunks, packing
from kqeq.errors import InputError
from kqeq.structures import read_structure
from test_soap import methanol, slab, triclinic

NAMESPACES = [np, array_api_strict]


def dense(matrix):
    return matrix.toarray() if hasattr(matrix, "toarray") else np.asarray(matrix)


def close(result, reference, relative=1e-12):
    result = np.asarray(result)
    assert result.shape == reference.shape
    np.testing.assert_allclose(result, reference, atol=relative * max(np.abs(reference).max(), 1e-3), rtol=0)


@pytest.mark.parametrize("xp", NAMESPACES, ids=["numpy", "strict"])
@pytest.mark.parametrize("make", [methanol, triclinic, slab], ids=lambda f: f.__name__)
@pytest.mark.parametrize("smooth", ["none", "switch"])
@pytest.mark.parametrize("memory", [None, 30_000], ids=["one chunk", "many chunks"])
def test_equals_compiled_kernels(xp, make, smooth, memory):
    structure = read_structure(make())
    descriptor = SOAPDescriptor(3.2, 3, 3, smooth=smooth)
    reference = descriptor.evaluate(structure)
    like = xp.asarray(np.zeros(1))
    state = descriptor.evaluate_arrays(structure, like, memory=memory)
    assert type(state.values) is type(like)
    assert state.species == reference.species
    close(state.values, reference.values)
    close(state.norms, reference.norms)

    rng = np.random.default_rng(0)
    gradient = rng.normal(size=reference.values.shape)
    expected = reference.adjoint(gradient)
    assert np.abs(expected.positions).max() > 0.1
    result = state.adjoint(xp.asarray(gradient))
    close(result.positions, expected.positions)
    close(result.strain, expected.strain)

    close(state.pair_gradients(xp.asarray(gradient)), reference.pair_gradients(gradient).T)
    sites, expected_sites = state.site_jacobian(xp.asarray(gradient)), reference.site_jacobian(gradient)
    close(dense(sites.positions), expected_sites.positions.toarray())
    close(sites.strain, expected_sites.strain)

    centres = np.array([3, 0, 5])
    directions = rng.normal(size=(7, gradient.shape[1]))
    coefficients = rng.normal(size=(3, 7))
    expected_features = reference.feature_gradients(centres, directions, coefficients)
    features = state.feature_gradients(xp.asarray(centres), xp.asarray(directions), xp.asarray(coefficients))
    close(features.positions, expected_features.positions)
    close(features.strain, expected_features.strain)


@pytest.mark.parametrize("xp", NAMESPACES, ids=["numpy", "strict"])
@pytest.mark.parametrize("l_max", [0, 1])
def test_isolated_atoms(xp, l_max):
    descriptor = SOAPDescriptor(3.0, 2, l_max)
    structure = read_structure(Atoms("HeNe", positions=[[0, 0, 0], [0, 0, 40.0]]))
    state = descriptor.evaluate_arrays(structure, xp.asarray(np.zeros(1)))
    close(state.values, descriptor.evaluate(structure).values)
    ones = xp.ones_like(state.values)
    assert not np.asarray(state.adjoint(ones).positions).any()
    assert not np.asarray(state.feature_gradients(xp.asarray([1]), ones, xp.ones((1, 2))).positions).any()
    assert state.feature_gradients(xp.asarray([1]), ones[:0, :], xp.ones((1, 0))).positions.shape == (6, 0)


def test_chunks_respect_memory_and_cover_everything():
    descriptor = SOAPDescriptor(4.0, 6, 4)
    structure = read_structure(triclinic().repeat((3, 3, 2)))
    state = descriptor.evaluate(structure)
    centres = np.arange(len(structure))
    few = list(chunks(centres, state.pairs.start, 4, state.tables, 2**24))
    many = list(chunks(centres, state.pairs.start, 4, state.tables, 2**20))
    assert len(many) > 4 * len(few) > 4
    for parts in (few, many):
        assert np.concatenate([centres[p] for p in parts]).tolist() == centres.tolist()


@pytest.mark.parametrize(("species", "n", "degrees"), [(1, 1, 1), (2, 3, 2), (4, 2, 3)])
def test_packing_round_trip(species, n, degrees):
    pack, unpack = packing(species, n, degrees)
    width = species * n
    assert len(pack) == degrees * width * (width + 1) // 2
    assert np.array_equal(unpack.ravel()[pack], np.arange(len(pack)))
    assert np.array_equal(unpack, np.swapaxes(unpack, 1, 2))


def test_wrong_shapes_are_refused():
    state = SOAPDescriptor(3.0, 2, 1).evaluate_arrays(read_structure(methanol()), np.zeros(1))
    n, f = state.values.shape
    with pytest.raises(InputError, match="gradient"):
        state.adjoint(np.zeros((n, f + 1)))
    with pytest.raises(InputError, match="directions"):
        state.feature_gradients(np.array([0]), np.zeros((2, f + 1)), np.zeros((1, 2)))
    with pytest.raises(InputError, match="coefficients"):
        state.feature_gradients(np.array([0]), np.zeros((2, f)), np.zeros((2, 2)))
