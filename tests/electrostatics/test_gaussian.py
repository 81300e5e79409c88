"""Open-boundary Gaussian electrostatics: radial functions, matrices, derivatives."""

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.integrate import quad

from checks import central
from kqeq.backend import asarray_like, erf, erfc, namespace, to_numpy
from kqeq.constants import COULOMB
from kqeq.electrostatics import OpenCoulomb, coulomb
from kqeq.electrostatics.radial import boys, gaussian_coulomb, gaussian_width_response
from kqeq.errors import InputError
from kqeq.frames.structures import Structure

DIPOLES = pytest.mark.parametrize("dipoles", [False, True], ids=["charges", "dipoles"])


def cluster(seed: int, atoms: int, spread: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(scale=spread, size=(atoms, 3)), rng.uniform(0.4, 1.1, atoms)


# Radial functions ---------------------------------------------------------------------------------


def test_boys_functions_equal_their_integral():
    t = np.array([0.0, 1e-12, 1e-5, 0.1, 0.99999, 1.00001, 3.0, 20.0])
    values = boys(t, 3)
    for n in range(4):
        exact = [
            quad(lambda u, n=n, x=x: u ** (2 * n) * np.exp(-x * u * u), 0, 1, epsabs=1e-15)[0] for x in t
        ]
        assert_allclose(values[n], exact, rtol=2e-14)


def test_radial_functions_are_smooth_across_the_switch_of_algorithms():
    t = np.array([np.nextafter(1.0, 0.0), 1.0])
    for value in boys(t, 3):
        assert_allclose(value[0], value[1], rtol=2e-14)


def test_radial_functions_are_finite_at_zero_with_the_known_limits():
    a = 0.8
    b0, b1, b2, b3 = gaussian_coulomb(np.array([0.0]), a, 3)
    scale = 2 * a / np.sqrt(np.pi)
    for n, value in enumerate((b0, b1, b2, b3)):
        assert_allclose(value, scale * (2 * a * a) ** n / (2 * n + 1), rtol=1e-15)


def test_radial_functions_far_away_are_those_of_point_charges():
    values = gaussian_coulomb(np.array([400.0]), 1.0, 3)
    for n, double_factorial in enumerate((1, 1, 3, 15)):
        assert_allclose(values[n], double_factorial / 20.0 ** (2 * n + 1), rtol=1e-14)


def test_width_response_is_the_derivative_of_the_radial_functions():
    r2, sigma, other = np.array([0.0, 0.3, 2.0, 9.0]), 0.7, 0.5

    def values(shift):
        a = 1 / np.sqrt(2 * ((sigma + shift) ** 2 + other**2))
        return np.array(gaussian_coulomb(r2, a, 3))

    exact = sigma * np.array(gaussian_width_response(r2, 1 / np.sqrt(2 * (sigma**2 + other**2)), 3))
    assert np.abs(exact).min() > 1e-6
    assert_allclose(exact, central(values), rtol=1e-8, atol=1e-11)


# The matrix ---------------------------------------------------------------------------------------


def test_matrix_elements_are_those_of_the_formula():
    r, sigma = cluster(0, 4)
    matrix = OpenCoulomb(r, sigma).matrix()
    gamma = np.hypot(sigma[0], sigma[2])
    d = np.linalg.norm(r[0] - r[2])
    assert_allclose(matrix[0, 2], COULOMB * erf(d / (np.sqrt(2) * gamma)) / d, rtol=1e-14)
    assert_allclose(np.diag(matrix), COULOMB / (np.sqrt(np.pi) * sigma), rtol=1e-15)


def test_dipole_blocks_are_derivatives_of_the_charge_block_and_self_terms_are_known():
    r, sigma = cluster(1, 4)
    n = len(r)
    matrix = OpenCoulomb(r, sigma, dipoles=True).matrix()
    assert_allclose(matrix[:n, :n], OpenCoulomb(r, sigma).matrix(), rtol=1e-14)
    i, j = 1, 3

    def element(left, right):
        moved = r.copy()
        moved[i] += left
        moved[j] += right
        return OpenCoulomb(moved, sigma).matrix()[i, j]

    e = np.eye(3)
    for alpha in range(3):
        slope = central(lambda t, alpha=alpha: element(0, t * e[alpha]))
        assert abs(slope) > 1e-3
        assert_allclose(matrix[i, n + 3 * j + alpha], slope, rtol=1e-8)
        for beta in range(3):
            second = central(lambda t, a=alpha, b=beta: central(lambda u: element(t * e[a], u * e[b])))
            assert_allclose(matrix[n + 3 * i + alpha, n + 3 * j + beta], second, rtol=1e-6, atol=1e-7)
    own = matrix[n + 3 * i : n + 3 * i + 3, n + 3 * i : n + 3 * i + 3]
    assert_allclose(own, np.eye(3) * COULOMB / (6 * np.sqrt(np.pi) * sigma[i] ** 3), rtol=1e-14, atol=1e-15)
    assert not matrix[i, n + 3 * i : n + 3 * i + 3].any()


def test_dipoles_are_the_limit_of_pairs_of_charges():
    r, sigma = cluster(2, 3)
    rng = np.random.default_rng(5)
    d = rng.normal(size=(3, 3))
    y = np.concatenate([np.zeros(3), d.ravel()])
    exact = y @ OpenCoulomb(r, sigma, dipoles=True).matrix() @ y

    def pairs(h):
        positions = np.concatenate([r + 0.5 * h * d, r - 0.5 * h * d])
        q = np.repeat([1 / h, -1 / h], 3)
        return q @ OpenCoulomb(positions, np.tile(sigma, 2)).matrix() @ q

    assert_allclose((4 * pairs(0.01) - pairs(0.02)) / 3, exact, rtol=1e-7)


@DIPOLES
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), atoms=st.integers(1, 9), spread=st.floats(0.15, 5.0))
def test_matrix_is_symmetric_positive_definite(dipoles, seed, atoms, spread):
    r, sigma = cluster(seed, atoms, spread)
    matrix = OpenCoulomb(r, sigma, dipoles=dipoles).matrix()
    assert_allclose(matrix, matrix.T, rtol=0, atol=1e-13 * np.abs(matrix).max())
    assert np.linalg.eigvalsh(matrix)[0] > -1e-13 * np.abs(matrix).max()


