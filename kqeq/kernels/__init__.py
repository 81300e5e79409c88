"""Kernel models of site quantities: settings, feature maps, representatives, dependence on charge."""

from kqeq.kernels.settings import SOAPKernel, default_electronegativity, default_short_range

__all__ = ["SOAPKernel", "default_electronegativity", "default_short_range"]
