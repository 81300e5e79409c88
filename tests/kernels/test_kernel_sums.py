"""Sums of kernels: derivatives, equality with one kernel where they say the same, files, settings.

The strongest check costs nothing: a kernel k with prior spread δ is the sum of two kernels k with δ/√2 each, so a model
with such a sum has the predictions and the uncertainties of the model with one.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from sklearn.base import clone

import kqeq
from checks import assert_close, central_difference, position_gradient, strain_gradient
from conftest import NOISE, small_kernel
from device_checks import STRICT
from kqeq import ACKS2, ChargeKernel, KQEq, QEq, SOAPKernel
from kqeq.errors import InputError, ModelFileError
from kqeq.fitting.parameters import KernelPart
from kqeq.fitting.rows.blocks import BLOCKS, Linearisation
from kqeq.fitting.rows.features import TrainingFrame, compute_features
from kqeq.model.config import model_from_dict
from label_rows import CASES, case, labels, random_u
from model_files import edit_header
from systems import water_cell

POW = {"function": "pow", "r0": 2.0, "c": 1.0, "d": 1.0, "m": 4.0}
FILES = Path(__file__).parents[1] / "files"


def chi_kernels():
    return [small_kernel(3.0, smooth="switch"), small_kernel(2.5, sigma=0.3, zeta=3, n_representatives=4)]


def energy_kernels():
    """Two of them share a descriptor; one has weights and representatives of its own."""
    return [
        small_kernel(3.5, zeta=4, smooth="switch"),
        small_kernel(3.5, zeta=2, n_representatives=3, smooth="switch", delta=0.4),
        small_kernel(2.5, sigma=0.25, n_representatives=4, weighting=POW),
    ]


@pytest.fixture(scope="module")
def sums(water_training):
    """Sums everywhere, hardness included."""
    model = KQEq(
        chi_kernels(),
        energy_kernels(),
        charges=QEq(hardness="kernel"),
        site_kernel=(small_kernel(2.5, n_representatives=2), small_kernel(3.0, n_representatives=3)),
        noise=NOISE,
        max_iterations=40,
    )
    return model.fit(water_training)


def test_layout(sums):
    parameters = sums.posterior_.parameters
    names = [
        "electronegativity 1",
        "electronegativity 2",
        "short_range 1",
        "short_range 2",
        "short_range 3",
        "hardness 1",
        "hardness 2",
    ]
    assert list(parameters.kernels) == names
    ends = [
        (part.columns.start, *(kernel.columns.stop for kernel in part.kernels))
        for part in parameters.parts.values()
    ]
    for part, own in zip(parameters.parts.values(), ends, strict=True):
        assert [k.columns.start for k in part.kernels] == list(own[:-1])
        assert own[-1] + len(part.offset_mean) == part.columns.stop
    assert parameters.short_range.deltas == (1.0 / math.sqrt(3.0), 0.4, 1.0 / math.sqrt(3.0))
    assert parameters.electronegativity.deltas == pytest.approx([2.0 / math.sqrt(2.0)] * 2)
    assert parameters.sites.parts["hardness"].deltas == pytest.approx([0.2 / math.sqrt(2.0)] * 2)
    # equal descriptors are evaluated once
    assert len(sums.potential_.feature_maps) == 7
    assert len(set(sums.potential_.descriptors)) < 7
    assert "short-range 2" in sums.fit_report_.representatives
    assert str(sums.fit_report_)


@pytest.mark.parametrize(
    ("name", "kind"),
    # Born charges are not fitted where site parameters are learned
    [c for c in CASES if c[0] in ("cation in a field", "charged cell") and c[1] != "born_charges"],
)
def test_jacobians_are_derivatives(name, kind, sums, water_systems):
    parameters = sums.posterior_.parameters
    structure = case(name, water_systems)
    u = random_u(parameters)
    frame = TrainingFrame(structure, labels(len(structure)), 0)
    features = compute_features(frame, parameters)

    def line(u):
        return Linearisation(frame, features, parameters, u)

    jacobian = BLOCKS[kind](line(u), True)[1]
    seen = set()
    for number, (which, kernel) in enumerate(parameters.kernels.items()):
        direction = np.zeros(parameters.size)
        direction[kernel.columns] = np.random.default_rng(number).normal(size=kernel.size)
        expected = central_difference(lambda t, d=direction: BLOCKS[kind](line(u + t * d), False)[0], 0.02)
        if which.startswith("short_range") and kind in ("dipole", "charges"):
            assert not (jacobian @ direction).any()
            continue
        seen.add(which)
        assert_close(jacobian @ direction, expected, rtol=1e-7, atol=1e-9, at_least=1e-6)
    assert len(seen) >= 4


@pytest.mark.parametrize("which", ["free", "coupled"])
def test_forces_and_stress_are_derivatives(which, sums, coupled):
    model = sums if which == "free" else coupled
    atoms = water_cell()
    forces = model.predict(atoms).forces
    gradient = position_gradient(lambda a: model.predict(a, properties=["energy"]).energy, atoms)
    assert_close(forces, -gradient, rtol=1e-6, at_least=0.1)
    strain = strain_gradient(lambda a: model.predict(a, properties=["energy"]).energy, atoms)
    assert_close(model.predict(atoms).stress, strain / atoms.get_volume(), rtol=1e-6, at_least=1e-3)


@pytest.fixture(scope="module")
def coupled(water_training):
    return KQEq(chi_kernels(), energy_kernels(), noise=NOISE, charge_aware=ChargeKernel(order=1)).fit(
        water_training
    )


# ------------------------------------------------- one kernel and a sum of equal ones


def halves(kernel, delta):
    return [clone(kernel).set_params(delta=delta / math.sqrt(2.0)) for _ in range(2)]


PAIRS = {
    "qeq": {},
    "short-range": {"electronegativity": None, "charges": None},
    "acks2": {"charges": lambda: ACKS2(hardness="kernel")},
    "charge-aware": {"charge_aware": lambda: ChargeKernel()},
}


@pytest.fixture(scope="module")
def pairs(water_training):
    made = {}
    for name, options in PAIRS.items():
        settings = {"noise": NOISE, "max_iterations": 60}
        settings |= {key: value() if callable(value) else value for key, value in options.items()}
        chi, energy, site = small_kernel(3.0), small_kernel(3.5, zeta=4), small_kernel(2.5, delta=0.3)
        one, two = dict(settings), dict(settings)
        if "electronegativity" not in options:
            one["electronegativity"], two["electronegativity"] = chi, halves(chi, 2.0)
        one["short_range"], two["short_range"] = energy, tuple(halves(energy, 1.0))
        if name == "acks2":
            one["site_kernel"], two["site_kernel"] = site, halves(site, 0.3)
        made[name] = KQEq(**one).fit(water_training), KQEq(**two).fit(water_training)
    return made


@pytest.mark.parametrize("name", [name for name in PAIRS if name != "acks2"])
def test_halves_say_what_the_whole_says(name, pairs, water_systems):
    one, two = pairs[name]
    assert two.posterior_.u.size > one.posterior_.u.size
    for atoms in (water_systems["water2"][5], water_systems["hydroxide"][2]):
        first, second = (m.predict(atoms, uncertainty=True) for m in (one, two))
        assert abs(second.energy - first.energy) < 1e-4
        for what in (
            "forces",
            "charges",
            "dipole",
            "polarizability",
            "energy_std",
            "forces_std",
            "dipole_std",
        ):
            expected = getattr(first, what)
            if expected is not None:
                assert_close(getattr(second, what), expected, rtol=1e-4, at_least=1e-6)


@pytest.mark.parametrize("name", ["qeq", "acks2"])
def test_halves_have_the_rows_of_the_whole(name, pairs, water_systems):
    """At the same function, u/√2 for each half; fits of learned element parameters do not end at the same point."""
    one, two = (m.posterior_.parameters for m in pairs[name])
    u = random_u(one)
    both, parts = np.zeros(two.size), {}
    for which, part in one.parts.items():
        other = two.parts[which]
        if len(other.kernels) == len(part.kernels):
            both[other.columns] = u[part.columns]
            continue
        parts[which] = (part.kernels[0], other.kernels)
        for half in other.kernels:
            both[half.columns] = u[part.kernels[0].columns] / math.sqrt(2.0)
        tail = len(part.offset_mean)
        both[other.columns.stop - tail : other.columns.stop] = u[part.columns.stop - tail : part.columns.stop]
    if one.learned is not None:
        both[two.learned.columns] = u[one.learned.columns]
    structure = case("anion in a field", water_systems)
    frame = TrainingFrame(structure, labels(len(structure)), 0)
    for kind in ("energy", "forces", "dipole"):
        whole = BLOCKS[kind](Linearisation(frame, compute_features(frame, one), one, u), True)
        split = BLOCKS[kind](Linearisation(frame, compute_features(frame, two), two, both), True)
        assert_close(split[0], whole[0], rtol=1e-10, at_least=1e-3)
        for kernel, others in parts.values():
            for half in others:
                expected = whole[1][:, kernel.columns] / math.sqrt(2.0)
                if np.abs(expected).max() > 0.0:
                    assert_close(split[1][:, half.columns], expected, rtol=1e-9, at_least=1e-6)


@pytest.mark.parametrize("name", ["qeq", "short-range"])
def test_halves_are_updated_and_select_alike(name, pairs, water_systems):
    more = [water_systems["water2"][i] for i in (1, 4)]
    pool = [water_systems["water3"][i] for i in range(4)]
    assert len({tuple(kqeq.select(model, pool, 3)) for model in pairs[name]}) == 1
    updated = [clone_fitted(model).update(more) for model in pairs[name]]
    atoms = water_systems["water2"][5]
    one, two = (m.predict(atoms).forces for m in updated)
    assert np.abs(one - pairs[name][0].predict(atoms).forces).max() > 1e-4
    assert_close(two, one, rtol=1e-3, at_least=0.1)


def clone_fitted(model):
    copy = clone(model)
    copy._set_fitted(model.potential_, model.fit_report_, model.charges_key_, model.posterior_)
    return copy


def test_a_list_of_one_is_the_kernel(water_training, water_systems):
    single = KQEq(small_kernel(3.0), small_kernel(3.5), noise=NOISE).fit(water_training)
    listed = KQEq([small_kernel(3.0)], (small_kernel(3.5),), noise=NOISE).fit(water_training)
    np.testing.assert_array_equal(single.posterior_.u, listed.posterior_.u)
    first, second = (m.predict(water_systems["water2"][5]) for m in (single, listed))
    assert first.energy == second.energy
    np.testing.assert_array_equal(first.forces, second.forces)


def test_evidence_finds_a_spread_for_each(water_training, tmp_path):
    model = KQEq(None, energy_kernels(), charges=None, noise=NOISE)
    model.fit(water_training, optimize="evidence", resume=tmp_path / "state")
    given = (1.0 / math.sqrt(3.0), 0.4, 1.0 / math.sqrt(3.0))
    found = model.posterior_.parameters.short_range.deltas
    assert all(abs(math.log(a / b)) > 0.01 for a, b in zip(given, found, strict=True))
    factors = [k.remainder for k in model.posterior_.parameters.kernels.values()]
    assert len(factors) == 3 and all(f != 1.0 for f in factors)
    assert "short_range 3 delta" in str(model.fit_report_)
    again = clone(model).fit(water_training, optimize="evidence", resume=tmp_path / "state")
    assert again.posterior_.parameters.short_range.deltas == pytest.approx(found)


@pytest.mark.filterwarnings("ignore::kqeq.errors.RepresentativesWarning")
def test_a_device_gives_the_same(sums, water_training, water_systems):
    frames = water_training[::4]  # H2O, its dimer, H3O+: the strict namespace is slow
    known, there = clone(sums).fit(frames), clone(sums).fit(frames, device=STRICT)
    scale = np.abs(known.posterior_.u).max()
    np.testing.assert_allclose(there.posterior_.u, known.posterior_.u, rtol=0, atol=1e-8 * scale)
    atoms = water_systems["water2"][5]
    here, elsewhere = (sums.predict(atoms, device=d) for d in ("cpu", STRICT))
    assert_close(elsewhere.forces, here.forces, rtol=1e-10, at_least=0.1)


def test_a_cache_gives_the_same(sums, water_training, tmp_path, monkeypatch):
    monkeypatch.setattr("kqeq.fitting.problem.cache_budget", lambda *_: 0)
    cached = clone(sums).fit(water_training, cache=tmp_path)
    np.testing.assert_allclose(cached.posterior_.u, sums.posterior_.u, rtol=1e-9, atol=1e-9)


# --------------------------------------------------------------------- files


@pytest.mark.parametrize("which", ["sums", "coupled"])
def test_files_keep_everything(which, request, tmp_path, water_systems):
    model = request.getfixturevalue(which)
    model.save(tmp_path / "m.kqeq", posterior=True)
    loaded = kqeq.load(tmp_path / "m.kqeq")
    atoms = water_systems["water2"][5]
    first, second = (m.predict(atoms, uncertainty=True) for m in (model, loaded))
    assert first.energy == second.energy
    # products of a factor that lies elsewhere in memory may differ in the last digit
    assert second.energy_std == pytest.approx(first.energy_std, rel=1e-12)
    np.testing.assert_array_equal(first.forces, second.forces)
    np.testing.assert_allclose(second.forces_std, first.forces_std, rtol=1e-12)
    assert [k.get_params() for k in loaded.short_range] == [k.get_params() for k in model.short_range]
    loaded.save(tmp_path / "again.kqeq", posterior=True)
    assert (tmp_path / "again.kqeq").read_bytes() == (tmp_path / "m.kqeq").read_bytes()


@pytest.mark.parametrize("name", ["plain", "hardness", "coupled"])
def test_files_of_version_1(name):
    """Written by kqeq 0.1.0; the numbers are its predictions."""
    known = json.loads((FILES / "version1.json").read_text())
    model = kqeq.load(FILES / f"version1_{name}.kqeq")
    found = model.predict(Atoms(known["numbers"], known["positions"]), uncertainty=True)
    for what, value in known["predictions"][name].items():
        np.testing.assert_allclose(getattr(found, what), value, rtol=1e-9, atol=1e-9)
    assert isinstance(model.short_range, SOAPKernel)
    kernels = model.posterior_.parameters.kernels
    assert kernels and all(isinstance(k, KernelPart) for k in kernels.values())
    assert {k.power for k in kernels.values()} == ({0, 1, 2} if name == "coupled" else {0})


def test_a_file_without_a_kernel_is_damaged(sums, tmp_path):
    sums.save(tmp_path / "m.kqeq")
    edit_header(tmp_path / "m.kqeq", lambda h: h["parts"]["short_range"].update(kernels=[]))
    with pytest.raises(ModelFileError, match="damaged"):
        kqeq.load(tmp_path / "m.kqeq")


# ------------------------------------------------------------------ settings


def test_tables_in_toml():
    tables = [{"r_cut": 5.0}, {"r_cut": 2.5, "sigma": 0.2, "weighting": dict(POW)}]
    model = model_from_dict({"short_range": tables, "electronegativity": {"r_cut": 3.0}})
    first, second = model.short_range
    assert (first.r_cut, second.r_cut, second.sigma) == (5.0, 2.5, 0.2)
    assert second.weighting == POW and first is not second
    assert isinstance(model.electronegativity, SOAPKernel)
    assert model_from_dict({"short_range": "auto"}).short_range == "auto"
    with pytest.raises(InputError, match=r"\[short_range 2\] has no setting 'colour'"):
        model_from_dict({"short_range": [{}, {"colour": 1}]})
    with pytest.raises(InputError, match=r"SOAP weighting is 3; expected None or a dict"):
        model_from_dict({"short_range": {"weighting": 3}})
    with pytest.raises(InputError, match="expected one of 'poly'"):
        model_from_dict({"short_range": {"weighting": {"function": "cube", "r0": 1.0}}})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"short_range": []}, r"short_range=\[\]\): expected .* a list of them"),
        ({"short_range": [small_kernel(3.0), None]}, "short_range=.*a list of them"),
        ({"electronegativity": 3.0}, "electronegativity=3.0.: expected"),
        ({"short_range": [small_kernel(3.0), small_kernel(0.5)]}, "r_cut=0.5"),
    ],
)
def test_settings_that_make_no_sense(options, text, water_training):
    with pytest.raises(InputError, match=text):
        KQEq(**options).fit(water_training)


def test_settings_survive_cloning():
    model = KQEq(short_range=energy_kernels())
    copy = clone(model)
    assert [k.get_params() for k in copy.short_range] == [k.get_params() for k in model.short_range]
    assert all(a is not b for a, b in zip(copy.short_range, model.short_range, strict=True))
