"""Files of the command line: frames in, frames and JSON out."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kqeq.errors import InputError, KQEqError, LabelWarning, warn
from kqeq.frames.outputs import with_stated

if TYPE_CHECKING:
    from ase import Atoms

    from kqeq.potential.potential import Potential, Prediction

FRAMES = "extended XYZ or any other file that ASE reads; FILE@:10 takes the first ten frames"
"""Help for arguments that name frames."""

_PACKED = (".gz", ".bz2", ".xz")
"""Endings of compressed files, behind that of the format."""

_TABLES = (".npz", ".npy", ".h5", ".hdf5", ".csv", ".pkl", ".mat", ".lmdb")
"""Endings of files of arrays."""

_ROW_ARRAYS = {"numbers", "positions", "masses", "tags", "momenta", "initial_charges", "initial_magmoms"}
"""Arrays that rows of ASE's databases have a place for."""

_RESERVED = {"Properties", "Lattice", "pbc"}
"""Words of the comment line that extended XYZ uses itself."""


def read_frames(paths: Sequence[str]) -> list[Atoms]:
    """Frames of all files, in order.

    Raises
    ------
    InputError
        Naming the file that is missing, empty or unreadable, or the frames that it does not have.
    """
    frames: list[Atoms] = []
    for path in paths:
        # ASE's own syntax for a choice of frames: FILE@slice
        name, choice = (path, "") if Path(path).exists() else path.rpartition("@")[::2]
        name = name or path
        if name == "-":
            raise InputError("standard input (-) is not read; write the structures to a file and name that")
        if not Path(name).exists():
            raise InputError(f"there is no file {name}")
        if Path(name).is_dir():
            raise InputError(f"{name} is a folder; expected a file with structures")
        if not Path(name).is_file():
            raise InputError(f"{name} is a pipe or a device; write the structures to a file and name that")
        if Path(name).stat().st_size == 0:
            raise InputError(f"{name} is empty; expected a file with structures")
        _check_table(name)
        frames += _read(name, choice, path)
    return frames


def _check_table(name: str) -> None:
    """Look over an XYZ file for what ASE passes over.

    A count of atoms that the file has no room for makes ASE look for them for ever, and columns that the comment does
    not name are left out in silence.

    Raises
    ------
    InputError
        For such a count.

    Warns
    -----
    LabelWarning
        Of such columns.
    """
    from ase.io.formats import UnknownFileTypeError, filetype, open_with_compression

    try:
        if filetype(name) not in ("extxyz", "xyz"):
            return
    except (UnknownFileTypeError, OSError, ValueError):
        return
    with open_with_compression(name, "rb") as binary:
        file = TextIOWrapper(
            binary, encoding="utf-8", errors="replace"
        )  # with the line ends of all systems, as ASE
        number = 0
        wide: dict[str, list[int]] = {}
        while True:
            line = file.readline(64).strip()
            try:
                count = int(line)
            except ValueError:
                break  # the end, or something that ASE refuses
            if count < 0:
                raise InputError(
                    f"frame {number} of {name} announces {count} atoms; the file is truncated or damaged"
                )
            comment = file.readline()
            if not _quotes_match(comment):
                warn(
                    f"the comment of frame {number} of {name} has quotation marks that do not match: what stands behind "
                    "them may be misread",
                    LabelWarning,
                )
            named = re.search(r'(?:^|\s)Properties="?([^\s"]*)', comment)
            widths = [] if named is None else re.findall(r":[A-Za-z]:(\d+)", named[1])
            wanted = sum(map(int, widths)) if named else 4
            warned = False
            for row in range(count):
                line = file.readline()
                if not line:
                    raise InputError(
                        f"frame {number} of {name} announces {count} atoms, but only {row} lines follow its "
                        "comment; the file is truncated or damaged"
                    )
                if len(line.split()) > wanted and not warned:
                    stands = (
                        "Properties in its comment names"
                        if named
                        else "a comment without Properties stands for"
                    )
                    wide.setdefault(f"{len(line.split())} columns and {stands} {wanted}", []).append(number)
                    warned = True
            number += 1
    for what, frames in wide.items():
        more = f" (and {len(frames) - 1} more)" if len(frames) > 1 else ""
        warn(
            f"frame {frames[0]}{more} of {name} has {what}: the others are not read, whatever labels they hold; for "
            "forces write Properties=species:S:1:pos:R:3:forces:R:3 into the comment, and energy=... (eV)",
            LabelWarning,
        )


