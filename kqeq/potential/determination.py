"""What the training data leave open: element means of electronegativity and energy, before and after the fit.

Energies of structures follow from data as differences.  Two things may be in no difference: the energies of the elements,
where all frames are multiples of few compositions, and the uniform part of the electronegativities (the chemical
potential), where all frames have one total charge or charge goes along with composition.  Both show in the element means

    m_z = χ0_z + δ φ̄_z · w,      e_z = e0_z + δ φ̄'_z · w'

over the representative environments of element z, whose joint covariance C (posterior) and P (prior) a potential keeps:
2Z × 2Z numbers.  To first order an energy depends on them through v = (Σ_{i∈z} q_i, n_z) and ∂E/∂Q through
v = (Σ_{i∈z} ∂q_i/∂Q, 0), with variance vᵀ C v.

In the basis of directions d_k with P = Σ d_k d_kᵀ and C = Σ λ_k d_k d_kᵀ, 0 ≤ λ_k ≤ 1, a direction is open where the data
have not halved its standard deviation, λ_k > ¼.  A quantity is not determined where its standard deviation exceeds 0.3 eV
and either exceeds half its prior one, or does so already by what comes from open directions.  (The first rule alone would
call a quantity determined that lies mostly along directions which data fix and for the rest along one that they leave
open: OH⁻ of a model of water.)

Dimensions: Z elements, K ≤ 2Z directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kqeq.typing import FloatArray, IntArray

TOLERANCE = 0.3
"""Standard deviation in eV, or eV/e, up to which a quantity counts as determined."""

OPEN = 0.25
"""Posterior variance in units of the prior's beyond which a direction counts as open."""


@dataclass(frozen=True, eq=False)
class Determination:
    """Covariance of the element means, electronegativities (eV/e) first, then energies (eV).

    Attributes
    ----------
    species : tuple of int
        The Z elements.
    covariance, prior : (2Z, 2Z) arrays
        C and P; zero for what the model does not have.
    """

    species: tuple[int, ...]
    covariance: FloatArray
    prior: FloatArray

    @cached_property
    def _directions(self) -> tuple[FloatArray, FloatArray]:
        """The d_k as columns (2Z, K), and λ_k (K,)."""
        values, vectors = np.linalg.eigh(0.5 * (self.prior + self.prior.T))
        kept = values > 1e-12 * max(float(values.max(initial=0.0)), 1e-300)
        roots = np.sqrt(values[kept])
        whitened = (vectors[:, kept] / roots).T @ self.covariance @ (vectors[:, kept] / roots)
        shares, axes = np.linalg.eigh(0.5 * (whitened + whitened.T))
        return (vectors[:, kept] * roots) @ axes, np.clip(shares, 0.0, None)

    def with_spread(self, spread: FloatArray) -> Determination:
        """The same data under a prior with more variance.

        With the information Λ⁻¹ − 1 of the data and P + S = D (1 + G) Dᵀ, C becomes D (Λ⁻¹ − 1 + (1 + G)⁻¹)⁻¹ Dᵀ.

        Parameters
        ----------
        spread : (2Z, 2Z) array
            S, a covariance.
        """
        directions, shares = self._directions
        inverse = np.linalg.pinv(directions)
        size = len(shares)
        information = np.diag(1.0 / np.clip(shares, 1e-14, 1.0) - 1.0)
        broader = np.eye(size) + inverse @ spread @ inverse.T
        inner = np.linalg.inv(information + np.linalg.inv(broader))
        covariance = directions @ inner @ directions.T
        prior = directions @ broader @ directions.T
        return Determination(self.species, 0.5 * (covariance + covariance.T), 0.5 * (prior + prior.T))

    def conditioned(self, rows: FloatArray, std: float) -> Determination:
        """With quantities of the derivatives ``rows`` (n, 2Z) known to a standard deviation (eV)."""
        across = self.covariance @ rows.T
        inner = rows @ across + std**2 * np.eye(len(rows))
        covariance = self.covariance - across @ np.linalg.solve(inner, across.T)
        return Determination(self.species, 0.5 * (covariance + covariance.T), self.prior)

    def row(self, numbers: IntArray, charges: FloatArray | None, *, energy: bool) -> FloatArray:
        """The derivative v of a quantity with respect to the element means, (2Z,).

        Parameters
        ----------
        numbers : (N,) array
        charges : (N,) array, optional
            Its derivatives with respect to the electronegativities of the atoms: charges for an energy, the Fukui
            function for ∂E/∂Q.
        energy : bool
            Whether it depends on the energies of the elements.
        """
        member = (np.asarray(self.species)[:, None] == numbers[None, :]).astype(np.float64)
        electric = np.zeros(len(self.species)) if charges is None else member @ charges
        return np.concatenate([electric, member.sum(axis=1) * float(energy)])

    def std(self, row: FloatArray) -> float:
        """Posterior standard deviation of what has the derivative v, eV."""
        directions, shares = self._directions
        return float(np.sqrt(shares @ (directions.T @ row) ** 2))

    def prior_std(self, row: FloatArray) -> float:
        """Its prior standard deviation, eV."""
        return float(np.sqrt(max(float(row @ self.prior @ row), 0.0)))

    def open_std(self, row: FloatArray) -> float:
        """The part of its standard deviation that comes from open directions, eV."""
        directions, shares = self._directions
        return float(np.sqrt(np.where(shares > OPEN, shares, 0.0) @ (directions.T @ row) ** 2))

    def open_directions(self) -> FloatArray:
        """Directions that the data leave open, as rows (K, 2Z) as long as their standard deviations (eV/e, eV)."""
        directions, shares = self._directions
        kept = shares > OPEN
        return np.asarray((directions[:, kept] * np.sqrt(shares[kept])).T)

    def undetermined(self, row: FloatArray) -> float | None:
        """The standard deviation of what has the derivative v where data do not determine it, else ``None``."""
        std = self.std(row)
        if std <= TOLERANCE:
            return None
        return std if std > 0.5 * self.prior_std(row) or self.open_std(row) > TOLERANCE else None


__all__ = ["OPEN", "TOLERANCE", "Determination"]
