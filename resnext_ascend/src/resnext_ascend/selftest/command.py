"""``resnext-run ascend selftest``: choose parts, run them, write the report."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resnext_ascend import artefacts
from resnext_ascend.selftest import report
from resnext_ascend.selftest.parts import PARTS, chosen
from resnext_ascend.selftest.place import Place
from resnext_ascend.selftest.runner import Outcome, run_parts
from resnext_core.console.flags import positive
from resnext_core.console.output import Output
from resnext_core.errors import EXIT_DATA, EXIT_INTERRUPTED, EXIT_OK
from resnext_core.files.scratch import Scratch


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.description = "Run what a first user of an Ascend needs, and write a report. " + report.CONTENTS
    parser.add_argument(
        "--out", metavar="PATH", default="ascend-selftest.tar.gz",
        help="report: a new folder, or a file that ends in .tar.gz (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--only", metavar="LIST", help="names of parts, with commas between (default: all)")
    parser.add_argument("--list", action="store_true", help="show the parts and what they prove, run none")
    parser.add_argument(
        "--device", choices=("ascend", "cpu"), default="ascend", help="cpu is a test mode without an Ascend"
    )
    parser.add_argument(
        "--soc-version", metavar="CHIP", help="chip that an .om is made for (default: as npu-smi says)"
    )
    parser.add_argument(
        "--limit", type=positive, metavar="SECONDS", help="for each part (default: minutes, by part)"
    )


def handle(args: argparse.Namespace) -> int:
    """Run; 0 where nothing failed, 3 where a part did, 75 where Ctrl-C ended it after the report was written."""
    output, parts, out = Output(), chosen(args.only), Path(args.out)
    if args.list:
        for part in PARTS:
            output.say(f"{part.name:<15} {part.proves}")
        return EXIT_OK
    if args.soc_version is not None:
        artefacts.check_soc(args.soc_version)
    report.check_out(out)
    with Scratch("selftest") as folder, _sigterm_as_ctrl_c():

        def tell(outcome: Outcome) -> None:
            output.say(report.line(outcome))

        place = Place(device=args.device, folder=folder, soc_version=args.soc_version)
        outcomes, whole = run_parts(parts, place, tell, args.limit)
        summary = report.write(out, outcomes, folder, args.device)
    output.say(summary.splitlines()[-1])
    output.say(f"{out}: {report.CONTENTS}")
    if not whole:
        return EXIT_INTERRUPTED
    return EXIT_DATA if report.failed(outcomes) else EXIT_OK


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
