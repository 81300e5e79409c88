"""Descriptors of many open molecules with the same atoms at once: one list of pairs, none of which crosses molecules.

A device is filled by one large problem, not by a thousand small ones.  To descriptors, which see pairs and the elements
of atoms, molecules side by side are one structure.

Dimensions: B molecules of N atoms, F descriptor features, M directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from kqeq.backend import Device
from kqeq.descriptors import longest_cutoff
from kqeq.descriptors.base import Descriptor, DescriptorState
from kqeq.descriptors.merged import Merged
from kqeq.descriptors.soap.arrays import features
from kqeq.descriptors.soap.descriptor import SOAPDescriptor
from kqeq.frames.neighbours import Pairs
from kqeq.frames.structures import Structure
from kqeq.typing import Array, IntArray


def joins(descriptor: Descriptor) -> bool:
    """Whether :func:`evaluate_joined` knows a descriptor: one of neighbours within a cutoff, and of nothing else."""
    inner = descriptor
    while isinstance(inner, Merged):
        inner = inner.inner
    return isinstance(inner, SOAPDescriptor)


def evaluate_joined(
    descriptors: Iterable[Descriptor], structures: Sequence[Structure], device: Device
) -> dict[Descriptor, DescriptorState]:
    """Descriptors of all atoms of open molecules, one molecule after the other.

    Parameters
    ----------
    descriptors : iterable of Descriptor
        Those that :func:`joins` holds for; equal ones are evaluated once.
    structures : sequence of Structure
        With the same atomic numbers in the same order, without periodic directions.
    device : Device
        Other than the host.
    """
    distinct = dict.fromkeys(descriptors)
    if not distinct:
        return {}
    numbers = structures[0].numbers
    positions = np.stack([structure.positions for structure in structures])
    whole = Structure(np.tile(numbers, len(structures)), positions.reshape(-1, 3))
    pairs = _pairs(positions, longest_cutoff(distinct))
    return {own: own.evaluate_arrays(whole, device.like, pairs=pairs) for own in distinct}


def _pairs(positions: np.ndarray[Any, np.dtype[np.float64]], cutoff: float) -> Pairs:
    """Each pair of atoms of a molecule (B, N, 3) within a cutoff once."""
    count, size, _ = positions.shape
    first, second = np.triu_indices(size, 1)
    vectors = (positions[:, second] - positions[:, first]).reshape(-1, 3)
    start = size * np.arange(count)[:, None]
    indices = np.stack([(start + first).ravel(), (start + second).ravel()], axis=1)
    near = np.einsum("pa,pa->p", vectors, vectors) <= cutoff**2
    return Pairs(cutoff, np.ascontiguousarray(indices[near]), np.ascontiguousarray(vectors[near]), full=False)


def gradients_by_centre(
    descriptor: Descriptor,
    state: Any,
    size: int,
    centres: IntArray,
    directions: Array,
    coefficients: Array,
    *,
    projections: Array | None = None,
) -> Array:
    """Derivatives ∂f_im/∂r of every centre for itself by the atoms of its own molecule, (n, N, 3, M).

    Parameters
    ----------
    descriptor : Descriptor
    state : DescriptorState
        What :func:`evaluate_joined` gave for it.
    size : int
        Atoms of a molecule N.
    centres : (n,) array
        Among all B N atoms, on the host.
    directions : (M, F) array
    coefficients : (n, M) array
        C_im, with ∂f_im/∂p_i = C_im d_m.
    projections : (n, M) array, optional
        p_i · d_m, if known.
    """
    while isinstance(descriptor, Merged):
        descriptor, state = descriptor.inner, state.inner
    return features.gradients_by_centre(state, size, centres, directions, coefficients, projections)


__all__ = ["evaluate_joined", "gradients_by_centre", "joins"]
