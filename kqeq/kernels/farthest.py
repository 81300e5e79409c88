"""Farthest-point sampling of environments, wherever their rows are.

Memory does not depend on the number of structures: farthest points are chosen again and again among those chosen before
and the next few hundred environments (the merging of a streaming k-centre algorithm).

Dimensions: N atoms, F descriptor features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from scipy import sparse

from kqeq.backend import Device, asarray_like, namespace, to_numpy, zeros
from kqeq.descriptors.base import Descriptor
from kqeq.descriptors.joined import evaluate_joined, joins
from kqeq.frames.structures import Structure
from kqeq.kernels.feature_map import layout_columns
from kqeq.typing import Array, FloatArray, IntArray

DUPLICATE = 1e-12
"""Environments whose normalised dot product is within this of 1 are the same."""

JOINED_BYTES = 256 * 2**20
"""Rows of structures that are evaluated together may take this much."""


def farthest_of(dots: FloatArray, n: int, start: list[int]) -> IntArray:
    """Farthest-point sampling by the dot products of all candidates, (n_candidates, n_candidates).

    Gonzalez 1985, *Theor. Comput. Sci.* 38, 293.
    """
    squares = np.diagonal(dots)
    distances = np.full(len(dots), np.inf)
    chosen = np.empty(n, dtype=np.int64)
    for number in range(n):
        index = start[number] if number < len(start) else int(np.argmax(distances))
        chosen[number] = index
        np.minimum(distances, squares[index] + squares - 2.0 * dots[index], out=distances)
    return chosen


def distinct(dots: FloatArray) -> IntArray:
    """Which rows do not equal an earlier one, by the dot products of all."""
    return np.flatnonzero(~(np.tril(dots, -1) > 1.0 - DUPLICATE).any(axis=1))


def can_choose(descriptor: Descriptor, structures: Iterable[Structure], device: Device) -> bool:
    """Whether :func:`choose_on_device` applies."""
    return not device.is_host and joins(descriptor) and not any(s.periodic for s in structures)


def choose_on_device(
    descriptor: Descriptor,
    structures: Iterable[Structure],
    species: tuple[int, ...],
    wanted: int,
    limit: int,
    device: Device,
) -> dict[int, sparse.csr_array]:
    """Representatives by element, in the common layout, on the host: the choice of the host, but for rounding.

    Parameters
    ----------
    descriptor : Descriptor
    structures : iterable of Structure
        Such that :func:`can_choose` holds.
    species : tuple of int
        All elements that occur, ascending.
    wanted : int
        Representatives of each element.
    limit : int
        Environments of an element that are collected, at most, before a choice is made among them.
    device : Device
    """
    pools = {z: _Pool(wanted, limit) for z in species}
    size = max(block.stop for block in descriptor.block_slices(species).values())
    sources: dict[tuple[int, ...], Array] = {}
    for run in _runs(structures, max(1, JOINED_BYTES // (8 * size))):
        state = evaluate_joined([descriptor], run, device)[descriptor]
        if state.species not in sources:
            sources[state.species] = asarray_like(_source(descriptor, state.species, species), device.like)
        xp, values = namespace(state.values), state.values
        beside = xp.concat([values, zeros((int(values.shape[0]), 1), values)], axis=1)
        wide = xp.take(beside, sources[state.species], axis=1)
        atoms, count = len(run[0]), len(run)
        for z, own in run[0].composition.atoms_of.items():
            index = (atoms * np.arange(count)[:, None] + own).ravel()
            pools[z].add(xp.take(wide, asarray_like(index, device.like), axis=0), len(own))
    return {z: sparse.csr_array(to_numpy(pool.chosen())) for z, pool in pools.items() if pool.count}


def _source(descriptor: Descriptor, part: tuple[int, ...], whole: tuple[int, ...]) -> IntArray:
    """For each feature of the layout of ``whole`` its place in that of ``part``; beyond the end if it is not there."""
    columns = layout_columns(descriptor, part, whole)
    size = max(block.stop for block in descriptor.block_slices(whole).values())
    source = np.full(size, len(columns), dtype=np.int64)
    source[columns] = np.arange(len(columns))
    return source


def _runs(structures: Iterable[Structure], most: int) -> Iterator[list[Structure]]:
    """Structures that follow each other and have the same atoms, up to ``most`` atoms together."""
    run: list[Structure] = []
    for structure in structures:
        if run and (
            len(run) * len(structure) >= most or not np.array_equal(run[0].numbers, structure.numbers)
        ):
            yield run
            run = []
        run.append(structure)
    if run:
        yield run


class _Pool:
    """Environments of one element: those chosen so far, and those that came after them."""

    def __init__(self, wanted: int, limit: int) -> None:
        self.wanted, self.limit = wanted, limit
        self.rows: list[Array] = []
        self.count = 0

    def add(self, rows: Array, each: int) -> None:
        """Environments (n, F), ``each`` of a structure; reduced at the structures at which the host would reduce them."""
        start, total = 0, int(rows.shape[0])
        while start < total:
            frames = max(1, (self.limit - self.count) // each + 1)
            stop = min(total, start + frames * each)
            self.rows.append(rows[start:stop, :])
            self.count += stop - start
            start = stop
            if self.count > self.limit:
                merged = self.merged()
                kept = farthest_of(_dots(merged), self.wanted, [0])
                self.rows, self.count = [_rows(merged, kept)], len(kept)

    def merged(self) -> Array:
        """All rows, (n, F)."""
        return self.rows[0] if len(self.rows) == 1 else namespace(self.rows[0]).concat(self.rows)

    def chosen(self) -> Array:
        """The representatives."""
        merged = self.merged()
        if self.count > self.wanted:
            merged = _rows(merged, farthest_of(_dots(merged), self.wanted, [0]))
        return _rows(merged, distinct(_dots(merged)))


def _rows(rows: Array, index: IntArray) -> Array:
    return namespace(rows).take(rows, asarray_like(index, rows), axis=0)


def _dots(rows: Array) -> FloatArray:
    """Dot products of all rows, on the host."""
    return to_numpy(rows @ rows.T)


__all__ = ["DUPLICATE", "can_choose", "choose_on_device", "distinct", "farthest_of"]
