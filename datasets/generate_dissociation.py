#!/usr/bin/env python3
"""Label dissociation curves with density-functional theory, right to the separated fragments.

    python generate_dissociation.py OUT.xyz CURVE... [--basis def2-svpd] [--threads T]

Method and labels are those of ``generate.py``, unrestricted throughout.  Curves:

    nacl_pair, lif_pair   diatomic molecules.  Near the minimum an SCF that starts from the densities of the
                          ions ("ions"), as long as dipole / distance, which of ions tends to one, grows with
                          the distance.  Where it falls, the hybrid functional leaks a fraction of an electron
                          back, at all larger distances; no SCF of the pair is right there, and frames are
                          made of separate fragments: the lower of two ions ("ions apart"), each polarised by the
                          charge of the other, and two neutral atoms ("atoms") without any interaction.
    water2                the hydrogen-bonded GFN2-xTB minimum, rigid molecules drawn apart along O-O
    zn2o2                 the GFN2-xTB rhombus, two rigid ZnO, side by side and antiparallel, drawn apart along
                          the Zn-O bonds between them

Where it does not start from ions, an SCF starts from the density of the point before; of zn2o2 also from those of
free atoms, and the lower solution is left for a still lower one, whose spins are not paired, if its stability
analysis finds one.  The fragments are frames of their own: atoms, ions, water1 and zno_molecule.  Frames carry
in info also  geometry ("dissociation"); distance (Angstrom; between the atoms that part, not on fragments);
state ("ions", "ions apart", "atoms", "closed shell", "broken symmetry"); spin_square, the expectation value
(not on what is made of fragments).  Even points of a curve and the fragments are seed 0, odd points seed 1.
OUT.xyz is appended to; the points that it holds already are skipped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.io import read, write
from generate import NO_FIELD, SYSTEMS, add_potential, converge, dipole, label, mean_field, relaxed, solve

COULOMB = units.Hartree * units.Bohr  # e^2/(4 pi eps0), eV*Angstrom
SHIFT = 0.005  # Angstrom
PAIRS = {"nacl_pair": ("na", "cl"), "lif_pair": ("li", "f")}
DISTANCES = {  # Angstrom
    "nacl_pair": (2.0, 2.1, 2.2, 2.3, 2.4, 2.5, 2.7, 2.9, 3.2, 3.6, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 12.0),
    "lif_pair": (1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 2.0, 2.3, 2.6, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 12.0),
    "water2": (2.4, 2.5, 2.6, 2.7, 2.8, 2.9, 3.0, 3.2, 3.4, 3.7, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0),
    "zn2o2": (1.75, 1.85, 1.95, 2.1, 2.3, 2.6, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0),
}  # fmt: skip
MOLECULES = {"water2": "water1", "zn2o2": "zno_molecule"}
BROKEN = 0.05  # S^2 of a singlet above which its spins are not paired
ROUNDS = 4  # of stability analysis


def halves(curve: str) -> tuple[Atoms, list[int], tuple[int, int], np.ndarray]:
    """A geometry, the atoms to draw away, the two atoms that give the distance, and where to draw (unit vector)."""
    if curve in PAIRS:
        return SYSTEMS[curve].build(np.random.default_rng(0)), [1], (0, 1), np.array([1.0, 0.0, 0.0])
    atoms = relaxed(curve, np.random.default_rng(0), fmax=0.01, steps=500)
    if curve == "zn2o2":  # atoms in turn around the rhombus: the halves are 0, 1 and 2, 3
        along = atoms.positions[3] - atoms.positions[0]
        return atoms, [2, 3], (0, 3), along / np.linalg.norm(along)
    first, second = (int(i) for i in atoms.symbols.indices()["O"])
    moving = [i for i in range(6) if atoms.get_distance(i, second) < atoms.get_distance(i, first)]
    along = atoms.positions[second] - atoms.positions[first]
    return atoms, moving, (first, second), along / np.linalg.norm(along)


def at_distance(
    atoms: Atoms, moving: list[int], pair: tuple[int, int], along: np.ndarray, distance: float
) -> Atoms:
    """The moving atoms shifted along the vector until the pair has its distance."""
    out = Atoms(atoms.get_chemical_symbols(), positions=atoms.positions)
    d = out.positions[pair[1]] - out.positions[pair[0]]
    across = d - (d @ along) * along
    out.positions[moving] += (np.sqrt(distance**2 - across @ across) - d @ along) * along
    out.positions -= out.get_center_of_mass()
    return out


def spin_square(mf: Any) -> float:
    """Expectation value of S^2."""
    return float(mf.spin_square()[0])


def fragment(name: str, atoms: Atoms, basis: str, threads: int) -> tuple[Any, Atoms]:
    """Mean field and labelled frame of a fragment."""
    atoms = Atoms(atoms.symbols, positions=atoms.positions - atoms.get_center_of_mass())
    mf = solve(atoms, name, threads=threads, basis=basis, unrestricted=True)
    if mf is None:
        raise RuntimeError(f"{name}: the SCF did not converge")
    out = label(atoms, name, NO_FIELD, threads, mf, basis)
    assert out is not None  # the SCF has converged
    out.info |= {"seed": 0, "geometry": "dissociation", "spin_square": spin_square(mf)}
    return mf, out


def ionic_guess(first: Any, second: Any) -> np.ndarray:
    """Spin densities of two fragments side by side."""
    a, b = np.asarray(first.make_rdm1()), np.asarray(second.make_rdm1())
    n = a.shape[1]
    guess = np.zeros((2, n + b.shape[1], n + b.shape[1]))
    guess[:, :n, :n], guess[:, n:, n:] = a, b
    return guess


def stable(mf: Any) -> Any:
    """The mean field, or the one of lower energy that its stability analysis leads to."""
    for _ in range(ROUNDS):
        orbitals, _, good, _ = mf.stability(return_status=True)
        if good:
            break
        lower = mf.copy()
        lower = converge(lower, mf.make_rdm1(orbitals, mf.mo_occ))
        if lower is None or lower.e_tot > mf.e_tot - 1e-6:
            break
        mf = lower
    return mf


def solved(frame: Atoms, curve: str, guess: Any, basis: str, threads: int) -> Any:
    """Unrestricted mean field of a point, or None."""
    guesses = [guess] if curve != "zn2o2" or guess is None else [guess, None]
    found = [
        solve(frame, curve, threads=threads, basis=basis, guess=start, unrestricted=True) for start in guesses
    ]
    best = min((mf for mf in found if mf is not None), key=lambda mf: mf.e_tot, default=None)
    return stable(best) if curve == "zn2o2" and best is not None else best


def state_of(mf: Any, curve: str) -> str:
    """What kind of solution a mean field of a pair is."""
    if curve in PAIRS:
        return "ions"
    return "broken symmetry" if spin_square(mf) > BROKEN else "closed shell"


def of_fragments(frame: Atoms, curve: str, basis: str, labels: dict[str, Any]) -> Atoms:
    """A frame with labels that come from separate fragments."""
    out = frame.copy()
    _, charge, multiplicity, _ = SYSTEMS[curve]
    out.info = {
        "energy": labels["energy"],
        "total_charge": charge,
        "multiplicity": multiplicity,
        "system": curve,
        "dipole": labels["dipole"],
        "external_field": np.array(NO_FIELD),
        "method": f"PBE0/{basis}",
        "state": labels["state"],
    }
    out.arrays["forces"], out.arrays["hirshfeld"] = labels["forces"], labels["hirshfeld"]
    return out


def beside_a_charge(
    frame: Atoms, index: int, system: str, basis: str, threads: int
) -> tuple[float, np.ndarray]:
    """Energy (eV) of one ion of a pair and its dipole (e*Angstrom), polarised by the other ion's charge.

    The energy holds the Coulomb energy of the ion and that charge.
    """
    charge = -SYSTEMS[system].charge
    here, there = frame.positions[index], frame.positions[1 - index]
    mf = mean_field(
        Atoms([frame.symbols[index]], positions=[here]),
        system,
        threads=threads,
        basis=basis,
        unrestricted=True,
    )
    with mf.mol.with_rinv_origin(there / units.Bohr):
        add_potential(mf, -charge * mf.mol.intor("int1e_rinv"))
    if (mf := converge(mf)) is None:
        raise RuntimeError(f"{system}: the SCF did not converge")
    nucleus = mf.mol.atom_charges()[0] * charge / (np.linalg.norm(here - there) / units.Bohr)
    return (mf.e_tot + nucleus) * units.Hartree, dipole(mf)


def ions_apart(frame: Atoms, pair: tuple[str, str], basis: str, threads: int) -> dict[str, Any]:
    """Labels of two ions that polarise each other to first order."""
    charges = np.array([SYSTEMS[f"{name}_ion"].charge for name in pair])

    def energy_and_dipole(atoms: Atoms) -> tuple[float, np.ndarray]:
        parts = [beside_a_charge(atoms, i, f"{name}_ion", basis, threads) for i, name in enumerate(pair)]
        coulomb = COULOMB * charges.prod() / atoms.get_distance(0, 1)  # both parts hold it
        return parts[0][0] + parts[1][0] - coulomb, parts[0][1] + parts[1][1]

    energy, moment = energy_and_dipole(frame)
    shift = np.zeros((2, 3))
    shift[1, 0] = SHIFT
    ends = [
        energy_and_dipole(Atoms(frame.symbols, positions=frame.positions + s * shift))[0] for s in (1, -1)
    ]
    force = -(ends[0] - ends[1]) / (2.0 * SHIFT)
    return {
        "state": "ions apart",
        "energy": energy,
        "dipole": moment,
        "forces": np.array([[-force, 0.0, 0.0], [force, 0.0, 0.0]]),
        "hirshfeld": charges.astype(float),
    }


def atoms_apart(parts: list[Atoms]) -> dict[str, Any]:
    """Labels of two atoms that do not interact."""
    return {
        "state": "atoms",
        "energy": sum(part.info["energy"] for part in parts),
        "dipole": np.zeros(3),
        "forces": np.zeros((2, 3)),
        "hirshfeld": np.zeros(2),
    }


def run(curve: str, out: Path, basis: str, threads: int) -> None:
    """All points of a curve that are not there yet."""
    done = [f for f in read(out, ":") if f.info["method"] == f"PBE0/{basis}"] if out.exists() else []
    there = {(f.info["system"], f.info.get("distance")) for f in done}
    atoms, moving, pair, along = halves(curve)
    if curve in PAIRS:
        names = [f"{name}_{kind}" for name in PAIRS[curve] for kind in ("atom", "ion")]
    else:
        names = [MOLECULES[curve]]
    parts = {}
    for name in names:
        part = SYSTEMS[name].build(np.random.default_rng(0)) if curve in PAIRS else atoms[moving]
        parts[name] = fragment(name, part, basis, threads)
        if (name, None) not in there:
            write(out, parts[name][1], append=True, format="extxyz")
    guess, apart = None, False
    if curve in PAIRS:
        first, second = PAIRS[curve]
        guess = ionic_guess(parts[f"{first}_ion"][0], parts[f"{second}_ion"][0])
        neutral = atoms_apart([parts[f"{name}_atom"][1] for name in (first, second)])
    last = (np.inf, 0.0)  # energy and effective charge of the point before
    for i, distance in enumerate(DISTANCES[curve]):
        frame = at_distance(atoms, moving, pair, along, distance)
        labelled = None
        if not apart:
            mf = solved(frame, curve, guess, basis, threads)
            labelled = None if mf is None else label(frame, curve, NO_FIELD, threads, mf, basis)
            if labelled is None:
                print(f"{curve} {distance}: not converged, left out", file=sys.stderr)
                continue
            labelled.info |= {
                "spin_square": spin_square(mf),
                "state": state_of(mf, curve),
            }
            report(labelled, distance)
            present = (labelled.info["energy"], float(np.linalg.norm(labelled.info["dipole"])) / distance)
            if curve in PAIRS:
                apart = present[0] > last[0] and present[1] < last[1]
                last = present
            else:
                guess = mf.make_rdm1()
        if apart:
            ions = ions_apart(frame, PAIRS[curve], basis, threads)
            report(of_fragments(frame, curve, basis, ions), distance)
            labelled = of_fragments(frame, curve, basis, min(ions, neutral, key=lambda x: x["energy"]))
        if (curve, distance) not in there:
            labelled.info |= {"seed": i % 2, "geometry": "dissociation", "distance": distance}
            write(out, labelled, append=True, format="extxyz")


def report(frame: Atoms, distance: float) -> None:
    """One line about a point."""
    info = frame.info
    print(
        f"{info['system']} {distance:5.2f} {info['state']:12s} {info['energy']:.4f} eV, "
        f"dipole {np.round(info['dipole'], 4)}, charges {frame.arrays['hirshfeld'].round(3)}, "
        f"S^2 {info.get('spin_square', 0.0):.3f}",
        flush=True,
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("curves", nargs="+", choices=sorted(DISTANCES), metavar="CURVE")
    parser.add_argument("--basis", default="def2-svpd")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    for curve in a.curves:
        run(curve, a.out, a.basis, a.threads)


if __name__ == "__main__":
    main()
