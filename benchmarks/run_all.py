"""Speed, memory and scaling of everything that takes time, on the CPU and, if there is one, on the GPU.

    python benchmarks/run_all.py [--quick] [--json FILE] [--markdown FILE] [--only TABLE ...]

One table each for descriptors, kernels, Ewald matrix, particle mesh, charge solution, energy + forces and training.
Alternatives stand beside in the same run where they are installed: dscribe's own derivatives, torch-pme for periodic
electrostatics, MACE and tblite for a whole potential.  Times are the shortest of a few runs: wall time, or with
``--cpu-time`` that of the process where the CPU works, which a busy machine disturbs less; memory is what Python and
NumPy (or CuPy) hold at most during one more run (not said of alternatives, whose own memory that would not see).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read

import kqeq
from common import public
from kqeq.backend import CPU, Device, asarray_like, cholesky
from kqeq.backend.devices import resolve
from kqeq.constants import COULOMB
from kqeq.electrostatics import EwaldCoulomb, MeshCoulomb
from kqeq.errors import DeviceError, KQEqWarning
from kqeq.frames.structures import read_structure
from prediction import built_model, water_box

NOT_RUN = "not run"

CPU_TIME = "--cpu-time" in sys.argv


def clock(device: Device = CPU) -> float:
    return time.process_time() if CPU_TIME and device.is_host else time.perf_counter()


@dataclass(frozen=True)
class Cell:
    """One measurement; ``seconds`` None where it was not run."""

    seconds: float | None
    megabytes: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Line:
    """One line of a table: what, for how many atoms (or frames), by whom."""

    what: str
    size: int
    cells: dict[str, Cell]


def find_gpu() -> Device | None:
    try:
        return resolve("cuda")
    except DeviceError as error:
        print(f"GPU: {NOT_RUN} ({error})")
        return None


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def measure(
    task: Callable[[], Any],
    device: Device = CPU,
    rounds: int = 3,
    *,
    patience: float = 20.0,
    memory: bool = True,
) -> Cell:
    """Shortest time of a few runs after a first one, which is the only one if it takes longer than ``patience`` s.

    With ``memory``, that of one more run.
    """
    wait: Callable[[], None] = lambda: None  # noqa: E731
    if not device.is_host:
        import cupy

        wait = cupy.cuda.Device().synchronize
    start = clock(device)
    task()
    wait()
    first = clock(device) - start
    times = [first] if first > patience else []
    for _ in range(0 if times else rounds):
        start = clock(device)
        task()
        wait()
        times.append(clock(device) - start)
    if device.is_host:
        if first > patience or not memory:
            return Cell(min(times))
        tracemalloc.start()
        task()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    else:
        pool = cupy.get_default_memory_pool()
        pool.free_all_blocks()
        before = pool.used_bytes()
        task()
        wait()
        peak = pool.total_bytes() - before
    return Cell(min(times), peak / 1e6)


def on_both(make: Callable[[Device], Callable[[], Any]], gpu: Device | None) -> dict[str, Cell]:
    """The same task on CPU and GPU."""
    return {
        "CPU": measure(make(CPU)),
        "GPU": Cell(None, note=NOT_RUN) if gpu is None else measure(make(gpu), gpu),
    }


def other(name: str, module: str, make: Callable[[], Callable[[], Any]]) -> dict[str, Cell]:
    """An alternative, if it is installed; what it cannot do is said, not hidden."""
    if not installed(module):
        return {name: Cell(None, note="not installed")}
    try:
        return {name: measure(make(), rounds=2, patience=5.0, memory=False)}
    except Exception as error:
        return {name: Cell(None, note=f"failed: {str(error).splitlines()[0][:60]}")}


# ------------------------------------------------------------------ tables


def descriptors(quick: bool, gpu: Device | None) -> Iterator[Line]:
    """SOAP (r_cut 5, n 8, l 6) of periodic water: values, and values with the adjoint of one scalar."""
    from dscribe.descriptors import SOAP

    descriptor = kqeq.SOAPKernel(r_cut=5.0, n_max=8, l_max=6, sigma=0.5, smooth="none").descriptor()
    soap = partial(SOAP, species=["H", "O"], r_cut=5.0, n_max=8, l_max=6, sigma=0.5)
    for side in (2, 5) if quick else (2, 5, 10):
        atoms = water_box(side)
        structure = read_structure(atoms)

        def values(device: Device, structure: Any = structure) -> Callable[[], Any]:
            if device.is_host:
                return lambda: descriptor.evaluate(structure)
            return lambda: descriptor.evaluate_arrays(structure, device.like)

        def both(device: Device, structure: Any = structure) -> Callable[[], Any]:
            evaluate = values(device, structure)
            weights = asarray_like(np.ones(evaluate().values.shape), device.like)
            return lambda: evaluate().adjoint(weights)

        create = other("dscribe", "dscribe", lambda a=atoms: partial(soap(periodic=True).create, a))
        yield Line("values", len(atoms), {**on_both(values, gpu), **create})
        alone = {}
        if side == 2:  # dscribe's analytical derivatives refuse cells, and take minutes for more atoms
            free = Atoms(atoms.numbers, atoms.positions)
            alone = other(
                "dscribe",
                "dscribe",
                lambda a=free: partial(soap(periodic=False).derivatives, a, method="analytical", attach=True),
            )
        yield Line("values and adjoint", len(atoms), {**on_both(both, gpu), **alone})


def kernels(quick: bool, gpu: Device | None) -> Iterator[Line]:
    """Kernel expansion with 400 representatives per element and its gradient by descriptors."""
    sources = [read_structure(water_box(5, seed=seed)) for seed in (2, 3)]
    model = built_model(sources, charges=False).fitted().short_range
    for side in (2, 5) if quick else (2, 5, 10):
        structure = read_structure(water_box(side))
        for precision in ("float64", "float32"):

            def make(
                device: Device, structure: Any = structure, single: bool = precision == "float32"
            ) -> Any:
                (feature_map,) = model.feature_maps
                found = kqeq.descriptors.evaluate_states([feature_map.descriptor], structure, device=device)
                state = found[feature_map.descriptor]

                def task() -> None:
                    near = {feature_map: feature_map.similarities(state, structure.numbers, single=single)}
                    model.evaluate(near, structure.numbers)
                    model.descriptor_gradients(near, found)

                return task

            yield Line(f"expansion and gradient, {precision}", len(structure), on_both(make, gpu))


def ewald(quick: bool, gpu: Device | None) -> Iterator[Line]:
    """Ewald matrix of Gaussian charges (accuracy 1e-9) of periodic water, and its Cholesky factor."""
    sizes = [2, 5] if quick else [2, 5, 8, 10]
    for side in [*sizes, 19]:
        box = water_box(side)
        sigma, cell = np.full(len(box), 0.7), np.asarray(box.cell)

        def make(device: Device, box: Atoms = box, sigma: Any = sigma, cell: Any = cell) -> Any:
            positions, widths = (asarray_like(x, device.like) for x in (box.positions, sigma))
            return lambda: EwaldCoulomb(positions, widths, cell).matrix()

        def factor(device: Device, build: Any = make) -> Any:
            matrix = build(device)()
            return lambda: cholesky(matrix)

        if side == 19:  # 3.4 GB and as much again: for a GPU
            if gpu is not None:
                for what, task in (("matrix", make), ("Cholesky", factor)):
                    cells = {"CPU": Cell(None, note=NOT_RUN), "GPU": measure(task(gpu), gpu, 1)}
                    yield Line(what, len(box), cells)
            continue
        yield Line("matrix", len(box), on_both(make, gpu))
        yield Line("Cholesky", len(box), on_both(factor, gpu))


POINT = 0.1
"""Width of Gaussians, Å, that interact like point charges at any distance of two atoms."""


def mesh(quick: bool, gpu: Device | None) -> Iterator[Line]:
    """Energy and forces of fixed charges of periodic water by a particle mesh, forces to 1e-4 (root mean square)."""
    for side in (2, 5) if quick else (2, 5, 10):
        box = water_box(side)
        charges = _fixed_charges(box)

        def make(device: Device, box: Atoms = box, charges: Any = charges) -> Any:
            widths, cell = np.full(len(box), POINT), np.asarray(box.cell)
            positions, sigma, q = (asarray_like(x, device.like) for x in (box.positions, widths, charges))

            def task() -> None:
                provider = MeshCoulomb(positions, sigma, cell, accuracy=1e-4)
                provider.matvec(q)
                provider.bilinear_gradient(q, q[:, None])

            return task

        pme = other("torch-pme", "torchpme", partial(_torch_pme, box, charges))
        yield Line("energy and forces", len(box), {**on_both(make, gpu), **pme})


def _fixed_charges(box: Atoms) -> Any:
    return np.where(box.numbers == 8, -0.8, 0.4)


def _torch_pme(box: Atoms, charges: Any) -> Callable[[], Any]:
    """The same of point charges; cutoff, smearing and mesh as fast as they get with the same error of forces.

    With 375 atoms 9.4e-5, against 9.1e-5 of ours; torch-pme rounds the mesh up to powers of two.
    """
    import torch
    import torchpme

    cutoff, smearing, spacing = 4.5, 1.0, 0.5
    q = torch.tensor(charges)[:, None]
    cell = torch.tensor(np.asarray(box.cell))
    potential = torchpme.CoulombPotential(smearing=smearing, prefactor=COULOMB)
    calculator = torchpme.PMECalculator(potential, mesh_spacing=spacing, interpolation_nodes=5).to(
        torch.float64
    )

    def task() -> tuple[float, Any]:
        near = kqeq.frames.neighbours.find_pairs(read_structure(box), cutoff, full=False)
        i, j = near.indices.T
        images = torch.tensor(near.vectors - (box.positions[j] - box.positions[i]))
        positions = torch.tensor(box.positions, requires_grad=True)
        indices = torch.tensor(near.indices)
        distances = torch.linalg.norm(positions[indices[:, 1]] - positions[indices[:, 0]] + images, dim=1)
        energy = (q * calculator(q, cell, positions, indices, distances)).sum()
        energy.backward()
        return float(energy.detach()), -positions.grad.numpy()

    return task


def charges(quick: bool, gpu: Device | None) -> Iterator[Line]:
    """Charges and their gradient for given electronegativities, periodic water."""
    sides = (2, 5) if quick else (2, 5, 10)
    for side in sides:
        structure = read_structure(water_box(side))
        chi = np.where(structure.numbers == 8, 8.0, 4.5)
        for name, model in {
            "QEq, dense": kqeq.QEq(solver="dense"),
            "QEq, iterative": kqeq.QEq(solver="iterative"),
            "ACKS2, dense": kqeq.ACKS2(solver="dense"),
            "ACKS2, iterative": kqeq.ACKS2(solver="iterative"),
        }.items():
            if "dense" in name and side > 5:
                continue

            def make(device: Device, structure: Any = structure, chi: Any = chi, model: Any = model) -> Any:
                there = asarray_like(chi, device.like)
                return lambda: model.bind(structure, device=device).solve(there, np.zeros(3), 0.0).gradient()

            yield Line(name, len(structure), on_both(make, gpu))


def potential(quick: bool, gpu: Device | None) -> Iterator[Line]:
    """Energy, forces and stress of QEq + short range, 400 representatives per element."""
    sources = [read_structure(water_box(5, seed=seed)) for seed in (2, 3)]
    model = built_model(sources, charges=True)
    sides = (1, 2, 5) if quick else (1, 2, 5, 10, 16)
    for side in sides:
        atoms = water_box(side)
        wanted = ("energy", "forces", "stress")

        def make(device: Device, atoms: Atoms = atoms, wanted: Any = wanted) -> Any:
            return lambda: model.predict(atoms, properties=wanted, device=device)

        cells = on_both(make, gpu)
        cells["CPU, float32"] = measure(
            lambda a=atoms, w=wanted: model.predict(a, properties=w, precision="float32")
        )
        if side <= 2 or (side == 5 and not quick):
            cells |= other("GFN2-xTB (tblite), isolated", "tblite", partial(_tblite, atoms))
            for dtype in ("float64", "float32"):
                cells |= other(f"MACE 128x0e + 128x1o, {dtype}", "mace", partial(_mace, atoms, dtype))
        yield Line("energy, forces, stress", len(atoms), cells)


def _tblite(atoms: Atoms) -> Callable[[], Any]:
    """The same atoms without a cell, whose lattice sums would dominate."""
    from ase.units import Bohr
    from tblite.interface import Calculator

    calculator = Calculator("GFN2-xTB", atoms.numbers, atoms.positions / Bohr)
    calculator.set("verbosity", 0)
    return calculator.singlepoint


def _mace(atoms: Atoms, dtype: str) -> Callable[[], Any]:
    """A MACE as large as the "medium" foundation models (128x0e + 128x1o, 6 Å), for these elements only.

    Its weights are random, which needs no download and takes the same time.  TorchScript optimises during the first
    calls, which a molecule pays for.
    """
    import torch

    # before e3nn, whose file of constants torch refuses to read without a setting that this makes
    from mace.calculators import MACECalculator  # isort: skip
    from e3nn.o3 import Irreps
    from mace import modules

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    elements = sorted(set(atoms.numbers.tolist()))
    try:
        model = modules.ScaleShiftMACE(
            atomic_inter_scale=1.0,
            atomic_inter_shift=0.0,
            r_max=6.0,
            num_bessel=10,
            num_polynomial_cutoff=5,
            max_ell=3,
            interaction_cls=block,
            interaction_cls_first=block,
            num_interactions=2,
            num_elements=len(elements),
            hidden_irreps=Irreps("128x0e + 128x1o"),
            MLP_irreps=Irreps("16x0e"),
            atomic_energies=np.zeros(len(elements)),
            avg_num_neighbors=60.0,
            atomic_numbers=elements,
            correlation=3,
            gate=torch.nn.functional.silu,
        )
        copy = atoms.copy()
        copy.calc = MACECalculator(models=[model], device="cpu", default_dtype=dtype)
    finally:
        torch.set_default_dtype(before)

    first = water_box(1)
    first.calc = copy.calc
    for seed in range(3):
        first.rattle(1e-3, seed=seed)
        first.get_forces()

    def task() -> None:
        copy.rattle(1e-3)
        copy.get_forces()

    return task


def training(quick: bool, gpu: Device | None) -> Iterator[Line]:
    """Whole fits to N-methylacetamide in fields (public data): energies, forces, dipoles; three iterations."""
    path = public("nma_field.xyz")
    if path is None:
        return
    number = 50 if quick else 400
    for size in (10, 40) if quick else (50, 200, 1000):
        frames = read(path, f":{size}")

        def make(device: Device, frames: Any = frames) -> Any:
            short = kqeq.SOAPKernel(r_cut=5.0, n_max=8, l_max=6, zeta=4, n_representatives=number)
            chi = kqeq.SOAPKernel(r_cut=4.0, n_max=6, l_max=4, sigma=0.3, n_representatives=number)
            return lambda: kqeq.KQEq(chi, short, max_iterations=3).fit(frames, device=device)

        cells = {"CPU": _once(make(CPU)), "GPU": Cell(None, note=NOT_RUN)}
        if gpu is not None:
            cells["GPU"] = _once(make(gpu), gpu)
        yield Line(f"fit, {number} representatives per element, frames:", len(frames), cells)


def _once(task: Callable[[], Any], device: Device = CPU) -> Cell:
    start = clock(device)
    task()
    return Cell(clock(device) - start)


TABLES = {
    "descriptors": descriptors,
    "kernels": kernels,
    "ewald": ewald,
    "mesh": mesh,
    "charges": charges,
    "potential": potential,
    "training": training,
}


# ------------------------------------------------------------------ output


def text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell.seconds is None:
        return cell.note
    memory = "" if cell.megabytes is None else f" / {cell.megabytes:.0f} MB"
    return f"{1e3 * cell.seconds:.3g} ms{memory}"


def as_rows(lines: list[Line]) -> list[list[str]]:
    """Header and body of a table."""
    names = list(dict.fromkeys(name for line in lines for name in line.cells))
    header = ["", "size", *names]
    return [
        header,
        *([line.what, str(line.size), *(text(line.cells.get(n)) for n in names)] for line in lines),
    ]


def show(rows: list[list[str]]) -> None:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)), flush=True)


def markdown(title: str, about: str, rows: list[list[str]]) -> str:
    lines = [f"### {title}", "", about, "", "| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows[1:]]
    return "\n".join(lines) + "\n"


def run(argv: list[str] | None = None) -> dict[str, list[Line]]:
    """Measure, print and write the tables that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes")
    parser.add_argument("--cpu-time", action="store_true", help="time of the process in place of wall time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements to FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables to FILE")
    parser.add_argument("--only", nargs="+", choices=sorted(TABLES), help="these tables only")
    options = parser.parse_args(argv)
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "time": "process" if CPU_TIME else "wall",
        "kqeq": kqeq.__version__,
        "python": sys.version.split()[0],
        "date": time.strftime("%Y-%m-%d"),
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    gpu = find_gpu()
    found: dict[str, list[Line]] = {}
    pieces = [", ".join(f"{key} {value}" for key, value in machine.items()) + "\n"]
    for name, table in TABLES.items():
        if options.only and name not in options.only:
            continue
        about = (table.__doc__ or "").strip()
        print(f"\n{name}: {about}")
        found[name] = list(table(options.quick, gpu))
        if found[name]:
            rows = as_rows(found[name])
            show(rows)
            pieces.append(markdown(name, about, rows))
    if options.json:
        data = {
            "machine": machine,
            **{name: [asdict(line) for line in lines] for name, lines in found.items()},
        }
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text("\n".join(pieces))
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore", KQEqWarning)
    run()
