"""Regularised nonlinear least squares: accumulate normal equations, step, never let the loss rise.

    loss(u) = ½ |u|² + ½ Σ r(u)²,    r = (y − ŷ(u)) / σ

One iteration accumulates H = Σ JᵀJ + 1 and b = Σ Jᵀr − u over the frames and solves (H + λ diag H) Δ = b.
λ = 0 is the Gauss–Newton step; it is tried first, and λ grows only when the loss would rise (Levenberg 1944;
Marquardt 1963; damping update after Nielsen 1999, IMM-REP-1999-05).  Problems that are linear in u need the
first step only.

**Linear parameters.**  The short-range energy is linear in its parameters, the electrostatic energy quadratic in
those of the electronegativity.  A plain Gauss–Newton step changes both at once, and the quadratic change, eV against
a tolerance of meV, spoils the step.  So every trial step is judged after the linear parameters have been solved for
again (variable projection; Golub & Pereyra 1973, *SIAM J. Numer. Anal.* 10, 413): their block of H is constant, the
extra work is one product with rows that are cached, and long valleys are crossed in a few steps.

Dimensions: P parameters, n rows of one frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from kqeq.linalg import factorise, solve_lower
from kqeq.typing import FloatArray

CHUNK_ROWS = 2048
"""Rows of Jacobian that are collected before they are multiplied into the normal equations."""


class LeastSquaresProblem(Protocol):
    """What the solver asks of a fit."""

    size: int
    linear: bool
    linear_columns: slice | None

    def rows(
        self, u: FloatArray, *, jacobian: Literal["none", "linear", "full"]
    ) -> Iterable[tuple[FloatArray, FloatArray | None]]:
        """Residuals (n,) and Jacobians of ŷ/σ, frame by frame: none, of the linear parameters, or (n, P)."""


@dataclass(frozen=True)
class Iteration:
    """One line of the convergence table.

    Attributes
    ----------
    number : int
    loss : float
        Before the step.
    decrement : float
        Decrease of the loss that the quadratic model promises for the full Gauss–Newton step.
    damping : float
        λ of the accepted step.
    accepted : bool
        Whether a step that lowers the loss was found.
    """

    number: int
    loss: float
    decrement: float
    damping: float
    accepted: bool


@dataclass(frozen=True, eq=False)
class Solution:
    """Result of a fit.

    Attributes
    ----------
    u : (P,) array
    loss : float
    lower : (P, P) array
        Cholesky factor of H at ``u``: the posterior covariance is H⁻¹.
    iterations : tuple of Iteration
    converged : bool
    n_residuals : int
    """

    u: FloatArray
    loss: float
    lower: FloatArray
    iterations: tuple[Iteration, ...]
    converged: bool
    n_residuals: int


@dataclass(eq=False)
class NormalEquations:
    """H = Σ JᵀJ + 1, b = Σ Jᵀr − u and the loss at u."""

    hessian: FloatArray
    rhs: FloatArray
    loss: float
    n_residuals: int


def accumulate(problem: LeastSquaresProblem, u: FloatArray) -> NormalEquations:
    """Sum the contributions of all frames; memory does not depend on their number."""
    hessian = np.eye(problem.size)
    rhs = -u.copy()
    loss = 0.5 * float(u @ u)
    count = 0
    pending: list[FloatArray] = []
    waiting = 0

    def flush() -> None:
        nonlocal waiting, hessian
        if pending:
            stacked = np.concatenate(pending) if len(pending) > 1 else pending[0]
            hessian += stacked.T @ stacked
            pending.clear()
            waiting = 0

    for residual, jacobian in problem.rows(u, jacobian="full"):
        assert jacobian is not None
        rhs += jacobian.T @ residual
        loss += 0.5 * float(residual @ residual)
        count += len(residual)
        pending.append(jacobian)
        waiting += len(residual)
        if waiting >= CHUNK_ROWS:
            flush()
    flush()
    return NormalEquations(hessian, rhs, loss, count)


def project_linear(
    problem: LeastSquaresProblem, u: FloatArray, lower: FloatArray | None
) -> tuple[FloatArray, float]:
    """Solve for the linear parameters at the given others; ``lower`` factors their block of H.

    Returns
    -------
    (P,) array, float
        Parameters with the linear ones at their optimum, and the loss there.
    """
    columns = problem.linear_columns
    loss = 0.5 * float(u @ u)
    if columns is None or lower is None:
        for residual, _ in problem.rows(u, jacobian="none"):
            loss += 0.5 * float(residual @ residual)
        return u, loss
    rhs = -u[columns]
    for residual, jacobian in problem.rows(u, jacobian="linear"):
        assert jacobian is not None
        loss += 0.5 * float(residual @ residual)
        rhs += jacobian.T @ residual
    step = _solve(lower, rhs)
    result = u.copy()
    result[columns] += step
    return result, loss - 0.5 * float(rhs @ step)


def _factor(hessian: FloatArray) -> FloatArray:
    return factorise(
        hessian,
        "the matrix of the normal equations",
        "labels or noise levels span too many orders of magnitude: check units, and raise the smallest noise",
    )


def _solve(lower: FloatArray, rhs: FloatArray) -> FloatArray:
    return solve_lower(lower, solve_lower(lower, rhs), transposed=True)


def minimise(
    problem: LeastSquaresProblem,
    u: FloatArray,
    *,
    max_iterations: int = 30,
    tolerance: float = 1e-3,
    negligible: float = 1e-3,
    report: Callable[[Iteration], None] = lambda _: None,
) -> Solution:
    """Minimise the loss from ``u``.

    Parameters
    ----------
    problem : LeastSquaresProblem
    u : (P,) array
        Start.
    max_iterations : int
    tolerance : float
        Converged when the promised decrease of the loss falls below ``tolerance`` of the loss; the decrease
        is ½ bᵀH⁻¹b, the gradient measured in its own metric.
    negligible : float
        Or below this much per parameter: with 1e-3 the remaining step is a few hundredths of the posterior
        standard deviation of each parameter.  A nearly undamped step that gains no more than this ends the
        iteration as well.
    report : callable
        Called after every iteration.
    """
    iterations: list[Iteration] = []
    damping, growth = 0.0, 2.0
    converged = False
    equations = accumulate(problem, u)
    lower = _factor(equations.hessian)
    columns = problem.linear_columns
    linear_lower = None if columns is None else _factor(equations.hessian[columns, columns])
    for number in range(max_iterations):
        newton = _solve(lower, equations.rhs)
        decrement = 0.5 * float(equations.rhs @ newton)
        if problem.linear:
            # the quadratic model is exact, and H does not depend on u
            iterations.append(Iteration(number, equations.loss, decrement, 0.0, True))
            report(iterations[-1])
            return Solution(
                u + newton,
                equations.loss - decrement,
                lower,
                tuple(iterations),
                True,
                equations.n_residuals,
            )
        if decrement <= max(tolerance * equations.loss, negligible * problem.size):
            converged = True
            iterations.append(Iteration(number, equations.loss, decrement, damping, True))
            report(iterations[-1])
            break
        diagonal = np.diagonal(equations.hessian)
        step, accepted = newton, False
        for _ in range(40):
            if damping > 0.0:
                damped = equations.hessian + damping * np.diag(diagonal)
                step = _solve(_factor(damped), equations.rhs)
            promised = float(step @ equations.rhs) - 0.5 * float(step @ (equations.hessian @ step))
            trial, trial_loss = project_linear(problem, u + step, linear_lower)
            actual = equations.loss - trial_loss
            if actual > 1e-4 * promised:
                accepted = True
                break
            damping = max(1e-3, damping * growth) if damping > 0.0 else 1e-3
            growth = min(growth * 2.0, 64.0)
        iterations.append(Iteration(number, equations.loss, decrement, damping, accepted))
        report(iterations[-1])
        if not accepted:
            break
        gain = actual / promised
        damping *= max(1.0 / 9.0, 1.0 - (2.0 * gain - 1.0) ** 3)
        damping = 0.0 if damping < 1e-6 else damping
        growth = 2.0
        u = trial
        equations = accumulate(problem, u)
        lower = _factor(equations.hessian)
        if damping < 1e-3 and actual <= max(tolerance * equations.loss, negligible * problem.size):
            # a nearly free step that gained next to nothing: what the quadratic model still promises is not there
            converged = True
            decrement = 0.5 * float(equations.rhs @ _solve(lower, equations.rhs))
            iterations.append(Iteration(number + 1, equations.loss, decrement, damping, True))
            report(iterations[-1])
            break
    return Solution(u, equations.loss, lower, tuple(iterations), converged, equations.n_residuals)


__all__ = [
    "Iteration",
    "LeastSquaresProblem",
    "NormalEquations",
    "Solution",
    "accumulate",
    "minimise",
    "project_linear",
]
