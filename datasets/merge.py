#!/usr/bin/env python3
"""Merge new frames into the data sets and keep README.md and SHA256SUMS true.

    python merge.py [SOURCE.xyz ...]     merge frames into the data set of the same file name
    python merge.py --new SOURCE.xyz     the same, and begin a data set where there is none of that name
    python merge.py --replace SOURCE.xyz the same, and drop labels of another method for the same frames
    python merge.py --check              only say whether everything is in order (exit status 1 if not)

Frames are moved as text, so no digit of a label changes.  The order is canonical: systems as listed in
``generate.py`` (others after them, by name), then seed, then the order of the frames in their files (what
is here already comes first).  A frame whose system, seed, method, field and geometry are here already is
skipped, and so is an incomplete frame at the end of a file that is still being written.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.io.extxyz import key_val_str_to_dict
from generate import SAME_GEOMETRY, SYSTEMS

HERE = Path(__file__).resolve().parent
CHECKSUMS = "SHA256SUMS"
BEGIN, END = "<!-- counts: begin (written by merge.py) -->", "<!-- counts: end -->"


@dataclass(frozen=True)
class Frame:
    """One frame of an extended XYZ file, as text."""

    text: str
    system: str
    seed: int
    info: dict
    symbols: tuple[str, ...]
    positions: np.ndarray

    def repeats(self, other: Frame) -> bool:
        """Whether this is the same calculation (labels may differ by rounding if it was run twice)."""
        return self.info.get("method") == other.info.get("method") and self.relabels(other)

    def relabels(self, other: Frame) -> bool:
        """Whether this is the same frame, labelled with whatever method."""
        same = self.symbols == other.symbols and self._conditions == other._conditions
        return same and bool(np.abs(self.positions - other.positions).max() < SAME_GEOMETRY)

    @property
    def _conditions(self) -> tuple:
        keys = ("total_charge", "multiplicity", "geometry")
        return (self.system, self.seed, field_of(self), *(self.info.get(key) for key in keys))


def read_frames(path: Path) -> list[Frame]:
    """Frames of a file; an incomplete last frame is left out with a notice."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    frames, start = [], 0
    while start < len(lines) and lines[start].strip():
        n = int(lines[start])
        block = lines[start : start + n + 2]
        columns = [line.split() for line in block[2:]]
        width = len(columns[0]) if columns else 0
        if len(block) < n + 2 or not block[-1].endswith("\n") or any(len(c) != width for c in columns):
            print(f"{path.name}: the last frame is incomplete and left out", file=sys.stderr)
            break
        info = key_val_str_to_dict(block[1])
        frames.append(
            Frame(
                text="".join(block),
                system=str(info["system"]),
                seed=int(info["seed"]),
                info=info,
                symbols=tuple(c[0] for c in columns),
                positions=np.array([c[1:4] for c in columns], dtype=float),
            )
        )
        start += n + 2
    return frames


def canonical(frames: list[Frame]) -> list[Frame]:
    """Frames without repetitions in canonical order."""
    groups: dict[tuple[str, int], list[Frame]] = {}
    for frame in frames:
        group = groups.setdefault((frame.system, frame.seed), [])
        if not any(frame.repeats(other) for other in group):
            group.append(frame)
    rank = {system: i for i, system in enumerate(SYSTEMS)}
    keys = sorted(groups, key=lambda key: (rank.get(key[0], len(rank)), *key))
    return [frame for key in keys for frame in groups[key]]


def data_files() -> list[Path]:
    """The data sets, by name."""
    return sorted(HERE.glob("*.xyz"))


def field_of(frame: Frame) -> tuple[float, ...]:
    """The static field of a frame."""
    return tuple(float(x) for x in frame.info.get("external_field", (0.0, 0.0, 0.0)))


def fields_cells(frames: list[Frame]) -> dict[str, str]:
    """For systems in more than two fields, the strengths: the vectors would be too many."""
    fields: dict[str, set] = {}
    for frame in frames:
        fields.setdefault(frame.system, set()).add(field_of(frame))
    strengths = {
        system: {round(float(np.linalg.norm(f)), 4) for f in some} for system, some in fields.items()
    }
    return {
        system: "strengths " + ", ".join(f"{x:g}" for x in sorted(strengths[system]))
        for system, some in fields.items()
        if len(some) > 2
    }


