"""The whole calculator: energy, forces and stress, as a user's MD step sees them.

    python benchmarks/prediction.py [--quick] [--json FILE] [--only SECTION ...]
    python benchmarks/prediction.py --against REV [--quick] [--json FILE] [--only CASE ...]    (see against.py)

Models are built, not fitted: representatives are environments of water, coefficients are random.  What a step costs
does not depend on their values.  Every ratio is taken between minima of alternating runs in one process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import molecule

import kqeq
from common import Row, main, row
from kqeq.fitting.report import FitReport
from kqeq.frames.structures import Structure, read_structure
from kqeq.kernels import FeatureMap, SOAPKernel
from kqeq.kernels.representatives import build_feature_map
from kqeq.potential import Potential, SiteModel


def water_box(side: int, *, periodic: bool = True, seed: int = 1) -> Atoms:
    """side³ water molecules at the density of the liquid, randomly turned."""
    rng = np.random.default_rng(seed)
    spacing = 3.105
    box = Atoms()
    parts = []
    for place in np.ndindex(side, side, side):
        one = molecule("H2O")
        one.rotate(rng.uniform(0, 360), rng.normal(size=3))
        one.positions += (np.array(place) + 0.5) * spacing + rng.normal(scale=0.1, size=3)
        parts.append(one)
    box = Atoms(
        np.concatenate([p.numbers for p in parts]), positions=np.concatenate([p.positions for p in parts])
    )
    box.cell, box.pbc = [side * spacing] * 3, periodic
    return box


def _site_model(kernel: SOAPKernel, structures: list[Structure], rng: np.random.Generator) -> SiteModel:
    species = tuple(sorted({z for s in structures for z in s.species}))
    feature_map: FeatureMap = build_feature_map(kernel, structures, species)
    coefficients = {
        z: rng.normal(size=rows.shape[0]) * 1e-2 for z, rows in feature_map.representatives.items()
    }
    return SiteModel(((feature_map, coefficients),), dict.fromkeys(species, 5.0))


def default_model(structures: list[Structure]) -> kqeq.KQEq:
    """The sums of kernels that are the default now, 150 representatives an element in each kernel, with charges."""
    from kqeq.kernels.settings import automatic_electronegativity, automatic_short_range

    rng = np.random.default_rng(0)
    species = tuple(sorted({z for s in structures for z in s.species}))

    def summed(kernels: tuple[SOAPKernel, ...], offset: float) -> SiteModel:
        parts = [_site_model(k.set_params(n_representatives=150), structures, rng).terms[0] for k in kernels]
        return SiteModel(tuple(parts), dict.fromkeys(species, offset))

    model = kqeq.KQEq()
    potential = Potential(
        species=species,
        energy_offsets=dict.fromkeys(species, 0.0),
        electronegativity=summed(automatic_electronegativity(), 5.0),
        charges=kqeq.QEq(),
        short_range=summed(automatic_short_range(), 0.0),
        baseline=None,
        training_charges=(0.0, 1.0),
        has_energy=True,
    )
    model._set_fitted(potential, FitReport(0, 0, 0, 0, {}, {}, {}, (), True, 0.0, 0.0, ()), None)
    return model


def built_model(structures: list[Structure], *, charges: bool, n_representatives: int = 400) -> kqeq.KQEq:
    """A model that predicts at full cost without having been fitted."""
    rng = np.random.default_rng(0)
    short = SOAPKernel(r_cut=5.0, n_max=8, l_max=6, sigma=0.5, zeta=4, n_representatives=n_representatives)
    chi = SOAPKernel(r_cut=4.0, n_max=6, l_max=4, sigma=0.3, zeta=2, n_representatives=n_representatives)
    model = kqeq.KQEq(short_range=short, **({} if charges else {"electronegativity": None, "charges": None}))
    species = tuple(sorted({z for s in structures for z in s.species}))
    potential = Potential(
        species=species,
        energy_offsets=dict.fromkeys(species, 0.0),
        electronegativity=_site_model(chi, structures, rng) if charges else None,
        charges=kqeq.QEq() if charges else None,
        short_range=_site_model(short, structures, rng),
        baseline=None,
        training_charges=(0.0, 1.0),
        has_energy=True,
    )
    report = FitReport(0, 0, 0, 0, {}, {}, {}, (), True, 0.0, 0.0, ())
    model._set_fitted(potential, report, None)
    return model


def fastest(task: Callable[[], Any], rounds: int) -> float:
    """Shortest time of a few runs, s."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        task()
        times.append(time.perf_counter() - start)
    return min(times)


