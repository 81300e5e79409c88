"""Compiled loops that move charges to a mesh and potentials back; imported on first use (it imports numba).

Weights are products of one-dimensional splines.  Atoms are expected in the order of their mesh points,
so that neighbouring rows of the mesh are still in cache.  The last axis of the mesh is longer by p points, so that a
spline never leaves it.

Dimensions: N atoms, p points of a spline along each axis, mesh (M1, M2, M3).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kqeq.backend.compiled import LOOPS

FAST: Any = {"contract", "reassoc", "nsz"}


@njit(
    "void(int64, int64, int64[:, ::1], float64[:, :, :, ::1], float64[:, ::1], float64[:, :, ::1])",
    fastmath=FAST,
    **LOOPS,
)
def spread(begin: int, end: int, first: Any, weights: Any, values: Any, mesh: Any) -> None:
    """Add charges (and dipoles) of the atoms ``begin`` to ``end`` to the mesh.

    Parameters
    ----------
    first : (N, 3) int array
        Mesh point of the last spline index along the first two axes counted downwards: index k belongs to the point k
        below, periodically; along the third axis the lowest point, index k belongs to the point p − 1 − k above.
    weights : (N, 3, orders, p) array
        Splines and their derivatives along each axis; along the third one from the lowest point upwards.
    values : (N, 1) or (N, 4) array
        Charge, and dipole components in units of mesh spacings.
    mesh : (M1, M2, M3 + p) array
        Changed in place; what lies beyond M3 belongs to the beginning of the axis.
    """
    columns = values.shape[1]
    p = weights.shape[3]
    m1, m2 = mesh.shape[0], mesh.shape[1]
    line = np.empty(p)
    for i in range(begin, end):
        q = values[i, 0]
        z = first[i, 2]
        w = weights[i, 2, 0]
        for a in range(p):
            x = first[i, 0] - a
            while x < 0:
                x += m1
            wx = weights[i, 0, 0, a]
            for b in range(p):
                y = first[i, 1] - b
                while y < 0:
                    y += m2
                wy = weights[i, 1, 0, b]
                row = mesh[x, y, z : z + p]
                if columns == 1:
                    factor = q * wx * wy
                    for c in range(p):
                        row[c] += factor * w[c]
                else:
                    factor = q * wx * wy + values[i, 1] * weights[i, 0, 1, a] * wy
                    factor += values[i, 2] * wx * weights[i, 1, 1, b]
                    slope = values[i, 3] * wx * wy
                    for c in range(p):
                        line[c] = factor * w[c] + slope * weights[i, 2, 1, c]
                    for c in range(p):
                        row[c] += line[c]


@njit(
    "void(int64, int64, int64[:, ::1], float64[:, :, :, ::1], float64[:, :, ::1], float64[:, ::1])",
    fastmath=FAST,
    **LOOPS,
)
def gather(begin: int, end: int, first: Any, weights: Any, mesh: Any, out: Any) -> None:
    """Interpolate the mesh, and its derivatives, at the atoms ``begin`` to ``end``.

    Parameters
    ----------
    first, weights
        As in :func:`spread`.
    mesh : (M1, M2, M3 + p) array
        With its beginning repeated at the end of the third axis.
    out : (N, 1), (N, 4) or (N, 10) array
        Value; first derivatives along the mesh axes; second derivatives 11, 12, 13, 22, 23, 33.
    """
    columns = out.shape[1]
    p = weights.shape[3]
    m1, m2 = mesh.shape[0], mesh.shape[1]
    total = np.empty(10)
    for i in range(begin, end):
        for k in range(columns):
            total[k] = 0.0
        z = first[i, 2]
        w0 = weights[i, 2, 0]
        w1 = weights[i, 2, 1]
        for a in range(p):
            x = first[i, 0] - a
            while x < 0:
                x += m1
            wx = weights[i, 0, 0, a]
            if columns == 1:
                plane = 0.0
                for b in range(p):
                    y = first[i, 1] - b
                    while y < 0:
                        y += m2
                    row = mesh[x, y, z : z + p]
                    s0 = 0.0
                    for c in range(p):
                        s0 += w0[c] * row[c]
                    plane += weights[i, 1, 0, b] * s0
                total[0] += wx * plane
                continue
            dx = weights[i, 0, 1, a]
            for b in range(p):
                y = first[i, 1] - b
                while y < 0:
                    y += m2
                row = mesh[x, y, z : z + p]
                s0 = s1 = s2 = 0.0
                for c in range(p):
                    s0 += w0[c] * row[c]
                    s1 += w1[c] * row[c]
                wy, dy = weights[i, 1, 0, b], weights[i, 1, 1, b]
                total[0] += wx * wy * s0
                total[1] += dx * wy * s0
                total[2] += wx * dy * s0
                total[3] += wx * wy * s1
                if columns == 4:
                    continue
                for c in range(p):
                    s2 += weights[i, 2, 2, c] * row[c]
                total[4] += weights[i, 0, 2, a] * wy * s0
                total[5] += dx * dy * s0
                total[6] += dx * wy * s1
                total[7] += wx * weights[i, 1, 2, b] * s0
                total[8] += wx * dy * s1
                total[9] += wx * wy * s2
        for k in range(columns):
            out[i, k] = total[k]


__all__ = ["gather", "spread"]
