"""``resnext-run data``: write the demo data, say and show what a data folder holds, decode all of it, pack it."""

from __future__ import annotations

import argparse

from resnext_core.cli.data_pack import PACK_ACTIONS, add_pack
from resnext_core.cli.data_scan import DATA_HELP, add_scan, run_scan
from resnext_core.cli.data_show import add_show, run_show
from resnext_core.console.flags import add_json_flag
from resnext_core.console.output import Output, ProgressBar, table
from resnext_core.files import local_path, place
from resnext_core.jobs.data import DataResult, data_info, write_demo

EPILOG = """\
examples:
  resnext-run data demo digits      write train/, val/ and test/ of handwritten digits into ./digits
  resnext-run data info digits      classes and images of each part
  resnext-run data scan digits      decode every file: corrupt files, duplicates, images in several parts
  resnext-run data show digits --augment --recipe digits
                                    write sheet.html: what training sees of some images
  resnext-run data pack digits packed        one file a part: packed/train.pack, packed/val.pack, packed/test.pack
  resnext-run data verify packed             compare every image in them with its checksum
"""

#: Nothing here computes: ``--backend`` is refused.
TAKES_BACKEND = False
#: What may be a URL.
ADDRESSES = ("folder",)


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    demo = actions.add_parser(
        "demo", help="write image folders from scikit-learn's handwritten digits", allow_abbrev=False
    )
    demo.add_argument("folder", metavar="DIR", help="new folder to write")
    info = actions.add_parser(
        "info", help="show the parts, classes and digests of a data folder", allow_abbrev=False
    )
    info.add_argument("folder", metavar="DIR", help=DATA_HELP)
    add_scan(actions)
    add_show(actions)
    add_pack(actions)
    for action in actions.choices.values():
        add_json_flag(action)


def handle(args: argparse.Namespace) -> int:
    output = Output(json_result=args.json)
    if args.action == "scan":
        return run_scan(args, output)
    if args.action == "show":
        return run_show(args, output)
    if args.action in PACK_ACTIONS:
        return PACK_ACTIONS[args.action](args, output)
    with ProgressBar(output) as bar:
        if args.action == "demo":
            result = write_demo(local_path(args.folder), bar)
        else:
            result = data_info(place(args.folder), bar)
    output.result(result.to_dict(), _counts(result))
    return 0


def _counts(result: DataResult) -> str:
    counts = result.counts()
    rows = [[name, *(str(part.get(name, 0)) for part in counts.values())] for name in result.classes]
    rows.append(["all", *(str(len(index)) for index in result.parts.values())])
    return table(rows, ["class", *result.parts])
