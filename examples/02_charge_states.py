"""One geometry at several total charges: energies, chemical potential, hardness, Fukui function."""

import warnings

from ase import Atoms

import kqeq
from kqeq.errors import UndeterminedWarning

small = {"n_representatives": 40}
frames = kqeq.datasets.load("ag3")
model = kqeq.KQEq(kqeq.SOAPKernel(r_cut=4.0, **small), kqeq.SOAPKernel(r_cut=5.0, zeta=4, **small))
model.fit(frames[::2])

# A bare geometry: the charge is an argument. (A frame that says total_charge in its info may not be contradicted.)
atoms = Atoms(frames[1].numbers, frames[1].positions)
states = {charge: model.predict(atoms, total_charge=charge) for charge in (-1, 0, 1)}
print("Q (e)   energy (eV)   dE/dQ (eV/e)   charges (e)")
for charge, p in states.items():
    print(f"{charge:+d} {p.energy:16.3f} {p.chemical_potential:14.3f}   {p.charges.round(3)}")

# At a fixed geometry the QEq energy is a parabola in Q: slope and curvature at Q = 0 give the other two states.
neutral = states[0]
for charge in (-1, 1):
    parabola = neutral.energy + charge * neutral.chemical_potential + charge**2 * neutral.hardness / 2
    assert abs(parabola - states[charge].energy) < 1e-8

# The change of the charges with the total charge is the Fukui function; it sums to one.
fukui = (states[1].charges - states[-1].charges) / 2
print(f"Fukui function {fukui.round(3)}, sum {fukui.sum():.6f}")

# Frames of a single charge state cannot tell where the parabola lies; the model then says so.
cations = [frame for frame in frames if frame.info["total_charge"] == 1]
only_cations = kqeq.KQEq(kqeq.SOAPKernel(r_cut=4.0, **small), kqeq.SOAPKernel(r_cut=5.0, zeta=4, **small))
only_cations.fit(cations[::2])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    only_cations.predict(atoms, total_charge=0)
assert any(issubclass(warning.category, UndeterminedWarning) for warning in caught)
print(f"warning: {caught[-1].message}")
