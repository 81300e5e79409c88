"""Nothing that looks like a label is passed over in silence, and labels that cannot be right are named."""

import warnings

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator, SinglePointDFTCalculator
from ase.io import read, write
from ase.units import Bohr

import kqeq
from kqeq import KQEq, SOAPKernel
from kqeq.cli import main
from kqeq.errors import InputError, LabelWarning
from kqeq.fitting.dipole_origin import ORIGINS, other_origin
from kqeq.frames.label_checks import survey, unread_names
from kqeq.frames.labels import LabelKeys, read_frame
from kqeq.frames.structures import read_structure
from systems import WATER, water

FORCES = np.array([[0.1, 0.2, 0.0], [-0.3, 0.0, 0.1], [0.2, -0.2, -0.1]])
KEYS = LabelKeys()


def quiet(frames, keys=KEYS, **options):
    """A survey that has nothing to warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return survey(frames, keys, **options)


def loud(frames, text, keys=KEYS, **options):
    with pytest.warns(LabelWarning, match=text):
        return survey(frames, keys, **options)


# -------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("Energy", "energy"),
        ("REF_energy", "energy"),
        ("dft_energy", "energy"),
        ("energy_pbe", "energy"),
        ("enrgy", "energy"),
        ("totalEnergy", "energy"),
        ("E", "energy"),
        ("REF_free_energy", "energy"),
        ("virial", "stress"),
        ("REF_virials", "stress"),
        ("dipole_moment", "dipole"),
        ("REF_dipole", "dipole"),
        ("dipol", "dipole"),
        ("polarisability", "polarizability"),
        ("config_weight", "weight"),
        ("energy_weight", "energy"),
        ("REF_total_charge", "total_charge"),
        ("electric_field", "external_field"),
        ("force", "forces"),
        ("FORCES", "forces"),
        ("REF_forces", "forces"),
        ("dft_gradient", "forces"),
        ("F", "forces"),
        ("forcess", "forces"),
    ],
)
def test_names_that_resemble_known_ones_are_named(key, kind):
    values = {
        "energy": -3.0,
        "stress": np.eye(3),
        "dipole": [0.0, 0.0, 1.0],
        "polarizability": np.eye(3),
        "weight": 1.0,
        "total_charge": 0,
        "external_field": [0.0, 0.0, 0.0],
        "forces": FORCES,
    }
    place = "arrays" if kind == "forces" else "info"
    found = unread_names([water(**{place: {key: values[kind]}}, energy=-1.0)], KEYS)
    assert list(found) == [key]
    assert kind in found[key] or (kind, key) == ("energy", key)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("energy_std", 0.1),
        ("energy_unit", "eV"),
        ("energy", -1.0),
        ("free_energy", -1.0),
        ("weight", 2.0),
        ("polarizability_asymmetry", 1e-5),
        ("field_step", 0.01),
        ("method", "PBE"),
        ("temperature", 300.0),
        ("molecular_name", 3.0),
        ("energy_is_good", True),
        ("force_field", "amber"),
        ("step", 3),
        ("name", "energy"),
        ("forces", np.zeros((2, 2))),
        ("total_charge", 0),
        ("energies_of_atoms", [1.0, 2.0]),
    ],
)
def test_other_names_are_let_alone(key, value):
    assert unread_names([water({key: value}, dipole=[0, 0, 1.0])], KEYS) == {}


def test_names_in_results_and_rows_and_how_often():
    frames = [
        water({"key_value_pairs": {"force_x": 3.0, "dft_energy": -3.0}}, energy=-1.0),
        water(energy=-1.0),
    ]
    frames[0].calc.results["charges"] = np.array([-0.2, 0.1, 0.1])
    found = unread_names(frames, KEYS)
    assert list(found) == ["dft_energy", "charges"]
    assert "in 1 of 2 frames" in found["dft_energy"]
    assert 'charges_key="charges"' in found["charges"]
    assert "charges" not in unread_names(frames, LabelKeys(charges="charges"))
    assert list(unread_names(frames[1:], LabelKeys.prefixed("REF_"))) == ["energy"]


@pytest.mark.parametrize("comment", ["step 3 E -76.41", "-76.4102, 0.3", "water a.b 12", "energy= -76.41"])
def test_numbers_among_bare_words_are_named(tmp_path, comment):
    (tmp_path / "a.xyz").write_text(f"3\n{comment}\nO 0 0 0\nH .96 0 0\nH -.24 .93 0\n")
    atoms = read(tmp_path / "a.xyz")
    found = unread_names([atoms], KEYS)
    said = any("bare words of a comment line" in reason for reason in found.values())
    assert said == ("-76" in comment and "=" not in comment)
    if "=" in comment:  # a blank behind the sign does no harm
        assert read_frame(atoms)[1].energy == -76.41


def test_the_report_names_them_in_one_line(water_training, kernel):
    frames = [a.copy() for a in water_training]
    for atoms, old in zip(frames, water_training, strict=True):
        atoms.calc = SinglePointCalculator(atoms, dipole=old.get_dipole_moment())
        atoms.arrays["force"] = np.zeros((len(atoms), 3))
        atoms.arrays["REF_forces"] = np.zeros((len(atoms), 3))
        atoms.info.update(virial=np.eye(3), config_weight=0.5, REF_energy=1.0, weight=2.0)
    report = KQEq(kernel(3.0), None).fit(frames).fit_report_
    assert report.used == {"dipole": 12}
    assert {"force", "REF_forces", "virial", "config_weight", "REF_energy"} <= set(report.ignored)
    lines = str(report).splitlines()
    assert any(
        line.startswith("labels ignored: force, REF_forces (") or "REF_forces, force" in line
        for line in lines
    )
    assert any("frame weights from 2 to 2" in line for line in lines)


# ------------------------------------------------------------------------ free energy


def test_forces_belong_to_the_free_energy():
    atoms = water(energy=-10.0, free_energy=-10.3, forces=FORCES)
    assert read_frame(atoms)[1].energy == -10.3
    (note,) = quiet([atoms, water(energy=-9.0)]).notes
    assert "energy and free_energy differ in frame 0 (1 in all), by up to 100 meV/atom" in note
    assert "free_energy is fitted" in note
    assert "frames without it" in note


def test_frames_with_only_one_of_them_are_fitted():
    frames = [water(free_energy=-10.3), water({"free_energy": -9.0}), water(energy=-8.0)]
    found = quiet(frames)
    assert [labels.energy for _, labels in found.pairs] == [-10.3, -9.0, -8.0]
    assert found.notes == ()
    assert quiet([water(energy=-1.0, free_energy=-1.0)]).notes == ()


def test_a_thermodynamic_free_energy_is_no_label():
    frames = [water({"free_energy": -7.0}, energy=-10.0)]
    found = quiet(frames)
    assert found.pairs[0][1].energy == -10.0
    assert "free_energy of frame 0 (1 in all) is too far from energy" in found.notes[0]
    assert read_frame(water({"free_energy": "low"}, energy=-10.0))[1].energy == -10.0
    # one of another method than the energy that was named
    assert (
        read_frame(water({"E_dft": -10.0}, free_energy=-10.1), LabelKeys(energy="E_dft"))[1].energy == -10.0
    )


def test_the_prefix_holds_for_it():
    keys = LabelKeys.prefixed("REF_")
    assert (
        read_frame(water({"REF_energy": -10.0, "REF_free_energy": -10.1}, free_energy=5.0), keys)[1].energy
        == -10.1
    )


# ------------------------------------------------------------------------ booleans


@pytest.mark.parametrize("value", [True, np.True_, np.array(False), [True]])
@pytest.mark.parametrize("kind", ["energy", "dipole", "stress", "polarizability"])
def test_truth_values_are_no_labels(kind, value):
    with pytest.raises(InputError, match=f"the {kind} label .* not numeric"):
        read_frame(water({kind: value}))


def test_truth_values_are_no_forces_charges_or_weights():
    with pytest.raises(InputError, match=r"forces label .* not numeric"):
        read_frame(water(arrays={"forces": np.ones((3, 3), dtype=bool)}))
    with pytest.raises(InputError, match="the weight of"):
        read_frame(water({"weight": True}))
    with pytest.raises(InputError, match=r"charges label .* not numeric"):
        read_frame(water(arrays={"q0": [True, False, True]}), LabelKeys(charges="q0"))


def test_a_word_in_the_comment_is_no_energy(tmp_path):
    (tmp_path / "a.xyz").write_text("3\nSCF energy in hartree\nO 0 0 0\nH .96 0 0\nH -.24 .93 0\n")
    with pytest.raises(InputError, match="bare word in the comment line"):
        read_frame(read(tmp_path / "a.xyz"))


def test_forces_that_came_by_info_are_read():
    assert read_frame(water({"forces": FORCES.tolist()}))[1].forces is not None


# ------------------------------------------------------------ labels that cannot be right


def test_energies_that_are_all_zero_are_left_out(tmp_path):
    frames = [water(energy=0.0, forces=FORCES), water(energy=-0.0, forces=FORCES)]
    found = loud(frames, "energies of all 2 frames are exactly 0.0 eV and are left out")
    assert [labels.kinds for _, labels in found.pairs] == [("forces",)] * 2
    assert found.notes
    one = loud([*frames, water(energy=-3.0)], "the energy of frames 0, 1 .* is exactly 0.0 eV")
    assert one.pairs[0][1].energy == 0.0
    quiet([water(energy=-1.0, forces=FORCES), water(energy=-2.0)])


@pytest.mark.parametrize("kind", ["forces", "stress", "dipole"])
def test_labels_that_are_all_zero_are_named(kind):
    value = {"forces": np.zeros((3, 3)), "stress": np.zeros(6), "dipole": np.zeros(3)}[kind]
    if kind == "forces":
        mixed = [water(energy=-1.0, forces=FORCES), water(energy=-1.0, forces=value)]
        loud(mixed, r"the forces of frame 1 \(1 in all\) are exactly zero")
    cell = Atoms(WATER.numbers, WATER.positions, cell=9 * np.eye(3), pbc=kind == "stress")
    loud(
        [water(energy=-1.0, atoms=cell, **{kind: value}) for _ in range(3)],
        f"the {kind} labels of all 3 frames are exactly zero",
    )


def test_an_asymmetric_stress_is_refused():
    stress = np.diag([1.0, 2.0, 3.0])
    stress[0, 1] = 0.1
    with pytest.raises(InputError, match=r"stress label .* is not symmetric"):
        read_frame(water({"stress": stress}))
    stress[1, 0] = 0.1 + 1e-5
    assert read_frame(water({"stress": stress.ravel()}))[1].stress.shape == (3, 3)


def test_net_forces_are_reported_with_the_frames():
    held = FORCES.copy()
    held[0, 2] += 0.4
    good = water(forces=FORCES, energy=-1.0)
    loud(
        [good, water(forces=held)],
        r"the forces of frame 1 \(1 in all\) have a net force, up to 0.133 eV/Å per atom",
    )
    # rounding of files and what a fit tolerates
    quiet([good, water(forces=FORCES + 1e-4)])
    # Q·field is no mistake, its negative is
    field = np.array([0.0, 0.0, 0.3])
    push = {"total_charge": 1, "external_field": field}
    quiet([water(push, forces=FORCES + field / 3)])
    loud([water(push, forces=FORCES - field / 3)], "have a net force")
    quiet([water(push, forces=FORCES - field / 3)], force_noise=1.0)


def test_stored_charges_that_contradict_are_reported():
    ion = water({"total_charge": 0}, charges=[0.2, 0.4, 0.4], energy=-1.0)
    loud(
        [ion], "the stored charges of frame 0 .* sum to another total charge than the one given: 1 e, not 0 e"
    )
    quiet([water({"total_charge": 0}, charges=[8.0, 1.0, 1.0], energy=-1.0)])  # populations or nuclei


def test_weights_in_use_are_said():
    frames = [water({"weight": 18.015}, energy=-1.0), water(energy=-1.0)]
    assert "frame weights from 0 to 18.015" in quiet(frames, weights=[1, 0]).notes[0]
    assert quiet(frames[1:]).notes == ()


def test_partly_occupied_sites_are_refused():
    cell = Atoms("Na", cell=3 * np.eye(3), pbc=True)
    for occupancy in ({"0": {"Na": 0.5, "K": 0.5}}, {"0": {"Na": 0.7}}, {0: {"Na": 1.0, "K": 0.0}}):
        cell.info["occupancy"] = occupancy
        with pytest.raises(InputError, match="partly occupied sites"):
            read_structure(cell)
    for occupancy in ({"0": {"Na": 1.0}}, 0.5, {"a": 1}):
        cell.info["occupancy"] = occupancy
        read_structure(cell)


def test_a_cif_file_with_partly_occupied_sites(tmp_path):
    (tmp_path / "a.cif").write_text(
        "data_x\n_cell_length_a 5\n_cell_length_b 5\n_cell_length_c 5\n_cell_angle_alpha 90\n_cell_angle_beta 90\n"
        "_cell_angle_gamma 90\n_symmetry_space_group_name_H-M 'P 1'\nloop_\n_atom_site_label\n_atom_site_type_symbol\n"
        "_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n_atom_site_occupancy\nNa1 Na 0 0 0 0.5\n"
        "K1 K 0 0 0 0.5\nCl1 Cl 0.5 0.5 0.5 1\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        atoms = read(tmp_path / "a.cif")
    with pytest.raises(InputError, match="partly occupied"):
        read_structure(atoms)


def test_live_calculators_are_named():
    atoms = Atoms("Ar2", [[0, 0, 0], [0, 0, 3.8]])
    atoms.calc = LennardJones()
    atoms.get_forces()
    with pytest.raises(
        InputError, match=r"frame 0 \(Ar2\) has no labels, but carries a live calculator \(LennardJones\)"
    ):
        survey([atoms], KEYS)
    atoms.info["energy"] = -1.0
    loud([atoms], r"frame 0 \(1 in all\) carry, beside their labels, a live calculator .* with forces")
    # under a prefix the results of calculators are those of another method
    atoms.info["REF_energy"] = -1.0
    quiet([atoms], LabelKeys.prefixed("REF_"))
    atoms.arrays["forces"] = np.array([[0, 0, 0.1], [0, 0, -0.1]])
    atoms.info.update(dipole=[0, 0, 0], stress=np.zeros(6))
    quiet([atoms])
    bare = Atoms("Ar2", [[0, 0, 0], [0, 0, 3.8]])
    bare.calc = atoms.calc
    with pytest.raises(InputError, match="live calculator"):
        KQEq().fit(bare)
    # one that has computed nothing is no source, as before
    copper = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.5]], info={"energy": -1.0})
    copper.calc = EMT()
    quiet([copper])
    frozen = water()
    frozen.calc = SinglePointDFTCalculator(frozen, energy=-1.0)
    assert quiet([frozen]).pairs[0][1].energy == -1.0


def test_lengths_in_another_unit_are_warned_of(water_systems):
    frames = water_systems["water2"][:4]
    quiet(frames)
    for factor, text in (
        (1 / Bohr, r"in bohr they look 1\.9 times too large"),
        (0.1**0.5, "in nm, or scaled"),
    ):
        scaled = [Atoms(a.numbers, factor * a.positions, info={"energy": -1.0}) for a in frames]
        loud(scaled, text)
    box = [
        Atoms(a.numbers, a.positions / Bohr, cell=20 * np.eye(3), pbc=True, info={"energy": -1.0})
        for a in frames
    ]
    loud(box, "in bohr")
    argon = Atoms("Ar2", [[0, 0, 0], [0, 0, 3.8]], info={"energy": -1.0})
    quiet([argon, argon])
    # one frame that is pulled apart among bound ones
    energy = frames[0].get_potential_energy()
    apart = Atoms(frames[0].numbers, 3 * frames[0].positions, info={"energy": energy})
    quiet([*frames, apart])


def test_energies_of_another_unit_among_others_are_named():
    frames = [one({"energy": -470.0 - 0.1 * i}) for i in range(6)]
    quiet(frames)
    mixed = [*frames, one({"energy": -17.3})]
    loud(mixed, r"energies of frame 6 \(1 in all\) are far .* by \+151 eV/atom")
    quiet([*frames, one({"energy": -17.3, "total_charge": 1})])  # another charge state
    quiet([frames[0], mixed[-1]])  # nothing says which is right


@pytest.mark.parametrize("name", ["ag3", "water", "zno", "water_box", "nma", "polarizability"])
def test_packaged_sets_have_no_such_faults(name):
    found = quiet(kqeq.datasets.load(name)[:30])
    assert set(found.ignored) <= {"charges", "hirshfeld"}
    assert found.notes == ()


# ------------------------------------------------------------------------ labels that are missing


def one(info=None, arrays=None, **cell):
    atoms = Atoms("OH2", [(0, 0, 0), (0.76, 0.59, 0), (-0.76, 0.59, 0)], info=dict(info or {}), **cell)
    for key, value in (arrays or {}).items():
        atoms.set_array(key, value)
    return atoms


ALL = ("energy", "forces", "stress", "dipole")
CRYSTAL = {"cell": [5, 5, 5], "pbc": True}


@pytest.mark.parametrize(
    ("atoms", "words"),
    [
        (one({"energy": -1.0}, {"force": FORCES}), r'atoms.arrays\["forces"\] = atoms.arrays.pop\("force"\)'),
        (one({"energy": -1.0}, {"gradient": FORCES}), r'atoms.arrays\["forces"\] = -gradient'),
        (one({"energies_xTB": -1.0}, {"forces": FORCES}), "no frame has energy .* 'energies_xTB'"),
        (one({"energy": -1.0, "mu": np.ones(3)}), "no frame has dipole .* 'mu'"),
        (one({"energy": -1.0, "virial": np.ones(9)}, **CRYSTAL), r"-virial / atoms.get_volume\(\)"),
        (one({"DFT_energy": -1.0}, {"DFT_forces": FORCES}), 'energy, forces.* set label_prefix="DFT_"'),
        (one({"energy:": True, "-5.07": True}), "comments hold numbers"),
    ],
)
def test_a_label_under_another_name_is_warned_of_where_it_is_missing(atoms, words):
    """A fit to what is left would succeed, and be poor."""
    loud([atoms, atoms.copy()], words, wanted=ALL)
    quiet([atoms, atoms.copy()])  # who evaluates may have no use for them


@pytest.mark.parametrize(
    "atoms",
    [
        one({"energy": -1.0, "REF_energy": -1.0}, {"forces": FORCES}),
        one({"energy": -1.0, "virial": np.ones(9)}),  # of a molecule
        one({"dipole": np.ones(3), "kinetic_energy": 1.0}),
        one({"dipole": np.ones(3)}, {"energies": np.ones(3)}),
        one({"energy": -1.0}, {"MACE_forces": FORCES, "forces": 2 * FORCES}),
        one({"energy": -1.0, "multiplicity": 1}),
        one({"energy": -1.0, "multiplicity": 2, "total_charge": 1}),
    ],
)
def test_what_is_there_or_is_something_else_is_let_alone(atoms):
    quiet([atoms], wanted=ALL)


def test_energies_of_single_atoms_are_no_energy_of_the_structure():
    atoms = Atoms("H", info={"dipole": np.zeros(3)}, calculator=None)
    atoms.calc = SinglePointCalculator(atoms, energies=np.array([-1.0]))
    quiet([atoms], wanted=ALL)


def test_a_fit_to_energies_alone_says_where_forces_might_be():
    frames = [one({"energy": -1.0}, {"force": FORCES}), one({"energy": -1.1}, {"force": FORCES})]
    frames[1].positions[0] += 0.1
    plain = SOAPKernel(3.0, n_representatives=2)
    with pytest.warns(LabelWarning, match="no frame has forces .* 'force'"):
        KQEq(None, plain, charges=None).fit(frames, optimize=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", LabelWarning)
        KQEq(None, plain, charges=None, targets=["energy"]).fit(frames, optimize=None)


def test_second_labels_that_differ_are_warned_of():
    """A file that a model has predicted has its own labels as REF_energy."""
    loud([one({"energy": -1.0, "REF_energy": -1.1})], 'label_prefix="REF_"')
    loud([one({"energy": -1.0}, {"forces": FORCES, "dft_forces": 2 * FORCES})], 'label_prefix="dft_"')


def test_a_multiplicity_that_only_an_ion_can_have():
    loud([one({"energy": -1.0, "multiplicity": 2})], r"total charge of 0 e .* atoms.info\[.total_charge.\]")


def test_hirshfeld_is_a_name_of_charges():
    frames = [one({"energy": -1.0}, {"hirshfeld": np.zeros(3), "hirshfeld_ratios": np.ones(3)})]
    assert list(unread_names(frames, KEYS)) == ["hirshfeld"]


# ------------------------------------------------------------------------ dipole origin


def shifted(frames, origin, seed=1):
    """The same ions at other places, with dipoles about another origin."""
    rng, result = np.random.default_rng(seed), []
    for atoms in frames:
        copy = Atoms(
            atoms.numbers, atoms.positions + rng.normal(0, 5, 3), info=dict(atoms.info), cell=[9, 8, 7]
        )
        move = copy.positions[0] - atoms.positions[0]
        charge = atoms.info["total_charge"]
        dipole = atoms.get_dipole_moment() + charge * move
        dipole = dipole - charge * ORIGINS[origin](read_structure(copy))
        copy.calc = SinglePointCalculator(copy, dipole=dipole)
        result.append(copy)
    return result


@pytest.mark.parametrize("origin", list(ORIGINS))
def test_the_origin_of_dipoles_of_ions_is_named(water_systems, dipole_model, origin):
    """By a model that knows: the right centre among all."""
    ions = [*water_systems["hydronium"][:4], *water_systems["hydroxide"][:4]]
    with pytest.warns(LabelWarning, match=rf"their origin is the {origin}"):
        dipole_model.evaluate(shifted(ions, origin))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dipole_model.evaluate(ions)


def test_a_fit_to_such_labels_says_so(water_systems):
    ions = shifted(water_systems["hydronium"][:8], "centre of mass")
    kernel = SOAPKernel(r_cut=3.0, n_max=3, l_max=2, n_representatives=5)
    with pytest.warns(LabelWarning, match="their origin is the centre of mass"):
        model = KQEq(kernel, None).fit(ions)
    assert "centre of mass" in str(model.fit_report_)


def test_errors_of_another_kind_name_no_origin():
    ion = read_structure(water({"total_charge": 1}))
    rng = np.random.default_rng(0)
    assert other_origin([]) is None
    assert other_origin([(ion, rng.normal(size=3), rng.normal(size=3)) for _ in range(5)]) is None
    small = [(ion, np.full(3, 0.01), np.zeros(3))]
    assert other_origin(small) is None


# ------------------------------------------------------------------------ command line


def test_a_lammps_dump_says_that_it_has_no_energies(tmp_path, capsys):
    lines = []
    for step in range(3):
        x = WATER.positions + 0.01 * step
        lines += [
            "ITEM: TIMESTEP",
            str(step),
            "ITEM: NUMBER OF ATOMS",
            "3",
            "ITEM: BOX BOUNDS ff ff ff",
            *["-9 9"] * 3,
        ]
        lines += ["ITEM: ATOMS id element x y z fx fy fz"]
        for i, (symbol, p, f) in enumerate(zip(WATER.symbols, x, FORCES, strict=True)):
            lines.append(" ".join(map(str, (i + 1, symbol, *p, *f))))
    (tmp_path / "d.lammpstrj").write_text("\n".join(lines) + "\n")
    (tmp_path / "s.toml").write_text(
        "electronegativity = false\ncharges = false\nshort_range = { r_cut = 3.0, n_max = 3, l_max = 2, "
        "n_representatives = 1 }\n"
    )
    warnings.simplefilter("default", LabelWarning)
    code = main(
        [
            "fit",
            str(tmp_path / "d.lammpstrj"),
            "-o",
            str(tmp_path / "m.kqeq"),
            "--config",
            str(tmp_path / "s.toml"),
        ]
    )
    out = capsys.readouterr()
    assert code == 0, out.err
    assert "labels used: forces (3 frames)" in out.out
    assert "exactly 0.0 eV" in out.err


def test_extended_xyz_keeps_what_the_survey_needs(tmp_path):
    write(
        tmp_path / "a.xyz", [water({"virial": np.eye(3)}, {"force": FORCES}, energy=-1.0, free_energy=-1.1)]
    )
    found = quiet(read(tmp_path / "a.xyz", ":"))
    assert found.pairs[0][1].energy == -1.1
    assert set(found.ignored) == {"virial", "force"}
