"""Charge states of one composition.

A short-range potential sees positions only. Where two charge states share a composition it gives both the
same energy and forces and can, at best, split the difference. A charge-equilibration model is told the total
charge.

Left: test errors of the forces, by family, for a short-range model and two models with charges. Where the
composition is shared and energies or geometries contradict each other (Ag3, ZnO) charges are worth a factor
of two and more. Where each charge state has a composition of its own (the carbon chain, the salt cluster)
they are worth less. And where geometries alone tell the states apart they are worth nothing: Ag3(+) is a
triangle and Ag3(−) a chain, so without energies a short-range model learns the forces of both just as well.

Right: where the charge of C10H3(+) sits, for each carbon with its hydrogens; Hirshfeld charges of the same
DFT calculations for comparison, which no fit has seen. Both spread the positive charge over the whole chain,
most of it at the ends, and disagree about single atoms. Charges are not observable: these were learned from
energies, forces and, loosely, dipoles.

What does not work: the last family. Its factor is large only because the short-range model has to reconcile
energies that differ by eight eV; in itself the error remains large, and a model for the cation alone (last
row of the table) is no better: 24 frames of these open-shell cations are not enough for any of the models.
Where energies of three charge states are asked for at once, remember that at a fixed geometry the energy is a
parabola in the charge: two states determine it.
"""

import numpy as np

import example
import kqeq

NOISE = {"dipole": 0.1}  # e·Å: dipoles as a guide only; charges alone cannot follow them everywhere
ALL = ("energy", "forces", "dipole")
FORCES = ("forces", "dipole")
# anions were computed in a larger basis set; the electronegativity absorbs that in Ag3 (one size, two states), not in ZnO
FAMILIES = {
    "Ag3 +1, −1": ("ag3", (-1, 1), ALL),
    "Ag3 (no energies)": ("ag3", (-1, 1), FORCES),
    "C10H2 0, C10H3 +1": ("carbon_chain", (0, 1), ALL),
    "Na8Cl8 +1, Na9Cl8 +1": ("nacl", (1,), ALL),
    "(ZnO)n 0, −1": ("zno", (-1, 0), FORCES),
    "(ZnO)n 0, +1": ("zno", (0, 1), ALL),
    "(ZnO)n +1": ("zno", (1,), ALL),
}
QUICK = ("Ag3 +1, −1", "Na8Cl8 +1, Na9Cl8 +1")
MODELS = {
    "short-range": {"electronegativity": None, "charges": None},
    "QEq": {"charges": kqeq.QEq()},
    "ACKS2 + dipoles": {"charges": kqeq.AtomicDipoles(kqeq.ACKS2())},
}


def frames_of(name, charges):
    """Training and test frames of some charge states."""
    return [[a for a in part if a.info["total_charge"] in charges] for part in kqeq.datasets.split(name)]


def main(argv=None):
    """Fit and test every family with every model."""
    options = example.options(__doc__, argv)
    chosen = [name for name in FAMILIES if name in QUICK or not options.quick]
    errors, chain = {}, None
    for family in chosen:
        name, charges, targets = FAMILIES[family]
        train, test = frames_of(name, charges)
        for label, settings in MODELS.items():
            kinds = [kind for kind in targets if kind != "dipole" or label != "short-range"]
            model = kqeq.KQEq(**settings, targets=kinds, noise=NOISE).fit(train)
            errors[family, label] = model.evaluate(test)
            if name == "carbon_chain" and label == "QEq":
                chain = model, test

    figure, axes = example.panels(2 if chain else 1, width=4.6, height=3.4)
    places = np.arange(len(chosen))[::-1]
    for number, label in enumerate(MODELS):
        values = [1e3 * errors[family, label]["forces"].rmse for family in chosen]
        bars = axes[0].barh(
            places - 0.27 * (number - 1), values, 0.25, color=example.COLOURS[label], label=label
        )
        axes[0].bar_label(bars, fmt="%.0f", fontsize=7, padding=2)
    axes[0].set_yticks(places, chosen)
    axes[0].set(xscale="log", xlabel="test RMSE of the forces (meV/Å)")
    axes[0].margins(x=0.2)
    axes[0].legend(loc="upper right")
    if chain:
        draw_chain(axes[1], *chain)

    rows = []
    for family in chosen:
        cells = [f"{1e3 * errors[family, label]['forces'].rmse:.0f}" for label in MODELS]
        energies = [errors[family, label].get("energy") for label in MODELS]
        fitted = "energy" in FAMILIES[family][2]
        cells += [f"{1e3 * energy.rmse:.1f}" if fitted else "–" for energy in energies]
        rows.append([family, len(frames_of(*FAMILIES[family][:2])[1]), *cells])
    header = ["charge states", "test frames", *(f"forces: {label}" for label in MODELS)]
    header += [*(f"energy: {label}" for label in MODELS)]
    notes = (
        "RMSE on test trajectories, forces in meV/Å, energies in meV/atom; PBE0. Energies are fitted and compared where "
        "charge states can be compared (anions: basis def2-SVPD, all others: def2-SVP). Dipole noise 0.1 e·Å, "
        "everything else default."
    )
    example.finish(options, "02_charge_states", figure, header, rows, notes)
    shared = [f for f in ("Ag3 +1, −1", "(ZnO)n 0, −1") if f in chosen]
    assert all(
        errors[f, "QEq"]["forces"].rmse < 0.5 * errors[f, "short-range"]["forces"].rmse for f in shared
    )


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
    axis.set_xticks(np.arange(1, 11))
    axis.legend(ncols=2)
    axis.margins(y=0.25)


if __name__ == "__main__":
    main()
