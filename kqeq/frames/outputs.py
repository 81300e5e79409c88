"""Frames from the output of electronic-structure programs, with the total charge that the output states.

ASE reads geometries, energies, forces and dipoles of many programs, and drops the total charge of all of them: an ion
would be taken for a neutral molecule.  :func:`read` adds what the text of the output says of it, and joins what CP2K
writes into two files.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kqeq.errors import InputError, LabelWarning, warn

if TYPE_CHECKING:
    from ase import Atoms

_MOST = {"vasp-out": 20_000_000}
"""Bytes of outputs that say what is looked for at their beginning, and grow without end."""

_NUMBER = r"[-+]?\d+\.?\d*(?:[EeDd][-+]?\d+)?"

_FIELD = {
    "orca-output": r"(?im)^.*>.*\befield\b\s+(?!0?\.?0*\s*,\s*0)[-+.\d]",
    "aims-output": r"(?im)^\s*(?:homogeneous_field\b|.*homogeneous external field)",
    "espresso-out": r"(?im)^.*(?:adding external electric field|in the finite electric field)",
    "vasp-out": r"(?im)^\s*EFIELD\s*=\s*(?![-+]?0*\.?0*\s*$)",
    "vasp-xml": r'(?im)<i name="EFIELD">\s*(?![-+]?0*\.?0*\s*<)',
}
"""Traces of an applied field, by ASE's name of the format."""


def read(path: str | Path, index: int | slice | str = ":", format: str | None = None) -> list[Atoms]:
    """Frames of a file, and the total charge that the output of a program states.

    Parameters
    ----------
    path : str or Path
        Any file that ASE reads.  For ORCA, FHI-aims, Gaussian, NWChem, GAMESS (US), Quantum ESPRESSO (``pw.x``) and VASP
        (``vasprun.xml``, ``OUTCAR``) the total charge of the calculation is put into ``atoms.info["total_charge"]``.  A
        trajectory of CP2K (``NAME-pos-1.xyz``) gets the energies of its comments and, if ``NAME-frc-1.xyz`` lies beside
        it, the forces.
    index : int, slice or str
        Which frames, as in ``ase.io.read``; a list comes back in every case.
    format : str, optional
        ASE's name of the format; recognised from the file where left out.

    Returns
    -------
    list of ase.Atoms

    Raises
    ------
    InputError
        If positions and forces of CP2K do not belong together.

    Warns
    -----
    LabelWarning
        If the output mentions an applied field, whose value is then to be given as ``info["external_field"]`` (V/Å).
    """
    from ase.io import read as ase_read

    path = Path(path)
    query = f"{index}:" + (str(index + 1) if index != -1 else "") if isinstance(index, int) else index
    with warnings.catch_warnings():
        # readers of ASE that will move to plugins (FHI-aims) work all the same
        warnings.simplefilter("ignore", FutureWarning)
        found = ase_read(path, index=query, format=format, do_not_split_by_at_sign=True)
    frames = [a for a in (found if isinstance(found, list) else [found]) if a is not None]
    return with_stated(frames, path, format)


def with_stated(frames: list[Atoms], path: str | Path, format: str | None = None) -> list[Atoms]:
    """Frames that ASE read from ``path``, completed in place by what it drops; see :func:`read`."""
    from ase.io.formats import open_with_compression

    path = Path(path)
    if _CP2K.fullmatch(path.name) and frames and frames[0].calc is None:
        _add_cp2k(frames, path)
        return frames
    kind = format or _format(path)
    if kind not in _CHARGE:
        return frames
    with open_with_compression(str(path), "rb") as file:
        text = file.read(_MOST.get(kind, -1)).decode("utf-8", errors="replace")
    charge = stated_charge(kind, text)
    for atoms in frames:
        if charge is not None:
            atoms.info.setdefault("total_charge", charge)
    if (
        kind in _FIELD
        and re.search(_FIELD[kind], text)
        and not any("external_field" in a.info for a in frames)
    ):
        warn(
            f"{path} mentions an applied electric field, which ASE does not read: give it as info['external_field'] "
            "(V/Å), along the force on a positive charge",
            LabelWarning,
        )
    return frames


def stated_charge(kind: str, text: str) -> float | None:
    """The total charge that an output states, e.

    Parameters
    ----------
    kind : str
        ASE's name of its format.
    text : str
    """
    return _CHARGE[kind](text) if kind in _CHARGE else None


def _format(path: Path) -> str | None:
    from ase.io.formats import UnknownFileTypeError, filetype

    try:
        return str(filetype(str(path)))
    except (UnknownFileTypeError, OSError, ValueError):
        return None


# ------------------------------------------------------------------ total charge


def _last(pattern: str) -> Callable[[str], float | None]:
    """The number behind the last match of a pattern."""

    def charge(text: str) -> float | None:
        found = re.findall(pattern, text)
        return float(found[-1].translate(str.maketrans("Dd", "EE"))) if found else None

    return charge


