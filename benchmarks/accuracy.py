"""Accuracy on real data: what a fit with the given settings reaches, with and without charges.

    python benchmarks/accuracy.py [--quick] [--json FILE] [--only SECTION ...]

``ag3``      packaged PBE0 data, every second frame to fit, the rest to test
``qm9``      public QM9 dipoles, 385 molecules to fit, 1000 to test, default settings
``datasets`` every packaged set, independent trajectories to test
``charge_states`` sets of several charge states: what charges, hardness by kernel and a charge-aware kernel bring
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator

import numpy as np
from ase.io import read

import kqeq
from common import Row, main, public, row
from kqeq.constants import DEBYE
from kqeq.demo import ag3_settings


def ag3(quick: bool) -> Iterator[Row]:
    frames = kqeq.datasets.load("ag3")
    train, test = frames[::2], frames[1::2]
    settings = ag3_settings()  # those of the demo
    both = kqeq.KQEq(**settings).fit(train).evaluate(test)
    alone = kqeq.KQEq(**{**settings, "electronegativity": None, "charges": None}).fit(train).evaluate(test)
    yield row("ag3 energy RMSE, kQEq + short-range", 1e3 * both["energy"].rmse, "meV/atom", "<= 1")
    yield row("ag3 forces RMSE, kQEq + short-range", 1e3 * both["forces"].rmse, "meV/Å", "<= 20")
    yield row("ag3 dipole RMSE, kQEq + short-range", both["dipole"].rmse, "e·Å")
    yield row("ag3 energy RMSE, short-range only", 1e3 * alone["energy"].rmse, "meV/atom")
    yield row("ag3 forces RMSE, short-range only", 1e3 * alone["forces"].rmse, "meV/Å")
    for kind in ("energy", "forces"):
        yield row(
            f"ag3 {kind}: short-range only / with charges", alone[kind].rmse / both[kind].rmse, "", ">= 5"
        )


def qm9(quick: bool) -> Iterator[Row]:
    train, test = public("qm9_dipoles_train.xyz"), public("qm9_dipoles_val.xyz")
    if train is None or test is None:
        return
    fit, check = read(train, ":"), read(test, ":")
    if quick:
        check = check[::5]
    started = time.perf_counter()
    model = kqeq.KQEq().fit(fit)
    seconds = time.perf_counter() - started
    errors = model.evaluate(check)
    yield row("QM9 dipoles, defaults: mean error of |mu|", errors["dipole"].mae_norm / DEBYE, "D", "<= 0.3")
    yield row("QM9 dipoles, defaults: fit", seconds, "s", "<= 60")


def datasets(quick: bool) -> Iterator[Row]:
    for name in kqeq.datasets.names():
        try:
            train, test = kqeq.datasets.split(name)
        except kqeq.errors.InputError:
            continue
        if any(atoms.pbc.any() for atoms in train) or (quick and name not in ("ag3", "water")):
            continue
        for label, settings in (
            ("kQEq + short-range", {}),
            ("short-range only", {"electronegativity": None, "charges": None}),
        ):
            usable = [a for a in train if settings == {} or not a.info["external_field"].any()]
            check = [a for a in test if settings == {} or not a.info["external_field"].any()]
            if not usable or not check:
                continue
            errors = kqeq.KQEq(**settings).fit(usable).evaluate(check)
            yield row(f"{name} energy RMSE, {label}", 1e3 * errors["energy"].rmse, "meV/atom")
            yield row(f"{name} forces RMSE, {label}", 1e3 * errors["forces"].rmse, "meV/Å")
            if "dipole" in errors:
                yield row(f"{name} dipole RMSE, {label}", errors["dipole"].rmse, "e·Å")


CHARGE_STATES = {
    "short-range only": {"electronegativity": None, "charges": None},
    "kQEq + short-range": {},
    "kQEq with hardness by kernel + short-range": {"charges": kqeq.QEq(hardness="kernel")},
    "kQEq + charge-aware short-range": {"charge_aware": kqeq.ChargeKernel()},
    "kQEq with hardness by kernel + charge-aware short-range": {
        "charges": kqeq.QEq(hardness="kernel"),
        "charge_aware": kqeq.ChargeKernel(),
    },
}
"""Settings beside the defaults."""

SHARED = ("ag3", "zno")
"""Sets in which charge states share a composition."""


def charge_states(quick: bool) -> Iterator[Row]:
    for name in ("ag3",) if quick else ("ag3", "carbon_chain", "nacl", "zno", "water"):
        train, test = kqeq.datasets.split(name)
        alone = np.nan
        for label, settings in CHARGE_STATES.items():
            started = time.perf_counter()
            model = kqeq.KQEq(**settings).fit(train)
            seconds = time.perf_counter() - started
            errors = model.evaluate(test)
            forces = 1e3 * errors["forces"].rmse
            if label == "short-range only":
                alone = forces
            yield row(f"{name} energy RMSE, {label}", 1e3 * errors["energy"].rmse, "meV/atom")
            yield row(f"{name} forces RMSE, {label}", forces, "meV/Å")
            if "dipole" in errors:
                yield row(f"{name} dipole RMSE, {label}", errors["dipole"].rmse, "e·Å")
            if label != "short-range only":
                target = "<= 0.5" if name in SHARED else ""
                yield row(f"{name} forces RMSE / short-range only, {label}", forces / alone, "", target)
            yield row(f"{name} fit, {label}", seconds, "s")


if __name__ == "__main__":
    warnings.simplefilter("ignore", kqeq.errors.KQEqWarning)
    main(__doc__ or "", {"ag3": ag3, "qm9": qm9, "datasets": datasets, "charge_states": charge_states})
