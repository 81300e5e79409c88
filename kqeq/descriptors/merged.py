"""Environments whose neighbours are told apart by their period only: hydrogen, Li to Ne, Na to Ar, and so on.

A power spectrum has a block for every pair of elements, and those of different pairs have no part in common: a carbon
next to a nitrogen teaches nothing about one next to an oxygen.  Merged, the neighbours of a period share one density, so
that it does, and rows are shorter.  What an element is by itself is lost with it, so such a kernel belongs beside one
that tells elements apart, in a sum.  Centres are never merged: kernels are those of one element.

Dimensions: N atoms, F descriptor features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kqeq.descriptors.around import Around, AroundState
from kqeq.descriptors.base import DescriptorState
from kqeq.frames.neighbours import Pairs
from kqeq.frames.structures import Structure
from kqeq.typing import Array, FloatArray, IntArray

FIRST = np.array([1, 3, 11, 19, 37, 55, 87, 119])
"""Atomic numbers at which periods begin."""

ELEMENTS, PERIODS = "elements", "periods"

NEIGHBOURS = (ELEMENTS, PERIODS)
"""What neighbours may be told apart by."""


def first_of_period(numbers: IntArray) -> IntArray:
    """The first element of the period of each element, which stands for all of them."""
    return np.asarray(FIRST[np.searchsorted(FIRST, numbers, side="right") - 1], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class MergedState(AroundState):
    """Descriptor rows of a structure with the elements that it has, which its neighbours do not tell.

    Attributes
    ----------
    inner : DescriptorState
        Of the structure with merged elements.
    species : tuple of int
        Elements present.
    """

    species: tuple[int, ...]


@dataclass(frozen=True)
class Merged(Around):
    """A descriptor that sees the periods of neighbours in place of their elements.

    Attributes
    ----------
    inner : Descriptor
    """

    def block_slices(self, species: tuple[int, ...]) -> dict[tuple[int, int], slice]:
        """Where the block of each pair of periods, by their first elements, lies."""
        return self.inner.block_slices(_merged(species))

    def evaluate(
        self, structure: Structure, *, derivatives: bool = True, pairs: Pairs | None = None
    ) -> MergedState:
        """Rows of one structure."""
        inner = self.inner.evaluate(_relabelled(structure), derivatives=derivatives, pairs=pairs)
        return MergedState(inner, structure.species)

    def evaluate_arrays(
        self, structure: Structure, like: Array, *, pairs: Pairs | None = None
    ) -> MergedState:
        """The same in the library, and on the device, of ``like``."""
        inner: DescriptorState = self.inner.evaluate_arrays(_relabelled(structure), like, pairs=pairs)
        return MergedState(inner, structure.species)

    def prepare_directions(self, species: tuple[int, ...], rows: FloatArray) -> Any:
        """Directions in the layout of the periods of ``species``."""
        return self.inner.prepare_directions(_merged(species), rows)


def _merged(species: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted({int(z) for z in first_of_period(np.array(species))}))


def _relabelled(structure: Structure) -> Structure:
    return replace(structure, numbers=first_of_period(structure.numbers))


__all__ = ["ELEMENTS", "NEIGHBOURS", "PERIODS", "Merged", "MergedState", "first_of_period"]
