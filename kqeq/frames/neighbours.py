"""Neighbour lists: the only place that calls `vesin`_.

A pair points from a centre i to a neighbour j at r_ij = r_j − r_i + n·cell.  A full list holds every pair in
both directions, a half list in one of them.  An atom is a neighbour of its own periodic images, and the
vectors refer to the positions as they were given: atoms outside the cell need no wrapping.

vesin sorts atoms into at most 1e5 bins.  Where it has to merge bins and the box is much thinner in one direction than
in the others, it divides by zero, which ends the process (SIGFPE).  Such boxes never reach it: along open directions
they are made thicker, with vacuum that no pair crosses; periodic ones are refused.

Dimensions: N atoms, P pairs.

.. _vesin: https://github.com/Luthaf/vesin
"""

from __future__ import annotations

import math
import os
import threading
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from types import ModuleType
from typing import Any

import numpy as np

from kqeq.backend import asarray_like, compiled, is_cupy, namespace, threads
from kqeq.errors import InputError
from kqeq.frames.structures import Structure
from kqeq.typing import Array, BoolArray, FloatArray, IntArray

MAX_IMAGES = 200_000
"""Images of the cell within the cutoff beyond which a cell is refused: one of 0.2 Å has as many at 6 Å."""

_BINS = 1e5
"""Bins that vesin makes at most."""

_LONG = 100.0
"""Length over cutoff from which vesin is not given open directions: for a few atoms it then takes seconds."""

_SLENDER = 20.0
"""Longest over shortest side that a box gets by vacuum; well below the cube root of the bins."""


_SMALLEST_THREADED = 20_000
"""Candidates below which threads cost more than they gain."""


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
    start : (N + 1,) int array, or None
        First pair of each centre, where pairs are ordered by centre.
    """

    cutoff: float
    indices: IntArray
    vectors: FloatArray
    full: bool = True
    shifts: IntArray | None = None
    start: IntArray | None = None
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
        If the cutoff is not positive and finite, the cell vectors of the periodic directions are linearly dependent,
        or the cell is too thin or too elongated for a neighbour list.
    """
    if structure.neighbours is not None and not full and not shifts:
        found: Pairs = structure.neighbours.find(structure, cutoff)
        return found
    engine = _engine(cutoff, 0.0, full)
    box, periodic = neighbour_box(structure.positions, structure.cell, structure.pbc, engine.cutoff)
    result = _compute(engine, structure.positions, box, periodic, "PDS" if shifts else "PD")
    return _pairs(engine, result, owner=engine)


def half_pairs(
    positions: FloatArray, cell: FloatArray, pbc: BoolArray, cutoff: float
) -> tuple[IntArray, IntArray, FloatArray]:
    """Each pair within a cutoff once: i, j (P,) as 32-bit integers and r_j − r_i + n·cell (P, 3).

    Raises
    ------
    InputError
        As :func:`find_pairs`.
    """
    engine = _engine(cutoff, 0.0, full=False)
    box, periodic = neighbour_box(positions, cell, pbc, cutoff)
    indices, vectors = _compute(engine, positions, box, periodic, "PD")
    # views into the engine's memory: copies outlive it, and half the bytes are enough for the indices
    return indices[:, 0].astype(np.int32), indices[:, 1].astype(np.int32), vectors.copy()


def pairs_by_centre(positions: FloatArray, cell: FloatArray, pbc: BoolArray, cutoff: float) -> Pairs:
    """A half list ordered by centre, once.

    Raises
    ------
    InputError
        As :func:`find_pairs`.
    """
    engine = _engine(cutoff, 0.0, full=False)
    box, periodic = neighbour_box(positions, cell, pbc, cutoff)
    indices, vectors = _compute(engine, positions, box, periodic, "PD")
    given = np.ascontiguousarray(indices.view(np.int64)), np.ascontiguousarray(vectors)
    found = _ordered((), cutoff, positions, *given)
    return Pairs(cutoff, found.indices, found.offsets, False, start=found.start)


