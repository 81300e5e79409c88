"""How forces change with Gaussian widths: the mixed derivative of ½ zᵀAz, at fixed charges and dipoles z.

∂A_ij/∂γ_ij² is a Gaussian of the distance (broadening is diffusion), so this is a sum over near pairs, plus
the neutralising background of three-dimensional cells, 2πk_e γ²/V.

Dimensions: N atoms, n = N or 4N unknowns, P pairs, c columns.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from kqeq.constants import COULOMB
from kqeq.electrostatics.radial import gaussian_width_response
from kqeq.electrostatics.tensors import AXES, gradient_rows
from kqeq.neighbours import find_pairs
from kqeq.structures import Structure
from kqeq.typing import FloatArray

_REACH = 8.5
"""Pairs beyond this many γ contribute less than 1e-15 of a contact."""


def width_gradients(
    structure: Structure, sigma: FloatArray, unknowns: FloatArray, change: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """∂/∂r and ∂/∂ε of ½ zᵀ(Σ_i dσ_i ∂A/∂σ_i)z.

    Parameters
    ----------
    structure : Structure
    sigma : (N,) array
        Å.
    unknowns : (n,) array
        z, charges or charges and dipoles.
    change : (N, c) array
        dσ, Å.

    Returns
    -------
    (N, 3, c) array, (3, 3, c) array
    """
    atoms, columns = change.shape
    pairs = find_pairs(structure, _REACH * np.sqrt(2.0) * float(sigma.max()))
    i, j = pairs.indices[:, 0], pairs.indices[:, 1]
    charges = unknowns[:atoms]
    dipoles = unknowns[atoms:].reshape(atoms, 3) if len(unknowns) > atoms else None
    x = [pairs.vectors[:, axis] for axis in AXES]
    a = 1.0 / np.sqrt(2.0 * (sigma[i] ** 2 + sigma[j] ** 2))
    r2 = np.einsum("pa,pa->p", pairs.vectors, pairs.vectors)
    radial = gaussian_width_response(r2, a, 1 if dipoles is None else 3)
    own = None if dipoles is None else [dipoles[i, axis] for axis in AXES]
    rows = gradient_rows(x, radial, charges[i], own)
    force = np.stack([row[0] * charges[j] for row in rows], axis=1)
    if dipoles is not None:
        for axis in AXES:
            for beta in AXES:
                force[:, axis] += rows[axis][1 + beta] * dipoles[j, beta]
    force *= COULOMB
    broadening = (sigma[:, None] * change)[i] + (sigma[:, None] * change)[j]
    values = (force[:, :, None] * broadening[:, None, :]).reshape(len(i), 3 * columns)
    collect = sparse.csr_array((np.ones(len(i)), (i, np.arange(len(i)))), shape=(atoms, len(i)))
    gradient = np.asarray(collect @ values).reshape(atoms, 3, columns)
    # each pair appears twice, and r_ij grows with −r_i
    strain = -0.5 * np.einsum("pa,pb,pc->abc", pairs.vectors, force, broadening, optimize=True)
    if structure.pbc.all():
        background = (4.0 * np.pi * COULOMB / structure.volume) * charges.sum() * (charges * sigma) @ change
        strain -= np.eye(3)[:, :, None] * background
    return gradient, strain


__all__ = ["width_gradients"]
