"""Adding frames to a fitted model: exact where the model is linear, close where it is not."""

import re

import numpy as np
import pytest

import kqeq
from checks import assert_close
from conftest import NOISE, small_kernel
from kqeq import KQEq
from kqeq.errors import InputError, KQEqWarning, ModelNotFittedError, UnsupportedError
from kqeq.fitting.fit import FitResult
from kqeq.fitting.least_squares.solver import minimise
from kqeq.fitting.problem import FitProblem
from kqeq.fitting.rows.targets import choose_labels
from kqeq.frames.labels import LabelKeys, read_frames


def dipoles(**options):
    return KQEq(small_kernel(3.5), short_range=None, targets=["dipole"], **options)


def charges(**options):
    return KQEq(
        small_kernel(3.5),
        short_range=None,
        targets=["dipole", "charges"],
        charges_key="hirshfeld",
        **options,
    )


def short_range(**options):
    return KQEq(
        electronegativity=None, charges=None, short_range=small_kernel(4.0, zeta=4), noise=NOISE, **options
    )


def everything(**options):
    return KQEq(small_kernel(3.5), small_kernel(4.0, zeta=4), noise=NOISE, **options)


@pytest.fixture(scope="module")
def frames(water_systems):
    """Two parts that share no frame."""
    names = ("water1", "water2", "hydronium", "hydroxide")
    return [[water_systems[n][i] for n in names for i in part] for part in ((0, 3, 6), (1, 4, 7))]


def joint(model, frames):
    """One fit to all frames with the parameters, priors and noises of a fit to some."""
    posterior = model.posterior_
    keys = LabelKeys(charges=model.charges_key_)
    chosen, used, _ = choose_labels(list(read_frames(frames, keys)), model._settings(model.targets))
    linear = posterior.parameters.electronegativity is None or used.keys() <= {"dipole", "charges"}
    problem = FitProblem(chosen, posterior.parameters, posterior.noise, linear=linear)
    try:
        return minimise(problem, posterior.u, solver=model.solver)
    finally:
        problem.close()


@pytest.mark.parametrize("solver", ["auto", "qr"])
@pytest.mark.parametrize("make", [dipoles, charges, short_range])
def test_linear_models_end_where_one_fit_to_all_frames_ends(make, solver, frames):
    first, more = frames
    model = make(solver=solver).fit(first)
    old = model.posterior_
    expected = joint(model, first + more)
    assert model.update(more) is model
    scale = np.abs(expected.u).max()
    np.testing.assert_allclose(model.posterior_.u, expected.u, rtol=0, atol=1e-9 * scale)
    np.testing.assert_allclose(
        model.posterior_.lower, expected.lower, rtol=0, atol=1e-9 * np.abs(expected.lower).max()
    )
    assert np.abs(old.u - expected.u).max() > 1e-3 * scale
    assert model.fit_report_.loss == pytest.approx(expected.loss, rel=1e-9)
    assert model.fit_report_.n_residuals == expected.n_residuals


def test_in_pieces_and_in_any_order(frames):
    first, more = frames
    whole = dipoles().fit(first).update(more)
    pieces = dipoles().fit(first)
    for part in (more[7:], more[:3], more[3:7]):
        pieces.update(part)
    assert_close(pieces.posterior_.u, whole.posterior_.u, rtol=1e-9, at_least=0.1)
    assert pieces.fit_report_.used == whole.fit_report_.used == {"dipole": 24}


def test_weights_count(frames):
    first, more = frames
    twice = dipoles().fit(first).update(more + more)
    weighted = dipoles().fit(first).update(more, sample_weight=[2.0] * len(more))
    assert_close(weighted.posterior_.u, twice.posterior_.u, rtol=1e-9, at_least=0.1)


def test_after_loading(frames, tmp_path):
    first, more = frames
    model = charges().fit(first)
    model.save(tmp_path / "model.kqeq", posterior=True)
    loaded = kqeq.load(tmp_path / "model.kqeq").update(more)
    model.update(more)
    np.testing.assert_array_equal(loaded.posterior_.u, model.posterior_.u)
    np.testing.assert_array_equal(loaded.posterior_.lower, model.posterior_.lower)
    loaded.save(tmp_path / "model.kqeq", posterior=True)
    again = kqeq.load(tmp_path / "model.kqeq")
    np.testing.assert_array_equal(
        again.predict(more[0], properties=["charges"]).charges,
        model.predict(more[0], properties=["charges"]).charges,
    )
    assert again.fit_report_.n_frames == 24


def test_other_models_come_close_to_one_fit_to_all_frames(water_systems):
    """Energies, forces and dipoles of charged models: the old frames are a quadratic form."""
    names = ("water1", "water2", "hydronium", "hydroxide")
    first, more = (
        [water_systems[n][i] for n in names for i in part] for part in ((0, 2, 3, 5, 6, 8), (1, 7))
    )
    model = everything().fit(first)
    old = model.posterior_.u
    before = model.evaluate(more)
    expected = joint(model, first + more)
    model.update(more)
    assert model.fit_report_.converged
    found = model.posterior_

    def distance(u):
        """In standard deviations of the joint posterior."""
        return np.linalg.norm(expected.lower.T @ (u - expected.u))

    # both fits end where a last step would gain a hundredth of the loss
    assert distance(found.u) < 0.5 * distance(old)
    after = model.evaluate(more)
    assert after["forces"].rmse < before["forces"].rmse
    assert after["energy"].rmse < before["energy"].rmse
    # the quadratic form at its minimum is the old loss: what is reported is close to the joint loss
    assert model.fit_report_.loss == pytest.approx(expected.loss, rel=0.1)


