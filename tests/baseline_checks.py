"""A baseline with electrons that costs nothing: all of its derivatives are exact, so that tests need no tblite."""

from dataclasses import dataclass, replace

import numpy as np

from kqeq.baselines import BaselineResult, Capabilities
from kqeq.charges import QEq
from kqeq.errors import ConvergenceError, UnsupportedError

CHI = {1: 4.5, 6: 5.3, 8: 8.0, 30: 4.4}


@dataclass(frozen=True)
class Electrons:
    """Charge equilibration with fixed parameters, and an exponential repulsion of atoms.

    Holds the total charge, feels the field, gives dipole and charges; open and periodic.  ``response`` False leaves the
    field out, ``shares`` False the charges.  Refuses to converge where two atoms are closer than ``closest``.
    """

    hardness: float = 9.0
    field: bool = True
    dipole: bool = True
    shares: bool = True
    closest: float = 0.0

    @property
    def name(self):
        return f"electrons({self.hardness:g})"

    @property
    def capabilities(self):
        return Capabilities(holds_charge=True, field=self.field, dipole=self.dipole, charges=self.shares)

    def charge_held(self, structure):
        return structure.total_charge

    def check(self, structure):
        if structure.external_field.any() and (structure.periodic or not self.field):
            raise UnsupportedError("electrons: no field here")

    def session(self):
        return self

    def describe(self):
        return ""

    def evaluate(self, structure, extras=()):
        self.check(structure)
        atoms = len(structure)
        chi = np.array([CHI[int(z)] for z in structure.numbers])
        model = QEq(hardness=dict.fromkeys(("H", "C", "O", "Zn"), self.hardness))
        bare = replace(structure, fragments=None, fragment_charges=None, reference_charges=None)
        state = (system := model.bind(bare)).solve(chi, structure.external_field, structure.total_charge)
        energy, gradient, strain = self._repulsion(structure)
        response = system.respond(np.eye(atoms))
        found = {}
        if self.dipole and not structure.periodic:
            found["dipole"] = np.array(state.dipole)
        if self.shares:
            found["charges"] = np.array(state.charges)
        if "polarizability" in extras:
            found["polarizability"] = np.array(system.polarizability())
        if "charge_gradient" in extras:
            # ∂q_i/∂r = ∂²E/∂r∂χ_i
            found["charge_gradient"] = state.gradient_response(response)
            found["charge_strain"] = state.strain_response(response)
        if "charge_field" in extras:
            found["charge_field"] = -np.array(response.dipole)
        if "charge_curvature" in extras:
            found["charge_curvature"] = np.zeros((3, 3, atoms))
        return BaselineResult(
            energy + state.energy, gradient + state.gradient(), strain + state.strain(), **found
        )

    def _repulsion(self, structure):
        from kqeq.frames.neighbours import find_pairs

        pairs = find_pairs(structure, 8.0)
        distance = np.linalg.norm(pairs.vectors, axis=1)
        if distance.min(initial=9.0) < self.closest:
            raise ConvergenceError("electrons do not converge.")
        i, j = pairs.indices.T
        value = 0.5 * 60.0 * np.exp(-distance / 0.35)
        force = (-value / 0.35 / distance)[:, None] * pairs.vectors
        gradient = np.zeros((len(structure), 3))
        np.add.at(gradient, j, force)
        np.subtract.at(gradient, i, force)
        return float(value.sum()), gradient, pairs.vectors.T @ force
