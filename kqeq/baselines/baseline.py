"""Baselines: a known potential that is subtracted from the labels before a fit and added in prediction.

A baseline is a plain function of the geometry.  It is no part of the charge problem: it feels neither the model's
charges nor the external field, and contributes nothing to dipole, polarizability, charges or chemical potential.
Two kinds are offered:

``"zbl"``
    :class:`ZBL`, the screened repulsion of nuclei, which keeps atoms apart where no training data are;
an ASE calculator
    :class:`CalculatorBaseline`; for example a tight-binding or force-field model whose error is fitted.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError

from kqeq import elements
from kqeq.constants import COULOMB
from kqeq.errors import InputError, UnsupportedError
from kqeq.frames.neighbours import find_pairs
from kqeq.frames.structures import Structure, describe
from kqeq.typing import FloatArray, IntArray


class Baseline(Protocol):
    """A potential that knows the geometry only."""

    @property
    def name(self) -> str:
        """What a model file records; :func:`resolve_baseline` understands it, or says what else it needs."""

    def evaluate(self, structure: Structure) -> tuple[float, FloatArray, FloatArray]:
        """Energy and its derivatives.

        Returns
        -------
        float
            Energy, eV.
        (N, 3) array
            ∂E/∂r, eV/Å (minus the forces).
        (3, 3) array
            ∂E/∂ε with r → (1 + ε) r for atoms and cell, eV.

        Raises
        ------
        InputError, UnsupportedError
        """


ZBL_COEFFICIENTS = np.array([0.18175, 0.50986, 0.28022, 0.02817])
ZBL_EXPONENTS = np.array([3.19980, 0.94229, 0.40290, 0.20162])
ZBL_LENGTH = 0.46850
"""Screening length of the universal potential in Å: 0.88534 Bohr radii."""
ZBL_POWER = 0.23


@dataclass(frozen=True)
class ZBL:
    """Universal screened nuclear repulsion of Ziegler, Biersack and Littmark.

        E = Σ_{i<j} k_e Z_i Z_j / r · φ(r/a) · S(r),   a = 0.46850 Å / (Z_i^0.23 + Z_j^0.23)
        φ(x) = 0.18175 e^(−3.1998 x) + 0.50986 e^(−0.94229 x) + 0.28022 e^(−0.4029 x) + 0.02817 e^(−0.20162 x)

    S falls from 1 to 0 between ``inner`` and ``outer`` as 1 − 10 t³ + 15 t⁴ − 6 t⁵, so that energy, forces and
    their first derivatives are continuous.  By default the repulsion ends at 0.8 of the sum of the covalent radii, which
    bonds do not reach at ordinary temperatures (those to hydrogen come closest): it acts on collisions only.

    J. F. Ziegler, J. P. Biersack, U. Littmark, *The Stopping and Range of Ions in Solids*, Pergamon, New York 1985.

    Parameters
    ----------
    inner, outer : float
        Where the switch begins and ends, in units of the sum of the two covalent radii.

    Raises
    ------
    InputError
        Unless 0 ≤ inner < outer.
    """

    inner: float = 0.3
    outer: float = 0.8

    def __post_init__(self) -> None:
        if not (np.isfinite([self.inner, self.outer]).all() and 0.0 <= self.inner < self.outer):
            raise InputError(
                f"ZBL(inner={self.inner!r}, outer={self.outer!r}): expected 0 <= inner < outer, in units of the sum "
                "of covalent radii"
            )

    @property
    def name(self) -> str:
        """``"zbl"``, with the switch where it is not the default: ``"zbl:0.4:0.9"``."""
        return "zbl" if self == ZBL() else f"zbl:{self.inner!r}:{self.outer!r}"

    def evaluate(self, structure: Structure) -> tuple[float, FloatArray, FloatArray]:
        """Energy (eV), ∂E/∂r (N, 3) in eV/Å and ∂E/∂ε (3, 3) in eV; open and periodic.

        Raises
        ------
        InputError
            For elements without covalent radius.
        """
        gradient = np.zeros((len(structure), 3))
        radii = _covalent_radii(structure.numbers)
        pairs = find_pairs(structure, 2.0 * self.outer * float(radii.max()))
        distance = np.linalg.norm(pairs.vectors, axis=1)
        i, j = pairs.indices.T
        contact = radii[i] + radii[j]
        near = distance < self.outer * contact
        if not near.any():
            return 0.0, gradient, np.zeros((3, 3))
        i, j, vectors, distance, contact = (a[near] for a in (i, j, pairs.vectors, distance, contact))
        value, slope = _screened_repulsion(
            distance, structure.numbers[i].astype(np.float64), structure.numbers[j].astype(np.float64)
        )
        switch, switch_slope = _switch(distance, self.inner * contact, self.outer * contact)
        # every pair is listed in both directions, hence the halves
        energy = 0.5 * float(value @ switch)
        radial = 0.5 * (slope * switch + value * switch_slope)
        force = (radial / distance)[:, None] * vectors
        np.add.at(gradient, j, force)
        np.subtract.at(gradient, i, force)
        return energy, gradient, np.asarray(vectors.T @ force)


def _covalent_radii(numbers: IntArray) -> FloatArray:
    table = elements.element_table()
    missing = sorted({int(z) for z in numbers} - set(table))
    if missing:
        raise InputError(
            f'baseline "zbl" needs covalent radii, which are known for atomic numbers {min(table)} to {max(table)}, '
            f"not for {missing}; use baseline=None or an ASE calculator"
        )
    return np.array([table[int(z)].covalent_radius for z in numbers])


def _screened_repulsion(r: FloatArray, z1: FloatArray, z2: FloatArray) -> tuple[FloatArray, FloatArray]:
    """k_e Z1 Z2 φ(r/a)/r and its derivative, for (P,) distances in Å."""
    length = ZBL_LENGTH / (z1**ZBL_POWER + z2**ZBL_POWER)
    terms = ZBL_COEFFICIENTS * np.exp(-np.outer(r / length, ZBL_EXPONENTS))  # (P, 4)
    phi = terms.sum(axis=1)
    phi_slope = -(terms @ ZBL_EXPONENTS) / length
    bare = COULOMB * z1 * z2 / r
    return bare * phi, bare * (phi_slope - phi / r)


def _switch(r: FloatArray, inner: FloatArray, outer: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Quintic switch from 1 at ``inner`` to 0 at ``outer`` with two continuous derivatives, and its slope."""
    t = np.clip((r - inner) / (outer - inner), 0.0, 1.0)
    value = 1.0 - t**3 * (10.0 - 15.0 * t + 6.0 * t**2)
    slope = -30.0 * t**2 * (1.0 - t) ** 2 / (outer - inner)
    return value, slope


