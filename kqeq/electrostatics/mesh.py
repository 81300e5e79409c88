"""Smooth particle-mesh Ewald: electrostatics of large systems without an N×N matrix.

The smooth part of an Ewald sum, ½ Σ_G w(G) |ρ(G)|², is evaluated with B-splines and fast Fourier
transforms (Essmann et al., J. Chem. Phys. 103, 8577 (1995)); the real-space part is a sparse matrix over
pairs within a fixed cutoff.  The cost grows as N log N.  Gradient and strain derivative are the exact
derivatives of the product with the matrix, so energies and forces are consistent whatever the accuracy.

Open boundaries use the same machinery in a cell so large that a Coulomb interaction truncated at R, of
Fourier transform 4π (1 − cos GR)/G², acts between all atoms and none of their images (Rozzi et al.,
Phys. Rev. B 73, 205119 (2006); Vico, Greengard, Ferrando, J. Comput. Phys. 323, 191 (2016)).

Dimensions: N atoms, n unknowns, c columns, mesh (M1, M2, M3).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.fft import next_fast_len

from kqeq.backend import asarray_like, empty, irfftn, is_numpy, namespace, place, rfftn, to_float
from kqeq.constants import COULOMB
from kqeq.electrostatics.background import Background
from kqeq.electrostatics.ewald import LatticeSum
from kqeq.electrostatics.host import real_space
from kqeq.electrostatics.mesh_plan import DEFAULT_ACCURACY, MeshParameters, plan_mesh
from kqeq.electrostatics.realspace import RealSpace
from kqeq.electrostatics.splines import MeshPoints, second_derivative_column, squared_moduli
from kqeq.electrostatics.tensors import AXES
from kqeq.electrostatics.unknowns import Unknowns, checked_positions, checked_sigma, full_diagonal
from kqeq.errors import UnsupportedError
from kqeq.frames.structures import Structure
from kqeq.typing import Array, BoolArray, FloatArray

_COARSE_ORDER = 4
"""Points of the splines of the coarser mesh along each axis."""


_KEPT_INFLUENCES = 6
"""Meshes whose interaction of waves is kept."""

_influences: dict[tuple[object, ...], Array] = {}


class Mesh:
    """Smooth part of the interaction of Gaussian charges and dipoles, on a mesh.

    Parameters
    ----------
    positions : (N, 3) array
    cell : (3, 3) NumPy array
    parameters : MeshParameters
    dipoles : bool
    reach : float, optional
        Distance at which the Coulomb interaction is truncated (open boundaries), Å.
    finer : bool
        Whether there is a coarser mesh, for preconditioning.
    """

    def __init__(
        self,
        positions: Array,
        cell: FloatArray,
        parameters: MeshParameters,
        *,
        dipoles: bool,
        reach: float | None = None,
        finer: bool = True,
    ) -> None:
        self._positions, self._cell, self._reach, self._finer = positions, cell, reach, finer
        self._xp = namespace(positions)
        self._unknowns = Unknowns(positions.shape[0], dipoles)
        self._shape = shape = parameters.shape
        self._kappa = parameters.kappa
        self._order = parameters.order
        self._like = positions
        inverse = np.linalg.inv(cell)
        self._reciprocal = 2.0 * np.pi * inverse.T
        # ∂u_a/∂r_α with u in mesh spacings
        self._jacobian = asarray_like(inverse * np.array(shape), positions)
        self._points = MeshPoints(
            positions @ self._jacobian, shape, parameters.order, derivatives=2 if dipoles else 1
        )
        self._volume = abs(float(np.linalg.det(cell)))
        self._last: tuple[Array, Array] | None = None
        key = (cell.tobytes(), shape, parameters.kappa, parameters.order, reach, place(positions))
        if key not in _influences:
            while len(_influences) >= _KEPT_INFLUENCES:
                _influences.pop(next(iter(_influences)), None)
            _influences[key] = self._make_influence()
        self._influence = _influences[key]

    def matvec(self, block: Array) -> Array:
        """Product with a block of shape (n,) or (n, c), one column after the other."""
        if block.ndim == 1:
            return self._product(block)
        return self._xp.stack([self._product(block[:, k]) for k in range(block.shape[1])], axis=1)

    def gradient(self, left: Array, right: Array) -> Array:
        """∂(leftᵀ A right_c)/∂r for left (n,) and right (n, c), shape (N, 3, c)."""
        xp = self._xp
        left_slopes = self._slopes(self._waves(left))
        columns = []
        for k in range(right.shape[1]):
            column = right[:, k]
            if bool(xp.all(column == left)):
                columns.append(2.0 * self._act(left, left_slopes))
            else:
                other = self._slopes(self._waves(column))
                columns.append(self._act(left, other) + self._act(column, left_slopes))
        return xp.stack(columns, axis=2)

    def strain(self, left: Array, right: Array) -> Array:
        """∂(leftᵀ A right_c)/∂ε, shape (3, 3, c), of a periodic mesh that is strained with the cell."""
        xp, layout = self._xp, self._unknowns
        left_waves = self._waves(left)
        squares = self._squared_vectors()
        squares[0, 0, 0] = 1.0
        # waves of the last axis stand for G and −G, but for the first; at the Nyquist frequency the influence is zero
        count = np.full(self._shape[2] // 2 + 1, 2.0)
        count[0] = 1.0
        scale = self._influence * asarray_like(count / math.prod(self._shape), self._like)
        result = empty((3, 3, right.shape[1]), right)
        components = [self._component(axis) for axis in AXES]
        left_field = self._field(left_waves) if layout.dipoles else None
        for k in range(right.shape[1]):
            waves = self._waves(right[:, k])
            density = scale * (xp.real(left_waves) * xp.real(waves) + xp.imag(left_waves) * xp.imag(waves))
            derivative = density * (2.0 / squares + 0.5 / self._kappa**2)
            total = xp.sum(density)
            for a in AXES:
                along = derivative * components[a]
                for b in range(a, 3):
                    value = xp.sum(along * components[b])
                    result[a, b, k] = value - total if a == b else value
                    result[b, a, k] = result[a, b, k]
            if left_field is not None:
                right_field = self._field(waves)
                for a in AXES:
                    left_dipole, right_dipole = left[layout.dipole_rows(a)], right[layout.dipole_rows(a), k]
                    result[a, :, k] -= left_dipole @ right_field + right_dipole @ left_field
        return result

    def preconditioner(self, diagonal: Array) -> Callable[[Array], Array]:
        """Approximate inverse of diag(D) + S Θ Sᵀ, symmetric positive definite by construction.

        Where atoms fill space evenly, waves are nearly eigenvectors of D^−½ S Θ Sᵀ D^−½ with eigenvalues
        ρ(G) Θ(G), ρ = Σ 1/D per mesh point (a dipole adds G²/D).  Only long waves matter: a coarser mesh with shorter
        splines serves them.  The inverse square root of one plus that
        operator, 1 − [1 − (1 + ρΘ)^−½], applied on both sides, turns all eigenvalues into ones.  In matter
        of varying density ρ is its mean where the atoms are; the result is approximate but still symmetric.
        """
        if self._finer:
            return self._coarser().preconditioner(diagonal)
        xp, layout = self._xp, self._unknowns
        squares = self._squared_vectors()
        softness = 1.0 / layout.charges(diagonal)
        waves = rfftn(self._points.spread(softness[:, None])) * xp.exp(squares * (-1.0 / self._kappa**2))
        spread = irfftn(waves, self._shape)
        density: Array = to_float(xp.sum(spread * spread)) / to_float(xp.sum(spread))
        if layout.dipoles:
            ratio = to_float(xp.sum(1.0 / diagonal[layout.atoms :]) / xp.sum(softness)) / 3.0
            density = density * (1.0 + ratio * squares)
        moduli = self._moduli()
        # at Nyquist frequencies both the moduli and the influence are zero
        screened = density * self._influence / xp.where(moduli > 0.0, moduli, xp.ones_like(moduli))
        filtered = (1.0 - 1.0 / xp.sqrt(1.0 + screened)) / density * moduli
        root = 1.0 / xp.sqrt(diagonal)

        # keeps waves whose eigenvalue was misjudged from vanishing; of the size of the smallest one
        floor = 1.0 / (1.0 + to_float(xp.max(screened)))

        def apply(vector: Array) -> Array:
            start = root * vector
            scaled = start
            for _ in range(2):
                scaled = scaled - root * self._product(root * scaled, filtered)
            return root * (scaled + floor * start)

        return apply

    # The pieces -------------------------------------------------------------------------------

    def _coarser(self) -> Mesh:
        """A mesh of about half the points along each axis, with short splines."""
        shape = tuple(int(next_fast_len(max(8, -(-points // 2)), real=True)) for points in self._shape)
        plan = MeshParameters(self._kappa, 0.0, _COARSE_ORDER, (shape[0], shape[1], shape[2]))
        return Mesh(
            self._positions,
            self._cell,
            plan,
            dipoles=self._unknowns.dipoles,
            reach=self._reach,
            finer=False,
        )

    def _make_influence(self) -> Array:
        """The interaction of waves on the mesh; the same along a trajectory in one cell."""
        xp, reach = self._xp, self._reach
        squares = self._squared_vectors()
        squares[0, 0, 0] = 1.0
        factor = 4.0 * np.pi * COULOMB * math.prod(self._shape) / self._volume
        influence = xp.exp(squares * (-0.25 / self._kappa**2)) * (factor / squares)
        if reach is None:
            influence[0, 0, 0] = 0.0
        else:
            influence *= 1.0 - xp.cos(xp.sqrt(squares) * reach)
            influence[0, 0, 0] = 0.5 * factor * reach**2
        influence *= self._moduli()
        return influence

    def _component(self, axis: int) -> Array:
        """Cartesian component of the reciprocal vectors of the mesh, (M1, M2, M3//2 + 1) by broadcasting."""
        m = [
            np.fft.fftfreq(self._shape[0], 1.0 / self._shape[0])[:, None, None],
            np.fft.fftfreq(self._shape[1], 1.0 / self._shape[1])[None, :, None],
            np.fft.rfftfreq(self._shape[2], 1.0 / self._shape[2])[None, None, :],
        ]
        parts = [asarray_like(m[a] * self._reciprocal[a, axis], self._like) for a in AXES]
        return parts[0] + parts[1] + parts[2]

    def _moduli(self) -> Array:
        """|b|² of the three axes, multiplied."""
        first, second, third = (asarray_like(squared_moduli(m, self._order), self._like) for m in self._shape)
        return first[:, None, None] * second[None, :, None] * third[None, None, : self._shape[2] // 2 + 1]

    def _squared_vectors(self) -> Array:
        """G² on the mesh."""
        total: Array = 0.0
        for axis in AXES:
            component = self._component(axis)
            component *= component
            total = total + component
        return total

    def _waves(self, y: Array) -> Array:
        """Fourier transform of the charges (and dipoles) on the mesh."""
        layout = self._unknowns
        if self._last is not None and is_numpy(y) and np.array_equal(self._last[0], y):
            return self._last[1]  # gradient and strain derivative are asked for in turn
        values = layout.charges(y)[:, None]
        if layout.dipoles:
            dipoles = self._xp.reshape(y[layout.atoms :], (layout.atoms, 3))
            values = self._xp.concat([values, dipoles @ self._jacobian], axis=1)
        waves = rfftn(self._points.spread(values))
        if is_numpy(y):
            self._last = y.copy(), waves
        return waves

    def _potential(self, waves: Array, columns: int, influence: Array | None = None) -> Array:
        """Potential and derivatives along the mesh axes at the atoms, (N, columns)."""
        factor = self._influence if influence is None else influence
        return self._points.gather(irfftn(waves * factor, self._shape), columns)

    def _product(self, y: Array, influence: Array | None = None) -> Array:
        """S Θ Sᵀ y, S the interpolation and Θ the influence function on the mesh."""
        layout = self._unknowns
        values = self._potential(self._waves(y), 4 if layout.dipoles else 1, influence)
        if not layout.dipoles:
            return values[:, 0]
        field = values[:, 1:4] @ self._jacobian.T
        return self._xp.concat([values[:, 0], self._xp.reshape(field, (-1,))])

    def _field(self, waves: Array) -> Array:
        """First Cartesian derivatives of the potential at the atoms, (N, 3)."""
        return self._potential(waves, 4)[:, 1:4] @ self._jacobian.T

    def _slopes(self, waves: Array) -> tuple[Array, Array | None]:
        """First derivatives (N, 3) and, with dipoles, second derivatives (N, 3, 3) of the potential."""
        if not self._unknowns.dipoles:
            return self._field(waves), None
        xp = self._xp
        values = self._potential(waves, 10)
        rows = [xp.stack([values[:, second_derivative_column(a, b)] for b in AXES], axis=1) for a in AXES]
        curvature = xp.stack(rows, axis=1)
        return values[:, 1:4] @ self._jacobian.T, self._jacobian @ curvature @ self._jacobian.T

    def _act(self, y: Array, slopes: tuple[Array, Array | None]) -> Array:
        """Force operator q ∂/∂r + d·∂ ∂/∂r of ``y`` on a potential, (N, 3)."""
        layout = self._unknowns
        field, curvature = slopes
        result = layout.charges(y)[:, None] * field
        if curvature is not None:
            dipoles = self._xp.reshape(y[layout.atoms :], (layout.atoms, 3, 1))
            result = result + (curvature @ dipoles)[:, :, 0]
        return result


class MeshCoulomb(LatticeSum):
    """Electrostatics of many Gaussian charges (and dipoles) through products with the matrix only.

    Implements :class:`kqeq.electrostatics.base.Electrostatics` except :meth:`matrix`, for any number of
    periodic directions but one.

    Parameters
    ----------
    positions : (N, 3) array
        Å; the array's library is used throughout.
    sigma : (N,) array
        Gaussian widths, Å.
    cell : (3, 3) array, optional
        Rows are the lattice vectors, Å; not needed for open boundaries.
    pbc : (3,) bool array, optional
        Default: periodic in all three directions with a cell, in none without.
    dipoles : bool
        Whether each atom also carries a dipole.
    accuracy : float
        Largest error of an element of the matrix, in units of k_e/Å.
    structure : Structure, optional
        Of the same positions and cell: its neighbour list is used.

    Attributes
    ----------
    cell : (3, 3) NumPy array
        The cell of the mesh.
    parameters : MeshParameters
        Splitting, spline order and mesh in use.

    Raises
    ------
    InputError
        For NaN positions, widths that are not positive, a cell without volume, or a slab whose vacuum is
        along a periodic direction.
    UnsupportedError
        For one periodic direction, for a mesh that would not fit into memory, and by :meth:`matrix`.
    """

    cell: FloatArray
    parameters: MeshParameters

    def __init__(
        self,
        positions: Array,
        sigma: Array,
        cell: Array | None = None,
        pbc: BoolArray | None = None,
        *,
        dipoles: bool = False,
        accuracy: float = DEFAULT_ACCURACY,
        structure: Structure | None = None,
    ) -> None:
        xp = namespace(positions, sigma)
        positions = checked_positions(positions)
        sigma = checked_sigma(sigma, positions)
        flags = np.full(3, cell is not None) if pbc is None else np.asarray(pbc, dtype=bool)
        unknowns = Unknowns(positions.shape[0], dipoles)
        plan = plan_mesh(positions, sigma, cell, flags, accuracy=accuracy, dipoles=dipoles)
        self.cell = plan.cell
        self.parameters = parameters = plan.parameters
        self._open = plan.reach is not None
        if self._open:
            positions = positions - 0.5 * (xp.max(positions, axis=0) + xp.min(positions, axis=0))
        self._positions = positions
        kappa = parameters.kappa
        box, r_cut = None if self._open else self.cell, parameters.r_cut
        if is_numpy(positions) and not dipoles:
            real = real_space(positions, sigma, box, kappa=kappa, r_cut=r_cut, structure=structure)
        else:
            real = RealSpace(positions, sigma, box, kappa=kappa, r_cut=r_cut, dipoles=dipoles)
        smooth = Mesh(positions, self.cell, parameters, dipoles=dipoles, reach=plan.reach)
        background = (
            None
            if self._open
            else Background(
                positions, sigma, self.cell, kappa=kappa, dipoles=dipoles, open_axis=plan.open_axis
            )
        )
        super().__init__(unknowns, sigma, real, smooth, background)
        self._smooth = smooth

    def matrix(self) -> Array:
        """Not available: the purpose of this class is never to form the matrix.

        Raises
        ------
        UnsupportedError
            Always.
        """
        raise UnsupportedError(
            f"the particle-mesh method never forms the {self.size}×{self.size} matrix; use matvec, or "
            "kqeq.electrostatics.coulomb(structure, sigma) for a provider with a matrix"
        )

    def preconditioner(self, added: Array) -> Callable[[Array], Array]:
        """Approximate inverse of A + diag(added) that also knows the long waves.

        With the diagonal alone, conjugate gradients need iterations in proportion to the length of the
        cell (30, 44 and 64 for 3,000, 12,000 and 47,000 atoms of water); with this one their number does not
        grow (12), at two further transforms each.
        """
        return self._smooth.preconditioner(full_diagonal(self._unknowns, self._sigma, added))

    def bilinear_strain(self, left: Array, right: Array) -> Array:
        """∂(leftᵀ A right_c)/∂ε at fixed left and right, shape (3, 3, c), for r and cell → · (1 + ε).

        Row: component of the position, column: component of the gradient.
        """
        if not self._open:
            return super().bilinear_strain(left, right)
        xp = namespace(left)
        gradient = self.bilinear_gradient(left, right)
        atoms, _, columns = gradient.shape
        product = self._positions.T @ xp.reshape(gradient, (atoms, 3 * columns))
        return xp.reshape(product, (3, 3, columns))


__all__ = ["Mesh", "MeshCoulomb"]
