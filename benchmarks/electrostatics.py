"""Electrostatics: speed and memory of Ewald matrices, growth of the particle mesh, accuracy.

    python benchmarks/electrostatics.py [--quick] [--json FILE] [--only SECTION ...]

Prints a table of name, value, unit and target.  "CPU" rows are process time, which a busy machine disturbs
less than wall time; numbers of threads are whatever the environment says (OMP_NUM_THREADS=1 for one core).
Sections are the functions in ``SECTIONS``: each takes ``quick`` and yields rows.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import bulk, molecule

from kqeq.charges import ACKS2, AtomicDipoles, QEq
from kqeq.constants import COULOMB
from kqeq.electrostatics import EwaldCoulomb, MeshCoulomb, OpenCoulomb
from kqeq.elements import hardness, width
from kqeq.frames.structures import Structure

Row = dict[str, Any]


def row(name: str, value: float, unit: str, target: str = "") -> Row:
    return {"name": name, "value": value, "unit": unit, "target": target}


def water(side: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers, positions and cell of side³ randomly turned water molecules at the density of the liquid."""
    rng = np.random.default_rng(seed)
    spacing = 3.105
    single = molecule("H2O")
    positions = []
    for place in np.ndindex(side, side, side):
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        centre = (np.array(place) + 0.5) * spacing + rng.normal(scale=0.1, size=3)
        positions.append(single.positions @ turn + centre)
    return np.tile(single.numbers, side**3), np.concatenate(positions), np.eye(3) * side * spacing


