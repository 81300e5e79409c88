"""Choice of representative environments: how many, which, always the same."""

import numpy as np
import pytest
from ase import Atoms
from scipy import sparse

from kqeq.errors import RepresentativesWarning
from kqeq.frames.structures import read_structure
from kqeq.kernels import representatives
from kqeq.kernels.feature_map import SOAPKernel
from kqeq.kernels.representatives import build_feature_map, choose_rows


def cloud(n=60, f=8, seed=0):
    """Normalised rows, some of them far from all others."""
    rng = np.random.default_rng(seed)
    rows = np.abs(rng.normal(size=(n, f))) + 2.0
    rows[::10] = rng.normal(size=(len(rows[::10]), f))
    return sparse.csr_array(rows / np.linalg.norm(rows, axis=1)[:, None])


def distances(rows):
    dense = rows.toarray()
    return np.linalg.norm(dense[:, None] - dense[None], axis=2)


@pytest.mark.parametrize("method", ["fps", "cur"])
@pytest.mark.parametrize("n", [1, 5, 8, 20, 59, 60, 100])
def test_as_many_distinct_rows_as_asked_for(method, n):
    """More than the rank (8) as well: powers of the dot product tell such rows apart."""
    rows = cloud()
    chosen = choose_rows(rows, n, method)
    assert len(chosen) == min(n, 60)
    assert len(set(chosen.tolist())) == len(chosen)
    assert chosen.dtype == np.int64


@pytest.mark.parametrize("method", ["fps", "cur"])
def test_the_choice_is_always_the_same(method):
    rows = cloud()
    np.testing.assert_array_equal(choose_rows(rows, 12, method), choose_rows(rows, 12, method))


def test_farthest_point_sampling_is_greedy():
    rows = cloud()
    distance = distances(rows)
    chosen = choose_rows(rows, 10, "fps").tolist()
    for k in range(1, 10):
        nearest = distance[:, chosen[:k]].min(axis=1)
        assert nearest[chosen[k]] == pytest.approx(nearest.max())


def test_cur_spans_more_than_the_first_rows():
    """Eight rows chosen by CUR span all eight dimensions well."""
    rows = cloud()
    volume = np.linalg.svd(rows[choose_rows(rows, 8, "cur")].toarray())[1].min()
    arbitrary = np.linalg.svd(rows[np.arange(1, 9)].toarray())[1].min()
    assert volume > 3 * arbitrary


def test_beyond_the_rank_the_choice_of_cur_is_continued():
    rows = cloud()
    first, more = choose_rows(rows, 8, "cur"), choose_rows(rows, 20, "cur")
    np.testing.assert_array_equal(more[:8], first)
    # each further row is the one farthest from all before it
    distance = distances(rows)
    order = more.tolist()
    nearest = distance[:, order[:-1]].min(axis=1)
    assert nearest[order[-1]] == pytest.approx(nearest.max())


@pytest.mark.parametrize("method", ["fps", "cur"])
@pytest.mark.parametrize("n", [3, 10, 29, 30, 50, 90])
def test_duplicates_are_not_taken_twice(method, n):
    rows = cloud(30)
    twice = sparse.csr_array(sparse.vstack([rows, rows, rows]))
    chosen = choose_rows(twice, n, method)
    assert len(chosen) == min(n, 30)
    assert len({int(i) % 30 for i in chosen}) == len(chosen)


@pytest.mark.parametrize("method", ["fps", "cur"])
def test_one_environment_many_times(method):
    row = sparse.csr_array(np.tile([0.6, 0.8], (5, 1)))
    np.testing.assert_array_equal(choose_rows(row, 3, method), [0])


@pytest.mark.parametrize("method", ["fps", "cur"])
def test_a_random_projection_replaces_rows_that_do_not_fit(method, monkeypatch):
    rng = np.random.default_rng(0)
    centres = np.eye(3, 3000)[[0, 1, 2] * 10] + 0.002 * rng.normal(size=(30, 3000))
    rows = sparse.csr_array(centres / np.linalg.norm(centres, axis=1)[:, None])
    monkeypatch.setattr(representatives, "DENSE_BUDGET", 1000)
    monkeypatch.setattr(representatives, "PROJECTED_FEATURES", 200)
    chosen = choose_rows(rows, 3, method)
    assert sorted(i % 3 for i in chosen.tolist()) == [0, 1, 2]
    np.testing.assert_array_equal(chosen, choose_rows(rows, 3, method))


# ------------------------------------------------------------- feature maps


@pytest.fixture(scope="module")
def structures(water_training):
    return [read_structure(a) for a in water_training]


