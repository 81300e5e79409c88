"""Born charges: labels, their checks, rows of a fit, predictions."""

from dataclasses import replace

import numpy as np
import pytest
from ase.build import molecule

import kqeq
from kqeq.analysis.response import born_charges
from kqeq.errors import InputError, LabelWarning
from kqeq.fitting.parameters import Parameters
from kqeq.fitting.rows.blocks import BLOCKS, Linearisation
from kqeq.fitting.rows.features import TrainingFrame, compute_features
from kqeq.frames.born_charges import rotation_error
from kqeq.frames.labels import Labels, read_frame
from kqeq.frames.structures import read_structure
from kqeq.kernels.representatives import build_feature_map
from kqeq.kernels.settings import SOAPKernel
from kqeq.potential.potential import check_properties

MODELS = {
    "qeq": kqeq.QEq(),
    "acks2 + dipoles": kqeq.AtomicDipoles(),
    "latent": kqeq.LatentCharges(),
    "latent + dipoles": kqeq.AtomicDipoles(kqeq.LatentCharges()),
    "acks2, kernel": kqeq.ACKS2(reference_charges="kernel"),
}
KERNEL = SOAPKernel(r_cut=3.0, n_max=3, l_max=2, sigma=0.4, zeta=2, n_representatives=6)


def water():
    """The packaged water molecule with its Hessian's Born charges."""
    frame = next(f for f in kqeq.datasets.load("vibrations") if len(f) == 3)
    return frame.copy(), frame


# labels -------------------------------------------------------------------------------------------


def test_labels_are_read_in_their_order():
    _, frame = water()
    structure, labels = read_frame(frame)
    np.testing.assert_array_equal(labels.born_charges, frame.arrays["born_charges"].reshape(3, 3, 3))
    assert labels.kinds[-1] == "born_charges"
    assert rotation_error(labels.born_charges, structure, labels.dipole) < 1e-3
    assert rotation_error(labels.born_charges, structure, None) < 1e-3


@pytest.mark.parametrize("dipole", [True, False])
def test_transposed_labels_are_turned(dipole):
    _, frame = water()
    expected = frame.arrays["born_charges"].reshape(3, 3, 3)
    frame.arrays["born_charges"] = expected.transpose(0, 2, 1).reshape(3, 9).copy()
    if not dipole:
        frame.calc = None
        frame.info.pop("dipole", None)
    with pytest.warns(LabelWarning, match="position first"):
        _, labels = read_frame(frame)
    np.testing.assert_array_equal(labels.born_charges, expected)


def test_a_field_and_a_cell_leave_the_order_alone():
    atoms, frame = water()
    atoms.arrays["born_charges"] = frame.arrays["born_charges"].reshape(3, 3, 3).transpose(0, 2, 1).copy()
    atoms.info["external_field"] = [0.0, 0.0, 0.1]
    np.testing.assert_array_equal(read_frame(atoms)[1].born_charges, atoms.arrays["born_charges"])


def test_what_neither_order_explains_is_refused():
    atoms, frame = water()
    wrong = frame.arrays["born_charges"].reshape(3, 3, 3).copy()
    wrong[0] += 0.4 * np.eye(3)[[1, 2, 0]]
    wrong[1] -= 0.4 * np.eye(3)[[1, 2, 0]]
    atoms.arrays["born_charges"] = wrong
    with pytest.raises(InputError, match="do not turn with the molecule"):
        read_frame(atoms)


def test_the_sum_is_the_total_charge():
    atoms, frame = water()
    atoms.arrays["born_charges"] = frame.arrays["born_charges"].copy()
    atoms.info["total_charge"] = 1.0
    with pytest.raises(InputError, match="do not sum to the total charge"):
        read_frame(atoms)
    atoms.info["total_charge"] = 0.0
    atoms.arrays["born_charges"] = frame.arrays["born_charges"] + 0.03 * np.eye(3).ravel()
    with pytest.warns(LabelWarning, match="acoustic sum rule"):
        read_frame(atoms)


@pytest.mark.parametrize("shape", [(27,), (3, 3)])
def test_other_shapes_are_refused(shape):
    atoms, _ = water()
    del atoms.arrays["born_charges"]
    atoms.info["born_charges"] = np.zeros(shape)
    with pytest.raises(InputError, match="at 3a"):
        read_frame(atoms)


# rows of a fit ------------------------------------------------------------------------------------


def lines(model, structure):
    """Rows of a frame at parameters, and the number of these."""
    species = structure.species
    maps = build_feature_map(SOAPKernel(r_cut=3.0, n_max=3, l_max=2, sigma=0.4, zeta=2), [structure], species)
    parameters = Parameters.build(
        species,
        charges=model,
        electronegativity_kernels=[(maps, 0.4)],
        electronegativity_mean=dict.fromkeys(species, 0.0),
        electronegativity_spread=1.0,
        short_range_kernels=[],
        short_range_mean=None,
        short_range_spread=0.0,
    )
    shape = (len(structure), 3, 3)
    frame = TrainingFrame(structure, Labels(born_charges=np.zeros(shape), dipole=np.zeros(3)), 0)

    def at(u, moved=None):
        own = frame if moved is None else replace(frame, structure=moved)
        return Linearisation(own, compute_features(own, parameters), parameters, u)

    return at, parameters.size


