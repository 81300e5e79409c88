"""SO3LR: a network for molecules, ions and biomolecules with long-range forces; its weights come with its package.

128 invariant features an atom after three layers of messages within 4.5 Å; it can be told total charge and spin.

Kabylda, Frank, Suárez-Dou, Khabibrakhmanov, Medrano Sandonas, Unke, Chmiela, Müller & Tkatchenko 2025,
*J. Am. Chem. Soc.* 147, 33723; package ``so3krates-torch`` (MIT licence).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kqeq.backend.pytorch import installed
from kqeq.descriptors.networks.base import Graph
from kqeq.descriptors.networks.pretrained import TorchNetwork

HEAVIEST = 99
"""Its tables of elements end here."""


class SO3LR(TorchNetwork):
    """SO3LR, or a model of its package that was trained further."""

    knows_charge = True

    @classmethod
    def named(cls, option: str) -> SO3LR:
        """The weights in the package, or those in a file."""
        folder = installed("so3krates_torch", "so3krates-torch", "so3lr", "so3lr")
        if not option:
            return cls("so3lr", folder / "pretrained" / "so3lr" / "so3lr.model")
        path = Path(option).expanduser()
        return cls(f"so3lr:{path.name}", path)

    def load(self, torch: Any) -> Any:
        """See :meth:`TorchNetwork.load`."""
        installed("so3krates_torch", "so3krates-torch", "so3lr", self.name)
        return torch.load(self.path, map_location="cpu", weights_only=False)

    def describe(self, module: Any) -> tuple[float, int, frozenset[int]]:
        """See :meth:`TorchNetwork.describe`."""
        known = min(int(module.num_elements), HEAVIEST)
        return float(module.r_max), int(module.num_features), frozenset(range(1, known + 1))

    def features(self, torch: Any, module: Any, graph: Graph, vectors: Any) -> Any:
        """See :meth:`TorchNetwork.features`."""
        n = len(graph)
        one_hot = torch.zeros(n, int(module.num_elements))
        one_hot[torch.arange(n), torch.from_numpy(graph.numbers) - 1] = 1.0
        nothing = torch.zeros(0, 3)
        data = {
            # all atoms at the origin: what the network takes for lattice vectors are the vectors of the graph
            "positions": torch.zeros(n, 3),
            "shifts": vectors,
            "unit_shifts": torch.zeros_like(vectors),
            "edge_index": pair_index(torch, graph),
            "edge_index_lr": torch.zeros(2, 0, dtype=torch.int64),
            "shifts_lr": nothing,
            "unit_shifts_lr": nothing,
            "cell": torch.zeros(3, 3),
            "node_attrs": one_hot,
            "atomic_numbers": torch.from_numpy(graph.numbers),
            "batch": torch.zeros(n, dtype=torch.int64),
            "ptr": torch.tensor([0, n]),
            "head": torch.zeros(1, dtype=torch.int64),
            "total_charge": torch.tensor([graph.total_charge]),
            "total_spin": torch.tensor([0.5 * graph.unpaired]),
        }
        return module.get_representation(data)[0]


def pair_index(torch: Any, graph: Graph) -> Any:
    """Both atoms of each pair, (2, P)."""
    return torch.stack([torch.from_numpy(graph.centres), torch.from_numpy(graph.neighbours)])


__all__ = ["SO3LR", "pair_index"]
