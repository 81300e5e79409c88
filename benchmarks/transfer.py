"""Charge transfer where models get stuck: electrodes, defects, charge states and spins.

    python benchmarks/transfer.py --json rows.json
    python benchmarks/transfer.py --only image capacitance --quick

``image``          energy of an ion in front of a metal against the image-charge law; the metal's lateral images taken out
``capacitance``    dQ/dU of two electrodes with a water molecule between them against fluctuations of the charge,
integrated over
                   height and orientation of the molecule (no sampling error)
``dynamics``       drift of the grand energy at a constant potential difference
``charge_states``  Zn3O3 at -1, 0, +1, Zn4O4 at 0, +1, carbon chains: kernels that depend on the charge of the fragment
``metal_water``    aluminium with water in fields, frames of ``datasets/generate_slab.py`` (``benchmarks/data``)
``vacancy``        oxygen vacancy in quartz, frames of ``datasets/generate_quartz.py`` (``benchmarks/data``)
``spins``          molecules in two spin states, frames of ``datasets/generate_spin.py`` (``benchmarks/data``,
where present) ``iterations``     conjugate gradients for metal and water together
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import fcc100, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from scipy.optimize import least_squares

import kqeq
from accuracy_table import without_field, zno_vertical
from common import Row, main, public, row
from kqeq import analysis
from kqeq.charges import ACKS2, QEq
from kqeq.constants import COULOMB
from kqeq.errors import KQEqWarning
from kqeq.frames.structures import Structure

DATA = Path(__file__).parent / "data"
SOFT_METAL = 0.5  # eV/e², hardness of the metal's atoms where nothing is fitted


# ------------------------------------------------------------------------------------------------- image charges


def slab_with_ion(size: int, distance: float) -> Structure:
    """Al(111), three layers, and an ion of charge 1 above its middle; the metal has charge -1."""
    slab = fcc111("Al", (size, size, 3), a=4.05)
    n, cell = len(slab), slab.cell.array.copy()
    cell[2] = [0.0, 0.0, 60.0]
    ion = [*slab.positions[:, :2].mean(axis=0), slab.positions[:, 2].max() + distance]
    return Structure(
        np.append(slab.numbers, 11),
        np.vstack([slab.positions, ion]),
        cell,
        np.array([True, True, False]),
        fragments=np.append(np.zeros(n, dtype=int), 1),
        fragment_charges=np.array([-1.0, 1.0]),
    )


def of_images(cell: np.ndarray, height: float, reach: int = 60) -> float:
    """Energy of an ion with the lateral images of itself and of its mirror charge, eV: a sum, and an integral "
    "beyond it."""
    i, j = np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1))
    points = i.ravel()[:, None] * cell[0, :2] + j.ravel()[:, None] * cell[1, :2]
    distances = np.linalg.norm(points, axis=1)
    edge = 0.8 * reach * np.linalg.norm(cell[0])
    inside = distances[(distances > 1e-6) & (distances < edge)]
    area = abs(np.linalg.det(cell[:2, :2]))
    near = 0.5 * np.sum(1 / inside - 1 / np.hypot(inside, 2 * height))
    return COULOMB * (near + np.pi / area * (np.hypot(edge, 2 * height) - edge))


