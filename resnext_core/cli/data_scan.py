"""``resnext-run data scan``: decode every file of a data folder."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from resnext_core.cli.scan_text import problems, scan_text
from resnext_core.console.flags import positive
from resnext_core.console.output import Output, ProgressBar
from resnext_core.errors import DataError, counted
from resnext_core.files import place
from resnext_core.jobs.scan import ScanJob, scan
from resnext_core.runs.records import Progress, Record

_SCAN = """\
Decode every file as training does. Exit code 3 when files are corrupt, or when the same image is in two parts or has
two classes; duplicates within a class are reported and are no error. Results are cached: an unchanged file is not read
again, and a scan that was stopped continues.
"""

#: Seconds between two lines of progress where no bar can be drawn.
_LINE_S = 10.0


#: What an argument for data may be.
DATA_HELP = (
    "folder with train/ and val/, folder of class folders, list, tar shards or packed file, or a URL of one"
)


def add_scan(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the action to those of ``data``."""
    scanning = actions.add_parser(
        "scan", help="decode every file and report what would spoil a training", allow_abbrev=False,
        description=_SCAN,
    )  # fmt: skip
    scanning.add_argument("folder", metavar="DIR", help=DATA_HELP)
    scanning.add_argument(
        "--list", metavar="FILE", help="write the names of corrupt files, for data.quarantine"
    )
    scanning.add_argument("--all", action="store_true", help="do not shorten long lists")
    scanning.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="processes that decode (default: one per core, at most 8)",
    )
    where = scanning.add_mutually_exclusive_group()
    where.add_argument("--cache", metavar="DIR", help="folder of cached results (default: ~/.cache/resnext)")
    where.add_argument("--no-cache", action="store_true", help="read every file, and cache nothing")


def run_scan(args: argparse.Namespace, output: Output) -> int:
    """Scan, and print what was found; raises DataError where it would spoil a training."""
    job = ScanJob(
        folder=place(args.folder),
        list_file=Path(args.list) if args.list else None,
        workers=args.workers,
        cache=Path(args.cache) if args.cache else None,
        use_cache=not args.no_cache,
    )
    with Watcher(output) as watcher:
        result = scan(job, watcher)
    output.result(result.to_dict(), scan_text(result, shorten=not args.all))
    if result.findings.wrong:
        raise DataError(f"{result.folder} has problems: {problems(result.findings)}")
    return 0


class Watcher(ProgressBar):
    """A bar of progress on a terminal, a line now and then elsewhere."""

    def __init__(self, output: Output) -> None:
        super().__init__(output)
        self._said = time.perf_counter()

    def __call__(self, record: Record) -> None:
        super().__call__(record)
        if not isinstance(record, Progress) or self._output.interactive:
            return
        if time.perf_counter() - self._said > _LINE_S:
            self._output.say(f"{record.done} of {counted(record.total, 'file')}")
            self._said = time.perf_counter()
