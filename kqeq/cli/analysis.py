"""The commands ``kqeq respond | diagnose | check | view``: questions to a fitted model."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kqeq.cli.common import FAILED, OK, ONE, add_conditions, add_json, add_model, add_plot, check_outputs
from kqeq.cli.files import FRAMES, read_frames, read_one, write_json

if TYPE_CHECKING:
    from kqeq.analysis import Infrared, Ionization

STRONGEST_FIELD = 1.0
"""Strength up to which ``kqeq respond`` scans, V/Å."""


def add_analysis(commands: Any) -> None:
    """Add the parsers of the three commands."""
    respond = commands.add_parser(
        "respond",
        help="what charge and field do to one geometry",
        description="Charges, dipole, polarizability, Born charges, Fukui functions, ionization energy and electron "
        "affinity of one geometry, and what a field does to it.",
    )
    add_model(respond)
    respond.add_argument("structure", metavar="GEOMETRY", help=ONE)
    add_conditions(respond)
    respond.add_argument(
        "--direction",
        type=float,
        nargs=3,
        metavar=("X", "Y", "Z"),
        help="direction of the fields that are scanned (default: along the largest polarizability)",
    )
    respond.add_argument(
        "--infrared", action="store_true", help="also the infrared spectrum; relaxes the geometry first"
    )
    respond.add_argument(
        "--cube", metavar="FILE.cube", help="also write the electrostatic potential on a grid"
    )
    respond.add_argument(
        "--born",
        metavar="BORN",
        help="also write Born charges and the dielectric tensor of a crystal for phonopy (needs kqeq[phonopy])",
    )
    add_json(respond)
    add_plot(respond)
    respond.set_defaults(run=_respond)

    diagnose = commands.add_parser(
        "diagnose",
        help="known failures of charge models, and what repairs them",
        description="Look for over-polarisation, charge leakage, charges outside physical ranges and extrapolation, "
        "and, in slabs with a metal, for charge that crosses between phases and a metal that is none; say what to switch "
        "on.",
    )
    add_model(diagnose)
    diagnose.add_argument(
        "structure", nargs="?", metavar="GEOMETRY", help="a structure of the kind that the model is meant for"
    )
    add_conditions(diagnose)
    add_json(diagnose)
    add_plot(diagnose)
    diagnose.set_defaults(run=_diagnose)

    check = commands.add_parser(
        "check",
        help="whether the numbers of a model agree with each other",
        description="Forces and dipoles against finite differences of the energy, sum rules, invariances and a short "
        "dynamics at constant energy. The exit code is 1 if a check fails.",
    )
    add_model(check)
    check.add_argument("frames", metavar="FRAMES", help=FRAMES)
    check.add_argument(
        "--steps", type=int, metavar="N", help="steps of dynamics, 0.5 fs each (default 400; 0: none)"
    )
    check.add_argument(
        "--max-frames", type=int, metavar="N", help="look at N evenly spaced frames (default 10)"
    )
    add_json(check)
    add_plot(check)
    check.set_defaults(run=_check)

    view = commands.add_parser(
        "view",
        help="structures with charges, dipoles and errors in a browser",
        description="Write frames with what a model says about them for the chemiscope viewer: one page of HTML that "
        "needs no network (.html), or a file that chemiscope.org and Jupyter open (.json, .json.gz). Needs kqeq[view].",
    )
    add_model(view)
    view.add_argument("frames", nargs="+", metavar="FRAMES", help=FRAMES)
    view.add_argument("-o", "--output", required=True, metavar="VIEW.html", help="file to write")
    view.add_argument("--title", metavar="TEXT", help="title (default: the name of the file)")
    view.set_defaults(run=_view)


# --------------------------------------------------------------------- commands


def _respond(arguments: argparse.Namespace) -> int:
    import numpy as np

    from kqeq import analysis
    from kqeq.analysis.entry import formula
    from kqeq.errors import KQEqError, UndeterminedWarning
    from kqeq.model.estimator import load_model

    check_outputs(arguments.json, arguments.plot, arguments.cube, arguments.born)
    model = load_model(arguments.model)
    atoms = _read_one(arguments, model)
    results: dict[str, Any] = {}
    skipped = []

    def ask(name: str, question: Any, **options: Any) -> Any:
        try:
            results[name] = question(model, atoms, **options)
        except KQEqError as error:
            skipped.append(f"{name.replace('_', ' ')}: {error}")
        return results.get(name)

    prediction = model.predict(atoms)
    polarizability = ask("polarizability", analysis.polarizability)
    ask("born_charges", analysis.born_charges)
    ask("charge_response", analysis.charge_response)
    if model.potential_.has_energy:
        charge = prediction.total_charge
        with warnings.catch_warnings():
            # the table says where the prior decides
            warnings.simplefilter("ignore", UndeterminedWarning)
            ask("ionization", analysis.ionization)
            ask("charge_scan", analysis.charge_scan, charges=(charge - 1.0, charge, charge + 1.0))
    direction = arguments.direction
    if direction is None:
        direction = (0.0, 0.0, 1.0)
        if polarizability is not None:
            direction = np.linalg.eigh(polarizability.total)[1][:, -1]
            direction = direction * np.sign(direction[np.argmax(np.abs(direction))])
    strengths = np.linspace(-STRONGEST_FIELD, STRONGEST_FIELD, 21)
    ask("field_scan", analysis.field_scan, strengths=strengths, direction=direction)
    if arguments.infrared:
        ask("infrared", analysis.infrared)

    print(f"{formula(atoms)} at charge {prediction.total_charge:g} e", end="")
    print(
        f" in the field {_vector(prediction.external_field)} V/Å" if prediction.external_field.any() else ""
    )
    print("\n".join(_summary(prediction, results, model.potential_.has_energy)))
    print("\n".join(_atom_table(atoms, prediction, results)))
    if "field_scan" in results:
        print("\n".join(_field_table(results["field_scan"])))
    if "infrared" in results:
        print("\n".join(_infrared_table(results["infrared"])))
    for line in skipped:
        print(f"not available: {line}")
    if arguments.cube is not None:
        analysis.potential_grid(model, atoms).to_cube(arguments.cube)
        print(f"electrostatic potential (V) written to {arguments.cube}")
    if arguments.born is not None:
        found = analysis.write_born(arguments.born, model, atoms)
        diagonal = ", ".join(f"{value:.3f}" for value in np.linalg.eigvalsh(found.dielectric))
        print(f"Born charges and dielectric tensor (eigenvalues {diagonal}) written to {arguments.born}")
    if arguments.json is not None:
        write_json(arguments.json, {name: result.to_dict() for name, result in results.items()})
    if arguments.plot is not None:
        from kqeq.analysis import plots

        plots.save(arguments.plot, plots.response_figure(formula(atoms), results))
    return OK


def _read_one(arguments: argparse.Namespace, model: Any) -> Any:
    return read_one(
        arguments.structure,
        "studied",
        charge=arguments.charge,
        field=arguments.field,
        prefix=model.label_prefix,
    )


def _diagnose(arguments: argparse.Namespace) -> int:
    from kqeq.analysis import diagnose
    from kqeq.model.estimator import load_model

    check_outputs(arguments.json, arguments.plot)
    model = load_model(arguments.model)
    atoms = None
    if arguments.structure is not None:
        atoms = _read_one(arguments, model)
    diagnosis = diagnose(model, atoms, total_charge=arguments.charge, external_field=arguments.field)
    print(diagnosis)
    if arguments.json is not None:
        write_json(arguments.json, diagnosis.to_dict())
    if arguments.plot is not None:
        from kqeq.analysis import plots

        plots.save(arguments.plot, plots.diagnosis_figure(diagnosis))
    return OK


def _check(arguments: argparse.Namespace) -> int:
    from kqeq.analysis import check_consistency
    from kqeq.model.estimator import load_model

    check_outputs(arguments.json, arguments.plot)
    model = load_model(arguments.model)
    frames = read_frames([arguments.frames])
    options = {
        name: value
        for name, value in (("steps", arguments.steps), ("max_frames", arguments.max_frames))
        if value is not None
    }
    result = check_consistency(model, frames, **options)
    print(result)
    if arguments.json is not None:
        write_json(arguments.json, {"passed": result.passed, **result.to_dict()})
    if arguments.plot is not None:
        from kqeq.analysis import plots

        plots.save(arguments.plot, plots.consistency_figure(result))
    return OK if result.passed else FAILED


def _view(arguments: argparse.Namespace) -> int:
    from kqeq.analysis.view import check_ending, write_view
    from kqeq.model.estimator import load_model

    check_ending(arguments.output)
    check_outputs(arguments.output)
    model = load_model(arguments.model)
    frames = read_frames(arguments.frames)
    write_view(arguments.output, model, frames, name=arguments.title)
    print(f"{len(frames)} frames written to {arguments.output}")
    return OK


# ----------------------------------------------------------------------- tables


def _vector(values: Any, decimals: int = 3) -> str:
    return "(" + ", ".join(f"{value:.{decimals}f}" for value in values) + ")"


def _summary(prediction: Any, results: dict[str, Any], has_energy: bool) -> list[str]:
    import numpy as np

    lines = []

    def add(name: str, value: str) -> None:
        lines.append(f"  {name:<34} {value}")

    if has_energy:
        add("energy (eV)", f"{prediction.energy:.6f}")
    if prediction.dipole is not None:
        size = float(np.linalg.norm(prediction.dipole))
        origin = " about the origin" if prediction.total_charge else ""
        add("dipole (e·Å)", f"{_vector(prediction.dipole)}, |μ| = {size:.3f}{origin}")
    found = results.get("polarizability")
    if found is not None:
        eigenvalues = np.linalg.eigvalsh(found.volume)
        add(
            "polarizability (Å³)",
            f"mean {found.isotropic:.3f}, eigenvalues {', '.join(f'{abs(v):.3f}' for v in eigenvalues)}",
        )
    found = results.get("born_charges")
    if found is not None:
        add("Born charges: sum rule", f"violated by {found.sum_rule_error:.1e} e")
    found = results.get("charge_response")
    if found is not None:
        unsure = "" if found.determined else _set_by_prior(found.chemical_potential_std)
        add("dE/dQ (eV/e)", f"{found.chemical_potential:.3f}{unsure}")
        add("d²E/dQ² (eV/e²)", f"{found.hardness:.3f}")
    states: Ionization | None = results.get("ionization")
    if states is not None:
        unsure = "" if states.determined else _set_by_prior(states.difference_std)
        add("vertical ionization energy (eV)", f"{states.vertical_ionization_energy:.3f}{unsure}")
        add("vertical electron affinity (eV)", f"{states.vertical_electron_affinity:.3f}{unsure}")
    return lines


def _set_by_prior(std: float | None) -> str:
    return "  (set by the prior)" if std is None else f"  ± {std:.2g} (set by the prior)"


def _atom_table(atoms: Any, prediction: Any, results: dict[str, Any]) -> list[str]:
    import numpy as np

    from kqeq.constants import COULOMB

    columns: dict[str, Sequence[float]] = {}
    if prediction.charges is not None:
        columns["charge"] = prediction.charges
    if "charge_response" in results:
        columns["Fukui"] = results["charge_response"].fukui
    if "born_charges" in results:
        columns["Born"] = results["born_charges"].isotropic
    found = results.get("polarizability")
    if found is not None and found.atomic is not None:
        columns["α (Å³)"] = COULOMB * np.trace(found.atomic, axis1=1, axis2=2) / 3.0
    if not columns:
        return []
    lines = ["", "  atom " + "".join(f"{name:>10}" for name in columns)]
    for i, symbol in enumerate(atoms.get_chemical_symbols()):
        lines.append(f"  {i:>3} {symbol:<2}" + "".join(f"{values[i]:10.3f}" for values in columns.values()))
    return lines


def _field_table(scan: Any) -> list[str]:
    import numpy as np

    middle = int(np.argmin(np.abs(scan.strengths)))
    lines = [
        "",
        f"  field along {_vector(scan.direction)}",
        f"  {'V/Å':>6}{'E - E(0) (eV)':>15}{'dipole along it (e·Å)':>24}{'change of forces (eV/Å)':>26}",
    ]
    for k in range(0, len(scan.strengths), 4):
        along = float(scan.dipoles[k] @ scan.direction)
        lines.append(
            f"  {scan.strengths[k]:+6.2f}{scan.energies[k] - scan.energies[middle]:15.4f}{along:24.4f}"
            f"{scan.largest_force_change[k]:26.4f}"
        )
    return lines


def _infrared_table(found: Infrared) -> list[str]:
    lines = ["", f"  infrared (largest force {found.max_force:.1e} eV/Å)", f"  {'cm⁻¹':>8}{'km/mol':>10}"]
    for frequency, intensity in zip(found.frequencies, found.intensities, strict=True):
        shown = f"{frequency:8.1f}" if frequency >= 0 else f"{-frequency:7.1f}i"
        lines.append(f"  {shown}{intensity:10.1f}")
    return lines


__all__ = ["add_analysis"]
