"""An image by the path that results have: a file of its own, or one in a shard or a packed file."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from resnext_core.config import DataConfig
from resnext_core.data.content import BadImage, Content, read_file
from resnext_core.data.sources.base import Listing
from resnext_core.data.sources.registry import kind_of
from resnext_core.errors import ResnextError


def content_of(path: str) -> Content:
    """Return the content of the image that messages and results call `path`; BadImage where it cannot be read."""
    if os.path.lexists(path):
        return read_file(path)
    for above in Path(path).parents:
        if os.path.isfile(above):
            try:
                listing = _opened(str(above))
                name = os.path.relpath(path, listing.root)
                source = listing.source
                return source.reader().read(source.locator(listing.paths.index(name)))
            except (ResnextError, ValueError) as error:
                raise BadImage(path, str(error)) from error
    return read_file(path)


@lru_cache(maxsize=1)
def _opened(path: str) -> Listing:
    kind = kind_of(path)
    if kind is None:
        raise ValueError(f"{path} is no source of images")
    return kind.open(path, DataConfig())
