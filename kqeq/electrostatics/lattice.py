"""Choices that a lattice sum needs: splitting parameter, cutoffs, reciprocal vectors, the cell of a slab."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kqeq.electrostatics.unknowns import checked_cell
from kqeq.errors import InputError, UnsupportedError
from kqeq.typing import BoolArray, FloatArray, IntArray


@dataclass(frozen=True)
class Costs:
    """What the parts of a lattice sum cost, measured on one core.

    Attributes
    ----------
    pair : float
        Seconds for one real-space pair: search, radial function, scatter, gradient.
    product : float
        Seconds for one element of the matrix and one reciprocal vector (cosine and sine, half the matrix).
    phase : float
        Seconds for the cosine and sine of one atom and one reciprocal vector.
    """

    pair: float
    product: float
    phase: float


ARRAY_COSTS = Costs(pair=2.0e-7, product=1.3e-10, phase=3.0e-8)
"""Of array code."""

COMPILED_COSTS = Costs(pair=4.0e-8, product=6.0e-11, phase=3.0e-9)
"""Of compiled loops on the host, with neighbours that are searched once in ten or twenty steps."""

_BOND = 2.5
"""Å.  A gap wider than this between a slab and its image along an open axis is taken for vacuum."""

_VACUUM = 8.0
"""Å.  An empty layer thicker than this along a periodic axis is taken for vacuum."""


KEPT_VECTORS = 50_000
"""Reciprocal vectors of a cell up to which they are kept for the next structure in it."""

SPAN_STEP = 0.5
"""Heights of slabs are rounded up to multiples of this, Å."""

MAX_VECTORS = 3e8
"""Candidates for reciprocal vectors beyond which an Ewald sum is refused; minutes and gigabytes."""


@dataclass(frozen=True)
class Splitting:
    """How an Ewald sum is divided between real and reciprocal space.

    Attributes
    ----------
    kappa : float
        Splitting parameter, 1/Å: a Gaussian of standard deviation 1/(√2 κ) is summed in reciprocal
        space, the rest in real space.
    r_cut : float
        Real-space cutoff, Å.
    k_cut : float
        Largest reciprocal vector, 1/Å.
    """

    kappa: float
    r_cut: float
    k_cut: float


def choose_splitting(
    atoms: int,
    volume: float,
    sigma_max: float,
    *,
    accuracy: float,
    dipoles: bool,
    kappa: float | None = None,
    costs: Costs = ARRAY_COSTS,
) -> Splitting:
    """Splitting parameter that balances the cost of both sums, and the cutoffs that the accuracy asks for.

    The number of pairs goes with κ⁻³ and that of reciprocal vectors with κ³; where their costs are
    equal the sum is lowest.  κ never exceeds 1/(2 σ_max): beyond, the widest Gaussians, not κ, would set
    the real-space cutoff and nothing would be won.

    Parameters
    ----------
    atoms : int
        N.
    volume : float
        Å³.
    sigma_max : float
        Widest Gaussian, Å.
    accuracy : float
        Largest error of an element of the matrix and of its gradient, in units of k_e/Å (and the same
        number per Å for each derivative, the order of dipoles included).
    dipoles : bool
        Their interaction has two more derivatives, which converge later.
    kappa : float, optional
        Overrides the choice (results do not depend on it).
    costs : Costs

    Returns
    -------
    Splitting

    Raises
    ------
    InputError
        For an accuracy outside 1e-14 to 0.1, or κ ≤ 0.
    """
    if not 1e-14 <= accuracy <= 0.1:
        raise InputError(
            f"accuracy is an error in units of k_e/Å between 1e-14 and 0.1, got {accuracy}; 1e-9 suits nearly all uses"
        )
    narrowest = 1.0 / (2.0 * sigma_max)
    if kappa is None:
        # K = V (2κs)³/(12π²) vectors in the half space, 2πs³N²/(3Vκ³) pairs.
        per_vector = costs.product + costs.phase / atoms
        balanced = math.sqrt(math.pi) * (costs.pair / per_vector) ** (1 / 6) / volume ** (1 / 3)
        # Pairs are stored: no more of them than a fraction of the elements of the matrix.
        frugal = (8.0 * math.pi * _tail(accuracy) ** 3 / (3.0 * volume)) ** (1 / 3) if atoms > 1000 else 0.0
        kappa = min(max(balanced, frugal), narrowest)
    elif not (math.isfinite(kappa) and kappa > 0.0):
        raise InputError(f"the splitting parameter kappa is a positive inverse length in 1/Å, got {kappa}")
    order = 3 if dipoles else 1
    decay = min(kappa, narrowest)

    def real_error(s: float) -> float:
        single, shells = decay / s, 2.0 * math.pi / (volume * decay**2)
        return math.erfc(s) * max(single, shells) * max(1.0, 2.0 * decay * s) ** order

    def reciprocal_error(s: float) -> float:
        shells = 2.0 * kappa / math.sqrt(math.pi) * math.erfc(s)
        single = 4.0 * math.pi / volume * math.exp(-s * s) / (2.0 * kappa * s) ** 2
        return max(shells, single) * max(1.0, 2.0 * kappa * s) ** order

    return Splitting(
        kappa=kappa,
        r_cut=_smallest(real_error, 0.2 * accuracy) / decay,
        k_cut=_smallest(reciprocal_error, 0.2 * accuracy) * 2.0 * kappa,
    )


def _tail(accuracy: float) -> float:
    """Rough s with erfc(s) = accuracy."""
    return math.sqrt(max(1.0, -math.log(accuracy)))


def _smallest(error: Callable[[float], float], target: float) -> float:
    """Argument s at which an error, large for small s and then decaying, reaches its target."""
    low, high = 0.5, 8.0
    while high - low > 1e-3:
        middle = 0.5 * (low + high)
        if error(middle) < target:
            high = middle
        else:
            low = middle
    return high


def reciprocal_vectors(cell: FloatArray, k_cut: float) -> tuple[IntArray, FloatArray]:
    """Reciprocal vectors 0 < |G| ≤ k_cut of one half space (G or −G, not both); those of the last cells are kept.

    Returns
    -------
    (K, 3) int array
        Miller indices.
    (K, 3) array
        G in 1/Å.

    Raises
    ------
    InputError
        For a cell so elongated or skewed that more than :data:`MAX_VECTORS` would have to be looked at.
    """
    rows = np.ascontiguousarray(cell, dtype=np.float64)
    many = abs(np.linalg.det(rows)) * k_cut**3 > KEPT_VECTORS * 12.0 * np.pi**2
    return (_vectors_of.__wrapped__ if many else _vectors_of)(rows.tobytes(), float(k_cut))


@lru_cache(maxsize=8)
def _vectors_of(rows: bytes, k_cut: float) -> tuple[IntArray, FloatArray]:
    """:func:`reciprocal_vectors` of a cell as bytes; not to be written to."""
    cell = np.frombuffer(rows).reshape(3, 3)
    limits = np.floor(k_cut * np.linalg.norm(cell, axis=1) / (2.0 * np.pi))
    if np.prod(2.0 * limits + 1.0) > MAX_VECTORS:
        raise InputError(
            f"the Ewald sum of the cell {np.round(cell, 3).tolist()} would look at {np.prod(2.0 * limits + 1.0):.1e} "
            "reciprocal vectors: the cell is too elongated or too skewed; check atoms.cell (in Å?), and use its "
            "Niggli-reduced form (ase.build.niggli_reduce)"
        )
    limits = limits.astype(int)
    basis = 2.0 * np.pi * np.linalg.inv(cell).T
    h = np.arange(0, limits[0] + 1)
    k = np.arange(-limits[1], limits[1] + 1)
    kept_indices, kept_vectors = [], []
    for m in range(-limits[2], limits[2] + 1):
        indices = np.stack(np.broadcast_arrays(h[:, None], k[None, :], m), axis=-1).reshape(-1, 3)
        first, second, third = indices.T
        half = (first > 0) | ((first == 0) & ((second > 0) | ((second == 0) & (third > 0))))
        vectors = indices @ basis
        keep = half & (np.einsum("ka,ka->k", vectors, vectors) <= k_cut * k_cut)
        kept_indices.append(indices[keep])
        kept_vectors.append(vectors[keep])
    found = np.concatenate(kept_indices).astype(np.int64), np.concatenate(kept_vectors)
    for array in found:
        array.flags.writeable = False
    return found


def slab_cell(
    positions: FloatArray, cell: FloatArray, pbc: BoolArray, sigma_max: float, accuracy: float
) -> tuple[FloatArray, int]:
    """A three-dimensional cell for a slab, high enough for its images not to be felt.

    The third vector is the surface normal times a length that does not depend on what the user put there.  With
    the correction for the mean field (:mod:`kqeq.electrostatics.background`) what remains of the
    images at a distance d decays as exp(−G d), G the shortest in-plane reciprocal vector, so the
    empty layer is chosen as the d where that is below the accuracy (and where the Gaussians of
    neighbouring images no longer overlap).

    Parameters
    ----------
    positions : (N, 3) array
        Å, not wrapped along the open axis.
    cell : (3, 3) array
    pbc : (3,) bool array
        Two periodic directions; any may be the open one.
    sigma_max : float
        Å.
    accuracy : float
        In units of k_e/Å.

    Returns
    -------
    (3, 3) array
        The cell with the row of the open axis replaced.
    int
        The open axis.

    Raises
    ------
    UnsupportedError
        With one periodic direction only.
    InputError
        Without area, or with the vacuum on a periodic axis.
    """
    periodic = np.flatnonzero(pbc)
    if len(periodic) == 1:
        raise UnsupportedError(
            f"one periodic direction (a wire or polymer, pbc={np.asarray(pbc).tolist()}) is not available. Set pbc "
            "to True in all three directions, with vacuum of a few times the diameter around the wire; for a wire "
            "without net charge and dipole across it the result converges quickly with that vacuum"
        )
    open_axis = int(np.flatnonzero(~np.asarray(pbc))[0])
    normal = np.cross(cell[periodic[0]], cell[periodic[1]])
    area = float(np.linalg.norm(normal))
    lengths = np.linalg.norm(cell[periodic], axis=1)
    if not np.isfinite(cell[periodic]).all() or not area > 1e-6 * lengths.prod():
        raise InputError(
            f"the periodic vectors {cell[periodic].tolist()} of the slab span no area; "
            "give two independent vectors, or set pbc to False along directions that do not repeat"
        )
    normal = normal / area
    height = positions @ normal
    span = float(height.max() - height.min())
    _refuse_misplaced_vacuum(positions, cell, periodic, open_axis, normal, span)
    # in steps, so that a slab whose atoms move keeps its cell, and what was tabulated for it
    span = SPAN_STEP * math.ceil(span / SPAN_STEP)
    shortest = _shortest_in_plane(cell[periodic], area)
    tail = max(1.0, math.log(24.0 * math.pi / (area * shortest * accuracy)))
    # The last derivative that is asked for brings G³.
    gap = (tail + 3.0 * math.log(max(1.0, shortest))) / shortest
    gap = max(gap, 2.0 * sigma_max * (_tail(accuracy) + 1.0) * math.sqrt(2.0))
    full = np.array(cell, dtype=np.float64)
    full[open_axis] = normal * (span + gap)
    return checked_cell(full), open_axis


def _shortest_in_plane(rows: FloatArray, area: float) -> float:
    """Length of the shortest reciprocal vector of a two-dimensional lattice.

    It is 2π/area times the shortest lattice vector (turned by 90°), found by Gauss reduction.
    """
    a, b = rows
    while True:
        if a @ a > b @ b:
            a, b = b, a
        shift = round(float(a @ b) / float(a @ a))
        if shift == 0:
            return 2.0 * math.pi * float(np.linalg.norm(a)) / area
        b = b - shift * a


def _refuse_misplaced_vacuum(
    positions: FloatArray,
    cell: FloatArray,
    periodic: IntArray,
    open_axis: int,
    normal: FloatArray,
    span: float,
) -> None:
    """Refuse a slab whose atoms fill the cell along the open axis and leave a periodic one empty."""
    height = abs(float(cell[open_axis] @ normal))
    if not (height > _BOND and height - span < _BOND):
        return
    full = np.array(cell, dtype=np.float64)
    full[open_axis] = normal
    fractional = positions @ np.linalg.inv(full)
    for axis in periodic:
        spacing = 1.0 / float(np.linalg.norm(np.linalg.inv(full)[:, axis]))
        places = np.sort(fractional[:, axis] % 1.0)
        gap = float(np.diff(np.append(places, places[0] + 1.0)).max()) * spacing
        if gap > _VACUUM:
            raise InputError(
                f"the vacuum of this slab ({gap:.1f} Å) lies along cell vector {int(axis)}, which is periodic, while "
                f"the atoms fill vector {open_axis}, which is open; the flags of pbc are probably in the wrong order"
            )


__all__ = [
    "ARRAY_COSTS",
    "COMPILED_COSTS",
    "Costs",
    "Splitting",
    "choose_splitting",
    "reciprocal_vectors",
    "slab_cell",
]
