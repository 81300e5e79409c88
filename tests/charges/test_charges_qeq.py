"""QEq: derivatives in every boundary condition, closed forms, limits, fragments, bad input."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose

from charge_checks import (
    CHECKS,
    NO_FIELD,
    NUMBERS,
    PBC,
    POSITIONS,
    Case,
    conditions,
    electronegativity,
    geometry,
)
from kqeq import elements
from kqeq.charges import QEq, charge_model_from_dict, solve_at_potential
from kqeq.charges.boundaries import open_projector
from kqeq.constants import COULOMB
from kqeq.electrostatics import coulomb
from kqeq.errors import InputError, NotPositiveDefiniteError, UnsupportedError
from kqeq.frames.structures import Structure, read_structure


@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("total_charge", [0.0, 1.0], ids=["neutral", "charged"])
@pytest.mark.parametrize("boundary", PBC)
def test_every_identity_of_the_seam(boundary, total_charge, check):
    check(conditions(QEq(), boundary, total_charge))


# closed forms -------------------------------------------------------------------------------------


def test_two_atoms_equal_the_closed_form():
    distance, q = 1.7, 0.3
    structure = Structure(np.array([11, 17]), np.array([[0, 0, 0], [0, 0, distance]], dtype=float))
    chi = np.array([4.0, 9.0])
    model = QEq(hardness={"Na": 5.0, "Cl": 9.0}, width={"Na": 1.1, "Cl": 0.7})
    state = model.bind(structure).solve(chi, np.array([0, 0, 0.4]), q)
    from scipy.special import erf

    a1, a2 = (h + COULOMB / (np.sqrt(np.pi) * s) for h, s in ((5.0, 1.1), (9.0, 0.7)))
    a12 = COULOMB * erf(distance / np.sqrt(2 * (1.1**2 + 0.7**2))) / distance
    # charge on the first atom minimises the energy at q2 = Q − q1
    first = (chi[1] - 0.4 * distance - chi[0] + q * (a2 - a12)) / (a1 + a2 - 2 * a12)
    assert_allclose(state.charges, [first, q - first], rtol=1e-12)
    assert state.charges[0] > 0.3


def test_bordered_system_gives_the_same_solution():
    case = conditions(QEq(), "bulk", 1.0)
    system, state = case.system(), case.state()
    bordered = np.zeros((6, 6))
    bordered[:5, :5] = system.hessian
    bordered[5, :5] = bordered[:5, 5] = 1.0
    expected = np.linalg.solve(bordered, np.append(-case.chi, 1.0))
    assert_allclose(state.charges, expected[:5], atol=1e-11)
    assert_allclose(state.chemical_potential, -expected[5], rtol=1e-11)


def test_hessian_is_coulomb_matrix_and_hardness():
    structure = geometry("bulk")
    sites = QEq().site_parameters(structure.numbers)
    assert_allclose(sites.hardness, elements.hardness(structure.numbers))
    expected = coulomb(structure, sites.width).matrix() + np.diag(sites.hardness)
    assert_allclose(QEq().bind(structure).hessian, expected)


def test_one_atom_carries_the_total_charge():
    atom = Structure(np.array([8]), np.array([[0.3, -0.2, 1.0]]))
    state = QEq().bind(atom).solve(np.array([7.0]), np.array([0.1, 0.2, 0.3]), -1.0)
    assert_allclose(state.charges, [-1.0])
    hessian = QEq().bind(atom).hessian[0, 0]
    assert_allclose(state.energy, -7.0 + 0.5 * hessian + np.array([0.1, 0.2, 0.3]) @ atom.positions[0])
    assert_allclose(QEq().bind(atom).polarizability(), np.zeros((3, 3)), atol=1e-15)
    assert_allclose(QEq().bind(atom).hardness(), hessian)


@pytest.mark.parametrize("boundary", ["slab", "bulk"])
def test_repeating_the_cell_repeats_the_charges(boundary):
    structure = geometry(boundary)
    chi = electronegativity()
    shift = structure.cell[0]
    double = replace(
        structure,
        numbers=np.tile(structure.numbers, 2),
        positions=np.concatenate([structure.positions, structure.positions + shift]),
        cell=structure.cell * np.array([[2.0], [1.0], [1.0]]),
    )
    one = QEq().bind(structure).solve(chi, NO_FIELD, 0.0)
    two = QEq().bind(double).solve(np.tile(chi, 2), NO_FIELD, 0.0)
    assert_allclose(two.charges, np.tile(one.charges, 2), atol=1e-7)
    assert_allclose(two.energy, 2 * one.energy, rtol=1e-7)


def test_growing_box_converges_to_the_isolated_molecule():
    chi, case = electronegativity(), conditions(QEq(), "open")
    isolated = case.system().solve(chi, NO_FIELD, 0.0)
    errors = []
    for length in (12.0, 24.0):
        box = replace(case.structure, cell=length * np.eye(3), pbc=np.ones(3, dtype=bool))
        errors.append(QEq().bind(box).solve(chi, NO_FIELD, 0.0).energy - isolated.energy)
    # the known law for a neutral system, −2πk_e μ²/(3V), with the dipole free to respond
    expected = -2 * np.pi * COULOMB * isolated.dipole @ isolated.dipole / (3 * 24.0**3)
    assert_allclose(errors[1], expected, rtol=0.05)
    assert_allclose(errors[0] / errors[1], 8.0, rtol=0.1)


def test_external_potential_is_added_to_the_electronegativities():
    potential = np.array([0.4, -1.0, 0.3, 2.0, -0.2])
    case = conditions(QEq(), "open")
    within = replace(case, structure=replace(case.structure, external_potential=potential))
    other = case.state(chi=case.chi + potential)
    assert_allclose(within.state().charges, other.charges)
    assert_allclose(within.state().energy, other.energy)
    assert abs(other.energy - case.state().energy) > 0.1
    for check in CHECKS:
        check(within)


@pytest.mark.parametrize("boundary", ["open", "bulk"])
def test_constant_potential_finds_the_charge(boundary):
    case = conditions(QEq(), boundary)
    system = case.system()
    state, charge = solve_at_potential(system, case.chi, case.field, 5.0)
    assert abs(charge) > 0.01
    assert_allclose(state.charges.sum(), charge, atol=1e-9)
    assert_allclose(state.chemical_potential, 5.0, rtol=1e-9)


def test_constant_potential_of_a_charged_slab_is_refused():
    layer = Structure(
        np.array([8]), np.zeros((1, 3)), np.diag([2.0, 2.0, 12.0]), np.array([True, True, False])
    )
    with pytest.raises(NotPositiveDefiniteError, match="no minimum with respect to the total charge"):
        solve_at_potential(QEq().bind(layer), np.array([7.0]), NO_FIELD, 5.0)


# fragments ----------------------------------------------------------------------------------------

FRAGMENTS = {"fragments": np.array([0, 0, 0, 1, 1]), "fragment_charges": np.array([0.75, 0.25])}


@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("boundary", PBC)
def test_every_identity_with_fragments(boundary, check):
    case = conditions(QEq(fragments=True), boundary, 1.0, **FRAGMENTS)
    if check.__name__ == "check_symmetries" or case.field.any() or boundary == "bulk":
        check(case)


def test_fragments_keep_their_charges():
    case = conditions(QEq(fragments=True), "open", 1.0, **FRAGMENTS)
    charges = case.state().charges
    assert_allclose([charges[:3].sum(), charges[3:].sum()], [0.75, 0.25], atol=1e-12)
    free = replace(case, model=QEq()).state().charges
    assert abs(free[:3].sum() - 0.75) > 0.05
    response = case.system().respond(np.eye(5))
    assert_allclose(response.charges[:3].sum(axis=0), 0.0, atol=1e-12)


def test_gradient_by_reference_charges_is_the_potential_of_the_fragment():
    case = conditions(QEq(fragments=True), "open", 1.0, **FRAGMENTS)
    gradient = case.state().reference_gradient()
    assert_allclose(gradient[:3], gradient[0], rtol=1e-10)
    assert abs(gradient[3] - gradient[0]) > 0.1

    def energy(step):
        changed = replace(
            case.structure, fragment_charges=FRAGMENTS["fragment_charges"] + step * np.array([1, -1])
        )
        return replace(case, structure=changed).state().energy

    assert_allclose((energy(0.1) - energy(-0.1)) / 0.2, gradient[0] - gradient[3], rtol=1e-9)


def test_salt_pulled_apart():
    """Plain QEq leaves fractional charge on atoms 15 Å apart; constraints do not."""
    pair = Structure(np.array([11, 17]), np.array([[0.0, 0, 0], [0, 0, 15.0]]))
    chi = elements.electronegativity(pair.numbers)
    plain = QEq().bind(pair).solve(chi, NO_FIELD, 0.0).charges
    assert 0.2 < plain[0] < 0.8
    held = replace(pair, fragments=np.array([0, 1]), fragment_charges=np.array([1.0, -1.0]))
    assert_allclose(QEq(fragments=True).bind(held).solve(chi, NO_FIELD, 0.0).charges, [1.0, -1.0], atol=1e-12)


# bad input ----------------------------------------------------------------------------------------


def test_one_fragment_label_each_is_needed():
    with pytest.raises(InputError, match=r"needs the fragments of every structure.*assign_fragments"):
        QEq(fragments=True).check(geometry())
    with pytest.raises(InputError, match=r"needs the charge of every fragment.*2 numbers that sum"):
        QEq(fragments=True).check(geometry(fragments=FRAGMENTS["fragments"]))


@pytest.mark.parametrize(
    ("boundary", "field", "match"),
    [
        ("bulk", [0.1, 0.2, 0.0], r"along the periodic directions a, b, c.*ACKS2.*pbc = False"),
        ("slab", [0.1, 0.0, 0.0], r"along the periodic directions a.*along the surface normal.*ACKS2"),
    ],
)
def test_fields_along_periodic_directions_are_refused(boundary, field, match):
    structure = geometry(boundary, external_field=np.array(field))
    with pytest.raises(UnsupportedError, match=match):
        QEq().check(structure)
    with pytest.raises(UnsupportedError, match=match):
        QEq().bind(structure).solve(electronegativity(), np.array(field), 0.0)


def test_wires_are_refused():
    structure = replace(geometry("bulk"), pbc=np.array([False, True, False]))
    with pytest.raises(UnsupportedError, match=r"one periodic direction.*slab"):
        QEq().check(structure)


def test_negative_hardness_is_refused():
    with pytest.raises(NotPositiveDefiniteError, match=r"not positive definite; .*raise the hardness"):
        QEq(hardness=dict.fromkeys("HCNO", -14.0)).bind(geometry())


@pytest.mark.parametrize(
    ("kind", "value"), [("hardness", "lern"), ("width", {"O": -1.0}), ("width", {"Xx": 1.0})]
)
def test_wrong_parameters_are_refused(kind, value):
    with pytest.raises(InputError, match=kind):
        QEq(**{kind: value}).check(geometry())


def test_parameters_that_were_not_learned_are_refused_in_prediction():
    model = QEq(hardness="learn")
    assert model.to_learn == ("hardness",)
    with pytest.raises(UnsupportedError, match=r'hardness="learn".*learn_from_polarizabilities'):
        model.check(geometry())
    learned = model.with_parameters({"hardness": {"O": 9.0}})
    learned.check(geometry())
    assert learned.to_learn == () and model.hardness == "learn"
    assert_allclose(learned.site_parameters(np.array([8, 1])).hardness, [9.0, elements.hardness([1])[0]])


def test_models_survive_plain_data():
    model = QEq(hardness={"O": 9.0}, fragments=True)
    assert charge_model_from_dict(model.to_dict()).get_params() == model.get_params()
    with pytest.raises(InputError, match="unknown charge model 'Qeq'"):
        charge_model_from_dict({"model": "Qeq"})
    with pytest.raises(InputError, match=r"charge model QEq: .*hardnes"):
        charge_model_from_dict({"hardnes": {}})


def test_projector_of_boundaries():
    for boundary, rank in (("open", 3), ("slab", 1), ("bulk", 0)):
        structure = geometry(boundary)
        projector = open_projector(structure)
        assert_allclose(projector @ projector, projector, atol=1e-14)
        assert_allclose(np.trace(projector), rank, atol=1e-14)
        assert_allclose(structure.cell[structure.pbc] @ projector, 0.0, atol=1e-13)


def test_structure_from_atoms_reaches_the_model():
    atoms = Atoms(NUMBERS, POSITIONS)
    atoms.set_array("external_potential", np.arange(5) * 0.1)
    structure = read_structure(atoms)
    case = Case(QEq(), structure, electronegativity(), NO_FIELD)
    plain = replace(case, structure=read_structure(Atoms(NUMBERS, POSITIONS)))
    assert np.abs(case.state().charges - plain.state().charges).max() > 1e-3
