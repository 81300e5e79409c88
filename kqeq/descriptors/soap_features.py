"""Derivatives of many kernel features at once, as matrix products (for fitting to forces).

f_m = Σ_i f_im with ∂f_im/∂p_i = C_im d_m needs, for every pair (i, j) of every centre,

    ∂f_m/∂r_ij = C_im/|p_i| [ Σ_{l,n,b} Q^m_l[n, b] H_ij[l, n, b] − (p̂_i·d_m) ∂|p_i|/∂r_ij ]

    H_ij[l, n, b] = Σ_m' (∂c_nlm'/∂r_ij) c_blm'(i)

where Q^m_l[n, b] holds d_m as a symmetric matrix (rows n: radial functions of the element of j; columns b:
all of the centre's), with prefactor and doubled diagonal.  The sum over (l, n, b) is one matrix product
of the pairs of a chunk (3p × K) with all directions (K × M) for each element of j.  It costs
6 M (l_max + 1) S n² flops a pair, and everything else next to nothing.

Dimensions: N atoms, F features, M directions, n centres, p pairs of a chunk, S species,
K = (l_max + 1) n S n.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from kqeq.descriptors import parallel
from kqeq.descriptors.base import FeatureGradients
from kqeq.errors import InputError
from kqeq.typing import FloatArray, IntArray

if TYPE_CHECKING:
    from kqeq.descriptors.soap_adjoint import SOAPState, Tables

CHUNK_BYTES = 16 * 2**20
"""Memory for the products of one chunk of pairs."""

DIRECTIONS_BYTES = 128 * 2**20
"""Memory for directions laid out as matrices, when they are not prepared by the caller."""

_loaded: list[ModuleType] = []


def _kernels() -> ModuleType:
    if not _loaded:
        with parallel.announced("compiling the feature kernels (once; they are cached on disk) ..."):
            from kqeq.descriptors import soap_feature_kernels
        _loaded.append(soap_feature_kernels)
    return _loaded[0]


@dataclass(frozen=True, eq=False)
class Directions:
    """Directions in descriptor space, laid out for matrix products.

    Attributes
    ----------
    rows : (M, F) array
        d_m.
    matrices : (S, K, M) array
        Q^m_l[n, b] for each species of the neighbour.
    """

    rows: FloatArray
    matrices: FloatArray

    def __len__(self) -> int:
        return len(self.rows)


def prepare_directions(tables: Tables, n_species: int, rows: FloatArray) -> Directions:
    """Lay directions out once for use with many structures of the same elements.

    Takes twice the memory of ``rows``.

    Parameters
    ----------
    tables : Tables
    n_species : int
        Number of species S of the layout.
    rows : (M, F) array
    """
    return Directions(rows, _matrices(tables, n_species, rows, 0, len(rows)))


def _matrices(tables: Tables, n_species: int, rows: FloatArray, first: int, last: int) -> FloatArray:
    """Rows ``first`` to ``last`` as an (S, K, last − first) array."""
    n_radial, degrees = tables.n_radial, tables.degrees
    inner = degrees * n_radial * n_species * n_radial
    out = np.empty((n_species, inner, last - first))
    rows = np.ascontiguousarray(rows, dtype=np.float64)
    _kernels().expand_directions(
        first, last, first, rows, tables.radial.prefactors, n_species, n_radial, degrees, out
    )
    return out


def feature_gradients(
    state: SOAPState, centres: IntArray, directions: FloatArray | Directions, coefficients: FloatArray
) -> FeatureGradients:
    """See :meth:`kqeq.descriptors.soap_adjoint.SOAPState.feature_gradients`."""
    prepared = directions if isinstance(directions, Directions) else None
    rows = np.asarray(directions if prepared is None else prepared.rows)
    n_atoms, n_features = state.values.shape
    centres = np.asarray(centres, dtype=np.int64)
    n_species, n_directions = len(state.species), len(rows)
    if rows.ndim != 2 or rows.shape[1] != n_features:
        raise InputError(f"directions have shape {rows.shape}, expected (M, {n_features})")
    if coefficients.shape != (len(centres), n_directions):
        raise InputError(
            f"coefficients have shape {coefficients.shape}, expected {(len(centres), n_directions)}: a row for "
            "each centre, a column for each direction"
        )
    if len(centres) and (centres.min() < 0 or centres.max() >= n_atoms):
        raise InputError(f"centres must be atoms 0 to {n_atoms - 1}, got {centres.tolist()}")
    positions = np.zeros((3 * n_atoms, n_directions))
    strain = np.zeros((9, n_directions))
    if len(centres) == 0 or n_directions == 0:
        return FeatureGradients(positions, strain)

    norms = state.norms[centres]
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    scaled = np.ascontiguousarray(coefficients * inverse[:, None])
    projections = state.values[centres] @ rows.T
    step = n_directions
    if prepared is None:
        size = 8 * state.tables.degrees * (n_species * state.tables.n_radial) ** 2
        step = min(n_directions, max(16, DIRECTIONS_BYTES // size))
    for first in range(0, n_directions, step):
        last = min(first + step, n_directions)
        if prepared is None:
            matrices = _matrices(state.tables, n_species, rows, first, last)
        else:
            matrices = prepared.matrices
        whole = last - first == n_directions
        columns = slice(first, last)
        part = (
            (positions, strain) if whole else (np.zeros((3 * n_atoms, last - first)), np.zeros((9, last - first)))
        )
        _accumulate(
            state,
            centres,
            matrices,
            np.ascontiguousarray(scaled[:, columns]),
            np.ascontiguousarray(projections[:, columns]),
            *part,
        )
        if not whole:
            positions[:, columns], strain[:, columns] = part
    return FeatureGradients(positions, strain)


def _accumulate(
    state: SOAPState,
    centres: IntArray,
    matrices: FloatArray,
    scaled: FloatArray,
    projections: FloatArray,
    positions: FloatArray,
    strain: FloatArray,
) -> None:
    """Add the gradients of one block of directions, chunk by chunk of pairs."""
    compiled, pairs, tables = _kernels(), state.pairs, state.tables
    n_species, inner, n_directions = matrices.shape
    chunk = max(16, CHUNK_BYTES // (24 * max(inner, n_directions)))
    for s in range(n_species):
        starts, stops = pairs.start[centres * n_species + s], pairs.start[centres * n_species + s + 1]
        lengths = stops - starts
        which = np.repeat(np.arange(len(centres)), lengths)
        chosen = np.arange(len(which)) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
        for low in range(0, len(chosen), chunk):
            subset, rows = chosen[low : low + chunk], which[low : low + chunk]
            products = _products(state, subset, centres[rows], inner) @ matrices[s]

            def scatter(first: int, last: int, subset: IntArray = subset, rows: IntArray = rows,
                        products: FloatArray = products) -> None:
                compiled.scatter_features(
                    first, last, subset, pairs.indices, rows, pairs.vectors, products, state._along,
                    scaled, projections, positions, strain,
                )

            scatter(0, n_directions)


def _products(state: SOAPState, subset: IntArray, centres: IntArray, inner: int) -> FloatArray:
    """H of some pairs as a (3p, K) matrix."""
    from kqeq.descriptors.soap_adjoint import kernels

    compiled, pairs, tables = _kernels(), state.pairs, state.tables
    number = len(subset)
    radial = np.empty((*tables.exponents.shape, number))
    angular = np.empty((tables.degrees**2, number))
    kernels().fill_block(
        np.ascontiguousarray(pairs.vectors[:, subset]),
        0,
        number,
        tables.exponents,
        tables.angular.recursion,
        radial,
        angular,
    )
    out = np.empty((3 * number, inner))

    def task(first: int, last: int) -> None:
        compiled.pair_products(
            first,
            last,
            subset,
            centres,
            pairs.vectors,
            pairs.switch,
            radial,
            angular,
            tables.exponents,
            tables.radial.weights,
            tables.angular.gradient_rows,
            tables.angular.gradient_factors,
            state.coefficients,
            out,
        )

    parallel.run(task, np.arange(len(subset) + 1), 500)
    return out


__all__ = ["Directions", "feature_gradients", "prepare_directions"]
