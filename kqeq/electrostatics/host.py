"""Both halves of a lattice sum of Gaussian charges on the host, with compiled loops.

The same as :class:`~kqeq.electrostatics.realspace.RealSpace` and :class:`~kqeq.electrostatics.reciprocal.Reciprocal`
without dipoles, in fewer passes over memory.  Sums over pairs are collected in a fixed number of parts, so that results
do not depend on the number of threads.

Dimensions: N atoms, P pairs, K reciprocal vectors, c columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, cached_property, lru_cache
from types import ModuleType

import numpy as np

from kqeq.backend import compiled, threads
from kqeq.constants import COULOMB
from kqeq.electrostatics.gaussian import OpenCoulomb
from kqeq.electrostatics.lattice import reciprocal_vectors
from kqeq.electrostatics.realspace import Chunk, RealSpace
from kqeq.electrostatics.tables import RadialTables, radial_tables
from kqeq.frames.neighbours import Pairs, pairs_by_centre
from kqeq.frames.structures import Structure
from kqeq.typing import FloatArray, IntArray

_PARTS = 8
"""Parts in which sums over pairs are collected."""

_TILE = 160
"""Smallest side of the tiles in which a matrix of waves is summed."""

_SMALLEST_THREADED = 20_000
"""Pairs, or elements of phase factors, below which threads cost more than they gain."""

_KEPT_ELEMENTS = 1 << 22
"""Phase factors are kept for further calls when there are no more elements than this (64 MB in all)."""

_CHUNK_ELEMENTS = 1 << 19
"""Elements of the phase factors that are worked on at once otherwise."""


@cache
def _kernels() -> ModuleType:
    """The compiled loops; compiled once, then read from disk."""
    return compiled.load("kqeq.electrostatics.pair_kernels")


class HostRealSpace(RealSpace):
    """Short-ranged part of the interaction of Gaussian charges, on the host.

    Parameters
    ----------
    positions, sigma, cell, kappa, r_cut
        As for :class:`~kqeq.electrostatics.realspace.RealSpace`.
    tables : RadialTables
    kinds : (N,) int array
        Which of the widths of the tables each atom has.
    pairs : Pairs
        A half list, ordered by centre, that reaches at least ``r_cut``.
    """

    def __init__(
        self,
        positions: FloatArray,
        sigma: FloatArray,
        cell: FloatArray | None,
        *,
        kappa: float,
        r_cut: float,
        tables: RadialTables,
        kinds: IntArray,
        pairs: Pairs,
    ) -> None:
        assert pairs.start is not None
        self._list = pairs
        super().__init__(positions, sigma, cell, kappa=kappa, r_cut=r_cut, dipoles=False, pairs=pairs)
        self._start = pairs.start
        self._indices, self._along = pairs.indices, pairs.vectors
        self._r_cut, self._limit = r_cut, r_cut * r_cut
        self._kinds = kinds
        self._tables = tables
        self._derivatives: tuple[FloatArray, FloatArray, FloatArray, FloatArray] | None = None

    def _take(self, pairs: Pairs, r_cut: float) -> None:
        """Only array code needs the pairs within the cutoff by themselves."""
        self._i = self._j = pairs.indices[:0, 0]
        self._vectors = pairs.vectors[:0]

    def _chunks(self, order: int, *, width: bool = False) -> Iterator[Chunk]:
        if len(self._i) == 0:
            super()._take(self._list, self._r_cut)
        yield from super()._chunks(order, width=width)

    @property
    def _input(self) -> tuple[object, ...]:
        """What all loops over pairs are given."""
        tables = self._tables
        return (
            self._start,
            self._indices,
            self._along,
            self._limit,
            self._kinds,
            tables.table_of,
            tables.coefficients,
            tables.inverse,
        )

    @cached_property
    def _values(self) -> FloatArray:
        """Radial function of every pair, eV/e²."""
        out, kernels = np.empty(len(self._indices)), _kernels()

        def task(first: int, last: int) -> None:
            kernels.values(first, last, *self._input, out)

        threads.run(task, self._start, _SMALLEST_THREADED)
        return out

    def add_half(self, out: FloatArray) -> FloatArray:
        """Add to ``out`` a matrix H, so that H + Hᵀ is the interaction; shape (N, N)."""
        kernels, pair = _kernels(), self._values

        def task(first: int, last: int) -> None:
            kernels.scatter(first, last, self._start, self._indices, pair, out)

        threads.run(task, self._start, _SMALLEST_THREADED)
        out.reshape(-1)[:: len(out) + 1] += 0.5 * self._self_interaction()
        return out

    def matvec(self, block: FloatArray) -> FloatArray:
        """Product with a block of shape (N,) or (N, c)."""
        own = self._self_interaction()
        if block.ndim == 1:
            result: FloatArray = self._product(np.ascontiguousarray(block)) + own * block
            return result
        columns = [self._product(np.ascontiguousarray(column)) for column in block.T]
        result = np.stack(columns, axis=1) if columns else np.zeros(block.shape)
        return np.asarray(result + own[:, None] * block)

    def _product(self, vector: FloatArray) -> FloatArray:
        kernels, pair = _kernels(), self._values
        sums = np.zeros((_PARTS, len(vector)))

        def task(part: int, first: int, last: int) -> None:
            kernels.product(first, last, self._start, self._indices, pair, vector, sums[part])

        threads.run_parts(task, self._start, _PARTS, _SMALLEST_THREADED)
        total: FloatArray = sums.sum(axis=0)
        return total

    def gradient(self, left: FloatArray, right: FloatArray) -> FloatArray:
        """∂(leftᵀ A right_c)/∂r for left (N,) and right (N, c), shape (N, 3, c)."""
        if right.shape[1] != 1:
            return np.asarray(super().gradient(left, right))
        return self._both(left, right[:, 0])[0][:, :, None]

    def strain(self, left: FloatArray, right: FloatArray) -> FloatArray:
        """∂(leftᵀ A right_c)/∂ε, shape (3, 3, c)."""
        if right.shape[1] != 1:
            return np.asarray(super().strain(left, right))
        return self._both(left, right[:, 0])[1][:, :, None]

    def _both(self, left: FloatArray, right: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Gradient (N, 3) and strain derivative (3, 3) in one pass; kept, because both are asked for in turn."""
        kept = self._derivatives
        if kept is not None and np.array_equal(kept[0], left) and np.array_equal(kept[1], right):
            return kept[2], kept[3]
        kernels = _kernels()
        left, right = np.array(left, order="C"), np.array(right, order="C")
        sums, strains = np.zeros((_PARTS, len(left), 3)), np.zeros((_PARTS, 6))

        def task(part: int, first: int, last: int) -> None:
            kernels.gradients(first, last, *self._input, left, right, sums[part], strains[part])

        threads.run_parts(task, self._start, _PARTS, _SMALLEST_THREADED)
        six = strains.sum(axis=0)
        result = sums.sum(axis=0), six[[[0, 1, 2], [1, 3, 4], [2, 4, 5]]]
        self._derivatives = left, right, *result
        return result


