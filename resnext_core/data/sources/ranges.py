"""Images that are ranges of larger files: one reader for shards and packed files, local or not."""

from __future__ import annotations

import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from resnext_core.data.content import MAX_BYTES, BadImage, open_regular
from resnext_core.data.faults import blame_machine
from resnext_core.errors import DataError, reason, shown

#: Files that a reader keeps open.
_OPEN = 128
#: A read that begins at most this many bytes after the last one ended goes on with it: headers and labels lie between.
_GAP = 64 << 10

_LOCATOR = struct.Struct("<IQQ")


class RangeFile(Protocol):
    """An open file; any number of threads use it at once."""

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`, fewer only at the end of the file; OSError."""

    def stamp(self) -> tuple[int, int]:
        """Return size in bytes and time of change in ns (or another number that changes with the content); OSError."""


class RangeFiles(Protocol):
    """How files are opened by name; pickled for the workers. `window` bytes are read ahead of sequential reads."""

    window: int

    def open(self, name: str) -> RangeFile:
        """Open a file; OSError or BadImage."""


class LocalFile:
    """A file of this machine."""

    def __init__(self, path: str) -> None:
        self._stream = os.fdopen(open_regular(path), "rb", buffering=0)

    def read(self, offset: int, length: int) -> bytes:
        """See :class:`RangeFile`."""
        parts: list[bytes] = []
        while length > 0:
            part = os.pread(self._stream.fileno(), length, offset)
            if not part:
                break
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def stamp(self) -> tuple[int, int]:
        """See :class:`RangeFile`."""
        status = os.fstat(self._stream.fileno())
        return status.st_size, status.st_mtime_ns

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class LocalFiles:
    """Files of this machine, by absolute path."""

    window = 1 << 20

    def open(self, name: str) -> LocalFile:
        """See :class:`RangeFiles`."""
        return LocalFile(name)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A file with images: its absolute path or address, and what its :meth:`RangeFile.stamp` was when it was listed."""

    name: str
    stamp: tuple[int, int]


def located(shard: int, offset: int, size: int) -> bytes:
    """Return the locator of `size` bytes from `offset` of shard number `shard`."""
    return _LOCATOR.pack(shard, offset, size)


class RangeReader:
    """Reads ranges of `shards`; a locator is from :func:`located`.

    It raises DataError where a shard is gone or is not what it was. Files are opened when they are needed, and where a
    thread reads one range after another, more is read at once.
    """

    def __init__(self, shards: Sequence[Shard], files: RangeFiles) -> None:
        self._shards, self._files = tuple(shards), files
        self._begin()

    def _begin(self) -> None:
        self._open: OrderedDict[int, RangeFile] = OrderedDict()
        self._lock = threading.Lock()
        self._last = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {"_shards": self._shards, "_files": self._files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def read(self, locator: bytes) -> bytes:
        """See :class:`~resnext_core.data.sources.base.Reader`."""
        number, offset, size = _LOCATOR.unpack(locator)
        shard = self._shards[number]
        if size > MAX_BYTES:
            raise BadImage(
                f"at byte {offset} of {shard.name}", f"it has {size} bytes; the limit is {MAX_BYTES}"
            )
        file = self._checked(number)
        try:
            content = self._window(number, file, offset, size)
        except OSError as error:
            raise BadImage(f"at byte {offset} of {shard.name}", reason(error)) from error
        if len(content) < size:
            raise _changed(shard)
        return content

    def stamp(self, locator: bytes) -> tuple[int, int]:
        """See :class:`~resnext_core.data.sources.base.Reader`."""
        number, _, size = _LOCATOR.unpack(locator)
        self._checked(number)
        return size, self._shards[number].stamp[1]

    def _checked(self, number: int) -> RangeFile:
        """Return the open shard `number`, which is what it was when it was listed."""
        shard = self._shards[number]
        with self._lock:
            file = self._open.get(number)
        try:
            if file is None:  # not under the lock: a store takes its time to answer
                file = self._files.open(shard.name)
            stamp = file.stamp()
        except OSError as error:
            raise lost(shard, error) from error
        except BadImage as error:
            raise DataError(f"cannot read {shown(shard.name, None)}: {error.reason}") from error
        if stamp != shard.stamp:
            raise _changed(shard)
        with self._lock:
            self._open[number] = file
            self._open.move_to_end(number)
            if len(self._open) > _OPEN and isinstance(file, LocalFile):  # others hold no descriptor
                self._open.popitem(last=False)  # it is closed when nobody reads it any more
        return file

    def _window(self, number: int, file: RangeFile, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`, from what was read ahead where it is there."""
        of, start, end, data = getattr(self._last, "window", (-1, 0, 0, b""))
        if of == number and start <= offset and offset + size <= start + len(data):
            self._last.window = of, start, offset + size, data
            return bytes(data[offset - start : offset - start + size])
        follows = of == number and end <= offset <= end + _GAP
        if not follows or size >= self._files.window:
            data = file.read(offset, size)
            self._last.window = number, offset, offset + size, b""
            return data
        data = file.read(offset, self._files.window)
        self._last.window = number, offset, offset + size, data
        return data[:size]


def lost(shard: Shard, error: OSError) -> DataError:
    """Return the error for a shard that cannot be opened."""
    try:
        blame_machine(Path(shard.name), error.errno or 0)
    except DataError as machine:
        return machine
    return DataError(
        f"the shard {shown(shard.name, None)} can no longer be read: {reason(error)}; "
        "check its permissions and whether it is mounted"
    )


def _changed(shard: Shard) -> DataError:
    return DataError(
        f"{shown(shard.name, None)} has changed since the data was opened; leave it alone while it is used, "
        "and start again"
    )
