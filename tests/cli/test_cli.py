"""The command line: what each command does, its exit codes, and what it says when something is wrong."""

import json
import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import read, write

import kqeq
from checks import run
from kqeq import cli
from kqeq.analysis import optimization
from kqeq.errors import InputError, KQEqWarning, RepresentativesWarning

CONFIG = """
noise = { energy = 2e-3 }
[electronegativity]
n_max = 4
l_max = 3
n_representatives = 12
[short_range]
r_cut = 4.0
n_max = 4
l_max = 3
n_representatives = 12
"""

SIZES = {"n_max": 4, "l_max": 3, "n_representatives": 12}


@pytest.fixture(scope="module")
def frames():
    return kqeq.datasets.load("ag3")[::4]


@pytest.fixture(scope="module")
def files(tmp_path_factory, frames):
    """train.xyz, test.xyz, config.toml and a model fitted by the command line."""
    folder = tmp_path_factory.mktemp("cli")
    write(folder / "train.xyz", frames[::2])
    write(folder / "test.xyz", frames[1::2])
    write(folder / "one.xyz", Atoms(frames[1].numbers, frames[1].positions))
    (folder / "config.toml").write_text(CONFIG)
    assert run("fit", folder / "train.xyz", "-o", folder / "m.kqeq", "--config", folder / "config.toml") == 0
    return folder


@pytest.fixture
def no_work(monkeypatch):
    """Fail if any fit or prediction begins."""

    def refuse(*_, **__):
        raise AssertionError("the work began before the arguments were checked")

    monkeypatch.setattr(kqeq.KQEq, "fit", refuse)
    monkeypatch.setattr(kqeq.KQEq, "predict", refuse)
    monkeypatch.setattr(kqeq.KQEq, "evaluate", refuse)
    monkeypatch.setattr(optimization, "optimize", refuse)


# ---------------------------------------------------------------------- fit


def test_fit_is_what_python_does(files, frames):
    model = kqeq.KQEq(noise={"energy": 2e-3})
    for part in ("electronegativity", "short_range"):
        model.set_params(**{f"{part}__{name}": n for name, n in SIZES.items()})
    model.set_params(short_range__r_cut=4.0)
    expected = model.fit(read(files / "train.xyz", ":"))
    loaded = kqeq.load(files / "m.kqeq")
    assert loaded.predict(frames[0]).energy == expected.predict(frames[0]).energy


def test_fit_prints_report_and_validation(files, tmp_path, capsys):
    code = run(
        *("fit", files / "train.xyz", files / "test.xyz", "-o", tmp_path / "new.kqeq"),
        *("--config", files / "config.toml", "--validation", files / "test.xyz"),
    )
    out = capsys.readouterr().out
    assert code == 0
    assert "20 frames, 60 atoms" in out  # both files
    assert "labels used: energy (20 frames), forces (20 frames), dipole (20 frames)" in out
    assert f"errors on {files / 'test.xyz'} (10 frames)" in out
    assert "eV/atom" in out
    assert kqeq.load(tmp_path / "new.kqeq").species_ == ("Ag",)


@pytest.mark.filterwarnings("ignore::kqeq.errors.RepresentativesWarning")
def test_fit_without_config_uses_the_defaults(files, tmp_path):
    assert run("fit", files / "train.xyz", "-o", tmp_path / "new.kqeq") == 0
    model = kqeq.load(tmp_path / "new.kqeq")
    assert model.electronegativity == model.short_range == "auto"
    assert model.charges.get_params() == kqeq.KQEq().charges.get_params()
    assert any("left-out log density" in note for note in model.fit_report_.notes)


