"""``resnext-run data pack``, ``verify`` and ``index``: all images in one file a part, and what shards hold."""

from __future__ import annotations

import argparse

from resnext_core.cli.data_scan import Watcher
from resnext_core.console.flags import positive
from resnext_core.console.output import Output
from resnext_core.errors import UsageError, counted
from resnext_core.files import local_path, place
from resnext_core.jobs.pack import PackJob, make_index, pack, verify

_PACK = """\
Write all images of DATA, with their labels, into one file a part, which is read faster than many small files. Every
command takes the result as it takes a folder. Without --side the bytes of every image are kept. With --side larger
images are made smaller and written as JPEG; all others keep their bytes. No file is replaced.
"""


def add_pack(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the actions to those of ``data``."""
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


def _pack(args: argparse.Namespace, output: Output) -> int:
    if args.quality is not None and args.side is None:
        raise UsageError("--quality says how --side writes images; give --side too, or leave it out")
    job = PackJob(
        source=place(args.folder), target=local_path(args.target), side=args.side, quality=args.quality or 90,
        workers=args.workers,
    )  # fmt: skip
    with Watcher(output) as watcher:
        result = pack(job, watcher)
    lines = [
        f"{result.files[name]}: {counted(part.images, 'image')}, {part.smaller} made smaller, {part.bytes / 1e6:.1f} MB"
        + (f", {len(part.unreadable)} could not be read" if part.unreadable else "")
        for name, part in result.parts.items()
    ]
    output.result(result.to_dict(), "\n".join(lines))
    return 0


def _verify(args: argparse.Namespace, output: Output) -> int:
    with Watcher(output) as watcher:
        result = verify(local_path(str(place(args.folder))), watcher)
    output.result(
        result.to_dict(),
        "\n".join(
            f"{file}: {counted(n, 'image is', 'images are')} sound" for file, n in result.files.items()
        ),
    )
    return 0


def _index(args: argparse.Namespace, output: Output) -> int:
    result = make_index(str(local_path(str(place(args.folder)))))
    output.result(
        result.to_dict(),
        f"{result.file}: {counted(result.images, 'image')} in {counted(result.shards, 'shard')}",
    )
    return 0


PACK_ACTIONS = {"pack": _pack, "verify": _verify, "index": _index}
