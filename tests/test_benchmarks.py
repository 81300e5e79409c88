"""Benchmarks are run by hand; here only that every script starts, and that rows and targets are read right."""

import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(
    path for path in FOLDER.glob("*.py") if path.name not in ("common.py", "accuracy_table.py", "against.py")
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_starts(script, monkeypatch, capsys):
    """In this process: an interpreter of its own for each of them would take seconds."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(script), run_name="__main__")
    assert done.value.code in (0, None)
    shown = capsys.readouterr().out
    assert "--quick" in shown
    assert "--json" in shown


@pytest.fixture(scope="module")
def common():
    spec = importlib.util.spec_from_file_location("benchmark_common", FOLDER / "common.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("value", "target", "verdict"),
    [
        (0.9, "<= 1", "ok"),
        (1.1, "<= 1", "MISSED"),
        (5.0, ">= 5", "ok"),
        (4.9, ">= 5", "MISSED"),
        (1.0, "< 1", "MISSED"),
        (None, "<= 1", ""),
        (3.0, "", ""),
    ],
)
def test_verdicts(common, value, target, verdict):
    assert common.met(common.row("name", value, "unit", target)) == verdict


def test_rows_are_written(common, tmp_path, capsys):
    rows = common.main(
        "Title.",
        {"one": lambda quick: [common.row("n", 1.0, "s", "<= 2")]},
        ["--json", str(tmp_path / "r.json")],
    )
    assert rows == [{"name": "n", "value": 1.0, "unit": "s", "target": "<= 2"}]
    assert (tmp_path / "r.json").read_text().strip().startswith("[")
    assert "ok" in capsys.readouterr().out


def test_missing_public_data_are_skipped(common, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(common, "PUBLIC_DATA", tmp_path)
    assert common.public("nothing.xyz") is None
    assert "skipped" in capsys.readouterr().out


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_a_stand_in():
    """Every section but the one that needs public data, with tiny sizes; its own comparisons with the CPU hold."""
    sections = ["kernel_products", "dense_ewald", "matrix_free", "scaling", "precision"]
    done = subprocess.run(
        [sys.executable, str(FOLDER / "gpu.py"), "--rehearse", "--only", *sections],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "not run" not in done.stdout and "MISSED" not in done.stdout
    assert done.stdout.count(" ok") == 3


@pytest.fixture(scope="module")
def table():
    sys.path.insert(0, str(FOLDER))
    try:
        import accuracy_table
    finally:
        sys.path.remove(str(FOLDER))
    return accuracy_table


def test_every_packaged_set_has_a_line_or_a_purpose(table):
    assert not set(table.LINES) & set(table.PURPOSE)
    assert set(table.left_out()) == set(table.PURPOSE)
    assert set(table.CHARGE_STATES) < set(table.LINES)
    assert set(table.TABLE) | set(table.STATES) == set(table.MODELS)


def test_lines_have_one_method_and_do_not_test_on_what_they_fit(table):
    for name, line in table.LINES.items():
        train, test = line.frames()
        assert train, name
        assert test, name
        assert len({a.info["method"] for a in train + test}) == 1, name
        fitted, tested = ({a.positions.tobytes() for a in part} for part in (train, test))
        assert not fitted & tested, name
        states = {(a.get_chemical_formula(), a.info["total_charge"]) for a in train}
        assert line.shared == (len(states) > len({formula for formula, _ in states})), name


def test_cells_of_the_table(table):
    found = {"energy": 0.00064, "forces": 0.0954, "dipole": 0.2, "fitted": 48, "tested": 36}
    assert table.cell(found, bold=True) == "0.64 / **95.4** / 0.20"
    assert table.cell({"energy": 0.75, "forces": 10.52}) == "750 / 10500"
    assert table.cell(None) == "–"
    apart, dipoles = table.NOT_COLUMNS
    ag3 = {"short-range only": found, "QEq, both": found | {"forces": 0.1}, apart: {"forces": 0.0091}}
    nacl = {"short-range only": found, "QEq, both": None, apart: None, dipoles: None}
    text = table.markdown({"ag3": ag3, "nacl": nacl})
    header, _, first, second = text.splitlines()[:4]
    assert header == "| set | systems | fitted / tested | short-range only | QEq, both |"
    assert first.endswith("| 48 / 36 | 0.64 / **95.4** / 0.20 [9.10] | 0.64 / 100 / 0.20 |")
    assert second.endswith("| 0.64 / **95.4** / 0.20 | – |")
