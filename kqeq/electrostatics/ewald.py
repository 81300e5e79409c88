"""Ewald summation for Gaussian charges and dipoles: three-dimensional cells and slabs.

    A_ij / k_e =  Σ_n' [erfc(κ r) − erfc(r/(√2 γ_ij))]/r                          real space
               +  (4π/V) Σ_{G≠0} exp(−G²/4κ²) cos(G·r_ij)/G²                     reciprocal space
               +  δ_ij [1/(√π σ_i) − 2κ/√π]                                      self interaction
               −  π/(V κ²) + 2π γ_ij²/V                                          background

with the derivatives of the same expression for dipoles.  A sum is put together from parts that each know
the matrix, the product with a block of vectors, the gradient and the strain derivative; the
particle-mesh method replaces one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from kqeq.backend import is_numpy, namespace, to_float, to_numpy, zeros
from kqeq.electrostatics.background import Background
from kqeq.electrostatics.host import HostReciprocal, real_space
from kqeq.electrostatics.lattice import (
    ARRAY_COSTS,
    COMPILED_COSTS,
    Splitting,
    choose_splitting,
    slab_cell,
)
from kqeq.electrostatics.realspace import RealSpace
from kqeq.electrostatics.reciprocal import Reciprocal
from kqeq.electrostatics.unknowns import (
    Unknowns,
    checked_cell,
    checked_positions,
    checked_sigma,
    full_diagonal,
)
from kqeq.errors import InputError
from kqeq.frames.structures import Structure
from kqeq.typing import Array, BoolArray, FloatArray

DEFAULT_ACCURACY = 1e-9
"""Largest error asked of an element of the interaction matrix, in units of k_e/Å (14.4 eV/e²)."""

_ROWS = 512


class _Part(Protocol):
    def matvec(self, block: Array) -> Array: ...
    def gradient(self, left: Array, right: Array) -> Array: ...
    def strain(self, left: Array, right: Array) -> Array: ...


class LatticeSum:
    """What all lattice sums share: sums of parts.

    Parameters
    ----------
    unknowns : Unknowns
    sigma : (N,) array
    real : RealSpace
    smooth : Reciprocal or Mesh
    background : Background, or None for open boundaries
    """

    def __init__(
        self, unknowns: Unknowns, sigma: Array, real: RealSpace, smooth: _Part, background: Background | None
    ) -> None:
        self._unknowns = unknowns
        self._sigma = sigma
        self._real = real
        self._background = background
        self._parts: tuple[_Part, ...] = (real, smooth)
        if background is not None:
            self._parts = (real, smooth, background)

    @property
    def size(self) -> int:
        """Number of unknowns n: N, or 4N with dipoles."""
        return self._unknowns.size

    def matvec(self, block: Array) -> Array:
        """A @ block for a block of shape (n,) or (n, c), without forming A."""
        self._unknowns.check(block)
        first, *others = (part.matvec(block) for part in self._parts)
        return sum(others, start=first)

    def bilinear_gradient(self, left: Array, right: Array) -> Array:
        """∂(leftᵀ A right_c)/∂r at fixed left (n,) and right (n, c), shape (N, 3, c)."""
        self._unknowns.check(left, dimensions=(1,))
        self._unknowns.check(right, dimensions=(2,))
        first, *others = (part.gradient(left, right) for part in self._parts)
        return sum(others, start=first)

    def bilinear_strain(self, left: Array, right: Array) -> Array:
        """∂(leftᵀ A right_c)/∂ε at fixed left and right, shape (3, 3, c), for r and cell → · (1 + ε).

        Row: component of the position, column: component of the gradient.  Dipoles keep their
        Cartesian components, so with dipoles the result is not symmetric.
        """
        self._unknowns.check(left, dimensions=(1,))
        self._unknowns.check(right, dimensions=(2,))
        first, *others = (part.strain(left, right) for part in self._parts)
        return sum(others, start=first)

    def width_derivative(self, vector: Array, dsigma: Array) -> Array:
        """(Σ_i dσ_i ∂A/∂σ_i) @ vector, shape (n,)."""
        self._unknowns.check(vector, dimensions=(1,))
        real = self._real.width_derivative(vector, dsigma)
        if self._background is None:
            return real
        return real + self._background.width_derivative(vector, dsigma)

    def preconditioner(self, added: Array) -> Callable[[Array], Array]:
        """Division by the diagonal of A + diag(added) (images left out), as a function of a vector (n,)."""
        diagonal = full_diagonal(self._unknowns, self._sigma, added)
        return lambda vector: vector / diagonal


class EwaldCoulomb(LatticeSum):
    """Electrostatics of Gaussian charges (and dipoles) with three or two periodic directions.

    Implements :class:`kqeq.electrostatics.base.Electrostatics`.  A net charge is neutralised by a uniform
    background (three dimensions); a slab may be charged.  With three periodic directions the matrix is positive
    definite; that of a slab is so only on vectors without net charge.

    Parameters
    ----------
    positions : (N, 3) array
        Å; the array's library is used throughout.  Atoms need not be wrapped into the cell.
    sigma : (N,) array
        Gaussian widths, Å.
    cell : (3, 3) array
        Rows are the lattice vectors, Å.  The row of an open direction is not used.
    pbc : (3,) bool array, optional
        Default: periodic in all three directions.
    dipoles : bool
        Whether each atom also carries a dipole.
    accuracy : float
        Largest error of an element of the matrix, in units of k_e/Å.
    kappa : float, optional
        Splitting parameter in 1/Å, chosen for speed by default; results do not depend on it.
    structure : Structure, optional
        Of the same positions and cell: its neighbour list is used (:attr:`kqeq.frames.structures.Structure.neighbours`).

    Attributes
    ----------
    cell : (3, 3) NumPy array
        The cell that is summed over; for slabs with the height that was chosen.
    splitting : Splitting
        κ and the cutoffs in use.

    Raises
    ------
    InputError
        For NaN positions, widths that are not positive, a cell without volume, no periodic direction, or a slab
        whose vacuum is along a periodic direction.
    UnsupportedError
        For one periodic direction.
    """

    cell: FloatArray
    splitting: Splitting

    def __init__(
        self,
        positions: Array,
        sigma: Array,
        cell: Array,
        pbc: BoolArray | None = None,
        *,
        dipoles: bool = False,
        accuracy: float = DEFAULT_ACCURACY,
        kappa: float | None = None,
        structure: Structure | None = None,
    ) -> None:
        self._xp = namespace(positions, sigma)
        positions = checked_positions(positions)
        sigma = checked_sigma(sigma, positions)
        self.cell, open_axis = lattice_of(positions, sigma, cell, pbc, accuracy)
        unknowns = Unknowns(positions.shape[0], dipoles)
        volume = abs(float(np.linalg.det(self.cell)))
        widest = to_float(self._xp.max(sigma))
        compiled = is_numpy(positions) and not dipoles
        self.splitting = parameters = choose_splitting(
            unknowns.atoms,
            volume,
            widest,
            accuracy=accuracy,
            dipoles=dipoles,
            kappa=kappa,
            costs=ARRAY_COSTS if dipoles else COMPILED_COSTS,  # on all devices the same numbers
        )
        used, r_cut, k_cut = parameters.kappa, parameters.r_cut, parameters.k_cut
        real: RealSpace
        smooth: Reciprocal | HostReciprocal
        if compiled:
            real = real_space(positions, sigma, self.cell, kappa=used, r_cut=r_cut, structure=structure)
            smooth = HostReciprocal(positions, self.cell, kappa=used, k_cut=k_cut)
        else:
            real = RealSpace(positions, sigma, self.cell, kappa=used, r_cut=r_cut, dipoles=dipoles)
            smooth = Reciprocal(positions, self.cell, kappa=used, k_cut=k_cut, dipoles=dipoles)
        background = Background(positions, sigma, self.cell, kappa=used, dipoles=dipoles, open_axis=open_axis)
        super().__init__(unknowns, sigma, real, smooth, background)
        self._like = positions
        self._halves = (real, smooth, background)

    def matrix(self) -> Array:
        """The interaction matrix A, symmetric, shape (n, n), in eV/e²."""
        out = zeros((self.size, self.size), self._like)
        for part in self._halves:
            out = part.add_half(out)
        return _add_transpose(out)


def lattice_of(
    positions: Array, sigma: Array, cell: Array, pbc: BoolArray | None, accuracy: float
) -> tuple[FloatArray, int | None]:
    """The three-dimensional cell to sum over and, for a slab, its open axis."""
    flags = np.ones(3, dtype=bool) if pbc is None else np.asarray(pbc, dtype=bool)
    if flags.shape != (3,) or not flags.any():
        raise InputError(
            f"a lattice sum needs periodic directions, got pbc={flags.tolist()}; use OpenCoulomb for molecules"
        )
    if flags.all():
        return checked_cell(cell), None
    rows = np.asarray(to_numpy(cell), dtype=np.float64)
    widest = to_float(namespace(sigma).max(sigma))
    return slab_cell(to_numpy(positions), rows, flags, widest, accuracy)


def _add_transpose(half: Array) -> Array:
    """H + Hᵀ in place, block by block."""
    n = half.shape[0]
    for start in range(0, n, _ROWS):
        rows = slice(start, min(start + _ROWS, n))
        for other in range(0, start + 1, _ROWS):
            columns = slice(other, min(other + _ROWS, n))
            total = half[rows, columns] + half[columns, rows].T
            half[rows, columns] = total
            half[columns, rows] = total.T
    return half


__all__ = ["DEFAULT_ACCURACY", "EwaldCoulomb", "LatticeSum", "lattice_of"]
