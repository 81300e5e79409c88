"""Model files: bit for bit there and back, and what happens when a file is not what it should be."""

import errno
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

import kqeq
from checks import assert_same_prediction, bare
from conftest import NOISE
from kqeq import KQEq, QEq
from kqeq.errors import InputError, KQEqError, ModelFileError, ModelNotFittedError, OutputError
from kqeq.io.atomic_write import _host, atomic_path, check_writable
from model_files import edit_header, members, npy, rewrite


@pytest.fixture(scope="module")
def frames(water_systems):
    result = [
        bare(a) for name in ("water1", "water2", "water3", "hydroxide") for a in water_systems[name][1:3]
    ]
    for i, atoms in enumerate(result):
        atoms.info.update(total_charge=i % 3 - 1, external_field=[0.0, 0.01 * i, -0.05])
    return [*result, Atoms("O"), Atoms("H2", [[0, 0, 0], [0, 0, 0.8]])]


@pytest.fixture
def file(water_model, tmp_path):
    path = tmp_path / "model.kqeq"
    water_model.save(path)
    return path


# ---------------------------------------------------------- there and back


@pytest.mark.parametrize("kind", ["water_model", "dipole_model", "short_range_model"])
def test_predictions_after_loading_are_equal_bit_for_bit(kind, request, frames, tmp_path):
    model = request.getfixturevalue(kind)
    path = tmp_path / "model.kqeq"
    model.save(path)
    loaded = kqeq.load(path)
    asked = frames if kind != "short_range_model" else [bare(a) for a in frames]
    for atoms in asked:
        assert_same_prediction(loaded.predict(atoms), model.predict(atoms))
    for first, second in zip(loaded.predict(asked), model.predict(asked), strict=True):
        assert_same_prediction(first, second)


def test_loading_and_saving_again_changes_nothing(file, frames, tmp_path):
    loaded = kqeq.load(file)
    again = tmp_path / "again.kqeq"
    loaded.save(again)
    assert members(again) == members(file)
    assert again.read_bytes() == file.read_bytes()


def test_the_same_model_gives_the_same_file(water_model, file, tmp_path):
    water_model.save(tmp_path / "twin.kqeq")
    assert (tmp_path / "twin.kqeq").read_bytes() == file.read_bytes()


def test_settings_and_report_come_back(water_model, file, water_training):
    loaded = kqeq.load(file)
    ours, theirs = water_model.get_params(), loaded.get_params()
    for name, value in ours.items():
        if name not in ("electronegativity", "short_range", "charges"):
            assert theirs[name] == value, name
    assert loaded.fit_report_ == water_model.fit_report_
    assert str(loaded.fit_report_) == str(water_model.fit_report_)
    assert loaded.species_ == ("H", "O")
    assert loaded.potential_.training_charges == (-1.0, 0.0, 1.0)
    assert loaded.evaluate(water_training).to_dict() == water_model.evaluate(water_training).to_dict()


def test_a_loaded_model_can_be_fitted_again(file, water_model, water_training):
    loaded = kqeq.load(file)
    loaded.fit(water_training)
    for atoms in water_training[:2]:
        assert_same_prediction(loaded.predict(bare(atoms)), water_model.predict(bare(atoms)))


def test_the_training_set_is_not_stored(file, water_training):
    content = members(file)
    header = json.loads(content["header.json"])
    assert header["format"] == "kqeq-model"
    assert header["version"] == 2
    assert header["kqeq"] == kqeq.__version__
    assert "positions" not in content["header.json"].decode()
    arrays = {name for name in content if name != "header.json"}
    assert arrays == {
        f"{part}/{symbol}/{array}.npy"
        for part in ("electronegativity", "short_range")
        for symbol in ("H", "O")
        for array in ("data", "indices", "indptr", "shape", "coefficients")
    } | {"determination/covariance.npy", "determination/prior.npy"}


