"""Checks of what a trainer is given, and the weights of a batch's rows in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.data.mix import mixed_rows
from resnext_core.errors import DataError, UsageError
from resnext_core.interfaces import Batch, Mix, MixedRows, StepInput, TrainRequest
from resnext_core.training.imbalance import check_weighted_targets, weighted_rows


def check_split(request: TrainRequest) -> None:
    """Raise UsageError where the batch of a rank does not split into equal micro-batches."""
    if request.accumulate < 1 or request.batch_size < 1 or request.batch_size % request.accumulate:
        raise UsageError(
            f"a batch of {request.batch_size} a rank does not split into {request.accumulate} equal "
            "micro-batches; change train.batch_size or train.accumulate"
        )


def check_classes(request: TrainRequest) -> None:
    """Raise UsageError on what is given for each class and does not fit the classes, or the loss."""
    check_weighted_targets(request.loss, weighted=request.class_weights is not None, mixes=request.mixes)
    if request.logit_offsets is not None and request.loss.kind == "bce":
        raise UsageError("logit offsets are defined for cross-entropy, not for binary cross-entropy")
    classes = request.weights.spec.num_classes
    given = {"class_weights": request.class_weights, "logit_offsets": request.logit_offsets}
    for name, array in given.items():
        if array is not None and (array.shape != (classes,) or not np.isfinite(array).all()):
            raise UsageError(f"{name} must be {classes} finite numbers, one for each class")


def step_inputs(
    request: TrainRequest,
    batches: Sequence[Batch],
    lrs: Sequence[float] | Any,
    ema_decays: Sequence[float] | Any | None = None,
) -> list[StepInput]:
    """Check the arguments of :meth:`Trainer.run_steps` and return the input of every step.

    A row's weight is 0 where it is not valid, else rows / valid rows, both counted over the step's batch on all ranks;
    0 everywhere where none is valid. The mean of weight x loss over equal micro-batches and ranks is then the mean loss
    of the valid rows. All weights of a batch without invalid rows are 1. With class weights a row's is multiplied by
    that of its label, and the shares of mixed labels are changed so that each has its own weight; see
    :func:`resnext_core.training.imbalance.weighted_rows`. With several ranks the counts of all `batches` are added in
    one message. `ema_decays` None is ``request.ema_decay`` at every step.

    Raises UsageError on batches that are not what `request` says, DataError on labels that are no class.
    """
    if len(batches) != len(lrs):
        raise UsageError(f"{len(batches)} batches need as many learning rates, not {len(lrs)}")
    decays = [request.ema_decay] * len(batches) if ema_decays is None else ema_decays
    if len(decays) != len(batches) or (ema_decays is not None and request.ema_decay is None):
        raise UsageError("decays of the EMA are given for each batch, and only where there is an EMA")
    for batch in batches:
        _check_batch(request, batch)
    valid = [np.asarray(batch.valid, np.bool_) for batch in batches]
    counts = np.array([np.count_nonzero(v) for v in valid], np.int64)
    if request.rank.world > 1 and batches:
        counts = request.collectives.all_reduce_sum(counts)
    total = request.batch_size * request.rank.world
    labels = [np.where(v, batch.labels, 0).astype(np.int32) for batch, v in zip(batches, valid, strict=True)]
    mixes: list[MixedRows | None] = [None] * len(batches) if not request.mixes else [
        mixed_rows(batch.mix or (Mix(),) * request.accumulate, own, v, batch.images.shape[1:3])
        for batch, own, v in zip(batches, labels, valid, strict=True)
    ]  # fmt: skip
    rows: list[NDArray[np.float64]] = [
        v * (total / int(count) if count else 0.0) for v, count in zip(valid, counts, strict=True)
    ]
    if request.class_weights is not None:
        weighted = [
            weighted_rows(request.class_weights, own, mix) for own, mix in zip(labels, mixes, strict=True)
        ]
        rows = [row * weight for row, (weight, _) in zip(rows, weighted, strict=True)]
        mixes = [mix for _, mix in weighted]
    return [
        StepInput(
            images=batch.images,
            labels=own,
            weights=row,
            lr=float(lr),
            mix=mix,
            branches=batch.branches,
            teacher=batch.teacher,
            ema_decay=None if ema is None else float(ema),
        )
        for batch, own, mix, row, lr, ema in zip(batches, labels, mixes, rows, lrs, decays, strict=True)
    ]


def _check_batch(request: TrainRequest, batch: Batch) -> None:
    size, images, classes = request.batch_size, batch.images, request.weights.spec.num_classes
    if len(batch.labels) != size or len(images) != size:
        raise UsageError(f"a training step takes {size} images a rank, not {len(images)}")
    if batch.valid.shape != (size,):
        raise UsageError(f"valid must be bool ({size},), not {batch.valid.dtype} {batch.valid.shape}")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise UsageError(f"images must be uint8 (N, H, W, 3), not {images.dtype} {images.shape}")
    _check_mix(request, batch)
    blocks = (size, len(request.weights.spec.blocks))
    _check_rows("branches", batch.branches, blocks if request.drops else None)
    _check_rows("teacher", batch.teacher, (size, classes) if request.distillation is not None else None)
    labels = batch.labels[batch.valid]
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(
            f"training labels must be 0 to {classes - 1}, not {labels.min()} to {labels.max()}; "
            "train on labelled images of the classes of the model"
        )


def _check_rows(name: str, array: NDArray[Any] | None, shape: tuple[int, int] | None) -> None:
    """Raise UsageError unless `array` is float32 of `shape`, and None where that is."""
    if shape is None and array is not None:
        raise UsageError(f"a batch has {name}, which this training was not asked for")
    if shape is not None and (array is None or array.shape != shape or array.dtype != np.float32):
        found = "nothing" if array is None else f"{array.dtype} {array.shape}"
        raise UsageError(f"a batch of this training has {name} float32 {shape}, not {found}")


def _check_mix(request: TrainRequest, batch: Batch) -> None:
    if not batch.mix:
        return
    if not request.mixes:
        raise UsageError("a batch says how to mix its images, and this training was not asked to mix any")
    if len(batch.mix) != request.accumulate:
        raise UsageError(f"{request.accumulate} micro-batches need as many mixes, not {len(batch.mix)}")
    height, width = batch.images.shape[1:3]
    for mix in batch.mix:
        top, left, bottom, right = mix.box
        if not 0 <= mix.lam <= 1 or not 0 <= top <= bottom <= height or not 0 <= left <= right <= width:
            raise UsageError(f"{mix} does not fit images of {height} x {width} pixels and shares from 0 to 1")