def image_rows(quick: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Distances, energies without lateral images and the constant, the law's values and d0."""
    size = 7 if quick else 11
    distances = np.arange(4.0, 10.5, 1.0)
    model = QEq(fragments=True, hardness={"Al": SOFT_METAL, "Na": 5.0}, solver="dense")
    energies = []
    for distance in distances:
        structure = slab_with_ion(size, distance)
        state = model.bind(structure).solve(np.zeros(len(structure)), np.zeros(3), 0.0)
        energies.append(state.energy)

    def own(x: np.ndarray) -> np.ndarray:
        cell = structure.cell
        return np.array(energies) - x[0] - [of_images(cell, d - x[1]) for d in distances]

    def law(x: np.ndarray) -> np.ndarray:
        return -COULOMB / (4 * (distances - x[1]))

    found = least_squares(lambda x: own(x) - law(x), [energies[-1], 1.0]).x
    return distances, own(found), law(found), float(found[1])


def image(quick: bool) -> Iterator[Row]:
    """The image-charge law."""
    distances, own, law, d0 = image_rows(quick)
    yield row("image plane beyond the outermost nuclei, d0", d0, "Å")
    for d, a, b in zip(distances, own, law, strict=True):
        yield row(f"energy at {d:g} Å, off the law", 100 * abs(a / b - 1), "%", "<= 5")


# ------------------------------------------------------------------------------------------------- two electrodes


def capacitor(height: float, turn: float) -> Structure:
    """Two monolayers, 9 Å apart, and a water molecule between them."""
    low = fcc100("Al", (2, 2, 1), a=4.05)
    water = molecule("H2O")
    water.positions -= water.get_center_of_mass()
    water.rotate(np.degrees(turn), "x")
    centre = low.positions[:, :2].mean(axis=0)
    high = low.positions + np.array([0, 0, 9.0])
    positions = np.vstack([low.positions, high, water.positions + np.array([*centre, height])])
    cell = low.cell.array.copy()
    cell[2] = [0, 0, 30.0]
    return Structure(
        np.array([13] * 8 + list(water.numbers)),
        positions + np.array([0, 0, 8.0]),
        cell,
        np.array([True, True, False]),
        fragments=np.array([0] * 4 + [1] * 4 + [2] * 3),
        fragment_charges=np.zeros(3),
    )


def capacitance_rows(potential: float, quick: bool, temperature: float = 300.0) -> dict[str, float]:
    """dQ/dU by a difference of averages, and its two parts by fluctuations, e/V."""
    model = QEq(fragments=True, hardness={"Al": SOFT_METAL})
    chi = np.array([4.0] * 8 + [8.5, 4.5, 4.5])
    step, beta = 0.02, 1.0 / (units.kB * temperature)
    heights = np.linspace(3.0, 6.0, 7 if quick else 13)
    turns = np.linspace(0.0, 2 * np.pi, 24 if quick else 48, endpoint=False)
    at: dict[float, list[tuple[float, float]]] = {potential + k * step: [] for k in (-1, 0, 1)}
    softness = []
    for height in heights:
        for turn in turns:
            structure = capacitor(height, turn)
            system = model.bind(structure)
            zero = system.solve(chi, np.zeros(3), 0.0)
            reference = np.array([-1.0] * 4 + [1.0] * 4 + [0.0] * 3) / 4.0
            moved = system.answer(np.zeros((11, 1)), reference=reference[:, None])
            curvature = float(-(reference * 4) @ _potentials(system, moved)[:, 0] / 4.0)
            g = np.asarray(zero.reference_gradient())
            slope = g[4:8].mean() - g[:4].mean()
            softness.append(1.0 / curvature)
            for u, pairs in at.items():
                charge = (u - slope) / curvature
                # repulsion keeps the molecule from the planes
                wall = sum(4.0 * np.exp(-3.0 * abs(height - z)) for z in (0.0, 9.0))
                grand = zero.energy - 0.5 * (u - slope) ** 2 / curvature + wall
                pairs.append((charge, grand))

    def average(u: float, values: np.ndarray | None = None) -> float:
        charges, grand = np.array(at[u]).T
        weights = np.exp(-beta * (grand - grand.min()))
        return float(np.average(charges if values is None else values, weights=weights))

    low, middle, high = at
    mean = average(middle)
    return {
        "difference": (average(high) - average(low)) / (2 * step),
        "fluctuations": beta * average(middle, (np.array(at[middle])[:, 0] - mean) ** 2),
        "softness": average(middle, np.array(softness)),
        "charge": mean,
    }


def _potentials(system: Any, response: Any) -> np.ndarray:
    """Change of −∂E/∂q of the atoms with a response of charges."""
    return -(system.hessian @ response.unknowns)


def capacitance(quick: bool) -> Iterator[Row]:
    """Capacitance and fluctuations."""
    for potential in (0.0, 1.0):
        found = capacitance_rows(potential, quick)
        both = found["fluctuations"] + found["softness"]
        yield row(f"dQ/dU at {potential:g} V", found["difference"], "e/V")
        yield row(
            f"dQ/dU at {potential:g} V, share of the fluctuations", 100 * found["fluctuations"] / both, "%"
        )
        yield row(
            f"dQ/dU at {potential:g} V, off the sum", 100 * abs(found["difference"] / both - 1), "%", "<= 1"
        )


def toy() -> kqeq.KQEq:
    """A model of two monolayers and water, labelled with effective-medium theory: quick and stable, not good."""
    frames = []
    for seed in range(6):
        atoms = toy_cell(seed)
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        frames.append(atoms)
    kernel = kqeq.SOAPKernel(r_cut=3.5, n_max=3, l_max=2, n_representatives=5)
    model = kqeq.KQEq(
        electronegativity=kernel,
        short_range=kernel,
        charges=QEq(hardness={"Al": 3.0, "O": 12.0, "H": 10.0}),
        noise={"energy": 0.05, "forces": 1.0},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KQEqWarning)
        return model.fit(frames)


def toy_cell(seed: int, spread: float = 0.1) -> Atoms:
    """Two monolayers 8 Å apart with a water molecule between them."""
    low, high = (fcc100("Al", (2, 2, 1), a=4.05) for _ in range(2))
    low.info.clear()
    high.positions[:, 2] += 8.0
    middle = molecule("H2O")
    middle.rotate(40, (1, 0.3, 0.2))
    middle.translate([2.5, 2.3, 4.0])
    atoms = low + high + middle
    atoms.positions += spread * np.random.default_rng(seed).normal(size=atoms.positions.shape)
    atoms.set_cell([*low.cell[:2], [0, 0, 20.0]])
    atoms.positions[:, 2] += 5.0
    atoms.pbc = (True, True, False)
    return atoms


ELECTRODES = {"left": [0, 1, 2, 3], "right": [4, 5, 6, 7]}


def dynamics(quick: bool) -> Iterator[Row]:
    """Drift of the grand energy."""
    model = toy()
    atoms = toy_cell(1, 0.02)
    atoms.calc = kqeq.KQEqCalculator(model, potentials={"left": 0.0, "right": 1.0}, electrodes=ELECTRODES)
    MaxwellBoltzmannDistribution(atoms, temperature_K=100, rng=np.random.default_rng(0))
    step = 0.5
    picoseconds = 0.1 if quick else 10.0
    run = VelocityVerlet(atoms, step * units.fs)
    times, energies, charges = [], [], []
    for block in range(50):
        run.run(max(1, round(1e3 * picoseconds / step / 50)))
        times.append((block + 1) * picoseconds / 50)
        energies.append(atoms.get_total_energy())
        charges.append(atoms.calc.electrode_charges["right"])
    drift = np.polyfit(times, energies, 1)[0]
    yield row(f"grand energy, {picoseconds:g} ps, drift", 1e3 * drift / len(atoms), "meV/atom/ps")
    yield row("grand energy, standard deviation", 1e3 * np.std(energies) / len(atoms), "meV/atom")
    yield row("kinetic energy", 1e3 * atoms.get_kinetic_energy() / len(atoms), "meV/atom")
    yield row("charge of an electrode, range", np.ptp(charges), "e")


# ------------------------------------------------------------------------------------------------- charge states


def kernels(conditions: tuple[str | None, ...], n: int) -> list[kqeq.SOAPKernel]:
    """Long and middle kernels, and a middle one for each state of the fragment."""
    long = kqeq.SOAPKernel(r_cut=5.0, n_max=6, l_max=4, sigma=0.5, zeta=4, n_representatives=n, delta=0.3)
    middle = {"r_cut": 4.0, "n_max": 6, "l_max": 4, "sigma": 0.4, "zeta": 2, "n_representatives": n}
    own = [kqeq.SOAPKernel(**middle, condition=c, delta=0.5) for c in conditions if c]
    return [long, kqeq.SOAPKernel(**middle, delta=1.0), *own]


def charge_model_of(conditions: tuple[str | None, ...], n: int) -> list[kqeq.SOAPKernel]:
    """Electronegativities: middle, and one that depends linearly on the charge."""
    middle = {"r_cut": 4.0, "n_max": 6, "l_max": 4, "sigma": 0.4, "zeta": 2, "n_representatives": n}
    linear = [
        kqeq.SOAPKernel(**middle, condition=c, delta=0.5) for c in conditions if c in ("charge", "spin")
    ]
    return [kqeq.SOAPKernel(**middle), *linear]


def fitted(
    train: list[Atoms], *, charges: Any, conditions: tuple[str | None, ...], n: int, **settings: Any
) -> Any:
    """A fit, and the CPU seconds that it took."""
    before = time.process_time()
    model = kqeq.KQEq(
        charges=charges,
        electronegativity=None if charges is None else charge_model_of(conditions, n),
        short_range=kernels(conditions, n),
        noise={"energy": 2e-3, "forces": 0.05, "dipole": 0.05},
        **settings,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KQEqWarning)
        model.fit(train)
    return model, time.process_time() - before


def force_error(model: kqeq.KQEq, frames: list[Atoms]) -> float:
    """Root mean square, meV/Å."""
    errors = [(model.predict(a).forces - a.get_forces()).ravel() for a in frames]
    return 1e3 * float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))


