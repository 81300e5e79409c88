"""A potential against labelled frames: errors, and whether they are what its uncertainties say."""

from __future__ import annotations

from collections.abc import Sequence

from kqeq.errors import InputError
from kqeq.fitting.metrics import Evaluation, compare
from kqeq.labels import LABEL_KINDS, Labels
from kqeq.potential import Potential
from kqeq.progress import track
from kqeq.structures import Structure
from kqeq.uncertainty import AnyPosterior, with_uncertainty


def evaluate_pairs(
    potential: Potential,
    pairs: Sequence[tuple[Structure, Labels]],
    posterior: AnyPosterior | None = None,
    *,
    label_prefix: str = "",
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
    predictions = potential.predict_many([structure for structure, _ in pairs], wanted)
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


__all__ = ["evaluate_pairs"]
