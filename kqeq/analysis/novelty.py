"""How far the environments of a structure are from those that a model was fitted on (:mod:`kqeq.potential.novelty`).

Dimensions: N atoms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kqeq.analysis.results import Result
from kqeq.potential.fixed_geometry import FixedGeometry
from kqeq.potential.novelty import distances, spread
from kqeq.typing import FloatArray, IntArray


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
    return Novelty(geometry.structure.numbers, *distances(geometry))


__all__ = ["Novelty", "novelty", "spread"]
