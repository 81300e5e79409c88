"""Phases of one cell: whether charge crosses from one to another, and whether the metal is a metal.

Charges of a slab in a small field along the normal say three things of each phase, a group of atoms:

* its charge without the field, and how much charge crosses into it per field: nothing may, where no electron transfer is
  meant;
* the field inside, averaged over its height: F + (2πk_e/A) Σ δq_i sign(z − z_i).  A metal has none, or less than none
  where it screens from beyond its nuclei.  Times the thickness it is the drop of potential inside;
* its induced dipole against that of a conductor between its outermost nuclei, A h/(4πk_e) per field: at least 1 for a
  metal, well below for an insulator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.neighborlist import natural_cutoffs, neighbor_list
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from kqeq.analysis.entry import fix, require_charges
from kqeq.analysis.findings import FLAGGED, OK, UNTESTED, Finding
from kqeq.analysis.ranges import BOND
from kqeq.charges.boundaries import open_components
from kqeq.constants import COULOMB
from kqeq.errors import InputError, KQEqError, UnsupportedError
from kqeq.typing import FloatArray

CROSSING = 0.01
"""Charge per area and field that counts as crossing, in units of what a conductor moves, 1/(4πk_e)."""

METAL_FIELD, METAL_DIPOLE = 0.2, 0.7
"""Largest share of the field inside a metal, and least dipole in units of a conductor's."""

PROBE = 0.05
"""Change of the field, V/Å, either way."""

NON_METALS = frozenset([1, 2, 5, 6, 7, 8, 9, 10, 14, 15, 16, 17, 18, 33, 34, 35, 36, 52, 53, 54, 85, 86])
"""Atomic numbers of hydrogen, noble gases, non-metals and B, Si, As, Te."""

LEAST_METAL = 4
"""Atoms from which a piece of metal counts as a phase."""

CROSSES = (
    "fragments that keep their charge (kqeq.QEq(fragments=True)), or no softness between the phases "
    "(kqeq.ACKS2(pair_softness=...))"
)
SOFTER = (
    'softer atoms (hardness), more softness within the metal (pair_softness, or pair_softness="learn" from '
    "polarizabilities)"
)


@dataclass(frozen=True, eq=False)
class Phases:
    """What :func:`phases` found, by name of the phase.

    Attributes
    ----------
    charges : dict of str to float
        Without the probing field, e.
    crossing : dict of str to float
        Charge that crosses into the phase per field, e/(V/Å).
    inside : dict of str to float
        Share of the applied field inside the phase, averaged over its height.
    conductor : dict of str to float
        Induced dipole in units of a conductor's between the outermost nuclei; NaN for one layer.
    screening : float
        4πk_e/A, V/Å: one over the charge per field on a side of a conductor.
    findings : tuple of str
        What is wrong, in words, with the remedy; empty where nothing is.
    """

    charges: Mapping[str, float]
    crossing: Mapping[str, float]
    inside: Mapping[str, float]
    conductor: Mapping[str, float]
    screening: float
    findings: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"{'phase':<12}{'charge (e)':>12}{'crossing (e/(V/Å))':>20}{'field inside':>14}{'of a conductor':>16}"
        ]
        lines += [
            f"{name:<12}{self.charges[name]:12.4f}{self.crossing[name]:20.4f}{self.inside[name]:14.3f}"
            f"{self.conductor[name]:16.3f}"
            for name in self.charges
        ]
        return "\n".join([*lines, *self.findings])


