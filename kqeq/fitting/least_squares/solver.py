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

**Second order.**  JᵀJ lacks the terms r ∂²ŷ/∂u², and where residuals are large against the noise that is a good part
of the curvature: on 60 dipeptides with charges every step gained half of what it promised.  They are learned from
the steps themselves: the change of the gradient y along a step s corrects JᵀJ by the BFGS formula (limited memory,
:data:`MEMORY` pairs; Nocedal 1980, *Math. Comput.* 35, 773), with H of the current point in place of the multiple of
1 that usually starts the recursion.  That costs a few products of vectors an iteration.

Dimensions: P parameters, n rows of one frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, Protocol

import numpy as np

from kqeq.backend import blas, is_numpy, namespace, to_float, to_numpy, zeros
from kqeq.errors import NotPositiveDefiniteError
from kqeq.fitting.least_squares.equations import (
    Equations,
    Inverse,
    LinearBlock,
    Prior,
    Sums,
    TriangularEquations,
    equations_of,
    push,
)
from kqeq.fitting.least_squares.gram import Gram
from kqeq.fitting.least_squares.turning import Turn
from kqeq.typing import Array, FloatArray

JacobianKind = Literal["none", "linear", "full"]
"""Which Jacobian is asked for: none, that of the linear parameters, or that of all."""

SumKind = Literal["none", "linear", "border", "full", "triangle"]
"""What is summed over frames: the loss; with it the gradient of the linear parameters; the rows of H that are not theirs;
everything in one of the two forms of :mod:`kqeq.fitting.least_squares.equations`."""

CHUNK_ROWS = 2048
"""Rows of Jacobian that are collected before they are multiplied into the normal equations."""


MAX_ITERATIONS = 30

TOLERANCE = 1e-2
"""Promised decrease of the loss, relative to it, at which a minimisation has converged."""

NEGLIGIBLE = 1e-3
"""Promised decrease for each parameter, likewise."""

MEMORY = 5
"""Steps from which second-order terms are learned."""

LEAST_CURVATURE = 0.2
"""Least curvature along a step, relative to that of the normal equations, that is learned."""

LONGEST = 8.0
"""How far limits of steps may be stretched."""

SMALLEST_LIMITING = 1e-4
"""Damping from which on a step that is too long is damped more and more."""

PLAIN_FIRST = 3000
"""Parameters of a closed-form fit from which on plain normal equations are tried before turned ones."""

