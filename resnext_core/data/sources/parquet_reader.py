"""Reading images out of Parquet files, in any order, in bounded memory.

A row group is the least that can be found in a Parquet file. A small one is read whole, a large one from its begin to
the row that is wanted, in windows of rows. A reader keeps some windows, and the place that it has reached in some large
groups; of remote files all images that come along are put into the cache. In random order each image may cost its whole
row group all the same, so data that is to be read often is better packed.
"""

from __future__ import annotations

import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from resnext_core.data.content import BadImage
from resnext_core.data.remote.fetch import Fetch
from resnext_core.data.remote.files import version_number
from resnext_core.data.remote.ranges import ObjectStream, described
from resnext_core.errors import DataError, UsageError, one_line, reason, shown
from resnext_core.extras import command

#: A locator: file, row group, row in the group.
_LOCATOR = struct.Struct("<III")
#: Row groups whose images have up to so many bytes are read whole, others in windows of about so many.
_WHOLE, _WINDOW = 64 << 20, 16 << 20
#: Bytes of images that a reader keeps beside those that it gives out; large row groups in which it keeps its place.
_KEPT, _PLACES = 128 << 20, 4
#: Bytes that are read at a time of a large row group.
_BUFFER = 4 << 20
#: Files whose metadata a reader keeps.
_METADATA = 64


def pyarrow() -> tuple[ModuleType, ModuleType]:
    """Return the modules ``pyarrow`` and ``pyarrow.parquet``; UsageError where they cannot be imported."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        why = "" if isinstance(error, ModuleNotFoundError) else f" ({one_line(error, 200)})"
        raise UsageError(f"Parquet files need pyarrow{why}: {command('parquet')}") from None
    return pyarrow, pyarrow.parquet


def located(file: int, group: int, row: int) -> bytes:
    """Return the locator of a row of a row group."""
    return _LOCATOR.pack(file, group, row)


@contextmanager
def explained(place: str) -> Iterator[None]:
    """Turn what pyarrow and the system say about a file into DataError."""
    arrow, _ = pyarrow()
    try:
        yield
    except (arrow.ArrowException, OSError) as error:
        raise DataError(
            f"cannot read {shown(place, None)}: {shown(reason(error), 300)}; is it a whole Parquet file?"
        ) from error


def local_stamp(path: str) -> tuple[int, str]:
    """Return size and version of a file of this machine; DataError."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"cannot read {shown(path, None)}: {reason(error)}") from error
    return status.st_size, str(status.st_mtime_ns)


@dataclass(frozen=True, kw_only=True)
class ParquetAt:
    """A file: its path or URL, its size in bytes, its version, and the path of the column with the images."""

    place: str
    size: int
    version: str
    column: str = ""

    def open(self, fetch: Fetch | None, *, metadata: Any = None, index: bool = False, buffer: int = 0) -> Any:
        """Return it as :class:`pyarrow.parquet.ParquetFile`; ArrowException or OSError where it is none.

        Of a remote file, what an `index` reads is kept in the cache. With `buffer`, so many bytes are read at a time.
        """
        arrow, parquet = pyarrow()
        stream = (
            arrow.OSFile(self.place)
            if fetch is None
            else arrow.PythonFile(
                ObjectStream(self.place, self.size, self.version, fetch, keep=index), mode="r"
            )
        )
        return parquet.ParquetFile(stream, metadata=metadata, pre_buffer=index, buffer_size=buffer)

    def check(self, fetch: Fetch | None) -> None:
        """Raise DataError where it is not what it was any more."""
        if fetch is None:
            now = local_stamp(self.place)
        else:
            found = described(self.place, fetch)
            now = found.size, found.version
        if now != (self.size, self.version):
            raise DataError(
                f"{shown(self.place, None)} has changed since the data was opened; leave it alone while it is used, "
                "and start again"
            )


