"""ACKS2: charge flows between atoms that touch (Verstraelen et al. 2013, *J. Chem. Phys.* 138, 074108).

    E = χᵀq + ½ qᵀAq + ½ Σ_pairs p²/k(r),   q = q0 + C p

With the Laplacian L = C K Cᵀ of the bond softness k, q = (1 + LA)⁻¹ q0 − R(χ + φ), R = (1 + LA)⁻¹L
(theory section 6).  One softness sets how charge responds and how much may flow at all.  With learned reference charges,
q0 = v − ⟨v⟩ + Q/N, permanent charges come from the environment and the response from the softness (section 7):

    E = ½ Σ_i a_i (q_i − q0_i)² + ½ Σ_{i≠j} q_i A_ij q_j + ½ Σ_pairs p²/k(r),   a_i = η_i + k_e/(√π σ_i)

in place of electronegativities: what an atom prefers is its reference charge, and what moves charge is the field of the
other atoms and of the outside.  Without softness these are latent charges (:mod:`kqeq.charges.latent`).
This is also the split-charge model (Nistor et al. 2006, *J. Chem. Phys.* 125, 094108).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Self

import numpy as np

from kqeq.backend import Device
from kqeq.charges.base import SiteParameters
from kqeq.charges.boundaries import CHARGED_REFERENCE, refuse_periodic_field
from kqeq.charges.flow import BondFlow
from kqeq.charges.fragments import KERNEL_REFERENCE, REFERENCES, reference_charges
from kqeq.charges.recipe import DEFAULT_ACCURACY, ElementValues, Recipe, element_rule, element_values
from kqeq.charges.site_values import CHARGE, ELECTRONEGATIVITY, ReferenceCharges, SiteValues
from kqeq.charges.softness import (
    DEFAULT_CUTOFF,
    DEFAULT_DECAY,
    PAIR_LEARN,
    GivenFactors,
    default_softness,
    factors_of_classes,
    pair_factors,
    pair_name,
    pair_of,
    to_learn_pairs,
)
from kqeq.errors import InputError
from kqeq.frames.structures import Structure
from kqeq.io.rules import NOTHING, Rule, choice, instance, number
from kqeq.typing import FloatArray, IntArray


class ACKS2(Recipe):
    """Split-charge equilibration: charge flows along bonds of finite softness.

    Parameters
    ----------
    softness : dict, optional
        Bond softness κ by element symbol in e²/eV, not negative; a pair at the sum of its covalent radii has
        √(κ_i κ_j).  Elements that are not named, and ``None``, take α/R² of the free atom
        (:mod:`kqeq.charges.softness`); ``"learn"`` starts from there, and ``"kernel"`` also learns how κ depends on
        the environment.  Large values recover QEq, zero forbids flow.
    pair_softness : dict or {"learn"}, optional
        Factors on the softness of bonds between two elements, for example ``{"Al-O": 0, "Al-H": 0, "Al-Al": 10}``, not
        negative, 1 for pairs that are not named: none between phases that do not exchange electrons, many within a metal.
        ``"learn"`` in place of a factor learns it, from 1; in place of the dict, all of them.
    hardness, width : dict, optional
        As for :class:`kqeq.QEq`.
    cutoff : float
        Distance beyond which no charge flows, in sums of covalent radii; above 1.
    decay : float
        Exponent β of an exponential decay of the softness on the way there, per length of a bond; 0 for none.
    reference_charges : {None, "uniform", "fragments", "given", "kernel"}
        Charges that the atoms start from.  ``"uniform"`` spreads the total charge evenly, which puts fractional
        charges on separated fragments; ``"fragments"`` spreads each fragment's charge
        (``atoms.info["fragment_charges"]``) over its atoms; ``"given"`` takes ``atoms.arrays["reference_charges"]``.
        ``None`` takes the first of given, fragments, uniform that the structure carries.  ``"kernel"`` learns them as a
        function of the environment, in place of electronegativities (the kernel that is called ``electronegativity`` is
        theirs, its ``delta`` in e), shifted to the total charge, or to that of each fragment where the structure has
        fragment charges; given reference charges are added.
    solver : {"auto", "dense", "iterative"}
        Factor the matrix, or never form it and use conjugate gradients over a particle mesh (the same answer to
        ``accuracy``; each column of a response costs as much as a solution).  ``"auto"`` takes the faster one.
    accuracy : float
        Largest error of a charge, e, that iterative solutions aim at.

    Notes
    -----
    Repairs QEq's growth of polarizabilities with size and its charge transfer between separated fragments.
    The charges of ions depend on the reference charges.  Fields along periodic directions are allowed where the
    reference charges are zero; in cells with three periodic directions such a field is the total macroscopic field.
    """

    _rules: ClassVar[dict[str, Rule]] = {
        "softness": element_rule("softness"),
        "decay": number(),
        "cutoff": number(above=1),  # in sums of covalent radii
        "pair_softness": instance(Mapping, "a dict of factors by pair of elements")
        | choice(PAIR_LEARN)
        | NOTHING,
        "reference_charges": choice(*REFERENCES, KERNEL_REFERENCE) | NOTHING,
    }

    def __init__(
        self,
        softness: ElementValues = None,
        hardness: ElementValues = None,
        width: ElementValues = None,
        decay: float = DEFAULT_DECAY,
        cutoff: float = DEFAULT_CUTOFF,
        reference_charges: str | None = None,
        solver: str = "auto",
        accuracy: float = DEFAULT_ACCURACY,
        pair_softness: GivenFactors = None,
    ) -> None:
        self.softness = softness
        self.hardness = hardness
        self.width = width
        self.decay = decay
        self.cutoff = cutoff
        self.reference_charges = reference_charges
        self.solver = solver
        self.accuracy = accuracy
        self.pair_softness = pair_softness

    def site_parameters(self, numbers: IntArray) -> SiteParameters:
        """Parameters of every atom.

        Raises
        ------
        InputError
            For unknown elements, values that are not finite, widths that are not positive, or negative softness.
        """
        kappa = element_values(self.softness, numbers, default_softness, "softness")
        if (kappa < 0.0).any():
            raise InputError(
                f"softness of {kappa.min():g} e²/eV; expected values that are not negative (0: no charge flows)"
            )
        return replace(
            super().site_parameters(numbers),
            softness=kappa,
            pair_softness=factors_of_classes(self.pair_softness, numbers),
        )

    @property
    def to_learn(self) -> tuple[str, ...]:
        """Kinds of site parameters whose values by element, or by pair of elements, are to be learned."""
        own = ("pair_softness",) if to_learn_pairs(self.pair_softness) else ()
        return (*(kind for kind in super().to_learn if kind != "pair_softness"), *own)

    def with_parameters(self, values: Mapping[str, Mapping[str, float]]) -> Self:
        """A copy with parameters by kind and element symbol, or pair of them; others keep their values."""
        model = super().with_parameters({k: v for k, v in values.items() if k != "pair_softness"})
        if "pair_softness" in values:
            old = {} if isinstance(self.pair_softness, str) else self.pair_softness or {}
            found: dict[tuple[int, int], float | str] = {pair_of(name): value for name, value in old.items()}
            found.update({pair_of(name): value for name, value in values["pair_softness"].items()})
            # pairs of elements that no training frame has stay at the factor that they would have started from
            given = {
                pair_name(pair): 1.0 if isinstance(value, str) else value for pair, value in found.items()
            }
            model.set_params(pair_softness=given)
        return model

    @property
    def quantity(self) -> str:
        """What the kernel model says of each atom."""
        return CHARGE if self.reference_charges == KERNEL_REFERENCE else ELECTRONEGATIVITY

    def check_settings(self) -> None:
        """Refuse settings that make no sense.

        Raises
        ------
        InputError
        """
        super().check_settings()
        pair_factors(self.pair_softness)

    def _check_charges(self, structure: Structure) -> None:
        self._reference(structure)

    def _check_periodic_field(self, structure: Structure, along: FloatArray) -> None:
        if self.quantity == CHARGE or np.abs(self._reference(structure)).max() > 1e-8:
            refuse_periodic_field(structure, structure.external_field, along, *CHARGED_REFERENCE)

    def _flow(self, structure: Structure, sites: SiteParameters, device: Device) -> BondFlow:
        assert sites.softness is not None
        return BondFlow.build(structure, sites.softness, self.decay, self.cutoff, device, sites.pair_softness)

    def _reference(self, structure: Structure) -> FloatArray:
        return reference_charges(structure, None if self.quantity == CHARGE else self.reference_charges)

    def _site_values(self, structure: Structure, device: Device) -> SiteValues:
        if self.quantity != CHARGE:
            return super()._site_values(structure, device)
        group = np.zeros(len(structure), dtype=np.int64)
        if structure.fragments is not None and structure.fragment_charges is not None:
            group = structure.fragments
        return ReferenceCharges.build(group, device)


__all__ = ["ACKS2"]
