"""The ASE adapter: what it maps, what it caches, what it refuses."""

import copy
import pickle
import warnings

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.io import Trajectory, read, write
from ase.md.verlet import VelocityVerlet

import kqeq
from kqeq.calculator import KQEqCalculator, PropertyUnavailableError
from kqeq.errors import (
    InputError,
    ModelFileError,
    ModelNotFittedError,
    UndeterminedWarning,
    UnsupportedError,
)
from kqeq.potential.fixed_geometry import FixedGeometry

FIELD = (0.02, -0.05, 0.1)


def small(**options):
    return kqeq.SOAPKernel(n_max=4, l_max=3, n_representatives=20, **options)


@pytest.fixture(scope="module")
def frames():
    return kqeq.datasets.load("ag3")


@pytest.fixture(scope="module")
def model(frames):
    return kqeq.KQEq(small(r_cut=4.0), small(r_cut=5.0)).fit(frames[::3])


@pytest.fixture(scope="module")
def short_range_model(frames):
    return kqeq.KQEq(electronegativity=None, charges=None, short_range=small(r_cut=4.0)).fit(frames[::3])


@pytest.fixture(scope="module")
def dipole_model(frames):
    return kqeq.KQEq(small(r_cut=4.0), short_range=None, targets=["dipole"]).fit(frames[::3])


@pytest.fixture
def atoms(frames):
    return Atoms(frames[1].numbers, frames[1].positions)


@pytest.fixture
def calls(monkeypatch):
    """What was asked of the potential, call by call."""
    asked = []
    original = FixedGeometry.predict

    def spy(self, properties):
        asked.append(set(properties))
        return original(self, properties)

    monkeypatch.setattr(FixedGeometry, "predict", spy)
    return asked


def test_results_are_the_model_s(model, atoms):
    expected = model.predict(atoms, total_charge=1, external_field=FIELD)
    atoms.calc = KQEqCalculator(model, total_charge=1, external_field=FIELD)
    assert atoms.get_potential_energy() == expected.energy
    assert atoms.get_potential_energy(force_consistent=True) == expected.energy
    np.testing.assert_array_equal(atoms.get_forces(), expected.forces)
    np.testing.assert_array_equal(atoms.get_charges(), expected.charges)
    np.testing.assert_array_equal(atoms.get_dipole_moment(), expected.dipole)
    assert atoms.calc.prediction.chemical_potential == expected.chemical_potential
    assert abs(atoms.get_charges().sum() - 1) < 1e-10
    np.testing.assert_allclose(atoms.get_forces().sum(axis=0), FIELD, atol=1e-10)


