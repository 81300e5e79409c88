"""The vector of fit parameters and what each stretch of it means.

All parameters u are standardised: their prior is N(0, 1).  With the scales below

    χ_i  = χ̄(Z_i) + δ_χ Φ_i u_kernel + s_χ u_{Z_i}
    E_sr + Σ e0 = Σ_i ( ē0(Z_i) + δ_sr Φ'_i u_kernel + s_e u_{Z_i} )
    element parameter = default · exp(spread · u)                  where the charge model says ``"learn"``

Dimensions: p_χ, p_sr kernel features; Z elements; L learned element parameters; P = p_χ + Z + p_sr + Z + L in all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from kqeq.charges.base import ChargeModel, SiteChange, SiteParameters
from kqeq.charges.parameters import ElementParameters
from kqeq.kernels import FeatureMap
from kqeq.typing import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class SitePart:
    """The parameters of one site quantity (electronegativity or short-range energy).

    Attributes
    ----------
    feature_map : FeatureMap or None
        ``None`` if the quantity has offsets only.
    delta : float
        Prior standard deviation of the kernel part.
    offset_mean : dict of int to float
        Prior mean of the offset by element.
    offset_spread : float
        Prior standard deviation of the offsets; 0 fixes them.
    columns : slice
        Its stretch of the parameter vector: kernel features, then one offset per element.
    remainder : float
        Variance of what the sparse features miss, relative to what the prior says it is (:mod:`kqeq.remainder`).
    """

    feature_map: FeatureMap | None
    delta: float
    offset_mean: dict[int, float]
    offset_spread: float
    columns: slice
    remainder: float = 1.0

    @property
    def kernel_size(self) -> int:
        """Number of kernel features."""
        return 0 if self.feature_map is None else self.feature_map.size

    @property
    def size(self) -> int:
        """Number of parameters of this part."""
        return int(self.columns.stop - self.columns.start)

    def one_hot(self, numbers: IntArray) -> FloatArray:
        """Offset columns (N, Z), scaled by the spread."""
        species = np.array(list(self.offset_mean))
        hot: FloatArray = (numbers[:, None] == species[None, :]).astype(np.float64)
        return self.offset_spread * hot

    def mean(self, numbers: IntArray) -> FloatArray:
        """Prior mean of every atom, (N,)."""
        return np.array([self.offset_mean[int(z)] for z in numbers])

    def kernel_weights(self, u: FloatArray) -> FloatArray:
        """Weights of the unscaled features Φ: δ u."""
        return self.delta * u[self.columns][: self.kernel_size]

    def offsets(self, u: FloatArray) -> dict[int, float]:
        """Offsets by element at the parameters u."""
        tail = u[self.columns][self.kernel_size :]
        return {
            z: mean + self.offset_spread * float(x)
            for (z, mean), x in zip(self.offset_mean.items(), tail, strict=True)
        }


@dataclass(frozen=True, eq=False)
class LearnedPart:
    """The element parameters of the charge model that are learned.

    Attributes
    ----------
    elements : ElementParameters
        Their kinds, elements, defaults and prior spreads.
    columns : slice
        Their stretch of the parameter vector.
    """

    elements: ElementParameters
    columns: slice

    def sites(self, model: ChargeModel, numbers: IntArray, u: FloatArray) -> SiteParameters:
        """Site parameters of atoms at the parameters u."""
        return self.elements.sites(model, numbers, u[self.columns])

    def directions(self, numbers: IntArray, u: FloatArray) -> SiteChange:
        """∂(site parameters)/∂u, one column per learned parameter."""
        return self.elements.directions(numbers, u[self.columns])


STEP_LIMIT = 1.0
"""Largest change of the logarithm of an element parameter in one step of the solver."""

PATIENCE = 4
"""Steps in a row that gain next to nothing before a fit with learned element parameters counts as converged."""


@dataclass(frozen=True, eq=False)
class Parameters:
    """The whole model before its parameters are known.

    Attributes
    ----------
    species : tuple of int
    chi : SitePart or None
        Electronegativities.
    charges : ChargeModel or None
    energy : SitePart or None
        Short-range energy and element offsets.
    size : int
        P.
    learned : LearnedPart or None
        Element parameters of the charge model.
    """

    species: tuple[int, ...]
    chi: SitePart | None
    charges: ChargeModel | None
    energy: SitePart | None
    size: int
    learned: LearnedPart | None = None

    @classmethod
    def build(
        cls,
        species: tuple[int, ...],
        *,
        charges: ChargeModel | None,
        chi_map: FeatureMap | None,
        chi_delta: float,
        chi_mean: dict[int, float],
        chi_spread: float,
        energy_map: FeatureMap | None,
        energy_delta: float,
        energy_mean: dict[int, float] | None,
        energy_spread: float,
        elements: ElementParameters | None = None,
    ) -> Parameters:
        """Lay the parameters out; ``energy_mean=None`` leaves the energy part away.

        ``elements`` are the learned element parameters; by default what the charge model marks with ``"learn"``.
        """
        start = 0
        chi = energy = learned = None
        if charges is not None:
            size = (chi_map.size if chi_map is not None else 0) + len(species)
            chi = SitePart(chi_map, chi_delta, chi_mean, chi_spread, slice(start, start + size))
            start += size
        if energy_mean is not None:
            size = (energy_map.size if energy_map is not None else 0) + len(species)
            energy = SitePart(
                energy_map, energy_delta, energy_mean, energy_spread, slice(start, start + size)
            )
            start += size
        if charges is not None and charges.learned:
            elements = ElementParameters.build(charges, species) if elements is None else elements
            learned = LearnedPart(elements, slice(start, start + elements.size))
            start += elements.size
        return cls(species, chi, charges, energy, start, learned)

    def charge_model(self, u: FloatArray) -> ChargeModel | None:
        """The charge model with values in place of ``"learn"``."""
        if self.learned is None or self.charges is None:
            return self.charges
        return self.learned.elements.apply(self.charges, u[self.learned.columns])

    def freeze(self, u: FloatArray) -> Parameters:
        """The same layout with the element parameters fixed at u; nothing depends on their columns any more."""
        return replace(self, charges=self.charge_model(u), learned=None)

    def with_remainders(self, values: Mapping[str, float]) -> Parameters:
        """The same with other :attr:`SitePart.remainder` of ``chi`` and ``energy``, where named."""
        parts = {name: getattr(self, name) for name in values}
        return replace(
            self,
            **{
                name: replace(part, remainder=float(values[name]))
                for name, part in parts.items()
                if part is not None
            },
        )

    @property
    def patience(self) -> int | None:
        """For the solver: element parameters compensate each other, so their valleys are long and flat."""
        return None if self.learned is None else PATIENCE

    def step_factor(self, step: FloatArray) -> float:
        """How much of a step may be taken (at most 1): logarithms of element parameters move by a limited amount.

        The quadratic model says nothing about parameters that change by orders of magnitude.
        """
        if self.learned is None:
            return 1.0
        largest = float(np.abs(self.learned.elements.spread * step[self.learned.columns]).max(initial=0.0))
        return 1.0 if largest <= STEP_LIMIT else STEP_LIMIT / largest


__all__ = ["PATIENCE", "STEP_LIMIT", "LearnedPart", "Parameters", "SitePart"]