@DIPOLES
def test_atoms_on_top_of_each_other_stay_finite(dipoles):
    r = np.zeros((2, 3))
    r[1] = 1e-9
    provider = OpenCoulomb(r, np.array([0.5, 0.7]), dipoles=dipoles)
    y = np.ones(provider.size)
    assert np.isfinite(provider.matrix()).all()
    assert np.isfinite(provider.bilinear_gradient(y, y[:, None])).all()


@DIPOLES
def test_rotation_translation_and_permutation(dipoles):
    r, sigma = cluster(3, 5)
    rng = np.random.default_rng(1)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    order = rng.permutation(5)
    provider = OpenCoulomb(r, sigma, dipoles=dipoles)
    y = rng.normal(size=provider.size)
    q, d = y[:5], y[5:].reshape(-1, 3)
    moved_y = np.concatenate([q[order], (d[order] @ rotation).ravel()]) if dipoles else q[order]
    moved = OpenCoulomb((r @ rotation + [30.0, -7.0, 2.0])[order], sigma[order], dipoles=dipoles)
    assert_allclose(moved_y @ moved.matvec(moved_y), y @ provider.matvec(y), rtol=1e-12)
    before = provider.bilinear_gradient(y, y[:, None])[:, :, 0]
    after = moved.bilinear_gradient(moved_y, moved_y[:, None])[:, :, 0]
    assert_allclose(after, (before @ rotation)[order], rtol=1e-9, atol=1e-10)
    assert_allclose(before.sum(axis=0), 0, atol=1e-11)


def test_blocks_of_rows_give_the_same_as_one_block(monkeypatch):
    r, sigma = cluster(4, 11)
    rng = np.random.default_rng(2)
    whole = OpenCoulomb(r, sigma, dipoles=True)
    y, z = rng.normal(size=(whole.size, 3)), rng.normal(size=whole.size)
    expected = (
        whole.matrix(),
        whole.matvec(y),
        whole.bilinear_gradient(z, y),
        whole.width_derivative(z, sigma),
    )
    monkeypatch.setattr("kqeq.electrostatics.gaussian._BLOCK_ELEMENTS", 30)
    pieces = OpenCoulomb(r, sigma, dipoles=True)
    got = pieces.matrix(), pieces.matvec(y), pieces.bilinear_gradient(z, y), pieces.width_derivative(z, sigma)
    for a, b in zip(expected, got, strict=True):
        assert_allclose(b, a, rtol=1e-12, atol=1e-12)


# Derivatives --------------------------------------------------------------------------------------


