"""Every example runs, without warnings, and writes its figure and its table."""

import importlib
import os
import shutil
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(path.stem for path in FOLDER.glob("[0-9][0-9]_*.py"))
SLOW = {name for name in EXAMPLES if name.startswith(("05", "07", "10"))}

PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


@pytest.fixture(autouse=True)
def _examples_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def test_there_are_examples_and_the_readme_lists_them():
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert len(EXAMPLES) >= 5
    assert [name for name in EXAMPLES if f"`{name}.py`" not in readme] == []


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in EXAMPLES]
)
def test_example(name, tmp_path, monkeypatch, capsys):
    if name.startswith("10") and shutil.which("i-pi", path=PATH) is None:
        pytest.skip("i-PI is not installed: pip install '.[engines]'")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    output = tmp_path / "made"
    importlib.import_module(name).main(["--quick", "--output", str(output)])
    assert list(elsewhere.iterdir()) == []  # everything goes to the folder that was asked for
    assert sorted(path.name for path in output.iterdir()) == [f"{name}.md", f"{name}.png"]
    assert (output / f"{name}.png").stat().st_size < 200_000  # they are kept in the repository
    table = (output / f"{name}.md").read_text(encoding="utf-8")
    assert table.startswith("| ")
    assert table.strip() in capsys.readouterr().out


def test_tables_check_their_rows(monkeypatch):
    example = importlib.import_module("example")
    assert example.markdown(["a", "b"], [[1, 2]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |\n"
    with pytest.raises(ValueError, match="3 cells and the header 2"):
        example.markdown(["a", "b"], [[1, 2, 3]])
