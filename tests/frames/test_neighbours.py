"""Neighbour lists against ASE's."""

import subprocess
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.neighborlist import neighbor_list

from kqeq.errors import InputError
from kqeq.frames.neighbours import NeighbourFinder, find_pairs
from kqeq.frames.structures import Structure, read_structure


def as_set(i, j, vectors):
    return sorted(zip(i.tolist(), j.tolist(), *np.round(vectors + 0.0, 6).T.tolist(), strict=True))


def random_cell(pbc, seed=0, n=7, scale=1.0):
    rng = np.random.default_rng(seed)
    cell = scale * (4 * np.eye(3) + rng.uniform(-1, 1, (3, 3)))
    return Atoms(f"C{n}", positions=rng.uniform(-8, 12, (n, 3)), cell=cell, pbc=pbc)


@pytest.mark.parametrize(
    "pbc", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 1, 1), (1, 1, 0), (1, 0, 1), (1, 1, 1)], ids=str
)
@pytest.mark.parametrize("cutoff", [2.5, 7.0])
def test_half_list_mirrored_is_the_full_list(pbc, cutoff):
    structure = read_structure(random_cell(np.array(pbc, dtype=bool)))
    full, half = find_pairs(structure, cutoff), find_pairs(structure, cutoff, full=False)
    assert full.full
    assert not half.full
    assert 2 * len(half) == len(full)
    i, j = half.indices.T
    both = as_set(np.r_[i, j], np.r_[j, i], np.vstack([half.vectors, -half.vectors]))
    assert both == as_set(*full.indices.T, full.vectors)


@pytest.mark.parametrize(
    "pbc", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 1, 1), (1, 1, 0), (1, 0, 1), (1, 1, 1)], ids=str
)
@pytest.mark.parametrize("cutoff", [2.5, 7.0])
def test_pairs_equal_ase(pbc, cutoff):
    # atoms lie outside the cell, which is smaller than the larger cutoff
    atoms = random_cell(np.array(pbc, dtype=bool))
    pairs = find_pairs(read_structure(atoms), cutoff, shifts=True)
    i, j, vectors = neighbor_list("ijD", atoms, cutoff)
    assert len(pairs) == len(i)
    assert as_set(*pairs.indices.T, pairs.vectors) == as_set(i, j, vectors)
    positions = atoms.positions
    rebuilt = (
        positions[pairs.indices[:, 1]] - positions[pairs.indices[:, 0]] + pairs.shifts @ atoms.cell.array
    )
    np.testing.assert_allclose(rebuilt, pairs.vectors, atol=1e-12)
    assert not pairs.shifts[:, ~np.array(pbc, dtype=bool)].any()


def test_own_images_and_both_directions():
    pairs = find_pairs(read_structure(bulk("Cu")), 4.0)
    assert len(pairs) == 12 + 6  # first two shells of fcc, a = 3.61 Å
    np.testing.assert_allclose(pairs.vectors.sum(axis=0), 0, atol=1e-12)
    assert not pairs.indices.any()


@pytest.mark.parametrize("rest", [0.0, 1.0], ids=["zero row", "unused row"])
def test_open_direction_ignores_its_cell_row(rest):
    cell = np.array([[3.0, 0, 0], [0.5, 3.2, 0], [rest, 0.0, 0.0]])  # dependent with rest = 1
    structure = Structure(
        np.array([1, 1]), np.array([[0.0, 0, 0], [1.0, 1.0, 2.0]]), cell, np.array([True, True, False])
    )
    tall = Structure(structure.numbers, structure.positions, np.diag([0, 0, 40.0]) + cell, np.ones(3, bool))
    tall.cell[2] = [0, 0, 40.0]
    found, reference = find_pairs(structure, 5.0), find_pairs(tall, 5.0)
    assert len(found) > 20
    assert as_set(*found.indices.T, found.vectors) == as_set(*reference.indices.T, reference.vectors)