def real_space(
    positions: FloatArray,
    sigma: FloatArray,
    cell: FloatArray | None,
    *,
    kappa: float,
    r_cut: float,
    structure: Structure | None = None,
) -> RealSpace:
    """The real-space part of charges, with compiled loops unless tables would be too large.

    Parameters
    ----------
    positions, sigma, cell, kappa, r_cut
        As for :class:`~kqeq.electrostatics.realspace.RealSpace`.
    structure : Structure, optional
        Of the same positions and cell, where its own neighbour list may serve.
    """
    widths, kinds = np.unique(sigma, return_inverse=True)
    tables = radial_tables(tuple(widths.tolist()), kappa, r_cut)
    if tables is None:
        return RealSpace(positions, sigma, cell, kappa=kappa, r_cut=r_cut, dipoles=False)
    if (
        structure is not None
        and structure.neighbours is not None
        and structure.pbc.all()
        and cell is not None
    ):
        pairs: Pairs = structure.neighbours.find(structure, r_cut)
    else:
        box, pbc = np.zeros((3, 3)) if cell is None else cell, np.full(3, cell is not None)
        pairs = pairs_by_centre(positions, box, pbc, r_cut)
    return HostRealSpace(
        positions,
        sigma,
        cell,
        kappa=kappa,
        r_cut=r_cut,
        tables=tables,
        kinds=kinds.astype(np.int64),
        pairs=pairs,
    )


_POINTS = 6.2
"""a r from which erf(a r) is 1 to the last digit."""


@lru_cache(maxsize=64)
def _open_tables(sigma: bytes) -> tuple[RadialTables | None, IntArray, float, FloatArray]:
    """Tables of atoms of given widths, which width each has, how far tables reach (Å), and the self interaction."""
    own = np.frombuffer(sigma)
    widths, kinds = np.unique(own, return_inverse=True)
    reach = _POINTS * 2.0 * float(widths[-1])
    tables = radial_tables(tuple(widths.tolist()), 0.0, reach)
    return tables, kinds.astype(np.int64), reach, COULOMB / np.sqrt(np.pi) / own


