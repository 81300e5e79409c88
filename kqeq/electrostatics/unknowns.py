"""How charges and dipoles are laid out in one vector y, and the checks at the door of a provider."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kqeq.backend import empty, namespace, to_numpy
from kqeq.constants import COULOMB
from kqeq.errors import InputError
from kqeq.typing import Array


@dataclass(frozen=True)
class Unknowns:
    """Layout y = (q_1 … q_N) or (q_1 … q_N, d_1x, d_1y, d_1z, d_2x, …).

    Attributes
    ----------
    atoms : int
        N.
    dipoles : bool
    """

    atoms: int
    dipoles: bool

    @property
    def size(self) -> int:
        """Length of y."""
        return 4 * self.atoms if self.dipoles else self.atoms

    def dipole_rows(self, axis: int, start: int = 0, stop: int | None = None) -> slice:
        """Rows of y that hold component ``axis`` of the dipoles of atoms ``start`` to ``stop``."""
        stop = self.atoms if stop is None else stop
        return slice(self.atoms + 3 * start + axis, self.atoms + 3 * stop, 3)

    def check(self, y: Array, *, dimensions: tuple[int, ...] = (1, 2)) -> Array:
        """Return ``y`` when its shape is (n,) or (n, c), as far as the number of dimensions is one of those allowed.

        Raises
        ------
        InputError
            For any other shape.
        """
        if y.ndim not in dimensions or y.shape[0] != self.size:
            what = "charges and dipoles" if self.dipoles else "charges"
            shapes = {1: f"({self.size},)", 2: f"({self.size}, columns)"}
            expected = " or ".join(shapes[n] for n in dimensions)
            raise InputError(
                f"{what} of {self.atoms} atoms have shape {expected}, got {tuple(y.shape)}; "
                "dipoles follow the charges atom by atom (d_1x, d_1y, d_1z, d_2x, ...)"
            )
        return y

    def charges(self, y: Array) -> Array:
        """Charges, shape (N, ...)."""
        return y[: self.atoms, ...]

    def components(self, y: Array) -> list[Array] | None:
        """The dipole components x, y, z, each of shape (N, ...); None without dipoles."""
        if not self.dipoles:
            return None
        return [y[self.dipole_rows(axis), ...] for axis in range(3)]


def full_diagonal(layout: Unknowns, sigma: Array, added: Array) -> Array:
    """Self interaction of isolated Gaussians plus ``added``, shape (n,).

    Raises
    ------
    InputError
        When an element is not positive (a hardness so negative that A + diag(added) is indefinite).
    """
    xp = namespace(sigma, added)
    layout.check(added, dimensions=(1,))
    diagonal = empty(layout.size, sigma)
    diagonal[: layout.atoms] = COULOMB / math.sqrt(math.pi) / sigma
    if layout.dipoles:
        for axis in range(3):
            diagonal[layout.dipole_rows(axis)] = COULOMB / (6.0 * math.sqrt(math.pi)) / sigma**3
    total = diagonal + added
    if not bool(xp.all(total > 0.0)):
        row = int(np.flatnonzero(~(to_numpy(total) > 0.0))[0])
        raise InputError(
            f"diagonal element {row} of the Coulomb matrix plus hardness is {float(total[row]):.4g}, and has to be "
            "positive; raise the hardness (or 1/polarizability) of that atom or make its Gaussian narrower"
        )
    return total


def checked_positions(positions: Array) -> Array:
    """Positions as float64 of shape (N, 3), all finite.

    Raises
    ------
    InputError
        For another shape, no atoms, or NaN and infinite coordinates.
    """
    xp = namespace(positions)
    if positions.ndim != 2 or positions.shape[1] != 3 or positions.shape[0] == 0:
        raise InputError(
            f"positions have shape (atoms, 3) with at least one atom, got {tuple(positions.shape)}"
        )
    positions = xp.astype(positions, xp.float64, copy=False)
    if not bool(xp.all(xp.isfinite(positions))):
        bad = np.flatnonzero(~np.isfinite(to_numpy(positions)).all(axis=1))
        raise InputError(
            f"positions of atoms {bad[:5].tolist()} are NaN or infinite; "
            "the geometry that was handed over is broken (an exploded trajectory, a failed optimisation step?)"
        )
    return positions


def checked_sigma(sigma: Array, positions: Array) -> Array:
    """Gaussian widths as float64 of shape (N,), positive and finite.

    Raises
    ------
    InputError
        For another shape or a width that is not positive.
    """
    xp = namespace(sigma, positions)
    if sigma.ndim != 1 or sigma.shape[0] != positions.shape[0]:
        raise InputError(
            f"one Gaussian width per atom is needed, shape ({positions.shape[0]},), got {tuple(sigma.shape)}"
        )
    sigma = xp.astype(sigma, xp.float64, copy=False)
    good = (sigma > 0.0) & (sigma < np.inf)
    if not bool(xp.all(good)):
        bad = np.flatnonzero(~to_numpy(good))
        raise InputError(
            f"Gaussian widths are positive lengths in Å; atoms {bad[:5].tolist()} have "
            f"{to_numpy(sigma)[bad[:5]].tolist()}. A point charge is approached with a small width such as 0.05"
        )
    return sigma


def checked_cell(cell: Array) -> Array:
    """A complete cell, float64, shape (3, 3), rows the lattice vectors.

    Raises
    ------
    InputError
        For another shape, NaN, or a cell without volume.
    """
    cell = np.asarray(to_numpy(cell), dtype=np.float64)
    if cell.shape != (3, 3) or not np.isfinite(cell).all():
        raise InputError(f"a cell is three finite lattice vectors, shape (3, 3), got {cell.tolist()}")
    lengths = np.linalg.norm(cell, axis=1)
    if not (lengths > 0.0).all() or abs(np.linalg.det(cell)) < 1e-6 * lengths.prod():
        raise InputError(
            f"the cell {cell.tolist()} has no volume: its lattice vectors are zero or lie in one plane. "
            "Give three independent vectors, or set pbc to False along directions that do not repeat"
        )
    return cell


__all__ = ["Unknowns", "checked_cell", "checked_positions", "checked_sigma", "full_diagonal"]
