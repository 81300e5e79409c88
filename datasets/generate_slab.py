#!/usr/bin/env python3
"""Label a metal slab with water, in three applied fields, with GFN1-xTB.

    pip install "kqeq[datasets]"      # tblite
    python generate_slab.py al_water.xyz [--geometries N]
    python generate_slab.py --check   # the same geometry with twice the vacuum

Al(111), 3 x 3 x 3 atoms, with six water molecules on one side, as a slab: periodic in two directions, ``pbc="T T F"``.
Electronic temperature 1000 K.  Geometries: molecules from a short Monte Carlo run of rigid water (TIP3P among the
molecules, a wall above the metal) at 350 K, then thermal displacements of the atoms.  Each is labelled in three fields.

**What tblite computes, and what is stored.**  tblite repeats a slab in all three directions, under conducting boundary
conditions.  With the dipole M (e Angstrom, along the normal) of all charges in the cell of volume V its energy is

    E_3D = E_slab - (2 pi k_e / V) M^2,        stationary in the charges where      F = 4 pi k_e M / V

is the field in the vacuum: the energy of the isolated slab without that field is E_3D + (2 pi k_e / V) M^2, its energy
in the field is E_slab - F M, and charges and forces of the periodic calculation are exactly those of an isolated slab
**in the applied field F**.  F is what is stored as ``external_field``; it is the correction that a self-consistent
dipole layer would make, without the layer.

**Applied fields.**  A uniform field in tblite acts on atomic dipoles as well, which GFN1-xTB leaves without any
interaction among each other: an aluminium slab polarises 15 times as much as a conductor of its size.  So the field
is made by charges: a sheet of four aligned HF molecules in the vacuum, up or down (``sheet`` = 1, -1; 0 for
none), at least
8 Angstrom from everything.  It enters by M; its own atoms are not in the frames.  Forces are those of the
calculation.  The energy in the field is that without the sheet plus the work of the field, with the dipole m of slab and
water taken as linear in it:

    E(F) = E(F0) - (F - F0) (m(F) + m(F0)) / 2

The sheet takes up to 0.02 e from the slab (``leaked`` [e]), which is put back evenly into charges, dipole and F.

    info   energy [eV], in the field; dipole [e Angstrom], of the charges, along the normal; total_charge;
           external_field [V/Angstrom]; system; seed; method; sheet; leaked; number (of the geometry)
    arrays forces [eV/Angstrom]; charges [e], Mulliken charges
    cell   as labelled; ``pbc`` of the frame says that it is a slab

``--check`` labels one geometry with 24 and with 47 Angstrom of vacuum.  At the same field the induced dipole per field
agrees within 0.4 % (3.20 and 3.19 e Angstrom per V/Angstrom).  What is left does not depend on the field and goes as
one over the height of the cell: 0.03 e Angstrom in the dipole, 0.012 eV/Angstrom in the largest force, 0.076 eV in the
energy; images would do so that interact by the short-range part of GFN1-xTB's Coulomb energy, which falls off with the
third power of the distance only.

Seed 0 is for training, seed 1 (every fifth geometry) for testing; random numbers depend on the number of the
geometry only, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms, units
from ase.build import fcc111, molecule
from generate_periodic_zno import bare, complete_frames
from generate_quartz import text

METHOD, SYSTEM = "GFN1-xTB", "al_water"
GEOMETRIES, TEST_EVERY = 70, 5
SHEETS = (0, 1, -1)
HEIGHT = 32.0  # Angstrom, of the cell
BOTTOM = 3.0  # Angstrom, of the lowest atoms
WATERS = 6
TEMPERATURE, SWEEPS = 350.0, 300  # K; Monte Carlo moves of every molecule
ELECTRONIC = 1000.0  # K
WALL = 2.2  # Angstrom between oxygen and metal planes where the wall begins
ROOF = 6.0  # Angstrom above the metal that molecules do not leave
RATTLE = {"metal": 0.08, "O": 0.03, "H": 0.05}  # Angstrom, thermal displacements
COULOMB = units.Hartree * units.Bohr


class Labels(NamedTuple):
    """What one calculation says of slab and water."""

    energy: float  # eV, E_slab - F m where no sheet is there, else nan
    forces: np.ndarray
    charges: np.ndarray
    dipole: float
    field: float
    leaked: float


# ------------------------------------------------------------------------------------------------- the reference


def field_of(moment: float, volume: float) -> float:
    """Field in the vacuum (V/Angstrom) of a periodic cell with the dipole ``moment`` (e Angstrom)."""
    return 4.0 * math.pi * COULOMB * moment / volume


def in_field(energy: float, moment: float, volume: float) -> float:
    """Energy of the isolated slab in the field :func:`field_of` from that of the periodic calculation."""
    return energy - 2.0 * math.pi * COULOMB * moment**2 / volume


def calculate(atoms: Atoms) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy (eV), forces and charges of a periodic calculation."""
    from tblite.interface import Calculator

    calculator = Calculator(
        METHOD,
        atoms.numbers,
        atoms.positions / units.Bohr,
        0.0,
        0,
        atoms.cell.array / units.Bohr,
        np.ones(3, dtype=bool),
    )
    calculator.set("verbosity", 0)
    calculator.set("temperature", ELECTRONIC * units.kB / units.Hartree)
    calculator.set("max-iter", 400)
    result = calculator.singlepoint()
    forces = -np.array(result["gradient"]) * units.Hartree / units.Bohr
    return float(result["energy"]) * units.Hartree, forces, np.array(result["charges"])


