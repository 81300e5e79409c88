"""Kernel features on disk: the same fit to the last bit, nothing confused, nothing lost, nothing left behind."""

import dataclasses
import multiprocessing
import shutil

import joblib
import numpy as np
import pytest

import kqeq
from conftest import NOISE, small_kernel
from kqeq import KQEq
from kqeq.errors import InputError
from kqeq.fitting import fit as fitting
from kqeq.fitting import problem
from kqeq.fitting.rows import cache as caches
from kqeq.fitting.rows import features
from kqeq.fitting.rows.features import FeatureStore, TrainingFrame, compute_features
from kqeq.frames.labels import read_frames


def make(**options):
    return KQEq(small_kernel(3.5), small_kernel(4.0, zeta=4), **{"noise": NOISE, **options})


@pytest.fixture
def no_memory(monkeypatch):
    """Features have no room in memory."""
    for module in (problem, features):
        monkeypatch.setattr(module, "MEMORY_BUDGET", 0)


@pytest.fixture
def computed(monkeypatch):
    """How many frames had their features computed."""
    seen = []
    original = features._compute

    def compute(frames, *others):
        seen.extend(frames)
        return original(frames, *others)

    monkeypatch.setattr(features, "_compute", compute)
    return seen


@pytest.fixture
def opened(water_model, tmp_path):
    """A folder, and the frames and parameters of a fit."""
    frames = [
        TrainingFrame(s, dataclasses.replace(labels, stress=None, polarizability=None), i)
        for i, (s, labels) in enumerate(read_frames(kqeq.datasets.load("water")[:6]))
    ]
    folder = caches.CacheFolder(tmp_path, 10**9)
    return folder, frames, water_model.posterior_.parameters


def maps(parameters):
    return [part.feature_maps for part in (parameters.electronegativity, parameters.short_range)]


