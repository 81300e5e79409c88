"""What data do not determine: are guessed element energies and chemical potentials within their own error bars.

Small sets whose compositions, or charges and compositions, are confounded, labelled with GFN2-xTB (needs tblite), and
questions that their data leave open.  For every question: error, standard deviation, and whether the model said so.

    python benchmarks/determined.py [--quick]
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

import kqeq
from common import Row, main, row
from kqeq.errors import UndeterminedWarning

Species = tuple[str, int]
"""Name in ``ase.build.molecule`` (or below) and total charge."""

GEOMETRIES = {
    "OH": Atoms("OH", [[0, 0, 0], [0.96, 0, 0]]),
    "H3O": Atoms("OH3", [[0, 0, 0], [0.98, 0, 0], [-0.49, 0.85, 0.2], [-0.49, -0.85, 0.1]]),
    "NH4": Atoms("NH4", 1.02 / 3**0.5 * np.array([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])),
    "glycine": Atoms(
        "NCCOOHHHHH",
        [
            [-1.80, 0.30, 0.00], [-0.60, -0.52, 0.00], [0.66, 0.32, 0.00], [0.70, 1.53, 0.00], [1.77, -0.45, 0.00],
            [2.55, 0.14, 0.00], [-2.60, -0.20, 0.40], [-1.70, 1.20, 0.40], [-0.58, -1.17, 0.88], [-0.58, -1.17, -0.88],
        ],
    ),
    "glycinium": Atoms(
        "NCCOOHHHHHH",
        [
            [-1.80, 0.30, 0.00], [-0.60, -0.52, 0.00], [0.66, 0.32, 0.00], [0.70, 1.53, 0.00], [1.77, -0.45, 0.00],
            [2.55, 0.14, 0.00], [-2.55, -0.10, 0.62], [-1.75, 1.22, 0.42], [-0.58, -1.17, 0.88], [-0.58, -1.17, -0.88],
            [-2.15, 0.45, -0.96],
        ],
    ),
}  # fmt: skip

ATOMS = {
    "all electrons": {"H": -13.6, "C": -1029.0, "N": -1484.0, "O": -2042.0, "Na": -4413.0, "Cl": -12515.0},
    "norm-conserving": {"H": -12.5, "C": -147.0, "N": -264.0, "O": -432.0, "Na": -1288.0, "Cl": -409.0},
}
"""Energies of atoms as programs with other references give them, eV (rounded; what matters is their size)."""

FREE = {"H": -10.7, "C": -48.7, "N": -70.9, "O": -102.5, "Na": -4.5, "Cl": -121.0}
"""About those of GFN2-xTB, eV."""


@dataclass(frozen=True)
class Confounded:
    """A training set and what is asked of a model of it.

    Attributes
    ----------
    train : species in equal parts.
    ask : species whose energies are predicted.
    ionize : species whose next higher charge state is predicted at the same geometry.
    open : whether the answers are open (otherwise the model should be silent).
    options : of :class:`kqeq.KQEq`.
    reference : a key of ``ATOMS``, or ``"atoms"`` for energies relative to free atoms.
    """

    train: tuple[Species, ...]
    ask: tuple[Species, ...] = ()
    ionize: tuple[Species, ...] = ()
    open: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    reference: str = ""


WATER: tuple[Species, ...] = (("H2O", 0),)
OF_WATER: tuple[Species, ...] = (("H2", 0), ("O2", 0), ("OH", -1), ("H3O", 1))
NO_CHARGES = {"electronegativity": None, "charges": None}

SETS = {
    "water": Confounded(WATER, OF_WATER, WATER),
    "water, short range only": Confounded(WATER, OF_WATER[:2], options=NO_CHARGES),
    "water, e0 given": Confounded(WATER, OF_WATER[:2], options={"e0": FREE}),
    "water on GFN1-xTB": Confounded(WATER, OF_WATER[:2], options={"baseline": "gfn1"}),
    "water, charge-aware": Confounded(WATER, OF_WATER, WATER, options={"charge_aware": kqeq.ChargeKernel()}),
    "water, all electrons": Confounded(WATER, OF_WATER[:2], reference="all electrons"),
    "water, norm-conserving": Confounded(WATER, OF_WATER[:2], reference="norm-conserving"),
    "water, relative to atoms": Confounded(WATER, OF_WATER[:2], reference="atoms"),
    "ions of water": Confounded(
        (("OH", -1), ("H2O", 0), ("H3O", 1)), (("H2", 0), ("O2", 0), ("H2O2", 0)), (("H2O", 0), ("OH", -1))
    ),
    "hydronium": Confounded((("H3O", 1),), (("H2O", 0), ("OH", -1), ("H2", 0))),
    "glycine and glycinium": Confounded(
        (("glycine", 0), ("glycinium", 1)), (("H2", 0), ("CO2", 0), ("NH3", 0)), (("glycine", 0),)
    ),
    "ammonia and ammonium": Confounded(
        (("NH3", 0), ("NH4", 1)), (("H2", 0), ("N2", 0)), (("NH3", 0),)
    ),
    "ammonia and ammonium, charge-aware": Confounded(
        (("NH3", 0), ("NH4", 1)), (("H2", 0),), (("NH3", 0),), options={"charge_aware": kqeq.ChargeKernel()}
    ),
    "butanes": Confounded((("trans-butane", 0), ("isobutane", 0)), (("CH4", 0), ("C2H4", 0), ("H2", 0), ("C2H6", 0))),
    "butanes, all electrons": Confounded(
        (("trans-butane", 0), ("isobutane", 0)), (("CH4", 0), ("C2H4", 0), ("H2", 0)), reference="all electrons"
    ),
    "methanol": Confounded((("CH3OH", 0),), (("CH4", 0), ("H2O", 0), ("CO", 0), ("H2", 0))),
    "methanol, norm-conserving": Confounded(
        (("CH3OH", 0),), (("CH4", 0), ("H2O", 0), ("CO", 0)), reference="norm-conserving"
    ),
    "carbon dioxide": Confounded((("CO2", 0),), (("CO", 0), ("O2", 0))),
    "formaldehyde and water": Confounded((("H2CO", 0), ("H2O", 0)), (("CO", 0), ("H2", 0), ("CH4", 0))),
    "sodium chloride": Confounded((("NaCl", 0),), (("Na2", 0), ("Cl2", 0))),
    "methane, ethane (determined)": Confounded(
        (("CH4", 0), ("C2H6", 0)), (("C3H8", 0), ("trans-butane", 0)), open=False
    ),
    "methane and its cation (determined)": Confounded((("CH4", 0), ("CH4", 1)), (), (("CH4", 0),), open=False),
}  # fmt: skip


def geometry(name: str) -> Atoms:
    """A molecule by name."""
    if name == "Na2":
        return Atoms("Na2", [[0, 0, 0], [3.0, 0, 0]])
    return GEOMETRIES[name].copy() if name in GEOMETRIES else molecule(name)


def labelled(
    case: Confounded, species: Species, count: int, seed: int = 0, scatter: float = 0.06
) -> list[Atoms]:
    """Rattled geometries with labels."""
    from tblite.ase import TBLite

    rng, found = np.random.default_rng(seed), []
    name, charge = species
    for _ in range(count):
        atoms = geometry(name)
        atoms = Atoms(atoms.numbers, atoms.positions + rng.normal(0.0, scatter, atoms.positions.shape))
        # what ase.build knows of spins would be taken for open shells of another kind
        atoms.calc = TBLite(method="GFN2-xTB", charge=charge, verbosity=0)
        energy = atoms.get_potential_energy()
        for symbol in atoms.get_chemical_symbols():
            energy += ATOMS[case.reference][symbol] if case.reference in ATOMS else 0.0
            energy -= FREE[symbol] if case.reference else 0.0
        atoms.calc = SinglePointCalculator(
            atoms, energy=energy, forces=atoms.get_forces(), dipole=atoms.get_dipole_moment()
        )
        atoms.info["total_charge"] = charge
        found.append(atoms)
    return found


def small_kernel(**options: Any) -> kqeq.SOAPKernel:
    """Cheap to fit."""
    return kqeq.SOAPKernel(**{"r_cut": 3.5, "n_max": 4, "l_max": 3, "n_representatives": 8, **options})


def fitted(case: Confounded, count: int) -> kqeq.KQEq:
    """A small model."""
    frames = [f for i, species in enumerate(case.train) for f in labelled(case, species, count, seed=i)]
    electronegativity, short_range = small_kernel(), small_kernel(zeta=4)
    model = kqeq.KQEq(**{"electronegativity": electronegativity, "short_range": short_range, **case.options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(frames)


@dataclass(frozen=True)
class Answer:
    """One question to a model: error and standard deviation in eV, and whether a warning came."""

    name: str
    error: float
    std: float
    warned: bool

    @property
    def ratio(self) -> float:
        """|error| over standard deviation."""
        return abs(self.error) / self.std


def answers(case: Confounded, count: int = 6) -> list[Answer]:
    """All questions to the model of a set."""
    model, found = fitted(case, count), []

    def ask(name: str, atoms: Atoms, charge: float, truth: float) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            p = model.predict(atoms, total_charge=charge, properties=["energy"], uncertainty=True)
        said = any(issubclass(w.category, UndeterminedWarning) for w in caught)
        found.append(Answer(name, p.energy - truth, p.energy_std, said))

    for species in case.ask:
        frame = labelled(case, species, 1, scatter=0.0)[0]
        ask(f"{species[0]} {species[1]:+d}", frame, species[1], frame.get_potential_energy())
    for name, charge in case.ionize:
        cation = labelled(case, (name, charge + 1), 1, scatter=0.0)[0]
        ask(f"{name} at {charge + 1:+d}", cation, charge + 1, cation.get_potential_energy())
    return found


def confounded(quick: bool) -> Iterable[Row]:
    """All sets; the shares that the issue asks for at the end."""
    ratios, said, silent = [], [], []
    for name, case in SETS.items():
        for answer in answers(case, 4 if quick else 6):
            yield row(f"{name} -> {answer.name}: error", answer.error, "eV")
            yield row(
                f"{name} -> {answer.name}: std, {'warned' if answer.warned else 'silent'}", answer.std, "eV"
            )
            if case.open:
                ratios.append(answer.ratio)
                said.append(answer.warned)
            else:
                silent.append(not answer.warned)
    yield row("open questions", float(len(ratios)), "")
    yield row(
        "errors within three standard deviations",
        100.0 * float(np.mean(np.array(ratios) <= 3.0)),
        "%",
        ">= 95",
    )
    yield row("largest error", float(max(ratios)), "std")
    yield row("open questions with a warning", 100.0 * float(np.mean(said)), "%", ">= 95")
    yield row("determined questions without a warning", 100.0 * float(np.mean(silent)), "%", ">= 100")


if __name__ == "__main__":
    main(__doc__ or "", {"confounded": confounded})
