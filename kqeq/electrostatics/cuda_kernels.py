"""CUDA source of the radial functions of real-space Ewald sums: one kernel in place of some thirty array operations.

The reference is :func:`kqeq.electrostatics.radial.screened_coulomb`, which hands over to this one where
:func:`kqeq.backend.use_raw_kernels` says so.

Dimensions: P pairs.
"""

from __future__ import annotations

import numpy as np

from kqeq import backend
from kqeq.backend import namespace
from kqeq.typing import Array

SOURCE = r"""
// B_0 .. B_order of erf(a r)/r for t = a^2 r^2 < 1: Boys functions by their series, then downwards.
__device__ void near_coulomb(double r2, double a, int order, double *b)
{
    const double t = r2 * a * a, decay = exp(-t);
    double total = 1.0, boys[4];
    for (int k = 17; k > 0; --k) total = 1.0 + total * (2.0 * t / (2 * order + 2 * k + 1));
    boys[order] = decay * total / (2 * order + 1);
    for (int n = order - 1; n >= 0; --n) boys[n] = (2.0 * t * boys[n + 1] + decay) / (2 * n + 1);
    double factor = 1.1283791670955126 * a;
    for (int n = 0; n <= order; ++n) {
        b[n] = boys[n] * factor;
        factor *= 2.0 * a * a;
    }
}

// C_0 .. C_order of erfc(a r)/r for r > 0.
__device__ void far_complement(double r2, double a, int order, double *c)
{
    const double r = sqrt(r2), inverse = 1.0 / r2;
    double factor = 1.1283791670955126 * a * exp(-(r2 * (a * a)));
    c[0] = erfc(a * r) / r;
    for (int n = 0; n < order; ++n) {
        c[n + 1] = ((2 * n + 1) * c[n] + factor) * inverse;
        factor *= 2.0 * a * a;
    }
}

// out[n * pairs + p] = B_n of [erfc(kappa r) - erfc(a r)]/r, n <= order <= 3.
extern "C" __global__ void screened_coulomb(
    long long pairs, int order, double kappa, const double *r2, const double *a, double *out)
{
    const long long p = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (p >= pairs) return;
    const double largest = a[p] > kappa ? a[p] : kappa;
    double first[4], second[4];
    const bool close = r2[p] * largest * largest < 1.0;
    if (close) {
        near_coulomb(r2[p], a[p], order, first);
        near_coulomb(r2[p], kappa, order, second);
    } else {
        far_complement(r2[p], kappa, order, first);
        far_complement(r2[p], a[p], order, second);
    }
    for (int n = 0; n <= order; ++n) out[n * pairs + p] = first[n] - second[n];
}
"""

THREADS = 256


def screened_coulomb(r2: Array, a: Array, kappa: float, order: int) -> list[Array]:
    """As :func:`kqeq.electrostatics.radial.screened_coulomb`, for CuPy arrays (P,) and order ≤ 3."""
    xp = namespace(r2, a)
    pairs = int(r2.shape[0])
    out = backend.empty((order + 1, pairs), r2)
    if pairs:
        arguments = (
            np.int64(pairs),
            np.int32(order),
            np.float64(kappa),
            xp.ascontiguousarray(r2),
            xp.ascontiguousarray(a),
            out,
        )
        kernel = backend.raw_kernel(SOURCE, "screened_coulomb")
        kernel((-(-pairs // THREADS),), (THREADS,), arguments)
    return [out[n, :] for n in range(order + 1)]


__all__ = ["SOURCE", "THREADS", "screened_coulomb"]
