"""ACKS2: derivatives in every boundary condition, the equations of the theory, limits, periodic polarization."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from charge_checks import (
    CHECKS,
    NO_FIELD,
    PBC,
    Case,
    central,
    conditions,
    electronegativity,
    geometry,
    not_trivial,
)
from kqeq import elements
from kqeq.charges import ACKS2, QEq, charge_model_from_dict
from kqeq.charges.softness import DEFAULT_CUTOFF, DEFAULT_DECAY, Bonds, default_softness, switched_decay
from kqeq.constants import COULOMB
from kqeq.errors import InputError, NotPositiveDefiniteError, UnsupportedError
from kqeq.frames.structures import Structure

FRAGMENTS = {"fragments": np.array([0, 0, 0, 1, 1]), "fragment_charges": np.array([0.75, 0.25])}


@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("total_charge", [0.0, 1.0], ids=["neutral", "charged"])
@pytest.mark.parametrize("boundary", PBC)
def test_every_identity_of_the_seam(boundary, total_charge, check):
    check(conditions(ACKS2(), boundary, total_charge))


@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("boundary", ["open", "slab"])
def test_every_identity_with_fragment_charges(boundary, check):
    check(conditions(ACKS2(reference_charges="fragments"), boundary, 1.0, **FRAGMENTS))


@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
def test_every_identity_with_given_reference_charges_and_potential(check):
    reference = np.array([-0.4, 0.1, 0.3, 0.2, -0.2])
    potential = np.array([0.4, -1.0, 0.3, 2.0, -0.2])
    check(conditions(ACKS2(), "open", reference_charges=reference, external_potential=potential))


# the equations ------------------------------------------------------------------------------------


def test_bordered_system_of_the_theory_gives_the_same_solution():
    """[A 1; 1 −L][q; u] = [−(χ + φ); q0]."""
    case = conditions(ACKS2(), "open", 1.0)
    system, state = case.system(), case.state()
    atoms = len(case.chi)
    laplacian = system.flow.bonds.laplacian().toarray()
    assert_allclose(laplacian.sum(axis=0), 0.0, atol=1e-12)
    matrix = np.block([[system.hessian, np.eye(atoms)], [np.eye(atoms), -laplacian]])
    phi = -case.structure.positions @ case.field
    solution = np.linalg.solve(matrix, np.concatenate([-(case.chi + phi), np.full(atoms, 1.0 / atoms)]))
    assert_allclose(state.charges, solution[:atoms], atol=1e-11)
    assert_allclose(-state.reference_gradient(), solution[atoms:], atol=1e-10)
    inverse = np.linalg.inv(np.eye(atoms) + laplacian @ system.hessian)
    response = -system.respond(np.eye(atoms)).charges
    assert_allclose(response, inverse @ laplacian, atol=1e-11)
    assert_allclose(response, response.T, atol=1e-12)
    assert (np.linalg.eigvalsh(response) > -1e-12).all()
    assert_allclose(system.hardness(), np.ones(atoms) @ system.hessian @ inverse @ np.ones(atoms) / atoms**2)


def test_flows_minimise_the_energy_of_the_pairs():
    """Direct minimisation over the flows p of χᵀq + ½qᵀAq + ½Σp²/k − field·Σqr."""
    case = conditions(ACKS2(), "open", 1.0)
    system, state = case.system(), case.state()
    bonds, atoms = system.flow.bonds, len(case.chi)
    half = bonds.i < bonds.j
    i, j, k = bonds.i[half], bonds.j[half], bonds.softness[half]
    incidence = np.zeros((atoms, half.sum()))
    incidence[i, np.arange(len(i))], incidence[j, np.arange(len(i))] = 1.0, -1.0
    linear = case.chi - case.structure.positions @ case.field
    start = np.full(atoms, 1.0 / atoms)
    matrix = incidence.T @ system.hessian @ incidence + np.diag(1.0 / k)
    flows = -np.linalg.solve(matrix, incidence.T @ (linear + system.hessian @ start))
    charges = start + incidence @ flows
    assert_allclose(state.charges, charges, atol=1e-9)
    energy = linear @ charges + 0.5 * charges @ system.hessian @ charges + 0.5 * np.sum(flows**2 / k)
    assert_allclose(state.energy, energy, rtol=1e-10)


@pytest.mark.parametrize("decay", [DEFAULT_DECAY, 3.0])
def test_softness_of_a_bond_is_the_geometric_mean_and_vanishes_smoothly(decay):
    x = DEFAULT_CUTOFF * np.array([0.3, 1.0 / DEFAULT_CUTOFF, 0.8, 0.95])
    value, slope = switched_decay(x, decay, DEFAULT_CUTOFF)
    assert_allclose(value[1], 1.0)
    assert (np.diff(value) < 0).all()
    numeric = central(lambda t: switched_decay(x + t, decay, DEFAULT_CUTOFF)[0], 1e-3)
    assert_allclose(slope, numeric, rtol=1e-7)
    # value, slope and curvature go to zero at the cutoff with the third, second and first power
    near = [switched_decay(np.array([DEFAULT_CUTOFF - h]), decay, DEFAULT_CUTOFF) for h in (1e-3, 2e-3)]
    assert_allclose(near[1][0] / near[0][0], 8.0, rtol=1e-2)
    assert_allclose(near[1][1] / near[0][1], 4.0, rtol=1e-2)

    bond = float(elements.width(np.array([6, 8])).sum())
    pair = Structure(np.array([6, 8]), np.array([[0.0, 0, 0], [bond, 0, 0]]))
    bonds = Bonds.build(pair, np.array([0.2, 0.05]), DEFAULT_DECAY, DEFAULT_CUTOFF)
    assert_allclose(bonds.softness, np.sqrt(0.2 * 0.05))


def test_default_softness_follows_from_polarizability_and_radius():
    numbers = np.array([1, 6, 8])
    expected = elements.polarizability(numbers) / COULOMB / elements.width(numbers) ** 2
    assert_allclose(default_softness(numbers), expected)
    assert_allclose(ACKS2().site_parameters(numbers).softness, expected)


def test_energy_is_smooth_where_a_pair_leaves_the_cutoff():
    chi = np.array([4.0, 9.0])
    bond = float(elements.width(np.array([6, 8])).sum())

    def state(distance):
        pair = Structure(np.array([6, 8]), np.array([[0.0, 0, 0], [distance, 0, 0]]))
        return ACKS2().bind(pair).solve(chi, NO_FIELD, 0.0)

    edge = bond * DEFAULT_CUTOFF
    inside = state(edge - 0.3)
    assert inside.charges[0] > 1e-5
    assert_allclose(state(edge + 1e-6).charges, 0.0, atol=1e-15)
    assert_allclose(state(edge - 1e-4).gradient(), 0.0, atol=1e-6)


# limits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", PBC)
def test_infinite_softness_recovers_qeq(boundary):
    soft = conditions(ACKS2(softness=dict.fromkeys("HCNO", 1e6), cutoff=6.0), boundary, 1.0)
    hard = replace(soft, model=QEq())
    assert_allclose(soft.state().charges, hard.state().charges, atol=1e-5)
    assert_allclose(soft.state().energy, hard.state().energy, rtol=1e-6)
    assert_allclose(soft.state().gradient(), hard.state().gradient(), atol=1e-5)
    assert_allclose(soft.state().charges.sum(), 1.0, atol=1e-7)
    assert_allclose(soft.system().hardness(), hard.system().hardness(), rtol=1e-5)
    assert_allclose(
        soft.system().respond(np.eye(5)).charges, hard.system().respond(np.eye(5)).charges, atol=1e-6
    )
    if boundary == "open":
        assert_allclose(soft.system().polarizability(), hard.system().polarizability(), atol=1e-5)


def test_zero_softness_keeps_the_reference_charges():
    reference = np.array([-0.4, 0.1, 0.3, 0.2, -0.2])
    case = conditions(ACKS2(softness=dict.fromkeys("HCNO", 0.0)), "open", reference_charges=reference)
    assert_allclose(case.state().charges, reference, atol=1e-14)
    assert_allclose(case.system().polarizability(), 0.0, atol=1e-14)
    only_oxygen = replace(case, model=ACKS2(softness={"O": 0.0}))
    assert_allclose(only_oxygen.state().charges[0], reference[0], atol=1e-14)
    assert abs(only_oxygen.state().charges[3] - reference[3]) > 0.01
    assert np.isfinite(only_oxygen.state().site_gradient().softness).all()


def test_one_atom_keeps_its_charge():
    atom = Structure(np.array([8]), np.array([[0.3, -0.2, 1.0]]))
    state = ACKS2().bind(atom).solve(np.array([7.0]), np.array([0.1, 0.2, 0.3]), -1.0)
    same = QEq().bind(atom).solve(np.array([7.0]), np.array([0.1, 0.2, 0.3]), -1.0)
    assert_allclose([state.energy, state.chemical_potential], [same.energy, same.chemical_potential])


def test_salt_pulled_apart_keeps_whole_charges():
    chi = elements.electronegativity(np.array([11, 17]))
    pair = Structure(
        np.array([11, 17]),
        np.array([[0.0, 0, 0], [0, 0, 15.0]]),
        fragments=np.array([0, 1]),
        fragment_charges=np.array([1.0, -1.0]),
    )
    state = ACKS2(reference_charges="fragments").bind(pair).solve(chi, NO_FIELD, 0.0)
    assert_allclose(state.charges, [1.0, -1.0], atol=1e-13)
    assert_allclose(
        ACKS2(reference_charges="uniform").bind(pair).solve(chi, NO_FIELD, 0.0).charges, 0.0, atol=1e-13
    )
    near = replace(pair, positions=np.array([[0.0, 0, 0], [0, 0, 2.4]]))
    bonded = ACKS2(reference_charges="fragments").bind(near).solve(chi, NO_FIELD, 0.0).charges
    assert 0.05 < 1.0 - bonded[0] < 0.9


def test_charge_moves_between_fragments_that_touch_only():
    case = conditions(ACKS2(), "open", 1.0, **FRAGMENTS)
    touching = case.state().charges[:3].sum()
    assert abs(touching - 0.75) > 0.01
    apart = case.structure.positions + 9.0 * (FRAGMENTS["fragments"] == 1)[:, None]
    charges = replace(case, structure=replace(case.structure, positions=apart)).state().charges
    assert_allclose([charges[:3].sum(), charges[3:].sum()], [0.75, 0.25], atol=1e-13)


def test_a_chain_does_not_become_a_metal():
    """Polarizability per atom of a chain: QEq grows with length, ACKS2 converges."""

    def per_atom(model, atoms):
        chain = Structure(np.full(atoms, 6), np.outer(np.arange(atoms), [0.0, 0.0, 1.5]))
        return model.bind(chain).polarizability()[2, 2] / atoms

    growth = [per_atom(QEq(), n) for n in (10, 20, 40)]
    assert growth[1] / growth[0] > 2.0 and growth[2] / growth[1] > 2.0
    # the ends matter less and less: what is missing from the bulk value halves
    bounded = [per_atom(ACKS2(), n) for n in (20, 40, 80, 160)]
    steps = np.diff(bounded)
    assert (steps[1:] < 0.6 * steps[:-1]).all() and (steps > 0).all()


# reference charges --------------------------------------------------------------------------------


def test_reference_charges_come_from_what_the_structure_carries():
    given = np.array([-0.4, 0.1, 0.3, 0.2, 0.8])
    for extra, expected in (
        ({}, np.full(5, 0.2)),
        (FRAGMENTS, np.array([0.25, 0.25, 0.25, 0.125, 0.125])),
        ({**FRAGMENTS, "reference_charges": given}, given),
    ):
        system = ACKS2().bind(geometry(total_charge=1.0, **extra))
        assert_allclose(system.reference, expected)
    for name, extra in (("fragments", {}), ("given", FRAGMENTS)):
        with pytest.raises(InputError, match=name):
            ACKS2(reference_charges=name).check(geometry(total_charge=1.0, **extra))
    with pytest.raises(InputError, match="expected one of 'uniform', 'fragments', 'given'"):
        ACKS2(reference_charges="zero").check(geometry())


def test_derivative_by_reference_charges():
    case = conditions(ACKS2(), "open", 1.0, **FRAGMENTS)
    direction = np.array([0.3, -0.5, 0.2, 0.4, -0.4])

    def energy(t):
        changed = replace(case.structure, reference_charges=0.2 + t * direction)
        return replace(case, structure=changed).state().energy

    start = replace(case, structure=replace(case.structure, reference_charges=np.full(5, 0.2)))
    numeric = central(energy, 0.05)
    not_trivial(numeric)
    assert_allclose(start.state().reference_gradient() @ direction, numeric, rtol=1e-8)


# periodic polarization ----------------------------------------------------------------------------


@pytest.mark.parametrize("field", [NO_FIELD, np.array([0.3, -0.2, 0.25])], ids=["no field", "field"])
def test_repeating_the_cell_repeats_everything(field):
    structure, chi = geometry("bulk"), electronegativity()
    double = replace(
        structure,
        numbers=np.tile(structure.numbers, 2),
        positions=np.concatenate([structure.positions, structure.positions + structure.cell[0]]),
        cell=structure.cell * np.array([[2.0], [1.0], [1.0]]),
    )
    one, two = ACKS2().bind(structure), ACKS2().bind(double)
    first, second = one.solve(chi, field, 0.0), two.solve(np.tile(chi, 2), field, 0.0)
    assert_allclose(second.charges, np.tile(first.charges, 2), atol=1e-7)
    assert_allclose(second.energy, 2 * first.energy, rtol=1e-7)
    assert_allclose(second.dipole, 2 * first.dipole, atol=1e-7)
    assert_allclose(two.polarizability(), 2 * one.polarizability(), atol=1e-7)
    assert_allclose(second.strain(), 2 * first.strain(), atol=1e-6)


def test_one_atom_cells_polarise_through_their_images():
    cell = Structure(np.array([6]), np.zeros((1, 3)), 1.6 * np.eye(3), np.ones(3, dtype=bool))
    alpha = ACKS2().bind(cell).polarizability()
    assert alpha[0, 0] > 0.05
    assert_allclose(alpha, alpha[0, 0] * np.eye(3), atol=1e-9)


def test_polarization_of_a_large_cell_is_the_dipole_of_the_molecule():
    case = conditions(ACKS2(), "open")
    box = replace(case.structure, cell=60.0 * np.eye(3), pbc=np.ones(3, dtype=bool))
    periodic = replace(case, structure=box)
    assert_allclose(periodic.state().dipole, case.state().dipole, rtol=1e-3)
    assert_allclose(periodic.system().polarizability(), case.system().polarizability(), atol=1e-3)


def test_fields_along_periodic_directions_need_zero_reference_charges():
    field = np.array([0.1, 0.0, 0.0])
    ACKS2().check(geometry("bulk", external_field=field))
    charged = geometry("bulk", external_field=field, total_charge=1.0)
    for call in (ACKS2().check, lambda s: ACKS2().bind(s).solve(electronegativity(), field, 1.0)):
        with pytest.raises(UnsupportedError, match=r"reference charges are not zero.*neutral cell"):
            call(charged)
    assert ACKS2().bind(charged).solve(electronegativity(), NO_FIELD, 1.0).dipole is None


# bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"softness": {"O": -0.1}}, "softness of -0.1.*not negative"),
        ({"softness": {"O": np.nan}}, "softness of O is nan"),
        ({"cutoff": 0.9}, "number above 1"),
        ({"decay": np.inf}, "finite number"),
    ],
)
def test_wrong_parameters_are_refused(options, match):
    with pytest.raises(InputError, match=match):
        ACKS2(**options).check(geometry())


def test_negative_hardness_is_refused():
    with pytest.raises(NotPositiveDefiniteError, match="raise the hardness"):
        ACKS2(hardness=dict.fromkeys("HCNO", -14.0)).bind(geometry())


def test_models_survive_plain_data():
    model = ACKS2(softness={"O": 0.2}, decay=2.0, reference_charges="uniform")
    assert charge_model_from_dict(model.to_dict()).get_params() == model.get_params()


def test_learned_parameters_take_their_place():
    model = ACKS2(softness="learn", hardness={"O": 9.0})
    assert model.to_learn == ("softness",)
    given = model.with_parameters({"softness": {"O": 0.3}, "hardness": {"H": 5.0}})
    assert given.softness == {"O": 0.3} and given.hardness == {"O": 9.0, "H": 5.0}
    assert isinstance(Case(given, geometry(), electronegativity(), NO_FIELD).state().energy, float)
