"""Exceptions and warnings of the package.

Every message names what was given, what was expected and the remedy.  All exceptions derive from
:class:`KQEqError` and, where one fits, from the built-in exception that generic code would catch.
"""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

_PACKAGE = f"{Path(__file__).parent}{os.sep}"


class KQEqError(Exception):
    """Base class of every error that this package raises on purpose."""


class InputError(KQEqError, ValueError):
    """An argument, a frame or a label that cannot be used as given."""


class OutputError(InputError, OSError):
    """A file that cannot be written: a full disk, or whatever else the operating system says."""


class UnsupportedError(KQEqError, NotImplementedError):
    """A meaningful request that this version, or this charge model, cannot answer."""


class NotPositiveDefiniteError(KQEqError, np.linalg.LinAlgError):
    """A matrix that has to be positive definite is not."""


class ConvergenceError(KQEqError, RuntimeError):
    """An iteration did not reach the accuracy that was asked for."""


class DeviceError(KQEqError, RuntimeError):
    """A GPU that was asked for is not there, does not work, or has no memory left."""


class WorkerError(KQEqError, RuntimeError):
    """Processes that shared the work of a fit died."""


class ModelFileError(KQEqError, OSError):
    """A model file that is truncated, foreign, damaged or from a newer version."""


class ModelNotFittedError(KQEqError, ValueError, AttributeError):
    """A model was asked to predict before it was fitted."""


class ExtrapolationError(KQEqError, RuntimeError):
    """A simulation was stopped because it left what the model was fitted on.

    Attributes
    ----------
    extrapolation : kqeq.uncertainty.guard.Extrapolation
        The structure, the prediction, and what is beyond which limit.
    """

    def __init__(self, message: str, extrapolation: Any = None) -> None:
        super().__init__(message)
        self.extrapolation = extrapolation


class EngineError(KQEqError, RuntimeError):
    """A simulation program that is not there, went away, or asks for something that this package cannot give."""


class KQEqWarning(UserWarning):
    """Base class of every warning of this package."""


class LabelWarning(KQEqWarning):
    """Labels that can be used but look suspicious."""


class ExtrapolationWarning(KQEqWarning):
    """A structure beyond what the model was fitted on, where a calculator was told to watch for that."""


class UndeterminedWarning(KQEqWarning):
    """A prediction that the training data do not determine."""


class NumericsWarning(KQEqWarning):
    """A computation that needed help, for example jitter on a kernel matrix."""


class RepresentativesWarning(KQEqWarning):
    """Fewer representative environments could be chosen than were asked for."""


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line outside this package that led here: what a user sees is their own call, however deep it went."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


__all__ = [
    "ConvergenceError",
    "DeviceError",
    "EngineError",
    "ExtrapolationError",
    "ExtrapolationWarning",
    "InputError",
    "KQEqError",
    "KQEqWarning",
    "LabelWarning",
    "ModelFileError",
    "ModelNotFittedError",
    "NotPositiveDefiniteError",
    "NumericsWarning",
    "OutputError",
    "RepresentativesWarning",
    "UndeterminedWarning",
    "UnsupportedError",
    "WorkerError",
    "warn",
]
