"""Total charge and field: every place that may state them, one reading, and what travels with a structure."""

import warnings

import numpy as np
import pytest
from ase.db import connect
from ase.io import Trajectory, read, write

import kqeq
from checks import bare
from kqeq import KQEqCalculator, analysis
from kqeq.analysis.optimization import optimize
from kqeq.charges import assign_fragments
from kqeq.cli.files import read_frames, read_one
from kqeq.errors import InputError, LabelWarning, UndeterminedWarning
from kqeq.frames.conditions import conditions, read_name, under_conditions, without_conditions, write_name
from kqeq.frames.labels import LabelKeys, read_frame
from kqeq.frames.structures import read_structure
from systems import WATER, water

FIELD = (0.0, 0.02, 0.1)


def told(**parameters):
    """Water with the results of a calculator that has parameters, as trajectories give them back."""
    atoms = water(energy=-1.0)
    atoms.calc.parameters.update(parameters)
    return atoms


@pytest.fixture
def ion(ion_frames):
    return bare(next(a for a in ion_frames if a.info["system"] == "hydronium"))


# ------------------------------------------------------------------ what is a number


BOOLEANS = [True, False, np.True_, np.array(True), [True], np.array([True])]


@pytest.mark.parametrize("value", BOOLEANS)
@pytest.mark.parametrize("key", ["total_charge", "charge"])
def test_truth_values_are_no_charges(key, value):
    with pytest.raises(InputError, match=r"is no total charge: a bare word"):
        conditions(water({key: value}))
    with pytest.raises(InputError, match="one finite number"):
        conditions(water(), total_charge=value)
    # something else that says it settles the matter
    assert conditions(water({key: value}), total_charge=-1)[0] == -1.0
    other = {"total_charge": "charge", "charge": "total_charge"}[key]
    assert conditions(water({key: value, other: 2}))[0] == 2.0


@pytest.mark.parametrize("value", [[True, 0.0, 0.1], np.ones(3, dtype=bool), True, np.array(True)])
def test_truth_values_are_no_fields(value):
    with pytest.raises(InputError, match=r"external.field"):
        conditions(water({"external_field": value}))
    with pytest.raises(InputError, match="three finite numbers"):
        conditions(water(), external_field=value)


@pytest.mark.parametrize(
    "comment", ["water, charge 0", "hydroxide charge -1", "charge", "total_charge -1", "charge=T"]
)
def test_words_of_a_plain_comment_are_refused(tmp_path, comment):
    (tmp_path / "a.xyz").write_text(f"3\n{comment}\nO 0 0 0\nH .96 0 0\nH -.24 .93 0\n")
    with pytest.raises(InputError, match="a bare word in the comment line"):
        read_structure(read(tmp_path / "a.xyz"))


@pytest.mark.parametrize(
    "comment", ["charge: -1", "Charge: +1", "net charge:-1", "-1 1", "2 1", "TotalCharge -1"]
)
def test_comments_that_seem_to_give_a_charge_are_named(tmp_path, comment):
    (tmp_path / "a.xyz").write_text(f"3\n{comment}\nO 0 0 0\nH .96 0 0\nH -.24 .93 0\n")
    with pytest.warns(LabelWarning, match="not\nread|not read|was not read"):
        assert read_structure(read(tmp_path / "a.xyz")).total_charge == 0.0


@pytest.mark.parametrize(
    "value", ["1+", "−1", "one", "", "1,0", 1j, np.complex128(1), [1, 0], {}, np.datetime64("2020-01-01")]
)
def test_charges_that_are_no_number_are_refused(value):
    with pytest.raises(InputError, match="one finite number"):
        conditions(water({"charge": value}))


@pytest.mark.parametrize(
    "value", [1, 1.0, "1", "+1", np.int64(1), np.float32(1), np.array(1.0), np.array([1]), [1.0]]
)
def test_charges_that_are_one_number_pass(value):
    assert conditions(water({"charge": value}))[0] == 1.0


def test_minus_zero_is_zero():
    charge, _ = conditions(water({"charge": -0.0}))
    assert np.copysign(1.0, charge) == 1.0


# ---------------------------------------------------------------------------- places


