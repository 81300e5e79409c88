"""Trained networks: where their packages are installed; otherwise these tests are skipped and say so."""

import os
import pickle
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
from ase import units
from ase.build import bulk, molecule
from ase.md.verlet import VelocityVerlet

import kqeq
from checks import assert_close, assert_forces, bare, position_gradient, rotation, strain_gradient
from kqeq.backend.pytorch import contained, quiet
from kqeq.baselines import SO3LR
from kqeq.descriptors.networks import Graph, NetworkFeatures, find_network, providers, resolve_network
from kqeq.errors import InputError
from kqeq.frames.structures import read_structure


def needs(package, extra):
    return pytest.mark.skipif(find_spec(package) is None, reason=f'needs pip install "kqeq[{extra}]"')


so3lr = needs("so3krates_torch", "so3lr")
mace = needs("mace", "mace")
chgnet = needs("chgnet", "chgnet")


@pytest.fixture(scope="session")
def mace_file(tmp_path_factory):
    """A MACE model with random weights and two layers, as users have them in files."""
    with contained() as torch, quiet():
        import mace  # noqa: F401  # first: it prepares torch for the files of e3nn
        from e3nn import o3
        from mace.modules import MACE, interaction_classes

        torch.manual_seed(0)
        model = MACE(
            r_max=3.0,
            num_bessel=4,
            num_polynomial_cutoff=5,
            max_ell=2,
            interaction_cls=interaction_classes["RealAgnosticResidualInteractionBlock"],
            interaction_cls_first=interaction_classes["RealAgnosticResidualInteractionBlock"],
            num_interactions=2,
            num_elements=2,
            hidden_irreps=o3.Irreps("8x0e + 8x1o"),
            MLP_irreps=o3.Irreps("8x0e"),
            atomic_energies=np.zeros(2),
            avg_num_neighbors=3.0,
            atomic_numbers=[1, 8],
            correlation=2,
            gate=torch.nn.functional.silu,
        )
        path = tmp_path_factory.mktemp("mace") / "random.model"
        torch.save(model.float(), path)
    return path


CASES = {
    "so3lr": (lambda: molecule("CH3CONH2"), so3lr),
    "so3lr, cell": (lambda: bulk("NaCl", "rocksalt", 4.2), so3lr),
    "mace": (lambda: molecule("H2O2"), mace),
    "chgnet": (lambda: bulk("ZnO", "wurtzite", 3.25, 5.2), chgnet),
    "chgnet, molecule": (lambda: molecule("H2O"), chgnet),
}


@pytest.fixture(params=[pytest.param(name, marks=case[1]) for name, case in CASES.items()])
def case(request):
    name = request.param.partition(",")[0]
    if name == "mace":
        name = f"mace:{request.getfixturevalue('mace_file')}"
    atoms = CASES[request.param][0]()
    other = atoms.copy()
    atoms.rattle(0.05, seed=1)
    other.rattle(0.3, seed=2)
    return atoms, NetworkFeatures(resolve_network(name)).scaled([read_structure(a) for a in (atoms, other)])


def test_derivatives(case):
    atoms, descriptor = case
    state = descriptor.evaluate(read_structure(atoms))
    gradient = np.random.default_rng(0).normal(size=state.values.shape)
    found = state.adjoint(gradient)

    def function(a):
        return float(np.sum(descriptor.evaluate(read_structure(a), derivatives=False).values * gradient))

    part = atoms[:2] if not atoms.pbc.any() else atoms

    def moved(a):
        copy = atoms.copy()
        copy.positions[: len(a)] = a.positions
        return function(copy)

    assert_close(found.positions[: len(part)], position_gradient(moved, part, 2e-4), at_least=1e-3)
    if atoms.pbc.all():
        assert_close(found.strain, strain_gradient(function, atoms, 5e-5), at_least=1e-3)
    first, second = state.site_jacobian(gradient), state.site_jacobian(gradient)
    assert_close(second.positions.toarray(), first.positions.toarray(), rtol=1e-10, at_least=1e-3)
    assert_close(first.strain.sum(axis=1).reshape(3, 3), found.strain, rtol=1e-10, at_least=1e-3)


def test_invariance(case):
    atoms, descriptor = case
    values = descriptor.evaluate(read_structure(atoms)).values
    order = np.random.default_rng(0).permutation(len(atoms))
    turned = atoms[order]
    matrix = rotation(0).T
    turned.set_cell(turned.cell.array @ matrix)
    turned.positions = turned.positions @ matrix + 1.0
    np.testing.assert_allclose(
        descriptor.evaluate(read_structure(turned)).values, values[order], rtol=0, atol=1e-9
    )


