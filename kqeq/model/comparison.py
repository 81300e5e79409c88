"""Models side by side on left-out frames, and which of them to take.

Every candidate is fitted to all frames once; for each fold it is fitted again without its frames, from there
(:mod:`kqeq.fitting.cross_validation`), and predicts them.  Representatives, prior spreads and noises are found once, by
the default search, and shared by all candidates with the same kernels.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kqeq.backend import Device
from kqeq.baselines.store import stored
from kqeq.charges import ACKS2, AtomicDipoles, LatentCharges, QEq
from kqeq.charges.base import ChargeModel
from kqeq.errors import InputError, KQEqError, KQEqWarning
from kqeq.fitting.cross_validation import refits
from kqeq.fitting.fit import FitResult, fit_potential, second_stage
from kqeq.fitting.metrics import Evaluation, compare
from kqeq.fitting.rows.cache import CacheFolder
from kqeq.fitting.settings import FitSettings, dipoles_alone, with_charges
from kqeq.frames.grouping import composition_and_charge, shuffled_folds, structure_groups
from kqeq.frames.labels import Labels
from kqeq.frames.states import several_charges
from kqeq.frames.structures import Structure
from kqeq.io.progress import say
from kqeq.kernels.charge_kernel import ChargeKernel
from kqeq.kernels.settings import automatic_by_charge
from kqeq.potential.potential import Potential, Prediction
from kqeq.typing import IntArray

FOLDS = 4
"""Each frame is left out once, together with a quarter of the frames."""

MANY = 24
"""Compositions from which on they are left out as wholes."""

TIE = 0.05
"""Relative difference of errors below which the simpler model is taken."""

MUCH_WORSE = 1.5
"""Candidates whose energies or dipoles are worse than the best by this factor are not taken for their forces.

