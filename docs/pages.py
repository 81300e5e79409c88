"""Pages that follow from the sources: tutorials from the examples, command line and API reference from the package."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import inspect
import re
from pathlib import Path

MODULES = {
    "kqeq": "What most users need",
    "kqeq.analysis": "Questions about charged systems and fields, one call each",
    "kqeq.datasets": "Packaged data",
    "kqeq.charges": "Charge models and what belongs to them",
    "kqeq.kernels.charge_kernel": "A short-range energy that sees charges",
    "kqeq.analysis.optimization": "Geometry optimisation",
    "kqeq.analysis.plots": "Figures",
    "kqeq.model.config": "Settings files",
    "kqeq.engines.ipi": "i-PI",
    "kqeq.engines.lammps": "LAMMPS",
    "kqeq.uncertainty.guard": "Leaving the training data",
    "kqeq.baselines": "Baselines",
    "kqeq.descriptors.networks": "Features of trained networks",
    "kqeq.elements": "Parameters by element",
    "kqeq.fitting.learning": "Element parameters from polarizabilities",
    "kqeq.fitting.metrics": "Errors",
    "kqeq.fitting.report": "What a fit reports",
    "kqeq.constants": "Constants",
    "kqeq.errors": "Exceptions and warnings",
}
"""Public modules in the order of the reference; those that this version does not have are left out."""

TASKS = {
    "Fit, predict, keep": [
        "kqeq.KQEq",
        "kqeq.SOAPKernel",
        "kqeq.NetworkKernel",
        "kqeq.Prediction",
        "kqeq.load",
        "kqeq.select",
        "kqeq.DiskCache",
        "kqeq.read",
    ],
    "Run with ASE": ["kqeq.KQEqCalculator", "kqeq.analysis.optimize", "kqeq.analysis.Optimization"],
    "Run with other programs": [
        "kqeq.engines.ipi.serve",
        "kqeq.engines.lammps.LAMMPSDriver",
        "kqeq.engines.lammps.create",
        "kqeq.ExternalCharges",
    ],
    "Choose how charge moves": [
        "kqeq.QEq",
        "kqeq.ACKS2",
        "kqeq.AtomicDipoles",
        "kqeq.ChargeKernel",
        "kqeq.compare",
        "kqeq.model.comparison.Comparison",
        "kqeq.groups",
        "kqeq.fitting.learning.learn_from_polarizabilities",
    ],
    "Start from what is known": [
        "kqeq.baselines.TightBinding",
        "kqeq.baselines.ASE",
        "kqeq.choose_charge_from",
    ],
    "Ask for responses": [
        "kqeq.analysis.polarizability",
        "kqeq.analysis.born_charges",
        "kqeq.analysis.infrared",
        "kqeq.analysis.charge_response",
        "kqeq.analysis.electrostatic_potential",
        "kqeq.analysis.potential_grid",
    ],
    "Change charge, field, distance": [
        "kqeq.analysis.ionization",
        "kqeq.analysis.charge_scan",
        "kqeq.analysis.field_scan",
        "kqeq.analysis.dissociation_scan",
    ],
    "Doubt": ["kqeq.analysis.diagnose", "kqeq.analysis.check_consistency"],
    "Data": ["kqeq.datasets.load", "kqeq.datasets.split"],
}
"""What users want to do, and the names for it: the first table of the reference."""

BACKGROUND = (
    "kqeq.frames.site_data",
    "kqeq.charges.softness",
    "kqeq.charges.parameters",
    "kqeq.uncertainty.posterior",
    "kqeq.fitting.evidence.hyperparameters",
    "kqeq.uncertainty.selection",
    "kqeq.descriptors.soap.descriptor",
)
"""Modules whose docstrings explain what others use; shown as they are written."""

SKLEARN = ("set_fit_request", "set_predict_request", "set_score_request", "get_metadata_routing")
"""What scikit-learn adds to every estimator and documents itself."""


def write_pages(docs: Path) -> None:
    """Write every generated page below ``docs``; pages that did not change keep their time stamps."""
    tutorials(docs, docs.parent / "examples")
    command_line(docs)
    api(docs)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


# ------------------------------------------------------------------ tutorials


def tutorials(docs: Path, examples: Path) -> None:
    """One page for every example: its docstring, its figure, its table, its source."""
    names, cards = [], []
    for script in sorted(examples.glob("[0-9][0-9]_*.py")):
        title, text = _docstring(script)
        for kind in ("png", "md"):
            made = docs / "generated" / f"{script.stem}.{kind}"
            if not made.exists():
                raise FileNotFoundError(
                    f"{made} is missing: python examples/run_all.py --output docs/generated {script.stem}"
                )
        names.append(script.stem)
        cards.append(_card(script.stem, title, text))
        _write(
            docs / "tutorials" / f"{script.stem}.md",
            f"""# {title}

{text}

