#!/usr/bin/env python3
"""Label sampled molecular and cluster structures with density-functional theory.

    pip install "kqeq[datasets]"      # pyscf, tblite
    python generate.py OUT.xyz SYSTEM [--frames N] [--seed S] [--field FX FY FZ] [--basis B] [--threads T]
    python generate.py OUT.xyz SYSTEM --relabel FILE.xyz [--geometries-of OTHER] [--seed S] [--frames N]

Structures are drawn from GFN2-xTB molecular dynamics at the system's own total charge and then
labelled with PBE0/def2-SVP (density fitting; def2-SVPD on anions, or what --basis says: energies of
different basis sets must not be compared) in PySCF.  With --relabel they are instead those that FILE.xyz
has of this system (of OTHER: vertical charge states) and this seed, in the field that they have there.
Every frame of OUT.xyz
(extended XYZ, appended to, so that an interrupted run goes on where it stopped) carries

    info   energy [eV], the total electronic and nuclear energy; total_charge [e]; dipole [e*Angstrom]
           about the coordinate origin, which every frame has at its centre of mass;
           external_field [V/Angstrom]; system; seed; method; multiplicity;
           geometry, the OTHER system that was sampled, if there is one
    arrays forces [eV/Angstrom]; hirshfeld [e], the Hirshfeld charges, summing to total_charge
           to the accuracy of the integration grid

The electric field enters as  H = H0 - mu.E  (electrons feel +E.r, nuclei -Z E.R), so that
mu = -dE/dE and the force of the field on a nucleus of charge q is +qE.

Frames whose SCF does not converge are left out.  Use one thread and one process per core.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.io import read, write

V_PER_ANGSTROM_IN_AU = 1.0 / 51.42206747632590  # 1 a.u. of field = 51.422 V/Angstrom
NO_FIELD = (0.0, 0.0, 0.0)
SAME_GEOMETRY = 1e-4  # Angstrom; files hold eight decimals
GRID_LEVEL = 3
SCREEN_GRID, SCREEN_TOLERANCE = 1, 1e-5  # Hartree; to tell the states of a radical apart
SCREEN_CYCLES = 25  # energies are upper bounds, converged or not
HOLES = 2  # orbitals below the highest that are tried for the hole of a radical
GRID_BLOCK = 20000  # grid points at a time in the Hirshfeld partition


def ring(symbols, radius):
    """A planar ring."""
    n = len(symbols)
    angles = 2.0 * math.pi * np.arange(n) / n
    return Atoms(symbols, positions=np.c_[radius * np.cos(angles), radius * np.sin(angles), 0.0 * angles])


def carbon_chain(extra_hydrogen):
    """C10H2, or C10H3 with a CH2 end."""
    x = 1.28 * np.arange(10)
    positions = [*([xi, 0.0, 0.0] for xi in x), [-1.07, 0.0, 0.0]]
    if extra_hydrogen:
        positions += [[x[-1] + 0.55, 0.94, 0.0], [x[-1] + 0.55, -0.94, 0.0]]
        return Atoms("C10H3", positions=positions)
    return Atoms("C10H2", positions=[*positions, [x[-1] + 1.07, 0.0, 0.0]])


def rocksalt(n_na, n_cl, a=2.75):
    """A 3x3x2 rock-salt block with cations in the corners, cut down to n_na and n_cl."""
    sites = [(i, j, k) for i in range(3) for j in range(3) for k in range(2)]
    na = [s for s in sites if sum(s) % 2 == 0]
    cl = [s for s in sites if sum(s) % 2 == 1]
    centre = np.array([1.0, 1.0, 0.5])

    def trim(group, n):
        """Drop the outermost sites first."""
        return sorted(group, key=lambda s: np.linalg.norm(np.array(s) - centre))[:n]

    picked = trim(na, n_na) + trim(cl, n_cl)
    return Atoms("Na" * n_na + "Cl" * n_cl, positions=a * np.array(picked, float))


def water_cluster(n, rng):
    """Waters on a cubic grid in random orientations."""
    w = molecule("H2O")
    cluster = Atoms()
    side = math.ceil(n ** (1 / 3))
    cells = [(i, j, k) for i in range(side) for j in range(side) for k in range(side)][:n]
    for cell in cells:
        m = w.copy()
        m.rotate(rng.uniform(0, 360), rng.normal(size=3), center="COM")
        m.translate(2.9 * np.array(cell, float) - m.get_center_of_mass())
        cluster += m
    return cluster


def zno_cube():
    """A (ZnO)4 cube."""
    a = 1.95
    sites = [(i, j, k) for i in range(2) for j in range(2) for k in range(2)]
    symbols = ["Zn" if sum(s) % 2 == 0 else "O" for s in sites]
    return Atoms(symbols, positions=[[a * i, a * j, a * k] for i, j, k in sites])


def rocksalt_cube():
    """A (NaCl)4 cube."""
    cube = zno_cube()
    return Atoms(
        ["Na" if symbol == "Zn" else "Cl" for symbol in cube.symbols], positions=cube.positions * 2.7 / 1.95
    )


def methylacetamide():
    """Trans-N-methylacetamide: acetamide with CH3 for the hydrogen of the NH2 next to the oxygen."""
    acetamide = molecule("CH3CONH2")
    o, n = (acetamide.symbols.indices()[symbol][0] for symbol in "ON")
    amine = [i for i in acetamide.symbols.indices()["H"] if acetamide.get_distance(n, i) < 1.2]
    h = min(amine, key=lambda i: acetamide.get_distance(o, i))
    axis = acetamide.positions[h] - acetamide.positions[n]
    axis /= np.linalg.norm(axis)
    carbon = acetamide.positions[n] + 1.45 * axis
    sideways = np.cross(axis, acetamide.positions[o] - acetamide.positions[n])
    sideways /= np.linalg.norm(sideways)
    other = np.cross(axis, sideways)
    around = 2.0 * math.pi * np.arange(3) / 3.0
    hydrogens = carbon + 1.09 * (
        0.33 * axis + 0.94 * (np.cos(around)[:, None] * other + np.sin(around)[:, None] * sideways)
    )
    del acetamide[h]
    return acetamide + Atoms("CH3", positions=[carbon, *hydrogens])


def alkane(n):
    """All-trans alkane CnH2n+2, the usual probe of overpolarization with growing length."""
    cc, ch, half = 1.53, 1.09, math.radians(112.0 / 2)
    carbons = np.array([[i * cc * math.sin(half), 0.0, (i % 2) * cc * math.cos(half)] for i in range(n)])
    symbols, positions = ["C"] * n, [*carbons]
    tetra = math.radians(107.0 / 2)
    for i, c in enumerate(carbons):
        out = 1.0 if i % 2 else -1.0
        for sign in (1.0, -1.0):
            positions.append(c + ch * np.array([0.0, sign * math.sin(tetra), out * math.cos(tetra)]))
            symbols.append("H")
    for end, inner in ((0, 1), (n - 1, n - 2)):
        out = 1.0 if end % 2 else -1.0
        along = math.copysign(math.sin(half), carbons[end, 0] - carbons[inner, 0])
        positions.append(carbons[end] + ch * np.array([along, 0.0, -out * math.cos(half)]))
        symbols.append("H")
    return Atoms(symbols, positions=positions)


class System(NamedTuple):
    """What to sample."""

    build: Callable[[np.random.Generator], Atoms]
    charge: int
    multiplicity: int
    temperature: float  # of the molecular dynamics, K


def _fixed(build: Callable[..., Atoms], *arguments: Any, **options: Any) -> Callable[..., Atoms]:
    """A builder that needs no random numbers."""
    return lambda _rng: build(*arguments, **options)


SYSTEMS = {
    "ag3_plus": System(_fixed(ring, ["Ag"] * 3, 1.6), +1, 1, 600),
    "ag3_minus": System(_fixed(Atoms, "Ag3", positions=[[-2.6, 0, 0], [0, 0.1, 0], [2.6, 0, 0]]), -1, 1, 600),
    "c10h2": System(_fixed(carbon_chain, False), 0, 1, 300),
    "c10h3_plus": System(_fixed(carbon_chain, True), +1, 1, 300),
    "na9cl8_plus": System(_fixed(rocksalt, 9, 8), +1, 1, 300),
    "na8cl8_plus": System(_fixed(rocksalt, 8, 8), +1, 2, 300),
    "zn3o3_neutral": System(_fixed(ring, ["Zn", "O"] * 3, 1.85), 0, 1, 600),
    "zn3o3_plus": System(_fixed(ring, ["Zn", "O"] * 3, 1.85), +1, 2, 600),
    "zn3o3_minus": System(_fixed(ring, ["Zn", "O"] * 3, 1.85), -1, 2, 600),
    "zn4o4_neutral": System(_fixed(zno_cube), 0, 1, 600),
    "zn4o4_plus": System(_fixed(zno_cube), +1, 2, 600),
    "zn4o4_minus": System(_fixed(zno_cube), -1, 2, 600),
    "zn2o2": System(_fixed(ring, ["Zn", "O"] * 2, 1.35), 0, 1, 600),
    "zno_molecule": System(_fixed(Atoms, "ZnO", positions=[[0, 0, 0], [1.8, 0, 0]]), 0, 3, 600),
    **{f"water{n}": System(partial(water_cluster, n), 0, 1, 300) for n in range(1, 9)},
    "hydronium": System(
        _fixed(Atoms, "OH3", positions=[[0, 0, 0], [0.93, 0, -0.3], [-0.46, 0.8, -0.3], [-0.46, -0.8, -0.3]]),
        +1,
        1,
        300,
    ),
    "hydroxide": System(_fixed(Atoms, "OH", positions=[[0, 0, 0], [0.97, 0, 0]]), -1, 1, 300),
    **{f"alkane{n}": System(_fixed(alkane, n), 0, 1, 300) for n in range(2, 13)},
    "nma": System(_fixed(methylacetamide), 0, 1, 300),
    "na4cl4": System(_fixed(rocksalt_cube), 0, 1, 300),
    "nacl_pair": System(_fixed(Atoms, "NaCl", positions=[[0, 0, 0], [2.4, 0, 0]]), 0, 1, 300),
    "lif_pair": System(_fixed(Atoms, "LiF", positions=[[0, 0, 0], [1.6, 0, 0]]), 0, 1, 300),
    **{
        f"{name}_{suffix}": System(_fixed(Atoms, name.capitalize()), charge, multiplicity, 300)
        for name, suffix, charge, multiplicity in (
            ("na", "atom", 0, 2),
            ("na", "ion", 1, 1),
            ("cl", "atom", 0, 2),
            ("cl", "ion", -1, 1),
            ("li", "atom", 0, 2),
            ("li", "ion", 1, 1),
            ("f", "atom", 0, 2),
            ("f", "ion", -1, 1),
            ("zn", "atom", 0, 1),
            ("o", "atom", 0, 3),
        )
    },
}


def relaxed(
    system: str, rng: np.random.Generator, fmax: float = 0.1, steps: int = 200, atoms: Atoms | None = None
) -> Atoms:
    """The system's start geometry, or another, after a GFN2-xTB relaxation, with the calculator attached."""
    from ase.optimize import BFGS
    from tblite.ase import TBLite

    build, charge, multiplicity, _ = SYSTEMS[system]
    atoms = build(rng) if atoms is None else Atoms(atoms.symbols, positions=atoms.positions)
    atoms.calc = TBLite(method="GFN2-xTB", charge=charge, multiplicity=multiplicity, verbosity=0)
    BFGS(atoms, logfile=None).run(fmax=fmax, steps=steps)
    return atoms


