"""The one place that knows which array library is in use, and which device.

Array code in this package is written against the array API standard; the namespace comes from the
array itself (:func:`namespace`), never from a global switch.  What the standard lacks (special
functions, scattered sums, triangular solves, FFTs, transfers) is here, for NumPy, CuPy and, through its
NumPy buffer, ``array_api_strict`` (which the tests use to expose NumPy-only calls; its arrays on a device
other than the CPU refuse every silent conversion, as those of a GPU do).

Data move between host and device in :func:`asarray_like` and :func:`to_numpy` only, which
:func:`record_transfers` counts; :func:`to_float` reads single numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import array_api_compat
import numpy as np

from kqeq.typing import Array

HOST_MEMORY = 256 * 2**20
"""Bytes for temporary arrays in main memory."""

_DEVICE_SHARE = 8
"""One such part of a GPU's free memory is given to temporary arrays: results need room as well."""


@dataclass(frozen=True, eq=False)
class Device:
    """Where arrays live.

    Attributes
    ----------
    name : str
        ``"cpu"``, ``"cuda"``, or whatever a test calls its own.
    like : array
        An empty array that lives there; what is to go there is made like it.
    """

    name: str
    like: Array = field(repr=False)

    @property
    def is_host(self) -> bool:
        """Whether arrays are NumPy's own, for which there are compiled kernels."""
        return is_numpy(self.like)


CPU = Device("cpu", np.empty(0))
"""Main memory, NumPy."""


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
    return isinstance(x, np.ndarray) or bool(array_api_compat.is_numpy_array(x))


def is_cupy(x: Array) -> bool:
    """Whether ``x`` is a CuPy array."""
    return not isinstance(x, np.ndarray) and bool(array_api_compat.is_cupy_array(x))


def place(x: Array) -> tuple[str, str]:
    """Library and device of an array: the key of caches that hold a copy for each."""
    if isinstance(x, np.ndarray):
        return ("numpy", "cpu")
    return (namespace(x).__name__, str(array_api_compat.device(x)))


# ------------------------------------------------------------------------------------------- transfers


@dataclass
class Transfers:
    """What was moved between host and device.

    Attributes
    ----------
    to_device, to_host : list of int
        Bytes of every array that was moved.
    scalars : int
        Single numbers that were read from the device; each waits for what was computed before.
    """

    to_device: list[int] = field(default_factory=list)
    to_host: list[int] = field(default_factory=list)
    scalars: int = 0


_record: ContextVar[Transfers | None] = ContextVar("kqeq_transfers", default=None)


@contextmanager
def record_transfers() -> Iterator[Transfers]:
    """Count what moves between host and device inside the block."""
    record = Transfers()
    token = _record.set(record)
    try:
        yield record
    finally:
        _record.reset(token)


def to_numpy(x: Array) -> np.ndarray[Any, Any]:
    """Copy an array of any supported library to the host as a NumPy array (no copy for NumPy)."""
    if isinstance(x, np.ndarray):
        return x
    record = _record.get()
    if record is not None:
        record.to_host.append(nbytes(x) or 0)
    if is_cupy(x):
        return np.asarray(x.get())
    return np.asarray(_buffer(x))


def asarray_like(x: Array, like: Array, *, dtype: Any = None) -> Array:
    """``x`` (NumPy array, scalar or sequence) in the library and on the device of ``like``."""
    if isinstance(like, np.ndarray) and isinstance(x, np.ndarray) and dtype is None:
        return x
    xp = namespace(like)
    if not isinstance(like, np.ndarray) and (isinstance(x, np.ndarray) or not hasattr(x, "shape")):
        record = _record.get()
        if record is not None:
            record.to_device.append(int(np.asarray(x).nbytes))
    return xp.asarray(x, dtype=dtype, device=array_api_compat.device(like))


def to_float(x: Array) -> float:
    """One number from the device."""
    if not isinstance(x, np.ndarray | float):
        record = _record.get()
        if record is not None:
            record.scalars += 1
    return float(x)


def _buffer(x: Array) -> np.ndarray[Any, Any]:
    """The NumPy array inside an array of ``array_api_strict``, wherever that pretends to be."""
    inner = getattr(x, "_array", None)
    return inner if isinstance(inner, np.ndarray) else np.asarray(x)


def _wrapped(values: np.ndarray[Any, Any], like: Array) -> Array:
    """The opposite of :func:`_buffer`."""
    if isinstance(like, np.ndarray):
        return values
    return namespace(like).asarray(values, device=array_api_compat.device(like))


# -------------------------------------------------------------------------------------------- creation


