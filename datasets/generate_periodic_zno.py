#!/usr/bin/env python3
"""Label wurtzite ZnO, pristine and with an oxygen vacancy of charge 0, +1 and +2, with IPEA1-xTB.

    pip install "kqeq[datasets]"      # tblite
    python generate_periodic_zno.py zno_vacancy.xyz [--tasks N]

Cells of 3 x 3 x 2 unit cells: 72 atoms, or 71 with one oxygen missing; +1 is a doublet.  A run relaxes the vacancy
at each charge first, roughly (kept in ``<name>.minima``), then takes the frames of ``schedule()`` in turn:

    seed 0, training   smoothly shaken structures first; a short-range kqeq model of their forces then gives force
                       constants at each minimum, and the other frames are drawn from the thermal distribution
                       of these harmonic vibrations.  Around the minimum of the frame's own charge, between the
                       minima of two charges, or (every fourth) one geometry labelled at all three charges
    seed 1, testing    frames 30 fs apart from dynamics with IPEA1-xTB itself, four trajectories per charge (two
                       for the pristine cell), each from a thermal start of its own ("reference"); the second and
                       the last frame of each are labelled at the other two charges as well ("crossed")

Frames (extended XYZ) are appended to the file, so that an interrupted run goes on where it stopped; random numbers
depend on the place in the schedule only.  Labels belong to the positions as they are written.

    info   energy [eV] and stress [eV/Angstrom^3, sign of ASE], both with the neutralising background that tblite
           leaves out (``background`` [eV] is what was added to its energy); total_charge [e]; external_field;
           system; seed; method; multiplicity; sampling; temperature [K]
    arrays forces [eV/Angstrom]; charges [e], Mulliken charges

A calculation takes three to four seconds on one core, the whole set about an hour.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.io import read, write

from kqeq.baselines.charged_cells import background

METHOD = "IPEA1-xTB"
PRISTINE, VACANCY = "zno_pristine", "zno_vacancy"
CHARGES = (0, 1, 2)
LATTICE = (
    3.25 * 0.98,
    5.207 * 0.98,
    0.382,
)  # a, c (Angstrom), u: the crystal's, 2 % shorter as the method wants
REPEAT = (3, 3, 2)
TEMPERATURES = (150.0, 300.0, 450.0, 600.0)  # K
FORCE_TOLERANCE, RELAX_STEPS = 0.1, 15  # eV/Angstrom; the cell and the pristine crystal stay ideal
SOFTEST = 1.0  # eV/Angstrom^2; no mode is taken to be softer

SHAKEN = 12  # training frames per charge (and of the pristine cell) before there are force constants
PER_CHARGE, PRISTINE_FRAMES = 150, 40
CORRELATION = 2.0  # Angstrom, of the displacements of shaken structures
TIME_STEP, STEPS_BETWEEN, FRAMES_EACH = 5.0 * units.fs, 6, 4  # of the reference's own dynamics
TRAJECTORIES, PRISTINE_TRAJECTORIES = 4, 2
CROSSED = (1, 3)  # frames of a trajectory that are labelled at the other charges too


class Task(NamedTuple):
    """One frame, or one stretch of dynamics, of the schedule."""

    kind: str  # "shaken", "harmonic", "vertical", "reference" or "crossed"
    system: str
    charge: int
    number: int  # among those of this kind, system and charge

    @property
    def seed(self) -> int:
        return int(self.kind in ("reference", "crossed"))

    @property
    def frames(self) -> int:
        return FRAMES_EACH if self.kind == "reference" else 1


def schedule() -> list[Task]:
    """All tasks in the order in which they are done; every beginning of it is a balanced data set."""
    first = [Task("shaken", PRISTINE, 0, n) for n in range(SHAKEN // 2)]
    first += [Task("shaken", VACANCY, q, n) for n in range(SHAKEN) for q in CHARGES]
    vacancy = [
        Task("vertical" if n % 4 == 3 else "harmonic", VACANCY, q, n)
        for n in range(PER_CHARGE - SHAKEN)
        for q in CHARGES
    ]
    # spread over the vacancy's frames: pristine ones and the trajectories of testing
    others = [Task("harmonic", PRISTINE, 0, n) for n in range(PRISTINE_FRAMES - SHAKEN // 2)]
    tests = [Task("reference", VACANCY, q, n) for n in range(TRAJECTORIES) for q in CHARGES]
    tests += [Task("reference", PRISTINE, 0, n) for n in range(PRISTINE_TRAJECTORIES)]
    places = [
        ((i + 0.5) / len(part), rank, task)
        for rank, part in enumerate((vacancy, others, tests))
        for i, task in enumerate(part)
    ]
    tasks = first + [task for *_, task in sorted(places, key=lambda place: place[:2])]
    return [each for task in tasks for each in (task, *crossed(task))]


def crossed(task: Task) -> list[Task]:
    """Frames of a trajectory of the vacancy at the charges that it was not run with.

    Their number says where they come from: charge of the dynamics, trajectory, frame.
    """
    if task.kind != "reference" or task.system != VACANCY:
        return []
    return [
        Task("crossed", VACANCY, q, 100 * task.charge + 10 * task.number + frame)
        for frame in CROSSED
        for q in CHARGES
        if q != task.charge
    ]


# ------------------------------------------------------------------------------------------------- reference


class Labels(NamedTuple):
    """What one calculation gives."""

    energy: float
    forces: np.ndarray
    stress: np.ndarray
    charges: np.ndarray
    background: float


class Reference:
    """IPEA1-xTB at one total charge; starts from the last density."""

    def __init__(self, charge: int) -> None:
        from tblite.ase import TBLite

        self.charge = charge
        self.calculator = TBLite(
            method=METHOD,
            charge=charge,
            multiplicity=1 + charge % 2,
            accuracy=1.0,
            max_iterations=300,
            verbosity=0,
        )

    def __call__(self, atoms: Atoms) -> Labels:
        atoms = bare(atoms)
        atoms.calc = self.calculator
        energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
        charges = atoms.get_charges()
        extra = background(atoms.cell.array, self.charge)
        # extra falls as 1/V at tblite's fixed alpha: -extra/V on the diagonal
        stress = stress - np.array([1, 1, 1, 0, 0, 0]) * extra / atoms.get_volume()
        labels = Labels(energy + extra, forces, stress, charges, extra)
        if not all(np.isfinite(value).all() for value in labels):
            raise RuntimeError("the reference gave numbers that are not finite")
        return labels


# ------------------------------------------------------------------------------------------------- structures


def bare(atoms: Atoms) -> Atoms:
    """Elements, positions and cell only."""
    return Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def rounded(atoms: Atoms) -> Atoms:
    """Atoms as the file keeps them."""
    out = bare(atoms)
    out.set_cell(np.round(out.cell.array, 6))
    out.positions = np.round(out.positions, 6)
    return out


def ideal(system: str) -> Atoms:
    """The crystal, or the crystal without the oxygen nearest to the middle of the cell."""
    a, c, u = LATTICE
    atoms = bulk("ZnO", "wurtzite", a=a, c=c, u=u).repeat(REPEAT)
    if system == VACANCY:
        oxygens = np.flatnonzero(atoms.numbers == 8)
        away = np.linalg.norm(atoms.get_scaled_positions()[oxygens] - 0.5, axis=1)
        del atoms[oxygens[away.argmin()]]
    return rounded(atoms)


def relaxed(system: str, charge: int) -> Atoms:
    """The minimum of a system at the fixed cell, from slightly shaken positions (no symmetry is kept)."""
    from ase.optimize import LBFGS

    reference = Reference(charge)
    atoms = ideal(system)
    rng = np.random.default_rng([99, charge, len(atoms)])
    atoms.positions += 0.02 * rng.normal(size=atoms.positions.shape)
    atoms.calc = reference.calculator
    optimiser = LBFGS(atoms, logfile=None)
    optimiser.run(fmax=FORCE_TOLERANCE, steps=RELAX_STEPS)
    largest = np.linalg.norm(atoms.get_forces(), axis=1).max()
    print(f"minimum of {system} {charge:+d}: {optimiser.nsteps} steps, force {largest:.3f} eV/A", flush=True)
    out = rounded(atoms)
    out.info.update(system=system, total_charge=charge)
    return out


def minima(path: Path) -> dict[tuple[str, int], Atoms]:
    """The relaxed structures by system and charge; read from ``path`` where they are there already."""
    found = {}
    if path.exists():
        for atoms in read(path, ":", format="extxyz"):
            found[atoms.info["system"], int(atoms.info["total_charge"])] = bare(atoms)
    found[PRISTINE, 0] = ideal(PRISTINE)
    for key in [(VACANCY, q) for q in CHARGES]:
        if key not in found:
            atoms = relaxed(*key)
            write(path, atoms, format="extxyz", append=True)
            found[key] = bare(atoms)
    return found


# ------------------------------------------------------------------------------------------------- sampling


def smooth_displacements(atoms: Atoms, rng: Any) -> np.ndarray:
    """Random displacements with a root mean square of 0.03 to 0.1 Angstrom, alike for neighbours."""
    distances = atoms.get_all_distances(mic=True)
    weights = np.exp(-0.5 * (distances / CORRELATION) ** 2)
    alone, together = rng.normal(size=(2, len(atoms), 3))
    moved = weights @ together / np.sqrt((weights**2).sum(axis=1))[:, None] + 0.5 * alone
    moved -= moved.mean(axis=0)
    return rng.uniform(0.03, 0.1) * moved / math.sqrt((moved**2).sum(axis=1).mean())


def force_constants(frames: list[Atoms], minimum: Atoms) -> np.ndarray:
    """Second derivatives (3N, 3N), eV/Angstrom^2, of a short-range model of the forces of frames."""
    import kqeq

    kernel = kqeq.SOAPKernel(r_cut=4.5, n_max=6, l_max=4, sigma=0.4, zeta=2, n_representatives=200)
    model = kqeq.KQEq(
        electronegativity=None, charges=None, short_range=kernel, noise={"forces": 0.05}, targets=["forces"]
    )
    atoms = bare(minimum)
    atoms.calc = kqeq.KQEqCalculator(model.fit(frames))
    h, rows = 0.01, []
    for index in np.ndindex(len(atoms), 3):
        sides = []
        for sign in (1, -1):
            atoms.positions = minimum.positions
            atoms.positions[index] += sign * h
            sides.append(atoms.get_forces().ravel())
        rows.append((sides[1] - sides[0]) / (2 * h))
    hessian = np.array(rows)
    return (hessian + hessian.T) / 2


class Modes(NamedTuple):
    """Vibrations: force constants (eV/Angstrom^2) and unit displacements in columns, translations left out."""

    constants: np.ndarray
    vectors: np.ndarray

    def sample(self, temperature: float, rng: Any) -> np.ndarray:
        """Displacements (N, 3) from the classical distribution."""
        widths = np.sqrt(units.kB * temperature / self.constants)
        return (self.vectors @ (widths * rng.normal(size=len(widths)))).reshape(-1, 3)


def modes(hessian: np.ndarray) -> Modes:
    """Directions of the force constants, soft ones made stiffer.

    The positions of a classical harmonic crystal do not depend on masses.
    """
    n = len(hessian) // 3
    drift = np.tile(np.eye(3), (n, 1)) / math.sqrt(n)
    # translations are moved to the top of the spectrum and cut off there
    values, vectors = np.linalg.eigh(hessian + 1e6 * drift @ drift.T)
    return Modes(np.maximum(values[:-3], SOFTEST), vectors[:, :-3])


class Sampler:
    """Geometries of the schedule's tasks.

    Parameters
    ----------
    frames : list of ase.Atoms
        All labelled frames so far; the caller appends to it.
    lowest : dict
        Minima by system and charge.
    """

    def __init__(self, frames: list[Atoms], lowest: dict[tuple[str, int], Atoms]) -> None:
        self.frames, self.lowest = frames, lowest
        self._modes: dict[tuple[str, int], Modes] = {}

    def modes(self, system: str, charge: int) -> Modes:
        """Vibrations about a minimum, from the shaken frames of that system and charge."""
        key = system, charge
        if key not in self._modes:
            print(f"force constants of {system} {charge:+d}", flush=True)
            own = [
                a
                for a in self.frames
                if a.info["sampling"] == "shaken"
                and (a.info["system"] == PRISTINE or a.info["total_charge"] == charge)
            ]
            self._modes[key] = modes(force_constants(own, self.lowest[key]))
        return self._modes[key]

    def geometry(self, task: Task) -> tuple[Atoms, float, Any]:
        """Atoms, temperature, and the random numbers that go on from there."""
        if task.kind == "crossed":
            charge, number, frame = task.number // 100, task.number // 10 % 10, task.number % 10
            run = [a for a in self.frames if key_of(a) == ("reference", VACANCY, charge, number)]
            return bare(run[frame]), float(run[frame].info["temperature"]), None
        kinds = ("shaken", "harmonic", "vertical", "reference")
        shared = task.kind == "vertical"  # the same geometry for all charges
        rng = np.random.default_rng(
            [kinds.index(task.kind), task.number, 0 if shared else task.charge, task.system == VACANCY]
        )
        own = task.number // 4 % 3 if shared else task.charge
        centre = self.lowest[task.system, own]
        atoms = bare(centre)
        if task.kind == "shaken":
            atoms.positions += smooth_displacements(centre, rng)
            return atoms, 0.0, rng
        if task.system == VACANCY and not shared and task.kind == "harmonic" and task.number % 2:
            other = self.lowest[VACANCY, (own + rng.integers(1, 3)) % 3]
            atoms.positions += rng.uniform(0.0, 1.0) * (other.positions - centre.positions)
        temperature = TEMPERATURES[task.number % 4] if not shared else TEMPERATURES[task.number // 12 % 4]
        if task.kind == "reference":
            temperature = (300.0, 600.0)[task.number % 2]
        atoms.positions += self.modes(task.system, own).sample(temperature, rng)
        return atoms, temperature, rng


def dynamics(
    atoms: Atoms, reference: Reference, temperature: float, rng: Any
) -> Iterator[tuple[Atoms, Labels]]:
    """Frames of velocity Verlet with the reference, from thermal velocities; positions stay rounded."""
    masses = atoms.get_masses()[:, None]
    velocities = np.sqrt(units.kB * temperature / masses) * rng.normal(size=(len(atoms), 3))
    velocities -= (masses * velocities).sum(axis=0) / masses.sum()
    atoms = rounded(atoms)
    labels = reference(atoms)
    for _ in range(FRAMES_EACH):
        for _ in range(STEPS_BETWEEN):
            velocities += 0.5 * TIME_STEP * labels.forces / masses
            atoms.positions += TIME_STEP * velocities
            atoms = rounded(atoms)
            labels = reference(atoms)
            velocities += 0.5 * TIME_STEP * labels.forces / masses
        yield atoms, labels


# ------------------------------------------------------------------------------------------------- the file


def text(atoms: Atoms, labels: Labels, task: Task, temperature: float) -> str:
    """A frame in extended XYZ with as many digits as mean something."""

    def join(values: Any, digits: int) -> str:
        return " ".join(f"{x:.{digits}f}" for x in np.ravel(values))

    stress = labels.stress[[0, 5, 4, 5, 1, 3, 4, 3, 2]]
    head = [
        f'Lattice="{join(atoms.cell.array, 6)}"',
        "Properties=species:S:1:pos:R:3:forces:R:3:charges:R:1",
        f"energy={labels.energy:.6f}",
        f'stress="{join(stress, 8)}"',
        f"total_charge={task.charge}",
        'external_field="0.0 0.0 0.0"',
        f"multiplicity={1 + task.charge % 2}",
        f"system={task.system}",
        f"seed={task.seed}",
        f"method={METHOD}",
        f"background={labels.background:.6f}",
        f"sampling={task.kind}",
        f"temperature={temperature:.1f}",
        f"number={task.number}",
        'pbc="T T T"',
    ]
    lines = [str(len(atoms)), " ".join(head)]
    columns = zip(atoms.symbols, atoms.positions, labels.forces, labels.charges, strict=True)
    lines += [f"{s} {join(p, 6)} {join(f, 5)} {q:.5f}" for s, p, f, q in columns]
    return "\n".join(lines) + "\n"


def complete_frames(path: Path) -> list[Atoms]:
    """Frames of a file; a last frame that was cut short is removed from it."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = 0
    while whole < len(lines) and lines[whole].strip().isdigit():
        end = whole + int(lines[whole]) + 2
        if end > len(lines) or not lines[end - 1].endswith("\n"):
            break
        whole = end
    if whole < len(lines):
        path.write_text("".join(lines[:whole]), encoding="utf-8")
    return list(read(path, ":", format="extxyz")) if whole else []


