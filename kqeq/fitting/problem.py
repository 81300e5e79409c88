"""The fit as the solver sees it, and the sums over its frames, serial or parallel.

Frames are grouped into chunks.  A chunk's contribution is a function of the parameters alone, so chunks may be
computed anywhere (joblib: threads, processes, a dask cluster); they are added in a fixed order, and the result does
not depend on who computed them.

Features of frames are kept in each process that meets them, within a memory budget, and dropped when the fit ends.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from kqeq.backend import CPU, Device, asarray_like, blas, cache_budget, to_numpy
from kqeq.errors import WorkerError
from kqeq.fitting.charge_aware import KINDS
from kqeq.fitting.least_squares.equations import Sums
from kqeq.fitting.least_squares.solver import (
    CHUNK_ROWS,
    JacobianKind,
    LeastSquaresProblem,
    SumKind,
    jacobian_of,
    sum_frames,
    sum_rows,
)
from kqeq.fitting.least_squares.turning import FEWEST, Turn
from kqeq.fitting.parameters import Parameters
from kqeq.fitting.rows.blocks import frame_rows
from kqeq.fitting.rows.cache import CacheFiles, CacheFolder
from kqeq.fitting.rows.features import (
    MEMORY_BUDGET,
    Separate,
    TrainingFrame,
    feature_maps,
    jacobian_bytes,
    stored_bytes,
)
from kqeq.fitting.rows.joined import JoiningStore, joined_rows, joining_keys
from kqeq.io.progress import say, track
from kqeq.typing import Array, FloatArray

MAX_CHUNKS = 64
"""Each chunk returns half a P×P matrix once; more chunks than this would move more numbers than they save time."""

SEPARATE_SHARE = 0.75
"""Of the memory for features, what derivatives atom by atom and all others may fill; the rest is for charges."""

MIN_CHUNKS = 4
"""So many chunks there are at least, if frames suffice."""

DEVICE_ROWS = 64 * CHUNK_ROWS
"""Rows of a chunk elsewhere than on the host: frames are joined within a chunk."""

TRAFFIC = 4_000_000_000
"""Bytes that all chunks together may return at the first point; later ones return less."""

TURNING_FRAMES = 8
"""Frames whose rows say how parameters are turned (:mod:`kqeq.fitting.least_squares.turning`)."""

TURNING_SPREAD = 0.3
"""Parameters of electronegativities there, in units of their prior."""

RETRIES = 3
"""How often in a row a pool of worker processes may break before a fit gives up."""

Result = TypeVar("Result")

_STORES: dict[tuple[str, int], JoiningStore] = {}
_NUMBERS = itertools.count()


@dataclass(eq=False)
class Chunk:
    """Some frames of a fit; a least-squares problem of its own.

    Attributes
    ----------
    token : str
        Names the fit, for the cache of the process that computes it.
    number : int
    frames : sequence of TrainingFrame
    parameters : Parameters
    noise : mapping of str to float
    linear : bool
        Whether every label is linear in the parameters.
    budget : int
        Bytes that the features of this chunk may keep.
    files : CacheFiles, optional
        Where others may go.
    device : Device
    single : bool
        Whether derivatives of the energy features are kept in single precision.
    separate : {"double", "single"}, optional
        Whether derivatives of electronegativities and site parameters are kept atom by atom.
    skip : frozenset of int
        Positions of frames that do not count.
    """

    token: str
    number: int
    frames: Sequence[TrainingFrame]
    parameters: Parameters
    noise: Mapping[str, float]
    linear: bool
    budget: int
    files: CacheFiles | None = None
    device: Device = CPU
    single: bool = False
    separate: Separate = None
    skip: frozenset[int] = frozenset()

    @property
    def size(self) -> int:
        """P."""
        return self.parameters.size

    @property
    def linear_columns(self) -> slice | None:
        """The parameters of the energy, which every label depends on linearly."""
        return None if self.parameters.short_range is None else self.parameters.short_range.columns

    def rows(self, u: FloatArray, *, jacobian: JacobianKind) -> Iterator[tuple[Array, Array | None]]:
        """Residuals and Jacobians frame by frame."""
        for count, residual, rows in self._blocks(u, jacobian):
            size = int(residual.shape[0]) // count
            for k in range(count):
                own = slice(k * size, (k + 1) * size)
                yield residual[own], None if rows is None else rows[own, :]

    def blocks(self, u: FloatArray, *, jacobian: JacobianKind) -> Iterator[tuple[Array, Array | None]]:
        """The same rows, those of frames that are joined in one block."""
        for _, residual, rows in self._blocks(u, jacobian):
            yield residual, rows

    def _blocks(self, u: FloatArray, jacobian: JacobianKind) -> Iterator[tuple[int, Array, Array | None]]:
        """Number of frames, residuals and Jacobians."""
        store = _store(self)
        copy = asarray_like(u, self.device.like)
        for run in store.runs:
            members = [i for i in run if i not in self.skip]
            if not members:
                continue
            joined = store.joined(run)
            if joined is not None:
                if len(members) < len(run):
                    joined = joined.select([i - run.start for i in members])
                found = joined_rows(joined, self.parameters, u, self.noise, jacobian=jacobian, copy=copy)
                yield len(members), *found
                continue
            for i in members:
                yield (
                    1,
                    *frame_rows(
                        self.frames[i],
                        store.get(i),
                        self.parameters,
                        u,
                        self.noise,
                        jacobian=jacobian,
                        copy=copy,
                    ),
                )


def _store(chunk: Chunk) -> JoiningStore:
    """The features of a chunk in this process; those of earlier fits make room."""
    key = (chunk.token, chunk.number)
    if key not in _STORES:
        for old in [k for k in _STORES if k[0] != chunk.token and not k[0].startswith(f"{os.getpid()}-")]:
            del _STORES[old]  # a worker process serves one fit at a time
        _STORES[key] = JoiningStore(
            chunk.frames,
            chunk.parameters,
            chunk.budget,
            chunk.files,
            chunk.device,
            single=chunk.single,
            separate=chunk.separate,
        )
    return _STORES[key]


def chunk_sums(chunk: LeastSquaresProblem, u: FloatArray, what: SumKind, turn: Turn | None = None) -> Sums:
    """The sums of one chunk; one BLAS thread, because chunks may share the machine."""
    with blas.one_thread():
        return sum_frames(chunk, u, what, turn).packed()


class FitProblem:
    """All frames of a fit.

    Parameters
    ----------
    frames : sequence of TrainingFrame
    parameters : Parameters
    noise : mapping of str to float
    linear : bool
        Whether every label is linear in the parameters.
    budget : int, optional
        Bytes that cached features may take in all; by default what the device has room for, if frames are met again.
    cache : CacheFolder, optional
        Where features may go that memory has no room for.
    device : Device
        Where features and sums are computed.
    """

    def __init__(
        self,
        frames: Sequence[TrainingFrame],
        parameters: Parameters,
        noise: Mapping[str, float],
        *,
        linear: bool,
        budget: int | None = None,
        cache: CacheFolder | None = None,
        device: Device = CPU,
    ) -> None:
        if (
            parameters.dependence is not None
        ):  # charges of one structure at a time, which are found on the host
            frames, device = _acted_on(frames), CPU
        # frames of the same elements share representatives in their layout, and products with them
        frames = sorted(frames, key=lambda frame: frame.structure.species)
        if not device.is_host:
            frames = _alike(frames, parameters, device)
        self.frames = frames
        self.parameters = parameters
        self.noise = noise
        self.linear = linear
        if budget is None:
            # a closed-form fit meets every frame once: there is nothing to keep
            budget = 0 if linear else cache_budget(device.like, MEMORY_BUDGET)
        self.budget = budget
        # rows are met in every iteration: what does not fit in double precision may fit in single precision
        needed = 0 if linear or not device.is_host else stored_bytes(frames, parameters)
        self.single = needed > budget >= needed // 2
        self.separate: Separate = None
        if not linear and device.is_host and parameters.dependence is None:
            # decided by sizes alone, for all frames: what happens to be cached must not change results
            room = SEPARATE_SHARE * budget - (needed // 2 if self.single else needed)
            wanted = jacobian_bytes(frames, parameters)
            self.separate = "double" if wanted <= room else "single" if wanted / 2 <= room else None
        self.device = device
        self.size = parameters.size
        # found once, shared with copies that lack some frames
        self._turn: list[Turn | None] = []
        self.token = f"{os.getpid()}-{next(_NUMBERS)}"
        files = None if cache is None else cache.files(feature_maps(parameters))
        self.chunks = []
        least = CHUNK_ROWS if device.is_host else DEVICE_ROWS
        for i, group in enumerate(_groups(frames, parameters.size, least)):
            share = len(group) / len(frames)
            own = None if files is None else files.share(share)
            self.chunks.append(
                Chunk(
                    self.token,
                    i,
                    group,
                    parameters,
                    noise,
                    linear,
                    int(budget * share),
                    own,
                    device,
                    self.single,
                    self.separate,
                )
            )

    @property
    def linear_columns(self) -> slice | None:
        """The parameters of the energy, which every label depends on linearly."""
        return self.chunks[0].linear_columns

    def rows(
        self, u: FloatArray, *, jacobian: JacobianKind, description: str = "frames"
    ) -> Iterator[tuple[Array, Array | None]]:
        """Residuals and Jacobians frame by frame."""
        for chunk in track(self.chunks, description, total=len(self.chunks)):
            yield from chunk.rows(u, jacobian=jacobian)

    def blocks(
        self, u: FloatArray, *, jacobian: JacobianKind, description: str = "frames"
    ) -> Iterator[tuple[Array, Array | None]]:
        """The same rows, those of frames that are joined in one block."""
        for chunk in track(self.chunks, description, total=len(self.chunks)):
            yield from chunk.blocks(u, jacobian=jacobian)

    def without(self, left_out: Collection[int]) -> FitProblem:
        """The same problem without the frames of these indices; features are shared, and end with those of this one."""
        other = copy(self)
        other.chunks = [
            replace(
                chunk,
                skip=frozenset(i for i, frame in enumerate(chunk.frames) if frame.index in left_out),
            )
            for chunk in self.chunks
        ]
        other.chunks = [chunk for chunk in other.chunks if len(chunk.skip) < len(chunk.frames)]
        return other

    def turn(self, solver: str = "auto") -> Turn | None:
        """Change of the parameters of the energy and of the electronegativities that a few frames suggest; or None.

        Solvers other than ``"auto"`` do without.  At charges that are none in particular, so that it is the same wherever
        a fit starts or goes on.
        """
        parameters = self.parameters
        parts = [part for part in (parameters.short_range, parameters.electronegativity) if part is not None]
        blocks = [part.columns for part in parts]
        widest = max((own.stop - own.start for own in blocks), default=0)
        if solver != "auto" or widest < FEWEST or parameters.dependence is not None:
            return None
        if self._turn:
            return self._turn[0]
        u = np.zeros(self.size)
        if parameters.electronegativity is not None:
            own = parameters.electronegativity.columns
            u[own] = TURNING_SPREAD * np.random.default_rng(0).normal(size=own.stop - own.start)
        places = np.unique(np.linspace(0, len(self.frames) - 1, TURNING_FRAMES).astype(int))
        chosen = {self.frames[i].index for i in places}
        some = self.without({frame.index for frame in self.frames} - chosen)
        with blas.one_thread():
            rows = [to_numpy(own) for _, own in some.rows(u, jacobian="full") if own is not None]
        self._turn.append(Turn.towards(np.concatenate(rows), blocks) if rows else None)
        return self._turn[0]

    def close(self) -> None:
        """Drop the cached features of this process."""
        for key in [key for key in _STORES if key[0] == self.token]:
            del _STORES[key]


def _acted_on(frames: Sequence[TrainingFrame]) -> list[TrainingFrame]:
    """Frames with the labels that a short-range energy acts on alone."""
    found = []
    for frame in frames:
        drop: dict[str, Any] = {kind: None for kind in frame.labels.kinds if kind not in KINDS}
        labels = replace(frame.labels, **drop)
        if labels.kinds:
            found.append(replace(frame, labels=labels))
    return found


def _alike(frames: Sequence[TrainingFrame], parameters: Parameters, device: Device) -> list[TrainingFrame]:
    """Frames, sorted by their elements, with those that can be joined side by side."""
    first: dict[tuple[object, ...], list[TrainingFrame]] = {}
    for frame, own in zip(frames, joining_keys(frames, parameters, device), strict=True):
        first.setdefault((frame.structure.species, own), []).append(frame)
    return [frame for alike in first.values() for frame in alike]


def _groups(
    frames: Sequence[TrainingFrame], size: int, least: int = CHUNK_ROWS
) -> list[Sequence[TrainingFrame]]:
    """Consecutive frames with about ``least`` labels each, in no more groups than the limits above."""
    counts = [frame.n_labels for frame in frames]
    most = max(MIN_CHUNKS, min(MAX_CHUNKS, TRAFFIC // (4 * size**2)))
    target = max(least, sum(counts) // most + 1)
    groups: list[Sequence[TrainingFrame]] = []
    start = waiting = 0
    for i, count in enumerate(counts):
        waiting += count
        if waiting >= target:
            groups.append(frames[start : i + 1])
            start, waiting = i + 1, 0
    if start < len(frames):
        groups.append(frames[start:])
    return groups


def is_serial() -> bool:
    """Whether joblib would compute in this process alone, in one thread."""
    from joblib.parallel import get_active_backend

    backend, n_jobs = get_active_backend()
    return bool(backend.effective_n_jobs(n_jobs) == 1)


def map_chunks(
    function: Callable[..., Result],
    chunks: Sequence[Any],
    *arguments: Any,
    description: str,
    distribute: bool = True,
) -> Iterable[Result]:
    """``function(chunk, *arguments)`` for all chunks in order, through joblib; worker processes may die on the way.

    Serial by default; ``with joblib.parallel_config(backend="loky", n_jobs=2):`` around the fit, or any other
    backend (``"threading"``, ``"dask"``), runs chunks in parallel.  A dask cluster repeats the work of a worker that dies
    by itself; pools of local processes break, and are started again here.

    Raises
    ------
    WorkerError
        If worker processes die again and again on the same chunks.
    """
    # one GPU: nothing to distribute, and sums that stay where they are
    here = (function(chunk, *arguments) for chunk in chunks)
    results = _results(function, chunks, arguments) if distribute else here
    return track(results, description, total=len(chunks))


def _results(
    function: Callable[..., Result], chunks: Sequence[Any], arguments: tuple[Any, ...]
) -> Iterator[Result]:
    from joblib import Parallel, delayed

    done = failures = 0
    while done < len(chunks):
        parallel = Parallel(return_as="generator")
        tasks = (delayed(function)(chunk, *arguments) for chunk in chunks[done:])
        try:
            for result in parallel(tasks):
                yield result
                done, failures = done + 1, 0
        except BrokenProcessPool as error:
            failures += 1
            if failures > RETRIES:
                raise WorkerError(
                    f"worker processes died {failures} times in a row, out of memory perhaps: use fewer (n_jobs), "
                    "or a machine with more memory. A fit with resume=path continues from its checkpoint"
                ) from error
            say(f"a worker process died; {len(chunks) - done} of {len(chunks)} chunks are computed again")


def joblib_engine(
    problem: LeastSquaresProblem, u: FloatArray, what: SumKind, turn: Turn | None = None
) -> Sums:
    """Sum the chunks of a :class:`FitProblem` in fixed order; see :func:`map_chunks`.

    In this process alone all chunks share one set of sums; otherwise each returns its own.
    """
    assert isinstance(problem, FitProblem)
    name = "iteration" if what in ("border", "full", "triangle") else "step"
    if not problem.device.is_host or is_serial():
        with blas.one_thread():
            rows = problem.blocks(u, jacobian=jacobian_of(what), description=name)
            return sum_rows(problem, rows, what, turn)
    sums = map_chunks(
        chunk_sums, problem.chunks, u, what, turn, description=name, distribute=problem.device.is_host
    )
    return add_up(sums)


def add_up(parts: Iterable[Sums]) -> Sums:
    """The sum of (at least one) sums, in their order."""
    remaining = iter(parts)
    total = next(remaining).unpacked()
    for sums in remaining:
        total.add(sums)
    return total


__all__ = [
    "MAX_CHUNKS",
    "RETRIES",
    "Chunk",
    "FitProblem",
    "add_up",
    "chunk_sums",
    "is_serial",
    "joblib_engine",
    "map_chunks",
]
