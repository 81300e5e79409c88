"""How far the environments of a structure are from those that a model was fitted on.

The distance of an atom is 1 − max_m k(p_i, p_m) over the representatives m of its element: 0 for an environment that was
seen, 1 for one that resembles none.  What counts as far depends on kernel and data, so the distance is also given in
units of the largest distance from one representative to its nearest other (0.1 at most).

Dimensions: N atoms, M representatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kqeq.analysis.results import Result
from kqeq.kernels.feature_map import FeatureMap, gram
from kqeq.potential.fixed_geometry import FixedGeometry
from kqeq.typing import FloatArray, IntArray

SINGLE = 0.05
"""Scale of elements with one representative."""

FLOOR, CEILING = 1e-6, 0.1
"""Smallest scale (representatives may be copies of each other) and largest (or they may be few and far between)."""


@dataclass(frozen=True, eq=False)
class Novelty(Result):
    """Distances to the training environments; the largest over the kernels of the model.

    Attributes
    ----------
    numbers : (N,) int array
    distances : (N,) array
        1 − max k, of the kernel in which the atom is relatively farthest.
    relative : (N,) array
        In units of the spread of the representatives.
    """

    numbers: IntArray
    distances: FloatArray
    relative: FloatArray
    rows: ClassVar[str] = "numbers"


def novelty(geometry: FixedGeometry) -> Novelty:
    """Distances of the atoms of a prepared geometry."""
    atoms = len(geometry.structure)
    distances, relative = np.zeros(atoms), np.full(atoms, -1.0)
    for feature_map, similarities in geometry.similarities.items():
        for near in similarities:
            kernel = np.maximum(near.dots, 0.0) ** feature_map.zeta
            own = np.maximum(1.0 - kernel.max(axis=1), 0.0)
            scaled = own / spread(feature_map, near.element)
            larger = scaled > relative[near.centres]
            chosen = near.centres[larger]
            distances[chosen], relative[chosen] = own[larger], scaled[larger]
    return Novelty(geometry.structure.numbers, distances, relative)


def spread(feature_map: FeatureMap, element: int) -> float:
    """Largest distance of a representative of an element to its nearest other, at most :data:`CEILING`."""
    dots = np.maximum(gram(feature_map.representatives[element]), 0.0)
    if len(dots) < 2:
        return SINGLE
    np.fill_diagonal(dots, 0.0)
    return float(np.clip((1.0 - dots.max(axis=1) ** feature_map.zeta).max(), FLOOR, CEILING))


__all__ = ["Novelty", "novelty", "spread"]
