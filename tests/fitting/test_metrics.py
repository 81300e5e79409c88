"""Errors of predictions: numbers computed by hand, tables and plain data."""

import json

import numpy as np
import pytest
from ase import Atoms

from checks import prediction
from kqeq.fitting.metrics import UNITS, Errors, Evaluation, compare
from kqeq.frames.labels import LABEL_KINDS, Labels
from kqeq.frames.structures import read_structure


def structure(formula):
    n = len(Atoms(formula))
    return read_structure(Atoms(formula, 2.0 * np.arange(n)[:, None] * [1.0, 0.0, 0.0]))


def evaluate(*items, skipped=None):
    return compare(items, skipped or {})


def test_energies_are_compared_per_atom():
    """Errors of 0.2 eV in two atoms and −0.9 eV in three: 0.1 and −0.3 eV/atom."""
    result = evaluate(
        (structure("H2"), Labels(energy=1.0), prediction(energy=1.2)),
        (structure("H2O"), Labels(energy=5.0), prediction(energy=4.1)),
    )
    error = result["energy"]
    assert error.rmse == pytest.approx(np.sqrt((0.1**2 + 0.3**2) / 2))
    assert error.mae == pytest.approx(0.2)
    assert (error.n, error.unit, error.mae_norm) == (2, "eV/atom", None)


def test_forces_are_compared_by_component():
    reference = np.zeros((2, 3))
    predicted = np.array([[1.0, 0.0, 0.0], [0.0, -2.0, 0.0]])
    error = evaluate((structure("H2"), Labels(forces=reference), prediction(forces=predicted)))["forces"]
    assert error.rmse == pytest.approx(np.sqrt(5.0 / 6.0))
    assert error.mae == pytest.approx(0.5)
    assert error.n == 6


def test_dipoles_have_an_error_of_the_norm():
    """(3, 4, 0) against (0, 0, 6): components are far off, the norm by one."""
    error = evaluate(
        (structure("H2"), Labels(dipole=np.array([0.0, 0, 6])), prediction(dipole=np.array([3.0, 4, 0]))),
        (structure("H2"), Labels(dipole=np.array([0.0, 0, 1])), prediction(dipole=np.array([0.0, 0, -4]))),
    )["dipole"]
    assert error.mae_norm == pytest.approx((1.0 + 3.0) / 2)
    assert error.mae == pytest.approx((3 + 4 + 6 + 5) / 6)
    assert error.n == 6


def test_every_kind_of_label_has_a_unit():
    assert set(UNITS) == set(LABEL_KINDS)


def test_all_kinds_at_once_and_frames_without_some():
    n = structure("H2")
    full = Labels(
        energy=1.0,
        forces=np.ones((2, 3)),
        stress=np.eye(3),
        dipole=np.ones(3),
        charges=np.array([1.0, -1.0]),
        polarizability=np.eye(3),
        born_charges=np.ones((2, 3, 3)),
    )
    exact = {kind: getattr(full, kind) for kind in LABEL_KINDS}
    result = evaluate((n, full, prediction(**exact)), (n, Labels(energy=2.0), prediction(energy=2.0)))
    assert list(result) == list(UNITS)
    assert {kind: error.n for kind, error in result.items()} == {
        "energy": 2,
        "forces": 6,
        "stress": 9,
        "dipole": 3,
        "charges": 2,
        "polarizability": 9,
        "born_charges": 18,
    }
    for error in result.values():
        assert error.rmse == error.mae == 0.0
        assert error.r2 == 1.0
    assert result.skipped == {}


# -------------------------------------------------------------- r squared


def test_r2_of_forces_is_against_zero_force():
    reference, predicted = np.full((2, 3), 2.0), np.full((2, 3), 1.0)
    error = evaluate((structure("H2"), Labels(forces=reference), prediction(forces=predicted)))["forces"]
    assert error.r2 == pytest.approx(1.0 - 1.0 / 4.0)


def test_r2_of_energies_is_within_each_composition():
    """Telling H2 from O2 earns nothing; only differences between geometries count."""
    pairs = [("H2", 0.0, 1.0), ("H2", 2.0, 1.0), ("O2", 100.0, 101.0), ("O2", 102.0, 101.0)]
    items = [(structure(f), Labels(energy=y), prediction(energy=p)) for f, y, p in pairs]
    assert evaluate(*items)["energy"].r2 == pytest.approx(0.0)
    better = [(s, labels, prediction(energy=labels.energy + 0.1)) for s, labels, _ in items]
    assert evaluate(*better)["energy"].r2 == pytest.approx(1.0 - 0.1**2)


