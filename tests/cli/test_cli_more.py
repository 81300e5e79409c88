"""Commands around a fit: evaluate by groups, info, update, select, split, config, completion, progress."""

import csv
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from ase import Atoms
from ase.io import read, write

import kqeq
from checks import run
from kqeq import cli
from kqeq.cli.completion import script
from kqeq.errors import InputError
from kqeq.frames.splits import groups_of
from kqeq.model.config import load_config, model_from_dict, template


@pytest.fixture(scope="module")
def folder(tmp_path_factory, water_model, water_training, water_systems):
    path = tmp_path_factory.mktemp("more")
    water_model.save(path / "m.kqeq", posterior=True)
    frames = [water_systems[name][i] for name in ("water1", "hydronium", "hydroxide") for i in (1, 2)]
    write(path / "test.xyz", frames)
    write(path / "train.xyz", water_training)
    return path


# ----------------------------------------------------------------- evaluate


def test_evaluate_by_groups_and_frames(folder, tmp_path, capsys):
    outputs = ("--frames", tmp_path / "f.csv", "--groups", tmp_path / "g.json", "--plot", tmp_path / "p.png")
    assert (
        run("evaluate", folder / "m.kqeq", folder / "test.xyz", *outputs, "--by", "system", "--worst", 2) == 0
    )
    out = capsys.readouterr().out
    model, frames = kqeq.load(folder / "m.kqeq"), read(folder / "test.xyz", ":")
    expected = model.evaluate(frames[2:4])  # the two hydronium ions
    groups = json.loads((tmp_path / "g.json").read_text(encoding="utf-8"))
    assert list(groups["charge"]) == ["-1", "0", "+1"]
    assert groups["charge"]["+1"]["frames"] == 2
    assert groups["charge"]["+1"]["forces"]["rmse"] == pytest.approx(expected["forces"].rmse)
    assert groups["system"]["hydronium"] == groups["charge"]["+1"]
    assert set(groups["composition"]) == {"H2O", "H3O", "HO"}
    with (tmp_path / "f.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    for row, atoms in zip(rows, frames, strict=True):
        error = model.predict(atoms).forces - atoms.get_forces()
        assert float(row["forces_rmse (eV/Å)"]) == pytest.approx(np.sqrt(np.mean(error**2)))
        assert float(row["forces_largest_error (eV/Å)"]) == pytest.approx(np.linalg.norm(error, axis=1).max())
    worst = sorted(range(6), key=lambda i: -float(rows[i]["forces_rmse (eV/Å)"]))
    table = out[out.index("worst frames") :].splitlines()[1:3]
    assert [int(line.split()[1]) for line in table] == worst[:2]
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_evaluate_says_what_frames_can_be_grouped_by(folder, capsys):
    assert run("evaluate", folder / "m.kqeq", folder / "test.xyz", "--by", "nothing") == 2
    assert "no frame has an entry 'nothing'" in capsys.readouterr().err


def test_evaluate_with_calibration(folder, capsys):
    assert run("evaluate", folder / "m.kqeq", folder / "test.xyz", "--calibration") == 0
    assert "mean z²" in capsys.readouterr().out


# --------------------------------------------------------------- vibrations


def test_vibrations_of_a_slab_have_frequencies_and_no_intensities(folder, tmp_path, capsys):
    """A field along the slab is refused; the frequencies need none."""
    atoms = read(folder / "test.xyz")
    slab = Atoms(atoms.numbers, atoms.positions, cell=[12, 12, 0], pbc=(True, True, False))
    write(tmp_path / "slab.xyz", slab)
    assert run("vibrations", folder / "m.kqeq", tmp_path / "slab.xyz", "--no-relax") == 0
    said = capsys.readouterr()
    assert "frequencies without infrared intensities: the external field" in said.err
    assert "cm⁻¹" in said.out
    assert "km/mol" not in said.out
    plot = ("--plot", tmp_path / "p.png")
    assert run("vibrations", folder / "m.kqeq", tmp_path / "slab.xyz", "--no-relax", *plot) == 2
    assert "no infrared spectrum to draw" in capsys.readouterr().err


# ------------------------------------------------------------------ predict


def test_predict_with_uncertainties(folder, tmp_path, capsys):
    files = ("-o", tmp_path / "out.xyz", "--json", tmp_path / "p.json")
    assert run("predict", folder / "m.kqeq", folder / "test.xyz@:2", "--uncertainty", *files) == 0
    expected = kqeq.load(folder / "m.kqeq").predict(read(folder / "test.xyz", ":2"), uncertainty=True)
    out = read(tmp_path / "out.xyz", ":")
    data = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))["frames"]
    for atoms, plain, p in zip(out, data, expected, strict=True):
        assert p.energy_std > 1e-6
        assert atoms.info["energy_std"] == pytest.approx(p.energy_std)
        np.testing.assert_allclose(atoms.arrays["forces_std"], p.forces_std, atol=1e-7)
        np.testing.assert_allclose(plain["charges_std"], p.charges_std)