SPARE_ROWS = 512
"""Room for the rows of the frame that completes a block."""


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
    steps, slopes : (k, P) arrays
        Last steps s, and what they changed b = −∇loss by, −y; for the last step b before it.
    reach : float
        How many times further than ``step_factor`` says a step may go.
    free : int
        Nearly free steps in a row that gained next to nothing.
    """

    u: FloatArray
    damping: float
    iterations: tuple[Iteration, ...]
    steps: FloatArray | None = None
    slopes: FloatArray | None = None
    reach: float = 1.0
    free: int = 0


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

    def __call__(
        self, problem: LeastSquaresProblem, u: FloatArray, what: SumKind, turn: Turn | None = None
    ) -> Sums:
        """Contribution of all frames; with ``turn`` the normal equations are those of the turned parameters."""


def leading(problem: LeastSquaresProblem) -> int:
    """How many parameters are linear, if these come first and others follow; else 0."""
    columns = problem.linear_columns
    if columns is None or columns.start != 0 or columns.stop == problem.size:
        return 0
    return int(columns.stop)


class _Sum:
    """Contributions that grow frame by frame; rows are collected before they are multiplied."""

    def __init__(self, problem: LeastSquaresProblem, what: SumKind, turn: Turn | None = None) -> None:
        self.size, self.first, self.what, self.turn = problem.size, leading(problem), what, turn
        self.total = Sums(None, None, 0.0, 0)
        self.grams: dict[str, Gram] = {}
        self.pending: list[Array] = []
        self.residuals: list[Array] = []
        self.buffer: FloatArray | None = None
        self.waiting = 0
        self.loss: Array = 0.0

    def add(self, residual: Array, rows: Array | None) -> None:
        """Residuals (n,) and rows (n, P) of one frame."""
        self.loss = self.loss + 0.5 * (residual @ residual)
        self.total.n_residuals += int(residual.shape[0])
        if rows is None:
            return
        if self.what in ("none", "linear"):
            self._add_gradient(rows, residual)
            return
        if self.what == "triangle":
            rows = namespace(rows).concat([rows, residual[:, None]], axis=1)
        elif self.turn is None:
            self._add_gradient(rows, residual)
        else:
            self.residuals.append(residual)
        self._collect(rows)
        if self.waiting >= CHUNK_ROWS:
            self.flush()

    def _add_gradient(self, rows: Array, residual: Array) -> None:
        contribution = rows.T @ residual
        self.total.rhs = contribution if self.total.rhs is None else self.total.rhs + contribution

    def _collect(self, rows: Array) -> None:
        """Keep rows until there are enough; on the host side by side, in the same memory again and again."""
        count, width = (int(n) for n in rows.shape)
        if is_numpy(rows):
            if self.buffer is None or self.waiting + count > len(self.buffer):
                larger = np.empty((max(CHUNK_ROWS + SPARE_ROWS, self.waiting + count), width))
                if self.buffer is not None:
                    larger[: self.waiting] = self.buffer[: self.waiting]
                self.buffer = larger
            self.buffer[self.waiting : self.waiting + count] = rows
        else:
            self.pending.append(rows)
        self.waiting += count

    def flush(self) -> None:
        """Multiply what was collected."""
        if self.waiting == 0:
            return
        if self.buffer is not None:
            stacked = self.buffer[: self.waiting]
        elif len(self.pending) == 1:
            stacked = self.pending[0]
        else:
            stacked = namespace(self.pending[0]).concat(self.pending)
        if self.what == "triangle":
            if self.total.triangle is None:
                self.total.triangle = zeros((self.size + 1, self.size + 1), stacked)
            with blas.all_threads():
                self.total.triangle = push(self.total.triangle, stacked)
        else:
            if self.turn is not None:
                # products of turned rows: those of rows would lose the digits that turning is for
                stacked = self.turn.rows(stacked)
                self._add_gradient(stacked, namespace(stacked).concat(self.residuals))
                self.residuals.clear()
            for name, columns, first in self._blocks():
                if name not in self.grams:
                    self.grams[name] = Gram(columns, first, stacked)
                self.grams[name].add(stacked[:, :columns])
        self.pending.clear()
        self.waiting = 0

    def _blocks(self) -> list[tuple[str, int, int]]:
        """What is summed, how many columns take part, and the first row."""
        if self.first == 0:
            return [("hessian", self.size, 0)]
        border = ("border", self.size, self.first)
        return [border] if self.what == "border" else [("hessian", self.first, 0), border]

    def finish(self) -> Sums:
        """The sums."""
        self.flush()
        for name, gram in self.grams.items():
            setattr(self.total, name, gram.finish())
        if self.what in ("full", "border") and not self.grams:  # no labels at all
            for name, columns, first in self._blocks():
                setattr(self.total, name, np.zeros((columns - first, columns)))
        self.total.loss = to_float(self.loss)
        return self.total


def jacobian_of(what: SumKind) -> JacobianKind:
    """Which rows a sum needs."""
    return what if what in ("none", "linear") else "full"


def sum_rows(
    problem: LeastSquaresProblem,
    rows: Iterable[tuple[Array, Array | None]],
    what: SumKind,
    turn: Turn | None = None,
) -> Sums:
    """Sum rows of a problem one block after another."""
    total = _Sum(problem, what, turn)
    for residual, own in rows:
        total.add(residual, own)
    return total.finish()


def sum_frames(problem: LeastSquaresProblem, u: FloatArray, what: SumKind, turn: Turn | None = None) -> Sums:
    """Sum the contributions of all frames one after another; memory does not depend on their number."""
    return sum_rows(problem, problem.rows(u, jacobian=jacobian_of(what)), what, turn)


def accumulate(
    problem: LeastSquaresProblem,
    u: FloatArray,
    engine: Engine = sum_frames,
    prior: Prior | None = None,
    solver: str = "auto",
    linear: LinearBlock | None = None,
    turn: Turn | None = None,
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
    linear : LinearBlock, optional
        From equations at another point, with the same ``turn``: what concerns the linear parameters alone is not summed
        again.
    turn : Turn, optional
        Change of parameters in which ``auto`` sums the normal equations, where the prior's precision is 1.

    Raises
    ------
    NotPositiveDefiniteError
        If rounding makes H indefinite and QR is not allowed, or if something is not finite.
    """
    prior = Prior.standard(problem.size) if prior is None else prior
    if solver != "auto" or prior.lower is not None:
        turn = None
    if solver != "qr":
        what: SumKind = "full" if linear is None else "border"
        for own in _turns(problem, turn):
            try:
                sums = engine(problem, u, what) if own is None else engine(problem, u, what, own)
                equations = equations_of(sums, prior, u, own, linear, keep=not problem.linear)
            except NotPositiveDefiniteError:
                if solver != "auto":
                    raise
            else:
                if solver != "auto" or equations.is_accurate:
                    return equations
    return TriangularEquations(engine(problem, u, "triangle"), prior, u, leading(problem))


