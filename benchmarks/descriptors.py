"""Descriptors: agreement with dscribe, speed, memory, feature forces.

    python benchmarks/descriptors.py [--quick] [--json FILE] [--only SECTION ...]

Prints a table of name, value, unit and target.  Ratios compare the minima of alternating runs in one
process, so that a busy machine disturbs both sides alike.  Sections are the functions in ``SECTIONS``: each takes
``quick`` and yields rows; to add a section, append a function.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.io import read

import prediction
from common import PUBLIC_DATA, Row, main, row
from kqeq.backend.threads import use_threads
from kqeq.descriptors.soap import SOAPDescriptor
from kqeq.descriptors.soap import basis as soap_basis
from kqeq.descriptors.soap.host import adjoint as soap_adjoint
from kqeq.frames.neighbours import NeighbourFinder, Pairs, find_pairs
from kqeq.frames.structures import Structure
from prediction import water_box

NMA = PUBLIC_DATA / "nma_field.xyz"


# ----------------------------------------------------------------------------------------------- systems


def as_structure(atoms: Atoms) -> Structure:
    return Structure(
        atoms.numbers.astype(np.int64), atoms.positions.copy(), atoms.cell.array.copy(), atoms.pbc.copy()
    )


def dscribe_soap(descriptor: SOAPDescriptor, species: list[int], periodic: bool) -> Any:
    from dscribe.descriptors import SOAP

    return SOAP(
        species=species,
        r_cut=descriptor.r_cut,
        n_max=descriptor.n_max,
        l_max=descriptor.l_max,
        sigma=descriptor.sigma,
        periodic=periodic,
    )


def triclinic() -> Atoms:
    rng = np.random.default_rng(3)
    atoms = Atoms("OTiONaClONaTi", cell=[[5.1, 0.0, 0.0], [1.7, 4.6, 0.0], [-1.1, 0.8, 6.3]], pbc=True)
    grid = np.array([[i, j, k] for i in (0.1, 0.6) for j in (0.2, 0.7) for k in (0.15, 0.65)])
    atoms.set_scaled_positions(grid + rng.uniform(-0.06, 0.06, grid.shape))
    return atoms


def slab() -> Atoms:
    atoms = fcc111("Cu", (2, 2, 3), vacuum=6.0)
    atoms += Atoms("CO", positions=[[1.3, 0.8, 12.4], [1.4, 0.9, 13.55]])
    atoms.rattle(0.05, seed=1)
    return atoms


def unwrapped() -> Atoms:
    atoms = triclinic()
    atoms.positions += np.random.default_rng(8).integers(-3, 4, (len(atoms), 3)) @ atoms.cell.array
    return atoms


def rattled_molecule() -> Atoms:
    atoms = molecule("CH3CONH2")
    atoms.rattle(0.05, seed=2)
    return atoms


# ---------------------------------------------------------------------------------------------- timing


def alternate(*tasks: Callable[[], Any], rounds: int) -> list[float]:
    """Minimum seconds of each task, run alternately."""
    best = [np.inf] * len(tasks)
    for _ in range(rounds):
        for i, task in enumerate(tasks):
            begin = time.perf_counter()
            task()
            best[i] = min(best[i], time.perf_counter() - begin)
    return best


# -------------------------------------------------------------------------------------------- sections


def values(quick: bool) -> Iterator[Row]:
    """Rows against dscribe.create, as relative row norm."""
    systems: dict[str, tuple[Atoms, list[int] | None]] = {
        "molecule": (rattled_molecule(), None),
        "NaCl primitive cell": (bulk("NaCl", "rocksalt", 5.64), None),
        "triclinic": (triclinic(), None),
        "slab (T, T, F)": (slab(), None),
        "absent species": (rattled_molecule(), [1, 6, 7, 8, 17]),
        "unwrapped": (unwrapped(), None),
        "water 81": (water_box(3), None),
    }
    for settings in ((4.0, 4, 3), (5.0, 8, 6)):
        descriptor = SOAPDescriptor(*settings)
        for name, (atoms, wide) in systems.items():
            state = descriptor.evaluate(as_structure(atoms))
            wrapped = atoms.copy()
            if atoms.pbc.any():
                wrapped.wrap()
            species = wide or list(state.species)
            raw = dscribe_soap(descriptor, species, bool(atoms.pbc.any())).create(wrapped)
            reference = raw / np.linalg.norm(raw, axis=1)[:, None]
            ours = np.zeros_like(reference)
            own = descriptor.block_slices(state.species)
            other = descriptor.block_slices(tuple(species))
            for pair, block in own.items():
                ours[:, other[pair]] = state.values[:, block]
            error = np.linalg.norm(ours - reference, axis=1).max()
            yield row(f"values {settings[1:]} {name}", error, "of row norm", "<= 1e-10")


def _dense(atoms: Atoms, descriptor: SOAPDescriptor, centres: list[int] | None = None) -> tuple[Any, Any]:
    """dscribe's normalised rows and their dense derivatives."""
    reference = dscribe_soap(descriptor, sorted({int(z) for z in atoms.numbers}), False)
    d_raw, raw = reference.derivatives(
        atoms, centers=centres, attach=True, method="analytical", return_descriptor=True
    )
    norm = np.linalg.norm(raw, axis=1)
    rows = raw / norm[:, None]
    along = np.einsum("ikaf,if->ika", d_raw, rows)
    return rows, (d_raw - along[..., None] * rows[:, None, None, :]) / norm[:, None, None, None]