def sample(system: str, n: int, seed: int, stride: int = 60) -> Iterator[Atoms]:
    """Decorrelated frames of a GFN2-xTB Langevin trajectory."""
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

    temperature = SYSTEMS[system].temperature
    rng = np.random.default_rng(seed)
    atoms = relaxed(system, rng)
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
    md = Langevin(atoms, 0.5 * units.fs, temperature_K=temperature, friction=0.02 / units.fs, rng=rng)
    md.run(200)
    for _ in range(n):
        md.run(stride)
        frame = atoms.copy()
        frame.calc = None
        yield frame


def recorded(path: Path, system: str, seed: int) -> Iterator[tuple[Atoms, np.ndarray]]:
    """Geometries and fields of a system's trajectory in a data set."""
    for frame in read(path, ":"):
        if (frame.info["system"], frame.info["seed"]) == (system, seed):
            yield Atoms(frame.symbols, positions=frame.positions), frame.info["external_field"]


def total_density(mf: Any) -> np.ndarray:
    """Density matrix summed over spins."""
    dm = np.asarray(mf.make_rdm1())
    return dm[0] + dm[1] if dm.ndim == 3 else dm


def hirshfeld(mf: Any) -> np.ndarray:
    """Hirshfeld charges from PySCF's own spherically averaged free atoms, on the DFT grid."""
    from pyscf import dft, scf

    mol, grids = mf.mol, mf.grids
    dm = total_density(mf)
    free = scf.hf.init_guess_by_atom(mol)
    free = free[0] + free[1] if free.ndim == 3 else free
    slices = mol.aoslice_by_atom()
    population = np.zeros(mol.natm)
    for start in range(0, len(grids.weights), GRID_BLOCK):
        points = slice(start, start + GRID_BLOCK)
        ao = dft.numint.eval_ao(mol, grids.coords[points])
        rho = np.einsum("gi,ij,gj->g", ao, dm, ao, optimize=True)
        parts = np.array(
            [
                np.einsum("gi,ij,gj->g", ao[:, a:b], free[a:b, a:b], ao[:, a:b], optimize=True)
                for a, b in slices[:, 2:]
            ]
        )
        share = parts / np.maximum(parts.sum(0), 1e-300)
        population += share @ (rho * grids.weights[points])
    return mol.atom_charges() - population


