"""The README tells the truth: its code runs, its commands are the ones that CI runs, its paths exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[0][:30])
@pytest.mark.filterwarnings("ignore::kqeq.errors.RepresentativesWarning")
def test_python_blocks(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out


def test_there_is_a_short_script():
    scripts = blocks("python")
    assert scripts
    assert len(scripts[0].strip().splitlines()) <= 12


def test_two_commands_and_ci_runs_the_second():
    commands = blocks("bash")
    assert len(commands) == 2
    assert all(len(command.strip().splitlines()) == 1 for command in commands)
    demo, tests = commands
    assert "pip install ." in demo
    assert demo.strip().endswith("kqeq demo")
    assert ".[test]" in tests
    # .ci/run takes the command from the README; check that it would find this one
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "README.md" in script
    marker = re.search(r"grep -F '(.+?)' README.md", script)
    assert marker is not None
    found = [line for line in README.splitlines() if marker[1] in line]
    assert found == [tests.strip()]


def test_command_line_of_the_readme():
    """Every kqeq command in the README parses."""
    from kqeq.cli import build_parser

    lines = [line for block in blocks("text") for line in block.splitlines() if line.startswith("kqeq ")]
    assert {line.split()[1] for line in lines} == {"fit", "evaluate", "optimize", "diagnose"}
    for line in lines:
        build_parser().parse_args(line.split("#")[0].split()[1:])


def test_it_stays_short():
    assert len(README.encode()) <= 6144
    rows = [line for line in README.splitlines() if line.startswith("|")]
    assert len(rows) <= 8  # head, rule and six rows
    assert "@@" not in README


def test_links_to_files_exist():
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", README) if not t.startswith("http")]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


@pytest.mark.parametrize("name", ["accuracy", "charge_states"])
def test_accuracy_is_what_the_benchmark_wrote(name):
    written = (ROOT / "docs" / "generated" / f"{name}.md").read_text(encoding="utf-8")
    table = [line for line in written.splitlines() if line.startswith("|")]
    assert len(table) > 5
    page = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")
    assert "\n".join(table) in page
