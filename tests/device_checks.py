"""A stand-in for a GPU: arrays of ``array_api_strict`` on a device of its own.

They cannot be turned into NumPy arrays, and do not mix with arrays elsewhere, so that a copy to the host or a
NumPy call in the middle of a computation is an error here as it would be (an error, or a slow copy) with CuPy.
"""

import array_api_strict
import numpy as np

from kqeq.backend import Device, asarray_like, namespace, place, to_numpy

STRICT = Device("strict", array_api_strict.asarray(np.empty(0), device=array_api_strict.Device("device1")))


def on_device(x):
    """NumPy array to the stand-in."""
    return asarray_like(np.asarray(x), STRICT.like)


def is_on_device(x):
    """Whether an array lives there."""
    return place(x) == place(STRICT.like)


def assert_same(result, expected, *, relative=1e-12, trivial=False):
    """An array on the stand-in equals one on the host, relative to its largest element, and is not all zero."""
    assert namespace(result) is array_api_strict
    assert is_on_device(result)
    values, expected = to_numpy(result), np.asarray(expected)
    assert values.shape == expected.shape
    scale = np.abs(expected).max(initial=0.0)
    assert trivial or scale > 0.0
    np.testing.assert_allclose(values, expected, rtol=0, atol=relative * max(scale, 1e-30))
