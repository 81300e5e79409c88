"""The client of i-PI: against a server in this process, and against the real program."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.socketio import IPIProtocol

import kqeq
from kqeq import KQEqCalculator
from kqeq.cli import main
from kqeq.engines.ipi import serve
from kqeq.errors import EngineError, InputError, UnsupportedError


def cluster(water_systems, system="hydronium", index=1):
    found = water_systems[system][index]
    return Atoms(found.numbers, found.positions - found.positions.mean(axis=0))


class Server:
    """One that asks for some structures, as i-PI does, and keeps the answers."""

    def __init__(self, requests, goodbye=True, before=()):
        self.listener = socket.create_server(("localhost", 0))
        self.port = self.listener.getsockname()[1]
        self.requests, self.goodbye, self.before = requests, goodbye, before
        self.answers = []
        self.failure = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        connection, _ = self.listener.accept()
        with connection:
            protocol = IPIProtocol(connection)
            try:
                for message in self.before:
                    protocol.sendmsg(message)
                assert protocol.status() == "READY"
                protocol.sendinit()
                for cell, positions in self.requests:
                    self.answers.append(protocol.calculate(positions, cell))
                if self.goodbye:
                    protocol.end()
            except Exception as error:
                self.failure = error

    def close(self):
        self.thread.join(10)
        self.listener.close()
        assert not self.thread.is_alive()


BIG = np.eye(3) * 30.0


def test_energies_forces_and_extras(water_model, water_systems):
    atoms = cluster(water_systems)
    moved = atoms.positions + 0.05
    moved[0] += 0.1
    server = Server([(BIG, atoms.positions), (BIG, moved)])
    calculator = KQEqCalculator(water_model, total_charge=1, external_field=(0.0, 0.1, 0.05))
    counted = []
    served = serve(
        calculator,
        atoms,
        port=server.port,
        extras=("dipole", "charges", "energy_std"),
        report=counted.append,
    )
    server.close()
    assert server.failure is None
    assert (served.evaluations, served.farewell) == (2, True)
    assert counted == [1, 2]
    for positions, answer in zip((atoms.positions, moved), server.answers, strict=True):
        other = Atoms(atoms.numbers, positions)
        expected = water_model.predict(
            other, total_charge=1, external_field=(0.0, 0.1, 0.05), uncertainty=True
        )
        assert answer["energy"] == pytest.approx(expected.energy, abs=1e-8)
        assert answer["forces"] == pytest.approx(expected.forces, abs=1e-8)
        assert np.abs(answer["virial"]).max() == 0.0
        extras = json.loads(bytes(answer["morebytes"]).decode())
        assert list(extras) == ["dipole", "charges", "energy_std"]
        assert np.array(extras["dipole"]) * units.Bohr == pytest.approx(expected.dipole, abs=1e-8)
        assert extras["charges"] == pytest.approx(expected.charges.tolist(), abs=1e-8)
        assert extras["energy_std"] * units.Ha == pytest.approx(expected.energy_std, rel=1e-6)
    assert abs(server.answers[0]["energy"] - server.answers[1]["energy"]) > 1e-3


def test_virial_of_a_cell(water_model, water_systems):
    """Its trace is that of −V times the stress; a cell that i-PI changes is followed."""
    atoms = cluster(water_systems, "water2")
    cell = np.array([[8.0, 0, 0], [1.0, 7.5, 0], [0.5, -0.6, 9.0]])
    atoms.set_cell(cell)
    atoms.pbc = True
    server = Server([(cell, atoms.positions), (1.01 * cell, atoms.positions)])
    serve(KQEqCalculator(water_model), atoms, port=server.port)
    server.close()
    for scale, answer in zip((1.0, 1.01), server.answers, strict=True):
        other = Atoms(atoms.numbers, atoms.positions, cell=scale * cell, pbc=True)
        expected = water_model.predict(other)
        assert answer["energy"] == pytest.approx(expected.energy, abs=1e-8)
        virial = -expected.stress * other.get_volume()
        assert np.abs(virial).max() > 0.1
        assert answer["virial"] == pytest.approx(virial, abs=1e-8)
        # QEq has no dipole in a cell
        assert list(json.loads(bytes(answer["morebytes"]).decode())) == ["charges"]


def test_a_connection_that_is_closed_between_structures_is_an_end(water_model, water_systems):
    atoms = cluster(water_systems)
    server = Server([(BIG, atoms.positions)], goodbye=False)
    served = serve(KQEqCalculator(water_model, total_charge=1), atoms, port=server.port)
    server.close()
    assert (served.evaluations, served.farewell) == (1, False)


def failing(model, atoms, requests, text, *, before=(), **conditions):
    server = Server(requests, before=before)
    with pytest.raises(EngineError, match=text):
        serve(KQEqCalculator(model, **conditions), atoms, port=server.port)
    server.close()


def test_another_number_of_atoms(water_model, water_systems):
    atoms = cluster(water_systems)
    failing(
        water_model,
        atoms,
        [(BIG, atoms.positions[:3])],
        "i-PI sent 3 atoms, and the template has 4",
        total_charge=1,
    )


def test_cells_of_isolated_systems(water_model, water_systems):
    atoms = cluster(water_systems)
    requests = [(BIG, atoms.positions), (1.001 * BIG, atoms.positions)]
    failing(water_model, atoms, requests, "changed its cell along a direction", total_charge=1)
    requests = [(BIG, atoms.positions % 30.0)]
    failing(water_model, atoms, requests, "pbc='False' in <ffsocket>", total_charge=1)


def test_numbers_that_are_not_finite(water_model, water_systems):
    atoms = cluster(water_systems)
    failing(
        water_model,
        atoms,
        [(BIG, atoms.positions * np.nan)],
        "not finite: has the simulation",
        total_charge=1,
    )


def test_foreign_messages(water_model, water_systems):
    atoms = cluster(water_systems)
    failing(water_model, atoms, [], "'HELLO'", before=["HELLO"], total_charge=1)
    failing(water_model, atoms, [], "before it sent positions", before=["GETFORCE"], total_charge=1)


def test_nobody_there(water_model, water_systems, tmp_path):
    atoms = cluster(water_systems)
    calculator = KQEqCalculator(water_model, total_charge=1)
    with socket.create_server(("localhost", 0)) as taken:
        free = taken.getsockname()[1]
    with pytest.raises(EngineError, match=f"no i-PI listens at localhost, port {free} .* after 0.2 s"):
        serve(calculator, atoms, port=free, timeout=0.2)
    with pytest.raises(EngineError, match="no i-PI listens at the UNIX socket"):
        serve(calculator, atoms, unix=str(tmp_path / "nothing"), timeout=0.0)


def test_wrong_input(water_model, short_range_model, water_systems):
    atoms = cluster(water_systems)
    calculator = KQEqCalculator(water_model, total_charge=1)
    with pytest.raises(InputError, match="both a port"):
        serve(calculator, atoms, port=1, unix="a")
    with pytest.raises(InputError, match=r"unknown extras \['spin'\]"):
        serve(calculator, atoms, extras=["spin"])
    # before anything is connected
    with pytest.raises(UnsupportedError, match="has no charges"):
        serve(KQEqCalculator(short_range_model, total_charge=1), atoms, extras=["charges"])
    with pytest.raises(InputError, match="contains Ag"):
        serve(calculator, Atoms("Ag2", [[0, 0, 0], [0, 0, 2.5]]))


def test_standard_deviation_of_the_last_energy(water_model, water_systems, tmp_path):
    atoms = cluster(water_systems)
    calculator = KQEqCalculator(water_model, total_charge=1)
    with pytest.raises(InputError, match="none was computed yet"):
        calculator.energy_std()
    calculator.get_property("energy", atoms)
    expected = water_model.predict(atoms, total_charge=1, uncertainty=True).energy_std
    assert calculator.energy_std() == pytest.approx(expected, rel=1e-9)
    water_model.save(tmp_path / "bare.kqeq")
    with pytest.raises(UnsupportedError, match="posterior=True"):
        KQEqCalculator(tmp_path / "bare.kqeq").energy_std()


# ------------------------------------------------------------------------------- the real program

INPUT = """
<simulation verbosity="low">
  <output prefix="run">
    <properties stride="1" filename="out">
      [step, potential{{electronvolt}}, conserved{{electronvolt}}, temperature{{kelvin}}, volume{{angstrom3}}]
    </properties>
    <trajectory filename="pos" stride="1" cell_units="angstrom"> positions{{angstrom}} </trajectory>
    <trajectory filename="for" stride="1"> forces{{ev/ang}} </trajectory>
    {dipole}
    <trajectory filename="chg" stride="1" extra_type="charges"> extras </trajectory>
  </output>
  <total_steps> {steps} </total_steps>
  <prng><seed> 11 </seed></prng>
  <ffsocket name="kqeq" mode="unix" pbc="{pbc}"><address> {name} </address></ffsocket>
  <system>
    <initialize nbeads="{beads}">
      <file mode="ase"> start.xyz </file>
      <velocities mode="thermal" units="kelvin"> 300 </velocities>
    </initialize>
    <forces><force forcefield="kqeq"> </force></forces>
    <ensemble><temperature units="kelvin"> 300 </temperature>{pressure}</ensemble>
    <motion mode="dynamics">{motion}</motion>
  </system>
