"""Compiled loops for the derivatives of many kernel features at once; see ``features.py``.

They call nothing from other modules on purpose: numba's disk cache notices changes of a function's own
file only.

Dimensions: p pairs of a chunk, M directions, S species, n radial functions, L harmonics,
K = (l_max + 1) S n n inner index (l, b, n), b = (species, radial function) of the centre's expansion.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

INVERSE_LN2 = 1.4426950408889634
ROUNDING = 6755399441055744.0  # 1.5 · 2^52: adding it rounds a double to an integer
LOWEST = -1021.0  # below, powers of two are no normal numbers

# 2^f = Σ_k EXP2_k f^k for |f| <= ½: interpolation at Chebyshev nodes, off by less than rounding
E1 = 0.69314718055995
E2 = 0.24022650695910097
E3 = 0.05550410866444774
E4 = 0.009618129107607076
E5 = 0.0013333558230161325
E6 = 0.00015403530441539096
E7 = 1.5252657262153917e-05
E8 = 1.321544267611986e-06
E9 = 1.0208689957961874e-07
E10 = 7.0725719174842844e-09
FAST: Any = {"contract", "reassoc", "nsz"}


def _bits_to_float_codegen(typingctx: Any, bits: Any) -> Any:
    """Reinterpret an int64 as a float64 (a cast of registers, so that loops still vectorise)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.float64))

    return types.float64(types.int64), codegen


