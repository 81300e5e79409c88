"""CUDA source of the SOAP expansion and of its adjoint: from pairs to sums and back without arrays in between.

The references are the array-namespace functions of ``expansion.py`` (``_density_sums``, ``_block_gradients``,
``_collect``), which hand over to these where :func:`kqeq.backend.use_raw_kernels` says so.

Why they can be expected to pay.  Array by array, every harmonic, exponential and product of a pair goes to memory and
comes back.  Counted on water (two elements, one chunk, everything an array operation reads and writes):

    n, l_max    step         arrays, bytes a pair   operations   kernel, bytes a pair   arithmetic of a pair
    6, 4        expansion           4892                273               51            150 products, 30 exp
                adjoint            13090                450               82            300 products, 30 exp
    8, 6        expansion           9472                503               80            392 products, 56 exp
                adjoint            24828                738              112            784 products, 56 exp

A kernel reads a pair (32 or 40 bytes), writes its gradient (24) and reads or writes the sums of its centre once, in one
launch.  At 2 TB/s, the arrays of 3000 water atoms (393,000 pairs, n 8, l_max 6) take at least 1.9 and 4.9 ms; a kernel's
memory takes 0.02 ms, and its arithmetic 0.2 ms at 10 TFLOP/s if an exponential counts 40.  These are floors, not
measurements.  What is left to array code (W, the power spectrum, packing) grows with centres, not with pairs.

How they reach memory.  Pairs are sorted by centre and element, and a block of threads works on one such segment, so
neighbouring threads read neighbouring pairs.  ``density_sums`` puts harmonics and exponentials of 16 pairs into shared
memory (rows of odd length: no bank conflicts), then each thread adds up one (l, m) and four radial functions, which it
writes as 32 contiguous bytes.  In ``pair_gradients`` a thread has a pair; what it multiplies with lies in shared memory
and is read by all threads at once; three stores of a warp fill one contiguous stretch.  There are no atomic additions:
every sum belongs to one thread, or is added up in a fixed order, so results repeat to the last bit.

Dimensions: N atoms, P pairs, S species, n radial functions, L = (l_max + 1)² harmonics.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from kqeq import backend
from kqeq.backend import arange, empty, namespace
from kqeq.descriptors.soap.arrays.blocks import ArrayPairs, ArrayTables
from kqeq.descriptors.soap.basis import harmonics
from kqeq.descriptors.soap.host.adjoint import Tables
from kqeq.typing import Array

SOURCE = r"""
#define HARMONICS (DEGREES * DEGREES)
#define GROUPS ((N_RADIAL + 3) / 4)           // radial functions are summed four by four
#define ITEMS (HARMONICS * GROUPS)
#define ROUNDS ((ITEMS + THREADS - 1) / THREADS)
#define ANGULAR (HARMONICS | 1)               // odd strides: no two threads meet in a bank of shared memory
#define SHELL ((4 * GROUPS) | 1)
#define RADIAL ((DEGREES * SHELL) | 1)

// R_lm of one degree, from its most negative order on, given those of one and two degrees less.
template <int l> __device__ __forceinline__ void harmonics_of_degree(
    double x, double y, double z, double r2, const double *two, const double *one, double *here)
{
    const int centre = l * l + l;
    const double u = TABLE[7 * (centre + l)];
    if (l == 1) {
        here[0] = u * y * one[0];
        here[2] = u * x * one[0];
    } else {
        here[0] = u * (x * one[0] + y * one[2 * l - 2]);
        here[2 * l] = u * (x * one[2 * l - 2] - y * one[0]);
    }
#pragma unroll
    for (int m = 1 - l; m < l; ++m) {
        double row = TABLE[7 * (centre + m)] * z * one[l - 1 + m];
        if (m > 1 - l && m < l - 1) row -= TABLE[7 * (centre + m) + 1] * r2 * two[l - 2 + m];
        here[l + m] = row;
    }
}

// R_lm of degree l and all above it, degree after degree in one row that holds those below.
template <int l> struct Fill {
    static __device__ __forceinline__ void above(double x, double y, double z, double r2, double *row)
    {
        double *one = row + (l - 1) * (l - 1);
        harmonics_of_degree<l>(x, y, z, r2, l > 1 ? row + (l - 2) * (l - 2) : row, one, row + l * l);
        Fill<l + 1>::above(x, y, z, r2, row);
    }
};
template <> struct Fill<DEGREES> {
    static __device__ __forceinline__ void above(double, double, double, double, double *) {}
};

__device__ __forceinline__ int degree_of(int lm)
{
    int l = 0;
    while ((l + 1) * (l + 1) <= lm) ++l;
    return l;
}

