"""Regularised nonlinear least squares: accumulate normal equations, step, never let the loss rise.

    loss(u) = prior(u) + ½ Σ r(u)²,    r = (y − ŷ(u)) / σ

One iteration accumulates the quadratic model of the loss over the frames
(:mod:`kqeq.fitting.least_squares.equations`), in the simplest case H = Σ JᵀJ + 1 and b = Σ Jᵀr − u, and solves
(H + λ diag H) Δ = b.  λ = 0 is the Gauss–Newton step; it is tried first, and λ grows only when the loss would rise
(Levenberg 1944; Marquardt 1963; damping update after Nielsen 1999, IMM-REP-1999-05).  Problems that are linear in u need
the first step only.

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
from itertools import pairwise
from typing import Literal, Protocol

import numpy as np

from kqeq.backend import asarray_like, blas, namespace, to_float, to_numpy, zeros
from kqeq.errors import NotPositiveDefiniteError
from kqeq.fitting.least_squares.equations import (
    CONDITION_LIMIT,
    Equations,
    NormalEquations,
    Prior,
    Sums,
    TriangularEquations,
    push,
    solve,
)
from kqeq.typing import Array, FloatArray

JacobianKind = Literal["none", "linear", "full"]
"""Which Jacobian is asked for: none, that of the linear parameters, or that of all."""

SumKind = Literal["none", "linear", "full", "triangle"]
"""What is summed over frames: the loss; with it the gradient of the linear parameters; everything in one of the two forms
of :mod:`kqeq.fitting.least_squares.equations`."""

CHUNK_ROWS = 2048
"""Rows of Jacobian that are collected before they are multiplied into the normal equations."""


class LeastSquaresProblem(Protocol):
    """What the solver asks of a fit."""

    @property
    def size(self) -> int:
        """Number of parameters P."""

    @property
    def linear(self) -> bool:
        """Whether every label is linear in all parameters."""

    @property
    def linear_columns(self) -> slice | None:
        """Parameters that every label depends on linearly."""

    def rows(self, u: FloatArray, *, jacobian: JacobianKind) -> Iterable[tuple[Array, Array | None]]:
        """Residuals (n,) and Jacobians of ŷ/σ, frame by frame: none, of the linear parameters, or (n, P).

        On any device; sums stay there.
        """


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
    condition : float
        Estimated condition number of the (scaled) normal equations.
    method : {"cholesky", "qr"}
        How they were solved.
    """

    number: int
    loss: float
    decrement: float
    damping: float
    accepted: bool
    condition: float = 1.0
    method: str = "cholesky"


@dataclass(frozen=True, eq=False)
class SolverState:
    """Enough to continue a minimisation as if it had not been interrupted.

    Attributes
    ----------
    u : (P,) array
        Parameters after the last accepted step.
    damping : float
    iterations : tuple of Iteration
        The convergence table so far.
    """

    u: FloatArray
    damping: float
    iterations: tuple[Iteration, ...]


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


class Engine(Protocol):
    """How the sums over frames are done: here and now, or in parallel."""

    def __call__(self, problem: LeastSquaresProblem, u: FloatArray, what: SumKind) -> Sums:
        """Contribution of all frames."""