Zn3O3 at two charges: hardness by kernel and kernels by charge leave out 52 meV/Å, but 0.17 and 0.068 e·Å, and 50 and 21
meV/Å on test frames.
"""

JUDGES = ("forces", "stress", "energy", "dipole", "charges", "polarizability")
"""The first of these that frames carry decides."""

SHOWN: Mapping[str, tuple[float, str]] = {
    "energy": (1e3, "meV/atom"),
    "forces": (1e3, "meV/Å"),
    "stress": (1e3, "meV/Å³"),
    "dipole": (1.0, "e·Å"),
    "charges": (1.0, "e"),
    "polarizability": (1.0, "e²Å²/eV"),
}
"""Columns of the table: factor and unit."""

MOST_ATOMS = 2000
"""Atoms of all frames together up to which candidates are fitted to all of them."""

CELL_COST = 2.5
"""How many atoms of a molecule an atom of a cell stands for."""

WITHOUT_GRADIENTS = 0.1
"""The same of an atom of a frame without forces or stress."""

COARSE = 100
"""Representatives of an element, in kernels that nobody has chosen, where candidates are fitted to some of the frames."""

Pairs = Sequence[tuple[Structure, Labels]]


@dataclass(frozen=True)
class Candidate:
    """A model and its errors on left-out frames.

    Attributes
    ----------
    name : str
    errors : Evaluation or None
        ``None`` where it could not be fitted.
    by_charge : dict of float to Evaluation
        Likewise for the frames of each total charge, where there are several.
    fit, folds : float
        CPU seconds of the fit to all frames (with the search, if it was its own), and of the fits without each fold.
    parameters : int
    milliseconds : float
        Of a prediction, for each atom.
    why_not : str
        Why it could not be fitted.
    """

    name: str
    errors: Evaluation | None
    by_charge: Mapping[float, Evaluation] = field(default_factory=dict)
    fit: float = 0.0
    folds: float = 0.0
    parameters: int = 0
    milliseconds: float = 0.0
    why_not: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        if self.errors is None:
            return {"why_not": self.why_not}
        return {
            "errors": self.errors.to_dict(),
            "by_charge": {f"{charge:g}": own.to_dict() for charge, own in self.by_charge.items()},
            "fit_cpu_s": self.fit,
            "folds_cpu_s": self.folds,
            "parameters": self.parameters,
            "ms_per_atom": self.milliseconds,
        }


@dataclass(frozen=True, eq=False)
class Comparison:
    """Candidates on the same left-out frames; prints as a table.

    Attributes
    ----------
    best : str
        Name of the model to take.
    reason : str
        Why, in words.
    candidates : dict of str to Candidate
        From simple to elaborate.
    settings : dict of str to dict
        What each candidate sets in :class:`kqeq.KQEq`.
    judge : str
        The label kind that decided.
    frames, folds : int
    of : int
        How many frames were given, where candidates were fitted to some of them; else 0.
    """

    best: str
    reason: str
    candidates: Mapping[str, Candidate]
    settings: Mapping[str, Mapping[str, Any]]
    judge: str
    frames: int
    folds: int
    of: int = 0

    @property
    def seconds(self) -> float:
        """CPU seconds of all fits."""
        return sum(own.fit + own.folds for own in self.candidates.values())

    @property
    def _frames(self) -> str:
        """How many, in words."""
        if not self.of:
            return f"{self.frames} frames"
        return f"{self.frames} of {self.of} frames, with fewer representatives where kernels were not given"

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the choice, its reason, and errors and times by candidate."""
        return {
            "best": self.best,
            "reason": self.reason,
            "judge": self.judge,
            "frames": self.frames,
            "folds": self.folds,
            "candidates": {name: own.to_dict() for name, own in self.candidates.items()},
        }

    def __str__(self) -> str:
        fitted = {name: own for name, own in self.candidates.items() if own.errors is not None}
        kinds = [kind for kind in SHOWN if any(kind in (own.errors or ()) for own in fitted.values())]
        width = 4 + max(len(name) for name in self.candidates)
        head = f"{'model':<{width}}" + "".join(f"{kind:>12}" for kind in kinds)
        units = f"{'':<{width}}" + "".join(f"{SHOWN[kind][1]:>12}" for kind in kinds)
        lines = [
            f"RMSE of left-out frames ({self._frames}, {self.folds} folds)",
            head + f"{'fit':>9}{'folds':>9}{'predict':>9}",
            units + f"{'CPU s':>9}{'CPU s':>9}{'ms/atom':>9}",
        ]
        for name, own in fitted.items():
            assert own.errors is not None
            mark = f"{name} *" if name == self.best else name
            lines.append(
                f"{mark:<{width}}{_cells(own.errors, kinds)}{own.fit:>9.1f}{own.folds:>9.1f}{own.milliseconds:>9.2g}"
            )
            if len(own.by_charge) > 1:
                lines += [
                    f"{f'  charge {charge:+g}':<{width}}{_cells(errors, kinds)}"
                    for charge, errors in own.by_charge.items()
                ]
        lines += [
            f"not fitted: {name} ({own.why_not})"
            for name, own in self.candidates.items()
            if own.errors is None
        ]
        return "\n".join([*lines, self.reason])


def _cells(errors: Evaluation, kinds: Sequence[str]) -> str:
    return "".join(
        f"{SHOWN[kind][0] * errors[kind].rmse:>12.4g}" if kind in errors else f"{'–':>12}" for kind in kinds
    )


_LISTED: Mapping[str, ChargeModel] = {
    "QEq": QEq(),
    "QEq, hardness by kernel": QEq(hardness="kernel"),
    "ACKS2": ACKS2(),
    "latent charges, atomic dipoles": AtomicDipoles(LatentCharges()),
    "ACKS2, atomic dipoles": AtomicDipoles(ACKS2()),
}


