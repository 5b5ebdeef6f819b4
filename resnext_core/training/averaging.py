"""The decay of the weights' moving average (EMA) at each step: a pure function of the step, as the learning rate is."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import TrainConfig


def ema_decays(
    steps: range,
    *,
    config: TrainConfig,
    warmup_epochs: float,
    steps_per_epoch: int,
    epochs: float,
    position: Callable[[int], float] = float,
) -> NDArray[np.float64] | None:
    """Return the d of ema = d · ema + (1 - d) · w after each of `steps` (from 0): float64 (len(steps),).

    None where ``train.ema_decay`` is. The EMA is moved after the first step of an epoch and every ``ema_every``-th
    after that one; the other steps have 1. With ``ema_scaled`` the decay is max(0, 1 - (1 - ema_decay) · batch_size ·
    ema_every / `epochs`). In the warm-up ``copy`` the EMA is a copy, d = 0, while the learning rate warms up, and once
    more at the first move after it. All this is as in torchvision's references/classification/train.py, where the
    counter of AveragedModel is set back to 0 as long as epoch < lr_warmup_epochs.

    In the warm-up ``power`` d is at most 1 - (1 + t) ** -ema_power after t moves, as timm's ModelEmaV3 has it with
    gamma 1: the first move copies.

    `position` maps a step to its place in a training of the configured length, of which `warmup_epochs` are meant.
    """
    if config.ema_decay is None:
        return None
    decay, every = config.ema_decay, config.ema_every
    if config.ema_scaled:
        decay = max(0.0, 1 - (1 - decay) * config.batch_size * every / epochs)
    warmup = round(warmup_epochs * steps_per_epoch)

    def decay_at(step: int) -> float:
        epoch, within = divmod(step, steps_per_epoch)
        if within % every:
            return 1.0
        moves = epoch * _moves(steps_per_epoch, every) + within // every
        if config.ema_warmup == "power":
            return min(decay, 1 - math.pow(1 + moves, -config.ema_power))
        if config.ema_warmup == "copy":
            before = _move_before(step, steps_per_epoch, every)
            return 0.0 if before is None or position(before) < warmup else decay
        return decay

    return np.array([decay_at(step) for step in steps], np.float64)


def _moves(steps_per_epoch: int, every: int) -> int:
    """Return how often an epoch moves the EMA."""
    return -(-steps_per_epoch // every)


def _move_before(step: int, steps_per_epoch: int, every: int) -> int | None:
    """Return the step of the move before that of `step`; None where it is the first."""
    epoch, within = divmod(step, steps_per_epoch)
    if within:
        return step - every
    if epoch == 0:
        return None
    return (epoch - 1) * steps_per_epoch + (_moves(steps_per_epoch, every) - 1) * every
