"""The documentation tells the truth: its code runs, its commands work, its figures and links exist."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

import kqeq
from kqeq.cli import build_parser, main

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.glob("*.md") if page.stem not in ("api", "cli_reference"))

ELSEWHERE = (".venv/bin/kqeq demo", "python3 -m venv")
"""Commands of the quick start that test_demo.py and .ci/run execute."""


def blocks(page, *languages):
    """Language and text of the fenced blocks of a page, in order."""
    found = re.findall(
        r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    return [(language, text) for language, text in found if language in languages]


def skip_without_lammps():
    from kqeq.engines.lammps import start

    try:
        start().close()
    except kqeq.errors.EngineError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if blocks(page, "python") and page.stem not in ("quickstart", "cli")],
    ids=lambda page: page.stem,
)
@pytest.mark.filterwarnings("ignore::kqeq.errors.RepresentativesWarning")
def test_python_blocks(page, tmp_path, monkeypatch, capsys):
    if page.stem == "engines":
        skip_without_lammps()
    monkeypatch.chdir(tmp_path)
    for _, code in blocks(page, "python"):
        exec(compile(code, page.name, "exec"), {"__name__": "__main__"})
        assert capsys.readouterr().out


def test_quick_start_from_the_first_to_the_last_command(tmp_path, monkeypatch, capsys):
    """All blocks in order; installation and demo are CI's and test_demo's business.

    In this process, where warnings are errors; docs/run_commands.py runs them in a shell.
    """
    monkeypatch.chdir(tmp_path)
    done = []
    for language, text in blocks(DOCS / "quickstart.md", "bash", "python"):
        if language == "python":
            exec(compile(text, "quickstart.md", "exec"), {"__name__": "__main__"})
            continue
        for line in text.splitlines():
            if line.startswith("kqeq "):
                done.append(line.split()[1])
                code = main(shlex.split(line, comments=True)[1:])
                assert code == 0, f"{line}\n{capsys.readouterr()}"
            elif not line.startswith(ELSEWHERE):
                subprocess.run(["bash", "-c", line], check=True)
    assert done == ["fit", "fit", "evaluate", "predict", "optimize", "respond", "diagnose", "check"]
    for name in ("model.kqeq", "errors.json", "predicted.xyz", "relaxed.xyz"):
        assert (tmp_path / name).stat().st_size > 0


@pytest.mark.filterwarnings("ignore::kqeq.errors.KQEqWarning")
def test_every_command_of_the_command_line_page(tmp_path, monkeypatch, capsys):
    """What docs/run_commands.py does in processes of their own, and in a fresh environment on request."""
    spec = importlib.util.spec_from_file_location("run_commands", DOCS / "run_commands.py")
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, script)  # its dataclass looks itself up there
    spec.loader.exec_module(script)
    monkeypatch.chdir(tmp_path)
    path = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    ipi = shutil.which("i-pi", path=os.pathsep.join(path))
    socket = f"kqeq_{tmp_path.parent.name}_{os.getpid()}"  # of this run alone
    needs = {"view": "chemiscope"}  # extras that need not be here
    done = set()
    for language, text in script.blocks(DOCS / "cli.md"):
        text = text.replace("kqeq_page", socket)
        if language == "python":
            exec(compile(text, "cli.md", "exec"), {"__name__": "__main__"})
            continue
        for line in script.commands(text):
            beside, _, command = line.rpartition("&")
            program, *words = shlex.split(command.split(">")[0])
            assert program == "kqeq"
            done.add(words[0])
            if words[0] == "demo":
                continue  # tests/cli/test_demo.py
            if importlib.util.find_spec(needs.get(words[0], "kqeq")) is None or (beside and ipi is None):
                continue
            with subprocess.Popen(beside.replace("i-pi", ipi, 1), shell=True) if beside else nullcontext():
                code = main(words)
            output = capsys.readouterr()
            assert code == 0, f"{line}\n{output}"
            if words[0] == "ipi":
                assert (
                    "44 structures computed; i-PI ended" in output.out
                )  # 4 beads at the start and in 10 steps
    (actions,) = [a for a in build_parser()._actions if a.choices and not a.option_strings]
    assert done == set(actions.choices)
    for name in ("info.json", "frames.csv", "parity.png", "predicted.json", "run.csv", "vibrations.json"):
        assert (tmp_path / name).stat().st_size > 0


def test_commands_parse():
    lines = [line for page in PAGES for _, text in blocks(page, "text", "bash") for line in text.splitlines()]
    lines = [line.removeprefix(".venv/bin/") for line in lines]
    lines = [re.split("[#>]", line)[0].split()[1:] for line in lines if line.startswith("kqeq ")]
    assert len(lines) >= 8
    for line in lines:
        build_parser().parse_args(line)


def test_settings_file_of_the_command_line_page(tmp_path):
    from kqeq.model.config import load_config

    models = []
    for number, (_, text) in enumerate(blocks(DOCS / "cli.md", "toml")):
        path = tmp_path / f"settings{number}.toml"
        path.write_text(text, encoding="utf-8")
        models.append(load_config(path))
    assert models[0].charges.to_learn == ("softness", "polarizability")


def test_every_example_has_its_figure_and_table():
    examples = sorted(path.stem for path in (ROOT / "examples").glob("[0-9][0-9]_*.py"))
    assert examples
    for name in [*examples, "hero"]:
        assert 5_000 < (DOCS / "generated" / f"{name}.png").stat().st_size < 150_000, name
    for name in examples:
        table = (DOCS / "generated" / f"{name}.md").read_text(encoding="utf-8")
        assert table.startswith("| "), name
        assert "nan" not in table.lower().split(), name


def test_the_build_is_part_of_ci():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "docs/build.py" in script
    assert "docs" in re.search(r"pip install --quiet '\.\[(.+?)\]'", script)[1]