def test_representatives_are_environments_of_the_frames(structures):
    kernel = SOAPKernel(r_cut=3.0, n_max=3, l_max=2, n_representatives=5)
    feature_map = build_feature_map(kernel, structures, (1, 8))
    assert {z: rows.shape[0] for z, rows in feature_map.representatives.items()} == {1: 5, 8: 5}
    assert feature_map.size == 10
    assert feature_map.zeta == 2.0
    for z, rows in feature_map.representatives.items():
        np.testing.assert_allclose(sparse.linalg.norm(rows, axis=1), 1.0, atol=1e-12)
        values = [kernel.descriptor().evaluate(s).values[s.numbers == z] for s in structures]
        everything = np.vstack([v for v, s in zip(values, structures, strict=True) if len(s.species) == 2])
        for row in rows.toarray():
            assert (everything @ row).max() > 1.0 - 1e-12


def test_too_few_environments_warn_with_numbers(structures):
    kernel = SOAPKernel(r_cut=3.0, n_max=3, l_max=2, n_representatives=20)
    oxygens = sum(int((s.numbers == 8).sum()) for s in structures)
    assert oxygens < 20
    text = rf"20 representatives per element were asked for the spring kernel, .* \(O {oxygens}\)"
    with pytest.warns(RepresentativesWarning, match=text):
        feature_map = build_feature_map(kernel, structures, (1, 8), role="spring")
    assert feature_map.representatives[8].shape[0] == oxygens
    assert feature_map.representatives[1].shape[0] == 20


def test_layouts_of_different_compositions_are_merged():
    """An isolated proton, a water and an oxygen atom: blocks of absent pairs are zero, not missing."""
    frames = [Atoms("H"), Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]), Atoms("O")]
    structures = [read_structure(a) for a in frames]
    kernel = SOAPKernel(r_cut=3.0, n_max=3, l_max=2, n_representatives=2)
    feature_map = build_feature_map(kernel, structures, (1, 8))
    blocks = feature_map.descriptor.block_slices((1, 8))
    hydrogen = feature_map.representatives[1].toarray()
    isolated = np.abs(hydrogen[:, blocks[1, 8]]).max(axis=1) == 0
    assert isolated.sum() == 1
    assert not hydrogen[isolated][:, blocks[8, 8]].any()
    assert np.abs(hydrogen[isolated][:, blocks[1, 1]]).max() > 0
    for atoms in frames:
        state = feature_map.descriptor.evaluate(read_structure(atoms))
        phi = feature_map.features(state, np.array(atoms.numbers))
        np.testing.assert_allclose(np.sum(phi**2, axis=1)[0], 1.0, atol=1e-8)


def test_progress_wraps_the_structures_once(structures):
    seen = []

    def progress(items):
        for item in items:
            seen.append(item)
            yield item

    kernel = SOAPKernel(r_cut=3.0, n_max=3, l_max=2, n_representatives=2)
    build_feature_map(kernel, iter(structures), (1, 8), progress=progress)
    assert len(seen) == len(structures)


def test_gradients_are_explained_better_than_by_farthest_points(water_training):
    """The variance of derivatives along displacements that is left, for the same number of representatives."""
    from dataclasses import replace

    from kqeq.frames.structures import read_structure
    from kqeq.kernels.representatives import build_feature_map
    from kqeq.kernels.settings import SOAPKernel

    structures = [read_structure(atoms) for atoms in water_training]
    species = tuple(sorted({z for s in structures for z in s.species}))
    rng = np.random.default_rng(3)
    left = {}
    for selection in ("fps", "gradients"):
        kernel = SOAPKernel(
            r_cut=4.0, n_max=4, l_max=3, sigma=0.4, zeta=2, n_representatives=10, selection=selection
        )
        feature_map = build_feature_map(kernel, structures, species)
        assert {rows.shape[0] for rows in feature_map.representatives.values()} == {10}
        residual = total = 0.0
        for structure in structures[::2]:
            shift = 1e-3 * rng.normal(size=structure.positions.shape)
            ends = [
                feature_map.descriptor.evaluate(
                    replace(structure, positions=structure.positions + sign * shift), derivatives=False
                )
                for sign in (1.0, -1.0)
            ]
            phi = [feature_map.features(end, structure.numbers) for end in ends]
            across = np.sum(ends[0].values * ends[1].values, axis=1) ** 2
            prior = 2.0 - 2.0 * across  # variance of f(+) - f(-) under the kernel
            explained = np.sum((phi[0] - phi[1]) ** 2, axis=1)
            residual += np.sum(prior - explained)
            total += np.sum(prior)
        left[selection] = residual / total
    assert 0.0 < left["gradients"] < 0.9 * left["fps"] < 0.9


def test_gradients_choose_all_there_is():
    from scipy import sparse

    from kqeq.kernels.representatives import select_for_gradients

    rng = np.random.default_rng(0)
    rows = rng.random((6, 5))
    rows /= np.linalg.norm(rows, axis=1)[:, None]
    same = sparse.csr_array(np.vstack([rows, rows]))
    changes = sparse.csr_array(rng.normal(size=(12, 5)))
    found = select_for_gradients(same, changes, 8, 2.0)
    assert len({int(i) % 6 for i in found}) == len(found) == 6
