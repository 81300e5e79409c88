#!/usr/bin/env python3
"""Label alpha-quartz with an oxygen vacancy of charge 0, +1 and +2 with IPEA1-xTB.

    pip install "kqeq[datasets]"      # tblite
    python generate_quartz.py sio2_vacancy.xyz [--geometries N]

Cells of 2 x 2 x 2 unit cells of alpha-quartz, 72 atoms, with one oxygen missing (71 atoms); +1 is a doublet.  Every
geometry is labelled at all three charges: what differs between them is the charge alone.  A geometry is the crystal
with

* the two silicon atoms beside the vacancy moved along their axis to a distance of 2.3 to 3.9 Angstrom (their distance
  shrinks to a bond at charge 0 and grows at +2; 3.06 Angstrom in the crystal), neighbours following;
* thermal displacements (150, 300, 450 and 600 K in turn) of an elastic network: springs along Si-O bonds and between
  atoms with a common neighbour.

Seed 0 is for training, seed 1 (every fifth geometry) for testing; random numbers depend on the number of the geometry
only, so that an interrupted run goes on where it stopped.  Labels belong to the positions as they are written.

The first 23 frames of ``benchmarks/data`` were made with tblite's accuracy 1, all others with 10, which changes forces by
less than 0.002 eV/Angstrom.

    info   energy [eV] with the neutralising background that tblite leaves out (``background`` [eV] is what was
           added to its energy); total_charge [e]; external_field; system; seed; method; multiplicity; sampling;
           temperature [K]; number (of the geometry); distance [Angstrom] between the two silicon atoms
    arrays forces [eV/Angstrom]; charges [e], Mulliken charges

Why IPEA1-xTB: with GFN1-xTB the empty level of the vacancy at +2 lies 0.18 eV above the oxygen band and takes part of its
electrons (occupations 1.95 and 0.07); with IPEA1-xTB it lies 0.56 eV above, empty, and 2.4 eV below the conduction
band at +1 it lies 1.2 eV above, and the two silicon atoms carry 0.29 of the first and 0.23 of the second elementary
charge, the other atoms less than 0.04 each.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.geometry import find_mic
from ase.spacegroup import crystal
from generate_periodic_zno import bare, complete_frames, rounded

from kqeq.baselines.charged_cells import background

METHOD, SYSTEM = "IPEA1-xTB", "sio2_vacancy"
CHARGES = (0, 1, 2)
GEOMETRIES = 150
TEST_EVERY = 5  # geometries number 4, 9, ... are for testing
TEMPERATURES = (150.0, 300.0, 450.0, 600.0)  # K
DISTANCES = (2.3, 3.9)  # Angstrom, between the silicon atoms beside the vacancy
REACH = 2.5  # Angstrom, over which neighbours follow them
SPRINGS = {"bond": 30.0, "O-O": 3.0, "Si-Si": 2.0}  # eV/Angstrom^2
SOFTEST = 1.0  # eV/Angstrom^2; no mode is taken to be softer
ACCURACY = (
    10.0  # of tblite: integrals end earlier; forces within 0.002 eV/Angstrom of those at 1, a third less time
)


def ideal() -> tuple[Atoms, np.ndarray]:
    """The crystal without the oxygen nearest to the middle of the cell, and where that was."""
    cell = crystal(
        ["Si", "O"],
        [(0.4697, 0.0, 1 / 3), (0.4135, 0.2669, 0.2142)],
        spacegroup=152,
        cellpar=[4.9134, 4.9134, 5.4052, 90, 90, 120],
    )
    atoms = bare(cell).repeat((2, 2, 2))
    oxygens = np.flatnonzero(atoms.numbers == 8)
    away = np.linalg.norm((atoms.get_scaled_positions()[oxygens] - 0.5) @ atoms.cell.array, axis=1)
    removed = oxygens[away.argmin()]
    site = atoms.positions[removed].copy()
    del atoms[removed]
    return rounded(atoms), site


def modes(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Force constants (eV/Angstrom^2) and directions in columns, translations left out, of the elastic network."""
    n = len(atoms)
    hessian = np.zeros((n, 3, n, 3))
    silicon = atoms.numbers == 14
    vectors = atoms.get_all_distances(mic=True, vector=True)
    lengths = np.linalg.norm(vectors, axis=2)
    for i in range(n):
        for j in range(i + 1, n):
            r = lengths[i, j]
            if silicon[i] != silicon[j] and r < 2.0:
                k = SPRINGS["bond"]
            elif not silicon[i] and not silicon[j] and r < 2.9:
                k = SPRINGS["O-O"]
            elif silicon[i] and silicon[j] and r < 3.3:
                k = SPRINGS["Si-Si"]
            else:
                continue
            unit = vectors[i, j] / r
            block = k * np.outer(unit, unit)
            hessian[i, :, i] += block
            hessian[j, :, j] += block
            hessian[i, :, j] -= block
            hessian[j, :, i] -= block
    drift = np.tile(np.eye(3), (n, 1)) / np.sqrt(n)
    values, vectors = np.linalg.eigh(hessian.reshape(3 * n, 3 * n) + 1e6 * drift @ drift.T)
    return np.maximum(values[:-3], SOFTEST), vectors[:, :-3]


