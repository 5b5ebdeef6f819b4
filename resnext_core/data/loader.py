"""Loader: batches of decoded images in the order asked for, the same for any number of readers."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import AugmentConfig
from resnext_core.data.batch_pool import THREADS, BatchPool
from resnext_core.data.batch_worker import Decoded, Row, Transform
from resnext_core.data.decode import BadImage
from resnext_core.data.index import Index
from resnext_core.data.pillow import PILLOW
from resnext_core.data.pool import WorkerDied
from resnext_core.data.quarantine import Quarantine
from resnext_core.data.sampler import Task as Task
from resnext_core.data.sources.base import RemoteReader
from resnext_core.errors import DataError, shown
from resnext_core.extensions import Decoder
from resnext_core.interfaces import Batch as Batch
from resnext_core.model.preprocess import PreprocessSpec

#: Why an image is left out that nobody tried to read.
_LISTED, _KILLS = "it is on the quarantine list", "reading it ended two decoding processes"
#: Readers that are enough: 32 decode 8,000 images/s with the slowest decoder, more than one device trains with.
_MOST_READERS = 32


def default_workers(world: int = 1) -> int:
    """Return the readers of one of `world` ranks: its share of the usable cores, from 1 to 32.

    A launcher that has divided the cores already says how many this rank has: ``RESNEXT_CORES``.
    """
    if os.name != "posix":
        return 0
    own = os.environ.get("RESNEXT_CORES", "")
    if own.isdecimal() and int(own):
        return min(int(own), _MOST_READERS)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores // world, 1), _MOST_READERS)


class Loader:
    """Decodes the images of `index` as `preprocess` says, with `augment` for training.

    A batch is a pure function of the index, its task, `seed`, `preprocess` and `augment`, whatever `decoder` and
    the number of `workers` are. The workers read beside this process: as threads of few processes where the decoder
    allows it, and as processes elsewhere. 0 decodes in this process, which then ends if the decoder crashes; None is
    :func:`default_workers`. Up to `prefetch` batches wait decoded, and as many more are under way as 32 images for each
    worker fill. A batch owns its memory until its last array is gone; then it is used again.

    An image that cannot be read is never replaced. With `bad_images` ``count`` its row has pixels 0, its
    label and index, and `valid` False, in training as in evaluation, and :attr:`failures` says why; with
    ``quarantine`` it is also put on the list of `quarantine`; with ``fail`` BadImage is raised when its batch is
    due. What is on that list already is not tried again, under any policy. An image that ends two decoding
    processes counts as one that cannot be read. With `watch_folders` a file whose folder is gone is no bad image but
    a DataError, see :func:`resnext_core.data.faults.blame`. So is a shard that is gone or has changed, always.

    A context manager; :meth:`close` ends the processes. They also end when this process does.
    """

    def __init__(
        self,
        index: Index,
        preprocess: PreprocessSpec,
        augment: AugmentConfig | None = None,
        *,
        seed: int = 0,
        workers: int | None = None,
        prefetch: int = 4,
        bad_images: Literal["count", "fail", "quarantine"] = "count",
        quarantine: Quarantine | None = None,
        watch_folders: bool = True,
        decoder: Decoder = PILLOW,
    ) -> None:
        self.index = index
        self.decoder = decoder
        self.workers = default_workers() if workers is None else workers
        self.failures: dict[int, str] = {}
        self._notes: list[str] = []
        self._remarked: set[str] = set()
        self._new_failures: list[tuple[int, str]] = []
        self._quarantine = quarantine
        self._listed = quarantine.indices(index) if quarantine is not None else set()
        #: Images of the index on the quarantine list from the start.
        self.listed = frozenset(self._listed)
        self._transform = Transform(preprocess=preprocess, augment=augment, seed=seed, open=decoder.open)
        self._prefetch = max(prefetch, 1)
        self._bad_images = bad_images
        self._watch_folders = watch_folders
        self._pool: BatchPool | None = None
        self._ahead: deque[tuple[int, Task]] = deque()
        self._running = False
        #: Seconds of cores that decoding took, and seconds that :meth:`batches` waited for it, since the start.
        self.cpu_s = self.wait_s = 0.0

    @property
    def readers(self) -> str:
        """What reads, in words: ``8 threads in 2 processes``."""
        if self.workers == 0:
            return "in the main process"
        processes = -(-self.workers // THREADS) if self.decoder.threads else self.workers
        within = f"{self.workers} thread{'s' * (self.workers > 1)} in " if self.decoder.threads else ""
        return f"{within}{processes} process{'es' * (processes > 1)}"

    def batches(self, tasks: Iterable[Task]) -> Generator[Batch, None, None]:
        """Yield a batch for each task, in order; the arrays are the caller's to keep.

        `tasks` is read ahead. Rows with `valid` False are padding and are not decoded. Left early, the
        iterator may be followed by another; two at a time raise RuntimeError. Raises BadImage (policy ``fail``),
        and DataError when the folder of a file is lost, or when workers die again and again, naming the file that the
        last one was reading.
        """
        source = self._in_process(tasks) if self.workers == 0 else self._in_workers(tasks)
        if self._running:
            raise RuntimeError("this loader is already giving out batches")
        self._running = True
        try:
            yield from source
        finally:
            self._running = False

    def read_ahead(self, tasks: Iterable[Task]) -> None:
        """Have the workers begin with `tasks`, as far as there is room, so that :meth:`batches` of them starts at once.

        Nothing happens without workers, or while this loader gives out batches.
        """
        if self.workers == 0 or self._running:
            return
        with self._dying():
            pool = self._ready_pool()
            for task in tasks:
                if not pool.room(len(task)):
                    break
                self._ahead.append((self._submit(pool, task), task))

    def take_notes(self) -> list[str]:
        """Return what happened since the last call that someone should know, a line each."""
        notes, self._notes = self._notes, []
        return notes

    def take_failures(self) -> list[tuple[int, str]]:
        """Return the images that could not be read for the first time since the last call, with the reasons.

        Those on the quarantine list, which nobody tried, are not among them.
        """
        failures, self._new_failures = self._new_failures, []
        return failures

    def close(self) -> None:
        """End the decoding processes; the loader may be used again, which starts new ones."""
        if self._pool is not None:
            self._pool.stop()
            self._pool = None
            self._ahead.clear()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _named(self, note: str, pool: BatchPool) -> str:
        """Return a note about a dead worker with the files that are left out from now on."""
        left_out = [str(self.index.path(sample)) for sample in pool.left_out()]
        return f"{note}; left out: {', '.join(left_out)}" if left_out else note

    def _remark(self, remarks: Iterable[tuple[int, str]]) -> None:
        """Note what is probably wrong with images that can be read, once for each kind, with the first file."""
        for sample, remark in remarks:
            if remark not in self._remarked:
                self._remarked.add(remark)
                path = shown(self.index.path(sample), None)
                self._notes.append(f"{path}: {remark}; resnext-run data scan names all such files")

    def _note(self, lines: Iterable[str]) -> None:
        """Note lines of readers, each once, whichever of them says it."""
        for line in lines:
            if line not in self._remarked:
                self._remarked.add(line)
                self._notes.append(line)

    def _in_process(self, tasks: Iterable[Task]) -> Iterator[Batch]:
        reader = self.index.source.reader()
        for task in tasks:
            images = np.zeros((len(task), *self._transform.shape(task.size)), np.uint8)
            bad = []
            rows = self._rows(task)
            if isinstance(reader, RemoteReader):
                reader.ahead([row.locator for row in rows])
            for row in rows:
                remarks: list[str] = []
                try:
                    content = reader.read(row.locator)
                    self._transform.write(images[row.row], content, task.epoch, row, remarks)
                except BadImage as error:
                    bad.append((row.row, error.reason, error.errno))
                self._remark((row.sample, remark) for remark in remarks)
            if isinstance(reader, RemoteReader):
                self._note(reader.take_notes())
            self._note(self._transform.notes)
            yield self._batch(task, images, bad)

    def _in_workers(self, tasks: Iterable[Task]) -> Iterator[Batch]:
        with self._dying():
            yield from self._through(tasks)

    @contextmanager
    def _dying(self) -> Iterator[None]:
        """Say what to do where workers die again and again."""
        try:
            yield
        except WorkerDied as error:
            self.close()
            reading = ", ".join(str(self.index.path(item)) for item in error.items)
            raise DataError(
                f"{error}{reading and f' while reading {reading}'}; check that file and the machine's free memory, "
                "or set data.workers=0"
            ) from error

    def _through(self, tasks: Iterable[Task]) -> Iterator[Batch]:
        source, waiting = iter(tasks), deque[tuple[int, Task]]()
        upcoming = next(source, None)
        while self._ahead and upcoming is not None and self._ahead[0][1] == upcoming:
            waiting.append(self._ahead.popleft())
            upcoming = next(source, None)
        pool = self._ready_pool(keep=waiting)
        while upcoming is not None or waiting:
            while upcoming is not None and pool.room(len(upcoming)):
                waiting.append((self._submit(pool, upcoming), upcoming))
                upcoming = next(source, None)
            ticket, task = waiting.popleft()
            images, done = self._taken(pool, ticket)
            if upcoming is not None and pool.room(len(upcoming)):  # before the caller computes
                waiting.append((self._submit(pool, upcoming), upcoming))
                upcoming = next(source, None)
            killers = set(pool.left_out())
            killed = (
                [(row.row, _KILLS, None) for row in self._rows(task) if row.sample in killers]
                if killers
                else []
            )
            batch = self._batch(task, images, [*done.bad, *killed])
            del images  # this frame must not keep the memory while the caller computes
            yield batch
            del batch

    def _taken(self, pool: BatchPool, ticket: int) -> tuple[NDArray[np.uint8], Decoded]:
        """Wait for a batch; note what there is to know about it and about workers that died."""
        started = time.perf_counter()
        images, done = pool.result(ticket)
        self.wait_s += time.perf_counter() - started
        self.cpu_s += done.cpu_s
        if done.lost is not None:
            raise DataError(done.lost)
        self._notes += [self._named(note, pool) for note in pool.take_notes()]
        self._remark(done.remarks)
        self._note(done.notes)
        return images, done

    def _submit(self, pool: BatchPool, task: Task) -> int:
        return pool.submit(task, self._rows(task))

    def _ready_pool(self, keep: Iterable[tuple[int, Task]] = ()) -> BatchPool:
        """Return the pool without batches that nobody waits for any more, such as those of an iterator left early."""
        self._ahead.clear()
        if self._pool is None:
            self._pool = BatchPool(
                self._transform, self.index.source.reader(), self.workers, self._prefetch,
                threads=self.decoder.threads,
            )  # fmt: skip
        wanted = {ticket for ticket, _ in keep}
        for ticket in self._pool.pending():
            if ticket not in wanted:
                self._pool.discard(ticket)
        return self._pool

    def _rows(self, task: Task) -> list[Row]:
        """Return row, sample and locator of each image of a task that is to be read."""
        samples, views = task.indices.tolist(), task.row_views().tolist()
        locator = self.index.source.locator
        return [
            Row(row, samples[row], locator(samples[row]), views[row])
            for row in np.flatnonzero(task.valid).tolist()
            if samples[row] not in self._listed
        ]

    def _batch(
        self, task: Task, images: NDArray[np.uint8], bad: Iterable[tuple[int, str, int | None]]
    ) -> Batch:
        valid = task.valid.copy()
        for row, reason, number in bad:
            sample = int(task.indices[row])
            if number is not None and self._watch_folders:
                self.index.source.blame(sample, number)
            if self._bad_images == "fail":
                raise BadImage(
                    self.index.path(sample), f"{reason}; repair or remove it, or set data.bad_images=count"
                )
            if self._bad_images == "quarantine" and self._quarantine is not None:
                self._quarantine.add(self.index, sample)
                self._listed.add(sample)
            if sample not in self.failures:
                self._new_failures.append((sample, reason))
            self.failures[sample] = reason
            valid[row] = False
        for row in np.flatnonzero(valid).tolist() if self._listed else ():
            sample = int(task.indices[row])
            if sample in self._listed:
                self.failures.setdefault(sample, _LISTED)
                valid[row] = False
        images[~valid] = 0
        return Batch(
            images=images,
            labels=self.index.labels[task.indices].astype(np.int32),
            index=np.where(task.valid, task.indices, -1).astype(np.int64),
            valid=valid,
        )