def sum_frames(problem: LeastSquaresProblem, u: FloatArray, what: SumKind) -> Sums:
    """Sum the contributions of all frames one after another; memory does not depend on their number."""
    size = problem.size
    total = Sums(None, None, 0.0, 0)
    loss: Array = 0.0
    pending: list[tuple[Array, Array]] = []
    waiting = 0

    def flush() -> None:
        nonlocal waiting
        if not pending:
            return
        xp = namespace(pending[0][0])
        stacked = xp.concat([rows for rows, _ in pending]) if len(pending) > 1 else pending[0][0]
        with blas.all_threads():
            if what == "full":
                if total.hessian is None:
                    total.hessian = zeros((size, size), stacked)
                total.hessian += stacked.T @ stacked
            else:
                residuals = xp.concat([residual for _, residual in pending])
                if total.triangle is None:
                    total.triangle = zeros((size + 1, size + 1), stacked)
                total.triangle = push(total.triangle, xp.concat([stacked, residuals[:, None]], axis=1))
        pending.clear()
        waiting = 0

    for residual, rows in problem.rows(u, jacobian="full" if what == "triangle" else what):
        loss = loss + 0.5 * (residual @ residual)
        total.n_residuals += int(residual.shape[0])
        if rows is None:
            continue
        if what != "triangle":
            contribution = rows.T @ residual
            total.rhs = contribution if total.rhs is None else total.rhs + contribution
        if what in ("full", "triangle"):
            pending.append((rows, residual))
            waiting += int(residual.shape[0])
            if waiting >= CHUNK_ROWS:
                flush()
    flush()
    if what == "full" and total.hessian is None:  # no labels at all
        total.hessian = np.zeros((size, size))
    total.loss = to_float(loss)
    return total


def accumulate(
    problem: LeastSquaresProblem,
    u: FloatArray,
    engine: Engine = sum_frames,
    prior: Prior | None = None,
    solver: str = "auto",
) -> Equations:
    """The quadratic model of the loss at u: all frames and the prior.

    Parameters
    ----------
    problem : LeastSquaresProblem
    u : (P,) array
    engine : callable
    prior : Prior, optional
        N(0, 1) by default.
    solver : {"auto", "cholesky", "qr"}
        ``auto`` accumulates again for QR if the normal equations turn out to be ill-conditioned.

    Raises
    ------
    NotPositiveDefiniteError
        If rounding makes H indefinite and QR is not allowed, or if something is not finite.
    """
    prior = Prior.standard(problem.size) if prior is None else prior
    if solver != "qr":
        try:
            equations = NormalEquations(engine(problem, u, "full"), prior, u)
        except NotPositiveDefiniteError:
            if solver != "auto":
                raise
        else:
            if solver != "auto" or equations.condition < CONDITION_LIMIT:
                return equations
    return TriangularEquations(engine(problem, u, "triangle"), prior, u)


def project_linear(
    problem: LeastSquaresProblem,
    u: FloatArray,
    lower: Array | None,
    engine: Engine = sum_frames,
    prior: Prior | None = None,
) -> tuple[FloatArray, float]:
    """Solve for the linear parameters at the given others; ``lower`` factors their block of H.

    Returns
    -------
    (P,) array, float
        Parameters with the linear ones at their optimum, and the loss there.
    """
    prior = Prior.standard(problem.size) if prior is None else prior
    columns = problem.linear_columns
    if columns is None or lower is None:
        return u, engine(problem, u, "none").loss + prior.value(u)
    sums = engine(problem, u, "linear")
    assert sums.rhs is not None
    rhs = to_numpy(sums.rhs) - prior.gradient(u)[columns]
    step = to_numpy(solve(lower, asarray_like(rhs, lower)))
    result = u.copy()
    result[columns] += step
    return result, sums.loss + prior.value(u) - 0.5 * float(rhs @ step)


def _stalled(losses: list[float], patience: int | None, small: float) -> bool:
    """Whether each of the last steps gained next to nothing."""
    if patience is None or len(losses) <= patience:
        return False
    return all(before - after <= small for before, after in pairwise(losses[-patience - 1 :]))


