"""How much memory temporary arrays may take, and what may be kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from kqeq.backend.arrays import is_cupy
from kqeq.typing import Array

HOST_MEMORY = 256 * 2**20
"""Bytes for temporary arrays in main memory."""

_DEVICE_SHARE = 8
"""One such part of a GPU's free memory is given to temporary arrays: results need room as well."""


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


def chunk_elements(like: Array, arrays: int, on_host: int) -> int:
    """Elements that a chunk of work may have when ``arrays`` temporary arrays of that size exist at once.

    On the host ``on_host``, which keeps them in cache, unless :func:`limit_memory` says otherwise.
    """
    if isinstance(like, np.ndarray) and _budget.get() is None:
        return on_host
    return max(1, memory_budget(like) // (8 * arrays))


__all__ = [
    "HOST_MEMORY",
    "cache_budget",
    "chunk_elements",
    "limit_memory",
    "memory_budget",
]
