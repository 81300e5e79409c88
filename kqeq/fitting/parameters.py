"""The vector of fit parameters and what each stretch of it means.

All parameters u are standardised: their prior is N(0, 1).  With the scales below, and sums over kernels b,

    χ_i  = χ̄(Z_i) + Σ_b δ_χb Φ_ib u_b + s_χ u_{Z_i}
    E_sr + Σ e0 = Σ_i ( ē0(Z_i) + Σ_b δ_b Φ'_ib u_b + s_e u_{Z_i} )
    ln θ_i = ln default(Z_i) + spread · u_{Z_i} + Σ_b δ_θb Φ_ib u_b

where θ is a hardness, width, polarizability or softness that the charge model marks with ``"learn"`` or ``"kernel"``
(the last term with ``"kernel"`` only).

Dimensions: N atoms; p_χ, p_sr, p_θ kernel features; Z elements; L learned element parameters; K kinds of θ with a
kernel; P = p_χ + Z + p_sr + Z + L + K p_θ in all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from kqeq.backend import asarray_like, zeros
from kqeq.backend.linalg import solve_lower
from kqeq.charges.base import ChargeModel, SiteChange, SiteParameters
from kqeq.charges.parameters import ElementParameters, logarithmic_directions, multiply_sites
from kqeq.descriptors.conditioned import condition_of
from kqeq.fitting.charge_aware import ChargeDependence
from kqeq.kernels.feature_map import FeatureMap
from kqeq.potential.determination import Determination
from kqeq.typing import Array, FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class KernelPart:
    """The parameters of one kernel of a site quantity.

    Attributes
    ----------
    feature_map : FeatureMap
    delta : float
        Prior standard deviation of what it adds to the quantity.
    columns : slice
        Its stretch of the parameter vector.
    remainder : float
        Variance of what the sparse features miss, relative to what the prior says it is
        (:mod:`kqeq.uncertainty.remainder`).
    power : int
        Power of the charge that it is multiplied with, in a short-range energy that sees charges.
    """

    feature_map: FeatureMap
    delta: float
    columns: slice
    remainder: float = 1.0
    power: int = 0

    @property
    def size(self) -> int:
        """Number of features."""
        return self.feature_map.size

    def weights(self, u: Array) -> Array:
        """Weights of the unscaled features Φ: δ u."""
        return self.delta * u[self.columns]


@dataclass(frozen=True, eq=False)
class SitePart:
    """The parameters of one site quantity: electronegativity, short-range energy, or the logarithm of a θ.

    Attributes
    ----------
    kernels : tuple of KernelPart
        What is summed; their columns follow each other.  Empty if the quantity has offsets only.
    offset_mean : dict of int to float
        Prior mean of the offset by element.
    offset_spread : float
        Prior standard deviation of the offsets; 0 fixes them.
    columns : slice
        Its stretch of the parameter vector: features of the kernels, then one per element in ``offset_mean``.
    offset_scales : dict of int to float, optional
        Spread of an element's offset in units of ``offset_spread``; 1 where it is not named.
    held : (Z, Z) array, optional
        Covariance of what means of elements may be off by where offsets are held (``offset_spread`` is 0) and
        compositions do not tell; for uncertainties only.
    """

    kernels: tuple[KernelPart, ...]
    offset_mean: dict[int, float]
    offset_spread: float
    columns: slice
    offset_scales: Mapping[int, float] = field(default_factory=dict)
    held: FloatArray | None = None

    @classmethod
    def build(
        cls,
        kernels: Sequence[tuple[FeatureMap, float]],
        offset_mean: dict[int, float],
        offset_spread: float,
        start: int,
        offset_scales: Mapping[int, float] | None = None,
        held: FloatArray | None = None,
    ) -> SitePart:
        """Lay kernels (feature map, δ) and offsets out from the column ``start`` on."""
        parts, stop = [], start
        for feature_map, delta in kernels:
            parts.append(KernelPart(feature_map, float(delta), slice(stop, stop + feature_map.size)))
            stop += feature_map.size
        columns = slice(start, stop + len(offset_mean))
        return cls(tuple(parts), offset_mean, offset_spread, columns, dict(offset_scales or {}), held)

    @property
    def kernel_size(self) -> int:
        """Number of features of all kernels."""
        return sum(kernel.size for kernel in self.kernels)

    @property
    def offsets_size(self) -> int:
        """Number of offsets."""
        return len(self.offset_mean)

    def of_power(self, power: int = 0) -> tuple[KernelPart, ...]:
        """The kernels of one power of the charge; without a dependence on charges all have the power 0."""
        return tuple(kernel for kernel in self.kernels if kernel.power == power)

    @property
    def feature_maps(self) -> tuple[FeatureMap, ...]:
        """Those of the kernels, in their order; the same for every power of the charge."""
        return tuple(kernel.feature_map for kernel in self.of_power())

    @property
    def deltas(self) -> tuple[float, ...]:
        """Those of the kernels, in their order; the same for every power of the charge."""
        return tuple(kernel.delta for kernel in self.of_power())

    def scales(self) -> FloatArray:
        """δ of the kernel of every feature, (kernel_size,)."""
        deltas = [kernel.delta for kernel in self.kernels]
        return np.repeat(deltas, [kernel.size for kernel in self.kernels]).astype(np.float64)

    def scale(self, features: Array) -> Array:
        """Unscaled features of all kernels (..., kernel_size) times their δ."""
        if len(self.kernels) == 1:
            return self.kernels[0].delta * features
        return asarray_like(self.scales(), features) * features

    def terms(self, u: Array, power: int = 0) -> tuple[tuple[FeatureMap, dict[int, FloatArray]], ...]:
        """Feature map and kernel coefficients of every kernel of a power of the charge at the parameters u."""
        return tuple((k.feature_map, k.feature_map.coefficients(k.weights(u))) for k in self.of_power(power))

    def with_powers(self, count: int) -> SitePart:
        """Kernels like these for each of ``count`` powers of the charge, one after the other from column 0 on."""
        kernels, start = [], 0
        for power in range(count):
            for kernel in self.of_power():
                columns = slice(start, start + kernel.size)
                kernels.append(replace(kernel, columns=columns, power=power))
                start = columns.stop
        return replace(self, kernels=tuple(kernels), columns=slice(0, start + self.offsets_size))

    def with_kernels(self, kernels: Sequence[KernelPart]) -> SitePart:
        """The same columns with other scales."""
        return replace(self, kernels=tuple(kernels))

    @property
    def size(self) -> int:
        """Number of parameters of this part."""
        return int(self.columns.stop - self.columns.start)

    @property
    def offset_spreads(self) -> FloatArray:
        """Prior standard deviation of every element's offset, (Z,)."""
        scales = [self.offset_scales.get(z, 1.0) for z in self.offset_mean]
        return self.offset_spread * np.array(scales, dtype=np.float64)

    def one_hot(self, numbers: IntArray) -> FloatArray:
        """Offset columns (N, Z), scaled by the spread."""
        species = np.array(list(self.offset_mean))
        hot: FloatArray = (numbers[:, None] == species[None, :]).astype(np.float64)
        return self.offset_spreads * hot

    def element_means(self, species: Sequence[int], size: int) -> FloatArray:
        """Derivatives by u of the mean over the representatives of each element, (Z, P) for ``size`` parameters.

        Features of the representatives themselves are the rows of the Cholesky factor L of their kernel matrix.
        """
        rows = np.zeros((len(species), size))
        first = self.columns.start + self.kernel_size
        spreads = dict(zip(self.offset_mean, self.offset_spreads, strict=True))
        for number, z in enumerate(species):
            for kernel in self.of_power():  # the others are zero without charges
                if condition_of(kernel.feature_map.descriptor) is not None:
                    continue  # nothing in the state that element means belong to
                own, start = kernel.feature_map.columns[z], kernel.columns.start
                mean = kernel.feature_map.lower[z].mean(axis=0)
                rows[number, start + own.start : start + own.stop] = kernel.delta * mean
            if z in spreads:
                rows[number, first + list(spreads).index(z)] = spreads[z]
        return rows

    def mean(self, numbers: IntArray) -> FloatArray:
        """Prior mean of every atom, (N,)."""
        return np.array([self.offset_mean[int(z)] for z in numbers])

    def offsets(self, u: FloatArray) -> dict[int, float]:
        """Offsets by element at the parameters u."""
        return self.offsets_at(u[self.columns][self.kernel_size :])

    def offsets_at(self, tail: FloatArray) -> dict[int, float]:
        """Offsets by element at their own parameters, (Z,)."""
        return {
            z: mean + float(spread * x)
            for (z, mean), spread, x in zip(self.offset_mean.items(), self.offset_spreads, tail, strict=True)
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


@dataclass(frozen=True, eq=False)
class EnvironmentPart:
    """How site parameters depend on the environment.

    Attributes
    ----------
    feature_maps : tuple of FeatureMap
        Shared by all kinds.
    parts : dict of str to SitePart
        By kind; without offsets, which are the learned element parameters.
    fixed : (P,) array, optional
        Parameters at which the dependence is held; then nothing depends on its columns.
    """

    feature_maps: tuple[FeatureMap, ...]
    parts: Mapping[str, SitePart]
    fixed: FloatArray | None = None

    def weights(self, kind: str, u: Array) -> Array:
        """Weights of the unscaled features Φ of all kernels: δ u."""
        part = self.parts[kind]
        return part.scale(self.at(u)[part.columns])

    def terms(self, kind: str, u: Array) -> tuple[tuple[FeatureMap, dict[int, FloatArray]], ...]:
        """Feature map and kernel coefficients of every kernel of a kind."""
        return self.parts[kind].terms(self.at(u))

    def at(self, u: Array) -> Array:
        """The parameters that count: u, or those at which the dependence is held."""
        return u if self.fixed is None else asarray_like(self.fixed, u)

    def at_representatives(self, kind: str, u: FloatArray) -> dict[int, FloatArray]:
        """Logarithms at the representatives of every element, those of all kernels one after the other: δ L u."""
        part = self.parts[kind]
        found: dict[int, list[FloatArray]] = {}
        for kernel in part.kernels:
            weights = kernel.weights(self.at(u))
            for z, columns in kernel.feature_map.columns.items():
                found.setdefault(z, []).append(kernel.feature_map.lower[z] @ weights[columns])
        return {z: np.concatenate(values) for z, values in found.items()}

    def apply(self, sites: SiteParameters, features: Array, u: FloatArray) -> SiteParameters:
        """Site parameters (those of the elements) with their dependence on features Φ (N, p_θ)."""
        return multiply_sites(
            sites, {kind: features @ asarray_like(self.weights(kind, u), features) for kind in self.parts}
        )


@dataclass(frozen=True, eq=False)
class SiteDirections:
    """∂(site parameters)/∂u as ``change`` @ ``mixing``.

    Many kernel features act on few atoms: responses are taken to the logarithm of every atom's parameter, and mixed.

    Attributes
    ----------
    change : SiteChange
        (N, b) arrays.
    mixing : (b, c) array, optional
        ``None`` where ``change`` has a column for every parameter.
    """

    change: SiteChange
    mixing: Array | None

    def mix(self, block: Array) -> Array:
        """Derivatives along ``change``, (..., b), to derivatives with respect to the parameters, (..., c)."""
        return block if self.mixing is None else block @ self.mixing


STEP_LIMIT = 1.0
"""Largest change of the logarithm of a site parameter in one step of the solver."""

PATIENCE = 4
"""Steps in a row that gain next to nothing before a fit with learned element parameters counts as converged."""


@dataclass(frozen=True, eq=False)
class Parameters:
    """The whole model before its parameters are known.

    Attributes
    ----------
    species : tuple of int
    electronegativity : SitePart or None
        Electronegativities.
    charges : ChargeModel or None
    short_range : SitePart or None
        Short-range energy and element offsets.
    size : int
        P.
    learned : LearnedPart or None
        Element parameters of the charge model.
    sites : EnvironmentPart or None
        Their dependence on the environment; its columns follow those of ``learned``.
    dependence : ChargeDependence or None
        The charges that the short-range energy sees.  They are held: then there are no other parameters than its own.
    """

    species: tuple[int, ...]
    electronegativity: SitePart | None
    charges: ChargeModel | None
    short_range: SitePart | None
    size: int
    learned: LearnedPart | None = None
    sites: EnvironmentPart | None = None
    dependence: ChargeDependence | None = None

    @classmethod
    def charge_aware(
        cls, species: tuple[int, ...], short_range: SitePart, dependence: ChargeDependence
    ) -> Parameters:
        """Those of a short-range energy that sees charges: kernels like those of ``short_range`` for each power."""
        part = short_range.with_powers(dependence.powers)
        return cls(species, None, None, part, part.size, dependence=dependence)

    @classmethod
    def build(
        cls,
        species: tuple[int, ...],
        *,
        charges: ChargeModel | None,
        electronegativity_kernels: Sequence[tuple[FeatureMap, float]],
        electronegativity_mean: dict[int, float],
        electronegativity_spread: float,
        short_range_kernels: Sequence[tuple[FeatureMap, float]],
        short_range_mean: dict[int, float] | None,
        short_range_spread: float,
        elements: ElementParameters | None = None,
        site_maps: Sequence[FeatureMap] = (),
        site_deltas: Mapping[str, Sequence[float]] | None = None,
        short_range_first: bool = True,
        short_range_scales: Mapping[int, float] | None = None,
        short_range_held: FloatArray | None = None,
    ) -> Parameters:
        """Lay the parameters out; ``short_range_mean=None`` leaves the short-range part away.

        Those of the energy come first, because predictions are linear in them: what concerns them alone in the normal
        equations is computed once (:mod:`kqeq.fitting.least_squares.equations`).  Files of earlier versions hold them
        behind those of the electronegativities, ``short_range_first=False``.

        Kernels are feature maps with their δ.  ``elements`` are the learned element parameters; by default what the
        charge model marks with ``"learn"`` or ``"kernel"``.  ``site_maps`` and ``site_deltas`` (by kind, one for each
        map) are for those marked with ``"kernel"``.  ``short_range_scales`` are spreads of element energies in units of
        ``short_range_spread``, ``short_range_held`` is :attr:`SitePart.held`.
        """
        start = 0
        electronegativity = short_range = learned = sites = None
        sizes = {
            "electronegativity": 0
            if charges is None
            else sum(m.size for m, _ in electronegativity_kernels) + len(species),
            "short_range": 0
            if short_range_mean is None
            else sum(m.size for m, _ in short_range_kernels) + len(species),
        }
        starts = {}
        for name in (
            ("short_range", "electronegativity")
            if short_range_first
            else ("electronegativity", "short_range")
        ):
            starts[name] = start
            start += sizes[name]
        if charges is not None:
            electronegativity = SitePart.build(
                electronegativity_kernels,
                electronegativity_mean,
                electronegativity_spread,
                starts["electronegativity"],
            )
        if short_range_mean is not None:
            short_range = SitePart.build(
                short_range_kernels,
                short_range_mean,
                short_range_spread,
                starts["short_range"],
                short_range_scales,
                short_range_held,
            )
        if charges is not None and charges.to_learn:
            elements = ElementParameters.build(charges, species) if elements is None else elements
            learned = LearnedPart(elements, slice(start, start + elements.size))
            start += elements.size
        if site_maps and site_deltas:
            parts = {}
            for kind, deltas in site_deltas.items():
                parts[kind] = SitePart.build(list(zip(site_maps, deltas, strict=True)), {}, 0.0, start)
                start = parts[kind].columns.stop
            sites = EnvironmentPart(tuple(site_maps), parts)
        return cls(species, electronegativity, charges, short_range, start, learned, sites)

    @property
    def parts(self) -> dict[str, SitePart]:
        """Parts with a prior spread of their own: ``electronegativity``, ``short_range``, kinds of site parameters."""
        named = {"electronegativity": self.electronegativity, "short_range": self.short_range}
        kinds = {} if self.sites is None else self.sites.parts
        return {**{name: part for name, part in named.items() if part is not None}, **kinds}

    def with_parts(self, parts: Mapping[str, SitePart]) -> Parameters:
        """The same layout with other parts under the names of :attr:`parts`."""
        sites = self.sites
        if sites is not None:
            sites = replace(sites, parts={kind: parts[kind] for kind in sites.parts})
        return replace(
            self,
            electronegativity=parts.get("electronegativity"),
            short_range=parts.get("short_range"),
            sites=sites,
        )

    def element_means(self) -> FloatArray:
        """Derivatives by u of the mean electronegativities of the elements, then of their mean energies, (2Z, P)."""
        nothing = np.zeros((len(self.species), self.size))
        parts = (self.electronegativity, self.short_range)
        return np.concatenate(
            [nothing if part is None else part.element_means(self.species, self.size) for part in parts]
        )

    def determination(self, lower: FloatArray) -> Determination:
        """Element means under the prior of the fit; ``lower`` is the factor of the posterior precision, (P, P)."""
        rows = self.element_means()
        scaled = solve_lower(lower, rows.T)
        return Determination(self.species, scaled.T @ scaled, rows @ rows.T)

    def without_short_range(self) -> Parameters:
        """Those of the charges alone, for labels that do not depend on the others; the last ones of the vector."""
        return self if self.short_range is None else self.with_short_range(None)

    def with_short_range(self, short_range: SitePart | None) -> Parameters:
        """The same with another short-range energy, which comes first; the others move."""
        assert self.short_range is not None and self.short_range_first
        shift = (0 if short_range is None else short_range.size) - self.short_range.size

        def elsewhere(columns: slice) -> slice:
            return slice(columns.start + shift, columns.stop + shift)

        def moved(part: SitePart) -> SitePart:
            kernels = tuple(replace(kernel, columns=elsewhere(kernel.columns)) for kernel in part.kernels)
            return replace(part, kernels=kernels, columns=elsewhere(part.columns))

        learned, sites = self.learned, self.sites
        if learned is not None:
            learned = replace(learned, columns=elsewhere(learned.columns))
        if sites is not None:
            assert sites.fixed is None
            parts = {kind: moved(part) for kind, part in sites.parts.items()}
            sites = replace(sites, parts=parts)
        return replace(
            self,
            electronegativity=None if self.electronegativity is None else moved(self.electronegativity),
            short_range=short_range,
            size=self.size + shift,
            learned=learned,
            sites=sites,
        )

    @property
    def short_range_first(self) -> bool:
        """Whether the parameters of the energy come before those of the electronegativities."""
        return self.short_range is None or self.short_range.columns.start == 0

    @property
    def kernels(self) -> dict[str, KernelPart]:
        """All kernels by name: that of the part, with a number from 1 on where it is a sum of several."""
        return {
            name if len(part.kernels) == 1 else f"{name} {number}": kernel
            for name, part in self.parts.items()
            for number, kernel in enumerate(part.kernels, start=1)
        }

    def with_kernels(self, kernels: Mapping[str, KernelPart]) -> Parameters:
        """The same layout with other kernels under (some of) the names of :attr:`kernels`."""
        names = iter(self.kernels)
        return self.with_parts(
            {
                name: part.with_kernels([kernels.get(next(names), kernel) for kernel in part.kernels])
                for name, part in self.parts.items()
            }
        )

    def without(self, names: Collection[str]) -> tuple[Parameters, IntArray]:
        """The model without some of the :attr:`kernels` of electronegativity and energy, and which columns are left."""
        start = 0
        kept: list[IntArray] = []
        parts: dict[str, SitePart] = {}
        gone = [self.kernels[name] for name in names]
        named = {"electronegativity": self.electronegativity, "short_range": self.short_range}
        found = [(name, part) for name, part in named.items() if part is not None]
        for name, part in sorted(found, key=lambda item: item[1].columns.start):
            kernels = []
            first = start
            for kernel in part.kernels:
                if any(kernel is other for other in gone):
                    continue
                kept.append(np.arange(kernel.columns.start, kernel.columns.stop))
                kernels.append(replace(kernel, columns=slice(start, start + kernel.size)))
                start += kernel.size
            tail = len(part.offset_mean)
            kept.append(np.arange(part.columns.stop - tail, part.columns.stop))
            start += tail
            parts[name] = replace(part, kernels=tuple(kernels), columns=slice(first, start))
        rest = self.site_columns
        kept.append(np.arange(rest.start, rest.stop))
        shift = start - rest.start

        def moved(columns: slice) -> slice:
            return slice(columns.start + shift, columns.stop + shift)

        learned, sites = self.learned, self.sites
        if learned is not None:
            learned = replace(learned, columns=moved(learned.columns))
        if sites is not None:
            own = {
                kind: replace(
                    part,
                    columns=moved(part.columns),
                    kernels=tuple(replace(k, columns=moved(k.columns)) for k in part.kernels),
                )
                for kind, part in sites.parts.items()
            }
            sites = replace(sites, parts=own)
        index = np.concatenate(kept)
        changed = replace(
            self,
            electronegativity=parts.get("electronegativity"),
            short_range=parts.get("short_range"),
            learned=learned,
            sites=sites,
            size=len(index),
        )
        return changed, index

    @property
    def site_columns(self) -> slice:
        """The parameters of the charge model: element parameters, then the kernels of each kind."""
        if self.learned is None:
            return slice(self.size, self.size)
        return slice(self.learned.columns.start, self.size)

    def site_parameters(self, numbers: IntArray, u: FloatArray, features: Array | None) -> SiteParameters:
        """Site parameters of atoms at u; ``features`` are Φ (N, p_θ) where they depend on the environment."""
        assert self.charges is not None
        if self.learned is None:
            sites = self.charges.site_parameters(numbers)
        else:
            sites = self.learned.sites(self.charges, numbers, u)
        if self.sites is None:
            return sites
        assert features is not None
        return self.sites.apply(sites, features, u)

    def site_directions(
        self, sites: SiteParameters, numbers: IntArray, u: FloatArray, features: Array | None
    ) -> SiteDirections | None:
        """Change of the site parameters (given at u) with the parameters in ``site_columns``; ``None`` without any."""
        if self.learned is None:
            return None
        directions = self.learned.directions(numbers, u)
        if self.sites is None:
            return SiteDirections(directions.on(sites.hardness), None)
        assert features is not None
        elements, parts, atoms = self.learned.elements, self.sites.parts, len(numbers)
        plain = [i for i, kind in enumerate(elements.kinds) if kind not in parts]
        first = self.site_columns.start
        count = elements.size
        unit = np.zeros((len(plain), count))
        unit[np.arange(len(plain)), plain] = 1.0
        mixing = zeros((len(plain) + len(parts) * atoms, self.size - first), features)
        mixing[: len(plain), :count] = asarray_like(unit, features)
        for number, (kind, part) in enumerate(parts.items()):
            rows = slice(len(plain) + number * atoms, len(plain) + (number + 1) * atoms)
            of_kind = np.array([k == kind for k in elements.kinds])
            shifts = np.where(of_kind, elements.spread, 0.0) * (numbers[:, None] == elements.species)
            mixing[rows, :count] = asarray_like(shifts, features)
            mixing[rows, part.columns.start - first : part.columns.stop - first] = part.scale(features)
        logarithms = logarithmic_directions(sites, tuple(parts))
        blocks = {}
        for kind in dict.fromkeys(elements.kinds):
            rows_of_kind = int(getattr(directions, kind).shape[0])  # atoms, or pairs of elements
            block = zeros((rows_of_kind, mixing.shape[0]), features)
            if kind in parts:
                block[:, len(plain) :] = getattr(logarithms, kind)
            else:
                block[:, : len(plain)] = asarray_like(getattr(directions, kind)[:, plain], features)
            blocks[kind] = block
        if mixing.shape[0] > mixing.shape[1]:
            return SiteDirections(SiteChange(**{kind: b @ mixing for kind, b in blocks.items()}), None)
        return SiteDirections(SiteChange(**blocks), mixing)

    def charge_model(self, u: FloatArray) -> ChargeModel | None:
        """The charge model with values in place of ``"learn"``."""
        if self.learned is None or self.charges is None:
            return self.charges
        return self.learned.elements.apply(self.charges, u[self.learned.columns])

    def freeze(self, u: FloatArray) -> Parameters:
        """The same layout with all site parameters fixed at u; nothing depends on their columns any more."""
        sites = None if self.sites is None else replace(self.sites, fixed=u.copy())
        return replace(self, charges=self.charge_model(u), learned=None, sites=sites)

    def with_remainders(self, values: Mapping[str, float]) -> Parameters:
        """The same with other :attr:`KernelPart.remainder` of the named :attr:`kernels`."""
        return self.with_kernels(
            {
                name: replace(kernel, remainder=float(values.get(name, kernel.remainder)))
                for name, kernel in self.kernels.items()
            }
        )

    @property
    def patience(self) -> int | None:
        """For the solver: element parameters compensate each other, so their valleys are long and flat."""
        return None if self.learned is None else PATIENCE

    @property
    def limited(self) -> int | None:
        """Where the parameters begin that :meth:`step_factor` limits: site parameters are the last ones."""
        return None if self.learned is None else self.learned.columns.start

    def step_factor(self, step: FloatArray) -> float:
        """How much of a step may be taken (at most 1): logarithms of site parameters move by a limited amount.

        The quadratic model says nothing about parameters that change by orders of magnitude.  Where they depend on the
        environment, those at the representatives count: δ L u, with the Cholesky factor L of the kernel matrix.
        """
        if self.learned is None:
            return 1.0
        elements = self.learned.elements
        shifts = elements.spread * step[self.learned.columns]
        largest = float(np.abs(shifts).max(initial=0.0))
        if self.sites is not None:
            offsets = dict(
                zip(zip(elements.kinds, elements.species.tolist(), strict=True), shifts, strict=True)
            )
            for kind in self.sites.parts:
                for z, values in self.sites.at_representatives(kind, step).items():
                    moved = values + offsets[kind, z]
                    largest = max(largest, float(np.abs(moved).max()))
        return 1.0 if largest <= STEP_LIMIT else STEP_LIMIT / largest


__all__ = [
    "PATIENCE",
    "STEP_LIMIT",
    "EnvironmentPart",
    "KernelPart",
    "LearnedPart",
    "Parameters",
    "SiteDirections",
    "SitePart",
]
