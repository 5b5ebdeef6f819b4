"""A pool of worker processes; one that dies is noticed, replaced, and what it had to do is done again.

The workers are fresh interpreters (no fork of a process with framework threads, no second run of the caller's
``__main__``). They end with this process, also by ``kill -9``. The shared memory is an anonymous file that the kernel
frees with the last process that has it open, so nothing can be left behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from types import TracebackType
from typing import Any, Generic

from resnext_core.data.worker import CELL, HEADER, Answer, DoneT, Duty, JobT
from resnext_core.errors import DataError, UsageError, reason

#: One thread a worker: they are many, and decoding does not use more.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
#: The child gets this process's sys.path before it imports anything that could be found elsewhere.
_START = (
    "import sys; n, link, memory, parent = map(int, sys.argv[1:5]); sys.path[:] = sys.argv[5:]; "
    "from resnext_core.data.worker import main; main(n, link, memory, parent)"
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How many deaths of workers a pool takes.

    An item at which `tries` workers died is left out. More than `deaths` in all (None: any number), or more than
    `idle` in a row of workers that were at no item, end the pool.
    """

    tries: int
    deaths: int | None
    idle: int


class Pool(Generic[JobT, DoneT]):
    """`workers` processes that do the jobs of one `duty`.

    A worker that dies is replaced, and what it had to do is done again: a result is a function of its job, so no bit
    changes. An item at which workers die again and again is left out, see :meth:`left_out`. :attr:`notes` has a line
    about each death.

    `setting` is what the user sets for fewer workers, for messages. Raises UsageError where such processes cannot be
    started, DataError where the system has no room for them. A context manager; :attr:`stop` ends the workers.
    """

    def __init__(self, duty: Duty[JobT, DoneT], workers: int, limits: Limits, *, setting: str) -> None:
        if os.name != "posix" or not sys.executable:
            raise UsageError("worker processes need Linux or macOS and a Python executable")
        if workers * CELL > HEADER:
            raise UsageError(f"{setting} must be at most {HEADER // CELL}, not {workers}")
        self._setting, self._limits = setting, limits
        try:
            #: A file that all workers have open too: cells of the workers, then :data:`HEADER` on what the duty keeps.
            self.memory = _anonymous_file()
        except OSError as error:
            raise self._cannot_start(error) from error
        self._links: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self.stop: Callable[[], Any] = weakref.finalize(
            self, _stop, os.getpid(), self.memory, self._links, self._processes
        )
        os.ftruncate(self.memory, HEADER)
        self._queued: list[set[int]] = [set() for _ in range(workers)]
        self._jobs: dict[int, JobT] = {}
        self._answers: dict[int, Answer] = {}
        self._duty = duty
        self._deaths: Counter[int] = Counter()
        self._died_in_all = self._died_idle = 0
        self._tickets = 0
        self.notes: list[str] = []
        for number in range(workers):
            self._start(number)

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
        worker = min(range(len(self._queued)), key=lambda w: len(self._queued[w]))
        self._queued[worker].add(ticket)
        self._jobs[ticket] = job.without(self.left_out())
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

    def _send(self, worker: int, ticket: int) -> None:
        try:
            self._links[worker].send((ticket, self._jobs[ticket]))
        except OSError:
            self._died(worker)

    def _start(self, number: int) -> None:
        """Start worker `number`, in the place of a dead one where there was one."""
        try:
            ours, theirs = Pipe()
        except OSError as error:
            self.stop()
            raise self._cannot_start(error) from error
        if number < len(self._links):
            self._links[number].close()
            self._links[number] = ours
        else:
            self._links.append(ours)
        arguments = [str(n) for n in (number, theirs.fileno(), self.memory, os.getpid())]
        # Stopping is the parent's to handle (a scheduler may signal every process of a job): the child inherits
        # the blocked signals and never unblocks them. It ends when its parent does.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", _START, *arguments, *sys.path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # ours belongs to the results
                pass_fds=(theirs.fileno(), self.memory),
                env={**os.environ, **dict.fromkeys(_ONE_THREAD, "1")},
                start_new_session=True,  # signals of the terminal go to the parent alone
            )
            self._processes[number:] = [process, *self._processes[number + 1 :]]
        except OSError as error:
            self.stop()
            raise self._cannot_start(error) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()
        try:
            ours.send(self._duty)
        except OSError:
            self._died(number)

    def _receive(self) -> None:
        """Take what workers sent, waiting up to a second for the first."""
        ready = wait(self._links, timeout=1.0)
        for worker, link in enumerate(self._links):
            if link in ready:
                try:
                    answer: Answer = link.recv()
                except (EOFError, OSError):
                    self._died(worker)
                    continue
                self._died_idle = 0
                self._queued[worker].discard(answer.ticket)
                self._answers[answer.ticket] = answer
                for item in self._jobs[answer.ticket].items if self._deaths else ():
                    self._deaths.pop(item, None)  # another worker has done it
            elif not ready and self._processes[worker].poll() is not None:
                self._died(worker)

    def _died(self, worker: int) -> None:
        """Replace a dead worker and have its jobs done again; raises WorkerDied beyond the limits."""
        process = self._processes[worker]
        try:
            code = process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:  # closed its link and lives on: as good as dead
            process.kill()
            code = process.wait()
        item = int.from_bytes(os.pread(self.memory, CELL, worker * CELL), sys.byteorder) - 1
        self._deaths[item] += 1
        self._died_in_all += 1
        self._died_idle += item < 0
        death = WorkerDied(worker, code, item)
        most = self._limits.deaths
        if self._died_idle > self._limits.idle or (most is not None and self._died_in_all > most):
            self.stop()
            raise death
        self.notes.append(f"{death}; it was started again")
        os.pwrite(self.memory, bytes(CELL), worker * CELL)
        self._start(worker)
        for ticket in sorted(self._queued[worker]):
            self._jobs[ticket] = self._jobs[ticket].without(self.left_out())
            self._send(worker, ticket)

    def _cannot_start(self, error: OSError) -> DataError:
        return DataError(f"cannot start a data worker: {reason(error)}; lower {self._setting}")


class WorkerDied(DataError):
    """A worker process ended by itself; `item` is the number of the item it was at, or -1."""

    def __init__(self, worker: int, code: int, item: int) -> None:
        how = f"exit code {code}" if code >= 0 else f"killed by {_signal_name(-code)}"
        super().__init__(f"data worker {worker} died ({how})")
        self.item = item


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


def _stop(
    owner: int,
    memory: int,
    links: list[Connection],
    processes: list[subprocess.Popen[bytes]],
    grace: float = 1.0,
) -> None:
    """End the workers (they leave when their link closes), kill what is left, free the memory."""
    if os.getpid() != owner:
        return  # a fork of the owner must not end the owner's workers
    for link in links:
        link.close()
    deadline = time.monotonic() + grace
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    os.close(memory)
