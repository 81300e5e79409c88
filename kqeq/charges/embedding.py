"""The potential of charges outside a structure at its unknowns, and what it does to positions.

    E_ext = Σ_m Q_m Σ_i (q_i + d_i·∂/∂r_i) f(|r_m − r_i|),      f(r) = k_e erf(r/(√2 γ))/r,   γ² = σ_i² + s_m²

is linear in the unknowns z: a vector b that acts on them as electronegativities do, so that charges (and dipoles) are
polarised and everything stays stationary.  What the external charges do to each other belongs to whoever moves them.

Dimensions: N atoms, M external charges, n = N or 4N unknowns, c columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from kqeq.backend import Device, asarray_like, chunk_elements, namespace, zeros
from kqeq.constants import COULOMB
from kqeq.electrostatics import coulomb
from kqeq.electrostatics.base import Electrostatics
from kqeq.electrostatics.radial import gaussian_coulomb
from kqeq.errors import UnsupportedError
from kqeq.frames.structures import Structure
from kqeq.typing import Array

_BLOCK_ELEMENTS = 1 << 18
"""Pairs of an atom and an external charge that are handled at once on the host."""

_EWALD_CENTRES = 600
"""Atoms and external charges of a periodic structure from which a mesh does the products."""

_MESH_ACCURACY = 1e-9
"""Accuracy asked of that mesh, in units of k_e/Å."""


class Embedding(Protocol):
    """External charges at one geometry."""

    @property
    def linear(self) -> Array:
        """b, (n,): potentials at the charges (eV/e), gradients of the potential at the dipoles (eV/(e·Å))."""

    def gradients(self, unknowns: Array) -> tuple[Array, Array]:
        """∂(bᵀz_c)/∂r of the atoms, (N, 3, c), and of the external charges, (M, 3, c), for unknowns (n, c)."""

    def strain(self, unknowns: Array) -> Array:
        """∂(bᵀz_c)/∂ε, (3, 3, c); the external charges follow the strain as the atoms do."""


def embed(structure: Structure, widths: Array, *, dipoles: bool, device: Device) -> Embedding | None:
    """The external charges of a structure, if it has some.

    Parameters
    ----------
    structure : Structure
    widths : (N,) array
        Of the atoms, Å, on the device.
    dipoles : bool
        Whether atoms carry dipoles.
    device : Device

    Raises
    ------
    UnsupportedError
        For charges without width in a periodic structure.
    """
    if structure.external_charges is None:
        return None
    if structure.periodic:
        return PeriodicEmbedding.build(structure, widths, dipoles, device)
    return OpenEmbedding.build(structure, widths, dipoles, device)


@dataclass(frozen=True, eq=False)
class OpenEmbedding:
    """Open boundaries: every atom with every external charge.

    Attributes
    ----------
    atoms, sources : (N, 3), (M, 3) arrays
        Positions, Å.
    charges : (M,) array
        e.
    atom_variance, source_variance : (N,), (M,) arrays
        Squared widths, Å².
    dipoles : bool
    """

    atoms: Array
    sources: Array
    charges: Array
    atom_variance: Array
    source_variance: Array
    dipoles: bool

    @classmethod
    def build(cls, structure: Structure, widths: Array, dipoles: bool, device: Device) -> OpenEmbedding:
        """Arrays on the device."""
        external = structure.external_charges
        assert external is not None
        like = device.like
        centre = structure.positions.mean(axis=0)  # differences are more accurate around it
        return cls(
            asarray_like(structure.positions - centre, like),
            asarray_like(external.positions - centre, like),
            asarray_like(external.charges, like),
            asarray_like(widths, like) ** 2,
            asarray_like(external.widths, like) ** 2,
            dipoles,
        )

    @cached_property
    def linear(self) -> Array:
        """φ, and after it ∇φ for dipoles; see :class:`Embedding`."""
        xp, count = namespace(self.atoms), self.atoms.shape[0]
        result = zeros((4 * count if self.dipoles else count,), self.atoms)
        for rows, x, radial in self._blocks(1 if self.dipoles else 0):
            charges = self.charges[rows]
            result[:count] += radial[0] @ charges
            if self.dipoles:
                for axis in range(3):
                    result[count + axis :: 3] += (x[axis] * radial[1]) @ charges
        return xp.multiply(result, COULOMB)

    def gradients(self, unknowns: Array) -> tuple[Array, Array]:
        """By atoms q ∇φ + ∇∇φ d, and minus the same by external charges."""
        xp, count = namespace(unknowns), self.atoms.shape[0]
        columns = unknowns.shape[1]
        charges = unknowns[:count, :]
        dipoles = [unknowns[count + axis :: 3, :] for axis in range(3)] if self.dipoles else None
        atoms = zeros((count, 3, columns), unknowns)
        sources = zeros((self.sources.shape[0], 3, columns), unknowns)
        for rows, x, radial in self._blocks(2 if self.dipoles else 1):
            outer = COULOMB * self.charges[rows]
            for alpha in range(3):
                slope = x[alpha] * radial[1]
                atoms[:, alpha, :] += (slope @ outer)[:, None] * charges
                sources[rows, alpha, :] -= (slope.T @ charges) * outer[:, None]
                for beta in range(3) if dipoles is not None else ():
                    assert dipoles is not None
                    curvature = x[alpha] * x[beta] * radial[2]
                    if alpha == beta:
                        curvature = curvature - radial[1]
                    atoms[:, alpha, :] += (curvature @ outer)[:, None] * dipoles[beta]
                    sources[rows, alpha, :] -= xp.matmul(curvature.T, dipoles[beta]) * outer[:, None]
        return atoms, sources

    def strain(self, unknowns: Array) -> Array:
        """Σ r ⊗ ∂/∂r over atoms and external charges."""
        xp = namespace(unknowns)
        atoms, sources = self.gradients(unknowns)
        columns = unknowns.shape[1]
        result = self.atoms.T @ xp.reshape(atoms, (-1, 3 * columns))
        result = result + self.sources.T @ xp.reshape(sources, (-1, 3 * columns))
        return xp.reshape(result, (3, 3, columns))

    def _blocks(self, order: int) -> Iterator[tuple[slice, list[Array], list[Array]]]:
        """Blocks of external charges with x = r_m − r_i, three arrays (N, b), and the radial functions, (N, b)."""
        xp, count = namespace(self.atoms), self.sources.shape[0]
        step = max(1, chunk_elements(self.atoms, 24, _BLOCK_ELEMENTS) // self.atoms.shape[0])
        for start in range(0, count, step):
            rows = slice(start, min(start + step, count))
            x = [self.sources[None, rows, axis] - self.atoms[:, None, axis] for axis in range(3)]
            r2 = x[0] * x[0] + x[1] * x[1] + x[2] * x[2]
            variance = self.atom_variance[:, None] + self.source_variance[None, rows]
            yield rows, x, gaussian_coulomb(r2, 1.0 / xp.sqrt(2.0 * variance), order)


@dataclass(frozen=True, eq=False)
class PeriodicEmbedding:
    """Periodic structures: the lattice sums of atoms and external charges together, of which one block is used.

    Attributes
    ----------
    provider : Electrostatics
        Of all N + M centres.
    vector : (n',) array
        Their charges, zero at the atoms.
    count : int
        N.
    dipoles : bool
    """

    provider: Electrostatics
    vector: Array
    count: int
    dipoles: bool

    @classmethod
    def build(cls, structure: Structure, widths: Array, dipoles: bool, device: Device) -> PeriodicEmbedding:
        """The lattice sums on the device."""
        external = structure.external_charges
        assert external is not None
        if not (external.widths > 0.0).all():
            raise UnsupportedError(
                "external charges of a periodic structure need widths, since lattice sums are made for Gaussians; give "
                "widths such as 0.1 Å, or set atoms.pbc = False"
            )
        count, added = len(structure), len(external)
        both = replace(
            structure,
            numbers=np.concatenate([structure.numbers, np.zeros(added, dtype=np.int64)]),
            positions=np.concatenate([structure.positions, external.positions]),
            external_charges=None,
        )
        like = device.like
        all_widths = namespace(like).concat([asarray_like(widths, like), asarray_like(external.widths, like)])
        large = count + added > _EWALD_CENTRES
        accuracy = _MESH_ACCURACY if large else None
        provider = coulomb(
            both, all_widths, dipoles=dipoles, accuracy=accuracy, matrix_free=large, device=device
        )
        vector = zeros((provider.size,), like)
        vector[count : count + added] = asarray_like(external.charges, like)
        return cls(provider, vector, count, dipoles)

    @cached_property
    def linear(self) -> Array:
        """The rows of the atoms; see :class:`Embedding`."""
        xp = namespace(self.vector)
        product = self.provider.matvec(self.vector)
        if not self.dipoles:
            return product[: self.count]
        first = self._first_dipole
        return xp.concat([product[: self.count], product[first : first + 3 * self.count]])

    def gradients(self, unknowns: Array) -> tuple[Array, Array]:
        """Both at once, by the bilinear form of the lattice sums."""
        result = self.provider.bilinear_gradient(self.vector, self._spread(unknowns))
        return result[: self.count, :, :], result[self.count :, :, :]

    def strain(self, unknowns: Array) -> Array:
        """Likewise."""
        return self.provider.bilinear_strain(self.vector, self._spread(unknowns))

    @property
    def _first_dipole(self) -> int:
        return self.provider.size // 4

    def _spread(self, unknowns: Array) -> Array:
        """Unknowns of the atoms (n, c) among those of all centres."""
        result = zeros((self.provider.size, unknowns.shape[1]), unknowns)
        result[: self.count, :] = unknowns[: self.count, :]
        if self.dipoles:
            first = self._first_dipole
            result[first : first + 3 * self.count, :] = unknowns[self.count : 4 * self.count, :]
        return result


__all__ = ["Embedding", "OpenEmbedding", "PeriodicEmbedding", "embed"]
