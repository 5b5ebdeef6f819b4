"""``resnext-run data``: write the demo data, show what a data folder holds, decode every file of it, pack it."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from resnext_core.cli.scan_text import problems, scan_text
from resnext_core.console.flags import add_json_flag, positive
from resnext_core.console.output import Output, ProgressBar, table
from resnext_core.errors import DataError, UsageError
from resnext_core.files import local_path, place
from resnext_core.jobs.data import DataResult, data_info, write_demo
from resnext_core.jobs.pack import PackJob, make_index, pack, verify
from resnext_core.jobs.scan import ScanJob, scan
from resnext_core.runs.records import Progress, Record

EPILOG = """\
examples:
  resnext-run data demo digits      write train/, val/ and test/ of handwritten digits into ./digits
  resnext-run data info digits      classes and images of each part
  resnext-run data scan digits      decode every file: corrupt files, duplicates, images in several parts
  resnext-run data pack digits packed        one file a part: packed/train.pack, packed/val.pack, packed/test.pack
  resnext-run data verify packed             compare every image in them with its checksum
"""

_SCAN = """\
Decode every file as training does. Exit code 3 when files are corrupt, or when the same image is in two parts or has
two classes; duplicates within a class are reported and are no error. Results are cached: an unchanged file is not read
again, and a scan that was stopped continues.
"""

_PACK = """\
Write all images of DATA, with their labels, into one file a part, which is read faster than many small files. Every
command takes the result as it takes a folder. Without --side the bytes of every image are kept. With --side larger
images are made smaller and written as JPEG; all others keep their bytes. No file is replaced.
"""

#: Seconds between two lines of progress where no bar can be drawn.
_LINE_S = 10.0

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
    info.add_argument(
        "folder", metavar="DIR", help="folder with train/ and val/, a folder of class folders, or a list"
    )
    scanning = actions.add_parser(
        "scan", help="decode every file and report what would spoil a training", allow_abbrev=False,
        description=_SCAN,
    )  # fmt: skip
    scanning.add_argument(
        "folder", metavar="DIR", help="folder with train/ and val/, or one of class folders"
    )
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
    _configure_sources(actions)
    for action in actions.choices.values():
        add_json_flag(action)


def _configure_sources(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    packing = actions.add_parser(
        "pack", help="write the images into one file a part", allow_abbrev=False, description=_PACK
    )
    packing.add_argument("folder", metavar="DATA", help="a data folder, or one part of it in any form")
    packing.add_argument(
        "target", metavar="TARGET", help="new folder, or new file NAME.pack for data without parts"
    )
    packing.add_argument(
        "--side",
        type=positive,
        metavar="N",
        help="pixels of the shorter side of larger images (default: keep all bytes)",
    )
    packing.add_argument(
        "--quality",
        type=positive,
        metavar="N",
        help="quality of the JPEG files that --side makes (default: 90)",
    )
    packing.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="processes that --side uses (default: one per core, at most 8)",
    )
    verifying = actions.add_parser(
        "verify", help="compare every image in packed files with its checksum", allow_abbrev=False
    )
    verifying.add_argument("folder", metavar="PATH", help="a packed file, or a folder of them")
    indexing = actions.add_parser(
        "index", help="write the index of tar shards beside them", allow_abbrev=False
    )
    indexing.add_argument(
        "folder", metavar="SHARDS", help="a tar archive, a folder of them, or a pattern in quotes"
    )


def handle(args: argparse.Namespace) -> int:
    output = Output(json_result=args.json)
    if args.action == "scan":
        return _scan(args, output)
    if args.action in _SOURCE_ACTIONS:
        return _SOURCE_ACTIONS[args.action](args, output)
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


def _scan(args: argparse.Namespace, output: Output) -> int:
    job = ScanJob(
        folder=place(args.folder),
        list_file=Path(args.list) if args.list else None,
        workers=args.workers,
        cache=Path(args.cache) if args.cache else None,
        use_cache=not args.no_cache,
    )
    with _Watcher(output) as watcher:
        result = scan(job, watcher)
    output.result(result.to_dict(), scan_text(result, shorten=not args.all))
    if result.findings.wrong:
        raise DataError(f"{result.folder} has problems: {problems(result.findings)}")
    return 0


def _pack(args: argparse.Namespace, output: Output) -> int:
    if args.quality is not None and args.side is None:
        raise UsageError("--quality says how --side writes images; give --side too, or leave it out")
    job = PackJob(
        source=place(args.folder), target=local_path(args.target), side=args.side, quality=args.quality or 90,
        workers=args.workers,
    )  # fmt: skip
    with _Watcher(output) as watcher:
        result = pack(job, watcher)
    lines = [
        f"{result.files[name]}: {part.images} images, {part.smaller} made smaller, {part.bytes / 1e6:.1f} MB"
        + (f", {len(part.unreadable)} could not be read" if part.unreadable else "")
        for name, part in result.parts.items()
    ]
    output.result(result.to_dict(), "\n".join(lines))
    return 0


def _verify(args: argparse.Namespace, output: Output) -> int:
    with _Watcher(output) as watcher:
        result = verify(local_path(args.folder), watcher)
    output.result(
        result.to_dict(), "\n".join(f"{file}: {n} images are sound" for file, n in result.files.items())
    )
    return 0


def _index(args: argparse.Namespace, output: Output) -> int:
    result = make_index(str(local_path(args.folder)))
    output.result(result.to_dict(), f"{result.file}: {result.images} images in {result.shards} shards")
    return 0


_SOURCE_ACTIONS = {"pack": _pack, "verify": _verify, "index": _index}


class _Watcher(ProgressBar):
    """A bar of progress on a terminal, a line now and then elsewhere."""

    def __init__(self, output: Output) -> None:
        super().__init__(output)
        self._said = time.perf_counter()

    def __call__(self, record: Record) -> None:
        super().__call__(record)
        if not isinstance(record, Progress) or self._output.interactive:
            return
        if time.perf_counter() - self._said > _LINE_S:
            self._output.say(f"{record.what}: {record.done} of {record.total}")
            self._said = time.perf_counter()
