"""Electrostatics on a device: the same numbers as on the host, in chunks or not, without copies in between."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from device_checks import STRICT, assert_same, is_on_device, on_device, stand_in_only
from kqeq.backend import limit_memory, memory_budget, place, record_transfers, to_numpy
from kqeq.electrostatics import EwaldCoulomb, MeshCoulomb, OpenCoulomb

CELL = np.array([[6.0, 0.3, 0.0], [-0.5, 6.5, 0.4], [0.2, 0.0, 7.0]])
PROVIDERS = {
    "open": lambda r, s, d: OpenCoulomb(r, s, dipoles=d),
    "bulk": lambda r, s, d: EwaldCoulomb(r, s, CELL, dipoles=d),
    "slab": lambda r, s, d: EwaldCoulomb(r, s, CELL, np.array([True, True, False]), dipoles=d),
    "mesh": lambda r, s, d: MeshCoulomb(r, s, CELL, dipoles=d, accuracy=1e-4),
    "mesh, open": lambda r, s, d: MeshCoulomb(r, s, dipoles=d, accuracy=1e-4),
}


def geometry():
    rng = np.random.default_rng(1)
    return rng.uniform(0.0, 6.0, (11, 3)), rng.uniform(0.5, 0.9, 11)


def blocks(size, columns):
    rng = np.random.default_rng(2)
    return rng.normal(size=size), rng.normal(size=(size, columns))


def everything(provider, put, columns):
    """All that a provider computes."""
    left, right = (put(x) for x in blocks(provider.size, columns))
    results = {
        "product": provider.matvec(right),
        "vector": provider.matvec(left),
        "gradient": provider.bilinear_gradient(left, right),
        "strain": provider.bilinear_strain(left, right),
        "width": provider.width_derivative(left, put(np.linspace(0.5, 1.0, 11))),
        "preconditioner": provider.preconditioner(put(np.full(provider.size, 5.0)))(left),
    }
    if not isinstance(provider, MeshCoulomb):
        results["matrix"] = provider.matrix()
    return results


@pytest.mark.parametrize("columns", [2, 7])
@pytest.mark.parametrize("dipoles", [False, True])
@pytest.mark.parametrize("name", PROVIDERS)
def test_the_same_numbers_without_copies(name, dipoles, columns):
    positions, sigma = geometry()
    expected = everything(PROVIDERS[name](positions, sigma, dipoles), np.asarray, columns)
    provider = PROVIDERS[name](on_device(positions), on_device(sigma), dipoles)
    with record_transfers() as moved:
        results = everything(provider, on_device, columns)
    assert moved.to_host == []
    for key, value in results.items():
        assert_same(value, expected[key], relative=1e-11, trivial=False)


@pytest.mark.parametrize("dipoles", [False, True])
@pytest.mark.parametrize("name", PROVIDERS)
def test_chunks_change_nothing(name, dipoles):
    positions, sigma = geometry()
    expected = everything(PROVIDERS[name](positions, sigma, dipoles), np.asarray, 7)
    with limit_memory(40_000):
        for put in (np.asarray, on_device):
            results = everything(PROVIDERS[name](put(positions), put(sigma), dipoles), put, 7)
            for key, value in results.items():
                scale = np.abs(expected[key]).max()
                assert_allclose(to_numpy(value), expected[key], rtol=0, atol=1e-11 * scale, err_msg=key)


@stand_in_only
def test_the_stand_in_is_as_strict_as_a_gpu():
    x = on_device(np.arange(3.0))
    with pytest.raises(RuntimeError, match="NumPy"):
        np.asarray(x)
    with pytest.raises(TypeError):
        x + np.ones(3)
    assert is_on_device(2.0 * x) and place(x) != place(np.ones(3))
    with record_transfers() as moved:
        to_numpy(on_device(np.zeros(4)))
    assert (moved.to_device, moved.to_host) == ([32], [32])
    assert memory_budget(STRICT.like) > 1e6
    with limit_memory(1234):
        assert memory_budget(STRICT.like) == memory_budget(np.ones(1)) == 1234
