"""Learning on top of GFN2-xTB: what a fit reaches with tight binding below it, and what that costs.

    python benchmarks/baselines.py [--quick] [--json FILE] [--only SECTION ...]

Needs tblite (``pip install "kqeq[xtb]"``).  Results of the baseline are kept on disk; the times of fits say whether they
contain them.

``qm9``         dipoles, 385 and 50 molecules to fit, 1000 to test
``water``       the line of the accuracy table: (H2O)1-5, H3O(+)
``dipeptides``  100 frames of the training file to fit, the validation file to test
``dipeptides_all`` all 495; Born charges as well
``zno_vertical`` Zn3O3 at -1, 0, +1: ionisation energy and electron affinity before and after the fit
``nma``         200 frames of N-methylacetamide in fields to fit, the rest to test
``nma_all``     the first 1000 to fit, the last 289 to test
``curves``      errors against the number of frames, with and without GFN2-xTB: alkanes, water, NMA, dipeptides
``steps``       milliseconds per step of dynamics: model alone, GFN2-xTB alone, both
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read

import kqeq
from accuracy_table import LINES
from common import Row, main, public, row
from kqeq.constants import COULOMB, DEBYE
from kqeq.frames.structures import read_structure
from kqeq.kernels.settings import default_short_range

NO_CHARGES: dict[str, Any] = {"electronegativity": None, "charges": None}


def sharp(n: int, **options: Any) -> kqeq.SOAPKernel:
    """The kernel for errors of tight binding: short and sharp."""
    settings = {"r_cut": 2.5, "n_max": 8, "l_max": 6, "sigma": 0.2, "zeta": 2, **options}
    return kqeq.SOAPKernel(n_representatives=n, **settings)


def first(frames: list[Atoms], n: int, seed: int) -> list[Atoms]:
    """The first n of a permutation, as the data's README wants it."""
    return [frames[int(i)] for i in np.random.default_rng(seed).permutation(len(frames))[:n]]


def fitted(train: list[Atoms], optimize: str | None = None, **settings: Any) -> tuple[kqeq.KQEq, float]:
    """A model on GFN2-xTB, and the CPU seconds of its fit."""
    started = time.process_time()
    model = kqeq.KQEq(**{"baseline": "gfn2", **settings}).fit(train, optimize=optimize)
    return model, time.process_time() - started


# ------------------------------------------------------------------------ sets


def qm9(quick: bool) -> Iterator[Row]:
    train, test = public("qm9_dipoles_train.xyz"), public("qm9_dipoles_val.xyz")
    if train is None or test is None:
        return
    fit, check = read(train, ":"), read(test, ":")
    if quick:
        fit, check = fit[:60], check[::20]
    settings: dict[str, Any] = {"electronegativity": sharp(400), "short_range": None, "targets": ["dipole"]}
    model, seconds = fitted(fit, "evidence", **settings)
    error = model.evaluate(check)["dipole"].mae_norm / DEBYE
    yield row(f"QM9 dipoles, {len(fit)} molecules on GFN2-xTB: mean error of |mu|", error, "D", "<= 0.07")
    yield row("QM9 dipoles on GFN2-xTB: fit by evidence", seconds, "s")
    errors = []
    for seed in (0,) if quick else (0, 1, 2):
        model, _ = fitted(first(fit, 50, seed), "evidence", **settings)
        known = [a for a in check if set(a.get_chemical_symbols()) <= set(model.species_)]
        errors.append(model.evaluate(known)["dipole"].mae_norm / DEBYE)
    yield row(
        "QM9 dipoles, 50 molecules (elements known): mean of seeds", float(np.mean(errors)), "D", "<= 0.12"
    )
    yield row("QM9 dipoles, 50 molecules: spread of seeds", float(np.ptp(errors)), "D")