def _step(atoms: Atoms, names: tuple[str, ...]) -> Callable[[], None]:
    rng = np.random.default_rng(3)

    def task() -> None:
        atoms.positions += rng.normal(scale=1e-3, size=atoms.positions.shape)
        for name in names:
            atoms.calc.get_property(name, atoms)

    return task


def periodic_water(quick: bool) -> Iterator[Row]:
    """Short-range model with 400 representatives, periodic water."""
    from dscribe.descriptors import SOAP

    sources = [read_structure(water_box(5, seed=seed)) for seed in range(2, 6)]
    model = built_model(sources, charges=False)
    soap = SOAP(species=["H", "O"], r_cut=5.0, n_max=8, l_max=6, sigma=0.5, periodic=True)
    sides = (5, 10) if quick else (5, 10, 16)
    sizes, times = [], []
    for side in sides:
        atoms = water_box(side)
        atoms.calc = kqeq.KQEqCalculator(model)
        task = _step(atoms, ("forces", "energy", "stress"))
        task()
        rounds = 7 if side == 5 else 3
        seconds = fastest(task, rounds)
        sizes.append(len(atoms))
        times.append(seconds)
        yield row(f"energy + forces + stress, {len(atoms)} atoms", 1e3 * seconds / len(atoms), "ms/atom")
        if side == 5:
            plain = atoms.copy()
            create = fastest(partial(soap.create, plain), 7)
            seconds = min(seconds, fastest(task, rounds))
            yield row(f"the same / one dscribe create, {len(atoms)} atoms", seconds / create, "", "<= 8")
    exponent = float(np.polyfit(np.log(sizes), np.log(times), 1)[0])
    yield row(f"growth exponent, {sizes[0]} to {sizes[-1]} atoms", exponent, "", "<= 1.1")


def molecule_step(quick: bool) -> Iterator[Row]:
    """A 20-atom molecule: short-range kernel alone, and with charges and a kernel of their own."""
    frames = [a for a in kqeq.datasets.load("alkanes") if len(a) == 20]
    structures = [read_structure(a) for a in kqeq.datasets.load("alkanes")]
    for charges, name in ((False, "short-range"), (True, "QEq + short-range")):
        model = built_model(structures, charges=charges)
        atoms = frames[0].copy()
        atoms.info = {}
        atoms.calc = kqeq.KQEqCalculator(model)
        task = _step(atoms, ("forces", "energy"))
        task()
        times = sorted(fastest(task, 1) for _ in range(50 if quick else 300))
        yield row(f"energy + forces, 20 atoms, {name}, fastest", 1e3 * times[0], "ms", "<= 3")
        yield row(f"energy + forces, 20 atoms, {name}, median", 1e3 * times[len(times) // 2], "ms", "<= 3")


def full_model(quick: bool) -> Iterator[Row]:
    """KQEq and short-range with 400 representatives, 375-atom periodic water."""
    sources = [read_structure(water_box(5, seed=seed)) for seed in range(2, 6)]
    model = built_model(sources, charges=True)
    atoms = water_box(5)
    atoms.calc = kqeq.KQEqCalculator(model)
    task = _step(atoms, ("forces", "energy", "stress"))
    try:
        task()
    except kqeq.errors.UnsupportedError:
        yield row("full model, energy + forces + stress, 375 atoms", None, "ms/atom", "<= 0.5")
        return
    yield row(
        "full model, energy + forces + stress, 375 atoms", 1e3 * fastest(task, 7) / 375, "ms/atom", "<= 0.5"
    )


SECTIONS = {"molecule_step": molecule_step, "periodic_water": periodic_water, "full_model": full_model}

if __name__ == "__main__":
    import sys
    import warnings

    if any(word.startswith("--against") for word in sys.argv[1:]):
        import against

        against.main(sys.argv[1:])
        sys.exit()
    warnings.simplefilter("ignore", kqeq.errors.KQEqWarning)
    main(__doc__ or "", SECTIONS)
