"""A packed file as a source: all images of a part of the data in one file, with a table that is mapped."""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from resnext_core.config import DataConfig
from resnext_core.data.content import BadImage
from resnext_core.data.remote.ahead import AheadReader
from resnext_core.data.remote.fetch import Fetch, fetch_of
from resnext_core.data.remote.ranges import ObjectFiles
from resnext_core.data.sources.base import Listing, Reader
from resnext_core.data.sources.names import PACKED_MAGIC
from resnext_core.data.sources.ranges import LocalFiles, RangeFile, RangeReader, Shard, located, lost
from resnext_core.data.sources.table import HEAD, Table, read_table, table_of, table_span
from resnext_core.errors import DataError, reason
from resnext_core.files import Place, Url, is_url

#: The number of the only shard, and how the locator of an image begins that could not be read when it was made.
_FILE, _REFUSED = 0, located(1, 0, 0)
_WHAT = "packed file"
#: Bytes that a check reads at a time.
_BLOCK = 8 << 20
#: Rows of the table that are looked at at a time.
_ROWS = 1 << 18


class PackedReader(RangeReader):
    """Reads a packed file; a locator may hold the reason why an image could not be packed."""

    def read(self, locator: bytes) -> bytes:
        """See :class:`~resnext_core.data.sources.base.Reader`."""
        _refuse(locator)
        return super().read(locator)

    def stamp(self, locator: bytes) -> tuple[int, int]:
        """See :class:`~resnext_core.data.sources.base.Reader`."""
        _refuse(locator)
        return super().stamp(locator)


class PackedSource:
    """The images in the packed file `shard` with the table `table`: a local one, or a remote one that `fetch` reads."""

    def __init__(self, shard: Shard, table: Table, fetch: Fetch | None = None) -> None:
        self._shard, self._fetch = shard, fetch
        self._offsets, self._sizes = table.offsets, table.sizes
        self._unreadable: dict[int, str] = {int(i): why for i, why in table.meta["unreadable"].items()}

    def locator(self, i: int) -> bytes:
        """Return offset and size of image `i`, or why it is not there."""
        if (why := self._unreadable.get(i)) is not None:
            return _REFUSED + why.encode(errors="surrogateescape")
        return located(_FILE, int(self._offsets[i]), int(self._sizes[i]))

    def reader(self) -> Reader:
        """Return a reader of this file."""
        if self._fetch is not None:
            return AheadReader(PackedReader((self._shard,), ObjectFiles(self._fetch)), self._fetch)
        return PackedReader((self._shard,), LocalFiles())

    def size(self, i: int) -> int:
        """Return the bytes of image `i`, -1 where it could not be read when the file was made."""
        return -1 if i in self._unreadable else int(self._sizes[i])

    def blame(self, i: int, number: int) -> None:
        """Raise DataError if the local file can no longer be opened."""
        if self._fetch is not None:
            return  # its reader has said so itself
        try:
            LocalFiles().open(self._shard.name).stamp()
        except OSError as error:
            raise lost(self._shard, error) from error


def open_packed(path: str, data: DataConfig) -> Listing:
    """Return what a packed file holds; DataError where it is damaged, cut short, or of another version."""
    if is_url(path):
        fetch = fetch_of(data)
        file = ObjectFiles(fetch).open(path)
        shard = Shard(name=path, stamp=file.stamp())
        remote = _remote_table(Url(path), file)
        _check(path, remote)
        return _listing(Url(path), remote, PackedSource(shard, remote, fetch))
    full = os.path.abspath(path)
    try:
        with open(full, "rb") as stream:  # one file, also where another gets its name meanwhile
            table = table_of(stream, Path(path), PACKED_MAGIC, _WHAT)
            status = os.fstat(stream.fileno())
        shard = Shard(name=full, stamp=(status.st_size, status.st_mtime_ns))
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason(error)}") from error
    _check(path, table)
    return _listing(Path(path), table, PackedSource(shard, table))


def _listing(root: Place, table: Table, source: PackedSource) -> Listing:
    return Listing(
        root=root, paths=table.paths, source=source, labels=table.labels,
        classes=tuple(table.meta["classes"]), named=table.meta["named"],
    )  # fmt: skip


def _check(path: str, table: Table) -> None:
    """Raise DataError unless the table is that of a packed file: its checksum says nothing about who wrote it."""
    meta = table.meta
    known = (
        isinstance(meta.get("classes"), list) and all(isinstance(name, str) for name in meta["classes"])
        and isinstance(meta.get("named"), bool) and isinstance(meta.get("unreadable"), dict)
        and all(i.isdecimal() and isinstance(why, str) for i, why in meta["unreadable"].items())
    )  # fmt: skip
    wrong = None if known and table.checksums is not None else "it lacks something"
    for first in range(0, 0 if wrong else len(table.labels), _ROWS):
        part = slice(first, first + _ROWS)
        labels, offsets = table.labels[part], table.offsets[part]
        if labels.min() < -1 or labels.max() >= len(meta["classes"]):
            wrong = "it has labels that are no classes"
        elif (offsets > table.end).any() or (table.sizes[part] > table.end - offsets).any():
            wrong = "it has images outside the file"
    if wrong is not None:
        raise DataError(f"{path} is not as this release packs files: {wrong}; pack it again")


def _remote_table(url: Url, file: RangeFile) -> Table:
    """Return the table of a remote packed file, from a file of its size with holes in place of the images."""
    size = file.stamp()[0]
    head = file.read(0, HEAD)
    start, length = table_span(head, size)
    with tempfile.TemporaryFile() as holes:
        holes.truncate(size)
        holes.write(head)
        holes.seek(start)
        holes.write(file.read(start, length))
        holes.flush()
        return table_of(holes, url, PACKED_MAGIC, _WHAT)


def read_packed(path: Path) -> Table:
    """Return the table of a packed file, which is checked; raises DataError."""
    table = read_table(path, PACKED_MAGIC, _WHAT)
    _check(str(path), table)
    return table


def packed_meta(
    classes: tuple[str, ...], named: bool, unreadable: Mapping[int, str], made: Any
) -> dict[str, Any]:
    """Return what the table of a packed file says beside its columns; `made` says how it was made, for people."""
    return {
        "classes": list(classes), "named": named, "unreadable": {str(i): why for i, why in unreadable.items()},
        "made": made,
    }  # fmt: skip


def damaged(path: Path, table: Table) -> Iterator[tuple[int, str | None]]:
    """Yield the number of images that were checked so far, and the name of one that is damaged, or None."""
    assert table.checksums is not None
    with path.open("rb") as stream:
        for i, name in enumerate(table.paths):
            stream.seek(int(table.offsets[i]))
            left, checksum = int(table.sizes[i]), 0
            while left and (block := stream.read(min(left, _BLOCK))):
                checksum, left = zlib.crc32(block, checksum), left - len(block)
            yield i + 1, None if not left and checksum == int(table.checksums[i]) else name


def _refuse(locator: bytes) -> None:
    """Raise BadImage for an image that could not be read when the file was made."""
    if locator.startswith(_REFUSED):
        raise BadImage("of a packed file", locator[len(_REFUSED) :].decode(errors="surrogateescape"))
