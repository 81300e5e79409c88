"""Element parameters learned in the kernel fit: Jacobian columns, recovery, files, uncertainties, bad input."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone

import kqeq
from checks import assert_close, central_difference
from kqeq import ACKS2, AtomicDipoles, KQEq, QEq
from kqeq.charges.parameters import SPREADS
from kqeq.errors import InputError, KQEqWarning
from kqeq.fitting.parameters import STEP_LIMIT
from kqeq.fitting.rows.blocks import BLOCKS, Linearisation, frame_rows, target_vector
from kqeq.fitting.rows.features import TrainingFrame, compute_features
from kqeq.fitting.settings import DEFAULT_NOISE
from kqeq.frames.labels import Labels
from kqeq.frames.structures import read_structure
from label_rows import labelled, synthetic
from systems import CONDITIONS, FIELD, molecule

LEARN = "learn"
EVERYTHING = AtomicDipoles(ACKS2(LEARN, LEARN, LEARN), LEARN)
MODELS = {
    "QEq": QEq(LEARN, LEARN),
    "ACKS2": ACKS2(LEARN, LEARN, LEARN),
    "pairs": ACKS2(pair_softness={"O-H": LEARN}),
    "dipoles": EVERYTHING,
    "undamped dipoles": AtomicDipoles(QEq(LEARN, LEARN), {"O": 0.2, "H": 0.1}, damping=False),
}


@pytest.fixture(scope="module")
def layouts(water_training, kernel):
    """Parameters of a fit with each charge model, at the end of one step."""
    result = {}
    for name, charges in MODELS.items():
        model = KQEq(
            kernel(3.0, n_representatives=4, zeta=2, smooth="switch"),
            kernel(3.5, n_representatives=3, zeta=4, smooth="switch"),
            charges=charges,
            noise={"energy": 5.0, "forces": 10.0, "dipole": 1.0},
        )
        result[name] = model.fit(water_training).posterior_.parameters
    return result


# --------------------------------------------------------------- derivatives


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("name", MODELS)
def test_columns_are_derivatives_of_every_label(name, condition, layouts):
    parameters, frame = layouts[name], labelled(CONDITIONS[condition]())
    features = compute_features(frame, parameters)
    assert features.system is None  # it changes with the parameters
    u = 0.3 * np.random.default_rng(5).normal(size=parameters.size)
    columns = parameters.learned.columns
    assert columns.stop == parameters.size
    # H and O, or the one pair of them
    assert columns.stop - columns.start == (1 if name == "pairs" else 2 * len(parameters.charges.to_learn))
    line = Linearisation(frame, features, parameters, u)
    jacobians = {}
    for kind in frame.labels.kinds:
        value, jacobians[kind] = BLOCKS[kind](line, True)
        without, nothing = BLOCKS[kind](line, False)
        assert nothing is None
        assert_array_equal(without, value)
        assert value.shape == target_vector(frame, kind).shape

    def values(at):
        moved = Linearisation(frame, features, parameters, at)
        return {kind: BLOCKS[kind](moved, False)[0] for kind in frame.labels.kinds}

    for column in range(columns.start, columns.stop):
        step = 1e-3 * np.eye(parameters.size)[column]
        at = {t: values(u + t * step) for t in (-2, -1, 1, 2)}
        for kind, jacobian in jacobians.items():
            expected = 8.0 * (at[1][kind] - at[-1][kind]) - (at[2][kind] - at[-2][kind])
            assert_close(jacobian[:, column], expected / 12e-3, rtol=1e-6, atol=1e-8, at_least=1e-7)


def test_other_columns_follow_the_element_parameters(layouts):
    """The columns of the electronegativities belong to the charge problem at u, not to that of the defaults."""
    parameters, frame = layouts["dipoles"], labelled(molecule(1, FIELD))
    features = compute_features(frame, parameters)
    u = 0.3 * np.random.default_rng(6).normal(size=parameters.size)
    direction = np.zeros(parameters.size)
    direction[: parameters.learned.columns.start] = np.random.default_rng(7).normal(
        size=parameters.learned.columns.start
    )
    for kind in ("energy", "forces", "dipole", "charges"):
        jacobian = BLOCKS[kind](Linearisation(frame, features, parameters, u), True)[1]

        def along(t, kind=kind):
            return BLOCKS[kind](Linearisation(frame, features, parameters, u + t * direction), False)[0]

        assert_close(
            jacobian @ direction, central_difference(along, 0.2), rtol=1e-8, atol=1e-9, at_least=1e-4
        )


def test_frozen_parameters_have_the_layout_and_no_columns(layouts):
    parameters, frame = layouts["dipoles"], labelled(molecule())
    u = 0.3 * np.random.default_rng(8).normal(size=parameters.size)
    frozen = parameters.freeze(u)
    assert frozen.size == parameters.size and frozen.charges.to_learn == ()
    rows = {
        name: frame_rows(frame, compute_features(frame, own), own, u, DEFAULT_NOISE, jacobian="full")
        for name, own in (("frozen", frozen), ("learned", parameters))
    }
    assert_allclose(rows["frozen"][0], rows["learned"][0], rtol=1e-9, atol=1e-9)
    columns = parameters.learned.columns
    assert not rows["frozen"][1][:, columns].any()
    assert np.abs(rows["learned"][1][:, columns]).max() > 1.0


def test_squares_of_a_polarizability_label_are_those_of_the_whole_tensor(layouts):
    frame = labelled(molecule())
    alpha = frame.labels.polarizability
    assert np.sum(target_vector(frame, "polarizability") ** 2) == pytest.approx(np.sum(alpha**2))
    parameters = layouts["ACKS2"]
    line = Linearisation(frame, compute_features(frame, parameters), parameters, np.zeros(parameters.size))
    value = BLOCKS["polarizability"](line, False)[0]
    assert np.sum(value**2) == pytest.approx(np.sum(line.system.polarizability() ** 2))


def test_steps_are_limited_in_the_logarithms(layouts):
    parameters = layouts["dipoles"]
    step = np.zeros(parameters.size)
    step[0] = 1e6  # others are free
    assert parameters.step_factor(step) == 1.0
    column = parameters.learned.columns.start
    step[column] = 10.0 * STEP_LIMIT / parameters.learned.elements.spread[0]
    assert parameters.step_factor(step) == pytest.approx(0.1)
    assert parameters.freeze(np.zeros(parameters.size)).step_factor(step) == 1.0


# ----------------------------------------------------------------------- fit

TRUTH = AtomicDipoles(ACKS2(softness={"H": 0.3, "O": 0.2}, hardness={"O": 15.0}), {"H": 0.4, "O": 1.1})


@pytest.fixture(scope="module")
def made(water_training, kernel):
    return synthetic(kernel, water_training, TRUTH)


@pytest.fixture(scope="module")
def recovered(made, kernel):
    """Everything learned that the truth changed, from labels without noise."""
    model = KQEq(
        kernel(3.0),
        kernel(3.5, zeta=4),
        charges=AtomicDipoles(ACKS2(softness=LEARN, hardness=LEARN), LEARN),
        noise={"energy": 1e-4, "forces": 1e-3, "dipole": 1e-3, "polarizability": 1e-4},
        max_iterations=60,
    )
    return model.fit(made)


def test_parameters_of_synthetic_data_are_recovered(recovered):
    found = recovered.potential_.charges
    assert found.to_learn == () and recovered.charges.to_learn == ("hardness", "softness", "polarizability")
    numbers = np.array([1, 8])
    truth, values, start = (m.site_parameters(numbers) for m in (TRUTH, found, AtomicDipoles()))
    for kind in ("hardness", "polarizability"):
        assert_allclose(getattr(values, kind), getattr(truth, kind), rtol=0.02)
    # bonds between O and H only: their product is all that labels see
    assert_allclose(np.prod(values.softness), np.prod(truth.softness), rtol=0.02)
    assert np.abs(np.log(start.softness / truth.softness)).max() > 0.3
    report = recovered.fit_report_
    assert report.used["polarizability"] == report.n_frames and report.converged
    assert report.learned["hardness O"]["value"] == pytest.approx(found.inner.hardness["O"])
    assert report.learned["polarizability O"]["default"] == pytest.approx(
        AtomicDipoles().site_parameters(np.array([8])).polarizability[0] * kqeq.constants.COULOMB
    )
    assert 0.0 < report.learned["hardness O"]["error"] < SPREADS["hardness"]
    assert "hardness O" in str(report) and "relative error" in str(report)


def test_the_potential_is_what_was_fitted(recovered, made):
    """Predictions of the potential are those of the blocks at the solution."""
    parameters, u = recovered.posterior_.parameters, recovered.posterior_.u
    structure = read_structure(made[4])
    prediction = recovered.predict(made[4])
    frame = TrainingFrame(structure, Labels(forces=np.zeros((len(structure), 3))), 0)
    line = Linearisation(frame, compute_features(frame, parameters), parameters, u)
    for kind in ("energy", "forces", "dipole", "charges"):
        assert_close(
            BLOCKS[kind](line, False)[0], np.ravel(getattr(prediction, kind)), rtol=1e-8, at_least=1e-3
        )
    assert_allclose(line.system.polarizability(), prediction.polarizability, rtol=1e-10)


def test_polarizabilities_alone_teach_element_parameters(made, kernel):
    model = KQEq(
        kernel(3.0),
        None,
        charges=AtomicDipoles(ACKS2(softness=LEARN), LEARN),
        targets=["polarizability"],
    ).fit(made)
    assert set(model.fit_report_.used) == {"polarizability"}
    before = KQEq(kernel(3.0), None, charges=AtomicDipoles(), targets=["dipole"]).fit(made)
    errors = [m.evaluate(made)["polarizability"].rmse for m in (model, before)]
    assert errors[0] < 0.1 * errors[1]


def test_dipoles_alone_teach_hardness(made, kernel):
    """No closed form any more, and the element parameters leave their defaults."""
    model = KQEq(kernel(3.0), None, charges=QEq(hardness=LEARN), targets=["dipole"], noise={"dipole": 1e-3})
    model.fit(made)
    assert len(model.fit_report_.iterations) > 1
    plain = KQEq(kernel(3.0), None, targets=["dipole"], noise={"dipole": 1e-3}).fit(made)
    assert model.fit_report_.loss < plain.fit_report_.loss
    assert all(row["value"] != row["default"] for row in model.fit_report_.learned.values())


def test_polarizabilities_are_ignored_where_nothing_is_learned(made, kernel):
    model = KQEq(kernel(3.0), None, charges=AtomicDipoles(), targets=None).fit(made)
    assert "do not determine it" in model.fit_report_.ignored["polarizability"]
    assert model.fit_report_.learned == {}


def test_learning_leaves_the_settings_alone(recovered):
    assert recovered.charges.polarizability == LEARN
    again = clone(recovered)
    assert again.charges.to_learn == recovered.charges.to_learn
    assert not hasattr(again, "potential_")
    again.set_params(charges__polarizability=None)
    assert again.charges.to_learn == ("hardness", "softness")


def test_evidence_learns_noise_next_to_element_parameters(made, kernel):
    model = KQEq(kernel(3.0), None, charges=AtomicDipoles(QEq(), LEARN), targets=["dipole", "polarizability"])
    model.fit(made[:6], optimize="evidence")
    assert "noise polarizability" in str(model.fit_report_)
    assert model.posterior_.noise["polarizability"] != DEFAULT_NOISE["polarizability"]
    assert model.fit_report_.learned["polarizability O"]["value"] > 0.0


def test_an_interrupted_fit_continues(made, kernel, tmp_path):
    def model(iterations):
        return KQEq(
            kernel(3.0),
            kernel(3.5),
            charges=AtomicDipoles(ACKS2(LEARN), LEARN),
            noise={"energy": 1e-4, "forces": 1e-3, "dipole": 1e-3, "polarizability": 1e-4},
            max_iterations=iterations,
        )

    whole = model(2)
    with pytest.warns(KQEqWarning, match="without converging"):
        whole.fit(made)
    path = tmp_path / "fit.ckpt"
    with pytest.warns(KQEqWarning, match="without converging"):
        model(1).fit(made, resume=path)
    resumed = model(2)
    with pytest.warns(KQEqWarning, match="without converging"):
        resumed.fit(made, resume=path)
    assert_array_equal(resumed.posterior_.u, whole.posterior_.u)


# -------------------------------------------------------- files, uncertainty


@pytest.mark.parametrize("posterior", [False, True])
def test_files_keep_settings_and_learned_values(recovered, made, tmp_path, posterior):
    path = tmp_path / "model.kqeq"
    recovered.save(path, posterior=posterior)
    loaded = kqeq.load(path)
    assert loaded.charges.to_dict() == recovered.charges.to_dict()
    assert loaded.potential_.charges.to_dict() == recovered.potential_.charges.to_dict()
    assert str(loaded.fit_report_) == str(recovered.fit_report_)
    for atoms in made[:3]:
        one, two = (m.predict(atoms, uncertainty=posterior) for m in (recovered, loaded))
        for name in ("energy", "forces", "charges", "dipole", "polarizability"):
            assert_array_equal(getattr(one, name), getattr(two, name))
        if posterior:
            for name in ("energy_std", "forces_std", "dipole_std"):
                assert_array_equal(getattr(one, name), getattr(two, name))
                assert np.min(getattr(one, name)) > 0.0


def test_softness_by_pair_is_fitted_and_kept_in_files(water_training, kernel, tmp_path):
    charges = AtomicDipoles(ACKS2(pair_softness={"H-O": LEARN, "O-O": 0.0}))
    model = KQEq(
        kernel(3.0, n_representatives=4, zeta=2),
        None,
        charges=charges,
        targets=["dipole"],
        noise={"dipole": 0.05},
    ).fit(water_training)
    assert list(model.fit_report_.learned) == ["pair_softness H-O"]
    learned = model.potential_.charges.inner.pair_softness
    assert learned["O-O"] == 0.0
    assert abs(np.log(learned["H-O"])) > 0.05  # not where it started
    assert_allclose(learned["H-O"], model.fit_report_.learned["pair_softness H-O"]["value"])
    model.save(tmp_path / "model.kqeq", posterior=True)
    loaded = kqeq.load(tmp_path / "model.kqeq")
    assert loaded.charges.to_dict() == charges.to_dict()
    assert loaded.potential_.charges.inner.pair_softness == learned
    one, two = (m.predict(water_training[0], uncertainty=True) for m in (model, loaded))
    for name in ("charges", "dipole", "dipole_std"):
        assert_array_equal(getattr(one, name), getattr(two, name))


def test_uncertain_element_parameters_widen_the_uncertainty(made, kernel):
    """With the same posterior factor, leaving the learned columns away takes variance away."""
    model = KQEq(kernel(3.0), None, charges=AtomicDipoles(QEq(), LEARN), targets=["dipole"]).fit(made)
    prediction = model.predict(made[0], uncertainty=True)
    known = model.posterior_
    part = known.parameters.learned
    lower = known.lower.copy()
    lower[part.columns, part.columns] += 1e6 * np.eye(part.elements.size)
    model.posterior_ = replace(known, lower=lower)
    surer = model.predict(made[0], uncertainty=True)
    assert (surer.dipole_std <= prediction.dipole_std).all()
    assert (surer.dipole_std < 0.999 * prediction.dipole_std).any()


# ----------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"charges": QEq(hardness="lern")}, r"hardness='lern'.*: expected a dict"),
        ({"charges": QEq(), "targets": ["polarizability"]}, r"targets holds 'polarizability'.*\"learn\""),
        ({"charges": QEq(LEARN), "noise": {"polarizability": 0.0}}, r'noise\["polarizability"\] is 0.0'),
        (
            {"charges": QEq(LEARN), "targets": ["polarizability"]},
            r"asks for polarizability, but no frame carries it",
        ),
        (
            {"charges": AtomicDipoles(QEq(LEARN), {"O": -1.0}), "targets": ["dipole"]},
            r"frame 0: .*polarizability",
        ),
    ],
)
def test_wrong_input_is_refused(options, text, water_training, kernel):
    with pytest.raises(InputError, match=text):
        KQEq(kernel(3.0), None, **options).fit(water_training)


def test_polarizabilities_of_periodic_frames_are_ignored(kernel):
    frames = []
    for shift in (0.0, 0.05, 0.1):
        atoms = Atoms("OH2", [[0, 0, 0], [0.96 + shift, 0, 0], [-0.24, 0.93, 0]], cell=[6, 6, 6], pbc=True)
        atoms.info.update(energy=-1.0 + shift, polarizability=np.eye(3))
        frames.append(atoms)
    # made-up energies: a fit that follows them closely would take long
    model = KQEq(kernel(3.0, n_representatives=2), None, charges=QEq(LEARN), noise={"energy": 0.1}).fit(
        frames
    )
    assert "isolated systems" in model.fit_report_.ignored["polarizability"]
