"""Memory of batches in the file that the readers write to; a batch owns its part of it until its last array is gone."""

from __future__ import annotations

import mmap
import os
import weakref
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnext_core.errors import DataError, reason


@dataclass(frozen=True, kw_only=True)
class Slot:
    """`size` bytes from `offset` on in the shared file."""

    offset: int
    size: int


class Slots:
    """Hands out slots of the shared `file`, from byte `start` on.

    What is given back is used again: up to `spare` slots wait for that, the memory of others goes back to the system.
    """

    def __init__(self, file: int, start: int) -> None:
        self._file = file
        self._end = start
        self._free: list[Slot] = []
        self._returned: deque[Slot] = deque()
        self._mapping: mmap.mmap | None = None
        #: Slots that may wait to be used again.
        self.spare = 0

    def take(self, size: int) -> Slot:
        """Return a slot for `size` bytes; what is in it is undefined. Raises DataError where there is no memory."""
        self._collect()
        fitting = [slot for slot in self._free if slot.size >= size]
        if fitting:
            self._free.remove(fitting[-1])  # the last one that was written: it may be in a cache
            return fitting[-1]
        self._release(len(self._free))  # batches have grown: what is too small now is of no use any more
        size += -size % mmap.PAGESIZE
        slot = Slot(offset=self._end + -self._end % mmap.PAGESIZE, size=size)
        self._end = slot.offset + size
        try:
            _allocate(self._file, slot)
        except OSError as error:
            raise DataError(
                f"no memory for another batch of {size / 2**20:.0f} MiB: {reason(error)}; "
                "lower data.prefetch or the batch size"
            ) from error
        return slot

    def give_back(self, slot: Slot) -> None:
        """Take back a slot that nobody reads or writes any more; may be called at any time, by any thread."""
        self._returned.append(slot)

    def array(self, slot: Slot, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return the first bytes of a slot as uint8 of `shape`. The slot comes back with the last array on it."""
        count = int(np.prod(shape))
        pixels = np.frombuffer(self._mapped(slot), np.uint8, count=count, offset=slot.offset)
        lease = _Lease(pixels.reshape(shape))
        weakref.finalize(lease, self.give_back, slot).atexit = False
        return np.asarray(lease)

    def _collect(self) -> None:
        """Sort in what came back, and free the memory of slots that are too many."""
        while self._returned:
            self._free.append(self._returned.popleft())
        self._release(len(self._free) - self.spare)

    def _release(self, count: int) -> None:
        """Free the memory of the `count` slots that wait longest."""
        for _ in range(count):
            slot = self._free.pop(0)
            if hasattr(mmap, "MADV_REMOVE"):  # elsewhere it stays allocated
                self._mapped(slot).madvise(mmap.MADV_REMOVE, slot.offset, slot.size)

    def _mapped(self, slot: Slot) -> mmap.mmap:
        """Return the file's mapping, with `slot` in it."""
        end = slot.offset + slot.size
        if self._mapping is None or len(self._mapping) < end:
            # Arrays keep the mapping that they are on. Twice the length, so that few mappings are ever made: only
            # what is allocated takes memory.
            os.ftruncate(self._file, max(2 * end, os.fstat(self._file).st_size))
            self._mapping = mmap.mmap(self._file, 2 * end)
        return self._mapping


class _Lease:
    """What arrays on a slot have as their base: it lives as long as the last of them."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._pixels = pixels
        self.__array_interface__ = pixels.__array_interface__


def _allocate(file: int, slot: Slot) -> None:
    """Have the system provide the memory now: later, its lack would end the process that writes."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, slot.offset, slot.size)
    else:
        os.pwrite(file, bytes(slot.size), slot.offset)
