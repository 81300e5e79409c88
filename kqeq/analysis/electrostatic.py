"""Electrostatic potential and field of a model's charges: Gaussians, with their dipoles where the model has them.

    φ(r) = k_e Σ_i [q_i − d_i·∇] erf(|r − r_i| / (√2 σ_i)) / |r − r_i|

In a cell with three periodic directions the sum runs over reciprocal lattice vectors; the average over the cell is zero,
as in the energy.  The external field is not part of it.

Dimensions: N atoms, P points.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from typing import Annotated, Any, ClassVar

import numpy as np
from ase import Atoms

from kqeq.analysis.entry import fix, require_charges
from kqeq.analysis.results import Result
from kqeq.constants import COULOMB
from kqeq.electrostatics.radial import gaussian_coulomb
from kqeq.errors import InputError, UnsupportedError
from kqeq.io.atomic_write import atomic_path
from kqeq.potential.fixed_geometry import FixedGeometry
from kqeq.typing import FloatArray, IntArray

BLOCK = 2_000_000
"""Pairs of points and atoms (or lattice vectors) that are treated at a time."""

ACCURACY = 1e-9
"""Where the reciprocal sum of periodic cells ends: the factor exp(−G²σ²/2) of its last terms."""


@dataclass(frozen=True, eq=False)
class ElectrostaticPotential(Result):
    """Potential and field of the charges.

    Attributes
    ----------
    points : (P, 3) array
        Å.
    potential : (P,) array
        V.
    field : (P, 3) array
        −∇potential, V/Å.
    """

    points: Annotated[FloatArray, "Å"]
    potential: Annotated[FloatArray, "V"]
    field: Annotated[FloatArray, "V/Å"]
    rows: ClassVar[str] = "points"


@dataclass(frozen=True, eq=False)
class PotentialGrid(Result):
    """Potential on a regular grid.

    Attributes
    ----------
    values : (n1, n2, n3) array
        V.
    origin : (3,) array
        Position of the first point, Å.
    box : (3, 3) array
        Rows span the grid, Å; point (i, j, k) lies at origin + (i/n1, j/n2, k/n3) @ box.
    numbers : (N,) int array
    positions : (N, 3) array
        Of the atoms, Å.
    pbc : (3,) bool array
    """

    values: Annotated[FloatArray, "V"]
    origin: Annotated[FloatArray, "Å"]
    box: Annotated[FloatArray, "Å"]
    numbers: IntArray
    positions: Annotated[FloatArray, "Å"]
    pbc: Any
    rows: ClassVar[str] = "values"

    def to_cube(self, path: str | PathLike[str]) -> None:
        """Write a cube file (values in V, lengths in bohr as the format wants them), atomically.

        Raises
        ------
        InputError
            If the path cannot be written.
        """
        from ase.io.cube import write_cube

        atoms = Atoms(self.numbers, self.positions, cell=self.box, pbc=self.pbc)
        with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            write_cube(
                file, atoms, data=self.values, origin=self.origin, comment="electrostatic potential in V"
            )


@dataclass(frozen=True, eq=False)
class _Sources:
    """Charges q (N,), dipoles d (N, 3), widths (N,) and where they are."""

    positions: FloatArray
    charges: FloatArray
    dipoles: FloatArray | None
    widths: FloatArray
    cell: FloatArray | None


def electrostatic_potential(
    model: Any, atoms: Atoms, points: Any, *, total_charge: Any = None, external_field: Any = None
) -> ElectrostaticPotential:
    """Potential and field of the charges at any points.

    Parameters
    ----------
    model : KQEq
    atoms : ase.Atoms
        Isolated, or periodic in all three directions.
    points : (P, 3) array-like
        Å.
    total_charge, external_field : optional
        e, V/Å; otherwise from ``atoms.info``.

    Returns
    -------
    ElectrostaticPotential

    Raises
    ------
    InputError, UnsupportedError, ModelNotFittedError
    """
    where = np.atleast_2d(np.asarray(points, dtype=np.float64))
    if where.ndim != 2 or where.shape[1] != 3 or not np.isfinite(where).all():
        raise InputError(f"points has shape {np.shape(points)}; expected finite coordinates (P, 3) in Å")
    sources = _sources(fix(model, atoms, total_charge, external_field))
    values = np.concatenate(list(_evaluate(sources, where)))
    return ElectrostaticPotential(where, values[:, 0], values[:, 1:])


def potential_grid(
    model: Any,
    atoms: Atoms,
    *,
    spacing: float = 0.3,
    margin: float = 4.0,
    total_charge: Any = None,
    external_field: Any = None,
) -> PotentialGrid:
    """Potential on a regular grid: around an isolated structure, or over a periodic cell.

    Parameters
    ----------
    model : KQEq
    atoms : ase.Atoms
    spacing : float
        Largest distance of neighbouring points along the axes, Å.
    margin : float
        Space on every side of an isolated structure, Å.
    total_charge, external_field : optional
        e, V/Å; otherwise from ``atoms.info``.

    Returns
    -------
    PotentialGrid
        With :meth:`PotentialGrid.to_cube`.

    Raises
    ------
    InputError, UnsupportedError, ModelNotFittedError
    """
    if not (np.isfinite(spacing) and spacing > 0.0 and np.isfinite(margin) and margin >= 0.0):
        raise InputError(f"spacing is {spacing!r} and margin {margin!r}; expected positive lengths in Å")
    geometry = fix(model, atoms, total_charge, external_field)
    sources = _sources(geometry)
    structure = geometry.structure
    if structure.periodic:
        origin, box = np.zeros(3), structure.cell
    else:
        origin = structure.positions.min(axis=0) - margin
        box = np.diag(np.ptp(structure.positions, axis=0) + 2.0 * margin)
    shape = tuple(int(n) for n in np.maximum(1, np.ceil(np.linalg.norm(box, axis=1) / spacing - 1e-9)))
    if sources.cell is not None:
        values = _on_cell_grid(sources, sources.cell, shape)
    else:
        fractions = np.stack(np.meshgrid(*(np.arange(n) / n for n in shape), indexing="ij"), axis=-1)
        points = origin + fractions.reshape(-1, 3) @ box
        values = np.concatenate([block[:, 0] for block in _evaluate(sources, points)])
    return PotentialGrid(
        values.reshape(shape), origin, box, structure.numbers, structure.positions, structure.pbc
    )


def _sources(geometry: FixedGeometry) -> _Sources:
    require_charges(geometry.potential, "electrostatic potential")
    structure = geometry.structure
    if structure.periodic and not structure.pbc.all():
        raise UnsupportedError(
            "the electrostatic potential is implemented for isolated structures and three periodic directions, not "
            f"for pbc={structure.pbc.tolist()}; use a large vacuum with pbc = True"
        )
    if geometry.potential.charges is None:
        raise UnsupportedError(
            "the electrostatic potential needs the widths of a charge model, and the model has charges of its baseline "
            "alone; fit with charges=kqeq.QEq()"
        )
    prediction = geometry.predict(())
    assert prediction.charges is not None
    widths = geometry.potential.charges.site_parameters(structure.numbers).width
    cell = structure.cell if structure.periodic else None
    return _Sources(structure.positions, prediction.charges, prediction.atomic_dipoles, widths, cell)


def _evaluate(sources: _Sources, points: FloatArray) -> Iterator[FloatArray]:
    """Potential and field of blocks of points, (p, 4)."""
    if sources.cell is None:
        size = max(1, BLOCK // len(sources.charges))
        for start in range(0, len(points), size):
            yield _open(sources, points[start : start + size])
        return
    _, vectors, amplitudes = _reciprocal(sources, sources.cell)
    size = max(1, BLOCK // len(vectors))
    for start in range(0, len(points), size):
        phase = points[start : start + size] @ vectors.T
        waves = np.cos(phase) + 1j * np.sin(phase)
        potential = (waves @ amplitudes).real
        field = ((-1j * waves * amplitudes) @ vectors).real
        yield np.concatenate([potential[:, None], field], axis=1)


def _open(sources: _Sources, points: FloatArray) -> FloatArray:
    """Direct sum, (p, 4)."""
    arms = points[:, None, :] - sources.positions[None, :, :]
    radial = gaussian_coulomb(np.einsum("pia,pia->pi", arms, arms), 1.0 / (np.sqrt(2.0) * sources.widths), 2)
    # ∇B_n = −x B_{n+1}, so that q B_0 + d·x B_1 is the potential
    potential = radial[0] @ sources.charges
    field = np.einsum("pi,pia,i->pa", radial[1], arms, sources.charges, optimize=True)
    if sources.dipoles is not None:
        along = np.einsum("pia,ia->pi", arms, sources.dipoles)
        potential += np.sum(along * radial[1], axis=1)
        field += np.einsum("pi,pia->pa", along * radial[2], arms) - radial[1] @ sources.dipoles
    return np.asarray(COULOMB * np.concatenate([potential[:, None], field], axis=1))


def _on_cell_grid(sources: _Sources, cell: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """The periodic potential on a grid, exact for any grid: on its points waves beyond it equal waves within."""
    indices, _, amplitudes = _reciprocal(sources, cell)
    folded = np.zeros(shape, dtype=np.complex128)
    np.add.at(folded, tuple((indices % shape).T), amplitudes)
    return np.asarray(np.fft.ifftn(folded, norm="forward").real)


def _reciprocal(sources: _Sources, cell: FloatArray) -> tuple[IntArray, FloatArray, Any]:
    """Reciprocal lattice vectors without zero, as whole numbers and in 1/Å (n, 3), and the potential's amplitudes."""
    reach = np.sqrt(-2.0 * np.log(ACCURACY)) / float(sources.widths.min())
    # |G| ≥ 2π |n_i| / |a_i|
    bounds = np.ceil(reach * np.linalg.norm(cell, axis=1) / (2.0 * np.pi)).astype(int)
    axes = [np.arange(-n, n + 1) for n in bounds]
    indices = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    vectors = 2.0 * np.pi * indices @ np.linalg.inv(cell).T
    square = np.einsum("na,na->n", vectors, vectors)
    keep = (square > 1e-12) & (square <= reach**2)
    indices, vectors, square = indices[keep], vectors[keep], square[keep]
    amplitudes = np.zeros(len(vectors), dtype=np.complex128)
    for i, (position, charge, width) in enumerate(
        zip(sources.positions, sources.charges, sources.widths, strict=True)
    ):
        source = charge + 0j * square
        if sources.dipoles is not None:
            source = source - 1j * (vectors @ sources.dipoles[i])
        amplitudes += source * np.exp(-0.5 * square * width**2 - 1j * (vectors @ position))
    volume = abs(np.linalg.det(cell))
    return indices, vectors, COULOMB * 4.0 * np.pi / volume * amplitudes / square


__all__ = ["ElectrostaticPotential", "PotentialGrid", "electrostatic_potential", "potential_grid"]
