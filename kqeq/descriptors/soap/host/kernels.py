"""Compiled loops of SOAP; imported only when the first descriptor is evaluated (it imports numba).

All kernels release the interpreter lock, work on a range of centres and write only what belongs to it.  Signatures are
explicit, so each is compiled once and then read from numba's disk cache.

They are in one file on purpose: numba's disk cache notices changes of a function's own file only, not of
the compiled functions that it calls.

Neighbours are handled in blocks of ``BLOCK``, whose radial functions and harmonics stay in the first-level cache, and
with the vectors of :mod:`kqeq.backend.vectors`.  Vectors are written beyond the end of rows that are no multiple of four;
what comes next is always written later, and buffers are longer than their contents.  All buffers lie in one array that
the caller brings: each array that numba makes by itself costs it a tenth of a second.

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

from kqeq.backend.compiled import LEAN
from kqeq.backend.vectors import (
    add,
    exponentials,
    fma,
    load,
    load_spread_wide,
    load_wide,
    mul,
    next_line,
    spread,
    spread_wide,
    store,
    store_wide,
    sub,
    tile,
)

BLOCK = 32
LINE = BLOCK + 8  # neighbours for which there is room in a row: eight are worked on at once
FINE = 32  # as in soap/basis.py
OPTIONS: Any = {**LEAN, "fastmath": {"contract", "reassoc", "nsz"}}
INNER: Any = {**OPTIONS, "no_cpython_wrapper": True}  # of what is called from here only

_one_by_four, _one_by_eight = tile(1, 1, add=False), tile(1, 2, add=False)
_three_by_four = tile(3, 1, add=False)
_one_exponential, _exponentials = exponentials(1), exponentials(4)
_two_by_eight, _three_by_eight = tile(2, 2, add=False), tile(3, 2, add=False)
_four_by_eight, _six_by_eight = tile(4, 2, add=False), tile(6, 2, add=False)
_add_one, _add_three, _add_four, _add_five = (tile(rows, 2, add=True) for rows in (1, 3, 4, 5))


def memory_size(degrees: int, n_radial: int, n_species: int, n_features: int, n_rates: int) -> int:
    """Numbers that fit the buffers of either function below."""
    size, width = degrees * degrees, n_species * n_radial
    line, rounded = width + 12, n_radial + 8
    neighbours = (5 + n_rates + size + 5) * LINE + BLOCK * n_rates + 8
    forward = n_species * size * rounded + size * line + degrees * (width + 4) * line
    back = 2 * n_species * (size * n_radial + 8) + line * line + size * line + 16 * (2 * degrees + 1)
    return neighbours + max(forward, back) + n_features + 40


@njit("void(float64[::1], int64, int64, int64, int64, int64, float64[::1])", **INNER)
def _harmonics(
    memory: Any, place: int, seed: int, out: int, count: int, degrees: int, recursion: Any
) -> None:
    """Plain solid harmonics times ``seed[b]`` as ``out[lm LINE + b]``, eight pairs at a time."""
    for b in range(0, count, 8):
        here, rows = place + b, out + b
        x, y = load_wide(memory, here, 0, LINE), load_wide(memory, here, 1, LINE)
        z, r = load_wide(memory, here, 2, LINE), load_wide(memory, here, 3, LINE)
        store_wide(memory, rows, 0, LINE, load_wide(memory, seed, b, 1))
        for degree in range(1, degrees):
            middle = degree * degree + degree
            below = middle - 2 * degree  # row of (degree − 1, 0)
            below2 = below - 2 * degree + 2  # row of (degree − 2, 0)
            for m in range(1 - degree, degree):
                v = mul(load_spread_wide(recursion, 0, middle + m, 2), z)
                v = mul(v, load_wide(memory, rows, below + m, LINE))
                if 1 - degree < m < degree - 1:
                    w = mul(load_spread_wide(recursion, 1, middle + m, 2), r)
                    v = sub(v, mul(w, load_wide(memory, rows, below2 + m, LINE)))
                store_wide(memory, rows, middle + m, LINE, v)
            u = load_spread_wide(recursion, 0, middle + degree, 2)
            ux, uy = mul(u, x), mul(u, y)
            c = load_wide(memory, rows, below + degree - 1, LINE)
            v, w = mul(ux, c), mul(uy, c)
            if degree > 1:  # there is no sine of order 0
                s = load_wide(memory, rows, below - degree + 1, LINE)
                v, w = sub(v, mul(uy, s)), fma(ux, s, w)
            store_wide(memory, rows, middle + degree, LINE, v)
            store_wide(memory, rows, middle - degree, LINE, w)


@njit(
    "void(int64, int64, int64[::1], float64[:, ::1], float64[:, ::1], int64[::1], float64, int64, int64, float64,"
    " float64[::1], float64[::1], float64[::1], float64[::1], float64[::1], float64[::1], float64[::1],"
    " float64[:, :, ::1], float64[:, ::1], float64[::1], float64[::1])",
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
    degrees: int,
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
    memory: Any,
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
    weights : ((l_max + 1) n n4,) array
        W[l, n, k] as ``[l, k, n]``, n padded with zeros.
    prefactors, recursion, scales
        Tables of ``soap/basis.py``.
    coefficients : (N, L, S n) output
        c[i, lm, s n].
    values, norms : (N, F), (N,) outputs
    memory : (``memory_size``,) array
        To work in.
    """
    n_species = (len(start) - 1) // len(slots)
    padded = (n_radial + 3) // 4 * 4
    size = degrees * degrees
    width = n_species * n_radial
    line = (width + 3) // 4 * 4 + 8
    rows = (width + 3) // 4 * 4
    eights = (n_radial + 7) // 8 * 8
    n_features = values.shape[1]
    n_rates = len(rates)
    rounds = n_rates // 4
    place = next_line(memory)
    seed = place + 4 * LINE
    angular = seed + LINE
    radial = angular + size * LINE
    sums = radial + BLOCK * n_rates + 8
    own = sums + n_species * size * eights
    squares = own + size * line
    raw = squares + degrees * rows * line
    for k in range(len(memory)):
        memory[k] = 0.0
    for i in range(first, last):
        for k in range(sums, own):
            memory[k] = 0.0
        # the centre itself: r = 0, only l = 0
        for k in range(n_radial):
            memory[sums + slots[i] * size * eights + k] = centre
        begin, end = start[i * n_species], start[(i + 1) * n_species]
        for block in range(begin, end, BLOCK):
            count = min(BLOCK, end - block)
            for b in range(count):
                p = block + b
                x, y, z = vectors[0, p], vectors[1, p], vectors[2, p]
                r2 = x * x + y * y + z * z
                memory[place + b], memory[place + LINE + b] = x, y
                memory[place + 2 * LINE + b], memory[place + 3 * LINE + b] = z, r2
                memory[seed + b] = switch[0, p]
                # exp(a r²) of all l and k in a row
                r, e = place + 3 * LINE + b, radial + b * n_rates
                _one_exponential(rounds, memory, r, step, rates, fine, coarse, n_rates, FINE, memory, e, 1)
            _harmonics(memory, place, seed, angular, count, degrees, recursion)
            for s in range(n_species):
                low = max(start[i * n_species + s], block) - block
                number = min(start[i * n_species + s + 1], block + count) - block - low
                if number <= 0:
                    continue
                for degree in range(degrees):
                    stop = (degree + 1) * (degree + 1)
                    for k in range(0, n_radial, 8):
                        e = radial + low * n_rates + degree * n_radial + k
                        lm = degree * degree
                        while lm < stop:
                            # an odd number of orders: one, three or five, and the rest in fours
                            rest = stop - lm
                            a = angular + lm * LINE + low
                            o = sums + (s * size + lm) * eights + k
                            if rest == 1:
                                _add_one(number, memory, a, LINE, 1, memory, e, n_rates, memory, o, eights)
                                lm += 1
                            elif rest % 4 == 3:
                                _add_three(number, memory, a, LINE, 1, memory, e, n_rates, memory, o, eights)
                                lm += 3
                            elif rest % 4 == 1:
                                _add_five(number, memory, a, LINE, 1, memory, e, n_rates, memory, o, eights)
                                lm += 5
                            else:
                                _add_four(number, memory, a, LINE, 1, memory, e, n_rates, memory, o, eights)
                                lm += 4
        for degree in range(degrees):
            square = squares + degree * rows * line
            lm0, orders = degree * degree, 2 * degree + 1
            for s in range(n_species):
                for n in range(0, n_radial, 4):
                    t = degree * n_radial * padded + n
                    for lm in range(lm0, lm0 + orders, 3):
                        # three harmonics at a time, the last ones perhaps again
                        m = min(lm, lm0 + orders - 3)
                        o, c = sums + (s * size + m) * eights, own + m * line + s * n_radial + n
                        if degree > 0:
                            _three_by_four(
                                n_radial, memory, o, eights, 1, weights, t, padded, memory, c, line
                            )
                        else:
                            o, c = sums + s * size * eights, own + s * n_radial + n
                            _one_by_four(n_radial, memory, o, 0, 1, weights, t, padded, memory, c, 0)
            for lm in range(lm0, lm0 + orders):
                for a in range(width):
                    value = scales[lm] * memory[own + lm * line + a]
                    memory[own + lm * line + a] = value
                    coefficients[i, lm, a] = value
            # upper triangle of Σ_m c cᵀ
            for a in range(0, width, 4):
                for b in range(a, width, 8):
                    o = own + lm0 * line
                    c = square + a * line + b
                    _four_by_eight(orders, memory, o + a, 1, line, memory, o + b, line, memory, c, line)
        # where the row keeps it
        f = raw
        for s in range(n_species):
            for t in range(s, n_species):
                for degree in range(degrees):
                    factor = spread(prefactors[degree])
                    for a in range(n_radial):
                        skipped = a if s == t else 0
                        o = squares + (degree * rows + s * n_radial + a) * line + t * n_radial + skipped
                        for c in range(0, n_radial - skipped, 4):
                            store(memory, f + c, mul(factor, load(memory, o + c)))
                        f += n_radial - skipped
        norm2 = 0.0
        for f in range(n_features):
            norm2 += memory[raw + f] * memory[raw + f]
        norms[i] = np.sqrt(norm2)
        scalar = 1.0 / norms[i] if norms[i] > 0.0 else 0.0
        for f in range(n_features):
            values[i, f] = memory[raw + f] * scalar


