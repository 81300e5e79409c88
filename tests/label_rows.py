"""Frames with made-up labels of every kind, and the cases in which rows of labels are compared with differences."""

import numpy as np
from ase import Atoms

from conftest import NOISE
from kqeq import KQEq
from kqeq.fitting.rows.blocks import BLOCKS
from kqeq.fitting.rows.features import TrainingFrame
from kqeq.frames.labels import Labels
from kqeq.frames.structures import read_structure
from systems import FIELD, water_cell

LEARNED_ONLY = "polarizability"  # changes with element parameters only: tests/fitting/test_learned_fit.py


KINDS = tuple(kind for kind in BLOCKS if kind != LEARNED_ONLY)


def labels(n, seed=0):
    """Labels of every kind, made up."""
    rng = np.random.default_rng(seed)
    stress = rng.normal(size=(3, 3))
    return Labels(
        energy=float(rng.normal()),
        forces=rng.normal(size=(n, 3)),
        stress=stress + stress.T,
        dipole=rng.normal(size=3),
        charges=rng.normal(size=n),
    )


def case(name, water_systems):
    """A geometry and its conditions."""
    if name == "cell":
        return read_structure(water_cell())
    if name == "charged cell":
        return read_structure(water_cell(), total_charge=1)
    system, charge, field = {
        "neutral": ("water2", 0, (0, 0, 0)),
        "neutral in a field": ("water2", 0, FIELD),
        "cation": ("hydronium", 1, (0, 0, 0)),
        "cation in a field": ("hydronium", 1, FIELD),
        "anion in a field": ("hydroxide", -1, FIELD),
    }[name]
    atoms = water_systems[system][1]
    return read_structure(Atoms(atoms.numbers, atoms.positions), total_charge=charge, external_field=field)


OPEN = ["neutral", "neutral in a field", "cation", "cation in a field", "anion in a field"]


CASES = [(name, kind) for name in OPEN for kind in KINDS if kind != "stress"]
CASES += [
    (name, kind) for name in ("cell", "charged cell") for kind in ("energy", "forces", "stress", "charges")
]


def random_u(parameters, seed=0):
    return 0.3 * np.random.default_rng(seed).normal(size=parameters.size)


def labelled(structure):
    """A frame with labels of every kind that the structure may have, made up."""
    rng = np.random.default_rng(4)
    n = len(structure)
    stress, alpha = rng.normal(size=(2, 3, 3))
    labels = Labels(
        energy=float(rng.normal()),
        forces=rng.normal(size=(n, 3)),
        stress=stress + stress.T if structure.periodic else None,
        dipole=None if structure.periodic else rng.normal(size=3),
        charges=rng.normal(size=n),
        polarizability=None if structure.periodic else alpha + alpha.T,
    )
    return TrainingFrame(structure, labels, 0)


def synthetic(kernel, water_training, truth):
    """Frames whose labels a model with known element parameters made, polarizabilities included."""
    model = KQEq(kernel(3.0), kernel(3.5, zeta=4), charges=truth, noise=NOISE).fit(water_training)
    frames = []
    for atoms in water_training:
        made = model.predict(atoms)
        copy = Atoms(atoms.numbers, atoms.positions)
        copy.info.update(
            {key: atoms.info[key] for key in ("total_charge", "external_field") if key in atoms.info},
            energy=made.energy,
            dipole=made.dipole,
            polarizability=made.polarizability,
        )
        copy.arrays["forces"] = made.forces
        frames.append(copy)
    return frames
