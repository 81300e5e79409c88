"""Fragments pulled apart, and where their charge goes.

Dimensions: N atoms, K points of the scan, f fragments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from ase import Atoms
from ase.neighborlist import natural_cutoffs, neighbor_list
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from kqeq.analysis.entry import conditions_of, potential_of, read, require_charges, without_fragments
from kqeq.analysis.results import Result
from kqeq.errors import InputError, UnsupportedError
from kqeq.frames.conditions import under_conditions
from kqeq.frames.site_data import assign_fragments
from kqeq.frames.structures import read_structure
from kqeq.typing import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class DissociationScan(Result):
    """Fragments pulled apart as rigid bodies.

    Attributes
    ----------
    distances : (K,) array
        How far each fragment was moved away from the first, Å; 0 is the given geometry.
    closest : (K,) array
        Distance of the closest pair of atoms of different fragments, Å.
    energies : (K,) array
        eV.
    fragment_charges : (K, f) array
        Sums of the charges of the atoms of each fragment, e.
    fragments : (N,) int array
        Fragment of each atom.
    numbers : (N,) int array
    total_charge : float
    """

    distances: Annotated[FloatArray, "Å"]
    closest: Annotated[FloatArray, "Å"]
    energies: Annotated[FloatArray, "eV"]
    fragment_charges: Annotated[FloatArray, "e"]
    fragments: IntArray
    numbers: IntArray
    total_charge: Annotated[float, "e"]
    rows: ClassVar[str] = "distances"


def connected_fragments(atoms: Atoms) -> list[list[int]]:
    """Groups of atoms that bonds hold together (distances below 1.15 times the sum of covalent radii)."""
    i, j = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=1.15))
    graph = coo_array((np.ones(len(i)), (i, j)), shape=(len(atoms), len(atoms)))
    count, labels = connected_components(graph, directed=False)
    return [np.flatnonzero(labels == k).tolist() for k in range(count)]


def dissociation_scan(
    model: Any,
    atoms: Atoms,
    fragments: Sequence[Sequence[int]] | None = None,
    distances: Sequence[float] | None = None,
    *,
    fragment_charges: Sequence[float] | None = None,
    total_charge: Any = None,
    external_field: Any = None,
) -> DissociationScan:
    """Pull rigid fragments apart and watch their charges.

    Every fragment moves away from the first along the line between their centres.

    Parameters
    ----------
    model : KQEq
    atoms : ase.Atoms
        Not periodic.
    fragments : sequence of sequences of int, optional
        Indices of the atoms of each fragment; the groups that bonds hold together by default.
    distances : sequence of float, optional
        How far to move, Å.  By default 41 from 0 to 10.
    fragment_charges : sequence of float, optional
        e; hands each fragment's charge to models that use it (``kqeq.ACKS2``, ``kqeq.QEq(fragments=True)``).
    total_charge, external_field : optional
        e, V/Å; otherwise from ``atoms.info``.

    Returns
    -------
    DissociationScan

    Raises
    ------
    InputError, UnsupportedError, ModelNotFittedError
        Also for periodic structures, fewer than two fragments, and groups that overlap or miss atoms.
    """
    potential = potential_of(model)
    require_charges(potential, "fragment charges")
    if atoms.pbc.any():
        raise UnsupportedError(
            "fragments of a periodic structure cannot be pulled apart; set atoms.pbc = False"
        )
    groups = connected_fragments(atoms) if fragments is None else [list(group) for group in fragments]
    if len(groups) < 2:
        raise InputError(
            "the structure is one fragment (all atoms are within bonding distance); name the groups to pull apart, "
            "fragments=[[0, 1, 2], [3, 4]]"
        )
    charge, field = conditions_of(model, atoms, total_charge, external_field)
    given = [0.0] * len(groups) if fragment_charges is None else fragment_charges
    labelled = assign_fragments(without_fragments(atoms), groups, given)  # checks the groups
    labels = np.asarray(labelled.arrays["fragments"])
    start = under_conditions(atoms, charge, field, model.label_prefix)
    if fragment_charges is not None:
        _keep_reference(atoms, labelled)
        start = labelled

    if distances is None:
        distances = np.linspace(0.0, 10.0, 41).tolist()
    steps = np.atleast_1d(np.asarray(distances, dtype=np.float64))
    centres = np.array([atoms.positions[labels == k].mean(axis=0) for k in range(len(groups))])
    lines = centres - centres[0]
    lengths = np.linalg.norm(lines, axis=1)
    if (lengths[1:] < 1e-3).any():
        raise InputError("the centres of two fragments coincide; there is no direction to pull them apart")
    lines[1:] /= lengths[1:, None]
    structures, closest = [], []
    for distance in steps:
        moved = start.copy()
        moved.positions += distance * lines[labels]
        closest.append(_closest(moved.positions, labels))
        structures.append(read_structure(moved, total_charge=charge, external_field=field))
    read(model, start, charge, field)
    predictions = list(potential.predict_many(structures, ()))
    members = labels[:, None] == np.arange(len(groups))
    return DissociationScan(
        distances=steps,
        closest=np.array(closest),
        energies=np.array([p.energy for p in predictions]),
        fragment_charges=np.array([p.charges for p in predictions]) @ members,
        fragments=labels,
        numbers=np.array(atoms.numbers),
        total_charge=charge,
    )


def _keep_reference(atoms: Atoms, labelled: Atoms) -> None:
    """Take reference charges over where they agree with the charges of the fragments."""
    reference = atoms.arrays.get("reference_charges")
    if reference is not None:
        sums = np.bincount(labelled.arrays["fragments"], weights=reference)
        if np.allclose(sums, labelled.info["fragment_charges"], atol=1e-4):
            labelled.set_array("reference_charges", reference)


def _closest(positions: FloatArray, labels: IntArray) -> float:
    arms = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    return float(arms[labels[:, None] != labels[None, :]].min())


__all__ = ["DissociationScan", "connected_fragments", "dissociation_scan"]
