"""Latent charges, alone and as reference charges of ACKS2: derivatives everywhere, closed forms, limits."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from charge_checks import (
    CHECKS,
    PBC,
    Case,
    central,
    conditions,
    geometry,
    moved,
    not_trivial,
)
from kqeq.charges import ACKS2, AtomicDipoles, LatentCharges, QEq, charge_model_from_dict
from kqeq.charges.latent import typical_charges
from kqeq.constants import COULOMB
from kqeq.electrostatics import coulomb
from kqeq.errors import InputError, UnsupportedError
from kqeq.frames.structures import Structure
from kqeq.model.config import model_from_dict

MODELS = {
    "latent": LatentCharges(),
    "latent + dipoles": AtomicDipoles(LatentCharges()),
    "acks2": ACKS2(reference_charges="kernel"),
    "acks2 + dipoles": AtomicDipoles(ACKS2(reference_charges="kernel")),
}
FRAGMENTS = {"fragments": np.array([0, 0, 0, 1, 1]), "fragment_charges": np.array([0.75, 0.25])}


def latent_case(model, boundary, total_charge=0.0, **extra):
    """Charges of a few tenths of e instead of electronegativities."""
    case = conditions(model, boundary, total_charge, **extra)
    return replace(case, chi=np.random.default_rng(7).normal(scale=0.5, size=len(case.chi)))


@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("boundary", PBC)
@pytest.mark.parametrize("name", MODELS)
def test_every_identity_of_the_seam(name, boundary, check):
    check(latent_case(MODELS[name], boundary, {"open": 1.0, "slab": 0.0, "bulk": 1.0}[boundary]))


@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["latent", "acks2 + dipoles"])
def test_every_identity_with_fragments_and_a_potential(name, check):
    model = LatentCharges(fragments=True) if name == "latent" else MODELS[name]
    potential = np.array([0.4, -1.0, 0.3, 2.0, -0.2])
    check(latent_case(model, "open", 1.0, external_potential=potential, **FRAGMENTS))


# the equations ------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", PBC)
def test_charges_and_energy_of_the_definition(boundary):
    case = latent_case(LatentCharges(), boundary, 1.0)
    state = case.state()
    charges = case.chi - case.chi.mean() + 0.2
    assert_allclose(state.charges, charges, atol=1e-14)
    sigma = LatentCharges().site_parameters(case.structure.numbers).width
    matrix = coulomb(case.structure, sigma).matrix()
    own = COULOMB / np.sqrt(np.pi) / sigma
    energy = 0.5 * charges @ matrix @ charges - 0.5 * own @ charges**2
    energy -= case.field @ (case.structure.positions.T @ charges)
    assert_allclose(state.energy, energy, atol=1e-10)
    assert abs(state.charges.sum() - 1.0) < 1e-10


def test_a_pair_far_apart_has_the_energy_of_point_charges():
    structure = Structure(
        np.array([11, 17]), np.array([[0, 0, 0], [0, 0, 30.0]]), np.zeros((3, 3)), np.zeros(3, bool)
    )
    state = LatentCharges().bind(structure).solve(np.array([1.0, -1.0]), np.zeros(3), 0.0)
    assert_allclose(state.energy, -COULOMB / 30.0, rtol=1e-12)


def test_fragments_keep_their_charges_and_nothing_flows_between_separated_ones():
    case = latent_case(LatentCharges(fragments=True), "open", 1.0, **FRAGMENTS)
    assert_allclose(
        [case.state().charges[:3].sum(), case.state().charges[3:].sum()], [0.75, 0.25], atol=1e-12
    )
    apart = replace(
        geometry(total_charge=0.0),
        positions=geometry().positions + np.array([[0, 0, 0]] * 3 + [[40.0, 0, 0]] * 2),
    )
    model = ACKS2(reference_charges="kernel")
    values = np.array([-0.8, 0.4, 0.4, 0.3, -0.3])
    charges = model.bind(apart).solve(values, np.zeros(3), 0.0).charges
    assert abs(charges[:3].sum()) < 1e-10
    assert np.abs(charges).max() > 0.05


@pytest.mark.parametrize("boundary", PBC)
def test_without_softness_learned_reference_charges_are_latent_charges(boundary):
    rigid = ACKS2(softness=dict.fromkeys("HCNO", 0.0), reference_charges="kernel")
    state = latent_case(rigid, boundary, 1.0).state()
    expected = latent_case(LatentCharges(), boundary, 1.0).state(field=state.external_field)
    assert_allclose(state.charges, expected.charges, atol=1e-12)
    assert_allclose(state.energy, expected.energy, atol=1e-9)
    assert_allclose(state.gradient(), expected.gradient(), atol=1e-9)
    assert_allclose(state.electronegativity_gradient(), expected.electronegativity_gradient(), atol=1e-9)
    assert_allclose(state.chemical_potential, expected.chemical_potential, atol=1e-9)


def test_reference_charges_enter_as_the_theory_says():
    """∂q/∂v = (1 + LA)⁻¹ (1 + La) and ∂E/∂v = −u − a (q − q0), both without the mean; a is the diagonal of A."""
    case = latent_case(ACKS2(reference_charges="kernel"), "open", 0.0)
    system, state = case.system(), case.state()
    atoms = len(case.chi)
    centred = np.eye(atoms) - 1.0 / atoms
    laplacian = system.flow.bonds.laplacian().toarray()
    own = np.diag(np.diagonal(system.hessian))
    inverse = np.linalg.inv(np.eye(atoms) + laplacian @ system.hessian)
    expected = inverse @ (np.eye(atoms) + laplacian @ own) @ centred
    assert_allclose(system.respond(np.eye(atoms)).charges, expected, atol=1e-12)
    outside = -case.structure.positions @ case.field
    others = (system.hessian - own) @ state.charges + outside  # potential of the other atoms and of the field
    assert_allclose(state.electronegativity_gradient(), centred @ others, atol=1e-10)
    reference = centred @ case.chi
    flowed = -laplacian @ (others + own @ (state.charges - reference))
    assert_allclose(state.charges - reference, flowed, atol=1e-10)


def test_second_derivatives_of_forces_by_field_and_charges():
    """gradient_second_response against differences of gradient_response."""
    for model in (*MODELS.values(), AtomicDipoles(ACKS2()), QEq()):
        case = conditions(model, "open", 1.0)
        direction = np.random.default_rng(2).normal(size=len(case.chi))
        system = case.system()
        field, moved_charges = system.respond_field(), system.respond(direction[:, None])
        for axis in range(3):
            first = one_column(field, axis)
            numeric = central(
                lambda t, first=first, case=case, direction=direction: case.state(
                    chi=case.chi + t * direction
                ).gradient_response(first),
                0.1,
            )
            not_trivial(numeric)
            found = case.state().gradient_second_response(first, moved_charges)
            assert_allclose(found, numeric, atol=1e-7 * np.abs(numeric).max())


def one_column(response, axis):
    cut = slice(axis, axis + 1)
    return replace(
        response,
        unknowns=response.unknowns[:, cut],
        charges=response.charges[:, cut],
        dipole=response.dipole[:, cut],
        field=response.field[:, cut],
        potentials=response.potentials[:, cut],
    )


def test_latent_charges_do_not_respond():
    case = latent_case(LatentCharges(), "open")
    assert_allclose(case.system().polarizability(), 0.0, atol=1e-14)
    assert MODELS["latent + dipoles"].bind(case.structure).polarizability().trace() > 0.1


# typical charges ----------------------------------------------------------------------------------


def test_typical_charges_have_the_signs_of_chemistry():
    from ase.build import bulk, molecule

    from kqeq.frames.structures import read_structure

    structures = [read_structure(molecule(name)) for name in ("H2O", "CH3CONH2", "CH4")]
    found = typical_charges(structures, (1, 6, 7, 8))
    assert found[8] < -0.2 < -0.1 > found[7] and 0.02 < found[1] < 0.3
    # two bonds with Δ = 1.24 each
    water = typical_charges(structures[:1], (1, 8))
    assert_allclose(water[8], -2 * (0.16 * 1.24 + 0.035 * 1.24**2), atol=1e-12)
    assert_allclose(water[1], -0.5 * water[8])
    salt = typical_charges([read_structure(bulk("NaCl", "rocksalt", a=5.64))], (11, 17))
    assert salt == {11: 1.0, 17: -1.0}
    assert typical_charges(structures, (10,)) == {10: 0.0}


# settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_models_survive_their_plain_data(name):
    model = MODELS[name]
    copy = charge_model_from_dict(model.to_dict())
    assert copy.to_dict() == model.to_dict() and copy.quantity == "charge"
    case, other = latent_case(model, "open"), latent_case(copy, "open")
    assert_allclose(case.state().energy, other.state().energy, rtol=0)


def test_a_configuration_file_names_it():
    model = model_from_dict({"charges": {"model": "LatentCharges", "width": {"O": 0.8}}})
    assert isinstance(model.charges, LatentCharges) and model.charges.width == {"O": 0.8}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LatentCharges(width="learn"), "width"),
        (lambda: LatentCharges(width={"O": -1.0}), "width"),
        (lambda: LatentCharges(fragments=True), "fragments"),
        (lambda: LatentCharges(solver="magic"), "solver"),
        (lambda: ACKS2(reference_charges="nonsense"), "reference_charges"),
    ],
)
def test_settings_that_make_no_sense(make, message):
    with pytest.raises(InputError, match=message):
        make().check_structure(geometry())


@pytest.mark.parametrize("name", ["latent", "acks2"])
def test_fields_along_periodic_directions_are_refused(name):
    structure = geometry("bulk", external_field=np.array([0.0, 0.0, 0.1]))
    with pytest.raises(UnsupportedError, match="periodic direction"):
        MODELS[name].check_structure(structure)
    case = latent_case(MODELS[name], "bulk")
    assert case.state().dipole is None
    assert isinstance(case, Case) and moved(case.structure, np.zeros((5, 3))) is not None
