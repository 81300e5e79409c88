"""Extended tight binding through tblite: ``baseline="gfn2"``, ``"gfn1"``, ``"ipea1"``.

Holds the total charge, feels the field, gives dipole and Mulliken charges; open and periodic.  Needs the extra ``xtb``.

GFN2-xTB: Bannwarth, Ehlert & Grimme 2019, *J. Chem. Theory Comput.* 15, 1652; GFN1-xTB: Grimme, Bannwarth & Shushkov
2017, *J. Chem. Theory Comput.* 13, 1989; IPEA1-xTB: Ásgeirsson, Bauer & Grimme 2017, *Chem. Sci.* 8, 4879.

Every evaluation starts from the superposition of atoms, so that results do not depend on what was computed before;
:meth:`TightBinding.session` starts from the last density instead.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from ase.units import Bohr, Hartree, kB

from kqeq.baselines.charged_cells import background
from kqeq.baselines.differences import with_extras
from kqeq.baselines.protocol import Baseline, BaselineResult, Capabilities
from kqeq.errors import ConvergenceError, InputError, UnsupportedError
from kqeq.frames.structures import Structure
from kqeq.io.rules import Rule, check_values, choice, number, whole

METHODS = {"gfn2": "GFN2-xTB", "gfn1": "GFN1-xTB", "ipea1": "IPEA1-xTB"}
"""Names of this package, and of tblite."""

ATTEMPTS = ((0, 0.4), (1, 0.4), (1, 0.1))
"""Initial guess (0 atoms, 1 electronegativity equilibration) and damping of the mixing of charges, one after another.

