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
#: Results that wait to be taken, or are being made, at most.
_WAITING = 4 * _AT_A_TIME
#: What was not taken after so many further calls of :meth:`Ahead.expect` never will be: its job was given up.
_STALE = 64


class Ahead(Generic[K, V]):
    """Does `work` for what will be asked for next, :data:`_AT_A_TIME` at a time, in threads that end with the work.

    Results wait in memory, :data:`_WAITING` at most; as they are taken, it goes on with the others that it was told of.
    The threads are no reason to keep a process.
    """

    def __init__(self, work: Callable[[K], V]) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._coming: dict[K, tuple[int, Future[V]]] = {}
        self._next: deque[tuple[K, Future[V]]] = deque()
        self._calls = self._threads = self._begun = 0

    def expect(self, items: Sequence[K]) -> None:
        """Take note of `items`, and begin with them."""
        with self._lock:
            self._calls += 1
            for item in items:
                if item not in self._coming:
                    self._coming[item] = self._calls, Future()
                    self._next.append((item, self._coming[item][1]))
            while self._coming:
                oldest = next(iter(self._coming))
                if self._coming[oldest][0] > self._calls - _STALE:
                    break
                self._forget(oldest)
            missing = self._wanted()
        self._start(missing)

    def take(self, item: K) -> V:
        """Return what came of `item`, or do it now. Raises what the work raises."""
        with self._lock:
            coming = self._forget(item)
            missing = self._wanted()
        self._start(missing)
        return self._work(item) if coming is None else coming.result()

    def _forget(self, item: K) -> Future[V] | None:
        """Return the future of `item`, which is no longer waited for; None where nobody has begun with it."""
        _, future = self._coming.pop(item, (0, None))
        if future is None or future.cancel():
            return None
        self._begun -= 1
        return future

    def _wanted(self) -> int:
        """Return how many threads to start, which count as started."""
        missing = max(min(len(self._next), _AT_A_TIME - self._threads, _WAITING - self._begun), 0)
        self._threads += missing
        return missing

    def _start(self, threads: int) -> None:
        for _ in range(threads):
            threading.Thread(target=self._serve, name="resnext-fetch", daemon=True).start()

    def _serve(self) -> None:
        while True:
            with self._lock:
                if not self._next or self._begun >= _WAITING:
                    self._threads -= 1
                    return
                item, future = self._next.popleft()
                if not future.set_running_or_notify_cancel():
                    continue
                self._begun += 1
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