def water(quick: bool) -> Iterator[Row]:
    """Kernels and charges were chosen by two quarters of the training frames; the test frames were looked at three times.

    Left out there: one kernel each 55 meV/Å and 0.0109 e·Å, with the second kernel of the energy 47 and 0.0102, with
    three of the electronegativities as well 47 and 0.0095 (energies 2.9, 2.2, 1.8 meV/atom).
    """
    train, test = LINES["water"].frames()
    n = 30 if quick else 300
    settings = {
        "electronegativity": [
            sharp(n // 2, r_cut=4.0, sigma=0.3),
            sharp(n // 3, r_cut=6.0, sigma=0.5),
            sharp(n // 3, r_cut=3.0, sigma=0.25),
        ],
        "short_range": [
            sharp(n, r_cut=3.2, sigma=0.25),
            sharp(n, r_cut=4.5, sigma=0.4, delta=0.3),
        ],
        "charges": kqeq.AtomicDipoles(kqeq.QEq()),
        "noise": {"dipole": 0.004},
    }
    for name, options in {
        "QEq with dipoles": settings,
        "short range alone": {**settings, **NO_CHARGES},
    }.items():
        model, seconds = fitted(train, **options)
        found = model.evaluate(test)
        goal = {"forces": "<= 40", "dipole": "<= 0.008"} if "QEq" in name else {"forces": "", "dipole": ""}
        yield row(f"water on GFN2-xTB, {name}: energy", 1e3 * found["energy"].rmse, "meV/atom")
        yield row(f"water on GFN2-xTB, {name}: forces", 1e3 * found["forces"].rmse, "meV/Å", goal["forces"])
        yield row(f"water on GFN2-xTB, {name}: dipole", found["dipole"].rmse, "e·Å", goal["dipole"])
        yield row(f"water on GFN2-xTB, {name}: fit", seconds, "s")


def _dipeptides(
    n: int, options: dict[str, Any], quick: bool, seed: int = 0
) -> tuple[Any, float, list[Atoms]] | None:
    train, test = public("dipeptides_train.xyz"), public("dipeptides_val.xyz")
    if train is None or test is None:
        return None
    frames = read(train, ":")
    fit = frames if n >= len(frames) else first(frames, 20 if quick else n, seed)
    check = read(test, ":6" if quick else ":")
    model, seconds = fitted(fit, **options)
    return model, seconds, check


def dipeptides(quick: bool) -> Iterator[Row]:
    kinds = ["energy", "forces"]
    errors: dict[str, list[float]] = {kind: [] for kind in kinds}
    for seed in (0,) if quick else (0, 1, 2):
        wide = sharp(40 if quick else 300, r_cut=4.0, sigma=0.4, delta=0.3)
        options = {**NO_CHARGES, "short_range": [sharp(100 if quick else 700), wide], "targets": kinds}
        options["optimize"] = "left-out"
        found = _dipeptides(100, options, quick, seed)
        if found is None:
            return
        model, seconds, check = found
        evaluation = model.evaluate(check)
        for kind in kinds:
            errors[kind].append(1e3 * evaluation[kind].rmse)
        if seed == 0:
            yield row("dipeptides, 100 on GFN2-xTB, short range alone: fit", seconds, "s")
    name = "dipeptides, 100 on GFN2-xTB, short range alone, mean of seeds: "
    yield row(name + "energy", float(np.mean(errors["energy"])), "meV/atom", "<= 1.6")
    yield row(name + "forces", float(np.mean(errors["forces"])), "meV/Å", "<= 70")


def dipeptides_all(quick: bool) -> Iterator[Row]:
    # 400 of the 495 fitted, the others tested, without charges: 57.9 meV/Å with the sharp kernel, 51.0 with both (51.6
    # with a larger basis, 53.1 with 0.4 Å); latent charges with atomic dipoles on top 51.9 and 0.067 e·Å
    wide = sharp(70 if quick else 700, r_cut=4.0, sigma=0.3, n_max=6, l_max=4, delta=0.3)
    options = {
        "electronegativity": sharp(20 if quick else 250),
        "short_range": [sharp(100 if quick else 1000), wide],
    }
    found = _dipeptides(20 if quick else 495, options, quick)
    if found is None:
        return
    model, seconds, check = found
    evaluation = model.evaluate(check)
    name = "dipeptides, 495 on GFN2-xTB, QEq: "
    yield row(name + "energy", 1e3 * evaluation["energy"].rmse, "meV/atom", "<= 1")
    yield row(name + "forces", 1e3 * evaluation["forces"].rmse, "meV/Å", "<= 45")
    yield row(name + "dipole", evaluation["dipole"].rmse, "e·Å", "<= 0.05")
    yield row(name + "fit", seconds, "s", "<= 600")
    errors = []
    for atoms in check[:1] if quick else check[::5]:
        own = kqeq.analysis.born_charges(model, atoms).tensors
        # stored as ∂μ_a/∂r_b at 3b + a
        label = np.transpose(atoms.arrays["bec"].reshape(-1, 3, 3), (0, 2, 1))
        errors.append((own - label).ravel())
    error = float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))
    yield row(name + f"Born charges ({len(errors)} frames)", error, "e", "<= 0.08")


def vertical_errors(model: kqeq.KQEq, test: list[Atoms]) -> tuple[float, float]:
    """Root-mean-square errors of the vertical ionisation energy and electron affinity of geometries in ``test``, eV."""
    return _vertical(test, [model.predict(a, properties=["energy"]).energy for a in test])


def _vertical(test: list[Atoms], energies: list[float]) -> tuple[float, float]:
    errors: dict[int, list[float]] = {1: [], -1: []}
    for ion, there in zip(test, energies, strict=True):
        for frame, here in zip(test, energies, strict=True):
            if ion.info["total_charge"] == 0 or frame.info["total_charge"] != 0:
                continue
            if np.abs(ion.get_all_distances() - frame.get_all_distances()).max() < 1e-4:
                reference = ion.get_potential_energy() - frame.get_potential_energy()
                errors[int(ion.info["total_charge"])].append(there - here - reference)
    ionisation, affinity = (float(np.sqrt(np.mean(np.square(errors[q])))) for q in (1, -1))
    return ionisation, affinity


ZNO: dict[str, dict[str, Any]] = {
    "blind": NO_CHARGES,
    "charge-aware": {**NO_CHARGES, "charge_aware": kqeq.ChargeKernel(2, 0.5)},
    "QEq, charge from model": {
        "charge_from": "model",
        "charge_aware": kqeq.ChargeKernel(),
        "short_range": default_short_range(),
    },
    "QEq, charge-aware": {"charge_aware": kqeq.ChargeKernel(2, 0.5)},
}


def zno_vertical(quick: bool) -> Iterator[Row]:
    """Kernels were chosen by three folds of the training geometries."""
    train, test = LINES["zno_vertical"].frames()
    n = 30 if quick else 300
    for name, options in ZNO.items():
        if quick and name != "charge-aware":
            continue
        model, seconds = fitted(
            train, **{"short_range": sharp(n, r_cut=6.0, sigma=0.6, delta=0.3), **options}
        )
        found = model.evaluate(test)
        aware = name == "charge-aware"
        yield row(f"zno_vertical on GFN2-xTB, {name}: energy", 1e3 * found["energy"].rmse, "meV/atom")
        yield row(
            f"zno_vertical on GFN2-xTB, {name}: forces",
            1e3 * found["forces"].rmse,
            "meV/Å",
            "<= 150" if aware else "",
        )
        yield row(f"zno_vertical on GFN2-xTB, {name}: dipole", found["dipole"].rmse, "e·Å")
        for what, error in zip(
            ("ionisation energy", "electron affinity"), vertical_errors(model, test), strict=True
        ):
            yield row(f"zno_vertical, {what}, {name}", error, "eV", "<= 0.05" if aware else "")
        yield row(f"zno_vertical on GFN2-xTB, {name}: fit", seconds, "s")
    bare = [kqeq.baselines.TightBinding("gfn2").evaluate(s).energy for s in map(read_structure, test)]
    errors = _vertical(test, bare)
    yield row("zno_vertical, ionisation energy, GFN2-xTB itself", errors[0], "eV")
    yield row("zno_vertical, electron affinity, GFN2-xTB itself", errors[1], "eV")


def nma(quick: bool) -> Iterator[Row]:
    source = public("nma_field.xyz")
    if source is None:
        return
    frames = read(source, ":")
    order = np.random.default_rng(0).permutation(len(frames))
    train = [frames[int(i)] for i in order[: 20 if quick else 200]]
    test = [frames[int(i)] for i in (order[200:230] if quick else order[200:])]
    learn = "kernel"
    m = 30 if quick else 150
    # 150 of the 200 fitted, 50 tested: 39.0 meV/Å with the sharp kernel alone, 29.7 with both.  Where the baseline
    # polarises too much nothing on top can take it back, so a part of it: 1, 0.75, 0.7 and 0.5 of it 29.7, 30.4, 31.4
    # and 42.7 meV/Å, 0.148, 0.070, 0.065 and 0.057 Å³
    energy = [
        sharp(4 * m, delta=1.0),
        sharp(5 * m // 2, r_cut=4.0, sigma=0.4, zeta=3, delta=1.0),
    ]
    for baseline, words, sites in (("gfn2", "GFN2-xTB", 40), ("0.7*gfn2", "0.7 of GFN2-xTB", 80)):
        if quick and baseline != "gfn2":
            continue
        model, seconds = fitted(
            train,
            baseline=baseline,
            electronegativity=sharp(m, r_cut=4.0, sigma=0.3, n_max=6, l_max=4),
            short_range=energy,
            charges=kqeq.AtomicDipoles(kqeq.ACKS2(softness=learn, hardness=learn), polarizability=learn),
            site_kernel=sharp(sites, r_cut=4.0, sigma=0.3, n_max=6, l_max=4),
            noise={"energy": 5e-4, "forces": 0.02, "dipole": 0.005, "polarizability": 0.002},
            max_iterations=4 if quick else 30,
        )
        found = model.evaluate(test)
        name = f"NMA in fields, {len(train)} on {words}: "
        yield row(name + "energy", 1e3 * found["energy"].rmse, "meV/atom", "<= 0.5")
        yield row(name + "forces", 1e3 * found["forces"].rmse, "meV/Å", "<= 28")
        yield row(name + "dipole", found["dipole"].rmse, "e·Å", "<= 0.01")
        yield row(name + "polarizability", COULOMB * found["polarizability"].rmse, "Å³", "<= 0.05")
        yield row(name + "fit", seconds, "s")


def nma_all(quick: bool) -> Iterator[Row]:
    """Energies, forces and dipoles of the first 1000; polarizabilities alone ask for parameters by kernel (``nma``)."""
    source = public("nma_field.xyz")
    if source is None:
        return
    frames = read(source, ":")
    train, test = (frames[:40], frames[1000::10]) if quick else (frames[:1000], frames[1000:])
    chi, near, wide = (30, 60, 40) if quick else (150, 800, 600)
    model, seconds = fitted(
        train,
        electronegativity=sharp(chi, r_cut=4.0, sigma=0.3, n_max=6, l_max=4),
        short_range=[sharp(near, delta=1.0), sharp(wide, r_cut=4.0, sigma=0.4, zeta=3, delta=1.0)],
        targets=["energy", "forces", "dipole"],
        noise={"energy": 3e-4, "forces": 0.01, "dipole": 0.005},
        max_iterations=6,
    )
    found = model.evaluate(test)
    name = f"NMA in fields, {len(train)} on GFN2-xTB, QEq: "
    yield row(name + "energy", 1e3 * found["energy"].rmse, "meV/atom")
    yield row(name + "forces", 1e3 * found["forces"].rmse, "meV/Å", "" if quick else "<= 10")
    yield row(name + "dipole", found["dipole"].rmse, "e·Å")
    yield row(name + "fit", seconds, "CPU s")


def curves(quick: bool) -> Iterator[Row]:
    """Learning curves of QEq and one sharp short-range kernel, the same settings with and without a baseline.

    Smaller sets are parts of larger ones.  Alkanes and water are the lines of the accuracy table, which have fewer than
    400 frames; N-methylacetamide is drawn from the first 1000 of its file and tested on every second of the last 289;
    dipeptides are tested on the validation file.
    """
    sets: dict[str, tuple[list[Atoms], list[Atoms]]] = {
        name: LINES[name].frames() for name in ("alkanes", "water")
    }
    field = public("nma_field.xyz")
    if field is not None:
        frames = read(field, ":")
        sets["NMA in fields"] = frames[:1000], frames[1000::2]
    pair = public("dipeptides_train.xyz"), public("dipeptides_val.xyz")
    if pair[0] is not None and pair[1] is not None:
        sets["dipeptides"] = read(pair[0], ":"), read(pair[1], ":")
    few, many = (20, 40) if quick else (100, 500)
    for name, (frames, test) in sets.items():
        known = set(np.concatenate([atoms.numbers for atoms in test]).tolist())
        sizes = (10,) if quick else (10, 25, 50, 100, 200, 400)
        for n in [n for n in sizes if n < len(frames)] + (
            [] if quick or len(frames) > 400 else [len(frames)]
        ):
            train = first(frames, n, 0)
            if not known <= set(np.concatenate([atoms.numbers for atoms in train]).tolist()):
                continue  # an element of the test frames is missing
            for what, baseline in (("without", None), ("on GFN2-xTB", "gfn2")):
                model, seconds = fitted(
                    train,
                    baseline=baseline,
                    electronegativity=sharp(few, r_cut=4.0, sigma=0.3, n_max=6, l_max=4),
                    short_range=sharp(many),
                    targets=["energy", "forces", "dipole"],
                )
                found = model.evaluate(test[::5] if quick else test)
                start = f"{name}, {len(train)} frames, {what}: "
                yield row(start + "energy", 1e3 * found["energy"].rmse, "meV/atom")
                yield row(start + "forces", 1e3 * found["forces"].rmse, "meV/Å")
                yield row(start + "dipole", found["dipole"].rmse, "e·Å")
                yield row(start + "fit", seconds, "CPU s")


def steps(quick: bool) -> Iterator[Row]:
    train, test = LINES["water"].frames()
    atoms = max(test, key=len)
    n = 30 if quick else 300
    settings = {"electronegativity": sharp(n // 2), "short_range": sharp(n)}
    models = {
        "model alone": kqeq.KQEq(**settings).fit(train),
        "on GFN2-xTB": kqeq.KQEq(**settings, baseline="gfn2").fit(train),
    }
    rng = np.random.default_rng(0)
    moved = [0.004 * rng.normal(size=(len(atoms), 3)) for _ in range(5 if quick else 40)]
    for name, model in models.items():
        copy = Atoms(atoms.numbers, atoms.positions)
        copy.info["total_charge"] = atoms.info["total_charge"]
        copy.calc = kqeq.KQEqCalculator(model)
        copy.get_forces()
        started = time.process_time()
        for change in moved:
            copy.positions += change
            copy.get_forces()
        milliseconds = 1e3 * (time.process_time() - started) / len(moved)
        yield row(f"one step of {len(atoms)} atoms of water: {name}", milliseconds, "CPU ms")
    session = kqeq.baselines.TightBinding("gfn2").session()
    copy = Atoms(atoms.numbers, atoms.positions)
    session.evaluate(read_structure(copy))
    started = time.process_time()
    for change in moved:
        copy.positions += change
        session.evaluate(read_structure(copy))
    milliseconds = 1e3 * (time.process_time() - started) / len(moved)
    yield row(f"one step of {len(atoms)} atoms of water: GFN2-xTB alone", milliseconds, "CPU ms")


SECTIONS = {
    "qm9": qm9,
    "water": water,
    "dipeptides": dipeptides,
    "zno_vertical": zno_vertical,
    "nma": nma,
    "nma_all": nma_all,
    "dipeptides_all": dipeptides_all,
    "curves": curves,
    "steps": steps,
}

if __name__ == "__main__":
    main(__doc__ or "", SECTIONS)
