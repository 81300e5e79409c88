"""Element parameters learned from polarizabilities: Jacobian, recovery, priors, bad input."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from charge_checks import electronegativity, geometry
from kqeq.charges import ACKS2, AtomicDipoles, QEq
from kqeq.charges.parameters import SPREADS, ElementParameters, contract_sites
from kqeq.constants import COULOMB
from kqeq.errors import InputError, UnsupportedError
from kqeq.fitting.learning import _Problem, learn, learn_from_polarizabilities

LEARN = "learn"
EVERYTHING = AtomicDipoles(ACKS2(LEARN, LEARN, LEARN), LEARN)
PAIRS = AtomicDipoles(ACKS2(LEARN, pair_softness={"O-H": LEARN, "C-N": 0.0, "N-O": LEARN}))
both = pytest.mark.parametrize("model", [EVERYTHING, PAIRS], ids=["elements", "pairs"])


def geometries(count: int):
    rng = np.random.default_rng(8)
    start = geometry()
    return [replace(start, positions=start.positions + 0.15 * rng.normal(size=(5, 3))) for _ in range(count)]


def polarizabilities(model, structures):
    return [model.bind(structure).polarizability() for structure in structures]


def test_parameters_are_laid_out_by_kind_and_element():
    parameters = ElementParameters.build(AtomicDipoles(QEq(hardness=LEARN), LEARN), [8, 1, 8])
    assert parameters.names == ("hardness H", "hardness O", "polarizability H", "polarizability O")
    u = np.array([0.1, -0.2, 0.3, 0.4])
    model = parameters.apply(AtomicDipoles(QEq(hardness=LEARN), LEARN), u)
    assert model.to_learn == ()
    start = AtomicDipoles(QEq()).site_parameters(np.array([1, 8]))
    sites = model.site_parameters(np.array([1, 8]))
    assert_allclose(sites.hardness, start.hardness * np.exp(SPREADS["hardness"] * u[:2]))
    assert_allclose(sites.polarizability, start.polarizability * np.exp(SPREADS["polarizability"] * u[2:]))
    assert_allclose(sites.width, start.width)


@both
def test_directions_are_the_derivative_of_the_site_parameters(model):
    numbers = geometry().numbers
    parameters = ElementParameters.build(model, numbers)
    assert parameters.size == (16 if model is EVERYTHING else 6)
    u = np.random.default_rng(1).normal(size=parameters.size)
    change = parameters.directions(numbers, u)
    moved = 0
    for k in range(parameters.size):
        step = np.zeros(parameters.size)
        step[k] = 1e-5
        up, down = (parameters.sites(model, numbers, u + s * step) for s in (1, -1))
        for kind in SPREADS:
            if getattr(change, kind) is None:
                continue
            moved += 1
            numeric = (getattr(up, kind) - getattr(down, kind)) / 2e-5
            assert_allclose(getattr(change, kind)[:, k], numeric, rtol=1e-8, atol=1e-9)
    assert moved == parameters.size * len(model.to_learn)


@both
def test_energies_and_forces_change_with_the_parameters(model):
    """What a kernel fit needs: one column per learned parameter for every label."""
    structure, chi, field = geometry(), electronegativity(), np.array([0.3, -0.2, 0.1])
    parameters = ElementParameters.build(model, structure.numbers)
    u = 0.2 * np.random.default_rng(3).normal(size=parameters.size)

    def state(at):
        sites = parameters.sites(model, structure.numbers, at)
        return model.bind(structure, sites).solve(chi, field, 1.0)

    change = parameters.directions(structure.numbers, u)
    start = state(u)
    response = start.respond_sites(change)
    energy, gradient = contract_sites(start.site_gradient(), change), start.gradient_response(response)
    for k in range(parameters.size):
        step = 1e-3 * np.eye(parameters.size)[k]
        numeric = (state(u + step).energy - state(u - step).energy) / 2e-3
        assert abs(numeric) > 1e-5
        assert_allclose(energy[k], numeric, atol=1e-6)
        numeric = (state(u + step).gradient() - state(u - step).gradient()) / 2e-3
        assert_allclose(gradient[..., k], numeric, atol=1e-5 * np.abs(gradient).max())
        numeric = (state(u + step).dipole - state(u - step).dipole) / 2e-3
        assert_allclose(response.dipole[:, k], numeric, atol=1e-5 * np.abs(response.dipole).max())


@both
def test_jacobian_is_the_derivative_of_the_residuals(model):
    structures = geometries(2)
    parameters = ElementParameters.build(model, structures[0].numbers)
    targets = np.zeros((2, 3, 3))
    problem = _Problem(model, parameters, structures, targets, 0.01)
    u = 0.3 * np.random.default_rng(2).normal(size=parameters.size)

    def residuals(at):
        return np.concatenate([r for r, _ in problem.rows(at, jacobian="none")])

    jacobian = np.concatenate([j for _, j in problem.rows(u, jacobian="full")])
    for k in range(parameters.size):
        step = np.zeros(parameters.size)
        step[k] = 1e-4
        numeric = -(residuals(u + step) - residuals(u - step)) / 2e-4
        assert np.abs(numeric).max() > 1e-4
        assert_allclose(jacobian[:, k], numeric, atol=1e-6 * np.abs(jacobian).max())
    # off-diagonal components count twice, as in the full tensor
    alpha = np.array(polarizabilities(parameters.apply(model, u), structures))
    assert_allclose(np.sum(residuals(u) ** 2), np.sum((alpha / 0.01) ** 2))


def test_softness_by_pair_of_synthetic_data_is_recovered():
    truth = {"O-H": 2.5, "C-N": 0.0, "N-O": 0.3}
    structures = geometries(12)
    labels = polarizabilities(AtomicDipoles(ACKS2(pair_softness=truth)), structures)
    asked = AtomicDipoles(ACKS2(pair_softness={"H-O": LEARN, "C-N": 0.0, "N-O": LEARN}))
    with pytest.raises(UnsupportedError, match="pair_softness"):
        asked.check(structures[0])
    learned, parameters, solution = learn(asked, structures, labels, noise=1e-5)
    assert solution.converged
    assert parameters.names == ("pair_softness H-O", "pair_softness N-O")
    assert learned.to_learn == ()
    found = learned.inner.pair_softness
    assert_allclose([found["H-O"], found["C-N"], found["N-O"]], [2.5, 0.0, 0.3], rtol=1e-2)
    everything = ElementParameters.build(ACKS2(pair_softness=LEARN), structures[0].numbers)
    assert everything.size == 10  # all pairs of four elements


def test_parameters_of_synthetic_data_are_recovered():
    truth = AtomicDipoles(
        ACKS2(softness={"H": 0.3, "C": 0.25, "N": 0.2, "O": 0.1}),
        polarizability={"H": 0.9, "C": 1.2, "N": 0.8, "O": 1.1},
    )
    structures = geometries(12)
    model = AtomicDipoles(ACKS2(softness=LEARN), polarizability=LEARN)
    labels = polarizabilities(truth, structures)
    learned, _, solution = learn(model, structures, labels, noise=1e-5)
    assert solution.converged
    for kind, given in (("softness", learned.inner.softness), ("polarizability", learned.polarizability)):
        expected = truth.inner.softness if kind == "softness" else truth.polarizability
        for element, value in expected.items():
            assert_allclose(given[element], value, rtol=1e-2)
    assert np.abs(solution.u).max() > 0.3  # not where it started
    fresh = geometries(14)[12:]
    errors = np.array(polarizabilities(learned, fresh)) - polarizabilities(truth, fresh)
    start = np.array(polarizabilities(AtomicDipoles(ACKS2()), fresh)) - polarizabilities(truth, fresh)
    assert np.abs(errors).max() < 1e-3 * np.abs(start).max()


def test_useless_labels_leave_the_defaults():
    structures = geometries(2)
    labels = np.zeros((2, 3, 3))
    learned = learn_from_polarizabilities(QEq(hardness=LEARN), structures, labels, noise=1e6)
    defaults = QEq().site_parameters(structures[0].numbers).hardness
    assert_allclose(learned.site_parameters(structures[0].numbers).hardness, defaults, rtol=1e-6)


def test_the_model_that_was_given_is_left_alone():
    model = QEq(hardness=LEARN)
    learn_from_polarizabilities(model, geometries(1), np.ones((1, 3, 3)) * 0.1, noise=1.0 / COULOMB)
    assert model.hardness == LEARN


@pytest.mark.parametrize(
    ("model", "labels", "options", "match"),
    [
        (QEq(), np.zeros((2, 3, 3)), {}, "nothing to learn"),
        (QEq(LEARN), np.zeros((1, 3, 3)), {}, r"of 2 structures have shape \(1, 3, 3\)"),
        (QEq(LEARN), np.full((2, 3, 3), np.nan), {}, "expected one finite 3x3"),
        (QEq(LEARN), np.zeros((2, 3, 3)), {"noise": 0.0}, "noise is 0.0"),
        (QEq(LEARN), np.zeros((2, 3, 3)), {"spreads": {"hardness": -1.0}}, "spread -1.0 of 'hardness'"),
        (QEq(LEARN), np.zeros((2, 3, 3)), {"spreads": {"colour": 1.0}}, "'colour'"),
    ],
)
def test_wrong_input_is_refused(model, labels, options, match):
    with pytest.raises(InputError, match=match):
        learn_from_polarizabilities(model, geometries(2), labels, **options)


def test_periodic_structures_are_refused():
    with pytest.raises(InputError, match="structure 1 is periodic"):
        learn_from_polarizabilities(QEq(LEARN), [geometry(), geometry("bulk")], np.zeros((2, 3, 3)))
