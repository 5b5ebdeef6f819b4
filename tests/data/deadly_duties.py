"""Duties for worker processes that die of them; a module of its own, so that workers import no more than this."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from resnext_core.data.worker import Memory


@dataclass(frozen=True)
class Numbers:
    """A job that is nothing but its items."""

    items: Sequence[int]

    def without(self, items: Collection[int]) -> Numbers:
        return Numbers([n for n in self.items if n not in items])


class Ready:
    """A duty that needs nothing to be opened."""

    def prepare(self) -> None:
        """Nothing."""


class DieAtOdd(Ready):
    """Returns the numbers, and dies at odd ones."""

    def do(self, job: Numbers, at: Callable[[int], None], memory: Memory) -> list[int]:
        for number in job.items:
            at(number)
            if number % 2:
                os._exit(7)
        return list(job.items)


@dataclass(frozen=True)
class DieOnce(Ready):
    """Returns the numbers; the first process to be at number 1 dies, and leaves a file that says so."""

    mark: Path

    def do(self, job: Numbers, at: Callable[[int], None], memory: Memory) -> list[int]:
        for number in job.items:
            at(number)
            if number == 1 and not self.mark.exists():
                self.mark.touch()
                os._exit(7)
        return list(job.items)


class DieIdle(Ready):
    """Dies before it is at any number."""

    def do(self, job: Numbers, at: Callable[[int], None], memory: Memory) -> list[int]:
        os._exit(7)


class Meet(Ready):
    """Returns the process and the numbers once as many threads as a job has numbers do jobs at the same time."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def prepare(self) -> None:
        self._barrier = threading.Barrier(self._threads)

    def do(self, job: Numbers, at: Callable[[int], None], memory: Memory) -> list[int]:
        self._barrier.wait()
        return [os.getpid(), *job.items]


@dataclass(frozen=True)
class DieBeside(Ready):
    """Returns the numbers; at number 0 the process dies, the first time once threads are at all the others."""

    others: int
    mark: Path

    def prepare(self) -> None:
        object.__setattr__(self, "_there", threading.Semaphore(0))

    def do(self, job: Numbers, at: Callable[[int], None], memory: Memory) -> list[int]:
        for number in job.items:
            at(number)
            if number == 0:
                for _ in range(0 if self.mark.exists() else self.others):
                    self._there.acquire()
                self.mark.touch()
                os._exit(7)
            elif not self.mark.exists():
                self._there.release()
                threading.Event().wait()  # until the process has died
        return list(job.items)


class Unready(Ready):
    """Cannot begin."""

    def prepare(self) -> None:
        raise OSError("its library is gone")

    def do(self, job: Numbers, at: Callable[[int], None], memory: Memory) -> list[int]:
        return list(job.items)
