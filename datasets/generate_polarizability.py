#!/usr/bin/env python3
"""Label one geometry per system with a finite-field DFT polarizability.

    python generate_polarizability.py OUT.xyz SYSTEM... [--relax] [--basis B] [--step 0.02] [--seed S] [--threads T]

Systems and method are those of ``generate.py``.  The polarizability is the central difference of the
dipole in fields of +step and -step (V/Angstrom) along x, y and z,

    alpha_ab = [mu_a(+step b) - mu_a(-step b)] / (2 step)     [e^2*Angstrom^2/eV],

symmetrised; times 14.3996 eV*Angstrom/e^2 it is in Angstrom^3.  Frames carry what those of
``generate.py`` do (at zero field) and in info

    polarizability (nine numbers, 3x3); polarizability_asymmetry, the largest |alpha_ab - alpha_ba|;
    field_step [V/Angstrom]; geometry ("ideal" start geometry, "GFN2-xTB" minimum)

Alkanes are all-trans in their ideal geometry; other systems are best relaxed (``--relax``).  OUT.xyz is
appended to and systems that it holds already (same seed and geometry) are skipped, so that an
interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read, write
from generate import NO_FIELD, SYSTEMS, basis_of, dipole, label, relaxed, solve

TIGHT = 1e-11  # Hartree; the error of a dipole goes with the square root of the error of the energy


def polarizability(
    atoms: Atoms, system: str, step: float, threads: int, guess: np.ndarray, basis: str | None = None
) -> np.ndarray | None:
    """Central difference of dipoles, (3, 3), not symmetrised; None if an SCF did not converge."""
    columns = []
    for axis in range(3):
        shifted = []
        for sign in (1.0, -1.0):
            field = np.zeros(3)
            field[axis] = sign * step
            mf = solve(atoms, system, field, threads=threads, basis=basis, tolerance=TIGHT, guess=guess)
            if mf is None:
                return None
            shifted.append(dipole(mf))
        columns.append((shifted[0] - shifted[1]) / (2.0 * step))
    return np.array(columns).T


def label_polarizability(
    atoms: Atoms, system: str, step: float, threads: int, basis: str | None = None
) -> Atoms | None:
    """A labelled copy of atoms, or None if an SCF did not converge."""
    atoms = atoms.copy()
    atoms.positions -= atoms.get_center_of_mass()
    mf = solve(atoms, system, threads=threads, basis=basis, tolerance=TIGHT)
    if mf is None:
        return None
    alpha = polarizability(atoms, system, step, threads, mf.make_rdm1(), basis)
    if alpha is None:
        return None
    out = label(atoms, system, NO_FIELD, threads, mf, basis)
    out.info["polarizability"] = 0.5 * (alpha + alpha.T).ravel()
    out.info["polarizability_asymmetry"] = float(np.abs(alpha - alpha.T).max())
    out.info["field_step"] = step
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("systems", nargs="+", choices=sorted(SYSTEMS), metavar="SYSTEM")
    parser.add_argument("--relax", action="store_true", help="relax with GFN2-xTB first")
    parser.add_argument("--basis", help="default: def2-svp, for anions def2-svpd")
    parser.add_argument("--step", type=float, default=0.02, help="V/Angstrom")
    parser.add_argument("--seed", type=int, default=0, help="of start geometries with random orientations")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    geometry = "GFN2-xTB" if a.relax else "ideal"
    done = set()
    if a.out.exists():
        keys = ("system", "seed", "geometry", "method")
        done = {tuple(f.info[key] for key in keys) for f in read(a.out, ":")}
    for system in a.systems:
        if (system, a.seed, geometry, f"PBE0/{a.basis or basis_of(system)}") in done:
            continue
        rng = np.random.default_rng(a.seed)
        atoms = relaxed(system, rng, fmax=0.01, steps=500) if a.relax else SYSTEMS[system].build(rng)
        labelled = label_polarizability(atoms, system, a.step, a.threads, a.basis)
        if labelled is None:
            print(f"{system}: not converged, left out", file=sys.stderr)
            continue
        labelled.info["seed"] = a.seed
        labelled.info["geometry"] = geometry
        write(a.out, labelled, append=True, format="extxyz")
        print(f"{system}: done", flush=True)


if __name__ == "__main__":
    main()
