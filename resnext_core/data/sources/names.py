"""How core's own sources are recognised: by names, patterns of names, and first bytes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from resnext_core.data.folders import is_folder, is_image
from resnext_core.errors import DataError
from resnext_core.files import is_url

_BRACES = re.compile(r"\{([^{}]*)\}")
_SPAN = re.compile(r"(\d+)\.\.(\d+)")
#: More shards than this are a slip of the keyboard.
_MOST = 1_000_000
#: The ending of packed files, and their first bytes.
PACKED, PACKED_MAGIC = ".pack", b"RESNEXT-PACK\r\n\x1a\n"
_COMPRESSED = re.compile(r"\.(tgz|tbz2|txz|tar\.(gz|bz2|xz|zst|lz4|lzma|Z))$")


def expanded(pattern: str) -> list[str]:
    """Return the texts of a pattern with braces: ``{000..127}`` counts, with leading zeros, ``{a,b}`` lists."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    inside = match[1]
    if (span := _SPAN.fullmatch(inside)) is not None:
        first, last = int(span[1]), int(span[2])
        if not first <= last < first + _MOST:
            raise DataError(f"{pattern}: {{{inside}}} is not a range of at most {_MOST} shards")
        width = len(span[1]) if span[1].startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in range(first, last + 1)]
    elif "," in inside:
        choices = inside.split(",")
    else:
        raise DataError(f"{pattern}: {{{inside}}} must be a range like 000..127 or a list like a,b")
    before, after = pattern[: match.start()], pattern[match.end() :]
    rests = expanded(after)
    if len(choices) * len(rests) > _MOST:
        raise DataError(f"{pattern} stands for more than {_MOST} shards")
    return [before + choice + rest for choice in choices for rest in rests]


def is_compressed(name: str) -> bool:
    """Return whether a file of this name is a compressed tar archive."""
    return _COMPRESSED.search(name) is not None


def is_shard(name: str) -> bool:
    """Return whether a file of this name is a tar archive, compressed or not."""
    return name.endswith(".tar") or is_compressed(name)


def is_shards(path: str) -> bool:
    """Return whether `path` is a tar archive, a pattern of several, or a folder of them, see :func:`are_files`."""
    return are_files(path, is_shard)


def are_files(path: str, is_one: Callable[[str], bool]) -> bool:
    """Return whether `path` is a file of a kind, a pattern of several, or a folder of them without images and folders.

    `is_one` says by its name whether a file is of the kind. A folder with class folders or images stays one, whatever
    else lies in it. Of a URL the text alone is looked at.
    """
    if is_url(path):
        return is_one(path)
    if not (is_one(path) or os.path.isdir(path)):
        return False
    if os.path.isfile(path):
        return True
    if not os.path.isdir(path):
        return re.search(r"[{*?\[]", os.path.basename(path)) is not None
    some = False
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if is_folder(entry) or is_image(entry.name):
                    return False
                some = some or is_one(entry.name)
    except OSError:
        return False
    return some


def is_packed(path: str) -> bool:
    """Return whether `path` is a file that is packed, by its ending or its first bytes."""
    if is_url(path):
        return path.endswith(PACKED)
    if not os.path.isfile(path):
        return False
    if path.endswith(PACKED):
        return True
    try:
        with open(path, "rb") as stream:
            return stream.read(len(PACKED_MAGIC)) == PACKED_MAGIC
    except OSError:
        return False