def charge_candidates(settings: FitSettings, structures: Iterable[Structure] = ()) -> dict[str, FitSettings]:
    """What is compared where nobody says otherwise, from simple to elaborate.

    ``settings`` are those of a model with charges; a charge model that is not in the list is a candidate as well.  Where
    one composition has several total charges, a short-range energy with kernels by charge is.
    """
    plain = replace(settings, charge_aware=None)
    found: dict[str, FitSettings] = {}
    if settings.short_range is not None:
        found["short-range"] = replace(plain, charges=None, electronegativity=None, site_kernel=None)
    given = settings.charges
    for name, charges in _LISTED.items():
        own = with_charges(plain, charges)
        found[name] = own if charges.environment else replace(own, site_kernel=None)
        if name == "QEq" and given is not None and _is_none_of(given, _LISTED.values()):
            found["as given"] = settings
    if settings.short_range is not None:
        found["QEq, charge-aware"] = replace(found["QEq"], charge_aware=ChargeKernel())
        charged = several_charges(structures)
        holds = settings.baseline is not None and settings.baseline.capabilities.holds_charge
        if charged and not holds and not any(kernel.condition for kernel in settings.short_range):
            own = found["QEq, hardness by kernel"]
            found["kernels by charge"] = replace(
                own, short_range=(*settings.short_range, *automatic_by_charge(charged))
            )
    return found


def dipole_candidates(settings: FitSettings) -> dict[str, FitSettings]:
    """What is compared where dipoles are all that is fitted, likewise: all of them are fitted in closed form."""
    plain = replace(settings, charge_aware=None, site_kernel=None)
    models: dict[str, ChargeModel] = {
        "QEq": QEq(),
        "latent charges": LatentCharges(),
        "QEq, atomic dipoles": AtomicDipoles(QEq()),
        "latent charges, atomic dipoles": AtomicDipoles(LatentCharges()),
        "ACKS2, atomic dipoles": AtomicDipoles(ACKS2()),
        "ACKS2 from latent charges, atomic dipoles": AtomicDipoles(ACKS2(reference_charges="kernel")),
    }
    found = {name: replace(plain, charges=model) for name, model in models.items()}
    given = settings.charges
    if given is not None and _is_none_of(given, models.values()):
        found["as given"] = settings
    return found


def _is_none_of(given: ChargeModel, known: Iterable[ChargeModel]) -> bool:
    return all(given.to_dict() != other.to_dict() for other in known)


def groups_of(pairs: Pairs, group: Sequence[int] | IntArray | None = None) -> list[int]:
    """A number for each frame; frames of one geometry belong together unless ``group`` says what does.

    Where there are many compositions (:data:`MANY`), so that a model is meant for molecules that it has not seen, frames
    of one composition belong together: isomers of a left-out molecule make it look easier than it is.

    Raises
    ------
    InputError
        For numbers that do not fit the frames.
    """
    if group is None:
        numbers: dict[Any, int] = {}
        kinds = [
            numbers.setdefault(composition_and_charge(structure), len(numbers)) for structure, _ in pairs
        ]
        return kinds if len(numbers) >= MANY else structure_groups(structure for structure, _ in pairs)
    if len(group) != len(pairs):
        raise InputError(f"groups holds {len(group)} numbers for {len(pairs)} frames; expected one for each")
    return [int(own) for own in group]


def sample(pairs: Pairs, group: Sequence[int], targets: Sequence[str] | None = None) -> list[int] | None:
    """The frames of some groups, evenly from all kinds, where fits to all would take long; ``None`` where they do not.

    ``targets`` are the label kinds that are fitted, all without.
    """
    costs: dict[int, float] = {}
    kinds: dict[int, Any] = {}
    for (structure, labels), own in zip(pairs, group, strict=True):
        cost = CELL_COST if structure.periodic else 1.0
        fitted = set(labels.kinds) if targets is None else set(labels.kinds) & set(targets)
        if not fitted & {"forces", "stress"}:
            cost *= WITHOUT_GRADIENTS
        costs[own] = costs.get(own, 0.0) + cost * len(structure)
        kinds.setdefault(own, composition_and_charge(structure))
    every = sum(costs.values()) / MOST_ATOMS
    count = max(2 * FOLDS, int(len(costs) / every))
    if every <= 1.0 or count >= len(costs):
        return None
    rank = {kind: number for number, kind in enumerate(dict.fromkeys(kinds.values()))}
    ordered = sorted(costs, key=lambda own: rank[kinds[own]])
    taken = {ordered[int(i)] for i in np.linspace(0, len(ordered) - 1, count).round()}
    return [i for i, own in enumerate(group) if own in taken]


