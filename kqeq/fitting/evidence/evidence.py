"""The marginal likelihood (evidence) of a linearised fit, as a function of noises and prior spreads.

At a linearisation ŷ = c + J u of the labels y, with noise σ_t per label kind t and prior u ~ N(0, 1),

    ln p(y) = −½ Σ_t |y_t − ŷ_t|²/σ_t² − ½ |u|² − ½ ln det H − Σ_t n_t ln σ_t − ½ n ln 2π,    H = Σ_t JᵀJ/σ_t² + 1

exact for dipoles and charges, Laplace's approximation for energies and forces.  Prior spreads (δ of the kernels,
spreads of the offsets) multiply columns of J, noises divide its rows, so the evidence of *any* noise and spread follows
from one Gram matrix per label kind, accumulated once: with s_g the logarithm of a spread relative to the accumulated
one, t_k that of a noise, D = exp(s), and R_k the residuals over the new noise,

    ∂ ln p/∂t_k = |R_k|² + tr(H⁻¹ D A_k D) e^(−2 t_k) − n_k            A_k = J_kᵀJ_k
    ∂ ln p/∂s_g = Σ_{i∈g} u_i² − Σ_{i∈g} (1 − [H⁻¹]_ii)

(MacKay 1992, *Neural Comput.* 4, 415).

Dimensions: P parameters, K label kinds, G groups of columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kqeq.backend import blas, to_numpy
from kqeq.backend.linalg import factorise, solve_lower
from kqeq.errors import NotPositiveDefiniteError
from kqeq.fitting.least_squares.solver import CHUNK_ROWS
from kqeq.fitting.parameters import Parameters
from kqeq.fitting.problem import Chunk, FitProblem, map_chunks
from kqeq.fitting.rows.blocks import deviation, target_vector
from kqeq.typing import FloatArray, IntArray


@dataclass(eq=False)
class KindSums:
    """Gram matrix of the labels of one kind: weighted Jacobian rows and targets y − ŷ + J u.

    Attributes
    ----------
    gram : (P, P) array
        Σ JᵀJ.
    rhs : (P,) array
        Σ Jᵀt.
    square : float
        Σ t².
    n : int
    """

    gram: FloatArray
    rhs: FloatArray
    square: float
    n: int

    def add(self, other: KindSums) -> None:
        """Add another set's contribution in place."""
        self.gram += other.gram
        self.rhs += other.rhs
        self.square += other.square
        self.n += other.n


@dataclass(frozen=True, eq=False)
class Evidence:
    """The log evidence as a function of noises and spreads around one linearisation.

    Attributes
    ----------
    kinds : dict of str to KindSums
    groups : tuple of (P_g,) int arrays
        Columns of each learned spread.
    constant : float
        −Σ n ln σ − ½ n ln 2π at the accumulated noise.
    """

    kinds: Mapping[str, KindSums]
    groups: tuple[IntArray, ...]
    constant: float

    @property
    def names(self) -> tuple[str, ...]:
        """Label kinds, in the order of theta."""
        return tuple(self.kinds)

    @property
    def size(self) -> int:
        """K + G."""
        return len(self.kinds) + len(self.groups)

    def scales(self, theta: FloatArray) -> FloatArray:
        """Factors of all columns, (P,)."""
        columns = np.ones(len(next(iter(self.kinds.values())).rhs))
        for group, value in zip(self.groups, theta[len(self.kinds) :], strict=True):
            columns[group] = math.exp(value)
        return columns

    def evaluate(self, theta: FloatArray) -> tuple[float, FloatArray, FloatArray]:
        """Log evidence, its gradient and the most probable parameters.

        Parameters
        ----------
        theta : (K + G,) array
            Logarithms of noises and spreads relative to the accumulated ones.

        Returns
        -------
        float, (K + G,) array, (P,) array

        Raises
        ------
        NotPositiveDefiniteError
            If rounding makes H indefinite.
        """
        columns = self.scales(theta)
        weights = np.exp(-2.0 * theta[: len(self.kinds)])
        hessian = np.zeros((len(columns), len(columns)))
        rhs = np.zeros(len(columns))
        for weight, sums in zip(weights, self.kinds.values(), strict=True):
            hessian += weight * sums.gram
            rhs += weight * sums.rhs
        hessian *= columns[:, None] * columns
        hessian[np.diag_indices_from(hessian)] += 1.0
        lower = factorise(hessian, "the matrix of the normal equations", "raise the smallest noise")
        u = solve_lower(lower, solve_lower(lower, columns * rhs), transposed=True)
        covariance = inverse_of(lower)

        value = self.constant - 0.5 * float(u @ u) - float(np.log(np.diagonal(lower)).sum())
        gradient = np.zeros(self.size)
        moved = columns * u
        for k, (weight, sums) in enumerate(zip(weights, self.kinds.values(), strict=True)):
            residual = sums.square - 2.0 * float(moved @ sums.rhs) + float(moved @ sums.gram @ moved)
            value -= 0.5 * weight * residual + sums.n * theta[k]
            spread = float(np.einsum("i,ij,ij,j->", columns, covariance, sums.gram, columns, optimize=True))
            gradient[k] = weight * (residual + spread) - sums.n
        determined = 1.0 - np.diagonal(covariance)
        for g, group in enumerate(self.groups, start=len(self.kinds)):
            gradient[g] = float(u[group] @ u[group]) - float(determined[group].sum())
        return value, gradient, u


