"""The object users work with, as scikit-learn sees it."""

import copy
import inspect
import pickle

import numpy as np
import pytest
from ase import Atoms
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.utils.validation import check_is_fitted

import kqeq
from checks import assert_same_prediction, bare
from conftest import NOISE, small_kernel
from kqeq import KQEq, QEq, SOAPKernel
from kqeq.errors import InputError, ModelNotFittedError
from kqeq.kernels.settings import (
    automatic_electronegativity,
    automatic_short_range,
    default_electronegativity,
    default_short_range,
)

# ------------------------------------------------------------- conventions


def test_every_argument_has_a_default_that_works():
    model = KQEq()
    assert model.electronegativity == model.short_range == "auto"
    assert isinstance(model.charges, QEq)
    for kernel in (*automatic_electronegativity(), *automatic_short_range()):
        kernel.check()
    assert model.baseline is None


def test_the_public_interface_of_the_issue():
    """Arguments by the names that the README shows."""
    names = set(inspect.signature(KQEq).parameters)
    assert {
        "electronegativity",
        "short_range",
        "charges",
        "baseline",
        "noise",
        "targets",
        "charges_key",
    } <= names
    kernel = set(inspect.signature(SOAPKernel).parameters)
    assert {"r_cut", "n_max", "l_max", "sigma", "zeta", "n_representatives"} <= kernel
    assert {"total_charge", "external_field"} <= set(inspect.signature(KQEq.predict).parameters)


def test_models_do_not_share_settings():
    first, second = KQEq(), KQEq()
    first.set_params(electronegativity__zeta=7, charges__hardness={"H": 9.0})
    second.set_params(electronegativity__r_cut=3.0)
    assert second.electronegativity.zeta != 7
    assert second.charges.hardness is None


def test_nested_parameters():
    model = KQEq().set_params(short_range__r_cut=5.0, electronegativity__zeta=2)
    assert model.short_range.get_params() == default_short_range().get_params()
    assert model.electronegativity.get_params() == default_electronegativity().get_params()
    names = set(model.get_params())
    assert {"electronegativity__zeta", "short_range__r_cut", "charges__hardness", "noise", "targets"} <= names
    assert model.set_params(electronegativity__zeta=3, short_range__n_representatives=7) is model
    assert model.electronegativity.zeta == 3
    assert model.get_params()["short_range__n_representatives"] == 7
    assert model.set_params(short_range=None).short_range is None
    with pytest.raises(ValueError, match="Invalid parameter 'colour'"):
        model.set_params(colour="red")
    with pytest.raises(ValueError, match="Invalid parameter"):
        model.set_params(electronegativity__colour="red")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"electronegativity": None, "charges": None},
        {"short_range": None, "targets": ["dipole"], "noise": {"dipole": 0.1}},
        {"charges": QEq(hardness={"O": 10.0}), "baseline": "zbl", "e0": {"H": 0.0}, "label_prefix": "REF_"},
    ],
)
def test_clone(options):
    model = KQEq(**options)
    copy = clone(model)
    assert copy is not model
    ours, theirs = model.get_params(), copy.get_params()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if name not in ("electronegativity", "short_range", "charges"):
            assert theirs[name] == value, name
    for name in ("electronegativity", "short_range", "charges"):
        assert (getattr(copy, name) is None) == (getattr(model, name) is None)
        if getattr(model, name) not in (None, "auto"):
            assert getattr(copy, name) is not getattr(model, name)


def test_clone_forgets_the_fit(water_model):
    assert not hasattr(clone(water_model), "potential_")


def test_fit_returns_self_and_marks_itself_fitted(water_training, kernel):
    model = KQEq(kernel(3.0), None, targets=["dipole"])
    before = set(vars(model))
    with pytest.raises(NotFittedError):
        check_is_fitted(model)
    assert model.fit(water_training) is model
    check_is_fitted(model)
    assert all(name.endswith("_") for name in set(vars(model)) - before)
    assert model.species_ == ("H", "O")
    assert not is_classifier(model)


