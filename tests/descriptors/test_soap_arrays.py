"""The array-namespace twin of SOAP against the compiled kernels, under NumPy and on a stand-in for a GPU."""

import numpy as np
import pytest
from ase import Atoms

from device_checks import STRICT
from kqeq.backend import CPU, asarray_like, place, record_transfers, to_numpy
from kqeq.descriptors.soap.arrays.blocks import chunks, packing
from kqeq.descriptors.soap.descriptor import SOAPDescriptor
from kqeq.errors import InputError
from kqeq.frames.neighbours import find_pairs
from kqeq.frames.structures import read_structure
from systems import methanol, slab, triclinic

DEVICES = [CPU, STRICT]


@pytest.mark.parametrize("smooth", ["none", "switch"])
@pytest.mark.parametrize("make", [methanol, triclinic, slab], ids=lambda f: f.__name__)
def test_pairs_found_on_the_device(make, smooth):
    """As those that the host finds and sorts, up to the order of neighbours of one element."""
    from kqeq.descriptors.soap.arrays.blocks import ArrayPairs
    from kqeq.descriptors.soap.host.adjoint import sort_pairs

    structure, tables = read_structure(make()), SOAPDescriptor(3.2, 3, 3, smooth=smooth).tables
    species, slots = np.unique(structure.numbers, return_inverse=True)
    host = sort_pairs(find_pairs(structure, tables.cutoff, full=False), slots, len(species), tables)
    found = ArrayPairs.find(structure, slots, len(species), tables, STRICT.like)
    assert place(found.vectors) == place(STRICT.like) and len(found) == len(host.vectors[0]) > 20
    np.testing.assert_array_equal(found.offsets, host.start)
    np.testing.assert_array_equal(to_numpy(found.start), host.start)
    indices = np.stack([to_numpy(found.i), to_numpy(found.j)])
    ours = np.concatenate([indices, to_numpy(found.vectors), to_numpy(found.switch)])
    theirs = np.concatenate([host.indices, host.vectors, host.switch])
    for begin, end in zip(host.start[:-1], host.start[1:], strict=True):
        one, other = (np.array(sorted(x[:, begin:end].T.round(9).tolist())) for x in (ours, theirs))
        np.testing.assert_allclose(one, other, atol=1e-8)
    again = ArrayPairs.find(structure, slots, len(species), tables, STRICT.like)
    np.testing.assert_array_equal(to_numpy(again.vectors), to_numpy(found.vectors))


def test_the_order_of_pairs_does_not_depend_on_the_search():
    from kqeq.frames import neighbours

    structure = read_structure(triclinic())
    given = (structure.positions, structure.cell, structure.pbc, 5.0, STRICT.like)
    expected = [to_numpy(x) for x in neighbours.find_pairs_on(*given)]
    rng = np.random.default_rng(0)
    original = neighbours._compute

    def shuffled(*arguments):
        indices, vectors = (x.copy() for x in original(*arguments))
        order, turned = rng.permutation(len(indices)), rng.random(len(indices)) < 0.5
        indices[turned] = indices[turned, ::-1]
        vectors[turned] *= -1.0
        return indices[order], vectors[order]

    neighbours._compute = shuffled
    try:
        for result, other in zip(neighbours.find_pairs_on(*given), expected, strict=True):
            np.testing.assert_array_equal(to_numpy(result), other)
    finally:
        neighbours._compute = original
    i, j, _ = expected
    assert (i <= j).all() and len(i) > 50


def dense(matrix):
    return matrix.toarray() if hasattr(matrix, "toarray") else to_numpy(matrix)


def close(result, reference, relative=1e-12):
    result = to_numpy(result)
    assert result.shape == reference.shape
    np.testing.assert_allclose(result, reference, atol=relative * max(np.abs(reference).max(), 1e-3), rtol=0)


