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
    zno_molecule          triplet, which is the ground state with this functional and goes over into neutral atoms
    zn2o2                 the GFN2-xTB rhombus, drawn apart along two of its bonds into two rigid ZnO side by side and
                          antiparallel.  Far apart each is a triplet, together they are a singlet of broken symmetry

Where it does not start from ions, an SCF starts from the density of the point before.  That of zn2o2 starts at the
far end, from those of two molecules of opposite spin, and is compared with one that starts from free atoms and leads
to a closed shell: the lower one is taken.  The fragments are frames of their own: atoms, ions, water1 and
zno_molecule.  Frames carry in info also  geometry ("dissociation"); distance (Angstrom; between the atoms that
part, not on fragments); state ("ions", "ions apart", "atoms", "closed shell", "triplet", "broken symmetry");
spin_square, the expectation value (not on what is made of fragments).  Even points of a curve and the fragments
are seed 0, odd points seed 1.  OUT.xyz is appended to; the points that it holds already are skipped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.io import read, write
from generate import NO_FIELD, SYSTEMS, add_potential, converge, dipole, label, mean_field, relaxed, solve

COULOMB = units.Hartree * units.Bohr  # e^2/(4 pi eps0), eV*Angstrom
SHIFT = 0.005  # Angstrom
PAIRS = {"nacl_pair": ("na", "cl"), "lif_pair": ("li", "f")}
FRAGMENTS = {  # systems of the half that stays and of the half that moves
    "water2": ("water1", "water1"),
    "zno_molecule": ("zn_atom", "o_atom"),
    "zn2o2": ("zno_molecule", "zno_molecule"),
}
BROKEN = 0.05  # S^2 of a singlet above which its spins are not paired
DISTANCES = {  # Angstrom
    "nacl_pair": (2.0, 2.1, 2.2, 2.3, 2.4, 2.5, 2.7, 2.9, 3.2, 3.6, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 12.0),
    "lif_pair": (1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 2.0, 2.3, 2.6, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 12.0),
    "water2": (2.4, 2.5, 2.6, 2.7, 2.8, 2.9, 3.0, 3.2, 3.4, 3.7, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0),
    "zno_molecule": (1.6, 1.7, 1.75, 1.8, 1.85, 1.9, 2.0, 2.1, 2.2, 2.35, 2.5, 2.75, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 10.0),
    "zn2o2": (1.7, 1.75, 1.8, 1.85, 1.9, 2.0, 2.1, 2.2, 2.4, 2.6, 2.8, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 10.0),
}  # fmt: skip


def halves(curve: str) -> tuple[Atoms, list[int], tuple[int, int], np.ndarray]:
    """A geometry, the atoms to draw away, the two atoms that give the distance, and where to draw (unit vector)."""
    if curve in PAIRS or curve == "zno_molecule":
        return SYSTEMS[curve].build(np.random.default_rng(0)), [1], (0, 1), np.array([1.0, 0.0, 0.0])
    atoms = relaxed(curve, np.random.default_rng(0), fmax=0.01, steps=500)
    if curve == "zn2o2":  # in turn around the rhombus; its sides 0-3 and 1-2 are parallel
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
    out.info["spin_square"] = spin_square(mf)
    return mf, out


def side_by_side(first: Any, second: Any, *, turned: bool = False) -> np.ndarray:
    """Spin densities of two fragments in one system; with ``turned`` the second has its spins exchanged."""
    a, b = np.asarray(first.make_rdm1()), np.asarray(second.make_rdm1())
    n = a.shape[1]
    guess = np.zeros((2, n + b.shape[1], n + b.shape[1]))
    guess[:, :n, :n], guess[:, n:, n:] = a, b[::-1] if turned else b
    return guess


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


