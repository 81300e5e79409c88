"""Features of a network as a descriptor: one normalised row per atom, and its derivatives.

    x_i = (h_i − m_Z) / s_Z,     y_i = (x_i, c) / √(|x_i|² + c²),     p_i = (y_i, 1) / √2

with the mean m_Z of the features of an element over the training frames, and s_Z² the mean of |h − m_Z|².  Networks
put most of what they say into the element: without the shift the rows of all atoms of an element nearly coincide, and
no power of their product tells them apart.  The constant c keeps the length of x, which the normalisation would drop.
The last column makes products of rows ½(1 + y·y'), from 0 to 1 like those of power spectra; a whole power of them is a
sum of all powers of y·y' up to it.  Fractional powers of them are no covariances.

Dimensions: N atoms, F features of the network, F + 2 of a row, M directions, T = 3N + 9 coordinates.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from scipy import sparse

from kqeq.backend import asarray_like, is_numpy, to_numpy
from kqeq.descriptors.base import FeatureGradients, PositionGradient, SiteJacobian
from kqeq.descriptors.networks.base import Graph, Network
from kqeq.descriptors.networks.memory import recorded, values_of
from kqeq.errors import InputError, UnsupportedError
from kqeq.frames.neighbours import Pairs
from kqeq.frames.structures import Structure
from kqeq.typing import Array, FloatArray, IntArray

JACOBIAN_BYTES = 100_000_000
"""Most that the derivatives of all features of a structure may take to be kept."""

BLOCK_BYTES = 32_000_000
"""Tangents that are pushed through a network at once may take this much, and so may what comes out."""

CONSTANT = 2.0
"""c, in units of the usual length of x."""

SMALLEST = 1e-6
"""Spreads that are less than this part of the mean are rounding."""

EXTRA = 2
"""Columns of a row beside the features."""


@dataclass(frozen=True, eq=False)
class Scaling:
    """Mean and spread of the features of each element.

    Attributes
    ----------
    mean : dict of int to (F,) array
        m.
    spread : dict of int to float
        s, the root-mean-square distance from the mean.
    """

    mean: Mapping[int, FloatArray]
    spread: Mapping[int, float]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all numbers."""
        found = hashlib.sha256()
        for z in sorted(self.mean):
            found.update(f"{z} {self.spread[z]!r}".encode() + self.mean[z].tobytes())
        return found.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scaling) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Scaling({self.digest[:16]})"

    @classmethod
    def of(cls, rows: Mapping[int, FloatArray]) -> Scaling:
        """From features (n, F) of the atoms of each element."""
        mean, spread = {}, {}
        for z, own in rows.items():
            mean[z] = own.mean(axis=0)
            width = float(np.sqrt(np.mean(np.sum((own - mean[z]) ** 2, axis=1))))
            # atoms that are all alike say nothing about spreads
            alike = width <= SMALLEST * max(1.0, float(np.linalg.norm(mean[z])))
            spread[z] = math.sqrt(own.shape[1]) if alike else width
        return cls(mean, spread)

    def at(self, numbers: IntArray) -> tuple[FloatArray, FloatArray]:
        """Mean (N, F) and spread (N, 1) for each atom.

        Raises
        ------
        InputError
            For an element that no training frame had.
        """
        missing = sorted({int(z) for z in numbers} - set(self.mean))
        if missing:
            raise InputError(
                f"the features of the network were scaled on {_names(self.mean)}, not on {_names(missing)}"
            )
        spread = np.array([[self.spread[int(z)]] for z in numbers])
        return np.array([self.mean[int(z)] for z in numbers]), spread


