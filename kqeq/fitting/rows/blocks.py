"""Label kinds: what the model predicts for each, and how that changes with the parameters.

One small function per kind returns the prediction (n,) and its Jacobian (n, P) at the current parameters
(theory section 3).  ``frame_rows`` stacks them, divided by the standard deviation of each label.

The Jacobians use what a charge state promises: ∂E/∂χ = g (exact, no ∂q needed), ∂g from the response (of
electronegativities ∂q), and the change of the gradient at fixed unknowns.

Dimensions: N atoms, P parameters, n rows of one label.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from kqeq.backend import asarray_like, empty, eye, namespace, zeros
from kqeq.charges.base import ChargeState, ChargeSystem, Response, SiteParameters
from kqeq.charges.boundaries import open_components
from kqeq.charges.parameters import (
    contract_sites,
    logarithmic_gradient,
    logarithmic_gradient_response,
)
from kqeq.descriptors.base import FeatureGradients, SiteJacobian
from kqeq.fitting.charge_aware import KINDS
from kqeq.fitting.least_squares.solver import JacobianKind
from kqeq.fitting.parameters import Parameters, SiteDirections, SitePart
from kqeq.fitting.rows.features import FrameFeatures, TrainingFrame
from kqeq.fitting.rows.voigt import VOIGT, to_stress, upper_triangle
from kqeq.frames.labels import standard_deviation
from kqeq.kernels import sums
from kqeq.kernels.feature_map import FeatureJacobian, FeatureMap, Similarity
from kqeq.typing import Array, FloatArray

_NO_STRAIN = np.zeros((0, 0))
"""What is kept atom by atom knows positions only; to use this for a strain fails."""


@dataclass(eq=False)
class Linearisation:
    """One frame at the current parameters, with the derivatives that its labels share.

    Arrays live on the device of the features.
    """

    frame: TrainingFrame
    features: FrameFeatures
    parameters: Parameters
    u: FloatArray
    copy: Array | None = None
    similarities: dict[FeatureMap, Sequence[Similarity]] = field(default_factory=dict)

    @cached_property
    def there(self) -> Array:
        """The parameters where the features are: ``copy`` if one was given, for many frames at once."""
        return asarray_like(self.u, self.features.device.like) if self.copy is None else self.copy

    def put(self, values: FloatArray) -> Array:
        """What comes from the host, on the device of the features."""
        return asarray_like(values, self.features.device.like)

    @cached_property
    def system(self) -> ChargeSystem | None:
        """The charge problem at the current site parameters."""
        charges = self.parameters.charges
        if self.parameters.learned is None or charges is None:
            return self.features.system
        return charges.bind(
            self.frame.structure, self.sites, many_responses=True, device=self.features.device
        )

    @cached_property
    def sites(self) -> SiteParameters:
        """Site parameters of the atoms at the current parameters."""
        sites = self.parameters.site_parameters(self.frame.structure.numbers, self.u, self.features.sites)
        return sites.on(self.features.device.like)

    @cached_property
    def state(self) -> ChargeState | None:
        """Charges at the current parameters."""
        part, features = self.parameters.electronegativity, self.features
        if part is None or self.system is None or features.electronegativity is None:
            return None
        structure = self.frame.structure
        chi = self.put(part.mean(structure.numbers)) + features.electronegativity @ self.there[part.columns]
        return self.system.solve(chi, structure.external_field, structure.total_charge)

    @cached_property
    def response(self) -> Response:
        """Response of the charge state to the electronegativity parameters."""
        assert self.system is not None and self.features.electronegativity is not None
        return self.system.respond(self.features.electronegativity)

    @cached_property
    def site_directions(self) -> SiteDirections | None:
        """Change of the site parameters with the parameters that determine them; ``None`` if none are learned."""
        if self.parameters.learned is None:
            return None
        numbers = self.frame.structure.numbers
        return self.parameters.site_directions(self.sites, numbers, self.u, self.features.sites)

    @cached_property
    def site_response(self) -> Response | None:
        """Response of the charge state along :attr:`site_directions`, not mixed; ``None`` if none are learned."""
        if self.site_directions is None:
            return None
        assert self.state is not None
        return self.state.respond_sites(self.site_directions.change)

    @cached_property
    def site_slopes(self) -> dict[str, Array]:
        """∂E/∂ln θ_i, (N,), of the site parameters θ that depend on the environment."""
        environment = self.parameters.sites
        if environment is None or self.state is None:
            return {}
        return logarithmic_gradient(self.state, self.sites, tuple(environment.parts))

    def site_slope_response(self, response: Response) -> dict[str, Array]:
        """Change of :attr:`site_slopes` with a response, (N, c) each."""
        assert self.state is not None
        return logarithmic_gradient_response(self.state, self.sites, tuple(self.site_slopes), response)

    @cached_property
    def site_jacobians(self) -> dict[str, SiteJacobian]:
        """∂ln θ_i/∂r and ∂ln θ_i/∂ε of the site parameters that depend on the environment."""
        environment = self.parameters.sites
        if environment is None or not self.has_gradients:
            return {}
        own = environment.at(self.there)
        return {kind: self.jacobian_of(part, own) for kind, part in environment.parts.items()}

    @cached_property
    def site_feature_gradients(self) -> dict[str, FeatureGradients]:
        """Σ_i ∂E/∂ln θ_i ∂²ln θ_i/∂r∂u for the kernel parameters of each kind."""
        environment = self.parameters.sites
        if environment is None or environment.fixed is not None or not self.has_gradients:
            return {}
        return {
            kind: self.feature_gradients(environment.parts[kind], slopes)
            for kind, slopes in self.site_slopes.items()
        }

    @property
    def has_gradients(self) -> bool:
        """Whether derivatives of the kernel features can be had."""
        return self.features.states is not None or self.features.jacobians is not None

    def feature_gradients(self, part: SitePart, weights: Array) -> FeatureGradients:
        """Σ_i weights_i ∂²f_i/∂r∂u for the kernel parameters of a site quantity f."""
        known = self._separate(part)
        if known is not None:
            return FeatureGradients(sums.contract(known, weights, part.deltas), _NO_STRAIN)
        states, numbers = self.features.states, self.frame.structure.numbers
        assert states is not None
        return sums.feature_gradients(part.feature_maps, states, numbers, weights, part.deltas)

    def jacobian_of(self, part: SitePart, u: Array) -> SiteJacobian:
        """∂f_i/∂r and ∂f_i/∂ε of a site quantity f at the parameters u; has_gradients must hold."""
        known = self._separate(part)
        if known is not None:
            weights = part.scale(u[part.columns][: part.kernel_size])
            return SiteJacobian(sums.along(known, weights), _NO_STRAIN)
        states = self.features.states
        assert states is not None
        missing = [m for m in part.feature_maps if m not in self.similarities]
        self.similarities |= sums.find_similarities(missing, states, self.frame.structure.numbers)
        return sums.site_jacobian(part.terms(u), self.similarities, states)

    def _separate(self, part: SitePart) -> Sequence[FeatureJacobian] | None:
        """Derivatives of the features of a site quantity that are kept atom by atom."""
        jacobians = self.features.jacobians
        if jacobians is None:
            return None
        return jacobians.electronegativity if part is self.parameters.electronegativity else jacobians.sites

    @cached_property
    def site_jacobian(self) -> SiteJacobian | None:
        """∂χ_i/∂r and ∂χ_i/∂ε at the current parameters."""
        part = self.parameters.electronegativity
        if part is None or not part.kernels or not self.has_gradients:
            return None
        return self.jacobian_of(part, self.there)

    @cached_property
    def chi_gradients(self) -> FeatureGradients | None:
        """Σ_i g_i ∂²χ_i/∂r∂u for the kernel parameters."""
        part = self.parameters.electronegativity
        if part is None or not part.kernels or not self.has_gradients or self.state is None:
            return None
        return self.feature_gradients(part, self.state.electronegativity_gradient())


def _energy(line: Linearisation, jacobian: bool) -> tuple[Array, Array | None]:
    like = line.features.device.like
    value, rows = zeros(1, like), zeros((1, line.parameters.size), like) if jacobian else None
    part = line.parameters.short_range
    if part is not None and line.features.short_range is not None:
        value += float(part.mean(line.frame.structure.numbers).sum())
        value += line.features.short_range @ line.there[part.columns]
        if rows is not None:
            rows[0, part.columns] = line.features.short_range
    if line.features.held is not None:
        value += line.put(line.features.held.known("energy"))
    if (
        line.state is not None
        and line.parameters.electronegativity is not None
        and line.features.electronegativity is not None
    ):
        value += line.state.energy
        if rows is not None:
            rows[0, line.parameters.electronegativity.columns] = (
                line.features.electronegativity.T @ line.state.electronegativity_gradient()
            )
            if line.site_directions is not None:
                slopes = contract_sites(line.state.site_gradient(), line.site_directions.change)
                rows[0, line.parameters.site_columns] = line.site_directions.mix(slopes)
    return value, rows


def _position_derivative(line: Linearisation, jacobian: bool, strain: bool) -> tuple[Array, Array | None]:
    """∂E/∂r as (3N,), or ∂E/∂ε as (9,), and its Jacobian."""
    like = line.features.device.like
    xp = namespace(like)
    n = 9 if strain else 3 * len(line.frame.structure)
    value, rows = zeros(n, like), zeros((n, line.parameters.size), like) if jacobian else None
    part = line.parameters.short_range
    linear = line.features.strain if strain else line.features.positions
    if part is not None and linear is not None:
        value += linear @ line.there[part.columns]
        if rows is not None:
            rows[:, part.columns] = linear
    if line.features.held is not None:
        value += line.put(line.features.held.known_gradient(strain=strain))
    part, state = line.parameters.electronegativity, line.state
    if part is None or state is None:
        return value, rows
    value += xp.reshape(state.strain() if strain else state.gradient(), (-1,))
    site = line.site_jacobian
    sites = None if site is None else (site.strain if strain else site.positions)
    if sites is not None:
        value += sites @ state.electronegativity_gradient()
    logarithms = {kind: j.strain if strain else j.positions for kind, j in line.site_jacobians.items()}
    for kind, jacobians in logarithms.items():
        value += jacobians @ line.site_slopes[kind]
    if rows is not None:

        def follow(response: Response) -> Array:
            """What the derivative gains as the charges change."""
            change = state.strain_response(response) if strain else state.gradient_response(response)
            block = xp.reshape(change, (n, -1))
            if sites is not None:
                block = block + sites @ state.electronegativity_gradient_response(response)
            if logarithms:
                for kind, slopes in line.site_slope_response(response).items():
                    block = block + logarithms[kind] @ slopes
            return block

        block = follow(line.response)
        gradients = line.chi_gradients
        if gradients is not None:
            block[:, : part.kernel_size] += gradients.strain if strain else gradients.positions
        rows[:, part.columns] = block
        if line.site_directions is not None and line.site_response is not None:
            rows[:, line.parameters.site_columns] = line.site_directions.mix(follow(line.site_response))
        for kind, gradients in line.site_feature_gradients.items():
            columns = line.parameters.parts[kind].columns
            rows[:, columns] += gradients.strain if strain else gradients.positions
    return value, rows


def _forces(line: Linearisation, jacobian: bool) -> tuple[Array, Array | None]:
    value, rows = _position_derivative(line, jacobian, strain=False)
    return -value, None if rows is None else -rows


def _stress(line: Linearisation, jacobian: bool) -> tuple[Array, Array | None]:
    value, rows = _position_derivative(line, jacobian, strain=True)
    volume = line.frame.structure.volume
    return to_stress(value, volume), None if rows is None else to_stress(rows, volume)


def _observable_rows(line: Linearisation, kind: str) -> Array:
    """Derivatives of a dipole or polarizability by the parameters of an energy that sees held charges, (n, p)."""
    part, held = line.parameters.short_range, line.features.held
    assert part is not None and held is not None
    features = held.dipole_features() if kind == "dipole" else held.polarizability_features()
    return line.put(
        np.concatenate([part.scale(features), np.zeros((len(features), part.offsets_size))], axis=1)
    )


def _at_held_charges(line: Linearisation, kind: str, jacobian: bool) -> tuple[Array, Array | None]:
    """A dipole or polarizability to which nothing is added but by an energy that sees held charges."""
    part, held = line.parameters.short_range, line.features.held
    assert part is not None and held is not None
    block = _observable_rows(line, kind)
    value = line.put(held.known(kind)) + block @ line.there[part.columns]
    if not jacobian:
        return value, None
    rows = zeros((int(block.shape[0]), line.parameters.size), block)
    rows[:, part.columns] = block
    return value, rows


def _dipole(line: Linearisation, jacobian: bool) -> tuple[Array, Array | None]:
    if line.features.held is not None:
        return _at_held_charges(line, "dipole", jacobian)
    assert line.state is not None and line.state.dipole is not None
    if not jacobian:
        return line.state.dipole, None
    sites = line.site_response
    assert line.response.dipole is not None
    return line.state.dipole, _spread(line, line.response.dipole, None if sites is None else sites.dipole)


def _charges(line: Linearisation, jacobian: bool) -> tuple[Array, Array | None]:
    assert line.state is not None
    if not jacobian:
        return line.state.charges, None
    sites = line.site_response
    return line.state.charges, _spread(line, line.response.charges, None if sites is None else sites.charges)


def _spread(line: Linearisation, block: Array, sites: Array | None) -> Array:
    """Rows over the parameters of electronegativities, and over directions of sites, to rows over all parameters."""
    assert line.parameters.electronegativity is not None
    rows = zeros((int(block.shape[0]), line.parameters.size), block)
    rows[:, line.parameters.electronegativity.columns] = block
    if line.site_directions is not None and sites is not None:
        rows[:, line.parameters.site_columns] = line.site_directions.mix(sites)
    return rows


def _polarizability(line: Linearisation, jacobian: bool) -> tuple[Array, Array | None]:
    """It depends on site parameters only (theory section 3), unless an energy sees the charges."""
    if line.features.held is not None:
        return _at_held_charges(line, "polarizability", jacobian)
    assert line.system is not None
    alpha = line.system.polarizability()
    assert alpha is not None
    value = upper_triangle(alpha)
    if not jacobian:
        return value, None
    rows = zeros((6, line.parameters.size), alpha)
    if line.site_directions is not None:
        change = line.system.polarizability_response(line.site_directions.change)
        rows[:, line.parameters.site_columns] = line.site_directions.mix(upper_triangle(change))
    return value, rows


def _born_charges(line: Linearisation, jacobian: bool) -> tuple[Array, Array | None]:
    """Z_k,ab = −∂²E/∂r_kb ∂F_a, a along the m directions in which fields are defined; linear in electronegativities.

    Site parameters are those of the features: where they are learned, Born charges are not fitted.
    """
    state, part = line.state, line.parameters.electronegativity
    assert state is not None and line.system is not None and part is not None
    xp, atoms = namespace(line.features.device.like), len(line.frame.structure)
    directions = asarray_like(open_components(line.frame.structure), line.features.device.like)
    m = int(directions.shape[0])
    field = _combined(line.system.respond_field(), directions)
    moved = state.electronegativity_gradient_response(field)
    change = xp.reshape(state.gradient_response(field), (3 * atoms, m))
    if line.site_jacobian is not None:
        change = change + line.site_jacobian.positions @ moved
    # rows are k, a, b
    value = xp.reshape(xp.permute_dims(xp.reshape(-change, (atoms, 3, m)), (0, 2, 1)), (-1,))
    if not jacobian:
        return value, None
    rows = zeros((atoms, m, 3, line.parameters.size), line.features.device.like)
    for a in range(m):
        one = _combined(field, eye(m, directions)[a : a + 1, :])
        block = xp.reshape(state.gradient_second_response(one, line.response), (3 * atoms, part.size))
        if part.kernels and line.has_gradients:
            own = line.feature_gradients(part, moved[:, a])
            block[:, : part.kernel_size] += own.positions
        rows[:, a, :, part.columns] = xp.reshape(-block, (atoms, 3, part.size))
    return value, xp.reshape(rows, (3 * m * atoms, line.parameters.size))


def _combined(response: Response, weights: Array) -> Response:
    """Sums of the perturbations of a response to the field, one for each row of weights."""

    def of(block: Array | None) -> Array | None:
        return None if block is None else block @ weights.T

    return replace(
        response,
        unknowns=response.unknowns @ weights.T,
        charges=response.charges @ weights.T,
        dipole=of(response.dipole),
        field=of(response.field),
        potentials=of(response.potentials),
    )


Block = Callable[[Linearisation, bool], tuple[Array, Array | None]]

BLOCKS: Mapping[str, Block] = {
    "energy": _energy,
    "forces": _forces,
    "stress": _stress,
    "dipole": _dipole,
    "charges": _charges,
    "polarizability": _polarizability,
    "born_charges": _born_charges,
}
"""Label kinds that can be fitted."""

LINEAR_KINDS = frozenset({"dipole", "charges", "born_charges"})
"""Kinds whose predictions are linear in the parameters of χ: fits to these alone are closed-form, unless element
parameters are learned."""


def is_linear(parameters: Parameters, kinds: Collection[str]) -> bool:
    """Whether labels of some kinds are all linear in the parameters: then a fit is one step."""
    return parameters.charges is None or (parameters.learned is None and set(kinds) <= LINEAR_KINDS)


def target_vector(frame: TrainingFrame, kind: str) -> FloatArray:
    """The labels of one kind as a vector, in the order of the block's rows."""
    value = np.asarray(getattr(frame.labels, kind), dtype=np.float64)
    if kind == "stress":
        return np.asarray(value.ravel()[VOIGT])
    if kind == "polarizability":
        return np.asarray(upper_triangle(value))
    if kind == "dipole":
        return open_components(frame.structure) @ value
    if kind == "born_charges":
        return np.asarray(np.einsum("ma,kab->kmb", open_components(frame.structure), value).reshape(-1))
    return np.asarray(value.reshape(-1))


