"""Hyperparameters by the density of labels of frames that are left out, in closed form.

At a linearisation ŷ = c + J u, in units of the noise and with prior u ~ N(0, 1), the labels of a frame f are predicted
from all others with

    y_f − ŷ_f = (1 − H_ff)⁻¹ r_f,    covariance (1 − H_ff)⁻¹,    H_ff = J_f H⁻¹ J_fᵀ,    H = JᵀJ + 1

(theory section 7; Sundararajan & Keerthi 2001, *Neural Comput.* 13, 1103, for blocks of labels instead of single ones).
Where labels are fewer than parameters the same comes from their covariance C = JJᵀ + 1:  (1 − H_ff)⁻¹ = ([C⁻¹]_ff)⁻¹ and
y_f − ŷ_f = ([C⁻¹]_ff)⁻¹ (C⁻¹ t)_f.

The sum of log densities judges prior spreads, noises and kernels by predictions.  The marginal likelihood
(:mod:`kqeq.fitting.evidence.evidence`) judges them by whether the whole set of labels is a typical draw from the prior,
which it never is where the model is wrong in form.

Dimensions: P parameters, n labels, m labels of the frames that are left out, K label kinds, G groups of columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike

import numpy as np

from kqeq.backend import CPU, Device, blas, cache_budget, cholesky, to_numpy
from kqeq.backend.linalg import factorise, solve_lower
from kqeq.errors import NotPositiveDefiniteError
from kqeq.fitting.evidence.evidence import (
    AnyEvidence,
    DualEvidence,
    Evidence,
    KindSums,
    column_groups,
    inverse_factor,
)
from kqeq.fitting.evidence.hyperparameters import Learned, describe, rescale
from kqeq.fitting.evidence.search_checkpoint import (
    Reached,
    read_search,
    spreads_of,
    with_spreads,
    write_search,
)
from kqeq.fitting.least_squares.solver import Solution
from kqeq.fitting.minimisation import steps_without
from kqeq.fitting.parameters import Parameters, SitePart
from kqeq.fitting.problem import FitProblem
from kqeq.fitting.rows.blocks import deviation, target_vector
from kqeq.fitting.rows.cache import CacheFolder
from kqeq.fitting.rows.features import MEMORY_BUDGET, TrainingFrame
from kqeq.frames.grouping import shuffled_folds, structure_groups
from kqeq.typing import FloatArray, IntArray

NOISE_RANGE = (1.0 / 30.0, 100.0)
"""Learned noises stay within these multiples of the given ones."""

SPREAD_RANGE = (1e-3, 30.0)
"""Learned prior spreads stay within these multiples of the given ones."""

MOST_CHI = 8.0
"""Those of electronegativities grow less: beyond some 10 eV/e they are no electronegativities, and extrapolate badly."""

ROUNDING_SHARES = (1e-15, 1e-14, 1e-13, 1e-12)
"""Shares of the diagonal that stand in for what rounding took from normal equations."""

STEPS = (math.log(4.0), math.log(2.0))
"""Steps of the search in the logarithm of a noise or spread, one after the other."""

LEAD = math.log(6.0)
"""How much larger and smaller spreads are where one kernel leads."""

PRIOR = math.log(30.0)
"""Standard deviation of those logarithms around what was given: settles what labels leave open."""

ENOUGH = 1.0
"""Gain of log density for which the search goes on."""

SWEEPS = 1
"""Times that the small steps, on all labels, go through all noises and spreads.

More often they fit to chance: water, 55 instead of 45 meV/Å on test frames without charges, 48 instead of 38 with them;
five other sets change by less than 3 %.
"""

FEW_LABELS = 300
"""Labels that the large steps of a search look at."""

MOST_LABELS = 1500
"""Labels of frames that are left out, where rows are not kept for all."""

FOLDS = 3
"""Fits without some of the frames that say whether charges pay for forces."""

PAYS = 0.05
"""Relative change of the error of forces that counts."""

UNEARNED = 1e-3
"""Log density per label that a kernel has to earn to stay."""


LOST = 5.0
"""Where the noise of a label grows by more than this without charges, a fit with them is tried at the given noise too.

Energies that depend on where charge sits look like noise to an energy without charges, and would stay ignored (water:
2.2 meV/atom, 1.4 with it; docs/decisions.md, where it does not help as well).
"""

REACH_LABELS = 2000
"""Labels on which a kernel that reaches further is tried before a search with it."""

REACH_SPREADS = (1.0, 4.0, 16.0)
"""Its spread there, relative to that of the kernel whose place it takes."""

REACH_GAIN = 0.1
"""Log density per label that it has to gain."""

REACH_ERROR = 0.9
"""Times the error of left-out forces that it may leave.