def best(function: Callable[[], Any], repeats: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Shortest time in seconds."""
    times = []
    for _ in range(repeats):
        start = clock()
        function()
        times.append(clock() - start)
    return min(times)


def peak() -> float:
    """Largest resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ------------------------------------------------------------------------------------------------ Ewald


def ewald_small(quick: bool) -> Iterator[Row]:
    numbers, r, cell = water(4)
    sigma = width(numbers)
    repeats = 3 if quick else 15

    def build(dipoles: bool) -> EwaldCoulomb:
        provider = EwaldCoulomb(r, sigma, cell, dipoles=dipoles)
        provider.matrix()
        return provider

    yield row("Ewald matrix, 192 atoms", 1e3 * best(lambda: build(False), repeats), "ms", "< 50")
    cpu = best(lambda: build(False), repeats, time.process_time)
    yield row("Ewald matrix, 192 atoms, CPU", 1e3 * cpu, "ms")
    yield row("Ewald matrix with dipoles, 192 atoms", 1e3 * best(lambda: build(True), repeats), "ms")
    rng = np.random.default_rng(0)
    for dipoles in (False, True):
        provider = build(dipoles)
        left, block = rng.normal(size=provider.size), rng.normal(size=(provider.size, 2000))
        kind = "charges and dipoles" if dipoles else "charges"
        for columns in (1, 2000):
            part = block[:, :columns]
            gradient = best(lambda p=provider, b=part, v=left: p.bilinear_gradient(v, b), repeats)
            strain = best(lambda p=provider, b=part, v=left: p.bilinear_strain(v, b), repeats)
            yield row(f"gradient, 192 atoms, {kind}, {columns} columns", 1e3 * gradient, "ms")
            yield row(f"strain derivative, 192 atoms, {kind}, {columns} columns", 1e3 * strain, "ms")


def ewald_large(quick: bool) -> Iterator[Row]:
    side = 6 if quick else 10
    atoms = 3 * side**3
    target = ("", "") if quick else ("< 8", "< 3")
    code = f"import benchmarks.electrostatics as b; b.large_matrix({side})"
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    wall, cpu, memory = (float(word) for word in result.stdout.split())
    yield row(f"Ewald matrix, {atoms} atoms", wall, "s", target[0])
    yield row(f"Ewald matrix, {atoms} atoms, CPU", cpu, "s")
    if not quick:  # small matrices fit into memory that the process already has
        yield row(f"Ewald matrix, {atoms} atoms, memory / matrix", memory, "", target[1])


def large_matrix(side: int) -> None:
    """Print wall time, process time, and the memory that was needed in units of the matrix (fresh process)."""
    numbers, r, cell = water(2)
    EwaldCoulomb(r, width(numbers), cell).matrix()  # libraries loaded, buffers of BLAS allocated
    numbers, r, cell = water(side)
    before, start, cpu = peak(), time.perf_counter(), time.process_time()
    matrix = EwaldCoulomb(r, width(numbers), cell).matrix()
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(wall, cpu, (peak() - before) * 2**20 / matrix.nbytes)


# ------------------------------------------------------------------------------------------- particle mesh


def equilibrate(
    product: Callable[[np.ndarray], np.ndarray],
    chi: np.ndarray,
    precondition: Callable[[np.ndarray], np.ndarray],
) -> tuple[np.ndarray, int]:
    """Neutral charges that minimise χᵀq + ½ qᵀAq: projected, preconditioned conjugate gradients."""
    q = np.zeros_like(chi)
    residual = chi.mean() - chi
    z = precondition(residual)
    z -= z.mean()
    direction, norm = z.copy(), residual @ z
    for iteration in range(200):
        image = product(direction)
        image -= image.mean()
        step = norm / (direction @ image)
        q, residual = q + step * direction, residual - step * image
        z = precondition(residual)
        z -= z.mean()
        if np.abs(z).max() < 1e-8:
            return q, iteration + 1
        norm, old = residual @ z, norm
        direction = z + norm / old * direction
    raise RuntimeError("conjugate gradients did not converge")


def mesh_growth(quick: bool) -> Iterator[Row]:
    sides = (6, 10) if quick else (10, 16, 25)
    totals = []
    numbers, r, cell = water(3)
    MeshCoulomb(r, width(numbers), cell).matvec(np.zeros(len(r)))  # compile
    for side in sides:
        numbers, r, cell = water(side)
        sigma, eta = width(numbers), hardness(numbers)
        chi = np.where(numbers == 8, 1.0, -0.5) + np.random.default_rng(0).normal(scale=0.1, size=len(r))
        start = time.process_time()
        provider = MeshCoulomb(r, sigma, cell)
        setup = time.process_time()

        def product(v: np.ndarray, p: MeshCoulomb = provider, e: np.ndarray = eta) -> np.ndarray:
            return p.matvec(v) + e * v

        q, iterations = equilibrate(product, chi, provider.preconditioner(eta))
        solved = time.process_time()
        forces = -0.5 * provider.bilinear_gradient(q, q[:, None])[:, :, 0]
        forced = time.process_time()
        provider.bilinear_strain(q, q[:, None])
        done = time.process_time()
        totals.append((len(r), done - start))
        name = f"mesh, {len(r)} atoms"
        yield row(f"{name}, set up, CPU", setup - start, "s")
        yield row(f"{name}, charges ({iterations} iterations), CPU", solved - setup, "s")
        yield row(f"{name}, forces, CPU", forced - solved, "s")
        yield row(f"{name}, strain derivative, CPU", done - forced, "s")
        yield row(f"{name}, all, CPU", done - start, "s")
        yield row(f"{name}, resident memory", peak(), "MB")
        if side == 10:
            dense = EwaldCoulomb(r, sigma, cell)
            matrix = dense.matrix()
            matrix[np.diag_indices_from(matrix)] += eta
            exact, _ = equilibrate(lambda v, a=matrix: a @ v, chi, dense.preconditioner(eta))
            expected = -0.5 * dense.bilinear_gradient(exact, exact[:, None])[:, :, 0]
            yield row(f"{name}, charges against dense", np.abs(q - exact).max(), "e", "< 1e-6")
            yield row(f"{name}, forces against dense", np.abs(forces - expected).max(), "eV/Å")
    (small, first), (large, last) = totals[0], totals[-1]
    exponent = np.log(last / first) / np.log(large / small)
    yield row(f"growth exponent, {small} to {large} atoms", float(exponent), "", "<= 1.25")


def without_matrix(quick: bool) -> Iterator[Row]:
    """Energy and forces of water through the charge models, as a step of dynamics takes them."""
    sides = (6, 10) if quick else (10, 16, 25)
    models = {"QEq": QEq, "ACKS2 + dipoles": lambda **k: AtomicDipoles(ACKS2(**k))}
    for name, make in models.items():
        totals = []
        step(make(solver="iterative"), 3)  # compile
        for side in sides if name == "QEq" else sides[:2]:
            seconds, atoms, charges, forces = step(make(solver="iterative"), side)
            totals.append((atoms, seconds))
            yield row(f"{name} without a matrix, {atoms} atoms, charges and forces, CPU", seconds, "s")
        # with dipoles the matrix of 3,000 atoms takes minutes
        side = 10 if name == "QEq" and not quick else 6
        seconds, atoms, charges, forces = step(make(solver="iterative"), side)
        dense, _, expected, expected_forces = step(make(solver="dense"), side)
        yield row(f"{name}, {atoms} atoms, time with a matrix / without, CPU", dense / seconds, "")
        error = float(np.abs(charges - expected).max())
        yield row(f"{name}, {atoms} atoms, charges against dense", error, "e", "< 1e-6")
        error = float(np.abs(forces - expected_forces).max())
        yield row(f"{name}, {atoms} atoms, forces against dense", error, "eV/Å")
        (small, first), (large, last) = totals[0], totals[-1]
        exponent = np.log(last / first) / np.log(large / small)
        yield row(f"{name}, growth exponent, {small} to {large} atoms", float(exponent), "", "<= 1.25")


def step(model: Any, side: int) -> tuple[float, int, np.ndarray, np.ndarray]:
    """CPU seconds of one evaluation of side³ water molecules, number of atoms, charges, forces."""
    numbers, r, cell = water(side)
    structure = Structure(numbers, r, cell, np.ones(3, dtype=bool))
    chi = np.where(numbers == 8, 1.0, -0.5) + np.random.default_rng(0).normal(scale=0.1, size=len(r))
    start = time.process_time()
    state = model.bind(structure).solve(chi, np.zeros(3), 0.0)
    assert np.isfinite(state.energy)
    forces = -state.gradient()
    return time.process_time() - start, len(r), state.charges, forces


def open_clusters(quick: bool) -> Iterator[Row]:
    for side in (6, 8) if quick else (8, 10, 16):
        numbers, r, _ = water(side)
        sigma, y = width(numbers), np.random.default_rng(0).normal(size=len(numbers))
        mesh = MeshCoulomb(r, sigma)
        product = mesh.matvec(y)
        yield row(
            f"open cluster, {len(r)} atoms, product on a mesh",
            1e3 * best(lambda m=mesh, v=y: m.matvec(v), 3),
            "ms",
        )
        if len(r) < 5000:
            direct = OpenCoulomb(r, sigma)
            seconds = best(lambda d=direct, v=y: d.matvec(v), 2)
            yield row(f"open cluster, {len(r)} atoms, direct product", 1e3 * seconds, "ms")
            error = np.abs(product - direct.matvec(y)).max() / COULOMB
            yield row(f"open cluster, {len(r)} atoms, mesh against direct", error, "e/Å")


# ----------------------------------------------------------------------------------------------- accuracy


def accuracy(quick: bool) -> Iterator[Row]:
    crystals = {
        "NaCl": (bulk("NaCl", "rocksalt", a=5.64), [1, -1], 5.64 / 2, 1.747564594633182),
        "CsCl": (bulk("CsCl", "cesiumchloride", a=4.12), [1, -1], 4.12 * np.sqrt(0.75), 1.762674773070988),
        "ZnS": (bulk("ZnS", "zincblende", a=5.41), [1, -1], 5.41 * np.sqrt(3) / 4, 1.638055053388789),
        "CaF2": (bulk("CaF2", "fluorite", a=5.46), [2, -1, -1], 5.46 * np.sqrt(3) / 4, 5.038784879846),
    }
    for name, (crystal, charges, nearest, expected) in crystals.items():
        sigma = np.full(len(charges), 0.05)
        q = np.array(charges, dtype=float)
        matrix = EwaldCoulomb(crystal.positions, sigma, crystal.cell.array, accuracy=1e-12).matrix()
        point = matrix - np.diag(COULOMB / (np.sqrt(np.pi) * sigma))
        constant = -0.5 * q @ point @ q * nearest / COULOMB
        yield row(f"Madelung constant of {name}, error", abs(constant - expected), "", "< 1e-9")
    rng = np.random.default_rng(0)
    worst = {1e-4: 0.0, 1e-7: 0.0, 1e-9: 0.0}
    mesh_worst = {1e-4: 0.0, 1e-7: 0.0, 1e-9: 0.0}
    for _ in range(3 if quick else 12):
        cell = np.diag(rng.uniform(5, 9, 3)) @ (np.eye(3) + 0.15 * rng.normal(size=(3, 3)))
        r, sigma = rng.uniform(size=(20, 3)) @ cell, rng.uniform(0.3, 1.0, 20)
        exact = EwaldCoulomb(r, sigma, cell, accuracy=1e-13).matrix()
        for asked, so_far in worst.items():
            got = EwaldCoulomb(r, sigma, cell, accuracy=asked).matrix()
            worst[asked] = max(so_far, float(np.abs(got - exact).max()) / COULOMB)
            got = MeshCoulomb(r, sigma, cell, accuracy=asked).matvec(np.eye(20))
            mesh_worst[asked] = max(mesh_worst[asked], float(np.abs(got - exact).max()) / COULOMB)
    for asked, error in worst.items():
        yield row(f"Ewald error / accuracy asked for ({asked:.0e})", error / asked, "", "< 1")
    for asked, error in mesh_worst.items():
        yield row(f"mesh error / accuracy asked for ({asked:.0e})", error / asked, "", "< 1")


SECTIONS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "small": ewald_small,
    "large": ewald_large,
    "mesh": mesh_growth,
    "models": without_matrix,
    "open": open_clusters,
    "accuracy": accuracy,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller systems, fewer repetitions")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the rows to FILE")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections to run")
    arguments = parser.parse_args()
    rows = []
    print(f"{'name':<70} {'value':>12}  {'unit':<6} target")
    for section in arguments.only:
        for one in SECTIONS[section](arguments.quick):
            rows.append(one)
            print(f"{one['name']:<70} {one['value']:>12.4g}  {one['unit']:<6} {one['target']}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
