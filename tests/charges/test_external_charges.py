"""Charges around a structure: energies, forces, back-forces and stress are derivatives of one energy."""

import numpy as np
import pytest
from ase import Atoms
from ase.io import read, write

import kqeq
from conftest import NOISE, small_kernel
from kqeq import ACKS2, AtomicDipoles, ChargeKernel, ExternalCharges, KQEq, KQEqCalculator, LatentCharges, QEq
from kqeq.analysis import electrostatic_potential
from kqeq.errors import InputError, LabelWarning, UnsupportedError
from kqeq.frames.structures import read_structure
from kqeq.potential.fixed_geometry import same_geometry

STEP = 1e-4
MODELS = {
    "qeq": {"charges": QEq()},
    "acks2 with dipoles": {"charges": AtomicDipoles(ACKS2())},
    "latent with dipoles": {"charges": AtomicDipoles(LatentCharges())},
    "charge-aware": {"charges": AtomicDipoles(QEq()), "charge_aware": ChargeKernel()},
}


@pytest.fixture(scope="module", params=MODELS, ids=list(MODELS))
def model(request, water_training):
    return KQEq(small_kernel(3.5), small_kernel(4.0, zeta=4), noise=NOISE, **MODELS[request.param]).fit(
        water_training
    )


@pytest.fixture(scope="module")
def surroundings():
    rng = np.random.default_rng(3)
    return ExternalCharges(2.5 * rng.normal(size=(4, 3)), rng.normal(size=4), [0.0, 0.3, 1.0, 0.5])


def centred(atoms):
    return Atoms(atoms.numbers, atoms.positions - atoms.positions.mean(axis=0))


def energy(model, atoms, outside, charge=0.0):
    options = {"total_charge": charge, "properties": ["energy"]}
    return model.predict(atoms, external_charges=outside, **options).energy


def moved(array, i, axis, step):
    result = np.array(array)
    result[i, axis] += step
    return result


def _dipoles(prediction):
    found = prediction.atomic_dipoles
    return np.zeros(1) if found is None else found


def check_derivatives(model, atoms, outside, charge=0.0, some=3):
    """Forces on atoms and on external charges by central differences of the energy; they sum to zero."""
    p = model.predict(atoms, external_charges=outside, total_charge=charge)
    alone = model.predict(atoms, total_charge=charge)
    assert p.external_forces.shape == outside.positions.shape
    assert np.abs(p.external_forces).max() > 0.05
    assert np.abs(p.forces - alone.forces).max() > 0.05
    assert alone.external_forces is None
    assert p.charges.sum() == pytest.approx(charge, abs=1e-9)
    for i in range(some):
        for axis in range(3):
            ends = []
            for step in (STEP, -STEP):
                other = atoms.copy()
                other.positions[i, axis] += step
                ends.append(energy(model, other, outside, charge))
            assert -(ends[0] - ends[1]) / (2 * STEP) == pytest.approx(p.forces[i, axis], abs=2e-6)
            ends = [
                energy(
                    model,
                    atoms,
                    (moved(outside.positions, i, axis, step), outside.charges, outside.widths),
                    charge,
                )
                for step in (STEP, -STEP)
            ]
            assert -(ends[0] - ends[1]) / (2 * STEP) == pytest.approx(p.external_forces[i, axis], abs=2e-6)
    assert p.forces.sum(axis=0) + p.external_forces.sum(axis=0) == pytest.approx(np.zeros(3), abs=1e-8)
    return p, alone


def test_open(model, water_systems, surroundings):
    atoms = centred(water_systems["hydronium"][1])
    p, alone = check_derivatives(model, atoms, surroundings, charge=1.0)
    # they polarise charges, or dipoles where charges are functions of the environment
    assert np.ptp(p.charges - alone.charges) + np.ptp(_dipoles(p) - _dipoles(alone)) > 0.005


@pytest.mark.parametrize("pbc", [True, (True, True, False)], ids=["cell", "slab"])
def test_periodic_with_stress(model, water_systems, surroundings, pbc):
    outside = (surroundings.positions, surroundings.charges, 0.4)
    atoms = centred(water_systems["water2"][1])
    atoms.set_cell(
        [[7.0, 0, 0], [1.0, 6.5, 0], [0.4, 0.7, 9.0]] if pbc is True else np.diag([7.0, 6.5, 20.0])
    )
    atoms.pbc = pbc
    p, alone = check_derivatives(model, atoms, ExternalCharges(*outside), some=1)
    assert np.abs(p.stress - alone.stress).max() > 1e-4
    for i, j in ((0, 0), (0, 1), (2, 1)):
        ends = []
        for step in (STEP, -STEP):
            strain = np.eye(3)
            strain[i, j] += 0.5 * step
            strain[j, i] += 0.5 * step
            other = atoms.copy()
            other.set_cell(atoms.cell.array @ strain)
            other.positions = atoms.positions @ strain
            ends.append(energy(model, other, (outside[0] @ strain, *outside[1:])))
        number = (ends[0] - ends[1]) / (2 * STEP) / atoms.get_volume()
        assert number == pytest.approx(p.stress[i, j], abs=1e-7)


