"""A constant energy for every total charge: what is wrong on average with the charge states of a baseline.

Ionisation energies of tight binding are off by electronvolts (Zn3O3 on GFN2-xTB: 8.2 and 6.8 eV), the same for all
geometries to within some tenths.  A fit takes these constants out first; without them a correction that does not see the
charge is torn between the charge states, and one that does would spend its parameters on them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kqeq.baselines.protocol import BaselineResult, GeometryBaseline
from kqeq.errors import InputError
from kqeq.frames.structures import Structure

PREFIX = "shift"


@dataclass(frozen=True)
class ChargeShift(GeometryBaseline):
    """An energy for each total charge, the same for all geometries.

    Parameters
    ----------
    energies : mapping of int to float
        eV by total charge; 0 for others.
    """

    energies: Mapping[int, float]

    @property
    def name(self) -> str:
        """``"shift:-1=6.8:1=8.2"``."""
        return ":".join([PREFIX, *(f"{q}={self.energies[q]!r}" for q in sorted(self.energies))])

    def evaluate(self, structure: Structure, extras: Collection[str] = ()) -> BaselineResult:
        """A constant; no derivatives."""
        energy = self.energies.get(round(structure.total_charge), 0.0)
        return BaselineResult(float(energy), np.zeros((len(structure), 3)), np.zeros((3, 3)))


def shift_from_name(name: str) -> ChargeShift:
    """What :attr:`ChargeShift.name` wrote.

    Raises
    ------
    InputError
    """
    try:
        pairs = (part.split("=") for part in name.split(":")[1:])
        return ChargeShift({int(charge): float(energy) for charge, energy in pairs})
    except ValueError:
        raise InputError(f'baseline {name!r}: expected for example "shift:-1=6.8:1=8.2"') from None


def learn_shift(structures: Sequence[Structure], residuals: Sequence[float | None]) -> ChargeShift | None:
    """Constants of the charge states that share a composition with the neutral or another state.

    Least squares of energies minus baseline over a constant for each composition and one for each total charge but the
    commonest; charges that never share a composition are not determined and get none.

    Parameters
    ----------
    structures : sequence of Structure
        With the total charge of the system.
    residuals : sequence of float or None
        Labelled energies minus those of the baseline, eV.
    """
    known = [(s, float(e)) for s, e in zip(structures, residuals, strict=True) if e is not None]
    composition = [tuple(sorted(s.numbers.tolist())) for s, _ in known]
    charges = [round(s.total_charge) for s, _ in known]
    groups = sorted(set(composition))
    linked = _linked(list(zip(composition, charges, strict=True)))
    if not linked:
        return None
    reference = 0 if 0 in linked else max(sorted(linked), key=charges.count)
    free = sorted(linked - {reference})
    rows = np.zeros((len(known), len(groups) + len(free)))
    for i, (own, charge) in enumerate(zip(composition, charges, strict=True)):
        rows[i, groups.index(own)] = 1.0
        if charge in free:
            rows[i, len(groups) + free.index(charge)] = 1.0
    solution = np.linalg.lstsq(rows, np.array([e for _, e in known]), rcond=1e-10)[0]
    return ChargeShift(dict(zip(free, map(float, solution[len(groups) :]), strict=True)))


def _linked(pairs: Sequence[tuple[tuple[int, ...], int]]) -> set[int]:
    """The largest set of total charges that are linked by compositions they share."""
    sets: list[set[int]] = []
    states: dict[tuple[int, ...], set[int]] = {}
    for composition, charge in pairs:
        states.setdefault(composition, set()).add(charge)
    for own in states.values():
        if len(own) < 2:
            continue
        touching = [other for other in sets if other & own]
        sets = [other for other in sets if not other & own] + [own.union(*touching)]
    return max(sets, key=lambda own: (0 in own, len(own)), default=set())


__all__ = ["PREFIX", "ChargeShift", "learn_shift", "shift_from_name"]
