"""Networks of PyTorch packages: what they share."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kqeq.backend.pytorch import contained, file_digest, quiet
from kqeq.descriptors.networks.base import Graph
from kqeq.errors import InputError
from kqeq.typing import FloatArray


class TorchNetwork:
    """A network in a file, which is read when it is needed first.

    Parameters
    ----------
    name : str
    path : Path
        File with its weights.

    Notes
    -----
    Two are equal if name and weights are.  A copy in another process reads the file again, and refuses it if it has
    changed.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self._digest = file_digest(path, name)
        self._loops = False

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return self._digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TorchNetwork) and self.name == other.name and self.digest == other.digest

    def __hash__(self) -> int:
        return hash((self.name, self.digest))

    def __repr__(self) -> str:
        return f"<network {self.name}, {self.digest[:16]}>"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in {"module", "_about"}}

    def __deepcopy__(self, memo: dict[int, Any]) -> TorchNetwork:
        return self  # it never changes, and weights need no second place

    # what a network of some package fills in

    knows_charge = False

    def load(self, torch: Any) -> Any:
        """The module on the CPU."""
        raise NotImplementedError

    def describe(self, module: Any) -> tuple[float, int, frozenset[int]]:
        """Cutoff, number of features and elements of the module."""
        raise NotImplementedError

    def features(self, torch: Any, module: Any, graph: Graph, vectors: Any) -> Any:
        """Features (N, F) as a tensor that depends on ``vectors`` (P, 3)."""
        raise NotImplementedError

    # what they share

    @cached_property
    def module(self) -> Any:
        """The module in double precision, its weights fixed."""
        if file_digest(self.path, self.name) != self.digest:
            raise InputError(
                f"the network {self.name} in {self.path} has changed; its weights are not those of before"
            )
        with contained() as torch, quiet():
            module = self.load(torch).to("cpu").double().eval()
            for parameter in module.parameters():
                parameter.requires_grad_(False)
        return module

    @cached_property
    def _about(self) -> tuple[float, int, frozenset[int]]:
        with contained():
            return self.describe(self.module)

    @property
    def cutoff(self) -> float:
        """Å."""
        return self._about[0]

    @property
    def size(self) -> int:
        """Number of features."""
        return self._about[1]

    @property
    def elements(self) -> frozenset[int]:
        """Atomic numbers."""
        return self._about[2]

    def evaluate(self, graph: Graph) -> FloatArray:
        """Features, (N, F)."""
        module = self.module
        with contained(len(graph)) as torch, torch.no_grad():
            values = self.features(torch, module, graph, torch.from_numpy(graph.vectors.copy()))
            return np.array(values.numpy())

    def record(self, graph: Graph) -> TorchTape:
        """Features with derivatives."""
        module = self.module
        with contained(len(graph)) as torch:
            vectors = torch.from_numpy(graph.vectors.copy()).requires_grad_(True)
            return TorchTape(self, graph, vectors, self.features(torch, module, graph, vectors))

    def batched(self, torch: Any, outputs: Any, inputs: Any, given: FloatArray) -> FloatArray:
        """Σ given_b · ∂outputs/∂inputs for all b at once; one by one where an operation cannot be batched."""

        def gradient(along: Any, *, together: bool) -> Any:
            return torch.autograd.grad(
                outputs,
                inputs,
                along,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
                is_grads_batched=together,
            )[0]

        along = torch.from_numpy(np.ascontiguousarray(given))
        if len(given) > 1 and not self._loops:
            try:
                return np.array(gradient(along, together=True).detach().numpy())
            except RuntimeError:
                self._loops = True
        return np.stack([gradient(own, together=False).detach().numpy() for own in along])


class TorchTape:
    """One evaluation of a network, with the graph of its operations.

    Parameters
    ----------
    network : TorchNetwork
    graph : Graph
    vectors, features : tensors
        What was varied, and what came out.
    """

    def __init__(self, network: TorchNetwork, graph: Graph, vectors: Any, features: Any) -> None:
        self.network = network
        self.graph = graph
        self._vectors = vectors
        self._features = features
        self._transposed: tuple[Any, Any] | None = None
        self.values: FloatArray = np.array(features.detach().numpy())

    def pull(self, gradients: FloatArray) -> FloatArray:
        """Vector–Jacobian products, (B, P, 3)."""
        if not self._features.requires_grad:  # an atom without neighbours
            return np.zeros((len(gradients), *self.graph.vectors.shape))
        with contained(len(self.graph)) as torch:
            return self.network.batched(torch, self._features, self._vectors, gradients)

    def push(self, tangents: FloatArray) -> FloatArray:
        """Jacobian–vector products, (B, N, F): the transpose of the vector–Jacobian product, which is linear."""
        if not self._features.requires_grad:
            return np.zeros((len(tangents), *self.values.shape))
        with contained(len(self.graph)) as torch:
            if self._transposed is None:
                seed = torch.zeros_like(self._features).requires_grad_(True)
                (pulled,) = torch.autograd.grad(
                    self._features, self._vectors, seed, create_graph=True, materialize_grads=True
                )
                self._transposed = pulled, seed
            pulled, seed = self._transposed
            return self.network.batched(torch, pulled, seed, tangents)


__all__ = ["TorchNetwork", "TorchTape"]
