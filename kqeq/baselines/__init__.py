"""What is known before the fit."""

from __future__ import annotations

from kqeq.baselines.baseline import ZBL, Baseline, CalculatorBaseline, resolve_baseline

__all__ = ["ZBL", "Baseline", "CalculatorBaseline", "resolve_baseline"]
