"""One table over all packaged data sets: which lines, which models, and fits that are not repeated.

A line holds frames of one method, because energies of two basis sets cannot be compared; what a line leaves out it says.
All models of a line have the same settings, the defaults; periodic cells, which are large, take smaller kernels and
fewer frames.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms

import kqeq
from common import cache_path

Split = tuple[list[Atoms], list[Atoms]]
Measured = dict[str, float]

NO_CHARGES = {"electronegativity": None, "charges": None}

MODELS: Mapping[str, Mapping[str, Any]] = {
    "short-range only": NO_CHARGES,
    "short-range only, forces only": {**NO_CHARGES, "targets": ["forces"]},
    "kQEq alone, dipoles only": {"short_range": None, "targets": ["dipole"]},
    "kQEq alone": {"short_range": None},
    "QEq + short-range": {},
    "ACKS2 + short-range": {"charges": kqeq.ACKS2()},
    "ACKS2 + dipoles + short-range": {"charges": kqeq.AtomicDipoles(kqeq.ACKS2())},
    "QEq, hardness by kernel": {"charges": kqeq.QEq(hardness="kernel")},
    "QEq, charge-aware": {"charge_aware": kqeq.ChargeKernel()},
    "QEq, both": {"charges": kqeq.QEq(hardness="kernel"), "charge_aware": kqeq.ChargeKernel()},
}
"""Settings beside the defaults."""

PERIODIC = {
    "electronegativity": kqeq.SOAPKernel(
        r_cut=4.0, n_max=6, l_max=4, sigma=0.5, zeta=2, n_representatives=100
    ),
    "short_range": kqeq.SOAPKernel(r_cut=4.0, n_max=6, l_max=4, sigma=0.5, zeta=2, n_representatives=150),
}
"""Kernels for cells of some hundred atoms: those of ``benchmarks/periodic.py``."""

UNITS = {"energy": (1e3, "meV/atom"), "forces": (1e3, "meV/Å"), "dipole": (1.0, "e·Å")}


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes
    ----------
    what : str
        The systems, for readers.
    frames : callable
        Training and test frames.
    settings : mapping
        Beside the defaults, for every model of the line.
    shared : bool
        Whether charge states share a composition, so that positions do not tell their energies apart.
    """

    what: str
    frames: Callable[[], Split]
    settings: Mapping[str, Any] = field(default_factory=dict)
    shared: bool = False


def of(name: str, *, method: str | None = None) -> Split:
    """Training and test frames of a packaged set, of one method if it is named."""
    train, test = (
        [a for a in part if method in (None, a.info["method"])] for part in kqeq.datasets.split(name)
    )
    return train, test


def zno() -> Split:
    """Zn3O3 at −1, 0 and +1 in one basis; the anions are those of ``zno_vertical``."""
    train, test = of("zno", method="PBE0/def2-svp")
    more, vertical = kqeq.datasets.split("zno_vertical")
    return train + more, test + vertical


def water_in_field() -> Split:
    """Water in one field to fit, with frames without a field; in another to test."""
    train, test = of("water_field")
    systems = {a.info["system"] for a in train}
    return train + [a for a in of("water")[0] if a.info["system"] in systems], test


def thinned(name: str, train_every: int, test_every: int) -> Split:
    """Every so many-th frame of each group of frames that were made alike."""

    def some(frames: list[Atoms], every: int) -> list[Atoms]:
        groups: dict[tuple[Any, ...], list[Atoms]] = {}
        for a in frames:
            groups.setdefault((a.info["system"], a.info["total_charge"], a.info["sampling"]), []).append(a)
        return [a for group in groups.values() for a in group[::every]]

    train, test = of(name)
    return some(train, train_every), some(test, test_every)


LINES: Mapping[str, Line] = {
    "ag3": Line("Ag3(+), Ag3(−)", lambda: of("ag3"), shared=True),
    "alkanes": Line("alkanes C2 to C6", lambda: of("alkanes")),
    "carbon_chain": Line("C10H2, C10H3(+)", lambda: of("carbon_chain")),
    "nacl": Line("Na9Cl8(+), Na8Cl8(+)", lambda: of("nacl")),
    "water": Line("(H2O)1–5, H3O(+)", lambda: of("water", method="PBE0/def2-svp")),
    "water_field": Line("(H2O)1–3 in a field of another direction", water_in_field),
    "fields": Line("water, alkanes at 0.3 V/Å, fitted to ≤ 0.1", lambda: of("fields")),
    "zno + zno_vertical": Line("Zn3O3 at −1, 0, +1", zno, shared=True),
    "zno, anion": Line("Zn3O3(−), diffuse basis", lambda: of("zno", method="PBE0/def2-svpd")),
    "zn4o4": Line("Zn4O4 at 0, +1", lambda: of("zn4o4", method="PBE0/def2-svp"), shared=True),
    "dissociation": Line("NaCl, LiF, (H2O)2 pulled apart", lambda: of("dissociation")),
    "water_box": Line("32 H2O, periodic (xTB)", lambda: thinned("water_box", 10, 3), PERIODIC),
    "zno_vacancy": Line(
        "O vacancy in ZnO at 0, +1, +2, periodic (xTB)",
        lambda: thinned("zno_vacancy", 8, 3),
        PERIODIC,
        shared=True,
    ),
}

CHARGE_STATES = ("ag3", "carbon_chain", "nacl", "water", "zno + zno_vertical", "zn4o4")
"""Lines of several charge states without periodic cells."""


