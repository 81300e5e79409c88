"""What a diagnosis consists of."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Annotated, ClassVar

from kqeq.analysis.dissociation import DissociationScan
from kqeq.analysis.novelty import Novelty
from kqeq.analysis.results import Result
from kqeq.typing import FloatArray, IntArray

OK, NOTE, FLAGGED, UNTESTED = "ok", "note", "FLAGGED", "not tested"
"""Verdicts."""


@dataclass(frozen=True, eq=False)
class Finding(Result):
    """One question and its answer.

    Attributes
    ----------
    name : str
    verdict : str
        One of "ok", "note", "FLAGGED", "not tested".
    value, limit : float or None
        What was measured, and the threshold of the verdict.
    unit : str
    text : str
        What was done and found.
    remedy : str
        What to switch on; empty where nothing is wrong.
    """

    name: str
    verdict: str
    value: float | None
    limit: float | None
    unit: str
    text: str
    remedy: str = ""


@dataclass(frozen=True, eq=False)
class ChainGrowth(Result):
    """Polarizability of growing chains.

    Attributes
    ----------
    name : str
        The units.
    units : (K,) int array
        Lengths n.
    polarizabilities : (K,) array
        Largest eigenvalue of α, Å³.
    exponents : (K − 1,) array
        d ln α / d ln n between neighbouring lengths.
    """

    name: str
    lengths: IntArray
    polarizabilities: Annotated[FloatArray, "Å³"]
    exponents: FloatArray
    rows: ClassVar[str] = "lengths"


@dataclass(frozen=True, eq=False)
class Diagnosis(Result):
    """All findings about a model, and the numbers behind them.

    Attributes
    ----------
    model : str
        Charge model and elements.
    findings : tuple of Finding
    growth : ChainGrowth or None
    dissociations : dict of str to DissociationScan
        By what was pulled apart.
    charges : (N,) array or None
        Of the geometry, e.
    charge_ranges : (N, 2) array or None
        Physical range of the charge of each of its atoms, e.
    novelty : Novelty or None
        Distances of its atoms to the training environments.
    bond_ranges : (N, 2) array or None
        What the bonds of its atoms explain of their charges, e.
    """

    model: str
    findings: tuple[Finding, ...]
    growth: ChainGrowth | None
    dissociations: dict[str, DissociationScan]
    charges: Annotated[FloatArray | None, "e"]
    charge_ranges: Annotated[FloatArray | None, "e"]
    novelty: Novelty | None
    bond_ranges: Annotated[FloatArray | None, "e"] = None
    rows: ClassVar[str] = "findings"

    @property
    def flagged(self) -> tuple[Finding, ...]:
        """The findings that ask for a remedy."""
        return tuple(finding for finding in self.findings if finding.verdict == FLAGGED)

    def __str__(self) -> str:
        lines = [f"diagnosis of {self.model}", ""]
        for finding in self.findings:
            lines.append(f"{finding.verdict:<11} {finding.name}")
            if finding.value is not None:
                limit = "" if finding.limit is None else f", accepted up to {finding.limit:.3g}"
                unit = f" {finding.unit}" if finding.unit else ""
                lines[-1] += f": {finding.value:.3g}{unit}{limit}"
            lines += [f"            {line}" for line in _wrapped(finding.text)]
            if finding.remedy:
                lines += [
                    f"            {'-> ' if i == 0 else '   '}{line}"
                    for i, line in enumerate(_wrapped(finding.remedy))
                ]
        count = len(self.flagged)
        lines += ["", "nothing flagged" if count == 0 else f"{count} of {len(self.findings)} flagged"]
        return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 96, break_long_words=False, break_on_hyphens=False)


__all__ = ["FLAGGED", "NOTE", "OK", "UNTESTED", "ChainGrowth", "Diagnosis", "Finding"]
