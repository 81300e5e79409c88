"""Dissociation and spurious charge transfer.

Charge equilibration moves charge over any distance at no cost, so fragments that are pulled apart keep whatever fraction
of an electron balances their electronegativities. All models here are trained on dipoles near equilibrium
only and then asked what they have not seen: the separated fragments.

Left: NaCl. Dipole over distance is the effective charge; DFT's rises towards one as ions part, QEq's falls. ACKS2 arrives
at whole ions where bonds end, at 1.8 times the sum of covalent radii; with atomic dipoles the ions go on polarising
each other, too much here: sodium has the polarizability of the neutral atom by default.

Middle: ZnO, a triplet, goes over into neutral atoms with nothing to cross. Their charges should fade like the bond. QEq
learns that from the long bonds among its training frames, but leaves 0.02 e for good; constraints take the charges
from the bond as well; bonds of ACKS2 end somewhat too early, and then nothing is left.

Right: H3O(+) leaves a water molecule. The charge should stay on the ion. QEq leaves more than a third of it on the
water; ACKS2 that starts from the total charge spread evenly over all atoms freezes in 3/7 of it. With the charge of
every fragment given, charge flows inside fragments and between those that touch, and the limit is exact.

What does not work: only the user knows which fragments carry the charge. NaCl at 10 Å is a case: its ground state
there is a pair of atoms, below 9.6 Å one of ions; each is the limit of its own choice of fragment charges,
and no model of this family changes from one to the other.
"""

import numpy as np
from ase import Atoms

import example
import kqeq
from kqeq.charges import assign_fragments

KERNEL = kqeq.SOAPKernel(r_cut=4.0, sigma=0.4, n_representatives=30)
FEW = kqeq.SOAPKernel(r_cut=4.0, sigma=0.4, n_representatives=5)  # the curves have no more environments
MODELS = {
    "QEq": kqeq.QEq(),
    "QEq, fragment constraints": kqeq.QEq(fragments=True),
    "ACKS2, charge spread evenly": kqeq.ACKS2(reference_charges="uniform"),
    "ACKS2, fragment charges": kqeq.ACKS2(reference_charges="fragments"),
    "ACKS2 + dipoles, fragment charges": kqeq.AtomicDipoles(kqeq.ACKS2(reference_charges="fragments")),
}
LOOK = {
    "QEq": {"color": example.COLOURS["QEq"], "ls": "--"},
    "QEq, fragment constraints": {"color": example.COLOURS["QEq + dipoles"], "ls": ":"},
    "ACKS2, charge spread evenly": {"color": example.COLOURS["highlight"], "ls": "--"},
    "ACKS2, fragment charges": {"color": example.COLOURS["ACKS2"]},
    "ACKS2 + dipoles, fragment charges": {"color": example.COLOURS["ACKS2 + dipoles"], "ls": "-."},
}
BOUND = 4.1  # Å: training frames of the pairs lie below, so that the limit is a prediction
FAR = 10.0  # Å


def parts(atoms, groups, charges):
    """The frame with fragments; labels are kept."""
    marked = assign_fragments(atoms, groups, charges)
    marked.calc = atoms.calc
    return marked


def of_pair(frames, symbols, states):
    """Frames of a diatomic molecule in one of the states."""
    return [f for f in frames if str(f.symbols) == symbols and f.info.get("state", "") in states]


def whole(atoms):
    """The frame as one fragment."""
    return parts(atoms, [range(len(atoms))], [atoms.info["total_charge"]])


def pair(symbols, distance, charge):
    """Two atoms that end as ions of this charge and its opposite."""
    return parts(Atoms(symbols, [[0, 0, 0], [0, 0, distance]]), [[0], [1]], [charge, -charge])


def leaving_sodium(cluster, distance):
    """The outermost Na of Na9Cl8(+) drawn away from the rest, by ``distance`` from where it was."""
    offset = cluster.positions - cluster.positions.mean(axis=0)
    sodium = max(
        (i for i in range(len(cluster)) if cluster.numbers[i] == 11), key=lambda i: offset[i] @ offset[i]
    )
    atoms = Atoms(cluster.numbers, cluster.positions)
    atoms.positions[sodium] += distance * offset[sodium] / (offset[sodium] @ offset[sodium]) ** 0.5
    return parts(atoms, [[sodium], [i for i in range(len(atoms)) if i != sodium]], [1.0, 0.0])


def leaving_hydronium(ion, water, distance):
    """H3O(+) and a water molecule, oxygen atoms ``distance`` apart."""
    first = Atoms(ion.numbers, ion.positions - ion.positions[0])
    second = Atoms(water.numbers, water.positions - water.positions[0] + [0.0, 0.0, distance])
    return parts(first + second, [range(4), range(4, 7)], [1.0, 0.0])


