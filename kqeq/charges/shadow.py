"""Dynamics of charges without full solutions: auxiliary charges that follow the minimum (extended Lagrangian).

With the Hessian H = D + C of QEq, D its diagonal for isolated atoms (self interaction and hardness) and C the rest, the
energy is linearised in C around auxiliary charges n,

    U(r, n) = min_q { bᵀq + ½ qᵀDq + ½ (2q − n)ᵀCn  :  Sᵀq = Q },      q[n] = n + D⁻¹(g − Sμ),  g = −(b + Hn)

(b = χ + φ).  One product Hn gives q[n], U and, because U is stationary in q, forces at fixed n that are exact derivatives
of U: −Σ q_i ∂b_i/∂r − ½ ∂/∂r (2q − n)ᵀCn.  U differs from the energy at the minimum in second order of q[n] − n.

The auxiliary charges move as a fast oscillator around the minimum,

    n(t + τ) = 2 n(t) − n(t − τ) + κ δ(t),

where δ = −K(b + Hn) approximates the Newton step on the constraint.  The kernel K is a fixed polynomial of the
preconditioned Hessian by Chebyshev iteration (:func:`kqeq.backend.linalg.chebyshev`): linear and symmetric, so that the
integration is time reversible, and close to H⁻¹ for all its eigenvectors at once, so that it is stable without damping
(for KH < 4/κ).  A few steps of conjugate gradients cost as much and fit the residual of the moment: what they neglect
grows, damping has to hold it, and both make the energy drift (docs/performance.md).  Rates of change of U that come with
the motion of n are odd under time reversal, hence zero on average.

A trajectory begins with two solutions: auxiliary charges without a velocity of their own would oscillate from then on.

Sources: A. M. N. Niklasson, Phys. Rev. Lett. 100, 123004 (2008); shadow energies and kernels: A. M. N. Niklasson,
J. Chem. Phys. 152, 104103 (2020); for charge equilibration J. Goff et al., J. Chem. Theory Comput. 19, 4255 (2023).

Dimensions: N atoms, c columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from kqeq.backend import asarray_like, namespace, to_float, to_numpy, zeros
from kqeq.backend.linalg import chebyshev, ritz_range
from kqeq.charges.base import SiteParameters
from kqeq.charges.equilibrium import Equilibrium
from kqeq.charges.flow import FreeFlow
from kqeq.charges.fragments import membership
from kqeq.charges.solvers import IterativeSolver
from kqeq.electrostatics.unknowns import Unknowns, full_diagonal
from kqeq.errors import UnsupportedError
from kqeq.frames.structures import Structure
from kqeq.typing import Array, FloatArray

DEGREE = 3
"""Degree of the kernel's error; one product less."""

PRODUCTS = DEGREE
"""Products with the matrix in a step of dynamics, with the one in q[n]."""

KAPPA = 2.0
"""κ."""

_LANCZOS_STEPS = 12
"""Products that the spectrum takes."""

_MARGINS = 0.9, 1.1
"""How far beyond its estimate the spectrum is taken to reach; the integration is stable well beyond that."""


@dataclass(frozen=True, eq=False)
class AuxiliaryCharges:
    """Auxiliary charges at the last points of a trajectory: all that its charges remember.

    Attributes
    ----------
    history : (2, N) array
        n(t) and n(t − τ) in e, or n(t) alone at the first point of a trajectory; save it, and the spectrum, with the
        positions and velocities of time t to go on from there.
    spectrum : (float, float), optional
        Between which numbers the eigenvalues of the preconditioned Hessian lie; found at the first step.
    """

    history: FloatArray
    spectrum: tuple[float, float] | None = None

    def after(self, state: ShadowState) -> AuxiliaryCharges:
        """One time step later, given the solution of now."""
        new, old = self.history
        spectrum = state.spectrum() if self.spectrum is None else self.spectrum
        moved = 2.0 * new - old + KAPPA * to_numpy(state.newton_step(spectrum))
        return AuxiliaryCharges(np.stack([moved, new]), spectrum)


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

    def newton_step(self, spectrum: tuple[float, float]) -> Array:
        """δ ≈ −H⁻¹(b + Hn) on the constraint, (N,)."""
        solver = self.shadow.system.solver
        assert isinstance(solver, IterativeSolver)
        return chebyshev(
            solver.product, self.residual, solver.flow, solver.project, spectrum=spectrum, steps=DEGREE
        )

    def spectrum(self) -> tuple[float, float]:
        """Between which numbers the eigenvalues of the preconditioned Hessian lie, by an estimate with margins."""
        solver = self.shadow.system.solver
        assert isinstance(solver, IterativeSolver)
        start = asarray_like(np.random.default_rng(0).normal(size=len(self.linear)), self.linear)
        low, high = ritz_range(
            solver.product, start, solver.flow, solver.project, steps=min(_LANCZOS_STEPS, len(self.linear))
        )
        return _MARGINS[0] * low, _MARGINS[1] * high


__all__ = ["PRODUCTS", "AuxiliaryCharges", "ShadowState", "ShadowSystem"]
