"""Factor once, solve often: against bordered solves, numerical derivatives and matrices that are not as promised."""

import numpy as np
import pytest

from kqeq.backend.linalg import (
    chebyshev,
    described,
    factorise,
    factorise_with_jitter,
    ritz_range,
    solve_lower,
)
from kqeq.errors import NotPositiveDefiniteError, NumericsWarning


def spd(n, seed=0, low=0.5):
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return basis @ np.diag(np.linspace(low, 3.0, n)) @ basis.T


def test_factorise():
    matrix = spd(5)
    lower = factorise(matrix, "it", "do something")
    np.testing.assert_allclose(lower @ lower.T, matrix, atol=1e-14)
    assert not np.triu(lower, 1).any()


@pytest.mark.parametrize("spoil", ["indefinite", "nan", "inf", "zero"])
def test_factorise_says_what_and_why(spoil):
    matrix = spd(5)
    if spoil == "indefinite":
        matrix -= np.eye(5)
    elif spoil == "zero":
        matrix[:] = 0.0
    else:
        matrix[2, 2] = float(spoil)
    with pytest.raises(
        NotPositiveDefiniteError, match="the matrix is not positive definite; raise the hardness"
    ):
        factorise(matrix, "the matrix", "raise the hardness")


def test_solve_lower():
    lower = factorise(spd(4), "", "")
    rhs = np.random.default_rng(0).normal(size=(4, 3))
    np.testing.assert_allclose(lower @ solve_lower(lower, rhs), rhs, atol=1e-14)
    np.testing.assert_allclose(lower.T @ solve_lower(lower, rhs, transposed=True), rhs, atol=1e-14)
    np.testing.assert_allclose(solve_lower(lower, rhs[:, 0]), solve_lower(lower, rhs)[:, 0], atol=1e-14)


# ------------------------------------------------------------------- jitter


def test_jitter_is_small_and_silent_for_a_good_matrix():
    matrix = spd(6)
    lower, jitter = factorise_with_jitter(matrix, "it")
    assert 0 < jitter <= 1e-10 * np.trace(matrix) / 6 * (1 + 1e-12)
    np.testing.assert_allclose(lower @ lower.T, matrix + jitter * np.eye(6), atol=1e-14)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_jitter_says_when_more_is_needed(scale):
    """The least eigenvalue −3e-8 of the mean needs 1e-7, whatever the units."""
    basis, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))
    matrix = scale * basis @ np.diag([1.0, 1.0, 2.0, -3e-8]) @ basis.T
    with pytest.warns(NumericsWarning, match="the kernel is nearly singular; 1e-07"):
        lower, jitter = factorise_with_jitter(matrix, "the kernel")
    assert jitter == pytest.approx(1e-7 * np.trace(matrix) / 4)
    np.testing.assert_allclose(lower @ lower.T, matrix + jitter * np.eye(4), atol=1e-12 * scale)


def test_the_largest_jitter_is_tried():
    basis, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    matrix = basis @ np.diag([1.0, 2.0, -5e-5]) @ basis.T
    with pytest.warns(NumericsWarning, match="1e-04"):
        factorise_with_jitter(matrix, "it")


@pytest.mark.parametrize(
    "matrix",
    [
        np.diag([1.0, 1.0, -1e-3]),
        np.zeros((3, 3)),
        -np.eye(3),
        np.full((3, 3), np.nan),
        np.array([[1.0, np.nan], [np.nan, 1.0]]),
    ],
)
def test_no_jitter_helps(matrix):
    with pytest.raises(NotPositiveDefiniteError, match="the kernel is not positive semidefinite"):
        factorise_with_jitter(matrix, "the kernel")


def test_a_failure_inside_is_described():
    expected = pytest.raises(
        NotPositiveDefiniteError, match=r"^the QEq matrix is not positive definite; harder$"
    )
    with expected, described("the QEq matrix", "harder"):
        factorise(-np.eye(2))
    with described("the QEq matrix", "harder"):
        assert factorise(np.eye(2))[0, 0] == 1.0


def projected(n=12):
    """H, an approximate inverse and a projection that takes the mean out, as functions."""
    matrix = spd(n, low=0.5)

    def project(vector):
        return vector - vector.mean()

    def flow(vector):
        return project(project(vector) / np.diag(matrix))

    return matrix, lambda vector: matrix @ vector, flow, project


def spectrum_of(matrix):
    """Eigenvalues of the preconditioned matrix on vectors without mean."""
    n = len(matrix)
    basis = np.linalg.svd(np.eye(n) - 1.0 / n)[0][:, : n - 1]
    inner = basis.T @ np.diag(1.0 / np.diag(matrix)) @ basis
    root = np.linalg.cholesky(inner)
    return np.linalg.eigvalsh(root.T @ basis.T @ matrix @ basis @ root)


def test_ritz_values_approach_the_spectrum_from_inside():
    matrix, product, flow, project = projected()
    exact = spectrum_of(matrix)
    assert exact[-1] / exact[0] > 2.0
    start = np.random.default_rng(1).normal(size=len(matrix))
    before = (np.inf, -np.inf)
    for steps in (2, 5, 12):
        low, high = ritz_range(product, start, flow, project, steps=steps)
        assert exact[0] - 1e-10 < low < before[0] + 1e-10
        assert before[1] - 1e-10 < high < exact[-1] + 1e-10
        before = low, high
    np.testing.assert_allclose(before, exact[[0, -1]], rtol=1e-8)


def test_chebyshev_is_linear_symmetric_and_as_exact_as_it_says():
    matrix, product, flow, project = projected()
    exact = spectrum_of(matrix)
    spectrum = float(exact[0]), float(exact[-1])
    n = len(matrix)
    solution = np.linalg.pinv(project(np.eye(n)) @ matrix @ project(np.eye(n)))
    middle, half = 0.5 * sum(spectrum), 0.5 * (spectrum[1] - spectrum[0])
    for steps in (1, 2, 3, 6):
        columns = [
            chebyshev(product, unit, flow, project, spectrum=spectrum, steps=steps) for unit in np.eye(n)
        ]
        kernel = np.stack(columns, axis=1)
        np.testing.assert_allclose(kernel, kernel.T, atol=1e-12)
        error = np.linalg.eigvals((np.eye(n) - kernel @ matrix) @ (solution @ matrix))
        bound = 1.0 / np.cosh(steps * np.arccosh(middle / half))
        assert 0.5 * bound < np.abs(error).max() < bound * (1 + 1e-6)
