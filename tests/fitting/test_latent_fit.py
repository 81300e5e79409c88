"""Fits with latent charges: starts without dipoles, files, calculator, uncertainties, update, defaults."""

import numpy as np
import pytest

import kqeq
from kqeq.analysis import diagnose
from kqeq.charges.latent import typical_charges
from kqeq.errors import UndeterminedWarning
from kqeq.fitting.charge_start import choose_start, needs_start
from kqeq.fitting.problem import FitProblem

KERNEL = kqeq.SOAPKernel(r_cut=3.0, n_max=4, l_max=3, sigma=0.4, zeta=2, n_representatives=12)
NOISE = {"energy": 5e-3, "forces": 0.1, "dipole": 0.02}


@pytest.fixture(scope="module")
def frames():
    train, test = kqeq.datasets.split("water")
    small = [a for a in train if not a.info["total_charge"] and len(a) in (3, 6)]
    return small[:16], [a for a in test if not a.info["total_charge"] and len(a) == 6][:4]


@pytest.fixture(scope="module")
def blind(frames):
    """Fitted to energies and forces alone."""
    return kqeq.KQEq(
        electronegativity=KERNEL,
        short_range=KERNEL,
        charges=kqeq.LatentCharges(),
        targets=["energy", "forces"],
        noise=NOISE,
        optimize=None,
    ).fit(frames[0])


@pytest.fixture(scope="module")
def response(frames):
    """Learned reference charges, fitted to everything."""
    return kqeq.KQEq(
        electronegativity=KERNEL,
        short_range=KERNEL,
        charges=kqeq.AtomicDipoles(kqeq.ACKS2(reference_charges="kernel")),
        noise=NOISE,
        optimize=None,
    ).fit(frames[0])


# starts -------------------------------------------------------------------------------------------


def test_energies_and_forces_alone_give_charges_of_the_right_sign(blind, frames):
    note = next(n for n in blind.fit_report_.notes if "energies and forces alone" in n)
    assert "electronegative elements were taken as negative" in note and "bonds" in note
    prediction = blind.predict(frames[1][0])
    oxygen = frames[1][0].numbers == 8
    assert (prediction.charges[oxygen] < -0.1).all() and (prediction.charges[~oxygen] > 0.05).all()
    assert abs(prediction.charges.sum()) < 1e-10
    label = np.array([a.get_dipole_moment() for a in frames[1]])
    found = np.array([blind.predict(a).dipole for a in frames[1]])
    assert np.sum(label * found) > 0.3 * np.sum(label**2)  # not zero, and not turned


@pytest.mark.parametrize("charges", [kqeq.QEq(), kqeq.LatentCharges()], ids=["qeq", "latent"])
def test_a_start_is_chosen_with_electronegative_elements_negative(charges, frames):
    from kqeq.fitting.fit import fit_potential
    from kqeq.fitting.settings import FitSettings
    from kqeq.frames.labels import read_frame

    pairs = [read_frame(a) for a in frames[0]]
    settings = FitSettings(
        (KERNEL,),
        (KERNEL,),
        charges,
        noise=NOISE | {"stress": 1e-3},
        targets=("energy", "forces"),
        max_iterations=1,
    )
    with pytest.warns(kqeq.errors.KQEqWarning, match="without converging"):
        result = fit_potential(pairs, settings)
    assert needs_start(result.frames, result.parameters)
    rough = FitProblem(result.frames, result.parameters, result.noise, linear=False)
    start = choose_start(rough, "auto")
    part = result.parameters.electronegativity
    values = part.offsets_at(start.offsets)
    assert (values[8] < values[1]) == (charges.quantity == "charge")  # charges, or electronegativities
    assert start.note in result.report.notes


def test_dipoles_need_no_start(response):
    assert not any("energies and forces alone" in note for note in response.fit_report_.notes)


def test_prior_means_are_what_bonds_suggest(blind, frames):
    from kqeq.frames.structures import read_structure

    expected = typical_charges([read_structure(a) for a in frames[0]], (1, 8))
    assert blind.posterior_.parameters.electronegativity.offset_mean == expected


# predictions --------------------------------------------------------------------------------------


def numeric_forces(model, atoms, step=1e-3):
    forces = np.zeros((len(atoms), 3))
    for k in range(len(atoms)):
        for a in range(3):
            ends = []
            for h in (step, -step, 2 * step, -2 * step):
                moved = atoms.copy()
                moved.positions[k, a] += h
                ends.append(model.predict(moved, properties=("energy",)).energy)
            forces[k, a] = -(8 * (ends[0] - ends[1]) - (ends[2] - ends[3])) / (12 * step)
    return forces


