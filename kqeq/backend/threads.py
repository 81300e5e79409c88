"""Threads of our own: for compiled kernels and for large sums.

Tasks are ordinary functions that release the interpreter lock and work on a range of items (the centres of a
descriptor, the tiles of a matrix); the ranges are handed to a pool of threads.  Every item writes what belongs to it,
so results do not depend on the number of threads.  (Numba's own parallel loops were avoided on purpose: they compile
several times longer, and their OpenMP layer aborts processes that were forked.)
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise

import numpy as np

from kqeq.errors import InputError
from kqeq.typing import IntArray

_override: ContextVar[int | None] = ContextVar("kqeq_threads", default=None)
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
_lock = threading.Lock()
_worker = threading.local()


def thread_count() -> int:
    """Threads that may be used.

    The innermost :func:`use_threads`, else ``NUMBA_NUM_THREADS`` or ``OMP_NUM_THREADS``, else the number
    of processors this process may run on.
    """
    if getattr(_worker, "busy", False):
        return 1  # a task of our own pool must not wait for others of the same pool
    chosen = _override.get()
    if chosen is not None:
        return chosen
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) > 0:
            return int(value)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Limit everything to ``count`` threads inside a ``with`` block (results do not change).

    Raises
    ------
    InputError
        If ``count`` is smaller than one.
    """
    if count < 1:
        raise InputError(f"use_threads got {count!r}; expected at least one thread")
    token = _override.set(int(count))
    try:
        yield
    finally:
        _override.reset(token)


def pool(threads: int) -> ThreadPoolExecutor:
    """A shared pool of worker threads; a forked child gets its own."""
    # threads do not survive a fork, so the process id is part of the key
    key = (os.getpid(), threads)
    with _lock:
        if key not in _pools:
            _pools[key] = ThreadPoolExecutor(
                threads, thread_name_prefix="kqeq", initializer=setattr, initargs=(_worker, "busy", True)
            )
        return _pools[key]


def ranges(work: IntArray, threads: int) -> list[tuple[int, int]]:
    """Split items into consecutive ranges of about equal work, a few for each thread.

    Parameters
    ----------
    work : (n + 1,) int array
        Cumulative work before each item; ``work[0] == 0``.
    """
    n = len(work) - 1
    parts = min(4 * threads, n)
    targets = work[-1] * np.arange(1, parts) / parts
    bounds = np.unique(np.concatenate([[0], np.searchsorted(work, targets), [n]]))
    return [(int(a), int(b)) for a, b in pairwise(bounds)]


def run(task: Callable[[int, int], None], work: IntArray, smallest: int) -> None:
    """Call ``task(first, last)`` over all items, in threads if the work is worth it.

    Parameters
    ----------
    task : callable
        Must release the interpreter lock and write only what belongs to its items.
    work : (n + 1,) int array
        Cumulative work before each item.
    smallest : int
        Total work below which threads cost more than they gain.
    """
    n = len(work) - 1
    if n < 2 or work[-1] < smallest:
        task(0, n)
        return
    threads = thread_count()
    if threads == 1:
        task(0, n)
        return
    futures = [pool(threads).submit(task, a, b) for a, b in ranges(work, threads)]
    for future in futures:
        future.result()


def run_parts(task: Callable[[int, int, int], None], work: IntArray, parts: int, smallest: int) -> None:
    """Call ``task(part, first, last)`` for a fixed number of ranges of about equal work, in threads if it is worth it.

    For sums: each part collects its own, so that the total does not depend on the number of threads.  Work that is not
    worth threads is one part.

    Parameters
    ----------
    task, work, smallest
        As for :func:`run`.
    parts : int
    """
    n = len(work) - 1
    if n < 2 or work[-1] < smallest:
        task(0, 0, n)
        return
    bounds = np.searchsorted(work, work[-1] * np.arange(1, parts) / parts)
    edges = [0, *bounds.tolist(), n]
    threads = thread_count()
    if threads == 1:
        for part, (first, last) in enumerate(pairwise(edges)):
            task(part, first, last)
        return
    futures = [
        pool(threads).submit(task, part, first, last) for part, (first, last) in enumerate(pairwise(edges))
    ]
    for future in futures:
        future.result()


__all__ = ["pool", "ranges", "run", "run_parts", "thread_count", "use_threads"]
