"""More frames for a fitted model, without those it was fitted to.

The posterior of a fit, N(u, H⁻¹), is the prior of what comes next (Bayes): with the old data as the quadratic form ½
(u' − u)ᵀ H (u' − u), Gauss–Newton runs over the frames that are added, and nothing of the old ones is needed but H
and u.

For labels that the model is linear in (dipoles, charges; energies and forces without charges) this is exact: the
result is that of one fit to all frames with the same representatives, noises and priors.  Otherwise the quadratic
form is the old loss only near u; the further the added frames move the parameters, the more a fit to all frames would
differ.

Of a fit with a charge-aware short-range energy, that alone is updated, at the charges of the fit.  Labels are linear in
its parameters, so the result is that of a second stage with all frames.

Representatives and element offsets' prior means stay as they are.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

from kqeq.errors import InputError
from kqeq.fitting.baseline_labels import subtract_baseline
from kqeq.fitting.contradictions import warn_contradictions
from kqeq.fitting.fit import FitResult, finish, settled
from kqeq.fitting.least_squares.equations import Prior
from kqeq.fitting.minimisation import minimise_problem, warn_unconverged
from kqeq.fitting.parameters import Parameters
from kqeq.fitting.problem import FitProblem
from kqeq.fitting.report import FitReport
from kqeq.fitting.rows.blocks import is_linear
from kqeq.fitting.rows.features import TrainingFrame
from kqeq.fitting.rows.targets import choose_labels, compositions, conditioned
from kqeq.fitting.settings import FitSettings
from kqeq.frames.labels import LABEL_KINDS, Labels
from kqeq.frames.states import charged_sizes, known_states
from kqeq.frames.structures import Structure
from kqeq.potential.potential import Potential


def update_potential(
    pairs: Sequence[tuple[Structure, Labels]],
    settings: FitSettings,
    potential: Potential,
    parameters: Parameters,
    prior: Prior,
    noise: Mapping[str, float],
    report: FitReport,
) -> FitResult:
    """Add frames to a fit.

    Parameters
    ----------
    pairs : sequence of (Structure, Labels)
        The frames to add.
    settings : FitSettings
        As of the fit; targets are those that the fit used.
    potential : Potential
        What the fit gave.
    parameters : Parameters
    prior : Prior
        The posterior of the fit: its solution and the Cholesky factor of H there.
    noise : mapping of str to float
        As of the fit, learned or given.
    report : FitReport
        Of the fit.

    Returns
    -------
    FitResult
        The report counts old and added frames together.

    Raises
    ------
    InputError
        For elements that the model does not know and frames without a label of a kind that it was fitted to.
    UnsupportedError
        For structures that the charge model cannot treat.
    """
    started = time.perf_counter()
    charge_aware = parameters.dependence is not None
    added = _added(pairs, settings, potential, noise, report, charge_aware=charge_aware)
    linear = is_linear(parameters, added.kinds)
    part = parameters.short_range
    if part is not None and part.held is not None:
        held = conditioned(part.held, compositions(added.frames, list(part.offset_mean)))
        parameters = replace(parameters, short_range=replace(part, held=held))
    problem = FitProblem(added.frames, parameters, noise, linear=linear, device=settings.device)
    try:
        solution = minimise_problem(
            problem, prior.mean, max_iterations=settings.max_iterations, prior=prior, solver=settings.solver
        )
    finally:
        problem.close()
    warn_unconverged(solution)
    *notes, line = added.report.notes
    if charge_aware:
        line += ": in the short-range energy alone, charges stay as they were"
    elif not linear:
        line += "; the earlier ones enter through the quadratic form at their optimum"
    before = replace(added.report, notes=(*notes, line))
    solution = replace(
        solution, loss=report.loss + solution.loss, n_residuals=report.n_residuals + solution.n_residuals
    )
    result = finish(
        parameters,
        solution,
        dict(noise),
        added.settings,
        before,
        added.charges,
        potential.has_energy,
        started,
    )
    states = [frame.structure for frame in added.frames]
    known = known_states(states, potential.known_states, potential.known_states)
    fitted = potential.charged_sizes  # none in files that do not know them
    sizes = charged_sizes(states, fitted) if fitted else ()
    # of the compositions that were known before no frames are left
    open_ = settled(potential, added.frames, noise)
    renewed = replace(result.potential, known_states=known, charged_sizes=sizes, determination=open_)
    return replace(result, potential=renewed)


@dataclass(frozen=True)
class _Added:
    """Frames that are added, ready to be fitted.

    Attributes
    ----------
    frames : sequence of TrainingFrame
    kinds : set of str
        Labels that are used.
    settings : FitSettings
    report : FitReport
        Counts old and added frames together; its last note says that they were added.
    charges : tuple of float
        Total charges of old and added frames.
    """

    frames: Sequence[TrainingFrame]
    kinds: Set[str]
    settings: FitSettings
    report: FitReport
    charges: tuple[float, ...]


def _added(
    pairs: Sequence[tuple[Structure, Labels]],
    settings: FitSettings,
    potential: Potential,
    noise: Mapping[str, float],
    report: FitReport,
    *,
    charge_aware: bool,
) -> _Added:
    """Check the frames to add, and take the baseline off."""
    kinds = tuple(kind for kind in LABEL_KINDS if kind in report.used)
    found = {kind for _, labels in pairs for kind in labels.kinds}
    if not found & set(kinds):
        raise InputError(
            f"the model was fitted to {', '.join(kinds)}, and the {len(pairs)} frames to add carry "
            f"{', '.join(sorted(found)) or 'no labels'}; add frames with labels of those kinds, or fit again to all"
        )
    for i, (structure, _) in enumerate(pairs):
        potential.check(structure, f"frame {i}")
    fitted = tuple(kind for kind in kinds if kind in found)
    settings = replace(settings, targets=fitted, baseline=potential.baseline)
    frames, used, ignored = choose_labels(pairs, settings)
    ignored = {
        kind: reason if kind in kinds else "the model was not fitted to it; fit again to all frames to use it"
        for kind, reason in ignored.items()
    }
    warn_contradictions(frames, noise, sees_spin="spin" in potential.conditions)
    if potential.baseline is not None:
        frames, _, _ = subtract_baseline(frames, potential.baseline, charge_aware=charge_aware, shift=False)
    counts = Counter(report.used) + Counter(used)
    line = (
        f"continued from a fit to {report.n_frames} frames (loss {report.loss:.6g}) with {len(frames)} more"
    )
    together = replace(
        report,
        n_frames=report.n_frames + len(frames),
        n_atoms=report.n_atoms + sum(len(frame.structure) for frame in frames),
        used={kind: counts[kind] for kind in LABEL_KINDS if counts[kind]},
        ignored={**report.ignored, **ignored},
        notes=(*report.notes, line),
    )
    charges = (*potential.training_charges, *(structure.total_charge for structure, _ in pairs))
    return _Added(frames, used.keys(), settings, together, charges)


__all__ = ["update_potential"]
