"""Compiled loops of lattice sums of Gaussian charges; imported on first use (it imports numba).

Radial functions come from tables of polynomials in r² (:mod:`kqeq.electrostatics.tables`); a gradient is the exact
derivative of what the table gives for the energy.  Pairs are listed once, ordered by centre; loops work on a range of
centres and write what belongs to it, so that threads do not meet.  Each is compiled when it is called first: molecules
and cells need different ones.

Dimensions: N atoms, P pairs, T tables, C cells of a table, K reciprocal vectors of a half space.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kqeq.backend.compiled import LEAN, LOOPS

FAST: Any = {"contract", "reassoc", "nsz"}


FAST_LEAN: Any = {**LEAN, "fastmath": FAST}

FAST_LOOPS: Any = {**LOOPS, "fastmath": FAST}


@njit(None, **FAST_LEAN)
def values(
    first: int,
    last: int,
    start: Any,
    indices: Any,
    vectors: Any,
    limit: float,
    kinds: Any,
    table_of: Any,
    tables: Any,
    inverse: float,
    out: Any,
) -> None:
    """Radial function of the pairs of the centres ``first`` to ``last``; zero beyond the cutoff.

    Parameters
    ----------
    start, indices, vectors : (N + 1,), (P, 2), (P, 3) arrays
        Pairs ordered by centre.
    limit : float
        Square of the cutoff.
    kinds : (N,) int array
        Kind of each atom.
    table_of : (S, S) int array
        Table of two kinds.
    tables : (T, C, 8) array
        Coefficients in −1 ≤ u ≤ 1 of each cell.
    inverse : float
        Cells per Å².
    out : (P,) output
    """
    for i in range(first, last):
        for p in range(start[i], start[i + 1]):
            x, y, z = vectors[p, 0], vectors[p, 1], vectors[p, 2]
            r2 = x * x + y * y + z * z
            value = 0.0
            if r2 <= limit:
                place = r2 * inverse
                cell = int(place)
                u = 2.0 * (place - cell) - 1.0
                c = tables[table_of[kinds[i], kinds[indices[p, 1]]], cell]
                w = u * u
                even = c[0] + w * (c[2] + w * (c[4] + w * c[6]))
                odd = c[1] + w * (c[3] + w * (c[5] + w * c[7]))
                value = even + u * odd
            out[p] = value


@njit(None, **FAST_LEAN)
def gradients(
    first: int,
    last: int,
    start: Any,
    indices: Any,
    vectors: Any,
    limit: float,
    kinds: Any,
    table_of: Any,
    tables: Any,
    inverse: float,
    left: Any,
    right: Any,
    positions: Any,
    strain: Any,
) -> None:
    """∂(leftᵀ A right)/∂r and the strain derivative, from the pairs of the centres ``first`` to ``last``.

    Parameters
    ----------
    left, right : (N,) arrays
    positions : (N, 3) array
        Added to.
    strain : (6,) array
        11, 12, 13, 22, 23, 33; added to.
    others
        As in :func:`values`.
    """
    s11 = s12 = s13 = s22 = s23 = s33 = 0.0
    for i in range(first, last):
        gx = gy = gz = 0.0
        li, ri = left[i], right[i]
        for p in range(start[i], start[i + 1]):
            x, y, z = vectors[p, 0], vectors[p, 1], vectors[p, 2]
            r2 = x * x + y * y + z * z
            if r2 <= limit:
                place = r2 * inverse
                cell = int(place)
                u = 2.0 * (place - cell) - 1.0
                j = indices[p, 1]
                c = tables[table_of[kinds[i], kinds[j]], cell]
                w = u * u
                odd = 2.0 * c[2] + w * (4.0 * c[4] + w * (6.0 * c[6]))
                even = c[1] + w * (3.0 * c[3] + w * (5.0 * c[5] + w * (7.0 * c[7])))
                # d/dr = 2 r d/dr², d/dr² = 2 · inverse · d/du
                slope = 4.0 * inverse * (even + u * odd) * (li * right[j] + left[j] * ri)
                fx, fy, fz = slope * x, slope * y, slope * z
                gx -= fx
                gy -= fy
                gz -= fz
                positions[j, 0] += fx
                positions[j, 1] += fy
                positions[j, 2] += fz
                s11 += x * fx
                s12 += x * fy
                s13 += x * fz
                s22 += y * fy
                s23 += y * fz
                s33 += z * fz
        positions[i, 0] += gx
        positions[i, 1] += gy
        positions[i, 2] += gz
    strain[0] += s11
    strain[1] += s12
    strain[2] += s13
    strain[3] += s22
    strain[4] += s23
    strain[5] += s33


@njit(None, **LEAN)
def scatter(first: int, last: int, start: Any, indices: Any, pair: Any, out: Any) -> None:
    """Add the values of pairs to the rows ``first`` to ``last`` of a matrix (N, N)."""
    for i in range(first, last):
        for p in range(start[i], start[i + 1]):
            out[i, indices[p, 1]] += pair[p]


@njit(None, **FAST_LEAN)
def product(first: int, last: int, start: Any, indices: Any, pair: Any, vector: Any, out: Any) -> None:
    """Add to ``out`` (N,) the product of the symmetric matrix of the pairs of some centres with a vector (N,)."""
    for i in range(first, last):
        own = vector[i]
        total = 0.0
        for p in range(start[i], start[i + 1]):
            j = indices[p, 1]
            v = pair[p]
            total += v * vector[j]
            out[j] += v * own
        out[i] += total


@njit(None, **FAST_LOOPS)
def phases(first: int, last: int, millers: Any, powers: Any, weights: Any, cosine: Any, sine: Any) -> None:
    """√w cos G·r and √w sin G·r of some reciprocal vectors, from the waves along each axis.

    Parameters
    ----------
    millers : (K, 3) int array
        The first index is not negative.
    powers : (3, 2, m, N) array
        Cosine and sine of 2π m s along each axis.
    weights : (K,) array
        √w.
    cosine, sine : (K, N) outputs
    """
    atoms = powers.shape[3]
    plane_c = np.empty(atoms)
    plane_s = np.empty(atoms)
    before_h = before_k = -(1 << 30)
    for g in range(first, last):
        h, k, m = millers[g, 0], millers[g, 1], millers[g, 2]
        if h != before_h or k != before_k:
            before_h, before_k = h, k
            sign = 1.0 if k >= 0 else -1.0
            hc, hs = powers[0, 0, h], powers[0, 1, h]
            kc, ks = powers[1, 0, abs(k)], powers[1, 1, abs(k)]
            for i in range(atoms):
                other = sign * ks[i]
                plane_c[i] = hc[i] * kc[i] - hs[i] * other
                plane_s[i] = hc[i] * other + hs[i] * kc[i]
        sign = 1.0 if m >= 0 else -1.0
        mc, ms = powers[2, 0, abs(m)], powers[2, 1, abs(m)]
        w = weights[g]
        c_row, s_row = cosine[g], sine[g]
        for i in range(atoms):
            other = sign * ms[i]
            c_row[i] = w * (plane_c[i] * mc[i] - plane_s[i] * other)
            s_row[i] = w * (plane_c[i] * other + plane_s[i] * mc[i])


@njit(None, **FAST_LEAN)
def open_matrix(
    first: int,
    last: int,
    positions: Any,
    limit: float,
    unit: float,
    kinds: Any,
    table_of: Any,
    tables: Any,
    inverse: float,
    out: Any,
) -> None:
    """Interaction of the atoms ``first`` to ``last`` with those before them, in open boundaries.

    Beyond the cutoff charges are points: unit/r.  Parameters as in :func:`values`.

    Parameters
    ----------
    out : (N, N) output
        Both triangles are written; the diagonal is not.
    """
    for i in range(first, last):
        for j in range(i):
            x = positions[j, 0] - positions[i, 0]
            y = positions[j, 1] - positions[i, 1]
            z = positions[j, 2] - positions[i, 2]
            r2 = x * x + y * y + z * z
            if r2 <= limit:
                place = r2 * inverse
                cell = int(place)
                u = 2.0 * (place - cell) - 1.0
                c = tables[table_of[kinds[i], kinds[j]], cell]
                w = u * u
                even = c[0] + w * (c[2] + w * (c[4] + w * c[6]))
                odd = c[1] + w * (c[3] + w * (c[5] + w * c[7]))
                value = even + u * odd
            else:
                value = unit / np.sqrt(r2)
            out[i, j] = value
            out[j, i] = value


@njit(None, **FAST_LEAN)
def open_gradients(
    first: int,
    last: int,
    positions: Any,
    limit: float,
    unit: float,
    kinds: Any,
    table_of: Any,
    tables: Any,
    inverse: float,
    left: Any,
    right: Any,
    out: Any,
) -> None:
    """∂(leftᵀ A right)/∂r of the atoms ``first`` to ``last`` in open boundaries, from all others.

    Parameters
    ----------
    out : (N, 3) output
    others
        As in :func:`open_matrix` and :func:`gradients`.
    """
    atoms = len(left)
    for i in range(first, last):
        gx = gy = gz = 0.0
        for j in range(atoms):
            x = positions[j, 0] - positions[i, 0]
            y = positions[j, 1] - positions[i, 1]
            z = positions[j, 2] - positions[i, 2]
            r2 = x * x + y * y + z * z
            if r2 <= limit:
                place = r2 * inverse
                cell = int(place)
                u = 2.0 * (place - cell) - 1.0
                c = tables[table_of[kinds[i], kinds[j]], cell]
                w = u * u
                odd = 2.0 * c[2] + w * (4.0 * c[4] + w * (6.0 * c[6]))
                even = c[1] + w * (3.0 * c[3] + w * (5.0 * c[5] + w * (7.0 * c[7])))
                slope = 4.0 * inverse * (even + u * odd)
            else:
                slope = -unit / (r2 * np.sqrt(r2))
            slope *= left[i] * right[j] + left[j] * right[i]
            gx -= slope * x
            gy -= slope * y
            gz -= slope * z
        out[i, 0] = gx
        out[i, 1] = gy
        out[i, 2] = gz


__all__ = ["gradients", "open_gradients", "open_matrix", "phases", "product", "scatter", "values"]
