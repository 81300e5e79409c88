"""ASE calculators as baselines: one that is given as it is, and a factory with a mapping for charge and field."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, PropertyNotImplementedError

from kqeq.baselines.differences import with_extras
from kqeq.baselines.protocol import Baseline, BaselineResult, Capabilities, GeometryBaseline
from kqeq.errors import ConvergenceError, InputError, UnsupportedError
from kqeq.frames.structures import Structure, describe
from kqeq.typing import FloatArray

ASE_PREFIX = "ase:"

KEPT = 8
"""Calculators that are kept, one for each charge, field and multiplicity."""

Mapped = str | Callable[[Any], Mapping[str, Any]] | None


_locks: dict[int, Any] = {}


def _lock_of(calculator: Any) -> Any:
    """Calculators keep one structure and its results: threads that share one take turns, whichever model asks."""
    return _locks.setdefault(id(calculator), threading.RLock())


@dataclass(frozen=True, eq=False)
class CalculatorBaseline(GeometryBaseline):
    """An ASE calculator, as it is given, as a function of the geometry.

    The calculator sees the geometry, and finds the total charge in the sum of the initial charges and in
    ``atoms.info["total_charge"]`` and ``["charge"]`` (e), the field in ``["external_field"]`` (V/Å).  Calculators that
    look there give the energy of the ion; others compute every charge state with their own settings.  Either way the
    charge model on top carries the total charge and all of the response to the field.  A calculator that should do
    that itself is given as :class:`ASE`, or by name (:class:`~kqeq.baselines.TightBinding`).

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
        return f"{ASE_PREFIX}{type(self.calculator).__name__}"

    def evaluate(self, structure: Structure, extras: Collection[str] = ()) -> BaselineResult:
        """Energy (eV), ∂E/∂r (N, 3) in eV/Å and ∂E/∂ε (3, 3) in eV.

        For cells without a volume (slabs or wires without cell vectors in the open directions) ASE defines no
        stress, and ∂E/∂ε is NaN.

        Raises
        ------
        UnsupportedError
            If the calculator has no forces, or no stress for a periodic cell.
        InputError
            If it returns something that is not finite.
        ConvergenceError
            If it says that it failed.
        """
        with _lock_of(self.calculator):
            # ASE decides by geometry whether its results still hold and would miss a new charge or field
            if callable(getattr(self.calculator, "reset", None)):
                self.calculator.reset()
            return _evaluate(self.calculator, structure)


@dataclass(frozen=True, eq=False)
class ASE:
    """A factory of ASE calculators as baseline, told charge and field.

        kqeq.baselines.ASE(functools.partial(Dftb, ...), charge="Hamiltonian_Charge")
        kqeq.baselines.ASE(load_mace, charge="info", multiplicity=lambda m: {"default_spin": m})

    Parameters
    ----------
    factory : callable
        Makes a calculator from keyword arguments.  Called once for each charge, field and multiplicity; a few
        calculators are kept.  At module level where fits run in several processes.
    charge, field, multiplicity : str or callable, optional
        How the factory is told the total charge (e), the field ((3,) array, V/Å) and 2S + 1: the name of a keyword
        argument; a function of the value that gives a dict of keyword arguments (for other units); or ``"info"``, where
        the calculator reads ``atoms.info["charge"]``, ``["external_field"]`` or ``["multiplicity"]`` by itself.
        With ``charge`` the baseline holds the total charge, and the charge model on top is neutral.  With ``field``
        its energy has to contain −μ · F.
    dipole, charges : bool, optional
        Whether it gives a dipole (e·Å about the coordinate origin, also for ions) and charges; by default whether it
        says so in ``implemented_properties``.

    Notes
    -----
    Polarizabilities and derivatives of charges are differences (:mod:`kqeq.baselines.differences`).  A model file
    records the name of the factory and the mapping, and asks for the baseline on loading.
    """

    factory: Callable[..., Any]
    charge: Mapped = None
    field: Mapped = None
    multiplicity: Mapped = None
    dipole: bool | None = None
    charges: bool | None = None
    _kept: dict[Any, Any] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.factory):
            raise InputError(
                f"ASE(factory={self.factory!r}): expected a callable that makes a calculator, for example the class or "
                "functools.partial(Class, ...); a calculator that exists already is a baseline as it is"
            )
        for name in ("charge", "field", "multiplicity"):
            value = getattr(self, name)
            if not (value is None or isinstance(value, str) or callable(value)):
                raise InputError(
                    f"ASE({name}={value!r}): expected the name of a keyword argument, a function that gives a dict of "
                    'them, "info", or None'
                )

    @property
    def name(self) -> str:
        """``"ase:Dftb(charge=Hamiltonian_Charge)"``."""
        inner = getattr(self.factory, "func", self.factory)
        mapped = ", ".join(
            f"{key}={value if isinstance(value, str) else getattr(value, '__name__', 'function')}"
            for key in ("charge", "field", "multiplicity")
            if (value := getattr(self, key)) is not None
        )
        return f"{ASE_PREFIX}{getattr(inner, '__name__', type(inner).__name__)}({mapped})"

    @property
    def capabilities(self) -> Capabilities:
        """From the mapping and from what the calculator implements."""
        known: Collection[str] = ()
        if self.dipole is None or self.charges is None:
            known = getattr(self._calculator(0.0, np.zeros(3), None), "implemented_properties", ())
        return Capabilities(
            holds_charge=self.charge is not None,
            field=self.field is not None,
            dipole="dipole" in known if self.dipole is None else self.dipole,
            charges="charges" in known if self.charges is None else self.charges,
        )

    def charge_held(self, structure: Structure) -> float:
        """The total charge if there is a mapping for it."""
        return structure.total_charge if self.charge is not None else 0.0

    def check(self, structure: Structure) -> None:
        """Refuse fields that nothing answers for, and fields along periodic directions."""
        if not structure.external_field.any():
            return
        if self.charge is not None and self.field is None:
            raise UnsupportedError(
                f"the baseline {self.name} holds the total charge but is not told the field, which would act on nothing; "
                "give ASE(..., field=...), or remove the field"
            )
        if self.field is None and self.capabilities.dipole:
            raise UnsupportedError(
                f"the baseline {self.name} gives a dipole but is not told the field, so its forces in a field are not "
                "known; give ASE(..., field=...), leave its dipole out (dipole=False), or remove the field"
            )
        along = structure.cell[structure.pbc] @ structure.external_field
        if self.field is not None and np.abs(along).max(initial=0.0) > 1e-8:
            raise UnsupportedError(
                f"the baseline {self.name}: a uniform field along a periodic direction has no energy per cell; remove "
                "the field, or the periodicity"
            )

    def evaluate(self, structure: Structure, extras: Collection[str] = ()) -> BaselineResult:
        """Energy, derivatives and what the calculator gives; see :meth:`kqeq.baselines.Baseline.evaluate`."""
        self.check(structure)
        return with_extras(self._point, structure, extras, self.capabilities)

    def session(self) -> Baseline:
        """Itself: calculators keep what they keep."""
        return self

    def describe(self) -> str:
        """Results are not kept: a name does not tell two factories apart."""
        return ""

    def _calculator(self, charge: float, external_field: FloatArray, multiplicity: float | None) -> Any:
        values = {"charge": charge, "field": external_field, "multiplicity": multiplicity}
        used = {name: value for name, value in values.items() if getattr(self, name) is not None}
        key = tuple(None if v is None else np.asarray(v, dtype=np.float64).tobytes() for v in used.values())
        if key in self._kept:
            return self._kept[key]
        keywords: dict[str, Any] = {}
        for name, value in used.items():
            how = getattr(self, name)
            if value is None or how == "info":
                continue
            if isinstance(how, str):
                keywords[how] = np.array(value) if name == "field" else value
            else:
                keywords.update(how(value))
        while len(self._kept) >= KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = self.factory(**keywords)
        return self._kept[key]

    def _point(self, structure: Structure) -> BaselineResult:
        calculator = self._calculator(
            structure.total_charge, structure.external_field, structure.multiplicity
        )
        knows, informed = self.capabilities, "info" in (self.charge, self.field, self.multiplicity)
        with _lock_of(calculator):
            if informed and callable(getattr(calculator, "reset", None)):
                calculator.reset()
            return _evaluate(calculator, structure, dipole=knows.dipole, charges=knows.charges)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}


