"""How far the environments of a structure are from those that a model was fitted on.

The distance of an atom is 1 − max_m k(p_i, p_m) over the representatives m of its element: 0 for an environment that was
seen, 1 for one that resembles none.  What counts as far depends on kernel and data, so the distance is also given in
units of the largest distance from one representative to its nearest other (0.1 at most).

Dimensions: N atoms, M representatives.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kqeq.backend import to_numpy
from kqeq.kernels.feature_map import FeatureMap, gram
from kqeq.potential.fixed_geometry import FixedGeometry
from kqeq.typing import FloatArray

SINGLE = 0.05
"""Scale of elements with one representative."""

FLOOR, CEILING = 1e-6, 0.1
"""Smallest scale (representatives may be copies of each other) and largest (or they may be few and far between)."""


def spread(feature_map: FeatureMap, element: int) -> float:
    """Largest distance of a representative of an element to its nearest other, at most :data:`CEILING`."""
    dots = np.maximum(gram(feature_map.representatives[element]), 0.0)
    if len(dots) < 2:
        return SINGLE
    np.fill_diagonal(dots, 0.0)
    return float(np.clip((1.0 - dots.max(axis=1) ** feature_map.zeta).max(), FLOOR, CEILING))


def distances(
    geometry: FixedGeometry, scale: Callable[[FeatureMap, int], float] = spread
) -> tuple[FloatArray, FloatArray]:
    """Distances of the atoms of a prepared geometry to the training environments.

    Parameters
    ----------
    geometry : FixedGeometry
    scale : function
        :func:`spread`, or what remembers its values: they belong to the model.

    Returns
    -------
    distances, relative : (N,) arrays
        1 − max k and the same in units of the spread, of the kernel in which the atom is relatively farthest.
    """
    atoms = len(geometry.structure)
    found, relative = np.zeros(atoms), np.full(atoms, -1.0)
    for feature_map, similarities in geometry.similarities.items():
        for similarity in similarities:
            # the largest kernel belongs to the largest dot product
            nearest = np.maximum(to_numpy(similarity.dots).max(axis=1), 0.0) ** feature_map.zeta
            own = np.maximum(1.0 - nearest, 0.0)
            scaled = own / scale(feature_map, similarity.element)
            larger = scaled > relative[similarity.centres]
            chosen = similarity.centres[larger]
            found[chosen], relative[chosen] = own[larger], scaled[larger]
    return found, relative


__all__ = ["distances", "spread"]
