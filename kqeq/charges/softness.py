"""Bond softness: how easily charge flows between two atoms.

    k_ij(r) = √(κ_i κ_j) f(r / r0),   r0 = R_i + R_j,
    f(x)    = exp(−β (x − 1)) [(x_c² − x²) / (x_c² − 1)]³     for x < x_c, and 0 beyond

with covalent radii R (Cordero et al. 2008).  f is twice continuously differentiable at the cutoff and 1 for
a bond of the length of the sum of radii, where the softness is the geometric mean of those of the atoms.
Charge flows along bonds, less along stretched ones, and hardly to second neighbours.

The default κ_i = α_i / R_i², with the polarizability α_i of the free atom, is what makes the transfer of
charge over the atom's own radius polarise as much as the atom does.

**How the form was chosen**: by cross-validation among training data only.  Element parameters were learned from the
polarizabilities of N-methylacetamide (five disjoint sets of 40 geometries, fourfold cross-validation in each; mean
RMSE in Å³, ± about 0.02 and 0.01 between sets) and of all-trans alkanes (learned up to C5, longitudinal error at C6);
a kernel was fitted to dipoles of water clusters (threefold; RMSE in e·Å).  A and B: ACKS2 without and with dipoles.

==================================  ======  ======  =======  =======  =======  =======
form                                NMA A   NMA B   C6 A     C6 B     water A  water B
==================================  ======  ======  =======  =======  =======  =======
β = 0, x_c = 1.8 (the default)      0.263   0.151   +0.6 %   +0.1 %   0.026    0.014
β = 0, x_c = 1.5                    0.289   0.154   +0.5 %   +0.2 %
β = 0, x_c = 2                      0.272   0.158   +1.7 %   −0.0 %   0.029    0.018
β = 1, x_c = 2                      0.273   0.157   +0.9 %   +0.1 %   0.027    0.016
β = 3, x_c = 2.5                    0.288   0.167   +0.2 %   +0.1 %   0.029    0.017
β = 3, x_c = 4                      0.284   0.173            +0.1 %
x⁻² instead of exp, x_c = 1.8       0.287   0.155   +0.5 %   +0.2 %
Slater overlap, x_c = 1.8           0.264   0.152   +0.6 %   +0.2 %
default, arithmetic mean of κ       0.263   0.149   +0.6 %   +0.1 %
default, harmonic mean of κ         0.309   0.170   +0.6 %   +0.2 %
==================================  ======  ======  =======  =======  =======  =======

So the range matters a little and the shape less; dipoles of the other packaged sets differ by 2 % at most.  Defaults of
κ are rough: halving them is as good for N-methylacetamide and better for alkanes with dipoles, and worse without.

Dimensions: N atoms, P directed pairs, c columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from kqeq import elements
from kqeq.constants import COULOMB
from kqeq.neighbours import find_pairs
from kqeq.structures import Structure
from kqeq.typing import FloatArray, IntArray

DEFAULT_DECAY = 0.0
"""β, measured in lengths of a bond."""

DEFAULT_CUTOFF = 1.8
"""x_c, in sums of covalent radii."""


def default_softness(numbers: IntArray) -> FloatArray:
    """κ = α/R² of every atom, (N,) array in e²/eV.

    Raises
    ------
    InputError
        For elements without data.
    """
    return np.asarray(elements.polarizability(numbers) / COULOMB / elements.width(numbers) ** 2)


def switched_decay(x: FloatArray, decay: float, cutoff: float) -> tuple[FloatArray, FloatArray]:
    """f(x) and f′(x) for distances x < ``cutoff`` in units of r0."""
    scale = 1.0 / (1.0 - cutoff**-2)
    window = scale * (1.0 - (x / cutoff) ** 2)
    exponential = np.exp(-decay * (x - 1.0))
    value = exponential * window**3
    slope = -decay * value - exponential * window**2 * (6.0 * scale / cutoff**2) * x
    return value, slope


@dataclass(frozen=True, eq=False)
class Links:
    """Pairs between which charge flows; every pair appears in both directions, periodic images included.

    Attributes
    ----------
    atoms : int
        N.
    i, j : (P,) int arrays
    vectors : (P, 3) array
        r_j − r_i, Å.
    distances : (P,) array
    softness : (P,) array
        k, e²/eV.
    slope : (P,) array
        ∂k/∂r, e²/(eV·Å).
    """

    atoms: int
    i: IntArray
    j: IntArray
    vectors: FloatArray
    distances: FloatArray
    softness: FloatArray
    slope: FloatArray

    @classmethod
    def build(cls, structure: Structure, softness: FloatArray, decay: float, cutoff: float) -> Links:
        """Find the pairs and their softness.

        Parameters
        ----------
        structure : Structure
        softness : (N,) array
            κ of every atom.
        decay, cutoff : float
            β and x_c.
        """
        radii = elements.width(structure.numbers)  # the covalent radii
        pairs = find_pairs(structure, 2.0 * cutoff * float(radii.max()))
        i, j = pairs.indices[:, 0], pairs.indices[:, 1]
        distances = np.sqrt(np.einsum("pa,pa->p", pairs.vectors, pairs.vectors))
        bond = radii[i] + radii[j]
        near = (distances < cutoff * bond) & (softness[i] > 0.0) & (softness[j] > 0.0)
        i, j, distances, bond = i[near].copy(), j[near].copy(), distances[near], bond[near]
        mean = np.sqrt(softness[i] * softness[j])
        value, slope = switched_decay(distances / bond, decay, cutoff)
        return cls(
            len(structure), i, j, pairs.vectors[near].copy(), distances, mean * value, mean * slope / bond
        )

    @cached_property
    def _leaving(self) -> sparse.csc_array:
        """1 where a pair leaves an atom, (N, P) sparse."""
        count = len(self.i)
        # one entry in each column: the layout is known and nothing has to be sorted
        return sparse.csc_array((np.ones(count), self.i, np.arange(count + 1)), shape=(self.atoms, count))

    def collect(self, values: FloatArray) -> FloatArray:
        """Sum of pair values (P, c) over the pairs that leave each atom, (N, c)."""
        return np.asarray(self._leaving @ values)

    def laplacian(self) -> sparse.csr_array:
        """L = Σ k (e_i − e_j)(e_i − e_j)ᵀ, (N, N) sparse."""
        diagonal = np.arange(self.atoms)
        total = np.bincount(self.i, self.softness, minlength=self.atoms)
        return sparse.csr_array(
            (
                np.concatenate([total, -self.softness]),
                (np.concatenate([diagonal, self.i]), np.concatenate([diagonal, self.j])),
            ),
            shape=(self.atoms, self.atoms),
        )

    def laplacian_array(self) -> FloatArray:
        """L as an array: for small N sparse matrices cost more than they save."""
        cells = self.i * self.atoms + self.j
        total = np.asarray(np.bincount(cells, self.softness, minlength=self.atoms**2), dtype=np.float64)
        matrix: FloatArray = -total.reshape(self.atoms, self.atoms)
        matrix[np.diag_indices(self.atoms)] -= matrix.sum(axis=1)
        return matrix

    def coupling(self) -> FloatArray:
        """W_i = Σ_j k_ij r_ij, (N, 3): minus the charge that a field brings to atom i."""
        return self.collect(self.softness[:, None] * self.vectors)

    def stiffness(self) -> FloatArray:
        """M = Σ_pairs k r rᵀ, (3, 3): polarizability of the flows at fixed potentials."""
        return np.asarray(0.5 * (self.vectors * self.softness[:, None]).T @ self.vectors)

    def drops(self, potentials: FloatArray, field: FloatArray | None) -> FloatArray:
        """Drop of potential u_i − u_j − field · r_ij along each pair, (P, c), from (N, c) and (3, c)."""
        result = potentials[self.i] - potentials[self.j]
        return result if field is None else result - self.vectors @ field

    def pull(self, weights: FloatArray) -> FloatArray:
        """Σ_pairs w ∂r/∂r_k for symmetric weights (P, c), (N, 3, c)."""
        unit = self.vectors / self.distances[:, None]
        columns = weights.shape[1]
        values = (unit[:, :, None] * weights[:, None, :]).reshape(len(weights), 3 * columns)
        return -self.collect(values).reshape(self.atoms, 3, columns)

    def stretch(self, weights: FloatArray) -> FloatArray:
        """Σ_pairs w ∂r/∂ε for symmetric weights (P, c), (3, 3, c)."""
        unit = self.vectors / self.distances[:, None]
        return np.asarray(0.5 * np.einsum("pa,pb,pc->abc", self.vectors, unit, weights, optimize=True))


__all__ = ["DEFAULT_CUTOFF", "DEFAULT_DECAY", "Links", "default_softness", "switched_decay"]
