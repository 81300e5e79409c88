"""Orthogonal changes of parameters that keep the digits of normal equations.

Kernel features of all environments share a large constant part, and labels of energies weigh it by eV over meV: a
handful of directions in the space of parameters have eigenvalues of H that are ten or more orders above the prior's 1,
and rounding in proportion to them drowns what the prior and the forces say.  A diagonal scaling does not help, because
these directions are sums over all columns.  With an orthogonal Q,

    u = Q u',        J' = J Q,        H' = Qᵀ H Q = J'ᵀJ' + 1,

the prior N(0, 1) is what it was, and if the first columns of Q span the large directions, the first columns of J' are
large, all others small, and elements of H' are rounded in proportion to their own columns (Demmel & Veselić 1992, *SIAM
J. Matrix Anal. Appl.* 13, 1204: Cholesky factors are as accurate as the matrix with a diagonal of 1 is well
conditioned).  The directions of a few frames serve for all.  Measured, condition of the scaled matrix: water, short range
1.2e14 → 3e8; alkanes 6e12 → 1e7; NaCl with charges 4e12 → 5e10; water with charges 6e15 → 3e13.

Q is block diagonal, a product of k Householder reflections in each block, 1 − Y T Yᵀ (Schreiber & Van Loan 1989, *SIAM J.
Sci. Stat. Comput.* 10, 53): a block of n rows takes 4 n k p operations, k/p of the product with itself.

Dimensions: P parameters, p of one block, k directions, n rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from kqeq.backend import asarray_like, is_numpy, namespace, place
from kqeq.typing import Array, FloatArray

DIRECTIONS = 40
"""Directions of each block."""

CHUNK = 512
"""Columns of a matrix that are turned at a time."""

FEWEST = 2 * DIRECTIONS
"""Parameters below which a block is left as it is."""


@dataclass(frozen=True, eq=False)
class Reflections:
    """1 − Y T Yᵀ on some of the parameters.

    Attributes
    ----------
    columns : slice
        Which.
    vectors : (p, k) array
        Y.
    factor : (k, k) array
        T, upper triangular.
    """

    columns: slice
    vectors: FloatArray
    factor: FloatArray

    @classmethod
    def onto(cls, columns: slice, directions: FloatArray) -> Reflections:
        """With first columns that span the same space as the columns of ``directions`` (p, k)."""
        from scipy.linalg import qr

        (packed, tau), _ = qr(directions, mode="raw")
        vectors: FloatArray = np.tril(np.asarray(packed, dtype=np.float64), -1)
        count = vectors.shape[1]
        vectors[np.arange(count), np.arange(count)] = 1.0
        used = tau != 0.0  # a column that needs no reflection
        vectors, tau = np.ascontiguousarray(vectors[:, used]), tau[used]
        inverse = np.triu(vectors.T @ vectors, 1)
        np.fill_diagonal(inverse, 1.0 / tau)
        return cls(columns, vectors, np.asarray(np.linalg.inv(inverse)))


@dataclass(frozen=True, eq=False)
class Turn:
    """Q.

    Attributes
    ----------
    blocks : tuple of Reflections
        Of columns that do not overlap; all others stay.
    """

    blocks: tuple[Reflections, ...]
    _copies: dict[tuple[str, str], list[Reflections]] = field(default_factory=dict, repr=False)

    def _placed(self, like: Array) -> list[Reflections]:
        """The blocks on the device of an array, where they are needed again and again."""
        name = place(like)
        if name not in self._copies:
            self._copies[name] = [
                replace(b, vectors=asarray_like(b.vectors, like), factor=asarray_like(b.factor, like))
                for b in self.blocks
            ]
        return self._copies[name]

    @classmethod
    def towards(cls, rows: FloatArray, blocks: Sequence[slice]) -> Turn | None:
        """Onto the largest directions of rows (n, P) in each block; ``None`` where there is nothing to turn."""
        found = []
        for columns in blocks:
            own = rows[:, columns]
            if own.shape[1] < FEWEST:
                continue
            # the directions need not be accurate, only orthogonal, which the reflections are anyway
            values, vectors = np.linalg.eigh(own @ own.T)
            chosen = values > 1e-12 * max(float(values[-1]), 1e-300)
            directions = own.T @ vectors[:, chosen][:, ::-1][:, :DIRECTIONS]
            if directions.shape[1]:
                found.append(Reflections.onto(columns, directions))
        return cls(tuple(found)) if found else None

    def rows(self, rows: Array) -> Array:
        """J Q from J (n, P), in its place where it is NumPy's."""
        if is_numpy(rows):
            for block in self.blocks:
                part = rows[:, block.columns]
                part -= ((part @ block.vectors) @ block.factor) @ block.vectors.T
            return rows
        xp = namespace(rows)
        parts, last = [], 0
        for block in self._placed(rows):
            vectors, factor = block.vectors, block.factor
            parts.append(rows[:, last : block.columns.start])
            part = rows[:, block.columns]
            parts.append(part - ((part @ vectors) @ factor) @ xp.permute_dims(vectors, (1, 0)))
            last = block.columns.stop
        return xp.concat([*parts, rows[:, last:]], axis=1)

    def forth(self, vector: Array) -> Array:
        """Qᵀ v, (P,) or (P, n), on the device of v: u to u', and gradients likewise."""
        return self._each(vector, transposed=True)

    def back(self, vector: Array) -> Array:
        """Q v, (P,) or (P, n): the opposite."""
        return self._each(vector, transposed=False)

    def turn_back(self, matrix: FloatArray) -> None:
        """Q X in the place of X, (P, n), with little memory beside it."""
        for block in self.blocks:
            for start in range(0, matrix.shape[1], CHUNK):
                part = matrix[block.columns, start : start + CHUNK]
                part -= block.vectors @ (block.factor @ (block.vectors.T @ part))

    def inside(self, columns: slice) -> Turn:
        """On these parameters alone, numbered from their first; no block may reach across their ends."""
        first = columns.start
        return Turn(
            tuple(
                replace(own, columns=slice(own.columns.start - first, own.columns.stop - first))
                for own in self.blocks
                if first <= own.columns.start and own.columns.stop <= columns.stop
            )
        )

    def _each(self, vector: Array, *, transposed: bool) -> Array:
        xp = namespace(vector)
        parts, last = [], 0
        for block in self.blocks:
            vectors, factor = (asarray_like(a, vector) for a in (block.vectors, block.factor))
            factor = xp.permute_dims(factor, (1, 0)) if transposed else factor
            own = vector[block.columns, ...]
            image = factor @ (xp.permute_dims(vectors, (1, 0)) @ own)
            parts += [vector[last : block.columns.start, ...], own - vectors @ image]
            last = block.columns.stop
        return xp.concat([*parts, vector[last:, ...]])


__all__ = ["DIRECTIONS", "FEWEST", "Reflections", "Turn"]
