"""Responses of a baseline by central differences, for those that have none of their own.

    α_ab = [μ_a(F + h e_b) − μ_a(F − h e_b)] / 2h
    ∂q_i/∂r_k = [q_i(r_k + h) − q_i(r_k − h)] / 2h,  and likewise by strain and field
    ∂²q_i/∂F_a∂F_b = [q_i(+a+b) + q_i(−a−b) − q_i(+a) − q_i(−a) − q_i(+b) − q_i(−b) + 2 q_i] / 2h²

A polarizability costs 6 evaluations, charges by position 6 N, by strain 18 (periodic structures only), by field 6, twice
by field 12.  The truncation error is of second order in the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import numpy as np

from kqeq.baselines.protocol import (
    CHARGE_CURVATURE,
    CHARGE_FIELD,
    CHARGE_GRADIENT,
    POLARIZABILITY,
    BaselineResult,
    Capabilities,
)
from kqeq.frames.structures import Structure
from kqeq.typing import FloatArray

FIELD_STEP = 0.01
"""V/Å; GFN2-xTB polarizabilities differ by 1e-6 of themselves from those with half the step."""

CURVATURE_STEP = 0.05
"""V/Å; second differences divide rounding by the square of the step."""

POSITION_STEP = 2e-3
"""Å."""

STRAIN_STEP = 1e-3

Point = Callable[[Structure], BaselineResult]


def with_extras(
    point: Point, structure: Structure, extras: Collection[str], knows: Capabilities
) -> BaselineResult:
    """One evaluation, and the responses that are asked for and exist.

    Parameters
    ----------
    point : callable
        Evaluates one structure.
    structure : Structure
    extras : collection of str
        Some of :data:`kqeq.baselines.protocol.EXTRAS`; those that are not defined stay ``None``.
    knows : Capabilities
    """
    result = point(structure)
    by_field = knows.field and not structure.pbc.all()
    free = [a for a in range(3) if not _along_periodic(structure, a)]

    def fields(step: float) -> dict[tuple[int, int], BaselineResult]:
        return {(a, sign): point(_in_field(structure, {a: sign * step})) for a in free for sign in (1, -1)}

    found: dict[str, FloatArray] = {}
    if by_field and ((POLARIZABILITY in extras and knows.dipole) or CHARGE_FIELD in extras):
        ends = fields(FIELD_STEP)
        if knows.dipole and not structure.periodic:
            alpha = np.stack(
                [_slope(ends[a, 1].dipole, ends[a, -1].dipole, FIELD_STEP) for a in range(3)], axis=1
            )
            found["polarizability"] = 0.5 * (alpha + alpha.T)
        if knows.charges:
            slopes = np.zeros((3, len(structure)))
            for a in free:
                slopes[a] = _slope(ends[a, 1].charges, ends[a, -1].charges, FIELD_STEP)
            found["charge_field"] = slopes
    if by_field and CHARGE_CURVATURE in extras and knows.charges:
        found["charge_curvature"] = _curvature(point, structure, result, free)
    if CHARGE_GRADIENT in extras and knows.charges:
        found["charge_gradient"] = _by_position(point, structure)
        found["charge_strain"] = _by_strain(point, structure, found["charge_gradient"])
    return result._replace(**found)  # type: ignore[arg-type]


def _slope(plus: FloatArray | None, minus: FloatArray | None, step: float) -> FloatArray:
    assert plus is not None and minus is not None
    return np.asarray((plus - minus) / (2.0 * step))


def _along_periodic(structure: Structure, axis: int) -> bool:
    """Whether a field along a Cartesian axis has a component along a periodic direction."""
    return bool(np.abs(structure.cell[structure.pbc][:, axis]).max(initial=0.0) > 1e-10)


def _in_field(structure: Structure, change: dict[int, float]) -> Structure:
    field = structure.external_field.copy()
    for axis, step in change.items():
        field[axis] += step
    return replace(structure, external_field=field)


def _curvature(point: Point, structure: Structure, here: BaselineResult, free: Collection[int]) -> FloatArray:
    h, atoms = CURVATURE_STEP, len(structure)

    def charges(change: dict[int, float]) -> FloatArray:
        found = point(_in_field(structure, change)).charges
        assert found is not None
        return found

    assert here.charges is not None
    result = np.zeros((3, 3, atoms))
    sides = {a: charges({a: h}) + charges({a: -h}) for a in free}
    for a in free:
        result[a, a] = (sides[a] - 2.0 * here.charges) / h**2
        for b in free:
            if b > a:
                both = charges({a: h, b: h}) + charges({a: -h, b: -h})
                result[a, b] = result[b, a] = (both - sides[a] - sides[b] + 2.0 * here.charges) / (2.0 * h**2)
    return result


def _by_position(point: Point, structure: Structure) -> FloatArray:
    atoms = len(structure)
    result = np.zeros((3 * atoms, atoms))
    for k in range(3 * atoms):
        ends = []
        for sign in (1, -1):
            positions = structure.positions.copy()
            positions.flat[k] += sign * POSITION_STEP
            ends.append(point(replace(structure, positions=positions)).charges)
        result[k] = _slope(ends[0], ends[1], POSITION_STEP)
    return result.reshape(atoms, 3, atoms)


def _by_strain(point: Point, structure: Structure, by_position: FloatArray) -> FloatArray:
    """∂q/∂ε_ab with component b moved by ε r_a, as everywhere in the package."""
    if not structure.periodic:
        return np.asarray(np.einsum("ka,kbi->abi", structure.positions, by_position))
    result = np.zeros((3, 3, len(structure)))
    for a in range(3):
        for b in range(3):
            ends = []
            for sign in (1, -1):
                deformation = np.eye(3)
                deformation[a, b] += sign * STRAIN_STEP
                moved = replace(
                    structure,
                    positions=structure.positions @ deformation,
                    cell=structure.cell @ deformation,
                )
                ends.append(point(moved).charges)
            result[a, b] = _slope(ends[0], ends[1], STRAIN_STEP)
    return result


__all__ = ["CURVATURE_STEP", "FIELD_STEP", "POSITION_STEP", "STRAIN_STEP", "with_extras"]
