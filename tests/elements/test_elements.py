"""Element data against values known from elsewhere, and the rules for filling in parameters."""

import numpy as np
import pytest
from ase.data import covalent_radii

from kqeq import elements
from kqeq.constants import COULOMB
from kqeq.errors import InputError

# Textbook values (eV), independent of the table's source: CRC Handbook, rounded to three decimals.
TEXTBOOK = {
    1: (13.598, 0.754),
    3: (5.392, 0.618),
    6: (11.260, 1.262),
    7: (14.534, 0.0),
    8: (13.618, 1.461),
    9: (17.423, 3.401),
    11: (5.139, 0.548),
    12: (7.646, 0.0),
    13: (5.986, 0.433),
    14: (8.152, 1.390),
    16: (10.360, 2.077),
    17: (12.968, 3.613),
    29: (7.726, 1.235),
    30: (9.394, 0.0),
    35: (11.814, 3.364),
    47: (7.576, 1.302),
    53: (10.451, 3.059),
    54: (12.130, 0.0),
    79: (9.226, 2.309),
}


def test_table_covers_hydrogen_to_radon_without_gaps():
    table = elements.element_table()
    assert list(table) == list(range(1, len(table) + 1))
    assert len(table) >= 86
    origins = {e.electron_affinity_origin for e in table.values()}
    assert origins == {"crc", "measured", "estimated", "unbound", "unknown"}


@pytest.mark.parametrize("number", sorted(TEXTBOOK))
def test_energies_agree_with_textbook_values(number):
    element = elements.element_table()[number]
    ionization, affinity = TEXTBOOK[number]
    assert element.ionization_energy == pytest.approx(ionization, abs=6e-4)
    assert element.electron_affinity == pytest.approx(affinity, abs=3e-3)


def test_periodic_trends_hold():
    # a shifted row would break these: closed shells bind best, the next atom binds worst
    energy = {z: e.ionization_energy for z, e in elements.element_table().items()}
    for noble in (2, 10, 18, 36, 54, 86):
        assert energy[noble] == max(energy[z] for z in range(noble - 1, noble + 5))
        assert energy[noble + 1] == min(energy[z] for z in range(noble - 1, noble + 5))
    alpha = elements.polarizability([3, 11, 19, 37, 55])
    assert (alpha > 20.0).all()
    assert alpha.argmax() == 4


def test_affinity_is_zero_exactly_where_the_table_says_so():
    for element in elements.element_table().values():
        empty = element.electron_affinity_origin in {"unbound", "unknown"}
        assert (element.electron_affinity == 0.0) == empty, element.symbol
        assert element.electron_affinity >= 0.0


def test_radii_are_those_of_cordero_as_in_ase():
    table = elements.element_table()
    np.testing.assert_allclose(elements.width(list(table)), covalent_radii[list(table)], atol=1e-12)


def test_polarizabilities_of_atoms_known_from_experiment():
    # He 0.2050 Å³ (Gaiser & Fellmuth 2018), Ne 0.3943 and Ar 1.642 Å³ (refractivity), Na 24.11 Å³ (Ekstrom et al. 1995)
    np.testing.assert_allclose(
        elements.polarizability([2, 10, 18, 11]), [0.20505, 0.3943, 1.642, 24.11], rtol=2e-3
    )


def test_default_hardness_is_positive_and_makes_dense_gas_of_gaussians_positive_definite():
    table = elements.element_table()
    numbers = np.array(list(table))
    assert (elements.hardness(numbers) > 3.0).all()
    # the worst case: all atoms at one point, where the Coulomb part is k_e √(2/π)/γ_ij
    eta, sigma = elements.hardness(numbers), elements.width(numbers)
    gamma = np.sqrt(sigma[:, None] ** 2 + sigma[None, :] ** 2)
    matrix = COULOMB * np.sqrt(2.0 / np.pi) / gamma
    np.testing.assert_allclose(np.diagonal(matrix), COULOMB / (np.sqrt(np.pi) * sigma))
    assert np.linalg.eigvalsh(matrix + np.diag(eta)).min() > 3.0
    # while Parr and Pearson's hardness taken as the whole diagonal would not be
    literal = matrix.copy()
    literal[np.diag_indices_from(literal)] = eta
    assert np.linalg.eigvalsh(literal).min() < -1.0


