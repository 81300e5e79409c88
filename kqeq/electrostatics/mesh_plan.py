"""Planning of a particle-mesh sum: splitting, cutoff, spline order and mesh from the requested accuracy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kqeq.backend import namespace, to_numpy
from kqeq.electrostatics.ewald import lattice_of
from kqeq.errors import InputError, UnsupportedError
from kqeq.typing import Array, BoolArray, FloatArray

DEFAULT_ACCURACY = 1e-7
"""Largest error asked of an element of the interaction matrix, in units of k_e/Å."""

_PAIRS_PER_ATOM = 100
"""Stored pairs per atom that balance real space (once per geometry, then a sparse product) and mesh."""

_SPLINE_COST = 2.5e-9
"""Seconds to spread to, and gather from, one mesh point of one atom."""

_FFT_COST = 1.5e-9
"""Seconds for one mesh point and one power of two of its number, both transforms together."""


_SKIN = 3.0
"""Å added to the extent of a cluster or slab for the volume that its atoms fill."""

MAX_MESH = 1 << 28
"""Largest number of mesh points: 2 GB for one real array of them."""


@dataclass(frozen=True)
class MeshParameters:
    """How a particle-mesh sum is set up.

    Attributes
    ----------
    kappa : float
        Splitting parameter, 1/Å.
    r_cut : float
        Real-space cutoff, Å.
    order : int
        Points p of a B-spline along each axis.
    shape : tuple of three
        Mesh.
    """

    kappa: float
    r_cut: float
    order: int
    shape: tuple[int, int, int]


def interpolation_error(kappa: float, spacing: float, order: int, derivatives: int) -> float:
    """Estimated error of an element of the smooth part of the matrix, in units of k_e/Å^(1+derivatives).

    A wave of f = G h/2π periods per mesh spacing h is represented with a relative error 2 (f/(1 − f))ᵖ,
    most of it in the wave of 1 − f periods; waves beyond f = ½ are lost.  Summed over the waves of
    erf(κ r)/r along each of three axes and at both ends of a pair.  Against Ewald sums the estimate is
    two to five times too large.
    """
    from scipy.special import exp1

    fractions = (np.arange(400) + 0.5) / 800.0
    g = 2.0 * np.pi * fractions / spacing
    alias = 2.0 * np.pi * (1.0 - fractions) / spacing
    amplitude = exp1(g**2 / (4.0 * kappa**2)) / np.pi
    relative = 2.0 * (fractions / (1.0 - fractions)) ** order
    grown = np.maximum(1.0, alias) ** derivatives
    represented = float((amplitude * relative * grown).sum() * (g[1] - g[0]))
    nyquist = np.pi / spacing
    lost = (
        2.0
        * kappa
        / math.sqrt(math.pi)
        * math.erfc(nyquist / (2.0 * kappa))
        * max(1.0, nyquist) ** derivatives
    )
    return 6.0 * represented + lost


def choose_mesh(
    atoms: int,
    density: float,
    lengths: FloatArray,
    sigma_max: float,
    *,
    accuracy: float,
    dipoles: bool,
    padding: float = 0.0,
) -> MeshParameters:
    """Splitting parameter, cutoff, spline order and mesh for the requested accuracy at the lowest cost.

    The cutoff holds a fixed number of pairs per atom, so that the cost grows with N (times log N); it is the
    mesh that the accuracy refines.

    Parameters
    ----------
    atoms : int
        N.
    density : float
        Atoms per Å³ where there are any.
    lengths : (3,) array
        Lengths of the lattice vectors, Å.
    sigma_max : float
        Widest Gaussian, Å.
    accuracy : float
        Largest error of an element of the matrix, in units of k_e/Å.
    dipoles : bool
    padding : float
        How many real-space cutoffs the cell is lengthened by along each axis (open boundaries).

    Raises
    ------
    InputError
        For an accuracy outside 1e-12 to 0.1.
    """
    if not 1e-12 <= accuracy <= 0.1:
        raise InputError(
            f"accuracy is an error in units of k_e/Å between 1e-12 and 0.1 for the mesh, got {accuracy}; "
            "1e-7 suits nearly all uses"
        )
    derivatives = 2 if dipoles else 0
    narrowest = 1.0 / (2.0 * sigma_max)
    r_cut = math.cbrt(3.0 * _PAIRS_PER_ATOM / (2.0 * math.pi * density))

    def tail(s: float) -> float:
        kappa = min(s / r_cut, narrowest)
        volume_sum = 2.0 * math.pi * density / atoms / kappa**2
        return math.erfc(s) * max(kappa / s, volume_sum) * max(1.0, 2.0 * kappa * s) ** (derivatives + 1)

    s = 1.0
    while tail(s) > 0.3 * accuracy:
        s += 0.01
    kappa = min(s / r_cut, narrowest)
    r_cut = float(s / kappa)
    lengths = lengths + padding * r_cut
    candidates = []
    for order in (4, 6, 8, 10, 12):
        spacing = _widest_spacing(kappa, order, derivatives, 0.3 * accuracy)
        candidates.append(MeshParameters(kappa, r_cut, order, mesh_shape(lengths, spacing)))
    return min(candidates, key=lambda candidate: mesh_cost(atoms, candidate))


@lru_cache(maxsize=64)
def _chosen(
    atoms: int,
    density: float,
    lengths: tuple[float, ...],
    sigma_max: float,
    accuracy: float,
    dipoles: bool,
    padding: float,
) -> MeshParameters:
    """:func:`choose_mesh`, kept: the search takes ten milliseconds."""
    return choose_mesh(
        atoms,
        density,
        np.array(lengths),
        sigma_max,
        accuracy=accuracy,
        dipoles=dipoles,
        padding=padding,
    )


def mesh_cost(atoms: int, parameters: MeshParameters) -> float:
    """Estimated seconds on one core for one product with the smooth part of the matrix."""
    points = math.prod(parameters.shape)
    return _SPLINE_COST * atoms * parameters.order**3 + _FFT_COST * points * math.log2(points)


def _widest_spacing(kappa: float, order: int, derivatives: int, target: float) -> float:
    """Largest mesh spacing, within 1 %, whose estimated error stays below the target."""
    low, high = 1e-3 / kappa, 10.0 / kappa
    while high > 1.01 * low:
        middle = math.sqrt(low * high)
        if interpolation_error(kappa, middle, order, derivatives) < target:
            low = middle
        else:
            high = middle
    return low


def mesh_shape(lengths: FloatArray, spacing: float) -> tuple[int, int, int]:
    """Numbers of mesh points that give at most ``spacing`` and have small prime factors."""
    from scipy.fft import next_fast_len

    first, second, third = (
        int(next_fast_len(max(4, math.ceil(float(length) / spacing)), real=True)) for length in lengths
    )
    return first, second, third


@dataclass(frozen=True)
class MeshPlan:
    """Everything that a particle-mesh sum of one geometry needs to know beforehand.

    Attributes
    ----------
    cell : (3, 3) array
        The cell of the mesh.
    open_axis : int or None
        The open axis of a slab.
    reach : float or None
        Open boundaries: distance at which the Coulomb interaction is truncated, Å.
    parameters : MeshParameters
    """

    cell: FloatArray
    open_axis: int | None
    reach: float | None
    parameters: MeshParameters


def plan_mesh(
    positions: Array,
    sigma: Array,
    cell: Array | None,
    pbc: BoolArray,
    *,
    accuracy: float,
    dipoles: bool,
) -> MeshPlan:
    """Cell and parameters for a geometry, in any boundary conditions but one periodic direction.

    For open boundaries the truncated interaction has to reach across the cluster, R = diagonal of its box,
    and the cell has to be long enough that images are out of reach, box + R; both plus a cutoff for the
    Gaussian tails.

    Raises
    ------
    InputError, UnsupportedError
        See :class:`kqeq.electrostatics.mesh.MeshCoulomb`.
    """
    xp = namespace(positions)
    atoms = positions.shape[0]
    extent = to_numpy(xp.max(positions, axis=0) - xp.min(positions, axis=0))
    diagonal = float(np.linalg.norm(extent))
    open_axis = None
    padding = 0.0
    full = np.zeros((3, 3))
    if pbc.any():
        full, open_axis = lattice_of(positions, sigma, cell, pbc, accuracy)
        lengths = np.linalg.norm(full, axis=1)
        occupied = abs(float(np.linalg.det(full)))
        if open_axis is not None:
            normal = full[open_axis] / lengths[open_axis]
            occupied *= (float(np.ptp(to_numpy(positions) @ normal)) + _SKIN) / float(lengths[open_axis])
    else:
        lengths, padding = extent + diagonal, 2.0
        occupied = float(np.prod(extent + _SKIN))
    parameters = _chosen(
        atoms,
        atoms / occupied,
        tuple(lengths.tolist()),
        float(xp.max(sigma)),
        accuracy,
        dipoles,
        padding,
    )
    if math.prod(parameters.shape) > MAX_MESH:
        raise UnsupportedError(
            f"a mesh of {parameters.shape} points would be needed, more than {MAX_MESH:.1e}; elongated or "
            "sparse systems are better served by OpenCoulomb (open) or EwaldCoulomb (periodic)"
        )
    if pbc.any():
        return MeshPlan(full, open_axis, None, parameters)
    reach = diagonal + parameters.r_cut
    return MeshPlan(np.diag(lengths + padding * parameters.r_cut), None, reach, parameters)


__all__ = [
    "DEFAULT_ACCURACY",
    "MeshParameters",
    "MeshPlan",
    "choose_mesh",
    "interpolation_error",
    "mesh_cost",
    "plan_mesh",
]
