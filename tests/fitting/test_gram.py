"""Sums of products in place: tiles, threads, single precision; and what is not summed twice."""

import numpy as np
import pytest

from kqeq.backend.threads import use_threads
from kqeq.fitting.least_squares import gram
from kqeq.fitting.least_squares.equations import NormalEquations, Prior, Sums, TriangularEquations
from kqeq.fitting.least_squares.gram import Gram, column_sums
from kqeq.fitting.least_squares.solver import accumulate, minimise, sum_frames
from solver_problems import Problem, losses


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(gram, "TILE", 7)
    monkeypatch.setattr(gram, "SMALLEST", 0)


def some_rows(n=50, p=40, seed=0):
    """Columns of very different size."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, p)) * np.geomspace(1e4, 1e-3, p)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("first", [0, 13, 35])
def test_tiles_give_the_product(small_tiles, threads, first):
    rows = some_rows()
    sums = Gram(40, first, rows)
    with use_threads(threads):
        sums.add(rows[:20])
        sums.add(rows[20:])
    expected = rows.T @ rows
    scale = np.sqrt(np.outer(np.diagonal(expected), np.diagonal(expected)))
    assert (np.abs(sums.finish() - expected[first:]) <= 1e-13 * scale[first:]).all()
    assert np.abs(sums.matrix[:, 0]).max() > 0.0 or first


def test_threads_change_nothing(small_tiles, monkeypatch):
    monkeypatch.setattr(gram, "SINGLE_SIZE", 1)
    results = []
    for threads in (1, 2, 5):
        sums = Gram(40, 0, np.zeros(0))
        with use_threads(threads):
            sums.add(some_rows())
        results.append(sums.finish())
    assert (results[0] == results[1]).all() and (results[0] == results[2]).all()


def test_single_precision_only_where_it_is_harmless(small_tiles, monkeypatch):
    monkeypatch.setattr(gram, "SINGLE_SIZE", 1)
    rows = some_rows()
    sums = Gram(40, 0, rows)
    sums.add(rows)
    error = np.abs(sums.finish() - rows.T @ rows)
    assert error.max() < gram.HARMLESS
    scale = np.linalg.norm(rows, axis=0)
    relative = error / np.outer(scale, scale)
    assert relative[-7:, -7:].max() > 1e-9  # small columns were rounded
    assert relative[:7, :7].max() < 1e-13  # large ones were not
    monkeypatch.setattr(gram, "SINGLE_SIZE", 41)
    exact = Gram(40, 0, rows)
    exact.add(rows)
    assert (np.abs(exact.finish() - rows.T @ rows) / np.outer(scale, scale)).max() < 1e-13


def test_column_sums(small_tiles):
    matrix = some_rows(20, 9) - 0.5
    scale = np.arange(20.0)
    np.testing.assert_allclose(column_sums(matrix, scale), scale @ np.abs(matrix))


# ------------------------------------------------------ linear parameters first


def bordered(seed=0, n=60, **options):
    """ŷ = B v + (a·w)² + c·w with v first."""
    rng = np.random.default_rng(seed)
    b, a, c = rng.normal(size=(n, 4)), rng.normal(size=(n, 2)), rng.normal(size=(n, 2))
    truth = np.array([0.3, -1.0, 2.0, 0.7, 1.0, -1.5])

    def predict(u):
        return 20.0 * (b @ u[:4] + (a @ u[4:]) ** 2 + c @ u[4:])

    def jacobian(u):
        return 20.0 * np.hstack([b, c + 2.0 * (a @ u[4:])[:, None] * a])

    target = predict(truth) + rng.normal(size=n)
    return Problem(
        lambda u: target - predict(u), 6, linear_columns=slice(0, 4), jacobian=jacobian, **options
    ), truth


def some_prior(size, seed=7):
    rng = np.random.default_rng(seed)
    return Prior(rng.normal(size=size), np.tril(rng.normal(size=(size, size))) + 3.0 * np.eye(size))


@pytest.mark.parametrize("prior", [None, some_prior(6)])
def test_eliminated_equations_are_those_of_the_whole(prior):
    problem, truth = bordered()
    known = Prior.standard(6) if prior is None else prior
    first = accumulate(problem, truth + 1.0, prior=prior)
    u = truth - 0.5
    found = accumulate(problem, u, prior=prior, linear=first.linear)
    assert isinstance(found, NormalEquations) and found.linear is first.linear
    jacobian, residual = problem.jacobian(u), problem.residual(u)
    precision = np.eye(6) if known.lower is None else known.lower @ known.lower.T
    hessian = jacobian.T @ jacobian + precision
    rhs = jacobian.T @ residual - precision @ (u - known.mean)
    np.testing.assert_allclose(found.hessian, hessian, rtol=1e-11)
    np.testing.assert_allclose(found.rhs, rhs, rtol=1e-11)
    np.testing.assert_allclose(found.step(0.0), np.linalg.solve(hessian, rhs), rtol=1e-9)
    assert found.decrement() == pytest.approx(0.5 * rhs @ np.linalg.solve(hessian, rhs), rel=1e-10)
    step = np.arange(6.0)
    assert found.promised(step) == pytest.approx(step @ rhs - 0.5 * step @ hessian @ step, rel=1e-10)
    scale = 1.0 / np.sqrt(np.diagonal(hessian))
    exact = np.linalg.cond(scale[:, None] * hessian * scale, 1)
    assert 0.2 * exact < found.condition < 1.01 * exact
    for own in (slice(0, 4), slice(2, 5)):
        expected = np.linalg.solve(hessian[own, own], rhs[own])
        np.testing.assert_allclose(found.inverse(own)(rhs[own]), expected, rtol=1e-9)
    # damping acts on the others alone
    damped = hessian.copy()
    damped[4:, 4:] += 0.7 * np.diag(np.diagonal(hessian)[4:])
    np.testing.assert_allclose(found.step(0.7), np.linalg.solve(damped, rhs), rtol=1e-9)
    last = np.array([0.3])
    expected = np.linalg.solve(damped[:5, :5], rhs[:5] - damped[:5, 5:] @ last)
    np.testing.assert_allclose(found.step(0.7, last), np.concatenate([expected, last]), rtol=1e-9)
    triangular = accumulate(problem, u, prior=prior, solver="qr")
    assert isinstance(triangular, TriangularEquations)
    np.testing.assert_allclose(triangular.step(0.7), found.step(0.7), rtol=1e-9)
    np.testing.assert_allclose(triangular.step(0.7, last), found.step(0.7, last), rtol=1e-9)
    np.testing.assert_allclose(triangular.lower, found.lower, atol=1e-9)


def test_the_block_of_linear_parameters_is_summed_once(monkeypatch):
    asked = []
    problem, truth = bordered()

    def engine(problem, u, what):
        asked.append(what)
        return sum_frames(problem, u, what)

    solution = minimise(problem, truth + 0.7, engine=engine)
    assert solution.converged
    assert asked.count("full") == 1 and asked.count("border") >= 2
    jacobian = problem.jacobian(solution.u)
    np.testing.assert_allclose(
        solution.lower @ solution.lower.T, jacobian.T @ jacobian + np.eye(6), rtol=1e-10
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_parameters_changes_nothing(seed):
    problem, truth = bordered(seed)
    start = truth + np.array([1.0, -2.0, 0.5, 1.0, 0.6, 0.5])
    plain, _ = bordered(seed)
    plain.linear_columns = None
    options = {"max_iterations": 200, "tolerance": 1e-12, "negligible": 1e-12}
    first, second = minimise(problem, start, **options), minimise(plain, start, **options)
    assert first.loss == pytest.approx(second.loss, rel=1e-9)
    np.testing.assert_allclose(first.u, second.u, atol=1e-6)
    assert len(losses(first)) <= len(losses(second))


def test_sums_of_parts_add_up():
    problem, truth = bordered()
    whole = sum_frames(problem, truth, "full")
    other = sum_frames(problem, truth, "full")
    other.add(whole)
    np.testing.assert_allclose(other.hessian, 2.0 * whole.hessian)
    np.testing.assert_allclose(other.border, 2.0 * whole.border)
    assert whole.hessian.shape == (4, 4) and whole.border.shape == (2, 6)
    border = sum_frames(problem, truth, "border")
    assert border.hessian is None
    np.testing.assert_array_equal(border.border, whole.border)


@pytest.mark.parametrize("size", [1, 511, 512, 1100])
def test_what_travels_is_the_lower_triangle(size):
    rng = np.random.default_rng(size)
    matrix = rng.normal(size=(size, size))
    matrix += matrix.T
    first = Sums(matrix.copy(), np.ones(size), 1.0, 2)
    packed = Sums(matrix.copy(), np.ones(size), 3.0, 4).packed()
    assert sum(block.size for block in packed.hessian.blocks) <= (size * (size + 512)) / 2 + 512**2 / 2
    np.testing.assert_array_equal(packed.unpacked().hessian, matrix)
    first.add(packed)
    np.testing.assert_array_equal(first.hessian, 2.0 * matrix)
    assert first.loss == 4.0 and first.n_residuals == 6
