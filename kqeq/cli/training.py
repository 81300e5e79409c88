"""The commands ``kqeq fit | update | select``: models from labelled frames."""

from __future__ import annotations

import argparse
from typing import Any

from kqeq.cli.common import OK, OUTPUT, add_device, add_jobs, add_json, add_model, check_outputs, jobs
from kqeq.cli.files import FRAMES, check_output, read_frames, write_frames, write_json


def add_training(commands: Any) -> None:
    """Add the parsers of these commands."""
    fit = commands.add_parser(
        "fit", help="fit a model to labelled frames", description="Fit a model to labelled frames."
    )
    fit.add_argument("train", nargs="+", metavar="TRAIN.xyz", help=FRAMES)
    fit.add_argument("-o", "--output", required=True, metavar="MODEL", help="model file to write (*.kqeq)")
    fit.add_argument(
        "--config", metavar="FILE.toml", help="settings (kqeq config writes a template); defaults without"
    )
    fit.add_argument(
        "--baseline",
        metavar="NAME",
        help="below the model: gfn2, gfn1, ipea1 (tight binding), zbl, d4:pbe0, or a sum such as gfn2+zbl",
    )
    fit.add_argument(
        "--charge-from",
        choices=("baseline", "model"),
        help="who carries the total charge on top of tight binding (baseline)",
    )
    fit.add_argument(
        "--charges",
        metavar="MODEL",
        help="charge model: QEq, ACKS2, LatentCharges; auto compares several and takes the best; none for a short-range "
        "energy alone (settings of charge models: --config)",
    )
    fit.add_argument(
        "--targets",
        nargs="+",
        metavar="KIND",
        help="labels to fit: energy, forces, stress, dipole, charges, polarizability (default: what frames have)",
    )
    fit.add_argument(
        "--charges-key", metavar="NAME", help="array with partition charges to fit, for example hirshfeld"
    )
    fit.add_argument("--label-prefix", metavar="PREFIX", help="prefix of label names, for example REF_")
    fit.add_argument(
        "--leave-out-failed",
        action="store_true",
        help="leave out frames whose baseline does not converge, instead of stopping",
    )
    fit.add_argument("--validation", metavar="FRAMES", help="evaluate the fitted model on these frames")
    fit.add_argument(
        "--optimize",
        choices=("auto", "left-out", "evidence"),
        help="how noises and prior spreads are learned; auto: by left-out frames where no kernel is given",
    )
    fit.add_argument("--quick", action="store_true", help="one fit with the settings as they are, no search")
    fit.add_argument(
        "--budget",
        metavar="TIME",
        help='time for the fit, "600", "10 min" or "2 h": it takes as many representatives as pay within it',
    )
    fit.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="of what a fit draws or shuffles, such as the order in which frames are left out (0)",
    )
    fit.add_argument(
        "--posterior",
        action="store_true",
        help="keep what uncertainties, select and update need in the file (P×P numbers for P parameters)",
    )
    fit.add_argument(
        "--resume",
        metavar="FILE",
        help="checkpoint: written after every step, and continued from if it is there (a stopped fit goes on)",
    )
    fit.add_argument("--cache", metavar="FOLDER", help="disk for kernel features that memory has no room for")
    add_device(fit)
    add_jobs(fit, "baselines and sums over frames")
    add_progress(fit)
    add_json(fit, "the report, and errors of --validation,")
    fit.set_defaults(run=_fit)

    update = commands.add_parser(
        "update",
        help="add frames to a fitted model",
        description="Add labelled frames to a model that was fitted with --posterior, without the frames of that fit.",
    )
    add_model(update)
    update.add_argument("frames", nargs="+", metavar="FRAMES", help=FRAMES)
    update.add_argument("-o", "--output", required=True, metavar="NEW", help="model file to write (*.kqeq)")
    update.add_argument("--validation", metavar="FRAMES", help="evaluate the new model on these frames")
    add_jobs(update, "sums over frames")
    add_progress(update)
    add_json(update, "the report, and errors of --validation,")
    update.set_defaults(run=_update)

    select = commands.add_parser(
        "select",
        help="which frames of a pool are most worth labelling",
        description="Choose the frames of a pool (labels are not needed) whose labels would tell a model most, the most "
        "valuable first. The model has to be fitted with --posterior.",
    )
    add_model(select)
    select.add_argument("pool", nargs="+", metavar="POOL", help=FRAMES)
    select.add_argument("-n", "--number", type=int, required=True, metavar="N", help="frames to choose")
    select.add_argument("-o", "--output", metavar="CHOSEN.xyz", help=OUTPUT)
    select.add_argument("--rest", metavar="REST.xyz", help="also write the frames that were not chosen")
    select.add_argument(
        "--quantity",
        choices=("energy", "dipole", "charges"),
        help="what will be labelled (default: energy, or dipole for models without energies)",
    )
    add_json(select, "their numbers")
    select.set_defaults(run=_select)


