"""Kernel features of the energy that several problems of one fit share.

A search by left-out frames makes a problem for every choice of kernels and noises, on the same frames: features of a
kernel without its prior scale are the same in all of them, and most of what a closed-form problem costs.

Kept in this process alone: workers of a pool compute their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from kqeq.backend import nbytes
from kqeq.frames.structures import Structure
from kqeq.kernels.feature_map import FeatureMap, SummedFeatures

POOL_BUDGET = 1_000_000_000
"""Bytes that shared features may take, beside those that a problem keeps for itself."""


class FeaturePool:
    """Sums over the atoms of each frame, by kernel.

    Parameters
    ----------
    budget : int
        Bytes; what comes when it is spent is not kept.
    """

    def __init__(self, budget: int = POOL_BUDGET) -> None:
        self.budget = budget
        self._known: dict[tuple[FeatureMap, Structure], SummedFeatures] = {}

    def get(
        self, feature_map: FeatureMap, structure: Structure, *, gradient: bool, strain: bool
    ) -> SummedFeatures | None:
        """What is known, if it has the derivatives that are wanted; others are left away."""
        found = self._known.get((feature_map, structure))
        if found is None or (gradient and found.positions is None) or (strain and found.strain is None):
            return None
        return SummedFeatures(
            found.values, found.positions if gradient else None, found.strain if strain else None
        )

    def add(self, feature_map: FeatureMap, structure: Structure, features: SummedFeatures) -> None:
        """Keep features of a frame if there is room."""
        size = sum(nbytes(part) or 0 for part in (features.values, features.positions, features.strain))
        if size <= self.budget:
            self.budget -= size
            self._known[feature_map, structure] = features


_POOL: ContextVar[FeaturePool | None] = ContextVar("feature_pool", default=None)


@contextmanager
def sharing_features(budget: int = POOL_BUDGET) -> Iterator[FeaturePool]:
    """Problems inside share the features of their energies."""
    pool = FeaturePool(budget)
    token = _POOL.set(pool)
    try:
        yield pool
    finally:
        _POOL.reset(token)


def shared_pool() -> FeaturePool | None:
    """The one that problems share at present."""
    return _POOL.get()


__all__ = ["POOL_BUDGET", "FeaturePool", "shared_pool", "sharing_features"]
