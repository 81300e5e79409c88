"""Ewald summation: Madelung constants, exact two-dimensional sums, limits, derivatives, bad input."""

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.special import erf, erfc

from checks import central
from kqeq.backend import namespace, to_numpy
from kqeq.constants import COULOMB
from kqeq.electrostatics import EwaldCoulomb, OpenCoulomb, coulomb
from kqeq.electrostatics.lattice import choose_splitting, reciprocal_vectors, slab_cell
from kqeq.errors import InputError, UnsupportedError
from kqeq.frames.structures import Structure

DIPOLES = pytest.mark.parametrize("dipoles", [False, True], ids=["charges", "dipoles"])
PBC = pytest.mark.parametrize(
    "pbc", [(1, 1, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1)], ids=["bulk", "slab-z", "slab-y", "slab-x"]
)
TRICLINIC = np.array([[4.0, 0.3, -0.2], [1.0, 4.4, 0.1], [-0.7, 1.2, 5.0]])


def crystal(seed: int, atoms: int = 4, cell: np.ndarray = TRICLINIC) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 1, size=(atoms, 3)) @ cell, rng.uniform(0.4, 0.9, atoms)


def rotation(seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]


# Madelung constants -------------------------------------------------------------------------------

# Relative to the nearest-neighbour distance; Y. Sakamoto, J. Chem. Phys. 28, 164 (1958); more digits from
# OEIS A085469, A181152 and A182566.  Fluorite follows from two of them: superposing the potentials of fcc
# sublattices gives 4 M(ZnS) − (√3/2) M(NaCl) = 5.03878488.
NACL = 1.747564594633182190636
CSCL = 1.762674773070988397936
ZNS = 1.638055053388789423750
FCC = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
CRYSTALS = {
    # primitive cell in units of the cubic one, basis in the same units, charges, nearest distance, constant
    "NaCl": (FCC, [[0, 0, 0], [0.5, 0, 0]], [1, -1], 0.5, NACL),
    "CsCl": (np.eye(3), [[0, 0, 0], [0.5, 0.5, 0.5]], [1, -1], np.sqrt(0.75), CSCL),
    "ZnS": (FCC, [[0, 0, 0], [0.25, 0.25, 0.25]], [1, -1], np.sqrt(3) / 4, ZNS),
    "fluorite": (
        FCC,
        [[0, 0, 0], [0.25, 0.25, 0.25], [0.75, 0.75, 0.75]],
        [2, -1, -1],
        np.sqrt(3) / 4,
        4 * ZNS - np.sqrt(0.75) * NACL,
    ),
}


def repeat(cell, basis, charges, matrix):
    """The same crystal in the cell ``matrix @ cell``."""
    matrix = np.asarray(matrix)
    size = round(abs(np.linalg.det(matrix)))
    shifts = np.stack(np.meshgrid(*[np.arange(-6, 7)] * 3, indexing="ij"), -1).reshape(-1, 3)
    inside = shifts @ np.linalg.inv(matrix)
    shifts = shifts[((inside > -1e-9) & (inside < 1 - 1e-9)).all(axis=1)]
    assert len(shifts) == size
    positions = (np.asarray(basis)[None] + (shifts @ cell)[:, None]).reshape(-1, 3)
    return matrix @ cell, positions, np.tile(charges, size)


@pytest.mark.parametrize("setting", ["conventional", "primitive", "sheared", "rotated"])
@pytest.mark.parametrize("name", CRYSTALS)
def test_madelung_constants(name, setting):
    cell, basis, charges, nearest, expected = CRYSTALS[name]
    if setting in ("conventional", "rotated"):
        matrix = [[-1, 1, 1], [1, -1, 1], [1, 1, -1]] if cell is FCC else np.diag([2, 1, 1])
    else:
        matrix = np.eye(3, dtype=int) if setting == "primitive" else [[1, 0, 0], [2, 1, 0], [-1, 3, 1]]
    cell, positions, q = repeat(cell, basis, charges, matrix)
    scale = 5.1
    cell, positions = scale * cell, scale * positions
    if setting == "rotated":
        turn = rotation(1)
        cell, positions = cell @ turn, positions @ turn + [0.3, -7.0, 11.0]
    sigma = np.full(len(q), 0.05)
    provider = EwaldCoulomb(positions, sigma, cell, accuracy=1e-12)
    point = provider.matrix() - np.diag(COULOMB / (np.sqrt(np.pi) * sigma))
    units = len(q) / len(charges)
    constant = -0.5 * (q @ point @ q) / units * nearest * scale / COULOMB
    assert_allclose(constant, expected, rtol=0, atol=1e-9)


