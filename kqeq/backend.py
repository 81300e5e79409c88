"""The one place that knows which array library is in use.

Array code in this package is written against the array API standard; the namespace comes from the
array itself (:func:`namespace`), never from a global switch.  What the standard lacks (special
functions, scattered sums, FFTs, transfers) is here, for NumPy, CuPy and, through its NumPy buffer,
``array_api_strict`` (which the tests use to expose NumPy-only calls).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_compat
import numpy as np

from kqeq.typing import Array


def namespace(*arrays: Array) -> Any:
    """Array namespace shared by ``arrays``.

    Raises
    ------
    TypeError
        When the arrays belong to different libraries, or to none.
    """
    return array_api_compat.array_namespace(*arrays)


def is_numpy(x: Array) -> bool:
    """Whether ``x`` is a NumPy array."""
    return bool(array_api_compat.is_numpy_array(x))


def to_numpy(x: Array) -> np.ndarray[Any, Any]:
    """Copy an array of any supported library to the host as a NumPy array (no copy for NumPy)."""
    if isinstance(x, np.ndarray):
        return x
    if array_api_compat.is_cupy_array(x):
        return np.asarray(x.get())
    return np.asarray(x)


def asarray_like(x: Array, like: Array, *, dtype: Any = None) -> Array:
    """``x`` (NumPy array, scalar or sequence) in the library and on the device of ``like``."""
    xp = namespace(like)
    return xp.asarray(x, dtype=dtype, device=array_api_compat.device(like))


def _special(x: Array, pick: Callable[[Any], Callable[[Any], Any]]) -> Array:
    """Apply a function of ``scipy.special`` or of its CuPy twin."""
    if array_api_compat.is_cupy_array(x):
        import cupyx.scipy.special as cupy_special

        return pick(cupy_special)(x)
    from scipy import special

    values = pick(special)(to_numpy(x))
    return values if is_numpy(x) else asarray_like(values, x)


def erf(x: Array) -> Array:
    """Error function, elementwise."""
    return _special(x, lambda module: module.erf)


def erfc(x: Array) -> Array:
    """Complementary error function, elementwise."""
    return _special(x, lambda module: module.erfc)


def segment_sum(values: Array, index: Array, size: int) -> Array:
    """Sum ``values`` by ``index``: result[k] = Σ_p values[p] over index[p] = k, shape (size,)."""
    if array_api_compat.is_cupy_array(values):
        xp = namespace(values)
        return xp.bincount(index, weights=values, minlength=size)
    result = np.bincount(to_numpy(index), weights=to_numpy(values), minlength=size)
    return result if is_numpy(values) else asarray_like(result, values)


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
    if is_numpy(out) or array_api_compat.is_cupy_array(out):
        namespace(out).add.at(out, index, values)
        return out
    host = to_numpy(out).copy()
    np.add.at(host, to_numpy(index), to_numpy(values))
    return asarray_like(host, out)


def rfftn(mesh: Array) -> Array:
    """Fourier transform of a real three-dimensional array, the last axis halved."""
    if is_numpy(mesh):
        from scipy import fft

        return fft.rfftn(mesh)
    return namespace(mesh).fft.rfftn(mesh)


def irfftn(waves: Array, shape: tuple[int, int, int]) -> Array:
    """Inverse of :func:`rfftn` for a mesh of the given shape."""
    if is_numpy(waves):
        from scipy import fft

        return fft.irfftn(waves, s=shape)
    return namespace(waves).fft.irfftn(waves, s=shape, axes=(0, 1, 2))


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
    if dense or not (is_numpy(values) or array_api_compat.is_cupy_array(values)):
        xp = namespace(values)
        flat = segment_sum(values, rows * shape[1] + columns, shape[0] * shape[1])
        return xp.reshape(flat, shape)
    if is_numpy(values):
        from scipy import sparse

        return sparse.csr_array((values, (rows, columns)), shape=shape)
    import cupyx.scipy.sparse as cupy_sparse

    return cupy_sparse.csr_matrix((values, (rows, columns)), shape=shape)


__all__ = [
    "asarray_like",
    "erf",
    "erfc",
    "index_add",
    "irfftn",
    "is_numpy",
    "namespace",
    "pair_matrix",
    "rfftn",
    "scatter_add",
    "segment_sum",
    "to_numpy",
]
