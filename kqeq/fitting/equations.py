"""The quadratic model of the loss at one point: normal equations, or their triangular factor.

    loss(u) = ½ |Lᵀ(u − m)|² + ½ Σ r(u)²,        r = (y − ŷ(u)) / σ

with the prior N(m, (L Lᵀ)⁻¹), N(0, 1) unless the data of an earlier fit are in it.  What frames contribute is summed in
one of two forms.

``Cholesky``
    Σ JᵀJ and Σ Jᵀr; fast, and forming the product squares the condition number of J.
``QR``
    the triangle R of J = Q R and Qᵀr, pushed through one block of rows after the other (sequential QR; Golub & Van Loan,
    *Matrix Computations*, 4th ed., section 5.3; LAPACK's ``tpqrt``), which leaves it as it is.  About twice the work.

Either form takes memory P², whatever the number of frames, and sums of sets add up.

Dimensions: P parameters, n rows of one block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from kqeq.errors import NotPositiveDefiniteError
from kqeq.linalg import factorise, solve_lower
from kqeq.typing import FloatArray

Method = Literal["cholesky", "qr"]

SOLVERS = ("auto", "cholesky", "qr")
"""How the linear problem of each step may be solved."""

CONDITION_LIMIT = 1e13
"""Condition number of the normal equations beyond which ``auto`` turns to QR (measured; see docs/architecture.md)."""

_WHAT = "the matrix of the normal equations"
_REMEDY = (
    "labels or noise levels span too many orders of magnitude: check units, and raise the smallest noise"
)
_BLOCK = 64


@dataclass(frozen=True, eq=False)
class Prior:
    """What is known before the frames: a Gaussian.

    Attributes
    ----------
    mean : (P,) array
        m.
    lower : (P, P) array or None
        Cholesky factor L of the precision; ``None`` for 1.
    """

    mean: FloatArray
    lower: FloatArray | None = None

    @classmethod
    def standard(cls, size: int) -> Prior:
        """N(0, 1)."""
        return cls(np.zeros(size))

    def residual(self, u: FloatArray) -> FloatArray:
        """Lᵀ(u − m), (P,)."""
        shift = u - self.mean
        return shift if self.lower is None else np.asarray(self.lower.T @ shift)

    def value(self, u: FloatArray) -> float:
        """½ |Lᵀ(u − m)|²."""
        residual = self.residual(u)
        return 0.5 * float(residual @ residual)

    def gradient(self, u: FloatArray) -> FloatArray:
        """L Lᵀ(u − m), (P,)."""
        residual = self.residual(u)
        return residual if self.lower is None else np.asarray(self.lower @ residual)

    def rows(self) -> FloatArray:
        """Lᵀ, (P, P)."""
        return np.eye(len(self.mean)) if self.lower is None else self.lower.T

    def add_precision(self, hessian: FloatArray) -> None:
        """Add L Lᵀ to a matrix in place."""
        if self.lower is None:
            hessian[np.diag_indices_from(hessian)] += 1.0
        else:
            hessian += self.lower @ self.lower.T


@dataclass(eq=False)
class Sums:
    """What a set of frames contributes; sums of sets add up.

    Attributes
    ----------
    hessian : (P, P) array or None
        Σ JᵀJ.
    rhs : (P,) array, or (p,) over the linear parameters, or None
        Σ Jᵀr.
    loss : float
        ½ Σ r².
    n_residuals : int
    triangle : (P + 1, P + 1) array or None
        In place of the first two: the triangular factor of [J r].
    """

    hessian: FloatArray | None
    rhs: FloatArray | None
    loss: float
    n_residuals: int
    triangle: FloatArray | None = None

    def add(self, other: Sums) -> None:
        """Add another set's contribution in place."""
        if self.hessian is not None and other.hessian is not None:
            self.hessian += other.hessian
        if self.triangle is not None and other.triangle is not None:
            self.triangle = push(self.triangle, other.triangle, triangular=True)
        if self.rhs is not None and other.rhs is not None:
            self.rhs += other.rhs
        self.loss += other.loss
        self.n_residuals += other.n_residuals


def push(triangle: FloatArray, rows: FloatArray, *, triangular: bool = False) -> FloatArray:
    """The triangular factor of [R; rows].

    Parameters
    ----------
    triangle : (P, P) array
        R, upper triangular; its memory may be used again.
    rows : (n, P) array
    triangular : bool
        Whether ``rows`` are an upper triangle as well, which saves work.
    """
    from scipy.linalg.lapack import dtpqrt

    size = len(triangle)
    result, _, _, info = dtpqrt(
        size if triangular else 0,
        min(_BLOCK, size),
        np.asfortranarray(triangle),
        np.asfortranarray(rows),
        overwrite_a=1,
    )
    assert info == 0
    return np.asarray(result)


class Equations(Protocol):
    """The quadratic model at one point, prior included."""

    loss: float
    n_residuals: int
    method: Method
    lower: FloatArray
    condition: float

    def step(self, damping: float) -> FloatArray:
        """The minimum of the model, H Δ = b; with damping that of (H + λ diag H) Δ = b."""

    def decrement(self) -> float:
        """What the undamped step promises, ½ bᵀH⁻¹b."""

    def promised(self, step: FloatArray) -> float:
        """By how much the model falls along a step."""

    def block(self, columns: slice) -> FloatArray:
        """Cholesky factor of a diagonal block of H."""