def _evaluate(
    calculator: Any, structure: Structure, *, dipole: bool = False, charges: bool = False
) -> BaselineResult:
    """One structure with an ASE calculator."""
    atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.pbc)
    atoms.info["total_charge"] = atoms.info["charge"] = structure.total_charge
    atoms.info["external_field"] = structure.external_field.copy()
    if structure.multiplicity is not None:
        atoms.info["multiplicity"] = structure.multiplicity
    if structure.total_charge:
        # a family of calculators takes the total charge from here
        atoms.set_initial_charges(np.full(len(atoms), structure.total_charge / len(atoms)))
    atoms.calc = calculator
    name = type(calculator).__name__

    def ask(what: str, method: Callable[[], Any]) -> Any:
        """One property, with an error of ours where the calculator does not have it."""
        try:
            return method()
        except (PropertyNotImplementedError, NotImplementedError) as error:
            raise UnsupportedError(
                f"the baseline calculator {name} has no {what} for {describe(atoms)}"
                f"{' (periodic)' if atoms.pbc.any() else ''}; a baseline needs energy and forces, and stress for "
                "periodic cells: use another calculator, or baseline=None"
            ) from error
        except CalculationFailed as error:
            raise ConvergenceError(
                f"the baseline calculator {name} failed for {describe(atoms)}: {' '.join(str(error).split())}"
            ) from error

    forces = np.array(ask("forces", atoms.get_forces), dtype=np.float64)
    energy = float(ask("energy", atoms.get_potential_energy))
    results = getattr(calculator, "results", {})
    if results.get("free_energy") is not None:
        energy = float(results["free_energy"])
    if not structure.periodic:
        strain = structure.positions.T @ -forces
    elif structure.volume > 0.0:
        stress = ask("stress", lambda: atoms.get_stress(voigt=False))
        strain = np.asarray(stress, dtype=np.float64) * structure.volume
    else:
        strain = np.full((3, 3), np.nan)
    moment = shares = None
    if dipole and not structure.periodic:
        moment = np.array(ask("dipole", atoms.get_dipole_moment), dtype=np.float64)
    if charges:
        shares = np.array(ask("charges", atoms.get_charges), dtype=np.float64)
    if not (np.isfinite(energy) and np.isfinite(forces).all()):
        raise InputError(
            f"the baseline calculator {name} returned an energy or forces that are not finite for {describe(atoms)}; "
            "check the calculator and the structure"
        )
    return BaselineResult(energy, -forces, strain, moment, shares)


__all__ = ["ASE", "ASE_PREFIX", "CalculatorBaseline"]
