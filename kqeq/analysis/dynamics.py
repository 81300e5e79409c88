"""Molecular dynamics with a fitted model: ASE's integrators, with total charge and field taken care of.

``nve`` is velocity Verlet, ``nvt`` Langevin dynamics (for molecules as well as for liquids: it does not need many degrees
of freedom to thermalise), ``npt`` Martyna, Tobias and Klein's equations with isotropic or free changes of the cell
(1994, *J. Chem. Phys.* 101, 4177).  A charged system in a field is accelerated for ever by Q·field; its centre of mass is
held, as in :mod:`kqeq.analysis.optimization`.

Dimensions: K reported steps, N atoms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Annotated, Any, ClassVar

import numpy as np
from ase import Atoms, units
from ase.constraints import FixAtoms, FixCom

from kqeq.analysis.entry import conditions_of, potential_of
from kqeq.analysis.optimization import BAR, bare_geometry
from kqeq.analysis.results import Result
from kqeq.calculator import KQEqCalculator
from kqeq.errors import ExtrapolationError, InputError, KQEqError, UnsupportedError
from kqeq.frames.conditions import without_conditions
from kqeq.frames.structures import describe
from kqeq.model.estimator import KQEq
from kqeq.potential.potential import require_energy_model
from kqeq.typing import FloatArray, IntArray

ENSEMBLES = ("nve", "nvt", "npt")

STEP_KEY = "md_step"
"""Entry of ``atoms.info`` that says how many steps a geometry is from the start."""

THERMOSTAT, BAROSTAT = 100.0, 1000.0
"""Times in which temperature and pressure relax in ``npt``, in time steps."""


@dataclass(frozen=True, eq=False)
class Dynamics(Result):
    """What a dynamics reported.

    Attributes
    ----------
    steps : (K,) int array
        From the start of the trajectory, earlier parts included.
    times : (K,) array
        fs.
    potential_energies, kinetic_energies, total_energies : (K,) arrays
        eV; their sum is conserved in ``nve``.
    temperatures : (K,) array
        K; instantaneous.
    pressures : (K,) array or None
        bar, kinetic part included; of periodic cells with three periodic directions.
    volumes : (K,) array or None
        Å³, likewise.
    dipoles : (K, 3) array or None
        e·Å, where the model has one.
    ensemble : str
    timestep : float
        fs.
    total_charges : (K,) array
        e; one number again and again, but at a potential.
    external_field : (3,) array
        V/Å.
    held_centre_of_mass : bool
    drift : float
        Slope of a line through the total energies, meV/atom/ps; what ``nve`` should keep at zero.
    """

    steps: IntArray
    times: Annotated[FloatArray, "fs"]
    potential_energies: Annotated[FloatArray, "eV"]
    kinetic_energies: Annotated[FloatArray, "eV"]
    total_energies: Annotated[FloatArray, "eV"]
    temperatures: Annotated[FloatArray, "K"]
    pressures: Annotated[FloatArray | None, "bar"]
    volumes: Annotated[FloatArray | None, "Å³"]
    dipoles: Annotated[FloatArray | None, "e·Å"]
    ensemble: str
    timestep: Annotated[float, "fs"]
    total_charges: Annotated[FloatArray, "e"]
    external_field: Annotated[FloatArray, "V/Å"]
    held_centre_of_mass: bool
    drift: Annotated[float, "meV/atom/ps"]
    rows: ClassVar[str] = "steps"


def molecular_dynamics(
    model: KQEq,
    atoms: Atoms,
    *,
    steps: int,
    ensemble: str = "nvt",
    timestep: float = 0.5,
    temperature: float = 300.0,
    friction: float = 0.01,
    pressure: float = 1.0,
    free_cell: bool = False,
    total_charge: Any = None,
    external_field: Any = None,
    potential: float | None = None,
    seed: int = 0,
    every: int = 10,
    observer: Callable[[Atoms, dict[str, Any]], None] | None = None,
    device: str = "cpu",
    max_energy_std: float | None = None,
    max_distance: float | None = None,
) -> tuple[Atoms, Dynamics]:
    """Run a dynamics.

    Parameters
    ----------
    model : KQEq
        Fitted to energies or forces.
    atoms : ase.Atoms
        Left as it is.  Momenta that it has are kept; without any they are drawn at ``temperature``.
    steps : int
        Steps in all: a geometry with ``atoms.info["md_step"]`` goes on from there.
    ensemble : {"nvt", "nve", "npt"}
    timestep : float
        fs.
    temperature : float
        K.
    friction : float
        Of ``nvt``, 1/fs.
    pressure : float
        Of ``npt``, bar.
    free_cell : bool
        Whether ``npt`` changes the shape of the cell as well, instead of its size alone.
    total_charge, external_field : optional
        e, V/Å; otherwise from ``atoms.info``.
    potential : float, optional
        Hold the system at this potential ∂E/∂Q, V, instead of a total charge, which follows at every step; energies are
        then grand energies E − UQ.
    seed : int
        Of the momenta and of the random forces of ``nvt``.
    every : int
        Steps between two reports.
    observer : callable, optional
        Called at every report with a copy of the geometry (momenta and results included) and the numbers of that step,
        under the names of :class:`Dynamics` in the singular.
    device : {"cpu", "cuda", "auto"}
    max_energy_std, max_distance : float, optional
        Stop where the model extrapolates, as :class:`kqeq.KQEqCalculator` with ``on_extrapolation="stop"`` says.

    Returns
    -------
    atoms : ase.Atoms
        The last geometry, with momenta, results and ``md_step``.
    Dynamics

    Raises
    ------
    InputError
        For settings that make no sense, and where the model refuses a geometry on the way (the last good one has been
        given to ``observer``).
    ExtrapolationError
        Where one of the limits was passed; likewise.
    UnsupportedError
        For a model without energies, ``npt`` of a structure that is not periodic in three directions, or an ASE too old
        for it.
    """
    require_energy_model(potential_of(model))
    _check(steps, ensemble, timestep, temperature, friction, pressure, every)
    charge, field = conditions_of(model, atoms, total_charge, external_field)
    if potential is not None and total_charge is not None:
        raise InputError(
            "total_charge and potential were given; at a given potential the total charge follows"
        )
    if ensemble == "npt" and not atoms.pbc.all():
        raise UnsupportedError(
            f"{describe(atoms)} is periodic in {int(atoms.pbc.sum())} of 3 directions; npt needs all three, use nvt"
        )
    moving = bare_geometry(atoms, keep=("momenta", STEP_KEY))
    if potential is not None:
        moving = without_conditions(moving, charge=True, field=False, prefix=model.label_prefix)
    moving.info.update(external_field=field)
    if potential is None:
        moving.info["total_charge"] = charge
    start = int(moving.info.get(STEP_KEY, 0))
    if start > steps:
        raise InputError(f"the geometry is at step {start} already and steps is {steps}; ask for more steps")
    pinned = any(isinstance(constraint, FixAtoms | FixCom) for constraint in moving.constraints)
    hold = bool((charge or potential is not None) and field.any()) and not pinned
    if hold:
        moving.set_constraint([*moving.constraints, FixCom()])
    calculator = KQEqCalculator(
        model,
        potential=potential,
        device=device,
        max_energy_std=max_energy_std,
        max_distance=max_distance,
        on_extrapolation="stop",
    )
    moving.calc = calculator
    rng = np.random.default_rng([seed, start])  # a dynamics that goes on does not repeat its noise
    if not moving.has("momenta") or not moving.get_momenta().any():
        _thermalise(moving, temperature, rng)
    driver = _driver(moving, ensemble, timestep, temperature, friction, pressure, free_cell, rng)

    rows: list[dict[str, Any]] = []
    good: Atoms = moving.copy()

    def tell() -> None:
        nonlocal good
        step = start + driver.nsteps
        if step % every and step != steps:
            return
        if rows and rows[-1]["step"] == step:
            return
        row = _row(moving, calculator, step, timestep)
        rows.append(row)
        moving.info[STEP_KEY] = step
        good = _snapshot(moving, hold)
        if observer is not None:
            observer(good, row)

    driver.attach(tell, interval=1)
    try:
        driver.run(steps - start)
    except ExtrapolationError as error:
        step = start + driver.nsteps
        raise ExtrapolationError(f"stopped at step {step}: {error}", error.extrapolation) from error
    except KQEqError as error:
        if not rows:
            raise
        raise InputError(
            f"the dynamics of {describe(atoms)} broke down after step {rows[-1]['step']}: {error}. The model "
            "extrapolates there, or the time step is too long; add such geometries to the training set, or go on from an "
            "earlier frame"
        ) from error
    if not rows or rows[-1]["step"] != start + driver.nsteps:
        tell()
    return good, _collect(rows, len(moving), ensemble, timestep, field, hold)


def _check(
    steps: Any, ensemble: Any, timestep: Any, temperature: Any, friction: Any, pressure: Any, every: Any
) -> None:
    if ensemble not in ENSEMBLES:
        raise InputError(f"ensemble is {ensemble!r}; expected one of {', '.join(ENSEMBLES)}")
    for name, value in (("steps", steps), ("every", every)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise InputError(f"{name} is {value!r}; expected a whole number of at least 1")
    for name, value, least, most in (
        ("timestep", timestep, 0.0, 20.0),
        ("temperature", temperature, 0.0, 1e5),
        ("friction", friction, 0.0, 1.0),
    ):
        if not (np.isfinite(value) and least < value <= most):
            raise InputError(f"{name} is {value!r}; expected a number above {least:g} and up to {most:g}")
    if not np.isfinite(pressure):
        raise InputError(f"pressure is {pressure!r}; expected a number of bar")


def _thermalise(atoms: Atoms, temperature: float, rng: np.random.Generator) -> None:
    """Momenta of a temperature, without motion of the whole."""
    from ase.md import velocitydistribution as velocities

    draw = getattr(velocities, "thermalize_momenta", None) or velocities.MaxwellBoltzmannDistribution
    draw(atoms, temperature_K=temperature, rng=rng)
    momenta = atoms.get_momenta()
    if not any(isinstance(constraint, FixAtoms) for constraint in atoms.constraints):
        masses = atoms.get_masses()
        atoms.set_momenta(momenta - np.outer(masses / masses.sum(), momenta.sum(axis=0)))


def _driver(
    atoms: Atoms,
    ensemble: str,
    timestep: float,
    temperature: float,
    friction: float,
    pressure: float,
    free_cell: bool,
    rng: np.random.Generator,
) -> Any:
    """ASE's integrator of an ensemble."""
    dt = timestep * units.fs
    if ensemble == "nve":
        from ase.md.verlet import VelocityVerlet

        return VelocityVerlet(atoms, timestep=dt)
    if ensemble == "nvt":
        from ase.md.langevin import Langevin

        return Langevin(
            atoms, timestep=dt, temperature_K=temperature, friction=friction / units.fs, rng=rng, fixcm=False
        )
    try:
        from ase.md.nose_hoover_chain import MTKNPT, IsotropicMTKNPT
    except ImportError:
        raise UnsupportedError("npt needs ASE 3.26 or newer (pip install --upgrade ase)") from None
    return (MTKNPT if free_cell else IsotropicMTKNPT)(
        atoms,
        timestep=dt,
        temperature_K=temperature,
        pressure_au=pressure * BAR,
        tdamp=THERMOSTAT * dt,
        pdamp=BAROSTAT * dt,
    )


