"""``resnext-run validate``: an artefact against its source on real images; exit 3 where they do not agree."""

from __future__ import annotations

import argparse
from pathlib import Path

from resnext_core.cli.common import print_config, settings_of
from resnext_core.console.flags import add_config_flags, add_json_flag, add_split_flag
from resnext_core.console.output import Output, ProgressBar
from resnext_core.errors import DataError
from resnext_core.jobs.settings import resolve_serving
from resnext_core.jobs.validate import FEW_BITS_AGREEMENT, FEW_BITS_DROP, TOLERANCE, ValidateJob, validate
from resnext_core.plugins import load_plugins

EPILOG = """\
An artefact in few bits (int8, float16, bfloat16) that passes is given a proof of this processor.

examples:
  resnext-run validate --artefact ARTEFACT --weights runs/RUN      on the data of the run
  resnext-run validate --artefact ARTEFACT --weights model.safetensors --data DIR --split test --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--artefact", metavar="FILE", required=True, help="exported file to check")
    parser.add_argument(
        "--weights", metavar="FILE", required=True, help="its source: run folder or weights file"
    )
    add_split_flag(parser)
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help=f"largest logit difference relative to the largest logit (default {TOLERANCE:g}; in few bits none)",
    )
    parser.add_argument(
        "--min-agreement", type=float, metavar="X",
        help=f"least share of images with the same first guess (default 1; in few bits {FEW_BITS_AGREEMENT:g})",
    )  # fmt: skip
    parser.add_argument(
        "--max-drop", type=float, metavar="POINTS",
        help=f"largest drop of top-1 in percentage points (default none; in few bits {FEW_BITS_DROP:g})",
    )  # fmt: skip
    parser.add_argument("--source-backend", metavar="ID", help="backend that computes the source's logits")
    add_config_flags(parser)
    add_json_flag(parser)


def handle(args: argparse.Namespace) -> int:
    job = ValidateJob(
        artefact=Path(args.artefact), weights=Path(args.weights), settings=settings_of(args), split=args.split,
        tolerance=args.tolerance, min_agreement=args.min_agreement, max_drop=args.max_drop,
        backend=args.backend, source_backend=args.source_backend,
    )  # fmt: skip
    if args.print_config:
        return print_config(resolve_serving(job.settings, load_plugins(), job.weights, job.artefact))
    output = Output(json_result=args.json)
    with ProgressBar(output) as bar:
        result = validate(job, bar)
    output.result(result.to_dict(), str(result))
    if not result.passed:
        why = "; ".join(result.comparison.failures)
        raise DataError(f"{args.artefact} does not agree with {args.weights}: {why}")
    if result.unwritten is not None:
        raise DataError(result.unwritten)
    return 0
