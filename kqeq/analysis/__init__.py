"""Questions to a fitted model: how it responds to charge and field, whether to trust it, and what repairs it.

    from kqeq import analysis
    analysis.polarizability(model, atoms)            analysis.charge_scan(model, atoms, (-1, 0, 1))
    analysis.born_charges(model, atoms)              analysis.field_scan(model, atoms, (0.0, 0.1, 0.2))
    analysis.infrared(model, atoms)                  analysis.optimize(model, atoms)
    analysis.ionization(model, atoms)                analysis.diagnose(model, atoms)

Results are frozen dataclasses of arrays, with their units in the documentation and in ``units()``, and can be written:
``to_dict()``, ``to_json(path)``, ``to_csv(path)``.  Figures are drawn by :mod:`kqeq.analysis.plots`.
"""

from typing import Any

from kqeq.analysis.consistency import Check, Consistency, check_consistency
from kqeq.analysis.diagnose import diagnose
from kqeq.analysis.dissociation import DissociationScan, connected_fragments, dissociation_scan
from kqeq.analysis.dynamics import Dynamics, molecular_dynamics
from kqeq.analysis.electrostatic import (
    ElectrostaticPotential,
    PotentialGrid,
    electrostatic_potential,
    potential_grid,
)
from kqeq.analysis.errors import FrameErrors, frame_errors
from kqeq.analysis.findings import ChainGrowth, Diagnosis, Finding
from kqeq.analysis.optimization import Optimization, optimize
from kqeq.analysis.phases import Phases, find_phases, phases
from kqeq.analysis.phonons import Dielectric, dielectric, write_born
from kqeq.analysis.response import (
    BornCharges,
    ChargeResponse,
    Polarizability,
    born_charges,
    charge_response,
    polarizability,
)
from kqeq.analysis.scans import (
    ChargeScan,
    FieldScan,
    Ionization,
    charge_scan,
    field_scan,
    ionization,
)
from kqeq.analysis.thermochemistry import Thermochemistry, thermochemistry
from kqeq.analysis.vibrations import Infrared, Vibrations, hessian, infrared, vibrations
from kqeq.analysis.view import view_data, write_view
from kqeq.errors import warn

_OLD = {"Ionisation": "Ionization", "ionisation": "ionization"}
"""Names of version 0.1, for one release."""


def __getattr__(name: str) -> Any:
    if name in _OLD:
        warn(
            f"kqeq.analysis.{name} is now kqeq.analysis.{_OLD[name]}; the old name goes with the next release",
            DeprecationWarning,
        )
        return globals()[_OLD[name]]
    raise AttributeError(f"module 'kqeq.analysis' has no attribute {name!r}")


__all__ = [
    "BornCharges",
    "ChainGrowth",
    "ChargeResponse",
    "ChargeScan",
    "Check",
    "Consistency",
    "Diagnosis",
    "Dielectric",
    "DissociationScan",
    "Dynamics",
    "ElectrostaticPotential",
    "FieldScan",
    "Finding",
    "FrameErrors",
    "Infrared",
    "Ionization",
    "Optimization",
    "Phases",
    "Polarizability",
    "PotentialGrid",
    "Thermochemistry",
    "Vibrations",
    "born_charges",
    "charge_response",
    "charge_scan",
    "check_consistency",
    "connected_fragments",
    "diagnose",
    "dielectric",
    "dissociation_scan",
    "electrostatic_potential",
    "field_scan",
    "find_phases",
    "frame_errors",
    "hessian",
    "infrared",
    "ionization",
    "molecular_dynamics",
    "optimize",
    "phases",
    "polarizability",
    "potential_grid",
    "thermochemistry",
    "vibrations",
    "view_data",
    "write_born",
    "write_view",
]