@pytest.mark.filterwarnings("ignore::kqeq.errors.KQEqWarning")
@pytest.mark.parametrize(("option", "what"), [(["--quick"], None), (["--optimize", "evidence"], "evidence")])
def test_how_a_fit_finds_its_settings(option, what, files, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        kqeq.KQEq, "fit", lambda self, frames, **options: given.append(options["optimize"]) or sys.exit(7)
    )
    with pytest.raises(SystemExit):
        run("fit", files / "train.xyz", "-o", tmp_path / "new.kqeq", *option)
    assert given == [what]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("noise = 3 =", "not valid TOML"),
        ("kernels = 1", "unknown setting 'kernels'; expected some of electronegativity"),
        ("[electronegativity]\nrcut = 4.0", r"\[electronegativity\] has no setting 'rcut'"),
        (
            "[electronegativity]\nr_cut = 'far'",
            r"\[electronegativity\] SOAP\(r_cut='far'\): expected a number above 1",
        ),
        ("[electronegativity]\nr_cut = 0.2", "r_cut"),
        ("[short_range]\nselection = 'best'", "expected one of 'fps', 'cur'"),
        ("[short_range]\nselection = 3", "expected one of 'fps'"),
        ("short_range = true", "expected a table"),
        ("[charges]\nmodel = 'Best'", "unknown charge model 'Best'"),
        ("[charges]\nhardnes = {Ag = 1.0}", "hardnes"),
        ("[charges]\nhardness = {Ag = 'x'}", "expected a finite number"),
        ("targets = 3", "targets is 3: expected a name"),
        ("noise = {energy = '1'}", "noise.energy is '1': expected a finite number"),
        ("noise = 1", "expected a table of numbers"),
        ("max_iterations = true", "expected a whole number"),
        ("baseline = 3", "baseline is 3"),
    ],
)
def test_bad_configurations(files, tmp_path, capsys, no_work, text, message):
    import re

    (tmp_path / "bad.toml").write_text(text)
    code = run("fit", files / "train.xyz", "-o", tmp_path / "new.kqeq", "--config", tmp_path / "bad.toml")
    err = capsys.readouterr().err
    assert code == 2
    assert re.search(message, err)
    assert "bad.toml" in err
    assert err.count("\n") == 1


def test_configuration_of_everything():
    from kqeq.model.config import model_from_dict

    model = model_from_dict(
        {
            "electronegativity": {"r_cut": 3},
            "short_range": False,
            "charges": {"hardness": {"O": 12.0}},
            "targets": ["dipole", "charges"],
            "charges_key": "hirshfeld",
            "label_prefix": "REF_",
            "max_iterations": 7,
            "e0": {"O": -2041},
            "baseline": "zbl",
        }
    )
    parameters = model.get_params(deep=False)
    assert parameters["short_range"] is None
    assert parameters["electronegativity"].r_cut == 3
    assert parameters["electronegativity"].n_max == kqeq.SOAPKernel().n_max
    assert parameters["charges"].hardness == {"O": 12.0}
    assert {
        k: parameters[k] for k in ("charges_key", "label_prefix", "max_iterations", "baseline", "e0")
    } == {
        "charges_key": "hirshfeld",
        "label_prefix": "REF_",
        "max_iterations": 7,
        "baseline": "zbl",
        "e0": {"O": -2041},
    }


# ----------------------------------------------------------------- evaluate


def test_evaluate_writes_the_agreed_json(files, tmp_path, capsys):
    assert (
        run(
            "evaluate",
            files / "m.kqeq",
            files / "test.xyz",
            files / "train.xyz",
            "--json",
            tmp_path / "e.json",
        )
        == 0
    )
    data = json.loads((tmp_path / "e.json").read_text(encoding="utf-8"))
    assert set(data) == {"energy", "forces", "dipole"}
    assert set(data["energy"]) == {"rmse", "mae", "unit", "n"}
    assert set(data["dipole"]) == {"rmse", "mae", "unit", "n", "mae_norm"}
    assert {kind: row["unit"] for kind, row in data.items()} == {
        "energy": "eV/atom",
        "forces": "eV/Å",
        "dipole": "e·Å",
    }
    assert data["energy"]["n"] == 20
    assert data["forces"]["n"] == 180
    frames = read(files / "test.xyz", ":") + read(files / "train.xyz", ":")
    expected = kqeq.load(files / "m.kqeq").evaluate(frames)
    assert data["forces"]["rmse"] == pytest.approx(expected["forces"].rmse)
    assert "quantity" in capsys.readouterr().out


