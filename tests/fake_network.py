"""A network in a few lines of NumPy: two layers of messages, so that atoms feel each other at twice its cutoff.

    a_i = E(Z_i) + Q c + Σ_j f(r_ij) W(Z_j),     m_i = tanh a_i,     b_i = Σ_j f(r_ij) m_j,     h_i = (m_i, b_i)

with f(r) = (1 − r²/R²)³.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kqeq.descriptors.networks import Graph

WIDTH = 5


@dataclass(frozen=True)
class FakeNetwork:
    """Implements :class:`kqeq.descriptors.networks.Network`."""

    seed: int = 0
    cutoff: float = 2.2
    knows_charge: bool = True
    name: str = "fake"
    elements: frozenset[int] = frozenset((1, 6, 7, 8, 11, 17))

    @property
    def digest(self):
        return f"{self.seed:064x}"

    @property
    def size(self):
        return 2 * WIDTH

    def evaluate(self, graph: Graph):
        return FakeTape(self, graph).values

    def record(self, graph: Graph):
        return FakeTape(self, graph)


@dataclass(frozen=True, eq=False)
class FakeTape:
    network: FakeNetwork
    graph: Graph

    @cached_property
    def tables(self):
        rng = np.random.default_rng(self.network.seed)
        return rng.normal(size=(2, 100, WIDTH)), rng.normal(size=WIDTH)

    @cached_property
    def radial(self):
        """f and f'/r for each pair."""
        square = np.sum(self.graph.vectors**2, axis=1) / self.network.cutoff**2
        return (1.0 - square) ** 3, -6.0 * (1.0 - square) ** 2 / self.network.cutoff**2

    def gather(self, rows):
        """Σ over the pairs of each centre; (..., P, K) to (..., N, K)."""
        result = np.zeros((*rows.shape[:-2], len(self.graph), rows.shape[-1]))
        np.add.at(result, (..., self.graph.centres, slice(None)), rows)
        return result

    @cached_property
    def hidden(self):
        (own, sent), charge = self.tables
        a = own[self.graph.numbers] + self.graph.total_charge * charge
        return np.tanh(
            a + self.gather(self.radial[0][:, None] * sent[self.graph.numbers[self.graph.neighbours]])
        )

    @cached_property
    def values(self):
        m = self.hidden
        return np.hstack([m, self.gather(self.radial[0][:, None] * m[self.graph.neighbours])])

    def push(self, tangents):
        (_, sent), _ = self.tables
        (f, slope), m, j = self.radial, self.hidden, self.graph.neighbours
        df = (slope * np.einsum("pa,bpa->bp", self.graph.vectors, tangents))[:, :, None]
        dm = (1.0 - m**2) * self.gather(df * sent[self.graph.numbers[j]])
        return np.concatenate([dm, self.gather(df * m[j] + f[:, None] * dm[:, j])], axis=2)

    def pull(self, gradients):
        (_, sent), _ = self.tables
        (f, slope), m, i, j = self.radial, self.hidden, self.graph.centres, self.graph.neighbours
        by_m, by_b = gradients[:, :, :WIDTH].copy(), gradients[:, :, WIDTH:]
        by_f = np.einsum("bpk,pk->bp", by_b[:, i], m[j])
        np.add.at(by_m, (slice(None), j), f[:, None] * by_b[:, i])
        by_f += np.einsum("bpk,pk->bp", ((1.0 - m**2) * by_m)[:, i], sent[self.graph.numbers[j]])
        return (by_f * slope)[:, :, None] * self.graph.vectors
