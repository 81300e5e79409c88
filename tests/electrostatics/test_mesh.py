"""Particle mesh: splines, agreement with Ewald and direct sums, exact derivatives, bad input."""

import array_api_strict
import numpy as np
import pytest
from numpy.testing import assert_allclose

from checks import central
from kqeq.backend import index_add, irfftn, namespace, rfftn, to_numpy
from kqeq.constants import COULOMB
from kqeq.electrostatics import EwaldCoulomb, MeshCoulomb, OpenCoulomb, coulomb
from kqeq.electrostatics.mesh import Mesh
from kqeq.electrostatics.mesh_plan import MeshParameters, choose_mesh, interpolation_error
from kqeq.electrostatics.splines import (
    DERIVATIVES,
    MeshPoints,
    bspline,
    bspline_weights,
    second_derivative_column,
    squared_moduli,
)
from kqeq.errors import InputError, UnsupportedError
from kqeq.frames.structures import Structure

DIPOLES = pytest.mark.parametrize("dipoles", [False, True], ids=["charges", "dipoles"])
PBC = pytest.mark.parametrize(
    "pbc", [(1, 1, 1), (1, 1, 0), (0, 1, 1), (0, 0, 0)], ids=["bulk", "slab-z", "slab-x", "open"]
)
CELL = np.array([[7.0, 0.4, -0.2], [1.5, 6.4, 0.3], [-0.9, 1.2, 8.0]])


def sample(seed: int, atoms: int = 25) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 1, size=(atoms, 3)) @ CELL, rng.uniform(0.3, 0.9, atoms)


def exact(r, sigma, pbc, dipoles):
    if not any(pbc):
        return OpenCoulomb(r, sigma, dipoles=dipoles)
    return EwaldCoulomb(r, sigma, CELL, pbc, dipoles=dipoles, accuracy=1e-12)


# Splines ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [2, 4, 7, 10])
def test_splines_sum_to_one_and_have_their_mean_at_the_middle(order):
    t = np.random.default_rng(0).uniform(size=9)
    values = np.stack(bspline(t, order))
    assert (values >= 0).all()
    assert_allclose(values.sum(axis=0), 1, rtol=1e-14)
    x = t + np.arange(order)[:, None]
    assert_allclose((values * x).sum(axis=0), order / 2, rtol=1e-13)


def test_cubic_spline_has_its_known_values():
    # M_4 at 1, 2, 3: 1/6, 4/6, 1/6
    assert_allclose(np.stack(bspline(np.zeros(()), 4)), np.array([0, 1, 4, 1]) / 6, atol=1e-15)


def test_spline_derivatives_equal_finite_differences():
    t = np.array([0.2, 0.55, 0.81])
    weights = bspline_weights(t, 7, 2)
    for n in (1, 2):
        numeric = central(lambda h, n=n: bspline_weights(t + h, 7, 2)[:, n - 1])
        assert np.abs(weights[:, n]).max() > 0.1
        assert_allclose(weights[:, n], numeric, atol=1e-9)