# Independence of what must not matter --------------------------------------------------------------


@PBC
@DIPOLES
def test_the_splitting_parameter_does_not_matter(pbc, dipoles):
    r, sigma = crystal(0)
    assert np.ptp(sigma) > 0.1
    matrices = [
        EwaldCoulomb(r, sigma, TRICLINIC, pbc, dipoles=dipoles, accuracy=1e-12, kappa=kappa).matrix()
        for kappa in (None, 0.35, 0.8)
    ]
    # element by element, so for charged cells and unequal widths too
    assert_allclose(matrices[1], matrices[0], rtol=0, atol=1e-9)
    assert_allclose(matrices[2], matrices[0], rtol=0, atol=1e-9)
    q = np.array([1.0, 0.4, -0.2, 0.3])
    energies = [q @ matrix[:4, :4] @ q for matrix in matrices]
    assert abs(q.sum()) > 1
    assert_allclose(energies, energies[0], rtol=0, atol=1e-9)


@PBC
@DIPOLES
def test_images_along_periodic_directions_do_not_matter(pbc, dipoles):
    r, sigma = crystal(1)
    shifts = np.random.default_rng(0).integers(-3, 4, size=(4, 3)) * np.array(pbc)
    a = EwaldCoulomb(r, sigma, TRICLINIC, pbc, dipoles=dipoles, accuracy=1e-12).matrix()
    b = EwaldCoulomb(r + shifts @ TRICLINIC, sigma, TRICLINIC, pbc, dipoles=dipoles, accuracy=1e-12).matrix()
    assert_allclose(b, a, rtol=0, atol=1e-9)


@PBC
def test_supercell_gives_twice_the_energy(pbc):
    r, sigma = crystal(2)
    y = np.random.default_rng(1).normal(size=16)
    axis = int(np.flatnonzero(pbc)[0])
    cell = TRICLINIC.copy()
    cell[axis] *= 2
    double_r = np.concatenate([r, r + TRICLINIC[axis]])
    double_y = np.concatenate([np.tile(y[:4], 2), np.tile(y[4:], 2)])
    single = EwaldCoulomb(r, sigma, TRICLINIC, pbc, dipoles=True, accuracy=1e-12)
    double = EwaldCoulomb(double_r, np.tile(sigma, 2), cell, pbc, dipoles=True, accuracy=1e-12)
    assert_allclose(double_y @ double.matvec(double_y), 2 * (y @ single.matvec(y)), rtol=1e-9)


@PBC
def test_rotation_of_everything(pbc):
    r, sigma = crystal(3)
    turn = rotation(4)
    y = np.random.default_rng(2).normal(size=16)
    turned = np.concatenate([y[:4], (y[4:].reshape(4, 3) @ turn).ravel()])
    a = EwaldCoulomb(r, sigma, TRICLINIC, pbc, dipoles=True, accuracy=1e-12)
    b = EwaldCoulomb(r @ turn, sigma, TRICLINIC @ turn, pbc, dipoles=True, accuracy=1e-12)
    assert_allclose(b.matvec(turned)[:4], a.matvec(y)[:4], rtol=0, atol=1e-9)
    assert_allclose(
        b.bilinear_gradient(turned, turned[:, None])[:, :, 0],
        a.bilinear_gradient(y, y[:, None])[:, :, 0] @ turn,
        rtol=0,
        atol=1e-8,
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), atoms=st.integers(1, 6), dipoles=st.booleans())
def test_bulk_matrix_is_symmetric_positive_definite(seed, atoms, dipoles):
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(3, 8, 3)) @ (np.eye(3) + 0.2 * rng.normal(size=(3, 3)))
    if abs(np.linalg.det(cell)) < 20:
        cell = np.diag([3.0, 4.0, 5.0])
    r, sigma = crystal(seed, atoms, cell)
    matrix = EwaldCoulomb(r, sigma, cell, dipoles=dipoles).matrix()
    assert_allclose(matrix, matrix.T, rtol=0, atol=0)
    # the uniform background can pull the charged direction below zero in cells smaller than the Gaussians
    neutral = np.eye(len(matrix))
    neutral[:atoms, :atoms] -= 1 / atoms
    assert np.linalg.eigvalsh(neutral @ matrix @ neutral)[0] > -1e-9


