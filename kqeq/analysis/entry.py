"""The door of the analysis: a model and an :class:`ase.Atoms` become a geometry that can be asked again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ase import Atoms

from kqeq.errors import InputError, UnsupportedError
from kqeq.frames.structures import Structure, conditions, describe, read_structure
from kqeq.model.estimator import KQEq
from kqeq.potential.fixed_geometry import FixedGeometry
from kqeq.potential.potential import Potential
from kqeq.potential.prediction import Prediction
from kqeq.typing import FloatArray, IntArray

FIELD_STEP = 0.05
"""Step of finite differences by the field, V/Å.  Energies of the charge models are quadratic in the field at fixed
geometry, so that differences have no truncation error, and a long step keeps rounding small."""

CHARGE_STEP = 0.1
"""Step of finite differences by the total charge, e; likewise."""


def potential_of(model: Any) -> Potential:
    """The fitted potential of a model.

    Raises
    ------
    InputError
        For something that is not a model.
    ModelNotFittedError
    """
    if not isinstance(model, KQEq):
        raise InputError(
            f"expected a fitted kqeq.KQEq model, got {type(model).__name__}; load a model file with kqeq.load(path)"
        )
    return model.fitted()


def read(model: Any, atoms: Any, total_charge: Any = None, external_field: Any = None) -> Structure:
    """Validate a geometry and its conditions, and that the model can treat it.

    Raises
    ------
    InputError, UnsupportedError, ModelNotFittedError
    """
    potential = potential_of(model)
    if not isinstance(atoms, Atoms):
        raise InputError(f"expected one ase.Atoms, got {type(atoms).__name__}")
    structure = read_structure(
        atoms, total_charge=total_charge, external_field=external_field, prefix=model.label_prefix
    )
    potential.check(structure, describe(atoms))
    return structure


def conditions_of(
    model: Any, atoms: Any, total_charge: Any = None, external_field: Any = None
) -> tuple[float, FloatArray]:
    """Total charge and field of a geometry, under the names that the model looks for.

    Raises
    ------
    InputError, ModelNotFittedError
    """
    potential_of(model)
    if not isinstance(atoms, Atoms):
        raise InputError(f"expected one ase.Atoms, got {type(atoms).__name__}")
    return conditions(
        atoms, total_charge=total_charge, external_field=external_field, prefix=model.label_prefix
    )


def fix(model: Any, atoms: Any, total_charge: Any = None, external_field: Any = None) -> FixedGeometry:
    """The model at one geometry; see :func:`read`."""
    structure = read(model, atoms, total_charge, external_field)
    potential = potential_of(model)
    geometry = FixedGeometry.at(potential, structure)
    potential.warn_if_undetermined([structure], [geometry.predict(())])
    return geometry


def require_charges(potential: Potential, what: str) -> None:
    """Refuse questions about charges to a model without.

    Raises
    ------
    UnsupportedError
    """
    if not potential.has_charges:
        raise UnsupportedError(
            f"the model has no charges, so it has no {what}; fit with charges=kqeq.QEq(), or "
            'on a baseline that has some (baseline="gfn2")'
        )


def charge_determined(
    potential: Potential, numbers: IntArray, fukui: FloatArray
) -> tuple[bool, float | None]:
    """Whether data determine the difference between charge states, and its standard deviation in eV (or none known).

    Parameters
    ----------
    potential : Potential
    numbers, fukui : (N,) arrays
        Change of the charges for one more in all.
    """
    known = potential.determination
    if known is None or potential.holds_charge or not potential.learns_electronegativity:
        return len(potential.training_charges) > 1, None
    row = known.row(numbers, fukui, energy=False)
    return known.undetermined(row) is None, known.std(row)


def derivative(function: Callable[[float], FloatArray], step: float) -> FloatArray:
    """First derivative at zero by central differences of fourth order."""
    near = function(step) - function(-step)
    far = function(2.0 * step) - function(-2.0 * step)
    return np.asarray((8.0 * near - far) / (12.0 * step))


def formula(atoms: Atoms) -> str:
    """Chemical formula as chemists write it: Hill's order with carbon, metals first without."""
    return str(atoms.get_chemical_formula("hill" if 6 in atoms.numbers else "metal"))


def without_fragments(atoms: Atoms) -> Atoms:
    """Elements, geometry and the potential from outside; charges, fragments and labels are left behind."""
    copy = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    if "external_potential" in atoms.arrays:
        copy.set_array("external_potential", atoms.arrays["external_potential"])
    return copy


def reason_for(prediction: Prediction, name: str) -> str | None:
    """Why a quantity is not defined, where the prediction says."""
    return None if prediction.undefined is None else prediction.undefined.get(name)


def defined(value: Any, what: str, reason: str | None = None) -> Any:
    """A quantity of a prediction, or an error that says why there is none (``Prediction.undefined``).

    Raises
    ------
    UnsupportedError
    """
    if value is None and reason is not None:
        raise UnsupportedError(f"{what} is not defined: {reason}")
    if value is None:
        raise UnsupportedError(
            f"{what} is not defined for this structure and charge model: the dipole Σ q r of a periodic cell depends "
            "on which image of an atom is meant; use an isolated structure, or kqeq.ACKS2() for neutral periodic cells"
        )
    return value


__all__ = [
    "CHARGE_STEP",
    "FIELD_STEP",
    "charge_determined",
    "conditions_of",
    "defined",
    "derivative",
    "fix",
    "formula",
    "potential_of",
    "read",
    "reason_for",
    "require_charges",
    "without_fragments",
]