def _quotes_match(comment: str) -> bool:
    """Whether quotation marks come in pairs, with blanks behind the second."""
    if '"' not in comment or "=" not in comment:
        return True
    parts = re.sub(r"\\.", "", comment).split('"')
    return len(parts) % 2 == 1 and all(not part[:1].strip() for part in parts[2::2])


def _read(name: str, choice: str, path: str) -> list[Atoms]:
    """Frames of one file."""
    index = _index(choice, path)
    try:
        everything = _load(name, index)
    except KQEqError:
        raise
    except Exception as error:  # ASE's many readers fail in as many ways
        reason = " ".join(str(error).split()) or type(error).__name__
        if Path(name).suffix.lower() in _TABLES:
            reason = (
                f"arrays and tables ({Path(name).suffix}) do not say what their columns mean, nor their units. Make "
                "frames of them in Python and write those as extended XYZ (docs/from_dft.md, arrays)"
            )
        raise InputError(f"cannot read structures from {path}: {reason}") from None
    if isinstance(index, int):
        if not -len(everything) <= index < len(everything):
            raise InputError(
                f"there is no frame {index} in {name}, which holds {len(everything)}: frames count from 0, and from -1 "
                "backwards"
            )
        return [everything[index]]
    chosen = everything[index] if isinstance(index, slice) else everything
    if not chosen:
        some = f" of its {len(everything)} structures" if everything else ""
        raise InputError(f"{path} holds no structures" if not some else f"{path} chooses none{some}")
    return chosen


def _load(name: str, index: int | slice | str = "", kind: str | None = None) -> list[Atoms]:
    """All frames of a file, or those that a query finds in a database; whatever ASE raises."""
    from ase.io import read

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of libraries, about each other
        rows = _read_rows(name, index)
        if rows is not None:
            return rows
        query = index if isinstance(index, str) and index else ":"
        warnings.simplefilter("ignore", FutureWarning)  # FHI-aims's reader will move to a plugin
        found = read(name, index=query, format=kind, do_not_split_by_at_sign=True)
    frames = [atoms for atoms in (found if isinstance(found, list) else [found]) if atoms is not None]
    return with_stated(frames, name, kind)


def _index(choice: str, path: str) -> int | slice | str:
    """``FILE@choice`` as in Python: a number or a slice; queries of databases stay as they are."""
    if not choice:
        return slice(None)
    if "=" in choice or "," in choice or "<" in choice or ">" in choice:
        return choice
    try:
        parts = [int(part) if part.strip() else None for part in choice.split(":")]
        if len(parts) == 3 and parts[2] == 0:
            raise ValueError
        if len(parts) == 1 and parts[0] is not None:
            return parts[0]
        return slice(*parts)
    except (ValueError, TypeError):
        raise InputError(
            f"cannot read structures from {path}: {choice!r} behind the @ is no choice of frames; expected a number or "
            "a slice such as 3, -1, :10, ::2"
        ) from None


def _read_rows(name: str, index: int | slice | str) -> list[Atoms] | None:
    """Frames of an ASE database with what its rows say besides the structure; None for other files."""
    from ase.io.formats import filetype

    if Path(name).suffix.lower() not in (".db", ".json") or filetype(name) not in ("db", "json"):
        return None
    import ase.db
    import numpy as np

    from kqeq.frames.site_data import ARRAY_KEYS

    frames = []
    with ase.db.connect(name) as database:
        for row in database.select(index if isinstance(index, str) and index else None):
            atoms = row.toatoms()
            data = dict(row.get("data") or {})
            arrays = data.pop("arrays", None)
            arrays = dict(arrays) if isinstance(arrays, dict) else {}
            arrays.update({key: data.pop(key) for key in ARRAY_KEYS if key in data})
            for key, value in arrays.items():
                atoms.set_array(key, np.asarray(value))
            # not row.key_value_pairs: a pair named charge is hidden there by the sum of the initial charges
            pairs = {key: vars(row)[key] for key in row.key_value_pairs if key in vars(row)}
            atoms.info.update({**data, **pairs})
            parameters = row.get("calculator_parameters")
            if atoms.calc is not None and parameters:
                atoms.calc.parameters.update(parameters)
            frames.append(atoms)
    return frames


