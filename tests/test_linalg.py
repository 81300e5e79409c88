"""Factor once, solve often: against bordered solves, numerical derivatives and matrices that are not as promised."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import assert_close, central_difference
from kqeq.backend.linalg import ConstrainedMinimum, factorise, factorise_with_jitter, solve_lower
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


# ----------------------------------------------------- constrained minimum


def problem(n=6, k=2, seed=0, shift=False):
    """A Hessian, constraints, the factored problem and a generator; ``shift``: indefinite across the constraints."""
    rng = np.random.default_rng(seed)
    hessian = spd(n, seed)
    constraints = rng.normal(size=(n, k))
    if shift:
        basis, _ = np.linalg.qr(constraints, mode="complete")
        inner = rng.normal(size=(n, n))
        inner = inner + inner.T
        inner[:k, :k] = -2.0 * np.eye(k)
        inner[k:, k:] = spd(n - k, seed)
        hessian = basis @ inner @ basis.T
    built = ConstrainedMinimum.build(hessian, constraints, shift=shift, what="it", remedy="")
    return hessian, constraints, built, rng


def bordered(hessian, constraints, linear, totals):
    """The same problem through its Karush–Kuhn–Tucker matrix: y and the multipliers −∂E/∂Q."""
    k = constraints.shape[1]
    matrix = np.block([[hessian, constraints], [constraints.T, np.zeros((k, k))]])
    solution = np.linalg.solve(matrix, np.concatenate([-linear, totals]))
    return solution[: len(linear)], -solution[len(linear) :]


@pytest.mark.parametrize("shift", [False, True])
@given(n=st.integers(3, 9), k=st.integers(1, 2), seed=st.integers(0, 1000))
def test_agrees_with_the_bordered_solve(shift, n, k, seed):
    hessian, constraints, built, rng = problem(n, k, seed, shift)
    linear, totals = rng.normal(size=n), rng.normal(size=k)
    y, slope = built.solve(linear, totals)
    expected, multipliers = bordered(hessian, constraints, linear, totals)
    np.testing.assert_allclose(y, expected, atol=1e-9 * max(1.0, np.abs(expected).max()))
    np.testing.assert_allclose(slope, multipliers, atol=1e-8 * max(1.0, np.abs(multipliers).max()))
    np.testing.assert_allclose(constraints.T @ y, totals, atol=1e-10 * max(1.0, np.abs(y).max()))


@pytest.mark.parametrize("shift", [False, True])
def test_derivatives(shift):
    hessian, _, built, rng = problem(shift=shift)
    linear, totals = rng.normal(size=6), rng.normal(size=2)

    def energy(b, q):
        y, _ = built.solve(b, q)
        return b @ y + 0.5 * y @ hessian @ y

    y, slope = built.solve(linear, totals)
    for direction in np.eye(2):
        assert_close(
            slope @ direction,
            central_difference(lambda t, d=direction: energy(linear, totals + t * d), 0.1),
            at_least=0.01,
        )
        assert_close(
            built.stiffness @ direction,
            central_difference(lambda t, d=direction: built.solve(linear, totals + t * d)[1], 0.1),
            at_least=0.01,
        )
        assert_close(
            built.shape @ direction,
            central_difference(lambda t, d=direction: built.solve(linear, totals + t * d)[0], 0.1),
            at_least=0.01,
        )
    for direction in np.eye(6):
        assert_close(
            -built.respond(direction),
            central_difference(lambda t, d=direction: built.solve(linear + t * d, totals)[0], 0.1),
            at_least=0.01,
        )
        # Hellmann–Feynman: the energy changes with b as y
        assert_close(
            y @ direction,
            central_difference(lambda t, d=direction: energy(linear + t * d, totals), 0.1),
            rtol=1e-8,
            at_least=0.001,
        )


@pytest.mark.parametrize("shift", [False, True])
def test_the_response_is_symmetric_positive_and_blind_to_the_constraints(shift):
    _, constraints, built, _ = problem(shift=shift)
    response = built.respond(np.eye(6))
    np.testing.assert_allclose(response, response.T, atol=1e-12)
    np.testing.assert_allclose(response @ constraints, 0.0, atol=1e-11)
    values = np.linalg.eigvalsh(response)
    assert values[0] > -1e-12
    assert (values > 1e-3).sum() == 4
    np.testing.assert_allclose(constraints.T @ built.shape, np.eye(2), atol=1e-11)
    np.testing.assert_allclose(built.respond(np.eye(6)[:, 2]), response[:, 2], atol=1e-14)


def test_the_shift_changes_nothing_where_it_is_not_needed():
    hessian, constraints, plain, rng = problem()
    shifted = ConstrainedMinimum.build(hessian, constraints, shift=True, what="", remedy="")
    np.testing.assert_allclose(shifted.shape, plain.shape, atol=1e-12)
    np.testing.assert_allclose(shifted.stiffness, plain.stiffness, atol=1e-12)
    block = rng.normal(size=(6, 3))
    np.testing.assert_allclose(shifted.respond(block), plain.respond(block), atol=1e-12)


def test_no_minimum_is_an_error():
    hessian = spd(4)
    hessian[1, 1] -= 10.0
    for shift in (False, True):
        with pytest.raises(NotPositiveDefiniteError, match=r"the QEq matrix .* harder"):
            ConstrainedMinimum.build(
                hessian, np.ones((4, 1)), shift=shift, what="the QEq matrix", remedy="harder"
            )
