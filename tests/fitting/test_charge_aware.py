"""A short-range energy that sees the charges: derivatives of the total energy, the second stage, files, uncertainty."""

from dataclasses import replace
from itertools import pairwise

import joblib
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
    second_difference,
    strain_gradient,
)
from conftest import small_kernel
from kqeq import ACKS2, AtomicDipoles, ChargeKernel, KQEq, QEq
from kqeq.errors import InputError
from kqeq.fitting import problem as problems
from kqeq.fitting.charge_aware import KINDS
from kqeq.fitting.problem import FitProblem
from kqeq.fitting.rows.blocks import BLOCKS, Linearisation, frame_rows, target_vector
from kqeq.fitting.rows.features import TrainingFrame, compute_features
from kqeq.frames.labels import LabelKeys, read_frames
from kqeq.frames.structures import read_structure
from kqeq.kernels.charge_kernel import ChargeCoupling
from kqeq.model.config import model_from_dict
from kqeq.uncertainty.posterior import Posterior, Uncertain
from label_rows import labelled
from systems import FIELD, cell, molecule

pytestmark = pytest.mark.filterwarnings("ignore::kqeq.errors.RepresentativesWarning")

NOISE = {"energy": 0.01, "forces": 0.1, "dipole": 0.02, "polarizability": 0.05}
MODELS = {
    "QEq": QEq(),
    "ACKS2": ACKS2(),
    "dipoles": AtomicDipoles(ACKS2()),
    "kernel hardness": AtomicDipoles(ACKS2(hardness="kernel"), "kernel"),
    "iterative": AtomicDipoles(ACKS2(solver="iterative", accuracy=1e-11)),
}


@pytest.fixture(scope="module")
def models(water_training):
    """Fits with each charge model; the charge-dependent part is made large, so that nothing hides."""
    made = {}
    for name, charges in MODELS.items():
        if name == "iterative":
            continue
        model = KQEq(
            small_kernel(3.0, n_representatives=4, smooth="switch"),
            small_kernel(3.5, n_representatives=3, zeta=4, smooth="switch"),
            charges=charges,
            noise={"energy": 1.0, "forces": 5.0, "dipole": 0.5},
            charge_aware=ChargeKernel(),
        ).fit(water_training)
        rng = np.random.default_rng(3)
        powers = [
            replace(
                own,
                terms=tuple(
                    (m, {z: rng.normal(size=len(c)) for z, c in own_.items()}) for m, own_ in own.terms
                ),
            )
            for own in model.potential_.charge_powers
        ]
        model.potential_ = replace(model.potential_, charge_powers=tuple(powers))
        made[name] = model
    made["iterative"] = clone(made["dipoles"])
    potential = replace(made["dipoles"].potential_, charges=MODELS["iterative"])
    made["iterative"]._set_fitted(potential, made["dipoles"].fit_report_, None)
    return made


# --------------------------------------------------------------- derivatives


CONDITIONS = [
    (name, charge, field)
    for name in MODELS
    for charge, field in ((0, (0.0, 0.0, 0.0)), (1, FIELD), (-1, FIELD))
    if name != "iterative" or charge == 1
]