def _turns(problem: LeastSquaresProblem, turn: Turn | None) -> tuple[Turn | None, ...]:
    """Whether parameters are turned, in the order in which it is tried.

    The factor of all parameters behind turned ones takes 4/3 P³ operations and P² numbers more, once.  Where many
    parameters are fitted in closed form that is worth another pass over the frames only if it has to be.
    """
    if turn is not None and problem.linear and problem.size >= PLAIN_FIRST:
        return None, turn
    return (turn,)


def project_linear(
    problem: LeastSquaresProblem,
    u: FloatArray,
    inverse: Inverse | None,
    engine: Engine = sum_frames,
    prior: Prior | None = None,
) -> tuple[FloatArray, float]:
    """Solve for the linear parameters at the given others; ``inverse`` is that of their block of H.

    Returns
    -------
    (P,) array, float
        Parameters with the linear ones at their optimum, and the loss there.
    """
    prior = Prior.standard(problem.size) if prior is None else prior
    columns = problem.linear_columns
    if columns is None or inverse is None:
        return u, engine(problem, u, "none").loss + prior.value(u)
    sums = engine(problem, u, "linear")
    assert sums.rhs is not None
    rhs = to_numpy(sums.rhs) - prior.gradient(u)[columns]
    step = inverse(rhs)
    result = u.copy()
    result[columns] += step
    return result, sums.loss + prior.value(u) - 0.5 * float(rhs @ step)


class _Curvature:
    """Limited-memory BFGS on top of the normal equations.

    Parameters
    ----------
    state : SolverState, optional
        Where an interrupted minimisation stood.
    """

    def __init__(self, state: SolverState | None = None) -> None:
        self.steps: list[FloatArray] = []
        self.changes: list[FloatArray] = []
        self.last: tuple[FloatArray, FloatArray] | None = None
        if state is not None and state.steps is not None and state.slopes is not None and len(state.steps):
            self.steps, self.changes = list(state.steps[:-1]), list(state.slopes[:-1])
            self.last = state.steps[-1], state.slopes[-1]

    def stored(self) -> tuple[FloatArray | None, FloatArray | None]:
        """For :class:`SolverState`."""
        if self.last is None:
            return None, None
        return np.array([*self.steps, self.last[0]]), np.array([*self.changes, self.last[1]])

    def moved(self, step: FloatArray, rhs: FloatArray) -> None:
        """Note a step and b before it."""
        self.last = step, rhs

    def arrived(self, equations: Equations) -> None:
        """Complete the last pair with b behind the step.

        Where the loss is curved far less along the step than H says, the pair would make the next step far too long.
        """
        if self.last is None:
            return
        step, change = self.last[0], equations.rhs - self.last[1]
        self.last = None
        expected = 2.0 * (float(equations.rhs @ step) - equations.promised(step))
        if -float(step @ change) > LEAST_CURVATURE * expected:
            self.steps, self.changes = [*self.steps, step][-MEMORY:], [*self.changes, change][-MEMORY:]

    def forget(self) -> None:
        """Start afresh."""
        self.steps, self.changes = [], []

    def direction(self, equations: Equations) -> FloatArray:
        """(H corrected by all pairs)⁻¹ b."""
        if not self.steps:
            return equations.step(0.0)
        rhs = equations.rhs.copy()
        factors = []
        products = [-float(s @ y) for s, y in zip(self.steps, self.changes, strict=True)]
        for s, y, product in reversed(list(zip(self.steps, self.changes, products, strict=True))):
            factors.append(float(s @ rhs) / product)
            rhs = rhs + factors[-1] * y
        result = equations.solve(rhs)
        for s, y, product, factor in zip(self.steps, self.changes, products, reversed(factors), strict=True):
            result = result + (factor + float(y @ result) / product) * s
        return result


