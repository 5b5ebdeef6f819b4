"""Batches that worker processes decode into shared memory, in slots that are used again."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from resnext_core.data.batch_worker import BatchJob, DecodeBatches, Decoded, Transform
from resnext_core.data.pool import Limits, Pool
from resnext_core.data.sources.base import Reader
from resnext_core.data.worker import HEADER

#: A file at which a worker died is tried once more; after that it is the file. A machine that kills more than 20
#: workers has too little memory.
LIMITS = Limits(tries=2, deaths=20, idle=20)


class BatchPool:
    """`workers` processes and `slots` batches of shared memory; see :class:`resnext_core.data.pool.Pool`."""

    def __init__(self, transform: Transform, reader: Reader, workers: int, slots: int) -> None:
        self._pool: Pool[BatchJob, Decoded] = Pool(
            DecodeBatches(transform=transform, reader=reader), workers, LIMITS, setting="data.workers"
        )
        self._free = list(range(slots))
        self._slot_of: dict[int, int] = {}
        self._stride = 0
        self._row_shape = (transform.preprocess.size, transform.preprocess.size, 3)

    def submit(self, epoch: int, length: int, rows: Sequence[tuple[int, int, bytes]]) -> int | None:
        """Hand out a batch of `length` rows (row, sample, locator) and return its ticket; None: no room now."""
        size = length * int(np.prod(self._row_shape))
        if size > self._stride and not self._slot_of:
            self._stride = size
        if not self._free or size > self._stride:
            return None
        slot = self._free.pop()
        ticket = self._pool.submit(BatchJob(offset=HEADER + slot * self._stride, epoch=epoch, rows=rows))
        self._slot_of[ticket] = slot
        return ticket

    def result(self, ticket: int, length: int) -> tuple[NDArray[np.uint8], Decoded]:
        """Wait for a batch and return its pixels, a copy: uint8 (length, size, size, 3). Frees its slot.

        Pixels of rows that were not written are those of an earlier batch. Raises WorkerDied when too many workers
        have died.
        """
        self._pool.wait(ticket)
        slot = self._slot_of.pop(ticket)
        self._free.append(slot)  # nobody gets it before this returns
        done = self._pool.result(ticket)
        images = np.empty((length, *self._row_shape), np.uint8)
        target, offset = images.reshape(-1).data, 0
        while offset < len(target):
            start = HEADER + slot * self._stride + offset
            count = os.preadv(self._pool.memory, [target[offset:]], start)
            if count == 0:  # rows at the end that nobody ever wrote
                target[offset:] = bytes(len(target) - offset)
                break
            offset += count
        return images, done

    def discard(self) -> None:
        """Wait for the batches that nobody took and free their slots."""
        for ticket in list(self._slot_of):
            self._pool.discard(ticket)
            self._free.append(self._slot_of.pop(ticket))

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
