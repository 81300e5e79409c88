"""Predicted distributions as wide as errors are: refits without frames and their representatives, and factors."""

from dataclasses import replace

import numpy as np
import pytest

import kqeq
from checks import assert_close
from conftest import NOISE, small_kernel
from kqeq import KQEq
from kqeq.fitting.least_squares.solver import minimise
from kqeq.fitting.problem import FitProblem
from kqeq.fitting.rows.targets import choose_labels
from kqeq.frames.grouping import groups
from kqeq.frames.labels import read_frames
from kqeq.frames.structures import read_structure
from kqeq.kernels.feature_map import FeatureMap
from kqeq.uncertainty import calibration
from kqeq.uncertainty.calibration import Judged, calibrate, factors_of, leave_out
from kqeq.uncertainty.posterior import AS_IT_IS, Factors, Uncertain


def kernels():
    """Every environment of the twelve frames is a representative."""
    return [small_kernel(4.0, zeta=4, n_representatives=60), small_kernel(2.5, n_representatives=60)]


def short_range(**options):
    return KQEq(electronegativity=None, charges=None, **{"short_range": kernels(), "noise": NOISE, **options})


@pytest.fixture(scope="module")
def fitted(water_training):
    with pytest.warns(kqeq.errors.RepresentativesWarning):
        return short_range().fit(water_training)


def training_frames(model, frames):
    return choose_labels(list(read_frames(frames)), model._settings(model.targets))[0]


def without_representatives(posterior, frames):
    """Parameters whose representatives are no environments of these frames."""
    parameters = posterior.parameters
    part = parameters.short_range
    maps = []
    for own in part.feature_maps:
        kept = {}
        for z, rows in own.representatives.items():
            gone = np.zeros(rows.shape[0], dtype=bool)
            for frame in frames:
                values = Uncertain(posterior, frame.structure).values[own]
                columns = own.project(frame.structure.species).get(z)
                if columns is not None:
                    dots = columns @ values[frame.structure.numbers == z].T
                    gone |= dots.max(axis=1) > 1.0 - 1e-9
            kept[z] = rows[np.flatnonzero(~gone)]
        assert sum(rows.shape[0] for rows in kept.values()) < own.size
        maps.append(FeatureMap(own.descriptor, own.zeta, kept, own.species))
    built = type(part).build(
        list(zip(maps, part.deltas, strict=True)),
        part.offset_mean,
        part.offset_spread,
        0,
        part.offset_scales,
    )
    return replace(parameters, short_range=built, size=built.size)


def test_equals_a_fit_without_the_frames_and_their_representatives(fitted, water_training):
    """Errors, variances and what is missed of actual fits with other features."""
    posterior, frames = fitted.posterior_, training_frames(fitted, water_training)
    frames = [replace(frame, labels=replace(frame.labels, dipole=None)) for frame in frames]
    fold = np.arange(len(frames)) % 4
    found = leave_out(posterior, frames, fold)
    assert set(found) == {"energy", "forces"}
    assert found["energy"].frames == len(frames) == len(found["energy"].errors)
    at = 0
    for k in range(4):
        left = [frame for frame, own in zip(frames, fold, strict=True) if own == k]
        parameters = without_representatives(posterior, left)
        others = [frame for frame, own in zip(frames, fold, strict=True) if own != k]
        problem = FitProblem(others, parameters, posterior.noise, linear=True)
        solution = minimise(problem, np.zeros(problem.size))
        problem.close()
        refitted = replace(posterior, parameters=parameters, u=solution.u, lower=solution.lower)
        for frame in left:
            view = Uncertain(refitted, frame.structure)
            mapped = view.linear_map("energy")
            mean = parameters.short_range.mean(frame.structure.numbers).sum()
            error = mean + (mapped.rows @ solution.u)[0] - frame.labels.energy
            missed = sum(own for _, own in view.missed(mapped))[0]
            total = view.variance("energy")[0]
            assert_close(found["energy"].errors[at], error, rtol=1e-5, at_least=1e-4)
            assert_close(found["energy"].missed[at], missed, rtol=1e-5, at_least=1e-6)
            assert_close(found["energy"].variances[at], total - missed, rtol=1e-5, at_least=1e-6)
            at += 1
    assert (found["energy"].missed > found["energy"].noise).sum() >= 3


def test_nothing_is_missed_where_the_representatives_stay(fitted, water_training, monkeypatch):
    """Without taking them away, left-out frames say nothing about what sparse features miss in energies."""
    frames = training_frames(fitted, water_training)
    fold = np.arange(len(frames)) % 4
    monkeypatch.setattr(calibration, "SAME", -1.0)  # no product exceeds 2
    found = leave_out(fitted.posterior_, frames, fold)["energy"]
    assert (found.missed < 1e-3 * found.noise).all()


