"""The physics of predictions: derivatives, conservation laws, symmetries, limits."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import erf

from checks import (
    assert_close,
    assert_forces,
    assert_same_prediction,
    bare,
    central_difference,
    position_gradient,
    rotation,
    second_difference,
)
from kqeq import elements
from kqeq.constants import COULOMB
from kqeq.errors import InputError, UndeterminedWarning, UnsupportedError
from kqeq.frames.structures import read_structure
from kqeq.potential.potential import PROPERTIES, check_properties, require_energy_model

FIELD = np.array([0.05, -0.1, 0.2])
NONE = np.zeros(3)

CASES = {
    "neutral": ("water2", 0, NONE),
    "neutral in a field": ("water2", 0, FIELD),
    "cation": ("hydronium", 1, NONE),
    "cation in a field": ("hydronium", 1, FIELD),
    "anion in a field": ("hydroxide", -1, FIELD),
    "fraction of a charge in a field": ("water3", 0.37, FIELD),
}


@pytest.fixture(params=CASES)
def situation(request, water_systems):
    """Atoms (not used in the fit), total charge, field; away from the origin, so that the origin matters."""
    system, charge, field = CASES[request.param]
    return bare(water_systems[system][1], shift=[0.7, -0.4, 1.1]), charge, field


@pytest.fixture(scope="module")
def predict(water_model):
    """``predict(atoms, charge, field)``, everything or some properties."""

    def call(atoms, charge=0.0, field=NONE, properties=PROPERTIES):
        structure = read_structure(atoms, total_charge=charge, external_field=field)
        return water_model.potential_.predict(structure, properties)

    return call


def energy_of(predict, charge, field):
    """The energy as a function of geometry; the large constant is left away for the sake of differences."""

    def energy(atoms):
        p = predict(atoms, charge, field, ())
        return p.energy_short_range + p.energy_electrostatic

    return energy


# -------------------------------------------------------------- derivatives


def test_forces_are_minus_the_gradient_of_the_energy(predict, situation):
    atoms, charge, field = situation
    forces = predict(atoms, charge, field).forces
    assert_forces(forces, energy_of(predict, charge, field), atoms, rtol=1e-6, at_least=0.5)


def test_parts_of_the_energy_change_with_the_geometry(predict, situation):
    """Both the short-range and the electrostatic part carry force: neither is tested in vain."""
    atoms, charge, field = situation
    for part in ("energy_short_range", "energy_electrostatic"):
        gradient = position_gradient(lambda a, p=part: getattr(predict(a, charge, field, ()), p), atoms)
        assert np.abs(gradient).max() > 0.1


def test_dipole_is_minus_the_derivative_in_the_field(predict, situation):
    atoms, charge, field = situation
    p = predict(atoms, charge, field)
    # the energy is quadratic in the field: no error of truncation for any step
    numerical = [
        -central_difference(
            lambda t, e=e: predict(atoms, charge, field + t * e, ()).energy_electrostatic, 0.5
        )
        for e in np.eye(3)
    ]
    assert_close(p.dipole, numerical, rtol=1e-9, at_least=0.05)
    assert_close(p.dipole, p.charges @ atoms.positions, rtol=1e-12, at_least=0.05)


def test_polarizability_is_the_derivative_of_the_dipole(predict, situation):
    atoms, charge, field = situation
    alpha = predict(atoms, charge, field).polarizability
    numerical = np.array(
        [
            central_difference(lambda t, e=e: predict(atoms, charge, field + t * e, ()).dipole, 0.5)
            for e in np.eye(3)
        ]
    ).T
    assert_close(alpha, numerical, rtol=1e-8, at_least=0.01)
    np.testing.assert_array_equal(alpha, alpha.T)
    values = np.linalg.eigvalsh(alpha)
    assert values[0] > -1e-10
    assert values[-1] > 0.01
    curvature = [
        -second_difference(lambda t, e=e: predict(atoms, charge, field + t * e, ()).energy_electrostatic, 1.0)
        for e in np.eye(3)
    ]
    assert_close(np.diagonal(alpha), curvature, rtol=1e-6, at_least=0.005)


def test_chemical_potential_and_hardness_are_derivatives_in_the_charge(predict, situation):
    atoms, charge, field = situation
    p = predict(atoms, charge, field)

    def energy(t):
        return predict(atoms, charge + t, field, ()).energy_electrostatic

    assert_close([p.chemical_potential], [central_difference(energy, 0.5)], rtol=1e-9, at_least=0.5)
    assert_close([p.hardness], [second_difference(energy, 0.5)], rtol=1e-9, at_least=1.0)
    slope = central_difference(lambda t: predict(atoms, charge + t, field, ()).chemical_potential, 0.5)
    assert_close([p.hardness], [slope], rtol=1e-9, at_least=1.0)


def test_born_charges_from_forces_and_from_dipoles_agree(predict, situation):
    """∂μ_b/∂r_ka = ∂F_ka/∂field_b; summed over atoms, Q times the unit matrix."""
    atoms, charge, field = situation
    from_dipole = position_gradient(lambda a: predict(a, charge, field, ()).dipole, atoms)
    from_forces = np.stack(
        [
            central_difference(lambda t, e=e: predict(atoms, charge, field + t * e).forces, 0.5)
            for e in np.eye(3)
        ],
        axis=-1,
    )
    assert_close(from_dipole, from_forces, rtol=1e-6, at_least=0.1)
    np.testing.assert_allclose(from_forces.sum(axis=0), charge * np.eye(3), atol=1e-9)


def test_energy_is_stationary_in_the_charges(predict, situation, water_model):
    """Moving charge between any two atoms costs energy to second order: the charges are at the minimum."""
    atoms, charge, field = situation
    p = predict(atoms, charge, field)
    matrix = coulomb_matrix(atoms)
    linear = p.electronegativity - atoms.positions @ field

    def energy(q):
        return linear @ q + 0.5 * q @ matrix @ q

    assert energy(p.charges) == pytest.approx(p.energy_electrostatic, abs=1e-10)
    gradient = linear + matrix @ p.charges
    np.testing.assert_allclose(gradient, p.chemical_potential, atol=1e-10)
    for k in range(1, len(atoms)):
        shift = np.zeros(len(atoms))
        shift[[0, k]] = 0.01, -0.01
        assert energy(p.charges + shift) > energy(p.charges) + 1e-5


# ------------------------------------------------------- conservation laws


def test_charges_sum_to_the_total_charge(predict, situation):
    atoms, charge, field = situation
    charges = predict(atoms, charge, field).charges
    assert abs(charges.sum() - charge) < 1e-10
    assert np.abs(charges).max() > 0.1


def test_net_force_is_the_field_on_the_total_charge(predict, situation):
    atoms, charge, field = situation
    forces = predict(atoms, charge, field).forces
    np.testing.assert_allclose(forces.sum(axis=0), charge * field, atol=1e-9)
    assert np.abs(forces).max() > 0.5


def test_net_torque_is_the_dipole_in_the_field(predict, situation):
    """Σ r×F = μ×field, both about the origin.

    E(Rr, R field) = E(r, field) for a rotation by δω gives δω·(Σ r×∂E/∂r + field×∂E/∂field) = 0; with
    ∂E/∂r = −F and ∂E/∂field = −μ that is Σ r×F = −field×μ = μ×field.
    """
    atoms, charge, field = situation
    p = predict(atoms, charge, field)
    torque = np.cross(atoms.positions, p.forces).sum(axis=0)
    expected = np.cross(p.dipole, field)
    np.testing.assert_allclose(torque, expected, atol=1e-9)
    if field.any():
        assert np.linalg.norm(expected) > 0.01
    # about another origin c the ion's torque changes by −c×(Q field) on both sides
    shifted = np.cross(atoms.positions - 1.0, p.forces).sum(axis=0)
    other = np.cross(p.charges @ (atoms.positions - 1.0), field)
    np.testing.assert_allclose(shifted, other, atol=1e-9)


# ---------------------------------------------------------------- symmetry

seeds = st.integers(0, 2**32 - 1)


def compare(first, second, *, energy=0.0, vector=None, order=None, dipole_shift=None, atol=1e-9):
    """The second prediction is the first, its vectors rotated by ``vector`` and its atoms taken in ``order``."""
    turn = np.eye(3) if vector is None else vector
    order = np.arange(len(first.charges)) if order is None else order
    shift = np.zeros(3) if dipole_shift is None else dipole_shift
    assert second.energy_short_range == pytest.approx(first.energy_short_range, abs=atol)
    assert second.energy_electrostatic == pytest.approx(first.energy_electrostatic + energy, abs=atol)
    np.testing.assert_allclose(second.charges, first.charges[order], atol=atol)
    np.testing.assert_allclose(second.electronegativity, first.electronegativity[order], atol=atol)
    np.testing.assert_allclose(second.forces, (first.forces @ turn.T)[order], atol=atol)
    np.testing.assert_allclose(second.dipole, turn @ first.dipole + shift, atol=atol)
    np.testing.assert_allclose(second.polarizability, turn @ first.polarizability @ turn.T, atol=atol)
    assert second.hardness == pytest.approx(first.hardness, abs=atol)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("improper", [False, True])
@given(seed=seeds)
def test_rotation_of_molecule_and_field(predict, water_systems, name, improper, seed):
    system, charge, field = CASES[name]
    turn = rotation(seed, improper=improper)
    atoms = bare(water_systems[system][1], shift=[0.3, 0.2, -0.5])
    first = predict(atoms, charge, field)
    second = predict(bare(atoms, rotate=turn), charge, turn @ field)
    compare(first, second, vector=turn)
    assert second.chemical_potential == pytest.approx(first.chemical_potential, abs=1e-9)


def test_rotation_of_the_molecule_alone_matters_in_a_field(predict, water_systems):
    atoms = bare(water_systems["water2"][1])
    turn = rotation(1)
    first, second = predict(atoms, 0, FIELD), predict(bare(atoms, rotate=turn), 0, FIELD)
    assert abs(first.energy - second.energy) > 1e-3


@pytest.mark.parametrize("name", CASES)
@given(seed=seeds)
def test_translation(predict, water_systems, name, seed):
    """An ion in a field gains −Q field·t, its dipole Q t and its chemical potential −field·t; forces stay."""
    system, charge, field = CASES[name]
    t = np.random.default_rng(seed).uniform(-20, 20, size=3)
    atoms = bare(water_systems[system][1])
    first, second = predict(atoms, charge, field), predict(bare(atoms, shift=t), charge, field)
    compare(first, second, energy=-charge * field @ t, dipole_shift=charge * t, atol=1e-8)
    expected = first.chemical_potential - field @ t
    assert second.chemical_potential == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("name", CASES)
@given(seed=seeds)
def test_permutation(predict, water_systems, name, seed):
    system, charge, field = CASES[name]
    atoms = bare(water_systems[system][1])
    order = np.random.default_rng(seed).permutation(len(atoms))
    compare(predict(atoms, charge, field), predict(bare(atoms, order=order), charge, field), order=order)


def test_mirror_molecules_have_one_energy_and_mirror_forces(predict, water_systems):
    atoms = bare(water_systems["water3"][1])
    mirror = np.diag([1.0, 1.0, -1.0])
    compare(predict(atoms, 0, NONE), predict(bare(atoms, rotate=mirror), 0, NONE), vector=mirror)


# ------------------------------------------------------------------ limits


def coulomb_matrix(atoms):
    """A from its definition, element by element, with the default parameters."""
    numbers, r = atoms.numbers, atoms.positions
    eta, sigma = elements.hardness(numbers), elements.width(numbers)
    n = len(numbers)
    matrix = np.diag(eta + COULOMB / (np.sqrt(np.pi) * sigma))
    for i in range(n):
        for j in range(i):
            distance = np.linalg.norm(r[i] - r[j])
            gamma = np.hypot(sigma[i], sigma[j])
            matrix[i, j] = matrix[j, i] = COULOMB * erf(distance / (np.sqrt(2) * gamma)) / distance
    return matrix


@pytest.mark.parametrize("symbol", ["H", "O"])
@pytest.mark.parametrize("charge", [-1.0, 0.0, 0.4, 2.0])
def test_a_single_atom_is_a_parabola_in_its_charge(predict, symbol, charge):
    """q = Q and E = e0 + E_sr + χQ + ½AQ² − Q field·r, with forces Q field."""
    atoms = Atoms(symbol, [[0.3, -0.2, 1.5]])
    (number,) = atoms.numbers
    p = predict(atoms, charge, FIELD)
    (a,) = elements.hardness([number]) + COULOMB / (np.sqrt(np.pi) * elements.width([number]))
    (chi,) = p.electronegativity
    assert abs(chi) > 1.0
    expected = chi * charge + 0.5 * a * charge**2 - charge * FIELD @ atoms.positions[0]
    assert p.charges == pytest.approx([charge], abs=1e-12)
    assert p.energy_electrostatic == pytest.approx(expected, abs=1e-10)
    assert p.energy == p.energy_offsets + p.energy_short_range + p.energy_electrostatic + p.energy_baseline
    np.testing.assert_allclose(p.forces, [charge * FIELD], atol=1e-10)
    np.testing.assert_allclose(p.polarizability, 0.0, atol=1e-12)
    assert p.hardness == pytest.approx(a)
    assert p.chemical_potential == pytest.approx(chi + a * charge - FIELD @ atoms.positions[0])


@pytest.mark.parametrize("charge", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("distance", [15.0, 40.0, 1000.0])
def test_a_dissociated_pair_is_two_atoms_that_share_charge(predict, charge, distance):
    """Two parabolas and k_e q₁q₂/r: the closed form, with fractional charges (theory section 6)."""
    alone = {s: predict(Atoms(s)) for s in ("H", "O")}
    atoms = Atoms("HO", [[0, 0, 0], [0, 0, distance]])
    p = predict(atoms, charge)
    chi = [alone[s].electronegativity[0] for s in ("H", "O")]
    a = [alone[s].hardness for s in ("H", "O")]
    coulomb = COULOMB / distance
    q_h = ((chi[1] - chi[0]) + (a[1] - coulomb) * charge) / (a[0] + a[1] - 2 * coulomb)
    q_o = charge - q_h
    np.testing.assert_allclose(p.electronegativity, chi, atol=1e-10)
    np.testing.assert_allclose(p.charges, [q_h, q_o], atol=1e-9)
    assert abs(q_h - round(q_h)) > 0.01
    expected = chi[0] * q_h + chi[1] * q_o + 0.5 * a[0] * q_h**2 + 0.5 * a[1] * q_o**2 + coulomb * q_h * q_o
    assert p.energy_electrostatic == pytest.approx(expected, abs=1e-9)
    assert p.energy_short_range == pytest.approx(sum(x.energy_short_range for x in alone.values()), abs=1e-10)
    assert p.energy_offsets == pytest.approx(sum(x.energy_offsets for x in alone.values()))
    force = COULOMB * q_h * q_o / distance**2
    np.testing.assert_allclose(p.forces, [[0, 0, -force], [0, 0, force]], atol=1e-9)


def test_separated_molecules_keep_their_environments(predict, water_systems):
    """Short-range energies and electronegativities add up exactly beyond the cutoff; charge still leaks."""
    first, second = bare(water_systems["water2"][1]), bare(water_systems["hydronium"][1], shift=[0, 0, 60.0])
    alone = predict(first), predict(second, 1.0)
    both = predict(first + second, 1.0)
    assert both.energy_short_range == pytest.approx(sum(p.energy_short_range for p in alone), abs=1e-9)
    chi = np.concatenate([p.electronegativity for p in alone])
    np.testing.assert_allclose(both.electronegativity, chi, atol=1e-9)
    leaked = both.charges[: len(first)].sum()
    assert 0.05 < leaked < 0.95


def test_the_chemical_potential_is_one_for_the_whole_system(predict, situation):
    atoms, charge, field = situation
    p = predict(atoms, charge, field)
    slope = p.electronegativity - atoms.positions @ field + coulomb_matrix(atoms) @ p.charges
    np.testing.assert_allclose(slope, p.chemical_potential, atol=1e-9)


# ---------------------------------------------------- what a prediction holds


def test_parts_add_up_to_the_energy(predict, situation):
    atoms, charge, field = situation
    p = predict(atoms, charge, field)
    assert p.energy == p.energy_offsets + p.energy_short_range + p.energy_electrostatic + p.energy_baseline
    assert p.energy_baseline == 0.0
    assert p.total_charge == charge
    np.testing.assert_array_equal(p.external_field, field)
    assert p.stress is None
    assert p.atomic_dipoles is None


def test_properties_that_are_not_asked_for_are_left_away(predict, water_systems):
    atoms = bare(water_systems["water2"][1])
    full = predict(atoms)
    for names in ((), ("energy",), ("forces",), ("polarizability",), ("charges", "dipole"), ("stress",)):
        p = predict(atoms, properties=names)
        for name in ("forces", "polarizability"):
            assert (getattr(p, name) is not None) == (name in names)
        assert p.energy == full.energy
        np.testing.assert_array_equal(p.charges, full.charges)
    np.testing.assert_array_equal(predict(atoms, properties=("forces",)).forces, full.forces)


def test_predicting_twice_gives_the_same_bits(predict, situation):
    atoms, charge, field = situation
    assert_same_prediction(predict(atoms, charge, field), predict(atoms, charge, field))


def test_the_electronegativity_of_unseen_conditions_does_not_change(predict, water_systems):
    """χ and E_sr are functions of the geometry alone."""
    atoms = bare(water_systems["water2"][1])
    here, there = predict(atoms), predict(atoms, 3.0, FIELD)
    np.testing.assert_array_equal(here.electronegativity, there.electronegativity)
    assert here.energy_short_range == there.energy_short_range
    assert np.abs(here.charges - there.charges).max() > 0.1


def test_check_properties():
    assert check_properties(None) == PROPERTIES
    assert check_properties("forces") == ("forces",)
    assert check_properties(["energy", "dipole"]) == ("energy", "dipole")
    with pytest.raises(InputError, match=r"unknown properties \['virial'\]; expected some of energy, forces"):
        check_properties(["energy", "virial"])


# ----------------------------------------------------------- other kinds


def test_a_short_range_model_is_blind_to_charge(short_range_model, water_systems):
    potential = short_range_model.potential_
    atoms = bare(water_systems["water2"][1])
    structure = read_structure(atoms)
    p = potential.predict(structure)
    for name in (
        "charges",
        "dipole",
        "polarizability",
        "electronegativity",
        "chemical_potential",
        "hardness",
    ):
        assert getattr(p, name) is None
    assert p.energy_electrostatic == 0.0
    charged = potential.predict(structure.under(1.0, NONE))
    assert charged.energy == p.energy
    assert_forces(
        p.forces,
        lambda a: potential.predict(read_structure(a), ()).energy_short_range,
        atoms,
        rtol=1e-6,
        at_least=0.3,
    )
    np.testing.assert_allclose(p.forces.sum(axis=0), 0.0, atol=1e-9)
    np.testing.assert_allclose(np.cross(atoms.positions, p.forces).sum(axis=0), 0.0, atol=1e-9)
    with pytest.raises(InputError, match=r"no charges for the field .* charges=kqeq\.QEq\(\)"):
        potential.check(structure.under(0.0, FIELD))


def test_stress_of_a_short_range_model(short_range_model, water_systems):
    from checks import strain_gradient

    potential = short_range_model.potential_
    atoms = bare(water_systems["water2"][1])
    atoms.cell, atoms.pbc = [[7.0, 0, 0], [0.5, 6.5, 0], [-0.4, 0.3, 7.2]], True
    p = potential.predict(read_structure(atoms))
    numerical = strain_gradient(lambda a: potential.predict(read_structure(a), ()).energy_short_range, atoms)
    assert_close(p.stress, 0.5 * (numerical + numerical.T) / atoms.get_volume(), rtol=1e-6, at_least=1e-4)
    np.testing.assert_array_equal(p.stress, p.stress.T)
    only = potential.predict(read_structure(atoms), ("stress",))
    np.testing.assert_array_equal(only.stress, p.stress)
    assert only.forces is None


def test_a_baseline_is_added_with_its_forces(water_training, water_systems, kernel):
    import kqeq

    model = kqeq.KQEq(
        kernel(3.0), kernel(3.5), baseline="zbl", noise={"energy": 0.1, "forces": 1.0, "dipole": 0.1}
    ).fit(water_training)
    atoms = bare(water_systems["water2"][1])
    # squeeze one bond, so that the repulsion is felt
    atoms.positions[1] = atoms.positions[0] + 0.6 * (atoms.positions[1] - atoms.positions[0])
    structure = read_structure(atoms)
    p = model.potential_.predict(structure)
    assert p.energy_baseline > 0.1
    assert p.energy == pytest.approx(
        p.energy_offsets + p.energy_short_range + p.energy_electrostatic + p.energy_baseline
    )

    def energy(a):
        q = model.potential_.predict(read_structure(a), ())
        return q.energy_short_range + q.energy_electrostatic + q.energy_baseline

    assert_forces(p.forces, energy, atoms, h=2e-3, rtol=1e-6, at_least=1.0)
    without = replace(model.potential_, baseline=None).predict(structure)
    assert np.abs(without.forces - p.forces).max() > 0.1


def test_models_without_energies_say_so(dipole_model, water_model):
    with pytest.raises(UnsupportedError, match="fitted without energies"):
        require_energy_model(dipole_model.potential_)
    require_energy_model(water_model.potential_)


def test_a_single_training_charge_leaves_the_chemical_potential_undetermined(
    water_systems, kernel, water_model
):
    import kqeq

    model = kqeq.KQEq(kernel(3.0, n_representatives=4), None, targets=["dipole"]).fit(
        water_systems["hydronium"][::3]
    )
    potential = model.potential_
    assert potential.training_charges == (1.0,)
    structure = read_structure(bare(water_systems["hydronium"][1]))

    def ask(own, charge):
        there = structure.under(charge, NONE)
        own.warn_if_undetermined([there], [own.predict(there, ())])

    with warnings.catch_warnings():
        warnings.simplefilter("error", UndeterminedWarning)
        ask(potential, 1.0)
        ask(water_model.potential_, 1.0)
    with pytest.warns(UndeterminedWarning, match=r"every training frame had total charge 1 e.*deviation \d"):
        ask(potential, 0.0)
    # hydroxide, water and hydronium: charge goes along with composition
    with pytest.warns(UndeterminedWarning, match=r"OH3|H3O.* at charge 2 e .* the elements and the charge"):
        ask(water_model.potential_, 2.0)
