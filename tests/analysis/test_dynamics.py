"""Dynamics, vibrations, thermochemistry: against ASE's own and textbook limits; restart."""

import json
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms, units
from ase.constraints import FixAtoms
from ase.io import read, write

import kqeq
from checks import run
from kqeq import analysis
from kqeq.analysis.dynamics import STEP_KEY
from kqeq.errors import InputError, UnsupportedError


@pytest.fixture(scope="module")
def ion(ion_model, ion_frames):
    """Hydronium at a minimum of its model."""
    atoms = next(a for a in ion_frames if a.info["system"] == "hydronium")
    return analysis.optimize(
        ion_model, Atoms(atoms.numbers, atoms.positions), total_charge=1, fmax=0.01
    ).atoms


@pytest.fixture(scope="module")
def folder(tmp_path_factory, ion_model, ion):
    path = tmp_path_factory.mktemp("dynamics")
    ion_model.save(path / "m.kqeq")
    write(path / "ion.xyz", ion)
    return path


def test_energy_is_conserved_and_momentum(ion_model, ion):
    end, found = analysis.molecular_dynamics(
        ion_model, ion, steps=100, ensemble="nve", timestep=0.25, temperature=300.0, every=5
    )
    assert list(found.steps) == list(range(0, 101, 5))
    assert np.ptp(found.potential_energies) > 0.02
    assert np.ptp(found.total_energies) < 0.02 * np.ptp(found.potential_energies)
    np.testing.assert_allclose(end.get_momenta().sum(axis=0), 0.0, atol=1e-8)
    assert end.info[STEP_KEY] == 100
    assert found.to_dict()["units"]["temperatures"] == "K"
    p = ion_model.predict(Atoms(end.numbers, end.positions), total_charge=1)
    assert end.get_potential_energy() == pytest.approx(p.energy)


def test_it_is_ases_verlet(ion_model, ion):
    from ase.md.verlet import VelocityVerlet

    own = ion.copy()
    own.set_momenta(np.random.default_rng(3).normal(size=(4, 3)))
    end, _ = analysis.molecular_dynamics(ion_model, own, steps=7, ensemble="nve")
    own.calc = kqeq.KQEqCalculator(ion_model)
    VelocityVerlet(own, 0.5 * units.fs).run(7)
    np.testing.assert_allclose(end.positions, own.positions, atol=1e-12)
    assert np.abs(end.positions - ion.positions).max() > 0.01


def test_an_ion_in_a_field_stays(ion_model, ion):
    still = Atoms(ion.numbers, ion.positions)
    end, found = analysis.molecular_dynamics(
        ion_model, still, steps=60, ensemble="nve", total_charge=1, external_field=(0, 0, 0.3), every=60
    )
    assert found.held_centre_of_mass
    np.testing.assert_allclose(end.get_center_of_mass(), still.get_center_of_mass(), atol=1e-8)
    assert not end.constraints
    _, found = analysis.molecular_dynamics(ion_model, still, steps=5, total_charge=1, every=5)
    assert not found.held_centre_of_mass


def test_energy_is_conserved_at_a_potential(ion_model, ion):
    u = ion_model.predict(ion).chemical_potential
    _, found = analysis.molecular_dynamics(
        ion_model, ion, steps=60, ensemble="nve", timestep=0.25, every=5, potential=u
    )
    assert found.total_charges[0] == pytest.approx(1.0, abs=1e-6)
    assert np.ptp(found.total_charges) > 0.005
    assert np.ptp(found.total_energies) < 0.05 * np.ptp(found.potential_energies)
    with pytest.raises(InputError, match="the total charge follows"):
        analysis.molecular_dynamics(ion_model, ion, steps=5, potential=u, total_charge=1)


