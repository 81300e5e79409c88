"""Geometry optimisation with a fitted model, for the command line and the demo.

A charged system in a field feels the net force Q·field and would drift away for ever, so its centre of mass is
held.  ASE's :class:`~ase.constraints.FixCom` projects the gradient onto displacements that keep Σ m_i r_i, which is
the gradient of the energy on exactly that surface: optimisers and their convergence criterion stay consistent.  At the
constrained minimum the true forces are F_i = (m_i / M) Q·field, one and the same acceleration for every atom: the
molecule falls freely without changing its shape.  (Taking Q·field / N off every atom would instead hold the centroid,
and end where light and heavy atoms are accelerated differently.)  Rotation is left free: the torque μ × field is
physical and aligns the molecule.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.constraints import FixAtoms, FixCom

from kqeq.analysis.entry import potential_of
from kqeq.calculator import KQEqCalculator
from kqeq.errors import InputError, KQEqError, warn
from kqeq.frames.conditions import without_conditions
from kqeq.frames.site_data import ARRAY_KEYS, INFO_KEYS
from kqeq.frames.structures import conditions, describe
from kqeq.model.estimator import KQEq
from kqeq.potential.potential import Prediction

BAR: float = 1e5 * units.Pascal
"""eV/Å³."""

TRUST_ATOMS = 100
"""Atoms up to which a trust radius is used: ASE's update of its Hessian is a Python loop over 9 N² numbers."""

MAX_STEPS = 500
"""Steps after which an optimisation is given up."""


