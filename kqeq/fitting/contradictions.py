"""Labels that contradict each other: no model can follow them, and a fit would split the difference in silence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy.spatial import cKDTree

from kqeq.errors import LabelWarning, warn
from kqeq.fitting.rows.blocks import deviation
from kqeq.fitting.rows.features import TrainingFrame
from kqeq.frames.structures import Structure

SAME = 1e-4
"""Positions that differ by less than this (Å, root mean square, after centring) are the same geometry."""

TOLERATED = 4.0
"""Energies of one geometry may differ by this many standard deviations of their difference."""


def warn_contradictions(
    frames: Sequence[TrainingFrame], noise: Mapping[str, float], *, sees_spin: bool = False
) -> None:
    """Warn of frames with the same geometry, charge and field whose energies differ by more than the noise.

    Parameters
    ----------
    frames : sequence of TrainingFrame
    noise : mapping of str to float
        Standard deviations of labels by kind.
    sees_spin : bool
        Whether the model can tell spins apart.

    Warns
    -----
    LabelWarning
        Once, naming the pairs of frames.
    """
    found = []
    labelled = [frame for frame in frames if frame.labels.energy is not None]
    spins = set()
    for first, second in _duplicates(labelled, sees_spin):
        assert first.labels.energy is not None and second.labels.energy is not None
        difference = abs(first.labels.energy - second.labels.energy)
        both = math.hypot(*(deviation(frame, "energy", noise) for frame in (first, second)))
        if difference > TOLERATED * both:
            found.append((first.index, second.index, difference))
            spins.add(first.structure.multiplicity != second.structure.multiplicity)
    if found:
        shown = "; ".join(f"frames {a} and {b} by {1e3 * d:.3g} meV" for a, b, d in found[:5])
        more = f" and {len(found) - 5} more pairs" if len(found) > 5 else ""
        spin = ', or a kernel with condition="spin": their spins differ' if True in spins else ""
        warn(
            f"frames with the same geometry, total charge and field have energies that differ by more than the noise "
            f"({shown}{more}). No model can follow both: remove the wrong ones, or name the condition that "
            'tells them apart (atoms.info["total_charge"], atoms.info["external_field"]' + spin + ")",
            LabelWarning,
        )


def _duplicates(
    frames: Sequence[TrainingFrame], sees_spin: bool
) -> Iterator[tuple[TrainingFrame, TrainingFrame]]:
    """Pairs of frames with the same atoms in the same order, positions up to a translation, and conditions."""
    groups: dict[tuple[object, ...], list[TrainingFrame]] = {}
    for frame in frames:
        s = frame.structure
        sites = [
            None if array is None else np.round(array, 6).tobytes()
            for array in (s.fragments, s.fragment_charges, s.reference_charges, s.external_potential)
        ]
        key = (
            s.numbers.tobytes(),
            s.pbc.tobytes(),
            np.round(s.cell[s.pbc], 4).tobytes(),
            round(s.total_charge, 6),
            np.round(s.external_field, 8).tobytes(),
            *sites,
            *_spins(s, sees_spin),
        )
        groups.setdefault(key, []).append(frame)
    for members in groups.values():
        if len(members) < 2:
            continue
        centred = [f.structure.positions - f.structure.positions.mean(axis=0) for f in members]
        points = np.array([c.ravel() for c in centred])
        radius = SAME * math.sqrt(len(members[0].structure))
        for i, j in sorted(cKDTree(points).query_pairs(radius)):
            yield members[i], members[j]


def _spins(structure: Structure, sees_spin: bool) -> tuple[object, ...]:
    """What tells spins apart, where the model does."""
    if not sees_spin:
        return ()
    own = structure.fragment_spins
    return structure.multiplicity, None if own is None else own.tobytes()


__all__ = ["warn_contradictions"]
