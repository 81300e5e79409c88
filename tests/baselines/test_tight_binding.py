"""Tight binding through tblite: values, derivatives, conditions, failures; needs tblite.

What is differentiated numerically is reproducible to about 1e-8 eV (accuracy 1e-3 of tblite's own thresholds), so that
differences of sixth order with steps of 1e-2 Å are good to 1e-6 eV/Å.
"""

import importlib.util
import pickle
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms

import kqeq
from checks import assert_close, central_difference, position_gradient, strain_gradient
from kqeq.baselines import ASE, AtReferenceCharge, CalculatorBaseline, TightBinding, resolve_baseline
from kqeq.baselines.charged_cells import background
from kqeq.baselines.differences import with_extras
from kqeq.baselines.store import ResultStore, Stored, result_key
from kqeq.errors import ConvergenceError, InputError, UnsupportedError
from kqeq.frames.structures import read_structure

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tblite") is None, reason='tblite is not installed: pip install "kqeq[xtb]"'
)

FIELD = np.array([0.1, -0.07, 0.12])
EXTRAS = ("polarizability", "charge_gradient", "charge_field", "charge_curvature")


@pytest.fixture(autouse=True)
def _nothing_is_kept(monkeypatch):
    monkeypatch.setenv("KQEQ_BASELINE_CACHE", "off")


def hydronium(charge=1.0):
    atoms = Atoms("OH3", [[1.0, 2, 3], [1.98, 2, 3], [0.51, 2.85, 3.2], [0.51, 1.15, 3.1]])
    atoms.info["total_charge"] = charge
    return atoms


def evaluate(atoms, *extras, method="gfn2"):
    return TightBinding(method).evaluate(read_structure(atoms), extras)


@pytest.mark.parametrize("method", ["gfn2", "gfn1", "ipea1"])
@pytest.mark.parametrize("charge", [0, 1, -1])
def test_values_are_those_of_tblite_at_this_charge(method, charge):
    from tblite.ase import TBLite

    atoms = hydronium(charge)
    name = {"gfn2": "GFN2-xTB", "gfn1": "GFN1-xTB", "ipea1": "IPEA1-xTB"}[method]
    found = evaluate(atoms, method=method)
    atoms.calc = TBLite(method=name, charge=charge, verbosity=0, accuracy=1e-3)
    assert found.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    np.testing.assert_allclose(found.gradient, -atoms.get_forces(), atol=1e-5)
    np.testing.assert_allclose(found.charges, atoms.get_charges(), atol=1e-6)
    np.testing.assert_allclose(found.dipole, atoms.get_dipole_moment(), atol=1e-6)
    assert found.charges.sum() == pytest.approx(charge, abs=1e-9)
    # the family of calculators that takes the charge from the initial charges gives the same
    given = CalculatorBaseline(TBLite(method=name, verbosity=0, accuracy=1e-3))
    assert given.evaluate(read_structure(hydronium(charge))).energy == pytest.approx(found.energy, abs=1e-6)


def test_forces_of_an_ion_in_a_field():
    atoms = hydronium()
    atoms.info["external_field"] = FIELD
    numeric = position_gradient(lambda a: evaluate(a).energy, atoms, h=1e-2)
    found = evaluate(atoms)
    assert_close(found.gradient, numeric, rtol=0.0, atol=1e-6, at_least=0.5)
    np.testing.assert_allclose(-found.gradient.sum(axis=0), FIELD, atol=1e-9)


def test_responses_to_the_field():
    atoms, structure = hydronium(), read_structure(hydronium())

    def at(t, axis):
        return TightBinding().evaluate(replace(structure, external_field=FIELD + t * np.eye(3)[axis]))

    here = TightBinding().evaluate(replace(structure, external_field=FIELD), EXTRAS)
    energies = [-central_difference(lambda t, a=a: at(t, a).energy, 0.02) for a in range(3)]
    assert_close(here.dipole, energies, rtol=0.0, atol=1e-6, at_least=1.0)
    dipoles = np.stack([central_difference(lambda t, a=a: at(t, a).dipole, 0.02) for a in range(3)], axis=1)
    assert_close(here.polarizability, dipoles, rtol=0.0, atol=2e-6, at_least=0.01)
    charges = np.stack([central_difference(lambda t, a=a: at(t, a).charges, 0.02) for a in range(3)])
    assert_close(here.charge_field, charges, rtol=0.0, atol=2e-6, at_least=0.01)
    moved = position_gradient(lambda a: evaluate(a).charges, atoms, h=1e-2)
    free = evaluate(atoms, "charge_gradient")
    assert_close(free.charge_gradient, moved, rtol=0.0, atol=2e-5, at_least=0.1)
    np.testing.assert_allclose(free.charge_gradient.sum(axis=2), 0.0, atol=1e-9)


