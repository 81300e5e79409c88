"""Descriptors of atomic environments behind one protocol (see :mod:`kqeq.descriptors.base`)."""

from __future__ import annotations

from collections.abc import Iterable

from kqeq.backend import CPU, Device
from kqeq.descriptors.base import Descriptor, DescriptorState
from kqeq.descriptors.conditioned import Conditioned
from kqeq.frames.neighbours import Pairs, find_pairs
from kqeq.frames.structures import Structure


def evaluate_states(
    descriptors: Iterable[Descriptor],
    structure: Structure,
    *,
    derivatives: bool = True,
    pairs: Pairs | None = None,
    device: Device = CPU,
) -> dict[Descriptor, DescriptorState]:
    """Evaluate several descriptors of one structure with one neighbour list.

    Parameters
    ----------
    descriptors : iterable of Descriptor
        Equal ones are evaluated once.
    structure : Structure
    derivatives : bool
    pairs : Pairs, optional
        Reaching as far as :func:`longest_cutoff`; found if not given.
    device : Device
        On the host compiled kernels do the work, elsewhere array code.
    """
    asked = dict.fromkeys(descriptors)
    # environments in several states are evaluated once
    distinct = dict.fromkeys(d.inner if isinstance(d, Conditioned) else d for d in asked)
    if not device.is_host:
        # each searches there for itself: sorting pairs beyond its own reach costs more than a search
        known = {d: d.evaluate_arrays(structure, device.like) for d in distinct}
    else:
        if pairs is None and distinct:
            pairs = find_pairs(structure, longest_cutoff(distinct), full=False)
        known = {d: d.evaluate(structure, derivatives=derivatives, pairs=pairs) for d in distinct}
    return {
        d: d.around(known[d.inner], structure, pairs) if isinstance(d, Conditioned) else known[d]
        for d in asked
    }


def longest_cutoff(descriptors: Iterable[Descriptor]) -> float:
    """How far the neighbour list has to reach, Å."""
    return max(d.cutoff for d in descriptors)


__all__ = ["Descriptor", "DescriptorState", "evaluate_states", "longest_cutoff"]
