"""kqeq: kernel charge equilibration for computational chemistry.

    model = kqeq.KQEq().fit(frames)
    prediction = model.predict(atoms, total_charge=+1, external_field=(0, 0, 0.1))
    atoms.calc = kqeq.KQEqCalculator(model, total_charge=+1)

Names are loaded when they are first used, so that ``import kqeq`` stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kqeq import analysis, baselines, datasets, errors
    from kqeq.calculator import KQEqCalculator
    from kqeq.charge_kernel import ChargeKernel
    from kqeq.charges import ACKS2, AtomicDipoles, QEq
    from kqeq.choice import choose_charge_from
    from kqeq.estimator import KQEq
    from kqeq.fitting.cache import DiskCache
    from kqeq.kernels import SOAPKernel
    from kqeq.potential import Prediction
    from kqeq.selection import select
    from kqeq.storage import load_model as load

_NAMES: dict[str, tuple[str, str | None]] = {
    "ACKS2": ("kqeq.charges", "ACKS2"),
    "AtomicDipoles": ("kqeq.charges", "AtomicDipoles"),
    "ChargeKernel": ("kqeq.charge_kernel", "ChargeKernel"),
    "DiskCache": ("kqeq.fitting.cache", "DiskCache"),
    "KQEq": ("kqeq.estimator", "KQEq"),
    "KQEqCalculator": ("kqeq.calculator", "KQEqCalculator"),
    "Prediction": ("kqeq.potential", "Prediction"),
    "QEq": ("kqeq.charges", "QEq"),
    "SOAPKernel": ("kqeq.kernels", "SOAPKernel"),
    "analysis": ("kqeq.analysis", None),
    "baselines": ("kqeq.baselines", None),
    "choose_charge_from": ("kqeq.choice", "choose_charge_from"),
    "datasets": ("kqeq.datasets", None),
    "errors": ("kqeq.errors", None),
    "load": ("kqeq.storage", "load_model"),
    "select": ("kqeq.selection", "select"),
}

__all__ = [
    "ACKS2",
    "AtomicDipoles",
    "ChargeKernel",
    "DiskCache",
    "KQEq",
    "KQEqCalculator",
    "Prediction",
    "QEq",
    "SOAPKernel",
    "analysis",
    "baselines",
    "choose_charge_from",
    "datasets",
    "errors",
    "load",
    "select",
]


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
