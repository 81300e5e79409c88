"""Conjugate gradients without a matrix: the same answers as the factored matrix, derivatives, bad input."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.base import clone

from charge_checks import (
    NO_FIELD,
    PBC,
    Case,
    central,
    check_field,
    check_forces,
    check_images,
    check_strain,
    check_symmetries,
    check_total_charge,
    conditions,
    directions,
    electronegativity,
    geometry,
    moved,
    not_trivial,
    strained,
)
from kqeq.backend.linalg import conjugate_gradients
from kqeq.charges import (
    ACKS2,
    AtomicDipoles,
    LatentCharges,
    QEq,
    charge_model_from_dict,
    recipe,
    solve_at_potential,
)
from kqeq.charges.base import ENVIRONMENT_KINDS, SiteChange
from kqeq.electrostatics import MeshCoulomb
from kqeq.errors import ConvergenceError, InputError, NotPositiveDefiniteError, UnsupportedError
from kqeq.frames.structures import Structure, read_structure

FRAGMENTS = {"fragments": np.array([0, 0, 0, 1, 1])}

MODELS = {
    "QEq": lambda **k: QEq(**k),
    "QEq fragments": lambda **k: QEq(fragments=True, **k),
    "ACKS2": lambda **k: ACKS2(**k),
    "QEq dipoles": lambda **k: AtomicDipoles(QEq(**k)),
    "latent": lambda **k: LatentCharges(**k),
    "latent fragments": lambda **k: LatentCharges(fragments=True, **k),
    "latent dipoles": lambda **k: AtomicDipoles(LatentCharges(**k)),
    "ACKS2 kernel": lambda **k: ACKS2(reference_charges="kernel", **k),
    "ACKS2 dipoles": lambda **k: AtomicDipoles(ACKS2(**k)),
    "undamped": lambda **k: AtomicDipoles(
        ACKS2(**k), {"H": 0.2, "C": 0.6, "N": 0.5, "O": 0.4}, damping=False
    ),
}


def both(name: str, boundary: str, total_charge: float, accuracy: float = 1e-8) -> tuple[Case, Case]:
    """The same conditions for the dense and the iterative solver."""
    extra = {}
    if "fragments" in name:
        extra = {**FRAGMENTS, "fragment_charges": np.array([0.4, total_charge - 0.4])}
    make = MODELS[name]
    dense = conditions(make(solver="dense"), boundary, total_charge, **extra)
    if dense.model.quantity == "charge":  # a few tenths of e
        dense = replace(dense, chi=0.25 * dense.chi)
    return dense, replace(dense, model=make(solver="iterative", accuracy=accuracy))


def water(side: int, spacing: float = 3.1) -> Structure:
    """side³ randomly turned molecules in a cube."""
    rng = np.random.default_rng(1)
    single = np.array([[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]])
    positions = [
        single @ np.linalg.qr(rng.normal(size=(3, 3)))[0] + spacing * np.array(place)
        for place in np.ndindex(side, side, side)
    ]
    numbers = np.tile([8, 1, 1], side**3)
    return Structure(numbers, np.concatenate(positions), side * spacing * np.eye(3), np.ones(3, dtype=bool))


# the same answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("total_charge", [0.0, 1.0], ids=["neutral", "charged"])
@pytest.mark.parametrize("boundary", PBC)
@pytest.mark.parametrize("name", MODELS)
def test_iterative_equals_dense(name, boundary, total_charge):
    dense, iterative = both(name, boundary, total_charge)
    expected, got = dense.state(), iterative.state()
    assert got.system.solver.matrix_free and not expected.system.solver.matrix_free
    assert isinstance(got.system.provider, MeshCoulomb) == (boundary != "open")
    not_trivial(expected.charges, 0.1)
    assert_allclose(got.charges, expected.charges, atol=1e-8)
    assert_allclose(got.energy, expected.energy, atol=2e-8)
    assert_allclose(got.gradient(), expected.gradient(), atol=5e-8)
    assert_allclose(got.strain(), expected.strain(), atol=2e-7)
    assert_allclose(got.chemical_potential, expected.chemical_potential, atol=5e-8)
    assert_allclose(got.reference_gradient(), expected.reference_gradient(), atol=5e-8)
    assert_allclose(got.system.hardness(), expected.system.hardness(), atol=5e-8)
    for value, reference in (
        (got.dipole, expected.dipole),
        (got.atomic_dipoles, expected.atomic_dipoles),
        (got.system.polarizability(), expected.system.polarizability()),
    ):
        assert (value is None) == (reference is None)
        if reference is not None:
            assert_allclose(value, reference, atol=2e-8)
    kinds = ("hardness", "width", "polarizability", "softness")
    for kind in kinds:
        value, reference = getattr(got.site_gradient(), kind), getattr(expected.site_gradient(), kind)
        assert (value is None) == (reference is None)
        if reference is not None:
            assert_allclose(value, reference, atol=1e-7)


@pytest.mark.parametrize("name", ["QEq", "ACKS2 dipoles"])
def test_responses_equal_dense(name):
    dense, iterative = both(name, "slab", 0.0)
    block = np.random.default_rng(2).normal(size=(5, 3))
    change = SiteChange(hardness=block, width=0.1 * block)
    expected, got = dense.state(), iterative.state()
    for value, reference in (
        (got.system.respond(block), expected.system.respond(block)),
        (got.respond_sites(change), expected.respond_sites(change)),
    ):
        not_trivial(reference.charges, 1e-2)
        assert_allclose(value.unknowns, reference.unknowns, atol=5e-8)
        assert_allclose(value.dipole, reference.dipole, atol=5e-8)
        assert_allclose(got.gradient_response(value), expected.gradient_response(reference), atol=2e-7)
        assert_allclose(got.strain_response(value), expected.strain_response(reference), atol=1e-6)
        for kind in ENVIRONMENT_KINDS:
            one, two = (
                getattr(s.site_gradient_response(r), kind) for s, r in ((got, value), (expected, reference))
            )
            assert (one is None) == (two is None)
            if two is not None:
                not_trivial(two, 1e-4)
                assert_allclose(one, two, atol=5e-7)
    assert_allclose(
        got.system.polarizability_response(change), expected.system.polarizability_response(change), atol=1e-7
    )


@pytest.mark.parametrize("boundary", ["open", "bulk"])
def test_chemical_potential_and_outer_potential(boundary):
    structure = geometry(boundary, external_potential=np.array([0.4, -1.0, 0.3, 2.0, -0.2]))
    chi = electronegativity()
    states = [
        solve_at_potential(QEq(solver=solver, accuracy=1e-9).bind(structure), chi, NO_FIELD, 5.0)
        for solver in ("dense", "iterative")
    ]
    (dense, charge), (iterative, other) = states
    assert abs(charge) > 0.1
    assert_allclose(other, charge, atol=2e-9)
    assert_allclose(iterative.charges, dense.charges, atol=2e-9)
    assert_allclose(iterative.chemical_potential, 5.0, atol=5e-9)


@pytest.mark.parametrize("name", ["QEq", "ACKS2", "QEq dipoles", "ACKS2 dipoles"])
@pytest.mark.parametrize("accuracy", [1e-4, 1e-7])
def test_errors_stay_below_the_accuracy(name, accuracy):
    structure = water(4)
    chi = np.where(structure.numbers == 8, 9.0, 7.0) + np.random.default_rng(3).normal(scale=0.3, size=192)
    make = MODELS[name]
    dense = make(solver="dense").bind(structure).solve(chi, NO_FIELD, 0.0)
    got = make(solver="iterative", accuracy=accuracy).bind(structure).solve(chi, NO_FIELD, 0.0)
    not_trivial(dense.charges, 0.1)
    error = np.abs(got.unknowns - dense.unknowns).max()
    assert 1e-13 < error < accuracy


@pytest.mark.parametrize("softness", [0.0, 5.0, 100.0])
@pytest.mark.parametrize("boundary", ["slab", "bulk"])
def test_any_softness(boundary, softness):
    """None, and so much that ACKS2 is nearly QEq: constants in the potentials must not spoil the iteration."""
    structure = replace(water(3), pbc=np.array(PBC[boundary]), total_charge=1.0)
    chi = np.random.default_rng(0).normal(size=len(structure)) + 50.0
    states = [
        ACKS2(dict.fromkeys("HO", softness), solver=solver).bind(structure).solve(chi, NO_FIELD, 1.0)
        for solver in ("dense", "iterative")
    ]
    not_trivial(states[0].charges, 0.01)
    assert_allclose(states[1].charges, states[0].charges, atol=1e-7)
    assert_allclose(states[1].charges.sum(), 1.0, atol=1e-12)


def test_iterations_hardly_grow_with_the_system(monkeypatch):
    count = 0
    original = MeshCoulomb.matvec

    def counted(self, block):
        nonlocal count
        count += 1
        return original(self, block)

    monkeypatch.setattr(MeshCoulomb, "matvec", counted)
    for model, limit in ((QEq(solver="iterative"), 16), (ACKS2(solver="iterative"), 25)):
        for side in (3, 6):
            structure = water(side)
            count = 0
            model.bind(structure).solve(np.where(structure.numbers == 8, 9.0, 7.0), NO_FIELD, 0.0)
            assert 5 < count <= limit


# derivatives --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("boundary", ["slab", "bulk"])
def test_derivatives_on_a_mesh(name, boundary):
    """Along random directions that do not cancel: the gradient and, with the normal of a slab kept, the strain."""
    case = both(name, boundary, 1.0)[1]
    state, rng = case.state(), np.random.default_rng(7)
    step = np.abs(rng.normal(size=case.structure.positions.shape)) * np.sign(state.gradient())
    numeric = central(lambda t: case.state(structure=moved(case.structure, t * step)).energy, 2e-3)
    not_trivial(numeric, 0.1)
    assert_allclose(np.sum(state.gradient() * step), numeric, rtol=1e-6)
    step = np.abs(rng.normal(size=(3, 3))) * np.sign(state.strain())
    if boundary == "slab":
        along = directions(case)
        normal = along.T @ along
        step = (np.eye(3) - normal) @ step @ (np.eye(3) - normal) + normal @ step @ normal
    numeric = central(lambda t: case.state(structure=strained(case.structure, t * step)).energy, 1e-3)
    not_trivial(numeric, 0.1)
    assert_allclose(np.sum(state.strain() * step), numeric, rtol=1e-6)


@pytest.mark.parametrize("check", [check_images, check_total_charge])
def test_identities_on_a_mesh(check):
    check(both("QEq", "bulk", 1.0)[1])


@pytest.mark.parametrize("check", [check_forces, check_strain, check_field, check_symmetries])
@pytest.mark.parametrize("name", ["QEq dipoles", "ACKS2 dipoles"])
def test_derivatives_in_a_field(name, check):
    check(both(name, "open", 0.0, 1e-10)[1])


def test_forces_of_a_mesh_equal_finite_differences():
    structure = water(3)
    chi = np.where(structure.numbers == 8, 9.0, 7.0)
    model = AtomicDipoles(ACKS2(solver="iterative", accuracy=1e-9))

    def solve(positions):
        return model.bind(replace(structure, positions=positions)).solve(chi, NO_FIELD, 0.0)

    step = np.random.default_rng(0).normal(size=structure.positions.shape)
    gradient = solve(structure.positions).gradient()
    not_trivial(gradient, 0.02)
    h = 1e-3
    e = {k: solve(structure.positions + k * h * step).energy for k in (-2, -1, 1, 2)}
    numeric = (8 * (e[1] - e[-1]) - (e[2] - e[-2])) / (12 * h)
    assert_allclose(np.sum(gradient * step), numeric, rtol=1e-6)


# choice -------------------------------------------------------------------------------------------


def test_choice_follows_size_and_use(monkeypatch):
    structure = water(2)
    assert not QEq().bind(structure).solver.matrix_free
    assert QEq().bind(structure).responses_are_cheap
    for table in (recipe.CROSSOVER_PERIODIC, recipe.CROSSOVER_OPEN):
        for key in table:
            monkeypatch.setitem(table, key, 20)
    assert QEq().bind(structure).solver.matrix_free
    assert not QEq().bind(structure).responses_are_cheap
    assert AtomicDipoles().bind(structure).solver.matrix_free
    assert not QEq().bind(structure, many_responses=True).solver.matrix_free
    assert not AtomicDipoles().bind(structure, many_responses=True).solver.matrix_free
    assert not QEq(solver="dense").bind(structure).solver.matrix_free
    # direct products are no faster than the matrix
    assert not QEq().bind(replace(structure, pbc=np.zeros(3, dtype=bool))).solver.matrix_free
    monkeypatch.setattr(recipe, "MAX_DENSE", 20)
    assert QEq().bind(replace(structure, pbc=np.zeros(3, dtype=bool))).solver.matrix_free
    assert QEq().bind(structure, many_responses=True).solver.matrix_free


def test_predictions_leave_out_what_costs_further_solutions(water_model, water_systems):
    potential = water_model.potential_
    iterative = replace(
        potential, charges=clone(potential.charges).set_params(solver="iterative", accuracy=1e-9)
    )
    structure = read_structure(water_systems["water3"][1])
    wanted = ["energy", "forces"]
    dense, got = (p.predict(structure, wanted) for p in (potential, iterative))
    assert dense.hardness is not None and got.hardness is None
    assert_allclose(got.energy, dense.energy, rtol=1e-12)
    assert_allclose(got.forces, dense.forces, atol=1e-8)
    assert_allclose(got.chemical_potential, dense.chemical_potential, atol=1e-8)
    dense, got = (p.predict(structure, [*wanted, "polarizability"]) for p in (potential, iterative))
    assert_allclose(got.hardness, dense.hardness, rtol=1e-8)
    assert_allclose(got.polarizability, dense.polarizability, atol=1e-8)


def test_choice_is_kept_by_copies_and_files():
    model = AtomicDipoles(QEq(solver="iterative", accuracy=1e-5))
    for copy in (clone(model), charge_model_from_dict(model.to_dict()), pickle.loads(pickle.dumps(model))):
        assert copy.inner.solver == "iterative" and copy.inner.accuracy == 1e-5
    old = {"model": "QEq", "hardness": None, "width": None, "fragments": False}
    assert charge_model_from_dict(old).solver == "auto"


# bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "magic"}, r"solver='magic'\): expected one of 'auto', 'dense', 'iterative'"),
        ({"accuracy": 0.0}, r"accuracy=0.0\): expected a number from 1e-11"),
        ({"accuracy": float("nan")}, "accuracy=nan"),
        ({"accuracy": "fine"}, "accuracy='fine'"),
    ],
)
@pytest.mark.parametrize("model", [QEq, ACKS2])
def test_options_that_do_not_exist(model, options, message):
    for call in (model(**options).check, model(**options).bind):
        with pytest.raises(InputError, match=message):
            call(geometry())


@pytest.mark.parametrize("model", [QEq, ACKS2])
def test_an_energy_without_minimum(model):
    for hardness in (-14.0, -40.0):
        with pytest.raises(NotPositiveDefiniteError, match="raise the hardness"):
            model(hardness=dict.fromkeys("HCNO", hardness), solver="iterative").bind(geometry("bulk")).solve(
                electronegativity(), NO_FIELD, 0.0
            )


def test_polarization_catastrophe():
    model = AtomicDipoles(QEq(solver="iterative"), dict.fromkeys("HCNO", 6.0), damping=False)
    with pytest.raises(NotPositiveDefiniteError, match="polarization catastrophe"):
        model.bind(geometry()).solve(electronegativity(), np.array([0.1, 0.2, 0.3]), 0.0)


def test_no_matrix_and_fields_that_are_not_defined():
    system = QEq(solver="iterative").bind(geometry("bulk"))
    with pytest.raises(UnsupportedError, match='solver="dense"'):
        _ = system.hessian
    with pytest.raises(UnsupportedError, match="periodic image"):
        system.solve(electronegativity(), np.array([0.1, 0.0, 0.0]), 0.0)


def test_no_convergence_names_the_residual():
    matrix = np.diag(np.linspace(1.0, 1e4, 50))
    with pytest.raises(ConvergenceError, match=r"not solved in 5 iterations: the estimated error is \d"):
        conjugate_gradients(
            lambda v: matrix @ v,
            np.ones(50),
            np.zeros(50),
            lambda v: v,
            np.zeros(50),
            lambda v: v,
            tolerance=1e-8,
            max_iterations=5,
        )


def test_one_atom_carries_the_total_charge():
    atom = Structure(np.array([8]), np.array([[0.3, -0.2, 1.0]]))
    for model in (QEq, ACKS2):
        dense, got = (model(solver=s).bind(atom) for s in ("dense", "iterative"))
        state = got.solve(np.array([7.0]), np.array([0.1, 0.2, 0.3]), -1.0)
        assert_allclose(state.charges, [-1.0])
        assert_allclose(state.energy, dense.solve(np.array([7.0]), np.array([0.1, 0.2, 0.3]), -1.0).energy)
        assert_allclose(got.hardness(), dense.hardness())