def ionic_curve(curve: str, basis: str, threads: int) -> Iterator[Atoms]:
    """Fragments of a pair of ions, without a distance, and its points."""
    atoms, moving, pair, along = halves(curve)
    names = [f"{name}_{kind}" for name in PAIRS[curve] for kind in ("atom", "ion")]
    parts = {
        name: fragment(name, SYSTEMS[name].build(np.random.default_rng(0)), basis, threads) for name in names
    }
    for _, part in parts.values():
        yield part
    first, second = PAIRS[curve]
    guess = side_by_side(parts[f"{first}_ion"][0], parts[f"{second}_ion"][0])
    neutral = atoms_apart([parts[f"{name}_atom"][1] for name in (first, second)])
    apart, last = False, (np.inf, 0.0)  # energy and effective charge of the point before
    for distance in DISTANCES[curve]:
        frame = at_distance(atoms, moving, pair, along, distance)
        if not apart:
            labelled = labelled_point(frame, curve, [guess], basis, threads)[1]
            if labelled is None:
                print(f"{curve} {distance}: not converged, left out", file=sys.stderr)
                continue
            labelled.info["state"] = "ions"
            report(labelled, distance)
            present = (labelled.info["energy"], float(np.linalg.norm(labelled.info["dipole"])) / distance)
            apart = present[0] > last[0] and present[1] < last[1]
            last = present
        if apart:
            ions = ions_apart(frame, PAIRS[curve], basis, threads)
            report(of_fragments(frame, curve, basis, ions), distance)
            labelled = of_fragments(frame, curve, basis, min(ions, neutral, key=lambda x: x["energy"]))
        labelled.info["distance"] = distance
        yield labelled


def molecular_curve(curve: str, basis: str, threads: int) -> Iterator[Atoms]:
    """Fragments of what goes over into them as they are, without a distance, and its points."""
    atoms, moving, pair, along = halves(curve)
    staying = [i for i in range(len(atoms)) if i not in moving]
    names = FRAGMENTS[curve]
    parts = [
        fragment(name, atoms[half], basis, threads)
        for name, half in zip(names, (staying, moving), strict=True)
    ]
    yield from (part for _, part in (parts[1:] if names[0] == names[1] else parts))
    breaks = curve == "zn2o2"
    guess = side_by_side(parts[0][0], parts[1][0], turned=True) if breaks else None
    for distance in reversed(DISTANCES[curve]) if breaks else DISTANCES[curve]:
        frame = at_distance(atoms, moving, pair, along, distance)
        mf, labelled = labelled_point(frame, curve, [guess, None] if breaks else [guess], basis, threads)
        if labelled is None:
            print(f"{curve} {distance}: not converged, left out", file=sys.stderr)
            continue
        guess = mf.make_rdm1()
        labelled.info["distance"] = distance
        report(labelled, distance)
        yield labelled


def labelled_point(
    frame: Atoms, curve: str, guesses: list[Any], basis: str, threads: int
) -> tuple[Any, Atoms | None]:
    """The lowest of the mean fields that the guesses lead to, and the frame that it labels; None if there is none."""
    found = [solve(frame, curve, threads=threads, basis=basis, guess=g, unrestricted=True) for g in guesses]
    mf = min((m for m in found if m is not None), key=lambda m: m.e_tot, default=None)
    labelled = None if mf is None else label(frame, curve, NO_FIELD, threads, mf, basis)
    if labelled is not None:
        state = "triplet" if SYSTEMS[curve].multiplicity == 3 else "closed shell"
        if state == "closed shell" and spin_square(mf) > BROKEN:
            state = "broken symmetry"
        labelled.info |= {"spin_square": spin_square(mf), "state": state}
    return mf, labelled


def run(curve: str, out: Path, basis: str, threads: int) -> None:
    """All points of a curve that are not there yet."""
    done = [f for f in read(out, ":") if f.info["method"] == f"PBE0/{basis}"] if out.exists() else []
    there = {(f.info["system"], f.info.get("distance")) for f in done}
    frames = ionic_curve if curve in PAIRS else molecular_curve
    for frame in frames(curve, basis, threads):
        distance = frame.info.get("distance")
        if (frame.info["system"], distance) not in there:
            point = 0 if distance is None else DISTANCES[curve].index(distance)
            frame.info |= {"seed": point % 2, "geometry": "dissociation"}
            write(out, frame, append=True, format="extxyz")


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
