"""The commands ``kqeq optimize | md | vibrations``: atoms that move."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kqeq.cli.common import (
    FAILED,
    OK,
    ONE,
    OUTPUT,
    add_conditions,
    add_device,
    add_json,
    add_model,
    add_plot,
    check_outputs,
)
from kqeq.cli.files import (
    append_frame,
    check_output,
    complete_frames,
    read_one,
    with_results,
    write_frames,
    write_json,
)
from kqeq.errors import ExtrapolationError, InputError

if TYPE_CHECKING:
    from ase import Atoms

TRAJECTORY = "also write every reported geometry: extended XYZ or .traj"
"""Help for trajectories."""

POTENTIAL = "instead of a total charge the potential dE/dQ, V; energies are then grand energies E - UQ"
"""Help for what is held at a potential."""

COLUMNS = {
    "step": "step",
    "time": "time (fs)",
    "potential_energy": "potential energy (eV)",
    "kinetic_energy": "kinetic energy (eV)",
    "total_energy": "total energy (eV)",
    "temperature": "temperature (K)",
    "pressure": "pressure (bar)",
    "volume": "volume (Å³)",
    "charge": "total charge (e)",
}
"""What a dynamics prints and logs."""


def add_motion(commands: Any) -> None:
    """Add the parsers of these commands."""
    optimize = commands.add_parser(
        "optimize",
        help="optimise a geometry, also charged and in a field",
        description="Optimise a geometry. A charged molecule in a field feels a net force; its centre of mass is held. "
        "The exit code is 1 if it does not converge.",
    )
    add_model(optimize)
    optimize.add_argument("structure", metavar="IN.xyz", help=ONE)
    optimize.add_argument("-o", "--output", required=True, metavar="OUT.xyz", help=OUTPUT)
    add_conditions(optimize)
    optimize.add_argument("--potential", type=float, metavar="U", help=POTENTIAL)
    optimize.add_argument(
        "--fmax", type=float, default=0.01, metavar="F", help="largest force, eV/Å (%(default)s)"
    )
    optimize.add_argument("--steps", type=int, metavar="N", help="give up after N steps (default 500)")
    optimize.add_argument("--cell", action="store_true", help="relax the cell as well")
    optimize.add_argument(
        "--pressure", type=float, default=0.0, metavar="P", help="that the cell is under, bar (%(default)s)"
    )
    optimize.add_argument("--trajectory", metavar="FILE", help=TRAJECTORY)
    optimize.add_argument("--quiet", action="store_true", help="print no steps")
    add_json(optimize, "where it ended")
    optimize.set_defaults(run=_optimize)

    md = commands.add_parser(
        "md",
        help="molecular dynamics, also charged and in a field",
        description="Molecular dynamics at constant energy (nve: velocity Verlet), temperature (nvt: Langevin) or "
        "temperature and pressure (npt: Martyna-Tobias-Klein). A charged molecule in a field feels a net force; its "
        "centre of mass is held.",
    )
    add_model(md)
    md.add_argument("structure", metavar="IN.xyz", help=f"{ONE}; momenta in it are kept")
    md.add_argument("-o", "--output", required=True, metavar="LAST.xyz", help=OUTPUT)
    add_conditions(md)
    md.add_argument("--potential", type=float, metavar="U", help=POTENTIAL)
    md.add_argument(
        "--ensemble", choices=("nvt", "nve", "npt"), default="nvt", help="what is kept constant (%(default)s)"
    )
    md.add_argument("--steps", type=int, default=1000, metavar="N", help="steps in all (%(default)s)")
    md.add_argument("--timestep", type=float, default=0.5, metavar="T", help="fs (%(default)s)")
    md.add_argument(
        "--temperature", type=float, default=300.0, metavar="T", help="K; also of new momenta (%(default)s)"
    )
    md.add_argument("--friction", type=float, default=0.01, metavar="G", help="of nvt, 1/fs (%(default)s)")
    md.add_argument("--pressure", type=float, default=1.0, metavar="P", help="of npt, bar (%(default)s)")
    md.add_argument("--free-cell", action="store_true", help="npt changes the shape of the cell as well")
    md.add_argument("--seed", type=int, default=0, metavar="N", help="of momenta and noise (%(default)s)")
    md.add_argument("--every", type=int, default=10, metavar="N", help="steps between reports (%(default)s)")
    md.add_argument("--trajectory", metavar="FILE", help=TRAJECTORY)
    md.add_argument("--log", metavar="FILE.csv", help="also write the numbers of every report")
    md.add_argument(
        "--restart",
        action="store_true",
        help="go on from the end of --trajectory if it is there, up to --steps in all; run the same command again",
    )
    md.add_argument(
        "--max-energy-std",
        type=float,
        metavar="S",
        help="stop where the standard deviation of the energy is larger, eV (needs fit --posterior)",
    )
    md.add_argument(
        "--max-distance",
        type=float,
        metavar="D",
        help="stop where an environment is farther from those of the fit, about 1 within the training data",
    )
    md.add_argument("--quiet", action="store_true", help="print no steps")
    add_json(md, "the reports")
    add_plot(md, "also draw energies and temperature")
    add_device(md)
    md.set_defaults(run=_md)

    vibrations = commands.add_parser(
        "vibrations",
        help="harmonic frequencies, infrared intensities, thermochemistry",
        description="Harmonic vibrations, with infrared intensities where the model has charges, and thermodynamic "
        "functions of an ideal gas (or of the vibrations alone). The geometry is relaxed first.",
    )
    add_model(vibrations)
    vibrations.add_argument("structure", metavar="GEOMETRY", help=ONE)
    add_conditions(vibrations)
    vibrations.add_argument(
        "--fmax", type=float, default=1e-3, metavar="F", help="relax to this force first, eV/Å (%(default)s)"
    )
    vibrations.add_argument("--no-relax", action="store_true", help="take the geometry as it is")
    vibrations.add_argument("--temperature", type=float, default=298.15, metavar="T", help="K (%(default)s)")
    vibrations.add_argument("--pressure", type=float, default=1.0, metavar="P", help="bar (%(default)s)")
    vibrations.add_argument(
        "--symmetry-number",
        type=int,
        default=1,
        metavar="N",
        help="rotations that leave the molecule as it is: 2 for water, 12 for methane (%(default)s)",
    )
    vibrations.add_argument("--spin", type=float, default=0.0, metavar="S", help="total spin (%(default)s)")
    vibrations.add_argument(
        "--thermo",
        choices=("ideal-gas", "harmonic"),
        help="default: ideal-gas for what is neither periodic nor partly fixed",
    )
    vibrations.add_argument(
        "--mode", type=int, metavar="N", help="number of a mode to write to --trajectory, from 0"
    )
    vibrations.add_argument("--trajectory", metavar="FILE", help="write one period of --mode")
    add_json(vibrations)
    add_plot(vibrations, "also draw the infrared spectrum")
    vibrations.set_defaults(run=_vibrations)


# --------------------------------------------------------------------- optimize


def _optimize(arguments: argparse.Namespace) -> int:
    from kqeq.analysis.optimization import optimize
    from kqeq.model.estimator import load_model

    check_output(arguments.output)
    check_outputs(arguments.json)
    if arguments.trajectory is not None:
        check_output(arguments.trajectory)
    _one_of_charge_and_potential(arguments)
    model = load_model(arguments.model)
    atoms = _read(arguments, model, "optimised")
    path: list[Atoms] = []

    def show(step: int, energy: float, force: float) -> None:
        if not arguments.quiet:
            print(f"{step:5d} {energy:18.6f} {force:22.6f}", flush=True)

    if not arguments.quiet:
        energy = "energy (eV)" if arguments.potential is None else "grand energy (eV)"
        print(f"{'step':>5} {energy:>18} {'largest force (eV/Å)':>22}")
    options: dict[str, Any] = {"cell": True, "pressure": arguments.pressure} if arguments.cell else {}
    if arguments.pressure and not arguments.cell:
        raise InputError(f"--pressure {arguments.pressure:g} acts on a cell that is relaxed; add --cell")
    result = optimize(
        model,
        atoms,
        potential=arguments.potential,
        fmax=arguments.fmax,
        **({} if arguments.steps is None else {"max_steps": arguments.steps}),
        observer=show,
        trajectory=path.append if arguments.trajectory is not None else None,
        **options,
    )
    write_frames(arguments.output, [with_results(result.atoms, result.prediction, model.potential_)])
    if arguments.trajectory is not None:
        write_frames(arguments.trajectory, path)
    if arguments.json is not None:
        write_json(arguments.json, result.to_dict())
    if result.held_centre_of_mass:
        print(_held(result.net_force))
    if result.potential is not None:
        print(f"total charge {result.prediction.total_charge:.6f} e at the potential {result.potential:g} V")
    if result.converged:
        print(f"converged after {result.steps} steps, written to {arguments.output}")
        return OK
    print(
        f"kqeq: NOT CONVERGED after {result.steps} steps: the largest force is {result.max_force:.4g} eV/Å, asked for "
        f"{arguments.fmax:g}; the last geometry was written to {arguments.output}, go on from there or raise --fmax",
        file=sys.stderr,
    )
    return FAILED


def _read(arguments: argparse.Namespace, model: Any, purpose: str) -> Atoms:
    return read_one(
        arguments.structure,
        purpose,
        charge=arguments.charge,
        field=arguments.field,
        prefix=model.label_prefix,
    )


def _one_of_charge_and_potential(arguments: argparse.Namespace) -> None:
    if arguments.potential is not None and arguments.charge is not None:
        raise InputError("--charge and --potential were given; at a given potential the total charge follows")


def _held(net_force: Any) -> str:
    force = ", ".join(f"{component:g}" for component in net_force)
    return (
        f"the centre of mass was held: the field pulls on the total charge with the net force ({force}) eV/Å, "
        "which would move the whole system for ever"
    )


# --------------------------------------------------------------------------- md


def _md(arguments: argparse.Namespace) -> int:
    from kqeq.analysis.dynamics import STEP_KEY, molecular_dynamics
    from kqeq.analysis.results import plain
    from kqeq.model.estimator import load_model

    check_output(arguments.output)
    check_outputs(arguments.json, arguments.log, arguments.plot)
    if arguments.trajectory is not None and check_output(arguments.trajectory) not in ("extxyz", "traj"):
        raise InputError(
            f"--trajectory {arguments.trajectory} is neither .xyz nor .traj, which frames can be added to one by one"
        )
    _one_of_charge_and_potential(arguments)
    if arguments.restart and arguments.trajectory is None:
        raise InputError("--restart goes on from the end of a trajectory; name it with --trajectory")
    model = load_model(arguments.model)
    atoms = _read(arguments, model, "set in motion")
    atoms.info.pop(STEP_KEY, None)
    begun = False
    if arguments.restart and Path(arguments.trajectory).exists():
        last = complete_frames(arguments.trajectory)[-1]
        if list(last.numbers) != list(atoms.numbers):
            raise InputError(
                f"the last frame of {arguments.trajectory} has other atoms than {arguments.structure}; remove the "
                "trajectory to start anew"
            )
        atoms.set_positions(last.positions, apply_constraint=False)
        atoms.set_cell(last.cell)
        atoms.set_momenta(last.get_momenta(), apply_constraint=False)
        atoms.info[STEP_KEY] = int(last.info.get(STEP_KEY, 0))
        begun = True
        print(f"going on from step {atoms.info[STEP_KEY]} of {arguments.trajectory}")
        if atoms.info[STEP_KEY] >= arguments.steps:
            print(f"nothing to do: the trajectory has {atoms.info[STEP_KEY]} of {arguments.steps} steps")
            return OK
    if not begun:
        for path in (arguments.trajectory, arguments.log):
            if path is not None:
                Path(path).unlink(missing_ok=True)
    first = atoms.info.get(STEP_KEY, 0) if begun else -1
    names: list[str] = []
    at_potential = arguments.potential is not None

    def show(frame: Atoms, row: dict[str, Any]) -> None:
        nonlocal names
        if not names:
            names = [name for name in COLUMNS if name in row and (name != "charge" or at_potential)]
            if not arguments.quiet:
                print("".join(f"{COLUMNS[name]:>22}" for name in names))
        if not arguments.quiet:
            print(f"{row['step']:>22d}" + "".join(f"{row[name]:22.6f}" for name in names[1:]), flush=True)
        if row["step"] <= first:
            return  # the trajectory has it already
        if arguments.trajectory is not None:
            append_frame(arguments.trajectory, frame)
        if arguments.log is not None:
            new = not Path(arguments.log).exists()
            with Path(arguments.log).open("a", encoding="utf-8") as log:
                if new:
                    print(",".join(COLUMNS[name] for name in names), file=log)
                print(",".join(repr(plain(row[name])) for name in names), file=log)

    try:
        end, dynamics = molecular_dynamics(
            model,
            atoms,
            steps=arguments.steps,
            ensemble=arguments.ensemble,
            timestep=arguments.timestep,
            temperature=arguments.temperature,
            friction=arguments.friction,
            pressure=arguments.pressure,
            free_cell=arguments.free_cell,
            seed=arguments.seed,
            every=arguments.every,
            observer=show,
            device=arguments.device,
            potential=arguments.potential,
            max_energy_std=arguments.max_energy_std,
            max_distance=arguments.max_distance,
        )
    except ExtrapolationError as error:
        if error.extrapolation is not None:
            write_frames(arguments.output, [error.extrapolation.atoms])
        print(f"kqeq: STOPPED: {error}; that geometry was written to {arguments.output}", file=sys.stderr)
        return FAILED
    write_frames(arguments.output, [end])
    if dynamics.held_centre_of_mass:
        print(_held(dynamics.total_charges[-1] * dynamics.external_field))
    mean = float(dynamics.temperatures.mean())
    print(f"{arguments.steps} steps of {arguments.timestep:g} fs, mean temperature {mean:.1f} K", end="")
    print(f", drift {dynamics.drift:.3g} meV/atom/ps" if arguments.ensemble == "nve" else "", end="")
    print(f"; last geometry written to {arguments.output}")
    if arguments.json is not None:
        write_json(arguments.json, dynamics.to_dict())
    if arguments.plot is not None:
        from kqeq.analysis import plots

        plots.save(arguments.plot, plots.dynamics_figure(dynamics))
    return OK


# ------------------------------------------------------------------- vibrations


def _vibrations(arguments: argparse.Namespace) -> int:
    from kqeq.analysis.thermochemistry import thermochemistry
    from kqeq.analysis.vibrations import Infrared, check_intensities, infrared, vibrations
    from kqeq.errors import UnsupportedError
    from kqeq.model.estimator import load_model

    check_outputs(arguments.json, arguments.plot)
    if (arguments.mode is None) != (arguments.trajectory is None):
        raise InputError("--mode and --trajectory go together: which mode to write, and where")
    if arguments.trajectory is not None:
        check_output(arguments.trajectory)
    model = load_model(arguments.model)
    atoms = _read(arguments, model, "studied")
    why = "" if model.potential_.has_charges else "the model has no charges"
    if not why and atoms.pbc.any():
        try:
            check_intensities(model, atoms)
        except UnsupportedError as error:
            why = str(error)
            print(f"kqeq: frequencies without infrared intensities: {why}", file=sys.stderr)
    if why and arguments.plot is not None:
        raise InputError(f"there is no infrared spectrum to draw: {why}; leave --plot out")
    question = vibrations if why else infrared
    found = question(model, atoms, relax=not arguments.no_relax, fmax=arguments.fmax)
    has_intensities = isinstance(found, Infrared)
    if arguments.mode is not None and not 0 <= arguments.mode < len(found.frequencies):
        raise InputError(
            f"--mode is {arguments.mode}; expected a number from 0 to {len(found.frequencies) - 1}"
        )
    thermo = thermochemistry(
        found,
        temperature=arguments.temperature,
        pressure=arguments.pressure,
        symmetry_number=arguments.symmetry_number,
        spin=arguments.spin,
        model=arguments.thermo,
    )
    print(f"largest force {found.max_force:.1e} eV/Å")
    print(f"{'mode':>5}{'cm⁻¹':>10}" + (f"{'km/mol':>10}" if has_intensities else ""))
    for number, frequency in enumerate(found.frequencies):
        shown = f"{frequency:10.1f}" if frequency >= 0 else f"{-frequency:9.1f}i"
        strength = f"{found.intensities[number]:10.1f}" if isinstance(found, Infrared) else ""
        print(f"{number:5d}{shown}{strength}")
    print("\n".join(_thermo_table(thermo)))
    if arguments.trajectory is not None:
        write_frames(arguments.trajectory, found.mode_frames(arguments.mode))
        print(f"one period of mode {arguments.mode} written to {arguments.trajectory}")
    if arguments.json is not None:
        write_json(arguments.json, {"vibrations": found.to_dict(), "thermochemistry": thermo.to_dict()})
    if arguments.plot is not None and isinstance(found, Infrared):
        from kqeq.analysis import plots

        plots.save(arguments.plot, plots.spectrum_figure(found))
    return OK


def _thermo_table(thermo: Any) -> list[str]:
    what = f"{thermo.geometry} ideal gas" if thermo.geometry else "vibrations alone"
    conditions = f"{thermo.temperature:g} K" + (f", {thermo.pressure:g} bar" if thermo.pressure else "")
    lines = ["", f"{what} at {conditions}"]
    rows = [
        ("energy of the minimum (eV)", thermo.potential_energy),
        ("zero-point energy (eV)", thermo.zero_point_energy),
        ("internal energy (eV)", thermo.internal_energy),
        ("enthalpy (eV)", thermo.enthalpy),
        ("entropy (eV/K)", thermo.entropy),
        ("Gibbs energy (eV)" if thermo.geometry else "Helmholtz energy (eV)", thermo.free_energy),
    ]
    lines += [f"  {name:<28}{value:16.6f}" for name, value in rows if value is not None]
    if thermo.imaginary:
        lines.append(f"  {thermo.imaginary} imaginary modes left away: the geometry is no minimum")
    return lines


__all__ = ["add_motion"]
