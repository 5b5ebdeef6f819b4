"""The bytes of objects and of parts of them: from the cache, or from their store, and some ahead of time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from resnext_core.config import DataConfig
from resnext_core.data.remote.access import Access
from resnext_core.data.remote.cache import Cache
from resnext_core.files import cache_folder

#: Requests at a time in a process: an answer takes 20 to 50 ms, of which nearly all is waiting.
_AT_A_TIME = 16
#: Contents that wait to be taken, at most.
_WAITING = 4 * _AT_A_TIME


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Reads parts of objects; small and picklable, used by any number of threads.

    What has a version is kept in `cache` for later jobs too. Of an object about which its store tells nothing, nothing
    is kept.
    """

    access: Access = field(default_factory=Access)
    cache: Cache | None = None

    def content(self, url: str, version: str, offset: int, length: int, *, whole: bool = False) -> bytes:
        """Return `length` bytes from `offset` of the object `url`, known to have `version`.

        Raises as :meth:`resnext_core.data.remote.access.Access.content`.
        """
        kept = self.kept(key := f"{url}\0{version}\0{offset}\0{length}") if version else None
        if kept is not None:
            return kept
        found = self.access.content(url, offset, length, whole=whole)
        if version:
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


class Ahead:
    """Does `work` for what will be asked for next, :data:`_AT_A_TIME` at a time, in threads that end with the work.

    A result that nobody takes is dropped when others need its place. The threads are no reason to keep a process.
    """

    def __init__(self, work: Callable[[bytes], bytes]) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._coming: dict[bytes, Future[bytes]] = {}
        self._next: deque[tuple[bytes, Future[bytes]]] = deque()
        self._threads = 0

    def expect(self, items: Sequence[bytes]) -> None:
        """Begin with `items`; of many only the first."""
        with self._lock:
            for item in items[:_WAITING]:
                if item not in self._coming:
                    self._coming[item] = Future()
                    self._next.append((item, self._coming[item]))
            while len(self._coming) > _WAITING:  # the oldest: of a job that was given up
                self._coming.pop(next(iter(self._coming))).cancel()
            missing = min(len(self._next), _AT_A_TIME - self._threads)
            self._threads += max(missing, 0)
        for _ in range(missing):
            threading.Thread(target=self._serve, name="resnext-fetch", daemon=True).start()

    def take(self, item: bytes) -> bytes:
        """Return what came of `item`, or do it now. Raises what the work raises."""
        with self._lock:
            coming = self._coming.pop(item, None)
        return self._work(item) if coming is None else coming.result()

    def _serve(self) -> None:
        while True:
            with self._lock:
                if not self._next:
                    self._threads -= 1
                    return
                item, future = self._next.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._work(item))
            except BaseException as error:
                future.set_exception(error)

    def __reduce__(self) -> tuple[type[Ahead], tuple[Callable[[bytes], bytes]]]:
        return Ahead, (self._work,)
