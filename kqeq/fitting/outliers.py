"""Frames whose forces are far beyond those of all others.

A smooth kernel that has to follow one collision among ordinary frames follows the ordinary ones less well, and falls into
holes between them.  One frame of ethanol with 110 eV/Å among forty of 5: forces of others 169 instead of 93 meV/Å, and a
dynamics that explodes; with a repulsion below the model (``baseline="zbl"``) 109, and it holds.  Weights do less: 0.01
leaves 168, 1e-4 135.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase.data import covalent_radii

from kqeq.errors import LabelWarning, warn
from kqeq.fitting.rows.features import TrainingFrame
from kqeq.frames.neighbours import find_pairs
from kqeq.frames.structures import Structure

BEYOND = 8.0
"""Largest forces of a frame over those that nine frames of ten do not exceed."""

LARGE = 15.0
"""Forces below this are no trouble, eV/Å."""

LEAST_FRAMES = 10
"""Frames without which nothing is said."""

CLOSE = 0.75
"""Distances over sums of covalent radii that only collisions have."""


def warn_outliers(frames: Sequence[TrainingFrame], *, zbl: bool) -> str | None:
    """Warn of frames with forces that are far beyond those of others; the same as a note.

    Parameters
    ----------
    frames : sequence of TrainingFrame
        As they are fitted: a baseline is subtracted.
    zbl : bool
        Whether a repulsion of nuclei is in it.

    Warns
    -----
    LabelWarning
    """
    own = [frame for frame in frames if frame.labels.forces is not None and frame.labels.weight > 0.0]
    if len(own) < LEAST_FRAMES:
        return None
    sizes = np.array([np.linalg.norm(frame.labels.forces, axis=1).max() for frame in own])  # type: ignore[arg-type]
    typical = float(np.quantile(sizes, 0.9))
    far = np.flatnonzero(sizes > max(LARGE, BEYOND * typical))
    if not len(far):
        return None
    names = ", ".join(str(own[i].index) for i in far[:5]) + (" ..." if len(far) > 5 else "")
    close = [ratio for i in far if (ratio := _closest(own[i].structure)) < CLOSE]
    remedy = "look at them, and leave them out if they are not needed"
    if close and not zbl:
        remedy = (
            f"atoms there are as close as {min(close):.2f} times the sum of their covalent radii. Put the repulsion of "
            'nuclei below the model (baseline="zbl", or added to the baseline that there is), or leave such frames out'
        )
    text = (
        f"{len(far)} of {len(own)} frames ({names}) have forces up to {sizes[far].max():.3g} eV/Å, where nine of ten "
        f"frames stay below {typical:.3g}: a smooth model that follows them follows the others less well, and "
        f"simulations may fall into holes between them; {remedy}"
    )
    warn(text, LabelWarning)
    return text


def _closest(structure: Structure) -> float:
    """Shortest distance over the sum of covalent radii."""
    radii = covalent_radii[structure.numbers]
    pairs = find_pairs(structure, 2.0 * CLOSE * float(radii.max()), full=False)
    if not len(pairs.indices):
        return np.inf
    i, j = pairs.indices.T
    return float((np.linalg.norm(pairs.vectors, axis=1) / (radii[i] + radii[j])).min())


__all__ = ["warn_outliers"]
