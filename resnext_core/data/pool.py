"""A pool of worker processes; one that dies is noticed, replaced, and what it had to do is done again.

The workers are fresh interpreters (no fork of a process with framework threads, no second run of the caller's
``__main__``), each with one thread or several. They end with this process, also by ``kill -9``. The shared memory is an
anonymous file that the kernel frees with the last process that has it open, so nothing can be left behind.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from types import TracebackType
from typing import Any, Generic

from resnext_core.data.worker import CELL, HEADER, Answer, DoneT, Duty, JobT
from resnext_core.errors import DataError, UsageError, reason

#: Libraries start no threads of their own: the workers are many, and decoding does not use more.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
#: The child gets this process's sys.path before it imports anything that could be found elsewhere.
_START = (
    "import sys; numbers = [int(word) for word in sys.argv[1:6]]; sys.path[:] = sys.argv[6:]; "
    "from resnext_core.data.worker import main; main(*numbers)"
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How many deaths of workers a pool takes.

    An item at which `tries` workers died is left out. Where threads of a worker were at several items, its death
    counts against each of them, but the last one against an item only where nothing else was done beside it. More
    than `deaths` in all (None: any number), or more than `idle` in a row of workers that were at no item, end the pool.
    """

    tries: int
    deaths: int | None
    idle: int


@dataclass(kw_only=True, eq=False)
class _Worker:
    """A worker process; its threads have the cells from `first` on.

    It has been sent the jobs `queued`. While there are jobs that it has to do `alone`, one after the other, more jobs
    are `held` back.
    """

    first: int
    threads: int
    link: Connection
    process: subprocess.Popen[bytes] | None = None
    queued: set[int] = field(default_factory=set)
    alone: deque[int] = field(default_factory=deque)
    held: deque[int] = field(default_factory=deque)

    @property
    def load(self) -> float:
        """Jobs for each thread."""
        return (len(self.queued) + len(self.alone) + len(self.held)) / self.threads