def derivatives(quick: bool) -> Iterator[Row]:
    """Forces and virial against dscribe, an explicit cluster and finite strain."""
    rng = np.random.default_rng(0)
    descriptor = SOAPDescriptor(5.0, 8, 6)
    atoms = rattled_molecule()
    state = descriptor.evaluate(as_structure(atoms))
    gradient = rng.normal(size=state.values.shape)
    forces = np.einsum("if,ikaf->ka", gradient, _dense(atoms, descriptor)[1])
    error = np.abs(state.adjoint(gradient).positions - forces).max() / np.abs(forces).max()
    yield row("forces, open, dscribe analytical (8, 6)", error, "relative", "<= 1e-9")

    descriptor = SOAPDescriptor(3.5, 4, 3)
    atoms = triclinic()
    n = len(atoms)
    state = descriptor.evaluate(as_structure(atoms))
    repeats = np.array(list(np.ndindex(5, 5, 5))) - 2
    everything = (atoms.positions[None] + (repeats @ atoms.cell.array)[:, None]).reshape(-1, 3)
    near = np.linalg.norm(everything[:, None] - atoms.positions[None], axis=2).min(axis=1)
    home = np.repeat((repeats == 0).all(axis=1), n)
    keep = np.concatenate([np.flatnonzero(home), np.flatnonzero(~home & (near < descriptor.cutoff + 0.1))])
    cluster = Atoms(atoms.numbers[keep % n], positions=everything[keep])
    gradient = rng.normal(size=state.values.shape)
    dense = _dense(cluster, descriptor, list(range(n)))[1]
    on_cluster = np.einsum("if,ikaf->ka", gradient, dense)
    forces = np.zeros((n, 3))
    np.add.at(forces, keep % n, on_cluster)
    result = state.adjoint(gradient)
    error = np.abs(result.positions - forces).max() / np.abs(forces).max()
    yield row("forces, periodic, explicit cluster (4, 3)", error, "relative", "<= 1e-9")
    virial = cluster.positions.T @ on_cluster
    error = np.abs(result.strain - virial).max() / np.abs(virial).max()
    yield row("virial, periodic, explicit cluster (4, 3)", error, "relative", "<= 1e-9")

    structure = as_structure(atoms)
    pairs = find_pairs(structure, descriptor.cutoff)
    h, numeric = 1e-5, np.zeros((3, 3))
    for a in range(3):
        for b in range(3):
            step = np.eye(3)[:, [a]] @ np.eye(3)[[b], :] * h
            total = [
                np.sum(
                    gradient
                    * descriptor.evaluate(
                        structure,
                        pairs=Pairs(pairs.cutoff, pairs.indices, pairs.vectors @ (np.eye(3) + sign * step)),
                    ).values
                )
                for sign in (1, -1)
            ]
            numeric[a, b] = (total[0] - total[1]) / (2 * h)
    error = np.abs(result.strain - numeric).max() / np.abs(numeric).max()
    yield row("virial, finite strain, fixed pairs (4, 3)", error, "relative", "<= 1e-6")