@pytest.mark.parametrize(("name", "charge", "field"), CONDITIONS)
def test_derivatives_of_the_total_energy(name, charge, field, models):
    model, s = models[name], molecule()
    atoms = Atoms(s.numbers, s.positions)
    tolerance = 2e-5 if name == "iterative" else 1e-6

    def predict(a, total_charge=charge, external_field=field, **options):
        return model.predict(a, total_charge=total_charge, external_field=external_field, **options)

    result = predict(atoms)
    assert_forces(
        result.forces,
        lambda a: predict(a, properties=["energy"]).energy,
        atoms,
        h=8e-3 if name == "iterative" else 4e-3,
        rtol=tolerance,
    )
    field, e = np.array(field), np.array([0.3, -0.5, 0.8])
    energy = central_difference(lambda t: predict(atoms, external_field=field + t * e).energy, 0.05)
    dipole = central_difference(lambda t: predict(atoms, external_field=field + t * e).dipole, 0.05)
    assert_close(-result.dipole @ e, energy, rtol=tolerance, at_least=1e-3)
    assert_close(result.polarizability @ e, dipole, rtol=tolerance, at_least=1e-2)
    slope = central_difference(lambda t: predict(atoms, total_charge=charge + t).energy, 0.1)
    curvature = second_difference(lambda t: predict(atoms, total_charge=charge + t).energy, 0.2)
    assert_close(result.chemical_potential, slope, rtol=tolerance, at_least=0.1)
    assert_close(result.hardness, curvature, rtol=10 * tolerance, at_least=0.1)
    # what the short-range energy adds is not small
    bare = replace(model.potential_, charge_kernel=None, charge_powers=())
    plain = bare.predict(read_structure(atoms, total_charge=charge, external_field=tuple(field)))
    for kind in ("forces", "dipole", "polarizability", "chemical_potential", "hardness"):
        assert np.abs(np.asarray(getattr(result, kind)) - getattr(plain, kind)).max() > 1e-3
    assert_array_equal(result.charges, plain.charges)
    # net force and torque in a field
    assert_allclose(result.forces.sum(axis=0), charge * field, atol=1e-7)
    torque = np.cross(atoms.positions, result.forces).sum(axis=0)
    assert_allclose(torque, np.cross(result.dipole, field), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "charge"),
    [
        ("QEq", 1),
        ("dipoles", 0),
        ("kernel hardness", 1),
        pytest.param("iterative", 1, marks=pytest.mark.slow),
    ],
)
def test_cells(name, charge, models):
    model, s = models[name], cell()
    atoms = Atoms(s.numbers, s.positions, cell=s.cell, pbc=True)
    iterative = name == "iterative"

    def energy(a):
        return model.predict(a, total_charge=charge, properties=["energy"]).energy

    result = model.predict(atoms, total_charge=charge)
    rtol = 1e-4 if iterative else 1e-6
    if iterative:  # slow: along one direction of all coordinates and one of all strains
        rng = np.random.default_rng(1)
        shift, shear = rng.normal(size=s.positions.shape), rng.normal(size=(3, 3))
        shift, shear = shift / np.linalg.norm(shift), shear + shear.T

        def strained(t):
            deformation = np.eye(3) + t * shear
            return energy(
                Atoms(s.numbers, s.positions @ deformation, cell=atoms.cell.array @ deformation, pbc=True)
            )

        def displaced(t):
            return energy(Atoms(s.numbers, s.positions + t * shift, cell=atoms.cell, pbc=True))

        moved = central_difference(displaced, 8e-3)
        assert_close(-np.vdot(result.forces, shift), moved, rtol=rtol, at_least=0.1)
        slope = central_difference(strained, 1e-3)
        assert_close(np.vdot(result.stress, shear) * s.volume, slope, rtol=rtol, at_least=0.1)
    else:
        assert_forces(result.forces, energy, atoms, rtol=rtol)
        strain = strain_gradient(energy, atoms)
        assert_close(result.stress, 0.5 * (strain + strain.T) / s.volume, rtol=rtol, at_least=1e-3)
    if name == "QEq":
        assert result.dipole is None and result.polarizability is None
    slope = central_difference(lambda t: model.predict(atoms, total_charge=charge + t).energy, 0.1)
    assert_close(result.chemical_potential, slope, rtol=rtol, at_least=0.1)


