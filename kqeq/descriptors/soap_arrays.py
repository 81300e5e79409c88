"""SOAP and its derivatives in array-namespace code: the same algorithm for NumPy, CuPy and others.

Works on chunks of centres whose neighbours are padded to a rectangle, element by element, so that all
contractions are batched matrix products; temporary arrays stay within a given amount of memory.  Only what
grows linearly with atoms and pairs is kept: coefficients, rows and pair vectors.  The compiled kernels
(``soap_adjoint``) are several times faster on a CPU; this is for GPUs, and an independent check.

Dimensions: N atoms, P pairs, S species, n radial functions, L = (l_max + 1)² harmonics, F features, M
directions; within a chunk c centres and J neighbours of one element each (padded).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from kqeq.backend import asarray_like, namespace, pair_matrix
from kqeq.descriptors.base import FeatureGradients, PositionGradient, SiteJacobian
from kqeq.descriptors.soap_adjoint import SortedPairs, Tables, sort_pairs
from kqeq.descriptors.soap_basis import Harmonics, feature_count
from kqeq.errors import InputError
from kqeq.neighbours import Pairs
from kqeq.structures import Structure
from kqeq.typing import Array, FloatArray, IntArray

MEMORY = 256 * 2**20
"""Default bytes for temporary arrays."""


@dataclass(frozen=True, eq=False)
class ArrayTables:
    """Tables of the basis as arrays of one library; lists run over l.

    Attributes
    ----------
    exponents : list of (n, 1) arrays
        a[l, k].
    weights : list of (n, n) arrays
        W[l] (n, k).
    gradients : list of (3 (2l+1), 2l−1) arrays
        ∂R_l = gradients[l] R_{l−1}, components slowest.
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


def array_tables(tables: Tables, n_species: int, like: Array) -> ArrayTables:
    """Tables in the library and on the device of ``like``."""
    n_radial, degrees = tables.n_radial, tables.degrees
    width = n_species * n_radial
    pack, unpack = packing(n_species, n_radial, degrees)
    diagonal = np.eye(width) + 1.0
    prefactors = tables.radial.prefactors
    gradients = [asarray_like(np.zeros((3, 1)), like)]
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
    """∂R_l in terms of R_{l−1}, shape (3 (2l+1), 2l−1)."""
    here = slice(degree**2, (degree + 1) ** 2)
    matrix = np.zeros((3, 2 * degree + 1, 2 * degree - 1))
    rows = angular.gradient_rows[here] - (degree - 1) ** 2
    factors = angular.gradient_factors[here]
    for term, component in enumerate((0, 0, 1, 1, 2)):
        for m in range(2 * degree + 1):
            if factors[m, term] != 0:
                matrix[component, m, rows[m, term]] += factors[m, term]
    return matrix.reshape(3 * (2 * degree + 1), 2 * degree - 1)


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
class Block:
    """Neighbours of one element around the centres of a chunk, padded.

    Attributes
    ----------
    slot : int
        Species index.
    pairs : (c J,) int array
        Pair of each place; 0 for padding.
    vectors : (3, c, J) array
        r_ij; 0 for padding.
    switch, slope : (c, J) arrays
        f and f'/r; 0 for padding.
    """

    slot: int
    pairs: Array
    vectors: Array
    switch: Array
    slope: Array


