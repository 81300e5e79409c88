"""Electrodes at given potentials: grand energy and its forces, sign, fields against potentials, refusals."""

import numpy as np
import pytest
from ase import units
from ase.build import fcc100, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.verlet import VelocityVerlet
from numpy.testing import assert_allclose

import kqeq
from kqeq.errors import InputError, NotPositiveDefiniteError, UnsupportedError

KERNEL = kqeq.SOAPKernel(r_cut=3.5, n_max=3, l_max=2, n_representatives=4)
HARDNESS = {"Al": 3.0, "O": 12.0, "H": 10.0}


def cell(seed=0, water=True):
    """Two monolayers of aluminium, one above the other, perhaps with a water molecule between them."""
    rng = np.random.default_rng(seed)
    low, high = (fcc100("Al", (2, 2, 1), a=4.05) for _ in range(2))
    high.positions[:, 2] += 8.0
    atoms = low + high
    atoms.info.clear()
    if water:
        middle = molecule("H2O")
        middle.rotate(40, (1, 0.3, 0.2))
        middle.translate([2.5, 2.3, 4.0])
        atoms += middle
        atoms.positions += 0.1 * rng.normal(size=atoms.positions.shape)
    atoms.set_cell([*low.cell[:2], [0, 0, 20.0]])
    atoms.positions[:, 2] += 5.0
    atoms.pbc = (True, True, False)
    return atoms


ELECTRODES = {"left": [0, 1, 2, 3], "right": [4, 5, 6, 7]}


def labelled(atoms):
    atoms.calc = EMT()
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms


def fitted(charges, **settings):
    frames = [labelled(cell(seed)) for seed in range(4)]
    model = kqeq.KQEq(
        electronegativity=KERNEL,
        short_range=KERNEL,
        charges=charges,
        noise={"energy": 0.05, "forces": 1.0},
        max_iterations=30,
        **settings,
    )
    return model.fit(frames)


@pytest.fixture(scope="module")
def qeq():
    return fitted(kqeq.QEq(hardness=HARDNESS))


@pytest.fixture(scope="module")
def dipoles():
    return fitted(kqeq.AtomicDipoles(kqeq.ACKS2(hardness=HARDNESS)))


def of_charges(model, name):
    calculator = kqeq.KQEqCalculator(model, potentials={"left": 0.0, "right": 1.5}, electrodes=ELECTRODES)
    atoms = cell(7)
    atoms.calc = calculator
    return atoms


def check_grand_forces(atoms):
    """Forces equal differences of the grand energy to 1e-6 of the largest."""
    forces, h = atoms.get_forces(), 2e-3
    assert np.abs(forces).max() > 1e-2
    for index in ((0, 2), (5, 0), (8, 1), (9, 2)):
        if index[0] >= len(atoms):
            continue
        energies = []
        for step in (1, -1, 2, -2):
            moved = atoms.copy()
            moved.calc = atoms.calc
            moved.positions[index] += step * h
            energies.append(moved.get_potential_energy())
        numeric = -(8 * (energies[0] - energies[1]) - (energies[2] - energies[3])) / (12 * h)
        assert_allclose(forces[index], numeric, atol=1e-6 * np.abs(forces).max())


@pytest.mark.parametrize("name", ["qeq", "dipoles"])
def test_forces_are_those_of_the_grand_energy(name, request):
    atoms = of_charges(request.getfixturevalue(name), name)
    check_grand_forces(atoms)
    atoms.get_potential_energy()
    charges = atoms.calc.electrode_charges
    assert abs(charges["right"]) > 1e-3
    assert_allclose(charges["left"] + charges["right"] + atoms.get_charges()[8:].sum(), 0.0, atol=1e-8)
    grand = atoms.calc.prediction.energy - 1.5 * atoms.calc.results["electrode_charges"]["right"]
    if name == "qeq":  # in ACKS2 charge leaves the atoms that it is given to
        assert_allclose(atoms.get_charges()[8:].sum(), 0.0, atol=1e-8)
        assert_allclose(atoms.get_potential_energy(), grand, rtol=1e-10)


