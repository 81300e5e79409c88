"""From the name of a network to the network, and from what a model file says of one to the one that is meant.

Weights stay where they are: a model file holds the name and a hash.  Files of MACE and SO3LR models can run code when
they are read, so that only files that the user has named are: in this process before, as ``networks=`` of
:func:`kqeq.load`, or in a folder that the environment variable ``KQEQ_NETWORKS`` names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kqeq.backend.pytorch import file_digest
from kqeq.descriptors.networks.base import Network
from kqeq.descriptors.networks.chgnet import CHGNet
from kqeq.descriptors.networks.mace import MACE
from kqeq.descriptors.networks.so3lr import SO3LR
from kqeq.errors import InputError
from kqeq.io.rules import show

PROVIDERS: Mapping[str, Callable[[str], Network]] = {
    "so3lr": SO3LR.named,
    "mace": MACE.named,
    "chgnet": CHGNet.named,
}
"""By what stands before the colon of a name."""

FOLDERS = "KQEQ_NETWORKS"
"""Environment variable with folders in which networks of model files are looked for."""

_known: dict[tuple[str, str], Network] = {}
"""Networks that were named in this process."""


def resolve_network(spec: Any) -> Network:
    """Turn what a user writes into a network.

    Parameters
    ----------
    spec : str or Network
        ``"so3lr"``, ``"chgnet"`` (or ``"chgnet:0.3.0"``, ``"chgnet:r2scan"``), ``"mace:FILE"``, ``"so3lr:FILE"``; or an
        object with the methods of :class:`kqeq.descriptors.networks.Network`.

    Raises
    ------
    InputError
        For anything else, for files that cannot be read, and for packages that are missing.
    """
    if isinstance(spec, str):
        kind, _, option = spec.partition(":")
        if kind.lower() not in PROVIDERS:
            raise InputError(f"network is {spec!r}; expected {_expected()}")
        network = PROVIDERS[kind.lower()](option)
    elif isinstance(spec, Network) and not isinstance(spec, type):
        network = spec
    else:
        raise InputError(f"network is {show(spec)}; expected {_expected()}")
    # the one that is known has its weights in memory already
    return _known.setdefault((network.name, network.digest), network)


def find_network(name: str, digest: str, given: Sequence[Any] = ()) -> Network:
    """The network that a model file means.

    Parameters
    ----------
    name, digest : str
        As the file has them.
    given : sequence of str, path or Network
        What the user offers: files or networks.

    Raises
    ------
    InputError
        If it is not found, or has other weights.
    """
    if (name, digest) in _known:
        return _known[name, digest]
    kind, _, option = name.partition(":")
    other: list[str] = []
    for one in given:
        if isinstance(one, str | os.PathLike):
            path = Path(one).expanduser()
            if file_digest(path, name) == digest and kind in PROVIDERS:
                return resolve_network(f"{kind}:{path}")
            other.append(str(path))
        elif resolve_network(one).digest == digest:
            return resolve_network(one)
        else:
            other.append(resolve_network(one).name)
    for folder in filter(None, os.environ.get(FOLDERS, "").split(os.pathsep)):
        path = Path(folder).expanduser() / Path(option).name
        if option and kind in PROVIDERS and path.is_file():
            if file_digest(path, name) == digest:
                return resolve_network(f"{kind}:{path}")
            other.append(str(path))
    if kind in PROVIDERS and (kind == "chgnet" or not option):
        network = resolve_network(name)
        if network.digest == digest:
            return network
        other.append(f"the one in the package, {network.digest[:16]}")
    if other:
        raise InputError(
            f"the model was fitted on features of the network {name} with SHA-256 {digest[:16]}...; "
            f"{', '.join(other)} has other weights. Give the one of the fit: kqeq.load(path, networks=[file])"
        )
    raise InputError(
        f"the model was fitted on features of the network {name} (SHA-256 {digest[:16]}...), which the file does not "
        f"hold; give it, kqeq.load(path, networks=[file or network]), or name its folder in the environment variable "
        f"{FOLDERS}"
    )


def _expected() -> str:
    names = '"so3lr", "chgnet", "mace:FILE", "so3lr:FILE"'
    return f"{names} or an object with the methods of kqeq.descriptors.networks.Network"


__all__ = ["FOLDERS", "PROVIDERS", "find_network", "resolve_network"]
