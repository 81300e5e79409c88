#!/usr/bin/env python3
"""Relax systems with density-functional theory.

    python generate_relaxed.py OUT.xyz SYSTEM... [--basis B] [--start FILE.xyz [--like OTHER]] [--fmax 0.01] [--threads T]

Method and labels are those of ``generate.py``, forces included, at the minimum (largest force below
fmax, eV/Angstrom).  The start is a minimum of GFN2-xTB, with a small random displacement lest symmetry
hold it at a saddle point: the one next to the frame of lowest energy that FILE.xyz has of the system, or
next to the start geometry of ``generate.py``; with --like it is the frame that FILE.xyz has of OTHER.
GFN2-xTB also gives the first Hessian.  A coarse grid leads to the neighbourhood of the minimum, the
usual one (and its response to displacements) to the minimum itself.
Frames carry in info also  geometry ("relaxed") and fmax.  Systems that OUT.xyz holds already are skipped;
an interrupted relaxation goes on from its last step, in OUT.xyz.SYSTEM.traj.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.io import read, write
from ase.optimize import BFGS
from generate import GRID_LEVEL, NO_FIELD, SYSTEMS, basis_of, forces, label, relaxed, solve

COARSE_GRID, COARSE_FMAX = 1, 0.1  # its forces are hardly better than that
RATTLE = 0.01  # Angstrom
SOFTEST, STEP = 0.5, 0.01  # eV/Angstrom^2, Angstrom


class DFT(Calculator):
    """PBE0 as an ASE calculator; each SCF starts from the density of the one before."""

    implemented_properties = ("energy", "forces")

    def __init__(self, system: str, basis: str, grid: int, threads: int) -> None:
        super().__init__()
        self.system, self.basis, self.grid, self.threads = system, basis, grid, threads
        self.density: Any = None

    def calculate(
        self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes
    ) -> None:
        """Energy (eV) and forces (eV/Angstrom); RuntimeError if the SCF does not converge."""
        super().calculate(atoms, properties, system_changes)
        mf = solve(
            self.atoms,
            self.system,
            threads=self.threads,
            basis=self.basis,
            grid=self.grid,
            guess=self.density,
        )
        if mf is None:
            raise RuntimeError("the SCF did not converge")
        self.density = mf.make_rdm1()
        force = forces(mf, grid_response=self.grid >= GRID_LEVEL)
        self.results = {"energy": mf.e_tot * units.Hartree, "forces": force - force.mean(axis=0)}


def relax(
    atoms: Atoms, system: str, basis: str, fmax: float, threads: int, path: Path, steps: int = 60
) -> Atoms | None:
    """The minimum next to atoms, or None if it was not found in that many steps on the usual grid.

    What an interrupted relaxation left in ``path`` takes the place of ``atoms``.
    """
    atoms = read(path) if path.exists() and path.stat().st_size else atoms.copy()
    curvature = xtb_hessian(atoms, system)
    for grid, target in ((COARSE_GRID, COARSE_FMAX), (GRID_LEVEL, fmax)):
        atoms.calc = DFT(system, basis, grid, threads)
        optimiser = BFGS(atoms, logfile="-", trajectory=str(path), append_trajectory=True)
        optimiser.H0 = curvature
        found = optimiser.run(fmax=target, steps=steps)
        curvature = optimiser.state.hessian if optimiser.state else curvature
    atoms.calc = None
    return atoms if found else None


def xtb_hessian(atoms: Atoms, system: str) -> np.ndarray:
    """Second derivatives of the GFN2-xTB energy, (3N, 3N), eV/Angstrom^2, made positive definite."""
    from tblite.ase import TBLite

    _, charge, multiplicity, _ = SYSTEMS[system]
    probe = atoms.copy()
    probe.calc = TBLite(method="GFN2-xTB", charge=charge, multiplicity=multiplicity, verbosity=0)
    rows = []
    for i in range(3 * len(atoms)):
        ends = []
        for sign in (1.0, -1.0):
            shift = np.zeros(3 * len(atoms))
            shift[i] = sign * STEP
            probe.positions = atoms.positions + shift.reshape(-1, 3)
            ends.append(probe.get_forces().ravel())
        rows.append((ends[1] - ends[0]) / (2.0 * STEP))
    values, vectors = np.linalg.eigh(0.5 * (np.array(rows) + np.array(rows).T))
    return vectors * np.maximum(np.abs(values), SOFTEST) @ vectors.T


def start(system: str, path: Path | None, like: str | None = None) -> Atoms:
    """Where a relaxation begins."""
    rng = np.random.default_rng(0)
    frames = [] if path is None else [f for f in read(path, ":") if f.info["system"] == (like or system)]
    best = min(frames, key=lambda f: f.get_potential_energy(), default=None)
    atoms = best if like else relaxed(system, rng, fmax=0.02, steps=500, atoms=best)
    return Atoms(atoms.symbols, positions=atoms.positions + rng.normal(0.0, RATTLE, atoms.positions.shape))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("systems", nargs="+", choices=sorted(SYSTEMS), metavar="SYSTEM")
    parser.add_argument("--basis", help="default: def2-svp, for anions def2-svpd")
    parser.add_argument("--start", type=Path, metavar="FILE.xyz")
    parser.add_argument("--like", choices=sorted(SYSTEMS), metavar="OTHER")
    parser.add_argument("--fmax", type=float, default=0.01, help="eV/Angstrom")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    done = {(f.info["system"], f.info["method"]) for f in read(a.out, ":")} if a.out.exists() else set()
    for system in a.systems:
        basis = a.basis or basis_of(system)
        if (system, f"PBE0/{basis}") in done:
            continue
        steps = a.out.with_name(f"{a.out.name}.{system}.traj")
        atoms = relax(start(system, a.start, a.like), system, basis, a.fmax, a.threads, steps)
        labelled = None if atoms is None else label(atoms, system, NO_FIELD, a.threads, basis=basis)
        if labelled is None:
            print(f"{system}: not converged, left out", file=sys.stderr)
            continue
        labelled.info |= {"seed": 0, "geometry": "relaxed", "fmax": a.fmax}
        write(a.out, labelled, append=True, format="extxyz")
        print(f"{system}: done", flush=True)


if __name__ == "__main__":
    main()
