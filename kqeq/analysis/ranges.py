"""Charges that atoms can have."""

from __future__ import annotations

from typing import Any

import numpy as np

from kqeq.analysis.probes import is_metal
from kqeq.typing import FloatArray


def charge_ranges(numbers: Any) -> FloatArray:
    """Smallest and largest charge that is physical for each atom, (N, 2), by the position in the periodic table.

    An atom cannot lose more than its valence electrons (the group number, eight at most, and up to three beyond the
    filled d shell of groups 11 and 12) nor take more than its shell holds: non-metals up to the next noble gas, metals
    one electron.  Lanthanides and actinides: −1 to 4 and −1 to 6.
    """
    return np.array([_range_of(int(z)) for z in numbers], dtype=np.float64)


def _range_of(z: int) -> tuple[float, float]:
    if z == 1:
        return -1.0, 1.0
    if 57 <= z <= 71 or 89 <= z <= 103:
        return -1.0, 4.0 if z <= 71 else 6.0
    core = max(noble for noble in (0, 2, 10, 18, 36, 54, 86) if noble < z)
    if (core == 86 and z > 103) or (core == 54 and z > 71):
        core += 14
    electrons = z - core
    if core in (0, 2, 10):
        valence, room = electrons, (2 if core == 0 else 8) - electrons
    elif electrons <= 12:
        lost = {9: 8, 10: 6, 11: 3, 12: 2}.get(electrons, min(electrons, 8))
        return -1.0, float(lost)
    else:
        valence, room = electrons - 10, 18 - electrons
    return (-1.0 if is_metal(z) else -float(room)), float(valence)


__all__ = ["charge_ranges"]
