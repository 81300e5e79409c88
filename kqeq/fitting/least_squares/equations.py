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

**Linear parameters first.**  Where the first p parameters are linear, ŷ = B v + ŷ'(w), their block of H is the same at
every point.  Its factor is kept, and a new point costs the other rows only, by elimination:

    H = [A Cᵀ]      A = L_A L_Aᵀ once       M = C L_A⁻ᵀ       S = D − M Mᵀ = L_S L_Sᵀ       L = [L_A  0 ]
        [C D ]                                                                              [M    L_S]

so that an iteration takes (n + p) p (P − p) operations instead of n P² + P³/3.  Damping acts on w alone, (S + λ diag D):
v is at its optimum for whatever w does (:mod:`kqeq.fitting.least_squares.solver`).

Dimensions: P parameters, p linear ones, n rows of one block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from kqeq.backend import arange, asarray_like, blas, eye, full, is_numpy, namespace, to_float, to_numpy, zeros
from kqeq.backend.linalg import add_to_diagonal, factorise, solve_lower
from kqeq.errors import NotPositiveDefiniteError
from kqeq.fitting.least_squares.gram import TILE, column_sums
from kqeq.fitting.least_squares.turning import Turn
from kqeq.typing import Array, FloatArray

Method = Literal["cholesky", "qr"]

Inverse = Callable[[FloatArray], FloatArray]
"""Product of a vector with an inverse."""

SOLVERS = ("auto", "cholesky", "qr")
"""How the linear problem of each step may be solved."""

CONDITION_LIMIT = 1e13
"""Condition number of the normal equations beyond which ``auto`` turns to QR (measured; see docs/architecture.md)."""

TURNED_LIMIT = 1e15
"""The same for turned parameters (:mod:`kqeq.fitting.least_squares.turning`), whose large directions keep all digits.

Measured at 2e14, water clusters with charges, against QR: energies 1e-10 eV, forces 1e-8 eV/Å.
"""

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


@dataclass(frozen=True, eq=False)
class Rows:
    """The lower triangle of a symmetric matrix as blocks of rows.

    Attributes
    ----------
    blocks : tuple of (n, stop) arrays
        Rows up to the diagonal of their last one.
    """

    blocks: tuple[FloatArray, ...]

    @classmethod
    def of(cls, matrix: FloatArray) -> Rows:
        """Cut a matrix up."""
        edges = range(0, len(matrix), TILE)
        return cls(tuple(matrix[a : a + TILE, : a + TILE].copy() for a in edges))

    def add_to(self, matrix: FloatArray) -> None:
        """Add the whole symmetric matrix."""
        start = 0
        for block in self.blocks:
            count, stop = block.shape
            matrix[start:stop, :stop] += block
            matrix[:start, start:stop] += block[:, :start].T
            start += count

    def whole(self) -> FloatArray:
        """The matrix."""
        size = self.blocks[-1].shape[1] if self.blocks else 0
        result = np.zeros((size, size))
        self.add_to(result)
        return result


