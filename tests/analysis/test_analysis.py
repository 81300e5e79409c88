"""The analysis: every quantity against finite differences of the energy or the dipole, for three charge models."""

import csv
import json

import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms
from ase.io.cube import read_cube

import kqeq
from checks import assert_close, bare, central_difference, position_gradient, rotation, second_difference
from conftest import NOISE, small_kernel
from kqeq import analysis
from kqeq.constants import COULOMB
from kqeq.electrostatics import coulomb
from kqeq.errors import InputError, ModelNotFittedError, UnsupportedError
from kqeq.frames.structures import read_structure

FIELD = np.array([0.03, -0.02, 0.05])

MODELS = {
    "qeq": {"charges": kqeq.QEq()},
    "acks2": {"charges": kqeq.ACKS2()},
    "acks2 with dipoles": {"charges": kqeq.AtomicDipoles(kqeq.ACKS2())},
    "charge-aware": {"charges": kqeq.QEq(), "charge_aware": kqeq.ChargeKernel(order=3)},
}


@pytest.fixture(scope="module", params=MODELS)
def model(request, water_training):
    both = small_kernel(3.5), small_kernel(4.0, zeta=4)
    return kqeq.KQEq(*both, **MODELS[request.param], noise=NOISE).fit(water_training)


@pytest.fixture
def dimer(water_systems):
    return bare(water_systems["water2"][1])


@pytest.fixture
def ion(water_systems):
    return bare(water_systems["hydronium"][2])


def energy(model, atoms, charge=0.0, field=(0, 0, 0)):
    return model.predict(atoms, total_charge=charge, external_field=field, properties=["energy"]).energy


def dipole(model, atoms, charge=0.0, field=(0, 0, 0)):
    return model.predict(atoms, total_charge=charge, external_field=field, properties=["energy"]).dipole


# ---------------------------------------------------------------- responses