def test_higher_potential_more_positive_and_only_differences_matter(qeq):
    atoms = cell(3)
    found = {}
    for left, right in ((0.0, 0.0), (0.0, 1.0), (5.0, 6.0), (0.0, 2.0)):
        atoms.calc = kqeq.KQEqCalculator(
            qeq, potentials={"left": left, "right": right}, electrodes=ELECTRODES
        )
        found[left, right] = (
            atoms.get_potential_energy(),
            atoms.calc.electrode_charges["right"],
            atoms.get_forces(),
        )
    assert found[0, 1][1] > found[0, 0][1] + 0.01
    assert_allclose(found[0, 1][1], found[5, 6][1], atol=1e-9)
    assert_allclose(found[0, 1][0], found[5, 6][0], atol=1e-7)
    assert_allclose(found[0, 1][2], found[5, 6][2], atol=1e-8)
    # charge is linear in the potential: one capacitance
    charges = [found[0, u][1] for u in (0, 1, 2)]
    assert_allclose(charges[2] - charges[1], charges[1] - charges[0], rtol=1e-7)
    # dΩ/dU = −Q
    assert_allclose((found[0, 2][0] - found[0, 0][0]) / 2, -found[0, 1][1], rtol=1e-6)


def test_potentials_are_those_asked_for(qeq):
    atoms = cell(3)
    atoms.calc = kqeq.KQEqCalculator(qeq, potentials={"left": -1.0, "right": 1.0}, electrodes=ELECTRODES)
    energy, step = atoms.get_potential_energy(), 0.05
    charges = atoms.calc.electrode_charges
    held = atoms.copy()
    held.arrays["fragments"] = np.array([0] * 4 + [1] * 4 + [2] * 3)
    energies = []
    fragments = fitted_fragments(qeq)
    for sign in (1, -1):
        held.info["fragment_charges"] = [charges["left"] - sign * step, charges["right"] + sign * step, 0.0]
        held.calc = kqeq.KQEqCalculator(fragments)
        energies.append(held.get_potential_energy())
    assert_allclose((energies[0] - energies[1]) / (2 * step), 2.0, rtol=1e-6)
    assert energy < min(energies) + 1.0


def fitted_fragments(model):
    """The same parameters with fragments that keep their charges."""
    import copy

    from kqeq.potential.constant_potential import with_electrodes

    other = copy.copy(model)
    other.potential_ = with_electrodes(model.potential_)
    return other


def test_a_field_across_flat_electrodes_is_a_potential_difference(qeq):
    """Between planes, φ = −F z is another potential of each electrode: charges are those of U_e + F z_e."""
    atoms, field = cell(water=False), 0.07
    planes = {"left": ELECTRODES["left"], "right": ELECTRODES["right"]}
    atoms.calc = kqeq.KQEqCalculator(
        qeq, potentials={"left": 0.0, "right": 0.0}, electrodes=planes, external_field=(0, 0, field)
    )
    in_field = atoms.get_charges()
    difference = field * 8.0
    atoms = cell(water=False)  # without the note of the field
    atoms.calc = kqeq.KQEqCalculator(qeq, potentials={"left": 0.0, "right": difference}, electrodes=planes)
    assert_allclose(atoms.get_charges(), in_field, atol=1e-9)
    assert np.abs(in_field).max() > 1e-3


def test_charge_by_field_is_dipole_by_potential(qeq):
    """∂Q/∂F at constant U = ∂μ/∂U at constant F: both are second derivatives of the grand energy; with water between."""
    atoms, field, step = cell(5), 0.02, 0.1

    def at(field, right):
        atoms.calc = kqeq.KQEqCalculator(
            qeq,
            potentials={"left": 0.0, "right": right},
            electrodes=ELECTRODES,
            external_field=(0, 0, field),
        )
        dipole = atoms.get_dipole_moment()[2]
        return atoms.calc.electrode_charges["right"], dipole

    by_field = (at(field, 0.5)[0] - at(-field, 0.5)[0]) / (2 * field)
    by_potential = (at(0.0, 0.5 + step)[1] - at(0.0, 0.5 - step)[1]) / (2 * step)
    assert abs(by_field) > 0.1
    assert_allclose(by_field, by_potential, rtol=1e-8)


def test_dynamics_conserve_the_grand_energy(qeq):
    atoms = cell(2)
    atoms.calc = kqeq.KQEqCalculator(qeq, potentials={"left": 0.0, "right": 1.0}, electrodes=ELECTRODES)
    rng = np.random.default_rng(0)
    atoms.set_velocities(0.01 * rng.normal(size=atoms.positions.shape))
    dynamics = VelocityVerlet(atoms, 0.1 * units.fs)
    totals, charges = [], []
    for _ in range(8):
        dynamics.run(5)
        totals.append(atoms.get_total_energy())
        charges.append(atoms.calc.electrode_charges["right"])
    kinetic = atoms.get_kinetic_energy()
    assert np.ptp(charges) > 1e-5
    assert np.ptp(totals) < 0.01 * kinetic


