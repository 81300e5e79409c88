"""Compiled loops that move charges to a mesh and potentials back; imported on first use (it imports numba).

Weights are products of one-dimensional splines.  Atoms are expected in the order of their mesh points,
so that neighbouring rows of the mesh are still in cache.

Dimensions: N atoms, p points of a spline along each axis, mesh (M1, M2, M3).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from kqeq.typing import FloatArray, IntArray


@njit(
    "void(int64[:, ::1], float64[:, :, :, ::1], float64[:, ::1], float64[:, :, ::1])",
    cache=True,
    nogil=True,
    fastmath={"contract", "reassoc", "nsz"},
)
def spread(first: IntArray, weights: FloatArray, values: FloatArray, mesh: FloatArray) -> None:
    """Add charges (and dipoles) to the mesh.

    Parameters
    ----------
    first : (N, 3) int array
        Mesh point of spline index 0; index k belongs to the point k below, periodically.
    weights : (N, 3, orders, p) array
        Splines and their derivatives along each axis.
    values : (N, 1) or (N, 4) array
        Charge, and dipole components in units of mesh spacings.
    mesh : (M1, M2, M3) array
        Changed in place.
    """
    atoms, columns = values.shape
    p = weights.shape[3]
    m1, m2, m3 = mesh.shape
    line = np.empty(p)
    place = np.empty(p, dtype=np.int64)
    for i in range(atoms):
        for c in range(p):
            place[c] = (first[i, 2] - c) % m3
        q = values[i, 0]
        for a in range(p):
            x = (first[i, 0] - a) % m1
            wx = weights[i, 0, 0, a]
            for b in range(p):
                y = (first[i, 1] - b) % m2
                wy = weights[i, 1, 0, b]
                if columns == 1:
                    factor = q * wx * wy
                    for c in range(p):
                        line[c] = factor * weights[i, 2, 0, c]
                else:
                    factor = q * wx * wy + values[i, 1] * weights[i, 0, 1, a] * wy
                    factor += values[i, 2] * wx * weights[i, 1, 1, b]
                    slope = values[i, 3] * wx * wy
                    for c in range(p):
                        line[c] = factor * weights[i, 2, 0, c] + slope * weights[i, 2, 1, c]
                for c in range(p):
                    mesh[x, y, place[c]] += line[c]


@njit(
    "void(int64[:, ::1], float64[:, :, :, ::1], float64[:, :, ::1], float64[:, ::1])",
    cache=True,
    nogil=True,
    fastmath={"contract", "reassoc", "nsz"},
)
def gather(first: IntArray, weights: FloatArray, mesh: FloatArray, out: FloatArray) -> None:
    """Interpolate the mesh, and its derivatives, at the atoms.

    Parameters
    ----------
    first, weights
        As in :func:`spread`.
    mesh : (M1, M2, M3) array
    out : (N, 1), (N, 4) or (N, 10) array
        Value; first derivatives along the mesh axes; second derivatives 11, 12, 13, 22, 23, 33.
    """
    atoms, columns = out.shape
    p = weights.shape[3]
    m1, m2, m3 = mesh.shape
    place = np.empty(p, dtype=np.int64)
    for i in range(atoms):
        for k in range(columns):
            out[i, k] = 0.0
        for c in range(p):
            place[c] = (first[i, 2] - c) % m3
        for a in range(p):
            x = (first[i, 0] - a) % m1
            for b in range(p):
                y = (first[i, 1] - b) % m2
                s0, s1, s2 = 0.0, 0.0, 0.0
                for c in range(p):
                    s0 += weights[i, 2, 0, c] * mesh[x, y, place[c]]
                wx, wy = weights[i, 0, 0, a], weights[i, 1, 0, b]
                out[i, 0] += wx * wy * s0
                if columns == 1:
                    continue
                for c in range(p):
                    s1 += weights[i, 2, 1, c] * mesh[x, y, place[c]]
                dx, dy = weights[i, 0, 1, a], weights[i, 1, 1, b]
                out[i, 1] += dx * wy * s0
                out[i, 2] += wx * dy * s0
                out[i, 3] += wx * wy * s1
                if columns == 4:
                    continue
                for c in range(p):
                    s2 += weights[i, 2, 2, c] * mesh[x, y, place[c]]
                out[i, 4] += weights[i, 0, 2, a] * wy * s0
                out[i, 5] += dx * dy * s0
                out[i, 6] += dx * wy * s1
                out[i, 7] += wx * weights[i, 1, 2, b] * s0
                out[i, 8] += wx * dy * s1
                out[i, 9] += wx * wy * s2


__all__ = ["gather", "spread"]
