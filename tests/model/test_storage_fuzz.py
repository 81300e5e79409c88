"""500 mutations of a model file, seeded: each is refused with our own error, or predicts the same to the last bit."""

import io
import json
import struct
import time
import zipfile

import numpy as np
import pytest
from ase import Atoms

import kqeq
from checks import assert_same_prediction
from kqeq.errors import InputError, ModelFileError

OH = Atoms("OH", [[0, 0, 0], [0, 0, 1.0]])

HOSTILE = (
    None,
    True,
    "",
    "H",
    [],
    [[]],
    {},
    {"H": None},
    -(10**400),
    10**30 + 7,
    1e300,
    -1e300,
    float("nan"),
    float("inf"),
    "-7.5",
    [float("nan")] * 3,
    "9" * 5000,
    {"a": {"b": {"c": []}}},
)
"""None of these is a different but possible value of anything in a header, except where it changes no prediction."""


@pytest.fixture(scope="module")
def original(water_model, tmp_path_factory):
    """Members of a model file with its posterior, and what it predicts."""
    path = tmp_path_factory.mktemp("fuzz") / "model.kqeq"
    water_model.save(path, posterior=True)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return path.read_bytes(), members, water_model.predict(OH)


def pack(members, *more):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in (*members.items(), *more):
            archive.writestr(name, data)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=array.dtype == object)
    return buffer.getvalue()


def load_array(data):
    return np.load(io.BytesIO(data)).copy()


def check(content, expected, path, what):
    """1 if the file was refused, 0 if it predicts the same."""
    path.write_bytes(content)
    start = time.perf_counter()
    try:
        model = kqeq.load(path)
    except ModelFileError:
        return 1
    except InputError as error:  # a name of a baseline that is nobody's
        if "pass it: kqeq.load(path, baseline=calculator)" not in str(error):
            raise
        return 1
    finally:
        assert time.perf_counter() - start < 20, what
    assert_same_prediction(model.predict(OH), expected)
    return 0


def test_bytes(original, tmp_path):
    """Of the file as it lies on the disk: sums over its members no longer hold."""
    content, _, expected = original
    rng = np.random.default_rng(0)
    refused = 0
    for i in range(150):
        data = bytearray(content)
        at, length = int(rng.integers(len(data))), int(rng.integers(1, 400))
        kind = i % 6
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at : at + length] = bytes(len(data[at : at + length]))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = rng.bytes(length)
        else:  # the directory at the end of the archive
            at = len(data) - int(rng.integers(1, 1500))
            data[at : at + 4] = rng.bytes(4)
        refused += check(bytes(data), expected, tmp_path / "m.kqeq", (i, kind, at, length))
    assert refused > 120


