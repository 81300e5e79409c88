"""Baselines: values against their formulas, derivatives, invariances, and what calculators are told."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.data import covalent_radii
from scipy.spatial.transform import Rotation

from kqeq.baselines import ZBL, CalculatorBaseline, resolve_baseline
from kqeq.constants import COULOMB
from kqeq.errors import InputError, UnsupportedError
from kqeq.frames.structures import Structure, read_structure


def crowded(rng, *, periodic):
    """A compressed arrangement with atoms in the inner, the switching and the outer region of ZBL."""
    positions = np.array([[0, 0, 0], [0.55, 0.1, 0], [0.1, 0.95, 0.2], [1.4, 1.2, 0.3], [0.4, 0.3, 1.3]])
    positions = positions + 0.05 * rng.normal(size=(5, 3))
    numbers = np.array([8, 1, 6, 30, 6])
    if not periodic:
        return Structure(numbers, positions)
    cell = np.array([[2.6, 0.0, 0.0], [0.7, 2.5, 0.1], [-0.4, 0.5, 2.7]])
    positions[3] += cell[0] - 2 * cell[2]  # an atom outside the cell
    return Structure(numbers, positions, cell, np.array([True, True, True]))


def strained(structure, strain):
    deformation = np.eye(3) + strain
    return Structure(
        structure.numbers, structure.positions @ deformation.T, structure.cell @ deformation.T, structure.pbc
    )


def check_derivatives(baseline, structure, tolerance):
    """Gradient and strain against central differences of the energy."""
    _, gradient, strain = baseline.evaluate(structure)[:3]
    assert np.abs(gradient).max() > 0.1
    assert np.abs(strain).max() > 0.1
    step = 1e-5
    for atom in range(len(structure)):
        for axis in range(3):
            moved = []
            for sign in (1, -1):
                positions = structure.positions.copy()
                positions[atom, axis] += sign * step
                moved.append(
                    baseline.evaluate(Structure(structure.numbers, positions, structure.cell, structure.pbc))[
                        0
                    ]
                )
            assert gradient[atom, axis] == pytest.approx((moved[0] - moved[1]) / (2 * step), abs=tolerance)
    for a in range(3):
        for b in range(3):
            unit = np.zeros((3, 3))
            unit[b, a] = step  # (1 + ε) r with ε_ba moves component b by r_a
            up, down = (baseline.evaluate(strained(structure, sign * unit))[0] for sign in (1, -1))
            assert strain[a, b] == pytest.approx((up - down) / (2 * step), abs=tolerance)


@pytest.mark.parametrize("periodic", [False, True])
def test_zbl_derivatives(rng, periodic):
    structure = crowded(rng, periodic=periodic)
    scale = abs(ZBL().evaluate(structure)[1]).max()
    check_derivatives(ZBL(), structure, tolerance=1e-7 * scale)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def pair(first, second, distance):
    return Structure(np.array([first, second]), np.array([[0.3, 0.2, 0.1], [0.3, 0.2, 0.1 + distance]]))


@pytest.mark.parametrize(("first", "second"), [(1, 1), (6, 8), (47, 30), (79, 92)])
def test_zbl_follows_its_formula_inside(first, second):
    # written out term by term, from the coefficients of Ziegler, Biersack & Littmark 1985
    contact = covalent_radii[first] + covalent_radii[second]
    for r in (0.06, 0.2 * contact, 0.299 * contact):
        x = r / (0.46850 / (first**0.23 + second**0.23))
        phi = 0.18175 * np.exp(-3.19980 * x) + 0.50986 * np.exp(-0.94229 * x)
        phi += 0.28022 * np.exp(-0.40290 * x) + 0.02817 * np.exp(-0.20162 * x)
        expected = 14.399645 * first * second / r * phi
        energy, gradient, _ = ZBL().evaluate(pair(first, second, r))[:3]
        assert energy == pytest.approx(expected, rel=1e-7)
        assert gradient[1, 2] < 0  # repulsive: energy falls as the second atom moves away


def test_zbl_is_bare_coulomb_at_contact_of_nuclei():
    r = 1e-5
    energy, _, _ = ZBL().evaluate(pair(6, 8, r))[:3]
    assert energy * r / (COULOMB * 6 * 8) == pytest.approx(1.0, abs=1e-3)


def test_zbl_ends_smoothly_below_the_length_of_bonds():
    contact = 0.8 * (covalent_radii[6] + covalent_radii[8])
    energy, gradient, strain = ZBL().evaluate(pair(6, 8, contact + 1e-9))[:3]
    assert energy == 0.0
    assert not gradient.any()
    assert not strain.any()
    # third-order contact with zero: E ~ h³, F ~ h²
    energies = [ZBL().evaluate(pair(6, 8, contact - h))[0] for h in (1e-2, 1e-3)]
    assert energies[0] / energies[1] == pytest.approx(1000.0, rel=0.1)
    for edge in (0.375 * contact, contact):
        slopes = [ZBL().evaluate(pair(6, 8, edge + h))[1][1, 2] for h in (-1e-7, 1e-7)]
        assert slopes[0] == pytest.approx(slopes[1], rel=1e-5, abs=1e-3)


def test_zbl_leaves_bonds_alone():
    for name in ("H2O", "CH4", "CH3CH2OH"):
        atoms = molecule(name)
        # bonds shorter by a tenth: far more than at room temperature
        atoms.positions *= 0.9
        assert ZBL().evaluate(read_structure(atoms))[0] == 0.0, name
        atoms.positions *= 0.5
        assert ZBL().evaluate(read_structure(atoms))[0] > 2.0 * len(atoms), name


def test_zbl_is_invariant(rng):
    structure = crowded(rng, periodic=True)
    energy, gradient, strain = ZBL().evaluate(structure)[:3]
    rotation = Rotation.random(random_state=3).as_matrix()
    rotated = Structure(
        structure.numbers,
        structure.positions @ rotation.T + 3.3,
        structure.cell @ rotation.T,
        structure.pbc,
    )
    energy_r, gradient_r, strain_r = ZBL().evaluate(rotated)[:3]
    assert energy_r == pytest.approx(energy, rel=1e-12)
    np.testing.assert_allclose(gradient_r, gradient @ rotation.T, atol=1e-9)
    np.testing.assert_allclose(strain_r, rotation @ strain @ rotation.T, atol=1e-9)
    np.testing.assert_allclose(gradient.sum(axis=0), 0.0, atol=1e-9)
    np.testing.assert_allclose(strain, strain.T, atol=1e-9)
    order = np.array([3, 0, 4, 2, 1])
    permuted = Structure(structure.numbers[order], structure.positions[order], structure.cell, structure.pbc)
    np.testing.assert_allclose(ZBL().evaluate(permuted)[1], gradient[order], atol=1e-9)


def test_zbl_of_a_supercell_is_extensive(rng):
    structure = crowded(rng, periodic=True)
    atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=True)
    large = atoms.repeat((2, 1, 2))
    energy = ZBL().evaluate(structure)[0]
    assert energy > 1.0
    assert ZBL().evaluate(
        Structure(large.numbers.astype(np.int64), large.positions, large.cell.array, large.pbc)
    )[0] == pytest.approx(4 * energy, rel=1e-12)


def test_zbl_single_atom_and_unknown_elements():
    energy, gradient, strain = ZBL().evaluate(Structure(np.array([6]), np.zeros((1, 3))))[:3]
    assert energy == 0.0
    assert gradient.shape == (1, 3)
    assert not strain.any()
    with pytest.raises(InputError, match=r"not for \[100\]"):
        ZBL().evaluate(pair(6, 100, 1.0))


@pytest.mark.parametrize("options", [(1.0, 0.5), (-0.1, 1.0), (0.5, 0.5), (0.5, np.nan), (0.5, np.inf)])
def test_zbl_refuses_wrong_switches(options):
    with pytest.raises(InputError, match="expected 0 <= inner < outer"):
        ZBL(*options)


def test_calculator_baseline_derivatives_open_and_periodic(rng):
    cluster = Atoms("Cu4", positions=[[0, 0, 0], [2.4, 0, 0.1], [0.2, 2.5, 0], [0.1, 0.2, 2.3]])
    check_derivatives(CalculatorBaseline(EMT()), read_structure(cluster), 1e-5)
    crystal = bulk("Cu", cubic=True)
    crystal.rattle(0.1, seed=2)
    crystal.set_cell(crystal.cell.array + 0.1 * rng.normal(size=(3, 3)), scale_atoms=True)
    check_derivatives(CalculatorBaseline(EMT()), read_structure(crystal), 1e-5)


def test_calculator_baseline_gives_what_ase_gives():
    atoms = Atoms("Ar3", positions=[[0, 0, 0], [1.1, 0, 0], [0.3, 1.2, 0.4]])
    energy, gradient, _ = CalculatorBaseline(LennardJones()).evaluate(read_structure(atoms))[:3]
    atoms.calc = LennardJones()
    assert energy == pytest.approx(atoms.get_potential_energy())
    np.testing.assert_allclose(gradient, -atoms.get_forces())


class Recorder(Calculator):
    """Energy = total charge + field; remembers what it was told."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        info = atoms.info
        assert info["charge"] == info["total_charge"]
        self.results = {
            "energy": info["total_charge"] + info["external_field"][2],
            "forces": np.zeros((len(atoms), 3)),
        }


