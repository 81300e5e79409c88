"""Linear algebra: factor once, solve often, say what was done to a matrix; conjugate gradients without one.

Everything works in the array library, and on the device, of its arguments.

Dimensions: n unknowns, k constraints, c right-hand sides.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

from kqeq.backend import cho_solve, cholesky, eye, inverse, namespace, solve_triangular, to_float
from kqeq.errors import ConvergenceError, NotPositiveDefiniteError, NumericsWarning
from kqeq.typing import Array


def factorise(matrix: Array, what: str, remedy: str) -> Array:
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
    lower = cholesky(matrix)
    if lower is None:
        raise NotPositiveDefiniteError(f"{what} is not positive definite; {remedy}")
    return lower


def factorise_with_jitter(
    matrix: Array, what: str, *, relative: float = 1e-10, limit: float = 1e-4
) -> tuple[Array, float]:
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
    xp = namespace(matrix)
    scale = to_float(xp.mean(xp.linalg.diagonal(matrix)))
    share = relative
    while scale > 0.0 and share <= 1.001 * limit:  # the powers of ten are not exact
        jitter = share * scale
        lower = cholesky(add_to_diagonal(xp.asarray(matrix, copy=True), jitter))
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


def solve_lower(lower: Array, rhs: Array, *, transposed: bool = False) -> Array:
    """Solve L x = rhs (or Lᵀ x = rhs) for a lower triangular L, rhs of shape (n,) or (n, c)."""
    return solve_triangular(lower, rhs, transposed=transposed)


def add_to_diagonal(matrix: Array, values: Array | float) -> Array:
    """Add a number or a vector (n,) to the diagonal of a contiguous matrix (n, n), in place; returns the matrix."""
    xp = namespace(matrix)
    n = int(matrix.shape[0])
    flat = xp.reshape(matrix, (-1,))  # a view
    flat[:: n + 1] += values
    return xp.reshape(flat, (n, n))


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

    lower: Array
    constraints: Array
    shape: Array
    stiffness: Array

    @classmethod
    def build(
        cls, hessian: Array, constraints: Array, *, shift: bool, what: str, remedy: str
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
            xp = namespace(hessian)
            scale = to_float(xp.max(xp.abs(hessian))) / to_float(xp.max(xp.abs(across)))
            for factor in (2.0, 2e2, 2e4):
                beta = factor * scale
                lower = cholesky(hessian + beta * across)
                if lower is not None:
                    break
            else:
                raise NotPositiveDefiniteError(f"{what} is not positive definite; {remedy}")
        else:
            lower = factorise(hessian, what, remedy)
        a = cho_solve(lower, constraints)
        stiffness = inverse(constraints.T @ a)
        own = beta * eye(int(constraints.shape[1]), constraints)
        return cls(lower, constraints, a @ stiffness, stiffness - own)

    def respond(self, block: Array) -> Array:
        """R @ block for a block of shape (n,) or (n, c): minus the change of y with b."""
        free = cho_solve(self.lower, block)
        return free - self.shape @ (self.constraints.T @ free)

    def solve(self, linear: Array, totals: Array) -> tuple[Array, Array]:
        """The minimum for b = ``linear`` (n,) and Q = ``totals`` (k,).

        Returns
        -------
        (n,) array, (k,) array
            y, and ∂E/∂Q.
        """
        y = self.shape @ totals - self.respond(linear)
        return y, self.stiffness @ totals + self.shape.T @ linear


def conjugate_gradients(
    product: Callable[[Array], Array],
    linear: Array,
    start: Array,
    flow: Callable[[Array], Array],
    own: Array,
    project: Callable[[Array], Array],
    *,
    tolerance: float,
    max_iterations: int,
    what: str,
    remedy: str,
) -> tuple[Array, Array]:
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
    xp = namespace(linear)
    z = xp.asarray(start, copy=True)
    slope = linear + product(z) if bool(xp.any(z != 0.0)) else xp.asarray(linear, copy=True)
    residual = project(-slope)
    direction = xp.asarray(residual, copy=True)
    move = flow(residual)
    squared = residual @ move
    step = xp.asarray(move, copy=True)
    largest = to_float(xp.max(xp.abs(move)))
    for _ in range(max_iterations):
        if largest <= tolerance:
            return z, slope
        image = product(step)
        bent = project(image + own * direction)
        curvature = step @ bent
        # lengths stay on the device; two numbers an iteration are read: whether to go on, and whether that makes sense
        if not to_float(curvature) > 0.0:
            raise NotPositiveDefiniteError(f"{what} is not positive definite; {remedy}")
        length = squared / curvature
        z += length * step
        slope += length * image
        residual -= length * bent
        move = flow(residual)
        largest = to_float(xp.max(xp.abs(move)))
        squared, before = residual @ move, squared
        direction = residual + (squared / before) * direction
        step = move + (squared / before) * step
    if largest <= tolerance:
        return z, slope
    raise ConvergenceError(
        f"{what} was not solved in {max_iterations} iterations: the estimated error is {largest:.1e}, and "
        f'{tolerance:.1e} was asked for. Choose a larger accuracy=, or solver="dense" if the matrix fits into memory'
    )


__all__ = [
    "ConstrainedMinimum",
    "add_to_diagonal",
    "conjugate_gradients",
    "factorise",
    "factorise_with_jitter",
    "solve_lower",
]
