"""SO3LR below a model: ``baseline="so3lr"``, a trained network for molecules and ions with long-range forces.

Holds the total charge, gives charges and a dipole; open and periodic.  Needs the extra ``so3lr``; the weights come with
its package.  Features of the same network for kernels: :class:`kqeq.NetworkKernel`.

The network has no response to fields: in a field F its energy is taken as E − μ·F with its own dipole μ = Σ q_i r_i, and
derivatives follow.

Kabylda, Frank, Suárez-Dou, Khabibrakhmanov, Medrano Sandonas, Unke, Chmiela, Müller & Tkatchenko 2025,
*J. Am. Chem. Soc.* 147, 33723.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from kqeq.backend.pytorch import contained, file_digest, installed, quiet
from kqeq.baselines.differences import with_extras
from kqeq.baselines.protocol import Baseline, BaselineResult, Capabilities
from kqeq.errors import InputError, UnsupportedError
from kqeq.frames.neighbours import half_pairs
from kqeq.frames.structures import Structure

REACH = 12.0
"""Range of electrostatics and dispersion, Å, and ..."""

DAMPING = 2.0
"""... where dispersion fades out before it, Å: as in the calculator of the package."""

HEAVIEST = 99


@dataclass(frozen=True)
class SO3LR:
    """The network of the package ``so3krates-torch`` as baseline.

    Notes
    -----
    Total energies are those of PBE0 with many-body dispersion, which it was trained on.  It is evaluated in double
    precision.  A multiplicity of ``atoms.info["multiplicity"]`` (2S + 1) is passed on, otherwise it is that of a closed
    shell.
    """

    @property
    def name(self) -> str:
        """``"so3lr"``."""
        return "so3lr"

    @property
    def capabilities(self) -> Capabilities:
        """All but a response to fields."""
        return Capabilities(holds_charge=True, field=True, dipole=True, charges=True)

    def charge_held(self, structure: Structure) -> float:
        """The total charge."""
        return structure.total_charge

    def check(self, structure: Structure) -> None:
        """Refuse heavy elements, and fields along periodic directions."""
        if max(structure.species) > HEAVIEST:
            raise UnsupportedError(f'baseline "so3lr" knows the elements up to atomic number {HEAVIEST}')
        along = structure.cell[structure.pbc] @ structure.external_field
        if np.abs(along).max(initial=0.0) > 1e-8:
            raise UnsupportedError(
                'baseline "so3lr": a uniform field along a periodic direction has no energy per cell; remove the field, '
                "or the periodicity"
            )

    def evaluate(self, structure: Structure, extras: Collection[str] = ()) -> BaselineResult:
        """Energy, derivatives, dipole and charges; see :meth:`kqeq.baselines.Baseline.evaluate`.

        Raises
        ------
        UnsupportedError
            If the package is not installed.
        """
        self.check(structure)
        return with_extras(_point, structure, extras, self.capabilities)

    def session(self) -> Baseline:
        """Itself: nothing is iterated."""
        return self

    def describe(self) -> str:
        """Hash of the weights."""
        return f"so3lr {file_digest(_path(), 'so3lr')}"


def _path() -> Any:
    folder = installed("so3krates_torch", "so3krates-torch", "so3lr", "so3lr")
    return folder / "pretrained" / "so3lr" / "so3lr.model"


@lru_cache(maxsize=1)
def _module() -> Any:
    path = _path()
    with contained() as torch, quiet():
        module = torch.load(path, map_location="cpu", weights_only=False).double().eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    module.r_max_lr = REACH
    module.dispersion_energy_cutoff_lr_damping = DAMPING
    return module


def _point(structure: Structure) -> BaselineResult:
    module, n = _module(), len(structure)
    i, j, vectors = half_pairs(structure.positions, structure.cell, structure.pbc, REACH)
    centres = np.concatenate([i, j]).astype(np.int64)
    neighbours = np.concatenate([j, i]).astype(np.int64)
    vectors = np.concatenate([vectors, -vectors])
    short = np.flatnonzero(np.einsum("pa,pa->p", vectors, vectors) <= float(module.r_max) ** 2)
    unpaired = 0.0 if structure.multiplicity is None else structure.multiplicity - 1.0
    with contained(n) as torch:
        every = torch.from_numpy(vectors).requires_grad_(True)
        positions = torch.from_numpy(structure.positions.copy()).requires_grad_(True)
        index = torch.from_numpy(np.stack([centres, neighbours]))
        numbers = torch.from_numpy(np.asarray(structure.numbers, dtype=np.int64))
        one_hot = torch.zeros(n, int(module.num_elements))
        one_hot[torch.arange(n), numbers - 1] = 1.0
        data = {
            # all atoms at the origin: what the network takes for lattice vectors are the vectors between atoms
            "positions": torch.zeros(n, 3),
            "shifts": every[torch.from_numpy(short)],
            "unit_shifts": torch.zeros(len(short), 3),
            "edge_index": index[:, torch.from_numpy(short)],
            "edge_index_lr": index,
            "shifts_lr": every,
            "unit_shifts_lr": torch.zeros_like(every),
            "cell": torch.zeros(3, 3),
            "node_attrs": one_hot,
            "atomic_numbers": numbers,
            "batch": torch.zeros(n, dtype=torch.int64),
            "ptr": torch.tensor([0, n]),
            "head": torch.zeros(1, dtype=torch.int64),
            "total_charge": torch.tensor([float(structure.total_charge)]),
            "total_spin": torch.tensor([0.5 * unpaired]),
        }
        found = module(data, compute_force=False)
        charges = found["partial_charges"]
        dipole = charges @ positions
        energy = found["energy"].sum() - dipole @ torch.from_numpy(structure.external_field.copy())
        by_pairs, by_positions = torch.autograd.grad(
            energy, (every, positions), allow_unused=True, materialize_grads=True
        )
        pairs, own = by_pairs.numpy(), by_positions.numpy()
        result = float(energy), dipole.detach().numpy().copy(), charges.detach().numpy().copy()
    if not np.isfinite(result[0]):
        raise InputError('baseline "so3lr" returned an energy that is not finite; check the structure')
    gradient = own.copy()
    np.add.at(gradient, neighbours, pairs)
    np.subtract.at(gradient, centres, pairs)
    strain = vectors.T @ pairs + structure.positions.T @ own
    return BaselineResult(result[0], gradient, strain, None if structure.periodic else result[1], result[2])


__all__ = ["SO3LR"]
