"""The data sets that come with the package: small molecules, ions and clusters with DFT labels.

Method, units, systems and counts are in the ``README.md`` beside the data (``kqeq.datasets.path()``).
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from kqeq.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Collection

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


def load(
    *names: str, method: str | None = None, total_charges: Collection[float] | None = None
) -> list[Atoms]:
    """Read data sets.

    Parameters
    ----------
    *names : str
        One or more of :func:`names`, for example ``"ag3"`` or ``"water"``.
    method : str, optional
        Only frames of this method, for example ``"PBE0/def2-svp"``: energies of two methods cannot be compared.
    total_charges : collection of float, optional
        Only frames of these total charges, e.

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
        For an unknown name, and if no frame has this method and one of these charges.
    """
    return [atoms for _, atoms in _frames(names, method, total_charges)]


def split(
    *names: str, method: str | None = None, total_charges: Collection[float] | None = None
) -> tuple[list[Atoms], list[Atoms]]:
    """Read data sets as training and test frames from independent trajectories.

    Every seed is a trajectory of its own: frames of seed 1 are for testing and all others for training
    (``water_field``, whose seeds are fields: seed 11 for testing).  Seed 1 of ``fields`` has stronger fields
    than the training frames; seed 1 of ``dissociation`` are the points between those of seed 0 on the same curves.

    Parameters
    ----------
    *names, method, total_charges
        As for :func:`load`.

    Returns
    -------
    train, test : list of ase.Atoms

    Raises
    ------
    InputError
        As :func:`load`, and for data sets without frames set aside for testing.
    """
    train: list[Atoms] = []
    test: list[Atoms] = []
    for name, atoms in _frames(names, method, total_charges):
        (test if atoms.info["seed"] in _test_seeds(name) else train).append(atoms)
    if not test or not train:
        what = ", ".join(map(repr, names))
        seeds = sorted({seed for name in names for seed in _test_seeds(name)})
        raise InputError(
            f"data set {what} has no frames set aside for testing (seed {', '.join(map(str, seeds))}); "
            f"use kqeq.datasets.load({what}) and divide its frames yourself"
        )
    return train, test


def _test_seeds(name: str) -> frozenset[int]:
    return TEST_SEEDS.get(name, _DEFAULT_TEST_SEEDS)


def _frames(
    names_of_sets: tuple[str, ...], method: str | None, total_charges: Collection[float] | None
) -> list[tuple[str, Atoms]]:
    """Frames of all sets, each with the name of its set."""
    known = names()
    for name in names_of_sets or ("",):
        if name not in known:
            raise InputError(f"unknown data set {name!r}; expected one of {', '.join(known)}")
    from ase.io import read

    found = [
        (name, atoms)
        for name in names_of_sets
        for atoms in read(path() / f"{name}.xyz", index=":", format="extxyz")
    ]
    chosen = [
        (name, atoms)
        for name, atoms in found
        if method in (None, atoms.info["method"])
        and (total_charges is None or atoms.info["total_charge"] in total_charges)
    ]
    if not chosen:
        there = sorted({(atoms.info["method"], float(atoms.info["total_charge"])) for _, atoms in found})
        raise InputError(
            f"{', '.join(map(repr, names_of_sets))} has no frames of method {method!r} and total charges "
            f"{total_charges!r}; there are {', '.join(f'{m} at {q:+g}' for m, q in there)}"
        )
    return chosen


__all__ = ["load", "names", "path", "split"]
