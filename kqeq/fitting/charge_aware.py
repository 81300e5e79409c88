"""The second stage of a fit: a short-range energy that sees the charges, at given charges.

Electronegativities and site parameters come from the ordinary fit and are held.  Then E_sr = Σ_b Σ_i ψ_b(q_i) δ Φ_i w_b
(:mod:`kqeq.kernels.charge_kernel`) and all that follows from it is linear in w, with known charges and derivatives
of charges:

    ∂E/∂w_bm    = Σ_i ψ_b Φ_im                    ∂(∂E/∂r)/∂w_bm = Σ_i ψ_b ∂Φ_im/∂r + Σ_i ψ'_b Φ_im ∂q_i/∂r
    ∂μ/∂w_bm    = Σ_i ψ'_b Φ_im ∂μ/∂χ_i           ∂α/∂w_bm = −Σ_i ψ''_b Φ_im (∂q_i/∂field)(∂q_i/∂field)ᵀ

with ∂q_i/∂r = ∂²E_el/∂r∂φ_i, φ the potentials at the charges (for electronegativities the same as χ), one solve in closed
form.

Dimensions: N atoms, n the order of the charge kernel, p kernel features, Z elements; P = (n + 1) p + Z parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from kqeq.baselines import BaselineResult
from kqeq.charges.base import Response
from kqeq.charges.parameters import logarithmic_gradient_response
from kqeq.fitting.least_squares.equations import Prior, Sums
from kqeq.fitting.least_squares.solver import (
    JacobianKind,
    LeastSquaresProblem,
    Solution,
    SumKind,
    minimise,
)
from kqeq.fitting.parameters import SitePart
from kqeq.fitting.problem import MAX_CHUNKS, add_up, chunk_sums, map_chunks
from kqeq.fitting.rows.blocks import deviation, target_vector, to_stress, upper_triangle
from kqeq.fitting.rows.features import TrainingFrame
from kqeq.frames.structures import Structure
from kqeq.kernels import sums
from kqeq.kernels.charge_kernel import ChargeKernel
from kqeq.kernels.feature_map import evaluate_environments
from kqeq.potential.charged import Charged
from kqeq.potential.potential import Potential, SiteModel
from kqeq.potential.prediction import Prediction
from kqeq.typing import FloatArray, IntArray

FRAMES_PER_TASK = 8
"""Frames that are summed together at least; each group returns a matrix over all parameters."""

KINDS = ("energy", "forces", "stress", "dipole", "polarizability")
"""Labels that the short-range energy acts on; partition charges are not among them."""


@dataclass(frozen=True, eq=False)
class CoupledFit:
    """Result of the second stage.

    Attributes
    ----------
    potential : Potential
        With the short-range energy of the second stage.
    part : SitePart
        Prior of one power of the charge; offsets of elements.
    solution : Solution
        u holds the features of each power after the other, then the offsets.
    """

    potential: Potential
    part: SitePart
    solution: Solution


class ChargeView:
    """One structure at the charges of a potential, and how they change with positions and strain.

    Parameters
    ----------
    potential : Potential
        Its short-range energy and its baseline play no part here.
    structure : Structure
        Without the charge that the baseline holds.
    base : BaselineResult, optional
        The baseline whose charges the short-range energy sees as well.
    kernel : ChargeKernel
    derivatives : bool
        Whether forces or stress will be asked for.
    """

    def __init__(
        self,
        potential: Potential,
        structure: Structure,
        kernel: ChargeKernel,
        *,
        derivatives: bool,
        base: BaselineResult | None = None,
    ) -> None:
        self.potential = replace(potential, charge_kernel=None, charge_powers=(), baseline=None)
        self.base = base
        self.structure = structure
        self.derivatives = derivatives
        self.states, self.near = evaluate_environments(
            self.potential.feature_maps, structure, derivatives=derivatives
        )
        found = self.potential.charged(structure, self.near)
        assert potential.short_range is not None
        self.charged: Charged | None = None if found is None else found[0]
        self.feature_maps = potential.short_range.feature_maps
        charges = np.zeros(len(structure))
        if self.charged is not None:
            charges = charges + self.charged.state.charges
        if base is not None and base.charges is not None:
            charges = charges + base.charges
        self.values, self.slopes, self.curvatures = (
            kernel.features(charges, derivative) for derivative in range(3)
        )

    @cached_property
    def response(self) -> Response:
        """Response to the potential at each atom."""
        assert self.charged is not None
        return self.charged.system.respond_potential(np.eye(len(self.structure)))

    @cached_property
    def features(self) -> FloatArray:
        """Φ of all kernels of the short-range energy, (N, p)."""
        found = sums.features_many(self.feature_maps, [self.states], [self.structure.numbers])
        return np.asarray(found[0])

    def charge_derivatives(self, *, strain: bool = False) -> FloatArray:
        """∂q_i/∂r_k as (3N, N), or ∂q_i/∂ε as (9, N)."""
        result = np.zeros((9 if strain else 3 * len(self.structure), len(self.structure)))
        if self.base is not None:
            own = self.base.charge_strain if strain else self.base.charge_gradient
            assert own is not None
            result = result + own.reshape(result.shape)
        if self.charged is None:
            return result
        state, response = self.charged.state, self.response
        change = state.strain_response(response) if strain else state.gradient_response(response)
        result = result + change.reshape(result.shape)
        chi = self.potential.electronegativity
        assert chi is not None
        weights = {
            "chi": state.electronegativity_gradient_response(response)
        } | logarithmic_gradient_response(state, self.charged.sites, self.charged.kinds, response)
        for name, model in {"chi": chi, **self.potential.sites}.items():
            jacobian = sums.site_jacobian(model.terms, self.near, self.states)
            result = result + (jacobian.strain if strain else jacobian.positions) @ weights[name]
        return np.asarray(result)

    def rows(self, kind: str, part: SitePart) -> FloatArray:
        """Derivatives of a label with respect to the parameters, (rows, P)."""
        size, atoms = part.kernel_size, len(self.structure)
        offsets = part.one_hot(self.structure.numbers).sum(axis=0)
        if kind == "energy":
            summed = part.scale(self.values @ self.features).ravel()
            return np.concatenate([summed, offsets])[None, :]
        if kind in ("forces", "stress"):
            strain = kind == "stress"
            moved = self.charge_derivatives(strain=strain)
            blocks = []
            for value, slope in zip(self.values, self.slopes, strict=True):
                pulled = sums.feature_gradients(self.feature_maps, self.states, self.structure.numbers, value)
                own = pulled.strain if strain else pulled.positions
                blocks.append(part.scale(own + (moved * slope) @ self.features))
            block = np.concatenate(blocks, axis=1)
            block = to_stress(block, self.structure.volume) if strain else -block
        elif kind == "dipole":
            block = -self._by_atoms(self.charge_field, self.slopes, part)
        else:
            moved = self.charge_field
            squares = upper_triangle(np.einsum("ai,bi->abi", moved, moved))
            block = -self._by_atoms(squares, self.curvatures, part)
            if self.base is not None:
                assert self.base.charge_curvature is not None
                block -= self._by_atoms(upper_triangle(self.base.charge_curvature), self.slopes, part)
        assert block.shape[1] == len(self.values) * size and (kind != "forces" or len(block) == 3 * atoms)
        return np.concatenate([block, np.zeros((len(block), len(offsets)))], axis=1)

    @cached_property
    def charge_field(self) -> FloatArray:
        """∂q_i/∂F, (3, N)."""
        result = np.zeros((3, len(self.structure)))
        if self.base is not None:
            assert self.base.charge_field is not None
            result = result + self.base.charge_field
        if self.charged is not None:
            assert self.response.dipole is not None
            result = result - self.response.dipole  # ∂μ/∂φ_i = −∂q_i/∂F
        return result

    def _by_atoms(self, block: FloatArray, factors: FloatArray, part: SitePart) -> FloatArray:
        """δ Σ_i block_ri factors_bi Φ_im, (rows, (n + 1) p)."""
        return np.concatenate([part.scale((block * own) @ self.features) for own in factors], axis=1)

    def electrostatics(self, kind: str) -> FloatArray:
        """What the charges alone say about a label, in the order of its rows."""
        if kind == "energy":
            return np.array([self._bare.energy_electrostatic])
        found = getattr(self._bare, kind)
        if found is None:  # nothing has charges but the baseline
            found = np.zeros({"dipole": 3, "polarizability": (3, 3)}[kind])
        value = np.asarray(found)
        if kind == "stress":
            return np.asarray(to_stress(value.reshape(9), 1.0))
        return np.asarray(upper_triangle(value) if kind == "polarizability" else value.reshape(-1))

    @cached_property
    def _bare(self) -> Prediction:
        """The prediction without short-range energy and baseline."""
        bare = replace(self.potential, short_range=None, baseline=None)
        kinds = KINDS if self.derivatives else tuple(k for k in KINDS if k not in ("forces", "stress"))
        system = None if self.charged is None else self.charged.system
        return bare.finish(self.structure, kinds, self.states, self.near, system)


class ChargeAwareProblem:
    """The second stage as a linear least-squares problem.

    Parameters
    ----------
    frames : sequence of TrainingFrame
    potential : Potential
    part : SitePart
        Prior of one power of the charge, and of the offsets of elements.
    noise : mapping of str to float
    kernel : ChargeKernel
    """

    linear = True
    linear_columns: slice | None = None

    def __init__(
        self,
        frames: Sequence[TrainingFrame],
        potential: Potential,
        part: SitePart,
        noise: Mapping[str, float],
        kernel: ChargeKernel,
    ) -> None:
        self.frames = frames
        self.potential = potential
        self.part = part
        self.noise = noise
        self.kernel = kernel

    @property
    def size(self) -> int:
        """Number of parameters."""
        return (self.kernel.order + 1) * self.part.kernel_size + len(self.part.offset_mean)

    def part_of(self, index: IntArray) -> ChargeAwareProblem:
        """The same problem for some of the frames."""
        frames = [self.frames[int(i)] for i in index]
        return ChargeAwareProblem(frames, self.potential, self.part, self.noise, self.kernel)

    def rows(
        self, u: FloatArray, *, jacobian: JacobianKind
    ) -> Iterator[tuple[FloatArray, FloatArray | None]]:
        """Weighted residuals and Jacobians, frame by frame."""
        for frame in self.frames:
            kinds = [kind for kind in frame.labels.kinds if kind in KINDS]
            if not kinds:
                continue
            view = ChargeView(
                self.potential,
                frame.structure,
                self.kernel,
                derivatives=frame.needs_gradients,
                base=frame.baseline,
            )
            residuals, blocks = [], []
            for kind in kinds:
                block = view.rows(kind, self.part)
                known = view.electrostatics(kind) + block @ u
                if kind == "energy":
                    known = known + self.part.mean(frame.structure.numbers).sum()
                scale = 1.0 / deviation(frame, kind, self.noise)
                residuals.append(scale * (target_vector(frame, kind) - known))
                blocks.append(scale * block)
            yield np.concatenate(residuals), np.concatenate(blocks)


def fit_charge_aware(
    frames: Sequence[TrainingFrame],
    potential: Potential,
    part: SitePart,
    noise: Mapping[str, float],
    kernel: ChargeKernel,
    prior: Prior | None = None,
) -> CoupledFit:
    """Replace the short-range energy of a potential by one that sees its charges.

    Parameters
    ----------
    frames : sequence of TrainingFrame
        As in the first stage, baseline subtracted.
    potential : Potential
        Result of the first stage, with charges and a short-range energy.
    part : SitePart
        Prior of the short-range energy; every power of the charge gets the same.
    noise : mapping of str to float
    kernel : ChargeKernel
    prior : Prior, optional
        The posterior of an earlier second stage at the same charges, to which these frames are added: labels are linear
        in its parameters, so that is exact.
    """
    # labels are without the baseline, and calculators may not travel to other processes
    problem = ChargeAwareProblem(frames, replace(potential, baseline=None), part, noise, kernel)
    start = np.zeros(problem.size) if prior is None else prior.mean
    solution = minimise(problem, start, engine=_in_parallel, prior=prior)
    return CoupledFit(_apply(potential, part, kernel, solution.u), part, solution)


def _in_parallel(problem: LeastSquaresProblem, u: FloatArray, what: SumKind) -> Sums:
    """Sum groups of frames in a fixed order; see :func:`kqeq.fitting.problem.map_chunks`."""
    assert isinstance(problem, ChargeAwareProblem)
    count = max(1, min(MAX_CHUNKS, len(problem.frames) // FRAMES_PER_TASK))
    groups = [problem.part_of(own) for own in np.array_split(np.arange(len(problem.frames)), count)]
    return add_up(map_chunks(chunk_sums, groups, u, what, description="charge-aware"))


def _apply(potential: Potential, part: SitePart, kernel: ChargeKernel, u: FloatArray) -> Potential:
    """The potential with the parameters of the second stage."""
    size = part.kernel_size
    zero = dict.fromkeys(potential.species, 0.0)
    # every power has the columns of the part, as if it were alone
    alone = SitePart.build(list(zip(part.feature_maps, part.deltas, strict=True)), {}, 0.0, 0)
    powers = [SiteModel(alone.terms(own), zero) for own in u[: (kernel.order + 1) * size].reshape(-1, size)]
    tail = u[len(powers) * size :]
    return replace(
        potential,
        energy_offsets=part.offsets_at(tail),
        short_range=powers[0],
        charge_kernel=kernel,
        charge_powers=tuple(powers[1:]),
    )


__all__ = ["KINDS", "ChargeAwareProblem", "ChargeView", "CoupledFit", "fit_charge_aware"]