def _row(atoms: Atoms, calculator: KQEqCalculator, step: int, timestep: float) -> dict[str, Any]:
    """The numbers of one step."""
    kinetic = float(atoms.get_kinetic_energy())
    energy = float(atoms.get_potential_energy())
    row: dict[str, Any] = {
        "step": step,
        "time": step * timestep,
        "potential_energy": energy,
        "kinetic_energy": kinetic,
        "total_energy": energy + kinetic,
        "temperature": float(atoms.get_temperature()),
    }
    if atoms.pbc.all():
        stress = atoms.get_stress(voigt=False, include_ideal_gas=True)
        row["pressure"] = -float(np.trace(stress)) / 3.0 / BAR
        row["volume"] = float(atoms.get_volume())
    prediction = calculator.prediction
    assert prediction is not None  # the energy was just computed
    row["charge"] = float(prediction.total_charge)
    dipole = calculator.results.get("dipole")
    if dipole is not None:
        row["dipole"] = np.array(dipole)
    return row


def _snapshot(atoms: Atoms, held: bool) -> Atoms:
    """A copy with momenta and results, without the constraint that was added."""
    from ase.calculators.calculator import all_properties
    from ase.calculators.singlepoint import SinglePointCalculator

    copy: Atoms = atoms.copy()
    if held:
        copy.set_constraint(copy.constraints[:-1])
    known = {name: value for name, value in atoms.calc.results.items() if name in all_properties}
    copy.calc = SinglePointCalculator(copy, **known)
    return copy