class ParquetReader:
    """Reads images by :func:`located`, with any number of threads."""

    def __init__(self, files: Sequence[ParquetAt], fetch: Fetch | None) -> None:
        self._files, self._fetch = tuple(files), fetch
        self._lock = threading.Lock()
        self._groups: dict[tuple[int, int], threading.Lock] = {}
        self._metadata: OrderedDict[int, Any] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int, int], Any] = OrderedDict()
        self._places: OrderedDict[tuple[int, int], tuple[Iterator[Any], int]] = OrderedDict()

    def __reduce__(self) -> tuple[type[ParquetReader], tuple[tuple[ParquetAt, ...], Fetch | None]]:
        return ParquetReader, (self._files, self._fetch)

    def read(self, locator: bytes) -> bytes:
        """See :class:`~resnext_core.data.sources.base.Reader`."""
        number, group, row = _LOCATOR.unpack(locator)
        file = self._files[number]
        kept = self._fetch.kept(_key(file, group, row)) if self._fetch is not None and file.version else None
        if kept is not None:
            return kept
        with self._lock:
            alone = self._groups.setdefault((number, group), threading.Lock())
        with alone:
            found, first = self._window(number, group, row)
        value = found[row - first]
        if not value.is_valid:
            raise BadImage(self._called(file, group, row), "its bytes are null")
        return bytes(value.as_buffer())

    def stamp(self, locator: bytes) -> tuple[int, int]:
        """See :class:`~resnext_core.data.sources.base.Reader`: of the file, since rows have none."""
        file = self._files[_LOCATOR.unpack(locator)[0]]
        self._known(_LOCATOR.unpack(locator)[0])
        return file.size, version_number(file.version) >> 1

    def _window(self, number: int, group: int, row: int) -> tuple[Any, int]:
        """Return the bytes of a window of rows that has `row`, and its first row."""
        file, metadata = self._files[number], self._known(number)
        about = metadata.row_group(group)
        column = next(k for k in range(about.num_columns) if about.column(k).path_in_schema == file.column)
        size, rows = about.column(column).total_uncompressed_size, about.num_rows
        step = rows if size <= _WHOLE else max(rows * _WINDOW // size, 1)
        wanted = row // step
        with self._lock:
            if (found := self._windows.get((number, group, wanted))) is not None:
                self._windows.move_to_end((number, group, wanted))
                return found, wanted * step
            batches, at = self._places.pop((number, group), (None, 0))
        try:
            if batches is None or at > wanted:
                if self._fetch is None:
                    file.check(None)
                buffer = _BUFFER if step < rows else 0
                opened = file.open(self._fetch, metadata=metadata, buffer=buffer)
                batches, at = opened.iter_batches(step, [group], [file.column], use_threads=False), 0
            while at <= wanted:
                found = _bytes_of(next(batches), file.column)
                self._keep(file, group, at * step, found)
                at += 1
        except BadImage:
            raise
        except DataError:
            raise
        except StopIteration:
            raise BadImage(
                self._called(file, group, row), "the row group has fewer rows than it says"
            ) from None
        except Exception as error:  # pyarrow raises several kinds on damaged pages
            raise BadImage(
                self._called(file, group, row), f"a damaged row group: {one_line(error, 200)}"
            ) from error
        with self._lock:
            self._windows[number, group, wanted] = found
            while len(self._windows) > 1 and sum(one.nbytes for one in self._windows.values()) > _KEPT:
                self._windows.popitem(last=False)
            if at * step < rows:
                self._places[number, group] = batches, at
                while len(self._places) > _PLACES:
                    self._places.popitem(last=False)
        return found, wanted * step

    def _known(self, number: int) -> Any:
        """Return the metadata of a file, which is what it was when it was listed."""
        with self._lock:
            if number in self._metadata:
                self._metadata.move_to_end(number)
                return self._metadata[number]
        file = self._files[number]
        file.check(self._fetch)
        with explained(file.place):
            metadata = file.open(self._fetch, index=True).metadata
        with self._lock:
            self._metadata[number] = metadata
            if len(self._metadata) > _METADATA:
                self._metadata.popitem(last=False)
        return metadata

    def _keep(self, file: ParquetAt, group: int, first: int, found: Any) -> None:
        """Put all images that came along into the cache."""
        if self._fetch is None or not file.version:
            return
        for k, value in enumerate(found):
            if value.is_valid:
                self._fetch.keep(_key(file, group, first + k), memoryview(value.as_buffer()))

    @staticmethod
    def _called(file: ParquetAt, group: int, row: int) -> str:
        return f"in row {row} of row group {group} of {file.place}"


def _key(file: ParquetAt, group: int, row: int) -> str:
    return f"{file.place}\0{file.version}\0{file.size}\0row\0{group}\0{row}"


def _bytes_of(batch: Any, column: str) -> Any:
    """Return the array of bytes in a batch of the column `column`."""
    name, _, inner = column.partition(".")
    found = batch.column(batch.schema.get_field_index(name))
    return found.field(inner) if inner else found
