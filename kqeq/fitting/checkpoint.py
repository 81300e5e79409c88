"""Where an interrupted fit stood: one small file, written atomically after every step.

The file holds the parameters, the damping and the convergence table, and a fingerprint of settings, structures and
labels, so that it cannot be continued with other data.  Everything else is computed again on resuming.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from kqeq.errors import ModelFileError
from kqeq.fitting.least_squares.solver import Iteration, SolverState
from kqeq.fitting.rows.features import TrainingFrame
from kqeq.fitting.settings import FitSettings
from kqeq.io.archive import read_archive, write_archive

FORMAT = "kqeq-checkpoint"
VERSION = 1

_LAYOUT = b"energy first"
"""Order of the parameters; a checkpoint with another order belongs to another fit."""


def fingerprint(settings: FitSettings, frames: Iterable[TrainingFrame]) -> str:
    """Hash of everything that determines the result of a fit, but not of how long it may run."""
    digest = hashlib.sha256(_LAYOUT)
    for item in fields(settings):
        if item.name not in ("max_iterations", "device"):
            digest.update(f"{item.name}={_plain(getattr(settings, item.name))};".encode())
    for frame in frames:
        for part in (frame.structure, frame.labels):
            for item in fields(part):
                digest.update(item.name.encode())
                _update(digest, getattr(part, item.name))
    return digest.hexdigest()


def _plain(value: Any) -> str:
    if hasattr(value, "to_dict"):
        return json.dumps(value.to_dict(), sort_keys=True, default=str)
    if isinstance(value, tuple) and value and hasattr(value[0], "to_dict"):
        return "+".join(_plain(item) for item in value)
    if hasattr(value, "name"):
        return str(value.name)
    if hasattr(value, "items"):
        return str(sorted(value.items()))
    return repr(value)


def _update(digest: Any, value: Any) -> None:
    if isinstance(value, np.ndarray):
        digest.update(str(value.dtype).encode() + str(value.shape).encode() + value.tobytes())
    else:
        digest.update(repr(value).encode())


def write_checkpoint(path: str | PathLike[str], mark: str, state: SolverState) -> None:
    """Write the state of a fit.

    Raises
    ------
    InputError
        If the path cannot be written.
    """
    header = {
        "fingerprint": mark,
        "damping": state.damping,
        "reach": state.reach,
        "free": state.free,
        "iterations": [asdict(iteration) for iteration in state.iterations],
    }
    arrays = {"u": state.u, "steps": state.steps, "slopes": state.slopes}
    present = {name: values for name, values in arrays.items() if values is not None}
    write_archive(path, FORMAT, VERSION, header, present)


def read_checkpoint(path: str | PathLike[str], mark: str, size: int) -> SolverState | None:
    """Read the state of a fit; ``None`` if there is no file yet.

    Parameters
    ----------
    path : path-like
    mark : str
        Fingerprint of the fit that wants to continue.
    size : int
        Number of its parameters.

    Raises
    ------
    ModelFileError
        If the file is no checkpoint, is damaged, or belongs to another fit.
    """
    source = Path(path)
    if not source.exists():
        return None
    remedy = "remove it to start afresh, or give another path"
    header, arrays = read_archive(source, FORMAT, VERSION, "checkpoint of a kqeq fit", remedy)
    try:
        found, u = header["fingerprint"], arrays["u"]
        iterations = tuple(Iteration(**row) for row in header["iterations"])
        state = SolverState(
            u=u,
            damping=float(header["damping"]),
            iterations=iterations,
            reach=float(header.get("reach", 1.0)),
            free=int(header.get("free", 0)),
            steps=arrays.get("steps"),
            slopes=arrays.get("slopes"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{source} lacks a part of the checkpoint ({error!r}); {remedy}") from None
    if found != mark or u.shape != (size,):
        raise ModelFileError(
            f"{source} is the checkpoint of another fit: settings, frames or labels differ; continue with the same "
            "ones, remove the file to start afresh, or give another path"
        )
    return state


__all__ = ["fingerprint", "read_checkpoint", "write_checkpoint"]
