"""How charge moves between atoms, the part in which charge models differ: freely, along bonds, or not at all.

The objects have the same methods.  They build the solvers (dense: :mod:`kqeq.charges.cores`, iterative:
:mod:`kqeq.charges.solvers`), say where the field enters and what the dipole of the charges is, and what flows cost:

* free flow costs nothing.  The field enters by the potentials φ_i = −field · r_i, and the dipole is Σ q r: both are
  defined along open directions only;
* flows p along bonds cost ½ Σ p²/k.  The field enters by the drop −field · r_ij of the potential along each bond, and
  the dipole is Σ q0 r − Σ_bonds p_ij r_ij (p_ij flows to i), the same for every choice of periodic images if q0 = 0;
* where nothing flows charges are the reference charges, and the rest is as with free flow.

(theory sections 5 and 6).  The potentials of the atoms are u = −∂E/∂q, the drops Δ_ij = u_i − u_j − field · r_ij, and
p_ij = k_ij Δ_ij.  Free flow has no drops: they are ``None``.

Dimensions: N atoms, n = N or 4N unknowns z, P directed pairs, c columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

from kqeq.backend import Device, asarray_like, inverse_or_zero, namespace, segment_sum, to_float
from kqeq.charges.base import Response, SiteChange
from kqeq.charges.boundaries import (
    CHARGED_REFERENCE,
    NO_POLARIZATION,
    open_projector,
    periodic_part,
    refuse_periodic_field,
)
from kqeq.charges.cores import ConstrainedCore, Core, FixedCore, SplitChargeCore
from kqeq.charges.fragments import membership
from kqeq.charges.on_site import OnSite
from kqeq.charges.softness import Bonds
from kqeq.charges.solvers import IterativeSolver
from kqeq.electrostatics.base import Electrostatics
from kqeq.frames.structures import Structure
from kqeq.typing import Array, FloatArray, IntArray

DENSE_LAPLACIAN = 64
"""Atoms up to which L is an array where A is one (with 12 atoms 0.01 ms instead of 0.05, with 128 as fast)."""


class Flow(Protocol):
    """How charge moves between the atoms of one geometry."""

    # ------------------------------------------------------------------ solvers

    def core(self, hessian: Array) -> Core:
        """Reference charges and potentials to charges, given the Hessian (N, N) of the charges; factors it."""

    def iterative_solver(self, provider: Electrostatics, on_site: OnSite, accuracy: float) -> IterativeSolver:
        """Conjugate gradients that move charge in the same way."""

    # ------------------------------------------------------------------ field and dipole

    @property
    def has_dipole(self) -> bool:
        """Whether any component of the dipole's response is defined."""

    def defined_dipole(self, dipole: Array, reference: Array) -> Array | None:
        """The components of a dipole (3,) that are defined with reference charges (N,); ``None`` if none is."""

    def check_field(self, field: FloatArray, reference: Array) -> None:
        """Refuse a field (on the host) that is not defined with the boundary conditions and reference charges (N,).

        Raises
        ------
        UnsupportedError
        """

    def admitted(self, vectors: Array) -> Array:
        """Fields or dipoles (3, c) along the directions in which they act."""

    def drive(self, linear: Array, source: Array | None, field: Array) -> tuple[Array, Array | None]:
        """Add a field (3, c) to b (n, c) of the charges, changed in place, or to reference charges (N, c)."""

    def moment(
        self, charges: Array, potentials: Array, reference: Array | None, field: Array | None
    ) -> Array:
        """Dipole of the charges, (3, c)."""

    def reference_gradient(self, potentials: Array, field: Array) -> Array:
        """∂E/∂q0_i, (N,), from potentials (N,) and field (3,)."""

    def reference_gradient_response(self, potentials: Array, field: Array | None) -> Array:
        """Its change with potentials (N, c) and fields (3, c), (N, c)."""

    # ------------------------------------------------------------------ what flows cost

    def drops(self, potentials: Array, field: Array | None) -> Array | None:
        """Δ along each bond, (P, c), from potentials (N, c) and fields (3, c)."""

    def unknowns(self, unknowns: Array, potentials: Array) -> Array:
        """Z (n, c), and after it the potentials (N, c) where flows follow from them."""

    def energy(self, drops: Array) -> Array:
        """½ Σ_bonds p²/k from drops (P,)."""

    def gradient(self, drops: Array) -> Array:
        """Its derivative with positions at fixed p, (N, 3)."""

    def strain(self, drops: Array) -> Array:
        """Its derivative with strain at fixed p, (3, 3)."""

    def gradient_response(self, drops: Array, moved: Array, sites: SiteChange | None) -> Array:
        """Change of :meth:`gradient` with drops by ``moved`` (P, c) and with softness, (N, 3, c).

        Linear in ``drops``.
        """

    def strain_response(self, drops: Array, moved: Array, sites: SiteChange | None) -> Array:
        """Change of :meth:`strain`, likewise, (3, 3, c)."""

    def softness_gradient(self, drops: Array) -> Array | None:
        """−½ Σ Δ² ∂k/∂κ of every atom, (N,)."""

    def pair_gradient(self, drops: Array) -> Array | None:
        """−½ Σ Δ² ∂k/∂f of the factor of every pair of elements, (K,)."""

    def softness_gradient_response(
        self, drops: Array, moved: Array, sites: SiteChange | None
    ) -> Array | None:
        """Its change, (N, c)."""

    def softness_flows(self, drops: Array, sites: SiteChange) -> tuple[Array, Array] | None:
        """Charges (N, c) and dipole (3, c) that changes of softness move at fixed potentials."""

    def polarizability_response(self, moved: Array, sites: SiteChange) -> Array:
        """Σ_bonds ∂k Δ Δᵀ for drops (P, m) moved by m fields, (m, m, c)."""

    def moved_drops(self, response: Response) -> Array | None:
        """Change of the drops in a response, (P, c)."""