def assert_same(first, second):
    for name in ("electronegativity", "short_range", "positions", "strain"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def assert_close(first, second):
    """A frame alone and one among others: products of other sizes are rounded differently."""
    for name in ("electronegativity", "short_range", "positions"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=0, atol=1e-12)
    assert first.strain is None and second.strain is None


def test_a_fit_gives_the_same_bits(water_training, tmp_path, no_memory, computed):
    plain = make().fit(water_training)
    without = len(computed)
    cached = make().fit(water_training, cache=tmp_path)
    np.testing.assert_array_equal(cached.posterior_.u, plain.posterior_.u)
    np.testing.assert_array_equal(cached.posterior_.lower, plain.posterior_.lower)
    assert without > 3 * len(water_training)
    # once for dipoles alone, which need no gradients, and once for everything
    assert len(computed) - without <= 3 * len(water_training)
    assert list(tmp_path.iterdir()) == []  # cleaned


def test_files_may_stay_for_other_fits(water_training, tmp_path, no_memory, computed):
    disk = kqeq.DiskCache(tmp_path, keep=True)
    first = make().fit(water_training, cache=disk)
    files = sorted(p for p in tmp_path.rglob("*") if p.is_file())
    assert len(files) == len(water_training)
    computed.clear()
    again = make().fit(water_training, cache=disk)
    with_gradients = [frame for frame in computed if frame.needs_gradients]
    assert with_gradients == []
    np.testing.assert_array_equal(again.posterior_.u, first.posterior_.u)
    # other noises and prior spreads use the same files
    computed.clear()
    make(noise={**NOISE, "forces": 0.3}).set_params(short_range__delta=2.0).fit(water_training, cache=disk)
    assert [frame for frame in computed if frame.needs_gradients] == []
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == files


def test_evidence_uses_the_files_again(water_training, tmp_path, no_memory, computed):
    plain = make().fit(water_training, optimize="evidence")
    without, computed[:] = len(computed), []
    cached = make().fit(water_training, optimize="evidence", cache=tmp_path)
    np.testing.assert_array_equal(cached.posterior_.u, plain.posterior_.u)
    # once for all fits of the search, and once for the predictions of frames that are left out
    assert len([frame for frame in computed if frame.needs_gradients]) == 2 * len(water_training)
    assert without > 20 * len(water_training)


def test_memory_goes_first(opened, computed):
    folder, frames, parameters = opened
    files = folder.files(maps(parameters))
    store = FeatureStore(frames, parameters, 10**9, files)
    for i in range(len(frames)):
        store.get(i)
    assert list(files.path.iterdir()) == []


def test_what_is_read_is_what_was_computed(opened, computed):
    folder, frames, parameters = opened
    files = folder.files(maps(parameters))
    store = FeatureStore(frames, parameters, 0, files)
    for i, frame in enumerate(frames):
        first = store.get(i)
        count = len(computed)
        second = store.get(i)
        assert len(computed) == count
        assert_same(second, first)
        assert_close(first, compute_features(frame, parameters))
        assert list(second.states) == list(first.states)
        for descriptor, state in second.states.items():
            np.testing.assert_array_equal(state.values, first.states[descriptor].values)
    assert len(list(files.path.iterdir())) == len(frames)


@pytest.mark.parametrize(
    "change",
    [
        {"short_range__zeta": 3},
        {"electronegativity__r_cut": 3.4},
        {"short_range__n_representatives": 5},
        {"electronegativity__sigma": 0.45},
        {"short_range__smooth": "none"},
    ],
)
def test_other_settings_have_other_folders(change, opened, water_training):
    folder, _, parameters = opened
    other = make().set_params(**change).fit(water_training).posterior_.parameters
    assert folder.files(maps(other)).path != folder.files(maps(parameters)).path
    same = make().fit(water_training).posterior_.parameters
    assert folder.files(maps(same)).path == folder.files(maps(parameters)).path


def test_other_structures_have_other_files(opened):
    folder, frames, parameters = opened
    files = folder.files(maps(parameters))
    structure = frames[0].structure
    moved = structure.positions.copy()
    moved[0, 0] = np.nextafter(moved[0, 0], 10.0)
    others = [
        dataclasses.replace(structure, positions=moved),
        dataclasses.replace(structure, numbers=structure.numbers[::-1].copy()),
        dataclasses.replace(structure, cell=9.0 * np.eye(3), pbc=np.ones(3, dtype=bool)),
    ]
    names = {files._file(s) for s in (structure, *others)}
    assert len(names) == 4


@pytest.mark.parametrize(
    "damage", ["truncated", "empty", "foreign", "other size", "a block", "one bit", "longer", "another's"]
)
def test_damaged_files_are_computed_again(damage, opened, computed):
    folder, frames, parameters = opened
    files = folder.files(maps(parameters))
    first = FeatureStore(frames, parameters, 0, files).get(0)
    (path,) = files.path.iterdir()
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "foreign":
        path.write_text("the notes of last week")
    elif damage == "a block":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes(512) + content[middle + 512 :])
    elif damage == "one bit":
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    elif damage == "longer":
        path.write_bytes(content + bytes(8))
    elif damage == "another's":
        FeatureStore(frames, parameters, 0, files).get(1)
        (other,) = set(files.path.iterdir()) - {path}
        path.write_bytes(other.read_bytes())
        other.unlink()
        computed.pop()
    else:
        assert files.write(frames[0].structure, np.zeros(7))
    count = len(computed)
    assert_same(FeatureStore(frames, parameters, 0, files).get(0), first)
    assert frames[0] in computed[count:]
    assert path.read_bytes() == content


