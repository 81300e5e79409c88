"""Real-space part of a lattice sum: [erfc(κ r) − erfc(r/(√2 γ_ij))]/r over pairs within a cutoff.

Pairs are stored once (i → j or j → i, and n or −n for the images of an atom itself); the interaction
is completed by symmetry.  Every quantity is collected over chunks of pairs.

Dimensions: N atoms, n unknowns, P pairs, c columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from kqeq.backend import (
    arange,
    chunk_elements,
    empty,
    is_numpy,
    namespace,
    pair_matrix,
    scatter_add,
    segment_sum,
    to_numpy,
    zeros,
)
from kqeq.constants import COULOMB
from kqeq.electrostatics.radial import gaussian_coulomb, gaussian_width_response, screened_coulomb
from kqeq.electrostatics.tensors import (
    AXES,
    charge_dipole,
    dipole_dipole,
    gradient_rows,
    potential_derivatives,
)
from kqeq.electrostatics.unknowns import Unknowns
from kqeq.frames.neighbours import Pairs, find_pairs_on, half_pairs
from kqeq.typing import Array, FloatArray

_CHUNK = 1 << 17
"""Pairs handled at once on the host."""

_FEW_COLUMNS = 4
"""Up to this many columns are summed pair by pair; more go through a matrix."""

Chunk = tuple[Array, Array, list[Array], list[Array]]


class RealSpace:
    """Short-ranged part of the interaction of Gaussian charges and dipoles.

    Parameters
    ----------
    positions : (N, 3) array
    sigma : (N,) array
    cell : (3, 3) NumPy array, or None
        None: open boundaries.
    kappa, r_cut : float
    dipoles : bool
    pairs : Pairs, optional
        A half list on the host that reaches at least ``r_cut``.
    """

    def __init__(
        self,
        positions: Array,
        sigma: Array,
        cell: FloatArray | None,
        *,
        kappa: float,
        r_cut: float,
        dipoles: bool,
        pairs: Pairs | None = None,
    ) -> None:
        self._xp = namespace(positions, sigma)
        self._unknowns = Unknowns(positions.shape[0], dipoles)
        self._sigma = sigma
        self._variance = sigma * sigma
        self._kappa = kappa
        box, pbc = np.zeros((3, 3)) if cell is None else cell, np.full(3, cell is not None)
        if pairs is not None:
            self._take(pairs, r_cut)
        elif is_numpy(positions):
            self._i, self._j, self._vectors = half_pairs(positions, box, pbc, r_cut)
        else:
            self._i, self._j, vectors = find_pairs_on(to_numpy(positions), box, pbc, r_cut, positions)
            self._vectors = self._xp.permute_dims(vectors, (1, 0))
        self._order = 2 if dipoles else 0
        self._operators: dict[Any, Any] | None = None

    def _take(self, pairs: Pairs, r_cut: float) -> None:
        """Keep the pairs of a longer list that are within the cutoff."""
        near = np.einsum("pa,pa->p", pairs.vectors, pairs.vectors) <= r_cut * r_cut
        self._i, self._j = pairs.indices[near, 0], pairs.indices[near, 1]
        self._vectors = pairs.vectors[near]

    @property
    def pairs(self) -> int:
        """Number of stored pairs P."""
        return int(self._i.shape[0])

    def add_half(self, out: Array) -> Array:
        """Add to ``out`` a matrix H, so that H + Hᵀ is the interaction; shape (n, n)."""
        layout, atoms = self._unknowns, self._unknowns.atoms
        for i, j, x, radial in self._chunks(self._order):
            out = scatter_add(out, i, j, radial[0] * COULOMB)
            if layout.dipoles:
                for beta, value in enumerate(charge_dipole(x, radial[1])):
                    out = scatter_add(out, i, atoms + 3 * j + beta, value * COULOMB)
                    out = scatter_add(out, j, atoms + 3 * i + beta, value * -COULOMB)
                for (alpha, beta), value in dipole_dipole(x, radial[1], radial[2]).items():
                    scaled = value * COULOMB
                    out = scatter_add(out, atoms + 3 * i + alpha, atoms + 3 * j + beta, scaled)
                    if alpha != beta:
                        out = scatter_add(out, atoms + 3 * i + beta, atoms + 3 * j + alpha, scaled)
        diagonal = arange(0, self._unknowns.size, out)
        return scatter_add(out, diagonal, diagonal, 0.5 * self._self_interaction())

    def matvec(self, block: Array) -> Array:
        """Product with a block of shape (n,) or (n, c); sparse matrices are built on first use."""
        if self._operators is None:
            self._operators = self._build_operators()
        operators, layout = self._operators, self._unknowns
        charge, dipole = layout.charges(block), layout.components(block)
        diagonal = self._self_interaction()
        result = block * (diagonal if block.ndim == 1 else diagonal[:, None])
        result[: layout.atoms, ...] += _symmetric(operators["charge"], charge)
        if dipole is not None:
            for beta in AXES:
                mixed = operators["mixed", beta]
                rows = layout.dipole_rows(beta)
                result[: layout.atoms, ...] += _antisymmetric(mixed, dipole[beta])
                result[rows, ...] -= _antisymmetric(mixed, charge)
                for gamma in AXES:
                    tensor = operators[min(beta, gamma), max(beta, gamma)]
                    result[rows, ...] += _symmetric(tensor, dipole[gamma])
        return result

    def width_derivative(self, vector: Array, dsigma: Array) -> Array:
        """(Σ_i dσ_i ∂A/∂σ_i) @ vector, shape (n,); the part in 1/V is not here."""
        xp, layout, atoms = self._xp, self._unknowns, self._unknowns.atoms
        spread = self._sigma * dsigma
        charge, dipole = layout.charges(vector), layout.components(vector)
        potential = xp.zeros_like(charge)
        field = [xp.zeros_like(charge) for _ in AXES]
        for i, j, x, bare in self._chunks(self._order, width=True):
            change = (spread[i] + spread[j]) * COULOMB
            radial = [value * change for value in bare]
            mixed = charge_dipole(x, radial[1]) if dipole is not None else []
            tensor = dipole_dipole(x, radial[1], radial[2]) if dipole is not None else {}
            for to, source, sign in ((i, j, 1.0), (j, i, -1.0)):
                value = radial[0] * charge[source]
                if dipole is not None:
                    for beta in AXES:
                        value = value + mixed[beta] * dipole[beta][source] * sign
                        row = mixed[beta] * charge[source] * -sign
                        for gamma in AXES:
                            row = row + tensor[min(beta, gamma), max(beta, gamma)] * dipole[gamma][source]
                        field[beta] = field[beta] + segment_sum(row, to, atoms)
                potential = potential + segment_sum(value, to, atoms)
        at_zero = gaussian_width_response(xp.zeros_like(spread), 0.5 / self._sigma, 1)
        result = xp.zeros_like(vector)
        result[:atoms] = potential + 2.0 * COULOMB * at_zero[0] * spread * charge
        if dipole is not None:
            for beta in AXES:
                diagonal = 2.0 * COULOMB * at_zero[1] * spread
                result[layout.dipole_rows(beta)] = field[beta] + diagonal * dipole[beta]
        return result

    def gradient(self, left: Array, right: Array) -> Array:
        """∂(leftᵀ A right_c)/∂r for left (n,) and right (n, c), shape (N, 3, c)."""
        xp, layout, atoms = self._xp, self._unknowns, self._unknowns.atoms
        columns = right.shape[1]
        right_charge, right_dipole = layout.charges(right), layout.components(right)
        rights = [right_charge, *(right_dipole or [])]
        by_pair = columns <= _FEW_COLUMNS
        field = [xp.zeros_like(self._sigma) for _ in AXES]
        curvature: dict[tuple[int, int], Array] = {}
        result = zeros((atoms, 3, columns), right)
        collected: list[list[list[Array]]] = [[[] for _ in rights] for _ in AXES]
        pairs: list[tuple[Array, Array]] = []
        for i, j, x, radial in self._directed(3 if layout.dipoles else 1):
            charge, dipole = layout.charges(left), layout.components(left)
            source = None if dipole is None else [component[j] for component in dipole]
            first, second = potential_derivatives(x, radial, charge[j], source)
            for alpha in AXES:
                field[alpha] = field[alpha] + segment_sum(first[alpha], i, atoms)
            for key, value in second.items():
                curvature[key] = curvature.get(key, 0.0) + segment_sum(value, i, atoms)
            target_dipole = None if dipole is None else [component[i] for component in dipole]
            rows = gradient_rows(x, radial, charge[i], target_dipole)
            if by_pair:
                for column in range(columns):
                    values = [side[:, column][j] for side in rights]
                    for alpha in AXES:
                        force = sum(row * value for row, value in zip(rows[alpha], values, strict=True))
                        result[:, alpha, column] += segment_sum(force, i, atoms)
            else:
                pairs.append((i, j))
                for alpha in AXES:
                    for kept, row in zip(collected[alpha], rows[alpha], strict=True):
                        kept.append(row)
        if not by_pair and pairs:
            to = xp.concat([i for i, _ in pairs])
            source = xp.concat([j for _, j in pairs])
            dense = atoms * atoms <= 16 * self.pairs
            for alpha in AXES:
                for kept, side in zip(collected[alpha], rights, strict=True):
                    values = xp.concat(kept)
                    kept.clear()
                    operator = pair_matrix(values, to, source, (atoms, atoms), dense=dense)
                    result[:, alpha, :] += operator @ side
        for alpha in AXES:
            result[:, alpha, :] += field[alpha][:, None] * right_charge
            if right_dipole is not None and curvature:
                for beta in AXES:
                    value = curvature[min(alpha, beta), max(alpha, beta)]
                    result[:, alpha, :] += value[:, None] * right_dipole[beta]
        return result * COULOMB

    def strain(self, left: Array, right: Array) -> Array:
        """∂(leftᵀ A right_c)/∂ε, shape (3, 3, c).

        Linear in ``right``: with many columns the nine rows of that linear form come first.
        """
        xp, layout = self._xp, self._unknowns
        columns = right.shape[1]
        charge, dipole = layout.charges(left), layout.components(left)
        rights = [layout.charges(right), *(layout.components(right) or [])]
        by_pair = columns <= _FEW_COLUMNS
        result = zeros((3, 3, columns), right)
        form = zeros((9, layout.size), right)
        for i, j, x, radial in self._directed(3 if layout.dipoles else 1):
            target_dipole = None if dipole is None else [component[i] for component in dipole]
            rows = gradient_rows(x, radial, charge[i], target_dipole)
            gathered = [xp.take(side, j, axis=0) for side in rights] if by_pair else []
            for b in AXES:
                if by_pair:
                    force = sum(row[:, None] * side for row, side in zip(rows[b], gathered, strict=True))
                    for a in AXES:
                        result[a, b, :] -= x[a] @ force
                    continue
                for a in AXES:
                    for gamma, row in enumerate(rows[b]):
                        target = slice(0, layout.atoms) if gamma == 0 else layout.dipole_rows(gamma - 1)
                        form[3 * a + b, target] -= segment_sum(x[a] * row, j, layout.atoms)
        if not by_pair:
            result = xp.reshape(form @ right, (3, 3, columns))
        return result * COULOMB

    # The pieces -------------------------------------------------------------------------------

    def _chunks(self, order: int, *, width: bool = False) -> Iterator[Chunk]:
        """Chunks of stored pairs: i, j, the components of r_ij and the radial functions."""
        xp = self._xp
        step = chunk_elements(self._vectors, 96 if self._unknowns.dipoles else 32, _CHUNK)
        for start in range(0, self.pairs, step):
            part = slice(start, min(start + step, self.pairs))
            # products of indices overflow the 32 bits in which they are stored
            i, j = xp.astype(self._i[part], xp.int64), xp.astype(self._j[part], xp.int64)
            x = [self._vectors[part, axis] for axis in AXES]
            r2 = x[0] * x[0] + x[1] * x[1] + x[2] * x[2]
            a = 1.0 / xp.sqrt(2.0 * (self._variance[i] + self._variance[j]))
            if width:
                yield i, j, x, gaussian_width_response(r2, a, order)
            else:
                yield i, j, x, screened_coulomb(r2, a, self._kappa, order)

    def _directed(self, order: int) -> Iterator[Chunk]:
        """The same pairs in both directions.  An atom at r = 0 from itself has no gradient and is left out."""
        for i, j, x, radial in self._chunks(order):
            yield i, j, x, radial
            yield j, i, [-component for component in x], radial

    def _self_interaction(self) -> Array:
        """Diagonal of the interaction at r = 0, shape (n,)."""
        xp = self._xp
        zero = xp.zeros_like(self._sigma)
        order = 1 if self._unknowns.dipoles else 0
        gaussian = gaussian_coulomb(zero, 0.5 / self._sigma, order)
        smeared = gaussian_coulomb(zero, xp.full_like(zero, self._kappa), order)
        result = empty(self._unknowns.size, zero)
        result[: self._unknowns.atoms] = (gaussian[0] - smeared[0]) * COULOMB
        if self._unknowns.dipoles:
            for axis in AXES:
                result[self._unknowns.dipole_rows(axis)] = (gaussian[1] - smeared[1]) * COULOMB
        return result

    def _build_operators(self) -> dict[Any, Any]:
        """Sparse (N, N) matrices of the stored pairs: charges, charge-dipole, dipole-dipole."""
        xp, atoms = self._xp, self._unknowns.atoms
        collected: dict[Any, list[Array]] = {}
        for _, _, x, radial in self._chunks(self._order):
            collected.setdefault("charge", []).append(radial[0] * COULOMB)
            if self._unknowns.dipoles:
                for beta, value in enumerate(charge_dipole(x, radial[1])):
                    collected.setdefault(("mixed", beta), []).append(value * COULOMB)
                for key, value in dipole_dipole(x, radial[1], radial[2]).items():
                    collected.setdefault(key, []).append(value * COULOMB)
        keys: list[Any] = ["charge"]
        if self._unknowns.dipoles:
            keys += [("mixed", beta) for beta in AXES]
            keys += [(alpha, beta) for alpha in AXES for beta in range(alpha, 3)]
        nothing = [zeros(0, self._sigma)]
        return {
            key: pair_matrix(
                xp.concat(collected.pop(key, nothing)), self._i, self._j, (atoms, atoms), dense=False
            )
            for key in keys
        }


def _symmetric(half: Any, vector: Array) -> Array:
    return half @ vector + half.T @ vector


def _antisymmetric(half: Any, vector: Array) -> Array:
    return half @ vector - half.T @ vector


__all__ = ["Chunk", "RealSpace"]
