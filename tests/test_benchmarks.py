"""Benchmarks are run by hand; here only that every script starts, and that rows and targets are read right."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.name not in ("common.py", "accuracy_table.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_runs_alone(script):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), "--help"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout
    assert "--json" in done.stdout


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