def key_of(atoms: Atoms) -> tuple[str, str, int, int]:
    """Which task a frame belongs to."""
    info = atoms.info
    return info["sampling"], info["system"], int(info["total_charge"]), int(info["number"])


def generate(path: Path, total: int) -> Iterator[Atoms]:
    """Do the first ``total`` tasks of the schedule, less what the file holds already."""
    frames = complete_frames(path)
    present: dict[tuple, int] = {}
    for atoms in frames:
        present[key_of(atoms)] = present.get(key_of(atoms), 0) + 1
    sampler = Sampler(frames, minima(path.with_suffix(".minima")))
    for task in schedule()[:total]:
        done = present.get(tuple(task), 0)
        if done == task.frames:
            continue
        atoms, temperature, rng = sampler.geometry(task)
        reference = Reference(task.charge)
        if task.kind == "reference":
            made = dynamics(atoms, reference, temperature, rng)
        else:
            made = ((a, reference(a)) for a in (rounded(atoms),))
        # an interrupted trajectory is run again from its start; frames that are in the file are passed over
        for place, (geometry, labels) in enumerate(made):
            if place < done:
                continue
            with path.open("a", encoding="utf-8") as file:
                file.write(text(geometry, labels, task, temperature))
            frames.append(complete_frames(path)[-1])
            yield frames[-1]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--tasks", type=int, default=len(schedule()), help="how many tasks of the schedule")
    a = parser.parse_args()
    for atoms in generate(a.out, a.tasks):
        kind, system, charge, number = key_of(atoms)
        largest = np.linalg.norm(atoms.get_forces(), axis=1).max()
        energy = atoms.get_potential_energy()
        print(
            f"{kind} {system} {charge:+d} {number}: energy {energy:.3f} eV, force {largest:.2f} eV/A",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
