"""What tblite's energy of a charged periodic cell lacks: the share of the neutralising background.

tblite (0.8) leaves out the term of zero wave vector of its Ewald sum, so that its energy depends on the splitting
parameter α.  With −π k_e Q²/(2 α² V) the cell average of the potential of point charges is zero, as everywhere in
this package (theory section 5), and the energy does not depend on α.
"""

from __future__ import annotations

import math

import numpy as np
from ase.units import Bohr

from kqeq.constants import COULOMB
from kqeq.typing import FloatArray


def background(cell: FloatArray, charge: float) -> float:
    """−π k_e Q²/(2 α² V) in eV, at the α that tblite chooses for a cell (3, 3) in Å."""
    if charge == 0.0:
        return 0.0
    alpha = splitting_parameter(cell) / Bohr
    return -math.pi * COULOMB * charge**2 / (2.0 * alpha**2 * abs(float(np.linalg.det(cell))))


def splitting_parameter(cell: FloatArray) -> float:
    """The splitting parameter (1/Bohr) that tblite chooses for a cell (Å).

    tblite bisects for the value at which the last terms of the sums over the lattice and over its reciprocal fall
    off alike, to a loose tolerance; so the value jumps with the cell, and the bisection has to take the same steps.
    """
    lattice = np.asarray(cell) / Bohr
    volume = abs(float(np.linalg.det(lattice)))
    wave = float(np.linalg.norm(2.0 * math.pi * np.linalg.inv(lattice).T, axis=1).min())
    length = float(np.linalg.norm(lattice, axis=1).min())
    tolerance = math.sqrt(np.finfo(float).eps)

    def reciprocal(g: float, alpha: float) -> float:
        return 4.0 * math.pi * math.exp(-((g / (2.0 * alpha)) ** 2)) / (volume * g**2)

    def direct(r: float, alpha: float) -> float:
        return math.erfc(alpha * r) / r

    def excess(alpha: float) -> float:
        falls = reciprocal(4.0 * wave, alpha) - reciprocal(5.0 * wave, alpha)
        return falls - (direct(2.0 * length, alpha) - direct(3.0 * length, alpha))

    high = tolerance
    while excess(high) < -tolerance:
        high *= 2.0
    low = high / 2.0
    while excess(high) < tolerance:
        high *= 2.0
    middle = 0.5 * (low + high)
    while abs(difference := excess(middle)) > tolerance:
        low, high = (middle, high) if difference < 0.0 else (low, middle)
        middle = 0.5 * (low + high)
    return middle


__all__ = ["background", "splitting_parameter"]