def basis_of(system: str) -> str:
    """Diffuse functions on anions only."""
    return "def2-svpd" if SYSTEMS[system].charge < 0 else "def2-svp"


def mean_field(
    atoms: Atoms,
    system: str,
    field: Any = NO_FIELD,
    *,
    threads: int = 1,
    basis: str | None = None,
    tolerance: float = 1e-9,
    grid: int = GRID_LEVEL,
    unrestricted: bool = False,
) -> Any:
    """PySCF mean field of atoms in a field (V/Angstrom), not solved yet.

    Other grids than the usual one are for the first steps of relaxations.
    """
    from pyscf import dft, gto, lib

    _, charge, multiplicity, _ = SYSTEMS[system]
    lib.num_threads(threads)
    symbols = atoms.get_chemical_symbols()
    mol = gto.M(
        atom=list(zip(symbols, atoms.positions, strict=True)),
        charge=charge,
        spin=multiplicity - 1,
        basis=basis or basis_of(system),
        ecp={"Ag": "def2-svp"} if "Ag" in symbols else {},
        verbose=0,
    )
    mf = (dft.UKS(mol) if unrestricted or multiplicity > 1 else dft.RKS(mol)).density_fit()
    mf.xc, mf.grids.level, mf.conv_tol, mf.max_cycle = "pbe0", grid, tolerance, 120
    field_au = np.asarray(field, float) * V_PER_ANGSTROM_IN_AU
    if field_au.any():
        add_potential(mf, np.einsum("x,xij->ij", field_au, mol.intor("int1e_r")))
    return mf


