"""Orthogonal changes of parameters: the same equations, and more of their digits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_checks import on_device
from kqeq import KQEq
from kqeq.backend import to_numpy
from kqeq.fitting.least_squares.equations import (
    CONDITION_LIMIT,
    NormalEquations,
    Prior,
    TurnedEquations,
)
from kqeq.fitting.least_squares.solver import accumulate, minimise, sum_frames
from kqeq.fitting.least_squares.turning import DIRECTIONS, FEWEST, Reflections, Turn
from solver_problems import Problem


def dense(turn, size):
    """Q as a matrix."""
    return turn.back(np.eye(size))


@given(p=st.integers(1, 12), k=st.integers(1, 12), seed=st.integers(0, 1000))
def test_reflections_are_orthogonal_and_begin_with_the_directions(p, k, seed):
    k = min(k, p)
    directions = np.random.default_rng(seed).normal(size=(p, k))
    turn = Turn((Reflections.onto(slice(2, 2 + p), directions),))
    q = dense(turn, p + 3)
    np.testing.assert_allclose(q.T @ q, np.eye(p + 3), atol=1e-12)
    outside = np.setdiff1d(np.arange(p + 3), np.arange(2, 2 + p))
    np.testing.assert_array_equal(q[np.ix_(outside, outside)], np.eye(3))
    # nothing of the directions is left beside the first k columns
    np.testing.assert_allclose(directions.T @ q[2 : 2 + p, 2 + k : 2 + p], 0.0, atol=1e-10)
    vector = np.random.default_rng(seed + 1).normal(size=p + 3)
    np.testing.assert_allclose(turn.forth(vector), q.T @ vector, atol=1e-12)
    np.testing.assert_allclose(turn.back(vector), q @ vector, atol=1e-12)
    inside = turn.inside(slice(1, p + 3))
    np.testing.assert_allclose(inside.back(vector[1:]), q[1:, 1:] @ vector[1:], atol=1e-12)
    matrix = np.random.default_rng(seed + 3).normal(size=(p + 3, 5))
    turned = matrix.copy()
    turn.turn_back(turned)
    np.testing.assert_allclose(turned, q @ matrix, atol=1e-12)
    rows = np.random.default_rng(seed + 2).normal(size=(4, p + 3))
    np.testing.assert_allclose(to_numpy(turn.rows(on_device(rows))), rows @ q, atol=1e-12)
    np.testing.assert_allclose(turn.rows(rows.copy()), rows @ q, atol=1e-12)


def test_small_blocks_stay():
    rows = np.random.default_rng(0).normal(size=(5, 2 * FEWEST))
    assert Turn.towards(rows, [slice(0, FEWEST - 1)]) is None
    turn = Turn.towards(rows, [slice(0, FEWEST), slice(FEWEST, FEWEST + 3)])
    assert [block.columns for block in turn.blocks] == [slice(0, FEWEST)]
    assert turn.blocks[0].vectors.shape == (FEWEST, 5)
    assert Turn.towards(np.zeros((3, FEWEST)), [slice(0, FEWEST)]) is None


def common(size=120, n=400, large=1e8, seed=0, linear=False):
    """Features with a large common part, as those of a kernel of energies, and small parts of their own."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.5, 1.0, size=size)
    matrix = large * np.outer(1.0 + 0.01 * rng.normal(size=n), weights) + 30.0 * rng.normal(size=(n, size))
    truth = rng.normal(size=size)
    target = matrix @ truth + rng.normal(size=n)
    columns = slice(0, size if linear else 90)
    problem = Problem(
        lambda u: target - matrix @ u,
        size,
        jacobian=lambda u: matrix,
        linear=linear,
        linear_columns=columns,
    )
    return problem, matrix, target


@pytest.mark.parametrize("damping", [0.0, 0.4])
def test_turned_equations_are_those_of_the_parameters(damping):
    problem, matrix, _ = common(large=30.0)
    turn = Turn.towards(matrix[:20], [slice(0, 90), slice(90, 120)])
    u = np.linspace(-1.0, 1.0, 120)
    plain = accumulate(problem, u)
    turned = accumulate(problem, u, turn=turn)
    assert isinstance(plain, NormalEquations) and isinstance(turned, TurnedEquations)
    np.testing.assert_allclose(turned.rhs, plain.rhs, rtol=1e-9, atol=1e-8)
    assert turned.loss == pytest.approx(plain.loss, rel=1e-12)
    np.testing.assert_allclose(turned.lower, plain.lower, atol=1e-9)
    assert not np.triu(turned.lower, 1).any()
    np.testing.assert_allclose(turned.solve(u), plain.solve(u), atol=1e-10)
    assert turned.decrement() == pytest.approx(plain.decrement(), rel=1e-9)
    assert turned.promised(u) == pytest.approx(plain.promised(u), rel=1e-9)
    own = slice(0, 90)
    np.testing.assert_allclose(turned.inverse(own)(u[own]), plain.inverse(own)(u[own]), atol=1e-10)
    # the last block is too small to be turned: damping of its parameters, and an end that is given, mean the same
    np.testing.assert_allclose(turned.step(damping), plain.step(damping), atol=1e-9)
    last = np.array([0.3, -0.2])
    np.testing.assert_allclose(turned.step(damping, last), plain.step(damping, last), atol=1e-9)
    again = accumulate(problem, u - 0.5, linear=turned.linear, turn=turn)
    assert again.linear is turned.linear
    np.testing.assert_allclose(again.step(0.0), accumulate(problem, u - 0.5).step(0.0), atol=1e-9)


