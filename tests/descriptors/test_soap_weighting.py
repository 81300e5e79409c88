"""Radial weighting of neighbours: rows against dscribe, derivatives by finite differences, both implementations."""

import numpy as np
import pytest
from dscribe.descriptors import SOAP
from test_soap_adjoint import displaced
from test_soap_arrays import close, dense

from device_checks import STRICT
from kqeq import SOAPKernel
from kqeq.backend import asarray_like
from kqeq.descriptors.soap.descriptor import SOAPDescriptor
from kqeq.descriptors.soap.weighting import Weighting
from kqeq.errors import InputError
from kqeq.frames.structures import read_structure
from systems import SYSTEMS, methanol, slab, triclinic

WEIGHTINGS = {
    "pow": {"function": "pow", "r0": 2.0, "c": 1.0, "d": 1.0, "m": 4.0},
    "pow without centre": {"function": "pow", "r0": 1.7, "c": 2.0, "d": 0.0, "m": 3.0, "w0": 0.8},
    "poly": {"function": "poly", "r0": 3.1, "c": 1.5, "m": 2.0},
    "exp": {"function": "exp", "r0": 1.2, "c": 1.0, "d": 0.3},
}


def rows_of_dscribe(atoms, descriptor, weighting):
    wrapped = atoms.copy()
    if atoms.pbc.any():
        wrapped.wrap()
    reference = SOAP(
        species=sorted({int(z) for z in atoms.numbers}),
        r_cut=descriptor.r_cut,
        n_max=descriptor.n_max,
        l_max=descriptor.l_max,
        sigma=descriptor.sigma,
        periodic=bool(atoms.pbc.any()),
        weighting=dict(weighting),
    )
    return reference.create(wrapped)


@pytest.mark.parametrize("weighting", WEIGHTINGS.values(), ids=WEIGHTINGS)
@pytest.mark.parametrize("name", ["molecule", "triclinic", "slab", "one atom"])
def test_rows_equal_dscribe(name, weighting):
    atoms = SYSTEMS[name]()
    descriptor = SOAPDescriptor(4.0, 6, 4, 0.4, weighting=weighting)
    state = descriptor.evaluate(read_structure(atoms))
    reference = rows_of_dscribe(atoms, descriptor, weighting)
    norms = np.linalg.norm(reference, axis=1)
    np.testing.assert_allclose(state.norms, norms, rtol=1e-10)
    assert np.linalg.norm(state.values - reference / norms[:, None], axis=1).max() < 1e-10
    plain = SOAPDescriptor(4.0, 6, 4, 0.4).evaluate(read_structure(atoms))
    if len(atoms) > 1:
        assert np.linalg.norm(state.values - plain.values, axis=1).min() > 1e-3


@pytest.mark.parametrize("weighting", WEIGHTINGS.values(), ids=WEIGHTINGS)
def test_weights_and_slopes(weighting):
    own = Weighting.of(weighting)
    r, h = np.linspace(0.3, 5.0, 95), 1e-6
    value, slope = own(r)
    numeric = (own(r + h)[0] - own(r - h)[0]) / (2 * h)
    assert np.abs(slope).max() > 0.1
    np.testing.assert_allclose(slope, numeric, atol=1e-8 * np.abs(slope).max())
    assert value.min() >= 0.0
    assert own.centre == pytest.approx(weighting.get("w0", own(np.zeros(1))[0][0] if own.d else None))


@pytest.mark.parametrize("weighting", [WEIGHTINGS["pow"], WEIGHTINGS["poly"]], ids=["pow", "poly"])
@pytest.mark.parametrize("make", [methanol, slab], ids=["open", "slab"])
def test_derivatives_by_finite_differences(make, weighting):
    descriptor = SOAPDescriptor(3.2, 4, 3, 0.4, smooth="switch", weighting=weighting)
    structure = read_structure(make())
    state = descriptor.evaluate(structure)
    rng = np.random.default_rng(1)
    gradient = rng.normal(size=state.values.shape)
    centres = np.array([0, 3, 5])
    directions, coefficients = rng.normal(size=(4, gradient.shape[1])), rng.normal(size=(3, 4))
    adjoint = state.adjoint(gradient).positions
    features = descriptor.feature_gradients(state, centres, directions, coefficients).positions
    h = 1e-4
    for atom, axis in ((0, 1), (3, 0), (len(structure) - 1, 2)):
        ends = [descriptor.evaluate(displaced(structure, atom, axis, sign * h)).values for sign in (1, -1)]
        change = (ends[0] - ends[1]) / (2 * h)
        assert np.abs(change).max() > 1e-3
        assert adjoint[atom, axis] == pytest.approx(np.sum(gradient * change), rel=1e-5, abs=1e-6)
        expected = np.sum(coefficients * (change[centres] @ directions.T), axis=0)
        np.testing.assert_allclose(features[3 * atom + axis], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [methanol, triclinic], ids=["open", "periodic"])
def test_array_code_equals_compiled_kernels(make):
    structure = read_structure(make())
    descriptor = SOAPDescriptor(3.2, 3, 3, weighting={**WEIGHTINGS["pow"], "w0": 0.3})
    reference = descriptor.evaluate(structure)

    def put(x):
        return asarray_like(x, STRICT.like)

    state = descriptor.evaluate_arrays(structure, STRICT.like)
    close(state.values, reference.values)
    close(state.norms, reference.norms)
    rng = np.random.default_rng(0)
    gradient = rng.normal(size=reference.values.shape)
    expected = reference.adjoint(gradient)
    assert np.abs(expected.positions).max() > 0.1
    close(state.adjoint(put(gradient)).positions, expected.positions)
    close(state.adjoint(put(gradient)).strain, expected.strain)
    jacobian = state.site_jacobian(put(gradient))
    close(dense(jacobian.positions), reference.site_jacobian(gradient).positions.toarray())
    centres, directions, coefficients = (
        np.array([3, 0]),
        rng.normal(size=(5, gradient.shape[1])),
        rng.normal(size=(2, 5)),
    )
    found = descriptor.feature_gradients(state, centres, put(directions), put(coefficients))
    expected = descriptor.feature_gradients(reference, centres, directions, coefficients)
    close(found.positions, expected.positions)


@pytest.mark.parametrize(
    ("weighting", "words"),
    [
        ("pow", "dict as dscribe takes it"),
        ({"function": "power", "r0": 2.0}, "'poly', 'pow', 'exp'"),
        ({"function": "pow"}, 'needs "r0"'),
        ({"function": "pow", "r0": -1.0}, "positive length"),
        ({"function": "poly", "r0": 2.0, "d": 1.0}, "no setting 'd'"),
        ({"function": "pow", "r0": 2.0, "d": 0.0, "m": 4.0}, '"w0"'),
        ({"function": "poly", "r0": 2.0, "m": 0.5}, "forces jump"),
        ({"function": "pow", "r0": True}, "finite number"),
        ({"function": "exp", "r0": 2.0, "c": 0.0}, "positive number"),
        ({"function": "exp", "r0": 2.0, "w0": -1.0}, "not negative"),
    ],
)
def test_settings_that_make_no_sense(weighting, words):
    with pytest.raises(InputError, match=words):
        SOAPKernel(weighting=weighting).check()


def test_equal_settings_are_one_descriptor():
    first = SOAPKernel(weighting=WEIGHTINGS["poly"]).descriptor()
    second = SOAPKernel(weighting=dict(reversed(WEIGHTINGS["poly"].items()))).descriptor()
    assert first == second and hash(first) == hash(second)
    assert first != SOAPKernel().descriptor()
    assert Weighting.of(first.weighting.to_dict()) == first.weighting