def places(value, path=()):
    """All places in a header."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def without_report(path):
    return path[0] not in ("report", "settings", "kqeq", "posterior")


def mutate_header(header, path, rng):
    """Change what is at a place: another kind of value, nothing, another name."""
    *parents, last = path
    owner = header
    for key in parents:
        owner = owner[key]
    kind = int(rng.integers(4))
    if kind == 0:
        del owner[last]
    elif kind == 1 and isinstance(owner, dict):
        owner[f"{last}x"] = owner.pop(last)
    else:
        owner[last] = HOSTILE[int(rng.integers(len(HOSTILE)))]


@pytest.mark.parametrize("digest", [True, False])
def test_headers(original, tmp_path, digest):
    """With valid sums: with the digest as it was, and without one, as in files of version 0.1."""
    _, members, expected = original
    rng = np.random.default_rng(1)
    every = list(places(json.loads(members["header.json"])))
    deciding = [path for path in every if without_report(path)]
    refused = must = 0
    for i in range(100):
        header = json.loads(members["header.json"])
        if not digest:
            header.pop("digest")
        chosen = deciding if i % 4 else every
        path = chosen[int(rng.integers(len(chosen)))]
        if path[0] == "digest":
            continue
        before = json.dumps(header)
        mutate_header(header, path, rng)
        text = json.dumps(header)
        must += text != before and (digest or without_report(path))
        refused += check(
            pack({**members, "header.json": text}), expected, tmp_path / "m.kqeq", (path, text[:50])
        )
    assert refused >= 0.8 * must
    assert must > 70


def arrays_of(members):
    return [name for name in members if name.endswith(".npy")]


def mutate_array(array, kind, rng):
    """A different array, by one of many kinds of difference; each is wrong, not only another value."""
    flat = array.reshape(-1)
    at = int(rng.integers(flat.size))
    value = (np.nan, np.inf, -np.inf, 1e300)[int(rng.integers(4))]
    huge = (-1, 2**31 - 1, -(2**31), 10**6)[int(rng.integers(4))]
    if kind == 0:
        flat[at] = value if array.dtype.kind == "f" else huge
        return npy(array)
    if kind == 1:
        others = ("U20", complex, bool, "float32", "int16", object, "S8", "datetime64[s]")
        with np.errstate(all="ignore"):
            return npy(np.zeros(array.shape, others[int(rng.integers(len(others)))]))
    if kind == 2:
        return npy(array.astype(np.int64 if array.dtype.kind == "f" else np.float64))
    if kind == 3:
        return npy(flat[:-1].copy())
    if kind == 4:
        return npy(np.concatenate([flat, flat[:1]]))
    if kind == 5:
        return npy(array[None].copy())
    if kind == 6:
        return npy(array)[: -int(rng.integers(1, 9))]
    if kind == 7:
        return npy(array) + rng.bytes(8)
    if kind == 8:
        head = io.BytesIO()
        shapes = ((10**12,), (2**62, 4), (), (array.size, 10**9), (0,))
        np.lib.format.write_array_header_1_0(
            head,
            {"descr": array.dtype.str, "fortran_order": False, "shape": shapes[int(rng.integers(5))]},
        )
        return head.getvalue() + array.tobytes()
    if kind == 9:
        nested = (b"(" * 9000, b"{" * 4000, b"[" * 60000, b"'" * 700, b"-" * 50000)[int(rng.integers(5))]
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(nested)) + nested
    return npy(np.zeros(0, array.dtype))


def test_arrays(original, tmp_path):
    """With valid sums and no digest: everything has to be noticed from the content alone."""
    _, members, expected = original
    header = json.loads(members["header.json"])
    header.pop("digest")
    members = {**members, "header.json": json.dumps(header)}
    names = arrays_of(members)
    rng = np.random.default_rng(2)
    for i in range(120):
        name = names[int(rng.integers(len(names)))]
        changed = mutate_array(load_array(members[name]), i % 11, rng)
        assert check(pack({**members, name: changed}), expected, tmp_path / "m.kqeq", (i, name)), (i, name)


def test_archives(original, tmp_path):
    """With valid sums: members twice, missing, exchanged, compressed, added."""
    _, members, expected = original
    header = json.loads(members["header.json"])
    header.pop("digest")
    members = {**members, "header.json": json.dumps(header)}
    names = list(members)
    rng = np.random.default_rng(3)
    path = tmp_path / "m.kqeq"
    for i in range(30):
        name, other = (names[int(n)] for n in rng.choice(len(names), 2, replace=False))
        kind = i % 5
        if kind == 0:
            with pytest.warns(UserWarning, match="Duplicate name"):
                content = pack(members, (name, members[other]))
        elif kind == 1:
            content = pack({key: data for key, data in members.items() if key != name})
        elif kind == 2:
            if members[name] == members[other]:
                continue
            content = pack({**members, name: members[other]})
            if load_same_shape(members, name, other):
                continue
        elif kind == 3:
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
                for key, data in members.items():
                    archive.writestr(key, data)
            content = buffer.getvalue()
        else:
            content = pack(members, (f"short_range/{'He' if i % 2 else 'O/x'}/data.npy", npy(np.zeros(3))))
        assert check(content, expected, path, (i, name, other)), (i, name, other)


def load_same_shape(members, name, other):
    """Whether two members could stand for each other: values alone then say nothing without a digest."""
    if not (name.endswith(".npy") and other.endswith(".npy")):
        return False
    first, second = load_array(members[name]), load_array(members[other])
    return first.shape == second.shape and first.dtype == second.dtype


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (lambda t: t.replace('"version": 2', '"version": ' + "9" * 5000), "damaged"),
        (lambda t: t.replace('"species"', '"species": ["H"], "species"', 1), "twice"),
        (lambda t: "[" * 100_000, "damaged"),
        (
            lambda t: t.replace('"has_energy": true', '"has_energy": ' + "[" * 50_000 + "]" * 50_000),
            "damaged",
        ),
        (lambda t: t.replace('"baseline": null', '"baseline": 1'), "baseline is 1, expected text"),
        (lambda t: t.replace('"training_charges": [', '"training_charges": [[], '), "training_charges"),
        (lambda t: t[:-2], "damaged"),
        (lambda t: t + "\x00", "damaged"),
    ],
)
def test_headers_that_hurt_parsers(original, tmp_path, text, reason):
    _, members, _ = original
    header = json.loads(members["header.json"])
    header.pop("digest")
    path = tmp_path / "m.kqeq"
    path.write_bytes(pack({**members, "header.json": text(json.dumps(header))}))
    with pytest.raises(ModelFileError, match=reason):
        kqeq.load(path)
