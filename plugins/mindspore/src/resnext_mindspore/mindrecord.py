"""MindRecord files as a source of images. They are read by their index, which needs no MindSpore.

A file begins with 8 bytes, the length of the JSON text that follows: the sizes of the header and of a page, and the
schema. Beside it is an SQLite database ``<file>.db`` with a row for each sample: the page and the range in it of the
fields of numbers and texts (MessagePack after a length), and of the others (a length, then the only field; where there
are several, each with a length of its own). Found out from files of MindSpore 2.10 (format version 3.0), and tested
against what its FileReader reads.
"""

from __future__ import annotations

import fnmatch
import json
import re
import sqlite3
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import DataConfig
from resnext_core.data.content import BadImage, Content
from resnext_core.data.look import names_in
from resnext_core.data.paths import Paths, encoded
from resnext_core.data.remote.ahead import AheadReader
from resnext_core.data.remote.fetch import Fetch, fetch_of
from resnext_core.data.remote.ranges import ObjectFiles
from resnext_core.data.sources.base import Listing, Reader
from resnext_core.data.sources.ranges import LocalFiles, RangeFile, RangeFiles, RangeReader, Shard, located
from resnext_core.errors import DataError, one_line, reason, shown
from resnext_core.files import Place, Url, absolute, place
from resnext_mindspore.msgpack import unpacked

#: Names of the fields that are looked for, the first that is there; without one, the only field of bytes is the image.
_IMAGE, _LABEL, _NAME = (
    ("image", "data", "img"),
    ("label", "labels"),
    ("file_name", "filename", "name", "path"),
)
_ENDING = re.compile(r"\.mindrecord(\d*)$")
#: More bytes than a header can have.
_LONGEST_HEADER = 64 << 20
_MAX_CLASSES = 1_000_000


def is_mindrecord(path: str) -> bool:
    """Return whether `path` is called as a MindRecord file is, or is a pattern of such names."""
    return _ENDING.search(path) is not None or path.endswith((".mindrecord*", ".mindrecord[0-9]*"))


@dataclass(frozen=True, kw_only=True, eq=False)
class _File:
    """A file: what it is called and how it is opened, the header's facts, and its samples by row.

    `offsets` and `sizes` int64 (N,) are of the bytes of all large fields of a sample in the file, lengths included.
    `labels` are integers or texts, None where there are none; `names` are texts, None where no index has them.
    """

    shard: Shard
    fields: tuple[str, ...]
    image: str
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: Sequence[Any] | None
    names: Sequence[str] | None


class MindRecordReader:
    """Reads images with `reader`, out of `count` large fields of a sample, of which the image is number `position`."""

    def __init__(self, reader: RangeReader, position: int, count: int) -> None:
        self._reader, self._position, self._count = reader, position, count

    def read(self, locator: bytes) -> Content:
        """See :class:`~resnext_core.data.sources.base.Reader`."""
        found = self._reader.read(locator)
        at = 8
        for number in range(self._count if self._count > 1 else 0):
            (length,) = struct.unpack_from(">Q", found, at) if at + 8 <= len(found) else (len(found),)
            if at + 8 + length > len(found):
                raise BadImage("of a MindRecord file", "its fields are longer than the sample")
            if number == self._position:
                return found[at + 8 : at + 8 + length]
            at += 8 + length
        if struct.unpack_from("<Q", found)[0] != len(found) - 8:
            raise BadImage("of a MindRecord file", "its length is not that of the sample")
        return found[8:]

    def stamp(self, locator: bytes) -> tuple[int, int]:
        """See :class:`~resnext_core.data.sources.base.Reader`."""
        return self._reader.stamp(locator)


class MindRecordSource:
    """The images in `files`, local ones, or remote ones that `fetch` reads."""

    def __init__(self, files: Sequence[_File], fetch: Fetch | None) -> None:
        self._shards, self._fetch = tuple(file.shard for file in files), fetch
        self._fields, self._image = files[0].fields, files[0].image
        counts = [len(file.offsets) for file in files]
        self._shard = np.repeat(np.arange(len(files)), counts)
        self._offsets = np.concatenate([file.offsets for file in files])
        self._sizes = np.concatenate([file.sizes for file in files])

    def locator(self, i: int) -> bytes:
        """Return file, offset and size of sample `i`."""
        return located(int(self._shard[i]), int(self._offsets[i]), int(self._sizes[i]))

    def reader(self) -> Reader:
        """Return a reader of these files."""
        files: RangeFiles = LocalFiles() if self._fetch is None else ObjectFiles(self._fetch)
        position, count = self._fields.index(self._image), len(self._fields)
        reader = MindRecordReader(RangeReader(self._shards, files), position, count)
        return reader if self._fetch is None else AheadReader(reader, self._fetch)

    def size(self, i: int) -> int:
        """Return the bytes of the large fields of sample `i`."""
        return int(self._sizes[i])

    def blame(self, i: int, number: int) -> None:
        """Do nothing: the reader itself says when a file is gone."""