def test_a_slab_in_a_field(models):
    s = cell()
    box = np.array(s.cell)
    box[2] = [0.0, 0.0, 16.0]
    atoms = Atoms(s.numbers, s.positions, cell=box, pbc=(True, True, False))
    normal = np.cross(box[0], box[1])
    normal /= np.linalg.norm(normal)
    for name in ("QEq", "dipoles"):

        def predict(t=0.0, a=atoms, name=name):
            return models[name].predict(a, external_field=(0.2 + t) * normal)

        result = predict()
        assert_forces(result.forces, lambda a, predict=predict: predict(a=a).energy, atoms)
        assert_close(
            -result.dipole @ normal,
            central_difference(lambda t: predict(t).energy, 0.05),
            rtol=1e-6,
            at_least=1e-3,
        )
        change = central_difference(lambda t: predict(t).dipole @ normal, 0.05)
        assert_close(normal @ result.polarizability @ normal, change, rtol=1e-6, at_least=1e-3)


def test_fragments_keep_their_charges(models):
    """With a constraint per fragment the response to g keeps them too."""
    s = molecule()
    atoms = Atoms(s.numbers, s.positions)
    potential = replace(models["QEq"].potential_, charges=QEq(fragments=True))
    atoms = kqeq.charges.assign_fragments(atoms, [[0, 1, 2], [3, 4, 5]], [1.0, -1.0])

    def energy(a):
        moved = atoms.copy()
        moved.positions = a.positions
        return potential.predict(read_structure(moved)).energy

    result = potential.predict(read_structure(atoms))
    assert result.charges[:3].sum() == pytest.approx(1.0, abs=1e-10)
    assert_forces(result.forces, energy, atoms)


def test_predictions_turn_with_the_molecule(models):
    model, s = models["dipoles"], molecule()
    turn = rotation(2, improper=True)
    order = np.random.default_rng(1).permutation(len(s))
    one = model.predict(Atoms(s.numbers, s.positions), total_charge=1, external_field=FIELD)
    other = Atoms(s.numbers[order], (s.positions @ turn.T)[order])
    two = model.predict(other, total_charge=1, external_field=turn @ np.array(FIELD))
    assert two.energy == pytest.approx(one.energy, abs=1e-9)
    assert_allclose(two.forces, (one.forces @ turn.T)[order], atol=1e-8)
    assert_allclose(two.dipole, turn @ one.dipole, atol=1e-8)
    assert_allclose(two.polarizability, turn @ one.polarizability @ turn.T, atol=1e-8)


# -------------------------------------------------------------- the kernel


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_features_are_those_of_the_kernel(order):
    kernel = ChargeKernel(order, 0.7)
    q = np.random.default_rng(0).normal(size=5)
    psi = kernel.features(q)
    assert psi.shape == (order + 1, 5)
    assert_allclose(psi.T @ psi, (1.0 + np.outer(q, q) / 0.49) ** order, rtol=1e-12)
    for derivative in (1, 2):
        numeric = central_difference(lambda t, d=derivative: kernel.features(q + t, d - 1), 1e-2)
        assert_close(kernel.features(q, derivative), numeric, rtol=1e-9, at_least=0.1) if (
            derivative <= order
        ) else assert_allclose(kernel.features(q, derivative), 0.0)
    f = np.random.default_rng(1).normal(size=psi.shape)
    coupling = ChargeCoupling.at(kernel, q, f)
    assert coupling.energy == pytest.approx(float(np.sum(psi * f)))
    e = np.random.default_rng(2).normal(size=5)
    numeric = central_difference(lambda t: ChargeCoupling.at(kernel, q + t * e, f).energy, 1e-2)
    assert_close(coupling.slope @ e, numeric, rtol=1e-9, at_least=1e-2)
    numeric = central_difference(lambda t: ChargeCoupling.at(kernel, q + t * e, f).slope, 1e-2)
    assert_allclose(coupling.curvature * e, numeric, atol=1e-9)


# ------------------------------------------------------------- second stage


