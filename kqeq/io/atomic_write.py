"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path

from kqeq.errors import InputError


def check_writable(path: str | PathLike[str]) -> None:
    """Make sure that a file can be written at ``path``, without touching what is there.

    Raises
    ------
    InputError
        If the directory does not exist, the path is a directory, or writing is not permitted.
    """
    target = Path(path)
    try:
        folder, is_folder = target.resolve().parent, target.is_dir()
    except OSError as error:
        raise InputError(
            f"cannot write {target}: {error.strerror or error}; choose another file name"
        ) from None
    if is_folder:
        raise InputError(f"cannot write {target}: it is a directory; give a file name")
    if not folder.is_dir():
        raise InputError(f"cannot write {target}: the folder {folder} does not exist; create it first")
    try:
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=f".{target.name}.")
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}; choose another folder") from None
    os.close(descriptor)
    os.unlink(name)
    if target.exists() and not os.access(target, os.W_OK):
        raise InputError(f"cannot write {target}: the file is write-protected")


@contextmanager
def atomic_path(path: str | PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its place when the block succeeds.

    The data are flushed to disk before the rename, so that after a crash either the old or the new file is there.

    Raises
    ------
    InputError
        If the path cannot be written.
    """
    check_writable(path)
    target = Path(path).resolve()  # a link stays a link; what it points to is replaced
    if target.exists() and not target.is_file():
        yield target  # a device or a pipe, /dev/null for example: nothing to replace
        return
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=target.suffix)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        # mkstemp makes files private; give the result the usual permissions
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, target)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


__all__ = ["atomic_path", "check_writable"]
