"""Normal equations and their triangular factor: the same answer where both can give it, and where only one can."""

import numpy as np
import pytest

from conftest import NOISE, small_kernel
from kqeq import KQEq
from kqeq.errors import InputError, NotPositiveDefiniteError
from kqeq.fitting.least_squares.equations import (
    CONDITION_LIMIT,
    NormalEquations,
    Prior,
    Sums,
    TriangularEquations,
    push,
)
from kqeq.fitting.least_squares.solver import accumulate, minimise, sum_frames
from solver_problems import linear_problem, losses, partly_linear, valley


def both(problem, u, prior=None):
    return [accumulate(problem, u, prior=prior, solver=method) for method in ("cholesky", "qr")]


def some_prior(size, seed=7):
    rng = np.random.default_rng(seed)
    return Prior(rng.normal(size=size), np.tril(rng.normal(size=(size, size))) + 3.0 * np.eye(size))


@pytest.mark.parametrize("prior", [None, some_prior(6)])
def test_both_forms_give_the_same_model(prior):
    problem, matrix, target = linear_problem()
    u = np.random.default_rng(1).normal(size=6)
    normal, triangular = both(problem, u, prior)
    assert isinstance(normal, NormalEquations) and isinstance(triangular, TriangularEquations)
    for damping in (0.0, 0.3, 20.0):
        a, b = normal.step(damping), triangular.step(damping)
        np.testing.assert_allclose(b, a, rtol=1e-10)
        assert triangular.promised(a) == pytest.approx(normal.promised(a), rel=1e-10)
    assert triangular.decrement() == pytest.approx(normal.decrement(), rel=1e-10)
    assert triangular.loss == pytest.approx(normal.loss, rel=1e-12)
    np.testing.assert_allclose(triangular.lower, normal.lower, rtol=1e-9, atol=1e-10)
    own, vector = slice(2, 5), np.array([1.0, -2.0, 0.5])
    np.testing.assert_allclose(
        triangular.inverse(own)(vector), np.linalg.solve(normal.hessian[own, own], vector), rtol=1e-9
    )
    # against the definition
    known = Prior.standard(6) if prior is None else prior
    shift = u - known.mean
    precision = np.eye(6) if known.lower is None else known.lower @ known.lower.T
    residual = target - matrix @ u
    assert normal.loss == pytest.approx(0.5 * residual @ residual + 0.5 * shift @ precision @ shift)
    expected = np.linalg.solve(matrix.T @ matrix + precision, matrix.T @ residual - precision @ shift)
    np.testing.assert_allclose(normal.step(0.0), expected, rtol=1e-9)


@pytest.mark.parametrize("damping", [0.0, 0.7])
@pytest.mark.parametrize("method", ["cholesky", "qr"])
def test_a_prescribed_end_of_the_step_leaves_the_others_their_best(method, damping):
    problem, _, _ = linear_problem()
    u = np.random.default_rng(4).normal(size=6)
    normal = accumulate(problem, u)
    damped = normal.hessian + damping * np.diag(np.diagonal(normal.hessian))
    last = np.array([0.3, -0.2])
    expected = np.linalg.solve(damped[:4, :4], normal.rhs[:4] - damped[:4, 4:] @ last)
    step = accumulate(problem, u, solver=method).step(damping, last)
    np.testing.assert_allclose(step, np.concatenate([expected, last]), rtol=1e-9)
    # not the shortened or cut free step
    assert np.abs(step[:4] - normal.step(damping)[:4]).max() > 1e-3


def test_the_triangle_of_rows_in_pieces_is_that_of_all():
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(50, 7))
    whole = np.linalg.qr(rows, mode="r")
    pieces = []
    for part in (rows[:3], rows[3:30], rows[30:]):
        triangle = np.zeros((7, 7), order="F")
        for block in np.array_split(part, 2):
            triangle = push(triangle, block)
        pieces.append(Sums(None, None, 0.0, 0, triangle))
    for other in pieces[1:]:
        pieces[0].add(other)
    triangle = pieces[0].triangle
    np.testing.assert_allclose(triangle.T @ triangle, rows.T @ rows, atol=1e-12)
    np.testing.assert_allclose(np.abs(np.diagonal(triangle)), np.abs(np.diagonal(whole)), rtol=1e-12)


@pytest.mark.parametrize("chunk", [1, 5, 10**6])
def test_the_triangle_does_not_depend_on_how_rows_are_collected(chunk, monkeypatch):
    from kqeq.fitting.least_squares import solver

    problem, matrix, _ = linear_problem()
    monkeypatch.setattr(solver, "CHUNK_ROWS", chunk)
    sums = sum_frames(problem, np.zeros(6), "triangle")
    assert sums.hessian is None
    found = sums.triangle[:-1, :-1]
    np.testing.assert_allclose(found.T @ found, matrix.T @ matrix, atol=1e-11)


@pytest.mark.parametrize("make", [valley, lambda: partly_linear()[0]])
def test_problems_that_are_not_linear_end_at_the_same_point(make):
    start = np.array([-1.2, 1.0]) if make is valley else np.zeros(5)
    first, second = (
        minimise(make(), start, solver=method, max_iterations=100) for method in ("cholesky", "qr")
    )
    np.testing.assert_allclose(second.u, first.u, atol=1e-8)
    np.testing.assert_allclose(losses(second), losses(first), rtol=1e-8)
    assert {it.method for it in second.iterations} == {"qr"}
    assert {it.method for it in first.iterations} == {"cholesky"}