def _defined(frame: TrainingFrame, kind: str, block: Array) -> Array:
    """Of rows of a dipole those along directions in which it is defined."""
    if kind != "dipole" or not frame.structure.periodic:
        return block
    return asarray_like(open_components(frame.structure), block) @ block


def deviation(frame: TrainingFrame, kind: str, noise: Mapping[str, float]) -> float:
    """Standard deviation of every component of a label of a frame: :func:`kqeq.frames.labels.standard_deviation`."""
    return standard_deviation(kind, noise, len(frame.structure), frame.labels.weight)


def _linear_rows(line: Linearisation, kind: str, size: int) -> Array:
    """Jacobian of one label with respect to the energy parameters (n, p); it does not depend on u."""
    frame, features = line.frame, line.features
    if kind == "energy" and features.short_range is not None:
        return features.short_range[None, :]
    if kind == "forces" and features.positions is not None:
        return features.positions  # of the energy: the sign is put where rows are scaled
    if kind == "stress" and features.strain is not None:
        return to_stress(features.strain, frame.structure.volume)
    if features.held is not None:
        assert kind in KINDS
        return _defined(frame, kind, _observable_rows(line, kind))
    return zeros((target_vector(frame, kind).size, size), features.device.like)


def frame_rows(
    frame: TrainingFrame,
    features: FrameFeatures,
    parameters: Parameters,
    u: FloatArray,
    noise: Mapping[str, float],
    *,
    jacobian: JacobianKind,
    copy: Array | None = None,
) -> tuple[Array, Array | None]:
    """Weighted residuals (y − ŷ)/σ of a frame, and the Jacobian of ŷ/σ.

    Parameters
    ----------
    frame, features, parameters, u :
        The frame and the parameters to evaluate it at.
    noise : mapping of str to float
        Standard deviation by label kind.
    jacobian : {"none", "linear", "full"}
        No Jacobian, that of the energy parameters (the linear ones), or that of all.
    copy : (P,) array, optional
        ``u`` on the device of the features.

    Returns
    -------
    (n,) array, (n, P) array or (n, p) array or None
        On the device of the features.
    """
    line = Linearisation(frame, features, parameters, u, copy)
    linear_size = 0 if parameters.short_range is None else parameters.short_range.size
    # without charges there are no other parameters
    linear_only = jacobian == "linear" or (jacobian == "full" and linear_size == parameters.size)
    targets = {kind: target_vector(frame, kind) for kind in frame.labels.kinds}
    stacked = None
    if jacobian != "none":
        shape = (sum(map(len, targets.values())), linear_size if linear_only else parameters.size)
        stacked = empty(shape, features.device.like)
    residuals, start = [], 0
    for kind, target in targets.items():
        value, rows = BLOCKS[kind](line, jacobian == "full" and not linear_only)
        value = _defined(frame, kind, value)
        rows = None if rows is None else _defined(frame, kind, rows)
        if linear_only:
            rows = _linear_rows(line, kind, linear_size)
        scale = 1.0 / deviation(frame, kind, noise)
        residuals.append(scale * (line.put(target) - value))
        stop = start + len(target)
        if stacked is not None and rows is not None:
            # the derivative of a force is that of the energy with another sign
            stacked[start:stop, :] = (-scale if linear_only and kind == "forces" else scale) * rows
        start = stop
    return namespace(residuals[0]).concat(residuals), stacked


__all__ = [
    "BLOCKS",
    "LINEAR_KINDS",
    "Linearisation",
    "deviation",
    "frame_rows",
    "is_linear",
    "target_vector",
]
