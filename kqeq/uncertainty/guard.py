"""Notices when a simulation leaves what a model was fitted on: by the uncertainty of its energy, or by distance.

Used by :class:`kqeq.KQEqCalculator`, which sees every structure of a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms

from kqeq.errors import ExtrapolationError, ExtrapolationWarning, InputError, warn
from kqeq.kernels.feature_map import FeatureMap
from kqeq.potential.fixed_geometry import FixedGeometry
from kqeq.potential.novelty import distances, spread
from kqeq.potential.prediction import Prediction
from kqeq.uncertainty.posterior import Posterior, with_uncertainty

ACTIONS = ("warn", "stop")
"""What may be done besides calling a function."""


@dataclass(frozen=True, eq=False)
class Extrapolation:
    """A structure beyond the limits of a guard.

    Attributes
    ----------
    atoms : ase.Atoms
        A copy of the structure, without calculator.
    prediction : Prediction
    looks : int
        How many structures the guard has looked at.
    energy_std : float, optional
        Standard deviation of the energy, eV, where it is watched.
    distance : float, optional
        Largest distance of an atom to the training environments, in units of their spread, where it is watched.
    atom : int, optional
        The atom that has it.
    reason : str
        What is beyond which limit, in words.
    """

    atoms: Atoms
    prediction: Prediction
    looks: int
    energy_std: float | None
    distance: float | None
    atom: int | None
    reason: str

    def __str__(self) -> str:
        return self.reason


class ExtrapolationGuard:
    """Looks at structures, and acts on those beyond its limits.

    Parameters
    ----------
    max_energy_std : float, optional
        Largest standard deviation of the energy of a structure, eV.
    max_distance : float, optional
        Largest distance of an atom to the training environments, in units of the spread of the representatives
        (:mod:`kqeq.potential.novelty`): about 1 within the training data.
    action : "warn", "stop" or function
        ``"warn"`` warns whenever the limits are crossed from within, ``"stop"`` raises :class:`ExtrapolationError`;
        a function is called with an :class:`Extrapolation` for every structure beyond the limits.
    every : int
        Look at every so manyth structure.
    posterior : optional
        Of the model; needed for ``max_energy_std``.

    Raises
    ------
    InputError
        For limits that are not positive, or another action.
    """

    def __init__(
        self,
        *,
        max_energy_std: float | None,
        max_distance: float | None,
        action: str | Callable[[Extrapolation], Any],
        every: int,
        posterior: Posterior | None,
    ) -> None:
        for name, value in (("max_energy_std", max_energy_std), ("max_distance", max_distance)):
            if value is not None and not (_is_number(value) and math.isfinite(value) and value > 0.0):
                raise InputError(f"{name} is {value!r}; expected a positive number or None")
        if not callable(action) and action not in ACTIONS:
            raise InputError(
                f'on_extrapolation is {action!r}; expected "warn", "stop" or a function that takes a '
                "kqeq.uncertainty.guard.Extrapolation"
            )
        if isinstance(every, bool) or not isinstance(every, int | np.integer) or every < 1:
            raise InputError(f"guard_every is {every!r}; expected a whole number from 1 on")
        self._max_energy_std, self._max_distance = max_energy_std, max_distance
        self._action, self._every, self._posterior = action, int(every), posterior
        self._scales: dict[tuple[FeatureMap, int], float] = {}
        self._calls = 0
        self._looks = 0
        self._outside = False

    @property
    def watches(self) -> bool:
        """Whether there is a limit."""
        return self._max_energy_std is not None or self._max_distance is not None

    def look(self, atoms: Atoms, geometry: FixedGeometry, prediction: Prediction) -> None:
        """Look at a structure, if it is its turn.

        Parameters
        ----------
        atoms : ase.Atoms
        geometry : FixedGeometry
            The model at this structure.
        prediction : Prediction

        Raises
        ------
        ExtrapolationError
            With ``action="stop"``.  What a function raises goes through.
        """
        self._calls += 1
        if (self._calls - 1) % self._every:
            return
        self._looks += 1
        std = distance = atom = None
        reasons = []
        if self._max_distance is not None:
            relative = distances(geometry, self._scale)[1]
            atom = int(np.argmax(relative))
            distance = float(relative[atom])
            if not distance <= self._max_distance:
                reasons.append(
                    f"the environment of atom {atom} ({atoms.symbols[atom]}) is {distance:.3g} spreads of the training "
                    f"environments away from the nearest of them (max_distance={self._max_distance:g})"
                )
        if self._max_energy_std is not None:
            assert self._posterior is not None
            potential = geometry.potential
            known = with_uncertainty(
                prediction, self._posterior, geometry.structure, ("energy",), potential.baseline
            )
            std = known.energy_std
            if std is not None and not std <= self._max_energy_std:
                reasons.append(
                    f"the standard deviation of the energy is {std:.3g} eV (max_energy_std={self._max_energy_std:g})"
                )
        before, self._outside = self._outside, bool(reasons)
        if not reasons:
            return
        name = atoms.get_chemical_formula()
        text = f"{name} is beyond what the model was fitted on: {'; '.join(reasons)}"
        copy = Atoms(atoms)
        copy.calc = None
        found = Extrapolation(copy, prediction, self._looks, std, distance, atom, text)
        if callable(self._action):
            self._action(found)
        elif self._action == "stop":
            raise ExtrapolationError(
                f"{text}. Label structures like this one (error.extrapolation.atoms) and fit again, or raise the limit",
                found,
            )
        elif not before:
            warn(text, ExtrapolationWarning)

    def _scale(self, feature_map: FeatureMap, element: int) -> float:
        key = feature_map, element
        if key not in self._scales:
            self._scales[key] = spread(feature_map, element)
        return self._scales[key]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


__all__ = ["Extrapolation", "ExtrapolationGuard"]
