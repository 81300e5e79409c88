"""The CUDA device: whether there is one that works, and kernels of our own on it.

A kernel is CUDA source beside array-namespace code that computes the same (its twin, the reference).  The tests
compile kernels with nvcc, execute them on a CPU, thread by thread, and on a GPU where there is one.  They are used on
every GPU (on an H100 1.4 to 18 times as fast as the array code, docs/performance.md); the environment variable
``KQEQ_CUDA_KERNELS=0`` goes back to the array code (:func:`use_raw_kernels`).
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import array_api_compat

from kqeq.backend.arrays import Device, is_cupy
from kqeq.backend.linear import cholesky
from kqeq.typing import Array


def cuda_device() -> Device:
    """The current CUDA device, after a small computation on it has succeeded.

    Raises
    ------
    ImportError
        Without CuPy.
    Exception
        Whatever CuPy raises where there is no device, or none that its CUDA version can use, or where the answer is
        wrong; :mod:`kqeq.backend.devices` puts it into words.
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


def use_raw_kernels(x: Array) -> bool:
    """Whether kernels of our own compute with ``x``: a CuPy array, and the user did not turn them off."""
    return os.environ.get("KQEQ_CUDA_KERNELS") != "0" and is_cupy(x)


@cache
def raw_kernel(source: str, name: str) -> Any:
    """The kernel ``name`` of CUDA source, to be called with grid, block and arguments.

    Arguments are contiguous CuPy arrays and NumPy scalars of the declared types; CuPy checks neither.
    """
    import cupy

    return cupy.RawModule(code=source).get_function(name)


__all__ = [
    "cuda_device",
    "cuda_name",
    "cuda_versions",
    "raw_kernel",
    "use_raw_kernels",
]