def open_mindrecord(path: str, data: DataConfig) -> Listing:
    """Return what MindRecord files hold: one, with all files that were written together with it, or a pattern.

    The path may be a URL. Raises DataError where a file or its index is missing or damaged, has no field of images,
    or has labels that are wrong.
    """
    where = place(path)
    fetch = fetch_of(data) if isinstance(where, Url) else None
    files: RangeFiles = LocalFiles() if fetch is None else ObjectFiles(fetch)
    root = where.parent
    with _explained(where):
        names = _names(where, root, files, fetch)
    found = [_opened(root / name, files) for name in names]
    if len({(file.fields, file.image) for file in found}) > 1:
        raise DataError(f"{path}: the files have different fields; give files of one data set")
    labels, classes, named = _labels(found)
    paths = Paths()
    for name, file in zip(names, found, strict=True):
        paths.extend(f"{name}/", _called(file))
    return Listing(
        root=root,
        paths=paths,
        source=MindRecordSource(found, fetch),
        labels=labels,
        classes=classes,
        named=named,
    )


def _names(where: Place, root: Place, files: RangeFiles, fetch: Fetch | None) -> list[str]:
    """Return the names of the files in the order of their numbers."""
    inside = (
        names_in(root, fetch.access if fetch else None).files
        if isinstance(root, Url) or root.is_dir()
        else ()
    )
    if "*" in where.name:
        names = [name for name in fnmatch.filter(inside, where.name) if _ENDING.search(name)]
        if not names:
            raise DataError(f"there are no files {where}; correct the path")
    else:
        about = _header(where, files.open(absolute(where)))
        names = [str(name).rpartition("/")[2] for name in about.get("shard_addresses") or [where.name]]
        if wrong := next((name for name in names if _ENDING.search(name) is None), None):
            raise DataError(
                f"{where} names {shown(wrong)} as one of its files, which is not called .mindrecord"
            )
        if where.name not in names:
            raise DataError(
                f"{where} was renamed: it was written as one of {', '.join(names[:5])}; rename it back"
            )
        if missing := [name for name in names if inside and name not in inside]:
            raise DataError(
                f"{len(missing)} of the {len(names)} files that belong to {where} are missing, e.g. "
                f"{root / missing[0]}; copy them"
            )
    return sorted(names, key=lambda name: (_ENDING.sub("", name), int(_ENDING.search(name)[1] or 0)))  # type: ignore[index]


