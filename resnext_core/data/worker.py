"""The worker process: takes jobs of one kind, and notes in shared memory which item of a job each thread is at.

Started by :mod:`resnext_core.data.pool` as a fresh interpreter, never forked. It imports what its duty needs, no
framework, and does not look at the parent's ``__main__``.
"""

from __future__ import annotations

import mmap
import os
import queue
import threading
import traceback
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from resnext_core.ranks.parent import when_parent_ends

#: Bytes at the start of the shared memory, with one cell a thread: the item it is at plus 1, or 0.
HEADER = 4096
CELL = 8


_Self = TypeVar("_Self")


class Job(Protocol):
    """Work on some items, each known by a number from 0; results are a function of the job alone."""

    @property
    def items(self) -> Sequence[int]:
        """The numbers of the items."""

    def without(self: _Self, items: Collection[int]) -> _Self:
        """Return the job with these items left out."""


JobT = TypeVar("JobT", bound=Job)
JobT_contra = TypeVar("JobT_contra", bound=Job, contravariant=True)
DoneT = TypeVar("DoneT")
DoneT_co = TypeVar("DoneT_co", covariant=True)


FileT = TypeVar("FileT")


@dataclass(frozen=True, kw_only=True)
class Portion(Generic[FileT]):
    """A job on some files, each with its number."""

    files: Sequence[tuple[int, FileT]]

    @property
    def items(self) -> Sequence[int]:
        """The numbers."""
        return [number for number, _ in self.files]

    def without(self, items: Collection[int]) -> Portion[FileT]:
        """Return the job without the files of these numbers."""
        return Portion(files=[file for file in self.files if file[0] not in items]) if items else self


class Memory:
    """The shared file of a pool, mapped as far as it is needed."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._mapped = mmap.mmap(descriptor, HEADER)

    def view(self, offset: int, size: int) -> memoryview:
        """Return `size` writable bytes from `offset` on; the file is at least so long."""
        with self._lock:
            if len(self._mapped) < offset + size:  # the file has grown; views of the old mapping stay valid
                self._mapped = mmap.mmap(self._descriptor, os.fstat(self._descriptor).st_size)
            return memoryview(self._mapped)[offset : offset + size]


class Duty(Protocol[JobT_contra, DoneT_co]):
    """What the workers of a pool do with their jobs; pickled once for each process."""

    def prepare(self) -> None:
        """Import and open what :meth:`do` needs; called once in each process."""

    def do(self, job: JobT_contra, at: Callable[[int], None], memory: Memory) -> DoneT_co:
        """Return what comes of `job`; the threads of a process call it at the same time.

        Calls `at` with each item before it. `memory` is the pool's shared file.
        """


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a worker sends back: `done` is the result of the job `ticket`, or `bug` an unexpected traceback."""

    ticket: int
    done: Any = None
    bug: str | None = None


def main(first: int, threads: int, link_fd: int, memory_fd: int, parent: int) -> None:
    """Serve jobs in `threads`, from cell `first` on, until the link closes or the `parent` process is gone."""
    # A process forked by the parent may hold the link open after the parent's death.
    when_parent_ends(parent, lambda: os._exit(0))
    warnings.simplefilter("ignore")  # threads cannot turn them off for an image; what is wrong is raised
    link = Connection(link_fd)
    duty: Duty[Any, Any] = link.recv()
    jobs: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(link, jobs), daemon=True).start()
    memory, sending = Memory(memory_fd), threading.Lock()
    cells = memory.view(0, HEADER).cast("q")
    unprepared = None
    try:
        duty.prepare()
    except Exception:
        unprepared = traceback.format_exc()

    def serve(number: int) -> NoReturn:
        def at(item: int) -> None:
            cells[number] = item + 1

        while True:
            ticket, job = jobs.get()
            bug = unprepared
            if bug is None:
                try:
                    answer = Answer(ticket=ticket, done=duty.do(job, at, memory))
                except BaseException:  # a thread that ends would be missed by nobody
                    bug = traceback.format_exc()
                cells[number] = 0
            if bug is not None:
                answer = Answer(ticket=ticket, bug=bug)
            try:
                with sending:
                    link.send(answer)
            except OSError:
                os._exit(0)

    for number in range(first + 1, first + threads):
        threading.Thread(target=serve, args=(number,), daemon=True).start()
    serve(first)


def _receive(link: Connection, jobs: queue.SimpleQueue[tuple[int, Any]]) -> NoReturn:
    """Queue jobs as they come, so that the parent never waits to send; end the process with the link."""
    try:
        while True:
            jobs.put(link.recv())
    except (EOFError, OSError):
        os._exit(0)