def test_the_posterior_is_optional(water_model, file, tmp_path):
    path = tmp_path / "with.kqeq"
    water_model.save(path, posterior=True)
    extra = set(members(path)) - set(members(file))
    assert extra == {"posterior/lower.npy", "posterior/u.npy"}
    lower = np.load(io.BytesIO(members(path)["posterior/lower.npy"]))
    np.testing.assert_array_equal(lower, water_model.posterior_.lower)
    atoms = Atoms("OH", [[0, 0, 0], [0, 0, 1.0]])
    assert_same_prediction(kqeq.load(path).predict(atoms), water_model.predict(atoms))
    loaded = kqeq.load(file)
    with pytest.raises(InputError, match="holds no posterior; fit it again"):
        loaded.save(tmp_path / "other.kqeq", posterior=True)
    assert not (tmp_path / "other.kqeq").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"charges": QEq(hardness={8: 11.0, "H": np.float64(12.0)}, width={"O": np.float32(0.5)})},
        {"charges": QEq(hardness={np.int64(1): 13})},
        {"targets": "dipole"},
        {"targets": ("dipole",)},
        {"noise": {"dipole": np.float32(0.02)}},
        {"e0": {"H": np.int64(-13), "O": -2000}},
        {"max_iterations": np.int32(7)},
        {"charges_key": "hirshfeld", "label_prefix": ""},
    ],
)
def test_settings_of_every_type_survive(options, water_training, kernel, tmp_path, frames):
    model = KQEq(kernel(3.0, n_representatives=np.int64(3)), None, **{"targets": ["dipole"], **options})
    model.fit(water_training)
    model.save(tmp_path / "m.kqeq")
    loaded = kqeq.load(tmp_path / "m.kqeq")
    assert_same_prediction(loaded.predict(frames[0]), model.predict(frames[0]))
    loaded.fit(water_training)
    assert_same_prediction(loaded.predict(frames[0]), model.predict(frames[0]))


def test_plain_and_linked_paths(water_model, tmp_path):
    water_model.save(str(tmp_path / "as_string.kqeq"))
    assert kqeq.load(str(tmp_path / "as_string.kqeq")).species_ == ("H", "O")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = tmp_path / "link.kqeq"
    link.symlink_to(elsewhere / "real.kqeq")
    water_model.save(link)
    assert link.is_symlink()
    assert (elsewhere / "real.kqeq").is_file()
    assert kqeq.load(link).species_ == ("H", "O")


# ------------------------------------------------------------------ baseline


@pytest.mark.parametrize("baseline", ["zbl", "zbl:0.4:1.3"])
def test_a_named_baseline_comes_back(baseline, water_training, kernel, tmp_path):
    model = KQEq(
        electronegativity=None, charges=None, short_range=kernel(3.0), baseline=baseline, noise=NOISE
    ).fit(water_training)
    model.save(tmp_path / "m.kqeq")
    loaded = kqeq.load(tmp_path / "m.kqeq")
    close = Atoms("OH", [[0, 0, 0], [0, 0, 0.6]])
    assert model.predict(close).energy_baseline > 0.01
    assert_same_prediction(loaded.predict(close), model.predict(close))
    with pytest.raises(InputError, match=r"fitted on top of zbl.*, but the baseline given is"):
        kqeq.load(tmp_path / "m.kqeq", baseline="zbl:0.1:0.2")


def test_a_calculator_as_baseline_must_be_given_again(water_training, kernel, tmp_path):
    from ase.calculators.emt import EMT
    from ase.calculators.lj import LennardJones

    calculator = LennardJones(sigma=0.5, epsilon=0.01)
    model = KQEq(
        electronegativity=None, charges=None, short_range=kernel(3.0), baseline=calculator, noise=NOISE
    ).fit(water_training)
    path = tmp_path / "m.kqeq"
    model.save(path)
    with pytest.raises(
        InputError, match=r"calculator ase:LennardJones.*kqeq\.load\(path, baseline=calculator\)"
    ):
        kqeq.load(path)
    with pytest.raises(InputError, match="LennardJones, but the baseline given is ase:EMT"):
        kqeq.load(path, baseline=EMT())
    loaded = kqeq.load(path, baseline=LennardJones(sigma=0.5, epsilon=0.01))
    assert_same_prediction(loaded.predict(bare(water_training[0])), model.predict(bare(water_training[0])))


def test_a_baseline_that_does_not_belong_is_refused(file):
    with pytest.raises(InputError, match="fitted without one"):
        kqeq.load(file, baseline="zbl")


# ------------------------------------------- files that are not what they seem


def test_the_digest_notices_what_valid_sums_do_not(file):
    """Another coefficient, with a ZIP archive that is in perfect order."""
    content = members(file)
    name = "short_range/O/coefficients.npy"
    array = np.load(io.BytesIO(content[name]))
    array[0] *= 1.000001
    content[name] = npy(array)
    with zipfile.ZipFile(file, "w") as archive:
        for member, data in content.items():
            archive.writestr(member, data)
    refuses(file, "does not give the digest in its header")


