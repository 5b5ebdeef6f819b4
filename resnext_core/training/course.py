"""How long a training is, and where each step stands on its schedule: as configured, or fitted to a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import Config, TrainConfig
from resnext_core.errors import counted
from resnext_core.training.schedule import lr_at, scaled_lr

#: More steps than any training has.
_ENDLESS = 2**62


def length(train: TrainConfig) -> str:
    """Return in words how long a training is asked to be."""
    if train.minutes is None:
        return counted(train.epochs, "epoch")
    return f"{counted(train.minutes, 'minute')} on the schedule of {counted(train.epochs, 'epoch')}"


class Course:
    """The course of a training of `steps_per_epoch` steps an epoch: a pure function of its `fits`.

    Each fit is (step, total): after `step` steps it was decided that the training ends after `total`. Without any it
    has the configured length, and a step stands for itself. With fits the configured schedule is shortened or
    stretched, warm-up and all: from the step of a fit on, the remaining steps go over what is left of it evenly, so
    the learning rate does not jump.
    """

    def __init__(self, config: Config, steps_per_epoch: int, fits: Sequence[tuple[int, int]] = ()) -> None:
        self._config, self.steps_per_epoch = config, steps_per_epoch
        self.fits = tuple(fits)

    @property
    def configured(self) -> int:
        """Steps of the training as it is configured."""
        return self._config.train.epochs * self.steps_per_epoch

    @property
    def expected(self) -> int:
        """Steps of the training as far as is known: as configured, where it will be fitted and is not yet."""
        return self.fits[-1][1] if self.fits else self.configured

    @property
    def total(self) -> int:
        """Steps of the training; those of one that will be fitted and is not yet have no end."""
        endless = self._config.train.minutes is not None and not self.fits
        return _ENDLESS if endless else self.expected

    @property
    def epochs(self) -> float:
        """Epochs of the training as far as is known, with a fraction where it ends within one."""
        return self.expected / self.steps_per_epoch

    @property
    def last_epoch(self) -> int:
        """The number of the last epoch, from 1."""
        return self.epoch_of(self.total)

    def epoch_of(self, steps: int) -> int:
        """Return the number (from 1) of the epoch that the last of `steps` steps belongs to; 0 for no steps."""
        return -(-steps // self.steps_per_epoch)

    def position(self, step: int) -> float:
        """Return the step of the configured schedule that `step` (from 0) stands for, with a fraction.

        The last step stands for the last one. Without fits it is `step`, up to the last one.
        """
        last = self.configured - 1
        if not self.fitted_at(step):
            return min(step, last)
        start, place, slope = 0, 0.0, 1.0
        for at, total in self.fits:
            if at > step:
                break
            place = min(place + slope * (at - start), last)
            slope = (last - place) / (total - 1 - at) if total - 1 > at else 0.0
            start = at
        return min(place + slope * (step - start), last)

    def fitted_at(self, step: int) -> bool:
        """True where a fit was made at or before `step`."""
        return bool(self.fits) and self.fits[0][0] <= step

    def epoch_at(self, step: int) -> int:
        """Return the epoch (from 1) of the configured schedule that `step` (from 0) stands for."""
        return int(self.position(step) // self.steps_per_epoch) + 1

    def lrs(self, steps: range) -> NDArray[np.float32]:
        """Return the learning rates of `steps`: float32 (len(steps),)."""
        train = self._config.train
        base = scaled_lr(self._config.optimizer, train.batch_size)
        return np.array(
            [
                lr_at(
                    self.position(step), config=self._config.schedule, base_lr=base,
                    steps_per_epoch=self.steps_per_epoch, epochs=train.epochs, smooth=self.fitted_at(step),
                )
                for step in steps
            ],
            dtype=np.float32,
        )  # fmt: skip
