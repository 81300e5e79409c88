"""Label kinds: what the model predicts for each, and how that changes with the parameters.

One small function per kind returns the prediction (n,) and its Jacobian (n, P) at the current parameters
(theory section 3).  ``frame_rows`` stacks them, divided by the standard deviation of each label.

The Jacobians use what a charge state promises: ∂E/∂χ = g (exact, no ∂q needed), ∂g = ∂q from the response,
and the change of the gradient at fixed unknowns.

Dimensions: N atoms, P parameters, n rows of one label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kqeq.charges.base import ChargeState, ChargeSystem, Response, SiteChange
from kqeq.charges.parameters import contract_sites
from kqeq.descriptors.base import FeatureGradients, SiteJacobian
from kqeq.fitting.features import FrameFeatures, TrainingFrame
from kqeq.fitting.parameters import Parameters
from kqeq.fitting.solver import JacobianKind
from kqeq.typing import FloatArray


@dataclass(eq=False)
class Linearisation:
    """One frame at the current parameters, with the derivatives that its labels share."""

    frame: TrainingFrame
    features: FrameFeatures
    parameters: Parameters
    u: FloatArray

    @cached_property
    def system(self) -> ChargeSystem | None:
        """The charge problem at the current element parameters."""
        learned, charges, structure = self.parameters.learned, self.parameters.charges, self.frame.structure
        if learned is None or charges is None:
            return self.features.system
        sites = learned.sites(charges, structure.numbers, self.u)
        return charges.bind(structure, sites, many_responses=True)

    @cached_property
    def state(self) -> ChargeState | None:
        """Charges at the current parameters."""
        part, features = self.parameters.chi, self.features
        if part is None or self.system is None or features.chi is None:
            return None
        structure = self.frame.structure
        chi = part.mean(structure.numbers) + features.chi @ self.u[part.columns]
        return self.system.solve(chi, structure.external_field, structure.total_charge)

    @cached_property
    def response(self) -> Response:
        """Response of the charge state to the electronegativity parameters."""
        assert self.system is not None and self.features.chi is not None
        return self.system.respond(self.features.chi)

    @cached_property
    def site_change(self) -> SiteChange | None:
        """Change of the site parameters with the learned element parameters; ``None`` if none are learned."""
        learned = self.parameters.learned
        return None if learned is None else learned.directions(self.frame.structure.numbers, self.u)

    @cached_property
    def learned_response(self) -> Response | None:
        """Response of the charge state to the learned element parameters; ``None`` if none are learned."""
        if self.site_change is None:
            return None
        assert self.state is not None
        return self.state.respond_sites(self.site_change)

    @cached_property
    def _chi_coefficients(self) -> dict[int, FloatArray]:
        part = self.parameters.chi
        assert part is not None and part.feature_map is not None
        return part.feature_map.coefficients(part.kernel_weights(self.u))

    @cached_property
    def site_jacobian(self) -> SiteJacobian | None:
        """∂χ_i/∂r and ∂χ_i/∂ε at the current parameters."""
        part, state = self.parameters.chi, self.features.chi_state
        if part is None or part.feature_map is None or state is None:
            return None
        near = part.feature_map.similarities(state, self.frame.structure.numbers)
        return state.site_jacobian(
            part.feature_map.descriptor_gradient(near, state.values.shape, self._chi_coefficients)
        )

    @cached_property
    def chi_gradients(self) -> FeatureGradients | None:
        """Σ_i g_i ∂²χ_i/∂r∂u for the kernel parameters."""
        part, state = self.parameters.chi, self.features.chi_state
        if part is None or part.feature_map is None or state is None or self.state is None:
            return None
        weights = part.delta * self.state.electronegativity_gradient()
        return part.feature_map.feature_gradients(state, self.frame.structure.numbers, weights)


def _energy(line: Linearisation, jacobian: bool) -> tuple[FloatArray, FloatArray | None]:
    value, rows = 0.0, np.zeros((1, line.parameters.size)) if jacobian else None
    part = line.parameters.energy
    if part is not None and line.features.energy is not None:
        numbers = line.frame.structure.numbers
        value += float(part.mean(numbers).sum() + line.features.energy @ line.u[part.columns])
        if rows is not None:
            rows[0, part.columns] = line.features.energy
    if line.state is not None and line.parameters.chi is not None and line.features.chi is not None:
        value += line.state.energy
        if rows is not None:
            rows[0, line.parameters.chi.columns] = (
                line.features.chi.T @ line.state.electronegativity_gradient()
            )
            if line.parameters.learned is not None and line.site_change is not None:
                slopes = contract_sites(line.state.site_gradient(), line.site_change)
                rows[0, line.parameters.learned.columns] = slopes
    return np.array([value]), rows


def _position_derivative(
    line: Linearisation, jacobian: bool, strain: bool
) -> tuple[FloatArray, FloatArray | None]:
    """∂E/∂r as (3N,), or ∂E/∂ε as (9,), and its Jacobian."""
    n = 9 if strain else 3 * len(line.frame.structure)
    value, rows = np.zeros(n), np.zeros((n, line.parameters.size)) if jacobian else None
    part = line.parameters.energy
    linear = line.features.strain if strain else line.features.positions
    if part is not None and linear is not None:
        value += linear @ line.u[part.columns]
        if rows is not None:
            rows[:, part.columns] = linear
    part, state = line.parameters.chi, line.state
    if part is None or state is None:
        return value, rows
    value += (state.strain() if strain else state.gradient()).ravel()
    site = line.site_jacobian
    sites = None if site is None else (site.strain if strain else site.positions)
    if sites is not None:
        value += sites @ state.electronegativity_gradient()
    if rows is not None:

        def follow(response: Response) -> FloatArray:
            """What the derivative gains as the charges change."""
            change = state.strain_response(response) if strain else state.gradient_response(response)
            block = change.reshape(n, -1)
            return block if sites is None else block + sites @ response.charges

        block = follow(line.response)
        gradients = line.chi_gradients
        if gradients is not None:
            block[:, : part.kernel_size] += gradients.strain if strain else gradients.positions
        rows[:, part.columns] = block
        if line.parameters.learned is not None and line.learned_response is not None:
            rows[:, line.parameters.learned.columns] = follow(line.learned_response)
    return value, rows


def _forces(line: Linearisation, jacobian: bool) -> tuple[FloatArray, FloatArray | None]:
    value, rows = _position_derivative(line, jacobian, strain=False)
    return -value, None if rows is None else -rows


# Voigt order xx yy zz yz xz xy as positions in the flattened 3x3 matrix, and the transposed ones
_VOIGT = np.array([0, 4, 8, 5, 2, 1])
_VOIGT_TRANSPOSED = np.array([0, 4, 8, 7, 6, 3])


def _stress(line: Linearisation, jacobian: bool) -> tuple[FloatArray, FloatArray | None]:
    value, rows = _position_derivative(line, jacobian, strain=True)
    volume = line.frame.structure.volume
    return _to_stress(value, volume), None if rows is None else _to_stress(rows, volume)


def _to_stress(strain: FloatArray, volume: float) -> FloatArray:
    """Strain derivatives (9, ...) to stress in Voigt order (6, ...)."""
    stress: FloatArray = 0.5 * (strain[_VOIGT] + strain[_VOIGT_TRANSPOSED]) / volume
    return stress


def _dipole(line: Linearisation, jacobian: bool) -> tuple[FloatArray, FloatArray | None]:
    assert line.state is not None and line.state.dipole is not None
    if not jacobian:
        return line.state.dipole, None
    learned = line.learned_response
    assert line.response.dipole is not None
    return line.state.dipole, _spread(line, line.response.dipole, None if learned is None else learned.dipole)


def _charges(line: Linearisation, jacobian: bool) -> tuple[FloatArray, FloatArray | None]:
    assert line.state is not None
    if not jacobian:
        return line.state.charges, None
    learned = line.learned_response
    return line.state.charges, _spread(
        line, line.response.charges, None if learned is None else learned.charges
    )


def _spread(line: Linearisation, block: FloatArray, learned: FloatArray | None) -> FloatArray:
    """Rows over the parameters of electronegativities and elements to rows over all parameters."""
    assert line.parameters.chi is not None
    rows = np.zeros((len(block), line.parameters.size))
    rows[:, line.parameters.chi.columns] = block
    if line.parameters.learned is not None and learned is not None:
        rows[:, line.parameters.learned.columns] = learned
    return rows


# a symmetric tensor as six numbers whose squares add up to those of all nine components
_UPPER = np.triu_indices(3)
_UPPER_WEIGHTS = np.where(_UPPER[0] == _UPPER[1], 1.0, np.sqrt(2.0))


def _polarizability(line: Linearisation, jacobian: bool) -> tuple[FloatArray, FloatArray | None]:
    """It depends on element parameters only (theory section 3)."""
    assert line.system is not None
    alpha = line.system.polarizability()
    assert alpha is not None
    value = _UPPER_WEIGHTS * alpha[_UPPER]
    if not jacobian:
        return value, None
    rows = np.zeros((len(value), line.parameters.size))
    if line.parameters.learned is not None and line.site_change is not None:
        change = line.system.polarizability_response(line.site_change)
        rows[:, line.parameters.learned.columns] = _UPPER_WEIGHTS[:, None] * change[_UPPER]
    return value, rows


Block = Callable[[Linearisation, bool], tuple[FloatArray, FloatArray | None]]

BLOCKS: Mapping[str, Block] = {
    "energy": _energy,
    "forces": _forces,
    "stress": _stress,
    "dipole": _dipole,
    "charges": _charges,
    "polarizability": _polarizability,
}
"""Label kinds that can be fitted."""

LINEAR_KINDS = frozenset({"dipole", "charges"})
"""Kinds whose predictions are linear in the parameters of χ: fits to these alone are closed-form, unless element
parameters are learned."""


def target_vector(frame: TrainingFrame, kind: str) -> FloatArray:
    """The labels of one kind as a vector, in the order of the block's rows."""
    value = np.asarray(getattr(frame.labels, kind), dtype=np.float64)
    if kind == "stress":
        return np.asarray(value.ravel()[_VOIGT])
    if kind == "polarizability":
        return np.asarray(_UPPER_WEIGHTS * value[_UPPER])
    return np.asarray(value.reshape(-1))


