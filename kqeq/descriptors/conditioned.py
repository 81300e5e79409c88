"""Environments in a state: a descriptor together with what multiplies the kernel of each atom.

    k((p, s), (p', s')) = ψ(s) ψ(s') (p · p')^ζ,      ψ(s) = s or s²

with the spin or the charge s of the atom's fragment (:mod:`kqeq.frames.states`).  Representatives have ψ = 1, so
that a kernel
expansion of such environments is ψ(s_i) Σ_m k(p_i, p_m) c_m: nothing where the state is zero.  In a sum with a kernel
without condition, the latter is the closed shell, or the neutral fragment, and the former what the state changes.

Dimensions: N atoms, F descriptor features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kqeq.backend import asarray_like
from kqeq.descriptors.around import Around, AroundState
from kqeq.descriptors.base import Descriptor, DescriptorState
from kqeq.errors import InputError
from kqeq.frames.neighbours import Pairs
from kqeq.frames.states import CONDITIONS, weights
from kqeq.frames.structures import Structure
from kqeq.typing import Array, FloatArray


@dataclass(frozen=True, eq=False)
class ConditionedState(AroundState):
    """Descriptor rows of a structure with the weight of each atom's kernel; states do not depend on positions.

    Attributes
    ----------
    inner : DescriptorState
    weights : (N,) array
        ψ.
    """

    weights: Array

    @property
    def species(self) -> tuple[int, ...]:
        """Those of the environments."""
        species: tuple[int, ...] = self.inner.species
        return species


@dataclass(frozen=True)
class Conditioned(Around):
    """A descriptor of environments in a state; weights are in the coefficients of gradients.

    Attributes
    ----------
    inner : Descriptor
    condition : str
        One of :data:`kqeq.frames.states.CONDITIONS`.
    """

    condition: str

    def __post_init__(self) -> None:
        if self.condition not in CONDITIONS:
            raise InputError(
                f"condition is {self.condition!r}; expected one of {', '.join(CONDITIONS)}, or None"
            )

    def block_slices(self, species: tuple[int, ...]) -> dict[tuple[int, int], slice]:
        """Those of the environment."""
        return self.inner.block_slices(species)

    def evaluate(
        self, structure: Structure, *, derivatives: bool = True, pairs: Pairs | None = None
    ) -> ConditionedState:
        """Rows and weights of one structure."""
        inner = self.inner.evaluate(structure, derivatives=derivatives, pairs=pairs)
        return self.around(inner, structure, pairs)

    def evaluate_arrays(
        self, structure: Structure, like: Array, *, pairs: Pairs | None = None
    ) -> ConditionedState:
        """The same in the library, and on the device, of ``like``."""
        return self.around(self.inner.evaluate_arrays(structure, like, pairs=pairs), structure, pairs)

    def around(
        self, inner: DescriptorState, structure: Structure, pairs: Pairs | None = None, derivative: int = 0
    ) -> ConditionedState:
        """Rows that are known already with the weights of a structure, or their derivatives by its state."""
        own = weights(structure, self.condition, self.cutoff, pairs, derivative)
        return ConditionedState(inner, asarray_like(own, inner.values))

    def prepare_directions(self, species: tuple[int, ...], rows: FloatArray) -> Any:
        """Those of the environment."""
        return self.inner.prepare_directions(species, rows)


def condition_of(descriptor: Descriptor) -> str | None:
    """The condition of a descriptor."""
    return descriptor.condition if isinstance(descriptor, Conditioned) else None


def reweighted(
    states: Mapping[Descriptor, DescriptorState], structure: Structure, derivative: int = 0
) -> dict[Descriptor, DescriptorState]:
    """The same environments under the states (spins, charges) of a structure of the same geometry."""
    return {
        d: d.around(s.inner, structure, derivative=derivative)
        if isinstance(d, Conditioned) and isinstance(s, ConditionedState)
        else s
        for d, s in states.items()
    }


__all__ = ["Conditioned", "ConditionedState", "condition_of", "reweighted"]
