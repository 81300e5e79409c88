"""Old paths of public modules, for one release: importing one warns and gives the module where it is now."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "kqeq.baseline": "kqeq.baselines",
    "kqeq.charge_kernel": "kqeq.kernels.charge_kernel",
    "kqeq.config": "kqeq.model.config",
    "kqeq.devices": "kqeq.backend.devices",
    "kqeq.estimator": "kqeq.model.estimator",
    "kqeq.fitting.cache": "kqeq.fitting.rows.cache",
    "kqeq.fitting.features": "kqeq.fitting.rows.features",
    "kqeq.fitting.hyperparameters": "kqeq.fitting.evidence.hyperparameters",
    "kqeq.labels": "kqeq.frames.labels",
    "kqeq.neighbours": "kqeq.frames.neighbours",
    "kqeq.optimise": "kqeq.analysis.optimization",
    "kqeq.plots": "kqeq.analysis.plots",
    "kqeq.remainder": "kqeq.uncertainty.remainder",
    "kqeq.selection": "kqeq.uncertainty.selection",
    "kqeq.site_data": "kqeq.frames.site_data",
    "kqeq.storage": "kqeq.model.estimator",
    "kqeq.structures": "kqeq.frames.structures",
}
"""Modules that the documentation of version 0.1 names."""


class _MovedLoader(Loader):
    def exec_module(self, module: ModuleType) -> None:
        new = MOVED[module.__name__]
        warnings.warn(
            f"{module.__name__} is now {new}; the old path goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        sys.modules[module.__name__] = import_module(new)


class _MovedFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, _MovedLoader()) if fullname in MOVED else None


def install() -> None:
    """Let ``import`` find the old paths, once, after everything that exists."""
    if not any(isinstance(finder, _MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(_MovedFinder())


__all__ = ["MOVED", "install"]
