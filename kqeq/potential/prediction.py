"""What a model says about one structure, and what can be asked of it.

Dimensions: N atoms.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from kqeq.backend import Device
from kqeq.errors import InputError
from kqeq.typing import FloatArray

PROPERTIES: tuple[str, ...] = ("energy", "forces", "stress", "charges", "dipole", "polarizability")
"""What is asked of a prediction unless something else is."""

ON_REQUEST: tuple[str, ...] = ("born_charges",)
"""What has to be asked for by name."""


class PredictOptions(TypedDict, total=False):
    """Keyword arguments of :meth:`kqeq.KQEq.predict`, where they are described."""

    total_charge: float | None
    external_field: Any
    external_charges: Any
    properties: Collection[str] | None
    uncertainty: bool
    device: str | Device
    precision: str


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says about one structure; ``None`` where it was not asked for or is not defined.

    Attributes
    ----------
    energy : float
        Total energy, eV: the sum of the next four.
    energy_offsets, energy_short_range, energy_electrostatic, energy_baseline : float
        Parts of the energy, eV: element offsets; short-range kernel; electronegativities, hardness, Coulomb and
        field; baseline.
    forces : (N, 3) array
        eV/Å.
    stress : (3, 3) array
        eV/Å³ (ASE sign), symmetric; periodic structures only.
    charges : (N,) array
        e.
    atomic_dipoles : (N, 3) array
        e·Å; only for charge models that have them.
    dipole : (3,) array
        −∂E/∂field in e·Å, about the coordinate origin.
    born_charges : (N, 3, 3) array
        Z_k,ab = ∂μ_a/∂r_kb, e; of isolated structures, and only if asked for by name.
    polarizability : (3, 3) array
        e²·Å²/eV; times :data:`kqeq.constants.COULOMB` in Å³.
    electronegativity : (N,) array
        eV/e; ``None`` where the kernel model says charges (:class:`kqeq.LatentCharges`).
    chemical_potential : float
        ∂E/∂Q, eV/e.
    hardness : float
        ∂²E/∂Q², eV/e²; of systems that are solved iteratively only together with the polarizability.
    total_charge : float
        The total charge that the prediction is for, e.
    external_field : (3,) array
        The field that it is for, V/Å.
    energy_std, forces_std, charges_std, dipole_std : float, (N, 3), (N,), (3,) arrays
        Standard deviations of the quantities of the same names, with ``predict(..., uncertainty=True)``; those of the
        model's own values, without the noise of labels (:mod:`kqeq.uncertainty`).
    undetermined : dict of str to float
        Standard deviations of what the training data do not determine, by name: ``energy`` (eV; relative to other
        compositions and charges, differences at the same composition and charge are not affected) and
        ``chemical_potential`` (eV/e).  Empty where everything is determined (:mod:`kqeq.potential.determination`).
    external_forces : (M, 3) array
        Forces on external charges, eV/Å, together with the forces; ``None`` without such charges.
    undefined : dict of str to str
        Why quantities that the charge model would have are ``None`` on top of a baseline, by name; ``None`` if there
        are none.
    """

    energy: float
    energy_offsets: float
    energy_short_range: float
    energy_electrostatic: float
    energy_baseline: float
    forces: FloatArray | None
    stress: FloatArray | None
    charges: FloatArray | None
    atomic_dipoles: FloatArray | None
    dipole: FloatArray | None
    polarizability: FloatArray | None
    electronegativity: FloatArray | None
    chemical_potential: float | None
    hardness: float | None
    total_charge: float
    external_field: FloatArray
    energy_std: float | None = None
    forces_std: FloatArray | None = None
    charges_std: FloatArray | None = None
    dipole_std: FloatArray | None = None
    undefined: Mapping[str, str] | None = None
    undetermined: Mapping[str, float] = field(default_factory=dict)
    born_charges: FloatArray | None = None
    external_forces: FloatArray | None = None


def check_properties(properties: Collection[str] | None) -> tuple[str, ...]:
    """Validate a choice of properties; ``None`` means all of :data:`PROPERTIES`.

    Raises
    ------
    InputError
    """
    if properties is None:
        return PROPERTIES
    if isinstance(properties, str):
        properties = (properties,)
    known = (*PROPERTIES, *ON_REQUEST)
    unknown = [name for name in properties if name not in known]
    if unknown:
        raise InputError(f"unknown properties {unknown}; expected some of {', '.join(known)}")
    return tuple(properties)


__all__ = ["ON_REQUEST", "PROPERTIES", "PredictOptions", "Prediction", "check_properties"]