// Where the entries (centre, lm, species, 0) of arrays (centres, 2l + 1, S n) lie that follow each other by degree.
__device__ __forceinline__ long long place(long long centres, int species, long long centre, int lm, int slot)
{
    const long long l = degree_of(lm), width = species * N_RADIAL;
    return (centres * l * l + centre * (2 * l + 1) + (lm - l * l)) * width + slot * N_RADIAL;
}

// sums[l, i, m, (s, k)] = sum over the neighbours of element s of f exp(a r^2) R_lm; one block for each (i, s).
extern "C" __global__ void __launch_bounds__(THREADS, 2) density_sums(
    long long centres, int species, long long pairs, const long long *start, const double *vectors,
    const double *switches, const double *exponents, double *sums)
{
    __shared__ double angular[TILE * ANGULAR];
    __shared__ double radial[TILE * RADIAL];
    __shared__ double squares[TILE];
    const long long segment = blockIdx.x, begin = start[segment], end = start[segment + 1];
    const int thread = threadIdx.x;
    double total[ROUNDS][4];
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round)
        for (int k = 0; k < 4; ++k) total[round][k] = 0.0;
    for (int b = thread; b < TILE * RADIAL; b += THREADS) radial[b] = 0.0;
    for (long long first = begin; first < end; first += TILE) {
        const int count = end - first < TILE ? (int)(end - first) : TILE;
        if (thread < count) {
            const long long p = first + thread;
            const double x = vectors[p], y = vectors[pairs + p], z = vectors[2 * pairs + p];
            const double r2 = x * x + y * y + z * z;
            double *row = angular + thread * ANGULAR;
            squares[thread] = r2;
            row[0] = TABLE[0] * switches[p];  // every R_lm is proportional to R_00
            Fill<1>::above(x, y, z, r2, row);
        }
        __syncthreads();
        for (int item = thread; item < count * DEGREES * N_RADIAL; item += THREADS) {
            const int b = item / (DEGREES * N_RADIAL), lk = item % (DEGREES * N_RADIAL);
            radial[b * RADIAL + lk / N_RADIAL * SHELL + lk % N_RADIAL] = exp(exponents[lk] * squares[b]);
        }
        __syncthreads();
#pragma unroll
        for (int round = 0; round < ROUNDS; ++round) {
            const int item = round * THREADS + thread;
            if (item < ITEMS) {
                const int lm = item % HARMONICS;
                const double *row = angular + lm, *e = radial + degree_of(lm) * SHELL + item / HARMONICS * 4;
                for (int b = 0; b < count; ++b) {
                    const double harmonic = row[b * ANGULAR];
#pragma unroll
                    for (int k = 0; k < 4; ++k) total[round][k] += harmonic * e[b * RADIAL + k];
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        const int item = round * THREADS + thread;
        if (item < ITEMS) {
            const int first = item / HARMONICS * 4;
            double *out = sums + place(centres, species, segment / species, item % HARMONICS, (int)(segment % species));
#pragma unroll
            for (int k = 0; k < 4; ++k)
                if (first + k < N_RADIAL) out[first + k] = total[round][k];
        }
    }
}

// What the pairs of one centre and element add up: f' along r, f, and the gradients of the harmonics.
struct Slope {
    double along, plain, x, y, z;
};

// R_{l,m}, 0 for orders that do not exist
template <int l> __device__ __forceinline__ double order(const double *row, int m)
{
    return m >= -l && m <= l ? row[l + m] : 0.0;
}

template <int l> struct Contract {
    // degree l and all above it; weights: sum over lm and k as they lie in shared memory
    static __device__ __forceinline__ void above(
        double x, double y, double z, double r2, const double *two, const double *one, const double *exponents,
        const double *weights, Slope &slope)
    {
        double here[2 * l + 1], inner[2 * l + 1];
        harmonics_of_degree<l>(x, y, z, r2, two, one, here);
#pragma unroll
        for (int m = 0; m <= 2 * l; ++m) inner[m] = 0.0;
#pragma unroll 1
        for (int k = 0; k < N_RADIAL; ++k) {
            const double a = exponents[l * N_RADIAL + k], e = exp(a * r2);
            const double *d = weights + l * l * N_RADIAL + k;
            double dot = 0.0;
#pragma unroll
            for (int m = 0; m <= 2 * l; ++m) {
                const double term = d[m * N_RADIAL] * e;
                inner[m] += term;
                dot += term * here[m];
            }
            slope.along += 2.0 * a * dot;
        }
#pragma unroll
        for (int m = 0; m <= l; ++m) {
            const double *f = TABLE + 7 * (l * l + l + m) + 2, *g = TABLE + 7 * (l * l + l - m) + 2;
            const double cosine = inner[l + m];
            slope.plain += here[l + m] * cosine;
            slope.x += cosine * (f[0] * order<l - 1>(one, m + 1) + f[1] * order<l - 1>(one, m - 1));
            slope.y += cosine * (f[2] * order<l - 1>(one, -m - 1) + f[3] * order<l - 1>(one, 1 - m));
            slope.z += cosine * (f[4] * order<l - 1>(one, m));
            if (m > 0) {
                const double sine = inner[l - m];
                slope.plain += here[l - m] * sine;
                slope.x += sine * (g[0] * order<l - 1>(one, -m - 1) + g[1] * order<l - 1>(one, 1 - m));
                slope.y += sine * (g[2] * order<l - 1>(one, m + 1) + g[3] * order<l - 1>(one, m - 1));
                slope.z += sine * (g[4] * order<l - 1>(one, -m));
            }
        }
        Contract<l + 1>::above(x, y, z, r2, one, here, exponents, weights, slope);
    }
};
template <> struct Contract<DEGREES> {
    static __device__ __forceinline__ void above(
        double, double, double, double, const double *, const double *, const double *, const double *, Slope &)
    {
    }
};

// out[p, :] = df_i/dr_p of the pairs of ``centres`` centres from ``first`` on; one block for each (i, s).
extern "C" __global__ void __launch_bounds__(PAIR_THREADS) pair_gradients(
    long long first, long long centres, int species, long long pairs, const long long *start, const double *vectors,
    const double *switches, const double *exponents, const double *slopes, double *out)
{
    __shared__ double weights[HARMONICS * N_RADIAL];
    const long long centre = blockIdx.x / species, segment = first * species + blockIdx.x;
    const int slot = (int)(blockIdx.x % species);
    const long long begin = start[segment], end = start[segment + 1];
    for (int item = threadIdx.x; item < HARMONICS * N_RADIAL; item += PAIR_THREADS) {
        const int lm = item / N_RADIAL;
        weights[item] = slopes[place(centres, species, centre, lm, slot) + item % N_RADIAL];
    }
    __syncthreads();
    for (long long p = begin + threadIdx.x; p < end; p += PAIR_THREADS) {
        const double x = vectors[p], y = vectors[pairs + p], z = vectors[2 * pairs + p];
        const double r2 = x * x + y * y + z * z, f = switches[p], df = switches[pairs + p];
        const double one[1] = {TABLE[0]};
        Slope slope = {0.0, 0.0, 0.0, 0.0, 0.0};
#pragma unroll 1
        for (int k = 0; k < N_RADIAL; ++k) {
            const double term = weights[k] * exp(exponents[k] * r2) * one[0];
            slope.plain += term;
            slope.along += 2.0 * exponents[k] * term;
        }
        Contract<1>::above(x, y, z, r2, one, one, exponents, weights, slope);
        const double radially = f * slope.along + df * slope.plain;
        out[3 * p] = f * slope.x + radially * x;
        out[3 * p + 1] = f * slope.y + radially * y;
        out[3 * p + 2] = f * slope.z + radially * z;
    }
}

// out[i, :] = sum of g over pairs whose neighbour is i (their numbers in ``order``) minus those whose centre is i.
extern "C" __global__ void __launch_bounds__(LANES) collect(
    int species, const long long *start, const long long *order, const long long *arriving, const double *gradients,
    double *out)
{
    __shared__ double parts[3 * LANES];
    const long long atom = blockIdx.x;
    const int lane = threadIdx.x;
    double x = 0.0, y = 0.0, z = 0.0;
    for (long long q = arriving[atom] + lane; q < arriving[atom + 1]; q += LANES) {
        const double *g = gradients + 3 * order[q];
        x += g[0];
        y += g[1];
        z += g[2];
    }
    for (long long p = start[atom * species] + lane; p < start[(atom + 1) * species]; p += LANES) {
        const double *g = gradients + 3 * p;
        x -= g[0];
        y -= g[1];
        z -= g[2];
    }
    parts[lane] = x;
    parts[LANES + lane] = y;
    parts[2 * LANES + lane] = z;
    __syncthreads();
    if (lane < 3) {
        double total = 0.0;
        for (int k = 0; k < LANES; ++k) total += parts[lane * LANES + k];
        out[3 * atom + lane] = total;
    }
}
"""

PAIR_THREADS = 64
LANES = 32
_MOST_THREADS = 256
_SHARED_MEMORY = 48 * 1024
"""What every GPU gives a block without being asked, bytes."""


@lru_cache(maxsize=64)
def _sizes(n_radial: int, degrees: int) -> tuple[int, int, int]:
    """Neighbours at a time (0: the basis is too large) and threads of ``density_sums``; bytes of ``pair_gradients``."""
    groups = -(-n_radial // 4)
    items = degrees**2 * groups
    row = (degrees**2 | 1) + ((degrees * (4 * groups | 1)) | 1) + 1
    tile = next((t for t in (16, 8, 4, 2) if 8 * t * row <= _SHARED_MEMORY), 0)
    return tile, min(_MOST_THREADS, 32 * -(-items // 32)), 8 * degrees**2 * n_radial


def fits(tables: Tables) -> bool:
    """Whether the work of a block fits into the shared memory of a GPU (n (l_max + 1)² ≤ 6144)."""
    tile, _, weights = _sizes(tables.n_radial, tables.degrees)
    return tile > 0 and weights <= _SHARED_MEMORY


@lru_cache(maxsize=64)
def source(n_radial: int, degrees: int) -> str:
    """The kernels for one size of the basis, which the compiler has to know: it unrolls the loops over l and m."""
    tile, threads, _ = _sizes(n_radial, degrees)
    angular = harmonics(degrees - 1)
    # recursion (two numbers) and gradients (five) of each harmonic; with known indices they become immediate operands
    table = np.concatenate([angular.recursion, angular.gradient_factors], axis=1).ravel().tolist()
    constants = {
        "N_RADIAL": n_radial,
        "DEGREES": degrees,
        "TILE": tile,
        "THREADS": threads,
        "PAIR_THREADS": PAIR_THREADS,
        "LANES": LANES,
    }
    lines = [f"#define {name} {value}" for name, value in constants.items()]
    lines.append(f"static __device__ const double TABLE[] = {{{', '.join(map(repr, table))}}};")
    return "\n".join(lines) + SOURCE


def _given(centres: int, n_species: int, pairs: ArrayPairs, arrays: ArrayTables) -> tuple[Any, ...]:
    """What both kernels that go over pairs are given, in their order."""
    xp = namespace(pairs.vectors)
    exponents = xp.reshape(xp.concat(arrays.exponents), (-1,))
    sizes = np.int64(centres), np.int32(n_species), np.int64(len(pairs))
    return (*sizes, pairs.start, pairs.vectors, pairs.switch, exponents)


def density_sums(
    pairs: ArrayPairs, n_atoms: int, n_species: int, tables: Tables, arrays: ArrayTables
) -> list[Array]:
    """Sums over neighbours before W, one (N, 2l + 1, S n) array for each l; the centre itself is left out."""
    n_radial, degrees = tables.n_radial, tables.degrees
    width = n_species * n_radial
    sums = empty((n_atoms * degrees**2 * width,), pairs.vectors)
    kernel = backend.raw_kernel(source(n_radial, degrees), "density_sums")
    arguments = (*_given(n_atoms, n_species, pairs, arrays), sums)
    kernel((n_atoms * n_species,), (_sizes(n_radial, degrees)[1],), arguments)
    xp = namespace(sums)
    result = []
    for degree in range(degrees):
        block = sums[n_atoms * degree**2 * width : n_atoms * (degree + 1) ** 2 * width]
        result.append(xp.reshape(block, (n_atoms, 2 * degree + 1, width)))
    return result


def pair_gradients(
    slopes: list[Array], first: int, pairs: ArrayPairs, tables: Tables, arrays: ArrayTables, out: Array
) -> None:
    """Write the gradients of all pairs of some centres to their rows of ``out``, shape (P, 3).

    Parameters
    ----------
    slopes : list of (c, 2l + 1, S n) arrays
        ∂f/∂(sums before W) for each l.
    first : int
        The first of the c centres.
    """
    xp = namespace(out)
    centres, n_species = int(slopes[0].shape[0]), int(slopes[0].shape[2]) // tables.n_radial
    kernel = backend.raw_kernel(source(tables.n_radial, tables.degrees), "pair_gradients")
    flat = xp.concat([xp.reshape(slope, (-1,)) for slope in slopes])
    arguments = (np.int64(first), *_given(centres, n_species, pairs, arrays), flat, out)
    kernel((centres * n_species,), (PAIR_THREADS,), arguments)


def collect(gradients: Array, pairs: ArrayPairs, n_atoms: int, tables: Tables) -> Array:
    """Add pair gradients (P, 3) to the neighbours and subtract them from the centres, shape (N, 3).

    Every atom gathers what arrives, always in the same order, so that results repeat to the last bit; scattered sums
    of CuPy (``bincount``) do not.
    """
    xp = namespace(gradients)
    out = empty((n_atoms, 3), gradients)
    order = xp.argsort(pairs.j, stable=True)
    arriving = xp.searchsorted(xp.take(pairs.j, order), arange(0, n_atoms + 1, gradients))
    kernel = backend.raw_kernel(source(tables.n_radial, tables.degrees), "collect")
    n_species = (len(pairs.offsets) - 1) // n_atoms
    kernel((n_atoms,), (LANES,), (np.int32(n_species), pairs.start, order, arriving, gradients, out))
    return out


__all__ = ["SOURCE", "collect", "density_sums", "fits", "pair_gradients", "source"]