@dataclass(eq=False)
class NetworkState:
    """Features of one structure, and what their derivatives need.

    Attributes
    ----------
    descriptor : NetworkFeatures
    graph : Graph
    species : tuple of int
        Elements present.
    values : (N, F + 2) array
        Normalised rows.
    like : array
        Of the library, and on the device, where rows and gradients are.
    """

    descriptor: NetworkFeatures
    graph: Graph
    species: tuple[int, ...]
    like: Array
    _values: FloatArray = field(init=False)
    _unit: FloatArray = field(init=False)
    _factor: FloatArray = field(init=False)
    _asked: int = 0
    _jacobian: FloatArray | None = None

    def __post_init__(self) -> None:
        network = self.descriptor.network
        raw = values_of(network, self.graph)
        scaling = self.descriptor.scaling
        mean, spread = (0.0, math.sqrt(network.size)) if scaling is None else scaling.at(self.graph.numbers)
        rows = np.hstack([(raw - mean) / spread, np.full((len(raw), 1), CONSTANT)])
        length = np.linalg.norm(rows, axis=1)[:, None]
        self._unit = rows / length
        self._values = np.hstack([self._unit, np.ones((len(raw), 1))]) / math.sqrt(2.0)
        self._factor = np.broadcast_to(1.0 / (math.sqrt(2.0) * spread * length), (len(raw), 1))

    @property
    def values(self) -> Array:
        """Normalised rows, (N, F + 2)."""
        return asarray_like(self._values, self.like)

    def _to_raw(self, gradient: FloatArray) -> FloatArray:
        """∂E/∂h (N, F) from ∂E/∂p (N, F + 2)."""
        own = gradient[:, :-1]
        along = np.sum(own * self._unit, axis=1, keepdims=True)
        return np.asarray((own - along * self._unit)[:, :-1] * self._factor)

    def _from_raw(self, change: FloatArray) -> FloatArray:
        """The change of p (T, N, F + 2) from that of h (T, N, F)."""
        scaled = change * self._factor
        along = np.sum(scaled * self._unit[:, :-1], axis=2, keepdims=True)
        result = np.zeros((*change.shape[:2], self._values.shape[1]))
        result[:, :, :-1] = -along * self._unit
        result[:, :, :-2] += scaled
        return result

    def adjoint(self, gradient: Array) -> PositionGradient:
        """Pull ∂E/∂p, shape (N, F + 2), back to positions and strain: one backward pass."""
        raw = self._to_raw(to_numpy(gradient))
        pulled = recorded(self.descriptor.network, self.graph).pull(raw[None])
        return PositionGradient(
            asarray_like(self.graph.to_positions(pulled)[0], self.like),
            asarray_like(self.graph.to_strain(pulled)[0], self.like),
        )

    def site_jacobian(self, gradient: Array) -> SiteJacobian:
        """Pull every row G_i = ∂f_i/∂p_i of an (N, F + 2) array back separately.

        Asked once, by N backward passes; asked again, as in the iterations of a fit, from the derivatives of all
        features, which are then kept.
        """
        rows, n = to_numpy(gradient), len(self.graph)
        self._asked += 1
        if self._jacobian is not None or (self._asked > 1 and self._keeps):
            dense = np.einsum("tif,if->ti", self._all(), rows, optimize=True)
            positions, strain = dense[: 3 * n], dense[3 * n :]
        else:
            raw = self._to_raw(rows)
            tape = recorded(self.descriptor.network, self.graph)
            positions, strain = np.empty((3 * n, n)), np.empty((9, n))
            step = self._step(max(raw.size, self.graph.vectors.size))
            for start in range(0, n, step):
                own = np.arange(start, min(start + step, n))
                blocks = np.zeros((len(own), *raw.shape))
                blocks[own - start, own] = raw[own]
                pulled = tape.pull(blocks)
                positions[:, own] = self.graph.to_positions(pulled).reshape(len(own), -1).T
                strain[:, own] = self.graph.to_strain(pulled).reshape(len(own), 9).T
        if is_numpy(self.like):
            return SiteJacobian(sparse.csr_array(positions), strain)
        return SiteJacobian(asarray_like(positions, self.like), asarray_like(strain, self.like))

    def feature_gradients(
        self, centres: IntArray, directions: Array, coefficients: Array
    ) -> FeatureGradients:
        """See :meth:`NetworkFeatures.feature_gradients`."""
        d, c, n = to_numpy(directions), to_numpy(coefficients), len(self.graph)
        result = np.empty((3 * n + 9, len(d)))
        for start, block in self._blocks():
            own = block[:, centres]
            step = self._step(len(centres) * len(d))
            for first in range(0, len(own), step):
                part = own[first : first + step]
                result[start + first : start + first + len(part)] = np.einsum("tim,im->tm", part @ d.T, c)
        return FeatureGradients(
            asarray_like(result[: 3 * n], self.like), asarray_like(result[3 * n :], self.like)
        )

    @staticmethod
    def _step(numbers: int) -> int:
        """How many blocks of so many numbers are worked on at once."""
        return max(1, BLOCK_BYTES // (8 * max(1, numbers)))

    @property
    def _keeps(self) -> bool:
        """Whether the derivatives of all features are few enough to be kept."""
        return 8 * (3 * len(self.graph) + 9) * self._values.size <= JACOBIAN_BYTES

    def _all(self) -> FloatArray:
        """Derivatives of all features with respect to positions and strain, (T, N, F + 2)."""
        if self._jacobian is None:
            self._jacobian = np.concatenate([block for _, block in self._pushed()])
        return self._jacobian

    def _blocks(self) -> Iterable[tuple[int, FloatArray]]:
        """First coordinate, and ∂p by coordinates from there on."""
        return [(0, self._all())] if self._keeps else self._pushed()

    def _pushed(self) -> Iterable[tuple[int, FloatArray]]:
        tape = recorded(self.descriptor.network, self.graph)
        total = 3 * len(self.graph) + 9
        step = self._step(max(self._values.size, self.graph.vectors.size))
        for start in range(0, total, step):
            change = tape.push(self.graph.tangents(start, min(start + step, total)))
            yield start, self._from_raw(change)


@dataclass(frozen=True)
class NetworkFeatures:
    """Invariant features of a trained network as a descriptor (:class:`kqeq.descriptors.base.Descriptor`).

    Parameters
    ----------
    network : Network
    charged : bool
        Whether the network is told the total charge (and the multiplicity, where one is given) of the structure.
        Otherwise features are those of the neutral structure, functions of the geometry like any other descriptor.
    scaling : Scaling, optional
        Mean and spread of the features; ``scaled`` finds them.  Without, 0 and √F.

    Raises
    ------
    UnsupportedError
        If the network cannot be told a charge.
    """

    network: Network
    charged: bool = False
    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        if self.charged and not self.network.knows_charge:
            raise UnsupportedError(
                f"the network {self.network.name} knows nothing of total charges; leave charged=False"
            )

    def scaled(self, structures: Iterable[Structure]) -> NetworkFeatures:
        """The same with features scaled by what they are in some structures."""
        rows: dict[int, list[FloatArray]] = {}
        for structure in structures:
            values = values_of(self.network, self._graph(structure, None))
            for z in structure.species:
                rows.setdefault(z, []).append(values[structure.numbers == z])
        return NetworkFeatures(
            self.network, self.charged, Scaling.of({z: np.concatenate(own) for z, own in rows.items()})
        )

    @property
    def cutoff(self) -> float:
        """How far the neighbour list has to reach, Å.  Messages carry the influence of atoms farther than that."""
        return self.network.cutoff

    @property
    def whole_powers(self) -> bool:
        """Fractional powers are no covariances (see the module)."""
        return True

    @property
    def knows_charge(self) -> bool:
        """Whether the network is told the total charge."""
        return self.charged

    def block_slices(self, species: tuple[int, ...]) -> dict[tuple[int, int], slice]:
        """One block, the same for all elements; no atom has the atomic number 0 under which it stands."""
        return {(0, 0): slice(0, self.network.size + EXTRA)}

    def evaluate(
        self, structure: Structure, *, derivatives: bool = True, pairs: Pairs | None = None
    ) -> NetworkState:
        """Features of one structure.

        Parameters
        ----------
        structure : Structure
        derivatives : bool
            Whether the evaluation is recorded for derivatives; without, they take another evaluation.
        pairs : Pairs, optional
            Neighbours (a full or a half list) reaching at least ``cutoff``.

        Raises
        ------
        InputError
            If ``pairs`` reaches less far, the cell is singular, or the network does not know an element.
        """
        return self._state(structure, np.zeros(0), derivatives, pairs)

    def evaluate_arrays(
        self, structure: Structure, like: Array, *, pairs: Pairs | None = None
    ) -> NetworkState:
        """The same in the library, and on the device, of ``like``; the network itself works on the host."""
        return self._state(structure, like, True, pairs)

    def _state(
        self, structure: Structure, like: Array, derivatives: bool, pairs: Pairs | None
    ) -> NetworkState:
        graph = self._graph(structure, pairs)
        if derivatives:
            recorded(self.network, graph)
        return NetworkState(self, graph, structure.species, like)

    def _graph(self, structure: Structure, pairs: Pairs | None) -> Graph:
        unknown = sorted(set(structure.species) - self.network.elements)
        if unknown:
            raise InputError(
                f"the network {self.network.name} does not know {_names(unknown)}; "
                "use a network that was trained on them, or a SOAP kernel"
            )
        return Graph.of(structure, self.cutoff, pairs=pairs, charged=self.charged)

    def prepare_directions(self, species: tuple[int, ...], rows: FloatArray) -> FloatArray:
        """Nothing to prepare."""
        return rows

    def feature_gradients(
        self,
        state: Any,
        centres: IntArray,
        directions: Any,
        coefficients: Array,
        *,
        projections: Array | None = None,
    ) -> FeatureGradients:
        """Derivatives of f_m = Σ_i f_im with ∂f_im/∂p_i = C_im d_m, for all m at once.

        By Jacobian–vector products along the 3N + 9 coordinates: their number does not depend on that of the directions.
        The derivatives of all features are kept with the state where they are few (``JACOBIAN_BYTES``), so that other
        elements, and the iterations of a fit, find them.

        Parameters
        ----------
        state : NetworkState
        centres : (n,) array
        directions : (M, F + 2) array
        coefficients : (n, M) array
        projections : (n, M) array, optional
            Not needed here.

        Raises
        ------
        InputError
            If shapes do not agree.
        """
        shapes = (len(centres), int(directions.shape[0])), int(directions.shape[1])
        if tuple(coefficients.shape) != shapes[0] or shapes[1] != self.network.size + EXTRA:
            raise InputError(
                f"{len(centres)} centres, directions {tuple(directions.shape)} and coefficients "
                f"{tuple(coefficients.shape)} do not fit to {self.network.size + EXTRA} features"
            )
        found: FeatureGradients = state.feature_gradients(centres, directions, coefficients)
        return found


def _names(numbers: Iterable[int]) -> str:
    return ", ".join(chemical_symbols[z] for z in sorted(numbers))


__all__ = ["EXTRA", "NetworkFeatures", "NetworkState", "Scaling"]