@pytest.mark.parametrize("device", DEVICES, ids=["numpy", "strict"])
@pytest.mark.parametrize("make", [methanol, triclinic, slab], ids=lambda f: f.__name__)
@pytest.mark.parametrize("smooth", ["none", "switch"])
@pytest.mark.parametrize("memory", [None, 30_000], ids=["one chunk", "many chunks"])
def test_equals_compiled_kernels(device, make, smooth, memory):
    structure = read_structure(make())
    descriptor = SOAPDescriptor(3.2, 3, 3, smooth=smooth)
    reference = descriptor.evaluate(structure)

    def put(x):
        return asarray_like(x, device.like)

    # the list of the compiled kernels, so that single pairs can be compared
    pairs = find_pairs(structure, descriptor.cutoff, full=False)
    state = descriptor.evaluate_arrays(structure, device.like, pairs=pairs, memory=memory)
    assert place(state.values) == place(device.like)
    assert state.species == reference.species
    close(state.values, reference.values)
    close(state.norms, reference.norms)

    rng = np.random.default_rng(0)
    gradient = rng.normal(size=reference.values.shape)
    expected = reference.adjoint(gradient)
    assert np.abs(expected.positions).max() > 0.1
    result = state.adjoint(put(gradient))
    close(result.positions, expected.positions)
    close(result.strain, expected.strain)

    close(state.pair_gradients(put(gradient)), reference.pair_gradients(gradient).T)
    sites, expected_sites = state.site_jacobian(put(gradient)), reference.site_jacobian(gradient)
    close(dense(sites.positions), expected_sites.positions.toarray())
    close(sites.strain, expected_sites.strain)

    centres = np.array([3, 0, 5])
    directions = rng.normal(size=(7, gradient.shape[1]))
    coefficients = rng.normal(size=(3, 7))
    expected_features = descriptor.feature_gradients(reference, centres, directions, coefficients)
    features = descriptor.feature_gradients(state, centres, put(directions), put(coefficients))
    close(features.positions, expected_features.positions)
    close(features.strain, expected_features.strain)


@pytest.mark.parametrize("device", DEVICES, ids=["numpy", "strict"])
@pytest.mark.parametrize("l_max", [0, 1])
def test_isolated_atoms(device, l_max):
    descriptor = SOAPDescriptor(3.0, 2, l_max)
    structure = read_structure(Atoms("HeNe", positions=[[0, 0, 0], [0, 0, 40.0]]))
    state = descriptor.evaluate_arrays(structure, device.like)
    close(state.values, descriptor.evaluate(structure).values)
    ones = asarray_like(np.ones(state.values.shape), device.like)
    assert not to_numpy(state.adjoint(ones).positions).any()
    one = np.array([1])
    assert not to_numpy(descriptor.feature_gradients(state, one, ones, ones[:1, :2]).positions).any()
    assert descriptor.feature_gradients(state, one, ones[:0, :], ones[:1, :0]).positions.shape == (6, 0)


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
    descriptor = SOAPDescriptor(3.0, 2, 1)
    state = descriptor.evaluate_arrays(read_structure(methanol()), np.zeros(1))
    n, f = state.values.shape
    with pytest.raises(InputError, match="gradient"):
        state.adjoint(np.zeros((n, f + 1)))
    with pytest.raises(InputError, match="directions"):
        descriptor.feature_gradients(state, np.array([0]), np.zeros((2, f + 1)), np.zeros((1, 2)))
    with pytest.raises(InputError, match="coefficients"):
        descriptor.feature_gradients(state, np.array([0]), np.zeros((2, f)), np.zeros((2, 2)))


def test_derivatives_move_only_what_is_given():
    """Pairs are sorted there once; after that, centres are the only thing that comes from the host."""
    structure = read_structure(methanol())
    descriptor = SOAPDescriptor(3.2, 3, 3)
    descriptor.evaluate_arrays(structure, STRICT.like)  # tables stay on the device
    with record_transfers() as moved:
        state = descriptor.evaluate_arrays(structure, STRICT.like, memory=30_000)
    # how many neighbours each atom has, to plan the chunks
    assert moved.to_host == [8 * (len(structure) * 3 + 1)]
    assert len(moved.to_device) <= 7
    gradient = asarray_like(np.ones(state.values.shape), STRICT.like)
    with record_transfers() as moved:
        state.adjoint(gradient)
        state.site_jacobian(gradient)
    assert (moved.to_device, moved.to_host, moved.scalars) == ([], [], 0)
    with record_transfers() as moved:
        descriptor.feature_gradients(state, np.array([0, 2]), gradient, gradient[:2, : len(structure)])
    assert (moved.to_device, moved.to_host) == ([16], [])
