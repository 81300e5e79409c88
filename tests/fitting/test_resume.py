"""Interrupted fits: killed at any moment, stopped by hand, continued with the wrong file."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from conftest import NOISE, small_kernel
from kqeq import KQEq
from kqeq.errors import InputError, ModelFileError
from kqeq.fitting import checkpoint as ck
from kqeq.fitting import minimisation as fitting
from kqeq.io.archive import read_archive

SCRIPT = """
import sys, time
sys.path[:0] = {tests!r}
from test_resume import make, training
from kqeq.fitting import minimisation as fitting

# slow enough to be caught between two checkpoints
original = fitting.write_checkpoint
def slowly(*arguments):
    original(*arguments)
    time.sleep(0.4)
fitting.write_checkpoint = slowly
make().fit(training(), resume=sys.argv[1])
"""


def training():
    import kqeq

    systems = {}
    for atoms in kqeq.datasets.load("water"):
        systems.setdefault(atoms.info["system"], []).append(atoms)
    return [systems[name][i] for name in ("water1", "water2", "hydronium", "hydroxide") for i in (0, 3, 6)]


def make(**options):
    return KQEq(small_kernel(3.5), small_kernel(4.0, zeta=4), **{"noise": NOISE, **options})


def steps(path):
    """Iterations in a checkpoint; −1 while there is none."""
    if not path.exists():
        return -1
    return len(read_archive(path, ck.FORMAT, ck.VERSION, "checkpoint", "")[0]["iterations"])


def assert_same_fit(first, second):
    np.testing.assert_array_equal(first.posterior_.u, second.posterior_.u)
    np.testing.assert_array_equal(first.posterior_.lower, second.posterior_.lower)
    assert first.fit_report_.iterations == second.fit_report_.iterations
    assert first.fit_report_.loss == second.fit_report_.loss


@pytest.fixture(scope="module")
def whole():
    return make().fit(training())


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("after", [0, 2])
def test_a_killed_fit_continues_to_the_same_bits(after, whole, tmp_path):
    assert len(whole.fit_report_.iterations) > after + 1
    path = tmp_path / "fit.checkpoint"
    code = SCRIPT.format(tests=[str(Path(__file__).parent), str(Path(__file__).parents[1])])
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        deadline = time.monotonic() + 120
        while steps(path) < after:
            assert child.poll() is None, "the fit ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == -signal.SIGKILL
    reached = steps(path)
    assert reached >= after
    assert_same_fit(make().fit(training(), resume=path), whole)


def test_control_c_leaves_a_usable_checkpoint(whole, tmp_path, monkeypatch):
    path = tmp_path / "fit.checkpoint"
    original = fitting.joblib_engine
    calls = []

    def engine(*arguments):
        calls.append(arguments)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(fitting, "joblib_engine", engine)
    with pytest.raises(KeyboardInterrupt):
        make().fit(training(), resume=path)
    assert steps(path) >= 1
    assert [p.name for p in tmp_path.iterdir()] == ["fit.checkpoint"]  # nothing half written is left behind
    assert_same_fit(make().fit(training(), resume=path), whole)


def test_a_finished_fit_is_not_done_again(whole, tmp_path):
    path = tmp_path / "fit.checkpoint"
    first = make().fit(training(), resume=path)
    before = path.read_bytes()
    second = make().fit(training(), resume=path)
    for model in (first, second):
        np.testing.assert_array_equal(model.posterior_.u, whole.posterior_.u)
    assert path.read_bytes() == before


def test_more_iterations_may_be_allowed_later(whole, tmp_path):
    path = tmp_path / "fit.checkpoint"
    from kqeq.errors import KQEqWarning

    with pytest.warns(KQEqWarning, match="without converging"):
        make(max_iterations=1).fit(training(), resume=path)
    assert_same_fit(make().fit(training(), resume=path), whole)


def test_closed_form_fits_accept_a_path(tmp_path):
    path = tmp_path / "fit.checkpoint"
    model = KQEq(small_kernel(3.5), short_range=None, targets=["dipole"])
    first = model.fit(training(), resume=path).posterior_.u
    np.testing.assert_array_equal(model.fit(training(), resume=path).posterior_.u, first)


# ------------------------------------------- wrong files


@pytest.mark.parametrize(
    "change",
    [
        {"noise": {**NOISE, "energy": 0.06}},
        {"short_range": small_kernel(4.0, zeta=3)},
        {"e0": {"H": -13.6, "O": -2040.0}},
    ],
)
def test_other_settings_are_refused(change, tmp_path):
    path = tmp_path / "fit.checkpoint"
    make().fit(training(), resume=path)
    before = path.read_bytes()
    with pytest.raises(ModelFileError, match="another fit"):
        KQEq(
            **{
                "electronegativity": small_kernel(3.5),
                "short_range": small_kernel(4.0, zeta=4),
                "noise": NOISE,
                **change,
            }
        ).fit(training(), resume=path)
    assert path.read_bytes() == before


def test_other_frames_are_refused(tmp_path):
    path = tmp_path / "fit.checkpoint"
    make().fit(training(), resume=path)
    moved = [atoms.copy() for atoms in training()]
    moved[3].info["total_charge"] = training()[3].info.get("total_charge", 0.0)
    moved[3].calc = training()[3].calc
    moved[3].positions[0, 0] += 1e-9
    moved[3].calc.atoms = moved[3].copy()
    with pytest.raises(ModelFileError, match="another fit"):
        make().fit([*training()[:3], moved[3], *training()[4:]], resume=path)
    with pytest.raises(ModelFileError, match="another fit"):
        make().fit(training()[:-1], resume=path)


@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty", "other archive"])
def test_damaged_files_are_refused_and_kept(damage, tmp_path, whole):
    path = tmp_path / "fit.checkpoint"
    make().fit(training(), resume=path)
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "foreign":
        path.write_text("the notes of last week")
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        whole.save(path)
    before = path.read_bytes()
    with pytest.raises(ModelFileError, match="checkpoint"):
        make().fit(training(), resume=path)
    assert path.read_bytes() == before


def test_paths_that_cannot_be_written_are_refused_before_the_work(tmp_path):
    with pytest.raises(InputError):
        make().fit(training(), resume=tmp_path / "no folder" / "fit.checkpoint")


@pytest.mark.parametrize(
    ("charges", "stage"), [(True, "alone"), (True, "start"), (True, "finished"), (False, "finished")]
)
def test_an_interrupted_search_goes_on(stage, charges, tmp_path, monkeypatch):
    """Stopped after any of its fits, the search finds what it would have found, without the fits that it had made."""
    from kqeq.fitting.evidence import left_out

    path = tmp_path / "fit"

    def searched():
        short_range = [small_kernel(3.5, zeta=4), small_kernel(2.5, sigma=0.3)]
        if charges:
            return KQEq(small_kernel(3.5), short_range, optimize="left-out", noise={"dipole": 0.05})
        return KQEq(None, short_range, None, optimize="left-out", targets=["energy", "forces"])

    frames = training()[::2]
    whole = searched().fit(frames)
    original = left_out.write_search

    def stopping(where, mark, reached):
        original(where, mark, reached)
        if reached.stage == stage:
            raise KeyboardInterrupt

    monkeypatch.setattr(left_out, "write_search", stopping)
    with pytest.raises(KeyboardInterrupt):
        searched().fit(frames, resume=path)
    assert not path.exists()
    monkeypatch.setattr(left_out, "write_search", original)
    fits = []
    collect = left_out.collect
    monkeypatch.setattr(left_out, "collect", lambda *given: fits.append(1) or collect(*given))
    assert_same_fit(searched().fit(frames, resume=path), whole)
    assert len(fits) <= {"alone": 3, "start": 3, "finished": 0}[stage]
    with pytest.raises(ModelFileError, match="another fit"):
        searched().fit(frames[1:], resume=path)
