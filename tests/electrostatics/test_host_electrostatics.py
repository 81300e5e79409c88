"""Compiled lattice sums against array code, their derivatives, threads, and one neighbour list for all."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from kqeq.backend import threads
from kqeq.constants import COULOMB
from kqeq.descriptors.soap.descriptor import SOAPDescriptor
from kqeq.electrostatics import EwaldCoulomb, MeshCoulomb, coulomb, host
from kqeq.electrostatics.gaussian import OpenCoulomb
from kqeq.electrostatics.host import HostOpenCoulomb, HostReciprocal, real_space
from kqeq.electrostatics.radial import screened_coulomb
from kqeq.electrostatics.realspace import RealSpace
from kqeq.electrostatics.reciprocal import Reciprocal
from kqeq.electrostatics.tables import MAX_KINDS, radial_tables
from kqeq.frames.neighbours import NeighbourFinder, find_pairs
from kqeq.frames.structures import Structure

CELL = np.array([[7.0, 0.0, 0.0], [1.5, 6.5, 0.0], [-1.0, 2.0, 8.0]])
KAPPA, R_CUT, K_CUT = 0.6, 8.0, 7.0


def crystal(n=14, seed=0):
    rng = np.random.default_rng(seed)
    positions = rng.uniform(-1.0, 2.0, (n, 3)) @ CELL
    return positions, rng.choice([0.4, 0.66, 0.9], n)


def parts():
    positions, sigma = crystal()
    compiled = (
        real_space(positions, sigma, CELL, kappa=KAPPA, r_cut=R_CUT),
        HostReciprocal(positions, CELL, kappa=KAPPA, k_cut=K_CUT),
    )
    arrays = (
        RealSpace(positions, sigma, CELL, kappa=KAPPA, r_cut=R_CUT, dipoles=False),
        Reciprocal(positions, CELL, kappa=KAPPA, k_cut=K_CUT, dipoles=False),
    )
    assert type(compiled[0]) is host.HostRealSpace
    return list(zip(compiled, arrays, strict=True))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("kept", [True, False])
def test_equals_array_code(which, kept, monkeypatch):
    if not kept:
        monkeypatch.setattr(host, "_KEPT_ELEMENTS", 0)
        monkeypatch.setattr(host, "_CHUNK_ELEMENTS", 900)
    compiled, arrays = parts()[which]
    rng = np.random.default_rng(1)
    y, many = rng.normal(size=14), rng.normal(size=(14, 6))

    def whole(part):
        half = part.add_half(np.zeros((14, 14)))
        return half + half.T

    assert np.abs(whole(arrays)).max() > 0.1
    assert_allclose(whole(compiled), whole(arrays), rtol=0, atol=1e-11)
    for block in (y, many):
        assert_allclose(compiled.matvec(block), arrays.matvec(block), rtol=0, atol=1e-11)
    for right in (y[:, None], many[:, :1], many):
        for name in ("gradient", "strain"):
            expected = getattr(arrays, name)(y, right)
            assert np.abs(expected).max() > 0.1
            assert_allclose(getattr(compiled, name)(y, right), expected, rtol=0, atol=1e-10)


def test_width_derivative_uses_the_pairs_within_the_cutoff():
    compiled, arrays = parts()[0]
    y, widths = np.random.default_rng(2).normal(size=(2, 14))
    assert_allclose(compiled.width_derivative(y, widths), arrays.width_derivative(y, widths), atol=1e-11)


def test_tables_are_exact_and_so_are_their_slopes():
    tables = radial_tables((0.31, 0.66), 0.35, 12.0)
    r2 = np.random.default_rng(0).uniform(0.0, 144.0, 4000)
    place = r2 * tables.inverse
    cell = place.astype(int)
    u = 2.0 * (place - cell) - 1.0
    for (i, j), widths in {(0, 0): (0.31, 0.31), (0, 1): (0.31, 0.66), (1, 1): (0.66, 0.66)}.items():
        a = np.full_like(r2, 1.0 / np.sqrt(2.0 * (widths[0] ** 2 + widths[1] ** 2)))
        value, slope = screened_coulomb(r2, a, 0.35, 1)
        c = tables.coefficients[tables.table_of[i, j], cell].T
        powers = u ** np.arange(8)[:, None]
        found = np.sum(c * powers, axis=0)
        # B_1 = −(1/r) dB_0/dr = −2 dB_0/dr²
        steps = np.sum(np.arange(1, 8)[:, None] * c[1:] * powers[:-1], axis=0) * 2.0 * tables.inverse
        assert np.abs(value).max() > 0.3
        assert_allclose(found, COULOMB * value, rtol=0, atol=1e-13 * COULOMB * np.abs(value).max())
        assert_allclose(-2.0 * steps, COULOMB * slope, rtol=0, atol=1e-11 * COULOMB * np.abs(slope).max())


def test_many_widths_take_array_code():
    positions, _ = crystal()
    sigma = np.linspace(0.4, 0.9, MAX_KINDS + 6)
    assert type(real_space(positions, sigma, CELL, kappa=KAPPA, r_cut=R_CUT)) is RealSpace
    assert radial_tables((0.001,), 0.5, 10.0) is None
    rng = np.random.default_rng(0)
    few, y = HostOpenCoulomb(positions, sigma), rng.normal(size=14)
    plain = OpenCoulomb(positions, sigma)
    assert_allclose(few.matrix(), plain.matrix(), atol=1e-12)
    assert_allclose(few.bilinear_gradient(y, y[:, None]), plain.bilinear_gradient(y, y[:, None]), atol=1e-12)


def test_open_boundaries():
    rng = np.random.default_rng(3)
    positions = rng.uniform(0.0, 30.0, (20, 3))  # some closer, some farther than where charges are points
    sigma = rng.choice([0.31, 0.66], 20)
    compiled, plain = HostOpenCoulomb(positions, sigma), OpenCoulomb(positions, sigma)
    distances = np.linalg.norm(positions[:, None] - positions, axis=2)[np.triu_indices(20, 1)]
    assert distances.min() < compiled._reach < distances.max()
    assert_allclose(compiled.matrix(), plain.matrix(), rtol=0, atol=1e-12)
    left, right = rng.normal(size=20), rng.normal(size=(20, 1))
    for block in (right, rng.normal(size=(20, 3))):
        expected = plain.bilinear_gradient(left, block)
        assert_allclose(compiled.bilinear_gradient(left, block), expected, rtol=0, atol=1e-11)
        assert_allclose(compiled.bilinear_strain(left, block), plain.bilinear_strain(left, block), atol=1e-10)


def test_the_number_of_threads_changes_no_bit(monkeypatch):
    from kqeq.electrostatics import splines

    monkeypatch.setattr(host, "_SMALLEST_THREADED", 1)
    monkeypatch.setattr(splines, "_SMALLEST_THREADED", 1)
    positions, sigma = crystal(40)
    y = np.random.default_rng(4).normal(size=40)

    def everything():
        for provider in (EwaldCoulomb(positions, sigma, CELL), MeshCoulomb(positions, sigma, CELL)):
            yield provider.matvec(y)
            yield provider.bilinear_gradient(y, y[:, None])
            yield provider.bilinear_strain(y, y[:, None])
        yield EwaldCoulomb(positions, sigma, CELL).matrix()
        yield HostOpenCoulomb(positions, sigma).matrix()

    with threads.use_threads(1):
        one = list(everything())
    with threads.use_threads(3):
        three = list(everything())
    for a, b in zip(one, three, strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("side", ["ewald", "mesh"])
def test_one_list_serves_all_and_changes_nothing(side):
    rng = np.random.default_rng(5)
    positions, sigma = crystal(30)
    finder = NeighbourFinder(3.0, 0.4)
    structure = Structure(
        rng.choice([1, 8], 30), positions, 2.0 * CELL, np.ones(3, dtype=bool), neighbours=finder
    )
    descriptor = SOAPDescriptor(3.5, 4, 3, smooth="switch")
    collected = []
    for step in range(6):
        scale = 0.5 if step == 4 else 0.03
        moved = structure.positions + rng.normal(scale=scale, size=positions.shape)
        structure = replace(structure, positions=moved)
        alone = replace(structure, neighbours=None)
        assert_allclose(
            descriptor.evaluate(structure).values, descriptor.evaluate(alone).values, rtol=0, atol=1e-12
        )
        y = rng.normal(size=30)
        shared, own = (coulomb(s, sigma, matrix_free=side == "mesh") for s in (structure, alone))
        for name in ("matvec", "bilinear_gradient"):
            given = (y,) if name == "matvec" else (y, y[:, None])
            assert_allclose(getattr(shared, name)(*given), getattr(own, name)(*given), rtol=0, atol=1e-10)
        near = find_pairs(structure, 2.5, full=False)
        assert len(near) == len(find_pairs(alone, 2.5, full=False))
        assert find_pairs(structure, 2.5, full=False) is near  # nothing is collected twice
        collected.append(finder._kept)
    assert len({id(kept) for kept in collected[:4]}) == 1
    assert collected[4] is not collected[3]
