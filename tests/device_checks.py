"""A stand-in for a GPU: arrays of ``array_api_strict`` on a device of its own; or a GPU.

They cannot be turned into NumPy arrays, and do not mix with arrays elsewhere, so that a copy to the host or a
NumPy call in the middle of a computation is an error here as it would be (an error, or a slow copy) with CuPy.
``KQEQ_TEST_DEVICE=cuda`` puts the GPU in its place: every test of a device then runs on the card.
"""

import os
from contextlib import contextmanager
from functools import wraps
from types import FunctionType, ModuleType

import array_api_strict
import numpy as np
import pytest

from kqeq.backend import Device, asarray_like, place, to_numpy

ON_CARD = os.environ.get("KQEQ_TEST_DEVICE") == "cuda"


def _device():
    if ON_CARD:
        from kqeq.backend.devices import resolve

        return resolve("cuda")
    return Device("strict", array_api_strict.asarray(np.empty(0), device=array_api_strict.Device("device1")))


STRICT = _device()
"""The device that the tests compare with the host."""

stand_in_only = pytest.mark.skipif(ON_CARD, reason="about the stand-in, not about a device")


def on_device(x):
    """NumPy array to the stand-in."""
    return asarray_like(np.asarray(x), STRICT.like)


def is_on_device(x):
    """Whether an array lives there."""
    return place(x) == place(STRICT.like)


def assert_same(result, expected, *, relative=1e-12, trivial=False):
    """An array on the stand-in equals one on the host, relative to its largest element, and is not all zero."""
    assert is_on_device(result)
    values, expected = to_numpy(result), np.asarray(expected)
    assert values.shape == expected.shape
    scale = np.abs(expected).max(initial=0.0)
    assert trivial or scale > 0.0
    np.testing.assert_allclose(values, expected, rtol=0, atol=relative * max(scale, 1e-30))


@contextmanager
def count_operations():
    """Counts array operations of the stand-in by name: each is (at least) one launch on a GPU."""
    counts = {}
    undo = []

    def patch(owner, name):
        original = getattr(owner, name)

        @wraps(original)
        def counted(*arguments, **options):
            counts[name] = counts.get(name, 0) + 1
            return original(*arguments, **options)

        undo.append((owner, name, original))
        setattr(owner, name, counted)

    free = {
        "reshape",
        "permute_dims",
        "matrix_transpose",
        "__getitem__",
        "isdtype",
        "can_cast",
        "result_type",
    }
    array = type(STRICT.like)
    for owner in (array_api_strict, array_api_strict.linalg):
        for name in vars(owner).get("__all__", dir(owner)):
            value = getattr(owner, name, None)
            if isinstance(value, FunctionType) and not isinstance(value, ModuleType) and name not in free:
                patch(owner, name)
    operators = (
        "add radd iadd sub rsub isub mul rmul imul truediv rtruediv itruediv pow neg matmul rmatmul imatmul"
    )
    for name in [*(f"__{own}__" for own in operators.split()), "__setitem__"]:
        if name in vars(array):
            patch(array, name)
    try:
        yield counts
    finally:
        for owner, name, original in undo:
            setattr(owner, name, original)
