"""How one fit is minimised: from a closed-form start, with checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np

from kqeq.errors import InputError, KQEqWarning, NotPositiveDefiniteError, warn
from kqeq.fitting.charge_start import ChargeStart
from kqeq.fitting.checkpoint import fingerprint, read_checkpoint, write_checkpoint
from kqeq.fitting.least_squares.equations import Equations, Prior, equations_of
from kqeq.fitting.least_squares.solver import (
    MAX_ITERATIONS,
    NEGLIGIBLE,
    TOLERANCE,
    Iteration,
    Solution,
    SolverState,
    accumulate,
    minimise,
    project_linear,
)
from kqeq.fitting.parameters import Parameters
from kqeq.fitting.problem import FitProblem, joblib_engine
from kqeq.fitting.rows.blocks import LINEAR_KINDS
from kqeq.fitting.settings import FitSettings
from kqeq.io.progress import Remaining, duration, say, shown
from kqeq.typing import FloatArray

SHARES = (1.0, 0.5, 0.25, 0.125)
"""Parts of a single step that are tried, until the loss falls."""

START_FRAMES = 100
"""Frames to which a start is fitted that takes iterations of its own."""


def minimise_problem(
    problem: FitProblem,
    start: FloatArray,
    *,
    max_iterations: int = MAX_ITERATIONS,
    solver: str = "auto",
    **options: Any,
) -> Solution:
    """:func:`~kqeq.fitting.least_squares.solver.minimise` in parallel, within the limits that the parameters set.

    Iterations are told on standard error with an estimate of the rest (:mod:`kqeq.io.progress`).
    """
    return minimise(
        problem,
        start,
        engine=joblib_engine,
        max_iterations=max_iterations,
        report=_teller(problem, max_iterations),
        step_factor=problem.parameters.step_factor,
        limited=problem.parameters.limited,
        patience=problem.parameters.patience,
        solver=solver,
        turn=problem.turn(solver),
        **options,
    )


def _teller(problem: FitProblem, max_iterations: int) -> Callable[[Iteration], None]:
    """Says what every iteration has reached, and about how long the fit still takes."""
    if problem.linear or not shown():
        return lambda _: None
    remaining = Remaining(max_iterations)

    def tell(iteration: Iteration) -> None:
        target = max(TOLERANCE * iteration.loss, NEGLIGIBLE * problem.size)
        more, seconds, longest = remaining.note(iteration.decrement, target)
        text = f"iteration {iteration.number}: loss {iteration.loss:.4g}, promised drop {iteration.decrement:.2g}"
        if more is None or seconds is None:
            text += f"; at most {duration(longest)} more"
        elif more:
            text += f"; about {more} more, {duration(seconds)} (at most {duration(longest)})"
        say(text)

    return tell


def _start(problem: FitProblem, solver: str, chosen: ChargeStart | None) -> FloatArray:
    """Electronegativities fitted to dipoles and charges alone, in closed form: where the iteration starts.

    Where there are none, ``chosen`` holds values of the elements.

    Energies are quadratic in electronegativities; from here the quadratic model is good, from zero it is not.
    Site parameters, if any are learned, are fitted to the polarizabilities before, which depend on nothing else.
    """
    parameters = problem.parameters.without_short_range()
    start = np.zeros(parameters.size)
    if parameters.learned is not None:
        found = _fit_part(problem, parameters, frozenset({"polarizability"}), solver, linear=False)
        start = start if found is None else found
        parameters = parameters.freeze(start)
    found = None
    if chosen is not None and parameters.electronegativity is not None:
        stop = parameters.electronegativity.columns.stop
        found = np.zeros(parameters.size)
        found[stop - len(chosen.offsets) : stop] = chosen.offsets
    else:
        found = _fit_part(problem, parameters, LINEAR_KINDS, solver, linear=True)
    # one leaves the electronegativities at zero, the other the site parameters
    start = start if found is None else start + found
    return np.concatenate([np.zeros(problem.size - parameters.size), start])


def _fit_part(
    problem: FitProblem, parameters: Parameters, kinds: frozenset[str], solver: str, *, linear: bool
) -> FloatArray | None:
    """Parameters fitted to the labels of some kinds alone; ``None`` where there are no such labels."""
    frames = []
    for frame in problem.frames:
        drop: dict[str, Any] = {kind: None for kind in frame.labels.kinds if kind not in kinds}
        labels = replace(frame.labels, **drop)
        if labels.kinds:
            frames.append(replace(frame, labels=labels))
    if not frames:
        return None
    if not linear:
        frames = [frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, START_FRAMES).astype(int))]
    budget = None if linear else problem.budget
    part = FitProblem(frames, parameters, problem.noise, linear=linear, budget=budget, device=problem.device)
    try:
        return minimise_problem(part, np.zeros(part.size), solver=solver).u
    finally:
        part.close()


def minimise_from(
    problem: FitProblem, settings: FitSettings, u: FloatArray | None, chosen: ChargeStart | None = None
) -> Solution:
    """Minimise from ``u``, or from the closed-form start, or from the one chosen in its place."""
    if u is None:
        u = _start(problem, settings.solver, chosen)
    return minimise_problem(problem, u, max_iterations=settings.max_iterations, solver=settings.solver)


def solve(
    problem: FitProblem,
    settings: FitSettings,
    resume: str | PathLike[str] | None,
    start: FloatArray | None = None,
    chosen: ChargeStart | None = None,
) -> Solution:
    """Minimise, from the checkpoint if there is one, else from ``start`` or as :func:`minimise_from` does."""
    state, mark = None, ""
    if resume is not None:
        mark = fingerprint(settings, problem.frames)
        state = read_checkpoint(resume, mark, problem.size)
    if start is None:
        start = np.zeros(problem.size)
        if state is None and not problem.linear:
            start = _start(problem, settings.solver, chosen)
    if state is None and not problem.linear and resume is not None:
        write_checkpoint(resume, mark, SolverState(start, 0.0, ()))

    failed = False

    def checkpoint(reached: SolverState) -> None:
        nonlocal failed
        if resume is None:
            return
        try:
            write_checkpoint(resume, mark, reached)
        except InputError as error:
            if not failed:
                warn(
                    f"the fit goes on without its checkpoint of step {len(reached.iterations)}: {error}",
                    KQEqWarning,
                )
            failed = True

    return minimise_problem(
        problem,
        start,
        max_iterations=settings.max_iterations,
        state=state,
        checkpoint=checkpoint,
        solver=settings.solver,
    )


def step_from(problem: FitProblem, u: FloatArray, solver: str = "auto") -> FloatArray:
    """One Gauss–Newton step, shortened until the loss falls; u where it does not.

    Parameters
    ----------
    problem : FitProblem
    u : (P,) array
    solver : str
        See :func:`kqeq.fitting.least_squares.solver.accumulate`.

    Returns
    -------
    (P,) array
    """
    equations = accumulate(problem, u, joblib_engine, None, solver, turn=problem.turn(solver))
    found = _along(problem, u, equations, SHARES)
    return u if found is None else found


def _along(
    problem: FitProblem, u: FloatArray, equations: Equations, shares: Sequence[float]
) -> FloatArray | None:
    """The first of these shares of the step at which the loss falls, the energy at its optimum behind it; or ``None``."""
    step = equations.step(0.0)
    if problem.linear:
        return np.asarray(u + step)
    columns = problem.linear_columns
    inverse = None if columns is None else equations.inverse(columns)
    limit = min(1.0, problem.parameters.step_factor(step))
    for share in shares:
        try:
            trial, loss = project_linear(problem, u + share * limit * step, inverse, joblib_engine)
        except NotPositiveDefiniteError:  # a charge problem without a minimum: too long a step
            continue
        if loss < equations.loss:
            return trial
    return None


def steps_without(
    problem: FitProblem, u: FloatArray, folds: Sequence[Collection[int]]
) -> Iterator[FloatArray]:
    """A step from ``u`` without the frames of each fold in turn; sums of all frames less those of the fold.

    As :func:`step_from` for ``problem.without(fold)`` would give it, for one pass over the frames instead of one for each
    fold.  Where rounding is in the way, :func:`step_from` does it.

    Parameters
    ----------
    problem : FitProblem
        Keeps what it knows of frames (``budget``), or it is computed again and again.
    u : (P,) array
        From which no fold leads far.
    folds : sequence of collections of int
        Indices of frames, each in one fold at most.

    Yields
    ------
    (P,) array
    """
    turn = problem.turn()
    prior = Prior.standard(problem.size)
    folded = {index for fold in folds for index in fold}
    everything = {frame.index for frame in problem.frames}
    total = None if folded == everything else joblib_engine(problem.without(folded), u, "full", turn)
    parts = []
    for fold in folds:
        part = joblib_engine(problem.without(everything - set(fold)), u, "full", turn)
        parts.append(part.packed())
        if total is None:
            total = part.scaled(1.0)
        else:
            total.add(part)
    assert total is not None
    for fold, part in zip(folds, parts, strict=True):
        rest = problem.without(fold)
        try:
            equations = equations_of(total.less(part), prior, u, turn)
            found = _along(rest, u, equations, SHARES[:1]) if equations.is_accurate else None
        except NotPositiveDefiniteError:
            found = None
        yield step_from(rest, u) if found is None else found


def warn_unconverged(solution: Solution) -> None:
    """Warn if a fit stopped early."""
    if not solution.converged:
        warn(
            f"the fit stopped after {len(solution.iterations)} iterations without converging (loss {solution.loss:.6g}); "
            "print model.fit_report_ for the table, raise max_iterations, or raise the noise levels",
            KQEqWarning,
        )


__all__ = ["minimise_from", "solve", "step_from", "steps_without", "warn_unconverged"]
