"""Gaussian charges and dipoles with open boundaries.

A_ij = k_e erf(r_ij/(√2 γ_ij))/r_ij with γ_ij² = σ_i² + σ_j², whose limit r → 0 at i = j is the self
interaction k_e/(√π σ_i); likewise the dipole block has k_e/(6√π σ_i³) on its diagonal.  No element
needs special treatment because the radial functions are finite at r = 0.

Everything is done in blocks of atoms (rows), so that temporary memory stays small; array code
follows the array API standard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from kqeq.backend import chunk_elements, empty, namespace
from kqeq.constants import COULOMB
from kqeq.electrostatics.radial import gaussian_coulomb, gaussian_width_response
from kqeq.electrostatics.tensors import (
    AXES,
    charge_dipole,
    dipole_dipole,
    gradient_rows,
    potential_derivatives,
)
from kqeq.electrostatics.unknowns import Unknowns, checked_positions, checked_sigma, full_diagonal
from kqeq.typing import Array

_BLOCK_ELEMENTS = 1 << 18
"""Pairs handled at once on the host: temporaries of 2 MB each stay in cache and out of the memory budget."""

_Radial = Callable[[Array, Array, int], list[Array]]


class OpenCoulomb:
    """Electrostatics of Gaussian charges (and dipoles) in open boundaries.

    Implements :class:`kqeq.electrostatics.base.Electrostatics`.

    Parameters
    ----------
    positions : (N, 3) array
        Å; the array's library is used throughout.
    sigma : (N,) array
        Gaussian widths, Å.
    dipoles : bool
        Whether each atom also carries a dipole.

    Raises
    ------
    InputError
        For NaN positions, widths that are not positive, or shapes that do not fit.
    """

    def __init__(self, positions: Array, sigma: Array, *, dipoles: bool = False) -> None:
        self._xp = namespace(positions, sigma)
        positions = checked_positions(positions)
        self._sigma = checked_sigma(sigma, positions)
        # Differences are more accurate around the centre than far from the origin.
        self._positions = positions - self._xp.sum(positions, axis=0) / positions.shape[0]
        self._unknowns = Unknowns(positions.shape[0], dipoles)

    @property
    def size(self) -> int:
        """Number of unknowns n: N, or 4N with dipoles."""
        return self._unknowns.size

    def matrix(self) -> Array:
        """The interaction matrix, symmetric positive definite, shape (n, n), in eV/e²."""
        result = empty((self.size, self.size), self._positions)
        for rows, x, radial in self._blocks(gaussian_coulomb, 2 if self._unknowns.dipoles else 0):
            self._fill(result, rows, x, radial)
        return result

    def matvec(self, block: Array) -> Array:
        """A @ block for a block of shape (n,) or (n, c), without forming A."""
        self._unknowns.check(block)
        result = empty(block.shape, block)
        for rows, x, radial in self._blocks(gaussian_coulomb, 2 if self._unknowns.dipoles else 0):
            self._apply(result, rows, x, radial, block)
        return result

    def width_derivative(self, vector: Array, dsigma: Array) -> Array:
        """(Σ_i dσ_i ∂A/∂σ_i) @ vector, shape (n,)."""
        self._unknowns.check(vector, dimensions=(1,))
        spread = self._sigma * dsigma
        result = empty(vector.shape, vector)
        for rows, x, radial in self._blocks(gaussian_width_response, 2 if self._unknowns.dipoles else 0):
            change = spread[rows, None] + spread[None, :]
            self._apply(result, rows, x, [value * change for value in radial], vector)
        return result

    def bilinear_gradient(self, left: Array, right: Array) -> Array:
        """∂(leftᵀ A right_c)/∂r at fixed left (n,) and right (n, c), shape (N, 3, c).

        With L_k and R_k the operators q_k + d_k·∂/∂r_k of the two sides, atom k gets
        Σ_j L_k R_j ∂f/∂r_k, a product of a (3N, n) matrix with ``right``, and R_k applied to the
        derivatives of the potential of ``left``.
        """
        xp, layout = self._xp, self._unknowns
        layout.check(left, dimensions=(1,))
        layout.check(right, dimensions=(2,))
        charge, dipole = layout.charges(left), layout.components(left)
        right_charge, right_dipole = layout.charges(right), layout.components(right)
        result = empty((layout.atoms, 3, right.shape[1]), right)
        for rows, x, radial in self._blocks(gaussian_coulomb, 3 if layout.dipoles else 1):
            own_dipole = None if dipole is None else [component[rows, None] for component in dipole]
            coefficients = gradient_rows(x, radial, charge[rows, None], own_dipole)
            first, second = potential_derivatives(
                x,
                radial,
                charge[None, :],
                None if dipole is None else [component[None, :] for component in dipole],
            )
            field = [xp.sum(value, axis=1) for value in first]
            curvature = {key: xp.sum(value, axis=1) for key, value in second.items()}
            for alpha in AXES:
                value = coefficients[alpha][0] @ right_charge + field[alpha][:, None] * right_charge[rows, :]
                if right_dipole is not None:
                    for beta in AXES:
                        pair = (min(alpha, beta), max(alpha, beta))
                        value = value + coefficients[alpha][1 + beta] @ right_dipole[beta]
                        value = value + curvature[pair][:, None] * right_dipole[beta][rows, :]
                result[rows, alpha, :] = value
        return result * COULOMB

    def bilinear_strain(self, left: Array, right: Array) -> Array:
        """∂(leftᵀ A right_c)/∂ε at fixed left and right, shape (3, 3, c), for r → r (1 + ε).

        Row: component of the position, column: component of the gradient.  Dipoles keep their
        Cartesian components, so with dipoles the result is not symmetric.
        """
        xp = self._xp
        gradient = self.bilinear_gradient(left, right)
        atoms, _, columns = gradient.shape
        product = self._positions.T @ xp.reshape(gradient, (atoms, 3 * columns))
        return xp.reshape(product, (3, 3, columns))

    def preconditioner(self, added: Array) -> Callable[[Array], Array]:
        """Division by the diagonal of A + diag(added), as a function of a vector (n,)."""
        diagonal = full_diagonal(self._unknowns, self._sigma, added)
        return lambda vector: vector / diagonal

    # The pieces -------------------------------------------------------------------------------

    def _blocks(self, radial: _Radial, order: int) -> Iterator[tuple[slice, list[Array], list[Array]]]:
        """Blocks of rows with x = r_j − r_i, three arrays (b, N), and the radial functions, (b, N)."""
        xp, r, atoms = self._xp, self._positions, self._unknowns.atoms
        variance = self._sigma * self._sigma
        elements = chunk_elements(r, 64 if self._unknowns.dipoles else 24, _BLOCK_ELEMENTS)
        step = max(1, elements // atoms)
        for start in range(0, atoms, step):
            rows = slice(start, min(start + step, atoms))
            x = [r[None, :, axis] - r[rows, None, axis] for axis in AXES]
            r2 = x[0] * x[0] + x[1] * x[1] + x[2] * x[2]
            a = 1.0 / xp.sqrt(2.0 * (variance[rows, None] + variance[None, :]))
            yield rows, x, radial(r2, a, order)

    def _fill(self, out: Array, rows: slice, x: Sequence[Array], radial: Sequence[Array]) -> None:
        """Write the rows of the charges and dipoles of one block of atoms into the matrix."""
        layout = self._unknowns
        out[rows, : layout.atoms] = radial[0] * COULOMB
        if not layout.dipoles:
            return
        mixed = charge_dipole(x, radial[1])
        tensor = dipole_dipole(x, radial[1], radial[2])
        for alpha in AXES:
            dipole_rows = layout.dipole_rows(alpha, rows.start, rows.stop)
            out[rows, layout.dipole_rows(alpha)] = mixed[alpha] * COULOMB
            out[dipole_rows, : layout.atoms] = mixed[alpha] * -COULOMB
            for beta in AXES:
                value = tensor[min(alpha, beta), max(alpha, beta)]
                out[dipole_rows, layout.dipole_rows(beta)] = value * COULOMB

    def _apply(self, out: Array, rows: slice, x: Sequence[Array], radial: Sequence[Array], y: Array) -> None:
        """Write the same rows of the product with ``y`` into ``out``."""
        layout = self._unknowns
        charge, dipole = layout.charges(y), layout.components(y)
        potential = radial[0] @ charge
        if dipole is not None:
            mixed = charge_dipole(x, radial[1])
            tensor = dipole_dipole(x, radial[1], radial[2])
            for alpha in AXES:
                potential = potential + mixed[alpha] @ dipole[alpha]
                slope = -(mixed[alpha] @ charge)
                for beta in AXES:
                    slope = slope + tensor[min(alpha, beta), max(alpha, beta)] @ dipole[beta]
                out[layout.dipole_rows(alpha, rows.start, rows.stop), ...] = slope * COULOMB
        out[rows, ...] = potential * COULOMB


__all__ = ["OpenCoulomb"]