def test_forces_are_minus_the_gradient_of_the_energy(model, atoms):
    atoms.calc = KQEqCalculator(model, total_charge=-1, external_field=FIELD)
    forces = atoms.get_forces()
    assert np.abs(forces).max() > 0.05
    h = 1e-4
    for index in np.ndindex(3, 3):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.calc = atoms.calc
            moved.positions[index] += sign * h
            energies.append(moved.get_potential_energy())
        assert forces[index] == pytest.approx(-(energies[0] - energies[1]) / (2 * h), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("key", ["total_charge", "charge"])
def test_charge_and_field_from_info(model, atoms, key):
    atoms.info.update({key: -1, "external_field": list(FIELD)})
    atoms.calc = KQEqCalculator(model)
    expected = model.predict(Atoms(atoms.numbers, atoms.positions), total_charge=-1, external_field=FIELD)
    assert atoms.get_potential_energy() == expected.energy


def test_every_way_to_change_the_conditions_invalidates_the_cache(model, atoms):
    def expected(charge, field=(0, 0, 0)):
        bare = Atoms(atoms.numbers, atoms.positions)
        return model.predict(bare, total_charge=charge, external_field=field).energy

    calc = KQEqCalculator(model)
    atoms.calc = calc
    assert atoms.get_potential_energy() == expected(0)
    calc.total_charge = 1
    assert atoms.get_potential_energy() == expected(1) != expected(0)
    calc.set(total_charge=-1)
    assert atoms.get_potential_energy() == expected(-1)
    calc.external_field = FIELD
    assert atoms.get_potential_energy() == expected(-1, FIELD) != expected(-1)
    calc.set(total_charge=None, external_field=None)
    assert atoms.get_potential_energy() == expected(0)
    atoms.info["total_charge"] = 1  # ASE does not watch info
    assert atoms.get_potential_energy() == expected(1)
    atoms.info["external_field"] = np.array(FIELD)
    assert atoms.get_potential_energy() == expected(1, FIELD)
    atoms.info["external_field"][2] = -0.2  # in place
    assert atoms.get_potential_energy() == expected(1, (FIELD[0], FIELD[1], -0.2))
    del atoms.info["external_field"]
    atoms.info["total_charge"] = 0
    atoms.info["charge"] = 0
    assert atoms.get_potential_energy() == expected(0)


def test_atoms_alone_are_enough_after_a_change(model, atoms):
    """calc.get_property without atoms goes on with the structure it knows."""
    calc = KQEqCalculator(model, total_charge=1)
    atoms.calc = calc
    before = atoms.get_potential_energy()
    calc.total_charge = -1
    assert calc.results == {}
    assert calc.prediction is None
    assert calc.get_property("energy") == model.predict(atoms, total_charge=-1).energy != before


def test_computes_only_what_is_asked_for(model, atoms, calls):
    calc = KQEqCalculator(model, total_charge=1)
    atoms.calc = calc
    atoms.get_potential_energy()
    assert calls == [{"energy"}]
    atoms.get_charges(), atoms.get_dipole_moment(), atoms.get_potential_energy()
    assert len(calls) == 1  # they come along
    atoms.get_forces()
    assert calls[1:] == [{"energy", "forces"}]
    atoms.get_potential_energy(), atoms.get_forces(), atoms.get_charges()
    calc.set(total_charge=1)  # no change
    atoms.get_forces()
    assert len(calls) == 2
    atoms.positions[0, 0] += 0.01
    atoms.get_potential_energy()
    assert len(calls) == 3
    atoms.set_initial_magnetic_moments([1, 0, 0])  # the model does not see spins
    atoms.get_potential_energy()
    assert len(calls) == 3


def test_every_change_of_the_atoms_is_noticed(model, atoms):
    """By the quick comparison as by ASE's own, which says what it was."""
    atoms.calc = KQEqCalculator(model, total_charge=1)
    atoms.get_potential_energy()
    assert atoms.calc.check_state(atoms) == []
    changes = {
        "positions": lambda a: a.positions.__setitem__((0, 0), a.positions[0, 0] + 1e-9),
        "numbers": lambda a: a.numbers.__setitem__(0, 29),
        "cell": lambda a: a.set_cell([9.0, 9.0, 9.0]),
        "pbc": lambda a: a.set_pbc(True),
        "initial_charges": lambda a: a.set_initial_charges([0.5, 0.3, 0.2]),
        "total_charge": lambda a: a.calc.results and setattr(a.calc, "total_charge", 0),
    }
    for name, change in changes.items():
        other = atoms.copy()
        other.calc = copy.deepcopy(atoms.calc)
        change(other)
        assert name in other.calc.check_state(other), name


def test_sources_that_disagree_are_refused(model, atoms):
    atoms.calc = KQEqCalculator(model, total_charge=1)
    atoms.get_potential_energy()
    atoms.info["charge"] = 0  # also when there are results in the cache
    with pytest.raises(InputError, match="two total charges"):
        atoms.get_potential_energy()
    atoms.info["charge"] = 1
    atoms.get_potential_energy()
    atoms.calc.external_field = FIELD
    atoms.info["external_field"] = (0, 0, 0)
    with pytest.raises(InputError, match="two external fields"):
        atoms.get_forces()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"total_charge": "one"}, "total_charge"),
        ({"total_charge": np.nan}, "total_charge"),
        ({"external_field": (0, 1)}, "external_field"),
        ({"external_field": (0, 0, np.inf)}, "external_field"),
    ],
)
def test_bad_conditions_are_refused_where_they_are_set(model, options, text):
    with pytest.raises(InputError, match=text):
        KQEqCalculator(model, **options)
    calc = KQEqCalculator(model)
    with pytest.raises(InputError, match=text):
        calc.set(**options)
    assert calc.total_charge is None
    assert calc.external_field is None


def test_unknown_parameters_are_refused(model):
    with pytest.raises(
        InputError, match="'charge'; expected total_charge, external_field or external_charges"
    ):
        KQEqCalculator(model).set(charge=1)


def test_needs_a_fitted_model(atoms):
    with pytest.raises(ModelNotFittedError, match="not fitted"):
        KQEqCalculator(kqeq.KQEq())
    with pytest.raises(ModelFileError, match=r"no kqeq model file nowhere\.kqeq"):
        KQEqCalculator("nowhere.kqeq")