def _opened(where: Place, files: RangeFiles) -> _File:
    """Return what a file and its index say; DataError."""
    with _explained(where):
        name = absolute(where)
        file = files.open(name)
        about = _header(where, file)
        try:
            schema = about["schema"][0]
            fields, types = tuple(schema["blob_fields"]), schema["schema"]
            begin, page = int(about["header_size"]), int(about["page_size"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(f"{where} has a header of another kind than MindRecord 3.0") from error
        image = _field(where, fields, types)
        label = next((one for one in _LABEL if one in types and "shape" not in types[one]), None)
        called = next((one for one in _NAME if types.get(one, {}).get("type") == "string"), None)
        rows = _rows(where, files, (label, called))
        size, changed = file.stamp()
        offsets = begin + page * rows["page_id_blob"] + rows["page_offset_blob"]
        sizes = rows["page_offset_blob_end"] - rows["page_offset_blob"]
        if (
            len(offsets) == 0
            or (offsets < 0).any()
            or (sizes < 8).any()
            or int((offsets + sizes).max()) > size
        ):
            raise DataError(f"{where} is cut short, or {where.name}.db is not its index; copy both again")
        labels: Sequence[Any] | None = rows.get("label")
        if label is not None and labels is None:
            labels = _raw_labels(where, file, begin + page * rows["page_id_raw"], rows, label)
        return _File(
            shard=Shard(name=name, stamp=(size, changed)), fields=fields, image=image, offsets=offsets, sizes=sizes,
            labels=labels, names=rows.get("name"),
        )  # fmt: skip


def _header(where: Place, file: RangeFile) -> dict[str, Any]:
    length = int.from_bytes(file.read(0, 8), "little")
    text = file.read(8, length) if 0 < length <= _LONGEST_HEADER else b""
    try:
        about = json.loads(text)
    except ValueError:
        about = None
    if not isinstance(about, dict) or "page_size" not in about:
        raise DataError(f"{where} is not a MindRecord file, or it is encrypted")
    return about


def _field(where: Place, fields: Sequence[str], types: dict[str, Any]) -> str:
    """Return the name of the field with the images."""
    of_bytes = [
        name for name in fields if types.get(name, {}).get("type") == "bytes" and "shape" not in types[name]
    ]
    for name in _IMAGE:
        if name in of_bytes:
            return name
    if len(of_bytes) == 1:
        return of_bytes[0]
    raise DataError(
        f"{where} has no field 'image' or 'data' with the bytes of images; it has: {shown(', '.join(types), 300)}"
    )


def _rows(where: Place, files: RangeFiles, wanted: tuple[str | None, str | None]) -> dict[str, Any]:
    """Return columns of the index by name: the ranges as int64, and 'label' and 'name' where the index has them."""
    beside = where.parent / f"{where.name}.db"
    with _explained(beside), _database(beside, files) as database:
        present = {row[1] for row in database.execute("PRAGMA table_info(INDEXES)")}
        ranges = ("PAGE_ID_RAW", "PAGE_OFFSET_RAW", "PAGE_OFFSET_RAW_END")
        ranges += ("PAGE_ID_BLOB", "PAGE_OFFSET_BLOB", "PAGE_OFFSET_BLOB_END")
        columns = {name.lower(): name for name in ranges}
        for key, field in zip(("label", "name"), wanted, strict=True):
            if field is not None and f"{field}_0" in present:
                columns[key] = f"{field}_0"
        text = ", ".join(f'"{name}"' for name in columns.values())
        rows = database.execute(f"SELECT {text} FROM INDEXES ORDER BY ROW_ID").fetchall()
    found: dict[str, Any] = {}
    for key, values in zip(columns, zip(*rows, strict=True) if rows else [()] * len(columns), strict=True):
        found[key] = list(values) if key in ("label", "name") else np.array(values, np.int64)
    return found


@contextmanager
def _database(beside: Place, files: RangeFiles) -> Iterator[sqlite3.Connection]:
    """Yield the index of a file, read-only; that of a remote file from a copy."""
    if isinstance(beside, Path):
        if not beside.is_file():
            raise DataError(f"the index {beside} is missing; copy it too")
        address = f"{beside.absolute().as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(address, uri=True)) as database:
            yield database
        return
    remote = files.open(str(beside))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "index.db"
        copy.write_bytes(remote.read(0, remote.stamp()[0]))
        with closing(sqlite3.connect(copy)) as database:
            yield database


@contextmanager
def _explained(where: Place) -> Iterator[None]:
    """Turn what the system and SQLite say about a file into DataError."""
    try:
        yield
    except sqlite3.Error as error:
        raise DataError(f"the index {where} is damaged: {one_line(error, 200)}; copy it again") from error
    except OSError as error:
        raise DataError(f"cannot read {where}: {reason(error)}") from error
    except BadImage as error:
        raise DataError(f"cannot read {where}: {error.reason}") from error
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        raise DataError(
            f"{where} is damaged, or of another kind than MindRecord 3.0: {one_line(error, 200)}; copy it again"
        ) from error


def _raw_labels(
    where: Place, file: RangeFile, pages: NDArray[np.int64], rows: dict[str, Any], label: str
) -> list[Any]:
    """Return the labels out of the fields of numbers and texts, where the index does not have them."""
    begins, ends = pages + rows["page_offset_raw"], pages + rows["page_offset_raw_end"]
    found: list[Any] = []
    for page in np.unique(pages).tolist():
        chosen = np.flatnonzero(pages == page)  # in order: pages fill up one after another
        first = int(begins[chosen].min())
        content = file.read(first, int(ends[chosen].max()) - first)
        for begin, end in zip(begins[chosen].tolist(), ends[chosen].tolist(), strict=True):
            try:
                fields = unpacked(content[begin - first + 8 : end - first])
                found.append(fields[label])
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{where}: sample {len(found)} is damaged: {one_line(error, 200)}") from error
    return found


def _called(file: _File) -> list[bytes]:
    """Return the names of the samples of a file: those in its index where they can serve, else numbers."""
    names = file.names
    fit = names is not None and len(set(names)) == len(names) and all(
        isinstance(one, str) and one.isprintable() and one and not one.startswith("/") and ".." not in one.split("/")
        for one in names
    )  # fmt: skip
    if fit and names is not None:
        return [encoded(one) for one in names]
    digits = len(str(len(file.offsets) - 1))
    return [b"%0*d" % (digits, row) for row in range(len(file.offsets))]


def _labels(files: Sequence[_File]) -> tuple[NDArray[np.int32], tuple[str, ...], bool]:
    """Return the labels of all samples, the classes, and whether these are names."""
    values = [(file, row, value) for file in files for row, value in enumerate(file.labels or ())]
    if any(file.labels is None for file in files):
        return np.full(sum(len(file.offsets) for file in files), -1, np.int32), (), True
    if all(isinstance(value, str) for _, _, value in values):
        classes = tuple(sorted({value for _, _, value in values}))
        position = {name: label for label, name in enumerate(classes)}
        return np.array([position[value] for _, _, value in values], np.int32), classes, True
    for file, row, value in values:
        if not isinstance(value, int) or not -1 <= value < _MAX_CLASSES:
            raise DataError(
                f"{file.shard.name}: the label {shown(value)} of sample {row} is no class; labels are integers from 0, "
                "or -1 for none"
            )
    labels = np.array([value for _, _, value in values], np.int32)
    return labels, tuple(map(str, range(int(labels.max(initial=-1)) + 1))), False
