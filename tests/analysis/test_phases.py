"""Phases of a slab: charge that crosses, the field inside a metal, what polarises like an insulator."""

from functools import cache

import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc100, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.spacegroup import crystal

import kqeq
from kqeq import analysis
from kqeq.errors import InputError

KERNEL = kqeq.SOAPKernel(r_cut=3.5, n_max=3, l_max=2, n_representatives=4)
GROUPS = {"metal": range(12), "water": range(12, 15)}


def slab(seed: int) -> Atoms:
    metal, water = fcc100("Al", (2, 2, 3), a=4.05), molecule("H2O")
    metal.info.clear()
    water.rotate(50, (1, 0.2, 0.1))
    water.translate([2.5, 2.5, metal.positions[:, 2].max() + 3.2])
    atoms = metal + water
    atoms.positions += 0.05 * np.random.default_rng(seed).normal(size=atoms.positions.shape)
    atoms.set_cell([*metal.cell[:2], [0, 0, 25.0]])
    atoms.pbc = (True, True, False)
    atoms.arrays["fragments"] = np.array([0] * 12 + [1] * 3)
    atoms.info["fragment_charges"] = [0.0, 0.0]
    copy = atoms.copy()
    copy.calc = EMT()
    atoms.calc = SinglePointCalculator(atoms, energy=copy.get_potential_energy(), forces=copy.get_forces())
    return atoms


@cache
def fitted(metal_hardness: float, *, fragments: bool):
    charges = kqeq.QEq(fragments=fragments, hardness={"Al": metal_hardness})
    model = kqeq.KQEq(
        electronegativity=KERNEL, short_range=KERNEL, charges=charges, noise={"energy": 0.1, "forces": 2.0}
    )
    return model.fit([slab(seed) for seed in range(4)])


def test_a_metal_with_molecules_has_no_findings():
    found = analysis.phases(fitted(0.5, fragments=True), slab(9), GROUPS, metals=["metal"])
    assert found.findings == ()
    assert abs(found.crossing["metal"]) < 1e-9
    assert found.inside["metal"] < 0.2 < found.inside["water"]
    assert found.conductor["metal"] > 1.0 > found.conductor["water"]
    assert "field inside" in str(found)


def test_what_is_wrong_is_named():
    found = analysis.phases(fitted(300.0, fragments=False), slab(9), GROUPS, metals=["metal"])
    text = "\n".join(found.findings)
    assert "potential drops inside metal" in text
    assert "metal polarises like an insulator" in text
    soft = analysis.phases(fitted(0.5, fragments=False), slab(9), GROUPS, metals=["metal"])
    assert any("charge crosses" in finding for finding in soft.findings)
    assert abs(soft.crossing["metal"] + soft.crossing["water"]) < 1e-8


def test_metals_are_found():
    atoms = slab(0)
    groups, metals = analysis.find_phases(atoms)
    assert (groups, metals) == ({"metal": list(range(12)), "others": [12, 13, 14]}, ("metal",))
    upper = fcc100("Al", (2, 2, 2), a=4.05)
    upper.positions[:, 2] += atoms.positions[:, 2].max() + 5.0
    both = atoms + upper
    groups, metals = analysis.find_phases(both)
    assert metals == ("metal 1", "metal 2")
    assert groups["metal 2"] == list(range(15, 23))
    oxide = crystal(
        ["Al", "O"],
        [(0, 0, 0.352), (0.306, 0, 0.25)],
        spacegroup=167,
        cellpar=[4.76, 4.76, 12.99, 90, 90, 120],
    )
    groups, metals = analysis.find_phases(oxide)
    assert metals == ()
    assert list(groups) == ["others"]


def test_the_diagnosis_of_a_slab_looks_at_its_metal():
    names = {
        "charge that crosses from one phase to the other",
        "potential drop inside metal",
        "polarisation of metal",
    }

    def verdicts(model):
        findings = analysis.diagnose(model, slab(9)).findings
        return {f.name: (f.verdict, bool(f.remedy)) for f in findings if f.name in names}

    assert verdicts(fitted(0.5, fragments=True)) == dict.fromkeys(names, ("ok", False))
    assert verdicts(fitted(300.0, fragments=False)) == dict.fromkeys(names, ("FLAGGED", True))
    leaking = verdicts(fitted(0.5, fragments=False))
    assert leaking.pop("charge that crosses from one phase to the other") == ("FLAGGED", True)
    assert set(leaking.values()) == {("ok", False)}
    cluster = slab(9)
    cluster.pbc = False
    cluster.cell = None
    assert not names & {f.name for f in analysis.diagnose(fitted(0.5, fragments=True), cluster).findings}


def test_wrong_questions():
    model = fitted(0.5, fragments=True)
    for groups, metals, text in (
        ({"metal": []}, (), "at least one"),
        ({"a": [0, 1], "b": [1]}, (), "share atoms"),
        ({"a": [99]}, (), "do not exist"),
        ({"a": [0]}, ("b",), "metals names"),
    ):
        with pytest.raises(InputError, match=text):
            analysis.phases(model, slab(1), groups, metals)
    cluster = slab(1)
    cluster.pbc = False
    with pytest.raises(InputError, match="two periodic directions"):
        analysis.phases(model, cluster, GROUPS)