def test_differences_are_those_of_an_exact_baseline():
    """The same differences on a baseline whose responses are known in closed form."""
    from baseline_checks import Electrons

    exact, structure = Electrons(), replace(read_structure(hydronium()), external_field=FIELD)
    expected = exact.evaluate(structure, EXTRAS)
    found = with_extras(exact.evaluate, structure, EXTRAS, exact.capabilities)
    for name, tolerance in (
        ("polarizability", 1e-9),
        ("charge_field", 1e-9),
        ("charge_curvature", 1e-9),
        ("charge_gradient", 1e-4),
        ("charge_strain", 1e-4),
    ):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=tolerance)
    cell = replace(
        structure, cell=np.diag([5.0, 5.5, 6.0]), pbc=np.ones(3, dtype=bool), external_field=np.zeros(3)
    )
    found = with_extras(exact.evaluate, cell, ("charge_gradient", "polarizability"), exact.capabilities)
    np.testing.assert_allclose(
        found.charge_strain, exact.evaluate(cell, ("charge_gradient",)).charge_strain, atol=1e-4
    )
    assert found.polarizability is None


@pytest.mark.parametrize("method", ["gfn2", "gfn1"])
def test_stress_and_background_of_a_charged_cell(method):
    atoms = hydronium()
    atoms.set_cell([[7.0, 0, 0], [1.0, 8.0, 0.3], [-0.4, 0.5, 7.5]])
    atoms.pbc = True
    numeric = strain_gradient(lambda a: evaluate(a, method=method).energy, atoms, h=1e-3)
    found = evaluate(atoms, method=method)
    # tblite cuts its sums over the lattice where they are about 1e-6
    assert_close(found.strain, numeric, rtol=5e-5, at_least=0.5)
    assert abs(background(atoms.cell.array, 1.0)) > 0.1
    assert background(atoms.cell.array, 0.0) == 0.0
    assert found.dipole is None


def test_a_charged_cell_converges_to_the_isolated_ion():
    """−2.837297 k_e Q²/2L of a cube is the leading term (Makov & Payne 1995)."""
    atoms = hydronium()
    open_energy, rest = evaluate(atoms).energy, []
    for side in (16.0, 24.0):
        atoms.set_cell(side * np.eye(3))
        atoms.pbc = True
        leading = -2.837297 * 14.399645 / (2 * side)
        rest.append(evaluate(atoms).energy - open_energy - leading)
        assert abs(rest[-1]) < 0.1 * abs(leading)
    # what is left falls as the volume grows, up to a logarithm
    assert 2.0 < rest[0] / rest[1] < 1.5**3 + 0.5


def test_what_it_cannot_do_is_refused():
    baseline, atoms = TightBinding(), hydronium()
    atoms.set_cell([10.0, 10.0, 10.0])
    atoms.pbc = True
    with pytest.raises(UnsupportedError, match="field along a periodic direction"):
        baseline.check(read_structure(atoms, external_field=FIELD))
    atoms.pbc = (True, True, False)
    with pytest.raises(UnsupportedError, match="would repeat the structure in all three"):
        baseline.evaluate(read_structure(atoms))
    with pytest.raises(UnsupportedError, match="whole total charge"):
        baseline.check(read_structure(hydronium(0.5)))
    with pytest.raises(InputError, match=r"up to number 86, not \[92\]"):
        baseline.check(read_structure(Atoms("U")))
    for wrong in (1, 3, 2.5, "x", 0):
        ion = hydronium(0)
        ion.info["multiplicity"] = wrong
        with pytest.raises(InputError, match=r"expected 2S \+ 1, an even number"):
            baseline.check(read_structure(ion))
    with pytest.raises(ConvergenceError, match="GFN2-xTB failed"):
        TightBinding(max_iterations=2).evaluate(read_structure(hydronium()))


