"""What a file may hold, declared in tables and checked before anything of it is used.

Arrays: one line each, with its kind of numbers, its shape in named dimensions and the bounds of its values::

    ArrayField("{part}/{element}/indices", "int", ("nonzero",), low=0, below="features")

A dimension gets its value from the first array that names it, or from the caller; from then on every array has to agree.

Headers: nested plain data, described by small checkers that can be combined::

    table(species=sequence(text(choices=chemical_symbols)), zeta=number(low=1.0), posterior=optional(anything))

Neither knows what a model is.  Settings have a door of their own, :mod:`kqeq.io.rules`: they are objects that a user
wrote, refused with the remedy; what stands here comes from a file, nested, possibly hostile, and is refused with its
place.  What a number is, and how a refused value is shown, is defined there for both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kqeq.io.rules import is_real, is_whole, show

Checker = Callable[[Any, str], None]
"""Called with a value and its place in the header; raises :class:`SchemaError`."""

LARGEST = 1e30
"""Finite numbers beyond this are refused: their squares overflow."""


class SchemaError(ValueError):
    """Content that does not follow its schema."""


@dataclass(frozen=True)
class ArrayField:
    """One array of a file.

    Attributes
    ----------
    name : str
        May hold fields in braces, which the caller fills in.
    kind : {"float", "int"}
    shape : tuple of str or int
        Names of dimensions, or fixed lengths.  ``"rows+1"`` is one more than the dimension ``rows``.
    low, high : float
        Bounds of the values, included.
    below : str, optional
        Dimension that the values stay below.
    offsets : str, optional
        Dimension of another array that these are offsets into: they rise from 0 to it.
    """

    name: str
    kind: str
    shape: tuple[str | int, ...]
    low: float = -LARGEST
    high: float = LARGEST
    below: str | None = None
    offsets: str | None = None

    def check(self, array: Any, dimensions: dict[str, int], name: str) -> None:
        """Check an array, and learn from it the dimensions that are not known yet.

        Raises
        ------
        SchemaError
        """
        if array is None:
            raise SchemaError(f"the array {name} is missing")
        if array.dtype.kind != {"float": "f", "int": "i"}[self.kind]:
            raise SchemaError(f"the array {name} holds {array.dtype} numbers, expected {self.kind}")
        if array.ndim != len(self.shape):
            raise SchemaError(
                f"the array {name} has shape {array.shape}, expected {len(self.shape)} dimensions"
            )
        for wanted, found in zip(self.shape, array.shape, strict=True):
            if isinstance(wanted, int):
                expected = wanted
            else:
                dimension, _, more = wanted.partition("+")
                extra = int(more or 0)
                expected = dimensions.setdefault(dimension, found - extra) + extra
            if found != expected or found < 0:
                raise SchemaError(f"the array {name} has shape {array.shape}, expected {wanted} = {expected}")
        if array.size == 0:
            return
        low, high = float(array.min()), float(array.max())  # NaN anywhere makes both NaN
        if not (self.low <= low and high <= self.high):
            raise SchemaError(f"the array {name} has values from {low:g} to {high:g}, or NaN")
        if self.below is not None and high >= dimensions[self.below]:
            raise SchemaError(
                f"the array {name} reaches {high:g}, beyond {self.below} = {dimensions[self.below]}"
            )
        if self.offsets is not None:
            rises = array[0] == 0 and array[-1] == dimensions[self.offsets] and (np.diff(array) >= 0).all()
            if not rises:
                raise SchemaError(f"the array {name} does not rise from 0 to {dimensions[self.offsets]}")


def check_arrays(
    fields: Sequence[ArrayField],
    arrays: Mapping[str, Any],
    used: set[str],
    dimensions: Mapping[str, int] | None = None,
    **names: str,
) -> dict[str, int]:
    """Check the arrays that a table of fields names.

    Parameters
    ----------
    fields : sequence of ArrayField
    arrays : mapping of str to array
    used : set of str
        Names of the arrays that were checked are added.
    dimensions : mapping of str to int, optional
        What is known of the dimensions before.
    **names
        For the braces in the names of the fields.

    Returns
    -------
    dict of str to int
        The dimensions.

    Raises
    ------
    SchemaError
    """
    known = dict(dimensions or {})
    for field in fields:
        name = field.name.format(**names)
        field.check(arrays.get(name), known, name)
        used.add(name)
    return known


# ------------------------------------------------------------------- headers


def anything(value: Any, place: str) -> None:
    """Accept whatever is there; somebody else checks it."""


def flag(value: Any, place: str) -> None:
    """Accept true and false."""
    if not isinstance(value, bool):
        raise SchemaError(f"{place} is {show(value)}, expected true or false")


def number(
    low: float = -LARGEST, high: float = LARGEST, *, whole: bool = False, infinite: bool = False
) -> Checker:
    """Accept numbers between bounds; ``infinite`` also accepts what is not finite."""

    def check(value: Any, place: str) -> None:
        good = is_whole(value) if whole else is_real(value)
        # comparisons of huge integers with floats are exact, and NaN fails them
        if good and infinite and isinstance(value, float) and not math.isfinite(value):
            return
        if not good or not low <= value <= high:
            kind = "a whole number" if whole else "a number"
            raise SchemaError(f"{place} is {show(value)}, expected {kind} from {low:g} to {high:g}")

    return check


def text(choices: Collection[str] | None = None, longest: int = 100_000) -> Checker:
    """Accept strings."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, str) or len(value) > longest:
            raise SchemaError(f"{place} is {show(value)}, expected text")
        if choices is not None and value not in choices:
            raise SchemaError(f"{place} is {show(value)}, expected one of {show(sorted(choices))}")

    return check


