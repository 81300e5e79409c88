"""The solver on problems whose answers are known, linear and not."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kqeq.errors import NotPositiveDefiniteError
from kqeq.fitting.least_squares import solver
from kqeq.fitting.least_squares.solver import accumulate, minimise, project_linear
from solver_problems import Problem, linear_problem, losses, partly_linear, valley

# ------------------------------------------------------------------- linear


@given(n=st.integers(1, 40), p=st.integers(1, 8), seed=st.integers(0, 1000))
def test_a_linear_problem_takes_one_step_to_the_ridge_solution(n, p, seed):
    problem, matrix, target = linear_problem(n, p, seed, linear=True)
    start = np.random.default_rng(seed + 1).normal(size=p)
    solution = minimise(problem, start)
    hessian = matrix.T @ matrix + np.eye(p)
    # stacked with the prior and solved without normal equations
    expected = np.linalg.lstsq(
        np.vstack([matrix, np.eye(p)]), np.concatenate([target, np.zeros(p)]), rcond=None
    )[0]
    np.testing.assert_allclose(solution.u, expected, atol=1e-10)
    assert solution.loss == pytest.approx(problem.loss(expected), rel=1e-10)
    assert solution.converged
    assert len(solution.iterations) == 1
    assert solution.n_residuals == n
    assert problem.calls == ["full"]
    np.testing.assert_allclose(solution.lower @ solution.lower.T, hessian, atol=1e-11)
    assert not np.triu(solution.lower, 1).any()


def test_what_a_linear_step_promises_is_what_it_gains():
    problem, _, _ = linear_problem(linear=True)
    start = np.ones(6)
    solution = minimise(problem, start)
    (only,) = solution.iterations
    assert only.loss == pytest.approx(problem.loss(start))
    assert only.decrement == pytest.approx(problem.loss(start) - problem.loss(solution.u))
    assert only.decrement > 1.0


@pytest.mark.parametrize("chunk", [1, 7, 10**6])
def test_accumulation_does_not_depend_on_how_rows_are_collected(chunk, monkeypatch):
    problem, matrix, target = linear_problem(blocks=11)
    monkeypatch.setattr(solver, "CHUNK_ROWS", chunk)
    u = np.linspace(-1, 1, 6)
    equations = accumulate(problem, u)
    residual = target - matrix @ u
    np.testing.assert_allclose(equations.hessian, matrix.T @ matrix + np.eye(6), atol=1e-12)
    np.testing.assert_allclose(equations.rhs, matrix.T @ residual - u, atol=1e-12)
    assert equations.loss == pytest.approx(problem.loss(u))
    assert equations.n_residuals == 30


# ---------------------------------------------------------------- nonlinear


def test_the_loss_never_rises_on_the_way_through_a_valley():
    problem = valley()
    start = np.array([-1.2, 1.0])
    solution = minimise(problem, start, max_iterations=200, tolerance=1e-10, negligible=1e-12)
    assert solution.converged
    path = losses(solution)
    assert len(path) > 3
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(path))
    assert any(it.damping > 0 for it in solution.iterations)
    assert solution.loss == pytest.approx(problem.loss(solution.u))
    assert solution.loss < 0.05 * path[0]
    # the gradient of the loss vanishes
    equations = accumulate(problem, solution.u)
    assert np.abs(equations.rhs).max() < 1e-3


def test_plain_gauss_newton_would_have_diverged():
    """What the damping is there for: the full first step raises the loss."""
    problem = valley()
    u = np.array([-1.2, 1.0])
    equations = accumulate(problem, u)
    assert problem.loss(u + np.linalg.solve(equations.hessian, equations.rhs)) > 2 * problem.loss(u)


def test_the_factor_belongs_to_the_solution():
    problem = valley()
    solution = minimise(problem, np.array([-1.2, 1.0]), max_iterations=200)
    jacobian = problem.jacobian(solution.u)
    np.testing.assert_allclose(
        solution.lower @ solution.lower.T, jacobian.T @ jacobian + np.eye(2), rtol=1e-12
    )


def test_a_start_at_the_minimum_stays_there():
    problem, matrix, target = linear_problem()
    best = np.linalg.solve(matrix.T @ matrix + np.eye(6), matrix.T @ target)
    solution = minimise(problem, best)
    assert solution.converged
    np.testing.assert_array_equal(solution.u, best)
    assert len(solution.iterations) == 1


def test_no_residuals_leave_the_prior():
    problem = Problem(lambda u: np.zeros(0), 3, linear=True, blocks=1, jacobian=lambda u: np.zeros((0, 3)))
    solution = minimise(problem, np.ones(3))
    np.testing.assert_allclose(solution.u, 0.0)
    assert solution.n_residuals == 0


def test_running_out_of_iterations_is_said():
    solution = minimise(valley(), np.array([-1.2, 1.0]), max_iterations=2, tolerance=1e-12, negligible=0.0)
    assert not solution.converged
    assert len(solution.iterations) == 2
    assert solution.loss <= solution.iterations[-1].loss


def test_every_iteration_is_reported():
    seen = []
    solution = minimise(valley(), np.array([-1.2, 1.0]), max_iterations=50, report=seen.append)
    assert tuple(seen) == solution.iterations
    assert [it.number for it in seen] == list(range(len(seen)))


def test_steps_into_nothing_are_not_taken():
    """A residual that is NaN beyond a wall: the step is shortened, never accepted there."""

    def residual(u):
        with np.errstate(invalid="ignore"):
            return np.array([10.0 * (3.0 - np.sqrt(u[0])), 0.1])

    def jacobian(u):
        return np.array([[10.0 * 0.5 / np.sqrt(u[0])], [0.0]])

    problem = Problem(residual, 1, blocks=1, jacobian=jacobian)
    solution = minimise(problem, np.array([0.01]), max_iterations=100, tolerance=1e-9, negligible=1e-9)
    assert np.isfinite(solution.u).all()
    assert solution.converged
    path = losses(solution)
    assert all(b <= a for a, b in pairwise(path))


def test_a_wrong_jacobian_is_noticed_not_followed():
    """If no step along the promised direction helps, say so instead of wandering."""
    problem, matrix, _ = linear_problem()
    problem._jacobian = lambda u: -matrix
    solution = minimise(problem, np.zeros(6))
    assert not solution.converged
    assert not solution.iterations[-1].accepted
    np.testing.assert_array_equal(solution.u, np.zeros(6))


@pytest.mark.parametrize("method", ["auto", "cholesky", "qr"])
def test_hopeless_scales_are_an_error(method):
    problem = Problem(
        lambda u: np.array([1.0]), 2, linear=True, blocks=1, jacobian=lambda u: np.array([[np.inf, 1.0]])
    )
    with (
        np.errstate(over="ignore", invalid="ignore"),
        pytest.raises(NotPositiveDefiniteError, match="raise the smallest noise"),
    ):
        minimise(problem, np.zeros(2), solver=method)


# -------------------------------------------------- partly linear problems


def test_linear_parameters_are_solved_for_exactly():
    problem, _ = partly_linear()
    u = np.array([0.7, -0.4, 3.0, 3.0, 3.0])
    columns = problem.linear_columns
    hessian = accumulate(problem, u).hessian[columns, columns]
    result, loss = project_linear(problem, u, lambda rhs: np.linalg.solve(hessian, rhs))
    np.testing.assert_array_equal(result[:2], u[:2])
    assert loss == pytest.approx(problem.loss(result), rel=1e-10)
    for direction in np.eye(5)[2:]:
        assert problem.loss(result + 1e-3 * direction) > loss
        assert problem.loss(result - 1e-3 * direction) > loss
    assert loss < 0.9 * problem.loss(u)
    same, plain = project_linear(problem, u, None)
    np.testing.assert_array_equal(same, u)
    assert plain == pytest.approx(problem.loss(u))


@pytest.mark.parametrize("seed", range(5))
def test_a_partly_linear_problem_is_solved(seed):
    problem, truth = partly_linear(seed)
    start = truth + np.array([0.6, 0.5, -3.0, 2.0, 4.0])
    solution = minimise(problem, start, max_iterations=100, tolerance=1e-9, negligible=1e-9)
    assert solution.converged
    path = losses(solution)
    assert all(b <= a * (1 + 1e-10) for a, b in pairwise(path))
    np.testing.assert_allclose(solution.u, truth, atol=0.1)
    assert (
        np.abs(accumulate(problem, solution.u).rhs).max()
        < 1e-2 * np.abs(accumulate(problem, start).rhs).max()
    )


def test_the_minimum_does_not_depend_on_how_linear_parameters_are_treated():
    projected, truth = partly_linear()
    plain, _ = partly_linear()
    plain.linear_columns = None
    options = {"max_iterations": 200, "tolerance": 1e-12, "negligible": 1e-12}
    start = truth + 0.3
    first, second = minimise(projected, start, **options), minimise(plain, start, **options)
    assert first.loss == pytest.approx(second.loss, rel=1e-8)
    np.testing.assert_allclose(first.u, second.u, atol=1e-5)
    assert "linear" in projected.calls
    assert "linear" not in plain.calls


class _Valley:
    """A narrow curved valley whose floor falls slowly."""

    size, linear, linear_columns = 2, False, None

    def rows(self, u, *, jacobian):
        residual = -100.0 * np.array([u[1] - np.sin(3.0 * u[0])])
        rows = 100.0 * np.array([[-3.0 * np.cos(3.0 * u[0]), 1.0]])
        far = np.array([3.0 - u[0]]) / 3.0
        yield (
            np.concatenate([residual, far]),
            (None if jacobian == "none" else np.concatenate([rows, [[1.0 / 3.0, 0.0]]])),
        )


def test_steps_may_be_limited_and_small_gains_end_the_search():
    start = np.array([-2.0, np.sin(-6.0)])
    free = minimise(_Valley(), start, tolerance=1e-9, negligible=1e-9, max_iterations=200)
    lengths, seen = [], [start]

    def factor(step):
        return min(1.0, 0.05 / float(np.abs(step).max()))

    short = minimise(
        _Valley(),
        start,
        tolerance=1e-9,
        negligible=1e-9,
        max_iterations=500,
        step_factor=factor,
        checkpoint=lambda state: (lengths.append(np.abs(state.u - seen[-1]).max()), seen.append(state.u)),
    )
    assert short.converged and free.converged
    assert max(lengths) <= solver.LONGEST * 0.05 * (1.0 + 1e-12) and len(lengths) > 10
    # further than at first while steps gain what they promise
    assert lengths[0] <= 0.05 * (1.0 + 1e-12) < max(lengths)
    np.testing.assert_allclose(short.loss, free.loss, rtol=1e-3)
    patient = minimise(
        _Valley(), start, tolerance=0.02, negligible=0.0, max_iterations=500, step_factor=factor, patience=3
    )
    assert patient.converged
    assert 4 <= len(patient.iterations) < len(short.iterations)
    assert patient.loss > short.loss


class _Refusing(_Valley):
    """No minimum of the charges beyond a wall: the trial is refused, not the fit."""

    def rows(self, u, *, jacobian):
        if u[0] > 0.3:
            raise NotPositiveDefiniteError("beyond the wall")
        yield np.array([2.0 * (1.0 - u[0])]), np.array([[2.0, 0.0]])


def test_trials_without_a_minimum_of_the_charges_are_too_long_steps():
    found = minimise(_Refusing(), np.zeros(2))
    assert 0.0 < found.u[0] <= 0.3
