"""What every benchmark script shares: rows, the table, the command line, where public data lie."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]

PUBLIC_DATA = Path(
    os.environ.get(
        "KQEQ_BENCHMARK_DATA", Path(__file__).resolve().parents[1].parent / "shared" / "benchmarks"
    )
)
"""Public data sets that are not part of the project (see docs/performance.md)."""

_figures: list[Path] = []
_cache: list[Path] = []


def row(name: str, value: float | None, unit: str, target: str = "") -> Row:
    """One measured number; ``target`` as the issue states it, for example ``"<= 2"`` or ``"in 58..78"``."""
    return {"name": name, "value": value, "unit": unit, "target": target}


def public(name: str) -> Path | None:
    """Path of a public data file, or None with a message if it is not there."""
    path = PUBLIC_DATA / name
    if path.exists():
        return path
    print(f"skipped: {path} is not there (set KQEQ_BENCHMARK_DATA to the folder that holds {name})")
    return None


def figure_path(name: str) -> Path | None:
    """Where a figure goes, or None if figures were not asked for."""
    for folder in _figures:
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name
    return None


def cache_path(name: str) -> Path | None:
    """Where something that took long is kept for the next run, or None if that was not asked for."""
    for folder in _cache:
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name
    return None


def met(item: Row) -> str:
    """Whether a row meets its target."""
    target, value = item["target"], item["value"]
    if not target or value is None:
        return ""
    sign, number = target.split()
    if sign == "in":
        low, high = map(float, number.split(".."))
        return "ok" if low <= value <= high else "MISSED"
    good = {"<=": value <= float(number), ">=": value >= float(number), "<": value < float(number)}[sign]
    return "ok" if good else "MISSED"


def show(rows: Iterable[Row]) -> None:
    """Print rows as a table."""
    for item in rows:
        value = "not run" if item["value"] is None else f"{item['value']:.4g}"
        print(f"{item['name']:<72}{value:>12} {item['unit']:<12}{item['target']:>10} {met(item)}", flush=True)


def main(
    description: str, sections: dict[str, Callable[[bool], Iterable[Row]]], argv: list[str] | None = None
) -> list[Row]:
    """Run the sections that are asked for and write their rows.

    Parameters
    ----------
    description : str
    sections : dict
        Name to function; each takes ``quick`` and yields rows.
    """
    parser = argparse.ArgumentParser(description=description.strip().splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer repetitions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    parser.add_argument("--only", nargs="+", choices=sorted(sections), help="run these sections only")
    parser.add_argument(
        "--figures",
        type=Path,
        metavar="DIR",
        help="write figures and tables, where sections have some, to DIR",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="keep finished fits, where sections can, in DIR and continue there",
    )
    options = parser.parse_args(argv)
    _figures[:] = [options.figures] if options.figures else []
    _cache[:] = [options.cache] if options.cache else []
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    rows: list[Row] = []
    for name, section in sections.items():
        if options.only and name not in options.only:
            continue
        print(f"\n{name}")
        for item in section(options.quick):
            show([item])
            rows.append(item)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return rows