@dataclass(eq=False)
class Sums:
    """What a set of frames contributes; sums of sets add up, on the device where they were computed.

    Attributes
    ----------
    hessian : (P, P) array or None
        Σ JᵀJ; its first (p, p) block alone where there is a ``border``.
    rhs : (P,) array, or (p,) over the linear parameters, or None
        Σ Jᵀr.
    loss : float
        ½ Σ r².
    n_residuals : int
    triangle : (P + 1, P + 1) array or None
        In place of the first two: the triangular factor of [J r].
    border : (P − p, P) array or None
        The rest of its rows where the first p parameters are linear.
    """

    hessian: Array | Rows | None
    rhs: Array | None
    loss: float
    n_residuals: int
    triangle: Array | None = None
    border: Array | None = None

    def packed(self) -> Sums:
        """For the way from a worker: the lower triangle of the matrix as blocks of rows, half of the bytes."""
        if not isinstance(self.hessian, np.ndarray):
            return self
        return replace(self, hessian=Rows.of(self.hessian))

    def unpacked(self) -> Sums:
        """The opposite of :meth:`packed`."""
        if not isinstance(self.hessian, Rows):
            return self
        return replace(self, hessian=self.hessian.whole())

    def add(self, other: Sums) -> None:
        """Add another set's contribution, packed or not, in place."""
        if isinstance(other.hessian, Rows):
            assert isinstance(self.hessian, np.ndarray)
            other.hessian.add_to(self.hessian)
        elif self.hessian is not None and other.hessian is not None:
            self.hessian += other.hessian
        if self.border is not None and other.border is not None:
            self.border += other.border
        if self.triangle is not None and other.triangle is not None:
            self.triangle = push(self.triangle, other.triangle, triangular=True)
        if self.rhs is not None and other.rhs is not None:
            self.rhs += other.rhs
        self.loss += other.loss
        self.n_residuals += other.n_residuals

    def scaled(self, factor: float) -> Sums:
        """A new set, every sum of normal equations times a number; not of packed ones."""
        assert not isinstance(self.hessian, Rows)
        return replace(
            self,
            hessian=None if self.hessian is None else factor * self.hessian,
            border=None if self.border is None else factor * self.border,
            rhs=None if self.rhs is None else factor * self.rhs,
            loss=factor * self.loss,
        )

    def less(self, other: Sums) -> Sums:
        """A new set without a part of what was added, packed or not, of normal equations."""
        left = self.scaled(-1.0)
        left.add(other)
        return replace(left.scaled(-1.0), n_residuals=self.n_residuals - other.n_residuals)


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

    rhs: FloatArray
    loss: float
    n_residuals: int
    method: Method
    condition: float
    linear: LinearBlock | None

    @property
    def lower(self) -> FloatArray:
        """Cholesky factor of H, on the host."""

    def step(self, damping: float, last: FloatArray | None = None) -> FloatArray:
        """The minimum of the model, H Δ = b; with damping that of (H + λ diag H) Δ = b.

        Linear parameters that come first are not damped: they are at their optimum for the step of the others.

        ``last`` prescribes the step of the last parameters: the minimum with respect to the others is found for it.
        With H = L Lᵀ the factor of their own block is the leading block of L.
        """

    def solve(self, rhs: FloatArray) -> FloatArray:
        """H⁻¹ rhs."""

    def decrement(self) -> float:
        """What the undamped step promises, ½ bᵀH⁻¹b."""

    def promised(self, step: FloatArray) -> float:
        """By how much the model falls along a step."""

    def inverse(self, columns: slice) -> Inverse:
        """H⁻¹ of a diagonal block of H as a function; vectors on the host."""


@dataclass(frozen=True, eq=False)
class LinearBlock:
    """The block of the linear parameters, which come first, in H: summed and factored once.

    Attributes
    ----------
    lower : (p, p) array
        Its Cholesky factor.
    scale : (p,) array
        One over the square root of its diagonal.
    sums : (p,) array
        Column sums of its absolute values, rows and columns scaled to a diagonal of 1; on the host.
    """

    lower: Array
    scale: Array
    sums: FloatArray

    @classmethod
    def factor(cls, matrix: Array) -> LinearBlock:
        """From the block, in whose place the factor is put where the library allows."""
        scale, sums = _scaled_sums(matrix)
        return cls(factorise(matrix, _WHAT, _REMEDY, overwrite=True), scale, sums)


def _scaled_sums(matrix: Array) -> tuple[Array, FloatArray]:
    scale = 1.0 / namespace(matrix).sqrt(namespace(matrix).linalg.diagonal(matrix))
    return scale, column_sums(matrix, scale) * to_numpy(scale)