def bent(total_charge=1.0, field=(0.1, -0.2, 0.15)):
    atoms = molecule("CH3OH")
    atoms.positions += 0.1 * np.random.default_rng(3).normal(size=(len(atoms), 3))
    return read_structure(atoms, total_charge=total_charge, external_field=field)


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_derivatives_of_dipoles_and_linear_in_the_parameters(name):
    structure = bent()
    at, size = lines(MODELS[name], structure)
    rng = np.random.default_rng(0)
    u = rng.normal(size=size)
    value, rows = BLOCKS["born_charges"](at(u), True)
    tensors = value.reshape(-1, 3, 3)
    numeric = np.zeros_like(tensors)
    for k in range(len(structure)):
        for b in range(3):
            ends = []
            for h in (1e-3, -1e-3, 2e-3, -2e-3):
                positions = structure.positions.copy()
                positions[k, b] += h
                ends.append(BLOCKS["dipole"](at(u, replace(structure, positions=positions)), False)[0])
            numeric[k, :, b] = (8 * (ends[0] - ends[1]) - (ends[2] - ends[3])) / 12e-3
    assert np.abs(numeric).max() > 0.1
    np.testing.assert_allclose(tensors, numeric, atol=1e-6 * np.abs(numeric).max())
    np.testing.assert_allclose(tensors.sum(axis=0), np.eye(3), atol=1e-8)
    other = u + rng.normal(size=size)
    np.testing.assert_allclose(
        BLOCKS["born_charges"](at(other), False)[0],
        value + rows @ (other - u),
        atol=1e-9 * np.abs(rows).max(),
    )
    assert np.abs(rows @ (other - u)).max() > 1e-2


# fits and predictions -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frames():
    """Water clusters with Born charges of a model that knows electronegativities."""
    train, test = kqeq.datasets.split("water")
    neutral = [f for f in (*train, *test) if not f.info.get("total_charge") and len(f) <= 6][:8]
    teacher = kqeq.KQEq(
        electronegativity=KERNEL, charges=kqeq.QEq(), short_range=None, targets=["dipole"], optimize=None
    ).fit(neutral)
    for frame in neutral:
        frame.arrays["born_charges"] = born_charges(teacher, frame).tensors.reshape(-1, 9)
        frame.info["dipole"] = teacher.predict(frame).dipole
        frame.calc = None
    return teacher, neutral


def test_a_fit_to_born_charges_alone_is_one_solve_and_finds_the_dipoles(frames):
    _, labelled = frames
    model = kqeq.KQEq(
        electronegativity=KERNEL,
        charges=kqeq.QEq(),
        short_range=None,
        targets=["born_charges"],
        noise={"born_charges": 1e-3},
        optimize=None,
    ).fit(labelled[:6])
    assert len(model.fit_report_.iterations) <= 1
    assert model.fit_report_.used == {"born_charges": 6}
    errors = model.evaluate(labelled[6:])
    assert errors["born_charges"].unit == "e"
    spread = np.std([f.arrays["born_charges"] for f in labelled if len(f) == 3])
    assert errors["born_charges"].rmse < 0.1 * spread
    assert errors["dipole"].rmse < 0.03


@pytest.mark.parametrize("name", ["latent", "acks2 + dipoles"])
def test_predictions_agree_with_derivatives_of_forces_by_the_field(frames, name):
    _, labelled = frames
    model = kqeq.KQEq(
        electronegativity=KERNEL, charges=MODELS[name], short_range=None, targets=["dipole"], optimize=None
    ).fit(labelled)
    found = model.predict(labelled[0], properties=("born_charges",)).born_charges
    expected = born_charges(model, labelled[0]).tensors
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-8)
    assert model.predict(labelled[0]).born_charges is None
    cell = labelled[0].copy()
    cell.set_cell([12, 12, 12])
    cell.pbc = True
    del cell.arrays["born_charges"]
    assert model.predict(cell, properties=("born_charges",)).born_charges is None


def test_learned_element_parameters_leave_born_charges_out(frames):
    _, labelled = frames
    model = kqeq.KQEq(
        electronegativity=KERNEL, charges=kqeq.QEq(hardness="learn"), short_range=None, optimize=None
    ).fit(labelled)
    assert "element parameters are learned" in model.fit_report_.ignored["born_charges"]


def test_the_name_is_known():
    assert check_properties("born_charges") == ("born_charges",)
    with pytest.raises(InputError, match="born_charges"):
        check_properties(("bec",))
