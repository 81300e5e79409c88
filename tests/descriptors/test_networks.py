"""Features of networks as descriptors, with a network in NumPy; trained ones are in ``test_trained_networks.py``."""

import copy
import pickle
from importlib.util import find_spec

import array_api_strict
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

import kqeq
from checks import assert_close, central_difference, position_gradient, rotation, strain_gradient
from fake_network import FakeNetwork, FakeTape
from kqeq.backend import to_numpy
from kqeq.descriptors.networks import Graph, NetworkFeatures, Scaling, find_network, resolve_network
from kqeq.descriptors.networks import features as module
from kqeq.descriptors.networks.memory import forget, recorded, values_of
from kqeq.errors import InputError, UnsupportedError
from kqeq.frames.neighbours import find_pairs
from kqeq.frames.structures import read_structure


def water():
    return molecule("H2O")


def salt():
    """Two atoms in a cell so small that each is a neighbour of its own images."""
    atoms = bulk("NaCl", "rocksalt", 2.9)
    atoms.rattle(0.05, seed=1)
    return atoms


def slab():
    atoms = Atoms("CO", [[0, 0, 0], [0.3, 0.2, 1.1]], cell=[[1.9, 0, 0], [0.4, 2.1, 0], [0, 0, 0]])
    atoms.pbc = (True, True, False)
    return atoms


def chain():
    """Carbon atoms in a row: 1 and 3 are farther apart than the cutoff, and feel each other through 2."""
    return Atoms("CCC", [[0, 0, 0], [1.5, 0, 0], [2.9, 0.4, 0]])


SYSTEMS = {"water": water, "salt": salt, "slab": slab, "chain": chain}


def scaled(*systems, **options):
    structures = [read_structure(atoms) for atoms in systems]
    return NetworkFeatures(FakeNetwork(), **options).scaled(structures)


def gradient_like(values, seed=3):
    return np.random.default_rng(seed).normal(size=values.shape)


@pytest.fixture(params=SYSTEMS)
def case(request):
    atoms = SYSTEMS[request.param]()
    others = []
    for seed, stretch in enumerate((0.9, 1.0, 1.2)):
        others.append(atoms.copy())
        others[-1].set_cell(stretch * atoms.cell.array, scale_atoms=atoms.pbc.all())
        others[-1].rattle(0.2, seed=seed)
    return atoms, scaled(atoms, *others)


def weighted(descriptor, gradient):
    def function(atoms):
        return float(np.sum(descriptor.evaluate(read_structure(atoms)).values * gradient))

    return function


def test_rows_are_normalised_and_products_are_not_negative(case):
    atoms, descriptor = case
    values = descriptor.evaluate(read_structure(atoms)).values
    assert values.shape == (len(atoms), descriptor.block_slices((1, 8))[0, 0].stop)
    np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1.0, rtol=0, atol=1e-14)
    dots = values @ values.T
    assert dots.min() >= 0.0
    assert np.linalg.eigvalsh(dots**3)[0] > -1e-13


def test_adjoint_against_finite_differences(case):
    atoms, descriptor = case
    state = descriptor.evaluate(read_structure(atoms))
    gradient = gradient_like(state.values)
    found = state.adjoint(gradient)
    function = weighted(descriptor, gradient)
    assert_close(found.positions, position_gradient(function, atoms, 1e-3), at_least=1e-3)
    assert_close(found.strain, strain_gradient(function, atoms, 1e-3), at_least=1e-2)


def test_messages_reach_farther_than_the_cutoff():
    atoms = chain()
    assert atoms.get_distance(0, 2) > FakeNetwork().cutoff
    descriptor = scaled(atoms, water(), salt())
    gradient = np.zeros((3, descriptor.network.size + module.EXTRA))
    gradient[0] = gradient_like(gradient[0])
    found = descriptor.evaluate(read_structure(atoms)).adjoint(gradient).positions
    assert np.abs(found[2]).max() > 1e-3
    assert_close(found, position_gradient(weighted(descriptor, gradient), atoms, 1e-3), at_least=1e-2)


