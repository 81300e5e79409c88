"""Threads for compiled kernels: how work is split, how many threads, what is announced."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from kqeq.backend import compiled
from kqeq.backend.threads import ranges, run, thread_count, use_threads
from kqeq.errors import InputError


@pytest.mark.parametrize("n", [1, 2, 7, 100])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_ranges_cover_all_items_once(n, threads):
    work = np.concatenate([[0], np.cumsum(np.random.default_rng(n).integers(0, 50, n))])
    parts = ranges(work, threads)
    items = [i for a, b in parts for i in range(a, b)]
    assert items == list(range(n))
    assert all(a < b for a, b in parts)


def test_ranges_balance_the_work():
    work = np.concatenate([[0], np.cumsum(np.r_[np.full(50, 100), np.full(50, 1)])])
    loads = [work[b] - work[a] for a, b in ranges(work, 2)]
    assert max(loads) < 2 * work[-1] / len(loads)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_run_does_everything_in_threads(count):
    n = 40
    done = np.zeros(n, dtype=int)
    names = set()

    def task(first, last):
        names.add(threading.current_thread().name)
        done[first:last] += 1
        # tasks must not start more threads: they would wait for each other
        if count > 1:
            assert thread_count() == 1

    with use_threads(count):
        run(task, np.arange(n + 1), smallest=0)
    assert (done == 1).all()
    assert (threading.current_thread().name in names) == (count == 1)


def test_errors_in_threads_are_raised():
    def task(first, last):
        raise ZeroDivisionError

    with use_threads(2), pytest.raises(ZeroDivisionError):
        run(task, np.arange(11), smallest=0)


def test_thread_count(monkeypatch):
    monkeypatch.setenv("NUMBA_NUM_THREADS", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert thread_count() == 3
    with use_threads(7):
        assert thread_count() == 7
        with use_threads(1):
            assert thread_count() == 1
        assert thread_count() == 7
    monkeypatch.delenv("NUMBA_NUM_THREADS")
    assert thread_count() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert thread_count() >= 1
    with pytest.raises(InputError, match="at least one"), use_threads(0):
        pass


def test_only_a_compilation_is_announced(tmp_path):
    """The first process compiles; the second reads the cache, slowly, and says nothing."""
    (tmp_path / "kqeq_kernel.py").write_text(
        "import time\nfrom numba import njit\n"
        "@njit('float64(float64)', cache=True)\ndef half(x):\n    return x / 2\n"
        "@njit('float64(float64)', cache=True)\ndef double(x):\n    return 2 * x\n"
        "time.sleep(1.2)\n"
    )
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from kqeq.backend import compiled\n"
        "print(compiled.load('kqeq_kernel').double(2.0))\n"
    )
    said = "kqeq: compiling the descriptor kernels (once; they are cached on disk) ...\n"
    for expected in (said, ""):
        result = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
        )
        assert result.stdout == "4.0\n"
        assert result.stderr == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_processes_can_use_threads():
    code = (
        "import multiprocessing, numpy as np\n"
        "from kqeq.backend.threads import run, use_threads\n"
        "def total(_):\n"
        "    done = np.zeros(9)\n"
        "    with use_threads(2):\n"
        "        run(lambda a, b: done.__setitem__(slice(a, b), 1), np.arange(10), 0)\n"
        "    return done.sum()\n"
        "total(0)\n"
        "with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "    assert pool.map(total, range(4)) == [9] * 4\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


def test_kernels_load_where_nothing_can_be_written(monkeypatch):
    # numba refuses to cache when it finds no directory; a temporary one serves then
    from numba import config

    monkeypatch.setattr(config, "CACHE_DIR", "")
    seen = []

    def import_module(name):
        seen.append(config.CACHE_DIR)
        if not config.CACHE_DIR:
            raise RuntimeError("cannot cache function 'f': no locator available for file 'f.py'")
        return sys

    monkeypatch.setattr(compiled, "import_module", import_module)
    assert compiled.load("kernels") is sys
    assert seen[0] == ""
    assert "kqeq" in seen[1]

    def broken(name):
        raise RuntimeError("something else")

    monkeypatch.setattr(compiled, "import_module", broken)
    with pytest.raises(RuntimeError, match="something else"):
        compiled.load("kernels")
