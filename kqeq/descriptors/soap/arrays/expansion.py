"""SOAP and its derivatives in array-namespace code: the same algorithm for NumPy, CuPy and others.

Works on chunks of centres whose neighbours are padded to a rectangle, element by element, so that all
contractions are batched matrix products; temporary arrays stay within a given amount of memory.  Only what
grows linearly with atoms and pairs is kept: coefficients, rows and pair vectors.  The compiled kernels
(``soap/host``) are several times faster on a CPU; this is for GPUs, and an independent check.

Dimensions: N atoms, P pairs, S species, n radial functions, F features; within a chunk c centres and J
neighbours of one element each (padded).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from kqeq.backend import (
    arange,
    asarray_like,
    full,
    inverse_or_zero,
    memory_budget,
    namespace,
    pair_matrix,
    put_rows,
    segment_sum,
    use_raw_kernels,
    zeros,
)
from kqeq.descriptors.base import PositionGradient, SiteJacobian
from kqeq.descriptors.soap.arrays import cuda_kernels
from kqeq.descriptors.soap.arrays.blocks import (
    ArrayPairs,
    ArrayTables,
    Block,
    array_tables,
    blocks,
    chunks,
    solid_harmonics,
)
from kqeq.descriptors.soap.host.adjoint import Tables, sort_pairs
from kqeq.errors import InputError
from kqeq.frames.neighbours import Pairs
from kqeq.frames.structures import Structure
from kqeq.typing import Array


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
    pairs : ArrayPairs
    tables : Tables
    arrays : ArrayTables
    memory : int
        Bytes for temporary arrays.
    kept : dict
        What was computed of all pairs and is needed again.
    """

    values: Array
    species: tuple[int, ...]
    norms: Array = field(repr=False)
    coefficients: list[Array] = field(repr=False)
    pairs: ArrayPairs = field(repr=False)
    tables: Tables = field(repr=False)
    arrays: ArrayTables = field(repr=False)
    memory: int = field(repr=False)
    kept: dict[str, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return int(self.values.shape[0])

    @property
    def _fused(self) -> bool:
        return use_raw_kernels(self.values) and cuda_kernels.fits(self.tables)

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
        n_species = len(self.species)
        result = zeros((len(self.pairs), 3), self.values)
        everyone = np.arange(len(self))
        fused = self._fused
        for part in chunks(
            everyone, self.pairs.offsets, n_species, self.tables, self.memory, padded=not fused
        ):
            rows = gradient[part, :]
            if normalised:
                unit = self.values[part, :]
                rows = rows - xp.sum(unit * rows, axis=1, keepdims=True) * unit
                rows = rows * inverse_or_zero(self.norms[part])[:, None]
            slopes = self._coefficient_slopes(rows, part)
            if fused:
                cuda_kernels.pair_gradients(slopes, part.start, self.pairs, self.tables, self.arrays, result)
                continue
            own = arange(part.start, part.stop, self.pairs.start)
            for block in blocks(everyone[part], own, self.pairs, n_species):
                _, places, pairs = block.members()
                values = xp.take(self._block_gradients(block, slopes), places, axis=0)
                result = put_rows(result, pairs, values)
        return result

    @cached_property
    def along(self) -> Array:
        """p_i · ∂p_i/∂r_ij before normalisation, (P, 3): what normalisation takes out of derivatives."""
        return self.pair_gradients(self.values, normalised=False)

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

    def incidence(self, pairs: Array) -> Any:
        """(N, p) matrix that adds pair gradients to the neighbours and subtracts them from the centres.

        Sparse where the library has sparse matrices.
        """
        xp = namespace(self.values)
        number = int(pairs.shape[0])
        column = arange(0, number, self.values)
        ones = full(number, 1.0, self.values)
        return pair_matrix(
            xp.concat([ones, -ones]),
            xp.concat([xp.take(self.pairs.j, pairs), xp.take(self.pairs.i, pairs)]),
            xp.concat([column, column]),
            (len(self), number),
            dense=False,
        )

    def adjoint(self, gradient: Array) -> PositionGradient:
        """Pull G = ∂E/∂p, shape (N, F), back to positions (N, 3) and strain (3, 3)."""
        pair = self.pair_gradients(gradient)
        positions = self._summed(pair)
        return PositionGradient(positions, self.pairs.vectors @ pair)

    def _summed(self, pair: Array) -> Array:
        """Σ of pair gradients at both atoms, by whatever collects them here."""
        if self._fused:
            return cuda_kernels.collect(pair, self.pairs, len(self), self.tables)
        return self._collect(pair)

    def _collect(self, pair: Array) -> Array:
        """Pair gradients (P, 3) added to the neighbours and subtracted from the centres, shape (N, 3)."""
        xp = namespace(pair)
        n = len(self)
        columns = [
            segment_sum(pair[:, a], self.pairs.j, n) - segment_sum(pair[:, a], self.pairs.i, n)
            for a in range(3)
        ]
        return xp.stack(columns, axis=1)

    def site_jacobian(self, gradient: Array) -> SiteJacobian:
        """Pull every row G_i = ∂f_i/∂p_i of an (N, F) array back separately."""
        xp = namespace(self.values)
        pair = self.pair_gradients(gradient)
        n, i, j = len(self), self.pairs.i, self.pairs.j
        values = xp.concat([xp.concat([pair[:, a], -pair[:, a]]) for a in range(3)])
        rows = xp.concat([xp.concat([3 * j + a, 3 * i + a]) for a in range(3)])
        positions = pair_matrix(values, rows, xp.concat([i] * 6), (3 * n, n), dense=False)
        vectors = self.pairs.vectors
        strain = [segment_sum(vectors[a, :] * pair[:, b], i, n) for a in range(3) for b in range(3)]
        return SiteJacobian(positions, xp.stack(strain))


def _radial_product(x: Array, matrix: Array) -> Array:
    """Multiply the radial index of (c, m, S n) arrays by an (n, n) matrix."""
    xp = namespace(x)
    return xp.reshape(xp.reshape(x, (-1, matrix.shape[0])) @ matrix, x.shape)


def _lift(arrays: ArrayTables, degree: int, below: Array) -> Array:
    """∂R_l, shape (3, c, 2l + 1, J), from R_{l−1}, shape (c, 2l − 1, J)."""
    xp = namespace(below)
    return xp.stack([arrays.gradients[degree][a, ...] @ below for a in range(3)])


def _density_sums(
    part: slice, pairs: ArrayPairs, n_species: int, tables: Tables, arrays: ArrayTables
) -> list[Array]:
    """Sums over the neighbours of a chunk of centres before W, one (c, 2l + 1, S n) array for each l."""
    xp = namespace(pairs.vectors)
    centres = np.arange(part.start, part.stop)
    sums: dict[int, list[Array]] = {}
    for block in blocks(centres, arange(part.start, part.stop, pairs.start), pairs, n_species):
        r2 = xp.sum(block.vectors**2, axis=0)[:, None, :]
        sums[block.slot] = [
            (harmonic * block.switch[:, None, :]) @ xp.matrix_transpose(xp.exp(arrays.exponents[degree] * r2))
            for degree, harmonic in enumerate(solid_harmonics(block.vectors, tables))
        ]
    result = []
    for degree in range(tables.degrees):
        empty = zeros((len(centres), 2 * degree + 1, tables.n_radial), pairs.vectors)
        columns = [sums[s][degree] if s in sums else empty for s in range(n_species)]
        result.append(xp.concat(columns, axis=2))
    return result


def evaluate(
    structure: Structure, pairs: Pairs | None, tables: Tables, like: Array, memory: int | None = None
) -> ArraySOAPState:
    """Descriptors of one structure in the library and on the device of ``like``.

    Parameters
    ----------
    structure : Structure
    pairs : Pairs or None
        Reaching at least ``tables.cutoff``; searched for on the device if not given.
    tables : Tables
    like : array
        Any array of the library wanted; decides the device, too.
    memory : int, optional
        Bytes for temporary arrays (a single centre may need more); :func:`kqeq.backend.memory_budget` by default.
    """
    xp = namespace(like)
    memory = memory_budget(like) if memory is None else memory
    species_array, slots = np.unique(structure.numbers, return_inverse=True)
    slots = slots.astype(np.int64)
    n_atoms, n_species = len(slots), len(species_array)
    n_radial, degrees = tables.n_radial, tables.degrees
    width = n_species * n_radial
    if pairs is None:
        listed = ArrayPairs.find(structure, slots, n_species, tables, like)
    else:
        listed = ArrayPairs.build(sort_pairs(pairs, slots, n_species, tables), like)
    arrays = array_tables(tables, n_species, like)

    own = np.zeros((n_atoms, width))  # the centre itself: r = 0, only l = 0
    for slot in range(n_species):
        columns = slice(slot * n_radial, (slot + 1) * n_radial)
        own[slots == slot, columns] = tables.centre * tables.angular.recursion[0, 0]
    own = asarray_like(own, like)
    everyone = np.arange(n_atoms)
    coefficients: list[list[Array]] = [[] for _ in range(degrees)]
    values: list[Array] = []
    norms: list[Array] = []
    fused = use_raw_kernels(like) and cuda_kernels.fits(tables)
    whole = cuda_kernels.density_sums(listed, n_atoms, n_species, tables, arrays) if fused else []
    for part in chunks(everyone, listed.offsets, n_species, tables, memory, padded=not fused):
        sums = [total[part, ...] for total in whole]
        if not fused:
            sums = _density_sums(part, listed, n_species, tables, arrays)
        sums[0] = sums[0] + own[part, None, :]
        square = []
        for degree, total in enumerate(sums):
            c = _radial_product(total, xp.matrix_transpose(arrays.weights[degree]))
            coefficients[degree].append(c)
            square.append(xp.matrix_transpose(c) @ c)
        flat = xp.reshape(xp.stack(square, axis=1), (-1, degrees * width * width))
        rows = xp.take(flat, arrays.pack, axis=1) * arrays.pack_factors
        norm = xp.sqrt(xp.sum(rows * rows, axis=1))
        values.append(rows * inverse_or_zero(norm)[:, None])
        norms.append(norm)
    return ArraySOAPState(
        xp.concat(values, axis=0),
        tuple(int(z) for z in species_array),
        xp.concat(norms),
        [xp.concat(parts, axis=0) for parts in coefficients],
        listed,
        tables,
        arrays,
        memory,
    )


__all__ = ["ArraySOAPState", "evaluate"]
