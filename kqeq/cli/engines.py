"""The command ``kqeq ipi``: forces for a simulation program."""

from __future__ import annotations

import argparse
from typing import Any

from kqeq.cli.common import OK, ONE, add_conditions, add_model
from kqeq.cli.files import read_one
from kqeq.errors import InputError


def add_engines(commands: Any) -> None:
    """Add the parsers of these commands."""
    ipi = commands.add_parser(
        "ipi",
        help="compute forces for i-PI",
        description="Connect to a running i-PI and compute energies, forces and virials until it ends. Start the command "
        "several times to share the beads of a path integral.",
        epilog="Extras are JSON in atomic units: dipole (e·bohr), charges (e), energy_std (hartree).",
    )
    add_model(ipi)
    ipi.add_argument(
        "--template",
        required=True,
        metavar="START.xyz",
        help=f"atoms in i-PI's order, and which directions are periodic: {ONE}",
    )
    ipi.add_argument("--address", default="localhost", metavar="HOST", help="machine of i-PI (%(default)s)")
    where = ipi.add_mutually_exclusive_group()
    where.add_argument("--port", type=int, metavar="N", help="port (31415)")
    where.add_argument("--unix", metavar="NAME", help="UNIX socket on this machine instead: /tmp/ipi_NAME")
    add_conditions(ipi)
    ipi.add_argument(
        "--potential",
        type=float,
        metavar="U",
        help="instead of a total charge the potential dE/dQ, V; energies are then grand energies E - UQ",
    )
    ipi.add_argument(
        "--extras",
        metavar="NAMES",
        help="what is sent along, separated by commas: dipole, charges, energy_std, none (dipole and charges, where the "
        "model has them)",
    )
    ipi.add_argument(
        "--wait",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds to wait for i-PI to listen (%(default)g)",
    )
    ipi.set_defaults(run=_ipi)


def _ipi(arguments: argparse.Namespace) -> int:
    from kqeq.calculator import KQEqCalculator
    from kqeq.engines.ipi import serve
    from kqeq.model.estimator import load_model

    if arguments.potential is not None and arguments.charge is not None:
        raise InputError("--charge and --potential were given; at a given potential the total charge follows")
    model = load_model(arguments.model)
    atoms = read_one(
        arguments.template,
        "simulated",
        charge=arguments.charge,
        field=arguments.field,
        prefix=model.label_prefix,
    )
    extras = None
    if arguments.extras is not None:
        extras = [name for name in arguments.extras.split(",") if name and name != "none"]
    served = serve(
        KQEqCalculator(model, potential=arguments.potential),
        atoms,
        address=arguments.address,
        port=arguments.port,
        unix=arguments.unix,
        extras=extras,
        timeout=arguments.wait,
    )
    how = "i-PI ended" if served.farewell else "i-PI closed the connection"
    print(f"{served.evaluations} structures computed; {how}")
    return OK


__all__ = ["add_engines"]
