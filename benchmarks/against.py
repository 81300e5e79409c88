"""This version beside another one, in one run: the same models, the same steps, taken by turns.

    python benchmarks/prediction.py --against REV [--quick] [--json FILE] [--only CASE ...]

``git archive REV`` is unpacked into a temporary folder.  Each version runs in a process of its own, with its own
``benchmarks/prediction.py`` to build the models (not fitted; same seeds, hence the same representatives, coefficients
and, to what is printed, energies).  A step moves atoms at random and asks for energy, forces and (periodic) stress.  The
two processes step by turns; what is compared is the shortest CPU time of a step, all threads together, so that a busy
machine hardly matters.  Both run with one thread.  Compiled code of both lies in fresh folders.  ``--only fresh`` is the
first step of a fresh installation, with and without what has to be compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import Row, row, show

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {
    "molecule_20": "",
    "charged_20": "<= 0.5",
    "short_375": "<= 0.7",
    "full_375": "<= 0.5",
    "short_3000": "<= 0.6",
    "full_3000": "<= 0.6",
}
"""Cases, and how much of the other version's time they may take."""

ALONE = {
    "default_20": "20 atoms, the new default (sums of 2 and 3 kernels), QEq",
    "default_375": "375 atoms, the new default (sums of 2 and 3 kernels), QEq",
}
"""Cases that the other version does not have."""

FRESH = "fresh"
"""The name of what a fresh installation costs."""

NAMES = {
    "molecule_20": "20 atoms, short-range",
    "charged_20": "20 atoms, QEq + short-range",
    "short_375": "375 atoms, short-range",
    "full_375": "375 atoms, QEq + short-range",
    "short_3000": "3000 atoms, short-range",
    "full_3000": "3000 atoms, QEq + short-range",
}


# ---------------------------------------------------------------------------------- one version


def _case(name: str) -> Callable[[], float]:
    """A step of a case with the kqeq, and the builders, that are on the path; returns the energy."""
    import numpy as np

    import kqeq
    import prediction

    kind, atoms_wanted = name.split("_")
    charges = kind in ("charged", "full", "default")
    if atoms_wanted == "20":
        frames = kqeq.datasets.load("alkanes")
        atoms = next(a for a in frames if len(a) == 20).copy()
        atoms.info = {}
        sources = [_read(a) for a in frames]
        wanted = ("forces", "energy")
    else:
        atoms = prediction.water_box(round((int(atoms_wanted) / 3) ** (1 / 3)))
        sources = [_read(prediction.water_box(5, seed=seed)) for seed in range(2, 6)]
        wanted = ("forces", "energy", "stress")
    summed = kind == "default"
    model = prediction.default_model(sources) if summed else prediction.built_model(sources, charges=charges)
    atoms.calc = kqeq.KQEqCalculator(model)
    rng = np.random.default_rng(3)

    def step() -> float:
        atoms.positions += rng.normal(scale=1e-3, size=atoms.positions.shape)
        return float([atoms.calc.get_property(what, atoms) for what in wanted][1])

    return step


def _read(atoms: Any) -> Any:
    try:
        from kqeq.frames.structures import read_structure
    except ModuleNotFoundError:  # version 0.1.0
        from kqeq.structures import read_structure  # type: ignore[import-not-found,no-redef]
    return read_structure(atoms)


def _serve() -> None:
    """Take steps as they are asked for on standard input; answer with CPU times, wall times and energies."""
    import warnings

    warnings.simplefilter("ignore")
    steps: dict[str, Callable[[], float]] = {}
    for line in sys.stdin:
        name, times = line.split()
        if times == "0":
            _case(name)()
            print(json.dumps([[time.process_time()]]), flush=True)
            continue
        if name not in steps:
            steps[name] = _case(name)
            steps[name]()  # compiles, fills caches
        answer = []
        for _ in range(int(times)):
            wall, cpu = time.perf_counter(), time.process_time()
            energy = steps[name]()
            answer.append((time.process_time() - cpu, time.perf_counter() - wall, energy))
        print(json.dumps(answer), flush=True)


