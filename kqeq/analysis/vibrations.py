"""Vibrations in the harmonic approximation and the infrared spectrum.

The Hessian comes from central differences of forces, intensities from Born effective charges: the dipole changes along
a normal mode Q by ∂μ/∂Q = Σ_k Z*_k e_k/√m_k, and the integrated molar absorption coefficient is

    A = N_A / (12 ε0 c²) |∂μ/∂Q|²        (974.9 km/mol for 1 e²/u)

(Wilson, Decius & Cross, *Molecular Vibrations*, McGraw-Hill 1955).

Dimensions: N atoms, n modes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np
from ase import Atoms, units
from ase.constraints import FixAtoms

from kqeq.analysis.entry import conditions_of, fix, potential_of, read, require_charges
from kqeq.analysis.optimization import optimize
from kqeq.analysis.response import born_charges_at
from kqeq.analysis.results import Result
from kqeq.errors import InputError
from kqeq.potential.fixed_geometry import FixedGeometry
from kqeq.potential.potential import require_energy_model
from kqeq.typing import BoolArray, FloatArray, IntArray

STEP = 0.01
"""Displacement for the differences of forces, Å."""

INTENSITY: float = units._Nav / (12.0 * units._eps0 * units._c**2) * units._e**2 / units._amu / 1e3
"""Integrated absorption of a mode with |∂μ/∂Q|² = 1 e²/u, km/mol."""


@dataclass(frozen=True, eq=False)
class Vibrations(Result):
    """Harmonic vibrations.

    Attributes
    ----------
    frequencies : (n,) array
        Wavenumbers in ascending order, cm⁻¹; imaginary ones are negative.  Translations, and rotations of free
        molecules, are projected out.
    modes : (n, N, 3) array
        Normalised displacements e/√m in 1/√u.
    numbers : (N,) int array
    positions : (N, 3) array
        The geometry, Å.
    cell : (3, 3) array
    pbc : (3,) bool array
    masses : (N,) array
        u.
    free_atoms : int
        Atoms that move.
    total_charge : float
        e.
    external_field : (3,) array
        V/Å.
    energy : float
        eV.
    max_force : float
        Largest force on an atom that may move, with what the field does to the molecule as a whole taken off; eV/Å.
        Frequencies mean little where this is not small.
    zero_point_energy : float
        ½ Σ ħω over the real modes, eV.
    """

    frequencies: Annotated[FloatArray, "cm⁻¹"]
    modes: Annotated[FloatArray, "1/√u"]
    numbers: IntArray
    positions: Annotated[FloatArray, "Å"]
    cell: Annotated[FloatArray, "Å"]
    pbc: BoolArray
    masses: Annotated[FloatArray, "u"]
    free_atoms: int
    total_charge: Annotated[float, "e"]
    external_field: Annotated[FloatArray, "V/Å"]
    energy: Annotated[float, "eV"]
    max_force: Annotated[float, "eV/Å"]
    zero_point_energy: Annotated[float, "eV"]
    rows: ClassVar[str] = "frequencies"

    @property
    def atoms(self) -> Atoms:
        """The geometry."""
        return Atoms(self.numbers, self.positions, cell=self.cell, pbc=self.pbc)

    def mode_frames(self, mode: int, *, amplitude: float = 0.3, frames: int = 20) -> list[Atoms]:
        """One period of a mode, for programs that show trajectories.

        Parameters
        ----------
        mode : int
            Number of the mode, from zero.
        amplitude : float
            Largest displacement of an atom, Å.
        frames : int
        """
        shape = self.modes[mode]
        scale = amplitude / float(np.linalg.norm(shape, axis=1).max())
        found = []
        for phase in np.arange(frames) / frames:
            atoms = self.atoms
            atoms.positions += scale * np.sin(2.0 * np.pi * phase) * shape
            atoms.info.update(mode=int(mode), frequency=float(self.frequencies[mode]))
            found.append(atoms)
        return found


@dataclass(frozen=True, eq=False)
class Infrared(Vibrations):
    """Harmonic vibrations and their infrared intensities.

    Attributes
    ----------
    intensities : (n,) array
        km/mol.
    dipole_derivatives : (n, 3) array
        ∂μ/∂Q, e/√u.
    born_charges : (N, 3, 3) array
        ∂μ_a/∂r_kb, e.
    """

    intensities: Annotated[FloatArray, "km/mol"]
    dipole_derivatives: Annotated[FloatArray, "e/√u"]
    born_charges: Annotated[FloatArray, "e"]

    def spectrum(self, wavenumbers: Any = None, *, width: float = 10.0) -> tuple[FloatArray, FloatArray]:
        """Broadened spectrum.

        Parameters
        ----------
        wavenumbers : (K,) array-like, optional
            cm⁻¹; by default 0 to 400 above the highest mode, in steps of a tenth of the width.
        width : float
            Full width at half maximum of the Lorentzian of each mode, cm⁻¹.

        Returns
        -------
        wavenumbers, absorption : (K,) arrays
            cm⁻¹ and km/mol per cm⁻¹; the area under each line is its intensity.

        Raises
        ------
        InputError
            For a width that is not positive.
        """
        if not (np.isfinite(width) and width > 0.0):
            raise InputError(f"width is {width!r}; expected a positive number of cm⁻¹")
        if wavenumbers is None:
            end = max(1000.0, float(self.frequencies.max(initial=0.0)) + 400.0)
            wavenumbers = np.arange(0.0, end, 0.1 * width)
        x = np.asarray(wavenumbers, dtype=np.float64)
        real = self.frequencies > 0.0
        half = 0.5 * width
        distance = x[:, None] - self.frequencies[None, real]
        lines = half / np.pi / (distance**2 + half**2)
        return x, np.asarray(lines @ self.intensities[real])


def hessian(
    model: Any, atoms: Atoms, *, total_charge: Any = None, external_field: Any = None, step: float = STEP
) -> FloatArray:
    """Second derivatives of the energy by central differences of the forces, in batches.

    Parameters
    ----------
    model : KQEq
        Fitted to energies or forces.
    atoms : ase.Atoms
    total_charge, external_field : optional
        e, V/Å.
    step : float
        Displacement, Å.

    Returns
    -------
    (3N, 3N) array
        ∂²E/∂r∂r, symmetric, eV/Å².

    Raises
    ------
    InputError, UnsupportedError, ModelNotFittedError
    """
    potential = potential_of(model)
    require_energy_model(potential)
    if not (np.isfinite(step) and 0.0 < step < 0.5):
        raise InputError(f"step is {step!r}; expected a displacement in Å between 0 and 0.5")
    structure = read(model, atoms, total_charge, external_field)
    size = 3 * len(structure)
    moved = []
    for coordinate in range(size):
        for sign in (1.0, -1.0):
            positions = structure.positions.copy()
            positions.flat[coordinate] += sign * step
            moved.append(replace(structure, positions=positions))
    forces = []
    for prediction in potential.predict_many(moved, ("forces",)):
        assert prediction.forces is not None
        forces.append(prediction.forces.ravel())
    pairs = np.array(forces).reshape(size, 2, size)
    matrix = -(pairs[:, 0] - pairs[:, 1]) / (2.0 * step)
    return np.asarray(0.5 * (matrix + matrix.T))


def vibrations(
    model: Any,
    atoms: Atoms,
    *,
    total_charge: Any = None,
    external_field: Any = None,
    relax: bool = True,
    fmax: float = 1e-3,
    step: float = STEP,
) -> Vibrations:
    """Harmonic frequencies.

    Parameters
    ----------
    model : KQEq
        Fitted to energies or forces.
    atoms : ase.Atoms
        Atoms that :class:`ase.constraints.FixAtoms` holds do not vibrate.
    total_charge, external_field : optional
        e, V/Å; otherwise from ``atoms.info``.
    relax : bool
        Optimise the geometry first (to ``fmax``, eV/Å); otherwise it should be a minimum of this model already.
    fmax : float
    step : float
        Displacement for the Hessian, Å.

    Returns
    -------
    Vibrations

    Raises
    ------
    InputError, UnsupportedError, ModelNotFittedError
        Also if the optimisation does not converge.
    """
    return Vibrations(**_vibrate(model, atoms, total_charge, external_field, relax, fmax, step)[0])


def infrared(
    model: Any,
    atoms: Atoms,
    *,
    total_charge: Any = None,
    external_field: Any = None,
    relax: bool = True,
    fmax: float = 1e-3,
    step: float = STEP,
) -> Infrared:
    """Harmonic frequencies and infrared intensities.

    Parameters
    ----------
    model : KQEq
        With charges, fitted to energies or forces.
    atoms, total_charge, external_field, relax, fmax, step :
        As of :func:`vibrations`.

    Returns
    -------
    Infrared

    Raises
    ------
    InputError, UnsupportedError, ModelNotFittedError
        As :func:`vibrations`.
    """
    require_charges(potential_of(model), "infrared intensities")
    check_intensities(model, atoms, total_charge=total_charge, external_field=external_field)
    found, geometry = _vibrate(model, atoms, total_charge, external_field, relax, fmax, step)
    born = born_charges_at(geometry)
    slopes = np.einsum("kab,nkb->na", born.tensors, found["modes"])
    return Infrared(
        **found,
        intensities=INTENSITY * np.sum(slopes**2, axis=1),
        dipole_derivatives=slopes,
        born_charges=born.tensors,
    )


def check_intensities(
    model: Any, atoms: Any, *, total_charge: Any = None, external_field: Any = None
) -> None:
    """Refuse geometries whose infrared intensities are not defined, before anything is relaxed.

    Parameters
    ----------
    model, atoms, total_charge, external_field
        As of :func:`vibrations`.

    Raises
    ------
    UnsupportedError
        Where the charge model has no response to a field in some direction: along periodic directions, for most.
    """
    structure = read(model, atoms, total_charge, external_field)
    for direction in np.eye(3):
        potential_of(model).check(
            structure.under(structure.total_charge, structure.external_field + direction)
        )


def _vibrate(
    model: Any, atoms: Atoms, total_charge: Any, external_field: Any, relax: bool, fmax: float, step: float
) -> tuple[dict[str, Any], FixedGeometry]:
    """The fields of :class:`Vibrations`, and the geometry that they belong to."""
    require_energy_model(potential_of(model))
    charge, field = conditions_of(model, atoms, total_charge, external_field)
    constraints = atoms.constraints
    if relax:
        found = optimize(model, atoms, total_charge=charge, external_field=field, fmax=fmax)
        if not found.converged:
            raise InputError(
                f"the geometry did not relax to {fmax:g} eV/Å in {found.steps} steps (largest force "
                f"{found.max_force:.3g}); start closer to a minimum, raise fmax, or pass relax=False"
            )
        atoms = found.atoms
    geometry = fix(model, atoms, charge, field)
    prediction = geometry.predict(("forces",))
    forces = prediction.forces
    assert forces is not None
    matrix = hessian(model, atoms, total_charge=charge, external_field=field, step=step)

    masses = atoms.get_masses()
    free = np.ones(len(atoms), dtype=bool)
    for constraint in constraints:
        if isinstance(constraint, FixAtoms):
            free[constraint.index] = False
    frequencies, modes = _normal_modes(matrix, atoms, masses, free, field)
    if free.all():
        forces = forces - np.outer(masses / masses.sum(), charge * field)
    energies = frequencies[frequencies > 0.0] * units.invcm
    structure = geometry.structure
    return {
        "frequencies": frequencies,
        "modes": modes,
        "numbers": structure.numbers,
        "positions": structure.positions,
        "cell": structure.cell,
        "pbc": structure.pbc,
        "masses": masses,
        "free_atoms": int(free.sum()),
        "total_charge": charge,
        "external_field": field,
        "energy": float(prediction.energy),
        "max_force": float(np.linalg.norm(forces[free], axis=1).max()),
        "zero_point_energy": 0.5 * float(energies.sum()),
    }, geometry


def _normal_modes(
    matrix: FloatArray, atoms: Atoms, masses: FloatArray, free: BoolArray, field: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Wavenumbers (n,) and displacements e/√m (n, N, 3)."""
    root = np.sqrt(np.repeat(masses, 3))
    moving = np.repeat(free, 3)
    weighted = (matrix / np.outer(root, root))[np.ix_(moving, moving)]
    # without the vectors of motion as a whole, the rest of space
    whole = _rigid_motions(atoms, masses, rotations=not atoms.pbc.any() and not field.any())
    keep = np.eye(int(moving.sum()))
    if free.all():
        left, singular, _ = np.linalg.svd(whole, full_matrices=True)
        keep = left[:, int((singular > 1e-6 * singular[0]).sum()) :]
    values, vectors = np.linalg.eigh(keep.T @ weighted @ keep)
    modes = np.zeros((len(values), 3 * len(atoms)))
    modes[:, moving] = (keep @ vectors).T / root[moving]
    # eV/(Å²·u) to energies in eV: ASE's unit of time is Å √(u/eV)
    energies = units._hbar * units.J * units.s * np.sqrt(np.abs(values)) * np.sign(values)
    return energies / units.invcm, modes.reshape(-1, len(atoms), 3)


def _rigid_motions(atoms: Atoms, masses: FloatArray, *, rotations: bool) -> FloatArray:
    """Translations and rotations in mass-weighted coordinates, (3N, 3 or 6)."""
    root = np.sqrt(masses)[:, None]
    arms = atoms.positions - masses @ atoms.positions / masses.sum()
    columns = [np.broadcast_to(axis, arms.shape) * root for axis in np.eye(3)]
    if rotations:
        columns += [np.cross(axis, arms) * root for axis in np.eye(3)]
    return np.stack([column.ravel() for column in columns], axis=1)


__all__ = [
    "INTENSITY",
    "STEP",
    "Infrared",
    "Vibrations",
    "check_intensities",
    "hessian",
    "infrared",
    "vibrations",
]