def test_element_parameters_go_on_being_learned(water_systems):
    source = [water_systems["water2"][i] for i in range(8)]
    made = []  # with the polarizabilities of other hardnesses
    truth = kqeq.AtomicDipoles(kqeq.QEq(hardness={"O": 14.0, "H": 15.0}))
    rng = np.random.default_rng(0)
    for atoms in source:
        copy = atoms.copy()
        copy.info = {
            "polarizability": truth.bind(kqeq.frames.structures.read_structure(atoms)).polarizability(),
            "dipole": atoms.get_dipole_moment() + rng.normal(0.0, 0.01, 3),
        }
        made.append(copy)
    model = KQEq(
        small_kernel(3.5), short_range=None, charges=kqeq.AtomicDipoles(kqeq.QEq(hardness="learn"))
    ).fit(made[:3])
    error = model.fit_report_.learned["hardness O"]["error"]
    model.update(made[3:])
    assert model.fit_report_.learned["hardness O"]["error"] < error
    assert model.fit_report_.learned["hardness O"]["value"] == pytest.approx(14.0, rel=0.1)
    assert model.potential_.charges.to_learn == ()


def test_what_evidence_learned_is_kept(frames):
    first, more = frames
    model = dipoles().fit(first, optimize="evidence")
    noise, delta = model.posterior_.noise, model.posterior_.parameters.electronegativity.deltas[0]
    assert noise["dipole"] != 0.01
    expected = joint(model, first + more)
    model.update(more)
    assert (
        model.posterior_.noise == noise and model.posterior_.parameters.electronegativity.deltas[0] == delta
    )
    assert_close(model.posterior_.u, expected.u, rtol=1e-9, at_least=0.1)


def test_uncertainties_shrink(frames):
    first, more = frames
    model = dipoles().fit(first)
    before = model.predict(more[0], uncertainty=True).dipole_std
    after = model.update(more).predict(more[0], uncertainty=True).dipole_std
    assert (after < before).all()


def test_the_report_tells(frames):
    first, more = frames
    model = everything().fit(first)
    loss = model.fit_report_.loss
    report = model.update(more).fit_report_
    text = str(report)
    assert report.n_frames == 24
    assert report.n_atoms == sum(map(len, first + more))
    assert report.used == {"energy": 24, "forces": 24, "dipole": 24}
    assert f"continued from a fit to 12 frames (loss {loss:.6g}) with 12 more" in text
    assert "quadratic form" in text
    assert "condition" in text


def test_charge_states_are_remembered(water_systems):
    neutral, charged = water_systems["water1"], water_systems["hydronium"]
    model = everything().fit(neutral[:6])
    assert model.potential_.training_charges == (0.0,)
    model.update(charged[:3])
    assert model.potential_.training_charges == (0.0, 1.0)


def test_the_posterior_is_all_that_is_kept(frames):
    model = dipoles().fit(frames[0])
    assert not [name for name, value in vars(model).items() if isinstance(value, FitResult)]
    assert sum(value is model.posterior_.lower for value in vars(model.posterior_).values()) == 1


# --------------------------------------------------------------- bad input


def test_elements_that_the_model_does_not_know(frames):
    model = dipoles().fit(frames[0])
    other = frames[1][0].copy()
    other.info["dipole"] = np.zeros(3)
    other.numbers[0] = 16
    before = model.posterior_
    with pytest.raises(InputError, match=re.escape("frame 1 contains S; the model was fitted on H, O only")):
        model.update([frames[1][0], other])
    assert model.posterior_ is before


def test_other_kinds_of_labels(frames):
    model = dipoles().fit(frames[0])
    bare = [atoms.copy() for atoms in frames[1]]
    for atoms in bare:
        atoms.info = {"energy": 1.0, "total_charge": atoms.info["total_charge"]}
    with pytest.raises(InputError, match=r"was fitted to dipole, and the 12 frames to add carry energy"):
        model.update(bare)
    for atoms in bare:
        del atoms.info["energy"]
    with pytest.raises(InputError, match="carry no labels"):
        model.update(bare)
    with pytest.raises(InputError, match="no usable label"):
        model.update([*frames[1], bare[0]])
    report = model.update(frames[1]).fit_report_
    assert "was not fitted to it" in report.ignored["energy"]


def test_a_model_without_posterior(frames, tmp_path):
    model = dipoles()
    with pytest.raises(ModelNotFittedError):
        model.update(frames[1])
    model.fit(frames[0]).save(tmp_path / "model.kqeq")
    with pytest.raises(UnsupportedError, match=r"adding frames needs the posterior.*posterior=True"):
        kqeq.load(tmp_path / "model.kqeq").update(frames[1])


def test_contradictions_are_reported(frames):
    model = everything().fit(frames[0])
    energy = frames[1][0].get_potential_energy()
    first, second = frames[1][0].copy(), frames[1][0].copy()
    first.info["energy"], second.info["energy"] = energy, energy + 2.0
    with pytest.warns(KQEqWarning, match="frames 0 and 1"):
        model.update([first, second])
