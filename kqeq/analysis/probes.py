"""Geometries that bring the failures of charge models to light: growing chains, and pairs to pull apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii

from kqeq import elements
from kqeq.analysis.entry import formula
from kqeq.typing import FloatArray, IntArray

CONTACT = 1.6
"""Closest distance of atoms of neighbouring molecules in a stack, in sums of covalent radii."""


@dataclass(frozen=True, eq=False)
class Chains:
    """A family of growing chains.

    Attributes
    ----------
    name : str
        What a unit is, for a reader.
    units : (K,) int array
        Lengths.
    build : callable
        From a length to the chain, stretched along z.
    insulating : bool
        Whether α per unit must saturate physically (it need not in metals).
    """

    name: str
    units: IntArray
    build: Callable[[int], Atoms]
    insulating: bool


def alkane(carbons: int) -> Atoms:
    """All-trans CₙH₂ₙ₊₂ along z with C–C 1.53 Å, C–H 1.10 Å, CCC 112° and HCH 107°."""
    half = np.radians(112.0 / 2.0)
    rise, zigzag = 1.53 * np.sin(half), 0.5 * 1.53 * np.cos(half)
    carbon = np.array([[0.0, zigzag * (-1) ** i, rise * i] for i in range(carbons)])
    hydrogen = []
    opening = np.radians(107.0 / 2.0)
    for i, position in enumerate(carbon):
        side = (-1) ** i
        for x in (1.0, -1.0):
            hydrogen.append(position + 1.10 * np.array([x * np.sin(opening), side * np.cos(opening), 0.0]))
    # the ends continue the zigzag
    for end, step in ((0, -1), (carbons - 1, 1)):
        side = (-1) ** end
        bond = np.array([0.0, -2.0 * zigzag * side, step * rise])
        hydrogen.append(carbon[end] + 1.10 * bond / np.linalg.norm(bond))
    return Atoms("C" * carbons + "H" * len(hydrogen), np.concatenate([carbon, hydrogen]))


def water_chain(molecules: int) -> Atoms:
    """Water molecules along z, each a donor to the next with O–O 2.85 Å."""
    one = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.97], [0.94, 0.0, -0.24]])
    shifts = 2.85 * np.arange(molecules)
    # every second molecule is turned about z, so that the chain as a whole stays straight
    positions = [one * [(-1) ** i, 1.0, 1.0] + [0.0, 0.0, shift] for i, shift in enumerate(shifts)]
    return Atoms("OHH" * molecules, np.concatenate(positions))


def atom_chain(pattern: Sequence[int], units: int) -> Atoms:
    """A straight chain of the elements of ``pattern``, again and again, at the sums of covalent radii."""
    numbers = np.array(list(pattern) * units)
    radii = covalent_radii[numbers]
    z = np.concatenate([[0.0], np.cumsum(radii[1:] + radii[:-1])])
    return Atoms(numbers, np.outer(z, [0.0, 0.0, 1.0]))


def stack(atoms: Atoms, copies: int) -> Atoms:
    """Copies of a molecule along z, its longest axis first turned to z, in contact (:data:`CONTACT`)."""
    positions = atoms.positions - atoms.positions.mean(axis=0)
    if len(atoms) > 1:
        _, axes = np.linalg.eigh(positions.T @ positions)
        axes[:, 0] *= np.sign(np.linalg.det(axes))
        positions = positions @ axes
    shift = contact_shift(positions, atoms.numbers, positions, atoms.numbers)
    image = [positions + np.array([0.0, 0.0, k * shift]) for k in range(copies)]
    return Atoms(np.tile(atoms.numbers, copies), np.concatenate(image))


def contact_shift(first: FloatArray, z1: IntArray, second: FloatArray, z2: IntArray) -> float:
    """How far the second group has to move along z so that it just touches the first, Å."""
    arms = second[None, :, :] - first[:, None, :]
    limit = CONTACT * (covalent_radii[z1][:, None] + covalent_radii[z2][None, :])
    across = limit**2 - arms[..., 0] ** 2 - arms[..., 1] ** 2
    needed = np.where(across > 0.0, np.sqrt(np.maximum(across, 0.0)) - arms[..., 2], -np.inf)
    if not np.isfinite(needed).any():  # they slide past each other
        return float(np.ptp(first[:, 2]) + limit.max())
    return float(max(needed.max(), 0.0))


def chains_for(species: Sequence[int], atoms: Atoms | None) -> Chains:
    """The chains to test a model of these elements with.

    Alkanes C2 to C12 for models of carbon and hydrogen, hydrogen-bonded water for oxygen and hydrogen, stacks of the
    user's molecule where there is one, and otherwise alternating chains of the two elements that differ most in
    electronegativity, or a chain of the only element.
    """
    known = set(species)
    if {1, 6} <= known:
        return Chains("all-trans alkanes, per C", np.arange(2, 13), alkane, True)
    if {1, 8} <= known:
        return Chains("chains of water, per H2O", np.arange(1, 11), water_chain, True)
    if atoms is not None and not atoms.pbc.any():
        copies = np.arange(1, max(4, min(9, 160 // len(atoms) + 1)))
        metal = len(set(atoms.numbers)) == 1 and is_metal(int(atoms.numbers[0]))
        return Chains(f"stacks of {formula(atoms)}, per copy", copies, lambda n: stack(atoms, n), not metal)
    pair = polar_pair(species)
    if pair is None:
        (only,) = known
        symbol = chemical_symbols[only]
        return Chains(
            f"chains of {symbol}, per atom",
            np.arange(2, 17, 2),
            lambda n: atom_chain([only], n),
            not is_metal(only),
        )
    name = "".join(chemical_symbols[z] for z in pair)
    return Chains(f"chains of {name}, per unit", np.arange(1, 9), lambda n: atom_chain(pair, n), True)


def polar_pair(species: Sequence[int]) -> tuple[int, int] | None:
    """The two elements that differ most in electronegativity, the more positive one first; ``None`` for one element."""
    if len(set(species)) < 2:
        return None
    chi = dict(zip(species, elements.electronegativity(np.array(species)), strict=True))
    first, second = max(combinations(species, 2), key=lambda pair: abs(chi[pair[0]] - chi[pair[1]]))
    return (first, second) if chi[first] < chi[second] else (second, first)


def is_metal(number: int) -> bool:
    """Whether the element is a metal; semimetals are not."""
    others = {1, 2, *range(5, 11), *range(14, 19), *range(32, 37), *range(51, 55), 85, 86, 117, 118}
    return number not in others


__all__ = [
    "CONTACT",
    "Chains",
    "alkane",
    "atom_chain",
    "chains_for",
    "contact_shift",
    "is_metal",
    "polar_pair",
    "stack",
    "water_chain",
]
