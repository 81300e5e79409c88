"""Choice of frames to label: against conditioning by hand, and what a batch must and must not hold."""

import numpy as np
import pytest
from ase import Atoms

import kqeq
from conftest import small_kernel
from kqeq import KQEq
from kqeq.errors import InputError, ModelNotFittedError, UnsupportedError
from kqeq.fitting.rows.blocks import BLOCKS
from kqeq.frames.structures import read_structure
from kqeq.uncertainty.posterior import Uncertain

pytestmark = pytest.mark.filterwarnings("ignore::kqeq.errors.RepresentativesWarning")


def bare(atoms):
    copy = Atoms(atoms.numbers, atoms.positions)
    copy.info["total_charge"] = atoms.info.get("total_charge", 0.0)
    return copy


@pytest.fixture(scope="module")
def pool(water_systems):
    names = ("water1", "water2", "hydronium", "hydroxide")
    return [bare(water_systems[name][i]) for name in names for i in (1, 2, 4, 5)]


def full_covariance(model, pool, kind):
    """Posterior covariance of all values of the pool, with a joint kernel matrix of all atoms."""
    posterior = model.posterior_
    structures = [read_structure(a) for a in pool]
    numbers = np.concatenate([s.numbers for s in structures])
    ends = np.cumsum([0, *map(len, structures)])
    species = tuple(np.unique(numbers).tolist())
    views = [Uncertain(posterior, s) for s in structures]
    rows = [BLOCKS[kind](v.line, True)[1] for v in views]
    stacked = np.vstack(rows)
    total = stacked @ np.linalg.solve(posterior.lower @ posterior.lower.T, stacked.T)
    for n, (part, _) in enumerate(views[0].linear_map(kind).sites):
        descriptor = part.feature_map.descriptor
        blocks = descriptor.block_slices(species)
        values = np.zeros((len(numbers), max(b.stop for b in blocks.values())))
        weights = np.zeros((len(stacked), len(numbers)))
        start = 0
        for s, v, a, b in zip(structures, views, ends[:-1], ends[1:], strict=True):
            for pair, own in descriptor.block_slices(s.species).items():
                values[a:b, blocks[pair]] = descriptor.evaluate(s).values[:, own]
            m = v.linear_map(kind).sites[n][1]
            weights[start : start + len(m), a:b] = m
            start += len(m)
        kernel = (numbers[:, None] == numbers) * (values @ values.T) ** part.feature_map.zeta
        own = stacked[:, part.columns]
        total = total + part.delta**2 * weights @ kernel @ weights.T - own @ own.T
    return total, np.cumsum([0, *map(len, rows)])


@pytest.mark.parametrize("which", ["water_model", "dipole_model", "short_range_model"])
def test_equals_greedy_choice_with_the_whole_covariance(which, request, pool):
    model = request.getfixturevalue(which)
    kind = "dipole" if which == "dipole_model" else "energy"
    covariance, ends = full_covariance(model, pool, kind)
    sigma = model.posterior_.noise[kind]
    noise = [sigma * (np.sqrt(len(a)) if kind == "energy" else 1.0) for a in pool]
    expected = []
    for _ in range(6):
        gains = []
        for i in range(len(pool)):
            own = slice(ends[i], ends[i + 1])
            v = covariance[own, own] / noise[i] ** 2
            gains.append(-1.0 if i in expected else np.linalg.slogdet(np.eye(len(v)) + v)[1])
        best = int(np.argmax(gains))
        expected.append(best)
        own = slice(ends[best], ends[best + 1])
        block = covariance[own, own] + noise[best] ** 2 * np.eye(own.stop - own.start)
        covariance = covariance - covariance[:, own] @ np.linalg.solve(block, covariance[own, :])
    assert kqeq.select(model, pool, 6) == expected
    assert len(set(expected)) == 6


def test_does_not_ask_twice(water_model, pool):
    """Copies of the most valuable frame: one of them is enough, although each alone is worth most."""
    first = kqeq.select(water_model, pool, 1)[0]
    crowd = [pool[first]] * 4 + pool
    chosen = kqeq.select(water_model, crowd, 4)
    copies = {0, 1, 2, 3, 4 + first}
    assert chosen[0] in copies
    assert len(copies & set(chosen)) == 1


def test_prefers_what_was_not_seen(water_systems):
    """A model of neutral molecules picks the ions first, and the novel ones among them before known geometries."""
    train = [bare(a) for a in water_systems["water1"][:6]]
    for copy, atoms in zip(train, water_systems["water1"][:6], strict=True):
        copy.info["energy"] = atoms.get_potential_energy()
    model = KQEq(small_kernel(3.5), small_kernel(4.0, zeta=4)).fit(train)
    pool = [bare(a) for a in water_systems["water1"][:6]] + [bare(a) for a in water_systems["water2"][:3]]
    assert set(kqeq.select(model, pool, 2)) <= {6, 7, 8}


def test_labels_of_other_quantities(water_model, pool):
    for quantity in ("energy", "dipole", "charges"):
        assert len(set(kqeq.select(water_model, pool, 3, quantity=quantity))) == 3


def test_bad_requests(water_model, short_range_model, pool, tmp_path):
    for n in (0, len(pool) + 1, 1.5):
        with pytest.raises(InputError, match="size of the pool"):
            kqeq.select(water_model, pool, n)
    with pytest.raises(InputError, match="no frames"):
        kqeq.select(water_model, [], 1)
    with pytest.raises(InputError, match="this model determines energy"):
        kqeq.select(short_range_model, pool, 1, quantity="dipole")
    with pytest.raises(InputError, match="contains C"):
        kqeq.select(water_model, [Atoms("CO", [[0, 0, 0], [0, 0, 1.1]])], 1)
    with pytest.raises(ModelNotFittedError):
        kqeq.select(KQEq(), pool, 1)
    water_model.save(tmp_path / "m.kqeq")
    with pytest.raises(UnsupportedError, match="posterior=True"):
        kqeq.select(kqeq.load(tmp_path / "m.kqeq"), pool, 1)
