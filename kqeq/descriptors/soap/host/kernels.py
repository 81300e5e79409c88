"""Compiled loops of SOAP; imported only when the first descriptor is evaluated (it imports numba).

All kernels release the interpreter lock, work on a range of centres (or pairs) and write only what
belongs to it.  Signatures are explicit, so each is compiled once and then read from numba's disk cache.

They are in one file on purpose: numba's disk cache notices changes of a function's own file only, not of
the compiled functions that it calls.

Within a kernel neighbours are handled in blocks of ``BLOCK`` and every inner loop runs over the
neighbours of a block: unit stride, no dependence on n_max or l_max, which compilers vectorise well.

Dimensions: N atoms, P pairs (sorted by centre, then element), S species, n radial functions,
L = (l_max + 1)² harmonics, F features, b neighbours of a block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

BLOCK = 192
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
    "void(float64[:, ::1], float64, int64, int64, int64, int64, float64[::1])",
    cache=True,
    nogil=True,
    fastmath=FAST,
    error_model="numpy",
)
def _pack(
    square: Any, factor: float, degree: int, degrees: int, n_species: int, n_radial: int, row: Any
) -> None:
    """Write factor × the upper triangle of one degree where the row keeps it."""
    offset = 0
    for s in range(n_species):
        for t in range(s, n_species):
            inner = n_radial * (n_radial + 1) // 2 if s == t else n_radial * n_radial
            f = offset + degree * inner
            for a in range(n_radial):
                begin = a if s == t else 0
                source = square[s * n_radial + a, t * n_radial + begin : (t + 1) * n_radial]
                target = row[f : f + n_radial - begin]
                for c in range(n_radial - begin):
                    target[c] = factor * source[c]
                f += n_radial - begin
            offset += inner * degrees


@njit(
    "void(float64[::1], float64, int64, int64, int64, int64, float64[:, ::1])",
    cache=True,
    nogil=True,
    fastmath=FAST,
    error_model="numpy",
)
def _unpack(
    row: Any, factor: float, degree: int, degrees: int, n_species: int, n_radial: int, square: Any
) -> None:
    """The symmetric matrix Q of one degree, diagonal doubled: ∂(row · p)/∂c = Q c."""
    offset = 0
    for s in range(n_species):
        for t in range(s, n_species):
            inner = n_radial * (n_radial + 1) // 2 if s == t else n_radial * n_radial
            f = offset + degree * inner
            for a in range(n_radial):
                begin = a if s == t else 0
                target = square[s * n_radial + a, t * n_radial + begin : (t + 1) * n_radial]
                source = row[f : f + n_radial - begin]
                for c in range(n_radial - begin):
                    target[c] = factor * source[c]
                f += n_radial - begin
            offset += inner * degrees
    for i in range(n_species * n_radial):
        target = square[i]
        target[i] *= 2.0
        for j in range(i):
            target[j] = square[j, i]


@njit(
    "void(float64[:, ::1], int64, float64[:, ::1])",
    cache=True,
    nogil=True,
    fastmath=FAST,
    error_model="numpy",
)
def _gram(coefficients: Any, degree: int, square: Any) -> None:
    """Write Σ_m c cᵀ of one degree to ``square``; four m at a time, which saves most loads and stores."""
    width = square.shape[0]
    lm = degree * degree
    last = lm + 2 * degree + 1
    c0 = coefficients[lm]
    if degree % 2 == 0:
        for a in range(width):
            v0 = c0[a]
            target = square[a]
            for b in range(width):
                target[b] = v0 * c0[b]
        lm += 1
    else:
        c1 = coefficients[lm + 1]
        c2 = coefficients[lm + 2]
        for a in range(width):
            v0, v1, v2 = c0[a], c1[a], c2[a]
            target = square[a]
            for b in range(width):
                target[b] = v0 * c0[b] + v1 * c1[b] + v2 * c2[b]
        lm += 3
    while lm < last:
        c0 = coefficients[lm]
        c1 = coefficients[lm + 1]
        c2 = coefficients[lm + 2]
        c3 = coefficients[lm + 3]
        for a in range(width):
            v0, v1, v2, v3 = c0[a], c1[a], c2[a], c3[a]
            target = square[a]
            for b in range(width):
                target[b] += v0 * c0[b] + v1 * c1[b] + v2 * c2[b] + v3 * c3[b]
        lm += 4


@njit(
    "void(float64[::1], float64[:, ::1], float64[::1])",
    cache=True,
    nogil=True,
    fastmath=FAST,
    error_model="numpy",
)
def _multiply(vector: Any, matrix: Any, out: Any) -> None:
    """Write vector @ matrix to ``out``, four rows at a time."""
    rows, width = matrix.shape
    for a in range(width):
        out[a] = 0.0
    c = 0
    while c + 4 <= rows:
        v0, v1, v2, v3 = vector[c], vector[c + 1], vector[c + 2], vector[c + 3]
        q0 = matrix[c]
        q1 = matrix[c + 1]
        q2 = matrix[c + 2]
        q3 = matrix[c + 3]
        for a in range(width):
            out[a] += v0 * q0[a] + v1 * q1[a] + v2 * q2[a] + v3 * q3[a]
        c += 4
    while c < rows:
        v0 = vector[c]
        q0 = matrix[c]
        for a in range(width):
            out[a] += v0 * q0[a]
        c += 1


@njit(
    "void(int64, int64, int64[::1], float64[:, ::1], float64[:, ::1], int64[::1], float64, float64[:, ::1],"
    " float64[:, :, ::1], float64[::1], float64[:, ::1], float64[:, :, ::1], float64[:, ::1], float64[::1])",
    cache=True,
    nogil=True,
    fastmath=FAST,
    error_model="numpy",
)
def expand(
    first: int,
    last: int,
    start: Any,
    vectors: Any,
    switch: Any,
    slots: Any,
    centre: float,
    exponents: Any,
    weights: Any,
    prefactors: Any,
    recursion: Any,
    coefficients: Any,
    values: Any,
    norms: Any,
) -> None:
    """Expansion coefficients and normalised power spectrum of the centres ``first`` to ``last``.

    Parameters
    ----------
    start, vectors, switch
        From ``pair_kernels.sort_pairs``.
    centre : float
        Weight of the centre itself.
    exponents : (l_max + 1, n4) array
        a[l, k], padded to a multiple of four radial functions (with anything).
    weights, prefactors, recursion
        Tables of ``soap/basis.py``.
    coefficients : (N, L, S n) output
        c[i, lm, s n].
    values, norms : (N, F), (N,) outputs
    """
    n_species = (len(start) - 1) // len(slots)
    degrees, n_radial = weights.shape[0], weights.shape[1]
    padded = exponents.shape[1]
    size = degrees * degrees
    width = n_species * n_radial
    radial = np.empty((degrees, padded, BLOCK))
    angular = np.empty((size, BLOCK))
    sums = np.empty((n_species, size, padded))
    square = np.empty((width, width))
    for i in range(first, last):
        for s in range(n_species):
            for lm in range(size):
                for k in range(padded):
                    sums[s, lm, k] = 0.0
        # the centre itself: r = 0, only l = 0
        for k in range(n_radial):
            sums[slots[i], 0, k] = centre * recursion[0, 0]
        begin, end = start[i * n_species], start[(i + 1) * n_species]
        for block in range(begin, end, BLOCK):
            count = min(BLOCK, end - block)
            fill_block(vectors, block, count, exponents, recursion, radial, angular)
            for lm in range(size):
                row = angular[lm]
                for b in range(count):
                    row[b] *= switch[0, block + b]
            for s in range(n_species):
                low = max(start[i * n_species + s], block) - block
                high = min(start[i * n_species + s + 1], block + count) - block
                if low >= high:
                    continue
                for degree in range(degrees):
                    for k in range(0, padded, 4):
                        e0 = radial[degree, k, low:high]
                        e1 = radial[degree, k + 1, low:high]
                        e2 = radial[degree, k + 2, low:high]
                        e3 = radial[degree, k + 3, low:high]
                        for lm in range(degree * degree, (degree + 1) * (degree + 1)):
                            row = angular[lm, low:high]
                            s0 = s1 = s2 = s3 = 0.0
                            for b in range(high - low):
                                s0 += e0[b] * row[b]
                                s1 += e1[b] * row[b]
                                s2 += e2[b] * row[b]
                                s3 += e3[b] * row[b]
                            sums[s, lm, k] += s0
                            sums[s, lm, k + 1] += s1
                            sums[s, lm, k + 2] += s2
                            sums[s, lm, k + 3] += s3
        out = coefficients[i]
        for degree in range(degrees):
            for lm in range(degree * degree, (degree + 1) * (degree + 1)):
                for s in range(n_species):
                    for n in range(n_radial):
                        total = 0.0
                        for k in range(n_radial):
                            total += weights[degree, n, k] * sums[s, lm, k]
                        out[lm, s * n_radial + n] = total
        for degree in range(degrees):
            _gram(out, degree, square)
            _pack(square, prefactors[degree], degree, degrees, n_species, n_radial, values[i])
        norm2 = 0.0
        for f in range(values.shape[1]):
            norm2 += values[i, f] * values[i, f]
        norms[i] = np.sqrt(norm2)
        scale = 1.0 / norms[i] if norms[i] > 0.0 else 0.0
        for f in range(values.shape[1]):
            values[i, f] *= scale


@njit(
    "void(int64, int64, int64[::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[:, :, ::1],"
    " float64[::1], float64[:, ::1], int64[:, ::1], float64[:, ::1], float64[:, :, ::1], float64[:, ::1],"
    " float64[::1], float64[:, ::1], boolean, float64[:, ::1])",
    cache=True,
    nogil=True,
    fastmath=FAST,
    error_model="numpy",
)
def pair_gradients(
    first: int,
    last: int,
    start: Any,
    vectors: Any,
    switch: Any,
    exponents: Any,
    weights: Any,
    prefactors: Any,
    recursion: Any,
    rows: Any,
    factors: Any,
    coefficients: Any,
    values: Any,
    norms: Any,
    gradient: Any,
    normalised: bool,
    out: Any,
) -> None:
    """∂f_i/∂r_ij for every pair of the centres ``first`` to ``last``, given G_i = ∂f_i/∂p_i.

    The adjoint of :func:`expand`, step by step backwards (theory section 4).

    Parameters
    ----------
    rows, factors : (L, 5) arrays
        Gradient tables of the harmonics.
    gradient : (N, F) array
        G.
    normalised : bool
        Whether G refers to normalised rows (else to the raw ones).
    out : (3, P) output
    """
    n_atoms = len(norms)
    n_species = (len(start) - 1) // n_atoms
    degrees, n_radial = weights.shape[0], weights.shape[1]
    padded = exponents.shape[1]
    size = degrees * degrees
    width = n_species * n_radial
    n_features = values.shape[1]
    radial = np.empty((degrees, padded, BLOCK))
    angular = np.empty((size, BLOCK))
    slope = np.zeros((n_species, size, padded))
    slope_a = np.zeros((n_species, size, padded))
    square = np.empty((width, width))
    inner = np.empty(width)
    raw = np.empty(n_features)
    s_row = np.empty(BLOCK)
    gx = np.empty(BLOCK)
    gy = np.empty(BLOCK)
    gz = np.empty(BLOCK)
    along = np.empty(BLOCK)
    plain = np.empty(BLOCK)
    for i in range(first, last):
        begin, end = start[i * n_species], start[(i + 1) * n_species]
        if begin == end:
            continue
        source = gradient[i]
        if normalised:
            row = values[i]
            dot = 0.0
            for f in range(n_features):
                dot += row[f] * source[f]
            scale = 1.0 / norms[i] if norms[i] > 0.0 else 0.0
            for f in range(n_features):
                raw[f] = (source[f] - dot * row[f]) * scale
        else:
            for f in range(n_features):
                raw[f] = source[f]
        for degree in range(degrees):
            _unpack(raw, prefactors[degree], degree, degrees, n_species, n_radial, square)
            for lm in range(degree * degree, (degree + 1) * (degree + 1)):
                _multiply(coefficients[i, lm], square, inner)
                for s in range(n_species):
                    for k in range(n_radial):
                        total = 0.0
                        for n in range(n_radial):
                            total += weights[degree, n, k] * inner[s * n_radial + n]
                        slope[s, lm, k] = total
                        slope_a[s, lm, k] = 2.0 * exponents[degree, k] * total
        for block in range(begin, end, BLOCK):
            count = min(BLOCK, end - block)
            fill_block(vectors, block, count, exponents, recursion, radial, angular)
            for b in range(count):
                gx[b] = 0.0
                gy[b] = 0.0
                gz[b] = 0.0
                along[b] = 0.0
                plain[b] = 0.0
            for degree in range(degrees):
                for lm in range(degree * degree, (degree + 1) * (degree + 1)):
                    for b in range(count):
                        s_row[b] = 0.0
                    for s in range(n_species):
                        low = max(start[i * n_species + s], block) - block
                        high = min(start[i * n_species + s + 1], block + count) - block
                        if low >= high:
                            continue
                        row = angular[lm, low:high]
                        target = s_row[low:high]
                        target_a = along[low:high]
                        for k in range(0, padded, 4):
                            e0 = radial[degree, k, low:high]
                            e1 = radial[degree, k + 1, low:high]
                            e2 = radial[degree, k + 2, low:high]
                            e3 = radial[degree, k + 3, low:high]
                            d0 = slope[s, lm, k]
                            d1 = slope[s, lm, k + 1]
                            d2 = slope[s, lm, k + 2]
                            d3 = slope[s, lm, k + 3]
                            a0 = slope_a[s, lm, k]
                            a1 = slope_a[s, lm, k + 1]
                            a2 = slope_a[s, lm, k + 2]
                            a3 = slope_a[s, lm, k + 3]
                            for b in range(high - low):
                                target[b] += d0 * e0[b] + d1 * e1[b] + d2 * e2[b] + d3 * e3[b]
                                target_a[b] += (a0 * e0[b] + a1 * e1[b] + a2 * e2[b] + a3 * e3[b]) * row[b]
                    row = angular[lm]
                    for b in range(count):
                        plain[b] += s_row[b] * row[b]
                    if degree == 0:
                        continue
                    x1, x2 = angular[rows[lm, 0]], angular[rows[lm, 1]]
                    y1, y2 = angular[rows[lm, 2]], angular[rows[lm, 3]]
                    z1 = angular[rows[lm, 4]]
                    fx1, fx2 = factors[lm, 0], factors[lm, 1]
                    fy1, fy2 = factors[lm, 2], factors[lm, 3]
                    fz = factors[lm, 4]
                    for b in range(count):
                        gx[b] += s_row[b] * (fx1 * x1[b] + fx2 * x2[b])
                        gy[b] += s_row[b] * (fy1 * y1[b] + fy2 * y2[b])
                        gz[b] += s_row[b] * fz * z1[b]
            for b in range(count):
                p = block + b
                f = switch[0, p]
                radially = f * along[b] + switch[1, p] * plain[b]
                out[0, p] = f * gx[b] + radially * vectors[0, p]
                out[1, p] = f * gy[b] + radially * vectors[1, p]
                out[2, p] = f * gz[b] + radially * vectors[2, p]


__all__ = ["expand", "fill_block", "pair_gradients"]
