"""Charges outside a structure that act on it: the surroundings of an embedded system (QM/MM-like)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kqeq.errors import InputError
from kqeq.typing import FloatArray

NOTED_OUTSIDE = "calculator_external_charges"
"""Name in ``atoms.info`` under which :class:`kqeq.KQEqCalculator` notes how many external charges it was told."""

_LARGEST_POSITION = 1e5
"""Coordinates beyond this (Å) are refused, as those of atoms are."""


@dataclass(frozen=True, eq=False)
class ExternalCharges:
    """M Gaussian charges that are not part of a structure.

    Attributes
    ----------
    positions : (M, 3) array
        Å.
    charges : (M,) array
        e.
    widths : (M,) array
        Standard deviations of the Gaussians, Å; one number stands for all of them.  Zero is a point charge, which needs
        open boundaries.

    Raises
    ------
    InputError
        For other shapes, values that are not finite, or negative widths.
    """

    positions: FloatArray
    charges: FloatArray
    widths: FloatArray

    def __init__(self, positions: Any, charges: Any, widths: Any = 0.0) -> None:
        where = _array(positions, "positions")
        if where.size == 0:
            where = where.reshape(0, 3)
        if where.ndim != 2 or where.shape[1] != 3:
            raise InputError(
                f"positions of external charges have shape {where.shape}; expected (M, 3), one row a charge, in Å"
            )
        count = len(where)
        if count and np.abs(where).max() > _LARGEST_POSITION:
            raise InputError(
                f"an external charge lies {np.abs(where).max():g} Å from the origin; are the positions in Å?"
            )
        values = _array(charges, "charges")
        if values.shape != (count,):
            raise InputError(
                f"{count} external charges have charges of shape {values.shape}; expected ({count},), in e"
            )
        sizes = _array(widths, "widths")
        if sizes.ndim == 0:
            sizes = np.full(count, float(sizes))
        if sizes.shape != (count,) or (sizes < 0.0).any():
            raise InputError(
                f"widths of {count} external charges are {np.asarray(widths)!r}; expected one length in Å that is not "
                f"negative, or {count} of them"
            )
        for name, array in (("positions", where), ("charges", values), ("widths", sizes)):
            own = array.copy()
            own.flags.writeable = False  # a calculator keeps them behind its cache
            object.__setattr__(self, name, own)

    def __len__(self) -> int:
        return len(self.charges)

    def same_as(self, other: ExternalCharges | None) -> bool:
        """Whether all numbers are equal."""
        return other is not None and all(
            np.array_equal(getattr(self, name), getattr(other, name))
            for name in ("positions", "charges", "widths")
        )


def _array(values: Any, name: str) -> FloatArray:
    try:
        raw = np.asarray(values)
        array = np.asarray(raw, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} of external charges are {values!r}; expected numbers") from None
    if raw.dtype.kind == "b" or not np.isfinite(array).all():
        raise InputError(f"{name} of external charges have values that are NaN, infinite or no numbers")
    return array


def read_external_charges(value: Any) -> ExternalCharges | None:
    """External charges as users give them: an object, a tuple (positions, charges[, widths]), or a dict by these names.

    No charges at all are the same as ``None``.

    Raises
    ------
    InputError
    """
    if value is None:
        return None
    if isinstance(value, Mapping):
        unknown = set(value) - {"positions", "charges", "widths"}
        if unknown or "positions" not in value or "charges" not in value:
            raise InputError(
                f"external_charges is a dict with {', '.join(map(repr, value))}; expected 'positions' (M, 3) in Å, "
                "'charges' (M,) in e, and 'widths' in Å (0 without)"
            )
        value = ExternalCharges(**value)
    elif isinstance(value, tuple | list) and len(value) in (2, 3):
        value = ExternalCharges(*value)
    if not isinstance(value, ExternalCharges):
        raise InputError(
            f"external_charges is {type(value).__name__}; expected kqeq.ExternalCharges(positions, charges, widths), a "
            "tuple of these three, or None"
        )
    return value if len(value) else None


__all__ = ["NOTED_OUTSIDE", "ExternalCharges", "read_external_charges"]
