"""What a set of labelled frames says that no single frame tells: names that are not read, labels that cannot be right.

Nothing here changes a label, but for energies that are all exactly zero, which no calculation gives: some file formats
have no energy, and ASE fills the place.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import covalent_radii
from ase.geometry import get_distances

from kqeq.errors import InputError, LabelWarning, warn
from kqeq.frames.conditions import (
    CHARGE_KEYS,
    FIELD_KEY,
    NOTED_CHARGE,
    NOTED_FIELD,
    as_numbers,
    is_partition,
    stored_charges,
)
from kqeq.frames.external_charges import NOTED_OUTSIDE
from kqeq.frames.grouping import composition_and_charge
from kqeq.frames.label_work import contradictions
from kqeq.frames.labels import LabelKeys, Labels, choose_energy, read_frames
from kqeq.frames.states import pairs_up
from kqeq.frames.structures import Structure, as_frames, describe
from kqeq.typing import FloatArray

NET_FORCE = 0.5
"""Net forces per atom beyond this part of the noise of forces are reported."""

ANOTHER = 10.0
"""Energies this far (eV/atom) from others of the same composition and charge are of another method or unit."""

FAR, NEAR = 1.5, 0.6
"""Shortest distances of a set over sums of covalent radii: outside of these the unit of length is in doubt."""

LOOKED_AT = 20
"""Frames and atoms of each that are looked at for the unit of length."""

_PATTERNS = {
    "energy": r"energ(y|ies)|etot|toten|epot|enthalpy",
    "forces": r"forces?|grads?|gradients?|frc",
    "stress": r"stress(es)?|virials?|pressure",
    "dipole": r"dipoles?|dip|mu",
    "polarizability": r"polari[sz]abilit(y|ies)|alpha",
    "born_charges": r"born|bec|apt|zstar",
    "weight": r"weights?",
    "total_charge": r"charge|chrg|qtot",
    "external_field": r"fields?|efield",
}
"""Words that make a name look like that of a label or a condition."""

_OTHER = {
    *(
        "std",
        "error",
        "err",
        "uncertainty",
        "unit",
        "units",
        "step",
        "asymmetry",
        "method",
        "type",
        "index",
        "id",
    ),
    *(
        "molecular",
        "mol",
        "max",
        "min",
        "mean",
        "rms",
        "cutoff",
        "magnetic",
        "source",
        "file",
        "name",
        "tolerance",
    ),
}
"""Words that make it the name of something else."""

_PARTIAL = {
    *("kinetic", "dispersion", "homo", "lumo", "gap", "zero", "zpve", "nuclear", "repulsion", "exchange"),
    *("correlation", "solvation", "interaction", "short", "electrostatic", "electronic", "reference"),
    "offset",
}
"""Words that make an energy another one than that of the whole structure."""

_REFERENCE = {"ref", "reference", "dft", "qm", "label", "target", "true"}
"""Words that say that a number was not predicted."""

_OWN = {
    "energy_short_range",
    "energy_electrostatic",
    "fragment_charges",
    "reference_charges",
    "external_potential",
}
"""Names that this package writes or reads itself and that are no labels."""


@dataclass(frozen=True, eq=False)
class Survey:
    """Frames as they are to be used, and what is to be said about them.

    Attributes
    ----------
    pairs : list of (Structure, Labels)
    ignored : dict of str to str
        Names that are not read although they look as if they should be, with the reason.
    notes : tuple of str
        For the report.
    """

    pairs: list[tuple[Structure, Labels]]
    ignored: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def survey(
    frames: Any,
    keys: LabelKeys,
    *,
    weights: Sequence[float] | None = None,
    force_noise: float = 0.03,
    wanted: Collection[str] = (),
) -> Survey:
    """Read labelled frames, and look at all of them together.

    Parameters
    ----------
    frames : ase.Atoms or sequence of ase.Atoms
    keys : LabelKeys
        Where labels are looked for.
    weights : sequence of float, optional
        One per frame, multiplied with those in the frames.
    force_noise : float
        Standard deviation that a fit tolerates, eV/Å.
    wanted : collection of str
        Kinds of labels that would be fitted; where no frame has one of them, names that look like it are warned of.

    Returns
    -------
    Survey

    Raises
    ------
    InputError
        As :func:`kqeq.frames.labels.read_frames`, and if a frame has no labels but in a live calculator.

    Warns
    -----
    LabelWarning
        For energies that are all exactly zero (they are left out), some that are, net forces, stored charges that
        contradict the given total charge, distances that are in no unit of Å, and frames that were computed among
        external charges.
    """
    frames = as_frames(frames)
    read = list(read_frames(frames, keys, weights=weights))
    live = _live(frames, read, keys)
    ignored = unread_names(frames, keys)
    pairs, doubts = _zero_energies(read)
    doubts += _missing_kinds(frames, read, keys, wanted) + _second_labels(frames, read, keys)
    doubts += live + _embedded(frames)
    doubts += _zero_vectors(pairs) + _far_energies(pairs)
    doubts += _net_forces(pairs, force_noise)
    doubts += _contradicting_charges(frames, pairs) + _impossible_multiplicities(frames, pairs)
    doubts += contradictions(pairs)
    doubts += _lengths([structure for structure, _ in pairs])
    for text in doubts:
        warn(text, LabelWarning)
    notes = [*doubts, *_free_energies(frames, pairs, keys), *_weights(pairs, keys)]
    return Survey(list(pairs), ignored, tuple(notes))


# ------------------------------------------------------------------------ names


def unread_names(frames: Sequence[Atoms], keys: LabelKeys) -> dict[str, str]:
    """Names in frames that resemble those of labels, weights and conditions, but are not read; with the reason."""
    read = {
        *CHARGE_KEYS,
        FIELD_KEY,
        NOTED_CHARGE,
        NOTED_FIELD,
        NOTED_OUTSIDE,
        keys.weight,
        *_OWN,
        "initial_charges",
    }
    read |= {keys.prefix + name for name in (*CHARGE_KEYS, FIELD_KEY)}
    labels = {"energy", "free_energy", "forces", "stress", "dipole", "polarizability", "born_charges"}
    labels = {getattr(keys, kind) for kind in labels}
    labels |= {keys.charges} if keys.charges else set()
    found: Counter[str] = Counter()
    meant: dict[str, str] = {}
    for atoms in frames:
        for place, key, value in _entries(atoms):
            right = key in read or (
                key in labels and place in (("arrays", "info") if _per_atom(key, keys) else ("info",))
            )
            if right or (place == "results" and key in labels):
                continue
            kind = _charges_kind(key, value, keys) or _kind(key)
            if kind is None or not _possible(value, kind, len(atoms)) or _of_atoms(place, key, kind):
                continue
            found[key] += 1
            meant[key] = kind
    words = _bare_numbers(frames)
    total = len(frames)
    said = (
        {words[0]: "numbers and equations among the bare words of a comment line are not read"}
        if words
        else {}
    )
    return said | {key: _reason(key, meant[key], found[key], total, keys) for key in found}


def _bare_numbers(frames: Sequence[Atoms]) -> list[str]:
    return [
        str(key)
        for atoms in frames
        for key, value in atoms.info.items()
        if value is True and _unparsed(str(key))
    ]


def _unparsed(word: str) -> bool:
    """Whether a bare word of a comment line looks as if it had been meant as a number or as key=value."""
    return "=" in word or re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+)([eEdD][+-]?\d+)?,?", word) is not None


def _of_atoms(place: str, key: str, kind: str) -> bool:
    """Whether an entry holds energies of atoms, of which a structure of one atom has one."""
    return kind == "energy" and (place == "arrays" or (place == "results" and key == "energies"))


def _per_atom(key: str, keys: LabelKeys) -> bool:
    return key in (keys.forces, keys.charges)


def _entries(atoms: Atoms) -> Iterator[tuple[str, str, Any]]:
    for key, value in atoms.info.items():
        if isinstance(value, Mapping) and key in ("key_value_pairs", "data"):
            yield from ((key, str(inner), v) for inner, v in value.items())
        else:
            yield "info", str(key), value
    for key, value in atoms.arrays.items():
        if key not in ("numbers", "positions"):
            yield "arrays", str(key), value
    results = getattr(atoms.calc, "results", None)
    if isinstance(results, Mapping):
        yield from (("results", str(key), value) for key, value in results.items())


def _in_words(key: str) -> list[str]:
    """The words of a name in lower case."""
    return re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", key).lower())


@lru_cache(maxsize=4096)
def _kind(key: str) -> str | None:
    """What a name looks like, by its words or by being nearly one of the known names."""
    words = _in_words(key)
    if set(words) & _OTHER - ({"molecular", "mol"} if "weight" in words else set()):
        return None
    for kind, pattern in _PATTERNS.items():
        if any(re.fullmatch(pattern, word) for word in words):
            return kind
    joined = "".join(words)
    if joined in ("e", "f", "pe"):
        return "forces" if joined == "f" else "energy"
    names = {name.replace("_", ""): name for name in _PATTERNS}
    # forcess, enrgy, DipoleMoment, REFenergy
    close = difflib.get_close_matches(joined, list(names), 1, 0.85)
    if close:
        return names[close[0]]
    return next(
        (kind for name, kind in names.items() if len(joined) > len(name) > 5 and joined.endswith(name)), None
    )


def _charges_kind(key: str, value: Any, keys: LabelKeys) -> str | None:
    """``"charges"`` for an array that looks like partition charges, where none were asked for."""
    if keys.charges is not None or np.ndim(value) == 0:
        return None
    return "charges" if re.search(r"(^|_)charges?$", key, re.IGNORECASE) or is_partition(key) else None


def _possible(value: Any, kind: str, n: int) -> bool:
    """Whether a value has a shape that such a label may have; truth values and texts have not."""
    array = as_numbers(value)
    if array is None:
        return False
    size = array.size
    sizes: dict[str, tuple[int, ...]] = {
        "energy": (1,),
        "forces": (3 * n,),
        "stress": (1, 6, 9),
        "dipole": (3,),
        "polarizability": (1, 6, 9),
        "born_charges": (9 * n,),
        "weight": (1,),
        "total_charge": (1,),
        "external_field": (3,),
        "charges": (n,),
    }
    return size in sizes[kind]


def _reason(key: str, kind: str, count: int, total: int, keys: LabelKeys) -> str:
    where = "" if count == total else f" in {count} of {total} frames"
    if kind == "charges":
        return f'partition charges{where} are fitted only on request: charges_key="{key}"'
    wanted = {"weight": keys.weight, "total_charge": "total_charge", "external_field": FIELD_KEY}.get(kind)
    wanted = wanted or str(getattr(keys, kind))
    return f"a name{where} that is not read; {wanted} would be"


def _missing_kinds(
    frames: Sequence[Atoms],
    pairs: Sequence[tuple[Structure, Labels]],
    keys: LabelKeys,
    kinds: Collection[str],
) -> list[str]:
    """Kinds of labels that no frame has, where something that is not read looks like them."""
    wanted = [
        kind
        for kind in ("energy", "forces", "stress", "dipole")
        if kind in kinds and all(getattr(labels, kind) is None for _, labels in pairs)
    ]
    found: dict[str, Counter[str]] = {kind: Counter() for kind in wanted}
    names = {getattr(keys, kind) for kind in kinds}
    for atoms in frames if wanted else ():
        for place, key, value in _entries(atoms):
            kind = _kind(key)
            if kind not in found or place in ("key_value_pairs", "data") or key == keys.free_energy:
                continue
            if place == "results" and key in names:
                continue  # of a live calculator
            whole = kind != "stress" or (atoms.pbc.all() and np.size(value) in (6, 9))
            partial = kind == "energy" and set(_in_words(key)) & _PARTIAL
            if not whole or partial or key in _OWN or _of_atoms(place, key, kind):
                continue
            if _possible(value, kind, len(atoms)):
                found[kind][key] += 1
    if (
        wanted
        and not any(found.values())
        and not any(labels.kinds for _, labels in pairs)
        and _bare_numbers(frames)
    ):
        comment = " ".join(str(key) for key, value in frames[0].info.items() if value is True)
        return [
            f"no frame has labels, but comments hold numbers ({comment!r} in the first): an energy is read if the "
            "comment of an extended XYZ file says energy=... (eV), and forces if it names their columns"
        ]
    best = {kind: counts.most_common(1)[0][0] for kind, counts in found.items() if counts}
    prefixed = {key.removesuffix(kind) for kind, key in best.items() if key.endswith(kind)}
    if (
        len(prefixed) == 1
        and len(best) > 1
        and not keys.prefix
        and all(map(str.endswith, best.values(), best))
    ):
        return [
            f"no frame has {', '.join(best)}, but there are {', '.join(best.values())}, which are not read: set "
            f'label_prefix="{prefixed.pop()}"'
        ]
    return [
        f"no frame has {kind} (under the name {str(getattr(keys, kind))!r}), but {found[kind][key]} of {len(frames)} "
        f"have {key!r}, which is not read: {_remedy(kind, key, keys)}"
        for kind, key in best.items()
    ]


def _remedy(kind: str, key: str, keys: LabelKeys) -> str:
    """How a label comes under the name that is read."""
    name = str(getattr(keys, kind))
    words = set(_in_words(key))
    if kind == "stress" and {"virial", "virials"} & words:
        return f'atoms.info["{name}"] = -virial / atoms.get_volume(), if it is the usual virial (eV)'
    if kind == "forces" and {"grad", "grads", "gradient", "gradients"} & words:
        return f'atoms.arrays["{name}"] = -gradient, in eV/Å'
    place = "arrays" if kind == "forces" else "info"
    return f'atoms.{place}["{name}"] = atoms.{place}.pop("{key}"), if that is what it is'


def _second_labels(
    frames: Sequence[Atoms], pairs: Sequence[tuple[Structure, Labels]], keys: LabelKeys
) -> list[str]:
    """Labels that are read while others, called reference, are there too and say something else."""
    said: dict[str, list[int]] = {}
    for i, (atoms, (_, labels)) in enumerate(zip(frames, pairs, strict=True)):
        for kind, store in (("energy", atoms.info), ("forces", atoms.arrays), ("dipole", atoms.info)):
            name, label = str(getattr(keys, kind)), getattr(labels, kind)
            for key, value in store.items() if label is not None else ():
                if not str(key).endswith(kind) or str(key) == name or _kind(str(key)) != kind:
                    continue
                words = set(_in_words(str(key).removesuffix(kind)))
                other = as_numbers(value) if words and words <= _REFERENCE else None
                if other is None or other.size != np.size(label):
                    continue
                if not np.allclose(other.ravel(), np.ravel(label), rtol=1e-6, atol=1e-4, equal_nan=True):
                    said.setdefault(str(key), []).append(i)
    return [
        f"{len(where)} of {len(frames)} frames have {key!r} besides the label that is read, with other values: if "
        f'{key!r} is the reference, and the other a prediction or of another method, use label_prefix="'
        f'{key.removesuffix(str(_kind(key)))}", else remove it'
        for key, where in said.items()
    ]


# ----------------------------------------------------------------------- values


def _impossible_multiplicities(
    frames: Sequence[Atoms], pairs: Sequence[tuple[Structure, Labels]]
) -> list[str]:
    """Frames taken for neutral whose multiplicity only an ion can have: nothing said their charge."""
    found = []
    for i, (atoms, (structure, _)) in enumerate(zip(frames, pairs, strict=True)):
        if atoms.info.get("multiplicity") is None or structure.multiplicity is None:
            continue
        if not pairs_up(structure, structure.multiplicity - 1.0):
            found.append(i)
    if not found:
        return []
    s = pairs[found[0]][0]
    return [
        f"the multiplicity of {_list(found)} ({len(found)} in all) does not go with the number of electrons: "
        f"{s.multiplicity:g} with a total charge of {s.total_charge:g} e in the first. Is the total charge another one? "
        'Give it as atoms.info["total_charge"]'
    ]


def _live(frames: Sequence[Atoms], pairs: Sequence[tuple[Structure, Labels]], keys: LabelKeys) -> list[str]:
    """Results of a calculator that computes are not read: it may have gone on to another structure."""
    why = (
        "results of calculators that can compute again are not read, because they may belong to another structure by "
        "now. Freeze them when they are new: from ase.calculators.singlepoint import SinglePointCalculator; atoms.calc "
        "= SinglePointCalculator(atoms, **atoms.calc.results), or write and read the frames, or remove the calculator "
        "(atoms.calc = None)"
    )
    found: dict[int, str] = {}
    for i, (atoms, (_, labels)) in enumerate(zip(frames, pairs, strict=True)):
        calculator = atoms.calc
        if calculator is None or isinstance(calculator, SinglePointCalculator):
            continue
        results = getattr(calculator, "results", None) or {}
        kinds = ("energy", "forces", "stress", "dipole")
        wanted = [kind for kind in kinds if results.get(getattr(keys, kind)) is not None]
        missing = [kind for kind in wanted if getattr(labels, kind) is None]
        if not missing:
            continue
        what = f"a live calculator ({type(calculator).__name__}) with {', '.join(missing)}"
        if not labels.kinds:
            raise InputError(f"{describe(atoms, i)} has no labels, but carries {what}; {why}")
        found[i] = what
    if not found:
        return []
    first = next(iter(found.values()))
    return [f"{_list(list(found))} ({len(found)} in all) carry, beside their labels, {first}; {why}"]


def _embedded(frames: Sequence[Atoms]) -> list[str]:
    """Frames that were computed among charges which labels do not hold."""
    found = [i for i, atoms in enumerate(frames) if atoms.info.get(NOTED_OUTSIDE)]
    if not found:
        return []
    return [
        f"{_list(found)} ({len(found)} in all) were computed among external charges "
        f'(atoms.info["{NOTED_OUTSIDE}"]), which are not read: their energies and forces hold an interaction that a fit '
        "does not know. Leave them out, or compute them without"
    ]


def _list(indices: Sequence[int]) -> str:
    shown = ", ".join(map(str, indices[:5]))
    return f"{'frame' if len(indices) == 1 else 'frames'} {shown}{' ...' if len(indices) > 5 else ''}"


def _zero_energies(
    pairs: Sequence[tuple[Structure, Labels]],
) -> tuple[Sequence[tuple[Structure, Labels]], list[str]]:
    """Leave out energies that are all exactly zero; name some that are."""
    energies = {i: labels.energy for i, (_, labels) in enumerate(pairs) if labels.energy is not None}
    zero = [i for i, energy in energies.items() if energy == 0.0]
    if len(zero) == len(energies) and len(zero) > 1:
        left = [(structure, replace(labels, energy=None)) for structure, labels in pairs]
        return left, [
            f"the energies of all {len(zero)} frames are exactly 0.0 eV and are left out: formats without energies "
            "(LAMMPS dumps, for example) are read like that; give the energies in another way if there are some"
        ]
    if zero and (len(energies) > 1 or pairs[zero[0]][1].forces is not None):
        return pairs, [
            f"the energy of {_list(zero)} ({len(zero)} in all) is exactly 0.0 eV, which no calculation gives; remove "
            "such labels"
        ]
    return pairs, []


def _far_energies(pairs: Sequence[tuple[Structure, Labels]]) -> list[str]:
    """Frames whose energy is far from that of most others with the same composition and charge."""
    groups: dict[tuple[tuple[int, ...], float], list[tuple[int, float]]] = {}
    for i, (s, labels) in enumerate(pairs):
        if labels.energy is not None and labels.energy != 0.0:
            groups.setdefault(composition_and_charge(s), []).append((i, labels.energy / len(s)))
    found: dict[int, float] = {}
    for members in groups.values():
        middle = float(np.median([energy for _, energy in members])) if len(members) > 2 else math.nan
        found |= {i: energy - middle for i, energy in members if abs(energy - middle) > ANOTHER}
    if not found:
        return []
    first = next(iter(found))
    return [
        f"the energies of {_list(list(found))} ({len(found)} in all) are far from those of most frames with the same "
        f"composition and charge, by {found[first]:+.3g} eV/atom in the first: energies in another unit, of another "
        "method or of calculations that failed do not go together in one set; remove or convert them"
    ]


def _zero_vectors(pairs: Sequence[tuple[Structure, Labels]]) -> list[str]:
    """Forces that are zero, and other kinds of labels that are so in every frame."""
    zero = [
        i
        for i, (structure, labels) in enumerate(pairs)
        if len(structure) > 1 and labels.forces is not None and not labels.forces.any()
    ]
    doubts = []
    if zero and len(zero) < sum(labels.forces is not None for _, labels in pairs):
        doubts.append(
            f"the forces of {_list(zero)} ({len(zero)} in all) are exactly zero, which no calculation gives; remove such "
            "labels"
        )
    for kind in ("forces", "stress", "dipole"):
        values = [
            getattr(labels, kind)
            for structure, labels in pairs
            if len(structure) > 1 and (kind != "stress" or structure.pbc.all())
        ]
        values = [value for value in values if value is not None]
        if len(values) > 1 and not any(value.any() for value in values):
            doubts.append(
                f"the {kind} labels of all {len(values)} frames are exactly zero; if they were not computed, remove them "
                "or leave them out of targets"
            )
    return doubts


def _net_forces(pairs: Sequence[tuple[Structure, Labels]], noise: float) -> list[str]:
    """Frames whose forces do not sum to what the field does to the charge."""
    found: dict[int, float] = {}
    for i, (structure, labels) in enumerate(pairs):
        if labels.forces is None or structure.external_potential is not None:
            continue
        if structure.periodic and structure.external_field.any():
            continue
        net = labels.forces.sum(axis=0) - structure.total_charge * structure.external_field
        per_atom = float(np.linalg.norm(net)) / len(structure)
        if per_atom > NET_FORCE * noise:
            found[i] = per_atom
    if not found:
        return []
    return [
        f"the forces of {_list(list(found))} ({len(found)} in all) have a net force, up to "
        f"{max(found.values()):.3g} eV/Å per atom, where total charge and field give none or "
        "another; no model can follow it. Causes: a total charge or field that is missing or has another sign or "
        "unit, atoms that were held or left out, loose convergence"
    ]


def _contradicting_charges(frames: Sequence[Atoms], pairs: Sequence[tuple[Structure, Labels]]) -> list[str]:
    """Frames whose stored charges sum to another whole number than their total charge."""
    found: dict[int, float] = {}
    for i, (atoms, (structure, _)) in enumerate(zip(frames, pairs, strict=True)):
        for _, charges in stored_charges(atoms):
            total = float(charges.sum())
            whole = np.isfinite(total) and abs(total - round(total)) < 0.02 and np.abs(charges).max() < 4.0
            if whole and abs(total - structure.total_charge) > 0.5:
                found[i] = total
    if not found:
        return []
    first = next(iter(found))
    return [
        f"the stored charges of {_list(list(found))} ({len(found)} in all) sum to another total charge than the one "
        f"given: {found[first]:.3g} e, not {pairs[first][0].total_charge:g} e, in the first; correct total_charge"
    ]


def _free_energies(
    frames: Sequence[Atoms], pairs: Sequence[tuple[Structure, Labels]], keys: LabelKeys
) -> list[str]:
    """What was made of free energies."""
    if keys.free_energy is None:
        return []
    taken, other, largest = [], [], 0.0
    for i, (atoms, (structure, labels)) in enumerate(zip(frames, pairs, strict=True)):
        if labels.energy is None:
            continue
        if keys.free_energy == "free_energy" and keys.energy != "energy":
            break
        energy, free = (_scalar(atoms, key) for key in (keys.energy, keys.free_energy))
        if energy is None or free is None or abs(free - energy) < 1e-6:
            continue
        if choose_energy(energy, free, structure) == free:
            taken.append(i)
            largest = max(largest, abs(free - energy) / len(structure))
        else:
            other.append(i)
    notes = []
    if taken:
        both = len(taken) < sum(labels.energy is not None for _, labels in pairs)
        notes.append(
            f"{keys.energy} and {keys.free_energy} differ in {_list(taken)} ({len(taken)} in all), by up to "
            f"{1e3 * largest:.3g} meV/atom: {keys.free_energy} is fitted, because forces belong to it"
            f"{'; frames without it are fitted to their energy' if both else ''}"
        )
    if other:
        notes.append(
            f"{keys.free_energy} of {_list(other)} ({len(other)} in all) is too far from {keys.energy} to be that of "
            f"the electrons and is not used"
        )
    return notes


def _scalar(atoms: Atoms, key: str) -> float | None:
    value = atoms.info.get(key)
    if value is None and isinstance(atoms.calc, SinglePointCalculator):
        value = atoms.calc.results.get(key)
    array = None if value is None else as_numbers(value)
    return float(array.ravel()[0]) if array is not None and array.size == 1 else None


def _weights(pairs: Sequence[tuple[Structure, Labels]], keys: LabelKeys) -> list[str]:
    """Weights that act."""
    weights = np.array([labels.weight for _, labels in pairs])
    if not len(weights) or (weights == 1.0).all():
        return []
    return [
        f'frame weights from {weights.min():g} to {weights.max():g} (atoms.info["{keys.weight}"] and sample_weight) '
        f"multiply the squared residuals; {int((weights == 0.0).sum())} of {len(weights)} are zero"
    ]


def _lengths(structures: Sequence[Structure]) -> list[str]:
    """Whether the distances of a set can be in Å."""
    many = [s for s in structures if len(s) > 1]
    chosen = many[:: max(1, -(-len(many) // LOOKED_AT))]
    noble = {2, 10, 18, 36, 54, 86}
    ratios = [_shortest(s) for s in chosen if not noble & set(s.species)]
    ratios = [ratio for ratio in ratios if np.isfinite(ratio)]
    if len(ratios) < 2:
        return []
    if min(ratios) >= FAR:
        return [
            f"no two atoms of {len(ratios)} frames are closer than {min(ratios):.2f} times the sum of their "
            "covalent radii: positions must be in Å; in bohr they look 1.9 times too large"
        ]
    if max(ratios) <= NEAR:
        return [
            f"atoms of all of {len(ratios)} frames are as close as {max(ratios):.2f} times the sum of their "
            "covalent radii, or closer: positions must be in Å; in nm, or scaled, they look too small"
        ]
    return []


def _shortest(structure: Structure) -> float:
    """Shortest distance over the sum of covalent radii, among some of the atoms and all."""
    some = np.arange(len(structure))[:: max(1, len(structure) // LOOKED_AT)]
    distances: FloatArray = get_distances(
        structure.positions[some], structure.positions, cell=structure.cell, pbc=structure.pbc
    )[1]
    radii = covalent_radii[structure.numbers]
    ratio = distances / (radii[some, None] + radii[None, :])
    ratio[np.arange(len(some)), some] = np.inf
    return float(ratio.min())


__all__ = ["Survey", "survey", "unread_names"]
