"""Learning on top of tight binding: a charged molecule in a field from a few frames.

A baseline is known before the fit: its energies, forces, dipoles are subtracted from the labels and added to
predictions, so that the fit learns a small smooth difference, and where it knows nothing the baseline remains. GFN2-xTB
knows the total charge and the field; the charge model on top solves for charges that sum to zero, and everything
reported is a derivative of the whole energy (`pip install "kqeq[xtb]"`, `baseline="gfn2"`).

Left: test errors of the forces for water clusters and hydronium, with and without the baseline, against the number of
training frames. Middle: of the dipoles. Right: for how long Langevin dynamics of hydronium with one water, H5O2(+), at
400 K in a field of 0.1 V/Å stays intact; no training frame holds H5O2(+). An oxygen-hydrogen distance below 0.7 Å, a
hydrogen more than 2 Å from both oxygens or an oxygen-oxygen distance beyond 4 Å end it. The centre of mass is held,
because the field pulls at the charge.

A step costs what a GFN2-xTB calculation costs, a few milliseconds here.

Without tblite the example runs with `baseline="zbl"` instead, which only keeps atoms apart.
"""

import importlib.util
import time
import warnings

import numpy as np
from ase import Atoms, units
from ase.constraints import FixCom
from ase.md.langevin import Langevin

import example
import kqeq

FIELD = (0.0, 0.0, 0.1)  # V/Å
TEMPERATURE, STEP = 400.0, 0.5  # K, fs
STYLES = {"no baseline": "short-range", "ZBL": "ACKS2", "GFN2-xTB": "ACKS2 + dipoles"}


def sharp(n):
    """A kernel for what tight binding gets wrong, which is short-ranged."""
    return kqeq.SOAPKernel(r_cut=2.5, n_max=8, l_max=6, sigma=0.2, zeta=2, n_representatives=n)


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


def lifetime(model, steps, seed):
    """How long dynamics of the charged molecule in the field stays intact, fs."""
    atoms = zundel()
    atoms.set_constraint(FixCom())
    atoms.calc = kqeq.KQEqCalculator(model, total_charge=1, external_field=FIELD)
    rng = np.random.default_rng(seed)
    spread = np.sqrt(units.kB * TEMPERATURE * atoms.get_masses())
    atoms.set_momenta(spread[:, None] * rng.normal(size=(len(atoms), 3)))
    thermostat = {"temperature_K": TEMPERATURE, "friction": 0.02 / units.fs, "fixcm": False, "rng": rng}
    dynamics = Langevin(atoms, STEP * units.fs, **thermostat)
    for done in range(0, steps, 10):
        try:
            dynamics.run(10)
        except kqeq.errors.KQEqError:  # atoms on top of each other
            return done * STEP
        distances = atoms.get_all_distances()
        bonds = distances[2:, :2]
        if bonds.min() < 0.7 or bonds.min(axis=1).max() > 2.0 or distances[0, 1] > 4.0:
            return done * STEP
    return steps * STEP


def main(argv=None):
    """Fit with each baseline and growing training sets; test; run dynamics."""
    options = example.options(__doc__, argv)
    sizes, steps, runs = ((6, 9), 40, 1) if options.quick else ((6, 12, 24), 2000, 1)
    train, test = kqeq.datasets.split("water", method="PBE0/def2-svp")
    if options.quick:
        test = test[::4]
    rows, errors, lifetimes = [], {}, {}
    names = baselines()
    for name, baseline in names.items():
        for size in sizes:
            started = time.perf_counter()
            # spread over the file: all sizes of cluster, and the ion, from the start
            chosen = [train[int(i)] for i in np.linspace(0, len(train) - 1, size).round()]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", kqeq.errors.RepresentativesWarning)
                model = kqeq.KQEq(sharp(50), sharp(100), baseline=baseline, max_iterations=100).fit(chosen)
            found = model.evaluate(test)
            fitted = time.perf_counter() - started
            errors[name, size] = 1e3 * found["forces"].rmse, found["dipole"].rmse
            text = [
                f"{1e3 * found['energy'].rmse:.1f}",
                f"{errors[name, size][0]:.0f}",
                f"{errors[name, size][1]:.3f}",
            ]
            rows.append([name, size, *text, "–", f"{fitted:.1f}"])
            if size == sizes[-2]:
                with warnings.catch_warnings():
                    # a broken trajectory may overflow on its way
                    warnings.simplefilter("ignore", RuntimeWarning)
                    lifetimes[name] = [lifetime(model, steps, seed) for seed in range(runs)]
                rows[-1][5] = f"{np.mean(lifetimes[name]):.0f}"

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
    for place, (name, spans) in enumerate(lifetimes.items()):
        style = {"color": example.COLOURS[STYLES[name]]}
        axes[2].bar(place, np.mean(spans), 0.6, alpha=0.5, **style)
        axes[2].plot(np.full(runs, place), spans, example.MARKERS[STYLES[name]], **style)
    axes[2].axhline(steps * STEP, color="0.7", linewidth=0.8, zorder=0)
    axes[2].set_xticks(range(len(lifetimes)), list(lifetimes))
    axes[2].set(ylabel="time until something breaks (fs)")
    axes[2].set_ylim(0.0, 1.15 * steps * STEP)

    header = [
        "baseline",
        "frames",
        "energy, meV/atom",
        "forces, meV/Å",
        "dipole, e·Å",
        "intact for, fs",
        "fit and test, s",
    ]
    notes = (
        f"Test RMSE on {len(test)} PBE0 frames of independent trajectories: (H2O)1 to (H2O)5 and H3O(+); {runs} run(s) "
        f"of {steps * STEP:.0f} fs of Langevin dynamics of H5O2(+) at {TEMPERATURE:.0f} K in a field of "
        f"{FIELD[2]:g} V/Å where a time is given."
    )
    example.finish(options, "09_baseline", figure, header, rows, notes)


if __name__ == "__main__":
    main()