@njit(
    "void(int64, int64, int64[::1], float64[:, ::1], float64[:, ::1], int64, int64, float64, float64[::1],"
    " float64[::1], float64[::1], float64[::1], float64[::1], float64[::1], float64[::1], float64[::1],"
    " float64[:, ::1], float64[::1], float64[:, ::1], boolean, float64[:, ::1], float64[::1])",
    **OPTIONS,
)
def pair_gradients(
    first: int,
    last: int,
    start: Any,
    vectors: Any,
    switch: Any,
    degrees: int,
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
    memory: Any,
) -> None:
    """∂f_i/∂r_ij for every pair of the centres ``first`` to ``last``, given G_i = ∂f_i/∂p_i.

    The adjoint of :func:`expand`, step by step backwards (theory section 4).

    Parameters
    ----------
    weights : ((l_max + 1) n n4,) array
        W[l, n, k], k padded with zeros.
    coefficients : (N L S n,) array
    gradient : (N, F) array
        G.
    normalised : bool
        Whether G refers to normalised rows (else to the raw ones).
    out : (3, P) output
    memory : (``memory_size``,) array
        To work in.
    """
    n_atoms = len(norms)
    n_species = (len(start) - 1) // n_atoms
    padded = (n_radial + 3) // 4 * 4
    size = degrees * degrees
    width = n_species * n_radial
    line = (width + 3) // 4 * 4 + 8
    n_features = values.shape[1]
    n_rates = len(rates)
    rounds = n_rates // 4
    place = next_line(memory)
    seed = place + 4 * LINE
    angular = seed + LINE
    radial = angular + size * LINE
    result = radial + n_rates * LINE
    slope = result + 5 * LINE
    stride = 2 * size * n_radial + 16  # of an element: each harmonic has a row of s, and one of s'
    square = slope + n_species * stride
    turned_back = square + line * line
    raw = turned_back + size * line
    inner = raw + n_features + 8
    nothing = spread_wide(0.0)
    for k in range(len(memory)):
        memory[k] = 0.0
    for b in range(LINE):
        memory[seed + b] = 1.0
    for i in range(first, last):
        begin, end = start[i * n_species], start[(i + 1) * n_species]
        if begin == end:
            continue
        scalar, dot = 1.0, 0.0
        if normalised:
            for f in range(n_features):
                dot += values[i, f] * gradient[i, f]
            scalar = 1.0 / norms[i] if norms[i] > 0.0 else 0.0
        for f in range(n_features):
            memory[raw + f] = (gradient[i, f] - dot * values[i, f]) * scalar
        for degree in range(degrees):
            # the symmetric matrix Q, diagonal doubled: ∂(G · p)/∂c = Q c
            factor = spread(prefactors[degree])
            offset = raw
            for s in range(n_species):
                for t in range(s, n_species):
                    block = n_radial * (n_radial + 1) // 2 if s == t else n_radial * n_radial
                    f = offset + degree * block
                    for a in range(n_radial):
                        skipped = a if s == t else 0
                        o = square + (s * n_radial + a) * line + t * n_radial + skipped
                        for c in range(0, n_radial - skipped, 4):
                            store(memory, o + c, mul(factor, load(memory, f + c)))
                        f += n_radial - skipped
                    offset += block * degrees
            for a in range(width):
                memory[square + a * line + a] *= 2.0
                for b in range(a):
                    memory[square + a * line + b] = memory[square + b * line + a]
            lm0, orders = degree * degree, 2 * degree + 1
            for b in range(0, width, 8):
                for lm in range(lm0, lm0 + orders, 3):
                    # three harmonics at a time, the last ones perhaps again
                    m = min(lm, lm0 + orders - 3)
                    c = turned_back + m * line + b
                    o = (i * size + m) * width
                    if degree == 0:
                        c, o = turned_back + b, i * size * width
                        _one_by_eight(width, coefficients, o, 0, 1, memory, square + b, line, memory, c, 0)
                    else:
                        _three_by_eight(
                            width, coefficients, o, width, 1, memory, square + b, line, memory, c, line
                        )
            for s in range(n_species):
                for lm in range(lm0, lm0 + orders, 3):
                    m = min(lm, lm0 + orders - 3)
                    for k in range(0, n_radial, 4):
                        t = degree * n_radial * padded + k
                        if degree > 0:
                            a = turned_back + m * line + s * n_radial
                            o = slope + s * stride + 2 * m * n_radial + k
                            _three_by_four(
                                n_radial, memory, a, line, 1, weights, t, padded, memory, o, 2 * n_radial
                            )
                        else:
                            a, o = turned_back + s * n_radial, slope + s * stride + k
                            _one_by_four(n_radial, memory, a, 0, 1, weights, t, padded, memory, o, 0)
                for lm in range(lm0, lm0 + orders):
                    o = slope + s * stride + 2 * lm * n_radial
                    for k in range(n_radial):
                        value = scales[lm] * memory[o + k]
                        memory[o + k] = value
                        memory[o + n_radial + k] = 2.0 * rates[degree * n_radial + k] * value
        for block in range(begin, end, BLOCK):
            count = min(BLOCK, end - block)
            for b in range(count):
                x, y, z = vectors[0, block + b], vectors[1, block + b], vectors[2, block + b]
                memory[place + b], memory[place + LINE + b] = x, y
                memory[place + 2 * LINE + b], memory[place + 3 * LINE + b] = z, x * x + y * y + z * z
            # exp(a r²) of four neighbours, the other way round
            for b in range(0, count, 4):
                r, e = place + 3 * LINE + b, radial + b
                _exponentials(rounds, memory, r, step, rates, fine, coarse, n_rates, FINE, memory, e, LINE)
            _harmonics(memory, place, seed, angular, count, degrees, recursion)
            for s in range(n_species):
                low = max(start[i * n_species + s], block) - block
                high = min(start[i * n_species + s + 1], block + count) - block
                # what is written beyond ``high`` belongs to the next element and is written again
                for b in range(low, high, 8):
                    # 2 Σ s ∇R, Σ s' R and Σ s R with s_lm = Σ_k slope[lm, k] exp(a r²), and s' with 2 a slope
                    gx = gy = gz = along = plain = nothing
                    for degree in range(degrees):
                        lm0, orders = degree * degree, 2 * degree + 1
                        o = slope + s * stride + 2 * lm0 * n_radial
                        e = radial + degree * n_radial * LINE + b
                        here = angular + lm0 * LINE + b
                        if degree == 0:
                            _two_by_eight(n_radial, memory, o, n_radial, 1, memory, e, LINE, memory, inner, 8)
                        else:
                            # an odd number of orders: three, and the rest by two
                            _six_by_eight(n_radial, memory, o, n_radial, 1, memory, e, LINE, memory, inner, 8)
                            for m in range(3, orders, 2):
                                a, c = o + 2 * m * n_radial, inner + 16 * m
                                _four_by_eight(
                                    n_radial, memory, a, n_radial, 1, memory, e, LINE, memory, c, 8
                                )
                        for m in range(orders):
                            r = load_wide(memory, here, m, LINE)
                            plain = fma(load_wide(memory, inner, 2 * m, 8), r, plain)
                            along = fma(load_wide(memory, inner, 2 * m + 1, 8), r, along)
                        if degree == 0:
                            continue
                        # rows of degree − 1 in turn, with the orders above that have them in their gradients; cosine
                        # (degree, m) is at zero + 16 m, sine at zero − 16 m
                        middle = angular + (lm0 - degree) * LINE + b
                        zero = inner + 16 * degree
                        r = load_wide(memory, middle, 0, LINE)
                        gx = fma(load_wide(memory, zero, 1, 16), r, gx)
                        gy = fma(load_wide(memory, zero, -1, 16), r, gy)
                        gz = fma(load_wide(memory, zero, 0, 16), r, gz)
                        for m in range(1, degree):
                            c, t = load_wide(memory, middle, m, LINE), load_wide(memory, middle, -m, LINE)
                            up, down = load_wide(memory, zero, m + 1, 16), load_wide(memory, zero, m - 1, 16)
                            if m == 1:  # the one order without a partner counts twice
                                down = add(down, down)
                            gx = fma(sub(up, down), c, gx)
                            gy = sub(gy, mul(add(up, down), t))
                            up, down = load_wide(memory, zero, -m - 1, 16), load_wide(memory, zero, 1 - m, 16)
                            if m == 1:
                                down = nothing
                            gx = fma(sub(up, down), t, gx)
                            gy = fma(add(up, down), c, gy)
                            gz = fma(load_wide(memory, zero, m, 16), c, gz)
                            gz = fma(load_wide(memory, zero, -m, 16), t, gz)
                    store_wide(memory, result, b, 1, gx)
                    store_wide(memory, result + LINE, b, 1, gy)
                    store_wide(memory, result + 2 * LINE, b, 1, add(gz, gz))
                    store_wide(memory, result + 3 * LINE, b, 1, along)
                    store_wide(memory, result + 4 * LINE, b, 1, plain)
            for b in range(count):
                p, r = block + b, result + b
                f = switch[0, p]
                radially = f * memory[r + 3 * LINE] + switch[1, p] * memory[r + 4 * LINE]
                f *= 0.5
                out[0, p] = f * memory[r] + radially * vectors[0, p]
                out[1, p] = f * memory[r + LINE] + radially * vectors[1, p]
                out[2, p] = f * memory[r + 2 * LINE] + radially * vectors[2, p]


__all__ = ["expand", "memory_size", "pair_gradients"]
