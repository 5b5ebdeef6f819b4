"""``resnext-run``: the whole job. Train, evaluate, export, validate, report; what a newcomer types first."""

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
from resnext_core.errors import DataError
from resnext_core.jobs.settings import resolve_training
from resnext_core.jobs.whole import WholeJob, default_recipe, whole
from resnext_core.plugins import load_plugins
from resnext_core.ranks.children import outliving_terminal

EPILOG = """\
examples:
  resnext-run                                     the built-in digits on the best backend here
  resnext-run run --data DIR --recipe photos
  resnext-run run --resume runs/RUN               continue a whole job that was interrupted
  resnext-run --backend reference run --epochs 3
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_config_flags(parser)
    add_resume_flag(parser)
    add_devices_flag(parser)
    add_json_flag(parser)


def handle(args: argparse.Namespace) -> int:
    job = WholeJob(
        settings=settings_of(args), backend=args.backend, resume=resume_of(args), devices=args.devices,
        lines="stderr" if args.json else "stdout",
    )  # fmt: skip
    if args.print_config:
        recipe = default_recipe(job.settings)
        return print_config(
            resolve_training(job.settings, load_plugins(), resume=job.resume, default_recipe=recipe)[0]
        )
    output = Output(json_result=args.json)
    with outliving_terminal():
        with ProgressBar(output) as bar:
            result = whole(job, bar)
        output.result(result.to_dict(), f"done in {result.seconds:.0f} s; report: {result.report}")
    if not result.passed:
        raise DataError(f"an artefact does not agree with its source; see {result.report}")
    return 0
