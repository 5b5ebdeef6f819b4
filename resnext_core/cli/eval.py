"""``resnext-run eval``: exact accuracy of a run, of weights, or of an artefact."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from resnext_core.cli.common import print_config, settings_of
from resnext_core.cli.eval_text import eval_text
from resnext_core.console.flags import (
    add_config_flags,
    add_devices_flag,
    add_json_flag,
    add_split_flag,
    add_weights_flag,
    integers,
    positive,
)
from resnext_core.console.output import Output, ProgressBar
from resnext_core.errors import counted, shown
from resnext_core.files import write_atomic
from resnext_core.jobs.evaluate import EvaluateJob, evaluate_sizes
from resnext_core.jobs.settings import resolve_serving
from resnext_core.plugins import load_plugins
from resnext_core.ranks.info import rank_info

EPILOG = """\
examples:
  resnext-run eval --weights runs/RUN                the data that the run was trained with
  resnext-run eval --weights ARTEFACT --data DIR --split test --json
  resnext-run eval --devices 3 --weights model.safetensors --data DIR
  resnext-run eval --weights runs/RUN --tta flip --sizes 224,256,288
  resnext-run eval --weights runs/RUN --calibrate --predictions predictions.csv
"""

#: Unreadable images that are named.
_FAILURES = 10


def configure(parser: argparse.ArgumentParser) -> None:
    add_weights_flag(parser)
    add_split_flag(parser)
    parser.add_argument(
        "--tta", choices=("none", "flip"),
        help="flip: the mean of the probabilities of each image and its mirror image (eval.tta)",
    )  # fmt: skip
    parser.add_argument(
        "--sizes",
        type=integers,
        default=(),
        metavar="N,N",
        help="evaluate at each of these image sizes in pixels",
    )
    parser.add_argument(
        "--calibrate", action="store_true",
        help="fit a temperature on val, and say what it does to the calibration error",
    )  # fmt: skip
    parser.add_argument(
        "--predictions", metavar="FILE",
        help="write a row for each image into a new .csv, .jsonl or .parquet file",
    )  # fmt: skip
    parser.add_argument(
        "--topk", type=positive, default=5, metavar="K",
        help="classes in a row of --predictions (default %(default)s)",
    )  # fmt: skip
    add_config_flags(parser)
    # for a rank that another process started: that one prints the result
    parser.add_argument("--result", metavar="FILE", help=argparse.SUPPRESS)
    add_devices_flag(parser)
    add_json_flag(parser)


def handle(args: argparse.Namespace) -> int:
    if args.tta is not None:
        args.set.append(f"eval.tta={args.tta}")
    job = EvaluateJob(
        weights=Path(args.weights), settings=settings_of(args), split=args.split, sizes=args.sizes,
        calibrate=args.calibrate, predictions=Path(args.predictions) if args.predictions else None,
        top=args.topk, backend=args.backend, devices=args.devices, lines="stderr" if args.json else "stdout",
    )  # fmt: skip
    if args.print_config:
        return print_config(resolve_serving(job.settings, load_plugins(), job.weights))
    output = Output(json_result=args.json)
    with ProgressBar(output) as bar:
        results = evaluate_sizes(job, bar)
    if not rank_info().is_main:
        return 0
    found = [result.to_dict() for result in results]
    if args.result is not None:
        write_atomic(Path(args.result), json.dumps(found))
        return 0
    output.result({"results": found} if args.sizes else found[0], eval_text(results, one_size=not args.sizes))
    failures = list(results[0].evaluation.failures.items())
    for path, message in failures[:_FAILURES]:
        output.say(f"could not read {shown(path, None)}: {shown(message, None)}")
    if len(failures) > _FAILURES:
        output.say(f"... and {counted(len(failures) - _FAILURES, 'more image')}: see --json")
    if args.predictions:
        output.say(f"predictions: {args.predictions}")
    return 0