def _float_to_bits_codegen(typingctx: Any, value: Any) -> Any:
    """Reinterpret a float64 as an int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.int64))

    return types.int64(types.float64), codegen


_bits_to_float: Any = intrinsic(_bits_to_float_codegen)
_float_to_bits: Any = intrinsic(_float_to_bits_codegen)


@njit("float64(float64)", cache=True, fastmath={"contract"})
def _exp2(x: Any) -> Any:
    """2^x for x <= 0 to 3e-16, as 2^k 2^f with a polynomial for |f| <= ½; x below -1021 counts as that.

    Needed because calls into the C library keep a loop from being vectorised.  Compiled without
    reassociation, which would undo the rounding trick.
    """
    x = max(x, LOWEST)
    shifted = x + ROUNDING
    f = x - (shifted - ROUNDING)
    p = E10 * f + E9
    p = p * f + E8
    p = p * f + E7
    p = p * f + E6
    p = p * f + E5
    p = p * f + E4
    p = p * f + E3
    p = p * f + E2
    p = p * f + E1
    p = p * f + 1.0
    # the low bits of ``shifted`` hold k; move it to the exponent field
    scale = _bits_to_float((_float_to_bits(shifted) << 52) + 4607182418800017408)
    return p * scale


@njit(
    "void(float64[:, ::1], int64, int64, float64[:, ::1], float64[:, ::1], float64[:, :, ::1],"
    " float64[:, ::1])",
    cache=True,
    nogil=True,
    fastmath=FAST,
    error_model="numpy",
)
def fill_block(
    vectors: Any, first: int, count: int, exponents: Any, recursion: Any, radial: Any, angular: Any
) -> None:
    """exp(a r²) as ``radial[l, k, b]`` and R_lm as ``angular[lm, b]`` for ``count`` pairs."""
    x = np.empty(count)
    y = np.empty(count)
    z = np.empty(count)
    r2 = np.empty(count)
    for b in range(count):
        x[b] = vectors[0, first + b]
        y[b] = vectors[1, first + b]
        z[b] = vectors[2, first + b]
        r2[b] = x[b] * x[b] + y[b] * y[b] + z[b] * z[b]
    degrees, n_radial = exponents.shape
    for degree in range(degrees):
        for k in range(n_radial):
            a = exponents[degree, k] * INVERSE_LN2
            row = radial[degree, k]
            if degree > 0 and exponents[degree, k] == exponents[degree - 1, k]:
                # the radial functions of dscribe that lie at 1 Å have the same exponent in every degree
                above = radial[degree - 1, k]
                for b in range(count):
                    row[b] = above[b]
                continue
            for b in range(count):
                row[b] = _exp2(a * r2[b])
    for b in range(count):
        angular[0, b] = recursion[0, 0]
    for degree in range(1, degrees):
        centre = degree * degree + degree
        below = centre - 2 * degree  # row of (degree − 1, 0)
        below2 = below - 2 * degree + 2  # row of (degree − 2, 0)
        for order in range(-degree + 1, degree):
            u = recursion[centre + order, 0]
            v = recursion[centre + order, 1]
            row = angular[centre + order]
            row1 = angular[below + order]
            if abs(order) <= degree - 2:
                row2 = angular[below2 + order]
                for b in range(count):
                    row[b] = u * z[b] * row1[b] - v * r2[b] * row2[b]
            else:
                for b in range(count):
                    row[b] = u * z[b] * row1[b]
        u = recursion[centre + degree, 0]
        cosine = angular[centre + degree]
        sine = angular[centre - degree]
        cosine1 = angular[below + degree - 1]
        if degree == 1:
            # the factor √2 of orders m > 0 is in u; there is no sine of order 0
            for b in range(count):
                cosine[b] = u * x[b] * cosine1[b]
                sine[b] = u * y[b] * cosine1[b]
        else:
            sine1 = angular[below - degree + 1]
            for b in range(count):
                cosine[b] = u * (x[b] * cosine1[b] - y[b] * sine1[b])
                sine[b] = u * (x[b] * sine1[b] + y[b] * cosine1[b])


@njit(
    "void(int64, int64, float64, float64, float64[:, ::1], float64[:, :, ::1], float64[:, :, ::1],"
    " float64[::1], float64[::1])",
    cache=True,
    nogil=True,
    fastmath=FAST,
    error_model="numpy",
)
def _radial_factors(
    degree: int,
    q: int,
    f: float,
    f_slope: float,
    exponents: Any,
    weights: Any,
    radial: Any,
    u: Any,
    v: Any,
) -> None:
    """∂c_nlm/∂r_α = u[n] ∂_α R_lm + v[n] r_α R_lm for pair q, with its switch f and f'/r."""
    n_radial = len(u)
    for n in range(n_radial):
        value = 0.0
        slope = 0.0
        for k in range(n_radial):
            term = weights[degree, n, k] * radial[degree, k, q]
            value += term
            slope += 2.0 * exponents[degree, k] * term
        u[n] = f * value
        v[n] = f * slope + f_slope * value


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
    """H[3p + α, (l, b, n)] = Σ_m (∂c_nlm/∂r_α of the pair) c_blm of its centre.

    Contracting H with the symmetric matrices Q_l[n, b] of a direction d (rows of the neighbour's element)
    gives the derivative of d · p_raw with respect to the pair vector.  The pair's slopes factorise into
    radial and angular parts, so the sums over m do not depend on n.

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
    u = np.empty(n_radial)
    v = np.empty(n_radial)
    for q in range(first, last):
        p = pairs[q]
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
            _radial_factors(degree, q, switch[0, p], switch[1, p], exponents, weights, radial, u, v)
            for alpha in range(3):
                target = out[3 * q + alpha]
                r = vectors[alpha, p]
                offset = degree * width * n_radial
                for b in range(width):
                    x = sums[alpha, b]
                    y = r * sums[3, b]
                    for n in range(n_radial):
                        target[offset + n] = u[n] * x + v[n] * y
                    offset += n_radial


@njit(
    "void(int64, int64, float64[:, ::1], float64[:, ::1], float64[:, :, ::1], float64[:, ::1],"
    " float64[:, ::1], float64[:, :, ::1], int64[:, ::1], float64[:, ::1], float64[:, ::1])",
    cache=True,
    nogil=True,
    fastmath=FAST,
    error_model="numpy",
)
def pair_slopes(
    first: int,
    last: int,
    vectors: Any,
    switch: Any,
    radial: Any,
    angular: Any,
    exponents: Any,
    weights: Any,
    rows: Any,
    factors: Any,
    out: Any,
) -> None:
    """out[3q + α, (lm, n)] = ∂c_nlm/∂r_α of the pairs ``first`` to ``last``; q counts from ``first``.

    Parameters
    ----------
    radial, angular : (l_max + 1, n4, p), (L, p) arrays
        exp(a r²) and R_lm of these pairs.
    """
    degrees, n_radial = weights.shape[0], weights.shape[1]
    u = np.empty(n_radial)
    v = np.empty(n_radial)
    for q in range(last - first):
        p = first + q
        for degree in range(degrees):
            _radial_factors(degree, q, switch[0, p], switch[1, p], exponents, weights, radial, u, v)
            for lm in range(degree * degree, (degree + 1) * (degree + 1)):
                dx = factors[lm, 0] * angular[rows[lm, 0], q] + factors[lm, 1] * angular[rows[lm, 1], q]
                dy = factors[lm, 2] * angular[rows[lm, 2], q] + factors[lm, 3] * angular[rows[lm, 3], q]
                dz = factors[lm, 4] * angular[rows[lm, 4], q]
                x = vectors[0, p] * angular[lm, q]
                y = vectors[1, p] * angular[lm, q]
                z = vectors[2, p] * angular[lm, q]
                for n in range(n_radial):
                    out[3 * q, lm * n_radial + n] = u[n] * dx + v[n] * x
                    out[3 * q + 1, lm * n_radial + n] = u[n] * dy + v[n] * y
                    out[3 * q + 2, lm * n_radial + n] = u[n] * dz + v[n] * z


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
    """Directions ``first`` to ``last`` as matrices: out[s, (l, b, n), m − offset] = Q_l[s n, b].

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
                        one = out[s, (degree * width + t * n_radial + c) * n_radial + a]
                        two = out[t, (degree * width + s * n_radial + a) * n_radial + c]
                        for m in range(first, last):
                            value = factor * directions[m, f]
                            one[m - offset] = value
                            two[m - offset] = value
                        f += 1
                start += inner * degrees


@njit(
    "void(int64[::1], int64[:, ::1], int64[::1], float64[:, ::1], float64[:, ::1],"
    " float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[:, ::1])",
    cache=True,
    nogil=True,
    fastmath=FAST,
    error_model="numpy",
)
def scatter_features(
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
    """Add the pair gradients of all directions to atoms and strain, in order.

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
    n_directions = products.shape[1]
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
            for m in range(n_directions):
                value = c[m] * (g[m] - d[m] * h)
                g[m] = value
                s0[m] += x * value
                s1[m] += y * value
                s2[m] += z * value
            if i != j:
                for m in range(n_directions):
                    plus[m] += g[m]
                for m in range(n_directions):
                    minus[m] -= g[m]


__all__ = ["expand_directions", "fill_block", "pair_products", "pair_slopes", "scatter_features"]
