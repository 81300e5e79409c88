"""Hardness, polarizability and softness that depend on the environment: columns, forces, fits, files, uncertainty."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone

import kqeq
from checks import (
    assert_close,
    assert_forces,
    assert_same_prediction,
    central_difference,
    position_gradient,
    rotation,
    strain_gradient,
)
from conftest import small_kernel
from kqeq import ACKS2, AtomicDipoles, KQEq, QEq
from kqeq.charges.base import SITE_KINDS
from kqeq.charges.parameters import ENVIRONMENT_SPREADS
from kqeq.errors import InputError, UnsupportedError
from kqeq.fitting.learning import learn_from_polarizabilities
from kqeq.fitting.parameters import STEP_LIMIT
from kqeq.fitting.rows.blocks import BLOCKS, Linearisation, frame_rows
from kqeq.fitting.rows.features import TrainingFrame, compute_features, compute_many
from kqeq.fitting.settings import DEFAULT_NOISE
from kqeq.frames.labels import Labels
from kqeq.frames.structures import read_structure
from kqeq.model.config import model_from_dict
from kqeq.uncertainty.posterior import Uncertain
from label_rows import labelled, synthetic
from systems import CONDITIONS, FIELD, cell, molecule

pytestmark = pytest.mark.filterwarnings("ignore::kqeq.errors.RepresentativesWarning")

KERNEL, LEARN = "kernel", "learn"
STDS = ("energy_std", "forces_std", "charges_std", "dipole_std")
MODELS = {
    "QEq": QEq(KERNEL),
    "ACKS2": ACKS2(KERNEL, KERNEL),
    "dipoles": AtomicDipoles(ACKS2(KERNEL, KERNEL), KERNEL),
    "mixed": AtomicDipoles(ACKS2(softness=KERNEL, hardness=LEARN, width=LEARN), KERNEL),
    "mixed, QEq": AtomicDipoles(QEq(KERNEL, LEARN), LEARN),
    "iterative": AtomicDipoles(ACKS2(KERNEL, KERNEL, solver="iterative", accuracy=1e-11), KERNEL),
}
OWN = small_kernel(2.8, n_representatives=3, zeta=3, delta=0.3)
"""A site kernel of its own, with descriptors unlike the others."""


@pytest.fixture(scope="module")
def layouts(water_training, kernel):
    """Parameters of a fit with each charge model, sharing features with the electronegativity or not."""
    result = {}
    for name, charges in MODELS.items():
        model = KQEq(
            kernel(3.0, n_representatives=4, zeta=2, smooth="switch"),
            kernel(3.5, n_representatives=3, zeta=4, smooth="switch"),
            charges=charges if name != "iterative" else MODELS["dipoles"],
            noise={"energy": 5.0, "forces": 10.0, "dipole": 1.0},
            site_kernel=OWN if name in ("dipoles", "mixed, QEq") else None,
        )
        parameters = model.fit(water_training[::2]).posterior_.parameters
        result[name] = replace(parameters, charges=charges)
    return result


@pytest.mark.parametrize("name", ["QEq", "dipoles", "mixed"])
def test_derivatives_kept_atom_by_atom_give_the_same(name, layouts):
    parameters, structure = layouts[name], molecule()
    frame = TrainingFrame(structure, Labels(energy=0.0, forces=np.zeros((len(structure), 3))), 0)
    kept = compute_many([frame], parameters, separate="double")[0]
    assert kept.states is None
    u = np.random.default_rng(4).normal(size=parameters.size) * 0.3
    found, expected = (
        BLOCKS["forces"](Linearisation(frame, features, parameters, u), True)
        for features in (kept, compute_features(frame, parameters))
    )
    for kind, part in parameters.sites.parts.items():
        assert np.abs(expected[1][:, part.columns]).max() > 1e-4, kind
    for own, other in zip(found, expected, strict=True):
        assert_allclose(own, other, atol=1e-11 * np.abs(other).max())


def test_a_charge_model_with_learned_parameters_is_made_once_for_all_frames(layouts):
    parameters = layouts["mixed"]
    elements, model = parameters.learned.elements, parameters.charges
    u = np.zeros(elements.size)
    first = elements.apply(model, u)
    assert elements.apply(model, u.copy()) is first
    assert elements.apply(model, u + 0.1) is not first
    assert elements.apply(clone(model), u) is not first


def stretches(parameters):
    """The columns of each part on its own, so that a large one cannot hide a small one."""
    found = {}
    for name, part in parameters.parts.items():
        middle = part.columns.start + part.kernel_size
        found[f"{name} kernel"] = slice(part.columns.start, middle)
        if part.offset_mean:
            found[f"{name} offsets"] = slice(middle, part.columns.stop)
    found["elements"] = parameters.learned.columns
    return found


# --------------------------------------------------------------- derivatives


@pytest.mark.parametrize(
    ("name", "condition"),
    [
        pytest.param(
            name,
            condition,
            marks=[pytest.mark.slow] if name == "iterative" and condition != "cation in a field" else [],
        )
        for name in MODELS
        for condition in CONDITIONS
    ],
)
def test_columns_are_derivatives_of_every_label(name, condition, layouts):
    parameters, frame = layouts[name], labelled(CONDITIONS[condition]())
    iterative = name == "iterative"
    features = compute_features(frame, parameters)
    assert features.system is None  # it changes with the parameters
    kinds = parameters.charges.environment
    assert set(parameters.sites.parts) == set(kinds) and len(kinds) >= 1
    u = 0.3 * np.random.default_rng(5).normal(size=parameters.size)
    line = Linearisation(frame, features, parameters, u)
    jacobians = {}
    for kind in frame.labels.kinds:
        value, jacobians[kind] = BLOCKS[kind](line, True)
        assert_array_equal(BLOCKS[kind](line, False)[0], value)

    def values(at):
        moved = Linearisation(frame, features, parameters, at)
        return {kind: BLOCKS[kind](moved, False)[0] for kind in frame.labels.kinds}

    rng = np.random.default_rng(1)
    for stretch, columns in stretches(parameters).items():
        direction = np.zeros(parameters.size)
        direction[columns] = rng.normal(size=columns.stop - columns.start)
        h = 2e-2 if iterative else 4e-3
        at = {t: values(u + t * h * direction) for t in (-3, -2, -1, 1, 2, 3)}
        for kind, jacobian in jacobians.items():
            expected = sum(
                w * (at[t][kind] - at[-t][kind]) for t, w in ((1, 0.75), (2, -0.15), (3, 1.0 / 60.0))
            )
            if np.abs(expected / h).max() < 1e-9:
                energy_only = stretch.startswith("short_range") and kind != "energy"
                assert energy_only or (kind == "polarizability" and stretch.startswith("electronegativity"))
                assert np.abs(jacobian @ direction).max() < 1e-9
                continue
            rtol, atol = (2e-5, 2e-7) if iterative else (1e-6, 1e-9)
            assert_close(jacobian @ direction, expected / h, rtol=rtol, atol=atol, at_least=1e-7)


@pytest.mark.parametrize("name", ["QEq", "dipoles", "mixed"])
def test_force_and_stress_blocks_are_derivatives_of_the_energy_block(name, layouts):
    parameters = layouts[name]
    u = 0.5 * np.random.default_rng(3).normal(size=parameters.size)

    def energy(structure):
        frame = TrainingFrame(structure, Labels(energy=0.0), 0)
        line = Linearisation(frame, compute_features(frame, parameters), parameters, u)
        return BLOCKS["energy"](line, False)[0][0]

    for s in (molecule(1, FIELD), cell(1)):
        atoms = Atoms(s.numbers, s.positions, cell=s.cell, pbc=s.pbc)
        frame = labelled(s)
        line = Linearisation(frame, compute_features(frame, parameters), parameters, u)
        forces = BLOCKS["forces"](line, False)[0].reshape(-1, 3)
        numeric = -position_gradient(lambda a, s=s: energy(replace(s, positions=a.positions)), atoms)
        assert_close(forces, numeric, rtol=1e-6, at_least=0.1)
        # what the kernels of the site parameters contribute is not small
        share = sum(own.positions @ line.site_slopes[kind] for kind, own in line.site_jacobians.items())
        assert np.abs(share).max() > 1e-4
    strain = strain_gradient(lambda a: energy(replace(s, positions=a.positions, cell=a.cell.array)), atoms)
    xx, yy, zz, yz, xz, xy = BLOCKS["stress"](line, False)[0]
    stress = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    assert_close(stress, 0.5 * (strain + strain.T) / s.volume, rtol=1e-6, at_least=1e-3)


def test_responses_of_few_atoms_are_mixed_and_of_many_are_not(layouts):
    """Both ways give the columns."""
    parameters, few = layouts["mixed"], molecule()
    shifted = [few.positions + np.array([0.0, 0.0, 4.0 * i]) for i in range(5)]
    many = read_structure(Atoms(np.tile(few.numbers, 5), np.concatenate(shifted)))
    u = 0.3 * np.random.default_rng(2).normal(size=parameters.size)
    for structure, mixed in ((few, True), (many, False)):
        frame = labelled(structure)
        found = Linearisation(frame, compute_features(frame, parameters), parameters, u)
        assert (found.site_directions.mixing is not None) == mixed
        sites = found.parameters.site_parameters(frame.structure.numbers, found.u, found.features.sites)
        rng = np.random.default_rng(4)
        step = np.zeros(found.parameters.size)
        columns = found.parameters.site_columns
        step[columns] = rng.normal(size=columns.stop - columns.start)
        given = [kind for kind in SITE_KINDS if getattr(sites, kind) is not None]  # none by pair here
        assert len(given) >= 4
        for kind in given:
            moved = central_difference(
                lambda t, kind=kind, found=found, step=step, frame=frame: getattr(
                    parameters.site_parameters(frame.structure.numbers, u + t * step, found.features.sites),
                    kind,
                ),
                1e-2,
            )
            change = found.site_directions.mix(getattr(found.site_directions.change, kind))
            assert_close(change @ step[columns], moved, rtol=1e-8, at_least=1e-3)
            assert np.abs(getattr(sites, kind)).min() > 0.0


def test_kernel_weights_of_zero_leave_the_elements_alone(layouts):
    parameters, frame = layouts["dipoles"], labelled(molecule(1, FIELD))
    u = 0.3 * np.random.default_rng(8).normal(size=parameters.size)
    for part in parameters.sites.parts.values():
        u[part.columns] = 0.0
    plain = replace(parameters, sites=None)
    rows = {
        name: frame_rows(frame, compute_features(frame, own), own, u, DEFAULT_NOISE, jacobian="none")[0]
        for name, own in (("kernels", parameters), ("elements", plain))
    }
    assert_allclose(rows["kernels"], rows["elements"], rtol=1e-10, atol=1e-8)


def test_frozen_parameters_have_the_layout_and_no_columns(layouts):
    parameters, frame = layouts["dipoles"], labelled(molecule(1, FIELD))
    u = 0.3 * np.random.default_rng(8).normal(size=parameters.size)
    frozen = parameters.freeze(u)
    assert frozen.size == parameters.size and frozen.charges.to_learn == ()
    moved = u.copy()
    moved[parameters.site_columns] += 1.0
    rows = {
        name: frame_rows(frame, compute_features(frame, own), own, at, DEFAULT_NOISE, jacobian="full")
        for name, own, at in (("frozen", frozen, moved), ("learned", parameters, u))
    }
    assert_allclose(rows["frozen"][0], rows["learned"][0], rtol=1e-9, atol=1e-8)
    columns = parameters.site_columns
    assert not rows["frozen"][1][:, columns].any()
    assert np.abs(rows["learned"][1][:, columns]).max() > 1.0


def test_steps_are_limited_at_the_representatives(layouts):
    parameters = layouts["dipoles"]
    (part,) = parameters.sites.parts["hardness"].kernels
    feature_map = part.feature_map
    rows = feature_map.columns[8]
    step = np.zeros(parameters.size)
    step[part.columns] = 0.0
    step[part.columns.start + rows.start] = 1.0  # the first representative of oxygen
    change = part.delta * feature_map.lower[8][:, 0]
    assert np.abs(change).max() == pytest.approx(part.delta, rel=1e-6)
    assert parameters.step_factor(step) == 1.0
    assert parameters.step_factor(100.0 * step) == pytest.approx(STEP_LIMIT / (100.0 * part.delta), rel=1e-6)
    assert parameters.freeze(np.zeros(parameters.size)).step_factor(100.0 * step) == 1.0


# ----------------------------------------------------------------------- fit


@pytest.fixture(scope="module")
def made(water_training):
    """Labels of a model whose site parameters depend on the environment, polarizabilities included."""
    frames = synthetic(small_kernel, water_training, AtomicDipoles(ACKS2(), {"H": 0.4, "O": 1.1}))
    start = KQEq(
        small_kernel(3.0),
        small_kernel(3.5, zeta=4),
        charges=AtomicDipoles(ACKS2(KERNEL, KERNEL), KERNEL),
        noise={"energy": 1.0, "forces": 5.0, "dipole": 0.1, "polarizability": 0.02},
        max_iterations=20,
    ).fit(frames)
    rng = np.random.default_rng(0)
    sites = {}
    for kind, model in start.potential_.sites.items():
        (feature_map,) = model.feature_maps
        weights = 0.6 * rng.normal(size=feature_map.size)
        sites[kind] = replace(model, terms=((feature_map, feature_map.coefficients(weights)),))
    truth = replace(start.potential_, sites=sites)
    for atoms in frames:
        prediction = truth.predict(read_structure(atoms))
        atoms.info.update(
            energy=prediction.energy, dipole=prediction.dipole, polarizability=prediction.polarizability
        )
        atoms.arrays["forces"] = prediction.forces
    return frames


NOISE = {"energy": 1e-3, "forces": 1e-2, "dipole": 2e-3, "polarizability": 1e-4}


@pytest.fixture(scope="module")
def fitted(made):
    return KQEq(
        small_kernel(3.0),
        small_kernel(3.5, zeta=4),
        charges=AtomicDipoles(ACKS2(KERNEL, KERNEL), KERNEL),
        noise=NOISE,
        max_iterations=40,
    ).fit(made)


def test_forces_and_responses_of_predictions_are_derivatives(fitted, made):
    """Of the potential, which sums the gradients of a shared descriptor before one adjoint."""
    atoms = made[4]
    state = {"total_charge": atoms.info.get("total_charge", 0.0), "external_field": FIELD}
    plain = Atoms(atoms.numbers, atoms.positions)

    def predict(a, **changes):
        return fitted.predict(a, **{**state, **changes})

    result = predict(plain)
    assert_forces(result.forces, lambda a: predict(a, properties=["energy"]).energy, plain)
    e = np.array([0.3, -0.5, 0.8])
    field = np.array(FIELD)
    energy = central_difference(lambda t: predict(plain, external_field=field + t * e).energy, 1e-2)
    dipole = central_difference(lambda t: predict(plain, external_field=field + t * e).dipole, 1e-2)
    assert_close(-result.dipole @ e, energy, rtol=1e-7, at_least=1e-2)
    assert_close(result.polarizability @ e, dipole, rtol=1e-7, at_least=1e-2)
    charged = central_difference(lambda t: predict(plain, total_charge=state["total_charge"] + t).energy, 0.1)
    assert_close(result.chemical_potential, charged, rtol=1e-7, at_least=0.1)
    # net force and torque in a field
    assert_allclose(result.forces.sum(axis=0), state["total_charge"] * field, atol=1e-9)
    torque = np.cross(plain.positions, result.forces).sum(axis=0)
    assert_close(torque, np.cross(result.dipole, field), rtol=1e-8, at_least=1e-4)


def test_stress_of_predictions_is_the_strain_derivative(fitted):
    s = cell(1)
    atoms = Atoms(s.numbers, s.positions, cell=s.cell, pbc=True)
    result = fitted.predict(atoms, total_charge=1)
    strain = strain_gradient(lambda a: fitted.predict(a, total_charge=1).energy, atoms)
    assert_close(result.stress, 0.5 * (strain + strain.T) / s.volume, rtol=1e-6, at_least=1e-3)
    assert_forces(result.forces, lambda a: fitted.predict(a, total_charge=1).energy, atoms)


def test_predictions_turn_with_the_molecule(fitted, made):
    atoms = made[3]
    turn = rotation(2, improper=True)
    order = np.random.default_rng(1).permutation(len(atoms))
    other = Atoms(atoms.numbers[order], (atoms.positions @ turn.T)[order])
    one = fitted.predict(Atoms(atoms.numbers, atoms.positions), external_field=FIELD)
    two = fitted.predict(other, external_field=turn @ np.array(FIELD))
    assert two.energy == pytest.approx(one.energy, abs=1e-9)
    assert_allclose(two.forces, (one.forces @ turn.T)[order], atol=1e-9)
    assert_allclose(two.polarizability, turn @ one.polarizability @ turn.T, atol=1e-10)


def test_environment_dependence_is_found(fitted, made):
    """With it the labels of a model that has it are met far better than with element parameters alone."""
    plain = KQEq(
        small_kernel(3.0),
        small_kernel(3.5, zeta=4),
        charges=AtomicDipoles(ACKS2(LEARN, LEARN), LEARN),
        noise=NOISE,
        max_iterations=40,
    ).fit(made)
    errors = {name: m.evaluate(made)["polarizability"].rmse for name, m in (("k", fitted), ("e", plain))}
    assert errors["k"] < 0.2 * errors["e"]
    assert fitted.fit_report_.converged
    assert fitted.fit_report_.loss < plain.fit_report_.loss
    text = str(fitted.fit_report_)
    for kind in ("hardness", "polarizability", "softness"):
        assert f"{kind}: the logarithm varies among environments by H" in text
    assert set(fitted.potential_.sites) == {"hardness", "polarizability", "softness"}
    assert fitted.potential_.charges.to_learn == ()
    # one feature map for all: descriptors and dot products are computed once
    assert len(fitted.potential_.feature_maps) == 2
    assert plain.potential_.sites == {}


def test_the_potential_is_what_was_fitted(fitted, made):
    parameters, u = fitted.posterior_.parameters, fitted.posterior_.u
    structure = read_structure(made[4])
    frame = labelled(structure)
    line = Linearisation(frame, compute_features(frame, parameters), parameters, u)
    prediction = fitted.predict(made[4])
    for kind in ("energy", "forces", "dipole", "charges"):
        assert_close(
            BLOCKS[kind](line, False)[0], np.ravel(getattr(prediction, kind)), rtol=1e-7, at_least=1e-3
        )
    assert_allclose(line.system.polarizability(), prediction.polarizability, rtol=1e-8)


def test_binding_a_geometry_knows_its_environments(fitted, made):
    """The charge model alone has the values of the elements."""
    potential, structure = fitted.potential_, read_structure(made[4])
    state = {m.descriptor: m.descriptor.evaluate(structure) for m in potential.feature_maps}
    near = {m: m.similarities(state[m.descriptor], structure.numbers) for m in potential.feature_maps}
    expected = fitted.predict(made[4]).polarizability
    assert_close(potential.bind(structure, near).polarizability(), expected, rtol=1e-12, at_least=1e-2)
    elements = potential.charges.bind(structure).polarizability()
    assert np.abs(elements - expected).max() > 1e-3 * np.abs(expected).max()


def test_selection_counts_what_the_kernels_leave_open(fitted, made):
    chosen = kqeq.select(fitted, made, 3)
    assert len(set(chosen)) == 3


@pytest.mark.parametrize("own", [False, True])
def test_polarizabilities_alone_teach_the_kernels(own, made):
    model = KQEq(
        small_kernel(3.0),
        None,
        charges=AtomicDipoles(ACKS2(KERNEL, KERNEL), KERNEL),
        targets=["polarizability"],
        noise={"polarizability": 1e-4},
        site_kernel=small_kernel(3.0, delta=0.4) if own else None,
    ).fit(made)
    before = KQEq(
        small_kernel(3.0),
        None,
        charges=AtomicDipoles(ACKS2(LEARN, LEARN), LEARN),
        targets=["polarizability"],
        noise={"polarizability": 1e-4},
    ).fit(made)
    errors = [m.evaluate(made)["polarizability"].rmse for m in (model, before)]
    assert errors[0] < 0.2 * errors[1]
    parts = {k: p.kernels[0] for k, p in model.posterior_.parameters.sites.parts.items()}
    assert {kind: part.delta for kind, part in parts.items()} == (
        dict.fromkeys(parts, 0.4) if own else {kind: ENVIRONMENT_SPREADS[kind] for kind in parts}
    )
    assert ("site parameter" in model.fit_report_.representatives) == own
    assert len(model.potential_.feature_maps) == 1 + own


def test_dipoles_teach_hardness(made):
    settings = {"short_range": None, "targets": ["dipole"], "max_iterations": 100}
    losses = [
        KQEq(small_kernel(3.0), charges=QEq(hardness=how), **settings).fit(made).fit_report_.loss
        for how in (LEARN, KERNEL)
    ]
    assert losses[1] < losses[0]


def test_evidence_learns_their_spread(made):
    model = KQEq(
        small_kernel(3.0, n_representatives=4),
        None,
        charges=AtomicDipoles(QEq(), KERNEL),
        targets=["dipole", "polarizability"],
    )
    model.fit(made[:8], optimize="evidence")
    part = model.posterior_.parameters.kernels["polarizability"]
    assert part.delta != ENVIRONMENT_SPREADS["polarizability"]
    assert f"polarizability delta {part.delta:.3g}" in str(model.fit_report_)


def test_the_model_of_elements_learns_without_kernels(made):
    """Learning from polarizabilities alone gives the values of the elements."""
    structures = [read_structure(atoms) for atoms in made]
    alphas = [np.reshape(atoms.info["polarizability"], (3, 3)) for atoms in made]
    one, two = (
        learn_from_polarizabilities(AtomicDipoles(ACKS2(how), how), structures, alphas)
        for how in (LEARN, KERNEL)
    )
    assert one.to_dict() == two.to_dict() and two.environment == ()


# -------------------------------------------------------- files, uncertainty


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("posterior", [False, True])
def test_files_keep_the_kernels(made, tmp_path, posterior, own):
    model = KQEq(
        small_kernel(3.0, n_representatives=4),
        small_kernel(3.5, n_representatives=3),
        charges=AtomicDipoles(ACKS2(softness=KERNEL, hardness=LEARN), KERNEL),
        noise={"energy": 0.5, "forces": 1.0, "dipole": 0.1, "polarizability": 0.02},
        site_kernel=OWN if own else None,
        max_iterations=30,
    ).fit(made)
    model.save(tmp_path / "m.kqeq", posterior=posterior)
    loaded = kqeq.load(tmp_path / "m.kqeq")
    assert (loaded.site_kernel is None) == (not own)
    if own:
        assert loaded.site_kernel.get_params() == OWN.get_params()
    assert loaded.charges.to_dict() == model.charges.to_dict()
    assert len(loaded.potential_.feature_maps) == len(model.potential_.feature_maps) == 2 + own
    assert str(loaded.fit_report_) == str(model.fit_report_)
    for atoms in made[:3]:
        one, two = (m.predict(atoms, uncertainty=posterior) for m in (loaded, model))
        assert_same_prediction(one, two, skip=STDS)
        for name in STDS if posterior else ():
            assert_close(getattr(one, name), getattr(two, name), rtol=1e-12, at_least=1e-4)
    loaded.save(tmp_path / "again.kqeq", posterior=posterior)
    assert (tmp_path / "again.kqeq").read_bytes() == (tmp_path / "m.kqeq").read_bytes()


def test_estimator_conventions():
    model = KQEq(charges=QEq(hardness=KERNEL), site_kernel=OWN)
    again = clone(model)
    assert again.site_kernel is not model.site_kernel
    assert again.get_params()["site_kernel__delta"] == 0.3
    again.set_params(charges__hardness=LEARN, site_kernel__zeta=2)
    assert again.charges.environment == () and again.charges.to_learn == ("hardness",)
    assert KQEq().site_kernel is None


def test_configuration():
    model = model_from_dict(
        {
            "charges": {
                "model": "AtomicDipoles",
                "polarizability": "kernel",
                "inner": {"hardness": "kernel"},
            },
            "site_kernel": {"delta": 0.1},
        }
    )
    assert model.charges.environment == ("hardness", "polarizability")
    assert model.site_kernel.delta == 0.1 and model.site_kernel.r_cut == 4.0
    assert model_from_dict({"site_kernel": False}).site_kernel is None
    with pytest.raises(InputError, match="site_kernel"):
        model_from_dict({"site_kernel": 3})


@pytest.mark.parametrize("kind", ["energy", "charges", "dipole"])
def test_variance_of_a_dense_model_is_that_of_the_gaussian_process(kind, made):
    """What sparse features miss is the prior covariance of the sites through their map: by finite differences."""
    model = KQEq(
        small_kernel(3.0, n_representatives=2),
        small_kernel(3.5, n_representatives=2, zeta=4),
        charges=AtomicDipoles(ACKS2(KERNEL, KERNEL), KERNEL),
        noise={"energy": 0.5, "forces": 1.0, "dipole": 0.1, "polarizability": 0.02},
        max_iterations=30,
    ).fit(made)
    structure = read_structure(made[5])
    view = Uncertain(model.posterior_, structure)
    mapped = {id(part): sites for part, sites in view.linear_map(kind).sites}
    line = view.line
    parts = model.posterior_.parameters.sites.parts
    for name, part in parts.items():

        def value(t, direction, name=name):
            sites = line.sites
            changed = replace(sites, **{name: getattr(sites, name) * np.exp(t * direction)})
            state = line.parameters.charges
            system = model.potential_.charges.bind(structure, changed)
            part_chi = line.parameters.electronegativity
            chi = (
                part_chi.mean(structure.numbers) + line.features.electronegativity @ line.u[part_chi.columns]
            )
            solved = system.solve(chi, structure.external_field, structure.total_charge)
            assert state is not None
            return np.ravel(getattr(solved, kind))

        direction = np.random.default_rng(0).normal(size=len(structure))
        expected = central_difference(lambda t, d=direction: value(t, d), 1e-2)
        assert_close(mapped[id(part.kernels[0])] @ direction, expected, rtol=1e-6, at_least=1e-5)
    rows = BLOCKS[kind](line, True)[1]
    variance = view.variance(kind)
    from kqeq.backend.linalg import solve_lower

    scaled = solve_lower(model.posterior_.lower, rows.T)
    missed = variance - np.einsum("pn,pn->n", scaled, scaled)
    assert (missed > 0.0).all()  # two representatives do not span six atoms


def test_forces_are_derivatives_of_the_energy_in_their_uncertainty_too(made):
    """var F_k = ∂²/∂r_k∂r'_k cov(E(r), E(r')) of first-order changes δE = Σ_i (∂E/∂f_i)(r) g(p_i(r)) of each part."""
    model = KQEq(
        small_kernel(3.0, n_representatives=3),
        small_kernel(3.5, n_representatives=2, zeta=4),
        charges=AtomicDipoles(ACKS2(KERNEL, KERNEL), KERNEL),
        noise={"energy": 0.5, "forces": 1.0, "dipole": 0.1, "polarizability": 0.02},
        max_iterations=30,
    ).fit(made)
    posterior = model.posterior_
    parameters = posterior.parameters
    atoms = Atoms(made[5].numbers, made[5].positions)
    std = model.predict(atoms, uncertainty=True).forces_std
    cov = np.linalg.inv(posterior.lower @ posterior.lower.T)
    same = atoms.numbers[:, None] == atoms.numbers[None, :]

    def view(index, t):
        copy = atoms.copy()
        copy.positions[index] += t
        structure = read_structure(copy)
        frame = TrainingFrame(structure, Labels(energy=0.0), 0)
        line = Linearisation(frame, compute_features(frame, parameters), parameters, posterior.u)
        weights = {
            "short_range": np.ones(len(atoms)),
            "electronegativity": line.state.charges,
            **line.site_slopes,
        }
        rows = {
            name: part.feature_map.descriptor.evaluate(structure).values
            for name, part in parameters.kernels.items()
        }
        return BLOCKS["energy"](line, True)[1][0], rows, weights

    h = 4e-3
    for index in [(0, 0), (2, 1)]:
        nodes = {k: view(index, k * h) for k in (-3, -2, -1, 1, 2, 3)}
        jacobian = central_difference(lambda t, nodes=nodes: nodes[round(t / h)][0], h)
        expected, missed = jacobian @ cov @ jacobian, {}
        for name, part in parameters.kernels.items():

            def covariance(s, t, name=name, part=part, nodes=nodes):
                a, b = nodes[round(s / h)], nodes[round(t / h)]
                kernel = same * (a[1][name] @ b[1][name].T) ** part.feature_map.zeta
                return part.delta**2 * a[2][name] @ kernel @ b[2][name]

            prior = central_difference(
                lambda s, covariance=covariance: central_difference(lambda t: covariance(s, t), h), h
            )
            kernel_rows = jacobian[part.columns]
            missed[name] = prior - kernel_rows @ kernel_rows
        # rounding of the differences: second derivatives of energies of eV
        assert min(missed.values()) > -1e-7 and len(missed) == 5
        assert sum(missed[kind] for kind in parameters.sites.parts) > 1e-5
        assert std[index] ** 2 == pytest.approx(expected + sum(missed.values()), rel=1e-5)


# ----------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"charges": QEq(width=KERNEL)},
            r"width='kernel'\): expected a dict of values by element, or 'learn', or",
        ),
        ({"charges": QEq(hardness="kernal")}, r"hardness='kernal'\): expected .* 'learn', 'kernel', or"),
        ({"charges": QEq(LEARN), "site_kernel": OWN}, r"site_kernel was given, but no parameter"),
        ({"site_kernel": OWN, "electronegativity": None, "charges": None}, r"site_kernel was given"),
        ({"charges": QEq(KERNEL), "site_kernel": small_kernel(3.0, delta=-1.0)}, r"delta=-1.0"),
        ({"charges": QEq(KERNEL), "targets": ["polarizability"]}, r"asks for polarizability, but no frame"),
    ],
)
def test_wrong_input_is_refused(options, text, water_training, kernel):
    settings = {"electronegativity": kernel(3.0), "short_range": kernel(3.0), **options}
    with pytest.raises(InputError, match=text):
        KQEq(**settings).fit(water_training)


def test_a_model_that_was_not_fitted_says_so():
    for model in (QEq(KERNEL), AtomicDipoles(QEq(), KERNEL)):
        with pytest.raises(UnsupportedError, match='="kernel": the parameters were not learned yet'):
            model.check(molecule())