# ------------------------------------------------------------ conditioning


def stiff(smallest=1e2, largest=1e8, p=20, n=60, seed=0):
    """A ridge problem of known solution: singular values spread evenly in the logarithm."""
    rng = np.random.default_rng(seed)
    left, right = np.linalg.qr(rng.normal(size=(n, p)))[0], np.linalg.qr(rng.normal(size=(p, p)))[0]
    singular = np.geomspace(smallest, largest, p)
    truth = rng.normal(size=p)
    matrix = (left * singular) @ right.T
    target = left @ ((singular + 1.0 / singular) * (right.T @ truth))
    problem, _, _ = linear_problem(n, p, linear=True)
    problem.residual, problem._jacobian = lambda u: target - matrix @ u, lambda u: matrix
    return problem, truth, largest**2 / (smallest**2 + 1.0)


def test_the_condition_number_is_estimated():
    """Within the factor by which norms differ, here for a matrix whose columns have equal size."""
    for largest in (1e3, 1e5):
        problem, _, condition = stiff(smallest=1.0, largest=largest)
        for equations in both(problem, np.zeros(20)):
            assert condition / 30 < equations.condition < 30 * condition


def test_qr_keeps_the_digits_that_normal_equations_lose():
    problem, truth, condition = stiff(1e1, 1e8)
    assert condition > CONDITION_LIMIT
    errors = {
        method: np.abs(minimise(problem, np.zeros(20), solver=method).u - truth).max()
        for method in ("cholesky", "qr", "auto")
    }
    assert errors["cholesky"] > 1e-4
    assert errors["qr"] < 1e-6
    assert errors["auto"] == errors["qr"]


def test_auto_stays_with_cholesky_where_that_serves():
    problem, truth, _ = stiff(1e1, 1e5)
    solution = minimise(problem, np.zeros(20))
    assert solution.iterations[-1].method == "cholesky"
    np.testing.assert_allclose(solution.u, truth, atol=1e-5)


def test_auto_turns_to_qr_where_cholesky_fails():
    """JᵀJ + 1 of the row (x, x), x = 2³⁰, rounds to a singular matrix of four equal powers of two.

    All numbers on the way are exact, with fused operations as well, so the second pivot is 0 on every processor.
    """
    x = 2.0**30
    problem, _, _ = linear_problem(3, 2, linear=True)
    matrix = np.array([[x, x], [0.0, 0.0], [0.0, 0.0]])
    problem.residual, problem._jacobian = lambda u: np.array([3.0 * x, 0, 0]) - matrix @ u, lambda u: matrix
    with pytest.raises(NotPositiveDefiniteError, match="raise the smallest noise"):
        minimise(problem, np.zeros(2), solver="cholesky")
    solution = minimise(problem, np.zeros(2))
    assert solution.iterations[-1].method == "qr"
    np.testing.assert_allclose(solution.u, [1.5, 1.5], rtol=1e-6)


# -------------------------------------------------------------------- fits


def dipoles(**options):
    return KQEq(small_kernel(3.5), short_range=None, targets=["dipole"], **options)


@pytest.mark.parametrize("what", ["dipoles", "energies and forces"])
def test_fits_agree(what, water_training):
    first, second = (
        (
            dipoles(solver=method)
            if what == "dipoles"
            else KQEq(small_kernel(3.5), small_kernel(4.0, zeta=4), noise=NOISE, solver=method)
        ).fit(water_training)
        for method in ("cholesky", "qr")
    )
    assert second.fit_report_.iterations[-1].method == "qr"
    scale = np.abs(first.posterior_.u).max()
    np.testing.assert_allclose(second.posterior_.u, first.posterior_.u, atol=1e-8 * scale)
    np.testing.assert_allclose(second.posterior_.lower, first.posterior_.lower, rtol=1e-6, atol=1e-6)
    assert second.fit_report_.loss == pytest.approx(first.fit_report_.loss, rel=1e-9)


def test_tiny_noise_loses_digits_without_qr(water_training):
    """Labels of a model of the same form, with next to no noise: what QR fits better, the loss tells."""
    made = [atoms.copy() for atoms in water_training]
    source = dipoles().fit(water_training)
    for atoms in made:
        atoms.info["dipole"] = source.predict(atoms, properties=["dipole"]).dipole
    tiny = {"dipole": 1e-8}
    found = dipoles(noise=tiny).fit(made)
    exact = dipoles(noise=tiny, solver="qr").fit(made)
    assert found.fit_report_.iterations[-1].method == "qr"
    assert found.fit_report_.iterations[-1].condition > CONDITION_LIMIT
    assert "QR" in str(found.fit_report_) and "condition" in str(found.fit_report_)
    np.testing.assert_array_equal(found.posterior_.u, exact.posterior_.u)
    try:
        lossy = dipoles(noise=tiny, solver="cholesky").fit(made)
    except NotPositiveDefiniteError:
        return
    error = np.abs(lossy.posterior_.u - exact.posterior_.u).max() / np.abs(exact.posterior_.u).max()
    assert error > 1e-5


def test_a_wrong_name_is_refused(water_training):
    with pytest.raises(InputError, match="'auto', 'cholesky', 'qr'"):
        dipoles(solver="lu").fit(water_training)
