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
from kqeq.descriptors.soap.arrays.blocks import Block, blocks, chunks, solid_harmonics
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
            coefficients = [xp.take(c, chosen, axis=0) for c in state.coefficients]
            for block in blocks(self.centres[part], chosen, state.pairs, n_species):
                owner, places, pairs = block.members()
                owner = owner + part.start
                products = xp.take(_products(state, block, coefficients), places, axis=0)
                value = xp.reshape(
                    xp.reshape(products, (-1, inner)) @ self.matrices[block.slot], (-1, 3, number)
                )
                along = xp.take(state.along, pairs, axis=0)[:, :, None]
                norm_part = along * xp.take(self.projections, owner, axis=0)[:, None, :]
                value = (value - norm_part) * xp.take(self.scaled, owner, axis=0)[:, None, :]
                yield owner, pairs, xp.reshape(value, (-1, 3 * number))


def _products(state: ArraySOAPState, block: Block, coefficients: list[Array]) -> Array:
    """H of every place of a block, shape (c J, 3, K)."""
    xp = namespace(block.vectors)
    n_radial = state.tables.n_radial
    r2 = xp.sum(block.vectors**2, axis=0)[:, None, :]
    angular = solid_harmonics(block.vectors, state.tables)
    parts = []
    for degree, harmonic in enumerate(angular):
        a = state.arrays.exponents[degree]
        radial = xp.exp(a * r2)
        weights = state.arrays.weights[degree]
        # (c, J, n, 1): W e, and what multiplies r_α
        u = weights @ radial
        v = (weights @ (2.0 * a * radial)) * block.switch[:, None, :] + u * block.slope[:, None, :]
        u = xp.matrix_transpose(u * block.switch[:, None, :])[..., None]
        v = xp.matrix_transpose(v)[..., None]
        own = xp.matrix_transpose(harmonic) @ coefficients[degree]  # (c, J, S n)
        components = []
        for alpha in range(3):
            term = v * (block.vectors[alpha, ...][..., None] * own)[:, :, None, :]
            if degree > 0:
                slope = state.arrays.gradients[degree][alpha, ...] @ angular[degree - 1]
                term = term + u * (xp.matrix_transpose(slope) @ coefficients[degree])[:, :, None, :]
            components.append(term)
        stacked = xp.stack(components, axis=2)  # (c, J, 3, n, S n)
        parts.append(xp.reshape(stacked, (-1, 3, n_radial * int(own.shape[2]))))
    return xp.concat(parts, axis=2)


__all__ = ["feature_gradients", "gradients_by_centre"]
