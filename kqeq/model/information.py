"""What a fitted model is, for those who find its file: elements, charge states, data, settings, errors, what the data
determine, and what a prediction costs.
"""  # noqa: D205

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from kqeq._version import __version__
from kqeq.errors import KQEqError
from kqeq.fitting.report import FitReport
from kqeq.frames.structures import Structure
from kqeq.potential.determination import TOLERANCE, Determination
from kqeq.potential.potential import Potential

if TYPE_CHECKING:
    from kqeq.model.estimator import KQEq

SAMPLE_ATOMS = 27
"""Atoms of the cluster on which predictions are timed."""


@dataclass(frozen=True, eq=False)
class Information:
    """What a fitted model is; prints as text.

    Attributes
    ----------
    version : str
        Of this installation.
    elements : tuple of str
    charge_states : tuple of float
        Total charges of the training frames, e.
    predicts : tuple of str
        Quantities.
    charges, baseline : str
        Names of the charge model and of what lies below the model, or "none".
    settings : dict
        Arguments of the estimator that are plain data, and kernels and charge model as such.
    report : FitReport
    kernels : tuple of dict
        Part, cutoff (Å), features and representatives by element of every kernel that predictions go through.
    undetermined : tuple of (str, float)
        Combinations of element energies (eV) and electronegativities (eV/e) that the data leave open, with their
        standard deviations; empty where everything is determined.
    determination_known : bool
        Whether the file says so at all; those of version 0.1 do not.
    cutoff : float
        How far an atom sees, Å.
    milliseconds : float or None
        Energy and forces, for each atom of a cluster of SAMPLE_ATOMS, on this machine; ``None`` on a baseline.
    posterior : bool
        Whether uncertainties, ``select`` and ``update`` are possible.
    """

    version: str
    elements: tuple[str, ...]
    charge_states: tuple[float, ...]
    predicts: tuple[str, ...]
    charges: str
    baseline: str
    settings: Mapping[str, Any]
    report: FitReport
    kernels: tuple[Mapping[str, Any], ...]
    undetermined: tuple[tuple[str, float], ...]
    determination_known: bool
    cutoff: float
    milliseconds: float | None
    posterior: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        data: dict[str, Any] = {
            **{name: value for name, value in vars(self).items() if name not in ("report", "undetermined")},
            "undetermined": [
                {"combination": name, "standard_deviation": std} for name, std in self.undetermined
            ],
            "report": asdict(self.report),
        }
        plain: dict[str, Any] = _plain(data)
        return plain

    def __str__(self) -> str:
        lines = []

        def add(name: str, value: str) -> None:
            lines.append(f"{name:<18}{value}")

        report = self.report
        add("elements", ", ".join(self.elements))
        add("charge states", ", ".join(f"{q:+g}" if q else "0" for q in self.charge_states) + " e")
        add("predicts", ", ".join(self.predicts))
        add("charges", self.charges)
        add("baseline", self.baseline)
        add("fitted to", f"{report.n_frames} frames, {report.n_atoms} atoms, {report.n_residuals} labels")
        add("", ", ".join(f"{kind} ({n} frames)" for kind, n in report.used.items()))
        for kernel in self.kernels:
            sharpness = "" if kernel["sigma"] is None else f", σ {kernel['sigma']:g} Å"
            counts = ", ".join(f"{z} {n}" for z, n in kernel["representatives"].items())
            add(
                kernel["part"],
                f"cutoff {kernel['r_cut']:g} Å{sharpness}, {kernel['features']} features; "
                f"representatives {counts}",
            )
        state = "converged" if report.converged else "NOT CONVERGED"
        add("fit", f"{state}, {len(report.iterations)} iterations, {report.seconds:.1f} s")
        for name, errors in report.errors.items():
            add(
                "errors",
                f"{name}: " + ", ".join(f"{k} {e['rmse']:.4g} {e['unit']}" for k, e in errors.items()),
            )
        for note in report.notes:
            if "left-out" in note:
                add("", note)
        if not self.determination_known:
            add("not determined", "unknown: a file of version 0.1")
        elif not self.undetermined:
            add(
                "not determined",
                "nothing: energies of all compositions and charge states follow from the data",
            )
        else:
            for i, (name, std) in enumerate(self.undetermined):
                add("not determined" if i == 0 else "", f"{name} (± {std:.2g} eV)")
        add("uncertainties", "yes" if self.posterior else "no (fit with --posterior)")
        if self.milliseconds is not None:
            add(
                "cost",
                f"{self.milliseconds:.3g} ms an atom for energy and forces (a cluster of {SAMPLE_ATOMS} atoms, here)",
            )
        else:
            add("cost", "not measured" if self.baseline == "none" else "that of the baseline above all")
        return "\n".join(lines)


