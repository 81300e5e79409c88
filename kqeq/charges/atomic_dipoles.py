"""Atomic dipoles on top of a charge model.

y = (q, d) with the Hessian [[A, T], [Tᵀ, D]] of Gaussian charges and dipoles and D_ii = 1/α_i + k_e/(6√π σ_i³):
positive definite for any parameters.  The field couples to r·q + d (theory section 6).  Restores the
polarizability of atoms, and that of flat molecules out of their plane, which charges alone can never have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from sklearn.base import BaseEstimator, clone

from kqeq import elements
from kqeq.backend import CPU, Device
from kqeq.charges.acks2 import ACKS2
from kqeq.charges.base import SiteParameters
from kqeq.charges.equilibrium import Equilibrium
from kqeq.charges.on_site import OnSite
from kqeq.charges.recipe import (
    KERNEL,
    ElementValues,
    Recipe,
    element_rule,
    element_values,
    not_learned_yet,
    old_learned,
)
from kqeq.constants import COULOMB
from kqeq.frames.structures import Structure
from kqeq.io.rules import FLAG, NOTHING, Rule, check_settings, instance
from kqeq.typing import IntArray

_RULES: Mapping[str, Rule] = {
    "inner": instance(Recipe, "a model of charges, kqeq.QEq(...) or kqeq.ACKS2(...)") | NOTHING,
    "polarizability": element_rule("polarizability"),
    "damping": FLAG,
}


class AtomicDipoles(BaseEstimator):  # type: ignore[misc]
    """A charge model whose atoms also carry dipoles.

    Parameters
    ----------
    inner : QEq, ACKS2 or LatentCharges, optional
        The charge model underneath; ``None`` for ``kqeq.ACKS2()``, the combination to recommend.
    polarizability : dict, optional
        α by element symbol in Å³; elements that are not named, and ``None``, take that of the free atom
        (:mod:`kqeq.elements`); ``"learn"`` starts from there, and ``"kernel"`` also learns how α depends on the
        environment.
    damping : bool
        Whether dipoles have the self interaction of their Gaussian, 1/α_eff = 1/α + 1/(6√π σ³) with α in Å³: then no
        parameters and no geometry can cause a polarization catastrophe.  Without, an isolated atom has
        exactly α.

    Notes
    -----
    An external potential at the atoms acts on their charges only: it says nothing of its gradient.
    """

    def __init__(
        self, inner: Recipe | None = None, polarizability: ElementValues = None, damping: bool = True
    ) -> None:
        self.inner = inner
        self.polarizability = polarizability
        self.damping = damping

    @property
    def quantity(self) -> str:
        """What the kernel model says of each atom."""
        return self.charge_model.quantity

    def check_settings(self) -> None:
        """Refuse settings that make no sense, those of the model underneath included.

        Raises
        ------
        InputError
        """
        self.charge_model.check_settings()

    @property
    def charge_model(self) -> Recipe:
        """The model underneath, the default resolved.

        Raises
        ------
        InputError
            For settings that make no sense.
        """
        check_settings(self, _RULES)
        return ACKS2() if self.inner is None else self.inner

    @property
    def to_learn(self) -> tuple[str, ...]:
        """Kinds of site parameters whose values by element are to be learned."""
        own = ("polarizability",) if isinstance(self.polarizability, str) else ()
        return (*self.charge_model.to_learn, *own)

    @property
    def learned(self) -> tuple[str, ...]:
        """The name of version 0.1; use ``to_learn``."""
        return old_learned(self)

    @property
    def environment(self) -> tuple[str, ...]:
        """Kinds of site parameters that depend on the environment."""
        own = (
            ("polarizability",)
            if isinstance(self.polarizability, str) and self.polarizability == KERNEL
            else ()
        )
        return (*self.charge_model.environment, *own)

    def with_parameters(self, values: Mapping[str, Mapping[str, float]]) -> Self:
        """A copy with parameters by kind and element symbol; elements that are not named keep their values."""
        model = clone(self)
        inner = {kind: given for kind, given in values.items() if kind != "polarizability"}
        model.set_params(inner=self.charge_model.with_parameters(inner))
        if "polarizability" in values:
            old = self.polarizability if isinstance(self.polarizability, Mapping) else {}
            model.set_params(polarizability={**old, **values["polarizability"]})
        return model  # type: ignore[no-any-return]

    def check(self, structure: Structure) -> None:
        """Refuse what this model cannot treat; see :class:`~kqeq.charges.base.ChargeModel`."""
        self.site_parameters(structure.numbers)
        self.charge_model.check(structure)
        if isinstance(self.polarizability, str):
            raise not_learned_yet({"polarizability": self.polarizability})

    def check_structure(self, structure: Structure) -> None:
        """As :meth:`check`, for models with parameters that are still to be learned as well."""
        self.charge_model.check_structure(structure)
        self.site_parameters(structure.numbers)

    def site_parameters(self, numbers: IntArray) -> SiteParameters:
        """Parameters of every atom (polarizabilities in e²·Å²/eV).

        Raises
        ------
        InputError
            For unknown elements, or values that are not finite or not positive.
        """
        alpha = element_values(self.polarizability, numbers, elements.polarizability, "polarizability")
        return replace(self.charge_model.site_parameters(numbers), polarizability=alpha / COULOMB)

    def bind(
        self,
        structure: Structure,
        sites: SiteParameters | None = None,
        *,
        many_responses: bool = False,
        device: Device = CPU,
    ) -> Equilibrium:
        """Build and factor the charge problem of one geometry; see :class:`~kqeq.charges.base.ChargeModel`.

        Raises
        ------
        NotPositiveDefiniteError
            If undamped dipoles polarise each other without limit, or the charges have no minimum.
        """
        sites = self.site_parameters(structure.numbers) if sites is None else sites
        on_site = OnSite(sites, damped=bool(self.damping))
        return self.charge_model.assemble(structure, on_site, many_responses=many_responses, device=device)

    def to_dict(self) -> dict[str, Any]:
        """Parameters as plain data."""
        alpha = self.polarizability
        return {
            "model": "AtomicDipoles",
            "inner": None if self.inner is None else self.charge_model.to_dict(),
            "polarizability": dict(alpha) if isinstance(alpha, Mapping) else alpha,
            "damping": self.damping,
        }


__all__ = ["AtomicDipoles"]
