"""Figures.  Each function draws into an :class:`matplotlib.axes.Axes` that the caller owns.

``response_figure``, ``diagnosis_figure`` and ``consistency_figure`` put them together for the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kqeq.analysis.diagnose import MAX_EXPONENT, NOVELTY_FLAG, NOVELTY_LEAST
from kqeq.errors import InputError
from kqeq.fitting.metrics import UNITS
from kqeq.typing import FloatArray

if TYPE_CHECKING:
    from os import PathLike

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kqeq.analysis import (
        ChainGrowth,
        ChargeScan,
        Consistency,
        Diagnosis,
        DissociationScan,
        Dynamics,
        FieldScan,
        FrameErrors,
        Infrared,
    )

_MARKERS = ("o", "^", "s", "D", "v")
_BLUE, _RED, _ORANGE = "#1f5fa8", "#c0392b", "#e69f00"
_COLOURS = (_BLUE, _RED, "#2e8b57", "#8e44ad", "#b8860b")
_NAMED_ATOMS = 14
"""Atoms up to which bars carry the names of atoms."""


def parity(
    axes: Axes, series: Mapping[str, tuple[Any, Any]], *, quantity: str, unit: str, decimals: int = 3
) -> None:
    """Draw predicted against reference values, with the line of perfect agreement.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
    series : mapping of str to (array, array)
        Reference and predicted values by the name that the legend shows, in ``unit``; the arrays of a pair have one
        shape.  Later series are drawn on top.  The legend adds the root-mean-square error.
    quantity, unit : str
        For the axis labels, for example ``"force component"`` and ``"eV/Å"``.
    decimals : int
        Of the errors in the legend.

    Raises
    ------
    InputError
        For no series, arrays that are empty or differ in shape, or values that are not finite.
    """
    if not series:
        raise InputError("parity: there is no series to draw; give {name: (reference, predicted)}")
    pairs = {name: _pair(name, *values) for name, values in series.items()}
    everything = np.concatenate([values for pair in pairs.values() for values in pair])
    low, high = float(everything.min()), float(everything.max())
    margin = 0.05 * (high - low) or 1.0
    low, high = low - margin, high + margin
    axes.plot([low, high], [low, high], color="0.6", linewidth=0.8, zorder=0)
    for number, (name, (reference, predicted)) in enumerate(pairs.items()):
        rmse = float(np.sqrt(np.mean((predicted - reference) ** 2)))
        axes.plot(
            reference,
            predicted,
            linestyle="none",
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=4,
            markeredgewidth=0,
            alpha=0.7,
            label=f"{name}: RMSE {rmse:.{decimals}f} {unit}",
        )
    axes.set(
        xlabel=f"reference {quantity} ({unit})",
        ylabel=f"predicted {quantity} ({unit})",
        xlim=(low, high),
        ylim=(low, high),
    )
    axes.set_aspect("equal", adjustable="box")
    axes.legend(loc="upper left", fontsize="small", frameon=False, handletextpad=0.3)


# --------------------------------------------------------------------- responses


def charge_states(axes: Axes, scan: ChargeScan) -> None:
    """Energy against total charge, above the lowest one; relaxed energies as well where there are any."""
    order = np.argsort(scan.total_charges)
    zero = scan.energies.min() if scan.relaxed_energies is None else scan.relaxed_energies.min()
    axes.plot(
        scan.total_charges[order], (scan.energies - zero)[order], "o-", color=_BLUE, label="given geometry"
    )
    if scan.relaxed_energies is not None:
        axes.plot(
            scan.total_charges[order],
            (scan.relaxed_energies - zero)[order],
            "s--",
            color=_RED,
            label="relaxed",
        )
        axes.legend(frameon=False, fontsize="small")
    axes.set(xlabel="total charge (e)", ylabel="energy (eV)", xticks=scan.total_charges)


def field_response(axes: Axes, scan: FieldScan) -> None:
    """Induced dipole along the direction of a field, and the energy on a second scale."""
    middle = int(np.argmin(np.abs(scan.strengths)))
    along = scan.dipoles @ scan.direction
    axes.plot(scan.strengths, along - along[middle], "o-", color=_BLUE, markersize=3)
    axes.set(xlabel=f"field along {_direction(scan.direction)} (V/Å)")
    axes.set_ylabel("induced dipole (e·Å)", color=_BLUE)
    axes.tick_params(axis="y", labelcolor=_BLUE)
    other = axes.twinx()
    other.plot(scan.strengths, scan.energies - scan.energies[middle], "s--", color=_RED, markersize=3)
    other.set_ylabel("energy in the field (eV)", color=_RED)
    other.tick_params(axis="y", labelcolor=_RED)


def _direction(vector: FloatArray) -> str:
    for name, axis in zip("xyz", np.eye(3), strict=True):
        if abs(float(vector @ axis)) > 1.0 - 1e-9:
            return name
    return "(" + ", ".join(f"{v:.2f}" for v in vector) + ")"


def by_atom(axes: Axes, numbers: Any, series: Mapping[str, Any], *, label: str) -> None:
    """Bars for every atom, one colour per series.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
    numbers : (N,) int array
        Atomic numbers.
    series : mapping of str to (N,) array
        By the names that the legend shows.
    label : str
        Of the vertical axis, with the unit.
    """
    from ase.data import chemical_symbols

    atoms = np.arange(len(numbers))
    width = 0.8 / len(series)
    for k, (name, values) in enumerate(series.items()):
        offset = (k - 0.5 * (len(series) - 1)) * width
        axes.bar(atoms + offset, values, width=width, color=_COLOURS[k % len(_COLOURS)], label=name)
    axes.axhline(0.0, color="0.3", linewidth=0.8)
    if len(atoms) <= _NAMED_ATOMS:
        axes.set_xticks(atoms, [f"{chemical_symbols[z]}{i}" for i, z in enumerate(numbers)], fontsize="small")
    else:
        axes.set_xlabel("atom")
        axes.locator_params(axis="x", integer=True)
    axes.set_ylabel(label)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize="small")


def infrared(axes: Axes, spectra: Mapping[str, Infrared], *, width: float = 10.0) -> None:
    """Broadened infrared spectra, with the lines themselves as sticks; one colour for each."""
    for k, (name, found) in enumerate(spectra.items()):
        colour = _COLOURS[k % len(_COLOURS)]
        x, y = found.spectrum(width=width)
        axes.plot(x, y, color=colour, linewidth=1.2, linestyle=("-", "--", ":")[k % 3], label=name)
        real = found.frequencies > 0.0
        top = 2.0 * found.intensities[real] / (np.pi * width)  # the height of a line on its own
        axes.vlines(found.frequencies[real], 0.0, top, color=colour, linewidth=0.8, alpha=0.5)
    axes.set(
        xlabel="wavenumber (cm⁻¹)",
        ylabel="absorption (km/mol per cm⁻¹)",
        ylim=(0.0, None),
        xlim=(0.0, None),
    )
    if len(spectra) > 1:
        axes.legend(frameon=False, fontsize="small", loc="upper center")


# --------------------------------------------------------------------- diagnosis


def chain_growth(axes: Axes, growth: Mapping[str, ChainGrowth]) -> None:
    """Polarizability per unit against the length of a chain; flat is additive, QEq rises without limit."""
    for k, (name, found) in enumerate(growth.items()):
        axes.plot(
            found.lengths,
            found.polarizabilities / found.lengths,
            marker=_MARKERS[k % len(_MARKERS)],
            color=_COLOURS[k % len(_COLOURS)],
            markersize=4,
            label=f"{name}: grows as n^{found.exponents[-1]:.2f} at the end",
        )
        axes.set_title(found.name, fontsize="medium")
    first = next(iter(growth.values()))
    middle = len(first.lengths) // 2
    scale = (
        first.polarizabilities[middle] / first.lengths[middle] / first.lengths[middle] ** (MAX_EXPONENT - 1.0)
    )
    guide = scale * first.lengths ** (MAX_EXPONENT - 1.0)
    axes.plot(
        first.lengths, guide, color="0.6", linestyle="--", label=f"slope of the limit, n^{MAX_EXPONENT:g}"
    )
    axes.set(xlabel="length n", ylabel="polarizability along the chain / n (Å³)", ylim=(0.0, None))
    axes.legend(frameon=False, fontsize="small")


def dissociation(axes: Axes, scans: Mapping[str, DissociationScan]) -> None:
    """Charges of the fragments against the distance between them; whole numbers are right."""
    for k, (name, scan) in enumerate(scans.items()):
        for fragment in range(scan.fragment_charges.shape[1]):
            axes.plot(
                scan.closest,
                scan.fragment_charges[:, fragment],
                color=_COLOURS[k % len(_COLOURS)],
                linestyle=("-", "--", ":", "-.")[fragment % 4],
                label=f"{name} (first line, second dashed)" if fragment == 0 else None,
            )
    low, high = axes.get_ylim()
    for whole in range(int(np.floor(low)), int(np.ceil(high)) + 1):
        axes.axhline(whole, color="0.85", linewidth=0.8, zorder=0)
    axes.set(xlabel="closest distance between fragments (Å)", ylabel="charge of a fragment (e)")
    axes.legend(frameon=False, fontsize="small")


def charges_in_range(
    axes: Axes,
    numbers: Any,
    charges: FloatArray,
    ranges: FloatArray,
    explained: FloatArray | None = None,
) -> None:
    """Charges of the atoms before the ranges that are possible, and those that their bonds explain."""
    from matplotlib.patches import Patch

    atoms = np.arange(len(charges))
    low, high = min(-1.0, float(charges.min())), max(1.0, float(charges.max()))
    axes.set_ylim(low - 0.15 * (high - low), high + 0.6 * (high - low))  # room for the legend
    shades = {"possible": ("0.93", ranges)}
    if explained is not None:
        shades["explained by its bonds"] = ("0.82", explained)
    for colour, limits in shades.values():
        bottom, top = limits.T
        axes.bar(atoms, top - bottom, bottom=bottom, width=1.0, color=colour)
    drawn = len(axes.patches)
    by_atom(axes, numbers, {"charge": charges}, label="charge (e)")
    colours = np.full(len(charges), _BLUE, dtype=object)
    if explained is not None:
        colours[(charges < explained[:, 0]) | (charges > explained[:, 1])] = _ORANGE
    colours[(charges < ranges[:, 0]) | (charges > ranges[:, 1])] = _RED
    for bar, colour in zip(axes.patches[drawn:], colours, strict=True):
        bar.set_color(colour)
    names = {_BLUE: "charge", _ORANGE: "more than its bonds explain", _RED: "impossible"}
    handles = [Patch(color=colour, label=name) for name, (colour, _) in shades.items()]
    handles += [Patch(color=colour, label=name) for colour, name in names.items() if colour in colours]
    axes.legend(handles=handles, fontsize="small", ncols=2, loc="upper center", framealpha=1.0)


def conserved_energy(axes: Axes, times: FloatArray, energies: FloatArray) -> None:
    """Conserved energy of a dynamics (meV/atom) against time (fs)."""
    axes.plot(times, energies, color=_BLUE, linewidth=0.8)
    axes.axhline(0.0, color="0.6", linewidth=0.8, zorder=0)
    axes.set(xlabel="time (fs)", ylabel="conserved energy − start (meV/atom)")


def check_margins(axes: Axes, result: Consistency) -> None:
    """Errors of all checks in units of their tolerances, on a logarithmic scale; what passes stays left of one."""
    known = [check for check in result.checks if check.error is not None and check.tolerance is not None]
    ratios = [max(float(check.error or 0.0) / float(check.tolerance or 1.0), 1e-12) for check in known]
    rows = np.arange(len(known))[::-1]
    colours = [_BLUE if check.passed else _RED for check in known]
    axes.barh(rows, ratios, left=1e-12, color=colours, height=0.7)
    axes.set_yticks(rows, [check.name for check in known], fontsize="small")
    axes.axvline(1.0, color=_RED, linewidth=1.0)
    axes.set(
        xscale="log", xlim=(1e-12, max(10.0, 3.0 * max(ratios, default=1.0))), xlabel="error / tolerance"
    )


# ----------------------------------------------------------------- whole figures


def _figure(panels: int, columns: int = 2) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-panels // columns)
    figure = Figure(figsize=(6.0 * min(panels, columns), 4.0 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(rows, min(panels, columns), k + 1) for k in range(panels)]


def save(path: str | PathLike[str], figure: Figure) -> None:
    """Write a figure as PNG, atomically.

    Raises
    ------
    InputError
        If the path cannot be written.
    """
    from kqeq.io.atomic_write import atomic_path

    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=140, format="png")


def parity_figure(errors: FrameErrors) -> Figure:
    """Predictions against labels of every quantity that was compared; one series for each total charge."""
    charges = list(errors.groups("charge"))
    errors = _about_compositions(errors)
    figure, panels = _figure(len(errors.evaluation), columns=3)
    for axes, kind in zip(panels, errors.evaluation, strict=True):
        series = {}
        for charge in charges:
            own = [f for f, name in zip(errors.frames, errors.names["charge"], strict=True) if name == charge]
            part = replace(errors, frames=tuple(own))
            if np.isfinite(part.of(kind)).any():
                name = f"{charge} e" if len(charges) > 1 else "all"
                series[name] = part.pairs(kind)
        unit = UNITS[kind]
        decimals = 4 if kind in ("energy", "stress") else 3
        names = {
            "energy": "energy about the mean of its composition",
            "forces": "force component",
            "dipole": "dipole component",
        }
        parity(axes, series, quantity=names.get(kind, kind), unit=unit, decimals=decimals)
    return figure


def dynamics_figure(found: Dynamics) -> Figure:
    """Total and potential energy about their first values, and temperature, against time."""
    figure, (energies, temperature) = _figure(2)
    for name, values, colour in zip(
        ("potential", "total"), (found.potential_energies, found.total_energies), (_RED, _BLUE), strict=True
    ):
        energies.plot(found.times, values - values[0], color=colour, linewidth=0.8, label=name)
    energies.set(xlabel="time (fs)", ylabel="energy − first (eV)")
    energies.legend(frameon=False, fontsize="small")
    temperature.plot(found.times, found.temperatures, color=_BLUE, linewidth=0.8)
    temperature.set(xlabel="time (fs)", ylabel="temperature (K)")
    return figure


def spectrum_figure(found: Infrared) -> Figure:
    """The infrared spectrum alone."""
    figure, (axes,) = _figure(1)
    infrared(axes, {"model": found})
    return figure


def _about_compositions(errors: FrameErrors) -> FrameErrors:
    """Energies less the mean label of their composition: those of different elements lie too far apart to be drawn."""
    labels: dict[str, list[float]] = {}
    for (_, label, _), name in zip(errors.frames, errors.names["composition"], strict=True):
        if label.energy is not None:
            labels.setdefault(name, []).append(label.energy)
    means = {name: float(np.mean(values)) for name, values in labels.items()}
    frames = []
    for (structure, label, prediction), name in zip(errors.frames, errors.names["composition"], strict=True):
        moved = (structure, label, prediction)
        if label.energy is not None and prediction.energy is not None:
            less = means[name]
            moved = (
                structure,
                replace(label, energy=label.energy - less),
                replace(prediction, energy=prediction.energy - less),
            )
        frames.append(moved)
    return replace(errors, frames=tuple(frames))


def response_figure(title: str, results: Mapping[str, Any]) -> Figure:
    """What ``kqeq respond`` found: by name, some of polarizability, born_charges, charge_response, ionization,
    field_scan, infrared.
    """  # noqa: D205
    response, born = results.get("charge_response"), results.get("born_charges")
    names = [
        name for name in ("charge_response", "field_scan", "polarizability", "infrared") if name in results
    ]
    if response is None and born is not None:
        names.insert(0, "born_charges")
    if not names:
        raise InputError("there is nothing to draw: none of the quantities is available for this model")
    figure, panels = _figure(len(names), columns=3 if len(names) > 4 else 2)
    for axes, name in zip(panels, names, strict=True):
        found = results[name]
        if name in ("charge_response", "born_charges"):
            series = {} if response is None else {"charge": response.charges}
            if born is not None:
                series["Born charge, ⅓ trace"] = born.isotropic
            by_atom(axes, found.numbers, series, label="charge (e)")
            axes.set_title("charges")
        elif name == "charge_scan":
            charge_states(axes, found)
            axes.set_title("charge states at this geometry")
        elif name == "field_scan":
            field_response(axes, found)
            axes.set_title("in a field")
        elif name == "polarizability":
            volumes = {"polarizability": _trace(found.atomic, found) / 3.0}
            by_atom(axes, found.numbers, volumes, label="polarizability (Å³)")
            axes.set_title(f"polarizability by atom, in all {found.isotropic:.2f} Å³")
        else:
            infrared(axes, {"infrared": found})
            axes.set_title("infrared, lines 10 cm⁻¹ wide")
    figure.suptitle(title)
    return figure


def _trace(tensors: FloatArray | None, found: Any) -> FloatArray:
    """Traces in Å³; the whole on every atom's behalf where it is not divided."""
    from kqeq.constants import COULOMB

    if tensors is None:
        return np.full(len(found.numbers), 3.0 * found.isotropic / len(found.numbers))
    return np.asarray(COULOMB * np.trace(tensors, axis1=1, axis2=2))


