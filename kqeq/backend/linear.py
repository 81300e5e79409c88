"""Factorisations and triangular solutions, with CuPy's silent failures made audible.

Dimensions: n unknowns, c right-hand sides.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from kqeq.backend.arrays import buffer, is_cupy, is_numpy, namespace, together, wrapped
from kqeq.typing import Array


def cholesky(matrix: Array, *, overwrite: bool = False) -> Array | None:
    """Lower Cholesky factor, or None where there is none or it is not finite.

    LAPACK lets NaN pass, and CuPy by default returns garbage for matrices that are not positive definite.  With
    ``overwrite`` a contiguous NumPy matrix becomes the factor (or garbage, where there is none) without a copy.
    """
    if overwrite and is_numpy(matrix) and matrix.flags.c_contiguous and len(matrix):
        return _cholesky_in_place(matrix)
    try:
        if is_cupy(matrix):
            lower = _audible_cholesky(matrix)
        else:
            from scipy.linalg import lapack

            # SciPy's own function spends more on small matrices than the factor takes
            own, info = lapack.dpotrf(buffer(matrix), lower=1, clean=1)
            return wrapped(own, matrix) if info == 0 and np.isfinite(own.diagonal()).all() else None
    except np.linalg.LinAlgError:
        return None
    return lower if _is_finite(lower) else None


def all_positive_definite(matrices: Array) -> bool:
    """Whether every symmetric matrix of a stack (B, n, n) has a Cholesky factor that is finite."""
    try:
        if is_cupy(matrices):
            lower = _audible_cholesky(matrices)
        else:
            lower = wrapped(np.linalg.cholesky(buffer(matrices)), matrices)
    except np.linalg.LinAlgError:
        return False
    return _is_finite(lower)


def _audible_cholesky(matrices: Array) -> Array:
    """CuPy's factor of a matrix or of a stack; raises ``LinAlgError`` where it would return garbage."""
    import cupyx

    with cupyx.errstate(linalg="raise"):
        return namespace(matrices).linalg.cholesky(matrices)


def _is_finite(lower: Array) -> bool:
    xp = namespace(lower)
    return bool(xp.all(xp.isfinite(xp.linalg.diagonal(lower))))


def _cholesky_in_place(matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
    """Column block after column block, so that nearly all of it is one product a block.

    LAPACK's own ``potrf`` runs at half the speed of products here, and wants a copy in another order.
    """
    from scipy.linalg.lapack import dpotrf, dtrtrs

    size = len(matrix)
    for start in range(0, size, _CHOLESKY_BLOCK):
        stop = min(start + _CHOLESKY_BLOCK, size)
        if start:
            matrix[start:, start:stop] -= matrix[start:, :start] @ matrix[start:stop, :start].T
        own, info = dpotrf(np.asfortranarray(matrix[start:stop, start:stop]), lower=1, clean=1)
        if info != 0 or not np.isfinite(np.diagonal(own)).all():
            return None
        matrix[start:stop, start:stop] = own
        if stop < size:
            below, _ = dtrtrs(own, matrix[stop:, start:stop].T, lower=1)
            matrix[stop:, start:stop] = below.T
            matrix[start:stop, stop:] = 0.0
    return matrix


_CHOLESKY_BLOCK = 512


def solve_triangular(lower: Array, rhs: Array, *, transposed: bool = False) -> Array:
    """Solve L x = rhs (or Lᵀ x = rhs) for a lower triangular L (n, n), rhs of shape (n,) or (n, c)."""
    together(lower, rhs)
    trans: Literal["N", "T"] = "T" if transposed else "N"
    if is_cupy(lower):
        import cupyx.scipy.linalg as cupy_linalg

        return cupy_linalg.solve_triangular(lower, rhs, lower=True, trans=trans, check_finite=False)
    from scipy import linalg

    solution = linalg.solve_triangular(
        buffer(lower), buffer(rhs), lower=True, trans=trans, check_finite=False
    )
    return wrapped(np.asarray(solution), rhs)


def cho_solve(lower: Array, rhs: Array) -> Array:
    """Solve L Lᵀ x = rhs for a lower triangular L (n, n), rhs of shape (n,) or (n, c)."""
    together(lower, rhs)
    if is_numpy(lower):
        from scipy.linalg import lapack

        # SciPy's own function spends more on small systems than the solution takes
        if lower.dtype == np.float64 and rhs.dtype == np.float64 and lower.size and rhs.size:
            given = (lower, rhs) if lower.flags.f_contiguous else (lower.T, rhs)
            # the transpose of a factor in C's order is an upper one in Fortran's
            solution, _ = lapack.dpotrs(*given, lower=int(lower.flags.f_contiguous))
            return np.asarray(solution).reshape(rhs.shape)
        from scipy import linalg

        return np.asarray(linalg.cho_solve((lower, True), rhs, check_finite=False))
    return solve_triangular(lower, solve_triangular(lower, rhs), transposed=True)


def inverse(matrix: Array) -> Array:
    """Inverse of a small matrix, or of a stack of them.

    Raises
    ------
    numpy.linalg.LinAlgError
        If one is singular (CuPy's default would be NaN).
    """
    if is_cupy(matrix):
        import cupyx

        with cupyx.errstate(linalg="raise"):
            return namespace(matrix).linalg.inv(matrix)
    if matrix.shape == (1, 1) and float(matrix[0, 0]) != 0.0:
        return 1.0 / matrix
    return wrapped(np.linalg.inv(buffer(matrix)), matrix)


__all__ = [
    "all_positive_definite",
    "cho_solve",
    "cholesky",
    "inverse",
    "solve_triangular",
]
