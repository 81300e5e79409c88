"""Models side by side on left-out frames: the refits, the table, the choice, and ``charges="auto"``."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.lj import LennardJones
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, cross_val_score, learning_curve

import kqeq
from conftest import NOISE, small_kernel
from kqeq import KQEq
from kqeq.cli import main
from kqeq.errors import InputError
from kqeq.fitting.cross_validation import refits
from kqeq.fitting.fit import fit_potential
from kqeq.fitting.metrics import Errors, Evaluation
from kqeq.frames.label_checks import survey
from kqeq.frames.labels import read_frames
from kqeq.model.comparison import Candidate, charge_candidates, choose
from systems import water_cell

FEW = {
    "short-range": {"electronegativity": None, "charges": None},
    "QEq": {"charges": kqeq.QEq()},
    "QEq, charge-aware": {"charges": kqeq.QEq(), "charge_aware": kqeq.ChargeKernel()},
}


def small(**changes):
    settings = {"noise": NOISE, "max_iterations": 60, **changes}
    kernels = small_kernel(3.5, n_representatives=12), small_kernel(3.0, zeta=4, n_representatives=10)
    return KQEq(*kernels, **settings)


@pytest.fixture(scope="module")
def frames(water_systems):
    """In the order of a file that is sorted by system."""
    return [water_systems[name][i] for name in ("water1", "water2", "hydronium") for i in range(6)]


@pytest.fixture(scope="module")
def comparison(frames):
    return kqeq.compare(frames, small(), candidates=FEW, folds=3)


@pytest.mark.parametrize("charges", [True, False])
def test_refits_are_fits_without_the_fold(charges, frames):
    """Exact where the model is linear; with charges errors of the fold are those of a fit of its own to a tenth."""
    # element energies are guessed from the frames of a fit: forces alone do without
    model = small() if charges else small(charges=None, targets=["forces"]).set_params(electronegativity=None)
    pairs = survey(frames, model._keys(None)).pairs
    settings = model._settings(None)
    everything = fit_potential(pairs, settings)
    fold = frozenset(range(0, len(frames), 3))
    (found,) = refits(everything, settings, [fold])
    rest = [pair for i, pair in enumerate(pairs) if i not in fold]
    own = fit_potential(rest, settings, like=everything).potential
    errors = {}
    for name, potential in {"refit": found, "own": own, "all": everything.potential}.items():
        predictions = potential.predict_many([pairs[i][0] for i in sorted(fold)], ("forces",))
        differences = [p.forces - pairs[i][1].forces for i, p in zip(sorted(fold), predictions, strict=True)]
        errors[name] = np.concatenate([d.ravel() for d in differences])
    rmse = {name: float(np.sqrt(np.mean(own**2))) for name, own in errors.items()}
    assert rmse["own"] > 1.05 * rmse["all"]  # the fold matters
    if charges:
        assert rmse["refit"] == pytest.approx(rmse["own"], rel=0.1)
    else:
        # products of features are summed in single precision where that is harmless
        np.testing.assert_allclose(errors["refit"], errors["own"], atol=2e-3)


def test_table_and_choice(comparison):
    assert list(comparison.candidates) == list(FEW) and comparison.best in FEW
    assert comparison.frames == 18 and comparison.folds == 3
    judged = {name: own.errors["forces"].rmse for name, own in comparison.candidates.items()}
    assert judged[comparison.best] <= 1.05 * min(judged.values()) or "energies are worse" in comparison.reason
    for own in comparison.candidates.values():
        assert set(own.by_charge) == {0.0, 1.0}
        # both parts together are the whole
        n = {charge: errors["forces"].n for charge, errors in own.by_charge.items()}
        squares = sum(n[charge] * errors["forces"].rmse ** 2 for charge, errors in own.by_charge.items())
        assert squares == pytest.approx(own.errors["forces"].n * own.errors["forces"].rmse ** 2)
        assert own.errors["forces"].n == 3 * (6 * 3 + 6 * 6 + 6 * 4)
        assert own.fit > 0.0 and own.folds > 0.0 and own.milliseconds > 0.0
    text = str(comparison)
    for word in ("QEq, charge-aware", "charge +1", "meV/Å", f"{comparison.best} *", comparison.reason):
        assert word in text
    assert json.loads(json.dumps(comparison.to_dict()))["best"] == comparison.best


def test_left_out_frames_are_not_seen(comparison, frames):
    """A model that saw the frames would have smaller errors."""
    seen = small().fit(frames).evaluate(frames)["forces"].rmse
    assert comparison.candidates["QEq"].errors["forces"].rmse > 1.1 * seen


def test_groups_are_left_out_together(frames):
    alone = kqeq.compare(
        frames,
        small(),
        candidates={"short-range": FEW["short-range"]},
        groups=kqeq.groups(frames, "composition"),
    )
    assert alone.folds == 3 and alone.best == "short-range"
    # energies of a composition that is left out are another matter
    mixed = kqeq.compare(frames, small(), candidates={"short-range": FEW["short-range"]}, folds=3)
    first, second = (c.candidates["short-range"].errors["energy"].rmse for c in (alone, mixed))
    assert first > 3.0 * second


def test_what_cannot_be_fitted_is_named(frames):
    fields = [atoms.copy() for atoms in frames]
    for atoms, given in zip(fields, frames, strict=True):
        atoms.calc = given.calc
        atoms.info["external_field"] = [0.0, 0.0, 0.01]
    found = kqeq.compare(
        fields, small(), candidates={name: FEW[name] for name in ("short-range", "QEq")}, folds=2
    )
    assert found.best == "QEq" and found.candidates["short-range"].errors is None
    assert "not fitted: short-range" in str(found) and "external field" in str(found)
    with pytest.raises(InputError, match="external field"):
        kqeq.compare(fields, small(), candidates={"short-range": FEW["short-range"]}, folds=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 1}, "folds is 1 for 18 groups"),
        ({"groups": [0] * 18}, "all 18 belong to one group"),
        ({"groups": [0, 1]}, "groups holds 2 numbers for 18 frames"),
        ({"candidates": {}}, "candidates is empty"),
    ],
)
def test_settings_that_make_no_sense(changes, message, frames):
    with pytest.raises(InputError, match=message):
        kqeq.compare(frames, small(), **{"candidates": FEW, **changes})


def rows(**forces):
    """Candidates with these errors: forces, energy, and dipole where there is a third."""
    kinds = ("forces", "eV/Å"), ("energy", "eV/atom"), ("dipole", "e·Å")
    return {
        name: Candidate(
            name,
            Evaluation(
                {
                    kind: Errors(value, value, unit, 1, 0.0)
                    for (kind, unit), value in zip(kinds, values, strict=False)
                },
                {},
            ),
        )
        for name, values in forces.items()
    }


@pytest.mark.parametrize(
    ("errors", "best", "words"),
    [
        ({"a": (0.10, 1.0), "b": (0.08, 1.0)}, "b", r"smallest error \(80 meV/Å; next a 100 meV/Å\)"),
        ({"a": (0.083, 1.0), "b": (0.08, 1.0)}, "a", "the simplest of those within 5%"),
        ({"a": (0.083, 9.0), "b": (0.08, 1.0)}, "b", "smallest error"),
        (
            {"a": (0.080, 9.0), "b": (0.083, 1.0)},
            "b",
            "whose energies or dipoles are worse by more than a factor",
        ),
        (
            {"a": (0.08, 1.0, 0.2), "b": (0.083, 1.0, 0.1)},
            "b",
            r"of the best \(a 80 meV/Å\), whose energies or dip",
        ),
        (
            {"a": (0.082, 1.0, 0.2), "b": (0.081, 1.0, 0.1), "c": (0.08, 1.0, 0.1)},
            "b",
            "the simplest .*, a aside, whose energies or dipoles are worse",
        ),
        ({"a": (0.083, 1.0), "b": (0.08, 1.0, 0.1)}, "a", "predicts no dipoles"),
    ],
)
def test_choice(errors, best, words):
    found, reason, kind = choose(rows(**errors))
    assert found == best and kind == "forces"
    assert re.search(words, reason)


def test_automatic_charges(frames, tmp_path, monkeypatch):
    """The model is the best of the comparison; files, clones and updates know which it was."""
    monkeypatch.setattr(
        "kqeq.model.estimator.charge_candidates",
        lambda settings, structures: {
            "short-range": replace(settings, charges=None, electronegativity=None),
            "QEq": settings,
        },
    )
    model = small(charges="auto").fit(frames)
    assert model.get_params()["charges"] == "auto" and clone(model).charges == "auto"
    found = model.comparison_
    assert any(found.reason in note for note in model.fit_report_.notes)
    own = small().set_params(**found.settings[found.best]).fit(frames)
    first, second = model.predict(frames[0]), own.predict(frames[0])
    np.testing.assert_allclose(first.forces, second.forces, atol=2e-3)
    assert (model.potential_.charges is None) == (found.best == "short-range")
    model.save(tmp_path / "model.kqeq")
    loaded = kqeq.load(tmp_path / "model.kqeq")
    np.testing.assert_array_equal(loaded.predict(frames[0]).forces, first.forces)
    assert loaded.charges != "auto"
    model.update(frames[:2])
    assert np.isfinite(model.predict(frames[0]).energy)
    with pytest.raises(InputError, match=r'budget was given with charges="auto"'):
        small(charges="auto").fit(frames, budget="1 min")


def test_command(frames, tmp_path, capsys, monkeypatch):
    from ase.io import write

    write(tmp_path / "train.xyz", frames[::2])
    (tmp_path / "settings.toml").write_text(
        "[electronegativity]\nr_cut = 3.0\nn_max = 3\nl_max = 2\nn_representatives = 3\n"
        "[short_range]\nr_cut = 3.0\nn_max = 3\nl_max = 2\nn_representatives = 3\n"
        "[noise]\nforces = 0.5\nenergy = 0.05\n"
    )
    monkeypatch.chdir(tmp_path)
    options = ["--config", "settings.toml", "--folds", "2", "--json", "table.json"]
    assert main(["compare", "train.xyz", *options]) == 0
    printed = capsys.readouterr().out
    table = json.loads((tmp_path / "table.json").read_text())
    assert f"take {table['best']}" in printed
    assert len([own for own in table["candidates"].values() if "errors" in own]) >= 5


@pytest.mark.parametrize("how", ["option", "file"])
def test_automatic_charges_from_the_command_line(how, frames, tmp_path, capsys, monkeypatch):
    from ase.io import write

    monkeypatch.setattr(
        "kqeq.model.estimator.charge_candidates",
        lambda settings, structures: {"short-range": replace(settings, charges=None, electronegativity=None)},
    )
    write(tmp_path / "train.xyz", frames[::2])
    kernel = "r_cut = 3.0\nn_max = 3\nl_max = 2\nn_representatives = 3\n"
    text = f"[electronegativity]\n{kernel}[short_range]\n{kernel}"
    (tmp_path / "settings.toml").write_text(('charges = "auto"\n' if how == "file" else "") + text)
    monkeypatch.chdir(tmp_path)
    options = ["--charges", "auto"] if how == "option" else []
    assert main(["fit", "train.xyz", "-o", "m.kqeq", "--config", "settings.toml", *options]) == 0
    assert 'charges="auto": take short-range' in capsys.readouterr().out
    assert kqeq.load("m.kqeq").potential_.charges is None


def test_charge_models_of_the_command_line():
    from kqeq.cli.training import _charges

    assert _charges(None) == {} and _charges("auto") == {"charges": "auto"}
    assert _charges("none") == {"charges": None, "electronegativity": None}
    assert isinstance(_charges("ACKS2")["charges"], kqeq.ACKS2)
    with pytest.raises(InputError, match="unknown charge model 'QEQ'"):
        _charges("QEQ")


# ------------------------------------------------------------- scikit-learn's own tools


def test_score_is_not_drowned_by_a_new_composition(water_systems):
    """Folds of a sorted file hold systems that the fit has not seen: a score that still tells good from bad."""
    frames = [water_systems[name][i] for name in ("water1", "water2", "water3") for i in range(4)]
    model = KQEq(
        None, small_kernel(3.0, zeta=4, n_representatives=3), None, noise=NOISE, targets=["energy", "forces"]
    )
    unshuffled = cross_val_score(model, frames, cv=KFold(3))
    assert (unshuffled >= -1.0).all() and (unshuffled <= 1.0).all()
    together = cross_val_score(
        model,
        frames,
        groups=kqeq.groups(frames),
        cv=GroupKFold(3, shuffle=True, random_state=0),
    )
    assert (together > unshuffled.mean()).all()


def test_grid_search_and_learning_curve(water_systems):
    """The recipes of docs/settings.md."""
    frames = [water_systems[name][i] for name in ("water1", "water2") for i in range(8)]
    model = KQEq(
        None, small_kernel(3.0, zeta=4, n_representatives=3), None, noise=NOISE, targets=["energy", "forces"]
    )
    cv = GroupKFold(3, shuffle=True, random_state=0)
    groups = kqeq.groups(frames)
    search = GridSearchCV(model, {"short_range__n_representatives": [1, 3]}, cv=cv)
    search.fit(frames, groups=groups)
    assert search.best_params_ == {"short_range__n_representatives": 3}
    sizes, _, scores = learning_curve(
        model,
        frames,
        None,
        groups=groups,
        cv=cv,
        train_sizes=[5, 10],
        shuffle=True,
        random_state=0,
    )
    assert list(sizes) == [5, 10] and scores[1].mean() > scores[0].mean()


def test_baselines_are_compared(frames):
    """Short-range energy and QEq on top of each, by name and as an object; settings reproduce the models."""
    from kqeq.baselines import ZBL

    few, model = {"short-range": FEW["short-range"]}, small(optimize=None, max_iterations=8)
    reaches = "zbl:0.5:1.2"  # into bonds, so that it matters
    found = kqeq.compare(frames[::2], model, candidates=few, baselines=[reaches, ZBL(0.5, 1.2)], folds=2)
    for name in (reaches, "ZBL"):
        for which, charges in (("short-range", None), ("QEq", "default")):
            own = found.settings[f"{name} + {which}"]
            assert own["charges"] == charges and found.candidates[f"{name} + {which}"].errors is not None
    assert found.settings[f"{reaches} + QEq"]["baseline"] == reaches
    named, given = (found.candidates[f"{name} + short-range"].errors for name in (reaches, "ZBL"))
    assert named["forces"].rmse == given["forces"].rmse
    assert named["forces"].rmse != found.candidates["short-range"].errors["forces"].rmse
    assert f"{reaches} + short-range" in str(found)
    assert "dipole" in found.candidates[f"{reaches} + QEq"].errors
    fitted = small(optimize=None).set_params(**found.settings[f"{reaches} + short-range"]).fit(frames)
    assert fitted.potential_.baseline is not None and fitted.potential_.charges is None


def test_a_baseline_below_everything_stays(frames):
    """The model's own baseline is below all candidates that do not name another."""
    own = small(optimize=None, baseline="zbl:0.5:1.2")
    below = {"alone": FEW["short-range"], "without": {**FEW["short-range"], "baseline": None}}
    found = kqeq.compare(frames, own, candidates=below, baselines=["zbl:0.5:1.1"], folds=2)
    names = ("alone", "without", "zbl:0.5:1.1 + short-range")
    errors = {found.candidates[name].errors["forces"].rmse for name in names}
    assert len(errors) == 3


