"""The result of ``resnext-run data scan`` for people: counts, histograms, lists of files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from resnext_core.console.output import table
from resnext_core.data.findings import SIDES, File, Findings
from resnext_core.errors import counted, shown
from resnext_core.jobs.scan import ScanResult

#: Lines of a shortened list.
_MOST = 10
#: Characters of the longest bar.
_BAR = 40


def scan_text(result: ScanResult, *, shorten: bool) -> str:
    """Return `result` as lines; `shorten` cuts long lists."""
    most = _MOST if shorten else None
    return "\n".join([*_findings(result.findings, most), *_ends(result)])


def problems(found: Findings) -> str:
    """Return in words how many files or groups are wrong."""
    pairs = [
        (len(found.bad), "corrupt"),
        (len(found.contradictions), "in several classes"),
        (len(found.leaks), "in several parts"),
    ]
    return ", ".join(f"{n} {what}" for n, what in pairs if n)


def _findings(found: Findings, most: int | None) -> Iterator[str]:
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
    yield from _conversions(found)
    yield from _list("corrupt", [f"{b.file.name}: {b.reason}" for b in found.bad], most)
    for remarked in found.remarks:
        yield from _list(remarked.remark, [f.name for f in remarked.files], most)
    for title, groups in (
        ("same image in several classes", found.contradictions),
        ("same image in several parts", found.leaks),
        ("same image in several files", found.duplicates),
    ):
        yield from _list(title, [_group(group) for group in groups], most)


def _conversions(found: Findings) -> Iterator[str]:
    """Yield what is done to images that are more than upright 8-bit colours, and what changes it."""
    lines = []
    if found.orientations:
        by = ", ".join(f"{value}: {n}" for value, n in found.orientations.items())
        lines.append(
            f"EXIF orientation in {counted(sum(found.orientations.values()), 'image')} ({by}): ignored; "
            "a training with preprocess.orientation=apply turns them, and so does its network afterwards"
        )
    if found.alpha:
        lines.append(
            f"transparency in "
            f"{counted(found.alpha, 'image')}: dropped, the colours under it are used; to blend them with a "
            "background, convert the files"
        )
    if found.deep:
        by = ", ".join(f"{bits} bits: {n}" for bits, n in found.deep.items())
        lines.append(
            f"more than 8 bits in "
            f"{counted(sum(found.deep.values()), 'image')} ({by}): the upper 8 of those that the file says it "
            "uses; for another range of values, convert the files to 8 bits"
        )
    if lines:
        yield from ("", *lines)


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


def _ends(result: ScanResult) -> Iterator[str]:
    yield ""
    corrupt = len(result.findings.bad)
    if result.list_file is not None and corrupt:
        yield (
            f"{counted(corrupt, 'corrupt file is', 'corrupt files are')} listed in {result.list_file}; to leave them "
            "out of a training: "
            f"--set data.quarantine={result.list_file}"
        )
    elif result.list_file is not None:
        yield f"{result.list_file} is empty: every file can be read"
    rate = f" ({result.read / max(result.seconds, 1e-9):.0f} files/s)" if result.read else ""
    yield f"{counted(result.read, 'file')} read, {result.remembered} cached, in {result.seconds:.1f} s{rate}"
    if result.trouble is not None:
        yield f"warning: {result.trouble}"
