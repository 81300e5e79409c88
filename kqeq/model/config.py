"""Settings of a model from a TOML file, under the names that :class:`kqeq.KQEq` uses.

    targets = ["energy", "forces", "dipole"]
    baseline = "gfn2"            # tight binding below the model; or "zbl", "gfn2+zbl", "d4:pbe0"
    charge_from = "baseline"     # it carries the total charge; "model" keeps it neutral

    [electronegativity]          # settings that are not named keep the defaults of this kernel
    r_cut = 4.5

    [[short_range]]              # several tables are kernels that are summed
    r_cut = 5.0

    [[short_range]]
    r_cut = 2.5
    sigma = 0.2
    n_representatives = 600

    [[short_range]]              # features of a trained network: "so3lr", "chgnet", "mace:FILE"
    network = "so3lr"
    zeta = 2

    [charges]
    model = "QEq"
    hardness = { O = 12.0 }      # eV/e²; elements that are not named take the cited defaults; or "learn", "kernel"

    [site_kernel]                # for parameters marked "kernel"; without it they share the electronegativity's
    delta = 0.2

    [charge_aware]               # lets the short-range energy see the charges
    order = 2
    scale = 0.5                  # e

    [noise]
    forces = 0.05

``electronegativity = false``, ``short_range = false`` and ``charges = false`` leave a part away (``None`` in Python), and
``optimize = false`` is one fit with the settings as they are; ``charges = "auto"`` compares charge models on left-out
frames and takes the best.  :func:`template` writes all of them.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
import tomllib
from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any

from kqeq.charges import QEq, charge_model_from_dict
from kqeq.errors import InputError
from kqeq.fitting.settings import RULES, check_noise
from kqeq.io.rules import NAME, instance, number, unknown_name
from kqeq.kernels.charge_kernel import ChargeKernel
from kqeq.kernels.settings import (
    AUTO,
    Kernel,
    NetworkKernel,
    default_electronegativity,
    default_short_range,
)
from kqeq.model.estimator import KQEq


def load_config(path: str | PathLike[str]) -> KQEq:
    """Build a model, not fitted yet, from a TOML file.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    KQEq

    Raises
    ------
    InputError
        If the file is missing, no valid TOML, or holds names or values that make no sense; the message names the file.
    """
    source = Path(path)
    try:
        data = tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the configuration {source}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"the configuration {source} is not valid TOML: {error}") from None
    try:
        return model_from_dict(data)
    except InputError as error:
        raise InputError(f"the configuration {source}: {error}") from None


def model_from_dict(data: Mapping[str, Any]) -> KQEq:
    """Build a model, not fitted yet, from plain data as a TOML file holds them.

    Raises
    ------
    InputError
        For unknown names, or values of the wrong type.
    """
    known = list(signature(KQEq).parameters)
    unknown = [name for name in data if name not in known]
    if unknown:
        raise unknown_name(unknown[0], known, "unknown setting")
    settings: dict[str, Any] = dict(data)
    kernels = {
        "electronegativity": default_electronegativity,
        "short_range": default_short_range,
        "site_kernel": default_electronegativity,
    }
    for name in kernels.keys() & settings.keys():
        settings[name] = _kernels(name, settings[name], kernels[name])
    if "charges" in settings and settings["charges"] != AUTO:
        settings["charges"] = _part("charges", settings["charges"], _charges)
    if "charge_aware" in settings:
        settings["charge_aware"] = _part("charge_aware", settings["charge_aware"], _charge_kernel)
    for name in ("noise", "e0"):
        if name in settings:
            settings[name] = _numbers(name, settings[name])
    if settings.get("optimize") is False:
        settings["optimize"] = None
    if "baseline" in settings:
        NAME.require(settings["baseline"], "baseline", 'for example "gfn2" or "zbl"')
    for name, rule in RULES.items():
        if name in settings and (name, settings[name]) != ("charges", AUTO):
            rule.require(settings[name], name)
    check_noise(settings.get("noise"))
    return KQEq(**settings)


def template(model: KQEq | None = None) -> str:
    """Every setting of a model as commented TOML; :func:`load_config` gives the same settings back.

    Parameters
    ----------
    model : KQEq, optional
        Whose settings to write; by default those of ``KQEq()``.

    Returns
    -------
    str

    Raises
    ------
    InputError
        For settings that no file can hold (an ASE calculator as baseline).
    """
    model = KQEq() if model is None else model
    plain: list[str] = []
    tables: list[str] = []
    words, of_fit = _docstring(KQEq), _docstring(KQEq.fit)
    words.update(
        {name: of_fit[name] for name, text in words.items() if text.startswith("As of") and name in of_fit}
    )
    for name in signature(KQEq).parameters:
        value = getattr(model, name)
        comment = _comment(words.get(name, ""))
        if name in _EXAMPLES and value is None and name not in _LEFT_AWAY:
            lines = [f"# {line}" for line in _EXAMPLES[name].splitlines()]
        elif value is None or value is False:
            lines = [f"{name} = false"]
        elif (
            isinstance(value, (list, tuple)) and value and all(hasattr(item, "get_params") for item in value)
        ):
            lines = [line for item in value for line in (f"[[{name}]]", *_table(item), "")]
        elif hasattr(value, "get_params"):
            lines = [f"[{name}]", *_table(value)]
        elif isinstance(value, Mapping):
            lines = [f"[{name}]", *(f"{_key(key)} = {_toml(item)}" for key, item in value.items())]
        elif isinstance(value, PathLike):
            lines = [f"{name} = {_toml(str(value))}"]
        else:
            lines = [f"{name} = {_toml(value, name)}"]
        is_table = lines[0].startswith(("[", "# ["))
        (tables if is_table else plain).append("\n".join([*comment, *lines]).rstrip())
    head = "# Settings of kqeq fit --config; units eV, Å, e. What is left out, or commented out, keeps its default."
    return "\n\n".join([head, *plain, *tables]) + "\n"


_LEFT_AWAY = ("electronegativity", "short_range", "charges", "optimize")
"""Settings whose ``None`` is not their default."""

_EXAMPLES: Mapping[str, str] = {
    "site_kernel": "[site_kernel]\nr_cut = 4.0",
    "baseline": 'baseline = "gfn2"',
    "noise": "[noise]\nenergy = 0.001\nforces = 0.03\ndipole = 0.01",
    "targets": 'targets = ["energy", "forces", "dipole"]',
    "charges_key": 'charges_key = "hirshfeld"',
    "e0": "[e0]\nH = -13.6",
    "charge_aware": "[charge_aware]\norder = 2\nscale = 0.5",
    "budget": 'budget = "10 min"',
    "resume": 'resume = "fit.ckpt"',
    "cache": 'cache = "features"',
}
"""How settings look that are ``None`` by default."""


def _table(settings: Any) -> list[str]:
    """Lines of a table: settings of an object, a charge model inside another one included."""
    lines = []
    if hasattr(settings, "to_dict") and "model" in settings.to_dict():
        lines.append(f'model = "{settings.to_dict()["model"]}"')
    for key, value in settings.get_params(deep=False).items():
        if value is None:
            lines.append(f"# {key}")
        elif hasattr(value, "to_dict"):
            lines.append(f"{key} = {_toml({k: v for k, v in value.to_dict().items() if v is not None})}")
        else:
            lines.append(f"{key} = {_toml(value)}")
    return lines


def _toml(value: Any, name: str = "a setting") -> str:
    """A value as TOML on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        return repr(float(value))
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    raise InputError(
        f"{name} is {type(value).__name__}, which a file of settings cannot hold; write it in Python, or give its name"
    )


