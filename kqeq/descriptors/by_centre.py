"""Gradients of kernel features atom by atom, for descriptors that give them for no more work than their sum."""

from __future__ import annotations

from typing import Any

from kqeq.descriptors.base import Descriptor
from kqeq.descriptors.conditioned import Conditioned
from kqeq.descriptors.merged import Merged
from kqeq.descriptors.soap.descriptor import SOAPDescriptor
from kqeq.descriptors.soap.host import features
from kqeq.typing import FloatArray, IntArray


def separates_centres(descriptor: Descriptor) -> bool:
    """Whether :func:`gradients_by_centre` knows this descriptor (on the host): those of neighbours within a cutoff."""
    inner = descriptor
    while isinstance(inner, Conditioned | Merged):
        inner = inner.inner
    return isinstance(inner, SOAPDescriptor)


def gradients_by_centre(
    descriptor: Descriptor, state: Any, centres: IntArray, directions: Any, coefficients: FloatArray
) -> FloatArray:
    """Derivatives ∂f_im/∂r of every centre for itself, (n, 3N, M), with ∂f_im/∂p_i = C_im d_m.

    Parameters
    ----------
    descriptor : Descriptor
        One that :func:`separates_centres`.
    state : DescriptorState
        On the host.
    centres : (n,) array
    directions : object
        What ``prepare_directions`` of the descriptor made.
    coefficients : (n, M) array
        C_im.
    """
    while isinstance(descriptor, Conditioned | Merged):
        descriptor, state = descriptor.inner, state.inner
    return features.gradients_by_centre(state, centres, directions, coefficients)


__all__ = ["gradients_by_centre", "separates_centres"]
