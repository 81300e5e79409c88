"""The commands ``kqeq evaluate | predict``: a model and frames."""

from __future__ import annotations

import argparse
from typing import Any

from kqeq.cli.common import OK, OUTPUT, add_json, add_model, check_outputs
from kqeq.cli.files import FRAMES, check_output, read_frames, with_results, write_frames, write_json


def add_prediction(commands: Any) -> None:
    """Add the parsers of these commands."""
    evaluate = commands.add_parser(
        "evaluate",
        help="compare a model with labelled frames",
        description="Print the errors of a model on labelled frames.",
    )
    add_model(evaluate)
    evaluate.add_argument("frames", nargs="+", metavar="FRAMES", help=FRAMES)
    add_json(evaluate, "the errors")
    evaluate.set_defaults(run=_evaluate)

    predict = commands.add_parser(
        "predict",
        help="predict frames and write them with the results",
        description="Predict frames; charge and field are taken from each frame. Labels that are in the way of "
        "predictions are kept under REF_ names.",
    )
    add_model(predict)
    predict.add_argument("frames", metavar="FRAMES", help=FRAMES)
    predict.add_argument("-o", "--output", required=True, metavar="OUT.xyz", help=OUTPUT)
    predict.set_defaults(run=_predict)


def _evaluate(arguments: argparse.Namespace) -> int:
    from kqeq.model.estimator import load_model

    check_outputs(arguments.json)
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


__all__ = ["add_prediction"]