def test_a_mesh_gives_the_same(monkeypatch, water_model, water_systems, surroundings):
    atoms = centred(water_systems["water2"][1])
    atoms.set_cell(np.diag([8.0, 7.5, 9.0]))
    atoms.pbc = True
    outside = (surroundings.positions, surroundings.charges, 0.4)
    first = water_model.predict(atoms, external_charges=outside)
    monkeypatch.setattr("kqeq.charges.embedding._EWALD_CENTRES", 1)
    second = water_model.predict(atoms, external_charges=outside)
    assert second.energy == pytest.approx(first.energy, abs=1e-6)
    assert second.external_forces == pytest.approx(first.external_forces, abs=1e-5)
    assert second.forces == pytest.approx(first.forces, abs=1e-5)


def test_a_small_charge_measures_the_potential(water_model, water_systems):
    """∂E/∂Q_m is the electrostatic potential, computed elsewhere; −∂E/∂r_m is the charge times the field."""
    atoms = centred(water_systems["hydronium"][2])
    point = np.array([[1.5, -2.0, 2.5]])
    there = electrostatic_potential(water_model, atoms, point, total_charge=1.0)
    ends = [energy(water_model, atoms, (point, [charge]), 1.0) for charge in (1e-3, -1e-3)]
    assert abs(there.potential[0]) > 1.0
    assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(there.potential[0], abs=1e-7)
    p = water_model.predict(atoms, external_charges=(point, [1e-6]), total_charge=1.0)
    assert p.external_forces[0] / 1e-6 == pytest.approx(there.field[0], abs=1e-5)


def test_many_charges_go_in_blocks(monkeypatch, water_model, water_systems):
    atoms = centred(water_systems["water1"][0])
    rng = np.random.default_rng(0)
    outside = (rng.normal(size=(50, 3)) * 5 + 4, rng.normal(size=50), 0.2)
    first = water_model.predict(atoms, external_charges=outside)
    monkeypatch.setattr("kqeq.charges.embedding.chunk_elements", lambda *_: 21)
    second = water_model.predict(atoms, external_charges=outside)
    assert second.energy == pytest.approx(first.energy, abs=1e-10)
    assert second.external_forces == pytest.approx(first.external_forces, abs=1e-10)


def test_far_charges_are_a_field(water_model, water_systems):
    """Two opposite charges far away on both sides: nearly a uniform field."""
    atoms = centred(water_systems["water1"][1])
    distance, strength = 3000.0, 0.1
    charge = strength * distance**2 / (2 * kqeq.constants.COULOMB)
    outside = ([[0, 0, -distance], [0, 0, distance]], [charge, -charge])
    field = water_model.predict(atoms, external_field=(0, 0, strength))
    charges = water_model.predict(atoms, external_charges=outside)
    alone = water_model.predict(atoms)
    assert np.abs(field.forces - alone.forces).max() > 0.01
    assert charges.forces == pytest.approx(field.forces, abs=1e-5)
    assert charges.energy == pytest.approx(field.energy, abs=1e-5)
    assert charges.charges == pytest.approx(field.charges, abs=1e-6)


def test_calculator(water_model, water_systems, surroundings):
    atoms = centred(water_systems["hydronium"][1])
    atoms.calc = KQEqCalculator(water_model, total_charge=1, external_charges=surroundings)
    expected = water_model.predict(atoms, total_charge=1, external_charges=surroundings)
    assert atoms.get_potential_energy() == pytest.approx(expected.energy, abs=1e-9)
    assert atoms.get_forces() == pytest.approx(expected.forces, abs=1e-9)
    assert atoms.calc.external_forces == pytest.approx(expected.external_forces, abs=1e-9)
    # moving them is noticed
    shifted = ExternalCharges(surroundings.positions + 0.5, surroundings.charges, surroundings.widths)
    atoms.calc.external_charges = shifted
    assert atoms.calc.external_forces is None
    other = water_model.predict(atoms, total_charge=1, external_charges=shifted)
    assert atoms.get_forces() == pytest.approx(other.forces, abs=1e-9)
    assert np.abs(other.forces - expected.forces).max() > 0.01
    assert "external_charges" in atoms.calc.set(external_charges=None)
    alone = water_model.predict(atoms, total_charge=1)
    assert atoms.get_potential_energy() == pytest.approx(alone.energy, abs=1e-9)
    assert atoms.calc.external_forces is None
    # equal numbers are no change
    atoms.calc.set(external_charges=shifted)
    again = (shifted.positions, shifted.charges, shifted.widths)
    assert atoms.calc.set(external_charges=again) == {}
    with pytest.raises(ValueError, match="read-only"):
        atoms.calc.external_charges.positions[0] = 0.0