def gap_error(model: kqeq.KQEq, frames: list[Atoms], key: str, first: int, second: int) -> float:
    """Error of the energy difference between two states at one geometry, eV (root mean square)."""
    groups: dict[bytes, dict[int, float]] = {}
    for a in frames:
        own = groups.setdefault(a.positions.round(3).tobytes(), {})
        own[int(a.info[key])] = model.predict(a).energy - a.get_potential_energy()
    found = [g[second] - g[first] for g in groups.values() if first in g and second in g]
    return float(np.sqrt(np.mean(np.square(found))))


def searched(n: int) -> kqeq.KQEq:
    """Hardness by kernel and kernels by charge at two widths; spreads and noises by left-out frames."""
    long = {"r_cut": 5.0, "sigma": 0.5, "zeta": 4, "n_representatives": n}
    middle = {"r_cut": 4.0, "sigma": 0.4, "zeta": 2, "n_representatives": n}
    steep = {"r_cut": 5.0, "sigma": 0.4, "zeta": 6, "n_representatives": n}
    soap = kqeq.SOAPKernel
    by_charge = [soap(**own, condition=state) for own in (middle, steep) for state in ("charge", "charge^2")]
    return kqeq.KQEq(
        charges=QEq(hardness="kernel"),
        electronegativity=[soap(**middle), soap(**middle, condition="charge")],
        short_range=[soap(**long), soap(**middle), *by_charge],
        optimize="left-out",
    )


