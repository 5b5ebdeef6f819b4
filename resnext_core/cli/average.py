"""``resnext-run average``: the average of several weights of one network."""

from __future__ import annotations

import argparse
from pathlib import Path

from resnext_core.cli.common import print_config, settings_of
from resnext_core.console.flags import add_config_flags, add_json_flag, numbers, positive
from resnext_core.console.output import Output, ProgressBar
from resnext_core.jobs.average import AverageJob, average
from resnext_core.jobs.settings import resolve_serving
from resnext_core.plugins import load_plugins

EPILOG = """\
examples:
  resnext-run average runs/A runs/B runs/C -o average.safetensors
  resnext-run average runs/A/checkpoints/step-* -o average.safetensors
  resnext-run average a.safetensors b.safetensors -o average.safetensors --shares 1,2
  resnext-run average runs/A runs/B -o average.safetensors --recompute-bn --data DIR
"""

#: Training images that batch statistics are computed from, unless told.
_IMAGES = 8192


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="WEIGHTS",
        help="runs (their best checkpoints), checkpoint folders, weights files",
    )
    parser.add_argument(
        "-o", "--to", dest="target", required=True, metavar="FILE", help="new .safetensors file"
    )
    parser.add_argument(
        "--shares", type=numbers, metavar="N,N", help="how much each counts (default: all alike)"
    )
    parser.add_argument(
        "--recompute-bn", type=positive, nargs="?", const=_IMAGES, metavar="IMAGES",
        help="compute the statistics of batch normalisation anew from training images (default: %(const)s of them)",
    )  # fmt: skip
    parser.add_argument(
        "--greedy", action="store_true", help="average only what makes the mean no worse on val (train.best)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite FILE if it exists")
    add_config_flags(parser)
    add_json_flag(parser)


def handle(args: argparse.Namespace) -> int:
    job = AverageJob(
        sources=tuple(map(Path, args.sources)), target=Path(args.target), shares=args.shares,
        bn_images=args.recompute_bn,
        greedy=args.greedy, settings=settings_of(args), backend=args.backend, force=args.force,
    )  # fmt: skip
    if args.print_config:
        return print_config(resolve_serving(job.settings, load_plugins(), *job.sources))
    output = Output(json_result=args.json)
    with ProgressBar(output) as bar:
        result = average(job, bar)
    output.result(result.to_dict(), str(result))
    return 0