@dataclass(frozen=True, eq=False)
class DualEvidence:
    """The same function where labels are fewer than parameters: the Gaussian of the labels themselves.

    Their covariance is C = Σ_g e^(2 s_g) J_g J_gᵀ + J_f J_fᵀ + e^(2 t), with f the columns whose spread is fixed, so

        ∂ ln p/∂s_g = e^(2 s_g) (aᵀ J_g J_gᵀ a − tr C⁻¹ J_g J_gᵀ)            a = C⁻¹ t
        ∂ ln p/∂t_k = e^(2 t_k) Σ_{i∈k} (a_i² − [C⁻¹]_ii)

    Attributes
    ----------
    names : tuple of str
        Label kinds.
    kind : (n,) int array
        Kind of every label.
    rows : (n, P) array
        J at the accumulated noise and spreads.
    targets : (n,) array
    groups : tuple of (P_g,) int arrays
    grams : tuple of (n, n) arrays
        J_g J_gᵀ.
    fixed : (n, n) array
        J_f J_fᵀ.
    constant : float
        −Σ n ln σ − ½ n ln 2π at the accumulated noise.
    """

    names: tuple[str, ...]
    kind: IntArray
    rows: FloatArray
    targets: FloatArray
    groups: tuple[IntArray, ...]
    grams: tuple[FloatArray, ...]
    fixed: FloatArray
    constant: float

    @classmethod
    def build(
        cls,
        kinds: Mapping[str, tuple[FloatArray, FloatArray]],
        groups: tuple[IntArray, ...],
        constant: float,
    ) -> DualEvidence:
        """From rows and targets by kind."""
        rows = np.concatenate([r for r, _ in kinds.values()])
        targets = np.concatenate([t for _, t in kinds.values()])
        kind = np.repeat(np.arange(len(kinds)), [len(t) for _, t in kinds.values()])
        others = np.setdiff1d(
            np.arange(rows.shape[1]), np.concatenate([*groups, np.zeros(0, dtype=np.int64)])
        )
        grams = tuple(rows[:, group] @ rows[:, group].T for group in groups)
        fixed = rows[:, others] @ rows[:, others].T
        return cls(tuple(kinds), kind, rows, targets, groups, grams, fixed, constant)

    @property
    def size(self) -> int:
        """K + G."""
        return len(self.names) + len(self.groups)

    def evaluate(self, theta: FloatArray) -> tuple[float, FloatArray, FloatArray]:
        """Log evidence, its gradient and the most probable parameters; see :meth:`Evidence.evaluate`."""
        noise = np.exp(2.0 * theta[: len(self.names)])
        spreads = np.exp(2.0 * theta[len(self.names) :])
        lower, weights = self.solve(theta)
        inverse = inverse_of(lower)
        value = self.constant - 0.5 * float(self.targets @ weights) - float(np.log(np.diagonal(lower)).sum())
        own = weights**2 - np.diagonal(inverse)
        gradient = np.concatenate(
            [
                noise * np.bincount(self.kind, own, len(self.names)),
                [
                    spread * (float(weights @ gram @ weights) - float(np.vdot(inverse, gram)))
                    for spread, gram in zip(spreads, self.grams, strict=True)
                ],
            ]
        )
        return value, gradient, self._weighted(theta, weights)

    def solve(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Cholesky factor of C, and C⁻¹ t.

        Raises
        ------
        NotPositiveDefiniteError
            If rounding makes C indefinite.
        """
        noise = np.exp(2.0 * theta[: len(self.names)])
        spreads = np.exp(2.0 * theta[len(self.names) :])
        covariance = self.fixed.copy()
        for spread, gram in zip(spreads, self.grams, strict=True):
            covariance += spread * gram
        covariance[np.diag_indices_from(covariance)] += noise[self.kind]
        lower = factorise(covariance, "the covariance of the labels", "raise the smallest noise")
        return lower, solve_lower(lower, solve_lower(lower, self.targets), transposed=True)

    def parameters(self, theta: FloatArray) -> FloatArray:
        """The most probable parameters, (P,)."""
        return self._weighted(theta, self.solve(theta)[1])

    def _weighted(self, theta: FloatArray, weights: FloatArray) -> FloatArray:
        u: FloatArray = self.rows.T @ weights
        for spread, group in zip(theta[len(self.names) :], self.groups, strict=True):
            u[group] *= math.exp(spread)
        return u


AnyEvidence = Evidence | DualEvidence


def inverse_of(lower: FloatArray) -> FloatArray:
    """(L Lᵀ)⁻¹, symmetric."""
    from scipy.linalg.lapack import dpotri

    upper_part, info = dpotri(lower, lower=1)
    if info != 0:
        raise NotPositiveDefiniteError(
            "the matrix of the normal equations is singular; raise the smallest noise"
        )
    full = np.tril(upper_part)
    return np.asarray(full + np.tril(full, -1).T)


def inverse_factor(lower: FloatArray) -> FloatArray:
    """L⁻¹, lower triangular."""
    from scipy.linalg.lapack import dtrtri

    # L of NumPy's order is Lᵀ of LAPACK's
    inverse, info = dtrtri(lower.T, lower=0)
    if info != 0:
        raise NotPositiveDefiniteError("the covariance of the labels is singular; raise the smallest noise")
    return np.asarray(inverse).T


def column_groups(parameters: Parameters) -> tuple[tuple[str, IntArray], ...]:
    """The columns that share a prior spread, with a name: kernels and offsets of all parts."""
    groups: list[tuple[str, IntArray]] = []
    names = iter(parameters.kernels)
    for name, part in parameters.parts.items():
        for kernel in part.kernels:
            groups.append((f"{next(names)} delta", np.arange(kernel.columns.start, kernel.columns.stop)))
        if part.offset_spread > 0.0:
            offsets = np.arange(part.columns.stop - len(part.offset_mean), part.columns.stop)
            groups.append((f"{name} spread", offsets))
    return tuple(groups)


def collect(problem: FitProblem, u: FloatArray) -> AnyEvidence:
    """Accumulate what the evidence at ``u`` needs, chunk by chunk through joblib.

    Where labels are fewer than parameters their rows are kept instead of Gram matrices of all parameters.
    """
    groups = tuple(columns for _, columns in column_groups(problem.parameters))
    if sum(frame.n_labels for frame in problem.frames) < problem.size:
        return _collect_rows(problem, u, groups)
    total: dict[str, KindSums] = {}
    constant = 0.0
    for sums, part in map_chunks(
        _chunk_kinds, problem.chunks, u, description="evidence", distribute=problem.device.is_host
    ):
        constant += part
        for kind, own in sums.items():
            if kind in total:
                total[kind].add(own)
            else:
                total[kind] = own
    return Evidence(dict(sorted(total.items())), groups, constant)


def _collect_rows(problem: FitProblem, u: FloatArray, groups: tuple[IntArray, ...]) -> DualEvidence:
    rows: dict[str, list[FloatArray]] = {}
    targets: dict[str, list[FloatArray]] = {}
    constant = 0.0
    for blocks in map_chunks(
        _chunk_rows, problem.chunks, u, description="evidence", distribute=problem.device.is_host
    ):
        for kind, own_rows, own_targets, part in blocks:
            rows.setdefault(kind, []).append(own_rows)
            targets.setdefault(kind, []).append(own_targets)
            constant += part
    stacked = {kind: (np.concatenate(rows[kind]), np.concatenate(targets[kind])) for kind in sorted(rows)}
    return DualEvidence.build(stacked, groups, constant)


def _chunk_rows(chunk: Chunk, u: FloatArray) -> list[tuple[str, FloatArray, FloatArray, float]]:
    with blas.one_thread():
        return list(_blocks(chunk, u))


def _blocks(chunk: Chunk, u: FloatArray) -> Iterator[tuple[str, FloatArray, FloatArray, float]]:
    """Kind, rows, targets y − ŷ + J u and share of the constant for every label of a chunk."""
    for frame, (found, jacobian) in zip(chunk.frames, chunk.rows(u, jacobian="full"), strict=True):
        assert jacobian is not None
        residual, rows = to_numpy(found), to_numpy(jacobian)
        targets = residual + rows @ u
        start = 0
        for kind in frame.labels.kinds:
            stop = start + target_vector(frame, kind).size
            scale = deviation(frame, kind, chunk.noise)
            if math.isfinite(scale):  # a label without weight says nothing, about the noise neither
                constant = -(stop - start) * (math.log(scale) + 0.5 * math.log(2.0 * math.pi))
                yield kind, rows[start:stop], targets[start:stop], constant
            start = stop


def _chunk_kinds(chunk: Chunk, u: FloatArray) -> tuple[dict[str, KindSums], float]:
    """Gram matrices of one chunk by kind, and its share of the constant."""
    with blas.one_thread():
        return _sum_kinds(chunk, u)


def _sum_kinds(chunk: Chunk, u: FloatArray) -> tuple[dict[str, KindSums], float]:
    total: dict[str, KindSums] = {}
    pending: dict[str, list[tuple[FloatArray, FloatArray]]] = {}
    constant = 0.0

    def flush(kind: str) -> None:
        rows = np.concatenate([r for r, _ in pending[kind]])
        targets = np.concatenate([t for _, t in pending[kind]])
        own = KindSums(rows.T @ rows, rows.T @ targets, float(targets @ targets), len(targets))
        if kind in total:
            total[kind].add(own)
        else:
            total[kind] = own
        pending[kind] = []

    for kind, rows, targets, part in _blocks(chunk, u):
        pending.setdefault(kind, []).append((rows, targets))
        constant += part
        if sum(len(t) for _, t in pending[kind]) >= CHUNK_ROWS:
            flush(kind)
    for kind in [kind for kind, waiting in pending.items() if waiting]:
        flush(kind)
    return total, constant


def maximise(evidence: AnyEvidence, bounds: Sequence[tuple[float, float]], start: FloatArray) -> FloatArray:
    """Noises and spreads of the largest evidence of one linearisation, within bounds on the logarithms."""
    from scipy.optimize import minimize

    def negative(theta: FloatArray) -> tuple[float, FloatArray]:
        try:
            value, gradient, _ = evidence.evaluate(theta)
        except NotPositiveDefiniteError:
            return 1e300, np.zeros_like(theta)  # the line search turns back
        return -value, -gradient

    found = minimize(
        negative,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=list(bounds),
        options={"maxiter": 60, "ftol": 1e-9},
    )
    return np.asarray(found.x, dtype=np.float64)


__all__ = [
    "AnyEvidence",
    "DualEvidence",
    "Evidence",
    "KindSums",
    "collect",
    "column_groups",
    "inverse_factor",
    "inverse_of",
    "maximise",
]
