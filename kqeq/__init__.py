"""kqeq: kernel charge equilibration for computational chemistry.

    model = kqeq.KQEq().fit(frames)
    prediction = model.predict(atoms, total_charge=+1, external_field=(0, 0, 0.1))
    atoms.calc = kqeq.KQEqCalculator(model, total_charge=+1)

Names are loaded when they are first used, so that ``import kqeq`` stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kqeq._moved import install
from kqeq._version import __version__ as __version__

if TYPE_CHECKING:
    from kqeq import analysis, baselines, datasets, errors
    from kqeq.analysis import plots
    from kqeq.backend import devices
    from kqeq.calculator import KQEqCalculator
    from kqeq.charges import ACKS2, AtomicDipoles, LatentCharges, QEq
    from kqeq.descriptors.networks import NetworkFeatures
    from kqeq.fitting.rows.cache import DiskCache
    from kqeq.frames.external_charges import ExternalCharges
    from kqeq.frames.grouping import groups
    from kqeq.frames.outputs import read
    from kqeq.frames.splits import split
    from kqeq.io.progress import show_progress
    from kqeq.kernels.charge_kernel import ChargeKernel
    from kqeq.kernels.settings import NetworkKernel, SOAPKernel
    from kqeq.model.choice import choose_charge_from, compare
    from kqeq.model.estimator import KQEq
    from kqeq.model.estimator import load_model as load
    from kqeq.potential.prediction import Prediction
    from kqeq.uncertainty.selection import select

_NAMES: dict[str, tuple[str, str | None]] = {
    "ACKS2": ("kqeq.charges", "ACKS2"),
    "AtomicDipoles": ("kqeq.charges", "AtomicDipoles"),
    "LatentCharges": ("kqeq.charges", "LatentCharges"),
    "ChargeKernel": ("kqeq.kernels.charge_kernel", "ChargeKernel"),
    "DiskCache": ("kqeq.fitting.rows.cache", "DiskCache"),
    "ExternalCharges": ("kqeq.frames.external_charges", "ExternalCharges"),
    "KQEq": ("kqeq.model.estimator", "KQEq"),
    "KQEqCalculator": ("kqeq.calculator", "KQEqCalculator"),
    "NetworkFeatures": ("kqeq.descriptors.networks", "NetworkFeatures"),
    "NetworkKernel": ("kqeq.kernels.settings", "NetworkKernel"),
    "Prediction": ("kqeq.potential.prediction", "Prediction"),
    "QEq": ("kqeq.charges", "QEq"),
    "SOAPKernel": ("kqeq.kernels.settings", "SOAPKernel"),
    "analysis": ("kqeq.analysis", None),
    "baselines": ("kqeq.baselines", None),
    "choose_charge_from": ("kqeq.model.choice", "choose_charge_from"),
    "compare": ("kqeq.model.choice", "compare"),
    "datasets": ("kqeq.datasets", None),
    "devices": ("kqeq.backend.devices", None),
    "errors": ("kqeq.errors", None),
    "groups": ("kqeq.frames.grouping", "groups"),
    "load": ("kqeq.model.estimator", "load_model"),
    "read": ("kqeq.frames.outputs", "read"),
    "plots": ("kqeq.analysis.plots", None),
    "select": ("kqeq.uncertainty.selection", "select"),
    "show_progress": ("kqeq.io.progress", "show_progress"),
    "split": ("kqeq.frames.splits", "split"),
}

__all__ = [
    "ACKS2",
    "AtomicDipoles",
    "ChargeKernel",
    "DiskCache",
    "ExternalCharges",
    "KQEq",
    "KQEqCalculator",
    "LatentCharges",
    "NetworkFeatures",
    "NetworkKernel",
    "Prediction",
    "QEq",
    "SOAPKernel",
    "analysis",
    "baselines",
    "choose_charge_from",
    "compare",
    "datasets",
    "devices",
    "errors",
    "groups",
    "load",
    "plots",
    "read",
    "select",
    "show_progress",
    "split",
]

install()


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'kqeq' has no attribute {name!r}")
    module, attribute = _NAMES[name]
    value = import_module(module)
    if attribute is not None:
        value = getattr(value, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