def charge_states(quick: bool) -> Iterator[Row]:
    """Charge states beyond one parabola."""
    train, test = zno_vertical(-1, 1)
    states = ("charge", "charge^2")
    for name, charges, conditions in (
        ("short-range, kernels by charge", None, states),
        ("QEq", QEq(), ()),
        ("QEq, kernels by charge", QEq(), states),
    ):
        model, seconds = fitted(train, charges=charges, conditions=conditions, n=60)
        start = f"Zn3O3 at -1, 0, +1: {name}"
        yield row(f"{start}, forces", force_error(model, test), "meV/Å", "<= 150" if conditions else "")
        for q in (-1, 0, 1):
            own = [a for a in test if a.info["total_charge"] == q]
            yield row(f"{start}, forces at {q:+d}", force_error(model, own), "meV/Å")
        yield row(
            f"{start}, ionisation energy", gap_error(model, test, "total_charge", 0, 1), "eV", "<= 0.03"
        )
        yield row(
            f"{start}, electron affinity", gap_error(model, test, "total_charge", -1, 0), "eV", "<= 0.03"
        )
        yield row(f"{start}, CPU", seconds, "s")
    before = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KQEqWarning)
        model = searched(60).fit(train)
    start = "Zn3O3 at -1, 0, +1: hardness by kernel, kernels by charge, settings by left-out frames"
    yield row(f"{start}, forces", force_error(model, test), "meV/Å", "<= 150")
    for q in (-1, 0, 1):
        own = [a for a in test if a.info["total_charge"] == q]
        yield row(f"{start}, forces at {q:+d}", force_error(model, own), "meV/Å")
    yield row(f"{start}, ionisation energy", gap_error(model, test, "total_charge", 0, 1), "eV", "<= 0.03")
    yield row(f"{start}, electron affinity", gap_error(model, test, "total_charge", -1, 0), "eV", "<= 0.03")
    yield row(f"{start}, CPU", time.process_time() - before, "s")
    for q in (-1, 0, 1):
        one = [a for a in train if a.info["total_charge"] == q]
        model, _ = fitted(one, charges=None, conditions=(), n=60)
        own = [a for a in test if a.info["total_charge"] == q]
        yield row(f"Zn3O3 at {q:+d}: a short-range model of its own", force_error(model, own), "meV/Å")
    train, test = kqeq.datasets.split("zn4o4", method="PBE0/def2-svp")
    for name, charges, conditions in (
        ("QEq", QEq(), ()),
        ("short-range, kernels by charge", None, ("charge",)),
        ("QEq, kernels by charge", QEq(), ("charge",)),
    ):
        model, _ = fitted(train, charges=charges, conditions=conditions, n=60)
        yield row(f"Zn4O4 at 0, +1: {name}, forces", force_error(model, test), "meV/Å")
    path = public("carbon_chain_4g.xyz")
    if path is None:
        return
    frames = read(path, ":")
    train, test = [a for i, a in enumerate(frames) if i % 4 != 3], frames[3::4]
    for name, charges, conditions in (("QEq", QEq(), ()), ("QEq, kernels by charge", QEq(), ("charge",))):
        model, _ = fitted(train, charges=charges, conditions=conditions, n=100)
        yield row(f"carbon_chain_4g: {name}, forces", force_error(model, test), "meV/Å", "<= 40")


