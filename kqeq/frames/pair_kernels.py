"""Compiled loops over candidates for pairs; imported on first use (it imports numba).

Dimensions: N atoms, C candidates, P pairs.
"""

from __future__ import annotations

from typing import Any

from numba import njit


@njit(
    "void(int64[:, ::1], float64[:, ::1], int64[::1], int64[:, ::1], float64[:, ::1])",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def sort_by_centre(indices: Any, offsets: Any, start: Any, sorted_indices: Any, sorted_offsets: Any) -> None:
    """Order candidates by centre, by counting; those of a centre keep their order.

    Parameters
    ----------
    indices, offsets : (C, 2), (C, 3) arrays
    start : (N + 1,) output
        First candidate of each centre.
    sorted_indices, sorted_offsets : outputs of the shapes of the first two
    """
    n = len(start) - 1
    for i in range(n + 1):
        start[i] = 0
    for p in range(len(indices)):
        start[indices[p, 0] + 1] += 1
    for i in range(n):
        start[i + 1] += start[i]
    fill = start.copy()
    for p in range(len(indices)):
        i = indices[p, 0]
        q = fill[i]
        fill[i] = q + 1
        sorted_indices[q, 0] = i
        sorted_indices[q, 1] = indices[p, 1]
        for a in range(3):
            sorted_offsets[q, a] = offsets[p, a]


@njit(
    "void(int64, int64, int64[::1], int64[:, ::1], float64[:, ::1], float64[:, ::1], float64, int64[::1])",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def count_near(
    first: int, last: int, start: Any, indices: Any, offsets: Any, positions: Any, limit: float, number: Any
) -> None:
    """Count the candidates of the centres ``first`` to ``last`` within a distance.

    Parameters
    ----------
    start, indices, offsets
        From :func:`sort_by_centre`; offsets are shifts of the cell, Å.
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
    cache=True,
    nogil=True,
    error_model="numpy",
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


__all__ = ["collect_near", "count_near", "sort_by_centre"]
