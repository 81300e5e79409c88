"""Element parameters that are learned: a vector of standardised logarithms and what it does to a model.

    parameter = start · exp(spread · u),   prior u ~ N(0, 1)

so that parameters stay positive and the prior is a log-normal distribution around the default (theory section 3).

Dimensions: N atoms, p learned parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from kqeq.backend import eye, namespace, zeros
from kqeq.charges.base import (
    SITE_KINDS,
    ChargeModel,
    ChargeState,
    Response,
    SiteChange,
    SiteParameters,
)
from kqeq.charges.softness import GivenFactors, learned_pairs, pair_classes, pair_name, pair_of
from kqeq.constants import COULOMB
from kqeq.errors import InputError
from kqeq.typing import Array, FloatArray, IntArray

ENVIRONMENT_SPREADS: Mapping[str, float] = {"hardness": 0.2, "polarizability": 0.2, "softness": 0.3}
"""Default standard deviations of the part of the logarithms that depends on the environment."""

SPREADS: Mapping[str, float] = {
    "hardness": 0.7,
    "width": 0.4,
    "polarizability": 0.7,
    "softness": 1.0,
    "pair_softness": 1.5,
}
"""Default standard deviations of the logarithms: how far parameters of atoms in molecules are from the defaults."""

PAIRS = "pair_softness"
"""The kind that belongs to pairs of elements."""

_PAIR = 1000

_UNITS: Mapping[str, float] = {"polarizability": COULOMB}
"""Users give polarizabilities in Å³; inside they are in e²·Å²/eV."""


@dataclass(frozen=True, eq=False)
class ElementParameters:
    """The learned parameters of a charge model.

    Attributes
    ----------
    kinds : tuple of str
        Kind of each parameter.
    species : (p,) int array
        Element of each parameter; for two elements see :func:`pair_code`.
    start : (p,) array
        Default values, in the units of :class:`~kqeq.charges.base.SiteParameters`.
    spread : (p,) array
        Standard deviations of the logarithms.
    """

    kinds: tuple[str, ...]
    species: IntArray
    start: FloatArray
    spread: FloatArray
    _last: dict[str, tuple[ChargeModel, bytes, ChargeModel]] = field(default_factory=dict, repr=False)

    @classmethod
    def build(
        cls, model: ChargeModel, species: Iterable[int], spreads: Mapping[str, float] | None = None
    ) -> ElementParameters:
        """The parameters that a model asks to be learned (``"learn"``), for the given elements.

        Raises
        ------
        InputError
            For spreads that are not positive or of unknown kinds.
        """
        widths = {**SPREADS, **(spreads or {})}
        for kind, value in widths.items():
            if kind not in SPREADS or not (np.isfinite(value) and value > 0.0):
                raise InputError(
                    f"spread {value!r} of {kind!r}; expected positive numbers for some of {', '.join(SPREADS)}"
                )
        numbers = np.array(sorted(set(species)), dtype=np.int64)
        sites = model.site_parameters(numbers)
        kinds, elements, start, spread = [], [], [], []
        for kind in model.to_learn:
            if kind == PAIRS:
                for pair in learned_pairs(_pair_settings(model), numbers):
                    kinds.append(kind)
                    elements.append(pair_code(pair))
                    start.append(1.0)
                    spread.append(float(widths[kind]))
                continue
            for number, value in zip(numbers, getattr(sites, kind), strict=True):
                kinds.append(kind)
                elements.append(int(number))
                start.append(float(value))
                spread.append(float(widths[kind]))
        return cls(tuple(kinds), np.array(elements, dtype=np.int64), np.array(start), np.array(spread))

    @property
    def size(self) -> int:
        """Number of parameters p."""
        return len(self.kinds)

    @property
    def names(self) -> tuple[str, ...]:
        """Names such as ``hardness O``."""
        return tuple(
            f"{kind} {name}" for kind, name in zip(self.kinds, element_names(self.species), strict=True)
        )

    def values(self, u: FloatArray) -> FloatArray:
        """Parameters at u, (p,)."""
        return np.asarray(self.start * np.exp(self.spread * u))

    def user_values(self, u: FloatArray) -> FloatArray:
        """Parameters at u in the units that users give them in, (p,)."""
        return np.asarray(self.values(u) * np.array([_UNITS.get(kind, 1.0) for kind in self.kinds]))

    def apply(self, model: ChargeModel, u: FloatArray) -> ChargeModel:
        """The model with parameters in place of ``"learn"`` and ``"kernel"``; one serves all frames at the same u."""
        key = u.tobytes()
        last = self._last.get("")
        if last is not None and last[0] is model and last[1] == key:
            return last[2]
        given: dict[str, dict[str, float]] = {kind: {} for kind in model.to_learn}
        names = element_names(self.species)
        for kind, name, value in zip(self.kinds, names, self.user_values(u), strict=True):
            given[kind][name] = float(value)
        found = model.with_parameters(given)
        self._last[""] = (model, key, found)
        return found

    def sites(self, model: ChargeModel, numbers: IntArray, u: FloatArray) -> SiteParameters:
        """Site parameters of atoms at u."""
        return self.apply(model, u).site_parameters(numbers)

    def directions(self, numbers: IntArray, u: FloatArray) -> SiteChange:
        """∂(site parameters)/∂u, columns (N, p), or (K, p) for pairs of elements."""
        slopes = self.spread * self.values(u)
        blocks: dict[str, FloatArray] = {}
        for kind in dict.fromkeys(self.kinds):
            of_kind = np.array([k == kind for k in self.kinds])
            rows = np.array([pair_code(p) for p in pair_classes(numbers)]) if kind == PAIRS else numbers
            columns = (rows[:, None] == self.species[None, :]) * slopes[None, :]
            blocks[kind] = np.where(of_kind[None, :], columns, 0.0)
        return SiteChange(**blocks)


def pair_code(pair: tuple[int, int]) -> int:
    """One number for two elements, above all atomic numbers."""
    return _PAIR * pair[0] + pair[1]


def element_names(codes: Iterable[int]) -> list[str]:
    """Symbols of elements, and ``O-Al`` for two of them."""
    return [
        chemical_symbols[int(z)] if z < _PAIR else pair_name((int(z) // _PAIR, int(z) % _PAIR)) for z in codes
    ]


def element_codes(names: Iterable[str]) -> IntArray:
    """What :func:`element_names` named.

    Raises
    ------
    InputError
        For other names.
    """
    return np.array(
        [atomic_numbers[n] if n in atomic_numbers else pair_code(pair_of(n)) for n in names], dtype=np.int64
    )


def _pair_settings(model: ChargeModel) -> GivenFactors:
    """Factors by pair as the user gave them, of a model or of that inside it."""
    given: GivenFactors = getattr(getattr(model, "charge_model", model), PAIRS)
    return given


def contract_sites(gradient: SiteParameters, change: SiteChange) -> Array:
    """Change of an energy with each of c changes of the site parameters, (c,), from its gradient by site parameters."""
    result: Array = 0.0
    for kind in SITE_KINDS:
        slopes, block = getattr(gradient, kind), getattr(change, kind)
        if slopes is not None and block is not None:
            result = result + slopes @ block
    return result


def multiply_sites(sites: SiteParameters, logarithms: Mapping[str, Array]) -> SiteParameters:
    """Site parameters times exp(logarithm) of the kinds that are named, each (N,), on the device of these."""
    if not logarithms:
        return sites
    like = next(iter(logarithms.values()))
    xp, sites = namespace(like), sites.on(like)
    return replace(
        sites, **{kind: getattr(sites, kind) * xp.exp(values) for kind, values in logarithms.items()}
    )


def logarithmic_directions(sites: SiteParameters, kinds: Sequence[str]) -> SiteChange:
    """∂θ/∂ln θ of every atom and kind: c = (number of kinds)·N columns, kind after kind."""
    atoms = int(sites.hardness.shape[0])
    blocks = {}
    for number, kind in enumerate(kinds):
        block = zeros((atoms, len(kinds) * atoms), sites.hardness)
        own = eye(atoms, sites.hardness) * getattr(sites, kind)[:, None]
        block[:, number * atoms : (number + 1) * atoms] = own
        blocks[kind] = block
    return SiteChange(**blocks)


def logarithmic_gradient(state: ChargeState, sites: SiteParameters, kinds: Sequence[str]) -> dict[str, Array]:
    """∂E/∂ln θ_i, (N,), of the kinds that are named; ``sites`` are those of the state."""
    gradient = state.site_gradient() if kinds else None
    return {kind: getattr(sites, kind) * getattr(gradient, kind) for kind in kinds}


def logarithmic_gradient_response(
    state: ChargeState, sites: SiteParameters, kinds: Sequence[str], response: Response
) -> dict[str, Array]:
    """Change of :func:`logarithmic_gradient` with a response, (N, c) each."""
    if not kinds:
        return {}
    gradient, change, result = state.site_gradient(), state.site_gradient_response(response), {}
    for kind in kinds:
        result[kind] = getattr(sites, kind)[:, None] * getattr(change, kind)
        own = None if response.sites is None else getattr(response.sites, kind)
        if own is not None:
            result[kind] += getattr(gradient, kind)[:, None] * own
    return result


__all__ = [
    "ENVIRONMENT_SPREADS",
    "SPREADS",
    "ElementParameters",
    "contract_sites",
    "element_codes",
    "element_names",
    "logarithmic_directions",
    "logarithmic_gradient",
    "logarithmic_gradient_response",
    "multiply_sites",
]
