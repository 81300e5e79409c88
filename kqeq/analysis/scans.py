"""One quantity after another: total charges and fields.

Dimensions: N atoms, K points of the scan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np
from ase import Atoms

from kqeq.analysis.entry import charge_determined, conditions_of, fix, potential_of, require_charges
from kqeq.analysis.optimization import optimize
from kqeq.analysis.results import Result
from kqeq.errors import InputError, warn
from kqeq.frames.conditions import without_conditions
from kqeq.frames.structures import check_field
from kqeq.potential.potential import require_energy_model
from kqeq.typing import BoolArray, FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class ChargeScan(Result):
    """One geometry at several total charges.

    Attributes
    ----------
    total_charges : (K,) array
        Q, e.
    energies : (K,) array
        At the given geometry, eV.
    charges : (K, N) array
        e.
    dipoles : (K, 3) array
        About the origin, e·Å; NaN where not defined.
    chemical_potentials : (K,) array
        ∂E/∂Q, eV/e.
    relaxed_energies : (K,) array or None
        At the geometry that is optimal for each charge, eV.
    relaxed_positions : (K, N, 3) array or None
        Those geometries, Å.
    relaxed_charges : (K, N) array or None
        e.
    converged : (K,) bool array or None
        Whether the optimisations converged.
    """

    total_charges: Annotated[FloatArray, "e"]
    energies: Annotated[FloatArray, "eV"]
    charges: Annotated[FloatArray, "e"]
    dipoles: Annotated[FloatArray, "e·Å"]
    chemical_potentials: Annotated[FloatArray, "eV/e"]
    relaxed_energies: Annotated[FloatArray | None, "eV"] = None
    relaxed_positions: Annotated[FloatArray | None, "Å"] = None
    relaxed_charges: Annotated[FloatArray | None, "e"] = None
    converged: BoolArray | None = None
    rows: ClassVar[str] = "total_charges"


@dataclass(frozen=True, eq=False)
class Ionization(Result):
    """Ionization energy and electron affinity of one charge state.

    Attributes
    ----------
    total_charge : float
        The state that loses or gains an electron, e.
    vertical_ionization_energy : float
        E(Q + 1) − E(Q) at one geometry, eV.
    vertical_electron_affinity : float
        E(Q) − E(Q − 1) at the same geometry, eV.
    relaxed_ionization_energy, relaxed_electron_affinity : float or None
        The same with every state at its own minimum (adiabatic, without zero-point energies), eV.
    determined : bool
        Whether the training data determine the differences; otherwise the prior does
        (:mod:`kqeq.potential.determination`).
    difference_std : float or None
        Standard deviation of the differences that comes from the mean electronegativities of the elements, eV; ``None``
        for files of version 0.1 and where a baseline holds the charge.
    positions : (N, 3) array
        The geometry of the vertical differences, Å.
    """

    total_charge: Annotated[float, "e"]
    vertical_ionization_energy: Annotated[float, "eV"]
    vertical_electron_affinity: Annotated[float, "eV"]
    relaxed_ionization_energy: Annotated[float | None, "eV"]
    relaxed_electron_affinity: Annotated[float | None, "eV"]
    determined: bool
    difference_std: Annotated[float | None, "eV"]
    positions: Annotated[FloatArray, "Å"]
    rows: ClassVar[str] = "positions"

    @property
    def vertical_ionisation_energy(self) -> float:
        """The name of version 0.1; use ``vertical_ionization_energy``."""
        _warn_spelling("vertical_ionization_energy")
        return self.vertical_ionization_energy

    @property
    def relaxed_ionisation_energy(self) -> float | None:
        """The name of version 0.1; use ``relaxed_ionization_energy``."""
        _warn_spelling("relaxed_ionization_energy")
        return self.relaxed_ionization_energy


def _warn_spelling(name: str) -> None:
    warn(f"the name is now {name}; the old one goes with the next release", DeprecationWarning)


@dataclass(frozen=True, eq=False)
class FieldScan(Result):
    """One geometry in fields of several strengths along one direction.

    Attributes
    ----------
    strengths : (K,) array
        V/Å, along ``direction`` and on top of the field that the structure is in.
    direction : (3,) array
        Unit vector.
    energies : (K,) array
        eV.
    dipoles : (K, 3) array
        e·Å.
    charges : (K, N) array
        e.
    forces : (K, N, 3) array
        eV/Å.
    largest_force_change : (K,) array
        Largest change of the force on an atom from that at zero strength, eV/Å.
    numbers : (N,) int array
    total_charge : float
    """

    strengths: Annotated[FloatArray, "V/Å"]
    direction: FloatArray
    energies: Annotated[FloatArray, "eV"]
    dipoles: Annotated[FloatArray, "e·Å"]
    charges: Annotated[FloatArray, "e"]
    forces: Annotated[FloatArray, "eV/Å"]
    largest_force_change: Annotated[FloatArray, "eV/Å"]
    numbers: IntArray
    total_charge: Annotated[float, "e"]
    rows: ClassVar[str] = "strengths"


def charge_scan(
    model: Any,
    atoms: Atoms,
    charges: Sequence[float] = (-1, 0, 1),
    *,
    external_field: Any = None,
    relax: bool = False,
    fmax: float = 0.01,
) -> ChargeScan:
    """Energy and charges of one geometry at several total charges, on request relaxed at each.

    Parameters
    ----------
    model : KQEq
    atoms : ase.Atoms
        A charge in ``atoms.info`` is not looked at.
    charges : sequence of float
        Total charges, e; any finite numbers.
    external_field : (3,) array-like, optional
        V/Å; otherwise from ``atoms.info``, or none.
    relax : bool
        Also optimise the geometry at each charge.
    fmax : float
        Largest force of the optimisations, eV/Å.

    Returns
    -------
    ChargeScan

    Raises
    ------
    InputError, UnsupportedError, ModelNotFittedError
    """
    potential = potential_of(model)
    require_energy_model(potential)
    require_charges(potential, "charge states")
    states = np.atleast_1d(np.asarray(charges, dtype=np.float64))
    if states.ndim != 1 or len(states) == 0 or not np.isfinite(states).all():
        raise InputError(f"charges is {charges!r}; expected finite numbers, for example (-1, 0, 1)")
    free = without_conditions(atoms, field=False, prefix=model.label_prefix)
    _, field = conditions_of(model, free, float(states[0]), external_field)
    geometry = fix(model, free, float(states[0]), field)
    predictions = []
    for charge in states:
        there = geometry.under(total_charge=float(charge))
        predictions.append(there.predict(("dipole",)))
        potential.warn_if_undetermined([there.structure], predictions[-1:])
    scan = ChargeScan(
        total_charges=states,
        energies=np.array([p.energy for p in predictions]),
        charges=np.array([p.charges for p in predictions]),
        dipoles=np.array([np.full(3, np.nan) if p.dipole is None else p.dipole for p in predictions]),
        chemical_potentials=np.array(
            [np.nan if p.chemical_potential is None else p.chemical_potential for p in predictions]
        ),
    )
    if not relax:
        return scan
    ends = [optimize(model, free, total_charge=float(q), external_field=field, fmax=fmax) for q in states]
    return replace(
        scan,
        relaxed_energies=np.array([end.prediction.energy for end in ends]),
        relaxed_positions=np.array([end.atoms.positions for end in ends]),
        relaxed_charges=np.array([end.prediction.charges for end in ends]),
        converged=np.array([end.converged for end in ends]),
    )


def ionization(
    model: Any,
    atoms: Atoms,
    *,
    total_charge: Any = None,
    external_field: Any = None,
    relax: bool = False,
    fmax: float = 0.01,
) -> Ionization:
    """Ionization energy and electron affinity.

    Parameters
    ----------
    model : KQEq
        Fitted to energies of the charge states involved; otherwise the prior decides.
    atoms : ase.Atoms
    total_charge, external_field : optional
        e, V/Å; otherwise from ``atoms.info``.
    relax : bool
        Optimise the geometry at the given charge first; the vertical differences are then those of that geometry, and
        the relaxed ones are computed too.
    fmax : float
        Largest force of the optimisations, eV/Å.

    Returns
    -------
    Ionization

    Raises
    ------
    InputError, UnsupportedError, ModelNotFittedError
        Also if an optimisation does not converge.
    """
    charge, field = conditions_of(model, atoms, total_charge, external_field)
    if relax:
        atoms = _relaxed(model, atoms, charge, field, fmax)[0]
    scan = charge_scan(model, atoms, (charge - 1.0, charge, charge + 1.0), external_field=field)
    minus, zero, plus = scan.energies
    relaxed: tuple[float | None, float | None] = (None, None)
    if relax:
        free = without_conditions(atoms, prefix=model.label_prefix)
        ends = [_relaxed(model, free, charge + change, field, fmax)[1] for change in (-1.0, 1.0)]
        relaxed = (float(ends[1] - zero), float(zero - ends[0]))
    fukui = None if scan.charges is None else 0.5 * (scan.charges[2] - scan.charges[0])
    determined, std = charge_determined(potential_of(model), atoms.numbers, fukui)
    return Ionization(
        total_charge=charge,
        vertical_ionization_energy=float(plus - zero),
        vertical_electron_affinity=float(zero - minus),
        relaxed_ionization_energy=relaxed[0],
        relaxed_electron_affinity=relaxed[1],
        determined=determined,
        difference_std=std,
        positions=atoms.positions.copy(),
    )


def _relaxed(model: Any, atoms: Atoms, charge: float, field: FloatArray, fmax: float) -> tuple[Atoms, float]:
    """The minimum and its energy."""
    end = optimize(model, atoms, total_charge=charge, external_field=field, fmax=fmax)
    if not end.converged:
        raise InputError(
            f"the geometry at charge {charge:g} e did not relax to {fmax:g} eV/Å in {end.steps} steps (largest force "
            f"{end.max_force:.3g}); start closer to a minimum or raise fmax"
        )
    return end.atoms, end.prediction.energy


def field_scan(
    model: Any,
    atoms: Atoms,
    strengths: Sequence[float] | None = None,
    direction: Any = (0.0, 0.0, 1.0),
    *,
    total_charge: Any = None,
    external_field: Any = None,
) -> FieldScan:
    """Energy, dipole, charges and forces of one geometry in fields of growing strength.

    Parameters
    ----------
    model : KQEq
    atoms : ase.Atoms
    strengths : sequence of float, optional
        V/Å; 1 V/Å is a strong field, 0.02 atomic units.  By default 21 from −1 to 1.
    direction : (3,) array-like
        Of any length.
    total_charge : float, optional
        e; otherwise from ``atoms.info``, or 0.
    external_field : (3,) array-like, optional
        A field that is there besides, V/Å.

    Returns
    -------
    FieldScan

    Raises
    ------
    InputError, UnsupportedError, ModelNotFittedError
    """
    if strengths is None:
        strengths = np.linspace(-1.0, 1.0, 21).tolist()
    steps = np.atleast_1d(np.asarray(strengths, dtype=np.float64))
    if steps.ndim != 1 or len(steps) == 0 or not np.isfinite(steps).all():
        raise InputError(f"strengths is {strengths!r}; expected finite numbers in V/Å")
    axis = check_field(direction, "the scan (its direction)")
    if not axis.any():
        raise InputError("direction is zero; expected a vector along which the field grows")
    axis = axis / np.linalg.norm(axis)
    geometry = fix(model, atoms, total_charge, external_field)
    require_charges(geometry.potential, "response to a field")
    start = geometry.structure.external_field
    wanted = ("forces", "dipole")
    predictions = [geometry.under(external_field=start + t * axis).predict(wanted) for t in steps]
    forces = np.array([p.forces for p in predictions])
    rest = geometry.predict(wanted).forces
    return FieldScan(
        strengths=steps,
        direction=axis,
        energies=np.array([p.energy for p in predictions]),
        dipoles=np.array([np.full(3, np.nan) if p.dipole is None else p.dipole for p in predictions]),
        charges=np.array([p.charges for p in predictions]),
        forces=forces,
        largest_force_change=np.linalg.norm(forces - rest, axis=2).max(axis=1),
        numbers=geometry.structure.numbers,
        total_charge=geometry.structure.total_charge,
    )


__all__ = [
    "ChargeScan",
    "FieldScan",
    "Ionization",
    "charge_scan",
    "field_scan",
    "ionization",
]