def _collect(
    rows: list[dict[str, Any]],
    atoms: int,
    ensemble: str,
    timestep: float,
    field: FloatArray,
    hold: bool,
) -> Dynamics:
    def column(name: str) -> FloatArray | None:
        return np.array([row[name] for row in rows]) if all(name in row for row in rows) else None

    def numbers(name: str) -> FloatArray:
        return np.array([row[name] for row in rows])

    times, energies = numbers("time"), numbers("total_energy")
    drift = 0.0
    if len(rows) > 1:
        drift = float(np.polyfit(times - times.mean(), energies - energies.mean(), 1)[0]) * 1e6 / atoms
    return Dynamics(
        steps=np.array([row["step"] for row in rows], dtype=np.int64),
        times=times,
        potential_energies=numbers("potential_energy"),
        kinetic_energies=numbers("kinetic_energy"),
        total_energies=energies,
        temperatures=numbers("temperature"),
        pressures=column("pressure"),
        volumes=column("volume"),
        dipoles=column("dipole"),
        ensemble=ensemble,
        timestep=timestep,
        total_charges=numbers("charge"),
        external_field=field,
        held_centre_of_mass=hold,
        drift=drift,
    )


__all__ = ["ENSEMBLES", "STEP_KEY", "Dynamics", "molecular_dynamics"]
