"""Atomic dipoles on QEq and ACKS2: derivatives, closed forms, limits, the polarization catastrophe."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from charge_checks import CHECKS, NO_FIELD, PBC, Case, conditions, electronegativity, geometry
from kqeq import elements
from kqeq.charges import ACKS2, AtomicDipoles, QEq, charge_model_from_dict
from kqeq.constants import COULOMB
from kqeq.errors import InputError, NotPositiveDefiniteError, UnsupportedError
from kqeq.frames.structures import Structure
from kqeq.model.config import model_from_dict

SMALL = dict.fromkeys("HCNO", 0.05)
MODELS = {
    "qeq": AtomicDipoles(QEq()),
    "acks2": AtomicDipoles(ACKS2()),
    "undamped": AtomicDipoles(ACKS2(), polarizability=SMALL, damping=False),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("name", "boundary"), [(n, b) for n in ("qeq", "acks2") for b in PBC] + [("undamped", "open")]
)
def test_every_identity_of_the_seam(name, boundary, check):
    check(conditions(MODELS[name], boundary, {"open": 1.0, "slab": 0.0, "bulk": 0.0}[boundary]))


@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
def test_every_identity_of_a_charged_cell(check):
    check(conditions(AtomicDipoles(), "bulk", 1.0))


@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
def test_every_identity_with_fragments(check):
    extra = {"fragments": np.array([0, 0, 0, 1, 1]), "fragment_charges": np.array([0.75, 0.25])}
    check(conditions(AtomicDipoles(QEq(fragments=True)), "open", 1.0, **extra))


# the equations ------------------------------------------------------------------------------------


def test_stationary_point_of_the_full_hessian():
    """Bordered system over charges and dipoles, with the field on r·q + d."""
    case = conditions(AtomicDipoles(QEq()), "open", 1.0)
    system, state = case.system(), case.state()
    atoms = len(case.chi)
    n = 4 * atoms
    bordered = np.zeros((n + 1, n + 1))
    bordered[:n, :n] = system.hessian
    bordered[n, :atoms] = bordered[:atoms, n] = 1.0
    rhs = np.concatenate(
        [case.structure.positions @ case.field - case.chi, np.tile(case.field, atoms), [1.0]]
    )
    solution = np.linalg.solve(bordered, rhs)
    assert_allclose(state.unknowns, solution[:n], atol=1e-11)
    assert_allclose(state.atomic_dipoles, solution[atoms:n].reshape(atoms, 3), atol=1e-11)
    expected = state.charges @ case.structure.positions + state.atomic_dipoles.sum(axis=0)
    assert_allclose(state.dipole, expected, atol=1e-12)


def test_hessian_is_positive_definite_for_any_polarizability():
    """1/α_i next to the self interaction of the Gaussians: no catastrophe, however large α and close the atoms."""
    rng = np.random.default_rng(2)
    for _ in range(5):
        structure = replace(geometry(), positions=rng.normal(scale=0.3, size=(5, 3)))
        model = AtomicDipoles(QEq(), polarizability=dict.fromkeys("HCNO", 1e6))
        assert np.linalg.eigvalsh(model.bind(structure).hessian)[0] > 0.0


@pytest.mark.parametrize("damping", [True, False])
def test_an_isolated_atom_has_its_polarizability(damping):
    atom = Structure(np.array([6]), np.array([[0.4, 0.1, -0.3]]))
    model = AtomicDipoles(QEq(width={"C": 0.7}), polarizability={"C": 1.3}, damping=damping)
    own = 1.0 / 1.3 + (1.0 / (6 * np.sqrt(np.pi) * 0.7**3) if damping else 0.0)
    assert_allclose(COULOMB * model.bind(atom).polarizability(), np.eye(3) / own, atol=1e-12)
    state = model.bind(atom).solve(np.array([5.0]), np.array([0.0, 0.2, 0.0]), 1.0)
    assert_allclose(state.atomic_dipoles, [[0.0, 0.2 / own / COULOMB, 0.0]], atol=1e-14)


def test_two_distant_atoms_polarise_each_other_as_point_dipoles_do():
    """α_∥ = 2α/(1 − 2α/r³), α_⊥ = 2α/(1 + α/r³) (Silberstein 1917)."""
    alpha, r = 1.5, 14.0
    pair = Structure(np.array([18, 18]), np.array([[0.0, 0, 0], [0, 0, r]]))
    model = AtomicDipoles(ACKS2(), polarizability={"Ar": alpha}, damping=False)
    total = COULOMB * model.bind(pair).polarizability()
    assert_allclose(total[2, 2], 2 * alpha / (1 - 2 * alpha / r**3), rtol=1e-10)
    assert_allclose(total[0, 0], 2 * alpha / (1 + alpha / r**3), rtol=1e-10)


def test_a_flat_molecule_polarises_out_of_its_plane():
    flat = replace(geometry(), positions=geometry().positions * np.array([1.0, 1.0, 0.0]))
    assert abs(QEq().bind(flat).polarizability()[2, 2]) < 1e-14
    assert COULOMB * AtomicDipoles(QEq()).bind(flat).polarizability()[2, 2] > 1.0


# limits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", PBC)
@pytest.mark.parametrize("inner", [QEq(), ACKS2()], ids=["qeq", "acks2"])
def test_no_polarizability_recovers_the_inner_model(inner, boundary):
    rigid = conditions(AtomicDipoles(inner, polarizability=dict.fromkeys("HCNO", 1e-9)), boundary)
    plain = replace(rigid, model=inner)
    assert_allclose(rigid.state().energy, plain.state().energy, rtol=1e-8)
    assert_allclose(rigid.state().charges, plain.state().charges, atol=1e-8)
    assert_allclose(rigid.state().gradient(), plain.state().gradient(), atol=1e-7)
    alpha = plain.system().polarizability()
    if alpha is not None:
        assert_allclose(rigid.system().polarizability(), alpha, atol=1e-8)


def test_infinite_softness_recovers_dipoles_on_qeq():
    soft = conditions(AtomicDipoles(ACKS2(softness=dict.fromkeys("HCNO", 1e6), cutoff=6.0)), "open", 1.0)
    hard = replace(soft, model=AtomicDipoles(QEq()))
    assert_allclose(soft.state().unknowns, hard.state().unknowns, atol=1e-5)
    assert_allclose(soft.system().polarizability(), hard.system().polarizability(), atol=1e-5)


def test_dipoles_lower_the_energy():
    for boundary in PBC:
        case = conditions(AtomicDipoles(ACKS2()), boundary)
        assert case.state().energy < replace(case, model=ACKS2()).state().energy - 1e-3


def test_repeating_the_cell_repeats_everything():
    structure, chi, field = geometry("bulk"), electronegativity(), np.array([0.3, -0.2, 0.25])
    double = replace(
        structure,
        numbers=np.tile(structure.numbers, 2),
        positions=np.concatenate([structure.positions, structure.positions + structure.cell[1]]),
        cell=structure.cell * np.array([[1.0], [2.0], [1.0]]),
    )
    first = AtomicDipoles().bind(structure).solve(chi, field, 0.0)
    second = AtomicDipoles().bind(double).solve(np.tile(chi, 2), field, 0.0)
    assert_allclose(second.atomic_dipoles, np.tile(first.atomic_dipoles, (2, 1)), atol=1e-7)
    assert_allclose(second.dipole, 2 * first.dipole, atol=1e-7)
    assert_allclose(second.energy, 2 * first.energy, rtol=1e-7)


# parameters and bad input -------------------------------------------------------------------------


def test_default_polarizability_is_that_of_the_free_atom():
    numbers = np.array([1, 8])
    sites = AtomicDipoles().site_parameters(numbers)
    assert_allclose(COULOMB * sites.polarizability, elements.polarizability(numbers))
    assert sites.softness is not None
    assert AtomicDipoles(QEq()).site_parameters(numbers).softness is None


def test_undamped_dipoles_beyond_the_catastrophe_are_refused():
    close = Structure(np.array([6, 6]), np.array([[0.0, 0, 0], [0, 0, 1.2]]))
    # 1/α against the interaction T of two Gaussian dipoles in line: beyond 1/T they align without end
    model = AtomicDipoles(QEq(width={"C": 0.5}), polarizability={"C": 1.3}, damping=False)
    assert model.bind(close).polarizability()[2, 2] > 0.0
    model.set_params(polarizability={"C": 8.0})
    with pytest.raises(NotPositiveDefiniteError, match=r"polarization catastrophe.*damping=True"):
        model.bind(close)
    model.set_params(damping=True)
    assert model.bind(close).polarizability()[2, 2] > 0.0


def test_negative_hardness_is_refused():
    with pytest.raises(NotPositiveDefiniteError, match="raise the hardness"):
        AtomicDipoles(QEq(hardness=dict.fromkeys("HCNO", -14.0))).bind(geometry())


@pytest.mark.parametrize("value", [{"O": 0.0}, {"O": -1.0}, {"O": np.inf}])
def test_wrong_polarizabilities_are_refused(value):
    with pytest.raises(InputError, match="polarizability of O"):
        AtomicDipoles(polarizability=value).check(geometry())


def test_the_inner_model_has_to_be_one_of_charges():
    with pytest.raises(InputError, match=r"inner=.*expected a model of charges"):
        AtomicDipoles(AtomicDipoles()).check(geometry())


def test_fields_of_the_inner_model_are_refused():
    structure = geometry("bulk", external_field=np.array([0.1, 0.0, 0.0]))
    with pytest.raises(UnsupportedError, match="ACKS2"):
        AtomicDipoles(QEq()).check(structure)
    AtomicDipoles(ACKS2()).check(structure)


def test_models_survive_plain_data():
    model = AtomicDipoles(QEq(hardness={"O": 9.0}), polarizability={"O": 0.7}, damping=False)
    again = charge_model_from_dict(model.to_dict())
    assert again.to_dict() == model.to_dict()
    assert isinstance(again.inner, QEq)
    assert charge_model_from_dict({"model": "AtomicDipoles"}).to_dict() == AtomicDipoles().to_dict()


def test_models_come_from_configuration_tables():
    inner = {"model": "ACKS2", "softness": {"O": 0.1}, "cutoff": 2.0}
    table = {"model": "AtomicDipoles", "polarizability": {"O": 0.7}, "inner": inner}
    model = model_from_dict({"charges": table}).charges
    assert isinstance(model.inner, ACKS2) and model.inner.softness == {"O": 0.1} and model.inner.cutoff == 2.0
    assert model.polarizability == {"O": 0.7}


def test_learned_parameters_take_their_place():
    model = AtomicDipoles(QEq(hardness="learn"), polarizability="learn")
    assert set(model.to_learn) == {"hardness", "polarizability"}
    with pytest.warns(DeprecationWarning, match="to_learn"):
        assert model.learned == model.to_learn
    with pytest.raises(UnsupportedError, match="learn_from_polarizabilities"):
        model.check(geometry())
    given = model.with_parameters(
        {"hardness": dict.fromkeys("HCNO", 9.0), "polarizability": dict.fromkeys("HCNO", 0.8)}
    )
    assert given.to_learn == () and model.to_learn != ()
    assert_allclose(given.site_parameters(np.array([8])).hardness, [9.0])
    assert_allclose(given.site_parameters(np.array([8])).polarizability, [0.8 / COULOMB])
    Case(given, geometry(), electronegativity(), NO_FIELD).state()
