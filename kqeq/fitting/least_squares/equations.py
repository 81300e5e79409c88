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

from kqeq.backend import arange, asarray_like, full, is_numpy, namespace, to_float, to_numpy, zeros
from kqeq.backend.linalg import add_to_diagonal, factorise, solve_lower
from kqeq.errors import NotPositiveDefiniteError
from kqeq.typing import Array, FloatArray

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

    def add_precision(self, hessian: Array) -> Array:
        """Add L Lᵀ to a matrix in place; returns it."""
        if self.lower is None:
            return add_to_diagonal(hessian, 1.0)
        hessian += asarray_like(self.lower @ self.lower.T, hessian)
        return hessian


@dataclass(eq=False)
class Sums:
    """What a set of frames contributes; sums of sets add up, on the device where they were computed.

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

    hessian: Array | None
    rhs: Array | None
    loss: float
    n_residuals: int
    triangle: Array | None = None

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


def push(triangle: Array, rows: Array, *, triangular: bool = False) -> Array:
    """The triangular factor of [R; rows].

    Parameters
    ----------
    triangle : (P, P) array
        R, upper triangular; its memory may be used again.
    rows : (n, P) array
    triangular : bool
        Whether ``rows`` are an upper triangle as well, which saves work.
    """
    if not is_numpy(triangle):
        xp = namespace(triangle)
        return xp.linalg.qr(xp.concat([triangle, rows], axis=0), mode="reduced").R
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
    condition: float

    @property
    def lower(self) -> FloatArray:
        """Cholesky factor of H, on the host."""

    def step(self, damping: float, last: FloatArray | None = None) -> FloatArray:
        """The minimum of the model, H Δ = b; with damping that of (H + λ diag H) Δ = b.

        ``last`` prescribes the step of the last parameters: the minimum with respect to the others is found for it.
        With H = L Lᵀ the factor of their own block is the leading block of L.
        """

    def decrement(self) -> float:
        """What the undamped step promises, ½ bᵀH⁻¹b."""

    def promised(self, step: FloatArray) -> float:
        """By how much the model falls along a step."""

    def block(self, columns: slice) -> Array:
        """Cholesky factor of a diagonal block of H, on the device of H."""


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
        self.hessian = prior.add_precision(sums.hessian)
        self.rhs = to_numpy(sums.rhs) - prior.gradient(u)
        self.loss = sums.loss + prior.value(u)
        self.n_residuals = sums.n_residuals
        self._factor = factorise(self.hessian, _WHAT, _REMEDY)
        self.condition = self._condition()

    @property
    def lower(self) -> FloatArray:
        """Cholesky factor of H, on the host."""
        return to_numpy(self._factor)

    def _condition(self) -> float:
        if not is_numpy(self.hessian):
            return scaled_condition(self.hessian, self._factor)
        from scipy.linalg.lapack import dpocon

        scale = 1.0 / np.sqrt(np.diagonal(self.hessian))
        norm = float((scale * (np.abs(self.hessian) @ scale)).max())
        reciprocal, _ = dpocon(scale[:, None] * self._factor, norm, uplo="L")
        return 1.0 / max(float(reciprocal), 1e-300)

    def step(self, damping: float, last: FloatArray | None = None) -> FloatArray:
        """See :class:`Equations`."""
        lower = self._factor
        if damping > 0.0:
            xp = namespace(self.hessian)
            diagonal = xp.linalg.diagonal(self.hessian)
            damped = add_to_diagonal(xp.asarray(self.hessian, copy=True), damping * diagonal)
            lower = factorise(damped, _WHAT, _REMEDY)
        rhs = asarray_like(self.rhs, lower)
        if last is None:
            return to_numpy(solve(lower, rhs))
        n = len(self.rhs) - len(last)
        rest = _others(lower, solve_lower(lower[:n, :n], rhs[:n]), asarray_like(last, lower))
        return np.concatenate([to_numpy(rest), last])

    def decrement(self) -> float:
        """See :class:`Equations`."""
        return 0.5 * float(self.rhs @ self.step(0.0))

    def promised(self, step: FloatArray) -> float:
        """See :class:`Equations`."""
        own = asarray_like(step, self.hessian)
        return float(step @ self.rhs) - 0.5 * to_float(own @ (self.hessian @ own))

    def block(self, columns: slice) -> Array:
        """See :class:`Equations`."""
        part = namespace(self.hessian).asarray(self.hessian[columns, columns], copy=True)
        return factorise(part, _WHAT, _REMEDY)


def scaled_condition(matrix: Array, lower: Array) -> float:
    """Estimated condition number, in the 1-norm, of a positive definite matrix with its diagonal scaled to 1.

    The norm of the inverse is estimated from a few solutions (Higham 1988, *ACM Trans. Math. Softw.* 14, 381), as
    LAPACK's ``pocon`` does, which other libraries do not have.

    Parameters
    ----------
    matrix, lower : (n, n) arrays
        The matrix and its Cholesky factor.
    """
    xp = namespace(matrix)
    size = int(matrix.shape[0])
    scale = 1.0 / xp.sqrt(xp.linalg.diagonal(matrix))
    norm = to_float(xp.max(xp.sum(xp.abs(matrix) * scale[:, None] * scale[None, :], axis=0)))
    vector = full(size, 1.0 / size, matrix)
    estimate = 0.0
    for _ in range(5):
        image = solve(lower, vector / scale) / scale
        found = to_float(xp.sum(xp.abs(image)))
        if found <= estimate:
            break
        estimate = found
        signs = xp.where(image >= 0.0, xp.ones_like(image), -xp.ones_like(image))
        slope = solve(lower, signs / scale) / scale
        largest = int(to_float(xp.argmax(xp.abs(slope))))
        if to_float(xp.abs(slope[largest])) <= to_float(slope @ vector):
            break
        vector = zeros(size, matrix)
        vector[largest] = 1.0
    # the alternative that catches what the iteration misses
    index = xp.astype(arange(0, size, matrix), xp.float64)
    signs = 1.0 - 2.0 * xp.astype(arange(0, size, matrix) % 2, xp.float64)
    vector = signs * (1.0 + index / max(size - 1, 1))
    other = 2.0 * to_float(xp.sum(xp.abs(solve(lower, vector / scale) / scale))) / (3.0 * size)
    return norm * max(estimate, other)


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
        # from here on on the host: one triangle, and LAPACK has what the rest needs
        whole = push(np.asfortranarray(to_numpy(sums.triangle)), rows)
        signs = np.where(np.diagonal(whole)[:-1] < 0.0, -1.0, 1.0)
        self.triangle = np.triu(signs[:, None] * whole[:-1, :-1])
        self.rhs = np.asarray(signs * whole[:-1, -1])
        self.loss = sums.loss + prior.value(u)
        self.n_residuals = sums.n_residuals
        if not (np.isfinite(whole).all() and (np.diagonal(self.triangle) > 0.0).all()):
            raise NotPositiveDefiniteError(f"{_WHAT} is not positive definite; {_REMEDY}")
        self.condition = self._condition()

    @property
    def lower(self) -> FloatArray:
        """Rᵀ."""
        return np.ascontiguousarray(self.triangle.T)

    def _condition(self) -> float:
        from scipy.linalg.lapack import dtrcon

        reciprocal, _ = dtrcon(self.triangle / np.linalg.norm(self.triangle, axis=0), norm="1", uplo="U")
        return 1.0 / max(float(reciprocal) ** 2, 1e-300)

    def step(self, damping: float, last: FloatArray | None = None) -> FloatArray:
        """See :class:`Equations`."""
        if damping == 0.0:
            return _back(self.lower, self.rhs, last)
        whole = np.zeros((len(self.rhs) + 1,) * 2)
        whole[:-1, :-1], whole[:-1, -1] = self.triangle, self.rhs
        extra = np.zeros_like(whole)
        np.fill_diagonal(extra[:-1, :-1], np.sqrt(damping) * np.linalg.norm(self.triangle, axis=0))
        whole = push(whole, extra, triangular=True)
        return _back(whole[:-1, :-1].T, whole[:-1, -1], last)

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


def _back(lower: FloatArray, rhs: FloatArray, last: FloatArray | None) -> FloatArray:
    """Δ from Lᵀ Δ = c; for a prescribed end of Δ the rows of the others."""
    if last is None:
        return np.asarray(solve_lower(lower, rhs, transposed=True))
    return np.concatenate([_others(lower, rhs[: len(rhs) - len(last)], last), last])


def _others(lower: Array, rhs: Array, last: Array) -> Array:
    """The first parameters from their rows of Lᵀ Δ = c for a prescribed end of Δ; on the device of L."""
    n = int(rhs.shape[0])
    return solve_lower(lower[:n, :n], rhs - last @ lower[n:, :n], transposed=True)


def solve(lower: Array, rhs: Array) -> Array:
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
    "scaled_condition",
    "solve",
]
