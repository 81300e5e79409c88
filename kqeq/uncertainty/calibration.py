"""Standard deviations that are as large as errors are, learned from refits without some of the frames.

What sparse features miss (:mod:`kqeq.uncertainty.posterior`) is as uncertain as the prior says, because no label acts on
it; in truth labels tell most of it.  Left-out frames show by how much, but only where their environments are no
representatives: else nothing is missed in them.  So frames are left out together with the representatives that are
environments of theirs.  With features Φ = K L⁻ᵀ this needs no new features: functions that the other representatives
span are those with parameters

    u = T u',    T = orthonormal basis of the columns of Lᵀ that belong to representatives that stay,

because the covariance of values at these is L Lᵀ.  So the refit without the frames f is, in closed form around the fit,

    H' = Tᵀ (H − J_fᵀ J_f) T,    H' u' = Tᵀ (H u − J_fᵀ (r_f + J_f u)),

with the precision H at its optimum u, the rows J_f and residuals r_f of the labels of f in units of their noise (the
prior is TᵀT = 1).  Errors of the labels of f, variances from the parameters v and what is missed m follow.  For each kind
of label the predicted distribution is a normal one of variance s² (v + κ m + σ²); s makes 68 and 95 % of the errors lie
where they should, as far as both can be, with order statistics that count one label more (as conformal prediction does:
Vovk, Gammerman & Shafer 2005, *Algorithmic Learning in a Random World*); κ has the best interval score (Gneiting &
Raftery 2007, *J. Am. Stat. Assoc.* 102, 359).  Where labels do not tell κ, half the variance is what is missed, so that
it grows where environments are new.

Dimensions: P parameters, p features of a kernel, n labels of a frame, c of them that are judged, k kernels, m all judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kqeq.backend import blas
from kqeq.backend.linalg import solve_lower
from kqeq.errors import NotPositiveDefiniteError
from kqeq.fitting.evidence.left_out import factor_rounded
from kqeq.fitting.parameters import KernelPart
from kqeq.fitting.rows.blocks import deviation, frame_rows, target_vector
from kqeq.fitting.rows.features import TrainingFrame
from kqeq.frames.grouping import shuffled_folds, structure_groups
from kqeq.io.progress import track
from kqeq.kernels.feature_map import FeatureMap
from kqeq.typing import BoolArray, FloatArray, IntArray
from kqeq.uncertainty.posterior import KINDS, Factors, Posterior, Uncertain, explained
from kqeq.uncertainty.remainder import KINDS as REMAINDER_KINDS
from kqeq.uncertainty.remainder import LeftOut, learn_remainder, with_learned, without_frame

FOLDS = 4
"""Refits; each frame is left out once."""

LEAST_GROUPS = 8
"""Geometries without which nothing is said."""

MOST_LABELS = 3000
"""Labels of the frames that are left out."""

MOST_FORCES = 150
"""Components of forces that are judged; each needs two evaluations of its structure."""

INSIDE = {0.68: 0.5, 0.95: 0.5}
"""Shares of labels that intervals are made for, and how much each says of s."""

MISSED = np.exp(np.linspace(math.log(1e-4), 0.0, 28))
"""Values of κ that are tried."""

SPREAD = 2.0
"""Prior standard deviation of ln κ."""

DOUBT = 4.0
"""Frames that weigh as much as the prior in which s is 1."""

SAME = 1e-10
"""Environments whose normalised dot product is within this of 1 are the same."""

INSTEAD = {"energy": "forces", "forces": "energy", "dipole": "charges", "charges": "dipole"}
"""Whose factors a kind without labels gets."""


@dataclass(frozen=True, eq=False)
class _Left:
    """A frame to leave out.

    Attributes
    ----------
    residual, rows : (n,), (n, P) arrays
        In units of the noise.
    judged : (c,) int array
        Labels that are judged.
    kinds : tuple of str
        Kind of each of them.
    priors : (c, k) array
        What kernels add to them, as the prior has it, in squared units of the noise.
    units : (c,) array
        Noise.
    same : dict of FeatureMap to dict of int to (M,) bool array
        By element, which representatives are environments of the frame.
    """

    residual: FloatArray
    rows: FloatArray
    judged: IntArray
    kinds: tuple[str, ...]
    priors: FloatArray
    units: FloatArray
    same: dict[FeatureMap, dict[int, BoolArray]]


@dataclass(frozen=True, eq=False)
class Judged:
    """Predictions of left-out labels of one kind, in its unit.

    Attributes
    ----------
    errors, variances, missed, noise : (m,) arrays
        Predicted minus label; variance from the parameters, of what sparse features miss, and of the noise.
    frames : int
        How many they come from.
    """

    errors: FloatArray
    variances: FloatArray
    missed: FloatArray
    noise: FloatArray
    frames: int


def calibrate(
    posterior: Posterior, frames: Sequence[TrainingFrame], seed: int = 0, *, remainders: bool = False
) -> tuple[Posterior, str]:
    """The posterior with factors for each kind of label that it knows the uncertainty of.

    Parameters
    ----------
    posterior : Posterior
        Of a fit without a charge-aware short-range energy.
    frames : sequence of TrainingFrame
        As they were fitted.
    seed : int
        Of the order in which frames are left out.
    remainders : bool
        Learn the factors of kernels first (:mod:`kqeq.uncertainty.remainder`), from the same frames.

    Returns
    -------
    Posterior, str
        And a line for the report.
    """
    chosen, fold = _chosen(frames, seed)
    told = ""
    if not len(chosen):
        if remainders:
            posterior, told = learn_remainder(posterior, frames)
            told += "; "
        return posterior, f"{told}uncertainties are not calibrated: fewer than {LEAST_GROUPS} geometries"
    with blas.one_thread():
        left = _all_left(posterior, [frames[int(i)] for i in chosen])
        if remainders:
            posterior, told = with_learned(posterior, _one_by_one(posterior, left))
            told += "; "
        try:
            judged = _judged(posterior, left, fold)
        except NotPositiveDefiniteError:
            return (
                posterior,
                f"{told}uncertainties are not calibrated: refits without some frames are singular",
            )
    found = {kind: factors_of(own) for kind, own in judged.items()}
    if not found:
        return posterior, f"{told}uncertainties are not calibrated: no label that they could be compared with"
    factors = {
        kind: found[kind if kind in found else INSTEAD[kind]]
        for kind in posterior.quantities
        if kind in found or INSTEAD[kind] in found
    }
    words = ", ".join(f"{kind} × {own.scale:.3g} (missed {own.missed:.2g})" for kind, own in found.items())
    line = f"{told}standard deviations calibrated by {len(chosen)} frames left out in {fold.max() + 1} refits: {words}"
    return replace(posterior, factors=factors), line


def _chosen(frames: Sequence[TrainingFrame], seed: int = 0) -> tuple[IntArray, IntArray]:
    """Positions of the frames to leave out, whole geometries spread evenly, and the fold of each."""
    group = np.array(structure_groups(frame.structure for frame in frames), dtype=np.int64)
    weighted = np.array([frame.labels.weight > 0.0 for frame in frames], dtype=bool)
    counts = np.bincount(group, [frame.n_labels for frame in frames])
    usable = np.flatnonzero(np.bincount(group, weighted) > 0)
    every = max(1.0, float(counts[usable].sum()) / MOST_LABELS)
    taken = usable[np.unique((np.arange(len(usable) / every) * every).astype(int))]
    if len(taken) < LEAST_GROUPS:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    chosen = np.flatnonzero(np.isin(group, taken))
    known = [frames[int(i)].structure for i in chosen]
    kinds = [(own.numbers.tobytes(), round(own.total_charge, 6)) for own in known]
    return chosen, shuffled_folds(group[chosen].tolist(), kinds, FOLDS, seed)


def leave_out(posterior: Posterior, frames: Sequence[TrainingFrame], fold: IntArray) -> dict[str, Judged]:
    """Predict frames without those of their fold and without the representatives that these brought.

    Parameters
    ----------
    posterior : Posterior
    frames : sequence of TrainingFrame
        Frames of one geometry in one fold.
    fold : (frames,) int array

    Raises
    ------
    NotPositiveDefiniteError
        If rounding makes a refit singular.
    """
    return _judged(posterior, _all_left(posterior, frames), fold)


def _all_left(posterior: Posterior, frames: Sequence[TrainingFrame]) -> list[_Left]:
    """What leaving frames out takes."""
    forces = sum(frame.labels.forces is not None for frame in frames)
    share = max(3, MOST_FORCES // max(1, forces))
    return [
        _left(posterior, frame, share, np.random.default_rng(number))
        for number, frame in enumerate(track(frames, "calibration", total=len(frames)))
    ]


def _one_by_one(posterior: Posterior, left: Sequence[_Left]) -> LeftOut:
    """Predictions of each frame from all others, with all representatives, of the labels that tell factors of kernels."""
    kernels = list(posterior.parameters.kernels.values())
    errors, variances, missed = [np.zeros(0)], [np.zeros(0)], [np.zeros((0, len(kernels)))]
    for frame in left:
        error, variance = without_frame(frame.residual, solve_lower(posterior.lower, frame.rows.T))
        chosen = np.array([kind in REMAINDER_KINDS for kind in frame.kinds], dtype=bool)
        places = frame.judged[chosen]
        known = np.zeros((len(places), len(kernels)))
        for number, kernel in enumerate(kernels):
            known[:, number] = explained(kernel, frame.rows[places])
        errors.append(error[places])
        variances.append(variance[places])
        missed.append(np.maximum(frame.priors[chosen] - known, 0.0))
    return LeftOut(np.concatenate(errors), np.concatenate(variances), np.concatenate(missed))


def _judged(posterior: Posterior, left: Sequence[_Left], fold: IntArray) -> dict[str, Judged]:
    """Predictions of all frames by refits without their fold."""
    precision = posterior.lower @ posterior.lower.T
    parts: dict[str, list[FloatArray]] = {}
    counts: dict[str, int] = {}
    for k in range(int(fold.max()) + 1):
        own = [frame for frame, number in zip(left, fold, strict=True) if number == k]
        for kind, values in _refit(posterior, precision, own):
            parts.setdefault(kind, []).append(values)
            counts[kind] = counts.get(kind, 0) + 1
    result = {}
    for kind in (kind for kind in KINDS if kind in parts):
        errors, variances, missed, noise = np.concatenate(parts[kind], axis=1)
        result[kind] = Judged(errors, variances, missed, noise, counts[kind])
    return result


def _left(posterior: Posterior, frame: TrainingFrame, share: int, rng: np.random.Generator) -> _Left:
    """What leaving a frame out takes; of its forces ``share`` components are judged."""
    view = Uncertain(posterior, frame.structure, forces=frame.needs_gradients, base=frame.baseline)
    residual, rows = frame_rows(
        frame, view.line.features, posterior.parameters, posterior.u, posterior.noise, jacobian="full"
    )
    assert rows is not None
    names = list(posterior.parameters.kernels)
    kernels = list(posterior.parameters.kernels.values())
    judged, kinds, priors, units, start = [], [], [], [], 0
    for kind in frame.labels.kinds:
        stop = start + target_vector(frame, kind).size
        own = np.arange(start, stop)
        if kind in KINDS and kind in posterior.quantities and frame.labels.weight > 0.0:
            if kind == "forces":
                places = np.sort(rng.permutation(stop - start)[:share])
                found = view.force_priors(places)
            else:
                places, found = np.arange(stop - start), view.priors(view.linear_map(kind))
            scale = deviation(frame, kind, posterior.noise)
            table = np.zeros((len(places), len(names)))
            for kernel, values in found:
                number = next(i for i, known in enumerate(kernels) if known is kernel)
                table[:, number] = values / scale**2
            judged.append(own[places])
            kinds += [kind] * len(places)
            priors.append(table)
            units.append(np.full(len(places), scale))
        start = stop
    return _Left(
        residual,
        rows,
        np.concatenate([np.zeros(0, dtype=np.int64), *judged]),
        tuple(kinds),
        np.concatenate([np.zeros((0, len(names))), *priors]),
        np.concatenate([np.zeros(0), *units]),
        _representatives_of(view, {kernel.feature_map for kernel in kernels}),
    )


def _representatives_of(view: Uncertain, maps: set[FeatureMap]) -> dict[FeatureMap, dict[int, BoolArray]]:
    """Which representatives are environments of the structure, by element."""
    numbers = view.structure.numbers
    return {
        own: {
            z: (rows @ view.values[own][numbers == z].T > 1.0 - SAME).any(axis=1)
            for z, rows in own.project(view.structure.species).items()
        }
        for own in maps
    }


def _refit(
    posterior: Posterior, precision: FloatArray, left: Sequence[_Left]
) -> Iterator[tuple[str, FloatArray]]:
    """Kind, and errors, variances, missed and noise (4, c), of every frame that is left out."""
    kernels = list(posterior.parameters.kernels.values())
    rows = np.concatenate([frame.rows for frame in left])
    targets = np.concatenate([frame.residual for frame in left]) + rows @ posterior.u
    basis = _Basis.without(posterior.parameters.size, kernels, left)
    hessian = basis.both(precision - rows.T @ rows)
    lower = factor_rounded(0.5 * (hessian + hessian.T))
    # at the optimum the right-hand side of all labels is H u
    rhs = basis.rows((precision @ posterior.u - rows.T @ targets)[None, :])[0]
    u = solve_lower(lower, solve_lower(lower, rhs), transposed=True)
    start = 0
    for frame in left:
        stop = start + len(frame.residual)
        own = basis.rows(rows[start:stop][frame.judged])
        errors = own @ u - targets[start:stop][frame.judged]
        scaled = solve_lower(lower, own.T)
        variances = np.einsum("pn,pn->n", scaled, scaled)
        missed = np.zeros(len(frame.judged))
        for number, kernel in enumerate(kernels):
            known = explained(replace(kernel, columns=basis.columns[number]), own)
            missed += kernel.remainder * np.maximum(frame.priors[:, number] - known, 0.0)
        squared = frame.units**2
        values = np.stack([errors * frame.units, variances * squared, missed * squared, squared])
        kinds = np.array(frame.kinds)
        for kind in dict.fromkeys(frame.kinds):
            yield kind, values[:, kinds == kind]
        start = stop


@dataclass(frozen=True, eq=False)
class _Basis:
    """T, block by block.

    Attributes
    ----------
    blocks : tuple of (slice, slice, (p, p') array or None)
        Columns before and after, and what is between; ``None`` where they stay.
    size : int
        P'.
    columns : tuple of slice
        Those of each kernel after.
    """

    blocks: tuple[tuple[slice, slice, FloatArray | None], ...]
    size: int
    columns: tuple[slice, ...]

    @classmethod
    def without(cls, size: int, kernels: Sequence[KernelPart], left: Sequence[_Left]) -> _Basis:
        """For all parameters, with the representatives of the kernels that are no environments of these frames."""
        blocks: list[tuple[slice, slice, FloatArray | None]] = []
        bases: dict[tuple[FeatureMap, int], FloatArray | None] = {}
        columns: dict[int, slice] = {}
        old = new = 0

        def keep(stop: int) -> None:
            nonlocal old, new
            if stop > old:
                blocks.append((slice(old, stop), slice(new, new + stop - old), None))
                old, new = stop, new + stop - old

        order = sorted(range(len(kernels)), key=lambda i: kernels[i].columns.start)
        for number in order:
            kernel = kernels[number]
            keep(kernel.columns.start)
            first, own = new, kernel.feature_map
            for z, place in own.columns.items():
                if (own, z) not in bases:
                    bases[own, z] = _basis(own, z, left)
                basis, stop = bases[own, z], kernel.columns.start + place.stop
                if basis is None:
                    keep(stop)
                else:
                    blocks.append((slice(old, stop), slice(new, new + basis.shape[1]), basis))
                    old, new = stop, new + basis.shape[1]
            columns[number] = slice(first, new)
        keep(size)
        return cls(tuple(blocks), new, tuple(columns[i] for i in range(len(kernels))))

    def rows(self, rows: FloatArray) -> FloatArray:
        """X T, (n, P')."""
        result = np.empty((len(rows), self.size))
        for before, after, basis in self.blocks:
            result[:, after] = rows[:, before] if basis is None else rows[:, before] @ basis
        return result

    def both(self, matrix: FloatArray) -> FloatArray:
        """Tᵀ X T, (P', P')."""
        return self.rows(self.rows(matrix).T)


def _basis(own: FeatureMap, z: int, left: Sequence[_Left]) -> FloatArray | None:
    """Orthonormal columns for one element of one feature map; ``None`` where all representatives stay."""
    gone = np.zeros(own.representatives[z].shape[0], dtype=bool)
    for frame in left:
        if z in frame.same[own]:
            gone |= frame.same[own][z]
    if not gone.any():
        return None
    return np.asarray(np.linalg.qr(own.lower[z].T[:, ~gone])[0])


def factors_of(judged: Judged) -> Factors:
    """Scale and κ that make the predicted distribution of errors what it should be."""
    known, missed = judged.variances + judged.noise, judged.missed
    centre = math.log(
        min(1.0, max(float(MISSED[0]), float(np.median(known)) / max(float(np.median(missed)), 1e-300)))
    )
    best, factors = math.inf, Factors()
    for kappa in MISSED:
        deviation = np.sqrt(known + kappa * missed)
        scale = _scale(np.abs(judged.errors) / deviation, judged.frames)
        own = judged.frames * math.log(_interval_score(judged.errors, scale * deviation))
        own += 0.5 * ((math.log(kappa) - centre) / SPREAD) ** 2
        if own < best:
            best, factors = own, Factors(scale, float(kappa))
    return factors


def _scale(z: FloatArray, frames: int) -> float:
    """Scale s from errors in units of their standard deviations."""
    from scipy.special import ndtri

    found = 0.0
    for share, weight in INSIDE.items():
        reached = max(float(np.quantile(z, share, method="weibull")), 1e-12)
        found += weight * math.log(reached / float(ndtri(0.5 + share / 2)))
    return math.exp(frames / (frames + DOUBT) * found)


def _interval_score(errors: FloatArray, deviation: FloatArray) -> float:
    """Mean width of the intervals, and what errors beyond them cost; the smaller the better."""
    from scipy.special import ndtri

    total = 0.0
    for share in INSIDE:
        half = float(ndtri(0.5 + share / 2)) * deviation
        total += float(np.mean(2.0 * half + 2.0 / (1.0 - share) * np.maximum(np.abs(errors) - half, 0.0)))
    return total


__all__ = ["FOLDS", "Judged", "calibrate", "factors_of", "leave_out"]