@pytest.mark.parametrize("name", ["blind", "response"])
def test_forces_of_a_whole_model(name, request, frames):
    model = request.getfixturevalue(name)
    atoms = frames[1][0]
    found = model.predict(atoms).forces
    expected = numeric_forces(model, atoms)
    # the descriptor ends sharply: a neighbour that crosses its end costs 1e-4 of the row (docs/theory.md)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert model.predict(atoms).electronegativity is None


@pytest.mark.parametrize("name", ["blind", "response"])
def test_files_keep_everything(name, request, frames, tmp_path):
    model = request.getfixturevalue(name)
    model.save(tmp_path / "m.kqeq", posterior=True)
    copy = kqeq.load(tmp_path / "m.kqeq")
    first, second = (m.predict(frames[1][0], uncertainty=True) for m in (model, copy))
    assert first.energy == pytest.approx(second.energy, rel=1e-14)
    assert first.energy_std == pytest.approx(second.energy_std, rel=1e-12)
    np.testing.assert_allclose(first.charges, second.charges, rtol=0, atol=1e-13)
    np.testing.assert_allclose(first.dipole_std, second.dipole_std, rtol=1e-12)
    assert first.forces_std.min() > 0.0 and first.dipole_std.min() > 0.0
    assert copy.charges.to_dict() == model.charges.to_dict()


def test_calculator_and_stress(blind, frames):
    atoms = frames[1][0].copy()
    atoms.set_cell([[8.0, 0.3, 0.0], [0.0, 7.5, 0.4], [0.5, 0.0, 8.2]])
    atoms.pbc = True
    atoms.calc = kqeq.KQEqCalculator(blind)
    stress = atoms.get_stress(voigt=False)
    numeric = np.zeros((3, 3))
    for a in range(3):
        for b in range(3):
            ends = []
            for h in (1e-3, -1e-3):
                strain = np.eye(3)
                strain[a, b] += 0.5 * h
                strain[b, a] += 0.5 * h
                moved = atoms.copy()
                moved.set_cell(atoms.cell.array @ strain, scale_atoms=True)
                ends.append(blind.predict(moved, properties=("energy",)).energy)
            numeric[a, b] = (ends[0] - ends[1]) / 2e-3 / atoms.get_volume()
    assert np.abs(numeric).max() > 1e-4
    np.testing.assert_allclose(stress, numeric, atol=2e-4 * np.abs(numeric).max())


def test_uncertainty_of_dipoles_is_larger_without_dipole_labels(blind, response, frames):
    stds = [m.predict(frames[1][0], uncertainty=True).dipole_std.mean() for m in (blind, response)]
    assert stds[0] > stds[1] > 0.0


def test_another_charge_state_is_a_warning(blind, frames):
    ion = frames[1][0].copy()
    ion.info.clear()
    with pytest.warns(UndeterminedWarning, match="functions of the environment"):
        blind.predict(ion, total_charge=1)


def test_diagnosis_says_what_such_charges_cannot_do(blind, response, frames):
    for model, words in ((blind, "do not move in a field"), (response, "flow along bonds")):
        findings = diagnose(model, frames[1][0]).findings
        found = next(f for f in findings if f.name == "response of the charges")
        assert words in found.text and "charge states" in found.remedy


def test_updates_go_on_from_the_charges(blind, frames):
    from sklearn.base import clone

    model = clone(blind)
    model.fit(frames[0][:12], optimize=None)
    before = model.evaluate(frames[1])["forces"].rmse
    model.update(frames[0][12:])
    assert model.evaluate(frames[1])["forces"].rmse < 1.5 * before
    oxygen = frames[1][0].numbers == 8
    assert (model.predict(frames[1][0]).charges[oxygen] < 0.0).all()


@pytest.mark.parametrize("optimize", ["left-out", "evidence"])
def test_settings_are_learned_as_with_other_models(optimize, frames):
    model = kqeq.KQEq(
        electronegativity=KERNEL, short_range=KERNEL, charges=kqeq.LatentCharges(), optimize=optimize
    ).fit(frames[0])
    assert model.fit_report_.converged
    assert model.evaluate(frames[1])["dipole"].rmse < 0.1
