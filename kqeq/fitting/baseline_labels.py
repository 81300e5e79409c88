"""The baseline of training frames: computed in parallel, kept on disk, subtracted from the labels.

Frames leave without the charge that the baseline answers for (:func:`kqeq.baselines.remaining`), so that everything
that follows fits the model on top and does not know of the baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kqeq.baselines import Baseline, BaselineResult, GeometryBaseline, Sum, remaining
from kqeq.baselines.combine import parts_of
from kqeq.baselines.shift import learn_shift
from kqeq.baselines.store import ResultStore, result_key
from kqeq.errors import ConvergenceError, InputError, KQEqError
from kqeq.fitting.problem import map_chunks
from kqeq.fitting.rows.features import TrainingFrame
from kqeq.frames.labels import Labels
from kqeq.frames.structures import Structure
from kqeq.potential.on_baseline import extras_for, sees_baseline

FRAMES_PER_TASK = 4
"""Frames that one process computes before it hands over."""

Task = tuple[int, Structure, tuple[str, ...]]


def used_baseline(baseline: Baseline | None, *, has_energy: bool) -> Baseline | None:
    """The baseline of a fit: without energies only one that gives dipoles or charges plays a part."""
    if baseline is None or has_energy:
        return baseline
    knows = baseline.capabilities
    return baseline if knows.dipole or knows.charges or knows.holds_charge else None


def check_frames(frames: Sequence[TrainingFrame], baseline: Baseline) -> None:
    """Refuse frames that the baseline cannot treat, before any of them is computed.

    Raises
    ------
    InputError, UnsupportedError
        Naming the frame.
    """
    for frame in frames:
        try:
            baseline.check(frame.structure)
        except KQEqError as error:
            raise type(error)(f"frame {frame.index}: {error}") from None


def subtract_baseline(
    frames: Sequence[TrainingFrame],
    baseline: Baseline,
    *,
    charge_aware: bool = False,
    leave_out_failed: bool = False,
    shift: bool = True,
) -> tuple[list[TrainingFrame], Baseline, list[str]]:
    """Labels minus the baseline, for structures minus the charge that it holds.

    Parameters
    ----------
    frames : sequence of TrainingFrame
    baseline : Baseline
    charge_aware : bool
        Whether a short-range energy will see the charges: then frames keep the baseline's, with derivatives.
    leave_out_failed : bool
        Leave out frames whose baseline does not converge, instead of refusing.
    shift : bool
        Whether to learn these constants.

    Returns
    -------
    list of TrainingFrame
    Baseline
        With a constant for each total charge where it holds charge and the frames tell
        (:mod:`kqeq.baselines.shift`).
    list of str
        Notes for the report.

    Raises
    ------
    InputError, UnsupportedError
    ConvergenceError
        Naming all frames whose baseline did not converge.
    """
    check_frames(frames, baseline)
    knows, sees = baseline.capabilities, sees_baseline(baseline, charge_aware)
    tasks = [
        (frame.index, frame.structure, extras_for(frame.structure, frame.labels.kinds, knows, sees))
        for frame in frames
    ]
    results = compute(tasks, baseline)
    failed = [(frame, found) for frame, found in zip(frames, results, strict=True) if isinstance(found, str)]
    notes = [f"energies, forces and what else it knows are fitted on top of the baseline {baseline.name}"]
    if failed:
        names = ", ".join(str(frame.index) for frame, _ in failed[:20]) + (" ..." if len(failed) > 20 else "")
        if not leave_out_failed:
            raise ConvergenceError(
                f"the baseline {baseline.name} failed for {len(failed)} of {len(frames)} frames (frames {names}): "
                f"frame {failed[0][0].index}: {failed[0][1]} Remove the frames, or leave them out: "
                "fit(..., leave_out_failed=True)"
            )
        if len(failed) == len(frames):
            raise ConvergenceError(f"the baseline {baseline.name} failed for all frames: {failed[0][1]}")
        notes.append(f"{len(failed)} frames were left out because the baseline failed: {names}")
    good = [
        (frame, found) for frame, found in zip(frames, results, strict=True) if not isinstance(found, str)
    ]
    learned = None
    if shift and knows.holds_charge:
        energies = [None if f.labels.energy is None else f.labels.energy - r.energy for f, r in good]
        learned = learn_shift([frame.structure for frame, _ in good], energies)
    if learned is not None:
        good = [
            (frame, found._replace(energy=found.energy + learned.evaluate(frame.structure).energy))
            for frame, found in good
        ]
        baseline = Sum([*parts_of(baseline), learned])
        text = ", ".join(f"{q:+d}: {e:.3f}" for q, e in learned.energies.items())
        notes.append(f"constants by total charge that were added to the baseline (eV): {text}")
    kept = [_on_top(frame, found, baseline, sees) for frame, found in good]
    if (
        knows.holds_charge
        and not charge_aware
        and len({round(frame.structure.total_charge, 6) for frame in frames}) > 1
    ):
        notes.append(
            "the baseline holds the total charge, and the correction is the same for every charge state of a geometry: "
            "ionisation energies are those of the baseline but for a constant. charge_aware=kqeq.ChargeKernel() lets the "
            'correction see the charges of the baseline; charge_from="model" lets the charge model carry the charge'
        )
    return kept, baseline, notes


def _on_top(frame: TrainingFrame, result: BaselineResult, baseline: Baseline, sees: bool) -> TrainingFrame:
    labels, volume = frame.labels, frame.structure.volume
    changes: dict[str, object] = {}
    if labels.energy is not None:
        changes["energy"] = labels.energy - result.energy
    if labels.forces is not None:
        changes["forces"] = labels.forces + result.gradient
    if labels.stress is not None:
        changes["stress"] = labels.stress - 0.5 * (result.strain + result.strain.T) / volume
    for kind in ("dipole", "charges", "polarizability"):
        label, known = getattr(labels, kind), getattr(result, kind)
        if label is not None and known is not None:
            changes[kind] = label - known
    fitted: Labels = replace(labels, **changes)  # type: ignore[arg-type]
    structure = remaining(frame.structure, baseline)
    return replace(frame, structure=structure, labels=fitted, baseline=result if sees else None)


def compute(tasks: Sequence[Task], baseline: Baseline) -> list[BaselineResult | str]:
    """Results, or why there is none, in the order of the tasks.

    In parallel where joblib is told so (``with joblib.parallel_config(n_jobs=4):``); results are kept on disk
    (:mod:`kqeq.baselines.store`) as they come, so that an interrupted run goes on where it stopped.
    """
    store = ResultStore.default()
    keys = [result_key(baseline, structure) for _, structure, _ in tasks]
    results: list[BaselineResult | str | None] = [
        store.get(key, extras) for key, (_, _, extras) in zip(keys, tasks, strict=True)
    ]
    missing = [i for i, found in enumerate(results) if found is None]
    groups = [missing[i : i + FRAMES_PER_TASK] for i in range(0, len(missing), FRAMES_PER_TASK)]
    chunks = [[tasks[i] for i in group] for group in groups]
    # functions of the geometry are cheap, or calculators that may not travel to other processes
    travels = any(not isinstance(part, GeometryBaseline) for part in parts_of(baseline))
    found = map_chunks(
        _compute_some, chunks, baseline, description=f"baseline {baseline.name}", distribute=travels
    )
    for group, own in zip(groups, found, strict=True):
        for i, result in zip(group, own, strict=True):
            results[i] = result
            if not isinstance(result, str):
                store.put(keys[i], result, tasks[i][2])
    return [result for result in results if result is not None]


def _compute_some(tasks: Sequence[Task], baseline: Baseline) -> list[BaselineResult | str]:
    """One after another; failures to converge are told, not raised."""
    results: list[BaselineResult | str] = []
    for index, structure, extras in tasks:
        try:
            results.append(baseline.evaluate(structure, extras))
        except ConvergenceError as error:
            results.append(str(error))
        except InputError as error:
            raise InputError(f"frame {index}: {error}") from None
    return results


__all__ = ["check_frames", "compute", "subtract_baseline", "used_baseline"]
