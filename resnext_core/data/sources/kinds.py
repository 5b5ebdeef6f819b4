"""Core's own kinds of sources and how each is recognised; what reads them is imported when one is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from resnext_core.data.folders import is_folder, is_image
from resnext_core.extensions import SourceKind
from resnext_core.files import is_url

if TYPE_CHECKING:
    from resnext_core.config import DataConfig
    from resnext_core.data.sources.base import Listing

#: The ending of packed files, and their first bytes.
PACKED, PACKED_MAGIC = ".pack", b"RESNEXT-PACK\r\n\x1a\n"
_COMPRESSED = re.compile(r"\.(tgz|tbz2|txz|tar\.(gz|bz2|xz|zst|lz4|lzma|Z))$")


def is_compressed(name: str) -> bool:
    """Return whether a file of this name is a compressed tar archive."""
    return _COMPRESSED.search(name) is not None


def is_shard(name: str) -> bool:
    """Return whether a file of this name is a tar archive, compressed or not."""
    return name.endswith(".tar") or is_compressed(name)


def is_shards(path: str) -> bool:
    """Return whether `path` is a tar archive, a pattern of several, or a folder of them, see :func:`are_files`."""
    return are_files(path, is_shard)


def are_files(path: str, is_one: Callable[[str], bool]) -> bool:
    """Return whether `path` is a file of a kind, a pattern of several, or a folder of them without images and folders.

    `is_one` says by its name whether a file is of the kind. A folder with class folders or images stays one, whatever
    else lies in it. Of a URL the text alone is looked at.
    """
    if is_url(path):
        return is_one(path)
    if not (is_one(path) or os.path.isdir(path)):
        return False
    if os.path.isfile(path):
        return True
    if not os.path.isdir(path):
        return re.search(r"[{*?\[]", os.path.basename(path)) is not None
    some = False
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if is_folder(entry) or is_image(entry.name):
                    return False
                some = some or is_one(entry.name)
    except OSError:
        return False
    return some


def is_packed(path: str) -> bool:
    """Return whether `path` is a file that is packed, by its ending or its first bytes."""
    if is_url(path):
        return path.endswith(PACKED)
    if not os.path.isfile(path):
        return False
    if path.endswith(PACKED):
        return True
    try:
        with open(path, "rb") as stream:
            return stream.read(len(PACKED_MAGIC)) == PACKED_MAGIC
    except OSError:
        return False


def _open_shards(path: str, data: DataConfig) -> Listing:
    from resnext_core.data.sources.shards import open_shards

    return open_shards(path, data)


SHARDS = SourceKind(
    name="tar",
    summary="tar shards: WebDataset's layout, or class folders",
    claims=is_shards,
    open=_open_shards,
    parts=("{}.tar", "{}-*.tar", "*-{}-*.tar"),
)


def _open_packed(path: str, data: DataConfig) -> Listing:
    from resnext_core.data.sources.packed import open_packed

    return open_packed(path, data)


PACKED_FILE = SourceKind(
    name="pack",
    summary="packed file, made by data pack",
    claims=is_packed,
    open=_open_packed,
    parts=("{}" + PACKED,),
)


def is_parquet(path: str) -> bool:
    """Return whether `path` is a Parquet file, a pattern of several, or a folder of them, see :func:`are_files`."""
    return are_files(path, lambda name: name.endswith(".parquet"))


def _open_parquet(path: str, data: DataConfig) -> Listing:
    from resnext_core.data.sources.parquet import open_parquet

    return open_parquet(path, data)


PARQUET = SourceKind(
    name="parquet",
    summary="Parquet files as the Hugging Face hub has them",
    claims=is_parquet,
    open=_open_parquet,
    parts=("{}.parquet", "{}-*.parquet"),
)
