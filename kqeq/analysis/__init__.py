"""Questions to a fitted model: how it responds to charge and field, whether to trust it, and what repairs it.

    from kqeq import analysis
    analysis.polarizability(model, atoms)            analysis.charge_scan(model, atoms, (-1, 0, 1))
    analysis.born_charges(model, atoms)              analysis.field_scan(model, atoms, (0.0, 0.1, 0.2))
    analysis.infrared(model, atoms)                  analysis.diagnose(model, atoms)

Results are frozen dataclasses of arrays, with their units in the documentation and in ``units()``, and can be written:
``to_dict()``, ``to_json(path)``, ``to_csv(path)``.  Figures are drawn by :mod:`kqeq.plots`.
"""

from kqeq.analysis.electrostatic import (
    ElectrostaticPotential,
    PotentialGrid,
    electrostatic_potential,
    potential_grid,
)
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
    DissociationScan,
    FieldScan,
    Ionisation,
    charge_scan,
    connected_fragments,
    dissociation_scan,
    field_scan,
    ionisation,
)
from kqeq.analysis.vibrations import Infrared, hessian, infrared

__all__ = [
    "BornCharges",
    "ChargeResponse",
    "ChargeScan",
    "DissociationScan",
    "ElectrostaticPotential",
    "FieldScan",
    "Infrared",
    "Ionisation",
    "Polarizability",
    "PotentialGrid",
    "born_charges",
    "charge_response",
    "charge_scan",
    "connected_fragments",
    "dissociation_scan",
    "electrostatic_potential",
    "field_scan",
    "hessian",
    "infrared",
    "ionisation",
    "polarizability",
    "potential_grid",
]
