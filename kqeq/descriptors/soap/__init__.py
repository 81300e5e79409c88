"""SOAP: settings and basis; ``host``: compiled kernels; ``arrays``: array namespaces and CUDA."""

from __future__ import annotations

from kqeq.descriptors.soap.descriptor import SWITCH_RANGE, Smoothing, SOAPDescriptor

__all__ = ["SWITCH_RANGE", "SOAPDescriptor", "Smoothing"]
