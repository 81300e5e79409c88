"""The commands ``kqeq fit``: models from labelled frames."""

from __future__ import annotations

import argparse
from typing import Any

from kqeq.cli.common import OK, add_jobs, check_outputs, jobs
from kqeq.cli.files import FRAMES, read_frames


def add_training(commands: Any) -> None:
    """Add the parsers of these commands."""
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
    add_jobs(fit, "baselines and sums over frames")
    fit.add_argument("--validation", metavar="FRAMES", help="evaluate the fitted model on these frames")
    fit.add_argument(
        "--optimize",
        choices=("auto", "left-out", "evidence"),
        default="auto",
        help="how noises and prior spreads are learned; auto: by left-out frames where no kernel is given",
    )
    fit.add_argument("--quick", action="store_true", help="one fit with the settings as they are, no search")
    fit.set_defaults(run=_fit)


def _fit(arguments: argparse.Namespace) -> int:
    from kqeq.model.config import load_config
    from kqeq.model.estimator import KQEq

    check_outputs(arguments.output)
    model = KQEq() if arguments.config is None else load_config(arguments.config)
    typed = {"baseline": arguments.baseline, "charge_from": arguments.charge_from}
    model.set_params(**{name: value for name, value in typed.items() if value is not None})
    frames = read_frames(arguments.train)
    validation = [] if arguments.validation is None else read_frames([arguments.validation])
    with jobs(arguments.jobs):
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


__all__ = ["add_training"]
