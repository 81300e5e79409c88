"""What charge models get right and wrong: polarizabilities, chains, fields, dissociation.

    python benchmarks/charge_models.py [--quick] [--json FILE] [--only SECTION ...] [--figures DIR]

``nma``      N-methylacetamide: element parameters learned from 40 DFT polarizabilities, tested on 100 others;
             five times, no frame twice
``sites``    the same, 400 to learn how hardness, softness and polarizability depend on the environment, 889 to test
``alkanes``  all-trans alkanes, learned on C2 to C6, longitudinal polarizability up to C12; alkane_polarizability.png
``chain``    a chain of carbon atoms with default parameters: does the polarizability per atom converge?
``fields``   N-methylacetamide: learned at fields up to 0.1 V/Å, dipoles at 0.3 V/Å
``salt``     NaCl pulled apart with element parameters: what charge stays behind?; salt_dissociation.png
``speed``    time for one solution with forces
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.io import read
from sklearn.base import clone

import kqeq
from common import Row, figure_path, main, public, row
from kqeq import charges, elements
from kqeq.constants import COULOMB
from kqeq.fitting.learning import learn_from_polarizabilities
from kqeq.frames.structures import Structure, read_structure

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

LOOK: dict[str, dict[str, Any]] = {
    "DFT": {"color": "black", "marker": "x", "ls": "none"},
    "QEq": {"color": "#0072B2", "marker": "o", "ls": "--"},
    "QEq + dipoles": {"color": "#56B4E9", "marker": "s", "ls": "--"},
    "ACKS2": {"color": "#E69F00", "marker": "^", "ls": "-"},
    "ACKS2 + dipoles": {"color": "#009E73", "marker": "D", "ls": "-"},
}
"""Colours (Okabe and Ito's palette), markers and lines by model, as in examples/."""

Labelled = tuple[list[Structure], list[np.ndarray]]


def labelled(frames: Sequence) -> Labelled:
    """Structures and polarizabilities (e²·Å²/eV) of frames."""
    tensors = [np.reshape(atoms.info["polarizability"], (3, 3)) for atoms in frames]
    return [read_structure(atoms) for atoms in frames], tensors


def rmse(model, data: Labelled) -> float:
    """Over tensor components, Å³."""
    errors = [model.bind(s).polarizability() - a for s, a in zip(*data, strict=True)]
    return COULOMB * float(np.sqrt(np.mean(np.square(errors))))


def figure(panels: int) -> list[Any]:
    """Axes of a figure with panels in a row."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    plt.rcParams.update({"legend.frameon": False, "legend.fontsize": 8, "lines.markersize": 4.5})
    return list(
        plt.subplots(1, panels, figsize=(3.6 * panels, 3.0), layout="constrained", squeeze=False)[1][0]
    )


def save(axes: Any, path: Path) -> None:
    axes.figure.savefig(path, dpi=150)
    print(f"written: {path}")


TRAIN, TEST, SPLITS = 40, 100, 5


def nma_splits(frames: Sequence) -> Iterator[tuple[Labelled, Labelled]]:
    """Training and test frames; no frame is used twice.

    The training frames are those on which the form of ACKS2's softness was chosen (kqeq/charges/softness.py); no
    test frame took part in that.
    """
    order = np.random.default_rng(2026).permutation(len(frames))
    for k in range(SPLITS):
        train = order[TRAIN * k : TRAIN * (k + 1)]
        test = order[SPLITS * TRAIN + TEST * k :][:TEST]
        yield labelled([frames[i] for i in train]), labelled([frames[i] for i in test])


def nma(quick: bool) -> Iterator[Row]:
    path = public("nma_field.xyz")
    if path is None:
        return
    splits = list(nma_splits(read(path, ":")))[: 2 if quick else SPLITS]
    spreads = [COULOMB * np.std([a - np.mean(test[1], axis=0) for a in test[1]]) for _, test in splits]
    yield row("NMA polarizability, spread of the reference", float(np.mean(spreads)), "Å³")
    targets = {"QEq": "", "ACKS2": "<= 0.30", "QEq + dipoles": "<= 0.21", "ACKS2 + dipoles": "<= 0.21"}
    for name, (default, model) in MODELS.items():
        yield row(f"NMA polarizability RMSE, {name}, defaults", rmse(default, splits[0][1]), "Å³")
        started = time.perf_counter()
        errors = [rmse(learn_from_polarizabilities(model, *train), test) for train, test in splits]
        seconds = (time.perf_counter() - started) / len(splits)
        mean = float(np.mean(errors))
        yield row(f"NMA polarizability RMSE, {name}, learned, mean", mean, "Å³", targets[name])
        yield row(f"  standard deviation over {len(errors)} splits", float(np.std(errors, ddof=1)), "Å³")
        yield row("  time to learn and test", seconds, "s")


def longitudinal(tensor: np.ndarray) -> float:
    """Largest eigenvalue of a polarizability, Å³."""
    return COULOMB * float(np.linalg.eigvalsh(tensor)[-1])


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
    frames = {
        int(np.sum(f.numbers == 6)): f for f in read(ALKANES, ":") if f.info["system"].startswith("alkane")
    }
    frames = dict(sorted(frames.items()))
    structures, tensors = labelled(list(frames.values()))
    data = {n: (s, t) for n, s, t in zip(frames, structures, tensors, strict=True)}
    short = [data[n] for n in data if n <= 6]
    longest = max(data)
    reference = {n: longitudinal(tensor) for n, (_, tensor) in data.items()}
    yield row(f"C{longest} longitudinal polarizability, DFT", reference[longest], "Å³")
    # lengths without labels show where a model goes
    build = alkane_builder()
    chains = {n: read_structure(build(n)) for n in (*range(2, 13), 16, 20, 24, 30)}
    curves: dict[str, dict[int, float]] = {"DFT": reference}
    for name, (_, model) in MODELS.items():
        learned = learn_from_polarizabilities(
            model, [s for s, _ in short], [t for _, t in short], noise=0.02 / COULOMB
        )
        curve = {n: longitudinal(learned.bind(s).polarizability()) for n, s in chains.items()}
        curves[name] = curve
        error = 100.0 * abs(curve[longest] / reference[longest] - 1.0)
        target = "<= 2" if name.startswith("ACKS2") else ""
        yield row(f"C{longest} longitudinal polarizability, {name}", curve[longest], "Å³")
        yield row(f"  absolute error, {name}", error, "%", target)
        fitted = max(abs(curve[n] / reference[n] - 1.0) for n in data if n <= 6)
        yield row(f"  largest absolute error at C2 to C6 (learned), {name}", 100.0 * fitted, "%")
    path = figure_path("alkane_polarizability.png")
    if path is not None:
        draw_alkanes(curves, path)


def alkane_builder() -> Callable[[int], Atoms]:
    """The function that built the geometries of the data set."""
    spec = importlib.util.spec_from_file_location("generate", ALKANES.parent / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    return generate.alkane


def draw_alkanes(curves: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """Longitudinal polarizability per carbon atom against length, models beside DFT."""
    axes = figure(1)[0]
    axes.axvspan(2, 6, color="0.93", lw=0)
    axes.text(4, 1.35, "learned", ha="center", color="0.4")
    for name, curve in curves.items():
        lengths = sorted(curve)
        values = [curve[n] / n for n in lengths]
        axes.plot(lengths, values, **LOOK[name], label=name, zorder=3 if name == "DFT" else 2)
    axes.set(
        xlabel="carbon atoms n",
        ylabel="longitudinal polarizability / n (Å³)",
        xlim=(1.5, 30.5),
        ylim=(1.3, 3.5),
    )
    axes.legend(loc="lower right")
    save(axes, path)


def chain(quick: bool) -> Iterator[Row]:
    lengths = (10, 20, 40) if quick else (10, 20, 40, 80)
    for name, (model, _) in MODELS.items():
        for atoms in lengths:
            line = Structure(np.full(atoms, 6), np.outer(np.arange(atoms), [0.0, 0.0, 1.5]))
            value = COULOMB * model.bind(line).polarizability()[2, 2] / atoms
            yield row(f"C{atoms} chain, polarizability per atom, {name}", value, "Å³")


def fields(quick: bool) -> Iterator[Row]:
    """Dipoles in strong fields, of models trained on dipoles and polarizabilities in weak ones.

    Reference of the induced part: the labelled polarizability times the field (no frame exists with and without).
    """
    path = public("nma_field.xyz")
    if path is None:
        return
    frames = read(path, ":")
    strength = np.array([np.linalg.norm(f.info["external_field"]) for f in frames])
    rng = np.random.default_rng(2026)
    weak = rng.permutation(np.flatnonzero(strength <= 0.1))[: 60 if quick else 200]
    strong = rng.permutation(np.flatnonzero((strength >= 0.27) & (strength <= 0.33)))[:100]
    train, test = [frames[i] for i in weak], [frames[i] for i in strong]
    dipoles = np.array([f.get_dipole_moment() for f in test])
    induced = np.array([_tensor(f) @ f.info["external_field"] for f in test])
    yield row("NMA at 0.3 V/Å, root-mean-square dipole", _rms(dipoles), "e·Å")
    yield row("NMA at 0.3 V/Å, root-mean-square induced dipole", _rms(induced), "e·Å")
    kernel = kqeq.SOAPKernel(n_representatives=40 if quick else 100)
    cases = {"QEq, defaults": MODELS["QEq"][0]} | {
        f"{name}, learned": pair[1] for name, pair in MODELS.items()
    }
    for name, model in cases.items():
        # element parameters first, then electronegativities: dipoles alone hardly tell the former
        fixed = learn_from_polarizabilities(model, *labelled(train[:TRAIN])) if model.to_learn else model
        estimator = kqeq.KQEq(kernel, None, charges=fixed, targets=["dipole"], noise={"dipole": 0.003})
        estimator.fit(train)
        predictions = [estimator.predict(f, properties=["dipole", "polarizability"]) for f in test]
        errors = np.array([p.dipole for p in predictions]) - dipoles
        own = [p.polarizability @ f.info["external_field"] for p, f in zip(predictions, test, strict=True)]
        target = "<= 5" if "dipoles" in name else ""
        yield row(f"NMA at 0.3 V/Å, dipole error, {name}", 100.0 * _rms(errors) / _rms(dipoles), "%", target)
        yield row("  error of the induced dipole", 100.0 * _rms(np.array(own) - induced) / _rms(induced), "%")


def _tensor(frame: Atoms) -> np.ndarray:
    return np.reshape(frame.info["polarizability"], (3, 3))


def _rms(vectors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.sum(np.square(vectors), axis=1))))


def salt(quick: bool) -> Iterator[Row]:
    numbers = np.array([11, 17])
    chi = elements.electronegativity(numbers)
    ions = {"fragments": np.array([0, 1]), "fragment_charges": np.array([1.0, -1.0])}
    cases = {
        "QEq": (charges.QEq(), {}),
        "QEq with fragment constraints": (charges.QEq(fragments=True), ions),
        "ACKS2": (charges.ACKS2(), {}),
        "ACKS2 with fragment charges": (charges.ACKS2(), ions),
        "ACKS2 + dipoles with fragment charges": (charges.AtomicDipoles(charges.ACKS2()), ions),
    }
    curves: dict[str, tuple[np.ndarray, list[float]]] = {}
    distances = np.concatenate([np.linspace(2.0, 6.0, 33), np.linspace(6.5, 15.0, 18)])
    for name, (model, extra) in cases.items():

        def sodium(distance: float, model: Any = model, extra: dict[str, Any] = extra) -> float:
            pair = Structure(numbers, np.array([[0.0, 0, 0], [0, 0, distance]]), **extra)
            return float(model.bind(pair).solve(chi, np.zeros(3), 0.0).charges[0])

        curves[name] = distances, [sodium(d) for d in distances]
        for distance in (2.4, 5.0, 15.0):
            yield row(f"NaCl at {distance:g} Å, charge of Na, {name}", sodium(distance), "e")
        if extra:
            yield row(f"  deviation from the ions at 15 Å, {name}", abs(sodium(15.0) - 1.0), "e", "<= 0.02")
    path = figure_path("salt_dissociation.png")
    if path is not None:
        draw_salt(curves, path)


def draw_salt(curves: Mapping[str, tuple[np.ndarray, list[float]]], path: Path) -> None:
    """Charge on Na against distance: models by themselves, and with the charges of the fragments given."""
    axes = figure(2)
    for name, (distances, values) in curves.items():
        model, _, remedy = name.partition(" with ")
        panel = axes[1 if remedy else 0]
        look = {key: value for key, value in LOOK[model].items() if key != "marker"}
        panel.plot(distances, values, **look, label=f"{model}, {remedy}" if remedy else model)
    for panel, title in zip(axes, ("(a) nothing said about fragments", "(b) fragments given"), strict=True):
        panel.set(xlabel="Na–Cl distance (Å)", ylim=(-0.05, 1.1))
        panel.set_title(title, fontsize=9)
        panel.axhline(0.0, color="0.8", lw=0.8, zorder=0)
        panel.axhline(1.0, color="0.8", lw=0.8, zorder=0)
    axes[0].set(ylabel="charge on Na (e)")
    axes[0].legend(loc="upper right", bbox_to_anchor=(1.0, 0.95))
    axes[1].legend(loc="lower right")
    save(axes[0], path)


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
    SECTIONS = {
        "nma": nma,
        "sites": sites,
        "alkanes": alkanes,
        "chain": chain,
        "fields": fields,
        "salt": salt,
        "speed": speed,
    }
    main(__doc__, SECTIONS)
