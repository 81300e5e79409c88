"""What networks computed last: features of many structures, and recordings of the latest few.

Fits ask for the features of a frame several times (for means and spreads, for representatives, for rows), and several
kernels of a model may use one network: it is evaluated once.  Recordings for derivatives are large and few.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from kqeq.descriptors.networks.base import Graph, Network, Tape
from kqeq.typing import FloatArray

VALUES_BYTES = 200_000_000
"""Features that are kept."""

RECORDED_ATOMS = 512
"""Atoms of the recordings that are kept; the latest one always is."""

_lock = threading.RLock()
_values: OrderedDict[tuple[Any, ...], FloatArray] = OrderedDict()
_tapes: OrderedDict[tuple[Any, ...], tuple[Graph, Tape]] = OrderedDict()
_bytes = 0


def values_of(network: Network, graph: Graph) -> FloatArray:
    """Features of a graph, (N, F); not to be written to."""
    global _bytes  # noqa: PLW0603
    key = (network.name, network.digest, graph.key)
    with _lock:
        found = _values.get(key)
        if found is not None:
            _values.move_to_end(key)
            return found
        tape = _tapes.get(_name(network, graph))
    values = network.evaluate(graph) if tape is None else tape[1].values
    values.flags.writeable = False
    with _lock:
        if key not in _values:
            _values[key] = values
            _bytes += values.nbytes
        while _bytes > VALUES_BYTES and len(_values) > 1:
            _bytes -= _values.popitem(last=False)[1].nbytes
    return values


def recorded(network: Network, graph: Graph) -> Tape:
    """A recording of a graph."""
    key = _name(network, graph)
    with _lock:
        if key in _tapes:
            _tapes.move_to_end(key)
            return _tapes[key][1]
    tape = network.record(graph)
    with _lock:
        _tapes[key] = (graph, tape)  # the graph lives as long as its number is in use
        atoms = sum(len(own) for own, _ in _tapes.values())
        while len(_tapes) > 1 and atoms > RECORDED_ATOMS:
            atoms -= len(_tapes.popitem(last=False)[1][0])
    return tape


def forget() -> None:
    """Forget everything, to measure times."""
    global _bytes  # noqa: PLW0603
    with _lock:
        _values.clear()
        _tapes.clear()
        _bytes = 0


def _name(network: Network, graph: Graph) -> tuple[Any, ...]:
    return (network.name, network.digest, id(graph))


__all__ = ["forget", "recorded", "values_of"]
