"""How a charge problem is solved: with a factored matrix, or by conjugate gradients without any matrix.

Both answer, for the unknowns z of one geometry,

    z = stationary point of  bᵀz + ½ zᵀHz + ½ Σ_pairs p²/k     starting from reference charges q0,

with the potentials u = −(b + Hz) of the charges.  The iterative solver never forms H.  It writes z = z0 + F w
with a symmetric, positive semidefinite F that keeps charge where it belongs:

* QEq: F = P M P, M an approximate inverse of H and P the projection onto neutral changes of every constraint;
  these are projected, preconditioned conjugate gradients (theory section 1);
* ACKS2: F = L for the charges, so that w are the potentials, whose flows Lw cost ½ wᵀLw more.  The Hessian
  L + LHL in w preconditioned with L⁺ (theory section 6) has a condition number that does not grow with the
  system: where waves are long, L falls as fast as H rises.  Dipoles have the inverse of the diagonal of H;
* where charges are given (latent charges), F = 0 for them: products alone, and an iteration for dipoles only.

Dimensions: N atoms, n = N or 4N unknowns z, c columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kqeq.backend import asarray_like, empty, namespace, segment_sum, zeros
from kqeq.backend.linalg import conjugate_gradients
from kqeq.charges.cores import Core, DipoleElimination
from kqeq.electrostatics.base import Electrostatics
from kqeq.errors import UnsupportedError
from kqeq.typing import Array, IntArray

MAX_ITERATIONS = 500
"""Iterations after which conjugate gradients give up; well-posed problems need ten to a hundred."""


class Solver(Protocol):
    """The charge problem of one geometry without the parts that do not depend on H."""

    @property
    def size(self) -> int:
        """Number of unknowns n."""

    @property
    def matrix_free(self) -> bool:
        """Whether each column of :meth:`stationary` is an iteration of its own."""

    @property
    def hessian(self) -> Array:
        """H, (n, n)."""

    def product(self, vector: Array) -> Array:
        """H @ vector, (n,)."""

    def stationary(self, linear: Array, source: Array | None) -> tuple[Array, Array]:
        """Unknowns (n, c) and potentials (N, c) for b (n, c) and reference charges (N, c)."""


@dataclass(frozen=True, eq=False)
class DenseSolver:
    """The matrix, factored once.

    Attributes
    ----------
    hessian : (n, n) array
    core : Core
        Reference charges and potentials to charges.
    dipoles : DipoleElimination, optional
    """

    hessian: Array
    core: Core
    dipoles: DipoleElimination | None

    @property
    def size(self) -> int:
        """Number of unknowns n."""
        return int(self.hessian.shape[0])

    @property
    def matrix_free(self) -> bool:
        """Whether each column is an iteration of its own: no."""
        return False

    def product(self, vector: Array) -> Array:
        """H @ vector, (n,)."""
        return self.hessian @ vector

    def stationary(self, linear: Array, source: Array | None) -> tuple[Array, Array]:
        """Unknowns (n, c) and potentials (N, c) for b (n, c) and reference charges (N, c)."""
        reduced = linear if self.dipoles is None else self.dipoles.reduce(linear)
        charges = -self.core.respond(reduced)
        if source is not None:
            charges += self.core.place(source)
        atoms = charges.shape[0]
        unknowns = charges if self.dipoles is None else self.dipoles.expand(charges, linear)
        return unknowns, -(linear[:atoms, ...] + self.hessian[:atoms, :] @ unknowns)


@dataclass(frozen=True, eq=False)
class IterativeSolver:
    """Conjugate gradients over products with the matrix; see the module.

    Attributes
    ----------
    provider : Electrostatics
    added : (n,) array
        What the diagonal of H has beyond the Coulomb interaction: hardness and 1/α.
    flow : function of (n,) returning (n,)
        F.
    project : function of (n,) returning (n,)
        Takes constants out of potentials, which move no charge.
    costly : (n,) array
        1 for unknowns w whose flow costs ½ wᵀFw itself (potentials of ACKS2), 0 elsewhere.
    atoms : int
        N.
    accuracy : float
        Largest error of a charge, e (of a dipole, e·Å).
    """

    provider: Electrostatics
    added: Array
    flow: Callable[[Array], Array]
    project: Callable[[Array], Array]
    costly: Array
    atoms: int
    accuracy: float

    @classmethod
    def constrained(
        cls,
        provider: Electrostatics,
        added: Array,
        constraint: IntArray,
        accuracy: float,
    ) -> IterativeSolver:
        """QEq: charge moves freely among the atoms of each constraint.

        Parameters
        ----------
        constraint : (N,) int array
            Number of the constraint that each atom belongs to, on the host.
        """
        atoms = len(constraint)
        project = _without_means(constraint, added)
        approximate_inverse = provider.preconditioner(added)

        def flow(vector: Array) -> Array:
            return project(approximate_inverse(vector))

        return cls(provider, added, flow, project, zeros(provider.size, added), atoms, accuracy)

    @classmethod
    def split(
        cls,
        provider: Electrostatics,
        added: Array,
        laplacian: Any,
        component: IntArray,
        dipole_stiffness: Array,
        accuracy: float,
    ) -> IterativeSolver:
        """ACKS2: charge flows along pairs of atoms of finite softness.

        Parameters
        ----------
        laplacian : (N, N) sparse array
            L.
        component : (N,) int array
            Number of the group of atoms between which charge can flow, on the host.
        dipole_stiffness : (n − N,) array
            The diagonal of H for dipoles, positive.
        """
        xp = namespace(added)
        atoms = len(component)
        inverse = 1.0 / dipole_stiffness

        def flow(vector: Array) -> Array:
            return xp.concat([laplacian @ vector[:atoms], inverse * vector[atoms:]])

        costly = zeros(provider.size, added)
        costly[:atoms] = 1.0
        return cls(provider, added, flow, _without_means(component, added), costly, atoms, accuracy)

    @classmethod
    def fixed(
        cls, provider: Electrostatics, added: Array, atoms: int, dipole_stiffness: Array, accuracy: float
    ) -> IterativeSolver:
        """Latent charges: only dipoles move.

        Parameters
        ----------
        atoms : int
            N.
        dipole_stiffness : (n − N,) array
            The diagonal of H for dipoles, positive.
        """
        xp = namespace(added)
        mobile = xp.concat([zeros(atoms, added), 1.0 / dipole_stiffness])

        def flow(vector: Array) -> Array:
            return mobile * vector

        def project(vector: Array) -> Array:
            return xp.concat([zeros(atoms, vector), vector[atoms:]])

        return cls(provider, added, flow, project, zeros(provider.size, added), atoms, accuracy)

    @property
    def size(self) -> int:
        """Number of unknowns n."""
        return self.provider.size

    @property
    def matrix_free(self) -> bool:
        """Whether each column is an iteration of its own: yes."""
        return True

    @property
    def hessian(self) -> Array:
        """Not available.

        Raises
        ------
        UnsupportedError
            Always.
        """
        raise UnsupportedError(
            f"the charges of {self.atoms} atoms are solved for iteratively, and the {self.size}×{self.size} matrix is "
            'never formed; bind the structure with a charge model that has solver="dense"'
        )

    def product(self, vector: Array) -> Array:
        """H @ vector, (n,)."""
        return self.provider.matvec(vector) + self.added * vector

    def stationary(self, linear: Array, source: Array | None) -> tuple[Array, Array]:
        """Unknowns (n, c) and potentials (N, c) for b (n, c) and reference charges (N, c), column by column.

        Raises
        ------
        ConvergenceError
            If the iteration does not reach the accuracy.
        NotPositiveDefiniteError
            If it finds that the energy has no minimum.
        """
        xp = namespace(linear)
        unknowns = zeros(linear.shape, linear)
        if source is not None:
            unknowns[: self.atoms, :] = source
        slopes = empty(linear.shape, linear)
        for c in range(linear.shape[1]):
            unknowns[:, c], slopes[:, c] = conjugate_gradients(
                self.product,
                xp.asarray(linear[:, c], copy=True),
                xp.asarray(unknowns[:, c], copy=True),
                self.flow,
                self.costly,
                self.project,
                tolerance=0.1 * self.accuracy,
                max_iterations=MAX_ITERATIONS,
            )
        return unknowns, -slopes[: self.atoms, :]


def _without_means(group: IntArray, like: Array) -> Callable[[Array], Array]:
    """Function that takes the mean over each group of atoms out of a vector (n,), dipoles aside."""
    xp = namespace(like)
    atoms = len(group)
    count = asarray_like(np.bincount(group).astype(np.float64), like)
    groups = int(count.shape[0])
    index = asarray_like(np.asarray(group, dtype=np.int64), like)

    def project(vector: Array) -> Array:
        result = xp.asarray(vector, copy=True)
        if groups == 1:
            result[:atoms] -= xp.mean(vector[:atoms])
        else:
            result[:atoms] -= xp.take(segment_sum(vector[:atoms], index, groups) / count, index)
        return result

    return project


__all__ = ["MAX_ITERATIONS", "DenseSolver", "IterativeSolver", "Solver"]