@pytest.mark.parametrize("condition", ["molecule", "cell"])
@pytest.mark.parametrize("name", ["QEq", "kernel hardness"])
def test_rows_are_derivatives_of_predictions(name, condition, models):
    """Predictions are linear in the parameters: differences are exact."""
    model = models[name]
    structure = molecule(1, FIELD) if condition == "molecule" else cell(1)
    frame = labelled(structure)
    parameters, potential = model.posterior_.parameters, model.potential_
    part = parameters.short_range
    features = compute_features(frame, parameters)
    size, zero = part.of_power()[0].size, dict.fromkeys(potential.species, 0.0)

    def predict(u):
        powers = [
            kqeq.potential.SiteModel(
                ((part.feature_maps[0], part.feature_maps[0].coefficients(part.deltas[0] * own)),), zero
            )
            for own in u[: 3 * size].reshape(3, size)
        ]
        offsets = {
            z: part.offset_mean[z] + spread * x
            for z, spread, x in zip(part.offset_mean, part.offset_spreads, u[3 * size :], strict=True)
        }
        return replace(
            potential, energy_offsets=offsets, short_range=powers[0], charge_powers=tuple(powers[1:])
        ).predict(structure)

    rng = np.random.default_rng(0)
    assert parameters.size == 3 * size + len(part.offset_mean)
    base = predict(np.zeros(parameters.size))
    kinds = [kind for kind in frame.labels.kinds if kind in KINDS]
    assert set(kinds) >= (
        {"energy", "forces", "stress"} if condition == "cell" else {"dipole", "polarizability"}
    )
    for b in range(4):
        u = np.zeros(parameters.size)
        u[b * size : (b + 1) * size] = rng.normal(size=len(u[b * size : (b + 1) * size]))
        moved = predict(u)
        for kind in kinds:
            values = [
                target_vector(replace(frame, labels=replace(frame.labels, **{kind: getattr(p, kind)})), kind)
                for p in (moved, base)
            ]
            line = Linearisation(frame, features, parameters, u)
            value, rows = BLOCKS[kind](line, True)
            assert rows.shape == (len(values[0]), parameters.size)
            expected = values[0] - values[1]
            assert_close(value, values[0], rtol=1e-9, atol=1e-9, at_least=1e-4)
            # the cheap rows that the solver takes where all parameters are linear
            one = replace(frame, labels=labels_of(frame.labels, kind))
            _, cheap = frame_rows(
                one,
                features,
                parameters,
                u,
                model.posterior_.noise | NOISE | {"stress": 0.1},
                jacobian="full",
            )
            assert_close(np.abs(cheap).max() * rows, np.abs(rows).max() * cheap, rtol=1e-12, at_least=1e-9)
            if np.abs(expected).max() < 1e-12:
                assert b in (0, 3) or (b == 1 and kind == "polarizability")
                assert not (rows @ u).any()
                continue
            assert_close(rows @ u, expected, rtol=1e-7, atol=1e-10, at_least=1e-6)


@pytest.fixture(scope="module")
def pair(water_training):
    """The same settings without and with the kernel of charges."""
    settings = {
        "electronegativity": small_kernel(3.0),
        "short_range": small_kernel(3.5, zeta=4),
        "noise": NOISE,
    }
    return [KQEq(**settings, charge_aware=c).fit(water_training) for c in (None, ChargeKernel())]


def test_the_second_stage_fits_better(pair, water_training):
    plain, aware = (model.evaluate(water_training) for model in pair)
    for kind, factor in (("energy", 0.95), ("forces", 0.9)):
        assert aware[kind].rmse < factor * plain[kind].rmse
    assert "charge-aware short-range energy" in str(pair[1].fit_report_)
    # charges are those of the first stage
    for atoms in water_training[::5]:
        assert_array_equal(*(model.predict(atoms).charges for model in pair))


def as_fitted(atoms):
    return [
        TrainingFrame(structure, replace(labels, charges=None), i)
        for i, (structure, labels) in enumerate(read_frames(atoms, LabelKeys()))
    ]


def labels_of(labels, kind):
    """Those of one kind alone."""
    return replace(labels, **dict.fromkeys(set(labels.kinds) - {kind}))


