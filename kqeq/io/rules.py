"""What a setting may be, written down once: the door that constructors, TOML files and the command line share.

A settings object declares one :class:`Rule` for each of its settings and calls :func:`check_settings` when it is used
for the first time (constructors store what they are given, as scikit-learn asks).  A rule says in words what is
expected, so that every refusal names the setting, its value, what was expected and, where one is near, what was
probably meant.

Booleans are not numbers, and numbers are not booleans.  NumPy's scalars are as good as Python's; arrays of one
element are not.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Integral, Real
from os import PathLike
from typing import Any

import numpy as np

from kqeq.errors import InputError

_ACCEPTED = "_accepted"
"""Attribute in which a settings object remembers the values that were checked."""

_SHOWN = 80
"""Characters of a refused value that a message shows."""

_LISTED = 50
"""Items of a refused list or mapping that a message would show."""


@dataclass(frozen=True)
class Rule:
    """What a setting may be.

    Attributes
    ----------
    expected : str
        In words, as the end of "expected ...".
    accepts : callable
        Whether a value is acceptable; exceptions count as no.
    names : tuple of str
        What may be given by name, to suggest the one that was meant.
    """

    expected: str
    accepts: Callable[[Any], bool]
    names: tuple[str, ...] = ()

    def __or__(self, other: Rule) -> Rule:
        """What one rule or the other accepts."""
        return Rule(
            f"{self.expected}, or {other.expected}",
            lambda value: self.holds(value) or other.holds(value),
            (*self.names, *other.names),
        )

    def holds(self, value: Any) -> bool:
        """Whether a value is acceptable."""
        try:
            return bool(self.accepts(value))
        except Exception:  # whatever a foreign object does when it is compared
            return False

    def require(self, value: Any, where: str, remedy: str = "") -> None:
        """Refuse a value that does not hold.

        Parameters
        ----------
        value : Any
        where : str
            The setting with what it belongs to, for example ``"SOAPKernel(zeta=...)"``; an ellipsis is replaced by the
            value.
        remedy : str

        Raises
        ------
        InputError
        """
        if self.holds(value):
            return
        shown = show(value)
        head = where.replace("...", shown, 1) if "..." in where else f"{where} is {shown}"
        text = f"{head}: expected {self.expected}"
        meant = self._meant(value)
        if meant:
            text += f" (did you mean {meant}?)"
        raise InputError(f"{text}; {remedy}" if remedy else text)

    def _meant(self, value: Any) -> str:
        if isinstance(value, type):
            return f"an object, {value.__name__}(), instead of the class"
        if isinstance(value, str) and self.names:
            close = get_close_matches(value.lower(), [name.lower() for name in self.names], n=1)
            if close:
                return repr(next(name for name in self.names if name.lower() == close[0]))
        return ""


def show(value: Any) -> str:
    """A value as a message shows it: on one line, and not longer than a line, whatever it is."""
    if isinstance(value, int) and value.bit_length() > 1000:
        return "a huge integer"  # Python may refuse to write it
    if isinstance(value, dict | list | tuple) and len(value) > _LISTED:
        return f"a {type(value).__name__} of {len(value)}"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a foreign object whose repr fails
        text = f"an object of type {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 4]} ..."


def is_real(value: Any) -> bool:
    """Whether a value is a real number; booleans are none."""
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_)


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; booleans are none."""
    return isinstance(value, Integral) and not isinstance(value, bool | np.bool_)


def number(minimum: float | None = None, maximum: float | None = None, *, above: float | None = None) -> Rule:
    """A finite number; ``above`` is a bound that is not reached itself."""
    bounds = _bounds(minimum, maximum, above)

    def accepts(value: Any) -> bool:
        return is_real(value) and math.isfinite(value) and _within(value, minimum, maximum, above)

    if above == 0 and maximum is None:
        return Rule("a positive number", accepts)
    return Rule(f"a number{bounds}" if bounds else "a finite number", accepts)


def whole(minimum: int | None = None, maximum: int | None = None) -> Rule:
    """A whole number."""

    def accepts(value: Any) -> bool:
        return is_whole(value) and _within(int(value), minimum, maximum, None)

    return Rule(f"a whole number{_bounds(minimum, maximum, None)}", accepts)


def choice(*names: str) -> Rule:
    """One of several names."""
    words = repr(names[0]) if len(names) == 1 else f"one of {', '.join(map(repr, names))}"
    return Rule(words, lambda value: isinstance(value, str) and value in names, names)


