"""What a diagnosis says of a baseline that holds charge or feels the field: what a model on top cannot repair."""

from __future__ import annotations

import numpy as np
from ase import Atoms

from kqeq.analysis.findings import FLAGGED, NOTE, OK, Finding
from kqeq.baselines.protocol import POLARIZABILITY
from kqeq.constants import COULOMB
from kqeq.errors import KQEqError
from kqeq.frames.labels import read_frame
from kqeq.frames.structures import Structure
from kqeq.potential.potential import Potential

MAX_EXCESS = 0.05
"""Excess of the baseline's polarizability in some direction, relative to the mean, that is tolerated."""


def baseline_findings(
    potential: Potential, atoms: Atoms | None, structure: Structure | None
) -> list[Finding]:
    """Findings about the baseline of a model, if it has one that knows charge or field.

    Parameters
    ----------
    potential : Potential
    atoms : ase.Atoms, optional
        A geometry; a polarizability label of it is compared with the baseline's.
    structure : Structure, optional
        The same, validated.
    """
    baseline = potential.baseline
    if baseline is None:
        return []
    knows, findings = baseline.capabilities, []
    if knows.holds_charge and potential.charge_kernel is None:
        text = (
            f"the baseline {baseline.name} is evaluated at the total charge, and the correction is the same for every "
            "charge state of a geometry: ionisation energies are the baseline's, but for a constant."
        )
        remedy = ""
        if len(potential.training_charges) > 1:
            remedy = (
                "the training frames have several charge states: let the correction see the charges "
                '(charge_aware=kqeq.ChargeKernel()), or the charge model carry the charge (charge_from="model")'
            )
        findings.append(Finding("charge states on the baseline", NOTE, None, None, "", text, remedy))
    if knows.field:
        findings.append(_polarisation(potential, atoms, structure))
    return findings


def _polarisation(potential: Potential, atoms: Atoms | None, structure: Structure | None) -> Finding:
    assert potential.baseline is not None
    name = "polarisation of the baseline"
    rule = (
        "charge equilibration on top can only add to the polarizability of the baseline: what the baseline exaggerates "
        "stays."
    )
    label = None if atoms is None else read_frame(atoms)[1].polarizability
    if structure is None or label is None or structure.periodic:
        text = rule + " Give a frame with a polarizability label, and it is compared with the baseline's."
        return Finding(name, NOTE, None, None, "", text)
    try:
        own = potential.baseline.evaluate(structure, (POLARIZABILITY,)).polarizability
    except KQEqError as error:
        return Finding(name, NOTE, None, None, "", f"{rule} The baseline failed for the frame: {error}")
    if own is None:
        return Finding(name, NOTE, None, None, "", rule)
    mean = float(np.trace(label)) / 3.0
    excess = float(np.linalg.eigvalsh(own - label)[-1])
    text = (
        f"mean polarizability {COULOMB * np.trace(own) / 3.0:.2f} Å³, the label {COULOMB * mean:.2f} Å³; the largest "
        f"excess in any direction is {COULOMB * excess:.2f} Å³. {rule}"
    )
    if excess <= MAX_EXCESS * mean:
        return Finding(name, OK, excess / mean, MAX_EXCESS, "of the mean", text)
    remedy = (
        "fit the response without this baseline (baseline=None, or one that feels no field), or take another baseline; "
        "dipoles and forces at the fields of the training frames can still be fitted"
    )
    return Finding(name, FLAGGED, excess / mean, MAX_EXCESS, "of the mean", text, remedy)


__all__ = ["MAX_EXCESS", "baseline_findings"]
