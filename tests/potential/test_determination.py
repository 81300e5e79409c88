"""What data do not determine, on labels whose truth is known."""

import json
import warnings
import zipfile

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

import kqeq
from conftest import small_kernel
from kqeq import KQEq, KQEqCalculator, analysis
from kqeq.analysis.findings import FLAGGED, OK
from kqeq.elements import valence_electrons
from kqeq.errors import ModelFileError, UndeterminedWarning
from kqeq.potential.determination import Determination
from model_files import members, npy

NUMBERS = {1: -13.0, 6: -150.0, 7: -270.0, 8: -430.0}
"""Energies of atoms, eV, about those of norm-conserving pseudopotentials."""

WATER = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
H2 = Atoms("H2", [[0, 0, 0], [0.74, 0, 0]])
O2 = Atoms("O2", [[0, 0, 0], [1.21, 0, 0]])
AMMONIA = Atoms("NH3", [[0, 0, 0.1], [0.94, 0, -0.25], [-0.47, 0.81, -0.25], [-0.47, -0.81, -0.25]])
AMMONIUM = Atoms("NH4", 0.6 * np.array([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]))

SHORT = {"electronegativity": None, "charges": None}


def label(atoms, charge=0, scale=None):
    """Atoms, bonds of 2 eV that stretch, and a total charge that costs 8 Q + 3 Q²."""
    scale = NUMBERS if scale is None else scale
    energy = sum(scale[int(z)] for z in atoms.numbers) + 8.0 * charge + 3.0 * charge**2
    forces = np.zeros((len(atoms), 3))
    for i in range(len(atoms)):
        for j in range(i):
            arm = atoms.positions[i] - atoms.positions[j]
            r = np.linalg.norm(arm)
            bond = -2.0 * np.exp(-(((r - 1.0) / 0.5) ** 2))
            energy += bond
            force = 2.0 * (r - 1.0) / 0.25 * bond * arm / r
            forces[i] += force
            forces[j] -= force
    found = Atoms(atoms.numbers, atoms.positions, info={"total_charge": charge})
    found.calc = SinglePointCalculator(found, energy=energy, forces=forces)
    return found


def frames(atoms, count=5, charge=0, scale=None, seed=0):
    rng = np.random.default_rng(seed)
    moved = (
        Atoms(atoms.numbers, atoms.positions + rng.normal(0.0, 0.04, atoms.positions.shape))
        for _ in range(count)
    )
    return [label(a, charge, scale) for a in moved]


