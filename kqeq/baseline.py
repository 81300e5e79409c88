"""The place of :mod:`kqeq.baselines` in version 0.1, for code that imports from it."""

from kqeq.baselines import ZBL, Baseline, CalculatorBaseline, resolve_baseline

__all__ = ["ZBL", "Baseline", "CalculatorBaseline", "resolve_baseline"]
