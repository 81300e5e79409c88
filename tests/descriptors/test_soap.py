"""SOAP values against dscribe, which defines them; settings, layout, invariances."""

import subprocess
import sys

import numpy as np
import pytest
from ase import Atoms
from dscribe.descriptors import SOAP

from kqeq.backend.threads import use_threads
from kqeq.descriptors.soap.descriptor import SOAPDescriptor
from kqeq.errors import InputError
from kqeq.frames.neighbours import find_pairs
from kqeq.frames.structures import Structure, read_structure
from systems import SYSTEMS, methanol, triclinic


def dscribe_rows(atoms, descriptor, species=None, *, normalise=True):
    """dscribe's rows in the layout of the elements present; atoms wrapped, as dscribe needs them."""
    wrapped = atoms.copy()
    if atoms.pbc.any():
        wrapped.wrap()
    reference = SOAP(
        species=species or sorted({int(z) for z in atoms.numbers}),
        r_cut=descriptor.r_cut,
        n_max=descriptor.n_max,
        l_max=descriptor.l_max,
        sigma=descriptor.sigma,
        periodic=bool(atoms.pbc.any()),
    )
    rows = reference.create(wrapped)
    return rows / np.linalg.norm(rows, axis=1)[:, None] if normalise else rows


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("settings", [(5.0, 8, 6, 0.5), (4.0, 6, 4, 0.4), (3.0, 3, 0, 0.3)], ids=str)
def test_values_equal_dscribe(name, settings):
    atoms = SYSTEMS[name]()
    descriptor = SOAPDescriptor(*settings)
    state = descriptor.evaluate(read_structure(atoms))
    reference = dscribe_rows(atoms, descriptor)
    assert state.values.shape == reference.shape
    assert state.species == tuple(sorted(set(atoms.numbers.tolist())))
    assert np.linalg.norm(state.values - reference, axis=1).max() < 1e-10
    raw = dscribe_rows(atoms, descriptor, normalise=False)
    np.testing.assert_allclose(state.norms, np.linalg.norm(raw, axis=1), rtol=1e-10)


@pytest.mark.parametrize(
    "settings", [(4.0, 1, 1, 0.5), (4.0, 9, 3, 0.3), (3.5, 2, 12, 0.5), (6.0, 13, 9, 1.0)]
)
def test_other_settings_equal_dscribe(settings):
    atoms = methanol()
    descriptor = SOAPDescriptor(*settings)
    values = descriptor.evaluate(read_structure(atoms)).values
    assert np.linalg.norm(values - dscribe_rows(atoms, descriptor), axis=1).max() < 1e-9


def test_absent_species_cost_nothing():
    # rows of a wider layout hold the same blocks, and zeros for the absent element
    atoms = methanol()
    descriptor = SOAPDescriptor(4.0, 4, 3)
    state = descriptor.evaluate(read_structure(atoms))
    wide = (1, 6, 7, 8)
    reference = dscribe_rows(atoms, descriptor, species=list(wide))
    assert reference.shape[1] == descriptor.feature_count(wide)
    own, other = descriptor.block_slices(state.species), descriptor.block_slices(wide)
    for pair, block in other.items():
        if 7 in pair:
            assert not reference[:, block].any()
        else:
            np.testing.assert_allclose(state.values[:, own[pair]], reference[:, block], atol=1e-11)
    assert sum(s.stop - s.start for s in own.values()) == state.values.shape[1]


def test_block_slices_follow_dscribe():
    species = (1, 6, 8)
    descriptor = SOAPDescriptor(4.0, 5, 2)
    reference = SOAP(species=list(species), r_cut=4.0, n_max=5, l_max=2, sigma=0.5)
    for pair, block in descriptor.block_slices(species).items():
        assert reference.get_location(pair) == block


def test_rotation_and_translation_and_permutation():
    atoms = methanol()
    descriptor = SOAPDescriptor(4.0, 6, 4)
    reference = descriptor.evaluate(read_structure(atoms)).values
    moved = atoms.copy()
    moved.rotate(73, (1, -2, 0.5))
    moved.positions += [3.0, -20.0, 7.0]
    order = np.random.default_rng(0).permutation(len(atoms))
    values = descriptor.evaluate(read_structure(moved[order])).values
    np.testing.assert_allclose(values, reference[order], atol=1e-11)


def test_supercell_repeats_the_cell():
    descriptor = SOAPDescriptor(4.0, 4, 3)
    atoms = triclinic()
    values = descriptor.evaluate(read_structure(atoms)).values
    doubled = descriptor.evaluate(read_structure(atoms.repeat((2, 1, 1)))).values
    np.testing.assert_allclose(doubled, np.tile(values, (2, 1)), atol=1e-11)


