"""Born charges as labels: their order and their sums, checked when they are read.

Z_k,ab = ∂μ_a/∂r_kb, stored at 3a + b.  Programs differ in the order, and the sum over atoms,

    Σ_k Z_k = Q·1        (all atoms moved together move the charge Q)

is as well fulfilled by the transposed tensors.  What tells them apart is a rotation of all atoms about any point c, which
turns the dipole about that point along,

    Σ_k Z_k (ω × (r_k − c)) = ω × (μ − Q c)       for every ω.

Without a dipole label the left side still has to be a cross product, that is antisymmetric in ω and its own index.  In a
field the molecule is not free to turn, and in cells neither positions nor dipole are defined: there the sum alone is
checked.

Measured on DFT data, errors of the rotational rule relative to √(Σ_k |Z_k|² |r_k − c|²): 1e-4 to 6e-3 in the right order,
0.035 to 0.11 transposed (water, N-methylacetamide, dipeptides of SPICE).

Dimensions: N atoms.
"""

from __future__ import annotations

import numpy as np

from kqeq.errors import InputError, LabelWarning, warn
from kqeq.frames.structures import Structure
from kqeq.typing import FloatArray

ROTATION = 0.02
"""Relative error of the rotational sum rule up to which an order counts as right."""

SUM_WARNING, SUM_ERROR = 0.05, 0.5
"""Errors of Σ Z − Q·1, e: numerical noise below the first, another charge or another molecule beyond the second."""

_CROSS = np.zeros((3, 3, 3))
for _i, _j, _k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
    _CROSS[_i, _j, _k], _CROSS[_i, _k, _j] = 1.0, -1.0


def rotation_error(tensors: FloatArray, structure: Structure, dipole: FloatArray | None) -> float:
    """Error of the rotational sum rule relative to √(Σ_k |Z_k|² |r_k − c|²), c the centre of the atoms.

    Parameters
    ----------
    tensors : (N, 3, 3) array
        ∂μ_a/∂r_kb, e.
    structure : Structure
    dipole : (3,) array, optional
        e·Å about the origin.
    """
    centre = structure.positions.mean(axis=0)
    arms = structure.positions - centre
    moved = np.einsum("kab,bcd,kd->ac", tensors, _CROSS, arms)  # along a, for a rotation about c
    if dipole is None:
        error = 0.5 * (moved + moved.T)
    else:
        error = moved - np.einsum("acd,d->ac", _CROSS, dipole - structure.total_charge * centre)
    scale = float(np.sqrt(np.sum(tensors**2, axis=(1, 2)) @ np.sum(arms**2, axis=1)))
    return float(np.linalg.norm(error)) / scale if scale > 0.0 else 0.0


def check_born_charges(
    tensors: FloatArray, structure: Structure, dipole: FloatArray | None, where: object
) -> FloatArray:
    """Born charges in the order of the module, turned if they came transposed.

    Parameters
    ----------
    tensors : (N, 3, 3) array
        e.
    structure : Structure
    dipole : (3,) array, optional
        The dipole label of the same frame, e·Å about the origin.
    where : object
        The frame, for messages.

    Raises
    ------
    InputError
        If their sum is not the total charge, or if neither order turns with the molecule.
    """
    charge = structure.total_charge
    error = float(np.abs(tensors.sum(axis=0) - charge * np.eye(3)).max())
    if error > SUM_ERROR:
        raise InputError(
            f"the Born charges of {where} do not sum to the total charge {charge:g} e times the unit matrix (error "
            f"{error:.2g} e; sum {np.array2string(tensors.sum(axis=0).ravel(), precision=2)}): they belong to another "
            "charge state or structure, or some are missing. Set total_charge, or remove born_charges"
        )
    if error > SUM_WARNING:
        warn(
            f"the Born charges of {where} sum to the total charge {charge:g} e times the unit matrix only within "
            f"{error:.2g} e (acoustic sum rule): a coarse grid or too few k points? They are fitted as they are",
            LabelWarning,
        )
    outside = structure.external_charges is not None or structure.external_potential is not None
    if structure.periodic or structure.external_field.any() or outside or len(structure) < 2:
        return tensors
    turned = np.ascontiguousarray(tensors.transpose(0, 2, 1))
    given, other = (rotation_error(t, structure, dipole) for t in (tensors, turned))
    if given <= ROTATION:
        return tensors
    if other <= ROTATION:
        warn(
            f"the Born charges of {where} are stored with the position first, at 3b + a, and were turned: expected is "
            f"∂μ_a/∂r_b at 3a + b. The rotational sum rule shows it (relative error {given:.2g} as given, {other:.2g} "
            "turned)",
            LabelWarning,
        )
        return turned
    raise InputError(
        f"the Born charges of {where} do not turn with the molecule: Σ_k Z_k (ω × r_k) = ω × μ has a relative error of "
        f"{given:.2g} as given and {other:.2g} transposed, expected at most {ROTATION}. Expected is ∂μ_a/∂r_b at 3a + b, "
        "in e, of the same geometry, and the dipole in e·Å about the origin of the coordinates. Remove born_charges, or "
        "mend them"
    )


__all__ = ["ROTATION", "check_born_charges", "rotation_error"]
