"""What every trainer shares: loss scale, counters, the weights of a batch's rows, checks of batches and states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.config import PrecisionConfig
from resnext_core.errors import DataError, UsageError
from resnext_core.interfaces import Batch, TrainRequest, TrainState

#: The dynamic loss scale stops doubling here, the largest power of two of float32.
MAX_LOSS_SCALE = 2.0**127
#: Scalars of every TrainState.
SCALARS = ("step", "overflow_steps", "loss_scale", "good_steps")


class StepCounter:
    """Counts optimizer steps and moves the loss scale; whether a step's gradients are finite, its trainer finds out.

    `scale` is what the loss of the next step is multiplied by, and its gradients divided by. With `checks` a step
    whose gradients are not finite must be skipped; with `dynamic` the scale of a step depends on the step before.
    """

    def __init__(self, precision: PrecisionConfig, *, skip_nonfinite: bool = False) -> None:
        self._growth_interval = precision.growth_interval
        self.checks = skip_nonfinite or precision.loss_scale != "none"
        self.dynamic = precision.loss_scale == "dynamic"
        self.scale = 1.0 if precision.loss_scale == "none" else float(precision.scale)
        self.step = self.overflow_steps = self.good_steps = 0

    def count(self, finite: bool = True) -> None:
        """Count a step, taken or (not `finite`) skipped.

        A dynamic scale halves on overflow, down to 1, and doubles after `growth_interval` good steps, as in
        Micikevicius et al., arXiv:1710.03740, section 3.2.
        """
        self.step += 1
        self.overflow_steps += not finite
        if not self.dynamic:
            return
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.scale = max(self.scale / 2, 1.0)
        elif self.good_steps >= self._growth_interval:
            self.good_steps = 0
            if self.scale < MAX_LOSS_SCALE:
                self.scale *= 2

    def scalars(self) -> dict[str, float | int]:
        """Return the scalars of a TrainState."""
        return {
            "step": self.step,
            "overflow_steps": self.overflow_steps,
            "loss_scale": self.scale,
            "good_steps": self.good_steps,
        }

    def load(self, scalars: Mapping[str, float | int]) -> None:
        """Go on from the scalars of a state that :func:`check_state` has passed."""
        self.step = int(scalars["step"])
        self.overflow_steps = int(scalars["overflow_steps"])
        self.good_steps = int(scalars["good_steps"])
        self.scale = float(scalars["loss_scale"])


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """What the loss of a training batch needs: `labels` int32 (N,), `weights` float64 (N,).

    Labels of rows that are not valid are 0.
    """

    labels: NDArray[np.int32]
    weights: NDArray[np.float64]


def training_rows(request: TrainRequest, batches: Sequence[Batch], lrs: Sequence[float] | Any) -> list[Rows]:
    """Check the arguments of :meth:`Trainer.run_steps` and return the labels and weights of every batch.

    A row's weight is 0 where it is not valid, else rows / valid rows, both counted over the step's batch on all ranks;
    0 everywhere where none is valid. The mean of weight x loss over equal micro-batches and ranks is then the mean loss
    of the valid rows. All weights of a batch without invalid rows are 1. With several ranks the counts of all `batches`
    are added in one message.

    Raises UsageError on batches that are not what `request` says, DataError on labels that are no class.
    """
    if len(batches) != len(lrs):
        raise UsageError(f"{len(batches)} batches need as many learning rates, not {len(lrs)}")
    for batch in batches:
        _check_batch(request, batch)
    valid = [np.asarray(batch.valid, np.bool_) for batch in batches]
    counts = np.array([np.count_nonzero(v) for v in valid], np.int64)
    if request.rank.world > 1 and batches:
        counts = request.collectives.all_reduce_sum(counts)
    total = request.batch_size * request.rank.world
    return [
        Rows(
            labels=np.where(v, batch.labels, 0).astype(np.int32),
            weights=v * (total / int(count) if count else 0.0),
        )
        for batch, v, count in zip(batches, valid, counts, strict=True)
    ]


def _check_batch(request: TrainRequest, batch: Batch) -> None:
    size, images, classes = request.batch_size, batch.images, request.weights.spec.num_classes
    if len(batch.labels) != size or len(images) != size:
        raise UsageError(f"a training step takes {size} images a rank, not {len(images)}")
    if batch.valid.shape != (size,):
        raise UsageError(f"valid must be bool ({size},), not {batch.valid.dtype} {batch.valid.shape}")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise UsageError(f"images must be uint8 (N, H, W, 3), not {images.dtype} {images.shape}")
    labels = batch.labels[batch.valid]
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(
            f"training labels must be 0 to {classes - 1}, not {labels.min()} to {labels.max()}; "
            "train on labelled images of the classes of the model"
        )


def check_state(state: TrainState, shapes: Mapping[str, tuple[int, ...]], variant: str) -> None:
    """Raise DataError unless `state` has exactly the float32 tensors of `shapes`, by key, and all scalars."""
    tensors: Mapping[str, Any] = state.tensors
    problems = [f"missing {n}" for n in shapes if n not in tensors]
    problems += [f"unexpected {n}" for n in tensors if n not in shapes]
    for name, shape in shapes.items():
        array = tensors.get(name)
        if array is not None and (tuple(array.shape) != tuple(shape) or array.dtype != np.float32):
            problems.append(f"{name} is {array.dtype} {array.shape}, not float32 {tuple(shape)}")
    problems += [f"missing {n}" for n in SCALARS if n not in state.scalars]
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise DataError(f"this state does not fit {variant}: {'; '.join(problems[:4])}{more}")
