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

A structure's external potential at the atoms (V) is added to χ by the models themselves; its external charges act on
all unknowns (:mod:`kqeq.charges.embedding`).

Arrays live on the device that a model was bound to: those that go in, and those that come out.

Dimensions: N atoms, c columns of a block of perturbations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

from kqeq.backend import CPU, Device, asarray_like
from kqeq.frames.structures import Structure
from kqeq.typing import Array, IntArray

SITE_KINDS: tuple[str, ...] = ("hardness", "width", "polarizability", "softness", "pair_softness")
"""Every kind of parameter per atom, or per pair of elements (the last one), that is not an electronegativity."""

ENVIRONMENT_KINDS: tuple[str, ...] = ("hardness", "polarizability", "softness")
"""Those of them that may depend on the environment of the atom (``"kernel"``)."""


class _Sites:
    """What the two below share: one array, or none, for each kind."""

    def on(self, like: Array) -> Self:
        """The same arrays on the device of another."""
        if isinstance(like, np.ndarray) and all(
            values is None or isinstance(values, np.ndarray) for values in vars(self).values()
        ):
            return self
        moved = {
            name: None if values is None else asarray_like(values, like)
            for name, values in vars(self).items()
        }
        return type(self)(**moved)


@dataclass(frozen=True, eq=False)
class SiteParameters(_Sites):
    """Parameters per atom that are not electronegativities (or derivatives with respect to them).

    Attributes
    ----------
    hardness : (N,) array
        η, eV/e².
    width : (N,) array
        Gaussian width σ, Å.
    polarizability : (N,) array, optional
        α of the atom's own dipole, e²·Å²/eV; models with atomic dipoles.
    softness : (N,) array, optional
        Bond softness κ of the atom, e²/eV; split-charge models.
    pair_softness : (K,) array, optional
        Factors on the softness of bonds by pair of elements, in the order of
        :func:`kqeq.charges.softness.pair_classes`; ``None`` for factors of 1.
    """

    hardness: Array
    width: Array
    polarizability: Array | None = None
    softness: Array | None = None
    pair_softness: Array | None = None


@dataclass(frozen=True, eq=False)
class SiteChange(_Sites):
    """c directions in the space of site parameters; ``None`` where a kind does not change.

    Attributes
    ----------
    hardness, width, polarizability, softness : (N, c) array, optional
        In the units of :class:`SiteParameters`.
    pair_softness : (K, c) array, optional
    """

    hardness: Array | None = None
    width: Array | None = None
    polarizability: Array | None = None
    softness: Array | None = None
    pair_softness: Array | None = None

    @property
    def moves_bonds(self) -> bool:
        """Whether the softness of bonds changes."""
        return self.softness is not None or self.pair_softness is not None

    @property
    def columns(self) -> int:
        """The number c of directions."""
        for kind in SITE_KINDS:
            block = getattr(self, kind)
            if block is not None:
                return int(block.shape[1])
        return 0


@dataclass(frozen=True, eq=False)
class Response:
    """Change of a charge state with c perturbations.

    Attributes
    ----------
    unknowns : (n, c) array
        ∂y, in the model's own layout; hand the response back to the state's ``gradient_response``.
    charges : (N, c) array
        ∂q.
    dipole : (3, c) array or None
        ∂μ; ``None`` where the dipole is not defined.
    field : (3, c) array, optional
        Change of the external field itself, where that is the perturbation.
    sites : SiteChange, optional
        Change of the site parameters themselves, where that is the perturbation.
    potentials : (N, c) array, optional
        ∂u, the change of minus the potential that each charge feels.
    reference : (N, c) array, optional
        Change of the reference charges, where that is the perturbation.
    """

    unknowns: Array
    charges: Array
    dipole: Array | None
    field: Array | None = None
    sites: SiteChange | None = None
    potentials: Array | None = None
    reference: Array | None = None


class ChargeState(Protocol):
    """Charges of one structure at given electronegativities, field and total charge."""

    @property
    def energy(self) -> float:
        """Electrostatic energy including hardness, electronegativity and field terms, eV."""

    @property
    def charges(self) -> Array:
        """(N,) array, e."""

    @property
    def atomic_dipoles(self) -> Array | None:
        """(N, 3) array, e·Å; ``None`` for models without."""

    @property
    def dipole(self) -> Array | None:
        """−∂E/∂field for the fields that the model admits, (3,) array in e·Å about the origin.

        For a slab and a model without a polarization of its own, the component along the normal (the
        others are zero); ``None`` where no component is defined.
        """

    @property
    def chemical_potential(self) -> float:
        """∂E/∂Q in eV/e; added charge is shared among constraints and reference charges evenly by atoms."""

    def reference_gradient(self) -> Array:
        """∂E/∂(charge that belongs to atom i), (N,) array in eV/e.

        With constraints, the chemical potential of the atom's fragment.
        """

    def electronegativity_gradient(self) -> Array:
        """∂E/∂χ_i, (N,) array in e; for models of quantity ``"charge"`` ∂E/∂v_i in eV/e."""

    def electronegativity_gradient_response(self, response: Response) -> Array:
        """Change of :meth:`electronegativity_gradient`, (N, c) array."""

    def site_gradient(self) -> SiteParameters:
        """∂E/∂(site parameter)_i for every kind that the model has, each (N,)."""

    def site_gradient_response(self, response: Response) -> SiteChange:
        """Change of :meth:`site_gradient`, (N, c) arrays, for the kinds in :data:`ENVIRONMENT_KINDS`.

        Explicit second derivatives are included where the response changes the site parameters themselves.
        """

    def gradient(self) -> Array:
        """∂E/∂r at fixed y, χ, site parameters and field, (N, 3) array in eV/Å."""

    def strain(self) -> Array:
        """∂E/∂ε at fixed y, χ and field, (3, 3) array in eV."""

    def respond_sites(self, change: SiteChange) -> Response:
        """Response to c changes of the site parameters."""

    def external_gradient(self) -> Array | None:
        """∂E/∂(positions of external charges), likewise, (M, 3) array in eV/Å; ``None`` without such charges."""

    def external_gradient_response(self, response: Response) -> Array | None:
        """Its change with ∂y, (M, 3, c) array."""

    def gradient_response(self, response: Response) -> Array:
        """Change of :meth:`gradient` with ∂y and with what else the response changes, (N, 3, c) array."""

    def strain_response(self, response: Response) -> Array:
        """Change of :meth:`strain`, likewise, (3, 3, c) array."""

    def gradient_second_response(self, first: Response, second: Response) -> Array:
        """Change of ``gradient_response(first)``, of one column, with the charges of ``second``, (N, 3, c) array.

        For responses that do not change site parameters; ``second`` does not change the field either.
        """


