"""A potential against labelled frames."""

from __future__ import annotations

from collections.abc import Sequence

from kqeq.backend import CPU, Device
from kqeq.fitting.metrics import Evaluation, compare
from kqeq.labels import Labels
from kqeq.potential import Potential
from kqeq.progress import track
from kqeq.structures import Structure
from kqeq.uncertainty import Posterior, with_uncertainty


def evaluate_potential(
    potential: Potential,
    pairs: Sequence[tuple[Structure, Labels]],
    posterior: Posterior | None = None,
    device: Device = CPU,
) -> Evaluation:
    """Errors of every quantity that labels and model share, in one pass over the frames.

    Parameters
    ----------
    potential : Potential
    pairs : sequence of (Structure, Labels)
    posterior : Posterior, optional
        To compare errors with predicted uncertainties.
    device : Device

    Raises
    ------
    InputError, UnsupportedError
        For frames that the model cannot predict.
    """
    skipped = {}
    if not potential.has_energy:
        reason = "the model was fitted without energies and forces"
        skipped = dict.fromkeys(("energy", "forces", "stress"), reason)
    for i, (structure, _) in enumerate(pairs):
        potential.check(structure, f"frame {i}")
    wanted = {kind for _, labels in pairs for kind in labels.kinds}
    predictions = potential.predict_many([structure for structure, _ in pairs], wanted, device=device)
    if posterior is not None:
        known = posterior
        predictions = (
            with_uncertainty(prediction, known, structure, wanted)
            for prediction, (structure, _) in zip(predictions, pairs, strict=True)
        )
    triples = (
        (structure, labels, prediction)
        for (structure, labels), prediction in zip(
            pairs, track(predictions, "evaluate", total=len(pairs)), strict=True
        )
    )
    return compare(triples, skipped, None if posterior is None else posterior.noise)


__all__ = ["evaluate_potential"]
