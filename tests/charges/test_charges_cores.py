"""Charges under constraints: against bordered solves, numerical derivatives and matrices that are not as promised."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import assert_close, central_difference
from kqeq.charges.cores import ConstrainedCore
from kqeq.errors import NotPositiveDefiniteError


def spd(n, seed=0, low=0.5):
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return basis @ np.diag(np.linspace(low, 3.0, n)) @ basis.T


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
    built = ConstrainedCore.build(hessian, constraints, shift=shift)
    return hessian, constraints, built, rng


def solve(core, hessian, linear, totals):
    """y and ∂E/∂Q: at the minimum b + Hy is in the span of the constraints."""
    y = core.shape @ totals - core.respond(linear)
    return y, core.shape.T @ (linear + hessian @ y)


def bordered(hessian, constraints, linear, totals):
    """The same problem through its Karush–Kuhn–Tucker matrix: y and the multipliers −∂E/∂Q."""
    k = constraints.shape[1]
    matrix = np.block([[hessian, constraints], [constraints.T, np.zeros((k, k))]])
    solution = np.linalg.solve(matrix, np.concatenate([-linear, totals]))
    return solution[: len(linear)], -solution[len(linear) :]


@pytest.mark.parametrize("shift", [False, True])
@given(n=st.integers(3, 9), k=st.integers(1, 2), seed=st.integers(0, 1000))
def test_a_constrained_minimum_agrees_with_the_bordered_solve(shift, n, k, seed):
    hessian, constraints, built, rng = problem(n, k, seed, shift)
    linear, totals = rng.normal(size=n), rng.normal(size=k)
    y, slope = solve(built, hessian, linear, totals)
    expected, multipliers = bordered(hessian, constraints, linear, totals)
    np.testing.assert_allclose(y, expected, atol=1e-9 * max(1.0, np.abs(expected).max()))
    np.testing.assert_allclose(slope, multipliers, atol=1e-8 * max(1.0, np.abs(multipliers).max()))
    np.testing.assert_allclose(constraints.T @ y, totals, atol=1e-10 * max(1.0, np.abs(y).max()))


@pytest.mark.parametrize("shift", [False, True])
def test_derivatives(shift):
    hessian, _, built, rng = problem(shift=shift)
    linear, totals = rng.normal(size=6), rng.normal(size=2)

    def energy(b, q):
        y, _ = solve(built, hessian, b, q)
        return b @ y + 0.5 * y @ hessian @ y

    y, slope = solve(built, hessian, linear, totals)
    for direction in np.eye(2):
        assert_close(
            slope @ direction,
            central_difference(lambda t, d=direction: energy(linear, totals + t * d), 0.1),
            at_least=0.01,
        )
        assert_close(
            built.shape @ direction,
            central_difference(lambda t, d=direction: solve(built, hessian, linear, totals + t * d)[0], 0.1),
            at_least=0.01,
        )
    for direction in np.eye(6):
        assert_close(
            -built.respond(direction),
            central_difference(lambda t, d=direction: solve(built, hessian, linear + t * d, totals)[0], 0.1),
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
    shifted = ConstrainedCore.build(hessian, constraints, shift=True)
    np.testing.assert_allclose(shifted.shape, plain.shape, atol=1e-12)
    block = rng.normal(size=(6, 3))
    np.testing.assert_allclose(shifted.respond(block), plain.respond(block), atol=1e-12)


def test_no_minimum_is_an_error():
    hessian = spd(4)
    hessian[1, 1] -= 10.0
    for shift in (False, True):
        with pytest.raises(NotPositiveDefiniteError):
            ConstrainedCore.build(hessian, np.ones((4, 1)), shift=shift)
