"""Kernel features of training frames on disk, for fits whose features do not fit into memory.

One file of plain numbers per frame, in a folder whose name is a hash of everything that determines kernel features
but their scale: kernel settings, representatives, and the version of the package; the name of the file is a hash of
the structure.  Other settings and other structures never meet each other's files, other noises and prior spreads (a
search by evidence) use the same ones.  Files appear whole or not at all, several processes may read and write the
same folder, and a file that is missing, damaged (its checksum, which includes its name, tells) or of a wrong size
counts as not there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from numbers import Real
from os import PathLike
from pathlib import Path

import numpy as np

from kqeq._version import __version__
from kqeq.descriptors.conditioned import condition_of
from kqeq.errors import InputError
from kqeq.frames.structures import Structure
from kqeq.kernels.feature_map import FeatureMap
from kqeq.typing import FloatArray

DEFAULT_BUDGET = 20_000_000_000
"""Bytes on disk where no budget is stated."""

_FOLDER = "kqeq-features"

_MAGIC = b"kqeq features 1\n"
_HEAD = struct.Struct("<16sQI")


@dataclass(frozen=True)
class DiskCache:
    """Where a fit may keep kernel features that memory has no room for.

    Parameters
    ----------
    path : path-like
        An existing folder; on a fast local disk.
    budget : int
        Bytes that the files in it may take.
    keep : bool
        Whether they stay for other fits to the same structures with the same representatives; otherwise they are
        removed when the fit ends.
    """

    path: str | PathLike[str]
    budget: float = DEFAULT_BUDGET
    keep: bool = False

    @contextmanager
    def open(self) -> Iterator[CacheFolder]:
        """The folder, for the duration of a fit.

        Raises
        ------
        InputError
            If it does not exist or cannot be written to, or for a budget that is not positive.
        """
        if not isinstance(self.budget, Real) or not np.isfinite(float(self.budget)) or self.budget <= 0:
            raise InputError(f"DiskCache(budget={self.budget!r}): expected a positive number of bytes")
        parent = Path(self.path)
        if not parent.is_dir():
            raise InputError(f"cache={os.fspath(self.path)!r} is no folder; create it first")
        try:
            own = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}-", dir=parent))
        except OSError as error:
            raise InputError(
                f"cannot write to the cache {parent}: {error.strerror or error}; choose another folder"
            ) from None
        try:
            if self.keep:
                try:
                    own.rmdir()
                    own = parent / _FOLDER
                    own.mkdir(exist_ok=True)
                except OSError as error:
                    raise InputError(
                        f"cannot write to the cache {parent}: {error.strerror or error}; choose another folder"
                    ) from None
            yield CacheFolder(own, int(self.budget))
        finally:
            if not self.keep:
                shutil.rmtree(own, ignore_errors=True)


@dataclass(frozen=True)
class CacheFolder:
    """A folder of features and how much may be in it.

    Attributes
    ----------
    path : Path
    budget : int
        Bytes.
    """

    path: Path
    budget: int

    def files(self, maps: Sequence[Sequence[FeatureMap]]) -> CacheFiles:
        """The part of the folder that belongs to some feature maps (by what they are for).

        What others have taken is not available; nothing is, if the folder is there no more.
        """
        name = _hash_maps(maps)
        target = self.path / name
        taken = 0
        try:
            for file in self.path.glob("*/*"):
                with suppress(FileNotFoundError):
                    taken += 0 if file.parent.name == name else file.stat().st_size
            target.mkdir(exist_ok=True)
        except OSError:
            taken = self.budget
        descriptors = [m.descriptor for role in maps for m in role]
        told = any(d.knows_charge or condition_of(d) is not None for d in descriptors)
        return CacheFiles(target, max(0, self.budget - taken), told)


@dataclass(frozen=True)
class CacheFiles:
    """Features by structure for some feature maps.

    Attributes
    ----------
    path : Path
    budget : int
        Bytes.
    charged : bool
        Whether features depend on charges and spins, and not on the geometry alone.
    """

    path: Path
    budget: int
    charged: bool = False

    def share(self, part: float) -> CacheFiles:
        """The same files with a part of the budget."""
        return replace(self, budget=int(part * self.budget))

    def read(self, structure: Structure, size: int) -> FloatArray | None:
        """The numbers of a structure; ``None`` if they are not there."""
        file = self._file(structure)
        try:
            with file.open("rb") as handle:
                found = handle.read(_HEAD.size)
                values = np.fromfile(handle, dtype=np.float64, count=size)
                more = handle.read(1)
        except (OSError, ValueError, MemoryError):
            return None
        if values.shape != (size,) or more or found != self._head(file, values):
            return None
        return values

    def write(self, structure: Structure, values: FloatArray) -> bool:
        """Store the numbers of a structure; False if the disk refuses."""
        target = self._file(structure)
        values = np.ascontiguousarray(values, dtype=np.float64)
        try:
            descriptor, name = tempfile.mkstemp(dir=self.path, prefix=".", suffix=".part")
            try:
                with os.fdopen(descriptor, "wb") as handle:
                    handle.write(self._head(target, values))
                    handle.write(values.data)
                os.replace(name, target)
            except BaseException:
                with suppress(OSError):
                    os.unlink(name)
                raise
        except OSError:  # the disk is full, or the folder was removed: a cache may fail, a fit must not
            return False
        return True

    def _head(self, file: Path, values: FloatArray) -> bytes:
        """What stands before the numbers: how many, and a sum over them and over what they belong to."""
        owner = f"{file.parent.name}/{file.name}".encode()
        return _HEAD.pack(_MAGIC, len(values), zlib.crc32(values.data, zlib.crc32(owner)))

    def _file(self, structure: Structure) -> Path:
        digest = hashlib.sha256()
        for part in (structure.numbers, structure.positions, structure.cell, structure.pbc):
            digest.update(str(part.dtype).encode() + str(part.shape).encode() + part.tobytes())
        if self.charged:
            digest.update(repr((structure.total_charge, structure.multiplicity)).encode())
            for given in (structure.fragments, structure.fragment_charges, structure.fragment_spins):
                digest.update(b"none" if given is None else given.tobytes())
        return self.path / f"{digest.hexdigest()[:40]}.features"


def _hash_maps(maps: Sequence[Sequence[FeatureMap]]) -> str:
    digest = hashlib.sha256(__version__.encode())
    for role in maps:
        digest.update(b"map")
        for feature_map in role:
            digest.update(f"{feature_map.descriptor!r} {feature_map.zeta!r} {feature_map.species!r}".encode())
            for z, rows in feature_map.representatives.items():
                digest.update(f"{z} {rows.shape}".encode())
                for part in (rows.data, rows.indices, rows.indptr):
                    digest.update(part.tobytes())
    return digest.hexdigest()[:40]


def disk_cache(cache: str | PathLike[str] | DiskCache | None) -> DiskCache | None:
    """What users give as ``cache``.

    Raises
    ------
    InputError
    """
    if cache is None or isinstance(cache, DiskCache):
        return cache
    if isinstance(cache, (str, PathLike)):
        return DiskCache(cache)
    raise InputError(f"cache is {cache!r}; expected a folder, kqeq.DiskCache(folder, budget=bytes) or None")


__all__ = ["DEFAULT_BUDGET", "CacheFiles", "CacheFolder", "DiskCache", "disk_cache"]
