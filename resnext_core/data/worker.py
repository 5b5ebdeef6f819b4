"""The worker process: takes jobs of one kind, and notes in shared memory which item of a job it is at.

Started by :mod:`resnext_core.data.pool` as a fresh interpreter, never forked. It imports what its duty needs, no
framework, and does not look at the parent's ``__main__``.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NoReturn, Protocol, TypeVar

from resnext_core.ranks.parent import when_parent_ends

#: Bytes at the start of the shared memory, with one cell a worker: the item it is at plus 1, or 0.
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


class Duty(Protocol[JobT_contra, DoneT_co]):
    """What the workers of a pool do with their jobs; pickled once for each of them."""

    def do(self, job: JobT_contra, at: Callable[[int], None], memory: int) -> DoneT_co:
        """Return what comes of `job`. Calls `at` with each item before it; `memory` is the pool's shared file."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a worker sends back: `done` is the result of the job `ticket`, or `bug` an unexpected traceback."""

    ticket: int
    done: Any = None
    bug: str | None = None


def main(number: int, link_fd: int, memory: int, parent: int) -> None:
    """Serve jobs until the other end of the link closes or the `parent` process is gone."""
    # A process forked by the parent may hold the link open after the parent's death.
    when_parent_ends(parent, lambda: os._exit(0))
    link = Connection(link_fd)
    duty: Duty[Any, Any] = link.recv()
    jobs: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(link, jobs), daemon=True).start()

    def note(cell: int) -> None:
        os.pwrite(memory, cell.to_bytes(CELL, sys.byteorder), number * CELL)

    while True:
        ticket, job = jobs.get()
        try:
            answer = Answer(ticket=ticket, done=duty.do(job, lambda item: note(item + 1), memory))
        except Exception:
            answer = Answer(ticket=ticket, bug=traceback.format_exc())
        note(0)
        try:
            link.send(answer)
        except OSError:
            os._exit(0)


def _receive(link: Connection, jobs: queue.SimpleQueue[tuple[int, Any]]) -> NoReturn:
    """Queue jobs as they come, so that the parent never waits to send; end the process with the link."""
    try:
        while True:
            jobs.put(link.recv())
    except (EOFError, OSError):
        os._exit(0)
