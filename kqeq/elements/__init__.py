"""Parameters by element: cited data, and the rules that turn them into defaults.

The data (ionization energy IE, electron affinity EA, covalent radius, polarizability; sources in the header of
``elements.csv``) cover H (1) to Cm (96).  The defaults that follow from them:

===================== ============== ==================================================================
quantity              rule           source
===================== ============== ==================================================================
electronegativity χ   (IE + EA)/2    Mulliken 1934, *J. Chem. Phys.* 2, 782
hardness η            IE − EA        Parr & Pearson 1983, *J. Am. Chem. Soc.* 105, 7512 (see below)
width σ               covalent       Cordero et al. 2008; as width of Gaussian charges: Ko et al. 2021,
                      radius         *Nat. Commun.* 12, 398
polarizability α      free atom      Schwerdtfeger & Nagle 2019, *Mol. Phys.* 117, 1200
===================== ============== ==================================================================

**Hardness and width belong together.**  The second derivative of the energy of an isolated atom with respect to
its charge is the whole diagonal of the Coulomb matrix, A_ii = η_i + k_e/(√π σ_i): the hardness of this package is
what a Gaussian charge has *on top of* its self interaction.  Parr and Pearson's IE − EA estimates the whole of
A_ii.  Taking it literally, η = (IE − EA) − k_e/(√π σ) is negative at σ = covalent radius for 16 elements (H −13.4,
C −0.7, O −0.2, Na −0.3 eV/e²), and A can then be indefinite, because the self interaction is exactly what keeps the
matrix of overlapping Gaussians positive.  Larger widths that leave η positive (σ > k_e/(√π (IE − EA)), 0.63 Å for
H) screen neighbours so strongly that molecules become metal-like.  The default therefore keeps η = IE − EA, which
is positive for every element, so that A is positive definite for every geometry; atoms in molecules are then harder
than free ones, as a whole about as hard as they should be.

Measured with plain QEq: α, root-mean-square error of the polarizability tensor of N-methylacetamide in Å³ (the best
learned element parameters reach 1.7); η_mol, the hardness ∂²E/∂Q² of a Zn3O3 ring in eV/e² (vertical IE − EA with
PBE0/def2-SVP: 7.4); μ, mean error of |μ| in debye on QM9 after a fit of χ with a SOAP kernel.

==============================================  =====  =====  =====
rule                                              α    η_mol    μ
==============================================  =====  =====  =====
η = IE − EA, σ = r_cov (the default)             2.15   7.5    0.29
η = IE − EA, σ = 0.5 r_cov                       2.72   9.5    0.29
η = IE − EA, σ = 1.5 r_cov                       2.40   6.2    0.29
η = (IE − EA)/2, σ = r_cov                       2.04   6.5    0.30
η = max(IE − EA − k_e/(√π σ), 1), σ = r_cov      2.22   6.1    0.31
the same, σ = 1.5 r_cov                          3.86   5.3    0.33
A_ii = IE − EA with σ = 1.1 k_e/(√π (IE − EA))   5.33   6.3    0.31
==============================================  =====  =====  =====

Electronegativities learned with a kernel make up for most of the differences in dipoles, and in energies and forces of
one charge state; polarizabilities and differences between charge states depend on hardness and width directly.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from numbers import Real
from types import MappingProxyType
from typing import Any

import numpy as np
from ase import units
from ase.data import atomic_numbers, chemical_symbols

from kqeq.errors import InputError
from kqeq.typing import FloatArray, IntArray

_POSITIVE = frozenset({"width", "polarizability"})
"""Parameters that make no sense unless they are positive; the sign of a hardness is the charge model's affair."""


