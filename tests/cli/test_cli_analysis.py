"""The commands respond, diagnose and check, as a user types them; and the figures that they draw."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase.io import read, write
from matplotlib.figure import Figure

import kqeq
from checks import bare, run
from kqeq import analysis, plots
from kqeq.errors import InputError
from kqeq.potential.potential import Potential


@pytest.fixture(scope="module")
def folder(tmp_path_factory, water_model, short_range_model, water_systems):
    path = tmp_path_factory.mktemp("analysis")
    water_model.save(path / "m.kqeq", posterior=True)
    short_range_model.save(path / "short.kqeq")
    write(path / "ion.xyz", water_systems["hydronium"][0])
    write(path / "bare.xyz", bare(water_systems["hydronium"][0]))
    write(path / "frames.xyz", [water_systems["water2"][0], water_systems["hydronium"][0]])
    return path


def is_png(path):
    return Path(path).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


# ------------------------------------------------------------------ respond


def test_respond(folder, tmp_path, capsys):
    outputs = ("--json", tmp_path / "r.json", "--plot", tmp_path / "r.png", "--cube", tmp_path / "v.cube")
    assert run("respond", folder / "m.kqeq", folder / "ion.xyz", *outputs) == 0
    out = capsys.readouterr().out
    for part in (
        " at charge 1 e",
        "polarizability (Å³)",
        "Born charges: sum rule",
        "vertical ionization energy (eV)",
        "dE/dQ (eV/e)",
        "Fukui",
        "change of forces (eV/Å)",
    ):
        assert part in out
    assert "not available" not in out
    model, atoms = kqeq.load(folder / "m.kqeq"), read(folder / "ion.xyz")
    expected = analysis.born_charges(model, atoms)
    data = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert set(data) == {
        "polarizability",
        "born_charges",
        "charge_response",
        "ionization",
        "charge_scan",
        "field_scan",
    }
    np.testing.assert_allclose(data["born_charges"]["tensors"], expected.tensors)
    assert data["charge_scan"]["total_charges"] == [0.0, 1.0, 2.0]
    axis = np.array(data["field_scan"]["direction"])
    alpha = np.array(data["polarizability"]["total"])
    np.testing.assert_allclose(alpha @ axis, np.linalg.eigvalsh(alpha)[-1] * axis, atol=1e-9)
    assert is_png(tmp_path / "r.png")
    assert "potential" in (tmp_path / "v.cube").read_text(encoding="utf-8")


def test_respond_under_other_conditions(folder, capsys):
    conditions = ("--charge", "-1", "--field", "0", "0", "5e-2", "--direction", "1", "0", "0")
    assert run("respond", folder / "m.kqeq", folder / "bare.xyz", *conditions) == 0
    out = capsys.readouterr().out
    assert "at charge -1 e in the field (0.000, 0.000, 0.050) V/Å" in out
    assert "field along (1.000, 0.000, 0.000)" in out


def test_respond_with_an_infrared_spectrum(folder, tmp_path, capsys, water_systems):
    write(tmp_path / "water.xyz", bare(water_systems["water1"][0]))
    arguments = ("--infrared", "--plot", tmp_path / "ir.png", "--json", tmp_path / "ir.json")
    assert run("respond", folder / "m.kqeq", tmp_path / "water.xyz", *arguments) == 0
    assert "infrared (largest force" in capsys.readouterr().out
    data = json.loads((tmp_path / "ir.json").read_text(encoding="utf-8"))
    assert len(data["infrared"]["frequencies"]) == 3
    assert is_png(tmp_path / "ir.png")


def test_respond_says_what_a_model_has_not(folder, tmp_path, capsys):
    assert run("respond", folder / "short.kqeq", folder / "bare.xyz") == 0
    out = capsys.readouterr().out
    assert out.count("not available: ") == 6
    assert "the model has no charges" in out
    assert run("respond", folder / "short.kqeq", folder / "bare.xyz", "--plot", tmp_path / "x.png") == 2
    assert "nothing to draw" in capsys.readouterr().err


# ----------------------------------------------------------------- diagnose


def test_diagnose(folder, tmp_path, capsys):
    outputs = ("--json", tmp_path / "d.json", "--plot", tmp_path / "d.png")
    assert run("diagnose", folder / "m.kqeq", folder / "ion.xyz", *outputs) == 0
    out = capsys.readouterr().out
    assert "diagnosis of QEq for H, O" in out
    assert "FLAGGED     over-polarisation" in out
    assert "-> " in out
    data = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))
    assert data["findings"][0]["verdict"] == "FLAGGED"
    assert is_png(tmp_path / "d.png")


def test_diagnose_without_a_geometry(folder, tmp_path, capsys):
    assert run("diagnose", folder / "m.kqeq", "--plot", tmp_path / "d.png") == 0
    assert "extrapolation" not in capsys.readouterr().out
    assert is_png(tmp_path / "d.png")
    assert run("diagnose", folder / "short.kqeq") == 0
    assert "fields and total charge do not act" in capsys.readouterr().out


# -------------------------------------------------------------------- check


def test_check(folder, tmp_path, capsys, monkeypatch):
    outputs = ("--json", tmp_path / "c.json", "--plot", tmp_path / "c.png", "--steps", "20")
    assert run("check", folder / "m.kqeq", folder / "frames.xyz", *outputs) == 0
    out = capsys.readouterr().out
    assert "checks on 2 frames, all passed" in out
    assert json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))["passed"] is True
    assert is_png(tmp_path / "c.png")
    original = Potential.finish

    def spoiled(self, *arguments, **options):
        prediction = original(self, *arguments, **options)
        if prediction.forces is not None:
            prediction.forces[0] += 0.01
        return prediction

    monkeypatch.setattr(Potential, "finish", spoiled)
    arguments = ("--steps", "0", "--max-frames", "1", "--plot", tmp_path / "bad.png")
    assert run("check", folder / "m.kqeq", folder / "frames.xyz", *arguments) == 1
    assert "FAILED" in capsys.readouterr().out
    assert is_png(tmp_path / "bad.png")


# ------------------------------------------------------------------- errors


@pytest.mark.parametrize("command", ["respond", "diagnose", "check"])
def test_bad_files(folder, tmp_path, capsys, command):
    assert run(command, folder / "m.kqeq", tmp_path / "none.xyz") == 2
    assert "there is no file" in capsys.readouterr().err
    assert run(command, tmp_path / "none.kqeq", folder / "ion.xyz") == 2
    assert "none.kqeq" in capsys.readouterr().err
    for option in ("--json", "--plot"):
        assert run(command, folder / "m.kqeq", folder / "ion.xyz", option, tmp_path / "no" / "x") == 2
        assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["respond", "diagnose"])
def test_one_structure_at_a_time(folder, capsys, command):
    assert run(command, folder / "m.kqeq", folder / "frames.xyz") == 2
    assert "holds 2 structures and one is studied at a time" in capsys.readouterr().err
    assert run(command, folder / "m.kqeq", f"{folder / 'frames.xyz'}@-1") == 0


# ------------------------------------------------------------------ figures


@pytest.fixture
def axes():
    return Figure().subplots()


def test_figures_show_the_numbers(axes, water_model, water_systems):
    ion = bare(water_systems["hydronium"][0])
    scan = analysis.field_scan(water_model, ion, (-0.5, 0.0, 0.5), total_charge=1)
    plots.field_response(axes, scan)
    (line,) = axes.lines
    np.testing.assert_allclose(line.get_ydata(), scan.dipoles[:, 2] - scan.dipoles[1, 2])
    assert axes.get_xlabel() == "field along z (V/Å)"
    assert "e·Å" in axes.get_ylabel()

    panel = Figure().subplots()
    states = analysis.charge_scan(water_model, ion, (1, -1, 0), relax=True, fmax=0.2)
    plots.charge_states(panel, states)
    given, relaxed = (line.get_ydata() for line in panel.lines)
    assert relaxed.min() == 0.0
    assert (given >= relaxed).all()
    np.testing.assert_array_equal(panel.lines[0].get_xdata(), [-1, 0, 1])

    panel = Figure().subplots()
    found = analysis.diagnose(water_model, ion, total_charge=1)
    plots.chain_growth(panel, {"QEq": found.growth})
    np.testing.assert_allclose(
        panel.lines[0].get_ydata(), found.growth.polarizabilities / found.growth.lengths
    )
    panel = Figure().subplots()
    plots.dissociation(panel, found.dissociations)
    assert len([line for line in panel.lines if len(line.get_xdata()) > 2]) == 4
    panel = Figure().subplots()
    plots.by_atom(panel, ion.numbers, {"charge": found.charges, "twice": 2 * found.charges}, label="q (e)")
    assert [bar.get_height() for bar in panel.patches[:4]] == pytest.approx(list(found.charges))
    assert {text.get_text() for text in panel.get_legend().get_texts()} == {"charge", "twice"}


def test_infrared_figure(axes, water_model, water_systems):
    found = analysis.infrared(water_model, bare(water_systems["water1"][0]), fmax=0.01)
    plots.infrared(axes, {"model": found, "again": found})
    _, y = found.spectrum()
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), y)
    assert axes.get_xlabel() == "wavenumber (cm⁻¹)"
    assert axes.get_legend() is not None


def test_figures_are_whole_or_not_there(tmp_path, water_model):
    figure = plots.diagnosis_figure(analysis.diagnose(water_model))
    plots.save(tmp_path / "d.png", figure)
    assert is_png(tmp_path / "d.png")
    with pytest.raises(InputError, match="cannot write"):
        plots.save(tmp_path / "no" / "d.png", figure)
    with pytest.raises(InputError, match="nothing to draw"):
        plots.response_figure("x", {})
