"""One geometry under changing conditions: what total charge and field do not change is computed once.

Descriptors, their dot products with the representatives and the factored charge problem depend on the geometry alone.
A scan over fields, a finite difference by charge, or a calculator that is asked for the energy first and for the
forces later pays for them once (:mod:`kqeq.analysis`, :mod:`kqeq.calculator`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kqeq.backend import CPU, Device
from kqeq.charges.base import ChargeSystem
from kqeq.descriptors.base import Descriptor, DescriptorState
from kqeq.descriptors.conditioned import reweighted
from kqeq.frames.neighbours import Pairs
from kqeq.frames.structures import Structure
from kqeq.kernels.feature_map import FeatureMap, Similarity, evaluate_environments
from kqeq.potential.potential import PROPERTIES, Potential, Prediction, in_threads_for
from kqeq.typing import FloatArray


@dataclass(frozen=True, eq=False)
class FixedGeometry:
    """A potential at one geometry, ready for any total charge and field.

    Attributes
    ----------
    potential : Potential
    structure : Structure
        With the conditions that it was made with.
    states, similarities
        Descriptors and their dot products with the representatives.
    system : ChargeSystem, optional
        The charge model, bound to the geometry and factored.
    device : Device
        Where these live.
    single : bool
        As for :meth:`kqeq.potential.Potential.predict`.
    """

    potential: Potential
    structure: Structure
    states: Mapping[Descriptor, DescriptorState]
    similarities: Mapping[FeatureMap, Sequence[Similarity]]
    system: ChargeSystem | None
    device: Device = CPU
    single: bool = False

    @classmethod
    def at(
        cls,
        potential: Potential,
        structure: Structure,
        *,
        pairs: Pairs | None = None,
        device: Device = CPU,
        single: bool = False,
    ) -> FixedGeometry:
        """Evaluate all that depends on the geometry alone.

        Parameters
        ----------
        potential : Potential
        structure : Structure
            Validated, and one that the potential accepts (:meth:`kqeq.potential.Potential.check`).
        pairs : Pairs, optional
            A neighbour list that reaches the potential's cutoff.
        device : Device
            Where to compute.
        single : bool
            As for :meth:`kqeq.potential.Potential.predict`.
        """
        with in_threads_for(structure):
            states, similarities = evaluate_environments(
                potential.feature_maps, structure, pairs=pairs, device=device, single=single
            )
            # bound without charge where that is possible: then results do not depend on which charge came first
            given = structure.fragment_charges is not None or structure.reference_charges is not None
            bound = (
                structure if given or structure.total_charge == 0.0 else replace(structure, total_charge=0.0)
            )
            system = potential.bind(bound, similarities, device=device)
        return cls(potential, structure, states, similarities, system, device, single)

    def under(
        self, total_charge: float | None = None, external_field: FloatArray | None = None
    ) -> FixedGeometry:
        """The same geometry under another total charge (e), another field (V/Å), or both.

        Raises
        ------
        InputError
            If fragment or reference charges leave open where a change of the total charge goes, or for a field
            without charges to act on.
        UnsupportedError
            For fields that the charge model cannot treat.
        """
        old = self.structure
        structure = old.under(
            old.total_charge if total_charge is None else total_charge,
            old.external_field if external_field is None else external_field,
        )
        self.potential.check(structure)
        if self.potential.knows_charge and structure.total_charge != old.total_charge:
            return FixedGeometry.at(self.potential, structure, device=self.device, single=self.single)
        return self.in_state(structure)

    def in_state(self, structure: Structure) -> FixedGeometry:
        """The same geometry under the conditions of a structure."""
        if not self.potential.conditions:
            return replace(self, structure=structure)
        states = reweighted(dict(self.states), structure)
        similarities = self.potential.reweighted(self.similarities, states)
        # site parameters, too, may depend on the state
        system = (
            self.system
            if not self.potential.sites
            else self.potential.bind(structure, similarities, device=self.device)
        )
        return replace(self, structure=structure, states=states, similarities=similarities, system=system)

    def predict(self, properties: Collection[str] = PROPERTIES) -> Prediction:
        """Predict under the conditions of the structure; see :meth:`kqeq.potential.Potential.predict`."""
        with in_threads_for(self.structure):
            return self.potential.finish(
                self.structure, properties, self.states, self.similarities, self.system, device=self.device
            )


def same_geometry(first: Structure, second: Structure) -> bool:
    """Whether two structures differ in total charge and field at most."""
    outside = first.external_charges
    if outside is not second.external_charges and (
        outside is None or not outside.same_as(second.external_charges)
    ):
        return False
    return all(
        np.array_equal(a, b)
        for a, b in (
            (getattr(first, name), getattr(second, name))
            for name in (
                "positions",  # what differs as a rule
                "numbers",
                "cell",
                "pbc",
                "fragments",
                "fragment_charges",
                "reference_charges",
                "external_potential",
                "multiplicity",
                "fragment_spins",
            )
        )
    )


__all__ = ["FixedGeometry", "same_geometry"]