def test_predict_prints_a_table_at_the_charge_that_is_typed(folder, capsys):
    capsys.readouterr()
    assert run("predict", folder / "m.kqeq", folder / "test.xyz@0", "--charge", "1") == 0
    head, line = capsys.readouterr().out.splitlines()
    atoms = read(folder / "test.xyz", 0)
    bare = Atoms(atoms.numbers, atoms.positions)
    energy = kqeq.load(folder / "m.kqeq").predict(bare, total_charge=1).energy
    assert "energy (eV)" in head
    assert line.split()[:4] == ["0", "H2O", "1", f"{energy:.6f}"]


# --------------------------------------------------------------------- info


def test_info(folder, tmp_path, capsys):
    assert run("info", folder / "m.kqeq", "--json", tmp_path / "i.json", "--report") == 0
    out = capsys.readouterr().out
    assert re.search(r"elements +H, O\n", out)
    assert re.search(r"charge states +-1, 0, \+1 e\n", out)
    assert "ms an atom for energy and forces" in out
    assert "labels used: energy (12 frames)" in out
    data = json.loads((tmp_path / "i.json").read_text(encoding="utf-8"))
    assert data["elements"] == ["H", "O"]
    assert data["posterior"] is True
    assert data["milliseconds"] > 0
    assert {kernel["part"] for kernel in data["kernels"]} == {"electronegativity", "short_range"}
    assert data["settings"]["charges"]["model"] == "QEq"


def test_info_names_what_the_data_leave_open(water_systems, kernel, tmp_path, capsys):
    """One composition: only the sum of element energies is known, and one charge says nothing of the potential."""
    frames = water_systems["water1"][:6]
    model = kqeq.KQEq(kernel(3.5), kernel(4.0)).fit(frames)
    from kqeq.model.information import information

    found = information(model)
    assert found.undetermined
    assert any("E(" in text for text, _ in found.undetermined)
    # along none of them does the energy of a water molecule change, though that of an element does
    known, water = model.potential_.determination, model.predict(frames[0])
    row = known.row(frames[0].numbers, water.charges, energy=True)
    for direction in known.open_directions():
        assert abs(direction @ row) < 0.3
    assert known.std(known.row(np.array([1]), None, energy=True)) > 0.3
    assert all(std > 0.3 for _, std in found.undetermined)
    assert "not determined" in str(found)


def test_validation_errors_stay_in_the_file(folder, tmp_path, capsys):
    config = tmp_path / "c.toml"
    sizes = "n_max = 4\nl_max = 3\nn_representatives = 6\n"
    config.write_text(f"[electronegativity]\nr_cut = 3.5\n{sizes}[short_range]\nr_cut = 4.0\n{sizes}")
    files = ("-o", tmp_path / "n.kqeq", "--validation", folder / "test.xyz", "--json", tmp_path / "r.json")
    assert (
        run(
            "fit",
            folder / "train.xyz",
            *files,
            "--config",
            config,
            "--posterior",
            "--targets",
            "energy",
            "dipole",
        )
        == 0
    )
    capsys.readouterr()
    assert run("info", tmp_path / "n.kqeq") == 0
    out = capsys.readouterr().out
    model = kqeq.load(tmp_path / "n.kqeq")
    assert set(model.fit_report_.used) == {"energy", "dipole"}
    assert model.posterior_ is not None
    rmse = model.evaluate(read(folder / "test.xyz", ":"))["dipole"].rmse
    assert f"dipole {rmse:.4g} e·Å" in out
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert report["errors"][str(folder / "test.xyz")]["dipole"]["rmse"] == pytest.approx(rmse)


# ------------------------------------------------------- update and select