def test_files_without_a_digest_are_read(file, frames, water_model):
    """As version 0.1 wrote them."""
    rewrite(file, lambda content: None)
    assert "digest" not in json.loads(members(file)["header.json"])
    assert_same_prediction(kqeq.load(file).predict(frames[0]), water_model.predict(frames[0]))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.kqeq")
    refuses(tmp_path / "pipe.kqeq", "no regular file")
    with pytest.raises(ModelFileError, match="no regular file"):
        kqeq.load("/dev/zero")


def refuses(path, text):
    with pytest.raises(ModelFileError, match=text) as caught:
        kqeq.load(path)
    assert isinstance(caught.value, OSError)
    assert path.name in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    refuses(tmp_path / "nothing.kqeq", "there is no kqeq model file")
    refuses(tmp_path, "is a folder")
    (tmp_path / "file").write_text("x")
    refuses(tmp_path / "file" / "below.kqeq", "file")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.2, 0.5, 0.9, 0.999])
def test_truncated_files(file, share):
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    refuses(file, "truncated or damaged")


@pytest.mark.parametrize("position", np.linspace(0.02, 0.98, 17))
def test_one_wrong_byte_is_noticed_or_harmless(file, position, water_model):
    """Sums over the content are checked: whatever still loads predicts the same."""
    data = bytearray(file.read_bytes())
    data[int(position * len(data))] ^= 0xFF
    file.write_bytes(bytes(data))
    atoms = Atoms("OH", [[0, 0, 0], [0, 0, 1.0]])
    try:
        loaded = kqeq.load(file)
    except ModelFileError:
        return
    assert_same_prediction(loaded.predict(atoms), water_model.predict(atoms))


@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x05\x06" + bytes(18), b"\x00" * 10_000])
def test_foreign_files(tmp_path, content):
    path = tmp_path / "foreign.kqeq"
    path.write_bytes(content)
    refuses(path, r"no (kqeq )?model file")


def test_other_zip_files(tmp_path):
    path = tmp_path / "arrays.npz"
    np.savez(path, a=np.ones(3))
    refuses(path, r"no kqeq model file \(it has no header\.json\)")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.json", json.dumps({"format": "something else", "version": 1}))
    refuses(path, "its header does not say so")
    for text in ("[]", "null", "3"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("header.json", text)
        refuses(path, "its header does not say so")
    for data in (b"{", b"\xff\xfe"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("header.json", data)
        refuses(path, r"no (kqeq )?model file, or is truncated or damaged")


@pytest.mark.parametrize("version", [3, 99, "2", None, 1.5])
def test_newer_files(file, version):
    edit_header(file, lambda header: header.update(version=version, kqeq="9.9.9"))
    refuses(file, r"written by kqeq 9\.9\.9.*reads versions up to 2. Upgrade with pip install --upgrade kqeq")


class Bomb:
    """Announces itself when it is unpickled."""

    def __reduce__(self):
        return eval, ("__import__('os').environ.update(KQEQ_BOMB='exploded')",)


def test_a_pickle_in_place_of_a_model(tmp_path):
    path = tmp_path / "pickle.kqeq"
    path.write_bytes(pickle.dumps(Bomb()))
    refuses(path, r"no (kqeq )?model file")
    assert "KQEQ_BOMB" not in os.environ


@pytest.mark.parametrize("name", ["short_range/H/coefficients.npy", "posterior/lower.npy", "extra.npy"])
def test_pickles_among_the_arrays_are_refused(file, name):
    array = np.array([Bomb()], dtype=object)
    rewrite(file, lambda content: content.update({name: npy(array, allow_pickle=True)}))
    refuses(file, "pickled objects are refused because they can run code")
    assert "KQEQ_BOMB" not in os.environ


def test_a_pickle_with_another_name_is_not_touched(file):
    rewrite(file, lambda content: content.update({"model.pkl": pickle.dumps(Bomb())}))
    kqeq.load(file)
    assert "KQEQ_BOMB" not in os.environ


def test_files_hold_no_pickles(file):
    for name, data in members(file).items():
        if name.endswith(".npy"):
            assert np.load(io.BytesIO(data), allow_pickle=False).dtype != object


@pytest.mark.parametrize(
    "name",
    [
        "electronegativity/O/data.npy",
        "electronegativity/H/indices.npy",
        "short_range/H/indptr.npy",
        "short_range/O/shape.npy",
        "short_range/O/coefficients.npy",
    ],
)
def test_missing_and_wrong_arrays(file, name):
    original = file.read_bytes()
    rewrite(file, lambda content: content.pop(name))
    refuses(file, "damaged")
    file.write_bytes(original)
    rewrite(file, lambda content: content.update({name: b"\x93NUMPY\x01\x00garbage"}))
    refuses(file, "cannot be read")
    file.write_bytes(original)
    rewrite(file, lambda content: content.update({name: npy(np.zeros(1))}))
    refuses(file, "damaged")


@pytest.mark.parametrize(
    "key",
    [
        "settings",
        "species",
        "energy_offsets",
        "parts",
        "report",
        "training_charges",
        "has_energy",
        "charges_key",
    ],
)
def test_incomplete_headers(file, key):
    edit_header(file, lambda header: header.pop(key))
    refuses(file, "damaged")


@pytest.mark.parametrize(
    "key", ["settings", "species", "energy_offsets", "parts", "report", "training_charges"]
)
def test_headers_of_the_wrong_type(file, key):
    edit_header(file, lambda header: header.update({key: 17}))
    refuses(file, "damaged")


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["settings"].update(colour="red"),
        lambda h: h["settings"]["electronegativity"].update(colour="red"),
        lambda h: h["settings"]["electronegativity"].update(r_cut=-1.0),
        lambda h: h["settings"]["charges"].update(model="Unheard"),
        lambda h: h["parts"]["short_range"]["kernels"][0].update(species=[1]),
        lambda h: h["parts"]["short_range"]["kernels"][0].update(elements=["O", "Qq"]),
        lambda h: h.update(species=["O", "Qq"]),
        lambda h: h["report"].update(colour="red"),
    ],
)
def test_headers_that_make_no_sense(file, change):
    edit_header(file, change)
    refuses(file, "damaged")