@pytest.mark.parametrize("size", [20, 21])
def test_waves_are_represented_as_well_as_the_theory_says(size):
    order = 8
    u = np.random.default_rng(1).uniform(0, size, 200)
    whole = np.floor(u)
    weights = bspline_weights(u - whole, order, 0)[:, 0]
    moduli = squared_moduli(size, order)
    for m in (1, 3, 6):
        wave = (weights * np.exp(2j * np.pi * m * (whole[:, None] - np.arange(order)) / size)).sum(axis=1)
        error = np.abs(np.abs(wave) ** 2 * moduli[m] - 1).max()
        bound = (m / (size - m)) ** order
        assert 0.1 * bound < error < 8 * bound
    assert moduli[size // 2] == 0 if size % 2 == 0 else moduli[size // 2] > 0


@pytest.mark.parametrize("columns", [1, 4])
def test_spreading_is_the_transpose_of_gathering(columns):
    rng = np.random.default_rng(2)
    places = rng.uniform(-20, 30, size=(13, 3))
    points = MeshPoints(places, (9, 8, 11), 6, 2)
    values, mesh = rng.normal(size=(13, columns)), rng.normal(size=(9, 8, 11))
    left = (points.spread(values) * mesh).sum()
    right = (values * points.gather(mesh, 10)[:, :columns]).sum()
    assert abs(left) > 1e-2
    assert_allclose(left, right, rtol=1e-12)


def test_compiled_loops_equal_array_code():
    rng = np.random.default_rng(3)
    xp = array_api_strict
    places, values, mesh = rng.uniform(-9, 20, (17, 3)), rng.normal(size=(17, 4)), rng.normal(size=(6, 10, 7))
    compiled, plain = MeshPoints(places, mesh.shape, 8, 2), MeshPoints(xp.asarray(places), mesh.shape, 8, 2)
    for columns in (1, 4):
        got = plain.spread(xp.asarray(values[:, :columns]))
        assert_allclose(to_numpy(got), compiled.spread(values[:, :columns]), atol=1e-13)
    for columns in (1, 4, 10):
        got = plain.gather(xp.asarray(mesh), columns)
        assert namespace(got) is xp
        assert_allclose(to_numpy(got), compiled.gather(mesh, columns), atol=1e-12)


def test_columns_of_derivatives():
    assert second_derivative_column(2, 1) == second_derivative_column(1, 2) == 8
    assert DERIVATIVES[second_derivative_column(0, 0)] == (2, 0, 0)


def test_backend_transforms_and_scattered_sums():
    mesh = np.random.default_rng(4).normal(size=(4, 5, 6))
    strict = array_api_strict.asarray(mesh)
    assert_allclose(to_numpy(rfftn(strict)), rfftn(mesh), atol=1e-13)
    assert_allclose(irfftn(rfftn(mesh), mesh.shape), mesh, atol=1e-14)
    assert_allclose(to_numpy(irfftn(rfftn(strict), mesh.shape)), mesh, atol=1e-14)
    index, values = np.array([0, 2, 0]), np.array([1.0, 2.0, 3.0])
    assert_allclose(index_add(np.ones(3), index, values), [5, 1, 3])
    as_strict = array_api_strict.asarray
    total = index_add(as_strict(np.ones(3)), as_strict(index), as_strict(values))
    assert_allclose(to_numpy(total), [5, 1, 3])


# Against sums without a mesh -------------------------------------------------------------------------


@PBC
@DIPOLES
@pytest.mark.parametrize("accuracy", [1e-4, 1e-7])
def test_products_are_as_accurate_as_asked_for(pbc, dipoles, accuracy):
    r, sigma = sample(0)
    mesh = MeshCoulomb(r, sigma, CELL, pbc, dipoles=dipoles, accuracy=accuracy)
    matrix = exact(r, sigma, pbc, dipoles).matrix()
    got = mesh.matvec(np.eye(mesh.size))
    assert_allclose(got, got.T, rtol=0, atol=1e-12 * np.abs(got).max())
    worst = np.abs(got - matrix).max()
    assert 1e-5 * accuracy * COULOMB < worst < accuracy * COULOMB
    y = np.random.default_rng(0).normal(size=mesh.size)
    assert_allclose(mesh.matvec(y), got @ y, atol=1e-11)


@PBC
@DIPOLES
def test_gradient_strain_and_width_derivative_equal_those_of_exact_sums(pbc, dipoles):
    r, sigma = sample(1)
    mesh = MeshCoulomb(r, sigma, CELL, pbc, dipoles=dipoles, accuracy=1e-9)
    reference = exact(r, sigma, pbc, dipoles)
    rng = np.random.default_rng(1)
    left, right = rng.normal(size=mesh.size), rng.normal(size=(mesh.size, 2))
    right[:, 0] = left
    for name, arguments in (
        ("bilinear_gradient", (left, right)),
        ("bilinear_strain", (left, right)),
        ("width_derivative", (left, rng.normal(size=len(r)))),
    ):
        expected = getattr(reference, name)(*arguments)
        assert np.abs(expected).max() > 1
        assert_allclose(getattr(mesh, name)(*arguments), expected, rtol=0, atol=1e-5 if dipoles else 1e-6)


@DIPOLES
def test_derivatives_of_the_mesh_part_are_exact_on_the_coarsest_mesh(dipoles):
    # consistent with the product, not only as accurate as it: energy is conserved whatever the mesh
    r, _ = sample(2, 6)
    parameters = MeshParameters(0.6, 5.0, 6, (6, 5, 8))

    def make(positions, cell=CELL):
        return Mesh(positions, cell, parameters, dipoles=dipoles)

    rng = np.random.default_rng(2)
    n = 24 if dipoles else 6
    left, right = rng.normal(size=n), rng.normal(size=(n, 2))
    gradient, strain = make(r).gradient(left, right), make(r).strain(left, right)
    for k in range(6):
        for axis in range(3):
            step = np.zeros_like(r)
            step[k, axis] = 1
            numeric = central(lambda t, s=step: left @ make(r + t * s).matvec(right))
            assert_allclose(gradient[k, axis], numeric, rtol=0, atol=1e-8)
    assert np.abs(gradient).min() > 1e-3
    assert np.abs(strain).min() > 1e-3
    for a in range(3):
        for b in range(3):
            change = np.zeros((3, 3))
            change[a, b] = 1
            numeric = central(
                lambda t, m=change: left @ make(r + t * r @ m, CELL + t * CELL @ m).matvec(right)
            )
            assert_allclose(strain[a, b], numeric, rtol=0, atol=1e-8)


@DIPOLES
def test_derivatives_with_a_truncated_interaction_are_exact(dipoles):
    r, _ = sample(3, 6)
    r = r * 0.4
    parameters = MeshParameters(0.6, 5.0, 6, (12, 15, 10))

    def make(positions):
        return Mesh(positions, np.eye(3) * 20.0, parameters, dipoles=dipoles, reach=9.0)

    rng = np.random.default_rng(3)
    n = 24 if dipoles else 6
    left, right = rng.normal(size=n), rng.normal(size=(n, 1))
    gradient = make(r).gradient(left, right)
    step = rng.normal(size=r.shape)
    slope = np.einsum("ka,kac->c", step, gradient)
    assert np.abs(slope).min() > 1e-2
    assert_allclose(slope, central(lambda t: left @ make(r + t * step).matvec(right)), rtol=0, atol=1e-8)


@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 1, 0), (0, 0, 0)], ids=["bulk", "slab", "open"])
@DIPOLES
def test_array_api_strict_gives_the_same_numbers(pbc, dipoles):
    r, sigma = sample(4, 5)
    xp = array_api_strict
    mesh = MeshCoulomb(r, sigma, CELL, pbc, dipoles=dipoles, accuracy=1e-3)
    other = MeshCoulomb(xp.asarray(r), xp.asarray(sigma), CELL, pbc, dipoles=dipoles, accuracy=1e-3)
    rng = np.random.default_rng(4)
    y, block = rng.normal(size=mesh.size), rng.normal(size=(mesh.size, 2))
    ys, blocks = xp.asarray(y), xp.asarray(block)
    for expected, got in (
        (mesh.matvec(y), other.matvec(ys)),
        (mesh.matvec(block), other.matvec(blocks)),
        (mesh.bilinear_gradient(y, block), other.bilinear_gradient(ys, blocks)),
        (mesh.bilinear_strain(y, block), other.bilinear_strain(ys, blocks)),
        (mesh.preconditioner(y**2)(y), other.preconditioner(ys**2)(ys)),
    ):
        assert namespace(got) is xp
        assert_allclose(to_numpy(got), expected, rtol=0, atol=1e-10)