def test_turning_keeps_the_digits_that_normal_equations_lose():
    problem, matrix, target = common(linear=True)
    turn = Turn.towards(matrix[:10], [slice(0, 120)])
    exact = np.linalg.lstsq(
        np.vstack([matrix, np.eye(120)]), np.concatenate([target, np.zeros(120)]), rcond=None
    )[0]
    plain = minimise(problem, np.zeros(120), solver="cholesky")
    turned = minimise(problem, np.zeros(120), turn=turn)
    assert turned.iterations[-1].method == "cholesky"
    assert plain.iterations[-1].condition > CONDITION_LIMIT > 1e4 * turned.iterations[-1].condition
    scale = np.abs(exact).max()
    assert np.abs(turned.u - exact).max() < 1e-6 * scale
    assert np.abs(plain.u - exact).max() > 1e-5 * scale
    # auto without directions has to take the longer way
    assert minimise(problem, np.zeros(120)).iterations[-1].method == "qr"


def test_many_parameters_in_closed_form_are_turned_where_they_must(monkeypatch):
    from kqeq.fitting.least_squares import solver

    monkeypatch.setattr(solver, "PLAIN_FIRST", 100)
    for large, expected in ((30.0, NormalEquations), (1e8, TurnedEquations)):
        problem, matrix, _ = common(large=large, linear=True)
        turn = Turn.towards(matrix[:10], [slice(0, 120)])
        found = accumulate(problem, np.zeros(120), turn=turn)
        assert isinstance(found, expected)
        assert len(problem.calls) == (1 if expected is NormalEquations else 2)


def test_other_priors_and_methods_are_not_turned():
    problem, matrix, _ = common(large=30.0)
    turn = Turn.towards(matrix[:20], [slice(0, 120)])
    prior = Prior(np.zeros(120), np.diag(np.linspace(1.0, 2.0, 120)))
    u = np.zeros(120)
    assert isinstance(accumulate(problem, u, prior=prior, turn=turn), NormalEquations)
    assert isinstance(accumulate(problem, u, solver="cholesky", turn=turn), NormalEquations)


def test_sums_turn_on_any_device():
    matrix = np.random.default_rng(3).normal(size=(30, FEWEST))
    target = np.arange(30.0)
    turn = Turn.towards(matrix[:4], [slice(0, FEWEST)])

    class Rows:
        size, linear, linear_columns = FEWEST, True, None

        def rows(self, u, *, jacobian):
            for part in np.array_split(np.arange(30), 3):
                yield on_device(target[part]), on_device(matrix[part])

    sums = sum_frames(Rows(), np.zeros(FEWEST), "full", turn)
    q = dense(turn, FEWEST)
    np.testing.assert_allclose(to_numpy(sums.hessian), q.T @ matrix.T @ matrix @ q, atol=1e-10)
    np.testing.assert_allclose(to_numpy(sums.rhs), q.T @ matrix.T @ target, atol=1e-10)


@pytest.mark.parametrize("split", [None, slice(0, 100)])
def test_turned_equations_on_a_device(split):
    """All that is asked of them, with a block of linear parameters and without."""
    matrix = np.random.default_rng(3).normal(size=(260, 200))
    target = np.random.default_rng(4).normal(size=260)
    turn = Turn.towards(matrix[:30], [slice(0, 100), slice(100, 200)])
    assert len(turn.blocks) == 2

    class Rows:
        size, linear, linear_columns = 200, False, split

        def __init__(self, put):
            self.put = put

        def rows(self, u, *, jacobian):
            for part in np.array_split(np.arange(260), 3):
                yield self.put(target[part] - matrix[part] @ u), self.put(matrix[part])

    u = np.linspace(-1.0, 1.0, 200)
    host, device = (accumulate(Rows(put), u, turn=turn) for put in (np.asarray, on_device))
    assert isinstance(device, TurnedEquations)
    np.testing.assert_allclose(device.lower, host.lower, atol=1e-10)
    assert not np.triu(device.lower, 1).any()
    for damping in (0.0, 0.4):
        np.testing.assert_allclose(device.step(damping), host.step(damping), atol=1e-11)
    np.testing.assert_allclose(device.solve(u), host.solve(u), atol=1e-11)
    assert device.promised(u) == pytest.approx(host.promised(u), rel=1e-10)
    own = slice(0, 100)
    np.testing.assert_allclose(device.inverse(own)(u[own]), host.inverse(own)(u[own]), atol=1e-11)


def test_fits_are_turned_and_agree_with_qr(water_training, kernel):
    short = [kernel(r, zeta=4, n_representatives=15) for r in (3.0, 4.0, 5.0)]
    options = {"charges": None, "noise": {"energy": 1e-6, "forces": 1e-3}, "targets": ["energy", "forces"]}
    first, second, plain = (
        KQEq(None, short, solver=how, **options).fit(water_training) for how in ("auto", "qr", "cholesky")
    )
    assert first.fit_report_.n_parameters > 2 * DIRECTIONS
    own, without = first.fit_report_.iterations[-1], plain.fit_report_.iterations[-1]
    assert own.method == "cholesky" and 1e3 * own.condition < without.condition
    for atoms in water_training[:3]:
        one, two = first.predict(atoms, uncertainty=True), second.predict(atoms, uncertainty=True)
        assert one.energy == pytest.approx(two.energy, abs=1e-5)
        np.testing.assert_allclose(one.forces, two.forces, atol=1e-4)
        assert one.energy_std == pytest.approx(two.energy_std, rel=1e-3)