def _shortened(
    equations: Equations,
    step: FloatArray,
    damping: float,
    step_factor: Callable[[FloatArray], float],
    limited: int | None,
) -> FloatArray:
    """A step within the limits: scaled down, or damped more, whichever promises more.

    A single parameter that the data hardly determine may want to go far.  Scaled down for its sake, all others would
    crawl: polarizabilities of N-methylacetamide went to a third of their loss in ten steps, and in three with damping.
    """
    factor = step_factor(step)
    scaled = factor * step
    if limited is not None:
        # the others follow: scaled down as well, they would hardly move at all
        scaled = equations.step(damping, scaled[limited:])
    damped, strength = step, max(damping, SMALLEST_LIMITING)
    for _ in range(12):
        damped = equations.step(strength)
        if step_factor(damped) >= 1.0:
            break
        strength *= 4.0
    else:
        return scaled
    return damped if equations.promised(damped) > equations.promised(scaled) else scaled


def _stalled(losses: list[float], patience: int | None, small: float) -> bool:
    """Whether each of the last steps gained next to nothing."""
    if patience is None or len(losses) <= patience:
        return False
    return all(before - after <= small for before, after in pairwise(losses[-patience - 1 :]))


def minimise(
    problem: LeastSquaresProblem,
    u: FloatArray,
    *,
    max_iterations: int = MAX_ITERATIONS,
    tolerance: float = TOLERANCE,
    negligible: float = NEGLIGIBLE,
    engine: Engine = sum_frames,
    state: SolverState | None = None,
    checkpoint: Callable[[SolverState], None] = lambda _: None,
    report: Callable[[Iteration], None] = lambda _: None,
    step_factor: Callable[[FloatArray], float] = lambda _: 1.0,
    limited: int | None = None,
    patience: int | None = None,
    prior: Prior | None = None,
    solver: str = "auto",
    turn: Turn | None = None,
) -> Solution:
    """Minimise the loss from ``u``.

    Parameters
    ----------
    problem : LeastSquaresProblem
    u : (P,) array
        Start.
    max_iterations : int
    tolerance : float
        Converged when the promised decrease of the loss falls below ``tolerance`` of the loss.  Errors go with the
        root of the loss: with 1e-2, what is left would lower them by half a percent.
    negligible : float
        Or below this much per parameter: with 1e-3 the remaining step is a few hundredths of the posterior
        standard deviation of each parameter.  Two nearly undamped steps in a row that gain no more than this
        end the iteration as well.
    engine : callable
        Does the sums over frames.
    state : SolverState, optional
        Where an interrupted minimisation stood; continues from there and ignores ``u``.
    checkpoint : callable
        Called with the state after every step that was taken.
    report : callable
        Called after every iteration.
    step_factor : callable
        How much of a step may be taken, at most 1: for parameters that predictions depend on exponentially.  Up to
        :data:`LONGEST` times as much while steps gain what they promise.
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
    turn : Turn, optional
        See :func:`accumulate`.
    """
    search = _Search(
        problem=problem,
        engine=engine,
        prior=Prior.standard(problem.size) if prior is None else prior,
        solver=solver,
        turn=turn,
        tolerance=tolerance,
        negligible=negligible,
        step_factor=step_factor,
        limited=limited,
        patience=patience,
        report=report,
        curvature=_Curvature(state),
    )
    search.begin(u, state)
    if problem.linear:
        return search.closed_form() if len(search.iterations) < max_iterations else search.solution(False)
    for _ in range(len(search.iterations), max_iterations):
        newton, promised = search.newton()
        small = search.small
        if search.has_converged(promised, small):
            search.note(promised, True)
            return search.solution(True)
        trial = search.find(newton, promised)
        search.note(promised, trial is not None)
        if trial is None:
            break
        search.adapt(trial, small)
        search.move(trial, checkpoint)
    return search.solution(False)


