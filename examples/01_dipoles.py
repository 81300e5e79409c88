"""Fit to DFT labels, test on frames the fit has not seen, predict, save and load."""

import kqeq

# Ag3(+) and Ag3(-) with PBE0 energies, forces and dipoles; the test frames are from trajectories of their own
train, test = kqeq.datasets.split("ag3")

# Every argument of KQEq has a default. Here: fewer representative environments, as the data set is small.
model = kqeq.KQEq(
    electronegativity=kqeq.SOAPKernel(r_cut=4.0, n_max=6, l_max=4, sigma=0.4, zeta=2, n_representatives=60),
    short_range=kqeq.SOAPKernel(r_cut=5.0, n_max=8, l_max=6, sigma=0.5, zeta=4, n_representatives=60),
    noise={"energy": 1e-3, "forces": 0.03, "dipole": 0.005},  # eV/atom, eV/Å, e·Å: errors to be tolerated
)
model.fit(train)
print(model.fit_report_)  # labels used and ignored, sizes, convergence

print(f"\nErrors on {len(test)} test frames")
print(model.evaluate(test))

prediction = model.predict(test[0])  # charge and field are read from the frame's info
print(f"\nenergy          {prediction.energy:.3f} eV, DFT {test[0].get_potential_energy():.3f} eV")
print(f"  electrostatic {prediction.energy_electrostatic:.3f} eV")
print(f"charges         {prediction.charges.round(3)} e")
print(f"dipole          {prediction.dipole.round(3)} e·Å, DFT {test[0].get_dipole_moment().round(3)} e·Å")

model.save("ag3.kqeq")  # one file, no pickle, no training data
again = kqeq.load("ag3.kqeq").predict(test[0])
assert again.energy == prediction.energy and (again.forces == prediction.forces).all()
print("loaded from ag3.kqeq, the model predicts the same, bit for bit")