def test_forces_are_judged_by_some_of_their_components(fitted, water_training, monkeypatch):
    """Their variance is that of a prediction of the refit; here of all, at once."""
    frames = training_frames(fitted, water_training)
    fold = np.arange(len(frames)) % 4
    monkeypatch.setattr(calibration, "MOST_FORCES", 1000)
    everything = leave_out(fitted.posterior_, frames, fold)["forces"]
    assert len(everything.errors) == sum(3 * len(frame.structure) for frame in frames)
    monkeypatch.setattr(calibration, "MOST_FORCES", 60)
    some = leave_out(fitted.posterior_, frames, fold)["forces"]
    assert len(some.errors) == 5 * len(frames) and some.frames == len(frames)
    for name in ("errors", "variances", "missed"):
        distance = np.abs(getattr(some, name)[:, None] - getattr(everything, name)[None, :]).min(axis=1)
        assert distance.max() < 1e-9 * np.abs(getattr(everything, name)).max()


def draw(rng, count, scale, kappa):
    variances, missed = rng.exponential(1.0, count), rng.exponential(200.0, count)
    noise = np.full(count, 0.5)
    errors = rng.normal(0.0, scale * np.sqrt(variances + kappa * missed + noise))
    return Judged(errors, variances, missed, noise, count)


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("kappa", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("count", [40, 1000])
def test_intervals_hold_what_they_should(scale, kappa, count):
    rng = np.random.default_rng(1)
    found = factors_of(draw(rng, count, scale, kappa))
    fresh = draw(rng, 20000, scale, kappa)
    deviation = found.scale * np.sqrt(fresh.variances + found.missed * fresh.missed + fresh.noise)
    own = kqeq.fitting.metrics.Calibration.of(fresh.errors, deviation)
    slack = 0.15 if count < 100 else 0.04
    assert abs(own.within_68 - 0.68) < slack and abs(own.within_95 - 0.95) < slack / 2


def test_few_frames_change_little():
    rng = np.random.default_rng(2)
    known = draw(rng, 400, 4.0, 0.0)
    many, few = factors_of(known), factors_of(replace(known, frames=4))
    assert 1.2 < few.scale < 0.7 * many.scale


def test_outliers_do_not_widen_what_most_errors_say():
    rng = np.random.default_rng(3)
    known = draw(rng, 500, 1.0, 0.0)
    known.errors[:5] *= 100.0
    assert factors_of(known).scale < 1.3


def made(model, frames, spread, seed):
    """The frames with energies and forces of a model, and noise on them."""
    rng, result = np.random.default_rng(seed), []
    for atoms in frames:
        own, prediction = atoms.copy(), model.predict(atoms)
        own.info["energy"] = prediction.energy + spread["energy"] * np.sqrt(len(atoms)) * rng.normal()
        noise = spread["forces"] * rng.normal(size=(len(atoms), 3))
        own.arrays["forces"] = prediction.forces + noise - noise.mean(axis=0)
        result.append(own)
    return result


@pytest.mark.parametrize("told", [0.2, 5.0])
def test_known_noise_is_found_whatever_the_fit_was_told(told, fitted, water_systems):
    """Labels of a model with noise that we know, and a fit that takes it for much smaller or larger."""
    spread = {"energy": 0.02, "forces": 0.2}
    frames = [water_systems["water1"][0].copy() for _ in range(160)]
    for number, atoms in enumerate(frames):
        atoms.rattle(0.1, seed=number)
    frames = made(fitted, frames, spread, 5)
    train, test = frames[:80], frames[80:]
    noise = {kind: told * value for kind, value in spread.items()}
    kernel = small_kernel(4.0, zeta=4, n_representatives=None)
    model = short_range(short_range=kernel, noise=noise).fit(train)
    before = model.evaluate(test, calibration=True).calibration["forces"]
    posterior, line = calibrate(model.posterior_, training_frames(model, train))
    model.posterior_ = posterior
    after = model.evaluate(test, calibration=True).calibration
    assert abs(before.within_68 - 0.68) > 0.15
    assert abs(after["forces"].within_68 - 0.68) < 0.1 and abs(after["forces"].within_95 - 0.95) < 0.04
    assert "forces ×" in line and f"{len(train)} frames left out in 4 refits" in line


def test_new_environments_stay_uncertain(water_systems):
    """What sparse features miss is scaled down, not away."""
    train = [a for name in ("water1", "water2") for a in water_systems[name]]
    with pytest.warns(kqeq.errors.RepresentativesWarning):
        model = short_range().fit(train)
    model.posterior_, _ = calibrate(model.posterior_, training_frames(model, train))
    known = model.predict(train[0], uncertainty=True)
    far = train[0].copy()
    far.positions[1] += 0.4 * (far.positions[1] - far.positions[0])
    new = model.predict(far, uncertainty=True)
    assert new.energy_std > 5.0 * known.energy_std
    assert new.forces_std.max() > 3.0 * known.forces_std.max()


@pytest.mark.parametrize("optimize", ["left-out", "evidence"])
def test_a_search_calibrates_and_files_keep_it(optimize, water_systems, tmp_path):
    frames = [a for name in ("water1", "water2", "water3") for a in water_systems[name][:5]]
    model = KQEq(small_kernel(3.5), small_kernel(4.0, zeta=4), noise=NOISE).fit(frames, optimize=optimize)
    known = model.posterior_
    assert set(known.factors) == {"energy", "forces", "dipole", "charges"}
    assert known.factors["charges"] == known.factors["dipole"]  # no labels of their own
    assert "standard deviations calibrated by 15 frames" in str(model.fit_report_)
    raw = replace(known, factors={})
    structure = read_structure(frames[3])
    for kind in ("energy", "forces", "dipole"):
        view, bare = Uncertain(known, structure, forces=True), Uncertain(raw, structure, forces=True)
        factors = known.factors[kind]
        nothing = replace(known, factors={kind: replace(AS_IT_IS, missed=0.0)})
        known_part = Uncertain(nothing, structure, forces=True).variance(kind)
        missed = bare.variance(kind) - known_part
        expected = factors.scale**2 * (known_part + factors.missed * missed)
        assert_close(view.variance(kind), expected, rtol=1e-9, at_least=1e-12)
        assert known.label_noise[kind] == pytest.approx(factors.scale * known.noise[kind])
    model.save(tmp_path / "model.kqeq", posterior=True)
    loaded = kqeq.load(tmp_path / "model.kqeq")
    assert loaded.posterior_.factors == known.factors
    loaded.update(frames[:3])
    assert loaded.posterior_.factors == known.factors


def test_what_is_worth_labelling_does_not_depend_on_it(fitted, water_systems):
    pool = [a for name in ("water2", "water3", "hydronium") for a in water_systems[name]]
    before = kqeq.select(fitted, pool, 5)
    known = fitted.posterior_
    try:
        fitted.posterior_ = replace(known, factors={"energy": Factors(3.0, 1e-3)})
        assert kqeq.select(fitted, pool, 5) == before
    finally:
        fitted.posterior_ = known


def test_frames_of_one_geometry_leave_together(fitted, water_training):
    repeated = [atoms for atoms in water_training for _ in range(2)]
    frames = training_frames(fitted, repeated)
    chosen, fold = calibration._chosen(frames)
    own = groups([repeated[i] for i in chosen])
    assert len(chosen) == len(repeated)
    assert all(len(set(fold[own == number])) == 1 for number in set(own))


def test_too_few_geometries_say_nothing(fitted, water_training):
    repeated = [atoms for atoms in water_training[:7] for _ in range(3)]
    posterior, line = calibrate(fitted.posterior_, training_frames(fitted, repeated))
    assert not posterior.factors and "fewer than 8 geometries" in line


def test_many_labels_are_judged_by_some_frames(fitted, water_training, monkeypatch):
    frames = training_frames(fitted, water_training)
    total = sum(frame.n_labels for frame in frames)
    monkeypatch.setattr(calibration, "MOST_LABELS", total // 2)
    monkeypatch.setattr(calibration, "LEAST_GROUPS", 4)
    chosen, _ = calibration._chosen(frames)
    assert 4 <= len(chosen) <= 8 and chosen[-1] - chosen[0] > 6


def test_factors_of_kernels_come_from_the_same_frames(water_training):
    """What leaves each frame out alone is that of :mod:`kqeq.uncertainty.remainder`, and is learned before."""
    from kqeq.uncertainty import remainder

    model = short_range(short_range=small_kernel(4.0, zeta=4, n_representatives=4)).fit(water_training)
    frames = training_frames(model, water_training)
    expected = remainder.leave_out(model.posterior_, frames)
    found = calibration._one_by_one(model.posterior_, calibration._all_left(model.posterior_, frames))
    for name in ("errors", "variances", "missed"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-8, atol=1e-10)
    learned, line = remainder.learn_remainder(model.posterior_, frames)
    both, told = calibrate(model.posterior_, frames, remainders=True)
    factor = learned.parameters.kernels["short_range"].remainder
    assert (
        both.parameters.kernels["short_range"].remainder == pytest.approx(factor, rel=1e-3) and factor != 1.0
    )
    assert both.factors and told.startswith(line[:60])
    few, told = calibrate(model.posterior_, frames[:6], remainders=True)
    assert few.parameters.kernels["short_range"].remainder != 1.0 and "fewer than 8" in told
