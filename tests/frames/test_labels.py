"""The door for labels: where they are found, which shapes they may have, what is refused."""

import io

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from kqeq.errors import InputError, LabelWarning
from kqeq.frames.labels import LABEL_KINDS, LabelKeys, Labels, read_frame, read_frames
from systems import water

FORCES = np.arange(9.0).reshape(3, 3) / 10
STRESS = np.array([[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]])
ALPHA = np.diag([1.0, 2.0, 3.0]) + 0.1


def labels_of(atoms, keys=None, **options):
    return read_frame(atoms, keys, **options)[1]


# --------------------------------------------------------------- where from


def test_from_info_and_arrays():
    info = {"energy": -1.5, "dipole": [1, 2, 3], "stress": STRESS, "polarizability": ALPHA}
    labels = labels_of(water(info, {"forces": FORCES}))
    assert labels.energy == -1.5
    np.testing.assert_array_equal(labels.forces, FORCES)
    np.testing.assert_array_equal(labels.dipole, [1, 2, 3])
    np.testing.assert_array_equal(labels.stress, STRESS)
    np.testing.assert_array_equal(labels.polarizability, ALPHA)
    assert labels.charges is None
    assert labels.kinds == ("energy", "forces", "stress", "dipole", "polarizability")
    assert labels.weight == 1.0


def test_from_single_point_results():
    labels = labels_of(water(energy=-1.5, forces=FORCES, dipole=np.arange(3.0)))
    assert labels.kinds == ("energy", "forces", "dipole")
    assert labels.energy == -1.5


def test_through_a_file_and_back():
    atoms = water({"dipole": [0.1, 0.2, 0.3], "total_charge": 1}, {"hirshfeld": [1.0, 0.0, 0.0]})
    atoms.calc = SinglePointCalculator(atoms, energy=-2.5, forces=FORCES)
    text = io.StringIO()
    write(text, atoms, format="extxyz")
    text.seek(0)
    structure, labels = read_frame(read(text, format="extxyz"), LabelKeys(charges="hirshfeld"))
    assert structure.total_charge == 1.0
    assert labels.kinds == ("energy", "forces", "dipole", "charges")
    assert labels.energy == -2.5
    np.testing.assert_allclose(labels.forces, FORCES)
    np.testing.assert_array_equal(labels.charges, [1.0, 0.0, 0.0])


def test_keys_by_prefix():
    keys = LabelKeys.prefixed("REF_", charges="hirshfeld")
    arrays = {"REF_forces": FORCES, "hirshfeld": [0.2, -0.1, -0.1]}
    atoms = water({"REF_energy": -7.0, "energy": 3.0, "REF_dipole": [0, 0, 1], "weight": 4}, arrays)
    labels = labels_of(atoms, keys)
    assert labels.energy == -7.0
    assert labels.kinds == ("energy", "forces", "dipole", "charges")
    assert labels.weight == 4.0
    # another method's results under the standard names are not labels then
    assert labels_of(water(energy=1.0, forces=FORCES), keys).kinds == ()


def test_partition_charges_are_read_only_when_named():
    atoms = water(arrays={"charges": [0.2, -0.1, -0.1]})
    assert labels_of(atoms).kinds == ()
    assert labels_of(atoms, LabelKeys(charges="charges")).kinds == ("charges",)
    assert labels_of(water(charges=[0.2, -0.1, -0.1]), LabelKeys(charges="charges")).kinds == ("charges",)


def test_results_that_no_longer_belong_to_the_geometry_are_ignored():
    atoms = water(energy=-1.5, forces=FORCES)
    atoms.positions[0] += 0.1
    with pytest.warns(LabelWarning, match="the atoms were changed"):
        labels = labels_of(atoms)
    assert labels.kinds == ()


def test_a_calculator_that_would_have_to_compute_is_no_source():
    from ase.calculators.emt import EMT

    atoms = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.5]])
    atoms.calc = EMT()
    assert labels_of(atoms).kinds == ()


@pytest.mark.parametrize("shift", [1e-3, 0.05])
def test_two_different_labels_are_an_error_even_where_energies_are_large(shift):
    """0.05 eV in −12000 eV is a difference between methods, not of rounding."""
    energy = -12000.0
    assert labels_of(water({"energy": energy}, energy=energy)).energy == energy
    with pytest.raises(InputError, match="two different labels"):
        labels_of(water({"energy": energy + shift}, energy=energy))


def test_two_different_labels_of_other_kinds():
    with pytest.raises(InputError, match=r'"forces".*atoms\.arrays.*remove one'):
        labels_of(water(arrays={"forces": FORCES + 1}, forces=FORCES))
    # written with eight decimals, as extended XYZ does
    rounded = np.round(FORCES + 1 / 3, 8)
    assert labels_of(water(arrays={"forces": rounded}, forces=FORCES + 1 / 3)).kinds == ("forces",)
    with pytest.raises(InputError, match="not numeric"):
        labels_of(water({"energy": "low"}, energy=1.0))


