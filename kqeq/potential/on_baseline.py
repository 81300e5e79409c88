"""What a baseline contributes to a prediction.

With E = E_b(r, Q, F) + E_Δ and charges q = q_b + q_Δ,

    μ = μ_b + μ_Δ,      α = α_b + α_Δ

are derivatives of the whole energy.  Where a short-range energy sees the charges of a baseline that holds the total
charge (:mod:`kqeq.charge_kernel`), g = ∂E_sr/∂q and g' = ∂g/∂q add

    ∂E/∂r:  Σ_i g_i ∂q_b,i/∂r         μ:  −Σ_i g_i ∂q_b,i/∂F
    α:  −Σ_i g'_i [∂q_b ∂q_bᵀ + ∂q_b ∂q_Δᵀ + ∂q_Δ ∂q_bᵀ]_i − Σ_i g_i ∂²q_b,i/∂F²

This is how a correction learns what is wrong with the baseline's charge states (theory section 7).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from kqeq.backend import asarray_like, to_numpy
from kqeq.baselines import Baseline, BaselineResult, Capabilities
from kqeq.baselines.protocol import CHARGE_CURVATURE, CHARGE_FIELD, CHARGE_GRADIENT, POLARIZABILITY
from kqeq.frames.structures import Structure
from kqeq.kernels.charge_kernel import ChargeCoupling
from kqeq.potential.charged import Charged
from kqeq.potential.prediction import Prediction
from kqeq.typing import Array, FloatArray


def sees_baseline(baseline: Baseline | None, charge_aware: bool) -> bool:
    """Whether a short-range energy that sees charges sees those of the baseline: where it holds the total charge."""
    if baseline is None or not charge_aware:
        return False
    knows = baseline.capabilities
    return knows.holds_charge and knows.charges


def extras_for(
    structure: Structure, properties: Collection[str], knows: Capabilities, sees: bool
) -> tuple[str, ...]:
    """What a baseline has to compute beyond energy and derivatives, for some properties."""
    extras = []
    polarizability = "polarizability" in properties and knows.field and not structure.periodic
    if polarizability and knows.dipole:
        extras.append(POLARIZABILITY)
    if sees:
        if "forces" in properties or ("stress" in properties and structure.periodic):
            extras.append(CHARGE_GRADIENT)
        if knows.field and not structure.periodic and ("dipole" in properties or polarizability):
            extras.append(CHARGE_FIELD)
        if polarizability:
            extras.append(CHARGE_CURVATURE)
    return tuple(extras)


@dataclass(frozen=True, eq=False)
class OnBaseline:
    """A baseline at one structure, and how the model on top depends on its charges.

    Attributes
    ----------
    structure : Structure
    baseline : Baseline, optional
    result : BaselineResult, optional
        Both are there or neither is.
    sees : bool
        Whether the short-range energy sees the charges of the baseline.
    coupling : ChargeCoupling, optional
        Then that energy at the charges of the whole model.
    """

    structure: Structure
    baseline: Baseline | None = None
    result: BaselineResult | None = None
    sees: bool = False
    coupling: ChargeCoupling | None = None

    @classmethod
    def at(
        cls,
        baseline: Baseline | None,
        structure: Structure,
        properties: Collection[str],
        *,
        sees_charges: bool = False,
    ) -> OnBaseline:
        """Evaluate a baseline, or none, for what is asked of a prediction."""
        if baseline is None:
            return cls(structure)
        sees = sees_baseline(baseline, sees_charges)
        extras = extras_for(structure, properties, baseline.capabilities, sees)
        return cls(structure, baseline, baseline.evaluate(structure, extras), sees)

    def seen(self, own: Array | None) -> Array:
        """The charges that the short-range energy sees, (N,): those of the charge model, the baseline's or the sum."""
        if not self.sees:
            assert own is not None
            return own
        assert self.result is not None and self.result.charges is not None
        return self.result.charges if own is None else own + asarray_like(self.result.charges, own)

    def couple(self, coupling: ChargeCoupling) -> OnBaseline:
        """With the short-range energy at the charges of :meth:`seen`."""
        return replace(self, coupling=coupling if self.sees else None)

    @property
    def energy(self) -> float:
        """EV."""
        return 0.0 if self.result is None else self.result.energy

    def gradient(self) -> FloatArray:
        """∂E/∂r of the baseline and through its charges, (N, 3)."""
        if self.result is None:
            return np.zeros((len(self.structure), 3))
        return self._with_charges(self.result.gradient, self.result.charge_gradient)

    def strain(self) -> FloatArray:
        """∂E/∂ε, likewise, (3, 3)."""
        if self.result is None:
            return np.zeros((3, 3))
        return self._with_charges(self.result.strain, self.result.charge_strain)

    def _with_charges(self, own: FloatArray, charges: FloatArray | None) -> FloatArray:
        if self.coupling is None or charges is None:
            return own
        return np.asarray(own + charges @ to_numpy(self.coupling.slope))

    def complete(
        self, prediction: Prediction, properties: Collection[str], charged: Charged | None
    ) -> Prediction:
        """The prediction of the model on top, completed to that of the whole."""
        if self.baseline is None or self.result is None:
            return prediction
        knows, name = self.baseline.capabilities, self.baseline.name
        changes: dict[str, object] = {}
        reasons: dict[str, str] = {}
        if knows.holds_charge:
            changes.update(chemical_potential=None, hardness=None)
            text = (
                f"the baseline {name} holds the total charge, and its energy is defined for whole electrons"
            )
            reasons.update(chemical_potential=text, hardness=text)
        if knows.charges or knows.holds_charge:
            changes["charges"] = _added(self.result.charges, prediction.charges)
            if self.result.charges is None:
                changes["charges"] = None
                reasons["charges"] = f"the baseline {name} holds the total charge and gives no charges"
        if knows.dipole or knows.holds_charge:
            changes["dipole"] = self._dipole(prediction.dipole, knows, reasons)
        if "born_charges" in properties and (knows.holds_charge or knows.dipole):
            changes["born_charges"] = None
            reasons["born_charges"] = f"the Born charges of the baseline {name} itself are not known"
        if "polarizability" in properties and (knows.field or knows.dipole or knows.holds_charge):
            changes["polarizability"] = self._polarizability(prediction.polarizability, charged, reasons)
        return replace(prediction, undefined={**(prediction.undefined or {}), **reasons} or None, **changes)  # type: ignore[arg-type]

    def _dipole(
        self, own: FloatArray | None, knows: Capabilities, reasons: dict[str, str]
    ) -> FloatArray | None:
        assert self.result is not None and self.baseline is not None
        if self.result.dipole is None:
            reasons["dipole"] = (
                f"the baseline {self.baseline.name} has no dipole for a periodic cell"
                if knows.dipole
                else f"the baseline {self.baseline.name} holds the total charge and gives no dipole"
            )
            return None
        total = _added(self.result.dipole, own)
        if self.coupling is None:
            return total
        if self.result.charge_field is None:
            reasons["dipole"] = (
                "not asked for: it needs the derivatives of the baseline's charges by the field"
            )
            return None
        assert total is not None
        return np.asarray(total - self.result.charge_field @ to_numpy(self.coupling.slope))

    def _polarizability(
        self, own: FloatArray | None, charged: Charged | None, reasons: dict[str, str]
    ) -> FloatArray | None:
        assert self.result is not None and self.baseline is not None
        if self.result.polarizability is None:
            reasons["polarizability"] = (
                f"the baseline {self.baseline.name} has none for a periodic cell"
                if self.structure.periodic
                else f"the baseline {self.baseline.name} gives no response to a field"
            )
            return None
        total = _added(self.result.polarizability, own)
        assert total is not None
        moved = self.result.charge_field
        if self.coupling is None or moved is None or self.result.charge_curvature is None:
            return total
        curvature = to_numpy(self.coupling.curvature)
        total = total - (moved * curvature) @ moved.T
        if charged is not None:
            mixed = (moved * curvature) @ to_numpy(charged.system.respond_field().charges)
            total = total - mixed - mixed.T
        return np.asarray(total - self.result.charge_curvature @ to_numpy(self.coupling.slope))


def _added(first: FloatArray | None, second: FloatArray | None) -> FloatArray | None:
    """The sum of what is there."""
    if first is None or second is None:
        return second if first is None else first
    return first + second


__all__ = ["OnBaseline", "extras_for", "sees_baseline"]
