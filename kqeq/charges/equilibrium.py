"""The charge problem of one geometry and its solution, for every model: charges, perhaps dipoles, perhaps flows.

    E = (χ + V)ᵀq + ½ zᵀHz + ½ Σ_bonds p²/k − field · μ,      z = q, or (q, d) with atomic dipoles

H holds the Coulomb interaction and what atoms add by themselves (:mod:`kqeq.charges.on_site`).  How charge moves, and
where the field enters, is the flow's (:mod:`kqeq.charges.flow`).  Stationarity leaves q = X q0 − R b
(:mod:`kqeq.charges.cores`), with dipoles eliminated, and potentials u = −∂E/∂q of the atoms.

Where the kernel model says reference charges, these are what each atom prefers: the diagonal a = η + k_e/(√π σ) of H
costs ½ a (q − q0)² instead of ½ a q².  Then b gains −a q0, and without any flow only the interaction between atoms is
left.

Dimensions: N atoms, n = N or 4N unknowns z, c columns, P directed pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from kqeq.backend import Device, asarray_like, eye, full, namespace, to_float, to_numpy, zeros
from kqeq.backend.linalg import described
from kqeq.charges.base import Response, SiteChange, SiteParameters
from kqeq.charges.embedding import Embedding
from kqeq.charges.flow import Flow, weighted_squares
from kqeq.charges.on_site import OnSite, self_interaction_slope
from kqeq.charges.site_values import CHARGE, SiteValues
from kqeq.charges.solvers import Solver
from kqeq.charges.widths import width_gradients
from kqeq.constants import COULOMB
from kqeq.electrostatics.base import Electrostatics
from kqeq.frames.structures import Structure
from kqeq.typing import Array, FloatArray


@dataclass(frozen=True, eq=False)
class Equilibrium:
    """A charge model bound to one geometry; see :class:`kqeq.charges.base.ChargeSystem`.

    Attributes
    ----------
    name : str
        Of the matrix, for messages.
    structure : Structure
    provider : Electrostatics
    on_site : OnSite
    flow : Flow
    solver : Solver
        H, and the way to stationary points.
    reference : (N,) array
        q0 at the total charge of the structure, e.
    values : SiteValues
        What the kernel model's number for each atom is.
    device : Device
        Where all arrays but those of ``structure`` live.
    embedding : Embedding, optional
        Charges outside the structure.
    """

    name: str
    structure: Structure
    provider: Electrostatics
    on_site: OnSite
    flow: Flow
    solver: Solver
    reference: Array
    values: SiteValues
    device: Device
    embedding: Embedding | None = None

    # ------------------------------------------------------------------ solution

    def solve(self, chi: Array, external_field: FloatArray, total_charge: float) -> EquilibriumState:
        """Charges for given electronegativities (or charges v), field (on the host) and total charge.

        A total charge other than the structure's changes all reference charges by the same amount.

        Raises
        ------
        UnsupportedError
            For a field that the boundary conditions do not define.
        """
        atoms = len(self.structure)
        reference = self.reference + float(total_charge - self.structure.total_charge) / atoms
        self.flow.check_field(external_field, reference)
        field = self.flow.admitted(asarray_like(external_field, self.device.like))
        block = chi[:, None]
        added, moved = self.values.potentials(block), self.values.references(block)
        if moved is not None:
            reference = reference + moved[:, 0]
        chi = zeros(atoms, block) if added is None else added[:, 0]
        potential = self.structure.external_potential
        chi = chi if potential is None else chi + asarray_like(potential, self.device.like)
        linear = zeros((self.size, 1), chi)
        linear[:atoms, 0] = chi
        if self.anchor is not None:
            linear[:atoms, 0] -= self.anchor * reference
        if self.embedding is not None:
            linear[:, 0] += self.embedding.linear
        driven = field[:, None] if external_field.any() else None
        unknowns, potentials = self._stationary(linear, reference[:, None], driven)
        return EquilibriumState(self, field, chi, reference, unknowns[:, 0], potentials[:, 0])

    def _stationary(self, linear: Array, source: Array | None, field: Array | None) -> tuple[Array, Array]:
        """Unknowns (n, c) and potentials (N, c) for b (n, c), reference charges (N, c) and fields (3, c).

        The potentials include φ where the field enters by it.
        """
        if field is not None:
            atoms, xp = len(self.structure), namespace(linear)
            linear, source = self.flow.drive(xp.asarray(linear, copy=True), source, field)
            if self.has_atomic_dipoles:
                linear[atoms:, :] -= xp.tile(field, (atoms, 1))
        with described(self.name, self.on_site.remedy):
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
        if field is not None:
            field = self.flow.admitted(field)
        if reference is not None:
            source = reference if source is None else source + reference
            if self.anchor is not None:
                linear = namespace(linear).asarray(linear, copy=True)
                linear[: len(self.structure), :] -= self.anchor[:, None] * reference
        unknowns, potentials = self._stationary(linear, source, field)
        charges = unknowns[: len(self.structure), :]
        dipole = self.flow.moment(charges, potentials, reference, field)
        if self.has_atomic_dipoles:
            dipole = dipole + self.dipole_sum(unknowns)
        unknowns = self.flow.unknowns(unknowns, potentials)
        defined = dipole if self.flow.has_dipole else None
        return Response(unknowns, charges, defined, field, sites, potentials, reference)

    def respond(self, dchi: Array) -> Response:
        """∂q = −R ∂χ, or X ∂q0, and what follows."""
        added, moved = self.values.potentials(dchi), self.values.references(dchi)
        linear = zeros((self.size, dchi.shape[1]), dchi)
        if added is not None:
            linear[: len(self.structure), :] = added
        return self.answer(linear, reference=moved)

    def respond_potential(self, potential: Array) -> Response:
        """∂q = −R ∂φ and what follows."""
        linear = zeros((self.size, potential.shape[1]), potential)
        linear[: len(self.structure), :] = potential
        return self.answer(linear)

    def respond_field(self) -> Response:
        """Response to the three components of the field."""
        like = self.device.like
        return self.answer(zeros((self.size, 3), like), field=eye(3, like))

    def respond_total_charge(self) -> Response:
        """Response to the total charge, added evenly to the reference charges."""
        return self._total_charge_response

    @cached_property
    def _total_charge_response(self) -> Response:
        atoms, like = len(self.structure), self.device.like
        return self.answer(zeros((self.size, 1), like), reference=full((atoms, 1), 1.0 / atoms, like))

    def polarizability(self) -> Array | None:
        """∂μ/∂field; ``None`` where no component of the dipole is defined."""
        if not self.flow.has_dipole:
            return None
        alpha = self.respond_field().dipole
        return None if alpha is None else 0.5 * (alpha + alpha.T)

    def polarizability_response(self, change: SiteChange) -> Array:
        """−(∂z/∂field)ᵀ ∂H (∂z/∂field) + Σ_bonds ∂k (∂Δ/∂field)(∂Δ/∂field)ᵀ, with the drops Δ of potential."""
        response = self.respond_field()
        moved = self.flow.moved_drops(response)
        curvature = self._curvature_change(change, response.unknowns[: self.size, :])
        return self.flow.polarizability_response(moved, change) - curvature

    def hardness(self) -> float:
        """∂²E/∂Q²."""
        response = self._total_charge_response
        assert response.potentials is not None and response.reference is not None
        change = self.flow.reference_gradient_response(response.potentials, None)
        if self.anchor is not None:
            change = change - self.anchor[:, None] * (response.charges - response.reference)
        return to_float(namespace(change).mean(change))

    # ------------------------------------------------------------------ changes of H

    def hessian_change(self, change: SiteChange, vectors: Array) -> Array:
        """(∂H) @ vectors for each of c changes of the site parameters: (n, m) to (n, m, c)."""
        result = zeros((*vectors.shape, change.columns), vectors)
        for rows, values in self.on_site.change(change, vectors):
            result[rows, :, :] += vectors[rows, :, None] * values[:, None, :]
        for c, product in self._width_changes(change, vectors):
            result[:, :, c] += product
        return result

    def _curvature_change(self, change: SiteChange, vectors: Array) -> Array:
        """vectorsᵀ ∂H vectors for each of c changes, (m, m, c): what is diagonal in H needs no (n, m, c) array."""
        columns = int(vectors.shape[1])
        result = zeros((columns, columns, change.columns), vectors)
        for rows, values in self.on_site.change(change, vectors):
            result += weighted_squares(vectors[rows, :], values)
        for c, product in self._width_changes(change, vectors):
            result[:, :, c] += vectors.T @ product
        return result

    def _width_changes(self, change: SiteChange, vectors: Array) -> Iterator[tuple[int, Array]]:
        """(∂A) @ vectors of every column that changes a width, (n, m)."""
        if change.width is None:
            return
        xp = namespace(vectors)
        moving = to_numpy(xp.any(change.width != 0.0, axis=0))
        for c in np.flatnonzero(moving):
            width = xp.asarray(change.width[:, int(c)], copy=True)
            columns = [
                self.provider.width_derivative(xp.asarray(vectors[:, m], copy=True), width)
                for m in range(int(vectors.shape[1]))
            ]
            yield int(c), xp.stack(columns, axis=1)

    # ------------------------------------------------------------------ pieces

    @property
    def sites(self) -> SiteParameters:
        """Hardness and so on of the atoms."""
        return self.on_site.sites

    @cached_property
    def anchor(self) -> Array | None:
        """What holds the charge of an atom at its reference charge, η + k_e/(√π σ), (N,), where that is learned."""
        if self.values.quantity != CHARGE:
            return None
        return self.sites.hardness + COULOMB / math.sqrt(math.pi) / self.sites.width

    def anchor_change(self, change: SiteChange) -> Array | None:
        """Its change with the site parameters, (N, c); ``None`` if there is none."""
        if self.anchor is None:
            return None
        result = None if change.hardness is None else change.hardness
        if change.width is not None:
            own = change.width * self.anchor_slope[:, None]
            result = own if result is None else result + own
        return result

    @property
    def anchor_slope(self) -> Array:
        """∂/∂σ of k_e/(√π σ), (N,)."""
        return -COULOMB / math.sqrt(math.pi) / self.sites.width**2

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
        return self.on_site.has_dipoles

    def dipole_sum(self, unknowns: Array) -> Array:
        """Sum of the atomic dipoles in (n, c) unknowns along the directions that are defined, (3, c)."""
        atoms = len(self.structure)
        xp = namespace(unknowns)
        return self.flow.admitted(xp.sum(xp.reshape(unknowns[atoms : self.size, :], (atoms, 3, -1)), axis=0))


@dataclass(frozen=True, eq=False)
class EquilibriumState:
    """Charges at given electronegativities, field and total charge; see :class:`kqeq.charges.base.ChargeState`.

    Attributes
    ----------
    system : Equilibrium
    external_field : (3,) array
        V/Å.
    chi : (N,) array
        Electronegativities, if these are what the kernel model says, with the external potential, eV/e.
    reference : (N,) array
        Charges that the atoms start from, e.
    unknowns : (n,) array
        z.
    potentials : (N,) array
        u, eV/e.
    """

    system: Equilibrium
    external_field: Array
    chi: Array
    reference: Array
    unknowns: Array
    potentials: Array

    # ------------------------------------------------------------------ values

    @property
    def charges(self) -> Array:
        """Charges, (N,)."""
        return self.unknowns[: len(self.system.structure)]

    @property
    def atomic_dipoles(self) -> Array | None:
        """Dipoles, (N, 3), of models that have them."""
        if not self.system.has_atomic_dipoles:
            return None
        return namespace(self.unknowns).reshape(self.unknowns[len(self.system.structure) :], (-1, 3))

    @property
    def energy(self) -> float:
        """(χ + V)ᵀq + ½ zᵀHz + ½ Σ p²/k − field · μ, with the interaction with external charges, eV."""
        z = self.unknowns
        energy = self.charges @ self.chi + 0.5 * (z @ self.system.solver.product(z))
        energy -= self.external_field @ self._moment
        if self.system.anchor is not None:
            energy += self.system.anchor @ ((0.5 * self.reference - self.charges) * self.reference)
        if self.system.embedding is not None:
            energy += self.system.embedding.linear @ z
        return to_float(energy + self.system.flow.energy(self._drops))

    @property
    def dipole(self) -> Array | None:
        """−∂E/∂field; see :class:`~kqeq.charges.base.ChargeState`."""
        return self.system.flow.defined_dipole(self._moment, self.reference)

    @property
    def chemical_potential(self) -> float:
        """∂E/∂Q, added charge shared evenly."""
        gradient = self.reference_gradient()
        return to_float(namespace(gradient).mean(gradient))

    def reference_gradient(self) -> Array:
        """∂E/∂q0_i = −u_i, with the field's potential and what holds the charge at q0."""
        own = self.system.flow.reference_gradient(self.potentials, self.external_field)
        return own if self.system.anchor is None else own - self.system.anchor * self._displaced

    @property
    def _displaced(self) -> Array:
        """What has flowed to the atoms, q − q0, (N,)."""
        return self.charges - self.reference

    def electronegativity_gradient(self) -> Array:
        """∂E/∂χ = q, or ∂E/∂v = ∂E/∂q0 without means."""
        own, reference = self.charges[:, None], self.reference_gradient()[:, None]
        return self.system.values.gradient(own, reference)[:, 0]

    def electronegativity_gradient_response(self, response: Response) -> Array:
        """Its change, (N, c)."""
        assert response.potentials is not None
        change = self.system.flow.reference_gradient_response(response.potentials, response.field)
        if self.system.anchor is not None:
            change = change - self.system.anchor[:, None] * self._displaced_response(response)
            moved = None if response.sites is None else self.system.anchor_change(response.sites)
            change = change if moved is None else change - moved * self._displaced[:, None]
        return self.system.values.gradient(response.charges, change)

    def _displaced_response(self, response: Response) -> Array:
        """Change of :attr:`_displaced`, (N, c)."""
        return response.charges if response.reference is None else response.charges - response.reference

    def site_gradient(self) -> SiteParameters:
        """½ q², ½ zᵀ(∂A/∂σ)z, −½ d²/α² and −½ Σ Δ² ∂k/∂κ; with learned reference charges ½ (q − q0)² for the first."""
        system, atoms = self.system, len(self.system.structure)
        xp = namespace(self.unknowns)
        sigma, alpha = system.sites.width, system.sites.polarizability
        # with dσ = 1/(2σ) the product is Gz with ∂A_ij = (σ_i dσ_i + σ_j dσ_j) G_ij
        product = self.unknowns * system.provider.width_derivative(self.unknowns, 0.5 / sigma)
        width = product[:atoms]
        polarizability, dipoles = None, self.atomic_dipoles
        if dipoles is None or alpha is None:
            width = width * sigma
        else:
            width = (width + xp.sum(xp.reshape(product[atoms:], (atoms, 3)), axis=1)) * sigma
            square = xp.sum(dipoles**2, axis=1)
            polarizability = -0.5 * square / alpha**2
            if not system.on_site.damped:
                width = width - 0.5 * square * self_interaction_slope(sigma)
        softness = system.flow.softness_gradient(self._drops)
        stiff = self.charges
        if system.anchor is not None:
            stiff = self._displaced
            width = width + system.anchor_slope * (0.5 * self.reference - self.charges) * self.reference
        pairs = system.flow.pair_gradient(self._drops)
        return SiteParameters(0.5 * stiff**2, width, polarizability, softness, pairs)

    def site_gradient_response(self, response: Response) -> SiteChange:
        """Changes q ∂q, −d ∂d/α² + d² ∂α/α³ and −¼ ∂(Σ k Δ²)/κ + ¼ Σ k Δ² ∂κ/κ²; see the protocol."""
        xp = namespace(self.unknowns)
        system, atoms = self.system, len(self.system.structure)
        polarizability, dipoles, alpha = None, self.atomic_dipoles, system.sites.polarizability
        if dipoles is not None and alpha is not None:
            change = xp.reshape(response.unknowns[atoms : system.size, :], (atoms, 3, -1))
            polarizability = -xp.sum(dipoles[:, :, None] * change, axis=1) / alpha[:, None] ** 2
            if response.sites is not None and response.sites.polarizability is not None:
                square = xp.sum(dipoles**2, axis=1)
                polarizability += (square / alpha**3)[:, None] * response.sites.polarizability
        if system.anchor is None:
            hardness = self.charges[:, None] * response.charges
        else:
            hardness = self._displaced[:, None] * self._displaced_response(response)
        return SiteChange(
            hardness=hardness,
            polarizability=polarizability,
            softness=system.flow.softness_gradient_response(
                self._drops, system.flow.moved_drops(response), response.sites
            ),
        )

    # ------------------------------------------------------------------ derivatives at fixed unknowns

    def gradient(self) -> Array:
        """½ zᵀ(∂A/∂r)z − q field − ½ Σ Δ² ∂k/∂r, (N, 3)."""
        system, z = self.system, self.unknowns
        result = 0.5 * system.provider.bilinear_gradient(z, z[:, None])[:, :, 0]
        result -= self.charges[:, None] * self.external_field[None, :]
        if system.embedding is not None:
            result += self._outside[0][:, :, 0]
        return result + system.flow.gradient(self._drops)

    def external_gradient(self) -> Array | None:
        """The same by positions of external charges, (M, 3); ``None`` without."""
        return None if self.system.embedding is None else self._outside[1][:, :, 0]

    def external_gradient_response(self, response: Response) -> Array | None:
        """Change of :meth:`external_gradient`, (M, 3, c)."""
        embedding = self.system.embedding
        if embedding is None:
            return None
        return embedding.gradients(response.unknowns[: self.system.size, :])[1]

    def strain(self) -> Array:
        """½ zᵀ(∂A/∂ε)z − μ_q ⊗ field − ½ Σ Δ² ∂k/∂ε, (3, 3)."""
        system, z = self.system, self.unknowns
        result = 0.5 * system.provider.bilinear_strain(z, z[:, None])[:, :, 0]
        result -= self._charge_moment()[:, None] * self.external_field[None, :]
        if system.embedding is not None:
            result += system.embedding.strain(z[:, None])[:, :, 0]
        return result + system.flow.strain(self._drops)

    def respond_sites(self, change: SiteChange) -> Response:
        """∂y = −R_y (∂H) y, and what changes of softness add."""
        system = self.system
        linear = system.hessian_change(change, self.unknowns[:, None])[:, 0, :]
        moved = system.anchor_change(change)
        if moved is not None:
            linear[: len(system.structure), :] -= moved * self.reference[:, None]
        flows = system.flow.softness_flows(self._drops, change)
        if flows is None:
            return system.answer(linear, sites=change)
        # flows that come with the softness itself, at fixed potentials
        charges, dipole = flows
        response = system.answer(linear, source=charges, sites=change)
        assert response.dipole is not None
        return replace(response, dipole=response.dipole + dipole)

    def gradient_response(self, response: Response) -> Array:
        """Change of :meth:`gradient`, (N, 3, c)."""
        system = self.system
        result = system.provider.bilinear_gradient(self.unknowns, response.unknowns[: system.size, :])
        result -= response.charges[:, None, :] * self.external_field[None, :, None]
        if response.field is not None:
            result -= self.charges[:, None, None] * response.field[None, :, :]
        if response.sites is not None and response.sites.width is not None:
            result += self._width_gradients(response.sites.width)[0]
        if system.embedding is not None:
            result += system.embedding.gradients(response.unknowns[: system.size, :])[0]
        return result + system.flow.gradient_response(
            self._drops, system.flow.moved_drops(response), response.sites
        )

    def strain_response(self, response: Response) -> Array:
        """Change of :meth:`strain`, (3, 3, c)."""
        system = self.system
        result = system.provider.bilinear_strain(self.unknowns, response.unknowns[: system.size, :])
        if response.dipole is not None:
            moment = response.dipole
            if system.has_atomic_dipoles:
                moment = moment - system.dipole_sum(response.unknowns)
            result -= moment[:, None, :] * self.external_field[None, :, None]
        if response.field is not None:
            result -= self._charge_moment()[:, None, None] * response.field[None, :, :]
        if response.sites is not None and response.sites.width is not None:
            result += self._width_gradients(response.sites.width)[1]
        if system.embedding is not None:
            result += system.embedding.strain(response.unknowns[: system.size, :])
        return result + system.flow.strain_response(
            self._drops, system.flow.moved_drops(response), response.sites
        )

    def gradient_second_response(self, first: Response, second: Response) -> Array:
        """Change of :meth:`gradient_response` of one column with z and with the drops, (N, 3, c)."""
        system = self.system
        result = system.provider.bilinear_gradient(
            first.unknowns[: system.size, 0], second.unknowns[: system.size, :]
        )
        if first.field is not None:
            result -= second.charges[:, None, :] * first.field[None, :, :]
        moved = system.flow.moved_drops(first)
        own = None if moved is None else moved[:, 0]
        return result + system.flow.gradient_response(own, system.flow.moved_drops(second), None)

    # ------------------------------------------------------------------ pieces

    @cached_property
    def _outside(self) -> tuple[Array, Array]:
        """Derivatives of the interaction with external charges, (N, 3, 1) and (M, 3, 1)."""
        assert self.system.embedding is not None
        return self.system.embedding.gradients(self.unknowns[:, None])

    @cached_property
    def _drops(self) -> Array:
        """Drop of potential along each bond, (P,)."""
        drops = self.system.flow.drops(self.potentials[:, None], self.external_field[:, None])
        return None if drops is None else drops[:, 0]

    def _charge_moment(self) -> Array:
        """Dipole of the charges without regard to whether it is defined, (3,)."""
        return self.system.flow.moment(
            self.charges[:, None],
            self.potentials[:, None],
            self.reference[:, None],
            self.external_field[:, None],
        )[:, 0]

    @cached_property
    def _moment(self) -> Array:
        """Dipole of charges and atomic dipoles, (3,)."""
        moment = self._charge_moment()
        if not self.system.has_atomic_dipoles:
            return moment
        return moment + self.system.dipole_sum(self.unknowns[:, None])[:, 0]

    def _width_gradients(self, change: Array) -> tuple[Array, Array]:
        return width_gradients(self.system.structure, self.system.sites.width, self.unknowns, change)


__all__ = ["Equilibrium", "EquilibriumState"]
