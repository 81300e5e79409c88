#!/usr/bin/env python3
"""The figure of the front page: ``python docs/hero.py [--output docs/generated]`` writes hero.png; half a minute."""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))

import example  # noqa: E402
import kqeq  # noqa: E402
from kqeq.constants import COULOMB  # noqa: E402
from kqeq.fitting.learning import learn_from_polarizabilities  # noqa: E402
from kqeq.frames.structures import read_structure  # noqa: E402

LEARN = "learn"
MODELS = {
    "QEq": kqeq.QEq(LEARN, LEARN),
    "ACKS2 + dipoles": kqeq.AtomicDipoles(kqeq.ACKS2(LEARN, LEARN, LEARN), LEARN),
}
LEARNED_TO = 6  # carbon atoms


def with_and_without(train):
    """A short-range model and one with charges, noise of each by evidence, with the style of their points."""
    yield (
        kqeq.KQEq(electronegativity=None, charges=None).fit(train, optimize="evidence"),
        {"label": "without charges", "color": example.COLOURS["short-range"], "marker": "s"},
    )
    yield (
        kqeq.KQEq().fit(train, optimize="evidence"),
        {"label": "with charges", "color": example.COLOURS["QEq"], "marker": "o"},
    )


def scatter(axis, x, errors, style, digits):
    """Errors against the reference, with their root mean square in the legend."""
    style = {**style, "label": f"{style['label']}: {np.sqrt(np.mean(errors**2)):.{digits}f}"}
    axis.plot(x, errors, linestyle="none", markersize=3.5, markeredgewidth=0, alpha=0.8, **style)


def charge_states(energy_axis, force_axis):
    """Errors of energies and forces of Zn3O3 and its anion, on geometries of another trajectory."""
    # energies of two basis sets cannot be compared; anions in that of the neutral cluster are in zno_vertical
    train, test = kqeq.datasets.split("zno", "zno_vertical", method="PBE0/def2-svp", total_charges=(-1, 0))
    energy = np.array([a.get_potential_energy() for a in test])
    force = np.concatenate([a.get_forces().ravel() for a in test])
    charge = np.array([a.info["total_charge"] for a in test])
    atoms, zero = len(test[0]), energy[charge == 0].mean()
    for model, style in with_and_without(train):
        found = model.predict(test, properties=["energy", "forces"])
        off = np.array([p.energy for p in found]) - energy
        scatter(energy_axis, energy - zero, 1e3 * off / atoms, style, 1)
        off = np.concatenate([p.forces.ravel() for p in found]) - force
        scatter(force_axis, force, 1e3 * off, style, 0)
    for name, q in (("Zn₃O₃", 0), ("Zn₃O₃⁻", -1)):
        place = (energy[charge == q].mean() - zero, 0.03)
        energy_axis.annotate(name, place, xycoords=("data", "axes fraction"), ha="center")
    energy_axis.set(
        xlabel="DFT energy (eV)",
        ylabel="error of the energy (meV/atom)",
        title="energies of two charge states",
    )
    energy_axis.margins(x=0.12)
    force_axis.set(
        xlabel="DFT force component (eV/Å)",
        ylabel="error of the force (meV/Å)",
        title="and their forces",
    )


def alkanes(axis):
    """Longitudinal polarizability per carbon atom against length."""
    frames = [a for a in kqeq.datasets.load("polarizability") if a.info["system"].startswith("alkane")]
    frames.sort(key=len)
    carbons = np.array([np.sum(a.numbers == 6) for a in frames])
    tensors = [np.reshape(a.info["polarizability"], (3, 3)) for a in frames]
    structures = [read_structure(a) for a in frames]
    short = np.flatnonzero(carbons <= LEARNED_TO)

    def along(values):
        return COULOMB * np.array([np.linalg.eigvalsh(alpha)[-1] for alpha in values]) / carbons

    for name, model in MODELS.items():
        learned = learn_from_polarizabilities(
            model, [structures[i] for i in short], [tensors[i] for i in short], noise=0.02 / COULOMB
        )
        values = along([learned.bind(structure).polarizability() for structure in structures])
        axis.plot(carbons, values, color=example.COLOURS[name], marker=example.MARKERS[name], label=name)
    axis.plot(carbons, along(tensors), "x", color="black", markersize=6, label="DFT (PBE0)", zorder=3)
    axis.axvspan(carbons.min() - 0.5, LEARNED_TO + 0.5, color="0.94", zorder=-1)
    axis.annotate(
        "learned here", (carbons.min() - 0.2, 0.97), xycoords=("data", "axes fraction"), fontsize=8, va="top"
    )
    axis.set(
        xlabel="carbon atoms of the alkane",
        ylabel="longitudinal polarizability per C (Å³)",
        title="response to a field, and size",
        xlim=(carbons.min() - 0.5, carbons.max() + 0.5),
    )
    axis.margins(y=0.25)
    axis.legend(loc="lower right")


def main(argv=None):
    """Draw the three panels."""
    output = Path(argv[argv.index("--output") + 1]) if argv and "--output" in argv else HERE / "generated"
    figure, axes = example.panels(3, width=3.3, height=3.1)
    charge_states(axes[0], axes[1])
    for axis in axes[:2]:
        axis.axhline(0.0, color="0.8", linewidth=0.8, zorder=0)
        axis.set_ylim(*(np.array([1.4, 2.1]) * axis.get_ylim()))  # room for names and legend
        axis.legend(loc="upper center", title="test RMSE", title_fontsize=8)
    alkanes(axes[2])
    figure.savefig(output / "hero.png")
    print(f"written: {output / 'hero.png'}")


if __name__ == "__main__":
    main(sys.argv[1:])
