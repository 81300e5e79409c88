"""Checks that several test modules share: finite differences and symmetries.

Every check also asserts that what it checks is not trivially zero, so that a quantity that was never computed
cannot pass.  Positions are varied through copies of :class:`ase.Atoms`, never in place.
"""

import numpy as np
from ase import Atoms

from kqeq.potential.prediction import Prediction

# weights of f(x ± h), f(x ± 2h), f(x ± 3h) in the sixth-order central difference
_WEIGHTS = (45.0 / 60.0, -9.0 / 60.0, 1.0 / 60.0)


def central_difference(function, h):
    """Derivative of ``function(t)`` at t = 0, to sixth order in ``h``."""
    return sum(w * (function(k * h) - function(-k * h)) for k, w in enumerate(_WEIGHTS, start=1)) / h


def central(function, h=1e-3):
    """The same to fourth order, which is enough where the function is smooth."""
    return (8 * (function(h) - function(-h)) - (function(2 * h) - function(-2 * h))) / (12 * h)


def run(*arguments):
    """The command line in this process: its exit code."""
    from kqeq import cli

    return cli.main([str(argument) for argument in arguments])


def second_difference(function, h):
    """Second derivative of ``function(t)`` at t = 0, to sixth order in ``h``."""
    weights = (1.5, -3.0 / 20.0, 1.0 / 90.0)
    total = -49.0 / 18.0 * function(0.0)
    for k, w in enumerate(weights, start=1):
        total = total + w * (function(k * h) + function(-k * h))
    return total / h**2


def assert_close(actual, expected, *, rtol=1e-6, atol=0.0, at_least):
    """``actual`` equals ``expected`` within ``rtol`` of the largest entry of ``expected``, which is not small."""
    actual, expected = np.asarray(actual, dtype=float), np.asarray(expected, dtype=float)
    assert actual.shape == expected.shape
    scale = np.abs(expected).max()
    assert scale >= at_least, f"trivial: the largest entry is {scale:.3g}, expected at least {at_least:.3g}"
    np.testing.assert_allclose(actual, expected, rtol=0.0, atol=rtol * scale + atol)


def position_gradient(function, atoms, h=4e-3):
    """∂f/∂r of a function of :class:`ase.Atoms` by finite differences; one entry per coordinate, then f's shape."""

    def along(index):
        def moved(t):
            copy = atoms.copy()
            copy.positions[index] += t
            return np.asarray(function(copy))

        return central_difference(moved, h)

    return np.array([[along((i, a)) for a in range(3)] for i in range(len(atoms))])


def strain_gradient(function, atoms, h=2e-3):
    """∂f/∂ε with r → r(1 + ε) for atoms and cell, by finite differences; (3, 3)."""

    def along(a, b):
        def strained(t):
            deformation = np.eye(3)
            deformation[a, b] += t
            copy = atoms.copy()
            copy.set_cell(atoms.cell.array @ deformation)
            copy.positions = atoms.positions @ deformation
            return float(function(copy))

        return central_difference(strained, h)

    return np.array([[along(a, b) for b in range(3)] for a in range(3)])


def assert_forces(forces, energy, atoms, *, h=4e-3, rtol=1e-6, at_least=0.1):
    """Forces (N, 3) are minus the gradient of ``energy(atoms)``."""
    assert_close(forces, -position_gradient(energy, atoms, h), rtol=rtol, at_least=at_least)


def rotation(seed, *, improper=False):
    """A random orthogonal matrix; ``improper`` ones also mirror."""
    rng = np.random.default_rng(seed)
    matrix, upper = np.linalg.qr(rng.normal(size=(3, 3)))
    matrix = matrix * np.sign(np.diagonal(upper))
    if (np.linalg.det(matrix) < 0) != improper:
        matrix[:, 0] *= -1.0
    return matrix


def bare(atoms, **changes):
    """Elements and geometry alone, without labels and conditions; ``rotate`` (3, 3), ``shift`` (3,), ``order`` (N,)."""
    positions = atoms.positions @ changes.get("rotate", np.eye(3)).T + changes.get("shift", np.zeros(3))
    order = changes.get("order", np.arange(len(atoms)))
    return Atoms(atoms.numbers[order], positions[order], cell=atoms.cell, pbc=atoms.pbc)


def assert_same_prediction(first, second, *, skip=()):
    """Two predictions are equal bit for bit."""
    for name in vars(first):
        if name in skip:
            continue
        a, b = getattr(first, name), getattr(second, name)
        assert (a is None) == (b is None), name
        if a is not None:
            np.testing.assert_array_equal(a, b, err_msg=name)


def prediction(**values):
    """A prediction that holds only what is given."""
    empty = dict.fromkeys(Prediction.__dataclass_fields__)
    zero = {name: 0.0 for name in empty if name.startswith("energy") or name == "total_charge"}
    return Prediction(**{**empty, **zero, "external_field": np.zeros(3), **values})