def label(atoms: Atoms, sheet: int) -> Labels:
    """Labels of slab and water with the sheet up, down or away."""
    n = len(atoms)
    whole = atoms + sheet_of(atoms, sheet)
    energy, forces, charges = calculate(whole)
    moment = float(charges @ whole.positions[:, 2])
    volume = whole.get_volume()
    leaked = float(charges[:n].sum())
    own = charges[:n] - leaked / n
    dipole = float(own @ atoms.positions[:, 2])
    applied = moment
    if sheet:
        # the charge between slab and sheet makes opposite fields on the two sides of the slab: none on average
        others = charges[n:] + leaked / (len(whole) - n)
        applied = dipole + float(others @ whole.positions[n:, 2])
    return Labels(
        in_field(energy, moment, volume) if sheet == 0 else math.nan,
        forces[:n],
        own,
        dipole,
        field_of(applied, volume),
        leaked,
    )


def sheet_of(atoms: Atoms, direction: int) -> Atoms:
    """Four HF molecules in the middle of the vacuum, their hydrogens up (1) or down (-1)."""
    sheet = Atoms()
    if direction == 0:
        return sheet
    z = atoms.positions[:, 2]
    middle = 0.5 * (z.max() + atoms.cell[2, 2] + z.min())
    for i, j in np.ndindex(2, 2):
        at = (2 * i + 0.5) / 4 * atoms.cell[0] + (2 * j + 0.5) / 4 * atoms.cell[1]
        place = at + np.array([0.0, 0.0, middle])
        up = np.array([0.0, 0.0, 0.46 * direction])
        sheet += Atoms("HF", positions=[place + up, place - up])
    return sheet


def energy_in_field(here: Labels, without: Labels) -> float:
    """Energy in the field of ``here`` from that without a sheet."""
    return without.energy - (here.field - without.field) * 0.5 * (here.dipole + without.dipole)


# ------------------------------------------------------------------------------------------------- geometries


def metal(height: float = HEIGHT) -> Atoms:
    """Al(111), ideal."""
    slab = fcc111("Al", (3, 3, 3), a=4.05)
    slab.positions[:, 2] += BOTTOM - slab.positions[:, 2].min()
    slab.set_cell([*slab.cell[:2], [0.0, 0.0, height]])
    slab.set_pbc([True, True, False])
    return bare(slab)


def interaction(molecules: np.ndarray, cell: np.ndarray, top: float) -> float:
    """TIP3P among rigid molecules (m, 3, 3), and a wall above the metal, eV."""
    charge = np.array([-0.834, 0.417, 0.417])
    z = molecules[:, :, 2] - top
    height = z[:, 0]
    energy = 0.3 * float(
        ((WALL / np.maximum(height, 0.5)) ** 9 - (WALL / np.maximum(height, 0.5)) ** 3).sum()
    )
    if height.max() > ROOF or z.min() < 1.5:
        return math.inf
    i, j = np.triu_indices(len(molecules), 1)
    centres = molecules[j, 0] - molecules[i, 0]
    wrapped = centres @ np.linalg.inv(cell)
    wrapped[:, :2] -= np.round(wrapped[:, :2])
    shift = wrapped @ cell - centres
    delta = molecules[j][:, None, :, :] + shift[:, None, None, :] - molecules[i][:, :, None, :]
    r = np.linalg.norm(delta, axis=3)
    if r.min() < 1.2:
        return math.inf
    energy += float((COULOMB * charge[:, None] * charge[None, :] / r).sum())
    six = (3.15061 / r[:, 0, 0]) ** 6
    return energy + float((4 * 0.006596 * (six**2 - six)).sum())


