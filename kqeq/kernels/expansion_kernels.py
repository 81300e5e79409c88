"""Compiled loop of kernel expansions and their gradients on the host; imported when the first one is evaluated.

    f_i = Σ_m c_m (p_i · p_m)^ζ,     ∂f_i/∂p_i = Σ_m ζ c_m (p_i · p_m)^(ζ−1) p_m

in one pass over the representatives: ``REPRESENTATIVES`` of them at a time stay in the second-level cache between the
products of the values and those of the gradient.  Libraries for matrix products copy both factors into a layout of their
own, which for the atoms of a molecule takes as long as the product.

Dimensions: n atoms, F features, M representatives; rows in memory are filled up with zeros to n2 (even), M12 (a multiple
of ``REPRESENTATIVES``) and F12 (of ``FEATURES``).
"""

from __future__ import annotations

from typing import Any

from numba import njit

from kqeq.backend.compiled import LEAN
from kqeq.backend.vectors import dots, next_line, tile

REPRESENTATIVES = 12
FEATURES = 12
SPARE = 8  # numbers of the working memory beyond what is worked on: it begins at a line of the cache

_four_by_three, _two_by_three = dots(4, 3), dots(2, 3, together=2)
_combine_four, _combine_two = tile(4, FEATURES // 4, add=True), tile(2, FEATURES // 4, add=True)


@njit(
    "void(int64, float64[:, ::1], int64, float64[::1], float64[::1], float64, float64[::1], float64[:, ::1],"
    " float64[:, ::1], float64[::1])",
    fastmath={"contract"},
    **LEAN,
)
def expand(
    steps: int,
    values: Any,
    size: int,
    rows: Any,
    coefficients: Any,
    zeta: float,
    result: Any,
    slopes: Any,
    gradient: Any,
    memory: Any,
) -> None:
    """Expansions f and their gradients ∂f/∂p, both or one after the other, which makes no difference to results.

    Parameters
    ----------
    steps : int
        1 for f and slopes, 2 for the gradient from slopes that are there, 3 for all.
    values : (n, F) array
        p_i.
    size : int
        F12.
    rows : (M12 F12,) array
        p_m.
    coefficients : (M,) array
    zeta : float
    result : (n,) output
    slopes : (1 or M12 / REPRESENTATIVES, n2 REPRESENTATIVES) array
        ζ c_m (p_i · p_m)^(ζ−1); one row is enough for all steps at once.
    gradient : (n, F) output, not used without the second step
    memory : (2 n2 F12 + SPARE,) array
        To work in.
    """
    n, features = values.shape
    number, few = n + n % 2, REPRESENTATIVES
    here = next_line(memory)
    slope = here + number * size
    for k in range(here, slope + number * size):
        memory[k] = 0.0
    for i in range(n):
        for f in range(features):
            memory[here + i * size + f] = values[i, f]
    power = int(zeta)
    whole = power == zeta and power <= 16
    for block in range(len(rows) // (few * size)):
        own = slopes[block if len(slopes) > 1 else 0]
        if steps & 1:
            for b in range(0, few, 3):
                r = (block * few + b) * size
                for i in range(0, number - 2, 4):
                    _four_by_three(size, memory, here + i * size, size, rows, r, size, own, i * few + b, few)
                if number % 4:
                    i = number - 2
                    _two_by_three(size, memory, here + i * size, size, rows, r, size, own, i * few + b, few)
            for i in range(n):
                value = 0.0
                for b in range(few):
                    d = own[i * few + b]
                    m = block * few + b
                    c = coefficients[m] if m < len(coefficients) else 0.0
                    if whole:
                        p = 1.0
                        for _ in range(power - 1):
                            p *= d
                    else:
                        # dot products of power spectra are not negative; rounding may say otherwise
                        d = d if d > 0.0 else 0.0
                        p = d ** (zeta - 1.0)
                    value += c * p * d
                    own[i * few + b] = zeta * c * p
                result[i] = value if block == 0 else result[i] + value
        if steps & 2:
            for f in range(0, size, FEATURES):
                r, g = block * few * size + f, slope + f
                for i in range(0, number - 2, 4):
                    _combine_four(few, own, i * few, few, 1, rows, r, size, memory, g + i * size, size)
                if number % 4:
                    i = number - 2
                    _combine_two(few, own, i * few, few, 1, rows, r, size, memory, g + i * size, size)
    if steps & 2:
        for i in range(n):
            for f in range(features):
                gradient[i, f] = memory[slope + i * size + f]


__all__ = ["FEATURES", "REPRESENTATIVES", "SPARE", "expand"]