def test_langevin_reaches_its_temperature(ion_model, ion):
    _, found = analysis.molecular_dynamics(
        ion_model, ion, steps=400, timestep=0.5, temperature=300.0, friction=0.1, every=5, seed=1
    )
    # 12 degrees of freedom, about 20 independent samples: the mean scatters by 300 √(2 / 12 / 20) = 27 K
    assert 190.0 < found.temperatures[20:].mean() < 430.0


def test_restart_continues_and_cuts_off_half_a_frame(folder, tmp_path, capsys):
    arguments = ("md", folder / "m.kqeq", folder / "ion.xyz", "-o", tmp_path / "end.xyz", "--ensemble", "nve")
    own = ("--every", 5, "--seed", 2)
    trajectory, log = tmp_path / "run.xyz", tmp_path / "log.csv"
    files = ("--trajectory", trajectory, "--log", log, "--restart")
    assert run(*arguments, *own, "--steps", 20) == 0
    whole = read(tmp_path / "end.xyz")
    assert run(*arguments, *own, *files, "--steps", 10) == 0
    with trajectory.open("a") as file:
        file.write("4\nProperties=species:S:1:pos:R:3\nO 0 0 0\n")  # killed while writing
    capsys.readouterr()
    assert run(*arguments, *own, *files, "--steps", 20) == 0
    streams = capsys.readouterr()
    assert "going on from step 10" in streams.out
    assert "not complete; cut off" in streams.err
    frames = read(trajectory, ":")
    assert [atoms.info[STEP_KEY] for atoms in frames] == [0, 5, 10, 15, 20]
    # files hold eight decimals
    np.testing.assert_allclose(read(tmp_path / "end.xyz").positions, whole.positions, atol=1e-5)
    lines = log.read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "0", "5", "10", "15", "20"]
    assert run(*arguments, *own, *files, "--steps", 20) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert run(*arguments, *own, "--restart") == 2
    assert "name it with --trajectory" in capsys.readouterr().err


def test_outputs_of_a_dynamics(folder, tmp_path, capsys):
    arguments = ("md", folder / "m.kqeq", folder / "ion.xyz", "-o", tmp_path / "end.traj", "--steps", 10)
    outputs = (
        "--trajectory",
        tmp_path / "run.traj",
        "--json",
        tmp_path / "d.json",
        "--plot",
        tmp_path / "d.png",
    )
    assert run(*arguments, *outputs, "--quiet", "--field", "0", "0", "0.05") == 0
    out = capsys.readouterr().out
    assert out.startswith("the centre of mass was held")
    assert "kinetic" not in out
    frames = read(tmp_path / "run.traj", ":")
    assert len(frames) == 2
    assert frames[1].get_momenta().any()
    assert frames[1].info["total_charge"] == 1
    data = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))
    assert data["total_energies"][1] == pytest.approx(
        frames[1].get_potential_energy() + frames[1].get_kinetic_energy()
    )
    assert (tmp_path / "d.png").read_bytes()[:4] == b"\x89PNG"
    assert run(*arguments, "--trajectory", tmp_path / "run.pdb") == 2
    assert "neither .xyz nor .traj" in capsys.readouterr().err