def test_an_encrypted_or_unreadable_file(file, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(zipfile, "ZipFile", denied)
    refuses(file, "cannot read the kqeq model file .*: Permission denied")


def test_every_error_is_one_of_ours(file):
    edit_header(file, lambda header: header.update(parts={}))
    with pytest.raises(KQEqError):
        kqeq.load(file)


# ----------------------------------------------------------- atomic writing


def test_no_temporary_files_are_left(water_model, tmp_path):
    water_model.save(tmp_path / "a.kqeq")
    water_model.save(tmp_path / "a.kqeq")
    assert [p.name for p in tmp_path.iterdir()] == ["a.kqeq"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_an_interrupted_save_leaves_the_old_file(water_model, file, error, monkeypatch):
    before = file.read_bytes()
    calls = []
    original = zipfile.ZipFile.writestr

    def failing(self, *args, **options):
        calls.append(args)
        if len(calls) > 3:
            raise error("no space left on device")
        return original(self, *args, **options)

    monkeypatch.setattr(zipfile.ZipFile, "writestr", failing)
    with pytest.raises(error):
        water_model.save(file)
    assert len(calls) > 3
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    monkeypatch.undo()
    assert kqeq.load(file).species_ == ("H", "O")


def test_settings_that_cannot_be_stored_leave_the_old_file(water_model, file, monkeypatch):
    before = file.read_bytes()
    monkeypatch.setattr(water_model, "noise", {"energy": 1j})
    with pytest.raises(TypeError, match="cannot be stored"):
        water_model.save(file)
    assert file.read_bytes() == before
    assert len(list(file.parent.iterdir())) == 1


def test_a_crash_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "x"
    target.write_text("old")

    def crash(*_):
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="power cut"), atomic_path(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_the_new_file_appears_whole_and_with_ordinary_permissions(tmp_path):
    target = tmp_path / "sub.folder" / "x.kqeq"
    target.parent.mkdir()
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.suffix == ".kqeq"
        temporary.write_text("half")
        assert not target.exists()
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask


def test_unwritable_paths_are_found_before_anything_is_written(water_model, tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("keep")
    with pytest.raises(InputError, match="it is a directory; give a file name"):
        water_model.save(tmp_path / "folder")
    with pytest.raises(InputError, match="does not exist; create it first"):
        water_model.save(tmp_path / "missing" / "m.kqeq")
    with pytest.raises(InputError, match="cannot write"):
        water_model.save(tmp_path / "file" / "m.kqeq")
    with pytest.raises(InputError, match="cannot write"):
        water_model.save(tmp_path / ("x" * 300))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="write-protected"):
        check_writable(tmp_path / "file")
    monkeypatch.undo()

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("kqeq.io.atomic_write.tempfile.mkstemp", denied)
    with pytest.raises(InputError, match="Permission denied; choose another folder"):
        check_writable(tmp_path / "new.kqeq")
    assert (tmp_path / "file").read_text() == "keep"
    assert {p.name for p in tmp_path.iterdir()} == {"folder", "file"}


def test_checking_a_path_touches_nothing(tmp_path):
    target = tmp_path / "x"
    target.write_text("old")
    stamp = target.stat().st_mtime_ns
    check_writable(target)
    check_writable(tmp_path / "y")
    check_writable(Path(os.path.relpath(target)))
    assert target.read_text() == "old"
    assert target.stat().st_mtime_ns == stamp
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_saving_an_unfitted_model(tmp_path):
    with pytest.raises(ModelNotFittedError):
        KQEq().save(tmp_path / "m.kqeq")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------- disks that are full, saves that are killed


def full_disk(monkeypatch, folder):
    """Nothing can be written below ``folder`` any more."""
    original = zipfile.ZipFile.writestr

    def writestr(self, *args, **options):
        if Path(self.filename).is_relative_to(folder):
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, *args, **options)

    monkeypatch.setattr(zipfile.ZipFile, "writestr", writestr)


@pytest.fixture
def elsewhere(tmp_path_factory, monkeypatch):
    """The folder for temporary files."""
    folder = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setattr("kqeq.model.storage.tempfile.gettempdir", lambda: str(folder))
    return folder


@pytest.fixture
def fitted(water_training, kernel):
    """A model that no file holds."""
    return KQEq(kernel(3.0, n_representatives=3), None, targets=["dipole"]).fit(water_training)


def test_a_full_disk_does_not_lose_a_fit(fitted, frames, tmp_path, elsewhere, monkeypatch):
    full_disk(monkeypatch, tmp_path)
    with pytest.raises(
        OutputError, match=r"No space left on device; make room, or .*The model was kept at"
    ) as caught:
        fitted.save(tmp_path / "m.kqeq")
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, InputError)
    assert list(tmp_path.iterdir()) == []
    (kept,) = elsewhere.iterdir()
    assert str(kept) in str(caught.value)
    assert_same_prediction(kqeq.load(kept).predict(frames[0]), fitted.predict(frames[0]))


