"""A part of a baseline: everything is multiplied, and the model on top carries the charge."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

import kqeq
from kqeq.baselines import AtReferenceCharge, BaselineResult, Capabilities, Scaled, resolve_baseline
from kqeq.errors import InputError
from kqeq.frames.structures import read_structure


class Springs:
    """Holds charge, feels the field: E = Σ r² − F·μ with charges of ±1 by height, and Q on the first atom."""

    name = "springs"
    capabilities = Capabilities(holds_charge=True, field=True, dipole=True, charges=True)

    def charge_held(self, structure):
        return structure.total_charge

    def check(self, structure):
        pass

    def evaluate(self, structure, extras=()):
        r = structure.positions
        q = np.zeros(len(r))
        q[0], q[-1] = 0.3 + structure.total_charge, -0.3
        field = structure.external_field
        return BaselineResult(
            float(np.sum(r**2) - q @ r @ field), 2 * r - np.outer(q, field), np.zeros((3, 3)), q @ r, q
        )

    def session(self):
        return self

    def describe(self):
        return ""


def test_all_of_it_is_multiplied_at_charge_zero():
    ion = Atoms("OH3", molecule("NH3").positions, info={"total_charge": 1})
    structure = read_structure(ion)
    whole = Springs().evaluate(AtReferenceCharge(Springs()).at_reference(structure))
    part = Scaled(Springs(), 0.4)
    found = part.evaluate(structure)
    for own, full in zip(found[:5], whole[:5], strict=True):
        np.testing.assert_allclose(own, 0.4 * np.asarray(full), rtol=1e-14)
    assert np.abs(found.dipole).max() > 0.01
    assert found.polarizability is None
    assert not part.capabilities.holds_charge
    assert part.charge_held(structure) == 0.0


def test_models_on_a_part_keep_charge_and_derivatives():
    frames = [a for a in kqeq.datasets.load("water") if a.info["system"] == "water1"]
    kernel = kqeq.SOAPKernel(3.0, 3, 2, 0.4, n_representatives=3)
    model = kqeq.KQEq(kernel, kernel, baseline=Scaled(Springs(), 0.4)).fit(frames, optimize=None)
    atoms = frames[0].copy()
    atoms.info.clear()
    forces, h = model.predict(atoms).forces, 1e-4
    assert model.predict(atoms, total_charge=1.0).charges.sum() == pytest.approx(1.0, abs=1e-10)
    energies = []
    for step in (h, -h):
        moved = atoms.copy()
        moved.positions[1, 2] += step
        energies.append(model.predict(moved).energy)
    assert forces[1, 2] == pytest.approx(-(energies[0] - energies[1]) / (2 * h), abs=1e-6)


def test_names():
    part = resolve_baseline("0.5*zbl")
    assert isinstance(part, Scaled)
    assert part.factor == 0.5
    assert resolve_baseline(part.name).name == part.name
    structure = read_structure(molecule("H2O"))
    assert part.evaluate(structure).energy == 0.5 * resolve_baseline("zbl").evaluate(structure).energy
    assert resolve_baseline("0.4*so3lr").name == "0.4*so3lr@0"
    assert resolve_baseline("0.4*so3lr@0").name == "0.4*so3lr@0"
    with pytest.raises(InputError, match="'half' is no number"):
        resolve_baseline("half*zbl")
    with pytest.raises(InputError, match="factor of a baseline"):
        resolve_baseline("-1*zbl")
