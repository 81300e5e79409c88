"""Compiled loop of kernel expansions and their gradients on the host; imported when the first one is evaluated.

    f_i = Σ_m c_m (p_i · p_m)^ζ,     ∂f_i/∂p_i = Σ_m ζ c_m (p_i · p_m)^(ζ−1) p_m

in one pass over the representatives: ``REPRESENTATIVES`` of them at a time stay in the second-level cache between the
products of the values and those of the gradient.  Libraries for matrix products copy both factors into a layout of their
own, which for the atoms of a molecule takes as long as the product.

Dimensions: n atoms (even), M representatives (a multiple of ``REPRESENTATIVES``), F features (of ``FEATURES``); all
filled up with zeros.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from kqeq.backend.vectors import add, fma, load, load_spread, spread, store, total

REPRESENTATIVES = 12
FEATURES = 12
OPTIONS: Any = {"cache": True, "nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}


@njit("void(float64[::1], int64, float64[::1], int64, int64, int64, float64[::1])", **OPTIONS)
def _four_by_three(values: Any, v: int, rows: Any, r: int, size: int, o: int, dots: Any) -> None:
    """Dot products of four rows with three, at offsets v and r; to ``dots[o + REPRESENTATIVES a + b]``."""
    s00 = s01 = s02 = s10 = s11 = s12 = s20 = s21 = s22 = s30 = s31 = s32 = spread(0.0)
    for f in range(0, size, 4):
        a, b, c = load(rows, r + f), load(rows, r + size + f), load(rows, r + 2 * size + f)
        x = load(values, v + f)
        s00, s01, s02 = fma(x, a, s00), fma(x, b, s01), fma(x, c, s02)
        x = load(values, v + size + f)
        s10, s11, s12 = fma(x, a, s10), fma(x, b, s11), fma(x, c, s12)
        x = load(values, v + 2 * size + f)
        s20, s21, s22 = fma(x, a, s20), fma(x, b, s21), fma(x, c, s22)
        x = load(values, v + 3 * size + f)
        s30, s31, s32 = fma(x, a, s30), fma(x, b, s31), fma(x, c, s32)
    dots[o], dots[o + 1], dots[o + 2] = total(s00), total(s01), total(s02)
    o += REPRESENTATIVES
    dots[o], dots[o + 1], dots[o + 2] = total(s10), total(s11), total(s12)
    o += REPRESENTATIVES
    dots[o], dots[o + 1], dots[o + 2] = total(s20), total(s21), total(s22)
    o += REPRESENTATIVES
    dots[o], dots[o + 1], dots[o + 2] = total(s30), total(s31), total(s32)


@njit("void(float64[::1], int64, float64[::1], int64, int64, int64, float64[::1])", **OPTIONS)
def _two_by_three(values: Any, v: int, rows: Any, r: int, size: int, o: int, dots: Any) -> None:
    """The same for two rows."""
    s00 = s01 = s02 = s10 = s11 = s12 = spread(0.0)
    t00 = t01 = t02 = t10 = t11 = t12 = spread(0.0)
    for f in range(0, size - 4, 8):
        a, b, c = load(rows, r + f), load(rows, r + size + f), load(rows, r + 2 * size + f)
        x = load(values, v + f)
        s00, s01, s02 = fma(x, a, s00), fma(x, b, s01), fma(x, c, s02)
        x = load(values, v + size + f)
        s10, s11, s12 = fma(x, a, s10), fma(x, b, s11), fma(x, c, s12)
        g = f + 4
        a, b, c = load(rows, r + g), load(rows, r + size + g), load(rows, r + 2 * size + g)
        x = load(values, v + g)
        t00, t01, t02 = fma(x, a, t00), fma(x, b, t01), fma(x, c, t02)
        x = load(values, v + size + g)
        t10, t11, t12 = fma(x, a, t10), fma(x, b, t11), fma(x, c, t12)
    if size % 8:
        g = size - 4
        a, b, c = load(rows, r + g), load(rows, r + size + g), load(rows, r + 2 * size + g)
        x = load(values, v + g)
        t00, t01, t02 = fma(x, a, t00), fma(x, b, t01), fma(x, c, t02)
        x = load(values, v + size + g)
        t10, t11, t12 = fma(x, a, t10), fma(x, b, t11), fma(x, c, t12)
    dots[o], dots[o + 1], dots[o + 2] = total(add(s00, t00)), total(add(s01, t01)), total(add(s02, t02))
    o += REPRESENTATIVES
    dots[o], dots[o + 1], dots[o + 2] = total(add(s10, t10)), total(add(s11, t11)), total(add(s12, t12))


@njit("void(float64[::1], int64, float64[::1], int64, int64, int64, int64, float64[::1])", **OPTIONS)
def _combine_four(slopes: Any, w: int, rows: Any, r: int, size: int, f: int, g: int, gradient: Any) -> None:
    """Add Σ_m slopes_m p_m to four rows of the gradient at offset g, for twelve features from f on."""
    g1, g2, g3 = g + size, g + 2 * size, g + 3 * size
    w1, w2, w3 = w + REPRESENTATIVES, w + 2 * REPRESENTATIVES, w + 3 * REPRESENTATIVES
    s00, s01, s02 = load(gradient, g), load(gradient, g + 4), load(gradient, g + 8)
    s10, s11, s12 = load(gradient, g1), load(gradient, g1 + 4), load(gradient, g1 + 8)
    s20, s21, s22 = load(gradient, g2), load(gradient, g2 + 4), load(gradient, g2 + 8)
    s30, s31, s32 = load(gradient, g3), load(gradient, g3 + 4), load(gradient, g3 + 8)
    for m in range(REPRESENTATIVES):
        o = r + m * size + f
        a, b, c = load(rows, o), load(rows, o + 4), load(rows, o + 8)
        x = load_spread(slopes, w + m)
        s00, s01, s02 = fma(x, a, s00), fma(x, b, s01), fma(x, c, s02)
        x = load_spread(slopes, w1 + m)
        s10, s11, s12 = fma(x, a, s10), fma(x, b, s11), fma(x, c, s12)
        x = load_spread(slopes, w2 + m)
        s20, s21, s22 = fma(x, a, s20), fma(x, b, s21), fma(x, c, s22)
        x = load_spread(slopes, w3 + m)
        s30, s31, s32 = fma(x, a, s30), fma(x, b, s31), fma(x, c, s32)
    store(gradient, g, s00)
    store(gradient, g + 4, s01)
    store(gradient, g + 8, s02)
    store(gradient, g1, s10)
    store(gradient, g1 + 4, s11)
    store(gradient, g1 + 8, s12)
    store(gradient, g2, s20)
    store(gradient, g2 + 4, s21)
    store(gradient, g2 + 8, s22)
    store(gradient, g3, s30)
    store(gradient, g3 + 4, s31)
    store(gradient, g3 + 8, s32)


@njit("void(float64[::1], int64, float64[::1], int64, int64, int64, int64, float64[::1])", **OPTIONS)
def _combine_two(slopes: Any, w: int, rows: Any, r: int, size: int, f: int, g: int, gradient: Any) -> None:
    """The same for two rows."""
    g1, w1 = g + size, w + REPRESENTATIVES
    s00, s01, s02 = load(gradient, g), load(gradient, g + 4), load(gradient, g + 8)
    s10, s11, s12 = load(gradient, g1), load(gradient, g1 + 4), load(gradient, g1 + 8)
    for m in range(REPRESENTATIVES):
        o = r + m * size + f
        a, b, c = load(rows, o), load(rows, o + 4), load(rows, o + 8)
        x = load_spread(slopes, w + m)
        s00, s01, s02 = fma(x, a, s00), fma(x, b, s01), fma(x, c, s02)
        x = load_spread(slopes, w1 + m)
        s10, s11, s12 = fma(x, a, s10), fma(x, b, s11), fma(x, c, s12)
    store(gradient, g, s00)
    store(gradient, g + 4, s01)
    store(gradient, g + 8, s02)
    store(gradient, g1, s10)
    store(gradient, g1 + 4, s11)
    store(gradient, g1 + 8, s12)


@njit(
    "void(int64, float64[:, ::1], float64[:, ::1], float64[::1], float64, float64[::1], float64[:, ::1],"
    " float64[:, ::1])",
    **OPTIONS,
)
def expand(
    steps: int,
    values: Any,
    rows: Any,
    coefficients: Any,
    zeta: float,
    result: Any,
    slopes: Any,
    gradient: Any,
) -> None:
    """Expansions f and their gradients ∂f/∂p, both or one after the other, which makes no difference to results.

    Parameters
    ----------
    steps : int
        1 for f and slopes, 2 for the gradient from slopes that are there, 3 for all.
    values : (n, F) array
        p_i.
    rows : (M, F) array
        p_m.
    coefficients : (M,) array
    zeta : float
    result : (n,) output
    slopes : (1 or M / REPRESENTATIVES, n REPRESENTATIVES) array
        ζ c_m (p_i · p_m)^(ζ−1); one row is enough for all steps at once.
    gradient : (n, F) output
    """
    number, size = values.shape
    here = values.reshape(-1)
    there = rows.reshape(-1)
    slope = gradient.reshape(-1)
    power = int(zeta)
    whole = power == zeta and power <= 16
    if steps & 1:
        result[:] = 0.0
    if steps & 2:
        gradient[:] = 0.0
    for m in range(0, len(coefficients), REPRESENTATIVES):
        dots = slopes[m // REPRESENTATIVES if len(slopes) > 1 else 0]
        if steps & 1:
            for b in range(0, REPRESENTATIVES, 3):
                r = (m + b) * size
                for i in range(0, number - 2, 4):
                    _four_by_three(here, i * size, there, r, size, i * REPRESENTATIVES + b, dots)
                if number % 4:
                    i = number - 2
                    _two_by_three(here, i * size, there, r, size, i * REPRESENTATIVES + b, dots)
            for i in range(number):
                own = 0.0
                for b in range(REPRESENTATIVES):
                    d = dots[i * REPRESENTATIVES + b]
                    c = coefficients[m + b]
                    if whole:
                        p = 1.0
                        for _ in range(power - 1):
                            p *= d
                    else:
                        # dot products of power spectra are not negative; rounding may say otherwise
                        d = max(d, 0.0)
                        p = d ** (zeta - 1.0)
                    own += c * p * d
                    dots[i * REPRESENTATIVES + b] = zeta * c * p
                result[i] += own
        if steps & 2:
            for f in range(0, size, FEATURES):
                for i in range(0, number - 2, 4):
                    _combine_four(dots, i * REPRESENTATIVES, there, m * size, size, f, i * size + f, slope)
                if number % 4:
                    i = number - 2
                    _combine_two(dots, i * REPRESENTATIVES, there, m * size, size, f, i * size + f, slope)


__all__ = ["FEATURES", "REPRESENTATIVES", "expand"]
