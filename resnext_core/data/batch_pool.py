"""Batches that reader processes decode into shared memory, a part of a batch at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnext_core.data.batch_worker import BatchJob, DecodeBatches, Decoded, Row, Transform
from resnext_core.data.pool import Limits, Pool
from resnext_core.data.sampler import Task
from resnext_core.data.slots import Slot, Slots
from resnext_core.data.sources.base import Reader
from resnext_core.data.worker import HEADER

#: A file at which a worker died is tried once more; after that it is the file. A machine that kills more than 20
#: workers has too little memory.
LIMITS = Limits(tries=2, deaths=20, idle=20)
#: Images that a worker gets at a time: few, so that all begin with the first batch; enough that handing them out costs
#: little beside decoding them.
PORTION = 16
#: Threads of a process, where the decoder allows threads: each image needs Python's lock for about a tenth of the time
#: that it takes, and more threads would wait for it.
THREADS = 4


def most_batches(length: int, workers: int, prefetch: int) -> int:
    """Return how many batches of `length` images wait or are under way at a time: two portions for each reader."""
    return prefetch + -(-2 * workers * PORTION // max(length, PORTION))


@dataclass(frozen=True, kw_only=True)
class _Pending:
    """A batch that is being decoded: its memory, and the tickets of its parts that were not taken yet."""

    slot: Slot
    shape: tuple[int, int, int, int]
    tickets: deque[int]


class BatchPool:
    """`workers` readers, and batches in memory that they share; see :class:`resnext_core.data.pool.Pool`.

    With `threads` the readers are threads, at most :data:`THREADS` in a process. Up to `prefetch` batches wait
    decoded, and as many more are under way as two portions for each reader fill.
    """

    def __init__(
        self, transform: Transform, reader: Reader, workers: int, prefetch: int, *, threads: bool
    ) -> None:
        self._pool: Pool[BatchJob, Decoded] = Pool(
            DecodeBatches(transform=transform, reader=reader), workers, LIMITS, setting="data.workers",
            threads=THREADS if threads else 1,
        )  # fmt: skip
        self._workers, self._prefetch = workers, prefetch
        self._transform = transform
        self._slots = Slots(self._pool.memory, HEADER)
        self._pending: dict[int, _Pending] = {}
        self._tickets = 0

    def room(self, length: int) -> bool:
        """Return whether a batch of `length` rows may be handed out now."""
        most = most_batches(length, self._workers, self._prefetch)
        self._slots.spare = most
        return len(self._pending) < most

    def submit(self, task: Task, rows: Sequence[Row]) -> int:
        """Hand out the batch of a task, of which `rows` are read, and return its ticket."""
        shape = self._transform.shape(task.size)
        slot = self._slots.take(max(len(task), 1) * int(np.prod(shape)))
        portions = (rows[start : start + PORTION] for start in range(0, len(rows), PORTION))
        jobs = [
            BatchJob(offset=slot.offset, shape=shape, epoch=task.epoch, rows=portion) for portion in portions
        ]
        tickets = deque(self._pool.submit(job) for job in jobs)
        self._tickets += 1
        self._pending[self._tickets] = _Pending(slot=slot, shape=(len(task), *shape), tickets=tickets)
        return self._tickets

    def result(self, ticket: int) -> tuple[NDArray[np.uint8], Decoded]:
        """Wait for a batch and return its pixels: uint8 (length, size, size, 3), the caller's to keep.

        Nothing is copied: the memory is used again once the last array on it is gone. Pixels of rows that were not
        written are undefined. Raises WorkerDied when too many workers have died.
        """
        pending, parts = self._pending[ticket], []
        while pending.tickets:
            parts.append(self._pool.result(pending.tickets.popleft()))
        del self._pending[ticket]
        done = Decoded(
            bad=[bad for part in parts for bad in part.bad],
            remarks=[remark for part in parts for remark in part.remarks],
            lost=next((part.lost for part in parts if part.lost is not None), None),
            notes=[note for part in parts for note in part.notes],
            cpu_s=sum(part.cpu_s for part in parts),
        )
        return self._slots.array(pending.slot, pending.shape), done

    def discard(self, ticket: int) -> None:
        """Wait for a batch that nobody wants any more, and use its memory again."""
        pending = self._pending.pop(ticket)
        for part in pending.tickets:
            self._pool.discard(part)
        self._slots.give_back(pending.slot)

    def pending(self) -> list[int]:
        """Return the tickets of the batches that were handed out and not taken."""
        return list(self._pending)

    def left_out(self) -> list[int]:
        """Return the images that are left out because reading them ended two workers."""
        return self._pool.left_out()

    def take_notes(self) -> list[str]:
        """Return a line about each worker that has died since the last call."""
        notes = list(self._pool.notes)
        self._pool.notes.clear()
        return notes

    def stop(self) -> None:
        """End the workers and free the memory."""
        self._pool.stop()