def coarse(settings: FitSettings) -> FitSettings:
    """The same with fewer representatives in kernels that nobody has chosen."""
    changes: dict[str, Any] = {}
    for name in settings.automatic:
        kernels = None if name == "charges" else getattr(settings, name)
        if kernels is not None:
            changes[name] = tuple(
                type(kernel)(**{**kernel.get_params(deep=False), "n_representatives": COARSE})
                for kernel in kernels
            )
    return replace(settings, **changes)


def folds_of(
    pairs: Pairs, folds: int | None, group: Sequence[int] | IntArray | None = None, seed: int = 0
) -> IntArray:
    """The fold of each frame; frames of one geometry stay together unless ``group`` says what does.

    Raises
    ------
    InputError
        For numbers that do not fit the frames.
    """
    group = groups_of(pairs, group)
    count = len(set(group))
    if count < 2:
        raise InputError(
            f"comparing models takes frames to leave out, and all {len(pairs)} belong to one group; give more frames, "
            "or other groups"
        )
    kinds = [composition_and_charge(structure) for structure, _ in pairs]
    return shuffled_folds(group, kinds, min(FOLDS, count) if folds is None else folds, seed)


def judge(
    pairs: Pairs,
    candidates: Mapping[str, FitSettings],
    fold: IntArray,
    *,
    cache: CacheFolder | None = None,
) -> tuple[Comparison, dict[str, FitResult]]:
    """Fit and refit all candidates.

    Parameters
    ----------
    pairs : sequence of (Structure, Labels)
    candidates : dict of str to FitSettings
        From simple to elaborate.
    fold : (frames,) int array
        In which each frame is left out.
    cache : CacheFolder, optional
        Where features may go that memory has no room for.

    Returns
    -------
    Comparison, dict of str to FitResult
        And the fits to all frames.

    Raises
    ------
    InputError, UnsupportedError
        If no candidate can be fitted: what the last one says.
    """
    indices = [frozenset(np.flatnonzero(fold == k).tolist()) for k in range(int(fold.max()) + 1)]
    kinds = {kind for _, labels in pairs for kind in labels.kinds}
    rows: dict[str, Candidate] = {}
    results: dict[str, FitResult] = {}
    first: dict[str, FitResult] = {}
    without: dict[str, list[Potential]] = {}
    failure: KQEqError | None = None
    closed = all(dipoles_alone(own, (labels for _, labels in pairs)) for own in candidates.values())

    def fitted(name: str, settings: FitSettings) -> tuple[FitResult, float, list[Potential]]:
        """A fit to all frames, when it had ended, and the potentials without each fold."""
        aware = settings.charge_aware
        plain = replace(settings, charge_aware=None)
        known = next((n for n in first if _first_stage(candidates[n]) == _first_stage(settings)), None)
        if aware is None or known is None:
            like = next((n for n in first if _shared(candidates[n]) == _shared(settings)), None)
            # fits in closed form have searches of a few seconds, and charges other spreads than electronegativities
            first[name] = fit_potential(
                pairs, plain, cache=cache, like=None if like is None else first[like], search=closed
            )
            known = name
        if aware is None:
            refitted = time.process_time()
            without[name] = list(refits(first[name], plain, indices, cache=cache))
            return first[name], refitted, without[name]
        result = second_stage(first[known], settings, aware, time.perf_counter())
        refitted = time.process_time()
        if known not in without:
            without[known] = list(refits(first[known], plain, indices, cache=cache))
        return (
            result,
            refitted,
            [
                second_stage(
                    replace(first[known], potential=before), settings, aware, 0.0, left_out
                ).potential
                for before, left_out in zip(without[known], indices, strict=True)
            ],
        )

    for name, settings in candidates.items():
        say(f"compare: {name}")
        started = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", KQEqWarning)
                result, refitted, own = fitted(name, settings)
                done = time.process_time()
                errors, by_charge, milliseconds = _errors(pairs, own, indices, kinds, settings.device)
        except KQEqError as error:
            failure = error
            rows[name] = Candidate(name, None, why_not=str(error))
            continue
        results[name] = result
        rows[name] = Candidate(
            name,
            errors,
            by_charge,
            refitted - started,
            done - refitted,
            result.parameters.size,
            milliseconds,
        )
    if not results:
        assert failure is not None
        raise failure
    best, reason, by = choose(rows)
    settings_of = {name: settings_to_take(own) for name, own in candidates.items()}
    return Comparison(best, reason, rows, settings_of, by, len(pairs), len(indices)), results