@PBC
@pytest.mark.parametrize("accuracy", [1e-4, 1e-7])
def test_the_accuracy_is_what_was_asked_for(pbc, accuracy):
    worst = 0.0
    for seed in range(3):
        rng = np.random.default_rng(seed)
        cell = np.diag(rng.uniform(3, 9, 3)) @ (np.eye(3) + 0.2 * rng.normal(size=(3, 3)))
        r, sigma = crystal(seed, 5, cell)
        exact = EwaldCoulomb(r, sigma, cell, pbc, dipoles=True, accuracy=1e-13).matrix()
        got = EwaldCoulomb(r, sigma, cell, pbc, dipoles=True, accuracy=accuracy).matrix()
        worst = max(worst, np.abs(got - exact).max())
    assert accuracy * COULOMB * 1e-4 < worst < accuracy * COULOMB


# Limits -------------------------------------------------------------------------------------------


def molecule() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.1], [-0.3, 0.9, -0.2]])
    return r, np.array([0.6, 0.4, 0.5]), np.array([-0.8, 0.5, 0.3])


def test_neutral_molecule_in_a_growing_box_follows_the_dipole_law():
    r, sigma, q = molecule()
    mu = q @ r
    alone = 0.5 * q @ OpenCoulomb(r, sigma).matrix() @ q
    rest = []
    for length in (12.0, 18.0, 24.0):
        matrix = EwaldCoulomb(r, sigma, np.eye(3) * length, accuracy=1e-13).matrix()
        law = -2 * np.pi * COULOMB * (mu @ mu) / (3 * length**3)
        difference = 0.5 * q @ matrix @ q - alone
        assert abs(law) > 1e-4
        assert_allclose(difference, law, rtol=0.1)
        rest.append(difference - law)
    # what remains is of the order L^-5
    assert_allclose(rest[0] / rest[2], 2.0**5, rtol=0.15)


def test_charged_molecule_in_a_growing_box_follows_the_charge_law():
    r, sigma, q = molecule()
    q = q + 0.5
    alone = 0.5 * q @ OpenCoulomb(r, sigma).matrix() @ q
    rest = []
    for length in (20.0, 40.0):
        matrix = EwaldCoulomb(r, sigma, np.eye(3) * length, accuracy=1e-13).matrix()
        law = -1.41865 * COULOMB * q.sum() ** 2 / length
        difference = 0.5 * q @ matrix @ q - alone
        assert_allclose(difference, law, rtol=0.02)
        rest.append(difference - law)
    # what remains is of the order L^-3, once the digits of the constant are enough
    assert_allclose(rest[0] / rest[1], 2.0**3, rtol=0.02)


def test_one_gaussian_charge_in_a_cubic_box():
    # 2.837297479480619: the Wigner constant of a simple cubic lattice (Nijboer and Ruijgrok, J. Stat. Phys. 53,
    # 361 (1988)); the last term is the background's for a Gaussian, γ² = 2σ²
    length, sigma = 9.0, 0.7
    value = EwaldCoulomb(np.zeros((1, 3)), np.array([sigma]), np.eye(3) * length, accuracy=1e-13).matrix()[
        0, 0
    ]
    expected = 1 / (np.sqrt(np.pi) * sigma) - 2.837297479480619 / length + 4 * np.pi * sigma**2 / length**3
    assert_allclose(value, COULOMB * expected, rtol=1e-11)


