"""The issue's list of bad input, line by line: a clear error that names the cause and the remedy, and nothing is lost.

Details of each are tested where they belong; here every line goes through the public interface, as a user meets it.
"""

import io
import json
import pickle
import warnings
import zipfile

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

import kqeq
from checks import assert_same_prediction, bare
from conftest import small_kernel
from kqeq import KQEq, KQEqCalculator, QEq
from kqeq.cli import main
from kqeq.errors import (
    InputError,
    KQEqError,
    KQEqWarning,
    LabelWarning,
    ModelFileError,
    ModelNotFittedError,
    NotPositiveDefiniteError,
    UndeterminedWarning,
    UnsupportedError,
)
from systems import WATER


def water(info=None, **arrays):
    atoms = WATER.copy()
    atoms.info.update(info or {})
    for name, value in arrays.items():
        atoms.arrays[name] = np.asarray(value, dtype=float)
    return atoms


@pytest.fixture
def estimator(kernel):
    """Not fitted; for dipoles."""
    return KQEq(kernel(3.0), None, targets=["dipole"])


@pytest.fixture(autouse=True)
def _nothing_is_lost(request):
    """After every test here the shared model predicts what it predicted before."""
    if "water_model" not in request.fixturenames:
        yield
        return
    model = request.getfixturevalue("water_model")
    before = model.predict(WATER)
    yield
    assert_same_prediction(model.predict(WATER), before)


# ------------------------------------------------ "Unknown elements at prediction"


def test_unknown_elements_at_prediction(water_model):
    foreign = Atoms("OCNH", 1.5 * np.eye(4, 3, 1) + [[0, 0, 0], [0, 0, 0], [0, 0, 0], [2, 2, 2]])
    for call in (water_model.predict, KQEqCalculator(water_model).get_potential_energy):
        with pytest.raises(
            InputError, match=r"contains C, N; .* fitted on H, O only\. Add frames with the missing"
        ):
            call(foreign)
    with pytest.raises(InputError, match=r"frame 1 \(CHNO\) contains C, N"):
        water_model.predict([WATER, foreign])
    labelled = foreign.copy()
    labelled.info["energy"] = 1.0
    with pytest.raises(InputError, match="contains C, N"):
        water_model.evaluate([labelled])


# ---------------------------------------------- "frames without any usable label"


def test_frames_without_any_usable_label(estimator, water_training):
    with pytest.raises(
        InputError, match=r"2 of 14 frames have no usable label \(frames 0, 13\).*label_prefix"
    ):
        KQEq(estimator.electronegativity, None).fit([WATER, *water_training, WATER])
    named = water({"REF_energy": 1.0, "REF_dipole": [0, 0, 1]})
    with (
        pytest.warns(LabelWarning, match='there are REF_energy, REF_dipole.* label_prefix="REF_"'),
        pytest.raises(InputError, match=r'1 of 1 frames have no usable label.*label_prefix="REF_"'),
    ):
        KQEq().fit(named)
    with pytest.raises(InputError, match="targets asks for dipole, but no frame carries it"):
        estimator.fit([water({"energy": 1.0})])
    with pytest.raises(InputError, match="none of the 1 frames carries a label; looked for energy, forces"):
        _fitted(estimator, water_training).evaluate(WATER)


def test_frames_without_any_weight_are_refused(water_training):
    """The search divided by nothing."""
    frames = [atoms.copy() for atoms in water_training[:4]]
    for copy, atoms in zip(frames, water_training, strict=False):
        copy.calc, copy.info["weight"] = atoms.calc, 0.0
    with pytest.raises(InputError, match="all 4 frames have weight 0"):
        KQEq().fit(frames)


def test_single_atoms_alone_are_fitted_without_search():
    """Their forces are zero, and an error of zero has no logarithm."""
    energies = {"H": -13.0, "C": -150.0, "O": -430.0}
    frames = [Atoms(symbol, info={"energy": energy}) for symbol, energy in energies.items()]
    model = KQEq().fit(frames)
    for atoms in frames:
        assert model.predict(atoms).energy == pytest.approx(atoms.info["energy"], abs=1e-2)


def _fitted(estimator, frames):
    return estimator.fit(frames)


# --------------------------------------- "labels of wrong shape, NaN or inf"


