"""Whether energies, forces, stresses, dipoles and fields of neighbouring frames belong together.

Between two frames that are close the labels themselves say by how much the energy changes, to third order in the step:

    E_j − E_i = −½ (F_i + F_j)·Δx + ½ V (σ_i + σ_j):ε − ½ (μ_i + μ_j)·ΔE_field.

No model is needed, so what it shows is wrong with labels: gradients instead of forces, hartree among eV, energies per
atom, the other sign of a stress.  A fit would follow such labels halfway and say nothing.  Errors of whole sets are
looked for, so single ratios of the two sides do not matter; most of them have to agree on one number that is not 1.

Dimensions: n frames with the same atoms, N atoms, p pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from ase import units

from kqeq.constants import DEBYE
from kqeq.frames.labels import Labels
from kqeq.frames.structures import Structure
from kqeq.typing import FloatArray

MOST_FRAMES = 80
"""Frames of one kind that are looked at, the first ones: in a trajectory these are neighbours."""

MOST_IN_ALL = 600
"""Frames of all kinds together."""

LEAST_PAIRS = 6
"""Pairs without which nothing is said."""

ALIKE = 1.4
"""Ratios within this factor of each other agree."""

MOST_AGREE = 0.6
"""Share of pairs that have to."""

NEAR = 0.2
"""Logarithm by which a factor may differ from that of a cause."""

STIFF = 200.0
"""Forces that change by more than this with positions, eV/Å², are in another unit.

