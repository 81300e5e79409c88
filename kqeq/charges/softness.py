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

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from kqeq import elements
from kqeq.backend import (
    CPU,
    Device,
    arange,
    asarray_like,
    namespace,
    pair_matrix,
    segment_sum,
    selection_matrix,
    to_numpy,
)
from kqeq.backend.linalg import add_to_diagonal
from kqeq.constants import COULOMB
from kqeq.errors import InputError
from kqeq.frames.conditions import as_numbers
from kqeq.frames.neighbours import find_pairs
from kqeq.frames.structures import Structure
from kqeq.typing import Array, FloatArray, IntArray

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


PAIR_LEARN = "learn"
"""In place of a factor, or of all factors: learn it, from 1."""

GivenFactors = Mapping[str, float | str] | str | None
"""What users say of factors by pair: some of them, ``"learn"`` for all, ``None`` for factors of 1."""


def pair_of(name: str) -> tuple[int, int]:
    """Atomic numbers, in ascending order, of a pair such as ``"Al-O"``.

    Raises
    ------
    InputError
        For anything but two element symbols.
    """
    symbols = str(name).split("-")
    if len(symbols) != 2 or any(symbol not in atomic_numbers or symbol == "X" for symbol in symbols):
        raise InputError(f'pair_softness names {name!r}; expected two element symbols, for example "Al-O"')
    first, second = sorted(atomic_numbers[symbol] for symbol in symbols)
    return first, second


def pair_name(pair: tuple[int, int]) -> str:
    """The name of a pair, for example ``"O-Al"``."""
    return "-".join(chemical_symbols[z] for z in pair)


def pair_classes(numbers: IntArray) -> tuple[tuple[int, int], ...]:
    """All pairs of the elements of some atoms, K of them, in ascending order."""
    species = sorted({int(z) for z in numbers})
    return tuple(combinations_with_replacement(species, 2))


def learned_pairs(given: GivenFactors, numbers: IntArray) -> tuple[tuple[int, int], ...]:
    """Those pairs whose factors are to be learned."""
    if isinstance(given, str):
        return pair_classes(numbers)
    asked = {pair_of(name) for name, value in (given or {}).items() if isinstance(value, str)}
    return tuple(pair for pair in pair_classes(numbers) if pair in asked)


def to_learn_pairs(given: GivenFactors) -> bool:
    """Whether there is a factor to learn."""
    return isinstance(given, str) or any(isinstance(value, str) for value in (given or {}).values())


def factors_of_classes(given: GivenFactors, numbers: IntArray) -> FloatArray | None:
    """The factor of each of :func:`pair_classes`, (K,); ``None`` where all are 1 by default.

    Raises
    ------
    InputError
        See :func:`pair_factors`.
    """
    if given is None:
        return None
    known = pair_factors(given)
    return np.array([known.get(pair, 1.0) for pair in pair_classes(numbers)])


def pair_factors(given: GivenFactors) -> dict[tuple[int, int], float]:
    """Factors on the softness of bonds from ``{"Al-O": 0.0}``, by atomic numbers in ascending order; 1 for ``"learn"``.

    Raises
    ------
    InputError
        For pairs that are no two elements or are named twice, and factors that are negative or no numbers.
    """
    found: dict[tuple[int, int], float] = {}
    if isinstance(given, str):
        if given != PAIR_LEARN:
            raise InputError(f'pair_softness is {given!r}; expected a dict, "{PAIR_LEARN}" or None')
        return found
    for name, value in (given or {}).items():
        key = pair_of(name)
        number = as_numbers(1.0 if isinstance(value, str) and value == PAIR_LEARN else value)
        if (
            number is None
            or (isinstance(value, str) and value != PAIR_LEARN)
            or number.size != 1
            or not 0.0 <= float(number.reshape(())) < 1e6
        ):
            raise InputError(
                f"pair_softness[{name!r}] is {value!r}; expected a factor that is not negative, or "
                f'"{PAIR_LEARN}"'
            )
        if key in found:
            raise InputError(f"pair_softness names the pair {name!r} twice")
        found[key] = float(number.reshape(()))
    return found


