"""Loading modules of compiled kernels, with an announcement if they must be compiled."""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

LOOPS: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "error_model": "numpy",
    "no_cfunc_wrapper": True,
    "no_rewrites": True,
}
"""Options of loops that are called from Python only: what numba need not look for and write down."""

LEAN: dict[str, Any] = {**LOOPS, "_nrt": False}
"""The same for loops that make no arrays: compiled in a sixth less time."""

_said: set[str] = set()
_PACKAGE = __name__.partition(".")[0]


@contextmanager
def announced_compilation() -> Iterator[None]:
    """Say on stderr, once in a process, when numba begins to compile kernels of this package inside the block.

    Kernels that come from its disk cache are not compiled, however long a busy machine takes to read them.
    """
    from numba.core import event  # numba is slow to load and not needed by everybody

    class Compilation(event.Listener):
        def on_start(self, event: Any) -> None:
            function = getattr(event.data.get("dispatcher"), "py_func", None)
            if str(getattr(function, "__module__", "")).startswith(_PACKAGE) and not _said:
                _said.add(_PACKAGE)
                text = "kqeq: compiling the descriptor kernels (once; they are cached on disk) ..."
                print(text, file=sys.stderr, flush=True)

        def on_end(self, event: Any) -> None:
            """Nothing is said of the end."""

    with event.install_listener("numba:compile", Compilation()):
        yield


def load(module: str) -> ModuleType:
    """Import a module of kernels, which compiles them or reads them from numba's disk cache.

    Where numba finds no directory to write to (package and home read-only), a temporary one serves
    this process.
    """
    with announced_compilation():
        try:
            return import_module(module)
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
            from numba import config

            # private and short-lived: a predictable name would let others plant compiled code
            folder = tempfile.mkdtemp(prefix="kqeq-numba-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            setattr(config, "CACHE_DIR", folder)  # noqa: B010 (numba defines it at run time)
            return import_module(module)


__all__ = ["LEAN", "LOOPS", "announced_compilation", "load"]
