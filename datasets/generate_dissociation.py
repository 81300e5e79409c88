#!/usr/bin/env python3
"""Label dissociation curves with density-functional theory, right to the separated fragments.

    python generate_dissociation.py OUT.xyz CURVE... [--basis def2-svpd] [--threads T]

Method and labels are those of ``generate.py``, unrestricted throughout.  Curves:

    nacl_pair, lif_pair   diatomic molecules.  Their ground state is ionic, an SCF that starts from the
                          densities of the ions, as long as that lies below the separated neutral atoms,
                          and the atoms beyond.  There the frame is made of the labels of the two atoms: energies
                          added, no forces, no dipole.  No SCF of the pair can give that state: a hybrid
                          functional moves a fraction of an electron between atoms however far apart.
    water2                the hydrogen-bonded GFN2-xTB minimum, rigid molecules drawn apart along O-O
    zn2o2                 the minimum of the method itself, two rigid ZnO drawn apart

Every SCF starts from the density of the point before.  The fragments are frames of their own: atoms, ions,
water1 and zno_molecule.  Frames carry in info also  geometry ("dissociation"); distance (Angstrom; between the
atoms that part, not on fragments); state ("ions", "atoms", "closed shell"); spin_square, the expectation value.
Even points of a curve and the fragments are seed 0, odd points seed 1.  OUT.xyz is appended to; the
points that it holds already are skipped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read, write
from generate import NO_FIELD, SYSTEMS, label, relaxed, solve
from generate_relaxed import relax, start

PAIRS = {"nacl_pair": ("na", "cl"), "lif_pair": ("li", "f")}
DISTANCES = {  # Angstrom
    "nacl_pair": (
        2.0,
        2.1,
        2.2,
        2.3,
        2.4,
        2.5,
        2.7,
        2.9,
        3.2,
        3.6,
        4.0,
        4.5,
        5.0,
        6.0,
        7.0,
        8.0,
        9.0,
        10.0,
        12.0,
    ),
    "lif_pair": (
        1.3,
        1.4,
        1.5,
        1.6,
        1.7,
        1.8,
        2.0,
        2.3,
        2.6,
        3.0,
        3.5,
        4.0,
        5.0,
        6.0,
        7.0,
        8.0,
        9.0,
        10.0,
        12.0,
    ),
    "water2": (2.4, 2.5, 2.6, 2.7, 2.8, 2.9, 3.0, 3.2, 3.4, 3.7, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0),
    "zn2o2": (1.7, 1.8, 1.9, 2.0, 2.2, 2.4, 2.7, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 10.0),
}


def halves(
    curve: str, basis: str, threads: int, steps: Path
) -> tuple[Atoms, list[int], tuple[int, int], np.ndarray]:
    """A geometry, the atoms to draw away, the two atoms that give the distance, and where to draw (unit vector)."""
    if curve in PAIRS:
        return SYSTEMS[curve].build(np.random.default_rng(0)), [1], (0, 1), np.array([1.0, 0.0, 0.0])
    if curve == "water2":
        atoms = relaxed(curve, np.random.default_rng(0), fmax=0.01, steps=500)
        first, second = (int(i) for i in atoms.symbols.indices()["O"])
        moving = [i for i in range(6) if atoms.get_distance(i, second) < atoms.get_distance(i, first)]
        along = atoms.positions[second] - atoms.positions[first]
        return atoms, moving, (first, second), along / np.linalg.norm(along)
    found = relax(start(curve, None), curve, basis, 0.02, threads, steps)
    if found is None:
        raise RuntimeError(f"{curve}: no minimum was found")
    zinc, oxygen = found.symbols.indices()["Zn"], found.symbols.indices()["O"]
    # the Zn of one molecule lies beside the O of the other; the two molecules move apart side by side
    stays, moving = [int(zinc[0]), int(oxygen[0])], [int(zinc[1]), int(oxygen[1])]
    along = found.positions[moving].mean(axis=0) - found.positions[stays].mean(axis=0)
    return found, moving, (stays[0], moving[1]), along / np.linalg.norm(along)


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


def atoms_apart(frame: Atoms, parts: list[Atoms], curve: str, basis: str) -> Atoms:
    """The labels of two atoms that do not interact."""
    out = frame.copy()
    _, charge, multiplicity, _ = SYSTEMS[curve]
    out.info = {
        "energy": sum(part.info["energy"] for part in parts),
        "total_charge": charge,
        "multiplicity": multiplicity,
        "system": curve,
        "dipole": np.zeros(3),
        "external_field": np.array(NO_FIELD),
        "method": f"PBE0/{basis}",
    }
    out.arrays["forces"] = np.zeros((2, 3))
    out.arrays["hirshfeld"] = np.concatenate([part.arrays["hirshfeld"] for part in parts])
    return out


def run(curve: str, out: Path, basis: str, threads: int) -> None:
    """All points of a curve that are not there yet."""
    done = [f for f in read(out, ":") if f.info["method"] == f"PBE0/{basis}"] if out.exists() else []
    there = {(f.info["system"], f.info.get("distance")) for f in done}
    atoms, moving, pair, along = halves(curve, basis, threads, out.with_name(f"{out.name}.{curve}.traj"))
    parts: dict[str, tuple[Any, Atoms]] = {}
    if curve in PAIRS:
        for name in PAIRS[curve]:
            for kind in ("atom", "ion"):
                system = f"{name}_{kind}"
                parts[system] = fragment(
                    system, SYSTEMS[system].build(np.random.default_rng(0)), basis, threads
                )
    else:
        name = {"water2": "water1", "zn2o2": "zno_molecule"}[curve]
        parts[name] = fragment(name, atoms[moving], basis, threads)
    for system, (_, frame) in parts.items():
        if (system, None) not in there:
            write(out, frame, append=True, format="extxyz")
    guess = None
    if curve in PAIRS:
        first, second = PAIRS[curve]
        guess = ionic_guess(parts[f"{first}_ion"][0], parts[f"{second}_ion"][0])
        neutral = [parts[f"{part}_atom"][1] for part in (first, second)]
    for i, distance in enumerate(DISTANCES[curve]):
        if (curve, distance) in there:
            continue
        frame = at_distance(atoms, moving, pair, along, distance)
        mf = solve(frame, curve, threads=threads, basis=basis, guess=guess, unrestricted=True)
        labelled = None if mf is None else label(frame, curve, NO_FIELD, threads, mf, basis)
        state = "ions" if curve in PAIRS else "closed shell"
        if labelled is not None:
            print(
                f"{curve} {distance:5.2f} {labelled.info['energy']:.4f} eV, dipole {labelled.info['dipole'].round(4)}, "
                f"charges {labelled.arrays['hirshfeld'].round(3)}, S^2 {spin_square(mf):.3f}",
                flush=True,
            )
            labelled.info["spin_square"] = spin_square(mf)
            if curve not in PAIRS:
                guess = mf.make_rdm1()
        if curve in PAIRS:
            apart = atoms_apart(frame, neutral, curve, basis)
            if labelled is None or apart.info["energy"] < labelled.info["energy"]:
                labelled, state = apart, "atoms"
                labelled.info["spin_square"] = 1.0  # of opposite spins on two atoms
        if labelled is None:
            print(f"{curve} {distance}: not converged, left out", file=sys.stderr)
            continue
        labelled.info |= {"seed": i % 2, "geometry": "dissociation", "distance": distance, "state": state}
        write(out, labelled, append=True, format="extxyz")


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
