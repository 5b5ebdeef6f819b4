"""Tar shards as a source: the WebDataset layout, or class folders inside the archives."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resnext_core.config import DataConfig
from resnext_core.data.look import matching
from resnext_core.data.remote.fetch import Fetch, fetch_of
from resnext_core.data.remote.ranges import FilesGoneThrough, object_reader
from resnext_core.data.sources.base import Listing, Reader
from resnext_core.data.sources.names import expanded, is_compressed, is_shard
from resnext_core.data.sources.ranges import LocalFiles, RangeFiles, RangeReader, Shard, located, lost
from resnext_core.data.sources.shard_index import ShardIndex, beside, cached_index, indexed, write_index
from resnext_core.errors import DataError, counted, reason, shown
from resnext_core.files import Place, Url, is_url

#: A remark tells how long an index took from so many seconds on.
_LONG_S = 5.0


class ShardSource:
    """The images in tar shards, local ones, or remote ones that `fetch` reads."""

    def __init__(self, shards: Sequence[Shard], index: ShardIndex, fetch: Fetch | None) -> None:
        self._shards, self._fetch = tuple(shards), fetch
        self._starts = index.starts
        self._offsets, self._sizes = index.table.offsets, index.table.sizes

    def locator(self, i: int) -> bytes:
        """Return shard, offset and size of image `i`."""
        return located(self._shard(i), int(self._offsets[i]), int(self._sizes[i]))

    def reader(self) -> Reader:
        """Return a reader of these shards."""
        if self._fetch is not None:
            return object_reader(self._shards, self._fetch)
        return RangeReader(self._shards, LocalFiles())

    def size(self, i: int) -> int:
        """Return the bytes of image `i`."""
        return int(self._sizes[i])

    def blame(self, i: int, number: int) -> None:
        """Raise DataError if the local shard of image `i` can no longer be opened."""
        if self._fetch is not None:
            return  # its reader has said so itself
        shard = self._shards[self._shard(i)]
        try:
            LocalFiles().open(shard.name).stamp()
        except OSError as error:
            raise lost(shard, error) from error

    def _shard(self, i: int) -> int:
        return int(np.searchsorted(self._starts, i, side="right")) - 1


def open_shards(path: str, data: DataConfig) -> Listing:
    """Return what the shards of `path` hold: a tar archive, a folder of them, or a pattern like ``a-{00..63}.tar``.

    The path may be a URL, where a folder is given as ``folder/*.tar``. Raises DataError where a shard is missing,
    compressed, damaged or cut short, and where labels are missing or ambiguous.
    """
    files: RangeFiles = LocalFiles()
    if not is_url(path):
        root, names = shard_paths(path)
        return _listing(path, root, names, [os.path.abspath(root / name) for name in names], files)
    fetch = fetch_of(data)
    url = Url(path)
    names = matching(url, fetch.access)
    _refuse_compressed(str(url.parent), names)
    return _listing(
        path, url.parent, names, [str(url.parent / name) for name in names], FilesGoneThrough(fetch), fetch
    )


def keep_index(path: str) -> tuple[Path, int, int]:
    """Write the index of the shards `path` beside them: return the file, the number of shards and of images."""
    root, names = shard_paths(path)
    files = LocalFiles()
    shards = _stamped([os.path.abspath(root / name) for name in names], files)
    builder, meta = indexed(names, shards, files)
    write_index(beside(path), builder, meta)
    return beside(path), len(names), len(builder)


def _listing(
    path: str,
    root: Place,
    names: Sequence[str],
    opened: Sequence[str],
    files: RangeFiles,
    fetch: Fetch | None = None,
) -> Listing:
    """Return what the shards hold that `files` opens under the names `opened`; they are called `names` in `root`."""
    shards = _stamped(opened, files)
    started = time.perf_counter()
    index, remark = cached_index(path, names, shards, files)
    seconds = time.perf_counter() - started
    if remark == "" and seconds > _LONG_S:
        remark = f"made an index of {counted(len(shards), 'shard')} in {seconds:.0f} s, which is kept"
    return index.listing(root, ShardSource(shards, index, fetch), (remark,) if remark else ())


def _stamped(names: Sequence[str], files: RangeFiles) -> list[Shard]:
    shards = []
    for name in names:
        try:
            shards.append(Shard(name=name, stamp=files.open(name).stamp()))
        except OSError as error:
            raise DataError(f"cannot read the shard {shown(name, None)}: {reason(error)}") from error
    return shards


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


def _refuse_compressed(path: str, names: Sequence[str]) -> None:
    for name in names:
        if is_compressed(name):
            raise DataError(
                f"{path if path.endswith(name) else os.path.join(path, name)} is compressed, so that no image can be "
                "found in it; unpack it to a .tar"
            )
