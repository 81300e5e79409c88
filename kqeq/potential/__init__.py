"""Frozen parameters in, predictions out."""

from __future__ import annotations

from kqeq.potential.potential import PROPERTIES, Potential, SiteModel
from kqeq.potential.prediction import Prediction

__all__ = ["PROPERTIES", "Potential", "Prediction", "SiteModel"]