def test_what_packages_change_is_put_back(case):
    import torch

    before = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), dict(os.environ)
    atoms, descriptor = case
    copy = pickle.loads(pickle.dumps(descriptor))  # loads its weights anew
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = copy.evaluate(read_structure(atoms))
        state.site_jacobian(np.ones(state.values.shape))
    assert (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        dict(os.environ),
    ) == before
    np.testing.assert_array_equal(state.values, descriptor.evaluate(read_structure(atoms)).values)


@so3lr
@pytest.mark.parametrize("charge", [0, 1])
def test_so3lr_features_are_those_of_its_calculator(charge):
    from so3krates_torch.calculator.so3 import SO3LRCalculator

    atoms = molecule("CH3CONH2")
    with contained():
        calculator = SO3LRCalculator(default_dtype="float64")
        atoms.info.update(charge=charge, total_charge=charge)
        expected = calculator.get_descriptors(atoms)["invariant_features"][0]
    network = resolve_network("so3lr")
    found = network.evaluate(Graph.of(read_structure(atoms), network.cutoff, charged=True))
    assert_close(found, expected, rtol=1e-12, at_least=1.0)


@so3lr
def test_so3lr_as_baseline_is_its_calculator():
    from so3krates_torch.calculator.so3 import SO3LRCalculator

    for atoms in (molecule("CH3CONH2"), bulk("NaCl", "rocksalt", 5.4)):
        atoms.rattle(0.05, seed=0)
        found = SO3LR().evaluate(read_structure(atoms))
        with contained():
            atoms.calc = SO3LRCalculator(default_dtype="float64", compute_stress=True)
            energy, forces = atoms.get_potential_energy(), atoms.get_forces()
            stress = atoms.get_stress(voigt=False) if atoms.pbc.all() else None
            dipole = atoms.calc.results["dipole"]
        assert abs(found.energy - energy) < 1e-9
        assert_close(-found.gradient, forces, rtol=1e-9, at_least=0.01)
        if stress is None:
            assert_close(found.dipole, dipole, rtol=1e-9, at_least=0.1)
        else:
            strain = 0.5 * (found.strain + found.strain.T)
            assert_close(strain / atoms.get_volume(), stress, rtol=1e-9, at_least=1e-3)


@so3lr
def test_so3lr_as_baseline_in_a_field():
    atoms = molecule("H2O")
    field = np.array([0.02, -0.01, 0.03])

    def at(a, f):
        copy = bare(a)
        copy.info.update(total_charge=1.0, external_field=f)
        return SO3LR().evaluate(read_structure(copy))

    found = at(atoms, field)
    assert_forces(-found.gradient, lambda a: at(a, field).energy, atoms, h=1e-3)
    slope = [(at(atoms, field + s).energy - at(atoms, field - s).energy) / 0.02 for s in 0.01 * np.eye(3)]
    assert_close(found.dipole, -np.array(slope), at_least=0.01)
    assert abs(found.charges.sum() - 1.0) < 1e-10


@so3lr
def test_so3lr_below_a_model(water_training):
    frames = [a for a in water_training if a.info["total_charge"] == 0]
    model = kqeq.KQEq(
        kqeq.NetworkKernel("so3lr", n_representatives=10),
        kqeq.NetworkKernel("so3lr", n_representatives=20),
        baseline="so3lr",
        optimize=None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kqeq.errors.KQEqWarning)
        model.fit(frames)
    atoms = bare(frames[0])
    assert_forces(
        model.predict(atoms).forces, lambda a: model.predict(a).energy, atoms, h=1e-3, at_least=0.05
    )