def test_isolated_atom_sees_itself_only():
    state = SOAPDescriptor(4.0, 4, 3).evaluate(read_structure(Atoms("He")))
    nonzero = np.flatnonzero(np.abs(state.values[0]) > 1e-14)
    assert nonzero.tolist() == list(range(10))  # l = 0, n1 <= n2
    np.testing.assert_allclose(np.linalg.norm(state.values[0]), 1.0, rtol=1e-14)


def test_coincident_atoms_are_finite():
    # read_structure refuses them; the kernels must not produce NaN in between
    twins = Structure(np.array([1, 1, 8]), np.array([[0.0, 0, 0], [0, 0, 0], [0, 0, 1.0]]))
    descriptor = SOAPDescriptor(4.0, 4, 3)
    state = descriptor.evaluate(twins)
    assert np.isfinite(state.values).all()
    np.testing.assert_allclose(state.values[0], state.values[1], atol=1e-14)
    gradient = state.adjoint(np.ones_like(state.values)).positions
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient[0], gradient[1], atol=1e-12)


@pytest.mark.parametrize("derivatives", [True, False])
def test_evaluate_many_is_evaluate(derivatives):
    frames = [read_structure(SYSTEMS[name]()) for name in ("molecule", "triclinic", "one atom")] * 4
    descriptor = SOAPDescriptor(4.0, 4, 3)
    for threads in (1, 2):
        with use_threads(threads):
            states = descriptor.evaluate_many(frames, derivatives=derivatives)
        assert len(states) == len(frames)
        for state, frame in zip(states, frames, strict=True):
            assert np.array_equal(state.values, descriptor.evaluate(frame).values)
    assert descriptor.evaluate_many([]) == []


def test_shared_neighbour_list():
    structure = read_structure(triclinic())
    near, far = SOAPDescriptor(3.0, 4, 3), SOAPDescriptor(5.0, 4, 3)
    for full in (True, False):
        pairs = find_pairs(structure, far.cutoff, full=full)
        for descriptor in (near, far):
            values = descriptor.evaluate(structure, pairs=pairs).values
            np.testing.assert_allclose(values, descriptor.evaluate(structure).values, atol=1e-13)
    with pytest.raises(InputError, match="reaches"):
        far.evaluate(structure, pairs=find_pairs(structure, near.cutoff))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r_cut": 1.0}, "r_cut"),
        ({"r_cut": float("nan")}, "r_cut"),
        ({"r_cut": "4"}, "r_cut"),
        ({"n_max": 0}, "n_max"),
        ({"n_max": 2.5}, "n_max"),
        ({"l_max": -1}, "l_max"),
        ({"l_max": 21}, "l_max"),
        ({"l_max": True}, "l_max"),
        ({"sigma": 0.0}, "sigma"),
        ({"sigma": -0.1}, "sigma"),
        ({"smooth": "yes"}, "smooth"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        SOAPDescriptor(**({"r_cut": 4.0, "n_max": 4, "l_max": 3} | settings))


def test_dependent_radial_basis_is_refused():
    with pytest.raises(InputError, match="lower n_max"):
        _ = SOAPDescriptor(1.2, 30, 2).cutoff


def test_settings_are_hashable_and_equal():
    assert len({SOAPDescriptor(4, 4, 3), SOAPDescriptor(4.0, np.int64(4), 3), SOAPDescriptor(4.0, 4, 2)}) == 2


def test_import_is_light():
    code = (
        "import sys, kqeq.descriptors.soap\n"
        "heavy = [m for m in ('numba', 'dscribe', 'sklearn', 'vesin', 'matplotlib') if m in sys.modules]\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("sigma", "n_max", "l_max"), [(0.2, 8, 6), (0.5, 3, 2), (1.0, 5, 0)])
def test_tables_of_exponentials(sigma, n_max, l_max):
    """Two tables and a short series give the radial functions at any distance up to the cutoff."""
    from kqeq.descriptors.soap.basis import FINE, exponentials, radial_basis

    radial = radial_basis(5.0, n_max, l_max, sigma)
    own = exponentials(radial.exponents, radial.cutoff)
    width, count = len(own.rates), radial.exponents.size
    r2 = np.linspace(0.0, radial.cutoff, 500) ** 2
    cell = (r2 / own.step + 0.5).astype(int)
    assert cell.max() // FINE < len(own.coarse) // width
    y = (r2 - cell * own.step)[:, None] * own.rates
    assert np.abs(y).max() <= 1 / 16
    series = 1.0 + y * (1 + y / 2 * (1 + y / 3 * (1 + y / 4 * (1 + y / 5 * (1 + y / 6 * (1 + y / 7))))))
    found = own.coarse.reshape(-1, width)[cell // FINE] * own.fine.reshape(-1, width)[cell % FINE] * series
    exact = np.exp(radial.exponents.ravel() * r2[:, None])
    assert np.abs(found[:, :count] / exact - 1).max() < 1e-13
    assert (found[:, count:] == 1.0).all()
