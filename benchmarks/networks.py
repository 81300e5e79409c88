"""Features of trained networks under charge equilibration, and SO3LR as a baseline.

    python benchmarks/networks.py [--quick] [--json FILE] [--only SECTION ...]

Sections without their package (extras ``so3lr``, ``mace``, ``chgnet``; ``xtb`` for GFN2-xTB) are skipped and say so.
Settings were chosen on training frames of QM9 alone (289 of the 385 to fit, every fourth to check; 100 to fit, 285 to
check); test files were looked at as often as docs/networks.md says.

``own``       dipoles of QM9 by SO3LR itself
``qm9``       features of SO3LR, 385 molecules to fit, 1000 to test, beside SOAP
``small``     100 molecules to fit
``baseline``  SO3LR as a baseline
``gfn2``      GFN2-xTB as a baseline, features of SO3LR above it
``forces``    forces and stress against finite differences
``mace``      a MACE model with random weights: fit, file, calculator, stress, 200 steps of dynamics
``zno``       bulk ZnO, 216 atoms a frame: CHGNet beside SOAP, energies and charges of 30 frames to fit
``speed``     milliseconds per atom beside SOAP
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.io import read
from ase.md.verlet import VelocityVerlet

import kqeq
from common import Row, main, public, row
from kqeq.baselines import SO3LR
from kqeq.constants import DEBYE
from kqeq.descriptors.networks import memory, resolve_network
from kqeq.frames.structures import read_structure

Frames = list[Atoms]


def has(package: str, extra: str) -> bool:
    """Whether a package is there; a message if it is not."""
    if find_spec(package) is not None:
        return True
    print(f'skipped: {package} is not installed (pip install "kqeq[{extra}]")')
    return False


def first(frames: Frames, n: int, seed: int) -> Frames:
    """The first n of a permutation, as the data's README wants it."""
    return [frames[int(i)] for i in np.random.default_rng(seed).permutation(len(frames))[:n]]


def data(quick: bool) -> tuple[Frames, Frames] | None:
    train, test = public("qm9_dipoles_train.xyz"), public("qm9_dipoles_val.xyz")
    if train is None or test is None:
        return None
    fit, check = read(train, ":"), read(test, ":")
    return (fit[:60], check[::20]) if quick else (fit, check)


def dipole_error(model: Any, frames: Frames) -> float:
    """Mean error of |mu| over the molecules of known elements, D."""
    known = [a for a in frames if set(a.get_chemical_symbols()) <= set(model.species_)]
    return float(model.evaluate(known)["dipole"].mae_norm / DEBYE)


def features(n: int = 300) -> kqeq.NetworkKernel:
    return kqeq.NetworkKernel("so3lr", zeta=2, n_representatives=n)


def sharp(n: int = 300) -> kqeq.SOAPKernel:
    return kqeq.SOAPKernel(r_cut=2.5, n_max=6, l_max=4, sigma=0.2, zeta=2, n_representatives=n)


def near(neighbours: str, n: int = 300) -> kqeq.SOAPKernel:
    """SOAP in which near neighbours count more; they are told apart by element, or by period."""
    weighting = {"function": "pow", "r0": 1.5, "c": 1.0, "d": 1.0, "m": 3.0}
    return kqeq.SOAPKernel(
        r_cut=4.0, sigma=0.3, zeta=2, weighting=weighting, neighbours=neighbours, n_representatives=n
    )


def together() -> list[kqeq.NetworkKernel | kqeq.SOAPKernel]:
    """Features of SO3LR and SOAP."""
    return [features(), near("elements"), near("periods")]


def both() -> dict[str, Any]:
    """Charges that are functions of them."""
    return {"electronegativity": together(), "charges": kqeq.LatentCharges()}


PART, LARGER_PART = "0.4*so3lr", "0.8*so3lr"
"""How much of the network's own dipole is taken as known.

Of 0, 0.3, 0.6 and 1 the middle two are best on left-out formulas of the 385; of 0, 0.4, 0.6, 0.8 and 1 the last two in
fits to 100 of the 385 tested on the others.
"""


def fitted(train: Frames, optimize: str, **settings: Any) -> tuple[kqeq.KQEq, float]:
    """A model of dipoles, and the CPU seconds of its fit."""
    started = time.process_time()
    model = kqeq.KQEq(short_range=None, targets=["dipole"], **settings).fit(train, optimize=optimize)
    return model, time.process_time() - started


# ------------------------------------------------------------------------- QM9


NOISE = {"dipole": 0.02}
"""e·Å, for 385 molecules."""