def _key(key: Any) -> str:
    text = str(key)
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else json.dumps(text, ensure_ascii=False)


def _docstring(owner: Any) -> dict[str, str]:
    """What a numpydoc docstring says of its parameters, by name."""
    found: dict[str, str] = {}
    text = re.split(r"\n(?:Attributes|Returns)\n-+\n", inspect.getdoc(owner) or "")[0]
    for names, body in re.findall(
        r"^([a-z_0-9, ]+) :.*\n((?:    .*\n?|\n(?=    ))+)", text, flags=re.MULTILINE
    ):
        for name in names.split(", "):
            found[name] = " ".join(body.split())
    return found


def _comment(text: str) -> list[str]:
    """A paragraph of a docstring as comment lines."""
    plain = re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("``", "")
    return [f"# {line}" for line in textwrap.wrap(plain, 110)]


def _part(name: str, value: Any, build: Callable[[dict[str, Any]], Any]) -> Any:
    """A table of settings, or ``false``."""
    if value is False:
        return None
    if not isinstance(value, dict):
        raise InputError(
            f"{name} is {value!r}; expected a table [{name}] of settings, or false to leave it away"
        )
    return build(value)


def _kernels(name: str, value: Any, default: Callable[[], Kernel]) -> Any:
    """One kernel, several from an array of tables, or "auto"."""
    if value == AUTO:
        return value
    if isinstance(value, list) and value and all(isinstance(table, dict) for table in value):
        return [_kernel(f"{name} {number}", default(), table) for number, table in enumerate(value, start=1)]
    return _part(name, value, partial(_kernel, name, default()))


def _kernel(name: str, kernel: Kernel, table: dict[str, Any]) -> Any:
    """A kernel on features of a network where the table names one, otherwise one on SOAP."""
    return _filled(name, NetworkKernel() if "network" in table else kernel, table)


def _charge_kernel(table: dict[str, Any]) -> Any:
    return _filled("charge_aware", ChargeKernel(), table)


def _filled(name: str, settings: Any, table: dict[str, Any]) -> Any:
    """Default settings with those of a table in their place."""
    known = settings.get_params(deep=False)
    for key in table:
        if key not in known:
            raise unknown_name(key, known, f"[{name}] has no setting")
    settings.set_params(**table)
    try:
        settings.check()
    except InputError as error:
        raise InputError(f"[{name}] {error}") from None
    return settings


def _charges(table: dict[str, Any], where: str = "[charges]") -> Any:
    options = dict(table)
    for key, value in table.items():
        if isinstance(value, dict) and key == "inner":
            options[key] = _charges(value, f"{where} inner")
        elif isinstance(value, dict):
            options[key] = _numbers(f"{where} {key}", value)
    if "model" in options and not isinstance(options["model"], str):
        raise InputError(f'{where} model is {options["model"]!r}; expected a name, for example "QEq"')
    model = charge_model_from_dict(options) if options else QEq()
    model.check_settings()
    return model


def _numbers(name: str, value: Any) -> dict[str, float]:
    instance(dict, "a table of numbers").require(value, name)
    for key, item in value.items():
        number().require(item, f"{name}.{key}")
    return dict(value)


__all__ = ["load_config", "model_from_dict", "template"]
