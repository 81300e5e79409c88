"""Linear algebra: factor once, solve often, say what was done to a matrix; conjugate gradients without one.

Dimensions: n unknowns, k constraints, c right-hand sides.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular

from kqeq.errors import ConvergenceError, NotPositiveDefiniteError, NumericsWarning
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


def conjugate_gradients(
    product: Callable[[FloatArray], FloatArray],
    linear: FloatArray,
    start: FloatArray,
    flow: Callable[[FloatArray], FloatArray],
    own: FloatArray,
    project: Callable[[FloatArray], FloatArray],
    *,
    tolerance: float,
    max_iterations: int,
    what: str,
    remedy: str,
) -> tuple[FloatArray, FloatArray]:
    """Minimise bᵀz + ½ zᵀHz + ½ wᵀ(own ∘ Fw) over z = z0 + Fw by conjugate gradients in w.

    With ``own`` zero, these are the usual conjugate gradients on H with the preconditioner F, which may project:
    then z − z0 stays in its range.  In general the Hessian own ∘ F + F H F in w is preconditioned with F⁺, which is
    never needed: F is only ever applied.

    Parameters
    ----------
    product : function of (n,) returning (n,)
        v to H v.
    linear : (n,) array
        b.
    start : (n,) array
        z0.
    flow : function of (n,) returning (n,)
        F, symmetric and positive semidefinite on the range of ``project``.
    own : (n,) array
        Zeros and ones; F has to keep the two groups of unknowns apart.
    project : function of (n,) returning (n,)
        Takes out of a residual what F does not see.  Without it, that part stays as it is while the rest vanishes, and
        the rounding errors of F times it spoil the iteration.
    tolerance : float
        Bound on every element of F times the residual, an estimate of the error of z.
    max_iterations : int
    what, remedy : str
        Complete the messages of errors.

    Returns
    -------
    (n,) array, (n,) array
        z, and b + Hz.

    Raises
    ------
    NotPositiveDefiniteError
        If a direction of negative curvature turns up, or numbers that are not finite.
    ConvergenceError
        If the tolerance is not reached.
    """
    z = start.copy()
    slope = linear + product(z) if z.any() else linear.copy()
    residual = project(-slope)
    direction = residual.copy()
    move = flow(residual)
    squared = float(residual @ move)
    step = move.copy()
    largest = float(np.abs(move).max())
    for _ in range(max_iterations):
        if largest <= tolerance:
            return z, slope
        image = product(step)
        bent = project(image + own * direction)
        curvature = float(step @ bent)
        if not curvature > 0.0:
            raise NotPositiveDefiniteError(f"{what} is not positive definite; {remedy}")
        length = squared / curvature
        z += length * step
        slope += length * image
        residual -= length * bent
        move = flow(residual)
        largest = float(np.abs(move).max())
        squared, before = float(residual @ move), squared
        direction = residual + (squared / before) * direction
        step = move + (squared / before) * step
    if largest <= tolerance:
        return z, slope
    raise ConvergenceError(
        f"{what} was not solved in {max_iterations} iterations: the estimated error is {largest:.1e}, and "
        f'{tolerance:.1e} was asked for. Choose a larger accuracy=, or solver="dense" if the matrix fits into memory'
    )


__all__ = ["ConstrainedMinimum", "conjugate_gradients", "factorise", "factorise_with_jitter", "solve_lower"]