def test_many_atoms_are_compared_on_some_frames(frames, monkeypatch):
    from kqeq.model import comparison as module

    pairs = survey(frames, small()._keys(None)).pairs
    group = module.groups_of(pairs)
    assert module.sample(pairs, group) is None  # few atoms
    monkeypatch.setattr(module, "MOST_ATOMS", sum(len(a) for a in frames) // 2)
    chosen = module.sample(pairs, group)
    assert len(chosen) == 9 and {frames[i].info["system"] for i in chosen} == {
        "water1",
        "water2",
        "hydronium",
    }
    repeated = [pair for pair in pairs for _ in range(3)]
    together = module.sample(repeated, module.groups_of(repeated))
    assert sorted({i // 3 for i in together}) == [i // 3 for i in together][::3]  # geometries stay whole
    assert module.sample(pairs, group, ["dipole"]) is None  # no gradients to fit
    found = kqeq.compare(frames, small(optimize=None), candidates=FEW, folds=3)
    assert (found.frames, found.of) == (9, 18) and "9 of 18 frames" in str(found)


def test_default_kernels_are_smaller_where_frames_are_left_away():
    from kqeq.model.comparison import COARSE, coarse

    settings = KQEq(short_range=small_kernel(3.0))._settings(None)
    found = coarse(settings)
    assert all(kernel.n_representatives == COARSE for kernel in found.electronegativity)
    assert found.short_range == settings.short_range
    assert len(found.electronegativity) == len(settings.electronegativity)


def test_the_best_of_some_frames_is_fitted_to_all(frames, monkeypatch):
    from kqeq.model import comparison as module
    from kqeq.model import estimator

    def two(settings, structures):
        found = module.charge_candidates(settings, structures)
        return {name: found[name] for name in ("short-range", "QEq")}

    monkeypatch.setattr(estimator, "charge_candidates", two)
    monkeypatch.setattr(module, "MOST_ATOMS", sum(len(a) for a in frames) // 2)
    model = small(charges="auto", optimize=None).fit(frames)
    assert (model.comparison_.frames, model.comparison_.of) == (9, 18)
    assert model.fit_report_.n_frames == 18
    assert (model.potential_.charges is None) == (model.comparison_.best == "short-range")
    assert "take " in str(model.fit_report_)


def test_a_periodic_set_is_compared(monkeypatch):
    """All models on some of the cells; two iterations show that each can be fitted and refitted."""
    from kqeq.model import comparison as module

    rng, frames = np.random.default_rng(0), []
    for _ in range(5):
        atoms = water_cell()
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        labelled = atoms.copy()
        atoms.calc = LennardJones(sigma=0.9, epsilon=0.1, rc=2.6)
        labelled.info["energy"], labelled.arrays["forces"] = atoms.get_potential_energy(), atoms.get_forces()
        frames.append(labelled)
    monkeypatch.setattr(module, "MOST_ATOMS", 60)
    monkeypatch.setattr(module, "FOLDS", 2)
    kernels = [small_kernel(2.5, n_max=3, l_max=2, n_representatives=4) for _ in range(2)]
    found = kqeq.compare(frames, KQEq(*kernels, noise=NOISE, max_iterations=2))
    assert (found.frames, found.of) == (4, 5)
    fitted = [name for name, own in found.candidates.items() if own.errors is not None]
    assert len(fitted) >= 6 and all("forces" in found.candidates[name].errors for name in fitted)


def test_latent_charges_have_kernels_of_their_own():
    def reaches(settings):
        return [kernel.r_cut for kernel in settings.electronegativity]

    for model, own in ((KQEq(), [4.0, 6.0]), (KQEq(charges=kqeq.LatentCharges()), [2.5, 4.0])):
        settings = model._settings(None)
        assert reaches(settings) == own
        candidates = charge_candidates(settings)
        assert reaches(candidates["latent charges, atomic dipoles"]) == [2.5, 4.0]
        assert reaches(candidates["QEq"]) == reaches(candidates["ACKS2"]) == [4.0, 6.0]
        assert ("as given" in candidates) == (own == [2.5, 4.0])
    given = KQEq(small_kernel(3.0), charges=kqeq.LatentCharges())._settings(None)
    assert all(reaches(s) == [3.0] for s in charge_candidates(given).values() if s.electronegativity)


def springs(charge, rng):
    """Water that the charge opens and loosens, with labels."""
    atoms = molecule("H2O")
    atoms.positions += rng.normal(scale=0.07, size=(3, 3))
    forces, energy = np.zeros((3, 3)), -10.0 + 4.0 * charge
    for i, j, length, stiffness in (
        (0, 1, 0.97, 20.0 - 14.0 * charge),
        (0, 2, 0.97, 20.0 - 14.0 * charge),
        (1, 2, 1.52 + 0.5 * charge, 6.0),
    ):
        arm = atoms.positions[i] - atoms.positions[j]
        stretch = np.linalg.norm(arm) - length
        energy += 0.5 * stiffness * stretch**2
        force = stiffness * stretch * arm / np.linalg.norm(arm)
        forces[i] -= force
        forces[j] += force
    atoms.info.update(total_charge=charge, energy=energy)
    atoms.arrays["forces"] = forces
    return atoms


def test_kernels_by_charge_where_one_composition_has_several(monkeypatch):
    from kqeq.kernels import settings as kernel_settings
    from kqeq.model import comparison as module

    rng = np.random.default_rng(4)
    frames = [springs(charge, rng) for charge in (0, 1) for _ in range(10)]
    settings = small()._settings(None)

    def names(some, own=settings):
        return set(charge_candidates(own, [structure for structure, _ in read_frames(some)]))

    assert "kernels by charge" in names(frames)
    ion = molecule("OH")
    ion.info["total_charge"] = -1
    assert "kernels by charge" not in names(frames[:10]) | names([*frames[:10], ion])
    two, three = (kernel_settings.automatic_by_charge(charges) for charges in ({0, 1}, {-1, 0, 1}))
    assert [k.condition for k in two] == ["charge", "charge"]
    assert [k.condition for k in three] == ["charge", "charge^2", "charge", "charge^2"]

    monkeypatch.setattr(
        module,
        "automatic_by_charge",
        lambda charges: (small_kernel(3.0, n_representatives=6, condition="charge"),),
    )
    listed = module.charge_candidates
    kept = ("short-range", "kernels by charge")
    monkeypatch.setattr(
        "kqeq.model.estimator.charge_candidates",
        lambda *given: {name: own for name, own in listed(*given).items() if name in kept},
    )
    model = small(charges="auto", optimize=None).fit(frames)
    found = model.comparison_
    assert found.best == "kernels by charge"
    errors = {name: own.errors["forces"].rmse for name, own in found.candidates.items()}
    assert errors["kernels by charge"] < 0.3 * errors["short-range"]
    assert [k.condition for k in found.settings[found.best]["short_range"]] == [None, "charge"]
    again = KQEq(**{**small(optimize=None).get_params(deep=False), **found.settings[found.best]}).fit(frames)
    np.testing.assert_allclose(again.predict(frames[-1]).forces, model.predict(frames[-1]).forces, atol=1e-6)
    far = frames[0].copy()
    far.info["total_charge"] = 3
    with pytest.raises(InputError, match="nothing determines this charge"):
        model.predict(far)


def test_the_default_fit_says_what_several_charges_may_need():
    rng = np.random.default_rng(5)
    frames = [springs(charge, rng) for charge in (0, 1) for _ in range(3)]
    told = "charges (0, +1)", 'charges="auto"'
    model = KQEq(noise=NOISE).fit(frames, optimize=None)
    assert any(all(words in note for words in told) for note in model.fit_report_.notes)
    for frames_, own in ((frames[:3], KQEq(noise=NOISE)), (frames, KQEq(noise=NOISE, charges=kqeq.QEq()))):
        notes = own.fit(frames_, optimize=None).fit_report_.notes
        assert not any("several total charges" in note for note in notes)
