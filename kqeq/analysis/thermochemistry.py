"""Thermochemistry from harmonic vibrations, with ASE's partition functions (:mod:`ase.thermochemistry`).

A molecule is an ideal gas: translation, rigid rotation, harmonic vibrations, electronic degeneracy of its spin.  What is
periodic or partly fixed has vibrations alone.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from ase import Atoms, units

from kqeq.analysis.results import Result
from kqeq.analysis.vibrations import Infrared, Vibrations
from kqeq.errors import InputError
from kqeq.typing import FloatArray

LINEAR = 1e-3
"""Smallest moment of inertia, relative to the largest, below which a molecule is linear."""


@dataclass(frozen=True, eq=False)
class Thermochemistry(Result):
    """Thermodynamic functions of one geometry.

    Attributes
    ----------
    model : str
        ``"ideal-gas"`` or ``"harmonic"``.
    temperature : float
        K.
    pressure : float or None
        bar; of an ideal gas.
    potential_energy : float
        Of the minimum, eV.
    zero_point_energy : float
        eV.
    internal_energy : float
        With the zero-point energy, eV.
    enthalpy : float or None
        Of an ideal gas, eV.
    entropy : float
        eV/K.
    free_energy : float
        Gibbs energy of an ideal gas, Helmholtz energy otherwise; eV.
    imaginary : int
        Imaginary modes, which are left away: the geometry is no minimum if there are any.
    geometry : str
        ``"monatomic"``, ``"linear"``, ``"nonlinear"``, or ``""`` for vibrations alone.
    """

    model: str
    temperature: Annotated[float, "K"]
    pressure: Annotated[float | None, "bar"]
    potential_energy: Annotated[float, "eV"]
    zero_point_energy: Annotated[float, "eV"]
    internal_energy: Annotated[float, "eV"]
    enthalpy: Annotated[float | None, "eV"]
    entropy: Annotated[float, "eV/K"]
    free_energy: Annotated[float, "eV"]
    imaginary: int
    geometry: str
    rows: ClassVar[str] = ""


def thermochemistry(
    found: Vibrations | Infrared,
    *,
    temperature: float = 298.15,
    pressure: float = 1.0,
    symmetry_number: int = 1,
    spin: float = 0.0,
    model: str | None = None,
) -> Thermochemistry:
    """Thermodynamic functions from the vibrations of a geometry.

    Parameters
    ----------
    found : Vibrations or Infrared
    temperature : float
        K.
    pressure : float
        bar.
    symmetry_number : int
        Rotations that leave the molecule as it is: 2 for water, 3 for ammonia, 12 for methane.
    spin : float
        Total spin S: 0, 0.5, 1 ...
    model : {"ideal-gas", "harmonic"}, optional
        By default an ideal gas for what is neither periodic nor partly fixed.

    Raises
    ------
    InputError
        For settings that make no sense, and an ideal gas of what is none.
    """
    for name, value in (("temperature", temperature), ("pressure", pressure)):
        if isinstance(value, bool) or not (np.isfinite(value) and value > 0.0):
            raise InputError(f"{name} is {value!r}; expected a positive number")
    if isinstance(symmetry_number, bool) or int(symmetry_number) != symmetry_number or symmetry_number < 1:
        raise InputError(f"symmetry_number is {symmetry_number!r}; expected a whole number of at least 1")
    if spin < 0.0 or (2.0 * spin) % 1.0:
        raise InputError(f"spin is {spin!r}; expected 0, 0.5, 1 ...")
    gas = not found.pbc.any() and found.free_atoms == len(found.numbers)
    model = model or ("ideal-gas" if gas else "harmonic")
    if model not in ("ideal-gas", "harmonic"):
        raise InputError(f"model is {model!r}; expected 'ideal-gas' or 'harmonic'")
    if model == "ideal-gas" and not gas:
        raise InputError(
            "a periodic or partly fixed structure is no ideal gas; take model='harmonic' (--thermo harmonic)"
        )
    energies: FloatArray = found.frequencies * units.invcm
    real: Any = energies[energies > 0.0]
    if model == "harmonic":
        from ase.thermochemistry import HarmonicThermo

        thermo: Any = HarmonicThermo(real, potentialenergy=found.energy)
        internal = thermo.get_internal_energy(temperature, verbose=False)
        entropy = thermo.get_entropy(temperature, verbose=False)
        return Thermochemistry(
            model,
            temperature,
            None,
            found.energy,
            0.5 * float(real.sum()),
            float(internal),
            None,
            float(entropy),
            float(thermo.get_helmholtz_energy(temperature, verbose=False)),
            int((energies < 0.0).sum()),
            "",
        )
    from ase.thermochemistry import IdealGasThermo

    atoms = found.atoms
    atoms.set_masses(found.masses)
    shape = geometry_of(atoms)
    # newer versions count the modes, of which imaginary ones were left away here
    every: dict[str, Any] = {"vib_selection": "all"}
    counts = "vib_selection" in inspect.signature(IdealGasThermo).parameters
    thermo = IdealGasThermo(
        real,
        geometry=shape,
        potentialenergy=found.energy,
        atoms=atoms,
        symmetrynumber=int(symmetry_number),
        spin=spin,
        **(every if counts else {}),
    )
    pascal = 1e5 * pressure
    enthalpy = float(thermo.get_enthalpy(temperature, verbose=False))
    return Thermochemistry(
        model,
        temperature,
        pressure,
        found.energy,
        0.5 * float(real.sum()),
        enthalpy - units.kB * temperature,
        enthalpy,
        float(thermo.get_entropy(temperature, pascal, verbose=False)),
        float(thermo.get_gibbs_energy(temperature, pascal, verbose=False)),
        int((energies < 0.0).sum()),
        shape,
    )


def geometry_of(atoms: Atoms) -> Literal["monatomic", "linear", "nonlinear"]:
    """``"monatomic"``, ``"linear"`` or ``"nonlinear"``."""
    if len(atoms) == 1:
        return "monatomic"
    moments = np.sort(atoms.get_moments_of_inertia())
    return "linear" if moments[0] < LINEAR * moments[-1] else "nonlinear"


__all__ = ["LINEAR", "Thermochemistry", "geometry_of", "thermochemistry"]
