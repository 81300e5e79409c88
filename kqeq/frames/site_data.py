"""What a frame may carry per atom or per fragment besides its geometry, validated at the door.

================================  =======  ====================================================================
key                               shape    meaning
================================  =======  ====================================================================
``arrays["fragments"]``           (N,)     label (a whole number, not negative) of each atom's fragment
``info["fragment_charges"]``      (k,)     charge of each fragment in ascending order of the labels, e
``arrays["reference_charges"]``   (N,)     charges that split-charge models start from, e
``arrays["external_potential"]``  (N,)     potential from outside at each atom, V (embedding)
``info["multiplicity"]``          ()       2S + 1, for baselines with electrons and models that depend on spin;
                                           validated by them
``info["spin"]``                  ()       number of unpaired electrons: the multiplicity less one
``info["fragment_spins"]``        (k,)     that of each fragment
================================  =======  ====================================================================

Fragment and reference charges also are sources of the total charge and have to sum to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms

from kqeq.errors import InputError
from kqeq.typing import FloatArray, IntArray

ARRAY_KEYS = ("fragments", "reference_charges", "external_potential")
"""What is read from ``atoms.arrays``."""

INFO_KEYS = ("fragment_charges",)
"""What is read from ``atoms.info``."""

_ROUNDING = 1e-4
"""Sums of charges may differ from the total by this much (e): files are rounded.  The difference is spread."""

_LARGEST = 1e5
"""Charges (e) and potentials (V) of an atom beyond this are refused."""


def charge_sums(atoms: Atoms, where: object) -> list[tuple[str, float]]:
    """Sums of the fragment and reference charges of a frame, with names for messages.

    Raises
    ------
    InputError
        For values that are no finite numbers.
    """
    found = []
    if atoms.info.get("fragment_charges") is not None:
        name = 'atoms.info["fragment_charges"]'
        value = _numbers(atoms.info["fragment_charges"], None, name, where)
        found.append((f"the sum of {name}", float(value.sum())))
    if "reference_charges" in atoms.arrays:
        name = 'atoms.arrays["reference_charges"]'
        value = _numbers(atoms.arrays["reference_charges"], len(atoms), name, where)
        found.append((f"the sum of {name}", float(value.sum())))
    return found


def site_data_key(atoms: Atoms) -> tuple[bytes | None, ...]:
    """Equal for frames that carry the same optional data; to notice changes, for which no values are checked."""
    values = [atoms.arrays.get(key) for key in ARRAY_KEYS]
    values += [atoms.info.get(key) for key in (*INFO_KEYS, "multiplicity", "spin", "fragment_spins")]
    return tuple(None if value is None else np.asarray(value).tobytes() for value in values)


def read_site_data(atoms: Atoms, total_charge: float, where: object) -> dict[str, Any]:
    """The optional fields of :class:`kqeq.frames.structures.Structure` that a frame carries.

    Parameters
    ----------
    atoms : ase.Atoms
    total_charge : float
        e; the sums have been compared with it already.
    where : object
        Prints as the name of the frame in messages.

    Returns
    -------
    dict
        Some of ``fragments``, ``fragment_charges``, ``reference_charges``, ``external_potential``.

    Raises
    ------
    InputError
        For wrong shapes, values that are no finite numbers, fragments that miss atoms, or fragment charges
        without fragments or of another number.
    """
    data: dict[str, Any] = {}
    n = len(atoms)
    if "fragments" in atoms.arrays:
        data["fragments"] = _fragments(atoms.arrays["fragments"], n, where)
    if atoms.info.get("fragment_charges") is not None:
        name = 'atoms.info["fragment_charges"]'
        charges = _numbers(atoms.info["fragment_charges"], None, name, where)
        if "fragments" not in data:
            raise InputError(
                f'{where} has {name} but no atoms.arrays["fragments"]: which atoms carry them? '
                "Use kqeq.charges.assign_fragments(atoms, groups, charges), or remove them"
            )
        count = int(data["fragments"].max()) + 1
        if len(charges) != count:
            raise InputError(
                f"{where} has {count} fragments but {len(charges)} fragment charges ({charges.tolist()}); give one "
                "charge per fragment, in ascending order of the labels"
            )
        size = np.bincount(data["fragments"], minlength=count)
        data["fragment_charges"] = charges + (total_charge - charges.sum()) * size / n
    if "reference_charges" in atoms.arrays:
        name = 'atoms.arrays["reference_charges"]'
        charges = _numbers(atoms.arrays["reference_charges"], n, name, where)
        data["reference_charges"] = charges + (total_charge - charges.sum()) / n
    if "external_potential" in atoms.arrays:
        name = 'atoms.arrays["external_potential"]'
        data["external_potential"] = _numbers(atoms.arrays["external_potential"], n, name, where)
    if atoms.info.get("multiplicity") is not None:
        data["multiplicity"] = _multiplicity(atoms.info["multiplicity"])
    if atoms.info.get("spin") is not None:
        spin = _multiplicity(atoms.info["spin"])
        given = data.setdefault("multiplicity", spin + 1.0)
        if np.isfinite(spin) and np.isfinite(given) and abs(given - spin - 1.0) > 1e-6:
            raise InputError(
                f'{where} has two spins: atoms.info["spin"] says {spin:g} unpaired electrons, '
                f'atoms.info["multiplicity"] says {given:g}, which is {given - 1.0:g} unpaired electrons (2S + '
                f"1 = spin + "
                "1); remove one of them or make them agree"
            )
    if atoms.info.get("fragment_spins") is not None:
        data["fragment_spins"] = _fragment_spins(atoms, data, where)
    return data


def _fragment_spins(atoms: Atoms, data: dict[str, Any], where: object) -> FloatArray:
    """Numbers of unpaired electrons of fragments."""
    name = 'atoms.info["fragment_spins"]'
    spins = _numbers(atoms.info["fragment_spins"], None, name, where)
    count = 0 if "fragments" not in data else int(data["fragments"].max()) + 1
    if len(spins) != count or (spins < 0).any() or (spins != np.round(spins)).any():
        raise InputError(
            f"{name} of {where} is {spins.tolist()}; expected one number of unpaired electrons (0, 1, 2 ...) "
            f"for each of its "
            f'{count} fragments (atoms.arrays["fragments"])'
        )
    return spins


def _multiplicity(value: Any) -> float:
    """A number; NaN for anything else, which those who use it refuse: others must not stumble over a label."""
    try:
        return float(np.asarray(value, dtype=np.float64).reshape(()))
    except (TypeError, ValueError):
        return float("nan")


def assign_fragments(atoms: Atoms, groups: Sequence[Sequence[int]], charges: Sequence[float]) -> Atoms:
    """A copy of a frame with fragments and their charges.

    Parameters
    ----------
    atoms : ase.Atoms
    groups : sequence of sequences of int
        Indices of the atoms of each fragment; every atom belongs to exactly one.
    charges : sequence of float
        Charge of each fragment, e.

    Returns
    -------
    ase.Atoms
        With ``arrays["fragments"]`` and ``info["fragment_charges"]``.

    Raises
    ------
    InputError
        For fragments that overlap, miss atoms, are empty or name atoms that do not exist, for another number of
        charges, or charges that contradict the frame's total charge.
    """
    n = len(atoms)
    labels = np.full(n, -1, dtype=np.int64)
    for number, group in enumerate(groups):
        members = np.asarray(list(group), dtype=np.int64)
        if len(members) == 0:
            raise InputError(f"fragment {number} is empty; leave it away")
        outside = members[(members < 0) | (members >= n)]
        if len(outside):
            raise InputError(
                f"fragment {number} names the atoms {outside.tolist()}, but the structure has the atoms 0 to {n - 1}"
            )
        shared = members[labels[members] >= 0]
        if len(shared) or len(np.unique(members)) < len(members):
            first = (
                int(shared[0]) if len(shared) else int(members[np.argmax(np.bincount(members)[members] > 1)])
            )
            raise InputError(
                f"fragments overlap: atom {first} is in fragment {number} and, before, in fragment "
                f"{int(labels[first]) if len(shared) else number}; every atom belongs to exactly one fragment"
            )
        labels[members] = number
    if (labels < 0).any():
        missing = np.flatnonzero(labels < 0)
        raise InputError(
            f"the fragments miss {len(missing)} of {n} atoms (atoms {missing[:8].tolist()}); every atom belongs to "
            "exactly one fragment"
        )
    copy: Atoms = atoms.copy()
    copy.set_array("fragments", labels)
    copy.info["fragment_charges"] = np.asarray(charges, dtype=np.float64)
    sums = charge_sums(copy, "the structure")
    read_site_data(copy, sums[0][1], "the structure")
    for key in ("total_charge", "charge"):
        given = copy.info.get(key)
        if given is not None and abs(float(given) - sums[0][1]) > _ROUNDING:
            raise InputError(
                f'the fragment charges sum to {sums[0][1]:g} e, but atoms.info["{key}"] is {float(given):g} e; '
                "correct one of them"
            )
    return copy


def _fragments(value: Any, n: int, where: object) -> IntArray:
    """Labels of fragments, renumbered from 0 in ascending order."""
    array = np.asarray(value)
    if array.shape != (n,) or array.dtype.kind not in "iuf" or not np.equal(np.mod(array, 1), 0).all():
        raise InputError(
            f'atoms.arrays["fragments"] of {where} has shape {array.shape} and type {array.dtype}; expected one whole '
            f"number per atom ({n} atoms)"
        )
    labels = array.astype(np.int64)
    if (labels < 0).any():
        missing = np.flatnonzero(labels < 0)
        raise InputError(
            f"the fragments of {where} miss {len(missing)} atoms (atoms {missing[:8].tolist()} have negative labels in "
            'atoms.arrays["fragments"]); every atom belongs to exactly one fragment'
        )
    return np.asarray(np.unique(labels, return_inverse=True)[1].reshape(n), dtype=np.int64)


def _numbers(value: Any, length: int | None, name: str, where: object) -> FloatArray:
    """A vector of finite numbers."""
    try:
        raw = np.asarray(value)
        array = np.atleast_1d(np.asarray(raw, dtype=np.float64))
        if raw.dtype.kind in "bc":
            array = np.full((1, 1), np.nan)
    except (TypeError, ValueError, OverflowError):
        array = np.full((1, 1), np.nan)
    if array.ndim != 1 or not np.isfinite(array).all() or (length is not None and len(array) != length):
        expected = "a list of finite numbers" if length is None else f"{length} finite numbers, one per atom"
        raise InputError(f"{name} of {where} is {value!r}; expected {expected}")
    if np.abs(array).max(initial=0.0) > _LARGEST:
        raise InputError(f"{name} of {where} has a value of {np.abs(array).max():g}, beyond {_LARGEST:g}")
    return array


__all__ = ["ARRAY_KEYS", "INFO_KEYS", "assign_fragments", "charge_sums", "read_site_data", "site_data_key"]
