"""Cartesian interaction tensors of Gaussian charges and dipoles, for any radial function.

All functions work element by element on pairs (i, j) with x = r_j − r_i given as three arrays of
one shape, and with the radial functions B_n of :mod:`kqeq.electrostatics.radial` (or any others
with B_{n+1} = −B_n′/r: Ewald's real-space part, the derivative with respect to the width).  The same
code therefore serves dense blocks of atoms and lists of neighbour pairs.

The interaction of a charge and dipole (q, d)_i with (q, d)_j is L_i R_j f(r_j − r_i) with
L_i = q_i + d_i·∂/∂r_i and R_j = q_j + d_j·∂/∂r_j.
"""

from __future__ import annotations

from collections.abc import Sequence

from kqeq.typing import Array

AXES = (0, 1, 2)

Vector = Sequence[Array]
"""Three arrays, the Cartesian components."""


def charge_dipole(x: Vector, b1: Array) -> list[Array]:
    """T_{i,jβ} = ∂f/∂r_jβ, one array for each β; the (dipole i, charge j) element is its negative."""
    minus = -b1
    return [x[beta] * minus for beta in AXES]


def dipole_dipole(x: Vector, b1: Array, b2: Array) -> dict[tuple[int, int], Array]:
    """D_{iα,jβ} = ∂²f/∂r_iα∂r_jβ = δ_αβ B_1 − x_α x_β B_2 for α ≤ β (it is symmetric)."""
    result = {}
    for alpha in AXES:
        scaled = x[alpha] * b2
        for beta in range(alpha, 3):
            value = -(scaled * x[beta])
            result[alpha, beta] = value + b1 if alpha == beta else value
    return result


def gradient_rows(
    x: Vector, radial: Sequence[Array], charge: Array, dipole: Vector | None
) -> list[list[Array]]:
    """∂/∂r_iα of L_i R_j f with L_i = (``charge``, ``dipole``) given, as coefficients of R_j.

    Parameters
    ----------
    x : three arrays
        r_j − r_i.
    radial : arrays
        B_0, B_1 (and B_2, B_3 with dipoles).
    charge, dipole
        Charge and dipole components of atom i, broadcastable to the pairs.

    Returns
    -------
    list over α of lists
        The coefficient of q_j and, with dipoles, of d_jx, d_jy, d_jz.
    """
    b1 = radial[1]
    if dipole is None:
        weight = charge * b1
        return [[x[alpha] * weight] for alpha in AXES]
    b2, b3 = radial[2], radial[3]
    along = dipole[0] * x[0] + dipole[1] * x[1] + dipole[2] * x[2]
    # −q f_α + d_β f_αβ
    central = charge * b1 + along * b2
    to_charge = [x[alpha] * central - dipole[alpha] * b1 for alpha in AXES]
    # −q f_αγ + d_β f_αβγ, symmetric in α and γ
    isotropic = charge * b1 + along * b2
    traceless = charge * b2 + along * b3
    to_dipole: dict[tuple[int, int], Array] = {}
    for alpha in AXES:
        for gamma in range(alpha, 3):
            value = (dipole[alpha] * x[gamma] + dipole[gamma] * x[alpha]) * b2 - x[alpha] * x[
                gamma
            ] * traceless
            to_dipole[alpha, gamma] = value + isotropic if alpha == gamma else value
    return [
        [to_charge[alpha], *(to_dipole[min(alpha, gamma), max(alpha, gamma)] for gamma in AXES)]
        for alpha in AXES
    ]


def potential_derivatives(
    x: Vector, radial: Sequence[Array], charge: Array, dipole: Vector | None
) -> tuple[list[Array], dict[tuple[int, int], Array]]:
    """First and second derivatives at r_i of the potential of the source (``charge``, ``dipole``) at r_j.

    Returns
    -------
    first : list of three arrays
        ∂/∂r_iα.
    second : dict of six arrays (empty without dipoles)
        ∂²/∂r_iα∂r_iβ for α ≤ β.
    """
    b1 = radial[1]
    if dipole is None:
        weight = charge * b1
        return [x[alpha] * weight for alpha in AXES], {}
    b2, b3 = radial[2], radial[3]
    along = dipole[0] * x[0] + dipole[1] * x[1] + dipole[2] * x[2]
    central = charge * b1 - along * b2
    first = [x[alpha] * central + dipole[alpha] * b1 for alpha in AXES]
    # q f_αβ + d_γ f_αβγ
    isotropic = along * b2 - charge * b1
    traceless = charge * b2 - along * b3
    second: dict[tuple[int, int], Array] = {}
    for alpha in AXES:
        for beta in range(alpha, 3):
            value = (dipole[alpha] * x[beta] + dipole[beta] * x[alpha]) * b2 + x[alpha] * x[beta] * traceless
            second[alpha, beta] = value + isotropic if alpha == beta else value
    return first, second


__all__ = ["AXES", "Vector", "charge_dipole", "dipole_dipole", "gradient_rows", "potential_derivatives"]
