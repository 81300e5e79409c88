"""Linear algebra: factor once, solve often, say what was done to a matrix; conjugate gradients without one.

Everything works in the array library, and on the device, of its arguments.

Dimensions: n unknowns, c right-hand sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from kqeq.backend import cholesky, namespace, solve_triangular, to_float
from kqeq.errors import ConvergenceError, NotPositiveDefiniteError, NumericsWarning, warn
from kqeq.typing import Array


@contextmanager
def described(what: str, remedy: str) -> Iterator[None]:
    """Say of which matrix a factorisation or iteration inside has failed, and what to do about it.

    Parameters
    ----------
    what, remedy : str
        Subject and end of the message.
    """
    try:
        yield
    except NotPositiveDefiniteError:
        raise NotPositiveDefiniteError(f"{what} is not positive definite; {remedy}") from None
    except ConvergenceError as error:
        raise ConvergenceError(str(error).replace("the equations were", f"{what} was", 1)) from None


def factorise(matrix: Array, what: str = "the matrix", remedy: str = "", *, overwrite: bool = False) -> Array:
    """Lower Cholesky factor of a symmetric positive definite matrix.

    Parameters
    ----------
    matrix : (n, n) array
    what, remedy : str
        Complete the message of the error, unless the caller does so with :func:`described`.
    overwrite : bool
        Whether the factor may take the place of the matrix.

    Raises
    ------
    NotPositiveDefiniteError
        If the matrix is indefinite, singular to working precision, or not finite.
    """
    lower = cholesky(matrix, overwrite=overwrite)
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
            warn(
                f"{what} is nearly singular; {share:.0e} of its mean diagonal was added "
                f"(more than the usual {relative:.0e}). Fewer representatives would do.",
                NumericsWarning,
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
        resisting = project(image + own * direction)
        curvature = step @ resisting
        # lengths stay on the device; two numbers an iteration are read: whether to go on, and whether that makes sense
        if not to_float(curvature) > 0.0:
            raise NotPositiveDefiniteError("the matrix is not positive definite")
        length = squared / curvature
        z += length * step
        slope += length * image
        residual -= length * resisting
        move = flow(residual)
        largest = to_float(xp.max(xp.abs(move)))
        squared, before = residual @ move, squared
        direction = residual + (squared / before) * direction
        step = move + (squared / before) * step
    if largest <= tolerance:
        return z, slope
    raise ConvergenceError(
        f"the equations were not solved in {max_iterations} iterations: the estimated error is {largest:.1e}, and "
        f'{tolerance:.1e} was asked for. Choose a larger accuracy=, or solver="dense" if the matrix fits into memory'
    )


def ritz_range(
    product: Callable[[Array], Array],
    start: Array,
    flow: Callable[[Array], Array],
    project: Callable[[Array], Array],
    *,
    steps: int,
) -> tuple[float, float]:
    """Smallest and largest Ritz value of F H after some steps: estimates, from inside, of its extreme eigenvalues.

    The coefficients of conjugate gradients are those of Lanczos' tridiagonal matrix (Golub & Van Loan, *Matrix
    Computations*, 11.3).

    Parameters
    ----------
    product, flow, project
        H, F and the projection of :func:`conjugate_gradients`.
    start : (n,) array
        A vector with a part along every eigenvector; not zero after the projection.
    steps : int
        Products with H at most.
    """
    residual = project(start)
    move = flow(residual)
    squared = residual @ move
    direction = move
    first, diagonal, beside = to_float(squared), [], []
    ratio = length = 0.0
    for _ in range(steps):
        image = project(product(direction))
        before, shift = length, ratio
        length = to_float(squared) / to_float(direction @ image)
        diagonal.append(1.0 / length + (shift / before if before else 0.0))
        residual = residual - length * image
        move = flow(residual)
        squared, old = residual @ move, to_float(squared)
        ratio = to_float(squared) / old
        if to_float(squared) <= 1e-20 * first:
            break
        beside.append(ratio**0.5 / length)
        direction = move + ratio * direction
    inner = beside[: len(diagonal) - 1]
    values = np.linalg.eigvalsh(np.diag(diagonal) + np.diag(inner, 1) + np.diag(inner, -1))
    return float(values[0]), float(values[-1])


def chebyshev(
    product: Callable[[Array], Array],
    residual: Array,
    flow: Callable[[Array], Array],
    project: Callable[[Array], Array],
    *,
    spectrum: tuple[float, float],
    steps: int,
) -> Array:
    """Approximate solution of H z = r as a fixed polynomial of F H, by Chebyshev iteration; ``steps`` − 1 products.

    Other than that of conjugate gradients, it is a linear and symmetric function of r.  Where the eigenvalues λ of F H
    lie within the spectrum (a, b), its error is at most 1/T((b + a)/(b − a)) of the solution, T the Chebyshev polynomial
    of degree ``steps``; for an odd degree the error is smaller than the solution up to λ = a + b.
    (Saad, *Iterative Methods for Sparse Linear Systems*, algorithm 12.1.)

    Parameters
    ----------
    product, flow, project
        H, F and the projection of :func:`conjugate_gradients`.
    residual : (n,) array
        r.
    spectrum : (float, float)
        a and b.
    steps : int
        Degree of the polynomial of the error.
    """
    low, high = spectrum
    middle, half = 0.5 * (high + low), 0.5 * (high - low)
    residual = project(residual)
    move = flow(residual) / middle
    solution, ratio = move, half / middle
    for _ in range(steps - 1):
        residual = project(residual - product(move))
        before, ratio = ratio, 1.0 / (2.0 * middle / half - ratio)
        move = (ratio * before) * move + (2.0 * ratio / half) * flow(residual)
        solution = solution + move
    return solution


__all__ = [
    "add_to_diagonal",
    "chebyshev",
    "conjugate_gradients",
    "described",
    "factorise",
    "factorise_with_jitter",
    "ritz_range",
    "solve_lower",
]
