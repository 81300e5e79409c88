"""CHGNet: a network for solids, trained on relaxations of the Materials Project; its weights come with its package.

128 features an atom: 64 before the last layer, which its magnetic moments come from, and 64 behind it.

Deng, Zhong, Jun, Riebesell, Han, Bartel & Ceder 2023, *Nat. Mach. Intell.* 5, 1031; package ``chgnet`` (modified BSD
licence).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kqeq.backend.pytorch import installed
from kqeq.descriptors.networks.base import Graph
from kqeq.descriptors.networks.pretrained import TorchNetwork
from kqeq.errors import InputError
from kqeq.typing import IntArray

DEFAULT = "0.3.0"

CLOSE = 1.0 - 1e-6
"""Cosines are kept this far from 1, as CHGNet does: the derivative of the arc cosine is not finite there."""

HEAVIEST = 94


class CHGNet(TorchNetwork):
    """A CHGNet of the package."""

    @classmethod
    def named(cls, option: str) -> CHGNet:
        """The weights of a version, by default of 0.3.0."""
        version = option or DEFAULT
        folder = installed("chgnet", "chgnet", "chgnet", f"chgnet:{version}") / "pretrained"
        found = sorted((folder / version).glob("*.pth.tar")) if version in _versions(folder) else []
        if len(found) != 1:
            raise InputError(
                f'network="chgnet:{version}": the package has the versions {", ".join(_versions(folder))}'
            )
        return cls(f"chgnet:{version}", found[0])

    def load(self, torch: Any) -> Any:
        """See :meth:`TorchNetwork.load`."""
        installed("chgnet", "chgnet", "chgnet", self.name)
        from chgnet.model import CHGNet as Module

        return Module.load(model_name=self.name.partition(":")[2], use_device="cpu", verbose=False)

    def describe(self, module: Any) -> tuple[float, int, frozenset[int]]:
        """See :meth:`TorchNetwork.describe`."""
        return (
            float(module.graph_converter.atom_graph_cutoff),
            2 * int(module.atom_fea_dim),
            frozenset(range(1, HEAVIEST + 1)),
        )

    def features(self, torch: Any, module: Any, graph: Graph, vectors: Any) -> Any:
        """See :meth:`TorchNetwork.features`."""
        half = len(graph.vectors) // 2
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        units = vectors / lengths[:, None]
        bonds = torch.arange(half).repeat(2)
        # a length is that of both directions: the derivative is shared out by the first half alone
        basis, close_basis = (
            expansion(lengths[:half])
            for expansion in (
                module.bond_basis_expansion.rbf_expansion_ag,
                module.bond_basis_expansion.rbf_expansion_bg,
            )
        )
        reach = float(module.graph_converter.bond_graph_cutoff)
        first, second = (torch.from_numpy(own) for own in _angles(graph, reach))
        cosines = torch.sum(units[first] * units[second], dim=1) * CLOSE
        angles = module.angle_embedding(module.angle_basis_expansion.fourier_expansion(torch.acos(cosines)))
        index = torch.from_numpy(np.stack([graph.centres, graph.neighbours], axis=1))
        triples = torch.stack([torch.from_numpy(graph.centres)[first], first % half, second % half], dim=1)

        atoms = module.atom_embedding(torch.from_numpy(graph.numbers) - 1)
        edges = module.bond_embedding(basis)
        weights, close_weights = module.bond_weights_ag(basis), module.bond_weights_bg(close_basis)
        before = atoms
        for number, layer in enumerate(module.atom_conv_layers):
            last = number == len(module.atom_conv_layers) - 1
            if last:
                before = atoms
            atoms = layer(
                atom_feas=atoms,
                bond_feas=edges,
                bond_weights=weights,
                atom_graph=index,
                directed2undirected=bonds,
            )
            if last or not len(first):
                continue
            if module.bond_conv_layers[number] is not None:
                edges = module.bond_conv_layers[number](
                    atom_feas=atoms,
                    bond_feas=edges,
                    bond_weights=close_weights,
                    angle_feas=angles,
                    bond_graph=triples,
                )
            if module.angle_layers[number] is not None:
                angles = module.angle_layers[number](
                    atom_feas=atoms, bond_feas=edges, angle_feas=angles, bond_graph=triples
                )
        if module.readout_norm is not None:
            atoms = module.readout_norm(atoms)
        return torch.cat([before, atoms], dim=1)


def _versions(folder: Path) -> list[str]:
    return sorted(own.name for own in folder.iterdir() if own.is_dir())


def _angles(graph: Graph, reach: float) -> tuple[IntArray, IntArray]:
    """Pairs of different pairs (directed, by number) with the same centre, both no longer than ``reach``."""
    short = np.flatnonzero(np.linalg.norm(graph.vectors, axis=1) <= reach)
    short = short[np.argsort(graph.centres[short], kind="stable")]
    counts = np.bincount(graph.centres[short], minlength=len(graph))
    own = counts[graph.centres[short]]  # how many share the centre of each
    first = np.repeat(np.arange(len(short)), own)
    starts = np.cumsum(counts) - counts
    within = np.arange(len(first)) - np.repeat(np.cumsum(own) - own, own)
    second = starts[graph.centres[short[first]]] + within
    different = first != second
    return short[first[different]], short[second[different]]


__all__ = ["CHGNet"]