def test_open_systems_need_no_cell():
    atoms = molecule("C2H6")
    pairs = find_pairs(read_structure(atoms), 2.0)
    assert len(pairs) == len(neighbor_list("i", atoms, 2.0))
    assert len(find_pairs(read_structure(Atoms("He")), 5.0)) == 0


def test_many_atoms_far_apart():
    rng = np.random.default_rng(2)
    atoms = Atoms("C300", positions=rng.uniform(0, 300, (300, 3)))
    pairs = find_pairs(read_structure(atoms), 30.0)
    assert as_set(*pairs.indices.T, pairs.vectors) == as_set(*neighbor_list("ijD", atoms, 30.0))


def test_singular_cells_are_refused():
    positions = np.zeros((1, 3))
    for cell in (np.zeros((3, 3)), np.ones((3, 3)), np.array([[3.0, 0, 0], [6, 0, 0], [0, 0, 3]])):
        with pytest.raises(InputError, match="linearly dependent"):
            find_pairs(Structure(np.array([1]), positions, cell, np.ones(3, bool)), 4.0)


@pytest.mark.parametrize("cutoff", [0.0, -1.0, np.nan, np.inf])
def test_bad_cutoff_is_refused(cutoff):
    with pytest.raises(InputError, match="cutoff"):
        find_pairs(read_structure(Atoms("He")), cutoff)


def test_pairs_outlive_the_engine():
    # the arrays are views of memory that belongs to the engine
    atoms = random_cell(True)
    pairs = find_pairs(read_structure(atoms), 7.0)
    reference = as_set(*pairs.indices.T, pairs.vectors)
    for seed in range(5):
        find_pairs(read_structure(random_cell(True, seed)), 8.0)
    assert as_set(*pairs.indices.T, pairs.vectors) == reference
    assert pairs.shifts is None


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("skin", [0.0, 0.5])
def test_finder_along_a_trajectory(skin, full):
    # small steps, a jump, a changed cell, another pbc, another number of atoms: always the exact list
    rng = np.random.default_rng(1)
    finder = NeighbourFinder(4.0, skin, full=full)
    atoms = random_cell(True, n=9, scale=1.5)
    frames = []
    for step in range(12):
        atoms = atoms.copy()
        atoms.positions += rng.normal(scale=0.03, size=atoms.positions.shape)
        if step == 5:
            atoms.positions[2] += 4.0
        if step == 7:
            atoms.set_cell(atoms.cell.array * 1.03)
        if step == 8:
            atoms.pbc = (True, False, True)
        if step == 10:
            atoms = atoms[:-2]
        frames.append(read_structure(atoms))
    results = [finder.find(frame) for frame in frames]
    for frame, found in zip(frames, results, strict=True):
        exact = find_pairs(frame, 4.0)
        i, j = found.indices.T
        if full:
            assert as_set(i, j, found.vectors) == as_set(*exact.indices.T, exact.vectors)
        else:
            both = as_set(np.r_[i, j], np.r_[j, i], np.vstack([found.vectors, -found.vectors]))
            assert both == as_set(*exact.indices.T, exact.vectors)


@pytest.mark.parametrize("skin", [-0.1, np.nan])
def test_bad_skin_is_refused(skin):
    with pytest.raises(InputError, match="skin"):
        NeighbourFinder(4.0, skin)


# ------------------------------- boxes that would divide by zero inside vesin, which no test could survive


def brute_force(structure, cutoff):
    """Pairs (i, j, vector) by trying the images next to the cell, which is far longer than the cutoff."""
    found = []
    axes = [(-1, 0, 1) if periodic else (0,) for periodic in structure.pbc]
    for shift in product(*axes):
        vectors = structure.positions[None] - structure.positions[:, None] + np.array(shift) @ structure.cell
        near = np.linalg.norm(vectors, axis=2) < cutoff
        if shift == (0, 0, 0):
            np.fill_diagonal(near, False)
        for i, j in np.argwhere(near):
            found.append((i, j, vectors[i, j]))
    i, j, vectors = zip(*found, strict=True)
    return as_set(np.array(i), np.array(j), np.array(vectors))