def minimise(
    problem: LeastSquaresProblem,
    u: FloatArray,
    *,
    max_iterations: int = 30,
    tolerance: float = 1e-3,
    negligible: float = 1e-3,
    engine: Engine = sum_frames,
    state: SolverState | None = None,
    checkpoint: Callable[[SolverState], None] = lambda _: None,
    report: Callable[[Iteration], None] = lambda _: None,
    step_factor: Callable[[FloatArray], float] = lambda _: 1.0,
    limited: int | None = None,
    patience: int | None = None,
    prior: Prior | None = None,
    solver: str = "auto",
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
    engine : callable
        Does the sums over frames.
    state : SolverState, optional
        Where an interrupted minimisation stood; continues from there and ignores ``u``.
    checkpoint : callable
        Called with the state after every step that was taken.
    report : callable
        Called after every iteration.
    step_factor : callable
        How much of a step may be taken, at most 1: for parameters that predictions depend on exponentially.
    limited : int, optional
        Where these parameters begin, to the end of u: the others then take the step that is best for what is left of
        theirs.  Without it the whole step is shortened.
    patience : int, optional
        Converged as well after this many steps in a row, damped or not, that each gained less than the two limits
        above: parameters that compensate each other leave curved valleys whose floor is flat but endless.
    prior : Prior, optional
        N(0, 1) by default.
    solver : {"auto", "cholesky", "qr"}
        See :func:`accumulate`; once ``auto`` has turned to QR it stays there.
    """
    iterations: list[Iteration] = []
    damping = 0.0
    if state is not None:
        u, damping, iterations = state.u, state.damping, list(state.iterations)
    prior = Prior.standard(problem.size) if prior is None else prior
    if solver == "auto" and iterations and iterations[-1].method == "qr":
        solver = "qr"
    growth = 2.0
    converged = False

    def note(number: int, decrement: float, accepted: bool) -> None:
        iterations.append(
            Iteration(
                number,
                equations.loss,
                decrement,
                damping,
                accepted,
                equations.condition,
                equations.method,
            )
        )
        report(iterations[-1])

    equations = accumulate(problem, u, engine, prior, solver)
    columns = problem.linear_columns
    linear_lower = None if columns is None else equations.block(columns)
    for number in range(len(iterations), max_iterations):
        newton, decrement = equations.step(0.0), equations.decrement()
        if problem.linear:
            # the quadratic model is exact, and H does not depend on u
            note(number, decrement, True)
            return Solution(
                u + newton,
                equations.loss - decrement,
                equations.lower,
                tuple(iterations),
                True,
                equations.n_residuals,
            )
        small = max(tolerance * equations.loss, negligible * problem.size)
        losses = [iteration.loss for iteration in iterations] + [equations.loss]
        if decrement <= small or _stalled(losses, patience, small):
            converged = True
            note(number, decrement, True)
            break
        step, accepted = newton, False
        for _ in range(40):
            if damping > 0.0:
                step = equations.step(damping)
            factor = step_factor(step)
            if factor < 1.0 and limited is not None:
                # the others follow: scaled down as well, they would hardly move at all
                step = equations.step(damping, factor * step[limited:])
            else:
                step = factor * step
            promised = equations.promised(step)
            try:
                trial, trial_loss = project_linear(problem, u + step, linear_lower, engine, prior)
            except NotPositiveDefiniteError:
                trial, trial_loss = u, np.inf  # a charge problem without a minimum: too long a step
            actual = equations.loss - trial_loss
            if actual > 1e-4 * promised:
                accepted = True
                break
            damping = max(1e-3, damping * growth) if damping > 0.0 else 1e-3
            growth = min(growth * 2.0, 64.0)
        note(number, decrement, accepted)
        if not accepted:
            break
        gain = actual / promised
        damping *= max(1.0 / 9.0, 1.0 - (2.0 * gain - 1.0) ** 3)
        damping = 0.0 if damping < 1e-6 else damping
        growth = 2.0
        u = trial
        checkpoint(SolverState(u, damping, tuple(iterations)))
        if solver == "auto":
            solver = "auto" if equations.method == "cholesky" else "qr"
        equations = accumulate(problem, u, engine, prior, solver)
        if (
            factor == 1.0
            and damping < 1e-3
            and actual <= max(tolerance * equations.loss, negligible * problem.size)
        ):
            # a nearly free step that gained next to nothing: what the quadratic model still promises is not there
            converged = True
            note(number + 1, equations.decrement(), True)
            break
    return Solution(u, equations.loss, equations.lower, tuple(iterations), converged, equations.n_residuals)


__all__ = [
    "Engine",
    "Iteration",
    "JacobianKind",
    "LeastSquaresProblem",
    "Solution",
    "SolverState",
    "SumKind",
    "accumulate",
    "minimise",
    "project_linear",
    "sum_frames",
]
