"""``kqeq demo``: the whole story on packaged data, in half a minute and without a download.

Every number that is printed is computed on the spot.  The models of water have the default settings of
:class:`kqeq.KQEq` and one fit, without the search for better ones (``optimize=None``), which takes ten times as long.
For Ag3 they are others: its labels have no noise and three atoms in a row need a longer reach, and the demo says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from kqeq import datasets
from kqeq._version import __version__
from kqeq.analysis.optimization import optimize
from kqeq.constants import COULOMB
from kqeq.fitting.metrics import Evaluation
from kqeq.io.atomic_write import atomic_path, check_writable
from kqeq.kernels.feature_map import SOAPKernel
from kqeq.model.estimator import KQEq, load_model

PLOT_NAME, MODEL_NAME = "kqeq-demo.png", "kqeq-demo.kqeq"

_SHOWN = {"energy": ("meV/atom", 1e3, 2), "forces": ("meV/Å", 1e3, 1), "dipole": ("e·Å", 1.0, 4)}
"""Unit, factor and decimals of the printed errors."""

AG3_NOISE = {"energy": 1e-4, "forces": 3e-3, "dipole": 0.1}
"""eV/atom, eV/Å, e·Å: labels of two small molecules without noise; dipoles as a guide only."""

Printer = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Comparison:
    """One data set, fitted with and without charges.

    Attributes
    ----------
    title : str
    test : list of ase.Atoms
    with_charges, without_charges : KQEq
    errors_with, errors_without : Evaluation
        On the test frames.
    """

    title: str
    test: list[Atoms]
    with_charges: KQEq
    without_charges: KQEq
    errors_with: Evaluation
    errors_without: Evaluation


def run(folder: Path, say: Printer = print) -> dict[str, Any]:
    """Run the demo.

    Parameters
    ----------
    folder : Path
        Where the parity plot and the model file go.
    say : callable
        Receives every line of the report.

    Returns
    -------
    dict
        The numbers, as plain data.

    Raises
    ------
    InputError
        If ``folder`` cannot be written; before any work.
    """
    plot, model_file = folder / PLOT_NAME, folder / MODEL_NAME
    check_writable(plot)
    check_writable(model_file)
    return _story(plot, model_file, say)


def _story(plot: Path, model_file: Path, say: Printer) -> dict[str, Any]:
    started = time.perf_counter()
    say(f"kqeq {__version__}: kernel charge equilibration on packaged PBE0 data (kqeq.datasets)")

    frames = datasets.load("ag3")
    say(
        "\nAg3: two molecules, labels without noise; the fit may follow them closely: "
        + ", ".join(f"noise of {kind} {value:g}" for kind, value in AG3_NOISE.items())
    )
    ag3 = compare(
        "Ag3(+) and Ag3(-)", frames[::2], frames[1::2], "the frames between those", say, ag3_settings()
    )
    say("\nWater: default settings, one fit without the search for better ones (kqeq fit --quick)")
    train, test = datasets.split("water")
    water = compare(
        "water clusters, H3O(+), OH(-)", train, test, "independent trajectories", say, {"optimize": None}
    )

    numbers: dict[str, Any] = {"version": __version__, "ag3": _errors(ag3), "water": _errors(water)}
    numbers["charge_states"] = probe_charges(ag3, say)
    numbers["field"] = probe_field(water, say)
    numbers["optimisation"] = relax(water, say)

    draw(plot, (ag3, water))
    say(f"\nParity plot of all test frames: {plot}")
    numbers["reload"] = reload(water, model_file, say)
    numbers["seconds"] = round(time.perf_counter() - started, 1)
    say(f"\nDone in {numbers['seconds']:.0f} s.")
    return numbers


def ag3_settings() -> dict[str, Any]:
    """Settings for Ag3: a longer reach for three atoms in a row, and tight noise levels."""
    kernel = SOAPKernel(r_cut=5.0, n_max=8, l_max=6, sigma=0.5, zeta=2)
    return {"electronegativity": kernel, "noise": AG3_NOISE}


def compare(
    title: str,
    train: list[Atoms],
    test: list[Atoms],
    origin: str,
    say: Printer,
    settings: dict[str, Any] | None = None,
) -> Comparison:
    """Fit with and without charges; print the test errors side by side."""
    started = time.perf_counter()
    settings = settings or {}
    with_charges = KQEq(**settings).fit(train)
    without = KQEq(**{**settings, "electronegativity": None, "charges": None}).fit(train)
    seconds = time.perf_counter() - started
    result = Comparison(
        title, test, with_charges, without, with_charges.evaluate(test), without.evaluate(test)
    )
    say(f"\n{title}: fitted to {len(train)} frames in {seconds:.1f} s, tested on {len(test)} ({origin})")
    say(f"  {'test RMSE':<12}{'with charges':>14}{'without':>12}   unit")
    for kind, (unit, factor, decimals) in _SHOWN.items():
        cells = [
            f"{factor * errors[kind].rmse:.{decimals}f}" if kind in errors else "-"
            for errors in (result.errors_with, result.errors_without)
        ]
        say(f"  {kind:<12}{cells[0]:>14}{cells[1]:>12}   {unit}")
    for name, model in (("with", with_charges), ("without", without)):
        if not model.fit_report_.converged:
            say(f"  (the fit {name} charges did not converge within {model.max_iterations} iterations)")
    return result


def _errors(comparison: Comparison) -> dict[str, Any]:
    return {
        "with_charges": comparison.errors_with.to_dict(),
        "without_charges": comparison.errors_without.to_dict(),
        "n_test": len(comparison.test),
    }


def probe_charges(ag3: Comparison, say: Printer) -> list[dict[str, Any]]:
    """One geometry at total charges −1, 0 and +1."""
    atoms = next(a for a in ag3.test if a.info["total_charge"] == 1)
    bare = Atoms(atoms.numbers, atoms.positions)
    say("\nOne geometry, an Ag3(+) of the test set, at three total charges")
    say(f"  {'Q (e)':>5}{'E - E(+1) (eV)':>17}{'dE/dQ (eV/e)':>15}   charges (e)")
    states = {charge: ag3.with_charges.predict(bare, total_charge=charge) for charge in (-1.0, 0.0, 1.0)}
    rows = []
    for charge, state in states.items():
        charges, potential = _known(state.charges), state.chemical_potential
        energy = state.energy - states[1.0].energy
        say(f"  {charge:+5.0f}{energy:17.3f}{potential:15.3f}   " + " ".join(f"{q:+.3f}" for q in charges))
        rows.append(
            {
                "total_charge": charge,
                "relative_energy": energy,
                "chemical_potential": potential,
                "charges": charges.tolist(),
            }
        )
    blind = {ag3.without_charges.predict(bare, total_charge=charge).energy for charge in states}
    say(
        "  Training data near this geometry all have charge +1: the other rows show a response, not an accuracy."
    )
    say(f"  Without charges there is {len(blind)} energy for the three.")
    return rows


def probe_field(water: Comparison, say: Printer) -> dict[str, Any]:
    """One molecule along a field, and the DFT calculations in fields that no fit has seen."""
    atoms = next(a for a in water.test if a.info["system"] == "water1")
    bare = Atoms(atoms.numbers, atoms.positions)
    model = water.with_charges
    free = model.predict(bare)
    axis = _known(free.dipole) / np.linalg.norm(_known(free.dipole))
    say("\nOne water molecule in a field along its dipole; no training frame had a field")
    say(f"  {'field (V/Å)':>11}{'E - E(0) (eV)':>16}{'dipole along it (e·Å)':>24}")
    rows = []
    for strength in (-0.4, -0.2, 0.0, 0.2, 0.4):
        state = model.predict(bare, external_field=strength * axis)
        energy, dipole = state.energy - free.energy, float(axis @ _known(state.dipole))
        say(f"  {strength:+11.1f}{energy:16.4f}{dipole:24.4f}")
        rows.append({"field": strength, "relative_energy": energy, "dipole": dipole})
    eigenvalues = COULOMB * np.linalg.eigvalsh(_known(free.polarizability))
    say(
        "  Its polarizability has the eigenvalues "
        + ", ".join(f"{abs(value):.2f}" for value in eigenvalues)
        + " Å³: charges alone cannot polarise out of the plane."
    )
    frames = datasets.load("water_field")
    unseen = model.evaluate(frames)
    say(f"  Test RMSE on {len(frames)} DFT calculations in fields: " + _line(unseen))
    return {"scan": rows, "polarizability_eigenvalues": eigenvalues.tolist(), "test": unseen.to_dict()}


def relax(water: Comparison, say: Printer) -> dict[str, Any]:
    """Optimise H3O(+) in a field."""
    atoms = next(a for a in water.test if a.info["system"] == "hydronium")
    field = np.array([0.0, 0.0, 0.1])
    bare = Atoms(atoms.numbers, atoms.positions)
    result = optimize(water.with_charges, bare, total_charge=1, external_field=field, fmax=0.005)
    drift = float(np.linalg.norm(result.atoms.get_center_of_mass() - bare.get_center_of_mass()))
    residual = float(np.abs(_known(result.prediction.forces).sum(axis=0) - field).max())
    oxygen = int(np.flatnonzero(atoms.numbers == 8)[0])
    bonds = [float(result.atoms.get_distance(oxygen, i)) for i in range(len(atoms)) if i != oxygen]
    state = "converged" if result.converged else "NOT CONVERGED"
    say("\nH3O(+) optimised in a field of 0.1 V/Å along z")
    say(f"  {state} after {result.steps} steps, largest force {1e3 * result.max_force:.1f} meV/Å")
    say("  O-H " + ", ".join(f"{bond:.3f}" for bond in bonds) + " Å")
    say(
        f"  The net force Q·field would carry it away, so its centre of mass was held (it moved {drift:.1e} Å); "
        f"the forces sum to Q·field within {residual:.1e} eV/Å."
    )
    return {
        "converged": result.converged,
        "steps": result.steps,
        "largest_force": result.max_force,
        "bonds": bonds,
        "centre_of_mass_drift": drift,
        "net_force_error": residual,
    }


def reload(water: Comparison, path: Path, say: Printer) -> dict[str, Any]:
    """Save, load and predict again."""
    water.with_charges.save(path)
    loaded = load_model(path)
    before, after = water.with_charges.predict(water.test), loaded.predict(water.test)
    equal = all(
        p.energy == q.energy and np.array_equal(_known(p.forces), _known(q.forces))
        for p, q in zip(before, after, strict=True)
    )
    size = path.stat().st_size
    verdict = "bit for bit the same" if equal else "NOT the same"
    say(f"Model file: {path} ({size / 1e6:.1f} MB). Loaded again, it predicts {verdict}.")
    return {"bit_equal": equal, "bytes": size}


def draw(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Parity plots of the forces, with and without charges, and of the dipoles; one PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from kqeq.analysis.plots import parity

    figure = Figure(figsize=(14.0, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(comparisons) + 1)
    dipoles: dict[str, tuple[Any, Any]] = {}
    for panel, comparison in zip(axes, comparisons, strict=False):
        frames = comparison.test
        reference = [atoms.get_forces() for atoms in frames]
        series: dict[str, Any] = {}
        for name, model in (
            ("without charges", comparison.without_charges),
            ("with charges", comparison.with_charges),
        ):
            predictions = model.predict(frames, properties=("forces",))
            series[name] = (reference, [_known(p.forces) for p in predictions])
            if model.charges is not None:
                dipoles[comparison.title] = (
                    np.array([atoms.get_dipole_moment() for atoms in frames]),
                    np.array([_known(p.dipole) for p in predictions]),
                )
        parity(
            panel,
            {name: (np.concatenate(x), np.concatenate(y)) for name, (x, y) in series.items()},
            quantity="force component",
            unit="eV/Å",
        )
        panel.set_title(f"{comparison.title}: forces")
    parity(axes[-1], dipoles, quantity="dipole component", unit="e·Å")
    axes[-1].set_title("dipoles, with charges")
    figure.suptitle(f"kqeq {__version__} demo: test frames, PBE0 reference")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def _line(evaluation: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{kind} {factor * evaluation[kind].rmse:.{decimals}f} {unit}"
        for kind, (unit, factor, decimals) in _SHOWN.items()
        if kind in evaluation
    )


def _known(value: Any) -> Any:
    """A property that this model is known to have."""
    assert value is not None
    return value


__all__ = ["MODEL_NAME", "PLOT_NAME", "run"]
