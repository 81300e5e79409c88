"""Errors of a model on labelled frames, frame by frame and by groups of frames.

One number for a whole test set hides that anions are off, or one composition.  ``frame_errors(model, frames)`` predicts
every frame once; its errors are then put together by total charge, composition, ``config_type`` or any other entry
of ``atoms.info``, and the worst frames are named.

Dimensions: F frames.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from ase import Atoms

from kqeq.analysis.entry import formula, potential_of
from kqeq.backend import Device, devices
from kqeq.charges.boundaries import open_components
from kqeq.errors import InputError
from kqeq.fitting.metrics import UNITS, Evaluation, compare
from kqeq.frames.label_checks import survey
from kqeq.frames.labels import LabelKeys, Labels
from kqeq.frames.structures import Structure, as_frames
from kqeq.io.atomic_write import atomic_path
from kqeq.model.evaluation import evaluate_pairs
from kqeq.potential.prediction import Prediction
from kqeq.typing import FloatArray
from kqeq.uncertainty.posterior import require_posterior

GROUPS = ("charge", "composition", "config_type")
"""What frames are grouped by where nothing else is asked for."""

COLUMNS: Mapping[str, str] = {
    "energy": "energy_error (eV/atom)",
    "forces": "forces_rmse (eV/Å)",
    "stress": "stress_rmse (eV/Å³)",
    "dipole": "dipole_rmse (e·Å)",
    "charges": "charges_rmse (e)",
    "polarizability": "polarizability_rmse (e²·Å²/eV)",
}
"""Heading of the error of every quantity in tables of frames: that of an energy with its sign."""


@dataclass(frozen=True, eq=False)
class FrameErrors:
    """Predictions beside labels, for every frame.

    Attributes
    ----------
    evaluation : Evaluation
        Errors over all frames.
    frames : tuple of (Structure, Labels, Prediction)
        F entries, in the order of the frames.
    names : dict of str to tuple of str
        What every frame is called: ``composition``, ``charge``, and ``config_type`` and whatever else was asked for as
        far as frames have it (``""`` for those that have not).
    """

    evaluation: Evaluation
    frames: tuple[tuple[Structure, Labels, Prediction], ...]
    names: Mapping[str, tuple[str, ...]]

    def groups(self, by: str) -> dict[str, tuple[int, Evaluation]]:
        """Number of frames and errors for every value of a name, in order.

        Parameters
        ----------
        by : str
            One of ``names``.

        Raises
        ------
        InputError
            For a name that the frames do not have.
        """
        if by not in self.names:
            raise InputError(f"the frames are not grouped by {by!r}; expected one of {', '.join(self.names)}")
        members: dict[str, list[int]] = {}
        for i, name in enumerate(self.names[by]):
            members.setdefault(name, []).append(i)
        order = sorted(members, key=lambda name: (float(name), "") if by == "charge" else (0.0, name))
        skipped = {kind: reason for kind, reason in self.evaluation.skipped.items() if kind in UNITS}
        return {
            name: (len(members[name]), compare((self.frames[i] for i in members[name]), skipped))
            for name in order
        }

    def of(self, kind: str) -> FloatArray:
        """Error of a quantity in every frame, (F,): that of COLUMNS; NaN where a frame has no label.

        Raises
        ------
        InputError
            For a quantity that was not compared.
        """
        if kind not in self.evaluation:
            raise InputError(
                f"{kind!r} was not compared on these frames; there are {', '.join(self.evaluation)}"
            )
        errors = np.full(len(self.frames), np.nan)
        for i, (structure, labels, prediction) in enumerate(self.frames):
            pair = _pair(kind, structure, labels, prediction)
            if pair is not None:
                difference = pair[1] - pair[0]
                errors[i] = difference[0] if kind == "energy" else np.sqrt(np.mean(difference**2))
        return errors

    def worst(self, number: int = 5, kind: str | None = None) -> list[int]:
        """Numbers of the frames with the largest errors, the worst first.

        Parameters
        ----------
        number : int
        kind : str, optional
            By forces where there are some, else by what there is.
        """
        if kind is None:
            kind = "forces" if "forces" in self.evaluation else next(iter(self.evaluation))
        size = np.abs(self.of(kind))
        order = np.argsort(-np.nan_to_num(size, nan=-1.0), kind="stable")
        return [int(i) for i in order[:number] if np.isfinite(size[i])]

    def pairs(self, kind: str) -> tuple[FloatArray, FloatArray]:
        """Labels and predictions of a quantity, all components of all frames; energies per atom."""
        found = [_pair(kind, *frame) for frame in self.frames]
        kept = [pair for pair in found if pair is not None]
        if not kept:
            raise InputError(f"no frame has a label and a prediction of {kind!r}")
        return np.concatenate([pair[0] for pair in kept]), np.concatenate([pair[1] for pair in kept])

    def table(self) -> list[dict[str, Any]]:
        """One row for every frame: names, size, errors, and energies in eV; ``None`` where there is none."""
        columns = {COLUMNS[kind]: self.of(kind) for kind in self.evaluation}
        rows = []
        for i, (structure, labels, prediction) in enumerate(self.frames):
            row: dict[str, Any] = {"frame": i, "atoms": len(structure)}
            row.update({name: values[i] for name, values in self.names.items()})
            if "energy" in self.evaluation:
                row["energy_label (eV)"] = None if labels.energy is None else float(labels.energy)
                row["energy_predicted (eV)"] = None if prediction.energy is None else float(prediction.energy)
            for heading, values in columns.items():
                row[heading] = None if np.isnan(values[i]) else float(values[i])
            if "forces" in self.evaluation:
                row["forces_largest_error (eV/Å)"] = _largest(labels, prediction)
            rows.append(row)
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Plain data: errors over all frames, by groups, and the table of frames."""
        return {
            "all": self.evaluation.to_dict(),
            "groups": {
                by: {
                    name: {"frames": count, **found.to_dict()}
                    for name, (count, found) in self.groups(by).items()
                }
                for by in self.names
            },
            "frames": self.table(),
        }

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write :meth:`table` as CSV, atomically; cells of what a frame has not stay empty.

        Raises
        ------
        InputError
            If the path cannot be written.
        """
        rows = self.table()
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        with atomic_path(path) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")


def frame_errors(
    model: Any,
    frames: Atoms | Sequence[Atoms],
    *,
    by: Sequence[str] = (),
    calibration: bool = False,
    device: str | Device = "cpu",
) -> FrameErrors:
    """Predict labelled frames and keep every error.

    Parameters
    ----------
    model : KQEq
    frames : ase.Atoms or sequence of ase.Atoms
        F frames.
    by : sequence of str
        Entries of ``atoms.info`` to group by as well, besides charge, composition and ``config_type``.
    calibration : bool
        Also compare errors with the predicted uncertainties (``evaluation.calibration``).
    device : {"cpu", "cuda", "auto"}
        Where to predict.

    Returns
    -------
    FrameErrors

    Raises
    ------
    InputError, UnsupportedError, ModelNotFittedError
        As :meth:`kqeq.KQEq.evaluate`, and for an entry that no frame has.
    """
    potential = potential_of(model)
    given = as_frames(frames)
    posterior = require_posterior(model.posterior_) if calibration else None
    for name in by:
        if name not in GROUPS and not any(name in atoms.info for atoms in given):
            known = sorted({str(key) for atoms in given for key in atoms.info})
            raise InputError(
                f"no frame has an entry {name!r} to group by; frames have {', '.join(known) or 'none'}, and "
                "charge and composition are always there"
            )
    pairs = survey(given, LabelKeys.prefixed(model.label_prefix, model.charges_key_)).pairs

    def work(where: Device) -> tuple[Evaluation, list[tuple[Structure, Labels, Prediction]]]:
        kept: list[tuple[Structure, Labels, Prediction]] = []
        found = evaluate_pairs(
            potential, pairs, posterior, label_prefix=model.label_prefix, device=where, keep=kept.append
        )
        return found, kept

    (evaluation, kept), _ = devices.run(device, work)
    names: dict[str, tuple[str, ...]] = {
        "composition": tuple(formula(atoms) for atoms in given),
        "charge": tuple(
            f"{structure.total_charge:+g}" if structure.total_charge else "0" for structure, *_ in kept
        ),
    }
    for name in dict.fromkeys((*GROUPS[2:], *by)):
        values = tuple(str(atoms.info.get(name, "")) for atoms in given)
        if name not in names and any(values):
            names[name] = values
    return FrameErrors(evaluation, tuple(kept), names)


def _pair(
    kind: str, structure: Structure, labels: Labels, prediction: Prediction
) -> tuple[FloatArray, FloatArray] | None:
    """Label and prediction of a quantity of one frame, flat; energies per atom."""
    label, value = getattr(labels, kind), getattr(prediction, kind)
    if label is None or value is None:
        return None
    if kind == "dipole":
        directions = open_components(structure)
        return None if len(directions) == 0 else (directions @ label, directions @ value)
    scale = 1.0 / len(structure) if kind == "energy" else 1.0
    return scale * np.ravel(label), scale * np.ravel(value)


def _largest(labels: Labels, prediction: Prediction) -> float | None:
    if labels.forces is None or prediction.forces is None:
        return None
    return float(np.linalg.norm(prediction.forces - labels.forces, axis=1).max())


__all__ = ["COLUMNS", "GROUPS", "FrameErrors", "frame_errors"]