def phases(model: Any, atoms: Any, groups: Mapping[str, Sequence[int]], metals: Sequence[str] = ()) -> Phases:
    """Look at the phases of a slab, two periodic directions, in a small field along its normal.

    Parameters
    ----------
    model : KQEq
    atoms : ase.Atoms
        At its own total charge and field.
    groups : dict of str to sequence of int
        Atoms of each phase.
    metals : sequence of str
        Which of them are to be metals.

    Raises
    ------
    InputError
        For structures that are no slabs, and groups that are empty, share atoms or do not exist.
    UnsupportedError
        For models without charges.
    """
    geometry = fix(model, atoms)
    require_charges(geometry.potential, "charges of phases")
    structure = geometry.structure
    if structure.pbc.sum() != 2:
        raise InputError(
            f"phases are looked at in slabs, and the structure has pbc={structure.pbc.tolist()}; set two "
            f"periodic directions"
        )
    if geometry.system is None:
        raise UnsupportedError("the model has no charge model whose response to a field could be looked at")
    members = _members(groups, metals, len(structure))
    rows = structure.cell[structure.pbc]
    area = float(np.linalg.norm(np.cross(rows[0], rows[1])))
    normal = open_components(structure)[0]
    heights = structure.positions @ normal
    charges = geometry.predict(("charges",)).charges
    assert charges is not None
    sides = [
        geometry.under(external_field=structure.external_field + sign * PROBE * normal)
        .predict(("charges",))
        .charges
        for sign in (1, -1)
    ]
    assert sides[0] is not None and sides[1] is not None
    moved: FloatArray = (sides[0] - sides[1]) / (2 * PROBE)
    screening = 4.0 * np.pi * COULOMB / area
    found: dict[str, dict[str, float]] = {name: {} for name in ("charges", "crossing", "inside", "conductor")}
    for name, own in members.items():
        low, high = float(heights[own].min()), float(heights[own].max())
        found["charges"][name] = float(charges[own].sum())
        found["crossing"][name] = float(moved[own].sum())
        # the mean of sign(z − z_i) over the height of the phase
        mean_sign = np.clip((low + high - 2.0 * heights) / max(high - low, 1e-6), -1.0, 1.0)
        found["inside"][name] = 1.0 + 0.5 * screening * float(moved @ mean_sign)
        dipole = float(moved[own] @ (heights[own] - 0.5 * (low + high)))
        thick = high - low > 0.5
        found["conductor"][name] = dipole * screening / (high - low) if thick else float("nan")
    findings = []
    for name, value in found["crossing"].items():
        if abs(value) > CROSSING / screening:
            findings.append(
                f"charge crosses: a field moves {value:.3g} e/(V/Å) into {name}. Remedy: {CROSSES}"
            )
    for name in metals:
        if found["inside"][name] > METAL_FIELD:
            findings.append(
                f"potential drops inside {name}: {100 * found['inside'][name]:.0f} % of the field is left in it. "
                f"Remedy: {SOFTER}"
            )
        if found["conductor"][name] < METAL_DIPOLE:
            findings.append(
                f"{name} polarises like an insulator: {found['conductor'][name]:.2f} of a conductor's dipole. "
                f"Remedy: as for a drop of potential; fit to frames in fields"
            )
    return Phases(findings=tuple(findings), screening=screening, **found)


def find_phases(atoms: Atoms) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    """Pieces of metal in a slab, and everything else.

    An atom belongs to a metal if it is one by its element and has more metal than other neighbours (atoms of oxides do
    not); pieces are what neighbours hold together.

    Returns
    -------
    groups : dict of str to list of int
        ``metal`` (or ``metal 1``, ``metal 2`` ... from the lowest one on) and ``others``.
    metals : tuple of str
        Those that are metals; empty where there is none.
    """
    n = len(atoms)
    i, j = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=BOND))
    is_metal = np.array([int(z) not in NON_METALS for z in atoms.numbers])
    with_metal = np.bincount(i, weights=is_metal[j], minlength=n)
    with_others = np.bincount(i, weights=~is_metal[j], minlength=n)
    inside = is_metal & (with_metal > with_others)
    both = inside[i] & inside[j]
    graph = sparse.csr_array((np.ones(both.sum()), (i[both], j[both])), shape=(n, n))
    _, label = connected_components(graph, directed=False)
    pieces = [
        np.flatnonzero(label == k)
        for k in np.unique(label[inside])
        if np.count_nonzero(label == k) >= LEAST_METAL
    ]
    pieces.sort(key=lambda own: float(atoms.positions[own].mean(axis=0) @ _normal(atoms)))
    names = ["metal"] if len(pieces) == 1 else [f"metal {k}" for k in range(1, len(pieces) + 1)]
    groups = {name: own.tolist() for name, own in zip(names, pieces, strict=True)}
    rest = sorted(set(range(n)) - {k for own in groups.values() for k in own})
    return ({**groups, "others": rest} if rest else groups), tuple(names)


