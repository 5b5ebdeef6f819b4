"""``resnext-run train``: train from scratch, or continue a run, on one or several devices."""

from __future__ import annotations

import argparse

from resnext_core.cli.common import print_config, settings_of
from resnext_core.console.flags import (
    add_config_flags,
    add_devices_flag,
    add_json_flag,
    add_resume_flag,
    resume_of,
)
from resnext_core.console.output import Output, ProgressBar
from resnext_core.jobs.recipes import DEFAULT_RECIPE
from resnext_core.jobs.settings import resolve_training
from resnext_core.jobs.train import TrainJob, train
from resnext_core.plugins import load_plugins
from resnext_core.ranks.children import outliving_terminal
from resnext_core.ranks.info import rank_info

EPILOG = """\
examples:
  resnext-run train --recipe digits --data DIGITS
  resnext-run train --devices 8 --recipe imagenet-150e --data IMAGENET
  resnext-run train --resume runs/20260101-120000-resnext50_32x4d
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_config_flags(parser)
    add_resume_flag(parser)
    # for a rank that another process started: that one prints the result
    parser.add_argument("--no-result", action="store_true", help=argparse.SUPPRESS)
    add_devices_flag(parser)
    add_json_flag(parser)


def handle(args: argparse.Namespace) -> int:
    job = TrainJob(
        settings=settings_of(args), backend=args.backend, resume=resume_of(args), devices=args.devices,
        lines="stderr" if args.json else "stdout", of_launch=args.no_result,
    )  # fmt: skip
    if args.print_config:
        return print_config(
            resolve_training(job.settings, load_plugins(), resume=job.resume, default_recipe=DEFAULT_RECIPE)[
                0
            ]
        )
    output = Output(json_result=args.json)
    with outliving_terminal():
        with ProgressBar(output) as bar:
            result = train(job, bar)
        if rank_info().is_main and not args.no_result:
            output.result(result.to_dict(), f"weights: {result.weights}")
    return 0