def test_the_second_stage_is_a_minimum(pair, water_training):
    """Any other parameters have a larger loss."""
    aware = pair[1]
    posterior = aware.posterior_
    frames = as_fitted(water_training)
    problem = FitProblem(frames, posterior.parameters, posterior.noise, linear=True)

    def loss(u):
        return 0.5 * u @ u + sum(0.5 * r @ r for r, _ in problem.rows(u, jacobian="none"))

    u = posterior.u
    best = loss(u)
    assert f"loss {best:.6g}" in str(aware.fit_report_)
    rng = np.random.default_rng(0)
    for _ in range(2):
        assert loss(u + 1e-2 * rng.normal(size=len(u))) > best


def test_groups_of_frames_in_parallel_give_the_same(pair, water_training, monkeypatch):
    monkeypatch.setattr(problems, "CHUNK_ROWS", 100)
    assert (
        len(FitProblem(as_fitted(water_training), pair[1].posterior_.parameters, NOISE, linear=True).chunks)
        > 1
    )
    with joblib.parallel_config(backend="threading", n_jobs=2):
        again = clone(pair[1]).fit(water_training)
    scale = np.abs(pair[1].posterior_.u).max()
    assert_allclose(again.posterior_.u, pair[1].posterior_.u, rtol=0.0, atol=1e-6 * scale)


def test_a_weak_dependence_is_the_plain_model(water_training, pair):
    """With charges that are far smaller than the scale nothing is left of the dependence."""
    settings = pair[0].get_params(deep=False) | {"charge_aware": ChargeKernel(1, 1e6)}
    weak = KQEq(**settings).fit(water_training)
    one, two = (model.predict(water_training[4]) for model in (weak, pair[0]))
    # the plain fit determines electronegativities with the short-range energy, at the same minimum
    assert one.energy == pytest.approx(two.energy, abs=1e-3)
    assert_allclose(one.forces, two.forces, atol=0.02)


# -------------------------------------------------------- files, uncertainty


@pytest.mark.parametrize("posterior", [False, True])
def test_files(pair, water_training, tmp_path, posterior):
    model = pair[1]
    model.save(tmp_path / "m.kqeq", posterior=posterior)
    loaded = kqeq.load(tmp_path / "m.kqeq")
    assert loaded.charge_aware.get_params() == model.charge_aware.get_params()
    assert len(loaded.potential_.charge_powers) == 2
    assert len(loaded.potential_.feature_maps) == 2
    for atoms in water_training[::5]:
        one, two = (m.predict(atoms, uncertainty=posterior) for m in (loaded, model))
        assert_same_prediction(one, two, skip=("energy_std", "forces_std"))
        if posterior:
            assert_close(one.energy_std, two.energy_std, rtol=1e-12, at_least=1e-6)
            assert_close(one.forces_std, two.forces_std, rtol=1e-10, at_least=1e-6)
    loaded.save(tmp_path / "again.kqeq", posterior=posterior)
    assert (tmp_path / "again.kqeq").read_bytes() == (tmp_path / "m.kqeq").read_bytes()


def with_remainder(posterior, value):
    parameters = posterior.parameters
    return replace(posterior, parameters=parameters.with_remainders(dict.fromkeys(parameters.kernels, value)))


def prior_of(posterior):
    """As if there were no data; element energies are held."""
    parameters = posterior.parameters
    energy = replace(parameters.short_range, offset_spread=0.0)
    return replace(
        posterior, lower=np.eye(len(posterior.u)), parameters=replace(parameters, short_range=energy)
    )