def latent() -> dict[str, Any]:
    """Charges that are functions of the features."""
    return {"electronegativity": features(), "charges": kqeq.LatentCharges()}


def own(quick: bool) -> Iterator[Row]:
    found = data(quick)
    if found is None or not has("so3krates_torch", "so3lr"):
        return
    errors = [
        abs(
            np.linalg.norm(SO3LR().evaluate(read_structure(a)).dipole) - np.linalg.norm(a.get_dipole_moment())
        )
        for a in found[1]
    ]
    yield row("QM9 dipoles, SO3LR itself, no training", float(np.mean(errors)) / DEBYE, "D")


def qm9(quick: bool) -> Iterator[Row]:
    found = data(quick)
    if found is None or not has("so3krates_torch", "so3lr"):
        return
    fit, check = found
    model, seconds = fitted(fit, "left-out", **latent(), noise=NOISE)
    goal = "" if quick else "<= 0.12"
    yield row(
        f"QM9 dipoles, features of SO3LR, latent charges, {len(fit)}", dipole_error(model, check), "D", goal
    )
    yield row("QM9 dipoles, features of SO3LR: fit", seconds, "s")
    for baseline, words in ((None, ""), (PART, " on 0.4 of SO3LR")):
        model, seconds = fitted(fit, "left-out", **both(), baseline=baseline)
        name = f"QM9 dipoles, features of SO3LR and SOAP{words}, latent charges"
        yield row(f"{name}, {len(fit)}", dipole_error(model, check), "D", goal)
        yield row(f"{name}: fit", seconds, "s")
    model, _ = fitted(fit, "evidence", electronegativity=features())
    yield row(f"QM9 dipoles, features of SO3LR, QEq, {len(fit)}", dipole_error(model, check), "D")
    model, _ = fitted(fit, "evidence", electronegativity=sharp())
    yield row(f"QM9 dipoles, SOAP, QEq, {len(fit)}", dipole_error(model, check), "D")


def small(quick: bool) -> Iterator[Row]:
    found = data(quick)
    if found is None or not has("so3krates_torch", "so3lr"):
        return
    fit, check = found
    goal = "" if quick else "<= 0.18"
    for what, optimize, settings in (
        ("features of SO3LR", "evidence", {**latent(), "noise": {"dipole": 0.03}}),
        ("features of SO3LR and SOAP", "left-out", both()),
        ("features of SO3LR and SOAP on 0.8 of SO3LR", "left-out", {**both(), "baseline": LARGER_PART}),
    ):
        errors = []
        for seed in (0,) if quick else (0, 1, 2):
            part = first(fit, 50 if quick else 100, seed)
            model, _ = fitted(part, optimize, **settings)
            errors.append(dipole_error(model, check))
        yield row(f"QM9 dipoles, {what}, 100: mean of seeds", float(np.mean(errors)), "D", goal)
        yield row(f"QM9 dipoles, {what}, 100: spread of seeds", float(np.ptp(errors)), "D")


def baseline(quick: bool) -> Iterator[Row]:
    found = data(quick)
    if found is None or not has("so3krates_torch", "so3lr"):
        return
    yield from on_baseline("so3lr", "SO3LR", *found, "")


def on_baseline(name: str, title: str, fit: Frames, check: Frames, goal: str) -> Iterator[Row]:
    for kernels, words in (([features(), sharp()], "features of SO3LR and SOAP"), (sharp(), "SOAP")):
        model, seconds = fitted(
            fit, "left-out", electronegativity=kernels, charges=kqeq.LatentCharges(), baseline=name
        )
        error = dipole_error(model, check)
        yield row(
            f"QM9 dipoles, {title} below {words}, {len(fit)}", error, "D", goal if "and" in words else ""
        )
        yield row(f"QM9 dipoles, {title} below {words}: fit", seconds, "s")


def gfn2(quick: bool) -> Iterator[Row]:
    found = data(quick)
    if found is None or not has("so3krates_torch", "so3lr") or not has("tblite", "xtb"):
        return
    yield from on_baseline("gfn2", "GFN2-xTB", *found, "" if quick else "<= 0.064")


# ---------------------------------------------------------------- derivatives


def slope(function: Callable[[float], float], h: float) -> float:
    """Derivative at 0, to sixth order."""
    weights = (0.75, -0.15, 1.0 / 60.0)
    return sum(w * (function(k * h) - function(-k * h)) for k, w in enumerate(weights, 1)) / h