@pytest.mark.parametrize(
    ("atoms", "text"),
    [
        (
            water({"dipole": [1.0, 2.0]}),
            r"the dipole label of frame 12 \(H2O\) has shape \(2,\); expected three numbers",
        ),
        (water({"dipole": [np.nan, 0, 0]}), "dipole label of frame 12 .* NaN or infinite values; remove"),
        (water({"energy": np.inf}), "energy label of frame 12 .* NaN or infinite"),
        (water({"energy": [1, 2, 3]}), "energy label of frame 12"),
        (water(forces=np.zeros((3, 2))), r"forces label of frame 12 .* expected an \(N, 3\) array"),
        (water(forces=np.full((3, 3), -np.inf)), "forces label of frame 12"),
        (water({"stress": np.zeros(4)}), "stress label of frame 12 .* six numbers in Voigt order"),
        (water({"polarizability": np.arange(9)}), "polarizability label of frame 12 .* is not symmetric"),
        (water({"dipole": "0 0 1"}), "dipole label of frame 12 .* not numeric"),
    ],
)
def test_labels_of_wrong_shape_nan_or_inf(estimator, water_training, water_model, atoms, text):
    for call in (estimator.fit, water_model.evaluate):
        with pytest.raises(InputError, match=text):
            call([*water_training, atoms])
    assert not hasattr(estimator, "potential_")


# --------------------------------- "charge and total_charge that disagree"


def test_charges_that_disagree(water_model, estimator):
    atoms = water({"charge": 1, "total_charge": 0, "dipole": [0, 0, 1]})
    with pytest.raises(
        InputError, match=r'two total charges.*"total_charge".*0 e.*"charge".*1 e; remove one'
    ):
        water_model.predict(atoms)
    with pytest.raises(InputError, match="two total charges"):
        estimator.fit(atoms)
    with pytest.raises(InputError, match="the argument total_charge says 1 e"):
        water_model.predict(water({"total_charge": 0}), total_charge=1)
    with pytest.raises(InputError, match="two total charges"):
        KQEqCalculator(water_model, total_charge=-1).get_potential_energy(water({"charge": 1}))
    initial = water()
    initial.set_initial_charges([1.0, 0.0, 0.0])
    with pytest.raises(InputError, match="initial charges"):
        water_model.predict(initial)


# ------------------------------------------------- "an absurd total charge"


def test_an_absurd_total_charge_in_labels(estimator):
    with pytest.raises(
        InputError, match=r"total charge of frame 0 \(H2O\) is 40 e, beyond .* elementary charge"
    ):
        estimator.fit([water({"total_charge": 40, "dipole": [0, 0, 1]})])


def test_labels_with_a_charge_that_is_not_whole_warn(estimator, water_training):
    frames = [*water_training, water({"total_charge": 0.5, "dipole": [0, 0, 1]})]
    with pytest.warns(
        LabelWarning, match=r"frame 12 .* is 0\.5 e; labels of isolated systems have whole charges"
    ):
        estimator.fit(frames)


@pytest.mark.parametrize("charge", [0.5, -3.21, 40.0, -1e4])
def test_prediction_may_use_any_finite_charge(water_model, charge):
    p = water_model.predict(WATER, total_charge=charge)
    assert abs(p.charges.sum() - charge) < 1e-10 * max(1.0, abs(charge))
    assert np.isfinite(p.forces).all()


@pytest.mark.parametrize("charge", [np.nan, np.inf, "one", [1, 2]])
def test_a_charge_that_is_no_number(water_model, charge):
    for call in (
        lambda: water_model.predict(WATER, total_charge=charge),
        lambda: water_model.predict(water({"total_charge": charge})),
        lambda: KQEqCalculator(water_model, total_charge=charge),
    ):
        with pytest.raises(InputError, match="expected one finite number"):
            call()


# ------------------------------- "a field that is not three finite numbers"


@pytest.mark.parametrize("field", [0.1, (0, 0), (0, 0, np.nan), (0, np.inf, 0), "up", ((0, 0, 1),)])
def test_a_field_that_is_not_three_finite_numbers(water_model, field):
    for call in (
        lambda: water_model.predict(WATER, external_field=field),
        lambda: water_model.predict(water({"external_field": field})),
        lambda: KQEqCalculator(water_model, external_field=field),
    ):
        with pytest.raises(InputError, match=r"expected three finite numbers \(Ex, Ey, Ez\) in V/Å"):
            call()


# ----------------------------------------------- "periodic frames with charges"


def test_periodic_frames_with_charges_where_electrostatics_cannot_follow(water_model, estimator):
    """Since Ewald is in: what is still undefined (a wire; a field along a periodic direction) is refused by name."""
    wire = water({"dipole": [0, 0, 1]})
    wire.cell, wire.pbc = [9.0, 9.0, 9.0], [True, False, False]
    in_field = water({"dipole": [0, 0, 1], "external_field": [0, 0, 0.1]})
    in_field.cell, in_field.pbc = [9.0, 9.0, 9.0], True
    for atoms in (wire, in_field):
        for call in (water_model.predict, estimator.fit):
            with pytest.raises((UnsupportedError, InputError), match="periodic") as caught:
                call(atoms)
            assert len(str(caught.value)) > 60


