"""Models on features of a network, with a network in NumPy: fits, sums with SOAP, derivatives, files."""

import json
import warnings

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.md.verlet import VelocityVerlet

import kqeq
from checks import (
    assert_close,
    assert_forces,
    assert_same_prediction,
    bare,
    position_gradient,
    strain_gradient,
)
from conftest import small_kernel
from fake_network import FakeNetwork
from kqeq.descriptors.networks import providers
from kqeq.errors import InputError, ModelFileError, UndeterminedWarning, UnsupportedError
from kqeq.frames.structures import read_structure
from kqeq.model.config import model_from_dict
from kqeq.potential.fixed_geometry import FixedGeometry
from model_files import edit_header, members, npy, rewrite

NETWORK = FakeNetwork(cutoff=2.6)


def network_kernel(n=12, **options):
    return kqeq.NetworkKernel(NETWORK, n_representatives=n, **options)


@pytest.fixture(scope="module")
def training(water_systems):
    return [a for name in ("water1", "water2", "hydroxide") for a in water_systems[name]]


@pytest.fixture(scope="module")
def model(training):
    """Sums of SOAP and the network in both parts."""
    settings = {
        "electronegativity": [network_kernel(), small_kernel(n_representatives=12)],
        "short_range": [small_kernel(n_representatives=20), network_kernel(20, zeta=3)],
        "optimize": None,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kqeq.errors.KQEqWarning)
        return kqeq.KQEq(**settings).fit(training)


