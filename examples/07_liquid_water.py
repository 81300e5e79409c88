"""Liquid water: energies, forces and charges of GFN1-xTB, dynamics at 300 K, structure and infrared spectrum.

A short-range model and ACKS2 + short-range are fitted to boxes of 32 molecules, the latter to Mulliken charges as
well, and tested on independent boxes.  ACKS2 then runs dynamics at constant volume and temperature.  Its polarization
is defined for periodic cells, so the infrared spectrum follows from the fluctuations of dP/dt.  Figure: O–O radial
distribution, temperature along the run, dipoles of molecules in the test boxes, infrared spectrum.

    python 07_liquid_water.py                                                    half a picosecond
    python 07_liquid_water.py --full --picoseconds 50 --keep run.npz             all boxes, a long run

With ``--keep`` the run is saved every picosecond and goes on where it stopped; a saved run of that length is only drawn.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.md.bussi import Bussi
from ase.md.velocitydistribution import Stationary
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

import example
import kqeq

NAME = "07_liquid_water"
TEMPERATURE, STEP = 300.0, 0.5  # K, fs
SAMPLE, CHUNK = 2, 2000  # steps between samples of temperature and polarization; between savings
BINS = np.linspace(2.0, 4.9, 59)  # Å
CENTRES = 0.5 * (BINS[1:] + BINS[:-1])
NOISE = {"energy": 1e-3, "forces": 0.05, "stress": 1e-3, "charges": 0.01}


def kernel(n: int) -> kqeq.SOAPKernel:
    return kqeq.SOAPKernel(r_cut=4.0, n_max=4, l_max=4, sigma=0.3, zeta=2, n_representatives=n)


def fitted(frames: list[Atoms], n: int) -> dict[str, kqeq.KQEq]:
    """Both models."""
    targets = ["energy", "forces", "stress"]
    return {
        "short-range": kqeq.KQEq(None, kernel(n), charges=None, noise=NOISE, targets=targets).fit(frames),
        "ACKS2": kqeq.KQEq(
            kernel(n // 2),
            kernel(n),
            charges=kqeq.ACKS2(),
            noise=NOISE,
            targets=[*targets, "charges"],
            charges_key="charges",
        ).fit(frames),
    }


def bare(atoms: Atoms) -> Atoms:
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)


def molecular_dipoles(atoms: Atoms, charges: np.ndarray) -> np.ndarray:
    """Σ q (r − r_O) of every molecule, debye; atoms in the order O, H, H, molecules whole."""
    r = atoms.positions.reshape(-1, 3, 3)
    vectors = np.einsum("ma,max->mx", charges.reshape(-1, 3), r - r[:, :1])
    return np.linalg.norm(vectors, axis=1) / units.Debye


def radial_distribution(boxes: list[np.ndarray], side: float) -> np.ndarray:
    """g(r) of points in cubic cells, on BINS."""
    counts = np.zeros(len(BINS) - 1)
    for r in boxes:
        i, j = np.triu_indices(len(r), 1)
        d = r[i] - r[j]
        counts += np.histogram(np.linalg.norm(d - side * np.round(d / side), axis=1), BINS)[0]
    shells = 4 / 3 * np.pi * np.diff(BINS**3)
    pairs = len(boxes) * len(i)
    return counts / (pairs * shells / side**3)


def run(model: kqeq.KQEq, start: Atoms, steps: int, keep: Path | None) -> dict[str, np.ndarray]:
    """Samples of a run at constant volume and temperature: (kelvin, eV, e·Å) series and positions of oxygens."""
    atoms = bare(start)
    atoms.calc = kqeq.KQEqCalculator(model)
    rng = np.random.default_rng(0)
    masses = atoms.get_masses()[:, None]
    atoms.set_velocities(np.sqrt(units.kB * TEMPERATURE / masses) * rng.normal(size=(len(atoms), 3)))
    Stationary(atoms)
    data: dict[str, np.ndarray] = {"steps": np.array(0)}
    if keep and keep.exists():
        data = dict(np.load(keep))
        atoms.positions, velocities = data["positions"], data["velocities"]
        atoms.set_velocities(velocities)
    series: dict[str, list] = {"temperature": [], "energy": [], "polarization": [], "oxygens": []}

    def sample() -> None:
        if dynamics.nsteps == 0:
            return
        series["temperature"].append(atoms.get_temperature())
        series["energy"].append(atoms.get_potential_energy())
        series["polarization"].append(atoms.get_dipole_moment())
        if dynamics.nsteps % 100 == 0:
            series["oxygens"].append(atoms.positions[::3].copy())

    while int(data["steps"]) < steps:
        # of its own for every chunk, so that a run goes on alike wherever it was interrupted
        rng = np.random.default_rng([1, int(data["steps"])])
        dynamics = Bussi(atoms, STEP * units.fs, temperature_K=TEMPERATURE, taut=200 * units.fs, rng=rng)
        dynamics.attach(sample, interval=SAMPLE)
        n = min(CHUNK, steps - int(data["steps"]))
        began = time.process_time()
        dynamics.run(n)
        data["steps"] = data["steps"] + n
        data["seconds"] = data.get("seconds", 0.0) + time.process_time() - began
        for name, values in series.items():
            data[name] = np.concatenate([*([data[name]] if name in data else []), np.array(values)])
            values.clear()
        data["positions"], data["velocities"] = atoms.positions.copy(), atoms.get_velocities()
        if keep:
            temporary = keep.with_suffix(".part.npz")
            np.savez(temporary, **data)
            temporary.replace(keep)
    return data


def infrared(polarization: np.ndarray, volume: float, longest: float) -> tuple[np.ndarray, np.ndarray]:
    """Absorption n·α (1/cm) against wavenumber (1/cm) from the classical autocorrelation of J = dP/dt.

    n α = ∫_0^∞ ⟨J(0)·J(t)⟩ cos(ωt) dt / (3 V kT ε0 c); a Hann window ends it at ``longest`` (fs).
    """
    dt = SAMPLE * STEP
    current = np.diff(polarization, axis=0) / dt  # e Å / fs
    current -= current.mean(axis=0)
    n = len(current)
    spectrum = np.abs(np.fft.rfft(current, 2 * n, axis=0)) ** 2
    correlation = np.fft.irfft(spectrum.sum(axis=1))[:n] / np.arange(n, 0, -1)
    m = min(n // 2, int(longest / dt))
    correlation = correlation[:m] * np.cos(0.5 * np.pi * np.arange(m) / m) ** 2
    correlation[0] /= 2
    integral = np.fft.rfft(correlation, 8 * m).real * dt  # e² Å² / fs
    wavenumber = np.fft.rfftfreq(8 * m, dt * 1e-15) / (units._c * 100)
    si = units._e**2 * 1e-20 / 1e-15  # C² m² / s
    factor = si / (3 * volume * 1e-30 * units._k * TEMPERATURE * units._eps0 * units._c)
    return wavenumber, factor * integral / 100


def draw(
    curves: dict[str, tuple[str, np.ndarray]],
    times: np.ndarray,
    kelvin: np.ndarray,
    dipoles: tuple[np.ndarray, np.ndarray],
    spectrum: tuple[np.ndarray, np.ndarray],
) -> Figure:
    """The four panels."""
    colour = example.COLOURS
    figure, ((structure, course), (parity, infra)) = plt.subplots(
        2, 2, figsize=(6.8, 5.4), layout="constrained"
    )
    for label, (name, curve) in curves.items():
        structure.plot(CENTRES, curve, "--" if name == "reference" else "-", color=colour[name], label=label)
    structure.set(xlabel="O–O distance (Å)", ylabel="radial distribution", ylim=(0, None), title="structure")
    structure.legend(loc="upper right")
    course.plot(times, smooth(kelvin, 100), color="0.75", lw=0.7, label="mean of 100 steps")
    mean = np.cumsum(kelvin) / np.arange(1, len(kelvin) + 1)
    course.plot(times, mean, color=colour["highlight"], label="mean up to here")
    course.axhline(TEMPERATURE, color="black", lw=0.8, ls=":", label="thermostat")
    course.set(xlabel="time (ps)", ylabel="temperature (K)")
    course.legend(loc="upper right")
    course.set_title("temperature")
    low, high = min(map(np.min, dipoles)), max(map(np.max, dipoles))
    parity.plot([low, high], [low, high], color="0.7", lw=0.8)
    parity.plot(*dipoles, ".", ms=3, alpha=0.5, color=colour["ACKS2"])
    parity.set(
        xlabel="dipole of a molecule, Mulliken (D)",
        ylabel="the same, ACKS2 (D)",
        title="dipoles of molecules in test boxes",
    )
    shown = spectrum[0] < 4500
    infra.plot(spectrum[0][shown], spectrum[1][shown] / 1e3, color=colour["ACKS2"])
    infra.set(xlabel="wavenumber (cm⁻¹)", ylabel="n·α (10³ cm⁻¹)", ylim=(0, None), title="infrared spectrum")
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--picoseconds", type=float)
    parser.add_argument("--keep", type=Path)
    own, rest = parser.parse_known_args(argv)
    chosen = example.options(__doc__, rest)
    every = 20 if chosen.quick else 1 if own.full else 5
    picoseconds = own.picoseconds or (0.05 if chosen.quick else 0.5)

    train, test = kqeq.datasets.split("water_box")
    train, tested = train[::every], test[::5] if chosen.quick else test
    models = fitted(train, 40 if chosen.quick else 300 if own.full else 100)
    errors = {name: model.evaluate(tested) for name, model in models.items()}
    model = models["ACKS2"]
    labels = np.concatenate([molecular_dipoles(a, a.get_charges()) for a in tested])
    predicted = np.concatenate([molecular_dipoles(a, model.predict(a).charges) for a in tested])

    steps = round(1000 * picoseconds / STEP)
    data = run(model, test[0], steps, own.keep)
    side, volume = test[0].cell[0, 0], test[0].get_volume()
    kelvin, energy = data["temperature"], data["energy"]
    times = SAMPLE * STEP * 1e-3 * np.arange(1, len(kelvin) + 1)
    settled = len(kelvin) // 10
    assert np.isfinite(energy).all() and kelvin.max() < 1000, "the dynamics is not stable"

    curves = {
        f"{len(test)} test boxes": ("reference", radial_distribution([a.positions[::3] for a in test], side)),
        f"ACKS2, {picoseconds:g} ps": ("ACKS2", radial_distribution(list(data["oxygens"]), side)),
    }
    spectrum = infrared(data["polarization"][settled:], volume, 500.0 if picoseconds < 5 else 1000.0)
    with plt.rc_context(example.STYLE):
        figure = draw(
            curves,
            times,
            kelvin,
            (labels, predicted),
            spectrum,
        )

    rows = []
    for name, result in errors.items():
        charge = f"{1e3 * result['charges'].rmse:.1f}" if "charges" in result else "–"
        rows.append(
            [
                name,
                f"{1e3 * result['energy'].rmse:.2f}",
                f"{1e3 * result['forces'].rmse:.1f}",
                f"{1e3 * result['stress'].rmse:.2f}",
                charge,
            ]
        )
    per_step = 1e3 * float(data["seconds"]) / int(data["steps"])
    peaks = {label: (CENTRES[g.argmax()], g.max()) for label, (_, g) in curves.items()}
    notes = (
        f"{len(train)} training and {len(tested)} test boxes of 32 molecules, GFN1-xTB (semi-empirical, Γ point). Test "
        "boxes were equilibrated with a short-range model and end with 20 fs of GFN1-xTB dynamics: their O–O "
        "distribution is mostly that model's, not a long GFN1-xTB run's. "
        f"Dynamics: {picoseconds:g} ps at {STEP} fs, velocity rescaling (Bussi, 200 fs), {per_step:.0f} ms of CPU "
        f"a step; mean temperature {kelvin[settled:].mean():.0f} K. First O–O "
        "peak: "
        + ", ".join(f"{label} {g:.2f} at {r:.2f} Å" for label, (r, g) in peaks.items())
        + f". Molecular dipoles: mean {labels.mean():.2f} D (Mulliken), {predicted.mean():.2f} D (ACKS2), RMSE "
        f"{np.sqrt(np.mean((labels - predicted) ** 2)):.3f} D. Infrared: classical nuclei, no quantum correction, "
        "polarization of ACKS2's charge flow fitted to Mulliken charges."
    )
    header = ["model", "energy (meV/atom)", "forces (meV/Å)", "stress (meV/Å³)", "charges (me)"]
    example.finish(chosen, NAME, figure, header, rows, notes)


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Running mean, of the same length."""
    width = min(width, len(values))
    ends = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    return np.convolve(ends, np.full(width, 1 / width), mode="valid")


if __name__ == "__main__":
    main()
