"""Symmetric tensors as rows of labels: stress in Voigt order, polarizabilities by their upper triangle."""

from __future__ import annotations

import numpy as np

from kqeq.backend import namespace
from kqeq.typing import Array

# Voigt order xx yy zz yz xz xy as positions in the flattened 3x3 matrix, and the transposed ones
VOIGT = np.array([0, 4, 8, 5, 2, 1])
_TRANSPOSED = np.array([0, 4, 8, 7, 6, 3])

_UPPER = np.triu_indices(3)
_UPPER_WEIGHTS = np.where(_UPPER[0] == _UPPER[1], 1.0, np.sqrt(2.0))


def to_stress(strain: Array, volume: float) -> Array:
    """Strain derivatives (9, ...) to stress in Voigt order (6, ...)."""
    rows = [strain[int(a), ...] + strain[int(b), ...] for a, b in zip(VOIGT, _TRANSPOSED, strict=True)]
    return namespace(strain).stack(rows, axis=0) * (0.5 / volume)


def upper_triangle(tensor: Array) -> Array:
    """A symmetric tensor (3, 3, ...) as rows (6, ...) whose squares add up to those of all nine components."""
    elements = zip(*_UPPER, _UPPER_WEIGHTS, strict=True)
    rows = [tensor[int(a), int(b), ...] * float(weight) for a, b, weight in elements]
    return namespace(tensor).stack(rows, axis=0)


def upper_triangles(tensors: Array) -> Array:
    """The same for many tensors, (B, 3, 3, ...) to (B, 6, ...)."""
    elements = zip(*_UPPER, _UPPER_WEIGHTS, strict=True)
    rows = [tensors[:, int(a), int(b), ...] * float(weight) for a, b, weight in elements]
    return namespace(tensors).stack(rows, axis=1)


__all__ = ["VOIGT", "to_stress", "upper_triangle", "upper_triangles"]