_locks: dict[int, Any] = {}


def _lock_of(calculator: Any) -> Any:
    """Calculators keep one structure and its results: threads that share one take turns, whichever model asks."""
    return _locks.setdefault(id(calculator), threading.RLock())


@dataclass(frozen=True, eq=False)
class CalculatorBaseline:
    """An ASE calculator as baseline.

    The calculator sees the geometry, and finds the conditions in ``atoms.info``: ``total_charge`` and ``charge`` (e) and
    ``external_field`` (V/Å).  Most calculators do not look there: they then compute every charge state with their own
    settings and without the field, and the charge model answers for all differences.  A calculator that does react to the
    field must not be used together with charges fitted to the same response, or the dipole −∂E/∂field is counted
    by the energy but not reported.

    Where a calculator gives a free energy (electronic smearing), that is used, because forces belong to it.

    Attributes
    ----------
    calculator : ase.calculators.calculator.Calculator
        Anything that ``atoms.calc`` accepts, with energy and forces, and stress for periodic cells.
    """

    calculator: Any

    @property
    def name(self) -> str:
        """``"ase:"`` and the class of the calculator; a file cannot hold the calculator itself."""
        return f"{_ASE_PREFIX}{type(self.calculator).__name__}"

    def evaluate(self, structure: Structure) -> tuple[float, FloatArray, FloatArray]:
        """Energy (eV), ∂E/∂r (N, 3) in eV/Å and ∂E/∂ε (3, 3) in eV.

        For cells without a volume (slabs or wires without cell vectors in the open directions) ASE defines no
        stress, and ∂E/∂ε is NaN.

        Raises
        ------
        UnsupportedError
            If the calculator has no forces, or no stress for a periodic cell.
        InputError
            If it returns something that is not finite.
        """
        with _lock_of(self.calculator):
            return self._evaluate(structure)

    def _evaluate(self, structure: Structure) -> tuple[float, FloatArray, FloatArray]:
        atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.pbc)
        atoms.info["total_charge"] = atoms.info["charge"] = structure.total_charge
        atoms.info["external_field"] = structure.external_field.copy()
        # ASE decides by geometry whether its results still hold and would miss a new charge or field
        if callable(getattr(self.calculator, "reset", None)):
            self.calculator.reset()
        atoms.calc = self.calculator
        forces = np.asarray(self._ask(atoms, "forces", atoms.get_forces), dtype=np.float64)
        energy = float(self._ask(atoms, "energy", atoms.get_potential_energy))
        results = getattr(self.calculator, "results", {})
        if results.get("free_energy") is not None:
            energy = float(results["free_energy"])
        if not structure.periodic:
            strain = structure.positions.T @ -forces
        elif structure.volume > 0.0:
            stress = self._ask(atoms, "stress", lambda: atoms.get_stress(voigt=False))
            strain = np.asarray(stress, dtype=np.float64) * structure.volume
        else:
            strain = np.full((3, 3), np.nan)
        if not (np.isfinite(energy) and np.isfinite(forces).all()):
            raise InputError(
                f"the baseline calculator {type(self.calculator).__name__} returned an energy or forces that are "
                f"not finite for {describe(atoms)}; check the calculator and the structure"
            )
        return energy, -forces, strain

    def _ask(self, atoms: Atoms, what: str, method: Any) -> Any:
        """One property, with an error of ours where the calculator does not have it."""
        try:
            return method()
        except (PropertyNotImplementedError, NotImplementedError) as error:
            raise UnsupportedError(
                f"the baseline calculator {type(self.calculator).__name__} has no {what} for {describe(atoms)}"
                f"{' (periodic)' if atoms.pbc.any() else ''}; a baseline needs energy and forces, and stress for "
                "periodic cells: use another calculator, or baseline=None"
            ) from error


