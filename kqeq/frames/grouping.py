"""Which frames belong together when some are left out to judge a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from ase import Atoms

from kqeq.errors import InputError
from kqeq.frames.structures import Structure, as_frames
from kqeq.typing import IntArray

DIGITS = 6
"""Decimals of positions (Å) by which geometries are told apart."""


def groups(frames: Any, by: str = "geometry") -> IntArray:
    """A number for each frame; frames with the same number belong together.

    For scikit-learn's grouped splitters (``GroupKFold``, ``GroupShuffleSplit``): frames of one group are never on both
    sides of a split.

    Parameters
    ----------
    frames : ase.Atoms or sequence of ase.Atoms
    by : str
        ``"geometry"``: same atoms at the same positions and in the same cell, at other charges or in other fields;
        ``"composition"``: same numbers of atoms of each element, to see how a model does on systems that it has not
        seen; anything else is the name of an entry of ``atoms.info``, for example of trajectories.

    Returns
    -------
    (frames,) int array
        Numbers from 0 on, in the order in which groups appear.

    Raises
    ------
    InputError
        If a frame lacks the entry.
    """
    numbers: dict[Any, int] = {}
    found = [
        numbers.setdefault(_key(atoms, by, index), len(numbers))
        for index, atoms in enumerate(as_frames(frames))
    ]
    return np.array(found, dtype=np.int64)


def _key(atoms: Atoms, by: str, index: int) -> Any:
    if by == "geometry":
        return geometry(atoms.numbers, atoms.positions, atoms.cell.array)
    if by == "composition":
        return composition(atoms.numbers)
    if by not in atoms.info:
        raise InputError(
            f'frame {index} has no {by!r} in atoms.info; groups(by=...) takes "geometry", "composition" or the '
            f"name of an entry that all frames have{_known(atoms)}"
        )
    value = atoms.info[by]
    return value.tobytes() if isinstance(value, np.ndarray) else value


def _known(atoms: Atoms) -> str:
    return f"; it has {', '.join(map(str, atoms.info))}" if atoms.info else ""


def geometry(numbers: Any, positions: Any, cell: Any) -> tuple[bytes, bytes]:
    """A key that frames of one geometry share."""
    where = np.concatenate([np.reshape(positions, (-1, 3)), np.reshape(cell, (-1, 3))])
    # −0.0 and 0.0 are the same place
    return np.asarray(numbers, dtype=np.int64).tobytes(), (np.round(where, DIGITS) + 0.0).tobytes()


def composition(numbers: IntArray) -> tuple[int, ...]:
    """A key that frames of one composition share."""
    return tuple(np.sort(numbers).tolist())


def composition_and_charge(structure: Structure) -> tuple[tuple[int, ...], float]:
    """The same for one composition at one total charge, e."""
    return composition(structure.numbers), round(structure.total_charge, 6)


def structure_groups(structures: Iterable[Structure]) -> list[int]:
    """A number for each structure, from 0 on in the order in which geometries appear; those of one geometry share it."""
    numbers: dict[Any, int] = {}
    keys = (geometry(s.numbers, s.positions, s.cell) for s in structures)
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def shuffled_folds(
    group: Sequence[int] | IntArray, kind: Sequence[Any], folds: int, seed: int = 0
) -> IntArray:
    """The fold in which each frame is left out: groups stay whole, and kinds of frames are spread evenly.

    Parameters
    ----------
    group : sequence of int
        Group of each frame.
    kind : sequence of hashable
        What should be in every fold, for example composition and charge; of a group, that of its first frame.
    folds : int
    seed : int
        Of the order.

    Returns
    -------
    (frames,) int array
        From 0 to ``folds`` − 1.

    Raises
    ------
    InputError
        For fewer than two folds, or more than there are groups.
    """
    first: dict[int, Any] = {}
    for own, what in zip(group, kind, strict=True):
        first.setdefault(int(own), what)
    if isinstance(folds, bool) or not isinstance(folds, int) or not 2 <= folds <= len(first):
        raise InputError(
            f"folds is {folds!r} for {len(first)} groups of frames; expected a whole number from 2 to that"
        )
    order = np.random.default_rng(seed).permutation(list(first))
    rank = {what: number for number, what in enumerate(dict.fromkeys(first.values()))}
    ordered = sorted(order.tolist(), key=lambda own: rank[first[own]])
    fold = {own: place % folds for place, own in enumerate(ordered)}
    return np.array([fold[int(own)] for own in group], dtype=np.int64)


__all__ = [
    "composition",
    "composition_and_charge",
    "geometry",
    "groups",
    "shuffled_folds",
    "structure_groups",
]
