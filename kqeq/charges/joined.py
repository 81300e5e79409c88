"""Charge equilibration of many open molecules with the same atoms at once.

The problem of :mod:`kqeq.charges.equilibrium` for QEq without fragments, molecule by molecule, with stacks of matrices in
place of matrices: the Coulomb matrix of molecules side by side that do not see each other is block diagonal, and each
has a total charge of its own,

    q = s Q − R b,     R = A⁻¹ − a aᵀ/C,   a = A⁻¹1,   C = 1ᵀa,   s = a/C,     b_i = χ_i + V_i − field · r_i

(theory section 1).

Dimensions: B molecules of N atoms, c columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from kqeq.backend import Device, all_positive_definite, asarray_like, eye, inverse, namespace
from kqeq.charges.base import ChargeModel, SiteParameters
from kqeq.charges.on_site import HARDNESS_REMEDY
from kqeq.charges.qeq import QEq
from kqeq.constants import COULOMB
from kqeq.electrostatics.radial import gaussian_coulomb
from kqeq.errors import NotPositiveDefiniteError
from kqeq.frames.structures import Structure
from kqeq.typing import Array, FloatArray


def joins(model: ChargeModel | None, structure: Structure) -> bool:
    """Whether a charge model and a structure can be joined with others: QEq of open molecules, factored."""
    if structure.periodic:
        return False
    if model is None:
        return True
    return (
        type(model) is QEq
        and not model.fragments
        and model.solver != "iterative"
        and not model.to_learn
        and structure.external_charges is None
    )


@dataclass(frozen=True, eq=False)
class JoinedSystem:
    """The charge problem of B molecules, on a device.

    Attributes
    ----------
    positions : (B, N, 3) array
    hessian : (B, N, N) array
        H, with hardnesses.
    response : (B, N, N) array
        R.
    shape : (B, N) array
        s.
    slopes : (B, 3N, N) array
        ∂A_ij/∂r_i in row (i, α) and column j.
    fields : (B, 3) array
    charges : (B,) array
        Q.
    potentials : (B, N) array
        V.
    """

    positions: Array
    hessian: Array
    response: Array
    shape: Array
    slopes: Array
    fields: Array
    charges: Array
    potentials: Array

    @classmethod
    def build(cls, structures: Sequence[Structure], sites: SiteParameters, device: Device) -> JoinedSystem:
        """Build and factor.

        Parameters
        ----------
        structures : sequence of Structure
            With the same atomic numbers in the same order.
        sites : SiteParameters
            Of one of them, on the host.
        device : Device

        Raises
        ------
        NotPositiveDefiniteError
            If the energy has no minimum.
        """
        atoms = len(structures[0])
        nothing = np.zeros(atoms)
        potentials = [s.external_potential for s in structures]

        def put(values: Sequence[FloatArray | float] | FloatArray) -> Array:
            return asarray_like(np.asarray(values, dtype=np.float64), device.like)

        positions = put([s.positions for s in structures])
        xp = namespace(positions)
        # r_j − r_i, more accurate around the centres
        centred = positions - xp.mean(positions, axis=1, keepdims=True)
        x = [centred[:, None, :, axis] - centred[:, :, None, axis] for axis in range(3)]
        r2 = x[0] * x[0] + x[1] * x[1] + x[2] * x[2]
        variance = sites.width**2
        a = put(1.0 / np.sqrt(2.0 * (variance[:, None] + variance[None, :])))
        coulomb, slope = gaussian_coulomb(r2, a + xp.zeros_like(r2), 1)
        hessian = coulomb * COULOMB + put(np.diag(sites.hardness))
        if not all_positive_definite(hessian):
            raise NotPositiveDefiniteError(
                f"a QEq matrix of {atoms} atoms is not positive definite; {HARDNESS_REMEDY}"
            )
        inverted = inverse(hessian)
        own = xp.sum(inverted, axis=2)
        shape = own / xp.sum(own, axis=1, keepdims=True)
        slopes = xp.stack([component * slope * COULOMB for component in x], axis=2)
        return cls(
            positions,
            hessian,
            inverted - own[:, :, None] * shape[:, None, :],
            shape,
            xp.reshape(slopes, (len(structures), 3 * atoms, atoms)),
            put([s.external_field for s in structures]),
            put([s.total_charge for s in structures]),
            put([nothing if v is None else v for v in potentials]),
        )

    def select(self, members: Array) -> JoinedSystem:
        """Some of the molecules."""
        xp = namespace(members)
        chosen = {own.name: xp.take(getattr(self, own.name), members, axis=0) for own in fields(self)}
        return replace(self, **chosen)

    def solve(self, chi: Array) -> JoinedState:
        """Charges for electronegativities (B, N)."""
        driven = chi + self.potentials
        linear = driven - _times(self.positions, self.fields)
        charges = self.shape * self.charges[:, None] - _times(self.response, linear)
        return JoinedState(self, driven, charges)


@dataclass(frozen=True, eq=False)
class JoinedState:
    """Charges at given electronegativities.

    Attributes
    ----------
    system : JoinedSystem
    chi : (B, N) array
        Electronegativities with external potentials, eV/e.
    charges : (B, N) array
        q, e; they are ∂E/∂χ as well.
    """

    system: JoinedSystem
    chi: Array
    charges: Array

    @property
    def energy(self) -> Array:
        """(χ + V)ᵀq + ½ qᵀHq − field · μ, (B,)."""
        xp, q = namespace(self.charges), self.charges
        inner = self.chi + 0.5 * _times(self.system.hessian, q)
        return xp.sum(q * inner, axis=1) - xp.sum(self.system.fields * self.dipole, axis=1)

    @property
    def dipole(self) -> Array:
        """Σ q r, (B, 3)."""
        xp = namespace(self.charges)
        return xp.sum(self.charges[:, :, None] * self.system.positions, axis=1)

    @property
    def gradient(self) -> Array:
        """∂E/∂r at fixed q, χ and field, (B, 3N)."""
        return self._by_atom(self._potential_slopes - self.system.fields[:, None, :])

    @property
    def gradient_response(self) -> Array:
        """Its change with the charges, (B, 3N, N)."""
        xp, system = namespace(self.charges), self.system
        count, atoms = (int(n) for n in self.charges.shape)
        own = self._potential_slopes - system.fields[:, None, :]
        diagonal = own[:, :, :, None] * eye(atoms, own)[None, :, None, :]
        slopes = xp.reshape(system.slopes, (count, atoms, 3, atoms)) * self.charges[:, :, None, None]
        return xp.reshape(slopes + diagonal, (count, 3 * atoms, atoms))

    @property
    def _potential_slopes(self) -> Array:
        """Σ_j q_j ∂A_ij/∂r_i, (B, N, 3)."""
        xp = namespace(self.charges)
        count, atoms = (int(n) for n in self.charges.shape)
        return xp.reshape(_times(self.system.slopes, self.charges), (count, atoms, 3))

    def _by_atom(self, values: Array) -> Array:
        """q_i times (B, N, 3), (B, 3N)."""
        xp = namespace(values)
        return xp.reshape(self.charges[:, :, None] * values, (int(values.shape[0]), -1))


def _times(matrices: Array, vectors: Array) -> Array:
    """(B, n, m) matrices times (B, m) vectors."""
    return (matrices @ vectors[:, :, None])[:, :, 0]


__all__ = ["JoinedState", "JoinedSystem", "joins"]