def settings_to_take(settings: FitSettings) -> dict[str, Any]:
    """What a candidate sets in the estimator."""
    found: dict[str, Any] = {"charges": settings.charges, "charge_aware": settings.charge_aware}
    if settings.charges is None:
        found |= {"electronegativity": None, "site_kernel": None}
    if settings.short_range is not None and any(kernel.condition for kernel in settings.short_range):
        found |= {"short_range": list(settings.short_range), "optimize": settings.optimize}
    return found


def _shared(settings: FitSettings) -> dict[str, Any]:
    """What two candidates must share to share representatives, spreads and noises."""
    kernels = {"short_range": settings.short_range, "electronegativity": settings.electronegativity}
    return {
        **{name: own and [kernel.to_dict() for kernel in own] for name, own in kernels.items()},
        "baseline": settings.baseline,
        "noise": dict(settings.noise),
        "targets": settings.targets,
        "e0": settings.e0,
    }


def _first_stage(settings: FitSettings) -> dict[str, Any]:
    """What two candidates must share to share all but a charge-aware short-range energy."""
    charges = None if settings.charges is None else settings.charges.to_dict()
    return {**_shared(settings), "charges": charges, "site_kernel": settings.site_kernel}


def _errors(
    pairs: Pairs, own: Sequence[Potential], folds: Sequence[frozenset[int]], kinds: set[str], device: Device
) -> tuple[Evaluation, dict[float, Evaluation], float]:
    """Errors on all left-out frames together and by total charge; milliseconds of a prediction, for each atom."""
    triples: list[tuple[Structure, Labels, Prediction]] = []
    started = time.perf_counter()
    for potential, fold in zip(own, folds, strict=True):
        kept = replace(potential, baseline=stored(potential.baseline))
        chosen = [pairs[i] for i in sorted(fold)]
        predictions = kept.predict_many([structure for structure, _ in chosen], kinds, device=device)
        triples += [
            (structure, labels, prediction)
            for (structure, labels), prediction in zip(chosen, predictions, strict=True)
        ]
    milliseconds = 1e3 * (time.perf_counter() - started) / sum(len(structure) for structure, _ in pairs)
    skipped = {} if own[0].has_energy else dict.fromkeys(("energy", "forces", "stress"), "not fitted")

    def of(some: Iterator[tuple[Structure, Labels, Prediction]]) -> Evaluation:
        return compare(some, skipped)

    charges = sorted({round(structure.total_charge, 6) for structure, _, _ in triples})
    by_charge = {
        charge: of(item for item in triples if round(item[0].total_charge, 6) == charge) for charge in charges
    }
    return of(iter(triples)), by_charge if len(charges) > 1 else {}, milliseconds