def test_charges_from_products_equal_charges_from_the_matrix():
    # 600 atoms, default accuracies: the conjugate-gradient solution of a charge equilibration problem
    rng = np.random.default_rng(5)
    length = 18.0
    grid = np.stack(np.meshgrid(*[np.arange(9)] * 3, indexing="ij"), -1).reshape(-1, 3)[:600]
    r = (grid + rng.uniform(-0.15, 0.15, grid.shape)) * length / 9
    sigma, chi, hardness = rng.uniform(0.4, 0.8, 600), rng.normal(size=600), rng.uniform(3, 12, 600)
    cell = np.eye(3) * length
    matrix = EwaldCoulomb(r, sigma, cell).matrix() + np.diag(hardness)
    solution = np.linalg.solve(matrix, np.stack([-chi, np.ones(600)], axis=1))
    dense = solution[:, 0] - solution[:, 1] * solution[:, 0].sum() / solution[:, 1].sum()
    mesh = MeshCoulomb(r, sigma, cell)
    q = np.zeros(600)
    residual = -chi + chi.mean()
    direction, norm = residual.copy(), residual @ residual
    for _ in range(80):
        product = mesh.matvec(direction) + hardness * direction
        product -= product.mean()
        step = norm / (direction @ product)
        q, residual = q + step * direction, residual - step * product
        norm, old = residual @ residual, norm
        direction = residual + norm / old * direction
    assert np.abs(dense).max() > 0.1
    assert_allclose(q, dense, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 1, 0), (0, 0, 0)], ids=["bulk", "slab", "open"])
