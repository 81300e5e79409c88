"""Vectors of four doubles in compiled loops."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def sample():
    """One loop that uses every word once."""
    from numba import njit

    from kqeq.backend.vectors import add, fma, load, load_spread, mul, spread, store, sub, total, turned

    @njit
    def task(a, b, out):
        store(out, 0, fma(load(a, 1), load(b, 2), spread(3.0)))
        store(out, 4, sub(add(load(a, 0), load(b, 0)), mul(load(a, 4), load_spread(b, 5))))
        columns = turned(load(a, 0), load(a, 4), load(a, 8), load(a, 12))
        for i in range(4):
            store(out, 8 + 4 * i, columns[i])
        out[24] = total(load(b, 3))

    return task


def test_each_word_means_what_it_says(sample):
    a, b = np.random.default_rng(0).normal(size=(2, 16))
    out = np.zeros(25)
    sample(a, b, out)
    assert np.allclose(out[:4], a[1:5] * b[2:6] + 3.0, rtol=1e-15, atol=1e-15)
    assert np.allclose(out[4:8], a[:4] + b[:4] - a[4:8] * b[5], rtol=1e-15, atol=1e-15)
    assert np.array_equal(out[8:24].reshape(4, 4), a.reshape(4, 4).T)
    assert out[24] == pytest.approx(b[3:7].sum(), rel=1e-14)


def test_only_rows_of_doubles_are_taken(sample):
    from numba.core.errors import TypingError

    with pytest.raises(TypingError):
        sample(np.zeros(16, dtype=np.float32), np.zeros(16), np.zeros(25))