class _Version:
    """A process that takes steps with one version of the package."""

    def __init__(self, tree: Path, folder: Path, threads: int = 1) -> None:
        environment = dict(os.environ, PYTHONPATH=f"{tree}{os.pathsep}{tree / 'benchmarks'}")
        environment["NUMBA_CACHE_DIR"] = str(folder)
        for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS"):
            environment[variable] = str(threads)
        code = f"import sys; sys.path.append({str(ROOT / 'benchmarks')!r}); import against; against._serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=tree,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def steps(self, name: str, times: int) -> list[list[float]]:
        """CPU time, wall time and energy of some steps."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{name} {times}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {name} ended with {self._process.wait()}")
        answer: list[list[float]] = json.loads(line)
        return answer

    def first_step(self, name: str) -> float:
        """CPU seconds from the start of the process to the end of a first step."""
        return self.steps(name, 0)[0][0]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


# ---------------------------------------------------------------------------------- both


def fresh_installation(trees: tuple[Path, Path], folder: Path, rounds: int) -> list[tuple[float, float]]:
    """CPU seconds of a first step with charges, by version: everything compiled, and read from disk; shortest of some.

    Imports, and building the model, are in both.
    """
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in trees]
    for number in range(rounds):
        for which, tree in enumerate(trees):
            for found in times[which]:  # the second process finds what the first one has compiled
                version = _Version(tree, folder / f"fresh-{number}-{which}")
                found.append(version.first_step("charged_20"))
                version.close()
    return [(min(compiled), min(known)) for compiled, known in times]


def compare(revision: str, quick: bool, only: list[str] | None) -> Iterator[Row]:
    """Rows of all cases."""
    with tempfile.TemporaryDirectory(prefix="kqeq-against-") as temporary:
        folder = Path(temporary)
        tree = folder / "other"
        tree.mkdir()
        archive = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, capture_output=True)
        subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True)
        here, there = _Version(ROOT, folder / "numba-here"), _Version(tree, folder / "numba-there")
        both = _Version(ROOT, folder / "numba-here", threads=2)
        if not only or FRESH in only:
            (here_cold, here_warm), (there_cold, there_warm) = fresh_installation(
                (ROOT, tree), folder, 1 if quick else 3
            )
            yield row(f"first step of a fresh installation: {revision}", there_cold, "s")
            yield row("first step of a fresh installation: this version", here_cold, "s")
            yield row("first step of a fresh installation: ratio", here_cold / there_cold, "", "<= 0.5")
            yield row(f"  without what is compiled: {revision}", there_warm, "s")
            yield row("  without what is compiled: this version", here_warm, "s")
        for name, limit in LIMITS.items():
            if only and name not in only:
                continue
            size = int(name.split("_")[1])
            turns, times = (6 if quick else 12), {20: 40, 375: 3, 3000: 1}[size]
            times_here, times_there = [], []
            for _ in range(turns):
                times_there += there.steps(name, times)
                times_here += here.steps(name, times)
            (cpu_here, energies), (cpu_there, others) = (
                (min(t[0] for t in own), [t[2] for t in own]) for own in (times_here, times_there)
            )
            apart = max(abs(a - b) for a, b in zip(energies, others, strict=True))
            yield row(f"{NAMES[name]}: {revision}", 1e3 * cpu_there, "ms")
            yield row(f"{NAMES[name]}: this version", 1e3 * cpu_here, "ms")
            yield row(f"{NAMES[name]}: ratio", cpu_here / cpu_there, "", limit)
            yield row(f"{NAMES[name]}: energies apart by", apart, "eV")
            if size >= 375:
                one, two = [], []
                for _ in range(turns):
                    one += here.steps(name, times)
                    two += both.steps(name, times)
                gain = min(t[1] for t in one) / min(t[1] for t in two)
                yield row(f"{NAMES[name]}: one thread / two threads, time", gain, "", ">= 1.7")
        for name, what in ALONE.items():
            if only and name not in only:
                continue
            times = [step[0] for _ in range(3 if quick else 6) for step in here.steps(name, 3)]
            yield row(f"{what}: this version", 1e3 * min(times), "ms")
        for version in (here, there, both):
            version.close()


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--against", metavar="REV", required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", nargs="+", choices=sorted({**LIMITS, **ALONE, FRESH: ""}))
    options = parser.parse_args(argv)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    rows = []
    for item in compare(options.against, options.quick, options.only):
        show([item])
        rows.append(item)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