def read_one(
    path: str, purpose: str, *, charge: float | None = None, field: Any = None, prefix: str = ""
) -> Atoms:
    """The only structure of a file, at another charge or in another field if they are given.

    What is typed takes the place of what the file says of the total charge and the field (charges of
    fragments and reference charges stay, and must agree); a line on standard error says so where the two differ.

    Raises
    ------
    InputError
        As :func:`read_frames`, and for files that hold several.
    """
    frames = read_frames([path])
    if len(frames) != 1:
        raise InputError(
            f"{path} holds {len(frames)} structures and one is {purpose} at a time; "
            "choose one, for example IN.xyz@-1 for the last"
        )
    atoms = frames[0]
    return under_typed_conditions(atoms, path, charge=charge, field=field, prefix=prefix)


def under_typed_conditions(
    atoms: Atoms,
    path: str,
    *,
    charge: float | None = None,
    field: Any = None,
    prefix: str = "",
    told: set[str] | None = None,
) -> Atoms:
    """A structure at the charge and in the field that were typed, as :func:`read_one` says.

    What was said already stands in ``told``, and is not said again.

    Raises
    ------
    InputError
        If charges of fragments or reference charges do not agree with what was typed.
    """
    import numpy as np

    from kqeq.frames.conditions import (
        CHARGE_KEYS,
        FIELD_KEY,
        conditions,
        under_conditions,
        without_conditions,
    )

    for option, given, *names in (("--charge", charge, *CHARGE_KEYS), ("--field", field, FIELD_KEY)):
        if given is None:
            continue
        for name in dict.fromkeys([*names, *(prefix + name for name in names)]):
            stored = atoms.info.get(name)
            if stored is not None and not np.array_equal(stored, given):
                line = f"kqeq: {option} replaces {name} {stored} of {path}"
                if told is None or line not in told:
                    print(line, file=sys.stderr)
                if told is not None:
                    told.add(line)
    if charge is None and field is None:
        return atoms
    # what is not typed stays as the file says it, in whatever place
    rest = without_conditions(atoms, charge=charge is not None, field=field is not None, prefix=prefix)
    rest.calc = atoms.calc
    charge, field = conditions(
        rest, total_charge=charge, external_field=field, where=f"the structure in {path}", prefix=prefix
    )
    return under_conditions(atoms, charge, field, prefix)


def with_results(atoms: Atoms, prediction: Prediction, potential: Potential) -> Atoms:
    """A copy of a frame that carries a prediction under ASE's names.

    Energy, forces, stress, charges and dipole become the results of a single-point calculator; the parts of the
    energy, polarizability (nine numbers), chemical potential, charge and field go to ``info``, electronegativities to
    ``arrays``.  Labels of those names that the frame had are kept as ``REF_...``.
    """
    from ase.calculators.singlepoint import SinglePointCalculator

    from kqeq.frames.conditions import without_conditions

    results: dict[str, Any] = {}
    info: dict[str, Any] = {
        "total_charge": prediction.total_charge,
        "external_field": prediction.external_field,
    }
    arrays: dict[str, Any] = {}
    info.update(energy_std=prediction.energy_std, dipole_std=prediction.dipole_std)
    arrays.update(forces_std=prediction.forces_std, charges_std=prediction.charges_std)
    if potential.has_energy:
        results.update(energy=prediction.energy, forces=prediction.forces, stress=prediction.stress)
        info["energy_short_range"] = prediction.energy_short_range
        info["energy_electrostatic"] = prediction.energy_electrostatic
    if potential.has_charges:
        results.update(charges=prediction.charges, dipole=prediction.dipole)
        if prediction.polarizability is not None:
            info["polarizability"] = prediction.polarizability.ravel()
        info["chemical_potential"] = prediction.chemical_potential
        arrays["electronegativity"] = prediction.electronegativity
    results, info, arrays = (
        {name: value for name, value in part.items() if value is not None} for part in (results, info, arrays)
    )

    copy = without_conditions(atoms)
    if atoms.has("initial_charges"):
        copy.set_initial_charges(atoms.get_initial_charges())
    stored = {} if atoms.calc is None else atoms.calc.results
    # the free energy of another method must not be taken for that of this energy
    others = ("free_energy",) if "energy" in results else ()
    for name in (*results, *info, *arrays, *others):
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


