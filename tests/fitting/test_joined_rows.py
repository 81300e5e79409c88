"""Frames that are joined into one array problem on a device: the rows of one frame at a time, whatever joins it."""

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from ase import Atoms

import kqeq
from conftest import NOISE
from device_checks import ON_CARD, STRICT, assert_same, count_operations, on_device, stand_in_only
from kqeq.backend import CPU, all_positive_definite, limit_memory, to_numpy
from kqeq.charges.joined import JoinedMolecules
from kqeq.charges.joined import joins as charges_join
from kqeq.descriptors.joined import evaluate_joined
from kqeq.errors import NotPositiveDefiniteError
from kqeq.fitting.problem import FitProblem
from kqeq.fitting.rows import joined
from kqeq.fitting.rows.features import TrainingFrame
from kqeq.fitting.rows.joined import JoiningStore, joining_keys
from kqeq.frames.labels import Labels
from kqeq.frames.structures import read_structure
from kqeq.kernels.feature_map import evaluate_environments
from kqeq.kernels.representatives import build_feature_map
from label_rows import random_u
from systems import FIELD, water_cell

EVERY = {"energy": 0.1, "forces": 1.0, "dipole": 0.1, "charges": 0.2, "polarizability": 0.3, "stress": 0.01}


def labelled(atoms, index, kinds, charge, rng):
    """A frame with labels of some kinds, in a field, with an external potential, and a weight of its own."""
    structure = read_structure(
        Atoms(atoms.numbers, atoms.positions + rng.normal(scale=2.0, size=3)),
        total_charge=charge,
        external_field=np.array(FIELD) * rng.normal() if index % 3 else np.zeros(3),
    )
    n = len(structure)
    if index % 4 == 1:
        structure = replace(structure, external_potential=rng.normal(scale=0.2, size=n))
    alpha = rng.normal(size=(3, 3))
    values = {
        "energy": float(rng.normal()),
        "forces": rng.normal(size=(n, 3)),
        "dipole": rng.normal(size=3),
        "charges": rng.normal(size=n),
        "polarizability": alpha + alpha.T,
    }
    weight = 0.0 if index == 5 else float(rng.uniform(0.5, 2.0))
    return TrainingFrame(structure, Labels(**{kind: values[kind] for kind in kinds}, weight=weight), index)