def derivative_errors(model: kqeq.KQEq, atoms: Atoms, h: float) -> tuple[float, float | None]:
    """Largest error of forces and of the stress, relative to the largest one."""
    prediction = model.predict(atoms)
    errors = []
    for i in range(min(2, len(atoms))):
        for a in range(3):

            def moved(t: float, i: int = i, a: int = a) -> float:
                copy = atoms.copy()
                copy.positions[i, a] += t
                return float(model.predict(copy).energy)

            errors.append(slope(moved, h) + prediction.forces[i, a])
    forces = float(np.abs(errors).max() / np.abs(prediction.forces).max())
    if not atoms.pbc.all():
        return forces, None
    errors = []
    for a, b in ((0, 0), (0, 1), (2, 2)):

        def strained(t: float, a: int = a, b: int = b) -> float:
            matrix = np.eye(3)
            matrix[a, b] += t
            copy = atoms.copy()
            copy.set_cell(atoms.cell.array @ matrix, scale_atoms=True)
            return float(model.predict(copy).energy)

        full = prediction.stress * atoms.get_volume()
        errors.append(slope(strained, 0.2 * h) - full[a, b])
    return forces, float(np.abs(errors).max() / np.abs(full).max())


def forces(quick: bool) -> Iterator[Row]:
    if not has("so3krates_torch", "so3lr"):
        return
    water = [a for a in kqeq.datasets.load("water") if a.info["system"] in ("water1", "water2")][::2]
    kernel = kqeq.NetworkKernel("so3lr", n_representatives=20)
    for name, baseline in (("features of SO3LR", None), ("the same on SO3LR", "so3lr")):
        model = kqeq.KQEq(kernel, kernel, baseline=baseline).fit(water, optimize=None)
        atoms = Atoms(water[0].numbers, water[0].positions)
        error, _ = derivative_errors(model, atoms, 1e-3)
        yield row(f"forces against differences, {name}", error, "relative", "<= 1e-6")
        atoms.set_cell([[4.0, 0, 0], [0.3, 3.9, 0], [0, 0.2, 4.1]])
        atoms.pbc = True
        error, stress = derivative_errors(model, atoms, 1e-3)
        yield row(f"forces against differences, periodic, {name}", error, "relative", "<= 1e-6")
        yield row(f"stress against differences, {name}", stress, "relative", "<= 1e-6")


# ------------------------------------------------------------------------ MACE


def random_mace(path: Path) -> None:
    """A MACE model that nobody trained."""
    from kqeq.backend.pytorch import contained, quiet

    with contained() as torch, quiet():
        import mace  # noqa: F401  # first: it prepares torch for the files of e3nn
        from e3nn import o3
        from mace.modules import MACE, interaction_classes

        torch.manual_seed(0)
        block = interaction_classes["RealAgnosticResidualInteractionBlock"]
        model = MACE(
            r_max=4.0,
            num_bessel=6,
            num_polynomial_cutoff=5,
            max_ell=2,
            interaction_cls=block,
            interaction_cls_first=block,
            num_interactions=2,
            num_elements=2,
            hidden_irreps=o3.Irreps("16x0e + 16x1o"),
            MLP_irreps=o3.Irreps("16x0e"),
            atomic_energies=np.zeros(2),
            avg_num_neighbors=4.0,
            atomic_numbers=[1, 8],
            correlation=3,
            gate=torch.nn.functional.silu,
        )
        torch.save(model, path)