def test_uncertainty_of_energies_is_that_of_the_product_kernel(pair, water_training):
    """Against k k_q between all atoms: with the prior alone, variance is δ² Σ k_q(q_i, q_j) k(p_i, p_j)."""
    model = pair[1]
    posterior = model.posterior_
    assert isinstance(posterior, Posterior)
    part = posterior.parameters.short_range
    structure = read_structure(water_training[4])
    view = Uncertain(prior_of(posterior), structure, forces=True)
    q = model.predict(water_training[4]).charges
    product = (1.0 + np.outer(q, q) / 0.25) ** 2 * view.kernel(part.feature_maps[0])
    assert view.variance("energy")[0] == pytest.approx(part.deltas[0] ** 2 * product.sum(), rel=1e-9)
    known = Uncertain(posterior, structure, forces=True)
    half, none = (Uncertain(with_remainder(posterior, value), structure) for value in (0.5, 0.0))
    whole = Uncertain(posterior, structure)
    middle = 0.5 * (none.variance("energy") + whole.variance("energy"))
    assert half.variance("energy")[0] == pytest.approx(middle[0], rel=1e-9)
    assert whole.variance("energy")[0] > none.variance("energy")[0]
    assert known.variance("energy")[0] < 0.1 * view.variance("energy")[0]
    assert (known.variance("forces") < view.variance("forces") * (1.0 + 1e-9)).all()


def test_uncertainty_of_forces_is_that_of_the_derivative_of_the_energy(pair, water_training):
    """The variance of a difference quotient of energies under the prior, at the charges of either end."""
    model = pair[1]
    posterior = model.posterior_
    atoms = water_training[4].copy()
    structure = read_structure(atoms)
    part = posterior.parameters.short_range
    view = Uncertain(prior_of(posterior), structure, forces=True)
    variance = view.variance("forces")
    h, k = 1e-2, 4
    ends = []
    for sign in (1.0, -1.0):
        positions = structure.positions.copy()
        positions.flat[k] += sign * h
        moved = replace(structure, positions=positions)
        rows = part.feature_maps[0].descriptor.evaluate(moved, derivatives=False).values
        ends.append((rows, model.potential_.predict(moved).charges))
    total = 0.0
    for (a, qa), sa in zip(ends, (1.0, -1.0), strict=True):
        for (b, qb), sb in zip(ends, (1.0, -1.0), strict=True):
            dots = np.where(view.same, (a @ b.T) ** part.feature_maps[0].zeta, 0.0)
            total += sa * sb * np.sum((1.0 + np.outer(qa, qb) / 0.25) ** 2 * dots)
    expected = part.deltas[0] ** 2 * total / (2.0 * h) ** 2
    assert variance[k] == pytest.approx(expected, rel=2e-2)
    assert expected > 1e-3


def test_which_uncertainties_there_are(pair, water_training):
    result = pair[1].predict(water_training[4], uncertainty=True)
    assert result.energy_std > 0.0 and (result.forces_std > 0.0).all()
    assert result.charges_std is None and result.dipole_std is None
    few = pair[1].predict(water_training[4], uncertainty=True, properties=["energy"])
    assert few.forces_std is None and few.energy_std == pytest.approx(result.energy_std)
    calibration = pair[1].evaluate(water_training, calibration=True).calibration
    assert set(calibration) == {"energy", "forces"}


# ------------------------------------------------------ conventions, bad input


def test_conventions_and_configuration():
    model = KQEq(charge_aware=ChargeKernel(3, 0.4))
    again = clone(model)
    assert again.charge_aware is not model.charge_aware
    assert again.get_params()["charge_aware__order"] == 3
    made = model_from_dict({"charge_aware": {"order": 1}})
    assert made.charge_aware.get_params() == {"order": 1, "scale": 0.5}
    assert model_from_dict({"charge_aware": {}}).charge_aware.order == 2
    assert model_from_dict({"charge_aware": False}).charge_aware is None
    for table, text in (
        ({"power": 2}, "has no setting 'power'"),
        ({"order": "2"}, "expected a whole number"),
        ({"order": 9}, "whole number from 1 to 4"),
        ({"scale": -1.0}, "positive number"),
    ):
        with pytest.raises(InputError, match=text):
            model_from_dict({"charge_aware": table})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"charge_aware": 2}, r"expected kqeq.ChargeKernel"),
        ({"charge_aware": ChargeKernel(0)}, r"order=0"),
        ({"charge_aware": ChargeKernel(True)}, r"order=True"),
        ({"charge_aware": ChargeKernel(2, float("nan"))}, r"scale=nan"),
        ({"charge_aware": ChargeKernel(), "short_range": None}, r"no short-range energy"),
        (
            {"charge_aware": ChargeKernel(), "charges": None, "electronegativity": None},
            r"the model has no charges",
        ),
        ({"charge_aware": ChargeKernel(), "targets": ["dipole"]}, r"no energies, forces or stresses"),
    ],
)
def test_wrong_input_is_refused(options, text, water_training, kernel):
    settings = {"electronegativity": kernel(3.0), "short_range": kernel(3.0), **options}
    with pytest.raises(InputError, match=text):
        KQEq(**settings).fit(water_training)


