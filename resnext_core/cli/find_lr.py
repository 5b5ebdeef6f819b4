"""``resnext-run find-lr``: find a learning rate by a range test."""

from __future__ import annotations

import argparse

from resnext_core.cli.common import print_config, settings_of
from resnext_core.console.flags import add_config_flags, add_json_flag, positive
from resnext_core.console.output import Output, ProgressBar
from resnext_core.files import local_path
from resnext_core.jobs.find_lr import FindLrJob, find_lr
from resnext_core.jobs.recipes import DEFAULT_RECIPE
from resnext_core.jobs.settings import resolve_training
from resnext_core.plugins import load_plugins

EPILOG = """\
examples:
  resnext-run find-lr --recipe digits --data DIGITS
  resnext-run find-lr --recipe digits --data DIGITS --set optimizer.kind=adamw --high 1 --plot lr.html
The job's own training is started with rates that rise from --low to --high, a step each, until the loss diverges
(Smith, arXiv:1506.01186). Rates are those of a step; the suggested optimizer.lr is scaled to optimizer.lr_batch.
Nothing is left but the page of --plot.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    default = FindLrJob()
    parser.add_argument(
        "--steps", type=positive, default=default.steps, metavar="N", help=f"steps (default {default.steps})"
    )
    for name, text in (("low", "first rate"), ("high", "last rate")):
        value = getattr(default, name)
        parser.add_argument(
            f"--{name}", type=float, default=value, metavar="LR", help=f"{text} (default {value:g})"
        )
    parser.add_argument("--plot", metavar="FILE", help="write the loss over the rate to this HTML page")
    add_config_flags(parser)
    add_json_flag(parser)


def handle(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    if args.print_config:
        return print_config(
            resolve_training(settings, load_plugins(), default_recipe=DEFAULT_RECIPE, finds_batch=False)[0]
        )
    output = Output(json_result=args.json)
    job = FindLrJob(
        settings=settings, backend=args.backend, steps=args.steps, low=args.low, high=args.high,
        plot=None if args.plot is None else local_path(args.plot),
    )  # fmt: skip
    with ProgressBar(output) as bar:
        result = find_lr(job, bar)
    output.result(result.to_dict(), str(result))
    return 0
