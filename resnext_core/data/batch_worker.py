"""What a worker does with a batch: decode its images into the shared memory, and say what it could not read."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import AugmentConfig
from resnext_core.data.decode import BadImage
from resnext_core.data.render import load_eval, load_train
from resnext_core.data.sampler import sample_rng
from resnext_core.model.preprocess import PreprocessSpec


@dataclass(frozen=True, kw_only=True)
class Transform:
    """How a file becomes pixels; `augment` None is evaluation."""

    preprocess: PreprocessSpec
    augment: AugmentConfig | None
    seed: int

    def pixels(
        self, path: str, epoch: int, sample: int, remarks: list[str] | None = None
    ) -> NDArray[np.uint8]:
        """Return uint8 (size, size, 3) of `path`, a function of the transform, `epoch` and `sample` only.

        What is probably wrong with an image that can be read is added to `remarks`.
        """
        if self.augment is None:
            return load_eval(path, self.preprocess, remarks)
        return load_train(path, self.preprocess, self.augment, sample_rng(self.seed, epoch, sample), remarks)


@dataclass(frozen=True, kw_only=True)
class BatchJob:
    """One batch for a worker: pixels of row i start at `offset` + i · row bytes of the shared memory."""

    offset: int
    epoch: int
    rows: Sequence[tuple[int, int, str]]  # row, sample, path

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

    `remarks` are of samples that could be read: the sample and what is probably wrong with it.
    """

    bad: Sequence[tuple[int, str, int | None]] = ()
    remarks: Sequence[tuple[int, str]] = ()


@dataclass(frozen=True, kw_only=True)
class DecodeBatches:
    """The duty of the workers of a :class:`resnext_core.data.batch_pool.BatchPool`."""

    transform: Transform

    def do(self, job: BatchJob, at: Callable[[int], None], memory: int) -> Decoded:
        """Write the pixels of the job's rows into `memory`."""
        bad, remarks = [], []
        row_bytes = self.transform.preprocess.size**2 * 3
        for row, sample, path in job.rows:
            at(sample)
            found: list[str] = []
            try:
                pixels = self.transform.pixels(path, job.epoch, sample, found)
            except BadImage as error:
                bad.append((row, error.reason, error.errno))
            else:
                _write(memory, np.ascontiguousarray(pixels).reshape(-1).data, job.offset + row * row_bytes)
            remarks += [(sample, remark) for remark in found]
        return Decoded(bad=bad, remarks=remarks)


def _write(memory: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(memory, data, offset)
        data, offset = data[written:], offset + written
