"""What charge models get right and wrong: polarizabilities, chains, dissociation.

    python benchmarks/charge_models.py [--quick] [--json FILE] [--only SECTION ...]

``nma``      N-methylacetamide, 40 DFT polarizabilities to learn element parameters, 100 others to test
``sites``    the same, 400 to learn how hardness, softness and polarizability depend on the environment, 889 to test
``alkanes``  all-trans alkanes, learned on C2 to C6, longitudinal polarizability up to C12
``chain``    a chain of carbon atoms with default parameters: does the polarizability per atom converge?
``salt``     NaCl pulled apart: what charge stays behind?
``speed``    time for one solution with forces
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase.build import bulk
from ase.io import read
from sklearn.base import clone

import kqeq
from common import Row, main, public, row
from kqeq import charges, elements
from kqeq.constants import COULOMB
from kqeq.fitting.learning import learn_from_polarizabilities
from kqeq.structures import Structure, read_structure

ALKANES = Path(__file__).parent.parent / "datasets" / "polarizability.xyz"
LEARN = "learn"
MODELS = {
    "QEq": (charges.QEq(), charges.QEq(LEARN, LEARN)),
    "ACKS2": (charges.ACKS2(), charges.ACKS2(LEARN, LEARN, LEARN)),
    "QEq + dipoles": (
        charges.AtomicDipoles(charges.QEq()),
        charges.AtomicDipoles(charges.QEq(LEARN, LEARN), LEARN),
    ),
    "ACKS2 + dipoles": (
        charges.AtomicDipoles(charges.ACKS2()),
        charges.AtomicDipoles(charges.ACKS2(LEARN, LEARN, LEARN), LEARN),
    ),
}
"""By name: with default parameters, and with all parameters to be learned."""

Labelled = tuple[list[Structure], list[np.ndarray]]


def labelled(frames: Sequence) -> Labelled:
    """Structures and polarizabilities (e²·Å²/eV) of frames."""
    tensors = [np.reshape(atoms.info["polarizability"], (3, 3)) for atoms in frames]
    return [read_structure(atoms) for atoms in frames], tensors


def rmse(model, data: Labelled) -> float:
    """Over tensor components, Å³."""
    errors = [model.bind(s).polarizability() - a for s, a in zip(*data, strict=True)]
    return COULOMB * float(np.sqrt(np.mean(np.square(errors))))


def nma(quick: bool) -> Iterator[Row]:
    path = public("nma_field.xyz")
    if path is None:
        return
    frames = read(path, ":")
    order = np.random.default_rng(0).permutation(len(frames))
    train, test = (labelled([frames[i] for i in part]) for part in (order[:40], order[40:140]))
    spread = COULOMB * float(np.std([a - np.mean(test[1], axis=0) for a in test[1]]))
    yield row("NMA polarizability, spread of the reference", spread, "Å³")
    targets = {"QEq": "", "ACKS2": "<= 0.30", "QEq + dipoles": "<= 0.21", "ACKS2 + dipoles": "<= 0.21"}
    for name, (default, model) in MODELS.items():
        yield row(f"NMA polarizability RMSE, {name}, defaults", rmse(default, test), "Å³")
        started = time.perf_counter()
        learned = learn_from_polarizabilities(model, *train, max_iterations=20 if quick else 60)
        seconds = time.perf_counter() - started
        yield row(f"NMA polarizability RMSE, {name}, learned", rmse(learned, test), "Å³", targets[name])
        yield row(f"NMA, {name}, time to learn", seconds, "s")


def sites(quick: bool) -> Iterator[Row]:
    path = public("nma_field.xyz")
    if path is None:
        return
    frames = read(path, ":")
    order = np.random.default_rng(0).permutation(len(frames))
    train = [frames[i] for i in order[: 100 if quick else 400]]
    test = [frames[i] for i in order[400:]]
    # polarizabilities do not depend on electronegativities: two representatives per element keep them out of the way
    idle = kqeq.SOAPKernel(r_cut=4.0, n_max=6, l_max=4, sigma=0.3, n_representatives=2)
    for name, how in (("by element", LEARN), ("by element and environment", "kernel")):
        model = kqeq.KQEq(
            idle,
            None,
            charges=charges.AtomicDipoles(charges.ACKS2(softness=how, hardness=how), how),
            targets=["polarizability"],
            noise={"polarizability": 0.003},
            site_kernel=clone(idle).set_params(n_representatives=100) if how == "kernel" else None,
        )
        started = time.perf_counter()
        model.fit(train)
        seconds = time.perf_counter() - started
        error = COULOMB * model.evaluate(test)["polarizability"].rmse
        what = f"ACKS2 + dipoles {name}, {len(train)} to learn, {len(test)} to test"
        yield row(f"NMA polarizability RMSE, {what}", error, "Å³", "<= 0.10" if how == "kernel" else "")
        yield row(f"NMA, {name}, time to learn", seconds, "s")


def alkanes(quick: bool) -> Iterator[Row]:
    if not ALKANES.exists():
        print(
            f"alkanes: {ALKANES} is missing; python datasets/generate_polarizability.py writes it", flush=True
        )
        return
    frames = [f for f in read(ALKANES, ":") if f.info["system"].startswith("alkane")]
    carbons = [int(np.sum(f.numbers == 6)) for f in frames]
    data = labelled(frames)
    short = [i for i, n in enumerate(carbons) if n <= 6]
    longest = int(np.argmax(carbons))

    def along(tensor: np.ndarray) -> float:
        return COULOMB * float(np.linalg.eigvalsh(tensor)[-1])

    yield row(f"C{carbons[longest]} longitudinal polarizability, DFT", along(data[1][longest]), "Å³")
    for name, (_, model) in MODELS.items():
        learned = learn_from_polarizabilities(
            model, [data[0][i] for i in short], [data[1][i] for i in short], noise=0.02 / COULOMB
        )
        value = along(learned.bind(data[0][longest]).polarizability())
        error = 100.0 * abs(value / along(data[1][longest]) - 1.0)
        target = "<= 2" if name.startswith("ACKS2") else ""
        yield row(f"C{carbons[longest]} longitudinal polarizability, {name}", value, "Å³")
        yield row(f"  absolute error, {name}", error, "%", target)


def chain(quick: bool) -> Iterator[Row]:
    lengths = (10, 20, 40) if quick else (10, 20, 40, 80)
    for name, (model, _) in MODELS.items():
        for atoms in lengths:
            line = Structure(np.full(atoms, 6), np.outer(np.arange(atoms), [0.0, 0.0, 1.5]))
            value = COULOMB * model.bind(line).polarizability()[2, 2] / atoms
            yield row(f"C{atoms} chain, polarizability per atom, {name}", value, "Å³")


def salt(quick: bool) -> Iterator[Row]:
    numbers = np.array([11, 17])
    chi = elements.electronegativity(numbers)
    ions = {"fragments": np.array([0, 1]), "fragment_charges": np.array([1.0, -1.0])}
    cases = {
        "QEq": (charges.QEq(), {}),
        "QEq with fragment constraints": (charges.QEq(fragments=True), ions),
        "ACKS2 with fragment charges": (charges.ACKS2(), ions),
        "ACKS2 + dipoles with fragment charges": (charges.AtomicDipoles(charges.ACKS2()), ions),
    }
    for name, (model, extra) in cases.items():
        for distance in (2.4, 5.0, 15.0):
            pair = Structure(numbers, np.array([[0.0, 0, 0], [0, 0, distance]]), **extra)
            state = model.bind(pair).solve(chi, np.zeros(3), 0.0)
            yield row(f"NaCl at {distance:g} Å, charge of Na, {name}", float(state.charges[0]), "e")


def speed(quick: bool) -> Iterator[Row]:
    for repeat in (2, 3) if quick else (2, 3, 5):
        atoms = bulk("NaCl", "rocksalt", 5.64, cubic=True).repeat(repeat)
        atoms.rattle(0.1, seed=0)
        for boundary in ("open", "periodic"):
            structure = read_structure(atoms)
            if boundary == "open":
                structure = replace(structure, pbc=np.zeros(3, dtype=bool))
            chi = elements.electronegativity(structure.numbers)
            for name, (model, _) in MODELS.items():
                model.bind(structure).solve(chi, np.zeros(3), 0.0).gradient()
                started = time.perf_counter()
                state = model.bind(structure).solve(chi, np.zeros(3), 0.0)
                state.gradient(), state.strain()
                seconds = time.perf_counter() - started
                yield row(f"{len(structure)} atoms, {boundary}, charges and forces, {name}", seconds, "s")


if __name__ == "__main__":
    main(
        __doc__,
        {"nma": nma, "sites": sites, "alkanes": alkanes, "chain": chain, "salt": salt, "speed": speed},
    )
