"""The door for settings: what is refused, in which words, and that nothing of a wrong kind passes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kqeq
from kqeq.errors import InputError
from kqeq.fitting.settings import RULES
from kqeq.io import rules


def refused(rule, value, **options):
    with pytest.raises(InputError) as caught:
        rule.require(value, "Thing(setting=...)", **options)
    return str(caught.value)


# ------------------------------------------------------------------ single rules

NUMBERS = st.one_of(st.integers(-(10**6), 10**6), st.floats(allow_nan=True, allow_infinity=True))
OTHERS = st.one_of(
    st.none(), st.booleans(), st.text(max_size=5), st.lists(st.integers(), max_size=2), st.just(int)
)


@given(NUMBERS)
def test_numbers(value):
    finite = bool(np.isfinite(value))
    assert rules.number().holds(value) is finite
    assert rules.number(above=0).holds(value) is (finite and value > 0)
    assert rules.number(-2, 3).holds(value) is (finite and -2 <= value <= 3)
    assert rules.whole(1).holds(value) is (isinstance(value, int) and value >= 1)
    assert rules.number().holds(np.float64(value)) is finite
    assert not rules.FLAG.holds(value) and not rules.TEXT.holds(value)


@given(OTHERS)
def test_what_is_not_a_number(value):
    for rule in (rules.number(), rules.whole(), rules.number(above=0)):
        assert not rule.holds(value)
    assert rules.FLAG.holds(value) is isinstance(value, bool)
    assert rules.NOTHING.holds(value) is (value is None)


def test_scalars_of_numpy_are_as_good_as_those_of_python():
    assert rules.whole(1).holds(np.int32(3)) and not rules.whole(1).holds(np.float64(3.0))
    assert rules.FLAG.holds(np.bool_(False)) and not rules.whole().holds(np.bool_(True))
    assert not rules.number().holds(np.array([1.0])) and not rules.number().holds(1 + 0j)


@given(st.lists(st.one_of(NUMBERS, OTHERS), max_size=5))
def test_vectors(value):
    good = len(value) == 3 and all(
        isinstance(x, int | float) and not isinstance(x, bool) and np.isfinite(x) for x in value
    )
    assert rules.vector(3, "three numbers").holds(value) is good
    assert rules.vector(3, "three numbers").holds(tuple(value)) is good


def test_vectors_of_other_kinds():
    rule = rules.vector(3, "three numbers")
    assert rule.holds(np.zeros(3)) and not rule.holds(np.zeros((3, 1))) and not rule.holds("123")
    assert not rule.holds({1, 2, 3}) and not rule.holds({1: 0, 2: 0, 3: 0}) and not rule.holds(5)


def test_messages_name_value_expectation_and_what_was_meant():
    text = refused(rules.choice("fps", "cur"), "FPS", remedy="see the manual")
    assert text == "Thing(setting='FPS'): expected one of 'fps', 'cur' (did you mean 'fps'?); see the manual"
    assert "an object, QEq(), instead of the class" in refused(RULES["charges"], kqeq.QEq)
    assert refused(rules.number(above=0) | rules.NOTHING, True) == (
        "Thing(setting=True): expected a positive number, or None"
    )
    assert "from 0 to 20" in refused(rules.whole(0, 20), 21)
    assert "above 1" in refused(rules.number(above=1), 1)
    assert len(refused(rules.TEXT, np.arange(10_000.0))) < 160 and "\n" not in refused(rules.TEXT, np.eye(9))
    error = rules.unknown_name("force", ["energy", "forces"], "noise names")
    assert str(error) == "noise names 'force'; expected some of energy, forces; did you mean 'forces'?"


class Hostile:
    """An object that fails whenever it is looked at."""

    def __eq__(self, other):
        raise RuntimeError

    __hash__ = None

    def __repr__(self):
        raise RuntimeError

    def __iter__(self):
        raise RuntimeError

    def __len__(self):
        raise RuntimeError


def test_hostile_objects_are_refused_like_others():
    for rule in (*RULES.values(), rules.vector(3, "three numbers"), rules.PATH, rules.FLAG):
        assert "Hostile" in refused(rule, Hostile())


# ------------------------------------------------------------------ every settings object


def water(water_training):
    return water_training[:4]


KERNEL = {"r_cut": 3.0, "n_max": 2, "l_max": 1, "n_representatives": 4}
GOOD = {
    "number": 0.25,
    "text": "word",
    "flag": False,
    "nothing": None,
    "class": kqeq.QEq,
    "kernel": kqeq.SOAPKernel(),
    "list": [1, 2],
    "dict": {"O": 1.0},
    "path": "",
    "array": np.ones(3),
    "nan": float("nan"),
    "negative": -3,
    "hostile": Hostile(),
}

MAKERS = {
    "kernel": (lambda **o: kqeq.SOAPKernel(**{**KERNEL, **o}).check(), kqeq.SOAPKernel),
    "charge kernel": (lambda **o: kqeq.ChargeKernel(**o).check(), kqeq.ChargeKernel),
    "qeq": (lambda **o: kqeq.QEq(**o).check_settings(), kqeq.QEq),
    "acks2": (lambda **o: kqeq.ACKS2(**o).check_settings(), kqeq.ACKS2),
    "dipoles": (lambda **o: kqeq.AtomicDipoles(**o).to_learn, kqeq.AtomicDipoles),
}

# what a setting may be beside its default, by kind of value in GOOD
ALLOWED = {
    "sigma": {"number"},
    "zeta": set(),
    "delta": {"number", "nothing"},
    "n_representatives": {"nothing"},
    "scale": {"number"},
    "hardness": {"dict", "nothing"},
    "width": {"dict", "nothing"},
    "softness": {"dict", "nothing"},
    "polarizability": {"dict", "nothing"},
    "fragments": {"flag"},
    "damping": {"flag"},
    "decay": {"number", "negative"},
    "reference_charges": {"nothing"},
    "inner": {"nothing"},
    "weighting": {"nothing"},
    "condition": {"nothing"},
    "pair_softness": {"nothing"},
}


def cases():
    for name, (make, kind) in MAKERS.items():
        for setting in kind().get_params(deep=False):
            for word, value in GOOD.items():
                yield pytest.param(make, setting, word, value, id=f"{name}-{setting}-{word}")


@pytest.mark.parametrize(("make", "setting", "word", "value"), list(cases()))
def test_every_setting_refuses_what_it_is_not(make, setting, word, value):
    if word in ALLOWED.get(setting, set()):
        make(**{setting: value})
        return
    with pytest.raises(InputError, match=setting):
        make(**{setting: value})


@pytest.mark.parametrize("setting", sorted(RULES))
def test_the_estimator_refuses_before_it_reads_frames(setting):
    if setting == "optimize":
        with pytest.raises(InputError, match=r"fit\(optimize='evidnce'\).*did you mean 'evidence'"):
            kqeq.KQEq().fit(None, optimize="evidnce")
        return
    with pytest.raises(InputError, match=rf"KQEq\({setting}="):
        kqeq.KQEq(**{setting: Hostile()}).fit(None)


@pytest.mark.parametrize(
    "noise", [5, {"forces": 0}, {"forces": True}, {"forces": "0.1"}, {"forces": np.nan}, {"force": 1}]
)
def test_noise(noise):
    with pytest.raises(InputError, match="noise"):
        kqeq.KQEq(noise=noise).fit(None)


@pytest.mark.parametrize(
    "option", [{"cache": ""}, {"cache": 3}, {"resume": " "}, {"resume": True}, {"optimize": True}]
)
def test_options_of_fit(option):
    with pytest.raises(InputError, match=rf"fit\({next(iter(option))}="):
        kqeq.KQEq().fit(None, **option)


def test_a_file_of_settings_takes_the_same_door(tmp_path):
    from kqeq.model.config import load_config

    path = tmp_path / "settings.toml"
    for text, expected in {
        "[short_range]\nzeta = true": r"\[short_range\] SOAPKernel\(zeta=True\): expected a number",
        '[short_range]\nselection = "fsp"': "did you mean 'fps'",
        "[short_range]\nzetta = 2": "did you mean 'zeta'",
        "max_iterations = 2.5": "max_iterations is 2.5: expected a whole number of at least 1",
        "[charges]\nfragments = 'no'": r"QEq\(fragments='no'\): expected True or False",
        "targets = 3": "targets is 3: expected a name",
        "[noise]\nforce = 0.1": "did you mean 'forces'",
        "electronegativty = false": "did you mean 'electronegativity'",
    }.items():
        path.write_text(text)
        with pytest.raises(InputError, match=f"settings.toml.*{expected}"):
            load_config(path)


def test_accepted_settings_are_remembered_until_they_change():
    model = kqeq.QEq(accuracy=1e-6)
    model.check_settings()
    model.check_settings()
    model.accuracy = "fine"
    with pytest.raises(InputError, match="accuracy='fine'"):
        model.check_settings()
    model.set_params(accuracy=1e-7)
    model.check_settings()
    assert "_accepted" not in model.get_params()
