"""``resnext-run report``: write the report.html of a run again."""

from __future__ import annotations

import argparse
from pathlib import Path

from resnext_core.console.flags import add_json_flag
from resnext_core.console.output import Output
from resnext_core.jobs.report import ReportJob, report

#: Nothing here computes: ``--backend`` is refused.
TAKES_BACKEND = False


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        help="run folder (default: the run in ./runs whose records changed last)",
    )
    add_json_flag(parser)


def handle(args: argparse.Namespace) -> int:
    result = report(ReportJob(run=Path(args.run) if args.run else None))
    Output(json_result=args.json).result(result.to_dict(), str(result.path))
    return 0
