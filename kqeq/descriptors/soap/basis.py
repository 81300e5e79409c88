"""Everything about SOAP that does not depend on a structure: settings, radial basis, harmonics, layout.

The density of element Z around centre i is expanded as (dscribe 2.1.2, ``rbf="gto"``; theory section 4)

    c^Z_nlm = Σ_k W[l,n,k] Σ_j f(r) exp(a[l,k] r²) R_lm(r_ij)

    a[l,k] = −α s,   W[l,n,k] = (π/η)^{3/2} β[l,n,k] s[l,k]^{l+3/2},   s = 1 / (1 + α/η),   η = 1/(2σ²)

with R_lm = r^l Y_lm real and orthonormal, and f a switching function (1 for plain dscribe).  The row is

    p = π √(8/(2l+1)) Σ_m c^{Z1}_{n1} c^{Z2}_{n2}    for Z1 <= Z2, then l, n1, n2 (n2 >= n1 where Z1 = Z2)

Dimensions: S species, n radial functions, L = (l_max + 1)² harmonics with index l² + l + m,
F = S n (S n + 1)/2 · (l_max + 1) features.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from math import factorial, pi, sqrt

import numpy as np

from kqeq.errors import InputError
from kqeq.typing import FloatArray, IntArray

LANES = 4
"""Radial functions are padded to a multiple of this: the kernels work on so many at once."""

FINE = 32
"""Steps of the fine table of exponentials for one of the coarse one."""

_LARGEST_STEP = 1.0 / 16.0
"""Largest |a| times distance from an entry of the tables: where seven terms of the series are enough."""


@dataclass(frozen=True, eq=False)
class RadialBasis:
    """Radial part of the expansion.

    Attributes
    ----------
    exponents : (l_max + 1, n) array
        a[l, k], 1/Å², negative.
    weights : (l_max + 1, n, n) array
        W[l, n, k].
    prefactors : (l_max + 1,) array
        π √(8/(2l+1)).
    cutoff : float
        Where dscribe cuts off, r_cut + σ √(−2 ln 0.001), Å.
    """

    exponents: FloatArray
    weights: FloatArray
    prefactors: FloatArray
    cutoff: float


@dataclass(frozen=True, eq=False)
class Harmonics:
    """Recursion and gradient coefficients of the real solid harmonics.

    Attributes
    ----------
    recursion : (L, 2) array
        R_lm = u z R_{l−1,m} − v r² R_{l−2,m} for |m| < l; for |m| = l the first entry is the factor of
        the rotation (x + iy) applied to R_{l−1,±(l−1)}.
    gradient_rows : (L, 5) int array
        Rows (of degree l−1) that enter ∂R/∂x (two), ∂R/∂y (two), ∂R/∂z (one).
    gradient_factors : (L, 5) array
        Their factors; 0 where a term is absent.
    plain_recursion : (L, 2) array
        The same recursion for R_lm / scale, which starts with 1.
    scales : (L,) array
        R_lm divided by plain harmonics: norm times (l + |m|)!.
    """

    recursion: FloatArray
    gradient_rows: IntArray
    gradient_factors: FloatArray
    plain_recursion: FloatArray
    scales: FloatArray


@dataclass(frozen=True, eq=False)
class Exponentials:
    """Tables for exp(a[l, k] r²) = exp(a c) exp(a f) exp(a d), r² = c + f + d with d of at most half a step.

    Attributes
    ----------
    step : float
        Å², a power of two.
    rates : (w,) array
        a[l, k] in the order (l, k), and zeros.
    coarse, fine : (… w,), (FINE w,) arrays
        exp(a c) and exp(a f), row by row, for multiples c of FINE steps up to the square of the cutoff, and f of a step.
    """

    step: float
    rates: FloatArray
    coarse: FloatArray
    fine: FloatArray


def exponentials(exponents: FloatArray, cutoff: float) -> Exponentials:
    """Tables for distances up to a cutoff (Å)."""
    degrees, n_radial = exponents.shape
    # eight from any degree on can be read
    width = -(-((degrees - 1) * n_radial + -(-n_radial // 8) * 8) // LANES) * LANES
    rates = np.zeros(width)
    rates[: exponents.size] = exponents.ravel()
    step = float(2.0 ** np.floor(np.log2(2.0 * _LARGEST_STEP / np.abs(exponents).max())))
    rows = int(cutoff**2 / (step * FINE)) + 2
    coarse = np.exp(rates * (step * FINE) * np.arange(rows)[:, None])
    fine = np.exp(rates * step * np.arange(FINE)[:, None])
    return Exponentials(step, rates, coarse.ravel(), fine.ravel())


@lru_cache(maxsize=64)
def radial_basis(r_cut: float, n_max: int, l_max: int, sigma: float) -> RadialBasis:
    """Take α and β from dscribe, which stays the definition, and fold the Gaussian width in.

    Raises
    ------
    InputError
        If dscribe cannot orthonormalise so many radial functions within so short a cutoff.
    """
    with warnings.catch_warnings():
        # docstrings of dscribe 2.1.2; printed where it is compiled here (uv installs no bytecode) since Python 3.12
        warnings.filterwarnings("ignore", ".*invalid escape sequence")
        from dscribe.descriptors import SOAP
    from scipy.linalg import LinAlgWarning

    try:
        with warnings.catch_warnings():
            # an overlap matrix that is singular to working precision would give noise for β
            warnings.simplefilter("error", LinAlgWarning)
            reference = SOAP(
                species=["H"], r_cut=r_cut, n_max=n_max, l_max=l_max, sigma=sigma, rbf="gto", periodic=False
            )
        cutoff = r_cut + float(reference.get_cutoff_padding())
        alpha, beta = np.asarray(reference._alphas), np.asarray(reference._betas)
        usable = bool(np.isfinite(alpha).all() and np.isfinite(beta).all())
    except (ValueError, np.linalg.LinAlgError, LinAlgWarning):
        usable = False
    if not usable:
        raise InputError(
            f"the radial basis with r_cut={r_cut:g} Å, n_max={n_max}, l_max={l_max} is linearly dependent to "
            "working precision; lower n_max or increase r_cut"
        )
    eta = 1 / (2 * sigma**2)
    shrink = 1 / (1 + alpha / eta)
    degree = np.arange(l_max + 1)[:, None]
    weights = (pi / eta) ** 1.5 * beta * (shrink ** (degree + 1.5))[:, None, :]
    prefactors = pi * np.sqrt(8 / (2 * np.arange(l_max + 1) + 1.0))
    return RadialBasis(-alpha * shrink, np.ascontiguousarray(weights), prefactors, cutoff)


def _norm(degree: int, order: int) -> float:
    """Factor that makes Q_lm (cos mφ, sin mφ) orthonormal, without Condon–Shortley phase."""
    factor = (2 * degree + 1) / (4 * pi) * factorial(degree - order) / factorial(degree + order)
    return sqrt(factor * (1 if order == 0 else 2))


@lru_cache(maxsize=32)
def harmonics(l_max: int) -> Harmonics:
    """Coefficients for R_lm = r^l Y_lm up to degree ``l_max``.

    With Q_lm = r^{l−m} d^m P_l/dt^m (t = z/r) the recursions are the textbook ones of associated
    Legendre functions, and x^m-type factors obey (x + iy)^{m+1} = (x + iy)(x + iy)^m.  Gradients of
    solid harmonics are solid harmonics of one degree less:

        ∂z R_lm ∝ (l+m) Q_{l−1,m},   ∂x, ∂y mix Q_{l−1,m+1} (factor −½) and Q_{l−1,m−1} (½(l+m)(l+m−1))
    """
    size = (l_max + 1) ** 2
    recursion = np.zeros((size, 2))
    plain, scales = np.zeros((size, 2)), np.zeros(size)
    scales[0] = _norm(0, 0)
    rows = np.zeros((size, 5), dtype=np.int64)
    factors = np.zeros((size, 5))
    recursion[0, 0] = _norm(0, 0)

    def row(degree: int, order: int) -> int:
        return degree * degree + degree + order

    for degree in range(1, l_max + 1):
        for order in range(degree + 1):
            norm = _norm(degree, order)
            if order == degree:
                first, second = (2 * degree - 1) * norm / _norm(degree - 1, degree - 1), 0.0
            else:
                first = (2 * degree - 1) / (degree - order) * norm / _norm(degree - 1, order)
                second = 0.0
                if order <= degree - 2:
                    second = (degree + order - 1) / (degree - order) * norm / _norm(degree - 2, order)
            up = 0.5 * norm / _norm(degree - 1, order + 1) if order + 1 <= degree - 1 else 0.0
            down = 0.0
            if order >= 1:
                down = 0.5 * (degree + order) * (degree + order - 1) * norm / _norm(degree - 1, order - 1)
            along = (degree + order) * norm / _norm(degree - 1, order) if order <= degree - 1 else 0.0
            for sign in (1, -1) if order else (1,):
                here = row(degree, sign * order)
                recursion[here] = first, second
                scales[here] = norm * factorial(degree + order)
                plain[here] = 1 / (2 * degree), 0.0
                if order < degree:
                    both = (degree - order) * (degree + order)
                    plain[here] = (2 * degree - 1) / both, 1 / both if order <= degree - 2 else 0.0
                # (row, factor) of ∂x from order+1 and order−1, ∂y likewise, ∂z
                if order == 0:
                    terms = [(1, -2 * up), (0, 0.0), (-1, -2 * up), (0, 0.0), (0, along)]
                elif sign > 0:
                    terms = [
                        (order + 1, -up),
                        (order - 1, down),
                        (-(order + 1), -up),
                        (-(order - 1), -down if order > 1 else 0.0),
                        (order, along),
                    ]
                else:
                    terms = [
                        (-(order + 1), -up),
                        (-(order - 1), down if order > 1 else 0.0),
                        (order + 1, up),
                        (order - 1, down),
                        (-order, along),
                    ]
                for t, (other, factor) in enumerate(terms):
                    if factor != 0.0:
                        rows[here, t] = row(degree - 1, other)
                        factors[here, t] = factor
    return Harmonics(recursion, rows, factors, plain, scales)


def feature_count(species: int, n_max: int, l_max: int) -> int:
    """F for a number of species."""
    size = species * n_max
    return size * (size + 1) // 2 * (l_max + 1)


def block_slices(species: tuple[int, ...], n_max: int, l_max: int) -> dict[tuple[int, int], slice]:
    """Where the block of each element pair lies in a row; see :class:`kqeq.descriptors.base.Descriptor`."""
    start = 0
    slices = {}
    for i, first in enumerate(species):
        for second in species[i:]:
            inner = n_max * (n_max + 1) // 2 if first == second else n_max * n_max
            slices[first, second] = slice(start, start + inner * (l_max + 1))
            start += inner * (l_max + 1)
    return slices


__all__ = [
    "FINE",
    "LANES",
    "Exponentials",
    "Harmonics",
    "RadialBasis",
    "block_slices",
    "exponentials",
    "feature_count",
    "harmonics",
    "radial_basis",
]
