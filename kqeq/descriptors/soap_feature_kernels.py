"""Compiled loops for the derivatives of many kernel features at once; see ``soap_features``.

They call nothing from other modules on purpose: numba's disk cache notices changes of a function's own
file only.

Dimensions: p pairs of a chunk, M directions, S species, n radial functions, L harmonics,
K = (l_max + 1) n S n inner index (l, n, b), b = (species, radial function) of the centre's expansion.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

FAST: Any = {"contract", "reassoc", "nsz"}


@njit(
    "void(int64, int64, int64[::1], int64[::1], float64[:, ::1], float64[:, ::1], float64[:, :, ::1],"
    " float64[:, ::1], float64[:, ::1], float64[:, :, ::1], int64[:, ::1], float64[:, ::1],"
    " float64[:, :, ::1], float64[:, ::1])",
    cache=True,
    nogil=True,
    fastmath=FAST,
    error_model="numpy",
)
def pair_products(
    first: int,
    last: int,
    pairs: Any,
    centres: Any,
    vectors: Any,
    switch: Any,
    radial: Any,
    angular: Any,
    exponents: Any,
    weights: Any,
    rows: Any,
    factors: Any,
    coefficients: Any,
    out: Any,
) -> None:
    """H[3p + α, (l, n, b)] = Σ_m (∂c_nlm/∂r_α of the pair) c_blm of its centre.

    Contracting H with the symmetric matrices Q_l[n, b] of a direction d (rows of the neighbour's element)
    gives the derivative of d · p_raw with respect to the pair vector.  With u = W e and v = W a e the
    pair's ∂c_nlm/∂r_α = u ∂_α R_lm + 2 r_α v R_lm, so the sums over m do not depend on n.

    Parameters
    ----------
    first, last : int
        Range within the chunk.
    pairs, centres : (p,) int arrays
        Which pairs, and the centre of each.
    radial, angular : (l_max + 1, n4, p), (L, p) arrays
        exp(a r²) and R_lm of the chunk.
    out : (3p, K) output
    """
    degrees, n_radial = weights.shape[0], weights.shape[1]
    width = coefficients.shape[2]
    sums = np.empty((4, width))
    for q in range(first, last):
        p = pairs[q]
        f, f_slope = switch[0, p], switch[1, p]
        c = coefficients[centres[q]]
        for degree in range(degrees):
            sums[:] = 0.0
            for lm in range(degree * degree, (degree + 1) * (degree + 1)):
                dx = factors[lm, 0] * angular[rows[lm, 0], q] + factors[lm, 1] * angular[rows[lm, 1], q]
                dy = factors[lm, 2] * angular[rows[lm, 2], q] + factors[lm, 3] * angular[rows[lm, 3], q]
                dz = factors[lm, 4] * angular[rows[lm, 4], q]
                r = angular[lm, q]
                row = c[lm]
                for b in range(width):
                    sums[0, b] += dx * row[b]
                    sums[1, b] += dy * row[b]
                    sums[2, b] += dz * row[b]
                    sums[3, b] += r * row[b]
            for n in range(n_radial):
                u = 0.0
                v = 0.0
                for k in range(n_radial):
                    value = weights[degree, n, k] * radial[degree, k, q]
                    u += value
                    v += 2.0 * exponents[degree, k] * value
                v = f * v + f_slope * u
                u *= f
                offset = (degree * n_radial + n) * width
                for alpha in range(3):
                    target = out[3 * q + alpha, offset : offset + width]
                    radially = v * vectors[alpha, p]
                    for b in range(width):
                        target[b] = u * sums[alpha, b] + radially * sums[3, b]


@njit(
    "void(int64, int64, int64, float64[:, ::1], float64[::1], int64, int64, int64, float64[:, :, ::1])",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def expand_directions(
    first: int,
    last: int,
    offset: int,
    directions: Any,
    prefactors: Any,
    n_species: int,
    n_radial: int,
    degrees: int,
    out: Any,
) -> None:
    """Directions ``first`` to ``last`` as matrices: out[s, (l, n, b), m − offset] = Q_l[s n, b].

    Q carries the prefactor, and the doubled diagonal.
    """
    width = n_species * n_radial
    for degree in range(degrees):
        start = 0
        for s in range(n_species):
            for t in range(s, n_species):
                inner = n_radial * (n_radial + 1) // 2 if s == t else n_radial * n_radial
                f = start + degree * inner
                for a in range(n_radial):
                    for c in range(a if s == t else 0, n_radial):
                        factor = prefactors[degree]
                        if s == t and a == c:
                            factor *= 2.0
                        one = out[s, (degree * n_radial + a) * width + t * n_radial + c]
                        two = out[t, (degree * n_radial + c) * width + s * n_radial + a]
                        for m in range(first, last):
                            value = factor * directions[m, f]
                            one[m - offset] = value
                            two[m - offset] = value
                        f += 1
                start += inner * degrees


@njit(
    "void(int64, int64, int64[::1], int64[:, ::1], int64[::1], float64[:, ::1], float64[:, ::1],"
    " float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[:, ::1])",
    cache=True,
    nogil=True,
    fastmath=FAST,
    error_model="numpy",
)
def scatter_features(
    first: int,
    last: int,
    pairs: Any,
    indices: Any,
    which: Any,
    vectors: Any,
    products: Any,
    along: Any,
    scaled: Any,
    projections: Any,
    positions: Any,
    strain: Any,
) -> None:
    """Add the pair gradients of the directions ``first`` to ``last`` to atoms and strain, in order.

    The gradient of direction m is scaled_im (products − projections_im along): the last term is the
    derivative of the norm.

    Parameters
    ----------
    pairs, which : (p,) int arrays
        Pair, and row of its centre in ``scaled`` and ``projections``.
    products : (3p, M) array
        Directions contracted with :func:`pair_products`.
    along : (3, P) array
        Pair gradients of p̂_i · p_raw.
    scaled, projections : (n, M) arrays
        C_im / |p_i| and p̂_i · d_m.
    positions, strain : (3N, M), (9, M) arrays, updated
    """
    for q in range(len(pairs)):
        p = pairs[q]
        i, j, row = indices[0, p], indices[1, p], which[q]
        c = scaled[row]
        d = projections[row]
        for alpha in range(3):
            g = products[3 * q + alpha]
            h = along[alpha, p]
            plus = positions[3 * j + alpha]
            minus = positions[3 * i + alpha]
            s0, s1, s2 = strain[alpha], strain[3 + alpha], strain[6 + alpha]
            x, y, z = vectors[0, p], vectors[1, p], vectors[2, p]
            for m in range(first, last):
                value = c[m] * (g[m] - d[m] * h)
                g[m] = value
                s0[m] += x * value
                s1[m] += y * value
                s2[m] += z * value
            if i != j:
                for m in range(first, last):
                    plus[m] += g[m]
                for m in range(first, last):
                    minus[m] -= g[m]
