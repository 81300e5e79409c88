"""Checks that hold for every charge model: derivatives against finite differences, sums, symmetries."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.testing import assert_allclose

from checks import central
from kqeq.charges.base import ENVIRONMENT_KINDS, SITE_KINDS, SiteChange, SiteParameters
from kqeq.charges.flow import BondFlow, FreeFlow, NoFlow
from kqeq.frames.structures import Structure

TRICLINIC = np.array([[4.6, 0.3, -0.2], [1.0, 4.9, 0.1], [-0.7, 1.2, 5.6]])
# atoms about a bond length apart, so that charge flows in every model
NUMBERS = np.array([8, 1, 1, 6, 7])
POSITIONS = np.array(
    [[0.1, 0.2, 0.1], [1.0, 0.3, -0.2], [-0.2, 0.2, 1.1], [-0.9, 1.1, -0.1], [0.2, 1.8, 0.9]], dtype=float
)
PBC = {"open": (False,) * 3, "slab": (True, True, False), "bulk": (True,) * 3}
NO_FIELD = np.zeros(3)


def geometry(boundary: str = "open", **extra) -> Structure:
    cell = TRICLINIC.copy()
    if boundary == "slab":
        cell[2] = [0.3, -0.2, 14.0]
    return Structure(NUMBERS, POSITIONS, cell, np.array(PBC[boundary]), **extra)


def electronegativity(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=2.0, size=len(NUMBERS)) + 7.0


@dataclass
class Case:
    """A model under given conditions."""

    model: object
    structure: Structure
    chi: np.ndarray
    field: np.ndarray
    total_charge: float = 0.0

    @property
    def boundary(self) -> str:
        return {0: "open", 2: "slab", 3: "bulk"}[int(self.structure.pbc.sum())]

    def system(self, structure=None, sites=None):
        return self.model.bind(self.structure if structure is None else structure, sites)

    def state(self, *, structure=None, chi=None, field=None, total_charge=None, sites=None):
        return self.system(structure, sites).solve(
            self.chi if chi is None else chi,
            self.field if field is None else field,
            self.total_charge if total_charge is None else total_charge,
        )


def not_trivial(value, limit: float = 1e-3):
    assert np.abs(value).max() > limit, "the derivative that is checked is zero"


def close(actual, expected, rtol: float = 1e-6):
    """Equal to a part of the largest element."""
    assert_allclose(actual, expected, rtol=0, atol=rtol * max(np.abs(expected).max(), 1e-3))


def moved(structure: Structure, step: np.ndarray) -> Structure:
    return replace(structure, positions=structure.positions + step)


def strained(structure: Structure, step: np.ndarray) -> Structure:
    deformation = np.eye(3) + step
    return replace(structure, positions=structure.positions @ deformation, cell=structure.cell @ deformation)


def directions(case: Case) -> np.ndarray:
    """Directions, as rows, along which the model admits fields and has a dipole."""
    flows = isinstance(case.system().flow, BondFlow) and abs(case.total_charge) < 1e-12
    flows = flows and case.model.quantity == "electronegativity"
    if case.boundary == "open" or flows:
        return np.eye(3)
    if case.boundary == "bulk":
        return np.zeros((0, 3))
    normal = np.cross(*case.structure.cell[:2])
    return (normal / np.linalg.norm(normal))[None]


def moves(case: Case) -> bool:
    """Whether charges or dipoles respond to anything but the kernel model."""
    system = case.system()
    return not isinstance(system.flow, NoFlow) or system.has_atomic_dipoles


def check_forces(case: Case, limit: float = 1e-3):
    gradient = case.state().gradient()
    numeric = np.zeros_like(gradient)
    for k in range(len(gradient)):
        for a in range(3):
            step = np.zeros_like(gradient)
            step[k, a] = 1.0
            numeric[k, a] = central(
                lambda t, step=step: case.state(structure=moved(case.structure, t * step)).energy, 2e-3
            )
    not_trivial(numeric, limit)
    close(gradient, numeric)


def check_strain(case: Case):
    strain = case.state().strain()
    not_trivial(strain)
    steps = np.eye(9).reshape(9, 3, 3)
    allowed = directions(case)
    if case.field.any() and len(allowed) == 1:
        # shears that tilt the normal against a field along it give it a component that is not defined
        along = allowed.T @ allowed
        steps = [(np.eye(3) - along) @ s @ (np.eye(3) - along) + along @ s @ along for s in steps]
    for step in steps:
        numeric = central(
            lambda t, s=step: case.state(structure=strained(case.structure, t * s)).energy, 1e-3
        )
        assert_allclose(np.sum(strain * step), numeric, atol=1e-6 * max(1.0, np.abs(strain).max()))


def check_field(case: Case):
    state, system = case.state(), case.system()
    allowed = directions(case)
    if len(allowed) == 0:
        assert state.dipole is None
        if isinstance(system.flow, FreeFlow):
            assert system.polarizability() is None and system.respond_field().dipole is None
        return
    energy = [central(lambda t, e=e: case.state(field=case.field + t * e).energy, 1e-2) for e in allowed]
    not_trivial(energy)
    close(-allowed @ state.dipole, energy)
    response = system.respond_field()
    alpha = system.polarizability()
    dipole = np.array(
        [central(lambda t, e=e: case.state(field=case.field + t * e).dipole, 1e-2) for e in allowed]
    )
    if moves(case):
        not_trivial(dipole)
    else:
        assert_allclose(dipole, 0.0, atol=1e-9)
    close(allowed @ alpha @ allowed.T, dipole @ allowed.T)
    close(allowed @ response.dipole.T @ allowed.T, dipole @ allowed.T)
    charges = np.array(
        [central(lambda t, e=e: case.state(field=case.field + t * e).charges, 1e-2) for e in allowed]
    )
    close(allowed @ response.charges.T, charges)
    gradient = np.array(
        [central(lambda t, e=e: case.state(field=case.field + t * e).gradient(), 1e-2) for e in allowed]
    )
    not_trivial(gradient)
    close(np.einsum("ed,iad->eia", allowed, state.gradient_response(response)), gradient)
    strain = np.array(
        [central(lambda t, e=e: case.state(field=case.field + t * e).strain(), 1e-2) for e in allowed]
    )
    close(np.einsum("ed,abd->eab", allowed, state.strain_response(response)), strain)
    for e in allowed:
        one = replace(
            response,
            unknowns=response.unknowns @ e[:, None],
            charges=response.charges @ e[:, None],
            dipole=response.dipole @ e[:, None],
            field=response.field @ e[:, None],
            potentials=response.potentials @ e[:, None],
        )
        compare_value_gradient(state, one, lambda t, e=e: case.state(field=case.field + t * e), 1e-2)
        if moves(case):
            compare_site_gradient(state, one, lambda t, e=e: case.state(field=case.field + t * e), 1e-2)
    assert_allclose(alpha, alpha.T, atol=1e-12)
    assert (np.linalg.eigvalsh(alpha) > -1e-10).all()


def check_total_charge(case: Case):
    q = case.total_charge
    along = directions(replace(case, total_charge=1.0))
    if case.boundary != "open":
        # other total charges have reference charges, which forbid fields along periodic directions
        case = replace(case, field=along.T @ (along @ case.field))
    state, system = case.state(), case.system()
    assert_allclose(state.charges.sum(), q, atol=1e-9)
    numeric = central(lambda t: case.state(total_charge=q + t).energy, 0.1)
    not_trivial(numeric)
    assert_allclose(state.chemical_potential, numeric, rtol=1e-7)
    numeric = central(lambda t: case.state(total_charge=q + t).chemical_potential, 0.1)
    not_trivial(numeric)
    assert_allclose(system.hardness(), numeric, rtol=1e-7)
    response = system.respond_total_charge()
    assert_allclose(response.charges.sum(), 1.0, atol=1e-9)
    compare_response(case, response, lambda t: case.state(total_charge=q + t), 0.1, along)


def compare_site_gradient(state, response, solve, step: float, rtol: float = 1e-6):
    """The change of ∂E/∂(site parameter), one column, against states along the same direction."""
    change = state.site_gradient_response(response)
    assert change.width is None
    checked = 0
    still = isinstance(state.system.flow, NoFlow)
    for kind in ENVIRONMENT_KINDS:
        value = getattr(change, kind)
        assert (value is None) == (getattr(state.site_gradient(), kind) is None)
        if value is None:
            continue
        checked += 1
        assert value.shape == (len(state.charges), 1)
        numeric = central(lambda t, kind=kind: getattr(solve(t).site_gradient(), kind), step)
        if not (still and kind == "hardness"):
            not_trivial(numeric, 1e-5)
        close(value[:, 0], numeric, rtol)
    assert checked >= 1


def compare_value_gradient(state, response, solve, step: float):
    """The change of ∂E/∂χ (or ∂E/∂v), one column, likewise."""
    numeric = central(lambda t: solve(t).electronegativity_gradient(), step)
    not_trivial(numeric)
    close(state.electronegativity_gradient_response(response)[:, 0], numeric)


def compare_response(case: Case, response, solve, step: float, allowed=None):
    """One response column against states along the same direction; dipoles along ``allowed``."""
    allowed = directions(case) if allowed is None else allowed
    assert response.charges.shape[1] == 1
    state = case.state()
    numeric = central(lambda t: solve(t).charges, step)
    not_trivial(numeric)
    close(response.charges[:, 0], numeric)
    if response.dipole is not None and len(allowed):
        numeric = central(lambda t: solve(t).dipole, step)
        not_trivial(numeric)
        close(allowed @ response.dipole[:, 0], allowed @ numeric)
    numeric = central(lambda t: solve(t).gradient(), step)
    not_trivial(numeric)
    close(state.gradient_response(response)[..., 0], numeric)
    numeric = central(lambda t: solve(t).strain(), step)
    not_trivial(numeric)
    close(state.strain_response(response)[..., 0], numeric)
    compare_site_gradient(state, response, solve, step)
    compare_value_gradient(state, response, solve, step)


def check_electronegativity(case: Case):
    direction = np.random.default_rng(5).normal(size=len(case.chi))
    numeric = central(lambda t: case.state(chi=case.chi + t * direction).energy, 1e-2)
    assert_allclose(case.state().electronegativity_gradient() @ direction, numeric, atol=1e-7)
    response = case.system().respond(direction[:, None])
    assert_allclose(response.charges.sum(), 0.0, atol=1e-10)
    compare_response(case, response, lambda t: case.state(chi=case.chi + t * direction), 1e-2)
    response = case.system().respond_potential(direction[:, None])
    given = 0.0 if case.structure.external_potential is None else case.structure.external_potential

    def under(t):
        structure = replace(case.structure, external_potential=given + t * direction)
        return case.state(structure=structure)

    if not isinstance(case.system().flow, NoFlow):
        compare_response(case, response, under, 1e-2)
    compare_value_gradient(case.state(), response, under, 1e-2)


def check_site_parameters(case: Case):
    """Every kind that the model has, in a random direction that keeps the signs."""
    sites = case.model.site_parameters(case.structure.numbers)
    rng = np.random.default_rng(6)
    allowed = directions(case)
    checked = 0
    for kind in SITE_KINDS:
        value = getattr(sites, kind)
        if value is None:
            continue
        checked += 1
        direction = value * rng.uniform(0.3, 1.0, size=len(value)) * rng.choice([-1.0, 1.0], size=len(value))
        change = SiteChange(**{kind: direction[:, None]})

        def changed(t, kind=kind, value=value, direction=direction):
            return replace(sites, **{kind: value + t * direction})

        state = case.state()
        still = isinstance(case.system().flow, NoFlow)
        if still and kind == "hardness":  # charges are where they are preferred: it acts on nothing
            assert not state.site_gradient().hardness.any()
            assert_allclose(case.state(sites=changed(0.1)).energy, state.energy, atol=1e-9)
            continue
        numeric = central(lambda t, f=changed: case.state(sites=f(t)).energy, 1e-2)
        not_trivial(numeric, 1e-4)
        gradient = state.site_gradient()
        assert isinstance(gradient, SiteParameters)
        assert_allclose(getattr(gradient, kind) @ direction, numeric, rtol=1e-5, atol=1e-8)
        response = state.respond_sites(change)
        step = 5e-3
        compare_value_gradient(state, response, lambda t, f=changed: case.state(sites=f(t)), step)
        # where charges are given, widths and polarizabilities move dipoles at most
        if not moves(case):
            numeric = central(lambda t, f=changed: case.state(sites=f(t)).gradient(), step)
            close(state.gradient_response(response)[..., 0], numeric, 3e-6)
            continue
        numeric = central(lambda t, f=changed: case.state(sites=f(t)).charges, step)
        if not still:
            not_trivial(numeric, 1e-4)
        close(response.charges[:, 0], numeric, 3e-6)
        if response.dipole is not None and state.dipole is not None:
            numeric = central(lambda t, f=changed: case.state(sites=f(t)).dipole, step)
            not_trivial(numeric, 1e-4)
            close(allowed @ response.dipole[:, 0], allowed @ numeric, 3e-6)
        numeric = central(lambda t, f=changed: case.state(sites=f(t)).gradient(), step)
        not_trivial(numeric, 1e-4)
        close(state.gradient_response(response)[..., 0], numeric, 3e-6)
        numeric = central(lambda t, f=changed: case.state(sites=f(t)).strain(), step)
        close(state.strain_response(response)[..., 0], numeric, 3e-6)
        compare_site_gradient(state, response, lambda t, f=changed: case.state(sites=f(t)), step, 3e-6)
        if case.system().polarizability() is not None:
            numeric = central(lambda t, f=changed: case.system(sites=f(t)).polarizability(), step)
            not_trivial(numeric, 1e-4)
            close(case.system().polarizability_response(change)[..., 0], numeric, 3e-6)
    assert checked >= 2


def check_symmetries(case: Case):
    """Rotation with the cell and the field, permutation, and in open boundaries translation."""
    state = case.state()
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    turned = replace(
        case.structure, positions=case.structure.positions @ rotation, cell=case.structure.cell @ rotation
    )
    other = case.state(structure=turned, field=case.field @ rotation)
    assert_allclose(other.energy, state.energy, rtol=1e-8)
    assert_allclose(other.charges, state.charges, atol=1e-8)
    assert_allclose(other.gradient(), state.gradient() @ rotation, atol=1e-7)
    if state.dipole is not None:
        assert_allclose(other.dipole, state.dipole @ rotation, atol=1e-8)
    order = np.random.default_rng(4).permutation(len(case.chi))
    fields = ("fragments", "reference_charges", "external_potential")
    extra = {
        name: getattr(case.structure, name)[order]
        for name in fields
        if getattr(case.structure, name) is not None
    }
    mixed = replace(
        case.structure,
        numbers=case.structure.numbers[order],
        positions=case.structure.positions[order],
        **extra,
    )
    other = case.state(structure=mixed, chi=case.chi[order])
    assert_allclose(other.energy, state.energy, rtol=1e-10)
    assert_allclose(other.charges, state.charges[order], atol=1e-10)
    shift = np.array([0.7, -0.4, 1.3])
    other = case.state(structure=moved(case.structure, shift))
    assert_allclose(other.charges, state.charges, atol=1e-8)
    assert_allclose(other.gradient(), state.gradient(), atol=1e-7)
    expected = state.energy - case.total_charge * float(case.field @ shift)
    assert_allclose(other.energy, expected, rtol=1e-8)


def check_images(case: Case):
    """Moving atoms by lattice vectors changes nothing, the dipole included where it is defined."""
    shifts = np.random.default_rng(9).integers(-1, 2, size=(len(case.chi), 3)) * case.structure.pbc
    state = case.state()
    other = case.state(structure=moved(case.structure, shifts @ case.structure.cell))
    assert_allclose(other.energy, state.energy, rtol=1e-9)
    assert_allclose(other.charges, state.charges, atol=1e-8)
    assert_allclose(other.gradient(), state.gradient(), atol=1e-7)
    assert_allclose(other.strain(), state.strain(), atol=1e-6)
    if state.dipole is not None:
        assert_allclose(other.dipole, state.dipole, atol=1e-8)


CHECKS = (
    check_forces,
    check_strain,
    check_field,
    check_total_charge,
    check_electronegativity,
    check_site_parameters,
    check_symmetries,
    check_images,
)
"""All of the above."""


def conditions(model, boundary: str, total_charge: float = 0.0, **extra) -> Case:
    """A case in a field, as far as the model admits one."""
    structure = geometry(boundary, total_charge=total_charge, **extra)
    case = Case(model, structure, electronegativity(), NO_FIELD, total_charge)
    along = directions(case)
    return replace(case, field=along.T @ (along @ np.array([0.3, -0.2, 0.25])))
