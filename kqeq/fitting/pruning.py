"""Fewer representatives after a fit, at a stated loss.

A prediction costs one dot product with every representative of the atom's element.  Representatives of an element come in
the order in which they were chosen, and the features of the first n of them are the same whatever follows: Φ = K L⁻ᵀ.
So leaving the last ones out is setting their parameters to zero, and with the quadratic form at the minimum of the
loss, ½ (u' − u)ᵀ H (u' − u), what that costs at least follows from one Cholesky factorisation: with those that may go
at the end of the order and H = L Lᵀ,

    increase(last k) = ½ Σ_{i > P − k} (Lᵀu)_i²         u'_kept = L_kk⁻ᵀ (Lᵀu)_kept

exact where labels are linear in the parameters.  Elements and kernels of the short-range energy go down together: after
the same share of their representatives each.

Dimensions: P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kqeq.backend.linalg import factorise, solve_lower
from kqeq.errors import UnsupportedError
from kqeq.fitting.parameters import Parameters, SitePart
from kqeq.kernels.feature_map import FeatureMap
from kqeq.typing import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class Pruned:
    """What is left.

    Attributes
    ----------
    parameters : Parameters
    u, lower : (P,), (P, P) arrays
        Parameters and the Cholesky factor of their precision.
    increase : float
        By how much the loss has grown, as far as the quadratic form says.
    dropped : int
        Number of representatives that went.
    """

    parameters: Parameters
    u: FloatArray
    lower: FloatArray
    increase: float
    dropped: int


def prune(parameters: Parameters, u: FloatArray, lower: FloatArray, allowed: float) -> Pruned:
    """Drop representatives of the short-range energy.

    Parameters
    ----------
    parameters : Parameters
    u, lower : (P,), (P, P) arrays
        The minimum of the loss, and the Cholesky factor of its second derivatives.
    allowed : float
        By how much the loss may grow.

    Raises
    ------
    UnsupportedError
        If there is no short-range energy, or its parameters come from a file of version 0.1.
    """
    part = parameters.short_range
    if part is None or not part.kernels:
        raise UnsupportedError("there is nothing to prune: the model has no short-range kernel")
    if not parameters.short_range_first:
        raise UnsupportedError("a posterior of version 0.1 cannot be pruned; fit the model again")
    hessian = lower @ lower.T
    order = _order(part, parameters.size)
    factor = factorise(hessian[np.ix_(order, order)])
    image = factor.T @ u[order]
    # increase[k]: of dropping the last k
    increase = np.concatenate([[0.0], 0.5 * np.cumsum(image[::-1] ** 2)])
    most = sum(kernel.size - len(kernel.feature_map.columns) for kernel in part.kernels)
    dropped = int(np.searchsorted(increase[: most + 1], allowed, side="right")) - 1
    left = parameters.size - dropped
    kept = order[:left]
    values = np.zeros(parameters.size)
    values[kept] = solve_lower(factor[:left, :left], image[:left], transposed=True)
    natural = np.sort(kept)
    return Pruned(
        _smaller(parameters, natural),
        values[natural],
        factorise(hessian[np.ix_(natural, natural)]),
        float(increase[dropped]),
        dropped,
    )


def _order(part: SitePart, size: int) -> IntArray:
    """All parameters, those of representatives at the end: the last chosen of each element last, by shares."""
    columns, shares = [], []
    for kernel in part.kernels:
        for own in kernel.feature_map.columns.values():
            count = own.stop - own.start
            columns.append(kernel.columns.start + np.arange(own.start + 1, own.stop))
            shares.append(np.arange(1, count) / count)
    movable = np.concatenate(columns)
    movable = movable[np.argsort(np.concatenate(shares), kind="stable")]
    return np.concatenate([np.setdiff1d(np.arange(size), movable), movable])


def _smaller(parameters: Parameters, kept: IntArray) -> Parameters:
    """The layout without the representatives whose columns are not kept."""
    part = parameters.short_range
    assert part is not None
    present = np.zeros(parameters.size, dtype=bool)
    present[kept] = True
    kernels, start = [], 0
    for kernel in part.kernels:
        own = present[kernel.columns]
        feature_map = kernel.feature_map
        rows = {
            z: feature_map.representatives[z][: int(own[columns].sum())]
            for z, columns in feature_map.columns.items()
        }
        smaller = FeatureMap(feature_map.descriptor, feature_map.zeta, rows, feature_map.species)
        kernels.append(replace(kernel, feature_map=smaller, columns=slice(start, start + smaller.size)))
        start += smaller.size
    energy = replace(part, kernels=tuple(kernels), columns=slice(0, start + len(part.offset_mean)))
    return parameters.with_short_range(energy)


__all__ = ["Pruned", "prune"]
