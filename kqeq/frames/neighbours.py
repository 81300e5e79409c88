"""Neighbour lists: the only place that builds them for descriptors (with `vesin`_).

A pair points from a centre i to a neighbour j at r_ij = r_j − r_i + n·cell.  A full list holds every pair in
both directions, a half list in one of them.  An atom is a neighbour of its own periodic images, and the
vectors refer to the positions as they were given: atoms outside the cell need no wrapping.

Dimensions: N atoms, P pairs.

.. _vesin: https://github.com/Luthaf/vesin
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kqeq.errors import InputError
from kqeq.frames.structures import Structure
from kqeq.typing import BoolArray, FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of a structure within a cutoff.

    Attributes
    ----------
    cutoff : float
        Å.
    full : bool
        Whether each pair is listed in both directions.
    indices : (P, 2) int array
        Centre i and neighbour j.
    vectors : (P, 3) array
        r_ij = r_j − r_i + shift @ cell, Å.
    shifts : (P, 3) int array, or None
        Cell vectors added to r_j − r_i, if they were asked for.
    """

    cutoff: float
    indices: IntArray
    vectors: FloatArray
    full: bool = True
    shifts: IntArray | None = None
    _owner: Any = field(default=None, repr=False)  # keeps the memory of the arrays alive

    def __len__(self) -> int:
        return len(self.indices)


def find_pairs(structure: Structure, cutoff: float, *, full: bool = True, shifts: bool = False) -> Pairs:
    """All pairs within a cutoff, in any mixture of open and periodic directions.

    The cell may be triclinic and smaller than the cutoff; its rows along open directions are ignored.

    Parameters
    ----------
    structure : Structure
    cutoff : float
        Å.
    full : bool
        Whether to list each pair in both directions; a half list takes half the time and memory.
    shifts : bool
        Whether to return the cell shifts as well.

    Returns
    -------
    Pairs

    Raises
    ------
    InputError
        If the cutoff is not positive and finite, or the cell vectors of the periodic directions are
        linearly dependent.
    """
    engine = _engine(cutoff, 0.0, full)
    result = _compute(engine, structure, "PDS" if shifts else "PD")
    return _pairs(engine, result, owner=engine)


class NeighbourFinder:
    """Finds pairs again and again along a trajectory, with a list that is reused between steps.

    Candidates are collected up to ``cutoff + skin`` and kept until an atom has moved by half the skin or the
    cell has changed; the pairs returned are always exactly those within the cutoff.  Measured for liquid
    water with a cutoff of 6.36 Å and a skin of 0.5 Å: 0.5 ms instead of 2.3 ms for 375 atoms, 8 ms instead
    of 27 ms for 3000.  Small molecules (25 µs a list) gain nothing.

    The order of the pairs depends on when the candidates were last collected; sums over them may differ
    from those of :func:`find_pairs` in their last bits.

    Parameters
    ----------
    cutoff : float
        Å.
    skin : float
        Å; 0 collects anew in every call.
    full : bool
        Whether to list each pair in both directions; descriptors take both kinds of list.

    Raises
    ------
    InputError
        If the cutoff is not positive or the skin is negative.
    """

    def __init__(self, cutoff: float, skin: float = 0.5, *, full: bool = False) -> None:
        if not np.isfinite(skin) or skin < 0:
            raise InputError(f"the neighbour skin is {skin!r}; expected a distance in Å, or 0")
        self.cutoff = float(cutoff)
        self.skin = float(skin)
        self.full = full
        self._engine = _engine(cutoff, self.skin, full)
        self._last: tuple[Any, ...] | None = None

    def find(self, structure: Structure) -> Pairs:
        """All pairs within the cutoff; see :func:`find_pairs`."""
        key = (len(structure), structure.cell.tobytes(), structure.pbc.tobytes())
        if key != self._last:
            self._engine = _engine(self.cutoff, self.skin, self.full)
            self._last = key
        result = _compute(self._engine, structure, "PD")
        # the engine overwrites its memory in the next call
        return _pairs(self._engine, [array.copy() for array in result], owner=None)


def _engine(cutoff: float, skin: float, full: bool) -> Any:
    import vesin

    if not np.isfinite(cutoff) or cutoff <= 0:
        raise InputError(f"the neighbour cutoff is {cutoff!r}; expected a positive distance in Å")
    # One thread and no sorting: the order of the pairs, and with it the last bits of every sum over
    # them, then never depends on the machine; our users sort by counting, which is much cheaper.
    return vesin.NeighborList(cutoff=float(cutoff), full_list=full, sorted=False, n_threads=1, skin=skin)


def _compute(engine: Any, structure: Structure, quantities: str) -> Any:
    return engine.compute(
        points=structure.positions,
        box=effective_cell(structure.cell, structure.pbc),
        periodic=structure.pbc,
        quantities=quantities,
        copy=False,
    )


def _pairs(engine: Any, result: Any, owner: Any) -> Pairs:
    shifts = result[2].astype(np.int64) if len(result) > 2 else None
    return Pairs(engine.cutoff, result[0].view(np.int64), result[1], engine.full_list, shifts, owner)


def effective_cell(cell: FloatArray, pbc: BoolArray) -> FloatArray:
    """The (3, 3) cell with zero rows along open directions.

    Raises
    ------
    InputError
        If the periodic rows are linearly dependent (or zero).
    """
    used = np.where(pbc[:, None], cell, 0.0)
    if pbc.any():
        rows = used[pbc]
        gram = rows @ rows.T
        scale = float(np.prod(np.diagonal(gram)))
        # squared volume spanned by the unit vectors; 0 for dependent ones
        if not scale > 0 or not np.linalg.det(gram) > 1e-12 * scale:
            raise InputError(
                f"the cell vectors along the periodic directions (pbc={pbc.tolist()}) are linearly dependent "
                f"or zero: {rows.tolist()}; set a proper cell, or pbc=False along the open directions"
            )
    return used


__all__ = ["NeighbourFinder", "Pairs", "effective_cell", "find_pairs"]
