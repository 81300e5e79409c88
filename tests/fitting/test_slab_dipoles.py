"""Dipoles of slabs along their normal are labels; those of other periodic cells are none."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc100, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from numpy.testing import assert_allclose

import kqeq
from kqeq import analysis
from kqeq.charges.boundaries import open_components
from kqeq.errors import InputError
from kqeq.fitting.rows.blocks import frame_rows, target_vector
from kqeq.fitting.rows.features import TrainingFrame, compute_features
from kqeq.frames.labels import Labels
from kqeq.frames.structures import read_structure

KERNEL = kqeq.SOAPKernel(r_cut=3.5, n_max=3, l_max=2, n_representatives=4)
TRUTH = np.array([3.0] * 4 + [8.0, 4.5, 4.5])


def slab(seed: int, direction: int = 2) -> Atoms:
    """One layer and a water molecule; ``direction`` is the one that is not periodic."""
    metal, water = fcc100("Al", (2, 2, 1), a=4.05), molecule("H2O")
    metal.info.clear()
    water.rotate(70 * seed, (1, 0.2, 0.1))
    water.translate([2.5, 2.5, metal.positions[:, 2].max() + 3.2])
    atoms = metal + water
    atoms.positions += 0.05 * np.random.default_rng(seed).normal(size=atoms.positions.shape)
    atoms.set_cell([*metal.cell[:2], [0, 0, 20.0]])
    atoms.pbc = (True, True, False)
    if direction == 0:  # the same, axes named otherwise
        atoms.positions = atoms.positions[:, [2, 0, 1]]
        atoms.cell = atoms.cell.array[[2, 0, 1]][:, [2, 0, 1]]
        atoms.pbc = (False, True, True)
    return atoms


def labelled(seed: int, charges: kqeq.QEq, direction: int = 2) -> Atoms:
    """With the dipole of known electronegativities, and nonsense in the periodic directions."""
    atoms = slab(seed, direction)
    structure = read_structure(atoms)
    dipole = charges.bind(structure).solve(TRUTH, structure.external_field, 0.0).dipole
    nonsense = 50.0 * (1.0 - np.abs(open_components(structure)[0]))
    atoms.calc = SinglePointCalculator(atoms, dipole=dipole + nonsense)
    return atoms


@pytest.mark.parametrize("direction", [2, 0])
@pytest.mark.parametrize("charges", [kqeq.QEq(), kqeq.ACKS2()], ids=["QEq", "ACKS2"])
def test_the_normal_component_is_fitted_and_compared(charges, direction):
    train = [labelled(seed, charges, direction) for seed in range(5)]
    model = kqeq.KQEq(
        KERNEL, short_range=None, charges=charges, targets=["dipole"], noise={"dipole": 1e-3}, optimize=None
    ).fit(train)
    report = model.fit_report_
    assert report.used == {"dipole": 5}
    assert report.n_residuals == 5  # one component each
    errors = model.evaluate(train)["dipole"]
    assert errors.n == 5
    assert errors.rmse < 2e-3
    assert np.ptp([atoms.get_dipole_moment()[direction] for atoms in train]) > 0.05
    assert analysis.frame_errors(model, train).evaluation["dipole"].rmse < 2e-3


@pytest.mark.parametrize("kind", ["dipole", "born_charges"])
def test_rows_are_derivatives(kind):
    atoms = slab(1)
    nothing = {"dipole": np.array([9.0, 9.0, 0.0]), "born_charges": np.zeros((7, 3, 3))}[kind]
    frame = TrainingFrame(read_structure(atoms), Labels(**{kind: nothing}), 0)
    size = {"dipole": 1, "born_charges": 21}[kind]
    train = [labelled(seed, kqeq.ACKS2()) for seed in range(5)]
    charges = kqeq.ACKS2() if kind == "dipole" else kqeq.QEq(fragments=False)
    model = kqeq.KQEq(KERNEL, short_range=None, charges=charges, targets=["dipole"], optimize=None).fit(train)
    parameters, u = model.posterior_.parameters, model.posterior_.u
    features = compute_features(frame, parameters)
    assert target_vector(frame, kind).shape == (size,)
    noise = {kind: 1.0}
    residual, rows = frame_rows(frame, features, parameters, u, noise, jacobian="full")
    assert residual.shape == (size,)
    if kind == "born_charges":  # what a field along the normal does to forces
        fields = [read_structure(atoms, external_field=(0, 0, f)) for f in (0.01, -0.01)]
        up, down = (model.fitted().predict(s, ("forces",)).forces for s in fields)
        found = -residual.reshape(7, 3)
        assert np.abs(found).max() > 0.02
        assert_allclose(found, (up - down) / 0.02, atol=1e-6)
    step = np.random.default_rng(2).normal(size=parameters.size)
    up, down = (
        frame_rows(frame, features, parameters, u + s * step, noise, jacobian="none")[0]
        for s in (1e-3, -1e-3)
    )
    slope = -(up - down) / 2e-3
    assert np.abs(slope).max() > 1e-3
    assert_allclose(rows @ step, slope, rtol=1e-6)


def test_cells_without_an_open_direction_have_none():
    atoms = slab(0)
    atoms.pbc = True
    atoms.info["dipole"] = np.array([0.0, 0.0, 1.0])
    with pytest.raises(InputError, match="three directions"):
        kqeq.KQEq(KERNEL, short_range=None, targets=["dipole"]).fit([atoms])
