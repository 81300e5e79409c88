"""Frames divided into parts that have nothing to do with each other.

Frames of one trajectory resemble each other: a test set drawn at random from it asks how well a model interpolates
between neighbours in time, and its errors are several times too small.  Here whole groups (trajectories, compositions,
or what an entry of ``atoms.info`` says) go to one part or another.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from numbers import Real

import numpy as np
from ase import Atoms

from kqeq.errors import InputError
from kqeq.frames.grouping import groups

TRAJECTORY_KEYS = ("trajectory", "traj", "run", "seed")
"""Entries of ``atoms.info`` that tell trajectories apart, the first that frames have."""

MOST_MOVED = 1.0
"""Atoms of consecutive frames of one trajectory move less than this between them, root mean square, Å."""


def groups_of(frames: Sequence[Atoms], by: str = "trajectory") -> list[Hashable]:
    """The group that every frame belongs to.

    Parameters
    ----------
    frames : sequence of ase.Atoms
    by : str
        As of ``split``.

    Returns
    -------
    list
        Equal entries for frames of one group.

    Raises
    ------
    InputError
        For an entry that some frame does not have.
    """
    if by == "random":
        return list(range(len(frames)))
    if by == "charge":
        return [_charge(atoms) for atoms in frames]
    if by == "trajectory":
        for key in TRAJECTORY_KEYS:
            if all(key in atoms.info for atoms in frames):
                return [(_composition(atoms), _charge(atoms), str(atoms.info[key])) for atoms in frames]
        return list(_consecutive(frames))
    return list(groups(frames, by).tolist())


def split(
    frames: Sequence[Atoms], fractions: Sequence[float], *, by: str = "trajectory", seed: int = 0
) -> list[list[int]]:
    """Divide frames into parts, group by group.

    Parameters
    ----------
    frames : sequence of ase.Atoms
    fractions : sequence of float
        Share of every part but the first, which gets the rest: ``(0.2,)`` for one fifth to test.
    by : str
        ``"trajectory"``: an entry of ``atoms.info`` named ``trajectory``, ``traj``, ``run`` or ``seed``, with the system
        (composition and charge) that it belongs to; where frames have none of them, consecutive frames of the same atoms
        that move less than 1 Å.  ``"composition"``; ``"charge"`` (the total charge); ``"geometry"``: frames whose atoms
        lie at the same places, at any charge; ``"random"``: every frame for itself.  Otherwise the name of an entry of
        ``atoms.info``.
    seed : int
        Which groups go where is drawn with it.

    Returns
    -------
    list of list of int
        Indices of the frames of every part, in their order; the first part is the largest share.

    Raises
    ------
    InputError
        For shares that leave nothing, or fewer groups than parts.
    """
    shares = [
        float(f) if isinstance(f, Real) and not isinstance(f, bool) else float("nan") for f in fractions
    ]
    if not shares or not all(0.0 < share < 1.0 for share in shares) or sum(shares) >= 1.0:
        raise InputError(
            f"the shares of the parts are {list(fractions)!r}; expected numbers above 0 whose sum is below 1"
        )
    members: dict[Hashable, list[int]] = {}
    for i, group in enumerate(groups_of(frames, by)):
        members.setdefault(group, []).append(i)
    if len(members) <= len(shares):
        raise InputError(
            f"the {len(frames)} frames are {len(members)} group(s) by {by}, too few for {len(shares) + 1} parts; divide "
            'by something else (an entry of atoms.info, or "random", whose test errors are too small for frames of one '
            "trajectory)"
        )
    order = np.random.default_rng(seed).permutation(len(members))
    groups = [list(members.values())[k] for k in order]
    parts: list[list[int]] = [[] for _ in range(len(shares) + 1)]
    wanted = [0.0, *(share * len(frames) for share in shares)]
    for number in range(1, len(parts)):
        later = len(parts) - 1 - number
        # the first part and those to come need a group each
        while groups and len(groups) > later + 1:
            if parts[number] and abs(len(parts[number]) + len(groups[0]) - wanted[number]) >= abs(
                len(parts[number]) - wanted[number]
            ):
                break
            parts[number] += groups.pop(0)
    parts[0] = [i for group in groups for i in group]
    return [sorted(part) for part in parts]


def _composition(atoms: Atoms) -> str:
    return str(atoms.get_chemical_formula())


def _charge(atoms: Atoms) -> float:
    value = atoms.info.get("total_charge", atoms.info.get("charge", 0.0))
    return float(value) if isinstance(value, Real) else 0.0


def _consecutive(frames: Sequence[Atoms]) -> list[int]:
    """Number of the stretch of frames that every frame belongs to."""
    numbers, current = [], -1
    before: Atoms | None = None
    for atoms in frames:
        same = (
            before is not None
            and np.array_equal(before.numbers, atoms.numbers)
            and _charge(before) == _charge(atoms)
            and float(np.sqrt(np.mean((before.positions - atoms.positions) ** 2))) < MOST_MOVED
        )
        current += not same
        numbers.append(current)
        before = atoms
    return numbers


__all__ = ["MOST_MOVED", "TRAJECTORY_KEYS", "groups_of", "split"]
