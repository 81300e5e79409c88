#!/usr/bin/env python3
"""Label small molecules in their lowest triplet and closed-shell singlet with PBE0, each geometry in both states.

    pip install pyscf
    python generate_spin.py spin.xyz [--geometries N]

O2, CH2, CH2O and NF: molecules whose triplet lies below or not far above the singlet.  Geometries are random: bonds,
angles and out-of-plane displacements about a mean of both states' minima, uniformly within ranges where both
states are single
determinants.  PBE0/def2-SVP with density fitting, grid level 3, gradients with grid response.  The singlet is
restricted;
the triplet unrestricted; each from two starts ("minao", "atom"), the lower energy is taken.  Seed 0 is for
training, seed 1
(every fourth geometry) for testing; random numbers depend on molecule and number only, so that an interrupted run goes
on where it stopped.

    info   energy [eV]; dipole [e Angstrom]; total_charge; spin (number of unpaired electrons: 0, 2); multiplicity; s2 (of
           the determinant); external_field; system; seed; method; number (of the geometry)
    arrays forces [eV/Angstrom]
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.io import read, write

METHOD, BASIS = "PBE0/def2-SVP", "def2-svp"
SPINS = (0, 2)
TEST_EVERY = 4
GEOMETRIES = {"o2": 16, "nf": 16, "ch2": 48, "ch2o": 64}
NOISE = 0.04  # Angstrom, random displacements of CH2O


def geometry(system: str, number: int) -> Atoms:
    """A random geometry of a molecule."""
    rng = np.random.default_rng([sorted(GEOMETRIES).index(system), number, 22])
    if system in ("o2", "nf"):
        low, high = (1.08, 1.45) if system == "o2" else (1.18, 1.55)
        return Atoms({"o2": "O2", "nf": "NF"}[system], positions=[[0, 0, 0], [0, 0, rng.uniform(low, high)]])
    if system == "ch2":
        angle = math.radians(rng.uniform(95.0, 145.0))
        first, second = rng.uniform(1.0, 1.25, size=2)
        ends = [[0, 0, first], [0, second * math.sin(angle), second * math.cos(angle)]]
        return Atoms("CH2", positions=[[0, 0, 0], *ends])
    stretch = rng.uniform(1.15, 1.40)
    bend, bonds = np.radians(rng.uniform(114.0, 127.0, size=2)), rng.uniform(1.02, 1.2, size=2)
    out = math.radians(rng.uniform(0.0, 40.0))  # the triplet is a pyramid
    ends = [
        [math.sin(out) * b * math.sin(t), s * math.cos(out) * b * math.sin(t), b * math.cos(t)]
        for s, b, t in zip((1, -1), bonds, bend, strict=True)
    ]
    atoms = Atoms("COHH", positions=[[0, 0, 0], [0, 0, stretch], *ends])
    atoms.positions += NOISE * rng.normal(size=(4, 3))
    return atoms


def solve(atoms: Atoms, spin: int) -> tuple[Any, Any]:
    """Converged calculation of lowest energy among the starts, and its gradients."""
    from pyscf import dft, gto

    mol = gto.M(
        atom=list(zip(atoms.symbols, atoms.positions.tolist(), strict=True)),
        basis=BASIS,
        spin=spin,
        verbose=0,
    )
    best = None
    for start in ("minao", "atom"):
        mf = (dft.UKS if spin else dft.RKS)(mol).density_fit()
        mf.xc, mf.grids.level, mf.conv_tol, mf.init_guess = "pbe0", 3, 1e-9, start
        mf.kernel()
        if mf.converged and (best is None or mf.e_tot < best.e_tot):
            best = mf
    if best is None:
        raise RuntimeError("no start converged")
    gradient = best.nuc_grad_method()
    gradient.grid_response = True
    return best, gradient.kernel()


def frame(system: str, number: int, spin: int) -> Atoms:
    """A labelled frame, at its centre of mass."""
    atoms = geometry(system, number)
    atoms.positions -= atoms.get_center_of_mass()
    atoms.positions = np.round(atoms.positions, 8)
    mf, gradient = solve(atoms, spin)
    atoms.info.update(
        energy=float(np.round(mf.e_tot * units.Hartree, 6)),
        dipole=np.round(mf.dip_moment(unit="AU", verbose=0) * units.Bohr, 6),
        total_charge=0,
        spin=spin,
        multiplicity=spin + 1,
        s2=float(np.round(mf.spin_square()[0], 4)) if spin else 0.0,
        external_field=np.zeros(3),
        system=system,
        seed=int(number % TEST_EVERY == TEST_EVERY - 1),
        method=METHOD,
        number=number,
    )
    atoms.arrays["forces"] = np.round(-gradient * units.Hartree / units.Bohr, 6)
    return atoms


def generate(path: Path, most: int | None) -> Iterator[Atoms]:
    """All frames that the file does not hold yet."""
    present = set()
    if path.exists():
        present = {(a.info["system"], a.info["number"], a.info["spin"]) for a in read(path, ":")}
    for system, count in GEOMETRIES.items():
        for number in range(count if most is None else min(most, count)):
            for spin in SPINS:
                if (system, number, spin) in present:
                    continue
                try:
                    atoms = frame(system, number, spin)
                except RuntimeError as error:
                    print(f"{system} {number} spin {spin} left out: {error}", flush=True)
                    continue
                write(path, atoms, format="extxyz", append=True)
                yield atoms


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--geometries", type=int, default=None, help="of each molecule, at most")
    a = parser.parse_args()
    before = time.process_time()
    for count, atoms in enumerate(generate(a.out, a.geometries), start=1):
        seconds = (time.process_time() - before) / count
        print(
            "{system} {number} spin {spin}: {energy:.4f} eV, S2 {s2}".format(**atoms.info)
            + f", {seconds:.2f} s a frame",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
