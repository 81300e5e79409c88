"""What the command line writes can be read back, in the format that the ending says, or is refused in plain words."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from checks import bare
from kqeq.cli import main
from kqeq.cli.files import check_output, read_frames, with_results, write_frames
from kqeq.errors import InputError, LabelWarning

FIELD = np.array([0.0, 0.02, 0.1])


@pytest.fixture(scope="module")
def model_file(ion_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.kqeq"
    ion_model.save(path)
    return path


@pytest.fixture
def ions(ion_frames):
    """Two hydronium ions with a cell, a constraint-free geometry and data of their atoms."""
    found = []
    for atoms in [a for a in ion_frames if a.info["system"] == "hydronium"][:2]:
        copy = bare(atoms)
        copy.info.update(total_charge=1, external_field=FIELD, seed=3)
        copy.arrays["external_potential"] = np.array([0.1, 0.2, 0.3, 0.4])
        found.append(copy)
    return found


@pytest.fixture
def predicted(ion_model, ions):
    return [with_results(a, ion_model.predict(a), ion_model.potential_) for a in ions]


def run(*arguments):
    return main(list(map(str, arguments)))


# ----------------------------------------------------------------------- formats


@pytest.mark.parametrize("name", ["o.xyz", "o.extxyz", "o", "o.json", "o.db", "o.xyz.gz"])
def test_everything_comes_back(tmp_path, ion_model, predicted, name):
    path = str(tmp_path / name)
    write_frames(path, predicted)
    back = read_frames([path])
    errors = ion_model.evaluate(back)
    assert {"energy", "forces", "dipole", "polarizability"} <= set(errors)
    assert all(errors[kind].rmse < 1e-6 for kind in errors)
    for before, after in zip(predicted, back, strict=True):
        np.testing.assert_allclose(after.info["external_field"], FIELD)
        np.testing.assert_allclose(after.arrays["external_potential"], before.arrays["external_potential"])
        assert np.shape(after.info["polarizability"]) == (9,)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["o.traj", "o.pdb", "o.gen", "o.xsf"])
def test_formats_that_hold_less_say_what_they_drop(tmp_path, predicted, capsys, name):
    write_frames(str(tmp_path / name), predicted[:1])
    back = read(tmp_path / name, ":")
    assert len(back) == 1
    np.testing.assert_allclose(back[0].positions, predicted[0].positions, atol=2e-3)
    error = capsys.readouterr().err
    assert 'cannot hold arrays["external_potential"]' in error or 'arrays["external_potential"]' in error
    assert ("forces" in error) == (name not in ("o.traj", "o.xsf"))


@pytest.mark.parametrize("name", ["o.foo", "o.png", "o.html", "o.txt", "o.kqeq", "o.pov"])
def test_other_endings_are_refused_before_any_work(tmp_path, model_file, name, capsys):
    path = tmp_path / name
    assert run("predict", model_file, "missing.xyz", "-o", path) == 2
    error = capsys.readouterr().err
    assert "no ending of a format that ASE writes and reads back; use .xyz" in error
    assert not path.exists()


def test_what_a_format_refuses_is_said_in_our_words(tmp_path, predicted, capsys):
    with pytest.raises(InputError, match=r"cannot write 2 frames to .* as vasp: .*; use \.xyz"):
        write_frames(str(tmp_path / "POSCAR"), predicted)
    assert os.listdir(tmp_path) == []
    (tmp_path / "old.gen").write_text("old")
    with pytest.raises(InputError, match="cannot write 2 frames"):
        write_frames(str(tmp_path / "old.gen"), predicted)
    assert (tmp_path / "old.gen").read_text() == "old"


def test_devices_take_extended_xyz(predicted):
    assert check_output("/dev/null") == "extxyz"
    write_frames("/dev/null", predicted)


def test_an_existing_database_is_replaced_not_added_to(tmp_path, predicted):
    for _ in range(2):
        write_frames(str(tmp_path / "o.db"), predicted)
    assert len(read(tmp_path / "o.db", ":")) == 2


# -------------------------------------------------------------------------- info


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("two\nlines", True),
        ("a\r\nb", True),
        ('with "quotes" and\nbreaks', True),
        ("plain text", True),
        ("3.0", True),
        ([[1, 2], [3]], False),
        ([1, 2, 3], True),
        (np.eye(2), True),
        (np.arange(9.0), True),
        ({"a": 1}, True),
        ({"a": [1, [2, 3]]}, True),
        (object(), False),
        (1j, False),
        (None, None),
        (True, True),
        (3, True),
        (np.float32(0.5), True),
        (["a", "b"], True),
    ],
)
def test_info_survives_or_is_dropped_with_a_word(tmp_path, predicted, capsys, value, kept):
    frame = predicted[0]
    frame.info["remark"] = value
    write_frames(str(tmp_path / "o.xyz"), [frame])
    (back,) = read(tmp_path / "o.xyz", ":")
    said = 'cannot hold info["remark"]' in capsys.readouterr().err
    assert back.get_potential_energy() == pytest.approx(frame.get_potential_energy(), abs=1e-6)
    assert said != ("remark" in back.info)
    if kept is None:
        return
    assert said != kept
    if kept and isinstance(value, str) and value != "3.0":
        assert back.info["remark"] == value
    elif kept and not isinstance(value, (str, dict)):
        np.testing.assert_array_equal(back.info["remark"], value)


@pytest.mark.parametrize(
    "key", ["Lattice", "Properties", "pbc", "a=b", "two words", 'quo"te', "line\nbreak", "", "stress"]
)
def test_keys_that_break_the_line_are_dropped(tmp_path, predicted, key):
    frame = predicted[0]
    frame.info[key] = "3 x"
    write_frames(str(tmp_path / "o.xyz"), [frame])
    (back,) = read(tmp_path / "o.xyz", ":")
    np.testing.assert_allclose(back.positions, frame.positions, atol=1e-7)
    assert back.info["seed"] == 3
    assert not back.pbc.any()


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a b", "c", "d", "e"]),
        np.array(["", "c", "d", "e"]),
        np.zeros((4, 3, 3)),
        np.array([None] * 4, dtype=object),
        np.zeros(4, dtype=complex),
        np.zeros((4, 0)),
    ],
)
def test_arrays_that_break_the_table_are_dropped(tmp_path, predicted, capsys, array):
    frame = predicted[0]
    frame.arrays["odd"] = array
    write_frames(str(tmp_path / "o.xyz"), [frame])
    (back,) = read(tmp_path / "o.xyz", ":")
    assert "odd" not in back.arrays
    np.testing.assert_allclose(back.arrays["external_potential"], frame.arrays["external_potential"])
    assert 'arrays["odd"]' in capsys.readouterr().err


def test_the_polarizability_is_nine_numbers_in_the_text(tmp_path, model_file, ions):
    write(tmp_path / "in.xyz", ions)
    assert run("predict", model_file, tmp_path / "in.xyz", "-o", tmp_path / "o.xyz") == 0
    assert "_JSON" not in (tmp_path / "o.xyz").read_text()


@pytest.mark.filterwarnings("default::kqeq.errors.LabelWarning")
def test_labels_of_another_method_are_not_taken_for_results(tmp_path, model_file, ions, capsys):
    """A free energy that was in the input must not pass for that of the prediction."""
    ions[0].calc = SinglePointCalculator(ions[0], energy=-5.0, free_energy=-5.1)
    write(tmp_path / "in.xyz", ions[:1])
    assert run("predict", model_file, tmp_path / "in.xyz", "-o", tmp_path / "o.xyz") == 0
    back = read(tmp_path / "o.xyz")
    assert back.info["REF_free_energy"] == -5.1
    assert "free_energy" not in back.calc.results
    assert run("evaluate", model_file, tmp_path / "o.xyz") == 0
    assert "'REF_energy' besides the label that is read" in capsys.readouterr().err


# ------------------------------------------------------------------------- terminal


def shell(command, **options):
    code = "import sys; from kqeq.cli import main; sys.exit(main())"
    return subprocess.run(
        f'"{sys.executable}" -c "{code}" {command}',
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def without_compilation(text):
    """What a command wrote to stderr, less the announcement of a compilation.

    Processes that fill numba's disk cache at the same time can lose each other's entries: a command may compile anew.
    """
    return "".join(x for x in text.splitlines(True) if not x.startswith("kqeq: compiling "))


def test_plain_words_for_streams(tmp_path, model_file, ions):
    write(tmp_path / "in.xyz", ions)
    evaluate = f"predict {model_file} {tmp_path / 'in.xyz'} -o {tmp_path / 'o.xyz'}"
    full = shell(evaluate + " > /dev/full")
    assert (full.returncode, without_compilation(full.stderr)) == (
        2,
        "kqeq: error: cannot write the output: No space left on device\n",
    )
    closed = shell(evaluate + " >&-")
    assert (closed.returncode, without_compilation(closed.stderr)) == (0, "")
    piped = shell(f"predict {model_file} /dev/stdin -o {tmp_path / 'o.xyz'}", input="3\n")
    assert piped.returncode == 2
    assert "is a pipe or a device; write the structures to a file" in piped.stderr


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ("-", "standard input (-) is not read"),
        ("in.xyz@5", "there is no frame 5 in in.xyz, which holds 2"),
        ("in.xyz@-3", "there is no frame -3 in in.xyz, which holds 2"),
        ("in.xyz@7:", "in.xyz@7: chooses none of its 2 structures"),
        ("in.xyz@1.5", "is no choice of frames"),
        ("in.xyz@::0", "cannot read structures|slice step"),
        ("in.xyz@a=1", "cannot read structures from"),
        ("in.xyz@", "there is no file in.xyz@"),
    ],
)
def test_plain_words_for_a_choice_of_frames(tmp_path, model_file, ions, capsys, monkeypatch, frames, text):
    monkeypatch.chdir(tmp_path)
    write("in.xyz", ions)
    code = run("predict", model_file, frames, "-o", "o.xyz")
    error = capsys.readouterr().err
    if frames == "in.xyz@":
        assert code in (0, 2)
        return
    assert code == 2
    assert any(part in error for part in text.split("|")), error
    assert "Traceback" not in error


@pytest.mark.parametrize("command", ["predict", "evaluate --json", "fit"])
def test_a_minus_is_no_file_to_write(tmp_path, model_file, ions, capsys, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    write("in.xyz", ions)
    arguments = {
        "predict": ("predict", model_file, "in.xyz", "-o", "-"),
        "evaluate --json": ("evaluate", model_file, "in.xyz", "--json", "-"),
        "fit": ("fit", "in.xyz", "-o", "-"),
    }[command]
    assert run(*arguments) == 2
    assert "standard output (-) is not written to" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["in.xyz"]


def test_a_file_that_is_no_structure(tmp_path, model_file, capsys):
    (tmp_path / "a.json").write_text('{"a": 1}')
    (tmp_path / "a.db").write_bytes(b"SQLite format 3\x00" + bytes(100))
    (tmp_path / "a.traj").write_bytes(b"- of Ulm" + bytes(50))
    for name in ("a.json", "a.db", "a.traj"):
        assert run("predict", model_file, tmp_path / name, "-o", tmp_path / "o.xyz") == 2
        assert "kqeq: error: " in capsys.readouterr().err


def test_atoms_without_results_are_written_too(tmp_path):
    write_frames(str(tmp_path / "o.json"), [Atoms("H2", [[0, 0, 0], [0, 0, 0.74]])])
    assert len(read(tmp_path / "o.json")) == 2


# ------------------------------------------------------------- what ASE passes over


def table(tmp_path, count="3", comment="Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.5", columns=7):
    rows = ["O 0 0 0 0.1 0 0", "H .96 0 0 -0.1 0 0", "H -.24 .93 0 0 0 0"]
    rows = [" ".join(row.split()[:columns]) for row in rows]
    path = tmp_path / "t.xyz"
    path.write_text("\n".join([count, comment, *rows]) + "\n")
    return str(path)


def test_counts_beyond_the_file_are_refused_at_once(tmp_path):
    for count in ("1000000000000", "-3", "400", "4"):
        with pytest.raises(InputError, match=rf"frame 0 of .* announces {count} atoms"):
            read_frames([table(tmp_path, count)])


def test_columns_that_nobody_names_are_warned_of(tmp_path):
    assert read_frames([table(tmp_path)])[0].get_forces()[0, 0] == 0.1
    for comment, text in (
        ("Properties=species:S:1:pos:R:3 energy=-1.5", "Properties in its comment names 4"),
        ("energy=-1.5", "a comment without Properties stands for 4"),
        ("water", "a comment without Properties stands for 4"),
    ):
        with pytest.warns(LabelWarning, match=f"has 7 columns and {text}: the others are not read"):
            read_frames([table(tmp_path, comment=comment)])
    several = table(tmp_path, comment="water")
    Path(several).write_text(3 * Path(several).read_text())
    with pytest.warns(LabelWarning) as said:
        read_frames([several])
    assert len(said) == 1
    assert r"frame 0 (and 2 more)" in str(said[0].message)
    read_frames([table(tmp_path, comment="water", columns=4)])


@pytest.mark.parametrize("comment", ['note="0 0 1 energy=-1.5', 'note="0 0 1"energy=-1.5', 'no"te="0 0 1"'])
def test_quotation_marks_that_do_not_match_are_warned_of(tmp_path, comment):
    with pytest.warns(LabelWarning, match="quotation marks that do not match"):
        read_frames([table(tmp_path, comment=comment, columns=4)])


@pytest.mark.parametrize("comment", ['dipole="0 0 1" energy=-1.5', 'a="_JSON {\\"b\\": 1}"', 'a 3" pipe', ""])
def test_other_comments_pass(tmp_path, comment):
    assert len(read_frames([table(tmp_path, comment=comment, columns=4)])) == 1