class NormalEquations:
    """H = Σ JᵀJ + L Lᵀ and b = Σ Jᵀr − L Lᵀ(u − m).

    Parameters
    ----------
    sums : Sums
        Their memory is used.
    prior : Prior
    u : (P,) array
    linear : LinearBlock, optional
        The first block of H at another point, where ``sums`` hold the other rows only.
    keep : bool
        Whether H will be needed beside its factor: for damped steps.

    Attributes
    ----------
    rhs : (P,) array
    loss : float
    n_residuals : int
    lower : (P, P) array
        Cholesky factor of H.
    condition : float
        Estimate of the condition number of H with its diagonal scaled to 1, which bounds the errors of the solution.
    linear : LinearBlock or None
    """

    method: Method = "cholesky"

    def __init__(
        self, sums: Sums, prior: Prior, u: FloatArray, linear: LinearBlock | None = None, *, keep: bool = True
    ) -> None:
        assert sums.rhs is not None
        self.rhs = to_numpy(sums.rhs) - prior.gradient(u)
        self.loss = sums.loss + prior.value(u)
        self.n_residuals = sums.n_residuals
        self.linear = linear
        self._split = 0
        if sums.border is None:
            assert sums.hessian is not None
            matrix = prior.add_precision(sums.hessian)
            scale, self._sums = _scaled_sums(matrix)
            self._hessian = matrix if keep else None
            self._factor = factorise(matrix, _WHAT, _REMEDY, overwrite=not keep)
            self._cross = None
        else:
            scale = self._eliminate(sums, prior)
        self.condition = self._condition(scale)

    def _eliminate(self, sums: Sums, prior: Prior) -> Array:
        """Factor H from its last rows and the factor of its first block; returns the scale of all columns."""
        border = sums.border
        assert border is not None
        xp = namespace(border)
        size = int(border.shape[1])
        self._split = split = size - int(border.shape[0])
        if prior.lower is None:
            add = eye(size - split, border)
        else:
            precision = asarray_like(prior.lower[split:] @ prior.lower.T, border)
            border += precision
            add = zeros((size - split,) * 2, border)
        if self.linear is None:
            assert sums.hessian is not None
            block = sums.hessian
            if prior.lower is None:
                block = add_to_diagonal(block, 1.0)
            else:
                block += asarray_like(prior.lower[:split] @ prior.lower[:split].T, block)
            self.linear = LinearBlock.factor(block)
        own = border[:, split:] + add
        cross = border[:, :split]
        diagonal = xp.asarray(xp.linalg.diagonal(own), copy=True)
        scale = xp.concat([self.linear.scale, 1.0 / xp.sqrt(diagonal)])
        below = scale[split:]
        magnitudes = xp.abs(cross) * self.linear.scale[None, :]
        self._sums = np.concatenate(
            [
                self.linear.sums + to_numpy(below @ magnitudes),
                (to_numpy(xp.sum(magnitudes, axis=1)) + column_sums(own, below)) * to_numpy(below),
            ]
        )
        self._cross = solve_lower(self.linear.lower, xp.permute_dims(cross, (1, 0)))
        self._schur = own - xp.permute_dims(self._cross, (1, 0)) @ self._cross
        self._diagonal = diagonal
        self._factor = factorise(self._schur, _WHAT, _REMEDY)
        return scale

    @property
    def hessian(self) -> Array:
        """H; from its factor if it was not kept."""
        if self._split == 0 and self._hessian is not None:
            return self._hessian
        return self.lower @ self.lower.T

    @property
    def lower(self) -> FloatArray:
        """Cholesky factor of H, on the host."""
        return to_numpy(self.lower_there)

    @property
    def lower_there(self) -> Array:
        """The same where it was computed."""
        if self._cross is None:
            return self._factor
        assert self.linear is not None
        split = self._split
        whole = zeros((len(self.rhs),) * 2, self._factor)
        whole[:split, :split] = self.linear.lower
        whole[split:, :split] = self._cross.T
        whole[split:, split:] = self._factor
        return whole

    def _condition(self, scale: Array) -> float:
        return condition_number(float(self._sums.max(initial=0.0)), scale, self._solve)

    def _solve(self, rhs: Array) -> Array:
        """H⁻¹ rhs."""
        if self._cross is None:
            return solve(self._factor, rhs)
        return self._substitute(self._factor, rhs, None)

    def _substitute(self, factor: Array, rhs: Array, last: Array | None) -> Array:
        """Solve the bordered equations with a factor of S; the end of the solution may be given."""
        assert self.linear is not None and self._cross is not None
        xp, split = namespace(rhs), self._split
        above = solve_lower(self.linear.lower, rhs[:split])
        below = rhs[split:] - above @ self._cross
        if last is None:
            end = solve(factor, below)
        else:
            n = int(below.shape[0]) - int(last.shape[0])
            own = solve_lower(factor[:n, :n], below[:n])
            end = xp.concat([_others(factor, own, last), last])
        return xp.concat([solve_lower(self.linear.lower, above - self._cross @ end, transposed=True), end])

    @property
    def is_accurate(self) -> bool:
        """Whether rounding leaves the solution alone, so that QR would not be better."""
        return self.condition < CONDITION_LIMIT

    def step(self, damping: float, last: FloatArray | None = None) -> FloatArray:
        """See :class:`Equations`."""
        lower = self._factor
        if damping > 0.0:
            xp = namespace(lower)
            matrix, diagonal = (
                (self.hessian, xp.linalg.diagonal(self.hessian))
                if self._cross is None
                else (self._schur, self._diagonal)
            )
            damped = add_to_diagonal(xp.asarray(matrix, copy=True), damping * diagonal)
            lower = factorise(damped, _WHAT, _REMEDY)
        rhs = asarray_like(self.rhs, lower)
        end = None if last is None else asarray_like(last, lower)
        if self._cross is not None:
            return to_numpy(self._substitute(lower, rhs, end))
        if end is None or last is None:
            return to_numpy(solve(lower, rhs))
        n = len(self.rhs) - len(last)
        rest = _others(lower, solve_lower(lower[:n, :n], rhs[:n]), end)
        return np.concatenate([to_numpy(rest), last])

    def solve(self, rhs: FloatArray) -> FloatArray:
        """See :class:`Equations`."""
        return to_numpy(self._solve(asarray_like(rhs, self._factor)))

    def decrement(self) -> float:
        """See :class:`Equations`."""
        return 0.5 * float(self.rhs @ self.step(0.0))

    def promised(self, step: FloatArray) -> float:
        """See :class:`Equations`."""
        own = asarray_like(step, self._factor)
        if self._cross is None:
            length = to_float(own @ (self.hessian @ own))
        else:
            # |Lᵀ step|²
            assert self.linear is not None
            first, end = own[: self._split], own[self._split :]
            lower = self.linear.lower
            images = (first @ lower + self._cross @ end, end @ self._factor)
            length = sum(to_float(image @ image) for image in images)
        return float(step @ self.rhs) - 0.5 * length

    def inverse(self, columns: slice) -> Inverse:
        """See :class:`Equations`."""
        if self.linear is not None and columns == slice(0, self._split):
            return _inverse(self.linear.lower)
        part = namespace(self._factor).asarray(self.hessian[columns, columns], copy=True)
        return _inverse(factorise(part, _WHAT, _REMEDY))