def test_r2_without_any_spread():
    s = structure("H2")
    assert evaluate((s, Labels(energy=1.0), prediction(energy=1.0)))["energy"].r2 == 1.0
    assert evaluate((s, Labels(energy=1.0), prediction(energy=1.5)))["energy"].r2 == 0.0


def test_r2_of_charges_is_against_their_mean():
    labels = Labels(charges=np.array([0.0, 2.0]))
    error = evaluate((structure("H2"), labels, prediction(charges=np.array([0.5, 1.5]))))["charges"]
    assert error.r2 == pytest.approx(0.75)


# ---------------------------------------------------------------- skipping


def test_what_is_not_predicted_is_said():
    s = structure("H2")
    labels = Labels(energy=1.0, dipole=np.ones(3), forces=np.ones((2, 3)))
    reason = {"energy": "no energies", "forces": "no energies", "stress": "no energies"}
    result = evaluate((s, labels, prediction(energy=3.0, forces=np.ones((2, 3)))), skipped=reason)
    assert list(result) == []
    assert set(result.skipped) == {"energy", "forces", "dipole"}
    assert "does not predict" in result.skipped["dipole"]
    assert "not compared: energy (no energies)" in str(result)


# ------------------------------------------------------------- presentation


@pytest.fixture
def evaluation():
    return Evaluation(
        {
            "energy": Errors(0.0012, 0.001, "eV/atom", 7, 0.9),
            "dipole": Errors(0.02, 0.01, "e·Å", 21, 0.8, mae_norm=0.015),
        },
        {"charges": "not asked for"},
    )


def test_the_table(evaluation):
    lines = str(evaluation).splitlines()
    assert lines[0].split() == ["quantity", "RMSE", "MAE", "unit", "n"]
    assert lines[1].split() == ["energy", "0.00120", "0.00100", "eV/atom", "7"]
    assert lines[2].split() == ["dipole", "0.02000", "0.01000", "e·Å", "21"]
    assert lines[3].split() == ["|dipole|", "0.01500", "e·Å"]
    assert lines[4] == "not compared: charges (not asked for)"
    assert "rmse 0.0012 eV/atom" in repr(evaluation)


def test_plain_data(evaluation):
    data = json.loads(json.dumps(evaluation.to_dict()))
    assert data == {
        "energy": {"rmse": 0.0012, "mae": 0.001, "unit": "eV/atom", "n": 7},
        "dipole": {"rmse": 0.02, "mae": 0.01, "unit": "e·Å", "n": 21, "mae_norm": 0.015},
    }


def test_a_mapping(evaluation):
    assert len(evaluation) == 2
    assert set(evaluation) == {"energy", "dipole"}
    assert "charges" not in evaluation
    with pytest.raises(KeyError):
        evaluation["forces"]


def test_predictions_of_a_model(water_model, water_training):
    """Through the whole way: the table agrees with errors computed here."""
    result = water_model.evaluate(water_training)
    predictions = water_model.predict([_bare(a) for a in water_training])
    error = [
        (p.energy - a.get_potential_energy()) / len(a)
        for p, a in zip(predictions, water_training, strict=True)
    ]
    assert result["energy"].rmse == pytest.approx(np.sqrt(np.mean(np.square(error))), rel=1e-6)
    assert result["energy"].n == len(water_training)
    assert result["dipole"].mae_norm == pytest.approx(
        np.mean(
            [
                abs(np.linalg.norm(p.dipole) - np.linalg.norm(a.get_dipole_moment()))
                for p, a in zip(predictions, water_training, strict=True)
            ]
        )
    )
    json.dumps(result.to_dict(), allow_nan=False)


def _bare(atoms):
    copy = atoms.copy()
    copy.calc = None
    return copy


def test_calibration_knows_the_weights_of_frames():
    """A label of weight w scatters by σ/√w: errors of 0.2 and 0.1 eV/atom at w = 1 and 4 are one and the same z."""
    items = [
        (
            structure("H2"),
            Labels(energy=1.0, weight=weight),
            prediction(energy=1.0 + 2 * error, energy_std=0.0),
        )
        for weight, error in ((1.0, 0.2), (4.0, 0.1))
    ]
    found = compare(items, {}, {"energy": 0.1}).calibration["energy"]
    assert found.mean_z2 == pytest.approx((0.2 / (0.1 / np.sqrt(2))) ** 2)
    assert found.n == 2
