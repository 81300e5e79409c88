"""Array types used in signatures throughout the package."""

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

Array = Any
"""An array of any namespace that follows the array API standard (NumPy, CuPy, array_api_strict)."""

__all__ = ["Array", "BoolArray", "FloatArray", "IntArray"]