def test_a_prefix_applies_to_charge_and_field():
    atoms = water({"REF_total_charge": 1, "REF_external_field": FIELD, "REF_energy": -3.0})
    structure, labels = read_frame(atoms, LabelKeys.prefixed("REF_"))
    assert (structure.total_charge, tuple(structure.external_field), labels.energy) == (1.0, FIELD, -3.0)
    with pytest.raises(InputError, match="two total charges"):
        read_frame(water({"REF_charge": 1, "total_charge": 0}), LabelKeys.prefixed("REF_"))
    with pytest.warns(LabelWarning) as record:
        assert read_frame(atoms)[0].total_charge == 0.0
    assert sorted(str(w.message).split('"')[1] for w in record) == ["REF_external_field", "REF_total_charge"]


@pytest.mark.parametrize("container", ["key_value_pairs", "data"])
def test_rows_of_databases_say_it_too(container):
    atoms = water({container: {"charge": -1, "external_field": list(FIELD)}})
    charge, field = conditions(atoms)
    assert (charge, tuple(field)) == (-1.0, FIELD)
    with pytest.raises(InputError, match="two total charges"):
        conditions(water({container: {"charge": -1}, "total_charge": 0}))


def test_database_rows_keep_charge_field_and_site_data(tmp_path):
    with connect(tmp_path / "a.db") as database:
        database.write(water(energy=-1.0), total_charge=1, data={"external_field": FIELD})
        atoms = water(energy=-2.0)
        database.write(atoms, key_value_pairs={"charge": -1}, data={"external_potential": np.arange(3.0)})
        through_ase = database.get_atoms(1, add_additional_information=True)
    first, second = map(read_structure, read_frames([str(tmp_path / "a.db")]))
    assert (first.total_charge, tuple(first.external_field)) == (1.0, FIELD)
    assert second.total_charge == -1.0
    np.testing.assert_array_equal(second.external_potential, np.arange(3.0))
    assert read_structure(through_ase).total_charge == 1.0
    assert len(read_frames([f"{tmp_path / 'a.db'}@total_charge=1"])) == 1


@pytest.mark.parametrize(
    "parameters",
    [{"charge": 1}, {"total_charge": 1.0}, {"net_charge": 1}, {"input_data": {"SYSTEM": {"tot_charge": 1}}}],
)
def test_what_a_stored_calculator_was_told_counts(parameters):
    atoms = told(**parameters)
    assert read_structure(atoms).total_charge == 1.0
    assert read_structure(atoms, total_charge=0).total_charge == 0.0  # what is typed comes first
    atoms.info["total_charge"] = 0
    with pytest.raises(InputError, match=r"two total charges.*atoms\.calc\.parameters"):
        read_structure(atoms)


def test_fields_of_other_calculators_are_named():
    with pytest.warns(
        LabelWarning, match=r'atoms\.calc\.parameters\["electric_field"\] looks like an external field'
    ):
        read_structure(told(electric_field=[0.0, 0.0, 0.1]))


@pytest.mark.parametrize(
    "key", ["Charge", "tot_charge", "net_charge", "CHARGE", "dft_charge", "qtot", "Q", "systemCharge"]
)
def test_near_names_of_the_charge_are_named_where_they_say_something_else(key):
    with pytest.warns(LabelWarning, match=f'"{key}".*looks like a total charge'):
        assert read_structure(water({key: 1})).total_charge == 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_structure(water({key: 1, "total_charge": 1}))
        read_structure(water({key: 0}))
        read_structure(water({key: 1}), total_charge=2)


@pytest.mark.parametrize(
    "key",
    ["electric_field", "efield", "E_field", "ElectricField", "field", "ext_field", "dft_external_field"],
)
def test_near_names_of_the_field_are_named(key):
    with pytest.warns(LabelWarning, match=f'"{key}".*looks like an external field'):
        assert not read_structure(water({key: FIELD})).external_field.any()


@pytest.mark.parametrize(
    "key", ["magnetic_field", "max_charge", "nuclear_charge", "field_step", "mean_charge", "force_field"]
)
def test_other_numbers_are_let_alone(key):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_structure(water({key: [0.0, 0.0, 1.0] if "field" in key else 1.0}))


# -------------------------------------------------------------------- stored charges


