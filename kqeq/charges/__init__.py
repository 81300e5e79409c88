"""Charge models behind one seam (see :mod:`kqeq.charges.base`)."""

from kqeq.charges.qeq import QEq
from kqeq.charges.registry import charge_model_from_dict

__all__ = ["QEq", "charge_model_from_dict"]
