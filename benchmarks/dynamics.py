"""Energy conservation in long dynamics: 32 waters in a periodic box, with and without the smooth cutoff.

    python benchmarks/dynamics.py [--quick] [--json FILE] [--only SECTION ...]

``accuracy``   short-range models of the packaged ``water_box`` (GFN1-xTB), errors on independent boxes
``cutoff``     what the total energy does when atoms cross the outer cutoff, along a straight path
``nve_switch`` 20 ps of velocity Verlet with ``smooth="switch"`` (0.5 ps with --quick)
``nve_shadow`` the same with charges (QEq) that follow auxiliary ones instead of being solved for
``nve_none``   the same from the same start with dscribe's sharp cutoff

The model of each is fitted with the descriptor that it is used with.  The drift is the slope of a straight line
through the total energy.  Velocity Verlet makes the total energy fluctuate around a quantity that it conserves much
better, the modified energy

    H' = H + dt²/12 vᵀ(∂²V/∂r²)v − dt²/24 Fᵀm⁻¹F

(Engle, Skeel & Drees 2005, *J. Comput. Phys.* 206, 432).  H' − H is bounded, so both have the same drift in the long
run, and that of H' is known with much less statistical noise.  Uncertainties are one standard error.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet

import kqeq
from common import Row, main, row
from kqeq.typing import FloatArray

TEMPERATURE = 300.0  # K
TIME_STEP = 0.5  # fs
PICOSECONDS = 20.0
EQUILIBRATION = 40, 100  # times that velocities are drawn anew, steps after each
NOISE = {"energy": 1e-3, "forces": 0.05, "stress": 1e-3}


def kernel(smooth: str, quick: bool) -> kqeq.SOAPKernel:
    """Short-range kernel for water.

    Narrow Gaussians and a small basis, because the number of representatives limits the accuracy: with
    sigma = 0.5 Å or (n_max, l_max) = (8, 6) force errors are about twice as large.
    """
    return kqeq.SOAPKernel(
        r_cut=4.0, n_max=4, l_max=4, sigma=0.3, zeta=2, n_representatives=150 if quick else 400, smooth=smooth
    )


@lru_cache
def fitted(smooth: str, quick: bool) -> kqeq.KQEq:
    """A short-range model of the training boxes."""
    train, _ = kqeq.datasets.split("water_box")
    model = kqeq.KQEq(electronegativity=None, charges=None, short_range=kernel(smooth, quick), noise=NOISE)
    return model.fit(train[::4] if quick else train)


@lru_cache
def fitted_with_charges() -> kqeq.KQEq:
    """QEq and short range, of a quarter of the training boxes: cheap, because what is asked is how charges move."""
    train, _ = kqeq.datasets.split("water_box")
    chi = kqeq.SOAPKernel(
        r_cut=3.5, n_max=4, l_max=3, sigma=0.3, zeta=2, n_representatives=50, smooth="switch"
    )
    model = kqeq.KQEq(
        electronegativity=chi,
        charges=kqeq.QEq(),
        short_range=kernel("switch", quick=True),
        noise=NOISE,
        optimize=None,
    )
    return model.fit(train[::4])


# ------------------------------------------------------------------------------------------------ accuracy


def accuracy(quick: bool) -> Iterator[Row]:
    _, test = kqeq.datasets.split("water_box")
    scale = {"energy": (1e3, "meV/atom"), "forces": (1e3, "meV/Å"), "stress": (1e3, "meV/Å³")}
    for smooth in ("none", "switch"):
        model = fitted(smooth, quick)
        report = model.fit_report_
        yield row(f"smooth={smooth}: training frames", report.n_frames, "")
        yield row(f"smooth={smooth}: fit", report.seconds, "s")
        for kind, error in model.evaluate(test).items():
            factor, unit = scale[kind]
            yield row(f"smooth={smooth}: {kind} RMSE, {len(test)} test boxes", factor * error.rmse, unit)
            yield row(f"smooth={smooth}:   coefficient of determination", error.r2, "")
    # would the coefficients of the sharp model do with the smooth descriptor?
    transplant = with_descriptor_of(fitted("none", quick), fitted("switch", quick))
    difference = [
        (transplant.predict(atoms).forces - fitted("none", quick).predict(atoms).forces).ravel()
        for atoms in map(bare, test[:5])
    ]
    spread = float(np.sqrt(np.mean(np.concatenate(difference) ** 2)))
    yield row("coefficients of 'none' with the rows of 'switch': change of forces", 1e3 * spread, "meV/Å")


def with_descriptor_of(model: kqeq.KQEq, other: kqeq.KQEq) -> kqeq.KQEq:
    """The coefficients of one model on the descriptor of another."""
    potential, source = model.potential_, other.potential_
    ((own, coefficients),) = potential.short_range.terms
    feature_map = replace(
        own,
        descriptor=source.short_range.feature_maps[0].descriptor,
        _projected={},
        _prepared={},
    )
    result = kqeq.KQEq(electronegativity=None, charges=None, short_range=other.short_range)
    result._set_fitted(
        replace(potential, short_range=replace(potential.short_range, terms=((feature_map, coefficients),))),
        model.fit_report_,
        None,
    )
    return result


def bare(atoms: Atoms) -> Atoms:
    return Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


# -------------------------------------------------------------------------------------------------- cutoff


def cutoff(quick: bool) -> Iterator[Row]:
    """Largest change of the energy between two neighbouring points of a path that is not due to forces."""
    _, test = kqeq.datasets.split("water_box")
    points = 200 if quick else 2000
    rng = np.random.default_rng(0)
    start = bare(test[0])
    direction = rng.normal(size=start.positions.shape)
    direction /= np.sqrt(np.mean(direction**2))
    step = 0.05 / points
    for smooth in ("none", "switch"):
        model = fitted(smooth, quick)
        energy, slope = np.empty(points), np.empty(points)
        for i in range(points):
            atoms = start.copy()
            atoms.positions += i * step * direction
            prediction = model.predict(atoms, properties=["energy", "forces"])
            energy[i] = prediction.energy
            slope[i] = -np.sum(prediction.forces * direction)
        # trapezoids leave O(step³), jumps stay
        jumps = np.diff(energy) - 0.5 * step * (slope[1:] + slope[:-1])
        jumps -= np.median(jumps)
        yield row(f"smooth={smooth}: largest jump of the energy", 1e3 * np.abs(jumps).max(), "meV")
        yield row(f"smooth={smooth}: RMS of jumps", 1e3 * float(np.sqrt(np.mean(jumps**2))), "meV")


# --------------------------------------------------------------------------------------------------- drift


@lru_cache
def start(quick: bool) -> Atoms:
    """A box in equilibrium at 300 K, with velocities; the same for every run."""
    rng = np.random.default_rng(0)
    _, test = kqeq.datasets.split("water_box")
    atoms = bare(test[0])
    atoms.calc = kqeq.KQEqCalculator(fitted("switch", quick))
    rounds, steps = (3, 20) if quick else EQUILIBRATION
    for _ in range(rounds):
        draw_velocities(atoms, rng)
        VelocityVerlet(atoms, TIME_STEP * units.fs).run(steps)
    draw_velocities(atoms, rng)
    atoms.calc = None
    return atoms


def draw_velocities(atoms: Atoms, rng: np.random.Generator) -> None:
    """Velocities from the Maxwell distribution, without motion of the whole."""
    masses = atoms.get_masses()[:, None]
    momenta = np.sqrt(units.kB * TEMPERATURE * masses) * rng.normal(size=(len(atoms), 3))
    atoms.set_momenta(momenta - masses * momenta.sum(axis=0) / masses.sum())


@dataclass(frozen=True)
class Trajectory:
    """Energies along a trajectory.

    Attributes
    ----------
    time : (n,) array
        ns.
    total, modified : (n,) array
        H and H', meV/atom, from which the first value has been subtracted.
    temperature : float
        Mean, K.
    seconds, cpu_seconds : float
        Per step.
    """

    time: FloatArray
    total: FloatArray
    modified: FloatArray
    temperature: float
    seconds: float
    cpu_seconds: float


def trajectory(model: kqeq.KQEq, atoms: Atoms, steps: int, *, shadow: bool = False) -> Trajectory:
    """Velocity Verlet through the calculator."""
    atoms = atoms.copy()
    atoms.calc = kqeq.KQEqCalculator(model, shadow=shadow)
    atoms.get_forces()
    masses, dt = atoms.get_masses()[:, None], TIME_STEP * units.fs
    total, kinetic = np.empty(steps + 1), np.empty(steps + 1)
    squared = np.empty(steps + 1)
    # v_n·F_n−1 and v_n·F_n+1: their difference is −2 dt vᵀ(∂²V/∂r²)v
    before, after = np.full(steps + 1, np.nan), np.full(steps + 1, np.nan)
    last_forces = last_velocities = None
    clock, cpu = time.perf_counter(), time.process_time()
    for i, _ in enumerate(VelocityVerlet(atoms, dt).irun(steps)):
        forces, velocities = atoms.get_forces(), atoms.get_velocities()
        kinetic[i] = atoms.get_kinetic_energy()
        total[i] = kinetic[i] + atoms.get_potential_energy()
        squared[i] = np.sum(forces**2 / masses)
        if last_forces is not None:
            before[i] = np.sum(velocities * last_forces)
            after[i - 1] = np.sum(last_velocities * forces)
        last_forces, last_velocities = forces, velocities
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    modified = total + dt**2 / 12 * (before - after) / (2 * dt) - dt**2 / 24 * squared
    inner = slice(1, -1)  # the curvature needs both neighbours
    scale = 1e3 / len(atoms)
    return Trajectory(
        time=np.arange(steps + 1)[inner] * TIME_STEP * 1e-6,
        total=scale * (total - total[1])[inner],
        modified=scale * (modified - modified[1])[inner],
        temperature=float(kinetic.mean() / (1.5 * len(atoms) * units.kB)),
        seconds=clock / steps,
        cpu_seconds=cpu / steps,
    )


def drift(t: FloatArray, energy: FloatArray) -> tuple[float, float, float]:
    """Slope, its standard error, and the RMS around the line.

    The error comes from the scatter of block means around the line, for several lengths of blocks, of which the
    largest counts: residuals are correlated over times that are not known beforehand.  It cannot see correlations
    as long as the trajectory, which H has (energy moves slowly between fast and slow vibrations) and H' hardly.
    """
    slope, intercept = np.polyfit(t, energy, 1)
    rms = float(np.std(energy - slope * t - intercept))
    errors = []
    for count in (4, 8, 16, 32, 64):
        size = len(t) // count
        if size < 2:
            break
        ts, es = (x[: count * size].reshape(count, size).mean(axis=1) for x in (t, energy))
        residual = es - np.polyval(np.polyfit(ts, es, 1), ts)
        errors.append(np.sqrt(np.sum(residual**2) / (count - 2) / np.sum((ts - ts.mean()) ** 2)))
    return float(slope), float(max(errors)), rms


def nve(smooth: str, quick: bool) -> Iterator[Row]:
    picoseconds = 0.5 if quick else PICOSECONDS
    steps = round(picoseconds * 1e3 / TIME_STEP)
    run = trajectory(fitted(smooth, quick), start(quick), steps)
    target = "< 1" if smooth == "switch" and not quick else ""
    yield row(f"smooth={smooth}: length of the trajectory", 1e3 * run.time[-1], "ps")
    yield row(f"smooth={smooth}: mean temperature", run.temperature, "K")
    for name, energy in (("total", run.total), ("modified", run.modified)):
        slope, error, rms = drift(run.time, energy)
        yield row(f"smooth={smooth}: drift of the {name} energy, absolute", abs(slope), "meV/atom/ns", target)
        yield row(f"smooth={smooth}:   with its sign", slope, "meV/atom/ns")
        yield row(f"smooth={smooth}:   standard error", error, "meV/atom/ns")
        yield row(f"smooth={smooth}:   RMS around the line", 1e3 * rms, "µeV/atom")
        yield row(
            f"smooth={smooth}:   end minus start (means of the last and first 5 %)",
            _change(energy),
            "µeV/atom",
        )
    yield row(f"smooth={smooth}: a step", 1e3 * run.seconds, "ms")
    yield row(f"smooth={smooth}: a step, processor time", 1e3 * run.cpu_seconds, "ms")


def nve_shadow(quick: bool) -> Iterator[Row]:
    """Charges that follow auxiliary ones: conservation of the shadow energy, products with the matrix a step."""
    model = fitted_with_charges()
    steps = round((0.5 if quick else PICOSECONDS) * 1e3 / TIME_STEP)
    with counted_products() as count:
        run = trajectory(model, start(True), steps, shadow=True)
    yield row("shadow: length of the trajectory", 1e3 * run.time[-1], "ps")
    yield row("shadow: mean temperature", run.temperature, "K")
    yield row("shadow: products with the matrix, a step", count[0] / steps, "", "<= 4")
    for name, energy in (("total", run.total), ("modified", run.modified)):
        slope, error, rms = drift(run.time, energy)
        target = "" if quick else "< 1"
        yield row(f"shadow: drift of the {name} energy, absolute", abs(slope), "meV/atom/ns", target)
        yield row("shadow:   with its sign", slope, "meV/atom/ns")
        yield row("shadow:   standard error", error, "meV/atom/ns")
        yield row("shadow:   RMS around the line", 1e3 * rms, "µeV/atom")
    yield row("shadow: a step, processor time", 1e3 * run.cpu_seconds, "ms")
    few = trajectory(model, start(True), 40)
    yield row("solved charges: a step, processor time", 1e3 * few.cpu_seconds, "ms")


@contextmanager
def counted_products() -> Iterator[list[int]]:
    """Products with the matrix of charges inside the block."""
    from kqeq.charges.solvers import IterativeSolver

    count, original = [0], IterativeSolver.product

    def product(self: IterativeSolver, vector: FloatArray) -> FloatArray:
        count[0] += 1
        return original(self, vector)

    IterativeSolver.product = product  # type: ignore[method-assign]
    try:
        yield count
    finally:
        IterativeSolver.product = original  # type: ignore[method-assign]


def _change(energy: FloatArray) -> float:
    part = max(1, len(energy) // 20)
    return 1e3 * float(energy[-part:].mean() - energy[:part].mean())


def nve_switch(quick: bool) -> Iterator[Row]:
    yield from nve("switch", quick)


def nve_none(quick: bool) -> Iterator[Row]:
    yield from nve("none", quick)


SECTIONS = {
    "accuracy": accuracy,
    "cutoff": cutoff,
    "nve_switch": nve_switch,
    "nve_none": nve_none,
    "nve_shadow": nve_shadow,
}


def available(section: Callable[[bool], Iterator[Row]]) -> Callable[[bool], Iterator[Row]]:
    """The section, or a message where its data set has not been generated."""

    def run(quick: bool) -> Iterator[Row]:
        if "water_box" in kqeq.datasets.names():
            yield from section(quick)
        else:
            print("skipped: there is no datasets/water_box.xyz; make it with datasets/generate_periodic.py")

    return run


if __name__ == "__main__":
    warnings.simplefilter("ignore", kqeq.errors.KQEqWarning)
    main(__doc__ or "", {name: available(section) for name, section in SECTIONS.items()})
