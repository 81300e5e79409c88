"""Everything about a training frame that does not change while parameters do.

Descriptors, kernel features and the factored charge problem are computed once and kept as long as they fit
a memory budget; beyond it they are computed again in every iteration, or read from disk
(:mod:`kqeq.fitting.rows.cache`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kqeq.backend import CPU, Device, asarray_like, namespace, nbytes, zeros
from kqeq.baselines import BaselineResult
from kqeq.charges.base import ChargeSystem
from kqeq.descriptors import evaluate_states
from kqeq.descriptors.base import Descriptor, DescriptorState
from kqeq.descriptors.by_centre import separates_centres
from kqeq.fitting.charge_aware import HeldCharges
from kqeq.fitting.parameters import Parameters, SitePart
from kqeq.fitting.rows.cache import CacheFiles
from kqeq.fitting.rows.pool import FeaturePool, shared_pool
from kqeq.frames.labels import Labels
from kqeq.frames.structures import Structure
from kqeq.kernels import sums
from kqeq.kernels.feature_map import FeatureJacobian, FeatureMap, SummedFeatures
from kqeq.potential.potential import BATCH_ATOMS
from kqeq.typing import Array

MEMORY_BUDGET = 2_000_000_000
"""Bytes that cached features may take."""

ROWS_BYTES = 64 * 2**20
"""Derivatives of the energy features that are computed together may take this much."""

FILE_OVERHEAD = 4096
"""Bytes by which a file may be larger than its numbers: header, last block."""


@dataclass(frozen=True, eq=False)
class TrainingFrame:
    """A structure, the labels to fit (offsets and baseline subtracted) and its number.

    Attributes
    ----------
    structure : Structure
    labels : Labels
    index : int
        Number of the frame in what the user gave.
    baseline : BaselineResult, optional
        The baseline itself, where the short-range energy sees its charges.
    """

    structure: Structure
    labels: Labels
    index: int
    baseline: BaselineResult | None = None

    @property
    def n_labels(self) -> int:
        """Number of scalar labels."""
        labels = (getattr(self.labels, kind) for kind in self.labels.kinds)
        return sum(int(np.size(label)) for label in labels)

    @property
    def needs_gradients(self) -> bool:
        """Whether a label is a derivative with respect to positions or strain."""
        labels = (self.labels.forces, self.labels.stress, self.labels.born_charges)
        return any(label is not None for label in labels)


@dataclass(frozen=True, eq=False)
class Jacobians:
    """Derivatives of the features of every atom for itself, one for each kernel.

    Attributes
    ----------
    electronegativity, sites : tuple of FeatureJacobian
    """

    electronegativity: tuple[FeatureJacobian, ...]
    sites: tuple[FeatureJacobian, ...]


@dataclass(frozen=True, eq=False)
class FrameFeatures:
    """Parameter-free quantities of one frame.

    Attributes
    ----------
    electronegativity : (N, p_χ + Z) array
        ∂χ/∂u.
    states : dict of Descriptor to DescriptorState
        Descriptors of the electronegativities and of the site parameters that depend on the environment, for
        derivatives; ``None`` where no label needs any.
    system : ChargeSystem
        ``None`` if site parameters are learned: then it changes with them.
    short_range : (p_sr + Z,) array
        ∂(E_sr + Σ e0)/∂u.
    positions : (3N, p_sr + Z) array
        Its derivative with respect to positions, where a label is a derivative; perhaps in single precision.
    strain : (9, p_sr + Z) array
        Its strain derivative, where stresses are fitted; likewise.
    sites : (N, p_θ) array
        Features Φ of the site parameters that depend on the environment.
    jacobians : Jacobians, optional
        Derivatives of the features of every atom for itself, for frames with forces but without stresses, in place of
        ``states``.
    held : HeldCharges, optional
        The charges that the energy sees; what is above of the energy includes them.
    device : Device
        Where all of this lives.
    """

    electronegativity: Array | None
    states: Mapping[Descriptor, DescriptorState] | None
    system: ChargeSystem | None
    short_range: Array | None
    positions: Array | None
    strain: Array | None
    sites: Array | None = None
    jacobians: Jacobians | None = None
    held: HeldCharges | None = None
    device: Device = CPU

    @property
    def nbytes(self) -> int:
        """Memory that keeping this takes, approximately."""
        return _nbytes(self.__dict__)


def _nbytes(item: Any, depth: int = 0) -> int:
    """Bytes in the arrays that an object holds, a few levels deep."""
    size = nbytes(item)
    if size is not None:
        return size
    if depth > 3:
        return 0
    if isinstance(item, dict):
        return sum(_nbytes(value, depth + 1) for value in item.values())
    if isinstance(item, (list, tuple)):
        return sum(_nbytes(value, depth + 1) for value in item)
    return _nbytes(vars(item), depth + 1) if hasattr(item, "__dict__") else sys.getsizeof(item)


@dataclass(frozen=True, eq=False)
class KernelFeatures:
    """Sparse kernel features of one frame without their prior scale δ; ``None`` where the model has no such part.

    Attributes
    ----------
    electronegativity : (N, p_χ) array
        Φ of the electronegativities.
    short_range : (p_sr,) array
        Σ_i Φ' of the short-range energy.
    positions, strain : (3N, p_sr), (9, p_sr) array
        Its derivatives, for frames that need them, and strain derivatives for those with stresses.
    sites : (N, p_θ) array
        Φ of the site parameters that depend on the environment.
    """

    electronegativity: Array | None
    short_range: Array | None
    positions: Array | None
    strain: Array | None
    sites: Array | None

    def pack(self) -> Array:
        """All numbers in one row."""
        parts = (self.electronegativity, self.short_range, self.positions, self.strain, self.sites)
        return np.concatenate([part.ravel() for part in parts if part is not None] or [np.zeros(0)])

    @classmethod
    def unpack(cls, values: Array, frame: TrainingFrame, parameters: Parameters) -> KernelFeatures:
        """What :meth:`pack` made."""
        parts: list[Array | None] = []
        start = 0
        for shape in feature_shapes(frame, parameters):
            if shape is None:
                parts.append(None)
                continue
            stop = start + math.prod(shape)
            parts.append(values[start:stop].reshape(shape))
            start = stop
        return cls(*parts)


Maps = tuple[FeatureMap, ...]


def feature_maps(parameters: Parameters) -> tuple[Maps, Maps, Maps]:
    """Those of the electronegativities, of the short-range energy and of the site parameters."""
    electronegativity, short_range, sites = (
        parameters.electronegativity,
        parameters.short_range,
        parameters.sites,
    )
    return (
        () if electronegativity is None else electronegativity.feature_maps,
        () if short_range is None else short_range.feature_maps,
        () if sites is None else sites.feature_maps,
    )


def feature_shapes(frame: TrainingFrame, parameters: Parameters) -> tuple[tuple[int, ...] | None, ...]:
    """Shapes of the arrays of :class:`KernelFeatures`."""
    atoms = len(frame.structure)
    electronegativity, short_range, sites = (
        sum(m.size for m in own) if own else None for own in feature_maps(parameters)
    )
    return (
        None if electronegativity is None else (atoms, electronegativity),
        None if short_range is None else (short_range,),
        (3 * atoms, short_range) if short_range is not None and frame.needs_gradients else None,
        (9, short_range) if short_range is not None and frame.labels.stress is not None else None,
        None if sites is None else (atoms, sites),
    )


def stored_bytes(frames: Sequence[TrainingFrame], parameters: Parameters) -> int:
    """Bytes that the features of all frames take in double precision."""
    shapes = (shape for frame in frames for shape in feature_shapes(frame, parameters) if shape is not None)
    return 8 * sum(math.prod(shape) for shape in shapes)


Separate = Literal["double", "single"] | None
"""Whether derivatives of features are kept atom by atom, and in which precision."""


def separates(frame: TrainingFrame) -> bool:
    """Whether derivatives of this frame can be kept atom by atom: those with respect to positions alone."""
    return frame.needs_gradients and frame.labels.stress is None


def jacobian_bytes(frames: Sequence[TrainingFrame], parameters: Parameters) -> float:
    """Bytes of derivatives of features atom by atom, in double precision; infinite if a descriptor does not give them."""
    of_chi, _, of_sites = feature_maps(parameters)
    maps = dict.fromkeys((*of_chi, *of_sites))
    if not all(separates_centres(m.descriptor) for m in maps):
        return math.inf
    columns = [m.columns for m in maps]
    total = 0
    for numbers in (frame.structure.numbers for frame in frames if separates(frame)):
        of_element = dict(zip(*np.unique(numbers, return_counts=True), strict=True))
        features = sum(
            int(of_element.get(z, 0)) * (own.stop - own.start) for each in columns for z, own in each.items()
        )
        total += 24 * len(numbers) * features
    return total


def compute_features(frame: TrainingFrame, parameters: Parameters, device: Device = CPU) -> FrameFeatures:
    """Evaluate descriptors, kernel features and the charge problem of one frame."""
    return compute_many([frame], parameters, device)[0]


def compute_many(
    frames: Sequence[TrainingFrame],
    parameters: Parameters,
    device: Device = CPU,
    *,
    single: bool = False,
    separate: Separate = None,
) -> list[FrameFeatures]:
    """As :func:`compute_features`, for frames of the same elements: kernel features in one product per element."""
    return [features for features, _ in _compute(frames, parameters, device, single, separate)]


def _compute(
    frames: Sequence[TrainingFrame],
    parameters: Parameters,
    device: Device,
    single: bool,
    separate: Separate,
) -> Iterator[tuple[FrameFeatures, KernelFeatures]]:
    if parameters.dependence is not None:
        yield from ((_at_held_charges(frame, parameters, device), _NOTHING) for frame in frames)
        return
    maps = feature_maps(parameters)
    pool = shared_pool() if device.is_host else None
    known = _shared(pool, maps[1], frames)
    missing = [m for m in maps[1] if m not in known]
    descriptors = [m.descriptor for own in (maps[0], missing, maps[2]) for m in own]
    states = [
        evaluate_states(descriptors, frame.structure, derivatives=frame.needs_gradients, device=device)
        for frame in frames
    ]
    numbers = [frame.structure.numbers for frame in frames]
    electronegativity, sites = (
        sums.features_many(own, states, numbers) if own else [None] * len(frames)
        for own in (maps[0], maps[2])
    )
    gradients = [frame.needs_gradients for frame in frames]
    strains = [frame.labels.stress is not None for frame in frames]
    for m in missing:
        known[m] = m.summed_many([own[m.descriptor] for own in states], numbers, gradients, strains)
        if pool is not None:
            for frame, found in zip(frames, known[m], strict=True):
                pool.add(m, frame.structure, found)
    for i, frame in enumerate(frames):
        own = sums.beside([known[m][i] for m in maps[1]]) if maps[1] else SummedFeatures(None, None, None)
        raw = KernelFeatures(electronegativity[i], own.values, own.positions, own.strain, sites[i])
        yield _assemble(frame, parameters, device, raw, states[i], single, separate), raw


def _shared(
    pool: FeaturePool | None, maps: Maps, frames: Sequence[TrainingFrame]
) -> dict[FeatureMap, list[SummedFeatures]]:
    """What other problems of the same fit have computed, for kernels that are known for all of the frames."""
    known: dict[FeatureMap, list[SummedFeatures]] = {}
    if pool is None:
        return known
    for m in maps:
        found = [
            pool.get(
                m, frame.structure, gradient=frame.needs_gradients, strain=frame.labels.stress is not None
            )
            for frame in frames
        ]
        present = [own for own in found if own is not None]
        if len(present) == len(frames):
            known[m] = present
    return known


_NOTHING = KernelFeatures(None, None, None, None, None)


def _at_held_charges(frame: TrainingFrame, parameters: Parameters, device: Device) -> FrameFeatures:
    """Those of an energy that sees charges; the charges themselves are held."""
    dependence, part = parameters.dependence, parameters.short_range
    assert dependence is not None and part is not None
    held = dependence.at(
        frame.structure, part.feature_maps, derivatives=frame.needs_gradients, base=frame.baseline
    )
    positions = held.gradient_features() if frame.needs_gradients else None
    strain = held.gradient_features(strain=True) if frame.labels.stress is not None else None
    short_range = np.concatenate(
        [part.scale(held.energy_features()), part.one_hot(frame.structure.numbers).sum(axis=0)]
    )
    return FrameFeatures(
        None,
        None,
        None,
        asarray_like(short_range, device.like),
        None if positions is None else _beside_offsets(positions, len(positions), part, device, False),
        None if strain is None else _beside_offsets(strain, 9, part, device, False),
        held=held,
        device=device,
    )


def _restore(
    frame: TrainingFrame, parameters: Parameters, raw: KernelFeatures, single: bool, separate: Separate
) -> FrameFeatures:
    """From kernel features that were stored; only what is cheap is computed again."""
    electronegativity, _, sites = feature_maps(parameters)
    needed = [m.descriptor for m in (*electronegativity, *sites)] if frame.needs_gradients else []
    states = evaluate_states(needed, frame.structure)
    return _assemble(frame, parameters, CPU, raw, states, single, separate)


def _assemble(
    frame: TrainingFrame,
    parameters: Parameters,
    device: Device,
    raw: KernelFeatures,
    states: Mapping[Descriptor, DescriptorState],
    single: bool,
    separate: Separate,
) -> FrameFeatures:
    """Scaled kernel features beside offsets, and the charge problem."""
    structure, gradients = frame.structure, frame.needs_gradients
    numbers = structure.numbers
    xp = namespace(device.like)
    electronegativity = system = kept = jacobians = None
    if gradients:
        of_chi, _, of_sites = feature_maps(parameters)
        if separate and separates(frame):
            known: dict[FeatureMap, FeatureJacobian] = {
                m: m.jacobian(states[m.descriptor], numbers, single=separate == "single")
                for m in dict.fromkeys((*of_chi, *of_sites))
            }
            jacobians = Jacobians(tuple(known[m] for m in of_chi), tuple(known[m] for m in of_sites))
        else:
            kept = {m.descriptor: states[m.descriptor] for m in (*of_chi, *of_sites)}
    if parameters.electronegativity is not None and parameters.charges is not None:
        part = parameters.electronegativity
        electronegativity = asarray_like(part.one_hot(numbers), device.like)
        if raw.electronegativity is not None:
            electronegativity = xp.concat([part.scale(raw.electronegativity), electronegativity], axis=1)
        if parameters.learned is None:
            fixed = parameters.site_parameters(numbers, np.zeros(parameters.size), raw.sites)
            system = parameters.charges.bind(structure, fixed, many_responses=True, device=device)

    short_range = positions = strain = None
    if parameters.short_range is not None:
        part = parameters.short_range
        short_range = asarray_like(part.one_hot(numbers).sum(axis=0), device.like)
        if raw.short_range is not None:
            short_range = xp.concat([part.scale(raw.short_range), short_range])
        if gradients:
            positions = _beside_offsets(raw.positions, 3 * len(structure), part, device, single)
        if frame.labels.stress is not None:
            strain = _beside_offsets(raw.strain, 9, part, device, single)
    return FrameFeatures(
        electronegativity,
        kept,
        system,
        short_range,
        positions,
        strain,
        raw.sites,
        jacobians,
        device=device,
    )


def _beside_offsets(rows: Array | None, count: int, part: SitePart, device: Device, single: bool) -> Array:
    """Scaled rows of derivatives beside those of the offsets, which are zero."""
    result = np.zeros((count, part.size), np.float32) if single else zeros((count, part.size), device.like)
    if rows is not None:
        result[:, : part.kernel_size] = part.scale(rows)
    return result


class FeatureStore:
    """Features of all training frames, cached within a budget.

    Parameters
    ----------
    frames : sequence of TrainingFrame
        Those of the same elements side by side are the faster the smaller they are: runs of them without gradients are
        evaluated together.
    parameters : Parameters
    budget : int
        Bytes of memory.
    files : CacheFiles, optional
        Where kernel features of frames with forces or stresses go that memory has no room for; not used elsewhere than
        on the host.
    device : Device
        Where features are computed and kept.
    single : bool
        Whether derivatives of the energy features are kept in single precision: they are rounded by 6e-8 of
        themselves, in labels by a thousandth of the default noise or less.
    separate : {"double", "single"}, optional
        Keep derivatives of electronegativities and site parameters atom by atom.
    """

    def __init__(
        self,
        frames: Sequence[TrainingFrame],
        parameters: Parameters,
        budget: int = MEMORY_BUDGET,
        files: CacheFiles | None = None,
        device: Device = CPU,
        *,
        single: bool = False,
        separate: Separate = None,
    ) -> None:
        self.frames = frames
        self.parameters = parameters
        self.budget = budget
        self.files = files if device.is_host else None
        self.device = device
        self.single = single
        self.separate = separate
        self._cache: dict[int, FrameFeatures] = {}
        self._ahead: dict[int, tuple[FrameFeatures, KernelFeatures]] = {}
        self._runs: list[range] = []
        self._used = self._stored = 0
        self._full = False

    def __len__(self) -> int:
        return len(self.frames)

    def get(self, i: int) -> FrameFeatures:
        """Features of the i-th frame."""
        if i in self._cache:
            return self._cache[i]
        if i in self._ahead:
            return self._keep(i, *self._ahead.pop(i))
        frame = self.frames[i]
        if self.files is not None and frame.needs_gradients:
            shapes = feature_shapes(frame, self.parameters)
            size = sum(math.prod(shape) for shape in shapes if shape is not None)
            values = self.files.read(frame.structure, size)
            if values is not None:
                raw = KernelFeatures.unpack(values, frame, self.parameters)
                return self._keep(i, _restore(frame, self.parameters, raw, self.single, self.separate), None)
        run = self._run(i)
        members = [self.frames[j] for j in run]
        found = list(_compute(members, self.parameters, self.device, self.single, self.separate))
        self._ahead = {j: own for j, own in zip(run, found, strict=True) if j > i and j not in self._cache}
        return self._keep(i, *found[i - run.start])

    def _keep(self, i: int, features: FrameFeatures, raw: KernelFeatures | None) -> FrameFeatures:
        """Keep features in memory if there is room, else what was computed on disk."""
        if self.budget > self._used:
            size = features.nbytes
            if self._used + size <= self.budget:
                self._cache[i] = features
                self._used += size
                return features
        frame = self.frames[i]
        if self.files is not None and raw is not None and frame.needs_gradients and not self._full:
            values = raw.pack()
            self._stored += values.nbytes + FILE_OVERHEAD
            self._full = self._stored > self.files.budget or not self.files.write(frame.structure, values)
        return features

    def _run(self, i: int) -> range:
        """Frames that are evaluated with the i-th one.

        What is cached has no influence on them, so that a fit gives the same to the last digit wherever its features come
        from.
        """
        while len(self._runs) <= i:
            start = len(self._runs)
            first = self.frames[start]
            stop, atoms = start + 1, len(first.structure)
            most = BATCH_ATOMS
            if first.needs_gradients:
                most = ROWS_BYTES // (24 * max(1, self.parameters.size))
            for frame in self.frames[stop:]:
                atoms += len(frame.structure)
                if (
                    frame.structure.species != first.structure.species
                    or frame.needs_gradients != first.needs_gradients
                    or atoms > most
                ):
                    break
                stop += 1
            self._runs += [range(start, stop)] * (stop - start)
        return self._runs[i]


__all__ = [
    "MEMORY_BUDGET",
    "FeatureStore",
    "FrameFeatures",
    "Jacobians",
    "KernelFeatures",
    "TrainingFrame",
    "compute_features",
    "compute_many",
    "feature_shapes",
    "jacobian_bytes",
    "stored_bytes",
]
