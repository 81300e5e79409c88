"""Frames that are in a set more than once.

A copy tells nothing new, but a frame that is left out while its copy stays is predicted perfectly: noises and spreads
that left-out frames choose would be those of a fit without errors (twenty frames of ethanol, each of them twice: errors
three times those of a fit without search).  So copies count as one frame with the sum of their weights, which is the same
fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np

from kqeq.fitting.rows.features import TrainingFrame
from kqeq.frames.grouping import geometry
from kqeq.frames.labels import Labels
from kqeq.frames.structures import Structure

_CONDITIONS = ("fragments", "fragment_charges", "reference_charges", "external_potential", "fragment_spins")


def without_copies(frames: Sequence[TrainingFrame]) -> tuple[list[TrainingFrame], str | None]:
    """Frames of which every one is there once, in their order, and a note for the report if some were not.

    Parameters
    ----------
    frames : sequence of TrainingFrame
        Before anything was computed of them.
    """
    kept: list[TrainingFrame] = []
    places: dict[tuple[object, ...], list[int]] = {}
    for frame in frames:
        same = places.setdefault(_key(frame.structure), [])
        twin = next((i for i in same if _alike(kept[i].labels, frame.labels)), None)
        if twin is None:
            same.append(len(kept))
            kept.append(frame)
        else:
            first = kept[twin]
            weight = first.labels.weight + frame.labels.weight
            kept[twin] = replace(first, labels=replace(first.labels, weight=weight))
    gone = len(frames) - len(kept)
    if not gone:
        return list(frames), None
    return kept, (
        f"{gone} of {len(frames)} frames are copies of others (geometry, conditions and labels): they count as weights "
        "of those, so that no frame is judged by its own copy"
    )


def _key(s: Structure) -> tuple[object, ...]:
    """Equal for frames with the same geometry and conditions."""
    more = [None if (value := getattr(s, name)) is None else value.tobytes() for name in _CONDITIONS]
    charge, field = round(s.total_charge, 6), np.round(s.external_field, 8) + 0.0
    return (
        *geometry(s.numbers, s.positions, s.cell),
        s.pbc.tobytes(),
        charge,
        field.tobytes(),
        s.multiplicity,
        *more,
    )


def _alike(first: Labels, second: Labels) -> bool:
    """Whether two frames have the same labels, to the digits of files."""
    for own in fields(Labels):
        a, b = getattr(first, own.name), getattr(second, own.name)
        if own.name == "weight":
            continue
        if (a is None) != (b is None) or (a is not None and not np.allclose(a, b, rtol=1e-9, atol=1e-6)):
            return False
    return True


__all__ = ["without_copies"]
