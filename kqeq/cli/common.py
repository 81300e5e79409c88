"""What the commands share: exit codes, arguments that several have, and checks before long work."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from kqeq.errors import InputError

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: success; an optimisation that did not converge, or a check that failed; unusable input; Ctrl-C."""

OUTPUT = "file to write: extended XYZ, or what the ending says (.traj, .json, .db ...)"
"""Help for arguments that name frames to write."""

ONE = "file with one structure; FILE@-1 takes the last"
"""Help for arguments that name a structure."""


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model file, the first argument of most commands."""
    parser.add_argument("model", metavar="MODEL", help="model file")


def add_conditions(parser: argparse.ArgumentParser) -> None:
    """``--charge`` and ``--field``."""
    parser.add_argument(
        "--charge",
        type=float,
        metavar="Q",
        help="total charge, e, instead of the file's (default: that, or 0)",
    )
    parser.add_argument(
        "--field",
        type=float,
        nargs=3,
        metavar=("FX", "FY", "FZ"),
        help="field, V/Å, instead of the file's (default: that, or none)",
    )


def add_json(parser: argparse.ArgumentParser, what: str = "the numbers") -> None:
    """``--json``."""
    parser.add_argument("--json", metavar="FILE", help=f"also write {what} as JSON")


def add_plot(parser: argparse.ArgumentParser, what: str = "also draw them") -> None:
    """``--plot``."""
    parser.add_argument("--plot", metavar="FILE.png", help=what)


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device``."""
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda", "auto"),
        default="cpu",
        help="where to compute (%(default)s); results do not depend on it",
    )


def add_jobs(parser: argparse.ArgumentParser, what: str) -> None:
    """``--jobs``."""
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help=f"processes for {what} (%(default)s)"
    )


@contextmanager
def jobs(number: int) -> Iterator[None]:
    """That many processes for what can be done in parallel."""
    if number == 1:
        yield
        return
    if number < 1:
        raise InputError(f"--jobs is {number}; expected a positive whole number")
    from joblib import parallel_config

    with parallel_config(backend="loky", n_jobs=number):
        yield


def check_outputs(*paths: str | None) -> None:
    """Refuse paths that cannot be written, before the work begins.

    Raises
    ------
    InputError
    """
    from kqeq.io.atomic_write import check_writable

    for path in paths:
        if path is not None:
            check_writable(path)


__all__ = [
    "BAD_INPUT",
    "FAILED",
    "INTERRUPTED",
    "OK",
    "ONE",
    "OUTPUT",
    "add_conditions",
    "add_device",
    "add_jobs",
    "add_json",
    "add_model",
    "add_plot",
    "check_outputs",
    "jobs",
]