def test_a_model_that_a_file_holds_is_not_kept_twice(
    fitted, water_training, tmp_path, elsewhere, monkeypatch
):
    fitted.save(tmp_path / "m.kqeq")
    loaded = kqeq.load(tmp_path / "m.kqeq")
    full_disk(monkeypatch, tmp_path)
    for model in (fitted, loaded):
        with pytest.raises(OutputError, match=r"unchanged$"):
            model.save(tmp_path / "m.kqeq")
    assert list(elsewhere.iterdir()) == []
    assert kqeq.load(tmp_path / "m.kqeq").species_ == ("H", "O")
    loaded.fit(water_training)
    with pytest.raises(OutputError, match="The model was kept at"):
        loaded.save(tmp_path / "m.kqeq")


def test_where_nothing_can_be_written_the_error_is_still_ours(fitted, tmp_path, monkeypatch):
    full_disk(monkeypatch, Path("/"))
    with pytest.raises(OutputError, match="No space left"):
        fitted.save(tmp_path / "m.kqeq")
    assert list(tmp_path.iterdir()) == []
    assert fitted.species_ == ("H", "O")


def test_a_mistyped_folder_does_not_lose_a_fit_either(fitted, tmp_path, elsewhere):
    with pytest.raises(InputError, match=r"create it first\. The model was kept at"):
        fitted.save(tmp_path / "missing" / "m.kqeq")
    assert len(list(elsewhere.iterdir())) == 1


def test_full_disks_at_the_command_line(tmp_path, water_training, elsewhere, monkeypatch, capsys):
    from ase.io import write

    from kqeq.cli import main

    train = tmp_path / "train.xyz"
    write(train, water_training)
    monkeypatch.setattr(KQEq, "fit", lambda self, frames, **_: _quick_fit(self, frames))
    (tmp_path / "full").mkdir()
    full_disk(monkeypatch, tmp_path / "full")
    assert main(["fit", str(train), "-o", str(tmp_path / "full" / "m.kqeq")]) == 2
    error = capsys.readouterr().err
    assert "The model was kept at" in error
    assert "Traceback" not in error
    assert len(list(elsewhere.iterdir())) == 1


_FIT = KQEq.fit