def without_field(frames: list[Atoms]) -> list[Atoms]:
    """Frames as a model without charges can read them."""
    bare = []
    for atoms in frames:
        copy = atoms.copy()
        copy.calc = atoms.calc
        copy.info["external_field"] = np.zeros(3)
        bare.append(copy)
    return bare


def measure(name: str, model: str) -> Measured | None:
    """Root-mean-square errors of a model on a line, and the time of its fit; None where it has no meaning.

    Kept in the folder ``--cache``, under a name that holds settings and frames but not the code: empty it after changes
    to that.
    """
    line = LINES[name]
    train, test = line.frames()
    methods = {a.info["method"] for a in train + test}
    if len(methods) != 1:
        raise ValueError(f"{name} mixes {', '.join(sorted(methods))}; energies of two methods cannot be compared")
    if not line.shared and model == "short-range only, forces only":
        return None
    if "dipole" not in train[0].calc.results and MODELS[model].get("targets") == ["dipole"]:
        return None
    if MODELS[model].get("charges", "") is None:
        train, test = without_field(train), without_field(test)
    settings = {**line.settings, **MODELS[model]}
    kept = cache_path(f"{name} {model} {_fingerprint(settings, train, test)}.json")
    if kept is not None and kept.exists():
        return dict(json.loads(kept.read_text()))
    started = time.process_time()
    fitted = kqeq.KQEq(**settings).fit(train)
    found: Measured = {"fit": time.process_time() - started, "fitted": len(train), "tested": len(test)}
    found |= {kind: errors.rmse for kind, errors in fitted.evaluate(test).items() if kind in UNITS}
    if "forces" not in found or MODELS[model].get("targets") == ["dipole"]:
        found = {k: v for k, v in found.items() if k not in ("energy", "forces")}
    if MODELS[model].get("targets") == ["forces"]:
        found.pop("energy", None)
    if kept is not None:
        kept.write_text(json.dumps(found))
    return found


def _fingerprint(settings: Mapping[str, Any], train: list[Atoms], test: list[Atoms]) -> str:
    digest = hashlib.sha256(repr(sorted(settings.items())).encode())
    for atoms in [*train, *test]:
        digest.update(atoms.positions.tobytes() + repr(atoms.info["total_charge"]).encode())
        digest.update(np.asarray(atoms.get_forces()).tobytes())
    return digest.hexdigest()[:12]


def left_out() -> dict[str, str]:
    """Packaged sets that have no line, and what they are for."""
    shown = {"zno", "zno_vertical", *LINES}
    return {name: PURPOSE[name] for name in kqeq.datasets.names() if name not in shown}


PURPOSE = {
    "polarizability": "polarizabilities",
    "relaxed": "minima",
    "vibrations": "Hessians",
}


def significant(value: float | None, digits: int) -> str:
    """A number with so many significant digits and no exponent."""
    if value is None:
        return "–"
    rounded = float(f"{value:.{digits}g}")
    decimals = max(0, digits - 1 - int(np.floor(np.log10(abs(rounded))))) if rounded else 0
    return f"{rounded:.{decimals}f}"


def cell(found: Measured | None, bold: bool = False) -> str:
    """Energy / forces / dipole, as far as they were measured."""
    if found is None:
        return "–"
    parts = [
        significant(1e3 * found["energy"] if "energy" in found else None, 2),
        significant(1e3 * found["forces"] if "forces" in found else None, 3),
    ]
    if bold:
        parts[1] = f"**{parts[1]}**"
    return " / ".join([*parts, significant(found["dipole"], 2)] if "dipole" in found else parts)


COLUMNS = (
    "short-range only",
    "kQEq alone",
    "QEq + short-range",
    "ACKS2 + short-range",
    "ACKS2 + dipoles + short-range",
    "QEq, hardness by kernel",
    "QEq, charge-aware",
)
"""Columns of the Markdown table beside those with a rule of their own."""


def markdown(results: Mapping[str, Mapping[str, Measured | None]]) -> str:
    """The table: a line for each set, cells of energy / forces / dipole."""
    header = ["set", "systems", "fitted / tested", "dipoles only: kQEq alone", *COLUMNS]
    lines = [header, ["---", "---", *["---:"] * (len(header) - 2)]]
    for name, found in results.items():
        forces = {c: f["forces"] for c in COLUMNS if (f := found[c]) is not None and "forces" in f}
        best = min(forces, key=forces.__getitem__)
        alone = found["short-range only"]
        assert alone is not None
        cells = {c: cell(found[c], bold=c == best) for c in COLUMNS}
        if (apart := found["short-range only, forces only"]) is not None:
            cells["short-range only"] += f" (forces only: {significant(1e3 * apart['forces'], 3)})"
        dipoles = found["kQEq alone, dipoles only"]
        lines.append(
            [
                f"`{name}`",
                LINES[name].what,
                f"{alone['fitted']:.0f} / {alone['tested']:.0f}",
                "–" if dipoles is None else significant(dipoles["dipole"], 2),
                *cells.values(),
            ]
        )
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    missing = ", ".join(f"`{name}` ({what})" for name, what in left_out().items())
    return f"""{table}

Root-mean-square errors on test frames of independent trajectories: energy (meV/atom) / forces (meV/Å) / dipole (e·Å), smallest
force error in bold. Every line holds frames of one method. Without test frames of their own and left out: {missing}.
"""