def information(model: KQEq) -> Information:
    """What a fitted model is.

    Parameters
    ----------
    model : KQEq

    Returns
    -------
    Information

    Raises
    ------
    ModelNotFittedError
    """
    potential = model.fitted()
    known = potential.determination
    predicts = ["energy", "forces", "stress"] if potential.has_energy else []
    if potential.has_charges:
        predicts += ["charges", "dipole", "polarizability"]
    baseline = potential.baseline
    charges = "none" if potential.charges is None else type(potential.charges).__name__
    return Information(
        version=__version__,
        elements=tuple(chemical_symbols[z] for z in potential.species),
        charge_states=tuple(sorted(map(float, potential.training_charges))),
        predicts=tuple(predicts),
        charges=charges,
        baseline="none" if baseline is None else baseline.describe(),
        settings=_settings(model),
        report=model.fit_report_,
        kernels=tuple(_kernels(potential)),
        undetermined=() if known is None else tuple(open_combinations(known)),
        determination_known=known is not None,
        cutoff=potential.cutoff,
        milliseconds=None if baseline is not None else _milliseconds(potential),
        posterior=model.posterior_ is not None,
    )


def open_combinations(known: Determination) -> list[tuple[str, float]]:
    """What the data leave open, as a combination of element means whose largest factor is one, and its spread in eV.

    The directions are those along which data have not halved the prior's standard deviation
    (:mod:`kqeq.potential.determination`); those whose spread stays within its tolerance are left away.
    """
    symbols = [chemical_symbols[z] for z in known.species]
    names = [f"χ({s})" for s in symbols] + [f"E({s})" for s in symbols]
    found = []
    for direction in known.open_directions():
        std = float(np.abs(direction).max())
        if std <= TOLERANCE:
            continue
        factors = direction / direction[np.argmax(np.abs(direction))]
        terms = [f"{f:+.2g} {names[k]}" for k, f in enumerate(factors) if abs(f) > 0.05]
        found.append((" ".join(terms).removeprefix("+").removeprefix("1 "), std))
    return sorted(found, key=lambda item: -item[1])


def _settings(model: KQEq) -> dict[str, Any]:
    """Arguments of the estimator as plain data; objects by their own settings."""
    found: dict[str, Any] = {}
    for name, value in model._given().items():
        if hasattr(value, "to_dict"):
            found[name] = value.to_dict()
        elif isinstance(value, (list, tuple)) and all(hasattr(item, "to_dict") for item in value):
            found[name] = [item.to_dict() for item in value]
        elif value is None or isinstance(value, (str, bool, int, float, list, tuple, dict)):
            found[name] = value
        else:
            found[name] = str(value)
    return found


def _kernels(potential: Potential) -> list[dict[str, Any]]:
    """What predictions go through."""
    parts = {"electronegativity": potential.electronegativity, "short_range": potential.short_range}
    parts.update(potential.sites)
    rows = []
    for name, part in parts.items():
        if part is None:
            continue
        for feature_map, coefficients in part.terms:
            descriptor = feature_map.descriptor
            sigma = getattr(descriptor, "sigma", None)
            rows.append(
                {
                    "part": name,
                    "r_cut": float(getattr(descriptor, "r_cut", descriptor.cutoff)),
                    "sigma": None if sigma is None else float(sigma),
                    "zeta": float(feature_map.zeta),
                    "features": _features(descriptor, potential.species),
                    "representatives": {chemical_symbols[z]: len(c) for z, c in coefficients.items()},
                }
            )
    return rows


def _features(descriptor: Any, species: tuple[int, ...]) -> int:
    """Length of the descriptor of a structure that holds all elements."""
    return max((int(block.stop) for block in descriptor.block_slices(species).values()), default=0)


def _milliseconds(potential: Potential) -> float | None:
    """Time of energy and forces of a cluster of all elements, for each atom; ``None`` where the model asks for more."""
    numbers = np.resize(np.array(potential.species), SAMPLE_ATOMS)
    side = round(SAMPLE_ATOMS ** (1.0 / 3.0))
    spacing = 2.0 * float(covalent_radii[numbers].max())
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    positions = spacing * grid + np.random.default_rng(0).uniform(-0.1, 0.1, grid.shape)
    structure = Structure(numbers, positions)
    if potential.charges is not None and getattr(potential.charges, "fragments", False):
        structure = replace(
            structure, fragments=np.zeros(len(numbers), dtype=np.int64), fragment_charges=np.zeros(1)
        )
    kinds = ("energy", "forces") if potential.has_energy else ("dipole",)
    times = []
    for _ in range(3):  # the first may compile
        started = time.perf_counter()
        try:
            list(potential.predict_many([structure], kinds))
        except KQEqError:  # reference charges, a spin state
            return None
        times.append(time.perf_counter() - started)
    return 1e3 * min(times[1:]) / len(numbers)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value


__all__ = ["SAMPLE_ATOMS", "Information", "information", "open_combinations"]
