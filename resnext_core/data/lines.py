"""Lines of text files written by hand: one reader for lists of images, class names and quarantined files."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from resnext_core.data.remote.access import Access
from resnext_core.errors import DataError, ResnextError, UsageError, quoted, reason
from resnext_core.files import Place, Url

#: Bytes that are read at a time; a line may not be longer.
_BLOCK = 1 << 20
#: Line breaks and other control characters, which are not allowed in class names.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def has_control(text: str) -> bool:
    """Return whether `text` has a control character or a line break."""
    return _CONTROL.search(text) is not None


def blocks(stream: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    """Yield blocks: the number (from 1) of the first line, and that line and the following ones, each ended by ``\\n``.

    A byte-order mark at the start and the ``\\r`` of Windows line ends are removed. Raises DataError, with `name` for
    the stream, for a line of more than 1 MiB.
    """
    number, rest = 1, b""
    while block := stream.read(_BLOCK):
        if number == 1 and not rest:
            block = block.removeprefix(b"\xef\xbb\xbf")
        block = rest + block
        cut = block.rfind(b"\n") + 1
        rest = block[cut:]
        if len(rest) > _BLOCK:
            raise DataError(
                f"{name}:{number}: the line is longer than {_BLOCK >> 20} MiB; this is not a text file"
            )
        if cut:
            block = block[:cut].replace(b"\r\n", b"\n")
            yield number, block
            number += block.count(b"\n")
    if rest:
        yield number, rest.removesuffix(b"\r") + b"\n"


def text_blocks(path: Place, kind: str, error: type[ResnextError] = DataError) -> Iterator[tuple[int, bytes]]:
    """Yield the :func:`blocks` of a UTF-8 file; errors of class `error` name the file and the line that is not UTF-8.

    `kind` describes the file in the message.
    """
    try:
        with (
            io.BytesIO(Access().all_content(str(path)))
            if isinstance(path, Url)
            else path.open("rb") as stream
        ):
            for number, block in blocks(stream, str(path)):
                try:
                    if not block.isascii():
                        block.decode()
                except UnicodeDecodeError as wrong:
                    line = number + block.count(b"\n", 0, wrong.start)
                    wide = number == 1 and block.startswith((b"\xff\xfe", b"\xfe\xff"))
                    raise error(
                        f"{path} is not a UTF-8 {kind} ({'it is UTF-16' if wide else f'line {line}'}); save it as UTF-8"
                    ) from None
                yield number, block
    except OSError as wrong:
        raise error(f"cannot read {path}: {reason(wrong)}") from wrong


def text_lines(path: Place, kind: str, error: type[ResnextError] = DataError) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line of a UTF-8 file, without its end; raises as :func:`text_blocks`."""
    for number, block in text_blocks(path, kind, error):
        yield from enumerate(block.decode()[:-1].split("\n"), number)


def byte_lines(stream: BinaryIO, name: str) -> Iterator[bytes]:
    """Yield each line of a stream, without its end; the bytes need not be UTF-8."""
    for _, block in blocks(stream, name):
        yield from block[:-1].split(b"\n")


def class_names(path: Path) -> tuple[str, ...]:
    """Return the class names of a UTF-8 file, one a line; blanks around them and empty lines are left out.

    Raises UsageError or DataError if it cannot be read, and for a duplicate name, with both lines.
    """
    seen: dict[str, int] = {}
    for number, line in text_lines(path, "list of class names", UsageError):
        name = line.strip()
        if not name:
            continue
        if has_control(name):
            raise DataError(f"{path}:{number}: the class name has a control character; remove it")
        if name in seen:
            raise DataError(
                f"{path}:{number}: the class name {quoted(name)} is already on line {seen[name]}; class "
                "names must be unique"
            )
        seen[name] = number
    return tuple(seen)
