"""The screened repulsion of nuclei, which keeps atoms apart where no training data are."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from kqeq import elements
from kqeq.baselines.protocol import BaselineResult, GeometryBaseline
from kqeq.constants import COULOMB
from kqeq.errors import InputError
from kqeq.frames.neighbours import find_pairs
from kqeq.frames.structures import Structure
from kqeq.typing import FloatArray, IntArray

ZBL_COEFFICIENTS = np.array([0.18175, 0.50986, 0.28022, 0.02817])
ZBL_EXPONENTS = np.array([3.19980, 0.94229, 0.40290, 0.20162])
ZBL_LENGTH = 0.46850
"""Screening length of the universal potential in Å: 0.88534 Bohr radii."""
ZBL_POWER = 0.23


@dataclass(frozen=True)
class ZBL(GeometryBaseline):
    """Universal screened nuclear repulsion of Ziegler, Biersack and Littmark.

        E = Σ_{i<j} k_e Z_i Z_j / r · φ(r/a) · S(r),   a = 0.46850 Å / (Z_i^0.23 + Z_j^0.23)
        φ(x) = 0.18175 e^(−3.1998 x) + 0.50986 e^(−0.94229 x) + 0.28022 e^(−0.4029 x) + 0.02817 e^(−0.20162 x)

    S falls from 1 to 0 between ``inner`` and ``outer`` as 1 − 10 t³ + 15 t⁴ − 6 t⁵, so that energy, forces and
    their first derivatives are continuous.  By default the repulsion ends at 0.8 of the sum of the covalent radii, which
    bonds do not reach at ordinary temperatures (those to hydrogen come closest): it acts on collisions only.

    J. F. Ziegler, J. P. Biersack, U. Littmark, *The Stopping and Range of Ions in Solids*, Pergamon, New York 1985.

    Parameters
    ----------
    inner, outer : float
        Where the switch begins and ends, in units of the sum of the two covalent radii.

    Raises
    ------
    InputError
        Unless 0 ≤ inner < outer.
    """

    inner: float = 0.3
    outer: float = 0.8

    def __post_init__(self) -> None:
        if not (np.isfinite([self.inner, self.outer]).all() and 0.0 <= self.inner < self.outer):
            raise InputError(
                f"ZBL(inner={self.inner!r}, outer={self.outer!r}): expected 0 <= inner < outer, in units of the sum "
                "of covalent radii"
            )

    @property
    def name(self) -> str:
        """``"zbl"``, with the switch where it is not the default: ``"zbl:0.4:0.9"``."""
        return "zbl" if self == ZBL() else f"zbl:{self.inner!r}:{self.outer!r}"

    def evaluate(self, structure: Structure, extras: Collection[str] = ()) -> BaselineResult:
        """Energy (eV), ∂E/∂r (N, 3) in eV/Å and ∂E/∂ε (3, 3) in eV; open and periodic.

        Raises
        ------
        InputError
            For elements without covalent radius.
        """
        gradient = np.zeros((len(structure), 3))
        radii = _covalent_radii(structure.numbers)
        pairs = find_pairs(structure, 2.0 * self.outer * float(radii.max()))
        distance = np.linalg.norm(pairs.vectors, axis=1)
        i, j = pairs.indices.T
        contact = radii[i] + radii[j]
        near = distance < self.outer * contact
        if not near.any():
            return BaselineResult(0.0, gradient, np.zeros((3, 3)))
        i, j, vectors, distance, contact = (a[near] for a in (i, j, pairs.vectors, distance, contact))
        value, slope = _screened_repulsion(
            distance, structure.numbers[i].astype(np.float64), structure.numbers[j].astype(np.float64)
        )
        switch, switch_slope = _switch(distance, self.inner * contact, self.outer * contact)
        # every pair is listed in both directions, hence the halves
        energy = 0.5 * float(value @ switch)
        radial = 0.5 * (slope * switch + value * switch_slope)
        force = (radial / distance)[:, None] * vectors
        np.add.at(gradient, j, force)
        np.subtract.at(gradient, i, force)
        return BaselineResult(energy, gradient, np.asarray(vectors.T @ force))


def _covalent_radii(numbers: IntArray) -> FloatArray:
    table = elements.element_table()
    missing = sorted({int(z) for z in numbers} - set(table))
    if missing:
        raise InputError(
            f'baseline "zbl" needs covalent radii, which are known for atomic numbers {min(table)} to {max(table)}, '
            f"not for {missing}; use baseline=None or an ASE calculator"
        )
    return np.array([table[int(z)].covalent_radius for z in numbers])


def _screened_repulsion(r: FloatArray, z1: FloatArray, z2: FloatArray) -> tuple[FloatArray, FloatArray]:
    """k_e Z1 Z2 φ(r/a)/r and its derivative, for (P,) distances in Å."""
    length = ZBL_LENGTH / (z1**ZBL_POWER + z2**ZBL_POWER)
    terms = ZBL_COEFFICIENTS * np.exp(-np.outer(r / length, ZBL_EXPONENTS))  # (P, 4)
    phi = terms.sum(axis=1)
    phi_slope = -(terms @ ZBL_EXPONENTS) / length
    bare = COULOMB * z1 * z2 / r
    return bare * phi, bare * (phi_slope - phi / r)


def _switch(r: FloatArray, inner: FloatArray, outer: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Quintic switch from 1 at ``inner`` to 0 at ``outer`` with two continuous derivatives, and its slope."""
    t = np.clip((r - inner) / (outer - inner), 0.0, 1.0)
    value = 1.0 - t**3 * (10.0 - 15.0 * t + 6.0 * t**2)
    slope = -30.0 * t**2 * (1.0 - t) ** 2 / (outer - inner)
    return value, slope


__all__ = ["ZBL"]