def test_site_jacobian_is_the_adjoint_of_each_row_both_ways(case):
    atoms, descriptor = case
    state = descriptor.evaluate(read_structure(atoms))
    gradient = gradient_like(state.values)
    first, second = state.site_jacobian(gradient), state.site_jacobian(gradient)
    assert state._jacobian is not None  # asked twice: kept
    for found in (first, second):
        for i in range(len(atoms)):
            row = np.zeros_like(gradient)
            row[i] = gradient[i]
            own = state.adjoint(row)
            assert_close(found.positions.toarray()[:, i].reshape(-1, 3), own.positions, at_least=1e-4)
            assert_close(found.strain[:, i].reshape(3, 3), own.strain, at_least=1e-4)


@pytest.mark.parametrize("kept", [True, False])
def test_feature_gradients_are_those_of_single_directions(case, monkeypatch, kept):
    if not kept:
        monkeypatch.setattr(module, "JACOBIAN_BYTES", 0)
        monkeypatch.setattr(module, "BLOCK_BYTES", 2000)
    atoms, descriptor = case
    state = descriptor.evaluate(read_structure(atoms))
    rng = np.random.default_rng(0)
    centres = np.array([1, 0])
    directions = rng.normal(size=(4, state.values.shape[1]))
    coefficients = rng.normal(size=(2, 4))
    found = descriptor.feature_gradients(
        state, centres, descriptor.prepare_directions(state.species, directions), coefficients
    )
    for m in range(4):
        gradient = np.zeros_like(state.values)
        gradient[centres] = coefficients[:, m, None] * directions[m]
        own = state.adjoint(gradient)
        assert_close(found.positions[:, m].reshape(-1, 3), own.positions, at_least=1e-3)
        assert_close(found.strain[:, m].reshape(3, 3), own.strain, at_least=1e-3)


def test_feature_gradients_refuse_wrong_shapes():
    descriptor = scaled(water())
    state = descriptor.evaluate(read_structure(water()))
    with pytest.raises(InputError, match="do not fit to 12 features"):
        descriptor.feature_gradients(state, np.array([0]), np.zeros((2, 3)), np.zeros((1, 2)))


@pytest.mark.parametrize("full", [True, False])
def test_longer_neighbour_lists_give_the_same(case, full):
    atoms, descriptor = case
    structure = read_structure(atoms)
    expected = descriptor.evaluate(structure)
    found = descriptor.evaluate(structure, pairs=find_pairs(structure, 6.0, full=full))
    assert len(expected.graph.vectors) == len(found.graph.vectors) > 0
    np.testing.assert_allclose(found.values, expected.values, rtol=0, atol=1e-13)
    short = find_pairs(structure, 1.0)
    with pytest.raises(InputError, match="reaches 1 Å, the network needs"):
        descriptor.evaluate(structure, pairs=short)


def test_every_pair_is_listed_in_both_directions(case):
    graph = Graph.of(read_structure(case[0]), 3.0)
    half = len(graph.vectors) // 2
    np.testing.assert_array_equal(graph.centres[:half], graph.neighbours[half:])
    np.testing.assert_array_equal(graph.vectors[:half], -graph.vectors[half:])


def test_supercells_have_the_same_features():
    descriptor = scaled(salt())
    one = descriptor.evaluate(read_structure(salt())).values
    many = descriptor.evaluate(read_structure(salt().repeat((2, 1, 2)))).values
    np.testing.assert_allclose(many, np.tile(one, (4, 1)), rtol=0, atol=1e-13)


def test_invariance():
    atoms = molecule("CH3OH")
    descriptor = scaled(atoms)
    values = descriptor.evaluate(read_structure(atoms)).values
    order = np.random.default_rng(0).permutation(len(atoms))
    turned = Atoms(atoms.numbers[order], (atoms.positions @ rotation(0).T + 3.0)[order])
    np.testing.assert_allclose(
        descriptor.evaluate(read_structure(turned)).values, values[order], rtol=0, atol=1e-13
    )