def _water_task(
    descriptor: SOAPDescriptor, side: int, *, periodic: bool = True
) -> tuple[Atoms, Callable[[], Any]]:
    """A box of water, and value + adjoint of it (neighbour list included); run once to warm up."""
    atoms = water_box(side, periodic=periodic)
    structure = as_structure(atoms)
    gradient = np.random.default_rng(0).normal(size=(len(atoms), descriptor.feature_count((1, 8))))

    def task() -> Any:
        return descriptor.evaluate(structure).adjoint(gradient)

    task()
    return atoms, task


def speed(quick: bool) -> Iterator[Row]:
    """Neighbours + value + adjoint against one dscribe create, on one thread."""
    for settings in ((4, 3), (6, 5), (8, 6)):
        descriptor = SOAPDescriptor(4.5, *settings)
        for side in (5,) if quick else (5, 7, 10):
            for periodic in (True, False):
                with use_threads(1):
                    atoms, task = _water_task(descriptor, side, periodic=periodic)
                    reference = dscribe_soap(descriptor, [1, 8], periodic)
                    rounds = 10 if side < 10 else 4
                    create, ours = alternate(partial(reference.create, atoms), task, rounds=rounds)
                label = f"{settings} {len(atoms)} atoms {'periodic' if periodic else 'open'}"
                yield row(f"value + adjoint / create, {label}", ours / create, "ratio", "<= 2")
                yield row(f"  value + adjoint, {label}", 1e3 * ours, "ms")


def threads(quick: bool) -> Iterator[Row]:
    """Gain of the second thread (meaningful on a quiet machine only)."""
    if (os.cpu_count() or 1) < 2:
        return

    def limited(task: Callable[[], Any], count: int) -> None:
        with use_threads(count):
            task()

    descriptor = SOAPDescriptor(4.5, 8, 6)
    for side in (5,) if quick else (5, 10):
        atoms, task = _water_task(descriptor, side)
        structure = as_structure(atoms)
        pairs = find_pairs(structure, descriptor.cutoff, full=False)
        gradient = np.ones_like(descriptor.evaluate(structure, pairs=pairs).values)

        def given(structure: Structure = structure, pairs: Pairs = pairs, gradient: Any = gradient) -> None:
            descriptor.evaluate(structure, pairs=pairs).adjoint(gradient)

        one, two = alternate(partial(limited, given, 1), partial(limited, given, 2), rounds=20)
        name = f"one thread / two threads, {len(atoms)} atoms (8, 6)"
        yield row(f"{name}, value + adjoint", one / two, "ratio", ">= 1.6")
        one, two = alternate(partial(limited, task, 1), partial(limited, task, 2), rounds=20)
        yield row(f"{name}, with a new neighbour list", one / two, "ratio")
        serial = _serial_seconds(descriptor, structure)
        yield row("  best possible, from the serial part", one / (serial + (one - serial) / 2), "ratio")
    yield row("  load average", os.getloadavg()[0], "processes", "")


def _serial_seconds(descriptor: SOAPDescriptor, structure: Structure) -> float:
    """Time of what does not run in threads: finding and sorting pairs, collecting their gradients."""
    slots = np.unique(structure.numbers, return_inverse=True)[1].astype(np.int64)
    positions, strain = np.zeros((len(structure), 3)), np.zeros((3, 3))

    def serial() -> None:
        pairs = find_pairs(structure, descriptor.cutoff, full=False)
        listed = soap_adjoint.sort_pairs(pairs, slots, len(set(slots)), descriptor.tables)
        number = listed.indices.shape[1]
        soap_adjoint.kernels()[1].collect(
            0, number, listed.indices, listed.vectors, listed.vectors, positions, strain
        )

    return alternate(serial, rounds=10)[0]