def counts_table() -> str:
    """Markdown table of systems and their frames by seed."""
    rows = [
        "| file | system | atoms | total charge | field (V/Å) | method | frames by seed | frames |",
        "|---|---|---|---|---|---|---|---|",
    ]
    total = 0
    for path in data_files():
        groups: dict[tuple, Counter] = {}
        frames = read_frames(path)
        strengths = fields_cells(frames)
        for frame in frames:
            key = (
                frame.system,
                len(frame.symbols),
                f"{frame.info['total_charge']:+d}" if frame.info["total_charge"] else "0",
                strengths.get(frame.system, " ".join(f"{x:g}" for x in field_of(frame))),
                frame.info["method"],
            )
            groups.setdefault(key, Counter())[frame.seed] += 1
        for (system, atoms, charge, field, method), seeds in groups.items():
            by_seed = ", ".join(f"{seed}: {n}" for seed, n in sorted(seeds.items()))
            n = seeds.total()
            total += n
            rows.append(
                f"| {path.name} | {system} | {atoms} | {charge} | {field} | {method} | {by_seed} | {n} |"
            )
    rows.append(f"| all | | | | | | | {total} |")
    return "\n".join(rows)


def readme_text() -> str:
    """README.md with a true table."""
    text = (HERE / "README.md").read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{counts_table()}\n\n{END}{after}"


def checksums_text() -> str:
    """SHA256SUMS in the format of sha256sum."""
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in data_files())


def replace(path: Path, text: str) -> None:
    """Write a file in one step."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def problems() -> list[str]:
    """What ``merge.py`` would change."""
    found = []
    for path in data_files():
        frames = read_frames(path)
        if "".join(f.text for f in canonical(frames)) != path.read_text(encoding="utf-8"):
            found.append(f"{path.name} is not in canonical order, holds repetitions or is incomplete")
    if (HERE / "README.md").read_text(encoding="utf-8") != readme_text():
        found.append("the table in README.md is out of date")
    checksums = HERE / CHECKSUMS
    if not checksums.exists() or checksums.read_text(encoding="utf-8") != checksums_text():
        found.append(f"{CHECKSUMS} is out of date")
    return found


def relabelled(before: list[Frame], offered: list[Frame]) -> list[Frame]:
    """Frames, with the offered ones in the places of those that they label with another method."""
    out = []
    for frame in before:
        better = next((f for f in offered if f.system == frame.system and f.relabels(frame)), None)
        out.append(better or frame)
    return out


def merge(sources: list[Path], new: bool = False, relabel: bool = False) -> None:
    """Merge sources, put every data set in canonical order, and renew README.md and SHA256SUMS."""
    by_name: dict[str, list[Path]] = {path.name: [] for path in data_files()}
    for source in sources:
        if source.name not in by_name and not new:
            print(f"{source}: no data set of that name, left out; --new begins one", file=sys.stderr)
            continue
        by_name.setdefault(source.name, []).append(source)
    # everything is read and sorted before anything is written, so that a faulty source changes nothing
    changes = []
    for name, paths in by_name.items():
        target = HERE / name
        before = read_frames(target) if target.exists() else []
        offered = [frame for path in paths for frame in read_frames(path)]
        after = canonical([*(relabelled(before, offered) if relabel else before), *offered])
        text = "".join(frame.text for frame in after)
        if after and not (target.exists() and text == target.read_text(encoding="utf-8")):
            changes.append((target, text, f"{name}: {len(before)} -> {len(after)} frames"))
    for target, text, message in changes:
        replace(target, text)
        print(message)
    replace(HERE / "README.md", readme_text())
    replace(HERE / CHECKSUMS, checksums_text())


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="*", type=Path)
    parser.add_argument("--new", action="store_true")
    parser.add_argument("--replace", action="store_true")
    parser.add_argument("--check", action="store_true")
    a = parser.parse_args()
    if not a.check:
        merge(a.sources, a.new, a.replace)
    found = problems()
    for problem in found:
        print(f"{problem}: run merge.py", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
