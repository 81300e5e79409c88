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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
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

SELECTIONS = ("fps", "cur")
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
    n_representatives : int
        Representative environments **per element**.
    selection : {"fps", "cur"}
        Farthest-point sampling or CUR decomposition.
    delta : float, optional
        Prior standard deviation of the modelled quantity (eV/e for electronegativities, eV per atom for
        the short-range energy).  ``None`` takes the default of the role.
    smooth : {"none", "padding", "switch"}
        Treatment of the outer cutoff; see :class:`kqeq.descriptors.soap.SOAPDescriptor`.
    """

    def __init__(
        self,
        r_cut: float = 5.0,
        n_max: int = 6,
        l_max: int = 4,
        sigma: float = 0.5,
        zeta: float = 2.0,
        n_representatives: int = 200,
        selection: str = "fps",
        delta: float | None = None,
        smooth: str = "none",
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
            r_cut=float(self.r_cut),
            n_max=int(self.n_max),
            l_max=int(self.l_max),
            sigma=float(self.sigma),
            smooth=self.smooth,
        )

    def check(self) -> None:
        """Validate all settings.

        Raises
        ------
        InputError
            Naming the setting, its value and what was expected.
        """
        self.descriptor()
        if not np.isfinite(self.zeta) or self.zeta < 1:
            raise InputError(f"SOAPKernel(zeta={self.zeta!r}): expected a number of at least 1")
        if int(self.n_representatives) != self.n_representatives or self.n_representatives < 1:
            raise InputError(
                f"SOAPKernel(n_representatives={self.n_representatives!r}): expected a whole number of at least 1"
            )
        if self.selection not in SELECTIONS:
            raise InputError(
                f"SOAPKernel(selection={self.selection!r}): expected one of {', '.join(SELECTIONS)}"
            )
        if self.delta is not None and not (np.isfinite(self.delta) and self.delta > 0):
            raise InputError(f"SOAPKernel(delta={self.delta!r}): expected a positive number, or None")

    def to_dict(self) -> dict[str, Any]:
        """Parameters as plain data."""
        return dict(self.get_params(deep=False))


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

    def similarities(
        self, state: DescriptorState, numbers: IntArray
    ) -> Iterator[tuple[int, IntArray, FloatArray, FloatArray]]:
        """For each element: its number, its atoms (n,), directions (M, F) and dot products (n, M)."""
        for z, directions in self.project(state.species).items():
            centres = np.flatnonzero(numbers == z)
            rows = state.values[centres]
            yield z, centres, directions, rows @ directions.T

    def features(self, state: DescriptorState, numbers: IntArray) -> FloatArray:
        """Φ, shape (N, p)."""
        phi = np.zeros((len(numbers), self.size))
        columns = self.columns
        for z, centres, _, dots in self.similarities(state, numbers):
            phi[centres, columns[z]] = solve_lower(self.lower[z], _power(dots, self.zeta).T).T
        return phi

    def feature_gradients(
        self, state: DescriptorState, numbers: IntArray, weights: FloatArray
    ) -> FeatureGradients:
        """Derivatives of Σ_i weights_i Φ_i with respect to positions (3N, p) and strain (9, p)."""
        positions = np.zeros((3 * len(numbers), self.size))
        strain = np.zeros((9, self.size))
        columns = self.columns
        for z, centres, directions, dots in self.similarities(state, numbers):
            slopes = weights[centres, None] * _slope(dots, self.zeta)
            raw = state.feature_gradients(centres, directions, slopes)
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
        self, state: DescriptorState, numbers: IntArray, coefficients: Mapping[int, FloatArray]
    ) -> FloatArray:
        """f_i = Σ_m k(p_i, p_m) c_m, shape (N,)."""
        values = np.zeros(len(numbers))
        for z, centres, _, dots in self.similarities(state, numbers):
            values[centres] = _power(dots, self.zeta) @ coefficients[z]
        return values

    def descriptor_gradient(
        self,
        state: DescriptorState,
        numbers: IntArray,
        coefficients: Mapping[int, FloatArray],
        weights: FloatArray | None = None,
    ) -> FloatArray:
        """weights_i ∂f_i/∂p_i, shape (N, F); all weights 1 if none are given."""
        gradient = np.zeros_like(state.values)
        for z, centres, directions, dots in self.similarities(state, numbers):
            slopes = _slope(dots, self.zeta) * coefficients[z]
            if weights is not None:
                slopes *= weights[centres, None]
            gradient[centres] = slopes @ directions
        return gradient


def gram(rows: sparse.csr_array) -> FloatArray:
    """Dot products between all rows of a sparse matrix, dense (M, M)."""
    used = np.asarray(rows[:, np.unique(rows.indices)].toarray())
    return used @ used.T


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


__all__ = ["SELECTIONS", "FeatureMap", "SOAPKernel", "gram", "layout_columns"]
