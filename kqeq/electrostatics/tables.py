"""Tables of the radial function of a lattice sum's pairs: polynomials of degree seven in r² on equal cells.

k_e [erfc(κ r) − erfc(r/(√2 γ))]/r is analytic in r², also at r = 0.  Interpolated at Chebyshev nodes of cells of
h = 0.2/a², a the larger of κ and 1/(√2 γ), it is off by less than rounding: the eighth derivative of 2a/√π F_0(a² r²)
is at most 2a/√π a¹⁶/17, so that the error is below 4e-6 a (a²h/4)⁸ (F_0 the Boys function,
:mod:`kqeq.electrostatics.radial`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from kqeq.constants import COULOMB
from kqeq.electrostatics.radial import screened_coulomb
from kqeq.typing import FloatArray, IntArray

MAX_KINDS = 8
"""Different widths beyond which there are no tables."""

MAX_CELLS = 8192
"""Cells of a table beyond which there are none: 512 kB each."""

_DEGREE = 7
_FINENESS = 0.2


@dataclass(frozen=True, eq=False)
class RadialTables:
    """Radial functions of all pairs of widths.

    Attributes
    ----------
    table_of : (S, S) int array
        Table of two widths.
    coefficients : (T, C, 8) array
        Of powers of −1 ≤ u ≤ 1 in each cell, eV/e².
    inverse : float
        Cells per Å².
    """

    table_of: IntArray
    coefficients: FloatArray
    inverse: float


@cache
def _nodes() -> tuple[FloatArray, FloatArray]:
    """Chebyshev nodes, and the matrix from values there to coefficients of powers."""
    number = _DEGREE + 1
    u = np.cos(np.pi * (np.arange(number) + 0.5) / number)
    return u, np.linalg.inv(np.vander(u, increasing=True))


@lru_cache(maxsize=16)
def radial_tables(widths: tuple[float, ...], kappa: float, r_cut: float) -> RadialTables | None:
    """Tables for pairs of Gaussians of these widths (Å) up to a cutoff (Å); ``None`` where they would be too large."""
    kinds = len(widths)
    if kinds > MAX_KINDS:
        return None
    steepest = max(kappa * kappa, 0.25 / min(widths) ** 2)
    inverse = steepest / _FINENESS
    cells = int(r_cut * r_cut * inverse) + 2
    if cells > MAX_CELLS:
        return None
    u, to_powers = _nodes()
    r2 = ((np.arange(cells)[:, None] + 0.5 * (u[None, :] + 1.0)) / inverse).ravel()
    table_of = np.zeros((kinds, kinds), dtype=np.int64)
    coefficients = np.empty((kinds * (kinds + 1) // 2, cells, _DEGREE + 1))
    number = 0
    for first in range(kinds):
        for second in range(first, kinds):
            a = 1.0 / np.sqrt(2.0 * (widths[first] ** 2 + widths[second] ** 2))
            (value,) = screened_coulomb(r2, np.full_like(r2, a), kappa, 0)
            coefficients[number] = COULOMB * value.reshape(cells, -1) @ to_powers.T
            table_of[first, second] = table_of[second, first] = number
            number += 1
    return RadialTables(table_of, coefficients, inverse)


__all__ = ["MAX_CELLS", "MAX_KINDS", "RadialTables", "radial_tables"]