@dataclass(frozen=True, eq=False)
class Optimization:
    """Where a geometry optimisation ended.

    Attributes
    ----------
    atoms : ase.Atoms
        The last geometry, converged or not, with charge and field in ``atoms.info`` and no calculator.  Fragments,
        fragment and reference charges and the external potential are kept as they are.  Labels and other data that
        the input carried are left behind: they belong to the old geometry.
    prediction : Prediction
        For that geometry.
    converged : bool
    steps : int
    max_force : float
        Largest force on an atom after the constraints were applied, eV/Å: what ``fmax`` was compared with.
    held_centre_of_mass : bool
        Whether the net force of the field was taken off.
    net_force : (3,) array
        total_charge · external_field, eV/Å.
    max_stress : float or None
        Largest component of stress + pressure, eV/Å³, where the cell was relaxed as well.
    potential : float or None
        ∂E/∂Q that was held instead of a total charge, V.
    """

    atoms: Atoms
    prediction: Prediction
    converged: bool
    steps: int
    max_force: float
    held_centre_of_mass: bool
    net_force: Any
    max_stress: float | None = None
    potential: float | None = None

    @property
    def grand_energy(self) -> float | None:
        """E − UQ of the last geometry, eV: what was minimised at a potential; else None."""
        if self.potential is None:
            return None
        return float(self.prediction.energy - self.potential * self.prediction.total_charge)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: whether and where it ended; eV, Å, e, V."""
        return {
            "converged": self.converged,
            "steps": self.steps,
            "force_calls": self.steps + 1,
            "energy": self.prediction.energy,
            "potential": self.potential,
            "grand_energy": self.grand_energy,
            "max_force": self.max_force,
            "max_stress": self.max_stress,
            "held_centre_of_mass": self.held_centre_of_mass,
            "total_charge": self.prediction.total_charge,
            "symbols": list(self.atoms.get_chemical_symbols()),
            "positions": self.atoms.positions.tolist(),
            "cell": self.atoms.cell.array.tolist(),
            "units": {
                "energy": "eV",
                "potential": "V",
                "grand_energy": "eV",
                "max_force": "eV/Å",
                "max_stress": "eV/Å³",
                "positions": "Å",
                "cell": "Å",
            },
        }


def optimize(
    model: KQEq,
    atoms: Atoms,
    *,
    total_charge: float | None = None,
    external_field: Any = None,
    potential: float | None = None,
    fmax: float = 0.01,
    max_steps: int = MAX_STEPS,
    observer: Callable[[int, float, float], None] | None = None,
    cell: bool = False,
    pressure: float = 0.0,
    trajectory: Callable[[Atoms], None] | None = None,
) -> Optimization:
    """Relax a geometry; a charged one in a field with its centre of mass held.

    The optimiser is ASE's quasi-Newton with a trust radius (:class:`ase.optimize.GoodOldQuasiNewton`), which takes back
    steps that raise the energy; for cells and more than 100 atoms plain BFGS.

    Parameters
    ----------
    model : KQEq
        Fitted to energies or forces.
    atoms : ase.Atoms
        Left as it is.  Its constraints are respected; where atoms are fixed the centre of mass is not held as well.
    total_charge : float, optional
        e; otherwise from ``atoms.info``, or 0.
    external_field : (3,) array-like, optional
        V/Å; otherwise from ``atoms.info``, or none.
    potential : float, optional
        Hold the system at this potential ∂E/∂Q, V, instead of a total charge, which follows at every step; what is
        minimised, and given to ``observer``, is then the grand energy E − UQ.
    fmax : float
        Largest force on an atom at convergence, eV/Å.
    max_steps : int
        Give up after as many steps.
    observer : callable, optional
        Called with step, energy (eV) and largest force (eV/Å) at the start and after every step.
    cell : bool
        Relax the cell as well (:class:`ase.filters.FrechetCellFilter`), along its periodic directions.
    pressure : float
        That the cell is under, bar.
    trajectory : callable, optional
        Called with a copy of every geometry on the way, its results attached.

    Returns
    -------
    Optimization
        Also where it did not converge; look at ``converged``.

    Raises
    ------
    InputError
        For settings that make no sense, or a geometry that runs into something the model refuses.
    UnsupportedError
        For a model fitted without energies and forces.
    """
    potential_of(model)
    if not (np.isfinite(fmax) and fmax > 0):
        raise InputError(f"fmax is {fmax!r}; expected a positive force in eV/Å")
    if int(max_steps) != max_steps or max_steps < 1:
        raise InputError(f"max_steps is {max_steps!r}; expected a whole number of at least 1")
    if potential is not None and total_charge is not None:
        raise InputError(
            "total_charge and potential were given; at a given potential the total charge follows"
        )
    charge, field = conditions(
        atoms,
        total_charge=total_charge,
        external_field=external_field,
        where=describe(atoms),
        prefix=model.label_prefix if isinstance(model, KQEq) else "",
    )
    if cell and not atoms.pbc.any():
        raise InputError(
            f"{describe(atoms)} is not periodic and has no cell to relax; set atoms.cell and atoms.pbc"
        )
    if pressure and not cell:
        raise InputError(f"pressure is {pressure!r}, but the cell is not relaxed; pass cell=True as well")
    moving = bare_geometry(atoms)
    moving.info.update(total_charge=charge, external_field=field)
    if potential is not None:
        prefix = model.label_prefix if isinstance(model, KQEq) else ""
        moving = without_conditions(moving, field=False, prefix=prefix)
    pinned = any(isinstance(constraint, FixAtoms | FixCom) for constraint in moving.constraints)
    hold = bool((charge or potential is not None) and field.any()) and not pinned
    if hold:
        moving.set_constraint([*moving.constraints, FixCom()])

    calculator = KQEqCalculator(model, potential=potential)
    moving.calc = calculator
    target = moving if not cell else _with_cell(moving, pressure * BAR)
    step = -1
    converged = False
    with _optimiser(target, cell=cell) as optimiser:
        try:
            for done in optimiser.irun(fmax=fmax, steps=max_steps):
                step, converged = step + 1, bool(done)
                if observer is not None:
                    observer(step, moving.get_potential_energy(), _largest(moving))
                if trajectory is not None:
                    trajectory(_snapshot(moving))
            max_force = _largest(moving)
            stress = moving.get_stress(voigt=False) if cell else None
        except KQEqError as error:
            if step < 0:
                raise
            raise InputError(
                f"the optimisation of {describe(atoms)} broke down after step {step}: {error}. The model extrapolates "
                "there; start from a better geometry, or add such geometries to the training set"
            ) from error
    prediction = calculator.prediction
    assert prediction is not None  # the forces were just computed
    moving.calc = None
    moving.set_constraint(atoms.constraints)
    moving.info["total_charge"] = prediction.total_charge  # at a potential it is known only now
    net_force = prediction.total_charge * field
    max_stress = None
    if stress is not None:
        periodic = np.outer(moving.pbc, moving.pbc)
        max_stress = float(np.abs((stress + pressure * BAR * np.eye(3))[periodic]).max())
    return Optimization(
        moving, prediction, converged, step, max_force, hold, net_force, max_stress, potential
    )


def optimise(atoms: Atoms, model: KQEq, **options: Any) -> Optimization:
    """The name and order of arguments of version 0.1; use ``optimize``."""
    warn(
        "optimise(atoms, model) is now optimize(model, atoms); the old name goes with the next release",
        DeprecationWarning,
    )
    return optimize(model, atoms, **options)


def _optimiser(target: Any, *, cell: bool) -> Any:
    """ASE's optimiser for a molecule, or for a large structure or a cell.

    BFGS takes steps of 0.2 Å with a Hessian from elsewhere: on soft torsions that close a hydrogen bond it runs into
    the wall again and again (forces of 4 eV/Å after step 70 of glycinium, 116 force calls; with a trust radius 75, see
    docs/decisions.md).
    """
    from ase.optimize import BFGS, GoodOldQuasiNewton

    if cell or len(target) > TRUST_ATOMS:
        return BFGS(target, logfile=None)
    return GoodOldQuasiNewton(target, logfile=None)  # type: ignore[arg-type]  # as its base class allows


def _with_cell(atoms: Atoms, pressure: float) -> Any:
    """Atoms and cell in one, with the cell held along directions that are not periodic."""
    from ase.filters import FrechetCellFilter

    along = np.outer(atoms.pbc, atoms.pbc).astype(float)
    return FrechetCellFilter(atoms, mask=along, scalar_pressure=pressure)


def _snapshot(atoms: Atoms) -> Atoms:
    """A copy with the results of its calculator attached."""
    from ase.calculators.calculator import all_properties
    from ase.calculators.singlepoint import SinglePointCalculator

    copy: Atoms = atoms.copy()
    copy.set_constraint()
    known = {name: value for name, value in atoms.calc.results.items() if name in all_properties}
    copy.calc = SinglePointCalculator(copy, **known)
    return copy


def bare_geometry(atoms: Atoms, *, keep: Collection[str] = ()) -> Atoms:
    """A copy without the labels and annotations of this particular geometry; what acts on its atoms stays.

    Parameters
    ----------
    atoms : ase.Atoms
    keep : collection of str
        Names of entries of ``info`` and of arrays that stay as well.
    """
    bare: Atoms = atoms.copy()
    bare.info = {key: value for key, value in atoms.info.items() if key in (*INFO_KEYS, *keep)}
    for name in set(bare.arrays) - {"numbers", "positions", "masses", "tags", *ARRAY_KEYS, *keep}:
        del bare.arrays[name]
    return bare


def _largest(atoms: Atoms) -> float:
    return float(np.linalg.norm(atoms.get_forces(), axis=1).max())


__all__ = ["BAR", "MAX_STEPS", "TRUST_ATOMS", "Optimization", "bare_geometry", "optimise", "optimize"]
