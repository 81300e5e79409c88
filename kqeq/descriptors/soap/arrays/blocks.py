"""Building blocks of SOAP in array-namespace code: tables, harmonics and padded blocks of neighbours.

Dimensions: S species, n radial functions, F features; within a chunk c centres and J neighbours of one
element each (padded).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from kqeq.backend import arange, asarray_like, namespace, place, to_numpy
from kqeq.descriptors.soap.basis import Harmonics, feature_count
from kqeq.descriptors.soap.host.adjoint import SortedPairs, Tables
from kqeq.frames.neighbours import find_pairs_on, pair_order
from kqeq.frames.structures import Structure
from kqeq.typing import Array, FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class ArrayTables:
    """Tables of the basis as arrays of one library; lists run over l.

    Attributes
    ----------
    exponents : list of (n, 1) arrays
        a[l, k].
    weights : list of (n, n) arrays
        W[l] (n, k).
    gradients : list of (3, 2l + 1, 2l − 1) arrays
        ∂_α R_l = gradients[l][α] R_{l−1}.
    pack : (F,) int array
        Where each feature lies in the flattened (l, a, b) matrices.
    pack_factors : (F,) array
        Prefactor of each feature.
    unpack : ((l_max + 1) (S n)²,) int array
        Which feature each matrix entry belongs to.
    unpack_factors : ((l_max + 1) (S n)²,) array
        Prefactors, diagonal doubled.
    """

    exponents: list[Array]
    weights: list[Array]
    gradients: list[Array]
    pack: Array
    pack_factors: Array
    unpack: Array
    unpack_factors: Array


@lru_cache(maxsize=64)
def packing(n_species: int, n_radial: int, degrees: int) -> tuple[IntArray, IntArray]:
    """Feature layout as indices: (F,) entries of the (l, a, b) matrices, and its inverse (l, a, b)."""
    width = n_species * n_radial
    pack = np.empty(feature_count(n_species, n_radial, degrees - 1), dtype=np.int64)
    unpack = np.empty((degrees, width, width), dtype=np.int64)
    start = 0
    for s in range(n_species):
        for t in range(s, n_species):
            if s == t:
                a, b = np.triu_indices(n_radial)
            else:
                a, b = (x.ravel() for x in np.indices((n_radial, n_radial)))
            a, b = a + s * n_radial, b + t * n_radial
            for degree in range(degrees):
                features = np.arange(start, start + len(a))
                pack[features] = (degree * width + a) * width + b
                unpack[degree, a, b] = features
                unpack[degree, b, a] = features
                start += len(a)
    return pack, unpack


_KEPT: dict[tuple[Any, ...], tuple[Tables, ArrayTables]] = {}
"""Tables that were copied to a device before, by settings, number of species and device."""


def array_tables(tables: Tables, n_species: int, like: Array) -> ArrayTables:
    """Tables in the library and on the device of ``like``."""
    key = (id(tables), n_species, *place(like))
    if key not in _KEPT:
        if len(_KEPT) >= 64:
            _KEPT.pop(next(iter(_KEPT)))
        # the tables themselves are kept, too: their id may not be given to others
        _KEPT[key] = (tables, _build_tables(tables, n_species, like))
    return _KEPT[key][1]


def _build_tables(tables: Tables, n_species: int, like: Array) -> ArrayTables:
    n_radial, degrees = tables.n_radial, tables.degrees
    width = n_species * n_radial
    pack, unpack = packing(n_species, n_radial, degrees)
    diagonal = np.eye(width) + 1.0
    prefactors = tables.radial.prefactors
    gradients = [asarray_like(np.zeros((3, 1, 0)), like)]
    for degree in range(1, degrees):
        gradients.append(asarray_like(_gradient_matrix(tables.angular, degree), like))
    return ArrayTables(
        [asarray_like(a[:, None], like) for a in tables.radial.exponents],
        [asarray_like(w, like) for w in tables.radial.weights],
        gradients,
        asarray_like(pack, like),
        asarray_like(prefactors[pack // width**2], like),
        asarray_like(unpack.ravel(), like),
        asarray_like((prefactors[:, None, None] * diagonal).ravel(), like),
    )


def _gradient_matrix(angular: Harmonics, degree: int) -> FloatArray:
    """∂R_l in terms of R_{l−1}, shape (3, 2l + 1, 2l − 1)."""
    here = slice(degree**2, (degree + 1) ** 2)
    matrix = np.zeros((3, 2 * degree + 1, 2 * degree - 1))
    rows = angular.gradient_rows[here] - (degree - 1) ** 2
    factors = angular.gradient_factors[here]
    for term, component in enumerate((0, 0, 1, 1, 2)):
        for m in range(2 * degree + 1):
            if factors[m, term] != 0:
                matrix[component, m, rows[m, term]] += factors[m, term]
    return matrix


def solid_harmonics(vectors: Array, tables: Tables) -> list[Array]:
    """R_lm of vectors (3, ...), one (..., 2l + 1, J) array for each l; J is the last axis of the input."""
    xp = namespace(vectors)
    x, y, z = vectors[0, ...], vectors[1, ...], vectors[2, ...]
    r2 = x * x + y * y + z * z
    recursion = tables.angular.recursion
    result: list[list[Array]] = [[xp.zeros_like(x) + float(recursion[0, 0])]]
    for degree in range(1, tables.degrees):
        centre = degree * degree + degree
        one = result[degree - 1]
        two = result[degree - 2] if degree > 1 else []
        rows: list[Array] = []
        u = float(recursion[centre + degree, 0])
        cosine1 = one[2 * degree - 2]
        if degree == 1:
            first, last = u * y * cosine1, u * x * cosine1
        else:
            first = u * (x * one[0] + y * cosine1)
            last = u * (x * cosine1 - y * one[0])
        rows.append(first)
        for order in range(-degree + 1, degree):
            u, v = (float(c) for c in recursion[centre + order])
            row = u * z * one[degree - 1 + order]
            if abs(order) <= degree - 2:
                row = row - v * r2 * two[degree - 2 + order]
            rows.append(row)
        rows.append(last)
        result.append(rows)
    return [xp.stack(rows, axis=-2) for rows in result]


@dataclass(frozen=True, eq=False)
class ArrayPairs:
    """Pairs ordered by centre and by element of the neighbour, on the device.

    Attributes
    ----------
    offsets : (N S + 1,) NumPy array
        First pair of each (centre, species index), on the host, where the sizes of chunks are decided.
    start : (N S + 1,) int array
        The same on the device.
    i, j : (P,) int arrays
        Centre and neighbour.
    vectors : (3, P) array
        r_ij, Å.
    switch : (2, P) array
        f and f'/r of the switching function.
    """

    offsets: IntArray
    start: Array
    i: Array
    j: Array
    vectors: Array
    switch: Array

    @classmethod
    def build(cls, pairs: SortedPairs, like: Array) -> ArrayPairs:
        """Copy a list to the device of ``like``."""
        i, j = (asarray_like(index, like) for index in pairs.indices)
        vectors, switch = asarray_like(pairs.vectors, like), asarray_like(pairs.switch, like)
        return cls(pairs.start, asarray_like(pairs.start, like), i, j, vectors, switch)

    @classmethod
    def find(
        cls, structure: Structure, slots: IntArray, n_species: int, tables: Tables, like: Array
    ) -> ArrayPairs:
        """Search on the device of ``like``; the host learns how many neighbours of which element each atom has."""
        i, j, vectors = find_pairs_on(structure.positions, structure.cell, structure.pbc, tables.cutoff, like)
        xp = namespace(vectors)
        n_atoms, there = len(slots), asarray_like(slots, like)
        i, j = xp.concat([i, j]), xp.concat([j, i])
        vectors = xp.concat([vectors, -vectors], axis=1)
        group = i * n_species + xp.take(there, j)
        order = pair_order(group * n_atoms + j, vectors)
        group, vectors = xp.take(group, order), xp.take(vectors, order, axis=1)
        start = xp.searchsorted(group, arange(0, n_atoms * n_species + 1, like))
        r = xp.sqrt(xp.sum(vectors * vectors, axis=0))
        factor, slope = switching(r, tables.inner, tables.cutoff)
        if tables.weighting is not None:
            weight, weight_slope = tables.weighting(r)
            factor, slope = factor * weight, slope * weight + factor * weight_slope / r
        switch = xp.stack([factor, slope])
        return cls(to_numpy(start), start, xp.take(i, order), xp.take(j, order), vectors, switch)

    def __len__(self) -> int:
        return int(self.offsets[-1])


def switching(r: Array, inner: float, cutoff: float) -> tuple[Array, Array]:
    """The factor f on a neighbour at distance r, and f'/r, (P,) each: a quintic that falls from 1 to 0."""
    xp = namespace(r)
    width = cutoff - inner
    if width <= 0.0:
        return xp.ones_like(r), xp.zeros_like(r)
    t = xp.clip((r - inner) / width, 0.0, 1.0)
    value = 1.0 - t * t * t * (10.0 - 15.0 * t + 6.0 * t * t)
    return value, -30.0 * t * t * (1.0 - t) * (1.0 - t) / (width * r)


