"""Derivatives of many kernel features at once in array-namespace code; the theory is in ``soap/host/features.py``.

Dimensions: N atoms, F features, M directions, n centres, S species; within a chunk c centres and J
neighbours of one element each (padded), K = (l_max + 1) n S n.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kqeq.backend import arange, asarray_like, inverse_or_zero, namespace, put_rows, zeros
from kqeq.descriptors.base import FeatureGradients
from kqeq.descriptors.soap.arrays.blocks import chunks, members, solid_harmonics
from kqeq.descriptors.soap.arrays.expansion import ArraySOAPState
from kqeq.errors import InputError
from kqeq.typing import Array, IntArray


def feature_gradients(
    state: ArraySOAPState,
    centres: IntArray,
    directions: Array,
    coefficients: Array,
    projections: Array | None = None,
) -> FeatureGradients:
    """See :meth:`kqeq.descriptors.base.Descriptor.feature_gradients`.

    ``centres`` are on the host.  Directions are handled in blocks, so that their matrix form stays within
    ``state.memory``.
    """
    xp = namespace(state.values)
    host = np.asarray(centres, dtype=np.int64)
    n_atoms, n_directions = len(state), int(directions.shape[0])
    _check(state, host, directions, coefficients)
    if len(host) == 0 or n_directions == 0:
        return FeatureGradients(
            zeros((3 * n_atoms, n_directions), state.values), zeros((9, n_directions), state.values)
        )
    positions, strains = [], []
    for pieces in _parts(state, host, directions, coefficients, projections):
        width = 3 * pieces.number
        moved = zeros((n_atoms, width), state.values)
        strain = zeros((9, pieces.number), state.values)
        for _, pairs, flat in pieces:
            moved = moved + state.incidence(pairs) @ flat
            vectors = xp.take(state.pairs.vectors, pairs, axis=1)
            strain = strain + xp.reshape(vectors @ flat, (9, pieces.number))
        positions.append(xp.reshape(moved, (3 * n_atoms, pieces.number)))
        strains.append(strain)
    return FeatureGradients(xp.concat(positions, axis=1), xp.concat(strains, axis=1))


def gradients_by_centre(
    state: ArraySOAPState,
    size: int,
    centres: IntArray,
    directions: Array,
    coefficients: Array,
    projections: Array | None = None,
) -> Array:
    """Derivatives of every centre for itself by the positions of the atoms of its own molecule, (n, size, 3, M).

    Parameters
    ----------
    state : ArraySOAPState
        Of open molecules with ``size`` atoms each, one after the other: pairs occur once, and never cross molecules.
    size : int
    centres, directions, coefficients, projections
        As for :func:`feature_gradients`; ``centres`` are on the host.
    """
    xp = namespace(state.values)
    host = np.asarray(centres, dtype=np.int64)
    number, n_directions = len(host), int(directions.shape[0])
    _check(state, host, directions, coefficients)
    if number == 0 or n_directions == 0:
        return zeros((number, size, 3, n_directions), state.values)
    places = arange(0, number, state.values) * size
    own = places + asarray_like(host % size, state.values)
    found = []
    for pieces in _parts(state, host, directions, coefficients, projections):
        rows = zeros((number * size, 3 * pieces.number), state.values)
        for owner, pairs, flat in pieces:
            rows = put_rows(rows, owner * size + xp.take(state.pairs.j, pairs) % size, flat)
        # the centre itself moves against all of its neighbours
        total = xp.sum(xp.reshape(rows, (number, size, -1)), axis=1)
        rows = put_rows(rows, own, -total)
        found.append(xp.reshape(rows, (number, size, 3, pieces.number)))
    return found[0] if len(found) == 1 else xp.concat(found, axis=3)


def _check(state: ArraySOAPState, centres: IntArray, directions: Array, coefficients: Array) -> None:
    n_features, n_directions = int(state.values.shape[1]), int(directions.shape[0])
    if tuple(directions.shape) != (n_directions, n_features):
        raise InputError(f"directions have shape {tuple(directions.shape)}, expected (M, {n_features})")
    if tuple(coefficients.shape) != (len(centres), n_directions):
        raise InputError(
            f"coefficients have shape {tuple(coefficients.shape)}, expected {(len(centres), n_directions)}: a row "
            "for each centre, a column for each direction"
        )


def _parts(
    state: ArraySOAPState,
    centres: IntArray,
    directions: Array,
    coefficients: Array,
    projections: Array | None,
) -> Iterator[_Pieces]:
    """Blocks of directions whose matrix form stays within ``state.memory``."""
    xp = namespace(state.values)
    index = asarray_like(centres, state.values)
    n_directions = int(directions.shape[0])
    scaled = coefficients * inverse_or_zero(xp.take(state.norms, index))[:, None]
    if projections is None:
        projections = xp.take(state.values, index, axis=0) @ xp.permute_dims(directions, (1, 0))
    n_species, width = len(state.species), int(state.coefficients[0].shape[2])
    inner = state.tables.degrees * state.tables.n_radial * width
    step = max(1, min(n_directions, state.memory // (32 * n_species * inner)))
    for low in range(0, n_directions, step):
        part = slice(low, min(low + step, n_directions))
        matrices = _matrices(state, directions[part, :])
        yield _Pieces(state, centres, index, matrices, scaled[:, part], projections[:, part])


def _matrices(state: ArraySOAPState, directions: Array) -> list[Array]:
    """Directions (M, F) as (K, M) matrices Q_l[n, b] for each species of the neighbour."""
    xp = namespace(directions)
    number, n_radial = int(directions.shape[0]), state.tables.n_radial
    width = int(state.coefficients[0].shape[2])
    square = xp.take(directions, state.arrays.unpack, axis=1) * state.arrays.unpack_factors
    square = xp.reshape(square, (number, state.tables.degrees, width, width))
    result = []
    for slot in range(len(state.species)):
        rows = square[:, :, slot * n_radial : (slot + 1) * n_radial, :]
        result.append(xp.permute_dims(xp.reshape(rows, (number, -1)), (1, 0)))
    return result


@dataclass(frozen=True, eq=False)
class _Pieces:
    """Pair gradients of one block of directions, chunk by chunk.

    Attributes
    ----------
    state : ArraySOAPState
    centres, index : (n,) int arrays
        The same numbers on the host and on the device.
    matrices : list of (K, M) arrays
        Directions, for each species of the neighbour.
    scaled, projections : (n, M) arrays
        Coefficients over norms, and p_i · d_m.
    """

    state: ArraySOAPState
    centres: IntArray
    index: Array
    matrices: list[Array]
    scaled: Array
    projections: Array

    @property
    def number(self) -> int:
        """Number of directions M."""
        return int(self.matrices[0].shape[1])

    def __iter__(self) -> Iterator[tuple[Array, Array, Array]]:
        """Places of centres in ``centres`` (p,), pairs (p,), and ∂f_im/∂r_ij as (p, 3 M)."""
        state, number = self.state, self.number
        xp = namespace(state.values)
        inner = int(self.matrices[0].shape[0])
        n_species = len(state.species)
        extra = 6 * inner + 12 * number
        for part in chunks(self.centres, state.pairs.offsets, n_species, state.tables, state.memory, extra):
            chosen = self.index[part]
            for slot, within, pairs in _members(state, self.centres[part], chosen):
                owner = within + part.start
                products = _products(state, pairs)
                value = xp.reshape(xp.reshape(products, (-1, inner)) @ self.matrices[slot], (-1, 3, number))
                along = xp.take(state.along, pairs, axis=0)[:, :, None]
                norm_part = along * xp.take(self.projections, owner, axis=0)[:, None, :]
                value = (value - norm_part) * xp.take(self.scaled, owner, axis=0)[:, None, :]
                yield owner, pairs, xp.reshape(value, (-1, 3 * number))


def _members(state: ArraySOAPState, centres: IntArray, own: Array) -> Iterator[tuple[int, Array, Array]]:
    """Pairs of centres by element of the neighbour: its index, the places of the centres (p,), and the pairs (p,).

    ``centres`` and ``own`` are the same numbers on the host and on the device.
    """
    xp = namespace(own)
    n_species, offsets = len(state.species), state.pairs.offsets
    for slot in range(n_species):
        number = int((offsets[centres * n_species + slot + 1] - offsets[centres * n_species + slot]).sum())
        if number == 0:
            continue
        begin = xp.take(state.pairs.start, own * n_species + slot)
        count = xp.take(state.pairs.start, own * n_species + (slot + 1)) - begin
        yield slot, *members(begin, count, number)


@dataclass(frozen=True, eq=False)
class PairFunctions:
    """Functions of pair vectors that derivatives of rows are made of; lists run over l.

    Attributes
    ----------
    angular : list of (p, 4, 2l + 1) arrays
        R_lm and its gradient.
    along, radial : list of (p, n) arrays
        What multiplies r_α R_lm and ∂_α R_lm.
    """

    angular: list[Array]
    along: list[Array]
    radial: list[Array]

    @classmethod
    def build(cls, vectors: Array, switch: Array, slope: Array, state: ArraySOAPState) -> PairFunctions:
        """From vectors (3, p), f (p,) and f'/r (p,)."""
        xp = namespace(vectors)
        r2 = xp.sum(vectors**2, axis=0)[:, None]
        harmonics = solid_harmonics(vectors, state.tables)
        angular, along, radial = [], [], []
        for degree, harmonic in enumerate(harmonics):
            a, weights = state.arrays.exponents[degree].T, state.arrays.weights[degree].T
            gaussians = xp.exp(a * r2)
            plain = gaussians @ weights
            along.append((gaussians * (2.0 * a)) @ weights * switch[:, None] + plain * slope[:, None])
            radial.append(plain * switch[:, None])
            lifted = zeros((3, 1, int(r2.shape[0])), r2)
            if degree > 0:
                lifted = state.arrays.gradients[degree] @ harmonics[degree - 1]
            rows = xp.permute_dims(xp.concat([harmonic[None, ...], lifted], axis=0), (2, 0, 1))
            # in the order in which pairs are taken
            angular.append(xp.reshape(xp.reshape(rows, (-1,)), rows.shape))
        return cls(angular, along, radial)

    def take(self, pairs: Array) -> PairFunctions:
        """Those of some of the pairs."""
        xp = namespace(pairs)
        lists = (self.angular, self.along, self.radial)
        return PairFunctions(*([xp.take(own, pairs, axis=0) for own in values] for values in lists))