def test_calculator_is_told_charge_and_field_and_is_not_answered_from_its_cache():
    baseline = CalculatorBaseline(Recorder())
    structure = read_structure(molecule("H2O"))
    assert baseline.evaluate(structure.under(1.0, np.zeros(3)))[0] == 1.0
    assert baseline.evaluate(structure.under(-1.0, np.zeros(3)))[0] == -1.0
    assert baseline.evaluate(structure.under(-1.0, np.array([0.0, 0.0, 0.5])))[0] == -0.5


class EnergyOnly(Calculator):
    implemented_properties = ("energy",)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 1.0}


class Smeared(Calculator):
    implemented_properties = ("energy", "free_energy", "forces")
    energies = (-1.0, -1.5)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        energy, free_energy = self.energies
        self.results = {"energy": energy, "free_energy": free_energy, "forces": np.zeros((len(atoms), 3))}


class Broken(Smeared):
    energies = (np.nan, np.nan)


def test_missing_properties_name_the_calculator():
    structure = read_structure(molecule("H2O"))
    with pytest.raises(UnsupportedError, match=r"EnergyOnly has no forces for the structure \(H2O\)"):
        CalculatorBaseline(EnergyOnly()).evaluate(structure)
    with pytest.raises(UnsupportedError, match=r"Recorder has no stress.*periodic"):
        CalculatorBaseline(Recorder()).evaluate(read_structure(bulk("Cu")))
    with pytest.raises(InputError, match="Broken returned an energy or forces that are not finite"):
        CalculatorBaseline(Broken()).evaluate(structure)


