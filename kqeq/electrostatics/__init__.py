"""Coulomb interaction of Gaussian charges and dipoles: open, slab and fully periodic."""

from __future__ import annotations

from kqeq.backend import CPU, Device, asarray_like
from kqeq.electrostatics.base import Electrostatics
from kqeq.electrostatics.ewald import DEFAULT_ACCURACY, EwaldCoulomb
from kqeq.electrostatics.gaussian import OpenCoulomb
from kqeq.electrostatics.host import HostOpenCoulomb
from kqeq.electrostatics.mesh import MeshCoulomb
from kqeq.electrostatics.mesh_plan import DEFAULT_ACCURACY as DEFAULT_MESH_ACCURACY
from kqeq.electrostatics.mesh_plan import mesh_cost, plan_mesh
from kqeq.errors import UnsupportedError
from kqeq.frames.structures import Structure
from kqeq.typing import FloatArray

_DIRECT_COST = 3.0e-8
"""Seconds for one pair of atoms in a direct product with the matrix of an open system."""


def coulomb(
    structure: Structure,
    sigma: FloatArray,
    *,
    dipoles: bool = False,
    accuracy: float | None = None,
    matrix_free: bool = False,
    device: Device = CPU,
) -> Electrostatics:
    """Electrostatics of one structure with the boundary conditions that its ``pbc`` asks for.

    Parameters
    ----------
    structure : Structure
        No periodic direction: open boundaries; three: Ewald summation; two: slab.
    sigma : (N,) array
        Gaussian width of each atom, Å.
    dipoles : bool
        Whether each atom also carries a dipole.
    accuracy : float, optional
        Largest error of an element of the interaction matrix, in units of k_e/Å; by default 1e-9,
        or 1e-7 with ``matrix_free``.  Open boundaries with a matrix are always exact.
    matrix_free : bool
        The caller needs products with the matrix only: a particle mesh where that is faster.  What is returned then
        may refuse ``matrix()``.
    device : Device
        Where its arrays live.

    Returns
    -------
    Electrostatics

    Raises
    ------
    UnsupportedError
        For one periodic direction.
    InputError
        For NaN positions, widths that are not positive, a cell without volume, or a slab with the vacuum on a
        periodic axis.
    """
    positions, cell, pbc = structure.positions, structure.cell, structure.pbc
    mesh_pays = matrix_free and (structure.periodic or _mesh_pays(structure, sigma, dipoles, accuracy))
    positions, sigma = asarray_like(positions, device.like), asarray_like(sigma, device.like)
    if mesh_pays:
        fine = DEFAULT_MESH_ACCURACY if accuracy is None else accuracy
        return MeshCoulomb(positions, sigma, cell, pbc, dipoles=dipoles, accuracy=fine, structure=structure)
    if not structure.periodic:
        if device.is_host and not dipoles:
            return HostOpenCoulomb(positions, sigma)
        return OpenCoulomb(positions, sigma, dipoles=dipoles)
    fine = DEFAULT_ACCURACY if accuracy is None else accuracy
    return EwaldCoulomb(positions, sigma, cell, pbc, dipoles=dipoles, accuracy=fine, structure=structure)


def _mesh_pays(structure: Structure, sigma: FloatArray, dipoles: bool, accuracy: float | None) -> bool:
    """Whether a product over a mesh is faster than the direct one for a cluster in open boundaries."""
    atoms = len(structure)
    fine = DEFAULT_MESH_ACCURACY if accuracy is None else accuracy
    if atoms < 500:
        return False
    try:
        plan = plan_mesh(structure.positions, sigma, None, structure.pbc, accuracy=fine, dipoles=dipoles)
    except UnsupportedError:  # the mesh would be enormous: a long chain, a few far fragments
        return False
    return mesh_cost(atoms, plan.parameters) < _DIRECT_COST * atoms**2


__all__ = [
    "DEFAULT_ACCURACY",
    "DEFAULT_MESH_ACCURACY",
    "Electrostatics",
    "EwaldCoulomb",
    "MeshCoulomb",
    "OpenCoulomb",
    "coulomb",
]
