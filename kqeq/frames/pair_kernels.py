"""Compiled loops over candidates for pairs; imported on first use (it imports numba).

Dimensions: N atoms, C candidates, P pairs.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from kqeq.backend.compiled import LEAN


@njit(
    "void(int64, int64, int64[::1], int64[:, ::1], float64[:, ::1], float64[:, ::1], float64, int64[::1])",
    **LEAN,
)
def count_near(
    first: int, last: int, start: Any, indices: Any, offsets: Any, positions: Any, limit: float, number: Any
) -> None:
    """Count the candidates of the centres ``first`` to ``last`` within a distance.

    Parameters
    ----------
    start, indices, offsets
        Ordered by centre; offsets are shifts of the cell, Å.
    positions : (N, 3) array
    limit : float
        Square of the distance.
    number : (N,) output
    """
    for i in range(first, last):
        here = 0
        for p in range(start[i], start[i + 1]):
            j = indices[p, 1]
            x = positions[j, 0] - positions[i, 0] + offsets[p, 0]
            y = positions[j, 1] - positions[i, 1] + offsets[p, 1]
            z = positions[j, 2] - positions[i, 2] + offsets[p, 2]
            if x * x + y * y + z * z <= limit:
                here += 1
        number[i] = here


@njit(
    "void(int64, int64, int64[::1], int64[:, ::1], float64[:, ::1], float64[:, ::1], float64, int64[::1],"
    " int64[:, ::1], float64[:, ::1])",
    **LEAN,
)
def collect_near(
    first: int,
    last: int,
    start: Any,
    indices: Any,
    offsets: Any,
    positions: Any,
    limit: float,
    begin: Any,
    near_indices: Any,
    near_vectors: Any,
) -> None:
    """Write the candidates that :func:`count_near` counts; those of centre i from row ``begin[i]`` on."""
    for i in range(first, last):
        q = begin[i]
        for p in range(start[i], start[i + 1]):
            j = indices[p, 1]
            x = positions[j, 0] - positions[i, 0] + offsets[p, 0]
            y = positions[j, 1] - positions[i, 1] + offsets[p, 1]
            z = positions[j, 2] - positions[i, 2] + offsets[p, 2]
            if x * x + y * y + z * z <= limit:
                near_indices[q, 0] = i
                near_indices[q, 1] = j
                near_vectors[q, 0] = x
                near_vectors[q, 1] = y
                near_vectors[q, 2] = z
                q += 1


__all__ = ["collect_near", "count_near"]
