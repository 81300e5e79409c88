"""Derivatives of many kernel features at once, as matrix products (for fitting to forces).

f_m = Σ_i f_im with ∂f_im/∂p_i = C_im d_m needs, for every pair (i, j) of every centre,

    ∂f_m/∂r_ij = C_im/|p_i| [ Σ_{l,m',n,b} (∂c_nlm'/∂r_ij) c_blm'(i) Q^m_l[n, b] − (p̂_i·d_m) ∂|p_i|/∂r_ij ]

where Q^m_l[n, b] holds d_m as a symmetric matrix (rows n: radial functions of the element of j; columns b:
all of the centre's), with prefactor and doubled diagonal.  The sum is done in one of two orders:

*pairs first*
    H[l, b, n] = Σ_m' ∂c c for every pair, then (3p × K) by (K × M) for the pairs of a chunk, K = (l_max + 1) S n².
    6 M K flops a pair: best for molecules.
*centre first*
    T[lm', n, m] = Σ_b c Q for every centre and element of j, then (3p × L n) by (L n × M) for its neighbours.
    2 M L (S n)² flops a centre and 6 M L n a pair: half of the above in liquids and solids.

Everything else costs next to nothing.

Dimensions: N atoms, F features, M directions, n centres (or radial functions), p pairs of a chunk, S species,
L = (l_max + 1)² harmonics.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import ModuleType

import numpy as np

from kqeq.backend import compiled, threads
from kqeq.descriptors.base import FeatureGradients
from kqeq.descriptors.soap.host.adjoint import SOAPState, Tables
from kqeq.errors import InputError
from kqeq.typing import FloatArray, IntArray

CHUNK_BYTES = 16 * 2**20
"""Memory for the products of one chunk of pairs."""

DIRECTIONS_BYTES = 128 * 2**20
"""Memory for directions laid out as matrices, when they are not prepared by the caller."""


@cache
def _kernels() -> ModuleType:
    return compiled.load("kqeq.descriptors.soap.host.feature_kernels")


@dataclass(frozen=True, eq=False)
class Directions:
    """Directions in descriptor space, laid out for matrix products.

    Attributes
    ----------
    rows : (M, F) array
        d_m.
    matrices : (S, K, M) array
        Q^m_l[n, b] for each species of the neighbour; K = (l, b, n).
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
    state: SOAPState,
    centres: IntArray,
    directions: FloatArray | Directions,
    coefficients: FloatArray,
    projections: FloatArray | None = None,
) -> FeatureGradients:
    """See :meth:`kqeq.descriptors.base.Descriptor.feature_gradients`."""
    prepared = directions if isinstance(directions, Directions) else None
    rows = np.asarray(directions if prepared is None else prepared.rows)
    centres = _check(state, centres, rows, coefficients)
    n_atoms, n_species, n_directions = len(state.values), len(state.species), len(rows)
    positions = np.zeros((3 * n_atoms, n_directions))
    strain = np.zeros((9, n_directions))
    if len(centres) == 0 or n_directions == 0:
        return FeatureGradients(positions, strain)
    scaled, projections = _scaled(state, centres, rows, coefficients, projections)
    if prepared is not None:
        _accumulate(centres, prepared.matrices, _Target(state, scaled, projections, positions, strain))
        return FeatureGradients(positions, strain)
    # lay directions out in blocks that bound the memory
    size = 8 * state.tables.degrees * (n_species * state.tables.n_radial) ** 2
    step = max(16, DIRECTIONS_BYTES // size)
    for first in range(0, n_directions, step):
        block = slice(first, min(first + step, n_directions))
        number = block.stop - first
        target = _Target(
            state,
            np.ascontiguousarray(scaled[:, block]),
            np.ascontiguousarray(projections[:, block]),
            np.zeros((3 * n_atoms, number)),
            np.zeros((9, number)),
        )
        _accumulate(centres, _matrices(state.tables, n_species, rows, first, block.stop), target)
        positions[:, block], strain[:, block] = target.positions, target.strain
    return FeatureGradients(positions, strain)


def gradients_by_centre(
    state: SOAPState, centres: IntArray, directions: Directions, coefficients: FloatArray
) -> FloatArray:
    """Derivatives ∂f_im/∂r of every centre for itself, (n, 3N, M), with ∂f_im/∂p_i = C_im d_m.

    The sum over centres is what :func:`feature_gradients` gives; as much work, n times the memory.

    Parameters
    ----------
    state : SOAPState
    centres : (n,) array
        Different atoms.
    directions : Directions
    coefficients : (n, M) array
        C_im.
    """
    rows = directions.rows
    centres = _check(state, centres, rows, coefficients)
    n_atoms = len(state.values)
    positions = np.zeros((len(centres), 3 * n_atoms, len(rows)))
    if positions.size == 0:
        return positions
    scaled, projections = _scaled(state, centres, rows, coefficients, None)
    # every centre adds to atoms of its own: numbers of atoms are shifted by N for each
    starts = state.pairs.start
    row_of = np.zeros(n_atoms, dtype=np.int64)
    row_of[centres] = np.arange(len(centres))
    shift = np.repeat(n_atoms * row_of, np.diff(starts[:: len(state.species)]))
    target = _Target(
        state,
        scaled,
        projections,
        positions.reshape(-1, len(rows)),
        np.zeros((9, len(rows))),
        state.pairs.indices + shift,
    )
    _accumulate(centres, directions.matrices, target)
    return positions


def _check(state: SOAPState, centres: IntArray, rows: FloatArray, coefficients: FloatArray) -> IntArray:
    """Refuse shapes that do not agree; centres as an array."""
    n_atoms, n_features = state.values.shape
    centres = np.asarray(centres, dtype=np.int64)
    if rows.ndim != 2 or rows.shape[1] != n_features:
        raise InputError(f"directions have shape {rows.shape}, expected (M, {n_features})")
    if coefficients.shape != (len(centres), len(rows)):
        raise InputError(
            f"coefficients have shape {coefficients.shape}, expected {(len(centres), len(rows))}: a row for "
            "each centre, a column for each direction"
        )
    if len(centres) and (centres.min() < 0 or centres.max() >= n_atoms):
        raise InputError(f"centres must be atoms 0 to {n_atoms - 1}, got {centres.tolist()}")
    return centres


def _scaled(
    state: SOAPState,
    centres: IntArray,
    rows: FloatArray,
    coefficients: FloatArray,
    projections: FloatArray | None,
) -> tuple[FloatArray, FloatArray]:
    """C_im / |p_i| and p̂_i · d_m, (n, M)."""
    norms = state.norms[centres]
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    if projections is None:
        projections = state.values[centres] @ rows.T
    return np.ascontiguousarray(coefficients * inverse[:, None]), np.ascontiguousarray(projections)


@dataclass(frozen=True, eq=False)
class _Target:
    """Where gradients go, and what turns matrix products into gradients."""

    state: SOAPState
    scaled: FloatArray  # (n, M): C_im / |p_i|
    projections: FloatArray  # (n, M): p̂_i · d_m
    positions: FloatArray  # (3N, M)
    strain: FloatArray  # (9, M)
    indices: IntArray | None = None  # (2, P): rows of ``positions``, those of the state's pairs by default

    def add(self, pairs: IntArray, which: IntArray, products: FloatArray) -> None:
        """Add the products (3p, M) of some pairs; ``which`` counts their centres."""
        _kernels().scatter_features(
            pairs,
            self.state.pairs.indices if self.indices is None else self.indices,
            which,
            self.state.pairs.vectors,
            products,
            self.state.norm_gradients,
            self.scaled,
            self.projections,
            self.positions,
            self.strain,
        )


def _accumulate(centres: IntArray, matrices: FloatArray, target: _Target) -> None:
    """Add the gradients of one block of directions, in the cheaper order."""
    state = target.state
    n_species, start = len(state.species), state.pairs.start
    n_radial, degrees = state.tables.n_radial, state.tables.degrees
    width, size = n_species * n_radial, degrees**2
    n_pairs = int((start[(centres + 1) * n_species] - start[centres * n_species]).sum())
    pairs_first = 3 * n_pairs * degrees * width * n_radial
    # the many thin products of the other order run at about a third of the speed
    centre_first = 3 * len(centres) * size * width**2 + 3 * n_pairs * size * n_radial
    if pairs_first <= centre_first:
        _pairs_first(centres, matrices, target)
    else:
        _centre_first(centres, matrices, target)


def _pairs_first(centres: IntArray, matrices: FloatArray, target: _Target) -> None:
    state = target.state
    n_species, inner, n_directions = matrices.shape
    start = state.pairs.start
    chunk = max(16, CHUNK_BYTES // (24 * max(inner, n_directions)))
    for s in range(n_species):
        starts, stops = start[centres * n_species + s], start[centres * n_species + s + 1]
        lengths = stops - starts
        which = np.repeat(np.arange(len(centres)), lengths)
        chosen = np.arange(len(which)) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
        for low in range(0, len(chosen), chunk):
            subset, rows = chosen[low : low + chunk], which[low : low + chunk]
            products = _products(state, subset, centres[rows], inner) @ matrices[s]
            target.add(subset, rows, products)


def _centre_first(centres: IntArray, matrices: FloatArray, target: _Target) -> None:
    state = target.state
    start, tables = state.pairs.start, state.tables
    n_species, inner, n_directions = matrices.shape
    n_radial, degrees, size = tables.n_radial, tables.degrees, tables.degrees**2
    by_degree = matrices.reshape(n_species, degrees, inner // (degrees * n_radial), n_radial * n_directions)
    contracted = np.empty((size, n_radial * n_directions))
    for row, i in enumerate(centres):
        begin, end = int(start[i * n_species]), int(start[(i + 1) * n_species])
        slopes = _slopes(state, begin, end)
        for s in range(n_species):
            low, high = int(start[i * n_species + s]), int(start[i * n_species + s + 1])
            if low == high:
                continue
            for degree in range(degrees):
                rows = slice(degree**2, (degree + 1) ** 2)
                np.matmul(state.coefficients[i, rows], by_degree[s, degree], out=contracted[rows])
            part = slopes[3 * (low - begin) : 3 * (high - begin)]
            products = part @ contracted.reshape(size * n_radial, n_directions)
            target.add(np.arange(low, high), np.full(high - low, row), products)


def _basis(state: SOAPState, vectors: FloatArray) -> tuple[FloatArray, FloatArray]:
    """exp(a r²) and R_lm of some pair vectors (3, p)."""
    tables, number = state.tables, vectors.shape[1]
    radial = np.empty((*tables.exponents.shape, number))
    angular = np.empty((tables.degrees**2, number))
    _kernels().fill_block(
        np.ascontiguousarray(vectors),
        0,
        number,
        tables.exponents,
        tables.angular.recursion,
        radial,
        angular,
    )
    return radial, angular


def _slopes(state: SOAPState, first: int, last: int) -> FloatArray:
    """∂c_nlm/∂r_α of consecutive pairs as a (3p, L n) matrix."""
    tables, pairs = state.tables, state.pairs
    radial, angular = _basis(state, pairs.vectors[:, first:last])
    out = np.empty((3 * (last - first), tables.degrees**2 * tables.n_radial))
    _kernels().pair_slopes(
        first,
        last,
        pairs.vectors,
        pairs.switch,
        radial,
        angular,
        tables.exponents,
        tables.radial.weights,
        tables.angular.gradient_rows,
        tables.angular.gradient_factors,
        out,
    )
    return out


def _products(state: SOAPState, subset: IntArray, centres: IntArray, inner: int) -> FloatArray:
    """H of some pairs as a (3p, K) matrix."""
    compiled, pairs, tables = _kernels(), state.pairs, state.tables
    radial, angular = _basis(state, pairs.vectors[:, subset])
    out = np.empty((3 * len(subset), inner))

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

    threads.run(task, np.arange(len(subset) + 1), 500)
    return out


__all__ = ["Directions", "feature_gradients", "gradients_by_centre", "prepare_directions"]
