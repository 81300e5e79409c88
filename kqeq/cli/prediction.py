"""The commands ``kqeq evaluate | predict | info``: a model and frames."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from kqeq.cli.common import (
    OK,
    OUTPUT,
    add_conditions,
    add_device,
    add_json,
    add_model,
    add_plot,
    check_outputs,
)
from kqeq.cli.files import FRAMES, check_output, read_frames, with_results, write_frames, write_json

if TYPE_CHECKING:
    from ase import Atoms

    from kqeq.analysis import FrameErrors
    from kqeq.fitting.metrics import Evaluation
    from kqeq.model.estimator import KQEq
    from kqeq.potential.prediction import Prediction


def add_prediction(commands: Any) -> None:
    """Add the parsers of these commands."""
    evaluate = commands.add_parser(
        "evaluate",
        help="compare a model with labelled frames",
        description="Print the errors of a model on labelled frames: over all of them, by total charge, composition and "
        "config_type, and the worst frames.",
    )
    add_model(evaluate)
    evaluate.add_argument("frames", nargs="+", metavar="FRAMES", help=FRAMES)
    evaluate.add_argument(
        "--by",
        action="append",
        default=[],
        metavar="NAME",
        help="also by this entry of atoms.info; may be repeated",
    )
    evaluate.add_argument(
        "--worst", type=int, default=5, metavar="N", help="name the N worst frames (%(default)s; 0: none)"
    )
    evaluate.add_argument(
        "--calibration",
        action="store_true",
        help="also whether errors are as large as the predicted uncertainties (needs fit --posterior)",
    )
    evaluate.add_argument(
        "--frames", dest="table", metavar="OUT.csv", help="also write one row for every frame"
    )
    evaluate.add_argument(
        "--groups",
        metavar="OUT.json",
        help="also write the errors by charge, composition, config_type as JSON",
    )
    add_json(evaluate, "the errors")
    add_plot(evaluate, "also draw predictions against labels")
    add_device(evaluate)
    evaluate.set_defaults(run=_evaluate)

    predict = commands.add_parser(
        "predict",
        help="predict frames, write them with the results or print a table",
        description="Predict frames; charge and field are taken from each frame unless they are given. Labels that are "
        "in the way of predictions are kept under REF_ names. Without -o a table is printed.",
    )
    add_model(predict)
    predict.add_argument("frames", nargs="+", metavar="FRAMES", help=FRAMES)
    predict.add_argument("-o", "--output", metavar="OUT.xyz", help=OUTPUT)
    add_conditions(predict)
    predict.add_argument(
        "--potential",
        type=float,
        metavar="U",
        help="hold every frame at the potential U = dE/dQ in V instead of a total charge, which follows (the higher, the "
        "more positive); not for slabs, which have no potential of their own",
    )
    predict.add_argument(
        "--uncertainty",
        action="store_true",
        help="also standard deviations, as energy_std, forces_std, charges_std and dipole_std (needs fit --posterior)",
    )
    add_json(predict, "what is predicted")
    add_device(predict)
    predict.set_defaults(run=_predict)

    info = commands.add_parser(
        "info",
        help="what a model file holds",
        description="Elements, charge states, labels and settings of a fit, its errors, what its data determine, and "
        "what a prediction costs.",
    )
    add_model(info)
    info.add_argument("--report", action="store_true", help="also the whole report of the fit")
    add_json(info, "all of it")
    info.set_defaults(run=_info)


def _evaluate(arguments: argparse.Namespace) -> int:
    from kqeq.analysis import frame_errors
    from kqeq.errors import InputError
    from kqeq.model.estimator import load_model

    check_outputs(arguments.json, arguments.table, arguments.groups, arguments.plot)
    if arguments.worst < 0:
        raise InputError(f"--worst is {arguments.worst}; expected a whole number of at least 0")
    model = load_model(arguments.model)
    frames = read_frames(arguments.frames)
    errors = frame_errors(
        model, frames, by=arguments.by, calibration=arguments.calibration, device=arguments.device
    )
    print(errors.evaluation)
    for by in errors.names:
        groups = errors.groups(by)
        if len(groups) > 1:
            print("\n".join(_groups(by, groups)))
    if arguments.worst and len(errors.evaluation):
        print("\n".join(_worst(errors, arguments.worst)))
    if arguments.json is not None:
        write_json(arguments.json, errors.evaluation.to_dict())
    if arguments.groups is not None:
        write_json(arguments.groups, errors.to_dict()["groups"])
    if arguments.table is not None:
        errors.to_csv(arguments.table)
    if arguments.plot is not None:
        from kqeq.analysis import plots

        plots.save(arguments.plot, plots.parity_figure(errors))
    return OK


def _groups(by: str, groups: dict[str, tuple[int, Evaluation]]) -> list[str]:
    """Root-mean-square errors of all groups as a table."""
    kinds = list(dict.fromkeys(kind for _, found in groups.values() for kind in found))
    units = {kind: next(e[kind].unit for _, e in groups.values() if kind in e) for kind in kinds}
    title = {"charge": "total charge (e)"}.get(by, by)
    width = max(len(title), *(len(name) for name in groups)) + 2
    heads = [f"{kind} ({unit})" for kind, unit in units.items()]
    lines = ["", f"{title:<{width}}{'frames':>7}" + "".join(f"{head:>22}" for head in heads) + "   RMSE"]
    for name, (count, found) in groups.items():
        cells = [f"{found[kind].rmse:22.5f}" if kind in found else f"{'-':>22}" for kind in kinds]
        lines.append(f"{name or '(none)':<{width}}{count:7d}" + "".join(cells))
    return lines


def _worst(errors: FrameErrors, number: int) -> list[str]:
    """The frames with the largest errors as a table."""
    chosen = errors.worst(number)
    values = {kind: errors.of(kind) for kind in errors.evaluation}
    units = {kind: errors.evaluation[kind].unit for kind in values}
    names = errors.names["composition"]
    width = max([len("worst frames"), *(len(names[i]) for i in chosen)]) + 2
    lines = [
        "",
        f"{'worst frames':<{width}}{'number':>7}{'charge':>8}"
        + "".join(f"{f'{kind} ({unit})':>22}" for kind, unit in units.items()),
    ]
    for i in chosen:
        cells = [f"{v[i]:22.5f}" if v[i] == v[i] else f"{'-':>22}" for v in values.values()]
        lines.append(f"{names[i]:<{width}}{i:7d}{errors.names['charge'][i]:>8}" + "".join(cells))
    return lines


def _predict(arguments: argparse.Namespace) -> int:
    from kqeq.cli.files import under_typed_conditions
    from kqeq.errors import InputError
    from kqeq.model.estimator import load_model

    check_outputs(arguments.json)
    if arguments.output is not None:
        check_output(arguments.output)
    model = load_model(arguments.model)
    told: set[str] = set()
    frames = [
        under_typed_conditions(
            atoms,
            ", ".join(arguments.frames),
            charge=arguments.charge,
            field=arguments.field,
            prefix=model.label_prefix,
            told=told,
        )
        for atoms in read_frames(arguments.frames)
    ]
    if arguments.potential is not None:
        if arguments.charge is not None:
            raise InputError(
                "--charge and --potential: at a given potential the total charge follows; give one of them"
            )
        _hold_at_potential(model, frames, arguments.potential)
    predictions = model.predict(frames, uncertainty=arguments.uncertainty, device=arguments.device)
    if arguments.output is None:
        print("\n".join(_table(frames, predictions)))
    else:
        results = [
            with_results(atoms, prediction, model.potential_)
            for atoms, prediction in zip(frames, predictions, strict=True)
        ]
        write_frames(arguments.output, results)
        print(f"{len(results)} frames written to {arguments.output}")
    if arguments.json is not None:
        write_json(arguments.json, {"frames": [_plain(prediction) for prediction in predictions]})
    return OK


def _hold_at_potential(model: KQEq, frames: list[Atoms], potential: float) -> None:
    """Give frames the total charges that belong to a potential, and print the grand energies E − UQ."""
    from kqeq.calculator import KQEqCalculator
    from kqeq.frames.conditions import without_conditions

    calculator = KQEqCalculator(model, potential=potential)
    print(f"{'frame':>5} {'total charge (e)':>18} {'grand energy (eV)':>20}")
    for index, atoms in enumerate(frames):
        held = without_conditions(atoms, field=False, prefix=model.label_prefix)
        held.info["total_charge"] = 0.0  # partition charges that a frame may hold are of another total
        energy = calculator.get_potential_energy(held)  # type: ignore[no-untyped-call]  # ASE
        found = calculator.prediction
        assert found is not None
        print(f"{index:5d} {found.total_charge:18.6f} {energy:20.6f}")
        held.info["total_charge"] = found.total_charge
        held.calc = atoms.calc
        frames[index] = held


def _table(frames: list[Any], predictions: list[Prediction]) -> list[str]:
    """One line for every frame."""
    import numpy as np

    from kqeq.analysis.entry import formula

    columns: dict[str, list[str]] = {
        "frame": [str(i) for i in range(len(frames))],
        "composition": [formula(atoms) for atoms in frames],
        "charge (e)": [f"{p.total_charge:g}" for p in predictions],
    }
    numbers: dict[str, list[float | None]] = {
        "energy (eV)": [p.energy for p in predictions],
        "± (eV)": [p.energy_std for p in predictions],
        "largest force (eV/Å)": [
            None if p.forces is None else float(np.linalg.norm(p.forces, axis=1).max()) for p in predictions
        ],
        "|dipole| (e·Å)": [
            None if p.dipole is None else float(np.linalg.norm(p.dipole)) for p in predictions
        ],
        "largest charge (e)": [
            None if p.charges is None else float(p.charges[np.argmax(np.abs(p.charges))]) for p in predictions
        ],
    }
    for name, values in numbers.items():
        if any(value is not None for value in values):
            columns[name] = ["-" if value is None else f"{value:.6f}" for value in values]
    widths = {name: max(len(name), *(len(v) for v in values)) + 2 for name, values in columns.items()}
    lines = ["".join(f"{name:>{widths[name]}}" for name in columns)]
    lines += [
        "".join(f"{values[i]:>{widths[name]}}" for name, values in columns.items())
        for i in range(len(frames))
    ]
    return lines


def _plain(prediction: Prediction) -> dict[str, Any]:
    """A prediction as plain data, without what it does not have."""
    from kqeq.analysis.results import plain

    return {name: plain(value) for name, value in vars(prediction).items() if value is not None}


def _info(arguments: argparse.Namespace) -> int:
    from kqeq.model.estimator import load_model
    from kqeq.model.information import information

    check_outputs(arguments.json)
    model = load_model(arguments.model)
    found = information(model)
    print(found)
    if arguments.report:
        print(f"\nreport of the fit\n{model.fit_report_}")
    if arguments.json is not None:
        write_json(arguments.json, found.to_dict())
    return OK


__all__ = ["add_prediction"]