# ------------------------------------------------------------------------------------------------- our own frames


def own_frames(name: str) -> tuple[list[Atoms], list[Atoms]] | None:
    """Training and test frames of a generator, if they are there."""
    path = DATA / name
    if not path.exists():
        print(f"skipped: {path} is not there; make it with the generator in datasets/")
        return None
    frames = read(path, ":")
    print(f"    {len(frames)} frames")
    return [a for a in frames if a.info["seed"] == 0], [a for a in frames if a.info["seed"] == 1]


METAL = 27
"""Atoms of aluminium in frames of ``generate_slab.py``; the molecules follow."""


def with_fragments(frames: list[Atoms]) -> list[Atoms]:
    """The metal is one fragment, every molecule another, all neutral."""
    for a in frames:
        molecules = (len(a) - METAL) // 3
        a.arrays["fragments"] = np.array([0] * METAL + [1 + i // 3 for i in range(3 * molecules)])
        a.info["fragment_charges"] = np.zeros(1 + molecules)
    return frames


def by_field(frames: list[Atoms]) -> list[dict[int, Atoms]]:
    """Frames of one geometry by the direction of the sheet that makes the field, where all three are there."""
    found: dict[int, dict[int, Atoms]] = {}
    for a in frames:
        found.setdefault(int(a.info["number"]), {})[int(a.info["sheet"])] = a
    return [own for own in found.values() if len(own) == 3]


def across(up: Atoms, down: Atoms) -> float:
    """Difference of their fields, V/Å."""
    return float(up.info["external_field"][2] - down.info["external_field"][2])


def with_born_charges(frames: list[Atoms]) -> list[Atoms]:
    """Born charges along the normal, from forces in two fields, as labels of the frame without a sheet."""
    for own in by_field(frames):
        charges = np.zeros((len(own[0]), 3, 3))
        charges[:, 2, :] = (own[1].get_forces() - own[-1].get_forces()) / across(own[1], own[-1])
        charges -= charges.mean(axis=0)  # the sheet takes a little of the slab's charge, and with it a force
        own[0].arrays["born_charges"] = charges.reshape(-1, 9)
    return frames


def metal_water(quick: bool) -> Iterator[Row]:
    """Aluminium with water in three fields."""
    found = own_frames("al_water.xyz")
    if found is None:
        return
    train, test = (with_fragments(frames) for frames in found)
    n = 25 if quick else 80
    soap = kqeq.SOAPKernel
    short_range = [
        soap(r_cut=4.5, n_max=5, l_max=3, sigma=0.5, zeta=4, n_representatives=n, delta=0.3),
        soap(r_cut=3.0, n_max=5, l_max=3, sigma=0.3, zeta=2, n_representatives=n, delta=1.0),
        soap(r_cut=2.5, n_max=6, l_max=4, sigma=0.2, zeta=2, n_representatives=n, delta=1.0),
    ]
    # what a water molecule's dipole does as its atoms move depends on its neighbours: 4 Å and 80 representatives give
    # 24 meV/Å for the change of forces with the field
    electronegativity = [
        soap(r_cut=5.0, n_max=6, l_max=4, sigma=0.4, zeta=2, n_representatives=n if quick else 300),
        soap(r_cut=2.5, n_max=6, l_max=4, sigma=0.2, zeta=2, n_representatives=n),
    ]
    noise = {"energy": 2e-3, "forces": 0.05, "dipole": 0.01, "born_charges": 0.005}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KQEqWarning)
        plain = kqeq.KQEq(
            charges=None,
            electronegativity=None,
            short_range=short_range,
            noise=noise,
            targets=["forces"],
        ).fit(without_field(train))
        # hardness and width of the metal from its dipoles in fields; some of the geometries are enough
        learned = kqeq.KQEq(
            charges=QEq(fragments=True, hardness="learn", width="learn"),
            electronegativity=soap(r_cut=3.5, n_max=4, l_max=3, sigma=0.4, zeta=2, n_representatives=25),
            short_range=[soap(r_cut=3.0, n_max=5, l_max=3, sigma=0.3, zeta=2, n_representatives=25)],
            noise=noise,
        ).fit([a for own in by_field(train)[:12] for a in own.values()])
        metal = learned.potential_.charges
        hardness, width = ({"Al": values["Al"]} for values in (metal.hardness, metal.width))
        yield row("Al and water: hardness of the metal, learned", hardness["Al"], "eV/e²")
        yield row("Al and water: width of the metal, learned", width["Al"], "Å")
        started = time.process_time()
        model = kqeq.KQEq(
            charges=QEq(fragments=True, hardness=hardness, width=width),
            electronegativity=electronegativity,
            short_range=short_range,
            noise=noise,
        ).fit(with_born_charges(train))
    yield row("Al and water: fit with charges, CPU", time.process_time() - started, "s")
    bare = without_field(test)
    yield row("Al and water: forces, short-range", force_error(plain, bare), "meV/Å")
    yield row("Al and water: forces, with charges", force_error(model, test), "meV/Å")
    changes: dict[str, list[Any]] = {"short-range": [], "with charges": []}
    rises, crossing, drops = [], [], []
    for own in by_field(test):
        up, down = own[1], own[-1]
        reference = up.get_forces() - down.get_forces()
        a, b = model.predict(up), model.predict(down)
        changes["short-range"].append(reference.ravel())
        changes["with charges"].append((a.forces - b.forces - reference).ravel())
        moved = up.get_dipole_moment()[2] - down.get_dipole_moment()[2]
        rises.append((a.dipole[2] - b.dipole[2]) / moved)
        crossing.append(np.abs([a.charges[METAL + i : METAL + i + 3].sum() for i in range(0, 18, 3)]).max())
        groups = {"metal": range(METAL), "water": range(METAL, len(up))}
        drops.append(analysis.phases(model, up, groups, ["metal"]).inside["metal"])
    for name, found_errors in changes.items():
        error = 1e3 * np.sqrt(np.mean(np.concatenate(found_errors) ** 2))
        if name == "short-range":
            half = 0.5 * error
        yield row(
            f"Al and water: change of forces with the field, error, {name}",
            error,
            "meV/Å",
            f"<= {half:.1f}" if name != "short-range" else "",
        )
    yield row(
        "Al and water: induced dipole by field, largest error",
        100 * np.abs(np.array(rises) - 1).max(),
        "%",
        "<= 10",
    )
    yield row("Al and water: net charge of a molecule, largest", max(crossing), "e", "<= 0.001")
    yield row("Al and water: share of the field inside the metal, largest", max(drops), "", "<= 0.2")


def vacancy(quick: bool) -> Iterator[Row]:
    """The vacancy in quartz."""
    found = own_frames("sio2_vacancy.xyz")
    if found is None:
        return
    train, test = found
    n = 40 if quick else 80
    plain, _ = fitted(train, charges=None, conditions=(), n=n, targets=["forces"])
    short = force_error(plain, test)
    yield row("SiO2 vacancy: forces, short-range", short, "meV/Å")
    states = ("charge", "charge^2")
    model, seconds = fitted(train, charges=QEq(), conditions=states, n=n)
    yield row(
        "SiO2 vacancy: forces, QEq and kernels by charge",
        force_error(model, test),
        "meV/Å",
        f"<= {short / 2:.0f}",
    )
    yield row("SiO2 vacancy: CPU", seconds, "s")
    for q in (0, 1, 2):
        own = [a for a in test if a.info["total_charge"] == q]
        yield row(f"SiO2 vacancy: forces at {q:+d}, short-range", force_error(plain, own), "meV/Å")
        yield row(
            f"SiO2 vacancy: forces at {q:+d}, QEq and kernels by charge", force_error(model, own), "meV/Å"
        )
    for first, second in ((0, 1), (1, 2)):
        error = gap_error(model, test, "total_charge", first, second)
        yield row(f"SiO2 vacancy: energy from {first:+d} to {second:+d}", error, "eV")
    own = [a for a in test if a.info["total_charge"] == 1]
    known = force_error(model, own)
    ends = [a for a in train if a.info["total_charge"] != 1]
    for name, charges in (("kernels by charge", None), ("QEq and kernels by charge", QEq())):
        between, _ = fitted(ends, charges=charges, conditions=("charge",), n=n)
        yield row(
            f"SiO2 vacancy: forces at +1 from 0 and +2, {name}",
            force_error(between, own),
            "meV/Å",
            f"<= {2 * known:.0f}",
        )
        away = np.sqrt(np.mean([(between.predict(a).energy - a.get_potential_energy()) ** 2 for a in own]))
        yield row(f"SiO2 vacancy: energy of +1 from 0 and +2, {name}", float(away), "eV")
    located, _ = fitted(
        train,
        charges=QEq(),
        conditions=states,
        n=n,
        targets=["energy", "forces", "charges"],
        charges_key="charges",
    )
    yield row("SiO2 vacancy: forces, populations fitted as well", force_error(located, test), "meV/Å")
    for first, second in ((0, 1), (1, 2)):
        for name, one in (
            ("charges from energies and forces", model),
            ("populations fitted as well", located),
        ):
            shares = shares_of_pair(one, test, first, second)
            yield row(f"SiO2 vacancy: share of the two Si, {first:+d} to {second:+d}, {name}", shares[0], "")
        yield row(f"SiO2 vacancy: share of the two Si, {first:+d} to {second:+d}, reference", shares[1], "")


def shares_of_pair(model: kqeq.KQEq, frames: list[Atoms], first: int, second: int) -> tuple[float, float]:
    """Mean share of the charge between two charge states that the silicon atoms beside the vacancy take, both."""
    groups: dict[int, dict[int, Atoms]] = {}
    for a in frames:
        groups.setdefault(int(a.info["number"]), {})[int(a.info["total_charge"])] = a
    found = []
    for own in groups.values():
        if first not in own or second not in own:
            continue
        one, two = own[first], own[second]
        silicon = np.flatnonzero(one.numbers == 14)
        bonds = [
            (one.get_distances(i, np.flatnonzero(one.numbers == 8), mic=True) < 2.1).sum() for i in silicon
        ]
        pair = silicon[np.argsort(bonds, kind="stable")[:2]]
        moved = model.predict(two).charges - model.predict(one).charges
        reference = two.get_charges() - one.get_charges()
        found.append((moved[pair].sum(), reference[pair].sum()))
    return tuple(map(float, np.mean(found, axis=0)))


def spins(quick: bool) -> Iterator[Row]:
    """Two spin states."""
    found = own_frames("spin.xyz")
    if found is None:
        return
    train, test = found
    model, _ = fitted(train, charges=QEq(), conditions=("spin",), n=20)
    yield row("spin states: vertical gap", gap_error(model, test, "spin", 0, 2), "eV", "<= 0.05")
    yield row("spin states: forces, one model", force_error(model, test), "meV/Å")
    for spin in (0, 2):
        model, _ = fitted([a for a in train if a.info["spin"] == spin], charges=QEq(), conditions=(), n=20)
        own = [a for a in test if a.info["spin"] == spin]
        yield row(f"spin states: forces, spin {spin} alone", force_error(model, own), "meV/Å")


def iterations(quick: bool) -> Iterator[Row]:
    """Products with the matrix that a solution takes without it: metal, water, and both."""
    side = 3 if quick else 6
    slab = fcc111("Al", (side, side, 3), a=4.05)
    slab.set_cell([*slab.cell[:2], [0, 0, 30.0]])
    slab.positions[:, 2] += 3.0
    water, rng = Atoms(), np.random.default_rng(0)
    for i, j, k in np.ndindex(side, side, 3):
        one = molecule("H2O")
        one.rotate(rng.uniform(0, 360), rng.normal(size=3), center="COM")
        one.translate(
            (i + 0.5) / side * slab.cell[0] + (j + 0.5) / side * slab.cell[1] + [0, 0, 11.0 + 3.1 * k]
        )
        water += one
    water.set_cell(slab.cell)
    for name, atoms in (("metal", slab), ("water", water), ("metal and water", slab + water)):
        atoms.pbc = True
        for model in (
            QEq(hardness={"Al": SOFT_METAL}, solver="iterative"),
            ACKS2(
                hardness={"Al": SOFT_METAL},
                pair_softness={"Al-O": 0.0, "Al-H": 0.0, "Al-Al": 10.0},
                solver="iterative",
            ),
        ):
            structure = Structure(atoms.numbers, atoms.positions, atoms.cell.array, np.ones(3, dtype=bool))
            system = model.bind(structure)
            count = [0]
            solver = system.solver
            product = solver.provider.matvec

            def counted(
                *arguments: Any, product: Any = product, count: list[int] = count, **named: Any
            ) -> Any:
                count[0] += 1
                return product(*arguments, **named)

            solver.provider.matvec = counted
            chi = np.where(atoms.numbers == 8, 8.5, 4.5) + 0.3 * rng.normal(size=len(atoms))
            system.solve(chi, np.zeros(3), 0.0)
            yield row(f"{name}, {len(atoms)} atoms, {type(model).__name__}: products", count[0], "", "<= 100")


SECTIONS = {
    "image": image,
    "capacitance": capacitance,
    "dynamics": dynamics,
    "charge_states": charge_states,
    "metal_water": metal_water,
    "vacancy": vacancy,
    "spins": spins,
    "iterations": iterations,
}

if __name__ == "__main__":
    main(__doc__ or "", SECTIONS)
