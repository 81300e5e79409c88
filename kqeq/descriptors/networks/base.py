"""What a network has to be for its features to serve as a descriptor.

A network sees a structure as a graph: atoms, and the vectors to their neighbours within its cutoff.  Messages between
atoms carry information farther than the cutoff, along chains of neighbours; nothing outside the network has to know how
far, because all derivatives are taken with respect to the vectors of the graph.  Positions and strain follow from

    ∂E/∂r_k = Σ_pairs ∂E/∂r_ij (δ_jk − δ_ik),     ∂E/∂ε = Σ_pairs r_ij ⊗ ∂E/∂r_ij

for open structures and for cells of any shape and size, where an atom may be its own neighbour.

Dimensions: N atoms, P pairs, F features, B derivatives at once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np

from kqeq.errors import InputError
from kqeq.frames.neighbours import Pairs, find_pairs
from kqeq.frames.structures import Structure
from kqeq.typing import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class Graph:
    """A structure as networks see it.

    Attributes
    ----------
    numbers : (N,) array
        Atomic numbers.
    centres, neighbours : (P,) arrays
        Atoms i and j of each pair.  Every pair is there in both directions: the second half of the list holds the pairs
        of the first half in the same order, turned round.
    vectors : (P, 3) array
        r_ij = r_j − r_i + lattice vectors, Å; all at most as long as the cutoff of the network.
    total_charge : float
        e; 0 for networks that are not told.
    unpaired : float
        Number of unpaired electrons, likewise.
    """

    numbers: IntArray
    centres: IntArray
    neighbours: IntArray
    vectors: FloatArray
    total_charge: float = 0.0
    unpaired: float = 0.0

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def key(self) -> bytes:
        """A hash of all that the features depend on."""
        found = hashlib.sha256(repr((len(self), self.total_charge, self.unpaired)).encode())
        for part in (self.numbers, self.centres, self.neighbours, self.vectors):
            found.update(np.ascontiguousarray(part).data)
        return found.digest()

    @classmethod
    def of(
        cls, structure: Structure, cutoff: float, *, pairs: Pairs | None = None, charged: bool = False
    ) -> Graph:
        """The graph of a structure.

        Parameters
        ----------
        structure : Structure
        cutoff : float
            Å.
        pairs : Pairs, optional
            A full or a half neighbour list that reaches at least as far.
        charged : bool
            Whether the network is told the total charge and the number of unpaired electrons.

        Raises
        ------
        InputError
            If ``pairs`` reaches less far than the cutoff, or the cell is singular.
        """
        if pairs is None:
            pairs = find_pairs(structure, cutoff, full=False)
        if pairs.cutoff < cutoff:
            raise InputError(f"the neighbour list reaches {pairs.cutoff:g} Å, the network needs {cutoff:g} Å")
        i, j, vectors = pairs.indices[:, 0], pairs.indices[:, 1], pairs.vectors
        kept = np.einsum("pa,pa->p", vectors, vectors) <= cutoff**2
        if pairs.full:
            x, y, z = vectors.T
            # of an atom's own images the one in the upper half space
            upper = (z > 0) | ((z == 0) & ((y > 0) | ((y == 0) & (x > 0))))
            kept &= (i < j) | ((i == j) & upper)
        i, j, vectors = i[kept].astype(np.int64), j[kept].astype(np.int64), vectors[kept]
        unpaired = 0.0 if structure.multiplicity is None else structure.multiplicity - 1.0
        return cls(
            np.asarray(structure.numbers, dtype=np.int64),
            np.concatenate([i, j]),
            np.concatenate([j, i]),
            np.concatenate([vectors, -vectors]),
            structure.total_charge if charged else 0.0,
            unpaired if charged else 0.0,
        )

    def to_positions(self, gradients: FloatArray) -> FloatArray:
        """From derivatives with respect to the vectors, (B, P, 3), to those with respect to positions, (B, N, 3)."""
        blocks, n = len(gradients), len(self)
        offsets = n * np.arange(blocks)[:, None]
        result = np.empty((blocks, n, 3))
        for a in range(3):
            weights = gradients[:, :, a].ravel()
            size = blocks * n
            own = np.bincount((offsets + self.neighbours).ravel(), weights, size)
            own -= np.bincount((offsets + self.centres).ravel(), weights, size)
            result[:, :, a] = own.reshape(blocks, n)
        return result

    def to_strain(self, gradients: FloatArray) -> FloatArray:
        """From derivatives with respect to the vectors, (B, P, 3), to strain derivatives, (B, 3, 3)."""
        return np.asarray(np.einsum("pa,spb->sab", self.vectors, gradients, optimize=True))

    def tangents(self, first: int, last: int) -> FloatArray:
        """How the vectors change, (B, P, 3), with the coordinates ``first`` to ``last`` − 1 of 3N + 9.

        Coordinate 3k + a is r_ka; the last nine are ε_ab, in rows.
        """
        result = np.zeros((last - first, len(self.vectors), 3))
        n = len(self)
        for t in range(first, last):
            own = result[t - first]
            if t < 3 * n:
                k, a = divmod(t, 3)
                own[:, a] = (self.neighbours == k).astype(float) - (self.centres == k)
            else:
                a, b = divmod(t - 3 * n, 3)
                own[:, b] = self.vectors[:, a]
        return result


class Tape(Protocol):
    """One evaluation of a network, ready for derivatives."""

    @property
    def values(self) -> FloatArray:
        """Features h as the network gives them, (N, F)."""

    def pull(self, gradients: FloatArray) -> FloatArray:
        """Vector–Jacobian products: Σ_if G_bif ∂h_if/∂r_ij for G of shape (B, N, F); (B, P, 3)."""

    def push(self, tangents: FloatArray) -> FloatArray:
        """Jacobian–vector products: Σ_p ∂h_if/∂r_p · t_bp for t of shape (B, P, 3); (B, N, F)."""


@runtime_checkable
class Network(Protocol):
    """Features of atoms that somebody has learned.  Picklable, and the same answer for the same graph.

    Features have to be invariant under rotation, and equivariant under exchange of atoms; derivatives have to be those of
    the values.
    """

    @property
    def name(self) -> str:
        """What settings and model files call it, for example ``"so3lr"`` or ``"mace:water.model"``."""

    @property
    def digest(self) -> str:
        """SHA-256 of its weights, hexadecimal."""

    @property
    def cutoff(self) -> float:
        """How far an atom sees its neighbours directly, Å."""

    @property
    def size(self) -> int:
        """Number of features F."""

    @property
    def elements(self) -> frozenset[int]:
        """Atomic numbers that it knows."""

    @property
    def knows_charge(self) -> bool:
        """Whether it can be told a total charge."""

    def evaluate(self, graph: Graph) -> FloatArray:
        """Features without a thought of derivatives, (N, F)."""

    def record(self, graph: Graph) -> Tape:
        """Features with derivatives."""


__all__ = ["Graph", "Network", "Tape"]