def test_fit_leaves_arguments_and_frames_alone(water_training, kernel):
    frames = copy.deepcopy(water_training)
    model = KQEq(kernel(3.0), None, noise={"dipole": 0.02}, targets=("dipole",))
    before = {name: repr(value) for name, value in model.get_params().items()}
    model.fit(frames)
    assert {name: repr(value) for name, value in model.get_params().items()} == before
    for ours, theirs in zip(frames, water_training, strict=True):
        assert ours == theirs
        assert ours.info.keys() == theirs.info.keys()
        assert ours.calc.results.keys() == theirs.calc.results.keys()


def test_refitting_forgets_the_first_fit(water_training, water_systems, kernel):
    model = KQEq(kernel(3.0, n_representatives=4), None, targets=["dipole"])
    model.fit(water_training)
    first = model.potential_
    model.fit(water_systems["water1"][:4])
    assert model.potential_ is not first
    assert model.potential_.training_charges == (0.0,)


def test_repr_is_short():
    text = repr(KQEq(electronegativity=SOAPKernel(zeta=3)))
    assert text.startswith("KQEq(")
    assert len(text) < 2000


# ------------------------------------------------------------ model selection


@pytest.fixture(scope="module")
def frames(water_systems):
    return [a for name in ("water1", "hydronium") for a in water_systems[name][:6]]


@pytest.fixture
def estimator(kernel):
    return KQEq(kernel(3.0, n_representatives=4), None, targets=["dipole"])


def test_grid_search_over_nested_parameters(estimator, frames):
    search = GridSearchCV(
        estimator,
        {"electronegativity__zeta": [1, 3], "electronegativity__n_representatives": np.array([2, 4])},
        cv=KFold(3, shuffle=True, random_state=0),
        error_score="raise",
    )
    search.fit(frames)
    scores = search.cv_results_["mean_test_score"]
    assert scores.shape == (4,)
    assert np.isfinite(scores).all()
    assert len(set(scores)) > 1
    assert search.best_estimator_.electronegativity.zeta in (1, 3)
    assert search.predict(frames[:2])[1].charges.shape == (3,)
    assert search.score(frames) == search.best_estimator_.score(frames)
    # numbers that came from an array of NumPy do not stop the model from being saved


def test_a_model_from_a_grid_search_can_be_saved(estimator, frames, tmp_path):
    grid = {"electronegativity__n_representatives": np.array([3]), "max_iterations": np.arange(20, 21)}
    search = GridSearchCV(estimator, grid, cv=2, error_score="raise").fit(frames)
    search.best_estimator_.save(tmp_path / "best.kqeq")
    assert kqeq.load(tmp_path / "best.kqeq").electronegativity.n_representatives == 3


def test_cross_validation_on_lists_of_frames(estimator, frames):
    scores = cross_val_score(
        estimator, frames, cv=KFold(3, shuffle=True, random_state=0), error_score="raise"
    )
    assert scores.shape == (3,)
    assert (scores > 0.2).all()
    assert (scores <= 1.0).all()


def test_cross_validation_passes_weights(estimator, frames):
    """One weight per frame, cut like the frames; zero weights make the score worse."""
    options = {"cv": KFold(2, shuffle=True, random_state=0), "error_score": "raise"}
    ones = cross_val_score(estimator, frames, params={"sample_weight": np.ones(len(frames))}, **options)
    plain = cross_val_score(estimator, frames, **options)
    np.testing.assert_allclose(ones, plain, rtol=1e-10)
    zeros = cross_val_score(estimator, frames, params={"sample_weight": np.zeros(len(frames))}, **options)
    assert zeros.mean() < plain.mean() - 0.05


def test_score_is_the_mean_coefficient_of_determination(water_model, water_training):
    evaluation = water_model.evaluate(water_training)
    assert set(evaluation) == {"energy", "forces", "dipole"}
    expected = np.mean([error.r2 for error in evaluation.values()])
    assert water_model.score(water_training) == pytest.approx(expected)
    assert water_model.score(water_training, None) == pytest.approx(expected)
    assert expected < 1.0


# ------------------------------------------------------------------ predict


