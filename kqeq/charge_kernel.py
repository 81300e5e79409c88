"""A kernel of charges, so that the short-range energy can tell charge states apart.

    k((p, q), (p', q')) = (p · p')^ζ (1 + q q'/s²)^n

(theory section 6; the kernel analogue of Ko et al. 2021, *Nat. Commun.* 12, 398).  The polynomial in the charges has
n + 1 exact features ψ_b(q) = √(n over b) (q/s)^b, so that

    E_sr = Σ_b Σ_i ψ_b(q_i) f_b(p_i)

with one kernel expansion f_b for each power.  The charges are those of the charge model at its minimum: E_sr does not
act back on them, but its derivatives contain those of the charges.

Dimensions: N atoms, n the order.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from kqeq.errors import InputError
from kqeq.typing import FloatArray

MAX_ORDER = 4
"""Each power is a kernel expansion of its own."""


class ChargeKernel(BaseEstimator):  # type: ignore[misc]
    """How the short-range energy depends on the charges of the atoms.

    Parameters
    ----------
    order : int
        Highest power of a charge, 1 to 4.
    scale : float
        Charge s that counts as large, e; the larger, the weaker the dependence that the prior expects.
    """

    def __init__(self, order: int = 2, scale: float = 0.5) -> None:
        self.order = order
        self.scale = scale

    def check(self) -> None:
        """Validate the settings.

        Raises
        ------
        InputError
        """
        if (
            not isinstance(self.order, Integral)
            or isinstance(self.order, bool)
            or not 1 <= self.order <= MAX_ORDER
        ):
            raise InputError(
                f"ChargeKernel(order={self.order!r}): expected a whole number from 1 to {MAX_ORDER}"
            )
        good = isinstance(self.scale, Real) and not isinstance(self.scale, bool)
        if not good or not (np.isfinite(self.scale) and self.scale > 0):
            raise InputError(f"ChargeKernel(scale={self.scale!r}): expected a positive charge in e")

    def features(self, charges: FloatArray, derivative: int = 0) -> FloatArray:
        """ψ_b of charges (N,), or a derivative with respect to the charge; (n + 1, N)."""
        result = np.zeros((int(self.order) + 1, len(charges)))
        for b in range(derivative, len(result)):
            falling = float(np.prod(np.arange(b - derivative + 1, b + 1)))
            weight = np.sqrt(comb(int(self.order), b)) * falling / self.scale**b
            result[b] = weight * charges ** (b - derivative)
        return result

    def to_dict(self) -> dict[str, Any]:
        """Parameters as plain data."""
        return {"order": int(self.order), "scale": float(self.scale)}


@dataclass(frozen=True, eq=False)
class ChargeCoupling:
    """A short-range energy that depends on the charges, at the charges of one structure.

    Attributes
    ----------
    energy : float
        Σ_b Σ_i ψ_b f_b, eV.
    weights : (n + 1, N) array
        ψ_b(q_i).
    slope : (N,) array
        g = ∂E_sr/∂q, eV/e.
    curvature : (N,) array
        ∂g/∂q, eV/e².
    """

    energy: float
    weights: FloatArray
    slope: FloatArray
    curvature: FloatArray

    @classmethod
    def at(cls, kernel: ChargeKernel, charges: FloatArray, expansions: FloatArray) -> ChargeCoupling:
        """From charges (N,) and the expansions f_b, (n + 1, N) in eV."""
        weights, slopes, curvatures = (kernel.features(charges, derivative) for derivative in range(3))
        return cls(
            float(np.vdot(weights, expansions)),
            weights,
            np.asarray((slopes * expansions).sum(axis=0)),
            np.asarray((curvatures * expansions).sum(axis=0)),
        )


__all__ = ["MAX_ORDER", "ChargeCoupling", "ChargeKernel"]
