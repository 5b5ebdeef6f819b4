"""The loss of a micro-batch: cross-entropy or binary cross-entropy of smoothed, mixed targets, and a teacher's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import LossConfig
from resnext_core.errors import DataError
from resnext_core.interfaces import Distillation, MixedRows
from resnext_core.reference import ops
from resnext_core.reference.ops import Array

#: Takes logits (N, classes) and returns the loss and its gradient (N, classes).
LossFunction: TypeAlias = Callable[[Array], tuple[float, Array]]


def loss_function(
    config: LossConfig,
    classes: int,
    labels: Array,
    *,
    weights: Array | None = None,
    mix: MixedRows | None = None,
    offsets: Array | None = None,
    distillation: Distillation | None = None,
    teacher: Array | None = None,
) -> LossFunction:
    """Return what maps the logits of a micro-batch with these int (N,) `labels` to its loss.

    Rows count with `weights` (N,), None 1. With `mix` the targets are those of two labels. `offsets` (classes,) are
    added to the logits, but not for the `teacher`, whose (N, classes) probabilities count as `distillation` says.
    Raises DataError on labels that are no class.
    """
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(
            f"labels from {labels.min()} to {labels.max()} do not fit {classes} classes; "
            "train on labelled images of the classes of the model"
        )

    def loss(logits: Array) -> tuple[float, Array]:
        targets = step_targets(config, classes, labels, mix).astype(logits.dtype)
        adjusted = logits if offsets is None else logits + offsets.astype(logits.dtype)
        if config.kind == "ce":
            value, gradient = ops.cross_entropy(adjusted, targets, weights)
        else:
            value, gradient = ops.binary_cross_entropy(adjusted, targets, weights, summed=config.bce_sum)
        if distillation is None or teacher is None:
            return value, gradient
        share, heat = distillation.weight, distillation.temperature
        taught, slope = ops.cross_entropy(logits / heat, teacher.astype(logits.dtype), weights)
        return (1 - share) * value + share * heat**2 * taught, (1 - share) * gradient + share * heat * slope

    return loss


def step_targets(
    config: LossConfig, classes: int, labels: Array, mix: MixedRows | None
) -> NDArray[np.float64]:
    """Return the targets (N, classes): smoothed, then mixed, then, with ``bce_threshold``, 0 or 1."""

    def smoothed(which: Array) -> NDArray[Any]:
        return ops.smoothed_targets(which, classes, config.smoothing, config.smoothing_form)

    targets = smoothed(labels)
    if mix is not None:
        share = mix.share[:, None]
        targets = share * targets + (1 - share) * smoothed(mix.labels)
    if config.kind == "bce" and config.bce_threshold is not None:
        targets = (targets > config.bce_threshold).astype(np.float64)
    return targets
