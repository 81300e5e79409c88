"""Radial functions of the interaction of Gaussian charges, accurate down to r = 0.

With f(r) = erf(a r)/r and a = 1/(√2 γ), the functions

    B_0 = f,   B_{n+1} = −(1/r) dB_n/dr

give every Cartesian derivative without a singular term (x = r_j − r_i):

    f_α = −x_α B_1
    f_αβ = −δ_αβ B_1 + x_α x_β B_2
    f_αβγ = (δ_αβ x_γ + δ_αγ x_β + δ_βγ x_α) B_2 − x_α x_β x_γ B_3.

They are Boys functions, B_n(r) = (2/√π) a (2a²)ⁿ F_n(a² r²), F_n(t) = ∫₀¹ u²ⁿ exp(−t u²) du, the
same that occur in integrals over Gaussian basis functions (Helgaker, Jørgensen, Olsen, *Molecular
Electronic-Structure Theory*, Wiley 2000, section 9.8).
"""

from __future__ import annotations

import math

from kqeq import backend
from kqeq.backend import erf, erfc, namespace
from kqeq.electrostatics import cuda_kernels
from kqeq.typing import Array

SERIES_LIMIT = 1.0
"""Below this t the Boys functions come from their series, above it from erf and upward recursion.

At t = 1 the upward recursion still has 14 digits for n = 3; it would lose all of them as t → 0."""

_SERIES_TERMS = 17  # the first neglected term is below 1e-17 of the sum at t = SERIES_LIMIT


def boys(t: Array, order: int) -> list[Array]:
    """Boys functions F_0(t) … F_order(t) for t ≥ 0.

    Parameters
    ----------
    t : array of any shape
    order : int

    Returns
    -------
    list of ``order + 1`` arrays of the shape of ``t``
    """
    xp = namespace(t)
    flat = xp.reshape(t, (-1,))
    small = flat < SERIES_LIMIT
    safe = xp.where(small, xp.full_like(flat, SERIES_LIMIT), flat)
    root = xp.sqrt(safe)
    decay = xp.exp(-safe)
    values = [0.5 * math.sqrt(math.pi) * erf(root) / root]
    half_inverse = 0.5 / safe
    for n in range(order):
        values.append(((2 * n + 1) * values[n] - decay) * half_inverse)
    if bool(xp.any(small)):
        for value, series in zip(values, _boys_series(flat[small], order), strict=True):
            value[small] = series
    return [xp.reshape(value, t.shape) for value in values]


def _boys_series(t: Array, order: int) -> list[Array]:
    """Series F_n = e⁻ᵗ Σ_k (2t)ᵏ / ((2n+1)(2n+3)…(2n+2k+1)) for the highest n, then downwards.

    All terms are positive and so is the downward recursion F_n = (2t F_{n+1} + e⁻ᵗ)/(2n+1): there
    is no cancellation.
    """
    xp = namespace(t)
    decay = xp.exp(-t)
    total = xp.ones_like(t)
    for k in range(_SERIES_TERMS, 0, -1):
        total = 1.0 + total * (2.0 * t / (2 * order + 2 * k + 1))
    values = [decay * total / (2 * order + 1)]
    for n in range(order - 1, -1, -1):
        values.insert(0, (2.0 * t * values[0] + decay) / (2 * n + 1))
    return values


def gaussian_coulomb(r2: Array, a: Array | float, order: int) -> list[Array]:
    """B_0 … B_order for erf(a r)/r.

    Parameters
    ----------
    r2 : array
        Squared distances in Å².
    a : array or float
        1/(√2 γ) in 1/Å, broadcastable to ``r2``.
    order : int
        2 suffices for the matrix with dipoles, 3 for its gradient.

    Returns
    -------
    list of arrays
        B_n in Å^−(2n+1).
    """
    a2 = a * a
    values = boys(r2 * a2, order)
    factor = 2.0 / math.sqrt(math.pi) * a
    result = []
    for value in values:
        result.append(value * factor)
        factor = factor * (2.0 * a2)
    return result


def gaussian_width_response(r2: Array, a: Array | float, order: int) -> list[Array]:
    """Derivative of B_0 … B_order with respect to γ²/2, i.e. ∂B_n/∂σ_i = σ_i × this.

    Broadening is diffusion: ∂f/∂γ² = ½ ∇²f = −2π g, with g the normalised Gaussian of variance
    γ².  Hence H_0 = −4π g and H_{n+1} = −(1/r) dH_n/dr = 2a² H_n.
    """
    xp = namespace(r2)
    a2 = a * a
    value = xp.exp(-r2 * a2) * (a2 * a * (-4.0 / math.sqrt(math.pi)))
    result = [value]
    for _ in range(order):
        value = value * (2.0 * a2)
        result.append(value)
    return result


def screened_coulomb(r2: Array, a: Array, kappa: float, order: int) -> list[Array]:
    """B_0 … B_order for [erfc(κ r) − erfc(a r)]/r, the real-space part of an Ewald sum.

    From C_0 = erfc(a r)/r and C_{n+1} = ((2n+1) C_n + (2a²)ⁿ (2a/√π) exp(−a² r²))/r², all terms
    positive; where r is so small that the two of them cancel, from the Boys functions.

    Parameters
    ----------
    r2, a : (P,) arrays
    kappa : float
        1/Å.
    order : int
    """
    if backend.use_raw_kernels(r2):
        return cuda_kernels.screened_coulomb(r2, a, kappa, order)
    xp = namespace(r2, a)
    close = r2 * xp.maximum(a * a, xp.full_like(a, kappa * kappa)) < SERIES_LIMIT
    any_close = bool(xp.any(close))
    safe = xp.where(close, xp.ones_like(r2), r2) if any_close else r2
    r = xp.sqrt(safe)
    inverse = 1.0 / safe
    wide = erfc(r * kappa) / r
    narrow = erfc(r * a) / r
    result = [wide - narrow]
    if order:
        wide_factor = (2.0 * kappa / math.sqrt(math.pi)) * xp.exp(safe * (-kappa * kappa))
        narrow_factor = (2.0 / math.sqrt(math.pi)) * a * xp.exp(-(safe * (a * a)))
        for n in range(order):
            wide = ((2 * n + 1) * wide + wide_factor) * inverse
            narrow = ((2 * n + 1) * narrow + narrow_factor) * inverse
            result.append(wide - narrow)
            wide_factor = wide_factor * (2.0 * kappa * kappa)
            narrow_factor = narrow_factor * (2.0 * a * a)
    if any_close:
        at = r2[close]
        smeared = gaussian_coulomb(at, xp.full_like(at, kappa), order)
        for value, gaussian, background in zip(
            result, gaussian_coulomb(at, a[close], order), smeared, strict=True
        ):
            value[close] = gaussian - background
    return result


__all__ = [
    "SERIES_LIMIT",
    "boys",
    "gaussian_coulomb",
    "gaussian_width_response",
    "screened_coulomb",
]
