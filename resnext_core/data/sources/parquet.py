"""Parquet files of images as the Hugging Face hub has them: columns ``image`` (bytes, path) and ``label``.

The ``image`` column may also be plain bytes. Class names are those of the label's ``ClassLabel``, which the library
``datasets`` writes into the schema; otherwise labels are integers from 0, or strings, which are the names. -1 is no
label. The order is that of the files' names, then of the rows.

What reads the images is in :mod:`resnext_core.data.sources.parquet_reader`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import DataConfig
from resnext_core.data.look import matching, names_in
from resnext_core.data.paths import Paths, encoded
from resnext_core.data.remote.ahead import AheadReader
from resnext_core.data.remote.fetch import Fetch, fetch_of
from resnext_core.data.remote.ranges import described
from resnext_core.data.sources.base import Listing, Reader
from resnext_core.data.sources.parquet_reader import (
    ParquetAt,
    ParquetReader,
    explained,
    local_stamp,
    located,
    pyarrow,
)
from resnext_core.errors import DataError, quoted, shown
from resnext_core.files import Place, Url, is_url

ENDING = ".parquet"
_IMAGE, _LABEL = ("image", "img"), ("label", "labels")
_MAX_CLASSES = 1_000_000
#: Files that are opened at a time.
_AT_A_TIME = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class _Contents:
    """What a file says of its rows, image bytes left out.

    `names` are the paths of the images as bytes, None where they are not there, not unique, or no names of files.
    `labels` are int64 (N,), or texts; None where there is no such column. `classes` are the names in the schema. For
    each row group, `rows` and `bytes` int64 have its rows and the bytes of its images in the file.
    """

    file: ParquetAt
    names: list[bytes] | None
    labels: NDArray[np.int64] | list[str] | None
    classes: tuple[str, ...] | None
    rows: NDArray[np.int64]
    bytes: NDArray[np.int64]


class ParquetSource:
    """The images in `files`; row groups have `rows` (files × groups, flattened) and `bytes`."""

    def __init__(self, contents: Sequence[_Contents], fetch: Fetch | None) -> None:
        self._files, self._fetch = tuple(one.file for one in contents), fetch
        rows = np.concatenate([one.rows for one in contents])
        self._starts = np.cumsum(rows) - rows
        self._file = np.repeat(np.arange(len(contents)), [len(one.rows) for one in contents])
        self._group = np.concatenate([np.arange(len(one.rows)) for one in contents])
        self._share = np.concatenate([one.bytes for one in contents]) // np.maximum(rows, 1)

    def locator(self, i: int) -> bytes:
        """Return file, row group and row of image `i`."""
        k = self._at(i)
        return located(int(self._file[k]), int(self._group[k]), i - int(self._starts[k]))

    def reader(self) -> Reader:
        """Return a reader of these files."""
        reader = ParquetReader(self._files, self._fetch)
        return reader if self._fetch is None else AheadReader(reader, self._fetch)

    def size(self, i: int) -> int:
        """Return the share of image `i` in the bytes of its row group: its own size is not written anywhere."""
        return int(self._share[self._at(i)])

    def blame(self, i: int, number: int) -> None:
        """Do nothing: the reader itself says when a file is gone."""

    def _at(self, i: int) -> int:
        return int(np.searchsorted(self._starts, i, side="right")) - 1


def open_parquet(path: str, data: DataConfig) -> Listing:
    """Return what Parquet files hold: one file, a folder of them, or a pattern like ``train-*.parquet``; also URLs.

    Raises DataError where one is missing or damaged, has no images, or has labels that are wrong; UsageError where
    pyarrow is missing.
    """
    pyarrow()
    root, names = _files(path, data)
    fetch = fetch_of(data) if isinstance(root, Url) else None
    with ThreadPoolExecutor(_AT_A_TIME if fetch is not None else 1) as pool:
        contents = list(pool.map(partial(_contents, root, fetch), names))
    labels, classes, named = _labels(root, contents)
    paths = Paths()
    for name, one in zip(names, contents, strict=True):
        digits = len(str(int(one.rows.sum()) - 1))
        rows = one.names or [b"%0*d" % (digits, row) for row in range(int(one.rows.sum()))]
        paths.extend(f"{name}/", rows)
    return Listing(
        root=root,
        paths=paths,
        source=ParquetSource(contents, fetch),
        labels=labels,
        classes=classes,
        named=named,
    )


def _files(path: str, data: DataConfig) -> tuple[Place, list[str]]:
    """Return the folder of the files and their names in order."""
    if is_url(path):
        url = Url(path)
        return url.parent, matching(url, fetch_of(data).access)
    if os.path.isdir(path):
        names = [name for name in names_in(Path(path)).files if name.endswith(ENDING)]
        if not names:
            raise DataError(f"there are no Parquet files in {path} but broken links; copy the files")
        return Path(path), names
    found = Path(path)
    if found.is_file():
        return found.parent, [found.name]
    names = matching(found) if found.parent.is_dir() else []
    if not names:
        raise DataError(f"there are no files {path}; correct the path")
    return found.parent, names


def _contents(root: Place, fetch: Fetch | None, name: str) -> _Contents:
    """Return what the file `name` in `root` says of its rows; DataError."""
    where = root / name
    if isinstance(where, Url):
        assert fetch is not None
        found = described(str(where), fetch)
        file = ParquetAt(place=str(where), size=found.size, version=found.version)
    else:
        size, version = local_stamp(str(where))
        file = ParquetAt(place=str(where), size=size, version=version)
    with explained(file.place):
        opened = file.open(fetch, index=True)
        metadata = opened.metadata
        columns = {metadata.schema.column(k).path: k for k in range(len(metadata.schema))}
        file = replace(file, column=_image_column(file.place, columns, opened.schema_arrow))
        label = next((name for name in _LABEL if name in columns), None)
        path = file.column.rpartition(".")[0] + ".path"
        wanted = [name for name in (label, path) if name in columns]
        table = opened.read(columns=wanted, use_threads=False) if wanted else None
        at = columns[file.column]
        groups = [metadata.row_group(k) for k in range(metadata.num_row_groups)]
        return _Contents(
            file=file,
            names=_names(table, path) if path in columns else None,
            labels=None if label is None else _label_values(file.place, table, label),
            classes=None if label is None else _class_names(opened.schema_arrow.metadata or {}, label),
            rows=np.array([group.num_rows for group in groups], np.int64),
            bytes=np.array([group.column(at).total_compressed_size for group in groups], np.int64),
        )


def _image_column(place: str, columns: Mapping[str, int], schema: Any) -> str:
    """Return the path of the column with the bytes of the images; DataError where there is none."""
    arrow, _ = pyarrow()
    for name in _IMAGE:
        for path in (f"{name}.bytes", name):
            if path not in columns:
                continue
            if schema.get_field_index(name) < 0:
                continue  # a column whose own name has a dot
            kind = schema.field(name).type
            kind = kind.field("bytes").type if path != name else kind
            if arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind):
                return path
            raise DataError(
                f"{shown(place, None)}: the column '{path}' has the type {kind}, not bytes of images"
            )
    raise DataError(
        f"{shown(place, None)} has no column 'image' with the bytes of images; it has: "
        f"{shown(', '.join(columns), 300)}"
    )


def _names(table: Any, path: str) -> list[bytes] | None:
    """Return the names of the images where they can serve as such: all there, unique, below a folder."""
    column = table.column(path.partition(".")[0]).combine_chunks()
    try:
        found = [one for chunk in _chunks(column) for one in chunk.field("path").to_pylist()]
    except UnicodeDecodeError:
        return None
    if not all(isinstance(one, str) for one in found) or len(set(found)) < len(found):
        return None
    bad = any(
        not one or one.startswith("/") or ".." in one.split("/") or not one.isprintable() for one in found
    )
    return None if bad else [encoded(one) for one in found]


def _chunks(column: Any) -> Sequence[Any]:
    return column.chunks if hasattr(column, "chunks") else [column]


def _label_values(place: str, table: Any, label: str) -> NDArray[np.int64] | list[str]:
    """Return the labels as integers or texts; DataError where one is missing, or they are anything else."""
    arrow, _ = pyarrow()
    column = table.column(label)
    if column.null_count:
        row = next(i for i, value in enumerate(column.to_pylist()) if value is None)
        raise DataError(
            f"{shown(place, None)}: {column.null_count} rows have no label, e.g. row {row}; write -1 for images "
            "without label, or leave them out"
        )
    if arrow.types.is_integer(column.type):
        return np.asarray(column.to_numpy(), np.int64)
    if arrow.types.is_string(column.type) or arrow.types.is_large_string(column.type):
        try:
            return list(column.to_pylist())
        except UnicodeDecodeError as error:
            raise DataError(
                f"{shown(place, None)}: the column '{label}' has texts that are not UTF-8; write it again"
            ) from error
    raise DataError(
        f"{shown(place, None)}: the column '{label}' has the type {column.type}, not integers or texts"
    )


def _class_names(metadata: Mapping[bytes, bytes], label: str) -> tuple[str, ...] | None:
    """Return the names of a ``ClassLabel`` in the metadata of the library ``datasets``, None where there are none."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        names = features[label]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def _labels(root: Place, contents: Sequence[_Contents]) -> tuple[NDArray[np.int32], tuple[str, ...], bool]:
    """Return the labels of all rows, the classes, and whether these are names."""
    first = contents[0]
    for one in contents:
        if one.classes != first.classes or type(one.labels) is not type(first.labels):
            raise DataError(
                f"{shown(one.file.place, None)} has other classes than {shown(first.file.place, None)}, or labels of "
                "another kind; give files of one data set"
            )
    if first.labels is None:
        return np.full(sum(int(one.rows.sum()) for one in contents), -1, np.int32), (), True
    if isinstance(first.labels, list):
        texts = [text for one in contents for text in one.labels or ()]
        classes = tuple(sorted(set(texts)))
        position = {name: label for label, name in enumerate(classes)}
        return np.array([position[text] for text in texts], np.int32), classes, True
    bound = len(first.classes) if first.classes is not None else _MAX_CLASSES
    for one in contents:
        values = np.asarray(one.labels)
        wrong = np.flatnonzero((values < -1) | (values >= bound))
        if len(wrong):
            what = (
                f"not below {bound}, the number of classes"
                if values[wrong[0]] >= 0
                else "neither -1 nor a class"
            )
            raise DataError(
                f"{shown(one.file.place, None)}: the label {values[wrong[0]]} of row {wrong[0]} is {what}"
                f"{f'; {len(wrong)} rows are so' if len(wrong) > 1 else ''}"
            )
    labels = np.concatenate([np.asarray(one.labels) for one in contents]).astype(np.int32)
    if first.classes is None:
        return labels, tuple(map(str, range(int(labels.max(initial=-1)) + 1))), False
    if len(set(first.classes)) < len(first.classes):
        twice = next(name for i, name in enumerate(first.classes) if name in first.classes[:i])
        raise DataError(
            f"{shown(first.file.place, None)} names two classes {quoted(twice)}; rename one in its schema"
        )
    return labels, first.classes, True