def test_rules():
    table = elements.element_table()
    assert elements.electronegativity([8])[0] == pytest.approx((13.618055 + 1.4611135) / 2, abs=1e-4)
    assert elements.hardness(np.array([8]))[0] == pytest.approx(13.618055 - 1.4611135, abs=1e-4)
    assert table[8].width == table[8].covalent_radius == 0.66


def test_values_are_spread_over_atoms_in_order():
    numbers = np.array([8, 1, 1, 6, 8])
    values = elements.electronegativity(numbers)
    assert values.shape == (5,)
    assert values.dtype == np.float64
    assert values[0] == values[4] > values[3] != values[1] == values[2]
    assert elements.width([]).shape == (0,)


@pytest.mark.parametrize("name", ["electronegativity", "hardness", "width", "polarizability"])
def test_unknown_elements_are_named_with_the_remedy(name):
    with pytest.raises(InputError, match=rf"no default {name} for Fm \(Z = 100\).*{name}=\{{'Fm': value\}}"):
        getattr(elements, name)([1, 100])


def test_resolve_fills_in_defaults():
    numbers = np.array([1, 8, 1, 6])
    default = elements.hardness(numbers)
    np.testing.assert_array_equal(elements.resolve(None, numbers, elements.hardness, "hardness"), default)
    resolved = elements.resolve({"O": 5, 1: np.float64(-2.5)}, numbers, elements.hardness, "hardness")
    np.testing.assert_array_equal(resolved, [-2.5, 5.0, -2.5, default[3]])


def test_resolve_accepts_elements_without_default_when_given_and_elements_that_do_not_occur():
    numbers = np.array([100, 1])
    np.testing.assert_array_equal(
        elements.resolve({"Fm": 2.0, "Au": 1.5}, numbers, elements.width, "width"),
        [2.0, elements.width([1])[0]],
    )
    with pytest.raises(InputError, match="Fm"):
        elements.resolve({"Au": 1.5}, numbers, elements.width, "width")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"Xx": 1.0}, "names the element 'Xx', which does not exist"),
        ({"h": 1.0}, "upper case first"),
        ({"X": 1.0}, "does not exist"),
        ({0: 1.0}, "does not exist"),
        ({True: 1.0}, "does not exist"),
        ({"H": np.nan}, "width of H is nan; expected one finite number"),
        ({"H": np.inf}, "expected one finite number"),
        ({"H": "0.3"}, "expected one finite number"),
        ({"H": [0.3]}, "expected one finite number"),
        ({"H": True}, "expected one finite number"),
        ({"H": 0.0}, "width of H is 0; it must be positive"),
        ({"H": -0.3}, "must be positive"),
        ({"H": 0.3, 1: 0.4}, r"names H \(Z = 1\) twice"),
        (0.5, "expected a dict of values by element"),
        ([0.5, 0.5], "expected a dict of values by element"),
    ],
)
def test_resolve_refuses(values, message):
    with pytest.raises(InputError, match=message):
        elements.resolve(values, np.array([1, 8]), elements.width, "width")


def test_resolve_leaves_the_sign_of_hardness_to_the_charge_model():
    assert elements.resolve({"H": -1.0}, np.array([1]), elements.hardness, "hardness")[0] == -1.0


def test_table_cannot_be_changed():
    with pytest.raises(TypeError):
        elements.element_table()[1] = None
    with pytest.raises(AttributeError):
        elements.element_table()[1].covalent_radius = 1.0