def test_free_energy_is_preferred_because_forces_belong_to_it():
    assert CalculatorBaseline(Smeared()).evaluate(read_structure(molecule("H2O")))[0] == -1.5


def test_slab_without_volume_has_no_strain_rather_than_a_wrong_one():
    slab = fcc111("Cu", (1, 1, 2))
    slab.rattle(0.05, seed=1)
    energy, gradient, strain = CalculatorBaseline(EMT()).evaluate(read_structure(slab))[:3]
    assert np.isfinite(energy)
    assert np.isfinite(gradient).all()
    assert np.isnan(strain).all()


def test_resolve():
    assert resolve_baseline(None) is None
    assert resolve_baseline("zbl") == ZBL()
    assert resolve_baseline("ZBL") == ZBL()
    custom = ZBL(0.1, 0.7)
    assert resolve_baseline(custom) is custom
    assert resolve_baseline(custom.name) == custom
    assert resolve_baseline(ZBL().name) == ZBL()
    calculator = EMT()
    resolved = resolve_baseline(calculator)
    assert resolved.calculator is calculator
    assert resolved.name == "ase:EMT"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("zlb", "unknown baseline 'zlb'"),
        ("zbl:1", "unknown baseline"),
        ("zbl:a:b", "unknown baseline"),
        ("zbl:2:1", "expected 0 <= inner < outer"),
        ("ase:EMT", "ASE calculator EMT, which a name or a model file cannot bring back"),
        (EMT, r"baseline is the class EMT; pass an instance"),
        (ZBL, r"pass an instance"),
        (3.0, "expected None"),
        ({}, "expected None"),
        (Atoms("H"), "pass its calculator"),
    ],
)
def test_resolve_refuses(spec, message):
    with pytest.raises(InputError, match=message):
        resolve_baseline(spec)