def choose(rows: Mapping[str, Candidate]) -> tuple[str, str, str]:
    """The model to take, why, and the label kind that decided.

    The first of :data:`JUDGES` decides.  Of those within :data:`TIE` of the smallest error the simplest is taken, unless
    its energies or dipoles are :data:`MUCH_WORSE`.
    """
    errors = {name: own.errors for name, own in rows.items() if own.errors is not None}
    kind = next(
        (kind for kind in JUDGES if any(kind in own for own in errors.values())),
        None,
    )
    if kind is None:
        raise InputError("the frames carry no label that any of the models predicts")
    factor, unit = SHOWN[kind]
    judged = {name: own[kind].rmse for name, own in errors.items() if kind in own}
    lowest = min(judged, key=judged.__getitem__)
    limit = (1.0 + TIE) * judged[lowest]
    near = [name for name, error in judged.items() if error <= limit]
    simplest = near[0]
    for other in ("energy", "dipole"):
        also = {name: errors[name][other].rmse for name in near if other in errors[name]}
        if other != kind and also:  # a model without dipoles is not held against one that has them
            most = MUCH_WORSE * min(also.values())
            near = [name for name in near if also.get(name, 0.0) <= most]
    best = near[0]

    def words(name: str) -> str:
        return f"{name} {factor * judged[name]:.3g} {unit}"

    others = [name for name in judged if name != best]
    told = f"take {best}: "
    if best == lowest:
        told += f"its {kind} of left-out frames have the smallest error ({factor * judged[best]:.3g} {unit}"
        told += f"; next {words(min(others, key=judged.__getitem__))})" if others else ")"
    elif judged[lowest] < judged[best] and lowest not in near:
        told += (
            f"its {kind} of left-out frames ({factor * judged[best]:.3g} {unit}) are within {TIE:.0%} of the best "
            f"({words(lowest)}), whose energies or dipoles are worse by more than a factor of {MUCH_WORSE:g}"
        )
    else:
        told += (
            f"the simplest of those within {TIE:.0%} of the smallest error of {kind} of left-out frames "
            f"({factor * judged[best]:.3g} {unit}; {words(lowest)})"
        )
        if best != simplest:
            told += f", {simplest} aside, whose energies or dipoles are worse by more than a factor of {MUCH_WORSE:g}"
    dipoles = {name: own["dipole"].rmse for name, own in errors.items() if "dipole" in own}
    if dipoles and best not in dipoles:
        name = min(dipoles, key=dipoles.__getitem__)
        told += (
            f". It predicts no dipoles and feels no field: for these take {name} ({dipoles[name]:.3g} e·Å"
            + (f", {kind} {factor * judged[name]:.3g} {unit})" if name in judged else ")")
        )
    return best, told, kind


def judge_affordably(
    pairs: Pairs,
    candidates: Mapping[str, FitSettings],
    *,
    folds: int | None = None,
    groups: Sequence[int] | IntArray | None = None,
    seed: int = 0,
    cache: CacheFolder | None = None,
) -> tuple[Comparison, dict[str, FitResult]]:
    """:func:`judge` on all frames, or where that would take long on some, without the fits then.

    Raises
    ------
    InputError, UnsupportedError
        As :func:`folds_of` and :func:`judge`.
    """
    group = groups_of(pairs, groups)
    chosen = sample(pairs, group, next(iter(candidates.values())).targets)
    if chosen is None:
        return judge(pairs, candidates, folds_of(pairs, folds, group, seed), cache=cache)
    some = [pairs[i] for i in chosen]
    fold = folds_of(some, folds, [group[i] for i in chosen], seed)
    say(f"compare: {len(some)} of {len(pairs)} frames")
    comparison, _ = judge(some, {name: coarse(own) for name, own in candidates.items()}, fold, cache=cache)
    return replace(comparison, of=len(pairs)), {}


__all__ = [
    "FOLDS",
    "Candidate",
    "Comparison",
    "charge_candidates",
    "choose",
    "coarse",
    "dipole_candidates",
    "folds_of",
    "judge",
    "judge_affordably",
    "sample",
]
