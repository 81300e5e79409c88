"""Charges that atoms can have."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.neighborlist import natural_cutoffs, neighbor_list

from kqeq import elements
from kqeq.analysis.probes import is_metal
from kqeq.frames.structures import Structure
from kqeq.typing import FloatArray

BOND = 1.25
"""Atoms closer than this, in sums of covalent radii, are bonded."""

FACTOR, LEEWAY = 2.0, 0.3
"""What an atom may carry: so many times the charge that its bonds give it, and so much (e) more.

Hirshfeld and Mulliken charges of all packaged sets stay inside by at least 0.2 e (tests/analysis/test_diagnose.py).
"""


def charge_ranges(numbers: Any) -> FloatArray:
    """Smallest and largest charge that is physical for each atom, (N, 2), by the position in the periodic table.

    An atom cannot lose more than its valence electrons (the group number, eight at most, and up to three beyond the
    filled d shell of groups 11 and 12) nor take more than its shell holds: non-metals up to the next noble gas, metals
    one electron.  Lanthanides and actinides: −1 to 4 and −1 to 6.
    """
    return np.array([_range_of(int(z)) for z in numbers], dtype=np.float64)


def bond_charges(structure: Structure) -> FloatArray:
    """Charge that the bonds of each atom give it, (N,), e; NaN for atoms without bonds or electronegativity.

    Every bond moves Pauling's ionic character, 1 − exp(−(Δχ)²/4) e, to the more electronegative atom (The Nature of the
    Chemical Bond, 3rd edition, 1960, chapter 3).
    """
    numbers = structure.numbers
    levels = elements.pauling(numbers)
    atoms = Atoms(numbers, structure.positions, cell=structure.cell, pbc=structure.pbc)
    i, j = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=BOND))
    difference = levels[j] - levels[i]
    moved = np.sign(difference) * (1.0 - np.exp(-0.25 * difference**2))
    found = np.bincount(i, weights=moved, minlength=len(numbers)).astype(np.float64)
    found[np.bincount(i, minlength=len(numbers)) == 0] = np.nan
    return np.asarray(found, dtype=np.float64)


def bond_ranges(structure: Structure) -> FloatArray:
    """Smallest and largest charge that the bonds of each atom and the total charge explain, (N, 2).

    Within :func:`charge_ranges`, which serve alone for atoms that have no bonds.
    """
    formal = charge_ranges(structure.numbers)
    expected = bond_charges(structure)
    leeway = LEEWAY + abs(structure.total_charge)
    low = np.minimum(FACTOR * expected, 0.0) - leeway
    high = np.maximum(FACTOR * expected, 0.0) + leeway
    known = np.isfinite(expected)
    formal[known, 0] = np.maximum(formal, low[:, None])[known, 0]
    formal[known, 1] = np.minimum(formal, high[:, None])[known, 1]
    return formal


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


__all__ = ["bond_charges", "bond_ranges", "charge_ranges"]