class NormalEquations:
    """H = Σ JᵀJ + L Lᵀ and b = Σ Jᵀr − L Lᵀ(u − m).

    Attributes
    ----------
    hessian : (P, P) array
    rhs : (P,) array
    loss : float
    n_residuals : int
    lower : (P, P) array
        Cholesky factor of H.
    condition : float
        Estimate of the condition number of H with its diagonal scaled to 1, which bounds the errors of the solution.
    """

    method: Method = "cholesky"

    def __init__(self, sums: Sums, prior: Prior, u: FloatArray) -> None:
        assert sums.hessian is not None and sums.rhs is not None
        self.hessian = sums.hessian
        prior.add_precision(self.hessian)
        self.rhs = sums.rhs - prior.gradient(u)
        self.loss = sums.loss + prior.value(u)
        self.n_residuals = sums.n_residuals
        self.lower = factorise(self.hessian, _WHAT, _REMEDY)
        self.condition = self._condition()

    def _condition(self) -> float:
        from scipy.linalg.lapack import dpocon

        scale = 1.0 / np.sqrt(np.diagonal(self.hessian))
        norm = float((scale[:, None] * np.abs(self.hessian) * scale).sum(axis=0).max())
        reciprocal, _ = dpocon(scale[:, None] * self.lower, norm, uplo="L")
        return 1.0 / max(float(reciprocal), 1e-300)

    def step(self, damping: float) -> FloatArray:
        """See :class:`Equations`."""
        lower = self.lower
        if damping > 0.0:
            damped = self.hessian + damping * np.diag(np.diagonal(self.hessian))
            lower = factorise(damped, _WHAT, _REMEDY)
        return solve(lower, self.rhs)

    def decrement(self) -> float:
        """See :class:`Equations`."""
        return 0.5 * float(self.rhs @ solve(self.lower, self.rhs))

    def promised(self, step: FloatArray) -> float:
        """See :class:`Equations`."""
        return float(step @ self.rhs) - 0.5 * float(step @ (self.hessian @ step))

    def block(self, columns: slice) -> FloatArray:
        """See :class:`Equations`."""
        return factorise(self.hessian[columns, columns], _WHAT, _REMEDY)


class TriangularEquations:
    """H = RᵀR and b = Rᵀc, neither of which is formed.

    Attributes
    ----------
    triangle : (P, P) array
        R.
    rhs : (P,) array
        c.
    loss : float
    n_residuals : int
    lower : (P, P) array
        Rᵀ with a positive diagonal.
    condition : float
        As in :class:`NormalEquations`: the square of that of R with its columns scaled to 1.
    """

    method: Method = "qr"

    def __init__(self, sums: Sums, prior: Prior, u: FloatArray) -> None:
        assert sums.triangle is not None
        rows = np.column_stack([prior.rows(), -prior.residual(u)])
        whole = push(sums.triangle, rows)
        signs = np.where(np.diagonal(whole)[:-1] < 0.0, -1.0, 1.0)
        self.triangle = np.triu(signs[:, None] * whole[:-1, :-1])
        self.rhs = np.asarray(signs * whole[:-1, -1])
        self.loss = sums.loss + prior.value(u)
        self.n_residuals = sums.n_residuals
        self.lower = np.ascontiguousarray(self.triangle.T)
        if not (np.isfinite(whole).all() and (np.diagonal(self.triangle) > 0.0).all()):
            raise NotPositiveDefiniteError(f"{_WHAT} is not positive definite; {_REMEDY}")
        self.condition = self._condition()

    def _condition(self) -> float:
        from scipy.linalg.lapack import dtrcon

        reciprocal, _ = dtrcon(self.triangle / np.linalg.norm(self.triangle, axis=0), norm="1", uplo="U")
        return 1.0 / max(float(reciprocal) ** 2, 1e-300)

    def step(self, damping: float) -> FloatArray:
        """See :class:`Equations`."""
        if damping == 0.0:
            return solve_lower(self.lower, self.rhs, transposed=True)
        whole = np.zeros((len(self.rhs) + 1,) * 2)
        whole[:-1, :-1], whole[:-1, -1] = self.triangle, self.rhs
        extra = np.zeros_like(whole)
        np.fill_diagonal(extra[:-1, :-1], np.sqrt(damping) * np.linalg.norm(self.triangle, axis=0))
        whole = push(whole, extra, triangular=True)
        return solve_lower(whole[:-1, :-1].T, whole[:-1, -1], transposed=True)

    def decrement(self) -> float:
        """See :class:`Equations`."""
        return 0.5 * float(self.rhs @ self.rhs)

    def promised(self, step: FloatArray) -> float:
        """See :class:`Equations`."""
        image = self.triangle @ step
        return float(image @ self.rhs) - 0.5 * float(image @ image)

    def block(self, columns: slice) -> FloatArray:
        """See :class:`Equations`."""
        part = np.linalg.qr(self.triangle[:, columns], mode="r")
        signs = np.where(np.diagonal(part) < 0.0, -1.0, 1.0)
        return np.ascontiguousarray((signs[:, None] * part).T)


def solve(lower: FloatArray, rhs: FloatArray) -> FloatArray:
    """(L Lᵀ)⁻¹ rhs."""
    return solve_lower(lower, solve_lower(lower, rhs), transposed=True)


__all__ = [
    "CONDITION_LIMIT",
    "SOLVERS",
    "Equations",
    "Method",
    "NormalEquations",
    "Prior",
    "Sums",
    "TriangularEquations",
    "push",
    "solve",
]