@chgnet
def test_chgnet_features_are_those_of_its_package():
    from chgnet.model import CHGNet
    from pymatgen.io.ase import AseAtomsAdaptor

    atoms = bulk("ZnO", "wurtzite", 3.25, 5.2)
    atoms.rattle(0.1, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = CHGNet.load(verbose=False).predict_structure(
            AseAtomsAdaptor.get_structure(atoms), return_atom_feas=True, return_crystal_feas=True
        )
    network = resolve_network("chgnet")
    found = network.evaluate(Graph.of(read_structure(atoms), network.cutoff))
    assert_close(found[:, :64], expected["atom_fea"], rtol=1e-5, at_least=1.0)  # single precision there
    assert_close(found[:, 64:].sum(axis=0), expected["crystal_fea"], rtol=1e-5, at_least=1.0)


@chgnet
def test_versions_of_chgnet():
    assert resolve_network("chgnet").name == "chgnet:0.3.0"
    assert resolve_network("chgnet:r2scan").digest != resolve_network("chgnet").digest
    with pytest.raises(InputError, match=r"the package has the versions 0\.2\.0, 0\.3\.0, r2scan"):
        resolve_network("chgnet:9")


@mace
def test_a_mace_model_end_to_end(mace_file, water_systems, tmp_path, monkeypatch):
    """Fit, file, calculator, stress and dynamics on the features of a network that nobody trained."""
    frames = [a for name in ("water1", "water2") for a in water_systems[name]]
    model = kqeq.KQEq(
        kqeq.NetworkKernel(f"mace:{mace_file}", n_representatives=10),
        kqeq.NetworkKernel(f"mace:{mace_file}", n_representatives=30),
        optimize=None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kqeq.errors.KQEqWarning)
        model.fit(frames)
    reference = np.concatenate([a.get_forces().ravel() for a in frames])
    assert model.evaluate(frames)["forces"].rmse < 0.3 * reference.std()
    model.save(tmp_path / "model.kqeq")

    monkeypatch.setattr(providers, "_known", {})
    with pytest.raises(InputError, match=r"mace:random\.model .*does not hold"):
        kqeq.load(tmp_path / "model.kqeq")
    monkeypatch.setenv(providers.FOLDERS, str(mace_file.parent))
    loaded = kqeq.load(tmp_path / "model.kqeq")
    atoms = bare(frames[0])
    assert loaded.predict(atoms).energy == model.predict(atoms).energy
    other = tmp_path / "random.model"
    other.write_bytes(mace_file.read_bytes() + b"\0")
    monkeypatch.setattr(providers, "_known", {})
    monkeypatch.setenv(providers.FOLDERS, str(tmp_path))
    with pytest.raises(InputError, match="has other weights"):
        kqeq.load(tmp_path / "model.kqeq")
    network = resolve_network(f"mace:{mace_file}")
    assert find_network(network.name, network.digest) is network

    cell = bare(atoms)
    cell.set_cell([[3.6, 0, 0], [0.2, 3.5, 0], [0, 0.3, 3.4]])
    cell.pbc = True
    strain = strain_gradient(lambda a: loaded.predict(a).energy, cell, 2e-4)
    assert_close(loaded.predict(cell).stress * cell.get_volume(), 0.5 * (strain + strain.T), at_least=0.1)

    atoms.calc = kqeq.KQEqCalculator(loaded)
    assert_forces(atoms.get_forces(), lambda a: loaded.predict(a).energy, bare(atoms), h=5e-4, at_least=0.05)
    momenta = np.random.default_rng(0).normal(scale=0.3, size=(len(atoms), 3))
    atoms.set_momenta(momenta - momenta.mean(axis=0))
    start, energies = atoms.get_total_energy(), []
    dynamics = VelocityVerlet(atoms, 0.25 * units.fs)
    dynamics.attach(lambda: energies.append(atoms.get_total_energy() - start))
    dynamics.run(200)
    assert np.abs(energies).max() < 0.02 * atoms.get_kinetic_energy() + 2e-3
    assert abs(np.mean(energies[-50:]) - np.mean(energies[:50])) < 1e-3  # no drift


@mace
def test_files_that_are_no_mace_model(tmp_path):
    with pytest.raises(InputError, match="needs the file of a model"):
        resolve_network("mace")
    with pytest.raises(InputError, match=r"cannot read the network mace:none\.model"):
        resolve_network(f"mace:{tmp_path}/none.model")
    with contained() as torch:
        torch.save(torch.nn.Linear(2, 2), tmp_path / "linear.model")
    with pytest.raises(InputError, match="holds no MACE model but a Linear"):
        resolve_network(f"mace:{tmp_path}/linear.model").evaluate(None)


@mace
def test_a_network_whose_file_changes_is_refused(mace_file, tmp_path):
    path = tmp_path / "own.model"
    path.write_bytes(mace_file.read_bytes())
    network = resolve_network(f"mace:{path}")
    path.write_bytes(b"something else")
    with pytest.raises(InputError, match="has changed; its weights are not those of before"):
        network.evaluate(None)