@DIPOLES
def test_preconditioner_is_positive_definite_and_works(pbc, dipoles):
    # a layer in a long cell: for bulk that is matter next to vacuum, where the density is far from even
    rng = np.random.default_rng(8)
    cell = np.diag([20.0, 5.0, 5.0]) if all(pbc) else np.diag([20.0, 5.0, 8.0])
    r, sigma = rng.uniform(size=(60, 3)) * [10.0, 5.0, 5.0], rng.uniform(0.3, 0.8, 60)
    mesh = MeshCoulomb(r, sigma, cell, pbc, dipoles=dipoles, accuracy=1e-4)
    added = rng.uniform(6, 13, mesh.size)
    apply = mesh.preconditioner(added)
    inverse = np.stack([apply(column) for column in np.eye(mesh.size)], axis=1)
    assert_allclose(inverse, inverse.T, rtol=0, atol=1e-14)
    factor = np.linalg.cholesky(inverse)
    neutral = np.eye(mesh.size)
    neutral[:60, :60] -= 1 / 60
    matrix = neutral @ (mesh.matvec(np.eye(mesh.size)) + np.diag(added)) @ neutral

    def condition(left):
        values = np.linalg.eigvalsh(left.T @ matrix @ left)
        return values[-1] / values[1]

    scale = OpenCoulomb(r, sigma, dipoles=dipoles).preconditioner(added)(np.ones(mesh.size))
    assert condition(factor) < 12
    assert condition(factor) < 0.6 * condition(np.diag(np.sqrt(scale)))


def test_preconditioners_of_sums_with_a_matrix_divide_by_the_diagonal():
    r, sigma = sample(9, 6)
    for provider in (OpenCoulomb(r, sigma, dipoles=True), EwaldCoulomb(r, sigma, CELL, dipoles=True)):
        added = np.linspace(1, 2, 24)
        diagonal = np.diag(OpenCoulomb(r, sigma, dipoles=True).matrix()) + added
        assert_allclose(provider.preconditioner(added)(np.ones(24)), 1 / diagonal, rtol=1e-12)
        with pytest.raises(InputError, match=r"diagonal element 3 .*raise the hardness"):
            provider.preconditioner(np.where(np.arange(24) == 3, -100.0, 1.0))


