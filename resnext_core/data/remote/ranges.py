"""Parts of objects of a store: as files of ranges for shards, and as a stream for who reads a file here and there."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass

from resnext_core.data.look import WEB
from resnext_core.data.remote.access import NotThere, Status
from resnext_core.data.remote.ahead import Ahead, AheadReader
from resnext_core.data.remote.fetch import Fetch
from resnext_core.data.remote.files import version_number
from resnext_core.data.sources.ranges import RangeFile, RangeReader, Shard
from resnext_core.errors import DataError, shown
from resnext_core.files import Url

#: What is read at a time where a whole object is gone through, and how many of these are asked for at once.
_BLOCK, _BLOCKS_AHEAD = 4 << 20, 8
#: A store is asked again what an object is when it told it longer ago than this, in seconds.
_TRUSTED_S = 60.0


def described(url: str, fetch: Fetch) -> Status:
    """Return size and version of the object `url`; NotThere, or DataError where its store does not tell its size.

    DataError also where a web server answers no range requests, which is asked for files that are not small.
    """
    found = fetch.access.status(url)
    if found is None or found.folder:
        raise NotThere(f"there is no file {shown(url, 300)}; correct the URL")
    if found.size < 0:
        raise DataError(f"{shown(url, 300)}: the server does not tell its size; copy it to a local disk")
    if found.size > _BLOCK and Url(url).scheme in WEB:
        fetch.access.check_ranges(url, found.size)
    return found


class ObjectFile:
    """An object; each read is a request, kept in the cache. What it is is asked again once a minute."""

    def __init__(self, url: str, fetch: Fetch) -> None:
        self._url, self._fetch = url, fetch
        self._found, self._asked = described(url, fetch), time.monotonic()

    def read(self, offset: int, length: int) -> bytes:
        """See :class:`~resnext_core.data.sources.ranges.RangeFile`; raises as :meth:`Fetch.content`."""
        length = max(min(length, self._found.size - offset), 0)
        return self._fetch.content(self._url, self._found.version, offset, length)

    def stamp(self) -> tuple[int, int]:
        """See :class:`~resnext_core.data.sources.ranges.RangeFile`; the second number is of the version."""
        now = time.monotonic()
        if now - self._asked > _TRUSTED_S:
            self._asked = now  # before the answer, so that other threads do not ask too
            self._found = described(self._url, self._fetch)
        return self._found.size, version_number(self._found.version) >> 1


@dataclass
class ObjectFiles:
    """Objects by URL, each read where an image is."""

    fetch: Fetch
    window: int = 0  # the reader itself reads ahead, image by image

    def open(self, name: str) -> RangeFile:
        """See :class:`~resnext_core.data.sources.ranges.RangeFiles`."""
        return ObjectFile(name, self.fetch)


class GoneThrough(ObjectFile):
    """An object that is read from its begin to its end, in blocks, some of them ahead; nothing is kept."""

    def __init__(self, url: str, fetch: Fetch) -> None:
        super().__init__(url, fetch)
        self._ahead: Ahead[int, bytes] = Ahead(self._read_block)
        self._at, self._next, self._block = -1, 0, b""

    def read(self, offset: int, length: int) -> bytes:
        """See :class:`~resnext_core.data.sources.ranges.RangeFile`."""
        end = min(offset + length, self._found.size)
        if offset >= end:
            return b""
        first, last = offset // _BLOCK, (end - 1) // _BLOCK
        if first not in (self._at, self._next) or last - first > 1:
            self._next = last  # where it goes on after a large image
            return self._fetch.access.content(self._url, offset, end - offset, whole=False)
        found = b"".join(self._of(number) for number in range(first, last + 1))
        return found[offset - first * _BLOCK : end - first * _BLOCK]

    def _of(self, number: int) -> bytes:
        if number != self._at:
            blocks = -(-self._found.size // _BLOCK)
            self._ahead.expect(range(number, min(number + _BLOCKS_AHEAD, blocks)))
            self._block = self._ahead.take(number)
            self._at, self._next = number, number + 1
        return self._block

    def _read_block(self, number: int) -> bytes:
        offset = number * _BLOCK
        length = min(_BLOCK, self._found.size - offset)
        return self._fetch.access.content(self._url, offset, length, whole=False)


@dataclass
class FilesGoneThrough:
    """Objects by URL, for who makes an index of them."""

    fetch: Fetch
    window: int = 0

    def open(self, name: str) -> RangeFile:
        """See :class:`~resnext_core.data.sources.ranges.RangeFiles`."""
        return GoneThrough(name, self.fetch)


def object_reader(shards: Sequence[Shard], fetch: Fetch) -> AheadReader:
    """Return a reader of ranges of remote `shards`."""
    return AheadReader(RangeReader(shards, ObjectFiles(fetch)), fetch)


class ObjectStream(io.RawIOBase):
    """The object `url` of `size` bytes and `version`; what is read is kept in the cache unless `keep` is False."""

    def __init__(self, url: str, size: int, version: str, fetch: Fetch, *, keep: bool = True) -> None:
        self._url, self._size, self._fetch, self._at = url, size, fetch, 0
        self._version = version if keep else ""

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the offset of the next read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to `offset` and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """Return the next `size` bytes, fewer at the end; raises as :meth:`Fetch.content`."""
        left = max(self._size - self._at, 0)
        length = left if size is None or size < 0 else min(size, left)
        found = self._fetch.content(self._url, self._version, self._at, length)
        self._at += length
        return found

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill `buffer` from here; return how many bytes there were."""
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)