@lru_cache(maxsize=64)
def _work_of_pairs(atoms: int) -> IntArray:
    """Pairs of atoms, each once, cumulative."""
    rows = np.arange(atoms + 1)
    return np.asarray(rows * (rows - 1) // 2 + rows)


@lru_cache(maxsize=64)
def _work_of_rows(atoms: int) -> IntArray:
    """The same, each twice."""
    return atoms * np.arange(atoms + 1)


class HostOpenCoulomb(OpenCoulomb):
    """Gaussian charges in open boundaries, with compiled loops.

    Parameters
    ----------
    positions, sigma
        As for :class:`~kqeq.electrostatics.gaussian.OpenCoulomb`.
    """

    def __init__(self, positions: FloatArray, sigma: FloatArray) -> None:
        super().__init__(positions, sigma)
        self._tables, self._kinds, self._reach, self._own = _open_tables(self._sigma.tobytes())

    @property
    def _input(self) -> tuple[object, ...]:
        """What the loops are given."""
        tables = self._tables
        assert tables is not None
        return (
            np.ascontiguousarray(self._positions),
            self._reach**2,
            COULOMB,
            self._kinds,
            tables.table_of,
            tables.coefficients,
            tables.inverse,
        )

    def matrix(self) -> FloatArray:
        """The interaction matrix, symmetric positive definite, shape (N, N), in eV/e²."""
        if self._tables is None:
            return np.asarray(super().matrix())
        out, given = np.empty((self.size, self.size)), self._input

        def task(first: int, last: int) -> None:
            _kernels().open_matrix(first, last, *given, out)

        threads.run(task, _work_of_pairs(self.size), _SMALLEST_THREADED)
        out.reshape(-1)[:: self.size + 1] = self._own
        return out

    def bilinear_gradient(self, left: FloatArray, right: FloatArray) -> FloatArray:
        """∂(leftᵀ A right_c)/∂r at fixed left (N,) and right (N, c), shape (N, 3, c)."""
        if self._tables is None or right.ndim != 2 or right.shape[1] != 1:
            return np.asarray(super().bilinear_gradient(left, right))
        self._unknowns.check(left, dimensions=(1,))
        self._unknowns.check(right, dimensions=(2,))
        out, given = np.empty((self.size, 3)), self._input
        sides = np.ascontiguousarray(left), np.ascontiguousarray(right[:, 0])

        def task(first: int, last: int) -> None:
            _kernels().open_gradients(first, last, *given, *sides, out)

        threads.run(task, _work_of_rows(self.size), _SMALLEST_THREADED)
        return out[:, :, None]


class HostReciprocal:
    """Smooth part of the interaction of Gaussian charges in a periodic cell, on the host.

    With the rows R of √w cos G·r and √w sin G·r the matrix is RᵀR.

    Parameters
    ----------
    positions : (N, 3) array
    cell : (3, 3) array
    kappa, k_cut : float
    """

    def __init__(self, positions: FloatArray, cell: FloatArray, *, kappa: float, k_cut: float) -> None:
        self._atoms = len(positions)
        self._millers, self._vectors, self._roots, self._squares = _waves_of(
            cell.tobytes(), float(kappa), float(k_cut)
        )
        self._inverse_four_kappa2 = 0.25 / kappa**2
        fractional = np.ascontiguousarray((positions @ np.linalg.inv(cell)).T)
        highest = int(np.abs(self._millers).max()) + 1 if len(self._millers) else 1
        angles = (2.0 * np.pi) * fractional[:, None, :] * np.arange(highest)[None, :, None]
        self._powers = np.ascontiguousarray(np.stack([np.cos(angles), np.sin(angles)], axis=1))
        self._kept: tuple[slice, FloatArray] | None = None

    @property
    def vectors(self) -> int:
        """Number of reciprocal vectors K in the half space."""
        return len(self._millers)

    def _chunks(self) -> list[slice]:
        number = self.vectors
        if self._atoms * number <= _KEPT_ELEMENTS:
            return [slice(0, number)]
        step = max(16, _CHUNK_ELEMENTS // self._atoms)
        return [slice(start, min(start + step, number)) for start in range(0, number, step)]

    def _rows(self, part: slice) -> FloatArray:
        """Cosines and sines of a chunk, (2, K, N)."""
        if self._kept is not None and self._kept[0] == part:
            return self._kept[1]
        number = part.stop - part.start
        rows, kernels = np.empty((2, number, self._atoms)), _kernels()
        millers, roots = self._millers[part], self._roots[part]

        def task(first: int, last: int) -> None:
            kernels.phases(first, last, millers, self._powers, roots, rows[0], rows[1])

        threads.run(task, self._atoms * np.arange(number + 1), _SMALLEST_THREADED)
        if number == self.vectors:
            self._kept = part, rows
        return rows

    def add_half(self, out: FloatArray) -> FloatArray:
        """Add to ``out`` a matrix H, so that H + Hᵀ is the interaction; shape (N, N)."""
        from scipy.linalg import blas

        diagonal = 0.0
        for part in self._chunks():
            rows = self._rows(part).reshape(-1, self._atoms)
            if self._atoms < 2 * _TILE:
                # the transposed view is what Fortran takes for a matrix; its upper triangle is our lower one
                blas.dsyrk(1.0, rows.T, beta=1.0, c=out.T, lower=0, overwrite_c=1)
            else:
                _add_lower_gram(rows, out)
            diagonal += float(np.square(self._roots[part]).sum())
        out.reshape(-1)[:: len(out) + 1] -= 0.5 * diagonal
        return out

    def matvec(self, block: FloatArray) -> FloatArray:
        """Product with a block of shape (N,) or (N, c)."""
        total = np.zeros(block.shape)
        for part in self._chunks():
            rows = self._rows(part).reshape(-1, self._atoms)
            total += rows.T @ (rows @ block)
        return total

    def gradient(self, left: FloatArray, right: FloatArray) -> FloatArray:
        """∂(leftᵀ A right_c)/∂r for left (N,) and right (N, c), shape (N, 3, c)."""
        columns = right.shape[1]
        result = np.zeros((self._atoms, 3, columns))
        for part in self._chunks():
            cosine, sine = self._rows(part)
            g = self._vectors[part]
            field = self._field(cosine, sine, g, left[:, None])[:, :, 0]
            result += field[:, :, None] * right[:, None, :]
            if columns == 1 and np.array_equal(left, right[:, 0]):
                result += field[:, :, None] * right[:, None, :]
            else:
                result += left[:, None, None] * self._field(cosine, sine, g, right)
        return result

    def _field(self, cosine: FloatArray, sine: FloatArray, g: FloatArray, charges: FloatArray) -> FloatArray:
        """Derivative of the potential of charges (N, c) at the atoms, (N, 3, c)."""
        real, imaginary = cosine @ charges, sine @ charges
        number = len(g)
        along_real = (g[:, :, None] * real[:, None, :]).reshape(number, -1)
        along_imaginary = (g[:, :, None] * imaginary[:, None, :]).reshape(number, -1)
        field: FloatArray = cosine.T @ along_imaginary - sine.T @ along_real
        return field.reshape(self._atoms, 3, -1)

    def strain(self, left: FloatArray, right: FloatArray) -> FloatArray:
        """∂(leftᵀ A right_c)/∂ε, shape (3, 3, c): G·r does not change, ∂G_b/∂ε_ab = −G_a, ∂V/∂ε_ab = V δ_ab."""
        result = np.zeros((3, 3, right.shape[1]))
        for part in self._chunks():
            cosine, sine = self._rows(part)
            g = self._vectors[part]
            density = (cosine @ left)[:, None] * (cosine @ right) + (sine @ left)[:, None] * (sine @ right)
            bent = density * (2.0 * (self._inverse_four_kappa2 + 1.0 / self._squares[part]))[:, None]
            result += np.einsum("ka,kb,kc->abc", g, g, bent)
            result -= np.eye(3)[:, :, None] * density.sum(axis=0)
        return result


def _add_lower_gram(rows: FloatArray, out: FloatArray) -> None:
    """Add the lower triangle of rowsᵀ rows to ``out``, tile by tile in threads; tiles do not depend on their number."""
    number = rows.shape[1] // _TILE
    edges = [rows.shape[1] * tile // number for tile in range(number + 1)]
    tiles = [(i, j) for i in range(number) for j in range(i + 1)]

    def task(first: int, last: int) -> None:
        for i, j in tiles[first:last]:
            down, across = slice(edges[i], edges[i + 1]), slice(edges[j], edges[j + 1])
            # NumPy notices the symmetric products
            product = rows[:, down].T @ rows[:, across]
            out[down, across] += product if i != j else np.tril(product)

    work = np.cumsum([0, *(1 + (i != j) for i, j in tiles)])
    threads.run(task, work, 1)


@lru_cache(maxsize=4)
def _waves_of(cell: bytes, kappa: float, k_cut: float) -> tuple[IntArray, FloatArray, FloatArray, FloatArray]:
    """Miller indices (K, 3), vectors (K, 3), √w (K,) and G² (K,), kept for the last cells."""
    box = np.frombuffer(cell).reshape(3, 3)
    millers, vectors = reciprocal_vectors(box, k_cut)
    order = np.lexsort((millers[:, 2], millers[:, 1], millers[:, 0]))
    millers, vectors = np.ascontiguousarray(millers[order]), np.ascontiguousarray(vectors[order])
    squares = np.einsum("ka,ka->k", vectors, vectors)
    volume = abs(float(np.linalg.det(box)))
    weights = 8.0 * np.pi * COULOMB / volume * np.exp(-squares / (4.0 * kappa**2)) / squares
    return millers, vectors, np.sqrt(weights), squares


__all__ = ["HostOpenCoulomb", "HostRealSpace", "HostReciprocal", "real_space"]