@dataclass(frozen=True, eq=False)
class _Trial:
    """A step that was tried and found good.

    Attributes
    ----------
    u : (P,) array
        Where it leads, linear parameters at their optimum.
    gain : float
        What the loss falls by.
    promised : float
        What it was to fall by.
    whole : bool
        Whether no limit shortened the step.
    """

    u: FloatArray
    gain: float
    promised: float
    whole: bool


@dataclass(eq=False)
class _Search:
    """A minimisation under way; for its settings see :func:`minimise`.

    Attributes
    ----------
    u : (P,) array
        Where it stands.
    equations : Equations
        The quadratic model there.
    damping, growth : float
        Levenberg's, and by how much it grows when a step fails.
    reach : float
        How far steps may go, in units of what ``step_factor`` allows.
    free : int
        Steps in a row, nearly free, that gained next to nothing.
    """

    problem: LeastSquaresProblem
    engine: Engine
    prior: Prior
    solver: str
    turn: Turn | None
    tolerance: float
    negligible: float
    step_factor: Callable[[FloatArray], float]
    limited: int | None
    patience: int | None
    report: Callable[[Iteration], None]
    curvature: _Curvature
    u: FloatArray = field(default_factory=lambda: np.zeros(0))
    iterations: list[Iteration] = field(default_factory=list)
    damping: float = 0.0
    growth: float = 2.0
    reach: float = 1.0
    free: int = 0
    linear_inverse: Inverse | None = None
    equations: Equations = field(init=False)

    def begin(self, u: FloatArray, state: SolverState | None) -> None:
        """Stand at ``u``, or where an interrupted minimisation stood."""
        self.u = u
        if state is not None:
            self.u, self.damping, self.reach, self.free = state.u, state.damping, state.reach, state.free
            self.iterations = list(state.iterations)
        if self.solver == "auto" and self.iterations and self.iterations[-1].method == "qr":
            self.solver = "qr"
        self.equations = accumulate(
            self.problem, self.u, self.engine, self.prior, self.solver, turn=self.turn
        )
        columns = self.problem.linear_columns
        if columns is not None and not self.problem.linear:
            self.linear_inverse = self.equations.inverse(columns)
        self.curvature.arrived(self.equations)

    def note(self, decrement: float, accepted: bool) -> None:
        """One more iteration for the report."""
        equations = self.equations
        self.iterations.append(
            Iteration(
                len(self.iterations),
                equations.loss,
                decrement,
                self.damping,
                accepted,
                equations.condition,
                equations.method,
            )
        )
        self.report(self.iterations[-1])

    def solution(self, converged: bool) -> Solution:
        """What was found."""
        equations = self.equations
        return Solution(
            self.u,
            equations.loss,
            equations.lower,
            tuple(self.iterations),
            converged,
            equations.n_residuals,
        )

    def closed_form(self) -> Solution:
        """The minimum of a linear problem: the quadratic model is exact, and H does not depend on u."""
        decrement = self.equations.decrement()
        self.note(decrement, True)
        found = self.solution(True)
        return replace(found, u=self.u + self.equations.step(0.0), loss=found.loss - decrement)

    def within(self, step: FloatArray) -> float:
        """How much of a step may be taken, at most 1."""
        return min(1.0, self.reach * self.step_factor(step))

    def newton(self) -> tuple[FloatArray, float]:
        """The undamped step, and what it promises."""
        step = self.curvature.direction(self.equations)
        promised = 0.5 * float(self.equations.rhs @ step)
        if self.curvature.steps and self.within(step) < 1.0:
            promised = (
                self.equations.decrement()
            )  # what was learned on short steps says little about long ones
        return step, promised

    @property
    def small(self) -> float:
        """A gain that does not matter."""
        return max(self.tolerance * self.equations.loss, self.negligible * self.problem.size)

    def has_converged(self, promised: float, small: float) -> bool:
        """Whether nothing is promised any more, or nothing came of what was."""
        losses = [iteration.loss for iteration in self.iterations] + [self.equations.loss]
        # steps that gain nothing prove little while the model still promises much: floors of curved valleys drop again
        idle = self.damping < 1e-3 and (self.free > 6 or (self.free > 1 and promised <= 2.0 * small))
        return promised <= small or _stalled(losses, self.patience, small) or idle

    def find(self, newton: FloatArray, promised: float) -> _Trial | None:
        """Shorten and damp the step until the loss falls by some of what is promised; ``None`` if it never does."""
        equations, step = self.equations, newton
        corrected = bool(self.curvature.steps) and self.damping == 0.0
        for _ in range(40):
            if not corrected:
                step = equations.step(self.damping)
            whole = self.within(step) >= 1.0
            if not whole:
                step = _shortened(equations, step, self.damping, self.within, self.limited)
            expected = promised if corrected and whole else equations.promised(step)
            try:
                trial, loss = project_linear(
                    self.problem, self.u + step, self.linear_inverse, self.engine, self.prior
                )
            except NotPositiveDefiniteError:
                trial, loss = self.u, np.inf  # a charge problem without a minimum: too long a step
            gain = equations.loss - loss
            if gain > 1e-4 * expected:
                return _Trial(trial, gain, expected, whole)
            if not whole and self.reach > 1.0:
                self.reach *= 0.5
            elif corrected:
                # the plain step deserves a chance before it is damped
                corrected = False
                self.curvature.forget()
            else:
                self.damping = max(1e-3, self.damping * self.growth) if self.damping > 0.0 else 1e-3
                self.growth = min(self.growth * 2.0, 64.0)
        return None

    def adapt(self, trial: _Trial, small: float) -> None:
        """Damping and reach by how much of what was promised came true."""
        ratio = trial.gain / trial.promised
        self.damping *= max(1.0 / 9.0, 1.0 - (2.0 * ratio - 1.0) ** 3)
        self.damping = 0.0 if self.damping < 1e-6 else self.damping
        self.growth = 2.0
        # nearly free steps that gained next to nothing: what the quadratic model still promises is not there
        self.free = self.free + 1 if trial.whole and trial.gain <= small else 0
        if ratio < 0.25:
            self.reach = max(0.25, 0.5 * self.reach)
        elif not trial.whole and ratio > 0.75:
            self.reach = min(LONGEST, 2.0 * self.reach)

    def move(self, trial: _Trial, checkpoint: Callable[[SolverState], None]) -> None:
        """Take the step, and set up the quadratic model where it leads."""
        if trial.gain < 0.5 * self.equations.loss:
            self.curvature.moved(trial.u - self.u, self.equations.rhs)
        else:
            self.curvature.forget()  # residuals, and with them the second-order terms, have become others
        self.u = trial.u
        stored = self.curvature.stored()
        checkpoint(SolverState(self.u, self.damping, tuple(self.iterations), *stored, self.reach, self.free))
        if self.solver == "auto" and self.equations.method != "cholesky":
            self.solver = "qr"
        linear = self.equations.linear
        self.equations = accumulate(
            self.problem, self.u, self.engine, self.prior, self.solver, linear, self.turn
        )
        self.curvature.arrived(self.equations)


__all__ = [
    "MAX_ITERATIONS",
    "NEGLIGIBLE",
    "TOLERANCE",
    "Engine",
    "Iteration",
    "JacobianKind",
    "LeastSquaresProblem",
    "Solution",
    "SolverState",
    "SumKind",
    "accumulate",
    "jacobian_of",
    "leading",
    "minimise",
    "project_linear",
    "sum_frames",
    "sum_rows",
]
