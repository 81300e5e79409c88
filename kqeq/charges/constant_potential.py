"""Charges at a given chemical potential: the total charge is free, as on an electrode."""

from __future__ import annotations

from kqeq.charges.base import ChargeState, ChargeSystem
from kqeq.errors import NotPositiveDefiniteError
from kqeq.typing import FloatArray


def solve_at_potential(
    system: ChargeSystem, chi: FloatArray, external_field: FloatArray, chemical_potential: float
) -> tuple[ChargeState, float]:
    """Charges that minimise E − μQ over the total charge Q as well.

    E is quadratic in Q, so ∂E/∂Q at Q = 0 and ∂²E/∂Q² determine Q.  Forces and stress of E − μQ at constant μ are
    those of E at the Q that is returned (Q is at its minimum).

    Parameters
    ----------
    system : ChargeSystem
    chi : (N,) array
        Electronegativities, eV/e.
    external_field : (3,) array
        V/Å.
    chemical_potential : float
        μ = ∂E/∂Q, eV/e.

    Returns
    -------
    ChargeState, float
        The state, and Q in e; the grand potential is ``state.energy - chemical_potential * Q``.

    Raises
    ------
    NotPositiveDefiniteError
        If the energy has no minimum with respect to the total charge (charged slabs).
    """
    hardness = system.hardness()
    if not hardness > 0.0:
        raise NotPositiveDefiniteError(
            f"the energy has no minimum with respect to the total charge (its second derivative is {hardness:.3g} "
            "eV/e², as for charged slabs, whose potential has no zero far away). Fix the total charge instead"
        )
    neutral = system.solve(chi, external_field, 0.0)
    total_charge = (chemical_potential - neutral.chemical_potential) / hardness
    return system.solve(chi, external_field, total_charge), total_charge


__all__ = ["solve_at_potential"]