One in a few hundred zwitterionic dipeptides oscillates from the atoms and converges from the second guess."""

HEAVIEST = 86
"""The parametrisations end with radon."""


_RULES: dict[str, Rule] = {
    "method": choice(*METHODS),
    "accuracy": number(above=0),
    "temperature": number(above=0),
    "max_iterations": whole(minimum=1),
}


@dataclass(frozen=True)
class TightBinding:
    """An extended tight-binding Hamiltonian as baseline.

    Parameters
    ----------
    method : {"gfn2", "gfn1", "ipea1"}
    accuracy : float
        Threshold of the self-consistent iteration in units of tblite's own (1e-6 Hartree, 2e-5 e).  The default makes
        forces reproducible to 1e-7 eV/Å or better at a few percent of the time; 1 leaves 4e-4 eV/Å between different
        starts.
    temperature : float
        Of the electrons, K.  Energies are free energies then, which the forces belong to.
    max_iterations : int
        Of each attempt: from a superposition of atoms, from charges of electronegativity equilibration, and from
        these with strong damping.

    Raises
    ------
    InputError
        For an unknown method or values that make no sense.

    Notes
    -----
    The number of unpaired electrons is that of ``atoms.info["multiplicity"]`` (2S + 1), otherwise the lowest.
    Total charges have to be whole.  Cells may be periodic in all three directions or in none: tblite treats slabs as
    fully periodic.  Energies of charged cells contain the neutralising background (:mod:`kqeq.baselines.charged_cells`).
    """

    method: str = "gfn2"
    accuracy: float = 1e-3
    temperature: float = 300.0
    max_iterations: int = 150

    def __post_init__(self) -> None:
        check_values("TightBinding", vars(self), _RULES)

    @property
    def name(self) -> str:
        """``"gfn2"``, with what is not the default: ``"gfn2:temperature=1000.0"``."""
        default = type(self)(self.method)
        changed = [
            f"{own.name}={getattr(self, own.name)!r}"
            for own in fields(self)
            if own.name != "method" and getattr(self, own.name) != getattr(default, own.name)
        ]
        return ":".join([self.method, *changed])

    @property
    def capabilities(self) -> Capabilities:
        """All there is."""
        return Capabilities(holds_charge=True, field=True, dipole=True, charges=True)

    def charge_held(self, structure: Structure) -> float:
        """The total charge."""
        return structure.total_charge

    def check(self, structure: Structure) -> None:
        """Refuse what tblite cannot do, or would do wrongly; see :meth:`kqeq.baselines.Baseline.check`."""
        _library()
        heavy = [z for z in structure.species if z > HEAVIEST]
        if heavy:
            raise InputError(
                f'baseline "{self.method}" knows the elements up to number {HEAVIEST}, not {heavy}; use another baseline'
            )
        if structure.periodic and not structure.pbc.all():
            raise UnsupportedError(
                f'baseline "{self.method}" is for isolated systems and cells that are periodic in all three directions; '
                f"with pbc={structure.pbc.tolist()} tblite would repeat the structure in all three. Use a cell with "
                "enough vacuum and pbc=True, or another baseline"
            )
        if structure.periodic and structure.external_field.any():
            raise UnsupportedError(
                f'baseline "{self.method}": a uniform field along a periodic direction has no energy per cell; remove '
                "the field, or the periodicity"
            )
        if abs(structure.total_charge - round(structure.total_charge)) > 1e-6:
            raise UnsupportedError(
                f'baseline "{self.method}" needs a whole total charge, not {structure.total_charge:g} e: its energy is '
                'defined for whole electrons. Use charge_from="model", where the charge model carries the charge'
            )
        self._unpaired(structure)

    def _unpaired(self, structure: Structure) -> int:
        """Number of unpaired electrons."""
        electrons = int(structure.numbers.sum()) - round(structure.total_charge)
        if electrons < 0:
            raise InputError(f"a total charge of {structure.total_charge:g} e leaves {electrons} electrons")
        if structure.multiplicity is None:
            return electrons % 2
        value = structure.multiplicity
        whole = bool(np.isfinite(value)) and value == round(value)
        if not whole or not 1 <= value <= electrons + 1 or int(value) % 2 == electrons % 2:
            raise InputError(
                f'atoms.info["multiplicity"] is {value:g} for {electrons} electrons; expected 2S + 1, '
                f"{'an even' if electrons % 2 else 'an odd'} number"
            )
        return int(value) - 1

    def evaluate(self, structure: Structure, extras: Collection[str] = ()) -> BaselineResult:
        """Energy, derivatives, dipole and charges; see :meth:`kqeq.baselines.Baseline.evaluate`."""
        return _Engine(self).evaluate(structure, extras)

    def session(self) -> Baseline:
        """Starts every calculation from the density of the one before."""
        return TightBindingSession(self)

    def describe(self) -> str:
        """The version of tblite."""
        return f"tblite {_library()[1]}"


def from_name(name: str) -> TightBinding | None:
    """The baseline of a name such as ``"gfn2:temperature=1000"``; ``None`` if it is no such name.

    Raises
    ------
    InputError
        For unknown settings, and values that are no numbers.
    """
    method, *options = name.split(":")
    if method.lower() not in METHODS:
        return None
    settings: dict[str, Any] = {}
    known = [own.name for own in fields(TightBinding) if own.name != "method"]
    for option in options:
        key, _, text = option.partition("=")
        if key not in known:
            raise InputError(f"baseline {name!r} has no setting {key!r}; expected some of {', '.join(known)}")
        try:
            settings[key] = int(text) if key == "max_iterations" else float(text)
        except ValueError:
            raise InputError(f"baseline {name!r}: {key} is {text!r}; expected a number") from None
    return TightBinding(method.lower(), **settings)


def _library() -> tuple[Any, str]:
    """Tblite's interface and version.

    Raises
    ------
    UnsupportedError
        If it is not installed.
    """
    try:
        import tblite.interface
        from tblite.library import get_version
    except ImportError:
        raise UnsupportedError(
            f'the baselines {", ".join(METHODS)} need tblite: pip install "kqeq[xtb]"'
        ) from None
    return tblite.interface, ".".join(map(str, get_version()))


class _Engine:
    """tblite's objects for structures that follow each other; starts from the last density of the same system."""

    def __init__(self, settings: TightBinding) -> None:
        self.settings = settings
        self._system: tuple[Any, ...] | None = None
        self._field: bytes | None = None
        self._calculator: Any = None
        self._last: Any = None

    def evaluate(self, structure: Structure, extras: Collection[str]) -> BaselineResult:
        """As :meth:`TightBinding.evaluate`; the central structure comes last, to be what the next one starts from."""
        self.settings.check(structure)
        here = self._point(structure)
        if not extras:
            return here
        start = self._last

        def point(other: Structure) -> BaselineResult:
            if other is structure:
                return here
            # all from the density of the centre: differences do not depend on the order
            self._last = start
            return self._point(other)

        try:
            return with_extras(point, structure, extras, self.settings.capabilities)
        finally:
            self._last = start

    def _point(self, structure: Structure) -> BaselineResult:
        unpaired = self.settings._unpaired(structure)
        system = (
            structure.numbers.tobytes(),
            structure.pbc.tobytes(),
            round(structure.total_charge),
            unpaired,
        )
        if system != self._system:
            self._system, self._calculator, self._last = system, None, None
        field = structure.external_field.tobytes()
        if self._calculator is None or field != self._field:
            self._calculator = self._build(structure, unpaired)
            self._field = field
        else:
            self._calculator.update(
                np.ascontiguousarray(structure.positions / Bohr),
                np.ascontiguousarray(structure.cell / Bohr) if structure.periodic else None,
            )
        result = self._run(structure)
        self._last = result
        return self._read(structure, result)

    def _run(self, structure: Structure) -> Any:
        interface, _ = _library()
        starts = [*ATTEMPTS] if self._last is None else [ATTEMPTS[0], *ATTEMPTS]
        reason, last = "", self._last
        for guess, damping in starts:
            self._calculator.set("guess", guess)
            self._calculator.set("mixer-damping", damping)
            try:
                # a copy: the density that others start from stays
                return self._calculator.singlepoint(last, copy=True)
            except interface.TBLiteRuntimeError as error:
                reason, last = " ".join(str(error).split()), None
        raise ConvergenceError(
            f"{METHODS[self.settings.method]} failed: {reason}. The total charge is {structure.total_charge:g} e; "
            "check charge, multiplicity and geometry, or raise temperature or max_iterations "
            "(kqeq.baselines.TightBinding)"
        )

    def _build(self, structure: Structure, unpaired: int) -> Any:
        interface, _ = _library()
        try:
            calculator = interface.Calculator(
                METHODS[self.settings.method],
                structure.numbers,
                structure.positions / Bohr,
                float(round(structure.total_charge)),
                unpaired,
                structure.cell / Bohr if structure.periodic else None,
                structure.pbc if structure.periodic else None,
            )
        except (interface.TBLiteRuntimeError, interface.TBLiteValueError) as error:
            raise InputError(f"{METHODS[self.settings.method]} refuses the structure: {error}") from None
        calculator.set("verbosity", 0)
        calculator.set("accuracy", float(self.settings.accuracy))
        calculator.set("temperature", float(self.settings.temperature) * kB / Hartree)
        calculator.set("max-iter", int(self.settings.max_iterations))
        if structure.external_field.any():
            # a list: an array is refused
            calculator.add("electric-field", [float(x) * Bohr / Hartree for x in structure.external_field])
        return calculator

    def _read(self, structure: Structure, result: Any) -> BaselineResult:
        energy = float(result["energy"]) * Hartree
        gradient = np.array(result["gradient"], dtype=np.float64) * (Hartree / Bohr)
        charges = np.array(result["charges"], dtype=np.float64)
        dipole = None
        if structure.periodic:
            strain = np.array(result["virial"], dtype=np.float64) * Hartree
            extra = background(structure.cell, structure.total_charge)
            energy += extra
            strain = strain - extra * np.eye(3)  # it falls as 1/V at a given splitting parameter
        else:
            strain = structure.positions.T @ gradient
            dipole = np.array(result["dipole"], dtype=np.float64) * Bohr
        if not (np.isfinite(energy) and np.isfinite(gradient).all()):
            raise ConvergenceError(
                f"{METHODS[self.settings.method]} gave numbers that are not finite; check the geometry"
            )
        return BaselineResult(energy, gradient, strain, dipole, charges)