def test_select_and_update(folder, tmp_path, capsys):
    outputs = ("-o", tmp_path / "c.xyz", "--rest", tmp_path / "rest.xyz", "--json", tmp_path / "s.json")
    assert run("select", folder / "m.kqeq", folder / "test.xyz", "-n", 2, *outputs) == 0
    pool, model = read(folder / "test.xyz", ":"), kqeq.load(folder / "m.kqeq")
    chosen = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))["chosen"]
    assert chosen == kqeq.select(model, pool, 2)
    assert len(read(tmp_path / "rest.xyz", ":")) == 4
    np.testing.assert_allclose(read(tmp_path / "c.xyz", 0).positions, pool[chosen[0]].positions, atol=1e-7)
    assert run("update", folder / "m.kqeq", tmp_path / "c.xyz", "-o", tmp_path / "new.kqeq") == 0
    expected = model.update(read(tmp_path / "c.xyz", ":"))
    new = kqeq.load(tmp_path / "new.kqeq")
    assert new.predict(pool[0]).energy == expected.predict(pool[0]).energy
    assert new.fit_report_.n_frames == 14
    assert new.posterior_ is not None


def test_select_from_a_model_without_posterior(folder, tmp_path, capsys):
    kqeq.load(folder / "m.kqeq").save(tmp_path / "bare.kqeq")
    assert run("select", tmp_path / "bare.kqeq", folder / "test.xyz", "-n", 2) == 2
    assert "posterior" in capsys.readouterr().err


# -------------------------------------------------------------------- split


def test_split_keeps_trajectories_together(tmp_path, capsys):
    frames = kqeq.datasets.load("water")
    write(tmp_path / "all.xyz", frames)
    names = [tmp_path / f"{part}.xyz" for part in ("train", "test", "valid")]
    outputs = ("-o", names[0], "--test", names[1], "--validation", names[2], "--json", tmp_path / "s.json")
    assert run("split", tmp_path / "all.xyz", *outputs, "--fraction", "0.25", "--seed", "3") == 0
    parts = [read(name, ":") for name in names]
    assert sum(map(len, parts)) == len(frames)
    groups = [{(str(a.symbols), a.info["total_charge"], a.info["seed"]) for a in part} for part in parts]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    for part in parts[1:]:
        assert 0.15 < len(part) / len(frames) < 0.35
    numbers = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))
    assert sorted(i for part in numbers.values() for i in part) == list(range(len(frames)))
    assert "groups by trajectory" in capsys.readouterr().out


def test_trajectories_are_found_where_no_entry_tells_them_apart():
    first = Atoms("OH", [(0, 0, 0), (0, 0, 1.0)])
    frames = []
    for start in (0.0, 5.0):
        for step in range(3):
            frames.append(first.copy())
            frames[-1].positions += (start, 0.01 * step, 0.0)
    frames.append(Atoms("OH2", [(0, 0, 0), (0, 0, 1.0), (0, 1, 0)]))
    assert groups_of(frames) == [0, 0, 0, 1, 1, 1, 2]
    train, test = kqeq.split(frames, [0.4])
    assert {tuple(train), tuple(test)} != {(), tuple(range(7))}
    assert set(train) | set(test) == set(range(7))
    assert not set(train) & set(test)
    assert groups_of(frames, "composition") == [0] * 6 + [1]


def test_what_cannot_be_split(tmp_path, capsys):
    frames = [Atoms("Ag", info={"run": 1}) for _ in range(4)]
    with pytest.raises(InputError, match="1 group"):
        kqeq.split(frames, [0.5])
    with pytest.raises(InputError, match=r"no 'label' in atoms\.info"):
        kqeq.split(frames, [0.5], by="label")
    with pytest.raises(InputError, match="sum is below 1"):
        kqeq.split(frames, [0.5, 0.5], by="random")
    assert [len(part) for part in kqeq.split(frames, [0.25, 0.25], by="random")] == [2, 1, 1]


# ------------------------------------------------------------------- config


def settings(model):
    """Settings as plain data."""
    return {
        name: (type(value).__name__, value.get_params()) if hasattr(value, "get_params") else value
        for name, value in {**model.get_params(deep=False), "charges": model.charges}.items()
    }


