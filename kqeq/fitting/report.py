"""What a fit used, ignored and reached."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kqeq.fitting.least_squares.solver import Iteration

NAMES = {"cholesky": "Cholesky", "qr": "QR"}
"""What the ways to solve the linear problem are called in tables."""


@dataclass(frozen=True)
class FitReport:
    """What a fit used, ignored and reached.

    Attributes
    ----------
    n_frames, n_atoms, n_parameters, n_residuals : int
    used : dict of str to int
        Frames with each fitted label kind.
    ignored : dict of str to str
        Label kinds that the frames carry and the fit left out, with the reason.
    representatives : dict of str to dict
        Number of representatives by kernel and element symbol.
    iterations : tuple of Iteration
    converged : bool
    loss : float
    seconds : float
    notes : tuple of str
    learned : dict of str to dict
        Element parameters that were learned, such as ``hardness O``: ``default``, ``value`` (in the units that users
        give them in) and ``error``, the relative standard deviation.
    errors : dict of str to dict
        Errors on frames that were looked at after the fit, by what they were (``"validation"``): for every quantity
        ``rmse``, ``mae``, ``unit`` and ``n``.
    """

    n_frames: int
    n_atoms: int
    n_parameters: int
    n_residuals: int
    used: dict[str, int]
    ignored: dict[str, str]
    representatives: dict[str, dict[str, int]]
    iterations: tuple[Iteration, ...]
    converged: bool
    loss: float
    seconds: float
    notes: tuple[str, ...]
    learned: dict[str, dict[str, float]] = field(default_factory=dict)
    errors: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def __str__(self) -> str:
        used = ", ".join(f"{kind} ({n} frames)" for kind, n in self.used.items())
        lines = [
            f"{self.n_frames} frames, {self.n_atoms} atoms; {self.n_residuals} labels, {self.n_parameters} parameters",
            f"labels used: {used}",
        ]
        reasons: dict[str, list[str]] = {}
        for kind, reason in self.ignored.items():
            reasons.setdefault(reason, []).append(kind)
        lines += [f"labels ignored: {', '.join(kinds)} ({reason})" for reason, kinds in reasons.items()]
        for name, counts in self.representatives.items():
            lines.append(f"{name} representatives: " + ", ".join(f"{z} {n}" for z, n in counts.items()))
        if self.learned:
            lines.append("learned             default      value   relative error")
            lines += [
                f"  {name:16s} {row['default']:9.4g}  {row['value']:9.4g}   {row['error']:9.2g}"
                for name, row in self.learned.items()
            ]
        lines += list(self.notes)
        lines.append(" iteration          loss   promised drop   damping  condition  solved by")
        lines += [
            f"{it.number:10d} {it.loss:13.6g} {it.decrement:15.3g} {it.damping:9.1e}  {it.condition:9.1e}  "
            f"{NAMES.get(it.method, it.method)}{'' if it.accepted else '  no step'}"
            for it in self.iterations
        ]
        lines.append(
            f"{'converged' if self.converged else 'NOT CONVERGED'}, loss {self.loss:.6g}, {self.seconds:.1f} s"
        )
        return "\n".join(lines)


__all__ = ["FitReport"]
