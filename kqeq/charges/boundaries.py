"""Which fields and dipoles a structure's boundary conditions define.

The energy −field · Σ q r of charges in a field along a periodic direction depends on which image of an
atom is meant.  Charge models without a polarization of their own therefore know fields and dipoles along
open directions only (theory section 5).
"""

from __future__ import annotations

import numpy as np

from kqeq.errors import UnsupportedError
from kqeq.frames.structures import Structure
from kqeq.typing import FloatArray

_TOLERANCE = 1e-9
"""Part of a field that may lie along periodic directions: rounding in a rotated cell."""


NO_POLARIZATION: tuple[str, str] = (
    "the dipole Σ q r of charges depends there on which periodic image of each atom is meant",
    "use a split-charge model, kqeq.ACKS2(), whose polarization is defined for periodic cells",
)
"""Why a field along a periodic direction is refused, and what to do."""

CHARGED_REFERENCE: tuple[str, str] = (
    "the reference charges are not zero, and their dipole depends on which periodic image of each atom is meant",
    "start from zero reference charges (a neutral cell without fragment charges)",
)
"""The same, for flows along bonds."""


def open_projector(structure: Structure) -> FloatArray:
    """Projector (3, 3) onto the directions perpendicular to all periodic ones: 1, n nᵀ of a slab, or 0."""
    if not structure.periodic:
        return np.eye(3)
    count = int(structure.pbc.sum())
    if count == 3:
        return np.zeros((3, 3))
    rows = structure.cell[structure.pbc]
    if count == 1:
        unit = rows[0] / np.linalg.norm(rows[0])
        return np.eye(3) - np.outer(unit, unit)
    normal = np.cross(rows[0], rows[1])
    normal /= np.linalg.norm(normal)
    return np.asarray(np.outer(normal, normal))


def open_components(structure: Structure) -> FloatArray:
    """Unit vectors (k, 3) along the directions in which the dipole of a cell is defined: all, the normal of a slab, none.

    Wires have none here: no charge model knows them.
    """
    count = int(structure.pbc.sum())
    if count == 0:
        return np.eye(3)
    if count != 2:
        return np.zeros((0, 3))
    normal = np.cross(*structure.cell[structure.pbc])
    return np.asarray(normal[None, :] / np.linalg.norm(normal))


def check_periodicity(structure: Structure, model: str) -> None:
    """Refuse structures with one periodic direction.

    Raises
    ------
    UnsupportedError
    """
    if structure.pbc.sum() == 1:
        raise UnsupportedError(
            f"the structure has one periodic direction (pbc={structure.pbc.tolist()}), and {model} has no "
            "electrostatics for wires; put it into a cell with vacuum that is periodic in three directions, or use "
            "a slab (two periodic directions) or an isolated cluster (none)"
        )


def periodic_part(structure: Structure, field: FloatArray) -> FloatArray | None:
    """The part of a field along periodic directions, (3,) array in V/Å; ``None`` if there is none."""
    if not structure.periodic or not field.any():
        return None
    along = field - open_projector(structure) @ field
    return None if np.linalg.norm(along) <= _TOLERANCE * np.linalg.norm(field) else along


def refuse_periodic_field(
    structure: Structure, field: FloatArray, along: FloatArray, reason: str, remedy: str
) -> None:
    """Raise for a field whose part ``along`` is not defined.

    Raises
    ------
    UnsupportedError
        Always.
    """
    rows = structure.cell[structure.pbc]
    names = [
        name
        for name, row in zip(np.array(list("abc"))[structure.pbc], rows, strict=True)
        if abs(along @ row) > _TOLERANCE * np.linalg.norm(along) * np.linalg.norm(row)
    ]
    allowed = (
        f"along the surface normal, {_text(_normal(rows))}, a field is allowed; or " if len(rows) == 2 else ""
    )
    raise UnsupportedError(
        f"the external field {_text(field)} V/Å has the component {_text(along)} V/Å along the periodic direction"
        f"{'s' if len(names) > 1 else ''} {', '.join(names)} of the cell: {reason}. Remedy: {allowed}{remedy}; or set "
        "atoms.pbc = False along that direction if the system is isolated"
    )


def _text(vector: FloatArray) -> str:
    return np.array2string(vector, precision=6, suppress_small=True)


def _normal(rows: FloatArray) -> FloatArray:
    normal = np.cross(rows[0], rows[1])
    return np.asarray(normal / np.linalg.norm(normal))


__all__ = [
    "CHARGED_REFERENCE",
    "NO_POLARIZATION",
    "check_periodicity",
    "open_components",
    "open_projector",
    "periodic_part",
    "refuse_periodic_field",
]
