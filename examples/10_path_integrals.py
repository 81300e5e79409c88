"""Path integrals with i-PI: a hydronium ion at 300 K, and a water molecule in a field.

i-PI moves the atoms and asks for forces over a socket; `kqeq ipi` answers. Here two of these commands share the 32 beads
of a ring polymer that stands for the quantum nuclei of H3O(+). The total charge is an argument of the command
(`--charge 1`), a field likewise (`--field 0 0.2 0`), and dipoles come back as extras in i-PI's output.

Left: distribution of O–H distances with quantum nuclei (32 beads) and with classical ones (1 bead): zero-point motion
makes it about twice as wide. Middle: the kinetic energy by the centroid virial estimator, about three times the
classical $\\frac{3}{2} N k T$. Right: the dipole of a classical water molecule along a field; it starts perpendicular to
the field and turns into it. The dotted line is the equilibrium mean of a rigid dipole (the Langevin function), for which
a picosecond is too short.

The runs are short, a fraction of a picosecond: the widths are right within some percent, and none of this is a converged
quantum simulation. Needs i-PI: `pip install 'kqeq[engines]'`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from ase import Atoms, units

import example
import kqeq

TEMPERATURE, STEP, BEADS, FIELD = 300.0, 0.5, 32, 0.2  # K, fs, –, V/Å

INPUT = """
<simulation verbosity="low">
  <output prefix="run">
    <properties stride="2" filename="out">
      [step, time{{femtosecond}}, kinetic_cv{{electronvolt}}, potential{{electronvolt}}]
    </properties>
    <trajectory stride="2" filename="pos"> positions{{angstrom}} </trajectory>
    <trajectory stride="2" filename="dipole" extra_type="dipole"> extras </trajectory>
  </output>
  <total_steps> {steps} </total_steps>
  <prng><seed> 7 </seed></prng>
  <ffsocket name="kqeq" mode="unix" pbc="False"><address> {socket} </address></ffsocket>
  <system>
    <initialize nbeads="{beads}">
      <file mode="ase"> start.xyz </file>
      <velocities mode="thermal" units="kelvin"> {temperature} </velocities>
    </initialize>
    <forces><force forcefield="kqeq"> </force></forces>
    <ensemble><temperature units="kelvin"> {temperature} </temperature></ensemble>
    <motion mode="dynamics">
      <dynamics mode="nvt">
        <timestep units="femtosecond"> {step} </timestep>
        <thermostat mode="pile_g"><tau units="femtosecond"> 50 </tau></thermostat>
      </dynamics>
    </motion>
  </system>
