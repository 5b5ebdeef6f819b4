"""The process that decodes: takes jobs, writes pixels into shared memory, says what it could not read.

Started by :mod:`resnext_core.data.pool` as a fresh interpreter, never forked: it imports NumPy, Pillow and a
few modules of core, no framework, and does not look at the parent's ``__main__``.
"""

from __future__ import annotations

import os
import queue
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import AugmentConfig
from resnext_core.data.augment import load_eval, load_train
from resnext_core.data.decode import BadImage
from resnext_core.data.sampler import sample_rng
from resnext_core.model.preprocess import PreprocessSpec

#: Start of the pixels in the shared memory; before it one cell a worker: the sample it reads plus 1, or 0.
HEADER = 4096
CELL = 8


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a file becomes pixels; `augment` None is evaluation."""

    preprocess: PreprocessSpec
    augment: AugmentConfig | None
    seed: int

    def pixels(
        self, path: str, epoch: int, sample: int, remarks: list[str] | None = None
    ) -> NDArray[np.uint8]:
        """Return uint8 (size, size, 3) of `path`, a function of the recipe, `epoch` and `sample` only.

        What is probably wrong with an image that can be read is added to `remarks`.
        """
        if self.augment is None:
            return load_eval(path, self.preprocess, remarks)
        return load_train(path, self.preprocess, self.augment, sample_rng(self.seed, epoch, sample), remarks)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One batch for a worker: pixels of row i start at `offset` + i · row bytes of the shared memory."""

    ticket: int
    offset: int
    epoch: int
    rows: Sequence[tuple[int, int, str]]  # row, sample, path


@dataclass(frozen=True, kw_only=True)
class Done:
    """A job's end: row, reason and the system's error number (or None) for each sample that could not be read.

    `remarks` are of samples that could be read: the sample and what is probably wrong with it. `bug` is an unexpected
    traceback.
    """

    ticket: int
    bad: Sequence[tuple[int, str, int | None]] = ()
    remarks: Sequence[tuple[int, str]] = ()
    bug: str | None = None


def main(number: int, link_fd: int, memory_fd: int, parent: int) -> None:
    """Serve jobs until the other end of the link closes or the `parent` process is gone."""
    link = Connection(link_fd)
    recipe: Recipe = link.recv()
    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(link, jobs, parent), daemon=True).start()
    while True:
        job = jobs.get()
        try:
            done = _work(job, recipe, number, memory_fd)
        except Exception:
            done = Done(ticket=job.ticket, bug=traceback.format_exc())
        try:
            link.send(done)
        except OSError:
            os._exit(0)


def _receive(link: Connection, jobs: queue.SimpleQueue[Job], parent: int) -> NoReturn:
    """Queue jobs as they come, so that the parent never waits to send; end the process with the link."""
    try:
        while True:
            # A process forked by the parent may hold the link open after the parent's death.
            while not link.poll(1.0):
                if os.getppid() != parent:
                    os._exit(0)
            jobs.put(link.recv())
    except (EOFError, OSError):
        os._exit(0)


def _work(job: Job, recipe: Recipe, number: int, memory_fd: int) -> Done:
    bad, remarks = [], []
    row_bytes = recipe.preprocess.size**2 * 3
    for row, sample, path in job.rows:
        os.pwrite(memory_fd, np.int64(sample + 1).tobytes(), number * CELL)
        found: list[str] = []
        try:
            pixels = recipe.pixels(path, job.epoch, sample, found)
        except BadImage as error:
            bad.append((row, error.reason, error.errno))
        else:
            _write(memory_fd, np.ascontiguousarray(pixels).reshape(-1).data, job.offset + row * row_bytes)
        remarks += [(sample, remark) for remark in found]
    os.pwrite(memory_fd, np.int64(0).tobytes(), number * CELL)
    return Done(ticket=job.ticket, bad=bad, remarks=remarks)


def _write(memory_fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(memory_fd, data, offset)
        data, offset = data[written:], offset + written