@dataclass(frozen=True, eq=False)
class Block:
    """Neighbours of one element around the centres of a chunk, padded to (c, J) places.

    Attributes
    ----------
    slot : int
        Species index.
    begin, count : (c,) int arrays
        First pair of each centre, and how many it has.
    number : int
        Pairs in the block.
    vectors : (3, c, J) array
        r_ij; 0 for padding.
    switch, slope : (c, J) arrays
        f and f'/r; 0 for padding.
    """

    slot: int
    begin: Array
    count: Array
    number: int
    vectors: Array
    switch: Array
    slope: Array

    def members(self) -> tuple[Array, Array, Array]:
        """Places that hold pairs: their centre within the chunk, flat place and pair, (p,) int arrays each."""
        xp = namespace(self.begin)
        centre, pairs = members(self.begin, self.count, self.number)
        within = pairs - xp.take(self.begin, centre)
        return centre, centre * int(self.switch.shape[1]) + within, pairs


def members(begin: Array, count: Array, number: int) -> tuple[Array, Array]:
    """Centre (its place among those given) and number of each of the ``number`` pairs of centres, (p,) int arrays each.

    Parameters
    ----------
    begin, count : (c,) int arrays
        First pair of each centre, and how many it has.
    number : int
    """
    xp = namespace(begin)
    item = arange(0, number, begin)
    end = xp.cumulative_sum(count)
    centre = xp.searchsorted(end, item, side="right")
    return centre, xp.take(begin - end + count, centre) + item