@dataclass(frozen=True, eq=False)
class OpenDirections:
    """Directions along which fields and dipoles of charges are defined, and positions along them.

    Attributes
    ----------
    structure : Structure
    projector : (3, 3) array
    positions : (N, 3) array
    """

    structure: Structure
    projector: Array
    positions: Array

    @classmethod
    def build(cls, structure: Structure, device: Device) -> OpenDirections:
        """Arrays on a device."""
        projector = open_projector(structure)
        positions = structure.positions @ projector if structure.periodic else structure.positions
        return cls(structure, asarray_like(projector, device.like), asarray_like(positions, device.like))

    @property
    def any(self) -> bool:
        """Whether there are such directions."""
        return not self.structure.pbc.all()

    def project(self, vector: Array) -> Array | None:
        """The part of a vector (3,) along them; ``None`` if there are none."""
        if not self.structure.periodic:
            return vector
        return self.projector @ vector if self.any else None


@dataclass(frozen=True, eq=False)
class FreeFlow:
    """QEq: charge moves over any distance at no cost, within each constraint.

    Attributes
    ----------
    open : OpenDirections
    constraint : (N,) int array
        Number of the constraint that each atom belongs to, on the host.
    """

    open: OpenDirections
    constraint: IntArray

    @classmethod
    def build(cls, structure: Structure, constraint: IntArray, device: Device) -> Self:
        """Add what follows from the geometry."""
        return cls(OpenDirections.build(structure, device), constraint)

    def core(self, hessian: Array) -> Core:
        """Factor; slabs may be indefinite across the constraints."""
        member = asarray_like(membership(self.constraint), hessian)
        structure = self.open.structure
        return ConstrainedCore.build(
            hessian, member, shift=structure.periodic and bool(structure.pbc.sum() == 2)
        )

    def iterative_solver(self, provider: Electrostatics, on_site: OnSite, accuracy: float) -> IterativeSolver:
        """Projected conjugate gradients."""
        return IterativeSolver.constrained(provider, on_site.diagonal(), self.constraint, accuracy)

    @property
    def has_dipole(self) -> bool:
        """Along open directions."""
        return self.open.any

    def defined_dipole(self, dipole: Array, reference: Array) -> Array | None:
        """Those along open directions."""
        return self.open.project(dipole)

    def check_field(self, field: FloatArray, reference: Array) -> None:
        """Refuse fields along periodic directions."""
        along = periodic_part(self.open.structure, field)
        if along is not None:
            refuse_periodic_field(self.open.structure, field, along, *NO_POLARIZATION)

    def admitted(self, vectors: Array) -> Array:
        """Parts along open directions."""
        return self.open.projector @ vectors if self.open.structure.periodic else vectors

    def drive(self, linear: Array, source: Array | None, field: Array) -> tuple[Array, Array | None]:
        """φ = −field · r."""
        linear[: len(self.open.structure), :] -= self.open.positions @ field
        return linear, source

    def moment(
        self, charges: Array, potentials: Array, reference: Array | None, field: Array | None
    ) -> Array:
        """Σ q r."""
        return self.open.positions.T @ charges

    def reference_gradient(self, potentials: Array, field: Array) -> Array:
        """−u; the field's potential is in u."""
        return -potentials

    def reference_gradient_response(self, potentials: Array, field: Array | None) -> Array:
        """−∂u."""
        return -potentials

    def drops(self, potentials: Array, field: Array | None) -> None:
        """None: nothing follows from drops."""

    def unknowns(self, unknowns: Array, potentials: Array) -> Array:
        """Z alone."""
        return unknowns

    def energy(self, drops: Array) -> float:
        """Nothing."""
        return 0.0

    def gradient(self, drops: Array) -> float:
        """Nothing."""
        return 0.0

    def strain(self, drops: Array) -> float:
        """Nothing."""
        return 0.0

    def gradient_response(self, drops: Array, moved: Array, sites: SiteChange | None) -> float:
        """Nothing."""
        return 0.0

    def strain_response(self, drops: Array, moved: Array, sites: SiteChange | None) -> float:
        """Nothing."""
        return 0.0

    def softness_gradient(self, drops: Array) -> None:
        """None: there is no softness."""

    def pair_gradient(self, drops: Array) -> None:
        """None: there is no softness."""

    def softness_gradient_response(self, drops: Array, moved: Array, sites: SiteChange | None) -> None:
        """None: there is no softness."""

    def softness_flows(self, drops: Array, sites: SiteChange) -> None:
        """None: there is no softness."""

    def polarizability_response(self, moved: Array, sites: SiteChange) -> float:
        """Nothing."""
        return 0.0

    def moved_drops(self, response: Response) -> None:
        """None: nothing follows from drops."""


