"""How far predictions are from labels: errors by quantity, as a table and as plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kqeq.charges.boundaries import open_components
from kqeq.frames.labels import Labels, standard_deviation
from kqeq.frames.structures import Structure
from kqeq.potential.potential import Prediction
from kqeq.typing import FloatArray

UNITS: Mapping[str, str] = {
    "energy": "eV/atom",
    "forces": "eV/Å",
    "stress": "eV/Å³",
    "dipole": "e·Å",
    "charges": "e",
    "polarizability": "e²·Å²/eV",
    "born_charges": "e",
}
"""Units in which errors are reported."""


@dataclass(frozen=True)
class Errors:
    """Errors of one quantity.

    Attributes
    ----------
    rmse, mae : float
        Over components (energies: per atom).
    unit : str
    n : int
        Number of components compared.
    r2 : float
        Coefficient of determination; forces are compared with zero force, everything else with its mean
        (energies with the mean per atom of each composition).
    mae_norm : float or None
        Mean absolute error of the norm of the vector (dipoles only).
    """

    rmse: float
    mae: float
    unit: str
    n: int
    r2: float
    mae_norm: float | None = None


@dataclass(frozen=True)
class Calibration:
    """Whether errors are as large as the model says.

    Attributes
    ----------
    within_68, within_95 : float
        Share of labels within the central 68 % and 95 % of the predicted distribution; 0.68 and 0.95 are perfect.
    mean_z2 : float
        Mean of (error / standard deviation)²; 1 is perfect, more means overconfident.
    n : int
        Number of components.
    """

    within_68: float
    within_95: float
    mean_z2: float
    n: int

    @classmethod
    def of(cls, error: FloatArray, deviation: FloatArray) -> Calibration:
        """Compare errors with the standard deviations predicted for them, (n,) each."""
        from scipy.special import ndtri

        z = np.abs(error) / deviation
        return cls(
            within_68=float(np.mean(z <= ndtri(0.5 + 0.68 / 2))),
            within_95=float(np.mean(z <= ndtri(0.5 + 0.95 / 2))),
            mean_z2=float(np.mean(z**2)),
            n=len(z),
        )


class Evaluation(Mapping[str, Errors]):
    """Errors by quantity; prints as a table.

    Parameters
    ----------
    errors : mapping of str to Errors
    skipped : mapping of str to str
        Labels that were not compared, with the reason.
    calibration : mapping of str to Calibration
        By quantity, where uncertainties were asked for.
    milliseconds : float, optional
        What predicting took for each atom, in time on the clock: the price of the errors.
    """

    def __init__(
        self,
        errors: Mapping[str, Errors],
        skipped: Mapping[str, str],
        calibration: Mapping[str, Calibration] | None = None,
        milliseconds: float | None = None,
    ) -> None:
        self._errors = dict(errors)
        self.milliseconds = milliseconds
        self.skipped = dict(skipped)
        self.calibration = dict(calibration or {})

    def __getitem__(self, key: str) -> Errors:
        return self._errors[key]

    def __iter__(self) -> Any:
        return iter(self._errors)

    def __len__(self) -> int:
        return len(self._errors)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain data: ``{"energy": {"rmse": …, "mae": …, "unit": "eV/atom", "n": …}, …}``."""
        result = {}
        for kind, error in self._errors.items():
            row = {"rmse": error.rmse, "mae": error.mae, "unit": error.unit, "n": error.n}
            if error.mae_norm is not None:
                row["mae_norm"] = error.mae_norm
            if kind in self.calibration:
                row["calibration"] = asdict(self.calibration[kind])
            result[kind] = row
        return result

    def __str__(self) -> str:
        lines = [f"{'quantity':<16}{'RMSE':>12}{'MAE':>12}  {'unit':<12}{'n':>8}"]
        for kind, error in self._errors.items():
            lines.append(f"{kind:<16}{error.rmse:12.5f}{error.mae:12.5f}  {error.unit:<12}{error.n:8d}")
            if error.mae_norm is not None:
                lines.append(f"{'  |' + kind + '|':<16}{'':12}{error.mae_norm:12.5f}  {error.unit:<12}")
        if self.calibration:
            lines.append(f"{'calibration':<16}{'in 68 %':>12}{'in 95 %':>12}  {'mean z²':<12}{'n':>8}")
        for kind, c in self.calibration.items():
            lines.append(
                f"{kind:<16}{100 * c.within_68:10.1f} %{100 * c.within_95:10.1f} %  {c.mean_z2:<12.3f}{c.n:8d}"
            )
        lines += [f"not compared: {kind} ({reason})" for kind, reason in self.skipped.items()]
        if self.milliseconds is not None:
            lines.append(f"predicted in {self.milliseconds:.3g} ms per atom")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Evaluation({', '.join(f'{k}: rmse {e.rmse:.4g} {e.unit}' for k, e in self._errors.items())})"


