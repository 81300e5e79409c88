"""Charges of another program: QEq with the parameters of DFT-D4's electronegativity equilibration (EEQ).

Caldeweyher et al. 2019, *J. Chem. Phys.* 150, 154122: parameters of table A1 of its supporting information, in atomic
units.  Its Gaussian charges have γ_ij = (α_i² + α_j²)^−½, ours [2(σ_i² + σ_j²)]^−½, so σ = α/√2; its electronegativities
are χ_i − κ_i √CN_i of a coordination number CN.  Charges are those that dftd4 4.3.1 returns
(``DispersionModel.get_properties()``) for the geometries of ``ase.build.molecule``.
"""

import math

import numpy as np
import pytest
from ase.build import molecule
from ase.units import Bohr, Hartree
from scipy.special import erf

from kqeq import QEq
from kqeq.frames.structures import read_structure

PARAMETERS = {  # χ, η, κ, α
    "H": (1.23695041, -0.35015861, 0.04916110, 0.55159092),
    "C": (1.40028282, 0.19408787, 0.06005196, 1.88862966),
    "O": (1.56866440, 0.03151644, 0.11689703, 1.23166285),
}
RADII = {"H": 0.32, "C": 0.75, "O": 0.63}
"""Covalent radii of Pyykkö & Atsumi 2009, Å; times 4/3 in the coordination number."""

CHARGES = {
    ("H2O", 0): [-0.586390685366, 0.293195342683, 0.293195342683],
    ("H2O", 1): [-0.029130234215, 0.514565117107, 0.514565117107],
    ("CH3OH", 0): [
        -0.103403703151,
        -0.472690160092,
        0.120056379272,
        0.251542695472,
        0.102247394249,
        0.102247394249,
    ],
}


def electronegativity(atoms) -> np.ndarray:
    """eV/e, with the coordination numbers of EEQ."""
    symbols = atoms.get_chemical_symbols()
    radius = 4.0 / 3.0 * np.array([RADII[s] for s in symbols])
    contact = radius[:, None] + radius[None, :]
    counts = 0.5 * (1.0 + erf(-7.5 * (atoms.get_all_distances() - contact) / contact))
    np.fill_diagonal(counts, 0.0)
    number = math.log(1.0 + math.exp(8.0)) - np.log(1.0 + np.exp(8.0 - counts.sum(axis=1)))
    chi, kappa = (np.array([PARAMETERS[s][k] for s in symbols]) for k in (0, 2))
    return (chi - kappa * np.sqrt(number)) * Hartree


@pytest.mark.parametrize(("name", "charge"), CHARGES)
@pytest.mark.parametrize("solver", ["dense", "iterative"])
def test_charges_are_those_of_dftd4(name, charge, solver):
    atoms = molecule(name)
    model = QEq(
        hardness={s: row[1] * Hartree for s, row in PARAMETERS.items()},
        width={s: row[3] * Bohr / math.sqrt(2.0) for s, row in PARAMETERS.items()},
        solver=solver,
        accuracy=1e-10,
    )
    system = model.bind(read_structure(atoms, total_charge=charge))
    state = system.solve(electronegativity(atoms), np.zeros(3), float(charge))
    np.testing.assert_allclose(state.charges, CHARGES[name, charge], atol=2e-9)
