"""BORN files: phonopy reads back what was written, and symmetry gives the atoms that are not in them."""

import numpy as np
import pytest
from ase import Atoms

import kqeq
from kqeq import analysis, cli
from kqeq.constants import COULOMB
from kqeq.errors import InputError, UnsupportedError


@pytest.fixture(scope="module")
def model(kernel, water_training):
    return kqeq.KQEq(
        kernel(3.5), kernel(4.0), kqeq.ACKS2(), noise={"energy": 0.05, "forces": 0.5, "dipole": 0.05}
    ).fit(water_training)


@pytest.fixture
def crystal():
    """One water molecule in a tetragonal cell; the two hydrogen atoms are equivalent."""
    positions = [(1.0, 1.0, 1.0), (1.0, 1.76, 1.59), (1.0, 0.24, 1.59)]
    return Atoms("OH2", positions, cell=(3.4, 3.6, 3.8), pbc=True)


def test_the_dielectric_tensor_is_the_response_to_a_field(model, crystal):
    found = analysis.dielectric(model, crystal)
    step = 0.02
    slope = np.zeros((3, 3))
    for axis in range(3):
        field = step * np.eye(3)[axis]
        up, down = (model.predict(crystal, external_field=sign * field).dipole for sign in (1.0, -1.0))
        slope[:, axis] = (up - down) / (2.0 * step)
    expected = np.eye(3) + 4.0 * np.pi * COULOMB * slope / crystal.get_volume()
    np.testing.assert_allclose(found.dielectric, expected, atol=1e-6)
    assert np.linalg.eigvalsh(found.dielectric).max() > 1.05
    assert found.sum_rule_error < 1e-6
    np.testing.assert_allclose(found.born_charges, analysis.born_charges(model, crystal).tensors)
    assert np.abs(found.born_charges).max() > 0.1


def test_phonopy_reads_the_file(model, crystal, tmp_path):
    pytest.importorskip("phonopy")
    from phonopy.file_IO import parse_BORN
    from phonopy.structure.atoms import PhonopyAtoms

    written = analysis.write_born(tmp_path / "BORN", model, crystal)
    assert len((tmp_path / "BORN").read_text(encoding="utf-8").splitlines()) == 4  # factor, ε, O, one H
    cell = PhonopyAtoms(
        symbols=crystal.get_chemical_symbols(),
        cell=crystal.cell.array,
        scaled_positions=crystal.get_scaled_positions(),
    )
    read = parse_BORN(cell, filename=tmp_path / "BORN")
    np.testing.assert_allclose(read["dielectric"], written.dielectric, atol=1e-6)
    np.testing.assert_allclose(read["born"], written.born_charges, atol=1e-5)
    assert read["factor"] == pytest.approx(COULOMB)


def test_the_command(model, crystal, tmp_path, capsys):
    pytest.importorskip("spglib")
    model.save(tmp_path / "m.kqeq")
    crystal.write(tmp_path / "c.xyz")
    born = tmp_path / "BORN"
    assert cli.main(["respond", str(tmp_path / "m.kqeq"), str(tmp_path / "c.xyz"), "--born", str(born)]) == 0
    assert "dielectric tensor (eigenvalues" in capsys.readouterr().out
    assert len(born.read_text(encoding="utf-8").splitlines()) == 4


def test_what_has_no_dielectric_tensor(model, crystal, water_model):
    with pytest.raises(InputError, match="periodic in three directions"):
        analysis.dielectric(model, Atoms("OH2", crystal.positions))
    crystal.info["total_charge"] = 1
    with pytest.raises(InputError, match="charged crystal"):
        analysis.dielectric(model, crystal)
    crystal.info["total_charge"] = 0
    with pytest.raises(UnsupportedError, match="ACKS2"):
        analysis.dielectric(water_model, crystal)  # QEq has no dipole in a cell
