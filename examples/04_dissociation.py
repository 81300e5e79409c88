"""Dissociation and spurious charge transfer.

Charge equilibration moves charge over any distance at no cost, so fragments that are pulled apart keep whatever fraction
of an electron balances their electronegativities. All models here are trained on dipoles near equilibrium
only and then asked what they have not seen: the separated fragments.

Left: NaCl. Dipole over distance is the effective charge; DFT's rises towards one as ions part, QEq's falls. ACKS2 arrives
at whole ions where bonds end, at 1.8 times the sum of covalent radii; with atomic dipoles the ions go on polarising
each other, too much here: sodium has the polarizability of the neutral atom by default.

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


def ionic(atoms):
    """Whether a frame is one of two ions."""
    return str(atoms.info.get("state", "")).startswith("ions")


def whole(atoms):
    """The frame as one fragment."""
    return parts(atoms, [range(len(atoms))], [atoms.info["total_charge"]])


def pair(symbols, distance):
    """Two ions."""
    return parts(Atoms(symbols, [[0, 0, 0], [0, 0, distance]]), [[0], [1]], [1.0, -1.0])


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
    known, unknown = ([f for f in part if ionic(f)] for part in kqeq.datasets.split("dissociation"))
    salt = kqeq.datasets.split("nacl")[0]
    water = [
        f for f in kqeq.datasets.split("water")[0] if f.info["system"] in ("water1", "water2", "hydronium")
    ]
    cluster = next(f for f in salt if f.info["system"] == "na9cl8_plus")
    ion = next(f for f in water if f.info["system"] == "hydronium")
    systems = {  # training frames; and a geometry, whose first fragment should carry +1, by distance
        "NaCl": (
            [parts(f, [[0], [1]], [1.0, -1.0]) for f in known if f.info["distance"] < BOUND],
            lambda d: pair("NaCl", d),
        ),
        "Na⁺ from Na₉Cl₈⁺": ([whole(f) for f in salt], lambda d: leaving_sodium(cluster, d)),
        "H₃O⁺ from H₂O": ([whole(f) for f in water], lambda d: leaving_hydronium(ion, water[0], d)),
    }
    systems["LiF"] = (systems["NaCl"][0], lambda d: pair("LiF", d))
    if options.quick:
        del systems["Na⁺ from Na₉Cl₈⁺"]

    figure, axes = example.panels(2, width=3.7)
    distances = [2.0 + 0.25 * i for i in range(41)]
    rows = []
    for label, charges in MODELS.items():
        row, fitted = [label], {}
        for name, (train, geometry) in systems.items():
            key = id(train)
            if key not in fitted:
                kernel = FEW if len(train[0]) == 2 else KERNEL
                fitted[key] = kqeq.KQEq(kernel, None, charges=charges, targets=["dipole"]).fit(train)
            model = fitted[key]
            far = geometry(FAR)
            held = float(model.predict(far).charges[far.arrays["fragments"] == 0].sum())
            row.append(f"{held:+.3f}")
            if label.endswith(("charges", "constraints")):
                assert abs(held - 1.0) < 0.02
            if name == "NaCl":
                dipoles = [model.predict(geometry(d), properties=["dipole"]).dipole[2] for d in distances]
                effective = [-mu / d for mu, d in zip(dipoles, distances, strict=True)]
                axes[0].plot(distances, effective, **LOOK[label])
            if name == "H₃O⁺ from H₂O":
                far_enough = [d for d in distances if d >= 3.0]
                kept = [
                    model.predict(geometry(d), properties=["charges"]).charges[4:].sum() for d in far_enough
                ]
                axes[1].plot(far_enough, kept, label=label, **LOOK[label])
        rows.append(row)
    curve = [f for f in known + unknown if set(f.symbols) == {"Na", "Cl"}]
    effective = [np.linalg.norm(f.get_dipole_moment()) / f.info["distance"] for f in curve]
    axes[0].plot([f.info["distance"] for f in curve], effective, "x", color="black", label="PBE0")
    axes[0].axvspan(2.0, BOUND, color="0.93", lw=0)
    axes[0].text(2.15, 0.06, "training", color="0.4")
    axes[0].set(xlabel="Na–Cl distance (Å)", ylabel="dipole / distance (e)", ylim=(0.0, 1.1))
    axes[0].legend(loc="lower right", frameon=False)
    axes[1].set(xlabel="O–O distance (Å)", ylabel="charge on the water molecule (e)", ylim=(-0.05, 0.9))
    axes[1].legend(loc="upper right", frameon=False)
    example.finish(
        options,
        "04_dissociation",
        figure,
        ["model", *systems],
        rows,
        f"Charge (e) of the fragment that should carry +1, {FAR:g} Å from the other ({FAR:g} Å further from the rest "
        "than in the cluster). Models were trained on dipoles of bound molecules and clusters: NaCl and LiF up to 4 Å.",
    )


if __name__ == "__main__":
    main()
