"""Charge states of one composition.

A short-range potential sees positions only. Where two charge states share a composition it gives both the
same energy and forces and can, at best, split the difference. A charge-equilibration model is told the total
charge.

Left: test errors of the forces, by family, under the same search of settings: without charges, with charges (QEq), and
with hardnesses that depend on the environment as well (`hardness="kernel"`). Where the same geometries carry two charge
states (Zn3O3 and its anion), and where charge moves along a chain (C10H2 and C10H3(+)), charges are worth a factor. Where
geometries alone tell the states apart they are worth nothing: Ag3(+) is a triangle and Ag3(−) a chain, and a short-range
model, which has less to learn, is the better one. Compare the two on frames that are left out before you choose
(`kqeq compare`).

Right: where the charge of C10H3(+) sits, for each carbon with its hydrogens; Hirshfeld charges of the same
DFT calculations for comparison, which no fit has seen. Both spread the positive charge over the whole chain,
most of it at the ends, and disagree about single atoms. Charges are not observable: these were learned from
energies, forces and dipoles.

What does not work: families with Zn3O3(+). Their energies follow, which a short-range model cannot do at all, but the
forces only little better than in a short-range model of the forces, neither with other charge states nor in a model of
the cation alone. The hole of this open-shell cation sits on one of three oxygen atoms, and where it goes is
learned from few frames. Labels need care too: a DFT calculation may end in a state tenths of an electronvolt above the
lowest, which no smooth energy can follow (`datasets/generate.py` looks for it). Where energies of three charge states
are asked for at once, remember that at a fixed geometry the energy is a parabola in the charge: two states determine it.
"""

import numpy as np

import example
import kqeq

FAMILIES = {
    "Ag3 +1, −1": ("ag3", (-1, 1)),
    "C10H2 0, C10H3 +1": ("carbon_chain", (0, 1)),
    "Na8Cl8 +1, Na9Cl8 +1": ("nacl", (1,)),
    "Zn3O3 −1, 0": ("zno", (-1, 0)),
    "Zn3O3 −1, 0, +1": ("zno", (-1, 0, 1)),
}
"""Data set and total charges."""
QUICK = ("Ag3 +1, −1", "Zn3O3 −1, 0")
MODELS = {
    "without charges": {"electronegativity": None, "charges": None},
    "with charges": {},
    "with charges, hardness by kernel": {"charges": kqeq.QEq(hardness="kernel")},
}
COLOURS = dict(zip(MODELS, ("short-range", "QEq", "QEq + dipoles"), strict=True))


def frames_of(family):
    """Training and test frames of a family, of one basis set: energies of two cannot be compared.

    Charged frames of ``zno_vertical`` have geometries of the neutral cluster.
    """
    name, charges = FAMILIES[family]
    if name == "zno" and len(charges) == 3:  # geometries that carry all three
        return kqeq.datasets.split("zno_vertical", total_charges=charges)
    if name == "zno":
        return kqeq.datasets.split("zno", "zno_vertical", method="PBE0/def2-svp", total_charges=charges)
    return kqeq.datasets.split(name, total_charges=charges)


def main(argv=None):
    """Fit and test every family with every model."""
    options = example.options(__doc__, argv)
    chosen = [name for name in FAMILIES if name in QUICK or not options.quick]
    errors, chain = {}, None
    for family in chosen:
        train, test = frames_of(family)
        train = train[::3] if options.quick else train
        for label, settings in MODELS.items():
            model = kqeq.KQEq(**settings).fit(train, optimize=None if options.quick else "auto")
            errors[family, label] = model.evaluate(test)
            if FAMILIES[family][0] == "carbon_chain" and label == "with charges":
                chain = model, test

    figure, axes = example.panels(2 if chain else 1, width=4.6, height=3.9)
    places = np.arange(len(chosen))[::-1]
    for number, label in enumerate(MODELS):
        values = [1e3 * errors[family, label]["forces"].rmse for family in chosen]
        bars = axes[0].barh(
            places - 0.26 * (number - 1), values, 0.25, color=example.COLOURS[COLOURS[label]], label=label
        )
        axes[0].bar_label(bars, fmt="%.0f", fontsize=7, padding=2)
    axes[0].set_yticks(places, chosen)
    axes[0].set(xscale="log", xlabel="test RMSE of the forces (meV/Å)", title="forces on test trajectories")
    axes[0].set_xlim(1, 1e6)  # room for the legend beside the bars
    axes[0].legend(loc="upper right")
    if chain:
        draw_chain(axes[1], *chain)

    rows = []
    for family in chosen:
        cells = [f"{1e3 * errors[family, label]['forces'].rmse:.0f}" for label in MODELS]
        cells += [f"{1e3 * errors[family, label]['energy'].rmse:.1f}" for label in MODELS]
        rows.append([family, len(frames_of(family)[1]), *cells])
    header = ["charge states", "test frames", *(f"forces: {label}" for label in MODELS)]
    header += [*(f"energy: {label}" for label in MODELS)]
    notes = (
        "RMSE on test trajectories, forces in meV/Å, energies in meV/atom; PBE0, one basis set in each row. Kernels, "
        "their spreads and noises by left-out training frames in every model (the default fit)."
    )
    example.finish(options, "02_charge_states", figure, header, rows, notes)
    shared = {label: errors["Zn3O3 −1, 0", label]["forces"].rmse for label in MODELS}
    assert shared["with charges"] < 0.5 * shared["without charges"]


def draw_chain(axis, model, test):
    """Charges summed over each carbon and its hydrogens, along the chain, mean over the test frames."""
    series = {"C10H3(+), QEq": [], "C10H2, QEq": [], "C10H3(+), Hirshfeld": [], "C10H2, Hirshfeld": []}
    for atoms in test:
        carbon = np.flatnonzero(atoms.numbers == 6)
        direction = np.linalg.svd(atoms.positions[carbon] - atoms.positions[carbon].mean(axis=0))[2][0]
        order = carbon[np.argsort(atoms.positions[carbon] @ direction)]
        nearest = order[atoms.get_all_distances()[:, order].argmin(axis=1)]
        hydrogens = [np.sum((nearest == c) & (atoms.numbers == 1)) for c in order]
        order = order if hydrogens[0] >= hydrogens[-1] else order[::-1]  # the end with two hydrogens first
        kind = "C10H3(+)" if atoms.info["total_charge"] else "C10H2"
        for source, q in (("QEq", model.predict(atoms).charges), ("Hirshfeld", atoms.arrays["hirshfeld"])):
            series[f"{kind}, {source}"].append([q[nearest == c].sum() for c in order])
    for name, values in series.items():
        ion, hirshfeld = "(+)" in name, "Hirshfeld" in name
        axis.plot(
            np.arange(1, 11),
            np.mean(values, axis=0),
            "--x" if hirshfeld else "-o",
            color=example.COLOURS["highlight" if ion else "QEq"],
            alpha=0.6 if hirshfeld else 1.0,
            label=name,
        )
    axis.axhline(0.0, color="0.8", linewidth=0.8, zorder=0)
    axis.set(xlabel="carbon atom, from the end that carries CH2", ylabel="charge of C and its H (e)")
    axis.set_title("where the charge of the chain sits")
    axis.set_xticks(np.arange(1, 11))
    axis.legend(ncols=2)
    axis.margins(y=0.25)


if __name__ == "__main__":
    main()
