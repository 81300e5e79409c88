"""The command line, ``kqeq COMMAND ...``; one module for each group of commands.

Exit codes: 0 success, 1 what did not converge, failed or was stopped, 2 unusable input, 130
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
from kqeq.cli.analysis import add_analysis
from kqeq.cli.common import BAD_INPUT, INTERRUPTED, OK, add_json
from kqeq.cli.comparison import add_comparison
from kqeq.cli.completion import add_completion
from kqeq.cli.data import add_data
from kqeq.cli.engines import add_engines
from kqeq.cli.files import with_results, write_json
from kqeq.cli.motion import add_motion
from kqeq.cli.prediction import add_prediction
from kqeq.cli.training import add_training
from kqeq.errors import KQEqError, KQEqWarning


def build_parser() -> argparse.ArgumentParser:
    """The arguments of every command."""
    parser = argparse.ArgumentParser(
        prog="kqeq",
        description="Kernel charge equilibration: charges, fields, energies and forces from little data.",
        epilog="Units: eV, Å, e, V/Å, e·Å.",
    )
    parser.add_argument("--version", action="version", version=f"kqeq {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    add_training(commands)
    add_comparison(commands)
    add_data(commands)
    add_prediction(commands)
    add_motion(commands)

    add_analysis(commands)
    add_engines(commands)

    demo = commands.add_parser(
        "demo",
        help="the whole story on packaged data",
        description="Fit, test, probe and optimise on packaged data; writes kqeq-demo.png and kqeq-demo.kqeq here.",
    )
    add_json(demo)
    demo.set_defaults(run=_demo)
    add_completion(commands, parser)
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