def deviation(frame: TrainingFrame, kind: str, noise: Mapping[str, float]) -> float:
    """Standard deviation of one label: energies get σ_E √N, and weights divide the variance."""
    scale = np.sqrt(len(frame.structure)) if kind == "energy" else 1.0
    return float(noise[kind] * scale)


def _linear_rows(frame: TrainingFrame, features: FrameFeatures, kind: str, size: int) -> FloatArray:
    """Jacobian of one label with respect to the energy parameters (n, p); it does not depend on u."""
    if kind == "energy" and features.energy is not None:
        return features.energy[None, :]
    if kind == "forces" and features.positions is not None:
        return -features.positions
    if kind == "stress" and features.strain is not None:
        return _to_stress(features.strain, frame.structure.volume)
    return np.zeros((target_vector(frame, kind).size, size))


def frame_rows(
    frame: TrainingFrame,
    features: FrameFeatures,
    parameters: Parameters,
    u: FloatArray,
    noise: Mapping[str, float],
    *,
    jacobian: JacobianKind,
) -> tuple[FloatArray, FloatArray | None]:
    """Weighted residuals (y − ŷ)/σ of a frame, and the Jacobian of ŷ/σ.

    Parameters
    ----------
    frame, features, parameters, u :
        The frame and the parameters to evaluate it at.
    noise : mapping of str to float
        Standard deviation by label kind.
    jacobian : {"none", "linear", "full"}
        No Jacobian, that of the energy parameters (the linear ones), or that of all.

    Returns
    -------
    (n,) array, (n, P) array or (n, p) array or None
    """
    line = Linearisation(frame, features, parameters, u)
    linear_size = 0 if parameters.energy is None else parameters.energy.size
    residuals, jacobians = [], []
    for kind in frame.labels.kinds:
        value, rows = BLOCKS[kind](line, jacobian == "full")
        if jacobian == "linear":
            rows = _linear_rows(frame, features, kind, linear_size)
        scale = np.sqrt(frame.labels.weight) / deviation(frame, kind, noise)
        residuals.append(scale * (target_vector(frame, kind) - value))
        if rows is not None:
            jacobians.append(scale * rows)
    return np.concatenate(residuals), np.concatenate(jacobians) if jacobians else None


__all__ = [
    "BLOCKS",
    "LINEAR_KINDS",
    "Linearisation",
    "deviation",
    "frame_rows",
    "target_vector",
]
