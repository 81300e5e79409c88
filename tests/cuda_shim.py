"""A sequential GPU: CUDA source compiled as C++, every thread of every block a coroutine of one CPU thread.

``__syncthreads`` hands over to the next thread of the block, so kernels with barriers run as they would on a GPU, in
whatever order of threads a test chooses: results that depend on it show a missing barrier.  Shared memory is filled with
NaN before each block.  A barrier that only some threads of a block reach, arguments of a wrong type, arrays that are not
contiguous and blocks of more than 1024 threads are errors.
"""

import ctypes
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

HEADER = r"""
#include <cmath>
#include <cstring>
#include <functional>
#include <ucontext.h>
#include <vector>
using namespace std;
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("shared_memory")))
struct Index { unsigned x; };
static Index blockIdx, blockDim, gridDim, threadIdx;
static char __attribute__((section("shared_memory"), used)) nothing_shared;
// arrays, not single characters: fortified compilers (Ubuntu's default) stop a memset beyond an object's size
extern "C" char __start_shared_memory[], __stop_shared_memory[];

namespace shim {
struct Thread { ucontext_t context; bool done; unsigned long barriers; };
vector<Thread> threads;
vector<char> stacks;
ucontext_t scheduler;
function<void()> kernel;
Thread *current;

void enter()
{
    kernel();
    current->done = true;
    swapcontext(&current->context, &scheduler);
}

// order 0: first thread first, 1: last thread first, 2: odd threads first, then even ones
unsigned nth(unsigned k, unsigned block, int order)
{
    if (order == 1) return block - 1 - k;
    if (order == 2) return k < block / 2 ? 2 * k + 1 : 2 * (k - block / 2);
    return k;
}

int launch(int order, unsigned grid, unsigned block)
{
    const size_t stack = 256 * 1024;
    threads.resize(block);
    stacks.resize(block * stack);
    gridDim.x = grid;
    blockDim.x = block;
    for (unsigned b = 0; b < grid; ++b) {
        blockIdx.x = b;
        memset(__start_shared_memory, 0xff, __stop_shared_memory - __start_shared_memory);
        for (unsigned t = 0; t < block; ++t) {
            threads[t].done = false;
            threads[t].barriers = 0;
            getcontext(&threads[t].context);
            threads[t].context.uc_stack.ss_sp = stacks.data() + t * stack;
            threads[t].context.uc_stack.ss_size = stack;
            threads[t].context.uc_link = &scheduler;
            makecontext(&threads[t].context, enter, 0);
        }
        for (bool finished = false; !finished;) {
            for (unsigned k = 0; k < block; ++k) {
                const unsigned t = nth(k, block, order);
                current = &threads[t];
                threadIdx.x = t;
                swapcontext(&scheduler, &current->context);
            }
            finished = threads[0].done;
            for (const Thread &thread : threads)
                if (thread.done != finished || thread.barriers != threads[0].barriers) return 1;
        }
    }
    return 0;
}
}  // namespace shim

static void __syncthreads()
{
    shim::Thread *self = shim::current;
    const Index own = threadIdx;
    ++self->barriers;
    swapcontext(&self->context, &shim::scheduler);
    threadIdx = own;
}
"""

TYPES = {
    "int": (ctypes.c_int, np.int32),
    "long long": (ctypes.c_longlong, np.int64),
    "double": (ctypes.c_double, np.float64),
}


def signatures(source):
    """Name to argument types of the kernels of a source."""
    pattern = r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(([^)]*)\)'
    found = {}
    for name, arguments in re.findall(pattern, source):
        types = [re.sub(r"\w+$", "", " ".join(a.split())).strip() for a in arguments.split(",")]
        found[name] = types
    return found


class Kernels:
    """The kernels of one source, compiled for the CPU; a kernel is called as one of CuPy, with NumPy arrays."""

    def __init__(self, source, folder, flags=("-O1",)):
        compiler = shutil.which("g++") or shutil.which("c++")
        if compiler is None or not sys.platform.startswith("linux"):
            pytest.skip("no C++ compiler for Linux on this machine")
        self.signatures = signatures(source)
        assert self.signatures
        drivers = ""
        for name, types in self.signatures.items():
            declared = ", ".join(f"{t} a{k}" for k, t in enumerate(types))
            given = ", ".join(f"a{k}" for k in range(len(types)))
            drivers += f"""
extern "C" int run_{name}(int order, unsigned grid, unsigned block, {declared})
{{
    shim::kernel = [&] {{ {name}({given}); }};
    return shim::launch(order, grid, block);
}}
"""
        folder.mkdir(parents=True, exist_ok=True)
        text, target = folder / "kernels.cpp", folder / "kernels.so"
        text.write_text(HEADER + source + drivers)
        command = [compiler, *flags, "-std=c++17", "-shared", "-fPIC", "-o", str(target), str(text)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        self.library = ctypes.CDLL(str(target))
        self.order = 0
        self.calls = []

    def __getitem__(self, name):
        types = self.signatures[name]
        run = getattr(self.library, f"run_{name}")

        def kernel(grid, block, arguments):
            assert len(grid) == len(block) == 1
            assert 0 < grid[0] < 2**31
            assert 0 < block[0] <= 1024
            assert len(arguments) == len(types)
            values = []
            for given, declared in zip(arguments, types, strict=True):
                if declared.endswith("*"):
                    _, dtype = TYPES[declared.removeprefix("const ").removesuffix("*").strip()]
                    assert isinstance(given, np.ndarray)
                    assert given.flags.c_contiguous
                    assert given.dtype == dtype
                    values.append(ctypes.c_void_p(given.ctypes.data))
                else:
                    kind, dtype = TYPES[declared]
                    assert type(given) is dtype
                    values.append(kind(given))
            failed = run(ctypes.c_int(self.order), ctypes.c_uint(grid[0]), ctypes.c_uint(block[0]), *values)
            assert not failed, f"{name}: not all threads of a block came to the same barrier"
            self.calls.append(name)

        return kernel
