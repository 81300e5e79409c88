"""Electrodes: a capacitor with water in it, and an ion in front of a metal

**What is done.** Two square monolayers of aluminium, 9 Å apart, hold a water molecule between them. Their charge
follows from the difference of their
potentials U: it is where $E - UQ$ is lowest. The molecule is integrated over height and orientation with the weights
$\\exp(-\\beta(E - UQ))$ at 300 K, on a grid, so that averages have no sampling error. Nothing is fitted:
electronegativities are
numbers for each element, the metal is soft (0.5 eV/e²). What `KQEqCalculator(model, potentials=...,
electrodes=...)` does with a fitted model is the same.

**Capacitance.** The mean charge is a line in U, and its slope has two parts,

$$dQ/dU = \\beta\\langle\\delta Q^2\\rangle + \\langle(\\partial^2E/\\partial Q^2)^{-1}\\rangle.$$

The first is the known fluctuation formula. It is not all: charges that always sit at their minimum do not
fluctuate by themselves, and what they would do is the
second. Left: the sum (line) against differences of the mean charge (circles).

**Image charge.** Right: an ion of charge 1 above a slab of Al(111), three layers, in the middle of a cell so wide
that its lateral images, which are
taken out, are a small part at 4 Å. Its energy follows $-k_eq^2/4(d-d_0)$, d from the plane of the outermost
nuclei, with one $d_0$ for all.

**What does not work.** The metal's own atoms do not move, and no model was fitted to a real interface: see
`benchmarks/transfer.py` for frames from tight binding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import units
from ase.build import fcc100, fcc111, molecule
from scipy.optimize import least_squares

import example
from kqeq.charges import QEq
from kqeq.constants import COULOMB
from kqeq.frames.structures import Structure

HARDNESS = {"Al": 0.5, "Na": 5.0}  # eV/e²
CHI = {13: 4.0, 8: 8.5, 1: 4.5}  # eV/e
BETA = 1.0 / (units.kB * 300.0)


def capacitor(height: float, turn: float) -> Structure:
    """Two monolayers and a water molecule between them."""
    layer, water = fcc100("Al", (2, 2, 1), a=4.05), molecule("H2O")
    water.rotate(np.degrees(turn), "x", center="COM")
    water.positions += [*layer.positions[:, :2].mean(axis=0), height] - water.get_center_of_mass()
    cell = layer.cell.array.copy()
    cell[2] = [0, 0, 30.0]
    positions = np.vstack([layer.positions, layer.positions + np.array([0, 0, 9.0]), water.positions])
    return Structure(
        np.array([13] * 8 + list(water.numbers)),
        positions + np.array([0, 0, 8.0]),
        cell,
        np.array([True, True, False]),
        fragments=np.array([0] * 4 + [1] * 4 + [2] * 3),
        fragment_charges=np.zeros(3),
    )


def parabola(structure: Structure) -> tuple[float, float, float]:
    """E(Q) = energy + slope Q + ½ curvature Q² for a charge Q that moves from the left to the right electrode."""
    found = []
    for charge in (0.0, 1.0):
        own = Structure(**{**vars(structure), "fragment_charges": np.array([-charge, charge, 0.0])})
        chi = np.array([CHI[z] for z in own.numbers])
        state = QEq(fragments=True, hardness=HARDNESS).bind(own).solve(chi, np.zeros(3), 0.0)
        gradient = np.asarray(state.reference_gradient())
        found.append((state.energy, gradient[4:8].mean() - gradient[:4].mean()))
    return found[0][0], found[0][1], found[1][1] - found[0][1]


def wide_slab(size: int, distance: float) -> Structure:
    """Al(111) with an ion in front of it; neutral together."""
    slab = fcc111("Al", (size, size, 3), a=4.05)
    cell = slab.cell.array.copy()
    cell[2] = [0, 0, 60.0]
    ion = [*slab.positions[:, :2].mean(axis=0), slab.positions[:, 2].max() + distance]
    return Structure(
        np.append(slab.numbers, 11),
        np.vstack([slab.positions, ion]),
        cell,
        np.array([True, True, False]),
        fragments=np.append(np.zeros(len(slab), dtype=int), 1),
        fragment_charges=np.array([-1.0, 1.0]),
    )


def lateral_images(cell: np.ndarray, height: float, reach: int = 60) -> float:
    """Energy with the periodic images of the ion and of its mirror charge: a sum, and an integral beyond it."""
    i, j = np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1))
    r = np.linalg.norm(i.ravel()[:, None] * cell[0, :2] + j.ravel()[:, None] * cell[1, :2], axis=1)
    edge, area = 0.8 * reach * np.linalg.norm(cell[0]), abs(np.linalg.det(cell[:2, :2]))
    r = r[(r > 1e-6) & (r < edge)]
    beyond = np.pi / area * (np.hypot(edge, 2 * height) - edge)
    return COULOMB * (0.5 * np.sum(1 / r - 1 / np.hypot(r, 2 * height)) + beyond)


def main(argv: Sequence[str] | None = None) -> None:
    """Integrate, fit d0, draw."""
    options = example.options(__doc__, argv)
    heights = np.linspace(3.0, 6.0, 5 if options.quick else 13)
    turns = np.linspace(0, 2 * np.pi, 12 if options.quick else 48, endpoint=False)
    terms = np.array([parabola(capacitor(h, t)) for h in heights for t in turns])
    walls = np.repeat([sum(4 * np.exp(-3 * abs(h - z)) for z in (0, 9)) for h in heights], len(turns))
    energy, slope, curvature = terms.T

    def mean(potential: float) -> tuple[float, float, float]:
        """Charge, β times its variance, and mean softness."""
        charge = (potential - slope) / curvature
        grand = energy + walls - 0.5 * curvature * charge**2
        weights = np.exp(-BETA * (grand - grand.min()))
        centre = np.average(charge, weights=weights)
        variance = np.average((charge - centre) ** 2, weights=weights)
        return centre, BETA * variance, np.average(1 / curvature, weights=weights)

    potentials, step = np.linspace(-3, 3, 13), 0.02
    parts = np.array([mean(u) for u in potentials])
    differences = np.array([(mean(u + step)[0] - mean(u - step)[0]) / (2 * step) for u in potentials])
    both = parts[:, 1] + parts[:, 2]
    assert np.abs(differences / both - 1).max() < 1e-3

    size, distances = (5 if options.quick else 11), np.arange(4.0, 10.5, 1.0 if options.quick else 0.5)
    raw, cell = [], wide_slab(size, 4.0).cell
    for d in distances:
        structure = wide_slab(size, d)
        model = QEq(fragments=True, hardness=HARDNESS, solver="dense")
        raw.append(model.bind(structure).solve(np.zeros(len(structure)), np.zeros(3), 0.0).energy)

    def own(x: np.ndarray) -> np.ndarray:
        return np.array(raw) - x[0] - [lateral_images(cell, d - x[1]) for d in distances]

    def law(x: np.ndarray) -> np.ndarray:
        return -COULOMB / (4 * (distances - x[1]))

    x = least_squares(lambda x: own(x) - law(x), [raw[-1], 1.0]).x
    off = 100 * np.abs(own(x) / law(x) - 1).max()
    assert off < 5.0

    figure, axes = example.panels(2)
    axes[0].plot(potentials, both, color=example.COLOURS["QEq"], label="fluctuations + softness")
    axes[0].plot(potentials, parts[:, 2], "--", color=example.COLOURS["short-range"], label="softness alone")
    axes[0].plot(potentials, differences, "o", color=example.COLOURS["reference"], label="dQ/dU")
    axes[0].set(xlabel="potential difference (V)", ylabel="capacitance (e/V)", ylim=(0, None))
    axes[0].legend()
    axes[1].plot(distances, law(x), color=example.COLOURS["reference"], label="image charge")
    axes[1].plot(distances, own(x), "o", color=example.COLOURS["QEq"], label="QEq, soft metal")
    axes[1].set(xlabel="distance from the outermost nuclei (Å)", ylabel="energy of the ion (eV)")
    axes[1].legend()
    rows = [
        [f"{u:g}", f"{q:.4f}", f"{d:.5f}", f"{v:.5f}", f"{s:.5f}"]
        for u, (q, v, s), d in list(zip(potentials, parts, differences, strict=True))[::3]
    ]
    worst = 100 * np.abs(differences / both - 1).max()
    notes = (
        f"Capacitance: largest deviation of dQ/dU from the sum of its parts {worst:.1g} %. Ion in front of {size} x "
        f"{size} x 3 atoms: d0 = {x[1]:.2f} Å, largest deviation from the law {off:.1f} % from 4 to 10 Å."
    )
    header = ["U, V", "charge, e", "dQ/dU, e/V", "fluctuations, e/V", "softness, e/V"]
    example.finish(options, "11_electrodes", figure, header, rows, notes)


if __name__ == "__main__":
    main()