# ------------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("energy", [-3.0], -3.0),
        ("energy", np.float32(-3.0), -3.0),
        ("energy", 7, 7.0),
        ("stress", [1, 2, 3, 4, 5, 6], STRESS),
        ("stress", STRESS.ravel(), STRESS),
        ("polarizability", ALPHA.ravel(), ALPHA),
        ("dipole", (1, 2, 3), np.array([1.0, 2.0, 3.0])),
        ("dipole", [[1, 2, 3]], np.array([1.0, 2.0, 3.0])),
        ("dipole", [[1], [2], [3]], np.array([1.0, 2.0, 3.0])),
        ("energy", [[-3.0]], -3.0),
        ("stress", [STRESS], STRESS),
        ("polarizability", [ALPHA.ravel()], ALPHA),
    ],
)
def test_equivalent_shapes(kind, value, expected):
    label = getattr(labels_of(water({kind: value})), kind)
    np.testing.assert_array_equal(label, expected)
    assert np.asarray(label).dtype == np.float64


def test_charges_may_be_a_column():
    labels = labels_of(water(arrays={"q": np.array([[0.2], [-0.1], [-0.1]])}), LabelKeys(charges="q"))
    assert labels.charges.shape == (3,)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("energy", [1.0, 2.0]),
        ("energy", {"a": 1}),
        ("energy", "low"),
        ("stress", [1.0, 2.0, 3.0]),
        ("dipole", 1.0),
        ("dipole", [1.0, 2.0]),
        ("polarizability", [1.0, 2.0, 3.0]),
        ("polarizability", np.arange(9.0).reshape(3, 3)),
        ("forces", np.zeros((3, 2))),
        ("forces", np.zeros(3)),
        ("charges", np.zeros((3, 2))),
    ],
)
def test_wrong_shapes_are_refused_by_name(kind, value):
    atoms = water(arrays={kind: value}) if kind in ("forces", "charges") else water({kind: value})
    with pytest.raises(InputError, match=rf"{kind} label of frame 3 \(H2O\)"):
        labels_of(atoms, LabelKeys(charges="charges"), index=3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", LABEL_KINDS)
def test_values_that_are_not_finite_are_refused(kind, bad):
    values = {
        "energy": 1.0,
        "forces": FORCES,
        "stress": STRESS,
        "dipole": np.ones(3),
        "charges": np.ones(3),
        "polarizability": ALPHA,
        "born_charges": np.zeros((3, 9)),
    }
    value = np.array(values[kind], dtype=float)
    value.flat[-1] = bad
    by_atom = kind in ("forces", "charges", "born_charges")
    atoms = water(arrays={kind: value}) if by_atom else water({kind: value})
    with pytest.raises(InputError, match=f"the {kind} label .* NaN or infinite"):
        labels_of(atoms, LabelKeys(charges="charges"))


# ------------------------------------------------------- charges and weights


@pytest.mark.parametrize(("numbers", "charge"), [([1], 2), ([1], -2), ([8, 1, 1], 25), ([2], 3)])
def test_charges_that_no_such_system_has_are_refused(numbers, charge):
    atoms = Atoms(numbers, np.arange(len(numbers))[:, None] * [1.0, 0, 0], info={"total_charge": charge})
    with pytest.raises(InputError, match="elementary charge"):
        read_frame(atoms)


def test_ordinary_ions_pass_and_fractional_charges_warn():
    for numbers, charge in (([1], 1), ([1], -1), ([26], 3)):
        read_frame(Atoms(numbers, [[0, 0, 0]], info={"total_charge": charge}))
    with pytest.warns(LabelWarning, match=r"is 0\.5 e; labels of isolated systems have whole charges"):
        read_frame(water({"total_charge": 0.5}))


@pytest.mark.parametrize("weight", [-1, np.nan, np.inf, "heavy", [1, 2], None])
def test_a_weight_is_a_finite_number_that_is_not_negative(weight):
    with pytest.raises(InputError, match="the weight of"):
        read_frame(water({"weight": weight}))
    if weight is not None:
        with pytest.raises(InputError, match="the weight of"):
            read_frame(water(), weight=weight)


def test_weights_multiply_and_come_one_per_frame():
    frames = [water({"weight": 2.0}), water()]
    assert [labels.weight for _, labels in read_frames(frames, weights=[3.0, 0.0])] == [6.0, 0.0]
    with pytest.raises(InputError, match="3 weights were given for 2 frames"):
        list(read_frames(frames, weights=[1, 2, 3]))


def test_errors_name_the_frame():
    frames = [water({"energy": 1.0}), water({"energy": np.nan})]
    with pytest.raises(InputError, match=r"frame 1 \(H2O\)"):
        list(read_frames(frames))


def test_kinds_keep_one_order():
    assert Labels(polarizability=ALPHA, energy=0.0, charges=np.zeros(3)).kinds == (
        "energy",
        "charges",
        "polarizability",
    )
    assert Labels().kinds == ()
