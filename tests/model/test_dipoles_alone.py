"""Fits to dipoles alone: what is taken where nobody chose, and how models are compared."""

import numpy as np
import pytest
from sklearn.base import clone

import kqeq
from kqeq.charges import AtomicDipoles, LatentCharges, QEq
from kqeq.fitting.settings import FitSettings, dipoles_alone
from kqeq.frames.labels import Labels
from kqeq.frames.structures import read_structure
from kqeq.kernels.settings import automatic_dipoles
from kqeq.model.comparison import MANY, dipole_candidates, groups_of


@pytest.fixture(scope="module")
def frames():
    every = [a for a in kqeq.datasets.load("water") if a.info["system"] in ("water1", "water2")]
    return every[::5], every[1::5]


@pytest.fixture(scope="module")
def fitted(frames):
    return kqeq.KQEq(short_range=None, targets=["dipole"]).fit(frames[0])


def test_charges_are_functions_of_the_environment(fitted, frames):
    assert fitted.chosen_["charges"].to_dict() == AtomicDipoles(LatentCharges()).to_dict()
    assert fitted.charges.to_dict() == fitted.potential_.charges.to_dict()
    assert clone(fitted).get_params(deep=False)["charges"] == "default"
    spread = np.std([a.get_dipole_moment() for a in frames[1]])
    assert fitted.evaluate(frames[1])["dipole"].rmse < 0.1 * spread


def test_files_and_updates_keep_the_choice(fitted, frames, tmp_path):
    path = tmp_path / "dipoles.kqeq"
    fitted.save(path, posterior=True)
    again = kqeq.load(path)
    assert again.charges.to_dict() == fitted.charges.to_dict()
    before = fitted.predict(frames[1][0], properties=("dipole",)).dipole
    np.testing.assert_array_equal(again.predict(frames[1][0], properties=("dipole",)).dipole, before)
    again.update(frames[1][:2])
    assert again.charges.to_dict() == fitted.charges.to_dict()
    assert np.abs(again.predict(frames[1][0], properties=("dipole",)).dipole - before).max() > 0.0


def test_what_was_chosen_stays(frames):
    own = kqeq.SOAPKernel(3.0, 3, 2, 0.4, n_representatives=3)
    model = kqeq.KQEq(own, short_range=None, targets=["dipole"]).fit(frames[0], optimize=None)
    assert isinstance(model.potential_.charges, QEq)
    model = kqeq.KQEq(short_range=None, charges=QEq(), targets=["dipole"]).fit(frames[0], optimize=None)
    assert isinstance(model.potential_.charges, QEq)
    assert len(model.potential_.electronegativity.terms) == len(automatic_dipoles())
    assert not hasattr(model, "chosen_")


def test_the_next_fit_to_energies_is_as_ever(fitted, frames):
    model = clone(fitted).set_params(targets=None)
    model.fit(frames[0], optimize=None, targets=["dipole"])
    assert isinstance(model.charges, AtomicDipoles)
    model.set_params(short_range=kqeq.SOAPKernel(3.0, 3, 2, 0.4, n_representatives=3))
    model.fit(frames[0], optimize=None)
    assert isinstance(model.potential_.charges, QEq)


def test_kinds_of_labels():
    dipole = Labels(dipole=np.zeros(3))
    settings = FitSettings(None, None, QEq())
    assert dipoles_alone(settings, [dipole, Labels(dipole=np.ones(3), polarizability=np.eye(3))])
    assert not dipoles_alone(settings, [dipole, Labels(energy=1.0)])
    assert not dipoles_alone(settings, [Labels(energy=1.0)])
    asked = FitSettings(None, None, QEq(), targets=("dipole",))
    assert dipoles_alone(asked, [Labels(energy=1.0, dipole=np.zeros(3))])
    learned = FitSettings(None, None, QEq(hardness="learn"))
    assert not dipoles_alone(learned, [Labels(dipole=np.ones(3), polarizability=np.eye(3))])


def test_models_are_compared_with_spreads_of_their_own(frames):
    model = kqeq.KQEq(short_range=None, charges="auto", targets=["dipole"]).fit(frames[0])
    names = list(dipole_candidates(FitSettings(None, None, QEq())))
    assert list(model.comparison_.candidates) == names
    assert all(own.errors is not None for own in model.comparison_.candidates.values())
    errors = {name: own.errors["dipole"].rmse for name, own in model.comparison_.candidates.items()}
    assert errors[model.comparison_.best] <= 1.05 * min(errors.values())
    assert model.chosen_["charges"].to_dict() == model.potential_.charges.to_dict()
    table = kqeq.compare(frames[0], kqeq.KQEq(short_range=None, targets=["dipole"]))
    assert table.best == model.comparison_.best


def test_many_compositions_are_left_out_as_wholes():
    from ase import Atoms

    def chain(n, shift):
        return read_structure(Atoms(f"HeN{n}", [[1.3 * i + shift, 0, 0] for i in range(n + 1)]))

    many = [(chain(n, shift), Labels()) for n in range(MANY) for shift in (0.0, 0.1)]
    assert groups_of(many) == [n for n in range(MANY) for _ in range(2)]
    few = many[:10]
    assert groups_of(few) == list(range(10))