Chains gain 0.3 to 0.4 and lose 27 and 40 % of their error; six other sets gain less than 0.1, and lose less than 3 % or
gain nothing (docs/decisions.md).
"""


Block = tuple[IntArray, FloatArray, FloatArray, FloatArray]
"""Labels left out together; eigenvalues of the precision of their errors, errors along its eigenvectors, and these."""


@dataclass(frozen=True)
class Score:
    """How well left-out frames are predicted.

    Attributes
    ----------
    density : float
        Sum of the log densities of their labels.
    errors : dict of str to float
        Root-mean-square error by label kind: eV/atom for energies, else in the unit of the label.
    """

    density: float
    errors: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Predictions of left-out frames as a function of noises and spreads, around one linearisation.

    Attributes
    ----------
    evidence : Evidence or DualEvidence
        Sums of all frames.
    kind, owner : (m,) int arrays
        Kind of every label that is left out, and the frame it is left out with.
    units : (m,) array
        From units of the accumulated noise to errors.
    places : (m,) int array
        Where the labels are among the rows of a :class:`DualEvidence`.
    rows, targets : (m, P), (m,) arrays
        Theirs.
    """

    evidence: AnyEvidence
    kind: IntArray
    owner: IntArray
    units: FloatArray
    places: IntArray
    rows: FloatArray
    targets: FloatArray

    def few(self) -> LeftOut:
        """The same with about :data:`FEW_LABELS` labels, of frames evenly spread, and no others."""
        every = -(-len(self.kind) // FEW_LABELS)
        if every == 1:
            return self
        frames = [own for i, own in enumerate(self._frames()) if i % every == 0]
        chosen = np.concatenate(frames)
        return _dual(
            self.names,
            self.evidence.groups,
            self.kind[chosen],
            self.owner[chosen],
            self.units[chosen],
            self.rows[chosen],
            self.targets[chosen],
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Label kinds, in the order of theta."""
        return self.evidence.names

    @property
    def size(self) -> int:
        """K + G."""
        return self.evidence.size

    def evaluate(self, theta: FloatArray) -> Score:
        """Score at logarithms (K + G,) of noises and spreads relative to the accumulated ones.

        Raises
        ------
        NotPositiveDefiniteError
            If rounding makes a matrix indefinite.
        """
        with blas.one_thread():
            if isinstance(self.evidence, DualEvidence):
                return self._dual(self.evidence, theta)
            return self._primal(self.evidence, theta)

    def _primal(self, evidence: Evidence, theta: FloatArray) -> Score:
        lower, u, columns = posterior(evidence, theta)
        noise = np.exp(theta[: len(self.names)])[self.kind]
        rows = self.rows * (columns / noise[:, None])
        residual = self.targets / noise - rows @ u
        scaled = solve_lower(lower, rows.T)

        def blocks() -> Iterator[Block]:
            for own in self._frames():
                part = scaled[:, own]
                values, vectors = np.linalg.eigh(np.eye(len(own)) - part.T @ part)
                # labels that only their own frame determines make it nearly singular
                values = np.maximum(values, 1e-10)
                yield own, values, vectors.T @ residual[own] / values, vectors

        return self._score(blocks(), noise)

    def _dual(self, evidence: DualEvidence, theta: FloatArray) -> Score:
        lower, weights = evidence.solve(theta)
        inverse = inverse_factor(lower)

        def blocks() -> Iterator[Block]:
            for own in self._frames():
                there = self.places[own]
                part = inverse[:, there]  # C⁻¹ = L⁻ᵀ L⁻¹, of which only these blocks are needed
                values, vectors = np.linalg.eigh(part.T @ part)
                values = np.maximum(values, 1e-300)
                yield own, values, vectors.T @ weights[there] / values, vectors

        return self._score(blocks(), np.ones(len(self.kind)))

    def _frames(self) -> Iterator[IntArray]:
        """Labels of each frame that is left out; they are side by side."""
        ends = np.flatnonzero(np.diff(self.owner)) + 1
        yield from np.split(np.arange(len(self.owner)), ends)

    def _score(self, blocks: Iterator[Block], noise: FloatArray) -> Score:
        """From eigenvalues and eigenvectors of the precision of each block of errors, and the errors along them."""
        density = -float(np.log(noise * self.units).sum())
        errors = np.empty(len(self.kind))
        for own, values, along, vectors in blocks:
            density += 0.5 * float(np.log(values).sum() - values @ along**2)
            errors[own] = vectors @ along
        errors *= noise * self.units
        found = {
            name: float(np.sqrt(np.mean(errors[self.kind == k] ** 2)))
            for k, name in enumerate(self.names)
            if (self.kind == k).any()
        }
        return Score(density, found)

    def parameters(self, theta: FloatArray) -> FloatArray:
        """The most probable parameters, (P,)."""
        if isinstance(self.evidence, DualEvidence):
            return self.evidence.parameters(theta)
        return posterior(self.evidence, theta)[1]


def posterior(evidence: Evidence, theta: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Cholesky factor of H, the most probable parameters, and the factors of all columns."""
    columns = evidence.scales(theta)
    size = len(columns)
    hessian, rhs = np.zeros((size, size)), np.zeros(size)
    weights = np.exp(-2.0 * theta[: len(evidence.names)])
    for weight, sums in zip(weights, evidence.kinds.values(), strict=True):
        hessian += weight * sums.gram
        rhs += weight * sums.rhs
    hessian *= columns[:, None]
    hessian *= columns
    hessian[np.diag_indices_from(hessian)] += 1.0
    lower = factor_rounded(hessian)
    u = solve_lower(lower, solve_lower(lower, columns * rhs), transposed=True)
    return lower, u, columns


def factor_rounded(hessian: FloatArray) -> FloatArray:
    """Cholesky factor of H, or of H with the least share of its diagonal more where rounding of sums made it indefinite.

    Energies of several charge states under one prior make columns whose squares exceed the prior's 1 by 1e17, so that
    differences of such columns drown in rounding.  A share of the diagonal says no more than that rounding does.
    """
    diagonal = hessian.diagonal().copy()
    for share in (0.0, *ROUNDING_SHARES[:-1]):
        np.fill_diagonal(hessian, diagonal * (1.0 + share))
        lower = cholesky(hessian)
        if lower is not None:
            return np.asarray(lower)
    np.fill_diagonal(hessian, diagonal * (1.0 + ROUNDING_SHARES[-1]))
    return np.asarray(factorise(hessian, "the matrix of the normal equations", "raise the smallest noise"))


def collect(problem: FitProblem, u: FloatArray) -> LeftOut:
    """Rows and sums of all frames at ``u``.

    Where labels are fewer than parameters all rows are kept; otherwise Gram matrices, and rows of frames (evenly spread)
    with :data:`MOST_LABELS` labels.
    """
    names = sorted({kind for frame in problem.frames for kind in frame.labels.kinds})
    groups = tuple(columns for _, columns in column_groups(problem.parameters))
    total = sum(frame.n_labels for frame in problem.frames)
    dual = total < problem.size
    share = 1.0 if dual else min(1.0, MOST_LABELS / total)
    sums = {} if dual else {name: _Sums(problem.size) for name in names}
    kept: list[tuple[FloatArray, FloatArray, IntArray, IntArray, FloatArray]] = []
    taken = 0.0
    frames = iter(problem.frames)
    with blas.one_thread():
        for number, (found, jacobian) in enumerate(problem.rows(u, jacobian="full")):
            frame = next(frames)
            assert jacobian is not None
            if frame.labels.weight == 0.0:
                continue
            residual, rows = to_numpy(found), to_numpy(jacobian)
            targets = residual + rows @ u
            kinds, units, start = [], [], 0
            for kind in frame.labels.kinds:
                stop = start + target_vector(frame, kind).size
                scale = deviation(frame, kind, problem.noise)  # the frame's weight included
                kinds.append(np.full(stop - start, names.index(kind)))
                units.append(np.full(stop - start, scale / (len(frame.structure) if kind == "energy" else 1)))
                if not dual:
                    sums[kind].add(rows[start:stop], targets[start:stop])
                start = stop
            taken += share
            if taken >= 1.0 - 1e-9:
                taken -= 1.0
                own = np.concatenate(kinds)
                kept.append((rows, targets, own, np.full(len(own), number), np.concatenate(units)))
    parts = [np.concatenate(part) for part in zip(*kept, strict=True)]
    all_rows, all_targets, numbers, owner, all_units = parts
    if dual:
        return _dual(tuple(names), groups, numbers, owner, all_units, all_rows, all_targets)
    evidence = Evidence({name: sums[name].finish() for name in names}, groups, 0.0)
    return LeftOut(evidence, numbers, owner, all_units, np.arange(len(numbers)), all_rows, all_targets)


def _dual(
    names: tuple[str, ...],
    groups: tuple[IntArray, ...],
    kind: IntArray,
    owner: IntArray,
    units: FloatArray,
    rows: FloatArray,
    targets: FloatArray,
) -> LeftOut:
    """With the covariance of the labels themselves."""
    order = np.argsort(kind, kind="stable")
    places = np.empty(len(kind), dtype=np.int64)
    places[order] = np.arange(len(kind))
    by_kind = {name: (rows[kind == k], targets[kind == k]) for k, name in enumerate(names)}
    return LeftOut(DualEvidence.build(by_kind, groups, 0.0), kind, owner, units, places, rows, targets)


class _Sums:
    """Gram matrix of the labels of one kind, from rows that wait until they are many."""

    def __init__(self, size: int) -> None:
        self.total = KindSums(np.zeros((size, size)), np.zeros(size), 0.0, 0)
        self.waiting: list[tuple[FloatArray, FloatArray]] = []
        self.count = 0

    def add(self, rows: FloatArray, targets: FloatArray) -> None:
        self.waiting.append((rows, targets))
        self.count += len(targets)
        if self.count >= 512:
            self.finish()

    def finish(self) -> KindSums:
        if self.waiting:
            rows = np.concatenate([r for r, _ in self.waiting])
            targets = np.concatenate([t for _, t in self.waiting])
            self.total.add(KindSums(rows.T @ rows, rows.T @ targets, float(targets @ targets), len(targets)))
            self.waiting, self.count = [], 0
        return self.total


def search(
    left_out: LeftOut,
    bounds: Sequence[tuple[float, float]],
    starts: Sequence[FloatArray] = (),
) -> tuple[FloatArray, Score]:
    """Noises and spreads under which left-out frames are most probable: one coordinate after the other.

    Large steps are taken on few frames where there are many, and from several starts; the best of them goes on.

    Parameters
    ----------
    left_out : LeftOut
    bounds : sequence of (float, float)
        On every logarithm; equal ones hold it.
    starts : sequence of (K + G,) arrays
        Beside zero.

    Returns
    -------
    (K + G,) array, Score

    Raises
    ------
    NotPositiveDefiniteError
        If the normal equations are singular wherever they are tried.
    """
    few = left_out.few()
    low, high = np.array(bounds).T
    reached = [
        _climb(few, bounds, np.clip(start, low, high), STEPS[0])
        for start in (np.zeros(left_out.size), *starts)
    ]
    best = max(reached, key=lambda found: -math.inf if found[1] is None else _value(found[1], found[0]))[0]
    best, score = _climb(left_out, bounds, best, STEPS[1], SWEEPS)
    if score is None:
        raise NotPositiveDefiniteError("the normal equations are singular at every noise; raise the noises")
    return best, score


def _value(score: Score, theta: FloatArray) -> float:
    """Log density and log prior."""
    return score.density - 0.5 * float(theta @ theta) / PRIOR**2


def _one_leads(left_out: LeftOut, parameters: Parameters) -> list[FloatArray]:
    """Starts at which one kernel of the energy is much larger than the others."""
    names = [name for name, _ in column_groups(parameters)]
    own = [i for i, name in enumerate(names) if name.startswith("short_range") and name.endswith(" delta")]
    starts = []
    for leader in own if len(own) > 1 else ():
        start = np.zeros(left_out.size)
        start[[len(left_out.names) + i for i in own]] = -LEAD
        start[len(left_out.names) + leader] = LEAD
        starts.append(start)
    return starts


def _climb(
    left_out: LeftOut,
    bounds: Sequence[tuple[float, float]],
    start: FloatArray,
    step: float,
    sweeps: int | None = None,
) -> tuple[FloatArray, Score | None]:
    """Uphill in steps of one size, coordinate by coordinate, until none is better or so many times."""
    known: dict[tuple[float, ...], tuple[float, Score | None]] = {}

    def value(theta: FloatArray) -> float:
        key = tuple(np.round(theta, 6))
        if key not in known:
            try:
                score = left_out.evaluate(theta)
                known[key] = (_value(score, theta), score)
            except NotPositiveDefiniteError:
                known[key] = (-math.inf, None)
        return known[key][0]

    best, moved, swept = start, True, 0
    while moved and swept != sweeps:
        moved, swept = False, swept + 1
        for i, (low, high) in enumerate(bounds):
            if high - low < 1e-9:
                continue
            for sign in (1.0, -1.0):
                went = False
                while True:
                    candidate = best.copy()
                    candidate[i] = min(max(best[i] + sign * step, low), high)
                    if candidate[i] == best[i] or not value(candidate) > value(best) + ENOUGH:
                        break
                    best, moved, went = candidate, True, True
                if went:
                    break
    value(best)
    return best, known[tuple(np.round(best, 6))][1]


def unearned(
    left_out: LeftOut,
    parameters: Parameters,
    theta: FloatArray,
    parts: Sequence[str] = ("short_range", "electronegativity"),
) -> list[str]:
    """Kernels of the parts without which left-out frames are predicted as well; never all of a part."""
    names = [name for name, _ in column_groups(parameters)]
    dropped: list[str] = []
    theta = theta.copy()
    enough = UNEARNED * len(left_out.kind) + 1.0
    now = left_out.evaluate(theta).density
    for part_name in parts:
        part = parameters.parts.get(part_name)
        if part is None:
            continue
        candidates = [name for name, kernel in parameters.kernels.items() if kernel in part.kernels]
        while len(candidates) > 1:
            trials = {}
            for name in candidates:
                trial = theta.copy()
                trial[len(left_out.names) + names.index(f"{name} delta")] = math.log(1e-8)
                trials[name] = (left_out.evaluate(trial).density, trial)
            least = max(trials, key=lambda name: trials[name][0])
            if trials[least][0] < now - enough:
                break
            now, theta = trials[least]
            candidates.remove(least)
            dropped.append(least)
    return dropped


@dataclass(frozen=True, eq=False)
class _Point:
    """A fit: what it was asked for, where it ended, and how well it predicts left-out frames there."""

    parameters: Parameters
    noise: dict[str, float]
    u: FloatArray
    left_out: LeftOut
    score: Score


def learn_left_out(
    frames: Sequence[TrainingFrame],
    parameters: Parameters,
    noise: Mapping[str, float],
    *,
    linear: bool,
    solve: Callable[[FitProblem, FloatArray | None], Solution],
    report: Callable[[str], None] = lambda _: None,
    held: Sequence[str] = (),
    reach: bool = False,
    seed: int = 0,
    mark: str = "",
    resume: str | PathLike[str] | None = None,
    device: Device = CPU,
    cache: CacheFolder | None = None,
) -> Learned:
    """Learn noises and prior spreads, and leave kernels away that do not earn their place.

    With charges, the short-range energy is settled alone, where it is linear and the judgement exact; then spreads of the
    electronegativities, the noise of dipoles and, within limits, the other noises around a fit.  What that gives is
    fitted and judged again; where it is worse, half the way is tried, and the best is kept.

    Parameters
    ----------
    frames, parameters, noise, linear, solve, report, mark, device, cache
        As for :func:`kqeq.fitting.evidence.hyperparameters.learn_by_evidence`.
    held : sequence of str
        Label kinds whose noise stays as it is given.
    reach : bool
        Whether the first two kernels of the energy are alternatives, the first of them one that reaches further: it is
        taken where left-out frames are predicted much better with it.
    seed : int
        Of the order in which frames are left out.
    resume : path-like, optional
        Checkpoint: written after every fit of the search, and continued from if it is there.

    Returns
    -------
    Learned
    """
    first, given = dict(noise), parameters
    known = read_search(resume, mark, given)
    table: list[str] = [] if known is None else list(known.table)
    if known is not None and known.stage == "finished":
        assert known.u is not None
        found = with_spreads(given, known.spreads)
        return Learned(found, dict(known.noise), known.u, known.value, tuple(table), True)

    def finish(at: Parameters, own: dict[str, float], u: FloatArray, value: float) -> Learned:
        write_search(resume, mark, Reached("finished", spreads_of(given, at), own, table, value, {}, u))
        return Learned(at, own, u, value, tuple(table), True)

    def tell(at: Parameters, own: Mapping[str, float], score: Score, dropped: Sequence[str] = ()) -> None:
        text = describe(at, own, list(score.errors), score.density, "left-out log density")
        text += f"; left-out errors {_words(score)}"
        table.append(f"{text}; dropped {', '.join(dropped)}" if dropped else text)
        report(table[-1])

    def at(
        own: Sequence[TrainingFrame],
        candidate: Parameters,
        noises: dict[str, float],
        start: FloatArray | None,
        solved: FloatArray | None = None,
    ) -> _Point:
        closed = linear or candidate.electronegativity is None
        problem = FitProblem(own, candidate, noises, linear=closed, device=device, cache=cache)
        try:
            u = solved
            if u is None:
                u = np.zeros(problem.size) if closed else solve(problem, start).u
            left_out = collect(problem, u)
        finally:
            problem.close()
        return _Point(candidate, noises, u, left_out, left_out.evaluate(np.zeros(left_out.size)))

    def search_from(point: _Point) -> tuple[Learned, Score]:
        """A linear problem, from where it was accumulated."""
        starts = _one_leads(point.left_out, point.parameters)
        theta, score = search(point.left_out, _bounds(point, held), starts)
        dropped = unearned(point.left_out, point.parameters, theta)
        found, noises = rescale(point.parameters, point.noise, point.left_out, theta)
        u = point.left_out.parameters(theta)
        if dropped:
            found, kept = found.without(dropped)
            u = u[kept]
        tell(found, noises, score, dropped)
        return Learned(found, noises, u, score.density, tuple(table), True), score

    def settle(own: Sequence[TrainingFrame], candidate: Parameters) -> tuple[Learned, Score]:
        """A linear problem; with the first kernel of the energy in place of the second, if left-out frames ask for it."""
        if not reach or candidate.short_range is None:
            return search_from(at(own, candidate, first, None))
        near, far = (_without_energy_kernel(candidate, number) for number in (0, 1))
        settled, score = search_from(at(own, near, first, None))
        # first at the spreads and noises that were found, and on part of the labels
        noises, alike = settled.noise, _with_spreads_of(settled.parameters, near, far)
        every = -(-sum(frame.n_labels for frame in own) // REACH_LABELS)
        trial = at(own[::every], alike, noises, None)
        before = score if every == 1 else at(own[::every], settled.parameters, noises, None).score
        if not _reaches(before, _best_spread(trial), trial.left_out):
            return settled, score
        whole = trial if every == 1 else at(own, alike, noises, None)
        other, better = search_from(whole)
        if not _reaches(score, better, whole.left_out):
            del table[-1]
            return settled, score
        table.append(
            "a farther kernel of the energy in place of the first predicts left-out frames better: "
            f"{_words(better)} instead of {_words(score)}"
        )
        report(table[-1])
        return replace(other, table=tuple(table)), better

    if linear:
        settled, score = settle(frames, parameters)
        return finish(settled.parameters, settled.noise, settled.u, score.density)
    alone: Mapping[str, float] = {}
    now, value = dict(first), 0.0
    without: tuple[list[TrainingFrame], Parameters, dict[str, float]] | None = None
    if known is not None:
        alone, now, value = known.errors, dict(known.noise), known.value
        parameters = with_spreads(given, known.spreads)
        only, part = _short_range(frames, parameters)
        if part is not None:
            without = only, part, now
    elif (
        parameters.electronegativity is not None
        and parameters.short_range is not None
        and parameters.short_range.kernels
    ):
        only, part = _short_range(frames, parameters)
        if part is not None:
            settled, score = settle(only, part)
            parameters, now = _adopt(parameters, settled.parameters), dict(settled.noise)
            alone, value = score.errors, score.density
            without = only, settled.parameters, now
        elif reach:  # nothing says that the farther kernel is better
            parameters = _without_energy_kernel(parameters, 0)
        so_far = Reached("alone", spreads_of(given, parameters), now, table, value, alone)
        write_search(resume, mark, so_far)
    elif reach and parameters.short_range is not None:
        parameters = _without_energy_kernel(parameters, 0)
    if "energy" in alone and "energy" not in held:
        # a noise above the error itself would leave energies out of the fit with charges
        atoms = float(np.mean([len(frame.structure) for frame in frames if frame.labels.energy is not None]))
        now = {**now, "energy": min(now["energy"], max(first["energy"], math.sqrt(atoms) * alone["energy"]))}
    start = at(frames, parameters, now, None, None if known is None else known.u)
    lost = [k for k in alone if k not in held and now[k] > LOST * first[k]]
    if lost and (known is None or known.u is None):  # else what was chosen is known
        hoped = {**now, **{kind: first[kind] for kind in lost}}
        again = at(frames, parameters, hoped, None)
        if again.score.density > start.score.density:
            start, now = again, hoped
    so_far = Reached("start", spreads_of(given, parameters), now, table, value, alone, start.u)
    write_search(resume, mark, so_far)
    theta, _ = search(start.left_out, _bounds(start, held, _SHORT_RANGE, _reach(start.score, alone)))
    dropped = unearned(start.left_out, parameters, theta, ("electronegativity",))
    best = start
    for part_of in (1.0, 0.5):
        candidate, noises = rescale(parameters, now, start.left_out, part_of * theta)
        u = start.left_out.parameters(part_of * theta)
        if dropped:
            candidate, kept = candidate.without(dropped)
            u = u[kept]
        point = at(frames, candidate, noises, u)
        if point.score.density > best.score.density:
            best = point
            break
    tell(best.parameters, best.noise, best.score, dropped if best is not start else ())
    if without is not None and "forces" in best.score.errors:
        table.append(_do_charges_pay(frames, best, without, device, cache, seed))
        report(table[-1])
    return finish(best.parameters, best.noise, best.u, best.score.density)


def _without_energy_kernel(parameters: Parameters, number: int) -> Parameters:
    """The same without one of the kernels of the energy."""
    names = [name for name in parameters.kernels if name.startswith("short_range")]
    return parameters.without([names[number]])[0]


def _with_spreads_of(found: Parameters, near: Parameters, far: Parameters) -> Parameters:
    """``far`` with the spreads that a search from ``near`` found; both have one kernel of their own, the first."""
    known = {id(kernel.feature_map): kernel.delta for kernel in found.kernels.values()}
    kernels = {}
    for (name, kernel), other in zip(far.kernels.items(), near.kernels.values(), strict=True):
        kernels[name] = replace(kernel, delta=known.get(id(other.feature_map), kernel.delta))
    parts = {
        name: replace(part, offset_spread=found.parts[name].offset_spread) for name, part in far.parts.items()
    }
    return far.with_parts(parts).with_kernels(kernels)


def _best_spread(point: _Point) -> Score:
    """The best score over :data:`REACH_SPREADS` of the first kernel."""
    names = [name for name, _ in column_groups(point.parameters)]
    place = len(point.left_out.names) + next(i for i, name in enumerate(names) if name.endswith(" delta"))
    scores = []
    for factor in REACH_SPREADS:
        theta = np.zeros(point.left_out.size)
        theta[place] = math.log(factor)
        scores.append(point.left_out.evaluate(theta))
    return max(scores, key=lambda score: score.density)


def _reaches(before: Score, after: Score, left_out: LeftOut) -> bool:
    """Whether a farther kernel earns its cost."""
    kind = "forces" if "forces" in before.errors else next(iter(before.errors))
    gained = after.density - before.density > REACH_GAIN * len(left_out.kind)
    return gained and after.errors[kind] < REACH_ERROR * before.errors[kind]


def _do_charges_pay(
    frames: Sequence[TrainingFrame],
    best: _Point,
    without: tuple[list[TrainingFrame], Parameters, dict[str, float]],
    device: Device,
    cache: CacheFolder | None,
    seed: int,
) -> str:
    """What fits without some of the frames say of the forces there, with charges and without, and what to do.

    The closed form does not do for this: it does not see what the electronegativities owe to a frame (alkanes, fitted to
    the test frames: 43 meV/Å with charges and 48 without, where test errors are 51 and 48).
    """
    own, part, noise = without
    shared = {frame.index for frame in own if frame.labels.forces is not None}
    if len(shared) < FOLDS:
        return "too few frames to say whether charges pay for forces"
    chosen = [frame for frame in frames if frame.index in shared]
    numbers = structure_groups(frame.structure for frame in chosen)
    if len(set(numbers)) < FOLDS:
        return "too few geometries to say whether charges pay for forces"
    kinds = [(f.structure.numbers.tobytes(), round(f.structure.total_charge, 6)) for f in chosen]
    parts = shuffled_folds(numbers, kinds, FOLDS, seed)
    folds = [
        {frame.index for frame, fold in zip(chosen, parts, strict=True) if fold == k} for k in range(FOLDS)
    ]
    mine, alone = (
        1e3 * _refit_error(some, at, noises, u, folds, device, cache)
        for some, at, noises, u in (
            (frames, best.parameters, best.noise, best.u),
            (own, part, noise, np.zeros(part.size)),
        )
    )
    text = f"forces of left-out frames: {mine:.3g} meV/Å with charges, {alone:.3g} meV/Å without"
    if mine > (1.0 + PAYS) * alone:
        return (
            f"{text}; charges make forces worse here: unless you need dipoles, fields or charge states, fit with "
            'electronegativity=None, charges=None, or try other charge models with charges="auto"'
        )
    if mine > (1.0 - PAYS) * alone:
        return (
            f"{text}; charges do not pay for forces here: unless you need dipoles, fields or charge states, the "
            "short-range energy alone is as good and faster (electronegativity=None, charges=None)"
        )
    return text


def _refit_error(
    frames: Sequence[TrainingFrame],
    parameters: Parameters,
    noise: dict[str, float],
    u: FloatArray,
    folds: Sequence[Collection[int]],
    device: Device,
    cache: CacheFolder | None,
) -> float:
    """Root-mean-square error of the forces of each fold, from a step without its frames, eV/Å."""
    linear = parameters.electronegativity is None
    budget = cache_budget(device.like, MEMORY_BUDGET)
    problem = FitProblem(frames, parameters, noise, linear=linear, budget=budget, device=device, cache=cache)
    everything = {frame.index for frame in frames}
    errors: list[FloatArray] = []
    try:
        for fold, other in zip(folds, steps_without(problem, u, folds), strict=True):
            left = problem.without(everything - set(fold))
            own = [frame for frame in problem.frames if frame.index in fold]
            for frame, (found, _) in zip(own, left.rows(other, jacobian="none"), strict=True):
                residual, start = to_numpy(found), 0
                for kind in frame.labels.kinds:
                    stop = start + target_vector(frame, kind).size
                    if kind == "forces":
                        errors.append(deviation(frame, kind, noise) * residual[start:stop])
                    start = stop
    finally:
        problem.close()
    return float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))


def _words(score: Score) -> str:
    factors = {
        "energy": (1e3, "meV/atom"),
        "forces": (1e3, "meV/Å"),
        "dipole": (1.0, "e·Å"),
        "charges": (1.0, "e"),
    }
    words = []
    for kind, error in score.errors.items():
        factor, unit = factors.get(kind, (1.0, ""))
        words.append(f"{kind} {factor * error:.3g} {unit}".rstrip())
    return ", ".join(words)


def _bounds(
    point: _Point, held: Sequence[str], settled: Sequence[str] = (), reach: float = math.inf
) -> list[tuple[float, float]]:
    """Bounds on the change of each logarithm: spreads of offsets are held, what is settled moves by ``reach``."""
    bounds = []
    for kind in point.left_out.names:
        low, high = (math.log(factor) for factor in NOISE_RANGE)
        if kind in settled:
            low, high = max(low, -reach), min(high, reach)
        bounds.append((0.0, 0.0) if kind in held else (low, high))
    for name, _ in column_groups(point.parameters):
        low, high = (math.log(factor) for factor in SPREAD_RANGE)
        if settled and name.startswith("short_range"):
            low, high = max(low, -reach), min(high, reach)
        elif name.startswith("electronegativity"):
            high = math.log(MOST_CHI)
        bounds.append((low, high) if name.endswith(" delta") else (0.0, 0.0))
    return bounds


def _reach(score: Score, alone: Mapping[str, float]) -> float:
    """How far noises of energies and forces and spreads of the energy may move from what they are without charges.

    A linearisation judges them less well than a linear model does (moving them by a factor of four gained nothing on five
    sets and cost on three), so they move by as much as charges change the error of left-out frames.
    """
    if not alone:
        return math.inf
    kind = "forces" if "forces" in alone else next(iter(alone))
    share = score.errors[kind] / max(alone[kind], 1e-300)
    return max(0.0, -math.log(max(share, 1e-300)))


def _short_range(
    frames: Sequence[TrainingFrame], parameters: Parameters
) -> tuple[list[TrainingFrame], Parameters | None]:
    """The short-range energy alone, and the labels it is determined by."""
    assert parameters.short_range is not None
    kept = []
    for frame in frames:
        labels = replace(frame.labels, **{k: None for k in frame.labels.kinds if k not in _SHORT_RANGE})  # type: ignore[arg-type]
        if labels.kinds and not frame.structure.external_field.any():
            kept.append(replace(frame, labels=labels))
    if not kept:
        return [], None
    energy = parameters.short_range
    kernels = list(zip(energy.feature_maps, energy.deltas, strict=True))
    part = SitePart.build(kernels, energy.offset_mean, energy.offset_spread, 0)
    return kept, Parameters(parameters.species, None, None, part, part.columns.stop)


_SHORT_RANGE = ("energy", "forces", "stress")


def _adopt(parameters: Parameters, alone: Parameters) -> Parameters:
    """Spreads of the short-range kernels from a model without charges, without those that it dropped."""
    assert parameters.short_range is not None and alone.short_range is not None
    deltas = {id(kernel.feature_map): kernel.delta for kernel in alone.short_range.kernels}
    kernels = {
        name: replace(kernel, delta=deltas[id(kernel.feature_map)])
        for name, kernel in parameters.kernels.items()
        if kernel in parameters.short_range.kernels and id(kernel.feature_map) in deltas
    }
    gone = [
        name
        for name, kernel in parameters.kernels.items()
        if kernel in parameters.short_range.kernels and id(kernel.feature_map) not in deltas
    ]
    return parameters.with_kernels(kernels).without(gone)[0]


__all__ = [
    "LeftOut",
    "Score",
    "collect",
    "factor_rounded",
    "learn_left_out",
    "posterior",
    "search",
    "unearned",
]
