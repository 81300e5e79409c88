"""Kernel settings and the sparse feature map.

    k(p_i, p_m) = δ_{Z_i Z_m} (p_i · p_m)^ζ
    Φ = K_NM L⁻ᵀ,    K_MM + jitter·1 = L Lᵀ        (per element)

so that a function of the environment is f_i = Σ_m Φ_im w_m with a standard normal prior on w: ordinary
Bayesian linear regression (theory section 2; the subset-of-regressors approximation of Gaussian processes,
Quiñonero-Candela & Rasmussen 2005, *J. Mach. Learn. Res.* 6, 1939).

Representative environments keep only the element-pair blocks that they have.  For a structure they are
projected onto the layout of its own elements, so the cost depends on the elements in that structure and not
on how many the model knows.

Dimensions: N atoms, F features of one layout, M representatives of one element, p = Σ_Z M.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral, Real
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from scipy import sparse
from sklearn.base import BaseEstimator

from kqeq.descriptors.base import Descriptor, DescriptorState, FeatureGradients
from kqeq.descriptors.soap import SOAPDescriptor
from kqeq.errors import InputError
from kqeq.linalg import factorise_with_jitter, solve_lower
from kqeq.typing import FloatArray, IntArray

DEFAULT_REPRESENTATIVES = 300
"""Representatives per element where none are asked for."""

SELECTIONS = ("fps", "cur", "leverage")
"""Ways to choose representative environments."""


class SOAPKernel(BaseEstimator):  # type: ignore[misc]
    """Settings of a kernel on SOAP descriptors.

    Parameters
    ----------
    r_cut : float
        Cutoff radius, Å.
    n_max, l_max : int
        Radial and angular basis size of :class:`dscribe.descriptors.SOAP` (``rbf="gto"``).
    sigma : float
        Width of the Gaussians that smear the atoms, Å.
    zeta : float
        Power of the normalised dot product; larger is more selective.
    n_representatives : int, optional
        Representative environments **per element**.  ``None`` takes up to 300, as many as there are; a number
        that exceeds the distinct environments of the training frames is met with a warning.
    selection : {"fps", "cur", "leverage"}
        Farthest-point sampling, CUR decomposition, or random choice in proportion to leverage scores (seeded).
    delta : float, optional
        Prior standard deviation of the modelled quantity (eV/e for electronegativities, eV per atom for
        the short-range energy).  ``None`` takes the default of the role.
    smooth : {"none", "switch"}
        Treatment of the outer cutoff; see :class:`kqeq.descriptors.soap.SOAPDescriptor`.
    """

    def __init__(
        self,
        r_cut: float = 5.0,
        n_max: int = 6,
        l_max: int = 4,
        sigma: float = 0.5,
        zeta: float = 2.0,
        n_representatives: int | None = None,
        selection: str = "fps",
        delta: float | None = None,
        smooth: str = "switch",
    ) -> None:
        self.r_cut = r_cut
        self.n_max = n_max
        self.l_max = l_max
        self.sigma = sigma
        self.zeta = zeta
        self.n_representatives = n_representatives
        self.selection = selection
        self.delta = delta
        self.smooth = smooth

    def descriptor(self) -> SOAPDescriptor:
        """The descriptor that these settings stand for; validates its part of them."""
        return SOAPDescriptor(
            r_cut=self.r_cut,
            n_max=self.n_max,
            l_max=self.l_max,
            sigma=self.sigma,
            smooth=self.smooth,  # type: ignore[arg-type]  # the descriptor validates it
        )

    def check(self) -> None:
        """Validate all settings.

        Raises
        ------
        InputError
            Naming the setting, its value and what was expected.
        """
        self.descriptor()
        if not _is_number(self.zeta) or self.zeta < 1:
            raise InputError(f"SOAPKernel(zeta={self.zeta!r}): expected a number of at least 1")
        number = self.n_representatives
        if number is not None and (not isinstance(number, Integral) or number < 1):
            raise InputError(
                f"SOAPKernel(n_representatives={number!r}): expected a whole number of at least 1, or None"
            )
        if self.selection not in SELECTIONS:
            raise InputError(
                f"SOAPKernel(selection={self.selection!r}): expected one of {', '.join(SELECTIONS)}"
            )
        if self.delta is not None and not (_is_number(self.delta) and self.delta > 0):
            raise InputError(f"SOAPKernel(delta={self.delta!r}): expected a positive number, or None")

    def to_dict(self) -> dict[str, Any]:
        """Parameters as plain data."""
        return dict(self.get_params(deep=False))


def default_electronegativity() -> SOAPKernel:
    """Kernel settings of the electronegativity where none are given."""
    return SOAPKernel(r_cut=4.0, n_max=6, l_max=4, sigma=0.3, zeta=2)


def default_short_range() -> SOAPKernel:
    """Kernel settings of the short-range energy where none are given."""
    return SOAPKernel(r_cut=5.0, n_max=8, l_max=6, sigma=0.5, zeta=4)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


@dataclass(frozen=True, eq=False)
class Similarity:
    """Dot products between the atoms of one element and its representatives.

    Attributes
    ----------
    element : int
    centres : (n,) array
        The atoms.
    directions : (M, F) array
        The representatives in the layout of the structure.
    dots : (n, M) array
    """

    element: int
    centres: IntArray
    directions: FloatArray
    dots: FloatArray


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """Sparse kernel features Φ of environments, and their derivatives.

    Attributes
    ----------
    descriptor : Descriptor
    zeta : float
    representatives : dict of int to sparse (M, F_all) matrix
        Normalised descriptor rows by element, in the layout of ``species``.
    species : tuple of int
        Elements of the common layout, ascending.
    """

    descriptor: Descriptor
    zeta: float
    representatives: Mapping[int, sparse.csr_array]
    species: tuple[int, ...]
    _projected: dict[tuple[int, ...], dict[int, FloatArray]] = field(
        default_factory=dict, repr=False, compare=False
    )
    _prepared: dict[tuple[tuple[int, ...], int], Any] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave caches behind when the model is pickled to a worker."""
        return {**self.__dict__, "_projected": {}, "_prepared": {}}

    @cached_property
    def lower(self) -> dict[int, FloatArray]:
        """Cholesky factor L (M, M) of each element's kernel matrix; prediction does without.

        Raises
        ------
        NotPositiveDefiniteError
            If a kernel matrix is not a covariance (for example NaN in descriptors).
        """
        factors = {}
        for z, rows in self.representatives.items():
            kernel = _power(gram(rows), self.zeta)
            factors[z], _ = factorise_with_jitter(kernel, f"the kernel matrix of {chemical_symbols[z]}")
        return factors

    @property
    def columns(self) -> dict[int, slice]:
        """Columns of each element in the p features."""
        result, start = {}, 0
        for z, rows in self.representatives.items():
            result[z] = slice(start, start + rows.shape[0])
            start += rows.shape[0]
        return result

    @property
    def size(self) -> int:
        """Number of features p."""
        return sum(rows.shape[0] for rows in self.representatives.values())

    def project(self, species: tuple[int, ...]) -> dict[int, FloatArray]:
        """Representatives of the elements in ``species``, dense, in the layout of ``species``.

        Blocks that involve other elements meet zeros in the structure's rows and drop out of every
        product, so this loses nothing.
        """
        if species not in self._projected:
            if len(self._projected) >= 64:  # many different compositions: keep memory bounded
                self._projected.pop(next(iter(self._projected)))
            columns = layout_columns(self.descriptor, species, self.species)
            self._projected[species] = {
                z: np.ascontiguousarray(rows[:, columns].toarray())
                for z, rows in self.representatives.items()
                if z in species
            }
        return self._projected[species]

    def _directions(self, species: tuple[int, ...], z: int) -> Any:
        """Projected representatives of one element as the descriptor wants them for feature gradients."""
        key = (species, z)
        if key not in self._prepared:
            if len(self._prepared) >= 64:
                self._prepared.pop(next(iter(self._prepared)))
            self._prepared[key] = self.descriptor.prepare_directions(species, self.project(species)[z])
        return self._prepared[key]

    def similarities(self, state: DescriptorState, numbers: IntArray) -> list[Similarity]:
        """Dot products of all atoms with the representatives of their elements; shared by what follows."""
        return self.similarities_many([state], [numbers])[0]

    def similarities_many(
        self, states: Sequence[DescriptorState], numbers: Sequence[IntArray]
    ) -> list[list[Similarity]]:
        """Dot products for several structures of the same elements, in one matrix product per element.

        The representatives, not the atoms, fill the memory that such a product reads: for small molecules one
        pass over them serves the whole batch.
        """
        results: list[list[Similarity]] = [[] for _ in states]
        for z, directions in self.project(states[0].species).items():
            centres = [np.flatnonzero(n == z) for n in numbers]
            rows = [state.values[own] for state, own in zip(states, centres, strict=True)]
            dots = (np.concatenate(rows) if len(rows) > 1 else rows[0]) @ directions.T
            start = 0
            for result, own in zip(results, centres, strict=True):
                result.append(Similarity(z, own, directions, dots[start : start + len(own)]))
                start += len(own)
        return results

    def features(self, state: DescriptorState, numbers: IntArray) -> FloatArray:
        """Φ, shape (N, p)."""
        return self.features_many([state], [numbers])[0]

    def features_many(
        self, states: Sequence[DescriptorState], numbers: Sequence[IntArray]
    ) -> list[FloatArray]:
        """Φ of several structures of the same elements, each (N, p); one product and one solution per element."""
        results = [np.zeros((len(own), self.size)) for own in numbers]
        columns = self.columns
        for same in zip(*self.similarities_many(states, numbers), strict=True):
            z = same[0].element
            dots = np.concatenate([near.dots for near in same]) if len(same) > 1 else same[0].dots
            rows = solve_lower(self.lower[z], _power(dots, self.zeta).T).T
            start = 0
            for phi, near in zip(results, same, strict=True):
                phi[near.centres, columns[z]] = rows[start : start + len(near.centres)]
                start += len(near.centres)
        return results

    def feature_gradients(
        self, state: DescriptorState, numbers: IntArray, weights: FloatArray
    ) -> FeatureGradients:
        """Derivatives of Σ_i weights_i Φ_i with respect to positions (3N, p) and strain (9, p)."""
        positions = np.zeros((3 * len(numbers), self.size))
        strain = np.zeros((9, self.size))
        columns = self.columns
        for near in self.similarities(state, numbers):
            z = near.element
            slopes = weights[near.centres, None] * _slope(near.dots, self.zeta)
            raw = state.feature_gradients(near.centres, self._directions(state.species, z), slopes)
            positions[:, columns[z]] = solve_lower(self.lower[z], raw.positions.T).T
            strain[:, columns[z]] = solve_lower(self.lower[z], raw.strain.T).T
        return FeatureGradients(positions, strain)

    def coefficients(self, weights: FloatArray) -> dict[int, FloatArray]:
        """Kernel coefficients c = L⁻ᵀ w by element, so that f_i = Σ_m k(p_i, p_m) c_m."""
        return {
            z: solve_lower(self.lower[z], weights[columns], transposed=True)
            for z, columns in self.columns.items()
        }

    def expand(
        self, similarities: Sequence[Similarity], size: int, coefficients: Mapping[int, FloatArray]
    ) -> FloatArray:
        """f_i = Σ_m k(p_i, p_m) c_m for ``size`` atoms, shape (N,)."""
        values = np.zeros(size)
        for near in similarities:
            values[near.centres] = _power(near.dots, self.zeta) @ coefficients[near.element]
        return values

    def descriptor_gradient(
        self,
        similarities: Sequence[Similarity],
        shape: tuple[int, ...],
        coefficients: Mapping[int, FloatArray],
        weights: FloatArray | None = None,
    ) -> FloatArray:
        """weights_i ∂f_i/∂p_i, of the given shape (N, F); all weights 1 if none are given."""
        gradient = np.zeros(shape)
        for near in similarities:
            slopes = _slope(near.dots, self.zeta) * coefficients[near.element]
            if weights is not None:
                slopes *= weights[near.centres, None]
            gradient[near.centres] = slopes @ near.directions
        return gradient


