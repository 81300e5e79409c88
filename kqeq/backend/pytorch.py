"""PyTorch, for networks that somebody has trained: imported when the first one is evaluated.

Packages of networks set the default dtype of torch, print, warn and leave names in the environment.  All of that stays
inside :func:`contained` and :func:`quiet`: what the rest of the process finds is as it was.  Double precision throughout,
whatever a network was trained in, so that forces are derivatives of energies to all digits that matter.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import threading
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kqeq.errors import InputError, UnsupportedError

SMALL = 100
"""Graphs with fewer atoms are worked on by one thread: more wait for each other."""

_lock = threading.RLock()
"""The default dtype belongs to the whole process: one thread at a time changes it."""


@contextlib.contextmanager
def contained(atoms: int | None = None) -> Iterator[Any]:
    """``torch`` in double precision; dtype, threads and switches are put back, output and warnings are dropped.

    Parameters
    ----------
    atoms : int, optional
        Size of the structure, where it limits the threads.
    """
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch

        dtype, threads, switch = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
        limited = atoms is not None and atoms < SMALL and threads > 1
        try:
            torch.set_default_dtype(torch.float64)
            if limited:
                torch.set_num_threads(1)
            with torch.enable_grad():
                yield torch
        finally:
            torch.set_default_dtype(dtype)
            torch.set_grad_enabled(switch)
            if limited:
                torch.set_num_threads(threads)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What a package prints and leaves in the environment while it loads a network is nobody's business."""
    before = dict(os.environ)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


def installed(package: str, wheel: str, extra: str, name: str) -> Path:
    """Folder of a package that a network needs.

    Raises
    ------
    UnsupportedError
        If it is not installed; the message names the extra.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise UnsupportedError(f'the network "{name}" needs {wheel}: pip install "kqeq[{extra}]"')
    return Path(spec.origin).parent


def file_digest(path: Path, name: str) -> str:
    """SHA-256 of a file.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read the network {name} from {path}: {error.strerror or error}") from None


__all__ = ["contained", "file_digest", "installed", "quiet"]
