"""What the charge models ask of an electrostatics provider.

A provider represents one geometry filled with Gaussian charge distributions (and, on request, the
dipoles that belong to them).  Unknowns are collected in a vector y of length n:

* without dipoles n = N, y = q (e);
* with dipoles n = 4N, y = (q_1 … q_N, d_1x, d_1y, d_1z, d_2x, …) (e and e·Å).

The electrostatic energy is ½ yᵀ A y.  A contains the self interaction of each Gaussian
(k_e / (√π σ_i) for charges, k_e / (6 √π σ_i³) for each dipole component) but neither hardness nor
1/polarizability: those belong to the charge model.

Dimensions: N atoms, n unknowns, c columns of a block.
"""

from collections.abc import Callable
from typing import Protocol

from kqeq.typing import FloatArray


class Electrostatics(Protocol):
    """Coulomb interaction of the Gaussian charges (and dipoles) of one structure."""

    @property
    def size(self) -> int:
        """Number of unknowns n: N, or 4N with dipoles."""

    def matrix(self) -> FloatArray:
        """The interaction matrix A, symmetric, shape (n, n), in eV/e² (eV/(e²·Å), eV/(e²·Å²))."""

    def matvec(self, block: FloatArray) -> FloatArray:
        """A @ block for a block of shape (n,) or (n, c)."""

    def bilinear_gradient(self, left: FloatArray, right: FloatArray) -> FloatArray:
        """∂(leftᵀ A right_c)/∂r at fixed left and right.

        Parameters
        ----------
        left : (n,) array
        right : (n, c) array

        Returns
        -------
        (N, 3, c) array
        """

    def bilinear_strain(self, left: FloatArray, right: FloatArray) -> FloatArray:
        """∂(leftᵀ A right_c)/∂ε at fixed left and right, shape (3, 3, c)."""

    def width_derivative(self, vector: FloatArray, dsigma: FloatArray) -> FloatArray:
        """(Σ_i dσ_i ∂A/∂σ_i) @ vector, shape (n,); for learning Gaussian widths.

        Parameters
        ----------
        vector : (n,) array
        dsigma : (N,) array
            Direction in the space of widths, in Å.
        """

    def preconditioner(self, added: FloatArray) -> Callable[[FloatArray], FloatArray]:
        """Approximate inverse of A + diag(added) for conjugate gradients, symmetric positive definite.

        Parameters
        ----------
        added : (n,) array
            What the charge model adds to the diagonal (hardness, 1/polarizability).

        Returns
        -------
        function of a vector (n,) that returns a vector (n,)
        """


__all__ = ["Electrostatics"]
