"""Whether a model's own numbers agree with each other: derivatives, sum rules, symmetries, conserved energy.

Every check compares two numbers that the model gives for one frame.  None needs reference data; a failure is a mistake
in the model or the package, or parameters that make the problem ill-conditioned, not a lack of accuracy.

Dimensions: N atoms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet

from kqeq.analysis.entry import CHARGE_STEP, FIELD_STEP, derivative, potential_of, read
from kqeq.analysis.results import Result
from kqeq.calculator import KQEqCalculator
from kqeq.errors import InputError, KQEqError
from kqeq.frames.conditions import under_conditions
from kqeq.frames.structures import Structure, as_frames
from kqeq.potential.fixed_geometry import FixedGeometry
from kqeq.potential.potential import Potential, Prediction
from kqeq.typing import FloatArray

MAX_FRAMES = 10
"""Frames that are looked at, evenly spaced, where more are given."""

STEP = 2e-3
"""Displacement of finite differences, Å."""

DIRECTIONS = 4
"""Random directions along which forces are compared with differences of the energy."""

TEST_FIELD = np.array([0.02, -0.03, 0.04])
"""Field that frames are put in besides their own where the model admits it, V/Å."""

TIME_STEP, STEPS, TEMPERATURE = 0.5, 400, 300.0
"""fs, steps and K of the dynamics."""

MAX_DRIFT = 1.0
"""Change of the conserved energy over the dynamics that is tolerated, meV/atom."""


@dataclass(frozen=True, eq=False)
class Check(Result):
    """One comparison, at its worst over the frames.

    Attributes
    ----------
    name : str
    passed : bool
    error : float
        Largest deviation.
    tolerance : float
    unit : str
    frames : int
        Frames for which it could be made.
    worst_frame : int
        Where the deviation, relative to its tolerance, is largest.
    note : str
        Why it failed, where that is known.
    """

    name: str
    passed: bool
    error: float | None
    tolerance: float | None
    unit: str
    frames: int
    worst_frame: int
    note: str = ""


@dataclass(frozen=True, eq=False)
class Consistency(Result):
    """All comparisons.

    Attributes
    ----------
    checks : tuple of Check
    frames : tuple of int
        Indices of the frames that were looked at.
    times : (K,) array
        Of the dynamics, fs.
    energies : (K,) array
        Conserved energy minus its start, meV/atom.
    """

    checks: tuple[Check, ...]
    frames: tuple[int, ...]
    times: FloatArray
    energies: FloatArray
    rows: ClassVar[str] = "times"

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = [f"{'check':<{width}} {'largest error':>14} {'tolerance':>10} {'unit':<12} result"]
        for check in self.checks:
            numbers = " " * 25
            if check.error is not None and check.tolerance is not None:
                numbers = f"{check.error:14.1e} {check.tolerance:10.1e}"
            result = "passed" if check.passed else f"FAILED (frame {check.worst_frame})"
            note = f": {check.note}" if check.note else ""
            lines.append(f"{check.name:<{width}} {numbers} {check.unit:<12} {result}{note}")
        failed = sum(not check.passed for check in self.checks)
        count = f"{len(self.checks)} checks on {len(self.frames)} frames"
        lines += ["", f"{count}, all passed" if failed == 0 else f"{count}, {failed} FAILED"]
        return "\n".join(lines)


Outcome = tuple[str, float, float, str]
"""Name, error, tolerance, unit."""


def check_consistency(
    model: Any, frames: Atoms | Sequence[Atoms], *, steps: int = STEPS, max_frames: int = MAX_FRAMES
) -> Consistency:
    """Check a model on frames of the kind that it is used for.

    Parameters
    ----------
    model : KQEq
    frames : ase.Atoms or sequence of ase.Atoms
        Charge and field are taken from each; labels are not looked at.
    steps : int
        Of dynamics at constant energy from the first frame, 0.5 fs each, started at 300 K; none if 0.
    max_frames : int
        Of more frames, so many evenly spaced ones are taken.

    Returns
    -------
    Consistency
        Print it, or look at ``passed``.

    Raises
    ------
    InputError, UnsupportedError, ModelNotFittedError
        For frames that the model cannot treat.
    """
    potential = potential_of(model)
    everything = as_frames(frames)
    for name, value, least in (("steps", steps, 0), ("max_frames", max_frames, 1)):
        if int(value) != value or value < least:
            raise InputError(f"{name} is {value!r}; expected a whole number of at least {least}")
    chosen = np.unique(np.linspace(0, len(everything) - 1, min(len(everything), int(max_frames))).astype(int))
    structures = [read(model, everything[i]) for i in chosen]
    collected: dict[str, list[tuple[int, Outcome]]] = {}
    for i, structure in zip(chosen, structures, strict=True):
        for outcome in _outcomes(potential, structure):
            collected.setdefault(outcome[0], []).append((int(i), outcome))
    checks = [_worst(name, found) for name, found in collected.items()]
    times = energies = np.zeros(0)
    if steps and potential.has_energy:
        first = structures[0]
        start = under_conditions(
            everything[chosen[0]], first.total_charge, first.external_field, model.label_prefix
        )
        check, times, energies = _dynamics(model, start, int(chosen[0]), int(steps))
        checks.append(check)
    return Consistency(tuple(checks), tuple(int(i) for i in chosen), times, energies)


def _worst(name: str, found: list[tuple[int, Outcome]]) -> Check:
    frame, (_, error, tolerance, unit) = max(
        found, key=lambda item: np.inf if np.isnan(item[1][1]) else item[1][1] / item[1][2]
    )
    return Check(name, bool(error <= tolerance), float(error), float(tolerance), unit, len(found), frame)


def _outcomes(potential: Potential, structure: Structure) -> Iterator[Outcome]:
    """All comparisons for one frame."""
    charged = potential.has_charges
    if charged:
        structure = _in_test_field(potential, structure)
    geometry = FixedGeometry.at(potential, structure)
    wanted = ("forces", "stress", "dipole", "polarizability")
    here = geometry.predict(wanted)
    if potential.has_energy:
        yield from _derivatives(potential, structure, here)
    if charged:
        yield from _responses(geometry, here)
    yield from _symmetries(potential, structure, here)


def _in_test_field(potential: Potential, structure: Structure) -> Structure:
    """The frame in a field in which torques and net forces are not zero, if the model admits one."""
    field = TEST_FIELD.copy()
    field[np.asarray(structure.pbc)] = 0.0
    if structure.pbc.all():
        return structure
    try:
        other = structure.under(structure.total_charge, structure.external_field + field)
        potential.check(other)
    except KQEqError:
        return structure
    return other


def _energies(potential: Potential, structures: Sequence[Structure]) -> list[float]:
    return [prediction.energy for prediction in potential.predict_many(structures, ())]


def _slope(potential: Potential, moved: Callable[[float], Structure], step: float) -> float:
    """dE/dt by fourth-order differences."""
    two_back, back, ahead, two_ahead = _energies(potential, [moved(k * step) for k in (-2, -1, 1, 2)])
    return (8.0 * (ahead - back) - (two_ahead - two_back)) / (12.0 * step)


def _derivatives(potential: Potential, structure: Structure, here: Prediction) -> Iterator[Outcome]:
    """Forces and stress against differences of the energy."""
    assert here.forces is not None
    rng = np.random.default_rng(0)
    rms = float(np.sqrt(np.mean(here.forces**2)))
    errors = []
    for _ in range(DIRECTIONS):
        way = rng.normal(size=here.forces.shape)
        way /= np.linalg.norm(way)

        def moved(t: float, way: FloatArray = way) -> Structure:
            return replace(structure, positions=structure.positions + t * way)

        numeric = _slope(potential, moved, STEP)
        errors.append(abs(numeric + float(np.sum(here.forces * way))))
    yield "forces = -dE/dr", max(errors), 1e-4 * rms + 1e-5, "eV/Å"
    if here.stress is None:
        return
    scale = float(np.abs(here.stress).max())
    errors = []
    for _ in range(2):
        strain = rng.normal(size=(3, 3))
        strain = (strain + strain.T) / np.linalg.norm(strain + strain.T)

        def strained(t: float, strain: FloatArray = strain) -> Structure:
            deformation = np.eye(3) + t * strain
            return replace(
                structure, positions=structure.positions @ deformation, cell=structure.cell @ deformation
            )

        numeric = _slope(potential, strained, 5e-4) / structure.volume
        errors.append(abs(numeric - float(np.sum(here.stress * strain))))
    yield "stress = dE/dstrain / volume", max(errors), 1e-4 * scale + 1e-6, "eV/Å³"


def _responses(geometry: FixedGeometry, here: Prediction) -> Iterator[Outcome]:
    """Dipole, polarizability and chemical potential against differences; sum rules of charges, forces and torques."""
    structure = geometry.structure
    charge, field = structure.total_charge, structure.external_field
    assert here.charges is not None and here.forces is not None
    yield "sum of charges = Q", abs(float(here.charges.sum()) - charge), 1e-6, "e"
    if here.dipole is not None and not structure.periodic:

        def along(t: float, a: int, what: str) -> FloatArray:
            there = geometry.under(external_field=field + t * np.eye(3)[a]).predict(("dipole",))
            return np.asarray(there.energy if what == "energy" else there.dipole)

        numeric = np.array(
            [derivative(lambda t, a=a: along(t, a, "energy"), FIELD_STEP) for a in range(3)]  # type: ignore[misc]
        )
        scale = float(np.abs(here.dipole).max())
        yield (
            "dipole = -dE/dfield",
            float(np.abs(numeric + here.dipole).max()),
            1e-5 * scale + 1e-5,
            "e·Å",
        )
        assert here.polarizability is not None
        slopes = np.stack(
            [derivative(lambda t, a=a: along(t, a, "dipole"), FIELD_STEP) for a in range(3)],  # type: ignore[misc]
            axis=1,
        )
        scale = float(np.abs(here.polarizability).max())
        error = float(np.abs(slopes - here.polarizability).max())
        yield "polarizability = d dipole/dfield", error, 1e-4 * scale + 1e-6, "e²·Å²/eV"
        if structure.external_potential is None:
            net = np.abs(here.forces.sum(axis=0) - charge * field).max()
            scale = float(np.abs(here.forces).max())
            yield "sum of forces = Q field", float(net), 1e-6 * scale + 1e-6, "eV/Å"
            torque = np.cross(structure.positions, here.forces).sum(axis=0) - np.cross(here.dipole, field)
            reach = float(np.abs(structure.positions).max())
            yield (
                "sum of r x force = dipole x field",
                float(np.abs(torque).max()),
                1e-6 * scale * reach + 1e-5,
                "eV",
            )
    if (
        structure.fragment_charges is None
        and structure.reference_charges is None
        and not (structure.periodic and field.any())
        and here.chemical_potential is not None
    ):

        def energy(t: float) -> FloatArray:
            return np.asarray(geometry.under(total_charge=charge + t).predict(()).energy)

        error = abs(float(derivative(energy, CHARGE_STEP)) - here.chemical_potential)
        yield "chemical potential = dE/dQ", error, 1e-5 * abs(here.chemical_potential) + 1e-5, "eV/e"


def _symmetries(potential: Potential, structure: Structure, here: Prediction) -> Iterator[Outcome]:
    """Rotation, translation and permutation of everything leave everything the same."""
    rng = np.random.default_rng(1)
    turn, upper = np.linalg.qr(rng.normal(size=(3, 3)))
    turn = turn * np.sign(np.diagonal(upper))
    turn[:, 0] *= np.sign(np.linalg.det(turn))
    shift = rng.normal(scale=3.0, size=3)
    order = rng.permutation(len(structure))
    same = np.arange(len(structure))
    keep = np.eye(3)

    turned = replace(
        structure,
        positions=structure.positions @ turn.T,
        cell=structure.cell @ turn.T,
        external_field=turn @ structure.external_field,
    )
    moved = replace(structure, positions=structure.positions + shift)
    per_atom = {
        name: getattr(structure, name)[order]
        for name in ("numbers", "positions", "fragments", "reference_charges", "external_potential")
        if getattr(structure, name) is not None
    }
    shuffled = replace(structure, **per_atom)
    work = structure.total_charge * float(structure.external_field @ shift)
    for name, other, matrix, rank, gained in (
        ("rotation", turned, turn, same, 0.0),
        ("translation", moved, keep, same, -work),
        ("permutation of atoms", shuffled, keep, order, 0.0),
    ):
        there = potential.predict(other, ("forces",))
        assert here.forces is not None and there.forces is not None
        scale = float(np.abs(here.forces).max())
        error = float(np.abs(there.forces - here.forces[rank] @ matrix.T).max())
        yield f"{name}: forces", error, 1e-6 * scale + 1e-6, "eV/Å"
        change = abs(there.energy - here.energy - gained) / len(structure)
        yield f"{name}: energy", change, 1e-7 + 1e-12 * abs(here.energy), "eV/atom"
        if here.charges is not None and there.charges is not None:
            yield f"{name}: charges", float(np.abs(there.charges - here.charges[rank]).max()), 1e-6, "e"


def _dynamics(model: Any, atoms: Atoms, frame: int, steps: int) -> tuple[Check, FloatArray, FloatArray]:
    """Constant-energy dynamics; the energy includes the interaction with the field."""
    moving: Atoms = atoms.copy()
    moving.set_constraint()
    moving.calc = KQEqCalculator(model)
    spread = np.sqrt(moving.get_masses() * units.kB * TEMPERATURE)
    moving.set_momenta(np.random.default_rng(2).normal(size=(len(moving), 3)) * spread[:, None])
    energies: list[float] = []
    name, note = f"energy conserved over {1e-3 * steps * TIME_STEP:g} ps of dynamics", ""
    try:
        for _ in VelocityVerlet(moving, TIME_STEP * units.fs).irun(steps):
            energies.append(moving.get_total_energy())
    except KQEqError as error:
        note = f"broke down after step {len(energies)}: {error}"
    values = np.array(energies, dtype=np.float64)
    values = 1e3 * (values - values[:1]) / len(moving)
    times = TIME_STEP * np.arange(len(values), dtype=np.float64)
    change = None if note else _change(values)
    passed = change is not None and change <= MAX_DRIFT
    return Check(name, passed, change, MAX_DRIFT, "meV/atom", 1, frame, note), times, values


def _change(values: FloatArray) -> float:
    """How far the mean of the last tenth is from that of the first."""
    part = max(1, len(values) // 10)
    return float(abs(values[-part:].mean() - values[:part].mean()))


__all__ = ["Check", "Consistency", "check_consistency"]
