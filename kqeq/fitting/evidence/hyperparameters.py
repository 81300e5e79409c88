"""Hyperparameters by maximum marginal likelihood: noises, prior spreads and, for closed-form fits, ζ.

A bounded quasi-Newton search moves on the evidence of one linearisation (:mod:`kqeq.fitting.evidence`) at the cost of P³
per step and without looking at the frames; then the fit is repeated and linearised again.  A step that lowers the
evidence is halved, so it never falls.  The power ζ of the kernel changes the features themselves; it is searched, for
closed-form fits only, by evaluating the evidence at neighbouring powers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kqeq.backend import CPU, Device
from kqeq.errors import ModelFileError
from kqeq.fitting.evidence.evidence import AnyEvidence, collect, column_groups, maximise
from kqeq.fitting.least_squares.solver import Solution
from kqeq.fitting.parameters import Parameters
from kqeq.fitting.problem import FitProblem
from kqeq.fitting.rows.cache import CacheFolder
from kqeq.fitting.rows.features import TrainingFrame
from kqeq.io.archive import read_archive, write_archive
from kqeq.typing import FloatArray

NOISE_RANGE = (0.1, 30.0)
"""Learned noises stay within these multiples of the given ones."""

SPREAD_RANGE = (0.03, 30.0)
"""Learned prior spreads stay within these multiples of the given ones."""

TRUST = math.log(4.0)
"""Largest change of a logarithm between two linearisations of a problem that is not linear."""

MAX_STEPS = 6
"""Linearisations at most."""

ZETA_RANGE = (1.0, 8.0)
"""Powers of the kernel stay between these."""

FORMAT, VERSION = "kqeq-evidence-checkpoint", 3


@dataclass(frozen=True, eq=False)
class Learned:
    """Where the search stands.

    Attributes
    ----------
    parameters : Parameters
    noise : dict of str to float
    u : (P,) array
    value : float
        Log evidence.
    table : tuple of str
        A line for every step that was taken.
    finished : bool
        Whether the search has ended.
    powers : PowerSearch, optional
        Where the search for ζ stands; closed-form fits.
    """

    parameters: Parameters
    noise: dict[str, float]
    u: FloatArray
    value: float
    table: tuple[str, ...]
    finished: bool = False
    powers: PowerSearch | None = None


@dataclass(frozen=True)
class PowerSearch:
    """The search for ζ: uphill by a factor, which shrinks when neither side is better.

    Attributes
    ----------
    tried : dict of float to float
        ζ to the log evidence there.
    direction : float
        1 or −1: which side to look at first.
    step : float
        Logarithm of the factor.
    """

    tried: Mapping[float, float]
    direction: float = 1.0
    step: float = math.log(1.5)


class Hyperparameters(Protocol):
    """Something that depends on noises of label kinds and on prior spreads."""

    @property
    def names(self) -> tuple[str, ...]:
        """Label kinds, in the order of theta; spreads follow."""


def rescale(
    parameters: Parameters, noise: Mapping[str, float], evidence: Hyperparameters, theta: FloatArray
) -> tuple[Parameters, dict[str, float]]:
    """Parameters and noise with their spreads and noises multiplied by exp(theta)."""
    factors = dict(zip(evidence.names, np.exp(theta[: len(evidence.names)]), strict=True))
    new_noise = {kind: value * float(factors.get(kind, 1.0)) for kind, value in noise.items()}
    names = [name for name, _ in column_groups(parameters)]
    spreads = dict(zip(names, np.exp(theta[len(evidence.names) :]), strict=True))

    kernels = {
        name: replace(kernel, delta=kernel.delta * float(spreads.get(f"{name} delta", 1.0)))
        for name, kernel in parameters.kernels.items()
    }
    scaled = parameters.with_kernels(kernels)
    parts = {
        name: replace(part, offset_spread=part.offset_spread * float(spreads.get(f"{name} spread", 1.0)))
        for name, part in scaled.parts.items()
    }
    return scaled.with_parts(parts), new_noise


def with_zeta(parameters: Parameters, zeta: float) -> Parameters:
    """The same representatives of the electronegativities under another power of the dot product."""
    part = parameters.electronegativity
    assert part is not None and len(part.kernels) == 1
    kernel = part.kernels[0]
    changed = replace(kernel, feature_map=replace(kernel.feature_map, zeta=zeta))
    return replace(parameters, electronegativity=part.with_kernels([changed]))


def _zeta(parameters: Parameters) -> float | None:
    """The power of the kernel of the electronegativities, where there is one kernel."""
    kernels = () if parameters.electronegativity is None else parameters.electronegativity.kernels
    return kernels[0].feature_map.zeta if len(kernels) == 1 else None


def _next_zeta(parameters: Parameters, zeta: float) -> float:
    """A power within its range, whole where the descriptor needs that."""
    assert parameters.electronegativity is not None
    whole = parameters.electronegativity.kernels[0].feature_map.descriptor.whole_powers
    return round(float(np.clip(zeta, *ZETA_RANGE)), 0 if whole else 3)


def describe(
    parameters: Parameters,
    noise: Mapping[str, float],
    kinds: Sequence[str],
    value: float,
    what: str = "log evidence",
) -> str:
    """One line on where the search stands."""
    words = [f"noise {kind} {noise[kind]:.3g}" for kind in kinds]
    for name, kernel in parameters.kernels.items():
        words.append(f"{name} delta {kernel.delta:.3g} zeta {kernel.feature_map.zeta:.3g}")
    for name, part in parameters.parts.items():
        if part.offset_spread > 0.0:
            words.append(f"{name} spread {part.offset_spread:.3g}")
    return f"{what} {value:.2f}: " + ", ".join(words)


def learn_by_evidence(
    frames: Sequence[TrainingFrame],
    parameters: Parameters,
    noise: Mapping[str, float],
    *,
    linear: bool,
    solve: Callable[[FitProblem, FloatArray | None], Solution],
    mark: str = "",
    resume: str | PathLike[str] | None = None,
    report: Callable[[str], None] = lambda _: None,
    device: Device = CPU,
    cache: CacheFolder | None = None,
) -> Learned:
    """Learn noises, prior spreads and, for closed-form fits, the power of the kernel.

    Parameters
    ----------
    frames : sequence of TrainingFrame
    parameters : Parameters
    noise : mapping of str to float
        Both as given by the user: starting point, and centre of the bounds.
    linear : bool
        Whether every label is linear in the parameters.
    solve : callable
        Minimises a problem from a start (``None``: from its own).
    mark : str
        Fingerprint of the fit, for the checkpoint.
    resume : path-like, optional
        Checkpoint: written after every step, and continued from if it is there.
    report : callable
        Called with a line after every step.
    device : Device
        Where fits run; the evidence itself is computed on the host.
    cache : CacheFolder, optional
        Where features may go that memory has no room for.

    Returns
    -------
    Learned
    """
    first = (parameters, dict(noise))
    state = _read(resume, mark, parameters) if resume is not None else None

    def attempt(
        candidate: Parameters, own: Mapping[str, float], u: FloatArray | None
    ) -> tuple[AnyEvidence, FloatArray]:
        """Fit and linearise."""
        problem = FitProblem(frames, candidate, own, linear=linear, device=device, cache=cache)
        try:
            if linear:
                u = np.zeros(problem.size)  # any point serves
            elif u is None or state is None or u is not state.u:
                u = solve(problem, u).u
            assert u is not None
            return collect(problem, u), u
        finally:
            problem.close()

    def save(reached: Learned) -> Learned:
        _write(resume, mark, reached)
        return reached

    if linear:
        return _learn_linear(attempt, first, state, save, report)

    def line(found: Learned, evidence: AnyEvidence) -> Learned:
        text = describe(found.parameters, found.noise, list(evidence.names), found.value)
        report(text)
        return replace(found, table=(*found.table, text))

    if state is None:
        evidence, u = attempt(*first, None)
        value = evidence.evaluate(np.zeros(evidence.size))[0]
        state = save(line(Learned(*first, u, value, ()), evidence))
    elif not state.finished:
        evidence, _ = attempt(state.parameters, state.noise, state.u)
    while not state.finished and len(state.table) <= MAX_STEPS:
        limits = _bounds(first, (state.parameters, state.noise), evidence, TRUST)
        theta = maximise(evidence, limits, np.zeros(evidence.size))
        better = None
        for _ in range(4):
            candidate = rescale(state.parameters, state.noise, evidence, theta)
            moved, u = attempt(*candidate, evidence.evaluate(theta)[2])
            value = moved.evaluate(np.zeros(moved.size))[0]
            if value > state.value:
                better = Learned(*candidate, u, value, state.table)
                break
            theta = 0.5 * theta
        if better is None:
            state = save(replace(state, finished=True))
        else:
            small = value - state.value < 1.0 or float(np.abs(theta).max()) < 0.05
            evidence = moved
            state = save(replace(line(better, evidence), finished=small))
    return state


def _learn_linear(
    attempt: Callable[[Parameters, Mapping[str, float], FloatArray | None], tuple[AnyEvidence, FloatArray]],
    first: tuple[Parameters, dict[str, float]],
    state: Learned | None,
    save: Callable[[Learned], Learned],
    report: Callable[[str], None],
) -> Learned:
    """The maximum for given features is found without another accumulation; the power is climbed in factors."""

    def best(at: tuple[Parameters, dict[str, float]], table: tuple[str, ...]) -> Learned:
        sums, _ = attempt(*at, None)
        names = list(sums.names)
        if not table:
            table = (describe(*at, names, sums.evaluate(np.zeros(sums.size))[0]),)
            report(table[0])
        theta = maximise(sums, _bounds(first, at, sums, math.inf), np.zeros(sums.size))
        value, _, u = sums.evaluate(theta)
        parameters, noise = rescale(*at, sums, theta)
        text = describe(parameters, noise, names, value)
        report(text)
        return Learned(parameters, noise, u, value, (*table, text))

    if state is None:
        found = best(first, ())
        zeta = _zeta(found.parameters)
        if zeta is None:
            return save(replace(found, finished=True))
        state = save(replace(found, powers=PowerSearch({zeta: found.value})))
    while not state.finished:
        powers, now = state.powers, _zeta(state.parameters)
        assert powers is not None and now is not None
        beside = [
            (
                sign,
                _next_zeta(state.parameters, now * math.exp(sign * powers.step)),
            )
            for sign in (powers.direction, -powers.direction)
        ]
        untried = [(sign, zeta) for sign, zeta in beside if zeta not in powers.tried]
        if not untried:
            powers = replace(powers, step=0.5 * powers.step)
            state = save(replace(state, powers=powers, finished=powers.step <= 0.15))
            continue
        sign, zeta = untried[0]
        other = best((with_zeta(state.parameters, zeta), state.noise), state.table)
        powers = replace(powers, tried={**powers.tried, zeta: other.value})
        if other.value > state.value:
            state = replace(other, powers=replace(powers, direction=sign))
        else:
            state = replace(state, powers=powers)
        save(state)
    return state


def _bounds(
    first: tuple[Parameters, dict[str, float]],
    now: tuple[Parameters, dict[str, float]],
    evidence: AnyEvidence,
    trust: float,
) -> list[tuple[float, float]]:
    """Bounds on the change of each logarithm: within the ranges around the given values, and within ``trust``."""
    pairs = [(first[1][kind], now[1][kind], NOISE_RANGE) for kind in evidence.names]
    for name, _ in column_groups(now[0]):
        owner, what = name.rsplit(maxsplit=1)
        if what == "delta":
            pairs.append((first[0].kernels[owner].delta, now[0].kernels[owner].delta, SPREAD_RANGE))
        else:
            spreads = (first[0].parts[owner].offset_spread, now[0].parts[owner].offset_spread)
            pairs.append((*spreads, SPREAD_RANGE))
    return [
        (max(math.log(low * start / own), -trust), min(math.log(high * start / own), trust))
        for start, own, (low, high) in pairs
    ]


# ------------------------------------------------------------------ checkpoint


def _write(path: str | PathLike[str] | None, mark: str, state: Learned) -> None:
    if path is None:
        return
    header: dict[str, Any] = {
        "fingerprint": mark,
        "noise": state.noise,
        "deltas": {name: kernel.delta for name, kernel in state.parameters.kernels.items()},
        "spreads": {name: part.offset_spread for name, part in state.parameters.parts.items()},
        "value": state.value,
        "table": list(state.table),
        "finished": state.finished,
    }
    powers = state.powers
    if powers is not None:
        header["powers"] = {
            "zeta": _zeta(state.parameters),
            "tried": [list(pair) for pair in powers.tried.items()],
            "direction": powers.direction,
            "step": powers.step,
        }
    write_archive(path, FORMAT, VERSION, header, {"u": state.u})


def _read(path: str | PathLike[str], mark: str, parameters: Parameters) -> Learned | None:
    source = Path(path)
    if not source.exists():
        return None
    remedy = "remove it to start afresh, or give another path"
    header, arrays = read_archive(source, FORMAT, VERSION, "checkpoint of a kqeq fit by evidence", remedy)
    try:
        if header["fingerprint"] != mark or arrays["u"].shape != (parameters.size,):
            raise ModelFileError(
                f"{source} is the checkpoint of another fit: settings, frames or labels differ; continue with the "
                f"same ones, or {remedy}"
            )
        own = parameters.with_kernels(
            {
                name: replace(kernel, delta=float(header["deltas"][name]))
                for name, kernel in parameters.kernels.items()
            }
        )
        own = own.with_parts(
            {
                name: replace(part, offset_spread=float(header["spreads"][name]))
                for name, part in own.parts.items()
            }
        )
        noise = {str(kind): float(value) for kind, value in header["noise"].items()}
        powers = None
        if "powers" in header:
            stored = header["powers"]
            own = with_zeta(own, float(stored["zeta"]))
            tried = {float(zeta): float(value) for zeta, value in stored["tried"]}
            powers = PowerSearch(tried, float(stored["direction"]), float(stored["step"]))
        value, table, finished = header["value"], tuple(header["table"]), bool(header["finished"])
        return Learned(own, noise, arrays["u"], float(value), table, finished, powers)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{source} lacks a part of the checkpoint ({error!r}); {remedy}") from None


__all__ = ["Learned", "PowerSearch", "describe", "learn_by_evidence", "rescale", "with_zeta"]
