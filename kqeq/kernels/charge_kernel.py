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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb, prod, sqrt
from typing import Any

from sklearn.base import BaseEstimator

from kqeq.backend import namespace, to_float
from kqeq.io.rules import Rule, check_settings, number, whole
from kqeq.typing import Array

MAX_ORDER = 4
"""Each power is a kernel expansion of its own."""


_RULES: Mapping[str, Rule] = {"order": whole(1, MAX_ORDER), "scale": number(above=0)}


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
        check_settings(self, _RULES)

    def features(self, charges: Array, derivative: int = 0) -> Array:
        """ψ_b of charges (N,), or a derivative with respect to the charge; (n + 1, N)."""
        rows = []
        for b in range(int(self.order) + 1):
            falling = prod(range(b - derivative + 1, b + 1)) if b >= derivative else 0
            weight = sqrt(comb(int(self.order), b)) * falling / float(self.scale) ** b
            rows.append(weight * charges ** max(b - derivative, 0))
        return namespace(charges).stack(rows)

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
    weights: Array
    slope: Array
    curvature: Array

    @classmethod
    def at(cls, kernel: ChargeKernel, charges: Array, expansions: Sequence[Array]) -> ChargeCoupling:
        """From charges (N,) and the n + 1 expansions f_b, (N,) each in eV."""
        xp = namespace(charges)
        values = xp.stack(list(expansions))
        weights, slopes, curvatures = (kernel.features(charges, derivative) for derivative in range(3))
        return cls(
            to_float(xp.sum(weights * values)),
            weights,
            xp.sum(slopes * values, axis=0),
            xp.sum(curvatures * values, axis=0),
        )


__all__ = ["MAX_ORDER", "ChargeCoupling", "ChargeKernel"]
