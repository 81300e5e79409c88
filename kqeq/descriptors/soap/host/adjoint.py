"""SOAP rows of one structure and their derivatives: the hot path, with compiled kernels.

Dimensions: N atoms, P pairs, S species, n radial functions, L = (l_max + 1)² harmonics, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from types import ModuleType

import numpy as np

from kqeq.backend import compiled, threads
from kqeq.descriptors.base import PositionGradient, SiteJacobian
from kqeq.descriptors.soap.basis import (
    LANES,
    Exponentials,
    Harmonics,
    RadialBasis,
    exponentials,
    feature_count,
    harmonics,
)
from kqeq.descriptors.soap.weighting import Weighting
from kqeq.errors import InputError
from kqeq.frames.neighbours import Pairs
from kqeq.frames.structures import Structure
from kqeq.typing import FloatArray, IntArray

SMALLEST_THREADED = 2000
"""Pairs below which threads cost more than they gain."""

_PARTS = 8
"""Parts in which larger lists of pairs are sorted, and their gradients collected."""

CENTRE_WORK = 20
"""Work of the power spectrum of a centre, in units of a pair, for balancing threads."""


@cache
def kernels() -> tuple[ModuleType, ModuleType]:
    """The compiled kernels of centres and of pairs.

    Their first compilation takes seconds, is cached on disk and announced.
    """
    return compiled.load("kqeq.descriptors.soap.host.kernels"), compiled.load(
        "kqeq.descriptors.soap.host.pair_kernels"
    )


@dataclass(frozen=True, eq=False)
class Tables:
    """Structure-independent input of the kernels.

    Attributes
    ----------
    radial : RadialBasis
    angular : Harmonics
    exponents : (l_max + 1, n4) array
        a[l, k] padded with zeros to a multiple of ``LANES``.
    exponentials : Exponentials
        Tables for the radial functions.
    weights_by_n, weights_by_k : ((l_max + 1) n n4,) arrays
        W[l, n, k] as ``[l, k, n]`` and as it is, the last index padded with zeros.
    inner, cutoff : float
        Neighbours fade out between these distances (sharply if they are equal), Å.
    weighting : Weighting, optional
        Weight of neighbours by distance.
    """

    radial: RadialBasis
    angular: Harmonics
    exponents: FloatArray
    exponentials: Exponentials
    weights_by_n: FloatArray
    weights_by_k: FloatArray
    inner: float
    cutoff: float
    weighting: Weighting | None = None

    @property
    def centre(self) -> float:
        """Weight of the centre itself."""
        return 1.0 if self.weighting is None else self.weighting.centre

    @property
    def n_radial(self) -> int:
        """Number of radial functions n."""
        return int(self.radial.exponents.shape[1])

    @property
    def degrees(self) -> int:
        """l_max + 1."""
        return int(self.radial.exponents.shape[0])

    def working_memory(self, n_species: int, n_features: int) -> FloatArray:
        """An array for the kernels of centres to work in."""
        size = kernels()[0].memory_size(
            self.degrees, self.n_radial, n_species, n_features, len(self.exponentials.rates)
        )
        return np.empty(size)

    @cached_property
    def radial_arguments(self) -> tuple[int, int, float, FloatArray, FloatArray, FloatArray]:
        """What the kernels need for radial functions."""
        own = self.exponentials
        return self.degrees, self.n_radial, own.step, own.rates, own.coarse, own.fine

    @cached_property
    def angular_arguments(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """What they need for power spectrum and harmonics."""
        return self.radial.prefactors, self.angular.plain_recursion.ravel(), self.angular.scales


def make_tables(
    radial: RadialBasis, inner: float, cutoff: float, weighting: Weighting | None = None
) -> Tables:
    """Pad the radial basis for the kernels and add the harmonics."""
    degrees, n_radial = radial.exponents.shape
    padding = -n_radial % LANES
    tables = exponentials(radial.exponents, cutoff)
    by_k = np.pad(radial.weights, ((0, 0), (0, 0), (0, padding))).ravel()
    by_n = np.pad(radial.weights.swapaxes(1, 2), ((0, 0), (0, 0), (0, padding))).ravel()
    exponents = np.pad(radial.exponents, ((0, 0), (0, padding)))
    return Tables(radial, harmonics(degrees - 1), exponents, tables, by_n, by_k, inner, cutoff, weighting)


@dataclass(frozen=True, eq=False)
class SortedPairs:
    """Pairs within the cutoff, ordered by centre and by element of the neighbour.

    Attributes
    ----------
    start : (N S + 1,) int array
        First pair of each (centre, species index).
    indices : (2, P) int array
        Centre and neighbour.
    vectors : (3, P) array
        r_ij, Å.
    switch : (2, P) array
        f and f'/r of the factor on a neighbour: switching function times weight.
    """

    start: IntArray
    indices: IntArray
    vectors: FloatArray
    switch: FloatArray


@dataclass(frozen=True, eq=False)
class SOAPState:
    """Descriptor rows of one structure, with what their derivatives need.

    Attributes
    ----------
    values : (N, F) array
        Rows of norm one.
    species : tuple of int
        Atomic numbers that define the layout.
    norms : (N,) array
        Norms before normalisation.
    coefficients : (N, L, S n) array
        Expansion coefficients c.
    pairs : SortedPairs
    tables : Tables
    """

    values: FloatArray
    species: tuple[int, ...]
    norms: FloatArray = field(repr=False)
    coefficients: FloatArray = field(repr=False)
    pairs: SortedPairs = field(repr=False)
    tables: Tables = field(repr=False)

    def __len__(self) -> int:
        return len(self.values)

    def _check(self, gradient: FloatArray) -> FloatArray:
        if gradient.shape != self.values.shape:
            raise InputError(
                f"the gradient has shape {gradient.shape}, expected {self.values.shape}: one row ∂f_i/∂p_i "
                "for each atom in the layout of this state"
            )
        return np.ascontiguousarray(gradient, dtype=np.float64)

    def pair_gradients(self, gradient: FloatArray, *, normalised: bool = True) -> FloatArray:
        """∂f_i/∂r_ij of every pair, shape (3, P), given the rows G_i = ∂f_i/∂p_i, shape (N, F).

        With ``normalised=False`` G refers to the rows before their normalisation.
        """
        matrix = self._check(gradient)
        tables, pairs = self.tables, self.pairs
        out = np.empty((3, pairs.indices.shape[1]))

        def task(first: int, last: int) -> None:
            kernels()[0].pair_gradients(
                first,
                last,
                pairs.start,
                pairs.vectors,
                pairs.switch,
                *tables.radial_arguments,
                tables.weights_by_k,
                *tables.angular_arguments,
                self.coefficients.reshape(-1),
                self.values,
                self.norms,
                matrix,
                normalised,
                out,
                tables.working_memory(len(self.species), matrix.shape[1]),
            )

        _over_centres(task, pairs, len(self))
        return out

    @cached_property
    def norm_gradients(self) -> FloatArray:
        """∂|p_i|/∂r_ij of every pair (norms before normalisation), shape (3, P)."""
        return self.pair_gradients(self.values, normalised=False)

    def adjoint(self, gradient: FloatArray) -> PositionGradient:
        """Pull G = ∂E/∂p, shape (N, F), back to positions and strain.

        Raises
        ------
        InputError
            If ``gradient`` does not have the shape of ``values``.
        """
        pair = self.pair_gradients(gradient)
        edges = _parts(pair.shape[1])
        positions, strain = np.zeros((len(edges) - 1, len(self), 3)), np.zeros((len(edges) - 1, 3, 3))

        def task(first: int, last: int) -> None:
            for part in range(first, last):
                kernels()[1].collect(
                    edges[part],
                    edges[part + 1],
                    self.pairs.indices,
                    self.pairs.vectors,
                    pair,
                    positions[part],
                    strain[part],
                )

        threads.run(task, edges, SMALLEST_THREADED)
        if len(edges) == 2:
            return PositionGradient(positions[0], strain[0])
        return PositionGradient(positions.sum(axis=0), strain.sum(axis=0))

    def site_jacobian(self, gradient: FloatArray) -> SiteJacobian:
        """Pull every row G_i = ∂f_i/∂p_i of an (N, F) array back separately.

        Raises
        ------
        InputError
            If ``gradient`` does not have the shape of ``values``.
        """
        from scipy import sparse

        pair = self.pair_gradients(gradient)
        n = len(self)
        i, j = self.pairs.indices
        own = np.arange(n)
        axis = np.arange(3)[:, None]
        at_centre = np.stack([-np.bincount(i, pair[a], n) for a in range(3)])
        rows = np.concatenate([(3 * j + axis).ravel(), (3 * own + axis).ravel()])
        columns = np.concatenate([np.tile(i, 3), np.tile(own, 3)])
        data = np.concatenate([pair.ravel(), at_centre.ravel()])
        # images of one neighbour, and an atom's own images, are summed by the conversion
        positions = sparse.csr_array((data, (rows, columns)), shape=(3 * n, n))
        strain = np.empty((9, n))
        for a in range(3):
            for b in range(3):
                strain[3 * a + b] = np.bincount(i, self.pairs.vectors[a] * pair[b], n)
        return SiteJacobian(positions, strain)


def _parts(number: int) -> IntArray:
    """Bounds of the parts in which pairs are handled: a matter of their number only, as sums depend on it."""
    if number < SMALLEST_THREADED:
        return np.array([0, number])
    return np.arange(_PARTS + 1) * number // _PARTS


def work_of(start: IntArray, n_atoms: int) -> IntArray:
    """Cumulative work before each centre, in units of a pair."""
    n_species = (len(start) - 1) // n_atoms
    return np.asarray(start[::n_species] + CENTRE_WORK * np.arange(n_atoms + 1))


def _over_centres(task: Callable[[int, int], None], pairs: SortedPairs, n_atoms: int) -> None:
    """Call ``task(first, last)`` over all centres, in threads if there is enough to do."""
    if pairs.indices.shape[1] + CENTRE_WORK * n_atoms < SMALLEST_THREADED:
        task(0, n_atoms)
    else:
        threads.run(task, work_of(pairs.start, n_atoms), SMALLEST_THREADED)


def sort_pairs(pairs: Pairs, slots: IntArray, n_species: int, tables: Tables) -> SortedPairs:
    """Keep the pairs within the cutoff of ``tables``, ordered by centre and element of the neighbour.

    Parameters
    ----------
    pairs : Pairs
    slots : (N,) int array
        Species index of each atom.
    """
    # counted and placed in parts, each by one thread; the order is that of the list whatever their number
    edges = _parts(len(pairs.indices))
    parts, groups = len(edges) - 1, len(slots) * n_species
    given = pairs.indices, pairs.vectors, pairs.full, slots, n_species
    counts = np.empty((parts, groups), dtype=np.int64)
    start = np.zeros(groups + 1, dtype=np.int64)

    def count(first: int, last: int) -> None:
        for part in range(first, last):
            kernels()[1].count_pairs(edges[part], edges[part + 1], *given, tables.cutoff, counts[part])

    threads.run(count, edges, SMALLEST_THREADED)
    if parts == 1:
        counts[0].cumsum(out=start[1:])
        places = start[None, :-1].copy()
    else:
        counts.sum(axis=0).cumsum(out=start[1:])
        places = start[:-1] + counts.cumsum(axis=0) - counts
    kept = int(start[-1])
    indices = np.empty((2, kept), dtype=np.int64)
    vectors, switch = np.empty((3, kept)), np.empty((2, kept))

    def place(first: int, last: int) -> None:
        for part in range(first, last):
            kernels()[1].place_pairs(
                edges[part],
                edges[part + 1],
                *given,
                tables.inner,
                tables.cutoff,
                places[part],
                indices,
                vectors,
                switch,
            )

    threads.run(place, edges, SMALLEST_THREADED)
    if tables.weighting is not None:
        distances = np.sqrt(np.einsum("ap,ap->p", vectors, vectors))
        weight, slope = tables.weighting(distances)
        switch = np.stack([switch[0] * weight, switch[1] * weight + switch[0] * slope / distances])
    return SortedPairs(start, indices, vectors, switch)


def evaluate(structure: Structure, pairs: Pairs, tables: Tables) -> SOAPState:
    """Descriptors of one structure from a list of pairs that reaches at least ``tables.cutoff``."""
    compiled, _ = kernels()
    composition = structure.composition
    species, slots = composition.species, composition.slots
    n_atoms, n_species = len(slots), len(species)
    n_radial, degrees = tables.n_radial, tables.degrees

    listed = sort_pairs(pairs, slots, n_species, tables)
    coefficients = np.empty((n_atoms, degrees * degrees, n_species * n_radial))
    values = np.empty((n_atoms, feature_count(n_species, n_radial, degrees - 1)))
    norms = np.empty(n_atoms)

    def task(first: int, last: int) -> None:
        compiled.expand(
            first,
            last,
            listed.start,
            listed.vectors,
            listed.switch,
            slots,
            tables.centre,
            *tables.radial_arguments,
            tables.weights_by_n,
            *tables.angular_arguments,
            coefficients,
            values,
            norms,
            tables.working_memory(n_species, values.shape[1]),
        )

    _over_centres(task, listed, n_atoms)
    return SOAPState(values, species, norms, coefficients, listed, tables)


__all__ = ["SOAPState", "SortedPairs", "Tables", "evaluate", "make_tables"]
