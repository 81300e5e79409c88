"""Figures.  Each function draws into an :class:`matplotlib.axes.Axes` that the caller owns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kqeq.errors import InputError
from kqeq.typing import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = ("o", "^", "s", "D", "v")


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


def _pair(name: str, reference: Any, predicted: Any) -> tuple[FloatArray, FloatArray]:
    x, y = np.asarray(reference, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if x.shape != y.shape or x.size == 0 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError(
            f"parity: series {name!r} has reference values of shape {x.shape} and predicted ones of shape {y.shape}; "
            "expected finite values of one shape"
        )
    return x.ravel(), y.ravel()


__all__ = ["parity"]