@pytest.mark.parametrize(
    "model",
    [
        kqeq.KQEq(),
        kqeq.KQEq(short_range=kqeq.SOAPKernel(r_cut=3.5, delta=0.5), optimize=None, noise={"forces": 0.05}),
        kqeq.KQEq(None, charges=None, e0={"H": -13.6}, targets=["energy"], baseline="zbl", budget="1 h"),
        kqeq.KQEq(charges=kqeq.AtomicDipoles(kqeq.ACKS2(softness="learn"), polarizability={"H": 0.5})),
        kqeq.KQEq(
            charge_aware=kqeq.ChargeKernel(order=1), site_kernel=kqeq.SOAPKernel(), label_prefix='a"\\b'
        ),
    ],
    ids=["defaults", "kernel", "alone", "dipoles", "aware"],
)
def test_settings_come_back_from_the_template(model, tmp_path):
    path = tmp_path / "s.toml"
    path.write_text(template(model), encoding="utf-8")
    first, second = settings(model), settings(load_config(path))
    for name, value in first.items():
        if hasattr(value, "__iter__") and name == "charges" and value[0] == "AtomicDipoles":
            assert second[name][1]["inner"].get_params() == value[1]["inner"].get_params()
            assert second[name][1]["polarizability"] == value[1]["polarizability"]
        else:
            assert second[name] == value, name


def test_several_kernels_come_back():
    import tomllib

    kernels = [
        kqeq.SOAPKernel(r_cut=5.0),
        kqeq.SOAPKernel(r_cut=2.5, weighting={"function": "exp", "r0": 1.0}),
    ]
    again = model_from_dict(tomllib.loads(template(kqeq.KQEq(short_range=kernels))))
    assert [k.get_params() for k in again.short_range] == [k.get_params() for k in kernels]


def test_every_setting_of_the_template_is_explained(folder, tmp_path, capsys):
    assert run("config", "-o", tmp_path / "s.toml") == 0
    text = (tmp_path / "s.toml").read_text(encoding="utf-8")
    for name in kqeq.KQEq().get_params(deep=False):
        assert re.search(rf"^# .+\n(?:# )?(?:{name} = |\[+{name}\])", text, flags=re.MULTILINE), name
    capsys.readouterr()
    assert run("config", folder / "m.kqeq") == 0
    assert "r_cut = 3.5" in capsys.readouterr().out


# --------------------------------------------------------------- completion


def complete(words):
    """What bash offers for the last of these words."""
    line = " ".join(words)
    code = script("bash", cli.build_parser()) + (
        f"\nCOMP_WORDS=({' '.join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}; COMP_LINE={line!r}\n"
        '_kqeq; printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_completion_in_bash():
    assert complete(["kqeq", "ev"]) == ["evaluate"]
    assert {"--charge", "--field", "--fmax", "--trajectory"} <= set(complete(["kqeq", "optimize", "--"]))
    assert complete(["kqeq", "md", "--ensemble", "n"]) == ["nvt", "nve", "npt"]
    assert complete(["kqeq", "completion", "f"]) == ["fish"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command_and_option(shell, capsys):
    assert run("completion", shell) == 0
    text = capsys.readouterr().out
    for name, (_, parser) in (
        __import__("kqeq.cli.completion", fromlist=["_"])._commands(cli.build_parser()).items()
    ):
        assert name in text
        for action in parser._actions:
            for flag in action.option_strings:
                assert (flag if shell != "fish" else flag.lstrip("-")) in text
    program = shutil.which(shell)
    if program is not None:  # its own opinion of the syntax
        subprocess.run([program, "-n"], input=text, text=True, check=True, timeout=60)


# ----------------------------------------------------------------- progress


def test_progress_on_request_and_only_then(folder, kernel, water_training, capsys, monkeypatch):
    model = kqeq.KQEq(kernel(3.5), kernel(4.0), noise={"forces": 0.5})
    model.fit(water_training)
    assert capsys.readouterr().err == ""
    with kqeq.show_progress():
        model.fit(water_training)
    err = capsys.readouterr().err
    assert "12 frames" in err
    assert re.search(r"iteration 0: loss \S+, promised drop \S+; at most .+ more", err)
    monkeypatch.setenv("KQEQ_PROGRESS", "1")
    with kqeq.show_progress(False):
        model.fit(water_training)
    assert capsys.readouterr().err == ""


def test_the_estimate_of_the_rest(monkeypatch):
    from kqeq.io import progress

    clock = iter(np.arange(0.0, 100.0, 2.0))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    remaining = progress.Remaining(most=10)
    assert remaining.note(1000.0, 1.0) == (None, None, 18.0)
    # it falls tenfold an iteration of two seconds: two more to 1
    assert remaining.note(100.0, 1.0) == (2, 4.0, 16.0)
    assert remaining.note(10.0, 1.0) == (1, 2.0, 14.0)
    assert remaining.note(0.9, 1.0) == (0, 0.0, 12.0)
    assert progress.duration(5.0) == "5 s"
    assert progress.duration(200.0) == "3 min"
    assert progress.duration(3700.0) == "62 min"
    assert progress.duration(7500.0) == "2 h 5 min"
