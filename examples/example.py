"""What the examples share: command line, look of the figures, and the two files that each of them writes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # figures go to files; a machine without display will do

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = {
    "reference": "black",
    "short-range": "0.55",
    "QEq": "#0072B2",
    "ACKS2": "#E69F00",
    "ACKS2 + dipoles": "#009E73",
    "QEq + dipoles": "#56B4E9",
    "other": "#CC79A7",
    "highlight": "#D55E00",
}
"""One colour per meaning in all figures (Okabe and Ito's palette, legible with any colour vision)."""

MARKERS = {"reference": "x", "short-range": "s", "QEq": "o", "ACKS2": "^", "ACKS2 + dipoles": "D"}
"""Markers by the same names, so that no figure depends on colours alone."""

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "savefig.dpi": 150,
}


@dataclass(frozen=True)
class Options:
    """What the command line of an example said."""

    output: Path
    quick: bool


def options(description: str | None, argv: Sequence[str] | None = None) -> Options:
    """Read ``--output DIR`` and ``--quick``; the folder is created."""
    parser = argparse.ArgumentParser(description=(description or "").strip().partition("\n")[0])
    parser.add_argument(
        "--output", type=Path, default=Path(), metavar="DIR", help="where figure and table go"
    )
    parser.add_argument("--quick", action="store_true", help="less data or fewer steps, for tests")
    found = parser.parse_args(argv)
    found.output.mkdir(parents=True, exist_ok=True)
    return Options(found.output, found.quick)


def panels(
    n: int = 1, *, width: float = 3.4, height: float = 3.0, **kwargs: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with ``n`` panels in a row, each ``width`` by ``height`` inches; and its axes, always as a list."""
    plt.rcParams.update(STYLE)  # also for what is drawn later: legends, tick labels
    figure, axes = plt.subplots(
        1, n, figsize=(width * n, height), layout="constrained", squeeze=False, **kwargs
    )
    return figure, list(axes[0])


def one_legend(figure: Figure, axis: Axes) -> None:
    """One legend below all panels, with the entries of ``axis``."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))


def short_legend(axis: Axes) -> None:
    """Keep the errors of a parity plot's legend out: tables hold them."""
    for handle in axis.get_lines():
        handle.set_label(str(handle.get_label()).partition(": RMSE")[0])
    legend = axis.get_legend()
    if legend is not None:
        legend.remove()


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]], notes: str = "") -> str:
    """A table in Markdown: numbers as they were formatted, first column to the left, others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row has {len(row)} cells and the header {len(header)}: {row}")
    text = "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
    return text + (f"\n\n{notes.strip()}" if notes.strip() else "") + "\n"


def finish(
    chosen: Options,
    name: str,
    figure: Figure,
    header: Sequence[str],
    rows: Sequence[Sequence[Any]],
    notes: str = "",
) -> None:
    """Write ``NAME.png`` and ``NAME.md`` and print the table."""
    table = markdown(header, rows, notes)
    figure.savefig(chosen.output / f"{name}.png")
    plt.close(figure)
    (chosen.output / f"{name}.md").write_text(table, encoding="utf-8")
    print(table)
    print(f"written: {chosen.output / name}.png and .md")