# ---------------------------------------------------------------------- writing


def check_output(path: str) -> str:
    """Name of ASE's format for a file to write, by its ending; extended XYZ where it has none.

    Raises
    ------
    InputError
        For endings that ASE does not write, or writes as pictures that cannot be read back, and for paths that cannot
        be written.
    """
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    from kqeq.io.atomic_write import check_writable

    check_writable(path)
    name = Path(path).name
    for packed in _PACKED:
        name = name.removesuffix(packed)
    ending = Path(name).suffix.lower()
    if ending in (".xyz", ".extxyz") or (Path(path).exists() and not Path(path).is_file()):
        return "extxyz"  # also to devices, /dev/null for example
    try:
        found = filetype(name, read=False)
        kind = ioformats[found]
    except (UnknownFileTypeError, KeyError):
        kind = None
        if not ending:
            return "extxyz"
    if kind is None or not kind.can_write or not kind.can_read:
        raise InputError(
            f"cannot write frames to {path}: {ending or name} is no ending of a format that ASE writes and reads "
            "back; use .xyz, which keeps all results, or .traj, .json, .db"
        )
    return str(found)


def write_frames(path: str, frames: Sequence[Atoms]) -> None:
    """Write frames in the format of the file's ending, atomically, and make sure that they can be read back.

    Entries of ``info`` and arrays that the format cannot hold are left out, and named on standard error.

    Raises
    ------
    InputError
        For endings without a format, and where ASE cannot write these frames in it or read them back.
    """
    from ase.io import write

    from kqeq.io.atomic_write import atomic_path

    kind = check_output(path)
    lost: dict[str, None] = {}
    if kind == "extxyz":
        frames = [_writable(atoms, lost) for atoms in frames]
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if kind in ("db", "json"):
                temporary.unlink()  # ASE would add to what is there
                _write_rows(str(temporary), frames, kind)
            else:
                write(temporary, list(frames), format=kind)
            if temporary.is_file():
                plain = Path(path).suffix in ("", *_PACKED)  # a name that says nothing, or not enough
                back = _load(str(temporary), kind=kind if plain else None)
                if len(back) != len(frames):
                    raise InputError(f"it holds {len(back)} of {len(frames)} frames")
                for before, after in zip(frames, back, strict=True):
                    if len(before) != len(after):
                        raise InputError("a frame has other atoms")
                    lost.update(_missing(before, after))
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from None
        except Exception as error:  # ASE's many writers fail in as many ways
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"cannot write {len(frames)} frames to {path} as {kind}: {reason}; use .xyz or .traj, which hold "
                "everything"
            ) from None
    if lost:
        print(f"kqeq: {path} cannot hold {', '.join(lost)}; left out", file=sys.stderr)