@pytest.fixture(scope="module")
def frames(water_systems):
    """Four compositions, three charges, and labels of different kinds, in no order."""
    rng = np.random.default_rng(7)
    systems = [("water2", 0), ("water1", 0), ("hydronium", 1), ("hydroxide", -1)]
    kinds = [
        ("energy", "forces", "dipole"),
        ("energy", "forces", "dipole", "charges"),
        ("energy",),
        ("dipole", "charges"),
    ]
    found = []
    for number in range(24):
        system, charge = systems[number % 4]
        which = kinds[0] if number < 12 else kinds[number // 4 - 2]
        found.append(labelled(water_systems[system][number // 4], number, which, charge, rng))
    rng.shuffle(found)
    return found


def parameters_of(kernel, water_training, charges=None, **options):
    """Every kind of parameter: two kernels of one quantity, one of them merged, and offsets."""
    settings = {
        "electronegativity": [kernel(3.0, n_representatives=5, zeta=2, smooth="switch"), kernel(3.5)],
        "short_range": [
            kernel(3.5, n_representatives=4, zeta=4),
            kernel(3.0, zeta=2.5, neighbours="periods"),
        ],
        "charges": charges or kqeq.QEq(hardness={"O": 11.0}),
        "noise": NOISE,
        "max_iterations": 1,
        **options,
    }
    with pytest.warns(kqeq.errors.KQEqWarning):  # one iteration does not converge
        return kqeq.KQEq(**settings).fit(water_training[::3]).posterior_.parameters


@pytest.fixture(scope="module")
def parameters(kernel, water_training):
    return parameters_of(kernel, water_training)


@pytest.fixture(scope="module")
def learned(kernel, water_training):
    return parameters_of(kernel, water_training, kqeq.QEq(hardness="learn", width="learn"))


def rows_of(problem, u, jacobian):
    """Residual and Jacobian by number of the frame, on the host."""
    frames = [f for chunk in problem.chunks for i, f in enumerate(chunk.frames) if i not in chunk.skip]
    found = {}
    for frame, (residual, rows) in zip(frames, problem.rows(u, jacobian=jacobian), strict=True):
        found[frame.index] = to_numpy(residual), None if rows is None else to_numpy(rows)
    return found


def runs_of(problem):
    """How many frames were worked on together, chunk by chunk."""
    found = []
    for chunk in problem.chunks:
        store = JoiningStore(chunk.frames, chunk.parameters, 0, device=chunk.device)
        found += [len(run) for run in store.runs if store.keys[run.start] is not None]
    return found


def assert_equal_rows(result, expected, relative=1e-9):
    assert result.keys() == expected.keys()
    assert max(np.abs(residual).max() for residual, _ in expected.values()) > 1.0
    largest = max((np.abs(rows).max() for _, rows in expected.values() if rows is not None), default=0.0)
    assert largest > 0.1 or all(rows is None for _, rows in expected.values())
    for index, (residual, rows) in expected.items():
        own, own_rows = result[index]
        np.testing.assert_allclose(own, residual, rtol=0, atol=relative * max(1.0, np.abs(residual).max()))
        assert (rows is None) == (own_rows is None)
        if rows is not None:
            assert own_rows.shape == rows.shape
            np.testing.assert_allclose(own_rows, rows, rtol=0, atol=relative * largest)


@pytest.mark.parametrize("jacobian", ["none", "linear", "full"])
def test_rows_are_those_of_one_frame_at_a_time(jacobian, frames, parameters):
    u = random_u(parameters)
    problems = [FitProblem(frames, parameters, EVERY, linear=False, device=own) for own in (CPU, STRICT)]
    expected, result = (rows_of(problem, u, jacobian) for problem in problems)
    assert_equal_rows(result, expected)
    runs = runs_of(problems[1])
    assert sum(runs) == len(frames)  # none was left to the other way
    assert max(runs) == 3 and len(runs) == 16
    blocks = list(problems[1].blocks(u, jacobian=jacobian))
    assert len(blocks) == len(runs)
    whole = np.concatenate([to_numpy(residual) for residual, _ in blocks])
    assert_same(on_device(whole), np.concatenate([own for own, _ in result.values()]))


def test_learned_element_parameters(frames, learned, water_systems):
    """With hardness and width of the elements among the parameters, and polarizabilities among the labels."""
    rng = np.random.default_rng(3)
    kinds = ("energy", "forces", "dipole", "charges", "polarizability")
    more = [labelled(water_systems["water2"][i], 100 + i, kinds, 0, rng) for i in range(3)]
    u = random_u(learned)
    problems = [FitProblem([*frames, *more], learned, EVERY, linear=False, device=d) for d in (CPU, STRICT)]
    assert sum(runs_of(problems[1])) == len(frames) + 3
    expected, result = (rows_of(problem, u, "full") for problem in problems)
    assert_equal_rows(result, expected)
    own = learned.site_columns
    assert all(np.abs(expected[100 + i][1][:, own]).max() > 0.01 for i in range(3))


def test_a_model_without_charges(frames, kernel, water_training):
    parameters = parameters_of(kernel, [f for f in water_training if "charge" not in f.info], charges=None)
    parameters = replace(parameters, charges=None, electronegativity=None, size=parameters.short_range.size)
    plain = [replace(f, labels=replace(f.labels, dipole=None, charges=None)) for f in frames]
    plain = [f for f in plain if f.labels.kinds]
    u = random_u(parameters)
    for jacobian in ("none", "full"):
        problems = [FitProblem(plain, parameters, EVERY, linear=True, device=own) for own in (CPU, STRICT)]
        assert_equal_rows(*(rows_of(p, u, jacobian) for p in reversed(problems)))


def test_charges_alone(frames, parameters):
    """Parameters of the electronegativities alone, and labels that know nothing else."""
    own = parameters.without_short_range()
    some = [f for f in frames if f.labels.dipole is not None]
    some = [replace(f, labels=replace(f.labels, energy=None, forces=None)) for f in some]
    u = random_u(own)
    problems = [FitProblem(some, own, EVERY, linear=True, device=device) for device in (CPU, STRICT)]
    assert_equal_rows(*(rows_of(problem, u, "full") for problem in reversed(problems)))


def test_frames_do_not_see_each_other(frames, parameters):
    """Others beside a frame, be they close or far away, change its rows by rounding at most."""
    u = random_u(parameters)
    chosen = [f for f in frames if len(f.structure) == 6 and f.labels.kinds == frames[0].labels.kinds]
    chosen = chosen or [f for f in frames if len(f.structure) == 6][:3]
    one = chosen[0]
    alone = rows_of(FitProblem([one], parameters, EVERY, linear=False, device=STRICT), u, "full")
    rng = np.random.default_rng(0)
    others = []
    for number in range(3):
        # the same place, nearly the same geometry
        moved = one.structure.positions + rng.normal(scale=0.02, size=one.structure.positions.shape)
        other = replace(one.structure, positions=moved, external_field=rng.normal(size=3), total_charge=2.0)
        others.append(TrainingFrame(other, one.labels, 1000 + number))
    problem = FitProblem([*others, one], parameters, EVERY, linear=False, device=STRICT)
    assert runs_of(problem) == [4]
    beside = rows_of(problem, u, "full")
    for own, other in zip(alone[one.index], beside[one.index], strict=True):
        np.testing.assert_allclose(other, own, rtol=0, atol=1e-12 * np.abs(own).max())
    assert np.abs(beside[1000][0] - beside[one.index][0]).max() > 0.1


def test_single_atoms(parameters):
    """Without a pair, and with a charge that has nowhere to go."""
    rng = np.random.default_rng(2)
    kinds = ("energy", "forces", "dipole")
    some = [labelled(Atoms("O", rng.normal(size=(1, 3))), i, kinds, 0, rng) for i in range(3)]
    u = random_u(parameters)
    problems = [FitProblem(some, parameters, EVERY, linear=False, device=own) for own in (CPU, STRICT)]
    assert runs_of(problems[1]) == [3]
    assert_equal_rows(*(rows_of(problem, u, "full") for problem in reversed(problems)))


def test_left_out_frames(frames, parameters):
    u = random_u(parameters)
    gone = {f.index for f in frames[::5]} | {f.index for f in frames if len(f.structure) == 2}
    problems = [
        FitProblem(frames, parameters, EVERY, linear=False, device=own).without(gone) for own in (CPU, STRICT)
    ]
    expected, result = (rows_of(problem, u, "full") for problem in problems)
    assert len(result) == len(frames) - len(gone)
    assert_equal_rows(result, expected)


@pytest.mark.parametrize("limits", [{"MOST_ATOMS": 12}, {"MOST_BYTES": 40_000, "LARGEST": 40_000}])
def test_limits(limits, frames, parameters):
    u = random_u(parameters)
    expected = rows_of(FitProblem(frames, parameters, EVERY, linear=False), u, "full")
    with patch.multiple(joined, **limits), limit_memory(100_000):
        # nothing is kept either
        problem = FitProblem(frames, parameters, EVERY, linear=False, device=STRICT, budget=0)
        runs = runs_of(problem)
        assert len(runs) > 10 or sum(runs) < len(frames)
        assert_equal_rows(rows_of(problem, u, "full"), expected)


def test_what_is_not_joined(frames, parameters, learned, kernel, water_training):
    """Goes frame by frame, beside others that are joined."""
    open_frame = next(f for f in frames if f.labels.forces is not None)
    structure = open_frame.structure
    cell = read_structure(water_cell())
    periodic = TrainingFrame(cell, Labels(energy=1.0, forces=np.ones((len(cell), 3)), stress=np.eye(3)), 50)
    born = replace(
        open_frame, labels=replace(open_frame.labels, born_charges=np.ones((len(structure), 3, 3))), index=51
    )
    keys = joining_keys([open_frame, periodic, born], parameters, STRICT)
    assert keys[0] is not None and keys[1:] == [None, None]
    assert joining_keys([open_frame], parameters, CPU) == [None]
    with patch.object(joined, "LARGEST", 1000):
        assert joining_keys([open_frame], parameters, STRICT) == [None]
    assert charges_join(None, structure) and charges_join(kqeq.QEq(), structure)
    assert charges_join(kqeq.QEq(hardness="learn"), structure)
    for model in (
        kqeq.ACKS2(),
        kqeq.AtomicDipoles(kqeq.QEq()),
        kqeq.QEq(fragments=True),
        kqeq.QEq(solver="iterative"),
        kqeq.QEq(hardness="kernel"),
    ):
        assert not charges_join(model, structure)
        assert joining_keys([open_frame], replace(parameters, charges=model), STRICT) == [None]
    assert not charges_join(kqeq.QEq(), cell)
    u = random_u(parameters)
    mixed = [*frames, periodic, born]
    problems = [
        FitProblem(mixed, parameters, EVERY | {"born_charges": 0.1}, linear=False, device=d)
        for d in (CPU, STRICT)
    ]
    assert sum(runs_of(problems[1])) == len(frames)
    assert_equal_rows(*(rows_of(problem, u, "full") for problem in reversed(problems)))


@stand_in_only
def test_operations_do_not_grow_with_frames(kernel, water_systems):
    """Hundreds for all frames that are joined, not thousands for each."""
    counts = {}
    for number in (2, 8):
        rng = np.random.default_rng(1)
        kinds = ("energy", "forces", "dipole")
        some = [labelled(water_systems["water2"][i], 10 + i, kinds, 0, rng) for i in range(number)]
        structures = [frame.structure for frame in some]
        maps = [build_feature_map(kernel(r, n_representatives=4), structures, (1, 8)) for r in (3.0, 3.5)]
        parameters = kqeq.fitting.parameters.Parameters.build(
            (1, 8),
            charges=kqeq.QEq(),
            electronegativity_kernels=[(maps[0], 2.0)],
            electronegativity_mean={1: 4.5, 8: 8.7},
            electronegativity_spread=5.0,
            short_range_kernels=[(maps[1], 1.0)],
            short_range_mean={1: 0.0, 8: 0.0},
            short_range_spread=10.0,
        )
        problem = FitProblem(some, parameters, EVERY, linear=False, device=STRICT)
        u = random_u(parameters)
        list(problem.blocks(u, jacobian="full"))
        for jacobian in ("linear", "full"):
            with count_operations() as counted:
                assert len(list(problem.blocks(u, jacobian=jacobian))) == 1
            counts[number, jacobian] = sum(counted.values())
        problem.close()
    assert counts[2, "linear"] == counts[8, "linear"] < 80
    assert counts[2, "full"] == counts[8, "full"] < 120


# ------------------------------------------------------------------ pieces


@pytest.mark.parametrize("neighbours", ["elements", "periods"])
def test_features_of_every_atom(neighbours, kernel, water_systems):
    structures = [read_structure(water_systems["water2"][i]) for i in range(4)]
    feature_map = build_feature_map(kernel(3.5, zeta=2, neighbours=neighbours), structures, (1, 8))
    numbers = structures[0].numbers
    with limit_memory(200_000):
        state = evaluate_joined([feature_map.descriptor], structures, STRICT)[feature_map.descriptor]
        every = feature_map.joined(state, numbers, "atoms")
        sums = feature_map.joined(state, numbers, "sums")
    for number, structure in enumerate(structures):
        states, _ = evaluate_environments([feature_map], structure)
        own = states[feature_map.descriptor]
        values = feature_map.features(own, numbers)
        jacobian = feature_map.jacobian(own, numbers)
        for one, other, (columns, atoms, block) in zip(every, sums, jacobian.blocks, strict=True):
            assert one.columns == other.columns == columns
            np.testing.assert_array_equal(one.atoms, atoms)
            assert_same(one.values[number, ...], values[atoms][:, columns])
            assert_same(one.positions[number, ...], block, relative=1e-10)
            assert_same(other.positions[number, ...], block.sum(axis=0), relative=1e-10)


def test_the_choice_of_representatives(kernel, water_systems):
    """Compositions one after the other, and more environments than are kept at a time."""
    structures = [read_structure(a) for own in water_systems.values() for a in own[:30]]
    chosen = kernel(3.0, n_representatives=12)
    with patch.multiple(kqeq.kernels.representatives, SMALLEST_POOL=20):
        expected = build_feature_map(chosen, structures, (1, 8))
        result = build_feature_map(chosen, structures, (1, 8), device=STRICT)
        with patch.object(kqeq.kernels.farthest, "JOINED_BYTES", 1):
            again = build_feature_map(chosen, structures, (1, 8), device=STRICT)
    for z, rows in expected.representatives.items():
        assert rows.shape[0] == 12
        for other in (result, again):
            difference = np.abs((other.representatives[z] - rows).toarray())
            assert difference.max() < 1e-12 < np.abs(rows.toarray()).max()


def test_positive_definite_stacks():
    good = np.eye(3) + 0.1
    bad = np.diag([1.0, -1.0, 1.0])
    for put in (np.asarray, on_device):
        assert all_positive_definite(put(np.stack([good, good])))
        assert not all_positive_definite(put(np.stack([good, bad])))
        if put is np.asarray or ON_CARD:
            assert not all_positive_definite(put(np.stack([good, np.nan * good])))


def test_charges_of_many_molecules(water_systems):
    """States of the stack are those of each molecule for itself."""
    rng = np.random.default_rng(0)
    model = kqeq.QEq()
    structures = [
        read_structure(Atoms(a.numbers, a.positions), total_charge=q, external_field=rng.normal(size=3))
        for q, a in enumerate(water_systems["water2"][:3])
    ]
    chi = rng.normal(size=(3, 6))
    system = JoinedMolecules.build(structures, STRICT).bind(model.site_parameters(structures[0].numbers))
    state = system.solve(on_device(chi))
    for i, structure in enumerate(structures):
        one = model.bind(structure)
        alone = one.solve(chi[i], structure.external_field, structure.total_charge)
        assert float(to_numpy(state.energy)[i]) == pytest.approx(alone.energy, rel=1e-12)
        assert_same(state.charges[i, :], alone.charges)
        assert_same(state.dipole[i, :], alone.dipole)
        assert_same(state.gradient[i, :], alone.gradient().ravel(), relative=1e-10)
        assert_same(system.polarizability()[i, ...], one.polarizability())
    sites = model.site_parameters(structures[0].numbers)
    with pytest.raises(NotPositiveDefiniteError, match=r"QEq matrix of 6 atoms.*raise the hardness"):
        system.molecules.bind(replace(sites, hardness=sites.hardness - 40.0))
