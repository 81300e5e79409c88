"""Odd training sets: contradictory labels, a single frame, hardly any labels, leverage scores."""

import warnings

import numpy as np
import pytest

from conftest import NOISE, small_kernel
from kqeq import KQEq
from kqeq.errors import LabelWarning, RepresentativesWarning

SMALL = pytest.mark.filterwarnings("ignore::kqeq.errors.RepresentativesWarning")


def short_range(**options):
    return KQEq(electronegativity=None, charges=None, short_range=small_kernel(4.0, **options), noise=NOISE)


def labelled(atoms, energy, **info):
    copy = atoms.copy()
    copy.info.update(energy=energy, **info)
    return copy


@pytest.fixture
def frames(water_systems):
    return [labelled(a, a.get_potential_energy()) for a in water_systems["water2"][:5]]


@SMALL
def test_contradictory_energies_are_named(frames):
    double = labelled(frames[2], frames[2].info["energy"] + 2.0)
    double.positions += [3.0, 0.0, -1.0]  # a translation makes no difference
    with pytest.warns(LabelWarning, match="frames 2 and 5 by 2e.03 meV"):
        short_range().fit([*frames, double])


@SMALL
def test_many_contradictions_make_one_warning(frames):
    doubles = [labelled(frames[0], frames[0].info["energy"] + k) for k in (1.0, 2.0, 3.0)]
    with pytest.warns(LabelWarning, match="and 1 more pairs") as record:
        short_range().fit([*frames, *doubles])
    assert len([w for w in record if w.category is LabelWarning]) == 1


@SMALL
def test_agreeing_and_different_frames_are_no_contradiction(frames, water_systems):
    within = labelled(frames[2], frames[2].info["energy"] + 0.05)
    moved = labelled(frames[2], frames[2].info["energy"] + 2.0)
    moved.positions[0, 0] += 0.05
    with warnings.catch_warnings():
        warnings.simplefilter("error", LabelWarning)
        short_range().fit([*frames, within, moved])
        ion = labelled(frames[2], frames[2].info["energy"] + 5.0, total_charge=1.0)
        ion.arrays.pop("hirshfeld", None)  # those of the neutral molecule would contradict
        ion.info.pop("multiplicity", None)
        KQEq(small_kernel(3.5), small_kernel(4.0), noise=NOISE).fit([*frames, ion])


def test_a_single_frame_is_fitted_with_a_warning(frames):
    with pytest.warns(RepresentativesWarning, match="fewer distinct environments"):
        model = short_range().fit(frames[:1])
    assert model.predict(frames[0]).energy == pytest.approx(frames[0].info["energy"], abs=0.2)
    assert "fewer labels (1) than parameters" in str(model.fit_report_)


@SMALL
def test_more_labels_than_parameters_need_no_note(water_training):
    report = str(short_range(n_representatives=3).fit(water_training).fit_report_)
    assert "fewer labels" not in report


def test_identical_environments(frames):
    copies = [frames[0].copy() for _ in range(4)]
    with pytest.warns(RepresentativesWarning):
        model = short_range().fit(copies)
    assert model.predict(copies[0]).energy == pytest.approx(frames[0].info["energy"], abs=0.2)


@SMALL
def test_leverage_scores_choose_representatives(water_training):
    models = [short_range(selection="leverage", n_representatives=4).fit(water_training) for _ in range(2)]
    rows = [m.potential_.short_range.feature_maps[0].representatives for m in models]
    for z in (1, 8):
        assert rows[0][z].shape[0] == 4
        np.testing.assert_array_equal(rows[0][z].toarray(), rows[1][z].toarray())


def test_leverage_finds_the_outlier():
    """One row along a direction of its own among many that are nearly equal has leverage one."""
    from scipy import sparse

    from kqeq.kernels.representatives import choose_rows

    rng = np.random.default_rng(0)
    rows = np.abs(np.array([1.0, 0, 0, 0, 0, 0]) + 0.01 * rng.normal(size=(200, 6)))
    rows[:, 5] = 0.0
    rows[137] = [0, 0, 0, 0, 0, 1.0]
    rows /= np.linalg.norm(rows, axis=1)[:, None]
    assert 137 in choose_rows(sparse.csr_array(rows), 5, "leverage")
