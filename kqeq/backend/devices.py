"""Which device to compute on: what a user may ask for, and what happens where that does not work.

``"cpu"`` is NumPy and compiled kernels, ``"cuda"`` CuPy, ``"auto"`` CuPy where that works.  What goes wrong with a
GPU is one exception, :class:`kqeq.errors.DeviceError`, that names the cause and a remedy; with ``"auto"`` it is one
line, and the work is done on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

from kqeq import backend
from kqeq.backend import CPU, Device
from kqeq.errors import DeviceError, InputError
from kqeq.io.progress import say

T = TypeVar("T")

CHOICES: tuple[str, ...] = ("cpu", "cuda", "auto")
"""What may be asked for by name."""

PRECISIONS: tuple[str, ...] = ("float64", "float32")
"""Precisions of the matrix product behind the forces of kernels."""

_INSTALL = (
    "pip install 'kqeq[cuda13]' for drivers from 580 on, 'kqeq[cuda12]' for older ones (525 or newer); "
    'or device="cpu"'
)


@lru_cache(maxsize=1)
def _probe() -> Device | str:
    """The GPU, or why there is none."""
    try:
        return backend.cuda_device()
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "cupy":
            return f"CuPy is not installed; {_INSTALL}"
        return f"CuPy cannot be imported ({_line(error)}); install it again: {_INSTALL}"
    except ImportError as error:
        return (
            f"CuPy does not find the CUDA libraries that it needs ({_line(error)}); install them with "
            "pip install 'cupy-cuda13x[ctk]' (or cupy-cuda12x[ctk]), or a CUDA toolkit"
        )
    except MemoryError as error:
        return f"the GPU has no memory left ({_line(error)}); other programs may be using it (nvidia-smi)"
    except Exception as error:
        return f"{_driver_trouble(error)}"


def _driver_trouble(error: Exception) -> str:
    """What an error of the CUDA runtime means."""
    text = _line(error)
    if "InsufficientDriver" in text or "driver version is insufficient" in text:
        driver, runtime = backend.cuda_versions()
        if driver == 0:
            return 'there is no NVIDIA driver on this machine, or no GPU; use device="cpu"'
        return (
            f"the NVIDIA driver supports CUDA {_version(driver)}, and the installed CuPy needs {_version(runtime)}; "
            f"update the driver, or install the CuPy that fits: {_INSTALL}"
        )
    if "NoDevice" in text or "no CUDA-capable device" in text:
        return "no CUDA device is visible (is CUDA_VISIBLE_DEVICES empty?)"
    return f"the GPU does not work: {text}"


def _line(error: BaseException) -> str:
    """The first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _version(number: int) -> str:
    """12040 to 12.4."""
    return f"{number // 1000}.{number % 1000 // 10}"


@lru_cache(maxsize=64)
def _say_once(text: str) -> None:
    say(text)


def resolve(choice: str | Device) -> Device:
    """The device that a user asks for.

    Parameters
    ----------
    choice : {"cpu", "cuda", "auto"} or Device

    Raises
    ------
    InputError
        For other names.
    DeviceError
        If ``"cuda"`` does not work on this machine; the message says why.
    """
    if isinstance(choice, Device):
        return choice
    if choice not in CHOICES:
        raise InputError(f"device is {choice!r}; expected one of {', '.join(map(repr, CHOICES))}")
    if choice == "cpu":
        return CPU
    found = _probe()
    if isinstance(found, Device):
        if choice == "auto":
            _say_once(f"kqeq computes on {backend.cuda_name()} (CUDA)")
        return found
    if choice == "cuda":
        raise DeviceError(f'device="cuda" was asked for, but {found}')
    if not found.startswith("CuPy is not installed"):
        _say_once(f"kqeq computes on the CPU: {found}")
    return CPU


@contextmanager
def guarded(device: Device) -> Iterator[None]:
    """Turn what goes wrong with a GPU inside the block into our own error.

    Raises
    ------
    DeviceError
        If it has no memory left, or CUDA reports a failure.
    """
    if device.is_host:
        yield
        return
    try:
        yield
    except MemoryError as error:
        raise DeviceError(
            f"{device.name} ran out of memory ({_line(error)}). Temporary arrays adapt to what is free; what is left is "
            "the structure itself, its descriptors and matrices: free the memory that other programs use, set "
            'device="cpu", or choose solver="iterative" for the charges of a large structure'
        ) from error
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("cupy", "cupy_backends", "cupyx"):
            raise DeviceError(f"{device.name} failed: {_line(error)}") from error
        raise


def run(choice: str | Device, task: Callable[[Device], T]) -> tuple[T, Device]:
    """Do ``task`` on the chosen device; ``"auto"`` falls back on the CPU where the GPU fails.

    Returns
    -------
    what the task returns, and the device that it ran on
    """
    device = resolve(choice)
    try:
        with guarded(device):
            return task(device), device
    except DeviceError as error:
        if choice != "auto":
            raise
        _say_once(f"kqeq goes on with the CPU: {_line(error)}")
        return task(CPU), CPU


def check_precision(precision: str) -> bool:
    """Whether kernel products are to be done in single precision.

    Raises
    ------
    InputError
        For unknown names.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; expected one of {', '.join(map(repr, PRECISIONS))}")
    return precision == "float32"


__all__ = ["CHOICES", "PRECISIONS", "check_precision", "guarded", "resolve", "run"]