def mace(quick: bool) -> Iterator[Row]:
    if not has("mace", "mace"):
        return
    frames = [a for a in kqeq.datasets.load("water") if a.info["system"] in ("water1", "water2", "water3")]
    train, test = frames[::2], frames[1::2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.model"
        random_mace(path)
        kernel = kqeq.NetworkKernel(f"mace:{path}", n_representatives=30 if quick else 100)
        started = time.process_time()
        model = kqeq.KQEq(kernel, kernel).fit(train, optimize=None)
        yield row(
            "MACE with random weights: fit to energies, forces, dipoles", time.process_time() - started, "s"
        )
        spread = float(np.concatenate([a.get_forces().ravel() for a in test]).std())
        found = model.evaluate(test)
        yield row("MACE with random weights: forces of unseen frames", 1e3 * found["forces"].rmse, "meV/Å")
        yield row(
            "MACE with random weights: the same / their spread", found["forces"].rmse / spread, "", "< 0.5"
        )
        model.save(Path(folder) / "model.kqeq")
        loaded = kqeq.load(Path(folder) / "model.kqeq")
        atoms = Atoms(test[0].numbers, test[0].positions)
        change = loaded.predict(atoms).energy - model.predict(atoms).energy
        yield row("MACE with random weights: energy after loading", abs(change), "eV", "<= 0")
        cell = atoms.copy()
        cell.set_cell([[5.0, 0, 0], [0.3, 4.9, 0], [0, 0.2, 5.1]])
        cell.pbc = True
        error, stress = derivative_errors(loaded, cell, 1e-3)
        yield row("MACE with random weights: forces against differences", error, "relative", "<= 1e-6")
        yield row("MACE with random weights: stress against differences", stress, "relative", "<= 1e-6")
        atoms.calc = kqeq.KQEqCalculator(loaded)
        momenta = np.random.default_rng(0).normal(scale=0.3, size=(len(atoms), 3))
        atoms.set_momenta(momenta - momenta.mean(axis=0))
        energies: list[float] = []
        dynamics = VelocityVerlet(atoms, 0.25 * units.fs)
        dynamics.attach(lambda: energies.append(atoms.get_total_energy()))
        dynamics.run(200)
        drift = float(np.mean(energies[-50:]) - np.mean(energies[:50]))
        yield row(
            "MACE with random weights: drift over 200 steps",
            1e3 * abs(drift) / len(atoms),
            "meV/atom",
            "<= 0.1",
        )


# ------------------------------------------------------------------------- ZnO


def zno(quick: bool) -> Iterator[Row]:
    """Energies and charges: forces of 216 atoms would take a Jacobian of 657 passes a frame."""
    path = public("zno_periodic.xyz")
    if path is None or not has("chgnet", "chgnet"):
        return
    frames = read(path, ":")
    train, test = frames[:30], frames[30:]
    if quick:
        train, test = train[::5], test[::5]
    soap = kqeq.SOAPKernel(r_cut=4.0, n_max=6, l_max=4, sigma=0.5, zeta=2, n_representatives=100)
    network = kqeq.NetworkKernel("chgnet", zeta=2, n_representatives=100)
    for name, kernel in (("SOAP", soap), ("CHGNet", network), ("both", [soap, network])):
        started = time.process_time()
        model = kqeq.KQEq(kernel, kernel, targets=["energy", "charges"], charges_key="charges")
        model.fit(train, optimize=None)
        seconds = time.process_time() - started
        found = model.evaluate(test)
        yield row(f"ZnO bulk, {name}: energy", 1e3 * found["energy"].rmse, "meV/atom")
        yield row(f"ZnO bulk, {name}: forces, not fitted", 1e3 * found["forces"].rmse, "meV/Å")
        yield row(f"ZnO bulk, {name}: charges", 1e3 * found["charges"].rmse, "me")
        yield row(f"ZnO bulk, {name}: fit", seconds, "s")


# ----------------------------------------------------------------------- speed


def speed(quick: bool) -> Iterator[Row]:
    """CPU time of one thread; descriptors alone, then with the adjoint that forces need."""
    systems = {"acetamide": molecule("CH3CONH2"), "ZnO": bulk("ZnO", "wurtzite", 3.25, 5.2) * (2, 2, 2)}
    soap = kqeq.SOAPKernel(r_cut=5.0, n_max=8, l_max=6, sigma=0.5).descriptor()
    kinds: list[tuple[str, Any]] = [("SOAP (5 Å, 8, 6)", soap)]
    for package, extra in (("so3krates_torch", "so3lr"), ("chgnet", "chgnet")):
        if has(package, extra):
            kinds.append((extra, kqeq.NetworkFeatures(resolve_network(extra))))
    for title, atoms in systems.items():
        atoms.rattle(0.05, seed=0)
        structure = read_structure(atoms)
        for name, descriptor in kinds:
            values = descriptor.evaluate(structure).values
            gradient = np.ones(values.shape)

            def alone(own: Any = descriptor, structure: Any = structure) -> None:
                memory.forget()
                own.evaluate(structure, derivatives=False)

            def pulled(own: Any = descriptor, structure: Any = structure, gradient: Any = gradient) -> None:
                memory.forget()
                own.evaluate(structure).adjoint(gradient)

            for words, work in (("values", alone), ("values and adjoint", pulled)):
                times = []
                for _ in range(3 if quick else 7):
                    started = time.process_time()
                    work()
                    times.append(time.process_time() - started)
                unit = 1e3 * min(times) / len(atoms)
                yield row(f"{title}, {len(atoms)} atoms, {name}: {words}", unit, "ms/atom")


if __name__ == "__main__":
    warnings.simplefilter("ignore", kqeq.errors.KQEqWarning)
    main(
        __doc__ or "",
        {
            "own": own,
            "qm9": qm9,
            "small": small,
            "baseline": baseline,
            "gfn2": gfn2,
            "forces": forces,
            "mace": mace,
            "zno": zno,
            "speed": speed,
        },
    )
