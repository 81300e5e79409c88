"""Sums of kernels: one scalar per atom as a sum of kernel expansions on different descriptors.

    f_i = Σ_b Σ_m k_b(p_ib, p_bm) c_bm

Kernels with equal descriptors share states, and one adjoint serves all of them.

Dimensions: N atoms, F features of one descriptor, p features of all kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kqeq.backend import namespace
from kqeq.descriptors.base import Descriptor, DescriptorState, FeatureGradients, SiteJacobian
from kqeq.kernels.feature_map import FeatureJacobian, FeatureMap, Similarity, SummedFeatures
from kqeq.typing import Array, FloatArray, IntArray

Terms = Sequence[tuple[FeatureMap, Mapping[int, FloatArray]]]
"""Feature map and kernel coefficients by element of each kernel."""

States = Mapping[Descriptor, DescriptorState]
Similarities = Mapping[FeatureMap, Sequence[Similarity]]


def find_similarities(feature_maps: Sequence[FeatureMap], states: States, numbers: IntArray) -> Similarities:
    """Dot products of the atoms of a structure with the representatives of several feature maps."""
    return {m: m.similarities(states[m.descriptor], numbers) for m in feature_maps}


def expand(terms: Terms, similarities: Similarities, size: int, *, gradients: bool = False) -> Array:
    """F of ``size`` atoms, (N,); at least one kernel.  ``gradients``: see :meth:`FeatureMap.expand`."""
    total: Array | None = None
    for feature_map, coefficients in terms:
        own = feature_map.expand(similarities[feature_map], size, coefficients, gradients=gradients)
        total = own if total is None else total + own
    assert total is not None
    return total


def descriptor_gradients(
    terms: Terms, similarities: Similarities, states: States, weights: Array | None = None
) -> dict[Descriptor, Array]:
    """weights_i ∂f_i/∂p_i for each descriptor, (N, F) each; all weights 1 if none are given."""
    gradients: dict[Descriptor, Array] = {}
    for feature_map, coefficients in terms:
        descriptor = feature_map.descriptor
        own = feature_map.descriptor_gradient(
            similarities[feature_map], states[descriptor].values.shape, coefficients, weights
        )
        gradients[descriptor] = gradients[descriptor] + own if descriptor in gradients else own
    return gradients


def site_jacobian(terms: Terms, similarities: Similarities, states: States) -> SiteJacobian:
    """∂f_i/∂r and ∂f_i/∂ε of all atoms."""
    total: SiteJacobian | None = None
    for descriptor, gradient in descriptor_gradients(terms, similarities, states).items():
        own = states[descriptor].site_jacobian(gradient)
        if total is not None:
            own = SiteJacobian(total.positions + own.positions, total.strain + own.strain)
        total = own
    assert total is not None
    return total


def features_many(
    feature_maps: Sequence[FeatureMap], states: Sequence[States], numbers: Sequence[IntArray]
) -> list[Array]:
    """Φ of all kernels side by side, for structures of the same elements, (N, p) each."""
    blocks = [m.features_many([own[m.descriptor] for own in states], numbers) for m in feature_maps]
    if len(blocks) == 1:
        return blocks[0]
    xp = namespace(blocks[0][0])
    return [xp.concat(list(parts), axis=1) for parts in zip(*blocks, strict=True)]


def beside(parts: Sequence[SummedFeatures]) -> SummedFeatures:
    """Σ_i Φ_i of several kernels of one structure side by side."""
    if len(parts) == 1:
        return parts[0]
    xp = namespace(parts[0].values)

    def joined(own: Sequence[Array | None]) -> Array | None:
        present = [part for part in own if part is not None]
        return xp.concat(present, axis=-1) if present else None

    return SummedFeatures(
        xp.concat([part.values for part in parts]),
        joined([part.positions for part in parts]),
        joined([part.strain for part in parts]),
    )


def feature_gradients(
    feature_maps: Sequence[FeatureMap],
    states: States,
    numbers: IntArray,
    weights: Array,
    deltas: Sequence[float] | None = None,
) -> FeatureGradients:
    """Derivatives of Σ_i weights_i Φ_i with respect to positions (3N, p) and strain (9, p), times δ where given."""
    parts = []
    for number, m in enumerate(feature_maps):
        own = weights if deltas is None else deltas[number] * weights
        parts.append(m.feature_gradients(states[m.descriptor], numbers, own))
    if len(parts) == 1:
        return parts[0]
    xp = namespace(weights)
    return FeatureGradients(
        xp.concat([part.positions for part in parts], axis=1),
        xp.concat([part.strain for part in parts], axis=1),
    )


def contract(
    jacobians: Sequence[FeatureJacobian], weights: FloatArray, deltas: Sequence[float]
) -> FloatArray:
    """As :func:`feature_gradients`, positions only, from derivatives that are known."""
    parts = [own.contract(delta * weights) for own, delta in zip(jacobians, deltas, strict=True)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def along(jacobians: Sequence[FeatureJacobian], weights: FloatArray) -> FloatArray:
    """∂f_i/∂r of all atoms, (3N, N), with f_i = Φ_i · weights over the features of all kernels side by side."""
    stops = np.cumsum([own.size for own in jacobians])
    parts = [own.along(part) for own, part in zip(jacobians, np.split(weights, stops[:-1]), strict=True)]
    return np.asarray(sum(parts[1:], parts[0]))


__all__ = [
    "Similarities",
    "States",
    "Terms",
    "along",
    "beside",
    "contract",
    "descriptor_gradients",
    "expand",
    "feature_gradients",
    "features_many",
    "find_similarities",
    "site_jacobian",
]
