"""Geometry optimisation: the charged molecule in a field above all."""

import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms

import kqeq
from kqeq.analysis.optimization import optimise, optimize
from kqeq.errors import InputError, UnsupportedError

FIELD = np.array([0.0, 0.06, 0.08])


@pytest.fixture
def ion(ion_frames):
    atoms = next(a for a in ion_frames if a.info["system"] == "hydronium")
    return Atoms(atoms.numbers, atoms.positions)


def test_holds_the_centre_of_mass_of_an_ion_in_a_field(ion_model, ion):
    start = ion.copy()
    result = optimize(ion_model, ion, total_charge=1, external_field=FIELD, fmax=1e-3)
    assert result.converged
    assert result.held_centre_of_mass
    assert result.max_force < 1e-3
    np.testing.assert_allclose(result.net_force, FIELD)
    np.testing.assert_allclose(result.atoms.get_center_of_mass(), start.get_center_of_mass(), atol=1e-10)
    assert np.abs(result.atoms.positions - start.positions).max() > 0.01
    # the true forces are one common acceleration, not zero
    masses = ion.get_masses()
    expected = np.outer(masses / masses.sum(), FIELD)
    np.testing.assert_allclose(result.prediction.forces, expected, atol=2e-3)
    assert np.abs(expected).max() > 0.05
    # the molecule has turned: no torque about the centre of mass is left
    arms = result.atoms.positions - result.atoms.get_center_of_mass()
    dipole = result.prediction.charges @ arms
    assert np.linalg.norm(dipole) > 0.05
    assert np.linalg.norm(np.cross(dipole, FIELD)) < 5e-3
    # the input is left alone
    np.testing.assert_array_equal(ion.positions, start.positions)
    assert ion.calc is None
    assert not ion.constraints
    assert not result.atoms.constraints


def test_the_held_minimum_is_a_minimum(ion_model, ion):
    """Displacements that keep the centre of mass raise the energy."""
    found = optimize(ion_model, ion, total_charge=1, external_field=FIELD, fmax=1e-3)
    masses = ion.get_masses()
    rng = np.random.default_rng(0)
    for _ in range(10):
        step = rng.normal(scale=0.02, size=(4, 3))
        step -= masses @ step / masses.sum()
        moved = found.atoms.copy()
        moved.positions += step
        assert ion_model.predict(moved, properties=["energy"]).energy > found.prediction.energy


@pytest.mark.parametrize(("charge", "field"), [(1, None), (0, (0, 0, 0.1))])
def test_nothing_is_held_where_there_is_no_net_force(ion_model, ion, ion_frames, charge, field):
    water = next(a for a in ion_frames if a.info["system"] == "water1")
    atoms = ion if charge else Atoms(water.numbers, water.positions)
    result = optimize(ion_model, atoms, total_charge=charge, external_field=field, fmax=0.005)
    assert result.converged
    assert not result.held_centre_of_mass
    assert np.linalg.norm(result.prediction.forces, axis=1).max() < 0.005


def test_conditions_from_info_and_contradictions(ion_model, ion):
    ion.info.update(charge=1, external_field=FIELD)
    assert optimize(ion_model, ion, fmax=0.05).held_centre_of_mass
    with pytest.raises(InputError, match="two total charges"):
        optimize(ion_model, ion, total_charge=0)


def test_fixed_atoms_take_the_place_of_the_centre_of_mass(ion_model, ion):
    ion.set_constraint(FixAtoms([0]))
    result = optimize(ion_model, ion, total_charge=1, external_field=FIELD, fmax=0.01)
    assert result.converged
    assert not result.held_centre_of_mass
    np.testing.assert_array_equal(result.atoms.positions[0], ion.positions[0])
    assert len(result.atoms.constraints) == 1


def test_stops_and_says_so(ion_model, ion):
    seen = []
    result = optimize(
        ion_model, ion, total_charge=1, fmax=1e-4, max_steps=2, observer=lambda *row: seen.append(row)
    )
    assert not result.converged
    assert result.steps == 2
    assert [row[0] for row in seen] == [0, 1, 2]
    assert seen[-1][1:] == (result.prediction.energy, result.max_force)
    assert result.max_force > 1e-4


def test_labels_of_the_old_geometry_are_left_behind(ion_model, ion_frames):
    frame = next(a for a in ion_frames if a.info["system"] == "hydronium").copy()
    frame.info["energy"] = 1.0
    result = optimize(ion_model, frame, fmax=0.1)
    assert set(result.atoms.info) == {"total_charge", "external_field"}
    assert set(result.atoms.arrays) == {"numbers", "positions"}
    assert frame.info["energy"] == 1.0


@pytest.mark.parametrize("options", [{"fmax": 0.0}, {"fmax": np.nan}, {"max_steps": 0}, {"max_steps": 1.5}])
def test_settings_that_make_no_sense(ion_model, ion, options):
    with pytest.raises(InputError, match=next(iter(options))):
        optimize(ion_model, ion, **options)


def test_needs_a_model_with_energies(ion_frames, ion):
    model = kqeq.KQEq(kqeq.SOAPKernel(r_cut=3.5, n_representatives=10), short_range=None, targets=["dipole"])
    with pytest.raises(UnsupportedError, match="fitted without energies"):
        optimize(model.fit(ion_frames), ion)


