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

import numpy as np

from kqeq.archive import read_archive, write_archive
from kqeq.backend import CPU, Device, cache_budget
from kqeq.errors import ModelFileError
from kqeq.fitting.evidence import AnyEvidence, collect, column_groups, maximise
from kqeq.fitting.features import MEMORY_BUDGET, TrainingFrame
from kqeq.fitting.parameters import Parameters
from kqeq.fitting.problem import FitProblem
from kqeq.fitting.solver import Solution
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

FORMAT, VERSION = "kqeq-evidence-checkpoint", 1


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
        A line for every step.
    """

    parameters: Parameters
    noise: dict[str, float]
    u: FloatArray
    value: float
    table: tuple[str, ...]


def rescale(
    parameters: Parameters, noise: Mapping[str, float], evidence: AnyEvidence, theta: FloatArray
) -> tuple[Parameters, dict[str, float]]:
    """Parameters and noise with their spreads and noises multiplied by exp(theta)."""
    factors = dict(zip(evidence.names, np.exp(theta[: len(evidence.names)]), strict=True))
    new_noise = {kind: value * float(factors.get(kind, 1.0)) for kind, value in noise.items()}
    names = [name for name, _ in column_groups(parameters)]
    spreads = dict(zip(names, np.exp(theta[len(evidence.names) :]), strict=True))

    scaled = {
        name: replace(
            part,
            delta=part.delta * float(spreads.get(f"{name} delta", 1.0)),
            offset_spread=part.offset_spread * float(spreads.get(f"{name} spread", 1.0)),
        )
        for name, part in parameters.parts.items()
    }
    return parameters.with_parts(scaled), new_noise


def with_zeta(parameters: Parameters, zeta: float) -> Parameters:
    """The same representatives of the electronegativities under another power of the dot product."""
    part = parameters.chi
    assert part is not None and part.feature_map is not None
    return replace(parameters, chi=replace(part, feature_map=replace(part.feature_map, zeta=zeta)))


def describe(parameters: Parameters, noise: Mapping[str, float], kinds: Sequence[str], value: float) -> str:
    """One line on where the search stands."""
    words = [f"noise {kind} {noise[kind]:.3g}" for kind in kinds]
    for name, part in parameters.parts.items():
        if part.feature_map is not None:
            words.append(f"{name} delta {part.delta:.3g} zeta {part.feature_map.zeta:.3g}")
        if part.offset_spread > 0.0:
            words.append(f"{name} spread {part.offset_spread:.3g}")
    return f"log evidence {value:.2f}: " + ", ".join(words)


def learn(
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
        # a closed-form fit meets every frame once: there is nothing to keep
        budget = 0 if linear else cache_budget(device.like, MEMORY_BUDGET)
        problem = FitProblem(frames, candidate, own, linear=linear, budget=budget, device=device)
        try:
            if linear:
                u = np.zeros(problem.size)  # any point serves
            elif state is None or u is not state.u:
                u = solve(problem, u).u
            assert u is not None
            return collect(problem, u), u
        finally:
            problem.close()

    def note(text: str) -> None:
        report(text)
        table.append(text)

    table: list[str] = list(state.table) if state is not None else []
    if state is None:
        evidence, u = attempt(*first, None)
        value = evidence.evaluate(np.zeros(evidence.size))[0]
        note(describe(*first, list(evidence.names), value))
        state = Learned(*first, u, value, tuple(table))
        _write(resume, mark, state)
    else:
        evidence, _ = attempt(state.parameters, state.noise, state.u)
    if linear:
        return _learn_linear(attempt, evidence, first, state, note, table)

    for _ in range(len(table) - 1, MAX_STEPS):
        limits = _bounds(first, (state.parameters, state.noise), evidence, TRUST)
        theta = maximise(evidence, limits, np.zeros(evidence.size))
        accepted = None
        for _ in range(4):
            candidate = rescale(state.parameters, state.noise, evidence, theta)
            moved, u = attempt(*candidate, evidence.evaluate(theta)[2])
            value = moved.evaluate(np.zeros(moved.size))[0]
            if value > state.value:
                accepted = (candidate, moved, u, value)
                break
            theta = 0.5 * theta
        if accepted is None:
            break
        candidate, evidence, u, value = accepted
        gain, change = value - state.value, float(np.abs(theta).max())
        note(describe(*candidate, list(evidence.names), value))
        state = Learned(*candidate, u, value, tuple(table))
        _write(resume, mark, state)
        if gain < 1.0 or change < 0.05:
            break
    return state


def _learn_linear(
    attempt: Callable[[Parameters, Mapping[str, float], FloatArray | None], tuple[AnyEvidence, FloatArray]],
    evidence: AnyEvidence,
    first: tuple[Parameters, dict[str, float]],
    state: Learned,
    note: Callable[[str], None],
    table: list[str],
) -> Learned:
    """The maximum for given features is found without another accumulation; the power is climbed in factors."""

    def best(sums: AnyEvidence, at: tuple[Parameters, dict[str, float]]) -> Learned:
        theta = maximise(sums, _bounds(first, at, sums, math.inf), np.zeros(sums.size))
        value, _, u = sums.evaluate(theta)
        parameters, noise = rescale(*at, sums, theta)
        return Learned(parameters, noise, u, value, ())

    found = best(evidence, (state.parameters, state.noise))
    kinds = list(evidence.names)
    note(describe(found.parameters, found.noise, kinds, found.value))
    chi = found.parameters.chi
    if chi is not None and chi.feature_map is not None:
        step = math.log(1.5)
        tried: dict[float, float] = {chi.feature_map.zeta: found.value}
        direction = 1.0
        while step > 0.15:
            improved = False
            for sign in (direction, -direction):
                part = found.parameters.chi
                assert part is not None and part.feature_map is not None
                zeta = part.feature_map.zeta * math.exp(sign * step)
                zeta = round(float(np.clip(zeta, *ZETA_RANGE)), 3)
                if zeta in tried:
                    continue
                changed = with_zeta(found.parameters, zeta)
                moved, _ = attempt(changed, found.noise, None)
                other = best(moved, (changed, found.noise))
                tried[zeta] = other.value
                if other.value > found.value:
                    found, direction, improved = other, sign, True
                    note(describe(found.parameters, found.noise, kinds, found.value))
                    break
            if not improved:
                step *= 0.5
    return replace(found, table=tuple(table))


def _bounds(
    first: tuple[Parameters, dict[str, float]],
    now: tuple[Parameters, dict[str, float]],
    evidence: AnyEvidence,
    trust: float,
) -> list[tuple[float, float]]:
    """Bounds on the change of each logarithm: within the ranges around the given values, and within ``trust``."""
    pairs = [(first[1][kind], now[1][kind], NOISE_RANGE) for kind in evidence.names]
    for name, _ in column_groups(now[0]):
        part, what = name.split()
        given, current = first[0].parts[part], now[0].parts[part]
        attribute = "delta" if what == "delta" else "offset_spread"
        pairs.append((getattr(given, attribute), getattr(current, attribute), SPREAD_RANGE))
    return [
        (max(math.log(low * start / own), -trust), min(math.log(high * start / own), trust))
        for start, own, (low, high) in pairs
    ]


# ------------------------------------------------------------------ checkpoint


def _write(path: str | PathLike[str] | None, mark: str, state: Learned) -> None:
    if path is None:
        return
    parts = {name: [part.delta, part.offset_spread] for name, part in state.parameters.parts.items()}
    header = {
        "fingerprint": mark,
        "noise": state.noise,
        "parts": parts,
        "value": state.value,
        "table": list(state.table),
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
        parts = {}
        for name, part in parameters.parts.items():
            delta, spread = header["parts"][name]
            parts[name] = replace(part, delta=float(delta), offset_spread=float(spread))
        own = parameters.with_parts(parts)
        noise = {str(kind): float(value) for kind, value in header["noise"].items()}
        return Learned(own, noise, arrays["u"], float(header["value"]), tuple(header["table"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{source} lacks a part of the checkpoint ({error!r}); {remedy}") from None


__all__ = ["Learned", "describe", "learn", "rescale", "with_zeta"]
