"""How forces change with Gaussian widths: the mixed derivative of ½ zᵀAz, at fixed charges and dipoles z.

∂A_ij/∂γ_ij² is a Gaussian of the distance (broadening is diffusion), so this is a sum over near pairs, plus
the neutralising background of three-dimensional cells, 2πk_e γ²/V.

Dimensions: N atoms, n = N or 4N unknowns, P pairs, c columns.
"""

from __future__ import annotations

import math

import numpy as np

from kqeq.backend import asarray_like, eye, namespace, selection_matrix, to_float
from kqeq.constants import COULOMB
from kqeq.electrostatics.radial import gaussian_width_response
from kqeq.electrostatics.tensors import AXES, gradient_rows
from kqeq.frames.neighbours import find_pairs
from kqeq.frames.structures import Structure
from kqeq.typing import Array

_REACH = 8.5
"""Pairs beyond this many γ contribute less than 1e-15 of a contact."""


def width_gradients(
    structure: Structure, sigma: Array, unknowns: Array, change: Array
) -> tuple[Array, Array]:
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
    xp = namespace(unknowns)
    atoms, columns = change.shape
    pairs = find_pairs(structure, _REACH * math.sqrt(2.0) * to_float(xp.max(sigma)))
    i, j = (asarray_like(np.ascontiguousarray(pairs.indices[:, k]), unknowns) for k in range(2))
    vectors = asarray_like(pairs.vectors, unknowns)
    charges = unknowns[:atoms]
    dipoles = xp.reshape(unknowns[atoms:], (atoms, 3)) if unknowns.shape[0] > atoms else None
    x = [vectors[:, axis] for axis in AXES]
    variance = sigma**2
    a = 1.0 / xp.sqrt(2.0 * (xp.take(variance, i) + xp.take(variance, j)))
    r2 = x[0] * x[0] + x[1] * x[1] + x[2] * x[2]
    radial = gaussian_width_response(r2, a, 1 if dipoles is None else 3)
    own = None if dipoles is None else [xp.take(dipoles[:, axis], i) for axis in AXES]
    rows = gradient_rows(x, radial, xp.take(charges, i), own)
    components = [row[0] * xp.take(charges, j) for row in rows]
    if dipoles is not None:
        for axis in AXES:
            for beta in AXES:
                components[axis] = components[axis] + rows[axis][1 + beta] * xp.take(dipoles[:, beta], j)
    force = xp.stack(components, axis=1) * COULOMB
    scaled = sigma[:, None] * change
    broadening = xp.take(scaled, i, axis=0) + xp.take(scaled, j, axis=0)
    number = int(i.shape[0])
    values = xp.reshape(force[:, :, None] * broadening[:, None, :], (number, 3 * columns))
    gradient = xp.reshape(selection_matrix(i, atoms) @ values, (atoms, 3, columns))
    # each pair appears twice, and r_ij grows with −r_i
    products = xp.reshape(vectors[:, :, None] * force[:, None, :], (number, 9))
    strain = xp.reshape(-0.5 * products.T @ broadening, (3, 3, columns))
    if structure.pbc.all():
        factor = 4.0 * math.pi * COULOMB / structure.volume
        background = factor * xp.sum(charges) * ((charges * sigma) @ change)
        strain -= eye(3, unknowns)[:, :, None] * background[None, None, :]
    return gradient, strain


__all__ = ["width_gradients"]
