"""A potential against labelled frames: errors, and whether they are what its uncertainties say."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ase import Atoms

from kqeq.backend import CPU, Device
from kqeq.baselines.store import stored
from kqeq.errors import InputError, LabelWarning, warn
from kqeq.fitting.dipole_origin import other_origin
from kqeq.fitting.metrics import Evaluation, compare
from kqeq.frames.external_charges import read_external_charges
from kqeq.frames.labels import LABEL_KINDS, Labels
from kqeq.frames.structures import Structure, as_frames, describe, read_structure
from kqeq.io.progress import track
from kqeq.potential.potential import Potential, Prediction
from kqeq.typing import FloatArray
from kqeq.uncertainty.posterior import Posterior, with_uncertainty


def read_structures(
    potential: Potential,
    frames: Atoms | Sequence[Atoms],
    *,
    total_charge: float | None = None,
    external_field: Any = None,
    external_charges: Any = None,
    prefix: str = "",
) -> list[Structure]:
    """Validated structures that a potential can predict.

    Raises
    ------
    InputError, UnsupportedError
        For frames that are broken, or that the potential cannot predict.
    """
    structures = []
    external_charges = read_external_charges(external_charges)  # once for all
    for i, atoms in enumerate(as_frames(frames)):
        index = None if isinstance(frames, Atoms) else i
        structure = read_structure(
            atoms,
            total_charge=total_charge,
            external_field=external_field,
            index=index,
            prefix=prefix,
            external_charges=external_charges,
        )
        potential.check(structure, describe(atoms, index))
        structures.append(structure)
    return structures


class Watch:
    """Adds up how long something takes to produce its items."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def over(self, items: Iterable[Prediction]) -> Iterator[Prediction]:
        """The same items."""
        remaining = iter(items)
        while True:
            started = time.perf_counter()
            try:
                item = next(remaining)
            except StopIteration:
                return
            finally:
                self.seconds += time.perf_counter() - started
            yield item


def evaluate_pairs(
    potential: Potential,
    pairs: Sequence[tuple[Structure, Labels]],
    posterior: Posterior | None = None,
    *,
    label_prefix: str = "",
    device: Device = CPU,
    keep: Callable[[tuple[Structure, Labels, Prediction]], None] | None = None,
) -> Evaluation:
    """Errors of every quantity that frames and potential share.

    Parameters
    ----------
    potential : Potential
    pairs : sequence of (Structure, Labels)
    posterior : Posterior, optional
        Compares errors with the uncertainties that it predicts.
    label_prefix : str
        Prefix that labels were looked for with; for messages.
    device : Device
        Where to predict.
    keep : callable, optional
        Gets structure, labels and prediction of every frame, in order.

    Raises
    ------
    InputError
        If no frame carries a label, or for structures that the potential cannot predict.
    UnsupportedError
        For structures that the charge model cannot treat.
    """
    wanted = {kind for _, labels in pairs for kind in labels.kinds}
    if not wanted:
        raise InputError(
            f"none of the {len(pairs)} frames carries a label; looked for {', '.join(LABEL_KINDS)} in atoms.info, "
            f'atoms.arrays and single-point results (label_prefix="{label_prefix}")'
        )
    skipped = {}
    if not potential.has_energy:
        reason = "the model was fitted without energies and forces"
        skipped = dict.fromkeys(("energy", "forces", "stress"), reason)
    for i, (structure, _) in enumerate(pairs):
        potential.check(structure, f"frame {i}")
    watch = Watch()
    kept = replace(potential, baseline=stored(potential.baseline))
    predictions = watch.over(kept.predict_many([structure for structure, _ in pairs], wanted, device=device))
    if posterior is not None:
        known = posterior
        predictions = (
            with_uncertainty(prediction, known, structure, wanted, potential.baseline)
            for prediction, (structure, _) in zip(predictions, pairs, strict=True)
        )
    ions: list[tuple[Structure, FloatArray, FloatArray]] = []
    open_ones: list[tuple[Structure, Prediction]] = []

    def triples() -> Iterator[tuple[Structure, Labels, Prediction]]:
        tracked = track(predictions, "evaluate", total=len(pairs))
        for (structure, labels), prediction in zip(pairs, tracked, strict=True):
            ion = structure.total_charge and not structure.periodic
            if ion and labels.dipole is not None and prediction.dipole is not None:
                ions.append((structure, labels.dipole, prediction.dipole))
            if prediction.undetermined and "energy" in labels.kinds:
                open_ones.append((structure, prediction))
            if keep is not None:
                keep((structure, labels, prediction))
            yield structure, labels, prediction

    atoms = sum(len(structure) for structure, _ in pairs)
    evaluation = compare(
        triples(),
        skipped,
        None if posterior is None else posterior.label_noise,
        lambda: 1e3 * watch.seconds / atoms,
    )
    potential.warn_if_undetermined([s for s, _ in open_ones], [p for _, p in open_ones])
    origin = other_origin(ions)
    if origin is not None:
        warn(origin, LabelWarning)
    return evaluation


__all__ = ["evaluate_pairs", "read_structures"]