def append_frame(path: str, atoms: Atoms) -> None:
    """Add a frame to a trajectory, extended XYZ or ASE's own.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    from ase.io import Trajectory, write

    try:
        if Path(path).suffix.lower() == ".traj":
            with Trajectory(path, "a", atoms) as trajectory:
                trajectory.write()
        else:
            write(path, _writable(atoms, {}), format="extxyz", append=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def complete_frames(path: str) -> list[Atoms]:
    """Frames of a trajectory that a program may have left in the middle of writing; cuts off what is not complete.

    Raises
    ------
    InputError
        If there is no complete frame.
    """
    if Path(path).suffix.lower() != ".traj":
        data = Path(path).read_bytes()
        end = 0
        while True:
            stop = data.find(b"\n", end)
            count = data[end:stop].strip() if stop >= 0 else b""
            if not count.isdigit():
                break
            position = stop + 1
            for _ in range(int(count) + 1):
                position = data.find(b"\n", position) + 1
                if position == 0:
                    break
            if position == 0:
                break
            end = position
        if end < len(data):
            print(f"kqeq: the last frame of {path} is not complete; cut off", file=sys.stderr)
            with Path(path).open("r+b") as file:
                file.truncate(end)
    return read_frames([path])


def _writable(atoms: Atoms, lost: dict[str, None]) -> Atoms:
    """A copy without what extended XYZ would not give back."""
    copy: Atoms = atoms.copy()
    copy.calc = atoms.calc
    for key in list(copy.info):
        value = copy.info[key]
        texts = [value]
        if isinstance(value, str):
            # line breaks and backslashes need a second coat: ASE's reader takes one off
            texts.append("_JSON " + json.dumps(value).replace("\\", "\\\\"))
        del copy.info[key]
        for text in texts:
            if key not in _RESERVED and _survives(key, text, value):
                copy.info[key] = text
                break
        else:
            lost[f'info["{key}"]'] = None
    for key in list(copy.arrays):
        values = copy.arrays[key]
        good = values.dtype.kind in "ifb" or (
            values.dtype.kind == "U" and all(len(word.split()) == 1 for word in values.ravel())
        )
        if (
            not good
            or values.ndim > 2
            or (values.ndim == 2 and values.shape[1] == 0)
            or set(key) & set(': \t\n"=')
        ):
            del copy.arrays[key]
            lost[f'arrays["{key}"]'] = None
    return copy


def _survives(key: Any, text: Any, value: Any) -> bool:
    """Whether an entry of ``info``, written as ``text``, comes back from the comment line as its value."""
    from ase.io.extxyz import key_val_dict_to_str, key_val_str_to_dict

    try:
        line = key_val_dict_to_str({key: text})
        back = key_val_str_to_dict(line)
        return len(line.splitlines()) < 2 and set(back) == {key} and _alike(back[key], value)
    except Exception:  # whatever the value does to ASE's writer or reader
        return False


def _alike(back: Any, value: Any) -> bool:
    """Whether a value came back as itself, or as the array or number that it can be read as."""
    import numpy as np

    if value is None or isinstance(value, (str, dict, bool)):
        return bool(np.all(back == value)) if not isinstance(value, str) else _same_text(back, value)
    first, second = np.asarray(back), np.asarray(value)
    if first.dtype.kind in "ifb" and second.dtype.kind in "iufb":
        return first.shape == second.shape and bool(np.allclose(first, second, equal_nan=True))
    return bool(first.shape == second.shape and np.all(first == second))


def _same_text(back: Any, value: str) -> bool:
    """Texts that look like numbers come back as such, as they would from any file."""
    return str(back) == value or not isinstance(back, str)


def _write_rows(path: str, frames: Sequence[Atoms], kind: str) -> None:
    """Write a database whose rows keep, in their data, what is in ``info`` and in ``arrays``."""
    import ase.db
    import numpy as np

    with ase.db.connect(path, type=kind, append=False) as database:
        for atoms in frames:
            data = {key: value for key, value in atoms.info.items() if _encodable(value)}
            arrays = {
                key: value
                for key, value in atoms.arrays.items()
                if key not in _ROW_ARRAYS and value.dtype.kind in "ifb"
            }
            if arrays:
                data["arrays"] = arrays
            charge = atoms.info.get("total_charge")
            pairs = {"total_charge": float(charge)} if isinstance(charge, (float, np.floating)) else {}
            database.write(atoms, key_value_pairs=pairs, data=data)


def _encodable(value: Any) -> bool:
    """Whether ASE can put a value into a row and give it back."""
    from ase.io.jsonio import decode, encode

    try:
        return _alike(decode(encode(value)), value)
    except Exception:  # whatever the value does to ASE's encoder
        return False


def _missing(before: Atoms, after: Atoms) -> dict[str, None]:
    """Names of what a frame has lost in a file."""
    lost = [f'info["{key}"]' for key in before.info if key not in after.info]
    lost += [f'arrays["{key}"]' for key in before.arrays if key not in after.arrays]
    if before.calc is not None:
        kept = {} if after.calc is None else after.calc.results
        lost += [key for key, value in before.calc.results.items() if value is not None and key not in kept]
    return dict.fromkeys(lost)


def write_json(path: str, data: Any) -> None:
    """Write plain data as JSON, atomically."""
    from kqeq.io.atomic_write import atomic_path

    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


__all__ = [
    "FRAMES",
    "append_frame",
    "check_output",
    "complete_frames",
    "read_frames",
    "read_one",
    "under_typed_conditions",
    "with_results",
    "write_frames",
    "write_json",
]
