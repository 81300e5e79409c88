"""The charges of a structure inside a potential: what they contribute to energies and derivatives.

With a short-range energy that sees the charges, E = E_el(q) + E_sr(r, q) is not stationary in q.  With g = ∂E_sr/∂q
(theory section 6)

    gᵀ∂q/∂r = Σ_i g_i ∂²E_el/∂r∂χ_i,      −gᵀ∂q/∂field = Σ_i g_i ∂μ/∂χ_i,      gᵀ∂q/∂Q = gᵀs

so the change of gradient and dipole with potentials g at the charges, one response, is all that is needed.  It holds for
charges that are functions of the environment as well: Σ_i g_i ∂q_i/∂v_j is then the change of ∂E_el/∂v_j.

Dimensions: N atoms.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from kqeq.backend import to_float
from kqeq.charges.base import ChargeState, ChargeSystem, Response, SiteParameters
from kqeq.charges.parameters import logarithmic_gradient, logarithmic_gradient_response
from kqeq.kernels.charge_kernel import ChargeCoupling
from kqeq.typing import Array


@dataclass(frozen=True, eq=False)
class Charged:
    """Charges of one structure, and the energy that depends on them.

    Attributes
    ----------
    system, state : ChargeSystem, ChargeState
    sites : SiteParameters
        Hardness and so on of the atoms.
    kinds : tuple of str
        Those that depend on the environment.
    coupling : ChargeCoupling, optional
        A short-range energy that sees the charges.
    """

    system: ChargeSystem
    state: ChargeState
    sites: SiteParameters
    kinds: tuple[str, ...]
    coupling: ChargeCoupling | None = None

    @cached_property
    def response(self) -> Response | None:
        """Response to potentials g; ``None`` where nothing but the charge model sees the charges."""
        return None if self.coupling is None else self.system.respond_potential(self.coupling.slope[:, None])

    def electronegativity_gradient(self) -> Array:
        """∂E/∂χ_i, (N,)."""
        own = self.state.electronegativity_gradient()
        if self.response is None:
            return own
        return own + self.state.electronegativity_gradient_response(self.response)[:, 0]

    def site_gradients(self) -> dict[str, Array]:
        """∂E/∂ln θ_i of the parameters that depend on the environment, (N,) each."""
        own = logarithmic_gradient(self.state, self.sites, self.kinds)
        if self.response is None:
            return own
        change = logarithmic_gradient_response(self.state, self.sites, self.kinds, self.response)
        return {kind: values + change[kind][:, 0] for kind, values in own.items()}

    def gradient(self) -> Array:
        """∂E/∂r at fixed electronegativities, site parameters and environments of the atoms, (N, 3)."""
        own = self.state.gradient()
        return own if self.response is None else own + self.state.gradient_response(self.response)[:, :, 0]

    def external_gradient(self) -> Array | None:
        """∂E/∂(positions of external charges), (M, 3); ``None`` without such charges."""
        own = self.state.external_gradient()
        if own is None or self.response is None:
            return own
        moved = self.state.external_gradient_response(self.response)
        return own if moved is None else own + moved[:, :, 0]

    def strain(self) -> Array:
        """∂E/∂ε, likewise, (3, 3)."""
        own = self.state.strain()
        return own if self.response is None else own + self.state.strain_response(self.response)[:, :, 0]

    @property
    def dipole(self) -> Array | None:
        """−∂E/∂field; ``None`` where it is not defined."""
        own = self.state.dipole
        if own is None or self.response is None or self.response.dipole is None:
            return own
        return own + self.response.dipole[:, 0]

    @property
    def chemical_potential(self) -> float:
        """∂E/∂Q."""
        own = self.state.chemical_potential
        if self.coupling is None:
            return own
        return own + to_float(self.coupling.slope @ self.fukui)

    def hardness(self) -> float:
        """∂²E/∂Q²."""
        own = self.system.hardness()
        if self.coupling is None:
            return own
        return own + to_float(self.coupling.curvature @ self.fukui**2)

    def polarizability(self) -> Array | None:
        """∂μ/∂field; charges are linear in the field, so g' is all that the short-range energy adds."""
        own = self.system.polarizability()
        if own is None or self.coupling is None:
            return own
        moved = self.system.respond_field().charges
        return own - (moved * self.coupling.curvature[:, None]).T @ moved

    @cached_property
    def total_charge_response(self) -> Response:
        """Response to the total charge."""
        return self.system.respond_total_charge()

    @property
    def fukui(self) -> Array:
        """∂q/∂Q, (N,)."""
        return self.total_charge_response.charges[:, 0]


__all__ = ["Charged"]
