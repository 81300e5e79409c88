"""How one geometry answers: to a field, to a displacement, to a charge.

All quantities are derivatives of predictions (forces, charges, dipoles) by field or total charge, not identities of a
particular charge model, so they hold for every model.  Descriptors and the factored charge problem are shared by
all evaluations (:class:`kqeq.potential.fixed_geometry.FixedGeometry`).

Dimensions: N atoms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from ase.data import covalent_radii

from kqeq.analysis.entry import (
    CHARGE_STEP,
    FIELD_STEP,
    charge_determined,
    defined,
    derivative,
    fix,
    reason_for,
    require_charges,
)
from kqeq.analysis.results import Result
from kqeq.constants import COULOMB
from kqeq.errors import warn
from kqeq.potential.fixed_geometry import FixedGeometry
from kqeq.typing import FloatArray, IntArray

FLOW_EXPONENT = 8
"""How fast the weight of a pair falls with distance when the flow of charge is divided among atoms."""


@dataclass(frozen=True, eq=False)
class Polarizability(Result):
    """Dipole polarizability, and what each atom contributes.

    Attributes
    ----------
    numbers : (N,) int array
        Atomic numbers.
    total : (3, 3) array
        ∂μ/∂field in e²·Å²/eV (times k_e in Å³).
    atomic : (N, 3, 3) array or None
        Contributions of the atoms, same unit: own dipole and half of every flow of charge to or from the atom (see
        :func:`polarizability`).  ``None`` in periodic cells.
    remainder : (3, 3) array or None
        total − Σ atomic: zero unless charges enter the energy in other ways than through the electrostatics.
    volume : (3, 3) array
        ``total`` in Å³.
    isotropic : float
        Mean of its eigenvalues, Å³.
    """

    numbers: IntArray
    total: Annotated[FloatArray, "e²·Å²/eV"]
    atomic: Annotated[FloatArray | None, "e²·Å²/eV"]
    remainder: Annotated[FloatArray | None, "e²·Å²/eV"]
    volume: Annotated[FloatArray, "Å³"]
    isotropic: Annotated[float, "Å³"]
    rows: ClassVar[str] = "numbers"


@dataclass(frozen=True, eq=False)
class BornCharges(Result):
    """Born effective charges (dynamic charges, atomic polar tensors).

    Attributes
    ----------
    numbers : (N,) int array
    tensors : (N, 3, 3) array
        Z[k, a, b] = ∂μ_a/∂r_kb = ∂F_kb/∂field_a, e.
    isotropic : (N,) array
        A third of the trace, e.
    total_charge : float
        e.
    sum_rule_error : float
        Largest element of Σ_k Z_k − Q·1, e.
    """

    numbers: IntArray
    tensors: Annotated[FloatArray, "e"]
    isotropic: Annotated[FloatArray, "e"]
    total_charge: Annotated[float, "e"]
    sum_rule_error: Annotated[float, "e"]
    rows: ClassVar[str] = "numbers"


@dataclass(frozen=True, eq=False)
class ChargeResponse(Result):
    """What adding or taking charge does.

    Attributes
    ----------
    numbers : (N,) int array
    charges : (N,) array
        q, e.
    fukui : (N,) array
        Condensed Fukui function ∂q/∂Q; sums to one.  Charges of every model here are linear in Q, so that f⁺ (where an
        electron is added) and f⁻ (where one is taken from) are the same.
    chemical_potential : float
        ∂E/∂Q, eV/e: minus the chemical potential of the electrons, so Mulliken's electronegativity.
    hardness : float
        ∂²E/∂Q², eV/e².
    determined : bool
        Whether the training data determine the chemical potential; otherwise the prior does
        (:mod:`kqeq.potential.determination`).
    chemical_potential_std : float or None
        Its standard deviation that comes from the mean electronegativities of the elements, eV/e; ``None`` for files of
        version 0.1.
    """

    numbers: IntArray
    charges: Annotated[FloatArray, "e"]
    fukui: FloatArray
    chemical_potential: Annotated[float, "eV/e"]
    hardness: Annotated[float, "eV/e²"]
    determined: bool
    chemical_potential_std: Annotated[float | None, "eV/e"]
    rows: ClassVar[str] = "numbers"

    @property
    def fukui_minus(self) -> FloatArray:
        """Always equal to ``fukui``; goes with the next release."""
        _warn_fukui("fukui_minus")
        return self.fukui

    @property
    def fukui_plus(self) -> FloatArray:
        """Always equal to ``fukui``; goes with the next release."""
        _warn_fukui("fukui_plus")
        return self.fukui


def _warn_fukui(name: str) -> None:
    warn(
        f"{name} is always equal to fukui, because charges are linear in the total charge; it goes with the next "
        "release",
        DeprecationWarning,
    )


def polarizability(
    model: Any, atoms: Any, *, total_charge: Any = None, external_field: Any = None
) -> Polarizability:
    """Polarizability of one geometry, in all and by atom.

    The total is unique.  Its division among atoms is not: a field moves charge between atoms, and Σ_i δq_i r_i belongs
    to the molecule.  Here every atom gets its own induced dipole and half of each flow to or from its neighbours, δq_i
    = Σ_j f_ij, δμ = ½ Σ_ij f_ij (r_i − r_j): a division that depends neither on the origin nor on the orientation.  The
    flows are those of least Σ f²/w with w_ij = ((R_i + R_j)/r_ij)⁸ and covalent radii R, that is along bonds (Le Sueur &
    Stone 1994, *Mol. Phys.* 83, 293, localise distributed polarizabilities in this spirit).

    Parameters
    ----------
    model : KQEq
    atoms : ase.Atoms
    total_charge : float, optional
        e; otherwise from ``atoms.info``, or 0.
    external_field : (3,) array-like, optional
        V/Å, likewise.

    Returns
    -------
    Polarizability

    Raises
    ------
    InputError, UnsupportedError, ModelNotFittedError
        Also where the polarizability is not defined.
    """
    geometry = fix(model, atoms, total_charge, external_field)
    require_charges(geometry.potential, "polarizability")
    found = geometry.predict(("polarizability",))
    total = defined(found.polarizability, "the polarizability", reason_for(found, "polarizability"))
    atomic = remainder = None
    if not geometry.structure.periodic:
        atomic = _atomic_polarizability(geometry)
        remainder = total - atomic.sum(axis=0)
    volume = COULOMB * total
    return Polarizability(
        geometry.structure.numbers, total, atomic, remainder, volume, float(np.trace(volume)) / 3.0
    )


def _atomic_polarizability(geometry: FixedGeometry) -> FloatArray:
    """(N, 3, 3), see :func:`polarizability`."""
    structure = geometry.structure
    atoms = len(structure)

    def sources(field: FloatArray) -> FloatArray:
        prediction = geometry.under(external_field=structure.external_field + field).predict(())
        dipoles = prediction.atomic_dipoles
        assert prediction.charges is not None
        own = np.zeros((atoms, 3)) if dipoles is None else dipoles
        return np.concatenate([prediction.charges[:, None], own], axis=1)

    change = np.stack([derivative(lambda t, a=a: sources(t * np.eye(3)[a]), FIELD_STEP) for a in range(3)])  # type: ignore[misc]
    arms = structure.positions[:, None, :] - structure.positions[None, :, :]
    distances = np.linalg.norm(arms, axis=2) + np.eye(atoms)
    radii = covalent_radii[structure.numbers]
    weights = ((radii[:, None] + radii[None, :]) / distances) ** FLOW_EXPONENT
    np.fill_diagonal(weights, 0.0)
    laplacian = np.diag(weights.sum(axis=1)) - weights
    result = np.zeros((atoms, 3, 3))
    for a in range(3):
        levels = np.linalg.lstsq(laplacian, change[a, :, 0], rcond=None)[0]
        flows = weights * (levels[:, None] - levels[None, :])
        result[:, :, a] = 0.5 * np.einsum("ij,ijb->ib", flows, arms) + change[a, :, 1:]
    return result


def born_charges(
    model: Any, atoms: Any, *, total_charge: Any = None, external_field: Any = None
) -> BornCharges:
    """Born effective charges Z*_k = ∂μ/∂r_k, as the derivative of the forces by the field.

    Central differences of fourth order over twelve fields.  Forces of the charge models are quadratic in the field, so
    these are their derivatives to rounding.

    Parameters
    ----------
    model, atoms, total_charge, external_field
        As for :func:`polarizability`.

    Returns
    -------
    BornCharges

    Raises
    ------
    InputError, UnsupportedError, ModelNotFittedError
        Also for cells whose dipole is not defined.
    """
    geometry = fix(model, atoms, total_charge, external_field)
    return born_charges_at(geometry)


def born_charges_at(geometry: FixedGeometry) -> BornCharges:
    """As :func:`born_charges`, for a geometry that was prepared before."""
    require_charges(geometry.potential, "Born charges")
    structure = geometry.structure

    def forces(field: FloatArray) -> FloatArray:
        prediction = geometry.under(external_field=structure.external_field + field).predict(("forces",))
        assert prediction.forces is not None
        return prediction.forces

    tensors = np.stack(
        [derivative(lambda t, a=a: forces(t * np.eye(3)[a]), FIELD_STEP) for a in range(3)],  # type: ignore[misc]
        axis=1,
    )
    error = tensors.sum(axis=0) - structure.total_charge * np.eye(3)
    isotropic = np.trace(tensors, axis1=1, axis2=2) / 3.0
    return BornCharges(
        structure.numbers, tensors, isotropic, structure.total_charge, float(np.abs(error).max())
    )


def charge_response(
    model: Any, atoms: Any, *, total_charge: Any = None, external_field: Any = None
) -> ChargeResponse:
    """Condensed Fukui functions, chemical potential and hardness.

    Parameters
    ----------
    model, atoms, total_charge, external_field
        As for :func:`polarizability`.

    Returns
    -------
    ChargeResponse

    Raises
    ------
    InputError, UnsupportedError, ModelNotFittedError
        Also for structures with fragment or reference charges, which leave open where added charge goes.
    """
    geometry = fix(model, atoms, total_charge, external_field)
    require_charges(geometry.potential, "response to charge")
    charge, first = geometry.structure.total_charge, geometry.predict(())
    defined(first.chemical_potential, "the response to charge", reason_for(first, "chemical_potential"))

    def values(change: float) -> FloatArray:
        prediction = geometry.under(total_charge=charge + change).predict(())
        assert prediction.charges is not None and prediction.chemical_potential is not None
        return np.append(prediction.charges, prediction.chemical_potential)

    here, slope = values(0.0), derivative(values, CHARGE_STEP)
    determined, std = charge_determined(geometry.potential, geometry.structure.numbers, slope[:-1])
    return ChargeResponse(
        numbers=geometry.structure.numbers,
        charges=here[:-1],
        fukui=slope[:-1],
        chemical_potential=float(here[-1]),
        hardness=float(slope[-1]),
        determined=determined,
        chemical_potential_std=std,
    )


__all__ = [
    "BornCharges",
    "ChargeResponse",
    "Polarizability",
    "born_charges",
    "born_charges_at",
    "charge_response",
    "polarizability",
]
