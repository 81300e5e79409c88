"""What a charge model promises to the rest of the package.

A charge model answers, for one structure, the stationary problem

    E(y) = bᵀy + ½ yᵀHy     subject to  Sᵀy = Q

over its own unknowns y (charges; for other models also dipoles, potentials, pair flows).  b is linear in
the electronegativities χ and the external field.  Three objects follow the life of such a problem:

``ChargeModel``
    the recipe with its element parameters; what a user writes, ``kqeq.QEq()``;
``ChargeSystem``
    the recipe bound to one geometry, factored once.  Its responses do not depend on χ, field or Q;
``ChargeState``
    the solution for given χ, field and Q, with gradients at fixed y (the problem is stationary in y, so
    those are the whole forces once ∂E/∂χ has been carried through the descriptor).

Nothing outside this subpackage may rely on identities that hold for plain QEq only, such as
μ = Σ q r, α = rᵀRr or a single total charge: ask the objects.

Dimensions: N atoms, c columns of a block of perturbations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from kqeq.structures import Structure
from kqeq.typing import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class SiteParameters:
    """Parameters per atom that are not electronegativities.

    Attributes
    ----------
    hardness : (N,) array
        η, eV/e².
    width : (N,) array
        Gaussian width σ, Å.
    """

    hardness: FloatArray
    width: FloatArray


@dataclass(frozen=True, eq=False)
class Response:
    """Change of a charge state with c perturbations.

    Attributes
    ----------
    unknowns : (n, c) array
        ∂y, in the model's own layout; hand it back to the state's ``gradient_response``.
    charges : (N, c) array
        ∂q.
    dipole : (3, c) array
        ∂μ.
    """

    unknowns: FloatArray
    charges: FloatArray
    dipole: FloatArray


class ChargeState(Protocol):
    """Charges of one structure at given electronegativities, field and total charge."""

    @property
    def energy(self) -> float:
        """Electrostatic energy including hardness, electronegativity and field terms, eV."""

    @property
    def charges(self) -> FloatArray:
        """(N,) array, e."""

    @property
    def atomic_dipoles(self) -> FloatArray | None:
        """(N, 3) array, e·Å; ``None`` for models without."""

    @property
    def dipole(self) -> FloatArray | None:
        """−∂E/∂field, (3,) array in e·Å about the origin; ``None`` where it is not defined."""

    @property
    def chemical_potential(self) -> float:
        """∂E/∂Q in eV/e (for several constraints: under the model's own sharing of Q)."""

    def electronegativity_gradient(self) -> FloatArray:
        """∂E/∂χ_i, (N,) array in e."""

    def hardness_gradient(self) -> FloatArray:
        """∂E/∂η_i, (N,) array in e²."""

    def gradient(self) -> FloatArray:
        """∂E/∂r at fixed y, χ and field, (N, 3) array in eV/Å."""

    def strain(self) -> FloatArray:
        """∂E/∂ε at fixed y, χ and field, (3, 3) array in eV."""

    def gradient_response(self, response: Response) -> FloatArray:
        """Change of :meth:`gradient` with ∂y, (N, 3, c) array."""

    def strain_response(self, response: Response) -> FloatArray:
        """Change of :meth:`strain` with ∂y, (3, 3, c) array."""


class ChargeSystem(Protocol):
    """A charge model bound to one geometry."""

    def solve(self, chi: FloatArray, external_field: FloatArray, total_charge: float) -> ChargeState:
        """Solve for electronegativities (N,), field (3,) and total charge.

        Raises
        ------
        UnsupportedError
            If the field is not defined for the structure's periodicity.
        """

    def respond(self, dchi: FloatArray) -> Response:
        """Response to c perturbations of the electronegativities, (N, c) array in eV/e."""

    def respond_field(self) -> Response:
        """Response to the three components of the external field (c = 3)."""

    def respond_total_charge(self) -> Response:
        """Response to the total charge (c = 1); its charges are the Fukui function."""

    def polarizability(self) -> FloatArray | None:
        """∂μ/∂field, (3, 3) array in e²·Å²/eV; ``None`` where it is not defined."""

    def hardness(self) -> float:
        """∂²E/∂Q² at fixed geometry, eV/e²."""


class ChargeModel(Protocol):
    """The recipe; follows scikit-learn's parameter conventions so that it can be cloned and searched."""

    def check(self, structure: Structure) -> None:
        """Refuse structures and conditions that the model cannot treat, before any long work.

        Raises
        ------
        InputError, UnsupportedError
        """

    def site_parameters(self, numbers: IntArray) -> SiteParameters:
        """Element parameters spread over atoms."""

    def bind(self, structure: Structure, sites: SiteParameters | None = None) -> ChargeSystem:
        """Build and factor the problem for one geometry.

        Raises
        ------
        NotPositiveDefiniteError
            If the energy has no minimum.
        """

    def to_dict(self) -> dict[str, Any]:
        """Everything needed to build the model again (plain numbers, strings, dicts)."""


__all__ = ["ChargeModel", "ChargeState", "ChargeSystem", "Response", "SiteParameters"]