def _espresso(text: str) -> float | None:
    """Valence electrons of the atoms minus the electrons of the calculation."""
    electrons = re.search(rf"number of electrons\s*=\s*({_NUMBER})", text)
    table = re.search(
        r"atomic species\s+valence\s+mass\s+pseudopotential\s*\n((?:\s*\w+\s+[\d.]+.*\n)+)", text
    )
    symbols = re.findall(r"^\s*\d+\s+(\w+)\s+tau\(", text, flags=re.MULTILINE)
    if electrons is None or table is None or not symbols:
        return None
    valence = {line.split()[0]: float(line.split()[1]) for line in table[1].splitlines() if line.strip()}
    first = symbols[: _count(text, len(symbols))]
    if not set(first) <= set(valence):
        return None
    return _tidy(sum(valence[s] for s in first) - float(electrons[1]))


def _count(text: str, fallback: int) -> int:
    found = re.search(r"number of atoms/cell\s*=\s*(\d+)", text)
    return int(found[1]) if found else fallback


def _vasp(text: str) -> float | None:
    """Valence electrons of the atoms minus NELECT."""
    electrons = re.findall(rf'<i name="NELECT">\s*({_NUMBER})\s*</i>', text)
    types = re.search(r'<array name="atomtypes"\s*>(.*?)</array>', text, flags=re.DOTALL)
    if not electrons or types is None:
        return None
    rows = [
        re.findall(r"<c>\s*(.*?)\s*</c>", row)
        for row in re.findall(r"<rc>(.*?)</rc>", types[1], flags=re.DOTALL)
    ]
    if not rows or any(len(row) < 4 for row in rows):
        return None
    return _tidy(sum(int(row[0]) * float(row[3]) for row in rows) - float(electrons[-1]))


def _outcar(text: str) -> float | None:
    """The same from OUTCAR."""
    electrons = re.search(rf"^\s*NELECT\s*=\s*({_NUMBER})", text, flags=re.MULTILINE)
    counts = re.search(r"ions per type\s*=((?:\s+\d+)+)", text)
    table = re.search(r"Ionic Valenz\s*\n\s*ZVAL\s*=([^\n]+)", text)
    if electrons is None or counts is None or table is None:
        return None
    # two digits behind the point, which may leave no blank between numbers
    numbers, valences = counts[1].split(), re.findall(r"\d+\.\d\d", table[1])
    if len(numbers) != len(valences):
        return None
    valence = sum(int(n) * float(v) for n, v in zip(numbers, valences, strict=True))
    return _tidy(valence - float(electrons[1]))


def _tidy(charge: float) -> float:
    """Printed valences have two digits."""
    return round(charge) + 0.0 if abs(charge - round(charge)) < 5e-3 else round(charge, 4)


_CHARGE: dict[str, Callable[[str], float | None]] = {
    "orca-output": _last(rf"Total Charge\s+Charge\s+\.+\s+({_NUMBER})"),
    # the line of control.in, which the output repeats, or what is made of it
    "aims-output": _last(
        rf"(?im)^\s*charge(?:\s*=)?\s+({_NUMBER})\s*(?:$|#|:\s*charge requested explicitly)"
    ),
    "espresso-out": _espresso,
    "gamess-us-out": _last(rf"CHARGE OF MOLECULE\s*=\s*({_NUMBER})"),
    "gaussian-out": _last(rf"Charge\s*=\s*({_NUMBER})\s+Multiplicity"),
    "nwchem-out": _last(rf"(?m)^\s*Charge\s*:\s*({_NUMBER})\s*$"),
    "vasp-out": _outcar,
    "vasp-xml": _vasp,
}

# ------------------------------------------------------------------------- CP2K

_CP2K = re.compile(r"(.+)-pos-(\d+)\.xyz")


def _add_cp2k(frames: list[Atoms], path: Path) -> None:
    """Energies (hartree in the comments) and the forces of the file beside it (hartree/bohr)."""
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import iread
    from ase.units import Bohr, Hartree

    if not all({"i", "E"} <= a.info.keys() for a in frames):
        return
    forces: dict[int, Any] = {}
    beside = path.with_name(re.sub(r"-pos-(\d+)\.xyz$", r"-frc-\1.xyz", path.name))
    if beside.is_file():
        for other in iread(beside, index=":", do_not_split_by_at_sign=True):
            forces[int(other.info.get("i", -1))] = other
    for atoms in frames:
        step = int(atoms.info.pop("i"))
        results: dict[str, Any] = {"energy": float(atoms.info.pop("E")) * Hartree}
        atoms.info.update(step=step)
        if forces:
            match = forces.get(step)
            if match is None or not np.array_equal(match.numbers, atoms.numbers):
                raise InputError(
                    f"{beside} has no forces of step {step} of {path} for the same atoms; expected the two files of one "
                    "CP2K run that print at the same steps (or move the file of forces away to read energies alone)"
                )
            results["forces"] = match.positions * (Hartree / Bohr)
        atoms.calc = SinglePointCalculator(atoms, **results)


__all__ = ["read", "stated_charge", "with_stated"]
