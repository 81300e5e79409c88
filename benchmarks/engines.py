"""Simulation programs beside the calculator: the same numbers, conserved energy, and what the engine costs.

    python benchmarks/engines.py [--quick] [--json FILE] [--only SECTION ...]

``drift_ion``    LAMMPS, 2 ps at constant energy: Na9Cl8(+) in a field
``water``        LAMMPS, 324 atoms of water at 300 K: NVT, NPT, energies and forces of the calculator, time
``drift_cell``   LAMMPS, 2 ps at constant energy: H3O(+) in a triclinic cell
``guard``        what watching for extrapolation costs in a step
``external``     what external charges cost in a step

Needs the extra ``engines``; sections whose program is not there are skipped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from ase import Atoms, units
from scipy.spatial.transform import Rotation

import kqeq
from common import Row, main, row
from kqeq.engines.lammps import LAMMPSDriver, create, start
from kqeq.errors import EngineError

NOISE = {"energy": 1e-3, "forces": 0.05, "stress": 1e-3, "charges": 0.01}
VOLUME = 29.9  # Å³ of a molecule


def lammps_starts() -> bool:
    try:
        start().close()
    except EngineError as error:
        print(f"skipped: {error}")
        return False
    return True


@lru_cache(maxsize=2)
def water_model(quick: bool) -> kqeq.KQEq:
    """That of example 07, with fewer frames and representatives."""
    train = kqeq.datasets.split("water_box")[0][:: 20 if quick else 10]

    def kernel(n: int) -> kqeq.SOAPKernel:
        return kqeq.SOAPKernel(r_cut=4.0, n_max=4, l_max=4, sigma=0.3, zeta=2, n_representatives=n)

    n = 40 if quick else 60
    return kqeq.KQEq(
        kernel(n // 2),
        kernel(n),
        charges=kqeq.ACKS2(),
        noise=NOISE,
        targets=["energy", "forces", "stress", "charges"],
        charges_key="charges",
    ).fit(train)


def lattice_water(sides: tuple[int, int, int]) -> Atoms:
    """4·n1·n2·n3 molecules of experimental geometry with random orientations on a face-centred lattice."""
    rng = np.random.default_rng(5)
    length = (4 * VOLUME) ** (1 / 3)
    half = np.radians(104.5) / 2
    molecule = np.array([[0, 0, 0], [np.sin(half), np.cos(half), 0], [-np.sin(half), np.cos(half), 0]]) * 0.97
    corners = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    sites = np.stack(np.meshgrid(*map(np.arange, sides), indexing="ij"), axis=-1).reshape(-1, 1, 3)
    sites = (sites + corners).reshape(-1, 3) * length
    turned = [molecule @ Rotation.random(random_state=rng).as_matrix() + site for site in sites]
    return Atoms("OH2" * len(sites), np.concatenate(turned), cell=np.multiply(sides, length), pbc=True)


def deviation(lmp, driver: LAMMPSDriver, frame, model: kqeq.KQEq, **conditions) -> tuple[float, float]:
    """Energies (eV) and forces (eV/Å) of LAMMPS against a prediction of its last structure."""
    expected = model.predict(driver.atoms, properties=["energy", "forces"], **conditions)
    forces = frame.to_structure(np.array(list(lmp.gather_atoms("f", 1, 3))).reshape(-1, 3))
    return abs(lmp.get_thermo("pe") - expected.energy), float(np.abs(forces - expected.forces).max())


def water(quick: bool) -> Iterator[Row]:
    """Both ensembles of a box that starts from a lattice."""
    if not lammps_starts():
        return
    model = water_model(quick)
    errors = model.evaluate(kqeq.datasets.split("water_box")[1][::5])
    yield row("test forces of the model", 1e3 * errors["forces"].rmse, "meV/Å")
    atoms = lattice_water((2, 2, 2) if quick else (3, 3, 3))
    lmp = start()
    frame = create(lmp, atoms)
    calculator = kqeq.KQEqCalculator(model, total_charge=0)
    driver = LAMMPSDriver(lmp, calculator, frame)
    lmp.command("min_modify dmax 0.05")
    driver.command("minimize 0 0.2 60 80")
    lmp.commands_string("velocity all create 300 11\nfix integrate all nvt temp 300 300 0.05")
    steps = 20 if quick else 100
    began, before = time.process_time(), driver.evaluations
    driver.run(steps)
    seconds = (time.process_time() - began) / (driver.evaluations - before)
    yield row(f"NVT, {len(atoms)} atoms: temperature after {steps} steps", lmp.get_thermo("temp"), "K")
    energy, forces = deviation(lmp, driver, frame, model, total_charge=0)
    yield row("NVT: energy, LAMMPS − calculator", energy, "eV", "<= 1e-8")
    yield row("NVT: forces, LAMMPS − calculator", forces, "eV/Å", "<= 1e-8")
    yield row("NVT: a step, CPU", 1e3 * seconds, "ms")
    fresh = driver.atoms.copy()
    fresh.calc = kqeq.KQEqCalculator(model, total_charge=0)
    fresh.get_forces()
    rng = np.random.default_rng(0)
    began = time.process_time()
    for _ in range(10):
        fresh.positions += 1e-3 * rng.normal(size=fresh.positions.shape)
        fresh.get_forces()
    yield row("the calculator alone, a step, CPU", 1e2 * (time.process_time() - began), "ms")
    lmp.commands_string("unfix integrate\nfix integrate all npt temp 300 300 0.05 iso 1 1 0.5")
    first = lmp.get_thermo("vol")
    driver.run(steps)
    yield row(
        f"NPT at 1 bar: volume after {steps} steps, part of the start", lmp.get_thermo("vol") / first, ""
    )
    yield row("NPT: temperature", lmp.get_thermo("temp"), "K")
    energy, forces = deviation(lmp, driver, frame, model, total_charge=0)
    yield row("NPT: energy, LAMMPS − calculator", energy, "eV", "<= 1e-8")
    yield row("NPT: forces, LAMMPS − calculator", forces, "eV/Å", "<= 1e-8")
    lmp.close()


def drift_of(lmp, driver: LAMMPSDriver, picoseconds: float, step: float) -> tuple[float, float, float]:
    """Slope (meV/ps) and standard deviation (meV) of the total energy, mean temperature."""
    lmp.commands_string(f"fix integrate all nve\ntimestep {step}\nthermo_style custom step etotal temp")
    energies, kelvin = [], []
    every = 10
    count = round(picoseconds / step / every)
    for _ in range(count):
        driver.run(every, "pre no" if energies else "", "post no")
        energies.append(1e3 * lmp.get_thermo("etotal"))
        if len(energies) % 50 == 0:
            part = np.polyfit(range(len(energies)), energies, 1)[0] / (step * every)
            print(
                f"  {len(energies) * every * step:.2f} ps: drift {part:.3g}, deviation {np.std(energies):.3g} meV",
                flush=True,
            )
        kelvin.append(lmp.get_thermo("temp"))
    times = step * every * np.arange(count)
    return float(np.polyfit(times, energies, 1)[0]), float(np.std(energies)), float(np.mean(kelvin))


def drift_ion(quick: bool) -> Iterator[Row]:
    """Constant energy of a charged cluster in a field."""
    if not lammps_starts():
        return
    picoseconds = 0.02 if quick else 2.0
    train, test = kqeq.datasets.split("nacl")
    model = kqeq.KQEq(charges=kqeq.QEq(hardness="learn"), noise={"dipole": 0.1}).fit(train, optimize=None)
    ion = next(a for a in test if a.info["system"] == "na9cl8_plus")
    field = (0.0, 0.0, 0.02)
    lmp = start()
    frame = create(lmp, Atoms(ion.numbers, ion.positions))
    driver = LAMMPSDriver(lmp, kqeq.KQEqCalculator(model, total_charge=1, external_field=field), frame)
    lmp.commands_string("min_modify dmax 0.05")
    # a charged cluster never comes to rest in a field
    driver.command("minimize 0 0.05 50 200")
    lmp.command("velocity all create 300 3 mom yes rot yes")
    slope, spread, _ = drift_of(lmp, driver, picoseconds, 0.001)
    yield row(f"Na9Cl8(+) at 0.02 V/Å, {picoseconds:g} ps at 1 fs: drift", slope / len(ion), "meV/atom/ps")
    yield row("  fluctuation of the total energy", spread / len(ion), "meV/atom")
    momentum = frame.to_structure(np.array(list(lmp.gather_atoms("v", 1, 3))).reshape(-1, 3))
    momentum = (momentum * ion.get_masses()[:, None]).sum(axis=0) / (1000 * units.fs)
    expected = field[2] * picoseconds * 1000 * units.fs
    yield row("  momentum against charge · field · time", abs(momentum[2] / expected - 1), "", "<= 1e-3")
    energy, forces = deviation(lmp, driver, frame, model, total_charge=1, external_field=field)
    yield row("  energy, LAMMPS − calculator at the end", energy, "eV", "<= 1e-8")
    yield row("  forces, LAMMPS − calculator at the end", forces, "eV/Å", "<= 1e-8")
    lmp.close()


def drift_cell(quick: bool) -> Iterator[Row]:
    """Constant energy of a hydronium ion in a triclinic cell, with the model of example 10."""
    if not lammps_starts():
        return
    picoseconds = 0.02 if quick else 2.0

    def kernel() -> kqeq.SOAPKernel:
        return kqeq.SOAPKernel(r_cut=3.5, n_max=5, l_max=4, sigma=0.4, n_representatives=12)

    frames = [a for a in kqeq.datasets.load("water") if a.info["system"] in ("hydronium", "water1")]
    model = kqeq.KQEq(kernel(), kernel(), max_iterations=200).fit(frames[::2])
    ion = next(a for a in frames if a.info["system"] == "hydronium")
    cell = [[7.0, 0, 0], [3.0, 6.5, 0], [2.5, -3.7, 9.0]]
    lmp = start()
    frame = create(lmp, Atoms(ion.numbers, ion.positions, cell=cell, pbc=True))
    driver = LAMMPSDriver(lmp, kqeq.KQEqCalculator(model, total_charge=1), frame)
    lmp.command("velocity all create 300 3 mom yes")
    slope, spread, kelvin = drift_of(lmp, driver, picoseconds, 0.0005)
    yield row(f"H3O(+) in a cell, {picoseconds:g} ps at 0.5 fs: drift", slope / len(ion), "meV/atom/ps")
    yield row("  fluctuation of the total energy", spread / len(ion), "meV/atom")
    yield row("  mean temperature", kelvin, "K")
    energy, forces = deviation(lmp, driver, frame, model, total_charge=1)
    yield row("  energy, LAMMPS − calculator at the end", energy, "eV", "<= 1e-8")
    yield row("  forces, LAMMPS − calculator at the end", forces, "eV/Å", "<= 1e-8")
    lmp.close()


def milliseconds(calculator: kqeq.KQEqCalculator, atoms: Atoms, steps: int = 20) -> float:
    """CPU time of energy and forces at slightly moved atoms, the median of single steps."""
    rng = np.random.default_rng(0)
    atoms = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    atoms.calc = calculator
    atoms.get_forces()
    found = []
    for _ in range(steps):
        atoms.positions += 1e-4 * rng.normal(size=atoms.positions.shape)
        began = time.process_time()
        atoms.get_forces()
        found.append(time.process_time() - began)
    return 1e3 * float(np.median(found))


def watching(model: kqeq.KQEq, **limits: float) -> kqeq.KQEqCalculator:
    return kqeq.KQEqCalculator(model, total_charge=0, on_extrapolation=lambda found: None, **limits)


def guard(quick: bool) -> Iterator[Row]:
    """A box of water, and a small molecule."""
    box = kqeq.datasets.split("water_box")[1][0]
    ag3 = kqeq.datasets.split("ag3")
    cluster = kqeq.KQEq().fit(ag3[0][::2], optimize=None)
    cases = {f"water, {len(box)} atoms": (water_model(quick), box), "Ag3": (cluster, ag3[1][0])}
    for name, (model, atoms) in cases.items():
        alone = milliseconds(watching(model), atoms)
        parameters = model.posterior_.lower.shape[0]
        yield row(f"{name}, {parameters} parameters: a step without guard", alone, "ms")
        yield row("  with max_distance", milliseconds(watching(model, max_distance=2.0), atoms), "ms")
        yield row("  with max_energy_std", milliseconds(watching(model, max_energy_std=1.0), atoms), "ms")


def external(quick: bool) -> Iterator[Row]:
    """A water cluster in a bath of charges."""
    train, test = kqeq.datasets.split("water")
    model = kqeq.KQEq(charges=kqeq.AtomicDipoles()).fit(train[::4], optimize=None)
    atoms = max(test, key=len)
    rng = np.random.default_rng(0)
    yield row(
        f"{len(atoms)} atoms: a step alone",
        milliseconds(kqeq.KQEqCalculator(model, total_charge=0), atoms),
        "ms",
    )
    for count in (100, 1000) if quick else (100, 1000, 10000):
        around = rng.normal(size=(count, 3))
        around *= (6 + 20 * rng.uniform(size=(count, 1)) ** (1 / 3)) / np.linalg.norm(around, axis=1)[:, None]
        outside = (around + atoms.positions.mean(axis=0), rng.normal(size=count), 0.3)
        calculator = kqeq.KQEqCalculator(model, total_charge=0, external_charges=outside)
        yield row(f"  with {count} external charges", milliseconds(calculator, atoms), "ms")


if __name__ == "__main__":
    sections = {
        "guard": guard,
        "external": external,
        "drift_ion": drift_ion,
        "drift_cell": drift_cell,
        "water": water,
    }
    main(__doc__, sections)