def _quick_fit(model, frames):
    from conftest import small_kernel

    model.set_params(
        electronegativity=small_kernel(3.0, n_representatives=3), short_range=None, targets=["dipole"]
    )
    return _FIT(model, frames)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_every_error_of_the_operating_system_is_ours(error, tmp_path):
    target = tmp_path / "x.json"
    with pytest.raises(OutputError, match=os.strerror(error)), atomic_path(target):
        raise OSError(error, os.strerror(error))
    assert list(tmp_path.iterdir()) == []


def test_other_exceptions_pass_unchanged(tmp_path):
    for error in (ValueError("x"), KeyboardInterrupt(), ModelFileError("x")):
        with pytest.raises(type(error)) as caught, atomic_path(tmp_path / "x"):
            raise error
        assert caught.value is error


def test_leftovers_of_killed_saves_are_removed_by_the_next(tmp_path):
    target = tmp_path / "m.kqeq"
    code = (
        "import os, signal, sys\nfrom kqeq.io.atomic_write import atomic_path\n"
        "with atomic_path(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for _ in range(2):
        result = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
        assert result.returncode == -9
    assert len(list(tmp_path.iterdir())) == 1  # the second removed what the first had left
    keep = [
        tmp_path / name
        for name in (".m.kqeq.swp", ".m.kqeq.notes.kqeq", ".other.kqeq.1-00000000.abcdefgh.kqeq")
    ]
    living = tmp_path / f".m.kqeq.{os.getppid()}-{_host()}.abcdefgh.kqeq"
    ancient = tmp_path / ".m.kqeq.abcdefgh.kqeq"
    for file in (*keep, living, ancient):
        file.write_text("x")
    os.utime(ancient, (0, 0))
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
    assert {p.name for p in tmp_path.iterdir()} == {target.name, living.name, *(p.name for p in keep)}


def test_posteriors_of_earlier_files_have_another_order(water_training, tmp_path):
    """Electronegativities first, and no word about it: the same uncertainties, and frames can be added."""
    from conftest import small_kernel

    model = KQEq(small_kernel(3.5), small_kernel(4.0, zeta=4), noise=NOISE).fit(water_training[::2])
    model.save(tmp_path / "new.kqeq", posterior=True)
    first, second = (
        model.posterior_.parameters.short_range.columns,
        model.posterior_.parameters.electronegativity.columns,
    )
    assert first.start == 0 and second.stop == model.posterior_.parameters.size
    order = np.r_[np.arange(second.start, second.stop), np.arange(first.stop)]
    lower = np.linalg.cholesky((model.posterior_.lower @ model.posterior_.lower.T)[np.ix_(order, order)])

    def turn(content):
        header = json.loads(content["header.json"])
        del header["posterior"]["short_range_first"]
        content["header.json"] = json.dumps(header).encode()
        for name, values in (("u", model.posterior_.u[order]), ("lower", lower)):
            buffer = io.BytesIO()
            np.save(buffer, values)
            content[f"posterior/{name}.npy"] = buffer.getvalue()

    model.save(tmp_path / "old.kqeq", posterior=True)
    rewrite(tmp_path / "old.kqeq", turn)
    old, new = (kqeq.load(tmp_path / name) for name in ("old.kqeq", "new.kqeq"))
    assert old.posterior_.parameters.electronegativity.columns.start == 0
    atoms = next(a for a in water_training if a.info.get("total_charge", 0) == 0)
    a, b = (m.predict(atoms, uncertainty=True) for m in (old, new))
    for name in ("energy_std", "forces_std", "charges_std", "dipole_std"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-6)
    a, b = (m.update(water_training[1::3]).predict(atoms) for m in (old, new))
    np.testing.assert_allclose(a.forces, b.forces, atol=1e-5)
    assert np.abs(a.forces).max() > 0.1
    old.save(tmp_path / "again.kqeq", posterior=True)
    assert kqeq.load(tmp_path / "again.kqeq").posterior_.parameters.electronegativity.columns.start == 0


def test_other_descriptors_are_refused(water_model, tmp_path):
    """Coefficients mean nothing without their descriptors; files that do not say which have the first."""
    path = tmp_path / "m.kqeq"
    water_model.save(path)
    assert json.loads(members(path)["header.json"])["descriptors"] == {"version": 1}
    edit_header(path, lambda header: header["descriptors"].update(version=7))
    with pytest.raises(ModelFileError, match="for version 7 of the descriptors"):
        kqeq.load(path)
    edit_header(path, lambda header: header.pop("descriptors"))
    assert kqeq.load(path).species_ == water_model.species_
