"""How charges follow potentials: the part in which charge models differ.

Every model here maps reference charges q0 and potentials b to charges,

    q = X q0 − R b,

with R symmetric, positive semidefinite and R1 = 0, and 1ᵀX = 1ᵀ: charge is conserved.  In QEq only the
totals of q0 (one per constraint) matter, X = s Sᵀ; in ACKS2 X = (1 + LA)⁻¹ and R = XL (theory sections 1, 6).
A is the Hessian of the energy of charges, with atomic dipoles eliminated where there are any.

Dimensions: N atoms, k constraints, c columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from kqeq.backend import cho_solve, namespace, to_float
from kqeq.backend.linalg import ConstrainedMinimum, add_to_diagonal, factorise, solve_lower
from kqeq.constants import COULOMB
from kqeq.typing import Array


class Core(Protocol):
    """Charges as a linear function of reference charges and potentials."""

    def place(self, reference: Array) -> Array:
        """X @ reference, (N,) or (N, c)."""

    def respond(self, block: Array) -> Array:
        """R @ block, (N,) or (N, c)."""


@dataclass(frozen=True, eq=False)
class ConstrainedCore:
    """QEq: charge moves freely within each constraint.

    Attributes
    ----------
    minimum : ConstrainedMinimum
    """

    minimum: ConstrainedMinimum

    @classmethod
    def build(
        cls, hessian: Array, constraints: Array, *, shift: bool, what: str, remedy: str
    ) -> ConstrainedCore:
        """Factor; see :meth:`kqeq.backend.linalg.ConstrainedMinimum.build`."""
        return cls(ConstrainedMinimum.build(hessian, constraints, shift=shift, what=what, remedy=remedy))

    def place(self, reference: Array) -> Array:
        """S (Sᵀ reference) with the shape functions S."""
        return self.minimum.shape @ (self.minimum.constraints.T @ reference)

    def respond(self, block: Array) -> Array:
        """R @ block."""
        return self.minimum.respond(block)


@dataclass(frozen=True, eq=False)
class SplitChargeCore:
    """ACKS2: charge flows along pairs of atoms of finite softness.

    With A = CCᵀ the matrix B = 1 + CᵀLC is symmetric with eigenvalues of at least 1 for any softness,
    and X = C⁻ᵀ B⁻¹ Cᵀ: exactly the identity where nothing is soft.

    Attributes
    ----------
    lower : (N, N) array
        C, lower triangular.
    inner : (N, N) array
        Cholesky factor of B.
    laplacian : (N, N) array, sparse or not
        L.
    """

    lower: Array
    inner: Array
    laplacian: Any

    @classmethod
    def build(cls, hessian: Array, laplacian: Any, *, shift: bool, what: str, remedy: str) -> SplitChargeCore:
        """Factor.

        Parameters
        ----------
        hessian : (N, N) array
            A.
        laplacian : (N, N) array, sparse or not
        shift : bool
            Whether A may be indefinite on 1 (slabs): A + β11ᵀ serves as well, because L1 = 0.
        what, remedy : str
            Completes the error message.

        Raises
        ------
        NotPositiveDefiniteError
            If A is not positive definite (for slabs: on neutral charges).
        """
        matrix = hessian
        if shift:
            xp = namespace(hessian)
            matrix = hessian + 2.0 * to_float(xp.max(xp.abs(hessian)))
        lower = factorise(matrix, what, remedy)
        # L of large systems is sparse: the second product, with a dense triangle, is the only costly one
        inner = add_to_diagonal(lower.T @ (laplacian @ lower), 1.0)
        return cls(lower, factorise(inner, what, remedy), laplacian)

    def place(self, reference: Array) -> Array:
        """C⁻ᵀ B⁻¹ Cᵀ @ reference."""
        middle = cho_solve(self.inner, self.lower.T @ reference)
        return solve_lower(self.lower, middle, transposed=True)

    def respond(self, block: Array) -> Array:
        """R @ block = X (L @ block)."""
        return self.place(self.laplacian @ block)


@dataclass(frozen=True, eq=False)
class DipoleElimination:
    """Atomic dipoles follow the charges: d = −D⁻¹(b_d + Tᵀq).

    Attributes
    ----------
    atoms : int
        N.
    lower : (3N, 3N) array
        Cholesky factor of D.
    follow : (3N, N) array
        Y = D⁻¹Tᵀ.
    hessian : (N, N) array
        A − T Y, the Hessian of the charges with the dipoles at their minimum.
    """

    atoms: int
    lower: Array
    follow: Array
    hessian: Array

    @classmethod
    def build(cls, hessian: Array, atoms: int, what: str, remedy: str) -> DipoleElimination:
        """Eliminate the dipoles from the (4N, 4N) Hessian of charges and dipoles.

        Raises
        ------
        NotPositiveDefiniteError
            If D is not positive definite: the polarization catastrophe.
        """
        lower = factorise(hessian[atoms:, atoms:], what, remedy)
        mixed = hessian[atoms:, :atoms]
        half = solve_lower(lower, mixed)
        follow = solve_lower(lower, half, transposed=True)
        return cls(atoms, lower, follow, hessian[:atoms, :atoms] - half.T @ half)

    def reduce(self, linear: Array) -> Array:
        """Potentials that the charges feel once the dipoles have followed: (4N, c) to (N, c)."""
        return linear[: self.atoms, ...] - self.follow.T @ linear[self.atoms :, ...]

    def expand(self, charges: Array, linear: Array) -> Array:
        """Charges and the dipoles that go with them, (4N, c)."""
        free = cho_solve(self.lower, linear[self.atoms :, ...])
        return namespace(charges).concat([charges, -free - self.follow @ charges])


def self_interaction(width: Array) -> Array:
    """k_e/(6√π σ³), the self interaction of each dipole component, eV/(e²·Å²)."""
    return COULOMB / (6.0 * math.sqrt(math.pi)) / width**3


def self_interaction_slope(width: Array) -> Array:
    """Its derivative with respect to σ."""
    return -3.0 * self_interaction(width) / width


__all__ = [
    "ConstrainedCore",
    "Core",
    "DipoleElimination",
    "SplitChargeCore",
    "self_interaction",
    "self_interaction_slope",
]