def test_frames_remember_that_they_were_embedded(tmp_path, water_model, water_systems, surroundings):
    """What such a frame says of its energy is not what a fit without the charges may learn."""
    atoms = centred(water_systems["water1"][1])
    atoms.calc = KQEqCalculator(water_model, external_charges=surroundings)
    atoms.get_forces()
    write(tmp_path / "embedded.xyz", atoms)
    frame = read(tmp_path / "embedded.xyz")
    assert frame.info["calculator_external_charges"] == 4
    with pytest.warns(LabelWarning) as caught:  # also of the net force
        water_model.evaluate(frame)
    assert any("computed among external charges" in str(warning.message) for warning in caught)
    atoms.calc.external_charges = None
    atoms.get_forces()
    assert "calculator_external_charges" not in atoms.info


def test_at_a_potential(water_model, water_systems, surroundings):
    """The grand energy has the same back-forces, and the charge follows the surroundings."""
    atoms = centred(water_systems["water1"][1])
    potential = water_model.predict(atoms, total_charge=0.2).chemical_potential
    calc = KQEqCalculator(water_model, potential=potential, external_charges=surroundings)
    calc.get_property("forces", atoms)
    forces = calc.external_forces.copy()
    assert abs(calc.prediction.total_charge - 0.2) > 0.01
    ends = []
    for step in (STEP, -STEP):
        there = moved(surroundings.positions, 1, 2, step)
        calc.external_charges = (there, surroundings.charges, surroundings.widths)
        ends.append(calc.get_property("energy", atoms))
    assert abs(forces[1, 2]) > 0.01
    assert -(ends[0] - ends[1]) / (2 * STEP) == pytest.approx(forces[1, 2], abs=2e-6)


def test_uncertainties_follow(water_model, water_systems, surroundings):
    atoms = centred(water_systems["water2"][1])
    near = water_model.predict(atoms, external_charges=surroundings, uncertainty=True)
    alone = water_model.predict(atoms, uncertainty=True)
    assert np.isfinite(near.forces_std).all()
    assert near.energy_std != pytest.approx(alone.energy_std, rel=1e-3)


def test_same_geometry(water_systems, surroundings):
    atoms = water_systems["water1"][0]
    first = read_structure(atoms, external_charges=surroundings)
    copy = (surroundings.positions.copy(), surroundings.charges, surroundings.widths)
    assert same_geometry(first, read_structure(atoms, external_charges=copy))
    assert not same_geometry(first, read_structure(atoms))
    assert not same_geometry(read_structure(atoms), first)
    assert not same_geometry(first, read_structure(atoms, external_charges=(copy[0] + 1, *copy[1:])))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (([[0, 0]], [1]), r"shape \(1, 2\); expected \(M, 3\)"),
        (([[0, 0, 5]], [1, 2]), r"1 external charges have charges of shape \(2,\)"),
        (([[0, 0, np.nan]], [1]), "NaN"),
        (([[0, 0, 5]], [1], -0.1), "not negative"),
        (([[0, 0, 1e7]], [1]), "Å from the origin"),
        (([[0, 0, 5]], ["a"]), "expected numbers"),
        ({"positions": [[0, 0, 5]]}, "'positions' .* 'charges'"),
        (3.0, "external_charges is float"),
    ],
)
def test_wrong_input(water_model, water_systems, value, text):
    with pytest.raises(InputError, match=text):
        water_model.predict(water_systems["water1"][0], external_charges=value)


def test_none_and_no_charges(water_model, water_systems):
    atoms = water_systems["water1"][0]
    alone = water_model.predict(atoms)
    for nothing in (None, ([], []), ExternalCharges(np.zeros((0, 3)), [])):
        p = water_model.predict(atoms, external_charges=nothing)
        assert p.energy == alone.energy
        assert p.external_forces is None


def test_refused(short_range_model, water_model, water_systems, surroundings):
    atoms = water_systems["water1"][0].copy()
    with pytest.raises(InputError, match="no charges for them to act on"):
        short_range_model.predict(atoms, external_charges=surroundings)
    calculator = KQEqCalculator(short_range_model)
    atoms.calc = calculator
    atoms.get_potential_energy()
    calculator.external_charges = surroundings
    with pytest.raises(InputError, match="no charges for them to act on"):
        atoms.get_potential_energy()
    atoms.cell, atoms.pbc = np.eye(3) * 9, True
    with pytest.raises(UnsupportedError, match="need widths"):
        water_model.predict(atoms, external_charges=surroundings)


def test_a_baseline_with_charges_is_refused(water_training, surroundings):
    pytest.importorskip("tblite")
    frames = [a for a in water_training if a.info["system"] == "water1"]
    kernel = small_kernel(n_representatives=3)
    model = KQEq(kernel, kernel, baseline="gfn2", noise=NOISE, max_iterations=3).fit(frames)
    with pytest.raises(UnsupportedError, match="do not feel them"):
        model.predict(frames[0], external_charges=surroundings)
