"""What a worker does with a batch: decode its images into the shared memory, and say what it could not read."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import AugmentConfig
from resnext_core.data.content import BadImage, Content
from resnext_core.data.exif import upright
from resnext_core.data.plan import train_plan
from resnext_core.data.render import load_eval_bytes, load_train_bytes
from resnext_core.data.sampler import sample_rng
from resnext_core.data.sources.base import Reader
from resnext_core.errors import DataError
from resnext_core.model.preprocess import PreprocessSpec


@dataclass(frozen=True, kw_only=True)
class Transform:
    """How a file becomes pixels; `augment` None is evaluation."""

    preprocess: PreprocessSpec
    augment: AugmentConfig | None
    seed: int

    def pixels(
        self, content: Content, epoch: int, sample: int, remarks: list[str] | None = None
    ) -> NDArray[np.uint8]:
        """Return uint8 (size, size, 3) of a file, a function of `content`, the transform, `epoch` and `sample` only.

        Raises BadImage. What is probably wrong with an image that can be read is added to `remarks`.
        """
        name = f"number {sample}"  # callers know the path, and report only the reason
        if self.augment is None:
            return load_eval_bytes(content, self.preprocess, name=name, remarks=remarks)
        rng = sample_rng(self.seed, epoch, sample)
        turn = upright(content, remarks) if self.preprocess.oriented else 1
        draw = partial(train_plan, spec=self.preprocess, augment=self.augment, rng=rng, orientation=turn)
        return load_train_bytes(content, draw, name=name, remarks=remarks)


@dataclass(frozen=True, kw_only=True)
class BatchJob:
    """One batch for a worker: pixels of row i start at `offset` + i · row bytes of the shared memory."""

    offset: int
    epoch: int
    rows: Sequence[tuple[int, int, bytes]]  # row, sample, locator

    @property
    def items(self) -> Sequence[int]:
        """The samples."""
        return [sample for _, sample, _ in self.rows]

    def without(self, items: Collection[int]) -> BatchJob:
        """Return the job without the rows of these samples."""
        return replace(self, rows=[row for row in self.rows if row[1] not in items]) if items else self


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A batch's end: row, reason and the system's error number (or None) for each sample that could not be read.

    `remarks` are of samples that could be read: the sample and what is probably wrong with it. `lost` is the message
    where the whole source can no longer be read.
    """

    bad: Sequence[tuple[int, str, int | None]] = ()
    remarks: Sequence[tuple[int, str]] = ()
    lost: str | None = None


@dataclass(frozen=True, kw_only=True)
class DecodeBatches:
    """The duty of the workers of a :class:`resnext_core.data.batch_pool.BatchPool`."""

    transform: Transform
    reader: Reader

    def do(self, job: BatchJob, at: Callable[[int], None], memory: int) -> Decoded:
        """Write the pixels of the job's rows into `memory`."""
        bad, remarks = [], []
        row_bytes = self.transform.preprocess.size**2 * 3
        for row, sample, locator in job.rows:
            at(sample)
            found: list[str] = []
            try:
                pixels = self.transform.pixels(self.reader.read(locator), job.epoch, sample, found)
            except BadImage as error:
                bad.append((row, error.reason, error.errno))
            except DataError as error:
                return Decoded(lost=str(error))
            else:
                _write(memory, np.ascontiguousarray(pixels).reshape(-1).data, job.offset + row * row_bytes)
            remarks += [(sample, remark) for remark in found]
        return Decoded(bad=bad, remarks=remarks)


def _write(memory: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(memory, data, offset)
        data, offset = data[written:], offset + written
