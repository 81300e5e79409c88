"""What an atom adds to the Coulomb interaction by itself: hardness, and 1/α of its dipole.

    E = ½ Σ_i η_i q_i² + ½ Σ_i d_i²/α_i

Damped dipoles have the self interaction of their Gaussian as well, which the electrostatics holds; undamped ones have
it taken out here, k_e/(6√π σ³) for each component.

Dimensions: N atoms, n = N or 4N unknowns z, c columns, m vectors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from kqeq.backend import namespace, to_numpy
from kqeq.charges.base import SiteChange, SiteParameters
from kqeq.constants import COULOMB
from kqeq.errors import NotPositiveDefiniteError
from kqeq.typing import Array

HARDNESS_REMEDY = (
    "an element's hardness is too negative for its width: raise the hardness "
    "(hardness + k_e/(sqrt(pi)*width) must be positive, and atoms may not screen each other into instability)"
)


@dataclass(frozen=True, eq=False)
class OnSite:
    """Hardness and 1/α of the atoms of one structure.

    Attributes
    ----------
    sites : SiteParameters
        Atoms carry dipoles if they have polarizabilities.
    damped : bool
        Whether dipoles have the self interaction of their Gaussian.
    """

    sites: SiteParameters
    damped: bool = True

    def on(self, like: Array) -> Self:
        """The same on the device of an array."""
        sites = self.sites.on(like)
        return self if sites is self.sites else replace(self, sites=sites)

    @property
    def has_dipoles(self) -> bool:
        """Whether atoms carry dipoles."""
        return self.sites.polarizability is not None

    @property
    def components(self) -> int:
        """Unknowns per atom: 1, or 4 with dipoles."""
        return 4 if self.has_dipoles else 1

    # ------------------------------------------------------------------ the diagonal

    def diagonal(self) -> Array:
        """What is added to the diagonal of the Coulomb interaction, (n,)."""
        alpha = self.sites.polarizability
        if alpha is None:
            return self.sites.hardness
        stiffness = 1.0 / alpha
        if not self.damped:
            stiffness = stiffness - self_interaction(self.sites.width)
        xp = namespace(stiffness)
        return xp.concat([self.sites.hardness, xp.repeat(stiffness, 3)])

    def dipole_stiffness(self) -> Array:
        """1/α with the self interaction of the Gaussian where it is there, (3N,), empty without dipoles."""
        alpha, width = self.sites.polarizability, self.sites.width
        if alpha is None:
            return width[:0]
        stiffness = 1.0 / alpha
        if self.damped:
            stiffness = stiffness + self_interaction(width)
        return namespace(stiffness).repeat(stiffness, 3)

    def change(self, change: SiteChange, vectors: Array) -> Iterator[tuple[slice, Array]]:
        """Changes of the diagonal: rows of z, and (rows, c) arrays."""
        atoms = int(self.sites.hardness.shape[0])
        xp = namespace(vectors)
        if change.hardness is not None:
            yield slice(0, atoms), change.hardness
        if change.polarizability is not None and self.sites.polarizability is not None:
            yield (
                slice(atoms, None),
                xp.repeat(-change.polarizability / self.sites.polarizability[:, None] ** 2, 3, axis=0),
            )
        if change.width is not None and self.has_dipoles and not self.damped:
            slope = change.width * self_interaction_slope(self.sites.width)[:, None]
            yield slice(atoms, None), xp.repeat(-slope, 3, axis=0)

    # ------------------------------------------------------------------ messages

    def require_positive(self) -> None:
        """Refuse single atoms that are unstable; conjugate gradients may not notice.

        Raises
        ------
        NotPositiveDefiniteError
        """
        alone = to_numpy(self.sites.hardness + COULOMB / math.sqrt(math.pi) / self.sites.width)
        if not (alone > 0.0).all():
            bad = np.flatnonzero(~(alone > 0.0))
            raise NotPositiveDefiniteError(
                f"the Coulomb matrix plus hardness is not positive definite: atoms {bad[:5].tolist()} alone have "
                f"{alone[bad[:5]].tolist()} eV/e²; {HARDNESS_REMEDY}"
            )

    @property
    def dipole_remedy(self) -> str:
        """Why dipoles may have no minimum, and what to do about it."""
        if self.damped:
            return "positions or polarizabilities are not finite, or atoms lie on top of each other"
        return (
            "polarization catastrophe: undamped dipoles of atoms close by polarise each other without limit (possible "
            "once polarizability > 6*sqrt(pi)*width**3 in Å³). Use damping=True, which adds the self interaction of "
            "the Gaussian dipoles and is stable for any parameters, or smaller polarizabilities"
        )

    @property
    def remedy(self) -> str:
        """The same where charges cannot be told from dipoles: in conjugate gradients."""
        if self.damped or not self.has_dipoles:
            return HARDNESS_REMEDY
        return f"{self.dipole_remedy}; or {HARDNESS_REMEDY}"


def self_interaction(width: Array) -> Array:
    """k_e/(6√π σ³), the self interaction of each dipole component, eV/(e²·Å²)."""
    return COULOMB / (6.0 * math.sqrt(math.pi)) / width**3


def self_interaction_slope(width: Array) -> Array:
    """Its derivative with respect to σ."""
    return -3.0 * self_interaction(width) / width


__all__ = ["HARDNESS_REMEDY", "OnSite", "self_interaction_slope"]