def against_derivatives(quick: bool) -> Iterator[Row]:
    """Value + adjoint against dscribe.derivatives (which needs 3.2 GB for 375 atoms)."""
    descriptor = SOAPDescriptor(4.5, 8, 6)
    reference = dscribe_soap(descriptor, [1, 8], False)
    with use_threads(1):
        atoms, task = _water_task(descriptor, 3 if quick else 5, periodic=False)
        slow = partial(reference.derivatives, atoms, attach=True, method="analytical")
        theirs = alternate(slow, rounds=1 if quick else 2)[0]
        ours = alternate(task, rounds=10)[0]
    label = f"dscribe.derivatives / (value + adjoint), {len(atoms)} atoms (8, 6)"
    yield row(label, theirs / ours, "ratio", "" if quick else ">= 80")


_MEMORY_SCRIPT = """
import sys
import numpy as np
sys.path.insert(0, {here!r})
from descriptors import water_box, as_structure
from kqeq.descriptors.soap import SOAPDescriptor

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

descriptor = SOAPDescriptor(4.5, 8, 6)
state = descriptor.evaluate(as_structure(water_box(1)))
state.adjoint(np.ones_like(state.values))
structure = as_structure(water_box({side}))
open("/proc/self/clear_refs", "w").write("5")  # forget the peak of the imports
before = peak()
state = descriptor.evaluate(structure)
gradient = np.ones_like(state.values)
state.adjoint(gradient)
print(len(structure), state.pairs.indices.shape[1], (peak() - before) / 1024, state.values.nbytes * 2 / 2**20)
"""


def memory(quick: bool) -> Iterator[Row]:
    """Peak memory of value + adjoint above that of the imports, in fresh processes."""
    per_pair = []
    for side in (5, 10) if quick else (5, 10, 16):
        script = _MEMORY_SCRIPT.format(here=str(Path(__file__).parent), side=side)
        output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        atoms, pairs, peak, arrays = (float(x) for x in output.stdout.split())
        per_pair.append(peak * 2**20 / pairs)
        yield row(f"peak RSS, value + adjoint, {atoms:.0f} atoms (8, 6)", peak, "MiB")
        yield row(f"  of it rows and gradient (N x F), {atoms:.0f} atoms", arrays, "MiB")
        yield row(f"  per pair, {atoms:.0f} atoms, {pairs:.0f} pairs", per_pair[-1], "bytes")
    yield row("  growth of bytes per pair, first to last", per_pair[-1] / per_pair[0], "ratio", "<= 1.1")


def growth(quick: bool) -> Iterator[Row]:
    """Exponent of the time of value + adjoint with the number of atoms."""
    seconds, sizes = [], []
    for side in (5, 10) if quick else (5, 16):
        atoms, task = _water_task(SOAPDescriptor(4.5, 6, 5), side)
        seconds.append(alternate(task, rounds=10 if side < 10 else 3)[0])
        sizes.append(len(atoms))
    exponent = np.log(seconds[1] / seconds[0]) / np.log(sizes[1] / sizes[0])
    yield row(f"growth exponent, {sizes[0]} to {sizes[1]} atoms (6, 5)", exponent, "", "<= 1.1")


