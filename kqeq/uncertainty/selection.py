"""Which structures of a pool are most worth labelling.

A label of the quantity f with noise σ is worth the information it would give, ½ ln det(1 + V/σ²), with V the posterior
covariance of the frame's values, the part that sparse features miss included (:mod:`kqeq.uncertainty`).  Frames are
chosen greedily; after each choice all variances are conditioned on the labels it would bring, so that a batch does
not ask the same question twice (MacKay 1992, *Neural Comput.* 4, 590; Krause, Singh & Guestrin 2008, *J. Mach.
Learn. Res.* 9, 235).  Variances do not depend on the values of labels: nothing has to be computed in between.

The covariance of a chosen frame's values with those of all others is one column of the full matrix

    C = J H⁻¹ Jᵀ + Σ_parts κ ( δ² m K mᵀ − J_kernel J_kernelᵀ )

and conditioning on it is one step of a Cholesky factorisation: memory grows with pool × chosen, never with pool².

Dimensions: R rows (values) of the whole pool, n rows of one frame, P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from kqeq.backend.linalg import solve_lower
from kqeq.baselines import Baseline
from kqeq.errors import InputError
from kqeq.fitting.parameters import KernelPart
from kqeq.frames.labels import standard_deviation
from kqeq.frames.structures import Structure, as_frames, describe, read_structure
from kqeq.io.progress import track
from kqeq.kernels.feature_map import FeatureMap
from kqeq.typing import FloatArray
from kqeq.uncertainty.posterior import Posterior, require_posterior

if TYPE_CHECKING:
    from ase import Atoms

    from kqeq.model.estimator import KQEq

QUANTITIES = ("energy", "dipole", "charges")
"""What the labels may be."""


@dataclass(frozen=True, eq=False)
class _Candidate:
    """One frame of the pool.

    Attributes
    ----------
    scaled : (P, n) array
        L⁻¹ Jᵀ.
    sites : tuple of (kernel, (n, N) array, (n, p) array, (N, F) array)
        For every kernel part: derivative of the values with respect to the atoms, the kernel part of J, descriptors.
    variance : (n, n) array
        Posterior covariance.
    noise : float
        Standard deviation of the labels.
    """

    structure: Structure
    scaled: FloatArray
    sites: tuple[tuple[KernelPart, FloatArray, FloatArray, FloatArray], ...]
    variance: FloatArray
    noise: float


def select(model: KQEq, pool: Atoms | Sequence[Atoms], n: int, *, quantity: str | None = None) -> list[int]:
    """Choose the ``n`` frames of a pool that are most worth labelling.

    Parameters
    ----------
    model : KQEq
        Fitted in this session, or loaded from a file that holds its posterior.
    pool : sequence of ase.Atoms
        Labels are not needed; total charges and fields are read from the frames as in ``predict``.
    n : int
    quantity : {"energy", "dipole", "charges"}, optional
        What will be labelled.  Energies by default, dipoles for models fitted without energies.  A model with a
        charge-aware short-range energy knows the uncertainty of energies alone, at given charges.

    Returns
    -------
    list of int
        Indices into the pool, the most valuable first.

    Raises
    ------
    InputError
        For an empty pool, more frames than it holds, or a quantity that the model does not determine.
    ModelNotFittedError, UnsupportedError
        Also if the model was loaded without its posterior.
    """
    potential = model.fitted()
    posterior = require_posterior(model.posterior_)
    kind = _quantity(quantity, posterior)
    frames = as_frames(pool)
    if not isinstance(n, Integral) or not 1 <= n <= len(frames):
        raise InputError(f"n is {n!r}; expected a whole number from 1 to {len(frames)}, the size of the pool")
    structures = []
    for i, atoms in enumerate(frames):
        structure = read_structure(atoms, index=i, prefix=model.label_prefix)
        potential.check(structure, describe(atoms, i))
        structures.append(structure)
    if kind == "dipole" and any(structure.periodic for structure in structures):
        raise InputError('the pool holds periodic cells, whose dipole is not defined; use quantity="energy"')
    candidates = [
        _candidate(posterior, structure, kind, potential.baseline)
        for structure in track(structures, "pool", total=len(structures))
    ]
    return _greedy(candidates, int(n))


def _quantity(quantity: Any, posterior: Posterior) -> str:
    """The quantity to select for."""
    possible = [kind for kind in QUANTITIES if kind in posterior.quantities]
    if quantity is None:
        return possible[0]
    if quantity not in possible:
        raise InputError(f"quantity is {quantity!r}; this model determines {', '.join(possible)}")
    return str(quantity)


def _candidate(
    posterior: Posterior, structure: Structure, kind: str, baseline: Baseline | None = None
) -> _Candidate:
    view = posterior.view(structure, baseline=baseline)
    mapped = view.linear_map(kind)
    scaled = solve_lower(posterior.lower, mapped.rows.T)
    variance = scaled.T @ scaled
    sites = []
    for kernel, weights in mapped.sites:
        kernel_rows = mapped.rows[:, kernel.columns]
        missed = kernel.delta**2 * weights @ view.kernel(kernel.feature_map) @ weights.T
        variance = variance + kernel.remainder * (missed - kernel_rows @ kernel_rows.T)
        sites.append((kernel, weights, kernel_rows, view.values[kernel.feature_map]))
    noise = standard_deviation(kind, posterior.noise, len(structure))
    return _Candidate(structure, scaled, tuple(sites), variance, noise)


def _greedy(candidates: Sequence[_Candidate], n: int) -> list[int]:
    """The most informative frame, given the labels of those chosen before, again and again."""
    ends = np.cumsum([0, *(len(c.variance) for c in candidates)])
    current = [c.variance for c in candidates]
    columns = np.zeros((ends[-1], 0))
    chosen: list[int] = []
    for _ in track(range(n), "select", total=n):
        gains = [
            -np.inf if i in chosen else _information(v, c.noise)
            for i, (v, c) in enumerate(zip(current, candidates, strict=True))
        ]
        best = int(np.argmax(gains))
        chosen.append(best)
        if len(chosen) == n:
            break
        own = slice(ends[best], ends[best + 1])
        across = np.vstack([_covariance(c, candidates[best]) for c in candidates])
        across -= columns @ columns[own].T
        block = current[best] + candidates[best].noise ** 2 * np.eye(len(current[best]))
        factor: FloatArray = np.asarray(
            np.linalg.cholesky(_positive(block, candidates[best].noise)), dtype=np.float64
        )
        new = solve_lower(factor, across.T).T
        columns = np.hstack([columns, new])
        current = [v - new[a:b] @ new[a:b].T for v, a, b in zip(current, ends[:-1], ends[1:], strict=True)]
    return chosen


def _covariance(first: _Candidate, second: _Candidate) -> FloatArray:
    """Posterior covariance of the values of two frames, (n, n')."""
    total = first.scaled.T @ second.scaled
    for (own, weights, rows, values), (_, others, other_rows, other_values) in zip(
        first.sites, second.sites, strict=True
    ):
        kernel = _cross_kernel(own.feature_map, first.structure, values, second.structure, other_values)
        missed = own.delta**2 * weights @ kernel @ others.T - rows @ other_rows.T
        total = total + own.remainder * missed
    return np.asarray(total)


def _cross_kernel(
    feature_map: FeatureMap, first: Structure, values: FloatArray, second: Structure, others: FloatArray
) -> FloatArray:
    """K between the atoms of two structures, (N, N'); blocks of elements that only one has meet zeros."""
    dots = np.zeros((len(first), len(second)))
    if first.species == second.species:
        dots = values @ others.T
    else:
        mine = feature_map.descriptor.block_slices(first.species)
        theirs = feature_map.descriptor.block_slices(second.species)
        for pair in mine.keys() & theirs.keys():
            dots += values[:, mine[pair]] @ others[:, theirs[pair]].T
    same = first.numbers[:, None] == second.numbers[None, :]
    return np.where(same, np.clip(dots, 0.0, None) ** feature_map.zeta, 0.0)


def _information(variance: FloatArray, noise: float) -> float:
    """½ ln det(1 + V/σ²)."""
    return 0.5 * float(np.linalg.slogdet(np.eye(len(variance)) + variance / noise**2)[1])


def _positive(block: FloatArray, noise: float) -> FloatArray:
    """Rounding may leave eigenvalues slightly below the noise; lift them."""
    values, vectors = np.linalg.eigh(0.5 * (block + block.T))
    return np.asarray((vectors * np.maximum(values, noise**2)) @ vectors.T)


__all__ = ["QUANTITIES", "select"]
