"""MACE: equivariant message passing of high body order; models of users, and foundation models, from their files.

The features are the invariant channels behind each layer.

Batatia, Kovács, Simm, Ortner & Csányi 2022, *NeurIPS* 35, 11423; package ``mace-torch`` (MIT licence; foundation
models have licences of their own).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kqeq.backend.pytorch import installed
from kqeq.descriptors.networks.base import Graph
from kqeq.descriptors.networks.pretrained import TorchNetwork
from kqeq.descriptors.networks.so3lr import pair_index
from kqeq.errors import InputError


class MACE(TorchNetwork):
    """A MACE model in a file."""

    @classmethod
    def named(cls, option: str) -> MACE:
        """The model in a file."""
        if not option:
            raise InputError(
                'network="mace" needs the file of a model, for example "mace:water.model"; foundation models are files, '
                "too, where they have been downloaded: mace keeps them in ~/.cache/mace"
            )
        installed("mace", "mace-torch", "mace", f"mace:{option}")
        path = Path(option).expanduser()
        return cls(f"mace:{path.name}", path)

    def load(self, torch: Any) -> Any:
        """See :meth:`TorchNetwork.load`."""
        installed("mace", "mace-torch", "mace", self.name)
        import mace  # noqa: F401  # it prepares torch for the files of e3nn

        module = torch.load(self.path, map_location="cpu", weights_only=False)
        if not all(hasattr(module, name) for name in ("r_max", "atomic_numbers", "products", "interactions")):
            raise InputError(f"{self.path} holds no MACE model but a {type(module).__name__}")
        return module

    def describe(self, module: Any) -> tuple[float, int, frozenset[int]]:
        """See :meth:`TorchNetwork.describe`."""
        size = sum(stop - start for start, stop in _invariant(module))
        return float(module.r_max), size, frozenset(int(z) for z in module.atomic_numbers)

    def features(self, torch: Any, module: Any, graph: Graph, vectors: Any) -> Any:
        """See :meth:`TorchNetwork.features`."""
        n = len(graph)
        table = {int(z): place for place, z in enumerate(module.atomic_numbers)}
        one_hot = torch.zeros(n, len(table))
        one_hot[torch.arange(n), torch.tensor([table[int(z)] for z in graph.numbers])] = 1.0
        data = {
            # all atoms at the origin: what the network takes for lattice vectors are the vectors of the graph
            "positions": torch.zeros(n, 3),
            "shifts": vectors,
            "unit_shifts": torch.zeros_like(vectors),
            "edge_index": pair_index(torch, graph),
            "cell": torch.zeros(3, 3),
            "node_attrs": one_hot,
            "batch": torch.zeros(n, dtype=torch.int64),
            "ptr": torch.tensor([0, n]),
            "head": torch.zeros(1, dtype=torch.int64),
            "total_charge": torch.zeros(1),
            "total_spin": torch.ones(1),
        }
        every = module(data, compute_force=False)["node_feats"]
        return torch.cat([every[:, start:stop] for start, stop in _invariant(module)], dim=1)


def _invariant(module: Any) -> list[tuple[int, int]]:
    """Columns of the scalars behind each layer."""
    columns, start = [], 0
    for product in module.products:
        for multiplicity, irrep in product.linear.irreps_out:
            width = multiplicity * irrep.dim
            if irrep.l == 0 and irrep.p == 1:
                columns.append((start, start + width))
            start += width
    return columns


__all__ = ["MACE"]