def zeros(shape: int | tuple[int, ...], like: Array) -> Array:
    """Zeros (float64) in the library and on the device of ``like``."""
    if isinstance(like, np.ndarray):
        return np.zeros(shape)
    xp = namespace(like)
    return xp.zeros(shape, dtype=xp.float64, device=array_api_compat.device(like))


def empty(shape: int | tuple[int, ...], like: Array) -> Array:
    """An array (float64) without values in the library and on the device of ``like``."""
    if isinstance(like, np.ndarray):
        return np.empty(shape)
    xp = namespace(like)
    return xp.empty(shape, dtype=xp.float64, device=array_api_compat.device(like))


def full(shape: int | tuple[int, ...], value: float, like: Array) -> Array:
    """An array (float64) of one value in the library and on the device of ``like``."""
    return zeros(shape, like) + value


def arange(start: int, stop: int, like: Array) -> Array:
    """Whole numbers (int64) from ``start`` to below ``stop`` on the device of ``like``."""
    if isinstance(like, np.ndarray):
        return np.arange(start, stop)
    xp = namespace(like)
    return xp.arange(start, stop, dtype=xp.int64, device=array_api_compat.device(like))


def eye(size: int, like: Array) -> Array:
    """The identity (size, size) in the library and on the device of ``like``."""
    if isinstance(like, np.ndarray):
        return np.eye(size)
    xp = namespace(like)
    return xp.eye(size, dtype=xp.float64, device=array_api_compat.device(like))


# ---------------------------------------------------------------------------------------------- memory

_budget: ContextVar[int | None] = ContextVar("kqeq_memory", default=None)


@contextmanager
def limit_memory(size: int) -> Iterator[None]:
    """Give temporary arrays at most ``size`` bytes inside the block (results do not change)."""
    token = _budget.set(int(size))
    try:
        yield
    finally:
        _budget.reset(token)


