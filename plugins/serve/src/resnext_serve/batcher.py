"""Micro-batches: images of several requests are computed together, in the order in which they came.

A batch is started as soon as the device is free. It waits for more images, for a window of some milliseconds, only
while requests are known to be on their way (:meth:`Batcher.arriving`), so that a lone client never waits.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from resnext_serve.errors import Refused

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """Float32 logits (N, classes) of the images of one request, and where its seconds went."""

    logits: NDArray[np.float32]
    queue_seconds: float
    compute_seconds: float


@dataclass(kw_only=True, eq=False)
class _Entry:
    images: NDArray[np.uint8]
    future: asyncio.Future[Answer]
    since: float


class Batcher:
    """Computes uint8 (N, H, W, 3) by `compute`, `most` images at once, in a thread of its own.

    `window` are the seconds that a batch waits for requests on their way, `queue` the images that may wait. `measure`
    gets the number of images of each batch, `queued` the change of how many images wait.
    """

    def __init__(
        self, compute: Callable[[NDArray[np.uint8]], NDArray[np.float32]], *, most: int, window: float, queue: int,
        measure: Callable[[int], None] = lambda images: None,
        queued: Callable[[int], None] = lambda change: None,
    ) -> None:  # fmt: skip
        self._compute, self._most, self._window, self._queue = compute, most, window, queue
        self._measure, self._queued = measure, queued
        self._entries: deque[_Entry] = deque()
        self._waiting = self._arriving = 0
        self._changed = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="resnext-compute")
        self._task = asyncio.create_task(self._run())

    @property
    def waiting(self) -> int:
        """How many images wait to be computed."""
        return self._waiting

    @contextmanager
    def arriving(self) -> Iterator[None]:
        """Say that a request is on its way, for the length of the block, which ends before its images are submitted."""
        self._arriving += 1
        try:
            yield
        finally:
            self._arriving -= 1
            self._changed.set()

    async def submit(self, images: NDArray[np.uint8]) -> Answer:
        """Return the logits of uint8 (N, H, W, 3). Raises Refused (503) where the queue is full."""
        if self._waiting and self._waiting + len(images) > self._queue:
            raise Refused(503, f"too busy: {self._waiting} images are waiting", retry_after=1)
        loop, now = asyncio.get_running_loop(), time.perf_counter()
        parts = [images[i : i + self._most] for i in range(0, len(images), self._most)]
        entries = [_Entry(images=part, future=loop.create_future(), since=now) for part in parts]
        self._entries.extend(entries)
        self._count(len(images))
        self._changed.set()
        try:
            answers = [await entry.future for entry in entries]
        finally:
            for entry in entries:  # a client that went away: what was not begun is not computed
                if not entry.future.cancel() and not entry.future.cancelled():
                    entry.future.exception()  # seen, also where another part failed first
        return Answer(
            logits=np.concatenate([answer.logits for answer in answers]),
            queue_seconds=sum(answer.queue_seconds for answer in answers),
            compute_seconds=sum(answer.compute_seconds for answer in answers),
        )

    async def apart(self, work: Callable[[], _T]) -> _T:
        """Return what `work` returns, which runs in the computing thread between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def close(self, then: Callable[[], object]) -> None:
        """End the thread, after calling `then` in it; nothing may wait any more."""
        self._task.cancel()
        await self.apart(then)
        self._thread.shutdown()

    async def _run(self) -> None:
        while True:
            if not self._waiting:
                await self._until_changed(None)
                continue
            deadline = time.perf_counter() + self._window
            while self._arriving and self._waiting < self._most:
                left = deadline - time.perf_counter()
                if left <= 0 or not await self._until_changed(left):
                    break
            if batch := self._take():
                await self._batch(batch)

    def _count(self, change: int) -> None:
        self._waiting += change
        self._queued(change)

    async def _until_changed(self, seconds: float | None) -> bool:
        """Wait until something is submitted, or is known not to come; returns False when the time is over first."""
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except asyncio.TimeoutError:
            return False
        return True

    def _take(self) -> list[_Entry]:
        """Return the oldest entries that fit into one batch, without those whose client went away."""
        batch: list[_Entry] = []
        size = 0
        while self._entries and size + len(self._entries[0].images) <= self._most:
            entry = self._entries.popleft()
            self._count(-len(entry.images))
            if not entry.future.done():
                size += len(entry.images)
                batch.append(entry)
        return batch

    async def _batch(self, batch: list[_Entry]) -> None:
        images = batch[0].images if len(batch) == 1 else np.concatenate([entry.images for entry in batch])
        self._measure(len(images))
        started = time.perf_counter()
        try:
            logits = await self.apart(lambda: self._compute(images))
        except Exception as error:
            for entry in batch:
                _settle(entry.future, error=error)
            return
        seconds, row = time.perf_counter() - started, 0
        for entry in batch:
            rows = logits[row : row + len(entry.images)]
            row += len(entry.images)
            answer = Answer(logits=rows, queue_seconds=started - entry.since, compute_seconds=seconds)
            _settle(entry.future, answer=answer)


def _settle(
    future: asyncio.Future[Any], *, answer: Answer | None = None, error: Exception | None = None
) -> None:
    """Give a future its outcome, unless its client went away meanwhile."""
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(answer)