@pytest.mark.parametrize(
    "name", ["charges", "hirshfeld", "mulliken_charges", "REF_charges", "charge", "q", "bader"]
)
def test_an_ion_is_not_taken_for_neutral(name):
    atoms = water()
    atoms.arrays[name] = np.array([0.2, 0.4, 0.4])
    for value in (atoms, *([water(charges=[0.2, 0.4, 0.4])] if name == "charges" else [])):
        with pytest.raises(InputError, match=r'sum to 1 e; set atoms\.info\["total_charge"\] = 1'):
            read_structure(value)
        value.info["total_charge"] = 1
        assert read_structure(value).total_charge == 1.0
    atoms.info.clear()
    atoms.arrays[name] -= 1 / 3
    assert read_structure(atoms).total_charge == 0.0


@pytest.mark.parametrize("name", ["nuclear_charges", "core_charges", "reference_charges_std", "element"])
def test_other_arrays_do_not_speak_of_the_total(name):
    atoms = water()
    atoms.arrays[name] = np.array([8.0, 1.0, 1.0])
    if name == "reference_charges_std":
        atoms.arrays[name] = np.array([8.0, 1.0, 1.0])
    assert read_structure(atoms).total_charge == 0.0


@pytest.mark.parametrize("suffix", ["xyz", "traj", "json", "db"])
def test_an_ion_through_files_is_not_taken_for_neutral(tmp_path, suffix):
    write(tmp_path / f"a.{suffix}", water(energy=-1.0, charges=np.array([0.2, 0.4, 0.4])))
    with pytest.raises(InputError, match="sum to 1 e"):
        read_frame(read(tmp_path / f"a.{suffix}"))


# ----------------------------------------------------------------- its own trajectory


@pytest.mark.parametrize("suffix", ["traj", "xyz", "json", "db"])
@pytest.mark.parametrize("by", ["calculator", "info"])
def test_a_model_agrees_with_what_ase_wrote(tmp_path, ion_model, ion, suffix, by):
    """Whatever the calculator was told, or found in the atoms, is found again by all who read the file."""
    path = str(tmp_path / f"md.{suffix}")
    if by == "calculator":
        ion.calc = KQEqCalculator(ion_model, total_charge=1, external_field=FIELD)
    else:
        ion.info.update(total_charge=1, external_field=np.array(FIELD))
        ion.calc = KQEqCalculator(ion_model)
    for _ in range(2):
        ion.positions[1] += 0.02
        ion.get_forces()
        energy = ion.get_potential_energy()
        if suffix == "traj":
            with Trajectory(path, "a", ion) as trajectory:
                trajectory.write()
    if suffix != "traj":
        write(path, ion)  # the live calculator itself
    again = read(path, -1)
    assert ion_model.predict(again).energy == pytest.approx(energy, abs=1e-6)
    assert read_structure(again).total_charge == 1.0
    # far from what a neutral molecule without field has
    assert abs(ion_model.predict(bare(again)).energy - energy) > 0.1
    errors = ion_model.evaluate(read_frames([path]))
    assert errors["energy"].rmse < 1e-6
    assert errors["forces"].rmse < 1e-6


def test_notes_follow_the_calculator(ion_model, ion):
    """What was noted is no statement of the user: it never contradicts what the calculator is told next."""
    calculator = KQEqCalculator(ion_model, total_charge=1)
    ion.calc = calculator
    charged = ion.get_potential_energy()
    assert ion.info["calculator_total_charge"] == 1.0
    calculator.total_charge = 0
    neutral = ion.get_potential_energy()
    assert ion.info["calculator_total_charge"] == 0.0
    assert neutral != charged
    calculator.total_charge = None
    assert ion.get_potential_energy() == neutral
    assert "calculator_total_charge" not in ion.info
    # another calculator that was told something else, on a copy
    calculator.total_charge = 1
    ion.get_potential_energy()
    other = ion.copy()
    other.calc = KQEqCalculator(ion_model, total_charge=0)
    assert other.get_potential_energy() == pytest.approx(neutral)
    assert ion_model.predict(ion, total_charge=0).energy == pytest.approx(neutral)
    # one that was told nothing goes on with the copy where the first stopped
    goes_on = ion.copy()
    goes_on.calc = KQEqCalculator(ion_model)
    assert goes_on.get_potential_energy() == pytest.approx(charged)
    # and the user's own word is not overruled
    ion.info["total_charge"] = 0
    with pytest.raises(InputError, match="two total charges"):
        ion.get_potential_energy()


