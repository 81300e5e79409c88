"""The data sets that come with the package: small molecules, ions and clusters with DFT labels.

Method, units, systems and counts are in the ``README.md`` beside the data (``kqeq.datasets.path()``).
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from kqeq.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

TEST_SEEDS: dict[str, frozenset[int]] = {"water_field": frozenset({11})}
"""Trajectories set aside for testing, where they are not seed 1."""

_DEFAULT_TEST_SEEDS = frozenset({1})


def path() -> Path:
    """The folder that holds the data sets.

    In an installed package it lies inside the package, in a source checkout beside it.

    Raises
    ------
    InputError
        If there is none: the installation is incomplete.
    """
    package = Path(str(files("kqeq")))
    candidates = (package / "_datasets", package.parent / "datasets")
    for folder in candidates:
        # a folder that merely happens to be called "datasets" has no checksums of ours
        if (folder / "SHA256SUMS").is_file():
            return folder
    raise InputError(
        f"the data sets of kqeq were found neither in {candidates[0]} nor in {candidates[1]}; reinstall the package"
    )


def names() -> tuple[str, ...]:
    """Names that :func:`load` knows, in alphabetical order."""
    return tuple(sorted(file.stem for file in path().glob("*.xyz")))


def load(name: str) -> list[Atoms]:
    """Read a data set.

    Parameters
    ----------
    name : str
        One of :func:`names`, for example ``"ag3"`` or ``"water"``.

    Returns
    -------
    list of ase.Atoms
        With energy (eV), forces (eV/Å) and dipole (e·Å) as results, and in ``info`` total_charge (e),
        external_field (V/Å), system, seed, multiplicity and method; Hirshfeld charges (e) are in
        ``arrays["hirshfeld"]``.  What some sets carry besides (polarizabilities, Born charges, Hessians,
        stress) is in the ``README.md``.

    Raises
    ------
    InputError
        For an unknown name.
    """
    known = names()
    if name not in known:
        raise InputError(f"unknown data set {name!r}; expected one of {', '.join(known)}")
    from ase.io import read

    frames = read(path() / f"{name}.xyz", index=":", format="extxyz")
    return list(frames)


def split(name: str) -> tuple[list[Atoms], list[Atoms]]:
    """Read a data set as training and test frames from independent trajectories.

    Every seed is a trajectory of its own: frames of seed 1 are for testing and all others for training
    (``water_field``, whose seeds are fields: seed 11 for testing).  Seed 1 of ``fields`` has stronger fields
    than the training frames; seed 1 of ``dissociation`` are the points between those of seed 0 on the same curves.

    Parameters
    ----------
    name : str
        As for :func:`load`.

    Returns
    -------
    train, test : list of ase.Atoms

    Raises
    ------
    InputError
        For an unknown name, and for a data set without frames set aside for testing.
    """
    frames = load(name)
    seeds = TEST_SEEDS.get(name, _DEFAULT_TEST_SEEDS)
    test = [atoms for atoms in frames if atoms.info["seed"] in seeds]
    train = [atoms for atoms in frames if atoms.info["seed"] not in seeds]
    if not test or not train:
        raise InputError(
            f"data set {name!r} has no frames set aside for testing (seed {', '.join(map(str, sorted(seeds)))}); "
            f"use kqeq.datasets.load({name!r}) and divide its frames yourself"
        )
    return train, test


__all__ = ["load", "names", "path", "split"]
