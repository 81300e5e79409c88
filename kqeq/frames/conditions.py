"""Total charge and external field of a frame: the places that may state them, and the one reading of all.

================================================  =============================================================
place                                             who writes it
================================================  =============================================================
the argument                                      the user; wins over what a calculator was told
``info["total_charge"]``, ``info["charge"]``,     files, and the user; also with the label prefix before the
``info["external_field"]``                        name, and inside ``info["key_value_pairs"]`` and
                                                  ``info["data"]``, where ASE puts what a row of a database says
sums of fragment and reference charges            :mod:`kqeq.frames.site_data`
``info["calculator_total_charge"]``,              :class:`kqeq.KQEqCalculator`, so that what it was told is in
``info["calculator_external_field"]``             every file that ASE writes
``atoms.calc.parameters``, ``atoms.calc.name``    the calculator whose results a trajectory or a database holds
================================================  =============================================================

Two of them that disagree are an error.  Stored partition charges are no source, but a frame whose charges do not sum
to zero is not taken for neutral because nothing else was said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from kqeq.errors import InputError, LabelWarning, warn
from kqeq.frames.site_data import charge_sums
from kqeq.typing import FloatArray

CHARGE_KEYS = ("total_charge", "charge")
"""Names of the total charge in ``atoms.info``."""

FIELD_KEY = "external_field"
"""Name of the field in ``atoms.info``."""

MAX_CHARGE = 1e6
"""Total charges beyond this (e) are refused."""

MAX_FIELD = 1e6
"""Fields beyond this (V/Å) are refused."""

NOTED_CHARGE, NOTED_FIELD = "calculator_total_charge", "calculator_external_field"
"""Where a calculator notes what it was told, in ``atoms.info``."""

CALCULATOR_NAME = "kqeqcalculator"
"""How :class:`kqeq.KQEqCalculator` is called in files; its charge and field may follow."""

_CONTAINERS = ("key_value_pairs", "data")
"""Where ASE puts what a row of a database carries besides the structure."""

_PARAMETERS = (*CHARGE_KEYS, "net_charge", "tot_charge")
"""How calculators call the total charge that they are told."""

_MEANINGS = {CHARGE_KEYS[0]: "a total charge (e)", FIELD_KEY: "an external field (V/Å)"}

_PARTITIONS = ("hirshfeld", "mulliken", "lowdin", "loewdin", "bader", "ddec", "cm5", "resp", "chelpg", "nbo")

_NO_TOTAL = {"max", "min", "mean", "std", "abs", "core", "nuclear", "partial", "point", "spin", "background"}
"""Words that make a number whose name ends in charge something else than a total charge."""


def is_boolean(value: Any) -> bool:
    """Whether a value is a truth value or holds some; these are never numbers here."""
    if isinstance(value, (bool, np.bool_)):
        return True
    if isinstance(value, np.ndarray):
        return value.dtype.kind == "b" or (value.dtype.kind == "O" and any(map(is_boolean, value.flat)))
    return isinstance(value, (list, tuple)) and any(map(is_boolean, value))


def as_numbers(value: Any) -> FloatArray | None:
    """A new array of real numbers, or None for anything else: truth values, complex numbers, dates, ragged lists."""
    try:
        raw = np.asarray(value)
        if raw.dtype.kind not in "iufUSO" or is_boolean(value):
            return None
        return np.array(raw, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None


def check_field(value: Any, where: object) -> FloatArray:
    """Validate an external field: three finite numbers in V/Å."""
    # a copy: the array may be the user's own, and change later
    vector = as_numbers(value)
    if vector is None or vector.shape != (3,) or not np.isfinite(vector).all():
        raise InputError(
            f"external_field of {where} is {value!r}; expected three finite numbers (Ex, Ey, Ez) in V/Å"
        )
    if np.abs(vector).max() > MAX_FIELD:
        raise InputError(
            f"external_field of {where} is {value!r} V/Å, beyond {MAX_FIELD:g} V/Å "
            "(1 atomic unit is 51.4 V/Å)"
        )
    return vector


_SPEAKING_ARRAYS = frozenset({"initial_charges", "reference_charges", "fragments"})
"""Arrays of atoms that have a say in the total charge."""


def check_charge(value: Any, where: object) -> float:
    """Validate a total charge: one finite number in e."""
    array = as_numbers(value)
    if array is None or array.size != 1 or not np.isfinite(array).all():
        raise InputError(f"total_charge of {where} is {value!r}; expected one finite number (e)")
    if np.abs(array).max() > MAX_CHARGE:
        raise InputError(
            f"total_charge of {where} is {value!r} e, beyond {MAX_CHARGE:g} e; it is in units of the elementary charge"
        )
    # minus zero is zero
    return float(array.reshape(())) + 0.0


def require_number(total_charge: Any, where: object) -> None:
    """Refuse texts and lists as an argument; files may hold numbers as texts, a script has no reason to.

    Raises
    ------
    InputError
    """
    if isinstance(total_charge, str | bytes | list | tuple):
        raise InputError(
            f"total_charge of {where} is {total_charge!r}; expected one finite number (e), for example 1"
        )


def conditions(
    atoms: Atoms,
    *,
    total_charge: Any = None,
    external_field: Any = None,
    where: object = "the structure",
    prefix: str = "",
    calculator: bool = True,
    stale: Mapping[str, Sequence[Any]] | None = None,
) -> tuple[float, FloatArray]:
    """Total charge and field of a frame, from the arguments and from all that the frame says.

    See the table of :mod:`kqeq.frames.conditions`.  Without any source the structure is neutral and free of field.
    Initial charges (``atoms.get_initial_charges()``) are no source, but they must not contradict the result; nor may
    stored charges where nothing gives the total charge.

    Parameters
    ----------
    atoms : ase.Atoms
    total_charge : float, optional
        e.
    external_field : (3,) array-like, optional
        V/Å.
    where : object
        Prints as the name of the frame in messages.
    prefix : str
        Prefix of labels, with which names are looked for as well.
    calculator : bool
        Whether ``atoms.calc`` is looked at.
    stale : mapping of str to sequence, optional
        Notes of calculators that do not count any more, by key.

    Returns
    -------
    float, (3,) array
        Total charge (e) and field (V/Å).

    Raises
    ------
    InputError
        If two sources disagree, a value is not finite or has the wrong shape, or is a truth value and the only source;
        for charges see above.
    """
    require_number(total_charge, where)
    if _says_nothing(atoms, calculator):
        if total_charge is None:
            _check_neutral(atoms, where, calculator)
        charge = 0.0 if total_charge is None else check_charge(total_charge, where)
        return charge, np.zeros(3) if external_field is None else check_field(external_field, where)
    told = list(_told(atoms, calculator, stale or {}))
    charges = [("the argument total_charge", total_charge)]
    charges += _stated(atoms, CHARGE_KEYS, prefix)
    words = [(name, value) for name, value in charges[1:] if is_boolean(value)]
    found = [
        (name, check_charge(value, where))
        for name, value in charges
        if value is not None and (name, value) not in words
    ]
    found += charge_sums(atoms, where)
    if total_charge is None:
        found += [(name, check_charge(value, where)) for name, value, _ in told if value is not None]
    for name, value in found[1:]:
        # sums of arrays carry the rounding of a file
        if abs(value - found[0][1]) > (1e-4 if "sum" in name else 1e-8):
            raise InputError(
                f"{where} has two total charges: {found[0][0]} says {found[0][1]:g} e, {name} says {value:g} e; "
                "remove one of them or make them agree"
            )
    if words and not found:
        raise _word(*words[0], where, "total charge", "total_charge=1")
    charge = found[0][1] if found else 0.0
    if atoms.has("initial_charges"):
        initial = float(atoms.get_initial_charges().sum())
        if abs(initial - charge) > 0.5 and abs(initial) > 0.5:
            raise InputError(
                f"{where} has initial charges that sum to {initial:g} e while its total charge is {charge:g} e"
                f"{'' if found else ' (nothing says otherwise)'}; set total_charge explicitly and remove or "
                "correct the initial charges"
            )
    if not found:
        _check_neutral(atoms, where, calculator)
    return charge, _field(atoms, external_field, told, where, prefix)


def _says_nothing(atoms: Atoms, calculator: bool) -> bool:
    """Whether a frame has nothing that states a charge or a field, as in most steps of a trajectory."""
    return (
        not atoms.info
        and _SPEAKING_ARRAYS.isdisjoint(atoms.arrays)
        and (not calculator or atoms.calc is None)
    )


def _field(
    atoms: Atoms, argument: Any, told: list[tuple[str, Any, Any]], where: object, prefix: str
) -> FloatArray:
    """The field of a frame; see :func:`conditions`."""
    fields = [("the argument external_field", argument), *_stated(atoms, (FIELD_KEY,), prefix)]
    words = [(name, value) for name, value in fields[1:] if is_boolean(value) and np.ndim(value) == 0]
    vectors = [
        (name, check_field(value, where))
        for name, value in fields
        if value is not None and not any(name == word for word, _ in words)
    ]
    if argument is None:
        vectors += [(name, check_field(value, where)) for name, _, value in told if value is not None]
    for name, vector in vectors[1:]:
        if np.abs(vector - vectors[0][1]).max() > 1e-10:
            raise InputError(
                f"{where} has two external fields: {vectors[0][0]} says {vectors[0][1].tolist()} V/Å, {name} says "
                f"{vector.tolist()} V/Å; remove one of them or make them agree"
            )
    if words and not vectors:
        raise _word(*words[0], where, "external field", 'external_field="0 0 0.1"')
    return vectors[0][1] if vectors else np.zeros(3)


def _word(name: str, value: Any, where: object, what: str, example: str) -> InputError:
    return InputError(
        f"{name} of {where} is {value!r}, which is no {what}: a bare word in the comment line of an XYZ file is read "
        f"as True. Write {example} there, give the value as an argument, or remove the word"
    )


def _stated(atoms: Atoms, keys: tuple[str, ...], prefix: str) -> list[tuple[str, Any]]:
    """What ``atoms.info`` says under some names, with and without prefix, and in rows of databases."""
    info, found = atoms.info, []
    names = keys if not prefix else tuple(dict.fromkeys([*keys, *(prefix + key for key in keys)]))
    containers = [name for name in _CONTAINERS if isinstance(info.get(name), Mapping)]
    for key in names:
        if info.get(key) is not None:
            found.append((f'atoms.info["{key}"]', info[key]))
        for container in containers:
            value = info[container].get(key)
            if value is not None:
                found.append((f'atoms.info["{container}"]["{key}"]', value))
    return found


def _told(
    atoms: Atoms, calculator: bool, stale: Mapping[str, Sequence[Any]]
) -> Iterator[tuple[str, Any, Any]]:
    """Name, charge and field of what calculators were told, as far as a frame has kept it."""
    name = str(getattr(atoms.calc, "name", None) or "") if calculator and atoms.calc is not None else ""
    own = name.startswith(CALCULATOR_NAME)
    # one that is there speaks for itself; its notes and its name are of the last time that it computed
    alive = own and not isinstance(atoms.calc, SinglePointCalculator)
    for key in (NOTED_CHARGE, NOTED_FIELD):
        value = atoms.info.get(key)
        if value is not None and not alive and not is_among(value, stale.get(key, ())):
            yield f'atoms.info["{key}"]', *((value, None) if key == NOTED_CHARGE else (None, value))
    if not calculator or atoms.calc is None:
        return
    charge, field = read_name(name)
    if not alive and (charge is not None or field is not None):
        yield "atoms.calc.name", charge, field
    parameters = _parameters(atoms)
    for key in _PARAMETERS:
        value = parameters.get(key)
        if value is not None and not is_boolean(value) and np.ndim(value) == 0:
            yield f'atoms.calc.parameters["{key}"]', value, None
    # other calculators have other units and signs for their fields: see warn_unread_conditions
    if own and parameters.get(FIELD_KEY) is not None:
        yield f'atoms.calc.parameters["{FIELD_KEY}"]', None, parameters[FIELD_KEY]


def is_among(value: Any, others: Sequence[Any]) -> bool:
    """Whether a value of ``atoms.info`` is one of some."""
    return any(np.array_equal(value, other) for other in others)


def _parameters(atoms: Atoms) -> dict[str, Any]:
    """What the calculator of a frame was told, by the last word: some programs have their input in sections."""
    found: dict[str, Any] = {}

    def collect(section: Any, depth: int) -> None:
        try:
            items = [(str(key), section[key]) for key in section]
        except (TypeError, KeyError, AttributeError):
            return
        for key, value in items:
            if isinstance(value, Mapping) and depth < 3:
                collect(value, depth + 1)
            else:
                found.setdefault(key.lower(), value)

    if getattr(atoms.calc, "parameters", None) is not None:
        collect(atoms.calc.parameters, 0)
    return found


def write_name(charge: float, field: FloatArray) -> str:
    """Name under which files know :class:`kqeq.KQEqCalculator`; databases keep nothing else that it was told."""
    name = CALCULATOR_NAME
    if charge:
        name += f" {CHARGE_KEYS[0]}={charge!r}"
    if field.any():
        name += f" {FIELD_KEY}=" + ",".join(map(repr, field.tolist()))
    return name


def read_name(name: str) -> tuple[float | None, list[float] | None]:
    """Charge and field in a name that :func:`write_name` made."""
    charge, field = None, None
    if name.startswith(CALCULATOR_NAME):
        for word in name.split()[1:]:
            key, _, value = word.partition("=")
            try:
                numbers = [float(part) for part in value.split(",")]
            except ValueError:
                continue
            if key == CHARGE_KEYS[0]:
                charge = numbers[0]
            elif key == FIELD_KEY:
                field = numbers
    return charge, field


def stored_charges(atoms: Atoms, calculator: bool = True) -> Iterator[tuple[str, FloatArray]]:
    """Partition charges that a frame has stored, with names for messages."""
    if calculator and atoms.calc is not None:
        yield from _charges(
            "the results of its calculator", (getattr(atoms.calc, "results", {}) or {}), atoms
        )
    yield from _charges("atoms.arrays", atoms.arrays, atoms)


@lru_cache(maxsize=4096)
def _names_charges(key: str) -> bool:
    """Whether a name is one of partition charges."""
    words = _words(key)
    if key in ("reference_charges", "initial_charges") or _NO_TOTAL & set(words):
        return False
    named = "charges" in words or "charge" in words or words == ("q",)
    return named or any(name in words for name in _PARTITIONS)


def is_partition(key: str) -> bool:
    """Whether a name is that of a partition of charges, and of nothing else that belongs to it (volumes, ratios)."""
    words = _words(key)
    return bool(words) and words[-1] in _PARTITIONS


def _charges(place: str, values: Mapping[str, Any], atoms: Atoms) -> Iterator[tuple[str, FloatArray]]:
    for key, value in values.items():
        if not _names_charges(key):
            continue
        array = np.asarray(value)
        if array.dtype.kind in "iuf" and array.shape in ((len(atoms),), (len(atoms), 1)):
            yield f'"{key}" in {place}', np.asarray(array, dtype=np.float64).ravel()


_PLAIN_ARRAYS = frozenset({"numbers", "positions", "momenta", "masses", "tags"})
"""Arrays that hold no charges, whatever happens."""


def _check_neutral(atoms: Atoms, where: object, calculator: bool) -> None:
    """Refuse to take a frame for neutral whose stored charges say otherwise."""
    if (not calculator or atoms.calc is None) and atoms.arrays.keys() <= _PLAIN_ARRAYS:
        return
    for name, charges in stored_charges(atoms, calculator):
        total = float(charges.sum())
        if np.isfinite(total) and abs(total) > 0.5:
            raise InputError(
                f"nothing gives the total charge of {where}, but the charges {name} sum to {total:.3g} e; set "
                f'atoms.info["total_charge"] = {round(total)}, or 0 if it is neutral and these are no net charges'
            )


@lru_cache(maxsize=4096)
def _words(key: str) -> tuple[str, ...]:
    """The words of a name in lower case: ``REF_totalCharge`` is ref, total, charge."""
    return tuple(re.findall(r"[a-z]+|\d+", re.sub(r"([a-z])([A-Z])", r"\1 \2", str(key)).lower()))


@lru_cache(maxsize=4096)
def _resembles(key: str) -> str | None:
    """Whether a name that is not read looks like that of a total charge or a field."""
    # "charge:" and "charge:-1" are words of a comment
    words = tuple(word for word in _words(key) if not word.isdigit())
    last, joined = (words[-1], "".join(words)) if words else ("", "")
    if _NO_TOTAL & set(words):
        return None
    if joined.endswith(("charge", "chrg", "chg", "qtot", "totq")) or joined == "q" or key == "charges":
        return "total_charge"
    if (last.endswith("field") or joined.endswith("efield")) and not {"magnetic", "force", "bfield"} & set(
        words
    ):
        return "external_field"
    return None


def warn_unread_conditions(
    atoms: Atoms,
    charge: float,
    field: FloatArray,
    *,
    prefix: str = "",
    given: tuple[bool, bool] = (False, False),
) -> None:
    """Warn of numbers under names that resemble those of charge and field, are not read, and say something else.

    Parameters
    ----------
    atoms : ase.Atoms
    charge, field
        What was read.
    prefix : str
        Of labels.
    given : (bool, bool)
        Whether charge and field were given as arguments: then what the frame says matters no more.
    """
    if _says_nothing(atoms, True) and all(_resembles(key) is None for key in atoms.arrays):
        return
    if not given[0] and charge == 0.0:
        _warn_two_numbers(atoms)
        row = atoms.info.get("key_value_pairs")
        if isinstance(row, Mapping) and "charge" in row and "unique_id" in atoms.info:
            warn(
                "a row of a database has a pair named charge; ASE hides its value behind the sum of the initial charges: "
                "call it total_charge, or read the file with the kqeq command",
                LabelWarning,
            )
    read = {*CHARGE_KEYS, FIELD_KEY, NOTED_CHARGE, NOTED_FIELD}
    read |= {prefix + key for key in read}
    places = [("atoms.info", atoms.info, read)]
    places += [
        (f'atoms.info["{name}"]', atoms.info[name], read)
        for name in _CONTAINERS
        if isinstance(atoms.info.get(name), Mapping)
    ]
    if atoms.calc is not None:
        places.append(("atoms.calc.parameters", _parameters(atoms), read | set(_PARAMETERS)))
    for place, values, known in places:
        for key, value in values.items():
            kind = None if key in known else _resembles(str(key))
            if kind is not None and value is True and not given[kind == FIELD_KEY]:
                _warn_word(place, key, kind)
            number = None if kind is None else as_numbers(value)
            if kind is None or number is None:
                continue
            if kind == CHARGE_KEYS[0]:
                differs = number.size == 1 and not given[0] and not np.allclose(number, charge, atol=1e-4)
            else:
                differs = number.size == 3 and not given[1]
                differs = differs and not np.allclose(number.ravel(), field, rtol=1e-6, atol=1e-10)
            if differs:
                also = " or set label_prefix," if str(key).endswith((CHARGE_KEYS[0], FIELD_KEY)) else ""
                warn(
                    f'{place}["{key}"] looks like {_MEANINGS[kind]} and says something else than what was read from '
                    f"other places (or taken for granted); it is not read: call it {kind},{also} or remove it",
                    LabelWarning,
                )


def _warn_word(place: str, key: str, kind: str) -> None:
    warn(
        f'{place}["{key}"] is True, a bare word: if the comment of the file was to give {_MEANINGS[kind]}, it was not '
        f"read; write {kind}=...",
        LabelWarning,
    )


def _warn_two_numbers(atoms: Atoms) -> None:
    """Plain XYZ files of quantum chemistry have total charge and multiplicity as their comment, and nothing else."""
    words = [key for key, value in atoms.info.items() if value is True]
    if len(words) == len(atoms.info) == 2 and all(re.fullmatch(r"[+-]?\d+", str(word)) for word in words):
        charge, multiplicity = map(int, words)
        if charge != 0 and multiplicity > 0:
            warn(
                f'the comment of a frame is "{words[0]} {words[1]}": if that is total charge and multiplicity, it is not '
                f"read; write total_charge={charge}",
                LabelWarning,
            )


def without_conditions(atoms: Atoms, *, charge: bool = True, field: bool = True, prefix: str = "") -> Atoms:
    """A copy of a frame without calculator and without statements about its total charge or field.

    Fragment and reference charges stay, and have to agree with what is said next.

    Parameters
    ----------
    atoms : ase.Atoms
    charge, field : bool
        What to take away.
    prefix : str
        Of labels.
    """
    names = [*CHARGE_KEYS, NOTED_CHARGE] if charge else []
    names += [FIELD_KEY, NOTED_FIELD] if field else []
    names += [prefix + name for name in names]
    copy: Atoms = atoms.copy()
    for name in names:
        copy.info.pop(name, None)
    for container in _CONTAINERS:
        row = copy.info.get(container)
        if isinstance(row, Mapping):
            copy.info[container] = {key: value for key, value in row.items() if key not in names}
    if charge:
        copy.arrays.pop("initial_charges", None)
    for _, value, vector in _told(atoms, True, {}):  # a copy has no calculator
        if value is not None and not charge:
            copy.info[NOTED_CHARGE] = value
        if vector is not None and not field:
            copy.info[NOTED_FIELD] = np.array(vector)
    return copy


def under_conditions(
    atoms: Atoms, total_charge: float, external_field: FloatArray, prefix: str = ""
) -> Atoms:
    """A copy of a frame that says nothing else of its conditions than these, under the standard names."""
    copy = without_conditions(atoms, prefix=prefix)
    copy.info.update(total_charge=total_charge, external_field=external_field)
    return copy


__all__ = [
    "CHARGE_KEYS",
    "FIELD_KEY",
    "NOTED_CHARGE",
    "NOTED_FIELD",
    "as_numbers",
    "check_charge",
    "check_field",
    "conditions",
    "is_among",
    "is_boolean",
    "is_partition",
    "read_name",
    "require_number",
    "stored_charges",
    "under_conditions",
    "warn_unread_conditions",
    "without_conditions",
    "write_name",
]
