"""SOAP and its derivatives in array-namespace code: the same algorithm for NumPy, CuPy and others.

Works on chunks of centres whose neighbours are padded to a rectangle, element by element, so that all
contractions are batched matrix products; temporary arrays stay within a given amount of memory.  Only what
grows linearly with atoms and pairs is kept: coefficients, rows and pair vectors.  The compiled kernels
(``soap_adjoint``) are several times faster on a CPU; this is for GPUs, and an independent check.

Dimensions: N atoms, P pairs, S species, n radial functions, F features; within a chunk c centres and J
neighbours of one element each (padded).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import array_api_compat
import numpy as np

from kqeq.backend import asarray_like, is_numpy, namespace, pair_matrix, segment_sum
from kqeq.descriptors.base import FeatureGradients, PositionGradient, SiteJacobian
from kqeq.descriptors.soap_adjoint import SortedPairs, Tables, sort_pairs
from kqeq.descriptors.soap_array_blocks import (
    ArrayTables,
    Block,
    array_tables,
    blocks,
    chunks,
    inverse,
    solid_harmonics,
    zeros,
)
from kqeq.errors import InputError
from kqeq.neighbours import Pairs
from kqeq.structures import Structure
from kqeq.typing import Array, IntArray

MEMORY = 256 * 2**20
"""Default bytes for temporary arrays."""


@dataclass(frozen=True, eq=False)
class ArraySOAPState:
    """Descriptor rows of one structure as arrays of one library; methods as those of ``SOAPState``.

    Attributes
    ----------
    values : (N, F) array
        Rows of norm one.
    species : tuple of int
        Atomic numbers that define the layout.
    norms : (N,) array
        Norms before normalisation.
    coefficients : list of (N, 2l + 1, S n) arrays
        Expansion coefficients for each l.
    pairs : SortedPairs
        On the host.
    vectors, switch : (3, P), (2, P) arrays
        Their vectors and switching function on the device.
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
        """∂f_i/∂r_ij of every pair, shape (P, 3), given the rows G_i = ∂f_i/∂p_i, shape (N, F).

        With ``normalised=False`` G refers to the rows before their normalisation.
        """
        if tuple(gradient.shape) != tuple(self.values.shape):
            raise InputError(
                f"the gradient has shape {tuple(gradient.shape)}, expected {tuple(self.values.shape)}: one row "
                "∂f_i/∂p_i for each atom in the layout of this state"
            )
        xp = namespace(self.values)
        n_species, start = len(self.species), self.pairs.start
        parts: list[Array] = []
        numbers: list[IntArray] = []
        everyone = np.arange(len(self))
        for part in chunks(everyone, start, n_species, self.tables, self.memory):
            rows = gradient[part, :]
            if normalised:
                own = self.values[part, :]
                rows = rows - xp.sum(own * rows, axis=1, keepdims=True) * own
                rows = rows * inverse(self.norms[part])[:, None]
            slopes = self._coefficient_slopes(rows, part)
            for block in blocks(everyone[part], start, n_species, self.vectors, self.switch):
                places = asarray_like(block.places, self.values)
                parts.append(xp.take(self._block_gradients(block, slopes), places, axis=0))
                numbers.append(block.pairs)
        if not parts:
            return zeros((0, 3), self.values)
        # every pair sits in exactly one place
        order = np.empty(self.pairs.indices.shape[1], dtype=np.int64)
        order[np.concatenate(numbers)] = np.arange(len(order))
        return xp.take(xp.concat(parts, axis=0), asarray_like(order, self.values), axis=0)

    def _coefficient_slopes(self, rows: Array, part: slice) -> list[Array]:
        """∂f/∂(sums before W) for raw gradients (c, F), one (c, 2l + 1, S n) array for each l."""
        xp = namespace(rows)
        width, degrees = int(self.coefficients[0].shape[2]), self.tables.degrees
        square = xp.take(rows, self.arrays.unpack, axis=1) * self.arrays.unpack_factors
        square = xp.reshape(square, (-1, degrees, width, width))
        result = []
        for degree in range(degrees):
            slope = self.coefficients[degree][part, ...] @ square[:, degree, ...]
            result.append(_radial_product(slope, self.arrays.weights[degree]))
        return result

    def _block_gradients(self, block: Block, slopes: list[Array]) -> Array:
        """Pair gradients of all places of a block, shape (c J, 3)."""
        xp = namespace(block.vectors)
        n_radial = self.tables.n_radial
        columns = slice(block.slot * n_radial, (block.slot + 1) * n_radial)
        r2 = xp.sum(block.vectors**2, axis=0)[:, None, :]
        angular = solid_harmonics(block.vectors, self.tables)
        along = xp.zeros_like(block.switch)
        plain = xp.zeros_like(block.switch)
        result = xp.zeros_like(block.vectors)
        for degree, harmonic in enumerate(angular):
            a = self.arrays.exponents[degree]
            radial = xp.exp(a * r2)
            slope = slopes[degree][:, :, columns]
            inner = slope @ radial
            along = along + xp.sum(harmonic * (slope @ (2.0 * a * radial)), axis=1)
            plain = plain + xp.sum(harmonic * inner, axis=1)
            if degree > 0:
                lifted = _lift(self.arrays, degree, angular[degree - 1])
                result = result + xp.sum(lifted * inner[None, ...], axis=2)
        result = block.switch * result + block.vectors * (block.switch * along + block.slope * plain)
        return xp.permute_dims(xp.reshape(result, (3, -1)), (1, 0))

    def incidence(self, pairs: IntArray) -> Any:
        """(N, p) matrix that adds pair gradients to the neighbours and subtracts them from the centres.

        Sparse where the library has sparse matrices.
        """
        xp = namespace(self.values)
        device = array_api_compat.device(self.values)
        i, j = (asarray_like(x[pairs], self.values) for x in self.pairs.indices)
        column = xp.arange(len(pairs), device=device)
        ones = xp.ones(len(pairs), dtype=xp.float64, device=device)
        return pair_matrix(
            xp.concat([ones, -ones]),
            xp.concat([j, i]),
            xp.concat([column, column]),
            (len(self), len(pairs)),
            dense=False,
        )

    def adjoint(self, gradient: Array) -> PositionGradient:
        """Pull G = ∂E/∂p, shape (N, F), back to positions (N, 3) and strain (3, 3)."""
        pair = self.pair_gradients(gradient)
        number = int(pair.shape[0])
        positions = zeros((len(self), 3), self.values)
        sparse = is_numpy(self.values) or array_api_compat.is_cupy_array(self.values)
        step = max(1, number if sparse else self.memory // (8 * len(self)))
        for first in range(0, number, step):
            last = min(first + step, number)
            positions = positions + self.incidence(np.arange(first, last)) @ pair[first:last, :]
        return PositionGradient(positions, self.vectors @ pair)

    def site_jacobian(self, gradient: Array) -> SiteJacobian:
        """Pull every row G_i = ∂f_i/∂p_i of an (N, F) array back separately."""
        xp = namespace(self.values)
        pair = self.pair_gradients(gradient)
        n = len(self)
        i, j = (asarray_like(x, self.values) for x in self.pairs.indices)
        values = xp.concat([xp.concat([pair[:, a], -pair[:, a]]) for a in range(3)])
        rows = xp.concat([xp.concat([3 * j + a, 3 * i + a]) for a in range(3)])
        positions = pair_matrix(values, rows, xp.concat([i] * 6), (3 * n, n), dense=False)
        strain = [segment_sum(self.vectors[a, :] * pair[:, b], i, n) for a in range(3) for b in range(3)]
        return SiteJacobian(positions, xp.stack(strain))

    def feature_gradients(self, centres: Array, directions: Array, coefficients: Array) -> FeatureGradients:
        """Derivatives of f_m = Σ_i f_im with ∂f_im/∂p_i = C_im d_m, for all m at once."""
        from kqeq.descriptors.soap_array_features import feature_gradients

        return feature_gradients(self, centres, directions, coefficients)


def _radial_product(x: Array, matrix: Array) -> Array:
    """Multiply the radial index of (c, m, S n) arrays by an (n, n) matrix."""
    xp = namespace(x)
    return xp.reshape(xp.reshape(x, (-1, matrix.shape[0])) @ matrix, x.shape)


def _lift(arrays: ArrayTables, degree: int, below: Array) -> Array:
    """∂R_l, shape (3, c, 2l + 1, J), from R_{l−1}, shape (c, 2l − 1, J)."""
    xp = namespace(below)
    return xp.stack([arrays.gradients[degree][a, ...] @ below for a in range(3)])


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
    n_atoms, n_species = len(slots), len(species_array)
    n_radial, degrees = tables.n_radial, tables.degrees
    width = n_species * n_radial
    listed = sort_pairs(pairs, slots, n_species, tables)
    vectors, switch = asarray_like(listed.vectors, like), asarray_like(listed.switch, like)
    arrays = array_tables(tables, n_species, like)

    own = np.zeros((n_atoms, width))  # the centre itself: r = 0, only l = 0
    for slot in range(n_species):
        own[slots == slot, slot * n_radial : (slot + 1) * n_radial] = tables.angular.recursion[0, 0]
    own = asarray_like(own, like)
    everyone = np.arange(n_atoms)
    coefficients: list[list[Array]] = [[] for _ in range(degrees)]
    values: list[Array] = []
    norms: list[Array] = []
    for part in chunks(everyone, listed.start, n_species, tables, memory):
        number = part.stop - part.start
        sums: dict[int, list[Array]] = {}
        for block in blocks(everyone[part], listed.start, n_species, vectors, switch):
            r2 = xp.sum(block.vectors**2, axis=0)[:, None, :]
            sums[block.slot] = [
                (harmonic * block.switch[:, None, :])
                @ xp.matrix_transpose(xp.exp(arrays.exponents[degree] * r2))
                for degree, harmonic in enumerate(solid_harmonics(block.vectors, tables))
            ]
        square = []
        for degree in range(degrees):
            empty = zeros((number, 2 * degree + 1, n_radial), like)
            total = xp.concat([sums[s][degree] if s in sums else empty for s in range(n_species)], axis=2)
            if degree == 0:
                total = total + own[part, None, :]
            c = _radial_product(total, xp.matrix_transpose(arrays.weights[degree]))
            coefficients[degree].append(c)
            square.append(xp.matrix_transpose(c) @ c)
        flat = xp.reshape(xp.stack(square, axis=1), (number, degrees * width * width))
        rows = xp.take(flat, arrays.pack, axis=1) * arrays.pack_factors
        norm = xp.sqrt(xp.sum(rows * rows, axis=1))
        values.append(rows * inverse(norm)[:, None])
        norms.append(norm)
    return ArraySOAPState(
        xp.concat(values, axis=0),
        tuple(int(z) for z in species_array),
        xp.concat(norms),
        [xp.concat(parts, axis=0) for parts in coefficients],
        listed,
        vectors,
        switch,
        tables,
        arrays,
        memory,
    )


__all__ = ["MEMORY", "ArraySOAPState", "evaluate"]
