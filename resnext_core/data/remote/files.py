"""Images that are objects of their own in a store: what folders and lists behind a URL hold."""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnext_core.data.content import MAX_BYTES, BadImage
from resnext_core.data.look import WEB
from resnext_core.data.paths import decoded, encoded
from resnext_core.data.remote.access import Changed, NotThere
from resnext_core.data.remote.ahead import AheadReader
from resnext_core.data.remote.fetch import Fetch
from resnext_core.errors import DataError
from resnext_core.files import Url

#: A locator: size in bytes (-1: unknown) and version (0: unknown) of an object, then its path below the root.
_HEAD = struct.Struct("<qQ")


@dataclass(frozen=True)
class ObjectReader:
    """Reads objects below the URL `root`."""

    root: str
    fetch: Fetch

    def stamp(self, locator: bytes) -> tuple[int, int]:
        """See :class:`~resnext_core.data.sources.base.Reader`; the second number is of the object's version."""
        _, size, version = self._known(locator)
        return size, version >> 1

    def read(self, locator: bytes) -> bytes:
        """See :class:`~resnext_core.data.sources.base.Reader`."""
        url, size, version = self._known(locator)
        if size > MAX_BYTES:
            raise BadImage(url, f"the file has {size} bytes; the limit is {MAX_BYTES}")
        try:
            if size < 0:
                return self.fetch.access.all_content(url)
            return self.fetch.content(url, f"{version:x}" if version else "", 0, size, whole=True)
        except NotThere as error:
            raise self._gone(url) from error
        except Changed as error:
            raise BadImage(url, str(error).partition(": ")[2]) from error

    def _known(self, locator: bytes) -> tuple[str, int, int]:
        """Return URL, size and version of an object; it is asked for what was unknown."""
        size, version = _HEAD.unpack_from(locator)
        url = str(Url(self.root) / decoded(locator[_HEAD.size :]))
        if size >= 0:
            return url, size, version
        found = self.fetch.access.status(url)
        if found is None:
            raise self._gone(url)
        return url, found.size, version_number(found.version)

    def _gone(self, url: str) -> DataError:
        """Return what to raise for an object that is not there: is it that object alone?"""
        root = Url(self.root)
        if root.scheme not in WEB and self.fetch.access.status(str(root)) is None:
            return DataError(f"the data at {root} is gone; check it, then start again")
        return BadImage(url, "there is no such object")


@dataclass(frozen=True, eq=False)
class ObjectSource:
    """The objects `paths` below `root`, with their sizes int64 (N,) and versions uint64 (N,)."""

    root: Url
    paths: Sequence[str]
    sizes: NDArray[np.int64]
    versions: NDArray[np.uint64]
    fetch: Fetch

    def locator(self, i: int) -> bytes:
        """Return size, version and path of object `i`."""
        return _HEAD.pack(int(self.sizes[i]), int(self.versions[i])) + encoded(self.paths[i])

    def reader(self) -> AheadReader:
        """Return a reader of the objects."""
        return AheadReader(ObjectReader(str(self.root), self.fetch), self.fetch)

    def size(self, i: int) -> int:
        """Return the bytes of object `i` when it was listed, -1 where that is unknown."""
        return int(self.sizes[i])

    def blame(self, i: int, number: int) -> None:
        """Do nothing: the reader itself says when it is not about one object alone."""


class Facts:
    """Sizes and versions of objects by folder, collected while a store is listed."""

    def __init__(self) -> None:
        self._folders: dict[str, tuple[bytes, array[int], array[int]]] = {}

    def add(self, folder: str, found: Sequence[tuple[bytes, int, str]]) -> None:
        """Remember name, size and version of the objects in `folder`, '' or a path that ends with ``/``."""
        self._folders[folder] = (
            b"/".join(name for name, _, _ in found),
            array("q", (size for _, size, _ in found)),
            array("Q", (version_number(version) for _, _, version in found)),
        )

    def source(self, root: Url, paths: Sequence[str], fetch: Fetch) -> ObjectSource:
        """Return the source of `paths`; nothing is known of what was not added."""
        sizes, versions = np.full(len(paths), -1, np.int64), np.zeros(len(paths), np.uint64)
        at, numbers = None, dict[bytes, int]()
        known: tuple[array[int], array[int]] = array("q"), array("Q")
        for i, path in enumerate(paths):
            folder, slash, name = path.rpartition("/")
            if folder + slash != at:
                at = folder + slash
                names, *known_here = self._folders.get(at, (b"", array("q"), array("Q")))
                known = known_here[0], known_here[1]
                numbers = {name: k for k, name in enumerate(names.split(b"/"))}
            k = numbers.get(encoded(name), -1)
            if 0 <= k < len(known[0]):
                sizes[i], versions[i] = known[0][k], known[1][k]
        return ObjectSource(root, paths, sizes, versions, fetch)


def version_number(version: str) -> int:
    """Return 64 bits that stand for a version, 0 for none."""
    return int.from_bytes(hashlib.blake2b(version.encode(), digest_size=8).digest(), "big") if version else 0
