"""How charges follow potentials: the part in which charge models differ.

Every model here maps reference charges q0 and potentials b to charges,

    q = X q0 − R b,

with R symmetric, positive semidefinite and R1 = 0, and 1ᵀX = 1ᵀ: charge is conserved.  In QEq only the
totals of q0 (one per constraint) matter, X = s Sᵀ; in ACKS2 X = (1 + LA)⁻¹ and R = XL (theory sections 1, 6); where no
charge flows X = 1 and R = 0.
A is the Hessian of the energy of charges, with atomic dipoles eliminated where there are any.

Failures are described by the caller, who knows which matrix it is.

Dimensions: N atoms, k constraints, c columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from kqeq.backend import cho_solve, cholesky, inverse, namespace, to_float, zeros
from kqeq.backend.linalg import add_to_diagonal, factorise, solve_lower
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

    The minimum of bᵀq + ½ qᵀAq subject to Sᵀq = Q, factored once.  With a = A⁻¹S and C = Sᵀa the solution is
    q = s Q − R b with s = a C⁻¹ and R = A⁻¹ − a C⁻¹ aᵀ (theory section 1).  Where A is positive definite only on
    Sᵀq = 0, A + βSSᵀ is factored instead; s and R stay the same.

    Attributes
    ----------
    lower : (N, N) array
        Cholesky factor of A + βSSᵀ.
    constraints : (N, k) array
        S.
    shape : (N, k) array
        s, the change of q with the constrained totals.
    """

    lower: Array
    constraints: Array
    shape: Array

    @classmethod
    def build(cls, hessian: Array, constraints: Array, *, shift: bool) -> ConstrainedCore:
        """Factor.

        Parameters
        ----------
        hessian : (N, N) array
            A.
        constraints : (N, k) array
            S, of full column rank.
        shift : bool
            Whether A may be indefinite across the constraints (slabs): then β is chosen large against A's entries.

        Raises
        ------
        NotPositiveDefiniteError
            If there is no minimum.
        """
        lower = _shifted_factor(hessian, constraints) if shift else factorise(hessian)
        a = cho_solve(lower, constraints)
        return cls(lower, constraints, a @ inverse(constraints.T @ a))

    def place(self, reference: Array) -> Array:
        """S (Sᵀ reference)."""
        return self.shape @ (self.constraints.T @ reference)

    def respond(self, block: Array) -> Array:
        """R @ block."""
        free = cho_solve(self.lower, block)
        return free - self.shape @ (self.constraints.T @ free)


def _shifted_factor(hessian: Array, constraints: Array) -> Array:
    """Cholesky factor of A + βSSᵀ; how large β must be depends on how A couples the constraints to the rest."""
    across = constraints @ constraints.T
    xp = namespace(hessian)
    scale = to_float(xp.max(xp.abs(hessian))) / to_float(xp.max(xp.abs(across)))
    for factor in (2.0, 2e2):
        lower = cholesky(hessian + factor * scale * across)
        if lower is not None:
            return lower
    return factorise(hessian + 2e4 * scale * across)


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
    def build(cls, hessian: Array, laplacian: Any, *, shift: bool) -> SplitChargeCore:
        """Factor.

        Parameters
        ----------
        hessian : (N, N) array
            A.
        laplacian : (N, N) array, sparse or not
        shift : bool
            Whether A may be indefinite on 1 (slabs): A + β11ᵀ serves as well, because L1 = 0.

        Raises
        ------
        NotPositiveDefiniteError
            If A is not positive definite (for slabs: on neutral charges).
        """
        matrix = hessian
        if shift:
            xp = namespace(hessian)
            matrix = hessian + 2.0 * to_float(xp.max(xp.abs(hessian)))
        lower = factorise(matrix)
        # L of large systems is sparse: the second product, with a dense triangle, is the only costly one
        inner = add_to_diagonal(lower.T @ (laplacian @ lower), 1.0)
        return cls(lower, factorise(inner), laplacian)

    def place(self, reference: Array) -> Array:
        """C⁻ᵀ B⁻¹ Cᵀ @ reference."""
        middle = cho_solve(self.inner, self.lower.T @ reference)
        return solve_lower(self.lower, middle, transposed=True)

    def respond(self, block: Array) -> Array:
        """R @ block = X (L @ block)."""
        return self.place(self.laplacian @ block)


@dataclass(frozen=True)
class FixedCore:
    """Latent charges: none moves."""

    def place(self, reference: Array) -> Array:
        """The reference charges, in an array of their own."""
        return namespace(reference).asarray(reference, copy=True)

    def respond(self, block: Array) -> Array:
        """Zero."""
        return zeros(block.shape, block)


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
    def build(cls, hessian: Array, atoms: int) -> DipoleElimination:
        """Eliminate the dipoles from the (4N, 4N) Hessian of charges and dipoles.

        Raises
        ------
        NotPositiveDefiniteError
            If D is not positive definite: the polarization catastrophe.
        """
        lower = factorise(hessian[atoms:, atoms:])
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


__all__ = [
    "ConstrainedCore",
    "Core",
    "DipoleElimination",
    "FixedCore",
    "SplitChargeCore",
]