@DIPOLES
def test_gradient_strain_and_width_derivative_equal_finite_differences(dipoles):
    r, sigma = cluster(6, 4, 1.0)
    rng = np.random.default_rng(3)
    provider = OpenCoulomb(r, sigma, dipoles=dipoles)
    left, right = rng.normal(size=provider.size), rng.normal(size=(provider.size, 3))
    assert_allclose(provider.matvec(right), provider.matrix() @ right, rtol=1e-12)

    def form(positions, widths):
        return left @ OpenCoulomb(positions, widths, dipoles=dipoles).matvec(right)

    gradient = provider.bilinear_gradient(left, right)
    assert gradient.shape == (4, 3, 3)
    assert np.abs(gradient).min() > 1e-4
    for k in range(4):
        for axis in range(3):
            step = np.zeros_like(r)
            step[k, axis] = 1
            assert_allclose(
                gradient[k, axis], central(lambda t, s=step: form(r + t * s, sigma)), rtol=1e-7, atol=1e-7
            )
    strain = provider.bilinear_strain(left, right)
    assert np.abs(strain).min() > 1e-4
    for a in range(3):
        for b in range(3):
            step = np.zeros((3, 3))
            step[a, b] = 1
            assert_allclose(
                strain[a, b], central(lambda t, s=step: form(r + r @ s * t, sigma)), rtol=1e-7, atol=1e-7
            )
    dsigma = rng.normal(size=4)
    width = provider.width_derivative(left, dsigma)
    numeric = central(lambda t: OpenCoulomb(r, sigma + t * dsigma, dipoles=dipoles).matvec(left))
    assert np.abs(width).min() > 1e-4
    assert_allclose(width, numeric, rtol=1e-7, atol=1e-7)


def test_strain_of_charges_is_symmetric():
    r, sigma = cluster(7, 6)
    q = np.random.default_rng(0).normal(size=6)
    strain = OpenCoulomb(r, sigma).bilinear_strain(q, q[:, None])[:, :, 0]
    assert_allclose(strain, strain.T, atol=1e-12)


# Array libraries ----------------------------------------------------------------------------------


@DIPOLES
def test_array_api_strict_gives_the_same_numbers(dipoles):
    r, sigma = cluster(8, 5)
    rng = np.random.default_rng(4)
    provider = OpenCoulomb(r, sigma, dipoles=dipoles)
    y, z = rng.normal(size=(provider.size, 2)), rng.normal(size=provider.size)
    xp = array_api_strict
    other = OpenCoulomb(xp.asarray(r), xp.asarray(sigma), dipoles=dipoles)
    ys, zs, ss = xp.asarray(y), xp.asarray(z), xp.asarray(sigma)
    for expected, got in (
        (provider.matrix(), other.matrix()),
        (provider.matvec(y), other.matvec(ys)),
        (provider.matvec(z), other.matvec(zs)),
        (provider.bilinear_gradient(z, y), other.bilinear_gradient(zs, ys)),
        (provider.bilinear_strain(z, y), other.bilinear_strain(zs, ys)),
        (provider.width_derivative(z, sigma), other.width_derivative(zs, ss)),
    ):
        assert namespace(got) is array_api_strict
        assert_allclose(to_numpy(got), expected, rtol=1e-12, atol=1e-12)


def test_backend_functions():
    x = np.linspace(-2, 2, 5)
    strict = array_api_strict.asarray(x)
    assert_allclose(to_numpy(erf(strict)), erf(x))
    assert_allclose(erfc(x), 1 - erf(x), atol=1e-15)
    assert namespace(asarray_like(x, strict)) is array_api_strict
    assert to_numpy(x) is x


# Bad input ----------------------------------------------------------------------------------------


def test_bad_input_is_refused_with_a_remedy():
    r, sigma = cluster(9, 3)
    broken = r.copy()
    broken[1, 2] = np.nan
    with pytest.raises(InputError, match=r"atoms \[1\] are NaN"):
        OpenCoulomb(broken, sigma)
    with pytest.raises(InputError, match=r"atoms \[2\] have"):
        OpenCoulomb(r, np.array([0.5, 0.5, 0.0]))
    with pytest.raises(InputError, match=r"one Gaussian width per atom"):
        OpenCoulomb(r, sigma[:2])
    with pytest.raises(InputError, match=r"shape \(atoms, 3\)"):
        OpenCoulomb(r[:, :2], sigma)
    provider = OpenCoulomb(r, sigma, dipoles=True)
    with pytest.raises(InputError, match=r"shape \(12,\) or \(12, columns\)"):
        provider.matvec(np.zeros(3))
    with pytest.raises(InputError, match=r"shape \(12,\), got"):
        provider.width_derivative(np.zeros((12, 2)), sigma)
    with pytest.raises(InputError, match=r"shape \(12, columns\), got \(12,\)"):
        provider.bilinear_gradient(np.ones(12), np.ones(12))


def test_factory_gives_open_boundaries_without_pbc():
    r, sigma = cluster(10, 3)
    structure = Structure(np.array([1, 1, 8]), r)
    assert_allclose(coulomb(structure, sigma).matrix(), OpenCoulomb(r, sigma).matrix())
    assert coulomb(structure, sigma, dipoles=True).size == 12