```{{figure}} ../generated/{script.stem}.png
:alt: {title}
:width: 100%
```

```{{include}} ../generated/{script.stem}.md
```

## The script

`python examples/{script.name}`

```{{literalinclude}} ../../examples/{script.name}
:language: python
:lines: {_code_starts(script)}-
```
""",
        )
    _write(
        docs / "generated" / "gallery.md",
        "\n".join(["::::{grid} 1 2 2 3", ":gutter: 3", "", *cards, "::::", ""]),
    )
    for old in (docs / "tutorials").glob("[0-9][0-9]_*.md"):
        if old.stem not in names:
            old.unlink()


def _card(name: str, title: str, text: str) -> str:
    """A thumbnail that leads to a tutorial, with its first sentence."""
    first = re.split(r"(?<=[.:;])\s", " ".join(text.split("\n\n", maxsplit=1)[0].split()), maxsplit=1)[0]
    return (
        f":::{{grid-item-card}} {title}\n:img-top: ../generated/{name}.png\n:link: {name}\n:link-type: doc\n\n"
        f"{first.rstrip(':;')}\n:::\n"
    )


def _code_starts(script: Path) -> int:
    """The line behind the docstring, which the page has printed already."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    return int(tree.body[1].lineno)


def _docstring(script: Path) -> tuple[str, str]:
    """Title and text of a script's docstring, which is Markdown."""
    text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    title, _, rest = text.partition("\n")
    if not title:
        raise ValueError(f"{script} has no docstring; its first line is the title of the tutorial")
    return title.rstrip("."), rest.strip()


# --------------------------------------------------------------- command line


def command_line(docs: Path) -> None:
    """The help text of every command, as the parser prints it."""
    from kqeq.cli import build_parser

    parser = build_parser()
    parts = [_help(parser)]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            parts += [f"## kqeq {name}\n\n{_help(child)}" for name, child in action.choices.items()]
    _write(docs / "cli_reference.md", "# Options of every command\n\n" + "\n".join(parts))


def _help(parser: argparse.ArgumentParser) -> str:
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, max_help_position=28, width=100)
    text = re.sub(r"\x1b\[[0-9;]*m", "", parser.format_help())  # newer argparse colours its help
    return f"```text\n{text.strip()}\n```\n"


# ------------------------------------------------------------------------ API


def api(docs: Path) -> None:
    """One page for every public module, with the names of its ``__all__``."""
    rows, entries = [], []
    seen: set[int] = set()
    for name, what in MODULES.items():
        if not _exists(name):
            continue
        page = name.replace(".", "_")
        rows.append(f"| [`{name}`](api/{page}.md) | {what} |")
        entries.append(f"api/{page}")
        module = importlib.import_module(name)
        directives = [f".. py:module:: {name}"]
        for member in module.__all__:
            value = getattr(module, member)
            if not inspect.ismodule(value):
                directives.append(_directive(name, member, value, first=id(value) not in seen))
                seen.add(id(value))
        text = "\n\n".join(directives)
        _write(docs / "api" / f"{page}.md", f"# {name}\n\n{what}.\n\n```{{eval-rst}}\n{text}\n```\n")
    rows.append("| [Background](api/background.md) | What some modules say about themselves |")
    parts = [
        f"## {name}\n\n```{{eval-rst}}\n.. py:module:: {name}\n```\n\n"
        f"```text\n{inspect.getdoc(importlib.import_module(name))}\n```\n"
        for name in BACKGROUND
        if _exists(name) and name not in MODULES
    ]
    _write(docs / "api" / "background.md", "# Background\n\n" + "\n".join(parts))
    table = "\n".join(["| module | |", "|---|---|", *rows])
    tree = "\n".join(["```{toctree}", ":hidden:", "", *entries, "api/background", "```"])
    tasks = "\n".join(
        ["| I want to | |", "|---|---|"]
        + [f"| {task} | {', '.join(map(_link, names))} |" for task, names in TASKS.items()]
    )
    _write(
        docs / "api.md", f"# API reference\n\n## By task\n\n{tasks}\n\n## By module\n\n{table}\n\n{tree}\n"
    )


def _link(name: str) -> str:
    """A reference to the page of a name, which the build checks."""
    module, _, member = name.rpartition(".")
    value = getattr(importlib.import_module(module), member)
    role = "class" if isinstance(value, type) else "func"
    return f"{{py:{role}}}`~{name}`"


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _directive(module: str, name: str, value: object, *, first: bool) -> str:
    """The autodoc directive of one name; only its first appearance goes to the index."""
    options = "" if first else "\n   :no-index:"
    if isinstance(value, type):
        if not issubclass(value, BaseException):
            options += f"\n   :members:\n   :exclude-members: {', '.join(SKLEARN)}"
        return f".. autoclass:: {module}.{name}{options}"
    if callable(value):
        return f".. autofunction:: {module}.{name}{options}"
    return f".. autodata:: {module}.{name}{options}"
