"""As many representatives as pay: their number grows until left-out frames stop improving, or time is used up.

Every tenth frame is left out.  Fits to the others with 100, 200, 400 … representatives an element in each kernel of the
short-range energy (a quarter of them in those of the electronegativity, which needs fewer) are judged by their errors
on the frames left out: forces if there are any, else what comes first in :data:`JUDGES`.  The number that served best is
used for a fit to all frames.  Numbers given with a kernel are upper limits.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from os import PathLike
from typing import Any

import numpy as np
from sklearn.base import clone

from kqeq.errors import InputError, RepresentativesWarning
from kqeq.fitting.fit import FitResult, fit_potential
from kqeq.fitting.rows.cache import CacheFolder
from kqeq.fitting.settings import FitSettings
from kqeq.frames.labels import Labels
from kqeq.frames.structures import Structure
from kqeq.io.progress import say
from kqeq.kernels.settings import Kernels
from kqeq.potential.potential import Potential

FIRST = 100
"""Representatives of each element to begin with."""

SHARE = 4
"""Kernels of the electronegativity and of site parameters get one such part of the number."""

ENOUGH = 0.02
"""Least relative improvement of the errors on left-out frames that is worth twice the representatives."""

EVERY = 10
"""One frame in so many is left out."""

MOST_LEFT_OUT = 100

JUDGES = ("forces", "stress", "energy", "dipole", "charges", "polarizability")
"""The first of these that frames carry and the fit uses is compared."""

UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


def seconds(budget: Any) -> float:
    """Time that a user allows, s.

    Parameters
    ----------
    budget : float or str
        Seconds, or a number with a unit: ``"90 s"``, ``"10 min"``, ``"2 h"``.

    Raises
    ------
    InputError
    """
    value: float | None = None
    if isinstance(budget, str):
        found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(s|min|h)\s*", budget)
        value = float(found[1]) * UNITS[found[2]] if found else None
    elif isinstance(budget, Real) and not isinstance(budget, bool):
        value = float(budget)
    if value is None or not np.isfinite(value) or value <= 0.0:
        raise InputError(
            f'budget is {budget!r}; expected seconds, or a time such as "90 s", "10 min" or "2 h"'
        )
    return value


@dataclass(frozen=True)
class Trial:
    """A fit with some number of representatives.

    Attributes
    ----------
    number : int
        Representatives of each element that were asked for.
    error : float
        Root-mean-square error on left-out frames.
    seconds : float
    """

    number: int
    error: float
    seconds: float


def fit_within(
    pairs: Sequence[tuple[Structure, Labels]],
    settings: FitSettings,
    budget: float,
    *,
    resume: str | PathLike[str] | None = None,
    cache: CacheFolder | None = None,
) -> FitResult:
    """Fit with as many representatives as pay within a time.

    Parameters
    ----------
    pairs, settings, resume, cache :
        As for :func:`kqeq.fitting.fit.fit_potential`; ``resume`` is for the last fit, to all frames.
    budget : float
        s.

    Raises
    ------
    InputError
        If there are fewer than ten frames, and whatever the fit raises.
    """
    if len(pairs) < EVERY:
        raise InputError(
            f"budget was given with {len(pairs)} frames; leaving some out to find the number of representatives takes "
            f"at least {EVERY}. Set n_representatives of the kernels instead"
        )
    started = time.perf_counter()
    out = np.unique(
        np.linspace(EVERY - 1, len(pairs) - 1, min(MOST_LEFT_OUT, len(pairs) // EVERY)).astype(int)
    )
    chosen = set(out.tolist())
    train = [pair for i, pair in enumerate(pairs) if i not in chosen]
    test = [pairs[i] for i in out]
    kind = _judge(test, settings)
    trials: list[Trial] = []
    number, reason = FIRST, ""
    while not reason:
        before = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RepresentativesWarning)
            result = fit_potential(train, with_number(settings, number), cache=cache)
        trials.append(Trial(number, _error(result.potential, test, kind), time.perf_counter() - before))
        say(f"{number} representatives an element: {kind} {trials[-1].error:.4g} on left-out frames")
        reason = _reason(trials, result, settings, started + budget, len(pairs) / len(train))
        number *= 2
    best = min(trials, key=lambda trial: trial.error)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RepresentativesWarning)
        result = fit_potential(pairs, with_number(settings, best.number), resume=resume, cache=cache)
    table = ", ".join(f"{trial.error:.4g} with {trial.number}" for trial in trials)
    note = (
        f"representatives an element: {best.number}, chosen by the RMS error of {kind} on {len(test)} left-out frames "
        f"({table}); {reason}"
    )
    report = replace(result.report, notes=(*result.report.notes, note), seconds=time.perf_counter() - started)
    return replace(result, report=report)


def with_number(settings: FitSettings, number: int) -> FitSettings:
    """The settings with so many representatives of each element, where kernels do not say fewer."""

    def limited(kernels: Kernels | None, own: int) -> Kernels | None:
        if kernels is None:
            return None
        given = [kernel.n_representatives for kernel in kernels]
        counts = [own if most is None else min(own, most) for most in given]
        return tuple(
            clone(kernel).set_params(n_representatives=count)
            for kernel, count in zip(kernels, counts, strict=True)
        )

    few = number if settings.short_range is None else max(number // SHARE, min(number, FIRST // 2))
    return replace(
        settings,
        short_range=limited(settings.short_range, number),
        electronegativity=limited(settings.electronegativity, few),
        site_kernel=limited(settings.site_kernel, few),
    )


def _judge(pairs: Sequence[tuple[Structure, Labels]], settings: FitSettings) -> str:
    """The quantity that is compared."""
    present = {kind for _, labels in pairs for kind in labels.kinds}
    if settings.targets is not None:
        present &= set(settings.targets)
    elif settings.charges is None or not settings.charges.to_learn:
        present.discard("polarizability")
    if settings.charges is None:
        present -= {"dipole", "charges"}
    for kind in JUDGES:
        if kind in present:
            return kind
    raise InputError(
        "budget was given, but the frames that are left out to find the number of representatives carry no label that "
        "is fitted; set n_representatives of the kernels instead"
    )


def _error(potential: Potential, pairs: Sequence[tuple[Structure, Labels]], kind: str) -> float:
    chosen = [(s, getattr(labels, kind)) for s, labels in pairs if getattr(labels, kind) is not None]
    predictions = potential.predict_many([structure for structure, _ in chosen], {kind})
    errors = []
    for prediction, (structure, label) in zip(predictions, chosen, strict=True):
        scale = 1.0 / len(structure) if kind == "energy" else 1.0
        errors.append(scale * np.ravel(np.asarray(getattr(prediction, kind)) - label))
    return float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))


def _reason(
    trials: Sequence[Trial], result: FitResult, settings: FitSettings, deadline: float, share: float
) -> str:
    """Why the number is not doubled again; nothing if it is."""
    last = trials[-1]
    if len(trials) > 1 and last.error > (1.0 - ENOUGH) * min(t.error for t in trials[:-1]):
        return "then left-out frames stopped improving"
    limits = [
        kernel.n_representatives
        for kernels in (settings.short_range, settings.electronegativity)
        for kernel in kernels or ()
    ]
    if all(limit is not None and limit <= last.number for limit in limits):
        return "that is the number given with the kernels"
    counts = [n for own in result.report.representatives.values() for n in own.values()]
    if max(counts, default=0) < last.number:
        return "all environments of the training frames are representatives"
    growth = 3.5 if len(trials) == 1 else float(np.clip(last.seconds / trials[-2].seconds, 2.0, 5.0))
    # another trial, and then the fit to all frames
    if time.perf_counter() + growth * last.seconds * (1.0 + share) > deadline:
        return "the time budget was used up: more would have improved left-out frames further, as far as one can tell"
    return ""


__all__ = ["Trial", "fit_within", "seconds", "with_number"]