def gram(rows: sparse.csr_array) -> FloatArray:
    """Dot products between all rows of a sparse matrix, dense (M, M)."""
    used: FloatArray = rows[:, used_columns(rows)].toarray()
    return used @ used.T


def used_columns(rows: sparse.csr_array) -> IntArray:
    """Columns of a sparse matrix that hold anything, ascending (counting is far faster than sorting indices)."""
    return np.asarray(np.flatnonzero(np.bincount(rows.indices, minlength=rows.shape[1])), dtype=np.int64)


def layout_columns(descriptor: Descriptor, part: Sequence[int], whole: Sequence[int]) -> IntArray:
    """Columns of the layout of ``whole`` that make up the layout of ``part``, in order."""
    small = descriptor.block_slices(tuple(part))
    large = descriptor.block_slices(tuple(whole))
    size = max(block.stop for block in small.values())
    columns = np.empty(size, dtype=np.int64)
    for pair, block in small.items():
        source = large[pair]
        columns[block] = np.arange(source.start, source.stop)
    return columns


def _power(dots: FloatArray, zeta: float) -> FloatArray:
    """Dot products to the power ζ; whole powers by multiplication."""
    if zeta == 1:
        return dots
    if float(zeta).is_integer():
        return np.asarray(dots ** int(zeta))
    # dot products of power spectra are not negative; rounding may say otherwise
    return np.asarray(np.maximum(dots, 0.0) ** zeta)


def _slope(dots: FloatArray, zeta: float) -> FloatArray:
    """ζ dots^(ζ−1)."""
    return np.full_like(dots, 1.0) if zeta == 1 else zeta * _power(dots, zeta - 1)


__all__ = [
    "SELECTIONS",
    "FeatureMap",
    "SOAPKernel",
    "Similarity",
    "default_electronegativity",
    "default_short_range",
    "gram",
    "layout_columns",
    "used_columns",
]
