"""Compiled loops of SOAP; imported only when the first descriptor is evaluated (it imports numba).

All kernels release the interpreter lock, work on a range of centres (or pairs) and write only what
belongs to it.  Signatures are explicit, so each is compiled once and then read from numba's disk cache.

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

BLOCK = 64
INVERSE_LN2 = 1.4426950408889634
LN2_HIGH = 6.93145751953125e-1
LN2_LOW = 1.42860682030941723212e-6
ROUNDING = 6755399441055744.0  # 1.5 · 2^52: adding it rounds a double to an integer
EXP_MINIMUM = -708.0

FAST: Any = {"contract", "reassoc", "nsz"}


@intrinsic  # type: ignore[untyped-decorator]
def _bits_to_float(typingctx: Any, bits: Any) -> Any:
    """Reinterpret an int64 as a float64 (a cast of registers, so that loops still vectorise)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.float64))

    return types.float64(types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _float_to_bits(typingctx: Any, value: Any) -> Any:
    """Reinterpret a float64 as an int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.int64))

    return types.int64(types.float64), codegen


@njit("float64(float64)", cache=True, fastmath={"contract"})
def _exp(x: float) -> float:
    """exp(x) for x <= 0 to 2e-16, as 2^k exp(f) with a Taylor polynomial for |f| <= ln(2)/2.

    Needed because calls into the C library keep a loop from being vectorised.  Compiled without
    reassociation, which would undo the rounding trick.
    """
    x = max(x, EXP_MINIMUM)
    shifted = x * INVERSE_LN2 + ROUNDING
    k = shifted - ROUNDING
    f = (x - k * LN2_HIGH) - k * LN2_LOW
    p = 1.0 / 479001600.0
    p = p * f + 1.0 / 39916800.0
    p = p * f + 1.0 / 3628800.0
    p = p * f + 1.0 / 362880.0
    p = p * f + 1.0 / 40320.0
    p = p * f + 1.0 / 5040.0
    p = p * f + 1.0 / 720.0
    p = p * f + 1.0 / 120.0
    p = p * f + 1.0 / 24.0
    p = p * f + 1.0 / 6.0
    p = p * f + 0.5
    p = p * f + 1.0
    p = p * f + 1.0
    # the low bits of ``shifted`` hold k; move it to the exponent field
    scale = _bits_to_float((_float_to_bits(shifted) << 52) + 4607182418800017408)
    return p * scale


@njit(
    "void(int64[:, ::1], float64[:, ::1], int64[::1], int64, float64, float64,"
    " int64[::1], int64[:, ::1], float64[:, ::1], float64[:, ::1])",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def sort_pairs(
    indices: Any,
    vectors: Any,
    slots: Any,
    n_species: int,
    inner: float,
    cutoff: float,
    start: Any,
    sorted_indices: Any,
    sorted_vectors: Any,
    switch: Any,
) -> None:
    """Keep the pairs within the cutoff, sorted by centre and element of the neighbour (by counting).

    Parameters
    ----------
    indices, vectors : (P0, 2), (P0, 3) arrays
    slots : (N,) array
        Species index of each atom.
    inner, cutoff : float
        The switching function falls from 1 to 0 between them; none if they are equal.
    start : (N S + 1,) output
        First pair of each (centre, element).
    sorted_indices, sorted_vectors : (2, P0), (3, P0) outputs
    switch : (2, P0) output
        f and f'/r.
    """
    limit = cutoff * cutoff
    start[:] = 0
    for p in range(len(indices)):
        x, y, z = vectors[p, 0], vectors[p, 1], vectors[p, 2]
        if x * x + y * y + z * z <= limit:
            start[indices[p, 0] * n_species + slots[indices[p, 1]] + 1] += 1
    for g in range(len(start) - 1):
        start[g + 1] += start[g]
    fill = start.copy()
    width = cutoff - inner
    for p in range(len(indices)):
        x, y, z = vectors[p, 0], vectors[p, 1], vectors[p, 2]
        r2 = x * x + y * y + z * z
        if r2 <= limit:
            group = indices[p, 0] * n_species + slots[indices[p, 1]]
            q = fill[group]
            fill[group] = q + 1
            sorted_indices[0, q] = indices[p, 0]
            sorted_indices[1, q] = indices[p, 1]
            sorted_vectors[0, q] = x
            sorted_vectors[1, q] = y
            sorted_vectors[2, q] = z
            switch[0, q] = 1.0
            switch[1, q] = 0.0
            if r2 > inner * inner and width > 0.0:
                # quintic with vanishing first and second derivatives at both ends
                r = np.sqrt(r2)
                t = (r - inner) / width
                switch[0, q] = 1.0 - t * t * t * (10.0 - 15.0 * t + 6.0 * t * t)
                switch[1, q] = -30.0 * t * t * (1.0 - t) * (1.0 - t) / (width * r)


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
    x = vectors[0, first : first + count]
    y = vectors[1, first : first + count]
    z = vectors[2, first : first + count]
    r2 = np.empty(count)
    for b in range(count):
        r2[b] = x[b] * x[b] + y[b] * y[b] + z[b] * z[b]
    degrees, n_radial = exponents.shape
    for degree in range(degrees):
        for k in range(n_radial):
            a = exponents[degree, k]
            row = radial[degree, k]
            for b in range(count):
                row[b] = _exp(a * r2[b])
    angular[0, :count] = recursion[0, 0]
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
    "float64(float64[:, ::1], float64, int64, int64, int64, int64, float64[::1])",
    cache=True,
    nogil=True,
    fastmath=FAST,
    error_model="numpy",
)
def _pack(
    square: Any, factor: float, degree: int, degrees: int, n_species: int, n_radial: int, row: Any
) -> float:
    """Write factor × the upper triangle of one degree where the row keeps it; return its squared norm."""
    total = 0.0
    offset = 0
    for s in range(n_species):
        for t in range(s, n_species):
            inner = n_radial * (n_radial + 1) // 2 if s == t else n_radial * n_radial
            f = offset + degree * inner
            for a in range(n_radial):
                for c in range(a if s == t else 0, n_radial):
                    value = factor * square[s * n_radial + a, t * n_radial + c]
                    row[f] = value
                    total += value * value
                    f += 1
            offset += inner * degrees
    return total


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
                for c in range(a if s == t else 0, n_radial):
                    value = factor * row[f]
                    f += 1
                    i, j = s * n_radial + a, t * n_radial + c
                    square[i, j] = value
                    square[j, i] = value
                    if i == j:
                        square[i, i] = 2.0 * value
            offset += inner * degrees


@njit(
    "void(int64, int64, int64[::1], float64[:, ::1], float64[:, ::1], int64[::1], float64[:, ::1],"
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
        From :func:`sort_pairs`.
    exponents : (l_max + 1, n4) array
        a[l, k], padded to a multiple of four radial functions (with anything).
    weights, prefactors, recursion
        Tables of ``soap_basis``.
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
        sums[:] = 0.0
        # the centre itself: r = 0, only l = 0
        for k in range(n_radial):
            sums[slots[i], 0, k] = recursion[0, 0]
        begin, end = start[i * n_species], start[(i + 1) * n_species]
        for block in range(begin, end, BLOCK):
            count = min(BLOCK, end - block)
            fill_block(vectors, block, count, exponents, recursion, radial, angular)
            for row in angular:
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
        norm2 = 0.0
        for degree in range(degrees):
            square[:] = 0.0
            for lm in range(degree * degree, (degree + 1) * (degree + 1)):
                source = out[lm]
                for a in range(width):
                    ca = source[a]
                    target = square[a]
                    for c in range(width):
                        target[c] += ca * source[c]
            norm2 += _pack(square, prefactors[degree], degree, degrees, n_species, n_radial, values[i])
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
            raw[:] = source
        for degree in range(degrees):
            _unpack(raw, prefactors[degree], degree, degrees, n_species, n_radial, square)
            for lm in range(degree * degree, (degree + 1) * (degree + 1)):
                c_row = coefficients[i, lm]
                inner[:] = 0.0
                for c in range(width):
                    value = c_row[c]
                    q_row = square[c]
                    for a in range(width):
                        inner[a] += value * q_row[a]
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
            for s in range(n_species):
                low = max(start[i * n_species + s], block) - block
                high = min(start[i * n_species + s + 1], block + count) - block
                if low >= high:
                    continue
                number = high - low
                gx[:number] = 0.0
                gy[:number] = 0.0
                gz[:number] = 0.0
                along[:number] = 0.0
                plain[:number] = 0.0
                for degree in range(degrees):
                    for lm in range(degree * degree, (degree + 1) * (degree + 1)):
                        row = angular[lm, low:high]
                        s_row[:number] = 0.0
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
                            for b in range(number):
                                s_row[b] += d0 * e0[b] + d1 * e1[b] + d2 * e2[b] + d3 * e3[b]
                                along[b] += (a0 * e0[b] + a1 * e1[b] + a2 * e2[b] + a3 * e3[b]) * row[b]
                        for b in range(number):
                            plain[b] += s_row[b] * row[b]
                        x1, x2 = angular[rows[lm, 0], low:high], angular[rows[lm, 1], low:high]
                        y1, y2 = angular[rows[lm, 2], low:high], angular[rows[lm, 3], low:high]
                        z1 = angular[rows[lm, 4], low:high]
                        fx1, fx2, fy1, fy2, fz = (
                            factors[lm, 0],
                            factors[lm, 1],
                            factors[lm, 2],
                            factors[lm, 3],
                            factors[lm, 4],
                        )
                        for b in range(number):
                            gx[b] += s_row[b] * (fx1 * x1[b] + fx2 * x2[b])
                            gy[b] += s_row[b] * (fy1 * y1[b] + fy2 * y2[b])
                            gz[b] += s_row[b] * fz * z1[b]
                for b in range(number):
                    p = block + low + b
                    f = switch[0, p]
                    radially = f * along[b] + switch[1, p] * plain[b]
                    out[0, p] = f * gx[b] + radially * vectors[0, p]
                    out[1, p] = f * gy[b] + radially * vectors[1, p]
                    out[2, p] = f * gz[b] + radially * vectors[2, p]