def _functions(state: ArraySOAPState, pairs: Array) -> PairFunctions:
    """Functions of some pairs; those of all pairs are kept where they are small."""
    xp = namespace(pairs)
    given = state.pairs.vectors, state.pairs.switch[0, :], state.pairs.switch[1, :]
    each = 8 * (4 * state.tables.degrees**2 + 2 * state.tables.degrees * state.tables.n_radial)
    if each * len(state.pairs) > state.memory // _KEPT_SHARE:
        vectors, switch, slope = (xp.take(own, pairs, axis=-1) for own in given)
        return PairFunctions.build(vectors, switch, slope, state)
    if "pairs" not in state.kept:
        state.kept["pairs"] = PairFunctions.build(*given, state)
    known: PairFunctions = state.kept["pairs"]
    return known.take(pairs)


_KEPT_SHARE = 8
"""One such part of the memory for temporary arrays may hold functions of all pairs."""


def _products(state: ArraySOAPState, pairs: Array) -> Array:
    """H of pairs, (p, 3, K)."""
    xp = namespace(pairs)
    functions = _functions(state, pairs)
    centres = xp.take(state.pairs.i, pairs)
    vectors = xp.take(state.pairs.vectors, pairs, axis=1).T[:, :, None]
    parts = []
    for degree, angular in enumerate(functions.angular):
        sums = angular @ xp.take(state.coefficients[degree], centres, axis=0)  # (p, 4, S n)
        along = functions.along[degree][:, None, :, None] * (vectors * sums[:, :1, :])[:, :, None, :]
        lifted = functions.radial[degree][:, None, :, None] * sums[:, 1:, None, :]
        parts.append(xp.reshape(along + lifted, (int(pairs.shape[0]), 3, -1)))
    return xp.concat(parts, axis=2)


__all__ = ["feature_gradients", "gradients_by_centre"]
