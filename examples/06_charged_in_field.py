"""Geometry optimisation of a charged cluster in a field.

Na9Cl8(+) is relaxed without a field, then in fields along z, each time from the geometry before. Two things
are special about a charged cluster in a field. It feels the net force $Q\\,\\mathbf{E}$ and would fly away
for ever: `kqeq.analysis.optimize` (and `kqeq optimize`) hold the centre of mass. And it feels a torque, which
is left alone: fields turn the cluster until its dipole points along them, and only then stretch it. In the weakest
field the relaxation ends before that, at an orientation against the field that is stationary and not a minimum: in a
field, start from several orientations.

Left: the energy of the relaxed cluster, with straight lines of slope $-\\mu_z$ at each point. At a relaxed
geometry $\\mathrm dE/\\mathrm d\\mathcal E = -\\mu_z$ holds although the geometry changes with the field,
because forces vanish there; the lines are tangents, not fits. Right: the dipole of the relaxed cluster, and
of the cluster frozen as it was when it had turned. Their slopes are the polarizability with and without the
nuclei: the ions, free to move, add a third to what the charges do alone.

The table also gives the standard deviation of the energy that the model itself claims: half an eV. The
training set holds no relaxed cluster, no field and 14 frames in all, so read this example as a mechanism, not
as a prediction for Na9Cl8(+).
"""

import numpy as np
from ase import Atoms

import example
import kqeq
from kqeq.analysis.optimization import optimize
from kqeq.constants import COULOMB

FIELDS = (0.0, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15)  # V/Å
SYSTEM, CHARGE = "na9cl8_plus", 1


def main(argv=None):
    """Fit, relax in growing fields, compare slopes with dipoles."""
    options = example.options(__doc__, argv)
    train, test = kqeq.datasets.split("nacl")
    model = kqeq.KQEq(charges=kqeq.QEq(hardness="learn"), noise={"dipole": 0.1}).fit(train, optimize=None)
    start = next(a for a in test if a.info["system"] == SYSTEM)
    atoms = Atoms(start.numbers, start.positions - start.get_center_of_mass())

    results, rows, turned = [], [], None
    for field in FIELDS[:: 3 if options.quick else 1]:
        result = optimize(model, atoms, total_charge=CHARGE, external_field=(0, 0, field), fmax=0.005)
        assert result.converged, f"{field} V/Å: {result.max_force} eV/Å after {result.steps} steps"
        drift = np.abs(result.atoms.get_center_of_mass()).max()
        assert drift < 1e-6 or not result.held_centre_of_mass
        # at the constrained minimum all atoms are accelerated alike: the forces sum to Q times the field
        assert np.allclose(result.prediction.forces.sum(axis=0), (0, 0, CHARGE * field), atol=1e-6)
        # without a field the centre of mass is free; dipoles of ions are about it
        atoms = Atoms(start.numbers, result.atoms.positions - result.atoms.get_center_of_mass())
        if turned is None and result.prediction.dipole[2] > 0.0:
            turned = atoms.copy()
        results.append((field, result))
        std = model.predict(
            atoms, total_charge=CHARGE, external_field=(0, 0, field), properties=["energy"], uncertainty=True
        ).energy_std
        rows.append(
            [
                f"{field:.3f}",
                result.steps,
                f"{result.prediction.energy - results[0][1].prediction.energy:.4f}",
                f"{result.prediction.dipole[2]:.3f}",
                f"{np.linalg.norm(result.prediction.dipole):.3f}",
                f"{std:.2f}",
            ]
        )

    fields = np.array([field for field, _ in results])
    energies = np.array([result.prediction.energy for _, result in results])
    energies -= energies[0]
    dipoles = np.array([result.prediction.dipole[2] for _, result in results])
    first = int(np.argmax(dipoles > 0.0))  # the first field in which the cluster has turned
    # exact up to third order in the step: the trapezium rule on the dipole gives the energy
    mean = 0.5 * (dipoles[first:-1] + dipoles[first + 1 :])
    slopes = -np.diff(energies[first:]) / np.diff(fields[first:])
    assert np.allclose(slopes, mean, rtol=0.02)
    frozen = np.array(
        [
            model.predict(
                turned, total_charge=CHARGE, external_field=(0, 0, field), properties=["dipole"]
            ).dipole[2]
            for field in fields[first:]
        ]
    )

    figure, axes = example.panels(2, width=3.6, height=3.1)
    axes[0].plot(fields, energies, "o", color=example.COLOURS["QEq"], label="relaxed cluster")
    half = 0.012
    for number, (f, e, mu) in enumerate(zip(fields, energies, dipoles, strict=True)):
        label = "slope −μ along the field" if number == 0 else None
        axes[0].plot(
            [f - half, f + half],
            [e + mu * half, e - mu * half],
            color=example.COLOURS["highlight"],
            label=label,
        )
    axes[0].set(
        xlabel="field (V/Å)", ylabel="energy relative to no field (eV)", title="energy, and its slope"
    )
    axes[0].legend(loc="lower left")
    # no line across the turn: there is no cluster between the two points
    axes[1].plot(
        fields[first:], dipoles[first:], "-o", color=example.COLOURS["QEq"], label="relaxed in each field"
    )
    axes[1].plot(fields[:first], dipoles[:first], "o", color=example.COLOURS["QEq"])
    axes[1].plot(
        fields[first:], frozen, "--s", color=example.COLOURS["short-range"], label="frozen after it turned"
    )
    axes[1].annotate(
        "before the cluster turns",
        (fields[0], dipoles[0]),
        xytext=(8, -3),
        textcoords="offset points",
        fontsize=8,
    )
    axes[1].set(
        xlabel="field (V/Å)", ylabel="dipole along the field (e·Å)", title="dipole of the relaxed cluster"
    )
    axes[1].legend(loc="center right")

    alpha = [
        COULOMB * (values[-1] - values[0]) / (fields[-1] - fields[first])
        for values in (frozen, dipoles[first:])
    ]
    header = [
        "field, V/Å",
        "steps",
        "energy, eV",
        "μ along the field, e·Å",
        "\\|μ\\|, e·Å",
        "std of the energy, eV",
    ]
    notes = (
        f"Na9Cl8(+), QEq with learned hardness, fitted to {len(train)} PBE0 frames; largest force 5 meV/Å; dipoles "
        f"about the centre of mass. Polarizability along the field between {fields[first]:g} and {fields[-1]:g} V/Å: "
        f"{alpha[0]:.0f} Å³ with frozen nuclei, {alpha[1]:.0f} Å³ relaxed."
    )
    example.finish(options, "06_charged_in_field", figure, header, rows, notes)


if __name__ == "__main__":
    main()
