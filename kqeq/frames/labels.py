"""Labels: the reference data a frame carries, read and validated once at the door."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress

from kqeq.errors import InputError, LabelWarning, warn
from kqeq.frames.born_charges import check_born_charges
from kqeq.frames.conditions import as_numbers
from kqeq.frames.structures import Structure, as_frames, describe, read_structure
from kqeq.typing import FloatArray

MAX_ABS_CHARGE_PER_ATOM = 8.0
"""A labelled total charge beyond this many e per atom is refused as a mistake."""

MAX_SMEARING = 0.5
"""``free_energy`` and ``energy`` of one frame differ by less than this (eV/atom) if the difference is smearing."""


@dataclass(frozen=True, eq=False)
class Labels:
    """Reference data of one frame; ``None`` where the frame carries none.

    Attributes
    ----------
    energy : float
        eV, as given (offsets per element are removed in the fit).
    forces : (N, 3) array
        eV/Å.
    stress : (3, 3) array
        eV/Å³, ASE sign.
    dipole : (3,) array
        e·Å about the coordinate origin.
    charges : (N,) array
        e; a partition's charges, read only on request.
    polarizability : (3, 3) array
        e²·Å²/eV.
    born_charges : (N, 3, 3) array
        Z_k,ab = ∂μ_a/∂r_kb, e.
    weight : float
        Multiplies every squared residual of the frame.
    """

    energy: float | None = None
    forces: FloatArray | None = None
    stress: FloatArray | None = None
    dipole: FloatArray | None = None
    charges: FloatArray | None = None
    polarizability: FloatArray | None = None
    born_charges: FloatArray | None = None
    weight: float = 1.0

    @property
    def kinds(self) -> tuple[str, ...]:
        """The label kinds that are present, in :data:`LABEL_KINDS` order."""
        return tuple(kind for kind in LABEL_KINDS if getattr(self, kind) is not None)


LABEL_KINDS: tuple[str, ...] = (
    "energy",
    "forces",
    "stress",
    "dipole",
    "charges",
    "polarizability",
    "born_charges",
)
"""Every kind of label the package knows."""


@dataclass(frozen=True)
class LabelKeys:
    """Where labels are found in an :class:`ase.Atoms`.

    Each key is looked up in ``atoms.info`` (per frame) or ``atoms.arrays`` (per atom), and, under its
    standard name, in the results of the single-point calculator that ASE attaches when it reads a file.

    Where a frame has a free energy, too, the energy label is that: forces and stress are its derivatives (electronic
    smearing makes the two differ, and ``energy`` is extrapolated to none).  A free energy that differs from the energy
    by more than :data:`MAX_SMEARING` is something else, a thermodynamic one for example, and left alone.

    Parameters
    ----------
    energy, free_energy, forces, stress, dipole, polarizability, born_charges : str
        Keys of the labels.
    charges : str or None
        Key of partition charges in ``atoms.arrays``; ``None`` reads no charges.
    weight : str
        Key of the frame's weight in ``atoms.info``.
    prefix : str
        Total charge and field are looked for with this before their names, and without.
    """

    energy: str = "energy"
    free_energy: str | None = "free_energy"
    forces: str = "forces"
    stress: str = "stress"
    dipole: str = "dipole"
    polarizability: str = "polarizability"
    born_charges: str = "born_charges"
    charges: str | None = None
    weight: str = "weight"
    prefix: str = ""

    @classmethod
    def prefixed(cls, prefix: str, charges: str | None = None) -> LabelKeys:
        """Keys such as ``REF_energy``, ``REF_forces`` ... for ``prefix="REF_"``.

        The charges key is taken as it is; the weight keeps its name.
        """
        names = ("energy", "free_energy", "forces", "stress", "dipole", "polarizability", "born_charges")
        return cls(**{name: prefix + name for name in names}, charges=charges, prefix=prefix)


_SHAPES: dict[str, str] = {
    "energy": "a number (eV)",
    "forces": "an (N, 3) array (eV/Å)",
    "stress": "six numbers in Voigt order xx yy zz yz xz xy, or a 3x3 matrix (eV/Å³)",
    "dipole": "three numbers (e·Å)",
    "charges": "one number per atom (e)",
    "polarizability": "nine numbers or a 3x3 matrix (e²·Å²/eV)",
    "born_charges": "nine numbers per atom, ∂μ_a/∂r_b at 3a + b, or an (N, 3, 3) array (e)",
}

_LIMITS = {
    "energy": 1e12,
    "forces": 1e8,
    "stress": 1e8,
    "dipole": 1e8,
    "charges": 1e6,
    "polarizability": 1e10,
    "born_charges": 1e4,
    "weight": 1e12,
}
"""Sizes beyond which a number is no label but a mistake that would overflow in squares."""


def standard_deviation(kind: str, noise: Mapping[str, float], atoms: int, weight: float = 1.0) -> float:
    """Standard deviation of every component of a label, σ/√w, and σ √N/√w of the energy of a structure.

    Parameters
    ----------
    kind : str
        One of :data:`LABEL_KINDS`.
    noise : mapping of str to float
        σ by kind; that of energies is per atom: errors of atoms are taken as independent.
    atoms : int
        N.
    weight : float
        w of the frame; what has no weight has an infinite standard deviation.
    """
    if weight == 0.0:
        return math.inf
    return noise[kind] * math.sqrt((atoms if kind == "energy" else 1.0) / weight)


def read_frame(
    atoms: Atoms,
    keys: LabelKeys | None = None,
    *,
    weight: float | None = None,
    index: int | None = None,
) -> tuple[Structure, Labels]:
    """Validate a labelled frame.

    Parameters
    ----------
    atoms : ase.Atoms
    keys : LabelKeys, optional
        Where the labels are.
    weight : float, optional
        The frame's weight; multiplies the one found in ``atoms.info``.
    index : int, optional
        Number of the frame, for messages.

    Returns
    -------
    Structure, Labels
        ``Labels`` may be empty; the caller decides whether that is an error.

    Raises
    ------
    InputError
        For labels of a wrong shape, NaN or infinite values, a total charge that no such system has,
        or whatever :func:`read_structure` refuses.
    """
    keys = keys or LabelKeys()
    where = describe(atoms, index)
    structure = read_structure(atoms, index=index, prefix=keys.prefix)
    _check_label_charge(structure, where)
    found = {kind: _find(atoms, kind, getattr(keys, kind), where) for kind in LABEL_KINDS}
    labels = {kind: _shape(value, kind, structure, where) for kind, value in found.items()}
    if labels["born_charges"] is not None:
        labels["born_charges"] = check_born_charges(
            labels["born_charges"], structure, labels["dipole"], where
        )
    labels["energy"] = choose_energy(labels["energy"], _free_energy(atoms, keys, structure, where), structure)
    total = _weight(1.0 if weight is None else weight, where)
    total *= _weight(atoms.info.get(keys.weight, 1.0), where)
    return structure, Labels(**labels, weight=total)


def read_frames(
    frames: Any, keys: LabelKeys | None = None, *, weights: Sequence[float] | None = None
) -> Iterator[tuple[Structure, Labels]]:
    """Validate frames one after another; see :func:`read_frame`."""
    frames = as_frames(frames)
    if weights is not None and len(weights) != len(frames):
        raise InputError(f"{len(weights)} weights were given for {len(frames)} frames; give one per frame")
    for i, atoms in enumerate(frames):
        yield read_frame(atoms, keys, weight=None if weights is None else weights[i], index=i)


def _weight(value: Any, where: object) -> float:
    array = None if value is None else as_numbers(value)
    number = float(array.reshape(())) if array is not None and array.size == 1 else np.nan
    if not np.isfinite(number) or number < 0:
        raise InputError(f"the weight of {where} is {value!r}; expected a finite number that is not negative")
    if number > _LIMITS["weight"]:
        raise InputError(f"the weight of {where} is {value!r}, beyond {_LIMITS['weight']:g}")
    return number


def choose_energy(energy: float | None, free: float | None, structure: Structure) -> float | None:
    """The energy to fit: the free one, which forces belong to, if there is one that can be meant.

    Parameters
    ----------
    energy, free : float or None
        eV.
    structure : Structure
        Of the frame.
    """
    if free is None or (energy is not None and abs(free - energy) > MAX_SMEARING * len(structure)):
        return energy
    return free


def _free_energy(atoms: Atoms, keys: LabelKeys, structure: Structure, where: object) -> float | None:
    if keys.free_energy == "free_energy" and keys.energy != "energy":
        return None  # of another method than the energy that was named
    value = _find(atoms, "free_energy", keys.free_energy, where)
    # a thermodynamic free energy may be anything; only numbers can be meant
    array = None if value is None else as_numbers(value)
    if array is None or array.size != 1 or not np.isfinite(array).all():
        return None
    return float(array.reshape(()))


def _check_label_charge(structure: Structure, where: object) -> None:
    charge = structure.total_charge
    limit = min(MAX_ABS_CHARGE_PER_ATOM * len(structure), float(structure.numbers.sum()))
    if abs(charge) > limit:
        raise InputError(
            f"the total charge of {where} is {charge:g} e, beyond {limit:g} e for this composition; "
            "total_charge is in units of the elementary charge e"
        )
    if abs(charge - round(charge)) > 1e-6:
        warn(
            f"the total charge of {where} is {charge:g} e; labels of isolated systems have whole charges",
            LabelWarning,
        )


def _find(atoms: Atoms, kind: str, key: str | None, where: object) -> Any:
    """Look a label up in info, arrays and the single-point results; refuse contradictions."""
    if key is None:
        return None
    store: Mapping[str, Any] = atoms.arrays if kind in ("forces", "charges", "born_charges") else atoms.info
    if key not in store and key in atoms.info:
        store = atoms.info  # an array that came by another way than a file
    value = store.get(key)
    stored = _single_point(atoms, key, where)
    if value is None:
        return stored
    if stored is not None and not _same(value, stored):
        raise InputError(
            f'{where} has two different labels "{key}": one in atoms.{"arrays" if store is atoms.arrays else "info"} '
            "and one in the results of its single-point calculator; remove one (atoms.calc = None)"
        )
    return value


def _same(first: Any, second: Any) -> bool:
    """Whether two labels agree to the digits that files keep; True also where that cannot be said."""
    a, b = as_numbers(first), as_numbers(second)
    if a is None or b is None:
        return True  # not numeric: its shape and type are refused next
    # total energies are large: the relative tolerance must not hide differences between methods
    return a.shape != b.shape or bool(np.allclose(a, b, rtol=1e-9, atol=1e-6, equal_nan=True))


def _single_point(atoms: Atoms, key: str, where: object) -> Any:
    from ase.calculators.singlepoint import SinglePointCalculator

    calculator = atoms.calc
    if not isinstance(calculator, SinglePointCalculator) or calculator.results.get(key) is None:
        return None
    if calculator.check_state(atoms):
        warn(
            f'the label "{key}" of {where} is ignored: the atoms were changed after it was computed or read',
            LabelWarning,
        )
        return None
    return calculator.results[key]


def _shape(value: Any, kind: str, structure: Structure, where: object) -> Any:
    """Bring a label into its standard shape."""
    if value is None:
        return None
    n = len(structure)
    array = as_numbers(value)
    if array is None:
        word = ""
        if np.ndim(value) == 0 and isinstance(value, (bool, np.bool_)):
            word = "; a bare word in the comment line of an XYZ file is read as True"
        raise InputError(
            f"the {kind} label of {where} is not numeric: {value!r}; expected {_SHAPES[kind]}{word}"
        )
    good: dict[str, tuple[tuple[int, ...], ...]] = {
        "energy": ((),),
        "forces": ((n, 3),),
        "stress": ((6,), (9,), (3, 3)),
        "dipole": ((3,),),
        "charges": ((n,), (n, 1)),
        "polarizability": ((9,), (3, 3)),
        "born_charges": ((n, 9), (n, 3, 3)),
    }
    if kind not in ("forces", "charges", "born_charges"):
        # one frame of an array of frames, a column: [[x, y, z]] is a dipole
        while array.ndim and array.shape not in good[kind] and 1 in array.shape:
            array = array.squeeze(array.shape.index(1))
    if array.shape not in good[kind]:
        raise InputError(
            f"the {kind} label of {where} has shape {array.shape}; expected {_SHAPES[kind]}, N = {n} atoms"
        )
    if not np.isfinite(array).all():
        raise InputError(
            f"the {kind} label of {where} has NaN or infinite values; remove the label or the frame"
        )
    if np.abs(array).max(initial=0.0) > _LIMITS[kind]:
        raise InputError(
            f"the {kind} label of {where} has a value of {np.abs(array).max():g}, beyond {_LIMITS[kind]:g}; "
            f"expected {_SHAPES[kind]}: remove the label or the frame"
        )
    if kind == "energy":
        return float(array.reshape(()))
    if kind in ("stress", "polarizability"):
        matrix = voigt_6_to_full_3x3_stress(array) if array.shape == (6,) else array.reshape(3, 3)
        if np.abs(matrix - matrix.T).max() > 1e-3 * np.abs(matrix).max() + 1e-12:
            raise InputError(
                f"the {kind} label of {where} is not symmetric: {matrix.tolist()}; expected {_SHAPES[kind]}"
            )
        return matrix
    if kind == "born_charges":
        return array.reshape(n, 3, 3)
    return array.reshape(n) if kind == "charges" else array


__all__ = ["LABEL_KINDS", "LabelKeys", "Labels", "choose_energy", "read_frame", "read_frames"]
