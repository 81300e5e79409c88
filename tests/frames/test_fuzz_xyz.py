"""Three hundred mutations of an extended XYZ file: our errors, our warnings, or the numbers that the text says.

What the text says is found here by a small reader of its own that knows the format, and nothing of ASE or of this
package.
"""

import random
import re
import warnings

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from kqeq.cli.files import read_frames
from kqeq.errors import KQEqError, KQEqWarning
from kqeq.frames.label_checks import survey
from kqeq.frames.labels import LabelKeys

MUTATIONS = 300


@pytest.fixture(scope="module")
def text(tmp_path_factory, ion_frames):
    path = tmp_path_factory.mktemp("fuzz") / "a.xyz"
    frames = []
    for atoms in (ion_frames[0], ion_frames[-1]):
        copy = Atoms(atoms.numbers, atoms.positions)
        copy.info.update(total_charge=atoms.info["total_charge"], external_field=np.array([0.0, 0.0, 0.1]))
        # consistent with charge and field
        forces = atoms.get_forces() + atoms.info["total_charge"] * np.array([0.0, 0.0, 0.1]) / len(copy)
        copy.calc = SinglePointCalculator(
            copy, energy=atoms.get_potential_energy(), forces=forces, dipole=atoms.get_dipole_moment()
        )
        frames.append(copy)
    write(path, frames, format="extxyz")
    return path.read_text()


# ---------------------------------------------------------------------- mutations


def _replace_one(rng, text, pattern, make):
    found = list(re.finditer(pattern, text))
    if not found:
        return text
    match = rng.choice(found)
    return text[: match.start()] + make(match.group()) + text[match.end() :]


WORDS = [
    "T",
    "True",
    "F",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "1e300",
    "1,5",
    "1.0D+00",
    "--1",
    "+",
    "",
    "1+",
    "0x10",
    "一",
]
NAMES = ["energy", "forces", "dipole", "total_charge", "external_field", "Properties", "pos", "species"]
READ = [*NAMES[:5], "charge", "free_energy"]
NEW = [
    "Energy",
    "energies",
    "force",
    "REF_energy",
    "charge",
    "Charge",
    "electric_field",
    "free_energy",
    "virial",
    "dipol",
]


def mutate(rng, text):
    """One change of a kind that hands, scripts and disks make."""
    lines = text.split("\n")
    kind = rng.randrange(16)
    number = r"-?\d+\.\d+"
    where = rng.randrange(len(text))
    if kind == 0:
        return text[:where] + rng.choice("0123456789eE+-. \t\n\"'=:,\x00é{}[]") + text[where + 1 :]
    if kind == 1:
        return text[:where] + text[where + rng.randint(1, 20) :]
    if kind == 2:
        return text[:where]
    if kind == 3:
        return _replace_one(rng, text, number, lambda _: rng.choice(WORDS))
    if kind == 4:
        return _replace_one(
            rng, text, number, lambda old: old + rng.choice(["e3", "e-3", "0", "f", " ", "*"])
        )
    if kind == 5:
        name = rng.choice(NAMES)
        return _replace_one(rng, text, rf"\b{name}\b", lambda _: rng.choice(NEW))
    if kind == 6:
        return _replace_one(
            rng, text, r"\w+=(\"[^\"]*\"|\S+)", lambda _: rng.choice([*NEW, "charge", "energy"])
        )
    if kind == 7:
        i = rng.randrange(len(lines))
        return "\n".join(lines[:i] + lines[i + 1 :])
    if kind == 8:
        i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
        lines[i], lines[j] = lines[j], lines[i]
        return "\n".join(lines)
    if kind == 9:
        return _replace_one(
            rng, text, r"(?m)^\d+$", lambda old: str(int(old) + rng.choice([-4, -1, 1, 10**6, 10**12]))
        )
    if kind == 10:
        return _replace_one(
            rng, text, r"total_charge=\S+", lambda _: f"total_charge={rng.choice([*WORDS, '2', '-1'])}"
        )
    if kind == 11:
        return _replace_one(
            rng, text, r":R:3", lambda _: rng.choice([":R:2", ":I:3", ":L:3", ":S:3", ":R:1", ":R:6"])
        )
    if kind == 12:
        extra = rng.choice(
            ["charge=1", "charge", "energy", "Charge=-1", 'efield="0 0 1"', "weight", "net_charge=2", "1 2"]
        )
        return _replace_one(rng, text, r"energy=", lambda old: f"{extra} {old}")
    if kind == 13:
        return _replace_one(rng, text, r"\n", lambda _: rng.choice(["\r\n", "\r", "\n\n", "\x0c", "\v", " "]))
    if kind == 14:
        return _replace_one(rng, text, r'"', lambda _: rng.choice(["", "'", '""', "{", "]"]))
    return _replace_one(
        rng, text, r"(?m)^(O|H) ", lambda _: rng.choice(["X ", "Qq ", "8 ", "o ", "H1 ", "D "])
    )


