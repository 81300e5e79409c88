"""Compiled loops of SOAP; imported only when the first descriptor is evaluated (it imports numba).

All kernels release the interpreter lock, work on a range of centres and write only what belongs to it.  Signatures are
explicit, so each is compiled once and then read from numba's disk cache.

They are in one file on purpose: numba's disk cache notices changes of a function's own file only, not of
the compiled functions that it calls.

Neighbours are handled in blocks of ``BLOCK``, whose radial functions and harmonics stay in the first-level cache, and
with the vectors of :mod:`kqeq.backend.vectors`.  Vectors are written beyond the end of rows that are no multiple of four;
what comes next is always written later, and buffers are longer than their contents.

Plain solid harmonics are R_lm divided by a norm and (l + m)!: they have the simplest recursion and the simplest
gradients, with coefficients of one,

    2 ∂x C_lm = C_{l−1,m−1} − C_{l−1,m+1}     2 ∂y C_lm = −S_{l−1,m−1} − S_{l−1,m+1}     ∂z C_lm = C_{l−1,m}
    2 ∂x S_lm = S_{l−1,m−1} − S_{l−1,m+1}     2 ∂y S_lm = C_{l−1,m−1} + C_{l−1,m+1}      ∂z S_lm = S_{l−1,m}

(cosines C at m > 0, sines S at −m; ∂x C_l0 = −C_{l−1,1}, ∂y C_l0 = −S_{l−1,1}).  Their norms are applied to sums.

Dimensions: N atoms, P pairs (sorted by centre, then element), S species, n radial functions,
L = (l_max + 1)² harmonics with index l² + l + m, F features, b neighbours of a block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kqeq.backend.vectors import add, fma, load, load_spread, mul, spread, store, sub, turned

BLOCK = 32
LINE = BLOCK + 8  # neighbours for which there is room in a row: eight are worked on at once
FINE = 32  # as in soap/basis.py
OPTIONS: Any = {
    "cache": True,
    "nogil": True,
    "fastmath": {"contract", "reassoc", "nsz"},
    "error_model": "numpy",
}


@njit("void(float64[:, ::1], int64, int64, float64[::1])", **OPTIONS)
def _gather(vectors: Any, first: int, count: int, place: Any) -> None:
    """x, y, z and r² of ``count`` pairs to ``place[a LINE + b]``, filled up with zeros to a multiple of eight."""
    for b in range(count):
        x = vectors[0, first + b]
        y = vectors[1, first + b]
        z = vectors[2, first + b]
        place[b] = x
        place[LINE + b] = y
        place[2 * LINE + b] = z
        place[3 * LINE + b] = x * x + y * y + z * z
    for b in range(count, (count + 7) // 8 * 8):
        for a in range(4):
            place[a * LINE + b] = 0.0


@njit(
    "void(float64[::1], int64, float64, float64[::1], float64[::1], float64[::1], boolean, float64[::1])",
    **OPTIONS,
)
def _radial(
    place: Any, count: int, step: float, rates: Any, coarse: Any, fine: Any, across: bool, out: Any
) -> None:
    """exp(a r²) of ``count`` pairs as ``out[b width + q]``, or ``out[q LINE + b]`` with ``across``; q = (l, k).

    exp(a (c + f + d)) = exp(a c) exp(a f) exp(a d): the first two from tables, the last from its series, whose next
    term is below 6e-15 for |a d| <= 1/16.
    """
    width = len(rates)
    inverse = 1.0 / step
    one = spread(1.0)
    c2, c3, c4 = spread(1.0 / 2.0), spread(1.0 / 6.0), spread(1.0 / 24.0)
    c5, c6, c7 = spread(1.0 / 120.0), spread(1.0 / 720.0), spread(1.0 / 5040.0)
    if not across:
        for b in range(count):
            r2 = place[3 * LINE + b]
            cell = int(r2 * inverse + 0.5)
            d = spread(r2 - cell * step)
            f = (cell % FINE) * width
            c = (cell // FINE) * width
            for q in range(0, width, 4):
                y = mul(load(rates, q), d)
                p = fma(c7, y, c6)
                p = fma(p, y, c5)
                p = fma(p, y, c4)
                p = fma(p, y, c3)
                p = fma(p, y, c2)
                p = fma(p, y, one)
                p = fma(p, y, one)
                store(out, b * width + q, mul(p, mul(load(fine, f + q), load(coarse, c + q))))
        return
    for b in range(0, count, 4):
        r20, r21, r22, r23 = (
            place[3 * LINE + b],
            place[3 * LINE + b + 1],
            place[3 * LINE + b + 2],
            place[3 * LINE + b + 3],
        )
        i0, i1 = int(r20 * inverse + 0.5), int(r21 * inverse + 0.5)
        i2, i3 = int(r22 * inverse + 0.5), int(r23 * inverse + 0.5)
        d0, d1 = spread(r20 - i0 * step), spread(r21 - i1 * step)
        d2, d3 = spread(r22 - i2 * step), spread(r23 - i3 * step)
        f0, f1, f2, f3 = i0 % FINE * width, i1 % FINE * width, i2 % FINE * width, i3 % FINE * width
        k0, k1, k2, k3 = i0 // FINE * width, i1 // FINE * width, i2 // FINE * width, i3 // FINE * width
        for q in range(0, width, 4):
            a = load(rates, q)
            y0, y1, y2, y3 = mul(a, d0), mul(a, d1), mul(a, d2), mul(a, d3)
            p0, p1, p2, p3 = fma(c7, y0, c6), fma(c7, y1, c6), fma(c7, y2, c6), fma(c7, y3, c6)
            p0, p1, p2, p3 = fma(p0, y0, c5), fma(p1, y1, c5), fma(p2, y2, c5), fma(p3, y3, c5)
            p0, p1, p2, p3 = fma(p0, y0, c4), fma(p1, y1, c4), fma(p2, y2, c4), fma(p3, y3, c4)
            p0, p1, p2, p3 = fma(p0, y0, c3), fma(p1, y1, c3), fma(p2, y2, c3), fma(p3, y3, c3)
            p0, p1, p2, p3 = fma(p0, y0, c2), fma(p1, y1, c2), fma(p2, y2, c2), fma(p3, y3, c2)
            p0, p1, p2, p3 = fma(p0, y0, one), fma(p1, y1, one), fma(p2, y2, one), fma(p3, y3, one)
            p0, p1, p2, p3 = fma(p0, y0, one), fma(p1, y1, one), fma(p2, y2, one), fma(p3, y3, one)
            p0 = mul(p0, mul(load(fine, f0 + q), load(coarse, k0 + q)))
            p1 = mul(p1, mul(load(fine, f1 + q), load(coarse, k1 + q)))
            p2 = mul(p2, mul(load(fine, f2 + q), load(coarse, k2 + q)))
            p3 = mul(p3, mul(load(fine, f3 + q), load(coarse, k3 + q)))
            p0, p1, p2, p3 = turned(p0, p1, p2, p3)
            store(out, q * LINE + b, p0)
            store(out, (q + 1) * LINE + b, p1)
            store(out, (q + 2) * LINE + b, p2)
            store(out, (q + 3) * LINE + b, p3)


@njit("void(float64[::1], float64[::1], int64, int64, float64[:, ::1], float64[::1])", **OPTIONS)
def _harmonics(place: Any, seed: Any, count: int, degrees: int, recursion: Any, out: Any) -> None:
    """Plain solid harmonics times ``seed[b]`` as ``out[lm LINE + b]``, eight pairs at a time."""
    table = recursion.reshape(-1)
    for b in range(0, count, 8):
        x0, x1 = load(place, b), load(place, b + 4)
        y0, y1 = load(place, LINE + b), load(place, LINE + b + 4)
        z0, z1 = load(place, 2 * LINE + b), load(place, 2 * LINE + b + 4)
        r0, r1 = load(place, 3 * LINE + b), load(place, 3 * LINE + b + 4)
        store(out, b, load(seed, b))
        store(out, b + 4, load(seed, b + 4))
        for degree in range(1, degrees):
            here = degree * degree + degree
            below = here - 2 * degree  # row of (degree − 1, 0)
            below2 = below - 2 * degree + 2  # row of (degree − 2, 0)
            for m in range(-degree + 1, degree):
                u = load_spread(table, 2 * (here + m))
                o = (here + m) * LINE + b
                o1 = (below + m) * LINE + b
                v0 = mul(mul(u, z0), load(out, o1))
                v1 = mul(mul(u, z1), load(out, o1 + 4))
                if abs(m) <= degree - 2:
                    w = load_spread(table, 2 * (here + m) + 1)
                    o2 = (below2 + m) * LINE + b
                    v0 = sub(v0, mul(mul(w, r0), load(out, o2)))
                    v1 = sub(v1, mul(mul(w, r1), load(out, o2 + 4)))
                store(out, o, v0)
                store(out, o + 4, v1)
            u = load_spread(table, 2 * (here + degree))
            o1 = (below + degree - 1) * LINE + b
            c0, c1 = load(out, o1), load(out, o1 + 4)
            ux0, ux1, uy0, uy1 = mul(u, x0), mul(u, x1), mul(u, y0), mul(u, y1)
            o, p = (here + degree) * LINE + b, (here - degree) * LINE + b
            if degree == 1:  # there is no sine of order 0
                store(out, o, mul(ux0, c0))
                store(out, o + 4, mul(ux1, c1))
                store(out, p, mul(uy0, c0))
                store(out, p + 4, mul(uy1, c1))
            else:
                o2 = (below - degree + 1) * LINE + b
                s0, s1 = load(out, o2), load(out, o2 + 4)
                store(out, o, sub(mul(ux0, c0), mul(uy0, s0)))
                store(out, o + 4, sub(mul(ux1, c1), mul(uy1, s1)))
                store(out, p, fma(ux0, s0, mul(uy0, c0)))
                store(out, p + 4, fma(ux1, s1, mul(uy1, c1)))


@njit(
    "void(float64[::1], float64[::1], int64, int64, int64, int64, int64, int64, int64, float64[::1])",
    **OPTIONS,
)
def _sum_pairs(
    angular: Any,
    radial: Any,
    degree: int,
    low: int,
    high: int,
    width: int,
    e0: int,
    begin: int,
    stride: int,
    sums: Any,
) -> None:
    """sums[begin + lm stride + k] += Σ_b angular[lm, b] radial[b, e0 + k] for one degree, eight k at a time.

    Two to five orders together, so that all sums stay in registers.
    """
    lm = degree * degree
    last = lm + 2 * degree + 1
    while lm < last:
        rest = last - lm
        o = begin + lm * stride
        a = lm * LINE
        if rest == 1:
            s00, s01 = load(sums, o), load(sums, o + 4)
            for b in range(low, high):
                e = b * width + e0
                v = load_spread(angular, a + b)
                s00, s01 = fma(v, load(radial, e), s00), fma(v, load(radial, e + 4), s01)
            store(sums, o, s00)
            store(sums, o + 4, s01)
            lm += 1
            continue
        # an odd number: three, or five, and the rest in fours
        together = 4
        if rest % 4 == 3:
            together = 3
        elif rest % 4 == 1:
            together = 5
        o1, o2 = o + stride, o + 2 * stride
        s00, s01, s10, s11 = load(sums, o), load(sums, o + 4), load(sums, o1), load(sums, o1 + 4)
        s20, s21 = load(sums, o2), load(sums, o2 + 4)
        if together == 3:
            for b in range(low, high):
                e = b * width + e0
                r0, r1 = load(radial, e), load(radial, e + 4)
                v = load_spread(angular, a + b)
                s00, s01 = fma(v, r0, s00), fma(v, r1, s01)
                v = load_spread(angular, a + LINE + b)
                s10, s11 = fma(v, r0, s10), fma(v, r1, s11)
                v = load_spread(angular, a + 2 * LINE + b)
                s20, s21 = fma(v, r0, s20), fma(v, r1, s21)
        else:
            o3 = o + 3 * stride
            s30, s31 = load(sums, o3), load(sums, o3 + 4)
            if together == 4:
                for b in range(low, high):
                    e = b * width + e0
                    r0, r1 = load(radial, e), load(radial, e + 4)
                    v = load_spread(angular, a + b)
                    s00, s01 = fma(v, r0, s00), fma(v, r1, s01)
                    v = load_spread(angular, a + LINE + b)
                    s10, s11 = fma(v, r0, s10), fma(v, r1, s11)
                    v = load_spread(angular, a + 2 * LINE + b)
                    s20, s21 = fma(v, r0, s20), fma(v, r1, s21)
                    v = load_spread(angular, a + 3 * LINE + b)
                    s30, s31 = fma(v, r0, s30), fma(v, r1, s31)
            else:
                o4 = o + 4 * stride
                s40, s41 = load(sums, o4), load(sums, o4 + 4)
                for b in range(low, high):
                    e = b * width + e0
                    r0, r1 = load(radial, e), load(radial, e + 4)
                    v = load_spread(angular, a + b)
                    s00, s01 = fma(v, r0, s00), fma(v, r1, s01)
                    v = load_spread(angular, a + LINE + b)
                    s10, s11 = fma(v, r0, s10), fma(v, r1, s11)
                    v = load_spread(angular, a + 2 * LINE + b)
                    s20, s21 = fma(v, r0, s20), fma(v, r1, s21)
                    v = load_spread(angular, a + 3 * LINE + b)
                    s30, s31 = fma(v, r0, s30), fma(v, r1, s31)
                    v = load_spread(angular, a + 4 * LINE + b)
                    s40, s41 = fma(v, r0, s40), fma(v, r1, s41)
                store(sums, o4, s40)
                store(sums, o4 + 4, s41)
            store(sums, o3, s30)
            store(sums, o3 + 4, s31)
        store(sums, o, s00)
        store(sums, o + 4, s01)
        store(sums, o1, s10)
        store(sums, o1 + 4, s11)
        store(sums, o2, s20)
        store(sums, o2 + 4, s21)
        lm += together


@njit("void(float64[::1], int64, int64, int64, int64, float64[::1])", **OPTIONS)
def _gram(rows: Any, degree: int, width: int, line: int, begin: int, square: Any) -> None:
    """Upper triangle of Σ_m c cᵀ of one degree to ``square[begin + a line + b]``, in tiles of four by eight."""
    first = degree * degree
    last = first + 2 * degree + 1
    for a in range(0, width, 4):
        for b in range(a, width, 8):
            s00 = s01 = s10 = s11 = s20 = s21 = s30 = s31 = spread(0.0)
            for lm in range(first, last):
                o = lm * line
                r0, r1 = load(rows, o + b), load(rows, o + b + 4)
                v = load_spread(rows, o + a)
                s00, s01 = fma(v, r0, s00), fma(v, r1, s01)
                v = load_spread(rows, o + a + 1)
                s10, s11 = fma(v, r0, s10), fma(v, r1, s11)
                v = load_spread(rows, o + a + 2)
                s20, s21 = fma(v, r0, s20), fma(v, r1, s21)
                v = load_spread(rows, o + a + 3)
                s30, s31 = fma(v, r0, s30), fma(v, r1, s31)
            t = begin + a * line + b
            store(square, t, s00)
            store(square, t + 4, s01)
            store(square, t + line, s10)
            store(square, t + line + 4, s11)
            store(square, t + 2 * line, s20)
            store(square, t + 2 * line + 4, s21)
            store(square, t + 3 * line, s30)
            store(square, t + 3 * line + 4, s31)


@njit("void(float64[::1], float64[::1], int64, int64, int64, int64, float64[::1])", **OPTIONS)
def _pack(
    squares: Any, prefactors: Any, degrees: int, n_species: int, n_radial: int, line: int, row: Any
) -> None:
    """Write prefactor × the upper triangle of each degree where the row keeps it."""
    f = 0
    rows = (n_species * n_radial + 3) // 4 * 4
    for s in range(n_species):
        for t in range(s, n_species):
            for degree in range(degrees):
                factor = spread(prefactors[degree])
                for a in range(n_radial):
                    begin = a if s == t else 0
                    source = (degree * rows + s * n_radial + a) * line + t * n_radial + begin
                    for c in range(0, n_radial - begin, 4):
                        store(row, f + c, mul(factor, load(squares, source + c)))
                    f += n_radial - begin


@njit("void(float64[::1], float64[::1], int64, int64, int64, int64, float64[::1])", **OPTIONS)
def _unpack(
    row: Any, prefactors: Any, degree: int, degrees: int, n_species: int, n_radial: int, square: Any
) -> None:
    """The symmetric matrix Q of one degree, diagonal doubled: ∂(row · p)/∂c = Q c."""
    width = n_species * n_radial
    line = (width + 3) // 4 * 4 + 8
    factor = spread(prefactors[degree])
    offset = 0
    for s in range(n_species):
        for t in range(s, n_species):
            inner = n_radial * (n_radial + 1) // 2 if s == t else n_radial * n_radial
            f = offset + degree * inner
            for a in range(n_radial):
                begin = a if s == t else 0
                target = (s * n_radial + a) * line + t * n_radial + begin
                for c in range(0, n_radial - begin, 4):
                    store(square, target + c, mul(factor, load(row, f + c)))
                f += n_radial - begin
            offset += inner * degrees
    for i in range(width):
        square[i * line + i] *= 2.0
        for j in range(i):
            square[i * line + j] = square[j * line + i]


@njit(
    "void(int64, int64, int64[::1], float64[:, ::1], float64[:, ::1], int64[::1], float64, int64, float64,"
    " float64[::1], float64[::1], float64[::1], float64[:, :, ::1], float64[::1], float64[:, ::1], float64[::1],"
    " float64[:, :, ::1], float64[:, ::1], float64[::1])",
    **OPTIONS,
)
def expand(
    first: int,
    last: int,
    start: Any,
    vectors: Any,
    switch: Any,
    slots: Any,
    centre: float,
    n_radial: int,
    step: float,
    rates: Any,
    coarse: Any,
    fine: Any,
    weights: Any,
    prefactors: Any,
    recursion: Any,
    scales: Any,
    coefficients: Any,
    values: Any,
    norms: Any,
) -> None:
    """Expansion coefficients and normalised power spectrum of the centres ``first`` to ``last``.

    Parameters
    ----------
    start, vectors, switch
        From ``sort_pairs`` of :mod:`kqeq.descriptors.soap.host.adjoint`.
    centre : float
        Weight of the centre itself.
    step, rates, coarse, fine
        Exponentials: tables of ``soap/basis.py``.
    weights : (l_max + 1, n, n4) array
        W[l, n, k] as ``[l, k, n]``, n padded with zeros.
    prefactors, recursion, scales
        Tables of ``soap/basis.py``.
    coefficients : (N, L, S n) output
        c[i, lm, s n].
    values, norms : (N, F), (N,) outputs
    """
    n_species = (len(start) - 1) // len(slots)
    degrees, padded = weights.shape[0], weights.shape[2]
    size = degrees * degrees
    width = n_species * n_radial
    line = (width + 3) // 4 * 4 + 8
    rows = (width + 3) // 4 * 4
    eights = (n_radial + 7) // 8 * 8
    n_features = values.shape[1]
    table = weights.reshape(-1)
    place = np.zeros(4 * LINE)
    seed = np.zeros(LINE)
    radial = np.zeros(BLOCK * len(rates) + 8)
    angular = np.zeros(size * LINE)
    sums = np.zeros(n_species * size * eights)
    own = np.zeros(size * line + 8)
    squares = np.zeros(degrees * rows * line + 8)
    raw = np.zeros(n_features + 8)
    for i in range(first, last):
        sums[:] = 0.0
        # the centre itself: r = 0, only l = 0
        for k in range(n_radial):
            sums[slots[i] * size * eights + k] = centre
        begin, end = start[i * n_species], start[(i + 1) * n_species]
        for block in range(begin, end, BLOCK):
            count = min(BLOCK, end - block)
            _gather(vectors, block, count, place)
            for b in range(count):
                seed[b] = switch[0, block + b]
            _radial(place, count, step, rates, coarse, fine, False, radial)
            _harmonics(place, seed, count, degrees, recursion, angular)
            for s in range(n_species):
                low = max(start[i * n_species + s], block) - block
                high = min(start[i * n_species + s + 1], block + count) - block
                if low >= high:
                    continue
                for degree in range(degrees):
                    for k in range(0, n_radial, 8):
                        _sum_pairs(
                            angular,
                            radial,
                            degree,
                            low,
                            high,
                            len(rates),
                            degree * n_radial + k,
                            s * size * eights + k,
                            eights,
                            sums,
                        )
        for degree in range(degrees):
            for lm in range(degree * degree, (degree + 1) * (degree + 1)):
                scale = spread(scales[lm])
                for s in range(n_species):
                    for n in range(0, n_radial, 4):
                        t = spread(0.0)
                        for k in range(n_radial):
                            v = load_spread(sums, (s * size + lm) * eights + k)
                            t = fma(v, load(table, (degree * n_radial + k) * padded + n), t)
                        store(own, lm * line + s * n_radial + n, mul(scale, t))
                for a in range(width):
                    coefficients[i, lm, a] = own[lm * line + a]
            _gram(own, degree, width, line, degree * rows * line, squares)
        _pack(squares, prefactors, degrees, n_species, n_radial, line, raw)
        norm2 = 0.0
        for f in range(n_features):
            norm2 += raw[f] * raw[f]
        norms[i] = np.sqrt(norm2)
        scalar = 1.0 / norms[i] if norms[i] > 0.0 else 0.0
        for f in range(n_features):
            values[i, f] = raw[f] * scalar


@njit(
    "void(int64, int64, int64, float64[::1], float64[::1], float64[::1], float64[::1], float64[::1], float64[::1])",
    **OPTIONS,
)
def _pull_back(
    b: int,
    degrees: int,
    n_radial: int,
    radial: Any,
    angular: Any,
    slope: Any,
    steep: Any,
    inner: Any,
    result: Any,
) -> None:
    """For the neighbours b to b + 8, of one element: 2 Σ s ∇R (a factor of two on z as well), Σ s R and Σ s' R.

    s_lm = Σ_k slope[lm, k] exp(a r²), and s' with ``steep``, which holds 2 a slope as well.  ``result[a LINE + b]``:
    x, y, z, then Σ s' R, then Σ s R.
    """
    gx0 = gx1 = gy0 = gy1 = gz0 = gz1 = along0 = along1 = plain0 = plain1 = spread(0.0)
    two = spread(2.0)
    for degree in range(degrees):
        first = degree * degree
        count = 2 * degree + 1
        m = 0
        while m < count:
            o = (first + m) * n_radial
            r = (first + m) * LINE + b
            o1 = o + n_radial if degree > 0 else o
            s00 = s01 = s10 = s11 = t00 = t01 = t10 = t11 = spread(0.0)
            if m == 0 and degree > 0:
                # an odd number: three, and the rest by two
                o2 = o1 + n_radial
                s20 = s21 = t20 = t21 = spread(0.0)
                for k in range(n_radial):
                    e = (degree * n_radial + k) * LINE + b
                    e0, e1 = load(radial, e), load(radial, e + 4)
                    v = load_spread(slope, o + k)
                    s00, s01 = fma(v, e0, s00), fma(v, e1, s01)
                    v = load_spread(slope, o1 + k)
                    s10, s11 = fma(v, e0, s10), fma(v, e1, s11)
                    v = load_spread(slope, o2 + k)
                    s20, s21 = fma(v, e0, s20), fma(v, e1, s21)
                    v = load_spread(steep, o + k)
                    t00, t01 = fma(v, e0, t00), fma(v, e1, t01)
                    v = load_spread(steep, o1 + k)
                    t10, t11 = fma(v, e0, t10), fma(v, e1, t11)
                    v = load_spread(steep, o2 + k)
                    t20, t21 = fma(v, e0, t20), fma(v, e1, t21)
                r0, r1 = load(angular, r + 2 * LINE), load(angular, r + 2 * LINE + 4)
                along0, along1 = fma(t20, r0, along0), fma(t21, r1, along1)
                plain0, plain1 = fma(s20, r0, plain0), fma(s21, r1, plain1)
                store(inner, 16, s20)
                store(inner, 20, s21)
            else:
                for k in range(n_radial):
                    e = (degree * n_radial + k) * LINE + b
                    e0, e1 = load(radial, e), load(radial, e + 4)
                    v = load_spread(slope, o + k)
                    s00, s01 = fma(v, e0, s00), fma(v, e1, s01)
                    v = load_spread(slope, o1 + k)
                    s10, s11 = fma(v, e0, s10), fma(v, e1, s11)
                    v = load_spread(steep, o + k)
                    t00, t01 = fma(v, e0, t00), fma(v, e1, t01)
                    v = load_spread(steep, o1 + k)
                    t10, t11 = fma(v, e0, t10), fma(v, e1, t11)
            r0, r1 = load(angular, r), load(angular, r + 4)
            along0, along1 = fma(t00, r0, along0), fma(t01, r1, along1)
            plain0, plain1 = fma(s00, r0, plain0), fma(s01, r1, plain1)
            store(inner, 8 * m, s00)
            store(inner, 8 * m + 4, s01)
            if degree == 0:
                break
            r0, r1 = load(angular, r + LINE), load(angular, r + LINE + 4)
            along0, along1 = fma(t10, r0, along0), fma(t11, r1, along1)
            plain0, plain1 = fma(s10, r0, plain0), fma(s11, r1, plain1)
            store(inner, 8 * m + 8, s10)
            store(inner, 8 * m + 12, s11)
            m += 3 if m == 0 else 2
        if degree == 0:
            continue
        # rows of degree − 1 in turn, with the orders above that have them in their gradients; cosine (degree, m) is at
        # inner[8 (degree + m)], sine at inner[8 (degree − m)]
        middle = (degree - 1) * (degree - 1) + degree - 1
        zero = 8 * degree
        r0, r1 = load(angular, middle * LINE + b), load(angular, middle * LINE + b + 4)
        gx0, gx1 = fma(load(inner, zero + 8), r0, gx0), fma(load(inner, zero + 12), r1, gx1)
        gy0, gy1 = fma(load(inner, zero - 8), r0, gy0), fma(load(inner, zero - 4), r1, gy1)
        gz0, gz1 = fma(load(inner, zero), r0, gz0), fma(load(inner, zero + 4), r1, gz1)
        for m in range(1, degree):
            c = (middle + m) * LINE + b
            s = (middle - m) * LINE + b
            c0, c1, s0, s1 = load(angular, c), load(angular, c + 4), load(angular, s), load(angular, s + 4)
            up = zero + 8 * (m + 1)
            down = zero + 8 * (m - 1)
            p0, p1, q0, q1 = load(inner, up), load(inner, up + 4), load(inner, down), load(inner, down + 4)
            if m == 1:  # the one order without a partner counts twice
                q0, q1 = mul(two, q0), mul(two, q1)
            gx0, gx1 = fma(sub(p0, q0), c0, gx0), fma(sub(p1, q1), c1, gx1)
            gy0, gy1 = sub(gy0, mul(add(p0, q0), s0)), sub(gy1, mul(add(p1, q1), s1))
            up = zero - 8 * (m + 1)
            p0, p1 = load(inner, up), load(inner, up + 4)
            if m == 1:
                gx0, gx1 = fma(p0, s0, gx0), fma(p1, s1, gx1)
                gy0, gy1 = fma(p0, c0, gy0), fma(p1, c1, gy1)
            else:
                down = zero - 8 * (m - 1)
                q0, q1 = load(inner, down), load(inner, down + 4)
                gx0, gx1 = fma(sub(p0, q0), s0, gx0), fma(sub(p1, q1), s1, gx1)
                gy0, gy1 = fma(add(p0, q0), c0, gy0), fma(add(p1, q1), c1, gy1)
            up, down = zero + 8 * m, zero - 8 * m
            gz0, gz1 = fma(load(inner, up), c0, gz0), fma(load(inner, up + 4), c1, gz1)
            gz0, gz1 = fma(load(inner, down), s0, gz0), fma(load(inner, down + 4), s1, gz1)
    store(result, b, gx0)
    store(result, b + 4, gx1)
    store(result, LINE + b, gy0)
    store(result, LINE + b + 4, gy1)
    store(result, 2 * LINE + b, mul(two, gz0))
    store(result, 2 * LINE + b + 4, mul(two, gz1))
    store(result, 3 * LINE + b, along0)
    store(result, 3 * LINE + b + 4, along1)
    store(result, 4 * LINE + b, plain0)
    store(result, 4 * LINE + b + 4, plain1)


@njit("void(float64[::1], float64[::1], int64, int64, int64, float64[::1])", **OPTIONS)
def _multiply(rows: Any, square: Any, degree: int, width: int, line: int, out: Any) -> None:
    """``out[lm line + b]`` = Σ_a rows[lm, a] square[a, b] for one degree, b by eights, three harmonics at a time."""
    first = degree * degree
    last = first + 2 * degree + 1
    for b in range(0, width, 8):
        for lm in range(first, last, 3):
            o = lm * width
            o1 = o + width if lm + 1 < last else o
            o2 = o + 2 * width if lm + 2 < last else o
            s00 = s01 = s10 = s11 = s20 = s21 = spread(0.0)
            for a in range(width):
                r0, r1 = load(square, a * line + b), load(square, a * line + b + 4)
                v = load_spread(rows, o + a)
                s00, s01 = fma(v, r0, s00), fma(v, r1, s01)
                v = load_spread(rows, o1 + a)
                s10, s11 = fma(v, r0, s10), fma(v, r1, s11)
                v = load_spread(rows, o2 + a)
                s20, s21 = fma(v, r0, s20), fma(v, r1, s21)
            if lm + 2 < last:
                store(out, (lm + 2) * line + b, s20)
                store(out, (lm + 2) * line + b + 4, s21)
            if lm + 1 < last:
                store(out, (lm + 1) * line + b, s10)
                store(out, (lm + 1) * line + b + 4, s11)
            store(out, lm * line + b, s00)
            store(out, lm * line + b + 4, s01)


@njit(
    "void(int64, int64, int64[::1], float64[:, ::1], float64[:, ::1], int64, float64, float64[::1], float64[::1],"
    " float64[::1], float64[:, :, ::1], float64[::1], float64[:, ::1], float64[::1], float64[:, :, ::1],"
    " float64[:, ::1], float64[::1], float64[:, ::1], boolean, float64[:, ::1])",
    **OPTIONS,
)
def pair_gradients(
    first: int,
    last: int,
    start: Any,
    vectors: Any,
    switch: Any,
    n_radial: int,
    step: float,
    rates: Any,
    coarse: Any,
    fine: Any,
    weights: Any,
    prefactors: Any,
    recursion: Any,
    scales: Any,
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
    weights : (l_max + 1, n, n4) array
        W[l, n, k], k padded with zeros.
    gradient : (N, F) array
        G.
    normalised : bool
        Whether G refers to normalised rows (else to the raw ones).
    out : (3, P) output
    """
    n_atoms = len(norms)
    n_species = (len(start) - 1) // n_atoms
    degrees, padded = weights.shape[0], weights.shape[2]
    size = degrees * degrees
    width = n_species * n_radial
    line = (width + 3) // 4 * 4 + 8
    n_features = values.shape[1]
    table = weights.reshape(-1)
    rows = coefficients.reshape(n_atoms, -1)
    place = np.zeros(4 * LINE)
    seed = np.ones(LINE)
    radial = np.zeros(len(rates) * LINE)
    angular = np.zeros(size * LINE)
    stride = size * n_radial + 8
    slope = np.zeros(n_species * stride)
    steep = np.zeros(n_species * stride)
    square = np.zeros(line * line)
    turned_back = np.zeros(size * line)
    raw = np.zeros(n_features + 8)
    inner = np.zeros(8 * (2 * degrees + 1))
    result = np.zeros(5 * LINE)
    for i in range(first, last):
        begin, end = start[i * n_species], start[(i + 1) * n_species]
        if begin == end:
            continue
        if normalised:
            dot = 0.0
            for f in range(n_features):
                dot += values[i, f] * gradient[i, f]
            scalar = 1.0 / norms[i] if norms[i] > 0.0 else 0.0
            for f in range(n_features):
                raw[f] = (gradient[i, f] - dot * values[i, f]) * scalar
        else:
            for f in range(n_features):
                raw[f] = gradient[i, f]
        for degree in range(degrees):
            _unpack(raw, prefactors, degree, degrees, n_species, n_radial, square)
            _multiply(rows[i], square, degree, width, line, turned_back)
            for lm in range(degree * degree, (degree + 1) * (degree + 1)):
                scale = spread(scales[lm])
                for s in range(n_species):
                    for k in range(0, n_radial, 4):
                        t = spread(0.0)
                        for n in range(n_radial):
                            v = load_spread(turned_back, lm * line + s * n_radial + n)
                            t = fma(v, load(table, (degree * n_radial + n) * padded + k), t)
                        o = s * stride + lm * n_radial + k
                        store(slope, o, mul(scale, t))
        for s in range(n_species):
            for degree in range(degrees):
                for lm in range(degree * degree, (degree + 1) * (degree + 1)):
                    for k in range(n_radial):
                        o = s * stride + lm * n_radial + k
                        steep[o] = 2.0 * rates[degree * n_radial + k] * slope[o]
        for block in range(begin, end, BLOCK):
            count = min(BLOCK, end - block)
            _gather(vectors, block, count, place)
            _radial(place, count, step, rates, coarse, fine, True, radial)
            _harmonics(place, seed, count, degrees, recursion, angular)
            for s in range(n_species):
                low = max(start[i * n_species + s], block) - block
                high = min(start[i * n_species + s + 1], block + count) - block
                part = slice(s * stride, (s + 1) * stride)
                # what is written beyond ``high`` belongs to the next element and is written again
                for b in range(low, high, 8):
                    _pull_back(b, degrees, n_radial, radial, angular, slope[part], steep[part], inner, result)
            for b in range(count):
                p = block + b
                f = switch[0, p]
                radially = f * result[3 * LINE + b] + switch[1, p] * result[4 * LINE + b]
                f *= 0.5
                out[0, p] = f * result[b] + radially * vectors[0, p]
                out[1, p] = f * result[LINE + b] + radially * vectors[1, p]
                out[2, p] = f * result[2 * LINE + b] + radially * vectors[2, p]


__all__ = ["expand", "pair_gradients"]
