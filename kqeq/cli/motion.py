"""The commands ``kqeq optimize``: atoms that move."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from kqeq.cli.common import FAILED, OK, ONE, OUTPUT, add_conditions, add_model
from kqeq.cli.files import check_output, read_one, with_results, write_frames


def add_motion(commands: Any) -> None:
    """Add the parsers of these commands."""
    optimize = commands.add_parser(
        "optimize",
        help="optimise a geometry, also charged and in a field",
        description="Optimise a geometry. A charged molecule in a field feels a net force; its centre of mass is held.",
    )
    add_model(optimize)
    optimize.add_argument("structure", metavar="IN.xyz", help=ONE)
    optimize.add_argument("-o", "--output", required=True, metavar="OUT.xyz", help=OUTPUT)
    add_conditions(optimize)
    optimize.add_argument(
        "--fmax", type=float, default=0.01, metavar="F", help="largest force, eV/Å (%(default)s)"
    )
    optimize.set_defaults(run=_optimize)


def _optimize(arguments: argparse.Namespace) -> int:
    from kqeq.analysis.optimization import optimize
    from kqeq.model.estimator import load_model

    check_output(arguments.output)
    model = load_model(arguments.model)
    atoms = read_one(
        arguments.structure,
        "optimised",
        charge=arguments.charge,
        field=arguments.field,
        prefix=model.label_prefix,
    )
    print(f"{'step':>5} {'energy (eV)':>18} {'largest force (eV/Å)':>22}")
    result = optimize(
        model,
        atoms,
        fmax=arguments.fmax,
        observer=lambda step, energy, force: print(f"{step:5d} {energy:18.6f} {force:22.6f}", flush=True),
    )
    write_frames(arguments.output, [with_results(result.atoms, result.prediction, model.potential_)])
    if result.held_centre_of_mass:
        force = ", ".join(f"{component:g}" for component in result.net_force)
        print(
            f"the centre of mass was held: the field pulls on the total charge with the net force ({force}) eV/Å, "
            "which would move the whole system for ever"
        )
    if result.converged:
        print(f"converged after {result.steps} steps, written to {arguments.output}")
        return OK
    print(
        f"kqeq: NOT CONVERGED after {result.steps} steps: the largest force is {result.max_force:.4g} eV/Å, asked for "
        f"{arguments.fmax:g}; the last geometry was written to {arguments.output}, go on from there or raise --fmax",
        file=sys.stderr,
    )
    return FAILED


__all__ = ["add_motion"]