def find_pairs_on(
    positions: FloatArray, cell: FloatArray, pbc: BoolArray, cutoff: float, like: Array
) -> tuple[Array, Array, Array]:
    """Each pair within a cutoff once, on the device of ``like``.

    vesin searches on the host and the list is copied; its own search on a GPU is asked for by the environment variable
    ``KQEQ_CUDA_NEIGHBOURS=1`` (it could not be tried: on the one GPU that was at hand vesin 0.6.2 did not find NVRTC).
    The pairs come in an order that does not depend on the search: sums over them are reproducible.

    Parameters
    ----------
    positions : (N, 3) array
        Å, on the host.
    cell, pbc : (3, 3), (3,) arrays
        Likewise.
    cutoff : float
        Å.
    like : array

    Returns
    -------
    (P,), (P,) int arrays, (3, P) array
        i ≤ j and r_j − r_i + n·cell, Å.

    Raises
    ------
    InputError
        As :func:`find_pairs`.
    """
    box, periodic = neighbour_box(positions, cell, pbc, cutoff)
    wanted = is_cupy(like) and os.environ.get("KQEQ_CUDA_NEIGHBOURS") == "1"
    found = _search_on_gpu(positions, box, periodic, cutoff, like) if wanted else None
    if found is None:
        engine = _engine(cutoff, 0.0, full=False)
        indices, along = _compute(engine, positions, box, periodic, "PD")
        found = asarray_like(indices.view(np.int64), like), asarray_like(along, like)
    indices, along = found
    xp = namespace(along)
    i, j, vectors = indices[:, 0], indices[:, 1], xp.permute_dims(along, (1, 0))
    # a search may name either end first: take the lower number, and of an atom's own images the one further along
    turned = (i > j) | ((i == j) & (_along(vectors) < 0.0))
    i, j = xp.where(turned, j, i), xp.where(turned, i, j)
    vectors = xp.where(turned, -vectors, vectors)
    order = pair_order(i * len(positions) + j, vectors)
    return xp.take(i, order), xp.take(j, order), xp.take(vectors, order, axis=1)


def pair_order(key: Array, vectors: Array) -> Array:
    """Order of pairs by a whole number (P,), among images of one atom by their vectors (3, P); (P,) ints."""
    xp = namespace(vectors)
    first = xp.argsort(_along(vectors), stable=True)
    return xp.take(first, xp.argsort(xp.take(key, first), stable=True))


def _along(vectors: Array) -> Array:
    """A number that differs between images of an atom, (P,): lattice vectors are hardly in these proportions."""
    return vectors[0, :] + math.sqrt(3.0) * vectors[1, :] + math.pi * vectors[2, :]