def compare(
    items: Iterable[tuple[Structure, Labels, Prediction]],
    skipped: Mapping[str, str],
    noise: Mapping[str, float] | None = None,
    milliseconds: Callable[[], float] | None = None,
) -> Evaluation:
    """Compare predictions with labels.

    Parameters
    ----------
    items : iterable of (Structure, Labels, Prediction)
    skipped : mapping of str to str
        Label kinds that must not be compared, with the reason.
    noise : mapping of str to float, optional
        Standard deviation of labels by kind; adds the calibration of those quantities that were predicted with
        an uncertainty.  A label scatters with its noise around the value, so the variances add.
    milliseconds : callable, optional
        What predictions took for each atom; called when ``items`` are used up.
    """
    deviations: dict[str, list[FloatArray]] = {}
    reference: dict[str, list[FloatArray]] = {}
    predicted: dict[str, list[FloatArray]] = {}
    compositions: list[tuple[tuple[int, int], ...]] = []
    sizes: list[float] = []
    left_out = dict(skipped)
    present: set[str] = set()
    for structure, labels, prediction in items:
        for kind in labels.kinds:
            present.add(kind)
            if kind in skipped:
                continue
            value = getattr(prediction, kind)
            directions = open_components(structure) if kind == "dipole" else None
            if value is None or (directions is not None and len(directions) == 0):
                left_out[kind] = "the model does not predict it for these structures"
                continue
            scale = 1.0 / len(structure) if kind == "energy" else 1.0
            if kind == "energy":
                numbers, counts = np.unique(structure.numbers, return_counts=True)
                compositions.append(tuple(zip(numbers.tolist(), counts.tolist(), strict=True)))
            label = getattr(labels, kind)
            std = getattr(prediction, f"{kind}_std", None)
            if directions is not None:
                label, value = directions @ label, directions @ value
                sizes.append(abs(float(np.linalg.norm(value) - np.linalg.norm(label))))
                # covariances of components are not known: exact for normals along an axis
                std = None if std is None else np.abs(directions) @ std
            reference.setdefault(kind, []).append(scale * np.ravel(label))
            predicted.setdefault(kind, []).append(scale * np.ravel(value))
            if noise is not None and std is not None:
                own = scale * standard_deviation(kind, noise, len(structure), labels.weight)
                deviations.setdefault(kind, []).append(np.hypot(scale * np.ravel(std), own))
    errors = {}
    for kind, unit in UNITS.items():
        if kind not in reference:
            continue
        y, p = np.concatenate(reference[kind]), np.concatenate(predicted[kind])
        norms = float(np.mean(sizes)) if kind == "dipole" else None
        errors[kind] = Errors(
            rmse=float(np.sqrt(np.mean((p - y) ** 2))),
            mae=float(np.mean(np.abs(p - y))),
            unit=unit,
            n=len(y),
            r2=_r2(y, p, kind, compositions),
            mae_norm=norms,
        )
    calibration = {
        kind: Calibration.of(
            np.concatenate(reference[kind]) - np.concatenate(predicted[kind]), np.concatenate(scatter)
        )
        for kind, scatter in deviations.items()
    }
    return Evaluation(
        errors,
        {k: v for k, v in left_out.items() if k in present},
        calibration,
        None if milliseconds is None else milliseconds(),
    )


def _r2(y: FloatArray, p: FloatArray, kind: str, compositions: list[tuple[tuple[int, int], ...]]) -> float:
    reference = np.zeros_like(y)
    if kind == "energy":
        for composition in set(compositions):
            same = np.array([c == composition for c in compositions])
            reference[same] = y[same].mean()
    elif kind != "forces":
        reference[:] = y.mean()
    spread = float(np.sum((y - reference) ** 2))
    error = float(np.sum((p - y) ** 2))
    if spread == 0.0:
        return 1.0 if error == 0.0 else 0.0
    return 1.0 - error / spread


__all__ = ["UNITS", "Calibration", "Errors", "Evaluation", "compare"]
