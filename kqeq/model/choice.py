"""Which model to take, and who should carry the total charge on top of a baseline: asked of left-out frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kqeq.baselines import CHARGE_FROM
from kqeq.errors import InputError
from kqeq.fitting.metrics import Evaluation
from kqeq.fitting.settings import FitSettings, complete_noise, dipoles_alone, for_dipoles, wanted_labels
from kqeq.frames.grouping import groups
from kqeq.frames.label_checks import survey
from kqeq.frames.structures import as_frames
from kqeq.io.rules import instance
from kqeq.kernels.settings import AUTO
from kqeq.model.comparison import (
    FOLDS,
    Comparison,
    charge_candidates,
    dipole_candidates,
    judge_affordably,
)
from kqeq.model.estimator import KQEq, search_of
from kqeq.typing import IntArray


def compare(
    frames: Any,
    model: KQEq | None = None,
    *,
    candidates: Mapping[str, Mapping[str, Any]] | None = None,
    baselines: Sequence[Any] = (),
    groups: Sequence[int] | IntArray | None = None,
    folds: int | None = None,
    seed: int = 0,
) -> Comparison:
    """Fit several models to the same frames, and compare them on frames that are left out.

    Every frame is left out once, with the others of its group and a quarter of all; compositions and charges are spread
    evenly over the folds.  Candidates with the same kernels share representatives, prior spreads and noises, which the
    default search finds once; a refit without a fold starts where the fit to all frames ended
    (:mod:`kqeq.fitting.cross_validation`).  Where frames with forces hold more than 2000 atoms together (800 in cells)
    some of the groups are taken, evenly from all compositions and charges, and default kernels have at most 100
    representatives an element; the table says so.

    Parameters
    ----------
    frames : sequence of ase.Atoms
        Training frames; test frames stay out of it.
    model : KQEq, optional
        What all candidates share: kernels, noise, targets, label prefix; the defaults without.
    candidates : dict of str to dict, optional
        Settings of :class:`kqeq.KQEq` by name, from simple to elaborate.  By default the short-range energy alone, QEq,
        QEq with hardness by kernel, ACKS2, ACKS2 with atomic dipoles, and QEq with a charge-aware short-range energy;
        where dipoles are all that is fitted, QEq, latent charges and ACKS2 without and with atomic dipoles.
    baselines : sequence of str or of baselines
        For each, the short-range energy and QEq on top of it as well, with a search of their own; for example
        ``["gfn2"]``.
    groups : sequence of int, optional
        A number for each frame; frames with the same number are left out together.  By default those of one
        geometry (:func:`kqeq.groups`), of one composition and charge where there are at least 24 of these.
    folds : int, optional
        4, or the number of groups if that is less.
    seed : int
        Of the order in which frames are left out.

    Returns
    -------
    Comparison
        Prints as a table with the model to take and the reason.

    Raises
    ------
    InputError, UnsupportedError
        For frames that cannot be used, or where no candidate can be fitted; one that cannot be is named in the table.
    """
    from sklearn.base import clone

    if model is None:
        model = KQEq()
    instance(KQEq, "a model with the settings that all candidates share").require(model, "compare(model=...)")
    base = model if not isinstance(model.charges, str) else clone(model).set_params(charges="default")
    wanted = wanted_labels(base._settings(base.targets))
    found = survey(frames, base._keys(base.charges_key), wanted=wanted)

    def settings(own: KQEq) -> FitSettings:
        found = search_of(own._settings(own.targets), own.optimize)
        return replace(found, leave_out_failed=own.leave_out_failed)

    known: dict[str, Mapping[str, Any]] = {}
    if candidates is not None:
        instance(Mapping, "a dict of settings by name").require(candidates, "compare(candidates=...)")
        if not candidates:
            raise InputError("candidates is empty; expected settings of at least one model by name")
        known |= candidates
    for baseline in baselines:
        name = baseline if isinstance(baseline, str) else type(baseline).__name__
        below = {"baseline": baseline, "charge_aware": None, "site_kernel": None}
        known[f"{name} + short-range"] = {**below, "electronegativity": None, "charges": None}
        known[f"{name} + QEq"] = {**below, "charges": "default"}
    chosen: dict[str, FitSettings] = {}
    if candidates is None:
        charged = base
        if base._given()["charges"] is None:
            charged = clone(base).set_params(electronegativity=AUTO, charges="default")
        given = settings(charged)
        if dipoles_alone(given, (labels for _, labels in found.pairs)):
            chosen |= dipole_candidates(for_dipoles(given))
        else:
            chosen |= charge_candidates(given, (structure for structure, _ in found.pairs))
    chosen |= {str(name): settings(clone(base).set_params(**changes)) for name, changes in known.items()}
    comparison, _ = judge_affordably(found.pairs, chosen, folds=folds, groups=groups, seed=seed)
    return replace(comparison, settings={**comparison.settings, **known})


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
    group = groups(given)
    if not 2 <= folds <= group.max() + 1:
        raise InputError(
            f"folds is {folds!r} for {group.max() + 1} geometries; expected a whole number from 2 to that"
        )
    noise = complete_noise(model.noise)
    parts = (np.random.default_rng(0).permutation(group.max() + 1) % folds)[group]
    scores: dict[str, float] = {}
    errors: dict[str, dict[str, float]] = {}
    for who in CHARGE_FROM:
        found = []
        for fold in range(folds):
            left_out = set(np.flatnonzero(parts == fold).tolist())
            own = clone(model).set_params(charge_from=who)
            own.fit([atoms for i, atoms in enumerate(given) if i not in left_out])
            found.append(own.evaluate([given[i] for i in sorted(left_out)]))
        errors[who] = _together(found)
        scores[who] = float(np.mean([(rmse / noise[kind]) ** 2 for kind, rmse in errors[who].items()]))
    return ChargeFromChoice(min(scores, key=scores.__getitem__), scores, errors)


def _together(found: list[Evaluation]) -> dict[str, float]:
    """Errors over all folds; of quantities that models of either kind are fitted to."""
    result = {}
    for kind in ("energy", "forces", "stress", "dipole"):
        own = [errors[kind] for errors in found if kind in errors]
        if own:
            total = sum(error.n * error.rmse**2 for error in own) / sum(error.n for error in own)
            result[kind] = float(np.sqrt(total))
    return result


__all__ = ["ChargeFromChoice", "choose_charge_from", "compare"]