def test_one_frame_gives_one_prediction_and_a_list_a_list(water_model, water_systems):
    frames = [
        bare(a) for name in ("water2", "water1", "water2", "hydroxide") for a in water_systems[name][:3]
    ]
    many = water_model.predict(frames)
    assert isinstance(many, list)
    assert len(many) == len(frames)
    for atoms, together in zip(frames, many, strict=True):
        alone = water_model.predict(atoms)
        assert len(together.charges) == len(atoms)
        assert together.energy == pytest.approx(alone.energy, abs=1e-8)
        np.testing.assert_allclose(together.forces, alone.forces, atol=1e-9)
        np.testing.assert_allclose(together.charges, alone.charges, atol=1e-10)
    assert isinstance(water_model.predict(frames[:1]), list)
    assert_same_prediction(water_model.predict(frames[:1])[0], water_model.predict(frames[0]))
    assert water_model.predict(tuple(frames[:2]))[0].energy == pytest.approx(many[0].energy)
    # a batch predicted again gives the same bits
    for first, second in zip(many, water_model.predict(frames), strict=True):
        assert_same_prediction(first, second)


def test_molecules_of_other_elements_between_do_not_matter(water_model, water_systems, monkeypatch):
    """Batches are made of structures that share their elements, wherever they stand; results keep their order."""
    from kqeq.potential import potential as module

    frames = [bare(a) for name in ("water1", "hydroxide", "water2") for a in water_systems[name][:4]]
    others = [Atoms("H2", [[0, 0, 0], [0, 0, 0.75 + 0.01 * i]]) for i in range(len(frames))]
    mixed = [frame for pair in zip(frames, others, strict=True) for frame in pair]
    calls = []
    original = module.Potential._predict_alike
    monkeypatch.setattr(
        module.Potential,
        "_predict_alike",
        lambda self, batch, *rest: calls.append(len(batch)) or original(self, batch, *rest),
    )
    many = water_model.predict(mixed)
    assert calls == [12, 12]
    for atoms, together in zip(mixed, many, strict=True):
        alone = water_model.predict(atoms)
        assert together.energy == pytest.approx(alone.energy, abs=1e-10)
        np.testing.assert_allclose(together.forces, alone.forces, rtol=0, atol=1e-10)
        np.testing.assert_allclose(together.charges, alone.charges, rtol=0, atol=1e-10)
    # the ends of batches and of stretches that are searched do not matter either
    monkeypatch.setattr(module, "BATCH_ATOMS", 7)
    monkeypatch.setattr(module, "_WINDOW_ATOMS", 40)
    for first, second in zip(many, water_model.predict(mixed), strict=True):
        assert first.energy == pytest.approx(second.energy, abs=1e-10)


def test_charge_and_field_from_arguments_and_from_info(water_model, water_systems):
    atoms = bare(water_systems["hydronium"][0])
    field = (0.0, 0.1, 0.2)
    by_argument = water_model.predict(atoms, total_charge=1, external_field=field)
    labelled = atoms.copy()
    labelled.info.update(total_charge=1, external_field=field)
    assert_same_prediction(water_model.predict(labelled), by_argument)
    assert_same_prediction(water_model.predict(labelled, total_charge=1), by_argument)
    assert by_argument.total_charge == 1.0
    neutral = water_model.predict(atoms)
    assert abs(neutral.energy - by_argument.energy) > 0.1
    both = water_model.predict([labelled, atoms])
    assert [p.total_charge for p in both] == [1.0, 0.0]


def test_choosing_properties(water_model, water_systems):
    atoms = bare(water_systems["water1"][0])
    only = water_model.predict(atoms, properties=["energy"])
    assert only.forces is None
    assert only.polarizability is None
    assert only.energy == water_model.predict(atoms).energy
    assert water_model.predict(atoms, properties="forces").forces.shape == (3, 3)
    with pytest.raises(InputError, match="unknown properties"):
        water_model.predict(atoms, properties=["potential"])


def test_predictions_do_not_depend_on_what_was_predicted_before(water_model, water_systems):
    atoms = bare(water_systems["water2"][4])
    before = water_model.predict(atoms)
    water_model.predict(bare(water_systems["hydronium"][2]), total_charge=1)
    water_model.predict(Atoms("H"))
    water_model.predict(Atoms("O2", [[0, 0, 0], [0, 0, 1.3]]))
    assert_same_prediction(water_model.predict(atoms), before)


