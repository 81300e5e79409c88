"""A client of i-PI: energies, forces and virials of a model over a socket, with dipole and charges as extras.

    kqeq ipi model.kqeq --template start.xyz --unix water

or :func:`serve` in Python.  i-PI moves the atoms (path integrals, thermostats, barostats, replica exchange); any number
of clients may share its beads.  The protocol is that of i-PI's sockets (Kapil et al. 2019, *Comput. Phys. Commun.* 236,
214): everything in atomic units, the virial is −V times the stress.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.socketio import IPIProtocol, SocketClosed

from kqeq.calculator import KQEqCalculator
from kqeq.errors import EngineError, InputError
from kqeq.typing import FloatArray

EXTRAS = ("dipole", "charges", "energy_std")
"""What may be sent along: dipole (e·bohr, about the origin), charges (e), standard deviation of the energy (hartree)."""

DEFAULT_PORT = 31415
"""Port that i-PI and its clients take where nothing is said."""

_RETRY = 0.1
"""Seconds between attempts to connect."""


@dataclass(frozen=True)
class Served:
    """How a client's work ended.

    Attributes
    ----------
    evaluations : int
        Structures that were computed.
    farewell : bool
        Whether i-PI said that it was done; otherwise it closed the connection.
    """

    evaluations: int
    farewell: bool


def serve(
    calculator: KQEqCalculator,
    template: Atoms,
    *,
    address: str = "localhost",
    port: int | None = None,
    unix: str | None = None,
    extras: Sequence[str] | None = None,
    timeout: float = 60.0,
    report: Callable[[int], None] | None = None,
) -> Served:
    """Connect to i-PI and compute what it asks for until it ends.

    Parameters
    ----------
    calculator : KQEqCalculator
        With total charge and field, as far as the template does not say them.  The field is meant in i-PI's frame.
    template : ase.Atoms
        The atoms in the order of i-PI's input, and which directions are periodic: i-PI sends neither.  Of its positions
        and cell, only the extent is looked at.
    address : str
        Host of i-PI.
    port : int, optional
        31415 by default.
    unix : str, optional
        Name of a UNIX socket on this machine instead: ``water`` stands for ``/tmp/ipi_water``, as in i-PI; a name with a
        slash is a path.
    extras : sequence of str, optional
        Of :data:`EXTRAS`, what is sent along with each answer; dipole and charges where the model has them by default.
    timeout : float
        Seconds to wait for i-PI to listen.
    report : function, optional
        Called with the number of evaluations after each.

    Returns
    -------
    Served

    Raises
    ------
    InputError
        For port and unix together, unknown extras, or anything that the calculator refuses.
    EngineError
        If nobody listens, another number of atoms comes, the cell changes along open directions, i-PI wraps the atoms of
        an isolated system into its cell, or the connection breaks amid a message.
    """
    if unix is not None and port is not None:
        raise InputError(
            f"both a port ({port}) and a UNIX socket ({unix}) were given; i-PI listens at one of them"
        )
    unknown = [name for name in extras or () if name not in EXTRAS]
    if unknown:
        raise InputError(f"unknown extras {unknown}; expected some of {', '.join(EXTRAS)}")
    answers = _Answers(calculator, template, None if extras is None else tuple(extras))
    answers.rehearse()
    connection = _connect(address, DEFAULT_PORT if port is None else port, unix, timeout)
    with connection:
        try:
            return _talk(IPIProtocol(connection), answers, report)
        except (ConnectionError, SocketClosed):
            raise EngineError(
                f"the connection to i-PI broke amid a message, after {answers.evaluations} evaluations; see i-PI's output"
            ) from None


def _connect(address: str, port: int, unix: str | None, timeout: float) -> socket.socket:
    """A connected socket; i-PI may still be starting."""
    if unix is not None:
        path = unix if "/" in unix else f"/tmp/ipi_{unix}"
        family, target, name = socket.AF_UNIX, path, f"the UNIX socket {path}"
    else:
        family, target, name = socket.AF_INET, (address, port), f"{address}, port {port}"  # type: ignore[assignment]
    end = time.monotonic() + timeout
    while True:
        connection = socket.socket(family)
        try:
            connection.connect(target)
        except socket.gaierror as error:
            connection.close()
            raise EngineError(
                f"there is no host {address!r} ({error}); expected the machine on which i-PI runs"
            ) from None
        except OSError as error:
            connection.close()
            if time.monotonic() > end:
                raise EngineError(
                    f"no i-PI listens at {name} ({error.strerror or error}), also not after {timeout:g} s; start i-PI "
                    "first, with the same address in <ffsocket>"
                ) from None
            time.sleep(_RETRY)
        else:
            return connection


def _talk(protocol: IPIProtocol, answers: _Answers, report: Callable[[int], None] | None) -> Served:
    """Answer until the end."""
    answer: _Answer | None = None
    while True:
        try:
            message = protocol.recvmsg()
        except (SocketClosed, ConnectionError):
            if answer is not None:
                raise
            return Served(answers.evaluations, farewell=False)
        if message == "EXIT":
            return Served(answers.evaluations, farewell=True)
        if message == "STATUS":
            protocol.sendmsg("READY" if answer is None else "HAVEDATA")
        elif message == "INIT":
            protocol.recvinit()
        elif message == "POSDATA":
            try:
                cell, _, positions = protocol.recvposdata()
            except AssertionError:
                raise EngineError(
                    "i-PI sent positions or a cell that are not finite: has the simulation blown up? Shorten the time "
                    "step"
                ) from None
            answer = answers.compute(cell, positions)
            if report is not None:
                report(answers.evaluations)
        elif message == "GETFORCE":
            if answer is None:
                raise EngineError(
                    "i-PI asked for forces before it sent positions; is this another program's server?"
                )
            extra = np.frombuffer(answer.extras.encode("ascii"), dtype=np.byte)
            protocol.sendforce(answer.energy, answer.forces, answer.virial, extra)
            answer = None
        else:
            raise EngineError(f"i-PI sent the message {message!r}, which this client does not know")


@dataclass(frozen=True, eq=False)
class _Answer:
    """Energy (eV), forces (N, 3) (eV/Å), virial (3, 3) (eV), and JSON."""

    energy: float
    forces: FloatArray
    virial: FloatArray
    extras: str


class _Answers:
    """Computes what is asked for, and checks that it is what the template stands for."""

    def __init__(self, calculator: KQEqCalculator, template: Atoms, extras: tuple[str, ...] | None) -> None:
        self._calculator, self._extras = calculator, extras
        self._atoms = template.copy()
        self._atoms.calc = calculator
        self._extent = np.ptp(template.positions, axis=0)
        self._open: FloatArray | None = None
        self.evaluations = 0

    def rehearse(self) -> None:
        """Compute the template once: what cannot work is refused before i-PI waits for it."""
        self._answer()
        if self._extras is None:
            found = self._calculator.results
            self._extras = tuple(name for name in ("dipole", "charges") if name in found)

    def compute(self, cell: FloatArray, positions: FloatArray) -> _Answer:
        """Energy and so on at positions (N, 3) and cell, both in Å."""
        atoms = self._atoms
        if len(positions) != len(atoms):
            raise EngineError(
                f"i-PI sent {len(positions)} atoms, and the template has {len(atoms)}; give the file with which i-PI was "
                "initialised, or one with the same atoms in the same order"
            )
        self._check_open(cell, positions)
        atoms.positions = positions
        atoms.cell[:] = cell if atoms.pbc.any() else 0.0
        self.evaluations += 1
        return self._answer()

    def _answer(self) -> _Answer:
        atoms = self._atoms
        forces = atoms.get_forces()
        virial = np.zeros((3, 3))
        if atoms.pbc.any():
            virial = -atoms.get_volume() * atoms.get_stress(voigt=False)
        extras: dict[str, Any] = {}
        for name in self._extras or ():
            if name == "energy_std":
                extras[name] = self._calculator.energy_std() / units.Ha
            elif name == "dipole":
                extras[name] = (atoms.get_dipole_moment() / units.Bohr).tolist()
            else:
                extras[name] = atoms.get_charges().tolist()
        return _Answer(atoms.get_potential_energy(), forces, virial, json.dumps(extras))

    def _check_open(self, cell: FloatArray, positions: FloatArray) -> None:
        """Along open directions the model has no cell: it may not change, and atoms may not be wrapped into it."""
        pbc = self._atoms.pbc
        if pbc.all():
            return
        vectors = cell[~pbc]
        if self._open is None:
            self._open = vectors
            grown = np.ptp(positions, axis=0) - self._extent
            lengths = np.abs(cell).max(axis=0)
            if not pbc.any() and (grown > 0.4 * lengths).any():
                raise EngineError(
                    f"the atoms that i-PI sent extend over {np.ptp(positions, axis=0).max():.3g} Å, those of the "
                    f"template over {self._extent.max():.3g} Å: i-PI wraps them into its cell, which breaks an isolated "
                    "system. Set pbc='False' in <ffsocket>, or make the template periodic (pbc=\"T T T\")"
                )
        elif np.abs(vectors - self._open).max() > 1e-6:
            raise EngineError(
                f"i-PI changed its cell along a direction in which the template is not periodic (pbc={pbc.tolist()}): "
                "there is no stress along it. Run at constant volume, or make the template periodic"
            )


__all__ = ["DEFAULT_PORT", "EXTRAS", "Served", "serve"]