def test_selection(pair, water_training):
    """By the energy at given charges: the most uncertain frame first, and not twice the same question."""
    aware = pair[1]
    pool = [water_training[0], *(moved(atoms, seed) for seed, atoms in enumerate(water_training[:6]))]
    pool.append(pool[3].copy())
    spread = [
        p.energy_std / np.sqrt(len(a))
        for p, a in zip(aware.predict(pool, uncertainty=True), pool, strict=True)
    ]
    chosen = kqeq.select(aware, pool, 3)
    assert chosen[0] == int(np.argmax(spread))
    assert len(set(chosen)) == 3 and not {3, len(pool) - 1} <= set(chosen)
    with pytest.raises(InputError, match="this model determines energy"):
        kqeq.select(aware, pool, 2, quantity="dipole")


def moved(atoms, seed):
    copy = atoms.copy()
    copy.positions += np.random.default_rng(seed).normal(0.0, 0.1, copy.positions.shape)
    return copy


def test_frames_are_added(pair, water_training, tmp_path):
    """The second stage with all frames at the charges of the first fit, whether at once or in two parts."""
    aware = KQEq(small_kernel(3.0), small_kernel(3.5, zeta=4), noise=NOISE, charge_aware=ChargeKernel()).fit(
        water_training[::2]
    )
    known = aware.posterior_
    from kqeq.fitting.minimisation import minimise_problem
    from kqeq.fitting.rows.targets import choose_labels
    from kqeq.frames.labels import read_frames

    both = [*water_training[::2], *water_training[1::2]]
    frames, _, _ = choose_labels(list(read_frames(both)), aware._settings(None))
    problem = FitProblem(frames, known.parameters, known.noise, linear=True)
    expected = minimise_problem(problem, np.zeros(problem.size))
    aware.save(tmp_path / "half.kqeq", posterior=True)
    loaded = kqeq.load(tmp_path / "half.kqeq")
    for model in (aware, loaded):
        before = model.predict(water_training[1])
        assert model.update(water_training[1::2]) is model
        after = model.predict(water_training[1])
        np.testing.assert_array_equal(after.charges, before.charges)
        assert np.abs(after.forces - before.forces).max() > 1e-3
        scale = np.abs(expected.u).max()
        np.testing.assert_allclose(model.posterior_.u, expected.u, rtol=0, atol=1e-6 * scale)
        assert model.fit_report_.n_frames == len(both)
        assert "charges stay as they were" in model.fit_report_.notes[-1]


def test_charge_states_are_told_apart(water_training):
    """Energies that are quadratic in the charge of each environment, which no sum of environments can follow."""
    aware = KQEq(
        small_kernel(3.0),
        small_kernel(3.5, zeta=4),
        noise=NOISE,
        charge_aware=ChargeKernel(),
    ).fit(water_training)
    s = molecule()
    energies = [
        aware.predict(Atoms(s.numbers, s.positions), total_charge=q, properties=["energy"]).energy_short_range
        for q in (-1, 0, 1)
    ]
    assert all(abs(a - b) > 1e-3 for a, b in pairwise(energies))
    assert_close(
        aware.predict(Atoms(s.numbers, s.positions), total_charge=1).forces,
        -position_gradient(
            lambda a: aware.predict(a, total_charge=1, properties=["energy"]).energy,
            Atoms(s.numbers, s.positions),
        ),
        rtol=1e-6,
        at_least=0.1,
    )