def test_what_a_prediction_holds_does_not_change_the_model(water_model, water_systems):
    atoms = bare(water_systems["water2"][4])
    first = water_model.predict(atoms)
    keep = {name: np.copy(getattr(first, name)) for name in ("charges", "forces", "electronegativity")}
    for name in keep:
        getattr(first, name)[...] = 99.0
    second = water_model.predict(atoms)
    for name, value in keep.items():
        np.testing.assert_array_equal(getattr(second, name), value)


@pytest.mark.parametrize("travel", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy])
@pytest.mark.parametrize("kind", ["water_model", "dipole_model", "short_range_model"])
def test_models_can_be_copied_and_sent_to_workers(kind, travel, request, water_systems):
    model = request.getfixturevalue(kind)
    other = travel(model)
    for atoms in (bare(water_systems["water2"][1]), Atoms("H")):
        assert_same_prediction(other.predict(atoms), model.predict(atoms))


# ----------------------------------------------------------------- evaluate


def test_evaluate_compares_what_frames_and_model_share(dipole_model, short_range_model, water_training):
    evaluation = dipole_model.evaluate(water_training)
    assert list(evaluation) == ["dipole"]
    assert set(evaluation.skipped) == {"energy", "forces"}
    evaluation = short_range_model.evaluate(water_training)
    assert list(evaluation) == ["energy", "forces"]
    assert "does not predict" in evaluation.skipped["dipole"]


def test_evaluate_compares_charges_when_their_key_is_known(water_training, kernel):
    model = KQEq(kernel(3.0), None, targets=["dipole"], charges_key="hirshfeld").fit(water_training)
    evaluation = model.evaluate(water_training)
    assert evaluation["charges"].n == sum(len(a) for a in water_training)
    assert evaluation["charges"].unit == "e"


def test_a_label_prefix_is_used_for_fit_and_evaluation(water_training, kernel):
    frames = []
    for atoms in water_training:
        copy = Atoms(atoms.numbers, atoms.positions, info={"total_charge": atoms.info["total_charge"]})
        copy.info["REF_dipole"] = atoms.get_dipole_moment()
        copy.info["dipole"] = np.full(3, 99.0)
        frames.append(copy)
    model = KQEq(kernel(3.0), None, label_prefix="REF_").fit(frames)
    assert model.evaluate(frames)["dipole"].rmse < 0.2
    with pytest.raises(InputError, match='label_prefix="REF_"'):
        model.evaluate(water_training)


def test_evaluate_one_frame(water_model, water_training):
    assert water_model.evaluate(water_training[0])["energy"].n == 1


def test_score_without_anything_to_compare(dipole_model, water_training):
    atoms = bare(water_training[0])
    atoms.info["energy"] = 1.0
    with pytest.raises(InputError, match="no label that this model predicts"):
        dipole_model.score([atoms])


# ---------------------------------------------------------------- not fitted


@pytest.mark.parametrize("call", ["predict", "evaluate", "score", "save"])
def test_everything_that_needs_a_fit_says_so(call, water_training, tmp_path):
    target = tmp_path / "x.kqeq" if call == "save" else water_training
    with pytest.raises(ModelNotFittedError, match=r"not fitted yet; call model\.fit"):
        getattr(KQEq(), call)(target)
    assert not list(tmp_path.iterdir())


def test_the_short_recipes(water_training, kernel):
    """electronegativity=None, charges=None is a short-range potential; short_range=None charges alone."""
    short = KQEq(electronegativity=None, charges=None, short_range=kernel(3.0), noise=NOISE).fit(
        water_training
    )
    assert short.predict(bare(water_training[0])).charges is None
    charges = KQEq(kernel(3.0), short_range=None, noise=NOISE).fit(water_training)
    p = charges.predict(bare(water_training[0]))
    assert p.energy_short_range == 0.0
    assert p.energy_electrostatic != 0.0


# ------------------------------------------------------- scikit-learn's tools


APPLICABLE = (
    "check_parameters_default_constructible",
    "check_no_attributes_set_in_init",
    "check_get_params_invariance",
    "check_set_params",
    "check_estimator_repr",
    "check_estimator_cloneable",
    "check_estimators_unfitted",
    "check_valid_tag_types",
    "check_estimator_tags_renamed",
    "check_mixin_order",
)
"""The others fit to arrays of numbers."""


