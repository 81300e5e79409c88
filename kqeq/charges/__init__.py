"""Charge models behind one seam (see :mod:`kqeq.charges.base`)."""

from kqeq.charges.acks2 import ACKS2
from kqeq.charges.atomic_dipoles import AtomicDipoles
from kqeq.charges.constant_potential import solve_at_potential
from kqeq.charges.latent import LatentCharges
from kqeq.charges.qeq import QEq
from kqeq.charges.registry import charge_model_from_dict
from kqeq.frames.site_data import assign_fragments

__all__ = [
    "ACKS2",
    "AtomicDipoles",
    "LatentCharges",
    "QEq",
    "assign_fragments",
    "charge_model_from_dict",
    "solve_at_potential",
]
