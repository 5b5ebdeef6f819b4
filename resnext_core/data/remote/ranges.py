"""An object of a store as a file for reading, each read a request for that part."""

from __future__ import annotations

import io

from resnext_core.data.remote.fetch import Fetch


class RangeFile(io.RawIOBase):
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