def _inverse(lower: Array) -> Inverse:
    """Solutions with a Cholesky factor, wherever that is."""
    return lambda rhs: to_numpy(solve(lower, asarray_like(rhs, lower)))


class TurnedEquations:
    """Normal equations of turned parameters, in terms of those that are turned.

    Parameters
    ----------
    sums : Sums
        Of turned rows; their memory is used.
    prior : Prior
        With a precision of 1.
    u : (P,) array
    turn : Turn
        No block of it reaches across the end of the linear parameters.
    linear, keep
        As for :class:`NormalEquations`; ``linear`` of equations with the same ``turn``.
    """

    method: Method = "cholesky"

    def __init__(
        self,
        sums: Sums,
        prior: Prior,
        u: FloatArray,
        turn: Turn,
        linear: LinearBlock | None = None,
        *,
        keep: bool = True,
    ) -> None:
        assert prior.lower is None
        self._turn = turn
        own = Prior(turn.forth(prior.mean))
        self._turned = NormalEquations(sums, own, turn.forth(u), linear, keep=keep)
        self.rhs: FloatArray = turn.back(self._turned.rhs)
        self.loss = self._turned.loss
        self.n_residuals = self._turned.n_residuals
        self.condition = self._turned.condition
        self.linear = self._turned.linear

    @property
    def lower(self) -> FloatArray:
        """Cholesky factor of H: the triangle of (Q L')ᵀ, of which H is the square; in one copy of L'."""
        from scipy.linalg.lapack import dgeqrf

        there = self._turned.lower_there
        if not is_numpy(there):
            xp = namespace(there)
            upper = xp.linalg.qr(xp.matrix_transpose(self._turn.back(there)), mode="reduced").R
            diagonal = xp.linalg.diagonal(upper)
            signs = xp.where(diagonal < 0.0, -xp.ones_like(diagonal), xp.ones_like(diagonal))
            return to_numpy(xp.matrix_transpose(upper * signs[:, None]))
        factor = np.array(there, order="C")
        self._turn.turn_back(factor)
        size = len(factor)
        with blas.all_threads():
            packed, _, _, info = dgeqrf(factor.T, lwork=_BLOCK * size, overwrite_a=1)
        assert info == 0
        lower = np.asarray(packed, dtype=np.float64).T
        for start in range(0, size, TILE):
            own = slice(start, start + TILE)
            lower[own, own] = np.tril(lower[own, own])
            lower[own, start + TILE :] = 0.0  # what is left of the reflections
        lower *= np.where(np.diagonal(lower) < 0.0, -1.0, 1.0)
        return lower

    @property
    def is_accurate(self) -> bool:
        """See :class:`NormalEquations`."""
        return self.condition < TURNED_LIMIT

    def step(self, damping: float, last: FloatArray | None = None) -> FloatArray:
        """See :class:`Equations`; damping acts on turned parameters."""
        return np.asarray(self._turn.back(self._turned.step(damping, last)))

    def solve(self, rhs: FloatArray) -> FloatArray:
        """See :class:`Equations`."""
        return np.asarray(self._turn.back(self._turned.solve(self._turn.forth(rhs))))

    def decrement(self) -> float:
        """See :class:`Equations`."""
        return self._turned.decrement()

    def promised(self, step: FloatArray) -> float:
        """See :class:`Equations`."""
        return self._turned.promised(self._turn.forth(step))

    def inverse(self, columns: slice) -> Inverse:
        """See :class:`Equations`."""
        turn = self._turn.inside(columns)
        turned = self._turned.inverse(columns)
        return lambda rhs: np.asarray(turn.back(turned(turn.forth(rhs))))