def chunks(
    centres: IntArray,
    start: IntArray,
    n_species: int,
    tables: Tables,
    memory: int,
    columns: int = 0,
    *,
    padded: bool = True,
) -> Iterator[slice]:
    """Consecutive slices of ``centres`` whose temporary arrays fit into ``memory`` bytes.

    Parameters
    ----------
    centres : (n,) int array
    start : (N S + 1,) int array
        First pair of each (centre, species index).
    n_species : int
    tables : Tables
    memory : int
    columns : int
        Extra numbers that each padded neighbour needs.
    padded : bool
        Whether there are arrays of padded neighbours at all.
    """
    counts = np.diff(start).reshape(-1, n_species)[centres].max(axis=1, initial=0)
    width = n_species * tables.n_radial
    fixed = 8 * tables.degrees * (4 * width**2 + 4 * tables.degrees * width)
    # R, its gradient and products with it, exponentials and their products, for one padded neighbour
    each = 8 * (8 * tables.degrees**2 + 6 * tables.n_radial * tables.degrees + 24 + columns)
    each = each if padded else 0
    first = 0
    while first < len(centres):
        last, widest = first, 0
        while last < len(centres):
            grown = max(widest, int(counts[last]))
            if last > first and (last + 1 - first) * (fixed + each * grown) > memory:
                break
            last, widest = last + 1, grown
        yield slice(first, last)
        first = last


def blocks(centres: IntArray, own: Array, pairs: ArrayPairs, n_species: int) -> Iterator[Block]:
    """The neighbours of centres, element by element.

    Parameters
    ----------
    centres, own : (c,) int arrays
        The same numbers on the host and on the device.
    pairs : ArrayPairs
    n_species : int
    """
    xp = namespace(pairs.vectors)
    for slot in range(n_species):
        count = pairs.offsets[centres * n_species + slot + 1] - pairs.offsets[centres * n_species + slot]
        widest = int(count.max(initial=0))
        if widest == 0:
            continue
        begin = xp.take(pairs.start, own * n_species + slot)
        counts = xp.take(pairs.start, own * n_species + (slot + 1)) - begin
        column = arange(0, widest, begin)[None, :]
        mask = column < counts[:, None]
        index = xp.reshape(xp.where(mask, begin[:, None] + column, xp.zeros_like(begin)[:, None]), (-1,))
        shape = (len(centres), widest)
        real = xp.astype(mask, xp.float64)
        yield Block(
            slot,
            begin,
            counts,
            int(count.sum()),
            xp.reshape(xp.take(pairs.vectors, index, axis=1), (3, *shape)) * real,
            xp.reshape(xp.take(pairs.switch[0, :], index), shape) * real,
            xp.reshape(xp.take(pairs.switch[1, :], index), shape) * real,
        )


__all__ = [
    "ArrayPairs",
    "ArrayTables",
    "Block",
    "array_tables",
    "blocks",
    "chunks",
    "members",
    "packing",
    "solid_harmonics",
]
