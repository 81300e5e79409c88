"""Charge equilibration (QEq): the simplest charge model.

    E = (χ + φ)ᵀq + ½ qᵀAq,   Σq = Q,   φ_i = −field · r_i

with the Coulomb matrix A of Gaussian charges plus hardness on its diagonal (theory section 1; Rappé &
Goddard 1991, *J. Phys. Chem.* 95, 3358; Gaussian charges as in Ghasemi et al. 2015, *Phys. Rev. B* 92,
045131).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from sklearn.base import BaseEstimator

from kqeq import elements
from kqeq.charges.base import Response, SiteParameters
from kqeq.electrostatics import coulomb
from kqeq.electrostatics.base import Electrostatics
from kqeq.errors import UnsupportedError
from kqeq.linalg import ConstrainedMinimum
from kqeq.structures import Structure
from kqeq.typing import FloatArray, IntArray

ElementValues = Mapping[Any, float] | str | None
"""Parameters by element symbol or atomic number; ``None`` for the cited defaults."""


class QEq(BaseEstimator):  # type: ignore[misc]
    """Charge equilibration with Gaussian charges.

    Parameters
    ----------
    hardness : dict, optional
        η by element symbol (or atomic number) in eV/e², for example ``{"O": 12.0}``; elements that are not named, and
        ``None``, take the cited defaults of :mod:`kqeq.elements`.
    width : dict, optional
        Gaussian width σ by element symbol in Å, likewise.

    Notes
    -----
    Charge moves over any distance at no cost: fragments share fractional charge on dissociation and
    polarizabilities grow too fast with size (theory section 6).
    """

    def __init__(self, hardness: ElementValues = None, width: ElementValues = None) -> None:
        self.hardness = hardness
        self.width = width

    def check(self, structure: Structure) -> None:
        """Refuse what this model cannot treat yet.

        Raises
        ------
        UnsupportedError
            For periodic structures, and for ``"learn"`` in place of element parameters.
        InputError
            For elements without parameters.
        """
        if structure.periodic:
            raise UnsupportedError(
                f"the structure is periodic (pbc={structure.pbc.tolist()}) and electrostatics for periodic cells "
                "is still to come; use KQEq(electronegativity=None, charges=None) for a short-range model, "
                "or set atoms.pbc = False for an isolated system"
            )
        self.site_parameters(structure.numbers)

    def site_parameters(self, numbers: IntArray) -> SiteParameters:
        """Hardness and width of every atom.

        Raises
        ------
        UnsupportedError
            For ``"learn"``.
        InputError
            For unknown elements, or values that are not finite or not positive (width).
        """
        return SiteParameters(
            hardness=elements.resolve(
                _not_learned(self.hardness, "hardness"), numbers, elements.hardness, "hardness"
            ),
            width=elements.resolve(_not_learned(self.width, "width"), numbers, elements.width, "width"),
        )

    def bind(self, structure: Structure, sites: SiteParameters | None = None) -> QEqSystem:
        """Build and factor the charge problem of one geometry; see :class:`~kqeq.charges.base.ChargeModel`."""
        sites = self.site_parameters(structure.numbers) if sites is None else sites
        provider = coulomb(structure, sites.width)
        hessian = provider.matrix()
        hessian[np.diag_indices_from(hessian)] += sites.hardness
        return QEqSystem.build(structure, provider, hessian)

    def to_dict(self) -> dict[str, Any]:
        """Parameters as plain data."""
        return {"model": "QEq", "hardness": _by_symbol(self.hardness), "width": _by_symbol(self.width)}


def _not_learned(values: ElementValues, name: str) -> Mapping[Any, float] | None:
    if isinstance(values, str):
        raise UnsupportedError(
            f"QEq({name}={values!r}): learning element parameters is still to come; "
            "give a dict of values by element, or None for the defaults"
        )
    return values


def _by_symbol(values: ElementValues) -> dict[str, float] | str | None:
    """Element values keyed by symbol: files have no integer keys."""
    if values is None or isinstance(values, str):
        return values
    return {
        key if isinstance(key, str) else chemical_symbols[key]: float(value) for key, value in values.items()
    }


@dataclass(frozen=True, eq=False)
class QEqSystem:
    """QEq bound to one geometry; see :class:`~kqeq.charges.base.ChargeSystem`."""

    structure: Structure
    provider: Electrostatics
    hessian: FloatArray
    minimum: ConstrainedMinimum

    @classmethod
    def build(cls, structure: Structure, provider: Electrostatics, hessian: FloatArray) -> QEqSystem:
        """Factor the constrained problem."""
        minimum = ConstrainedMinimum.build(
            hessian,
            np.ones((len(structure), 1)),
            shift=bool(structure.pbc.sum() == 2),
            what=f"the QEq matrix of {len(structure)} atoms",
            remedy="an element's hardness is too negative for its width: raise the hardness "
            "(hardness + k_e/(sqrt(pi)*width) must be positive, and atoms may not screen each other into instability)",
        )
        return cls(structure, provider, hessian, minimum)

    def solve(self, chi: FloatArray, external_field: FloatArray, total_charge: float) -> QEqState:
        """Charges for given electronegativities, field and total charge."""
        linear = chi - self.structure.positions @ external_field
        charges, multiplier = self.minimum.solve(linear, np.array([total_charge]))
        return QEqState(self, external_field, linear, charges, float(multiplier[0]))

    def _response(self, unknowns: FloatArray) -> Response:
        return Response(unknowns, unknowns, self.structure.positions.T @ unknowns)

    def respond(self, dchi: FloatArray) -> Response:
        """∂q = −R ∂χ."""
        return self._response(-self.minimum.respond(dchi))

    def respond_field(self) -> Response:
        """∂q/∂field = R r."""
        return self._response(self.minimum.respond(self.structure.positions))

    def respond_total_charge(self) -> Response:
        """∂q/∂Q = s, the Fukui function."""
        return self._response(self.minimum.shape)

    def polarizability(self) -> FloatArray:
        """α = rᵀRr."""
        alpha = self.respond_field().dipole
        return 0.5 * (alpha + alpha.T)

    def hardness(self) -> float:
        """∂²E/∂Q²."""
        return float(self.minimum.stiffness[0, 0])


@dataclass(frozen=True, eq=False)
class QEqState:
    """QEq charges; see :class:`~kqeq.charges.base.ChargeState`."""

    system: QEqSystem
    external_field: FloatArray
    linear: FloatArray
    charges: FloatArray
    chemical_potential: float

    @property
    def atomic_dipoles(self) -> FloatArray | None:
        """QEq has none."""
        return None

    @property
    def energy(self) -> float:
        """(χ + φ)ᵀq + ½ qᵀAq, eV."""
        return float(self.charges @ (self.linear + 0.5 * (self.system.hessian @ self.charges)))

    @property
    def dipole(self) -> FloatArray | None:
        """Σ q r, e·Å."""
        return np.asarray(self.charges @ self.system.structure.positions)

    def electronegativity_gradient(self) -> FloatArray:
        """∂E/∂χ = q."""
        return self.charges

    def hardness_gradient(self) -> FloatArray:
        """∂E/∂η = ½ q²."""
        return 0.5 * self.charges**2

    def gradient(self) -> FloatArray:
        """½ qᵀ(∂A/∂r)q − q field, at fixed q."""
        pairs = self.system.provider.bilinear_gradient(self.charges, self.charges[:, None])[..., 0]
        return 0.5 * pairs - np.outer(self.charges, self.external_field)

    def strain(self) -> FloatArray:
        """½ qᵀ(∂A/∂ε)q − (Σ q r) ⊗ field, at fixed q."""
        pairs = self.system.provider.bilinear_strain(self.charges, self.charges[:, None])[..., 0]
        moment = self.charges @ self.system.structure.positions
        return 0.5 * pairs - np.outer(moment, self.external_field)

    def gradient_response(self, response: Response) -> FloatArray:
        """qᵀ(∂A/∂r)∂q − ∂q field, (N, 3, c)."""
        pairs = self.system.provider.bilinear_gradient(self.charges, response.unknowns)
        return np.asarray(pairs - np.einsum("ic,a->iac", response.unknowns, self.external_field))

    def strain_response(self, response: Response) -> FloatArray:
        """qᵀ(∂A/∂ε)∂q − (Σ ∂q r) ⊗ field, (3, 3, c)."""
        pairs = self.system.provider.bilinear_strain(self.charges, response.unknowns)
        return np.asarray(pairs - np.einsum("ac,b->abc", response.dipole, self.external_field))


__all__ = ["QEq", "QEqState", "QEqSystem"]