def test_asked_without_a_structure(model):
    with pytest.raises(InputError, match="without a structure"):
        KQEqCalculator(model).get_property("energy")


def test_model_errors_come_through(model):
    water = Atoms("OH2", positions=[[0, 0, 0], [0, 0, 1], [0, 1, 0]])
    water.calc = KQEqCalculator(model)
    with pytest.raises(InputError, match="contains H, O; the model was fitted on Ag"):
        water.get_potential_energy()
    assert water.calc.results == {}


def test_model_without_energies(dipole_model, atoms, tmp_path):
    atoms.calc = KQEqCalculator(dipole_model, total_charge=1)
    assert abs(atoms.get_charges().sum() - 1) < 1e-10
    np.testing.assert_array_equal(
        atoms.get_dipole_moment(), dipole_model.predict(atoms, total_charge=1).dipole
    )
    for ask in (atoms.get_potential_energy, atoms.get_forces):
        with pytest.raises(UnsupportedError, match="fitted without energies"):
            ask()
        with pytest.raises(PropertyNotImplementedError):
            ask()
    assert "energy" not in atoms.calc.results


def test_model_without_charges(short_range_model, atoms):
    atoms.calc = KQEqCalculator(short_range_model)
    assert np.isfinite(atoms.get_forces()).all()
    for ask in (atoms.get_charges, atoms.get_dipole_moment):
        with pytest.raises(PropertyUnavailableError, match="the model has no charges"):
            ask()


def test_a_field_without_charges_is_refused_also_later(short_range_model, atoms):
    atoms.calc = KQEqCalculator(short_range_model)
    atoms.get_potential_energy()
    atoms.calc.external_field = FIELD
    for arguments in ({}, {"atoms": atoms}):
        with pytest.raises(InputError, match="no charges for the field"):
            atoms.calc.get_property("energy", **arguments)


def test_stress_of_periodic_structures(short_range_model, atoms, calls):
    atoms.set_cell([[6.0, 0, 0], [0.5, 6.5, 0], [0, 0.3, 7.0]])
    atoms.pbc = True
    atoms.calc = KQEqCalculator(short_range_model)
    atoms.get_forces()
    stress = atoms.get_stress()
    assert len(calls) == 1  # forces and stress come out of the same derivatives
    assert np.abs(stress).max() > 1e-3
    h = 1e-4
    for voigt, (i, j) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += 0.5 * sign * h
            strain[j, i] += 0.5 * sign * h
            strained = atoms.copy()
            strained.calc = atoms.calc
            strained.set_cell(atoms.cell @ strain, scale_atoms=True)
            energies.append(strained.get_potential_energy())
        numeric = (energies[0] - energies[1]) / (2 * h) / atoms.get_volume()
        assert stress[voigt] == pytest.approx(numeric, rel=1e-4, abs=1e-7)


def test_no_stress_without_a_cell(model, short_range_model, atoms):
    atoms.calc = KQEqCalculator(model)
    with pytest.raises(PropertyUnavailableError, match="not periodic"):
        atoms.get_stress()
    slab = atoms.copy()
    slab.set_cell([6.0, 6.0, 0.0])
    slab.pbc = (True, True, False)
    slab.calc = KQEqCalculator(short_range_model)
    with pytest.raises(PropertyUnavailableError, match="stress needs a cell"):
        slab.get_stress()


def test_pickle_and_copy(model, atoms):
    calc = KQEqCalculator(model, total_charge=1, external_field=FIELD)
    atoms.calc = calc
    energy = atoms.get_potential_energy()
    data = pickle.dumps(calc)
    for again in (pickle.loads(data), copy.deepcopy(calc)):
        assert again.total_charge == 1
        assert again.external_field == FIELD
        other = atoms.copy()
        other.calc = again
        assert other.get_potential_energy() == energy
        np.testing.assert_array_equal(other.get_forces(), atoms.get_forces())
    # the training set and the posterior stay behind
    assert b"kqeq.fitting" not in data


def test_fitting_the_model_again_does_not_reach_the_calculator(frames, atoms):
    model = kqeq.KQEq(small(r_cut=4.0), small(r_cut=5.0)).fit(frames[::3])
    atoms.calc = KQEqCalculator(model, total_charge=1)
    before = atoms.get_potential_energy()
    model.fit(frames[1::3])
    atoms.calc.reset()
    assert atoms.get_potential_energy() == before
    assert model.predict(atoms, total_charge=1).energy != before


