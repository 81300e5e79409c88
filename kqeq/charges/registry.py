"""Charge models by name, for configuration files and model files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kqeq.charges.acks2 import ACKS2
from kqeq.charges.atomic_dipoles import AtomicDipoles
from kqeq.charges.base import ChargeModel
from kqeq.charges.latent import LatentCharges
from kqeq.charges.qeq import QEq
from kqeq.errors import InputError

_MODELS: dict[str, type[Any]] = {
    "ACKS2": ACKS2,
    "AtomicDipoles": AtomicDipoles,
    "LatentCharges": LatentCharges,
    "QEq": QEq,
}


def charge_model_from_dict(data: Mapping[str, Any]) -> ChargeModel:
    """Build a charge model from what its ``to_dict`` returned, or from a configuration table.

    Raises
    ------
    InputError
        For an unknown model or unknown parameters.
    """
    options = dict(data)
    name = options.pop("model", "QEq")
    if name not in _MODELS:
        raise InputError(f"unknown charge model {name!r}; expected one of {', '.join(sorted(_MODELS))}")
    if isinstance(options.get("inner"), Mapping):
        options["inner"] = charge_model_from_dict(options["inner"])
    try:
        model: ChargeModel = _MODELS[name](**options)
    except TypeError as error:
        raise InputError(f"charge model {name}: {error}") from None
    return model


__all__ = ["charge_model_from_dict"]