Typical changes are 5 to 60 (nitrogen 120 if all its modes are moved); in kcal/mol they are 23 times larger.
"""

_ENERGIES = {
    "eV": 1.0,
    "hartree": units.Hartree,
    "rydberg": units.Rydberg,
    "kcal/mol": units.kcal / units.mol,
    "kJ/mol": units.kJ / units.mol,
}
"""Units of energy, eV."""

_LENGTHS = {"Å": 1.0, "bohr": units.Bohr}

_STRESSES = {
    "eV/Å³": 1.0,
    "GPa": 1.0 / units.GPa,
    "kbar": 10.0 / units.GPa,
    "hartree/bohr³": units.Bohr**3 / units.Hartree,
    "rydberg/bohr³": units.Bohr**3 / units.Rydberg,
}
"""How many of each unit are one eV/Å³; hartree/bohr³ is 183.6 eV/Å³."""


@dataclass(frozen=True)
class Ratios:
    """How the two sides of the equation compare, pair by pair.

    Attributes
    ----------
    forces, stress, field : (p,) arrays
        Energy differences over what forces say; what forces leave of them over what stresses say, and dipoles.
    atoms, volumes : (p,) arrays
        Number of atoms of the pairs of ``forces``, and volume of those of ``stress``, Å³.
    stiffness : (p,) array
        |ΔF| / |Δx|, eV/Å².
    """

    forces: FloatArray
    stress: FloatArray
    field: FloatArray
    atoms: FloatArray
    volumes: FloatArray
    stiffness: FloatArray


def contradictions(pairs: Sequence[tuple[Structure, Labels]]) -> list[str]:
    """Sentences about labels of a set that contradict each other by a factor.

    Parameters
    ----------
    pairs : sequence of (Structure, Labels)
        All frames.
    """
    found = compare(pairs)
    said = []
    factor = _agreed(found.forces)
    per_atom = None if factor is not None else _agreed(found.forces * found.atoms)
    if per_atom is not None and abs(math.log(abs(per_atom))) < math.log(ALIKE):
        factor = per_atom / float(np.median(found.atoms))
    if factor is not None and not _right(factor):
        said.append(
            "energies and forces contradict each other: between neighbouring frames energies change by "
            f"{factor:.3g} times what the forces say ({len(found.forces)} pairs of frames)"
            f"{_of_forces(factor, found.atoms)}. Expected are the energy of all atoms in eV and forces (minus the "
            "gradient) in eV/Å; no model can follow both"
        )
        return said
    factor = _agreed(found.stress)
    if factor is not None and not _right(factor):
        said.append(
            "stress and energies contradict each other: between frames in different cells energies change by "
            f"{factor:.3g} times what the stress says ({len(found.stress)} pairs of frames)"
            f"{_of_stress(factor, found.volumes)}. Expected is stress in eV/Å³ with ASE's sign, positive where the cell "
            "wants to shrink: minus the virial over the volume"
        )
    factor = _agreed(found.field)
    if factor is not None and not _right(factor):
        said.append(
            f"dipoles, fields and energies contradict each other: between frames in different fields energies change by "
            f"{factor:.3g} times what −μ·E says ({len(found.field)} pairs of frames){_of_field(factor)}. Expected are "
            "dipoles in e·Å, fields in V/Å along the force on a positive charge, and energies that hold −μ·E"
        )
    if len(found.stiffness) >= LEAST_PAIRS and float(np.median(found.stiffness)) > STIFF:
        said.append(
            f"forces change by {float(np.median(found.stiffness)):.3g} eV/Å per Å that atoms move (median of "
            f"{len(found.stiffness)} pairs of frames), where the stiffest bonds reach some 100: are energies and forces "
            "in kcal/mol or kJ/mol, or positions in nm? Expected are eV and Å (1 kcal/mol is 0.04336 eV)"
        )
    return said


def compare(pairs: Sequence[tuple[Structure, Labels]]) -> Ratios:
    """Both sides of the equation for pairs of neighbouring frames.

    Parameters
    ----------
    pairs : sequence of (Structure, Labels)
    """
    parts: dict[str, list[tuple[float, ...]]] = {"forces": [], "stress": [], "field": []}
    for members in _alike(pairs):
        for name, values in _of_group(members):
            parts[name].append(values)
    table = {name: np.array(rows, dtype=np.float64).reshape(-1, 5) for name, rows in parts.items()}
    ratio = {}
    for name, all_rows in table.items():
        # small ones are what is left of terms that cancel
        sizes = np.abs(all_rows[:, 1])
        good = sizes > 0.3 * np.median(sizes) if len(sizes) else np.zeros(0, bool)
        if good.sum() > 2 * LEAST_PAIRS:  # the equation is best for short steps
            good &= all_rows[:, 4] <= np.median(all_rows[good, 4])
        table[name] = all_rows[good]
        ratio[name] = table[name][:, 0] / table[name][:, 1]
    own = table["forces"]
    stiffness = own[own[:, 2] > 2.0, 3]
    return Ratios(
        ratio["forces"], ratio["stress"], ratio["field"], own[:, 2], table["stress"][:, 2], stiffness
    )


def _alike(pairs: Sequence[tuple[Structure, Labels]]) -> Iterator[list[tuple[Structure, Labels]]]:
    """Frames with the same atoms in the same order, charge and boundary conditions, and labels to compare."""
    groups: dict[tuple[object, ...], list[tuple[Structure, Labels]]] = {}
    total = 0
    for s, labels in pairs:
        if labels.energy is None or labels.forces is None or not labels.forces.any() or len(s) < 2:
            continue
        if s.external_potential is not None or (s.periodic and s.external_field.any()):
            continue
        key = (s.numbers.tobytes(), s.pbc.tobytes(), round(s.total_charge, 6), s.multiplicity)
        members = groups.setdefault(key, [])
        if len(members) < MOST_FRAMES and total < MOST_IN_ALL:
            members.append((s, labels))
            total += 1
    yield from (members for members in groups.values() if len(members) > 1)


def _of_group(members: Sequence[tuple[Structure, Labels]]) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Kind, and (difference, what labels say, N, stiffness), of every frame and the nearest other one."""
    structures = [s for s, _ in members]
    first = structures[0]
    open_, whole = not first.periodic, bool(first.pbc.all())
    cells = np.array([s.cell for s in structures])
    fields = np.array([s.external_field for s in structures])
    turned = open_ and not fields.any()
    moved = _aligned(members) if turned else [(s.positions, labels.forces) for s, labels in members]
    places, forces = (np.array(part) for part in zip(*moved, strict=True))
    energies = np.array([labels.energy for _, labels in members], dtype=np.float64)
    if not open_:
        if not all(s.volume > 1e-6 for s in structures):
            return
        scaled = np.array([np.linalg.solve(s.cell.T, s.positions.T).T for s in structures])
    seen = set()
    for i in range(len(members)):
        if open_:
            mean_cells, steps, bent = cells, places - places[i], np.zeros(len(members))
        else:
            fractional = scaled - scaled[i]
            fractional -= np.where(first.pbc, np.round(fractional), 0.0)
            mean_cells = 0.5 * (cells + cells[i])
            steps = fractional @ mean_cells
            bent = np.einsum("nab,nab->n", cells - cells[i], cells - cells[i])
        if not fields.any():
            steps = steps - steps.mean(axis=1, keepdims=True)
        # atoms move by about half as much as the vectors of their cell change
        lengths = np.sqrt(np.einsum("nia,nia->n", steps, steps) + 0.25 * len(first) * bent)
        same_cell = np.ones(len(members), bool) if open_ else bent < 1e-12
        same_field = np.abs(fields - fields[i]).max(axis=1) < 1e-8
        for kind, wanted in (
            ("forces", same_cell & same_field),
            ("stress", ~same_cell & same_field if whole else np.zeros(len(members), bool)),
            ("field", same_cell & ~same_field),
        ):
            others = np.flatnonzero(wanted & (np.arange(len(members)) != i))
            others = others[lengths[others] > 1e-4] if kind == "forces" else others
            if not len(others):
                continue
            j = int(others[np.argmin(lengths[others])])
            if (kind, min(i, j), max(i, j)) in seen:
                continue
            seen.add((kind, min(i, j), max(i, j)))
            step = float(lengths[j]) / math.sqrt(len(first))
            work = -0.5 * float(np.vdot(forces[i] + forces[j], steps[j]))
            change = energies[j] - energies[i]
            if kind == "forces":
                stiffness = float(np.linalg.norm(forces[j] - forces[i])) / lengths[j]
                yield kind, (change, work, len(first), stiffness, step)
                continue
            said = (
                _of_strain(members, i, j, mean_cells[j]) if kind == "stress" else _of_dipoles(members, i, j)
            )
            if said is not None:
                yield kind, (change - work, said, first.volume, 0.0, step)