class TightBindingSession:
    """A :class:`TightBinding` that remembers the last density and result.

    Parameters
    ----------
    settings : TightBinding
    """

    def __init__(self, settings: TightBinding) -> None:
        self.settings = settings
        self._forget()

    def _forget(self) -> None:
        self._engine = _Engine(self.settings)
        self._known: tuple[Any, ...] | None = None
        self._extras: frozenset[str] = frozenset()
        self._result: BaselineResult | None = None

    @property
    def name(self) -> str:
        """As without a session."""
        return self.settings.name

    @property
    def capabilities(self) -> Capabilities:
        """As without a session."""
        return self.settings.capabilities

    def charge_held(self, structure: Structure) -> float:
        """The total charge."""
        return self.settings.charge_held(structure)

    def check(self, structure: Structure) -> None:
        """As without a session."""
        self.settings.check(structure)

    def evaluate(self, structure: Structure, extras: Collection[str] = ()) -> BaselineResult:
        """As without a session, from the last density; the last result itself where nothing changed."""
        known = tuple(
            a.tobytes()
            for a in (
                structure.numbers,
                structure.positions,
                structure.cell,
                structure.pbc,
                structure.external_field,
            )
        )
        key = (*known, structure.total_charge, structure.multiplicity)
        if self._result is None or key != self._known or not self._extras.issuperset(extras):
            self._known = None
            self._result = self._engine.evaluate(structure, extras)
            self._known, self._extras = key, frozenset(extras)
        return self._result

    def session(self) -> Baseline:
        """A new one."""
        return type(self)(self.settings)

    def describe(self) -> str:
        """As without a session."""
        return self.settings.describe()

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self.settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.settings = state["settings"]
        self._forget()


__all__ = ["METHODS", "TightBinding", "TightBindingSession", "from_name"]
