"""Softness by pair of elements: derivatives, phases that do not exchange electrons, files, refusals."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from charge_checks import CHECKS, conditions, geometry
from kqeq.charges import ACKS2, AtomicDipoles, charge_model_from_dict
from kqeq.errors import InputError

PAIRS = {"O-H": 3.0, "N-C": 0.0, "C-C": 2.0}


@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("boundary", ["open", "slab"])
def test_every_identity_of_the_seam(boundary, check):
    check(conditions(ACKS2(pair_softness=PAIRS), boundary, 0.0))


def test_dipoles_on_top():
    for check in CHECKS[:2]:
        check(conditions(AtomicDipoles(ACKS2(pair_softness=PAIRS)), "open", 0.0))


def test_factors_act_on_the_bonds_of_a_pair_in_either_order():
    case = conditions(ACKS2(), "open")
    plain = case.system().flow.bonds
    numbers = case.structure.numbers
    for name in ("O-H", "H-O"):
        bonds = conditions(ACKS2(pair_softness={name: 3.0}), "open").system().flow.bonds
        pair = {8, 1}
        ratio = bonds.softness / plain.softness
        own = np.array([{numbers[i], numbers[j]} == pair for i, j in zip(bonds.i, bonds.j, strict=True)])
        assert own.any() and not own.all()
        assert_allclose(ratio[own], 3.0)
        assert_allclose(ratio[~own], 1.0)


def test_phases_that_do_not_exchange_electrons_keep_theirs():
    """No softness between O and all others: the oxygen keeps its reference charge, whatever the electronegativities."""
    structure = geometry("open")
    chi = np.array([20.0, 1.0, 1.0, 5.0, 9.0])
    apart = {f"O-{other}": 0.0 for other in ("H", "C", "N")}
    free = ACKS2().bind(structure).solve(chi, np.zeros(3), 0.0).charges
    held = ACKS2(pair_softness=apart).bind(structure).solve(chi, np.zeros(3), 0.0).charges
    assert abs(free[0]) > 0.05
    assert_allclose(held[0], 0.0, atol=1e-12)
    assert np.abs(held[1:]).max() > 0.05
    components = ACKS2(pair_softness=apart).bind(structure).flow.bonds.components()
    assert (components == components[0]).sum() == 1


def test_files_keep_them():
    model = charge_model_from_dict(ACKS2(pair_softness=PAIRS).to_dict())
    assert model.pair_softness == PAIRS
    old = ACKS2().to_dict()
    del old["pair_softness"]
    assert charge_model_from_dict(old).pair_softness is None


@pytest.mark.parametrize(
    "wrong", [{"Al": 1.0}, {"Al-Xx": 1.0}, {"O-H": -1.0}, {"O-H": "much"}, {"O-H": 1.0, "H-O": 2.0}, 3.0]
)
def test_refused(wrong):
    with pytest.raises(InputError, match="pair_softness"):
        ACKS2(pair_softness=wrong).check_settings()
