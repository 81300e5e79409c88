"""The number of representatives, found by the fit."""

import numpy as np
import pytest

from conftest import NOISE, small_kernel
from kqeq import KQEq, SOAPKernel
from kqeq.errors import InputError
from kqeq.fitting import capacity
from kqeq.fitting.capacity import seconds, with_number


@pytest.fixture
def few(monkeypatch):
    """Begin with two."""
    monkeypatch.setattr(capacity, "FIRST", 2)
    monkeypatch.setattr(capacity, "EVERY", 5)


def short_range(**options):
    kernel = SOAPKernel(r_cut=3.0, n_max=4, l_max=3, sigma=0.4, zeta=2, **options)
    return KQEq(None, kernel, charges=None, noise=NOISE)


@pytest.mark.parametrize(
    ("given", "expected"), [("10 min", 600.0), ("1.5h", 5400.0), (" 90 s ", 90.0), (12, 12.0), (0.5, 0.5)]
)
def test_times(given, expected):
    assert seconds(given) == expected


@pytest.mark.parametrize("given", ["10", "ten minutes", "-3 s", 0, -1.0, float("nan"), True, [3]])
def test_wrong_times(given):
    with pytest.raises(InputError, match="10 min"):
        seconds(given)


def test_the_number_grows_until_left_out_frames_stop_improving(few, water_training):
    model = short_range().fit(water_training, budget="1 h")
    note = model.fit_report_.notes[-1]
    assert "chosen by the RMS error of forces" in note
    assert "stopped improving" in note or "all environments" in note
    number = int(note.split(":")[1].split(",")[0])
    assert number >= 8
    assert max(model.fit_report_.representatives["short-range"].values()) == min(
        number, max(model.fit_report_.representatives["short-range"].values())
    )
    fixed = short_range(n_representatives=2).fit(water_training)
    a, b = (m.evaluate(water_training)["forces"].rmse for m in (model, fixed))
    assert a < 0.8 * b


def test_the_time_is_kept(few, water_training):
    model = short_range().fit(water_training, budget=1e-3)
    assert "time budget was used up" in model.fit_report_.notes[-1]
    assert set(model.fit_report_.representatives["short-range"].values()) == {2}


def test_numbers_given_are_limits(few, water_training):
    model = short_range(n_representatives=4).fit(water_training, budget="1 h")
    assert max(model.fit_report_.representatives["short-range"].values()) <= 4
    assert "stopped improving" in model.fit_report_.notes[-1] or "given with" in model.fit_report_.notes[-1]


def test_dipoles_alone(few, water_training):
    kernel = small_kernel(3.0, n_representatives=None)
    model = KQEq(kernel, short_range=None, targets=["dipole"]).fit(water_training, budget="1 h")
    assert "RMS error of dipole" in model.fit_report_.notes[-1]


def test_few_frames_are_refused(water_training):
    with pytest.raises(InputError, match="at least 10"):
        short_range().fit(water_training[:6], budget="1 h")


def test_kernels_of_charges_get_fewer():
    settings = KQEq(SOAPKernel(), [SOAPKernel(), SOAPKernel(n_representatives=70)])._settings(None)
    found = with_number(settings, 800)
    assert [kernel.n_representatives for kernel in found.short_range] == [800, 70]
    assert found.electronegativity[0].n_representatives == 200
    assert settings.short_range[0].n_representatives is None
    assert np.isfinite(seconds("3 s"))
