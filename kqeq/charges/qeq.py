"""Charge equilibration (QEq): the simplest charge model.

    E = (χ + φ)ᵀq + ½ qᵀAq,   Σq = Q,   φ_i = −field · r_i

with the Coulomb matrix A of Gaussian charges plus hardness on its diagonal (theory section 1; Rappé &
Goddard 1991, *J. Phys. Chem.* 95, 3358; Gaussian charges as in Ghasemi et al. 2015, *Phys. Rev. B* 92,
045131).  With fragments, one constraint Σq = Q_f for each.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from kqeq.backend import CPU, Device, asarray_like
from kqeq.charges.base import SiteParameters
from kqeq.charges.cores import ConstrainedCore
from kqeq.charges.equilibrium import Equilibrium
from kqeq.charges.fragments import fragment_reference, membership, require_fragments
from kqeq.charges.recipe import (
    DEFAULT_ACCURACY,
    HARDNESS_REMEDY,
    ElementValues,
    Recipe,
    added_diagonal,
    build_hessian,
    iterative_remedy,
)
from kqeq.charges.solvers import DenseSolver, IterativeSolver, Solver
from kqeq.frames.structures import Structure
from kqeq.io.rules import FLAG, Rule


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

    def assemble(
        self,
        structure: Structure,
        sites: SiteParameters,
        *,
        dipoles: bool = False,
        damped: bool = True,
        many_responses: bool = False,
        device: Device = CPU,
    ) -> Equilibrium:
        """Put the problem together, on request with atomic dipoles."""
        sites = sites.on(device.like)
        atoms = len(structure)
        reference = np.full(atoms, structure.total_charge / atoms)
        constraint = np.zeros(atoms, dtype=np.int64)
        if self.fragments:
            reference = fragment_reference(structure, "QEq(fragments=True)")
            assert structure.fragments is not None
            constraint = structure.fragments
        what = f"the QEq matrix of {atoms} atoms"
        provider = self._products(
            structure, sites, dipoles=dipoles, many_responses=many_responses, device=device
        )
        if provider is not None:
            solver: Solver = IterativeSolver.constrained(
                provider,
                added_diagonal(sites, dipoles=dipoles, damped=damped),
                constraint,
                accuracy=float(self.accuracy),
                what=what,
                remedy=iterative_remedy(dipoles=dipoles, damped=damped),
            )
            return Equilibrium.build(structure, sites, provider, solver, None, reference, damped, device)
        provider, hessian, elimination = build_hessian(
            structure, sites, dipoles=dipoles, damped=damped, device=device
        )
        core = ConstrainedCore.build(
            hessian if elimination is None else elimination.hessian,
            asarray_like(membership(structure) if self.fragments else np.ones((atoms, 1)), device.like),
            shift=bool(structure.pbc.sum() == 2),
            what=what,
            remedy=HARDNESS_REMEDY,
        )
        solver = DenseSolver(hessian, core, elimination)
        return Equilibrium.build(structure, sites, provider, solver, None, reference, damped, device)


__all__ = ["QEq"]