# ------------------------------------------------------------------ predict


def test_predict_writes_results_and_keeps_labels(files, tmp_path):
    assert run("predict", files / "m.kqeq", f"{files / 'test.xyz'}@:3", "-o", tmp_path / "out.xyz") == 0
    model = kqeq.load(files / "m.kqeq")
    given, out = read(files / "test.xyz", ":3"), read(tmp_path / "out.xyz", ":")
    assert len(out) == 3
    for before, after, p in zip(given, out, model.predict(given), strict=True):
        results = after.calc.results
        assert results["energy"] == pytest.approx(p.energy, abs=1e-6)
        np.testing.assert_allclose(results["forces"], p.forces, atol=1e-7)
        np.testing.assert_allclose(results["charges"], p.charges, atol=1e-7)
        np.testing.assert_allclose(results["dipole"], p.dipole, atol=1e-7)
        np.testing.assert_allclose(after.info["polarizability"], p.polarizability.ravel(), atol=1e-7)
        np.testing.assert_allclose(after.arrays["electronegativity"], p.electronegativity, atol=1e-7)
        assert after.info["chemical_potential"] == pytest.approx(p.chemical_potential, abs=1e-6)
        assert after.info["total_charge"] == before.info["total_charge"] == p.total_charge
        assert after.info["system"] == before.info["system"]
        # the DFT labels are still there
        assert after.info["REF_energy"] == pytest.approx(before.get_potential_energy(), abs=1e-6)
        np.testing.assert_allclose(after.arrays["REF_forces"], before.get_forces(), atol=1e-7)
        np.testing.assert_allclose(after.info["REF_dipole"], before.get_dipole_moment(), atol=1e-7)


def test_predict_at_a_potential(files, tmp_path, capsys):
    out = tmp_path / "out.xyz"
    assert run("predict", files / "m.kqeq", f"{files / 'test.xyz'}@:2", "-o", out, "--potential", 5) == 0
    shown = capsys.readouterr().out
    assert "grand energy (eV)" in shown
    for index, atoms in enumerate(read(out, ":")):
        charge = atoms.info["total_charge"]
        assert atoms.info["chemical_potential"] == pytest.approx(5.0, abs=1e-6)
        assert abs(charge - round(charge)) > 1e-4
        grand = float(shown.splitlines()[index + 1].split()[2])
        assert grand == pytest.approx(atoms.get_potential_energy() - 5.0 * charge, abs=1e-4)
    assert run("predict", files / "m.kqeq", files / "test.xyz", "--potential", 5, "--charge", 1) == 2
    assert "give one of them" in capsys.readouterr().err


def test_predict_of_a_prediction_keeps_the_first_labels(files, tmp_path):
    run("predict", files / "m.kqeq", files / "test.xyz", "-o", tmp_path / "one.xyz")
    run("predict", files / "m.kqeq", tmp_path / "one.xyz", "-o", tmp_path / "two.xyz")
    one, two = (read(tmp_path / f"{name}.xyz") for name in ("one", "two"))
    assert two.info["REF_energy"] == one.info["REF_energy"]
    np.testing.assert_array_equal(two.arrays["REF_forces"], one.arrays["REF_forces"])


# ----------------------------------------------------------------- optimize


def test_optimize_an_ion_in_a_field(files, tmp_path, capsys):
    arguments = ("--charge", "1", "--field", "0", "0", "-2e-2", "--fmax", "0.02")
    assert run("optimize", files / "m.kqeq", files / "one.xyz", "-o", tmp_path / "out.xyz", *arguments) == 0
    out = capsys.readouterr().out
    assert "the centre of mass was held" in out
    assert "(0, 0, -0.02) eV/Å" in out
    assert "converged after" in out
    before, after = read(files / "one.xyz"), read(tmp_path / "out.xyz")
    np.testing.assert_allclose(after.get_center_of_mass(), before.get_center_of_mass(), atol=1e-6)
    assert after.info["total_charge"] == 1
    np.testing.assert_allclose(after.info["external_field"], (0, 0, -0.02))
    np.testing.assert_allclose(after.get_forces().sum(axis=0), (0, 0, -0.02), atol=1e-6)
    assert abs(after.get_charges().sum() - 1) < 1e-6


