"""Everything about a training frame that does not change while parameters do.

Descriptors, kernel features and the factored charge problem are computed once and kept as long as they fit
a memory budget; beyond it they are computed again in every iteration.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kqeq.backend import CPU, Device, asarray_like, full, namespace, nbytes, zeros
from kqeq.charges.base import ChargeSystem
from kqeq.descriptors import evaluate_states
from kqeq.descriptors.base import Descriptor, DescriptorState
from kqeq.fitting.parameters import Parameters
from kqeq.kernels import FeatureMap
from kqeq.labels import Labels
from kqeq.potential import BATCH_ATOMS
from kqeq.structures import Structure
from kqeq.typing import Array

MEMORY_BUDGET = 4_000_000_000
"""Bytes that cached features may take."""


@dataclass(frozen=True, eq=False)
class TrainingFrame:
    """A structure, the labels to fit (offsets and baseline subtracted) and its number.

    Attributes
    ----------
    structure : Structure
    labels : Labels
    index : int
        Number of the frame in what the user gave.
    """

    structure: Structure
    labels: Labels
    index: int

    @property
    def n_labels(self) -> int:
        """Number of scalar labels."""
        labels = (getattr(self.labels, kind) for kind in self.labels.kinds)
        return sum(int(np.size(label)) for label in labels)

    @property
    def needs_gradients(self) -> bool:
        """Whether a label is a derivative with respect to positions or strain."""
        return self.labels.forces is not None or self.labels.stress is not None


@dataclass(frozen=True, eq=False)
class FrameFeatures:
    """Parameter-free quantities of one frame.

    Attributes
    ----------
    chi : (N, p_χ + Z) array
        ∂χ/∂u.
    chi_state : DescriptorState
        Descriptors of the electronegativities, for derivatives.
    system : ChargeSystem
        ``None`` if site parameters are learned: then it changes with them.
    energy : (p_sr + Z,) array
        ∂(E_sr + Σ e0)/∂u.
    positions : (3N, p_sr + Z) array
        Its derivative with respect to positions.
    strain : (9, p_sr + Z) array
        Its strain derivative.
    sites : (N, p_θ) array
        Features Φ of the site parameters that depend on the environment.
    site_state : DescriptorState
        Their descriptors, for derivatives.
    device : Device
        Where all of this lives.
    """

    chi: Array | None
    chi_state: DescriptorState | None
    system: ChargeSystem | None
    energy: Array | None
    positions: Array | None
    strain: Array | None
    sites: Array | None = None
    site_state: DescriptorState | None = None
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


def compute_features(frame: TrainingFrame, parameters: Parameters, device: Device = CPU) -> FrameFeatures:
    """Evaluate descriptors, kernel features and the charge problem of one frame."""
    return compute_many([frame], parameters, device)[0]


def compute_many(
    frames: Sequence[TrainingFrame], parameters: Parameters, device: Device = CPU
) -> list[FrameFeatures]:
    """As :func:`compute_features`, for frames of the same elements: kernel features in one product per element."""
    maps = [part.feature_map for part in parameters.parts.values()]
    descriptors = [m.descriptor for m in maps if m is not None]
    states = [
        evaluate_states(descriptors, frame.structure, derivatives=frame.needs_gradients, device=device)
        for frame in frames
    ]
    numbers = [frame.structure.numbers for frame in frames]

    def kernel_features(feature_map: FeatureMap | None) -> list[Array | None]:
        if feature_map is None:
            return [None] * len(frames)
        own = [found[feature_map.descriptor] for found in states]
        return [*feature_map.features_many(own, numbers)]

    environment = parameters.environment
    columns = zip(
        kernel_features(None if parameters.chi is None else parameters.chi.feature_map),
        kernel_features(None if parameters.energy is None else parameters.energy.feature_map),
        kernel_features(None if environment is None else environment.feature_map),
        strict=True,
    )
    return [
        _assemble(frame, parameters, device, found, *own)
        for frame, found, own in zip(frames, states, columns, strict=True)
    ]


def _assemble(
    frame: TrainingFrame,
    parameters: Parameters,
    device: Device,
    states: Mapping[Descriptor, DescriptorState],
    chi_kernel: Array | None,
    energy_kernel: Array | None,
    sites: Array | None,
) -> FrameFeatures:
    """Offsets beside kernel features δΦ (N, p), their gradients, and the charge problem."""
    structure, gradients = frame.structure, frame.needs_gradients
    numbers = structure.numbers
    xp = namespace(device.like)
    chi = chi_state = system = site_state = None
    if parameters.environment is not None:
        site_state = states[parameters.environment.feature_map.descriptor]
    if parameters.chi is not None and parameters.charges is not None:
        part = parameters.chi
        chi = asarray_like(part.one_hot(numbers), device.like)
        if part.feature_map is not None and chi_kernel is not None:
            chi_state = states[part.feature_map.descriptor]
            chi = xp.concat([part.delta * chi_kernel, chi], axis=1)
        if parameters.learned is None:
            fixed = parameters.sites(numbers, np.zeros(parameters.size), sites)
            system = parameters.charges.bind(structure, fixed, many_responses=True, device=device)

    energy = positions = strain = None
    if parameters.energy is not None:
        part = parameters.energy
        energy = asarray_like(part.one_hot(numbers).sum(axis=0), device.like)
        if energy_kernel is not None:
            energy = xp.concat([part.delta * xp.sum(energy_kernel, axis=0), energy])
        if gradients:
            positions = zeros((3 * len(structure), part.size), device.like)
            strain = zeros((9, part.size), device.like)
            if part.feature_map is not None:
                weights = full(len(structure), part.delta, device.like)
                state = states[part.feature_map.descriptor]
                pulled = part.feature_map.feature_gradients(state, numbers, weights)
                positions[:, : part.kernel_size] = pulled.positions
                strain[:, : part.kernel_size] = pulled.strain
    if not gradients:
        chi_state = site_state = None
    return FrameFeatures(chi, chi_state, system, energy, positions, strain, sites, site_state, device=device)


class FeatureStore:
    """Features of all training frames, cached within a budget.

    Parameters
    ----------
    frames : sequence of TrainingFrame
        Those of the same elements side by side are the faster the smaller they are: runs of them without gradients are
        evaluated together.
    parameters : Parameters
    budget : int
        Bytes.
    device : Device
        Where features are computed and kept.
    """

    def __init__(
        self,
        frames: Sequence[TrainingFrame],
        parameters: Parameters,
        budget: int = MEMORY_BUDGET,
        device: Device = CPU,
    ) -> None:
        self.frames = frames
        self.parameters = parameters
        self.budget = budget
        self.device = device
        self._cache: dict[int, FrameFeatures] = {}
        self._ahead: dict[int, FrameFeatures] = {}
        self._used = 0

    def __len__(self) -> int:
        return len(self.frames)

    def get(self, i: int) -> FrameFeatures:
        """Features of the i-th frame."""
        if i in self._cache:
            return self._cache[i]
        if i not in self._ahead:
            run = self._run(i)
            found = compute_many([self.frames[j] for j in run], self.parameters, self.device)
            self._ahead = dict(zip(run, found, strict=True))
        features = self._ahead.pop(i)
        if self.budget > self._used:
            size = features.nbytes
            if self._used + size <= self.budget:
                self._cache[i] = features
                self._used += size
        return features

    def _run(self, i: int) -> range:
        """The i-th frame and those after it that are worth evaluating with it."""
        first = self.frames[i]
        stop, atoms = i + 1, len(first.structure)
        if first.needs_gradients:
            return range(i, stop)  # which cost more than the products that would be shared
        for frame in self.frames[stop:]:
            atoms += len(frame.structure)
            if (
                frame.structure.species != first.structure.species
                or frame.needs_gradients
                or stop in self._cache
                or atoms > BATCH_ATOMS
            ):
                break
            stop += 1
        return range(i, stop)


__all__ = [
    "MEMORY_BUDGET",
    "FeatureStore",
    "FrameFeatures",
    "TrainingFrame",
    "compute_features",
    "compute_many",
]
