"""``resnext-run data scan``: every file of a data folder, decoded once, and what would spoil a training."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from resnext_core.cli.common import add_json_flag, positive
from resnext_core.cli.output import Output, ProgressBar, table
from resnext_core.data.findings import SIDES, File, Findings, absolute, find
from resnext_core.data.index import Index
from resnext_core.data.loader import default_workers
from resnext_core.data.quarantine import Quarantine, write_list
from resnext_core.data.scan import Memory, Scan, scan_files
from resnext_core.errors import DataError, Interrupted, shown
from resnext_core.files import cache_folder, check_target
from resnext_core.ranks.signals import StopRequest
from resnext_core.runs.records import Progress

DESCRIPTION = """\
Decode every file as training would. Exit code 3 when files are corrupt, when one picture is in two parts, or when it
has two classes; the same picture twice in a class is reported and no error. What was seen is remembered: an unchanged
file is not read again, and a scan that was stopped continues.
"""

#: Lines of a long list that people see without --all.
_SHOWN = 10
#: Width of the largest bar, and seconds between two lines where no bar of progress can be drawn.
_BAR, _SAY_S = 40, 10.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="folder with train/ and val/, or one of class folders")
    parser.add_argument("--list", metavar="FILE", help="write the corrupt files there, for data.quarantine")
    parser.add_argument("--all", action="store_true", help="print long lists whole")
    parser.add_argument(
        "--workers", type=positive, metavar="N", help="processes that decode (default: one a core, at most 8)"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--cache", metavar="DIR", help="where to remember (default: ~/.cache/resnext)")
    where.add_argument("--no-cache", action="store_true", help="read every file, remember nothing")
    add_json_flag(parser)


def handle(args: argparse.Namespace, folder: Path, parts: Mapping[str, Index], output: Output) -> int:
    names = Quarantine(folder if os.path.isdir(folder) else folder.parent)
    paths = [absolute(index, i) for index in parts.values() for i in range(len(index))]
    if args.list:
        check_target(Path(args.list))  # before hours of decoding
    memory = Memory(None if args.no_cache else Path(args.cache or cache_folder()), folder)
    started = time.perf_counter()
    scan = _scan(paths, memory, args.workers or max(default_workers(), 1), output)
    seconds = time.perf_counter() - started
    if scan is None:
        kept = "what was seen is remembered, and the same command continues"
        raise Interrupted(
            f"stopped; {kept if memory.trouble is None and not args.no_cache else 'start again'}"
        )
    found = find(parts, scan.facts, names)
    if args.list:
        header = "files that cannot be decoded, by resnext-run data scan"
        write_list(Path(args.list), [b.file.name for b in found.bad], header)
    value = {
        "folder": str(folder), "read": scan.read, "remembered": scan.remembered, "seconds": round(seconds, 3),
        **found.to_dict(), "list": args.list,
    }  # fmt: skip
    most = None if args.all else _SHOWN
    lines = [*_text(found, most), *_ends(scan, seconds, memory, found, args.list)]
    output.result(value, "\n".join(lines))
    if found.wrong:
        raise DataError(f"{folder} is not sound: {', '.join(_counts(found))}")
    return 0


def _scan(paths: Sequence[str], memory: Memory, workers: int, output: Output) -> Scan | None:
    bar = ProgressBar(output)
    said = time.perf_counter()

    def on_progress(done: int, total: int) -> None:
        nonlocal said
        bar(Progress(what="scan", done=done, total=total))
        if not output.interactive and time.perf_counter() - said > _SAY_S:
            output.say(f"{done} of {total} files")
            said = time.perf_counter()

    with StopRequest() as stop:
        try:
            return scan_files(
                paths, memory, workers=workers, on_progress=on_progress, stop=lambda: stop.requested
            )
        finally:
            bar.close()


# -- what people read ----------------------------------------------------------------------------


def _text(found: Findings, most: int | None) -> Iterator[str]:
    images = ", ".join(f"{part} {n}" for part, n in found.images.items())
    formats = ", ".join(f"{name} {n}" for name, n in found.formats.items())
    yield f"images    {images}; {found.bytes / 1e6:.1f} MB; {formats or 'none can be read'}"
    if found.sides:
        yield f"width     {_spread(found.widths)}"
        yield f"height    {_spread(found.heights)}"
        yield ""
        yield from _histogram(found)
    if any(found.classes.values()):
        yield ""
        yield from _balance(found)
    yield from _list("corrupt", [f"{b.file.name}: {b.reason}" for b in found.bad], most)
    for remarked in found.remarks:
        yield from _list(remarked.remark, [f.name for f in remarked.files], most)
    for title, groups in (
        ("one picture, several classes", found.contradictions),
        ("one picture, several parts", found.leaks),
        ("one picture, several files", found.duplicates),
    ):
        yield from _list(title, [_group(group) for group in groups], most)


def _spread(values: tuple[int, int, int]) -> str:
    return f"{values[0]} to {values[2]} pixels, median {values[1]}"


def _histogram(found: Findings) -> Iterator[str]:
    most = max(found.sides.values())
    ends = dict(zip(SIDES, [*(f"{end - 1}" for end in SIDES[1:]), ""], strict=True))
    rows = [
        [f"{low} to {ends[low]}" if ends[low] else f"{low} and more", str(n), _bar(n, most)]
        for low, n in found.sides.items()
    ]
    yield table(rows, ["shorter side", "images", ""])


def _balance(found: Findings) -> Iterator[str]:
    first = next(iter(found.classes))
    most = max(found.classes[first].values(), default=0)
    rows = [
        [name, *(str(counts.get(name, 0)) for counts in found.classes.values()), _bar(n, most)]
        for name, n in found.classes[first].items()
    ]
    yield table(rows, ["class", *found.classes, ""])
    least = min(found.classes[first].values())
    if least:
        yield f"the largest class of {first} has {most / least:.1f} times the images of the smallest"
    for part, name in found.empty:
        yield f"{part} has no image of the class {shown(name, None)}"


def _bar(n: int, most: int) -> str:
    return "#" * max(round(_BAR * n / most), n > 0) if most else ""


def _group(group: Sequence[File]) -> str:
    return " = ".join(f.name for f in group)


def _list(title: str, lines: Sequence[str], most: int | None) -> Iterator[str]:
    if not lines:
        return
    yield ""
    yield f"{title}: {len(lines)}"
    yield from (f"  {shown(line, None)}" for line in lines[:most])
    if most is not None and len(lines) > most:
        yield f"  and {len(lines) - most} more (--all prints them, --json has them too)"


def _counts(found: Findings) -> list[str]:
    pairs: list[tuple[int, Any]] = [
        (len(found.bad), "corrupt"),
        (len(found.contradictions), "with several classes"),
        (len(found.leaks), "in several parts"),
    ]
    return [f"{n} {what}" for n, what in pairs if n]


def _ends(scan: Scan, seconds: float, memory: Memory, found: Findings, listed: str | None) -> Iterator[str]:
    yield ""
    if listed and found.bad:
        yield (
            f"{len(found.bad)} corrupt files are listed in {listed}; train without trying them: "
            f"--set data.quarantine={listed}"
        )
    elif listed:
        yield f"{listed} is empty: every file can be read"
    rate = f" ({scan.read / max(seconds, 1e-9):.0f} files/s)" if scan.read else ""
    yield f"{scan.read} files read, {scan.remembered} known from before, in {seconds:.1f} s{rate}"
    if memory.trouble is not None:
        yield f"warning: {memory.trouble}"