</simulation>
"""


def simulate(model, atoms, steps, *arguments, beads=1, clients=1):
    """Kinetic energies (eV), positions (steps, beads, N, 3) (Å) and dipoles (steps, 3) (e·Å) of the first bead."""
    ipi = shutil.which("i-pi", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if ipi is None:
        raise SystemExit("i-PI is not installed: pip install 'kqeq[engines]'")
    path = os.pathsep.join([str(Path(kqeq.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as name:
        folder, socket = Path(name), f"kqeq_{Path(name).name}"
        text = INPUT.format(steps=steps, beads=beads, temperature=TEMPERATURE, step=STEP, socket=socket)
        (folder / "input.xml").write_text(text)
        atoms.write(folder / "start.xyz")
        model.save(folder / "model.kqeq")
        common = {"cwd": folder, "stdout": subprocess.DEVNULL, "env": {**os.environ, "PYTHONPATH": path}}
        command = [
            sys.executable,
            "-m",
            "kqeq.cli",
            "ipi",
            "model.kqeq",
            "--template",
            "start.xyz",
            "--unix",
            socket,
        ]
        running = [subprocess.Popen([ipi, "input.xml"], **common)]
        running += [subprocess.Popen([*command, *arguments], **common) for _ in range(clients)]
        codes = [process.wait() for process in running]
        assert not any(codes), f"exit codes {codes}"
        kinetic = np.loadtxt(folder / "run.out")[:, 2]
        files = sorted(folder.glob("run.pos_*.xyz"))
        positions = np.stack([read_positions(file, len(atoms)) for file in files], axis=1)
        dipole = next(iter(sorted(folder.glob("run.dipole_*")))).read_text().splitlines()
        dipoles = (
            np.array([line.split() for line in dipole if "EXTRAS" not in line], dtype=float) * units.Bohr
        )
    return kinetic, positions, dipoles


def read_positions(path, atoms):
    """Of one bead, (steps, N, 3)."""
    lines = path.read_text().splitlines()
    rows = [line.split()[1:4] for i, line in enumerate(lines) if i % (atoms + 2) > 1]
    return np.array(rows, dtype=float).reshape(-1, atoms, 3)


def kernel():
    return kqeq.SOAPKernel(r_cut=3.5, n_max=5, l_max=4, sigma=0.4, n_representatives=12)


def in_box(atoms):
    """I-PI wants a cell, and an isolated molecule does not feel it."""
    return Atoms(atoms.numbers, atoms.positions - atoms.positions.mean(axis=0), cell=[40] * 3, pbc=False)


def distances(positions):
    """From the oxygen to each hydrogen."""
    return np.linalg.norm(positions[..., 1:, :] - positions[..., :1, :], axis=-1).ravel()


def main(argv=None):
    """Fit, run i-PI three times, compare."""
    options = example.options(__doc__, argv)
    frames = [a for a in kqeq.datasets.load("water") if a.info["system"] in ("hydronium", "water1")]
    model = kqeq.KQEq(kernel(), kernel(), max_iterations=200).fit(frames[::2])
    ion = in_box(next(a for a in frames if a.info["system"] == "hydronium"))
    assert ion.get_chemical_symbols()[0] == "O"
    steps = 36 if options.quick else 300
    settled = steps // 6  # of the samples, which are every second step
    runs = {
        "32 beads": simulate(model, ion, steps, "--charge", "1", beads=BEADS, clients=2),
        "classical": simulate(model, ion, 3 * steps, "--charge", "1"),
    }
    molecule = in_box(next(a for a in frames if a.info["system"] == "water1"))
    dipole = model.predict(molecule).dipole
    molecule.rotate(dipole, "x", rotate_cell=False)
    turned = simulate(model, molecule, 6 * steps, "--field", "0", str(FIELD), "0")[2]

    classical = 1.5 * len(ion) * units.kB * TEMPERATURE
    rows, widths, means = [], {}, {}
    for name, (kinetic, positions, _) in runs.items():
        lengths = distances(positions[settled:])
        widths[name], means[name] = lengths.std(), kinetic[settled:].mean()
        rows.append([name, f"{lengths.mean():.3f}", f"{lengths.std():.3f}", f"{1e3 * means[name]:.0f}"])
    assert widths["32 beads"] > 1.3 * widths["classical"]
    assert means["32 beads"] > 2.0 * classical

    strength = np.linalg.norm(dipole) * FIELD / (units.kB * TEMPERATURE)
    langevin = np.linalg.norm(dipole) * (1.0 / np.tanh(strength) - 1.0 / strength)
    figure, (bonds, energies, field) = example.panels(3)
    for name, style in (("32 beads", "-"), ("classical", "--")):
        colour = example.COLOURS["QEq" if name == "32 beads" else "short-range"]
        values, edges = np.histogram(distances(runs[name][1][settled:]), 60, (0.7, 1.5), density=True)
        bonds.plot(0.5 * (edges[1:] + edges[:-1]), values, style, color=colour, label=name)
        every = 2 * STEP * np.arange(len(runs[name][0]))
        energies.plot(every[: steps // 2 + 1], 1e3 * runs[name][0][: steps // 2 + 1], style, color=colour)
    energies.axhline(1e3 * classical, color=example.COLOURS["reference"], lw=0.8, ls=":")
    energies.annotate("3/2 NkT", (0, 1e3 * classical + 8), fontsize=8)
    bonds.set(xlabel="O–H distance (Å)", ylabel="density (1/Å)")
    bonds.legend()
    energies.set(xlabel="time (fs)", ylabel="kinetic energy (meV)", ylim=(0, None))
    field.plot(2e-3 * STEP * np.arange(len(turned)), turned[:, 1], color=example.COLOURS["QEq"], label="i-PI")
    field.axhline(langevin, color=example.COLOURS["reference"], lw=0.8, ls=":", label="rigid dipole, mean")
    field.set(xlabel="time (ps)", ylabel="dipole along the field (e·Å)")
    field.legend(loc="lower right")

    header = ["nuclei", "mean O–H, Å", "standard deviation, Å", "kinetic energy, meV"]
    half = len(turned) // 2
    notes = (
        f"H3O(+) at {TEMPERATURE:g} K, {steps * STEP * 1e-3:g} ps (classical three times as long), of which the first "
        f"{2 * settled} steps are left away; QEq with a small kernel, fitted to {len(frames[::2])} frames of water and "
        f"hydronium. Classical kinetic energy {1e3 * classical:.0f} meV. Water in {FIELD:g} V/Å: dipole along the field "
        f"{turned[half:, 1].mean():.2f} e·Å in the second half of {6 * steps * STEP * 1e-3:g} ps, {langevin:.2f} e·Å for "
        "a rigid dipole in equilibrium."
    )
    example.finish(options, "10_path_integrals", figure, header, rows, notes)


if __name__ == "__main__":
    main()