def test_periodic_frames_without_charges(short_range_model):
    atoms = water()
    atoms.cell, atoms.pbc = [9.0, 9.0, 9.0], True
    assert np.isfinite(short_range_model.predict(atoms).stress).all()


# ----------------------------------------------------------- "empty files"


def test_empty_files(water_model, estimator, tmp_path, capsys):
    empty = tmp_path / "empty.xyz"
    empty.write_text("")
    frames = read(io.StringIO(""), ":", format="extxyz")
    for call in (estimator.fit, water_model.predict, water_model.evaluate, water_model.score):
        with pytest.raises(InputError, match=r"no frames were given .*empty file"):
            call(frames)
    model = tmp_path / "m.kqeq"
    water_model.save(model)
    for command in (
        ["fit", str(empty), "-o", str(tmp_path / "new.kqeq")],
        ["evaluate", str(model), str(empty)],
        ["predict", str(model), str(empty), "-o", str(tmp_path / "out.xyz")],
        ["optimize", str(model), str(empty), "-o", str(tmp_path / "out.xyz")],
    ):
        assert main(command) == 2
        assert "empty.xyz is empty" in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"empty.xyz", "m.kqeq"}


@pytest.mark.parametrize("frames", ["train.xyz", None, 3, [WATER, "water"], {"a": WATER}])
def test_something_that_is_no_frame(estimator, water_model, frames):
    for call in (estimator.fit, water_model.predict, water_model.evaluate):
        with pytest.raises(InputError, match=r"ase\.Atoms"):
            call(frames)


def test_a_frame_without_atoms(estimator, water_model):
    for call in (estimator.fit, water_model.predict):
        with pytest.raises(InputError, match="has no atoms"):
            call(Atoms())


# ------------------------------------------- "atoms on top of each other"


def test_atoms_on_top_of_each_other(water_model, estimator):
    twice = WATER + Atoms("H", [WATER.positions[1] + 0.01])
    twice.info["dipole"] = [0, 0, 1]
    for call in (water_model.predict, estimator.fit, KQEqCalculator(water_model).get_potential_energy):
        with pytest.raises(
            InputError, match=r"on top of each other: atoms 1 and 3 are closer than .* remove dup"
        ):
            call(twice)


# ---------------------------- "a negative hardness that makes the matrix indefinite"


def test_a_negative_hardness(kernel, water_training):
    model = KQEq(kernel(3.0), None, charges=QEq(hardness={"O": -60.0}), targets=["dipole"])
    with pytest.raises(
        NotPositiveDefiniteError, match=r"QEq matrix of 3 atoms is not positive definite.*raise the h"
    ):
        model.fit(water_training)
    assert not hasattr(model, "potential_")


def test_a_slightly_negative_hardness_is_fine(kernel, water_training):
    """The self-interaction of the Gaussian charges outweighs it."""
    charges = QEq(hardness={"O": -1.0}, width={"O": 0.4, "H": 0.3})
    model = KQEq(kernel(3.0), None, charges=charges, targets=["dipole"]).fit(water_training)
    assert np.isfinite(model.predict(bare(water_training[0])).charges).all()


# ------------------------------------------------- "predicting before fitting"


def test_predicting_before_fitting(estimator, tmp_path):
    for call in (
        lambda: estimator.predict(WATER),
        lambda: estimator.evaluate(WATER),
        lambda: estimator.score([WATER]),
        lambda: estimator.save(tmp_path / "m.kqeq"),
        lambda: KQEqCalculator(estimator),
    ):
        with pytest.raises(
            ModelNotFittedError, match=r"call model\.fit\(frames\), or load one with kqeq\.load"
        ):
            call()


# ------------- "a model file that is truncated, foreign, newer, or holds pickles"


