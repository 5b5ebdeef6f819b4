"""The index of tar shards: where each image lies and what its label is; made once and kept."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.data.paths import decoded
from resnext_core.data.sources.base import ImageSource, Listing
from resnext_core.data.sources.ranges import RangeFiles, Shard
from resnext_core.data.sources.shard_contents import Contents, contents
from resnext_core.data.sources.table import Table, TableBuilder, label_table, read_table, table_of
from resnext_core.errors import DataError, one_line, reason
from resnext_core.files import Place, absolute, cache_folder, is_url, make_folder
from resnext_core.files.fresh import fresh_file

MAGIC = b"RESNEXT-TARS\r\n\x1a\n"
_WHAT = "index of shards"
_MAX_CLASSES = 1_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardIndex:
    """The table of all images, shard by shard; `starts` int64 (shards,) has the first image of each."""

    table: Table
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, table: Table) -> ShardIndex:
        """Return the index in a table; ValueError and others where it holds something else."""
        meta, counts, first = table.meta, [int(shard["images"]) for shard in table.meta["shards"]], 0
        for shard, count in zip(meta["shards"], counts, strict=True):
            part = slice(first, first + count)
            sizes, total = table.sizes[part], np.uint64(shard["size"])
            if count < 0 or (sizes > total).any() or (table.offsets[part] > total - sizes).any():
                raise ValueError("images lie outside their shards")
            first += count
        known = isinstance(meta["named"], bool) and all(isinstance(name, str) for name in meta["classes"])
        known = known and isinstance(meta["ignored"], dict)
        known = known and all({"name", "size", "changed"} <= shard.keys() for shard in meta["shards"])
        labels, classes = table.labels, len(meta["classes"])
        if not known or first != len(labels) or (first and not -1 <= labels.min() <= labels.max() < classes):
            raise ValueError("its labels or its counts cannot be")
        return cls(table=table, starts=np.cumsum([0, *counts[:-1]], dtype=np.int64))

    def listing(self, root: Place, source: ImageSource, remarks: tuple[str, ...]) -> Listing:
        """Return what the shards hold."""
        meta = self.table.meta
        return Listing(
            root=root, paths=self.table.paths, source=source, labels=self.table.labels,
            classes=tuple(meta["classes"]), named=meta["named"], ignored=meta["ignored"], remarks=remarks,
        )  # fmt: skip

    def misfit(self, names: Sequence[str], shards: Sequence[Shard], files: RangeFiles) -> str | None:
        """Return why this is not the index of the shards `names`, None where it is."""
        known = self.table.meta["shards"]
        if [shard["name"] for shard in known] != list(names):
            return f"it is about {len(known)} other shards"
        for entry, shard in zip(known, shards, strict=True):
            size, changed = shard.stamp
            if entry["size"] != size:
                return f"{entry['name']} has {size} bytes, and had {entry['size']}"
            if entry["changed"] == changed:
                continue
            try:
                found = contents(files.open(shard.name).read, size)
            except (OSError, ValueError):
                found = None
            if found is None or entry.get("content") != _digest(found):
                return f"{entry['name']} has other content"
        return None


def beside(path: str) -> Path:
    """Return where ``resnext-run data index`` keeps the index of the shards `path`."""
    if os.path.isdir(path):
        return Path(path) / "shards.index"
    folder, name = os.path.split(path)
    return Path(folder) / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)}.index"


def cached_index(
    path: str, names: Sequence[str], shards: Sequence[Shard], files: RangeFiles
) -> tuple[ShardIndex, str | None]:
    """Return the index of the shards `names`: the one beside them, one from the user's cache folder, or a new one.

    The text is a remark about a new one that could not be kept, '' for one that was, None where none was made. Raises
    DataError where the index beside the shards is damaged or is not theirs, and where the shards cannot be indexed.
    """
    if not is_url(path) and (kept := beside(path)).is_file():
        table = read_table(kept, MAGIC, _WHAT)
        try:
            index = ShardIndex.of(table)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(
                f"{kept} is not as this release writes it: {one_line(error, 200)}; make it again with "
                "'resnext-run data index'"
            ) from error
        if (why := index.misfit(names, shards, files)) is not None:
            raise DataError(
                f"{kept} does not fit its shards: {why}; make it again with 'resnext-run data index'"
            )
        return index, None
    called = "\0".join([absolute(path), *(shard.name for shard in shards)])
    cached = cache_folder() / f"shards-{hashlib.sha256(os.fsencode(called)).hexdigest()[:24]}.index"
    if (found := _recalled(cached, names, shards, files)) is not None:
        return found, None
    with _alone(cached.parent):
        if (found := _recalled(cached, names, shards, files)) is not None:
            return found, None  # another process has just made it
        builder, meta = indexed(names, shards, files)
        try:
            write_index(cached, builder, meta)
            return ShardIndex.of(read_table(cached, MAGIC, _WHAT)), ""
        except DataError as error:
            with tempfile.TemporaryFile() as stream:
                builder.write(stream, MAGIC, meta)
                stream.flush()
                table = table_of(stream, Path("the index"), MAGIC, _WHAT)
            return ShardIndex.of(table), f"the index of the shards is not kept: {error}"


def write_index(path: Path, builder: TableBuilder, meta: dict[str, Any]) -> None:
    """Write an index atomically; DataError where it cannot be written."""
    with fresh_file(path, replace=True) as stream:
        builder.write(stream, MAGIC, meta)


def indexed(
    names: Sequence[str], shards: Sequence[Shard], files: RangeFiles
) -> tuple[TableBuilder, dict[str, Any]]:
    """Return the table of all images in `shards`, by their headers, and what else is known of them."""
    builder, ignored = TableBuilder(), Counter[str]()
    said, folders = _Texts(), _Texts()  # labels by members, and by folders
    entries = []
    for name, shard in zip(names, shards, strict=True):
        try:
            file = files.open(shard.name)
            found: Contents = contents(file.read, shard.stamp[0])
        except OSError as error:
            raise DataError(f"cannot read the shard {shard.name}: {reason(error)}") from error
        except ValueError as error:
            raise DataError(f"the shard {shard.name} cannot be used: {error}") from error
        ignored.update(found.ignored)
        for image in found.images:
            said.add(found.labels.get(image.name))
            folders.add(image.name.split(b"/", 1)[0] if b"/" in image.name else None)
            builder.add(
                name.encode(errors="surrogateescape") + b"/" + image.name, -1, image.offset, image.size
            )
        entries.append(
            {
                "name": name, "size": shard.stamp[0], "changed": shard.stamp[1], "images": len(found.images),
                "content": _digest(found),
            }
        )  # fmt: skip
    labels, classes, named = _labels(names, said, folders)
    builder.relabel(labels)
    return builder, {"shards": entries, "classes": classes, "named": named, "ignored": dict(ignored)}


class _Texts:
    """A text for each image, or none; each distinct text is kept once."""

    def __init__(self) -> None:
        self.numbers: dict[bytes, int] = {}
        self._of: list[NDArray[np.int32]] = []
        self._block: list[int] = []

    def add(self, text: bytes | None) -> None:
        self._block.append(-1 if text is None else self.numbers.setdefault(text, len(self.numbers)))
        if len(self._block) == 1 << 20:
            self._close()

    def _close(self) -> None:
        self._of.append(np.array(self._block, np.int32))
        self._block = []

    def positions(self) -> NDArray[np.int32]:
        """Return the number of each image's text, -1 for none."""
        self._close()
        return np.concatenate(self._of)