def exact_slab(r: np.ndarray, sigma: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Two-dimensional sum for Gaussian charges entirely in reciprocal space (Parry, Surf. Sci. 49, 433 (1975)).

    For a Gaussian pair the splitting parameter of the two-dimensional Ewald sum can be set to
    1/(√2 γ_ij); the real-space part then vanishes.
    """
    normal = np.cross(*rows)
    area = np.linalg.norm(normal)
    normal /= area
    basis = 2 * np.pi * np.linalg.inv(np.vstack([rows, normal])).T[:2]
    m = np.stack(np.meshgrid(*[np.arange(-14, 15)] * 2, indexing="ij"), -1).reshape(-1, 2)
    vectors = m[(m != 0).any(axis=1)] @ basis
    lengths = np.linalg.norm(vectors, axis=1)
    keep = lengths < 16
    vectors, lengths = vectors[keep], lengths[keep]
    result = np.empty((len(r), len(r)))
    for i in range(len(r)):
        for j in range(len(r)):
            x = r[j] - r[i]
            z, gamma = x @ normal, np.hypot(sigma[i], sigma[j])
            up = np.exp(lengths * z) * erfc(lengths * gamma / np.sqrt(2) + z / (np.sqrt(2) * gamma))
            down = np.exp(-lengths * z) * erfc(lengths * gamma / np.sqrt(2) - z / (np.sqrt(2) * gamma))
            waves = (np.cos(vectors @ x) * (up + down) / lengths).sum()
            mean = z * erf(z / (np.sqrt(2) * gamma))
            mean += gamma * np.sqrt(2 / np.pi) * np.exp(-(z**2) / (2 * gamma**2))
            result[i, j] = np.pi / area * waves - 2 * np.pi / area * mean
    return COULOMB * result


@pytest.mark.parametrize("pbc", [(1, 1, 0), (1, 0, 1), (0, 1, 1)], ids=["z", "y", "x"])
def test_slab_equals_the_exact_two_dimensional_sum(pbc):
    # element by element: charged and dipolar slabs are included
    r, _ = crystal(5, 5)
    sigma = np.array([0.6, 0.9, 0.7, 0.8, 0.65])
    rows = TRICLINIC[np.flatnonzero(pbc)]
    exact = exact_slab(r, sigma, rows)
    got = EwaldCoulomb(r, sigma, TRICLINIC, pbc, accuracy=1e-12).matrix()
    assert_allclose(got, exact, rtol=0, atol=1e-9)
    rough = np.abs(EwaldCoulomb(r, sigma, TRICLINIC, pbc, accuracy=1e-3).matrix() - exact).max()
    assert 1e-7 < rough < 1e-3 * COULOMB


@pytest.mark.parametrize("total", [0.0, 0.7], ids=["neutral", "charged"])
def test_the_vacuum_that_the_user_left_does_not_matter(total):
    r, sigma = crystal(6, 5)
    q = np.random.default_rng(3).normal(size=5)
    q += (total - q.sum()) / 5
    energies = []
    for height in (0.0, 5.0, 30.0):
        cell = TRICLINIC.copy()
        cell[2] = [0.1 * height, -0.2 * height, height]
        energies.append(q @ EwaldCoulomb(r, sigma, cell, (1, 1, 0), accuracy=1e-12).matrix() @ q)
    assert_allclose(energies, energies[0], rtol=0, atol=1e-10)


def test_bulk_with_growing_vacuum_converges_to_the_slab():
    # neutral: E_bulk − E_slab = −2π k_e μ_z²/V, the field between the periodic layers
    r, sigma = crystal(7, 5)
    q = np.random.default_rng(4).normal(size=5)
    q -= q.mean()
    cell = np.diag([4.0, 4.5, 1.0])
    slab = 0.5 * q @ EwaldCoulomb(r, sigma, cell, (1, 1, 0), accuracy=1e-12).matrix() @ q
    mu = q @ r[:, 2]
    assert abs(mu) > 0.3
    for height in (25.0, 50.0, 100.0):
        cell[2, 2] = height
        bulk = 0.5 * q @ EwaldCoulomb(r, sigma, cell, accuracy=1e-12).matrix() @ q
        law = 2 * np.pi * COULOMB * mu**2 / np.linalg.det(cell)
        assert_allclose(slab - bulk, law, rtol=0, atol=1e-8)


def test_two_far_plates_attract_like_a_capacitor():
    # two oppositely charged layers: force per area 2π k_e (charge/area)², whatever the distance
    cell = np.diag([3.0, 3.0, 0.0])
    for distance in (8.0, 40.0):
        r = np.array([[0.0, 0, 0], [1.0, 0.5, distance]])
        provider = EwaldCoulomb(r, np.array([0.5, 0.7]), cell, (1, 1, 0), accuracy=1e-11)
        q = np.array([0.3, -0.3])
        force = -0.5 * provider.bilinear_gradient(q, q[:, None])[:, :, 0]
        expected = 2 * np.pi * COULOMB * 0.3**2 / 9.0
        assert_allclose(force, [[0, 0, expected], [0, 0, -expected]], atol=1e-5 if distance < 10 else 1e-9)


def test_slab_matrix_is_indefinite_only_along_the_total_charge():
    r, sigma = crystal(8, 6)
    values = np.linalg.eigvalsh(EwaldCoulomb(r, sigma, TRICLINIC, (1, 1, 0)).matrix())
    assert values[0] < 0
    assert values[1] > 0


# Derivatives --------------------------------------------------------------------------------------


@PBC
@DIPOLES
@pytest.mark.parametrize("columns", [2, 9, 40])
def test_gradient_and_strain_equal_finite_differences(pbc, dipoles, columns):
    # the numbers of columns lead through the different orders of summation
    r, sigma = crystal(9)

    def make(positions, cell=TRICLINIC):
        return EwaldCoulomb(positions, sigma, cell, pbc, dipoles=dipoles, accuracy=1e-12)

    provider = make(r)
    rng = np.random.default_rng(5)
    left, right = rng.normal(size=provider.size), rng.normal(size=(provider.size, columns))
    gradient = provider.bilinear_gradient(left, right)
    assert gradient.shape == (4, 3, columns)
    step = rng.normal(size=(4, 3))
    slope = np.einsum("ka,kac->c", step, gradient)
    assert np.abs(slope).max() > 1
    assert_allclose(
        slope, central(lambda t: left @ make(r + t * step).matvec(right), 2e-3), rtol=0, atol=2e-7
    )
    strain = provider.bilinear_strain(left, right)
    assert strain.shape == (3, 3, columns)
    # every element of the strain derivative, through one column each
    for a in range(3):
        for b in range(3):
            change = np.zeros((3, 3))
            change[a, b] = 1
            numeric = central(
                lambda t, m=change: left @ make(r + t * r @ m, TRICLINIC + t * TRICLINIC @ m).matvec(right),
                2e-3,
            )
            assert np.abs(strain[a, b]).max() > 1e-2
            assert_allclose(strain[a, b], numeric, rtol=0, atol=1e-6)


@PBC
@DIPOLES
def test_every_component_of_the_gradient(pbc, dipoles):
    r, sigma = crystal(10, 3)
    provider = EwaldCoulomb(r, sigma, TRICLINIC, pbc, dipoles=dipoles, accuracy=1e-12)
    y = np.random.default_rng(6).normal(size=provider.size)
    gradient = provider.bilinear_gradient(y, y[:, None])[:, :, 0]
    assert np.abs(gradient).min() > 1e-3
    assert_allclose(gradient.sum(axis=0), 0, atol=1e-9)
    for k in range(3):
        for axis in range(3):
            step = np.zeros((3, 3))
            step[k, axis] = 1

            def form(t, s=step):
                moved = EwaldCoulomb(r + t * s, sigma, TRICLINIC, pbc, dipoles=dipoles, accuracy=1e-12)
                return y @ moved.matvec(y)

            assert_allclose(gradient[k, axis], central(form, 2e-3), rtol=0, atol=1e-6)


@PBC
@DIPOLES
def test_width_derivative_equals_finite_differences(pbc, dipoles):
    r, sigma = crystal(11)

    def make(widths):
        return EwaldCoulomb(r, widths, TRICLINIC, pbc, dipoles=dipoles, accuracy=1e-12)

    rng = np.random.default_rng(7)
    y, direction = rng.normal(size=make(sigma).size), rng.normal(size=4)
    exact = make(sigma).width_derivative(y, direction)
    assert np.abs(exact).min() > 1e-2
    assert_allclose(
        exact, central(lambda t: make(sigma + t * direction).matvec(y), 5e-4), rtol=1e-7, atol=1e-6
    )


@PBC
@DIPOLES
def test_product_with_the_matrix(pbc, dipoles):
    r, sigma = crystal(12)
    provider = EwaldCoulomb(r, sigma, TRICLINIC, pbc, dipoles=dipoles)
    matrix = provider.matrix()
    y = np.random.default_rng(8).normal(size=(provider.size, 3))
    assert_allclose(provider.matvec(y), matrix @ y, rtol=0, atol=1e-11)
    assert_allclose(provider.matvec(y[:, 0]), matrix @ y[:, 0], rtol=0, atol=1e-11)


@PBC
def test_chunks_and_blocks_do_not_matter(pbc, monkeypatch):
    r, sigma = crystal(13, 7)

    def everything():
        provider = EwaldCoulomb(r, sigma, TRICLINIC, pbc, dipoles=True)
        rng = np.random.default_rng(9)
        left = rng.normal(size=provider.size)
        few, many = rng.normal(size=(provider.size, 2)), rng.normal(size=(provider.size, 50))
        yield provider.matrix()
        for block in (few, many):
            yield provider.matvec(block)
            yield provider.bilinear_gradient(left, block)
            yield provider.bilinear_strain(left, block)
        yield provider.width_derivative(left, sigma)

    expected = list(everything())
    package = "kqeq.electrostatics"
    monkeypatch.setattr(f"{package}.realspace._CHUNK", 37)
    monkeypatch.setattr(f"{package}.reciprocal._CHUNK_ELEMENTS", 900)
    monkeypatch.setattr(f"{package}.reciprocal._CACHE_ELEMENTS", 0)
    monkeypatch.setattr(f"{package}.reciprocal._ROWS", 5)
    monkeypatch.setattr(f"{package}.ewald._ROWS", 5)
    monkeypatch.setattr(f"{package}.host._CHUNK_ELEMENTS", 900)
    monkeypatch.setattr(f"{package}.host._KEPT_ELEMENTS", 0)
    monkeypatch.setattr(f"{package}.host._SMALLEST_THREADED", 1)
    for a, b in zip(expected, everything(), strict=True):
        assert_allclose(b, a, rtol=0, atol=1e-10)


@PBC
@DIPOLES
def test_array_api_strict_gives_the_same_numbers(pbc, dipoles):
    r, sigma = crystal(14, 3)
    provider = EwaldCoulomb(r, sigma, TRICLINIC, pbc, dipoles=dipoles, accuracy=1e-6)
    rng = np.random.default_rng(10)
    xp = array_api_strict
    other = EwaldCoulomb(xp.asarray(r), xp.asarray(sigma), TRICLINIC, pbc, dipoles=dipoles, accuracy=1e-6)
    y, many = rng.normal(size=provider.size), rng.normal(size=(provider.size, 30))
    ys, manys, ss = xp.asarray(y), xp.asarray(many), xp.asarray(sigma)
    for expected, got in (
        (provider.matrix(), other.matrix()),
        (provider.matvec(many), other.matvec(manys)),
        (provider.matvec(y), other.matvec(ys)),
        (provider.bilinear_gradient(y, many), other.bilinear_gradient(ys, manys)),
        (provider.bilinear_gradient(y, many[:, :2]), other.bilinear_gradient(ys, manys[:, :2])),
        (provider.bilinear_strain(y, many), other.bilinear_strain(ys, manys)),
        (provider.bilinear_strain(y, many[:, :2]), other.bilinear_strain(ys, manys[:, :2])),
        (provider.width_derivative(y, sigma), other.width_derivative(ys, ss)),
    ):
        assert namespace(got) is array_api_strict
        assert_allclose(to_numpy(got), expected, rtol=0, atol=1e-11)


# Parameters and bad input ----------------------------------------------------------------------------


def test_reciprocal_vectors_are_one_half_of_a_sphere():
    indices, vectors = reciprocal_vectors(TRICLINIC, 6.0)
    basis = 2 * np.pi * np.linalg.inv(TRICLINIC).T
    grid = np.stack(np.meshgrid(*[np.arange(-9, 10)] * 3, indexing="ij"), -1).reshape(-1, 3)
    lengths = np.linalg.norm(grid @ basis, axis=1)
    assert 2 * len(vectors) == ((lengths <= 6.0) & (lengths > 0)).sum()
    assert_allclose(indices @ basis, vectors)
    both = np.concatenate([indices, -indices])
    assert len(np.unique(both, axis=0)) == len(both)


def test_splitting_gives_the_wide_gaussians_to_reciprocal_space():
    narrow = choose_splitting(100, 1000.0, 0.3, accuracy=1e-9, dipoles=False)
    wide = choose_splitting(100, 1000.0, 3.0, accuracy=1e-9, dipoles=False)
    assert wide.kappa == pytest.approx(1 / 6)
    assert narrow.kappa > wide.kappa
    finer = choose_splitting(100, 1000.0, 0.3, accuracy=1e-12, dipoles=False)
    assert finer.r_cut > narrow.r_cut
    assert finer.k_cut > narrow.k_cut


def test_bad_input_is_refused_with_a_remedy():
    r, sigma = crystal(15)
    with pytest.raises(InputError, match=r"no volume.*set pbc to False"):
        EwaldCoulomb(r, sigma, np.diag([4.0, 4.0, 0.0]))
    with pytest.raises(InputError, match="no volume"):
        EwaldCoulomb(r, sigma, np.array([[4.0, 0, 0], [0, 4.0, 0], [1.0, 2.0, 0]]))
    with pytest.raises(InputError, match=r"shape \(3, 3\)"):
        EwaldCoulomb(r, sigma, np.full((3, 3), np.nan))
    broken = r.copy()
    broken[0, 0] = np.nan
    with pytest.raises(InputError, match=r"atoms \[0\] are NaN"):
        EwaldCoulomb(broken, sigma, TRICLINIC)
    with pytest.raises(InputError, match="positive lengths"):
        EwaldCoulomb(r, -sigma, TRICLINIC)
    with pytest.raises(UnsupportedError, match=r"one periodic direction.*pbc.*True in all three"):
        EwaldCoulomb(r, sigma, TRICLINIC, (0, 0, 1))
    with pytest.raises(InputError, match="use OpenCoulomb"):
        EwaldCoulomb(r, sigma, TRICLINIC, (0, 0, 0))
    with pytest.raises(InputError, match="accuracy is an error"):
        EwaldCoulomb(r, sigma, TRICLINIC, accuracy=1.0)
    with pytest.raises(InputError, match="kappa"):
        EwaldCoulomb(r, sigma, TRICLINIC, kappa=-1.0)
    with pytest.raises(InputError, match="span no area"):
        EwaldCoulomb(r, sigma, np.array([[4.0, 0, 0], [8.0, 0, 0], [0, 0, 9.0]]), (1, 1, 0))
    with pytest.raises(InputError, match=r"shape \(4,\) or \(4, columns\)"):
        EwaldCoulomb(r, sigma, TRICLINIC).matvec(np.zeros(5))


def test_a_slab_whose_vacuum_is_on_a_periodic_axis_is_refused():
    layer = (
        np.stack(np.meshgrid(np.arange(4), np.arange(2), np.arange(4), indexing="ij"), -1).reshape(-1, 3)
        * 2.0
    )
    cell = np.diag([8.0, 25.0, 8.0])
    sigma = np.full(len(layer), 0.5)
    with pytest.raises(InputError, match=r"vector 1, which is periodic.*wrong order"):
        EwaldCoulomb(layer, sigma, cell, (1, 1, 0))
    assert EwaldCoulomb(layer, sigma, cell, (1, 0, 1)).size == len(layer)


@PBC
def test_factory_follows_pbc(pbc):
    r, sigma = crystal(16)
    structure = Structure(np.array([1, 6, 7, 8]), r, TRICLINIC, np.array(pbc, dtype=bool))
    provider = coulomb(structure, sigma, dipoles=True, accuracy=1e-7)
    expected = EwaldCoulomb(r, sigma, TRICLINIC, pbc, dipoles=True, accuracy=1e-7)
    assert_allclose(provider.matrix(), expected.matrix())


def test_a_slab_whose_atoms_move_keeps_its_cell_and_vectors():
    cell, pbc = np.diag([4.0, 5.0, 20.0]), np.array([True, True, False])
    positions = np.array([[0.0, 0.0, 3.0], [1.0, 2.0, 5.3]])
    first, _ = slab_cell(positions, cell, pbc, 1.0, 1e-8)
    second, _ = slab_cell(positions + np.array([[0, 0, 0], [0, 0, 0.1]]), cell, pbc, 1.0, 1e-8)
    assert_allclose(second, first, rtol=0, atol=0)
    third, _ = slab_cell(positions + np.array([[0, 0, 0], [0, 0, 0.4]]), cell, pbc, 1.0, 1e-8)
    assert third[2, 2] == pytest.approx(first[2, 2] + 0.5)
    one, two = (reciprocal_vectors(rows, 3.0) for rows in (first, second.copy()))
    assert one[1] is two[1]
    other = reciprocal_vectors(third, 3.0)
    assert len(other[1]) > len(one[1])
    with pytest.raises(ValueError, match="read-only"):
        one[1][0] = 0.0