def geometry(number: int, start: Atoms, site: np.ndarray, network: tuple) -> tuple[Atoms, float, float]:
    """Atoms, temperature and distance of the two silicon atoms of one geometry."""
    rng = np.random.default_rng([number, 20])
    temperature = TEMPERATURES[number % len(TEMPERATURES)]
    constants, vectors = network
    atoms = bare(start)
    away, lengths = find_mic(atoms.positions - site, atoms.cell, atoms.pbc)
    pair = np.argsort(np.where(atoms.numbers == 14, lengths, np.inf))[:2]
    axis = away[pair[1]] - away[pair[0]]
    old = np.linalg.norm(axis)
    axis /= old
    shift = 0.5 * (rng.uniform(*DISTANCES) - old)
    for index, sign in zip(pair, (-1, 1), strict=True):
        _, near = find_mic(start.positions - start.positions[index], atoms.cell, atoms.pbc)
        # the others follow, the partner of the pair does not
        follow = np.exp(-0.5 * (near / REACH) ** 2) * 0.4
        follow[pair] = 0.0
        follow[index] = 1.0
        atoms.positions += sign * shift * follow[:, None] * axis
    widths = np.sqrt(units.kB * temperature / constants)
    atoms.positions += (vectors @ (widths * rng.normal(size=len(widths)))).reshape(-1, 3)
    atoms = rounded(atoms)
    return atoms, temperature, float(atoms.get_distance(*pair, mic=True))


def calculators() -> dict[int, Any]:
    """One for each charge; each starts from its own last density."""
    from tblite.ase import TBLite

    return {
        q: TBLite(
            method=METHOD,
            charge=q,
            multiplicity=1 + q % 2,
            accuracy=ACCURACY,
            max_iterations=300,
            verbosity=0,
        )
        for q in CHARGES
    }


def text(atoms: Atoms, info: dict[str, Any], forces: np.ndarray, charges: np.ndarray) -> str:
    """A frame in extended XYZ with as many digits as mean something."""

    def join(values: Any, digits: int) -> str:
        return " ".join(f"{x:.{digits}f}" for x in np.ravel(values))

    head = [f'Lattice="{join(atoms.cell.array, 6)}"', "Properties=species:S:1:pos:R:3:forces:R:3:charges:R:1"]
    head += [f"{key}={value}" for key, value in info.items()]
    head.append('pbc="' + " ".join("FT"[int(p)] for p in atoms.pbc) + '"')
    columns = zip(atoms.symbols, atoms.positions, forces, charges, strict=True)
    lines = [str(len(atoms)), " ".join(head)]
    lines += [f"{s} {join(p, 6)} {join(f, 5)} {q:.5f}" for s, p, f, q in columns]
    return "\n".join(lines) + "\n"


def generate(path: Path, total: int) -> Iterator[Atoms]:
    """Label the first ``total`` geometries at every charge, less what the file holds already."""
    present = {(int(a.info["number"]), int(a.info["total_charge"])) for a in complete_frames(path)}
    start, site = ideal()
    network = modes(start)
    known = calculators()
    for number in range(total):
        atoms, temperature, distance = geometry(number, start, site, network)
        for charge in CHARGES:
            if (number, charge) in present:
                continue
            frame = bare(atoms)
            frame.calc = known[charge]
            try:
                energy, forces = frame.get_potential_energy(), frame.get_forces()
            except Exception as error:  # what tblite raises is no class of its own in all versions
                print(
                    f"geometry {number} at {charge:+d} left out: {' '.join(str(error).split())}", flush=True
                )
                known = calculators()
                continue
            extra = background(frame.cell.array, charge)
            info = {
                "energy": f"{energy + extra:.6f}",
                "total_charge": charge,
                "external_field": '"0.0 0.0 0.0"',
                "multiplicity": 1 + charge % 2,
                "system": SYSTEM,
                "seed": int(number % TEST_EVERY == TEST_EVERY - 1),
                "method": METHOD,
                "background": f"{extra:.6f}",
                "sampling": "network",
                "temperature": f"{temperature:.1f}",
                "number": number,
                "distance": f"{distance:.4f}",
            }
            with path.open("a", encoding="utf-8") as file:
                file.write(text(atoms, info, forces, frame.get_charges()))
            yield frame


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--geometries", type=int, default=GEOMETRIES)
    a = parser.parse_args()
    before = time.process_time()
    for count, frame in enumerate(generate(a.out, a.geometries), start=1):
        largest = np.linalg.norm(frame.get_forces(), axis=1).max()
        seconds = (time.process_time() - before) / count
        print(f"{count}: force {largest:.2f} eV/A, {seconds:.1f} s a frame", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
