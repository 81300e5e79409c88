"""The commands ``kqeq split | config``: what a fit starts from."""

from __future__ import annotations

import argparse
from typing import Any

from kqeq.cli.common import OK, OUTPUT, add_json, check_outputs
from kqeq.cli.files import FRAMES, check_output, read_frames, write_frames, write_json


def add_data(commands: Any) -> None:
    """Add the parsers of these commands."""
    split = commands.add_parser(
        "split",
        help="divide frames into training, validation and test",
        description="Divide frames group by group: whole trajectories (or compositions, or what an entry of atoms.info "
        "says) go to one part, so that test frames are no neighbours in time of training frames.",
    )
    split.add_argument("frames", nargs="+", metavar="FRAMES", help=FRAMES)
    split.add_argument("-o", "--output", required=True, metavar="TRAIN.xyz", help=OUTPUT)
    split.add_argument("--test", required=True, metavar="TEST.xyz", help="file for the test frames")
    split.add_argument("--validation", metavar="VALID.xyz", help="file for a third part of the same share")
    split.add_argument(
        "--fraction", type=float, default=0.2, metavar="F", help="share of the test frames (%(default)s)"
    )
    split.add_argument(
        "--by",
        default="trajectory",
        metavar="WHAT",
        help="trajectory, composition, charge, geometry, random, or an entry of atoms.info (%(default)s)",
    )
    split.add_argument("--seed", type=int, default=0, metavar="N", help="which groups go where (%(default)s)")
    add_json(split, "the numbers of the frames")
    split.set_defaults(run=_split)

    config = commands.add_parser(
        "config",
        help="a commented file of settings for kqeq fit --config",
        description="Write every setting with its default and what it means, as TOML; with MODEL, the settings that a "
        "model was fitted with.",
    )
    config.add_argument("model", nargs="?", metavar="MODEL", help="model file whose settings to write")
    config.add_argument("-o", "--output", metavar="FILE.toml", help="file to write (default: print)")
    config.set_defaults(run=_config)


def _split(arguments: argparse.Namespace) -> int:
    from kqeq.frames.splits import groups_of, split

    check_outputs(arguments.json)
    names = [arguments.output, arguments.test]
    if arguments.validation is not None:
        names.append(arguments.validation)
    for name in names:
        check_output(name)
    frames = read_frames(arguments.frames)
    shares = [arguments.fraction] * (len(names) - 1)
    parts = split(frames, shares, by=arguments.by, seed=arguments.seed)
    groups = groups_of(frames, arguments.by)
    for name, part in zip(names, parts, strict=True):
        write_frames(name, [frames[i] for i in part])
        print(f"{len(part)} frames, {len({groups[i] for i in part})} groups by {arguments.by}: {name}")
    if arguments.json is not None:
        write_json(arguments.json, dict(zip(("train", "test", "validation"), parts, strict=False)))
    return OK


def _config(arguments: argparse.Namespace) -> int:
    from kqeq.io.atomic_write import atomic_path
    from kqeq.model.config import template
    from kqeq.model.estimator import KQEq, load_model

    if arguments.output is not None:
        check_outputs(arguments.output)
    model = KQEq() if arguments.model is None else load_model(arguments.model)
    text = template(model)
    if arguments.output is None:
        print(text, end="")
        return OK
    with atomic_path(arguments.output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"settings written to {arguments.output}")
    return OK


__all__ = ["add_data"]
