"""Arrays of any library: whose they are, where they live, how they move, how they are made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import array_api_compat
import numpy as np

from kqeq.typing import Array


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
    for x in arrays:
        if type(x) is not np.ndarray:
            return array_api_compat.array_namespace(*arrays)
    return _NUMPY if arrays else array_api_compat.array_namespace()


_NUMPY = array_api_compat.array_namespace(np.empty(0))
"""Asked for some tens of times in one prediction of a small molecule."""


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


def nbytes(x: Any) -> int | None:
    """Bytes of an array of any library; ``None`` for anything else."""
    if isinstance(x, np.ndarray):
        return x.nbytes
    if not array_api_compat.is_array_api_obj(x):
        return None
    return int(getattr(x, "nbytes", 8 * (array_api_compat.size(x) or 0)))


def to_numpy(x: Array) -> np.ndarray[Any, Any]:
    """Copy an array of any supported library to the host as a NumPy array (no copy for NumPy)."""
    if isinstance(x, np.ndarray):
        return x
    record = _record.get()
    if record is not None:
        record.to_host.append(nbytes(x) or 0)
    if is_cupy(x):
        return np.asarray(x.get())
    return np.asarray(buffer(x))


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


def buffer(x: Array) -> np.ndarray[Any, Any]:
    """The NumPy array inside an array of ``array_api_strict``, wherever that pretends to be."""
    inner = getattr(x, "_array", None)
    return inner if isinstance(inner, np.ndarray) else np.asarray(x)


def together(*arrays: Array) -> None:
    """Refuse arrays of different places, as CuPy does and a NumPy buffer would not.

    Raises
    ------
    TypeError
        If not all arrays live in the same library and on the same device.
    """
    for x in arrays:
        if type(x) is not np.ndarray:
            break
    else:
        return
    places = {place(x) for x in arrays}
    if len(places) > 1:
        raise TypeError(f"arrays of different places in one operation: {sorted(places)}")


def wrapped(values: np.ndarray[Any, Any], like: Array) -> Array:
    """The opposite of :func:`buffer`."""
    if isinstance(like, np.ndarray):
        return values
    return namespace(like).asarray(values, device=array_api_compat.device(like))


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


__all__ = [
    "CPU",
    "Device",
    "Transfers",
    "arange",
    "asarray_like",
    "buffer",
    "empty",
    "eye",
    "full",
    "is_cupy",
    "is_numpy",
    "namespace",
    "nbytes",
    "place",
    "record_transfers",
    "to_float",
    "to_numpy",
    "together",
    "wrapped",
    "zeros",
]
