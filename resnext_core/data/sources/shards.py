"""Tar shards as a source: the WebDataset layout, or class folders inside the archives."""

from __future__ import annotations

import glob
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resnext_core.data.sources.base import Listing
from resnext_core.data.sources.kinds import is_compressed, is_shard
from resnext_core.data.sources.ranges import LocalFiles, RangeFiles, RangeReader, Shard, located, lost
from resnext_core.data.sources.shard_index import ShardIndex, cached_index
from resnext_core.errors import DataError, reason, shown

_BRACES = re.compile(r"\{([^{}]*)\}")
_SPAN = re.compile(r"(\d+)\.\.(\d+)")
#: More shards than this are a slip of the keyboard.
_MOST = 1_000_000
#: A remark tells how long an index took from so many seconds on.
_LONG_S = 5.0


class ShardSource:
    """The images in tar shards."""

    def __init__(self, shards: Sequence[Shard], index: ShardIndex, files: RangeFiles) -> None:
        self._shards, self._files = tuple(shards), files
        self._starts = index.starts
        self._offsets, self._sizes = index.table.offsets, index.table.sizes

    def locator(self, i: int) -> bytes:
        """Return shard, offset and size of image `i`."""
        return located(self._shard(i), int(self._offsets[i]), int(self._sizes[i]))

    def reader(self) -> RangeReader:
        """Return a reader of these shards."""
        return RangeReader(self._shards, self._files)

    def size(self, i: int) -> int:
        """Return the bytes of image `i`."""
        return int(self._sizes[i])

    def blame(self, i: int, number: int) -> None:
        """Raise DataError if the shard of image `i` can no longer be opened."""
        shard = self._shards[self._shard(i)]
        try:
            self._files.open(shard.name).stamp()
        except OSError as error:
            raise lost(shard, error) from error

    def _shard(self, i: int) -> int:
        return int(np.searchsorted(self._starts, i, side="right")) - 1


def open_shards(path: str) -> Listing:
    """Return what the shards of `path` hold: a tar archive, a folder of them, or a pattern like ``a-{00..63}.tar``.

    Raises DataError where one is missing, compressed, damaged or cut short, and where labels are missing or ambiguous.
    """
    root, names = shard_paths(path)
    return shards_listing(path, root, names, [os.path.abspath(root / name) for name in names], LocalFiles())


def shards_listing(
    path: str, root: Path, names: Sequence[str], opened: Sequence[str], files: RangeFiles
) -> Listing:
    """Return what the shards hold that `files` opens under the names `opened`; they are called `names` in `root`."""
    shards = []
    for name in opened:
        try:
            shards.append(Shard(name=name, stamp=files.open(name).stamp()))
        except OSError as error:
            raise DataError(f"cannot read the shard {shown(name, None)}: {reason(error)}") from error
    started = time.perf_counter()
    index, remark = cached_index(path, names, shards, files)
    seconds = time.perf_counter() - started
    if remark == "" and seconds > _LONG_S:
        remark = f"made an index of {len(shards)} shards in {seconds:.0f} s, which is kept"
    return index.listing(root, ShardSource(shards, index, files), (remark,) if remark else ())


def shard_paths(path: str) -> tuple[Path, list[str]]:
    """Return the folder of the shards and their file names in order; DataError where one is missing."""
    if os.path.isdir(path):
        names = sorted(name for name in os.listdir(path) if is_shard(name) and not name.startswith("."))
        _refuse_compressed(path, names)
        return Path(path), names
    folder, _, pattern = path.replace(os.sep, "/").rpartition("/")
    root = Path(folder or ("/" if path.startswith("/") else "."))
    if os.path.exists(path):
        names = [pattern]
    elif "{" in pattern:
        names = expanded(pattern)
        missing = [name for name in names if not os.path.isfile(root / name)]
        if missing:
            raise DataError(
                f"{len(missing)} of the {len(names)} shards of {path} are missing, e.g. {root / missing[0]}; "
                "correct the pattern, or copy them"
            )
    else:
        names = sorted(
            os.path.basename(name) for name in glob.glob(os.path.join(glob.escape(str(root)), pattern))
        )
        if not names:
            raise DataError(f"there are no shards {path}; correct the pattern")
    _refuse_compressed(path, names)
    return root, names


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
    found = [before + choice + rest for choice in choices for rest in expanded(after)]
    if len(found) > _MOST:
        raise DataError(f"{pattern} stands for more than {_MOST} shards")
    return found


def _refuse_compressed(path: str, names: Sequence[str]) -> None:
    for name in names:
        if is_compressed(name):
            raise DataError(
                f"{path if path.endswith(name) else os.path.join(path, name)} is compressed, so that no image can be "
                "found in it; unpack it to a .tar"
            )