def add_potential(mf: Any, potential: np.ndarray) -> None:
    """Let electrons feel something besides nuclei and each other (matrix in the basis, Hartree)."""
    core = mf.get_hcore() + potential
    mf.get_hcore = lambda *_: core


def converge(mf: Any, guess: Any = None) -> Any:
    """The mean field, solved, or None.  ``guess`` is a density matrix."""
    mf.kernel(guess)
    if not mf.converged:
        mf = mf.newton()
        mf.kernel()
    return mf if mf.converged else None


def solve(atoms: Atoms, system: str, field: Any = NO_FIELD, *, guess: Any = None, **options: Any) -> Any:
    """Converged mean field with the options of :func:`mean_field`, or None.

    The energy of the nuclei in the field is not part of ``e_tot``; :func:`label` adds it.
    """
    _, charge, multiplicity, _ = SYSTEMS[system]
    if guess is None and charge > 0 and multiplicity == 2 and len(atoms) > 1:
        states = states_of_radical(atoms, system, field, **options)
        guess = min(states, key=lambda mf: mf.e_tot).make_rdm1()
    return converge(mean_field(atoms, system, field, **options), guess)


def states_of_radical(atoms: Atoms, system: str, field: Any = NO_FIELD, **options: Any) -> list[Any]:
    """Mean fields of a radical cation on a coarse grid, the first from the usual start.

    An SCF finds *a* state: the hole of Zn3O3(+) sits on one of three oxygen atoms, and the one where the usual start
    leaves it can lie 0.4 eV above another.  So the hole is moved to the orbitals below it, each the start of an SCF of
    its own.
    """
    screen = {**options, "grid": SCREEN_GRID, "tolerance": SCREEN_TOLERANCE}
    first = mean_field(atoms, system, field, **screen)
    first.max_cycle = SCREEN_CYCLES
    first.kernel()
    occupied = round(first.mo_occ[1].sum())
    found = [first]
    for depth in range(HOLES):
        occupations = np.array(first.mo_occ)
        occupations[1, [occupied - 1 - depth, occupied]] = 0.0, 1.0
        other = first.copy()
        other.kernel(first.make_rdm1(first.mo_coeff, occupations))
        found.append(other)
    return found


