"""Terms of a lattice sum that do not depend on distances: the neutralising background, and the slab's mean field.

In three dimensions the average of the potential over the cell is set to zero,
−π/(V κ²) + 2π γ_ij²/V.  For a slab, periodic in two directions, the layers' mean field is corrected
(Yeh and Berkowitz, J. Chem. Phys. 111, 3155 (1999); Ballenegger, Arnold, Cerdà, J. Chem. Phys. 131,
094107 (2009) for charged slabs) by (4π/V)[−½ (z_i − z_j)² − ½ γ_ij² − L²/12], whose γ² term cancels
the one above.  All of it is a product of a few vectors.

Dimensions: N atoms, n unknowns, c columns.
"""

from __future__ import annotations

import numpy as np

from kqeq.backend import asarray_like, eye, namespace, to_numpy, zeros
from kqeq.constants import COULOMB
from kqeq.electrostatics.tensors import AXES
from kqeq.electrostatics.unknowns import Unknowns
from kqeq.typing import Array, FloatArray


class Background:
    """Neutralising background in three dimensions (``open_axis`` None) or the correction for a slab.

    Parameters
    ----------
    positions : (N, 3) array
    sigma : (N,) array
    cell : (3, 3) NumPy array
    kappa : float
    dipoles : bool
    open_axis : int or None
    """

    def __init__(
        self,
        positions: Array,
        sigma: Array,
        cell: FloatArray,
        *,
        kappa: float,
        dipoles: bool,
        open_axis: int | None,
    ) -> None:
        self._xp = namespace(positions, sigma)
        self._unknowns = layout = Unknowns(positions.shape[0], dipoles)
        self._volume = volume = abs(float(np.linalg.det(cell)))
        self._constant = -np.pi * COULOMB / (volume * kappa**2)
        self._sigma = sigma
        self._slab = open_axis is not None
        xp = self._xp
        ones = zeros(layout.size, positions)
        ones[: layout.atoms] = 1.0
        self._ones = ones
        if open_axis is None:
            # ½ of γ_ij² 2π/V with each of the two widths: c (s_i + s_j), s = σ²
            self._profile = xp.zeros_like(ones)
            self._profile[: layout.atoms] = sigma * sigma
            self._mixed = 2.0 * np.pi * COULOMB / volume
            return
        inverse = np.linalg.inv(cell)[:, open_axis]
        self._height = height = 1.0 / float(np.linalg.norm(inverse))
        self._normal = normal = inverse * height
        z = to_numpy(positions) @ normal
        z = z - 0.5 * (z.max() + z.min())
        # −½(z_i − z_j)² = z_i z_j − ½ z_i² − ½ z_j²; dipoles get the derivatives
        linear = np.zeros(layout.size)
        square = np.zeros(layout.size)
        linear[: layout.atoms], square[: layout.atoms] = z, z * z
        if dipoles:
            for axis in AXES:
                linear[layout.dipole_rows(axis)] = normal[axis]
                square[layout.dipole_rows(axis)] = 2.0 * z * normal[axis]
        self._field = 4.0 * np.pi * COULOMB / volume
        self._mixed = -0.5 * self._field
        self._linear = asarray_like(linear, positions)
        self._profile = asarray_like(square, positions)
        self._constant -= self._field * height**2 / 12.0

    def add_half(self, out: Array) -> Array:
        """Add to ``out`` a matrix H, so that H + Hᵀ is the interaction; shape (n, n)."""
        half = 0.5 * self._constant * self._ones + self._mixed * self._profile
        n, step = self._unknowns.size, 512
        for start in range(0, n, step):
            block = slice(start, min(start + step, n))
            out[block, :] += self._ones[block, None] * half[None, :]
            if self._slab:
                out[block, :] += (0.5 * self._field) * self._linear[block, None] * self._linear[None, :]
        return out

    def matvec(self, block: Array) -> Array:
        """Product with a block of shape (n,) or (n, c)."""
        y = block if block.ndim == 2 else block[:, None]
        total, profile = self._ones @ y, self._profile @ y
        result = self._ones[:, None] * (self._constant * total + self._mixed * profile)[None, :]
        result = result + (self._mixed * self._profile)[:, None] * total[None, :]
        if self._slab:
            result = result + self._field * self._linear[:, None] * (self._linear @ y)[None, :]
        return result if block.ndim == 2 else result[:, 0]

    def width_derivative(self, vector: Array, dsigma: Array) -> Array:
        """(Σ_i dσ_i ∂A/∂σ_i) @ vector, shape (n,)."""
        if self._slab:
            return self._xp.zeros_like(vector)
        layout = self._unknowns
        change = self._xp.zeros_like(vector)
        change[: layout.atoms] = (2.0 * self._mixed) * self._sigma * dsigma
        return self._ones * (change @ vector) + change * (self._ones @ vector)

    def gradient(self, left: Array, right: Array) -> Array:
        """∂(leftᵀ A right_c)/∂r for left (n,) and right (n, c), shape (N, 3, c)."""
        layout = self._unknowns
        if not self._slab:
            return zeros((layout.atoms, 3, right.shape[1]), right)
        z = self._linear[: layout.atoms]
        # derivative with respect to z_k: of Z = Σ (q z + d_z) it is q_k, of Σ (q z² + 2 z d_z) it is 2 (q z + d_z)_k
        own_left, own_right = layout.charges(left), layout.charges(right)
        bent_left, bent_right = 2.0 * own_left * z, 2.0 * own_right * z[:, None]
        left_dipole, right_dipole = layout.components(left), layout.components(right)
        if left_dipole is not None and right_dipole is not None:
            for axis in AXES:
                bent_left = bent_left + left_dipole[axis] * (2.0 * float(self._normal[axis]))
                bent_right = bent_right + right_dipole[axis] * (2.0 * float(self._normal[axis]))
        along = self._field * (
            own_left[:, None] * (self._linear @ right)[None, :] + own_right * (self._linear @ left)
        )
        along = along + self._mixed * (
            bent_left[:, None] * (self._ones @ right)[None, :] + bent_right * (self._ones @ left)
        )
        return along[:, None, :] * asarray_like(self._normal, right)[None, :, None]

    def strain(self, left: Array, right: Array) -> Array:
        """∂(leftᵀ A right_c)/∂ε, shape (3, 3, c).

        Everything goes with 1/V.  For the slab, heights scale with L: z/L does not change, ∂L²/∂ε_ab =
        2 L² n_a n_b, and for a dipole of fixed components ∂(n·d/L)/∂ε_ab = −d_a n_b/L.
        """
        identity = eye(3, right)
        value = left @ self.matvec(right)
        result = -identity[:, :, None] * value[None, None, :]
        if not self._slab:
            return result
        normal = asarray_like(self._normal, right)
        # every term but the background −π/(V κ²) carries L²
        constant = self._constant + self._field * self._height**2 / 12.0
        scaled = value - constant * (self._ones @ left) * (self._ones @ right)
        result = result + 2.0 * (normal[:, None] * normal[None, :])[:, :, None] * scaled[None, None, :]
        return result + self._dipole_strain(left, right) if self._unknowns.dipoles else result

    def _dipole_strain(self, left: Array, right: Array) -> Array:
        """The part of the strain derivative of a slab that comes from dipoles of fixed components."""
        xp, layout = self._xp, self._unknowns
        z = self._linear[: layout.atoms]
        normal = asarray_like(self._normal, right)
        left_dipole, right_dipole = layout.components(left), layout.components(right)
        assert left_dipole is not None and right_dipole is not None  # only called with dipoles
        rows = []
        for a in AXES:
            plain_left, plain_right = xp.sum(left_dipole[a]), xp.sum(right_dipole[a], axis=0)
            bent_left, bent_right = 2.0 * (z @ left_dipole[a]), 2.0 * (z @ right_dipole[a])
            change = self._field * (plain_left * (self._linear @ right) + plain_right * (self._linear @ left))
            change = change + self._mixed * (
                bent_left * (self._ones @ right) + bent_right * (self._ones @ left)
            )
            rows.append(-change[None, :] * normal[:, None])
        return xp.stack(rows, axis=0)


__all__ = ["Background"]