def test_arrays_of_another_library():
    atoms = salt()
    descriptor = scaled(atoms)
    structure = read_structure(atoms)
    like = array_api_strict.zeros(1)
    host, state = descriptor.evaluate(structure), descriptor.evaluate_arrays(structure, like)
    gradient = gradient_like(host.values)
    there = array_api_strict.asarray(gradient)
    np.testing.assert_array_equal(to_numpy(state.values), host.values)
    np.testing.assert_array_equal(to_numpy(state.adjoint(there).positions), host.adjoint(gradient).positions)
    np.testing.assert_array_equal(
        to_numpy(state.site_jacobian(there).positions), host.site_jacobian(gradient).positions.toarray()
    )
    found = descriptor.feature_gradients(
        state, np.array([0]), array_api_strict.asarray(gradient), array_api_strict.asarray(gradient[:1, :2])
    )
    expected = descriptor.feature_gradients(host, np.array([0]), gradient, gradient[:1, :2])
    np.testing.assert_array_equal(to_numpy(found.strain), expected.strain)


def test_scaling_is_by_content():
    one, other = scaled(water()), scaled(water())
    assert one == other and hash(one) == hash(other) and repr(one) == repr(other)
    assert one != scaled(salt())
    assert "Scaling(" in repr(one)
    with pytest.raises(InputError, match="scaled on H, O, not on C"):
        one.evaluate(read_structure(chain()))


def test_scaling_of_atoms_that_are_all_alike():
    alike = Scaling.of({6: np.ones((3, 4))})
    assert alike.spread[6] == 2.0  # the square root of the number of features


def test_the_charge_is_told_on_request_only():
    atoms = water()
    ion = water()
    ion.info["total_charge"] = 1.0
    plain, told = scaled(atoms), scaled(atoms, charged=True)
    assert told.knows_charge and not plain.knows_charge
    same = [plain.evaluate(read_structure(a)).values for a in (atoms, ion)]
    other = [told.evaluate(read_structure(a)).values for a in (atoms, ion)]
    np.testing.assert_array_equal(*same)
    assert np.abs(other[0] - other[1]).max() > 1e-2
    with pytest.raises(UnsupportedError, match="fake knows nothing of total charges"):
        NetworkFeatures(FakeNetwork(knows_charge=False), charged=True)


def test_an_unknown_element_is_refused():
    with pytest.raises(InputError, match="the network fake does not know Si"):
        scaled(water()).evaluate(read_structure(Atoms("Si")))


def test_a_single_atom_has_features_and_no_derivatives():
    descriptor = scaled(water())
    state = descriptor.evaluate(read_structure(Atoms("O")))
    gradient = gradient_like(state.values)
    assert np.abs(state.adjoint(gradient).positions).max() == 0.0
    assert state.site_jacobian(gradient).positions.nnz == 0


def test_a_network_is_evaluated_once_for_a_structure():
    class Counting(FakeNetwork):
        calls = 0

        def evaluate(self, graph):
            type(self).calls += 1
            return super().evaluate(graph)

        def record(self, graph):
            type(self).calls += 1
            return super().record(graph)

    network = Counting(seed=41)
    descriptor = NetworkFeatures(network).scaled([read_structure(water())])
    for _ in range(3):
        descriptor.evaluate(read_structure(water()), derivatives=False)
    assert Counting.calls == 1
    state = descriptor.evaluate(read_structure(water()))
    state.adjoint(gradient_like(state.values))
    assert Counting.calls == 2
    forget()
    descriptor.evaluate(read_structure(water()), derivatives=False)
    assert Counting.calls == 3


def test_memory_of_features_and_recordings_is_bounded(monkeypatch):
    from kqeq.descriptors.networks import memory

    forget()
    monkeypatch.setattr(memory, "VALUES_BYTES", 1000)
    monkeypatch.setattr(memory, "RECORDED_ATOMS", 7)
    network = FakeNetwork(seed=42)
    graphs = []
    for k in range(6):
        atoms = water()
        atoms.rattle(0.01, seed=k)
        graphs.append(Graph.of(read_structure(atoms), network.cutoff))
        values_of(network, graphs[-1])
        recorded(network, graphs[-1])
    assert sum(values.nbytes for values in memory._values.values()) == memory._bytes <= 1000
    assert 1 <= len(memory._tapes) <= 2
    with pytest.raises(ValueError, match="read-only"):
        values_of(network, graphs[-1])[0] = 0.0