def main(argv=None):
    """Train every model near equilibrium and draw fragments apart."""
    options = example.options(__doc__, argv)
    known, unknown = kqeq.datasets.split("dissociation")
    ions = [f for name in ("NaCl", "LiF") for f in of_pair(known, name, ("ions", "ions apart"))]
    oxide = of_pair(known, "ZnO", ("triplet",))
    salt = kqeq.datasets.split("nacl")[0]
    water = [
        f for f in kqeq.datasets.split("water")[0] if f.info["system"] in ("water1", "water2", "hydronium")
    ]
    cluster = next(f for f in salt if f.info["system"] == "na9cl8_plus")
    ion = next(f for f in water if f.info["system"] == "hydronium")
    systems = {  # training frames; a geometry by distance; the charge that its first fragment ends with
        "NaCl": (
            [parts(f, [[0], [1]], [1.0, -1.0]) for f in ions if f.info["distance"] < BOUND],
            lambda d: pair("NaCl", d, 1.0),
            1.0,
        ),
        "Na⁺ from Na₉Cl₈⁺": ([whole(f) for f in salt], lambda d: leaving_sodium(cluster, d), 1.0),
        "H₃O⁺ from H₂O": ([whole(f) for f in water], lambda d: leaving_hydronium(ion, water[0], d), 1.0),
        "ZnO": (
            [parts(f, [[0], [1]], [0.0, 0.0]) for f in oxide if f.info["distance"] < BOUND],
            lambda d: pair("ZnO", d, 0.0),
            0.0,
        ),
    }
    systems["LiF"] = (systems["NaCl"][0], lambda d: pair("LiF", d, 1.0), 1.0)
    if options.quick:
        del systems["Na⁺ from Na₉Cl₈⁺"]

    figure, axes = example.panels(3, width=3.1)
    panels = {"NaCl": axes[0], "ZnO": axes[1]}
    distances = [1.75 + 0.25 * i for i in range(42)]
    rows = []
    for label, charges in MODELS.items():
        row, fitted = [label], {}
        for name, (train, geometry, limit) in systems.items():
            key = id(train)
            if key not in fitted:
                kernel = FEW if len(train[0]) == 2 else KERNEL
                fitted[key] = kqeq.KQEq(kernel, None, charges=charges, targets=["dipole"]).fit(train)
            model = fitted[key]
            far = geometry(FAR)
            held = float(model.predict(far).charges[far.arrays["fragments"] == 0].sum())
            row.append(f"{held:+.3f}")
            if label.endswith(("charges", "constraints")):
                assert abs(held - limit) < 0.02
            if name in panels:
                nearest = min(f.info["distance"] for f in train if str(f.symbols) == name)
                at = [d for d in distances if d >= nearest]
                dipoles = [model.predict(geometry(d), properties=["dipole"]).dipole[2] for d in at]
                effective = [-mu / d for mu, d in zip(dipoles, at, strict=True)]
                panels[name].plot(at, effective, **LOOK[label])
            if name == "H₃O⁺ from H₂O":
                far_enough = [d for d in distances if d >= 3.0]
                kept = [
                    model.predict(geometry(d), properties=["charges"]).charges[4:].sum() for d in far_enough
                ]
                axes[2].plot(far_enough, kept, label=label, **LOOK[label])
        rows.append(row)
    for name, panel in panels.items():
        curve = of_pair(known + unknown, name, ("ions", "ions apart", "triplet"))
        effective = [np.linalg.norm(f.get_dipole_moment()) / f.info["distance"] for f in curve]
        panel.plot([f.info["distance"] for f in curve], effective, "x", color="black", label="PBE0")
        panel.axvspan(min(f.info["distance"] for f in curve), BOUND, color="0.93", lw=0)
        panel.set(xlabel=f"{name[:2]}–{name[2:]} distance (Å)")
        panel.legend(loc="lower right" if name == "NaCl" else "upper right", frameon=False)
    axes[0].text(2.15, 0.06, "training", color="0.4")
    axes[0].set(ylabel="dipole / distance (e)", ylim=(0.0, 1.1))
    axes[1].set(ylim=(-0.02, 0.45))
    axes[2].set(xlabel="O–O distance (Å)", ylabel="charge on the water molecule (e)", ylim=(-0.05, 0.9))
    axes[2].legend(loc="upper right", frameon=False)
    example.finish(
        options,
        "04_dissociation",
        figure,
        ["model", *(f"{name} ({limit:g})" for name, (*_, limit) in systems.items())],
        rows,
        f"Charge (e) of the first fragment, in brackets what it should be, {FAR:g} Å from the other ({FAR:g} Å "
        "further from the rest than in the cluster). Models were trained on dipoles only, of bound molecules and "
        "clusters: NaCl, LiF and ZnO up to 4 Å.",
    )


if __name__ == "__main__":
    main()
