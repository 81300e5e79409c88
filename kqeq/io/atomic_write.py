"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import errno
import os
import re
import socket
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path

from kqeq.errors import InputError, KQEqError, OutputError


def check_writable(path: str | PathLike[str]) -> None:
    """Make sure that a file can be written at ``path``, without touching what is there.

    Raises
    ------
    InputError
        If the directory does not exist, the path is a directory, or writing is not permitted.
    """
    if str(path) == "-":
        raise InputError("standard output (-) is not written to; give a file name")
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
        descriptor, name = _temporary(folder, target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}; choose another folder") from None
    os.close(descriptor)
    os.unlink(name)
    if target.exists() and not os.access(target, os.W_OK):
        raise InputError(f"cannot write {target}: the file is write-protected")


@contextmanager
def atomic_path(path: str | PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its place when the block succeeds.

    The data are flushed to disk before the rename, so that after a crash either the old or the new file is there.  What
    processes that were killed have left behind of earlier attempts is removed.

    Raises
    ------
    InputError
        If the path cannot be written.
    OutputError
        If the operating system refuses on the way, because the disk is full for example.
    """
    check_writable(path)
    target = Path(path).resolve()  # a link stays a link; what it points to is replaced
    special = target.exists() and not target.is_file()
    try:
        if special:
            yield target  # a device or a pipe, /dev/null for example: nothing to replace
            return
        _remove_leftovers(target)
        descriptor, name = _temporary(target.parent, target)
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
            with suppress(OSError):
                temporary.unlink()
    except OSError as error:
        if isinstance(error, KQEqError):
            raise
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}; "
            f"{'make room, or ' if error.errno in _FULL else ''}choose another folder. "
            f"{'' if special else 'A file that was there before is unchanged'}".rstrip()
        ) from error


_FULL = (errno.ENOSPC, errno.EDQUOT)

_STALE = 86_400.0
"""Seconds after which a temporary file of a process that cannot be looked up counts as left behind."""


def _temporary(folder: Path, target: Path) -> tuple[int, str]:
    """A new file beside the target, named after this process."""
    prefix = f".{target.name}.{os.getpid()}-{_host()}."
    return tempfile.mkstemp(dir=folder, prefix=prefix, suffix=target.suffix)


def _host() -> str:
    """A short mark of this machine: process numbers mean nothing on another one that shares the folder."""
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _remove_leftovers(target: Path) -> None:
    """Remove temporary files of the target whose process is gone; files of living ones may be half written."""
    pattern = re.compile(
        re.escape(f".{target.name}.") + r"(?:(\d+)-([0-9a-f]{8})\.)?[a-z0-9_]{8}" + re.escape(target.suffix)
    )
    with suppress(OSError):
        for name in os.listdir(target.parent):
            match = pattern.fullmatch(name)
            if match is None:
                continue
            file = target.parent / name
            with suppress(OSError):
                old = time.time() - file.stat().st_mtime > _STALE
                if old or (match[1] is not None and match[2] == _host() and not _alive(int(match[1]))):
                    file.unlink()


def _alive(process: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # somebody else's
    return True


__all__ = ["atomic_path", "check_writable"]
