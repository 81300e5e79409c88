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
from kqeq.datasets import split

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
    "short-range only, evidence": {**NO_CHARGES, "optimize": "evidence"},
    "QEq + short-range, evidence": {"optimize": "evidence"},
}
"""Settings beside the defaults; ``optimize`` goes to ``fit``."""

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


def zno_vertical(*charges: int) -> Split:
    """Zn3O3 at geometries of the neutral cluster; these are neutral in ``zno`` and charged in ``zno_vertical``."""
    neutral = split("zno", total_charges=(0,))
    charged = split("zno_vertical", total_charges=charges)
    return neutral[0] + charged[0], neutral[1] + charged[1]


def water_in_field() -> Split:
    """Water in one field to fit, with frames without a field; in another to test."""
    train, test = split("water_field")
    systems = {a.info["system"] for a in train}
    return train + [a for a in split("water")[0] if a.info["system"] in systems], test


def part_of(name: str, train_frames: int, test_frames: int) -> Split:
    """About so many frames, evenly from each group of frames that were made alike."""

    def some(frames: list[Atoms], limit: int) -> list[Atoms]:
        groups: dict[tuple[Any, ...], list[Atoms]] = {}
        for a in frames:
            groups.setdefault((a.info["system"], a.info["total_charge"], a.info["sampling"]), []).append(a)
        every = max(1, round(len(frames) / limit))
        return [a for group in groups.values() for a in group[::every]]

    train, test = split(name)
    return some(train, train_frames), some(test, test_frames)


LINES: Mapping[str, Line] = {
    "ag3": Line("Ag3(+), Ag3(−)", lambda: split("ag3"), shared=True),
    "alkanes": Line("alkanes C2 to C6", lambda: split("alkanes")),
    "carbon_chain": Line("C10H2, C10H3(+)", lambda: split("carbon_chain")),
    "nacl": Line("Na9Cl8(+), Na8Cl8(+)", lambda: split("nacl")),
    "water": Line("(H2O)1–5, H3O(+)", lambda: split("water", method="PBE0/def2-svp")),
    "water_field": Line("(H2O)1–3 in a field of another direction", water_in_field),
    "fields": Line(
        "water, alkanes, ZnO clusters at 0.2, 0.3 V/Å, fitted to ≤ 0.1", lambda: split("fields"), shared=True
    ),
    "nma": Line("N-methylacetamide, without a field and in one", lambda: split("nma")),
    "zno_vertical, anion": Line("Zn3O3 at −1, 0, same geometries", lambda: zno_vertical(-1), shared=True),
    "zno_vertical": Line("Zn3O3 at −1, 0, +1, same geometries", lambda: zno_vertical(-1, 1), shared=True),
    "zno": Line("Zn3O3 at 0, +1, own geometries", lambda: split("zno", method="PBE0/def2-svp"), shared=True),
    "zno, diffuse basis": Line("Zn3O3(−)", lambda: split("zno", method="PBE0/def2-svpd")),
    "zn4o4": Line("Zn4O4 at 0, +1", lambda: split("zn4o4", method="PBE0/def2-svp"), shared=True),
    "zn4o4, diffuse basis": Line("Zn4O4(−)", lambda: split("zn4o4", method="PBE0/def2-svpd")),
    "dissociation": Line(
        "NaCl, LiF, ZnO, (ZnO)2, (H2O)2 pulled apart", lambda: split("dissociation"), shared=True
    ),
    "water_box": Line("32 H2O, periodic (xTB)", lambda: part_of("water_box", 12, 10), PERIODIC),
    "zno_vacancy": Line(
        "O vacancy in ZnO at 0, +1, +2, periodic (xTB)",
        lambda: part_of("zno_vacancy", 32, 24),
        PERIODIC,
        shared=True,
    ),
}

CHARGE_STATES = (
    "ag3",
    "carbon_chain",
    "nacl",
    "water",
    "zno_vertical, anion",
    "zno_vertical",
    "zno",
    "zn4o4",
)
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
        raise ValueError(
            f"{name} mixes {', '.join(sorted(methods))}; energies of two methods cannot be compared"
        )
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
    fitted = kqeq.KQEq(**{k: v for k, v in settings.items() if k != "optimize"}).fit(
        train, optimize=settings.get("optimize")
    )
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
    return {
        name: PURPOSE.get(name, "no purpose given") for name in kqeq.datasets.names() if name not in LINES
    }


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


TABLE = (
    "short-range only",
    "short-range only, forces only",
    "kQEq alone, dipoles only",
    "kQEq alone",
    "QEq + short-range",
    "ACKS2 + short-range",
    "ACKS2 + dipoles + short-range",
    "QEq, hardness by kernel",
)
"""Models of the table over all sets."""

STATES = (
    "short-range only",
    "short-range only, forces only",
    "short-range only, evidence",
    "QEq + short-range",
    "QEq + short-range, evidence",
    "QEq, hardness by kernel",
    "QEq, charge-aware",
    "QEq, both",
)
"""Models of the table over charge states."""

NOT_COLUMNS = ("short-range only, forces only", "kQEq alone, dipoles only")
"""Shown with a column of another name."""


def markdown(results: Mapping[str, Mapping[str, Measured | None]]) -> str:
    """A line for each set, a column for each model, cells of energy / forces / dipole."""
    columns = [c for c in next(iter(results.values())) if c not in NOT_COLUMNS]
    lines = [["set", "systems", "fitted / tested", *columns]]
    lines.append(["---", "---", *["---:"] * (len(lines[0]) - 2)])
    for name, found in results.items():
        forces = {c: f["forces"] for c in columns if (f := found[c]) is not None}
        best = min(forces, key=forces.__getitem__)
        frames = next(f for f in found.values() if f is not None)
        cells = {c: cell(found[c], bold=c == best) for c in columns}
        if (apart := found["short-range only, forces only"]) is not None:
            cells["short-range only"] += f" [{significant(1e3 * apart['forces'], 3)}]"
        if (dipoles := found.get("kQEq alone, dipoles only")) is not None:
            cells["kQEq alone"] += f" [{significant(dipoles['dipole'], 2)}]"
        frames_of = f"{frames['fitted']:.0f} / {frames['tested']:.0f}"
        lines.append([f"`{name}`", LINES[name].what, frames_of, *cells.values()])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n" + NOTES + "\n"


NOTES = """\
Root-mean-square errors on test frames of independent trajectories: energy (meV/atom) / forces (meV/Å) / dipole (e·Å);
the smallest force error is bold. Every line holds frames of one method. In brackets: the force error of a short-range
model fitted to forces alone, where charge states share a composition and positions do not tell their energies apart;
the dipole error of kQEq fitted to dipoles alone."""