class ChargeSystem(Protocol):
    """A charge model bound to one geometry."""

    @property
    def responses_are_cheap(self) -> bool:
        """Whether responses reuse a factorisation; otherwise each column costs as much as a solution."""

    def solve(self, chi: Array, external_field: Array, total_charge: float) -> ChargeState:
        """Solve for electronegativities (N,), field (3,) and total charge.

        Raises
        ------
        UnsupportedError
            If the field is not defined for the structure's periodicity.
        """

    def respond(self, dchi: Array) -> Response:
        """Response to c perturbations of the electronegativities (or charges v), (N, c) array in eV/e (e)."""

    def respond_potential(self, potential: Array) -> Response:
        """Response to c perturbations of the potential at the charges, (N, c) array in V."""

    def respond_field(self) -> Response:
        """Response to the three components of the external field (c = 3); inadmissible ones give zero."""

    def respond_total_charge(self) -> Response:
        """Response to the total charge (c = 1); its charges are the Fukui function."""

    def polarizability(self) -> Array | None:
        """∂μ/∂field, (3, 3) array in e²·Å²/eV; ``None`` where it is not defined (see ``dipole``)."""

    def polarizability_response(self, change: SiteChange) -> Array:
        """Change of the polarizability with c changes of the site parameters, (3, 3, c) array."""

    def hardness(self) -> float:
        """∂²E/∂Q² at fixed geometry, eV/e²."""


class ChargeModel(Protocol):
    """The recipe; follows scikit-learn's parameter conventions so that it can be cloned and searched."""

    @property
    def quantity(self) -> str:
        """What the kernel model says of each atom: ``"electronegativity"``, or ``"charge"`` (before any flow).

        What is said here of electronegativities χ (eV/e) holds for those charges v (e) in their place.
        """

    @property
    def to_learn(self) -> tuple[str, ...]:
        """The kinds whose values by element are to be learned (``"learn"``, ``"kernel"``), a subset of SITE_KINDS."""

    @property
    def environment(self) -> tuple[str, ...]:
        """The kinds that depend on the environment (``"kernel"``), a subset of ENVIRONMENT_KINDS."""

    def with_parameters(self, values: Mapping[str, Mapping[str, float]]) -> ChargeModel:
        """A copy with values by kind and element symbol in place of what it had, for those kinds."""

    def check_settings(self) -> None:
        """Refuse settings that make no sense, whatever the structure.

        Raises
        ------
        InputError
        """

    def check(self, structure: Structure) -> None:
        """Refuse structures and conditions that the model cannot treat, before any long work.

        Raises
        ------
        InputError, UnsupportedError
        """

    def check_structure(self, structure: Structure) -> None:
        """As :meth:`check`, for models with parameters that are still to be learned as well."""

    def site_parameters(self, numbers: IntArray) -> SiteParameters:
        """Element parameters spread over atoms; those to be learned start at their defaults."""

    def bind(
        self,
        structure: Structure,
        sites: SiteParameters | None = None,
        *,
        many_responses: bool = False,
        device: Device = CPU,
    ) -> ChargeSystem:
        """Build the problem for one geometry, and factor it unless it is to be solved iteratively.

        Parameters
        ----------
        structure : Structure
        sites : SiteParameters, optional
            In place of the model's own.
        many_responses : bool
            The caller will ask for many columns of responses, for which a factorisation pays in larger systems.
        device : Device
            Where to compute.

        Raises
        ------
        NotPositiveDefiniteError
            If the energy has no minimum.
        """

    def to_dict(self) -> dict[str, Any]:
        """Everything needed to build the model again (plain numbers, strings, dicts)."""


__all__ = [
    "ENVIRONMENT_KINDS",
    "SITE_KINDS",
    "ChargeModel",
    "ChargeState",
    "ChargeSystem",
    "Response",
    "SiteChange",
    "SiteParameters",
]
