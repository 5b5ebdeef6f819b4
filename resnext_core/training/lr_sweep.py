"""A learning-rate range test: how the loss goes while the rate rises exponentially, and which rate that suggests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from resnext_core.errors import DataError, counted
from resnext_core.training.trainer import Trainer
from resnext_core.training.training import Epoch, Training

#: Weight of the losses so far in the smoothed loss; fastai has 0.98, which lags behind a sweep of few steps.
SMOOTHING = 0.95
#: The sweep ends where the smoothed loss is above so many times its lowest value (fastai's LRFinder).
DIVERGED = 4.0
#: So many losses at least make a curve to read a rate from.
LEAST_STEPS = 20
#: This share of the steps at the start is not read: the smoothed loss is of few losses there.
SKIPPED = 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class Sweep:
    """The steps of a range test, in order: rates, losses, smoothed losses, each float64 (steps,).

    `diverged` is True where it ended because the loss rose too much, or was not a number (that one is left out).
    """

    lrs: NDArray[np.float64]
    losses: NDArray[np.float64]
    smoothed: NDArray[np.float64]
    diverged: bool


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """Rates that a sweep suggests: `valley` is the one to try first.

    It lies in the middle, on a logarithmic scale, of the longest fall of the smoothed loss (as fastai's rule of that
    name does), `steepest` where the loss falls fastest, and `tenth` is a tenth of the rate with the lowest loss.
    """

    valley: float
    steepest: float
    tenth: float


def sweep_lrs(low: float, high: float, steps: int) -> NDArray[np.float32]:
    """Return float32 (steps,): rates from `low` to `high`, each the same multiple of the one before."""
    return np.geomspace(low, high, steps).astype(np.float32)


def sweep(
    trainer: Trainer, training: Training, lrs: NDArray[np.float32], on_step: Callable[[int], None]
) -> Sweep:
    """Train a step with each of `lrs` (Smith, arXiv:1506.01186), until the loss diverges; the trainer's state moves on.

    `on_step` gets the number of steps done. The images are those of the training's first steps, and those of its first
    epochs where it has fewer steps than `lrs`.
    """
    epochs = list(_epochs(training, len(lrs)))
    tasks = (task for epoch, count in epochs for task in islice(epoch.tasks(), count))
    losses: list[float] = []
    smoother, best, done = _Smoother(), math.inf, 0
    smoothed: list[float] = []
    with closing(training.train_loader.batches(tasks)) as loaded:
        for epoch, count in epochs:
            for steps in epoch.chunks():
                steps = range(steps.start, min(steps.stop, epoch.steps.start + count))
                if not steps:
                    break
                batches = epoch.drawn(steps, islice(loaded, len(steps)))
                if training.teacher is not None:
                    batches = training.teacher.taught(batches)
                for loss in trainer.run_steps(batches, lrs[done : done + len(steps)]).tolist():
                    if not math.isfinite(loss):
                        return _swept(lrs, losses, smoothed, diverged=True)
                    losses.append(loss)
                    smoothed.append(smoother.add(loss))
                    best = min(best, smoothed[-1])
                    if smoothed[-1] > DIVERGED * best:
                        return _swept(lrs, losses, smoothed, diverged=True)
                done += len(steps)
                on_step(done)
    return _swept(lrs, losses, smoothed, diverged=False)


def suggest_lr(found: Sweep) -> Suggestion:
    """Return what a sweep suggests; DataError where its loss never falls."""
    first = int(SKIPPED * len(found.lrs))
    logs, values = np.log(found.lrs[first:]), found.smoothed[first:]
    if len(values) < LEAST_STEPS:
        raise DataError(
            f"the loss diverged after "
            f"{counted(len(found.lrs), 'step')}, too early to suggest a rate; start with a lower --low"
        )
    start, end = longest_fall(values)
    if start == end:
        raise DataError(
            "the loss never falls in the sweep; check the data, or sweep other rates (--low, --high)"
        )
    slope = np.gradient(values, logs)
    return Suggestion(
        valley=float(np.exp((logs[start] + logs[end]) / 2)),
        steepest=float(np.exp(logs[start + int(np.argmin(slope[start : end + 1]))])),
        tenth=float(np.exp(logs[int(np.argmin(values))]) / 10),
    )


def longest_fall(values: NDArray[np.float64]) -> tuple[int, int]:
    """Return first and last index of the longest strictly decreasing subsequence of `values`."""
    length, before = [1] * len(values), list(range(len(values)))
    for i in range(len(values)):
        for j in range(i):
            if values[j] > values[i] and length[j] + 1 >= length[i]:  # the latest: what is flat is no fall
                length[i], before[i] = length[j] + 1, j
    last = first = int(np.argmax(length))
    while before[first] != first:
        first = before[first]
    return first, last


class _Smoother:
    """An exponential mean without the bias of its start."""

    def __init__(self) -> None:
        self._mean, self._weight = 0.0, 0.0

    def add(self, loss: float) -> float:
        self._mean = SMOOTHING * self._mean + (1 - SMOOTHING) * loss
        self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)
        return self._mean / self._weight


def _epochs(training: Training, steps: int) -> Iterator[tuple[Epoch, int]]:
    """Yield the first epochs of the training, with how many steps of each make `steps`."""
    for epoch in training.epochs_after(0):
        count = min(steps, len(epoch.steps))
        yield epoch, count
        steps -= count
        if steps == 0:
            return


def _swept(lrs: NDArray[np.float32], losses: list[float], smoothed: list[float], *, diverged: bool) -> Sweep:
    return Sweep(
        lrs=lrs[: len(losses)].astype(np.float64), losses=np.array(losses), smoothed=np.array(smoothed),
        diverged=diverged,
    )  # fmt: skip
