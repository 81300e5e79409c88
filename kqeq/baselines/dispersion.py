"""London dispersion as an additive baseline: D4 and D3(BJ), through the wheels of dftd4 and dftd3.

    baseline="d4:pbe0"          baseline="d3:pbe0"          baseline="gfn1+..." for sums

Caldeweyher et al. 2019, *J. Chem. Phys.* 150, 154122 (D4); Grimme, Ehrlich & Goerigk 2011, *J. Comput. Chem.* 32, 1456
(D3 with rational damping).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.units import Bohr, Hartree

from kqeq.baselines.protocol import BaselineResult, GeometryBaseline
from kqeq.errors import InputError, UnsupportedError
from kqeq.frames.structures import Structure

KINDS = {"d4": "dftd4", "d3": "dftd3"}


@dataclass(frozen=True)
class Dispersion(GeometryBaseline):
    """D4 or D3(BJ) for a density functional.

    D4 depends on the total charge a little, through the charges that scale its coefficients; it feels no field and
    gives no dipole, so that the charge model on top still carries the charge.

    Parameters
    ----------
    kind : {"d4", "d3"}
    functional : str
        Whose damping parameters are used, for example ``"pbe0"``.

    Raises
    ------
    InputError
        For another kind.
    """

    kind: str
    functional: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"Dispersion(kind={self.kind!r}): expected one of {', '.join(KINDS)}")
        if not isinstance(self.functional, str) or not self.functional:
            raise InputError(
                f'baseline "{self.kind}" needs the density functional that it belongs to, for example '
                f'"{self.kind}:pbe0"'
            )

    @property
    def name(self) -> str:
        """``"d4:pbe0"``."""
        return f"{self.kind}:{self.functional}"

    def check(self, structure: Structure) -> None:
        """Refuse functionals that have no parameters, and say what has to be installed."""
        self._damping()

    def evaluate(self, structure: Structure, extras: Collection[str] = ()) -> BaselineResult:
        """Energy (eV), ∂E/∂r (N, 3) in eV/Å and ∂E/∂ε (3, 3) in eV; open and periodic.

        Raises
        ------
        InputError
            For functionals and elements without parameters.
        UnsupportedError
            If the library is not installed.
        """
        interface, damping = self._damping()
        keywords: dict[str, Any] = {}
        if structure.periodic:
            keywords = {"lattice": structure.cell / Bohr, "periodic": structure.pbc}
        if self.kind == "d4":
            keywords["charge"] = structure.total_charge
        try:
            model = interface.DispersionModel(structure.numbers, structure.positions / Bohr, **keywords)
            found = model.get_dispersion(damping, grad=True)
        except RuntimeError as error:
            raise InputError(f'baseline "{self.name}" refuses the structure: {error}') from None
        gradient = np.array(found["gradient"], dtype=np.float64) * (Hartree / Bohr)
        virial = np.array(found["virial"], dtype=np.float64) * Hartree
        return BaselineResult(float(found["energy"]) * Hartree, gradient, virial)

    def _damping(self) -> tuple[Any, Any]:
        try:
            if self.kind == "d4":
                from dftd4 import interface
            else:
                from dftd3 import interface
        except ImportError:
            raise UnsupportedError(
                f'baseline "{self.name}" needs {KINDS[self.kind]}: pip install "kqeq[xtb]"'
            ) from None
        make = interface.DampingParam if self.kind == "d4" else interface.RationalDampingParam
        try:
            return interface, make(method=self.functional)
        except RuntimeError:
            raise InputError(
                f'baseline "{self.name}": {KINDS[self.kind]} has no parameters for the functional {self.functional!r}'
            ) from None


__all__ = ["Dispersion"]
