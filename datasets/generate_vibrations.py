#!/usr/bin/env python3
"""Vibrations, Born charges and infrared intensities with density-functional theory.

    python generate_vibrations.py OUT.xyz SYSTEM... [--basis B] [--step 0.02] [--threads T]

Method and labels are those of ``generate.py``, at the minimum of that method (largest force below 0.01
eV/Angstrom).  The Hessian is analytic (without response of the grid).  Born charges come from forces in
fields of +step and -step (V/Angstrom) along x, y and z,

    Z_k,ab = dF_kb / dfield_a = dmu_a / dr_kb        [e],

and the polarizability from the dipoles in those fields, symmetrised.  Frames carry besides what those of
``generate.py`` do

    info   hessian (3N x 3N numbers, eV/Angstrom^2, row by row); frequencies (1/cm) and intensities (km/mol)
           of the 3N - 6 vibrations after translations and rotations were projected out;
           polarizability (3x3 numbers, e^2*Angstrom^2/eV); field_step; geometry ("relaxed"); fmax
    arrays born_charges, nine numbers an atom, Z_ab at position 3a + b, not corrected to sum to the charge

Systems that OUT.xyz holds already are skipped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.io import read, write
from generate import NO_FIELD, SYSTEMS, basis_of, dipole, forces, label, solve
from generate_relaxed import relax, start

FMAX = 0.01
TIGHT = 1e-11  # Hartree
KM_PER_MOL = 974.8802  # (d mu / dQ)^2 of 1 e^2/u: N_A / (12 eps0 c^2) in km/mol


def hessian(mf: Any) -> np.ndarray:
    """Second derivatives of the energy, (3N, 3N), eV/Angstrom^2."""
    blocks = mf.Hessian().kernel()  # (atom, atom, 3, 3), Hartree/Bohr^2
    n = 3 * mf.mol.natm
    matrix = blocks.transpose(0, 2, 1, 3).reshape(n, n) * units.Hartree / units.Bohr**2
    return 0.5 * (matrix + matrix.T)


def vibrations(atoms: Atoms, second: np.ndarray, born: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies (1/cm, imaginary ones negative) and infrared intensities (km/mol) of a bent molecule."""
    n = len(atoms)
    root = np.sqrt(np.repeat(atoms.get_masses(), 3))
    centred = atoms.positions - atoms.get_center_of_mass()
    rigid = [np.tile(axis, n) for axis in np.eye(3)]
    rigid += [np.cross(axis, centred).ravel() for axis in np.eye(3)]
    basis, _ = np.linalg.qr((np.array(rigid) * root).T)
    inner = np.linalg.svd(basis, full_matrices=True)[0][:, 6:]
    values, vectors = np.linalg.eigh(inner.T @ (second / np.outer(root, root)) @ inner)
    modes = (inner @ vectors) / root[:, None]  # Angstrom per normal coordinate of one Angstrom sqrt(u)
    energies = units._hbar * 1e10 / np.sqrt(units._e * units._amu) * np.sqrt(np.abs(values))  # eV
    slopes = np.einsum("kab,kbm->am", born, modes.reshape(n, 3, -1))
    return np.sign(values) * energies / units.invcm, KM_PER_MOL * (slopes**2).sum(axis=0)


def label_vibrations(atoms: Atoms, system: str, basis: str, step: float, threads: int) -> Atoms | None:
    """A labelled copy of a minimum, or None if an SCF did not converge."""
    atoms = atoms.copy()
    atoms.positions -= atoms.get_center_of_mass()
    mf = solve(atoms, system, threads=threads, basis=basis, tolerance=TIGHT)
    if mf is None:
        return None
    out = label(atoms, system, NO_FIELD, threads, mf, basis)
    born, alpha = np.empty((len(atoms), 3, 3)), np.empty((3, 3))
    for axis, direction in enumerate(np.eye(3)):
        ends = []
        for field in (step * direction, -step * direction):
            end = solve(
                atoms, system, field, threads=threads, basis=basis, tolerance=TIGHT, guess=mf.make_rdm1()
            )
            if end is None:
                return None
            ends.append((forces(end, field), dipole(end)))
        born[:, axis] = (ends[0][0] - ends[1][0]) / (2.0 * step)
        alpha[:, axis] = (ends[0][1] - ends[1][1]) / (2.0 * step)
    second = hessian(mf)
    out.arrays["born_charges"] = born.reshape(-1, 9)
    frequencies, intensities = vibrations(out, second, born)
    out.info |= {
        "hessian": second.ravel(),
        "frequencies": frequencies,
        "intensities": intensities,
        "polarizability": 0.5 * (alpha + alpha.T).ravel(),
        "field_step": step,
    }
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("systems", nargs="+", choices=sorted(SYSTEMS), metavar="SYSTEM")
    parser.add_argument("--basis", help="default: def2-svp, for anions def2-svpd")
    parser.add_argument("--step", type=float, default=0.02, help="V/Angstrom")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    done = {(f.info["system"], f.info["method"]) for f in read(a.out, ":")} if a.out.exists() else set()
    for system in a.systems:
        basis = a.basis or basis_of(system)
        if (system, f"PBE0/{basis}") in done:
            continue
        steps = a.out.with_name(f"{a.out.name}.{system}.traj")
        atoms = relax(start(system, None), system, basis, FMAX, a.threads, steps)
        labelled = None if atoms is None else label_vibrations(atoms, system, basis, a.step, a.threads)
        if labelled is None:
            print(f"{system}: not converged, left out", file=sys.stderr)
            continue
        labelled.info |= {"seed": 0, "geometry": "relaxed", "fmax": FMAX}
        write(a.out, labelled, append=True, format="extxyz")
        print(f"{system}: {np.round(labelled.info['frequencies'])} 1/cm", flush=True)


if __name__ == "__main__":
    main()
