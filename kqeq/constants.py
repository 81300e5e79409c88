"""Physical constants in the package's units: eV, Å, e.

All derived from :mod:`ase.units` (CODATA), so that they agree with what users convert with.
"""

from ase import units

COULOMB: float = units.Hartree * units.Bohr
"""Coulomb constant k_e in eV·Å/e² (14.399645...)."""

DEBYE: float = units.Debye
"""One debye in e·Å."""

__all__ = ["COULOMB", "DEBYE"]
