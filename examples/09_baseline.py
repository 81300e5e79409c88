"""Learning on top of tight binding: a charged molecule in a field from a few frames.

A baseline is known before the fit: its energies, forces, dipoles are subtracted from the labels and added to
predictions, so that the fit learns a small smooth difference, and where it knows nothing the baseline remains. GFN2-xTB
knows the total charge and the field; the charge model on top solves for charges that sum to zero, and everything
reported is a derivative of the whole energy (`pip install "kqeq[xtb]"`, `baseline="gfn2"`).

Left: test errors of the forces for water clusters and hydronium, with and without the baseline, against the number of
training frames; kernels and noises are the defaults in both. Middle: of the dipoles. Right: Langevin dynamics of
hydronium with one water, H5O2(+), for 20 ps at 400 K in a field of 0.1 V/Å; no training frame holds H5O2(+), and none has
a field. The distance of the two oxygen atoms is drawn until something breaks: an oxygen-hydrogen distance below 0.7 Å, a
hydrogen more than 2 Å from both oxygens, or oxygens more than 4 Å apart. The centre of mass is held, because the field
pulls at the charge.

From 12 frames the model without a baseline pushes the oxygen atoms into each other within 3.2 ps. From 48 it holds
together, with the oxygens 2.9 Å apart on average. On GFN2-xTB both hold for 20 ps, and from 48 frames the distance is
2.5 Å. No reference dynamics was run: which distance is right is not shown.

A step costs what a GFN2-xTB calculation costs and what the model costs, a few milliseconds each here.

Without tblite the example runs with `baseline="zbl"` instead, which only keeps atoms apart.
"""

import importlib.util
import time
import warnings

import joblib
import numpy as np
from ase import Atoms, units
from ase.constraints import FixCom
from ase.md.langevin import Langevin

import example
import kqeq

FIELD = (0.0, 0.0, 0.1)  # V/Å
TEMPERATURE, STEP = 400.0, 1.0  # K, fs
STYLES = {"no baseline": "short-range", "ZBL": "ACKS2", "GFN2-xTB": "ACKS2 + dipoles"}
EVERY = 20  # steps between two looks at the molecule


def baselines():
    """Baselines by name."""
    if importlib.util.find_spec("tblite") is None:
        print('tblite is not installed: no GFN2-xTB in this run (pip install "kqeq[xtb]")')
        return {"no baseline": None, "ZBL": "zbl"}
    return {"no baseline": None, "GFN2-xTB": "gfn2"}


def zundel():
    """H5O2(+), roughly."""
    return Atoms(
        "OOH5",
        [
            [0.0, 0.0, 1.2],
            [0.0, 0.0, -1.2],
            [0.0, 0.0, 0.05],
            [0.78, 0.2, 1.65],
            [-0.78, 0.2, 1.65],
            [0.2, 0.78, -1.65],
            [0.2, -0.78, -1.65],
        ],
    )


def dynamics(model, steps, seed):
    """Distances of the oxygen atoms (Å), every EVERY steps until something breaks, and milliseconds of CPU for a step."""
    atoms = zundel()
    atoms.set_constraint(FixCom())
    atoms.calc = kqeq.KQEqCalculator(model, total_charge=1, external_field=FIELD)
    rng = np.random.default_rng(seed)
    spread = np.sqrt(units.kB * TEMPERATURE * atoms.get_masses())
    atoms.set_momenta(spread[:, None] * rng.normal(size=(len(atoms), 3)))
    thermostat = {"temperature_K": TEMPERATURE, "friction": 0.02 / units.fs, "fixcm": False, "rng": rng}
    langevin = Langevin(atoms, STEP * units.fs, **thermostat)
    between, began = [], time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a broken trajectory may overflow on its way
        while langevin.nsteps < steps:
            try:
                langevin.run(EVERY)
            except kqeq.errors.KQEqError:  # atoms on top of each other
                break
            distances = atoms.get_all_distances()
            bonds = distances[2:, :2]
            if bonds.min() < 0.7 or bonds.min(axis=1).max() > 2.0 or distances[0, 1] > 4.0:
                break
            between.append(distances[0, 1])
    return np.array(between), 1e3 * (time.process_time() - began) / max(langevin.nsteps, 1)


