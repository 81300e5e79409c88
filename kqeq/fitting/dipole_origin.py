"""Dipoles of ions depend on the origin: recognise labels that were computed about another one.

This package counts from the origin of the coordinates, μ = Σ q r.  Most programs of quantum chemistry count from the
centre of mass or of nuclear charge, so that their labels are too small by Q times that centre, a vector of its own in
every frame, which no model can follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from ase.data import atomic_masses

from kqeq.frames.structures import Structure
from kqeq.typing import FloatArray

MAX_IONS = 50
"""Ions that are looked at after a fit."""

OFF = 0.1
"""Errors of dipoles (root mean square of the components, e·Å) below this are not looked into."""

EXPLAINED = 0.35
"""An origin is recognised where the errors about it are smaller than this part of those about the coordinate origin."""

ORIGINS: dict[str, Callable[[Structure], FloatArray]] = {
    "centre of mass": lambda s: _mean(s, atomic_masses[s.numbers]),
    "centre of nuclear charge": lambda s: _mean(s, s.numbers.astype(np.float64)),
    "mean position of the atoms": lambda s: _mean(s, np.ones(len(s))),
    "centre of the cell": lambda s: 0.5 * s.cell.sum(axis=0),
}
"""Where programs count dipoles from, the usual ones first."""


def _mean(structure: Structure, weights: FloatArray) -> FloatArray:
    return np.asarray(weights @ structure.positions / weights.sum(), dtype=np.float64)


def far_from_ions(ions: Sequence[tuple[Structure, FloatArray]]) -> str | None:
    """The same without a model, for ions that lie so far from the origin that their dipoles must be large.

    Parameters
    ----------
    ions : sequence of (Structure, (3,) array)
        Charged, open structures with label, e·Å.
    """
    centre = ORIGINS["centre of nuclear charge"]
    rough = [(s, label, s.total_charge * centre(s)) for s, label in ions]
    reach = [abs(s.total_charge) * float(np.ptp(s.positions, axis=0).max()) for s, _ in ions]
    return other_origin(rough, least=max(reach, default=0.0) + 1.0, against="total charge times position")


def other_origin(
    ions: Sequence[tuple[Structure, FloatArray, FloatArray]],
    *,
    least: float = OFF,
    against: str = "the model",
) -> str | None:
    """A sentence that names the origin of dipole labels, if it is not that of the coordinates.

    Parameters
    ----------
    ions : sequence of (Structure, (3,) array, (3,) array)
        Charged, open structures with label and prediction, e·Å.
    least : float
        Errors below this are not looked into, e·Å.
    against : str
        What the prediction is, for the sentence.
    """
    if not ions:
        return None
    errors = np.array([label - predicted for _, label, predicted in ions])
    size = float(np.sqrt(np.mean(errors**2)))
    if size < least:
        return None
    left = {}
    for name, centre in ORIGINS.items():
        shift = np.array([s.total_charge * centre(s) for s, _, _ in ions])
        if np.abs(shift).max() > 0.0:
            left[name] = float(np.sqrt(np.mean((errors + shift) ** 2)))
    best = min(left, key=lambda name: left[name], default=None)
    if best is None or left[best] > EXPLAINED * size:
        return None
    # a fit to such labels is spoiled, and origins that are close to each other may fit alike: the usual one is named
    near = [name for name in left if left[name] <= 2.0 * left[best]]
    best, others = near[0], near[1:]
    doubt = f" (or the {' or '.join(others)})" if others else ""
    return (
        f"dipole labels of {len(ions)} ions are {size:.3g} e·Å from {against}, and {left[best]:.3g} e·Å if their "
        f"origin is the {best}{doubt} of each frame: this package counts from the origin of the coordinates, Σ q r. Add "
        f"total_charge times that vector to every such label"
    )


__all__ = ["MAX_IONS", "ORIGINS", "far_from_ions", "other_origin"]
