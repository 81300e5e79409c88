"""The one file format of the package: a ZIP archive of a JSON header and plain arrays.

Versioned, without pickle (a pickle can run code), written atomically, and the same bits for the same content.  The
header holds a digest of everything else and of itself, so that a file whose content was changed is noticed although
each member has a valid sum of its own; files of version 0.1 have none.

What is read is not trusted: only regular files, uncompressed members (so that nothing takes more memory than the file
has bytes), each name once, headers of arrays that match one pattern (NumPy's own reader evaluates them), numbers only.
What the numbers mean is checked by the caller, with :mod:`kqeq.io.schema`.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import stat
import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from kqeq._version import __version__
from kqeq.errors import ModelFileError
from kqeq.io.atomic_write import atomic_path

MAX_HEADER = 1 << 26
"""Bytes of a header beyond which a file is refused."""


def write_archive(
    path: str | PathLike[str],
    kind: str,
    version: int,
    header: Mapping[str, Any],
    arrays: Mapping[str, Any],
) -> None:
    """Write header and arrays.

    Parameters
    ----------
    path : path-like
    kind : str
        What the file is, for example ``"kqeq-model"``.
    version : int
        Version of the layout of this kind.
    header : mapping
        Plain data.
    arrays : mapping of str to array

    Raises
    ------
    InputError
        If the path cannot be written.
    """
    full = {"format": kind, "version": version, "kqeq": __version__, **header}
    full = json.loads(json.dumps(full, default=_plain))
    members = {f"{name}.npy": _array_bytes(array) for name, array in arrays.items()}
    full["digest"] = _digest(full, members)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_member("header.json"), json.dumps(full, indent=1, ensure_ascii=False))
        for name, content in members.items():
            archive.writestr(_member(name), content)


def read_archive(
    path: str | PathLike[str], kind: str, version: int, what: str, remedy: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read header and arrays.

    Parameters
    ----------
    path : path-like
    kind, version :
        What the file has to be, and the newest layout that is understood.
    what, remedy : str
        Name such a file in messages, and what to do about a bad one.

    Returns
    -------
    dict, dict of str to array

    Raises
    ------
    ModelFileError
        If the file is missing, truncated, damaged, of another kind, from a newer version, or holds pickles.
    """
    source = Path(path)
    bad = f"{source} is no {what}, or is truncated or damaged"
    try:
        kind_of_file = os.stat(source).st_mode
        if stat.S_ISDIR(kind_of_file):
            raise ModelFileError(f"{source} is a folder, not a {what}")
        if not stat.S_ISREG(kind_of_file):
            raise ModelFileError(f"{source} is no regular file (a device or a pipe), so it is no {what}")
        with zipfile.ZipFile(source) as archive:
            _check_members(archive, os.path.getsize(source), bad, remedy)
            if "header.json" not in archive.namelist():
                raise ModelFileError(f"{source} is a ZIP archive but no {what} (it has no header.json)")
            header = _parse_header(archive.read("header.json"))
            _check_header(header, source, kind, version, what)
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            members = {name: archive.read(name) for name in names}
        arrays = {name.removesuffix(".npy"): _read_array(source, name, members[name]) for name in names}
    except FileNotFoundError:
        raise ModelFileError(f"there is no {what} {source}") from None
    except ModelFileError:
        raise
    except MemoryError:
        raise ModelFileError(f"{source} does not fit into memory; if it should, {remedy}") from None
    except OSError as error:
        raise ModelFileError(f"cannot read the {what} {source}: {error.strerror or error}") from None
    except Exception as error:  # parsers of ZIP and JSON fail in as many ways as files can be damaged
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelFileError(f"{bad} ({reason}); {remedy}") from None
    stored = header.pop("digest", None)
    if stored is not None and stored != _digest(header, members):
        raise ModelFileError(
            f"{source} is damaged or was changed after it was written (its content does not give the digest in its "
            f"header); {remedy}"
        )
    return header, arrays


def _check_members(archive: zipfile.ZipFile, size: int, bad: str, remedy: str) -> None:
    """Refuse what would be ambiguous, or larger than it looks."""
    members = archive.infolist()
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ModelFileError(f"{bad} (it holds {twice[:100]} twice); {remedy}")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise ModelFileError(
                f"{bad} ({member.filename[:100]} is compressed, which kqeq never does); {remedy}"
            )
    if sum(member.file_size for member in members) > size:
        raise ModelFileError(f"{bad} (its members announce more bytes than the file has); {remedy}")
    header = next((member for member in members if member.filename == "header.json"), None)
    if header is not None and header.file_size > MAX_HEADER:
        raise ModelFileError(f"{bad} (a header of {header.file_size} bytes); {remedy}")


def _parse_header(data: bytes) -> Any:
    """The header, in which no key may occur twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            raise ValueError("a key of the header occurs twice")
        return result

    return json.loads(data.decode("utf-8"), object_pairs_hook=unique)


def _digest(header: Mapping[str, Any], members: Mapping[str, bytes]) -> str:
    """A sum over the header and all arrays."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(members):
        digest.update(f"{name} {len(members[name])} ".encode("utf-8", "surrogatepass"))
        digest.update(members[name])
    return digest.hexdigest()


def _array_bytes(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _member(name: str) -> zipfile.ZipInfo:
    """A member with a fixed date, so that equal content gives equal files."""
    return zipfile.ZipInfo(name, date_time=(2020, 1, 1, 0, 0, 0))


_ARRAY_HEADER = re.compile(
    rb"\{'descr': '([<>|][A-Za-z]\d{1,4})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,15}, ?)*(?:\d{1,15},?)?)\), ?\} *\n"
)
"""What NumPy writes before the numbers."""


def _read_array(source: Path, name: str, data: bytes) -> Any:
    """An array of float64, int32 or int64 numbers."""
    length = int.from_bytes(data[8:10], "little")
    match = _ARRAY_HEADER.fullmatch(data[10 : 10 + length])
    if data[:8] != b"\x93NUMPY\x01\x00" or match is None or match[1][1:] not in (b"f8", b"i4", b"i8"):
        raise ModelFileError(
            f"{source}: the array {name} cannot be read (it is damaged, or holds something else than float64, int32 or "
            "int64 numbers); files with pickled objects are refused because they can run code"
        )
    shape = tuple(int(n) for n in match[3].decode().replace(" ", "").split(",") if n)
    dtype = np.dtype(match[1].decode())
    if math.prod(shape) * dtype.itemsize != len(data) - 10 - length or len(shape) > 3:
        raise ModelFileError(
            f"{source}: the array {name} cannot be read: it announces the shape {shape} but holds "
            f"{len(data) - 10 - length} bytes; the file is damaged"
        )
    flat = np.frombuffer(data, dtype, offset=10 + length).astype(dtype.newbyteorder("="))
    return flat.reshape(shape, order="F" if match[2] == b"True" else "C")


def _check_header(header: Any, source: Path, kind: str, version: int, what: str) -> None:
    if not isinstance(header, dict) or header.get("format") != kind:
        raise ModelFileError(f"{source} is no {what} (its header does not say so)")
    found = header.get("version")
    if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= version:
        raise ModelFileError(
            f"{source} has file version {found}, written by kqeq {header.get('kqeq')}; this is kqeq {__version__}, "
            f"which reads versions up to {version}. Upgrade with pip install --upgrade kqeq"
        )


def _plain(value: Any) -> Any:
    """What JSON does not know: numbers of NumPy (from a grid search, for example) and read-only mappings."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} cannot be stored in a model file")


__all__ = ["read_archive", "write_archive"]