def dipole(mf: Any) -> np.ndarray:
    """Dipole about the coordinate origin, e*Angstrom."""
    mol = mf.mol
    mu = -np.einsum("xij,ji->x", mol.intor("int1e_r"), total_density(mf))
    return (mu + mol.atom_charges() @ mol.atom_coords()) * units.Bohr


def forces(mf: Any, field: Any = NO_FIELD, *, grid_response: bool = True) -> np.ndarray:
    """Forces in the field that the mean field was solved in, eV/Angstrom.

    Without the response of the grid they are cheaper, and off by what the grid is off.
    """
    mol = mf.mol
    field_au = np.asarray(field, float) * V_PER_ANGSTROM_IN_AU
    gradient = mf.nuc_grad_method()
    if field_au.any():  # the field's own terms: -mu.E differentiated
        dr = mol.intor("int1e_irp", comp=9).reshape(3, 3, mol.nao, mol.nao)  # <i|r_x nabla_y j>
        base = gradient.get_hcore(mol)
        gradient.get_hcore = lambda *_: base - np.einsum("x,xyij->yji", field_au, dr)
    gradient.grid_response = grid_response
    g = gradient.kernel() - mol.atom_charges()[:, None] * field_au[None, :]
    return -g * units.Hartree / units.Bohr


def label(
    atoms: Atoms, system: str, field: Any, threads: int, mf: Any = None, basis: str | None = None
) -> Atoms | None:
    """A labelled copy of atoms from one DFT single point, or None if the SCF did not converge.

    ``mf`` is a mean field that was solved for exactly these atoms in this field and basis.
    """
    basis = basis or basis_of(system)
    out = atoms.copy()
    out.calc = None
    out.positions -= out.get_center_of_mass()
    field = np.asarray(field, float)
    mf = solve(out, system, field, threads=threads, basis=basis) if mf is None else mf
    if mf is None:
        return None
    nuclear_dipole = mf.mol.atom_charges() @ mf.mol.atom_coords()
    energy = mf.e_tot - float(field * V_PER_ANGSTROM_IN_AU @ nuclear_dipole)
    _, charge, multiplicity, _ = SYSTEMS[system]
    out.arrays.pop("momenta", None)
    out.info = {
        "energy": float(energy * units.Hartree),
        "total_charge": charge,
        "multiplicity": multiplicity,
        "system": system,
        "dipole": dipole(mf),
        "external_field": field,
        "method": f"PBE0/{basis}",
    }
    out.arrays["forces"] = forces(mf, field)
    out.arrays["hirshfeld"] = hirshfeld(mf)
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("system", choices=sorted(SYSTEMS))
    parser.add_argument("--frames", type=int, help="default: 20; of FILE.xyz: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--field", type=float, nargs=3, default=NO_FIELD, help="V/Angstrom")
    parser.add_argument("--basis", help="default: def2-svp, for anions def2-svpd")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--relabel", type=Path, metavar="FILE.xyz")
    parser.add_argument("--geometries-of", choices=sorted(SYSTEMS), metavar="OTHER")
    a = parser.parse_args()
    method = f"PBE0/{a.basis or basis_of(a.system)}"
    done = []
    if a.out.exists():
        done = [
            f
            for f in read(a.out, ":")
            if (f.info["system"], f.info["seed"], f.info["method"]) == (a.system, a.seed, method)
            and f.info.get("geometry") == a.geometries_of
        ]
    if a.relabel is None:
        tasks = ((frame, a.field) for frame in sample(a.system, a.frames or 20, a.seed))
    else:
        tasks = islice(recorded(a.relabel, a.geometries_of or a.system, a.seed), a.frames)
    for i, (frame, field) in enumerate(tasks):
        # by geometry, not by number: frames that did not converge leave no trace in the file
        centred = frame.positions - frame.get_center_of_mass()
        if any(
            np.allclose(f.info["external_field"], field)
            and np.abs(centred - f.positions).max() < SAME_GEOMETRY
            for f in done
        ):
            continue
        labelled = label(frame, a.system, field, a.threads, basis=a.basis)
        if labelled is None:
            print(f"{a.system} seed {a.seed} frame {i}: not converged, left out", file=sys.stderr)
            continue
        labelled.info["seed"] = a.seed
        if a.geometries_of is not None:
            labelled.info["geometry"] = a.geometries_of
        write(a.out, labelled, append=True, format="extxyz")


if __name__ == "__main__":
    main()