@dataclass(frozen=True, eq=False)
class ArraySOAPState:
    """Descriptor rows of one structure as arrays of one library; see ``SOAPState`` for the meaning.

    Attributes
    ----------
    values : (N, F) array
    species : tuple of int
    norms : (N,) array
    coefficients : list of (N, 2l + 1, S n) arrays
    pairs : SortedPairs
        On the host.
    vectors, switch : (3, P), (2, P) arrays
    tables : Tables
    arrays : ArrayTables
    memory : int
        Bytes for temporary arrays.
    """

    values: Array
    species: tuple[int, ...]
    norms: Array = field(repr=False)
    coefficients: list[Array] = field(repr=False)
    pairs: SortedPairs = field(repr=False)
    vectors: Array = field(repr=False)
    switch: Array = field(repr=False)
    tables: Tables = field(repr=False)
    arrays: ArrayTables = field(repr=False)
    memory: int = field(repr=False)

    def __len__(self) -> int:
        return int(self.values.shape[0])

    def pair_gradients(self, gradient: Array, *, normalised: bool = True) -> Array:
        """∂f_i/∂r_ij of every pair, shape (P, 3), given the rows G_i = ∂f_i/∂p_i, shape (N, F)."""
        if tuple(gradient.shape) != tuple(self.values.shape):
            raise InputError(f"the gradient has shape {gradient.shape}, expected {self.values.shape}")
        xp = namespace(self.values)
        n_pairs = self.pairs.indices.shape[1]
        parts: list[Array] = []
        places: list[IntArray] = []
        for first, last in chunks(self.pairs.start, len(self), self.tables, self.memory):
            rows = gradient[first:last, :]
            if normalised:
                rows = self._project(rows, first, last)
            slopes = self._coefficient_slopes(rows, first, last)
            for block, host in blocks(self.pairs.start, self.vectors, self.switch, len(self), first, last):
                parts.append(self._block_gradients(block, slopes)[host.mask_index(self.values), :])
                places.append(host.chosen)
        if not parts:
            return xp.zeros((0, 3), dtype=xp.float64, device=_device(self.values))
        # every pair belongs to exactly one place
        order = np.empty(n_pairs, dtype=np.int64)
        order[np.concatenate(places)] = np.arange(n_pairs)
        return xp.take(xp.concat(parts, axis=0), asarray_like(order, self.values), axis=0)

    def _project(self, rows: Array, first: int, last: int) -> Array:
        """(G − p̂ (p̂·G)) / |p|."""
        xp = namespace(rows)
        own = self.values[first:last, :]
        dots = xp.sum(own * rows, axis=1, keepdims=True)
        return (rows - dots * own) * _inverse(self.norms[first:last])[:, None]

    def _coefficient_slopes(self, rows: Array, first: int, last: int) -> list[Array]:
        """∂f/∂(sums before W), one (c, 2l + 1, S n) array for each l."""
        xp = namespace(rows)
        width = int(self.coefficients[0].shape[2])
        n_radial, degrees = self.tables.n_radial, self.tables.degrees
        square = xp.take(rows, self.arrays.unpack, axis=1) * self.arrays.unpack_factors
        square = xp.reshape(square, (last - first, degrees, width, width))
        result = []
        for degree in range(degrees):
            slope = self.coefficients[degree][first:last, ...] @ square[:, degree, ...]
            shape = slope.shape
            slope = xp.reshape(slope, (-1, n_radial)) @ self.arrays.weights[degree]
            result.append(xp.reshape(slope, shape))
        return result

    def _block_gradients(self, block: Block, slopes: list[Array]) -> Array:
        """Pair gradients of a block, shape (c J, 3)."""
        xp = namespace(block.vectors)
        n_radial = self.tables.n_radial
        columns = slice(block.slot * n_radial, (block.slot + 1) * n_radial)
        r2 = xp.sum(block.vectors**2, axis=0)[:, None, :]
        angular = solid_harmonics(block.vectors, self.tables)
        along = xp.zeros_like(block.switch)
        plain = xp.zeros_like(block.switch)
        gradient: Any = 0.0
        for degree, harmonic in enumerate(angular):
            a = self.arrays.exponents[degree]
            radial = xp.exp(a * r2)
            slope = slopes[degree][:, :, columns]
            inner = slope @ radial
            along = along + xp.sum(harmonic * (slope @ (2.0 * a * radial)), axis=1)
            plain = plain + xp.sum(harmonic * inner, axis=1)
            if degree > 0:
                lifted = self.arrays.gradients[degree] @ angular[degree - 1]
                lifted = xp.reshape(lifted, (lifted.shape[0], 3, 2 * degree + 1, lifted.shape[2]))
                gradient = gradient + xp.sum(lifted * inner[:, None, :, :], axis=2)
        radially = block.switch * along + block.slope * plain
        result = block.vectors * radially
        if self.tables.degrees > 1:
            result = result + xp.permute_dims(gradient, (1, 0, 2)) * block.switch
        return xp.permute_dims(xp.reshape(result, (3, -1)), (1, 0))

    def _incidence(self, first: int, last: int) -> Any:
        """Sparse (N, last − first) matrix that adds pair gradients to neighbours and takes them from centres."""
        xp = namespace(self.values)
        i, j = (asarray_like(x[first:last], self.values) for x in self.pairs.indices)
        column = xp.arange(last - first, device=_device(self.values))
        ones = xp.ones(last - first, dtype=xp.float64, device=_device(self.values))
        return pair_matrix(
            xp.concat([ones, -ones]),
            xp.concat([j, i]),
            xp.concat([column, column]),
            (len(self), last - first),
            dense=False,
        )

    def adjoint(self, gradient: Array) -> PositionGradient:
        """Pull G = ∂E/∂p, shape (N, F), back to positions and strain (arrays of the same library)."""
        xp = namespace(self.values)
        pair = self.pair_gradients(gradient)
        positions = xp.zeros((len(self), 3), dtype=xp.float64, device=_device(self.values))
        step = max(1, self.memory // (8 * len(self))) if not _has_sparse(self.values) else max(1, len(pair))
        for first in range(0, pair.shape[0], step):
            last = min(first + step, pair.shape[0])
            positions = positions + self._incidence(first, last) @ pair[first:last, :]
        return PositionGradient(positions, self.vectors @ pair)

    def site_jacobian(self, gradient: Array) -> SiteJacobian:
        """Pull every row G_i = ∂f_i/∂p_i of an (N, F) array back separately."""
        xp = namespace(self.values)
        pair = self.pair_gradients(gradient)
        n = len(self)
        i, j = (asarray_like(x, self.values) for x in self.pairs.indices)
        values = xp.concat([xp.concat([pair[:, a], -pair[:, a]]) for a in range(3)])
        rows = xp.concat([xp.concat([3 * j + a, 3 * i + a]) for a in range(3)])
        columns = xp.concat([i] * 6)
        positions = pair_matrix(values, rows, columns, (3 * n, n), dense=False)
        from kqeq.backend import segment_sum

        strain = xp.stack(
            [segment_sum(self.vectors[a, :] * pair[:, b], i, n) for a in range(3) for b in range(3)]
        )
        return SiteJacobian(positions, strain)

    def feature_gradients(self, centres: Array, directions: Array, coefficients: Array) -> FeatureGradients:
        """Derivatives of f_m = Σ_i f_im with ∂f_im/∂p_i = C_im d_m; see ``soap_features``."""
        from kqeq.descriptors.soap_array_features import feature_gradients

        return feature_gradients(self, centres, directions, coefficients)


def _device(x: Array) -> Any:
    from array_api_compat import device

    return device(x)


def _has_sparse(x: Array) -> bool:
    from array_api_compat import is_cupy_array, is_numpy_array

    return bool(is_numpy_array(x) or is_cupy_array(x))


def _inverse(norms: Array) -> Array:
    xp = namespace(norms)
    positive = norms > 0
    return xp.where(positive, 1.0 / xp.where(positive, norms, xp.ones_like(norms)), xp.zeros_like(norms))


def chunks(start: IntArray, n_atoms: int, tables: Tables, memory: int) -> Iterator[tuple[int, int]]:
    """Ranges of centres whose temporary arrays fit into ``memory`` bytes."""
    n_species = (len(start) - 1) // n_atoms
    counts = np.diff(start).reshape(n_atoms, n_species)
    width = n_species * tables.n_radial
    fixed = 8 * tables.degrees * (4 * width**2 + 4 * tables.degrees * width)
    # R, its gradient and products with it, exponentials and their products, for one padded neighbour
    per_pair = 8 * (8 * tables.degrees**2 + 6 * tables.n_radial * tables.degrees + 24)
    first = 0
    while first < n_atoms:
        last, widest = first, 0
        while last < n_atoms:
            grown = max(widest, int(counts[last].max()))
            if last > first and (last + 1 - first) * (fixed + per_pair * grown) > memory:
                break
            last, widest = last + 1, grown
        yield first, last
        first = last


@dataclass(frozen=True, eq=False)
class HostBlock:
    """Which places of a padded block are pairs."""

    mask: np.ndarray[Any, Any]
    chosen: IntArray

    def mask_index(self, like: Array) -> Array:
        """Places that hold pairs, as an index array."""
        return asarray_like(np.flatnonzero(self.mask), like)


def blocks(
    start: IntArray, vectors: Array, switch: Array, n_atoms: int, first: int, last: int
) -> Iterator[tuple[Block, HostBlock]]:
    """The neighbours of centres ``first`` to ``last``, element by element."""
    xp = namespace(vectors)
    n_species = (len(start) - 1) // n_atoms
    for slot in range(n_species):
        begin = start[first * n_species + slot : last * n_species : n_species]
        count = start[first * n_species + slot + 1 : last * n_species + 1 : n_species] - begin
        widest = int(count.max())
        if widest == 0:
            continue
        places = np.arange(widest)[None, :]
        mask = places < count[:, None]
        pairs = np.where(mask, begin[:, None] + places, 0).ravel()
        index = asarray_like(pairs, vectors)
        shape = (last - first, widest)
        real = asarray_like(mask.astype(np.float64), vectors)
        yield (
            Block(
                slot,
                index,
                xp.reshape(xp.take(vectors, index, axis=1), (3, *shape)) * real,
                xp.reshape(xp.take(switch[0, :], index), shape) * real,
                xp.reshape(xp.take(switch[1, :], index), shape) * real,
            ),
            HostBlock(mask.ravel(), pairs[mask.ravel()]),
        )


def evaluate(
    structure: Structure, pairs: Pairs, tables: Tables, like: Array, memory: int = MEMORY
) -> ArraySOAPState:
    """Descriptors of one structure in the library and on the device of ``like``.

    Parameters
    ----------
    structure : Structure
    pairs : Pairs
        Reaching at least ``tables.cutoff``.
    tables : Tables
    like : array
        Any array of the library wanted; decides the device, too.
    memory : int
        Bytes for temporary arrays (a single centre may need more).
    """
    xp = namespace(like)
    species_array, slots = np.unique(structure.numbers, return_inverse=True)
    slots = slots.astype(np.int64)
    species = tuple(int(z) for z in species_array)
    n_atoms, n_species = len(slots), len(species)
    n_radial, degrees = tables.n_radial, tables.degrees
    width = n_species * n_radial
    listed = sort_pairs(pairs, slots, n_species, tables)
    vectors, switch = asarray_like(listed.vectors, like), asarray_like(listed.switch, like)
    arrays = array_tables(tables, n_species, like)

    own = np.zeros((n_atoms, width))
    for slot in range(n_species):
        own[slots == slot, slot * n_radial : (slot + 1) * n_radial] = tables.angular.recursion[0, 0]
    centre = asarray_like(own, like)
    coefficients: list[list[Array]] = [[] for _ in range(degrees)]
    values: list[Array] = []
    norms: list[Array] = []
    for first, last in chunks(listed.start, n_atoms, tables, memory):
        sums = _sums(listed, vectors, switch, tables, arrays, first, last, n_atoms, centre)
        square = []
        for degree in range(degrees):
            shape = sums[degree].shape
            c = xp.reshape(sums[degree], (-1, n_radial)) @ xp.permute_dims(arrays.weights[degree], (1, 0))
            c = xp.reshape(c, shape)
            coefficients[degree].append(c)
            square.append(xp.matrix_transpose(c) @ c)
        flat = xp.reshape(xp.stack(square, axis=1), (last - first, degrees * width * width))
        rows = xp.take(flat, arrays.pack, axis=1) * arrays.pack_factors
        norm = xp.sqrt(xp.sum(rows * rows, axis=1))
        values.append(rows * _inverse(norm)[:, None])
        norms.append(norm)
    return ArraySOAPState(
        xp.concat(values, axis=0),
        species,
        xp.concat(norms),
        [xp.concat(parts, axis=0) for parts in coefficients],
        listed,
        vectors,
        switch,
        tables,
        arrays,
        memory,
    )


def _sums(
    listed: SortedPairs,
    vectors: Array,
    switch: Array,
    tables: Tables,
    arrays: ArrayTables,
    first: int,
    last: int,
    n_atoms: int,
    centre: Array,
) -> list[Array]:
    """Σ_j f exp(a r²) R_lm of a chunk, one (c, 2l + 1, S n) array for each l."""
    xp = namespace(vectors)
    n_radial, degrees = tables.n_radial, tables.degrees
    n_species = (len(listed.start) - 1) // n_atoms
    parts: dict[int, list[Array]] = {}
    for block, _ in blocks(listed.start, vectors, switch, n_atoms, first, last):
        r2 = xp.sum(block.vectors**2, axis=0)[:, None, :]
        parts[block.slot] = [
            (harmonic * block.switch[:, None, :])
            @ xp.matrix_transpose(xp.exp(arrays.exponents[degree] * r2))
            for degree, harmonic in enumerate(solid_harmonics(block.vectors, tables))
        ]
    result = []
    for degree in range(degrees):
        empty = xp.zeros(
            (last - first, 2 * degree + 1, n_radial), dtype=xp.float64, device=_device(vectors)
        )
        total = xp.concat(
            [parts[s][degree] if s in parts else empty for s in range(n_species)], axis=2
        )
        if degree == 0:
            total = total + centre[first:last, None, :]
        result.append(total)
    return result


__all__ = ["MEMORY", "ArraySOAPState", "evaluate"]
