"""How much the sparse features miss, learned from the training frames themselves.

The prior says how large that part of a site quantity is which the sparse features cannot express, δ² (K − Φ Φᵀ), and
no label constrains it (:mod:`kqeq.uncertainty`).  But δ is learned from what the features *can* express, the large
and smooth part of the quantity; the fine rest of real energies is much smaller than the kernel would have it (water
clusters: a few thousandths of the variance).  So its variance gets a factor κ of its own for each kernel, chosen for
the best predictions of frames that are left out: with the labels of frame f left out, all in closed form,

    y_f − ŷ_f = (1 − H_ff)⁻¹ r_f,     variance (1 − H_ff)⁻¹ + Σ_kernels κ ρ_f,        H_ff = J_f H⁻¹ J_fᵀ

in units of the noise, with r_f the residuals of the fit and ρ_f what the features miss.  κ maximises the sum of the log
densities of energies, dipoles and charges (Geisser & Eddy 1979, *J. Am. Stat. Assoc.* 74, 153; Sundararajan & Keerthi
2001, *Neural Comput.* 13, 1103), next to a broad log-normal prior around 1.  What is left out comes from the training
distribution: where environments are unlike any of it, errors may exceed what κ promises.

Dimensions: n labels of one frame, m labels of all frames, k kernels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kqeq.backend.linalg import solve_lower
from kqeq.fitting.rows.blocks import deviation, frame_rows, target_vector
from kqeq.fitting.rows.features import TrainingFrame
from kqeq.io.progress import track
from kqeq.typing import FloatArray
from kqeq.uncertainty.posterior import Posterior, Uncertain

KINDS = ("energy", "dipole", "charges")
"""Labels that are compared; forces would need the second derivatives of the kernel."""

MOST_FRAMES = 400
"""Frames that are left out in turn; more would hardly change two numbers."""

RANGE = (1e-3, 1e2)
"""Factors stay between these."""

SPREAD = 2.0
"""Prior standard deviation of ln κ."""


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Predictions of labels without their frames, in units of the noise.

    Attributes
    ----------
    errors : (m,) array
        y − ŷ.
    variances : (m,) array
        Noise and parameters.
    missed : (m, k) array
        ρ.
    """

    errors: FloatArray
    variances: FloatArray
    missed: FloatArray


def leave_out(posterior: Posterior, frames: Sequence[TrainingFrame]) -> LeftOut:
    """Predict labels of some training frames from all others.

    Parameters
    ----------
    posterior : Posterior
    frames : sequence of TrainingFrame
        As they were fitted.
    """
    names, known = list(posterior.parameters.kernels), posterior.parameters.kernels
    errors, variances, missed = [], [], []
    for frame in track(frames, "left out", total=len(frames)):
        view = Uncertain(posterior, frame.structure, forces=frame.needs_gradients, base=frame.baseline)
        residual, rows = frame_rows(
            frame, view.line.features, posterior.parameters, posterior.u, posterior.noise, jacobian="full"
        )
        assert rows is not None
        scaled = solve_lower(posterior.lower, rows.T)
        error, variance, start = *without_frame(residual, scaled), 0
        for kind in frame.labels.kinds:
            stop = start + target_vector(frame, kind).size
            if kind in KINDS and frame.labels.weight > 0.0:
                scale = deviation(frame, kind, posterior.noise) ** -2
                own = np.zeros((stop - start, len(names)))
                for kernel, values in view.missed(view.linear_map(kind)):
                    own[:, [known[name] is kernel for name in names]] = scale * values[:, None]
                errors.append(error[start:stop])
                variances.append(variance[start:stop])
                missed.append(own)
            start = stop
    if not errors:
        return LeftOut(np.zeros(0), np.zeros(0), np.zeros((0, len(names))))
    return LeftOut(np.concatenate(errors), np.concatenate(variances), np.concatenate(missed))


def without_frame(residual: FloatArray, scaled: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Errors and variances of the labels of a frame without it, (n,), from r and L⁻¹ Jᵀ (P, n)."""
    # 1 − H_ff is positive definite; labels that only their own frame determines make it nearly singular
    values, vectors = np.linalg.eigh(np.eye(len(residual)) - scaled.T @ scaled)
    inverse = (vectors / np.maximum(values, 1e-10)) @ vectors.T
    return inverse @ residual, np.diagonal(inverse)


def log_density(left_out: LeftOut, theta: FloatArray) -> tuple[float, FloatArray]:
    """Sum of log densities and log prior at κ = exp(theta), (k,), and its gradient."""
    own = left_out.missed * np.exp(theta)
    total = left_out.variances + own.sum(axis=1)
    ratio = left_out.errors**2 / total
    value = -0.5 * float(np.log(total).sum() + ratio.sum()) - 0.5 * float(theta @ theta) / SPREAD**2
    gradient = 0.5 * ((ratio - 1.0) / total) @ own - theta / SPREAD**2
    return value, np.asarray(gradient)


def learn_remainder(posterior: Posterior, frames: Sequence[TrainingFrame]) -> tuple[Posterior, str]:
    """The posterior with factors κ learned from (at most :data:`MOST_FRAMES`) frames that are left out in turn.

    Returns
    -------
    Posterior, str
        And a line for the report.
    """
    chosen = [frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, MOST_FRAMES).astype(int))]
    return with_learned(posterior, leave_out(posterior, chosen))


def with_learned(posterior: Posterior, left_out: LeftOut) -> tuple[Posterior, str]:
    """The posterior with the factors κ that predictions of left-out labels ask for, and a line for the report."""
    from scipy.optimize import minimize

    names = list(posterior.parameters.kernels)
    if not names:
        return posterior, "no kernel: nothing is missed"

    def negative(theta: FloatArray) -> tuple[float, FloatArray]:
        value, gradient = log_density(left_out, theta)
        return -value, -gradient

    found = minimize(
        negative,
        np.zeros(len(names)),
        jac=True,
        method="L-BFGS-B",
        bounds=[(math.log(RANGE[0]), math.log(RANGE[1]))] * len(names),
    )
    factors = dict(zip(names, np.exp(found.x), strict=True))
    text = ", ".join(f"{name} {factor:.3g}" for name, factor in factors.items())
    learned = replace(posterior, parameters=posterior.parameters.with_remainders(factors))
    return learned, f"variance of what sparse features miss, relative to the prior: {text}"


__all__ = [
    "KINDS",
    "LeftOut",
    "learn_remainder",
    "leave_out",
    "log_density",
    "with_learned",
    "without_frame",
]