def test_optimize_without_a_field_holds_nothing(files, tmp_path, capsys):
    assert (
        run("optimize", files / "m.kqeq", files / "one.xyz", "-o", tmp_path / "o.xyz", "--charge", "1") == 0
    )
    assert "centre of mass" not in capsys.readouterr().out


def test_optimize_at_a_potential(files, tmp_path, capsys):
    """What is minimised is E − UQ, with the charge following."""
    model, start = kqeq.load(files / "m.kqeq"), read(files / "one.xyz")
    level = model.predict(start, total_charge=0.5).chemical_potential
    outputs = (
        "-o",
        tmp_path / "out.xyz",
        "--json",
        tmp_path / "o.json",
        "--trajectory",
        tmp_path / "path.xyz",
    )
    ends = {}
    for potential in (level, level + 0.5):
        typed = ("--potential", f"{potential:.6f}", "--fmax", "0.02")
        assert run("optimize", files / "m.kqeq", files / "one.xyz", *outputs, *typed) == 0
        out = capsys.readouterr().out
        assert "grand energy (eV)" in out
        ends[potential] = read(tmp_path / "out.xyz")
        numbers = json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))
        charge = numbers["total_charge"]
        assert f"total charge {charge:.6f} e" in out
        assert numbers["grand_energy"] == pytest.approx(numbers["energy"] - numbers["potential"] * charge)
        path = [atoms.get_potential_energy() for atoms in read(tmp_path / "path.xyz", ":")]
        assert path[-1] == pytest.approx(numbers["grand_energy"], abs=1e-6)
        assert path[-1] < path[0] - 1e-3
        # the end is a minimum for this charge and has this potential
        held = model.predict(Atoms(start.numbers, ends[potential].positions), total_charge=charge)
        assert held.chemical_potential == pytest.approx(numbers["potential"], abs=1e-5)
        assert np.linalg.norm(held.forces, axis=1).max() < 0.021
        assert ends[potential].info["total_charge"] == pytest.approx(charge)
    assert ends[level + 0.5].info["total_charge"] > ends[level].info["total_charge"] + 0.01
    both = ("--charge", "1", "--potential", "4")
    assert run("optimize", files / "m.kqeq", files / "one.xyz", *outputs, *both) == 2
    assert "the total charge follows" in capsys.readouterr().err


