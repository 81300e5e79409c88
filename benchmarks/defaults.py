"""What fits without a setting reach: packaged sets and public ones, short-range only and with charges.

    python benchmarks/defaults.py --json rows.json
    python benchmarks/defaults.py --only ag3 water --quick       # the default with and without charges, nothing else

Frames are those of the lines of ``accuracy_table.py``; settings come from training frames alone.  Every row says what
it took in CPU seconds; ``calibration`` rows say how many labels lie within one and two standard deviations.  ``auto``
rows are ``charges="auto"``, on small sets; ``fresh`` rows are fits to the frames that the other rows test, tested on
those that they fit: the kernels and rules of the search were chosen with the test errors of the other rows in sight.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read

import kqeq
from accuracy_table import LINES, part_of, without_field
from common import Row, main, public, row
from kqeq.constants import DEBYE
from kqeq.errors import KQEqWarning

Split = tuple[list[Atoms], list[Atoms]]

NO_CHARGES: dict[str, Any] = {"electronegativity": None, "charges": None, "targets": ["energy", "forces"]}

TARGETS = {
    "ag3": (9, 8),
    "alkanes": (40, 37),
    "carbon_chain": (160, 110),
    "nacl": (75, 70),
    "water": (65, 48),
    "water_box": (80, 75),
    "zno_vertical, anion": (None, 60),
}
"""meV/Å without and with charges, from the issue."""

AUTO = (
    "ag3",
    "alkanes",
    "carbon_chain",
    "nacl",
    "water",
    "zno_vertical, anion",
    "zno_vertical",
    "zno, diffuse basis",
    "zn4o4",
    "zn4o4, diffuse basis",
)
"""Lines on which ``charges="auto"`` is measured: those of a few minutes."""

FRESH = ("ag3", "alkanes", "carbon_chain", "nacl", "water", "zno_vertical, anion")
"""Lines whose test frames are enough to be fitted."""

PUBLIC_TARGETS = {"dipeptides": (160, 130), "carbon_chain_4g": (None, 45), "au2_mgo": (None, 45)}


def _every_fourth(name: str) -> Split | None:
    path = public(name)
    if path is None:
        return None
    frames = read(path, ":")
    return [a for i, a in enumerate(frames) if i % 4 != 3], frames[3::4]


def _dipeptides() -> Split | None:
    paths = public("dipeptides_train.xyz"), public("dipeptides_val.xyz")
    if paths[0] is None or paths[1] is None:
        return None
    frames = read(paths[0], ":")
    chosen = np.random.default_rng(0).permutation(len(frames))[:100]
    return [frames[i] for i in chosen], read(paths[1], ":")


def _fit(model: kqeq.KQEq, train: list[Atoms]) -> tuple[float, float]:
    """Fit; CPU and wall seconds."""
    started = time.process_time(), time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KQEqWarning)
        model.fit(train)
    return time.process_time() - started[0], time.perf_counter() - started[1]


def _rows(
    name: str, what: str, model: kqeq.KQEq, split: Split, target: float | None, *, calibration: bool
) -> Iterator[Row]:
    cpu, _ = _fit(model, split[0])
    errors = model.evaluate(split[1], calibration=calibration)
    start = f"{name}: {what}"
    limit = "" if target is None else f"<= {target}"
    if "forces" in errors:
        yield row(f"{start}, forces", 1e3 * errors["forces"].rmse, "meV/Å", limit)
    if "energy" in errors:
        yield row(f"{start}, energy", 1e3 * errors["energy"].rmse, "meV/atom")
    if "dipole" in errors:
        yield row(f"{start}, dipole", errors["dipole"].rmse, "e·Å")
    for note in model.fit_report_.notes:
        if "left-out" in note:
            print(f"    {note}")
    if "energy" in errors:
        yield row(f"{start}, prediction", errors.milliseconds, "ms/atom")
    for kind, found in (errors.calibration or {}).items() if calibration else ():
        yield row(f"{start}, {kind}, within 68 %", 100.0 * found.within_68, "%", "in 58..78")
        yield row(f"{start}, {kind}, within 95 %", 100.0 * found.within_95, "%", "in 90..99")
        yield row(f"{start}, {kind}, mean z²", found.mean_z2, "")
    yield row(f"{start}, CPU", cpu, "s")


def _line(name: str, frames: Callable[[], Split]) -> Callable[[bool], Iterator[Row]]:
    """Rows of a line of the accuracy table; the default with and without charges only, if it should be quick."""

    def section(quick: bool) -> Iterator[Row]:
        split, (without, charged) = frames(), TARGETS.get(name, (None, None))
        calibration = not quick and len(split[1]) >= 30
        for what, model, target in (
            ("short-range", kqeq.KQEq(**NO_CHARGES), without),
            ("QEq", kqeq.KQEq(), charged),
        ):
            own = split
            if model.charges is None:
                own = without_field(split[0]), without_field(split[1])
            yield from _rows(name, what, model, own, target, calibration=calibration)
        if quick:
            return
        if name in FRESH:
            for what, model in (("short-range", kqeq.KQEq(**NO_CHARGES)), ("QEq", kqeq.KQEq())):
                yield from _rows(f"{name}, fresh", what, model, split[::-1], None, calibration=False)
        if name in AUTO:
            plain, _ = _fit(kqeq.KQEq(optimize=None), split[0])
            model = kqeq.KQEq(charges="auto")
            yield from _rows(name, "auto", model, split, None, calibration=False)
            print("    " + str(model.comparison_).replace("\n", "\n    "))
            yield row(f"{name}: auto / plain fit, CPU", model.comparison_.seconds / plain, "", "<= 15")

    return section


def qm9(quick: bool) -> Iterator[Row]:
    """Dipoles of molecules."""
    paths = public("qm9_dipoles_train.xyz"), public("qm9_dipoles_val.xyz")
    if paths[0] is None or paths[1] is None:
        return
    train, test = read(paths[0], ":"), read(paths[1], ":")
    for charges, target, limit in (("default", 0.22, 120), ("auto", 0.20, 600)):
        if quick and charges == "auto":
            continue
        model = kqeq.KQEq(short_range=None, targets=["dipole"], charges=charges)
        cpu, _ = _fit(model, train)
        error = model.evaluate(test)["dipole"].mae_norm
        assert error is not None
        what = charges
        if charges == "auto":
            print("    " + str(model.comparison_).replace("\n", "\n    "))
        yield row(f"qm9: {what}, mean error of |dipole|", error / DEBYE, "D", f"<= {target}")
        yield row(f"qm9: {what}, CPU", cpu, "s", f"<= {limit}")


def _public(name: str, frames: Callable[[], Split | None]) -> Callable[[bool], Iterator[Row]]:
    """Rows of a public set, where it is there."""

    def section(quick: bool) -> Iterator[Row]:
        split = frames()
        if split is None:
            return
        without, charged = PUBLIC_TARGETS[name]
        yield from _rows(name, "short-range", kqeq.KQEq(**NO_CHARGES), split, without, calibration=False)
        yield from _rows(name, "QEq", kqeq.KQEq(), split, charged, calibration=False)

    return section


SECTIONS: dict[str, Callable[[bool], Iterator[Row]]] = {
    **{name: _line(name, line.frames) for name, line in LINES.items()},
    "water_box, all": _line("water_box, all", lambda: part_of("water_box", 270, 30)),
    "qm9": qm9,
    "dipeptides": _public("dipeptides", _dipeptides),
    "carbon_chain_4g": _public("carbon_chain_4g", lambda: _every_fourth("carbon_chain_4g.xyz")),
    "au2_mgo": _public("au2_mgo", lambda: _every_fourth("au2_mgo.xyz")),
}

if __name__ == "__main__":
    main(__doc__ or "", SECTIONS)