def phase_findings(model: Any, atoms: Atoms) -> list[Finding]:
    """What :func:`phases` says of the pieces of metal of a slab; nothing where there is no slab or no metal in it."""
    if int(np.sum(atoms.pbc)) != 2:
        return []
    groups, metals = find_phases(atoms)
    if not metals:
        return []
    title = "phases of the slab"
    try:
        found = phases(model, atoms, groups, metals)
    except KQEqError as error:
        return [Finding(title, UNTESTED, None, None, "", f"{error}")]
    findings = []
    if len(groups) > 1:
        worst = max(groups, key=lambda name: abs(found.crossing[name]))
        moved = abs(found.crossing[worst]) * found.screening
        text = (
            f"a field along the normal moves {found.crossing[worst]:.3g} e/(V/Å) into {worst}; without it the phases "
            f"carry {', '.join(f'{name} {q:+.3f} e' for name, q in found.charges.items())}."
        )
        flagged = moved > CROSSING
        findings.append(
            Finding(
                "charge that crosses from one phase to the other",
                FLAGGED if flagged else OK,
                moved,
                CROSSING,
                "of what a conductor moves",
                text,
                CROSSES if flagged else "",
            )
        )
    for name in metals:
        share, own = found.inside[name], found.conductor[name]
        if not np.isfinite(own):
            text = "one layer of atoms has no inside."
            findings.append(Finding(f"screening in {name}", UNTESTED, None, None, "", text))
            continue
        flagged = share > METAL_FIELD
        text = "mean field inside, in units of the applied one; a metal has none."
        findings.append(
            Finding(
                f"potential drop inside {name}",
                FLAGGED if flagged else OK,
                share,
                METAL_FIELD,
                "of the field",
                text,
                SOFTER if flagged else "",
            )
        )
        flagged = own < METAL_DIPOLE
        text = (
            f"induced dipole in units of a conductor's between the outermost nuclei, at least {METAL_DIPOLE:g} for a "
            "metal."
        )
        findings.append(
            Finding(
                f"polarisation of {name}",
                FLAGGED if flagged else OK,
                own,
                None,
                "of a conductor's",
                text,
                f"{name} polarises like an insulator: {SOFTER}; fit to frames in fields" if flagged else "",
            )
        )
    return findings


def _normal(atoms: Atoms) -> FloatArray:
    """Direction along which a slab is not periodic."""
    rows = atoms.cell.array[np.asarray(atoms.pbc)]
    if len(rows) != 2:
        return np.array([0.0, 0.0, 1.0])
    normal = np.cross(rows[0], rows[1])
    return np.asarray(normal / np.linalg.norm(normal))


def _members(
    groups: Mapping[str, Sequence[int]], metals: Sequence[str], atoms: int
) -> dict[str, np.ndarray[Any, Any]]:
    found = {str(name): np.asarray(list(own)) for name, own in groups.items()}
    everything = np.concatenate([*found.values(), np.zeros(0, dtype=int)])
    if not found or any(len(own) == 0 or own.dtype.kind not in "iu" for own in found.values()):
        raise InputError(
            f"groups is {groups!r}; expected the indices of the atoms of each phase, at least one for each"
        )
    if len(np.unique(everything)) < len(everything) or everything.min() < 0 or everything.max() >= atoms:
        raise InputError(
            f"groups share atoms, or name some that do not exist (there are the atoms 0 to {atoms - 1})"
        )
    unknown = [name for name in metals if name not in found]
    if unknown:
        raise InputError(f"metals names {unknown}; expected some of {', '.join(found)}")
    return found


__all__ = ["Phases", "find_phases", "phase_findings", "phases"]