def test_optimize_that_does_not_converge(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(optimization, "optimize", partial(optimization.optimize, max_steps=2))
    arguments = ("--charge", "1", "--fmax", "1e-5")
    assert run("optimize", files / "m.kqeq", files / "one.xyz", "-o", tmp_path / "out.xyz", *arguments) == 1
    assert "NOT CONVERGED after 2 steps" in capsys.readouterr().err
    assert np.isfinite(read(tmp_path / "out.xyz").get_potential_energy())  # nothing is lost


def test_optimize_takes_one_structure(files, tmp_path, capsys):
    assert run("optimize", files / "m.kqeq", files / "test.xyz", "-o", tmp_path / "out.xyz") == 2
    assert "holds 10 structures" in capsys.readouterr().err
    frame = f"{files / 'test.xyz'}@-1"
    assert run("optimize", files / "m.kqeq", frame, "-o", tmp_path / "out.xyz", "--fmax", "0.1") == 0


def test_what_is_typed_replaces_charge_and_field_of_the_file(files, tmp_path, capsys):
    frame = read(files / "test.xyz", 0)
    assert frame.info["total_charge"] == 1
    frame.info["external_field"] = np.zeros(3)
    frame.set_initial_charges([1.0, *[0.0] * (len(frame) - 1)])
    write(tmp_path / "in.xyz", frame)
    typed = ("--charge", "0", "--field", "0", "0", "0.05", "--fmax", "0.1")
    assert run("optimize", files / "m.kqeq", tmp_path / "in.xyz", "-o", tmp_path / "out.xyz", *typed) == 0
    notes = capsys.readouterr().err
    assert "--charge replaces total_charge 1" in notes
    assert "--field replaces external_field [0. 0. 0.]" in notes
    out = read(tmp_path / "out.xyz")
    assert out.info["total_charge"] == 0
    np.testing.assert_allclose(out.info["external_field"], [0.0, 0.0, 0.05])
    # its own output is a start again, in another field; the same charge is nothing to speak of
    again = ("--charge", "0", "--field", "0", "0", "0.1", "--fmax", "0.1")
    assert run("optimize", files / "m.kqeq", tmp_path / "out.xyz", "-o", tmp_path / "b.xyz", *again) == 0
    assert "--charge" not in capsys.readouterr().err
    np.testing.assert_allclose(read(tmp_path / "b.xyz").info["external_field"], [0.0, 0.0, 0.1])


def test_charges_of_fragments_must_agree_with_what_is_typed(files, tmp_path, capsys):
    frame = read(files / "test.xyz", 0)
    frame.set_array("reference_charges", np.full(len(frame), 1.0 / len(frame)))
    write(tmp_path / "in.xyz", frame)
    arguments = ("-o", tmp_path / "out.xyz", "--charge", "0")
    assert run("optimize", files / "m.kqeq", tmp_path / "in.xyz", *arguments) == 2
    assert "two total charges" in capsys.readouterr().err


# ------------------------------------------------------------------- errors


def commands(model, frames, output):
    """Every command that reads a model or frames, with an output path."""
    return {
        "fit": ("fit", frames, "-o", output),
        "evaluate": ("evaluate", model, frames, "--json", output),
        "predict": ("predict", model, frames, "-o", output),
        "optimize": ("optimize", model, frames, "-o", output),
    }


@pytest.mark.parametrize("command", ["fit", "evaluate", "predict", "optimize"])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.xyz", None, "there is no file"),
        ("empty.xyz", "", "is empty"),
        ("noise.xyz", "this is\nno structure file\n", "cannot read structures from"),
        (
            "cut.xyz",
            '3\nProperties=species:S:1:pos:R:3 pbc="F F F"\nAg 0 0 0\n',
            "announces 3 atoms, but only 1 lines follow",
        ),
        ("what.ever", "abc", "cannot read structures from"),
        ("rmd17.npz", "abc", "arrays and tables (.npz) do not say what their columns mean"),
    ],
)
def test_bad_frame_files(files, tmp_path, capsys, no_work, command, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    code = run(*commands(files / "m.kqeq", tmp_path / name, tmp_path / "out")[command])
    err = capsys.readouterr().err
    assert code == 2
    assert message in err
    assert str(tmp_path / name) in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["fit", "evaluate", "predict", "optimize"])
def test_output_paths_are_checked_first(files, tmp_path, capsys, no_work, command):
    for output in (tmp_path / "no" / "folder" / "out", tmp_path):
        assert run(*commands(files / "m.kqeq", files / "test.xyz", output)[command]) == 2
        assert f"cannot write {output}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "predict", "optimize"])
@pytest.mark.parametrize("content", [None, b"", b"not a model", b"PK\x03\x04 half of one"])
def test_bad_model_files(files, tmp_path, capsys, no_work, command, content):
    model = tmp_path / "bad.kqeq"
    if content is not None:
        model.write_bytes(content)
    assert run(*commands(model, files / "one.xyz", tmp_path / "out")[command]) == 2
    err = capsys.readouterr().err
    assert "bad.kqeq" in err
    assert err.count("\n") == 1