def small_molecules(quick: bool) -> Iterator[Row]:
    """What one step of a 20-atom molecule spends on two descriptors."""
    rng = np.random.default_rng(0)
    places = np.array(list(np.ndindex(3, 3, 3)))[:20] * 1.4 + rng.normal(scale=0.1, size=(20, 3))
    structure = as_structure(Atoms("C6H10NO3", positions=places))
    near, far = SOAPDescriptor(4.0, 6, 4), SOAPDescriptor(5.0, 8, 6)
    gradients = [rng.normal(size=(20, d.feature_count(structure.species))) for d in (near, far)]

    def step() -> None:
        pairs = find_pairs(structure, far.cutoff, full=False)
        for descriptor, gradient in zip((near, far), gradients, strict=True):
            descriptor.evaluate(structure, pairs=pairs).adjoint(gradient)

    step()
    seconds = alternate(step, rounds=30 if quick else 200)[0]
    label = f"20 atoms, {len(structure.species)} elements, (6, 4) and (8, 6), value + adjoint"
    yield row(label, 1e3 * seconds, "ms", "<= 3")


def feature_forces(quick: bool) -> Iterator[Row]:
    """One pass over NMA frames: evaluate, and feature gradients of 400 representatives per element."""
    if not NMA.exists():
        yield row("feature forces: no nma_field.xyz", None, "")
        return
    count = 50 if quick else 1000
    frames = [as_structure(a) for a in read(NMA, f":{count}")]
    descriptor = SOAPDescriptor(5.0, 8, 6)
    species = frames[0].species
    rng = np.random.default_rng(0)
    size = 400
    directions = {
        z: descriptor.prepare_directions(species, rng.normal(size=(size, descriptor.feature_count(species))))
        for z in species
    }
    coefficients = {z: rng.normal(size=(int((frames[0].numbers == z).sum()), size)) for z in species}

    def one(structure: Structure) -> int:
        state = descriptor.evaluate(structure)
        for z in species:
            descriptor.feature_gradients(
                state, np.flatnonzero(structure.numbers == z), directions[z], coefficients[z]
            )
        return int(state.pairs.indices.shape[1])

    one(frames[0])
    begin = time.perf_counter()
    pairs = sum(one(structure) for structure in frames)
    seconds = time.perf_counter() - begin
    yield row("feature forces, 1000 frames, 400 per element (8, 6)", 1000 * seconds / count, "s", "<= 120")
    flops = 6.0 * size * descriptor.n_max**2 * (descriptor.l_max + 1) * len(species) * pairs
    inner = descriptor.n_max**2 * (descriptor.l_max + 1) * len(species)
    left, right = rng.normal(size=(126, inner)), rng.normal(size=(inner, size))
    product = alternate(lambda: left @ right, rounds=20)[0]
    peak = 2.0 * 126 * inner * size / product
    yield row("  floating-point rate", flops / seconds / 1e9, "GFLOP/s")
    yield row("  of a plain matrix product of that size", flops / seconds / peak, "ratio")


def _cut(
    settings: tuple[float, int, int, float], structure: Structure, inner: float, outer: float
) -> tuple[Any, int]:
    """Rows and number of pairs with a cutoff from ``inner`` to ``outer`` paddings beyond r_cut."""
    radial = soap_basis.radial_basis(*settings)
    padding = radial.cutoff - settings[0]
    tables = soap_adjoint.make_tables(radial, settings[0] + inner * padding, settings[0] + outer * padding)
    state = soap_adjoint.evaluate(structure, find_pairs(structure, tables.cutoff, full=False), tables)
    return state.values, state.pairs.indices.shape[1]


