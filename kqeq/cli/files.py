"""Files of the command line: frames in, frames and JSON out."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kqeq.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

    from kqeq.potential.potential import Potential, Prediction

FRAMES = "extended XYZ or any other file that ASE reads; FILE@:10 takes the first ten frames"
"""Help for arguments that name frames."""


def read_frames(paths: Sequence[str]) -> list[Atoms]:
    """Frames of all files, in order.

    Raises
    ------
    InputError
        Naming the file that is missing, empty or unreadable.
    """
    from ase.io import read

    frames: list[Atoms] = []
    for path in paths:
        # ASE's own syntax for a choice of frames: FILE@slice
        name, choice = (path, "") if Path(path).exists() else path.rpartition("@")[::2]
        name = name or path
        if not Path(name).exists():
            raise InputError(f"there is no file {name}")
        if Path(name).is_dir():
            raise InputError(f"{name} is a folder; expected a file with structures")
        if Path(name).stat().st_size == 0:
            raise InputError(f"{name} is empty; expected a file with structures")
        _check_counts(name)
        try:
            found = read(name, index=choice or ":", do_not_split_by_at_sign=True)
        except Exception as error:  # ASE's many readers fail in as many ways
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"cannot read structures from {path}: {reason}") from None
        found = found if isinstance(found, list) else [found]
        if not found:
            raise InputError(f"{path} holds no structures")
        frames += found
    return frames


def _check_counts(name: str) -> None:
    """Refuse an XYZ file that announces more atoms than it has lines: readers try to make room for them.

    Raises
    ------
    InputError
    """
    if not any(ending in (".xyz", ".extxyz") for ending in Path(name).suffixes):
        return
    from ase.io.formats import open_with_compression

    frame = 0
    try:
        with open_with_compression(name, "rt") as handle:
            for line in handle:
                if not line.strip().isdecimal():
                    return  # no XYZ, or the end of one: the reader will say
                count = int(line[:20])
                found = sum(1 for _ in islice(handle, min(count + 1, sys.maxsize))) - 1
                if found < count:
                    raise InputError(
                        f"frame {frame} of {name} announces {line.strip()[:30]} atoms, but only {max(found, 0)} lines "
                        "follow its comment; the file is truncated or damaged"
                    )
                frame += 1
    except (OSError, EOFError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        return  # unreadable: the reader will say so


def read_one(path: str, purpose: str, *, charge: float | None = None, field: Any = None) -> Atoms:
    """The only structure of a file, at another charge or in another field if they are given.

    What is typed takes the place of what the file says of the total charge and the field in ``info`` (charges of
    fragments and reference charges stay, and must agree); a line on standard error says so where the two differ.

    Raises
    ------
    InputError
        As :func:`read_frames`, and for files that hold several.
    """
    import numpy as np

    frames = read_frames([path])
    if len(frames) != 1:
        raise InputError(
            f"{path} holds {len(frames)} structures and one is {purpose} at a time; "
            "choose one, for example IN.xyz@-1 for the last"
        )
    atoms = frames[0]
    if charge is not None:
        atoms.set_initial_charges(None)
    for option, given, key, *others in (
        ("--charge", charge, "total_charge", "charge"),
        ("--field", field, "external_field"),
    ):
        if given is None:
            continue
        for name in (key, *others):
            stored = atoms.info.pop(name, None)
            if stored is not None and not np.array_equal(stored, given):
                print(f"kqeq: {option} replaces {name} {stored} of {path}", file=sys.stderr)
        atoms.info[key] = given
    return atoms


def with_results(atoms: Atoms, prediction: Prediction, potential: Potential) -> Atoms:
    """A copy of a frame that carries a prediction under ASE's names.

    Energy, forces, stress, charges and dipole become the results of a single-point calculator; the parts of the
    energy, polarizability, chemical potential, charge and field go to ``info``, electronegativities to ``arrays``.
    Labels of those names that the frame had are kept as ``REF_...``.
    """
    from ase.calculators.singlepoint import SinglePointCalculator

    results: dict[str, Any] = {}
    info: dict[str, Any] = {
        "total_charge": prediction.total_charge,
        "external_field": prediction.external_field,
    }
    arrays: dict[str, Any] = {}
    if potential.has_energy:
        results.update(energy=prediction.energy, forces=prediction.forces, stress=prediction.stress)
        info["energy_short_range"] = prediction.energy_short_range
        info["energy_electrostatic"] = prediction.energy_electrostatic
    if potential.has_charges:
        results.update(charges=prediction.charges, dipole=prediction.dipole)
        info["polarizability"] = prediction.polarizability
        info["chemical_potential"] = prediction.chemical_potential
        arrays["electronegativity"] = prediction.electronegativity
    results, info, arrays = (
        {name: value for name, value in part.items() if value is not None} for part in (results, info, arrays)
    )

    copy: Atoms = atoms.copy()
    stored = {} if atoms.calc is None else atoms.calc.results
    for name in (*results, *info, *arrays):
        if name in ("total_charge", "external_field"):
            continue
        for place in (copy.info, copy.arrays):
            old = place.pop(name, None)
            if old is None and name in stored and (place is copy.arrays) == (name in ("forces", "charges")):
                old = stored[name]
            if old is not None:
                place.setdefault(f"REF_{name}", old)
    copy.info.update(info)
    for name, value in arrays.items():
        copy.set_array(name, value)
    copy.calc = SinglePointCalculator(copy, **results)
    return copy


def write_frames(path: str, frames: Sequence[Atoms]) -> None:
    """Write frames as extended XYZ, atomically."""
    from ase.io import write

    from kqeq.io.atomic_write import atomic_path

    with atomic_path(path) as temporary:
        write(temporary, list(frames), format="extxyz")


def write_json(path: str, data: Any) -> None:
    """Write plain data as JSON, atomically."""
    from kqeq.io.atomic_write import atomic_path

    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


__all__ = ["FRAMES", "read_frames", "read_one", "with_results", "write_frames", "write_json"]
