"""What phonopy needs for the splitting of longitudinal and transverse modes: a ``BORN`` file.

Its content are Born effective charges, Z[k, a, b] = ∂P_a V/∂r_kb, and the high-frequency dielectric tensor of a crystal,
in the macroscopic field (the Ewald sums of this package have conducting surroundings, so that the field a model feels is
the macroscopic one):

    ε_ab = δ_ab + 4π k_e α_ab / V

with the polarizability α of a cell of volume V at fixed atoms.  They exist for neutral crystals and charge models that
are polarised in a periodic direction (:class:`kqeq.ACKS2`, :class:`kqeq.AtomicDipoles` of it).
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import Annotated, Any, ClassVar

import numpy as np
from ase import Atoms

from kqeq.analysis.entry import defined, fix, reason_for
from kqeq.analysis.response import born_charges_at
from kqeq.analysis.results import Result
from kqeq.constants import COULOMB
from kqeq.errors import InputError, UnsupportedError
from kqeq.frames.structures import describe
from kqeq.io.atomic_write import atomic_path
from kqeq.typing import FloatArray, IntArray

FACTOR: float = COULOMB
"""phonopy's unit conversion for eV, Å and e: k_e in eV·Å/e²."""

SYMPREC = 1e-5
"""Distance within which atoms are equivalent, Å; phonopy's own default."""


@dataclass(frozen=True, eq=False)
class Dielectric(Result):
    """How a crystal is polarised by a field and by displacements.

    Attributes
    ----------
    numbers : (N,) int array
    dielectric : (3, 3) array
        High-frequency dielectric tensor, at fixed atoms.
    born_charges : (N, 3, 3) array
        ∂(polarisation · volume)_a/∂r_kb, e.
    volume : float
        Å³.
    sum_rule_error : float
        Largest element of Σ_k Z_k, e: zero in a neutral cell.
    """

    numbers: IntArray
    dielectric: FloatArray
    born_charges: Annotated[FloatArray, "e"]
    volume: Annotated[float, "Å³"]
    sum_rule_error: Annotated[float, "e"]
    rows: ClassVar[str] = "numbers"


def dielectric(model: Any, atoms: Atoms) -> Dielectric:
    """Dielectric tensor and Born charges of a neutral crystal.

    Parameters
    ----------
    model : KQEq
    atoms : ase.Atoms
        Periodic in three directions.

    Returns
    -------
    Dielectric

    Raises
    ------
    InputError
        For a cell that is not periodic in three directions, or is charged.
    UnsupportedError
        For models without charges, or whose charges have no dipole in such a cell.
    """
    if not isinstance(atoms, Atoms) or not atoms.pbc.all():
        raise InputError(
            "a dielectric tensor belongs to a crystal; expected atoms that are periodic in three directions"
        )
    geometry = fix(model, atoms)
    if abs(geometry.structure.total_charge) > 1e-9:
        raise InputError(
            f"{describe(atoms)} has the charge {geometry.structure.total_charge:g} e; the polarisation of a charged "
            "crystal is not defined"
        )
    born = born_charges_at(geometry)
    prediction = geometry.predict(("polarizability",))
    alpha = defined(prediction.polarizability, "the polarizability", reason_for(prediction, "polarizability"))
    volume = float(atoms.get_volume())
    return Dielectric(
        numbers=geometry.structure.numbers,
        dielectric=np.eye(3) + 4.0 * np.pi * COULOMB * np.asarray(alpha) / volume,
        born_charges=born.tensors,
        volume=volume,
        sum_rule_error=born.sum_rule_error,
    )


def write_born(
    path: str | PathLike[str], model: Any, atoms: Atoms, *, symprec: float = SYMPREC
) -> Dielectric:
    """Write phonopy's ``BORN`` file for a primitive cell, atomically.

    Parameters
    ----------
    path : path-like
        phonopy looks for ``BORN``.
    model : KQEq
    atoms : ase.Atoms
        The primitive cell that phonopy uses, in its order of atoms.
    symprec : float
        Distance within which atoms are equivalent, Å: the file holds one tensor for each set of equivalent atoms, and
        phonopy makes the others by symmetry.

    Returns
    -------
    Dielectric
        What was written.

    Raises
    ------
    InputError, UnsupportedError
        As :func:`dielectric`, and where the package spglib is missing.
    """
    found = dielectric(model, atoms)
    chosen = independent_atoms(atoms, symprec)
    lines = [f"{FACTOR:.9f}", _line(found.dielectric), *(_line(found.born_charges[i]) for i in chosen)]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return found


def independent_atoms(atoms: Atoms, symprec: float = SYMPREC) -> list[int]:
    """The first atom of every set of atoms that are equivalent by symmetry, as phonopy chooses them.

    Raises
    ------
    UnsupportedError
        Where the package spglib is missing.
    """
    try:
        import spglib
    except ImportError as error:
        raise UnsupportedError(
            f"a BORN file holds one tensor for each set of equivalent atoms, which the package spglib finds ({error}); "
            "pip install 'kqeq[phonopy]', or pip install spglib"
        ) from None
    cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    found = spglib.get_symmetry_dataset(cell, symprec=symprec)
    if found is None:
        return list(range(len(atoms)))
    return sorted({int(i) for i in found.equivalent_atoms})


def _line(tensor: FloatArray) -> str:
    return " ".join(f"{value:.8f}" for value in np.ravel(tensor))


__all__ = ["FACTOR", "SYMPREC", "Dielectric", "dielectric", "independent_atoms", "write_born"]
