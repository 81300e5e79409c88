"""A frame with enormous forces among ordinary ones is named, with what helps."""

import warnings

import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

import kqeq
from kqeq import KQEq
from kqeq.errors import LabelWarning
from kqeq.fitting.outliers import warn_outliers
from kqeq.fitting.rows.features import TrainingFrame
from kqeq.frames.labels import read_frames


@pytest.fixture(scope="module")
def silver():
    return kqeq.datasets.load("ag3")[:14]


def squeezed(atoms, distance, force):
    """Two atoms at another distance, pushed apart."""
    copy = atoms.copy()
    along = copy.positions[1] - copy.positions[0]
    along /= np.linalg.norm(along)
    copy.positions[1] = copy.positions[0] + distance * along
    forces = np.zeros((len(copy), 3))
    forces[1], forces[0] = force * along, -force * along
    copy.calc = SinglePointCalculator(copy, energy=atoms.get_potential_energy() + 30.0, forces=forces)
    return copy


def training(frames):
    return [TrainingFrame(s, labels, i) for i, (s, labels) in enumerate(read_frames(frames))]


def test_a_collision_is_named_with_its_remedy(silver):
    frames = training([*silver, squeezed(silver[0], 1.5, 100.0)])
    with pytest.warns(LabelWarning, match=r'1 of 15 frames \(14\) .* 100 eV/Å.*baseline="zbl"'):
        assert warn_outliers(frames, zbl=False) is not None
    with pytest.warns(LabelWarning, match="look at them"):
        warn_outliers(frames, zbl=True)


def test_large_forces_at_ordinary_distances_are_looked_at(silver):
    with pytest.warns(LabelWarning, match="look at them"):
        warn_outliers(training([*silver, squeezed(silver[0], 2.8, 100.0)]), zbl=False)


def test_ordinary_sets_and_few_frames_are_let_alone(silver):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert warn_outliers(training(silver), zbl=False) is None
        assert warn_outliers(training([*silver[:5], squeezed(silver[0], 1.5, 100.0)]), zbl=False) is None


def test_the_fit_says_so(silver, kernel):
    frames = [*silver, squeezed(silver[0], 1.5, 100.0)]
    with pytest.warns(LabelWarning, match="forces up to 100 eV/Å"):
        model = KQEq(None, kernel(4.0), charges=None).fit(frames, optimize=None)
    assert "zbl" in str(model.fit_report_)
