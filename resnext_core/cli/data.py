"""``resnext-run data``: write the demo data, say what a data folder holds, look at every file of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from resnext_core.cli import scan
from resnext_core.cli.common import add_json_flag
from resnext_core.cli.output import Output, table
from resnext_core.config import DataConfig
from resnext_core.data.demo import write_digits
from resnext_core.data.findings import class_counts
from resnext_core.data.index import Index, open_index, remarks
from resnext_core.data.splits import part_paths

EPILOG = """\
examples:
  resnext-run data demo digits      write train/, val/ and test/ of handwritten digits into ./digits
  resnext-run data info digits      classes and images of each part
  resnext-run data scan digits      decode every file: corrupt ones, the same picture twice, leaks between parts
"""


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    demo = actions.add_parser(
        "demo", help="write image folders from scikit-learn's handwritten digits", allow_abbrev=False
    )
    demo.add_argument("folder", metavar="DIR", help="new folder to write")
    add_json_flag(demo)
    info = actions.add_parser(
        "info", help="show the parts, classes and digests of a data folder", allow_abbrev=False
    )
    info.add_argument(
        "folder", metavar="DIR", help="folder with train/ and val/, a folder of class folders, or a list"
    )
    add_json_flag(info)
    scan.configure(
        actions.add_parser(
            "scan", help="decode every file and report what would spoil a training", allow_abbrev=False,
            description=scan.DESCRIPTION,
        )
    )  # fmt: skip


def handle(args: argparse.Namespace) -> int:
    output = Output(json_result=args.json)
    folder = Path(args.folder)
    if args.action == "demo":
        write_digits(folder)
    parts = _parts(folder)
    for line in remarks(parts.values()):
        output.say(line)
    if args.action == "scan":
        return scan.handle(args, folder, parts, output)
    counts = {name: class_counts(index) for name, index in parts.items()}
    value = {
        name: {
            "images": len(index),
            "digest": index.dataset_digest,
            "classes": counts[name],
            "ignored": dict(index.ignored),
        }
        for name, index in parts.items()
    }
    classes = next(iter(parts.values())).classes
    rows = [[c, *(str(counts[name].get(c, 0)) for name in parts)] for c in classes]
    rows.append(["all", *(str(len(index)) for index in parts.values())])
    output.result({"folder": str(folder), "parts": value}, table(rows, ["class", *parts]))
    return 0


def _parts(folder: Path) -> dict[str, Index]:
    paths = part_paths(folder, DataConfig())
    if "train" not in paths:
        return {"images": open_index(folder)}
    train = open_index(paths["train"])
    return {"train": train} | {
        k: open_index(p, classes=train.classes) for k, p in paths.items() if k != "train"
    }
