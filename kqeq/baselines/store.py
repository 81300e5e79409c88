"""Results of baselines on disk, so that a training frame is computed once.

One SQLite file for all; the key of a result is a hash of the baseline's name and version and of everything it depends
on: elements, positions, cell, periodicity, total charge, field, multiplicity.  Values are plain arrays.  Several
processes may use the file; what cannot be read counts as not there.

The folder is ``$KQEQ_BASELINE_CACHE``, or ``kqeq`` in the user's cache folder (``$XDG_CACHE_HOME``, ``~/.cache``);
``KQEQ_BASELINE_CACHE=off`` keeps nothing.
"""

from __future__ import annotations

import hashlib
import io
import os
import sqlite3
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

import numpy as np

from kqeq.baselines.combine import AtReferenceCharge
from kqeq.baselines.protocol import Baseline, BaselineResult, Capabilities
from kqeq.frames.structures import Structure

VARIABLE = "KQEQ_BASELINE_CACHE"

_VERSION = b"1"


def default_folder() -> Path | None:
    """Where results are kept; ``None`` if nowhere."""
    given = os.environ.get(VARIABLE)
    if given is not None:
        return None if given.lower() in ("", "off", "0") else Path(given)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "kqeq"


def result_key(baseline: Baseline, structure: Structure) -> str | None:
    """The key of one result; ``None`` where a name and a version do not determine it."""
    if isinstance(baseline, AtReferenceCharge):
        return result_key(baseline.baseline, baseline.at_reference(structure))
    version = baseline.describe()
    if not version:
        return None
    digest = hashlib.sha256(_VERSION)
    cell = structure.cell if structure.periodic else np.zeros((3, 3))
    conditions = np.array(
        [structure.total_charge, -1.0 if structure.multiplicity is None else structure.multiplicity]
    )
    for part in (
        baseline.name.encode(),
        version.encode(),
        *(
            np.ascontiguousarray(a).tobytes()
            for a in (
                structure.numbers.astype(np.int64),
                structure.positions + 0.0,  # no negative zeros
                cell + 0.0,
                structure.pbc,
                structure.external_field + 0.0,
                conditions + 0.0,
            )
        ),
    ):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


class ResultStore:
    """The file; every method may fail silently, because results can be computed again.

    Parameters
    ----------
    folder : path-like or None
        ``None`` keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.path = None if folder is None else folder / "baselines.sqlite"

    @classmethod
    def default(cls) -> ResultStore:
        """In the default folder."""
        return cls(default_folder())

    def get(self, key: str | None, extras: Collection[str] = ()) -> BaselineResult | None:
        """A result that has all of ``extras``."""
        if key is None or self.path is None or not self.path.exists():
            return None
        try:
            with closing(sqlite3.connect(self.path, timeout=30.0)) as connection:
                row = connection.execute("SELECT value, extras FROM results WHERE key = ?", (key,)).fetchone()
            if row is None or not set(extras) <= set(row[1].split()):
                return None
            return _unpack(row[0])
        except (sqlite3.Error, OSError, ValueError, EOFError, KeyError, TypeError):
            return None

    def put(self, key: str | None, result: BaselineResult, extras: Collection[str] = ()) -> None:
        """Keep a result that was computed with ``extras``."""
        if key is None or self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=30.0)) as connection, connection:
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, extras TEXT, value BLOB)"
                )
                connection.execute(
                    "INSERT OR REPLACE INTO results VALUES (?, ?, ?)",
                    (key, " ".join(sorted(extras)), _pack(result)),
                )
        except (sqlite3.Error, OSError):
            return  # a full disk or a damaged file must not end a fit


class Stored:
    """A baseline whose results are looked up first, and kept.

    Parameters
    ----------
    baseline : Baseline
    store : ResultStore
    """

    def __init__(self, baseline: Baseline, store: ResultStore) -> None:
        self.baseline = baseline
        self.store = store

    @property
    def name(self) -> str:
        """As the baseline."""
        return self.baseline.name

    @property
    def capabilities(self) -> Capabilities:
        """As the baseline."""
        return self.baseline.capabilities

    def charge_held(self, structure: Structure) -> float:
        """As the baseline."""
        return self.baseline.charge_held(structure)

    def check(self, structure: Structure) -> None:
        """As the baseline."""
        self.baseline.check(structure)

    def evaluate(self, structure: Structure, extras: Collection[str] = ()) -> BaselineResult:
        """From the file where it is there."""
        key = result_key(self.baseline, structure)
        found = self.store.get(key, extras)
        if found is None:
            found = self.baseline.evaluate(structure, extras)
            self.store.put(key, found, extras)
        return found

    def session(self) -> Baseline:
        """Of the baseline: structures of a trajectory do not come again."""
        return self.baseline.session()

    def describe(self) -> str:
        """As the baseline."""
        return self.baseline.describe()


def stored(baseline: Baseline | None) -> Baseline | None:
    """The baseline with its results kept in the default folder; for frames that are looked at again."""
    return None if baseline is None else Stored(baseline, ResultStore.default())


def _pack(result: BaselineResult) -> bytes:
    """Names and arrays one after another."""
    buffer = io.BytesIO()
    for name, value in result._asdict().items():
        if value is not None:
            buffer.write(f"{name}\n".encode())
            np.lib.format.write_array(buffer, np.ascontiguousarray(value), allow_pickle=False)
    return buffer.getvalue()


def _unpack(data: bytes) -> BaselineResult:
    buffer = io.BytesIO(data)
    found = {}
    while name := buffer.readline().decode().strip():
        found[name] = np.lib.format.read_array(buffer, allow_pickle=False)
    energy = float(found.pop("energy").reshape(()))
    return BaselineResult(energy=energy, **found)


__all__ = ["VARIABLE", "ResultStore", "Stored", "default_folder", "result_key", "stored"]
