"""The flags of ``resnext-run bench all``, and the job that they mean."""

from __future__ import annotations

import argparse
from pathlib import Path

from resnext_core.cli.common import settings_of
from resnext_core.console.flags import positive
from resnext_core.errors import UsageError
from resnext_core.files import local_path
from resnext_core.jobs.bench_all import BenchAllJob, BenchAllResult, bench_all
from resnext_core.ranks.children import forwarding
from resnext_core.runs.records import Listener


def add_all(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``bench all`` alone."""
    every = BenchAllJob()
    rows = parser.add_argument_group("all")
    rows.add_argument(
        "--file", action="append", metavar="ARTEFACT", help="an artefact of the same network, to time too"
    )
    rows.add_argument("--only", metavar="ID,ID", help="backends to time (default: all)")
    rows.add_argument(
        "--rows", metavar="WORD,WORD", help="rows whose name contains one of these (default: all)"
    )
    rows.add_argument("--threads", type=positive, metavar="N", help="threads of every backend")
    rows.add_argument(
        "--rounds", type=positive, metavar="N", help=f"turns of each row (default {every.rounds})"
    )
    rows.add_argument(
        "--seconds", type=float, metavar="S", help=f"length of a turn (default {every.seconds:g})"
    )
    rows.add_argument(
        "--limit", type=float, metavar="S",
        help="seconds for a process to write an artefact, to load and warm up, and for each turn; one that needs "
        f"longer is ended (default {every.limit:g})",
    )  # fmt: skip
    rows.add_argument("--html", metavar="FILE", help="write a page with a plot and the table")


def run_all(args: argparse.Namespace, listen: Listener) -> BenchAllResult:
    """Time what the flags say. SIGTERM ends it as Ctrl-C does, so that no temporary file stays."""

    def stop(number: int) -> None:
        raise KeyboardInterrupt

    with forwarding(stop):
        return bench_all(_all_job(args), listen)


def _all_job(args: argparse.Namespace) -> BenchAllJob:
    """Return the job; UsageError where two flags say the same."""
    if args.only and args.backend:
        raise UsageError("--only and --backend name the backends to time: give one of them")
    given = {name: getattr(args, name) for name in ("classes", "rounds", "seconds", "limit")}
    return BenchAllJob(
        weights=Path(args.weights) if args.weights else None,
        files=tuple(local_path(file) for file in args.file or ()),
        threads=args.threads,
        peak_tflops=args.peak_tflops,
        only=(args.backend,) if args.backend else _words(args.only),
        rows=_words(args.rows),
        html=None if args.html is None else local_path(args.html),
        settings=settings_of(args),
        **{name: value for name, value in given.items() if value is not None},
    )  # fmt: skip


def _words(given: str | None) -> tuple[str, ...]:
    return tuple((given or "").replace(",", " ").split())