def classes_of(numbers: IntArray, i: IntArray, j: IntArray) -> IntArray:
    """Place among :func:`pair_classes` of the elements of atoms i and j, (P,)."""
    species, rank = np.unique(numbers, return_inverse=True)
    low, high = np.minimum(rank[i], rank[j]), np.maximum(rank[i], rank[j])
    # before those of an element come those of all lower ones: S, S − 1, ... pairs
    return np.asarray(low * len(species) - low * (low - 1) // 2 + high - low, dtype=np.int64)


def switched_decay(x: FloatArray, decay: float, cutoff: float) -> tuple[FloatArray, FloatArray]:
    """f(x) and f′(x) for distances x < ``cutoff`` in units of r0."""
    scale = 1.0 / (1.0 - cutoff**-2)
    window = scale * (1.0 - (x / cutoff) ** 2)
    exponential = np.exp(-decay * (x - 1.0))
    value = exponential * window**3
    slope = -decay * value - exponential * window**2 * (6.0 * scale / cutoff**2) * x
    return value, slope


@dataclass(frozen=True, eq=False)
class Bonds:
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
    classes : (P,) int array, optional
        Pair of elements of each of them (:func:`pair_classes`), where the softness has factors by pair.
    """

    atoms: int
    i: Array
    j: Array
    vectors: Array
    distances: Array
    softness: Array
    slope: Array
    classes: Array | None = None

    @classmethod
    def build(
        cls,
        structure: Structure,
        softness: Array,
        decay: float,
        cutoff: float,
        device: Device = CPU,
        factors: Array | None = None,
    ) -> Bonds:
        """Find the pairs and their softness.

        Parameters
        ----------
        structure : Structure
        softness : (N,) array
            κ of every atom.
        decay, cutoff : float
            β and x_c.
        device : Device
            Where the result lives; the pairs are found on the host.
        factors : (K,) array, optional
            Factors on the softness by pair of elements; see :func:`pair_classes`.
        """
        softness = to_numpy(softness)
        radii = elements.width(structure.numbers)  # the covalent radii
        pairs = find_pairs(structure, 2.0 * cutoff * float(radii.max()))
        i, j = pairs.indices[:, 0], pairs.indices[:, 1]
        distances = np.sqrt(np.einsum("pa,pa->p", pairs.vectors, pairs.vectors))
        bond = radii[i] + radii[j]
        classes = None if factors is None else classes_of(structure.numbers, i, j)
        scale = np.ones(len(i)) if factors is None else to_numpy(factors)[classes]
        within = (distances < cutoff * bond) & (softness[i] > 0.0) & (softness[j] > 0.0) & (scale > 0.0)
        i, j, distances, bond = i[within].copy(), j[within].copy(), distances[within], bond[within]
        mean = scale[within] * np.sqrt(softness[i] * softness[j])
        value, slope = switched_decay(distances / bond, decay, cutoff)

        def place(part: Array) -> Array:
            return asarray_like(part, device.like)

        return cls(
            len(structure),
            place(i),
            place(j),
            place(pairs.vectors[within].copy()),
            place(distances),
            place(mean * value),
            place(mean * slope / bond),
            None if classes is None else place(classes[within]),
        )

    @cached_property
    def _leaving(self) -> Any:
        """1 where a pair leaves an atom, (N, P), sparse where the library has sparse matrices."""
        return selection_matrix(self.i, self.atoms)

    def collect(self, values: Array) -> Array:
        """Sum of pair values (P, c) over the pairs that leave each atom, (N, c)."""
        return self._leaving @ values

    def components(self) -> IntArray:
        """Number of the group of atoms, between which charge can flow, that each atom belongs to; on the host."""
        from scipy import sparse
        from scipy.sparse.csgraph import connected_components

        i, j = to_numpy(self.i), to_numpy(self.j)
        graph = sparse.csr_array((np.ones(len(i)), (i, j)), shape=(self.atoms, self.atoms))
        _, component = connected_components(graph, directed=False)
        return np.asarray(component, dtype=np.int64)

    def laplacian(self) -> Any:
        """L = Σ k (e_i − e_j)(e_i − e_j)ᵀ, (N, N), sparse where the library has sparse matrices."""
        xp = namespace(self.softness)
        diagonal = arange(0, self.atoms, self.softness)
        total = segment_sum(self.softness, self.i, self.atoms)
        return pair_matrix(
            xp.concat([total, -self.softness]),
            xp.concat([diagonal, self.i]),
            xp.concat([diagonal, self.j]),
            (self.atoms, self.atoms),
            dense=False,
        )

    def laplacian_array(self) -> Array:
        """L as an array: for small N sparse matrices cost more than they save."""
        cells = self.i * self.atoms + self.j
        flat = segment_sum(self.softness, cells, self.atoms**2)
        matrix = -namespace(flat).reshape(flat, (self.atoms, self.atoms))
        return add_to_diagonal(matrix, -namespace(flat).sum(matrix, axis=1))

    def field_charges(self) -> Array:
        """W_i = Σ_j k_ij r_ij, (N, 3): minus the charge that a field brings to atom i."""
        return self.collect(self.softness[:, None] * self.vectors)

    def stiffness(self) -> Array:
        """M = Σ_pairs k r rᵀ, (3, 3): polarizability of the flows at fixed potentials."""
        return 0.5 * (self.vectors * self.softness[:, None]).T @ self.vectors

    def drops(self, potentials: Array, field: Array | None) -> Array:
        """Drop of potential u_i − u_j − field · r_ij along each pair, (P, c), from (N, c) and (3, c)."""
        xp = namespace(potentials)
        result = xp.take(potentials, self.i, axis=0) - xp.take(potentials, self.j, axis=0)
        return result if field is None else result - self.vectors @ field

    def position_gradient(self, weights: Array) -> Array:
        """Σ_pairs w ∂r/∂r_k for symmetric weights (P, c), (N, 3, c)."""
        xp = namespace(weights)
        number, columns = weights.shape
        unit = self.vectors / self.distances[:, None]
        values = xp.reshape(unit[:, :, None] * weights[:, None, :], (number, 3 * columns))
        return xp.reshape(-self.collect(values), (self.atoms, 3, columns))

    def strain_gradient(self, weights: Array) -> Array:
        """Σ_pairs w ∂r/∂ε for symmetric weights (P, c), (3, 3, c)."""
        xp = namespace(weights)
        unit = self.vectors / self.distances[:, None]
        products = xp.reshape(self.vectors[:, :, None] * unit[:, None, :], (-1, 9))
        return xp.reshape(0.5 * products.T @ weights, (3, 3, weights.shape[1]))


__all__ = [
    "DEFAULT_CUTOFF",
    "DEFAULT_DECAY",
    "PAIR_LEARN",
    "Bonds",
    "GivenFactors",
    "default_softness",
    "factors_of_classes",
    "learned_pairs",
    "pair_classes",
    "pair_factors",
    "pair_name",
    "pair_of",
    "switched_decay",
    "to_learn_pairs",
]
