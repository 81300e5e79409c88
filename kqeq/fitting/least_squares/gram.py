"""Σ JᵀJ in place: tile by tile, on all threads, in single precision where that is harmless.

The matrix of the normal equations is cut into tiles of :data:`TILE` columns.  Each tile is a product of its own, so
threads share the work by tiles and the result is the same to the last digit whatever their number; only the lower
triangle is computed, and nothing of the size of the matrix is allocated beside it.

**Single precision.**  The product of two columns with norms a and b, rounded in single precision, is wrong by at most
about ε a b with ε = 6e-8, and typically by less than half of it.  In a feature map of thousands of representatives
most columns are small: those of the representatives that were chosen last add little.  Products of tiles whose errors
stay below :data:`HARMLESS`, against a prior precision of 1, are computed in single precision (twice as fast) and added
in double precision.  Problems with fewer than :data:`SINGLE_SIZE` parameters are always summed in double precision.

Dimensions: P parameters, n rows of one block.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from kqeq.backend import blas, is_numpy, namespace, threads, to_numpy, zeros
from kqeq.typing import Array, FloatArray

TILE = 512
"""Columns of a tile."""

SINGLE_SIZE = 2000
"""Number of parameters from which on single precision is considered."""

HARMLESS = 1e-4
"""Largest error of an element of one block's contribution, relative to the prior precision."""

SMALLEST = 10**8
"""Multiplications below which threads cost more than they gain."""

_EPSILON = float(np.finfo(np.float32).eps) / 2.0


class Gram:
    """The rows from ``first`` on of Σ JᵀJ; for ``first = 0`` all of it.

    Parameters
    ----------
    size : int
        P.
    first : int
        Columns before it are the linear parameters, whose products with each other are known already.
    like : array
        Where the rows are.

    Attributes
    ----------
    matrix : (P − first, P) array
        Complete after :meth:`finish`.
    """

    def __init__(self, size: int, first: int, like: Array) -> None:
        self.first = first
        self.matrix: Array = zeros((size - first, size), like)
        self._single: NDArray[np.float32] | None = None

    def add(self, rows: Array) -> None:
        """Add the products of a block of rows (n, P)."""
        if not is_numpy(self.matrix):
            self.matrix += rows[:, self.first :].T @ rows
            return
        single = None
        if int(rows.shape[1]) >= SINGLE_SIZE:
            if self._single is None or len(self._single) < len(rows):
                self._single = np.empty(rows.shape, np.float32)
            single = self._single[: len(rows)]
            single[...] = rows
        _add_tiles(self.matrix, np.asarray(rows), single, self.first)

    def finish(self) -> Array:
        """The complete matrix."""
        if is_numpy(self.matrix):
            _mirror(self.matrix, self.first)
        return self.matrix


def _add_tiles(matrix: FloatArray, rows: FloatArray, single: NDArray[np.float32] | None, first: int) -> None:
    size = rows.shape[1]
    edges = [*range(0, first, TILE), *range(first, size, TILE), size]
    tiles = [slice(a, b) for a, b in pairwise(edges)]
    begin = len(range(0, first, TILE))
    tasks = [(i, j) for i in range(begin, len(tiles)) for j in range(i + 1)]
    limits = np.full(len(tiles), np.inf)
    if single is not None:
        norms = np.sqrt(np.einsum("np,np->p", rows, rows))
        limits = np.array([float(norms[tile].max()) for tile in tiles])

    harmless = [_EPSILON * limits[i] * limits[j] < HARMLESS for i, j in tasks]

    def work(low: int, high: int) -> None:
        for (i, j), rounded in zip(tasks[low:high], harmless[low:high], strict=True):
            a, b = tiles[i], tiles[j]
            target = matrix[a.start - first : a.stop - first, b]
            if single is not None and rounded:
                target += single[:, a].T @ single[:, b]
            else:
                target += rows[:, a].T @ rows[:, b]

    # single precision takes half of the time: threads share the time, not the number of tiles
    areas = [len(rows) * TILE * TILE // (1 + rounded) for rounded in harmless]
    with blas.one_thread():
        threads.run(work, np.concatenate([[0], np.cumsum(areas)]), SMALLEST)


def _mirror(matrix: FloatArray, first: int) -> None:
    """Fill the upper triangle of the square part from the lower one."""
    square = matrix[:, first:]
    for start in range(0, len(square), TILE):
        stop = min(start + TILE, len(square))
        square[start:stop, stop:] = square[stop:, start:stop].T
        own = square[start:stop, start:stop]
        own[...] = np.tril(own) + np.tril(own, -1).T


def column_sums(matrix: Array, scale: Array) -> FloatArray:
    """Σ_i s_i |H_ij| for the columns of a matrix (n, P), on the host; in blocks of rows."""
    xp = namespace(matrix)
    size = int(matrix.shape[0])
    total = np.zeros(int(matrix.shape[1]))
    for start in range(0, size, TILE):
        part = slice(start, min(start + TILE, size))
        total += to_numpy(scale[part] @ xp.abs(matrix[part, :]))
    return total


__all__ = ["HARMLESS", "SINGLE_SIZE", "TILE", "Gram", "column_sums"]
