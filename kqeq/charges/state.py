"""The solution of a charge problem: energy, charges, dipoles and derivatives at fixed unknowns.

Dimensions: N atoms, n = N or 4N unknowns z, c columns, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kqeq.backend import inverse_or_zero, namespace, to_float
from kqeq.charges.base import Response, SiteChange, SiteParameters
from kqeq.charges.cores import self_interaction_slope
from kqeq.charges.widths import width_gradients
from kqeq.typing import Array

if TYPE_CHECKING:
    from kqeq.charges.equilibrium import Equilibrium


@dataclass(frozen=True, eq=False)
class EquilibriumState:
    """Charges at given electronegativities, field and total charge; see :class:`kqeq.charges.base.ChargeState`.

    Attributes
    ----------
    system : Equilibrium
    external_field : (3,) array
        V/Å.
    chi : (N,) array
        Electronegativities with the external potential, eV/e.
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
        """(χ + V)ᵀq + ½ zᵀHz + ½ Σ p²/k − field · μ, eV."""
        z = self.unknowns
        energy = self.charges @ self.chi + 0.5 * (z @ self.system.solver.product(z))
        energy -= self.external_field @ self._moment()
        if self.system.links is not None:
            energy += 0.25 * (self.system.links.softness @ self._drops() ** 2)
        return to_float(energy)

    @property
    def dipole(self) -> Array | None:
        """−∂E/∂field; see :class:`~kqeq.charges.base.ChargeState`."""
        system = self.system
        if not system.structure.periodic:
            return self._moment()
        if system.links is not None and system.is_neutral(self.reference):
            return self._moment()
        if system.structure.pbc.all():
            return None
        return system.open_directions @ self._moment()

    @property
    def chemical_potential(self) -> float:
        """∂E/∂Q, added charge shared evenly."""
        gradient = self.reference_gradient()
        return to_float(namespace(gradient).mean(gradient))

    def reference_gradient(self) -> Array:
        """∂E/∂q0_i = −u_i, with the field's potential."""
        if self.system.links is None:
            return -self.potentials
        return -self.potentials - self.system.open_positions @ self.external_field

    def electronegativity_gradient(self) -> Array:
        """∂E/∂χ = q."""
        return self.charges

    def site_gradient(self) -> SiteParameters:
        """½ q², ½ zᵀ(∂A/∂σ)z, −½ d²/α² and −½ Σ Δ² ∂k/∂κ."""
        system, atoms = self.system, len(self.system.structure)
        xp = namespace(self.unknowns)
        sigma = system.sites.width
        # with dσ = 1/(2σ) the product is Gz with ∂A_ij = (σ_i dσ_i + σ_j dσ_j) G_ij
        product = self.unknowns * system.provider.width_derivative(self.unknowns, 0.5 / sigma)
        width = product[:atoms]
        polarizability = softness = None
        dipoles = self.atomic_dipoles
        if dipoles is not None and system.sites.polarizability is not None:
            width = width + xp.sum(xp.reshape(product[atoms:], (atoms, 3)), axis=1)
            square = xp.sum(dipoles**2, axis=1)
            polarizability = -0.5 * square / system.sites.polarizability**2
        width = width * sigma
        if dipoles is not None and not system.damped:
            width = width - 0.5 * xp.sum(dipoles**2, axis=1) * self_interaction_slope(sigma)
        if system.links is not None and system.sites.softness is not None:
            pairs = system.links.collect((system.links.softness * self._drops() ** 2)[:, None])[:, 0]
            softness = -0.25 * pairs * inverse_or_zero(system.sites.softness)
        return SiteParameters(0.5 * self.charges**2, width, polarizability, softness)

    def site_gradient_response(self, response: Response) -> SiteChange:
        """Changes q ∂q, −d ∂d/α² + d² ∂α/α³ and −¼ ∂(Σ k Δ²)/κ + ¼ Σ k Δ² ∂κ/κ²; see the protocol."""
        xp = namespace(self.unknowns)
        system, atoms = self.system, len(self.system.structure)
        sites = SiteChange() if response.sites is None else response.sites
        polarizability = softness = None
        dipoles, alpha = self.atomic_dipoles, system.sites.polarizability
        if dipoles is not None and alpha is not None:
            change = xp.reshape(response.unknowns[atoms : system.size, :], (atoms, 3, -1))
            polarizability = -xp.sum(dipoles[:, :, None] * change, axis=1) / alpha[:, None] ** 2
            if sites.polarizability is not None:
                square = xp.sum(dipoles**2, axis=1)
                polarizability += (square / alpha**3)[:, None] * sites.polarizability
        links, kappa = system.links, system.sites.softness
        if links is not None and kappa is not None:
            drops = self._drops()
            moved = links.drops(response.unknowns[system.size :, :], response.field)
            terms = (2.0 * links.softness * drops)[:, None] * moved
            if sites.softness is not None:
                terms += (links.softness * drops**2)[:, None] * system.relative_softness(sites.softness)
            inverse = inverse_or_zero(kappa)[:, None]
            softness = -0.25 * links.collect(terms) * inverse
            if sites.softness is not None:
                total = links.collect((links.softness * drops**2)[:, None])
                softness += 0.25 * total * sites.softness * inverse**2
        return SiteChange(
            hardness=self.charges[:, None] * response.charges,
            polarizability=polarizability,
            softness=softness,
        )

    # ------------------------------------------------------------------ derivatives at fixed unknowns

    def gradient(self) -> Array:
        """½ zᵀ(∂A/∂r)z − q field − ½ Σ Δ² ∂k/∂r, (N, 3)."""
        system, z = self.system, self.unknowns
        result = 0.5 * system.provider.bilinear_gradient(z, z[:, None])[:, :, 0]
        result -= self.charges[:, None] * self.external_field[None, :]
        if system.links is not None:
            result += system.links.pull(self._flow_weights()[:, None])[:, :, 0]
        return result

    def strain(self) -> Array:
        """½ zᵀ(∂A/∂ε)z − μ_q ⊗ field − ½ Σ Δ² ∂k/∂ε, (3, 3)."""
        system, z = self.system, self.unknowns
        result = 0.5 * system.provider.bilinear_strain(z, z[:, None])[:, :, 0]
        result -= self._charge_moment()[:, None] * self.external_field[None, :]
        if system.links is not None:
            result += system.links.stretch(self._flow_weights()[:, None])[:, :, 0]
        return result

    def respond_sites(self, change: SiteChange) -> Response:
        """∂y = −R_y (∂H) y, and what changes of softness add."""
        system = self.system
        linear = system.hessian_change(change, self.unknowns[:, None])[:, 0, :]
        if system.links is None or change.softness is None:
            return system.answer(linear, sites=change)
        # flows that come with the softness itself, at fixed potentials
        flows = system.softness_change(change.softness) * self._drops()[:, None]
        response = system.answer(linear, source=system.links.collect(flows), sites=change)
        assert response.dipole is not None
        return replace(response, dipole=response.dipole - 0.5 * system.links.vectors.T @ flows)

    def gradient_response(self, response: Response) -> Array:
        """Change of :meth:`gradient`, (N, 3, c)."""
        system = self.system
        dz = response.unknowns[: self.system.size, :]
        result = system.provider.bilinear_gradient(self.unknowns, dz)
        result -= response.charges[:, None, :] * self.external_field[None, :, None]
        if response.field is not None:
            result -= self.charges[:, None, None] * response.field[None, :, :]
        weights = self._flow_weight_response(response)
        if weights is not None and system.links is not None:
            result += system.links.pull(weights)
        if response.sites is not None and response.sites.width is not None:
            result += self._width_gradients(response.sites.width)[0]
        return result

    def strain_response(self, response: Response) -> Array:
        """Change of :meth:`strain`, (3, 3, c)."""
        system = self.system
        dz = response.unknowns[: self.system.size, :]
        result = system.provider.bilinear_strain(self.unknowns, dz)
        if response.dipole is not None:
            moment = response.dipole
            if system.has_atomic_dipoles:
                moment = moment - system.dipole_sum(response.unknowns)
            result -= moment[:, None, :] * self.external_field[None, :, None]
        if response.field is not None:
            result -= self._charge_moment()[:, None, None] * response.field[None, :, :]
        weights = self._flow_weight_response(response)
        if weights is not None and system.links is not None:
            result += system.links.stretch(weights)
        if response.sites is not None and response.sites.width is not None:
            result += self._width_gradients(response.sites.width)[1]
        return result

    # ------------------------------------------------------------------ pieces

    def _drops(self) -> Array:
        """Drop of potential along each pair, (P,)."""
        assert self.system.links is not None
        return self.system.links.drops(self.potentials[:, None], self.external_field[:, None])[:, 0]

    def _charge_moment(self) -> Array:
        """Dipole of the charges without regard to whether it is defined, (3,)."""
        return self.system.charge_moment(
            self.charges[:, None],
            self.potentials[:, None],
            self.reference[:, None],
            self.external_field[:, None],
        )[:, 0]

    def _moment(self) -> Array:
        """Dipole of charges and atomic dipoles, (3,)."""
        moment = self._charge_moment()
        if not self.system.has_atomic_dipoles:
            return moment
        return moment + self.system.dipole_sum(self.unknowns[:, None])[:, 0]

    def _flow_weights(self) -> Array:
        """−½ Δ² ∂k/∂r, (P,)."""
        assert self.system.links is not None
        return -0.5 * self.system.links.slope * self._drops() ** 2

    def _flow_weight_response(self, response: Response) -> Array | None:
        """Its change, (P, c)."""
        links = self.system.links
        if links is None:
            return None
        drops = self._drops()
        change = links.drops(response.unknowns[self.system.size :, :], response.field)
        result = -(links.slope * drops)[:, None] * change
        if response.sites is not None and response.sites.softness is not None:
            result += self._flow_weights()[:, None] * self.system.relative_softness(response.sites.softness)
        return result

    def _width_gradients(self, change: Array) -> tuple[Array, Array]:
        return width_gradients(self.system.structure, self.system.sites.width, self.unknowns, change)


__all__ = ["EquilibriumState"]
