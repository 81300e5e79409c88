"""Who should carry the total charge on top of a baseline that can: asked of left-out frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms

from kqeq.baselines import CHARGE_FROM
from kqeq.errors import InputError
from kqeq.fitting.metrics import Evaluation
from kqeq.fitting.settings import complete_noise
from kqeq.frames.structures import as_frames
from kqeq.model.estimator import KQEq

FOLDS = 4


@dataclass(frozen=True)
class ChargeFromChoice:
    """Errors of left-out frames by who carries the charge.

    Attributes
    ----------
    best : str
        ``"baseline"`` or ``"model"``: set ``charge_from`` to it.
    scores : dict of str to float
        Mean squared error of left-out labels in units of the noise that the model was given; the smaller the better.
    errors : dict of str to dict of str to float
        Root-mean-square errors of each, by quantity, in the units of :meth:`kqeq.KQEq.evaluate`.
    """

    best: str
    scores: Mapping[str, float]
    errors: Mapping[str, Mapping[str, float]]

    def __str__(self) -> str:
        lines = [f"{'charge from':<14}{'score':>10}  RMSE of left-out frames"]
        for name, score in self.scores.items():
            text = ", ".join(f"{kind} {value:.4g}" for kind, value in self.errors[name].items())
            lines.append(f"{name + (' *' if name == self.best else ''):<14}{score:>10.3g}  {text}")
        return "\n".join(lines)


def choose_charge_from(model: KQEq, frames: Any, *, folds: int = FOLDS) -> ChargeFromChoice:
    """Fit both ways to parts of the training frames, and compare on the frames left out.

    Frames of one geometry (at several charges or fields) stay together.

    Parameters
    ----------
    model : KQEq
        Settings, with a baseline that holds charge; it is not changed.
    frames : sequence of ase.Atoms
        Training frames.
    folds : int
        Each frame is left out once; 2 · ``folds`` fits.

    Returns
    -------
    ChargeFromChoice

    Raises
    ------
    InputError
        For too few frames, and what :meth:`kqeq.KQEq.fit` raises.
    """
    from sklearn.base import clone

    given = as_frames(frames)
    groups = _groups(given)
    if not 2 <= folds <= len(groups):
        raise InputError(
            f"folds is {folds!r} for {len(groups)} geometries; expected a whole number from 2 to that"
        )
    noise = complete_noise(model.noise)
    parts = np.random.default_rng(0).permutation(len(groups)) % folds
    scores: dict[str, float] = {}
    errors: dict[str, dict[str, float]] = {}
    for who in CHARGE_FROM:
        found = []
        for fold in range(folds):
            left_out = {i for g, group in enumerate(groups) if parts[g] == fold for i in group}
            own = clone(model).set_params(charge_from=who)
            own.fit([atoms for i, atoms in enumerate(given) if i not in left_out])
            found.append(own.evaluate([given[i] for i in sorted(left_out)]))
        errors[who] = _together(found)
        scores[who] = float(np.mean([(rmse / noise[kind]) ** 2 for kind, rmse in errors[who].items()]))
    return ChargeFromChoice(min(scores, key=scores.__getitem__), scores, errors)


def _groups(frames: list[Atoms]) -> list[list[int]]:
    """Indices of frames by geometry."""
    found: dict[tuple[bytes, bytes], list[int]] = {}
    for i, atoms in enumerate(frames):
        found.setdefault((atoms.numbers.tobytes(), np.round(atoms.positions, 6).tobytes()), []).append(i)
    return list(found.values())


def _together(found: list[Evaluation]) -> dict[str, float]:
    """Errors over all folds; of quantities that models of either kind are fitted to."""
    result = {}
    for kind in ("energy", "forces", "stress", "dipole"):
        own = [errors[kind] for errors in found if kind in errors]
        if own:
            total = sum(error.n * error.rmse**2 for error in own) / sum(error.n for error in own)
            result[kind] = float(np.sqrt(total))
    return result


__all__ = ["ChargeFromChoice", "choose_charge_from"]