def memory_budget(like: Array) -> int:
    """Bytes that temporary arrays on the device of ``like`` may take.

    That of the innermost :func:`limit_memory`, else a part of what the GPU has free, else :data:`HOST_MEMORY`.
    """
    chosen = _budget.get()
    if chosen is not None:
        return chosen
    if not is_cupy(like):
        return HOST_MEMORY
    import cupy

    free, _ = cupy.cuda.Device().mem_info
    return int((free + cupy.get_default_memory_pool().free_bytes()) // _DEVICE_SHARE)


def cache_budget(like: Array, on_host: int) -> int:
    """Bytes that may be kept on the device of ``like``: ``on_host`` there, half of what a GPU has free."""
    return memory_budget(like) * _DEVICE_SHARE // 2 if is_cupy(like) else on_host


def nbytes(x: Any) -> int | None:
    """Bytes of an array of any library; ``None`` for anything else."""
    if isinstance(x, np.ndarray):
        return x.nbytes
    if not array_api_compat.is_array_api_obj(x):
        return None
    return int(getattr(x, "nbytes", 8 * (array_api_compat.size(x) or 0)))


def chunk_elements(like: Array, arrays: int, on_host: int) -> int:
    """Elements that a chunk of work may have when ``arrays`` temporary arrays of that size exist at once.

    On the host ``on_host``, which keeps them in cache, unless :func:`limit_memory` says otherwise.
    """
    if isinstance(like, np.ndarray) and _budget.get() is None:
        return on_host
    return max(1, memory_budget(like) // (8 * arrays))


# -------------------------------------------------------------------------------- elementwise, scattered


def _special(x: Array, pick: Callable[[Any], Callable[[Any], Any]]) -> Array:
    """Apply a function of ``scipy.special`` or of its CuPy twin."""
    if is_cupy(x):
        import cupyx.scipy.special as cupy_special

        return pick(cupy_special)(x)
    from scipy import special

    return _wrapped(pick(special)(_buffer(x)), x)


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
    if is_cupy(values):
        return namespace(values).bincount(index, weights=values, minlength=size)
    return _wrapped(np.bincount(_buffer(index), weights=_buffer(values), minlength=size), values)


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
    if is_numpy(out) or is_cupy(out):
        namespace(out).add.at(out, index, values)
        return out
    host = _buffer(out).copy()
    np.add.at(host, _buffer(index), _buffer(values))
    return _wrapped(host, out)


def put_rows(out: Array, index: Array, values: Array) -> Array:
    """out[index[p], ...] = values[p, ...] for different indices; returns the result (in place where possible)."""
    if is_numpy(out) or is_cupy(out):
        out[index] = values
        return out
    host = _buffer(out).copy()
    host[_buffer(index)] = _buffer(values)
    return _wrapped(host, out)


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


# ------------------------------------------------------------------------------------- Fourier transforms


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


# ------------------------------------------------------------------------------------------ linear algebra


def cholesky(matrix: Array) -> Array | None:
    """Lower Cholesky factor, or None where there is none or it is not finite.

    LAPACK lets NaN pass, and CuPy by default returns garbage for matrices that are not positive definite.
    """
    try:
        if is_cupy(matrix):
            import cupyx

            with cupyx.errstate(linalg="raise"):
                lower = namespace(matrix).linalg.cholesky(matrix)
        else:
            from scipy import linalg

            lower = _wrapped(linalg.cholesky(_buffer(matrix), lower=True, check_finite=False), matrix)
    except np.linalg.LinAlgError:
        return None
    xp = namespace(lower)
    return lower if bool(xp.all(xp.isfinite(xp.linalg.diagonal(lower)))) else None


def solve_triangular(lower: Array, rhs: Array, *, transposed: bool = False) -> Array:
    """Solve L x = rhs (or Lᵀ x = rhs) for a lower triangular L (n, n), rhs of shape (n,) or (n, c)."""
    trans: Literal["N", "T"] = "T" if transposed else "N"
    if is_cupy(lower):
        import cupyx.scipy.linalg as cupy_linalg

        return cupy_linalg.solve_triangular(lower, rhs, lower=True, trans=trans, check_finite=False)
    from scipy import linalg

    solution = linalg.solve_triangular(
        _buffer(lower), _buffer(rhs), lower=True, trans=trans, check_finite=False
    )
    return _wrapped(np.asarray(solution), rhs)


def cho_solve(lower: Array, rhs: Array) -> Array:
    """Solve L Lᵀ x = rhs for a lower triangular L (n, n), rhs of shape (n,) or (n, c)."""
    if is_numpy(lower):
        from scipy import linalg

        return np.asarray(linalg.cho_solve((lower, True), rhs, check_finite=False))
    return solve_triangular(lower, solve_triangular(lower, rhs), transposed=True)


def inverse(matrix: Array) -> Array:
    """Inverse of a small matrix.

    Raises
    ------
    numpy.linalg.LinAlgError
        If it is singular (CuPy's default would be NaN).
    """
    if is_cupy(matrix):
        import cupyx

        with cupyx.errstate(linalg="raise"):
            return namespace(matrix).linalg.inv(matrix)
    return _wrapped(np.linalg.inv(_buffer(matrix)), matrix)


# ------------------------------------------------------------------------------------------------ CUDA


def cuda_device() -> Device:
    """The current CUDA device, after a small computation on it has succeeded.

    Raises
    ------
    ImportError
        Without CuPy.
    Exception
        Whatever CuPy raises where there is no device, or none that its CUDA version can use, or where the answer is
        wrong; :mod:`kqeq.devices` puts it into words.
    """
    import cupy

    like = array_api_compat.array_namespace(cupy.empty(0)).empty(0)
    trial = cupy.eye(4) + 1.0
    lower = cholesky(trial)
    if lower is None or float(abs(lower @ lower.T - trial).max()) > 1e-12:
        raise RuntimeError("a Cholesky factorisation of a 4×4 matrix gave a wrong result")
    return Device("cuda", like)


def cuda_versions() -> tuple[int, int]:
    """CUDA versions that the driver supports (0: no driver) and that CuPy was built for, as 1000 major + 10 minor."""
    import cupy

    return int(cupy.cuda.runtime.driverGetVersion()), int(cupy.cuda.runtime.runtimeGetVersion())


def cuda_name() -> str:
    """Name of the current CUDA device."""
    import cupy

    return str(cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode())


__all__ = [
    "CPU",
    "HOST_MEMORY",
    "Device",
    "Transfers",
    "arange",
    "asarray_like",
    "cache_budget",
    "cho_solve",
    "cholesky",
    "chunk_elements",
    "cuda_device",
    "cuda_name",
    "cuda_versions",
    "empty",
    "erf",
    "erfc",
    "eye",
    "full",
    "index_add",
    "inverse",
    "inverse_or_zero",
    "irfftn",
    "is_cupy",
    "is_numpy",
    "limit_memory",
    "memory_budget",
    "namespace",
    "nbytes",
    "pair_matrix",
    "place",
    "put_rows",
    "record_transfers",
    "rfftn",
    "scatter_add",
    "segment_sum",
    "selection_matrix",
    "solve_triangular",
    "to_float",
    "to_numpy",
    "zeros",
]
