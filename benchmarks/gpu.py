"""What a CUDA GPU has to reach; every row says "not run" where there is none.

    python benchmarks/gpu.py [--quick] [--json FILE] [--only SECTION ...] [--rehearse]

``--rehearse`` runs every section with tiny sizes on a stand-in for a GPU (array_api_strict, which needs no GPU and is
slow): it shows that the script works and that results agree; its times mean nothing.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import numpy as np
from ase.io import read
from joblib import parallel_config

import common
import kqeq
from common import Row, main, public
from kqeq.backend import CPU, Device, asarray_like, cholesky, record_transfers, to_numpy
from kqeq.backend.devices import resolve
from kqeq.electrostatics import EwaldCoulomb
from kqeq.electrostatics.radial import screened_coulomb
from kqeq.errors import DeviceError, KQEqWarning
from kqeq.frames.neighbours import find_pairs
from kqeq.frames.structures import read_structure
from prediction import built_model, water_box

REHEARSE = "--rehearse" in sys.argv


def row(name: str, value: float | None, unit: str, target: str = "") -> Row:
    """As in ``common``; a rehearsal has no speed to judge."""
    return common.row(name, value, unit, "" if REHEARSE and target.startswith(">=") else target)


@cache
def gpu() -> Device | None:
    """The GPU, its stand-in, or None."""
    if REHEARSE:
        import array_api_strict as xp

        return Device("stand-in", xp.asarray(np.empty(0), device=xp.Device("device1")))
    try:
        return resolve("cuda")
    except DeviceError as error:
        print(f"not run: {error}")
        return None


def seconds(task: Callable[[], Any], rounds: int = 3) -> float:
    """Shortest time of a task that was run once before, with everything it started finished."""
    task()
    times = []
    for _ in range(1 if REHEARSE else rounds):
        _wait()
        start = time.perf_counter()
        task()
        _wait()
        times.append(time.perf_counter() - start)
    return min(times)


def _wait() -> None:
    if not REHEARSE and "cupy" in sys.modules:
        import cupy

        cupy.cuda.Device().synchronize()


def kernel_products(quick: bool) -> Iterator[Row]:
    """Kernel matrix and its gradient against plain matrix products of the same shape."""
    n, m, f = (60, 12, 40) if REHEARSE else (20_000, 400, 952)
    device = gpu()
    names = {
        "kernel matrix (N×M×F), share of a plain product": "forward",
        "its gradient, share of a plain product": "backward",
    }
    if device is None:
        for name in names:
            yield row(name, None, "", ">= 0.5")
        return
    from kqeq.kernels import Products, Representatives, Similarity
    from prediction import _site_model

    structure = read_structure(water_box(1 if REHEARSE else 5))
    kernel = kqeq.SOAPKernel(r_cut=5.0, n_max=8, l_max=6, zeta=4, n_representatives=4)
    model = _site_model(kernel, [structure], np.random.default_rng(0))
    rng = np.random.default_rng(0)
    put = partial(asarray_like, like=device.like)
    rows, directions = put(rng.uniform(size=(n, f))), put(rng.uniform(size=(m, f)))
    feature_map, own = model.terms[0]
    z = next(iter(own))
    coefficients = {z: rng.normal(size=m)}
    index = put(np.arange(n))

    def forward() -> Any:
        products = Products(rows, Representatives(directions))
        near = [Similarity(z, np.arange(n), products, slice(0, n), index)]
        return near, feature_map.expand(near, n, coefficients)

    near, _ = forward()
    dots = near[0].dots
    plain_forward = seconds(lambda: rows @ directions.T)
    plain_backward = seconds(lambda: dots @ directions)
    yield row(next(iter(names)), plain_forward / seconds(forward), "", ">= 0.5")
    backward = seconds(lambda: feature_map.descriptor_gradient(near, (n, f), coefficients))
    yield row(list(names)[1], plain_backward / backward, "", ">= 0.5")
    flops = 2.0 * n * m * f
    yield row("plain float64 product of that shape", flops / plain_forward / 1e12, "TFLOP/s")


def dense_ewald(quick: bool) -> Iterator[Row]:
    """Ewald matrix and Cholesky factor of 20,000 atoms."""
    device = gpu()
    side = 2 if REHEARSE else (12 if quick else 19)
    atoms = 3 * side**3
    if device is None:
        for what in (
            "Ewald matrix",
            "its Cholesky factor",
            "largest deviation of the CPU's energy (500 atoms)",
        ):
            yield row(f"{what}, {atoms} atoms", None, "s")
        return
    box = water_box(side)
    sigma = np.full(atoms, 0.7)
    put = partial(asarray_like, like=device.like)
    provider = EwaldCoulomb(put(box.positions), put(sigma), np.asarray(box.cell))
    yield row(f"Ewald matrix, {atoms} atoms", seconds(provider.matrix, 1), "s")
    matrix = provider.matrix()
    yield row(f"its Cholesky factor, {atoms} atoms", seconds(lambda: cholesky(matrix), 1), "s")
    small = water_box(2 if REHEARSE else 5)
    widths = np.full(len(small), 0.7)
    here = EwaldCoulomb(small.positions, widths, np.asarray(small.cell)).matrix()
    there = EwaldCoulomb(put(small.positions), put(widths), np.asarray(small.cell)).matrix()
    deviation = np.abs(to_numpy(there) - here).max() / np.abs(here).max()
    yield row("largest relative deviation from the CPU's matrix", deviation, "", "<= 1e-9")


def matrix_free(quick: bool) -> Iterator[Row]:
    """QEq of 200,000 atoms without a matrix; what moves meanwhile."""
    device = gpu()
    side = 2 if REHEARSE else (20 if quick else 41)
    atoms = 3 * side**3
    names = (
        f"QEq without a matrix, bind and solve, {atoms} atoms",
        "arrays moved in the solver's loop",
        "numbers read from the device in the loop",
    )
    if device is None:
        yield row(names[0], None, "s")
        yield row(names[1], None, "", "<= 0")
        yield row(names[2], None, "")
        return
    structure = read_structure(water_box(side))
    chi = asarray_like(np.where(structure.numbers == 8, 8.0, 4.5), device.like)
    model = kqeq.QEq(solver="iterative", accuracy=1e-5)
    field = np.zeros(3)

    def whole() -> None:
        model.bind(structure, device=device).solve(chi, field, 0.0)

    yield row(names[0], seconds(whole, 1), "s")
    solver = model.bind(structure, device=device).solver
    with record_transfers() as moved:
        solver.stationary(chi[:, None], None)
    yield row(names[1], float(len(moved.to_device) + len(moved.to_host)), "", "<= 0")
    yield row(names[2], float(moved.scalars), "")


def scaling(quick: bool) -> Iterator[Row]:
    """Energy and forces of the full model; time per atom falls, then stays."""
    device = gpu()
    sides = (1, 2) if REHEARSE else ((7, 15) if quick else (7, 15, 32))
    if device is None:
        for side in sides:
            yield row(f"energy + forces, {3 * side**3} atoms", None, "ms/atom")
        yield row("largest relative deviation of forces from the CPU's", None, "", "<= 1e-9")
        return
    sources = [read_structure(water_box(2 if REHEARSE else 5, seed=seed)) for seed in (2, 3)]
    model = built_model(sources, charges=True, n_representatives=10 if REHEARSE else 400)
    for side in sides:
        atoms = water_box(side)
        wanted = ("energy", "forces")
        found = seconds(partial(model.predict, atoms, properties=wanted, device=device))
        yield row(f"energy + forces, {len(atoms)} atoms", 1e3 * found / len(atoms), "ms/atom")
    atoms = water_box(sides[0])
    here, there = (model.predict(atoms, device=where) for where in (CPU, device))
    deviation = np.abs(here.forces - there.forces).max() / np.abs(here.forces).max()
    yield row("largest relative deviation of forces from the CPU's", deviation, "", "<= 1e-9")


def training(quick: bool) -> Iterator[Row]:
    """A whole fit to N-methylacetamide in fields (public data), 400 representatives per element.

    With the given noises and spreads, without a search for them.  The CPU has two cores, a process and a BLAS thread for
    each.  What is compiled once was compiled before.
    """
    device = gpu()
    path = public("nma_field.xyz")
    name = "whole training of nma_field, CPU time / GPU time"
    if device is None or path is None:
        yield row(name, None, "", ">= 10")
        return
    frames = read(path, ":4" if REHEARSE else (":200" if quick else ":1000"))
    number = 5 if REHEARSE else 400

    def fit(some: list[Any], where: Device) -> Any:
        short = kqeq.SOAPKernel(r_cut=5.0, n_max=8, l_max=6, zeta=4, n_representatives=number)
        chi = kqeq.SOAPKernel(r_cut=4.0, n_max=6, l_max=4, sigma=0.3, n_representatives=number)
        model = kqeq.KQEq(chi, short, optimize=None, max_iterations=2 if REHEARSE else 30)
        return model.fit(some, device=where)

    times, models = {}, {}
    for where in (CPU, device):
        parallel = where is CPU and not REHEARSE
        workers = parallel_config(backend="loky", n_jobs=2, inner_max_num_threads=1)
        with workers if parallel else nullcontext():
            fit(frames[:32], where)
            _wait()
            start = time.perf_counter()
            models[where.name] = fit(frames, where)
            _wait()
        times[where.name] = time.perf_counter() - start
        yield row(f"whole training, {len(frames)} frames, {where.name}", times[where.name], "s")
    yield row(name, times["cpu"] / times[device.name], "", ">= 10")
    losses = [models[own].fit_report_.loss for own in ("cpu", device.name)]
    yield row(
        "relative deviation of its loss from the CPU's", abs(losses[1] / losses[0] - 1.0), "", "<= 1e-4"
    )


def precision(quick: bool) -> Iterator[Row]:
    """Kernel products in single precision: how much faster, how wrong."""
    device = gpu()
    if device is None:
        yield row("energy + forces, float32 kernel products / float64", None, "", "<= 1")
        return
    sources = [read_structure(water_box(2 if REHEARSE else 5, seed=seed)) for seed in (2, 3)]
    model = built_model(sources, charges=True, n_representatives=10 if REHEARSE else 400)
    atoms = water_box(2 if REHEARSE else 15)
    wanted = ("energy", "forces")
    times, forces = {}, {}
    for name in ("float64", "float32"):
        task = partial(model.predict, atoms, properties=wanted, device=device, precision=name)
        times[name], forces[name] = seconds(task), task().forces
    yield row("energy + forces, float32 kernel products / float64", times["float32"] / times["float64"], "")
    error = np.abs(forces["float32"] - forces["float64"]).max() / np.abs(forces["float64"]).max()
    yield row("largest relative error of forces", error, "")


def raw_kernels(quick: bool) -> Iterator[Row]:
    """Kernels of our own (``KQEQ_CUDA_KERNELS=1``) against the array code that they replace; above 1 they pay."""
    device = gpu()
    side = 5 if quick else 15
    atoms = 3 * side**3
    names = {
        "values": f"SOAP values from given pairs, {atoms} atoms, arrays / kernels",
        "adjoint": f"SOAP adjoint, {atoms} atoms, arrays / kernels",
        "ewald": "radial functions of 10 million pairs, arrays / kernels",
    }
    if device is None or REHEARSE:
        for name in names.values():
            yield row(name, None, "", ">= 1")
        return
    structure = read_structure(water_box(side))
    descriptor = kqeq.SOAPKernel(r_cut=5.0, n_max=8, l_max=6).descriptor()
    pairs = find_pairs(structure, descriptor.cutoff, full=False)
    values = partial(descriptor.evaluate_arrays, structure, device.like, pairs=pairs)
    state = values()
    rng = np.random.default_rng(0)
    r2, a = (asarray_like(rng.uniform(*bounds, 10**7), device.like) for bounds in ((0.5, 80.0), (0.4, 1.5)))

    tasks: dict[str, Callable[[], Any]] = {
        "values": values,
        "adjoint": lambda: state.adjoint(state.values),
        "ewald": lambda: screened_coulomb(r2, a, 0.4, 1),
    }
    before = os.environ.get("KQEQ_CUDA_KERNELS")
    times = {}
    try:
        for choice in ("0", "1"):
            os.environ["KQEQ_CUDA_KERNELS"] = choice
            times[choice] = {name: seconds(task) for name, task in tasks.items()}
    finally:
        os.environ.pop("KQEQ_CUDA_KERNELS")
        if before is not None:
            os.environ["KQEQ_CUDA_KERNELS"] = before
    for name, text in names.items():
        yield row(text, times["0"][name] / times["1"][name], "", ">= 1")


SECTIONS = {
    "kernel_products": kernel_products,
    "dense_ewald": dense_ewald,
    "matrix_free": matrix_free,
    "scaling": scaling,
    "training": training,
    "precision": precision,
    "raw_kernels": raw_kernels,
}

if __name__ == "__main__":
    warnings.simplefilter("ignore", KQEqWarning)
    main(__doc__ or "", SECTIONS, [word for word in sys.argv[1:] if word != "--rehearse"])