@dataclass(frozen=True, eq=False)
class NoFlow(FreeFlow):
    """Latent charges: every charge is its reference charge."""

    def core(self, hessian: Array) -> FixedCore:
        """Nothing to factor."""
        return FixedCore()

    def iterative_solver(self, provider: Electrostatics, on_site: OnSite, accuracy: float) -> IterativeSolver:
        """Conjugate gradients in the atomic dipoles, if there are any."""
        return IterativeSolver.fixed(
            provider, on_site.diagonal(), len(self.open.structure), on_site.dipole_stiffness(), accuracy
        )


@dataclass(frozen=True, eq=False)
class BondFlow:
    """ACKS2: charge flows along bonds of finite softness.

    Attributes
    ----------
    open : OpenDirections
    bonds : Bonds
    softness : (N,) array
        κ of the atoms, e²/eV.
    field_charges : (N, 3) array
        W_i = Σ_j k_ij r_ij: minus the charge that a field brings to atom i.
    factors : (K,) array, optional
        Of the softness, by pair of elements.
    """

    open: OpenDirections
    bonds: Bonds
    softness: Array
    field_charges: Array
    factors: Array | None = None

    @classmethod
    def build(
        cls,
        structure: Structure,
        softness: Array,
        decay: float,
        cutoff: float,
        device: Device,
        factors: Array | None = None,
    ) -> BondFlow:
        """Find the bonds; see :meth:`kqeq.charges.softness.Bonds.build`."""
        bonds = Bonds.build(structure, softness, decay, cutoff, device, factors)
        return cls(OpenDirections.build(structure, device), bonds, softness, bonds.field_charges(), factors)

    def core(self, hessian: Array) -> SplitChargeCore:
        """Factor; slabs may be indefinite on 1, along which nothing flows."""
        large = self.bonds.atoms > DENSE_LAPLACIAN
        return SplitChargeCore.build(
            hessian,
            self.bonds.laplacian() if large else self.bonds.laplacian_array(),
            shift=bool(self.open.structure.pbc.sum() == 2),
        )

    def iterative_solver(self, provider: Electrostatics, on_site: OnSite, accuracy: float) -> IterativeSolver:
        """Conjugate gradients in the potentials."""
        return IterativeSolver.split(
            provider,
            on_site.diagonal(),
            self.bonds.laplacian(),
            self.bonds.components(),
            on_site.dipole_stiffness(),
            accuracy,
        )

    @property
    def has_dipole(self) -> bool:
        """Always: the response of the flows is the same for every choice of images."""
        return True

    def defined_dipole(self, dipole: Array, reference: Array) -> Array | None:
        """All without reference charges, else those in which Σ q0 r is defined."""
        if not self.open.structure.periodic or is_neutral(reference):
            return dipole
        return self.open.project(dipole)

    def check_field(self, field: FloatArray, reference: Array) -> None:
        """Refuse fields along periodic directions that act on reference charges."""
        along = periodic_part(self.open.structure, field)
        if along is not None and not is_neutral(reference):
            refuse_periodic_field(self.open.structure, field, along, *CHARGED_REFERENCE)

    def admitted(self, vectors: Array) -> Array:
        """All of them."""
        return vectors

    def drive(self, linear: Array, source: Array | None, field: Array) -> tuple[Array, Array | None]:
        """Flows −W field; the potentials leave the field out."""
        moved = -self.field_charges @ field
        return linear, moved if source is None else source + moved

    def moment(
        self, charges: Array, potentials: Array, reference: Array | None, field: Array | None
    ) -> Array:
        """−Wᵀu, with Σ q0 r and the flows that the field itself drives."""
        result = -self.field_charges.T @ potentials
        if reference is not None:
            result += self.open.positions.T @ reference
        if field is not None:
            result += self.bonds.stiffness() @ field
        return result

    def reference_gradient(self, potentials: Array, field: Array) -> Array:
        """−u − field · r."""
        return -potentials - self.open.positions @ field

    def reference_gradient_response(self, potentials: Array, field: Array | None) -> Array:
        """−∂u − ∂field · r."""
        return -potentials if field is None else -potentials - self.open.positions @ field

    def drops(self, potentials: Array, field: Array | None) -> Array:
        """u_i − u_j − field · r_ij."""
        return self.bonds.drops(potentials, field)

    def unknowns(self, unknowns: Array, potentials: Array) -> Array:
        """Z and u."""
        return namespace(unknowns).concat([unknowns, potentials])

    def moved_drops(self, response: Response) -> Array:
        """From the potentials at the end of the unknowns."""
        return self.bonds.drops(response.unknowns[-self.bonds.atoms :, :], response.field)

    def energy(self, drops: Array) -> Array:
        """¼ Σ k Δ²: every bond appears in both directions."""
        return 0.25 * (self.bonds.softness @ drops**2)

    def gradient(self, drops: Array) -> Array:
        """−½ Σ Δ² ∂k/∂r."""
        return self.bonds.position_gradient(self._weights(drops)[:, None])[:, :, 0]

    def strain(self, drops: Array) -> Array:
        """−½ Σ Δ² ∂k/∂ε."""
        return self.bonds.strain_gradient(self._weights(drops)[:, None])[:, :, 0]

    def gradient_response(self, drops: Array, moved: Array, sites: SiteChange | None) -> Array:
        """Change of −½ Σ Δ² ∂k/∂r."""
        return self.bonds.position_gradient(self._weights_response(drops, moved, sites))

    def strain_response(self, drops: Array, moved: Array, sites: SiteChange | None) -> Array:
        """Change of −½ Σ Δ² ∂k/∂ε."""
        return self.bonds.strain_gradient(self._weights_response(drops, moved, sites))

    def softness_gradient(self, drops: Array) -> Array:
        """−¼ Σ_j k_ij Δ_ij²/κ_i."""
        collected = self.bonds.collect((self.bonds.softness * drops**2)[:, None])[:, 0]
        return -0.25 * collected * inverse_or_zero(self.softness)

    def softness_gradient_response(self, drops: Array, moved: Array, sites: SiteChange | None) -> Array:
        """−¼ ∂(Σ k Δ²)/κ + ¼ Σ k Δ² ∂κ/κ²."""
        cost = self.bonds.softness * drops**2
        terms = (2.0 * self.bonds.softness * drops)[:, None] * moved
        inverse = inverse_or_zero(self.softness)[:, None]
        if sites is not None and sites.moves_bonds:
            terms += cost[:, None] * self._relative(sites)
        result = -0.25 * self.bonds.collect(terms) * inverse
        if sites is None or sites.softness is None:
            return result
        return result + 0.25 * self.bonds.collect(cost[:, None]) * sites.softness * inverse**2

    def pair_gradient(self, drops: Array) -> Array | None:
        """−¼ Σ k Δ²/f over the bonds of each pair of elements."""
        if self.factors is None or self.bonds.classes is None:
            return None
        count = int(self.factors.shape[0])
        collected = segment_sum(self.bonds.softness * drops**2, self.bonds.classes, count)
        return -0.25 * collected * inverse_or_zero(self.factors)

    def softness_flows(self, drops: Array, sites: SiteChange) -> tuple[Array, Array] | None:
        """Σ ∂k Δ at each atom, and −½ Σ ∂k Δ r."""
        if not sites.moves_bonds:
            return None
        flows = self._softness_change(sites) * drops[:, None]
        return self.bonds.collect(flows), -0.5 * self.bonds.vectors.T @ flows

    def polarizability_response(self, moved: Array, sites: SiteChange) -> Array:
        """½ Σ ∂k Δ Δᵀ."""
        if not sites.moves_bonds:
            return 0.0
        return weighted_squares(moved, 0.5 * self._softness_change(sites))

    # ------------------------------------------------------------------ pieces

    def _weights(self, drops: Array) -> Array:
        """−½ Δ² ∂k/∂r, (P,)."""
        return -0.5 * self.bonds.slope * drops**2

    def _weights_response(self, drops: Array, moved: Array, sites: SiteChange | None) -> Array:
        """Its change, (P, c)."""
        result = -(self.bonds.slope * drops)[:, None] * moved
        if sites is not None and sites.moves_bonds:
            result += self._weights(drops)[:, None] * self._relative(sites)
        return result

    def _softness_change(self, sites: SiteChange) -> Array:
        """∂k of every bond, (P, c)."""
        return self.bonds.softness[:, None] * self._relative(sites)

    def _relative(self, sites: SiteChange) -> Array:
        """∂ ln k of every bond, (P, c): half the sum of both atoms' ∂ ln κ, and that of the factor of the pair."""
        result: Array = 0.0
        if sites.softness is not None:
            xp = namespace(sites.softness)
            own = sites.softness * inverse_or_zero(self.softness)[:, None]
            result = 0.5 * (xp.take(own, self.bonds.i, axis=0) + xp.take(own, self.bonds.j, axis=0))
        if sites.pair_softness is not None:
            assert self.factors is not None and self.bonds.classes is not None
            own = sites.pair_softness * inverse_or_zero(self.factors)[:, None]
            result = result + namespace(own).take(own, self.bonds.classes, axis=0)
        return result


def is_neutral(reference: Array) -> bool:
    """Whether all reference charges vanish: then the dipole of periodic cells is defined."""
    xp = namespace(reference)
    return to_float(xp.max(xp.abs(reference))) <= 1e-8


def weighted_squares(vectors: Array, weights: Array) -> Array:
    """Σ_i w_ic v_ia v_ib, (m, m, c), from (N, m) vectors and (N, c) weights."""
    return (vectors.T[:, None, :] * vectors.T[None, :, :]) @ weights


__all__ = ["BondFlow", "Flow", "FreeFlow", "NoFlow", "OpenDirections", "is_neutral", "weighted_squares"]
