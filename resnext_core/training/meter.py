"""The training records: sums over the steps since the last one, and where their time went."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.runs.records import Listener, Progress, Train
from resnext_core.training.nonfinite import mean_of_finite


class Meter:
    """Sums what one record of `epoch` (from 1) says, and writes it; `total` are the steps of the whole training."""

    def __init__(self, listen: Listener, *, batch_size: int, total: int, epoch: int) -> None:
        self._listen, self._batch_size, self.total, self._epoch = listen, batch_size, total, epoch
        self._reset()

    def _reset(self) -> None:
        self._losses: list[float] = []
        self._wait = self._compute = 0.0
        self._copy: float | None = None
        self._teacher: float | None = None
        self._started = time.perf_counter()

    @property
    def steps(self) -> int:
        """Steps since the last record."""
        return len(self._losses)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for data."""
        started = time.perf_counter()
        yield
        self._wait += time.perf_counter() - started

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Count the time of the block as computing."""
        started = time.perf_counter()
        yield
        self._compute += time.perf_counter() - started

    @contextmanager
    def teaching(self) -> Iterator[None]:
        """Count the time of the block as computing, by the teacher."""
        started = time.perf_counter()
        with self.computing():
            yield
        self._teacher = (self._teacher or 0.0) + time.perf_counter() - started

    def add(self, step: int, losses: NDArray[Any], lr: float, *, copy: float | None) -> None:
        """Add the steps that end at `step`, with their `losses` and the last `lr`.

        In `copy` seconds of computing the device waited for its images, None where the trainer does not say.
        """
        self._losses += [float(x) for x in losses]
        self._step, self._lr = step, lr
        if copy is not None:
            self._copy = (self._copy or 0.0) + copy
        self._listen(
            Progress(
                step=step, what="train", done=step, total=self.total, epoch=self._epoch, loss=float(losses[-1]),
                lr=lr, images=len(losses) * self._batch_size,
            )
        )  # fmt: skip

    def write(self, counters: Mapping[str, float | int]) -> None:
        """Write the record and start the next one."""
        seconds = time.perf_counter() - self._started
        images = len(self._losses) * self._batch_size
        self._listen(
            Train(
                step=self._step, epoch=self._epoch, loss=mean_of_finite(self._losses), lr=self._lr, images=images,
                seconds=round(seconds, 4), wait_s=round(self._wait, 4), compute_s=round(self._compute, 4),
                copy_s=None if self._copy is None else round(self._copy, 4),
                teacher_s=None if self._teacher is None else round(self._teacher, 4),
                images_per_s=round(images / seconds, 2),
                nonfinite_steps=int(np.count_nonzero(~np.isfinite(self._losses))),
                overflow_steps=int(counters["overflow_steps"]), loss_scale=counters["loss_scale"],
            )
        )  # fmt: skip
        self._reset()