def _aligned(members: Sequence[tuple[Structure, Labels]]) -> list[tuple[FloatArray, FloatArray]]:
    """Positions and forces of open structures, turned onto the first."""
    reference = members[0][0].positions - members[0][0].positions.mean(axis=0)
    result = []
    for s, labels in members:
        assert labels.forces is not None
        own = s.positions - s.positions.mean(axis=0)
        left, _, right = np.linalg.svd(own.T @ reference)
        turn = left @ np.diag([1.0, 1.0, np.sign(np.linalg.det(left @ right))]) @ right
        result.append((own @ turn, labels.forces @ turn))
    return result


def _of_strain(
    members: Sequence[tuple[Structure, Labels]], i: int, j: int, mean_cell: FloatArray
) -> float | None:
    """½ V (σ_i + σ_j):ε."""
    first, second = members[i][1].stress, members[j][1].stress
    if first is None or second is None:
        return None
    strain = np.linalg.solve(mean_cell, members[j][0].cell - members[i][0].cell)
    return 0.5 * abs(float(np.linalg.det(mean_cell))) * float(np.vdot(first + second, strain))


def _of_dipoles(members: Sequence[tuple[Structure, Labels]], i: int, j: int) -> float | None:
    """−½ (μ_i + μ_j)·ΔE."""
    first, second = members[i][1].dipole, members[j][1].dipole
    if first is None or second is None or members[i][0].periodic:
        return None
    change = members[j][0].external_field - members[i][0].external_field
    return -0.5 * float((first + second) @ change)


def _agreed(ratios: FloatArray) -> float | None:
    """The number that most ratios are, if there is one."""
    if len(ratios) < LEAST_PAIRS:
        return None
    middle = float(np.median(ratios))
    if not np.isfinite(middle) or middle == 0.0:
        return None
    share = float(np.mean((ratios / middle < ALIKE) & (ratios / middle > 1.0 / ALIKE)))
    return middle if share >= MOST_AGREE else None


def _right(factor: float) -> bool:
    return factor > 0.0 and abs(math.log(factor)) < math.log(ALIKE)


def _sign(factor: float, what: str) -> str:
    return f", and {what} the other sign" if factor < 0.0 else ""


def _near(factor: float, candidates: Sequence[tuple[str, float]], opposite: str) -> str:
    """The cause whose factor is this one, as the end of a sentence."""
    size, other = abs(factor), factor < 0.0
    # of causes that are equally near the first
    name, value = min(candidates, key=lambda cause: round(abs(math.log(size / cause[1])), 2))
    words = [name] if abs(math.log(size / value)) < NEAR else []
    if other:
        words.append(opposite)
    return f", as if {' and '.join(words)}" if words else ""


def _of_forces(factor: float, atoms: FloatArray) -> str:
    of_both = [
        (f"energies were in {a} and forces in {b}/{length}", _ENERGIES[b] / (_ENERGIES[a] * _LENGTHS[length]))
        for a, b, length in sorted(
            ((a, b, length) for a in _ENERGIES for b in _ENERGIES for length in _LENGTHS),
            # what is likeliest: one of them is right, or both are of one program
            key=lambda names: (
                (names[0] != "eV") + (names[1:] != ("eV", "Å")) - (names[0] == names[1] != "eV")
            ),
        )
    ]
    known = [
        ("energies were per atom", 1.0 / float(np.median(atoms))),
        ("energies were in hartree and forces in hartree/bohr", 1.0 / _LENGTHS["bohr"]),
        ("positions were in bohr", _LENGTHS["bohr"]),
        *of_both,
    ]
    if abs(math.log(abs(factor))) < math.log(ALIKE):
        return ", as if forces were gradients, of the other sign"
    return _near(factor, known, "forces had the other sign")


def _of_stress(factor: float, volumes: FloatArray) -> str:
    known = [(f"the stress were in {name}", 1.0 / value) for name, value in _STRESSES.items() if value != 1.0]
    if abs(math.log(abs(factor))) < math.log(ALIKE):
        return ", as if it had the other sign (a pressure, or a virial over the volume)"
    if abs(math.log(abs(factor) * float(np.median(volumes)))) < math.log(ALIKE):
        return ", as if it were the virial, which is minus the stress times the volume"
    return _near(factor, known, "it had the other sign")


def _of_field(factor: float) -> str:
    known = [
        ("dipoles were in debye", DEBYE),
        ("dipoles were in atomic units", units.Bohr),
        ("fields were in atomic units (51.42 V/Å)", units.Hartree / units.Bohr),
        ("dipoles and fields were in atomic units", units.Hartree),
    ]
    if abs(math.log(abs(factor))) < math.log(ALIKE):
        return ", as if fields had the other sign"
    return _near(factor, known, "fields had the other sign")


__all__ = ["Ratios", "compare", "contradictions"]
