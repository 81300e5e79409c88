"""Compiled loops over pairs of atoms: sorting them, and collecting their gradients on atoms.

Dimensions: N atoms, P pairs, S species.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kqeq.backend.compiled import LEAN


@njit(
    "void(int64, int64, int64[:, ::1], float64[:, ::1], boolean, int64[::1], int64, float64, int64[::1])",
    **LEAN,
)
def count_pairs(
    first: int,
    last: int,
    indices: Any,
    vectors: Any,
    full: bool,
    slots: Any,
    n_species: int,
    cutoff: float,
    counts: Any,
) -> None:
    """Number of pairs within the cutoff among ``first`` to ``last``, by centre and element of the neighbour.

    Parameters
    ----------
    indices, vectors : (P0, 2), (P0, 3) arrays
    full : bool
        Whether they hold both directions of each pair; otherwise the other one is added.
    slots : (N,) array
        Species index of each atom.
    counts : (N S,) output
    """
    limit = cutoff * cutoff
    sides = 1 if full else 2
    counts[:] = 0
    for p in range(first, last):
        x, y, z = vectors[p, 0], vectors[p, 1], vectors[p, 2]
        if x * x + y * y + z * z <= limit:
            for side in range(sides):
                counts[indices[p, side] * n_species + slots[indices[p, 1 - side]]] += 1


@njit(
    "void(int64, int64, int64[:, ::1], float64[:, ::1], boolean, int64[::1], int64, float64, float64,"
    " int64[::1], int64[:, ::1], float64[:, ::1], float64[:, ::1])",
    **LEAN,
)
def place_pairs(
    first: int,
    last: int,
    indices: Any,
    vectors: Any,
    full: bool,
    slots: Any,
    n_species: int,
    inner: float,
    cutoff: float,
    places: Any,
    sorted_indices: Any,
    sorted_vectors: Any,
    switch: Any,
) -> None:
    """Write the pairs ``first`` to ``last`` where they belong, sorted by centre and element of the neighbour.

    Parameters
    ----------
    inner, cutoff : float
        The switching function falls from 1 to 0 between them; none if they are equal.
    places : (N S,) array
        Where the next pair of each (centre, element) goes; updated.
    sorted_indices, sorted_vectors : (2, P), (3, P) outputs
    switch : (2, P) output
        f and f'/r.
    """
    limit = cutoff * cutoff
    sides = 1 if full else 2
    width = cutoff - inner
    for p in range(first, last):
        x, y, z = vectors[p, 0], vectors[p, 1], vectors[p, 2]
        r2 = x * x + y * y + z * z
        if r2 <= limit:
            f = 1.0
            f_slope = 0.0
            if r2 > inner * inner and width > 0.0:
                # quintic with vanishing first and second derivatives at both ends
                r = np.sqrt(r2)
                t = (r - inner) / width
                f = 1.0 - t * t * t * (10.0 - 15.0 * t + 6.0 * t * t)
                f_slope = -30.0 * t * t * (1.0 - t) * (1.0 - t) / (width * r)
            for side in range(sides):
                i, j = indices[p, side], indices[p, 1 - side]
                sign = 1.0 - 2.0 * side
                group = i * n_species + slots[j]
                q = places[group]
                places[group] = q + 1
                sorted_indices[0, q] = i
                sorted_indices[1, q] = j
                sorted_vectors[0, q] = sign * x
                sorted_vectors[1, q] = sign * y
                sorted_vectors[2, q] = sign * z
                switch[0, q] = f
                switch[1, q] = f_slope


@njit(
    "void(int64, int64, int64[:, ::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[:, ::1])",
    **LEAN,
)
def collect(
    first: int, last: int, indices: Any, vectors: Any, gradients: Any, positions: Any, strain: Any
) -> None:
    """Add gradients of the pairs ``first`` to ``last`` to the neighbours, subtract them from the centres, in order.

    Parameters
    ----------
    indices, vectors, gradients : (2, P), (3, P), (3, P) arrays
    positions, strain : (N, 3), (3, 3) arrays, zero on entry
    """
    for p in range(first, last):
        i, j = indices[0, p], indices[1, p]
        for a in range(3):
            g = gradients[a, p]
            positions[j, a] += g
            positions[i, a] -= g
            strain[0, a] += vectors[0, p] * g
            strain[1, a] += vectors[1, p] * g
            strain[2, a] += vectors[2, p] * g


__all__ = ["collect", "count_pairs", "place_pairs"]