def diagnosis_figure(diagnosis: Diagnosis) -> Figure:
    """Growth of the polarizability, charges on dissociation, charges and distances of the geometry."""
    names = []
    if diagnosis.growth is not None:
        names.append("growth")
    if diagnosis.dissociations:
        names.append("dissociation")
    if diagnosis.charges is not None and diagnosis.charge_ranges is not None:
        names.append("charges")
    if diagnosis.novelty is not None:
        names.append("novelty")
    if not names:
        raise InputError("there is nothing to draw: the model has no charges, and no geometry was given")
    figure, panels = _figure(len(names))
    for axes, name in zip(panels, names, strict=True):
        if name == "growth" and diagnosis.growth is not None:
            chain_growth(axes, {"model": diagnosis.growth})
        elif name == "dissociation":
            dissociation(axes, diagnosis.dissociations)
            axes.set_title("fragments pulled apart", fontsize="medium")
        elif name == "charges" and diagnosis.charges is not None and diagnosis.charge_ranges is not None:
            assert diagnosis.novelty is not None
            numbers, ranges = diagnosis.novelty.numbers, diagnosis.charge_ranges
            charges_in_range(axes, numbers, diagnosis.charges, ranges, diagnosis.bond_ranges)
            axes.set_title("charges of the geometry", fontsize="medium")
        elif diagnosis.novelty is not None:
            label = "distance / spread of the training data"
            by_atom(axes, diagnosis.novelty.numbers, {"distance": diagnosis.novelty.relative}, label=label)
            far = diagnosis.novelty.distances > NOVELTY_LEAST
            for bar, red in zip(axes.patches, far & (diagnosis.novelty.relative > NOVELTY_FLAG), strict=True):
                bar.set_color(_RED if red else _BLUE)
            axes.axhline(NOVELTY_FLAG, color=_RED, linewidth=1.0, linestyle="--")
            axes.set_title(
                f"extrapolation (far: above the line and 1 − k > {NOVELTY_LEAST:g})", fontsize="medium"
            )
    figure.suptitle(f"diagnosis of {diagnosis.model}")
    return figure


def consistency_figure(result: Consistency) -> Figure:
    """Margins of all checks, and the conserved energy."""
    figure, panels = _figure(2 if len(result.times) else 1)
    check_margins(panels[0], result)
    panels[0].set_title("errors of the checks", fontsize="medium")
    if len(result.times):
        conserved_energy(panels[1], result.times, result.energies)
        panels[1].set_title("dynamics at constant energy", fontsize="medium")
    return figure


def _pair(name: str, reference: Any, predicted: Any) -> tuple[FloatArray, FloatArray]:
    x, y = np.asarray(reference, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if x.shape != y.shape or x.size == 0 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError(
            f"parity: series {name!r} has reference values of shape {x.shape} and predicted ones of shape {y.shape}; "
            "expected finite values of one shape"
        )
    return x.ravel(), y.ravel()


__all__ = [
    "by_atom",
    "chain_growth",
    "charge_states",
    "charges_in_range",
    "check_margins",
    "conserved_energy",
    "consistency_figure",
    "diagnosis_figure",
    "dissociation",
    "dynamics_figure",
    "field_response",
    "infrared",
    "parity",
    "parity_figure",
    "response_figure",
    "save",
    "spectrum_figure",
]