def test_model_files_that_are_not(water_model, tmp_path, capsys):
    good = tmp_path / "good.kqeq"
    water_model.save(good)
    data = good.read_bytes()
    files = {"truncated": data[: len(data) // 2], "foreign": b"Hello", "pickle": pickle.dumps({"model": 1})}
    newer, holding = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(good) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    header = json.loads(content["header.json"])
    for target, changes in (
        (newer, {"header.json": json.dumps({**header, "version": 99, "kqeq": "42.0"})}),
        (holding, {"short_range/H/coefficients.npy": _object_array()}),
    ):
        with zipfile.ZipFile(target, "w") as archive:
            for name, member in {**content, **changes}.items():
                archive.writestr(name, member)
    files.update(newer=newer.getvalue(), holding=holding.getvalue())
    texts = {
        "truncated": "truncated or damaged",
        "foreign": "model file, or is truncated or damaged",
        "pickle": "model file, or is truncated or damaged",
        "newer": "Upgrade with pip install --upgrade kqeq",
        "holding": "pickled objects are refused",
    }
    frames = tmp_path / "frames.xyz"
    write(frames, WATER)
    for name, member in files.items():
        path = tmp_path / f"{name}.kqeq"
        path.write_bytes(member)
        with pytest.raises(ModelFileError, match=texts[name]):
            kqeq.load(path)
        assert main(["predict", str(path), str(frames), "-o", str(tmp_path / "out.xyz")]) == 2
        error = capsys.readouterr().err
        assert texts[name] in error
        assert "Traceback" not in error
        assert path.read_bytes() == member
    assert not (tmp_path / "out.xyz").exists()


def _object_array():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


# -------------- "an unwritable output path (found before the fit, not after)"


def test_an_unwritable_output_path_is_found_before_the_fit(water_training, tmp_path, capsys, monkeypatch):
    def work(*_, **__):
        raise AssertionError("the fit was started")

    monkeypatch.setattr("kqeq.model.estimator.fit_potential", work)
    train = tmp_path / "train.xyz"
    write(train, water_training)
    (tmp_path / "folder").mkdir()
    for output in (tmp_path / "folder", tmp_path / "missing" / "m.kqeq", train / "m.kqeq"):
        assert main(["fit", str(train), "-o", str(output)]) == 2
        error = capsys.readouterr().err
        assert "cannot write" in error
        assert "Traceback" not in error


def test_an_unwritable_path_leaves_the_model_in_memory(water_model, tmp_path):
    with pytest.raises(InputError, match="create it first"):
        water_model.save(tmp_path / "missing" / "m.kqeq")
    water_model.save(tmp_path / "m.kqeq")
    assert kqeq.load(tmp_path / "m.kqeq").species_ == ("H", "O")


# ---------------------- "a model fitted on one total charge only warns ..."


def test_a_model_of_one_total_charge_warns_when_another_is_asked_for(kernel, water_systems, tmp_path):
    model = KQEq(kernel(3.0, n_representatives=4), None, targets=["dipole"]).fit(water_systems["water1"][:6])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UndeterminedWarning)
        model.predict(WATER)
        KQEqCalculator(model).get_charges(WATER)
    model.save(tmp_path / "m.kqeq")
    for fitted in (model, kqeq.load(tmp_path / "m.kqeq")):
        with pytest.warns(
            UndeterminedWarning, match=r"every training frame had total charge 0 e: .* chemical pot"
        ):
            p = fitted.predict(WATER, total_charge=1)
        assert p.charges.sum() == pytest.approx(1.0)
        with pytest.warns(UndeterminedWarning):
            KQEqCalculator(fitted, total_charge=1).get_charges(WATER)


def test_charge_that_goes_along_with_composition_warns(water_model):
    """Hydroxide, water, hydronium: nothing says what charge costs at one composition."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UndeterminedWarning)
        water_model.predict(WATER)
    with pytest.warns(UndeterminedWarning, match="energy of H2O at charge 2 e"):
        water_model.predict(WATER, total_charge=2)


# ---------------------------------------------------------------- in general


def test_every_error_is_ours_and_what_generic_code_expects():
    for error, base in (
        (InputError, ValueError),
        (UnsupportedError, NotImplementedError),
        (NotPositiveDefiniteError, np.linalg.LinAlgError),
        (ModelFileError, OSError),
        (ModelNotFittedError, ValueError),
        (ModelNotFittedError, AttributeError),
    ):
        assert issubclass(error, KQEqError)
        assert issubclass(error, base)
    assert set(kqeq.errors.__all__) <= set(vars(kqeq.errors))


def test_two_labels_of_one_name_that_disagree(estimator):
    atoms = water({"dipole": [0.0, 0.0, 1.0]})
    atoms.calc = SinglePointCalculator(atoms, dipole=np.array([0.0, 0.0, 2.0]))
    with pytest.raises(InputError, match=r'two different labels "dipole"'):
        estimator.fit(atoms)


def test_weights_that_do_not_fit(estimator, water_training):
    with pytest.raises(InputError, match="2 weights were given for 12 frames; give one per frame"):
        estimator.fit(water_training, sample_weight=[1, 2])
    with pytest.raises(InputError, match=r"weight of frame 0 .* not negative"):
        estimator.fit(water_training, sample_weight=[-1.0] * 12)


def test_warnings_point_at_the_line_of_the_user(water_training):
    """However deep in the package they come from, and whatever it calls in between."""
    model = KQEq(small_kernel(), small_kernel(), max_iterations=1, noise={"energy": 1e-4})
    with pytest.warns(KQEqWarning, match="without converging") as caught:
        model.fit(water_training)
    assert {found.filename for found in caught} == {__file__}