def test_a_live_calculator_speaks_for_itself(ion_model, ion):
    """Neither its notes nor its name, both of the last time that it computed, contradict what holds now."""
    ion.info["total_charge"] = 1
    ion.calc = KQEqCalculator(ion_model)
    charged = ion.get_potential_energy()
    assert "total_charge=1.0" in ion.calc.name
    ion.info["total_charge"] = 0
    neutral = ion_model.predict(ion).energy
    assert neutral != charged
    ion.info.clear()
    ion.calc = KQEqCalculator(ion_model, total_charge=1)
    ion.get_potential_energy()
    ion.calc.total_charge = 0
    assert ion_model.predict(ion).energy == pytest.approx(neutral)


def test_the_name_says_charge_and_field():
    name = write_name(-1.0, np.array(FIELD))
    assert read_name(name) == (-1.0, list(FIELD))
    assert read_name(name.lower()) == (-1.0, list(FIELD))  # as databases keep it
    assert write_name(0.0, np.zeros(3)) == "kqeqcalculator"
    for foreign in ("", "vasp", "kqeqcalculator", "kqeqcalculator total_charge=x", "emt total_charge=1"):
        assert read_name(foreign) == (None, None)


def test_a_prefix_reaches_the_calculator_and_the_analysis(ion_model, ion):
    model = kqeq.KQEq(label_prefix="REF_")
    model.__dict__.update({k: v for k, v in ion_model.__dict__.items() if k.endswith("_")})
    ion.info["REF_total_charge"] = 1
    expected = ion_model.predict(ion, total_charge=1)
    copy = ion.copy()
    copy.calc = KQEqCalculator(model)
    assert copy.get_potential_energy() == pytest.approx(expected.energy)
    assert model.predict(ion).energy == pytest.approx(expected.energy)
    assert analysis.polarizability(model, ion).total == pytest.approx(expected.polarizability, abs=1e-9)
    assert optimize(model, ion, fmax=0.5).atoms.info["total_charge"] == 1.0
    scan = analysis.charge_scan(model, ion, (0, 1))
    assert scan.energies[1] == pytest.approx(expected.energy)


# ------------------------------------------------------------------------- travelling


def test_copies_without_and_under_conditions():
    atoms = water({"total_charge": 1, "external_field": FIELD, "data": {"charge": 1, "x": 2}, "seed": 3})
    atoms.set_initial_charges([1, 0, 0])
    for left in (without_conditions(atoms), without_conditions(atoms, prefix="REF_")):
        assert left.info == {"data": {"x": 2}, "seed": 3}
        assert not left.has("initial_charges")
    assert conditions(under_conditions(atoms, 0.0, np.zeros(3)))[0] == 0.0
    assert atoms.info["data"] == {"charge": 1, "x": 2}
    # what only the calculator knows is kept where it is not taken away
    kept = without_conditions(told(charge=-1), charge=False)
    assert conditions(kept)[0] == -1.0


def test_read_one_replaces_and_keeps(tmp_path, capsys):
    atoms = water({"total_charge": 1, "external_field": np.array(FIELD)}, energy=-1.0)
    write(tmp_path / "a.xyz", atoms)
    found = read_one(str(tmp_path / "a.xyz"), "studied", field=[0, 0, 0])
    charge, field = conditions(found)
    assert charge == 1.0
    assert not field.any()
    assert "--field replaces external_field" in capsys.readouterr().err
    write(tmp_path / "b.xyz", water(energy=-1.0, charges=np.array([0.2, 0.4, 0.4])))
    with pytest.raises(InputError, match="sum to 1 e"):
        read_one(str(tmp_path / "b.xyz"), "studied", field=[0, 0, 0.1])
    assert conditions(read_one(str(tmp_path / "b.xyz"), "studied", charge=1))[0] == 1.0


@pytest.fixture(scope="module")
def fragment_model(ion_frames):
    """Fragments keep their charges; fitted to dimers that say so."""
    kernel = kqeq.SOAPKernel(r_cut=3.0, n_max=3, l_max=2, n_representatives=5)
    monomers = [a for a in ion_frames if a.info["system"] == "water1"]
    frames = []
    for first, second in zip(monomers[:4], monomers[4:8], strict=True):
        pair = bare(first) + bare(second)
        pair.positions[3:] += [2.9, 0.3, 0.4]
        pair = assign_fragments(pair, [[0, 1, 2], [3, 4, 5]], [0.0, 0.0])
        pair.info["energy"] = first.get_potential_energy() + second.get_potential_energy()
        pair.arrays["forces"] = np.concatenate([first.get_forces(), second.get_forces()])
        frames.append(pair)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kqeq.KQEq(kernel, kernel, charges=kqeq.QEq(fragments=True), max_iterations=20).fit(
            frames
        ), frames