</simulation>
"""

DIPOLE = '<trajectory filename="dip" stride="1" extra_type="dipole"> extras </trajectory>'
NVE = "<dynamics mode='nve'><timestep units='femtosecond'> 0.25 </timestep></dynamics>"
NVT = (
    "<dynamics mode='nvt'><timestep units='femtosecond'> 0.25 </timestep>"
    "<thermostat mode='pile_g'><tau units='femtosecond'> 50 </tau></thermostat></dynamics>"
)
NPT = (
    "<dynamics mode='npt'><timestep units='femtosecond'> 0.25 </timestep>"
    "<thermostat mode='langevin'><tau units='femtosecond'> 50 </tau></thermostat>"
    "<barostat mode='isotropic'><tau units='femtosecond'> 50 </tau>"
    "<thermostat mode='langevin'><tau units='femtosecond'> 50 </tau></thermostat></barostat></dynamics>"
)


def find_ipi():
    found = shutil.which("i-pi", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        pytest.skip("i-PI is not installed: pip install '.[engines]'")
    return found


def run_ipi(tmp_path, model, atoms, clients=1, *, charge=0, field=None, **options):
    """Run i-PI with clients from the command line; the lines that these printed."""
    ipi = find_ipi()
    name = f"kqeq_{os.getpid()}_{tmp_path.name[-20:]}"
    settings = {
        "steps": 3,
        "beads": 1,
        "pbc": "False",
        "pressure": "",
        "motion": NVE,
        "name": name,
        "dipole": DIPOLE,
    }
    (tmp_path / "input.xml").write_text(INPUT.format(**{**settings, **options}))
    atoms.write(tmp_path / "start.xyz")
    model.save(tmp_path / "model.kqeq", posterior=True)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(Path(kqeq.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        ),
        "OMP_NUM_THREADS": "1",
    }
    kept = {"cwd": tmp_path, "env": environment, "text": True, "stdout": subprocess.PIPE}
    server = subprocess.Popen([ipi, "input.xml"], **kept, stderr=subprocess.STDOUT)
    command = [
        sys.executable,
        "-m",
        "kqeq.cli",
        "ipi",
        "model.kqeq",
        "--template",
        "start.xyz",
        "--unix",
        name,
    ]
    command += ["--charge", str(charge)]
    if field is not None:
        command += ["--field", *map(str, field)]
    running = [subprocess.Popen(command, **kept, stderr=subprocess.PIPE) for _ in range(clients)]
    said = []
    try:
        log, _ = server.communicate(timeout=120)
        assert server.returncode == 0, log
        for client in running:
            out, error = client.communicate(timeout=30)
            assert client.returncode == 0, error + log
            said.append(out)
    finally:
        for process in (server, *running):
            if process.poll() is None:
                process.kill()
                process.communicate()
    return said


def frames_of(path):
    """Comment and numbers of each frame of an i-PI trajectory."""
    lines = path.read_text().splitlines()
    count = int(lines[0])
    size = count + 2
    for begin in range(0, len(lines), size):
        rows = [line.split()[1:4] for line in lines[begin + 2 : begin + size]]
        yield lines[begin + 1], np.array(rows, dtype=float)


def extras_of(path):
    """Numbers of each step."""
    found = [[]]
    for line in path.read_text().splitlines():
        if "EXTRAS" in line:
            found.append([])
        else:
            found[-1] += [float(word) for word in line.replace("[", " ").replace("]", " ").split()]
    return [np.array(values) for values in found if values]


@pytest.mark.slow
def test_real_dynamics_of_an_ion_in_a_field(tmp_path, water_model, water_systems):
    atoms = cluster(water_systems)
    atoms.set_cell(np.eye(3) * 40)
    atoms.pbc = False
    field = (0.0, 0.1, 0.0)
    said = run_ipi(tmp_path, water_model, atoms, charge=1, field=field)
    assert "structures computed; i-PI ended" in said[0]
    table = np.loadtxt(tmp_path / "run.out")
    positions = [rows for _, rows in frames_of(tmp_path / "run.pos_0.xyz")]
    forces = [rows for _, rows in frames_of(tmp_path / "run.for_0.xyz")]
    dipoles, charges = extras_of(tmp_path / "run.dip_0"), extras_of(tmp_path / "run.chg_0")
    assert len(table) == len(positions) == 4
    assert np.abs(positions[-1] - positions[0]).max() > 1e-3
    for i, r in enumerate(positions):
        expected = water_model.predict(Atoms(atoms.numbers, r), total_charge=1, external_field=field)
        # files have some digits of positions
        assert table[i, 1] == pytest.approx(expected.energy, abs=1e-3)
        assert forces[i] == pytest.approx(expected.forces, abs=1e-2)
        assert dipoles[i] * units.Bohr == pytest.approx(expected.dipole, abs=1e-3)
        assert charges[i] == pytest.approx(expected.charges, abs=1e-3)


@pytest.mark.slow
def test_real_path_integral_shared_by_two_clients(tmp_path, ion_model, water_systems):
    atoms = cluster(water_systems)
    atoms.set_cell(np.eye(3) * 40)
    atoms.pbc = False
    said = run_ipi(tmp_path, ion_model, atoms, clients=2, charge=1, beads=4, steps=5, motion=NVT)
    counts = [int(line.split()[0]) for line in said]
    # six structures of four beads, each computed once
    assert sum(counts) == 24
    assert min(counts) > 0
    table = np.loadtxt(tmp_path / "run.out")
    assert np.isfinite(table).all()
    assert len(list(tmp_path.glob("run.pos_*.xyz"))) == 4


@pytest.mark.slow
def test_real_constant_pressure(tmp_path, water_model, water_systems):
    """High pressure shrinks the cell; the virial has the right sign."""
    atoms = cluster(water_systems, "water2")
    atoms.set_cell(np.diag([8.0, 7.5, 9.0]))
    atoms.positions += 4.0
    atoms.pbc = True
    pressure = "<pressure units='gigapascal'> 30 </pressure>"
    run_ipi(tmp_path, water_model, atoms, pbc="True", steps=30, pressure=pressure, motion=NPT, dipole="")
    table = np.loadtxt(tmp_path / "run.out")
    assert table[-1, 4] < 0.95 * table[0, 4]
    comment, positions = list(frames_of(tmp_path / "run.pos_0.xyz"))[-1]
    cell = [float(word) for word in comment.split("CELL(abcABC):")[1].split()[:6]]
    last = Atoms(atoms.numbers, positions, cell=cell, pbc=True)
    assert table[-1, 1] == pytest.approx(water_model.predict(last).energy, abs=2e-3)


# ------------------------------------------------------------------------------- command line


def test_errors_on_the_command_line(tmp_path, water_model, water_systems, capsys):
    water_model.save(tmp_path / "model.kqeq")
    cluster(water_systems).write(tmp_path / "start.xyz")
    command = [
        "ipi",
        str(tmp_path / "model.kqeq"),
        "--template",
        str(tmp_path / "start.xyz"),
        "--charge",
        "1",
    ]
    assert main([*command, "--unix", str(tmp_path / "none"), "--wait", "0"]) == 2
    assert "no i-PI listens" in capsys.readouterr().err
    assert main([*command, "--extras", "spin"]) == 2
    assert "unknown extras" in capsys.readouterr().err
    assert main([*command, "--extras", "energy_std"]) == 2
    assert "posterior=True" in capsys.readouterr().err


def test_the_command_at_a_potential(tmp_path, water_model, water_systems, capsys):
    water_model.save(tmp_path / "model.kqeq")
    atoms = cluster(water_systems)
    atoms.write(tmp_path / "start.xyz")
    command = ["ipi", str(tmp_path / "model.kqeq"), "--template", str(tmp_path / "start.xyz")]
    assert main([*command, "--potential", "1", "--charge", "1"]) == 2
    assert "--charge and --potential" in capsys.readouterr().err
    middle = water_model.predict(atoms, total_charge=0.5).chemical_potential
    server = Server([(BIG, atoms.positions)])
    assert main([*command, "--port", str(server.port), f"--potential={middle}"]) == 0
    server.close()
    answer = server.answers[0]
    expected = water_model.predict(atoms, total_charge=0.5)
    assert answer["energy"] == pytest.approx(expected.energy - 0.5 * middle, abs=1e-6)
    assert answer["forces"] == pytest.approx(expected.forces, abs=1e-6)
    assert sum(json.loads(bytes(answer["morebytes"]).decode())["charges"]) == pytest.approx(0.5, abs=1e-6)


def test_the_command_serves(tmp_path, water_model, water_systems, capsys):
    water_model.save(tmp_path / "model.kqeq")
    atoms = cluster(water_systems)
    atoms.info["total_charge"] = 1
    atoms.write(tmp_path / "start.xyz")
    server = Server([(BIG, atoms.positions)])
    command = ["ipi", str(tmp_path / "model.kqeq"), "--template", str(tmp_path / "start.xyz")]
    assert main([*command, "--port", str(server.port), "--extras", "none"]) == 0
    server.close()
    assert capsys.readouterr().out == "1 structures computed; i-PI ended\n"
    assert bytes(server.answers[0]["morebytes"]) == b"{}"
