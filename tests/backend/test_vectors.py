"""Vectors of four and eight doubles in compiled loops."""

import numpy as np
import pytest
from numpy.testing import assert_allclose


@pytest.fixture(scope="module")
def sample():
    """One loop that uses every short word once."""
    from numba import njit

    from kqeq.backend.vectors import (
        add,
        fma,
        load,
        load_spread_wide,
        load_wide,
        mul,
        next_line,
        spread,
        spread_wide,
        store,
        store_wide,
        sub,
    )

    @njit
    def task(a, b, out):
        store(out, 0, fma(load(a, 1), load(b, 2), spread(3.0)))
        store(out, 4, sub(add(load(a, 0), load(b, 0)), mul(load(a, 4), load(b, 5))))
        wide = fma(load_wide(a, 1, 2, 3), load_spread_wide(b, 1, 3, 2), spread_wide(0.5))
        store_wide(out, 14, 2, 5, wide)
        out[32] = next_line(out)

    return task


def test_each_word_means_what_it_says(sample):
    a, b = np.random.default_rng(0).normal(size=(2, 16))
    out = np.zeros(33)
    sample(a, b, out)
    assert_allclose(out[:4], a[1:5] * b[2:6] + 3.0, rtol=1e-14)
    assert_allclose(out[4:8], a[:4] + b[:4] - a[4:8] * b[5:9], rtol=1e-14)
    assert_allclose(out[24:32], a[7:15] * b[7] + 0.5, rtol=1e-14)
    assert (out.ctypes.data // 8 + int(out[32])) % 8 == 0
    assert 0 <= out[32] < 8


def test_only_rows_of_doubles_are_taken(sample):
    from numba.core.errors import TypingError

    with pytest.raises(TypingError):
        sample(np.zeros(16, dtype=np.float32), np.zeros(16), np.zeros(33))


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("add", [False, True])
def test_tile_is_a_product_of_matrices(count, add):
    from numba import njit

    from kqeq.backend.vectors import tile

    word = tile(3, 2, add=add)

    @njit
    def task(count, a, b, c):
        word(count, a, 1, 7, 1, b, 2, 9, c, 3, 10)

    rng = np.random.default_rng(1)
    a, b, c = (rng.normal(size=64) for _ in range(3))
    found = c.copy()
    task(count, a, b, found)
    expected = c.copy()
    left = np.array([a[1 + 7 * i :][:count] for i in range(3)])
    right = np.array([b[2 + 9 * k :][:8] for k in range(count)]).reshape(count, 8)
    for i, row in enumerate(left @ right):
        place = slice(3 + 10 * i, 11 + 10 * i)
        expected[place] = row + (c[place] if add else 0.0)
    assert_allclose(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("length", [4, 8, 28])
@pytest.mark.parametrize("together", [1, 2, 3])
def test_dots_are_dot_products(length, together):
    from numba import njit

    from kqeq.backend.vectors import dots

    word = dots(2, 3, together=together)

    @njit
    def task(length, a, b, c):
        word(length, a, 1, 30, b, 2, 31, c, 4, 5)

    rng = np.random.default_rng(2)
    a, b, c = (rng.normal(size=128) for _ in range(3))
    found = c.copy()
    task(length, a, b, found)
    expected = c.copy()
    for i in range(2):
        for j in range(3):
            expected[4 + 5 * i + j] = a[1 + 30 * i :][:length] @ b[2 + 31 * j :][:length]
    assert_allclose(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("number", [1, 4])
def test_exponentials_come_from_two_tables_and_a_series(number):
    from numba import njit

    from kqeq.backend.vectors import exponentials

    word = exponentials(number)
    step, count, rates = 0.05, 8, -np.linspace(0.3, 2.4, 8)
    fine = np.exp(np.outer(step * np.arange(count), rates))
    coarse = np.exp(np.outer(step * count * np.arange(30), rates))

    @njit
    def task(x, step, rates, fine, coarse, count, out):
        word(2, x, 1, step, rates, fine, coarse, 8, count, out, 3, 5)

    for x in ([0.0, 0.013, 1.0, 7.77], [11.0, 0.05, 0.1, 3.3]):
        out = np.zeros(64)
        task(np.array([9.0, *x]), step, rates, fine.ravel(), coarse.ravel(), count, out)
        expected = np.exp(np.outer(rates, x[:number]))
        places = 3 + (np.arange(8)[:, None] if number == 1 else 5 * np.arange(8)[:, None] + np.arange(4))
        assert_allclose(out[places], expected, rtol=1e-13)