def main(argv=None):
    """Fit with each baseline and growing training sets; test; run dynamics."""
    options = example.options(__doc__, argv)
    sizes, steps = ((6, 9), 40) if options.quick else ((12, 24, 48), 20_000)
    train, test = kqeq.datasets.split("water", method="PBE0/def2-svp")
    if options.quick:
        test = test[::4]
    errors, texts, moving = {}, {}, {}
    names = baselines()
    for name, baseline in names.items():
        for size in sizes:
            started = time.process_time()
            # spread over the file: all sizes of cluster, and the ion, from the start
            chosen = [train[int(i)] for i in np.linspace(0, len(train) - 1, size).round()]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", kqeq.errors.RepresentativesWarning)
                model = kqeq.KQEq(baseline=baseline).fit(chosen, optimize=None)
            found = model.evaluate(test)
            fitted = time.process_time() - started
            errors[name, size] = 1e3 * found["forces"].rmse, found["dipole"].rmse
            texts[name, size] = [
                f"{1e3 * found['energy'].rmse:.1f}",
                f"{errors[name, size][0]:.0f}",
                f"{errors[name, size][1]:.3f}",
                f"{fitted:.1f}",
            ]
            if size in (sizes[0], sizes[-1]):
                moving[name, size] = model
    moving = dict(sorted(moving.items(), key=lambda item: item[0][1]))  # the fewest frames first
    runs = joblib.Parallel(n_jobs=1 if options.quick else 2)(
        joblib.delayed(dynamics)(model, steps, 0) for model in moving.values()
    )
    runs = dict(zip(moving, runs, strict=True))

    figure, axes = example.panels(3, width=3.2, height=3.0)
    labels = ("test RMSE of the forces (meV/Å)", "test RMSE of the dipole (e·Å)")
    for name in names:
        style = {
            "color": example.COLOURS[STYLES[name]],
            "marker": example.MARKERS[STYLES[name]],
            "label": name,
        }
        for k in range(2):
            axes[k].plot(sizes, [errors[name, size][k] for size in sizes], **style)
    for k, label in enumerate(labels):
        axes[k].set(xscale="log", yscale="log", xlabel="training frames", ylabel=label)
        axes[k].set_xticks(sizes, [str(size) for size in sizes])
        axes[k].minorticks_off()
    axes[0].legend()
    per_sample = EVERY * STEP * 1e-3  # ps
    for (name, size), (between, _) in runs.items():
        style = {"color": example.COLOURS[STYLES[name]], "ls": "-" if size == sizes[-1] else ":"}
        if size == sizes[-1] or len(between) * EVERY < steps:
            times = per_sample * np.arange(1, len(between) + 1)
            axes[2].plot(times, between, lw=0.6, label=f"{name}, {size} frames", **style)
            if len(between) * EVERY < steps:
                axes[2].plot(times[-1:], between[-1:], "x", ms=8, mew=2, color=example.COLOURS["highlight"])
    axes[2].set(
        xlabel="time (ps)", ylabel="O–O distance in H5O2(+) (Å)", xlim=(0, 1.02 * steps * STEP * 1e-3)
    )
    axes[2].legend()
    for axis, title in zip(axes, ("forces", "dipoles", "H5O2(+) at 400 K in a field"), strict=True):
        axis.set_title(title)

    header = [
        "baseline",
        "frames",
        "energy, meV/atom",
        "forces, meV/Å",
        "dipole, e·Å",
        "intact for, ps",
        "O–O distance, Å",
        "CPU ms/step",
        "fit and test, CPU s",
    ]
    rows = []
    for (name, size), (*cells, fitted) in texts.items():
        moved = ["–"] * 3
        if (name, size) in runs:
            between, cost = runs[name, size]
            whole = len(between) * EVERY >= steps
            moved = [
                f"{'' if whole else 'broke at '}{per_sample * len(between):.3g}",
                f"{between.mean():.2f} ± {between.std():.2f}" if len(between) else "–",
                f"{cost:.1f}",
            ]
        rows.append([name, size, *cells, *moved, fitted])
    length = f"{steps * STEP * 1e-3:g} ps with a step of {STEP:g} fs"
    notes = (
        f"Test RMSE on {len(test)} PBE0 frames of independent trajectories: (H2O)1 to (H2O)5 and H3O(+); default kernels "
        "and noises, without the search for better ones. For the fewest and the most frames one run of Langevin dynamics "
        f"of H5O2(+), up to {length}, at {TEMPERATURE:.0f} K in a field of {FIELD[2]:g} V/Å: mean and standard deviation "
        "of the O–O distance while it is intact."
    )
    example.finish(options, "09_baseline", figure, header, rows, notes)


if __name__ == "__main__":
    main()
