"""Where an interrupted search by left-out frames stood: written after each of its fits.

Kernels are named by their place among those that the search began with, because names change when some are dropped.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from kqeq.errors import ModelFileError
from kqeq.fitting.parameters import Parameters
from kqeq.io.archive import read_archive, write_archive
from kqeq.typing import FloatArray

FORMAT, VERSION = "kqeq-search-checkpoint", 1

STAGES = ("alone", "start", "finished")
"""The short-range energy is settled; the first fit with charges has ended; the search has."""


@dataclass(frozen=True, eq=False)
class Reached:
    """What a search has found so far.

    Attributes
    ----------
    stage : str
        One of :data:`STAGES`.
    spreads : sequence of float or None
        δ of each kernel that the search began with; ``None`` for those that were dropped.
    noise : dict of str to float
    table : sequence of str
    value : float
        Log density of left-out labels; of the short-range energy alone before the end.
    errors : dict of str to float
        Root-mean-square errors of left-out labels without charges.
    u : (P,) array or None
        Parameters of the fit, from ``"start"`` on.
    """

    stage: str
    spreads: Sequence[float | None]
    noise: Mapping[str, float]
    table: Sequence[str]
    value: float
    errors: Mapping[str, float]
    u: FloatArray | None = None


def spreads_of(first: Parameters, found: Parameters) -> list[float | None]:
    """δ in ``found`` of each kernel of ``first``; ``None`` where it was dropped."""
    known = {
        (owner, id(kernel.feature_map)): kernel.delta
        for owner, part in found.parts.items()
        for kernel in part.kernels
    }
    return [
        known.get((owner, id(kernel.feature_map)))
        for owner, part in first.parts.items()
        for kernel in part.kernels
    ]


def with_spreads(first: Parameters, spreads: Sequence[float | None]) -> Parameters:
    """What :func:`spreads_of` was taken from."""
    pairs = list(zip(first.kernels.items(), spreads, strict=True))
    scaled = {name: replace(kernel, delta=delta) for (name, kernel), delta in pairs if delta is not None}
    dropped: Collection[str] = [name for (name, _), delta in pairs if delta is None]
    return first.with_kernels(scaled).without(dropped)[0]


def write_search(path: str | PathLike[str] | None, mark: str, reached: Reached) -> None:
    """Write it, atomically.

    Raises
    ------
    InputError
        If the path cannot be written.
    """
    if path is None:
        return
    header: dict[str, Any] = {
        "fingerprint": mark,
        "stage": reached.stage,
        "spreads": list(reached.spreads),
        "noise": dict(reached.noise),
        "table": list(reached.table),
        "value": reached.value,
        "errors": dict(reached.errors),
    }
    write_archive(path, FORMAT, VERSION, header, {} if reached.u is None else {"u": reached.u})


def read_search(path: str | PathLike[str] | None, mark: str, first: Parameters) -> Reached | None:
    """Read it; ``None`` if there is no file yet.

    Raises
    ------
    ModelFileError
        If the file is no such checkpoint, is damaged, or belongs to another fit.
    """
    if path is None or not Path(path).exists():
        return None
    remedy = "remove it to start afresh, or give another path"
    header, arrays = read_archive(path, FORMAT, VERSION, "checkpoint of the search of a kqeq fit", remedy)
    try:
        if header["fingerprint"] != mark or len(header["spreads"]) != len(first.kernels):
            raise ModelFileError(
                f"{path} is the checkpoint of another fit: settings, frames or labels differ; continue with the same "
                f"ones, or {remedy}"
            )
        stage = str(header["stage"])
        if stage not in STAGES or (stage != "alone") != ("u" in arrays):
            raise ValueError(stage)
        return Reached(
            stage,
            [None if delta is None else float(delta) for delta in header["spreads"]],
            {str(kind): float(value) for kind, value in header["noise"].items()},
            [str(line) for line in header["table"]],
            float(header["value"]),
            {str(kind): float(value) for kind, value in header["errors"].items()},
            arrays.get("u"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path} lacks a part of the checkpoint ({error!r}); {remedy}") from None


__all__ = ["Reached", "read_search", "spreads_of", "with_spreads", "write_search"]
