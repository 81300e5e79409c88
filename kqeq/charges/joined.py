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
from functools import cached_property

import numpy as np

from kqeq.backend import Device, all_positive_definite, asarray_like, eye, inverse, namespace
from kqeq.charges.base import ChargeModel, SiteChange, SiteParameters
from kqeq.charges.on_site import HARDNESS_REMEDY
from kqeq.charges.qeq import QEq
from kqeq.constants import COULOMB
from kqeq.electrostatics.radial import gaussian_coulomb, gaussian_width_response
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
        and not model.environment
        and structure.external_charges is None
    )


@dataclass(frozen=True, eq=False)
class JoinedMolecules:
    """Molecules with the same atoms and their conditions, on a device.

    Attributes
    ----------
    positions : (B, N, 3) array
    fields : (B, 3) array
    charges : (B,) array
        Q.
    potentials : (B, N) array
        V.
    """

    positions: Array
    fields: Array
    charges: Array
    potentials: Array

    @classmethod
    def build(cls, structures: Sequence[Structure], device: Device) -> JoinedMolecules:
        """From structures with the same atomic numbers in the same order."""
        nothing = np.zeros(len(structures[0]))
        potentials = [s.external_potential for s in structures]

        def put(values: Sequence[FloatArray | float]) -> Array:
            return asarray_like(np.array(values, dtype=np.float64), device.like)

        return cls(
            put([s.positions for s in structures]),
            put([s.external_field for s in structures]),
            put([s.total_charge for s in structures]),
            put([nothing if v is None else v for v in potentials]),
        )

    def select(self, members: Array) -> JoinedMolecules:
        """Some of the molecules."""
        return JoinedMolecules(*_selected(self, members).values())

    def bind(self, sites: SiteParameters) -> JoinedSystem:
        """Build the problem and factor it.

        Parameters
        ----------
        sites : SiteParameters
            Of the atoms of one molecule, on the host.

        Raises
        ------
        NotPositiveDefiniteError
            If an energy has no minimum.
        """
        positions = self.positions
        xp = namespace(positions)
        atoms = int(positions.shape[1])
        # r_j − r_i, more accurate around the centres
        centred = positions - xp.mean(positions, axis=1, keepdims=True)
        x = [centred[:, None, :, axis] - centred[:, :, None, axis] for axis in range(3)]
        r2 = x[0] * x[0] + x[1] * x[1] + x[2] * x[2]
        variance = sites.width**2
        a = asarray_like(1.0 / np.sqrt(2.0 * (variance[:, None] + variance[None, :])), positions)
        a = a[None, :, :] + xp.zeros_like(r2)
        coulomb, slope = gaussian_coulomb(r2, a, 1)
        hessian = COULOMB * coulomb + asarray_like(np.diag(sites.hardness), positions)
        if not all_positive_definite(hessian):
            raise NotPositiveDefiniteError(
                f"a QEq matrix of {atoms} atoms is not positive definite; {HARDNESS_REMEDY}"
            )
        inverted = inverse(hessian)
        own = xp.sum(inverted, axis=2)
        shape = own / xp.sum(own, axis=1, keepdims=True)
        response = inverted - own[:, :, None] * shape[:, None, :]
        vectors = xp.stack(x, axis=2)
        return JoinedSystem(self, sites, hessian, response, shape, r2, a, _slopes(vectors, slope))