class Pool(Generic[JobT, DoneT]):
    """`workers` threads that do the jobs of one `duty`, in processes of at most `threads` each.

    A process that dies is replaced, and what it had to do is done again: a result is a function of its job, so no bit
    changes. The jobs that its threads were at are done first, one at a time, so that another death has one cause. An
    item at which workers die again and again is left out, see :meth:`left_out`. :attr:`notes` has a line about each
    death.

    `setting` is what the user sets for fewer workers, for messages. Raises UsageError where such processes cannot be
    started, DataError where the system has no room for them. A context manager; :attr:`stop` ends the workers.
    """

    def __init__(
        self, duty: Duty[JobT, DoneT], workers: int, limits: Limits, *, setting: str, threads: int = 1
    ) -> None:
        if os.name != "posix" or not sys.executable:
            raise UsageError("worker processes need Linux or macOS and a Python executable")
        if workers * CELL > HEADER:
            raise UsageError(f"{setting} must be at most {HEADER // CELL}, not {workers}")
        self._setting, self._limits = setting, limits
        try:
            #: A file that all workers have open too: the cells of their threads, then what the duty keeps.
            self.memory = _anonymous_file()
        except OSError as error:
            raise self._cannot_start(error) from error
        self._workers: list[_Worker] = []
        self.stop: Callable[[], Any] = weakref.finalize(self, _stop, os.getpid(), self.memory, self._workers)
        os.ftruncate(self.memory, HEADER)
        self._jobs: dict[int, JobT] = {}
        self._answers: dict[int, Answer] = {}
        self._duty = duty
        self._deaths: Counter[int] = Counter()
        self._died_in_all = self._died_idle = 0
        self._tickets = 0
        self.notes: list[str] = []
        for place, (first, size) in enumerate(_shares(workers, threads)):
            self._start(place, first, size)

    def __enter__(self) -> Pool[JobT, DoneT]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def submit(self, job: JobT) -> int:
        """Hand out a job and return its ticket."""
        ticket = self._tickets
        self._tickets += 1
        self._jobs[ticket] = job.without(self.left_out())
        worker = min(self._workers, key=lambda worker: worker.load)
        if worker.alone:
            worker.held.append(ticket)
        else:
            self._send(worker, ticket)
        return ticket

    def wait(self, ticket: int | None = None) -> int:
        """Wait for a job, or for any; return its ticket. Raises WorkerDied when too many workers have died."""
        while not self._answers if ticket is None else ticket not in self._answers:
            self._receive()
        return next(iter(self._answers)) if ticket is None else ticket

    def result(self, ticket: int) -> DoneT:
        """Wait for a job and return what came of it. Raises WorkerDied, and RuntimeError on a bug in the worker."""
        answer = self._take(ticket)
        if answer.bug is not None:
            raise RuntimeError(f"a data worker failed:\n{answer.bug}")
        done: DoneT = answer.done
        return done

    def discard(self, ticket: int) -> None:
        """Wait for a job and forget it, whatever came of it."""
        self._take(ticket)

    def left_out(self) -> list[int]:
        """Return the items that are left out of all jobs because as many workers died at them as the limits allow."""
        return [item for item, n in self._deaths.items() if item >= 0 and n >= self._limits.tries]

    def _take(self, ticket: int) -> Answer:
        self.wait(ticket)
        self._jobs.pop(ticket)
        return self._answers.pop(ticket)

    def _send(self, worker: _Worker, ticket: int) -> None:
        worker.queued.add(ticket)
        try:
            worker.link.send((ticket, self._jobs[ticket]))
        except OSError:
            self._died(worker)

    def _send_next(self, worker: _Worker) -> None:
        """Send the next job that is done alone, or all that were held back for such jobs."""
        if worker.alone:
            self._send(worker, worker.alone[0])
        while worker.held and not worker.alone:
            self._send(worker, worker.held.popleft())

    def _start(self, place: int, first: int, threads: int) -> None:
        """Start the worker with number `place`, instead of a dead one where there was one."""
        try:
            ours, theirs = Pipe()
        except OSError as error:
            self.stop()
            raise self._cannot_start(error) from error
        worker = _Worker(first=first, threads=threads, link=ours)
        self._workers[place : place + 1] = [worker]
        arguments = [str(n) for n in (first, threads, theirs.fileno(), self.memory, os.getpid())]
        # Stopping is the parent's to handle (a scheduler may signal every process of a job): the child inherits
        # the blocked signals and never unblocks them. It ends when its parent does.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            worker.process = subprocess.Popen(
                [sys.executable, "-c", _START, *arguments, *sys.path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # ours belongs to the results
                pass_fds=(theirs.fileno(), self.memory),
                env={**os.environ, **dict.fromkeys(_ONE_THREAD, "1")},
                start_new_session=True,  # signals of the terminal go to the parent alone
            )
        except OSError as error:
            self.stop()
            raise self._cannot_start(error) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()
        try:
            ours.send(self._duty)
        except OSError:
            self._died(worker)

    def _receive(self) -> None:
        """Take what workers sent, waiting up to a second for the first."""
        ready = wait([worker.link for worker in self._workers], timeout=1.0)
        for worker in list(self._workers):
            if worker.link in ready:
                try:
                    answer: Answer = worker.link.recv()
                except (EOFError, OSError):
                    self._died(worker)
                    continue
                self._answered(worker, answer)
            elif not ready and worker.process is not None and worker.process.poll() is not None:
                self._died(worker)

    def _answered(self, worker: _Worker, answer: Answer) -> None:
        self._died_idle = 0
        worker.queued.discard(answer.ticket)
        self._answers[answer.ticket] = answer
        for item in self._jobs[answer.ticket].items if self._deaths else ():
            self._deaths.pop(item, None)  # another worker has done it
        if worker.alone and worker.alone[0] == answer.ticket:
            worker.alone.popleft()
            self._send_next(worker)

    def _died(self, worker: _Worker) -> None:
        """Replace a dead worker and have its jobs done again; raises WorkerDied beyond the limits."""
        place, code = self._workers.index(worker), _exit_code(worker)
        items = self._items_of(worker)
        sole = worker.threads == 1 or bool(worker.alone)
        for item in items:
            most = max(self._limits.tries - (not sole), self._deaths[item])
            self._deaths[item] = min(self._deaths[item] + 1, most)
        self._died_in_all += 1
        self._died_idle += not items
        death = WorkerDied(place, code, items)
        limit = self._limits.deaths
        if self._died_idle > self._limits.idle or (limit is not None and self._died_in_all > limit):
            self.stop()
            raise death
        self.notes.append(f"{death}; it was started again")
        os.pwrite(self.memory, bytes(CELL * worker.threads), CELL * worker.first)
        tickets = sorted({*worker.queued, *worker.alone, *worker.held})
        suspects = {t for t in worker.queued if not set(items).isdisjoint(self._jobs[t].items)}
        suspects.update(worker.alone)
        for waiting in (worker.queued, worker.alone, worker.held):  # nobody sends to it any more
            waiting.clear()
        worker.link.close()
        self._start(place, worker.first, worker.threads)
        for ticket in tickets:
            self._jobs[ticket] = self._jobs[ticket].without(self.left_out())
        successor = self._workers[place]
        successor.alone.extend(t for t in tickets if t in suspects)
        successor.held.extend(t for t in tickets if t not in suspects)
        self._send_next(successor)

    def _items_of(self, worker: _Worker) -> tuple[int, ...]:
        """Return the items that the threads of a worker are at."""
        cells = os.pread(self.memory, CELL * worker.threads, CELL * worker.first)
        return tuple(cell - 1 for cell in struct.unpack(f"{worker.threads}q", cells) if cell)

    def _cannot_start(self, error: OSError) -> DataError:
        return DataError(f"cannot start a data worker: {reason(error)}; lower {self._setting}")


class WorkerDied(DataError):
    """A worker process ended by itself; `items` are the numbers of the items that it was at."""

    def __init__(self, worker: int, code: int, items: tuple[int, ...]) -> None:
        how = f"exit code {code}" if code >= 0 else f"killed by {_signal_name(-code)}"
        super().__init__(f"data worker {worker} died ({how})")
        self.items = items


def _shares(workers: int, threads: int) -> Iterator[tuple[int, int]]:
    """Yield first number and count of the threads of each process: as few processes as do, as equal as can be."""
    processes = -(-workers // threads)
    for place in range(processes):
        first, last = (workers * n // processes for n in (place, place + 1))
        yield first, last - first


def _exit_code(worker: _Worker) -> int:
    assert worker.process is not None
    try:
        return worker.process.wait(timeout=1.0)
    except subprocess.TimeoutExpired:  # closed its link and lives on: as good as dead
        worker.process.kill()
        return worker.process.wait()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _anonymous_file() -> int:
    if sys.platform == "linux":
        return os.memfd_create("resnext-batches")
    with tempfile.TemporaryFile() as stream:
        return os.dup(stream.fileno())


def _stop(owner: int, memory: int, workers: list[_Worker], grace: float = 1.0) -> None:
    """End the workers (they leave when their link closes), kill what is left, free the memory."""
    if os.getpid() != owner:
        return  # a fork of the owner must not end the owner's workers
    for worker in workers:
        worker.link.close()
    deadline = time.monotonic() + grace
    for process in (worker.process for worker in workers if worker.process is not None):
        try:
            process.wait(max(deadline - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    os.close(memory)
