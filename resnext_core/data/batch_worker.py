"""What a worker does with a part of a batch: decode its images into the shared memory, and say what it cannot read."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import AugmentConfig
from resnext_core.data.content import BadImage, Content
from resnext_core.data.exif import upright
from resnext_core.data.pillow import PILLOW, PillowDecoder
from resnext_core.data.plan import Plan, train_plan
from resnext_core.data.sampler import sample_rng
from resnext_core.data.sources.base import Reader, RemoteReader
from resnext_core.data.worker import Memory
from resnext_core.errors import DataError
from resnext_core.extensions import ImageDecoder, NotSupported
from resnext_core.model.preprocess import PreprocessSpec, evaluated_at


class Row(NamedTuple):
    """An image to read: its row in the batch, its number in the index, and where the reader finds it.

    `view` counts the appearances of an image in an epoch, from 0.
    """

    row: int
    sample: int
    locator: bytes
    view: int = 0


@dataclass(frozen=True, kw_only=True)
class Transform:
    """How a file becomes pixels; `augment` None is evaluation. `open` makes the decoder, in each process that reads."""

    preprocess: PreprocessSpec
    augment: AugmentConfig | None
    seed: int
    open: Callable[[], ImageDecoder] = PILLOW.open

    def shape(self, size: int | None) -> tuple[int, int, int]:
        """Return the shape of an image's pixels in a task of images of `size`."""
        side = self.preprocess.size if size is None else size
        return (side, side, 3)

    @cached_property
    def decoder(self) -> ImageDecoder:
        """The decoder of this process."""
        return self.open()

    @property
    def notes(self) -> list[str]:
        """What the decoder says that is not about one image, such as that it leaves all of them to Pillow."""
        note = getattr(self.decoder, "note", "")
        return [note] if note else []

    def write(
        self, out: NDArray[np.uint8], content: Content, epoch: int, row: Row, remarks: list[str]
    ) -> None:
        """Write the pixels of a file into `out`, uint8 (size, size, 3); raises BadImage.

        They are a function of `content`, the transform, the size of `out`, `epoch` and the sample and view of `row`
        only, whichever decoder is used. Images of evaluation have the size of the preprocessing. What is probably wrong
        with an image that can be read is added to `remarks`.
        """
        found: list[str] = []
        try:
            self._decode(self.decoder, out, content, epoch, row, found)
        except NotSupported:
            found.clear()
            self._decode(PillowDecoder(), out, content, epoch, row, found)
        remarks += found

    def _decode(
        self,
        decoder: ImageDecoder,
        out: NDArray[np.uint8],
        content: Content,
        epoch: int,
        row: Row,
        remarks: list[str],
    ) -> None:
        name = f"number {row.sample}"  # callers know the path, and report only the reason
        augment = self.augment
        if augment is None:
            decoder.evaluation(content, name, self.preprocess, out, remarks)
            return
        turn = upright(content, remarks) if self.preprocess.oriented else 1
        spec = _sized(self.preprocess, len(out))

        def draw(width: int, height: int) -> Plan:
            rng = sample_rng(self.seed, epoch, row.sample, row.view)
            return train_plan(width, height, spec, augment, rng, orientation=turn)

        decoder.training(content, name, draw, out, remarks)


#: Asked for by every image; a training has few sizes.
_sized = lru_cache(maxsize=16)(evaluated_at)


@dataclass(frozen=True, kw_only=True)
class BatchJob:
    """A part of a batch for a worker: pixels of row i start at `offset` + i · row bytes of the shared memory.

    `shape` is that of the pixels of an image.
    """

    offset: int
    shape: tuple[int, int, int]
    epoch: int
    rows: Sequence[Row]

    @property
    def items(self) -> Sequence[int]:
        """The samples."""
        return [row.sample for row in self.rows]

    def without(self, items: Collection[int]) -> BatchJob:
        """Return the job without the rows of these samples."""
        return replace(self, rows=[row for row in self.rows if row.sample not in items]) if items else self


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What came of a job: row, reason and the system's error number (or None) for each sample that cannot be read.

    `remarks` are of samples that could be read: the sample and what is probably wrong with it. `lost` is the message
    where the whole source can no longer be read. `notes` are lines of decoder and reader. The job took
    `cpu_s` seconds of a core.
    """

    bad: Sequence[tuple[int, str, int | None]] = ()
    remarks: Sequence[tuple[int, str]] = ()
    lost: str | None = None
    notes: Sequence[str] = ()
    cpu_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class DecodeBatches:
    """The duty of the workers of a :class:`resnext_core.data.batch_pool.BatchPool`."""

    transform: Transform
    reader: Reader

    def prepare(self) -> None:
        """Open the decoder."""
        _ = self.transform.decoder

    def do(self, job: BatchJob, at: Callable[[int], None], memory: Memory) -> Decoded:
        """Write the pixels of the job's rows into `memory`."""
        bad, remarks = [], []
        length = int(np.prod(job.shape))
        started = time.thread_time()
        if isinstance(self.reader, RemoteReader):
            self.reader.ahead([row.locator for row in job.rows])
        for row in job.rows:
            at(row.sample)
            out = np.frombuffer(memory.view(job.offset + row.row * length, length), np.uint8).reshape(
                job.shape
            )
            found: list[str] = []
            try:
                self.transform.write(out, self.reader.read(row.locator), job.epoch, row, found)
            except BadImage as error:
                bad.append((row.row, error.reason, error.errno))
            except DataError as error:
                return Decoded(lost=str(error))
            remarks += [(row.sample, remark) for remark in found]
        notes = [*self.transform.notes]
        if isinstance(self.reader, RemoteReader):
            notes += self.reader.take_notes()
        return Decoded(bad=bad, remarks=remarks, notes=notes, cpu_s=time.thread_time() - started)