def scaled_condition(matrix: Array, lower: Array) -> float:
    """Estimated condition number, in the 1-norm, of a positive definite matrix with its diagonal scaled to 1.

    Parameters
    ----------
    matrix, lower : (n, n) arrays
        The matrix and its Cholesky factor.
    """
    scale, sums = _scaled_sums(matrix)
    return condition_number(float(sums.max()), scale, lambda rhs: solve(lower, rhs))


def condition_number(norm: float, scale: Array, solution: Callable[[Array], Array]) -> float:
    """The same from the 1-norm of the scaled matrix and from solutions.

    The norm of the inverse is estimated from a few solutions (Higham 1988, *ACM Trans. Math. Softw.* 14, 381), as
    LAPACK's ``pocon`` does, which other libraries do not have and which wants a copy of the factor.

    Parameters
    ----------
    norm : float
    scale : (n,) array
        One over the square root of the diagonal.
    solution : callable
        Solves equations with the matrix as it is.
    """
    xp = namespace(scale)
    size = int(scale.shape[0])
    vector = full(size, 1.0 / max(size, 1), scale)
    estimate = 0.0
    for _ in range(5 if size else 0):
        image = solution(vector / scale) / scale
        found = to_float(xp.sum(xp.abs(image)))
        if found <= estimate:
            break
        estimate = found
        signs = xp.where(image >= 0.0, xp.ones_like(image), -xp.ones_like(image))
        slope = solution(signs / scale) / scale
        largest = int(to_float(xp.argmax(xp.abs(slope))))
        if to_float(xp.abs(slope[largest])) <= to_float(slope @ vector):
            break
        vector = zeros(size, scale)
        vector[largest] = 1.0
    # the alternative that catches what the iteration misses
    index = xp.astype(arange(0, size, scale), xp.float64)
    signs = 1.0 - 2.0 * xp.astype(arange(0, size, scale) % 2, xp.float64)
    vector = signs * (1.0 + index / max(size - 1, 1))
    other = 2.0 * to_float(xp.sum(xp.abs(solution(vector / scale) / scale))) / (3.0 * max(size, 1))
    return norm * max(estimate, other)