def geometry(number: int, height: float = HEIGHT) -> Atoms:
    """Slab and water of one number."""
    rng = np.random.default_rng([number, 21])
    atoms = metal(height)
    top = float(atoms.positions[:, 2].max())
    water = molecule("H2O").positions
    water -= water[0]
    molecules = np.empty((WATERS, 3, 3))
    for k in range(WATERS):
        place = (k % 3 + 0.5) / 3 * atoms.cell[0] + (k // 3 + 0.5) / 2 * atoms.cell[1]
        molecules[k] = water @ turn(rng, math.pi) + place + [0, 0, top + 3.0 + 0.8 * (k % 2)]
    energy = interaction(molecules, atoms.cell.array, top)
    for step in range(SWEEPS * WATERS):
        k = step % WATERS
        trial = molecules.copy()
        trial[k] = (trial[k] - trial[k, 0]) @ turn(rng, 0.6) + trial[k, 0] + 0.25 * rng.normal(size=3)
        new = interaction(trial, atoms.cell.array, top)
        if not math.isfinite(energy) or rng.random() < math.exp(
            min(0.0, (energy - new) / (units.kB * TEMPERATURE))
        ):
            molecules, energy = trial, new
    atoms.positions += RATTLE["metal"] * rng.normal(size=atoms.positions.shape)
    spread = np.array([RATTLE["O"], RATTLE["H"], RATTLE["H"]])[None, :, None]
    molecules += spread * rng.normal(size=molecules.shape)
    atoms += Atoms("OHH" * WATERS, positions=molecules.reshape(-1, 3))
    atoms.positions = np.round(atoms.positions, 6)
    atoms.set_cell(np.round(atoms.cell.array, 6))
    return atoms


def turn(rng: Any, largest: float) -> np.ndarray:
    """A random rotation by at most ``largest``."""
    from scipy.spatial.transform import Rotation

    axis = rng.normal(size=3)
    return Rotation.from_rotvec(rng.uniform(0, largest) * axis / np.linalg.norm(axis)).as_matrix()


# ------------------------------------------------------------------------------------------------- the file


def generate(path: Path, total: int) -> Iterator[Labels]:
    """Label the first ``total`` geometries in every field, less what the file holds already."""
    present = {(int(a.info["number"]), int(a.info["sheet"])) for a in complete_frames(path)}
    for number in range(total):
        if all((number, sheet) in present for sheet in SHEETS):
            continue
        atoms = geometry(number)
        try:
            found = {sheet: label(atoms, sheet) for sheet in SHEETS}
        except Exception as error:  # what tblite raises is no class of its own in all versions
            print(f"geometry {number} left out: {' '.join(str(error).split())}", flush=True)
            continue
        for sheet, labels in found.items():
            if (number, sheet) in present:
                continue
            energy = labels.energy if sheet == 0 else energy_in_field(labels, found[0])
            info = {
                "energy": f"{energy:.6f}",
                "dipole": f'"0.0 0.0 {labels.dipole:.6f}"',
                "total_charge": 0,
                "external_field": f'"0.0 0.0 {labels.field:.8f}"',
                "system": SYSTEM,
                "seed": int(number % TEST_EVERY == TEST_EVERY - 1),
                "method": METHOD,
                "sheet": sheet,
                "leaked": f"{labels.leaked:.5f}",
                "number": number,
            }
            with path.open("a", encoding="utf-8") as file:
                file.write(text(atoms, info, labels.forces, labels.charges))
            yield labels


def check() -> None:
    """One geometry with the vacuum of the frames and with twice as much: dipole, forces and energy at one field.

    What the field changes is taken from the sheet that points up, in the higher cell.
    """
    vacuum = HEIGHT - float(np.ptp(geometry(0).positions[:, 2]))
    first, second = (
        [label(geometry(0, height), sheet) for sheet in (0, 1)] for height in (HEIGHT, HEIGHT + vacuum)
    )
    for height, labels in ((HEIGHT, first), (HEIGHT + vacuum, second)):
        for name, own in zip(("without", "with"), labels, strict=True):
            print(f"cell {height:.1f}, {name} sheet: field {own.field:.5f} dipole {own.dipole:.5f}")
    across = second[1].field - second[0].field
    slope = (second[1].forces - second[0].forces) / across
    rise = (second[1].dipole - second[0].dipole) / across
    for name, here, there in zip(("without", "with"), first, second, strict=True):
        shift = here.field - there.field
        print(f"{name} sheet: fields differ by {shift:.5f} V/A; at the same field")
        print(f"  dipoles by {here.dipole - there.dipole - rise * shift:.5f} e A of {here.dipole:.5f}")
        apart = np.abs(here.forces - there.forces - slope * shift).max()
        print(f"  forces by {apart:.5f} eV/A, {np.abs(here.forces - there.forces).max():.5f} uncorrected")
    work = -(first[0].field - second[0].field) * 0.5 * (first[0].dipole + second[0].dipole)
    print(
        f"energies by {first[0].energy - second[0].energy - work:.5f} eV, "
        f"{first[0].energy - second[0].energy:.5f} uncorrected"
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--geometries", type=int, default=GEOMETRIES)
    parser.add_argument("--check", action="store_true")
    a = parser.parse_args()
    if a.check or a.out is None:
        check()
        return 0
    before = time.process_time()
    for count, labels in enumerate(generate(a.out, a.geometries), start=1):
        seconds = (time.process_time() - before) / count
        print(
            f"{count}: field {labels.field:.3f} dipole {labels.dipole:.3f} leaked {labels.leaked:.4f}, "
            f"{seconds:.1f} s a frame",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
