"""Frames that are there twice: the same fit, and no frame is judged by its own copy."""

from dataclasses import replace

import numpy as np
import pytest

import kqeq
from kqeq import KQEq
from kqeq.fitting.copies import without_copies
from kqeq.fitting.rows.features import TrainingFrame
from kqeq.frames.labels import read_frames


@pytest.fixture(scope="module")
def frames():
    train, test = kqeq.datasets.split("ag3")
    return train[:16], test[:8]


def training(frames):
    return [TrainingFrame(s, labels, i) for i, (s, labels) in enumerate(read_frames(frames))]


def test_copies_become_weights(frames):
    own = training(frames[0][:3])
    twice = [*own, replace(own[1], index=3), replace(own[1], index=4)]
    kept, told = without_copies(twice)
    assert [frame.index for frame in kept] == [0, 1, 2]
    assert [frame.labels.weight for frame in kept] == [1.0, 3.0, 1.0]
    assert told is not None
    assert told.startswith("2 of 5 frames are copies")
    assert without_copies(own) == (own, None)


def test_what_differs_in_anything_is_no_copy(frames):
    own = training(frames[0][:1])[0]
    assert own.labels.energy is not None
    others = [
        replace(own, labels=replace(own.labels, energy=own.labels.energy + 1e-3)),
        replace(own, labels=replace(own.labels, dipole=None)),
        replace(own, structure=own.structure.under(own.structure.total_charge + 1, np.zeros(3))),
        replace(own, structure=own.structure.under(own.structure.total_charge, np.array([0.0, 0.0, 0.1]))),
        replace(own, structure=replace(own.structure, positions=own.structure.positions + 1e-3)),
    ]
    assert len(without_copies([own, *others])[0]) == 6


def test_a_fit_without_search_does_not_change(frames, kernel):
    train, test = frames
    once = [atoms.copy() for atoms in train]
    for copy, atoms in zip(once, train, strict=True):
        copy.calc = atoms.calc
        copy.info["weight"] = 2.0
    model = KQEq(kernel(4.0), kernel(4.0)).fit([*train, *train], optimize=None)
    other = KQEq(kernel(4.0), kernel(4.0)).fit(once, optimize=None)
    assert model.fit_report_.n_frames == len(train)
    for atoms in test[:2]:
        assert model.predict(atoms).energy == pytest.approx(other.predict(atoms).energy, abs=1e-8)


def test_a_search_does_not_take_copies_for_good_predictions(frames, kernel):
    train, _ = frames
    model = KQEq(None, kernel(4.0), charges=None, targets=["energy", "forces"])
    once = model.fit(train, optimize="left-out").posterior_.noise
    twice = model.fit([*train, *train], optimize="left-out").posterior_.noise
    assert twice["forces"] == pytest.approx(np.sqrt(2) * once["forces"], rel=0.6)
    assert "copies" in str(model.fit_report_)
