"""Dense linear algebra: factor once, solve often, and say what was done to a matrix.

Dimensions: n unknowns, k constraints, c right-hand sides.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular

from kqeq.errors import NotPositiveDefiniteError, NumericsWarning
from kqeq.typing import FloatArray


def factorise(matrix: FloatArray, what: str, remedy: str) -> FloatArray:
    """Lower Cholesky factor of a symmetric positive definite matrix.

    Parameters
    ----------
    matrix : (n, n) array
    what, remedy : str
        Completes the message of the error.

    Raises
    ------
    NotPositiveDefiniteError
        If the matrix is indefinite, singular to working precision, or not finite.
    """
    lower = _cholesky(matrix)
    if lower is None:
        raise NotPositiveDefiniteError(f"{what} is not positive definite; {remedy}")
    return lower


def _cholesky(matrix: FloatArray) -> FloatArray | None:
    """Lower factor, or None where there is none; LAPACK lets NaN pass."""
    try:
        lower = np.asarray(cholesky(matrix, lower=True, check_finite=False))
    except np.linalg.LinAlgError:
        return None
    return lower if np.isfinite(np.diagonal(lower)).all() else None


def factorise_with_jitter(
    matrix: FloatArray, what: str, *, relative: float = 1e-10, limit: float = 1e-4
) -> tuple[FloatArray, float]:
    """Cholesky factor of a kernel matrix plus the least jitter, in steps of ten, that it needs.

    Parameters
    ----------
    matrix : (n, n) array
        Symmetric positive semidefinite up to rounding.
    what : str
        Names the matrix in messages.
    relative : float
        First jitter, relative to the mean of the diagonal.
    limit : float
        Largest jitter, relative to the mean of the diagonal.

    Returns
    -------
    (n, n) array, float
        Lower factor L with L Lᵀ = matrix + jitter·1, and the jitter.

    Raises
    ------
    NotPositiveDefiniteError
        If even the largest jitter does not help: then the matrix is no kernel matrix.

    Warns
    -----
    NumericsWarning
        If more than the first jitter was needed.
    """
    scale = float(np.mean(np.diagonal(matrix)))
    share = relative
    while scale > 0.0 and share <= 1.001 * limit:  # the powers of ten are not exact
        jitter = share * scale
        shifted = matrix.copy()
        shifted[np.diag_indices_from(shifted)] += jitter
        lower = _cholesky(shifted)
        if lower is None:
            share *= 10.0
            continue
        if share > 1.5 * relative:
            warnings.warn(
                f"{what} is nearly singular; {share:.0e} of its mean diagonal was added "
                f"(more than the usual {relative:.0e}). Fewer representatives would do.",
                NumericsWarning,
                stacklevel=2,
            )
        return lower, jitter
    raise NotPositiveDefiniteError(
        f"{what} is not positive semidefinite: even a diagonal shift of {limit:.0e} of its mean does not help; "
        "the kernel is not a valid covariance for these environments, or holds NaN"
    )


def solve_lower(lower: FloatArray, rhs: FloatArray, *, transposed: bool = False) -> FloatArray:
    """Solve L x = rhs (or Lᵀ x = rhs) for a lower triangular L, rhs of shape (n,) or (n, c)."""
    return np.asarray(
        solve_triangular(lower, rhs, lower=True, trans="T" if transposed else "N", check_finite=False)
    )


@dataclass(frozen=True, eq=False)
class ConstrainedMinimum:
    """The quadratic problem  min_y bᵀy + ½ yᵀHy  subject to  Sᵀy = Q,  factored once.

    With a = H⁻¹S and C = Sᵀa the solution is y = s Q − R b, where

        s = a C⁻¹,   R = H⁻¹ − a C⁻¹ aᵀ,   E = ½ QᵀKQ + QᵀsᵀB − ½ bᵀRb,   K = C⁻¹

    (theory section 1).  Where H is positive definite only on Sᵀy = 0, H + βSSᵀ is factored instead;
    s and R stay the same and K loses β.

    Attributes
    ----------
    lower : (n, n) array
        Cholesky factor of H + βSSᵀ.
    constraints : (n, k) array
        S.
    shape : (n, k) array
        s, the change of y with the constrained totals.
    stiffness : (k, k) array
        K = ∂²E/∂Q².
    """

    lower: FloatArray
    constraints: FloatArray
    shape: FloatArray
    stiffness: FloatArray

    @classmethod
    def build(
        cls, hessian: FloatArray, constraints: FloatArray, *, shift: bool, what: str, remedy: str
    ) -> ConstrainedMinimum:
        """Factor the problem.

        Parameters
        ----------
        hessian : (n, n) array
            H, symmetric.
        constraints : (n, k) array
            S, of full column rank.
        shift : bool
            Whether H may be indefinite across the constraints (slabs): then β is chosen large
            against H's entries.
        what, remedy : str
            Completes the error message.

        Raises
        ------
        NotPositiveDefiniteError
            If there is no minimum.
        """
        beta = 0.0
        lower = None
        if shift:
            # how large is large enough depends on how H couples the constraints to the rest
            across = constraints @ constraints.T
            scale = float(np.abs(hessian).max()) / float(np.abs(across).max())
            for factor in (2.0, 2e2, 2e4):
                beta = factor * scale
                lower = _cholesky(hessian + beta * across)
                if lower is not None:
                    break
            else:
                raise NotPositiveDefiniteError(f"{what} is not positive definite; {remedy}")
        else:
            lower = factorise(hessian, what, remedy)
        a = np.asarray(cho_solve((lower, True), constraints, check_finite=False))
        stiffness = np.linalg.inv(constraints.T @ a)
        return cls(lower, constraints, a @ stiffness, stiffness - beta * np.eye(constraints.shape[1]))

    def respond(self, block: FloatArray) -> FloatArray:
        """R @ block for a block of shape (n,) or (n, c): minus the change of y with b."""
        free = np.asarray(cho_solve((self.lower, True), block, check_finite=False))
        return free - self.shape @ (self.constraints.T @ free)

    def solve(self, linear: FloatArray, totals: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The minimum for b = ``linear`` (n,) and Q = ``totals`` (k,).

        Returns
        -------
        (n,) array, (k,) array
            y, and ∂E/∂Q.
        """
        y = self.shape @ totals - self.respond(linear)
        return y, self.stiffness @ totals + self.shape.T @ linear


__all__ = ["ConstrainedMinimum", "factorise", "factorise_with_jitter", "solve_lower"]
