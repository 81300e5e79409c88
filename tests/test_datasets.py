"""The data sets: complete, finite, consistent with their documentation and with their generator."""

import hashlib
import importlib.util
import itertools
import re
import sys

import numpy as np
import pytest
from scipy.interpolate import UnivariateSpline

from kqeq import datasets
from kqeq.constants import COULOMB, DEBYE
from kqeq.errors import InputError

NAMES = datasets.names()
FRAMES = {name: datasets.load(name) for name in NAMES}
MOLECULAR = [name for name in NAMES if not any(atoms.pbc.any() for atoms in FRAMES[name])]
"""Made by generate.py: isolated systems, PBE0."""
WITHOUT_TEST_FRAMES = {"polarizability", "relaxed", "vibrations"}
TRAJECTORIES = [name for name in NAMES if name not in WITHOUT_TEST_FRAMES]
IN_FIELDS = {"water_field", "fields", "nma"}


@pytest.fixture
def frames():
    return FRAMES


def load_script(name):
    """Import one of the scripts that lie beside the data."""
    folder = str(datasets.path())
    spec = importlib.util.spec_from_file_location(name, f"{folder}/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, folder)  # the scripts import each other
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module


def test_names():
    assert {"ag3", "alkanes", "carbon_chain", "dissociation", "nacl", "water", "water_field", "zno"} <= set(
        NAMES
    )
    assert tuple(sorted(NAMES)) == NAMES


def test_unknown_names_are_told_the_known_ones():
    with pytest.raises(InputError, match=r"unknown data set 'ag4'; expected one of ag3, .*zno"):
        datasets.load("ag4")
    with pytest.raises(InputError, match="unknown data set"):
        datasets.split("../ag3")


def test_readme_table_counts_the_frames(frames):
    text = (datasets.path() / "README.md").read_text(encoding="utf-8")
    listed = {}
    for row in re.findall(r"^\| (\w+)\.xyz \|(.*)\|$", text, flags=re.MULTILINE):
        name, cells = row[0], [cell.strip() for cell in row[1].split("|")]
        for seed, count in re.findall(r"(\d+): (\d+)", cells[5]):
            key = (name, cells[0], int(seed))
            listed[key] = listed.get(key, 0) + int(count)
    counted = {}
    for name, atoms_list in frames.items():
        for atoms in atoms_list:
            key = (name, atoms.info["system"], atoms.info["seed"])
            counted[key] = counted.get(key, 0) + 1
    assert listed == counted
    assert f"| {sum(counted.values())} |" in text


def test_checksums():
    lines = (datasets.path() / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    listed = dict(reversed(line.split("  ")) for line in lines)
    assert listed == {
        f"{name}.xyz": hashlib.sha256((datasets.path() / f"{name}.xyz").read_bytes()).hexdigest()
        for name in NAMES
    }


@pytest.mark.parametrize("name", MOLECULAR)
def test_labels_are_complete_and_finite(frames, name):
    assert frames[name]
    for atoms in frames[name]:
        assert np.isfinite(atoms.get_potential_energy())
        assert atoms.get_potential_energy() < -150.0  # total, not atomisation, energies; Li has the least
        assert np.isfinite(atoms.get_forces()).all()
        assert atoms.get_forces().shape == (len(atoms), 3)
        assert atoms.get_dipole_moment().shape == (3,)
        assert np.isfinite(atoms.get_dipole_moment()).all()
        assert atoms.info["external_field"].shape == (3,)
        assert {"total_charge", "system", "seed", "method", "multiplicity"} <= set(atoms.info)
        np.testing.assert_allclose(atoms.get_center_of_mass(), 0.0, atol=1e-6)


def falls_apart_neutral(atoms):
    """Whether a frame is a pair of atoms that are neutral, or nearly."""
    return atoms.info.get("state") == "atoms" or (
        atoms.info.get("state") == "triplet" and atoms.info["distance"] > 3.8
    )


@pytest.mark.parametrize("name", MOLECULAR)
def test_hirshfeld_charges_sum_to_the_total_charge(frames, name):
    for atoms in frames[name]:
        charges = atoms.arrays["hirshfeld"]
        assert charges.sum() == pytest.approx(atoms.info["total_charge"], abs=1e-3)
        if len(set(atoms.symbols)) > 1 and not falls_apart_neutral(atoms):
            assert np.ptp(charges) > 0.05


@pytest.mark.parametrize("name", MOLECULAR)
def test_forces_balance_the_force_of_the_field(frames, name):
    # translation: Σ F = Q·field; a wrong unit or sign of force, charge or field would show for ions in fields
    for atoms in frames[name]:
        expected = atoms.info["total_charge"] * atoms.info["external_field"]
        np.testing.assert_allclose(atoms.get_forces().sum(axis=0), expected, atol=1e-6)
        if len(atoms) > 1 and not falls_apart_neutral(atoms) and "fmax" not in atoms.info:
            assert np.abs(atoms.get_forces()).max() > 1e-3


@pytest.mark.parametrize("name", MOLECULAR)
def test_torques_balance_the_torque_of_the_field(frames, name):
    # rotation: Σ r × F = μ × field, to the accuracy of the integration grid, which is not invariant
    largest = 0.0
    for atoms in frames[name]:
        torque = np.cross(atoms.positions, atoms.get_forces()).sum(axis=0)
        expected = np.cross(atoms.get_dipole_moment(), atoms.info["external_field"])
        largest = max(largest, np.abs(expected).max())
        np.testing.assert_allclose(torque, expected, atol=0.1 if len(atoms) > 15 else 0.03)
    assert name != "water_field" or largest > 0.05


def test_water_dipole_is_in_e_angstrom(frames):
    # experiment 1.855 D; PBE0/def2-SVP about 2.0 D at distorted geometries
    dipoles = [
        np.linalg.norm(atoms.get_dipole_moment()) / DEBYE
        for atoms in frames["water"]
        if atoms.info["system"] == "water1"
    ]
    assert 1.8 < np.mean(dipoles) < 2.2


def test_fields_are_those_documented(frames):
    by_seed = {10: (0.1, 0.0, 0.0), 11: (0.0, -0.05, 0.1)}
    for atoms in frames["water_field"]:
        np.testing.assert_allclose(atoms.info["external_field"], by_seed[atoms.info["seed"]])
    for name in set(MOLECULAR) - IN_FIELDS:
        assert not any(atoms.info["external_field"].any() for atoms in frames[name])


@pytest.mark.parametrize("name", NAMES)
def test_no_frame_occurs_twice(frames, name):
    seen = set()
    for atoms in frames[name]:
        field = np.round(atoms.info.get("external_field", np.zeros(3)), 6) + 0.0
        state = (atoms.info["system"], float(atoms.info.get("total_charge", 0.0)))
        key = (*state, atoms.positions.round(3).tobytes(), field.tobytes())
        assert key not in seen
        seen.add(key)


@pytest.mark.parametrize("name", ["ag3", "zno_vertical", "nma"])
def test_charge_states_share_a_basis(frames, name):
    # energies of two basis sets differ by electronvolts that no hardness explains
    methods = {}
    for atoms in frames[name]:
        methods.setdefault(atoms.get_chemical_formula(), set()).add(atoms.info["method"])
    assert all(len(found) == 1 for found in methods.values()), methods


@pytest.mark.parametrize("name", ["relaxed", "vibrations"])
def test_minima_have_training_frames_of_their_method(frames, name):
    training = {
        (a.info["system"], a.info["method"])
        for other in set(MOLECULAR) & set(TRAJECTORIES)
        for a in datasets.split(other)[0]
    }
    assert {(a.info["system"], a.info["method"]) for a in frames[name]} <= training


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_split_separates_trajectories(name):
    train, test = datasets.split(name)
    assert len(train) + len(test) == len(datasets.load(name))
    train_seeds, test_seeds = ({a.info["seed"] for a in part} for part in (train, test))
    assert not train_seeds & test_seeds
    assert test_seeds == ({11} if name == "water_field" else {1})


def test_several_sets_of_one_method_and_some_charges():
    """Anions of Zn3O3 that can be compared with the neutral cluster are in another set than it."""
    train, test = datasets.split("zno", "zno_vertical", method="PBE0/def2-svp", total_charges=(-1, 0))
    for part in (train, test):
        assert {a.info["method"] for a in part} == {"PBE0/def2-svp"}
        assert {a.info["total_charge"] for a in part} == {-1, 0}
    loaded = datasets.load("zno", "zno_vertical", method="PBE0/def2-svp", total_charges=(-1, 0))
    assert len(loaded) == len(train) + len(test)
    assert loaded[0].info["system"] == "zn3o3_neutral" and loaded[-1].info["system"] == "zn3o3_minus"
    assert len(datasets.load("zno")) > len(datasets.load("zno", method="PBE0/def2-svp"))
    # water_field has a test seed of its own
    train, test = datasets.split("water", "water_field")
    assert {a.info["seed"] for a in test} == {1, 11}
    assert 10 in {a.info["seed"] for a in train}


def test_a_choice_without_frames_says_what_there_is():
    with pytest.raises(InputError, match=r"no frames of method 'PBE0' .* PBE0/def2-svp at -1"):
        datasets.load("zno_vertical", method="PBE0")
    with pytest.raises(InputError, match=r"total charges \(2,\)"):
        datasets.split("ag3", total_charges=(2,))
    with pytest.raises(InputError, match="unknown data set ''"):
        datasets.load()


def test_split_without_test_trajectory_is_refused(monkeypatch):
    monkeypatch.setitem(datasets.TEST_SEEDS, "ag3", frozenset({99}))
    with pytest.raises(InputError, match=r"no frames set aside for testing \(seed 99\)"):
        datasets.split("ag3")


def test_missing_data_are_reported(monkeypatch, tmp_path):
    (tmp_path / "kqeq").mkdir()
    (tmp_path / "datasets").mkdir()  # somebody else's
    monkeypatch.setattr(datasets, "files", lambda _name: tmp_path / "kqeq")
    with pytest.raises(InputError, match="reinstall the package"):
        datasets.names()
    (tmp_path / "kqeq" / "_datasets").mkdir()
    (tmp_path / "kqeq" / "_datasets" / "SHA256SUMS").touch()
    assert datasets.path() == tmp_path / "kqeq" / "_datasets"
    assert datasets.names() == ()


def test_merge_finds_everything_in_order():
    assert load_script("merge").problems() == []


def test_merge_sorts_skips_repetitions_and_unfinished_frames(tmp_path, monkeypatch, capsys):
    merge = load_script("merge")
    for name in ("README.md", "SHA256SUMS", "water.xyz"):
        (tmp_path / name).write_bytes((datasets.path() / name).read_bytes())
    monkeypatch.setattr(merge, "HERE", tmp_path)
    original = (tmp_path / "water.xyz").read_text()
    texts = [frame.text for frame in merge.read_frames(tmp_path / "water.xyz")]
    # keep every second frame here, and offer the others, repetitions and a torn frame elsewhere
    (tmp_path / "water.xyz").write_text("".join(texts[::2]))
    source = tmp_path / "new" / "water.xyz"
    source.parent.mkdir()
    source.write_text("".join(texts[::-1]) + texts[0][: len(texts[0]) - 20])
    merge.merge([source])
    after = merge.read_frames(tmp_path / "water.xyz")
    assert sorted(frame.text for frame in after) == sorted(texts)
    assert [f.system for f in after] == [f.system for f in merge.canonical(after)]
    assert merge.problems() == []
    assert "incomplete" in capsys.readouterr().err
    # data sets begin only where that is asked for
    other = source.with_name("other.xyz")
    other.write_text("".join(texts[:2]))
    merge.merge([other])
    assert "--new" in capsys.readouterr().err
    assert not (tmp_path / "other.xyz").exists()
    merge.merge([other], new=True)
    assert (tmp_path / "other.xyz").read_text() == other.read_text()
    assert "| other.xyz | water1 |" in (tmp_path / "README.md").read_text()
    # a second merge changes nothing
    content = (tmp_path / "water.xyz").read_text()
    merge.merge([source])
    assert (tmp_path / "water.xyz").read_text() == content
    assert len(content) == len(original)


def test_merge_replaces_labels_of_another_method(tmp_path, monkeypatch):
    merge = load_script("merge")
    for name in ("README.md", "SHA256SUMS", "water.xyz"):
        (tmp_path / name).write_bytes((datasets.path() / name).read_bytes())
    monkeypatch.setattr(merge, "HERE", tmp_path)
    texts = [frame.text for frame in merge.read_frames(tmp_path / "water.xyz")]
    method = merge.read_frames(tmp_path / "water.xyz")[3].info["method"]
    (tmp_path / "other").mkdir()
    source = tmp_path / "other" / "water.xyz"
    source.write_text(texts[3].replace(method, "PBE0/def2-tzvp"))
    merge.merge([source], relabel=True)
    after = [frame.text for frame in merge.read_frames(tmp_path / "water.xyz")]
    assert after == [*texts[:3], source.read_text(), *texts[4:]]
    # without being asked to, both labels are kept
    (tmp_path / "water.xyz").write_text("".join(texts))
    merge.merge([source])
    assert len(merge.read_frames(tmp_path / "water.xyz")) == len(texts) + 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_labels_are_what_the_generator_computes(frames):
    pytest.importorskip("pyscf")
    generate = load_script("generate")
    stored = next(a for a in frames["water"] if a.info["system"] == "water1" and a.info["seed"] == 1)
    in_field = frames["water_field"][0]
    for atoms in (stored, in_field):
        field = atoms.info["external_field"]
        again = generate.label(atoms, "water1", field, threads=1, basis=atoms.info["method"].split("/")[1])
        # positions in the file have eight decimals and the SCF stops at 1e-9 Hartree
        assert again.info["energy"] == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
        np.testing.assert_allclose(again.arrays["forces"], atoms.get_forces(), atol=1e-4)
        np.testing.assert_allclose(again.info["dipole"], atoms.get_dipole_moment(), atol=1e-5)
        np.testing.assert_allclose(again.arrays["hirshfeld"], atoms.arrays["hirshfeld"], atol=1e-5)
        for key in ("method", "total_charge", "multiplicity"):
            assert again.info[key] == atoms.info[key]


class RadicalWithThreeStates:
    """Stands for a mean field: two of three orbitals hold an electron of minority spin, energies depend on which."""

    ENERGIES = (0.1, -0.3, 0.0)
    """By the orbital with the hole."""

    def __init__(self, options):
        self.options = options
        self.mo_coeff = None
        self.kernel()

    def kernel(self, guess=None):
        self.mo_occ = np.array([[1.0, 1, 1, 0], [1, 1, 0, 0]]) if guess is None else np.array(guess)
        self.e_tot = self.ENERGIES[int(self.mo_occ[1, :3].argmin())]
        self.converged = True

    def copy(self):
        return RadicalWithThreeStates(self.options)

    def make_rdm1(self, coefficients=None, occupations=None):
        return self.mo_occ if occupations is None else occupations


def test_radicals_are_labelled_in_the_lowest_of_several_states(monkeypatch):
    generate = load_script("generate")
    made = []

    def mean_field(_atoms, _system, _field=None, **options):
        made.append(options)
        return RadicalWithThreeStates(options)

    monkeypatch.setattr(generate, "mean_field", mean_field)
    pair = datasets.load("water")[0]
    states = generate.states_of_radical(pair, "zn3o3_plus", basis="def2-svp")
    assert [mf.e_tot for mf in states] == [0.0, -0.3, 0.1]
    assert all(mf.options["grid"] < generate.GRID_LEVEL for mf in states)
    assert all(mf.options["basis"] == "def2-svp" for mf in states)
    assert all(mf.mo_occ.sum() == 5 for mf in states)
    made.clear()
    assert generate.solve(pair, "zn3o3_plus", basis="def2-svp").e_tot == -0.3
    assert [("grid" in options) for options in made] == [True, False]  # one search, one answer
    # who brings a density of his own gets what it leads to, and closed shells and anions are not searched
    made.clear()
    guess = np.array([[1.0, 1, 1, 0], [0, 1, 1, 0]])
    assert generate.solve(pair, "zn3o3_plus", guess=guess).e_tot == 0.1
    assert generate.solve(pair, "zn3o3_neutral").e_tot == 0.0
    assert generate.solve(pair, "zn3o3_minus").e_tot == 0.0
    assert len(made) == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_finite_field_polarizability_of_water():
    pytest.importorskip("pyscf")
    generate = load_script("generate")
    script = load_script("generate_polarizability")
    atoms = generate.SYSTEMS["water1"].build(np.random.default_rng(0))
    labelled = script.label_polarizability(atoms, "water1", step=0.02, threads=1)
    alpha = labelled.info["polarizability"].reshape(3, 3) * COULOMB
    # experiment 1.45 Å3 (isotropic); def2-SVP has no diffuse functions and stays well below
    assert 0.6 < np.trace(alpha) / 3 < 1.2
    np.testing.assert_allclose(alpha, alpha.T)
    assert labelled.info["polarizability_asymmetry"] < 1e-3 * np.abs(labelled.info["polarizability"]).max()
    # the dipole of a field is the same thing, with opposite sign: μ(field) − μ(0) = α field
    field = np.array([0.0, 0.0, 0.02])
    shifted = generate.label(atoms, "water1", field, threads=1).info["dipole"] - labelled.info["dipole"]
    np.testing.assert_allclose(shifted, alpha / COULOMB @ field, atol=3e-6)


def relaxed_lengths(atoms):
    """Interatomic distances of a frame, ascending, Å."""
    distances = atoms.get_all_distances()
    return np.sort(distances[np.triu_indices(len(atoms), 1)])


def test_relaxed_geometries_are_minima(frames):
    systems = {atoms.info["system"]: atoms for atoms in frames["relaxed"]}
    assert {"ag3_plus", "ag3_minus", "zn3o3_neutral", "zn3o3_plus", "zn3o3_minus"} <= set(systems)
    for atoms in systems.values():
        assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 1.2 * atoms.info["fmax"]
    # the cation is a triangle, the anion a chain
    plus, minus = (relaxed_lengths(systems[name]) for name in ("ag3_plus", "ag3_minus"))
    assert np.ptp(plus) < 0.05
    assert minus[2] > 1.8 * minus[0]
    # without a charge Zn3O3 is a regular ring; the cation's is distorted (Jahn and Teller), two bonds longer
    neutral, plus = (relaxed_lengths(systems[f"zn3o3_{name}"])[:6] for name in ("neutral", "plus"))
    assert np.ptp(neutral) < 0.01
    assert 0.04 < np.ptp(plus) < 0.1
    minus = relaxed_lengths(systems["zn3o3_minus"])[:6]  # so is the anion's: the regular ring is no minimum
    assert 0.04 < np.ptp(minus) < 0.1


def test_vertical_charge_states_lie_at_the_neutral_geometries(frames):
    both = [*frames["zno"], *frames["zno_vertical"]]
    neutral = [a for a in both if a.info["system"] == "zn3o3_neutral"]
    for atoms in frames["zno_vertical"]:
        if atoms.info["system"] == "zn3o3_neutral":  # of trajectories that zno does not have
            assert atoms.info["seed"] not in (0, 1)
            continue
        assert atoms.info["geometry"] == "zn3o3_neutral"
        (twin,) = (
            a
            for a in neutral
            if a.info["seed"] == atoms.info["seed"] and np.abs(a.positions - atoms.positions).max() < 1e-4
        )
        assert atoms.info["method"] == twin.info["method"]
        difference = atoms.get_potential_energy() - twin.get_potential_energy()
        if atoms.info["total_charge"] == 1:
            assert 7.5 < difference < 9.5  # ionization energy
        else:
            assert -1.5 < difference < -0.3  # minus the electron affinity; nature's is larger


def test_methylacetamide_belongs_to_its_vibrations(frames):
    (minimum,) = (a for a in frames["vibrations"] if a.info["system"] == "nma")
    along = []
    for atoms in frames["nma"]:
        assert atoms.info["method"] == minimum.info["method"]
        assert (atoms.numbers == minimum.numbers).all()
        field = atoms.info["external_field"]
        if field.any():
            assert np.linalg.norm(field) == pytest.approx(0.1)
            _, axes = atoms.get_moments_of_inertia(vectors=True)
            assert abs(axes[0] @ field) == pytest.approx(0.1)
            along.append(np.sign(axes[0][np.abs(axes[0]).argmax()] * (axes[0] @ field)))
        else:
            above = atoms.get_potential_energy() - minimum.get_potential_energy()
            assert 0.1 < above < 1.5  # thermal: 30 modes hold 0.39 eV on average
    assert len(along) == len(frames["nma"]) // 2


def test_polarizabilities_are_symmetric_positive_and_grow(frames):
    per_unit = {}
    for atoms in frames["polarizability"]:
        alpha = np.reshape(atoms.info["polarizability"], (3, 3)) * COULOMB
        np.testing.assert_allclose(alpha, alpha.T)
        assert np.linalg.eigvalsh(alpha).min() > 0.3
        match = re.fullmatch(r"(water|alkane)(\d+)", atoms.info["system"])
        if match:
            per_unit.setdefault(match[1], {})[int(match[2])] = np.trace(alpha) / 3
    for values in per_unit.values():
        sizes = np.array(sorted(values))
        steps = np.diff([values[n] for n in sizes]) / np.diff(sizes)
        assert steps.min() > 0.6 * steps.max() > 0.0  # a share a molecule, or a CH2


def test_dissociation_ends_in_the_fragments(frames):
    curves = {}
    fragments = {}
    for atoms in frames["dissociation"]:
        if "distance" in atoms.info:
            curves.setdefault(atoms.info["system"], []).append(atoms)
        else:
            fragments[atoms.info["system"]] = atoms.get_potential_energy()
    limits = {
        "nacl_pair": fragments["na_atom"] + fragments["cl_atom"],
        "lif_pair": fragments["li_atom"] + fragments["f_atom"],
    }
    for system, limit in limits.items():
        curve = sorted(curves[system], key=lambda a: a.info["distance"])
        energies = np.array([a.get_potential_energy() for a in curve])
        distances = np.array([a.info["distance"] for a in curve])
        assert energies.max() <= limit + 1e-6
        assert energies[-1] == pytest.approx(limit, abs=1e-6)
        bottom = energies.argmin()
        assert (np.diff(energies[: bottom + 1]) < 0.0).all()
        assert (np.diff(energies[bottom:]) > -1e-6).all()
        states = [a.info["state"] for a in curve]
        assert states == sorted(states, key=["ions", "ions apart", "atoms"].index)
        # forces are the slope of the curve, whatever it is made of
        for state in ("ions", "ions apart"):
            part = [a for a in curve if a.info["state"] == state]
            at = np.array([a.info["distance"] for a in part])
            slopes = [
                -a.get_forces()[1] @ (a.positions[1] - a.positions[0]) / d
                for a, d in zip(part, at, strict=True)
            ]
            spline = UnivariateSpline(
                at, [a.get_potential_energy() for a in part], s=0, k=min(5, len(at) - 1)
            )
            np.testing.assert_allclose(spline(at[1:-1], 1), slopes[1:-1], rtol=0.03, atol=0.06)
        # ions: a charge of one, or somewhat less where the two overlap; atoms: none
        for atoms, d in zip(curve, distances, strict=True):
            low, high = {"ions": (0.75, 0.9), "ions apart": (0.93, 1.0), "atoms": (0.0, 0.0)}[
                atoms.info["state"]
            ]
            assert low <= np.linalg.norm(atoms.get_dipole_moment()) / d <= high


@pytest.mark.parametrize(
    ("system", "halves", "charge_nearby"),
    [("zno_molecule", ("zn_atom", "o_atom"), 0.2), ("zn2o2", ("zno_molecule",) * 2, 0.0)],
)
def test_zinc_oxide_goes_over_into_its_fragments(frames, system, halves, charge_nearby):
    own = [a for a in frames["dissociation"] if a.info["system"] == system and "distance" in a.info]
    curve = sorted(own, key=lambda a: a.info["distance"])
    assert len(curve) >= 16
    parts = {a.info["system"]: a for a in frames["dissociation"] if "distance" not in a.info}
    distances = np.array([a.info["distance"] for a in curve])
    energies = np.array([a.get_potential_energy() for a in curve])
    energies -= sum(parts[name].get_potential_energy() for name in halves)
    # bound by electronvolts, and in the end by nothing: of two rhombus halves dipoles go on attracting each other
    assert energies.min() < -1.5
    assert energies[-1] == pytest.approx(0.0, abs=5e-3)
    bottom = energies.argmin()
    assert (np.diff(energies[: bottom + 1]) < 0.0).all()
    assert (np.diff(energies[bottom:]) > -2e-4).all()
    # forces are the slope; where the state changes (to broken symmetry), nothing jumps
    moving = [1] if len(curve[0]) == 2 else [2, 3]
    slopes = []
    for a, b in itertools.pairwise(curve):
        step = (b.positions - b.positions[0])[moving[0]] - (a.positions - a.positions[0])[moving[0]]
        forces = [frame.get_forces()[moving].sum(axis=0) @ step for frame in (a, b)]
        slopes.append(-np.mean(forces))
    np.testing.assert_allclose(np.diff(energies), slopes, atol=0.1)
    assert np.abs(slopes).max() > 0.3
    # dipoles, and so charges, fade with the bond; the rhombus has none by symmetry
    moments = np.array([np.linalg.norm(a.get_dipole_moment()) for a in curve]) / distances
    assert (moments[distances < 2.6] >= charge_nearby).all()
    assert moments[-1] < 1e-3
    # two triplets side by side, of opposite spin, have <S^2> = 2, a closed shell none
    spins = np.array([a.info["spin_square"] for a in curve])
    states = [a.info["state"] for a in curve]
    assert spins[-1] == pytest.approx(2.0, abs=0.05)
    assert all(
        parts[name].info["spin_square"] == pytest.approx(2.0, abs=0.02) for name in set(halves) - {"zn_atom"}
    )
    if system == "zn2o2":
        assert states == sorted(states, key=["closed shell", "broken symmetry"].index)
        assert set(states) == {"closed shell", "broken symmetry"}
        assert spins[0] == pytest.approx(0.0, abs=1e-3)
    else:
        assert set(states) == {"triplet"}


def test_vibrations_follow_from_hessian_and_born_charges(frames):
    script = load_script("generate_vibrations")
    for atoms in frames["vibrations"]:
        n = len(atoms)
        hessian = np.asarray(atoms.info["hessian"]).reshape(3 * n, 3 * n)
        born = atoms.arrays["born_charges"].reshape(n, 3, 3)
        frequencies, intensities = script.vibrations(atoms, hessian, born)
        np.testing.assert_allclose(frequencies, np.ravel(atoms.info["frequencies"]), rtol=1e-5, atol=0.1)
        np.testing.assert_allclose(intensities, np.ravel(atoms.info["intensities"]), rtol=1e-3, atol=0.01)
        assert len(frequencies) == 3 * n - 6
        assert frequencies.min() > 10.0  # a minimum
        # sum rules: a translation moves the total charge and costs nothing
        np.testing.assert_allclose(born.sum(axis=0), atoms.info["total_charge"] * np.eye(3), atol=2e-3)
        assert np.abs(hessian.reshape(3 * n, n, 3).sum(axis=1)).max() < 0.05 * np.abs(hessian).max()
    water = next(a for a in frames["vibrations"] if a.info["system"] == "water1")
    # harmonic wavenumbers from experiment: 1649, 3832, 3943; PBE0 lies a few per cent higher
    np.testing.assert_allclose(np.ravel(water.info["frequencies"]), [1649, 3832, 3943], rtol=0.05)
    assert 50 < water.info["intensities"][0] < 110  # km/mol, bending


def test_energies_in_fields_fit_the_dipoles(frames):
    # along one direction E(f) = E(0) - mu f - alpha f^2 / 2, whose slope at the field is minus the dipole there
    train, test = datasets.split("fields")
    strengths = [
        {round(float(np.linalg.norm(a.info["external_field"])), 6) for a in part} for part in (train, test)
    ]
    assert strengths == [{0.0, 0.05, 0.1}, {0.0, 0.2, 0.3}]
    systems = {a.info["system"] for a in train + test}
    assert {f"water{n}" for n in range(1, 6)} | {f"alkane{n}" for n in range(2, 9)} <= systems
    assert {"zn3o3_neutral", "zn4o4_neutral"} <= systems
    groups = {}
    for atoms in frames["fields"]:
        key = (atoms.info["system"], atoms.info["seed"], atoms.positions.round(3).tobytes())
        groups.setdefault(key, []).append(atoms)
    compared = 0
    for group in groups.values():
        (zero,) = (a for a in group if not a.info["external_field"].any())
        for atoms in group:
            if atoms is zero:
                continue
            field = atoms.info["external_field"]
            mean = 0.5 * (atoms.get_dipole_moment() + zero.get_dipole_moment())
            change = atoms.get_potential_energy() - zero.get_potential_energy()
            # trapezoidal rule; its error is of third order in the field, larger in zinc oxide and where the field moves
            # a hole. Another electronic state than without the field would show here, by tenths of an electronvolt
            closed_shell = 0.015 if "Zn" in atoms.symbols else 0.01
            cubic = closed_shell if atoms.info["multiplicity"] == 1 else 0.1
            assert change == pytest.approx(-mean @ field, abs=cubic * np.linalg.norm(field) ** 3 + 1e-5)
            compared += 1
    assert compared > 180