_ASE_PREFIX = "ase:"


def resolve_baseline(spec: Any) -> Baseline | None:
    """Turn what a user writes into a baseline.

    Parameters
    ----------
    spec : None, str, ase calculator or Baseline
        ``None`` for none; ``"zbl"`` (or ``"zbl:INNER:OUTER"``, see :class:`ZBL`); an ASE calculator; an object
        that is a baseline already.

    Returns
    -------
    Baseline or None

    Raises
    ------
    InputError
        For anything else, and for the name of an ASE calculator, which cannot be built from its name.
    """
    if spec is None:
        return None
    if isinstance(spec, str):
        return _from_name(spec)
    if isinstance(spec, type):
        raise InputError(f"baseline is the class {spec.__name__}; pass an instance: {spec.__name__}(...)")
    if callable(getattr(spec, "evaluate", None)) and isinstance(getattr(spec, "name", None), str):
        resolved: Baseline = spec
        return resolved
    if all(callable(getattr(spec, method, None)) for method in ("get_potential_energy", "get_forces")):
        if isinstance(spec, Atoms):
            raise InputError("baseline is an ase.Atoms; pass its calculator: baseline=atoms.calc")
        return CalculatorBaseline(spec)
    raise InputError(f'baseline is {spec!r}; expected None, "zbl" or an ASE calculator')


def _from_name(name: str) -> Baseline:
    kind, *numbers = name.split(":")
    if kind.lower() == "zbl" and len(numbers) in {0, 2}:
        try:
            return ZBL(*map(float, numbers))
        except ValueError as error:
            if isinstance(error, InputError):
                raise
    if name.startswith(_ASE_PREFIX):
        raise InputError(
            f"the baseline is the ASE calculator {name.removeprefix(_ASE_PREFIX)}, which a name or a model file "
            "cannot bring back; pass the calculator itself, set up as it was for the fit"
        )
    raise InputError(
        f'unknown baseline {name!r}; expected None, "zbl", "zbl:INNER:OUTER" or an ASE calculator'
    )


__all__ = ["ZBL", "Baseline", "CalculatorBaseline", "resolve_baseline"]
