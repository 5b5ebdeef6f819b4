"""The bytes of objects and of parts of them: from the cache, or from their store."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass, field
from pathlib import Path

from resnext_core.config import DataConfig
from resnext_core.data.remote.access import Access
from resnext_core.data.remote.cache import Cache
from resnext_core.files import cache_folder


class KeyLocks:
    """A lock for each key, for as long as a thread holds it. Those of another process are others."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: weakref.WeakValueDictionary[str, threading.Lock] = weakref.WeakValueDictionary()

    def of(self, key: str) -> threading.Lock:
        """Return the lock of `key`."""
        with self._guard:
            return self._locks.setdefault(key, threading.Lock())

    def __reduce__(self) -> tuple[type[KeyLocks], tuple[()]]:
        return KeyLocks, ()


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Reads parts of objects; small and picklable, used by any number of threads.

    What has a version is kept in `cache` for later jobs too. Of an object about which its store tells nothing, nothing
    is kept. Threads that want the same part at the same time, as where two epochs meet, cause one request.
    """

    access: Access = field(default_factory=Access)
    cache: Cache | None = None
    locks: KeyLocks = field(default_factory=KeyLocks, compare=False, repr=False)

    def content(self, url: str, version: str, offset: int, length: int, *, whole: bool = False) -> bytes:
        """Return `length` bytes from `offset` of the object `url`, known to have `version`.

        Raises as :meth:`resnext_core.data.remote.access.Access.content`.
        """
        if not version or self.cache is None:
            return self.access.content(url, offset, length, whole=whole)
        key = f"{url}\0{version}\0{offset}\0{length}"
        with self.locks.of(key):
            found = self.kept(key)
            if found is None:
                found = self.access.content(url, offset, length, whole=whole)
                self.keep(key, found)
            return found

    def kept(self, key: str) -> bytes | None:
        """Return what the cache has under `key`."""
        return self.cache.get(key) if self.cache is not None else None

    def keep(self, key: str, content: bytes | memoryview) -> None:
        """Put `content` into the cache under `key`."""
        if self.cache is not None:
            self.cache.put(key, content)


def fetch_of(data: DataConfig | None = None) -> Fetch:
    """Return how a job with these settings reads what is remote."""
    data = DataConfig() if data is None else data
    folder = cache_folder() / "images" if data.cache is None else Path(data.cache)
    cache = Cache(folder=folder.absolute(), limit=int(data.cache_gb * 1e9)) if data.cache_gb else None
    return Fetch(access=Access(tries=data.tries), cache=cache)
