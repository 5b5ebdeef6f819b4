"""Core's own kinds of sources and how each is recognised; what reads them is imported when one is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resnext_core.data.sources.names import PACKED, are_files, is_packed, is_shards
from resnext_core.extensions import SourceKind

if TYPE_CHECKING:
    from resnext_core.config import DataConfig
    from resnext_core.data.sources.base import Listing


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
