"""Reading ahead: a store answers slowly, but many questions at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from resnext_core.data.content import Content
from resnext_core.data.remote.fetch import Fetch
from resnext_core.data.sources.base import Reader

K = TypeVar("K")
V = TypeVar("V")

#: Requests at a time in a process: an answer takes 20 to 50 ms, of which nearly all is waiting.
_AT_A_TIME = 16
#: Contents that wait to be taken, at most.
_WAITING = 4 * _AT_A_TIME


class Ahead(Generic[K, V]):
    """Does `work` for what will be asked for next, :data:`_AT_A_TIME` at a time, in threads that end with the work.

    A result that nobody takes is dropped when others need its place. The threads are no reason to keep a process.
    """

    def __init__(self, work: Callable[[K], V]) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._coming: dict[K, Future[V]] = {}
        self._next: deque[tuple[K, Future[V]]] = deque()
        self._threads = 0

    def expect(self, items: Sequence[K]) -> None:
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

    def take(self, item: K) -> V:
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

    def __reduce__(self) -> tuple[type[Ahead[K, V]], tuple[Callable[[K], V]]]:
        return Ahead, (self._work,)


class AheadReader:
    """Reads with `reader`, which asks a store through `fetch`, what :meth:`ahead` was told before it is asked for."""

    def __init__(self, reader: Reader, fetch: Fetch) -> None:
        self._reader, self._fetch = reader, fetch
        self._ahead: Ahead[bytes, Content] = Ahead(reader.read)
        self._told: str | None = None

    def __reduce__(self) -> tuple[type[AheadReader], tuple[Reader, Fetch]]:
        return AheadReader, (self._reader, self._fetch)

    def ahead(self, locators: Sequence[bytes]) -> None:
        """Begin to read what :meth:`read` will be called with."""
        self._ahead.expect(locators)

    def read(self, locator: bytes) -> Content:
        """See :class:`~resnext_core.data.sources.base.Reader`."""
        return self._ahead.take(locator)

    def stamp(self, locator: bytes) -> tuple[int, int]:
        """See :class:`~resnext_core.data.sources.base.Reader`."""
        return self._reader.stamp(locator)

    def take_notes(self) -> list[str]:
        """Return what someone should know, once: that the cache is not used any more."""
        trouble = self._fetch.cache.trouble if self._fetch.cache is not None else None
        new, self._told = trouble not in (None, self._told), trouble
        return [trouble] if new and trouble is not None else []