# The plan -----------------------------------------------------------------------------------------


def test_estimated_interpolation_error_is_monotonic():
    errors = [[interpolation_error(0.5, h, p, 0) for h in (0.4, 0.6, 0.9)] for p in (4, 8, 12)]
    assert (np.diff(errors, axis=1) > 0).all()
    assert (np.diff(errors, axis=0) < 0).all()
    assert interpolation_error(0.5, 0.6, 8, 2) > interpolation_error(0.5, 0.6, 8, 0)


def test_cost_of_the_plan_grows_linearly():
    sizes = np.array([3000, 12000, 48000])
    plans = [
        choose_mesh(int(n), 0.1, np.full(3, (n * 10) ** (1 / 3)), 0.7, accuracy=1e-7, dipoles=False)
        for n in sizes
    ]
    points = np.array([np.prod(plan.shape) for plan in plans])
    assert len({plan.order for plan in plans}) == 1
    assert_allclose([plan.r_cut for plan in plans], plans[0].r_cut, rtol=0.01)
    exponent = np.log(points[-1] / points[0]) / np.log(sizes[-1] / sizes[0])
    assert exponent < 1.1


def test_factory_chooses_a_mesh_where_it_pays():
    r, sigma = sample(6)
    numbers = np.ones(len(r), dtype=np.int64)
    bulk = Structure(numbers, r, CELL, np.ones(3, dtype=bool))
    assert isinstance(coulomb(bulk, sigma, matrix_free=True), MeshCoulomb)
    assert isinstance(coulomb(bulk, sigma), EwaldCoulomb)
    small = Structure(numbers, r)
    assert isinstance(coulomb(small, sigma, matrix_free=True), OpenCoulomb)
    rng = np.random.default_rng(6)
    many = np.ones(4000, dtype=np.int64)
    ball = Structure(many, rng.uniform(0, 34, (4000, 3)))
    assert isinstance(coulomb(ball, np.full(4000, 0.5), matrix_free=True), MeshCoulomb)
    chain = Structure(many, np.arange(4000)[:, None] * np.array([1.3, 0, 0]))
    assert isinstance(coulomb(chain, np.full(4000, 0.5), matrix_free=True), OpenCoulomb)


def test_one_atom_and_atoms_on_a_line():
    for r in (np.zeros((1, 3)), np.array([[0.0, 0, 0], [1.0, 0, 0]])):
        sigma = np.full(len(r), 0.5)
        mesh = MeshCoulomb(r, sigma)
        assert_allclose(mesh.matvec(np.eye(len(r))), OpenCoulomb(r, sigma).matrix(), atol=1e-5)


def test_bad_input_is_refused_with_a_remedy():
    r, sigma = sample(7)
    with pytest.raises(UnsupportedError, match=r"never forms the 25×25 matrix; use matvec"):
        MeshCoulomb(r, sigma, CELL).matrix()
    with pytest.raises(UnsupportedError, match="one periodic direction"):
        MeshCoulomb(r, sigma, CELL, (1, 0, 0))
    with pytest.raises(UnsupportedError, match="better served by OpenCoulomb"):
        MeshCoulomb(np.array([[0.0, 0, 0], [5e4, 0, 0]]), np.array([0.5, 0.5]))
    with pytest.raises(InputError, match="accuracy is an error"):
        MeshCoulomb(r, sigma, CELL, accuracy=1e-15)
    with pytest.raises(InputError, match="no volume"):
        MeshCoulomb(r, sigma, np.zeros((3, 3)))
    broken = r.copy()
    broken[3] = np.inf
    with pytest.raises(InputError, match=r"atoms \[3\]"):
        MeshCoulomb(broken, sigma, CELL)
    with pytest.raises(InputError, match=r"shape \(25,\)"):
        MeshCoulomb(r, sigma, CELL).matvec(np.zeros(24))
