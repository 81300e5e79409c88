"""What a user writes, and what a model file holds, to a baseline."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms

from kqeq.baselines.ase import ASE_PREFIX, CalculatorBaseline
from kqeq.baselines.combine import AtReferenceCharge, Scaled, Sum, change_holder
from kqeq.baselines.dispersion import KINDS, Dispersion
from kqeq.baselines.protocol import Baseline, BaselineResult, GeometryBaseline
from kqeq.baselines.shift import PREFIX, shift_from_name
from kqeq.baselines.so3lr import SO3LR
from kqeq.baselines.tight_binding import METHODS, from_name
from kqeq.baselines.zbl import ZBL
from kqeq.errors import InputError
from kqeq.frames.structures import Structure

CHARGE_FROM = ("baseline", "model")
"""Who carries the total charge where both could."""

EXPECTED = (
    f'None, {", ".join(f"{name!r}" for name in METHODS)}, "so3lr", "zbl", "d4:FUNCTIONAL", "d3:FUNCTIONAL", '
    'sums of them such as "gfn2+zbl", an ASE calculator, or an object of kqeq.baselines'
)


@dataclass(frozen=True, eq=False)
class _Plain(GeometryBaseline):
    """An object with ``name`` and ``evaluate(structure)`` alone."""

    inner: Any

    @property
    def name(self) -> str:
        return str(self.inner.name)

    def evaluate(self, structure: Structure, extras: Collection[str] = ()) -> BaselineResult:
        energy, gradient, strain = self.inner.evaluate(structure)[:3]
        return BaselineResult(float(energy), np.asarray(gradient), np.asarray(strain))


def resolve_baseline(spec: Any, charge_from: str = "baseline") -> Baseline | None:
    """Turn what a user writes into a baseline.

    Parameters
    ----------
    spec : None, str, list, ase calculator or Baseline
        ``None`` for none; a name: ``"gfn2"``, ``"gfn1"``, ``"ipea1"`` (:class:`~kqeq.baselines.TightBinding`), with
        ``:setting=value``; ``"zbl"`` or ``"zbl:INNER:OUTER"`` (:class:`~kqeq.baselines.ZBL`);
        ``"so3lr"`` (:class:`~kqeq.baselines.SO3LR`); ``"d4:pbe0"``,
        ``"d3:pbe0"`` (:class:`~kqeq.baselines.Dispersion`); names joined by ``+``, or a list, for a sum;
        ``"0.5*so3lr"`` for a part (:class:`~kqeq.baselines.Scaled`); an ASE calculator; an object that is a baseline
        already.
    charge_from : {"baseline", "model"}
        ``"model"`` keeps a baseline that holds charge at charge 0 (:class:`~kqeq.baselines.AtReferenceCharge`); so does
        ``"gfn2@0"``.

    Returns
    -------
    Baseline or None

    Raises
    ------
    InputError
        For anything else, and for the name of an ASE calculator, which cannot be built from its name.
    """
    if charge_from not in CHARGE_FROM:
        raise InputError(f"charge_from is {charge_from!r}; expected one of {', '.join(CHARGE_FROM)}")
    resolved = _resolve(spec)
    if resolved is None or charge_from == "baseline":
        return resolved
    return change_holder(resolved, AtReferenceCharge)


def _resolve(spec: Any) -> Baseline | None:
    if spec is None:
        return None
    if isinstance(spec, str):
        return _from_name(spec)
    if isinstance(spec, list | tuple):
        parts = [part for own in spec if (part := _resolve(own)) is not None]
        return Sum(parts)
    if isinstance(spec, type):
        raise InputError(f"baseline is the class {spec.__name__}; pass an instance: {spec.__name__}(...)")
    if callable(getattr(spec, "evaluate", None)) and isinstance(getattr(spec, "name", None), str):
        return spec if isinstance(spec, Baseline) else _Plain(spec)
    if all(callable(getattr(spec, method, None)) for method in ("get_potential_energy", "get_forces")):
        if isinstance(spec, Atoms):
            raise InputError("baseline is an ase.Atoms; pass its calculator: baseline=atoms.calc")
        return CalculatorBaseline(spec)
    raise InputError(f"baseline is {spec!r}; expected {EXPECTED}")


def _from_name(name: str) -> Baseline:
    if name.startswith(ASE_PREFIX):
        raise InputError(
            f"the baseline is the ASE calculator {name.removeprefix(ASE_PREFIX)}, which a name or a model file "
            "cannot bring back; pass the calculator itself, set up as it was for the fit"
        )
    # not the plus sign of an exponent or a charge
    parts = [part for part in name.replace("@+", "@").split("+") if part]
    if len(parts) > 1:
        return Sum([_from_name(part) for part in parts])
    if "*" in name:
        factor, _, inner = name.partition("*")
        try:
            return Scaled(_from_name(inner), float(factor))
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"baseline {name!r}: {factor!r} is no number; expected for example 0.5*{inner}"
            ) from None
    if "@" in name:
        inner, _, charge = name.partition("@")
        try:
            return AtReferenceCharge(_from_name(inner), float(charge))
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"baseline {name!r}: {charge!r} is no charge; expected for example {inner}@0"
            ) from None
    kind, *options = name.split(":")
    if kind.lower() == "zbl" and len(options) in {0, 2}:
        try:
            return ZBL(*map(float, options))
        except ValueError as error:
            if isinstance(error, InputError):
                raise
    if kind.lower() == "so3lr" and not options:
        return SO3LR()
    if kind.lower() in KINDS and len(options) <= 1:
        return Dispersion(kind.lower(), options[0].lower() if options else "")
    if kind == PREFIX:
        return shift_from_name(name)
    tight_binding = from_name(name)
    if tight_binding is not None:
        return tight_binding
    raise InputError(f"unknown baseline {name!r}; expected {EXPECTED}")


__all__ = ["CHARGE_FROM", "resolve_baseline"]
