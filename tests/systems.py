"""Structures that several test files use: a molecule, cells, a slab, water with charges and fields."""

import numpy as np
from ase import Atoms
from ase.build import bulk, fcc111
from ase.build import molecule as ase_molecule
from ase.calculators.singlepoint import SinglePointCalculator

from kqeq.frames.structures import read_structure

WATER = Atoms("OH2", [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])


def water(info=None, arrays=None, atoms=WATER, **results):
    """A copy of ``atoms`` with entries in info and arrays, and results as ASE reads them from a file."""
    atoms = atoms.copy()
    atoms.info.update(info or {})
    for name, value in (arrays or {}).items():
        atoms.arrays[name] = np.asarray(value)
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def stored(atoms, calculator):
    """The same atoms with energy, forces and stress of a calculator, as ASE reads them from a file."""
    atoms.calc = calculator
    labels = {
        "energy": atoms.get_potential_energy(),
        "forces": atoms.get_forces(),
        "stress": atoms.get_stress(),
    }
    atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


def triclinic():
    rng = np.random.default_rng(3)
    cell = np.array([[5.1, 0.0, 0.0], [1.7, 4.6, 0.0], [-1.1, 0.8, 6.3]])
    grid = np.array([[i, j, k] for i in (0.1, 0.6) for j in (0.2, 0.7) for k in (0.15, 0.65)])
    atoms = Atoms("OTiONaClONaTi", cell=cell, pbc=True)
    atoms.set_scaled_positions(grid + rng.uniform(-0.06, 0.06, grid.shape))
    return atoms


def slab():
    atoms = fcc111("Cu", (2, 2, 3), vacuum=6.0)
    atoms += Atoms("CO", positions=[[1.3, 0.8, 12.4], [1.4, 0.9, 13.55]])
    atoms.rattle(0.05, seed=1)
    assert atoms.pbc.tolist() == [True, True, False]
    return atoms


def unwrapped():
    atoms = triclinic()
    shifts = np.random.default_rng(8).integers(-3, 4, (len(atoms), 3))
    atoms.positions += shifts @ atoms.cell.array
    return atoms


def methanol():
    atoms = ase_molecule("CH3OH")
    atoms.rattle(0.05, seed=4)
    return atoms


SYSTEMS = {
    "molecule": methanol,
    "primitive cell smaller than the cutoff": lambda: bulk("NaCl", "rocksalt", 5.64),
    "triclinic": triclinic,
    "slab": slab,
    "unwrapped": unwrapped,
    "one atom": lambda: Atoms("He"),
    "ion pair beyond the cutoff": lambda: Atoms("NaCl", positions=[[0, 0, 0], [0, 0, 30.0]]),
}


FIELD = (0.05, -0.1, 0.2)


def molecule(charge=0, field=(0.0, 0.0, 0.0)):
    """A distorted water dimer."""
    positions = [
        [0, 0, 0],
        [0.96, 0.05, 0],
        [-0.24, 0.93, 0.1],
        [2.4, 1.1, 1.6],
        [3.3, 1.2, 1.4],
        [2.2, 1.9, 2.1],
    ]
    return read_structure(Atoms("OH2OH2", positions), total_charge=charge, external_field=field)


def water_cell():
    """Two waters in a triclinic cell."""
    return Atoms(
        "OH2OH2",
        [[0, 0, 0], [0.96, 0.05, 0], [-0.24, 0.93, 0.1], [2.4, 2.1, 2.6], [3.3, 2.2, 2.4], [2.2, 2.9, 3.1]],
        cell=[[5.6, 0.0, 0.0], [0.7, 5.2, 0.0], [-0.5, 0.4, 5.9]],
        pbc=True,
    )


def cell(charge=0):
    """The same as a structure."""
    return read_structure(water_cell(), total_charge=charge)


CONDITIONS = {
    "neutral": molecule,
    "cation in a field": lambda: molecule(1, FIELD),
    "cell": cell,
    "charged cell": lambda: cell(1),
}