# ------------------------------------------------------------------- a second reader


def says(text):
    """Frames as the text has them: dicts of charge, field, energy, dipole, forces; ``None`` where it is no such text."""
    lines, frames, i = text.split("\n"), [], 0
    while i < len(lines) and lines[i].strip():
        n = int(lines[i])
        if n < 0 or i + 2 + n > len(lines):
            return None
        pairs = re.findall(r'(\w+)=(?:"([^"]*)"|(\S+))', lines[i + 1])
        comment = {key: quoted or plain for key, quoted, plain in pairs}
        frame = {
            key: np.array(comment[key].replace(",", " ").split(), dtype=float)
            for key in READ
            if key in comment
        }
        columns, start = {}, 0
        for name, _, width in re.findall(
            r"(\w+):([A-Z]):(\d+)", comment.get("Properties", "species:S:1:pos:R:3")
        ):
            columns[name] = slice(start, start + int(width))
            start += int(width)
        rows = [line.split() for line in lines[i + 2 : i + 2 + n]]
        for name in {"forces", "pos"} & columns.keys():
            frame[name] = np.array([row[columns[name]] for row in rows], dtype=float)
        frames.append(frame)
        i += 2 + n
    return frames


def agrees(pairs, frames):
    """Whether what was read is what the text says."""
    if len(pairs) != len(frames):
        return False
    for (structure, labels), frame in zip(pairs, frames, strict=True):
        frame = dict(frame)
        for name, other in (("total_charge", "charge"), ("energy", "free_energy")):
            if other in frame:
                frame.setdefault(name, frame[other])
        values = {
            "total_charge": structure.total_charge,
            "external_field": structure.external_field,
            "pos": structure.positions,
            "energy": labels.energy,
            "forces": labels.forces,
            "dipole": labels.dipole,
        }
        for key, value in values.items():
            said = frame.get(key)
            if said is None:
                if value is not None and (key not in ("total_charge", "external_field") or np.any(value)):
                    return False
            elif value is None or not np.allclose(np.squeeze(said), value, rtol=1e-12, atol=1e-12):
                return False
    return True


@pytest.mark.parametrize("part", range(6))
def test_mutated_files_are_refused_warned_of_or_read_as_they_are(tmp_path, text, part):
    rng = random.Random(part)
    keys, outcomes = LabelKeys(), {"refused": 0, "warned": 0, "read": 0}
    path = tmp_path / "m.xyz"
    for _ in range(MUTATIONS // 6):
        mutated = mutate(rng, text)
        with open(path, "w", encoding="utf-8", newline="") as file:
            file.write(mutated)
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            try:
                found = survey(read_frames([str(path)]), keys)
            except KQEqError:
                outcomes["refused"] += 1
                continue
        if any(issubclass(w.category, KQEqWarning) for w in record) or found.ignored:
            outcomes["warned"] += 1
            continue
        plain = mutated.replace("\r\n", "\n").replace("\r", "\n")  # line ends of three systems
        try:
            expected = says(plain)
        except (ValueError, KeyError, IndexError):
            expected = None
        assert expected is not None and agrees(found.pairs, expected), mutated
        outcomes["read"] += 1
    assert min(outcomes.values()) > 0, outcomes


def test_the_file_itself_is_read_without_a_word(tmp_path, text):
    (tmp_path / "a.xyz").write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = survey(read_frames([str(tmp_path / "a.xyz")]), LabelKeys())
    assert not found.ignored
    assert agrees(found.pairs, says(text))
