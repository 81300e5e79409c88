"""The one file format of the package: a ZIP archive of a JSON header and plain arrays.

Versioned, without pickle (a pickle can run code), written atomically, and the same bits for the same content.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from kqeq._version import __version__
from kqeq.errors import ModelFileError
from kqeq.io.atomic_write import atomic_path


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
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(
            _member("header.json"), json.dumps(full, indent=1, ensure_ascii=False, default=_plain)
        )
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(_member(f"{name}.npy"), buffer.getvalue())


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
    try:
        with zipfile.ZipFile(source) as archive:
            names = set(archive.namelist())
            if "header.json" not in names:
                raise ModelFileError(f"{source} is a ZIP archive but no {what} (it has no header.json)")
            header = json.loads(archive.read("header.json"))
            _check_header(header, source, kind, version, what)
            arrays = {
                name.removesuffix(".npy"): _read_array(archive, name)
                for name in names
                if name.endswith(".npy")
            }
    except FileNotFoundError:
        raise ModelFileError(f"there is no {what} {source}") from None
    except IsADirectoryError:
        raise ModelFileError(f"{source} is a folder, not a {what}") from None
    except (zipfile.BadZipFile, EOFError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelFileError(
            f"{source} is no {what}, or is truncated or damaged ({error}); {remedy}"
        ) from None
    except ModelFileError:
        raise
    except OSError as error:
        raise ModelFileError(f"cannot read the {what} {source}: {error.strerror or error}") from None
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or a compression that Python lacks
        raise ModelFileError(f"{source} is no {what} ({error})") from None
    return header, arrays


def _member(name: str) -> zipfile.ZipInfo:
    """A member with a fixed date, so that equal content gives equal files."""
    return zipfile.ZipInfo(name, date_time=(2020, 1, 1, 0, 0, 0))


def _read_array(archive: zipfile.ZipFile, name: str) -> Any:
    try:
        return np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)
    except ValueError as error:
        raise ModelFileError(
            f"{archive.filename}: the array {name} cannot be read ({error}); files with pickled objects are refused "
            "because they can run code"
        ) from None


def _check_header(header: Any, source: Path, kind: str, version: int, what: str) -> None:
    if not isinstance(header, dict) or header.get("format") != kind:
        raise ModelFileError(f"{source} is no {what} (its header does not say so)")
    found = header.get("version")
    if not isinstance(found, int) or found > version:
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
