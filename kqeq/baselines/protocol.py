"""What a baseline promises to the rest of the package.

A baseline is known before the fit: E_b(r, Q, F).  Its derivatives are subtracted from the labels and added in
prediction, so that the whole model stays the derivative of one energy (theory section 7).  Baselines differ in what
they know, and say so (:class:`Capabilities`):

* one that *holds charge* (tight binding) is evaluated at the total charge of the structure.  Its energy then contains
  the whole −Q F·r of a charged system in a field, and the charge model on top solves for charges that sum to zero;
* one that feels the *field* gives the dipole −∂E_b/∂F, and α_b by differences;
* one that knows neither (ZBL, most force fields) is a function of the geometry, and the charge model does the rest.

Dimensions: N atoms; last index of derivatives: the charge of which atom.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from kqeq.errors import InputError
from kqeq.frames.structures import Structure
from kqeq.typing import FloatArray

POLARIZABILITY, CHARGE_GRADIENT, CHARGE_FIELD, CHARGE_CURVATURE = EXTRAS = (
    "polarizability",
    "charge_gradient",
    "charge_field",
    "charge_curvature",
)
"""What is computed only on request, because most baselines take differences for it."""


@dataclass(frozen=True)
class Capabilities:
    """What a baseline knows.

    Attributes
    ----------
    holds_charge : bool
        Whether it is evaluated at the total charge of the structure, and answers for it in a field.
    field : bool
        Whether its energy depends on the external field.
    dipole : bool
        Whether it gives a dipole about the coordinate origin.  Where it feels no field, −∂E/∂F holds at zero field.
    charges : bool
        Whether it gives charges of atoms.
    """

    holds_charge: bool = False
    field: bool = False
    dipole: bool = False
    charges: bool = False


class BaselineResult(NamedTuple):
    """A baseline at one structure; ``None`` where it is not defined, not known or not asked for.

    The first three always are there; ``result[:3]`` is what baselines of version 0.1 gave.

    Attributes
    ----------
    energy : float
        eV, with the field.
    gradient : (N, 3) array
        ∂E/∂r, eV/Å (minus the forces).
    strain : (3, 3) array
        ∂E/∂ε with r → (1 + ε) r for atoms and cell, eV; NaN where a calculator gives no stress.
    dipole : (3,) array, optional
        −∂E/∂F, e·Å about the coordinate origin.
    charges : (N,) array, optional
        e; they sum to the charge that the baseline holds.
    polarizability : (3, 3) array, optional
        ∂μ/∂F, e²·Å²/eV.
    charge_gradient : (N, 3, N) array, optional
        ∂q/∂r, e/Å.
    charge_strain : (3, 3, N) array, optional
        ∂q/∂ε, e; comes with ``charge_gradient``.
    charge_field : (3, N) array, optional
        ∂q/∂F, e·Å/V.
    charge_curvature : (3, 3, N) array, optional
        ∂²q/∂F², e·Å²/V².
    """

    energy: float
    gradient: FloatArray
    strain: FloatArray
    dipole: FloatArray | None = None
    charges: FloatArray | None = None
    polarizability: FloatArray | None = None
    charge_gradient: FloatArray | None = None
    charge_strain: FloatArray | None = None
    charge_field: FloatArray | None = None
    charge_curvature: FloatArray | None = None


@runtime_checkable
class Baseline(Protocol):
    """A potential that is known before the fit.  Picklable, and the same answer for the same structure."""

    @property
    def name(self) -> str:
        """What a model file records; ``kqeq.baselines.resolve`` understands it, or says what else it needs."""

    @property
    def capabilities(self) -> Capabilities:
        """What it knows."""

    def charge_held(self, structure: Structure) -> float:
        """The charge that it is evaluated at and answers for, e; 0 for functions of the geometry."""

    def check(self, structure: Structure) -> None:
        """Refuse structures and conditions that it cannot treat, before any long work.

        Raises
        ------
        InputError, UnsupportedError
        """

    def evaluate(self, structure: Structure, extras: Collection[str] = ()) -> BaselineResult:
        """Energy, derivatives and what else is known.

        Parameters
        ----------
        structure : Structure
        extras : collection of str
            Some of ``EXTRAS``.

        Raises
        ------
        InputError, UnsupportedError
        ConvergenceError
            If an iteration inside does not end.
        """

    def session(self) -> Baseline:
        """The same baseline for many similar structures one after another: it may start from where the last one ended.

        Numbers may differ from those of a fresh start by the threshold of its iterations.
        """

    def describe(self) -> str:
        """What results depend on besides the name (versions); part of the key under which they are kept.

        Empty for baselines whose results are not worth keeping, or cannot be told apart by name.
        """


class GeometryBaseline:
    """Base class of baselines that know the geometry only."""

    @property
    def capabilities(self) -> Capabilities:
        """Nothing but energy and derivatives."""
        return Capabilities()

    def charge_held(self, structure: Structure) -> float:
        """None."""
        return 0.0

    def check(self, structure: Structure) -> None:
        """Nothing to refuse before it is evaluated."""

    def session(self) -> Baseline:
        """Itself."""
        assert isinstance(self, Baseline)
        return self

    def describe(self) -> str:
        """Not worth keeping."""
        return ""


def remaining(structure: Structure, baseline: Baseline | None) -> Structure:
    """The structure that the charge model on top sees: without the charge that the baseline answers for.

    Where the baseline holds all charge, fragments and reference charges on top are neutral.

    Raises
    ------
    InputError
        If it holds a part of the total charge, and nothing says which fragments or atoms the rest belongs to.
    """
    held = 0.0 if baseline is None else baseline.charge_held(structure)
    if held == 0.0:
        return structure
    rest = structure.total_charge - held
    fragments, reference = structure.fragment_charges, structure.reference_charges
    if (fragments is not None or reference is not None) and abs(rest) > 1e-8:
        raise InputError(
            f"the baseline holds {held:g} of {structure.total_charge:g} e, and the structure has fragment or reference "
            'charges: nothing says which of them are left for the model; use charge_from="baseline", a reference '
            "charge of 0, or remove them"
        )
    return replace(
        structure,
        total_charge=0.0 if abs(rest) < 1e-8 else rest,
        fragment_charges=None if fragments is None else np.zeros_like(fragments),
        reference_charges=None if reference is None else np.zeros_like(reference),
    )


__all__ = [
    "CHARGE_CURVATURE",
    "CHARGE_FIELD",
    "CHARGE_GRADIENT",
    "EXTRAS",
    "POLARIZABILITY",
    "Baseline",
    "BaselineResult",
    "Capabilities",
    "GeometryBaseline",
    "remaining",
]
