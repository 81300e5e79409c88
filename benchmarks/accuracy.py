"""Accuracy on real data: what a fit with the given settings reaches, with and without charges.

    python benchmarks/accuracy.py [--quick] [--json FILE] [--only SECTION ...] [--figures DIR] [--cache DIR]

``ag3``      packaged PBE0 data, every second frame to fit, the rest to test
``qm9``      public QM9 dipoles, 385 molecules to fit, 1000 to test, default settings
``table``    every packaged set with frames to test: short-range only, kQEq alone, kQEq + short-range with each charge
             model; written as Markdown with ``--figures DIR``, continued where it was interrupted with ``--cache DIR``
``charge_states`` sets of several charge states: what charges bring, and what settings that see more
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator

from ase.io import read

import kqeq
from accuracy_table import CHARGE_STATES, LINES, STATES, TABLE, UNITS, Measured, left_out, markdown, measure
from common import Row, figure_path, main, public, row
from kqeq.cli.demo import ag3_settings
from kqeq.constants import DEBYE


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
    yield row("QM9 dipoles, defaults: fit", seconds, "s", "<= 120")


def table(quick: bool) -> Iterator[Row]:
    results = {}
    for name in ("ag3",) if quick else LINES:
        results[name] = {model: measure(name, model) for model in TABLE}
        for model, found in results[name].items():
            yield from rows(name, model, found)
    missing = ", ".join(f"`{name}` ({purpose})" for name, purpose in left_out().items())
    write("accuracy.md", markdown(results) + f"\nSets without test frames are left out: {missing}.\n")


def write(name: str, text: str) -> None:
    """Print a table and write it where figures go."""
    print(f"\n{text}")
    path = figure_path(name)
    if path is not None:
        path.write_text(text, encoding="utf-8")


def rows(name: str, model: str, found: Measured | None) -> Iterator[Row]:
    for kind, (factor, unit) in UNITS.items():
        if found is not None and kind in found:
            yield row(f"{name} {kind} RMSE, {model}", factor * found[kind], unit)
    if found is not None:
        yield row(f"{name} fit, {model}", found["fit"], "s")


def charge_states(quick: bool) -> Iterator[Row]:
    results = {}
    for name in ("ag3",) if quick else CHARGE_STATES:
        results[name] = {model: measure(name, model) for model in STATES}
        alone = {}
        for model, found in results[name].items():
            yield from rows(name, model, found)
            if found is None:
                continue
            if model.startswith("short-range only"):
                alone[model] = found["forces"]
                continue
            for reference, forces in alone.items():
                target = "<= 0.5" if LINES[name].shared else ""
                yield row(f"{name} forces, {model} / {reference}", found["forces"] / forces, "", target)
    write("charge_states.md", markdown(results))


if __name__ == "__main__":
    warnings.simplefilter("ignore", kqeq.errors.KQEqWarning)
    main(__doc__ or "", {"ag3": ag3, "qm9": qm9, "table": table, "charge_states": charge_states})
