#!/usr/bin/env python3
"""Label periodic boxes of liquid water with GFN1-xTB.

    pip install "kqeq[datasets]"      # tblite
    python generate_periodic.py water_box.xyz [--seed 0] [--frames N]

Every frame is a cubic cell of 32 flexible water molecules at 0.997 g/cm3 and the end of a short trajectory.
How it is reached depends on the seed and on the number of the frame (``STAGES``):

    seed 0, training   60 frames from dynamics with a simple classical water, each from a random packing of its
                       own; then 140 frames from dynamics with a short-range kqeq model, which is fitted five
                       times to all frames so far: it goes where it believes that water goes, and the labels
                       correct it.  These start from earlier frames, 50 fs to 1 ps before, and resemble them
    seed 2, training   70 frames, each from a random packing of its own, by classical dynamics and then 0.1 ps
                       with the model of all frames of seed 0
    seed 1, testing    30 frames, each from a random packing of its own, by dynamics with the model of all frames
                       of seed 0 and then a stretch of dynamics with GFN1-xTB itself, long enough for bonds and
                       angles to be those of the reference; how molecules lie to each other is still the model's

Frames (extended XYZ) are appended to the file, so that an interrupted run goes on where it stopped; random
numbers depend on seed and frame only.  Labels belong to the positions as they are written.

    info   energy [eV], stress [eV/Angstrom^3, sign of ASE]; total_charge [e]; external_field [V/Angstrom];
           system; seed; method; multiplicity; sampling; temperature [K] of the dynamics
    arrays forces [eV/Angstrom]; charges [e], Mulliken charges of GFN1-xTB

A calculation takes one to two seconds, a whole data set two to three hours, on one core.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.io import read

SYSTEM = "water_box"
METHOD = "GFN1-xTB"
MOLECULES = 32  # four on each face-centred cubic cell of a 2 x 2 x 2 block
DENSITY = 0.997  # g/cm3
TIME_STEP = 0.5 * units.fs
FRICTION = 0.02 / units.fs  # of the Langevin thermostat
BOND_RANGE = (0.75, 1.25)  # Angstrom; O-H bonds outside mean that the dynamics has gone wrong
CONTACT = 1.25  # Angstrom; so do atoms of different molecules that come closer
CHECK_EVERY = 10  # steps between looks
ATTEMPTS = 5  # at one frame, with other random numbers


class Stage(NamedTuple):
    """How a stretch of the frames of one seed is sampled."""

    frames: int
    sampling: str  # "classical", "model", "classical + model" or "model + reference"
    temperatures: tuple[float, ...]  # K, taken in turn
    steps: int = 0  # of dynamics with the model


HOT = (300.0, 350.0, 400.0)
STAGES: dict[int, tuple[Stage, ...]] = {
    0: (
        Stage(60, "classical", HOT),
        # every model leads further than the one before it
        Stage(15, "model", HOT, 100),
        Stage(15, "model", HOT, 250),
        Stage(30, "model", HOT, 500),
        Stage(40, "model", HOT, 1000),
        Stage(40, "model", (300.0, *HOT), 2000),
    ),
    1: (Stage(30, "model + reference", (300.0,), 1000),),
    2: (Stage(70, "classical + model", HOT, 200),),
}
MELTING = 450.0  # K
CLASSICAL_STEPS = 2000  # of twice the time step, once at the temperature of melting and once at the frame's
REFERENCE_STEPS = 40  # 20 fs, two periods of the bonds


# ------------------------------------------------------------------------------------------- starting boxes


def packing(rng: np.random.Generator) -> Atoms:
    """Molecules on a face-centred cubic lattice in random orientations."""
    mass = molecule("H2O").get_masses().sum() * MOLECULES * units._amu * 1e3  # g
    side = (mass / DENSITY) ** (1 / 3) * 1e8
    corners = np.array(list(np.ndindex(2, 2, 2)), dtype=float)
    basis = np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.0, 0.5, 0.5]])
    box = Atoms(cell=[side] * 3, pbc=True)
    for site in (corners[:, None] + basis[None]).reshape(-1, 3) * (side / 2):
        one = molecule("H2O")
        one.rotate(rng.uniform(0, 360), rng.normal(size=3), center="COM")
        one.translate(site - one.get_center_of_mass())
        box += one
    return box


class ClassicalWater(Calculator):
    """A simple flexible water, good enough to pack molecules as in the liquid.

    Charges, dispersion and stiffness of SPC/Fw (Wu, Tepper, Voth 2006, *J. Chem. Phys.* 124, 024503) with the
    shorter bond of GFN1-xTB; Coulomb interactions damped and shifted to zero force at half the cell (Fennell,
    Gezelter 2006, *J. Chem. Phys.* 124, 234104).  Atoms in the order O, H, H, O, H, H, ...
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

    CHARGES = (-0.82, 0.41, 0.41)  # e
    EPSILON, SIGMA = 0.1554253 * units.kcal / units.mol, 3.165492  # eV, Angstrom, between oxygens
    BOND, STRETCH = 0.965, 1059.162 * units.kcal / units.mol  # Angstrom, eV/Angstrom^2
    ANGLE, BEND = math.radians(108.0), 75.90 * units.kcal / units.mol  # eV/rad^2
    DAMPING = 0.2  # 1/Angstrom

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes):
        super().calculate(atoms, properties, system_changes)
        positions, side = self.atoms.positions, self.atoms.cell[0, 0]
        between, forces = self._between(positions, side)
        within = self._within(positions, forces)
        self.results = {"energy": between + within, "forces": forces}

    def _between(self, positions: np.ndarray, side: float) -> tuple[float, np.ndarray]:
        from scipy.special import erfc

        n, cut, a = len(positions), side / 2, self.DAMPING
        i, j = np.triu_indices(n, 1)
        vectors = positions[j] - positions[i]
        vectors -= side * np.round(vectors / side)
        r = np.linalg.norm(vectors, axis=1)
        near = (r < cut) & (i // 3 != j // 3)
        i, j, vectors, r = i[near], j[near], vectors[near], r[near]

        def coulomb(x: Any) -> tuple[Any, Any]:
            slope = -erfc(a * x) / x**2 - 2 * a / math.sqrt(math.pi) * np.exp(-((a * x) ** 2)) / x
            return erfc(a * x) / x, slope

        charges = np.array(self.CHARGES)
        qq = units.Hartree * units.Bohr * charges[i % 3] * charges[j % 3]
        (value, slope), (value_cut, slope_cut) = coulomb(r), coulomb(cut)
        energy = qq * (value - value_cut - (r - cut) * slope_cut)
        gradient = qq * (slope - slope_cut)
        oxygens = (i % 3 == 0) & (j % 3 == 0)
        six = (self.SIGMA / r[oxygens]) ** 6
        energy[oxygens] += 4 * self.EPSILON * (six**2 - six)
        gradient[oxygens] += 4 * self.EPSILON * (6 * six - 12 * six**2) / r[oxygens]
        push = (gradient / r)[:, None] * vectors
        forces = np.zeros((n, 3))
        np.add.at(forces, i, push)
        np.add.at(forces, j, -push)
        return float(energy.sum()), forces

    def _within(self, positions: np.ndarray, forces: np.ndarray) -> float:
        """Energy of bonds and angles; adds their forces (molecules are whole)."""
        bonds = np.stack([positions[k::3] - positions[::3] for k in (1, 2)])
        r = np.linalg.norm(bonds, axis=2)
        unit = bonds / r[..., None]
        cosine = np.einsum("mx,mx->m", *unit)
        angle = np.arccos(cosine)
        stretch, bend = r - self.BOND, angle - self.ANGLE
        for k in (0, 1):
            # dangle/dr_k = (cos u_k - u_other) / (r_k sin)
            across = (cosine[:, None] * unit[k] - unit[1 - k]) / (r[k] * np.sin(angle))[:, None]
            gradient = self.STRETCH * stretch[k][:, None] * unit[k] + self.BEND * bend[:, None] * across
            forces[k + 1 :: 3] -= gradient
            forces[::3] += gradient
        return float(0.5 * self.STRETCH * (stretch**2).sum() + 0.5 * self.BEND * (bend**2).sum())


# ------------------------------------------------------------------------------------------------- dynamics


def intact(atoms: Atoms) -> bool:
    """Whether every molecule still is one, and apart from the others."""
    bonds = np.concatenate([atoms.positions[k::3] - atoms.positions[::3] for k in (1, 2)])
    r = np.linalg.norm(bonds, axis=1)
    if not (np.isfinite(r).all() and r.min() > BOND_RANGE[0] and r.max() < BOND_RANGE[1]):
        return False
    i, j = np.triu_indices(len(atoms), 1)
    other = i // 3 != j // 3
    vectors = (atoms.positions[j] - atoms.positions[i])[other]
    side = atoms.cell[0, 0]
    vectors -= side * np.round(vectors / side)
    return bool(np.einsum("px,px->p", vectors, vectors).min() > CONTACT**2)


class BrokenError(RuntimeError):
    """Dynamics that went wrong at once: there is no new geometry to label."""


def run(
    atoms: Atoms, calculator: Calculator, temperature: float, steps: int, rng: Any, step: float = TIME_STEP
) -> Atoms:
    """The end of a Langevin trajectory (BAOAB splitting); the last sound geometry where it goes wrong.

    Raises
    ------
    BrokenError
        If it goes wrong before anything has moved far enough to make another geometry.
    """
    moving = atoms.copy()
    moving.calc = calculator
    masses = moving.get_masses()[:, None]
    thermal = np.sqrt(units.kB * temperature / masses)
    keep = math.exp(-FRICTION * step)
    noise = thermal * math.sqrt(1 - keep**2)
    velocities = thermal * rng.normal(size=(len(moving), 3))
    push = 0.5 * step * moving.get_forces() / masses
    sound = None
    for i in range(steps):
        velocities += push
        middle = moving.positions + 0.5 * step * velocities
        velocities = keep * velocities + noise * rng.normal(size=velocities.shape)
        velocities -= (masses * velocities).sum(axis=0) / masses.sum()
        moving.positions = middle + 0.5 * step * velocities
        push = 0.5 * step * moving.get_forces() / masses
        velocities += push
        if (i + 1) % CHECK_EVERY == 0 or i + 1 == steps:
            if not intact(moving):
                if sound is None:
                    raise BrokenError(f"the dynamics went wrong within {i + 1} steps")
                print(f"  went wrong after {i + 1} steps; taking the geometry before", flush=True)
                break
            sound = moving.positions.copy()
    if sound is not None:
        moving.positions = sound
    moving.calc = None
    return moving


def classical(temperature: float, rng: np.random.Generator) -> Atoms:
    """Melt a packing, then bring it to the temperature."""
    atoms = packing(rng)
    for kelvin in (MELTING, temperature):
        atoms = run(atoms, ClassicalWater(), kelvin, CLASSICAL_STEPS, rng, 2 * TIME_STEP)
    return atoms


def fitted(frames: list[Atoms]) -> Calculator:
    """A short-range model of the frames, quick rather than good."""
    import kqeq

    print(f"  fitting a model to {len(frames)} frames", flush=True)
    kernel = kqeq.SOAPKernel(
        r_cut=3.5, n_max=6, l_max=5, sigma=0.3, zeta=2, n_representatives=300, smooth="switch"
    )
    noise = {"energy": 1e-3, "forces": 0.05, "stress": 1e-3}
    model = kqeq.KQEq(electronegativity=None, charges=None, short_range=kernel, noise=noise)
    return kqeq.KQEqCalculator(model.fit(frames))


def reference() -> Calculator:
    """GFN1-xTB."""
    from tblite.ase import TBLite

    return TBLite(method=METHOD, accuracy=0.1, max_iterations=300, verbosity=0)


# ------------------------------------------------------------------------------------------------- sampling


def stage_of(seed: int, number: int) -> tuple[Stage, int]:
    """The stage that a frame belongs to, and the number of the stage's first frame."""
    first = 0
    for stage in STAGES[seed]:
        if number < first + stage.frames:
            return stage, first
        first += stage.frames
    raise ValueError(f"seed {seed} has {first} frames, there is no frame {number}")


class Sampler:
    """Geometries by seed and number; fits a model when a stage needs one.

    Parameters
    ----------
    seed : int
    frames : list of ase.Atoms
        Labelled frames of this seed so far; the caller appends to it.
    training : list of ase.Atoms
        Labelled frames of seed 0.
    """

    def __init__(self, seed: int, frames: list[Atoms], training: list[Atoms]) -> None:
        self.seed, self.frames, self.training = seed, frames, training
        self._model: tuple[int, Calculator] | None = None

    def model(self, size: int) -> Calculator:
        """The model of the first ``size`` training frames."""
        if self._model is None or self._model[0] != size:
            if len(self.training) < size:
                raise SystemExit(
                    f"{len(self.training)} frames of seed 0 in the file, {size} are needed first"
                )
            self._model = size, fitted(self.training[:size])
        return self._model[1]

    def geometry(self, number: int, attempt: int) -> tuple[Atoms, str, float]:
        """Atoms, sampling and temperature of a frame."""
        stage, first = stage_of(self.seed, number)
        temperature = stage.temperatures[(number - first) % len(stage.temperatures)]
        rng = np.random.default_rng([self.seed, number, attempt])
        if stage.sampling == "classical":
            atoms = classical(temperature, rng)
        elif stage.sampling == "model":
            # from a frame of its own among the classical ones, or from one that a model has led on already;
            # from the one before it if that was on the verge of breaking
            start = bare(self.frames[(number - STAGES[self.seed][0].frames - attempt) % first])
            atoms = run(start, self.model(first), temperature, stage.steps, rng)
        else:
            everything = sum(part.frames for part in STAGES[0])
            atoms = run(classical(temperature, rng), self.model(everything), temperature, stage.steps, rng)
            if stage.sampling == "model + reference":
                atoms = run(atoms, reference(), temperature, REFERENCE_STEPS, rng)
        return atoms, stage.sampling, temperature


def bare(atoms: Atoms) -> Atoms:
    """Elements, positions and cell only."""
    return Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


# ------------------------------------------------------------------------------------------------- labelling


def rounded(atoms: Atoms) -> Atoms:
    """Atoms in whole molecules, oxygens in the cell, as the file keeps them."""
    out = bare(atoms)
    cell = np.round(out.cell.array, 6)
    shift = -np.floor(out.positions[::3] @ np.linalg.inv(cell)) @ cell
    out.set_cell(cell)
    out.positions = np.round(out.positions + np.repeat(shift, 3, axis=0), 6)
    return out


def labelled(atoms: Atoms) -> Atoms | None:
    """Atoms with energy and the other labels of the reference, or None if it did not converge."""
    from ase.calculators.calculator import CalculatorError

    atoms.calc = reference()
    try:
        energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
        charges = atoms.get_charges()
    except (CalculatorError, RuntimeError) as error:
        print(f"  the reference failed: {error}", flush=True)
        return None
    if not all(np.isfinite(x).all() for x in (energy, forces, stress, charges)):
        return None
    out = bare(atoms)
    out.info.update(energy=energy, stress=stress)
    out.arrays.update(forces=forces, charges=charges)
    return out


def text(atoms: Atoms) -> str:
    """A frame in extended XYZ with as many digits as mean something."""

    def join(values: Any, digits: int) -> str:
        return " ".join(f"{x:.{digits}f}" for x in np.ravel(values))

    info = atoms.info
    stress = np.asarray(info["stress"])[[0, 5, 4, 5, 1, 3, 4, 3, 2]]
    head = [
        f'Lattice="{join(atoms.cell.array, 6)}"',
        "Properties=species:S:1:pos:R:3:forces:R:3:charges:R:1",
        f"energy={info['energy']:.7f}",
        f'stress="{join(stress, 9)}"',
        "total_charge=0",
        'external_field="0.0 0.0 0.0"',
        "multiplicity=1",
        f"system={SYSTEM}",
        f"seed={info['seed']}",
        f"method={METHOD}",
        f'sampling="{info["sampling"]}"',
        f"temperature={info['temperature']:.1f}",
        'pbc="T T T"',
    ]
    lines = [str(len(atoms)), " ".join(head)]
    columns = zip(
        atoms.symbols, atoms.positions, atoms.arrays["forces"], atoms.arrays["charges"], strict=True
    )
    lines += [f"{s} {join(p, 6)} {join(f, 6)} {q:.5f}" for s, p, f, q in columns]
    return "\n".join(lines) + "\n"


def complete_frames(path: Path) -> list[Atoms]:
    """Frames of a file; a last frame that was cut short is removed from it."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    size = 3 * MOLECULES + 2
    whole = len(lines) // size * size
    if whole and not lines[whole - 1].endswith("\n"):
        whole -= size
    if whole < len(lines):
        path.write_text("".join(lines[:whole]), encoding="utf-8")
    return list(read(path, ":", format="extxyz")) if whole else []


def generate(path: Path, seed: int, total: int) -> Iterator[Atoms]:
    """Append frames of a seed to a file until there are ``total`` of them."""
    present = complete_frames(path)
    frames = [a for a in present if a.info["seed"] == seed]
    training = frames if seed == 0 else [a for a in present if a.info["seed"] == 0]
    sampler = Sampler(seed, frames, training)
    for number in range(len(frames), total):
        for attempt in count():
            if attempt == ATTEMPTS:
                raise SystemExit(f"frame {number} of seed {seed} failed {ATTEMPTS} times")
            try:
                atoms, sampling, temperature = sampler.geometry(number, attempt)
            except BrokenError as error:
                print(f"  {error}; again from elsewhere", flush=True)
                continue
            done = labelled(rounded(atoms))
            if done is not None:
                break
        done.info.update(seed=seed, sampling=sampling, temperature=temperature)
        with path.open("a", encoding="utf-8") as file:
            file.write(text(done))
        # as read back from the file, so that a run that was interrupted makes the same frames
        frames.append(complete_frames(path)[-1])
        yield frames[-1]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0, choices=sorted(STAGES))
    parser.add_argument("--frames", type=int, help="how many in all (default: all of the seed)")
    a = parser.parse_args()
    everything = sum(stage.frames for stage in STAGES[a.seed])
    total = everything if a.frames is None else a.frames
    if not 0 <= total <= everything:
        parser.error(f"seed {a.seed} has {everything} frames")
    for atoms in generate(a.out, a.seed, total):
        largest = np.abs(atoms.get_forces()).max()
        pressure = -atoms.get_stress()[:3].mean() / units.GPa
        print(
            f"seed {a.seed} {atoms.info['sampling']} {atoms.info['temperature']:.0f} K: "
            f"energy {atoms.get_potential_energy():.4f} eV, largest force {largest:.2f} eV/A, "
            f"pressure {pressure:.2f} GPa",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