def test_multiplicity_comes_from_the_frame_and_belongs_to_its_charge():
    atoms = Atoms("CH2", [[0, 0, 0], [0, 0.94, 0.6], [0, -0.94, 0.6]])
    low = evaluate(atoms).energy
    atoms.info["multiplicity"] = 3
    assert abs(evaluate(atoms).energy - low) > 0.1
    structure = read_structure(atoms)
    assert structure.under(1.0, np.zeros(3)).multiplicity is None
    assert structure.under(0.0, np.zeros(3)).multiplicity == 3.0


@pytest.mark.parametrize(
    "options",
    [
        {"method": "gfn3"},
        {"accuracy": 0.0},
        {"temperature": -1.0},
        {"max_iterations": 2.5},
        {"max_iterations": True},
    ],
)
def test_wrong_settings_are_refused(options):
    with pytest.raises(InputError, match="expected"):
        TightBinding(**options)


def test_names():
    assert resolve_baseline("gfn2") == TightBinding("gfn2")
    warm = TightBinding("gfn1", temperature=1000.0, max_iterations=50)
    assert warm.name == "gfn1:temperature=1000.0:max_iterations=50"
    assert resolve_baseline(warm.name) == warm
    at_zero = resolve_baseline("gfn2", charge_from="model")
    assert isinstance(at_zero, AtReferenceCharge)
    assert at_zero.name == resolve_baseline("gfn2@0").name == "gfn2@0"
    assert resolve_baseline("gfn2+zbl").name == "gfn2+zbl"
    assert resolve_baseline(["gfn2", "zbl:0.1:0.5"]).name == "gfn2+zbl:0.1:0.5"
    for name in ("gfn2:speed=3", "gfn2:accuracy=x", "gfn2@x", "gfn2+nothing", "d4"):
        with pytest.raises(InputError):
            resolve_baseline(name)


def test_a_session_starts_from_the_last_density_and_agrees():
    rng, baseline = np.random.default_rng(0), TightBinding()
    session = baseline.session()
    atoms = hydronium()
    for _ in range(4):
        atoms.positions += 0.03 * rng.normal(size=(4, 3))
        structure = read_structure(atoms)
        warm, cold = session.evaluate(structure), baseline.evaluate(structure)
        assert warm.energy == pytest.approx(cold.energy, abs=1e-7)
        np.testing.assert_allclose(warm.gradient, cold.gradient, atol=1e-6)
        assert session.evaluate(structure) is warm
    with_field = replace(structure, external_field=FIELD)
    assert session.evaluate(with_field).energy == pytest.approx(
        baseline.evaluate(with_field).energy, abs=1e-7
    )
    other = pickle.loads(pickle.dumps(session))
    assert other.evaluate(structure).energy == pytest.approx(warm.energy, abs=1e-7)


def test_results_are_kept_on_disk(tmp_path, monkeypatch):
    store, structure = ResultStore(tmp_path), read_structure(hydronium())
    baseline = TightBinding()
    first = Stored(baseline, store).evaluate(structure, ("polarizability",))
    monkeypatch.setattr(TightBinding, "evaluate", lambda *_: pytest.fail("computed again"))
    again = Stored(baseline, store).evaluate(structure)
    assert again.energy == first.energy
    np.testing.assert_array_equal(again.gradient, first.gradient)
    np.testing.assert_array_equal(again.polarizability, first.polarizability)
    # a model that keeps it neutral shares the results of neutral frames
    neutral = structure.under(0.0, np.zeros(3))
    assert result_key(AtReferenceCharge(baseline), structure) == result_key(baseline, neutral)
    keys = {
        result_key(own, other)
        for own in (baseline, TightBinding("gfn1"), TightBinding(temperature=400.0))
        for other in (
            structure,
            neutral,
            replace(structure, external_field=FIELD),
            replace(structure, multiplicity=3.0),
            replace(structure, positions=structure.positions + 1e-9),
        )
    }
    assert len(keys) == 15
    # what cannot be read counts as not there
    path = next(tmp_path.iterdir())
    path.write_bytes(b"not a database" * 100)
    assert store.get(result_key(baseline, structure)) is None
    store.put(result_key(baseline, structure), first)
    assert ResultStore(None).get("x") is None