def test_npt_keeps_a_cell_in_motion(water_model):
    pytest.importorskip("ase.md.nose_hoover_chain", reason="an older ASE")
    from ase.md import nose_hoover_chain

    if not hasattr(nose_hoover_chain, "IsotropicMTKNPT"):
        pytest.skip("an older ASE")
    cell = Atoms("OH2", [(1, 1, 1), (1, 1.76, 1.59), (1, 0.24, 1.59)], cell=(4.0, 4.2, 4.4), pbc=True)
    end, found = analysis.molecular_dynamics(
        water_model, cell, steps=20, ensemble="npt", temperature=50.0, every=10, timestep=0.25
    )
    assert np.ptp(found.volumes) > 0.0
    assert found.volumes[-1] == pytest.approx(end.get_volume())
    # isotropic: the shape stays
    np.testing.assert_allclose(end.cell.cellpar()[:3] / end.cell.cellpar()[0], [1.0, 1.05, 1.1], rtol=1e-8)
    stress = np.trace(end.get_stress(voigt=False, include_ideal_gas=True)) / 3.0
    assert found.pressures[-1] == pytest.approx(-stress / (1e5 * units.Pascal))
    with pytest.raises(UnsupportedError, match="npt needs all three"):
        analysis.molecular_dynamics(water_model, Atoms("OH2", cell.positions), steps=5, ensemble="npt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 5, "ensemble": "muvt"}, "expected one of nve, nvt, npt"),
        ({"steps": 5, "timestep": -1.0}, "timestep is -1.0"),
        ({"steps": 5, "temperature": float("nan")}, "temperature is nan"),
        ({"steps": 5, "friction": 2.0}, "friction is 2.0"),
    ],
)
def test_settings_of_a_dynamics_that_make_no_sense(ion_model, ion, options, message):
    with pytest.raises(InputError, match=message):
        analysis.molecular_dynamics(ion_model, ion, **options)


def test_a_dynamics_that_breaks_down_says_where(ion_model, ion):
    seen = []
    fast = ion.copy()
    fast.set_momenta(1e4 * np.random.default_rng(0).normal(size=(4, 3)))
    with pytest.raises(InputError, match=r"broke down after step \d+"):
        analysis.molecular_dynamics(
            ion_model,
            fast,
            steps=200,
            ensemble="nve",
            timestep=20.0,
            every=1,
            observer=lambda *row: seen.append(row),
        )
    assert seen


def test_a_dynamics_that_leaves_the_training_data_is_stopped(folder, ion_model, ion, tmp_path, capsys):
    arguments = ("md", folder / "m.kqeq", folder / "ion.xyz", "-o", tmp_path / "end.xyz", "--ensemble", "nve")
    limits = ("--max-distance", 1.5, "--timestep", 0.5, "--temperature", 30000, "--steps", 200, "--every", 1)
    assert run(*arguments, *limits, "--trajectory", tmp_path / "run.xyz", "--quiet") == 1
    assert "STOPPED: stopped at step" in capsys.readouterr().err
    stopped, frames = read(tmp_path / "end.xyz"), read(tmp_path / "run.xyz", ":")
    assert 1 < len(frames) < 200
    assert np.abs(stopped.positions - frames[-1].positions).max() > 1e-4  # one step farther
    _, found = analysis.molecular_dynamics(ion_model, ion, steps=3, max_distance=1e3, every=1)
    assert len(found.steps) == 4


# ------------------------------------------------------------------- vibrations


def test_vibrations_without_charges(short_range_model, ion_model, ion):
    found = analysis.infrared(ion_model, ion)
    plain = analysis.vibrations(ion_model, ion)
    np.testing.assert_allclose(plain.frequencies, found.frequencies)
    assert plain.energy == pytest.approx(ion_model.predict(plain.atoms, total_charge=1).energy, abs=1e-6)
    frames = plain.mode_frames(5, amplitude=0.2, frames=8)
    moved = frames[2].positions - plain.positions  # a quarter of the period
    assert np.linalg.norm(moved, axis=1).max() == pytest.approx(0.2)
    with pytest.raises(UnsupportedError, match="no infrared intensities"):
        analysis.infrared(short_range_model, Atoms(ion.numbers, ion.positions))


def test_thermochemistry_of_a_saddle_leaves_imaginary_modes_away(ion_model, ion):
    """A transition state has one of them; ASE counts modes."""
    found = analysis.infrared(ion_model, ion)
    thermo = analysis.thermochemistry(found)
    saddle = replace(found, frequencies=np.r_[-300.0, found.frequencies[1:]])
    other = analysis.thermochemistry(saddle)
    assert (thermo.imaginary, other.imaginary) == (0, 1)
    lost = 0.5 * found.frequencies[0] * units.invcm
    assert other.zero_point_energy == pytest.approx(thermo.zero_point_energy - lost)
    assert other.free_energy > thermo.free_energy - lost - 0.1


