"""The kinds of sources that are known here: core's own, and those of the plugins that were loaded."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Sequence

from resnext_core.data.sources.kinds import PACKED_FILE, PARQUET, SHARDS
from resnext_core.extensions import SourceKind

#: Core's own, which are asked first.
CORE_KINDS: tuple[SourceKind, ...] = (SHARDS, PACKED_FILE, PARQUET)
_plugins: list[SourceKind] = []


def install(kinds: Iterable[SourceKind]) -> None:
    """Set the kinds of the plugins; what was set before is forgotten."""
    core = {kind.name for kind in CORE_KINDS}
    _plugins[:] = sorted((kind for kind in kinds if kind.name not in core), key=lambda kind: kind.name)


def kinds() -> Sequence[SourceKind]:
    """Return the kinds in the order in which they are asked."""
    return (*CORE_KINDS, *_plugins)


def kind_of(path: str | os.PathLike[str]) -> SourceKind | None:
    """Return the kind of what the user gave; None for a folder of images, a list, and what is not there."""
    return next((kind for kind in kinds() if kind.claims(os.fspath(path))), None)


def parts_in(files: Sequence[str], name: str) -> list[str]:
    """Return which of the sorted `files` of a folder are the part `name` of the data by the pattern of a kind, sorted.

    Where a pattern with ``*`` has several matches, that pattern stands for all of them.
    """
    found = []
    for kind in kinds():
        for pattern in (pattern.format(name) for pattern in kind.parts):
            matches = fnmatch.filter(files, pattern)
            if "*" in pattern and matches:
                found.append(pattern)
            else:
                found += matches
    return found
