"""``resnext-run eval``: exact accuracy of a run, of weights, or of an artefact."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from resnext_core.cli.common import print_config, settings_of
from resnext_core.console.flags import (
    add_config_flags,
    add_devices_flag,
    add_json_flag,
    add_split_flag,
    add_weights_flag,
)
from resnext_core.console.output import Output, ProgressBar
from resnext_core.files import write_atomic
from resnext_core.jobs.evaluate import EvaluateJob, evaluate
from resnext_core.jobs.settings import resolve_serving
from resnext_core.plugins import load_plugins
from resnext_core.ranks.info import rank_info

EPILOG = """\
examples:
  resnext-run eval --weights runs/RUN                the data that the run was trained with
  resnext-run eval --weights ARTEFACT --data DIR --split test --json
  resnext-run eval --devices 3 --weights model.safetensors --data DIR
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_weights_flag(parser)
    add_split_flag(parser)
    add_config_flags(parser)
    # for a rank that another process started: that one prints the result
    parser.add_argument("--result", metavar="FILE", help=argparse.SUPPRESS)
    add_devices_flag(parser)
    add_json_flag(parser)


def handle(args: argparse.Namespace) -> int:
    job = EvaluateJob(
        weights=Path(args.weights), settings=settings_of(args), split=args.split, backend=args.backend,
        devices=args.devices, lines="stderr" if args.json else "stdout",
    )  # fmt: skip
    if args.print_config:
        return print_config(resolve_serving(job.settings, load_plugins(), job.weights))
    output = Output(json_result=args.json)
    with ProgressBar(output) as bar:
        result = evaluate(job, bar)
    if not rank_info().is_main:
        return 0
    if args.result is not None:
        write_atomic(Path(args.result), json.dumps(result.to_dict()))
        return 0
    output.result(result.to_dict(), str(result))
    for path, message in list(result.evaluation.failures.items())[:10]:
        output.say(f"could not read {path}: {message}")
    return 0