def smoothness(quick: bool) -> Iterator[Row]:
    """What treatments of the outer cutoff cost: deviation from plain dscribe, jump, pairs."""
    variants = {
        "plain": (1.0, 1.0),
        "padding x 1.5": (1.5, 1.5),
        "padding x 2": (2.0, 2.0),
        "switch 0.75 to 1": (0.75, 1.0),
        "switch 0.75 to 1.25": (0.75, 1.25),
    }
    host = np.array([[0.0, 0, 0], [0.6, 0.76, 0], [0.0, 1.5, 0]])
    structure = as_structure(water_box(4))
    for settings in ((4.0, 4, 3, 0.5), (4.0, 6, 5, 0.5), (4.5, 8, 6, 0.5), (5.0, 8, 6, 0.3)):
        plain, pairs = _cut(settings, structure, 1.0, 1.0)
        missing = np.linalg.norm(plain - _cut(settings, structure, 3.0, 3.0)[0], axis=1).max()
        yield row(f"plain dscribe vs no cutoff, {settings}", missing, "of row norm")
        padding = soap_basis.radial_basis(*settings).cutoff - settings[0]
        for name, (inner, outer) in variants.items():
            rows, number = _cut(settings, structure, inner, outer)
            edge = settings[0] + outer * padding
            both = []
            for h in (-1e-9, 1e-9):
                positions = np.vstack([host, [[0, 0, -(edge + h)]]])
                both.append(_cut(settings, Structure(np.array([8, 1, 1, 8]), positions), inner, outer)[0][0])
            deviation = np.linalg.norm(rows - plain, axis=1).max()
            yield row(f"  {name}: deviation", deviation, "of row norm")
            yield row(f"  {name}: jump", float(np.linalg.norm(both[0] - both[1])), "of row norm")
            yield row(f"  {name}: pairs", number / pairs, "of plain")


def neighbour_lists(quick: bool) -> Iterator[Row]:
    """Neighbour lists anew in every step, and with a skin."""
    rng = np.random.default_rng(0)

    def step(structure: Structure, find: Callable[[Structure], Pairs]) -> Pairs:
        moved = structure.positions + rng.uniform(-0.01, 0.01, structure.positions.shape)
        return find(Structure(structure.numbers, moved, structure.cell, structure.pbc))

    for side in (5,) if quick else (5, 10):
        structure = as_structure(water_box(side))
        finder = NeighbourFinder(6.36, 0.5)
        finder.find(structure)
        anew, skin = alternate(
            partial(step, structure, partial(find_pairs, cutoff=6.36, full=False)),
            partial(step, structure, finder.find),
            rounds=10,
        )
        yield row(f"neighbour list, {len(structure)} atoms", 1e3 * anew, "ms")
        yield row(f"  with a skin of 0.5 Å, {len(structure)} atoms", 1e3 * skin, "ms")


def startup(quick: bool) -> Iterator[Row]:
    """Import, first call with cached kernels, first call without."""
    importing = (
        "import time; t = time.perf_counter(); import kqeq.descriptors.soap; print(time.perf_counter() - t)"
    )
    first = (
        "import time, numpy as np\n"
        "from kqeq.descriptors.soap import SOAPDescriptor\n"
        "from kqeq.frames.structures import Structure\n"
        "t = time.perf_counter()\n"
        "d = SOAPDescriptor(4.0, 4, 3)\n"
        "s = d.evaluate(Structure(np.array([1, 1]), np.eye(3)[:2]))\n"
        "s.adjoint(s.values); d.feature_gradients(s, np.array([0]), s.values, np.ones((1, 2)))\n"
        "print(time.perf_counter() - t)\n"
    )

    def run(code: str, cache: str | None = None) -> float:
        environment = dict(os.environ) | ({"NUMBA_CACHE_DIR": cache} if cache else {})
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
        )
        return float(done.stdout)

    yield row("import kqeq.descriptors.soap", min(run(importing) for _ in range(3)), "s", "<= 1")
    yield row("first call, kernels from the disk cache", min(run(first) for _ in range(3)), "s")
    if not quick:
        with tempfile.TemporaryDirectory() as folder:
            yield row("first call ever, compilation included", run(first, folder), "s")


SECTIONS = {
    "values": values,
    "derivatives": derivatives,
    "speed": speed,
    "threads": threads,
    "against_derivatives": against_derivatives,
    "growth": growth,
    "memory": memory,
    "small_molecules": small_molecules,
    "feature_forces": feature_forces,
    "smoothness": smoothness,
    "neighbour_lists": neighbour_lists,
    "startup": startup,
    "molecule_step": prediction.molecule_step,
    "periodic_water": prediction.periodic_water,
}

if __name__ == "__main__":
    main(__doc__ or "", SECTIONS)
