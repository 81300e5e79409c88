"""Fragments of a structure: constraints on their charges, and charges to start from."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from kqeq.errors import InputError
from kqeq.frames.structures import Structure
from kqeq.typing import FloatArray, IntArray

REFERENCES: tuple[str, ...] = ("uniform", "fragments", "given")
"""Where reference charges may come from that the structure carries."""

KERNEL_REFERENCE = "kernel"
"""Reference charges that the kernel model says, shifted to what the structure carries."""


def require_fragments(structure: Structure, model: str) -> None:
    """Refuse a structure without fragments or without their charges.

    Raises
    ------
    InputError
    """
    if structure.fragments is None:
        raise InputError(
            f'{model} needs the fragments of every structure, and one has no atoms.arrays["fragments"]; '
            "use kqeq.charges.assign_fragments(atoms, groups, charges)"
        )
    if structure.fragment_charges is None:
        raise InputError(
            f'{model} needs the charge of every fragment; set atoms.info["fragment_charges"] to '
            f"{int(structure.fragments.max()) + 1} numbers that sum to the total charge {structure.total_charge:g} e"
        )


def membership(group: IntArray) -> FloatArray:
    """(N, k) array with 1 where an atom belongs to a group, from the numbers (N,) of the groups; not to be changed."""
    return _membership(np.ascontiguousarray(group, dtype=np.int64).tobytes())


@lru_cache(maxsize=16)
def _membership(group: bytes) -> FloatArray:
    numbers = np.frombuffer(group, dtype=np.int64)
    member = np.asarray(numbers[:, None] == np.arange(int(numbers.max()) + 1), dtype=np.float64)
    member.flags.writeable = False
    return member


def fragment_reference(structure: Structure, model: str) -> FloatArray:
    """The charge of each fragment, spread evenly over its atoms, (N,) array in e.

    Raises
    ------
    InputError
    """
    require_fragments(structure, model)
    assert structure.fragments is not None and structure.fragment_charges is not None
    size = np.bincount(structure.fragments, minlength=len(structure.fragment_charges))
    return np.asarray((structure.fragment_charges / size)[structure.fragments])


def reference_charges(structure: Structure, source: str | None) -> FloatArray:
    """Charges that a split-charge model starts from, (N,) array in e.

    Parameters
    ----------
    structure : Structure
    source : str or None
        One of :data:`REFERENCES`; ``None`` takes what the structure carries: its reference charges, else its
        fragment charges, else the total charge spread evenly.

    Raises
    ------
    InputError
        For another source, or a structure that lacks what it asks for.
    """
    if source is None:
        if structure.reference_charges is not None:
            source = "given"
        else:
            source = "uniform" if structure.fragment_charges is None else "fragments"
    if source == "uniform":
        return np.full(len(structure), structure.total_charge / len(structure))
    if source == "fragments":
        return fragment_reference(structure, 'ACKS2(reference_charges="fragments")')
    if source != "given":
        raise InputError(
            f"reference_charges is {source!r}; expected one of {', '.join(REFERENCES)}, or None to take what each "
            "structure carries"
        )
    if structure.reference_charges is None:
        raise InputError(
            'ACKS2(reference_charges="given") needs atoms.arrays["reference_charges"] (one number per atom that sum '
            "to the total charge), and a structure has none"
        )
    return structure.reference_charges


__all__ = [
    "KERNEL_REFERENCE",
    "REFERENCES",
    "fragment_reference",
    "membership",
    "reference_charges",
    "require_fragments",
]
