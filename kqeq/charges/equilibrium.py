"""The charge problem of one geometry, for every model: charges, perhaps dipoles, perhaps bond softness.

    E = (χ + V)ᵀq + ½ zᵀHz + ½ Σ_pairs p²/k − field · μ,      z = q, or (q, d) with atomic dipoles

H holds the Coulomb interaction, the hardness and 1/α of the atoms; the flows p exist in split-charge models.
Stationarity leaves q = X q0 − R b (:mod:`kqeq.charges.cores`), with dipoles eliminated.  The field enters

* without flows by φ_i = −field · r_i, and the dipole of the charges is Σ q r;
* with flows by the drop −field · r_ij of the potential along each pair, and the dipole of the charges is
  Σ q0 r − Σ_pairs p_ij r_ij (p_ij flows to i), the same for every choice of periodic images if q0 = 0.

(theory sections 5 and 6).  The potentials of the atoms are u = −∂E/∂q, with p_ij = k_ij (u_i − u_j − field · r_ij).

Dimensions: N atoms, n = N or 4N unknowns z, c columns, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kqeq.backend import (
    Device,
    asarray_like,
    eye,
    full,
    inverse_or_zero,
    namespace,
    to_float,
    to_numpy,
    zeros,
)
from kqeq.charges.base import Response, SiteChange, SiteParameters
from kqeq.charges.boundaries import open_projector, periodic_part, refuse_periodic_field
from kqeq.charges.cores import self_interaction_slope
from kqeq.charges.softness import Links
from kqeq.charges.solvers import Solver
from kqeq.charges.state import EquilibriumState
from kqeq.electrostatics.base import Electrostatics
from kqeq.frames.structures import Structure
from kqeq.typing import Array, FloatArray


@dataclass(frozen=True, eq=False)
class Equilibrium:
    """A charge model bound to one geometry; see :class:`kqeq.charges.base.ChargeSystem`.

    Attributes
    ----------
    structure : Structure
    sites : SiteParameters
    provider : Electrostatics
    solver : Solver
        H, and the way to stationary points.
    links : Links, optional
        The pairs between which charge flows.
    reference : (N,) array
        q0 at the total charge of the structure, e.
    damped : bool
        Whether dipoles have the self interaction of their Gaussian.
    device : Device
        Where all arrays but those of ``structure`` live.
    open_directions, open_positions : (3, 3), (N, 3) arrays
        Projector onto the directions along which fields are defined, and positions along them.
    coupling : (N, 3) array, optional
        See :meth:`kqeq.charges.softness.Links.coupling`.
    """

    structure: Structure
    sites: SiteParameters
    provider: Electrostatics
    solver: Solver
    links: Links | None
    reference: Array
    damped: bool
    device: Device
    open_directions: Array
    open_positions: Array
    coupling: Array | None

    @classmethod
    def build(
        cls,
        structure: Structure,
        sites: SiteParameters,
        provider: Electrostatics,
        solver: Solver,
        links: Links | None,
        reference: Array,
        damped: bool,
        device: Device,
    ) -> Equilibrium:
        """Add what follows from the geometry."""
        projector = open_projector(structure)
        positions = structure.positions @ projector
        return cls(
            structure,
            sites,
            provider,
            solver,
            links,
            asarray_like(reference, device.like),
            damped,
            device,
            asarray_like(projector, device.like),
            asarray_like(positions, device.like),
            None if links is None else links.coupling(),
        )

    # ------------------------------------------------------------------ solution

    def solve(self, chi: Array, external_field: FloatArray, total_charge: float) -> EquilibriumState:
        """Charges for given electronegativities, field (on the host) and total charge.

        A total charge other than the structure's changes all reference charges by the same amount.

        Raises
        ------
        UnsupportedError
            For a field that the boundary conditions do not define.
        """
        atoms = len(self.structure)
        reference = self.reference + float(total_charge - self.structure.total_charge) / atoms
        self._check_field(external_field, reference)
        field = asarray_like(external_field, self.device.like)
        if self.links is None:
            field = self.open_directions @ field
        potential = self.structure.external_potential
        chi = chi if potential is None else chi + asarray_like(potential, self.device.like)
        linear = zeros((self.size, 1), chi)
        linear[:atoms, 0] = chi
        unknowns, potentials = self._stationary(linear, reference[:, None], field[:, None])
        return EquilibriumState(self, field, chi, reference, unknowns[:, 0], potentials[:, 0])

    def _check_field(self, field: FloatArray, reference: Array) -> None:
        along = periodic_part(self.structure, field)
        if along is None:
            return
        if self.links is None:
            refuse_periodic_field(
                self.structure,
                field,
                along,
                "the dipole Σ q r of charges depends there on which periodic image of each atom is meant",
                "use a split-charge model, kqeq.ACKS2(), whose polarization is defined for periodic cells",
            )
        if not self.is_neutral(reference):
            refuse_periodic_field(
                self.structure,
                field,
                along,
                "the reference charges are not zero, and their dipole depends on which periodic image of each atom "
                "is meant",
                "start from zero reference charges (a neutral cell without fragment charges)",
            )

    def is_neutral(self, reference: Array) -> bool:
        """Whether all reference charges vanish: then the dipole of periodic cells is defined."""
        xp = namespace(reference)
        return to_float(xp.max(xp.abs(reference))) <= 1e-8

    def _stationary(self, linear: Array, source: Array | None, field: Array | None) -> tuple[Array, Array]:
        """Unknowns (n, c) and potentials (N, c) for b (n, c), reference charges (N, c) and fields (3, c).

        The potentials include φ where the field enters by it.
        """
        atoms = len(self.structure)
        if field is not None:
            xp = namespace(linear)
            linear = xp.asarray(linear, copy=True)
            # the potentials of split-charge models leave the field out: it acts on their flows
            if self.coupling is None:
                linear[:atoms, :] -= self.open_positions @ field
            else:
                flow = -self.coupling @ field
                source = flow if source is None else source + flow
            if self.has_atomic_dipoles:
                linear[atoms:, :] -= xp.tile(field, (atoms, 1))
        return self.solver.stationary(linear, source)

    # ------------------------------------------------------------------ responses

    def answer(
        self,
        linear: Array,
        *,
        source: Array | None = None,
        reference: Array | None = None,
        field: Array | None = None,
        sites: SiteChange | None = None,
    ) -> Response:
        """Response to changes of b (n, c), of flows (N, c), of reference charges (N, c) and of the field (3, c)."""
        if field is not None and self.links is None:
            field = self.open_directions @ field
        if reference is not None:
            source = reference if source is None else source + reference
        unknowns, potentials = self._stationary(linear, source, field)
        charges = unknowns[: len(self.structure), :]
        dipole = self.charge_moment(charges, potentials, reference, field)
        if self.has_atomic_dipoles:
            dipole = dipole + self.dipole_sum(unknowns)
        if self.links is not None:
            unknowns = namespace(unknowns).concat([unknowns, potentials])
        return Response(unknowns, charges, dipole if self.has_dipole else None, field, sites)

    def respond(self, dchi: Array) -> Response:
        """∂q = −R ∂χ and what follows."""
        linear = zeros((self.size, dchi.shape[1]), dchi)
        linear[: len(self.structure), :] = dchi
        return self.answer(linear)

    def respond_field(self) -> Response:
        """Response to the three components of the field."""
        like = self.device.like
        return self.answer(zeros((self.size, 3), like), field=eye(3, like))

    def respond_total_charge(self) -> Response:
        """Response to the total charge, added evenly to the reference charges."""
        atoms, like = len(self.structure), self.device.like
        return self.answer(zeros((self.size, 1), like), reference=full((atoms, 1), 1.0 / atoms, like))

    def polarizability(self) -> Array | None:
        """∂μ/∂field; ``None`` where no component of the dipole is defined."""
        if not self.has_dipole:
            return None
        alpha = self.respond_field().dipole
        return None if alpha is None else 0.5 * (alpha + alpha.T)

    def polarizability_response(self, change: SiteChange) -> Array:
        """−(∂z/∂field)ᵀ ∂H (∂z/∂field) + Σ_pairs ∂k (∂Δ/∂field)(∂Δ/∂field)ᵀ, with the drops Δ of potential."""
        response = self.respond_field()
        size = self.size
        slopes = response.unknowns[:size, :]
        result = -self._curvature_change(change, slopes)
        if self.links is not None and change.softness is not None:
            drops = self.links.drops(response.unknowns[size:, :], response.field)
            weights = 0.5 * self.softness_change(change.softness)
            result += _weighted_squares(drops, weights)
        return result

    def _curvature_change(self, change: SiteChange, vectors: Array) -> Array:
        """vectorsᵀ ∂H vectors for each of c changes, (m, m, c): what is diagonal in H needs no (n, m, c) array."""
        xp = namespace(vectors)
        atoms = len(self.structure)
        columns = int(vectors.shape[1])
        result = zeros((columns, columns, change.columns), vectors)
        if change.hardness is not None:
            result += _weighted_squares(vectors[:atoms, :], change.hardness)
        if change.polarizability is not None and self.sites.polarizability is not None:
            scale = -change.polarizability / self.sites.polarizability[:, None] ** 2
            result += _weighted_squares(vectors[atoms:, :], xp.repeat(scale, 3, axis=0))
        if change.width is not None:
            for c in self._moving(change.width):
                own = self.hessian_change(SiteChange(width=change.width[:, c : c + 1]), vectors)
                result[:, :, c] += vectors.T @ own[:, :, 0]
        return result

    def _moving(self, change: Array) -> list[int]:
        """Columns of (N, c) changes that change anything."""
        moving = namespace(change).any(change != 0.0, axis=0)
        return [int(c) for c in np.flatnonzero(to_numpy(moving))]

    def hardness(self) -> float:
        """∂²E/∂Q²."""
        atoms, like = len(self.structure), self.device.like
        _, potentials = self._stationary(
            zeros((self.size, 1), like), full((atoms, 1), 1.0 / atoms, like), None
        )
        return -to_float(namespace(potentials).mean(potentials))

    # ------------------------------------------------------------------ pieces

    @property
    def size(self) -> int:
        """Number of unknowns n."""
        return self.solver.size

    @property
    def hessian(self) -> Array:
        """H, (n, n).

        Raises
        ------
        UnsupportedError
            If the problem is solved without a matrix.
        """
        return self.solver.hessian

    @property
    def responses_are_cheap(self) -> bool:
        """Whether responses reuse a factorisation."""
        return not self.solver.matrix_free

    @property
    def has_atomic_dipoles(self) -> bool:
        """Whether z holds dipoles."""
        return self.size > len(self.structure)

    @property
    def has_dipole(self) -> bool:
        """Whether any component of the dipole's response is defined."""
        return self.links is not None or not self.structure.pbc.all()

    def dipole_sum(self, unknowns: Array) -> Array:
        """Sum of the atomic dipoles in (n, c) unknowns along the directions that are defined, (3, c)."""
        atoms = len(self.structure)
        xp = namespace(unknowns)
        total = xp.sum(xp.reshape(unknowns[atoms : self.size, :], (atoms, 3, -1)), axis=0)
        return total if self.links is not None else self.open_directions @ total

    def charge_moment(
        self,
        charges: Array,
        potentials: Array,
        reference: Array | None,
        field: Array | None,
    ) -> Array:
        """Dipole of the charges, (3, c); of flows, from potentials, reference charges and field."""
        if self.links is None or self.coupling is None:
            return self.open_positions.T @ charges
        result = -self.coupling.T @ potentials
        if reference is not None:
            result += self.open_positions.T @ reference
        if field is not None:
            result += self.links.stiffness() @ field
        return result

    def hessian_change(self, change: SiteChange, vectors: Array) -> Array:
        """(∂H) @ vectors for each of c changes of the site parameters: (n, m) to (n, m, c)."""
        xp = namespace(vectors)
        atoms = len(self.structure)
        result = zeros((*vectors.shape, change.columns), vectors)
        if change.hardness is not None:
            result[:atoms, :, :] += vectors[:atoms, :, None] * change.hardness[:, None, :]
        if change.polarizability is not None and self.sites.polarizability is not None:
            scale = -change.polarizability / self.sites.polarizability[:, None] ** 2
            result[atoms:, :, :] += vectors[atoms:, :, None] * xp.repeat(scale, 3, axis=0)[:, None, :]
        if change.width is not None:
            for c in self._moving(change.width):
                for m in range(vectors.shape[1]):
                    result[:, m, c] += self.provider.width_derivative(
                        xp.asarray(vectors[:, m], copy=True), xp.asarray(change.width[:, c], copy=True)
                    )
            if self.has_atomic_dipoles and not self.damped:
                scale = change.width * self_interaction_slope(self.sites.width)[:, None]
                result[atoms:, :, :] -= vectors[atoms:, :, None] * xp.repeat(scale, 3, axis=0)[:, None, :]
        return result

    def softness_change(self, change: Array) -> Array:
        """∂k of every pair for changes (N, c) of the atoms' softness, (P, c)."""
        assert self.links is not None
        return self.links.softness[:, None] * self.relative_softness(change)

    def relative_softness(self, change: Array) -> Array:
        """∂ ln k of every pair, (P, c): half the sum of both atoms' ∂ ln κ."""
        assert self.links is not None and self.sites.softness is not None
        xp = namespace(change)
        logarithmic = change * inverse_or_zero(self.sites.softness)[:, None]
        return 0.5 * (xp.take(logarithmic, self.links.i, axis=0) + xp.take(logarithmic, self.links.j, axis=0))


def _weighted_squares(vectors: Array, weights: Array) -> Array:
    """Σ_i w_ic v_ia v_ib, (m, m, c), from (N, m) vectors and (N, c) weights."""
    return (vectors.T[:, None, :] * vectors.T[None, :, :]) @ weights


__all__ = ["Equilibrium"]