def open_cluster():
    atoms = cell(4)
    atoms.pbc = False
    return atoms


@pytest.mark.parametrize("name", ["qeq", "dipoles"])
def test_one_potential_of_the_whole(name, request):
    model = request.getfixturevalue(name)
    atoms = open_cluster()
    atoms.calc = kqeq.KQEqCalculator(model, potential=4.0)
    check_grand_forces(atoms)
    energy = atoms.get_potential_energy()
    prediction = atoms.calc.prediction
    assert_allclose(prediction.chemical_potential, 4.0, atol=1e-8)
    charge = prediction.total_charge
    assert_allclose(energy, prediction.energy - 4.0 * charge, rtol=1e-12)
    atoms.calc = kqeq.KQEqCalculator(model, potential=5.0)
    atoms.get_potential_energy()
    assert atoms.calc.prediction.total_charge > charge + 0.01
    # the same charge, held
    other = atoms.copy()
    other.calc = kqeq.KQEqCalculator(model, total_charge=atoms.calc.prediction.total_charge)
    assert_allclose(other.get_forces(), atoms.get_forces(), atol=1e-9)


def test_a_slab_has_no_potential_of_its_own(qeq):
    atoms = cell()
    atoms.calc = kqeq.KQEqCalculator(qeq, potential=4.0)
    with pytest.raises(NotPositiveDefiniteError, match=r"slab has no potential of its own.*electrodes="):
        atoms.get_potential_energy()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"potential": "high"}, "one finite number"),
        ({"potential": True}, "one finite number"),
        ({"potential": np.nan}, "one finite number"),
        ({"potential": 1e6}, "beyond 1000 V"),
        ({"potential": 4.0, "total_charge": 1}, "give one of them"),
        ({"potential": 4.0, "potentials": {"a": 1, "b": 2}}, "not both"),
        ({"electrodes": ELECTRODES}, "without potentials"),
        ({"potentials": {"left": 1.0}}, "at least two"),
        ({"potentials": {"left": 1.0, "right": 2.0}}, "by the names of potentials"),
        (
            {"potentials": {"left": 1.0, "right": 2.0}, "electrodes": {"left": [0, 1], "right": [1]}},
            "share atoms",
        ),
        (
            {"potentials": {"left": 1.0, "right": 2.0}, "electrodes": {"left": [0], "right": []}},
            "at least one",
        ),
        ({"potentials": {"left": 1.0, "right": "x"}, "electrodes": ELECTRODES}, "potentials"),
    ],
)
def test_wrong_settings_are_refused_at_once(qeq, settings, text):
    with pytest.raises(InputError, match=text):
        kqeq.KQEqCalculator(qeq, **settings)


def test_wrong_structures_are_refused(qeq):
    potentials = {"left": 0.0, "right": 1.0}
    atoms = cell()
    atoms.calc = kqeq.KQEqCalculator(qeq, potentials=potentials, electrodes={"left": [0], "right": [40]})
    with pytest.raises(InputError, match="atom 40"):
        atoms.get_potential_energy()
    cut = cell()
    cut.arrays["fragments"] = np.array([0, 0, 0, 1, *[2] * 7])
    cut.info["fragment_charges"] = [1.0, 0.0, -1.0]
    cut.calc = kqeq.KQEqCalculator(qeq, potentials=potentials, electrodes={"left": [0], "right": [3]})
    with pytest.raises(InputError, match="partly in an electrode"):
        cut.get_potential_energy()


def test_models_without_charges_are_refused():
    model = kqeq.KQEq(electronegativity=None, charges=None, short_range=KERNEL)
    model.fit([labelled(cell(seed)) for seed in range(4)])
    with pytest.raises(UnsupportedError, match="acts on charges"):
        kqeq.KQEqCalculator(model, potential=1.0)


def test_electrode_charges_do_not_hinder_files(qeq, tmp_path):
    from ase.io import read, write

    atoms = cell(3)
    atoms.calc = kqeq.KQEqCalculator(qeq, potentials={"left": 0.0, "right": 1.0}, electrodes=ELECTRODES)
    energy = atoms.get_potential_energy()
    atoms.get_forces()
    for name in ("a.xyz", "a.traj"):
        write(tmp_path / name, atoms)
        assert_allclose(read(tmp_path / name).get_potential_energy(), energy, rtol=1e-6)