def test_names_with_an_at_sign(files, tmp_path, capsys):
    (tmp_path / "run@2.xyz").write_text((files / "test.xyz").read_text())
    for name, count in (("run@2.xyz", 10), ("run@2.xyz@:4", 4), ("run@2.xyz@1", 1)):
        assert run("predict", files / "m.kqeq", tmp_path / name, "-o", tmp_path / "out.xyz") == 0
        assert len(read(tmp_path / "out.xyz", ":")) == count
    assert run("predict", files / "m.kqeq", f"{files / 'test.xyz'}@some", "-o", tmp_path / "out.xyz") == 2
    assert "cannot read structures from" in capsys.readouterr().err


def test_folders_are_no_files(files, tmp_path, capsys):
    assert run("predict", files / "m.kqeq", tmp_path, "-o", tmp_path / "out.xyz") == 2
    assert "is a folder" in capsys.readouterr().err


def test_unlabelled_frames(files, tmp_path, capsys):
    assert run("fit", files / "one.xyz", "-o", tmp_path / "new.kqeq") == 2
    assert "no usable label" in capsys.readouterr().err
    assert not (tmp_path / "new.kqeq").exists()


def test_interrupt(files, tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(kqeq.KQEq, "fit", interrupt)
    assert run("fit", files / "train.xyz", "-o", tmp_path / "new.kqeq") == 130
    assert capsys.readouterr().err == "kqeq: interrupted\n"
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "numbers.json"
    cli.write_json(str(path), {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        cli.write_json(str(path), {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_own_warnings_are_one_line(files, tmp_path, capsys, monkeypatch):
    def fit(self, frames, **_):
        warnings.warn("look here", KQEqWarning, stacklevel=1)
        raise InputError("stop")

    monkeypatch.setattr(kqeq.KQEq, "fit", fit)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run("fit", files / "train.xyz", "-o", tmp_path / "new.kqeq") == 2
    assert capsys.readouterr().err == "kqeq: warning: look here\nkqeq: error: stop\n"


def test_small_data_warning_reaches_the_terminal(files, tmp_path, capsys):
    (tmp_path / "many.toml").write_text("[short_range]\nn_representatives = 5000\n")
    with warnings.catch_warnings():
        warnings.simplefilter("always", RepresentativesWarning)
        arguments = ("fit", f"{files / 'train.xyz'}@:4", "-o", tmp_path / "new.kqeq")
        assert run(*arguments, "--config", tmp_path / "many.toml") == 0
    err = capsys.readouterr().err
    assert err.startswith("kqeq: warning: ")
    assert "representatives per element were asked for" in err


@pytest.mark.parametrize(
    ("given", "plain"),
    [("-1e-3", "-0.001"), ("-2.5E2", "-250"), ("-0.1", "-0.1"), ("-e", "-e"), ("1e-3", "1e-3")],
)
def test_numbers_that_argparse_takes_for_options(given, plain):
    assert cli._plain_numbers(["--charge", given]) == ["--charge", plain]


@pytest.mark.parametrize(
    "arguments", [(), ("fit",), ("train",), ("optimize", "m", "in.xyz", "-o", "x", "--field", "1")]
)
def test_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    assert "usage: kqeq" in capsys.readouterr().err


def test_version_and_help_are_fast():
    """No heavy module is imported before a command needs it."""
    code = (
        "import sys, kqeq.cli; kqeq.cli.build_parser().format_help(); "
        "print(sorted({'ase', 'scipy', 'sklearn', 'dscribe', 'numba', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    version = subprocess.run(
        [sys.executable, "-m", "kqeq.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert version.stdout == f"kqeq {kqeq.__version__}\n"


def test_the_installed_command(files):
    """Entry point, exit code and an output without Å, in a process of its own."""
    command = Path(sys.executable).parent / "kqeq"
    if not command.exists():
        pytest.skip("kqeq is not installed as a command")
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    good = subprocess.run(
        [command, "evaluate", files / "m.kqeq", files / "test.xyz"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert good.returncode == 0, good.stderr
    assert "eV/atom" in good.stdout
    bad = subprocess.run([command, "evaluate", "none", "none"], capture_output=True, text=True, check=False)
    assert bad.returncode == 2
    assert bad.stderr.startswith("kqeq: error: ")
    assert "Traceback" not in bad.stderr
