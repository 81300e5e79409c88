"""Choice of representative (sparse) environments, per element.

Farthest-point sampling and CUR decomposition come from scikit-matter (Goscinski et al. 2023, *Open Research Europe*
3, 81).  This module collects the candidates and removes duplicates, in memory that does not depend on the number of
structures: farthest points are chosen again and again among those chosen before and the next few hundred environments
(the merging of a streaming k-centre algorithm), for CUR and leverage scores a random sample is kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from scipy import sparse

from kqeq.backend import CPU, Device, blas
from kqeq.backend.linalg import factorise_with_jitter, solve_lower
from kqeq.descriptors.base import Descriptor
from kqeq.errors import RepresentativesWarning, warn
from kqeq.frames.structures import Structure
from kqeq.kernels.farthest import DUPLICATE, can_choose, choose_on_device, distinct, farthest_of
from kqeq.kernels.feature_map import (
    DEFAULT_REPRESENTATIVES,
    FeatureMap,
    gram,
    layout_columns,
    used_columns,
)
from kqeq.kernels.settings import Kernel, NetworkKernel
from kqeq.typing import FloatArray, IntArray

DENSE_BUDGET = 1_000_000_000
"""Bytes that the dense candidate matrix of one element may take; beyond it rows are projected randomly."""

GRAM_BUDGET = 500_000_000
"""Bytes that the dot products between all candidates of one element may take."""

PROJECTED_FEATURES = 1024
"""Dimensions that a random projection keeps (distances are preserved to about 5 %)."""

INDEPENDENT = 1e-6
"""Least part of a (normalised) row that has to lie outside the span of others."""

SMALLEST_POOL = 250
POOL_FACTOR = 1
"""Farthest-point sampling: environments that are collected beside those chosen so far before a choice is made among
both; this many at least, and this many times the representatives."""

DISPLACEMENT = 0.01
"""Standard deviation of displacements along which gradients are judged, Å."""

MOST_JUDGES = 2000
"""Environments whose gradients are to be explained."""

GREEDY_BATCH = 16
"""Representatives that are chosen for gradients before covariances are conditioned on them."""

SMALLEST_SAMPLE = 2000
SAMPLE_FACTOR = 10
"""CUR and leverage scores: size of the random sample of candidates per element, likewise."""


def build_feature_map(
    kernel: Kernel,
    structures: Iterable[Structure],
    species: tuple[int, ...],
    *,
    progress: Callable[[Iterable[Structure]], Iterable[Structure]] = lambda items: items,
    role: str = "kernel",
    seed: int = 0,
    device: Device = CPU,
) -> FeatureMap:
    """Choose representatives among the environments of ``structures`` and build the feature map.

    Parameters
    ----------
    kernel : SOAPKernel or NetworkKernel
    structures : iterable of Structure
    species : tuple of int
        All elements that occur, ascending.
    progress : callable
        Wraps the iteration over structures.
    role : str
        Names the kernel in warnings.
    seed : int
        Of what is drawn: with ``selection="leverage"``, displacements, samples of many environments.
    device : Device
        Where farthest points among environments of open molecules are chosen; all else is done on the host.

    Warns
    -----
    RepresentativesWarning
        If there are fewer distinct environments of an element than were asked for.
    """
    with blas.one_thread():
        return _build(kernel, structures, species, progress, role, seed, device)


def _build(
    kernel: Kernel,
    structures: Iterable[Structure],
    species: tuple[int, ...],
    progress: Callable[[Iterable[Structure]], Iterable[Structure]],
    role: str,
    seed: int,
    device: Device,
) -> FeatureMap:
    descriptor: Descriptor
    if isinstance(kernel, NetworkKernel):
        structures = list(structures)  # scales take a pass of their own; the next one finds features computed
        descriptor, progress = kernel.descriptor_for(progress(structures)), lambda items: items
    else:
        descriptor = kernel.descriptor()
    wanted = DEFAULT_REPRESENTATIVES if kernel.n_representatives is None else kernel.n_representatives
    reduce: Reduce
    if kernel.selection == "fps":
        size = wanted + max(SMALLEST_POOL, POOL_FACTOR * wanted)
        reduce = partial(_keep_farthest, n=wanted)
    else:
        sample = max(SMALLEST_SAMPLE, (2 if kernel.selection == "gradients" else SAMPLE_FACTOR) * wanted)
        size, reduce = 2 * sample, partial(_keep_drawn, n=sample)
    gradients = kernel.selection == "gradients"
    if not device.is_host:
        structures = list(structures)  # they are looked at twice
    chosen: dict[int, sparse.csr_array] = {}
    if kernel.selection == "fps" and can_choose(descriptor, structures, device):
        chosen = choose_on_device(descriptor, progress(structures), species, wanted, size, device)
    else:
        pool = _candidates(
            descriptor, progress(structures), species, size, reduce, displaced=gradients, seed=seed
        )
        for z, rows in pool.items():
            if gradients:
                half = rows.shape[1] // 2
                rows, others = rows[:, :half], rows[:, half:]  # noqa: PLW2901
                index = select_for_gradients(rows, others - rows, wanted, float(kernel.zeta))
            else:
                index = choose_rows(rows, wanted, kernel.selection, seed)
            chosen[z] = sparse.csr_array(rows[index])
    short = [f"{chemical_symbols[z]} {rows.shape[0]}" for z, rows in chosen.items() if rows.shape[0] < wanted]
    short = [] if kernel.n_representatives is None else short
    if short:
        warn(
            f"{kernel.n_representatives} representatives per element were asked for the {role} kernel, but the "
            f"training frames have fewer distinct environments of some elements ({', '.join(short)}); all were "
            "taken. Lower n_representatives to silence this.",
            RepresentativesWarning,
        )
    return FeatureMap(descriptor, float(kernel.zeta), chosen, species)


Reduce = Callable[[sparse.csr_array, FloatArray], IntArray]
"""Which of the rows to keep, given a random number that every row keeps for good."""


def _candidates(
    descriptor: Descriptor,
    structures: Iterable[Structure],
    species: tuple[int, ...],
    limit: int,
    reduce: Reduce,
    *,
    displaced: bool = False,
    seed: int = 0,
) -> dict[int, sparse.csr_array]:
    """Environments by element as sparse rows in the common layout; with ``displaced`` twice, atoms moved a little.

    All of them up to ``limit`` per element; whenever there are more they are reduced, so that memory does not depend on
    the number of structures.
    """
    size = max(block.stop for block in descriptor.block_slices(species).values())
    columns: dict[tuple[int, ...], tuple[IntArray, IntArray]] = {}
    rows: dict[int, list[Any]] = {z: [] for z in species}
    keys: dict[int, list[FloatArray]] = {z: [] for z in species}
    count = dict.fromkeys(species, 0)
    rng = np.random.default_rng(seed)
    for structure in structures:
        state = descriptor.evaluate(structure, derivatives=False)
        whole = state.values
        if displaced:
            shifts = DISPLACEMENT * rng.normal(size=structure.positions.shape)
            moved = replace(structure, positions=structure.positions + shifts)
            whole = np.hstack([whole, descriptor.evaluate(moved, derivatives=False).values])
        if state.species not in columns:
            places = layout_columns(descriptor, state.species, species)
            if displaced:
                places = np.concatenate([places, places + size])
            order = np.argsort(places, kind="stable")
            columns[state.species] = (order, places[order].astype(np.int32))
        order, places = columns[state.species]
        for z in structure.species:
            values = whole[structure.numbers == z]
            n, f = values.shape
            block = (values[:, order].ravel(), np.tile(places, n), np.arange(0, n * f + 1, f, dtype=np.int32))
            rows[z].append(sparse.csr_array(block, shape=(n, 2 * size if displaced else size)))
            keys[z].append(rng.random(n))
            count[z] += n
            if count[z] > limit:
                merged, drawn = sparse.vstack(rows[z], format="csr"), np.concatenate(keys[z])
                kept = reduce(merged, drawn)
                rows[z], keys[z], count[z] = [merged[kept]], [drawn[kept]], len(kept)
    return {z: sparse.csr_array(sparse.vstack(blocks, format="csr")) for z, blocks in rows.items() if blocks}


def _keep_farthest(rows: sparse.csr_array, _: FloatArray, *, n: int) -> IntArray:
    """Farthest points so far: rare environments stay, whenever they turn up."""
    return _farthest(rows, n, [0])


def _keep_drawn(_: sparse.csr_array, drawn: FloatArray, *, n: int) -> IntArray:
    """A random subset in which every environment is equally likely, whenever it turned up."""
    return np.sort(np.argsort(drawn, kind="stable")[:n])


def choose_rows(rows: sparse.csr_array, n: int, method: str, seed: int = 0) -> IntArray:
    """Indices of at most ``n`` distinct representative rows, in the order of choice.

    Parameters
    ----------
    rows : sparse (n_candidates, F) matrix
        Normalised environments.
    n : int
    method : {"fps", "cur", "leverage"}
    seed : int
        Of the draw by leverage.
    """
    candidates = rows.shape[0]
    if candidates <= n:
        return _distinct(rows, np.arange(candidates))
    if method == "fps":
        return _distinct(rows, _farthest(rows, n, [0]))
    if method == "leverage":
        order = _distinct(rows, _by_leverage(rows, n, seed))
        return order if len(order) == n else _distinct(rows, _farthest(rows, n, order.tolist()))
    from scipy.sparse.linalg import ArpackError
    from skmatter.sample_selection import CUR

    # scores are renewed twenty times on the way; each renewal is a truncated SVD of all candidates
    selector = CUR(n_to_select=n, k=1, recompute_every=max(1, n // 20))
    try:
        with warnings.catch_warnings():
            # once every direction is covered nothing is left to orthogonalise
            warnings.filterwarnings("ignore", "Column vector contains only zeros", UserWarning)
            selector.fit(_dense(rows, 8 * PROJECTED_FEATURES * candidates))
        order = _independent(rows, np.asarray(selector.selected_idx_, dtype=np.int64))
    except ArpackError:  # nothing is left at all
        order = np.zeros(1, dtype=np.int64)
    if len(order) < n:
        # CUR tells rows apart only up to their rank; a power of the dot product distinguishes more
        order = _farthest(rows, n, order.tolist())
    return _distinct(rows, order)


def _independent(rows: sparse.csr_array, order: IntArray) -> IntArray:
    """The first of the chosen rows, up to one that depends linearly on those before it.

    What CUR chooses from there on follows rounding errors, which differ between machines.
    """
    chosen = rows[order]
    used = used_columns(chosen)
    residuals = np.abs(np.diagonal(np.linalg.qr(chosen[:, used].toarray().T, mode="r")))
    dependent = np.flatnonzero(residuals < INDEPENDENT)
    return order[: int(dependent[0]) if len(dependent) else len(residuals)]


def _farthest(rows: sparse.csr_array, n: int, start: list[int]) -> IntArray:
    """Continue a selection with the rows that are farthest from it, up to ``n`` rows.

    Where the dot products of all candidates fit into memory they are computed in one product: scikit-matter computes
    them row by row, and reads all candidates each time (6 s against 29 for 2000 representatives of four elements).
    """
    candidates = rows.shape[0]
    if 8 * candidates**2 <= GRAM_BUDGET:
        return farthest_of(gram(rows), n, start)
    from sklearn import config_context
    from skmatter.sample_selection import FPS

    selector = FPS(n_to_select=n, initialize=start)
    with config_context(assume_finite=True):  # otherwise every step looks for NaN in all rows
        selector.fit(_dense(rows, DENSE_BUDGET))
    return np.asarray(selector.selected_idx_, dtype=np.int64)


def select_for_gradients(rows: sparse.csr_array, changes: sparse.csr_array, n: int, zeta: float) -> IntArray:
    """Representatives that explain most of the variance of gradients, chosen greedily.

    Forces are derivatives: what matters is not how far apart environments are but how much of ∂f along displacements
    that occur is determined by the values at the representatives.  Under the prior, f ~ GP(0, k),

        cov(∂f_i, f_m) = ζ (p_i·p_m)^(ζ−1) (d_i·p_m)

    with d_i the change of p_i along a random displacement.  The candidate m that explains most, Σ_i cov² / var(f_m), is
    taken, and covariances are conditioned on its value, as in a pivoted Cholesky factorisation; a few at a time, which
    makes conditioning a matrix product, as long as those taken together are not alike.

    Parameters
    ----------
    rows, changes : sparse (n_candidates, F) matrices
        p and d.
    n : int
    zeta : float
        Power of the kernel.

    Returns
    -------
    array of int
        At most ``n`` indices in the order of choice.
    """
    candidates = rows.shape[0]
    if candidates <= n:
        return _distinct(rows, np.arange(candidates))
    used = used_columns(rows)
    values: FloatArray = rows[:, used].toarray()
    judges = np.unique(np.linspace(0, candidates - 1, MOST_JUDGES).astype(int))
    dots = np.clip(values @ values.T, 0.0, None)
    across = zeta * dots[judges] ** (zeta - 1.0) * (changes[judges][:, used].toarray() @ values.T)
    kernel = dots**zeta
    chosen: list[int] = []
    while len(chosen) < n:
        variance = np.diagonal(kernel).copy()
        gains = np.where(variance > DUPLICATE, np.einsum("im,im->m", across, across), 0.0)
        gains /= np.maximum(variance, DUPLICATE)
        gains[chosen] = 0.0
        batch: list[int] = []
        for index in np.argsort(-gains, kind="stable")[: 8 * GREEDY_BATCH]:
            alike = kernel[index, batch] ** 2 > 0.25 * variance[index] * variance[batch]
            if gains[index] > 0.0 and not alike.any():
                batch.append(int(index))
            if len(batch) == min(GREEDY_BATCH, n - len(chosen)):
                break
        if not batch:
            return _distinct(rows, _farthest(rows, n, chosen or [0]))
        chosen += batch
        own = kernel[np.ix_(batch, batch)]
        factor, _ = factorise_with_jitter(own, "the kernel matrix of candidates")
        whitened = solve_lower(factor, kernel[batch])
        across -= solve_lower(factor, across[:, batch].T).T @ whitened
        kernel -= whitened.T @ whitened
    return _distinct(rows, np.array(chosen, dtype=np.int64))


def _by_leverage(rows: sparse.csr_array, n: int, seed: int) -> IntArray:
    """Rows drawn without replacement in proportion to their ridge leverage scores.

    ℓ_i = x_iᵀ (XᵀX + λ 1)⁻¹ x_i with λ the energy beyond the n largest singular values, spread over n directions
    (Alaoui & Mahoney 2015, *NeurIPS* 28; Cohen, Musco & Musco 2017, *SODA*).  The draw is seeded: adding Gumbel
    noise to logarithms of weights and taking the largest is sampling without replacement.
    """
    matrix = _dense(rows, 8 * PROJECTED_FEATURES * rows.shape[0])
    left, singular, _ = np.linalg.svd(matrix, full_matrices=False)
    energy = singular**2
    ridge = max(float(energy[n:].sum()) / n, 1e-12 * float(energy[0]))
    scores = np.einsum("ik,k->i", left**2, energy / (energy + ridge))
    noise = np.random.default_rng(seed).gumbel(size=len(scores))
    keys = np.log(np.maximum(scores, 1e-300)) + noise
    return np.asarray(np.argsort(-keys, kind="stable")[:n], dtype=np.int64)


def _dense(rows: sparse.csr_array, budget: int) -> FloatArray:
    """Dense rows; only the columns in use, or a random projection where even those exceed the budget."""
    used = used_columns(rows)
    if 8 * rows.shape[0] * len(used) <= budget:
        return np.asarray(rows[:, used].toarray())
    rng = np.random.default_rng(0)
    dimensions = min(PROJECTED_FEATURES, len(used))
    projection = rng.normal(scale=dimensions**-0.5, size=(len(used), dimensions))
    return np.asarray(rows[:, used] @ projection)


def _distinct(rows: sparse.csr_array, order: IntArray) -> IntArray:
    """Drop rows that equal an earlier one."""
    return np.asarray(order[distinct(gram(rows[order]))])


__all__ = ["build_feature_map", "choose_rows", "select_for_gradients"]