def _search_on_gpu(
    positions: FloatArray, box: FloatArray, periodic: BoolArray, cutoff: float, like: Array
) -> tuple[Array, Array] | None:
    """Vesin's search on a GPU, or None where it does not work."""
    import vesin

    xp = namespace(like)
    engine = vesin.NeighborList(cutoff=float(cutoff), full_list=False, sorted=False)
    try:
        indices, along = engine.compute(
            points=asarray_like(np.ascontiguousarray(positions), like),
            box=asarray_like(np.ascontiguousarray(box), like),
            periodic=xp.asarray(np.ascontiguousarray(periodic)),
            quantities="PD",
            copy=True,
        )
    except Exception:  # whatever it reports, the host can do the same
        return None
    return xp.astype(indices, xp.int64), along


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Pairs within cutoff and skin of one arrangement, ordered by centre; their number does not change until it is left.

    Attributes
    ----------
    key : tuple
        Number of atoms, cell and periodic directions.
    reach : float
        Cutoff and skin together, Å.
    origin : (N, 3) array
        Where the atoms were, Å.
    start : (N + 1,) int array
        First candidate of each centre.
    indices : (C, 2) int array
    offsets : (C, 3) array
        Shifts of the cell, Å.
    """

    key: tuple[Any, ...]
    reach: float
    origin: FloatArray
    start: IntArray
    indices: IntArray
    offsets: FloatArray


class NeighbourFinder:
    """Finds pairs again and again along a trajectory, with one list for everybody that is reused between steps.

    Candidates are collected up to the longest cutoff that was asked for plus ``skin``, and kept until an atom has moved
    by half the skin or the cell has changed; the pairs returned are always exactly those within the cutoff.  A structure
    that carries a finder (:attr:`kqeq.frames.structures.Structure.neighbours`) has it searched by :func:`find_pairs`:
    descriptors and the lattice sum then share a list.

    The order of the pairs, by centre, depends on when the candidates were last collected; sums over them may differ
    from those of :func:`find_pairs` in their last bits.  Threads may share a finder.

    Parameters
    ----------
    cutoff : float
        Å; grows when more is asked for.
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
        _engine(cutoff, 0.0, full)  # refuses what is no cutoff
        self.cutoff = float(cutoff)
        self.skin = float(skin)
        self.full = full
        self._start()

    def _start(self) -> None:
        """With nothing collected."""
        self._lock = threading.RLock()
        self._kept: _Candidates | None = None
        self._nearer: dict[float, _Candidates] = {}
        self._where = b""
        self._found: dict[float, Pairs] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what can be collected again when a structure is copied or pickled."""
        return {name: getattr(self, name) for name in ("cutoff", "skin", "full")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a lock of its own."""
        self.__dict__.update(state)
        self._start()

    def find(self, structure: Structure, cutoff: float | None = None) -> Pairs:
        """All pairs within the cutoff (Å; that of the finder by default); see :func:`find_pairs`.

        Asked again at the same positions it gives the same list.
        """
        wanted = self.cutoff if cutoff is None else float(cutoff)
        with self._lock:
            self.cutoff = max(self.cutoff, wanted)
            self._follow(structure)
            pairs = self._found.get(wanted)
            if pairs is None:
                pairs = self._near(self._candidates(wanted), structure.positions, wanted)
                self._found[wanted] = pairs
            return pairs

    def _follow(self, structure: Structure) -> None:
        """Collect anew where what is kept may miss a pair, and forget the lists of other positions."""
        key = (len(structure), structure.cell.tobytes(), structure.pbc.tobytes())
        reach, kept, where = self.cutoff + self.skin, self._kept, structure.positions.tobytes()
        if where != self._where:
            self._where, self._found = where, {}
        if kept is not None and kept.key == key and kept.reach == reach:
            moved = structure.positions - kept.origin
            if float(np.einsum("ia,ia->i", moved, moved).max()) < 0.25 * self.skin**2:
                return
        box, periodic = neighbour_box(structure.positions, structure.cell, structure.pbc, reach)
        engine = _engine(reach, 0.0, self.full)
        indices, shifts = _compute(engine, structure.positions, box, periodic, "PS")
        given = np.ascontiguousarray(indices.view(np.int64)), np.ascontiguousarray(shifts @ box)
        self._kept = _ordered(key, reach, structure.positions.copy(), *given)
        self._nearer, self._found = {}, {}

    def _candidates(self, cutoff: float) -> _Candidates:
        """Those for a cutoff: only pairs that may come within it are looked at in every step."""
        kept = self._kept
        assert kept is not None
        if cutoff + self.skin >= kept.reach:
            return kept
        if cutoff not in self._nearer:
            i, j = kept.indices.T
            along = kept.origin[j] - kept.origin[i] + kept.offsets
            near = np.einsum("pa,pa->p", along, along) <= (cutoff + self.skin) ** 2
            given = np.ascontiguousarray(kept.indices[near]), np.ascontiguousarray(kept.offsets[near])
            self._nearer[cutoff] = _ordered(kept.key, cutoff + self.skin, kept.origin, *given)
        return self._nearer[cutoff]

    def _near(self, kept: _Candidates, positions: FloatArray, cutoff: float) -> Pairs:
        """The candidates within a cutoff."""
        kernels, limit = _kernels(), cutoff * cutoff
        given = kept.start, kept.indices, kept.offsets, np.ascontiguousarray(positions)
        number = np.zeros(len(positions) + 1, dtype=np.int64)

        def count(first: int, last: int) -> None:
            kernels.count_near(first, last, *given, limit, number[1:])

        threads.run(count, kept.start, _SMALLEST_THREADED)
        begin = np.cumsum(number)
        indices, vectors = np.empty((begin[-1], 2), dtype=np.int64), np.empty((begin[-1], 3))

        def collect(first: int, last: int) -> None:
            kernels.collect_near(first, last, *given, limit, begin, indices, vectors)

        threads.run(collect, kept.start, _SMALLEST_THREADED)
        return Pairs(cutoff, indices, vectors, self.full, start=begin)


def _ordered(
    key: tuple[Any, ...], reach: float, origin: FloatArray, indices: IntArray, offsets: FloatArray
) -> _Candidates:
    """Candidates ordered by centre."""
    centres, atoms = indices[:, 0], len(origin)
    start = np.zeros(atoms + 1, dtype=np.int64)
    np.bincount(centres, minlength=atoms).cumsum(out=start[1:])
    # short integers are sorted by counting
    order = np.argsort(centres.astype(np.uint16) if atoms <= 1 << 16 else centres, kind="stable")
    return _Candidates(key, reach, origin, start, indices[order], offsets[order])


@cache
def _kernels() -> ModuleType:
    """The compiled loops; compiled once, then read from disk."""
    return compiled.load("kqeq.frames.pair_kernels")


def _engine(cutoff: float, skin: float, full: bool) -> Any:
    import vesin

    if not np.isfinite(cutoff) or cutoff <= 0:
        raise InputError(f"the neighbour cutoff is {cutoff!r}; expected a positive distance in Å")
    # One thread and no sorting: the order of the pairs, and with it the last bits of every sum over
    # them, then never depends on the machine; our users sort by counting, which is much cheaper.
    return vesin.NeighborList(cutoff=float(cutoff), full_list=full, sorted=False, n_threads=1, skin=skin)


def _compute(engine: Any, points: FloatArray, box: FloatArray, periodic: BoolArray, quantities: str) -> Any:
    return engine.compute(points=points, box=box, periodic=periodic, quantities=quantities, copy=False)