def test_a_breakdown_on_the_way_names_step_and_cause(ion_model, ion):
    with pytest.raises(InputError, match=r"broke down after step 0: .*interrupted") as caught:
        optimize(ion_model, ion, total_charge=1, observer=_refuse)
    assert isinstance(caught.value.__cause__, InputError)


def _refuse(*_):
    raise InputError("interrupted")


def test_the_old_name_and_order_warn_and_work(ion_model, ion):
    with pytest.warns(DeprecationWarning, match=r"optimize\(model, atoms\)"):
        old = optimise(ion, ion_model, fmax=0.5)
    assert old.max_force == optimize(ion_model, ion, fmax=0.5).max_force
    with pytest.raises(InputError, match="expected a fitted"):
        optimize(ion, ion_model)


# ------------------------------------------------------------------ force calls


@pytest.fixture(scope="module")
def glycinium():
    """Glycine and its cation at 500 K, labelled with GFN2-xTB."""
    from pathlib import Path

    from ase.io import read

    return read(Path(__file__).parents[1] / "files" / "glycinium.xyz", ":")


@pytest.fixture(scope="module")
def glycinium_model(glycinium):
    """Single kernels, 30 frames: soft along torsions, stiff where a hydrogen bond closes."""
    from kqeq.kernels.settings import default_electronegativity, default_short_range

    train = [atoms for atoms in glycinium if atoms.info["seed"] == 0]
    return kqeq.KQEq(default_electronegativity(), default_short_range()).fit(train)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::kqeq.errors.KQEqWarning")
def test_a_long_way_along_soft_torsions_takes_few_force_calls(glycinium, glycinium_model):
    """The start from which BFGS took 116 calls: it ran into the wall of the hydrogen bond again and again."""
    ion = [atoms for atoms in glycinium if atoms.info["system"] == "glycinium"][16]
    forces = []
    result = optimize(
        glycinium_model,
        Atoms(ion.numbers, ion.positions),
        total_charge=1,
        observer=lambda step, energy, force: forces.append(force),
    )
    assert result.converged
    assert len(forces) <= 100  # 75 when this was written
    assert result.steps + 1 == len(forces)
    # it is the long way: the energy falls by more than an eV
    start = glycinium_model.predict(Atoms(ion.numbers, ion.positions), total_charge=1).energy
    assert start - result.prediction.energy > 1.0


@pytest.mark.slow
def test_energies_along_a_step_into_the_wall_are_smooth(glycinium, glycinium_model):
    """What made forces rise after step 70 of BFGS was the step, not the model: no edge of a cutoff, no jump."""
    ion = [atoms for atoms in glycinium if atoms.info["system"] == "glycinium"][16]
    atoms = Atoms(ion.numbers, ion.positions, info={"total_charge": 1})
    direction = np.random.default_rng(2).normal(size=atoms.positions.shape)
    direction *= 0.2 / np.linalg.norm(direction, axis=1).max()
    slopes = []
    for part in np.linspace(0.0, 1.0, 21):
        moved = atoms.copy()
        moved.positions += part * direction
        slopes.append(
            -float((glycinium_model.predict(moved, properties=["forces"]).forces * direction).sum())
        )
    second = np.diff(slopes)
    assert np.ptp(slopes) > 0.5
    # curvature changes slowly: a kink or a jump would stand out between neighbours
    assert np.abs(np.diff(second)).max() < 0.1 * np.ptp(slopes)


def test_a_cell_is_relaxed_under_pressure(short_range_model):
    from ase import units

    cell = Atoms("OH2", [(1, 1, 1), (1, 1.76, 1.59), (1, 0.24, 1.59)], cell=(3.4, 3.6, 3.8), pbc=True)
    bare = optimize(short_range_model, cell, fmax=0.05, cell=True, max_steps=100)
    pressed = optimize(short_range_model, cell, fmax=0.05, cell=True, pressure=5e4, max_steps=100)
    assert pressed.converged
    assert bare.converged
    assert pressed.atoms.get_volume() < bare.atoms.get_volume()
    stress = pressed.prediction.stress
    # the filter's criterion: force on the cell = volume · stress
    excess = (stress + 5e4 * 1e5 * units.Pascal * np.eye(3)) * pressed.atoms.get_volume()
    assert np.abs(excess).max() < 0.06 * len(cell)
    assert pressed.max_stress == pytest.approx(np.abs(excess).max() / pressed.atoms.get_volume())
    with pytest.raises(InputError, match="no cell to relax"):
        optimize(short_range_model, Atoms("OH2", cell.positions), cell=True)
    with pytest.raises(InputError, match="cell=True"):
        optimize(short_range_model, cell, pressure=1.0)


def test_every_geometry_on_the_way(ion_model, ion):
    seen = []
    result = optimize(ion_model, ion, total_charge=1, trajectory=seen.append)
    assert len(seen) == result.steps + 1
    assert seen[0].get_potential_energy() > seen[-1].get_potential_energy()
    assert seen[-1].get_potential_energy() == pytest.approx(result.prediction.energy)
    data = result.to_dict()
    assert data["force_calls"] == len(seen)
    assert data["units"]["energy"] == "eV"
