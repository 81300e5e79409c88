"""Cardinal B-splines on a mesh: weights, spreading charges, interpolating potentials.

exp(2πi m u/M) ≈ b(m) Σ_k M_p(u − k) exp(2πi m k/M) with b(m) = exp(2πi (p−1) m/M) / Σ_k M_p(k+1) exp(2πi m k/M)
(Essmann, Perera, Berkowitz, Darden, Lee, Pedersen, J. Chem. Phys. 103, 8577 (1995)).

Dimensions: N atoms, p points of a spline along each axis, mesh (M1, M2, M3).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from kqeq.backend import arange, chunk_elements, empty, index_add, is_numpy, namespace, threads, zeros
from kqeq.typing import Array, FloatArray, IntArray

DERIVATIVES = (
    (0, 0, 0),
    (1, 0, 0),
    (0, 1, 0),
    (0, 0, 1),
    (2, 0, 0),
    (1, 1, 0),
    (1, 0, 1),
    (0, 2, 0),
    (0, 1, 1),
    (0, 0, 2),
)
"""What the columns of interpolated potentials are: orders of differentiation along the mesh axes."""

_ELEMENTS = 1 << 20
"""Mesh points handled at once where there are no compiled loops."""

_LAYERS = 2
"""Meshes that are spread on in parallel; fixed, so that results do not depend on the number of threads."""

_SMALLEST_THREADED = 500_000
"""Mesh points of all atoms below which threads cost more than they gain."""

_BLOCK = 8
"""Edge of the blocks of mesh points in whose order atoms are visited."""


def bspline(t: Array, order: int) -> list[Array]:
    """M_p(t), M_p(t + 1) … M_p(t + p − 1) for 0 ≤ t < 1, p = ``order`` ≥ 1; arrays of the shape of t."""
    xp = namespace(t)
    zero = xp.zeros_like(t)
    values = [xp.ones_like(t)]
    for n in range(2, order + 1):
        below = [*values, zero]
        above = [zero, *values]
        values = [((t + k) * below[k] + (n - k - t) * above[k]) * (1.0 / (n - 1)) for k in range(n)]
    return values


def bspline_weights(t: Array, order: int, derivatives: int) -> Array:
    """Splines and derivatives of 0 ≤ t < 1, shape (..., derivatives + 1, p).

    M_p′(x) = M_{p−1}(x) − M_{p−1}(x − 1), applied repeatedly.
    """
    xp = namespace(t)
    zero = xp.zeros_like(t)
    rows = []
    for n in range(derivatives + 1):
        values = bspline(t, order - n)
        for _ in range(n):
            values = [here - before for here, before in zip([*values, zero], [zero, *values], strict=True)]
        rows.append(xp.stack(values, axis=-1))
    return xp.stack(rows, axis=-2)


def squared_moduli(size: int, order: int) -> FloatArray:
    """|b(m)|² for the ``size`` frequencies of one axis, zero at the Nyquist frequency of an even mesh.

    The Nyquist wave stands for G and −G at once, which a skewed cell does not make equally long.
    """
    values = np.stack(bspline(np.zeros(()), order))
    phases = np.exp(2j * np.pi * np.outer(np.arange(size), np.arange(order - 1)) / size)
    result: FloatArray = 1.0 / np.abs(phases @ values[1:]) ** 2
    if size % 2 == 0:
        result[size // 2] = 0.0
    return result


class MeshPoints:
    """Where atoms are on a periodic mesh, and the weights with which they act on it.

    Parameters
    ----------
    places : (N, 3) array
        Coordinates in units of the mesh spacing.
    shape : tuple of three
        Mesh.
    order : int
        p.
    derivatives : int
        Highest order of differentiation (1, or 2 with dipoles).
    """

    def __init__(self, places: Array, shape: tuple[int, int, int], order: int, derivatives: int) -> None:
        xp = self._xp = namespace(places)
        self.shape = shape
        whole = xp.floor(places)
        first = [xp.astype(whole[:, axis], xp.int64) % shape[axis] for axis in range(3)]
        # block by block of the mesh, so that the points of successive atoms are still in cache
        blocks = [first[axis] // _BLOCK for axis in range(3)]
        counts = [-(-shape[axis] // _BLOCK) for axis in range(3)]
        self._sorted = xp.argsort((blocks[0] * counts[1] + blocks[1]) * counts[2] + blocks[2])
        self._restored = xp.argsort(self._sorted)
        self._first = xp.take(xp.stack(first, axis=1), self._sorted, axis=0)
        # (N, 3, derivatives + 1, p)
        self._weights = bspline_weights(xp.take(places - whole, self._sorted, axis=0), order, derivatives)

    def spread(self, values: Array) -> Array:
        """Mesh of charges (N, 1), or charges and dipoles in mesh spacings (N, 4)."""
        xp = self._xp
        values = xp.take(values, self._sorted, axis=0)
        if is_numpy(values):
            from kqeq.electrostatics import mesh_kernels

            m1, m2, m3 = self.shape
            p = self._weights.shape[3]
            first, weights = self._upwards
            values = np.ascontiguousarray(values)
            layers = np.zeros((self._layers, m1, m2, m3 + p))

            def put(layer: int, begin: int, end: int) -> None:
                mesh_kernels.spread(begin, end, first, weights, values, layers[layer])

            threads.run_parts(put, self._work, self._layers, _SMALLEST_THREADED)
            mesh = layers[0] if self._layers == 1 else layers.sum(axis=0)
            whole = mesh[:, :, :m3]
            for begin in range(m3, m3 + p, m3):  # a spline may be longer than the axis
                beyond = mesh[:, :, begin : begin + m3]
                whole[:, :, : beyond.shape[2]] += beyond
            return np.ascontiguousarray(whole)
        flat = zeros(self.shape[0] * self.shape[1] * self.shape[2], values)
        for part in self._parts():
            index = xp.reshape(self._index(part), (-1,))
            total: Array = 0.0
            for column in range(values.shape[1]):
                total = total + self._product(part, DERIVATIVES[column]) * values[part, column][:, None]
            flat = index_add(flat, index, xp.reshape(total, (-1,)))
        return xp.reshape(flat, self.shape)

    def gather(self, mesh: Array, columns: int) -> Array:
        """Interpolated mesh and derivatives along the mesh axes, (N, columns), as in ``DERIVATIVES``."""
        xp = self._xp
        atoms = self._first.shape[0]
        if is_numpy(mesh):
            from kqeq.electrostatics import mesh_kernels

            out = np.empty((atoms, columns))
            first, weights = self._upwards
            longer = np.concatenate([mesh, *self._repeated(mesh)], axis=2)

            def take(begin: int, end: int) -> None:
                mesh_kernels.gather(begin, end, first, weights, longer, out)

            threads.run(take, self._work, _SMALLEST_THREADED)
            return out[self._restored]
        flat = xp.reshape(mesh, (-1,))
        out = empty((atoms, columns), mesh)
        for part in self._parts():
            index = self._index(part)
            values = xp.reshape(xp.take(flat, xp.reshape(index, (-1,))), index.shape)
            for column in range(columns):
                out[part, column] = xp.sum(values * self._product(part, DERIVATIVES[column]), axis=1)
        return xp.take(out, self._restored, axis=0)

    @cached_property
    def _upwards(self) -> tuple[IntArray, FloatArray]:
        """Points and weights as the compiled loops want them: along the third axis from the lowest point upwards."""
        p = self._weights.shape[3]
        first, weights = self._first.copy(), self._weights.copy()
        first[:, 2] = (first[:, 2] - (p - 1)) % self.shape[2]
        weights[:, 2] = weights[:, 2, :, ::-1]
        return first, np.ascontiguousarray(weights)

    def _repeated(self, mesh: FloatArray) -> list[FloatArray]:
        """The first p points along the third axis."""
        p, m3 = self._weights.shape[3], self.shape[2]
        return [mesh[:, :, : min(m3, p - done)] for done in range(0, p, m3)]

    @property
    def _work(self) -> IntArray:
        """Mesh points touched by the atoms, cumulative."""
        return np.arange(self._first.shape[0] + 1, dtype=np.int64) * int(self._weights.shape[3]) ** 3

    @property
    def _layers(self) -> int:
        """Meshes that charges are spread on before they are added: as many as may be spread at a time."""
        return _LAYERS if self._work[-1] >= _SMALLEST_THREADED else 1

    def _parts(self) -> list[slice]:
        """Slices of atoms whose points fit into the memory for temporaries."""
        atoms, points = self._first.shape[0], self._weights.shape[3] ** 3
        step = max(1, chunk_elements(self._weights, 8, _ELEMENTS) // points)
        return [slice(start, min(start + step, atoms)) for start in range(0, atoms, step)]

    def _index(self, part: slice) -> Array:
        """Flat mesh indices of the points of some atoms, (b, p³)."""
        xp = self._xp
        steps = arange(0, int(self._weights.shape[3]), self._first)
        places = [(self._first[part, axis][:, None] - steps[None, :]) % self.shape[axis] for axis in range(3)]
        rows = places[0][:, :, None] * self.shape[1] + places[1][:, None, :]
        index = rows[:, :, :, None] * self.shape[2] + places[2][:, None, None, :]
        return xp.reshape(index, (index.shape[0], -1))

    def _product(self, part: slice, derivative: tuple[int, int, int]) -> Array:
        """Weights of the points of some atoms, (b, p³)."""
        x, y, z = (self._weights[part, axis, derivative[axis], :] for axis in range(3))
        weights = x[:, :, None, None] * y[:, None, :, None] * z[:, None, None, :]
        return self._xp.reshape(weights, (weights.shape[0], -1))


def second_derivative_column(a: int, b: int) -> int:
    """Column of an interpolated potential that holds the second derivative along mesh axes a and b."""
    wanted = tuple(int(axis == a) + int(axis == b) for axis in range(3))
    return DERIVATIVES.index(wanted)


__all__ = [
    "DERIVATIVES",
    "MeshPoints",
    "bspline",
    "bspline_weights",
    "second_derivative_column",
    "squared_moduli",
]
