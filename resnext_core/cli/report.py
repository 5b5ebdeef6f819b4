"""``resnext-run report``: write the report.html of a run again, or compare two runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from resnext_core.console.flags import add_json_flag
from resnext_core.console.output import Output
from resnext_core.jobs.report import ReportJob, report

EPILOG = """\
examples:
  resnext-run report                          the run in ./runs that changed last
  resnext-run report runs/RUN                 writes runs/RUN/report.html
  resnext-run report runs/A runs/B            writes runs/A/compare-B.html: scores, curves, settings that differ
"""

#: Nothing here computes: ``--backend`` is refused.
TAKES_BACKEND = False


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        help="run folder (default: the run in ./runs whose records changed last)",
    )
    parser.add_argument("other", nargs="?", metavar="OTHER", help="a second run, to compare with the first")
    parser.add_argument(
        "--out", metavar="FILE", help="page to write (default: report.html or compare-OTHER.html in RUN)"
    )
    add_json_flag(parser)


def handle(args: argparse.Namespace) -> int:
    run, other, out = (None if word is None else Path(word) for word in (args.run, args.other, args.out))
    result = report(ReportJob(run=run, other=other, output=out))
    Output(json_result=args.json).result(result.to_dict(), str(result.path))
    return 0
