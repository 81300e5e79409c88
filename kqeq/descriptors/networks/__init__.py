"""Features of trained networks as descriptors; :mod:`kqeq.descriptors.networks.base` says what a network has to be."""

from kqeq.descriptors.networks.base import Graph, Network, Tape
from kqeq.descriptors.networks.features import NetworkFeatures, Scaling
from kqeq.descriptors.networks.providers import find_network, resolve_network

__all__ = ["Graph", "Network", "NetworkFeatures", "Scaling", "Tape", "find_network", "resolve_network"]