def test_thermochemistry_of_an_ideal_gas(ion_model, ion):
    from ase.thermochemistry import IdealGasThermo

    found = analysis.infrared(ion_model, ion)
    assert found.frequencies.min() > 100.0
    thermo = analysis.thermochemistry(found, temperature=350.0, pressure=2.0, symmetry_number=3)
    expected = IdealGasThermo(
        found.frequencies * units.invcm,
        geometry="nonlinear",
        potentialenergy=found.energy,
        atoms=found.atoms,
        symmetrynumber=3,
        spin=0,
    )
    assert thermo.free_energy == pytest.approx(expected.get_gibbs_energy(350.0, 2e5, verbose=False))
    assert thermo.free_energy == pytest.approx(thermo.enthalpy - 350.0 * thermo.entropy)
    assert thermo.zero_point_energy == pytest.approx(found.zero_point_energy)
    assert thermo.geometry == "nonlinear"
    # six vibrations that are hardly excited: 4 kT of translation, rotation and pressure
    cold = analysis.thermochemistry(found, temperature=20.0)
    assert cold.enthalpy - cold.potential_energy - cold.zero_point_energy == pytest.approx(
        4 * units.kB * 20.0, rel=1e-3
    )
    once = analysis.thermochemistry(found, temperature=350.0, pressure=2.0)
    assert once.entropy - thermo.entropy == pytest.approx(units.kB * np.log(3.0))


def test_partly_fixed_structures_have_vibrations_alone(ion_model, ion):
    held = ion.copy()
    held.set_constraint(FixAtoms([0]))
    found = analysis.vibrations(ion_model, held, relax=False)
    assert found.free_atoms == 3
    thermo = analysis.thermochemistry(found)
    assert (thermo.model, thermo.geometry, thermo.enthalpy) == ("harmonic", "", None)
    with pytest.raises(InputError, match="no ideal gas"):
        analysis.thermochemistry(found, model="ideal-gas")
    with pytest.raises(InputError, match="symmetry_number"):
        analysis.thermochemistry(found, symmetry_number=0)
    with pytest.raises(InputError, match="spin"):
        analysis.thermochemistry(found, spin=0.3)


def test_shapes_of_molecules():
    from kqeq.analysis.thermochemistry import geometry_of

    assert geometry_of(Atoms("O")) == "monatomic"
    assert geometry_of(Atoms("OC", [(0, 0, 0), (1.1, 0.3, 0.2)])) == "linear"
    assert geometry_of(Atoms("CO2", [(0, 0, 0), (0.5, 0.5, 1.0), (-0.5, -0.5, -1.0)])) == "linear"
    assert geometry_of(Atoms("OH2", [(0, 0, 0), (0, 0.8, 0.6), (0, -0.8, 0.6)])) == "nonlinear"


def test_the_command_vibrations(folder, tmp_path, capsys):
    outputs = ("--json", tmp_path / "v.json", "--plot", tmp_path / "v.png")
    mode = ("--mode", 0, "--trajectory", tmp_path / "mode.xyz")
    assert (
        run("vibrations", folder / "m.kqeq", folder / "ion.xyz", *outputs, *mode, "--symmetry-number", 3) == 0
    )
    out = capsys.readouterr().out
    assert "nonlinear ideal gas at 298.15 K, 1 bar" in out
    data = json.loads((tmp_path / "v.json").read_text(encoding="utf-8"))
    assert len(data["vibrations"]["frequencies"]) == 6
    assert f"{data['thermochemistry']['free_energy']:.6f}" in out
    assert len(read(tmp_path / "mode.xyz", ":")) == 20
    assert (tmp_path / "v.png").read_bytes()[:4] == b"\x89PNG"
    assert run("vibrations", folder / "m.kqeq", folder / "ion.xyz", "--mode", 1) == 2
    assert "go together" in capsys.readouterr().err
