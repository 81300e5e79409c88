"""Baselines: what is known before the fit, subtracted from labels and added in prediction.

    kqeq.KQEq(baseline="gfn2")

A baseline may hold the total charge, feel the field and give a dipole and charges (:mod:`kqeq.baselines.protocol`);
the model on top then learns what is missing, and everything it reports is a derivative of the whole energy.
"""

from kqeq.baselines.ase import ASE, CalculatorBaseline
from kqeq.baselines.combine import AtReferenceCharge, Scaled, Sum
from kqeq.baselines.dispersion import Dispersion
from kqeq.baselines.protocol import (
    Baseline,
    BaselineResult,
    Capabilities,
    GeometryBaseline,
    remaining,
)
from kqeq.baselines.resolve import CHARGE_FROM, resolve_baseline
from kqeq.baselines.so3lr import SO3LR
from kqeq.baselines.tight_binding import TightBinding
from kqeq.baselines.zbl import ZBL

__all__ = [
    "ASE",
    "CHARGE_FROM",
    "SO3LR",
    "ZBL",
    "AtReferenceCharge",
    "Baseline",
    "BaselineResult",
    "CalculatorBaseline",
    "Capabilities",
    "Dispersion",
    "GeometryBaseline",
    "Scaled",
    "Sum",
    "TightBinding",
    "remaining",
    "resolve_baseline",
]