def neighbour_box(
    positions: FloatArray, cell: FloatArray, pbc: BoolArray, cutoff: float
) -> tuple[FloatArray, BoolArray]:
    """Cell and periodic directions for a neighbour list that gives the pairs of a structure.

    Almost always those of the structure.  A box that vesin cannot divide into bins is lengthened along its open
    directions and made periodic: images are farther away than the cutoff, so the pairs stay the same.

    Parameters
    ----------
    positions : (N, 3) array
        Å.
    cell : (3, 3) array
        Å; rows along open directions do not count.
    pbc : (3,) bool array
    cutoff : float
        Å.

    Returns
    -------
    (3, 3) array, (3,) bool array

    Raises
    ------
    InputError
        For linearly dependent cell vectors, cells with more than :data:`MAX_IMAGES` images within the cutoff, and
        periodic directions so much shorter than others that there are no bins.
    """
    box = effective_cell(cell, pbc)
    full, extents = box, np.zeros(3)
    if not pbc.any():
        full, extents = np.eye(3), np.ptp(positions, axis=0)
        if (
            max(extents.tolist()) < 10.0 * cutoff
        ):  # nearly always; the rest of this function costs as much as a list
            return box, pbc
    elif not pbc.all():
        full = _with_unit_normals(box, pbc)
        extents = np.ptp(positions @ np.linalg.inv(full), axis=0)
    if not np.isfinite(extents).all():
        raise InputError("positions must be finite for a neighbour list")
    heights = extents
    if pbc.any():
        heights = np.where(pbc, 1.0 / np.linalg.norm(np.linalg.inv(full), axis=0), extents)
    images = float(np.prod(2.0 * np.ceil(cutoff / heights[pbc]) + 1.0))
    if images > MAX_IMAGES:
        raise InputError(
            f"the cell is so thin ({', '.join(f'{h:.3g}' for h in heights[pbc])} Å along its periodic directions) that "
            f"{images:.1e} images lie within the cutoff of {cutoff:g} Å; check atoms.cell (in Å?)"
        )
    if pbc.all():
        if _bins(heights, cutoff) <= _BINS / 2.0:
            return box, pbc
    else:
        limit = _BINS / (80.0 if pbc.sum() == 1 else 8.0)  # searches along a wire take longest
        if _bins(heights, cutoff) * images <= limit and heights.max() < _LONG * cutoff:
            return box, pbc  # nearly always
    # round up to a power of two, so that the box stays the same along a trajectory
    vacuum = 2.0 ** np.ceil(np.log2(np.maximum(2.0 * extents + 2.0 * cutoff, heights.max() / _SLENDER)))
    lengths = np.where(pbc, heights, vacuum)
    if not _divides(lengths, cutoff):
        raise InputError(
            f"the cell is {', '.join(f'{h:.4g}' for h in heights[pbc])} Å thick along its periodic directions, too "
            "elongated for a neighbour list (the ratio may be about 300); check atoms.cell, or use a less elongated "
            "supercell"
        )
    if pbc.all():
        return box, pbc
    return np.where(pbc[:, None], box, vacuum[:, None] * full), np.ones(3, dtype=bool)


def _bins(lengths: FloatArray, cutoff: float) -> float:
    """Bins of the size of the cutoff."""
    return float(np.prod(np.maximum(lengths / cutoff, 1.0)))


def _divides(lengths: FloatArray, cutoff: float) -> bool:
    """Whether vesin finds at least one bin along each direction of a box with these heights, whatever the rounding."""
    for signs in product((-1e-9, 1e-9), repeat=3):
        x, y, z = np.trunc(np.maximum(lengths / cutoff * (1.0 + np.array(signs)), 1.0))
        if x * y * z <= _BINS:
            continue
        third = np.trunc(0.999 * np.cbrt(_BINS / (x / y * (y / z) ** 2)))
        second = np.trunc(0.999 * y / z * third)
        if min(third, second, 0.999 * x / y * second) < 1.0:
            return False
    return True


def _with_unit_normals(box: FloatArray, pbc: BoolArray) -> FloatArray:
    """The rows along open directions replaced by unit vectors, normal to the periodic ones and to each other."""
    result = box.copy()
    rows = box[pbc]
    basis = np.linalg.svd(rows)[2] if len(rows) else np.eye(3)  # the last rows of Vᵀ span what is left
    result[~pbc] = basis[len(rows) :]
    return result


def _pairs(engine: Any, result: Any, owner: Any) -> Pairs:
    shifts = result[2].astype(np.int64) if len(result) > 2 else None
    return Pairs(engine.cutoff, result[0].view(np.int64), result[1], engine.full_list, shifts, _owner=owner)


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


__all__ = [
    "MAX_IMAGES",
    "NeighbourFinder",
    "Pairs",
    "effective_cell",
    "find_pairs",
    "find_pairs_on",
    "half_pairs",
    "neighbour_box",
    "pair_order",
    "pairs_by_centre",
]