@dataclass(frozen=True, eq=False)
class JoinedSystem:
    """The charge problem of B molecules, on a device.

    Attributes
    ----------
    molecules : JoinedMolecules
    sites : SiteParameters
        Of the atoms of one molecule, on the host.
    hessian : (B, N, N) array
        H, with hardnesses.
    response : (B, N, N) array
        R.
    shape : (B, N) array
        s.
    squares, steepness : (B, N, N) arrays
        Squared distances, and a = 1/(√2 γ).
    slopes : (B, 3N, N) array
        ∂A_ij/∂r_i in row (i, α) and column j.
    """

    molecules: JoinedMolecules
    sites: SiteParameters
    hessian: Array
    response: Array
    shape: Array
    squares: Array
    steepness: Array
    slopes: Array

    def select(self, members: Array) -> JoinedSystem:
        """Some of the molecules."""
        chosen = _selected(self, members)
        return replace(self, molecules=self.molecules.select(members), **chosen)

    def solve(self, chi: Array) -> JoinedState:
        """Charges for electronegativities (B, N)."""
        given = self.molecules
        driven = chi + given.potentials
        linear = driven - _times(given.positions, given.fields)
        charges = self.shape * given.charges[:, None] - _times(self.response, linear)
        return JoinedState(self, driven, charges)

    def polarizability(self) -> Array:
        """∂μ/∂field, rᵀRr, (B, 3, 3)."""
        alpha = namespace(self.response).matrix_transpose(self._to_field) @ self.molecules.positions
        return 0.5 * (alpha + namespace(alpha).matrix_transpose(alpha))

    @cached_property
    def _to_field(self) -> Array:
        """∂q/∂field, (B, N, 3)."""
        return self.response @ self.molecules.positions

    def polarizability_response(self, change: SiteChange) -> Array:
        """−(∂q/∂field)ᵀ ∂H (∂q/∂field) for c changes of the site parameters, (B, 3, 3, c)."""
        response = self._to_field
        left = response[:, :, :, None, None]
        moved = self.curvature_change(change, response)
        return -namespace(response).sum(left * moved[:, :, None, :, :], axis=1)

    def curvature_change(self, change: SiteChange, vectors: Array) -> Array:
        """(∂H) @ vectors for c changes of the site parameters, (B, N, m) to (B, N, m, c)."""
        found: Array = 0.0
        if change.hardness is not None:
            found = vectors[:, :, :, None] * self._there(change.hardness)
        if change.width is not None:
            spread = self._spread(change)
            count, atoms, number = (int(n) for n in vectors.shape)
            xp = namespace(vectors)
            own = (self._broadening @ vectors)[:, :, :, None] * spread
            # s_j v_j of every vector and change side by side
            other = xp.reshape(vectors[:, :, :, None] * spread, (count, atoms, -1))
            found = found + own + xp.reshape(self._broadening @ other, (count, atoms, number, -1))
        return found

    def _there(self, block: Array) -> Array:
        """(N, c) on the device, for (B, N, m, c)."""
        return asarray_like(block, self.hessian)[None, :, None, :]

    def _spread(self, change: SiteChange) -> Array:
        """σ_i ∂σ_i, (1, N, 1, c)."""
        assert change.width is not None
        return self._there(change.width) * asarray_like(self.sites.width, self.hessian)[None, :, None, None]

    @cached_property
    def _broadening(self) -> Array:
        """∂A_ij/∂σ_i over σ_i, (B, N, N)."""
        return COULOMB * gaussian_width_response(self.squares, self.steepness, 0)[0]

    @cached_property
    def _broadening_slopes(self) -> Array:
        """Its derivative by r_i, (B, 3N, N), as :attr:`slopes`."""
        xp, positions = namespace(self.hessian), self.molecules.positions
        vectors = xp.stack([positions[:, None, :, a] - positions[:, :, None, a] for a in range(3)], axis=2)
        return _slopes(vectors, gaussian_width_response(self.squares, self.steepness, 1)[1])


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
        return xp.sum(q * inner, axis=1) - xp.sum(self.system.molecules.fields * self.dipole, axis=1)

    @property
    def dipole(self) -> Array:
        """Σ q r, (B, 3)."""
        xp = namespace(self.charges)
        return xp.sum(self.charges[:, :, None] * self.system.molecules.positions, axis=1)

    @property
    def gradient(self) -> Array:
        """∂E/∂r at fixed q, χ and field, (B, 3N)."""
        xp = namespace(self.charges)
        return xp.reshape(self.charges[:, :, None] * self._along, (int(self.charges.shape[0]), -1))

    @property
    def gradient_response(self) -> Array:
        """Its change with the charges, (B, 3N, N)."""
        xp = namespace(self.charges)
        count, atoms = (int(n) for n in self.charges.shape)
        diagonal = self._along[:, :, :, None] * eye(atoms, self.charges)[None, :, None, :]
        slopes = xp.reshape(self.system.slopes, (count, atoms, 3, atoms)) * self.charges[:, :, None, None]
        return xp.reshape(slopes + diagonal, (count, 3 * atoms, atoms))

    @cached_property
    def _along(self) -> Array:
        """Σ_j q_j ∂A_ij/∂r_i − field, (B, N, 3)."""
        xp = namespace(self.charges)
        count, atoms = (int(n) for n in self.charges.shape)
        slopes = xp.reshape(_times(self.system.slopes, self.charges), (count, atoms, 3))
        return slopes - self.system.molecules.fields[:, None, :]

    def site_slopes(self, change: SiteChange) -> Array:
        """Change of the energy with each of c changes of the site parameters, ½ qᵀ ∂H q, (B, c)."""
        moved = self._curvature(change)
        return 0.5 * namespace(moved).sum(self.charges[:, :, None] * moved, axis=1)

    def site_response(self, change: SiteChange) -> Array:
        """∂q = −R ∂H q, (B, N, c)."""
        return -(self.system.response @ self._curvature(change))

    def _curvature(self, change: SiteChange) -> Array:
        """(∂H) q, (B, N, c)."""
        return self.system.curvature_change(change, self.charges[:, :, None])[:, :, 0, :]

    def gradient_change(self, change: SiteChange) -> Array | None:
        """Change of the gradient at fixed charges with c changes of the site parameters, (B, 3N, c); ``None`` if none."""
        if change.width is None:
            return None
        xp, system, q = namespace(self.charges), self.system, self.charges
        count, atoms = (int(n) for n in q.shape)
        spread = system._spread(change)[:, :, 0, :]
        slopes = system._broadening_slopes
        own = xp.reshape(_times(slopes, q), (count, atoms, 3, 1)) * spread[:, :, None, :]
        other = xp.reshape(slopes @ (q[:, :, None] * spread), (count, atoms, 3, -1))
        return xp.reshape(q[:, :, None, None] * (own + other), (count, 3 * atoms, -1))


def _slopes(vectors: Array, slope: Array) -> Array:
    """∂/∂r_i of a function of distances, (B, 3N, N), from r_j − r_i (B, N, 3, N) and −f'/r (B, N, N)."""
    count, atoms = int(slope.shape[0]), int(slope.shape[1])
    found = COULOMB * vectors * slope[:, :, None, :]
    return namespace(slope).reshape(found, (count, 3 * atoms, atoms))


def _selected(whole: JoinedMolecules | JoinedSystem, members: Array) -> dict[str, Array]:
    """Arrays of some of the molecules by name."""
    arrays = {own.name: getattr(whole, own.name) for own in fields(whole)}
    return {
        name: namespace(members).take(array, members, axis=0)
        for name, array in arrays.items()
        if not isinstance(array, JoinedMolecules | SiteParameters)
    }


def _times(matrices: Array, vectors: Array) -> Array:
    """(B, n, m) matrices times (B, m) vectors."""
    return (matrices @ vectors[:, :, None])[:, :, 0]


__all__ = ["JoinedMolecules", "JoinedState", "JoinedSystem", "joins"]