LONG = {
    "slab": ([[3000, 0, 0], [1000, 2900, 0], [0, 0, 5]], (1, 1, 0)),
    "slab with the open direction first": ([[5, 0, 0], [0, 1500, 400], [0, 0, 1500]], (0, 1, 1)),
    "wire": ([[0, 0, 0], [9e4, 1e4, 0], [0, 0, 0]], (0, 1, 0)),
    "open": (np.zeros((3, 3)), (0, 0, 0)),
    "flat cell": ([[900, 0, 0], [300, 900, 0], [100, 100, 8]], (1, 1, 1)),
}


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("spread", ["compact", "far", "both"])
def test_pairs_in_long_boxes(name, spread):
    cell, pbc = LONG[name]
    rng = np.random.default_rng(3)
    positions = rng.uniform(0, 6, (24, 3))
    flat = np.array([0, 0, 1.0]) if name == "flat cell" else np.ones(3)
    if spread != "compact":
        positions[8:16] += np.array([6e4, -20.0, 0.5]) * flat
    if spread == "both":
        positions[16:] += np.array([-3e4, 9e4, 0.0]) * flat
    if np.any(pbc):  # inside the cell, so that the nearest images suffice
        full = np.array(cell, dtype=float) + np.diag([0.0 if p else 1.0 for p in pbc]) * (not np.all(pbc))
        fractions = positions @ np.linalg.inv(full)
        fractions[:, np.array(pbc, dtype=bool)] %= 1.0
        positions = fractions @ full
    structure = Structure(
        np.ones(24, dtype=np.int64), positions, np.array(cell, dtype=float), np.array(pbc, dtype=bool)
    )
    expected = brute_force(structure, 3.0)
    assert len(expected) > 20
    pairs = find_pairs(structure, 3.0, shifts=True)
    assert as_set(*pairs.indices.T, pairs.vectors) == expected
    assert not pairs.shifts[:, ~structure.pbc].any()
    finder = NeighbourFinder(3.0, 0.5, full=True)
    for moved in (positions, positions + 0.01, positions + 0.4 * rng.uniform(-1, 1, positions.shape)):
        later = replace(structure, positions=moved)
        found = finder.find(later)
        assert as_set(*found.indices.T, found.vectors) == brute_force(later, 3.0)


def test_no_box_kills_the_process():
    """A grid of lengths in a process of its own: each gives pairs or an InputError."""
    source = """
import itertools, numpy as np
from kqeq.errors import InputError
from kqeq.frames.neighbours import NeighbourFinder, find_pairs
from kqeq.frames.neighbours import half_pairs
from kqeq.frames.structures import Structure
rng = np.random.default_rng(0)
refused = done = 0
for lengths in itertools.product((0.6, 500.0, 3e4, 1e9), repeat=3):
    for pbc in ((0, 0, 0), (1, 0, 0), (0, 1, 1), (1, 1, 1)):
        for cutoff in (3.0,):
            points = rng.random((3, 3)) * lengths
            s = Structure(np.ones(3, dtype=np.int64), points, np.diag(lengths), np.array(pbc, dtype=bool))
            try:
                find_pairs(s, cutoff)
                NeighbourFinder(cutoff).find(s)
                if all(pbc) or not any(pbc):
                    half_pairs(points, np.diag(lengths), np.full(3, all(pbc)), cutoff)
                done += 1
            except InputError:
                refused += 1
print(done, refused)
"""
    result = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, (result.returncode, result.stderr[-500:])
    done, refused = map(int, result.stdout.split())
    assert done > 100
    assert refused > 5


def test_cells_that_are_too_thin_are_refused():
    thin = Structure(np.ones(1, dtype=np.int64), np.zeros((1, 3)), 0.01 * np.eye(3), np.ones(3, dtype=bool))
    with pytest.raises(InputError, match=r"so thin .*0\.01.* images lie within the cutoff of 6 Å"):
        find_pairs(thin, 6.0)
    flat = replace(thin, cell=np.diag([3000.0, 3000.0, 3.0]))
    with pytest.raises(InputError, match="too elongated for a neighbour list"):
        find_pairs(flat, 3.0)
