"""Dynamics of charges without full solutions: auxiliary charges that follow the minimum (extended Lagrangian).

With the Hessian H = D + C of QEq, D its diagonal for isolated atoms (self interaction and hardness) and C the rest, the
energy is linearised in C around auxiliary charges n,

    U(r, n) = min_q { bᵀq + ½ qᵀDq + ½ (2q − n)ᵀCn  :  Sᵀq = Q },      q[n] = n + D⁻¹(g − Sμ),  g = −(b + Hn)

(b = χ + φ).  One product Hn gives q[n], U and, because U is stationary in q, forces at fixed n that are exact derivatives
of U: −Σ q_i ∂b_i/∂r − ½ ∂/∂r (2q − n)ᵀCn.  U differs from the energy at the minimum in second order of q[n] − n.

The auxiliary charges move as a fast oscillator around the minimum,

    n(t + τ) = 2 n(t) − n(t − τ) + κ δ(t) + α Σ_k c_k n(t − kτ),

where δ approximates the Newton step −H⁻¹(b + Hn) on the constraint by a few preconditioned conjugate-gradient steps: the
kernel of the extended Lagrangian by a Krylov subspace, which needs no more than as many products.  Without the last sum
the integration is time reversible; the sum damps noise weakly (its error is of high order in τ).  Total energies with U
in place of the energy are nearly conserved (docs/performance.md).

Sources: A. M. N. Niklasson, Phys. Rev. Lett. 100, 123004 (2008); coefficients κ, α, c: A. M. N. Niklasson et al.,
J. Chem. Phys. 130, 214109 (2009), table I; shadow energies and Krylov kernels: A. M. N. Niklasson, J. Chem. Phys. 152,
104103 (2020); for charge equilibration J. Goff et al., J. Chem. Theory Comput. 19, 4255 (2023).

Dimensions: N atoms, c columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from kqeq.backend import asarray_like, namespace, to_float, zeros
from kqeq.charges.base import SiteParameters
from kqeq.charges.equilibrium import Equilibrium
from kqeq.charges.flow import FreeFlow
from kqeq.charges.fragments import membership
from kqeq.charges.solvers import IterativeSolver
from kqeq.electrostatics.unknowns import Unknowns, full_diagonal
from kqeq.errors import UnsupportedError
from kqeq.frames.structures import Structure
from kqeq.typing import Array, FloatArray

KRYLOV_STEPS = 2
"""Conjugate-gradient steps behind the Newton step; with the product in q[n], three products a step of dynamics."""

PRODUCTS = KRYLOV_STEPS + 1
"""Products with the matrix in a step of dynamics."""

KAPPA, ALPHA = 1.82, 0.018
DAMPING = (-6.0, 14.0, -8.0, -3.0, 4.0, -1.0)
"""κ, α and c_0 … c_5 of the damped integration."""


@dataclass(frozen=True, eq=False)
class AuxiliaryCharges:
    """Auxiliary charges at the last points of a trajectory: all that its charges remember.

    Attributes
    ----------
    history : (6, N) array
        n(t), n(t − τ), …, in e; save it with the positions and velocities of time t to go on from there.
    """

    history: FloatArray

    @classmethod
    def at_rest(cls, charges: FloatArray) -> AuxiliaryCharges:
        """Charges that have always been what they are."""
        return cls(np.tile(charges, (len(DAMPING), 1)))

    def after(self, step: FloatArray) -> AuxiliaryCharges:
        """One time step later, given δ of now."""
        past = self.history
        new = 2.0 * past[0] - past[1] + KAPPA * step + ALPHA * (np.array(DAMPING) @ past)
        return AuxiliaryCharges(np.concatenate([new[None, :], past[:-1]]))


@dataclass(frozen=True, eq=False)
class ShadowSystem:
    """QEq of one geometry, linearised around auxiliary charges; in place of :class:`Equilibrium` for a prediction.

    Attributes
    ----------
    system : Equilibrium
        With an iterative solver.
    auxiliary : (N,) array
        n, on the device of the system.
    solved : list of ShadowState
        The last solution: its Newton step moves the auxiliary charges on.
    """

    system: Equilibrium
    auxiliary: Array
    solved: list[ShadowState] = field(default_factory=list, repr=False)

    @classmethod
    def build(cls, system: Equilibrium, auxiliary: FloatArray) -> ShadowSystem:
        """Check that the linearisation exists for a charge model.

        Raises
        ------
        UnsupportedError
            For models other than QEq with hardnesses by element.
        """
        if not isinstance(system.flow, FreeFlow) or system.has_atomic_dipoles:
            raise UnsupportedError(
                "shadow dynamics of charges exists for kqeq.QEq without atomic dipoles; leave shadow=True away for "
                "other charge models"
            )
        if system.embedding is not None or system.anchor is not None:
            raise UnsupportedError(
                "shadow dynamics of charges knows no external charges; leave shadow=True or the external charges away"
            )
        assert isinstance(system.solver, IterativeSolver)
        return cls(system, asarray_like(auxiliary, system.device.like))

    @property
    def structure(self) -> Structure:
        """The geometry."""
        return self.system.structure

    @property
    def responses_are_cheap(self) -> bool:
        """Responses are not those of the linearised energy."""
        return False

    @cached_property
    def diagonal(self) -> Array:
        """D, (N,)."""
        system = self.system
        layout = Unknowns(len(system.structure), False)
        return full_diagonal(layout, system.on_site.sites.width, system.on_site.diagonal())

    def solve(self, chi: Array, external_field: FloatArray, total_charge: float) -> ShadowState:
        """Charges q[n] for given electronegativities and field (on the host); one product with the matrix."""
        system = self.system
        reference = system.reference + float(total_charge - system.structure.total_charge) / len(chi)
        system.flow.check_field(external_field, reference)
        admitted = system.flow.admitted(asarray_like(external_field, system.device.like))
        potential = system.structure.external_potential
        chi = chi if potential is None else chi + asarray_like(potential, system.device.like)
        linear = zeros((len(chi), 1), chi)
        linear[:, 0] = chi
        linear, _ = system.flow.drive(linear, None, admitted[:, None])
        solver = system.solver
        assert isinstance(solver, IterativeSolver)
        # n has the total charges of the constraints: reference charges, and a part without means
        start = reference + solver.project(self.auxiliary - reference)
        product = solver.product(start)
        residual = -(linear[:, 0] + product)
        state = ShadowState(self, admitted, linear[:, 0], start, product, residual)
        self.solved[:] = [state]
        return state


@dataclass(frozen=True, eq=False)
class ShadowState:
    """Charges and energy of the linearised problem; what :class:`kqeq.charges.base.ChargeState` offers to a prediction.

    Attributes
    ----------
    shadow : ShadowSystem
    external_field : (3,) array
        V/Å.
    linear : (N,) array
        b = χ + φ, eV/e.
    auxiliary : (N,) array
        n, with the total charges asked for.
    product : (N,) array
        Hn.
    residual : (N,) array
        g = −(b + Hn).
    """

    shadow: ShadowSystem
    external_field: Array
    linear: Array
    auxiliary: Array
    product: Array
    residual: Array

    @cached_property
    def charges(self) -> Array:
        """q[n], (N,)."""
        moved = self.residual / self.shadow.diagonal
        return self.auxiliary + moved - self._share * self._multipliers

    @cached_property
    def _share(self) -> Array:
        return 1.0 / self.shadow.diagonal

    @cached_property
    def _multipliers(self) -> Array:
        """−μ at each atom: what keeps the total charge of its constraint, (N,)."""
        flow = self.shadow.system.flow
        assert isinstance(flow, FreeFlow)
        member = asarray_like(membership(flow.constraint), self.linear)
        totals = member.T @ (self.residual * self._share)
        return member @ (totals / (member.T @ self._share))

    @property
    def atomic_dipoles(self) -> None:
        """None: there are none."""

    @property
    def energy(self) -> float:
        """U, eV."""
        moved = self.charges - self.auxiliary
        own = self.auxiliary @ self.linear + 0.5 * (self.auxiliary @ self.product)
        return to_float(own - self.residual @ moved + 0.5 * (moved @ (self.shadow.diagonal * moved)))

    @property
    def dipole(self) -> Array | None:
        """Σ q r along open directions."""
        flow = self.shadow.system.flow
        moment = flow.moment(self.charges[:, None], self.linear[:, None], None, None)[:, 0]
        return flow.defined_dipole(moment, self.auxiliary)

    @property
    def chemical_potential(self) -> float:
        """∂U/∂Q, added charge shared evenly."""
        return -to_float(namespace(self.linear).mean(self._multipliers))

    def electronegativity_gradient(self) -> Array:
        """∂U/∂χ = q[n]."""
        return self.charges

    def site_gradient(self) -> SiteParameters:
        """½ q² for hardnesses; widths do not depend on the environment."""
        return SiteParameters(0.5 * self.charges**2, namespace(self.charges).zeros_like(self.charges))

    def gradient(self) -> Array:
        """½ (2q − n)ᵀ(∂C/∂r)n − q field, (N, 3)."""
        outer = 2.0 * self.charges - self.auxiliary
        provider = self.shadow.system.provider
        result = 0.5 * provider.bilinear_gradient(outer, self.auxiliary[:, None])[:, :, 0]
        return result - self.charges[:, None] * self.external_field[None, :]

    def external_gradient(self) -> None:
        """None: external charges are refused."""

    def strain(self) -> Array:
        """½ (2q − n)ᵀ(∂C/∂ε)n − μ ⊗ field, (3, 3)."""
        outer = 2.0 * self.charges - self.auxiliary
        system = self.shadow.system
        result = 0.5 * system.provider.bilinear_strain(outer, self.auxiliary[:, None])[:, :, 0]
        moment = system.flow.moment(self.charges[:, None], self.linear[:, None], None, None)[:, 0]
        return result - moment[:, None] * self.external_field[None, :]

    def newton_step(self) -> Array:
        """δ ≈ −H⁻¹(b + Hn) on the constraint by :data:`KRYLOV_STEPS` conjugate-gradient steps, (N,)."""
        solver = self.shadow.system.solver
        assert isinstance(solver, IterativeSolver)
        xp = namespace(self.linear)
        step = xp.zeros_like(self.linear)
        residual = solver.project(self.residual)
        preconditioned = solver.flow(residual)
        direction = preconditioned
        squared = residual @ preconditioned
        for number in range(KRYLOV_STEPS):
            if to_float(squared) <= 0.0:
                break  # at the minimum already
            along = solver.product(direction)
            length = squared / (direction @ along)
            step = step + length * direction
            if number + 1 < KRYLOV_STEPS:
                residual = solver.project(residual - length * along)
                preconditioned = solver.flow(residual)
                before, squared = squared, residual @ preconditioned
                direction = preconditioned + (squared / before) * direction
        return step


__all__ = ["PRODUCTS", "AuxiliaryCharges", "ShadowState", "ShadowSystem"]
