"""The command line: ``kqeq fit | evaluate | predict | optimize | respond | diagnose | check | demo``.

Exit codes: 0 success, 1 an optimisation that did not converge or a check that failed, 2 unusable input, 130
interrupted.  The heavy modules are imported inside the commands, so that ``kqeq --help`` answers at once.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TextIO

from kqeq._version import __version__
from kqeq.cli.analysis import add_analysis, add_conditions
from kqeq.cli.files import (
    FRAMES,
    check_output,
    read_frames,
    read_one,
    with_results,
    write_frames,
    write_json,
)
from kqeq.errors import InputError, KQEqError, KQEqWarning

OUTPUT = "file to write: extended XYZ, or what the ending says (.traj, .json, .db ...)"
"""Help for arguments that name frames to write."""

OK, NOT_CONVERGED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def build_parser() -> argparse.ArgumentParser:
    """The arguments of every command."""
    parser = argparse.ArgumentParser(
        prog="kqeq",
        description="Kernel charge equilibration: charges, fields, energies and forces from little data.",
        epilog="Units: eV, Å, e, V/Å, e·Å.",
    )
    parser.add_argument("--version", action="version", version=f"kqeq {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    fit = commands.add_parser(
        "fit", help="fit a model to labelled frames", description="Fit a model to labelled frames."
    )
    fit.add_argument("train", nargs="+", metavar="TRAIN.xyz", help=FRAMES)
    fit.add_argument("-o", "--output", required=True, metavar="MODEL", help="model file to write (*.kqeq)")
    fit.add_argument("--config", metavar="FILE.toml", help="settings; defaults and all labels found without")
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
        "--leave-out-failed",
        action="store_true",
        help="leave out frames whose baseline does not converge, instead of stopping",
    )
    fit.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="processes for baselines and sums over frames (%(default)s)",
    )
    fit.add_argument("--validation", metavar="FRAMES", help="evaluate the fitted model on these frames")
    fit.add_argument(
        "--optimize",
        choices=("auto", "left-out", "evidence"),
        default="auto",
        help="how noises and prior spreads are learned; auto: by left-out frames where no kernel is given",
    )
    fit.add_argument("--quick", action="store_true", help="one fit with the settings as they are, no search")
    fit.set_defaults(run=_fit)

    evaluate = commands.add_parser(
        "evaluate",
        help="compare a model with labelled frames",
        description="Print the errors of a model on labelled frames.",
    )
    evaluate.add_argument("model", metavar="MODEL", help="model file")
    evaluate.add_argument("frames", nargs="+", metavar="FRAMES", help=FRAMES)
    evaluate.add_argument("--json", metavar="FILE", help="also write the errors as JSON")
    evaluate.set_defaults(run=_evaluate)

    predict = commands.add_parser(
        "predict",
        help="predict frames and write them with the results",
        description="Predict frames; charge and field are taken from each frame. Labels that are in the way of "
        "predictions are kept under REF_ names.",
    )
    predict.add_argument("model", metavar="MODEL", help="model file")
    predict.add_argument("frames", metavar="FRAMES", help=FRAMES)
    predict.add_argument("-o", "--output", required=True, metavar="OUT.xyz", help=OUTPUT)
    predict.set_defaults(run=_predict)

    optimize = commands.add_parser(
        "optimize",
        help="optimise a geometry, also charged and in a field",
        description="Optimise a geometry. A charged molecule in a field feels a net force; its centre of mass is held.",
    )
    optimize.add_argument("model", metavar="MODEL", help="model file")
    optimize.add_argument(
        "structure", metavar="IN.xyz", help="file with one structure; FILE@-1 takes the last"
    )
    optimize.add_argument("-o", "--output", required=True, metavar="OUT.xyz", help=OUTPUT)
    add_conditions(optimize)
    optimize.add_argument(
        "--fmax", type=float, default=0.01, metavar="F", help="largest force, eV/Å (%(default)s)"
    )
    optimize.set_defaults(run=_optimize)

    add_analysis(commands)

    demo = commands.add_parser(
        "demo",
        help="the whole story on packaged data",
        description="Fit, test, probe and optimise on packaged data; writes kqeq-demo.png and kqeq-demo.kqeq here.",
    )
    demo.add_argument("--json", metavar="FILE", help="also write the numbers as JSON")
    demo.set_defaults(run=_demo)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    _open_streams()
    arguments = build_parser().parse_args(_plain_numbers(sys.argv[1:] if argv is None else argv))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Å must not end a fit
    try:
        with _plain_warnings():
            code: int = arguments.run(arguments)
            sys.stdout.flush()
    except KQEqError as error:
        print(f"kqeq: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("kqeq: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # the reader of the output has gone (kqeq ... | head)
        _abandon_output()
        return OK
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EDQUOT, errno.EFBIG):
            raise
        _abandon_output()
        print(f"kqeq: error: cannot write the output: {error.strerror or error}", file=sys.stderr)
        return BAD_INPUT
    return code


def _open_streams() -> None:
    """Put something in the place of streams that the caller has closed (kqeq ... >&-): Python has None there."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _abandon_output() -> None:
    """Keep Python from complaining at exit as well about an output that cannot be written."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# ------------------------------------------------------------------- commands


def _fit(arguments: argparse.Namespace) -> int:
    from kqeq.io.atomic_write import check_writable
    from kqeq.model.config import load_config
    from kqeq.model.estimator import KQEq

    check_writable(arguments.output)
    model = KQEq() if arguments.config is None else load_config(arguments.config)
    typed = {"baseline": arguments.baseline, "charge_from": arguments.charge_from}
    model.set_params(**{name: value for name, value in typed.items() if value is not None})
    frames = read_frames(arguments.train)
    validation = [] if arguments.validation is None else read_frames([arguments.validation])
    with _jobs(arguments.jobs):
        model.fit(
            frames,
            optimize=None if arguments.quick else arguments.optimize,
            leave_out_failed=arguments.leave_out_failed or None,
        )
    print(model.fit_report_)
    model.save(arguments.output)
    print(f"model written to {arguments.output}")
    if validation:
        print(f"\nerrors on {arguments.validation} ({len(validation)} frames)")
        print(model.evaluate(validation))
    return OK


@contextmanager
def _jobs(number: int) -> Iterator[None]:
    """That many processes for what can be done in parallel."""
    if number == 1:
        yield
        return
    if number < 1:
        raise InputError(f"--jobs is {number}; expected a positive whole number")
    from joblib import parallel_config

    with parallel_config(backend="loky", n_jobs=number):
        yield


def _evaluate(arguments: argparse.Namespace) -> int:
    from kqeq.io.atomic_write import check_writable
    from kqeq.model.estimator import load_model

    if arguments.json is not None:
        check_writable(arguments.json)
    model = load_model(arguments.model)
    evaluation = model.evaluate(read_frames(arguments.frames))
    print(evaluation)
    if arguments.json is not None:
        write_json(arguments.json, evaluation.to_dict())
    return OK


def _predict(arguments: argparse.Namespace) -> int:
    from kqeq.model.estimator import load_model

    check_output(arguments.output)
    model = load_model(arguments.model)
    frames = read_frames([arguments.frames])
    predictions = model.predict(frames)
    results = [
        with_results(atoms, prediction, model.potential_)
        for atoms, prediction in zip(frames, predictions, strict=True)
    ]
    write_frames(arguments.output, results)
    print(f"{len(results)} frames written to {arguments.output}")
    return OK


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
    return NOT_CONVERGED


def _demo(arguments: argparse.Namespace) -> int:
    from kqeq.cli.demo import run
    from kqeq.io.atomic_write import check_writable

    if arguments.json is not None:
        check_writable(arguments.json)
    numbers = run(Path.cwd())
    if arguments.json is not None:
        write_json(arguments.json, numbers)
    return OK


# ------------------------------------------------------------------- terminal


def _plain_numbers(arguments: Sequence[str]) -> list[str]:
    """Rewrite -1e-3 as -0.001: argparse takes the former for an option."""
    plain = []
    for argument in arguments:
        text = argument
        if argument[:1] == "-" and "e" in argument.lower():
            try:
                text = format(Decimal(argument), "f")
            except InvalidOperation:
                text = argument
        plain.append(text)
    return plain


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show the package's own warnings as one line without source code."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, KQEqWarning):
            print(f"kqeq: warning: {message}", file=sys.stderr)
        else:
            original(message, category, filename, lineno, file, line)

    original = warnings.showwarning
    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


__all__ = ["build_parser", "main", "with_results", "write_json"]