def test_a_factory_of_calculators_serves_as_well():
    from tblite.ase import TBLite

    def make(**options):
        return TBLite(method="GFN2-xTB", verbosity=0, accuracy=1e-3, **options)

    given = ASE(make, charge="charge", multiplicity="multiplicity")
    assert given.capabilities.holds_charge and given.capabilities.dipole and given.capabilities.charges
    assert not given.capabilities.field
    for charge in (0.0, 1.0):
        structure = read_structure(hydronium(charge))
        found, expected = given.evaluate(structure), TightBinding().evaluate(structure)
        assert found.energy == pytest.approx(expected.energy, abs=1e-6)
        np.testing.assert_allclose(found.dipole, expected.dipole, atol=1e-5)
    with pytest.raises(UnsupportedError, match="is not told the field"):
        given.check(replace(structure, external_field=FIELD))
    assert given.name == "ase:make(charge=charge, multiplicity=multiplicity)"
    pickle.dumps(ASE(TBLite, charge="charge"))


def test_a_model_on_tight_binding_comes_back_by_itself(water_training, kernel, tmp_path):
    noise = {"energy": 0.05, "forces": 0.5, "dipole": 0.05}
    for options in ({}, {"charge_from": "model"}, {"charge_aware": kqeq.ChargeKernel(1)}):
        few = kernel(3.5, n_representatives=3)
        model = kqeq.KQEq(few, few, baseline="gfn2", noise=noise, max_iterations=10, **options)
        model.fit(water_training[1::3] if options else water_training)
        model.save(tmp_path / "m.kqeq")
        loaded = kqeq.load(tmp_path / "m.kqeq")
        assert loaded.baseline == "gfn2" and loaded.charge_from == model.charge_from
        atoms = hydronium()
        np.testing.assert_array_equal(loaded.predict(atoms).forces, model.predict(atoms).forces)
        if not options:
            assert model.evaluate(water_training)["dipole"].rmse < 0.05
            checked = kqeq.analysis.check_consistency(model, [atoms])
            assert checked.passed, str(checked)


def test_polarisation_that_the_baseline_exaggerates_is_told(water_training, kernel):
    noise = {"energy": 0.05, "forces": 0.5, "dipole": 0.05}
    model = kqeq.KQEq(None, kernel(4.0), charges=None, baseline="gfn2", noise=noise).fit(water_training)
    atoms = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    own = evaluate(atoms, "polarizability").polarizability
    for factor, verdict in ((0.8, "FLAGGED"), (1.3, "ok")):
        atoms.info["polarizability"] = factor * own
        found = kqeq.analysis.diagnose(model, atoms)
        (finding,) = [f for f in found.findings if f.name == "polarisation of the baseline"]
        assert finding.verdict == verdict
        assert "can only add" in finding.text


@pytest.mark.skipif(importlib.util.find_spec("dftd4") is None, reason="dftd4 is not installed")
def test_d4():
    check_dispersion("d4:pbe0")


@pytest.mark.skipif(importlib.util.find_spec("dftd3") is None, reason="dftd3 is not installed")
def test_d3():
    check_dispersion("d3:pbe0")


def check_dispersion(name):
    baseline = resolve_baseline(name)
    water = hydronium().positions[:3]
    atoms = Atoms("OH2OH2", np.concatenate([water, water + np.array([0.0, 0.0, 3.0])]))
    energy = lambda a: baseline.evaluate(read_structure(a)).energy  # noqa: E731
    found = baseline.evaluate(read_structure(atoms))
    assert_close(found.gradient, position_gradient(energy, atoms, h=1e-2), rtol=1e-4, at_least=1e-3)
    assert baseline.name == name
    atoms.set_cell([[9.0, 0, 0], [0.5, 9.0, 0], [0, 0.4, 9.5]])
    atoms.pbc = True
    found = baseline.evaluate(read_structure(atoms))
    # the library cuts its sums over the lattice sharply
    assert_close(found.strain, strain_gradient(energy, atoms), rtol=2e-2, at_least=1e-3)
    with pytest.raises(InputError, match="no parameters for the functional"):
        resolve_baseline(name.replace("pbe0", "nonsense")).check(read_structure(atoms))
