"""A baseline under kQEq: stable dynamics from few frames.

A potential fitted to a handful of frames knows nothing of geometries that are not among them, and dynamics
finds those within femtoseconds. A baseline is a known potential that is subtracted from the labels and added
to predictions: the fit learns a small smooth difference, and where it knows nothing the baseline remains.
Here it is GFN1-xTB, through the ASE calculator of tblite (`pip install tblite`). Without tblite the example
runs with the built-in screened repulsion of nuclei, `baseline="zbl"`, which only keeps atoms apart.

Left: test errors of the forces for water trimers to pentamers against the number of training frames. Right:
for how long Langevin dynamics of a pentamer at 300 K stays intact: an O–H bond beyond 1.6 Å or two atoms
closer than 0.6 Å end it.

The baseline is a plain function of the geometry: it feels neither the model's charges nor the field, and adds
nothing to dipole or polarizability; those come from kQEq alone. It costs what it costs: a step takes as long
as a GFN1-xTB calculation.

ZBL is *not* a good baseline for water: its switch reaches to the sum of the covalent radii, which is the
length of an O–H bond, so that the fit has to undo it where it matters most. It is for dense or hot systems of
heavier atoms.
"""

import time
import warnings

import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin

import example
import kqeq

SYSTEMS = ("water3", "water4", "water5")
TEMPERATURE, STEP = 300.0, 0.5  # K, fs
COLOURS = {"no baseline": "short-range", "ZBL": "ACKS2", "GFN1-xTB": "ACKS2 + dipoles"}


def baselines():
    """Baselines by name: none, the built-in one, and tblite's where it is installed."""
    found = {"no baseline": None, "ZBL": "zbl"}
    try:
        from tblite.ase import TBLite
    except ImportError:
        print("tblite is not installed: no GFN1-xTB in this run (pip install tblite)")
        return found
    return {**found, "GFN1-xTB": TBLite(method="GFN1-xTB", verbosity=0)}


def lifetime(model, start, steps, seed):
    """How long dynamics stays intact, fs."""
    atoms = Atoms(start.numbers, start.positions)
    atoms.calc = kqeq.KQEqCalculator(model)
    rng = np.random.default_rng(seed)
    spread = np.sqrt(units.kB * TEMPERATURE * atoms.get_masses())
    atoms.set_momenta(spread[:, None] * rng.normal(size=(len(atoms), 3)))
    thermostat = {"temperature_K": TEMPERATURE, "friction": 0.02 / units.fs, "fixcm": False, "rng": rng}
    dynamics = Langevin(atoms, STEP * units.fs, **thermostat)
    oxygen = atoms.numbers == 8
    for done in range(0, steps, 10):
        try:
            dynamics.run(10)
        except kqeq.errors.KQEqError:  # atoms on top of each other
            return done * STEP
        distances = atoms.get_all_distances()
        bonds = distances[~oxygen][:, oxygen].min(axis=1)
        if bonds.max() > 1.6 or distances[np.triu_indices(len(atoms), 1)].min() < 0.6:
            return done * STEP
    return steps * STEP


def main(argv=None):
    """Fit with each baseline and growing training sets; test forces; run dynamics."""
    options = example.options(__doc__, argv)
    sizes, steps, runs = ((3, 6), 60, 1) if options.quick else ((3, 6, 12, 24), 400, 3)
    train, test = ([a for a in part if a.info["system"] in SYSTEMS] for part in kqeq.datasets.split("water"))
    pentamer = next(a for a in test if a.info["system"] == "water5")
    rows, errors, times = [], {}, {}
    for name, baseline in baselines().items():
        for size in sizes:
            started = time.perf_counter()
            # every so many-th frame: all sizes of cluster from the start
            model = kqeq.KQEq(baseline=baseline).fit(train[:: len(train) // size][:size])
            found = model.evaluate(test)
            errors[name, size] = 1e3 * found["forces"].rmse
            fitted = time.perf_counter() - started
            rows.append(
                [
                    name,
                    size,
                    f"{1e3 * found['energy'].rmse:.1f}",
                    f"{errors[name, size]:.0f}",
                    "–",
                    "–",
                    f"{fitted:.1f}",
                ]
            )
            if size not in sizes[1::2]:
                continue  # dynamics takes most of the time of this example
            with warnings.catch_warnings():
                # a broken trajectory may overflow on its way
                warnings.simplefilter("ignore", RuntimeWarning)
                times[name, size] = [lifetime(model, pentamer, steps, seed) for seed in range(runs)]
            alive = sum(t >= steps * STEP for t in times[name, size])
            rows[-1][4:6] = f"{np.mean(times[name, size]):.0f}", f"{alive} of {runs}"

    figure, axes = example.panels(2, width=3.6, height=3.1)
    for name in dict.fromkeys(name for name, _ in errors):
        style = {
            "color": example.COLOURS[COLOURS[name]],
            "marker": example.MARKERS[COLOURS[name]],
            "label": name,
        }
        axes[0].plot(sizes, [errors[name, size] for size in sizes], **style)
    axes[0].set(
        xscale="log", yscale="log", xlabel="training frames", ylabel="test RMSE of the forces (meV/Å)"
    )
    axes[0].set_xticks(sizes, [str(size) for size in sizes])
    axes[0].minorticks_off()
    axes[0].legend()
    places = np.arange(len(times))
    for place, (name, _) in zip(places, times, strict=True):
        spans = list(times.values())[place]
        style = {"color": example.COLOURS[COLOURS[name]]}
        axes[1].bar(place, np.mean(spans), 0.7, alpha=0.5, **style)
        axes[1].plot(np.full(runs, place), spans, "o", **style)
    axes[1].axhline(steps * STEP, color="0.7", linewidth=0.8, zorder=0)
    axes[1].annotate("end of the run", (places[0] - 0.4, steps * STEP), fontsize=8, va="bottom")
    axes[1].set_xticks(places, [f"{name}\n{size} frames" for name, size in times], fontsize=7.5, rotation=25)
    axes[1].set(ylabel="time until something breaks (fs)", ylim=(0.0, 1.15 * steps * STEP))

    header = [
        "baseline",
        "frames",
        "energy, meV/atom",
        "forces, meV/Å",
        "intact for, fs",
        "whole run",
        "fit, s",
    ]
    notes = (
        f"Test RMSE on {len(test)} PBE0 frames of independent trajectories; {runs} run(s) of {steps * STEP:.0f} fs "
        f"of Langevin dynamics at {TEMPERATURE:.0f} K where a time is given, mean time until an O–H bond is longer "
        "than 1.6 Å or two atoms are closer than 0.6 Å."
    )
    example.finish(options, "09_baseline", figure, header, rows, notes)


if __name__ == "__main__":
    main()