def test_warns_once_about_an_undetermined_charge_state(frames, atoms):
    cations = [a for a in frames if a.info["total_charge"] == 1]
    model = kqeq.KQEq(small(r_cut=4.0), small(r_cut=5.0)).fit(cations[::3])
    atoms.calc = KQEqCalculator(model, total_charge=0)
    with pytest.warns(UndeterminedWarning):
        atoms.get_potential_energy()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UndeterminedWarning)
        atoms.rattle(0.01)
        atoms.get_potential_energy()
        atoms.calc.total_charge = 1
        atoms.get_potential_energy()


def test_ase_writers(model, dipole_model, short_range_model, atoms, tmp_path):
    for name, each in (("all", model), ("dipole", dipole_model), ("short", short_range_model)):
        frame = atoms.copy()
        frame.calc = KQEqCalculator(each)
        frame.calc.calculate(frame, ["dipole"] if each is dipole_model else ["forces"])
        write(tmp_path / f"{name}.xyz", frame)
        with Trajectory(tmp_path / f"{name}.traj", "w", frame) as trajectory:
            trajectory.write()
        for suffix in ("xyz", "traj"):
            results = read(tmp_path / f"{name}.{suffix}").calc.results
            assert ("energy" in results) == (each is not dipole_model)
            assert ("charges" in results) == (each is not short_range_model)


def test_dynamics_conserve_the_energy(model, atoms):
    atoms.calc = KQEqCalculator(model, total_charge=1, external_field=(0, 0, 0.02))
    atoms.set_momenta(np.random.default_rng(1).normal(scale=2.0, size=(3, 3)))
    energies = []
    dynamics = VelocityVerlet(atoms, timestep=1.0 * units.fs)
    dynamics.attach(lambda: energies.append((atoms.get_total_energy(), atoms.get_potential_energy())))
    dynamics.run(50)
    total, potential = np.array(energies).T
    assert np.ptp(potential) > 0.02
    assert np.ptp(total) < 0.02 * np.ptp(potential)


def test_calculator_parameters_survive_todict(model):
    calc = KQEqCalculator(model, total_charge=-1)
    assert calc.todict() == {"total_charge": -1.0}
    assert calc.name == "kqeqcalculator"


def test_the_kept_neighbour_list_changes_nothing(short_range_model):
    """A large structure reuses its list between steps: same results as from scratch, also after a large move."""
    rng = np.random.default_rng(0)
    side = 5
    atoms = Atoms(
        f"Ag{side**3}",
        positions=2.9 * np.array(list(np.ndindex(side, side, side)))
        + rng.normal(scale=0.1, size=(side**3, 3)),
        cell=[2.9 * side] * 3,
        pbc=True,
    )
    atoms.calc = KQEqCalculator(short_range_model)
    for scale in (0.0, 0.02, 0.02, 1.0):
        atoms.positions += rng.normal(scale=scale, size=atoms.positions.shape) if scale else 0.0
        fresh = short_range_model.predict(atoms)
        assert np.abs(fresh.forces).max() > 1e-3
        np.testing.assert_allclose(atoms.get_forces(), fresh.forces, atol=1e-9 * np.abs(fresh.forces).max())
        np.testing.assert_allclose(atoms.get_potential_energy(), fresh.energy, rtol=1e-12)
    assert atoms.calc._finder._kept is not None
    assert pickle.loads(pickle.dumps(atoms.calc))._finder._kept is None


def test_lists_what_its_model_has(model, dipole_model, short_range_model, tmp_path, atoms):
    energies, charges = ["energy", "free_energy", "forces", "stress"], ["charges", "dipole"]
    assert KQEqCalculator(model).implemented_properties == energies + charges
    assert KQEqCalculator(dipole_model).implemented_properties == charges
    assert KQEqCalculator(short_range_model).implemented_properties == energies
    path = tmp_path / "m.kqeq"
    model.save(path)
    found = []
    for given in (model, path, str(path)):
        own = atoms.copy()
        own.calc = KQEqCalculator(given)
        found.append(own.get_potential_energy())
    assert found[0] == found[1] == found[2] != 0.0
    with pytest.raises(ModelFileError, match="nowhere"):
        KQEqCalculator(tmp_path / "nowhere.kqeq")
    with pytest.raises(InputError, match="or the path of a model file, got int"):
        KQEqCalculator(3)
