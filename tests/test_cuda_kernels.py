"""CUDA source: nvcc compiles it, and compiled as C++ it gives the numbers of its array twin.

A thread of these kernels never waits for another, so a loop over thread indices on the CPU does what a GPU would.
"""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest

from kqeq.electrostatics import cuda_kernels
from kqeq.electrostatics.radial import screened_coulomb

HEADER = """
#include <cmath>
using namespace std;
#define __device__ static
#define __global__
struct Index { unsigned x; };
static Index blockIdx, blockDim, threadIdx;
"""

DRIVER = """
extern "C" void run(
    int threads, long long pairs, int order, double kappa, const double *r2, const double *a, double *out)
{
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x * (long long)threads < pairs; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < (unsigned)threads; ++threadIdx.x)
            screened_coulomb(pairs, order, kappa, r2, a, out);
}
"""


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_nvcc_compiles_it(architecture, tmp_path):
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("no CUDA compiler (nvcc) on this machine")
    source = tmp_path / "kernels.cu"
    source.write_text(cuda_kernels.SOURCE)
    target = tmp_path / "kernels.cubin"
    done = subprocess.run(
        [
            compiler,
            "-cubin",
            f"-arch={architecture}",
            "-Werror",
            "all-warnings",
            "-o",
            str(target),
            str(source),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert target.stat().st_size > 1000


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler on this machine")
    folder = tmp_path_factory.mktemp("kernels")
    source, target = folder / "kernels.cpp", folder / "kernels.so"
    source.write_text(HEADER + cuda_kernels.SOURCE + DRIVER)
    subprocess.run(
        [compiler, "-O2", "-shared", "-fPIC", "-o", str(target), str(source)], check=True, timeout=300
    )
    return ctypes.CDLL(str(target)).run


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("kappa", [0.2, 0.9])
def test_the_same_numbers(compiled, order, kappa):
    rng = np.random.default_rng(0)
    pairs = 2 * cuda_kernels.THREADS + 7  # the last block is not full
    r2 = np.concatenate([[0.0, 1e-12, 1e-3], rng.uniform(0.01, 80.0, pairs - 3)])
    a = rng.uniform(0.4, 1.5, pairs)
    out = np.full((order + 1, pairs), np.nan)
    pointers = [ctypes.c_void_p(x.ctypes.data) for x in (r2, a, out)]
    compiled(
        ctypes.c_int(cuda_kernels.THREADS),
        ctypes.c_longlong(pairs),
        ctypes.c_int(order),
        ctypes.c_double(kappa),
        *pointers,
    )
    expected = np.stack(screened_coulomb(r2, a, kappa, order))
    assert np.abs(expected).max() > 0.1
    # where both terms are alike their difference keeps fewer digits, in either code
    np.testing.assert_allclose(out, expected, rtol=1e-11, atol=1e-14)


def test_it_is_off_unless_asked_for(monkeypatch):
    monkeypatch.delenv("KQEQ_CUDA_KERNELS", raising=False)
    assert not cuda_kernels.wanted()
    monkeypatch.setenv("KQEQ_CUDA_KERNELS", "1")
    assert cuda_kernels.wanted()
    # and says nothing to other libraries
    assert len(screened_coulomb(np.ones(2), np.ones(2), 0.5, 1)) == 2


@pytest.mark.gpu
def test_the_same_numbers_on_a_gpu():
    from kqeq.backend import asarray_like, to_numpy
    from kqeq.devices import resolve
    from kqeq.errors import DeviceError

    try:
        device = resolve("cuda")
    except DeviceError as error:
        pytest.skip(str(error))
    rng = np.random.default_rng(0)
    r2, a = rng.uniform(0.0, 80.0, 1000), rng.uniform(0.4, 1.5, 1000)
    there = cuda_kernels.screened_coulomb(*(asarray_like(x, device.like) for x in (r2, a)), 0.5, 3)
    for value, expected in zip(there, screened_coulomb(r2, a, 0.5, 3), strict=True):
        np.testing.assert_allclose(to_numpy(value), expected, rtol=1e-10, atol=1e-14)
