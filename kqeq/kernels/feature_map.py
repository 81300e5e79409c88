"""Kernel settings and the sparse feature map.

    k(p_i, p_m) = δ_{Z_i Z_m} (p_i · p_m)^ζ
    Φ = K_NM L⁻ᵀ,    K_MM + jitter·1 = L Lᵀ        (per element)

so that a function of the environment is f_i = Σ_m Φ_im w_m with a standard normal prior on w: ordinary
Bayesian linear regression (theory section 2; the subset-of-regressors approximation of Gaussian processes,
Quiñonero-Candela & Rasmussen 2005, *J. Mach. Learn. Res.* 6, 1939).

Representative environments keep only the element-pair blocks that they have.  For a structure they are
projected onto the layout of its own elements, so the cost depends on the elements in that structure and not
on how many the model knows.

Dimensions: N atoms, F features of one layout, M representatives of one element, p = Σ_Z M.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache, cached_property
from types import ModuleType
from typing import Any, Literal

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray
from scipy import sparse

from kqeq.backend import (
    CPU,
    Device,
    asarray_like,
    blas,
    chunk_elements,
    compiled,
    empty,
    full,
    is_numpy,
    namespace,
    place,
    put_rows,
    threads,
    zeros,
)
from kqeq.backend.linalg import factorise_with_jitter, solve_lower
from kqeq.descriptors import evaluate_states
from kqeq.descriptors.base import Descriptor, DescriptorState, FeatureGradients
from kqeq.descriptors.by_centre import gradients_by_centre
from kqeq.descriptors.joined import gradients_by_centre as by_centre_joined
from kqeq.frames.neighbours import Pairs
from kqeq.frames.structures import Structure, composition_of
from kqeq.kernels.settings import (
    DEFAULT_REPRESENTATIVES,
    SELECTIONS,
    Kernels,
    SOAPKernel,
    default_electronegativity,
    default_short_range,
    kernel_tuple,
)
from kqeq.typing import Array, FloatArray, IntArray

_NOBODY = np.zeros(0, dtype=np.int64)

BLAS_ROWS = 512
"""Atoms beyond which products get the threads of BLAS instead of ours (see ``in_threads_for`` of the potential)."""

_THREAD_ROWS = 63
"""Rows that a thread takes at a time."""

_SMALLEST_THREADED = 64
"""Rows below which threads cost more than they gain."""

_FEW_ROWS = 48
"""Atoms of one element up to which our own loop is faster than matrix products (``expansion_kernels.py``)."""

_EXPANDED_ROWS = (96, 256)
"""Rows whose kernels and gradients are computed at once beyond, up to ``BLAS_ROWS`` atoms and for more."""

_BLOCK_ELEMENTS = 1 << 20
"""Elements of a kernel matrix that are worked on at once on the host."""


@dataclass(frozen=True, eq=False)
class Representatives:
    """Representatives p_m, and products with them.

    Coefficients of kernel expansions are large and cancel (1e4 eV is usual).  Dot products in single precision would make
    energies wrong by meV per atom (measured: 13 for a water model whose forces are then wrong by 2 meV/Å), so they are
    always computed in double precision.  Gradients may take

        Σ_m s_m p_m = Σ_m s_m (p_m − μ) + (Σ_m s_m) μ

    with the mean μ of the representatives and the first term, which is small where environments are alike, in single
    precision.

    Attributes
    ----------
    rows : (M, F) array
        p_m.
    mean : (F,) array, optional
        μ.
    apart : (M, F) array, optional
        p_m − μ in single precision.
    """

    rows: Array
    mean: Array | None = None
    apart: Array | None = None

    @classmethod
    def build(cls, rows: FloatArray, like: Array, *, single: bool) -> Representatives:
        """From rows on the host, on the device of ``like``."""
        if not single:
            return cls(asarray_like(rows, like))
        mean = rows.mean(axis=0)
        parts = (rows, mean, (rows - mean).astype(np.float32))
        return cls(*(asarray_like(part, like) for part in parts))

    @cached_property
    def filled(self) -> FloatArray:
        """The rows on the host, with zeros up to the shape that ``expansion_kernels.py`` works on."""
        kernels = _kernels()
        filled = _aligned(
            _up(self.rows.shape[0], kernels.REPRESENTATIVES), _up(self.rows.shape[1], kernels.FEATURES)
        )
        filled[: self.rows.shape[0], : self.rows.shape[1]] = self.rows
        return filled

    def dots(self, values: Array) -> Array:
        """Dot products with rows (n, F), (n, M)."""
        return values @ self.rows.T

    def combine(self, weights: Array) -> Array:
        """Σ_m weights_im p_m, (n, F), for weights (n, M)."""
        if self.mean is None or self.apart is None:
            return weights @ self.rows
        xp = namespace(weights)
        apart = xp.astype(xp.astype(weights, xp.float32) @ self.apart, xp.float64)
        return apart + xp.sum(weights, axis=1)[:, None] * self.mean


@dataclass(frozen=True, eq=False)
class Products:
    """Descriptors of atoms of one element, of one or more structures, and their products with its representatives.

    Attributes
    ----------
    values : (n, F) array
        p_i.
    representatives : Representatives
        Those of the element in the layout of the structures.
    """

    values: Array
    representatives: Representatives
    _expansions: dict[tuple[int, float], _Expansion] = field(default_factory=dict, repr=False)

    @cached_property
    def dots(self) -> Array:
        """Dot products with the representatives, (n, M)."""
        return _dots(self.representatives, self.values)

    def expand(self, coefficients: FloatArray, zeta: float, *, gradients: bool) -> FloatArray:
        """f_i = Σ_m k(p_i, p_m) c_m on the host, (n,); ``gradients`` says that those will be asked for."""
        return self._expansion(coefficients, zeta, gradients).values

    def gradient(self, coefficients: FloatArray, zeta: float) -> FloatArray:
        """∂f_i/∂p_i, (n, F)."""
        gradient = self._expansion(coefficients, zeta, True).gradient
        assert gradient is not None
        return gradient

    def _expansion(self, coefficients: FloatArray, zeta: float, gradients: bool) -> _Expansion:
        """What is known of an expansion, and what is not, kept for who asks next."""
        key = id(coefficients), zeta
        known = self._expansions.get(key)
        if known is None or (gradients and known.gradient is None):
            few = len(self.values) <= _FEW_ROWS and self.representatives.apart is None
            work = self._in_one_pass if few else self._in_blocks
            known = work(coefficients, float(zeta), gradients, known)
            self._expansions[key] = known
        return known

    def _in_one_pass(
        self, coefficients: FloatArray, zeta: float, gradients: bool, known: _Expansion | None
    ) -> _Expansion:
        rows, kernels = self.representatives.filled, _kernels()
        n = len(self.values)
        even = _up(n, 2)
        memory = np.empty(2 * even * rows.shape[1] + kernels.SPARE)
        gradient = np.empty(self.values.shape if gradients else (0, 0))
        steps = (1 if known is None else 0) + (2 if gradients else 0)
        blocks = 1 if steps == 3 else len(rows) // kernels.REPRESENTATIVES
        slopes = np.empty((blocks, even * kernels.REPRESENTATIVES)) if known is None else known.slopes
        values = np.empty(n) if known is None else known.values
        given = self.values, rows.shape[1], rows.reshape(-1), coefficients, zeta
        kernels.expand(steps, *given, values, slopes, gradient, memory)
        return (
            _Expansion(coefficients, values, None, gradient)
            if gradients
            else _Expansion(coefficients, values, slopes, None)
        )

    def _in_blocks(
        self, coefficients: FloatArray, zeta: float, gradients: bool, known: _Expansion | None
    ) -> _Expansion:
        n, own = len(self.values), self.representatives
        values = np.empty(n) if known is None else known.values
        slopes = None if known is None else known.slopes
        fresh = slopes is None
        if slopes is None and not gradients:
            slopes = np.empty((n, len(coefficients)))
        gradient = np.empty(self.values.shape) if gradients else None
        many = n > BLAS_ROWS
        parts = -(-n // _EXPANDED_ROWS[many])
        edges = [n * part // parts for part in range(parts + 1)]

        def task(first: int, last: int) -> None:
            for part in range(first, last):
                rows = slice(edges[part], edges[part + 1])
                if fresh:
                    dots = own.dots(self.values[rows])
                    slope = _slope(dots, zeta, coefficients)
                    # k c = slope · dot / ζ: one pass less than the power again
                    values[rows] = np.einsum("im,im->i", slope, dots) / zeta
                    if gradient is None:
                        assert slopes is not None
                        slopes[rows] = slope
                        continue
                else:
                    assert slopes is not None
                    slope = slopes[rows]
                assert gradient is not None
                gradient[rows] = own.combine(slope)

        with blas.one_thread() if many else nullcontext():
            threads.run(task, np.array(edges), _SMALLEST_THREADED)
        return _Expansion(coefficients, values, None if gradients else slopes, gradient)


@dataclass(frozen=True, eq=False)
class _Expansion:
    """What was computed with one set of coefficients.

    Attributes
    ----------
    coefficients : (M,) array
        Held, so that its identity is nobody else's.
    values : (n,) array
        f_i.
    slopes : array, optional
        What the gradient can be made of; only without it.
    gradient : (n, F) array, optional
        ∂f_i/∂p_i.
    """

    coefficients: FloatArray
    values: FloatArray
    slopes: FloatArray | None
    gradient: FloatArray | None


@dataclass(frozen=True, eq=False)
class Similarity:
    """The atoms of one element in one structure, and their products with its representatives.

    Attributes
    ----------
    element : int
    centres : (n,) array
        The atoms, on the host.
    products : Products
        Of these atoms, perhaps among those of other structures.
    rows : slice
        Their rows there.
    index : (n,) array
        The atoms where the products are.
    weights : (n,) array, optional
        What the kernels of the atoms are multiplied with (:mod:`kqeq.descriptors.conditioned`); 1 without.
    """

    element: int
    centres: IntArray
    products: Products
    rows: slice
    index: Array
    weights: Array | None = None

    @property
    def dots(self) -> Array:
        """Dot products with the representatives, (n, M)."""
        return self.products.dots[self.rows, :]

    @property
    def values(self) -> Array:
        """Descriptors, (n, F)."""
        return self.products.values[self.rows, :]

    @property
    def representatives(self) -> Representatives:
        """The representatives in the layout of the structure."""
        return self.products.representatives

    def weighted(self, block: Array) -> Array:
        """An (n, ...) array times the weights."""
        if self.weights is None:
            return block
        xp = namespace(block)
        return block * xp.reshape(self.weights, (-1, *[1] * (len(block.shape) - 1)))


@dataclass(frozen=True, eq=False)
class SummedFeatures:
    """Σ_i Φ_i over the atoms of a structure.

    Attributes
    ----------
    values : (p,) array
    positions : (3N, p) array or None
        Its derivative with respect to positions.
    strain : (9, p) array or None
        Its strain derivative.
    """

    values: Array
    positions: Array | None
    strain: Array | None


@dataclass(frozen=True, eq=False)
class FeatureJacobian:
    """∂Φ_i/∂r of every atom i of a structure for itself, NumPy arrays.

    Attributes
    ----------
    n_atoms : int
        N.
    size : int
        p.
    blocks : tuple of (slice, (n,) int array, (n, 3N, M) array)
        For each element its columns of the p features, its atoms, and the derivatives of their features; perhaps in
        single precision.
    """

    n_atoms: int
    size: int
    blocks: tuple[tuple[slice, IntArray, NDArray[Any]], ...]

    def contract(self, weights: FloatArray) -> FloatArray:
        """Derivatives of Σ_i weights_i Φ_i with respect to positions, (3N, p)."""
        result = np.zeros((3 * self.n_atoms, self.size))
        for columns, atoms, block in self.blocks:
            own = weights[atoms].astype(block.dtype) @ block.reshape(len(atoms), -1)
            result[:, columns] = own.reshape(block.shape[1:])
        return result

    def along(self, coefficients: FloatArray) -> FloatArray:
        """Derivatives of Φ_i · coefficients of every atom i, (3N, N)."""
        result = np.zeros((3 * self.n_atoms, self.n_atoms))
        for columns, atoms, block in self.blocks:
            result[:, atoms] = (block @ coefficients[columns].astype(block.dtype)).T
        return result


@dataclass(frozen=True, eq=False)
class JoinedFeatures:
    """Φ of the atoms of one element in B molecules with the same N atoms.

    Attributes
    ----------
    columns : slice
        Of the element in the p features.
    atoms : (n,) int array
        Which of the N atoms, on the host.
    values : (B, n, M) array
    positions : (B, n, 3N, M) or (B, 3N, M) array, or None
        Derivatives with respect to positions of every atom's features, or of their sum over the atoms.
    """

    columns: slice
    atoms: IntArray
    values: Array
    positions: Array | None


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """Sparse kernel features Φ of environments, and their derivatives.

    Attributes
    ----------
    descriptor : Descriptor
    zeta : float
    representatives : dict of int to sparse (M, F_all) matrix
        Normalised descriptor rows by element, in the layout of ``species``.
    species : tuple of int
        Elements of the common layout, ascending.
    """

    descriptor: Descriptor
    zeta: float
    representatives: Mapping[int, sparse.csr_array]
    species: tuple[int, ...]
    _projected: dict[tuple[int, ...], dict[int, FloatArray]] = field(
        default_factory=dict, repr=False, compare=False
    )
    _hosted: dict[tuple[int, ...], dict[int, Representatives]] = field(
        default_factory=dict, repr=False, compare=False
    )
    _copies: dict[tuple[Any, ...], Array] = field(default_factory=dict, repr=False, compare=False)
    _prepared: dict[tuple[tuple[int, ...], int], Any] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave caches behind when the model is pickled to a worker."""
        return {**self.__dict__, "_projected": {}, "_hosted": {}, "_prepared": {}, "_copies": {}}

    @cached_property
    def lower(self) -> dict[int, FloatArray]:
        """Cholesky factor L (M, M) of each element's kernel matrix; prediction does without.

        Raises
        ------
        NotPositiveDefiniteError
            If a kernel matrix is not a covariance (for example NaN in descriptors).
        """
        factors = {}
        for z, rows in self.representatives.items():
            kernel = _power(gram(rows), self.zeta)
            factors[z], _ = factorise_with_jitter(kernel, f"the kernel matrix of {chemical_symbols[z]}")
        return factors

    @property
    def columns(self) -> dict[int, slice]:
        """Columns of each element in the p features."""
        result, start = {}, 0
        for z, rows in self.representatives.items():
            result[z] = slice(start, start + rows.shape[0])
            start += rows.shape[0]
        return result

    @property
    def size(self) -> int:
        """Number of features p."""
        return sum(rows.shape[0] for rows in self.representatives.values())

    def project(self, species: tuple[int, ...]) -> dict[int, FloatArray]:
        """Representatives of the elements in ``species``, dense, in the layout of ``species``.

        Blocks that involve other elements meet zeros in the structure's rows and drop out of every
        product, so this loses nothing.
        """

        def make() -> dict[int, FloatArray]:
            columns = layout_columns(self.descriptor, species, self.species)
            return {
                z: np.ascontiguousarray(rows[:, columns].toarray())
                for z, rows in self.representatives.items()
                if z in species
            }

        # many different compositions: memory is bounded
        return _remembered(self._projected, species, make, 64)  # type: ignore[no-any-return]

    def _copy(self, make: Callable[[], Any], like: Array, *key: Any) -> Any:
        """What ``make`` gives for the device of ``like``, kept under ``key``."""
        return _remembered(self._copies, (*key, *place(like)), make, 256)

    def _placed(self, species: tuple[int, ...], like: Array, *, single: bool) -> dict[int, Representatives]:
        """Projected representatives of the elements in ``species`` where the products are to be."""
        rows = self.project(species)
        if not is_numpy(like) or single:

            def build(own: FloatArray) -> Callable[[], Representatives]:
                return lambda: Representatives.build(own, like, single=single)

            return {z: self._copy(build(own), like, "rows", species, z, single) for z, own in rows.items()}

        def host() -> dict[int, Representatives]:
            return {z: Representatives(own) for z, own in rows.items()}

        return _remembered(self._hosted, species, host, 64)  # type: ignore[no-any-return]

    def _directions(self, species: tuple[int, ...], z: int, like: Array) -> Any:
        """Projected representatives of one element as the descriptor wants them for feature gradients."""
        if not is_numpy(like):
            return self._placed(species, like, single=False)[z].rows
        rows = self.project(species)[z]
        return _remembered(
            self._prepared, (species, z), lambda: self.descriptor.prepare_directions(species, rows), 64
        )

    def _lower(self, z: int, like: Array) -> Array:
        # a map with another power shares these copies
        return self._copy(lambda: asarray_like(self.lower[z], like), like, "lower", z, self.zeta)

    def similarities(
        self, state: DescriptorState, numbers: IntArray, *, single: bool = False
    ) -> list[Similarity]:
        """Dot products of all atoms with the representatives of their elements; shared by what follows."""
        return self.similarities_many([state], [numbers], single=single)[0]

    def similarities_many(
        self, states: Sequence[DescriptorState], numbers: Sequence[IntArray], *, single: bool = False
    ) -> list[list[Similarity]]:
        """Dot products for several structures of the same elements, in one matrix product per element.

        The representatives, not the atoms, fill the memory that such a product reads: for small molecules one
        pass over them serves the whole batch.

        Parameters
        ----------
        states, numbers : sequences
            Descriptors and atomic numbers.
        single : bool
            Later products for gradients in single precision (see :class:`Representatives`).
        """
        results: list[list[Similarity]] = [[] for _ in states]
        like = states[0].values
        xp = namespace(like)
        for z, placed in self._placed(states[0].species, like, single=single).items():
            centres = [composition_of(n).atoms_of.get(z, _NOBODY) for n in numbers]
            index = [asarray_like(own, like) for own in centres]
            values = [xp.take(state.values, own, axis=0) for state, own in zip(states, index, strict=True)]
            products = Products(xp.concat(values) if len(values) > 1 else values[0], placed)
            start = 0
            for result, state, own, there in zip(results, states, centres, index, strict=True):
                given = getattr(state, "weights", None)
                weights = None if given is None else xp.take(given, there)
                result.append(Similarity(z, own, products, slice(start, start + len(own)), there, weights))
                start += len(own)
        return results

    def features(self, state: DescriptorState, numbers: IntArray) -> Array:
        """Φ, shape (N, p)."""
        return self.features_many([state], [numbers])[0]

    def features_many(self, states: Sequence[DescriptorState], numbers: Sequence[IntArray]) -> list[Array]:
        """Φ of several structures of the same elements, each (N, p); one product and one solution per element."""
        like = states[0].values
        xp = namespace(like)
        results = [zeros((len(own), self.size), like) for own in numbers]
        columns = self.columns
        for same in zip(*self.similarities_many(states, numbers), strict=True):
            z = same[0].element
            dots = xp.concat([similarity.dots for similarity in same]) if len(same) > 1 else same[0].dots
            rows = solve_lower(self._lower(z, like), _power(dots, self.zeta).T).T
            start = 0
            for phi, similarity in zip(results, same, strict=True):
                own = similarity.weighted(rows[start : start + len(similarity.centres), :])
                phi[:, columns[z]] = put_rows(phi[:, columns[z]], similarity.index, own)
                start += len(similarity.centres)
        return results

    def feature_gradients(
        self, state: DescriptorState, numbers: IntArray, weights: Array
    ) -> FeatureGradients:
        """Derivatives of Σ_i weights_i Φ_i with respect to positions (3N, p) and strain (9, p)."""
        like = state.values
        xp = namespace(like)
        positions = zeros((3 * len(numbers), self.size), like)
        strain = zeros((9, self.size), like)
        columns = self.columns
        for similarity in self.similarities(state, numbers):
            z = similarity.element
            slopes = similarity.weighted(xp.take(weights, similarity.index))[:, None] * _slope(
                similarity.dots, self.zeta
            )
            directions = self._directions(state.species, z, like)
            raw = self.descriptor.feature_gradients(state, similarity.centres, directions, slopes)
            positions[:, columns[z]] = solve_lower(self._lower(z, like), raw.positions.T).T
            strain[:, columns[z]] = solve_lower(self._lower(z, like), raw.strain.T).T
        return FeatureGradients(positions, strain)

    def jacobian(self, state: DescriptorState, numbers: IntArray, *, single: bool = False) -> FeatureJacobian:
        """∂Φ_i/∂r of every atom for itself, on the host; for descriptors that separate centres.

        With it derivatives of Σ_i weights_i Φ_i, for any weights, are one contraction.
        """
        columns, blocks = self.columns, []
        for similarity in self.similarities(state, numbers):
            z = similarity.element
            count = len(similarity.centres)
            slopes = similarity.weighted(_slope(similarity.dots, self.zeta))
            directions = self._directions(state.species, z, state.values)
            raw = gradients_by_centre(self.descriptor, state, similarity.centres, directions, slopes)
            rows = solve_lower(self._lower(z, state.values), raw.reshape(-1, raw.shape[2]).T).T
            found = rows.reshape(count, -1, raw.shape[2])
            blocks.append((columns[z], similarity.centres, found.astype(np.float32) if single else found))
        return FeatureJacobian(len(numbers), self.size, tuple(blocks))

    def summed_many(
        self,
        states: Sequence[DescriptorState],
        numbers: Sequence[IntArray],
        gradients: Sequence[bool],
        strains: Sequence[bool],
    ) -> list[SummedFeatures]:
        """Σ_i Φ_i of several structures of the same elements, with derivatives where they are asked for.

        One product with the representatives of each element, and one solution, serve all of them: for small structures
        both are limited by reading the representatives.

        Parameters
        ----------
        states, numbers : sequences
            Descriptors and atomic numbers.
        gradients, strains : sequences of bool
            Whether derivatives with respect to positions, and to strain, are wanted.
        """
        like = states[0].values
        xp = namespace(like)
        sizes = [
            (1, 3 * len(own) if gradient else 0, 9 if strain else 0)
            for own, gradient, strain in zip(numbers, gradients, strains, strict=True)
        ]
        stack = zeros((sum(map(sum, sizes)), self.size), like)
        columns = self.columns
        for same in zip(*self.similarities_many(states, numbers), strict=True):
            z = same[0].element
            raw = []
            for similarity, state, (_, by_positions, by_strain) in zip(same, states, sizes, strict=True):
                raw.append(xp.sum(similarity.weighted(_power(similarity.dots, self.zeta)), axis=0)[None, :])
                if not by_positions and not by_strain:
                    continue
                slopes = similarity.weighted(_slope(similarity.dots, self.zeta))
                directions = self._directions(state.species, z, like)
                found = self.descriptor.feature_gradients(
                    state, similarity.centres, directions, slopes, projections=similarity.dots
                )
                raw += [found.positions] if by_positions else []
                raw += [found.strain] if by_strain else []
            stack[:, columns[z]] = solve_lower(self._lower(z, like), xp.concat(raw).T).T
        results, start = [], 0
        for size in sizes:
            ends = [start + part for part in (1, size[0] + size[1], sum(size))]
            own_positions = stack[ends[0] : ends[1], :] if size[1] else None
            own_strain = stack[ends[1] : ends[2], :] if size[2] else None
            results.append(SummedFeatures(stack[start, :], own_positions, own_strain))
            start = ends[2]
        return results

    def joined(
        self, state: DescriptorState, numbers: IntArray, gradients: Literal["none", "sums", "atoms"]
    ) -> list[JoinedFeatures]:
        """Φ element by element for molecules that :func:`kqeq.descriptors.joined.evaluate_joined` put side by side.

        Parameters
        ----------
        state : DescriptorState
            Of all of them.
        numbers : (N,) array
            Atomic numbers of one.
        gradients : {"none", "sums", "atoms"}
            Derivatives with respect to positions: none, of the sums over atoms, or of every atom for itself.
        """
        size, like = len(numbers), state.values
        xp = namespace(like)
        count = int(like.shape[0]) // size
        found = []
        for similarity in self.similarities(state, np.tile(numbers, count)):
            z, centres, dots = similarity.element, similarity.centres, similarity.dots
            lower = self._lower(z, like)
            values = solve_lower(lower, _power(dots, self.zeta).T).T
            shape: tuple[int, ...] = (count, -1, int(dots.shape[1]))
            positions = None
            if gradients != "none":
                slopes, directions = _slope(dots, self.zeta), self._directions(state.species, z, like)
                given = state, centres, directions, slopes
                if gradients == "sums":
                    raw = self.descriptor.feature_gradients(*given, projections=dots).positions
                else:
                    raw = by_centre_joined(self.descriptor, state, size, *given[1:], projections=dots)
                    raw = xp.reshape(raw, (-1, shape[2]))
                inner = (3 * size,) if gradients == "sums" else (len(centres) // count, 3 * size)
                positions = xp.reshape(solve_lower(lower, raw.T).T, (count, *inner, shape[2]))
            atoms = composition_of(numbers).atoms_of[z]
            found.append(JoinedFeatures(self.columns[z], atoms, xp.reshape(values, shape), positions))
        return found

    def coefficients(self, weights: Array) -> dict[int, Array]:
        """Kernel coefficients c = L⁻ᵀ w by element, where w is, so that f_i = Σ_m k(p_i, p_m) c_m."""
        return {
            z: solve_lower(self._lower(z, weights), weights[columns], transposed=True)
            for z, columns in self.columns.items()
        }

    def expand(
        self,
        similarities: Sequence[Similarity],
        size: int,
        coefficients: Mapping[int, FloatArray],
        *,
        gradients: bool = False,
    ) -> Array:
        """f_i = Σ_m k(p_i, p_m) c_m for ``size`` atoms, shape (N,).

        With ``gradients``, :meth:`descriptor_gradient` is going to be asked for with the same coefficients: on the host
        both come out of one pass over the representatives (the same, bit for bit, as one after the other).
        """
        like = similarities[0].values
        values = zeros(size, like)
        for similarity in similarities:
            own = coefficients[similarity.element]
            if is_numpy(like):
                part = similarity.products.expand(own, self.zeta, gradients=gradients)[similarity.rows]
            else:
                own = asarray_like(own, like)
                part = empty(int(similarity.dots.shape[0]), like)
                for rows in _row_blocks(similarity.dots):
                    part[rows] = _power(similarity.dots[rows, :], self.zeta) @ own
            values = put_rows(values, similarity.index, similarity.weighted(part))
        return values

    def descriptor_gradient(
        self,
        similarities: Sequence[Similarity],
        shape: tuple[int, ...],
        coefficients: Mapping[int, FloatArray],
        weights: Array | None = None,
    ) -> Array:
        """weights_i ∂f_i/∂p_i, of the given shape (N, F); all weights 1 if none are given."""
        like = similarities[0].values
        xp = namespace(like)
        every = sum(len(similarity.centres) for similarity in similarities) == shape[0]
        gradient = (empty if every else zeros)(shape, like)
        for similarity in similarities:
            own = coefficients[similarity.element]
            factors = similarity.weights
            if weights is not None:
                taken = xp.take(weights, similarity.index)
                factors = taken if factors is None else factors * taken
            if is_numpy(like):
                part = similarity.products.gradient(own, self.zeta)[similarity.rows]
                gradient[similarity.index] = part if factors is None else part * factors[:, None]
                continue
            placed = asarray_like(own, like)
            for rows in _row_blocks(similarity.dots):
                # a pass over the (n, M) slopes costs as much as a tenth of the product
                slopes = _slope(similarity.dots[rows, :], self.zeta, placed)
                if factors is not None:
                    slopes *= factors[rows][:, None]
                part = similarity.representatives.combine(slopes)
                gradient = put_rows(gradient, similarity.index[rows], part)
        return gradient


_eviction = threading.Lock()


def _remembered(cache: dict[Any, Any], key: Any, make: Callable[[], Any], limit: int) -> Any:
    """What ``make`` gives, kept under ``key`` among at most ``limit`` values; threads may share the cache."""
    value = cache.get(key)
    if value is None:
        value = make()  # twice if two threads ask at once: both are right
        with _eviction:
            while len(cache) >= limit:
                cache.pop(next(iter(cache)))
            cache[key] = value
    return value


_LARGEST_PRODUCT = 16
"""Whole powers up to this one are products."""


def _row_blocks(dots: Array) -> list[slice]:
    """Rows of an (n, M) array that are worked on at once."""
    n, m = (int(size) for size in dots.shape)
    step = max(1, chunk_elements(dots, 4, _BLOCK_ELEMENTS) // max(1, m))
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


@cache
def _kernels() -> ModuleType:
    return compiled.load("kqeq.kernels.expansion_kernels")


def _up(size: int, step: int) -> int:
    """The next multiple of a step."""
    return -(-size // step) * step


def _aligned(rows: int, columns: int) -> FloatArray:
    """Zeros at an address that is a multiple of 64 bytes, so that vectors do not lie across lines of the cache."""
    memory = np.zeros(rows * columns + 8)
    offset = -(memory.ctypes.data // 8) % 8
    return memory[offset : offset + rows * columns].reshape(rows, columns)


def _thread_blocks(rows: Array) -> list[slice]:
    """Rows of an (n, M) array on the host that our own threads work on; none where BLAS has threads, or needs none.

    They do not depend on the number of threads: nor do results.
    """
    n = int(rows.shape[0])
    if not is_numpy(rows) or not 2 * _THREAD_ROWS <= n <= BLAS_ROWS:
        return []
    return [slice(start, min(start + _THREAD_ROWS, n)) for start in range(0, n, _THREAD_ROWS)]


def _dots(directions: Representatives, values: Array) -> Array:
    """Dot products of rows (n, F) with representatives, (n, M)."""
    blocks = _thread_blocks(values)
    if not blocks:
        return directions.dots(values)
    result = np.empty((values.shape[0], directions.rows.shape[0]))

    def task(first: int, last: int) -> None:
        for rows in blocks[first:last]:
            result[rows] = directions.dots(values[rows])

    threads.run(task, np.arange(len(blocks) + 1), 1)
    return result


def gram(rows: sparse.csr_array) -> FloatArray:
    """Dot products between all rows of a sparse matrix, dense (M, M)."""
    used: FloatArray = rows[:, used_columns(rows)].toarray()
    return used @ used.T


def used_columns(rows: sparse.csr_array) -> IntArray:
    """Columns of a sparse matrix that hold anything, ascending (counting is far faster than sorting indices)."""
    return np.asarray(np.flatnonzero(np.bincount(rows.indices, minlength=rows.shape[1])), dtype=np.int64)


def layout_columns(descriptor: Descriptor, part: Sequence[int], whole: Sequence[int]) -> IntArray:
    """Columns of the layout of ``whole`` that make up the layout of ``part``, in order."""
    small = descriptor.block_slices(tuple(part))
    large = descriptor.block_slices(tuple(whole))
    size = max(block.stop for block in small.values())
    columns = np.empty(size, dtype=np.int64)
    for pair, block in small.items():
        source = large[pair]
        columns[block] = np.arange(source.start, source.stop)
    return columns


def _power(dots: Array, zeta: float) -> Array:
    """Dot products to the power ζ; whole powers by multiplication (libraries take logarithms from the third on)."""
    if zeta == 1:
        return dots
    if float(zeta).is_integer() and 2 <= zeta <= _LARGEST_PRODUCT:
        square, rest = dots * dots, int(zeta) - 2
        result = square
        while rest > 0:
            # not in place: a library may forbid it, and ``square`` is needed again
            result = result * (square if rest > 1 else dots)
            rest -= 2
        return result
    # dot products of power spectra are not negative; rounding may say otherwise
    return namespace(dots).clip(dots, 0.0, None) ** float(zeta)


def _slope(dots: Array, zeta: float, factor: Array | float = 1.0) -> Array:
    """ζ dots^(ζ−1) times a factor for each column."""
    return full(dots.shape, 1.0, dots) * factor if zeta == 1 else _power(dots, zeta - 1) * (zeta * factor)


def evaluate_environments(
    feature_maps: Collection[FeatureMap],
    structure: Structure,
    *,
    derivatives: bool = True,
    pairs: Pairs | None = None,
    device: Device = CPU,
    single: bool = False,
) -> tuple[dict[Descriptor, DescriptorState], dict[FeatureMap, list[Similarity]]]:
    """Descriptors of a structure, and their dot products with the representatives of each feature map.

    Options are those of :func:`kqeq.descriptors.evaluate_states` and :meth:`FeatureMap.similarities`.
    """
    descriptors = [feature_map.descriptor for feature_map in feature_maps]
    states = evaluate_states(descriptors, structure, derivatives=derivatives, pairs=pairs, device=device)
    similarities = {
        feature_map: feature_map.similarities(
            states[feature_map.descriptor], structure.numbers, single=single
        )
        for feature_map in feature_maps
    }
    return states, similarities


__all__ = [
    "DEFAULT_REPRESENTATIVES",
    "SELECTIONS",
    "FeatureJacobian",
    "FeatureMap",
    "JoinedFeatures",
    "Kernels",
    "Representatives",
    "SOAPKernel",
    "Similarity",
    "SummedFeatures",
    "default_electronegativity",
    "default_short_range",
    "evaluate_environments",
    "gram",
    "kernel_tuple",
    "layout_columns",
    "used_columns",
]