# ------------------------------------------------------------------ fake itself


def test_the_fake_network_gives_its_derivatives():
    graph = Graph.of(read_structure(salt()), 2.2)
    tape = FakeTape(FakeNetwork(), graph)
    rng = np.random.default_rng(0)
    gradients, tangents = rng.normal(size=(2, *tape.values.shape)), rng.normal(size=(3, *graph.vectors.shape))
    both = np.einsum("bnf,tnf->bt", gradients, tape.push(tangents))
    assert_close(both, np.einsum("bpa,tpa->bt", tape.pull(gradients), tangents), rtol=1e-12, at_least=0.1)


# -------------------------------------------------------------------- names


def test_names_of_networks():
    with pytest.raises(InputError, match=r'network is \'sollr\'; expected "so3lr"'):
        resolve_network("sollr")
    with pytest.raises(InputError, match="network is 3"):
        resolve_network(3)
    with pytest.raises(InputError, match="expected"):
        resolve_network(FakeNetwork)
    network = FakeNetwork(seed=43)
    assert resolve_network(network) is network
    assert resolve_network(FakeNetwork(seed=43)) is network  # the one that is known


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("so3lr", "so3krates_torch", "so3lr"),
        ("mace:water.model", "mace", "mace"),
        ("chgnet", "chgnet", "chgnet"),
        ("chgnet:r2scan", "chgnet", "chgnet"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, name, package, extra):
    from kqeq.backend import pytorch

    monkeypatch.setattr(pytorch, "find_spec", lambda wanted: None if wanted == package else find_spec(wanted))
    for ask in (
        lambda: resolve_network(name),
        lambda: kqeq.NetworkKernel(name).check(),
        lambda: kqeq.KQEq(kqeq.NetworkKernel(name)).fit(kqeq.datasets.load("ag3")[:4]),
    ):
        with pytest.raises(UnsupportedError, match=rf'pip install "kqeq\[{extra}\]"'):
            ask()


def test_a_missing_package_of_the_baseline_is_named_with_its_extra(monkeypatch):
    from kqeq.backend import pytorch

    monkeypatch.setattr(pytorch, "find_spec", lambda wanted: None)
    structure = read_structure(water())
    with pytest.raises(UnsupportedError, match=r'pip install "kqeq\[so3lr\]"'):
        kqeq.baselines.SO3LR().describe()
    if find_spec("so3krates_torch") is None:
        with pytest.raises(UnsupportedError, match=r'pip install "kqeq\[so3lr\]"'):
            kqeq.baselines.resolve_baseline("so3lr").evaluate(structure)


def test_networks_of_model_files_are_found_by_their_hash():
    network = FakeNetwork(seed=44)
    other = FakeNetwork(seed=45, name="other fake")
    with pytest.raises(InputError, match=r"network fake .* which the file does not hold; give it"):
        find_network("fake", network.digest)
    with pytest.raises(InputError, match="other fake has other weights"):
        find_network("fake", network.digest, [other])
    assert find_network("fake", network.digest, [network]) is network
    assert find_network("fake", network.digest) is network


def test_kernels_check_their_settings():
    for settings, message in (
        ({"zeta": 1.5}, "zeta=1.5.*whole number"),
        ({"charged": 1}, "charged=1.*True or False"),
        ({"selection": "best"}, "selection"),
        ({"delta": -1.0}, "delta"),
    ):
        with pytest.raises(InputError, match=message):
            kqeq.NetworkKernel(FakeNetwork(), **settings).check()


def test_descriptors_travel_to_other_processes():
    descriptor = scaled(water())
    assert pickle.loads(pickle.dumps(descriptor)) == descriptor
    assert copy.deepcopy(descriptor) == descriptor


def test_central_difference_sees_the_charge():
    descriptor = scaled(water(), charged=True)

    def energy(q):
        atoms = water()
        atoms.info["total_charge"] = q
        return float(descriptor.evaluate(read_structure(atoms)).values[:, 0].sum())

    assert abs(central_difference(energy, 1e-2)) > 1e-3