@pytest.mark.parametrize("name", APPLICABLE)
def test_checks_of_scikit_learn(name):
    from sklearn.utils import estimator_checks

    check = getattr(estimator_checks, name)
    check("KQEq", kqeq.KQEq())


def test_parts_that_were_not_given():
    one, two = kqeq.KQEq(), kqeq.KQEq()
    assert one.get_params()["charges"] == "default"
    assert "charges__fragments" in one.get_params()
    assert one.set_params(charges__fragments=True).charges.fragments
    assert not two.charges.fragments
    one.set_params(electronegativity__r_cut=3.0)
    assert one.electronegativity.r_cut == 3.0 and two.electronegativity == "auto"
    assert one.get_params()["electronegativity"] is one.electronegativity
    assert clone(one).electronegativity.r_cut == 3.0


def test_settings_of_the_fit_are_settings_of_the_model(water_training, kernel, tmp_path):
    settings = {"short_range": None, "targets": ["dipole"]}
    model = kqeq.KQEq(kernel(3.0), **settings, optimize="evidence", cache=tmp_path, device="cpu")
    again = clone(model).fit(water_training)
    by_hand = kqeq.KQEq(kernel(3.0), **settings).fit(water_training, optimize="evidence")
    np.testing.assert_array_equal(again.posterior_.u, by_hand.posterior_.u)
    assert again.posterior_.noise["dipole"] != 0.01
    again.save(tmp_path / "m.kqeq")
    loaded = kqeq.load(tmp_path / "m.kqeq")
    assert loaded.optimize == "evidence" and loaded.cache is None
    for wrong in ({"optimize": "evidenz"}, {"leave_out_failed": "no"}, {"cache": ""}, {"resume": 3}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            clone(model).set_params(**wrong).fit(water_training)
        with pytest.raises(InputError, match=next(iter(wrong))):
            clone(model).fit(water_training, **wrong)


def test_grid_search(water_training, kernel):
    from sklearn.model_selection import GridSearchCV

    model = kqeq.KQEq(kernel(3.0), None, targets=["dipole"])
    grid = {"optimize": [None, "evidence"], "electronegativity__zeta": [1, 2]}
    search = GridSearchCV(model, grid, cv=2, error_score="raise").fit(water_training)
    assert len(set(search.cv_results_["mean_test_score"])) == 4
    assert search.best_estimator_.predict(water_training[0]).dipole is not None


def test_the_seed_decides_what_is_drawn(water_training, tmp_path):
    """The same seed the same model; another draws other representatives, and files and the command line keep it."""
    from ase.io import write

    from kqeq.cli import main

    def fitted(seed):
        kernel = small_kernel(4.0, n_representatives=3, selection="leverage")
        return KQEq(electronegativity=None, charges=None, short_range=kernel, noise=NOISE, seed=seed).fit(
            water_training
        )

    one, again, other = fitted(1), fitted(1), fitted(2)
    energies = [model.predict(water_training[4]).energy for model in (one, again, other)]
    assert energies[0] == energies[1] != energies[2]
    one.save(tmp_path / "one.kqeq")
    assert kqeq.load(tmp_path / "one.kqeq").seed == 1
    with pytest.raises(InputError, match="seed"):
        fitted(-1)
    write(tmp_path / "train.xyz", water_training)
    config = tmp_path / "settings.toml"
    config.write_text(
        "charges = false\nelectronegativity = false\n[noise]\nenergy = 0.05\nforces = 0.5\n[short_range]\nr_cut = 4.0\n"
        'n_max = 4\nl_max = 3\nn_representatives = 3\nselection = "leverage"\n'
    )
    for seed in ("1", "2"):
        arguments = ["--config", str(config), "--seed", seed, "-o", str(tmp_path / f"{seed}.kqeq")]
        assert main(["fit", str(tmp_path / "train.xyz"), *arguments]) == 0
    loaded = [kqeq.load(tmp_path / f"{seed}.kqeq") for seed in ("1", "2")]
    assert [model.seed for model in loaded] == [1, 2]
    assert loaded[0].predict(water_training[4]).energy != loaded[1].predict(water_training[4]).energy
