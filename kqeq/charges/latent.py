"""Latent charges: functions of the environment of each atom, without any response.

    q_i = v_i − ⟨v⟩ + Q/N,     E = ½ Σ_{i≠j} q_i A_ij q_j + (V − field · r)ᵀq

with A the Coulomb interaction of Gaussian charges (theory sections 1, 7).  The kernel model says v, in e; the mean ⟨ ⟩ is
that of all atoms, or of each fragment.  This is the form of latent Ewald summation (Cheng 2025,
*npj Comput. Mater.* 11, 80), with Gaussians of the elements' covalent radii.

**Self energies are left out.**  Those of Gaussian charges, k_e q²/(2√π σ), belong to one atom: they depend on its
environment alone, which the short-range energy describes, would dominate the electrostatic energy (6 eV for a charge of
1 e on oxygen), and would make the energy of an isolated ion depend on a width.  In periodic cells an atom interacts with
its own images.

What such charges cannot do follows from the form.  They do not move: neither in a field (without atomic dipoles the
polarizability is zero), nor over distances beyond the cutoff of the kernel, nor between charge states, all of which share
one shape up to a uniform shift; the energy has no part that is linear in the total charge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from kqeq import elements
from kqeq.backend import Device
from kqeq.charges.base import SiteParameters
from kqeq.charges.flow import NoFlow
from kqeq.charges.fragments import fragment_reference, require_fragments
from kqeq.charges.on_site import OnSite
from kqeq.charges.recipe import DEFAULT_ACCURACY, Recipe, element_values
from kqeq.charges.site_values import CHARGE, ReferenceCharges
from kqeq.constants import COULOMB
from kqeq.frames.neighbours import find_pairs
from kqeq.frames.structures import Structure
from kqeq.io.rules import FLAG, NOTHING, Rule, instance
from kqeq.typing import FloatArray, IntArray

BOND_LENGTH = 1.25
"""Atoms closer than this many sums of covalent radii are bonded, for typical charges."""

LARGEST_TYPICAL = 1.0
"""Typical charges are not larger than this, e: bonds of solids share the valence of an atom."""

_NAME = "LatentCharges(fragments=True)"


class LatentCharges(Recipe):
    """Charges that are a function of the environment, shifted to the total charge.

    Parameters
    ----------
    width : dict, optional
        Gaussian width σ by element symbol in Å; elements that are not named, and ``None``, take the covalent radius
        (:mod:`kqeq.elements`).
    fragments : bool
        Whether each fragment of a structure keeps its own charge: ``atoms.arrays["fragments"]`` and
        ``atoms.info["fragment_charges"]``, see :func:`kqeq.charges.assign_fragments`; its charges are shifted to that.
    solver : {"auto", "dense", "iterative"}
        Form the matrix of the interactions, or take products over a particle mesh (the same answer to ``accuracy``).
        ``"auto"`` takes the faster one.
    accuracy : float
        Largest error of a charge, e, that products over the mesh aim at.

    Notes
    -----
    The kernel of :class:`kqeq.KQEq` that is called ``electronegativity`` is that of the charges; its ``delta`` is in e.
    Without dipole labels charges are learned from energies and forces alone, as in latent Ewald summation.
    ``kqeq.AtomicDipoles(kqeq.LatentCharges())`` adds dipoles that follow field and charges.
    Fields, dipoles and Born charges are defined along open directions only.
    """

    _rules: ClassVar[dict[str, Rule]] = {
        "fragments": FLAG,
        "width": instance(Mapping, "a dict of values by element") | NOTHING,
    }

    def __init__(
        self,
        width: Mapping[str, float] | None = None,
        fragments: bool = False,
        solver: str = "auto",
        accuracy: float = DEFAULT_ACCURACY,
    ) -> None:
        self.width = width
        self.fragments = fragments
        self.solver = solver
        self.accuracy = accuracy

    @property
    def quantity(self) -> str:
        """What the kernel model says of each atom."""
        return CHARGE

    def site_parameters(self, numbers: IntArray) -> SiteParameters:
        """Widths, and minus the self energy of the Gaussian in place of a hardness.

        Raises
        ------
        InputError
            For unknown elements, or widths that are not finite or not positive.
        """
        width = element_values(self.width, numbers, elements.width, "width")
        return SiteParameters(hardness=-COULOMB / math.sqrt(math.pi) / width, width=width)

    def _check_charges(self, structure: Structure) -> None:
        if self.fragments:
            require_fragments(structure, _NAME)

    def _require_stable(self, on_site: OnSite) -> None:
        """Nothing: charges are at no minimum."""

    def _flow(self, structure: Structure, sites: SiteParameters, device: Device) -> NoFlow:
        return NoFlow.build(structure, self._group(structure), device)

    def _reference(self, structure: Structure) -> FloatArray:
        if self.fragments:
            return fragment_reference(structure, _NAME)
        return np.full(len(structure), structure.total_charge / len(structure))

    def _site_values(self, structure: Structure, device: Device) -> ReferenceCharges:
        return ReferenceCharges.build(self._group(structure), device)

    def _group(self, structure: Structure) -> IntArray:
        """Number of the constraint of each atom."""
        if not self.fragments:
            return np.zeros(len(structure), dtype=np.int64)
        assert structure.fragments is not None
        return structure.fragments


def typical_charges(structures: Sequence[Structure], species: Sequence[int]) -> dict[int, float]:
    """Charges by element, e, that bonds suggest: the means over atoms of sums of bond dipoles.

    A bond between elements whose Pauling electronegativities differ by Δ carries 0.16 Δ + 0.035 Δ² e (Hannay & Smyth
    1946, *J. Am. Chem. Soc.* 68, 171); elements without such an electronegativity have neutral bonds.

    Parameters
    ----------
    structures : sequence of Structure
    species : sequence of int
        Elements to answer for.

    Returns
    -------
    dict of int to float
    """
    total = dict.fromkeys(species, 0.0)
    count = dict.fromkeys(species, 0)
    for structure in structures:
        charges = _bond_charges(structure)
        for z in species:
            own = structure.numbers == z
            total[z] += float(charges[own].sum())
            count[z] += int(own.sum())
    means = {z: total[z] / max(count[z], 1) for z in species}
    return {z: float(np.clip(mean, -LARGEST_TYPICAL, LARGEST_TYPICAL)) for z, mean in means.items()}


def _bond_charges(structure: Structure) -> FloatArray:
    """Sum of bond dipoles at each atom, (N,), e."""
    radii = elements.width(structure.numbers)
    levels = elements.pauling(structure.numbers)
    pairs = find_pairs(structure, 2.0 * BOND_LENGTH * float(radii.max()))
    i, j = pairs.indices[:, 0], pairs.indices[:, 1]
    bonded = np.einsum("pa,pa->p", pairs.vectors, pairs.vectors) < (BOND_LENGTH * (radii[i] + radii[j])) ** 2
    i, j = i[bonded], j[bonded]
    difference = np.nan_to_num(levels[j] - levels[i])
    charge = np.sign(difference) * (0.16 * np.abs(difference) + 0.035 * difference**2)
    return np.asarray(np.bincount(i, weights=charge, minlength=len(structure)), dtype=np.float64)


__all__ = ["LatentCharges", "typical_charges"]
