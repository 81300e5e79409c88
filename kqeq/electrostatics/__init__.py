"""Coulomb interaction of Gaussian charges and dipoles: open, slab and fully periodic."""

from __future__ import annotations

from kqeq.electrostatics.base import Electrostatics
from kqeq.electrostatics.ewald import DEFAULT_ACCURACY, EwaldCoulomb
from kqeq.electrostatics.gaussian import OpenCoulomb
from kqeq.structures import Structure
from kqeq.typing import FloatArray


def coulomb(
    structure: Structure, sigma: FloatArray, *, dipoles: bool = False, accuracy: float = DEFAULT_ACCURACY
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
    accuracy : float
        Largest error of an element of the interaction matrix, in units of k_e/Å; open boundaries
        are always exact.

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
    if not structure.periodic:
        return OpenCoulomb(structure.positions, sigma, dipoles=dipoles)
    return EwaldCoulomb(
        structure.positions, sigma, structure.cell, structure.pbc, dipoles=dipoles, accuracy=accuracy
    )


__all__ = ["DEFAULT_ACCURACY", "Electrostatics", "EwaldCoulomb", "OpenCoulomb", "coulomb"]
