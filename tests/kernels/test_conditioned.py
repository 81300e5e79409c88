"""Kernels that depend on the spin or the charge of a fragment: derivatives, size consistency, refusals, files."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from numpy.testing import assert_allclose

import kqeq
from kqeq.errors import ExtrapolationWarning, InputError, LabelWarning, UnsupportedError
from kqeq.frames.structures import read_structure

GEOMETRY = np.array([[0, 0, 1.2], [0, 0, 0], [0.95, 0, -0.6], [-0.95, 0, -0.6]])


def frame(seed, spin=0, charge=0):
    """CH2O whose bond feels spin and charge, in a world of its own."""
    atoms = Atoms("OCH2", positions=GEOMETRY + 0.08 * np.random.default_rng(seed).normal(size=(4, 3)))
    atoms.calc = EMT()
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    vector = atoms.positions[0] - atoms.positions[1]
    d = np.linalg.norm(vector)
    energy += 0.5 * spin * (3 - 1.2 * d) + charge * (5 - 2 * d) + charge**2 * (4 + d)
    slope = (-0.6 * spin - 2 * charge + charge**2) * vector / d
    forces[0] -= slope
    forces[1] += slope
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    atoms.info.update(spin=spin, total_charge=charge)
    return atoms


def kernel(condition, delta):
    return kqeq.SOAPKernel(r_cut=3.0, n_max=3, l_max=2, n_representatives=6, condition=condition, delta=delta)


NOISE = {"energy": 2e-3, "forces": 0.05}


@pytest.fixture(scope="module")
def spins():
    model = kqeq.KQEq(
        electronegativity=[kernel(None, 1.0), kernel("spin", 0.3)],
        short_range=[kernel(None, 1.0), kernel("spin", 0.5)],
        charges=kqeq.QEq(),
        noise=NOISE,
    )
    return model.fit([frame(seed, spin) for seed in range(8) for spin in (0, 2)])


@pytest.fixture(scope="module")
def charges():
    model = kqeq.KQEq(
        electronegativity=[kernel(None, 1.0), kernel("charge", 1.0)],
        short_range=[kernel(None, 1.0), kernel("charge", 1.0), kernel("charge^2", 1.0)],
        charges=kqeq.QEq(),
        noise=NOISE,
    )
    return model.fit([frame(seed, abs(q), q) for seed in range(7) for q in (-1, 0, 1)])


def without_labels(atoms, **info):
    copy = atoms.copy()
    copy.info.update(info)
    return copy


def check_forces(model, atoms):
    atoms = without_labels(atoms)
    atoms.calc = kqeq.KQEqCalculator(model)
    forces, h = atoms.get_forces(), 2e-3
    assert np.abs(forces).max() > 0.1
    for index in ((0, 2), (2, 1)):
        energies = []
        for step in (1, -1, 2, -2):
            moved = atoms.copy()
            moved.positions[index] += step * h
            moved.calc = atoms.calc
            energies.append(moved.get_potential_energy())
        numeric = -(8 * (energies[0] - energies[1]) - (energies[2] - energies[3])) / (12 * h)
        assert_allclose(forces[index], numeric, atol=1e-6 * np.abs(forces).max())


def test_two_spin_states_in_one_model(spins):
    test = [frame(seed, spin) for seed in (50, 51, 52) for spin in (0, 2)]
    gaps = [
        (spins.predict(high).energy - spins.predict(low).energy)
        - (high.get_potential_energy() - low.get_potential_energy())
        for low, high in zip(test[::2], test[1::2], strict=True)
    ]
    spread = np.ptp(
        [
            a.get_potential_energy() - b.get_potential_energy()
            for a, b in zip(test[::2], test[1::2], strict=True)
        ]
    )
    assert np.abs(gaps).max() < 0.1 < spread
    for atoms in test[:2]:
        check_forces(spins, atoms)
    # the electronegativities depend on spin too, so that the dipole does
    low, high = (spins.predict(own).dipole for own in test[:2])
    assert np.abs(low - high).max() > 1e-4


def test_three_charge_states_and_the_chemical_potential(charges):
    for q in (-1, 1):
        check_forces(charges, frame(60, abs(q), q))
    atoms, h = without_labels(frame(60)), 1e-3
    for key in ("spin", "total_charge"):
        atoms.info.pop(key)
    at = {q: charges.predict(atoms, total_charge=q) for q in (-0.5, -0.5 + h, -0.5 - h)}
    numeric = (at[-0.5 + h].energy - at[-0.5 - h].energy) / (2 * h)
    assert_allclose(at[-0.5].chemical_potential, numeric, rtol=1e-6)
    assert at[-0.5].hardness is None
    with pytest.raises(UnsupportedError, match="whole charges"):
        kqeq.KQEqCalculator(charges, potential=4.0)
    with pytest.raises(InputError, match="charge 2; the training frames have it at -1, 0, 1 only"):
        charges.predict(atoms, total_charge=2)


def test_what_is_kept_of_a_geometry_follows_the_charge(charges):
    """Scans over charges and a calculator that stays at a geometry give what a fresh one gives."""
    atoms = without_labels(frame(61))
    for key in ("spin", "total_charge"):
        atoms.info.pop(key)
    calculator = kqeq.KQEqCalculator(charges, total_charge=0)
    atoms.calc = calculator
    first = atoms.get_potential_energy()
    calculator.total_charge = 1
    second = atoms.get_potential_energy()
    assert abs(first - second) > 1.0
    assert_allclose(second, charges.predict(without_labels(atoms, total_charge=1)).energy, rtol=1e-12)
    calculator.total_charge = 0
    assert_allclose(atoms.get_potential_energy(), first, rtol=1e-12)


def far_apart(first, second, **info):
    pair = first.copy() + Atoms(second.numbers, positions=second.positions + np.array([300.0, 0, 0]))
    pair.calc = None
    pair.info.clear()
    pair.info.update(info)
    return pair


def test_size_consistency():
    model = kqeq.KQEq(
        electronegativity=[kernel(None, 1.0), kernel("spin", 0.3)],
        short_range=[kernel(None, 1.0), kernel("spin", 0.5)],
        charges=kqeq.QEq(fragments=True),
        noise=NOISE,
    )
    frames = [frame(seed, spin) for seed in range(6) for spin in (0, 2)]
    for atoms in frames:
        atoms.arrays["fragments"] = np.zeros(4, dtype=int)
        atoms.info["fragment_charges"] = [0.0]
    model.fit(frames)
    low, high = frame(70, 0), frame(71, 2)
    alone = 0.0
    for atoms in (low, high):
        one = without_labels(atoms, fragment_charges=[0.0])
        one.arrays["fragments"] = np.zeros(4, dtype=int)
        alone += model.predict(one).energy
    pair = far_apart(low, high, fragment_charges=[0.0, 0.0], fragment_spins=[0, 2])
    pair.arrays["fragments"] = np.repeat([0, 1], 4)
    assert_allclose(model.predict(pair).energy, alone, atol=1e-5)
    pair.info["fragment_spins"] = [2, 0]
    assert abs(model.predict(pair).energy - alone) > 1e-3
    pair.info["fragment_spins"] = [2]
    with pytest.raises(InputError, match="each of its 2 fragments"):
        model.predict(pair)


def test_separated_pieces_have_to_be_named(spins):
    pair = far_apart(frame(1), frame(2), spin=2)
    with pytest.raises(InputError, match="falls into pieces"):
        spins.predict(pair)
    pair.info["spin"] = 0
    spins.predict(pair)


@pytest.mark.parametrize(
    ("info", "text"),
    [
        ({}, "nothing says the spin"),
        ({"spin": 1}, "even number of electrons"),
        ({"spin": 0.5}, "number of unpaired electrons"),
        ({"spin": -2}, "number of unpaired electrons"),
        ({"spin": "high"}, "number of unpaired electrons"),
        ({"spin": 4}, "spin 4; the training frames have it at 0, 2 only"),
        ({"spin": 2, "multiplicity": 2}, "has two spins"),
    ],
)
def test_spins_that_make_no_sense_are_refused(spins, info, text):
    atoms = frame(3).copy()
    atoms.info.pop("spin")
    atoms.info.update(info)
    with pytest.raises(InputError, match=text):
        spins.predict(atoms)


def test_multiplicity_is_spin_plus_one(spins):
    atoms = frame(4, 2).copy()
    expected = spins.predict(atoms).energy
    atoms.info["multiplicity"] = 3
    assert read_structure(atoms).multiplicity == 3
    del atoms.info["spin"]
    assert spins.predict(atoms).energy == expected


def test_models_that_do_not_see_spin_say_what_is_missing():
    model = kqeq.KQEq(electronegativity=None, charges=None, short_range=kernel(None, 1.0), noise=NOISE)
    with pytest.warns(LabelWarning, match=r'condition="spin": their spins differ'):
        model.fit([frame(seed, spin) for seed in range(6) for spin in (0, 2)])


def test_one_state_determines_nothing():
    model = kqeq.KQEq(
        electronegativity=None, charges=None, short_range=[kernel(None, 1.0), kernel("spin", 1.0)]
    )
    with pytest.raises(InputError, match="every fragment of the training frames has the spin 2"):
        model.fit([frame(seed, 2) for seed in range(6)])


def test_files_and_update(spins, tmp_path):
    spins.save(tmp_path / "m.kqeq", posterior=True)
    again = kqeq.load(tmp_path / "m.kqeq")
    atoms = frame(5, 2)
    assert again.predict(atoms).energy == spins.predict(atoms).energy
    assert again.potential_.known_states == spins.potential_.known_states != {}
    assert again.short_range[1].condition == "spin"
    more = again.update([frame(90, 2), frame(91, 0)])
    assert more.potential_.known_states == spins.potential_.known_states
    with pytest.raises(InputError, match="condition"):
        kqeq.SOAPKernel(condition="colour").check()


def test_uncertainty_knows_both_states(spins):
    for spin in (0, 2):
        found = spins.predict(frame(6, spin), uncertainty=True)
        assert 0.0 < found.energy_std < 5.0


def test_tight_binding_receives_the_spin():
    pytest.importorskip("tblite")
    from kqeq.baselines.tight_binding import TightBinding

    oxygen = Atoms("O2", positions=[[0, 0, 0], [0, 0, 1.21]])
    energies = {}
    for spin in (0, 2):
        oxygen.info["spin"] = spin
        energies[spin] = TightBinding("gfn2").evaluate(read_structure(oxygen)).energy
    assert abs(energies[2] - energies[0]) > 0.01


def test_charged_fragments_of_another_size_are_warned_of(charges, tmp_path):
    def larger(charge):
        atoms = without_labels(frame(3, charge=charge))
        more = atoms.copy()
        more.positions += [0.0, 2.2, 0.0]
        atoms = atoms + more
        atoms.info["total_charge"] = charge
        return atoms

    charges.save(tmp_path / "m.kqeq")
    for model in (charges, kqeq.load(tmp_path / "m.kqeq")):
        model.predict(larger(0))
        model.predict(without_labels(frame(3, charge=1)))
        with pytest.warns(ExtrapolationWarning, match="has 8 atoms; those of the training frames have 4"):
            model.predict(larger(1))
    longer = kqeq.load(tmp_path / "m.kqeq")
    longer.potential_ = replace(longer.potential_, charged_sizes=(4, 9))
    longer.predict(larger(1))
