"""How the settings of the QM9 benchmark were chosen: cross-validation inside the training molecules.

    python benchmarks/choice.py [--quick] [--json FILE] [--only SECTION ...]

``qm9``  five folds of the 385 training molecules, one setting after the other: cutoff, charge model, number of
         representatives, basis; evidence learns noise and prior spreads in every fit (ζ = 2).
         The 1000 validation molecules are not looked at.  At most :data:`BUDGET` seconds of CPU time.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read

import kqeq
from common import Row, main, public, row
from kqeq.constants import DEBYE
from kqeq.fitting.evidence import hyperparameters

FOLDS = 5

BUDGET = 900.0
"""Seconds of CPU time after which no further setting is tried."""

CHARGES = {
    "ACKS2 + dipoles": kqeq.AtomicDipoles(kqeq.ACKS2()),
    "QEq + dipoles": kqeq.AtomicDipoles(kqeq.QEq()),
    "QEq": kqeq.QEq(),
}

STAGES: tuple[tuple[dict[str, Any], ...], ...] = (
    ({"r_cut": 3.0}, {"r_cut": 2.5}, {"r_cut": 3.5}),
    tuple({"charges": name} for name in CHARGES),
    ({"n_representatives": 800}, {"n_representatives": 200}),
    ({"sigma": 0.25}, {"sigma": 0.4}, {"n_max": 8}, {"l_max": 6}),
)
"""Each stage changes the best settings of the one before."""

START: dict[str, Any] = {
    "charges": "ACKS2 + dipoles",
    "r_cut": 3.0,
    "n_max": 6,
    "l_max": 4,
    "sigma": 0.3,
    "n_representatives": 400,
}


def cross_validate(settings: dict[str, Any], frames: list[Atoms], folds: int) -> float:
    """Mean error of |μ| over all frames, each predicted by a model that has not seen it; debye."""
    order = np.random.default_rng(0).permutation(len(frames))
    errors = []
    kernel = {name: value for name, value in settings.items() if name != "charges"}
    for fold in range(folds):
        held = set(order[fold::FOLDS].tolist())
        model = kqeq.KQEq(
            kqeq.SOAPKernel(zeta=2, **kernel),
            short_range=None,
            charges=CHARGES[settings["charges"]],
            targets=["dipole"],
        )
        model.fit([f for i, f in enumerate(frames) if i not in held], optimize="evidence")
        error = model.evaluate([frames[i] for i in sorted(held)])["dipole"].mae_norm
        errors += [error] * len(held)
    return float(np.mean(errors)) / DEBYE


def qm9(quick: bool) -> Iterator[Row]:
    source = public("qm9_dipoles_train.xyz")
    if source is None:
        return
    frames = read(source, ":")
    # the power costs as much as all the rest together: evidence learns it once the other settings are fixed
    hyperparameters.ZETA_RANGE = (2.0, 2.0)
    started = time.process_time()
    best, lowest = START, np.inf
    tried: list[dict[str, Any]] = []
    for stage in STAGES:
        center = best
        for change in stage:
            settings = {**center, **change}
            if settings in tried or time.process_time() - started > BUDGET:
                continue
            tried.append(settings)
            found = cross_validate(settings, frames[:100] if quick else frames, 1 if quick else FOLDS)
            yield row("CV: " + ", ".join(map(str, settings.values())), found, "D")
            if found < lowest:
                best, lowest = settings, found
    yield row("CV, best: " + ", ".join(map(str, best.values())), lowest, "D")
    yield row("CPU time", time.process_time() - started, "s")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(__doc__ or "", {"qm9": qm9})