def instance(kinds: type | tuple[type, ...], words: str) -> Rule:
    """An object of some class."""
    return Rule(words, lambda value: isinstance(value, kinds))


def protocol(methods: Sequence[str], words: str) -> Rule:
    """An object (not a class) with some methods."""
    return Rule(
        words,
        lambda value: (
            not isinstance(value, type) and all(callable(getattr(value, name, None)) for name in methods)
        ),
    )


def sequence(of: Rule, words: str, *, empty: bool = False) -> Rule:
    """A list or tuple of acceptable things."""
    return Rule(
        words,
        lambda value: (
            isinstance(value, list | tuple)
            and (empty or len(value) > 0)
            and all(of.holds(item) for item in value)
        ),
    )


def table(of: Rule, words: str, keys: Iterable[str] | None = None) -> Rule:
    """A mapping from names to acceptable things."""
    known = None if keys is None else frozenset(keys)
    return Rule(
        words,
        lambda value: (
            isinstance(value, Mapping)
            and all(of.holds(item) for item in value.values())
            and (known is None or all(key in known for key in value))
        ),
    )


def vector(size: int, words: str) -> Rule:
    """Several finite numbers: a list, a tuple or an array of shape (size,)."""

    def accepts(value: Any) -> bool:
        if isinstance(value, str | bytes | Mapping | set | frozenset):
            return False
        items = list(value)
        return (
            len(items) == size
            and np.ndim(np.asarray(value, dtype=np.float64)) == 1
            and all(is_real(item) and math.isfinite(item) for item in items)
        )

    return Rule(words, accepts)


NOTHING = Rule("None", lambda value: value is None)
FLAG = Rule("True or False", lambda value: isinstance(value, bool | np.bool_))
TEXT = Rule("a string", lambda value: isinstance(value, str))
NAME = Rule("a name that is not empty", lambda value: isinstance(value, str) and value.strip() != "")
PATH = Rule(
    "the path of a file or folder",
    lambda value: isinstance(value, PathLike) or (isinstance(value, str) and value.strip() != ""),
)


def check_values(owner: str, values: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Check settings by name.

    Parameters
    ----------
    owner : str
        What the settings belong to, for example ``"SOAPKernel"``.
    values : mapping of str to Any
        Settings without a rule are not checked: they have a door of their own.
    rules : mapping of str to Rule

    Raises
    ------
    InputError
        Naming the first setting that is refused, its value and what was expected.
    """
    for name, rule in rules.items():
        if name in values:
            rule.require(values[name], f"{owner}({name}=...)")


def check_settings(settings: Any, rules: Mapping[str, Rule]) -> None:
    """As :func:`check_values`, for an object with the settings as attributes.

    Asked for every structure, so the object remembers which values were found acceptable.  They are compared as
    objects: a mapping that is changed in place stays a mapping, and what it holds is checked where it is used.
    """
    values = vars(settings)
    current = [values.get(name) for name in rules]
    accepted = values.get(_ACCEPTED)
    if accepted is not None and all(map(operator.is_, accepted, current)):
        return
    check_values(type(settings).__name__, values, rules)
    values[_ACCEPTED] = current


def unknown_name(name: str, known: Iterable[str], what: str) -> InputError:
    """The error for a name that does not exist, with the one that was probably meant."""
    names = list(known)
    close = get_close_matches(str(name), names, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    return InputError(f"{what} {name!r}; expected some of {', '.join(names)}{meant}")


def _within(value: float, minimum: float | None, maximum: float | None, above: float | None) -> bool:
    return (
        (minimum is None or value >= minimum)
        and (maximum is None or value <= maximum)
        and (above is None or value > above)
    )


def _bounds(minimum: float | None, maximum: float | None, above: float | None) -> str:
    if above is not None:
        return f" above {above:g}" + ("" if maximum is None else f" and up to {maximum:g}")
    if minimum is not None and maximum is not None:
        return f" from {minimum:g} to {maximum:g}"
    if minimum is not None:
        return f" of at least {minimum:g}"
    return "" if maximum is None else f" of at most {maximum:g}"


__all__ = [
    "FLAG",
    "NAME",
    "NOTHING",
    "PATH",
    "TEXT",
    "Rule",
    "check_settings",
    "check_values",
    "choice",
    "instance",
    "is_real",
    "is_whole",
    "number",
    "protocol",
    "sequence",
    "show",
    "table",
    "unknown_name",
    "vector",
    "whole",
]
