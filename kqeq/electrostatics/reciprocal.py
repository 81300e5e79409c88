"""Reciprocal-space part of an Ewald sum, through structure factors.

With ρ(G) = Σ_i (q_i + i G·d_i) exp(i G·r_i) the energy is ½ Σ_G w(G) |ρ(G)|² with
w = k_e (4π/V) exp(−G²/4κ²)/G²; G and −G are taken together (w doubled).  The sum runs over chunks of
reciprocal vectors, each a few matrix products; nothing of size (N, N, 3) is built.

Dimensions: N atoms, n unknowns, K reciprocal vectors of a half space, c columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kqeq.backend import asarray_like, chunk_elements, empty, namespace, zeros
from kqeq.constants import COULOMB
from kqeq.electrostatics.lattice import reciprocal_vectors
from kqeq.electrostatics.tensors import AXES
from kqeq.electrostatics.unknowns import Unknowns
from kqeq.typing import Array, FloatArray

_CHUNK_ELEMENTS = 1 << 19
"""Elements of the phase factors of one chunk, at most (4 MB for the cosines, as much for the sines)."""

_CACHE_ELEMENTS = 1 << 22
"""Phase factors are kept for further calls when there are no more elements than this (64 MB in all)."""

_ROWS = 1024
"""Rows of the matrix that are updated at once; only blocks on and below the diagonal are computed."""


@dataclass(frozen=True)
class _Waves:
    """A chunk of reciprocal vectors: G (3, K), weights (K,), cosines and sines of G·r_i, (N, K)."""

    g: Array
    weight: Array
    cosine: Array
    sine: Array


class Reciprocal:
    """Smooth part of the interaction of Gaussian charges and dipoles in a periodic cell.

    Parameters
    ----------
    positions : (N, 3) array
    cell : (3, 3) NumPy array
    kappa, k_cut : float
    dipoles : bool
    """

    def __init__(
        self, positions: Array, cell: FloatArray, *, kappa: float, k_cut: float, dipoles: bool
    ) -> None:
        self._xp = namespace(positions)
        self._unknowns = Unknowns(positions.shape[0], dipoles)
        indices, vectors = reciprocal_vectors(cell, k_cut)
        squares = np.einsum("ka,ka->k", vectors, vectors)
        volume = abs(float(np.linalg.det(cell)))
        weights = 8.0 * np.pi * COULOMB / volume * np.exp(-squares / (4.0 * kappa**2)) / squares
        self._inverse_four_kappa2 = 1.0 / (4.0 * kappa**2)
        self._indices = asarray_like(np.ascontiguousarray(indices.T.astype(np.float64)), positions)
        self._fractional = positions @ asarray_like(np.linalg.inv(cell), positions)
        self._g = asarray_like(np.ascontiguousarray(vectors.T), positions)
        self._weights = asarray_like(weights, positions)
        self._like = positions
        self._kept: list[_Waves] | None = None

    @property
    def vectors(self) -> int:
        """Number of reciprocal vectors K in the half space."""
        return int(self._indices.shape[1])

    def add_half(self, out: Array) -> Array:
        """Add to ``out`` a matrix H, so that H + Hᵀ is the interaction; shape (n, n)."""
        n = self._unknowns.size
        for waves in self._waves():
            rows = self._rows(waves)
            weighted = rows * self._xp.concat([waves.weight, waves.weight])
            for start in range(0, n, _ROWS):
                block = slice(start, min(start + _ROWS, n))
                out[block, :start] += weighted[block, :] @ rows[:start, :].T
                out[block, block] += 0.5 * (weighted[block, :] @ rows[block, :].T)
        return out

    def matvec(self, block: Array) -> Array:
        """Product with a block of shape (n,) or (n, c)."""
        columns = block if block.ndim == 2 else block[:, None]
        result = zeros(columns.shape, block)
        for waves in self._waves():
            real, imaginary = self._density(waves, columns)
            weight = waves.weight[:, None]
            self._back(waves, real * weight, imaginary * weight, result)
        return result if block.ndim == 2 else result[:, 0]

    def gradient(self, left: Array, right: Array) -> Array:
        """∂(leftᵀ A right_c)/∂r for left (n,) and right (n, c), shape (N, 3, c).

        Atom k gets Re Σ_G w i G L_k(G) ρ_right*(G) with L_k = (q_k + i G·d_k) exp(i G·r_k) of the
        left side, and the right side's q_k and d_k times the derivatives of the potential of ``left``.
        """
        xp, layout = self._xp, self._unknowns
        n, columns = right.shape
        left_columns = left[:, None]
        charge, dipole = layout.charges(left), layout.components(left)
        right_charge, right_dipole = layout.charges(right), layout.components(right)
        # (3N × 2K)(2K × n)(n × c): the cheaper of the two orders of multiplication.
        from_matrix = 3 * layout.atoms * n < (n + 3 * layout.atoms) * columns
        matrices = [zeros((layout.atoms, n), right) for _ in AXES] if from_matrix else []
        field = zeros((layout.atoms, 3), right)
        curvature = zeros((layout.atoms, 6), right)
        result = zeros((layout.atoms, 3, columns), right)
        for waves in self._waves():
            cosine, sine, g = waves.cosine, waves.sine, waves.g
            local_real, local_imaginary = cosine * charge[:, None], sine * charge[:, None]
            if dipole is not None:
                along = sum(dipole[axis][:, None] * g[axis, :] for axis in AXES)
                local_real, local_imaginary = local_real - sine * along, local_imaginary + cosine * along
            if from_matrix:
                factors = xp.concat([-local_imaginary, local_real], axis=1)
                rows = self._rows(waves)
                for alpha in AXES:
                    scale = waves.weight * g[alpha, :]
                    matrices[alpha] += (factors * xp.concat([scale, scale])) @ rows.T
            else:
                real, imaginary = self._density(waves, right)
                for alpha in AXES:
                    scale = (waves.weight * g[alpha, :])[:, None]
                    value = local_real @ (imaginary * scale) - local_imaginary @ (real * scale)
                    result[:, alpha, :] += value
            real, imaginary = self._density(waves, left_columns)
            slopes = g.T * waves.weight[:, None]
            field += cosine @ (imaginary * slopes) - sine @ (real * slopes)
            if dipole is not None:
                pairs = [slopes[:, a] * g[b, :] for a in AXES for b in range(a, 3)]
                bends = xp.stack(pairs, axis=1)
                curvature -= cosine @ (real * bends) + sine @ (imaginary * bends)
        position = {pair: k for k, pair in enumerate((a, b) for a in AXES for b in range(a, 3))}
        for alpha in AXES:
            if from_matrix:
                result[:, alpha, :] += matrices[alpha] @ right
            result[:, alpha, :] += field[:, alpha][:, None] * right_charge
            if right_dipole is not None:
                for beta in AXES:
                    value = curvature[:, position[min(alpha, beta), max(alpha, beta)]]
                    result[:, alpha, :] += value[:, None] * right_dipole[beta]
        return result

    def strain(self, left: Array, right: Array) -> Array:
        """∂(leftᵀ A right_c)/∂ε, shape (3, 3, c).

        G·r does not change, ∂G_b/∂ε_ab = −G_a, ∂V/∂ε_ab = V δ_ab, and dipoles keep their Cartesian
        components, so ∂(G·d)/∂ε_ab = −d_a G_b.  Built as nine linear forms in ``right``.
        """
        xp, layout = self._xp, self._unknowns
        dipole = layout.components(left)
        form = zeros((layout.size, 9), right)
        field = zeros((layout.atoms, 3), right)
        for waves in self._waves():
            g, weight = waves.g, waves.weight
            real, imaginary = self._density(waves, left[:, None])
            squares = xp.sum(g * g, axis=0)
            factor = 2.0 * (self._inverse_four_kappa2 + 1.0 / squares)
            reals, imaginaries = [], []
            for a in AXES:
                moved = None
                if dipole is not None:
                    moved = waves.cosine.T @ dipole[a], waves.sine.T @ dipole[a]
                for b in AXES:
                    change = factor * g[a, :] * g[b, :] - (1.0 if a == b else 0.0)
                    value = real[:, 0] * change, imaginary[:, 0] * change
                    if moved is not None:  # −i d_a G_b exp(i G·r)
                        value = value[0] + moved[1] * g[b, :], value[1] - moved[0] * g[b, :]
                    reals.append(value[0] * weight)
                    imaginaries.append(value[1] * weight)
            self._back(waves, xp.stack(reals, axis=1), xp.stack(imaginaries, axis=1), form)
            if dipole is not None:
                slopes = g.T * weight[:, None]
                field += waves.cosine @ (imaginary * slopes) - waves.sine @ (real * slopes)
        if dipole is not None:
            for a in AXES:
                for b in AXES:
                    form[layout.dipole_rows(a), 3 * a + b] -= field[:, b]
        return xp.reshape(form.T @ right, (3, 3, right.shape[1]))

    # The pieces -------------------------------------------------------------------------------

    def _waves(self) -> Iterator[_Waves]:
        """Chunks of reciprocal vectors with their phase factors, kept when there are few."""
        if self._kept is not None:
            yield from self._kept
            return
        atoms = self._unknowns.atoms
        few = atoms * self.vectors <= chunk_elements(self._like, 4, _CACHE_ELEMENTS)
        keep: list[_Waves] | None = [] if few else None
        step = max(16, chunk_elements(self._like, 12, _CHUNK_ELEMENTS) // self._unknowns.size)
        for start in range(0, self.vectors, step):
            part = slice(start, min(start + step, self.vectors))
            cosine, sine = self._phases(part)
            waves = _Waves(self._g[:, part], self._weights[part], cosine, sine)
            if keep is not None:
                keep.append(waves)
            yield waves
        self._kept = keep

    def _phases(self, part: slice) -> tuple[Array, Array]:
        """Cosine and sine of G·r_i = 2π m·s_i (s fractional coordinates), (N, K) each."""
        xp = self._xp
        angles = (2.0 * np.pi) * (self._fractional @ self._indices[:, part])
        return xp.cos(angles), xp.sin(angles)

    def _rows(self, waves: _Waves) -> Array:
        """Real and imaginary parts of ∂ρ/∂y, shape (n, 2K)."""
        xp, layout = self._xp, self._unknowns
        if not layout.dipoles:
            return xp.concat([waves.cosine, waves.sine], axis=1)
        k = waves.weight.shape[0]
        rows = empty((layout.size, 2 * k), waves.cosine)
        rows[: layout.atoms, :k] = waves.cosine
        rows[: layout.atoms, k:] = waves.sine
        for axis in AXES:
            rows[layout.dipole_rows(axis), :k] = -waves.sine * waves.g[axis, :]
            rows[layout.dipole_rows(axis), k:] = waves.cosine * waves.g[axis, :]
        return rows

    def _density(self, waves: _Waves, columns: Array) -> tuple[Array, Array]:
        """Real and imaginary parts of ρ(G) for a block (n, c), each (K, c)."""
        layout = self._unknowns
        charge, dipole = layout.charges(columns), layout.components(columns)
        real, imaginary = waves.cosine.T @ charge, waves.sine.T @ charge
        if dipole is not None:
            for axis in AXES:
                g = waves.g[axis, :][:, None]
                real = real - g * (waves.sine.T @ dipole[axis])
                imaginary = imaginary + g * (waves.cosine.T @ dipole[axis])
        return real, imaginary

    def _back(self, waves: _Waves, real: Array, imaginary: Array, out: Array) -> None:
        """Add (∂ρ/∂y)ᵀ (real, imaginary), shape (n, c), to ``out``."""
        layout = self._unknowns
        out[: layout.atoms, :] += waves.cosine @ real + waves.sine @ imaginary
        if layout.dipoles:
            for axis in AXES:
                g = waves.g[axis, :][:, None]
                out[layout.dipole_rows(axis), :] += waves.cosine @ (imaginary * g) - waves.sine @ (real * g)


__all__ = ["Reciprocal"]
