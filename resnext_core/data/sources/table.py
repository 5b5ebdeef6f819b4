"""A table of images in a file that is mapped, not read: offsets, sizes, labels and names of millions at once.

It stands at the end of a packed file, and alone in the index of shards. The file begins with 128 bytes, little-endian:
magic (16), version (8), position and length of the table (8, 8), length of the file (8), SHA-256 of the table (32) and
SHA-256 of these 80 bytes (32), zeros. The table is the length of a JSON text (8), that text, and the columns that it
names, each at a multiple of 64 from the table's beginning.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.data.paths import StoredTexts, decoded, encoded
from resnext_core.errors import DataError, one_line, reason
from resnext_core.files import Place

VERSION = 1
#: Bytes before everything else.
HEAD = 128
_HEAD = struct.Struct("<16sQQQQ32s")
_ALIGN = 64
_COLUMNS = {
    "labels": np.dtype("<i4"), "offsets": np.dtype("<u8"), "sizes": np.dtype("<u8"), "ends": np.dtype("<u8"),
    "names": np.dtype("u1"), "checksums": np.dtype("<u4"),
}  # fmt: skip


class StoredPaths(StoredTexts):
    """The names of a table, which stay in the file until asked for. Equal to any sequence of the same texts."""

    def __init__(self, ends: NDArray[np.uint64], names: NDArray[np.uint8]) -> None:
        self._ends, self._names = ends, names

    def __len__(self) -> int:
        return len(self._ends)

    def _one(self, i: int) -> str:
        start = int(self._ends[i - 1]) if i else 0
        return decoded(self._names[start : int(self._ends[i])].tobytes())

    def __iter__(self) -> Iterator[str]:
        start = 0
        for first in range(0, len(self), 65536):
            ends = self._ends[first : first + 65536].tolist()
            block, base = self._names[start : ends[-1]].tobytes(), start
            for end in ends:
                yield decoded(block[start - base : end - base])
                start = end

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """Return the position of a name; ValueError where it is not there."""
        wanted, at = encoded(str(value)), -1
        names = self._names.tobytes()
        while (at := names.find(wanted, at + 1)) >= 0:
            i = int(np.searchsorted(self._ends, at, side="right"))
            first = int(self._ends[i - 1]) if i else 0
            whole = first == at and int(self._ends[i]) == at + len(wanted)
            if whole and start <= i < (len(self) if stop is None else stop):
                return i
        raise ValueError(f"{value} is not there")

    def __repr__(self) -> str:
        return f"<{len(self)} paths>"


class TableBuilder:
    """Collects the rows of a table in little memory, and writes them."""

    def __init__(self, *, checksums: bool = False) -> None:
        self._labels, self._offsets, self._sizes = array("i"), array("Q"), array("Q")
        self._ends, self._names = array("Q"), bytearray()
        self._checksums = array("I") if checksums else None

    def __len__(self) -> int:
        return len(self._labels)

    def add(self, name: bytes, label: int, offset: int, size: int, checksum: int = 0) -> None:
        """Add an image."""
        self._names += name
        self._ends.append(len(self._names))
        self._labels.append(label)
        self._offsets.append(offset)
        self._sizes.append(size)
        if self._checksums is not None:
            self._checksums.append(checksum)

    def relabel(self, labels: NDArray[np.int32]) -> None:
        """Set the labels of all images."""
        self._labels = array("i", labels.astype(np.int32).tobytes())

    @property
    def labels(self) -> NDArray[np.int32]:
        """The labels so far, int32."""
        return np.array(self._labels, np.int32)

    def write(self, stream: IO[bytes], magic: bytes, meta: Mapping[str, Any]) -> None:
        """Write the table at the end of `stream`, and the head at its beginning."""
        columns: dict[str, NDArray[Any]] = {
            "labels": np.frombuffer(self._labels, np.int32),
            "offsets": np.frombuffer(self._offsets, np.uint64),
            "sizes": np.frombuffer(self._sizes, np.uint64),
            "ends": np.frombuffer(self._ends, np.uint64),
            "names": np.frombuffer(self._names, np.uint8),
        }
        if self._checksums is not None:
            columns["checksums"] = np.frombuffer(self._checksums, np.uint32)
        stream.seek(0, os.SEEK_END)
        start = _up(max(stream.tell(), HEAD))
        text = json.dumps(
            {**meta, "columns": {name: [column.dtype.str, len(column)] for name, column in columns.items()}}
        ).encode()
        digest, at = hashlib.sha256(), start
        stream.write(bytes(start - stream.tell()))
        pieces: list[Any] = [struct.pack("<Q", len(text)) + text]
        for column in columns.values():
            pieces.append(column.astype(column.dtype.newbyteorder("<"), copy=False).data)
        for piece in pieces:
            view = memoryview(piece).cast("B") if len(piece) else memoryview(b"")
            padding = bytes(_up(len(view)) - len(view))
            for part in (view, padding):
                digest.update(part)
                stream.write(part)
            at += len(view) + len(padding)
        head = _HEAD.pack(magic, VERSION, start, at - start, at, digest.digest())
        stream.seek(0)
        stream.write((head + hashlib.sha256(head).digest()).ljust(HEAD, b"\0"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """A table that was read; the columns are views of the mapped file.

    `labels` int32 (N,), `offsets` and `sizes` uint64 (N,) in bytes, `checksums` uint32 (N,) CRC-32 of the content
    where it has them. `meta` is the rest. `end` is where the table begins in its file.
    """

    meta: Mapping[str, Any]
    paths: StoredPaths
    labels: NDArray[np.int32]
    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint64]
    checksums: NDArray[np.uint32] | None
    end: int


def read_table(path: Path, magic: bytes, what: str) -> Table:
    """Return the table of `path`, which messages call a `what`; DataError where it is damaged, cut or another file."""
    try:
        with path.open("rb") as stream:
            return table_of(stream, path, magic, what)
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason(error)}") from error


def table_span(head: bytes, size: int) -> tuple[int, int]:
    """Return begin and length of the table in a file of `size` bytes by its `head`; (0, 0) where that is damaged."""
    if len(head) < HEAD:
        return 0, 0
    _, _, start, length, _, _ = _HEAD.unpack_from(head)
    return (start, length) if start + length <= size else (0, 0)


def table_of(stream: IO[bytes], path: Place, magic: bytes, what: str) -> Table:
    """As :func:`read_table`, of an open file, which may be closed afterwards; OSError when it cannot be read."""
    stream.seek(0)
    head = stream.read(HEAD)
    size = os.fstat(stream.fileno()).st_size
    if len(head) < HEAD or not head.startswith(magic):
        raise DataError(f"{path} is not a {what}")
    _, version, start, length, total, digest = _HEAD.unpack_from(head)
    if hashlib.sha256(head[: _HEAD.size]).digest() != head[_HEAD.size : _HEAD.size + 32]:
        raise DataError(f"{path}: the first {HEAD} bytes of this {what} are damaged; copy it again")
    if version != VERSION:
        raise DataError(f"{path} is a {what} of version {version}, this release reads version {VERSION}")
    if size != total:
        state = "cut short" if size < total else "too long"
        raise DataError(f"{path} is {state}: it has {size} bytes, and should have {total}; copy it again")
    mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    view = memoryview(mapped)[start : start + length]
    if hashlib.sha256(view).digest() != digest:
        raise DataError(f"{path}: the table of this {what} is damaged (checksum mismatch); copy it again")
    try:
        table = _table(view, start)
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError, struct.error) as error:
        raise DataError(
            f"{path}: the table of this {what} is not as this release writes it: {one_line(error, 200)}; make it again"
        ) from error
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)  # the checksum has touched every page; few of them are needed soon
    return table


def _table(view: memoryview, start: int) -> Table:
    """Return the table that begins at byte `start` of its file; ValueError and others where it is not one."""
    (text,) = struct.unpack_from("<Q", view)
    meta = json.loads(bytes(view[8 : 8 + text]))
    columns: dict[str, NDArray[Any]] = {}
    at = _up(8 + text)
    for name, (dtype, count) in meta.pop("columns").items():
        if np.dtype(dtype) != _COLUMNS[name]:
            raise ValueError(f"the column {name} has the type {dtype}")
        columns[name] = np.frombuffer(view, dtype, count, at)
        at += _up(columns[name].nbytes)
    ends, names = columns["ends"], columns["names"]
    if len({len(columns[name]) for name in columns if name != "names"}) > 1:
        raise ValueError("its columns have different lengths")
    if int(ends[-1]) != len(names) if len(ends) else len(names):
        raise ValueError("its names have another length")
    if (ends[1:] < ends[:-1]).any():
        raise ValueError("its names are out of order")
    return Table(
        meta=meta, paths=StoredPaths(ends, names), labels=columns["labels"],
        offsets=columns["offsets"], sizes=columns["sizes"], checksums=columns.get("checksums"), end=start,
    )  # fmt: skip


def label_table(texts: Sequence[str], numbers: bool) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Return the label of each distinct text, int32, and the classes: sorted names, or ``0`` to the largest number."""
    if numbers:
        values = [int(text) for text in texts]
        return np.array(values, np.int32), tuple(map(str, range(max(values) + 1)))
    position = {name: label for label, name in enumerate(sorted(texts))}
    return np.array([position[text] for text in texts], np.int32), tuple(position)


def _up(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
