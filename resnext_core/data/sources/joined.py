"""Several sources one after another, as one."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from resnext_core.data.content import Content
from resnext_core.data.sources.base import ImageSource, Reader, RemoteReader

_PART = struct.Struct("<I")


class JoinedSource:
    """The images of `sources`, of which each has as many as `counts` says."""

    def __init__(self, sources: Sequence[ImageSource], counts: Sequence[int]) -> None:
        self._sources, self._starts = tuple(sources), [0, *accumulate(counts)]

    def locator(self, i: int) -> bytes:
        """Return the number of a source and its locator."""
        part, at = self._place(i)
        return _PART.pack(part) + self._sources[part].locator(at)

    def reader(self) -> JoinedReader:
        """Return a reader of all sources."""
        return JoinedReader([source.reader() for source in self._sources])

    def size(self, i: int) -> int:
        """Return the bytes of image `i`, -1 where it is gone."""
        part, at = self._place(i)
        return self._sources[part].size(at)

    def blame(self, i: int, number: int) -> None:
        """Ask the source of image `i`."""
        part, at = self._place(i)
        self._sources[part].blame(at, number)

    def _place(self, i: int) -> tuple[int, int]:
        part = bisect_right(self._starts, i) - 1
        return part, i - self._starts[part]


class JoinedReader:
    """Reads with the reader that a locator names."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self._readers = tuple(readers)

    def read(self, locator: bytes) -> Content:
        """See :class:`~resnext_core.data.sources.base.Reader`."""
        return self._readers[_part(locator)].read(locator[_PART.size :])

    def stamp(self, locator: bytes) -> tuple[int, int]:
        """See :class:`~resnext_core.data.sources.base.Reader`."""
        return self._readers[_part(locator)].stamp(locator[_PART.size :])

    def ahead(self, locators: Sequence[bytes]) -> None:
        """Tell each reader that can make use of it what comes."""
        for part, reader in enumerate(self._readers):
            if isinstance(reader, RemoteReader):
                reader.ahead([locator[_PART.size :] for locator in locators if _part(locator) == part])

    def take_notes(self) -> list[str]:
        """Return the notes of all readers."""
        return [
            note
            for reader in self._readers
            if isinstance(reader, RemoteReader)
            for note in reader.take_notes()
        ]


def _part(locator: bytes) -> int:
    part: int = _PART.unpack_from(locator)[0]
    return part
