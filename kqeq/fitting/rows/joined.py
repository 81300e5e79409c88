"""Rows of many molecules with the same atoms at once, for devices that one molecule does not fill.

The rows of a frame (:mod:`kqeq.fitting.rows.blocks`) take thousands of small array operations, each of which costs a
GPU as much as one with a hundred times the work.  Here frames with the same atoms and the same kinds of labels are one
array problem of a few dozen operations: SOAP of all atoms in one list of pairs (:mod:`kqeq.descriptors.joined`), stacks
of matrices for charges (:mod:`kqeq.charges.joined`), and derivatives of features that are kept atom by atom.  With
∂q = −R ∂χ the derivatives of all labels of a molecule with respect to its electronegativities are one matrix W (n, N),

    energy  q,     forces  (G + S) R,     dipole  −rᵀR,     charges  −R,     polarizability  0,

with the change G of the gradient with the charges and S = ∂χ/∂r, and rows are W Φ; those of forces gain −Σ_i q_i ∂Φ_i/∂r.

What cannot be joined (:func:`joins`) goes frame by frame.

Dimensions: B molecules of N atoms, n labels of each, P parameters, p of the energy, M representatives of one element.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby, pairwise
from typing import Literal

import numpy as np

from kqeq.backend import Device, asarray_like, namespace, nbytes, zeros
from kqeq.charges import joined as charges
from kqeq.charges.base import SiteChange
from kqeq.charges.joined import JoinedMolecules, JoinedState, JoinedSystem
from kqeq.descriptors.joined import evaluate_joined
from kqeq.descriptors.joined import joins as descriptor_joins
from kqeq.fitting.least_squares.solver import JacobianKind
from kqeq.fitting.parameters import Parameters, SitePart
from kqeq.fitting.rows.blocks import deviation, target_vector
from kqeq.fitting.rows.features import FeatureStore, TrainingFrame, feature_maps
from kqeq.fitting.rows.voigt import upper_triangles
from kqeq.kernels.feature_map import JoinedFeatures
from kqeq.typing import Array, FloatArray

KINDS = frozenset({"energy", "forces", "dipole", "charges", "polarizability"})
"""Kinds of labels that are known here."""

MOST_ATOMS = 4096
"""Atoms of the molecules that are joined."""

MOST_BYTES = 512 * 2**20
"""Derivatives of their features, and rows, may take this much."""

LARGEST = MOST_BYTES // 4
"""Molecules that take more by themselves are not joined: they fill a device alone."""

Key = tuple[bytes | str, ...]


def joining_keys(frames: Sequence[TrainingFrame], parameters: Parameters, device: Device) -> list[Key | None]:
    """Frames with equal keys may be joined; ``None`` for those that go one by one."""
    if (
        device.is_host
        or parameters.dependence is not None
        or parameters.sites is not None
        or not all(descriptor_joins(m.descriptor) for own in feature_maps(parameters) for m in own)
    ):
        return [None] * len(frames)

    def of(frame: TrainingFrame) -> Key | None:
        structure, kinds = frame.structure, frame.labels.kinds
        if not KINDS.issuperset(kinds) or not charges.joins(parameters.charges, structure):
            return None
        if frame_bytes(frame, parameters) > LARGEST:
            return None
        return (structure.numbers.tobytes(), *kinds)

    return [of(frame) for frame in frames]


def frame_bytes(frame: TrainingFrame, parameters: Parameters) -> int:
    """What a frame takes among others: derivatives of its features, and rows."""
    size = frame.n_labels * parameters.size
    part = parameters.electronegativity
    if frame.needs_gradients and part is not None:
        atoms_of = frame.structure.composition.atoms_of
        for m in part.feature_maps:
            widths = {z: own.stop - own.start for z, own in m.columns.items()}
            size += 3 * len(frame.structure) * sum(len(a) * widths.get(z, 0) for z, a in atoms_of.items())
    return 8 * size


def runs(keys: Sequence[Key | None], frames: Sequence[TrainingFrame], parameters: Parameters) -> list[range]:
    """Neighbours with equal keys; those that are joined in parts of about the same size, within the limits."""
    found: list[range] = []
    start = 0
    for own, group in groupby(keys):
        stop = start + len(list(group))
        parts = 1
        if own is not None:
            atoms, size = len(frames[start].structure), frame_bytes(frames[start], parameters)
            most = max(1, min(MOST_ATOMS // atoms, MOST_BYTES // size))
            parts = -(-(stop - start) // most)
        edges = [start + (stop - start) * part // parts for part in range(parts + 1)]
        found += [range(a, b) for a, b in pairwise(edges)]
        start = stop
    return found


@dataclass(frozen=True, eq=False)
class _Block:
    """Features of the atoms of one element in one kernel of the electronegativities, times the kernel's δ.

    Attributes
    ----------
    columns : slice
        Their parameters.
    places : (n_z, N) array
        1 where an atom of the element is that atom of the molecule.
    values : (B, n_z, M) array
    positions : (B, n_z, 3N, M) array, optional
        Derivatives with respect to positions, where there are forces.
    """

    columns: slice
    places: Array
    values: Array
    positions: Array | None


@dataclass(frozen=True, eq=False)
class JoinedFrames:
    """Frames with the same atoms and kinds of labels, and what does not change while parameters do, on a device.

    Attributes
    ----------
    frames : sequence of TrainingFrame
    spans : dict of str to slice
        Labels of each kind among the n of a frame.
    targets : (B, n) array
    linear : (B, n, p) array, optional
        Derivatives of the labels with respect to the parameters of the energy.
    blocks : tuple of _Block
    offsets : (N, Z) array, optional
        Derivatives of the electronegativities with respect to those of the elements.
    means : (N,) array, optional
        Prior means of the electronegativities.
    molecules : JoinedMolecules, optional
    system : JoinedSystem, optional
        Unless it changes with element parameters that are learned.
    device : Device
    """

    frames: Sequence[TrainingFrame]
    spans: Mapping[str, slice]
    targets: Array
    linear: Array | None
    blocks: tuple[_Block, ...]
    offsets: Array | None
    means: Array | None
    molecules: JoinedMolecules | None
    system: JoinedSystem | None
    device: Device
    _scales: dict[tuple[tuple[str, float], ...], Array] = field(default_factory=dict, repr=False)

    @property
    def nbytes(self) -> int:
        """Memory that keeping this takes, approximately."""
        held = [self.targets, self.linear]
        for block in self.blocks:
            held += [block.values, block.positions]
        if self.system is not None:
            held += [self.system.slopes] + 4 * [self.system.hessian]
        return sum(nbytes(array) or 0 for array in held if array is not None)

    def scales(self, noise: Mapping[str, float]) -> Array:
        """One over the standard deviation of every label, (B, n)."""
        name = tuple(noise.items())
        if name not in self._scales:
            values = np.empty(tuple(self.targets.shape))
            for row, frame in zip(values, self.frames, strict=True):
                for kind, own in self.spans.items():
                    row[own] = 1.0 / deviation(frame, kind, noise)
            self._scales[name] = asarray_like(values, self.device.like)
        return self._scales[name]

    def select(self, members: Sequence[int]) -> JoinedFrames:
        """Some of the frames."""
        index = asarray_like(np.array(members, dtype=np.int64), self.device.like)
        xp = namespace(index)

        def of(array: Array | None) -> Array | None:
            return None if array is None else xp.take(array, index, axis=0)

        return replace(
            self,
            frames=[self.frames[i] for i in members],
            targets=of(self.targets),
            linear=of(self.linear),
            blocks=tuple(
                replace(block, values=of(block.values), positions=of(block.positions))
                for block in self.blocks
            ),
            molecules=None if self.molecules is None else self.molecules.select(index),
            system=None if self.system is None else self.system.select(index),
            _scales={},
        )


def join(frames: Sequence[TrainingFrame], parameters: Parameters, device: Device) -> JoinedFrames:
    """Features of frames with equal keys."""
    first = frames[0]
    numbers = first.structure.numbers
    of_chi, of_energy, _ = feature_maps(parameters)
    structures = [frame.structure for frame in frames]
    states = evaluate_joined([m.descriptor for m in (*of_chi, *of_energy)], structures, device)
    targets = {
        kind: np.stack([target_vector(frame, kind) for frame in frames]) for kind in first.labels.kinds
    }
    edges = np.cumsum([0, *(values.shape[1] for values in targets.values())]).tolist()
    spans = {kind: slice(a, b) for kind, (a, b) in zip(targets, pairwise(edges), strict=True)}
    wanted = np.concatenate(list(targets.values()), axis=1)
    linear = offsets = means = molecules = system = None
    blocks: list[_Block] = []
    part = parameters.short_range
    if part is not None:
        sums: Literal["sums", "none"] = "sums" if "forces" in spans else "none"
        found = [m.joined(states[m.descriptor], numbers, sums) for m in part.feature_maps]
        linear = _linear(part, found, numbers, spans, (len(frames), edges[-1]), device)
        if "energy" in spans:
            wanted[:, spans["energy"]] -= part.mean(numbers).sum()
    part = parameters.electronegativity
    if part is not None and parameters.charges is not None:
        unit = np.eye(len(numbers))
        for kernel in part.kernels:
            own = kernel.feature_map
            for features in own.joined(
                states[own.descriptor], numbers, "atoms" if "forces" in spans else "none"
            ):
                start = kernel.columns.start
                columns = slice(start + features.columns.start, start + features.columns.stop)
                places = asarray_like(unit[features.atoms], device.like)
                positions = None if features.positions is None else kernel.delta * features.positions
                blocks.append(_Block(columns, places, kernel.delta * features.values, positions))
        offsets = asarray_like(part.one_hot(numbers), device.like)
        means = asarray_like(part.mean(numbers), device.like)
        molecules = JoinedMolecules.build(structures, device)
        if parameters.learned is None:
            system = molecules.bind(parameters.site_parameters(numbers, np.zeros(parameters.size), None))
    placed = asarray_like(wanted, device.like)
    return JoinedFrames(
        frames, spans, placed, linear, tuple(blocks), offsets, means, molecules, system, device
    )


class JoiningStore(FeatureStore):
    """Features of all training frames, cached within a budget; of frames that can be joined, together."""

    @cached_property
    def _joined(self) -> dict[int, JoinedFrames]:
        """Those that there was room for, by their first frame."""
        return {}

    @cached_property
    def keys(self) -> list[Key | None]:
        """See :func:`joining_keys`."""
        return joining_keys(self.frames, self.parameters, self.device)

    @cached_property
    def runs(self) -> list[range]:
        """Frames that are worked on together, in order."""
        return runs(self.keys, self.frames, self.parameters)

    def joined(self, run: range) -> JoinedFrames | None:
        """Features of one of :attr:`runs`; ``None`` if its frames go one by one."""
        start = run.start
        if self.keys[start] is None:
            return None
        if start in self._joined:
            return self._joined[start]
        found = join([self.frames[i] for i in run], self.parameters, self.device)
        if self._used + found.nbytes <= self.budget:
            self._joined[start] = found
            self._used += found.nbytes
        return found


def _linear(
    part: SitePart,
    found: Sequence[Sequence[JoinedFeatures]],
    numbers: Array,
    spans: Mapping[str, slice],
    shape: tuple[int, int],
    device: Device,
) -> Array:
    """Derivatives of labels with respect to the parameters of the energy, (B, n, p)."""
    linear = zeros((*shape, part.size), device.like)
    xp = namespace(linear)
    for kernel, elements in zip(part.kernels, found, strict=True):
        start = kernel.columns.start - part.columns.start
        for features in elements:
            columns = slice(start + features.columns.start, start + features.columns.stop)
            if "energy" in spans:
                values = kernel.delta * xp.sum(features.values, axis=1)
                linear[:, spans["energy"], columns] = values[:, None, :]
            if features.positions is not None:
                linear[:, spans["forces"], columns] = -kernel.delta * features.positions
    if "energy" in spans:
        counts = asarray_like(part.one_hot(numbers).sum(axis=0), device.like)
        linear[:, spans["energy"], part.kernel_size :] = zeros(shape[0], linear)[:, None, None] + counts
    return linear


def joined_rows(
    joined: JoinedFrames,
    parameters: Parameters,
    u: FloatArray,
    noise: Mapping[str, float],
    *,
    jacobian: JacobianKind,
    copy: Array,
) -> tuple[Array, Array | None]:
    """Weighted residuals and Jacobians of all frames, one after the other, as ``frame_rows`` gives them for each.

    Parameters
    ----------
    joined : JoinedFrames
    parameters : Parameters
    u : (P,) array
    noise : mapping of str to float
    jacobian : {"none", "linear", "full"}
    copy : (P,) array
        ``u`` on the device.

    Returns
    -------
    (B n,) array, (B n, P) array or (B n, p) array or None
    """
    xp = namespace(copy)
    scales = joined.scales(noise)
    count, labels = (int(size) for size in scales.shape)
    residual = joined.targets
    part = parameters.short_range
    if part is not None and joined.linear is not None:
        residual = residual - _apply(joined.linear, copy[part.columns])
    line = None
    if joined.molecules is not None:
        line = _Charged(joined, parameters, u, copy)
        residual = residual - line.values()
    residual = xp.reshape(scales * residual, (-1,))
    linear_size = 0 if part is None else part.size
    rows = None
    if jacobian == "linear" or (jacobian == "full" and linear_size == parameters.size):
        assert joined.linear is not None
        rows = scales[:, :, None] * joined.linear
    elif jacobian == "full":
        rows = zeros((count, labels, parameters.size), scales)
        if part is not None and joined.linear is not None:
            rows[:, :, part.columns] = scales[:, :, None] * joined.linear
        if line is not None:
            line.write(rows, scales)
    return residual, None if rows is None else xp.reshape(rows, (count * labels, -1))


class _Charged:
    """Frames at the current parameters: charges, and how labels follow them."""

    def __init__(self, joined: JoinedFrames, parameters: Parameters, u: FloatArray, copy: Array) -> None:
        part = parameters.electronegativity
        assert part is not None and joined.molecules is not None
        assert joined.means is not None and joined.offsets is not None
        self.joined, self.part, self.parameters, self.u = joined, part, parameters, u
        self.numbers = joined.frames[0].structure.numbers
        chi = joined.means + joined.offsets @ copy[part.columns][part.kernel_size :]
        chi = chi[None, :] + zeros((len(joined.frames), 1), chi)
        for block in joined.blocks:
            chi = chi + _apply(block.values, copy[block.columns]) @ block.places
        system = joined.system
        if system is None:
            system = joined.molecules.bind(parameters.site_parameters(self.numbers, u, None))
        self.system = system
        self.state: JoinedState = self.system.solve(chi)
        self.slopes: Array | None = None
        """S = ∂χ_i/∂r, (B, 3N, N)."""
        if "forces" in joined.spans:
            for block in joined.blocks:
                assert block.positions is not None
                # (B, 3N, n_z)
                own = namespace(copy).matrix_transpose(_apply(block.positions, copy[block.columns]))
                own = _mixed(own, block.places)
                self.slopes = own if self.slopes is None else self.slopes + own

    def values(self) -> Array:
        """What charges contribute to the labels, (B, n)."""
        state = self.state
        xp = namespace(state.charges)
        parts = []
        for kind in self.joined.spans:
            if kind == "energy":
                parts.append(state.energy[:, None])
            elif kind == "forces":
                gradient = state.gradient
                if self.slopes is not None:
                    gradient = gradient + (self.slopes @ state.charges[:, :, None])[:, :, 0]
                parts.append(-gradient)
            elif kind == "polarizability":
                parts.append(upper_triangles(self.system.polarizability()))
            else:
                parts.append(state.dipole if kind == "dipole" else state.charges)
        return xp.concat(parts, axis=1)

    def write(self, rows: Array, scales: Array) -> None:
        """Write the derivatives with respect to the parameters of charges into (B, n, P) rows."""
        part, spans = self.part, self.joined.spans
        weights = self._by_site() * scales[:, :, None]
        for block in self.joined.blocks:
            rows[:, :, block.columns] = _mixed(weights, block.places.T) @ block.values
            if block.positions is not None and "forces" in spans:
                rows[:, spans["forces"], block.columns] += self._moved(block, scales)
        assert self.joined.offsets is not None
        stop = part.columns.stop
        rows[:, :, stop - part.offsets_size : stop] = _mixed(weights, self.joined.offsets)
        directions = self.parameters.site_directions(self.system.sites, self.numbers, self.u, None)
        if directions is not None:
            block = self._by_parameter(directions.change)
            rows[:, :, self.parameters.site_columns] = block * scales[:, :, None]

    @cached_property
    def _follow(self) -> Array:
        """Change of the gradient with the charges, (B, 3N, N)."""
        follow = self.state.gradient_response
        return follow if self.slopes is None else follow + self.slopes

    def _by_site(self) -> Array:
        """W, (B, n, N)."""
        state, response = self.state, self.system.response
        xp = namespace(response)
        parts = []
        for kind in self.joined.spans:
            if kind == "energy":
                parts.append(state.charges[:, None, :])
            elif kind == "forces":
                parts.append(self._follow @ response)
            elif kind == "dipole":
                parts.append(-(xp.matrix_transpose(self.system.molecules.positions) @ response))
            elif kind == "polarizability":
                parts.append(zeros((int(response.shape[0]), 6, int(response.shape[1])), response))
            else:
                parts.append(-response)
        return xp.concat(parts, axis=1)

    def _by_parameter(self, change: SiteChange) -> Array:
        """Derivatives with respect to c element parameters, (B, n, c)."""
        state, response = self.state, self.state.site_response(change)
        xp = namespace(response)
        parts = []
        for kind in self.joined.spans:
            if kind == "energy":
                parts.append(state.site_slopes(change)[:, None, :])
            elif kind == "forces":
                moved, own = self._follow @ response, state.gradient_change(change)
                parts.append(-moved if own is None else -(moved + own))
            elif kind == "dipole":
                parts.append(xp.matrix_transpose(self.system.molecules.positions) @ response)
            elif kind == "polarizability":
                parts.append(upper_triangles(self.system.polarizability_response(change)))
            else:
                parts.append(response)
        return xp.concat(parts, axis=1)

    def _moved(self, block: _Block, scales: Array) -> Array:
        """−Σ_i q_i ∂Φ_i/∂r of the atoms of a block, scaled, (B, 3N, M)."""
        assert block.positions is not None
        xp = namespace(scales)
        count, own, size, features = (int(n) for n in block.positions.shape)
        # one scale for all forces of a frame
        scale = scales[:, self.joined.spans["forces"]][:, :1]
        weights = -scale * (self.state.charges @ block.places.T)
        flat = xp.reshape(block.positions, (count, own, size * features))
        return xp.reshape(weights[:, None, :] @ flat, (count, size, features))


def _apply(features: Array, weights: Array) -> Array:
    """(..., M) features times (M,) weights, in one product."""
    xp = namespace(features)
    return xp.reshape(xp.reshape(features, (-1, int(weights.shape[0]))) @ weights, features.shape[:-1])


def _mixed(stack: Array, matrix: Array) -> Array:
    """(B, n, m) arrays times one (m, k) matrix, in one product."""
    xp = namespace(stack)
    count, rows, inner = (int(size) for size in stack.shape)
    return xp.reshape(xp.reshape(stack, (-1, inner)) @ matrix, (count, rows, -1))


__all__ = ["JoinedFrames", "JoiningStore", "join", "joined_rows", "joining_keys", "runs"]
