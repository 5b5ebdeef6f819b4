"""Learning rate as a pure function of the step: warm-up, then cosine, steps or constant."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import OptimizerConfig, ScheduleConfig


def lr_at(
    step: int, *, config: ScheduleConfig, base_lr: float, steps_per_epoch: int, epochs: int
) -> np.float32:
    """Return the learning rate of optimizer step `step` (0-based, counted from the start of training).

    During the first ``W = round(warmup_epochs · steps_per_epoch)`` steps it is ``base · (step + 1) / W``
    (linear, Goyal et al., arXiv:1706.02677). After that, with ``e = step // steps_per_epoch``:

    - ``cosine-epoch``: ``eta_min + (base - eta_min) · (1 + cos(π · e / t_max)) / 2``, constant within an
      epoch and counted from step 0, warm-up included (Loshchilov and Hutter, arXiv:1608.03983, no restart).
      As in the formula, a `t_max` below `epochs` makes it rise again.
    - ``cosine-step``: the same curve once a step, over the steps after warm-up: `base` on the first of them,
      `eta_min` on the last, step ``round(t_max · steps_per_epoch) - 1``, and on every later one.
    - ``step``: ``base · gamma ** n`` after n milestones; a milestone m (epochs, fractions allowed) is passed
      from step ``m · steps_per_epoch`` on.
    - ``constant``: `base`.

    `t_max` None means `epochs`. The value is computed in float64 and rounded once to float32, so it is the
    same however a run is cut into chunks. Raises ValueError on a negative step or a count below 1.
    """
    if step < 0 or steps_per_epoch < 1 or epochs < 1:
        raise ValueError(
            f"no learning rate for step {step} at {steps_per_epoch} steps an epoch, {epochs} epochs"
        )
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return np.float32(base_lr * ((step + 1) / warmup))
    t_max = float(epochs) if config.t_max is None else config.t_max
    if config.kind == "cosine-epoch":
        lr = _cosine(base_lr, config.eta_min, (step // steps_per_epoch) / t_max)
    elif config.kind == "cosine-step":
        span = round(t_max * steps_per_epoch) - 1 - warmup
        # Without room for a curve: one step at the base, then the end.
        progress = min((step - warmup) / span, 1.0) if span > 0 else float(step > warmup)
        lr = _cosine(base_lr, config.eta_min, progress)
    elif config.kind == "step":
        lr = base_lr * config.gamma ** sum(step >= m * steps_per_epoch for m in config.milestones)
    else:
        lr = base_lr
    return np.float32(lr)


def lrs(
    start: int, count: int, *, config: ScheduleConfig, base_lr: float, steps_per_epoch: int, epochs: int
) -> NDArray[np.float32]:
    """Return float32 (count,): :func:`lr_at` of the steps start, start + 1, ..., start + count - 1.

    Raises ValueError as :func:`lr_at` does, and on a negative count.
    """
    if count < 0:
        raise ValueError(f"cannot give {count} learning rates")
    values = [
        lr_at(step, config=config, base_lr=base_lr, steps_per_epoch=steps_per_epoch, epochs=epochs)
        for step in range(start, start + count)
    ]
    return np.array(values, dtype=np.float32)


def scaled_lr(config: OptimizerConfig, global_batch: int) -> float:
    """Return the base learning rate at `global_batch` samples a step: ``lr · global_batch / lr_batch``.

    Linear scaling (Goyal et al., arXiv:1706.02677); `lr_batch` None gives `lr` as it is.
    """
    if config.lr_batch is None:
        return config.lr
    return config.lr * global_batch / config.lr_batch


def _cosine(high: float, low: float, progress: float) -> float:
    share = (1 + math.cos(math.pi * progress)) / 2
    return high * share + low * (1 - share)  # written so that both ends are met exactly
