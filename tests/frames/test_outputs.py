"""Outputs of electronic-structure programs: what ASE reads, and the total charge that it drops.

The files were written by hand in the layout of each program; they are small, and no program's output was copied.
"""

import gzip
from pathlib import Path

import numpy as np
import pytest
from ase.units import Bohr, Hartree, Rydberg

import kqeq
from kqeq.cli.files import read_frames as read_command_line
from kqeq.errors import InputError, LabelWarning
from kqeq.frames.labels import read_frames
from kqeq.frames.outputs import stated_charge

HERE = Path(__file__).resolve().parent
while not (HERE / "files" / "dft").is_dir():
    HERE = HERE.parent
DFT = HERE / "files" / "dft"

CASES = {
    # file: total charge, energy (eV), first force component that is not zero (eV/Å), dipole along its largest component
    "vasprun.xml": (1, -6.90, 0.25, None),
    "OUTCAR": (1, -6.90, 0.25, None),
    "gaussian.log": (1, -75.9 * Hartree, -0.01 * Hartree / Bohr, None),
    "orca.out": (1, -76.5 * Hartree, -0.01 * Hartree / Bohr, 0.35 * Bohr),
    "aims.out": (-1, -2061.0, -0.5, -0.3),
    "pw.out": (0, -62.5 * Rydberg, 0.01 * Rydberg / Bohr, None),
    "gradient": (0, -5.07 * Hartree, -0.02 * Hartree / Bohr, None),
    "water-pos-1.xyz": (0, -17.16 * Hartree, -0.02 * Hartree / Bohr, None),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("reader", [kqeq.read, lambda path: read_command_line([str(path)])])
def test_labels_and_charge(name, reader):
    charge, energy, force, dipole = CASES[name]
    structure, labels = next(iter(read_frames(reader(DFT / name))))
    assert structure.total_charge == charge
    assert labels.energy == pytest.approx(energy, rel=1e-6)
    assert labels.forces[labels.forces != 0][0] == pytest.approx(force, rel=1e-5)
    if dipole is None:
        assert labels.dipole is None
    else:
        assert labels.dipole[np.abs(labels.dipole).argmax()] == pytest.approx(dipole, rel=1e-5)


def test_one_frame_and_the_last():
    path = DFT / "water-pos-1.xyz"
    assert [a.info["step"] for a in kqeq.read(path)] == [0, 1]
    assert [a.info["step"] for a in kqeq.read(path, 1)] == [1]
    assert [a.info["step"] for a in kqeq.read(path, -1)] == [1]
    assert [a.info["step"] for a in kqeq.read(path, "::2")] == [0]


@pytest.mark.parametrize(
    ("name", "old", "new", "charge"),
    [
        ("orca.out", "....    1\n", "....   -2\n", -2),
        (
            "aims.out",
            "-1.000000E+00: Charge requested explicitly.",
            "2.000000E+00: Charge requested explicitly.",
            2,
        ),
        (
            "aims.out",
            "Charge =  -1.000000E+00: Charge requested explicitly.",
            "charge    1.0   # a cation",
            1,
        ),
        ("pw.out", "=        16.00", "=        15.00", 1),
        ("vasprun.xml", '"NELECT">7.0<', '"NELECT">9.0<', -1),
        ("OUTCAR", "NELECT =       7.0000", "NELECT =       9.5000", -1.5),
        ("OUTCAR", "ZVAL   =   6.00  1.00", "ZVAL   =  16.00 11.00", 31),
        ("gaussian.log", "Charge =  1 Mult", "Charge = -1 Mult", -1),
    ],
)
def test_other_charges(tmp_path, name, old, new, charge):
    text = (DFT / name).read_text()
    assert old in text
    path = tmp_path / name
    path.write_text(text.replace(old, new))
    assert kqeq.read(path)[0].info["total_charge"] == charge


def test_compressed_outputs_say_the_same(tmp_path):
    """The text of a packed file was searched as it is, and an ion was neutral."""
    for name in ("OUTCAR", "orca.out"):
        path = tmp_path / f"{name}.gz"
        path.write_bytes(gzip.compress((DFT / name).read_bytes()))
        assert (
            kqeq.read(path, format={"OUTCAR": "vasp-out", "orca.out": "orca-output"}[name])[0].info[
                "total_charge"
            ]
            == 1
        )


@pytest.mark.parametrize(
    ("kind", "text", "charge"),
    [
        ("nwchem-out", "          No. of electrons :    11\n          Charge           :    -1\n", -1),
        ("gamess-us-out", " CHARGE OF MOLECULE                           =    2\n", 2),
    ],
)
def test_lines_of_other_programs(kind, text, charge):
    assert stated_charge(kind, text) == charge
    assert stated_charge(kind, "") is None


def test_nothing_is_invented(tmp_path):
    """Where the output does not say it, no charge is put in."""
    for name, piece in (
        ("orca.out", "Total Charge "),
        ("aims.out", "  Charge ="),
        ("pw.out", "number of electrons"),
        ("OUTCAR", "NELECT"),
        ("gaussian.log", "Charge ="),
    ):
        text = (DFT / name).read_text()
        path = tmp_path / name
        path.write_text("\n".join(line for line in text.splitlines() if piece not in line))
        assert "total_charge" not in kqeq.read(path)[0].info


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("orca.out", "|  3> %scf EField 0.01, 0.0, 0.0 end"),
        ("aims.out", "  homogeneous_field 0.0 0.0 0.1"),
        ("pw.out", "     Adding external electric field"),
        ("OUTCAR", "   EFIELD = 0.2"),
    ],
)
def test_a_field_is_not_passed_over(tmp_path, name, line):
    lines = (DFT / name).read_text().splitlines()
    path = tmp_path / name
    path.write_text("\n".join([*lines[:3], line, *lines[3:]]))
    with pytest.warns(LabelWarning, match="mentions an applied electric field"):
        kqeq.read(path)


def test_forces_of_another_run_are_refused(tmp_path):
    for name in ("water-pos-1.xyz", "water-frc-1.xyz"):
        (tmp_path / name).write_text((DFT / name).read_text())
    path = tmp_path / "water-frc-1.xyz"
    path.write_text(path.read_text().replace("i =        1", "i =        7"))
    with pytest.raises(InputError, match="no forces of step 1"):
        kqeq.read(tmp_path / "water-pos-1.xyz")
    path.unlink()
    assert set(kqeq.read(tmp_path / "water-pos-1.xyz")[0].calc.results) == {"energy"}
