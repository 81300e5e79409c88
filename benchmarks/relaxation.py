"""Force calls that a relaxation takes, with the optimisers of ASE.

    python benchmarks/relaxation.py [--quick] [--json FILE] [--only SECTION ...]

``propane``    default model of the packaged alkanes: every test frame of propane, and its minimum rattled by 0.1 Å with
               five seeds, to 0.01 eV/Å
``glycinium``  default model of 30 frames of glycine and glycinium (GFN2-xTB at 500 K, tests/files/glycinium.xyz): all
               20 frames of the ion, and its minimum rattled likewise
``optimisers`` BFGS, BFGS with a line search, LBFGS, FIRE, LBFGS with the Exp preconditioner and the trust radius that
               ``kqeq.analysis.optimize`` uses, from two frames of glycinium
``hard``       the same ion with a model of single kernels, which closes a hydrogen bond on the way
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read

import kqeq
from common import Row, main, row
from kqeq.analysis import optimize
from kqeq.kernels.settings import default_electronegativity, default_short_range

GLYCINIUM = Path(__file__).resolve().parents[1] / "tests" / "files" / "glycinium.xyz"

FMAX = 0.01
"""eV/Å."""

MOST = 300
"""Force calls after which an optimiser is given up."""


@cache
def labelled() -> list[Atoms]:
    return read(GLYCINIUM, ":")


@cache
def model_of(name: str) -> kqeq.KQEq:
    if name == "propane":
        return kqeq.KQEq().fit(kqeq.datasets.split("alkanes")[0])
    train = [atoms for atoms in labelled() if atoms.info["seed"] == 0]
    if name == "hard":
        return kqeq.KQEq(default_electronegativity(), default_short_range()).fit(train)
    return kqeq.KQEq().fit(train)


def start(atoms: Atoms) -> Atoms:
    """Elements, positions and charge alone."""
    return Atoms(atoms.numbers, atoms.positions, info={"total_charge": atoms.info["total_charge"]})


def starts(name: str) -> list[Atoms]:
    if name == "propane":
        frames = [atoms for atoms in kqeq.datasets.split("alkanes")[1] if str(atoms.symbols) == "C3H8"]
    else:
        frames = [atoms for atoms in labelled() if atoms.info["system"] == "glycinium"]
    return [start(atoms) for atoms in frames]


def relaxations(name: str, quick: bool) -> Iterator[Row]:
    model = model_of(name)
    first = starts(name)[:: 5 if quick and name != "propane" else 1]
    found = [optimize(model, atoms, fmax=FMAX) for atoms in first]
    lowest = min(found, key=lambda result: result.prediction.energy)
    for seed in range(5):
        atoms = start(lowest.atoms)
        atoms.rattle(0.1, seed=seed)
        found.append(optimize(model, atoms, fmax=FMAX))
    calls = [result.steps + 1 for result in found]
    what = f"{name}: force calls to {FMAX:g} eV/Å, {len(calls)} starts"
    yield row(f"{what}, median", float(np.median(calls)), "", "<= 60")
    yield row(f"{what}, worst", max(calls), "", "<= 100")
    yield row(f"{name}: relaxations that did not converge", sum(not r.converged for r in found), "", "<= 0")


def optimisers() -> dict[str, Callable[[Atoms], Any]]:
    from ase.optimize import BFGS, FIRE, LBFGS, BFGSLineSearch, GoodOldQuasiNewton
    from ase.optimize.precon import Exp, PreconLBFGS

    def preconditioned(atoms: Atoms) -> Any:
        # lengths given: those that ASE estimates need a structure larger than a molecule
        return PreconLBFGS(atoms, precon=Exp(A=3, r_NN=1.1, r_cut=2.6, mu=20.0), logfile=None)

    plain = {
        "BFGS": BFGS,
        "BFGSLineSearch": BFGSLineSearch,
        "LBFGS": LBFGS,
        "FIRE": FIRE,
        "GoodOldQuasiNewton": GoodOldQuasiNewton,
    }
    made: dict[str, Callable[[Atoms], Any]] = {
        name: lambda atoms, kind=kind: kind(atoms, logfile=None) for name, kind in plain.items()
    }
    return {**made, "PreconLBFGS, Exp": preconditioned}


class Counting(kqeq.KQEqCalculator):
    """Counts geometries."""

    calls = 0

    def calculate(self, *arguments: Any, **options: Any) -> None:
        self.calls += 1
        super().calculate(*arguments, **options)


def compared(name: str, numbers: tuple[int, ...]) -> Iterator[Row]:
    model = model_of(name)
    for number in numbers:
        for kind, make in optimisers().items():
            atoms = starts("glycinium")[number]
            atoms.calc = Counting(model)
            with make(atoms) as optimiser:
                done = optimiser.run(fmax=FMAX, steps=MOST)
            calls = atoms.calc.calls if done else None
            yield row(f"{name}, start {number}: force calls of {kind}", calls, "")


if __name__ == "__main__":
    main(
        __doc__ or "",
        {
            "propane": lambda quick: relaxations("propane", quick),
            "glycinium": lambda quick: relaxations("glycinium", quick),
            "optimisers": lambda quick: compared("glycinium", (9,) if quick else (0, 9)),
            "hard": lambda quick: compared("hard", (16,)),
        },
    )