def equations_of(
    sums: Sums,
    prior: Prior,
    u: FloatArray,
    turn: Turn | None,
    linear: LinearBlock | None = None,
    *,
    keep: bool = True,
) -> NormalEquations | TurnedEquations:
    """Normal equations from sums with ``turn`` or without; see there."""
    if turn is None:
        return NormalEquations(sums, prior, u, linear, keep=keep)
    return TurnedEquations(sums, prior, u, turn, linear, keep=keep)


class TriangularEquations:
    """H = RᵀR and b = Rᵀc, neither of which is formed.

    Parameters
    ----------
    sums : Sums
    prior : Prior
    u : (P,) array
    undamped : int
        The first parameters, that damping does not act on.

    Attributes
    ----------
    triangle : (P, P) array
        R.
    image : (P,) array
        c.
    rhs : (P,) array
        b.
    loss : float
    n_residuals : int
    lower : (P, P) array
        Rᵀ with a positive diagonal.
    condition : float
        As in :class:`NormalEquations`: the square of that of R with its columns scaled to 1.
    """

    method: Method = "qr"
    linear: LinearBlock | None = None

    def __init__(self, sums: Sums, prior: Prior, u: FloatArray, undamped: int = 0) -> None:
        assert sums.triangle is not None
        self._undamped = undamped
        rows = np.column_stack([prior.rows(), -prior.residual(u)])
        # from here on on the host: one triangle, and LAPACK has what the rest needs
        whole = push(np.asfortranarray(to_numpy(sums.triangle)), rows)
        signs = np.where(np.diagonal(whole)[:-1] < 0.0, -1.0, 1.0)
        self.triangle = np.triu(signs[:, None] * whole[:-1, :-1])
        self.image = np.asarray(signs * whole[:-1, -1])
        self.rhs = self.triangle.T @ self.image
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
            return _back(self.lower, self.image, last)
        whole = np.zeros((len(self.rhs) + 1,) * 2)
        whole[:-1, :-1], whole[:-1, -1] = self.triangle, self.image
        extra = np.zeros_like(whole)
        lengths = np.linalg.norm(self.triangle, axis=0)
        lengths[: self._undamped] = 0.0
        np.fill_diagonal(extra[:-1, :-1], np.sqrt(damping) * lengths)
        whole = push(whole, extra, triangular=True)
        return _back(whole[:-1, :-1].T, whole[:-1, -1], last)

    def solve(self, rhs: FloatArray) -> FloatArray:
        """See :class:`Equations`."""
        return solve(self.lower, rhs)  # type: ignore[no-any-return]

    def decrement(self) -> float:
        """See :class:`Equations`."""
        return 0.5 * float(self.image @ self.image)

    def promised(self, step: FloatArray) -> float:
        """See :class:`Equations`."""
        image = self.triangle @ step
        return float(image @ self.image) - 0.5 * float(image @ image)

    def inverse(self, columns: slice) -> Inverse:
        """See :class:`Equations`."""
        return _inverse(_upright(self.triangle[:, columns]).T)


def _upright(rows: FloatArray) -> FloatArray:
    """R of rows = Q R with a positive diagonal."""
    triangle = np.asarray(np.linalg.qr(rows, mode="r"), dtype=np.float64)
    return np.where(np.diagonal(triangle) < 0.0, -1.0, 1.0)[:, None] * triangle


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
    "TURNED_LIMIT",
    "Equations",
    "Inverse",
    "LinearBlock",
    "Method",
    "NormalEquations",
    "Prior",
    "Rows",
    "Sums",
    "TriangularEquations",
    "TurnedEquations",
    "condition_number",
    "equations_of",
    "push",
    "scaled_condition",
    "solve",
]
