"""Kernels on descriptors: settings, feature maps, representatives, dependence on charge."""

from __future__ import annotations

from kqeq.kernels.feature_map import FeatureMap, Products, Representatives, Similarity
from kqeq.kernels.settings import SOAPKernel, default_electronegativity, default_short_range

__all__ = [
    "FeatureMap",
    "Products",
    "Representatives",
    "SOAPKernel",
    "Similarity",
    "default_electronegativity",
    "default_short_range",
]
