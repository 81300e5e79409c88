"""CUDA source: nvcc compiles it, and executed on the CPU it gives the numbers of its array twin.

The kernels run in a sequential GPU (``cuda_shim``), started by the package's own code: only the question whether an array
is CuPy's, and the compiler, are replaced.
"""

import shutil
import subprocess
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms

from cuda_shim import Kernels, signatures
from kqeq import backend
from kqeq.backend import raw_kernel, use_raw_kernels
from kqeq.descriptors.soap.arrays import cuda_kernels as soap_cuda_kernels
from kqeq.descriptors.soap.arrays import expansion as soap_arrays
from kqeq.descriptors.soap.arrays.blocks import blocks
from kqeq.descriptors.soap.descriptor import SOAPDescriptor
from kqeq.electrostatics import cuda_kernels, radial
from kqeq.frames.structures import read_structure
from systems import methanol, slab, triclinic

HOST = np.empty(0)


# ----------------------------------------------------------------- the compiler


@cache
def architectures(compiler):
    """Those that this nvcc knows of the generations in use: CUDA 13 begins with 7.5, older ones with less."""
    listed = subprocess.run([compiler, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    return [name for name in ("sm_70", "sm_75", "sm_80", "sm_90", "sm_100") if name in listed.split()]


def compile_with_nvcc(source, folder, only=None):
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("no CUDA compiler (nvcc) on this machine")
    text, target = folder / "kernels.cu", folder / "kernels.fatbin"
    text.write_text(source)
    wanted = [f"-gencode=arch={a.replace('sm', 'compute')},code={a}" for a in only or architectures(compiler)]
    assert len(wanted) >= (1 if only else 3)
    strict = ["-Werror", "all-warnings", "-Xptxas", "-v"]
    command = [compiler, "-fatbin", *wanted, *strict, "-o", str(target), str(text)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert target.stat().st_size > 1000
    return done.stderr


def test_nvcc_compiles_electrostatics(tmp_path):
    compile_with_nvcc(cuda_kernels.SOURCE, tmp_path)


def test_nvcc_compiles_soap_into_registers(tmp_path):
    """Loops over l and m are unrolled: no array of a thread lies in memory, nothing is spilled."""
    said = compile_with_nvcc(soap_cuda_kernels.source(8, 7), tmp_path)
    frames = [
        line.split("bytes stack frame")[0].strip() for line in said.splitlines() if "stack frame" in line
    ]
    assert len(frames) >= 9
    assert set(frames) == {"0"}


@pytest.mark.parametrize(("n_max", "l_max"), [(1, 0), (12, 20)])
def test_nvcc_compiles_soap_of_any_size(tmp_path, n_max, l_max):
    compile_with_nvcc(soap_cuda_kernels.source(n_max, l_max + 1), tmp_path, only=["sm_80"])


def test_a_basis_too_large_for_a_block():
    assert soap_cuda_kernels.fits(SimpleNamespace(n_radial=12, degrees=21))
    assert not soap_cuda_kernels.fits(SimpleNamespace(n_radial=14, degrees=21))


# ------------------------------------------------------------- the sequential GPU

RACE = r"""
extern "C" __global__ void reverse(int number, const double *x, double *out)
{
    __shared__ double row[64];
    row[threadIdx.x] = x[threadIdx.x];
    BARRIER
    out[threadIdx.x] = row[number - 1 - threadIdx.x];
}
"""


def test_the_shim_sees_missing_and_divergent_barriers(tmp_path):
    x, results = np.arange(64.0), {}
    for name, barrier in {"right": "__syncthreads();", "race": ""}.items():
        kernels = Kernels(RACE.replace("BARRIER", barrier), tmp_path / name)
        for order in range(3):
            kernels.order = order
            results[name, order] = np.zeros(64)
            kernels["reverse"]((1,), (64,), (np.int32(64), x, results[name, order]))
            if name == "right":
                np.testing.assert_array_equal(results[name, order], x[::-1])
    assert np.isnan(results["race", 0]).any()
    assert np.isnan(results["race", 2]).any()
    divergent = Kernels(
        RACE.replace("BARRIER", "if (threadIdx.x < 32) __syncthreads();"), tmp_path / "divergent"
    )
    with pytest.raises(AssertionError, match="barrier"):
        divergent["reverse"]((1,), (64,), (np.int32(64), x, np.zeros(64)))


def test_the_shim_refuses_wrong_arguments(tmp_path):
    kernels = Kernels(RACE.replace("BARRIER", "__syncthreads();"), tmp_path)
    assert kernels.signatures == {"reverse": ["int", "const double *", "double *"]}
    x = np.arange(64.0)
    for arguments in ((64, x, x), (np.int64(64), x, x), (np.int32(64), x[::-1], x), (np.int32(64), x > 1, x)):
        with pytest.raises(AssertionError):
            kernels["reverse"]((1,), (64,), arguments)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Each source is compiled once."""
    return cache(lambda source: Kernels(source, tmp_path_factory.mktemp("kernels")))


@pytest.fixture
def kernels_on(compiled, monkeypatch):
    """A function that lets the package use kernels for NumPy arrays; gives those of a source."""

    def switch(source, order=0):
        compiled(source).order = order
        monkeypatch.setattr(backend, "raw_kernel", lambda text, name: compiled(text)[name])
        for module in (backend, soap_arrays):
            monkeypatch.setattr(module, "use_raw_kernels", lambda x: isinstance(x, np.ndarray))
        return compiled(source)

    return switch


def close(result, reference, relative=1e-12):
    assert result.shape == reference.shape
    np.testing.assert_allclose(result, reference, atol=relative * np.abs(reference).max(), rtol=0)


# ------------------------------------------------------------------ the switch


def test_they_are_on_unless_turned_off(monkeypatch):
    monkeypatch.setattr(backend.cuda, "is_cupy", lambda x: x == "a CuPy array")
    monkeypatch.delenv("KQEQ_CUDA_KERNELS", raising=False)
    assert use_raw_kernels("a CuPy array")
    assert not use_raw_kernels(np.ones(1))
    monkeypatch.setenv("KQEQ_CUDA_KERNELS", "0")
    assert not use_raw_kernels("a CuPy array")


def test_the_twins_are_used_otherwise(kernels_on, monkeypatch):
    structure, descriptor = read_structure(methanol()), SOAPDescriptor(3.2, 3, 3)
    twin = descriptor.evaluate_arrays(structure, HOST)
    kernels = kernels_on(soap_cuda_kernels.source(3, 4))
    before = len(kernels.calls)
    monkeypatch.setattr(soap_cuda_kernels, "fits", lambda tables: False)
    large = descriptor.evaluate_arrays(structure, HOST)
    large.adjoint(np.ones(large.values.shape))
    assert len(kernels.calls) == before
    np.testing.assert_array_equal(large.values, twin.values)


# -------------------------------------------------------------- electrostatics


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("kappa", [0.2, 0.9])
def test_screened_coulomb(kernels_on, order, kappa):
    rng = np.random.default_rng(0)
    pairs = 2 * cuda_kernels.THREADS + 7  # the last block is not full
    r2 = np.concatenate([[0.0, 1e-12, 1e-3], rng.uniform(0.01, 80.0, pairs - 3)])
    a = rng.uniform(0.4, 1.5, pairs)
    expected = radial.screened_coulomb(r2, a, kappa, order)
    kernels = kernels_on(cuda_kernels.SOURCE)
    before = len(kernels.calls)
    found = radial.screened_coulomb(r2, a, kappa, order)
    assert kernels.calls[before:] == ["screened_coulomb"]
    assert np.abs(expected).max() > 0.1
    for result, twin in zip(found, expected, strict=True):
        close(result, twin)
    # where both terms are alike their difference keeps fewer digits, in either code
    np.testing.assert_allclose(np.stack(found), np.stack(expected), rtol=1e-11, atol=1e-14)


def test_no_pairs_no_kernel(kernels_on):
    kernels = kernels_on(cuda_kernels.SOURCE)
    before = len(kernels.calls)
    assert [x.shape for x in radial.screened_coulomb(HOST, HOST, 0.5, 2)] == [(0,)] * 3
    assert len(kernels.calls) == before


# ------------------------------------------------------------------------ SOAP


def random_molecule(seed=3, atoms=24):
    """More neighbours of an element than fit into one round, five elements, one of them once."""
    rng = np.random.default_rng(seed)
    numbers = np.concatenate([[9], rng.choice([1, 6, 7, 8], atoms - 1, p=[0.7, 0.1, 0.1, 0.1])])
    return Atoms(numbers, positions=rng.uniform(0.0, 4.0, (atoms, 3)))


def lonely():
    """An atom that sees nobody between two that see each other."""
    return Atoms("HeArHe", positions=[[0, 0, 0], [0, 0, 60.0], [0.3, -1.1, 0.8]])


BASES = [(8, 6), (5, 3), (2, 0), (1, 1), (9, 10)]
STRUCTURES = [random_molecule, methanol, triclinic, slab, lonely]


def soap(n_max, l_max):
    """Neighbours fade out between 4.4 and 5.0 Å, where some pairs lie."""
    return SOAPDescriptor(3.6, n_max, l_max, sigma=0.3, smooth="switch")


def twin_gradients(state, slopes):
    """Pair gradients (P, 3) by the array code for given ∂f/∂(sums before W)."""
    everyone, result = np.arange(len(state)), np.zeros((len(state.pairs), 3))
    for block in blocks(everyone, everyone, state.pairs, len(state.species)):
        _, places, pairs = block.members()
        result[pairs] = state._block_gradients(block, slopes)[places]
    return result


def named(basis):
    return f"n{basis[0]}l{basis[1]}"


@pytest.mark.parametrize("basis", BASES, ids=named)
@pytest.mark.parametrize("make", STRUCTURES, ids=lambda f: f.__name__)
def test_every_soap_kernel_equals_its_twin(kernels_on, make, basis):
    n_max, l_max = basis
    structure = read_structure(make())
    state = soap(n_max, l_max).evaluate_arrays(structure, HOST)
    n_atoms, n_species = len(structure), len(state.species)
    assert make in (methanol, lonely) or state.pairs.switch[1].any()
    context = (state.pairs, state.tables, state.arrays)
    sums = soap_arrays._density_sums(slice(0, n_atoms), state.pairs, n_species, state.tables, state.arrays)
    rng = np.random.default_rng(1)
    slopes = [rng.normal(size=x.shape) for x in sums]
    gradients = twin_gradients(state, slopes)
    forces = state._collect(gradients)
    assert all(np.abs(x).max() > 1e-12 for x in (*sums, forces))  # one radial function reaches no further
    found = []
    for order in range(3):
        kernels_on(soap_cuda_kernels.source(n_max, l_max + 1), order)
        rows = np.full(gradients.shape, np.nan)
        soap_cuda_kernels.pair_gradients(slopes, 0, *context, rows)
        found.append(
            (
                *soap_cuda_kernels.density_sums(state.pairs, n_atoms, n_species, *context[1:]),
                rows,
                soap_cuda_kernels.collect(gradients, state.pairs, n_atoms, state.tables),
            )
        )
    for results in zip(*found, (*sums, gradients, forces), strict=True):
        close(results[0], results[-1])
        # every number is one thread's own sum: the order of threads does not show
        for again in results[1:-1]:
            np.testing.assert_array_equal(again, results[0])


@pytest.mark.parametrize(("basis", "relative"), [((5, 3), 1e-12), ((8, 6), 1e-11)], ids=["n5l3", "n8l6"])
@pytest.mark.parametrize("memory", [None, 30_000], ids=["one chunk", "many chunks"])
@pytest.mark.parametrize("make", STRUCTURES, ids=lambda f: f.__name__)
def test_soap_with_all_kernels(kernels_on, make, memory, basis, relative):
    """From pairs to forces.

    Eight radial functions lose digits where W takes their overlap out: the array code and the one for the CPU differ by
    1.5e-12 there.
    """
    structure, descriptor = read_structure(make()), soap(*basis)
    twin = descriptor.evaluate_arrays(structure, HOST)
    gradient = np.random.default_rng(1).normal(size=twin.values.shape)
    expected = twin.adjoint(gradient)
    raw = twin.pair_gradients(gradient, normalised=False)
    assert np.abs(expected.positions).max() > 1e-3
    kernels = kernels_on(soap_cuda_kernels.source(basis[0], basis[1] + 1))
    before = len(kernels.calls)
    state = descriptor.evaluate_arrays(structure, HOST, memory=memory)
    result = state.adjoint(gradient)
    calls = kernels.calls[before:]
    assert (calls[0], set(calls[1:-1]), calls[-1]) == ("density_sums", {"pair_gradients"}, "collect")
    assert (len(calls) > 3) == (memory is not None)
    close(state.values, twin.values)
    close(state.norms, twin.norms)
    close(state.pair_gradients(gradient, normalised=False), raw, relative)
    close(result.positions, expected.positions, relative)
    close(result.strain, expected.strain, relative)


def test_kernels_stay_in_their_arrays(kernels_on):
    """What surrounds the pairs of some centres is left alone."""
    structure, descriptor = read_structure(triclinic()), SOAPDescriptor(3.2, 5, 3)
    state = descriptor.evaluate_arrays(structure, HOST)
    kernels_on(soap_cuda_kernels.source(5, 4))
    rng = np.random.default_rng(0)
    part = slice(2, 5)
    slopes = [rng.normal(size=c[part].shape) for c in state.coefficients]
    out = np.full((len(state.pairs), 3), np.nan)
    soap_cuda_kernels.pair_gradients(slopes, part.start, state.pairs, state.tables, state.arrays, out)
    n_species = len(state.species)
    inside = slice(state.pairs.offsets[2 * n_species], state.pairs.offsets[5 * n_species])
    assert 0 < inside.start < inside.stop < len(out)
    assert np.isfinite(out[inside]).all()
    assert np.isnan(out[: inside.start]).all()
    assert np.isnan(out[inside.stop :]).all()


def test_derivatives_by_finite_differences(kernels_on):
    atoms, descriptor = random_molecule(), soap(5, 3)
    kernels_on(soap_cuda_kernels.source(5, 4))
    state = descriptor.evaluate_arrays(read_structure(atoms), HOST)
    weights = np.random.default_rng(2).normal(size=state.values.shape)
    slope = state.adjoint(weights).positions
    for atom, axis in ((0, 0), (7, 1), (23, 2)):
        energies = []
        for step in (1e-4, -1e-4):
            moved = atoms.copy()
            moved.positions[atom, axis] += step
            rows = descriptor.evaluate_arrays(read_structure(moved), HOST).values
            energies.append(float(np.sum(weights * rows)))
        assert abs(slope[atom, axis]) > 1e-2
        assert (energies[0] - energies[1]) / 2e-4 == pytest.approx(slope[atom, axis], rel=1e-5)


def test_every_kernel_was_proven_here():
    names = {*signatures(cuda_kernels.SOURCE), *signatures(soap_cuda_kernels.SOURCE)}
    assert names == {"screened_coulomb", "density_sums", "pair_gradients", "collect"}


# ----------------------------------------------------------------------- a GPU


@pytest.fixture
def gpu(monkeypatch):
    from kqeq.backend.devices import resolve
    from kqeq.errors import DeviceError

    try:
        device = resolve("cuda")
    except DeviceError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("KQEQ_CUDA_KERNELS", "1")
    return device


@pytest.mark.gpu
def test_screened_coulomb_on_a_gpu(gpu):
    rng = np.random.default_rng(0)
    r2, a = rng.uniform(0.0, 80.0, 1000), rng.uniform(0.4, 1.5, 1000)
    there = radial.screened_coulomb(*(backend.asarray_like(x, gpu.like) for x in (r2, a)), 0.5, 3)
    for value, expected in zip(there, radial.screened_coulomb(r2, a, 0.5, 3), strict=True):
        np.testing.assert_allclose(backend.to_numpy(value), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.gpu
@pytest.mark.parametrize("basis", BASES, ids=named)
def test_soap_on_a_gpu(gpu, basis):
    assert raw_kernel(soap_cuda_kernels.source(basis[0], basis[1] + 1), "density_sums") is not None
    structure, descriptor = read_structure(triclinic()), soap(*basis)
    twin = descriptor.evaluate_arrays(structure, HOST)
    gradient = np.random.default_rng(1).normal(size=twin.values.shape)
    expected = twin.adjoint(gradient)
    runs = []
    for _ in range(3):
        state = descriptor.evaluate_arrays(structure, gpu.like)
        result = state.adjoint(backend.asarray_like(gradient, gpu.like))
        close(backend.to_numpy(state.values), twin.values, 1e-10)
        close(backend.to_numpy(result.positions), expected.positions, 1e-10)
        close(backend.to_numpy(result.strain), expected.strain, 1e-10)
        runs.append(backend.to_numpy(result.positions))
    for again in runs[1:]:
        np.testing.assert_array_equal(again, runs[0])
