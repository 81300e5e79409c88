"""What the kernel model of a charge model says of each atom: its electronegativity, or its reference charge.

    electronegativities χ:    b gains χ,                 ∂E/∂χ = q
    reference charges v:      q0 gains v − ⟨v⟩,          ∂E/∂v_i = g_i − ⟨g⟩,   g = ∂E/∂q0

⟨ ⟩ is the mean over the atoms of a constraint (all atoms, or a fragment): the values are shifted uniformly, so that the
reference charges sum to what they have to.  The two objects have the same methods, and are all that tells models of
electronegativities from models whose charges are functions of the environment (theory section 7).

Dimensions: N atoms, c columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from kqeq.backend import Device, asarray_like, namespace
from kqeq.charges.fragments import membership
from kqeq.typing import Array, IntArray

ELECTRONEGATIVITY, CHARGE = "electronegativity", "charge"
"""The two quantities, in eV/e and e."""


class SiteValues(Protocol):
    """How one number per atom enters the charge problem."""

    quantity: ClassVar[str]

    def potentials(self, values: Array) -> Array | None:
        """What it adds to b, (N, c); ``None`` for nothing."""

    def references(self, values: Array) -> Array | None:
        """What it adds to the reference charges, (N, c); ``None`` for nothing."""

    def gradient(self, charges: Array, reference_gradient: Array) -> Array:
        """∂E/∂(value), (N, c), from charges and ∂E/∂q0, (N, c) each; linear, so that it serves for changes too."""


@dataclass(frozen=True, eq=False)
class Electronegativities:
    """∂E/∂q of an atom without charge, eV/e."""

    quantity: ClassVar[str] = ELECTRONEGATIVITY

    def potentials(self, values: Array) -> Array | None:
        """The values themselves."""
        return values

    def references(self, values: Array) -> Array | None:
        """Nothing."""
        return None

    def gradient(self, charges: Array, reference_gradient: Array) -> Array:
        """The charges."""
        return charges


@dataclass(frozen=True, eq=False)
class ReferenceCharges:
    """Charges of the atoms before any flow, e, up to a uniform shift of every constraint.

    Attributes
    ----------
    member : (N, k) array
        1 where an atom belongs to a constraint.
    """

    member: Array
    quantity: ClassVar[str] = CHARGE

    @classmethod
    def build(cls, group: IntArray, device: Device) -> ReferenceCharges:
        """From the constraints of the atoms, on the host."""
        return cls(asarray_like(membership(group), device.like))

    def potentials(self, values: Array) -> Array | None:
        """Nothing."""
        return None

    def references(self, values: Array) -> Array | None:
        """Values without the means of the constraints."""
        return self._centred(values)

    def gradient(self, charges: Array, reference_gradient: Array) -> Array:
        """∂E/∂q0 without the means of the constraints."""
        return self._centred(reference_gradient)

    def _centred(self, values: Array) -> Array:
        size = namespace(values).sum(self.member, axis=0)
        return values - self.member @ ((self.member.T @ values) / size[:, None])


__all__ = ["CHARGE", "ELECTRONEGATIVITY", "Electronegativities", "ReferenceCharges", "SiteValues"]
