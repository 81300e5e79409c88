"""What the recipes of QEq and ACKS2 share: element parameters, checks, and putting a problem together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar, Self

from ase.data import chemical_symbols
from sklearn.base import BaseEstimator, clone

from kqeq import elements
from kqeq.backend import CPU, Device, asarray_like
from kqeq.backend.linalg import add_to_diagonal, described
from kqeq.charges.base import ENVIRONMENT_KINDS, SITE_KINDS, SiteParameters
from kqeq.charges.boundaries import NO_POLARIZATION, check_periodicity, periodic_part, refuse_periodic_field
from kqeq.charges.cores import DipoleElimination
from kqeq.charges.embedding import embed
from kqeq.charges.equilibrium import Equilibrium
from kqeq.charges.flow import Flow
from kqeq.charges.on_site import HARDNESS_REMEDY, OnSite
from kqeq.charges.site_values import ELECTRONEGATIVITY, Electronegativities, SiteValues
from kqeq.charges.solvers import DenseSolver, Solver
from kqeq.electrostatics import MeshCoulomb, coulomb
from kqeq.electrostatics.base import Electrostatics
from kqeq.errors import InputError, UnsupportedError, warn
from kqeq.frames.structures import Structure
from kqeq.io.rules import NOTHING, Rule, check_settings, choice, instance, number
from kqeq.typing import FloatArray, IntArray

ElementValues = Mapping[str, float] | str | None
"""Parameters by element symbol; ``None`` for the cited defaults; ``"learn"`` to learn them from there; ``"kernel"`` to
learn how they depend on the environment as well."""

LEARN, KERNEL = "learn", "kernel"

SOLVERS: tuple[str, ...] = ("auto", "dense", "iterative")
"""How a charge problem may be solved."""

DEFAULT_ACCURACY = 1e-7
"""Accuracy asked of iterative solutions, e."""

CROSSOVER_PERIODIC = {False: 600, True: 1000}
"""Unknowns from which ``"auto"`` iterates, without and with dipoles: where energy and forces are clearly faster than
with a matrix (measured on one core: equal at 400 and 700)."""

CROSSOVER_OPEN = {False: 4000, True: 4000}
"""The same for open boundaries, whose matrix costs less and whose mesh costs more."""

MAX_DENSE = 16_000
"""Unknowns beyond which ``"auto"`` never forms the matrix: 2 GB, and as much again for its factor."""


def element_rule(kind: str) -> Rule:
    """What parameters of one kind may be."""
    words = (LEARN, KERNEL) if kind in ENVIRONMENT_KINDS else (LEARN,)
    return instance(Mapping, "a dict of values by element") | choice(*words) | NOTHING


RECIPE_RULES: dict[str, Rule] = {
    "hardness": element_rule("hardness"),
    "width": element_rule("width"),
    "solver": choice(*SOLVERS),
    "accuracy": number(1e-11, 1e-2),
}
"""Settings that all recipes have; the accuracy is the largest error of a charge, e."""


def element_values(values: ElementValues, numbers: IntArray, default: Any, kind: str) -> FloatArray:
    """Spread parameters over atoms; ``"learn"`` and ``"kernel"`` start from the defaults.

    Raises
    ------
    InputError
        For other strings and whatever :func:`kqeq.elements.resolve` refuses.
    """
    if isinstance(values, str):
        allowed = (LEARN, KERNEL) if kind in ENVIRONMENT_KINDS else (LEARN,)
        if values not in allowed:
            words = ", ".join(f'"{word}"' for word in allowed)
            raise InputError(
                f"{kind} is {values!r}; expected a dict of values by element, {words}, or None for the defaults"
            )
        values = None
    return elements.resolve(values, numbers, default, kind)


def not_learned_yet(values: Mapping[str, str]) -> UnsupportedError:
    """The error for a model whose parameters are still ``"learn"`` or ``"kernel"``, by kind."""
    text = ", ".join(f'{kind}="{value}"' for kind, value in values.items())
    return UnsupportedError(
        f"{text}: the parameters were not learned yet; fit a "
        "kqeq.KQEq with this model, or call kqeq.fitting.learning.learn_from_polarizabilities(model, structures, "
        "polarizabilities) first, or give a dict of values by element, or None for the defaults"
    )


def old_learned(model: Any) -> tuple[str, ...]:
    """``to_learn`` by its name of version 0.1, with a warning."""
    warn("learned is now to_learn; the old name goes with the next release", DeprecationWarning)
    kinds: tuple[str, ...] = model.to_learn
    return kinds


class Recipe(BaseEstimator):  # type: ignore[misc]
    """A charge model made of element parameters; see :class:`kqeq.charges.base.ChargeModel`."""

    _rules: ClassVar[dict[str, Rule]] = {}
    """Settings of a model beyond :data:`RECIPE_RULES`."""

    @property
    def quantity(self) -> str:
        """What the kernel model says of each atom."""
        return ELECTRONEGATIVITY

    def _kinds(self) -> tuple[str, ...]:
        """Kinds of site parameters of the model, attributes of the same names."""
        return tuple(kind for kind in SITE_KINDS if hasattr(self, kind))

    @property
    def to_learn(self) -> tuple[str, ...]:
        """Kinds of site parameters whose values by element are to be learned."""
        return tuple(kind for kind in self._kinds() if isinstance(getattr(self, kind), str))

    @property
    def learned(self) -> tuple[str, ...]:
        """The name of version 0.1; use ``to_learn``."""
        return old_learned(self)

    @property
    def environment(self) -> tuple[str, ...]:
        """Kinds of site parameters that depend on the environment."""
        return tuple(kind for kind in self.to_learn if getattr(self, kind) == KERNEL)

    def with_parameters(self, values: Mapping[str, Mapping[str, float]]) -> Self:
        """A copy with parameters by kind and element symbol; elements that are not named keep their values."""
        model = clone(self)
        for kind, given in values.items():
            old = getattr(self, kind)
            model.set_params(**{kind: {**(_by_symbol(old) if isinstance(old, Mapping) else {}), **given}})
        return model  # type: ignore[no-any-return]

    def site_parameters(self, numbers: IntArray) -> SiteParameters:
        """Parameters of every atom.

        Raises
        ------
        InputError
            For unknown elements, or values that are not finite or not positive (width).
        """
        return SiteParameters(
            hardness=element_values(self.hardness, numbers, elements.hardness, "hardness"),
            width=element_values(self.width, numbers, elements.width, "width"),
        )

    def check(self, structure: Structure) -> None:
        """Refuse what this model cannot treat.

        Raises
        ------
        UnsupportedError
            For one periodic direction, fields that are not defined, and parameters that were not learned yet.
        InputError
            For elements without parameters, or fragments that the structure lacks.
        """
        self.check_structure(structure)
        if self.to_learn:
            raise not_learned_yet({kind: getattr(self, kind) for kind in self.to_learn})

    def check_structure(self, structure: Structure) -> None:
        """As :meth:`check`, for models with parameters that are still to be learned as well."""
        check_periodicity(structure, type(self).__name__)
        self.check_settings()
        self.site_parameters(structure.numbers)
        self._check_charges(structure)
        along = periodic_part(structure, structure.external_field)
        if along is not None:
            self._check_periodic_field(structure, along)

    @classmethod
    @cache
    def _all_rules(cls) -> Mapping[str, Rule]:
        return RECIPE_RULES | cls._rules

    def check_settings(self) -> None:
        """Refuse settings that make no sense.

        Raises
        ------
        InputError
        """
        check_settings(self, self._all_rules())

    def _check_charges(self, structure: Structure) -> None:
        """Refuse structures that lack the fragments or reference charges that the model needs."""

    def _check_periodic_field(self, structure: Structure, along: FloatArray) -> None:
        refuse_periodic_field(structure, structure.external_field, along, *NO_POLARIZATION)

    def bind(
        self,
        structure: Structure,
        sites: SiteParameters | None = None,
        *,
        many_responses: bool = False,
        device: Device = CPU,
    ) -> Equilibrium:
        """Build and factor the charge problem of one geometry; see :class:`~kqeq.charges.base.ChargeModel`."""
        sites = self.site_parameters(structure.numbers) if sites is None else sites
        on_site = OnSite(sites if sites.polarizability is None else replace(sites, polarizability=None))
        return self.assemble(structure, on_site, many_responses=many_responses, device=device)

    def assemble(
        self, structure: Structure, on_site: OnSite, *, many_responses: bool, device: Device
    ) -> Equilibrium:
        """Put the problem together: Coulomb interaction, what atoms add by themselves, and how charge moves.

        Raises
        ------
        NotPositiveDefiniteError
            If the energy has no minimum.
        """
        atoms = len(structure)
        name = f"the {type(self).__name__} matrix of {atoms} atoms"
        on_site = on_site.on(device.like)
        provider = self._products(structure, on_site, many_responses, device)
        if provider is not None:
            flow = self._flow(structure, on_site.sites, device)
            solver: Solver = flow.iterative_solver(provider, on_site, float(self.accuracy))
        else:
            provider = coulomb(structure, on_site.sites.width, dipoles=on_site.has_dipoles, device=device)
            hessian = add_to_diagonal(provider.matrix(), on_site.diagonal())
            elimination = None
            if on_site.has_dipoles:
                with described(
                    f"the interaction of the atomic dipoles of {atoms} atoms", on_site.dipole_remedy
                ):
                    elimination = DipoleElimination.build(hessian, atoms)
            flow = self._flow(structure, on_site.sites, device)
            with described(name, HARDNESS_REMEDY):
                core = flow.core(hessian if elimination is None else elimination.hessian)
            solver = DenseSolver(hessian, core, elimination)
        reference = asarray_like(self._reference(structure), device.like)
        values = self._site_values(structure, device)
        embedding = embed(structure, on_site.sites.width, dipoles=on_site.has_dipoles, device=device)
        return Equilibrium(
            name, structure, provider, on_site, flow, solver, reference, values, device, embedding
        )

    def _flow(self, structure: Structure, sites: SiteParameters, device: Device) -> Flow:
        """How charge moves in this model."""
        raise NotImplementedError

    def _reference(self, structure: Structure) -> FloatArray:
        """Charges that the atoms start from, (N,) array in e."""
        raise NotImplementedError

    def _require_stable(self, on_site: OnSite) -> None:
        """Refuse atoms that are unstable alone, before an iteration that may not notice.

        Raises
        ------
        NotPositiveDefiniteError
        """
        on_site.require_positive()

    def _site_values(self, structure: Structure, device: Device) -> SiteValues:
        """How the kernel model's numbers enter."""
        return Electronegativities()

    def _products(
        self, structure: Structure, on_site: OnSite, many_responses: bool, device: Device
    ) -> Electrostatics | None:
        """What the iterative solver takes products from; ``None`` where the dense one is wanted."""
        self.check_settings()
        dipoles = on_site.has_dipoles
        size = on_site.components * len(structure)
        too_large = size > MAX_DENSE
        if self.solver == "dense" or (self.solver == "auto" and not too_large and many_responses):
            return None
        crossover = CROSSOVER_PERIODIC if structure.periodic else CROSSOVER_OPEN
        if self.solver == "auto" and size < crossover[dipoles]:
            return None
        provider = coulomb(
            structure,
            on_site.sites.width,
            dipoles=dipoles,
            accuracy=float(self.accuracy),
            matrix_free=True,
            device=device,
        )
        self._require_stable(on_site)
        # direct products cost as much as the matrix: they pay only where it does not fit into memory
        if self.solver == "auto" and not too_large and not isinstance(provider, MeshCoulomb):
            return None
        return provider

    def to_dict(self) -> dict[str, Any]:
        """Parameters as plain data."""
        data: dict[str, Any] = {"model": type(self).__name__}
        for name, value in self.get_params(deep=False).items():
            data[name] = _by_symbol(value) if isinstance(value, Mapping) else value
        return data


def _by_symbol(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Element values keyed by symbol, whichever way they were named: files have no integer keys."""
    return {key if isinstance(key, str) else chemical_symbols[key]: value for key, value in values.items()}


__all__ = [
    "DEFAULT_ACCURACY",
    "KERNEL",
    "LEARN",
    "ElementValues",
    "Recipe",
    "element_values",
    "not_learned_yet",
    "old_learned",
]
