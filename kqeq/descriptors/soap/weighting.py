"""Radial weighting of neighbours in SOAP, as dscribe defines it.

A neighbour at distance r enters the density of its centre with the weight w(r):

    poly    w = c (1 + 2 (r/r0)³ − 3 (r/r0)²)^m    up to r0, 0 beyond     (Caro 2019, *Phys. Rev. B* 100, 024112)
    pow     w = c / (d + (r/r0)^m)                  (Willatt, Musil & Ceriotti 2018, *Phys. Chem. Chem. Phys.* 20, 29661)
    exp     w = c / (d + exp(−r/r0))                (as dscribe has it: it grows with r)

The centre itself has the weight w(0), or ``w0`` where that is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

import numpy as np

from kqeq.backend import inverse_or_zero, namespace
from kqeq.errors import InputError
from kqeq.io.rules import show
from kqeq.typing import Array

FUNCTIONS: Mapping[str, tuple[str, ...]] = {
    "poly": ("r0", "c", "m"),
    "pow": ("r0", "c", "d", "m"),
    "exp": ("r0", "c", "d"),
}
"""Weighting functions and the numbers that each takes."""


@dataclass(frozen=True)
class Weighting:
    """Weight of a neighbour as a function of its distance.

    Attributes
    ----------
    function : {"poly", "pow", "exp"}
    r0 : float
        Length scale, Å.
    c, d, m : float
        Numbers of the function; those that it does not take play no part.
    w0 : float, optional
        Weight of the centre itself; ``None`` takes w(0).
    """

    function: str
    r0: float
    c: float = 1.0
    d: float = 1.0
    m: float = 1.0
    w0: float | None = None

    @classmethod
    def of(cls, given: Weighting | Mapping[str, Any] | None) -> Weighting | None:
        """From settings as dscribe takes them, for example ``{"function": "pow", "r0": 2.0, "c": 1, "d": 1, "m": 4}``.

        ``c``, ``d`` and ``m`` are 1 where they are not given.

        Raises
        ------
        InputError
            Naming the setting, its value and what was expected.
        """
        if given is None or isinstance(given, Weighting):
            return given
        if not isinstance(given, Mapping):
            raise InputError(
                f"SOAP weighting is {show(given)}; expected None or a dict as dscribe takes it, for example "
                '{"function": "pow", "r0": 2.0, "c": 1.0, "d": 1.0, "m": 4.0}'
            )
        function = given.get("function")
        if not isinstance(function, str) or function not in FUNCTIONS:
            raise InputError(
                f'SOAP weighting["function"] is {function!r}; expected one of '
                f"{', '.join(map(repr, FUNCTIONS))}"
            )
        known = ("function", *FUNCTIONS[function], "w0")
        for key in given:
            if key not in known:
                raise InputError(
                    f"SOAP weighting with function {function!r} has no setting {key!r}; expected some of "
                    f"{', '.join(known)}"
                )
        if given.get("r0") is None:
            raise InputError('SOAP weighting needs "r0", its length scale in Å')
        numbers = {key: _number(key, value) for key, value in given.items() if key != "function"}
        result = cls(function, **{key: value for key, value in numbers.items() if value is not None})
        result._check()
        return result

    def _check(self) -> None:
        if not self.r0 > 0.0:
            raise InputError(f'SOAP weighting["r0"] is {self.r0:g} Å; expected a positive length')
        if not self.c > 0.0:
            raise InputError(f'SOAP weighting["c"] is {self.c:g}; expected a positive number')
        if self.d < 0.0 or (self.d == 0.0 and self.function == "pow" and self.w0 is None):
            raise InputError(
                f'SOAP weighting["d"] is {self.d:g}; expected a positive number (0 makes the weight of the centre '
                'infinite, and needs "w0" beside it)'
            )
        if self.m < 0.0 or (self.function == "poly" and self.m < 1.0):
            raise InputError(
                f'SOAP weighting["m"] is {self.m:g}; expected a number of at least '
                f"{1 if self.function == 'poly' else 0}"
                + (" (below it forces jump at r0)" if self.function == "poly" else "")
            )
        if self.w0 is not None and self.w0 < 0.0:
            raise InputError(f'SOAP weighting["w0"] is {self.w0:g}; expected a number that is not negative')

    def to_dict(self) -> dict[str, Any]:
        """Settings as plain data, those that the function takes."""
        names = ("function", *FUNCTIONS[self.function])
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name in names}
        return values if self.w0 is None else {**values, "w0": self.w0}

    @property
    def centre(self) -> float:
        """Weight of the centre itself."""
        return float(self(np.zeros(1))[0][0]) if self.w0 is None else self.w0

    def __call__(self, r: Array) -> tuple[Array, Array]:
        """W and ∂w/∂r at distances r (P,) in Å, where these are."""
        return _FORMS[self.function](self, r)


def _poly(own: Weighting, r: Array) -> tuple[Array, Array]:
    xp = namespace(r)
    x = xp.clip(r / own.r0, None, 1.0)
    base = xp.clip(1.0 + x * x * (2.0 * x - 3.0), 0.0, None)
    slope = own.c * own.m * base ** (own.m - 1.0) * 6.0 * x * (x - 1.0) / own.r0
    return own.c * base**own.m, xp.where(r < own.r0, slope, xp.zeros_like(r))


def _pow(own: Weighting, r: Array) -> tuple[Array, Array]:
    x = r / own.r0
    power = x**own.m
    value = own.c / (own.d + power)
    # the centre itself, x = 0, does not move
    return value, -(value**2) / own.c * own.m * power * inverse_or_zero(x) / own.r0


def _exp(own: Weighting, r: Array) -> tuple[Array, Array]:
    decay = namespace(r).exp(-r / own.r0)
    value = own.c / (own.d + decay)
    return value, value**2 / own.c * decay / own.r0


_FORMS: Mapping[str, Callable[[Weighting, Array], tuple[Array, Array]]] = {
    "poly": _poly,
    "pow": _pow,
    "exp": _exp,
}


def _number(key: str, value: Any) -> float | None:
    if key == "w0" and value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise InputError(f'SOAP weighting["{key}"] is {value!r}; expected a finite number')
    return float(value)


__all__ = ["FUNCTIONS", "Weighting"]