@pytest.fixture(scope="module")
def told(training):
    """The network knows the total charge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kqeq.errors.KQEqWarning)
        return kqeq.KQEq(
            network_kernel(charged=True), network_kernel(20, charged=True, zeta=3), optimize=None
        ).fit(training)


@pytest.fixture
def atoms(training):
    return bare(training[5])


def test_the_fit_learns(model, training):
    errors = model.evaluate(training)
    reference = np.concatenate([a.get_forces().ravel() for a in training])
    assert errors["forces"].rmse < 0.3 * reference.std()
    assert model.fit_report_.representatives["electronegativity 1"].keys() == {"H", "O"}


@pytest.mark.parametrize("name", ["model", "told"])
def test_forces_and_dipoles_are_derivatives(name, atoms, request):
    own = request.getfixturevalue(name)
    field = np.array([0.02, -0.01, 0.03])

    def energy(a, at=field):
        return own.predict(a, total_charge=1.0, external_field=at).energy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndeterminedWarning)
        found = own.predict(atoms, total_charge=1.0, external_field=field)
        assert_forces(found.forces, energy, atoms, h=1e-3)
        steps = 1e-3 * np.eye(3)
        slope = [(energy(atoms, field + s) - energy(atoms, field - s)) / 2e-3 for s in steps]
    assert_close(found.dipole, -np.array(slope), at_least=0.05)


def test_stress_is_a_derivative(model):
    atoms = Atoms(
        "OHH", molecule("H2O").positions, cell=[[3.4, 0, 0], [0.3, 3.2, 0], [0, 0.2, 3.6]], pbc=True
    )
    atoms.rattle(0.05, seed=0)
    found = model.predict(atoms)
    strain = strain_gradient(lambda a: model.predict(a).energy, atoms, 5e-4)
    assert_close(found.stress * atoms.get_volume(), 0.5 * (strain + strain.T), at_least=0.1)
    assert_forces(found.forces, lambda a: model.predict(a).energy, atoms, h=1e-3, at_least=0.02)


def test_born_charges_are_derivatives(model, atoms):
    found = model.predict(atoms, properties=["born_charges"]).born_charges
    expected = position_gradient(lambda a: model.predict(a).dipole, atoms, 1e-3)
    assert_close(np.asarray(found).reshape(len(atoms), 3, 3), np.moveaxis(expected, 1, 2), at_least=0.1)


def test_uncertainties_are_there(model, atoms):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndeterminedWarning)
        found = model.predict(atoms, uncertainty=True)
    assert found.energy_std > 0 and np.abs(found.forces_std).min() > 0


def test_dynamics_conserve_energy(model, atoms):
    atoms.calc = kqeq.KQEqCalculator(model)
    momenta = np.random.default_rng(0).normal(scale=0.3, size=(len(atoms), 3))
    atoms.set_momenta(momenta - momenta.mean(axis=0))
    start, energies = atoms.get_total_energy(), []
    dynamics = VelocityVerlet(atoms, 0.25 * units.fs)
    kinetic = atoms.get_kinetic_energy()
    dynamics.attach(lambda: energies.append(atoms.get_total_energy() - start))
    dynamics.run(40)
    assert np.abs(energies).max() < 0.02 * kinetic


def test_features_of_networks_are_computed_once_a_frame(training):
    class Counting(FakeNetwork):
        calls = 0

        def evaluate(self, graph):
            type(self).calls += 1
            return super().evaluate(graph)

        def record(self, graph):
            type(self).calls += 1
            return super().record(graph)

    network = Counting(seed=77, cutoff=2.6)
    frames = [bare(a) for a in training]
    for a, own in zip(frames, training, strict=True):
        a.info.update(own.info, dipole=own.get_dipole_moment())
    kqeq.KQEq(kqeq.NetworkKernel(network), None, targets=["dipole"]).fit(frames, optimize="evidence")
    assert Counting.calls == len(frames)


def test_disk_cache_tells_charge_states_apart(tmp_path, told, training):
    cached = kqeq.KQEq(**told.get_params(deep=False)).fit(
        training, optimize=None, cache=kqeq.DiskCache(tmp_path)
    )
    # the fixture's kernels, with features from disk
    assert_close(
        cached.potential_.short_range.terms[0][1][8],
        told.potential_.short_range.terms[0][1][8],
        at_least=1e-3,
    )


# ------------------------------------------------------------- total charge


def test_another_charge_is_another_set_of_features(told, model, atoms):
    structure = read_structure(atoms)
    for own in (told, model):
        fixed = FixedGeometry.at(own.potential_, structure)
        moved = fixed.under(total_charge=1.0).predict()
        atoms.info["total_charge"] = 1.0
        again = own.potential_.predict(read_structure(atoms))
        np.testing.assert_allclose(moved.energy, again.energy, rtol=0, atol=1e-9)
        np.testing.assert_allclose(moved.charges, again.charges, rtol=0, atol=1e-9)
        del atoms.info["total_charge"]


def test_derivatives_with_respect_to_a_charge_that_is_told_are_refused(told, model, atoms):
    found = told.predict(atoms)
    assert found.chemical_potential is None and found.hardness is None
    assert "told the total charge" in found.undefined["chemical_potential"]
    with pytest.raises(UnsupportedError, match="told the total charge"):
        kqeq.analysis.charge_response(told, atoms)
    assert model.predict(atoms).chemical_potential is not None


# ------------------------------------------------------------------- files


@pytest.fixture
def file(model, tmp_path):
    path = tmp_path / "model.kqeq"
    model.save(path, posterior=True)
    return path


def forgotten(monkeypatch):
    monkeypatch.setattr(providers, "_known", {})


@pytest.mark.parametrize("name", ["model", "told"])
def test_predictions_after_loading_are_equal_bit_for_bit(name, request, atoms, tmp_path):
    own = request.getfixturevalue(name)
    path = tmp_path / "own.kqeq"
    own.save(path)
    loaded = kqeq.load(path)
    assert_same_prediction(loaded.predict(atoms), own.predict(atoms))
    assert loaded.electronegativity is not None
    loaded.save(tmp_path / "again.kqeq")
    assert members(tmp_path / "again.kqeq") == members(path)


def test_a_file_names_the_network_and_refuses_another(file, monkeypatch):
    header = json.loads(members(file)["header.json"])
    stored = header["parts"]["electronegativity"]["kernels"][0]["descriptor"]
    assert stored == {"network": "fake", "sha256": NETWORK.digest, "charged": False}
    assert header["settings"]["short_range"][1]["sha256"] == NETWORK.digest
    forgotten(monkeypatch)
    with pytest.raises(InputError, match=r"features of the network fake .* which the file does not hold"):
        kqeq.load(file)
    with pytest.raises(InputError, match="fake has other weights"):
        kqeq.load(file, networks=[FakeNetwork(seed=5)])
    assert kqeq.load(file, networks=[NETWORK]).electronegativity[0].network is NETWORK


def test_an_unsound_file_never_names_a_path(file, monkeypatch):
    """A crafted file cannot have a network read from where it likes: names are looked up, never opened."""
    forgotten(monkeypatch)
    opened = []
    monkeypatch.setattr(providers, "resolve_network", lambda spec: opened.append(spec))

    def change(header):
        for part in header["parts"].values():
            for kernel in part["kernels"]:
                if "network" in kernel["descriptor"]:
                    kernel["descriptor"]["network"] = "mace:/tmp/evil.model"

    edit_header(file, change)
    with pytest.raises(InputError, match="which the file does not hold"):
        kqeq.load(file)
    assert opened == []


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(sha256=3),
        lambda d: d.update(charged="yes"),
        lambda d: d.pop("charged"),
        lambda d: d.update(network="x" * 1000),
        lambda d: d.update(more=1),
    ],
)
def test_damaged_headers_are_refused(file, change):
    edit_header(file, lambda header: change(header["parts"]["electronegativity"]["kernels"][0]["descriptor"]))
    with pytest.raises(ModelFileError):
        kqeq.load(file)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("mean", np.zeros(3)),
        ("mean", np.full(10, np.nan)),
        ("spread", np.array([0.0])),
        ("spread", np.array([-1.0])),
        ("spread", np.ones(2)),
    ],
)
def test_damaged_scales_are_refused(file, name, array):
    rewrite(file, lambda content: content.update({f"electronegativity/O/{name}.npy": npy(array)}))
    with pytest.raises(ModelFileError):
        kqeq.load(file)


def test_a_loaded_model_can_be_updated(file, training):
    loaded = kqeq.load(file)
    before = loaded.predict(bare(training[0])).energy
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kqeq.errors.KQEqWarning)
        loaded.update(training[:2])
    assert abs(loaded.predict(bare(training[0])).energy - before) < 1.0


# ---------------------------------------------------------------- settings


def test_tables_of_settings_name_networks(monkeypatch):
    monkeypatch.setitem(providers.PROVIDERS, "fake", lambda option: NETWORK)
    found = model_from_dict(
        {
            "electronegativity": {"network": "fake", "zeta": 3, "n_representatives": 40},
            "short_range": [{"r_cut": 4.5}, {"network": "fake"}],
        }
    )
    assert isinstance(found.electronegativity, kqeq.NetworkKernel)
    assert (found.electronegativity.zeta, found.electronegativity.n_representatives) == (3, 40)
    assert isinstance(found.short_range[0], kqeq.SOAPKernel)
    assert isinstance(found.short_range[1], kqeq.NetworkKernel)
    with pytest.raises(InputError, match=r"no setting .*r_cut"):
        model_from_dict({"electronegativity": {"network": "fake", "r_cut": 3.0}})
    with pytest.raises(InputError, match="network is 'foke'"):
        model_from_dict({"electronegativity": {"network": "foke"}})


def test_settings_are_those_of_scikit_learn():
    from sklearn.base import clone

    kernel = network_kernel(zeta=4)
    assert clone(kernel).get_params() == kernel.get_params()
    assert clone(kqeq.KQEq(kernel)).set_params(electronegativity__zeta=2).electronegativity.zeta == 2
    with pytest.raises(InputError, match=r"SOAPKernel\(\.\.\.\) or kqeq.NetworkKernel"):
        kqeq.KQEq("so3lr").fit(kqeq.datasets.load("ag3")[:2])
