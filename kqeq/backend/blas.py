"""How many threads BLAS may use, and when.

Most matrix products here are small (the atoms of one frame times the representatives), and threads inside BLAS
cost more than they give: on a busy two-core machine a fit to 56 water frames took 130 s with two BLAS threads and 9 s
with one, because the threads spin while they wait for each other.  So frames are worked on with one BLAS thread, and
only the few large products and factorisations get them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def _controller() -> tuple[Any, int]:
    """The libraries in this process and the threads they had at first."""
    import scipy.linalg  # noqa: F401  # brings a BLAS of its own, which has to be loaded before it is listed
    from threadpoolctl import ThreadpoolController

    controller = ThreadpoolController().select(user_api="blas")
    return controller, max((library["num_threads"] for library in controller.info()), default=1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Work on small matrices: one BLAS thread inside the block."""
    controller, threads = _controller()
    if threads == 1:
        yield
        return
    with controller.limit(limits=1):
        yield


@contextmanager
def all_threads() -> Iterator[None]:
    """Work on a large matrix inside a block of :func:`one_thread`: all threads again."""
    controller, threads = _controller()
    if threads == 1:
        yield
        return
    with controller.limit(limits=threads):
        yield


__all__ = ["all_threads", "one_thread"]
