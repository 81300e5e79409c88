"""Which labels are fitted, and what is subtracted from them first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np
from ase import units
from ase.data import atomic_numbers, chemical_symbols

from kqeq import elements
from kqeq.baselines import Capabilities
from kqeq.charges.boundaries import open_components
from kqeq.errors import InputError
from kqeq.fitting.rows.blocks import BLOCKS
from kqeq.fitting.rows.features import TrainingFrame
from kqeq.fitting.settings import FitSettings
from kqeq.frames.labels import LABEL_KINDS, Labels
from kqeq.frames.structures import Structure
from kqeq.typing import FloatArray, IntArray


def why_not(kind: str, knows: Capabilities) -> str | None:
    """Why a label cannot be fitted on top of a baseline with these capabilities; ``None`` if it can."""
    if kind == "dipole" and knows.holds_charge and not knows.dipole:
        return "the baseline holds the total charge and gives no dipole"
    if kind == "charges" and knows.holds_charge and not knows.charges:
        return "the baseline holds the total charge and gives no charges of atoms"
    if kind == "born_charges" and (knows.holds_charge or knows.dipole):
        return "the Born charges of the baseline itself are not known"
    if kind == "polarizability" and (knows.holds_charge or knows.dipole) and not knows.field:
        return "the response of the baseline to a field is not known"
    return None


def choose_labels(
    pairs: Sequence[tuple[Structure, Labels]], settings: FitSettings
) -> tuple[list[TrainingFrame], dict[str, int], dict[str, str]]:
    """Keep the labels to fit; say which are used and which are ignored, and why.

    Raises
    ------
    InputError
        For targets that no frame carries, and for frames that carry no label to fit.
    """
    used: Counter[str] = Counter()
    ignored: dict[str, str] = {}
    frames: list[TrainingFrame] = []
    for index, (structure, labels) in enumerate(pairs):
        reasons = {kind: _whole_set(kind, settings) or _one_frame(kind, structure) for kind in labels.kinds}
        dropped = {kind: why for kind, why in reasons.items() if why is not None}
        ignored.update(dropped)
        nothing: dict[str, Any] = dict.fromkeys(dropped)
        kept = replace(labels, **nothing)
        used.update(kept.kinds)
        frames.append(TrainingFrame(structure, kept, index))
    _check_targets(used, ignored, settings)
    _check_labelled(frames, ignored, settings)
    return frames, {kind: used[kind] for kind in LABEL_KINDS if used[kind]}, ignored


def _whole_set(kind: str, settings: FitSettings) -> str | None:
    """Why labels of a kind are not fitted by these settings; ``None`` if they are."""
    learning = settings.charges is not None and bool(settings.charges.to_learn)
    if kind == "polarizability" and not learning:
        return "electronegativities do not determine it; it is compared in evaluate"
    if settings.targets is not None and kind not in settings.targets:
        return "not among targets"
    if kind in ("dipole", "charges", "born_charges") and settings.charges is None:
        return "a model without charges cannot be fitted to it"
    if kind == "born_charges" and learning:
        return "element parameters are learned in this fit, and Born charges are fitted at given ones only"
    if kind == "charges" and settings.targets is None:
        return 'partition charges are fitted only on request: targets=[..., "charges"]'
    return None if settings.baseline is None else why_not(kind, settings.baseline.capabilities)


_NOT_PERIODIC = {
    "polarizability": "element parameters are learned from the polarizabilities of isolated systems",
}
"""Labels that periodic frames have none of, and why."""


def _one_frame(kind: str, structure: Structure) -> str | None:
    """Why a label is not fitted in this frame; ``None`` if it is."""
    if kind == "stress" and not structure.pbc.all():
        return "only cells that are periodic in three directions have a stress"
    if kind in ("dipole", "born_charges") and len(open_components(structure)) == 0:
        what = "the dipole depends" if kind == "dipole" else "Born charges of charge models depend"
        return f"in a cell that is periodic in three directions {what} on the choice of images of its atoms"
    return _NOT_PERIODIC.get(kind) if structure.periodic else None


def _check_targets(used: Mapping[str, int], ignored: Mapping[str, str], settings: FitSettings) -> None:
    """Refuse targets that no frame carries."""
    missing = [kind for kind in settings.targets or () if not used.get(kind)]
    if not missing:
        return
    why = "".join(f"; their {kind} was ignored: {ignored[kind]}" for kind in missing if kind in ignored)
    if "charges" in missing:
        why += '; name the array of partition charges with charges_key, for example charges_key="hirshfeld"'
    raise InputError(f"targets asks for {', '.join(missing)}, but no frame carries it{why}")


def _check_labelled(
    frames: Sequence[TrainingFrame], ignored: Mapping[str, str], settings: FitSettings
) -> None:
    """Refuse frames without a label to fit, and a search where no frame has a weight."""
    if settings.optimize is not None and not any(frame.labels.weight > 0.0 for frame in frames):
        raise InputError(
            f'all {len(frames)} frames have weight 0, so nothing tells noises and spreads; remove atoms.info["weight"] '
            "(or sample_weight) from those that should count, or give them a positive number"
        )
    unlabelled = [frame.index for frame in frames if not frame.labels.kinds]
    if not unlabelled:
        return
    names = ", ".join(str(i) for i in unlabelled[:5]) + (" ..." if len(unlabelled) > 5 else "")
    looked = ", ".join(settings.targets or [k for k in BLOCKS if _whole_set(k, settings) is None])
    why = "".join(f"; their {kind} was ignored: {text}" for kind, text in ignored.items())
    raise InputError(
        f"{len(unlabelled)} of {len(frames)} frames have no usable label (frames {names}); looked for {looked} "
        f"in atoms.info, atoms.arrays and single-point results. Remove the frames, or name the labels with "
        f'label_prefix="REF_"{why}'
    )


CHARGE_SPREAD = 15.0
"""How much energy the first charge may cost (ionization energies are 5 to 15 eV), eV/e."""

GUESS_SPREAD = 0.5
"""Prior spread of element energies that compositions leave open, relative to the guess."""


def energy_offsets(
    frames: Sequence[TrainingFrame],
    species: tuple[int, ...],
    given: Mapping[int, float] | None,
    *,
    charged: bool,
) -> tuple[dict[int, float], dict[int, float]]:
    """Element energies: given, or the least-squares composition fit.

    Compositions may leave a part of them open (all frames multiples of one composition).  That part is taken from a guess
    of how elements share an energy (:func:`_guess`), which least squares corrects by as little as compositions ask
    for, in units of how far it may be off; the minimum-norm solution would put most of the energy of water into hydrogen.
    Where charge goes along with composition, element energies may be off by what :data:`CHARGE_SPREAD` is in terms of
    compositions.

    Parameters
    ----------
    frames : sequence of TrainingFrame
    species : tuple of int
    given : mapping of int to float, optional
    charged : bool
        Whether the total charge acts on the model: then the guess leaves to it what goes along with charge.

    Returns
    -------
    mean, spread : dict of int to float
        Energies by element, eV, and, where a part is open, how far they may be off.

    Raises
    ------
    InputError
        For elements that are missing among those given.
    """
    if given is not None:
        missing = [chemical_symbols[z] for z in species if z not in given]
        if missing:
            raise InputError(
                f"e0 lacks {', '.join(missing)}; give an energy (eV) for every element, or e0=None"
            )
        return {z: float(given[z]) for z in species}, {}
    counts = compositions(frames, species)
    if not len(counts):
        return dict.fromkeys(species, 0.0), {}
    energies = [frame.labels.energy for frame in frames if frame.labels.energy is not None]
    per_atom = counts.sum(axis=1)
    matrix, values = counts / per_atom[:, None], np.array(energies) / per_atom
    solution, _, rank, _ = np.linalg.lstsq(matrix, values, rcond=1e-8)
    open_part = np.zeros(len(species))
    beside = matrix
    if charged:
        charges = [frame.structure.total_charge for frame in frames if frame.labels.energy is not None]
        total = np.array(charges) / per_atom
        along = np.linalg.lstsq(matrix, total, rcond=1e-8)[0]
        if np.allclose(matrix @ along, total, rtol=0.0, atol=1e-8):
            open_part = CHARGE_SPREAD * np.abs(along)
        beside = np.column_stack([matrix, CHARGE_SPREAD * total])
    if rank < len(species):
        guess = _guess(matrix, values, np.array(species))
        open_part = np.maximum(open_part, GUESS_SPREAD * np.abs(guess))
        scale = np.append(np.maximum(open_part, 1.0), np.ones(beside.shape[1] - len(species)))
        rest = np.linalg.lstsq(beside * scale, values - matrix @ guess, rcond=1e-8)[0]
        solution = guess + (scale * rest)[: len(species)]
    spread = dict(zip(species, map(float, open_part), strict=True)) if open_part.any() else {}
    return dict(zip(species, map(float, solution), strict=True)), spread


def compositions(frames: Sequence[TrainingFrame], species: Sequence[int]) -> FloatArray:
    """Numbers of atoms of each element, of the frames with energies, (n, Z)."""
    rows = [
        [np.count_nonzero(frame.structure.numbers == z) for z in species]
        for frame in frames
        if frame.labels.energy is not None
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, len(species))


def held_covariance(frames: Sequence[TrainingFrame], offsets: Mapping[int, float]) -> FloatArray:
    """What means of elements may be off by where their energies are given, (Z, Z), eV².

    Kernels account for binding.  Per atom it may be another for other compositions, by as much as it is in the frames.
    """
    counts = compositions(frames, list(offsets))
    energies = [frame.labels.energy for frame in frames if frame.labels.energy is not None]
    bound = (np.array(energies) - counts @ np.array(list(offsets.values()))) / counts.sum(axis=1)
    spread = float(np.mean(bound**2)) if len(bound) else 0.0
    return conditioned(spread * np.eye(len(offsets)), counts)


def conditioned(covariance: FloatArray, counts: FloatArray) -> FloatArray:
    """A covariance of element energies (Z, Z) once the energies of some compositions (n, Z) are known."""
    across = covariance @ counts.T
    inner = np.linalg.pinv(counts @ across, rcond=1e-10, hermitian=True)
    found = covariance - across @ inner @ across.T
    return np.asarray(0.5 * (found + found.T))


THOMAS_FERMI = 0.768745 * units.Hartree
"""Energy of a neutral atom over Z^(7/3) in Thomas-Fermi theory (Lieb & Simon 1977, *Adv. Math.* 23, 22), eV."""

ALL_ELECTRON = (0.6, 1.2)
"""Energies within these multiples of the Thomas-Fermi energy are those of all electrons (H to Ag: 0.75 to 0.87)."""

VALENCE_POWER = 1.5
"""Energies of valence electrons grow with about this power of their number (GFN2-xTB 1.2, pseudopotentials 2)."""


def _guess(matrix: FloatArray, values: FloatArray, species: IntArray) -> FloatArray:
    """Energies of elements in the proportion of atoms, scaled to energies per atom (rows of compositions)."""
    shares = species ** (7.0 / 3.0)
    ratio = -np.median(values / (matrix @ shares)) / THOMAS_FERMI
    if not ALL_ELECTRON[0] <= ratio <= ALL_ELECTRON[1]:
        shares = elements.valence_electrons(species) ** VALENCE_POWER
    total = matrix @ shares
    return np.asarray(float(total @ values) / float(total @ total) * shares)


def element_energies(e0: Any) -> dict[int, float]:
    """Validate energies by element symbol and key them by atomic number."""
    if not isinstance(e0, Mapping):
        raise InputError(f"e0 is {e0!r}; expected a dict of energies (eV) by element symbol, or None")
    bad = [symbol for symbol in e0 if symbol not in atomic_numbers]
    if bad:
        raise InputError(f"e0 names {bad}, which are no element symbols")
    for symbol, value in e0.items():
        if not isinstance(value, Real) or not np.isfinite(float(value)):
            raise InputError(f'e0["{symbol}"] is {value!r}; expected one finite energy in eV')
    return {atomic_numbers[symbol]: float(value) for symbol, value in e0.items()}


__all__ = [
    "choose_labels",
    "compositions",
    "conditioned",
    "element_energies",
    "energy_offsets",
    "held_covariance",
    "why_not",
]