@dataclass(frozen=True)
class Element:
    """Cited properties of one neutral atom and the default parameters that follow.

    Attributes
    ----------
    number : int
    symbol : str
    ionization_energy, electron_affinity : float
        eV.  The electron affinity is 0 where the anion is not stable or no value is known.
    electron_affinity_origin : str
        ``"crc"``, ``"measured"``, ``"estimated"``, ``"unbound"`` or ``"unknown"``.
    covalent_radius : float
        Å.
    polarizability : float
        Å³.
    pauling : float
        Electronegativity on Pauling's scale, without unit; NaN where there is none.
    """

    number: int
    symbol: str
    ionization_energy: float
    electron_affinity: float
    electron_affinity_origin: str
    covalent_radius: float
    polarizability: float
    pauling: float

    @property
    def electronegativity(self) -> float:
        """Mulliken electronegativity (IE + EA)/2, eV/e."""
        return 0.5 * (self.ionization_energy + self.electron_affinity)

    @property
    def hardness(self) -> float:
        """Default hardness η = IE − EA in eV/e²; always positive."""
        return self.ionization_energy - self.electron_affinity

    @property
    def width(self) -> float:
        """Default Gaussian width σ, the covalent radius, Å."""
        return self.covalent_radius


@lru_cache(maxsize=1)
def element_table() -> Mapping[int, Element]:
    """All elements with data, by atomic number.

    Returns
    -------
    mapping of int to Element
        Read-only.
    """
    text = files("kqeq.elements").joinpath("elements.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    table = {}
    for row in rows:
        number = int(row["number"])
        table[number] = Element(
            number=number,
            symbol=row["symbol"],
            ionization_energy=float(row["ionization_energy"]),
            electron_affinity=float(row["electron_affinity"]),
            electron_affinity_origin=row["electron_affinity_origin"],
            covalent_radius=float(row["covalent_radius"]),
            polarizability=float(row["polarizability"]) * units.Bohr**3,
            pauling=float(row["pauling"] or "nan"),
        )
    return MappingProxyType(table)


def electronegativity(numbers: Iterable[int] | IntArray) -> FloatArray:
    """Mulliken electronegativity (IE + EA)/2 of every atom.

    Parameters
    ----------
    numbers : (N,) array-like of int
        Atomic numbers.

    Returns
    -------
    (N,) array
        eV/e.

    Raises
    ------
    InputError
        For elements without data.
    """
    return _spread(numbers, "electronegativity")


def hardness(numbers: Iterable[int] | IntArray) -> FloatArray:
    """Default hardness η = IE − EA of every atom, (N,) array in eV/e²; see the module's text for the rule.

    Raises
    ------
    InputError
        For elements without data.
    """
    return _spread(numbers, "hardness")


def width(numbers: Iterable[int] | IntArray) -> FloatArray:
    """Default width σ of the Gaussian charge of every atom, (N,) array in Å: the covalent radius.

    Raises
    ------
    InputError
        For elements without data.
    """
    return _spread(numbers, "width")


def polarizability(numbers: Iterable[int] | IntArray) -> FloatArray:
    """Static dipole polarizability of every free neutral atom, (N,) array in Å³.

    Divide by :data:`kqeq.constants.COULOMB` for e²·Å²/eV.

    Raises
    ------
    InputError
        For elements without data.
    """
    return _spread(numbers, "polarizability")


def pauling(numbers: Iterable[int] | IntArray) -> FloatArray:
    """Pauling's electronegativity of every atom, (N,) array without unit; NaN for elements that have none.

    For the polarity of bonds: Mulliken's would have hydrogen more negative than carbon.

    Raises
    ------
    InputError
        For elements without data.
    """
    return _spread(numbers, "pauling")


def valence_electrons(numbers: Iterable[int] | IntArray) -> FloatArray:
    """Electrons outside the core of a noble gas and outside filled d and f shells below a p shell, (N,)."""

    def count(z: int) -> float:
        if z <= 2:
            return float(z)
        core = max(noble for noble in (2, 10, 18, 36, 54, 86) if noble < z)
        electrons = z - core
        if core >= 54 and electrons > 16:
            electrons -= 14
        return float(electrons - 10 if core >= 18 and electrons > 12 else electrons)

    return np.array([count(int(z)) for z in numbers], dtype=np.float64)


def _spread(numbers: Iterable[int] | IntArray, name: str) -> FloatArray:
    """One property of :class:`Element` for every atom."""
    array = np.asarray(numbers if isinstance(numbers, np.ndarray) else list(numbers), dtype=np.int64)
    column = _column(name)
    values = column[np.where((array >= 0) & (array < len(column)), array, 0)]
    if np.isinf(values).any():
        table, missing = element_table(), sorted({int(z) for z in array[np.isinf(values)]})
        raise InputError(
            f"no default {name} for {', '.join(_describe(z) for z in missing)}: the table covers "
            f"{_describe(min(table))} to {_describe(max(table))}; pass the value explicitly, for example "
            f"{name}={{{_symbol(missing[0])!r}: value}}"
        )
    return np.asarray(values)


@lru_cache
def _column(name: str) -> FloatArray:
    """One property by atomic number; infinite where the table has no such element."""
    table = element_table()
    column = np.full(max(table) + 1, np.inf)
    for z, element in table.items():
        column[z] = getattr(element, name)
    return column


def _symbol(number: int) -> str:
    return chemical_symbols[number] if 1 <= number < len(chemical_symbols) else "X"


def _describe(number: int) -> str:
    return f"{_symbol(number)} (Z = {number})"


def resolve(
    values: Mapping[Any, Any] | None,
    numbers: IntArray,
    default: Callable[[IntArray], FloatArray],
    name: str,
) -> FloatArray:
    """Spread parameters by element over atoms, defaults filled in.

    Parameters
    ----------
    values : mapping or None
        Values by element symbol or atomic number; elements that are not named take the default.  May name
        elements that do not occur.
    numbers : (N,) int array
        Atomic numbers.
    default : callable
        From atomic numbers to values, for example :func:`hardness`.  Asked only for elements that ``values``
        does not name, so elements without default can be given.
    name : str
        ``"electronegativity"``, ``"hardness"``, ``"width"`` or ``"polarizability"``; the last two must be positive.

    Returns
    -------
    (N,) array

    Raises
    ------
    InputError
        For something that is not a mapping, unknown elements, an element named twice with different values,
        values that are no finite numbers, a width or polarizability that is not positive, or an element that
        has neither a value nor a default.
    """
    given = _by_number(values, name)
    if not given:
        return default(np.asarray(numbers, dtype=np.int64))
    unique, inverse = np.unique(np.asarray(numbers, dtype=np.int64), return_inverse=True)
    spread = np.empty(len(unique), dtype=np.float64)
    named = np.array([int(z) in given for z in unique], dtype=bool)
    spread[named] = [given[int(z)] for z in unique[named]]
    if not named.all():
        spread[~named] = default(unique[~named])
    return np.asarray(spread[inverse], dtype=np.float64)


def _by_number(values: Mapping[Any, Any] | None, name: str) -> dict[int, float]:
    """Validate parameters by element and key them by atomic number."""
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise InputError(
            f"{name} is {values!r}; expected a dict of values by element, for example "
            f'{name}={{"O": value}}, or None for the defaults'
        )
    given: dict[int, float] = {}
    for key, value in values.items():
        number = _element_number(key, name)
        if isinstance(value, bool) or not isinstance(value, (Real, np.floating, np.integer)):
            raise InputError(f"{name} of {_symbol(number)} is {value!r}; expected one finite number")
        parameter = float(value)
        if not np.isfinite(parameter):
            raise InputError(f"{name} of {_symbol(number)} is {parameter}; expected one finite number")
        if name in _POSITIVE and parameter <= 0:
            raise InputError(f"{name} of {_symbol(number)} is {parameter:g}; it must be positive")
        if given.get(number, parameter) != parameter:
            raise InputError(
                f"{name} names {_describe(number)} twice, with {given[number]:g} and {parameter:g}; remove one"
            )
        given[number] = parameter
    return given


def _element_number(key: Any, name: str) -> int:
    """Atomic number of a key that is a symbol or an atomic number."""
    if isinstance(key, str) and atomic_numbers.get(key, 0) >= 1:
        return int(atomic_numbers[key])
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool) and 1 <= key < len(chemical_symbols):
        return int(key)
    raise InputError(
        f"{name} names the element {key!r}, which does not exist; use symbols such as 'O' (upper case first) "
        "or atomic numbers"
    )


__all__ = [
    "Element",
    "electronegativity",
    "element_table",
    "hardness",
    "polarizability",
    "resolve",
    "valence_electrons",
    "width",
]
