"""What the array API standard lacks, element by element, scattered or by Fourier transform.

Dimensions: P values, N rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kqeq.backend import threads
from kqeq.backend.arrays import arange, buffer, full, is_cupy, is_numpy, namespace, together, wrapped
from kqeq.typing import Array

_SMALLEST_THREADED = 50_000
"""Points of a mesh below which threads cost more than they gain."""


def _special(x: Array, pick: Callable[[Any], Callable[[Any], Any]]) -> Array:
    """Apply a function of ``scipy.special`` or of its CuPy twin."""
    if is_cupy(x):
        import cupyx.scipy.special as cupy_special

        return pick(cupy_special)(x)
    from scipy import special

    return wrapped(pick(special)(buffer(x)), x)


def erf(x: Array) -> Array:
    """Error function, elementwise."""
    return _special(x, lambda module: module.erf)


def erfc(x: Array) -> Array:
    """Complementary error function, elementwise."""
    return _special(x, lambda module: module.erfc)


def inverse_or_zero(x: Array) -> Array:
    """1/x for positive elements, 0 elsewhere."""
    xp = namespace(x)
    positive = x > 0.0
    return xp.where(positive, 1.0 / xp.where(positive, x, xp.ones_like(x)), xp.zeros_like(x))


def segment_sum(values: Array, index: Array, size: int) -> Array:
    """Sum ``values`` by ``index``: result[k] = Σ_p values[p] over index[p] = k, shape (size,)."""
    together(values, index)
    if is_cupy(values):
        return namespace(values).bincount(index, weights=values, minlength=size)
    return wrapped(np.bincount(buffer(index), weights=buffer(values), minlength=size), values)


def scatter_add(out: Array, rows: Array, columns: Array, values: Array) -> Array:
    """out[rows[p], columns[p]] += values[p], repeated indices adding up; returns the matrix.

    In place where the library can (NumPy, CuPy); the caller continues with what is returned.
    """
    xp = namespace(out)
    # one index is ten times faster than two; the reshaped array is a view
    flat = index_add(xp.reshape(out, (-1,)), rows * out.shape[1] + columns, values)
    return xp.reshape(flat, out.shape)


def index_add(out: Array, index: Array, values: Array) -> Array:
    """out[index[p]] += values[p] for one-dimensional arrays, repeated indices adding up; returns the result."""
    together(out, index, values)
    if is_numpy(out) or is_cupy(out):
        namespace(out).add.at(out, index, values)
        return out
    host = buffer(out).copy()
    np.add.at(host, buffer(index), buffer(values))
    return wrapped(host, out)


def put_rows(out: Array, index: Array, values: Array) -> Array:
    """out[index[p], ...] = values[p, ...] for different indices; returns the result (in place where possible)."""
    together(out, index, values)
    if is_numpy(out) or is_cupy(out):
        out[index] = values
        return out
    host = buffer(out).copy()
    host[buffer(index)] = buffer(values)
    return wrapped(host, out)


def pair_matrix(values: Array, rows: Array, columns: Array, shape: tuple[int, int], *, dense: bool) -> Any:
    """Matrix with ``values[p]`` at (rows[p], columns[p]), repeated indices adding up.

    Parameters
    ----------
    values, rows, columns : (P,) arrays
    shape : tuple
    dense : bool
        An array of the same library; otherwise a sparse matrix in CSR format (of SciPy or CuPy;
        libraries without sparse matrices get an array in any case).
    """
    if dense or not (is_numpy(values) or is_cupy(values)):
        xp = namespace(values)
        flat = segment_sum(values, rows * shape[1] + columns, shape[0] * shape[1])
        return xp.reshape(flat, shape)
    if is_numpy(values):
        from scipy import sparse

        return sparse.csr_array((values, (rows, columns)), shape=shape)
    import cupyx.scipy.sparse as cupy_sparse

    return cupy_sparse.csr_matrix((values, (rows, columns)), shape=shape)


def selection_matrix(rows: Array, size: int) -> Any:
    """(size, P) matrix with a 1 in row rows[p] of each column p: products with it sum by row.

    Sparse (CSC) where the library has sparse matrices.
    """
    number = int(rows.shape[0])
    ones, columns = full(number, 1.0, rows), arange(0, number + 1, rows)
    # one entry in each column: the layout is known and nothing has to be sorted
    if is_numpy(rows):
        from scipy import sparse

        return sparse.csc_array((ones, rows, columns), shape=(size, number))
    if is_cupy(rows):
        import cupyx.scipy.sparse as cupy_sparse

        return cupy_sparse.csc_matrix((ones, rows, columns), shape=(size, number))
    return pair_matrix(ones, rows, columns[:-1], (size, number), dense=True)


def _workers(points: int) -> int:
    """Threads for a transform; results do not depend on their number."""
    return 1 if points < _SMALLEST_THREADED else threads.thread_count()


def rfftn(mesh: Array) -> Array:
    """Fourier transform of a real three-dimensional array, the last axis halved."""
    if is_numpy(mesh):
        from scipy import fft

        return fft.rfftn(mesh, workers=_workers(mesh.size))
    return namespace(mesh).fft.rfftn(mesh)


def irfftn(waves: Array, shape: tuple[int, int, int]) -> Array:
    """Inverse of :func:`rfftn` for a mesh of the given shape."""
    if is_numpy(waves):
        from scipy import fft

        return fft.irfftn(waves, s=shape, workers=_workers(waves.size))
    return namespace(waves).fft.irfftn(waves, s=shape, axes=(0, 1, 2))


__all__ = [
    "erf",
    "erfc",
    "index_add",
    "inverse_or_zero",
    "irfftn",
    "pair_matrix",
    "put_rows",
    "rfftn",
    "scatter_add",
    "segment_sum",
    "selection_matrix",
]
