"""The CUDA device: whether there is one that works."""

from __future__ import annotations

import array_api_compat

from kqeq.backend.arrays import Device
from kqeq.backend.linear import cholesky


def cuda_device() -> Device:
    """The current CUDA device, after a small computation on it has succeeded.

    Raises
    ------
    ImportError
        Without CuPy.
    Exception
        Whatever CuPy raises where there is no device, or none that its CUDA version can use, or where the answer is
        wrong; :mod:`kqeq.devices` puts it into words.
    """
    import cupy

    like = array_api_compat.array_namespace(cupy.empty(0)).empty(0)
    trial = cupy.eye(4) + 1.0
    lower = cholesky(trial)
    if lower is None or float(abs(lower @ lower.T - trial).max()) > 1e-12:
        raise RuntimeError("a Cholesky factorisation of a 4×4 matrix gave a wrong result")
    return Device("cuda", like)


def cuda_versions() -> tuple[int, int]:
    """CUDA versions that the driver supports (0: no driver) and that CuPy was built for, as 1000 major + 10 minor."""
    import cupy

    return int(cupy.cuda.runtime.driverGetVersion()), int(cupy.cuda.runtime.runtimeGetVersion())


def cuda_name() -> str:
    """Name of the current CUDA device."""
    import cupy

    return str(cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode())


__all__ = [
    "cuda_device",
    "cuda_name",
    "cuda_versions",
]
