"""Where a fit to energies and forces alone starts: charges of elements that are not zero.

The electrostatic energy is quadratic in electronegativities or latent charges, so that neutral atoms are a saddle where a
fit stands still, and other poor minima are not far (theory section 7).  Where no dipole, charge or Born charge is among
the labels, a start is chosen by coarse fits: one value per element in place of the charges' kernels, the short-range
energy as it is, some of the frames, a few steps, from

* the prior means: for electronegativities cited values, for latent charges what bonds suggest;
* electronegativities of Pauling's scale (of electronegativities only: Mulliken's have hydrogen negative on carbon);
* draws of the prior.

The lowest loss wins; of losses that hardly differ, the first in this order.  Energies of neutral structures without a
field do not change when all charges change their sign: of the two that solution is taken in which electronegative
elements, on Pauling's scale, are negative.  So the coarse fits look at such frames only, where there are any: what ions
say about signs goes through energies of charge states, which latent charges do not describe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from ase.data import chemical_symbols

from kqeq import elements
from kqeq.backend import to_numpy
from kqeq.charges.site_values import CHARGE
from kqeq.fitting.least_squares.solver import Solution, minimise
from kqeq.fitting.parameters import Parameters, SitePart
from kqeq.fitting.problem import FitProblem, joblib_engine
from kqeq.fitting.rows.blocks import LINEAR_KINDS, Linearisation
from kqeq.fitting.rows.features import TrainingFrame, compute_features
from kqeq.frames.labels import Labels
from kqeq.typing import FloatArray

FRAMES = 24
"""Frames of the coarse fits."""

STEPS = 6
"""Steps of each."""

DRAWS = 3
"""Draws of the prior."""

SAME = 1e-3
"""Losses that differ by less than this part are of solutions that the data do not tell apart."""

MULLIKEN = (1.0 / 0.336, 0.615)
"""χ_Mulliken = χ_Pauling/0.336 + 0.615 eV (Bratsch 1988, *J. Chem. Educ.* 65, 34)."""


@dataclass(frozen=True, eq=False)
class ChargeStart:
    """The start that was chosen.

    Attributes
    ----------
    offsets : (Z,) array
        Standardised parameters of the elements' electronegativities or charges.
    note : str
        How it was chosen, for the report.
    """

    offsets: FloatArray
    note: str


def needs_start(frames: Sequence[TrainingFrame], parameters: Parameters) -> bool:
    """Whether no label tells charges in closed form, while energies or forces depend on them."""
    if parameters.electronegativity is None or parameters.short_range is None:
        return False
    kinds = {kind for frame in frames for kind in frame.labels.kinds}
    return not kinds & LINEAR_KINDS and bool(kinds & {"energy", "forces", "stress"})


def choose_start(problem: FitProblem, solver: str, *, seed: int = 0) -> ChargeStart:
    """Compare starts of a problem for which :func:`needs_start` holds.

    Parameters
    ----------
    problem : FitProblem
    solver : str
        How linear problems are solved.
    seed : int
        Of the draws.
    """
    parameters = problem.parameters
    if parameters.learned is not None:
        parameters = parameters.freeze(np.zeros(parameters.size))
    names = [name for name, kernel in parameters.kernels.items() if _of_charges(parameters, kernel)]
    coarse, _ = parameters.without(names)
    even = [frame for frame in problem.frames if not _tells_signs(frame)] or list(problem.frames)
    frames = [even[int(i)] for i in np.unique(np.linspace(0, len(even) - 1, FRAMES).astype(int))]
    own = FitProblem(frames, coarse, problem.noise, linear=False, device=problem.device)
    assert coarse.electronegativity is not None
    part = coarse.electronegativity
    tail = slice(part.columns.stop - len(part.offset_mean), part.columns.stop)

    def run(offsets: FloatArray) -> Solution:
        start = np.zeros(coarse.size)
        start[tail] = offsets
        return minimise(own, start, engine=joblib_engine, max_iterations=STEPS, solver=solver, turn=turn)

    try:
        turn = own.turn(solver)
        tried = {name: run(offsets) for name, offsets in _candidates(coarse, part, seed).items()}
        lowest = min(solution.loss for solution in tried.values())
        best = next(name for name, solution in tried.items() if solution.loss <= (1.0 + SAME) * lowest)
        found, turned = tried[best], False
        if _alignment(frames, coarse, found.u) > 0.0:
            other = run(_mirrored(part, found.u[tail], latent=_latent(coarse)))
            turned = other.loss <= (1.0 + SAME) * found.loss and _alignment(frames, coarse, other.u) < 0.0
            found = other if turned else found
    finally:
        own.close()
    offsets = found.u[tail]
    values = part.offsets_at(offsets)
    losses = ", ".join(f"{name} {solution.loss:.5g}" for name, solution in tried.items())
    unit = "e" if _latent(coarse) else "eV/e"
    note = (
        "no dipoles, charges or Born charges are fitted: charges are learned from energies and forces alone, from a "
        f"start chosen by coarse fits ({losses}; taken: {best}, "
        + ", ".join(f"{chemical_symbols[z]} {value:.3g}" for z, value in values.items())
        + f" {unit})"
    )
    if not any(_tells_signs(frame) for frame in frames):
        note += (
            ". Such labels do not change when all charges change their sign: electronegative elements were taken as "
            f"negative{' (the coarse solution was turned)' if turned else ''}"
        )
    return ChargeStart(offsets, note)


def _of_charges(parameters: Parameters, kernel: object) -> bool:
    assert parameters.electronegativity is not None
    return any(kernel is own for own in parameters.electronegativity.kernels)


def _latent(parameters: Parameters) -> bool:
    return parameters.charges is not None and parameters.charges.quantity == CHARGE


def _tells_signs(frame: TrainingFrame) -> bool:
    """Whether a total charge, a field or the like tells positive from negative charges."""
    structure = frame.structure
    given = (
        structure.external_potential,
        structure.external_charges,
        structure.fragment_charges,
        structure.reference_charges,
    )
    return bool(
        structure.total_charge != 0.0
        or structure.external_field.any()
        or any(values is not None for values in given)
    )


def _candidates(parameters: Parameters, part: SitePart, seed: int) -> dict[str, FloatArray]:
    """Standardised offsets by name; the prior means first."""
    spreads = part.offset_spreads
    found = {"cited" if not _latent(parameters) else "bonds": np.zeros(len(spreads))}
    levels = elements.pauling(np.array(list(part.offset_mean)))
    if not _latent(parameters) and np.isfinite(levels).all():
        values = MULLIKEN[0] * levels + MULLIKEN[1]
        found["Pauling"] = (values - np.array(list(part.offset_mean.values()))) / spreads
    rng = np.random.default_rng(seed)
    for number in range(1, DRAWS + 1):
        found[f"draw {number}"] = rng.normal(size=len(spreads))
    return found


def _mirrored(part: SitePart, offsets: FloatArray, *, latent: bool) -> FloatArray:
    """Offsets whose charges have the other sign: values reflected at zero, or electronegativities at their mean."""
    means = np.array(list(part.offset_mean.values()))
    values = means + part.offset_spreads * offsets
    centre = 0.0 if latent else float(values.mean())
    return np.asarray((2.0 * centre - values - means) / part.offset_spreads)


def _alignment(frames: Sequence[TrainingFrame], parameters: Parameters, u: FloatArray) -> float:
    """Σ q_i (x_i − ⟨x⟩) with Pauling's electronegativities x: negative where electronegative elements are negative."""
    total = 0.0
    for frame in frames:
        bare = replace(frame, labels=Labels(energy=0.0))
        state = Linearisation(bare, compute_features(bare, parameters), parameters, u).state
        assert state is not None
        levels = elements.pauling(frame.structure.numbers)
        known = np.isfinite(levels)
        if known.any():
            total += float(to_numpy(state.charges)[known] @ (levels[known] - levels[known].mean()))
    return total


__all__ = ["ChargeStart", "choose_start", "needs_start"]