def test_fragments_reach_optimisation_and_infrared(fragment_model):
    model, frames = fragment_model
    seen = []
    found = optimize(model, frames[0], fmax=0.3, max_steps=3, observer=lambda *row: seen.append(row))
    assert seen[0][1] == pytest.approx(model.predict(frames[0]).energy, abs=1e-8)
    np.testing.assert_array_equal(found.atoms.arrays["fragments"], [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(found.atoms.info["fragment_charges"], [0.0, 0.0])
    assert "forces" not in found.atoms.arrays
    assert "energy" not in found.atoms.info
    spectrum = analysis.infrared(model, frames[0], relax=False)
    assert np.isfinite(spectrum.frequencies).all()


@pytest.mark.parametrize("relax", [False, True])
def test_an_outer_potential_reaches_every_question(ion_model, ion, relax):
    """A potential that pulls the proton's charge: energies of all questions are those of predict with it."""
    ion.info["total_charge"] = 1
    ion.arrays["external_potential"] = np.array([-0.5, 0.2, 0.1, 0.9])
    ion.arrays["charges"] = np.full(4, 0.25)
    plain = bare(ion)
    energy = ion_model.predict(ion).energy
    assert abs(energy - ion_model.predict(plain, total_charge=1).energy) > 0.05
    seen = []
    end = optimize(ion_model, ion, fmax=0.05, observer=lambda *row: seen.append(row))
    assert seen[0][1] == pytest.approx(energy, abs=1e-8)
    assert ion_model.predict(end.atoms).energy == pytest.approx(end.prediction.energy, abs=1e-8)
    scan = analysis.charge_scan(ion_model, ion, (0, 1), relax=relax, fmax=0.05)
    assert scan.energies[1] == pytest.approx(energy, abs=1e-8)
    if relax:
        assert scan.relaxed_energies[1] == pytest.approx(end.prediction.energy, abs=1e-6)
        states = analysis.ionization(ion_model, ion, relax=True, fmax=0.05)
        there = ion.copy()
        there.positions = states.positions
        difference = (
            ion_model.predict(there).energy
            - ion_model.predict(without_conditions(there), total_charge=0).energy
        )
        assert states.vertical_electron_affinity == pytest.approx(difference, abs=1e-6)
    matrix = analysis.hessian(ion_model, end.atoms)
    displaced = end.atoms.copy()
    displaced.positions[1, 0] += 0.01
    forces = ion_model.predict(displaced).forces - end.prediction.forces
    np.testing.assert_allclose(-forces.ravel() / 0.01, matrix[3], atol=0.15 * np.abs(matrix[3]).max())
    groups = [[0, 1, 2], [3]]
    pulled = analysis.dissociation_scan(ion_model, ion, groups, [0.0], fragment_charges=[0.0, 1.0])
    assert pulled.energies[0] == pytest.approx(energy, abs=1e-6)


def test_what_a_trajectory_says_reaches_dynamics_of_the_check(tmp_path, ion_model, ion):
    ion.calc = KQEqCalculator(ion_model, total_charge=1)
    ion.get_forces()
    write(tmp_path / "a.traj", ion)
    frame = read(tmp_path / "a.traj")
    frame.info.clear()  # only the parameters of the calculator are left
    result = analysis.check_consistency(ion_model, frame, steps=3)
    assert result.passed, result


def test_asking_about_atoms_of_somebody_else_leaves_them_alone(water_model):
    """``calculator.get_forces(atoms)`` without ``atoms.calc``: the next question about them is neutral again."""
    atoms = WATER.copy()
    before = water_model.predict(atoms).energy
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndeterminedWarning)
        charged = KQEqCalculator(water_model, total_charge=1).get_potential_energy(atoms)
    assert atoms.info == {} and abs(charged - before) > 0.1
    assert water_model.predict(atoms).energy == before
