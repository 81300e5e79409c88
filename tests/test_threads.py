"""One calculator, one model and one baseline used by several threads: each gets the results of its own structure."""

import pickle
import sys
import threading
from copy import deepcopy

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones

from checks import bare
from conftest import NOISE
from kqeq import KQEq, KQEqCalculator
from kqeq.baselines import CalculatorBaseline
from kqeq.frames.structures import read_structure
from kqeq.kernels.feature_map import _remembered


@pytest.fixture(autouse=True)
def _switch_often():
    """Threads take turns every microsecond, so that races show."""
    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(old)


def in_threads(task, items, threads=4):
    """What ``task`` gives for the items, each in every thread, in an order of the thread's own."""
    results = [{} for _ in range(threads)]
    errors = []

    def work(number):
        try:
            for i in np.random.default_rng(number).permutation(len(items)):
                results[number][int(i)] = task(items[i])
        except Exception as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors, errors
    return [[own[i] for i in range(len(items))] for own in results]


@pytest.fixture(scope="module")
def structures(water_systems):
    frames = [bare(a) for name in ("water1", "water2", "hydroxide") for a in water_systems[name][:5]]
    for i, atoms in enumerate(frames):
        atoms.info.update(total_charge=i % 2 - 1, external_field=[0.0, 0.02 * i, 0.0])
    return frames


@pytest.mark.parametrize("ask", ["energy", "forces", "charges", "dipole"])
def test_threads_that_share_a_calculator(water_model, structures, ask):
    def value(calculator, atoms):
        atoms = atoms.copy()
        atoms.calc = calculator
        return np.array(atoms.calc.get_property(ask, atoms))

    expected = [value(KQEqCalculator(water_model), atoms) for atoms in structures]
    assert len({round(float(np.sum(np.abs(own))), 9) for own in expected}) == len(structures)
    calculator = KQEqCalculator(water_model)
    for found in in_threads(lambda atoms: value(calculator, atoms), structures):
        for own, right in zip(found, expected, strict=True):
            np.testing.assert_allclose(own, right, rtol=0, atol=1e-9)


def test_threads_that_change_the_conditions(water_model):
    """Setting the charge and asking are two calls; each result belongs to some charge that was set."""
    atoms = Atoms("OH", [[0, 0, 0], [0, 0, 1.0]])
    calculator = KQEqCalculator(water_model)
    charges = [-1.0, 0.0, 1.0]

    def total(charge):
        calculator.set(total_charge=charge)
        return float(calculator.get_property("charges", atoms.copy()).sum())

    for found in in_threads(total, charges * 4):
        assert {round(value, 9) for value in found} <= set(charges)


def test_threads_that_share_a_model(water_model, structures):
    expected = [water_model.predict(a).energy for a in structures]
    for found in in_threads(lambda atoms: water_model.predict(atoms).energy, structures):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_copies_have_locks_of_their_own(water_model, structures):
    calculator = KQEqCalculator(water_model, total_charge=-1)
    for copy in (deepcopy(calculator), pickle.loads(pickle.dumps(calculator))):
        atoms = bare(structures[0])
        atoms.info.clear()
        assert copy.get_property("charges", atoms).sum() == pytest.approx(-1)
        assert copy._lock is not calculator._lock


class SlowPairs(LennardJones):
    """Gives others time to put their structure in between."""

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        own = self.results["energy"]
        threading.Event().wait(0.002)
        assert self.results.get("energy") == own


def test_threads_that_share_a_baseline_calculator(water_training, kernel, structures):
    calculator = SlowPairs(sigma=0.6, epsilon=0.01)
    model = KQEq(
        electronegativity=None,
        charges=None,
        short_range=kernel(3.0, n_representatives=3),
        baseline=calculator,
        noise=NOISE,
    ).fit(water_training[:4])
    frames = [bare(a) for a in structures[:6]]
    for atoms in frames:
        atoms.info.clear()
    expected = [model.predict(atoms).energy for atoms in frames]
    for found in in_threads(lambda atoms: model.predict(atoms).energy, frames, threads=3):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    # another baseline around the same calculator takes turns with the first
    first, second = CalculatorBaseline(calculator), CalculatorBaseline(calculator)
    energies = {a.get_chemical_formula() + str(i): read_structure(a) for i, a in enumerate(frames)}
    right = {name: first.evaluate(s)[0] for name, s in energies.items()}
    jobs = [(name, base) for name in energies for base in (first, second)]
    for found in in_threads(lambda job: job[1].evaluate(energies[job[0]])[0], jobs, threads=3):
        assert found == [right[name] for name, _ in jobs]


def test_a_bounded_cache_under_threads():
    cache = {}
    keys = list(range(12)) * 20
    for found in in_threads(lambda key: _remembered(cache, key, lambda: (key, "value"), 3), keys):
        assert found == [(key, "value") for key in keys]
    assert len(cache) <= 3