def _labels(
    names: Sequence[str], said: _Texts, folders: _Texts
) -> tuple[NDArray[np.int32], tuple[str, ...], bool]:
    """Return labels int32 (N,), classes, and whether these are names."""
    texts = said if said.numbers else folders
    positions = texts.positions()
    if not texts.numbers:
        return positions, (), True
    if texts is folders and len(positions) and positions.min() < 0:
        raise DataError(
            f"the shards {names[0]} ... hold images in folders and images beside these, and no labels (.cls or .json); "
            "put every image into the folder of its class"
        )
    known = [decoded(text) for text in texts.numbers]
    numbers = texts is said and all(re.fullmatch("[0-9]{1,9}", text) for text in known)
    if numbers and (largest := max(map(int, known))) >= _MAX_CLASSES:
        raise DataError(
            f"the shards {names[0]} ... have the label {largest}; numbers are below {_MAX_CLASSES}, write names as text"
        )
    table, classes = label_table(known, numbers)
    return np.append(table, np.int32(-1))[positions], classes, not numbers


def _digest(found: Contents) -> str:
    """Return a digest of the images of a shard, where they lie, and their labels."""
    digest = hashlib.sha256()
    for image in found.images:
        label = found.labels.get(image.name, b"")
        digest.update(b"%d %d %d\n" % (image.offset, image.size, len(label)) + image.name + b"\0" + label)
    return digest.hexdigest()


def _recalled(
    cached: Path, names: Sequence[str], shards: Sequence[Shard], files: RangeFiles
) -> ShardIndex | None:
    """Return the index in the cache, None where there is none, or it is damaged or of other shards."""
    if not cached.is_file():
        return None
    with suppress(DataError, OSError, LookupError, TypeError, ValueError, AttributeError, OverflowError):
        index = ShardIndex.of(read_table(cached, MAGIC, _WHAT))
        known = [(entry["name"], (entry["size"], entry["changed"])) for entry in index.table.meta["shards"]]
        now = [(name, shard.stamp) for name, shard in zip(names, shards, strict=True)]
        if known == now and all(shard.stamp[1] for shard in shards):  # 0: a store that tells no version
            return index
    return None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes with the same cache folder from indexing at the same time; where that is possible."""
    descriptor = -1
    try:
        with suppress(OSError, ImportError):
            import fcntl

            make_folder(folder)
            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)
