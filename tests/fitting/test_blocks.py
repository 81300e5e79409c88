"""Residual blocks: predictions of every label kind and their Jacobians in the fit parameters."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms

from checks import assert_close, central_difference, position_gradient, strain_gradient
from kqeq import KQEq, QEq
from kqeq.fitting.problem import SEPARATE_SHARE, FitProblem
from kqeq.fitting.rows.blocks import BLOCKS, LINEAR_KINDS, Linearisation, frame_rows, target_vector
from kqeq.fitting.rows.features import (
    FeatureStore,
    TrainingFrame,
    compute_features,
    compute_many,
    jacobian_bytes,
    stored_bytes,
)
from kqeq.fitting.settings import DEFAULT_NOISE
from kqeq.frames.labels import Labels
from kqeq.frames.structures import Structure, read_structure
from kqeq.potential.prediction import ON_REQUEST, PROPERTIES
from label_rows import CASES, KINDS, OPEN, case, labels, random_u
from systems import water_cell


@pytest.fixture(scope="module")
def fitted(water_training, kernel):
    """Every kind of parameter: two descriptors, offsets, charges."""
    model = KQEq(
        kernel(3.0, n_representatives=5, zeta=2, smooth="switch"),
        kernel(3.5, n_representatives=4, zeta=4, smooth="switch"),
        charges=QEq(hardness={"O": 11.0}),
        targets=["energy", "forces", "dipole", "charges"],
        charges_key="hirshfeld",
        noise={"energy": 0.1, "forces": 1.0, "dipole": 0.1, "charges": 0.1},
    )
    return model.fit(water_training)


@pytest.fixture(scope="module")
def parameters(fitted):
    return fitted.posterior_.parameters


def line_at(structure, parameters, u, features=None):
    frame = TrainingFrame(structure, labels(len(structure)), 0)
    return Linearisation(frame, features or compute_features(frame, parameters), parameters, u)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_jacobians_are_derivatives(name, kind, parameters, water_systems):
    """Predictions are at most cubic in the parameters, so the differences are exact up to rounding."""
    structure = case(name, water_systems)
    u = random_u(parameters)
    line = line_at(structure, parameters, u)
    value, jacobian = BLOCKS[kind](line, True)
    assert jacobian.shape == (len(value), parameters.size)
    without, nothing = BLOCKS[kind](line_at(structure, parameters, u, line.features), False)
    assert nothing is None
    np.testing.assert_array_equal(without, value)

    def along(direction):
        return central_difference(
            lambda t: BLOCKS[kind](line_at(structure, parameters, u + t * direction, line.features), False)[
                0
            ],
            0.2,
        )

    rng = np.random.default_rng(1)
    # each stretch of the parameters on its own, so that a large one cannot hide a small one
    present = False
    for part, kernel_part in (
        (p, k) for p in (parameters.electronegativity, parameters.short_range) for k in (True, False)
    ):
        direction = np.zeros(parameters.size)
        middle = part.columns.start + part.kernel_size
        stretch = slice(part.columns.start, middle) if kernel_part else slice(middle, part.columns.stop)
        direction[stretch] = rng.normal(size=stretch.stop - stretch.start)
        expected = along(direction)
        if np.abs(expected).max() == 0.0:
            assert not (jacobian @ direction).any()
            continue
        present = True
        assert_close(jacobian @ direction, expected, rtol=1e-8, atol=1e-10, at_least=1e-6)
    assert present


@pytest.mark.parametrize("kind", ["forces", "born_charges"])
@pytest.mark.parametrize(("separate", "tolerance"), [("double", 1e-12), ("single", 1e-6)])
def test_derivatives_kept_atom_by_atom_give_the_same(kind, separate, tolerance, parameters, water_systems):
    structure = case("cation in a field", water_systems)
    frame = TrainingFrame(structure, replace(labels(len(structure)), stress=None), 0)
    kept = compute_many([frame], parameters, separate=separate)[0]
    assert kept.states is None and kept.jacobians is not None
    u = random_u(parameters)
    found, expected = (
        BLOCKS[kind](line_at(structure, parameters, u, features), True)
        for features in (kept, compute_features(frame, parameters))
    )
    part = parameters.electronegativity
    assert np.abs(expected[1][:, part.columns][:, : part.kernel_size]).max() > 0.01
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, other, atol=tolerance * np.abs(other).max())


def test_frames_with_stress_keep_no_derivatives_atom_by_atom(parameters, water_systems):
    structure = case("charged cell", water_systems)
    frame = TrainingFrame(structure, labels(len(structure)), 0)
    assert frame.labels.stress is not None
    kept = compute_many([frame], parameters, separate="double")[0]
    assert kept.jacobians is None and kept.states is not None
    assert jacobian_bytes([frame], parameters) == 0


@pytest.mark.parametrize(
    ("linear", "share", "expected"),
    [(True, 1.0, None), (False, 1.0, "double"), (False, 0.6, "single"), (False, 0.1, None)],
)
def test_what_is_kept_atom_by_atom_follows_from_sizes(linear, share, expected, parameters, water_systems):
    structures = [case(name, water_systems) for name in OPEN]
    frames = [TrainingFrame(s, replace(labels(len(s)), stress=None), i) for i, s in enumerate(structures)]
    of_jacobians = jacobian_bytes(frames, parameters)
    kept = compute_many(frames, parameters, separate="double")
    assert of_jacobians == sum(
        block.nbytes for f in kept for own in f.jacobians.electronegativity for *_, block in own.blocks
    )
    budget = int((share * of_jacobians + stored_bytes(frames, parameters)) / SEPARATE_SHARE) + 1
    problem = FitProblem(frames, parameters, DEFAULT_NOISE, linear=linear, budget=budget)
    assert problem.separate == expected
    assert {chunk.separate for chunk in problem.chunks} == {expected}


@pytest.mark.parametrize("kind", KINDS)
def test_which_parameters_a_label_depends_on(kind, parameters, water_systems):
    structure = case("charged cell" if kind == "stress" else "cation in a field", water_systems)
    _, jacobian = BLOCKS[kind](line_at(structure, parameters, random_u(parameters)), True)
    chi, energy = parameters.electronegativity, parameters.short_range
    size = {
        "chi kernel": jacobian[:, chi.columns][:, : chi.kernel_size],
        "chi offsets": jacobian[:, chi.columns][:, chi.kernel_size :],
        "energy kernel": jacobian[:, energy.columns][:, : energy.kernel_size],
        "energy offsets": jacobian[:, energy.columns][:, energy.kernel_size :],
    }
    touched = {name for name, block in size.items() if np.abs(block).max() > 1e-6}
    assert (
        touched
        == {
            "energy": set(size),
            "forces": {"chi kernel", "chi offsets", "energy kernel"},
            "stress": {"chi kernel", "chi offsets", "energy kernel"},
            "dipole": {"chi kernel", "chi offsets"},
            "charges": {"chi kernel", "chi offsets"},
            "born_charges": {"chi kernel", "chi offsets"},
        }[kind]
    )


# ------------------------------------------------------ values of the blocks


def block_energy(structure, parameters, u):
    frame = TrainingFrame(structure, Labels(energy=0.0), 0)
    return BLOCKS["energy"](Linearisation(frame, compute_features(frame, parameters), parameters, u), False)[
        0
    ][0]


@pytest.mark.parametrize("name", [*OPEN, "cell", "charged cell"])
def test_forces_are_minus_the_gradient_of_the_energy_block(name, parameters, water_systems):
    s = case(name, water_systems)
    u = random_u(parameters)
    atoms = Atoms(s.numbers, s.positions, cell=s.cell, pbc=s.pbc)

    def energy(moved):
        return block_energy(replace(s, positions=moved.positions), parameters, u)

    forces, _ = BLOCKS["forces"](line_at(s, parameters, u), False)
    assert_close(forces.reshape(-1, 3), -position_gradient(energy, atoms), rtol=1e-6, at_least=0.1)


@pytest.mark.parametrize("name", ["cell", "charged cell"])
def test_stress_is_the_strain_derivative_of_the_energy_block(name, parameters, water_systems):
    s = case(name, water_systems)
    u = random_u(parameters)
    atoms = Atoms(s.numbers, s.positions, cell=s.cell, pbc=s.pbc)

    def energy(moved):
        strained = replace(s, positions=moved.positions, cell=moved.cell.array)
        return block_energy(strained, parameters, u)

    strain = strain_gradient(energy, atoms) / s.volume
    xx, yy, zz, yz, xz, xy = BLOCKS["stress"](line_at(s, parameters, u), False)[0]
    stress = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    assert_close(stress, strain, rtol=1e-6, at_least=1e-3)
    assert min(abs(yz), abs(xz), abs(xy)) > 1e-6


@pytest.mark.parametrize("name", OPEN)
def test_blocks_predict_what_the_potential_predicts(name, fitted, parameters, water_systems):
    structure = case(name, water_systems)
    prediction = fitted.potential_.predict(structure, (*PROPERTIES, *ON_REQUEST))
    line = line_at(structure, parameters, fitted.posterior_.u)
    for kind in KINDS:
        if kind == "stress":
            continue
        value, _ = BLOCKS[kind](line, False)
        expected = np.ravel(getattr(prediction, kind))
        assert_close(value, expected, rtol=1e-7, at_least=1e-3)


# -------------------------------------------------------------------- rows


@pytest.mark.parametrize("weight", [1.0, 0.25, 0.0])
def test_rows_are_divided_by_the_deviation_and_multiplied_by_the_root_of_the_weight(weight, parameters):
    structure = read_structure(water_cell())
    given = replace(labels(len(structure)), weight=weight, dipole=None)
    frame = TrainingFrame(structure, given, 0)
    features = compute_features(frame, parameters)
    u = random_u(parameters)
    noise = {**DEFAULT_NOISE, "energy": 0.02, "forces": 0.5}
    residual, jacobian = frame_rows(frame, features, parameters, u, noise, jacobian="full")
    line = Linearisation(frame, features, parameters, u)
    start = 0
    for kind in given.kinds:
        value, rows = BLOCKS[kind](line, True)
        sigma = noise[kind] * (np.sqrt(len(structure)) if kind == "energy" else 1.0)
        stretch = slice(start, start + len(value))
        np.testing.assert_allclose(
            residual[stretch], np.sqrt(weight) * (target_vector(frame, kind) - value) / sigma
        )
        np.testing.assert_allclose(jacobian[stretch], np.sqrt(weight) * rows / sigma)
        start += len(value)
    assert start == len(residual) == len(jacobian)
    assert bool(np.abs(residual).max() > 1.0) == (weight > 0)


def test_the_cheap_jacobians_are_parts_of_the_full_one(parameters):
    structure = read_structure(water_cell())
    frame = TrainingFrame(structure, replace(labels(len(structure)), dipole=None), 0)
    features = compute_features(frame, parameters)
    u = random_u(parameters)
    rows = {
        mode: frame_rows(frame, features, parameters, u, DEFAULT_NOISE, jacobian=mode)
        for mode in ("none", "linear", "full")
    }
    assert rows["none"][1] is None
    for mode in ("none", "linear"):
        np.testing.assert_array_equal(rows[mode][0], rows["full"][0])
    np.testing.assert_array_equal(rows["linear"][1], rows["full"][1][:, parameters.short_range.columns])
    assert np.abs(rows["linear"][1]).max() > 1.0


def test_stress_targets_follow_the_rows():
    """Voigt order xx yy zz yz xz xy."""
    stress = np.array([[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]])
    frame = TrainingFrame(read_structure(water_cell()), Labels(stress=stress), 0)
    np.testing.assert_array_equal(target_vector(frame, "stress"), [1, 2, 3, 4, 5, 6])


def test_the_linear_kinds_are_linear(parameters, water_systems):
    structure = case("cation in a field", water_systems)
    u, v = random_u(parameters, 1), random_u(parameters, 2)
    for kind in KINDS:
        if kind == "stress":
            continue
        a, b, middle = (
            BLOCKS[kind](line_at(structure, parameters, w), False)[0] for w in (u, v, 0.5 * (u + v))
        )
        curvature = np.abs(0.5 * (a + b) - middle).max()
        assert bool(curvature < 1e-10) == (kind in LINEAR_KINDS), kind


# -------------------------------------------------------------------- store


def test_frames_without_forces_need_no_derivatives(parameters, water_systems):
    structure = case("neutral", water_systems)
    plain = compute_features(TrainingFrame(structure, Labels(energy=0.0), 0), parameters)
    assert plain.positions is None
    assert plain.strain is None
    assert plain.states is None
    full = compute_features(TrainingFrame(structure, labels(len(structure)), 0), parameters)
    assert full.positions.shape == (3 * len(structure), parameters.short_range.size)
    np.testing.assert_array_equal(plain.electronegativity, full.electronegativity)
    np.testing.assert_allclose(plain.short_range, full.short_range, rtol=1e-13)
    assert full.nbytes > plain.nbytes > plain.electronegativity.nbytes


def test_the_store_keeps_features_within_its_budget(parameters, water_systems):
    structures = [case(name, water_systems) for name in OPEN]
    frames = [TrainingFrame(s, labels(len(s)), i) for i, s in enumerate(structures)]
    generous = FeatureStore(frames, parameters)
    assert len(generous) == len(frames)
    assert generous.get(0) is generous.get(0)
    size = generous.get(0).nbytes
    assert size > generous.get(0).positions.nbytes
    tight = FeatureStore(frames, parameters, budget=size)
    assert tight.get(0) is tight.get(0)
    assert tight.get(1) is not tight.get(1)
    np.testing.assert_array_equal(tight.get(1).electronegativity, generous.get(1).electronegativity)


def test_identical_structures_are_not_confused(parameters):
    """Two frames of one geometry under different charges share nothing that depends on the charge."""
    s = Structure(np.array([8, 1]), np.array([[0.0, 0, 0], [0.97, 0, 0]]))
    u = random_u(parameters)
    plus, minus = (
        BLOCKS["charges"](line_at(s.under(charge, np.zeros(3)), parameters, u), False)[0]
        for charge in (1.0, -1.0)
    )
    assert plus.sum() == pytest.approx(1.0, abs=1e-12)
    assert minus.sum() == pytest.approx(-1.0, abs=1e-12)
