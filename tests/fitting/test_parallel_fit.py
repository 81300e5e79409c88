"""Fits in parallel: the same result whoever computes the sums."""

import functools
import os
import signal

import joblib
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from conftest import NOISE, small_kernel
from kqeq import KQEq
from kqeq.errors import WorkerError
from kqeq.fitting import minimisation as fitting
from kqeq.fitting import problem as problems


def models():
    return {
        "dipoles": KQEq(small_kernel(3.5), short_range=None, targets=["dipole"]),
        "energies and forces": KQEq(small_kernel(3.5), small_kernel(4.0, zeta=4), noise=NOISE),
    }


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks although there are few frames."""
    monkeypatch.setattr(problems, "CHUNK_ROWS", 40)


@pytest.fixture
def chunks(monkeypatch):
    """How many chunks each problem of a fit has."""
    seen = []
    original = problems.FitProblem.__init__

    def build(self, *arguments, **options):
        original(self, *arguments, **options)
        seen.append(len(self.chunks))

    monkeypatch.setattr(problems.FitProblem, "__init__", build)
    return seen


def moved(frames, count):
    """More frames: as they are, and elsewhere (copies would be one frame with a weight)."""
    found = []
    for k in range(count):
        for atoms in frames:
            copy = atoms.copy()
            copy.positions += 0.01 * k
            copy.calc = None if atoms.calc is None else SinglePointCalculator(copy, **atoms.calc.results)
            found.append(copy)
    return found


def assert_equal(first, second):
    for name in ("u", "lower"):
        a, b = getattr(first.posterior_, name), getattr(second.posterior_, name)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * np.abs(b).max())
    assert first.fit_report_.loss == pytest.approx(second.fit_report_.loss, rel=1e-10)
    assert len(first.fit_report_.iterations) == len(second.fit_report_.iterations)


@pytest.mark.parametrize("what", ["dipoles", "energies and forces"])
@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_parallel_equals_serial(what, backend, water_training, chunks):
    frames = moved(water_training, 3) if what == "dipoles" else water_training
    serial = models()[what].fit(frames)
    with joblib.parallel_config(backend=backend, n_jobs=2):
        parallel = models()[what].fit(frames)
    assert max(chunks) > 1
    assert_equal(parallel, serial)


def test_evidence_in_parallel(water_training, chunks):
    frames = moved(water_training, 2)
    serial = models()["dipoles"].fit(frames, optimize="evidence")
    with joblib.parallel_config(backend="threading", n_jobs=2):
        parallel = models()["dipoles"].fit(frames, optimize="evidence")
    assert min(chunks) > 1
    assert parallel.fit_report_.notes == serial.fit_report_.notes
    assert_equal(parallel, serial)


def test_the_number_of_chunks_changes_nothing_but_rounding(water_training, monkeypatch):
    """One chunk or many: sums in another order."""
    many = models()["energies and forces"].fit(water_training)
    monkeypatch.setattr(problems, "CHUNK_ROWS", 10_000)
    one = models()["energies and forces"].fit(water_training)
    np.testing.assert_allclose(many.posterior_.u, one.posterior_.u, rtol=0, atol=1e-6)


def test_errors_of_workers_arrive(water_training, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("in a worker")

    monkeypatch.setattr(problems, "chunk_sums", fail)
    with joblib.parallel_config(backend="threading", n_jobs=2), pytest.raises(ZeroDivisionError):
        models()["dipoles"].fit(water_training)


def test_nothing_is_kept_after_a_fit(water_training):
    before = set(problems._STORES)
    models()["dipoles"].fit(water_training)
    assert set(problems._STORES) == before


# -------------------------------------------------- workers that die


def _die_once(chunk, u, what, turn, *, flag):
    """Sums of a chunk; the first process that creates the file kills itself."""
    try:
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return ORIGINAL_SUMS(chunk, u, what, turn)
    os.kill(os.getpid(), signal.SIGKILL)


def _die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


ORIGINAL_SUMS = problems.chunk_sums
unix = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")


@unix
def test_a_local_worker_that_dies_is_replaced(water_training, chunks, monkeypatch, tmp_path):
    serial = models()["energies and forces"].fit(water_training)
    flag = tmp_path / "died"
    monkeypatch.setattr(problems, "chunk_sums", functools.partial(_die_once, flag=str(flag)))
    with joblib.parallel_config(backend="loky", n_jobs=2):
        parallel = models()["energies and forces"].fit(water_training)
    assert flag.exists() and max(chunks) > 1
    assert_equal(parallel, serial)


@unix
@pytest.mark.slow
def test_workers_that_always_die_end_the_fit_with_a_usable_checkpoint(water_training, monkeypatch, tmp_path):
    path = tmp_path / "fit.checkpoint"
    serial = models()["energies and forces"].fit(water_training)
    calls = []
    original = fitting.joblib_engine

    def engine(*arguments):
        calls.append(1)
        if len(calls) == 4:
            monkeypatch.setattr(problems, "chunk_sums", _die)
        return original(*arguments)

    monkeypatch.setattr(fitting, "joblib_engine", engine)
    with (
        joblib.parallel_config(backend="loky", n_jobs=2),
        pytest.raises(WorkerError, match="resume=path continues"),
    ):
        models()["energies and forces"].fit(water_training, resume=path)
    monkeypatch.setattr(problems, "chunk_sums", ORIGINAL_SUMS)
    assert_equal(models()["energies and forces"].fit(water_training, resume=path), serial)


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("dask.distributed", reason="needs the extra distributed")
    # ports of the system's choice, no dashboard: nothing that a busy machine could refuse
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as local,
        distributed.Client(local) as client,
    ):
        yield client


@pytest.mark.slow
def test_a_dask_cluster_gives_the_serial_answer(cluster, water_training, chunks):
    serial = models()["energies and forces"].fit(water_training)
    with joblib.parallel_config(backend="dask"):
        parallel = models()["energies and forces"].fit(water_training)
    assert max(chunks) > 1
    assert_equal(parallel, serial)
    assert len(set(cluster.run(os.getpid).values())) == 2


@unix
@pytest.mark.slow
def test_a_dask_worker_killed_halfway_changes_nothing(cluster, water_training, monkeypatch, caplog):
    serial = models()["energies and forces"].fit(water_training)
    before = set(cluster.run(os.getpid).values())
    calls = []
    original = fitting.joblib_engine

    def engine(*arguments):
        calls.append(1)
        if len(calls) == 4:
            os.kill(min(before), signal.SIGKILL)
        return original(*arguments)

    monkeypatch.setattr(fitting, "joblib_engine", engine)
    with joblib.parallel_config(backend="dask"):
        parallel = models()["energies and forces"].fit(water_training)
    assert len(calls) > 4
    assert min(before) not in cluster.run(os.getpid).values()
    assert_equal(parallel, serial)