def test_the_budget_holds(opened):
    folder, frames, parameters = opened
    files = folder.files(maps(parameters))
    FeatureStore(frames, parameters, 0, files).get(0)
    (path,) = files.path.iterdir()
    size = path.stat().st_size
    path.unlink()
    for room in (0.5, 1.5, 3.6):
        limited = dataclasses.replace(files, budget=int(room * (size + features.FILE_OVERHEAD)))
        store = FeatureStore(frames, parameters, 0, limited)
        for i in range(len(frames)):
            store.get(i)
        written = [p.stat().st_size for p in files.path.iterdir()]
        assert sum(written) <= limited.budget
        for p in files.path.iterdir():
            p.unlink()
    # what other settings have left behind counts
    FeatureStore(frames, parameters, 0, files).get(0)
    assert folder.files([()]).budget == folder.budget - size


def test_a_full_disk_does_not_stop_a_fit(opened, monkeypatch):
    folder, frames, parameters = opened
    files = folder.files(maps(parameters))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caches.os, "replace", full)
    store = FeatureStore(frames, parameters, 0, files)
    assert_close(store.get(0), compute_features(frames[0], parameters))
    assert list(files.path.iterdir()) == []


def _write(files, structure, start, count):
    start.wait()
    for i in range(count):
        files.write(structure, np.full(5000, float(i)))


def test_readers_never_see_half_a_file(opened):
    """Two processes write one file again and again while a third reads it."""
    folder, frames, parameters = opened
    files = folder.files(maps(parameters))
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(3)
    writers = [
        context.Process(target=_write, args=(files, frames[0].structure, start, 300)) for _ in range(2)
    ]
    for writer in writers:
        writer.start()
    start.wait()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        values = files.read(frames[0].structure, 5000)
        if values is not None:
            assert (values == values[0]).all()
            seen.add(float(values[0]))
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert len(seen) > 3
    assert len(list(files.path.iterdir())) == 1


def test_worker_processes_share_the_folder(water_training, tmp_path, no_memory, monkeypatch):
    monkeypatch.setattr(problem, "CHUNK_ROWS", 40)
    plain = make().fit(water_training)
    disk = kqeq.DiskCache(tmp_path, keep=True)
    with joblib.parallel_config(backend="threading", n_jobs=2):
        cached = make().fit(water_training, cache=disk)
    # workers return sums that are added, one process adds to the same ones
    scale = np.abs(plain.posterior_.u).max()
    np.testing.assert_allclose(cached.posterior_.u, plain.posterior_.u, rtol=0, atol=1e-10 * scale)
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == len(water_training)


def test_an_interrupted_fit_cleans_up(water_training, tmp_path, no_memory, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "finish", stop)
    with pytest.raises(KeyboardInterrupt):
        make().fit(water_training, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------- bad input


def test_bad_input(water_training, tmp_path):
    with pytest.raises(InputError, match="is no folder; create it first"):
        make().fit(water_training, cache=tmp_path / "missing")
    with pytest.raises(InputError, match="positive number of bytes"):
        make().fit(water_training, cache=kqeq.DiskCache(tmp_path, budget=0))
    with pytest.raises(InputError, match=r"folder, or kqeq\.DiskCache"):
        make().fit(water_training, cache=3)


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_folder_that_vanishes_slows_a_fit_and_no_more(
    water_training, tmp_path, no_memory, monkeypatch, when
):
    """Removed before the first frame, or after some were stored."""
    plain = make().fit(water_training)
    calls = []
    owner, name = (caches.CacheFiles, "write") if when == "later" else (caches.CacheFolder, "files")
    original = getattr(owner, name)

    def vanishing(self, *args):
        calls.append(self.path)
        if len(calls) == (4 if when == "later" else 1):
            shutil.rmtree(tmp_path / "cache")
        return original(self, *args)

    monkeypatch.setattr(owner, name, vanishing)
    (tmp_path / "cache").mkdir()
    for keep in (False, True):
        calls.clear()
        (tmp_path / "cache").mkdir(exist_ok=True)
        cached = make().fit(water_training, cache=kqeq.DiskCache(tmp_path / "cache", keep=keep))
        assert calls
        assert not (tmp_path / "cache").exists()
        np.testing.assert_array_equal(cached.posterior_.u, plain.posterior_.u)
