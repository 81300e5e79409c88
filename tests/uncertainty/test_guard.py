"""The extrapolation guard of the calculator."""

import warnings

import numpy as np
import pytest
from ase import units
from ase.md.verlet import VelocityVerlet

import kqeq
from kqeq import KQEqCalculator
from kqeq.errors import ExtrapolationError, ExtrapolationWarning, InputError, UnsupportedError


@pytest.fixture
def inside(water_training):
    """A training frame: nothing is closer to the data."""
    return water_training[0].copy()


@pytest.fixture
def outside(water_training):
    """The same with a stretched bond."""
    atoms = water_training[0].copy()
    atoms.positions[1] += 0.8 * (atoms.positions[1] - atoms.positions[0])
    return atoms


LIMITS = pytest.mark.parametrize(
    "limit", [{"max_distance": 1.5}, {"max_energy_std": 0.25}], ids=["distance", "energy"]
)


def test_what_is_watched(water_model, inside, outside):
    """Both measures tell the two frames of these tests apart."""
    seen = []
    calc = KQEqCalculator(water_model, max_distance=1e-9, max_energy_std=1e-9, on_extrapolation=seen.append)
    for atoms in (inside, outside):
        calc.get_property("forces", atoms)
    assert len(seen) == 2
    assert seen[1].distance > 5 * seen[0].distance
    assert seen[1].energy_std > 2 * seen[0].energy_std
    assert seen[1].energy_std == pytest.approx(
        water_model.predict(outside, uncertainty=True).energy_std, rel=1e-9
    )
    assert seen[1].looks == 2
    assert seen[1].prediction.energy == pytest.approx(water_model.predict(outside).energy)
    assert seen[1].atoms == outside
    assert seen[1].atoms.calc is None
    assert "max_distance" in str(seen[1]) and "max_energy_std" in str(seen[1])


@LIMITS
def test_warn_when_a_limit_is_crossed(water_model, inside, outside, limit):
    calc = KQEqCalculator(water_model, **limit)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ExtrapolationWarning)
        calc.get_property("energy", inside)
    with pytest.warns(ExtrapolationWarning, match="beyond what the model was fitted on"):
        assert calc.get_property("energy", outside) == pytest.approx(water_model.predict(outside).energy)
    # once for every excursion
    outside.positions[2] += 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error", ExtrapolationWarning)
        calc.get_property("energy", outside)
        calc.get_property("energy", inside)
    with pytest.warns(ExtrapolationWarning):
        calc.get_property("energy", outside)


@LIMITS
def test_stop(water_model, inside, outside, limit):
    outside.calc = inside.calc = KQEqCalculator(water_model, on_extrapolation="stop", **limit)
    inside.get_forces()
    for _ in range(2):  # asking again does not help
        with pytest.raises(ExtrapolationError, match="fit again") as caught:
            outside.get_forces()
    found = caught.value.extrapolation
    assert found.atoms.positions == pytest.approx(outside.positions)
    assert found.prediction.forces is not None
    inside.get_forces()


def test_dynamics_stop_before_they_explode(water_model, inside):
    """Two hydrogens with a kick: the run ends where the bond has left the data, with the frame to label."""
    momenta = np.zeros_like(inside.positions)
    bond = inside.positions[1] - inside.positions[0]
    momenta[1] = 1.5 * bond
    inside.set_momenta(momenta)
    inside.calc = KQEqCalculator(water_model, max_distance=2.0, on_extrapolation="stop")
    dynamics = VelocityVerlet(inside, 0.5 * units.fs)
    with pytest.raises(ExtrapolationError) as caught:
        dynamics.run(400)
    assert 0 < dynamics.nsteps < 400
    assert caught.value.extrapolation.atom in range(len(inside))


def test_every_so_manyth(water_model, outside):
    seen = []
    calc = KQEqCalculator(water_model, max_distance=1.0, on_extrapolation=seen.append, guard_every=3)
    for _ in range(7):
        outside.positions[2] += 1e-3
        calc.get_property("energy", outside)
    assert len(seen) == 3
    # what is cached is not looked at again
    calc.get_property("energy", outside)
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_distance": -1.0}, "max_distance is -1.0; expected a positive number"),
        ({"max_energy_std": True}, "max_energy_std is True"),
        ({"max_distance": float("nan")}, "max_distance is nan"),
        ({"on_extrapolation": "explode"}, '\'explode\'; expected "warn", "stop" or a function'),
        ({"max_distance": 1.0, "guard_every": 0}, "guard_every is 0"),
    ],
)
def test_wrong_input(water_model, options, text):
    with pytest.raises(InputError, match=text):
        KQEqCalculator(water_model, **options)


def test_a_file_without_posterior(water_model, tmp_path, outside):
    water_model.save(tmp_path / "bare.kqeq")
    water_model.save(tmp_path / "whole.kqeq", posterior=True)
    with pytest.raises(UnsupportedError, match="posterior=True"):
        KQEqCalculator(tmp_path / "bare.kqeq", max_energy_std=0.1)
    for path in (tmp_path / "whole.kqeq", str(tmp_path / "whole.kqeq")):
        outside.calc = KQEqCalculator(path, max_energy_std=0.1, on_extrapolation="stop")
        with pytest.raises(ExtrapolationError):
            outside.get_potential_energy()
    # distances need no posterior
    outside.calc = KQEqCalculator(tmp_path / "bare.kqeq", max_distance=1.0, on_extrapolation="stop")
    with pytest.raises(ExtrapolationError):
        outside.get_potential_energy()


def test_models_without_energies(dipole_model, outside):
    with pytest.raises(UnsupportedError, match="without energies"):
        KQEqCalculator(dipole_model, max_energy_std=0.1)
    calc = KQEqCalculator(dipole_model, max_distance=1.0, on_extrapolation="stop")
    with pytest.raises(ExtrapolationError):
        calc.get_property("dipole", outside)


def test_charges_and_short_range_kernels_both_count(short_range_model, outside):
    calc = kqeq.KQEqCalculator(short_range_model, max_distance=1.0, on_extrapolation="stop")
    with pytest.raises(ExtrapolationError):
        calc.get_property("energy", outside)