def test_polarizability_is_the_second_derivative_of_the_energy(model, dimer):
    found = analysis.polarizability(model, dimer, external_field=FIELD)
    for a, axis in enumerate(np.eye(3)):
        numeric = central_difference(lambda t, axis=axis: dipole(model, dimer, field=FIELD + t * axis), 0.02)
        assert_close(found.total[:, a], numeric, rtol=1e-7, atol=1e-9, at_least=0.01)
        curvature = -second_difference(lambda t, axis=axis: energy(model, dimer, field=FIELD + t * axis), 0.1)
        assert found.total[a, a] == pytest.approx(curvature, rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(found.volume, COULOMB * found.total)
    assert found.isotropic == pytest.approx(np.trace(found.volume) / 3)


def test_atomic_polarizabilities_sum_up_and_belong_to_the_molecule(model, dimer):
    found = analysis.polarizability(model, dimer)
    np.testing.assert_allclose(found.atomic.sum(axis=0) + found.remainder, found.total, atol=1e-9)
    # where the short-range energy sees the charges, the dipole is more than that of the charges
    assert (np.abs(found.remainder).max() < 1e-9) == (model.charge_aware is None)
    assert np.abs(found.atomic).max() > 0.005
    # the origin does not matter, turning turns, and atoms may be listed in any order
    turn, order = rotation(3), np.random.default_rng(1).permutation(len(dimer))
    moved = analysis.polarizability(
        model, bare(dimer, rotate=turn, shift=np.array([4.0, -7, 2]), order=order)
    )
    expected = np.einsum("ab,kbc,dc->kad", turn, found.atomic[order], turn)
    np.testing.assert_allclose(moved.atomic, expected, atol=1e-8)


def test_separate_molecules_keep_their_atomic_polarizabilities(model, dimer):
    """Far apart, nothing flows between fragments in ACKS2 and what is left is each molecule's own; QEq knows no far."""
    one = Atoms(dimer.numbers[:3], dimer.positions[:3])
    far = dimer.copy()
    far.positions[3:] += [60.0, 0.0, 0.0]
    alone = analysis.polarizability(model, one).atomic
    together = analysis.polarizability(model, far).atomic[:3]
    if isinstance(model.charges, kqeq.QEq):
        assert np.abs(together - alone).max() > 10 * np.abs(alone).max()
    else:
        assert_close(together, alone, rtol=1e-3, at_least=0.01)


def test_born_charges_are_the_derivative_of_the_dipole(model, ion):
    found = analysis.born_charges(model, ion, total_charge=1, external_field=FIELD)
    numeric = position_gradient(lambda a: dipole(model, a, 1, FIELD), ion, h=2e-3)
    assert_close(found.tensors, numeric.swapaxes(1, 2), rtol=1e-6, at_least=0.3)
    assert (
        np.abs(found.tensors - found.tensors.swapaxes(1, 2)).max() > 1e-3
    )  # not symmetric: the order matters
    assert found.sum_rule_error < 1e-8
    np.testing.assert_allclose(found.tensors.sum(axis=0), np.eye(3), atol=1e-8)


def test_charge_response(model, ion):
    found = analysis.charge_response(model, ion, total_charge=1, external_field=FIELD)
    slope = central_difference(lambda t: energy(model, ion, 1 + t, FIELD), 0.05)
    curvature = second_difference(lambda t: energy(model, ion, 1 + t, FIELD), 0.2)
    charges = central_difference(
        lambda t: model.predict(ion, total_charge=1 + t, external_field=FIELD, properties=["energy"]).charges,
        0.05,
    )
    assert found.chemical_potential == pytest.approx(slope, rel=1e-7)
    assert found.hardness == pytest.approx(curvature, rel=1e-6)
    assert found.hardness > 1.0
    assert_close(found.fukui, charges, rtol=1e-7, at_least=0.1)
    assert found.fukui.sum() == pytest.approx(1.0)
    # linear in the total charge: a whole electron moves as much as a little charge does
    more = model.predict(ion, total_charge=2).charges - model.predict(ion, total_charge=1).charges
    np.testing.assert_allclose(more, found.fukui, atol=1e-8)
    for name in ("fukui_plus", "fukui_minus"):
        with pytest.warns(DeprecationWarning, match="always equal to fukui"):
            assert getattr(found, name) is found.fukui
    assert found.charges.sum() == pytest.approx(1.0)
    # hydroxide, water and hydronium: charge goes along with composition
    assert not found.determined
    assert 2.0 < found.chemical_potential_std < 10.0


# -------------------------------------------------------------------- scans


def test_charge_scan(model, ion):
    ion.info["total_charge"] = 1  # not looked at
    scan = analysis.charge_scan(model, ion, (-1, 0, 1), external_field=FIELD)
    for k, charge in enumerate((-1, 0, 1)):
        free = bare(ion)
        expected = model.predict(free, total_charge=charge, external_field=FIELD)
        assert scan.energies[k] == expected.energy
        np.testing.assert_array_equal(scan.charges[k], expected.charges)
        slope = central_difference(lambda t, q=charge: energy(model, bare(ion), q + t, FIELD), 0.05)
        assert scan.chemical_potentials[k] == pytest.approx(slope, rel=1e-6)
    assert scan.relaxed_energies is None
    assert np.ptp(scan.energies) > 1.0


def test_the_old_spelling_warns_and_works():
    with pytest.warns(DeprecationWarning, match=r"kqeq\.analysis\.ionization"):
        assert analysis.ionisation is analysis.ionization
    with pytest.raises(AttributeError, match="nonsense"):
        _ = analysis.nonsense


def test_ionization(model, ion):
    found = analysis.ionization(model, ion, total_charge=0)
    states = [energy(model, ion, charge) for charge in (-1, 0, 1)]
    assert found.vertical_ionization_energy == states[2] - states[1]
    assert found.vertical_electron_affinity == states[1] - states[0]
    assert found.relaxed_ionization_energy is None
    with pytest.warns(DeprecationWarning, match="vertical_ionization_energy"):
        assert found.vertical_ionisation_energy == found.vertical_ionization_energy
    assert not found.determined
    assert 2.0 < found.difference_std < 10.0


def test_field_scan(model, ion):
    strengths = np.linspace(-2, 2, 9)
    scan = analysis.field_scan(model, ion, strengths, (0, 1, 1), total_charge=1)
    axis = np.array([0, 1, 1]) / np.sqrt(2)
    np.testing.assert_allclose(scan.direction, axis)
    for k in (0, 6):
        expected = model.predict(ion, total_charge=1, external_field=strengths[k] * axis)
        assert scan.energies[k] == expected.energy
        np.testing.assert_array_equal(scan.forces[k], expected.forces)
        numeric = -central_difference(lambda t, k=k: energy(model, ion, 1, (strengths[k] + t) * axis), 0.05)
        assert scan.dipoles[k] @ axis == pytest.approx(numeric, rel=1e-6)
        np.testing.assert_allclose(scan.forces[k].sum(axis=0), strengths[k] * axis, atol=1e-9)
    assert scan.largest_force_change[4] == 0.0
    assert scan.largest_force_change[0] > 0.5


def test_scans_evaluate_descriptors_once(model, ion, monkeypatch):
    from kqeq.descriptors.soap.descriptor import SOAPDescriptor

    counted = []
    original = SOAPDescriptor.evaluate
    monkeypatch.setattr(
        SOAPDescriptor,
        "evaluate",
        lambda self, *a, **k: counted.append(self) or original(self, *a, **k),
    )
    bound = []
    bind = type(model.potential_.charges).bind
    monkeypatch.setattr(
        type(model.potential_.charges),
        "bind",
        lambda self, *a, **k: bound.append(self) or bind(self, *a, **k),
    )
    analysis.field_scan(model, ion, np.linspace(-1, 1, 7), total_charge=1)
    analysis.born_charges(model, ion, total_charge=1)
    analysis.charge_scan(model, ion)
    assert len(counted) == 3 * 2  # two descriptors
    assert len(bound) == 3


def test_dissociation_scan(model, dimer):
    scan = analysis.dissociation_scan(model, dimer, distances=(0.0, 2.0, 30.0))
    np.testing.assert_array_equal(scan.fragments, [0, 0, 0, 1, 1, 1])
    np.testing.assert_allclose(scan.fragment_charges.sum(axis=1), 0.0, atol=1e-10)
    assert scan.energies[0] == energy(model, dimer)
    assert scan.closest[2] > scan.closest[1] > scan.closest[0]
    leak = np.abs(scan.fragment_charges[2]).max()
    if isinstance(model.charges, kqeq.QEq):
        assert leak > 1e-3
    else:
        assert leak < 1e-12
    given = analysis.dissociation_scan(
        model, dimer, [[0, 1, 2], [3, 4, 5]], [30.0], fragment_charges=[1, 0], total_charge=1
    )
    if not isinstance(model.charges, kqeq.QEq):
        np.testing.assert_allclose(given.fragment_charges[0], [1, 0], atol=1e-10)


# --------------------------------------------------------------- vibrations


def test_hessian_is_the_second_derivative_of_the_energy(model, ion):
    found = analysis.hessian(model, ion, total_charge=1, step=2e-3)
    forces = position_gradient(
        lambda a: -model.predict(a, total_charge=1, properties=["forces"]).forces, ion, h=4e-3
    )
    assert_close(found, forces.reshape(12, 12), rtol=1e-4, at_least=5.0)


def test_infrared(model, water_systems):
    atoms = bare(water_systems["water1"][0])
    found = analysis.infrared(model, atoms, fmax=2e-3)
    assert found.frequencies.shape == (3,)
    assert found.max_force < 2e-3
    # along each mode: curvature of the energy, and change of the dipole
    relaxed = found.atoms
    masses = relaxed.get_masses()
    overlap = np.einsum("nka,mka,k->nm", found.modes, found.modes, masses)
    np.testing.assert_allclose(overlap, np.eye(3), atol=1e-10)
    for n in range(3):

        def along(t, mode=found.modes[n]):
            moved = relaxed.copy()
            moved.positions += t * mode
            return moved

        curvature = second_difference(lambda t: energy(model, along(t)), 5e-3)
        omega = np.sqrt(abs(curvature)) * 521.471 * np.sign(curvature)  # √(eV/(Å² u)) to cm⁻¹
        assert found.frequencies[n] == pytest.approx(omega, rel=2e-3, abs=1.0)
        slope = central_difference(lambda t: dipole(model, along(t)), 5e-3)
        np.testing.assert_allclose(found.dipole_derivatives[n], slope, atol=1e-6)
        assert found.intensities[n] == pytest.approx(974.88 * slope @ slope, rel=1e-3, abs=1e-3)
    assert found.intensities.max() > 1.0
    assert found.zero_point_energy == pytest.approx(
        0.5 * 1.239842e-4 * found.frequencies[found.frequencies > 0].sum(), rel=1e-5
    )
    x, y = found.spectrum(np.arange(-2e4, 3e4, 1.0), width=20.0)
    assert y.sum() * 1.0 == pytest.approx(found.intensities[found.frequencies > 0].sum(), rel=2e-3)
    peak = x[np.argmax(y)]
    assert abs(peak - found.frequencies[np.argmax(found.intensities)]) < 2.0


def test_fixed_atoms_do_not_vibrate(water_model, water_systems):
    atoms = bare(water_systems["water1"][0])
    atoms.set_constraint(FixAtoms([0]))
    found = analysis.infrared(water_model, atoms, fmax=0.01)
    assert found.frequencies.shape == (6,)
    np.testing.assert_array_equal(found.modes[:, 0], 0.0)


# ------------------------------------------------------ potential and field


def test_potential_of_gaussians(model, ion):
    """Against the interaction matrix with a narrow test charge, and the field as its gradient."""
    prediction = model.predict(ion, total_charge=1, external_field=FIELD)
    widths = model.potential_.charges.site_parameters(ion.numbers).width
    points = ion.positions[:2] + np.array([[0.3, 0.2, -0.5], [1.0, 2.0, 3.0]])
    found = analysis.electrostatic_potential(model, ion, points, total_charge=1, external_field=FIELD)
    dipoles = prediction.atomic_dipoles
    for point, value in zip(points, found.potential, strict=True):
        probed = read_structure(Atoms([*ion.numbers, 1], [*ion.positions, point]))
        provider = coulomb(probed, np.append(widths, 1e-6), dipoles=dipoles is not None)
        unknowns = np.append(prediction.charges, 0.0)
        if dipoles is not None:
            unknowns = np.concatenate([unknowns, dipoles.ravel(), np.zeros(3)])
        assert value == pytest.approx((provider.matrix() @ unknowns)[len(ion)], rel=1e-9)
    assert np.abs(found.potential).max() > 0.5

    def potential(t, axis):
        shifted = points + t * axis
        return analysis.electrostatic_potential(
            model, ion, shifted, total_charge=1, external_field=FIELD
        ).potential

    numeric = [-central_difference(lambda t, axis=axis: potential(t, axis), 1e-2) for axis in np.eye(3)]
    assert_close(found.field, np.stack(numeric, axis=1), rtol=1e-6, at_least=0.1)


def test_potential_far_away_is_that_of_charge_and_dipole(model, ion):
    r = np.array([30.0, -40.0, 20.0])
    found = analysis.electrostatic_potential(model, ion, r, total_charge=1)
    distance = np.linalg.norm(r)
    mu = dipole(model, ion, 1)
    expected = COULOMB * (1 / distance + mu @ r / distance**3)
    assert found.potential[0] == pytest.approx(expected, rel=1e-3)
    assert abs(COULOMB * mu @ r / distance**3 / expected) > 1e-4


@pytest.mark.parametrize("charges", [kqeq.QEq(), kqeq.AtomicDipoles()], ids=["qeq", "acks2 with dipoles"])
def test_potential_of_a_periodic_cell(charges, water_systems, water_training):
    model = kqeq.KQEq(small_kernel(3.5), None, charges=charges, targets=["dipole"]).fit(water_training)
    atoms = bare(water_systems["water2"][0])
    atoms.set_cell([[7.0, 0, 0], [1.0, 8.0, 0], [0.5, -0.7, 7.5]])
    atoms.pbc = True
    atoms.wrap()
    prediction = model.predict(atoms)
    widths = model.potential_.charges.site_parameters(atoms.numbers).width
    point = np.array([1.1, 2.2, 3.3])
    found = analysis.electrostatic_potential(model, atoms, [point, point + atoms.cell[1]])
    assert found.potential[0] == pytest.approx(found.potential[1], abs=1e-9)
    numbers, positions = [*atoms.numbers, 1], [*atoms.positions, point]
    probed = read_structure(Atoms(numbers, positions, cell=atoms.cell, pbc=True))
    # a width of its own shifts the potential of a neutral cell by nothing, but a point needs none
    provider = coulomb(probed, np.append(widths, 0.02), dipoles=prediction.atomic_dipoles is not None)
    unknowns = np.append(prediction.charges, 0.0)
    if prediction.atomic_dipoles is not None:
        unknowns = np.concatenate([unknowns, prediction.atomic_dipoles.ravel(), np.zeros(3)])
    expected = (provider.matrix() @ unknowns)[len(atoms)]
    assert found.potential[0] == pytest.approx(expected, abs=2e-4)
    assert abs(expected) > 0.01
    numeric = [
        -central_difference(
            lambda t, axis=axis: analysis.electrostatic_potential(model, atoms, point + t * axis).potential[
                0
            ],
            1e-2,
        )
        for axis in np.eye(3)
    ]
    assert_close(found.field[0], numeric, rtol=1e-6, at_least=0.01)
    grid = analysis.potential_grid(model, atoms, spacing=0.8)
    index = (3, 0, 7)
    there = np.array(index) / grid.values.shape @ grid.box
    expected = analysis.electrostatic_potential(model, atoms, there).potential[0]
    assert grid.values[index] == pytest.approx(expected, abs=1e-9)
    fine = analysis.potential_grid(model, atoms, spacing=0.1).values
    assert abs(fine.mean()) < 1e-9 * np.abs(fine).max()


def test_cube_file(model, ion, tmp_path):
    grid = analysis.potential_grid(model, ion, spacing=0.9, margin=2.0, total_charge=1)
    grid.to_cube(tmp_path / "potential.cube")
    with open(tmp_path / "potential.cube", encoding="utf-8") as file:
        read = read_cube(file)
    np.testing.assert_allclose(read["data"], grid.values, rtol=1e-4)
    np.testing.assert_allclose(read["atoms"].positions, ion.positions, atol=1e-4)
    index = (2, 1, 3)
    point = read["origin"] + np.array(index) @ read["spacing"].T
    there = analysis.electrostatic_potential(model, ion, point, total_charge=1)
    assert there.potential[0] == pytest.approx(grid.values[index], rel=1e-3)


# ------------------------------------------------------------------ results


def test_results_can_be_written(water_model, ion, tmp_path):
    results = {
        "polarizability": analysis.polarizability(water_model, ion, total_charge=1),
        "born": analysis.born_charges(water_model, ion, total_charge=1),
        "response": analysis.charge_response(water_model, ion, total_charge=1),
        "charges": analysis.charge_scan(water_model, ion),
        "ionization": analysis.ionization(water_model, ion),
        "field": analysis.field_scan(water_model, ion, (0.0, 0.5), total_charge=1),
        "potential": analysis.electrostatic_potential(water_model, ion, np.eye(3), total_charge=1),
    }
    for name, result in results.items():
        result.to_json(tmp_path / f"{name}.json")
        data = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
        assert data == result.to_dict()
        assert set(data["units"]) <= set(data)
        result.to_csv(tmp_path / f"{name}.csv")
        lines = (tmp_path / f"{name}.csv").read_text(encoding="utf-8").splitlines()
        rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
        assert len(rows) == len(getattr(result, result.rows))
        # every field is somewhere
        for key, value in data.items():
            assert (
                key in ("units", "numbers")
                or value is None
                or any(
                    name.startswith(key)
                    for name in [*rows[0], *(line[2:] for line in lines if line[0] == "#")]
                )
            ), key
    lines = (tmp_path / "born.csv").read_text(encoding="utf-8").splitlines()
    assert "# total_charge = 1.0 e" in lines
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert [row["element"] for row in rows] == ion.get_chemical_symbols()
    assert float(rows[1]["tensors_x_z (e)"]) == results["born"].tensors[1, 0, 2]
    assert results["field"].units()["forces"] == "eV/Å"
    with pytest.raises(AttributeError):
        results["field"].energies = 0


# ------------------------------------------------------------------- errors


def test_what_cannot_be_answered(short_range_model, dipole_model, water_model, ion, dimer):
    with pytest.raises(InputError, match="got str"):
        analysis.polarizability("model.kqeq", ion)
    with pytest.raises(ModelNotFittedError):
        analysis.born_charges(kqeq.KQEq(), ion)
    for function in (analysis.polarizability, analysis.born_charges, analysis.charge_response):
        with pytest.raises(UnsupportedError, match="has no charges"):
            function(short_range_model, ion)
    with pytest.raises(UnsupportedError, match="fitted without energies"):
        analysis.charge_scan(dipole_model, ion)
    with pytest.raises(UnsupportedError, match="fitted without energies"):
        analysis.infrared(dipole_model, ion)
    assert analysis.born_charges(dipole_model, ion).sum_rule_error < 1e-8
    with pytest.raises(InputError, match="expected one ase"):
        analysis.field_scan(water_model, [ion])
    with pytest.raises(InputError, match="direction is zero"):
        analysis.field_scan(water_model, ion, direction=(0, 0, 0))
    with pytest.raises(InputError, match="finite numbers in V/Å"):
        analysis.field_scan(water_model, ion, [np.nan])
    with pytest.raises(InputError, match="expected finite numbers"):
        analysis.charge_scan(water_model, ion, [])
    with pytest.raises(InputError, match="is one fragment"):
        analysis.dissociation_scan(water_model, ion)
    with pytest.raises(InputError, match="overlap"):
        analysis.dissociation_scan(water_model, ion, [[0, 1], [1, 2, 3]])
    with pytest.raises(InputError, match="step is 0"):
        analysis.hessian(water_model, ion, step=0)
    with pytest.raises(InputError, match="points has shape"):
        analysis.electrostatic_potential(water_model, ion, np.zeros((2, 2)))
    with pytest.raises(InputError, match="spacing"):
        analysis.potential_grid(water_model, ion, spacing=0)
    periodic = dimer.copy()
    periodic.set_cell([8, 8, 8])
    periodic.pbc = True
    with pytest.raises(UnsupportedError, match="polarizability is not defined"):
        analysis.polarizability(water_model, periodic)
    with pytest.raises(UnsupportedError):
        analysis.born_charges(water_model, periodic)
    with pytest.raises(UnsupportedError, match="cannot be pulled apart"):
        analysis.dissociation_scan(water_model, periodic)
    split = kqeq.charges.assign_fragments(dimer, [[0, 1, 2], [3, 4, 5]], [0, 0])
    with pytest.raises(InputError, match="total charge was changed"):
        analysis.charge_response(water_model, split)
