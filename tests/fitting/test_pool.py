"""Features that the problems of a search share: the same numbers, computed once."""

import numpy as np
import pytest

from conftest import NOISE, small_kernel
from kqeq import KQEq
from kqeq.fitting import fit as fitting
from kqeq.fitting.rows.pool import FeaturePool, shared_pool, sharing_features
from kqeq.kernels.feature_map import FeatureMap, SummedFeatures


@pytest.fixture
def counted(monkeypatch):
    """Structures of each call that sums features over atoms."""
    calls = []
    plain = FeatureMap.summed_many

    def summed_many(self, states, *args):
        calls.append(len(states))
        return plain(self, states, *args)

    monkeypatch.setattr(FeatureMap, "summed_many", summed_many)
    return calls


def searched(frames):
    kernels = [small_kernel(3.5, zeta=4, n_representatives=6), small_kernel(2.5, n_representatives=6)]
    own = small_kernel(3.0, n_representatives=6)
    return KQEq(own, kernels, noise=NOISE).fit(frames, optimize="left-out")


def test_a_search_computes_features_once(water_training, counted, monkeypatch):
    model = searched(water_training)
    shared = sum(counted)
    counted.clear()
    monkeypatch.setattr(fitting, "sharing_features", lambda: sharing_features(0))
    other = searched(water_training)
    assert shared < sum(counted) / 2
    one, two = (m.predict(water_training[-1]).forces for m in (model, other))
    assert np.ptp(one) > 0.1
    np.testing.assert_allclose(one, two, rtol=0.0, atol=1e-6)
    assert shared_pool() is None


def test_only_what_is_wanted_and_fits(water_model, water_training):
    feature_map = water_model.posterior_.parameters.short_range.feature_maps[0]
    structure, other = object(), object()
    values, positions = np.ones(4), np.ones((9, 4))
    pool = FeaturePool(values.nbytes + positions.nbytes)
    pool.add(feature_map, structure, SummedFeatures(values, positions, None))
    pool.add(feature_map, other, SummedFeatures(values, None, None))  # no room any more
    assert pool.get(feature_map, other, gradient=False, strain=False) is None
    assert pool.get(feature_map, structure, gradient=True, strain=True) is None
    found = pool.get(feature_map, structure, gradient=False, strain=False)
    assert found is not None and found.positions is None and found.values is values


def test_pools_end_with_what_they_are_for():
    with sharing_features() as pool:
        assert shared_pool() is pool
    assert shared_pool() is None