def optional(inner: Checker) -> Checker:
    """Accept null as well."""

    def check(value: Any, place: str) -> None:
        if value is not None:
            inner(value, place)

    return check


def either(*inner: Checker) -> Checker:
    """Accept what one of several accepts."""

    def check(value: Any, place: str) -> None:
        errors = []
        for one in inner:
            try:
                one(value, place)
            except SchemaError as error:
                errors.append(str(error))
            else:
                return
        raise SchemaError("; or ".join(errors))

    return check


def sequence(inner: Checker, *, shortest: int = 0, distinct: bool = False) -> Checker:
    """Accept lists of one kind of value."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, list) or len(value) < shortest:
            raise SchemaError(f"{place} is {show(value)}, expected a list of at least {shortest}")
        for i, item in enumerate(value):
            inner(item, f"{place}[{i}]")
        if distinct and len(set(value)) < len(value):
            raise SchemaError(f"{place} names something twice: {show(value)}")

    return check


def mapping(inner: Checker, keys: Collection[str] | None = None, *, complete: bool = False) -> Checker:
    """Accept mappings to one kind of value; with ``complete``, from exactly the given keys."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise SchemaError(f"{place} is {show(value)}, expected a mapping")
        if keys is not None and (not set(value) <= set(keys) or (complete and set(value) != set(keys))):
            raise SchemaError(f"{place} has the keys {show(list(value))}, expected {show(list(keys))}")
        for key, item in value.items():
            inner(item, f"{place}.{key}")

    return check


def table(*, maybe: Mapping[str, Checker] | None = None, more: bool = False, **entries: Checker) -> Checker:
    """Accept mappings with these entries; those in ``maybe`` may be left out, others may be there if ``more``."""

    def check(value: Any, place: str) -> None:
        known = {**entries, **(maybe or {})}
        if not isinstance(value, dict):
            raise SchemaError(f"{place} is {show(value)}, expected a mapping")
        missing, unknown = set(entries) - set(value), set() if more else set(value) - set(known)
        if missing or unknown:
            parts = [f"lacks {show(sorted(missing))}"] * bool(missing)
            parts += [f"has unknown {show(sorted(unknown))}"] * bool(unknown)
            raise SchemaError(f"{place} {' and '.join(parts)}")
        for key, item in value.items():
            known.get(key, anything)(item, f"{place}.{key}")

    return check


__all__ = [
    "ArrayField",
    "Checker",
    "SchemaError",
    "anything",
    "check_arrays",
    "either",
    "flag",
    "mapping",
    "number",
    "optional",
    "sequence",
    "table",
    "text",
]
