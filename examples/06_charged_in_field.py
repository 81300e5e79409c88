"""Molecules in a field with ASE: response, a charged molecule that is optimised, a short dynamics."""

import numpy as np
from ase import Atoms, units
from ase.constraints import FixCom
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

import kqeq

small = {"n_representatives": 16}
train, test = kqeq.datasets.split("water")
chosen = ("water1", "hydronium")
train, test = ([atoms for atoms in part if atoms.info["system"] in chosen] for part in (train, test))
model = kqeq.KQEq(kqeq.SOAPKernel(r_cut=4.0, **small), kqeq.SOAPKernel(r_cut=5.0, zeta=4, **small)).fit(train)
print(model.evaluate(test))

# The dipole is minus the slope of the energy along the field, the polarizability the slope of the dipole.
water = Atoms(test[0].numbers, test[0].positions)
up, down = (model.predict(water, external_field=(0, 0, strength)) for strength in (0.01, -0.01))
here = model.predict(water)
print(f"\ndipole z         {here.dipole[2]:.6f} e·Å, from energies {-(up.energy - down.energy) / 0.02:.6f}")
print(
    f"polarizability zz {here.polarizability[2, 2]:.6f}, from dipoles {(up.dipole[2] - down.dipole[2]) / 0.02:.6f}"
)

# H3O(+) in a field, with ASE. Its forces sum to Q·field, so it would fly away: hold the centre of mass.
hydronium = next(atoms for atoms in test if atoms.info["system"] == "hydronium")
ion = Atoms(hydronium.numbers, hydronium.positions)
ion.calc = kqeq.KQEqCalculator(model, total_charge=+1, external_field=(0, 0, 0.1))
print(f"\nsum of the forces {ion.get_forces().sum(axis=0).round(6)} eV/Å")
ion.set_constraint(FixCom())
optimiser = BFGS(ion, logfile=None)
assert optimiser.run(fmax=0.01, steps=300)
print(f"optimised in {optimiser.nsteps} steps, E = {ion.get_potential_energy():.4f} eV")
print(f"charges {ion.get_charges().round(3)} e, O-H {ion.get_distances(0, [1, 2, 3]).round(3)} Å")

# Charge and field may be changed at any time; the cached results are dropped.
ion.calc.external_field = None
print(f"without the field E = {ion.get_potential_energy():.4f} eV")

# Energy conservation in dynamics: forces are the exact gradient of the energy.
ion.set_constraint()
ion.set_momenta(np.random.default_rng(0).normal(scale=0.1, size=(4, 3)) * np.sqrt(ion.get_masses())[:, None])
energies = []
dynamics = VelocityVerlet(ion, timestep=0.25 * units.fs)
dynamics.attach(lambda: energies.append(ion.get_total_energy()))
dynamics.run(100)
print(f"25 fs of dynamics: the total energy stays within {1e3 * np.ptp(energies):.2f} meV")