def add_progress(parser: argparse.ArgumentParser) -> None:
    """``--progress`` and ``--no-progress``."""
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="lines on standard error: what the fit does and about how long it still takes (default: on a terminal)",
    )


def _fit(arguments: argparse.Namespace) -> int:
    from kqeq.io.progress import show_progress
    from kqeq.model.config import load_config
    from kqeq.model.estimator import KQEq

    check_outputs(arguments.output, arguments.json)
    model = KQEq() if arguments.config is None else load_config(arguments.config)
    typed = {
        "baseline": arguments.baseline,
        "charge_from": arguments.charge_from,
        "targets": arguments.targets,
        "charges_key": arguments.charges_key,
        "label_prefix": arguments.label_prefix,
        "budget": _number(arguments.budget),
        "seed": arguments.seed,
    }
    model.set_params(**{name: value for name, value in typed.items() if value is not None})
    model.set_params(**_charges(arguments.charges))
    options: dict[str, Any] = {}
    if arguments.quick:
        options["optimize"] = None
    elif arguments.optimize is not None:
        options["optimize"] = arguments.optimize
    frames = read_frames(arguments.train)
    validation = [] if arguments.validation is None else read_frames([arguments.validation])
    with jobs(arguments.jobs), show_progress(arguments.progress):
        model.fit(
            frames,
            leave_out_failed=arguments.leave_out_failed or None,
            resume=arguments.resume,
            cache=arguments.cache,
            device=None if arguments.device == "cpu" else arguments.device,
            **options,
        )
    print(model.fit_report_)
    _save(model, arguments, validation, posterior=arguments.posterior)
    return OK


def _charges(name: str | None) -> dict[str, Any]:
    """The setting that ``--charges`` stands for."""
    from kqeq.charges import charge_model_from_dict
    from kqeq.kernels.settings import AUTO

    if name is None:
        return {}
    if name == "none":
        return {"charges": None, "electronegativity": None}
    return {"charges": name if name == AUTO else charge_model_from_dict({"model": name})}


def _number(text: str | None) -> float | str | None:
    """Seconds where a time is a plain number."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _save(model: Any, arguments: argparse.Namespace, validation: list[Any], *, posterior: bool) -> None:
    """Write a model, then look at the frames for validation, and note their errors in it."""
    from dataclasses import asdict, replace

    model.save(arguments.output, posterior=posterior)
    print(f"model written to {arguments.output}")
    if validation:
        evaluation = model.evaluate(validation)
        print(f"\nerrors on {arguments.validation} ({len(validation)} frames)")
        print(evaluation)
        errors = {**model.fit_report_.errors, arguments.validation: evaluation.to_dict()}
        model.fit_report_ = replace(model.fit_report_, errors=errors)
        model.save(arguments.output, posterior=posterior)
    if arguments.json is not None:
        write_json(arguments.json, asdict(model.fit_report_))


def _update(arguments: argparse.Namespace) -> int:
    from dataclasses import replace

    from kqeq.io.progress import show_progress
    from kqeq.model.estimator import load_model

    check_outputs(arguments.output, arguments.json)
    model = load_model(arguments.model)
    frames = read_frames(arguments.frames)
    validation = [] if arguments.validation is None else read_frames([arguments.validation])
    with jobs(arguments.jobs), show_progress(arguments.progress):
        model.update(frames)
    model.fit_report_ = replace(model.fit_report_, errors={})  # those of the earlier model
    print(model.fit_report_)
    _save(model, arguments, validation, posterior=True)
    return OK


def _select(arguments: argparse.Namespace) -> int:
    import kqeq
    from kqeq.analysis.entry import formula
    from kqeq.errors import InputError
    from kqeq.model.estimator import load_model

    check_outputs(arguments.json)
    for path in (arguments.output, arguments.rest):
        if path is not None:
            check_output(path)
    model = load_model(arguments.model)
    pool = read_frames(arguments.pool)
    if arguments.rest is not None and arguments.number >= len(pool):
        raise InputError(f"-n {arguments.number} of {len(pool)} frames leaves none for --rest")
    chosen = kqeq.select(model, pool, arguments.number, quantity=arguments.quantity)
    print(f"{'rank':>5} {'frame':>6}  composition")
    for rank, index in enumerate(chosen, start=1):
        print(f"{rank:5d} {index:6d}  {formula(pool[index])}")
    if arguments.output is not None:
        write_frames(arguments.output, [pool[i] for i in chosen])
        print(f"{len(chosen)} frames written to {arguments.output}")
    if arguments.rest is not None:
        rest = [atoms for i, atoms in enumerate(pool) if i not in set(chosen)]
        write_frames(arguments.rest, rest)
        print(f"{len(rest)} frames written to {arguments.rest}")
    if arguments.json is not None:
        write_json(arguments.json, {"chosen": chosen, "pool": len(pool)})
    return OK


__all__ = ["add_training"]