def fit(training, **options):
    settings = {"electronegativity": small_kernel(3.0), "short_range": small_kernel(3.0), **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return KQEq(**settings).fit(training)


def asked(function, *args, **options):
    """What a call gives, and the warnings of the kind that matters."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = function(*args, **options)
    return found, [str(w.message) for w in caught if w.category is UndeterminedWarning]


# --------------------------------------------------------------- the algebra


def gaussian(prior, rows):
    """Posterior of (m, e) by definition, from labels with unit noise."""
    return np.linalg.inv(np.linalg.inv(prior) + rows.T @ rows)


def test_a_broader_prior_is_that_of_bayes():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4, 4))
    prior, rows, spread = a @ a.T, rng.normal(size=(2, 4)), np.diag([3.0, 0.0, 1.0, 0.0])
    found = Determination((1, 8), gaussian(prior, rows), prior).with_spread(spread)
    np.testing.assert_allclose(found.prior, prior + spread, rtol=1e-8)
    np.testing.assert_allclose(found.covariance, gaussian(prior + spread, rows), rtol=1e-7, atol=1e-9)
    assert np.abs(found.covariance - gaussian(prior, rows)).max() > 0.1


def test_what_counts_as_determined():
    prior = np.diag([25.0, 25.0, 100.0, 100.0])
    water = np.array([0.0, 0.0, 2.0, 1.0])  # energies of water only, within 1 meV
    found = Determination((1, 8), gaussian(prior, 1e3 * water[None]), prior)
    one, two = np.array([1, 1, 8]), np.array([1, 1, 1, 1, 8, 8])
    for numbers in (one, two):
        row = found.row(numbers, np.zeros(len(numbers)), energy=True)
        assert found.std(row) == pytest.approx(1e-3 * len(numbers) / 3, rel=1e-3)
        assert found.undetermined(row) is None
    row = found.row(np.array([1, 1]), np.zeros(2), energy=True)
    assert found.undetermined(row) == found.std(row) == pytest.approx(20 / np.sqrt(5), rel=1e-3)
    # hydroxide: less than half of its prior, and still 4.5 eV of nothing but prior
    row = found.row(np.array([8, 1]), np.zeros(2), energy=True)
    assert found.std(row) < 0.5 * found.prior_std(row)
    assert found.undetermined(row) == pytest.approx(10 / np.sqrt(5), rel=1e-3)
    # a charge on it
    row = found.row(one, np.array([0.2, 0.2, 0.6]), energy=True)
    assert found.undetermined(row) == pytest.approx(5 * np.hypot(0.4, 0.6), rel=1e-2)


def test_element_means_are_those_at_the_representatives():
    model = fit(frames(WATER))
    known, potential = model.posterior_, model.potential_
    parameters = known.parameters
    shift = known.parameters.element_means() @ known.u
    for part, model_of, offsets, start in (
        (parameters.electronegativity, potential.electronegativity, potential.electronegativity.offsets, 0),
        (parameters.short_range, potential.short_range, potential.energy_offsets, 2),
    ):
        for k, z in enumerate(parameters.species):
            feature_map, coefficients = model_of.terms[0]
            rows = feature_map.representatives[z].toarray()
            kernel = np.clip(rows @ rows.T, 0, None) ** feature_map.zeta
            values = kernel @ coefficients[z] + offsets[z]
            assert shift[start + k] + part.offset_mean[z] == pytest.approx(values.mean(), rel=1e-6, abs=1e-5)
    inverse = np.linalg.inv(known.lower @ known.lower.T)
    means = parameters.element_means()
    np.testing.assert_allclose(
        known.determination.covariance, means @ inverse @ means.T, rtol=1e-5, atol=1e-5
    )


# ------------------------------------------------------------ element energies

SCALES = {
    "pseudopotential": NUMBERS,
    "tight binding": {1: -10.7, 6: -48.8, 7: -71.0, 8: -102.6},
    "all electrons": {1: -13.6, 6: -1029.0, 7: -1484.0, 8: -2042.0},
    "atoms": dict.fromkeys(NUMBERS, 0.0),
}


@pytest.mark.parametrize("scale", SCALES)
def test_one_composition_leaves_element_energies_open(scale):
    values = SCALES[scale]
    model = fit(frames(WATER, scale=values), **SHORT)
    assert not asked(model.predict, WATER)[1]
    for other in (H2, O2, WATER[:2]):
        p, said = asked(model.predict, other, uncertainty=True, properties=["energy"])
        assert abs(p.energy - label(other, scale=values).get_potential_energy()) < 3.0 * p.energy_std
        (text,) = said
        assert f"standard deviation {p.undetermined['energy']:.2g} eV" in text
        assert p.energy_std == pytest.approx(p.undetermined["energy"], rel=0.3)


def test_every_door_warns(tmp_path):
    model = fit(frames(WATER), **SHORT)
    for own in (H2, O2):
        atoms = own.copy()
        atoms.calc = KQEqCalculator(model)
        assert len(asked(atoms.get_potential_energy)[1]) == 1
        atoms.positions[0, 0] += 0.01
        assert not asked(atoms.get_potential_energy)[1]  # once
    assert asked(analysis.optimize, model, H2, max_steps=1)[1]
    assert asked(model.evaluate, [label(H2)])[1]
    found, said = asked(model.predict, [WATER, H2, O2])
    assert len(said) == 1 and "structure 2; in all 2 of 3 structures" in said[0]
    assert not found[0].undetermined and found[1].undetermined
    findings = asked(analysis.diagnose, model, H2)[0].findings
    (finding,) = [f for f in findings if "determine" in f.name]
    assert finding.verdict == FLAGGED and finding.value == pytest.approx(found[1].undetermined["energy"])
    (finding,) = [f for f in asked(analysis.diagnose, model, WATER)[0].findings if "determine" in f.name]
    assert finding.verdict == OK


def test_more_compositions_settle_it():
    model = fit(frames(WATER), **SHORT)
    assert asked(model.predict, H2)[1]
    model.update(frames(H2, seed=3))
    p, said = asked(model.predict, H2)
    assert not said and not p.undetermined
    assert p.energy == pytest.approx(label(H2).get_potential_energy(), abs=0.2)


def test_given_element_energies_leave_binding_open():
    e0 = {"H": NUMBERS[1], "O": NUMBERS[8]}
    model = fit(frames(WATER), **SHORT, e0=e0)
    assert not asked(model.predict, WATER)[1]
    for other in (H2, O2):
        p, _ = asked(model.predict, other, uncertainty=True)
        assert p.undetermined["energy"] < 10.0
        assert abs(p.energy - label(other).get_potential_energy()) < 3.0 * p.energy_std


def test_a_baseline_does_not_change_what_is_open():
    model = fit(frames(WATER), **SHORT, baseline="zbl")
    assert not asked(model.predict, WATER)[1]
    assert asked(model.predict, H2)[1]


def test_forces_alone_fix_no_energy():
    model = fit(frames(WATER), **SHORT, targets=["forces"])
    assert asked(model.predict, WATER)[1]


# -------------------------------------------------------------------- charge


@pytest.mark.parametrize(
    "options", [{}, {"charge_aware": kqeq.ChargeKernel()}], ids=["plain", "charge-aware"]
)
def test_charge_that_goes_along_with_composition(options):
    """Ammonia and ammonium: what an added proton costs, or an electron taken, is not in the data."""
    model = fit(frames(AMMONIA) + frames(AMMONIUM, charge=1), **options)
    assert model.potential_.training_charges == (0.0, 1.0)
    for atoms, charge in ((AMMONIA, 0), (AMMONIUM, 1)):
        assert not asked(model.predict, atoms, total_charge=charge)[1]
    p, said = asked(model.predict, AMMONIA, total_charge=1, uncertainty=True)
    assert len(said) == 1 and "H3N at charge 1 e" in said[0] and "elements and the charge" in said[0]
    assert abs(p.energy - label(AMMONIA, 1).get_potential_energy()) < 3.0 * p.energy_std
    found = asked(analysis.ionization, model, AMMONIA)[0]
    assert not found.determined and 2.0 < found.difference_std < 10.0
    response = asked(analysis.charge_response, model, AMMONIA)[0]
    assert not response.determined
    assert response.chemical_potential_std == pytest.approx(found.difference_std, rel=0.05)
    assert p.undetermined["chemical_potential"] == pytest.approx(found.difference_std, rel=0.05)


def test_one_geometry_at_two_charges_determines_it():
    model = fit(frames(AMMONIA) + frames(AMMONIA, charge=1))
    for charge in (0, 1, 0.5):
        assert not asked(model.predict, AMMONIA, total_charge=charge)[1]
    found, said = asked(analysis.ionization, model, AMMONIA)
    assert found.determined and found.difference_std < 0.3 and not said
    assert found.vertical_ionization_energy == pytest.approx(11.0, abs=0.1)


# --------------------------------------------------------------------- files


def write(path, content):
    """Without the digest: as version 0.1 wrote files."""
    header = json.loads(content["header.json"])
    header.pop("digest", None)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**content, "header.json": json.dumps(header).encode()}.items():
            archive.writestr(name, data)


def test_files_keep_it(tmp_path):
    model = fit(frames(WATER))
    model.save(tmp_path / "m.kqeq")
    loaded = kqeq.load(tmp_path / "m.kqeq")
    assert loaded.posterior_ is None
    for atoms in (WATER, H2):
        one, two = (asked(own.predict, atoms) for own in (model, loaded))
        assert one[0].undetermined == two[0].undetermined and one[1] == two[1]
    assert two[1]
    model.save(tmp_path / "whole.kqeq", posterior=True)
    whole = kqeq.load(tmp_path / "whole.kqeq")
    one, two = (asked(own.predict, H2, uncertainty=True)[0] for own in (model, whole))
    assert one.energy_std == pytest.approx(two.energy_std, rel=1e-12)


def test_files_without_it_follow_the_old_rule(tmp_path):
    model = fit(frames(WATER))
    model.save(tmp_path / "m.kqeq")
    content = members(tmp_path / "m.kqeq")
    write(tmp_path / "old.kqeq", {k: v for k, v in content.items() if not k.startswith("determination/")})
    old = kqeq.load(tmp_path / "old.kqeq")
    assert old.potential_.determination is None
    assert not asked(old.predict, H2)[1]
    assert "every training frame had total charge 0 e" in asked(old.predict, H2, total_charge=1)[1][0]
    for wrong in (np.eye(3), -np.eye(4), np.full((4, 4), np.nan), np.eye(4, dtype=complex)):
        write(tmp_path / "bad.kqeq", {**content, "determination/covariance.npy": npy(wrong)})
        with pytest.raises(ModelFileError, match="determination/covariance"):
            kqeq.load(tmp_path / "bad.kqeq")


def test_valence_electrons():
    symbols = {
        1: 1,
        2: 2,
        6: 4,
        8: 6,
        10: 8,
        11: 1,
        17: 7,
        26: 8,
        30: 12,
        31: 3,
        35: 7,
        47: 11,
        79: 11,
        82: 4,
    }
    assert valence_electrons(list(symbols)).tolist() == list(symbols.values())


@pytest.mark.parametrize(
    "options",
    [{**SHORT, "e0": {"H": NUMBERS[1], "O": NUMBERS[8]}}, {"charge_aware": kqeq.ChargeKernel()}],
    ids=["e0 given", "charge-aware"],
)
def test_more_compositions_settle_other_models_too(options):
    model = fit(frames(WATER), **options)
    assert asked(model.predict, H2)[1]
    model.update(frames(H2, seed=3))
    assert not asked(model.predict, H2)[1]
    assert not asked(model.predict, WATER)[1]


def test_compositions_that_were_fitted_are_determined_however_flexible_kernels_are(tmp_path):
    """Kernels that tell the environments of one composition from those of another leave element means open."""
    fitted = (WATER, H2, O2)
    training = [a for atoms in fitted for a in frames(atoms, count=4)]
    flexible = {"short_range": kqeq.SOAPKernel(3.0, n_representatives=8, delta=20.0, zeta=4)}
    model = fit(training, **SHORT | flexible)
    model.save(tmp_path / "m.kqeq")
    means, known = model.posterior_.determination, model.potential_.determination
    assert known is not None
    for atoms in fitted:
        row = known.row(atoms.numbers, None, energy=True)
        assert means.std(row) > 0.5
        assert known.std(row) < 0.3
        assert (
            not asked(model.predict, atoms)[1] and not asked(kqeq.load(tmp_path / "m.kqeq").predict, atoms)[1]
        )
    assert asked(fit(training[:4], **SHORT | flexible).predict, O2)[1]
