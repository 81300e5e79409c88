"""Charge equilibration (QEq): the simplest charge model.

    E = (χ + φ)ᵀq + ½ qᵀAq,   Σq = Q,   φ_i = −field · r_i

with the Coulomb matrix A of Gaussian charges plus hardness on its diagonal (theory section 1; Rappé &
Goddard 1991, *J. Phys. Chem.* 95, 3358; Gaussian charges as in Ghasemi et al. 2015, *Phys. Rev. B* 92,
045131).  With fragments, one constraint Σq = Q_f for each.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from kqeq.backend import Device
from kqeq.charges.base import SiteParameters
from kqeq.charges.flow import FreeFlow
from kqeq.charges.fragments import fragment_reference, require_fragments
from kqeq.charges.recipe import DEFAULT_ACCURACY, ElementValues, Recipe
from kqeq.frames.structures import Structure
from kqeq.io.rules import FLAG, Rule
from kqeq.typing import FloatArray


class QEq(Recipe):
    """Charge equilibration with Gaussian charges.

    Parameters
    ----------
    hardness : dict, optional
        η by element symbol in eV/e², for example ``{"O": 12.0}``; elements that are not named, and
        ``None``, take the cited defaults of :mod:`kqeq.elements`.  ``"learn"`` starts from the defaults; ``"kernel"``
        also learns how η depends on the environment of the atom (``KQEq(site_kernel=...)``).
    width : dict, optional
        Gaussian width σ by element symbol in Å, likewise, without ``"kernel"``.
    fragments : bool
        Whether each fragment of a structure keeps its own charge: ``atoms.arrays["fragments"]`` and
        ``atoms.info["fragment_charges"]``, see :func:`kqeq.charges.assign_fragments`.
    solver : {"auto", "dense", "iterative"}
        Factor the matrix, or never form it and use conjugate gradients over a particle mesh (the same answer to
        ``accuracy``; each column of a response costs as much as a solution).  ``"auto"`` takes the faster one.
    accuracy : float
        Largest error of a charge, e, that iterative solutions aim at.

    Notes
    -----
    Charge moves over any distance at no cost: separated fragments share fractional charge unless they are
    constrained, and polarizabilities grow too fast with size (theory section 6; :class:`kqeq.ACKS2` repairs both).
    Fields, dipoles and polarizabilities are defined along open directions only: not in a cell that is periodic in
    three directions, and along the normal of a slab.
    """

    _rules: ClassVar[dict[str, Rule]] = {"fragments": FLAG}

    def __init__(
        self,
        hardness: ElementValues = None,
        width: ElementValues = None,
        fragments: bool = False,
        solver: str = "auto",
        accuracy: float = DEFAULT_ACCURACY,
    ) -> None:
        self.hardness = hardness
        self.width = width
        self.fragments = fragments
        self.solver = solver
        self.accuracy = accuracy

    def _check_charges(self, structure: Structure) -> None:
        if self.fragments:
            require_fragments(structure, "QEq(fragments=True)")

    def _flow(self, structure: Structure, sites: SiteParameters, device: Device) -> FreeFlow:
        if not self.fragments:
            return FreeFlow.build(structure, np.zeros(len(structure), dtype=np.int64), device)
        assert structure.fragments is not None
        return FreeFlow.build(structure, structure.fragments, device)

    def _reference(self, structure: Structure) -> FloatArray:
        if self.fragments:
            return fragment_reference(structure, "QEq(fragments=True)")
        return np.full(len(structure), structure.total_charge / len(structure))


__all__ = ["QEq"]
