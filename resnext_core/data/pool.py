"""Decoding processes and the memory they share with this one; a dead one is noticed and named.

The workers are fresh interpreters (no fork of a process with framework threads, no second run of the
caller's ``__main__``). The memory is an anonymous file that the kernel frees with the last process
that has it open, so nothing can be left behind, not even by ``kill -9``.
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
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, Pipe, wait

import numpy as np
from numpy.typing import NDArray

from resnext_core.data.worker import CELL, HEADER, Done, Job, Recipe
from resnext_core.errors import DataError, UsageError, reason

#: One thread a worker: they are many, and decoding does not use more.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
#: So many workers of a pool may die and be replaced: a machine that kills more has too little memory.
MAX_RESTARTS = 20
#: A file that a worker was reading when it died is tried once more; after that it is the file.
_TRIES = 2
#: The child gets this process's sys.path before it imports anything that could be found elsewhere.
_START = (
    "import sys; n, link, memory, parent = map(int, sys.argv[1:5]); sys.path[:] = sys.argv[5:]; "
    "from resnext_core.data.worker import main; main(n, link, memory, parent)"
)


class Pool:
    """`workers` processes and `slots` batches of shared memory.

    A worker that dies is replaced, and what it had to do is done again: a batch is a function of its job, so no bit
    changes. An image that kills two of them is left out, as one that cannot be read. :attr:`notes` has a line
    about each death.

    Raises UsageError where such processes cannot be started.
    """

    def __init__(self, recipe: Recipe, workers: int, slots: int) -> None:
        if os.name != "posix" or not sys.executable:
            raise UsageError(
                "decoding processes need Linux or macOS and a Python executable; set data.workers=0"
            )
        if workers * CELL > HEADER:
            raise UsageError(f"data.workers must be at most {HEADER // CELL}, not {workers}")
        try:
            self._memory = _anonymous_file()
        except OSError as error:
            raise _cannot_start(error) from error
        self._links: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self.stop = weakref.finalize(self, _stop, os.getpid(), self._memory, self._links, self._processes)
        os.ftruncate(self._memory, HEADER)
        self._queued: list[set[int]] = [set() for _ in range(workers)]
        self._free = list(range(slots))
        self._slot_of: dict[int, int] = {}
        self._done: dict[int, Done] = {}
        self._jobs: dict[int, Job] = {}
        self._recipe = recipe
        self._deaths: Counter[int] = Counter()
        self._restarts = 0
        self.notes: list[str] = []
        self._stride = 0
        self._row_shape = (recipe.preprocess.size, recipe.preprocess.size, 3)
        self._tickets = 0
        for number in range(workers):
            self._start(number)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [p.pid for p in self._processes]

    def reading(self) -> list[int]:
        """Return the index of the image that each worker reads now, -1 for one that reads none."""
        cells = os.pread(self._memory, CELL * len(self._processes), 0)
        return [int(cell) - 1 for cell in np.frombuffer(cells, np.int64)]

    def submit(self, epoch: int, length: int, rows: Sequence[tuple[int, int, str]]) -> int | None:
        """Hand out a batch of `length` rows (row, sample, path) and return its ticket; None: no room now."""
        size = length * int(np.prod(self._row_shape))
        if size > self._stride and not self._slot_of:
            self._stride = size
        if not self._free or size > self._stride:
            return None
        ticket, slot = self._tickets, self._free.pop()
        self._tickets += 1
        self._slot_of[ticket] = slot
        worker = min(range(len(self._queued)), key=lambda w: len(self._queued[w]))
        self._queued[worker].add(ticket)
        self._jobs[ticket] = Job(
            ticket=ticket, offset=HEADER + slot * self._stride, epoch=epoch, rows=self._harmless(rows)
        )
        self._send(worker, ticket)
        return ticket

    def result(self, ticket: int, length: int) -> tuple[NDArray[np.uint8], Done]:
        """Wait for a batch and return its pixels, a copy: uint8 (length, size, size, 3). Frees its slot.

        Pixels of rows that were not written are those of an earlier batch. Raises DataError when a worker
        has died.
        """
        while ticket not in self._done:
            self._receive()
        done, slot = self._done.pop(ticket), self._slot_of.pop(ticket)
        self._jobs.pop(ticket)
        if done.bug is not None:
            raise RuntimeError(f"a data worker failed:\n{done.bug}")
        images = np.empty((length, *self._row_shape), np.uint8)
        target, offset = images.reshape(-1).data, 0
        while offset < len(target):
            count = os.preadv(self._memory, [target[offset:]], HEADER + slot * self._stride + offset)
            if count == 0:  # rows at the end that nobody ever wrote
                target[offset:] = bytes(len(target) - offset)
                break
            offset += count
        self._free.append(slot)
        return images, done

    def discard(self) -> None:
        """Wait for the batches that nobody took and free their slots."""
        for ticket in list(self._slot_of):
            while ticket not in self._done:
                self._receive()
            self._done.pop(ticket)
            self._jobs.pop(ticket)
            self._free.append(self._slot_of.pop(ticket))

    def killers(self) -> list[int]:
        """Return the images that are left out because reading them ended two workers."""
        return [sample for sample, deaths in self._deaths.items() if sample >= 0 and deaths >= _TRIES]

    def _harmless(self, rows: Sequence[tuple[int, int, str]]) -> Sequence[tuple[int, int, str]]:
        killers = self.killers()
        return [row for row in rows if row[1] not in killers] if killers else rows

    def _send(self, worker: int, ticket: int) -> None:
        try:
            self._links[worker].send(self._jobs[ticket])
        except OSError:
            self._died(worker)

    def _start(self, number: int) -> None:
        """Start worker `number`, in the place of a dead one where there was one."""
        try:
            ours, theirs = Pipe()
        except OSError as error:
            self.stop()
            raise _cannot_start(error) from error
        if number < len(self._links):
            self._links[number].close()
            self._links[number] = ours
        else:
            self._links.append(ours)
        arguments = [str(n) for n in (number, theirs.fileno(), self._memory, os.getpid())]
        # Stopping is the parent's to handle (a scheduler may signal every process of a job): the child inherits
        # the blocked signals and never unblocks them. It ends when its parent does.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", _START, *arguments, *sys.path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # ours belongs to the results
                pass_fds=(theirs.fileno(), self._memory),
                env={**os.environ, **dict.fromkeys(_ONE_THREAD, "1")},
                start_new_session=True,  # signals of the terminal go to the parent alone
            )
            self._processes[number:] = [process, *self._processes[number + 1 :]]
        except OSError as error:
            self.stop()
            raise _cannot_start(error) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()
        try:
            ours.send(self._recipe)
        except OSError:
            self._died(number)

    def _receive(self) -> None:
        """Take what workers sent, waiting up to a second for the first."""
        ready = wait(self._links, timeout=1.0)
        for worker, link in enumerate(self._links):
            if link in ready:
                try:
                    done: Done = link.recv()
                except (EOFError, OSError):
                    self._died(worker)
                    continue
                self._queued[worker].discard(done.ticket)
                self._done[done.ticket] = done
                if self._deaths:
                    self._acquit(self._jobs[done.ticket])
            elif not ready and self._processes[worker].poll() is not None:
                self._died(worker)

    def _acquit(self, job: Job) -> None:
        """Forget the death of a worker that was reading an image of `job`: another one has read it."""
        for _, sample, _ in job.rows:
            self._deaths.pop(sample, None)

    def _died(self, worker: int) -> None:
        """Replace a dead worker and have its jobs done again; raises WorkerDied when that happens too often."""
        process = self._processes[worker]
        try:
            code = process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:  # closed its link and lives on: as good as dead
            process.kill()
            code = process.wait()
        sample = self.reading()[worker]
        self._deaths[sample] += 1
        self._restarts += 1
        death = WorkerDied(worker, code, sample)
        if self._restarts > MAX_RESTARTS:
            self.stop()
            raise death
        self.notes.append(f"{death}; it was started again")
        os.pwrite(self._memory, np.int64(0).tobytes(), worker * CELL)
        self._start(worker)
        for ticket in sorted(self._queued[worker]):
            job = self._jobs[ticket]
            self._jobs[ticket] = replace(job, rows=self._harmless(job.rows))
            self._send(worker, ticket)


class WorkerDied(DataError):
    """A decoding process ended by itself; `sample` is the index of the image it was reading, or -1."""

    def __init__(self, worker: int, code: int, sample: int) -> None:
        how = f"exit code {code}" if code >= 0 else f"killed by {_signal_name(-code)}"
        super().__init__(f"data worker {worker} died ({how})")
        self.sample = sample


def _cannot_start(error: OSError) -> DataError:
    return DataError(f"cannot start a data worker: {reason(error)}; lower data.workers")


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
