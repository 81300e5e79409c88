"""The command ``kqeq compare``: which model to take."""

from __future__ import annotations

import argparse
from typing import Any

from kqeq.cli.common import OK, add_jobs, add_json, check_outputs, jobs
from kqeq.cli.files import FRAMES, read_frames, write_json


def add_comparison(commands: Any) -> None:
    """Add the parser of this command."""
    compare = commands.add_parser(
        "compare",
        help="fit several models and say which to take",
        description="Fit the short-range energy alone and with several charge models, and compare them on frames that "
        'are left out in turn. The table names the model to take and why; charges = "auto" in a configuration takes it.',
    )
    compare.add_argument("train", nargs="+", metavar="TRAIN.xyz", help=FRAMES)
    compare.add_argument(
        "--config", metavar="FILE.toml", help="settings that all models share; defaults without"
    )
    compare.add_argument(
        "--baselines",
        nargs="+",
        default=(),
        metavar="NAME",
        help="compare these below the model as well: gfn2, gfn1, ipea1, d4:pbe0 ...",
    )
    compare.add_argument(
        "--groups",
        metavar="NAME",
        help="frames that are left out together: composition, or an entry of the comment line such as trajectory "
        "(default: those of one geometry)",
    )
    compare.add_argument("--folds", type=int, metavar="N", help="how often frames are left out (default: 4)")
    compare.add_argument(
        "--seed", type=int, default=0, metavar="N", help="order in which frames are left out (%(default)s)"
    )
    compare.add_argument(
        "--quick", action="store_true", help="no search of noises and prior spreads before it"
    )
    add_jobs(compare, "sums over frames")
    add_json(compare, "the table")
    compare.set_defaults(run=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    from kqeq.frames.grouping import groups
    from kqeq.model.choice import compare
    from kqeq.model.config import load_config
    from kqeq.model.estimator import KQEq

    check_outputs(arguments.json)
    model = KQEq() if arguments.config is None else load_config(arguments.config)
    if arguments.quick:
        model.set_params(optimize=None)
    frames = read_frames(arguments.train)
    with jobs(arguments.jobs):
        found = compare(
            frames,
            model,
            baselines=arguments.baselines,
            groups=None if arguments.groups is None else groups(frames, arguments.groups),
            folds=arguments.folds,
            seed=arguments.seed,
        )
    print(found)
    if arguments.json is not None:
        write_json(arguments.json, found.to_dict())
    return OK


__all__ = ["add_comparison"]
