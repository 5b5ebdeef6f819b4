"""Learning rate as a pure function of the step: warm-up, then one of the curves of ``schedule.kind``."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import OptimizerConfig, ScheduleConfig


def lr_at(
    step: float,
    *,
    config: ScheduleConfig,
    base_lr: float,
    steps_per_epoch: int,
    epochs: int,
    smooth: bool = False,
) -> np.float32:
    """Return the learning rate of optimizer step `step` (0-based, counted from the start of training).

    With S steps an epoch, the first ``W = round(warmup_epochs · S)`` steps warm up (Goyal et al., arXiv:1706.02677):
    ``base · (step + 1) / W``, or with `warmup_start` f ``base · (f + (1 - f) · step / W)`` (as LinearLR). With
    `warmup_per` ``epoch`` the same with ``step // S`` for the step and `warmup_epochs` for W: constant within an epoch.

    Then follows a curve, which counts from step 0 on, warm-up included, or with `after_warmup` from step W on.
    `t_max` None is the end of the training. With e = whole epochs since the curve counts:

    - ``cosine-epoch``: ``eta_min + (base - eta_min) · (1 + cos(π · e / t_max)) / 2``, constant within an
      epoch (Loshchilov and Hutter, arXiv:1608.03983, no restart; CosineAnnealingLR, stepped once an epoch).
      As in the formula, a `t_max` below `epochs` makes it rise again.
    - ``cosine-step``: the same curve once a step, over the steps after warm-up: `base` on the first of them,
      `eta_min` on the last, step ``round(t_max · S) - 1``, and on every later one.
    - ``linear``: a straight line from `base` on the first step after warm-up to `eta_min` at step
      ``round(t_max · S)`` and later: without `t_max` the last step is one short of it (as LinearLR).
    - ``step``: ``base · gamma ** n`` after n milestones; a milestone m (epochs, fractions allowed) is passed
      from step ``m · S`` on.
    - ``constant``: `base`.

    ``one-cycle`` has its own warm-up: half a cosine from ``base / div_factor`` on step 0 to `base` on step W - 1, then
    half a cosine to ``base / (div_factor · final_div)`` on the last step (Smith and Topin, arXiv:1708.07120; known as
    OneCycleLR with ``pct_start = warmup_epochs / epochs``, its momentum not cycled).

    `step` may lie between two steps, and with `smooth` what is constant within an epoch changes with every step:
    so :class:`~resnext_core.training.course.Course` fits a schedule to another number of steps. The value is computed
    in float64 and rounded once to float32, so it is the same however a run is cut into chunks. Raises ValueError on a
    negative step or a count below 1.
    """
    if step < 0 or steps_per_epoch < 1 or epochs < 1:
        raise ValueError(
            f"no learning rate for step {step} at {steps_per_epoch} steps an epoch, {epochs} epochs"
        )
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if config.kind == "one-cycle":
        return np.float32(_one_cycle(step, config, base_lr, warmup, epochs * steps_per_epoch))
    if step < warmup:
        return np.float32(base_lr * _warmup_share(step, config, warmup, steps_per_epoch, smooth))
    first = warmup if config.after_warmup else 0
    t_max = config.t_max
    if t_max is None:
        t_max = float(epochs) - (config.warmup_epochs if config.after_warmup else 0.0)
    end = first + round(t_max * steps_per_epoch)
    if config.kind == "cosine-epoch":
        counted = step - first
        epoch = counted / steps_per_epoch if smooth else counted // steps_per_epoch
        # With after_warmup, a training that ends with its warm-up has no curve.
        lr = _cosine(base_lr, config.eta_min, epoch / t_max if t_max > 0 else 1.0)
    elif config.kind == "cosine-step":
        lr = _cosine(base_lr, config.eta_min, _share(step - warmup, end - 1 - warmup))
    elif config.kind == "linear":
        done = _share(step - warmup, end - warmup)
        lr = base_lr * (1 - done) + config.eta_min * done
    elif config.kind == "step":
        passed = sum(step >= first + m * steps_per_epoch for m in config.milestones)
        lr = base_lr * config.gamma**passed
    else:
        lr = base_lr
    return np.float32(lr)


def _warmup_share(
    step: float, config: ScheduleConfig, warmup: int, steps_per_epoch: int, smooth: bool
) -> float:
    """Return the share of the base learning rate at a step of the warm-up."""
    done, whole = step, float(warmup)
    if config.warmup_per == "epoch" and not smooth:
        done, whole = step // steps_per_epoch, config.warmup_epochs
    start = config.warmup_start
    # A step between the last one of the warm-up and the next is at the base, not above it.
    return min((done + 1) / whole, 1.0) if start is None else start + (1 - start) * done / whole


def _one_cycle(step: float, config: ScheduleConfig, base_lr: float, warmup: int, total: int) -> float:
    initial = base_lr / config.div_factor
    peak = warmup - 1
    if step <= peak:
        return _cosine(initial, base_lr, _share(step, peak) if peak else 1.0)
    return _cosine(base_lr, initial / config.final_div, _share(step - peak, total - 1 - peak))


def _share(done: float, span: float) -> float:
    """Return how much of `span` steps is done, at most 1; without room for a curve, all of it after the first step."""
    return min(done / span, 1.0) if span > 0 else float(done > 0)


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
