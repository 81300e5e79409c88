"""Baselines made of baselines: sums, a part of one, and one that is kept at a reference charge."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from kqeq.baselines.protocol import Baseline, BaselineResult, Capabilities
from kqeq.errors import InputError
from kqeq.frames.structures import Structure
from kqeq.io.rules import number
from kqeq.typing import FloatArray

FACTOR = number(above=0)


@dataclass(frozen=True, eq=False)
class Sum:
    """Several baselines added up, for example tight binding and dispersion.

    Parameters
    ----------
    parts : sequence of Baseline
        At most one of them may hold charge or feel the field.

    Raises
    ------
    InputError
        For fewer than two parts, or two that hold charge, feel the field or give dipoles or charges.
    """

    parts: Sequence[Baseline]

    def __post_init__(self) -> None:
        if len(self.parts) < 2:
            raise InputError("a sum of baselines needs at least two")
        electric = [part.name for part in self.parts if part.capabilities != Capabilities()]
        if len(electric) > 1:
            raise InputError(
                f"the baselines {' and '.join(electric)} both hold charge or give dipoles or charges: the field would "
                "act on them twice; use one of them"
            )

    @property
    def name(self) -> str:
        """The names, joined by ``+``."""
        return "+".join(part.name for part in self.parts)

    @property
    def capabilities(self) -> Capabilities:
        """Those of the only part that has any."""
        return next(
            (own for part in self.parts if (own := part.capabilities) != Capabilities()), Capabilities()
        )

    def charge_held(self, structure: Structure) -> float:
        """The sum."""
        return sum(part.charge_held(structure) for part in self.parts)

    def check(self, structure: Structure) -> None:
        """All parts have to agree."""
        for part in self.parts:
            part.check(structure)

    def evaluate(self, structure: Structure, extras: Collection[str] = ()) -> BaselineResult:
        """The sum; see :meth:`kqeq.baselines.Baseline.evaluate`."""
        results = [part.evaluate(structure, extras) for part in self.parts]

        def total(name: str) -> FloatArray | None:
            known = [value for result in results if (value := getattr(result, name)) is not None]
            return sum(known[1:], start=known[0]) if known else None

        names = BaselineResult._fields
        found = {name: total(name) for name in names[1:]}
        return BaselineResult(energy=sum(result.energy for result in results), **found)  # type: ignore[arg-type]

    def session(self) -> Baseline:
        """A sum of sessions."""
        return Sum([part.session() for part in self.parts])

    def describe(self) -> str:
        """Of all parts that say something, if one does."""
        return ", ".join(text for part in self.parts if (text := part.describe()))


@dataclass(frozen=True, eq=False)
class AtReferenceCharge:
    """A baseline that holds charge, kept at one reference charge; the charge model on top carries the rest.

    The field still acts on it, with dipole and polarizability at the reference charge.  Differences between charge
    states are those of the model alone, and total charges need not be whole.

    Parameters
    ----------
    baseline : Baseline
    charge : float
        e.

    Raises
    ------
    InputError
        If the baseline holds no charge.
    """

    baseline: Baseline
    charge: float = 0.0

    def __post_init__(self) -> None:
        if not self.baseline.capabilities.holds_charge:
            raise InputError(
                f"the baseline {self.baseline.name} does not depend on the total charge; there is no reference charge to "
                "keep it at"
            )

    @property
    def name(self) -> str:
        """``"gfn2@0"``."""
        return f"{self.baseline.name}@{self.charge:g}"

    @property
    def capabilities(self) -> Capabilities:
        """All but the charge."""
        return replace(self.baseline.capabilities, holds_charge=False)

    def charge_held(self, structure: Structure) -> float:
        """The reference charge."""
        return self.charge

    def at_reference(self, structure: Structure) -> Structure:
        """The structure that the baseline sees; an ion's multiplicity is not that of its reference."""
        same = abs(structure.total_charge - self.charge) < 1e-8
        return replace(
            structure,
            total_charge=self.charge,
            multiplicity=structure.multiplicity if same else None,
            fragment_charges=None,
            reference_charges=None,
        )

    def check(self, structure: Structure) -> None:
        """As the baseline, at the reference charge."""
        self.baseline.check(self.at_reference(structure))

    def evaluate(self, structure: Structure, extras: Collection[str] = ()) -> BaselineResult:
        """The baseline at the reference charge; see :meth:`kqeq.baselines.Baseline.evaluate`."""
        return self.baseline.evaluate(self.at_reference(structure), extras)

    def session(self) -> Baseline:
        """A session of the baseline."""
        return AtReferenceCharge(self.baseline.session(), self.charge)

    def describe(self) -> str:
        """As the baseline."""
        return self.baseline.describe()


@dataclass(frozen=True, eq=False)
class Scaled:
    """A part of a baseline: where a model learns much itself, less of what is known before may be better than all of it.

    One that holds charge is kept neutral, and the model on top carries the total charge.

    Parameters
    ----------
    baseline : Baseline
    factor : float
        What energies, dipoles and all else are multiplied with, above 0.

    Raises
    ------
    InputError
        For anything else.
    """

    baseline: Baseline
    factor: float

    def __post_init__(self) -> None:
        FACTOR.require(self.factor, "the factor of a baseline")
        object.__setattr__(self, "factor", float(self.factor))
        object.__setattr__(self, "baseline", change_holder(self.baseline, AtReferenceCharge))

    @property
    def name(self) -> str:
        """``"0.4*so3lr@0"``."""
        return f"{self.factor!r}*{self.baseline.name}"

    @property
    def capabilities(self) -> Capabilities:
        """Those of the baseline."""
        return self.baseline.capabilities

    def charge_held(self, structure: Structure) -> float:
        """That part."""
        return self.factor * self.baseline.charge_held(structure)

    def check(self, structure: Structure) -> None:
        """As the baseline."""
        self.baseline.check(structure)

    def evaluate(self, structure: Structure, extras: Collection[str] = ()) -> BaselineResult:
        """That part of everything; see :meth:`kqeq.baselines.Baseline.evaluate`."""
        found = self.baseline.evaluate(structure, extras)
        return BaselineResult(*(None if value is None else self.factor * value for value in found))  # type: ignore[arg-type]

    def session(self) -> Baseline:
        """Of a session of the baseline."""
        return Scaled(self.baseline.session(), self.factor)

    def describe(self) -> str:
        """As the baseline."""
        return self.baseline.describe()


def parts_of(baseline: Baseline) -> tuple[Baseline, ...]:
    """The parts of a sum; otherwise the baseline alone."""
    return tuple(baseline.parts) if isinstance(baseline, Sum) else (baseline,)


def change_holder(baseline: Baseline, change: Callable[[Baseline], Baseline]) -> Baseline:
    """The baseline with the part that holds charge changed; itself if none does."""
    if isinstance(baseline, Sum):
        return Sum([change_holder(part, change) for part in baseline.parts])
    return change(baseline) if baseline.capabilities.holds_charge else baseline


__all__ = ["AtReferenceCharge", "Scaled", "Sum", "change_holder", "parts_of"]
