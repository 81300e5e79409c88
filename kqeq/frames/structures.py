"""Structures: the door through which :class:`ase.Atoms` enter the package.

Everything is validated here once; inside the package the dataclass is trusted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np
from ase import Atoms

from kqeq.errors import InputError
from kqeq.frames.conditions import check_charge, check_field, conditions, warn_unread_conditions
from kqeq.frames.external_charges import ExternalCharges, read_external_charges
from kqeq.frames.site_data import read_site_data
from kqeq.typing import BoolArray, FloatArray, IntArray

MIN_DISTANCE = 0.05
"""Atoms closer than this (Å) are refused as lying on top of each other."""

MAX_LENGTH = 1e5
"""Coordinates and cell vectors beyond this (Å) are refused: an atom that escaped, a trajectory that blew up."""


class NeighbourSource(Protocol):
    """Gives neighbour lists of a structure; see :class:`kqeq.frames.neighbours.NeighbourFinder`."""

    def find(self, structure: Structure, cutoff: float | None = None) -> Any:
        """Each pair within ``cutoff`` (Å) once."""


@dataclass(frozen=True, eq=False)
class Composition:
    """The elements of a structure, found once for all structures of the same atoms.

    Attributes
    ----------
    species : tuple of int
        Ascending atomic numbers.
    slots : (N,) int array
        Index of each atom's element in ``species``; not to be changed.
    counts : tuple of int
        Atoms of each element.
    atoms_of : dict of int to (n,) int array
        Which atoms have an element, ascending; not to be changed.
    """

    species: tuple[int, ...]
    slots: IntArray
    counts: tuple[int, ...]
    atoms_of: Mapping[int, IntArray]


@lru_cache(maxsize=256)
def _composition(numbers: bytes) -> Composition:
    species, slots, counts = np.unique(
        np.frombuffer(numbers, dtype=np.int64), return_inverse=True, return_counts=True
    )
    slots = slots.astype(np.int64)
    atoms_of = {int(z): np.flatnonzero(slots == s) for s, z in enumerate(species)}
    return Composition(tuple(int(z) for z in species), slots, tuple(int(n) for n in counts), atoms_of)


def composition_of(numbers: IntArray) -> Composition:
    """Elements of atoms, and where they are."""
    return _composition(np.ascontiguousarray(numbers, dtype=np.int64).tobytes())


@dataclass(frozen=True, eq=False)
class Structure:
    """A geometry and the conditions it is under: total charge and external field.

    Attributes
    ----------
    numbers : (N,) int array
        Atomic numbers.
    positions : (N, 3) array
        Å.  For periodic cells these may lie outside the cell.
    cell : (3, 3) array
        Rows are the lattice vectors, Å; zero rows along non-periodic directions are allowed.
    pbc : (3,) bool array
    total_charge : float
        e.
    external_field : (3,) array
        V/Å.
    fragments : (N,) int array, optional
        Number of the fragment that each atom belongs to, 0 to k − 1.
    fragment_charges : (k,) array, optional
        Charge of each fragment, e; sums to ``total_charge``.
    reference_charges : (N,) array, optional
        Charges that split-charge models start from, e; sums to ``total_charge``.
    external_potential : (N,) array, optional
        Electrostatic potential that acts on the charges from outside, V.
    multiplicity : float, optional
        2S + 1, for baselines with electrons and models that depend on spin; ``None`` leaves it to them.
    fragment_spins : (k,) array, optional
        Number of unpaired electrons of each fragment.
    external_charges : ExternalCharges, optional
        Charges outside the structure that act on it.
    neighbours : NeighbourSource, optional
        Where :func:`kqeq.frames.neighbours.find_pairs` takes half lists from; it notes by itself when atoms have moved.
    """

    numbers: IntArray
    positions: FloatArray
    cell: FloatArray = field(default_factory=lambda: np.zeros((3, 3)))
    pbc: BoolArray = field(default_factory=lambda: np.zeros(3, dtype=bool))
    total_charge: float = 0.0
    external_field: FloatArray = field(default_factory=lambda: np.zeros(3))
    fragments: IntArray | None = None
    fragment_charges: FloatArray | None = None
    reference_charges: FloatArray | None = None
    external_potential: FloatArray | None = None
    multiplicity: float | None = None
    fragment_spins: FloatArray | None = None
    external_charges: ExternalCharges | None = None
    neighbours: NeighbourSource | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def species(self) -> tuple[int, ...]:
        """The elements present, ascending atomic numbers."""
        return self.composition.species

    @cached_property
    def composition(self) -> Composition:
        """Elements, and where they are."""
        return composition_of(self.numbers)

    @cached_property
    def periodic(self) -> bool:
        """Whether any direction is periodic."""
        return bool(self.pbc.any())

    @property
    def volume(self) -> float:
        """Volume of the cell in Å³ (0 where the cell is incomplete)."""
        return float(abs(np.linalg.det(self.cell)))

    def under(self, total_charge: float, external_field: FloatArray) -> Structure:
        """The same geometry under another total charge and field; a multiplicity belongs to a total charge.

        Raises
        ------
        InputError
            If the structure has fragment or reference charges and the total charge changes: nothing says
            which of them the difference belongs to.
        """
        fixed = self.fragment_charges is not None or self.reference_charges is not None
        if fixed and abs(total_charge - self.total_charge) > 1e-8:
            raise InputError(
                f"the total charge was changed from {self.total_charge:g} to {total_charge:g} e, but the structure "
                "has fragment charges or reference charges that sum to the former; give new ones that sum to "
                f'{total_charge:g} e (atoms.info["fragment_charges"], atoms.arrays["reference_charges"])'
            )
        same = abs(total_charge - self.total_charge) < 1e-8
        return replace(
            self,
            total_charge=total_charge,
            external_field=external_field,
            multiplicity=self.multiplicity if same else None,
        )


@dataclass(frozen=True, eq=False)
class FrameName:
    """Names a frame in messages, for example ``frame 12 (C2H6O)``; costs nothing until it is printed."""

    atoms: Atoms
    index: int | None = None

    def __str__(self) -> str:
        formula = self.atoms.get_chemical_formula() or "no atoms"
        return f"the structure ({formula})" if self.index is None else f"frame {self.index} ({formula})"


def describe(atoms: Atoms, index: int | None = None) -> FrameName:
    """Name a frame in messages."""
    return FrameName(atoms, index)


def as_frames(frames: Any) -> list[Atoms]:
    """Accept one :class:`ase.Atoms` or a sequence of them; refuse everything else.

    Raises
    ------
    InputError
        If ``frames`` is empty or holds something that is not an :class:`ase.Atoms`.
    """
    if isinstance(frames, Atoms):
        return [frames]
    if isinstance(frames, (str, bytes)) or not isinstance(frames, Iterable):
        raise InputError(
            f"expected an ase.Atoms or a list of them, got {type(frames).__name__}; "
            'read a file with ase.io.read("file.xyz", ":") first'
        )
    result = list(frames)
    if not result:
        raise InputError(
            'no frames were given (an empty list, or an empty file read with ase.io.read(..., ":"))'
        )
    for i, atoms in enumerate(result):
        if not isinstance(atoms, Atoms):
            raise InputError(f"frame {i} is a {type(atoms).__name__}, expected an ase.Atoms")
    return result


def read_structure(
    atoms: Atoms,
    *,
    total_charge: Any = None,
    external_field: Any = None,
    index: int | None = None,
    prefix: str = "",
    external_charges: Any = None,
) -> Structure:
    """Validate an :class:`ase.Atoms` and the conditions it is under.

    Parameters
    ----------
    atoms : ase.Atoms
    total_charge : float, optional
        e; see :func:`conditions` for the other sources.
    external_field : (3,) array-like, optional
        V/Å.
    index : int, optional
        Number of the frame, for messages.
    prefix : str
        Prefix of labels, with which charge and field are looked for as well.
    external_charges : optional
        See :func:`kqeq.frames.external_charges.read_external_charges`.

    Returns
    -------
    Structure

    Raises
    ------
    InputError
        For a structure without atoms, unknown (0) atomic numbers, positions or cells that are not
        finite, atoms on top of each other, periodic directions without a cell vector, or conditions
        that contradict each other.  Also for partly occupied sites, fragments that miss atoms, fragment or reference
        charges that do not sum to the total charge, and potentials that are not finite.

    Notes
    -----
    Read if present: ``arrays["fragments"]``, ``info["fragment_charges"]``, ``arrays["reference_charges"]``,
    ``arrays["external_potential"]`` (see :mod:`kqeq.frames.site_data`).
    """
    where = describe(atoms, index)
    given = (total_charge is not None, external_field is not None)
    charge, field = conditions(
        atoms, total_charge=total_charge, external_field=external_field, where=where, prefix=prefix
    )
    structure = structure_under(
        atoms, charge, field, where=where, external_charges=read_external_charges(external_charges)
    )
    warn_unread_conditions(atoms, charge, field, prefix=prefix, given=given)
    return structure


def structure_under(
    atoms: Atoms,
    charge: float,
    field: FloatArray,
    *,
    where: object,
    external_charges: ExternalCharges | None = None,
    neighbours: NeighbourSource | None = None,
) -> Structure:
    """As :func:`read_structure` under conditions that have been read and checked.

    Parameters
    ----------
    atoms : ase.Atoms
    charge : float
        e.
    field : (3,) array
        V/Å.
    where : object
        Prints as the name of the frame in messages.
    external_charges : ExternalCharges, optional
    neighbours : NeighbourSource, optional
    """
    numbers = np.array(atoms.numbers, dtype=np.int64)
    if len(numbers) == 0:
        raise InputError(f"{where} has no atoms")
    if (numbers < 1).any() or (numbers > 118).any():
        raise InputError(
            f"{where} has atomic numbers outside 1 to 118 (dummy atoms 'X'?); remove or replace them"
        )
    positions = np.array(atoms.positions, dtype=np.float64)
    cell = np.array(atoms.cell.array, dtype=np.float64)
    pbc = np.array(atoms.pbc, dtype=bool)
    if not np.isfinite(positions).all():
        raise InputError(f"{where} has positions that are NaN or infinite")
    if np.abs(positions).max() > MAX_LENGTH:
        atom = int(np.argmax(np.abs(positions).max(axis=1)))
        raise InputError(
            f"{where} has atom {atom} at {positions[atom].tolist()} Å, more than {MAX_LENGTH:g} Å from the origin: has "
            "a trajectory blown up (too long a time step), or is a coordinate not in Å? Remove the frame or correct it"
        )
    if pbc.any():
        _check_cell(cell, pbc, where)
    _check_occupancy(atoms, where)
    _check_overlap(positions, cell, pbc, where)
    extra = read_site_data(atoms, charge, where)
    return Structure(
        numbers,
        positions,
        cell,
        pbc,
        charge,
        field,
        **extra,
        external_charges=external_charges,
        neighbours=neighbours,
    )


def _check_cell(cell: FloatArray, pbc: BoolArray, where: object) -> None:
    if not np.isfinite(cell).all():
        raise InputError(f"{where} has a cell with NaN or infinite entries")
    vectors = cell[pbc]
    if np.abs(vectors).max() > MAX_LENGTH:
        raise InputError(
            f"{where} has a periodic cell vector with a component of {np.abs(vectors).max():g} Å, beyond "
            f"{MAX_LENGTH:g} Å; check atoms.cell (in Å?), or set atoms.pbc = False for an isolated system"
        )
    lengths = np.linalg.norm(vectors, axis=1)
    if (lengths < 1e-3).any():
        raise InputError(
            f"{where} is periodic (pbc={pbc.tolist()}) along a direction whose cell vector is zero; "
            "set atoms.cell, or atoms.pbc = False for an isolated system"
        )
    unit = vectors / lengths[:, None]
    # the Gram determinant is the squared volume spanned by the unit vectors
    if np.linalg.det(unit @ unit.T) < 1e-8:
        raise InputError(f"{where} has linearly dependent cell vectors (zero volume); check atoms.cell")


def _check_occupancy(atoms: Atoms, where: object) -> None:
    """Refuse sites that several elements share, or that are not full: a CIF file may hold such, and ASE takes one."""
    occupancy = atoms.info.get("occupancy")
    if not isinstance(occupancy, Mapping):
        return
    for site, elements in occupancy.items():
        if not isinstance(elements, Mapping):
            continue
        try:
            shares = [float(share) for share in elements.values()]
        except (TypeError, ValueError):
            continue
        if len(shares) > 1 or any(abs(share - 1.0) > 1e-3 for share in shares):
            raise InputError(
                f"{where} has partly occupied sites (site {site}: "
                f"{', '.join(f'{e} {s:g}' for e, s in zip(elements, shares, strict=True))}); an energy belongs to whole "
                'atoms: make an ordered cell, and remove atoms.info["occupancy"]'
            )


def _check_overlap(positions: FloatArray, cell: FloatArray, pbc: BoolArray, where: object) -> None:
    """Refuse pairs of atoms closer than :data:`MIN_DISTANCE`, periodic images included."""
    if not pbc.any() and len(positions) <= 128 and _clearly_apart(positions):
        return
    points, owner = positions, np.arange(len(positions))
    if pbc.any():
        # wrap along the periodic directions, then add the images that lie just across a face
        full = _complete_cell(cell, pbc)
        fractional = positions @ np.linalg.inv(full)
        fractional[:, pbc] -= np.floor(fractional[:, pbc])
        margin = 2 * MIN_DISTANCE * np.linalg.norm(np.linalg.inv(full), axis=0)
        images = [fractional]
        owners = [owner]
        for axis in np.flatnonzero(pbc):
            block, own = np.concatenate(images), np.concatenate(owners)
            near = block[:, axis] < margin[axis]
            shifted = block[near].copy()
            shifted[:, axis] += 1.0
            images.append(shifted)
            owners.append(own[near])
        points, owner = np.concatenate(images) @ full, np.concatenate(owners)
    # all points with each other: two atoms at opposite corners of the cell meet in a pair of images
    if len(points) <= 128:
        delta = points[:, None, :] - points[None, :, :]
        close = np.triu(np.einsum("ijk,ijk->ij", delta, delta) < MIN_DISTANCE**2, 1)
        pairs = [(int(i), int(j)) for i, j in np.argwhere(close)]
    else:
        from scipy.spatial import cKDTree

        pairs = list(cKDTree(points).query_pairs(MIN_DISTANCE))
    if pairs:
        i, j = min(sorted((int(owner[i]), int(owner[j]))) for i, j in pairs)
        raise InputError(
            f"{where} has atoms on top of each other: atoms {i} and {j} are closer than {MIN_DISTANCE} Å"
            f"{' (through the periodic boundary)' if pbc.any() else ''}; remove duplicates"
        )


def _clearly_apart(positions: FloatArray) -> bool:
    """Whether no two points are near :data:`MIN_DISTANCE`, as far as a matrix product can tell."""
    points = positions - positions[0]
    products = points @ points.T
    own = products.diagonal()
    squares = own[:, None] + own - 2.0 * products
    squares.flat[:: len(points) + 1] = np.inf
    # what rounding may hide
    return bool(squares.min() > 2.0 * MIN_DISTANCE**2 + 1e-13 * own.max())


def _complete_cell(cell: FloatArray, pbc: BoolArray) -> FloatArray:
    """Fill the rows of non-periodic directions so that the cell can be inverted."""
    from ase.geometry import complete_cell

    used = np.where(pbc[:, None], cell, 0.0)
    return np.asarray(complete_cell(used), dtype=np.float64)


__all__ = [
    "Composition",
    "FrameName",
    "Structure",
    "as_frames",
    "check_charge",
    "check_field",
    "composition_of",
    "conditions",
    "describe",
    "read_structure",
    "structure_under",
]
